"""Published checkpoints by name: fetched once, here from a server of our own, and read as the originals are."""

import io
import math
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from test_checkpoints import PUBLISHED, PUBLISHED_UNETS, SAME, assert_same_model, shapes, whole_model

from ldm_lite import cli
from ldm_lite.checkpoints import load_compvis, save_compvis
from ldm_lite.config import InputError
from ldm_lite.latent import LatentDiffusion
from ldm_lite.originals import OPENRAIL, ORIGINALS, Original, original
from ldm_lite.presets import FIRST_STAGES, PAPER, UNETS


class Server:
    """Serves `content`; with `stops_after`, the connection ends there once. asked: the ranges that were wanted."""

    def __init__(self):
        self.content, self.asked, self.stops_after = b"", [], None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()

            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
                body = outer.content[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if outer.stops_after is not None:
                    body, outer.stops_after = body[: outer.stops_after], None
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in the place of the originals', which has the faces' model; this user has agreed to nothing yet."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LDM_LITE_YES", "")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setitem(UNETS, "celebahq-ldm4", SAME["faces"])
    served = Server()
    monkeypatch.setitem(ORIGINALS, "celebahq-ldm4", Original(f"{served.address}celeba.zip"))
    save_compvis(whole_model(), tmp_path / "model.ckpt")
    served.content = zipped(tmp_path / "model.ckpt")
    yield served
    served.http.shutdown()
    served.http.server_close()


def zipped(path, name: str = "model.ckpt", more: tuple[str, ...] = ()) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.write(path, name)
        archive.writestr("__MACOSX/._model.ckpt", "what a Mac adds")
        for other in more:
            archive.writestr(other, "more")
    return held.getvalue()


def test_a_published_model_is_converted_by_its_name(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "celebahq-ldm4", "runs/faces", "--dtype", "fp32"]) == 2
    said = capsys.readouterr().err
    assert "celebahq-ldm4: 0.1 GB, from http" in said and "; no published checksum; the code's licence is MIT" in said
    assert "add --yes to fetch it on these terms" in said
    assert not server.asked and not (tmp_path / "runs").exists()
    assert cli.main(["convert", "celebahq-ldm4", "runs/faces", "--dtype", "fp32", "--yes"]) == 0
    assert_same_model(LatentDiffusion.load("runs/faces"), load_compvis("model.ckpt", SAME["faces"]))
    assert cli.main(["convert", "celebahq-ldm4", "runs/again", "--dtype", "fp32"]) == 0
    assert server.asked == [None]  # once


def test_a_fetch_that_was_stopped_goes_on_where_it_was(server, tmp_path):
    server.stops_after = 1000
    with pytest.raises(InputError, match=r"celebahq-ldm4: 1000 bytes of \d+ came; the same command goes on from there"):
        original("celebahq-ldm4", yes=True)
    path = original("celebahq-ldm4", yes=True)
    assert server.asked == [None, "bytes=1000-"]
    assert path.read_bytes() == (tmp_path / "model.ckpt").read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.ckpt", "sha256"]


def test_another_file_than_the_known_or_the_first_is_refused_and_removed(server, monkeypatch, capsys):
    about = ORIGINALS["celebahq-ldm4"]
    monkeypatch.setitem(ORIGINALS, "celebahq-ldm4", replace(about, sha256="0" * 64))
    with pytest.raises(InputError, match=r"is another file than it was \(sha256 [0-9a-f]{12}…\); it was removed"):
        original("celebahq-ldm4", yes=True)
    monkeypatch.setitem(ORIGINALS, "celebahq-ldm4", about)
    path = original("celebahq-ldm4", yes=True)
    assert "which is remembered; no published one is known" in capsys.readouterr().err
    path.unlink()
    server.content = server.content[:-1] + b"x"
    with pytest.raises(InputError, match="is another file than it was"):
        original("celebahq-ldm4", yes=True)
    assert [p.name for p in path.parent.iterdir()] == ["sha256"]


def test_a_checkpoint_that_is_not_zipped_is_taken_as_it_is(server, tmp_path, monkeypatch):
    server.content = (tmp_path / "model.ckpt").read_bytes()
    monkeypatch.setitem(ORIGINALS, "celebahq-ldm4", Original(f"{server.address}model.ckpt"))
    path = original("celebahq-ldm4", yes=True)
    assert_same_model(load_compvis(path, "celebahq-ldm4"), load_compvis(tmp_path / "model.ckpt", SAME["faces"]))


def test_a_file_that_is_no_zip_or_has_no_checkpoint_is_told(server, tmp_path):
    whole, server.content = server.content, b"<html>not found</html>"
    with pytest.raises(InputError, match=r"celeba.zip: is no zip, and was removed; the same command fetches it again"):
        original("celebahq-ldm4", yes=True)
    server.content = zipped(tmp_path / "model.ckpt", more=("other.ckpt",))
    with pytest.raises(InputError, match="has 2 checkpoints in it, and one is needed"):
        original("celebahq-ldm4", yes=True)
    assert len(whole) > 1000


def test_without_a_network_it_says_what_to_get_and_where_to_give_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(ORIGINALS, "celebahq-ldm4", Original("http://127.0.0.1:9/celeba.zip"))  # where nobody listens
    says = r"^celebahq-ldm4: http://127.0.0.1:9/celeba.zip cannot be fetched \(.*\); get the file elsewhere and give"
    with pytest.raises(InputError, match=says):
        original("celebahq-ldm4", yes=True)


def test_without_a_network_size_source_checksum_and_terms_are_shown_before_anything_is_agreed_to(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LDM_LITE_YES", "")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    about = replace(ORIGINALS["sd-v1"], url="http://127.0.0.1:9/sd.ckpt")
    monkeypatch.setitem(ORIGINALS, "sd-v1", about)
    shown = rf"4.3 GB by its tensors' shapes, from {about.url}; sha256 {about.sha256}; {OPENRAIL}"
    with pytest.raises(InputError, match=f"^sd-v1: about {shown}; add --yes"):
        original("sd-v1")
    assert cli.main(["convert", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"sd-v1: about {shown}" in lines and len(lines) == len(ORIGINALS)
    assert not any("unknown" in line for line in lines)


def numbers(tree) -> float:
    """Millions, in a published file's tensors."""
    return sum(math.prod(shape) for shape in shapes(tree).values()) / 1e6


def test_the_sizes_of_the_published_files_are_those_of_their_tensors():
    others = {"text2img256": 186.2, "txt2img-1p4b": 582.0, "layout2img256": 58.9}  # encoders of text, and of a layout
    others |= {"sd-v1": 123.06, "cin256": 0.51, "cin256-v2": 0.51}  # CLIP's of ViT-L/14, embeddings of classes
    others["inpainting"] = numbers(PUBLISHED["vq-f4-noattn"])  # its first stage once more
    unaveraged = ("cin256-v2", "txt2img-1p4b", "sd-v1")
    for name, about in ORIGINALS.items():
        if name in FIRST_STAGES:  # with VGG16's convolutions, and a critic of two or three layers
            critic = {2: 0.66, 3: 2.77}[FIRST_STAGES[name].loss.critic_layers]
            found = numbers(PUBLISHED[name]) + 14.71 + critic
        else:
            stage = PAPER[name].first_stage if name in PAPER else "kl-f8"
            alike = "celebahq-ldm4" if name in ("ffhq-ldm4", "lsun-bedrooms-ldm4") else name
            found = numbers(PUBLISHED_UNETS[alike]) * (1 if name in unaveraged else 2)
            found += numbers(PUBLISHED[stage]) + others.get(name, 0.0)
        assert about.millions == pytest.approx(found, rel=2e-3), name


def test_every_published_model_that_is_known_has_an_address_and_terms():
    assert set(ORIGINALS) == set(FIRST_STAGES) | set(UNETS) - {"rdm768"}
    for name, about in ORIGINALS.items():
        assert about.url.startswith("https://") and about.url.endswith((".zip", ".ckpt")) and about.terms, name
    assert ORIGINALS["sd-v1"].terms == OPENRAIL and len(ORIGINALS["sd-v1"].sha256) == 64


def test_no_code_in_a_fetched_file_is_run(server, tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"x": Runs()}}, tmp_path / "evil.ckpt")
    server.content = zipped(tmp_path / "evil.ckpt")
    with pytest.raises(InputError):
        load_compvis(original("celebahq-ldm4", yes=True), "celebahq-ldm4")
    assert not (tmp_path / "ran").exists()
