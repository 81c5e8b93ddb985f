"""The networks that look at pictures: what they answer, what they are made of, and what they refuse."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch import nn

from ldm_lite.config import InputError
from ldm_lite.data import Scenes, scenes
from ldm_lite.data.scenes import Quiz
from ldm_lite.features import COLOURS, LABELS, MOST, OBJECTS, SEGMENTS, Features, SceneReader, SceneReaderConfig, pooled
from ldm_lite.metrics import fid


@pytest.fixture(scope="module")
def features():
    return Features("scenes")


def images(rows, **settings):
    return Quiz("test", **settings).batch(rows)["image"].float() / 127.5 - 1


def test_the_reader_has_an_answer_for_everything_a_scene_can_hold():
    sizes = len(scenes.LABELS), len(scenes.OBJECTS), len(scenes.SEGMENTS), scenes.MOST, len(scenes.COLOURS)
    assert sizes == (LABELS, OBJECTS, SEGMENTS, MOST, COLOURS)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_quiz_has_the_answers_of_the_scenes(split):
    quiz, plain = Quiz(split, size=40).batch([3, 17, 5]), Scenes(split, size=40)
    for i, row in enumerate((3, 17, 5)):
        item = plain[row]
        assert quiz["label"][i] == item["label"]
        assert torch.equal(quiz["segmentation"][i].long(), item["segmentation"])
        assert torch.equal(quiz["counts"][i], torch.bincount(item["box_labels"], minlength=OBJECTS))
        same = torch.equal(quiz["image"][i].float() / 127.5 - 1, item["image"])
        assert same == (split == "validation")  # on the training split the texture is drawn at random


def test_the_shipped_reader_reads_held_out_scenes(features):
    quiz = Quiz("test").batch(range(192))
    said = features.read(quiz["image"].float() / 127.5 - 1)
    assert (said.label == quiz["label"]).float().mean() >= 0.99
    assert (said.counts == quiz["counts"]).float().mean() >= 0.98
    pairs = torch.bincount(
        (quiz["segmentation"].long() * SEGMENTS + said.segmentation).flatten(), minlength=SEGMENTS**2
    )
    confusion = pairs.view(SEGMENTS, SEGMENTS).double()
    iou = confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())
    assert iou.mean() >= 0.9


def test_vectors_are_the_means_of_the_maps_and_do_not_depend_on_the_batch(features):
    x = images(range(5))
    vectors = features(x)
    assert vectors.shape == (5, features.dim)
    torch.testing.assert_close(vectors, pooled(features.maps(x)))
    torch.testing.assert_close(vectors[3:4], features(x[3:4]), rtol=1e-4, atol=1e-5)


def test_maps_halve_from_one_to_the_next_at_any_size():
    reader = SceneReader(SceneReaderConfig(widths=(3, 5, 7)))
    assert [tuple(h.shape) for h in reader.maps(torch.zeros(2, 3, 44, 20))] == [
        (2, 3, 44, 20),
        (2, 5, 22, 10),
        (2, 7, 11, 5),
    ]
    assert reader(torch.zeros(2, 3, 44, 20)).segmentation.shape == (2, SEGMENTS, 44, 20)


def test_features_stay_frozen_and_in_eval_mode_but_let_gradients_through(features):
    assert not features.train().network.training
    assert not any(p.requires_grad for p in features.parameters())
    x = images(range(2)).requires_grad_()
    features(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_probabilities_are_of_the_kinds_of_scene(features):
    p = features.probabilities(images(range(32)))
    torch.testing.assert_close(p.sum(1), torch.ones(32))
    assert (p.argmax(1) == Quiz("test").batch(range(32))["label"]).float().mean() > 0.9


def test_an_fid_on_the_vectors_sees_lost_texture_and_not_rounding(features):
    x, plain = images(range(96)), images(range(96), texture=0.0)
    rounded = x + (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5) / 64
    assert fid(features(x), features(plain)) > 20 * fid(features(x), features(rounded))


# vgg16 and inception, with random weights in the layout of the real files -------------------------------------------


def vgg16_file(path):
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    torch.save({f"features.{k}": v for k, v in make_layers(cfgs["D"]).state_dict().items()}, path)
    return path


def test_vgg16_is_cut_after_the_five_relus_that_lpips_compares(tmp_path):
    features = Features("vgg16", vgg16_file(tmp_path / "vgg16.pth"))
    x = torch.rand(2, 3, 48, 32) * 2 - 1
    maps = features.maps(x)
    assert [tuple(h.shape[1:]) for h in maps] == [(64, 48, 32), (128, 24, 16), (256, 12, 8), (512, 6, 4), (512, 3, 2)]
    assert all(h.min() == 0 for h in maps)
    torch.testing.assert_close(features(x), maps[-1].mean((2, 3)))

    h = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(features.network.features[:4](h), maps[0])


def test_inception_gives_torch_fidelitys_numbers(tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    made = fidelity.FeatureExtractorInceptionV3
    with monkeypatch.context() as blank:  # its constructor insists on a file: make one of random weights
        blank.setattr(made, "load_state_dict", lambda self, state: None)
        blank.setattr(fidelity.torch, "load", lambda *args, **settings: {})
        torch.manual_seed(0)
        network = made("inception", ["2048", "logits_unbiased"], "none")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.05)  # so that random weights do not fade out
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    features = Features("inception", tmp_path / "inception.pth")
    x = torch.rand(2, 3, 40, 24) * 2 - 1
    vectors, logits = network(((x + 1) * 127.5).to(torch.uint8))
    assert vectors.std() > 0
    torch.testing.assert_close(features(x), vectors)
    torch.testing.assert_close(features.probabilities(x), logits.softmax(1))
    with pytest.raises(InputError, match="inception has no maps"):
        features.maps(x)


# Bad input ----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_names():
    with pytest.raises(InputError, match="resnet: no such features; there are scenes, inception, vgg16"):
        Features("resnet")


class Executed(Exception):
    pass


class Trap:
    def __reduce__(self):
        return exec, ("raise Executed",)


@pytest.mark.parametrize("name", ["vgg16", "inception"])
def test_code_in_a_file_of_weights_is_not_run(name, tmp_path):
    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match=r"trap.pth: not a file of weights"):
        Features(name, tmp_path / "trap.pth")


def test_missing_and_foreign_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.pth: no such file"):
        Features("vgg16", tmp_path / "absent.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("vgg16", "inception"):
        with pytest.raises(InputError, match=r"other.pth: weights of another network"):
            Features(name, tmp_path / "other.pth")


def test_a_failed_download_says_what_to_do(monkeypatch):
    from torchvision.models import VGG16_Weights

    def fails(*args, **settings):
        raise OSError("no network")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", fails)
    said = (
        r"vgg16: its weights could not be downloaded \(no network\); put their file at .*vgg16-397923af.pth, give it "
    )
    with pytest.raises(InputError, match=rf"{said}with weights= \(ldm-lite evaluate: --weights\), or use"):
        Features("vgg16")


@pytest.mark.parametrize("name", ["vgg16", "inception"])
def test_another_file_than_the_one_whose_hash_is_in_its_name_is_refused_and_not_kept(name, tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    (tmp_path / "other.pth").write_bytes(b"another file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    fetch = torch.hub.download_url_to_file

    def another(url, path, *settings, **more):
        fetch((tmp_path / "other.pth").as_uri(), path, *settings, **more)

    monkeypatch.setattr(torch.hub, "download_url_to_file", another)
    with pytest.raises(InputError, match=rf"^{name}: its weights came as another file than it is \(invalid hash value"):
        Features(name)
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_a_plain_pickle_of_weights_is_refused_without_a_warning(tmp_path):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"features.0.weight": [1.0]}, 4))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=r"plain.pth: not a file of weights"):
            Features("vgg16", tmp_path / "plain.pth")
    assert not said


def test_only_the_scene_reader_reads_scenes(tmp_path):
    with pytest.raises(InputError, match="vgg16 cannot read scenes"):
        Features("vgg16", vgg16_file(tmp_path / "vgg16.pth")).read(torch.zeros(1, 3, 32, 32))
