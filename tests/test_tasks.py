"""What a task adds to a dataset's items."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from ldm_lite import runs
from ldm_lite.conditioners import InpaintingConfig, LowResConfig, TextConfig, TogetherConfig
from ldm_lite.config import InputError
from ldm_lite.data import HubImages, Scenes, cache_latents, with_crops, with_low_res, with_mask
from ldm_lite.data.cache import identity
from ldm_lite.data.tasks import blurred, bsr, random_mask, smaller
from ldm_lite.presets import DataConfig, DiffusionRecipe, dataset, recipe
from ldm_lite.training import Drawn, TrainConfig
from ldm_lite.unet import UNetConfig


def test_a_low_resolution_picture_is_pillows_bicubic():
    scenes = Scenes("test", size=40)
    batch = Drawn(with_low_res(scenes, 4)).__getitems__([(3, 0), (5, 0)])
    assert batch["low"].shape == (2, 3, 10, 10) and batch["low"].abs().max() <= 1
    picture = ((batch["image"][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(picture).resize((10, 10), Image.Resampling.BICUBIC), dtype=np.float32)
    ours = ((batch["low"][0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 1.01


def test_a_task_adds_to_items_as_to_batches_and_keeps_what_they_had():
    scenes = Scenes("test", size=32, keys=("image", "caption"))
    for data in (with_low_res(scenes, 2), with_mask(scenes)):
        batch, item = Drawn(data).__getitems__([(4, 0), (7, 0)]), data[7]
        assert len(data) == len(scenes) and batch["caption"][1] == item["caption"] == scenes[7]["caption"]
        for key in {"low", "mask", "masked"} & set(batch):
            torch.testing.assert_close(batch[key][1], item[key])


def test_holes_are_another_for_every_row_and_epoch_and_the_same_again_in_a_resumed_run():
    data = with_mask(Scenes("test", size=32))
    batch = Drawn(data).__getitems__([(0, 0), (1, 0), (0, 1), (0, 0)])
    first, other, later, again = batch["mask"]
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, later)
    assert not torch.equal(Drawn(with_mask(data.data, seed=1)).__getitems__([(0, 0)])["mask"][0], first)


def test_the_masked_image_is_the_image_outside_the_hole_and_minus_one_in_it():
    batch = Drawn(with_mask(Scenes("test", size=48))).__getitems__([(i, 0) for i in range(40)])
    keep = batch["mask"].expand_as(batch["image"])
    assert batch["mask"].dtype == torch.bool and batch["mask"].shape == (40, 1, 48, 48)
    assert torch.equal(batch["masked"][keep], batch["image"][keep]) and (batch["masked"][~keep] == -1).all()
    holes = 1 - batch["mask"].float().mean((1, 2, 3))
    assert holes.min() > 0 and 0.1 < holes.mean() < 0.5 and holes.max() < 0.9


@pytest.mark.parametrize("shape", [(17, 23), (64, 16)])
def test_a_mask_has_a_hole_and_not_only_a_hole_at_any_size(shape):
    random = np.random.default_rng(0)
    for _ in range(60):
        keep = random_mask(*shape, random)
        assert keep.shape == shape and keep.any() and not keep.all()


def test_a_bad_photograph_is_smaller_worse_and_the_same_again():
    image = (Scenes("test", size=64)[2]["image"] + 1) / 2
    one, same = (bsr(image, 4, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one, same) and one.shape == (3, 16, 16) and one.min() >= 0 and one.max() <= 1
    clean = smaller(image[None] * 2 - 1, 4)[0] / 2 + 0.5
    errors = [float((bsr(image, 4, np.random.default_rng(i)) - clean).square().mean().sqrt()) for i in range(12)]
    assert min(errors) > 0.01 and max(errors) < 0.2  # worse than clean, and still the same picture


def test_a_blur_keeps_the_mean_and_has_the_width_that_is_asked_for():
    x = torch.zeros(1, 2, 41, 43)
    x[..., 20, 21] = 1
    out = blurred(x, 1.5, 2.5)[0, 1]
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    for axis, sigma, middle in ((0, 1.5, 20), (1, 2.5, 21)):
        line = out.sum(1 - axis)
        at = torch.arange(len(line)) - middle
        assert abs(float((line * at**2).sum().sqrt()) - sigma) < 0.05


def test_a_size_that_does_not_divide_and_an_unknown_degradation_are_refused():
    with pytest.raises(InputError, match=r"^low: images of \(30, 30\) are not divisible by 4$"):
        with_low_res(Scenes("test", size=30), 4)[0]
    with pytest.raises(InputError, match=r"^bsrgan: no such degradation; did you mean bsr\?"):
        with_low_res(Scenes("test"), 4, "bsrgan")


def test_a_cache_holds_what_a_task_added_and_the_latents_of_its_other_images(tmp_path):
    stage, data = tiny.autoencoder(), with_mask(Scenes("test", size=16, count=5))
    cached = cache_latents(stage, data, tmp_path, batch=2, also=("masked",), progress=False)
    batch = cached.batch([4, 1])
    assert "masked" not in batch and batch["masked_z"].dtype == torch.float32
    images = Drawn(data).__getitems__([(4, 0), (1, 0)])
    torch.testing.assert_close(batch["masked_z"], stage.encode(images["masked"]), atol=0.02, rtol=0.02)
    assert torch.equal(batch["mask"], images["mask"])
    again = cache_latents(stage, data, tmp_path, batch=2, also=("masked",), progress=False)
    assert torch.equal(again.batch([4])["masked_z"], cached.batch([4])["masked_z"])
    assert "masked_z" not in cache_latents(stage, data, tmp_path, progress=False)[0]


@pytest.mark.parametrize(
    ("condition", "key", "many"),
    [
        (InpaintingConfig(), "mask", 4),
        (LowResConfig(2, degradation="bsr"), "low", 4),
        (LowResConfig(2), "low", 1),
        (TogetherConfig((TextConfig(width=8, depth=1, heads=1), InpaintingConfig())), "mask", 4),
    ],
)
def test_a_run_with_cached_latents_learns_from_several_draws_of_what_is_drawn(
    condition, key, many, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(runs, "fit", lambda task, images, *rest: seen.append(images))
    monkeypatch.setattr(runs, "finished", lambda out: bool(seen))  # nothing is judged
    network = UNetConfig(channels=3, width=8, mult=(1, 2), blocks=1, heads=1)
    asked = DiffusionRecipe("pixels", network, condition=condition, data=DataConfig(size=16, count=5))
    runs.train(replace(asked, train=TrainConfig(steps=1, batch=2)), tmp_path)
    (cached,) = seen
    batch = cached.batch([2 + 5 * epoch for epoch in range(many)])
    assert len(cached) == 5 * many and batch["z"].eq(batch["z"][:1]).all()
    assert len({row.numpy().tobytes() for row in batch[key]}) == many


def test_caches_of_other_holes_and_other_factors_are_made_again(tmp_path):
    stage, scenes = tiny.autoencoder(), Scenes("test", size=16, count=3)
    first = cache_latents(stage, with_low_res(scenes, 4), tmp_path, progress=False)
    assert cache_latents(stage, with_low_res(scenes, 2), tmp_path, progress=False)[0]["low"].shape[1] == 8
    assert first[0]["low"].shape[1] == 4


def test_a_task_around_a_dataset_with_an_identity_has_another(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    held = io.BytesIO()
    Image.new("RGB", (9, 9)).save(held, "png")
    pyarrow.parquet.write_table(pa.table({"image": [{"bytes": held.getvalue(), "path": None}]}), tmp_path / "a.parquet")
    data = HubImages(tmp_path / "a.parquet", size=8)
    assert len({identity(d) for d in (data, with_low_res(data, 2), with_low_res(data, 4), with_mask(data))}) == 4


class Ramps:
    """Pictures whose red says x and whose green says y, in [-1, 1] from edge to edge."""

    def __init__(self, h=26, w=22):
        y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (h, w))
        self.image = torch.stack([x.expand(h, -1), y[:, None].expand(-1, w), torch.zeros(h, w)])

    def __len__(self):
        return 400

    def __getitem__(self, row):
        return {"image": self.image}


def test_a_crop_is_a_square_of_any_side_from_1_in_zoom_anywhere_in_the_picture():
    crops = Drawn(with_crops(Ramps(), 11, 2.0)).__getitems__([(row, 0) for row in range(400)])["image"]
    assert crops.shape == (400, 3, 11, 11)
    red, green = crops[:, 0, 5], crops[:, 1, :, 5]  # along x in the middle row, along y in the middle column
    across = (red[:, -2] - red[:, 1]) / 8 * 11 / 2 * 22  # pixels of a side: edges apart, where nothing is repeated
    down = (green[:, -2] - green[:, 1]) / 8 * 11 / 2 * 26
    torch.testing.assert_close(across, down, atol=0.3, rtol=0)
    assert 10.7 < across.min() < 12 and 20.5 < across.max() < 22.3 and abs(across.mean() - 16.5) < 0.6
    left, top = (red[:, 5] + 1) * 11 - across / 2, (green[:, 5] + 1) * 13 - down / 2
    for place, room in ((left, 22 - across), (top, 26 - down)):
        assert place.min() > -0.3 and (place - room).max() < 0.3
        share = (place / room.clamp(min=1))[room > 3]
        assert abs(share.mean() - 0.5) < 0.08 and share.std() > 0.2


def test_crops_without_zoom_are_the_pictures_themselves():
    scenes = Scenes("test", size=16, count=5)
    batch = Drawn(with_crops(scenes, 16, 1.0)).__getitems__([(1, 0), (4, 3)])
    torch.testing.assert_close(batch["image"], Drawn(scenes).__getitems__([(1, 0), (4, 0)])["image"])
    assert torch.equal(with_crops(scenes, 16, 1.0)[1]["image"], batch["image"][0])


def test_what_is_finer_than_a_crops_pixels_becomes_its_mean():
    board = (torch.arange(33)[:, None] + torch.arange(33)) % 2 * 2.0 - 1
    crop = with_crops([{"image": board.expand(3, -1, -1)}], 11, 1.0)[0]["image"]
    assert crop.abs().max() < 0.15


def test_crops_differ_by_row_and_epoch_and_come_again():
    first, later, other, again = Drawn(with_crops(Ramps(), 8)).__getitems__([(2, 0), (2, 1), (3, 0), (2, 0)])["image"]
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)


def test_a_zoomed_dataset_is_drawn_larger_cut_and_then_made_small_and_held_out_pictures_stay_whole():
    data = DataConfig(size=16, count=6, zoom=2.0)
    train, held_out = dataset(data), dataset(data, "validation")
    assert train[0]["image"].shape == (3, 16, 16) and train.data.size == 32 and len(train) == 6
    assert torch.equal(held_out[3]["image"], Scenes("validation", size=16)[3]["image"])
    upscale = replace(recipe("scenes-upscale"), data=data)
    item = upscale.images()[2]
    assert item["low"].shape == (3, 4, 4)
    torch.testing.assert_close(item["low"], smaller(item["image"][None], 4)[0])
    assert train.label_names == Scenes.label_names


def test_zoom_is_refused_where_what_is_told_would_not_be_true():
    for key in ("boxes", "segmentation", "caption"):
        with pytest.raises(InputError, match=f"zoom: of a part of a picture its {key} would not be true"):
            dataset(DataConfig(zoom=1.5), keys=("image", key))
    for wrong in (0.5, 17.0, float("nan")):
        with pytest.raises(InputError, match=r"zoom: .* is not from 1 to 16"):
            DataConfig(zoom=wrong)
    with pytest.raises(InputError, match="zoom: a stream's pictures"):
        DataConfig("celebahq", zoom=2.0, stream=True)
