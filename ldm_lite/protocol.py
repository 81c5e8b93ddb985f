"""FID as papers report it: very many samples against the whole training set, both seen by one network.

What the network sees is kept in a folder, some hundred images to a file, each written whole: a measurement of many
hours goes on where it was stopped, and several ranks share it. Two FIDs compare when samples, network and the pixels of
the real images are the same; for the last there is a number, `pixels`, that changes with any of them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import processes
from .conditioners import Labels, Unconditional
from .config import InputError, one_or_more, shares, suggest, swept, whole
from .data.cache import fingerprint, identity
from .features import Features
from .latent import SAMPLERS, LatentDiffusion
from .metrics import Statistics, fid, inception_score, kid, precision_recall
from .training import Drawn, autocast, device, graphs, precision

CHUNK = 500  # images to a file
NEIGHBOURS = 10_000  # of each side for KID, precision and recall, whose cost is the square of it


@dataclass(frozen=True)
class Protocol:
    """What a number depends on, besides the model and the images. The paper's: 50,000 samples, Inception."""

    samples: int = 50_000
    features: Literal["inception", "scenes"] = "inception"
    size: int = 256  # pixels of a sample
    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 1.0
    seed: int = 0
    grid: str = "uniform"  # the times of the sampler
    eta: float = 0.0  # of ddim: 0 is DDIM, 1 is DDPM

    def __post_init__(self) -> None:
        one_or_more(samples=self.samples, size=self.size, steps=self.steps)
        shares(eta=self.eta)
        if self.sampler not in SAMPLERS:
            raise suggest(self.sampler, SAMPLERS, "sampler")
        if self.eta and self.sampler != "ddim":
            raise InputError(f"eta: {self.sampler} has no such argument; ddim has")
        if self.samples < 10:
            raise InputError(f"samples: {self.samples} are fewer than the ten parts of an inception score")


def measured(
    model: LatentDiffusion,
    images: Any,
    protocol: Protocol,
    folder: str | Path,
    looks: str | Path | None = None,
    compile: bool = False,
) -> dict[str, Any]:
    """FID, KID, precision, recall and inception score of a model's samples against all of a dataset's images.

    Labels are the model's classes in turn. folder: what is done already is taken from there. looks: the file of the
    network's weights, in place of what is downloaded. compile: denoiser and decoder, for the samples: a minute that
    pays on a GPU from some thousand on. On every rank the same.
    InputError for a model that is told something else, an empty dataset, and a folder that cannot be written."""
    told = model.conditioner
    if not isinstance(told, (Labels, Unconditional)):
        raise InputError(f"evaluate: {type(told).__name__}: FID by this protocol is for classes, or for none")
    if not len(images):
        raise InputError("the dataset is empty")
    folder, network = Path(folder), Features(protocol.features, looks).to(device())
    processes.alone(swept, folder)
    named = f"{protocol.features} {fingerprint(network)}" if looks is not None else protocol.features

    def real(rows: range) -> Tensor:
        return Drawn(images).__getitems__([(row, 0) for row in rows])["image"]

    def fake(rows: range) -> Tensor:
        batch = {"label": torch.tensor(rows) % len(told.names)} if isinstance(told, Labels) else {}
        p = protocol
        settings = {name: getattr(p, name) for name in ("sampler", "grid", "steps", "guidance", "seed", "size")}
        own = {"eta": p.eta} if p.eta else {}  # which other samplers do not take
        with autocast(model.device, precision("auto", model.device)):
            return model.sample(batch, n=len(rows), first=rows.start, **settings, **own)

    seen = f"{named} {len(images)} {identity(images)}"
    theirs = Seen(folder, "real", seen, len(images), network, real)
    ours = Seen(folder, "fake", f"{named} {asdict(protocol)} {weights(model)}", protocol.samples, network, fake)
    theirs.look("the dataset")
    both = (model.denoiser, getattr(model.first_stage, "decoder", None))  # pixels have none
    networks = [network for network in both if compile and network is not None]
    for network in networks:
        network.to(memory_format=torch.channels_last)
    with graphs(*networks):
        ours.look("samples")

    def compared() -> dict[str, Any]:
        a, b = theirs.statistics(), ours.statistics()
        eta = f", eta {protocol.eta:g}" if protocol.eta else ""
        how = f"{protocol.sampler}{eta}, {protocol.steps} steps, {protocol.grid} grid, guidance {protocol.guidance:g}"
        x, y = theirs.some(NEIGHBOURS), ours.some(NEIGHBOURS)
        near = min(len(x), len(y))
        distance, spread = kid(x, y, subset=min(1000, near))
        precise, recalled = precision_recall(x, y)
        score, deviation = inception_score(ours.probabilities())
        return {
            "samples": protocol.samples,
            "images": len(images),
            "pixels": theirs.pixels(),
            "features": protocol.features,
            "sampler": how,
            "fid": round(fid(a, b), 4),
            "kid": [round(distance, 6), round(spread, 6)],
            "precision": round(precise, 4),
            "recall": round(recalled, 4),
            "inception_score": [round(score, 3), round(deviation, 3)],
        }

    return processes.shared(compared)


class Seen:
    """What a network sees in many images, in files of CHUNK, made by the ranks in turn."""

    def __init__(self, folder: Path, name: str, key: str, n: int, network: Features, draw: Callable[[range], Tensor]):
        self.key, self.n, self.network, self.draw = hashlib.sha256(key.encode()).hexdigest(), n, network, draw
        self.parts = [range(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]
        self.paths = [folder / f"{name}-{k:05d}.safetensors" for k in range(len(self.parts))]

    def look(self, words: str) -> None:
        """Makes the files that are missing."""
        from safetensors.torch import save_file
        from tqdm.auto import tqdm

        own = range(processes.rank(), len(self.paths), processes.count())
        todo = [k for k in own if self.read(k) is None]
        images = sum(len(self.parts[k]) for k in todo)
        with tqdm(total=images, desc=words, unit=" images", disable=not todo or processes.rank() > 0) as bar:
            for k in todo:
                with whole(self.paths[k]) as temporary:
                    found: list[tuple[Tensor, Tensor]] = []
                    pixels = 0
                    for rows in split(self.parts[k], 50):
                        images = self.draw(rows)
                        pixels = zlib.crc32(((images + 1) * 127.5).round().byte().numpy(), pixels)
                        images = images.to(device())
                        found.append((self.network(images).cpu(), self.network.probabilities(images).cpu()))
                        bar.update(len(rows))
                    features, classes = (torch.cat(columns) for columns in zip(*found, strict=True))
                    about = {"key": self.key, "pixels": f"{pixels:08x}"}
                    save_file({"features": features, "probabilities": classes}, temporary, about)
        processes.agreed(self.key, words)

    def read(self, k: int) -> dict[str, Any] | None:
        """A file's tensors, mapped, and what it says of its pixels; None for a missing one, or of something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.paths[k], "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return None
                return {name: file.get_tensor(name) for name in ("features", "probabilities")} | about
        except (SafetensorError, OSError):
            return None

    def files(self) -> Iterator[dict[str, Any]]:
        for k, path in enumerate(self.paths):
            found = self.read(k)
            if found is None:
                raise InputError(f"{path}: is gone or broken; start again")
            yield found

    def statistics(self) -> Statistics:
        total = Statistics()
        for file in self.files():
            total.update(file["features"])
        return total

    def some(self, n: int) -> Tensor:
        """The features of the first n."""
        files = (file["features"] for _, file in zip(self.paths[: -(-n // CHUNK)], self.files(), strict=False))
        return torch.cat(list(files))[:n]

    def probabilities(self) -> Tensor:
        return torch.cat([file["probabilities"] for file in self.files()])

    def pixels(self) -> str:
        """One number for all images, as 8-bit pixels, in their order."""
        return f"{zlib.crc32(' '.join(file['pixels'] for file in self.files()).encode()):08x}"


def split(rows: range, size: int) -> Sequence[range]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def weights(model: LatentDiffusion) -> str:
    """What tells a model's weights and settings from another's."""
    return f"{model.diffusion} {model.conditioner.config} {fingerprint(model)}"
