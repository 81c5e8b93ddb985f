"""FID by the papers' protocol: the same numbers as at once, however often it is stopped and whoever helps."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from ldm_lite import cli, protocol
from ldm_lite.conditioners import Unconditional
from ldm_lite.config import InputError
from ldm_lite.data import Scenes
from ldm_lite.features import Features
from ldm_lite.metrics import fid, inception_score, kid, precision_recall
from ldm_lite.protocol import Protocol, measured
from ldm_lite.training import autocast, precision

ASKED = Protocol(samples=23, features="scenes", size=16, steps=2, guidance=1.5, seed=3)
IMAGES = 17


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Files of seven images; neighbours among the first eleven."""
    monkeypatch.setattr(protocol, "CHUNK", 7)
    monkeypatch.setattr(protocol, "NEIGHBOURS", 11)


def model():
    torch.manual_seed(0)
    whole = tiny.latent_diffusion(replace(tiny.UNET, dropout=0.0)).eval()
    whole.first_stage.scale.fill_(0.7)
    return whole


def images():
    return Scenes("validation", size=16, count=IMAGES)


def test_the_numbers_are_those_of_all_samples_and_all_images_at_once(tmp_path):
    found = measured(model(), images(), ASKED, tmp_path)
    place = torch.device("cpu")
    with autocast(place, precision("auto", place)):
        drawn = model().sample({"label": torch.arange(23) % 3}, size=16, steps=2, guidance=1.5, seed=3)
    network = Features("scenes")
    real = torch.stack([images()[row]["image"].float() for row in range(IMAGES)])
    x, y = network(real), network(drawn)
    assert found["fid"] == pytest.approx(fid(x, y), abs=1e-3)
    assert found["kid"] == pytest.approx(kid(x[:11], y[:11], subset=11), abs=1e-4)
    assert (found["precision"], found["recall"]) == pytest.approx(precision_recall(x[:11], y[:11]), abs=1e-4)
    assert found["inception_score"] == pytest.approx(inception_score(network.probabilities(drawn)), abs=1e-2)
    assert (found["samples"], found["images"], found["features"]) == (23, 17, "scenes")
    assert found["sampler"] == "ddim, 2 steps, uniform grid, guidance 1.5"
    assert sorted({path.name.split("-")[0] for path in tmp_path.iterdir()}) == ["fake", "real"]


def test_a_stopped_measurement_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    whole = measured(model(), images(), ASKED, tmp_path / "whole")
    interrupted, drawn = model(), []
    sample = type(interrupted).sample

    def stops(self, batch, **settings):
        drawn.append(settings["first"])
        if settings["first"] == 14:
            raise KeyboardInterrupt
        return sample(self, batch, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(type(interrupted), "sample", stops)
        with pytest.raises(KeyboardInterrupt):
            measured(interrupted, images(), ASKED, tmp_path / "parts")
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == [*(f"fake-0000{k}.safetensors" for k in range(2)), *(f"real-0000{k}.safetensors" for k in range(3))]
    monkeypatch.setattr(type(interrupted), "sample", lambda s, b, **k: drawn.append(k["first"]) or sample(s, b, **k))
    assert measured(model(), images(), ASKED, tmp_path / "parts") == whole
    assert drawn == [0, 7, 14, 14, 21]


def test_what_another_model_protocol_or_dataset_left_is_not_used(tmp_path):
    first = measured(model(), images(), ASKED, tmp_path)
    other = model()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(0.5)
    assert measured(other, images(), ASKED, tmp_path)["fid"] != first["fid"]
    for change in ({"seed": 4}, {"grid": "karras"}):
        assert measured(model(), images(), replace(ASKED, **change), tmp_path)["fid"] != first["fid"]
    changed = measured(model(), Scenes("test", size=16, count=IMAGES), ASKED, tmp_path)
    assert changed["fid"] != first["fid"] and changed["pixels"] != first["pixels"]
    assert measured(model(), images(), ASKED, tmp_path) == first


def test_a_broken_file_is_made_again(tmp_path):
    first = measured(model(), images(), ASKED, tmp_path)
    path = tmp_path / "fake-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert measured(model(), images(), ASKED, tmp_path) == first


def by_two(rank: int, folder: Path) -> None:
    protocol.CHUNK, protocol.NEIGHBOURS = 7, 11
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    found = measured(model(), images(), ASKED, folder / "shared")
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_share_the_work_and_both_have_the_numbers(tmp_path):
    torch.multiprocessing.spawn(by_two, (tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert one == other == measured(model(), images(), ASKED, tmp_path / "alone")


def test_a_model_that_is_told_something_else_and_no_images_are_refused(tmp_path):
    told = model()
    told.conditioner = torch.nn.Identity()
    with pytest.raises(InputError, match="Identity: FID by this protocol is for classes, or for none"):
        measured(told, images(), ASKED, tmp_path)
    with pytest.raises(InputError, match="the dataset is empty"):
        measured(model(), [], ASKED, tmp_path)
    alone = tiny.latent_diffusion(replace(tiny.UNET, vector=0)).eval()
    assert isinstance(alone.conditioner, Unconditional)
    assert measured(alone, images(), replace(ASKED, samples=10), tmp_path)["fid"] > 0
    with pytest.raises(InputError, match="samples: 9 are fewer than the ten parts"):
        replace(ASKED, samples=9)


def test_the_command_measures_by_the_protocol_and_keeps_what_it_saw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model().save(tmp_path / "mine")
    line = ["evaluate", "mine", "--fid", "11", "--features", "scenes", "--size", "16", "--steps", "2"]
    assert cli.main([*line, "--keep", "seen", "--count", "17", "-o", "numbers.json"]) == 0
    said = capsys.readouterr().out
    assert '"fid"' in said and '"images": 17' in said and (tmp_path / "numbers.json").is_file()
    assert len(list((tmp_path / "seen").glob("fake-*"))) == 2
