"""FID by the papers' protocol: the same numbers as at once, however often it is stopped and whoever helps."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from ldm_lite import cli, protocol
from ldm_lite.budget import presets_of
from ldm_lite.conditioners import Unconditional
from ldm_lite.config import InputError, to_dict, write
from ldm_lite.data import Scenes
from ldm_lite.features import Features
from ldm_lite.latent import LatentDiffusion, store
from ldm_lite.metrics import fid, inception_score, kid, precision_recall
from ldm_lite.presets import PAPER, DataConfig
from ldm_lite.protocol import Protocol, measured
from ldm_lite.training import autocast, precision
from ldm_lite.unet import UNetConfig

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


def test_compiled_it_gives_the_same(tmp_path, monkeypatch):
    graphs = tiny.graphs_made(monkeypatch)
    plain, drawn = measured(model(), images(), ASKED, tmp_path / "plain"), model()
    assert not graphs
    found = measured(drawn, images(), ASKED, tmp_path / "compiled", compile=True)
    assert found["fid"] == pytest.approx(plain["fid"], rel=1e-3) and found["pixels"] == plain["pixels"]
    assert len(graphs) == 4  # denoiser and decoder, for seven samples and for the last two
    assert not any(part._compiled_call_impl for part in (drawn.denoiser, drawn.first_stage.decoder))


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
    for change in ({"seed": 4}, {"grid": "karras"}, {"eta": 1.0}):
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
    wrong = {
        "samples: 9 are fewer than the ten parts": {"samples": 9},
        "eta: 1.5 is not between 0 and 1": {"eta": 1.5},
        "eta: heun has no such argument; ddim has": {"eta": 0.5, "sampler": "heun"},
        "did you mean heun?": {"sampler": "hein"},
    }
    for said, change in wrong.items():
        with pytest.raises(InputError, match=re.escape(said)):
            replace(ASKED, **change)


def test_the_command_measures_by_the_protocol_and_keeps_what_it_saw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model().save(tmp_path / "mine")
    line = ["evaluate", "mine", "--fid", "11", "--features", "scenes", "--size", "16", "--steps", "2"]
    line += ["--data", "scenes", "--eta", "1"]
    assert cli.main([*line, "--keep", "seen", "--count", "17", "-o", "numbers.json"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ('"fid"', '"images": 17', '"ddim, eta 1, 2 steps, '))
    assert (tmp_path / "numbers.json").is_file()
    assert len(list((tmp_path / "seen").glob("fake-*"))) == 2


@pytest.fixture
def landscapes(tmp_path, monkeypatch):
    """A folder of pictures that are none of the built-in scenes, here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for k in range(21):
        Image.new("RGB", (16, 16), (11 * k, 90, 120)).save(tmp_path / "mine" / f"{k:02}.png")
    return tmp_path


def a_run(folder: Path, **data) -> None:
    model().save(folder / "model")
    write(folder / "run.json", {"about": {"data": to_dict(DataConfig(**data))}, "train": {}})
    write(folder / "model" / "metrics.json", {"size": 16})


PROTOCOL = ["--fid", "11", "--features", "scenes", "--steps", "2"]


def test_a_run_is_compared_with_the_pictures_that_it_learned_from_and_keeps_what_was_seen(landscapes, capsys):
    a_run(landscapes / "runs/one", path="mine", size=16, flip=True, stream=True)
    found = []
    for line in (["runs/one"], ["runs/one/model"], ["runs/one", "--data", "mine"]):
        assert cli.main(["evaluate", *line, *PROTOCOL]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["images"] == 20 and found[0] == found[1] == found[2]  # every twentieth is held out
    assert {p.name for p in (landscapes / "runs").iterdir()} == {"one"}
    assert len(list((landscapes / "runs/one/fid").glob("real-*"))) == 3
    assert cli.main(["evaluate", "runs/one", "--images", "5"]) == 0  # and so is a first stage
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_shipped_weights_are_compared_with_the_scenes_and_a_model_whose_data_are_unknown_is_refused(landscapes, capsys):
    shipped = ["evaluate", "scenes-ldm4", *PROTOCOL, "--size", "16", "--count", "7"]
    assert cli.main(shipped) == 0
    assert len(list((landscapes / "runs/scenes-ldm4-fid").glob("real-*"))) == 1
    model().save(landscapes / "other")
    capsys.readouterr()
    for line in (PROTOCOL, []):
        assert cli.main(["evaluate", "other", *line]) == 2
        said = "ldm-lite: data: other does not say what it learned from; give --data (a folder of images, or scenes)\n"
        assert capsys.readouterr().err == said
    assert cli.main(["evaluate", "other", *PROTOCOL, "--data", "mine", "--size", "16"]) == 0
    assert (landscapes / "other-fid").is_dir()


def test_the_network_s_weights_are_those_of_the_file_that_is_given(landscapes, capsys):
    a_run(landscapes / "one", path="mine", size=16)
    network = Features("scenes").network
    found = []
    for amount in (0.0, 0.0, 0.5):
        with torch.no_grad():
            network.down[0][0][0].weight.add_(amount)
        store(network, landscapes / "looks")
        assert cli.main(["evaluate", "one", *PROTOCOL, "--weights", "looks"]) == 0
        found.append(json.loads(capsys.readouterr().out)["fid"])
    assert found[0] == found[1] != found[2]  # what other weights saw is not used
    assert cli.main(["evaluate", "one", *PROTOCOL, "--weights", "nowhere"]) == 2
    assert "nowhere/config.json: no such file" in capsys.readouterr().err


def test_a_preset_s_name_is_its_run_once_it_is_trained(landscapes, capsys):
    assert cli.main(["evaluate", "celebahq-ldm4", *PROTOCOL]) == 2
    said = "celebahq-ldm4: runs/celebahq-ldm4 has no model yet; first: ldm-lite train celebahq-ldm4\n"
    assert capsys.readouterr().err == f"ldm-lite: {said}"
    a_run(landscapes / "runs/celebahq-ldm4", path="mine", size=16, count=14)
    assert cli.main(["evaluate", "celebahq-ldm4", *PROTOCOL]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 14
    assert (landscapes / "runs/celebahq-ldm4/fid").is_dir()


@pytest.mark.parametrize(
    ("name", "given", "drawn", "said"),
    [
        ("ffhq-ldm4", "", ("ddim", 200, "original", 1.0, 2.0), "of ffhq-ldm4: ddim, 200 steps, original grid, eta 1"),
        ("runs/ffhq-ldm4/model", "--eta 1", ("ddim", 200, "original", 1.0, 2.0), "of ffhq-ldm4: ddim, 200 steps, "),
        ("ffhq-ldm4", "--steps=7", ("ddim", 7, "original", 1.0, 2.0), "of ffhq-ldm4, but for steps: ddim, 7 steps"),
        ("cin256-v2", "", ("ddim", 250, "original", 0.0, 1.0), "original grid, eta 0, guidance 1"),
        ("cin256-v2", "--guidance 1.5", ("ddim", 250, "original", 0.0, 1.5), "but for guidance: ddim, 250 steps"),
        ("ffhq-ldm4", "--sampler heun", ("heun", 30, "uniform", 0.0, 2.0), ""),
        ("inpainting", "", ("ddim", 30, "uniform", 0.0, 2.0), ""),
        ("runs/mine", "", ("ddim", 30, "uniform", 0.0, 2.0), ""),
    ],
)
def test_a_model_of_the_paper_is_drawn_as_published_where_nothing_else_is_asked_for(
    landscapes, monkeypatch, capsys, name, given, drawn, said
):
    seen = []
    monkeypatch.setattr(protocol, "measured", lambda model, images, protocol, *more: seen.append(protocol) or {})
    a_run(landscapes / "runs" / name.split("/")[-2 if name.endswith("model") else -1], path="mine", size=16)
    assert cli.main(["evaluate", name, "--fid", "11", *given.split()]) == 0
    (p,) = seen
    assert (p.sampler, p.steps, p.grid, p.eta, p.guidance) == drawn
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {} and said in shown.err and bool(said) == ("as published" in shown.err)


def test_a_model_that_is_told_nothing_is_guided_by_nothing(landscapes, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(protocol, "measured", lambda model, images, protocol, *more: seen.append(protocol) or {})
    tiny.latent_diffusion(UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, heads=2)).save(landscapes / "alone")
    assert cli.main(["evaluate", "alone", "--data", "mine", "--size", "16", *PROTOCOL]) == 0
    assert seen[0].guidance == 1


def test_without_the_protocol_nothing_is_drawn_as_published(landscapes, capsys):
    a_run(landscapes / "runs/ffhq-ldm4", path="mine", size=16)
    assert cli.main(["evaluate", "ffhq-ldm4"]) == 0
    assert "published" not in capsys.readouterr().err


def like(preset: str) -> LatentDiffusion:
    """A model of whose denoiser nothing but the configuration is the preset's."""
    made = model()
    made.denoiser.config = PAPER[preset].model
    return made


def test_a_model_s_preset_is_known_by_the_card_then_the_folder_and_else_by_its_denoiser_and_pictures(landscapes):
    a_run(landscapes / "one")
    faces = ["celebahq-ldm4", "ffhq-ldm4", "lsun-bedrooms-ldm4"]
    assert presets_of("one", like("lsun-churches-ldm8"), "mine") == ["lsun-churches-ldm8"]
    assert presets_of("one", like("celebahq-ldm4"), "mine") == faces
    assert presets_of("one", like("celebahq-ldm4"), "celebahq") == faces[:1]
    assert presets_of("one", model(), "celebahq") == []
    for command, found in (("cin256 --out one", ["cin256"]), ("ldm --out one", [])):
        (landscapes / "one/model/card.md").write_text(f"# one\n\n- command: `ldm-lite train {command}`\n")
        assert presets_of("one", like("ffhq-ldm4"), "mine") == found


def test_a_model_that_may_be_of_presets_that_were_not_drawn_alike_is_drawn_as_the_options_say(landscapes, capsys):
    a_run(landscapes / "one", path="mine", size=16)
    settings = cli.EvaluateConfig(fid=11)
    assert cli.as_published("one", "one", like("ffhq-ldm4"), settings, set(), "mine") is settings
    assert "may be celebahq-ldm4 or ffhq-ldm4 or lsun-bedrooms-ldm4, which were not" in capsys.readouterr().err
