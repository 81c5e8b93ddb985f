"""What training costs: operations against counts by hand, against torch's counter and against a real step."""

import re
from dataclasses import replace

import pytest
import torch
from tiny import UNET
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_lite import cli
from ldm_lite.autoencoder import AutoencoderConfig
from ldm_lite.budget import CARDS, PUBLISHED, Budget, budget, counted
from ldm_lite.conditioners import BoxesConfig, InpaintingConfig, LowResConfig, SemanticMapConfig, TextConfig
from ldm_lite.config import InputError
from ldm_lite.layers import SelfAttention
from ldm_lite.losses import LossConfig, Objective
from ldm_lite.presets import PAPER, PRESETS, AutoencoderRecipe, DataConfig, DiffusionRecipe
from ldm_lite.training import TrainConfig

STAGE = AutoencoderRecipe(
    AutoencoderConfig(channels=2, width=8, mult=(1, 2), blocks=1, codes=7), DataConfig(size=20), TrainConfig(steps=10)
)
WHOLE = DiffusionRecipe(
    "tiny-kl2", replace(UNET, vector=0), data=DataConfig(size=20), train=TrainConfig(steps=30, batch=7)
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny-kl2", STAGE)
    monkeypatch.setitem(PRESETS, "tiny-ldm2", WHOLE)


# By hand ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "passes"), [(False, 2), (True, 3)])
def test_a_convolution_costs_two_operations_a_weight_and_place_in_each_of_its_passes(wanted, passes):
    with torch.device("meta"):
        conv, image = nn.Conv2d(3, 5, (3, 1), padding=(1, 0)), torch.zeros(2, 3, 7, 11, requires_grad=wanted)
    once = 2 * (3 * 1 * 3 * 5) * (2 * 7 * 11)
    assert counted(lambda: conv(image)) == once
    assert counted(lambda: conv(image).sum().backward()) == passes * once


def test_attention_costs_its_projections_and_two_products_of_all_tokens_with_all():
    with torch.device("meta"):
        attention, h = SelfAttention(6, heads=3), torch.zeros(1, 6, 5, 7, requires_grad=True)
    n, width = 35, 6
    once = 2 * n * width * 3 * width + 2 * (2 * n * n * width) + 2 * n * width * width
    assert counted(lambda: attention(h)) == once
    assert counted(lambda: attention(h).sum().backward()) == 3 * once


def test_the_paper_s_faces_have_its_parameters_images_and_pictures_and_a_step_costs_three_forward_passes():
    faces = budget(PAPER["celebahq-ldm4"])
    assert (faces.parameters, faces.images, faces.pictures) == (274_056_163, 410_000 * 48, 28_000)
    assert faces.training == pytest.approx(3 * 202.4e9, rel=1e-3)  # forward: docs/scaling.md's counter, 202.4 GFLOP
    assert faces.operations == faces.images * faces.training + 28_000 * faces.encoding


# Against a real step ------------------------------------------------------------------------------------------------

IMAGES = torch.zeros(1, 3, 20, 20)
HOLE = {"masked": IMAGES, "mask": torch.ones(1, 1, 20, 20)}
TOLD = {
    "nothing": (None, {}),
    "text": (TextConfig(width=10, heads=2, length=9), {"caption": ["two dogs"]}),
    "boxes": (BoxesConfig(("dog",), 10, 1, 2, 8, most=3), {"boxes": [[]], "box_labels": [[]]}),
    "low": (LowResConfig(4), {"low": torch.zeros(1, 3, 5, 5)}),
    "hole": (InpaintingConfig(), HOLE),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_denoiser_s_step_costs_what_torch_counts_in_one_that_is_made(name):
    condition, batch = TOLD[name]
    recipe = replace(WHOLE, condition=condition)
    model, batch = recipe.build().train(), {"z": torch.zeros(1, 2, 10, 10), **batch}
    batch = model.encoded(batch)
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        model(batch).mean().backward()
    assert budget(recipe).training == counter.get_total_flops() > 0


def test_encoding_costs_what_the_first_stage_does_and_twice_that_where_a_picture_with_a_hole_is_encoded_too():
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        STAGE.build().encode(IMAGES)
    once = counter.get_total_flops()
    assert budget(WHOLE).encoding == once > 0
    assert budget(replace(WHOLE, condition=InpaintingConfig())).encoding == 2 * once
    assert budget(replace(WHOLE, first_stage="pixels", model=replace(WHOLE.model, channels=3))).encoding == 0


def test_the_map_of_a_recipe_opens_its_door_and_classes_are_one_token_more():
    plain = budget(WHOLE).training
    assert budget(replace(WHOLE, condition=SemanticMapConfig(("sky", "sea")))).training > plain
    told = replace(WHOLE.model, context=6)
    assert budget(replace(WHOLE, model=told, classes=True)).training > plain


SHARP = LossConfig(perceptual=1.0, trunk="scenes", adversarial=0.5, start=4, critic_width=4, critic_layers=1)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_first_stage_s_step_costs_what_one_that_is_made_does_and_a_critic_counts_from_its_first_step(bottleneck):
    recipe = replace(STAGE, model=replace(STAGE.model, bottleneck=bottleneck), loss=SHARP)
    model, objective = recipe.build(), Objective(SHARP)

    def step(now: int) -> None:
        reconstruction, code = model(IMAGES)
        objective(IMAGES, reconstruction, code, model.decoder.conv_out.weight, now)[0].backward()
        if now >= SHARP.start:
            objective.judged(objective.critic, IMAGES, reconstruction.detach())[0].backward()

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        before, after = counted(lambda: step(0)), counted(lambda: step(9))
    assert budget(recipe).training == pytest.approx(0.4 * before + 0.6 * after, rel=1e-9)
    assert budget(replace(recipe, loss=replace(SHARP, start=0))).training == after > before


def test_vgg16_is_counted_without_its_weights():
    plain, seen = (
        budget(replace(STAGE, data=DataConfig(size=36), loss=LossConfig(perceptual=p))).training for p in (0.0, 1.0)
    )
    trunk, size, channels = 0, 36, 3  # thirteen convolutions of 3 x 3, by hand
    for width, many in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(many):
            trunk, channels = trunk + 2 * 9 * channels * width * size**2, width
        size //= 2
    assert seen - plain == 3 * trunk  # of the image, of the reconstruction, and back to it; no gradient of a weight


# From operations to hours -------------------------------------------------------------------------------------------


def test_hours_grow_with_steps_and_images_and_fall_with_the_rate_that_is_reached():
    b = Budget(1, 1000, 8, 3e12, 1e12, None)
    assert b.hours("T4", 0.5) == pytest.approx(1000 * 8 * 3e12 / (65e12 * 0.5) / 3600)
    assert replace(b, steps=3000).hours("A100") == pytest.approx(3 * b.hours("A100"))
    assert replace(b, batch=24).hours("A100") == pytest.approx(3 * b.hours("A100"))
    assert b.hours("A100", 0.5) == pytest.approx(b.hours("A100", 0.25) / 2)
    assert b.hours("H100") / b.hours("A100") == pytest.approx(312 / 989)
    assert b.hours("H100") == b.hours("H200")


def test_encoding_at_every_step_once_or_for_nobody_knows_how_many_pictures():
    b = Budget(1, 1000, 8, 3e12, 1e12, None)
    assert b.operations == 24e15
    assert replace(b, pictures=0).operations == 32e15
    assert replace(b, pictures=500).operations == 24.5e15


@pytest.mark.parametrize("pictures", [None, 0, 500])
def test_the_hours_of_a_run_are_enough_for_its_steps_and_half_of_them_for_fewer(pictures):
    b = Budget(1, 1001, 8, 3e12, 1e12, pictures)
    assert b.steps_within(b.hours("T4") * 1.0001, "T4") == b.steps_within(1e9, "T4") == 1001
    assert b.steps_within(b.hours("T4") / 2, "T4") in ((490,) if pictures == 500 else (500,))
    assert b.steps_within(1e-9, "T4") == 0


@pytest.mark.parametrize(
    ("data", "more", "pictures"),
    [
        ({}, {}, None),
        ({"count": 60}, {}, 60),
        ({"count": 60, "flip": True}, {}, 120),
        ({"path": "celebahq"}, {}, 28_000),
        ({"count": 60, "stream": True}, {}, 0),
        ({"count": 60}, {"cache": False}, 0),
        ({"count": 60, "flip": True}, {"condition": InpaintingConfig()}, 240),  # each with four holes
    ],
)
def test_a_cache_encodes_each_picture_once_and_its_mirror_image(data, more, pictures):
    assert budget(replace(WHOLE, data=replace(WHOLE.data, **data), **more)).pictures == pictures


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.01])
def test_a_fraction_is_above_0_and_at_most_1(fraction):
    with pytest.raises(InputError, match=r"^fraction: "):
        Budget(1, 1, 1, 1.0, 0.0, 0).hours("T4", fraction)


def test_each_model_of_the_paper_has_its_number_with_a_table_or_says_why_there_is_none():
    assert PUBLISHED.keys() == PAPER.keys()
    for known in PUBLISHED.values():
        assert (known.fid is None) == known.where.startswith("no table has it")
        assert known.fid is None or re.match(r"table \d+", known.where)


def test_the_line_that_measures_a_model_has_its_published_sampler_and_is_none_where_another_protocol_was_used():
    begin = lambda name: f"ldm-lite evaluate {name} --fid 50000 --grid original "
    lines = {name: known.line(name) for name, known in PUBLISHED.items()}
    assert {name: line.removeprefix(begin(name)) for name, line in lines.items() if line} == {
        "celebahq-ldm4": "--steps 500",
        "ffhq-ldm4": "--steps 200 --eta 1",
        "lsun-bedrooms-ldm4": "--steps 200 --eta 1",
        "lsun-churches-ldm8": "--steps 200",
        "cin256": "--steps 200 --guidance 1",
        "cin256-v2": "--steps 250 --guidance 1",
    }


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_says_steps_images_operations_and_hours(capsys):
    assert cli.main(["budget", "tiny-ldm2", "--card", "T4", "--hours", "1e-9", "--fraction", "0.5"]) == 0
    said = capsys.readouterr().out
    b = budget(WHOLE)
    assert "30 steps of 7 = 0.00 M images of 20 px" in said and f"{b.operations:.2e} operations" in said
    assert f"hours: T4 {b.hours('T4', 0.5):.3g}\n" in said and "of the 30 steps" in said
    assert "at 50 % of its stated" in said and "published" not in said


def test_a_recipe_of_ones_own_is_counted_and_nothing_published_is_said_of_it(capsys, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny-ldm2", PUBLISHED["celebahq-ldm4"])
    wide, line = replace(WHOLE, model=replace(WHOLE.model, width=12)), ["budget", "tiny-ldm2", "--card", "T4"]
    for own, recipe in (([], WHOLE), (["--model.width", "12"], wide), (["--model.width=12", "--steps", "7"], wide)):
        recipe = replace(recipe, train=replace(recipe.train, steps=7)) if "--steps" in own else recipe
        assert cli.main([*line, *own, "--fraction", "0.5"]) == 0
        said, b = capsys.readouterr().out, budget(recipe)
        assert f"{b.parameters / 1e6:.1f} M" in said and f"hours: T4 {b.hours('T4', 0.5):.3g}\n" in said
        assert f"{b.steps} steps" in said and f"{b.operations:.2e} operations" in said
        assert ("published: FID 5.11" in said) == ("Published FIDs" in said) == (not own)
    assert budget(wide).training > budget(WHOLE).training


def test_without_a_preset_it_says_the_paper_s_with_what_was_published(capsys, monkeypatch):
    for name in PAPER:
        monkeypatch.setitem(PRESETS, name, WHOLE)
    assert cli.main(["budget"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in PAPER) and all(f"{card} " in said for card in CARDS)
    assert "published: FID 5.11, table 1" in said and "50,000 samples against the whole training set" in said
    assert "measured as there: ldm-lite evaluate ffhq-ldm4 --fid 50000 --grid original --steps 200 --eta 1\n" in said


def test_a_first_stage_that_is_trained_before_has_hours_of_its_own_on_pictures_no_larger(capsys, monkeypatch):
    plain = replace(STAGE, loss=LossConfig(perceptual=0.0))
    monkeypatch.setitem(PRESETS, "tiny-kl2", plain)
    monkeypatch.setitem(PRESETS, "vq-f4", replace(plain, data=DataConfig(size=36)))
    for name, stage in (("mine", "tiny-kl2"), ("theirs", "vq-f4"), ("none", "pixels")):
        unet = replace(WHOLE.model, channels=3) if stage == "pixels" else WHOLE.model
        monkeypatch.setitem(PRESETS, name, replace(WHOLE, first_stage=stage, model=unet))
    said = {}
    for name in ("mine", "theirs", "none", "tiny-kl2"):
        assert cli.main(["budget", name, "--card", "T4"]) == 0
        said[name] = capsys.readouterr().out
    hours = f"unless runs/{{}} is there; hours: T4 {budget(plain).hours('T4'):.3g}\n"
    assert f"  before it its first stage, tiny-kl2, {hours.format('tiny-kl2')}" in said["mine"]
    assert f"  before it its first stage, vq-f4, {hours.format('vq-f4')}" in said["theirs"]
    fetched = "  or the published one: ldm-lite convert vq-f4 runs/vq-f4 --yes\n"
    assert [fetched in said[name] for name in ("mine", "theirs")] == [False, True]
    assert "first stage" not in said["none"] + said["tiny-kl2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tiny-ldm3", "did you mean tiny-ldm2?"),
        ("tiny-ldm2 --card H10", "did you mean H100?"),
        ("tiny-ldm2 --hours 3", "hours: of which card?"),
        ("tiny-ldm2 --card T4 --hours -3", "hours: -3 is below 0"),
        ("tiny-ldm2 --card T4 --hours nan", "hours: nan is no number of hours"),
        ("tiny-ldm2 --card T4 --hours inf", "hours: inf is no number of hours"),
        ("tiny-ldm2 --fraction 2", "fraction: 2 is not above 0"),
        ("tiny-ldm2 tiny-kl2", "a preset, or none"),
        ("tiny-ldm2 --model.widht 12", "did you mean --model.width?"),
        ("tiny-ldm2 --crad T4", "did you mean --card?"),
        ("tiny-ldm2 --model.width wide", "wide"),
        ("tiny-ldm2 --card", "card"),
        ("--model.width 12", "--model.width: no such option"),
    ],
)
def test_a_mistake_is_one_line(capsys, line, words):
    assert cli.main(["budget", *line.split()]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert words in said
