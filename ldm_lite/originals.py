"""The published checkpoints by name: where they are, what they are, on which terms.

    ldm-lite convert celebahq-ldm4 runs/faces --yes

A file is fetched once, goes on where a fetch was stopped, and is then read as any other: without running code in it.
Where its checksum is known it is compared; another's is remembered beside the file, so that something else is refused
later. The originals' server has been down at times: a file that somebody has goes to `convert` by its path."""

from __future__ import annotations

import hashlib
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from .config import InputError, whole
from .data.catalogue import cache, consent

SERVER = "https://ommer-lab.com/files/latent-diffusion/"
HUB = "https://huggingface.co/CompVis/stable-diffusion-v-1-4-original/resolve/main/"
RESEARCH = "the code's licence is MIT, the weights' is stated nowhere"
OPENRAIL = "CreativeML OpenRAIL-M: use-based restrictions, also for what is derived from it"


@dataclass(frozen=True)
class Original:
    """url: of the checkpoint, or of a zip with one in it. sha256: of that file, where it is known.

    millions: of float32 numbers in the tensors of its published configuration, those of a denoiser twice where averages
    are kept, a first stage with its critic and LPIPS. What an optimiser may have left in the file is not in it."""

    url: str
    terms: str = RESEARCH
    sha256: str | None = None
    millions: float = 0.0

    def said(self, bytes: int = 0) -> str:
        """Size, source, checksum and terms in one line. bytes: of the file, where the server tells."""
        shown = f"{bytes / 1e9:.1f} GB" if bytes else f"about {self.millions * 4e6 / 1e9:.1f} GB by its tensors' shapes"
        shown = shown if bytes or self.millions else "size unknown"
        checksum = f"sha256 {self.sha256}" if self.sha256 else "no published checksum"
        return f"{shown}, from {self.url}; {checksum}; {self.terms}"


MILLIONS = {
    "kl-f4": 72.8, "kl-f8": 101.1, "kl-f16": 87.1, "kl-f32": 121.4,
    "vq-f4": 72.8, "vq-f4-noattn": 70.7, "vq-f8": 83.1, "vq-f8-n256": 85.1, "vq-f16": 85.0,
    "celebahq-ldm4": 603.4, "ffhq-ldm4": 603.4, "lsun-bedrooms-ldm4": 603.4, "lsun-churches-ldm8": 673.6,
    "cin256": 858.2, "cin256-v2": 456.8, "text2img256": 1048.8, "txt2img-1p4b": 1537.9, "sd-v1": 1066.2,
    "layout2img256": 606.8, "semantic256": 485.8, "bsr-sr": 282.6, "inpainting": 880.9,
}  # fmt: skip


def _zipped(**names: str) -> dict[str, Original]:
    names = {name.replace("_", "-"): file for name, file in names.items()}
    return {name: Original(f"{SERVER}{file}.zip") for name, file in names.items()}


PLACES = {
    **_zipped(**{name: name for name in ("kl-f4", "kl-f8", "kl-f16", "kl-f32")}),
    **_zipped(**{name: name for name in ("vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16")}),
    **_zipped(
        celebahq_ldm4="celeba",
        ffhq_ldm4="ffhq",
        lsun_churches_ldm8="lsun_churches",
        lsun_bedrooms_ldm4="lsun_bedrooms",
        cin256="cin",
        text2img256="text2img",
        semantic256="semantic_synthesis256",
        bsr_sr="sr_bsr",
        layout2img256="layout2img_model",
        inpainting="inpainting_big",
    ),
    "cin256-v2": Original(f"{SERVER}nitro/cin/model.ckpt"),
    "txt2img-1p4b": Original(f"{SERVER}nitro/txt2img-f8-large/model.ckpt"),
    "sd-v1": Original(
        f"{HUB}sd-v1-4.ckpt",
        OPENRAIL,
        "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
    ),
}
ORIGINALS = {name: replace(about, millions=MILLIONS[name]) for name, about in PLACES.items()}


def original(name: str, yes: bool = False, folder: str | Path | None = None) -> Path:
    """The file of a published model's checkpoint, fetched if it is not in `folder` yet (by default the user's cache).

    Its size, source, checksum and terms are shown first, and agreed to by yes or at a terminal. InputError without
    agreement, where it cannot be fetched, for another file than the known or the first one, and a zip without a
    checkpoint."""
    about = ORIGINALS[name]
    folder = Path(folder) if folder else cache() / "originals" / name
    found = folder / "model.ckpt"
    if found.is_file():
        return found
    fetched = folder / Path(about.url).name
    if not fetched.is_file():
        consent(f"{name}: {about.said(_size(about.url))}", yes)
        download(about.url, fetched, name)
    digest = check(fetched, about, name)
    if fetched.suffix == ".zip":
        unpack(fetched, found)
        fetched.unlink()  # as large again, and no longer needed
    if not about.sha256:
        print(f"{name}: sha256 {digest}, which is remembered; no published one is known", file=sys.stderr)
    with whole(folder / "sha256") as temporary:
        temporary.write_text(f"{digest}\n")
    return found if found.is_file() else fetched


def _size(url: str) -> int:
    """In bytes, as the server says; 0 where it cannot be asked: then the download says why."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (urllib.error.URLError, OSError, ValueError):
        return 0


def gone(name: str, url: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or error
    return InputError(f"{name}: {url} cannot be fetched ({reason}); get the file elsewhere and give its path")


def download(url: str, path: Path, name: str) -> None:
    """Fetches a file; one that was stopped goes on where it was."""
    from tqdm.auto import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    there = part.stat().st_size if part.is_file() else 0
    asked = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            there = there if answer.status == 206 else 0  # a server that cannot go on sends all of it again
            total = there + int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(total=total or None, initial=there, unit="B", unit_scale=True, desc=name)
            with bar, open(part, "ab" if there else "wb") as file:
                while block := answer.read(2**20):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: it was whole
            raise gone(name, url, error) from None
    except (urllib.error.URLError, OSError) as error:
        raise gone(name, url, error) from None
    else:
        if total and part.stat().st_size != total:
            raise InputError(
                f"{name}: {part.stat().st_size} bytes of {total} came; the same command goes on from there"
            )
    part.replace(path)


def check(path: Path, about: Original, name: str) -> str:
    """The file's sha256. InputError for another than the known one, or than that which came first: it is removed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    found, noted = digest.hexdigest(), path.with_name("sha256")
    expected = about.sha256 or (noted.read_text().strip() if noted.is_file() else found)
    if found != expected:
        path.unlink()
        raise InputError(f"{name}: {about.url} is another file than it was (sha256 {found[:12]}…); it was removed")
    return found


def unpack(archive: Path, target: Path) -> None:
    """The one checkpoint in a zip, whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = [name for name in zipped.namelist() if name.endswith(".ckpt") and "__MACOSX" not in name]
            if len(names) != 1:
                raise InputError(f"{archive}: has {len(names)} checkpoints in it, and one is needed")
            with whole(target) as temporary, zipped.open(names[0]) as source, open(temporary, "wb") as file:
                shutil.copyfileobj(source, file, 2**24)
    except zipfile.BadZipFile:
        archive.unlink()
        raise InputError(f"{archive}: is no zip, and was removed; the same command fetches it again") from None
