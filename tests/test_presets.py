"""Every preset can be built, described and written to a file; the published ones have the published sizes."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from published import DENOISERS, FIRST_STAGES
from torch import nn

from ldm_lite import runs
from ldm_lite.conditioners import TextConfig
from ldm_lite.config import InputError, from_dict, read, write
from ldm_lite.data import Scenes
from ldm_lite.diffusion import VariancePreserving
from ldm_lite.latent import assembled, describe
from ldm_lite.presets import PAPER, PRESETS, DataConfig, DiffusionRecipe, build, load_first_stage, recipe
from ldm_lite.tokens import learned
from ldm_lite.training import Drawn, claimed
from ldm_lite.unet import UNetConfig

EVERY = pytest.mark.parametrize("name", PRESETS)
OF_PHOTOGRAPHS = PRESETS["autoencoder"]


def built(name: str) -> nn.Module:
    """The model without memory for its weights. The recipes for photographs get the first stage that they wait for."""
    waits = getattr(recipe(name), "first_stage", "").startswith("runs/")
    with torch.device("meta"):
        return recipe(name).build(OF_PHOTOGRAPHS.build()) if waits else build(name)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@EVERY
def test_the_model_of_a_preset_can_be_described_and_assembled_again(name):
    model = built(name)
    with torch.device("meta"):
        again = assembled(describe(model))
    assert describe(again) == describe(model)
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items()}
    assert shapes(again) == shapes(model)


@EVERY
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_recipe_comes_back_from_a_file_as_it_was(name, suffix, tmp_path):
    write(tmp_path / f"recipe{suffix}", PRESETS[name])
    assert from_dict(type(PRESETS[name]), read(tmp_path / f"recipe{suffix}")) == PRESETS[name]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_published_first_stage_meets_its_critic_at_the_published_rate(name):
    recipe = PRESETS[name]
    assert recipe.loss.start < recipe.train.steps
    assert recipe.train.lr == pytest.approx(4.5e-6 * recipe.train.batch)  # the original's base rate, of each image


SIZES = FIRST_STAGES | {name: DENOISERS[name] for name in PAPER if name in DENOISERS}


@pytest.mark.parametrize("name", SIZES)
def test_a_published_model_has_as_many_parameters_as_its_checkpoint(name):
    model = built(name)
    assert parameters(getattr(model, "denoiser", model)) == SIZES[name]


def test_the_models_without_a_checkpoint_are_as_large_as_the_paper_says():
    coco, maps = built("layout2img-coco256"), built("semantic512")
    assert (coco.first_stage.f, coco.first_stage.channels) == (8, 4)
    layer = 8192 * 512 + 8192  # of the original's encoder, from its features to tokens: nothing uses it
    millions = (parameters(coco.denoiser) + parameters(coco.conditioner) + layer) / 1e6
    assert 345 <= millions < 346
    assert parameters(maps.denoiser) == DENOISERS["semantic256"]


@pytest.mark.parametrize(
    ("name", "f", "channels", "batch", "lr", "steps"),
    [
        ("celebahq-ldm4", 4, 3, 48, 9.6e-5, 410_000),
        ("ffhq-ldm4", 4, 3, 42, 8.4e-5, 635_000),
        ("lsun-bedrooms-ldm4", 4, 3, 48, 9.6e-5, 1_900_000),
        ("lsun-churches-ldm8", 8, 4, 96, 5e-5, 500_000),
        ("cin256", 8, 4, 64, 6.4e-5, 2_900_000),
        ("cin256-v2", 4, 3, 1200, 1e-4, 178_000),
    ],
)
def test_the_papers_models_are_trained_as_its_tables_say(name, f, channels, batch, lr, steps):
    train, stage = recipe(name).train, built(name).first_stage
    assert (train.batch, train.lr, train.steps, train.ema) == (batch, lr, steps, 0.9999)
    assert (stage.f, stage.channels, recipe(name).data.size) == (f, channels, 256)


def test_churches_are_trained_with_l1_on_a_schedule_and_a_warm_up_of_their_own():
    churches = recipe("lsun-churches-ldm8")
    assert (churches.distance, churches.schedule, churches.train.warmup) == (
        "l1",
        VariancePreserving(end=0.0155),
        10_000,
    )


def test_the_model_of_imagenet_is_told_its_labels_as_one_token_and_has_a_null_class():
    class Photographs:
        label_names = tuple(str(i) for i in range(1000))

    with torch.device("meta"):
        model = recipe("cin256-v2").named(Photographs()).build()
    assert model.conditioner.config.door == "context"
    assert model.conditioner.embedding.weight.shape == (1001, model.denoiser.config.context) == (1001, 512)


def test_the_labels_of_the_scenes_are_the_datasets():
    from ldm_lite.data.scenes import LABELS

    assert recipe("scenes-ldm4").labels == tuple(LABELS)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, r in PRESETS.items() if getattr(r, "condition", None) and "scenes" in n])
def test_a_conditional_recipe_of_the_scenes_has_all_that_its_model_is_told(name):
    made = replace(recipe(name), data=DataConfig(count=40))
    images = made.images()
    model = made.named(images).build()
    batch = Drawn(images).__getitems__([(0, 0), (39, 0)])
    assert {*model.conditioner.keys} <= {*batch}
    assert model(batch, dropout=0.5).shape == (2,)


def test_the_names_of_the_scenes_objects_and_segments_are_the_datasets():
    assert PRESETS["scenes-layout"].condition.names == Scenes.box_names
    assert PRESETS["scenes-map"].condition.names == Scenes.segment_names


def test_what_a_dataset_knows_goes_into_the_recipe():
    scenes = replace(recipe("scenes-text"), data=DataConfig(count=60))
    merges = scenes.named(scenes.images()).condition.merges
    assert merges and merges == learned([Scenes()[row]["caption"] for row in range(60)], 512)
    layout = replace(recipe("scenes-layout"), condition=replace(recipe("scenes-layout").condition, names=()))
    assert layout.named(layout.images()).condition.names == Scenes.box_names


def test_data_without_what_a_condition_needs_is_refused(tmp_path):
    Image.new("RGB", (70, 70)).save(tmp_path / "a.png")
    data = DataConfig(str(tmp_path))
    for name, key in (("scenes-text", "caption"), ("scenes-layout", "boxes"), ("scenes-map", "segmentation")):
        with pytest.raises(InputError, match=rf"^{key}: .* has none; its items have image$"):
            replace(recipe(name), data=data).images()
    assert replace(recipe("scenes-upscale"), data=data).images()[0]["low"].shape == (3, 16, 16)
    assert replace(recipe("scenes-inpaint"), data=data).images()[0]["mask"].shape == (1, 64, 64)


def test_labels_and_another_condition_come_together():
    both = replace(recipe("scenes-map"), labels=("a", "b"), model=replace(recipe("scenes-map").model, vector=8))
    model = both.build()
    assert type(model.conditioner).__name__ == "Together"
    assert (model.denoiser.config.vector, model.denoiser.config.concat) == (8, 3)


def test_an_unknown_preset_is_told_the_names():
    with pytest.raises(
        InputError, match=r"^ffhq-ldm: no such preset; did you mean ffhq-ldm4\? there are scenes-ldm4, "
    ):
        recipe("ffhq-ldm")


@pytest.mark.parametrize("size", [66, 68])
def test_a_size_that_the_first_stage_or_the_denoiser_cannot_halve_is_refused(size):
    data = DataConfig(size=size)
    with pytest.raises(InputError, match=f"size: {size} is not divisible by 16"):
        replace(recipe("scenes-ldm4"), data=data).build()
    if size % 4:
        with pytest.raises(InputError, match=f"size: {size} is not divisible by f = 4"):
            replace(recipe("scenes-kl-f4"), data=data).build()


def test_a_denoiser_for_other_channels_than_the_first_stages_is_refused():
    with pytest.raises(InputError, match=r"channels: the first stage has 4, the denoiser 3; give --model.channels 4"):
        recipe("scenes-ldm4").build(recipe("demo-kl4").build())


def test_a_first_stage_that_is_nowhere_is_refused():
    with pytest.raises(InputError, match="nowhere"):
        DiffusionRecipe("nowhere").build()


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("count", -1)])
def test_data_out_of_range_is_refused(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value} is not 1 or more"):
        DataConfig(**{field: value})


# First stages -------------------------------------------------------------------------------------------------------


def test_the_first_stage_of_a_whole_model_serves_another(tmp_path):
    import tiny

    model = tiny.latent_diffusion()
    model.save(tmp_path)
    stage = load_first_stage(tmp_path)
    torch.testing.assert_close(stage.state_dict(), model.first_stage.state_dict(), rtol=0, atol=0)
    assert not stage.training


def test_pixels_need_no_weights():
    assert load_first_stage("pixels").f == 1


def test_a_text_model_that_begins_with_another_reads_in_its_tokens(tmp_path):
    data = Scenes("test", size=16, keys=("image", "caption"), count=40)
    condition = TextConfig(width=8, depth=1, heads=1, length=8, vocabulary=270)
    text = DiffusionRecipe("pixels", UNetConfig(width=8, mult=(1,), head_channels=8), condition=condition)
    text = replace(text, data=DataConfig(size=16))
    merges = ((97, 98), (257, 99))
    known = replace(text, condition=replace(condition, merges=merges)).build()
    known.save(tmp_path / "known")
    begins = replace(text, init=str(tmp_path / "known")).named(data)
    assert begins.condition.merges == merges and text.named(data).condition.merges not in ((), merges)


@pytest.mark.parametrize("name", PAPER)
def test_a_run_of_the_paper_s_draws_grids_and_one_that_began_without_goes_on(tmp_path, name):
    train = PAPER[name].train
    assert 0 < train.sample_every <= train.steps / 30
    claimed(tmp_path, replace(train, sample_every=0), runs.about(PAPER[name]))
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    claimed(tmp_path, train, runs.about(PAPER[name]))
    assert read(tmp_path / "run.json")["train"]["sample_every"] == train.sample_every
