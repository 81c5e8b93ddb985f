"""What a task adds to a dataset's items."""

import io

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from ldm_lite.config import InputError
from ldm_lite.data import HubImages, Scenes, cache_latents, with_low_res, with_mask
from ldm_lite.data.cache import identity
from ldm_lite.data.tasks import blurred, bsr, random_mask, smaller
from ldm_lite.training import Drawn


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
