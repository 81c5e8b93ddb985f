"""The whole model: its loss and samples from its parts, and weights that come back from a folder."""

import json
from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import NAMES, UNET, Pictures, latent_diffusion

from ldm_lite import samplers
from ldm_lite.autoencoder import Pixels
from ldm_lite.conditioners import (
    BoxesConfig,
    InpaintingConfig,
    LabelsConfig,
    LowResConfig,
    SemanticMapConfig,
    TextConfig,
    TogetherConfig,
    Unconditional,
    UnconditionalConfig,
    build,
    widths,
)
from ldm_lite.config import InputError
from ldm_lite.diffusion import Diffusion, RectifiedFlow, VariancePreserving
from ldm_lite.folders import found
from ldm_lite.latent import SAMPLERS, LatentDiffusion, Noise, assembled, describe, mix
from ldm_lite.samplers import Step
from ldm_lite.unet import UNet

PLAIN = replace(UNET, vector=0)
SIZE = (24, 16)


def batch(n: int = 5) -> dict[str, torch.Tensor]:
    return {"label": torch.arange(n) % len(NAMES)}


def images(n: int = 5) -> dict[str, torch.Tensor]:
    return batch(n) | {"image": Pictures(n).images}


# The loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_denoiser_in_the_latents_of_the_first_stage():
    model, told = latent_diffusion().eval(), images()
    model.first_stage.scale.fill_(1.7)
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.manual_seed(1)
    losses = model(told, times=times)
    torch.manual_seed(1)
    z0 = model.first_stage.encode(told["image"], sample=True)
    eps, cond = torch.randn_like(z0), model.conditioner(told)
    expected = model.diffusion.loss(lambda z, clock: model.denoiser(z, clock, cond), z0, eps, times)
    torch.testing.assert_close(losses, expected)


def test_cached_latents_take_the_place_of_images():
    model, times = latent_diffusion().eval(), torch.full((5,), 0.5)
    z = torch.randn(5, 2, 6, 4)
    torch.manual_seed(1)
    losses = model(batch() | {"z": z}, times=times)
    torch.manual_seed(1)
    model.first_stage = Pixels()
    torch.testing.assert_close(model(batch() | {"image": z}, times=times), losses)


def test_training_times_are_the_schedules():
    model, seen = latent_diffusion().eval(), []
    model.denoiser.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    torch.manual_seed(1)
    model(batch() | {"z": torch.randn(5, 2, 6, 4)})
    torch.manual_seed(1)
    torch.randn(5, 2, 6, 4)
    expected = model.diffusion.schedule.clock(model.diffusion.schedule.draw(5))
    torch.testing.assert_close(seen[0], expected.float())


def conditions_seen(model: LatentDiffusion, told: dict, dropout: float) -> torch.Tensor:
    seen = []
    handle = model.denoiser.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2].vector))
    with torch.no_grad():
        model(told, dropout)
    handle.remove()
    return seen[0]


def test_dropout_one_is_the_blank_condition_and_dropout_zero_the_condition():
    model, told = latent_diffusion().eval(), batch() | {"z": torch.randn(5, 2, 4, 4)}
    condition, blank = (c.vector for c in model.conditions(told))
    assert not torch.equal(condition, blank)
    assert torch.equal(conditions_seen(model, told, 1.0), blank)
    assert torch.equal(conditions_seen(model, told, 0.0), condition)


def test_dropout_is_the_share_of_conditions_that_are_blanked():
    model, n = latent_diffusion().eval(), 2000
    model.denoiser.forward = lambda z, clock, cond: z  # only what it is told matters here
    seen = conditions_seen(model, batch(n) | {"z": torch.zeros(n, 2, 2, 2)}, 0.3)
    blanked = (seen == model.conditioner.embedding.weight[len(NAMES)]).all(1)
    assert float(blanked.float().mean()) == pytest.approx(0.3, abs=0.05)
    kept = model.conditioner.embedding.weight[batch(n)["label"]]
    assert torch.equal(seen[~blanked], kept[~blanked])


def test_the_first_stage_is_not_trained():
    model = latent_diffusion()
    model(images()).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.first_stage.parameters())
    assert all(p.grad is not None for p in model.denoiser.parameters())
    assert model.conditioner.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"label": torch.tensor([0])}, "LatentDiffusion needs the key image or z; the batch has label"),
        ({"image": torch.zeros(1, 3, 4, 4)}, "Labels needs the key label; the batch has image"),
        ({"image": torch.zeros(1, 3, 4, 6) + 9, "label": torch.tensor([0])}, "image: values from 9 to 9"),
    ],
)
def test_a_batch_that_lacks_something_is_told_what(told, message):
    with pytest.raises(InputError, match=message):
        latent_diffusion()(told)


# Samples ------------------------------------------------------------------------------------------------------------


def test_samples_are_the_decoded_end_of_the_samplers_path():
    model = latent_diffusion().eval()
    model.first_stage.scale.fill_(0.4)
    told, blank = model.conditions(batch(2))
    start, schedule = Noise(9, (2, 2, 12, 8))(torch.empty(0)), model.diffusion.schedule
    predict = samplers.predictor(model.denoiser, model.diffusion, told, blank, 2.5)
    with torch.no_grad():
        z = samplers.last(samplers.ddim(predict, start, schedule.grid(4), schedule))
        expected = model.first_stage.decode(z).clamp(-1, 1)
    torch.testing.assert_close(model.sample(batch(2), steps=4, guidance=2.5, seed=9, size=SIZE), expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_depends_on_the_seed_and_its_place_alone(eta):
    model = latent_diffusion().eval()
    settings = {"steps": 3, "guidance": 2.0, "size": SIZE, "eta": eta}
    five = model.sample(batch(5), seed=3, **settings)
    torch.testing.assert_close(model.sample(batch(2), seed=3, **settings), five[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.sample(batch(5), seed=3, batch_size=2, **settings), five, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.sample(batch(5), seed=3, **settings), five)
    assert not torch.allclose(model.sample(batch(5), seed=4, **settings), five, atol=1e-2)
    assert not torch.allclose(five[0], five[3], atol=1e-2)  # the same label


@pytest.mark.parametrize("door", ["vector", "context"])
@pytest.mark.parametrize("own", [{}, {"eta": 1.0}, {"sampler": "heun"}, {"sampler": "plms"}, {"sampler": "dpm_solver"}])
def test_a_sample_does_not_depend_on_how_many_go_through_the_denoiser_at_once(door, own):
    config = UNET if door == "vector" else replace(PLAIN, context=6, depth=1)
    model, rows = latent_diffusion(config, door).eval(), []
    model.denoiser.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    settings = {"steps": 3, "guidance": 2.0, "size": SIZE, "seed": 3} | own
    drawn = [model.sample(batch(7), batch_size=size, **settings) for size in (3, 14, 64)]
    assert set(rows) == {3, 2, 14}  # of 14 with their halves without a condition
    # convolutions over batches of other sizes round differently
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn[2], drawn[1], rtol=0, atol=0)
    assert not torch.allclose(drawn[1][0], drawn[1][1], atol=1e-2)


def test_without_conditions_guidance_costs_nothing():
    model, rows = latent_diffusion(PLAIN).eval(), []
    model.denoiser.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    guided = model.sample({}, n=3, steps=2, size=8, guidance=4.0, rescale=0.5)
    assert rows == [3, 3] and torch.equal(model.sample({}, n=3, steps=2, size=8), guided)


def test_guidances_rescale_and_interval_reach_the_prediction():
    model = latent_diffusion().eval()
    told, blank = model.conditions(batch(2))
    settings, start = {"rescale": 0.7, "interval": (0.2, 0.8)}, Noise(3, (2, 2, 12, 8))(torch.empty(0))
    with torch.no_grad():
        predict = samplers.predictor(model.denoiser, model.diffusion, told, blank, 3.0, **settings)
        schedule = model.diffusion.schedule
        expected = samplers.last(samplers.ddim(predict, start, schedule.grid(5), schedule))
    drawn = lambda **settings: samplers.last(
        model.trajectory(batch(2), steps=5, guidance=3.0, seed=3, size=SIZE, **settings)
    )
    torch.testing.assert_close(drawn(**settings), expected)
    for name, value in settings.items():
        assert not torch.allclose(drawn(**{name: value}), drawn(**settings), atol=1e-3)


@pytest.mark.parametrize("name", samplers.GRIDS)
def test_a_grid_is_chosen_by_its_name_or_given(name):
    model = latent_diffusion(PLAIN).eval()
    times = samplers.grid(name, model.diffusion.schedule, 5)
    path = list(model.trajectory({}, steps=5, size=SIZE, grid=name))
    assert [float(step.t) for step in path] == times[1:].tolist()
    if name != "original":  # it does not end at 0, and is known by its name alone
        given = list(model.trajectory({}, steps=99, size=SIZE, grid=times.float()))
        torch.testing.assert_close(given[-1].z, path[-1].z, rtol=1e-3, atol=1e-4)


def test_a_start_takes_the_place_of_noise_and_says_how_many_and_how_large():
    model = latent_diffusion().eval()
    schedule, z0, eps = model.diffusion.schedule, torch.randn(2, 2, 12, 8), torch.randn(2, 2, 12, 8)
    z, times = samplers.partly_noised(z0, eps, schedule.grid(10), 0.3, schedule)
    path = list(model.trajectory(batch(2), start=z, grid=times, size=999))
    assert len(path) == 3
    told, _ = model.conditions(batch(2))
    with torch.no_grad():
        predict = samplers.predictor(model.denoiser, model.diffusion, told)
        expected = samplers.last(samplers.ddim(predict, z, times, schedule))
    torch.testing.assert_close(path[-1].z, expected)


def test_the_trajectory_has_a_step_for_each_and_ends_clean():
    model = latent_diffusion().eval()
    steps = list(model.trajectory(batch(2), steps=4, size=SIZE))
    assert len(steps) == 4 and float(steps[-1].t) == 0
    assert all(step.z.shape == step.z0.shape == (2, 2, 12, 8) for step in steps)


def test_the_number_of_samples_is_n_or_the_conditions_or_one():
    plain = latent_diffusion(PLAIN).eval()
    assert len(plain.sample({}, n=3, steps=1, size=4)) == 3
    assert len(plain.sample({}, steps=1, size=4)) == 1
    assert len(latent_diffusion().eval().sample(batch(4), steps=1, size=4)) == 4


def test_a_sampler_may_be_a_function_and_is_given_what_is_its_own():
    def still(predict, z, times, schedule, shift):
        yield Step(z + shift, z, times[-1])

    model = latent_diffusion(PLAIN).eval()
    (step,) = model.trajectory({}, still, n=2, seed=5, size=SIZE, shift=3.0)
    torch.testing.assert_close(step.z - 3, Noise(5, (2, 2, 12, 8))(step.z))


def test_inpainting_wraps_the_prediction():
    model, known = latent_diffusion(PLAIN).eval(), torch.randn(2, 2, 12, 8)
    keep = torch.zeros(1, 1, 12, 8)
    keep[..., :5] = 1
    schedule = model.diffusion.schedule
    wrap = lambda predict: samplers.keep_known(predict, known, keep, schedule)
    z = samplers.last(model.trajectory({}, n=2, steps=3, size=SIZE, wrap=wrap))
    assert torch.equal(z[..., :5], known[..., :5]) and not torch.equal(z[..., 5:], known[..., 5:])


_TEXT = TextConfig(width=6, depth=1, heads=2, head_channels=3, length=5)
CONDITIONS = {
    "nothing": UnconditionalConfig(),
    "labels as context": LabelsConfig(NAMES, 6),
    "labels as a vector": LabelsConfig(NAMES, 6, "vector"),
    "text": _TEXT,
    "boxes": BoxesConfig(("house", "pine"), width=6, depth=1, heads=2, head_channels=3, most=2, grid=5),
    "map": SemanticMapConfig(("sky", "sea"), f=2, channels=2),
    "low resolution": LowResConfig(2, 2, noise=0.1),
    "hole": InpaintingConfig(channels=2, f=2),
    "labels, text and map": TogetherConfig(
        (LabelsConfig(NAMES, 4, "vector"), _TEXT, SemanticMapConfig(("sky", "sea"), f=2, channels=2))
    ),
}
NETWORKS = {"plain": {}, "film and updown": {"film": True, "resblock_updown": True}}
DIFFUSIONS = {
    "eps": Diffusion(VariancePreserving(), "eps"),
    "z0": Diffusion(VariancePreserving(), "z0"),
    "v": Diffusion(VariancePreserving(), "v"),
    "v to pure noise": Diffusion(VariancePreserving(zero_terminal=True), "v"),
    "flow": Diffusion(RectifiedFlow(), "flow"),
}
ALL = {name: {"sampler": name} for name in SAMPLERS} | {"ddpm": {"eta": 1.0}}


@cache
def built(told: str, network: str) -> LatentDiffusion:
    condition = CONDITIONS[told]
    model = latent_diffusion(replace(UNET, **({"vector": 0} | widths(condition)), **NETWORKS[network]))
    return LatentDiffusion(model.first_stage, model.denoiser, model.diffusion, build(condition))


def told_all(n: int) -> dict:
    """What every conditioner asks for, for n pictures of 8 x 12."""
    mask = torch.ones(n, 1, 8, 12)
    mask[..., :4] = 0
    return {
        "label": torch.arange(n) % len(NAMES),
        "caption": [("two pines", "a house")[i % 2] for i in range(n)],
        "boxes": [torch.tensor([[0.1, 0.2, 0.4, 0.9]])[: i % 2] for i in range(n)],
        "box_labels": [torch.tensor([1])[: i % 2] for i in range(n)],
        "segmentation": torch.arange(n * 96).view(n, 8, 12) // 5 % 2,
        "low": torch.linspace(-1, 1, n * 72).view(n, 3, 4, 6),
        "masked": torch.linspace(-1, 1, n * 288).view(n, 3, 8, 12),
        "mask": mask,
    }


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("told", CONDITIONS)
def test_every_condition_network_diffusion_and_sampler_work_together(told, network, diffusion, sampler):
    model = built(told, network).train()
    keys = model.conditioner.keys
    model.diffusion, given = DIFFUSIONS[diffusion], {key: told_all(3)[key] for key in keys}
    losses = model(given | {"image": Pictures(3).images.transpose(2, 3)}, dropout=0.5)
    assert losses.shape == (3,) and losses.isfinite().all()
    drawn = model.eval().sample(given, n=3, steps=4, guidance=1.5, size=(8, 12), **ALL[sampler])
    assert drawn.shape == (3, 3, 8, 12) and drawn.isfinite().all() and drawn.std() > 0


@pytest.mark.parametrize("told", CONDITIONS)
def test_a_saved_model_is_told_the_same_again(told, tmp_path):
    model, given = built(told, "plain").eval(), told_all(2)
    model.save(tmp_path)
    again, settings = LatentDiffusion.load(tmp_path), {"n": 2, "steps": 2, "size": (8, 12)}
    assert describe(again) == describe(model)
    assert torch.equal(again.sample(given, **settings), model.sample(given, **settings))


@pytest.mark.parametrize("told", [name for name in CONDITIONS if name != "nothing"])
def test_what_a_model_is_told_changes_what_it_draws(told):
    model, given = built(told, "plain").eval(), told_all(2)
    other = given | {
        "label": given["label"] + 1, "caption": ["a house", "snow"], "boxes": given["boxes"][::-1],
        "box_labels": given["box_labels"][::-1], "segmentation": 1 - given["segmentation"],
        "low": -given["low"], "masked": -given["masked"],
    }  # fmt: skip
    settings = {"n": 2, "steps": 3, "size": (8, 12)}
    first, again, changed = (model.sample(batch, **settings) for batch in (given, given, other))
    assert torch.equal(first, again)
    assert ((first - changed).flatten(1).abs().amax(1) > 1e-5).all()


def test_images_that_a_conditioner_wants_encoded_are_and_cached_ones_are_taken():
    model, given = built("hole", "plain").eval(), told_all(2)
    cond, blank = model.conditions(given)
    assert blank is None and torch.equal(cond.concat[:, :2], model.first_stage.encode(given["masked"]))
    cached = {"masked_z": torch.zeros(2, 2, 4, 6), "mask": given["mask"], "masked": given["masked"]}
    assert (model.conditions(cached)[0].concat[:, :2] == 0).all()


def test_a_batch_without_the_image_that_is_to_be_encoded_is_told_its_own_key():
    with pytest.raises(InputError, match=r"^Inpainting needs the key masked; the batch has mask$"):
        built("hole", "plain").sample({"mask": torch.ones(1, 1, 8, 12)}, steps=1, size=(8, 12))


def test_a_condition_that_cannot_be_left_out_costs_guidance_nothing():
    model, given = built("map", "plain").eval(), told_all(2)
    plain, guided = (model.sample(given, n=2, steps=2, size=(8, 12), guidance=g) for g in (1.0, 5.0))
    assert torch.equal(plain, guided)


def test_captions_and_layouts_say_how_many_samples_there_are():
    for name in ("text", "boxes"):
        given = {key: told_all(2)[key] for key in built(name, "plain").conditioner.keys}
        assert len(built(name, "plain").eval().sample(given, steps=1, size=(8, 12))) == 2


def test_a_negative_prompt_takes_the_place_of_the_empty_one():
    model, given = built("text", "plain").eval(), told_all(2)
    negative = {"caption": ["fog", "rain"]}
    told, blank = model.conditions(given, negative)
    assert torch.equal(blank.context, model.conditioner(negative).context)
    assert torch.equal(told.context, model.conditioner(given).context)
    settings = {"steps": 3, "size": (8, 12), "n": 2}
    away = model.sample(given, guidance=3.0, negative=negative, **settings)
    assert not torch.equal(away, model.sample(given, guidance=3.0, **settings))
    # guidance 0 is the negative prompt alone
    torch.testing.assert_close(
        model.sample(given, guidance=0.0, negative=negative, **settings), model.sample(negative, **settings)
    )


def test_a_negative_image_is_encoded_in_place_of_the_one_it_replaces():
    model, given = built("hole", "plain").eval(), told_all(2)
    _, blank = model.conditions(given, {"masked": -given["masked"]})
    assert torch.equal(blank.concat[:, :2], model.first_stage.encode(-given["masked"]))


def test_two_conditions_have_a_scale_each():
    model, given = built("labels, text and map", "plain").eval(), told_all(2)
    settings = {"steps": 3, "size": (8, 12), "n": 2}
    torch.testing.assert_close(
        model.sample(given, guidance=(2.5, 2.5), **settings), model.sample(given, guidance=2.5, **settings)
    )
    label_alone = given | {"caption": ["", ""]}
    torch.testing.assert_close(
        model.sample(given, guidance=(1.0, 0.0), **settings), model.sample(label_alone, **settings)
    )
    with pytest.raises(InputError, match=r"^guidance: 3 scales, and 2 conditions that can be left out$"):
        model.sample(given, guidance=(1.0, 2.0, 3.0), **settings)
    with pytest.raises(InputError, match=r"^guidance: one scale is enough for one condition$"):
        built("text", "plain").sample(given, guidance=(1.0, 2.0), **settings)


def test_with_a_scale_for_each_a_negative_prompt_takes_the_place_of_the_empty_one():
    model, given = built("labels, text and map", "plain").eval(), told_all(2)
    negative, settings = {"caption": ["fog", "rain"]}, {"steps": 3, "size": (8, 12), "n": 2}
    torch.testing.assert_close(
        model.sample(given, guidance=(2.5, 2.5), negative=negative, **settings),
        model.sample(given, guidance=2.5, negative=negative, **settings),
    )
    # the label's scale is 1 and the words' is 0: the label with the negative prompt
    torch.testing.assert_close(
        model.sample(given, guidance=(1.0, 0.0), negative=negative, **settings),
        model.sample(given | negative, **settings),
    )


def test_one_negative_prompt_is_for_all_and_another_number_of_them_is_refused():
    model, given = built("text", "plain").eval(), told_all(3)
    settings = {"steps": 2, "size": (8, 12), "n": 3, "guidance": 3.0}
    one, three = (model.sample(given, negative={"caption": ["fog"] * n}, **settings) for n in (1, 3))
    assert torch.equal(one, three)
    with pytest.raises(InputError, match=r"^negative: 2 for caption, and conditions for 3; give one, or 3$"):
        model.sample(given, negative={"caption": ["fog", "rain"]}, **settings)
    image = {"masked": torch.rand(1, 3, 8, 12) - 0.5}
    _, blank = built("hole", "plain").conditions(told_all(3), image)
    assert blank.concat.shape[0] == 3 and torch.equal(blank.concat[0, :2], blank.concat[2, :2])


@pytest.mark.parametrize(("told", "guidance"), [("text", 1.0), ("text", 1), ("labels, text and map", (1, 1.0))])
def test_a_negative_prompt_without_guidance_is_refused(told, guidance):
    model, given = built(told, "plain").eval(), told_all(2)
    with pytest.raises(InputError, match=r"^negative: guidance 1 leads away from nothing; give a guidance above 1$"):
        model.sample(given, negative={"caption": ["fog"]}, guidance=guidance, steps=1, size=(8, 12))


def test_a_layout_is_not_drawn_by_windows_each_of_which_would_show_all_of_it():
    model, given = built("boxes", "plain").eval(), told_all(2)
    with pytest.raises(InputError, match=r"^window: each would show the whole layout; give a size alone, and it is"):
        model.sample(given, n=2, steps=1, size=16, window=8)
    whole, one = (model.sample(given, n=2, steps=1, size=(8, 12), **more) for more in ({}, {"window": 12}))
    torch.testing.assert_close(one, whole)


@pytest.mark.parametrize("told", ["map", "low resolution", "hole"])
def test_maps_of_another_size_than_the_picture_are_refused_in_its_pixels(told):
    with pytest.raises(InputError, match=r"^size: 16 x 8, and what the model is told is for 8 x 12; give that$"):
        built(told, "plain").sample(told_all(2), n=2, steps=1, size=(16, 8))


def test_a_layout_is_not_shuffled_when_it_is_sampled():
    model = built("boxes", "plain").eval()
    two = {"boxes": [torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])], "box_labels": [torch.tensor([0, 1])]}
    assert len({model.sample(two, steps=1, size=(8, 12)).sum().item() for _ in range(6)}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "ddmi"}, r"ddmi: no such sampler; did you mean ddim\?"),
        ({"steps": 0}, "steps: 0 is not between 1 and 1000"),
        ({"steps": 1001}, "steps: 1001 is not between 1 and 1000"),
        ({"n": 0}, "n: 0 is not 1 or more"),
        ({"n": -2}, "n: -2 is not 1 or more"),
        ({"n": 3}, "n: 3 samples are asked for, and conditions for 2 are given"),
        ({"size": 5}, "size: 5 x 5 is not divisible by 4; take 4 x 4 or 8 x 8, or a window: then 2 is enough$"),
        # by f = 2, but not twice, as the denoiser does
        ({"size": (8, 6)}, "size: 8 x 6 is not divisible by 4; take 8 x 4 or 8 x 8, or a window"),
        ({"size": 0}, "size: 0 x 0 is not divisible by 4; take 4 x 4, or a window"),
        ({"grid": "karas"}, r"karas: no such grid; did you mean karras\?"),
        ({"grid": "karras", "steps": 1001}, "steps: 1001 is not between 1 and 1000"),
        ({"grid": torch.tensor([0.0, 0.5, 1.0])}, "grid: the times do not decrease from 1"),
        ({"grid": torch.tensor([1.0, 0.5, 0.5, 0.0])}, "grid: the times do not decrease from 1"),
        ({"grid": torch.tensor([1.5, 0.5, 0.0])}, "grid: the times do not decrease from 1"),
        ({"grid": torch.tensor([1.0, float("nan"), 0.0])}, "grid: the times do not decrease from 1"),
        ({"grid": torch.tensor([1.0, 0.5, 0.25])}, "grid: the last time is 0.25; it must be 0"),
        ({"grid": torch.tensor([0.0])}, "grid: two times or more"),
        ({"start": torch.zeros(2, 3, 4, 4)}, r"start: the shape \(2, 3, 4, 4\) is not \(n, 2, h, w\)"),
        ({"start": torch.zeros(2, 4, 4)}, r"start: the shape \(2, 4, 4\) is not \(n, 2, h, w\)"),
        ({"start": torch.zeros(3, 2, 4, 4)}, "n: 3 samples are asked for, and conditions for 2 are given"),
        ({"start": torch.zeros(3, 2, 4, 4), "n": 2}, "n: 2 samples are asked for, and a start for 3 is given"),
        ({"start": torch.zeros(2, 2, 3, 4)}, "size: 6 x 8 is not divisible by 4"),
        ({"sampler": "heun", "eta": 0.5}, "eta: heun has no such argument; ddim has"),
        ({"etta": 0.5}, "etta: ddim has no such argument; no sampler has"),
        ({"batch_size": 0}, "batch_size: 0 is not 1 or more"),
        ({"rescale": 1.5}, "rescale: 1.5 is not between 0 and 1"),
        ({"interval": (0.8, 0.2)}, "interval: 0.8 0.2 are not two times, the smaller one first"),
    ],
)
def test_what_cannot_be_sampled_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        latent_diffusion().sample(batch(2), **({"steps": 2, "size": 8} | settings))


def test_the_originals_grid_is_refused_where_there_is_no_chain():
    with pytest.raises(InputError, match="grid: original is a grid on the steps of a chain; take uniform"):
        flow().sample({}, steps=2, size=8, grid="original")


def test_eps_is_refused_from_pure_noise_and_not_below():
    model = latent_diffusion(PLAIN).eval()
    model.diffusion = Diffusion(RectifiedFlow(), "eps")
    with pytest.raises(InputError, match="predicts: eps says nothing of z0 in pure noise, t = 1; train v"):
        model.sample({}, steps=2, size=8)
    assert model.sample({}, size=8, grid=torch.tensor([0.9, 0.4, 0.0])).isfinite().all()


def test_a_schedule_may_be_another_than_in_training_and_the_prediction_may_not(tmp_path):
    latent_diffusion().save(tmp_path)
    other = Diffusion(VariancePreserving("cosine"), "v")
    assert LatentDiffusion.load(tmp_path, other).diffusion is other
    with pytest.raises(InputError, match=r"predicts: eps, but .* was trained to predict v; use that"):
        LatentDiffusion.load(tmp_path, Diffusion(VariancePreserving(), "eps"))


def test_noise_is_drawn_row_by_row_and_anew_each_time():
    three, five = Noise(7, (3, 2, 4)), Noise(7, (5, 2, 4))
    like = torch.empty(0)
    first, second = three(like), three(like)
    assert torch.equal(five(like)[:3], first) and torch.equal(five(like)[:3], second)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert float(Noise(7, (50, 40))(like).std()) == pytest.approx(1, abs=0.05)


def test_seeds_are_mixed_so_that_no_two_streams_meet():
    seeds = {mix(*numbers) for a in range(30) for b in range(30) for numbers in ((a, b), (a, b, 0), (a,))}
    assert len(seeds) == 30 * 30 * 2 + 30
    assert all(0 <= seed < 2**63 for seed in seeds) and mix(-1) != mix(1)
    assert mix(0) == 0xE220A8397B1DCDAF >> 1  # the first number of splitmix64


def test_a_seed_is_the_same_noise_in_every_version():
    row = torch.randn(3, generator=torch.Generator().manual_seed(mix(7, 1)))
    assert torch.equal(Noise(7, (2, 3))(row)[1], row)


# Folders ------------------------------------------------------------------------------------------------------------


def flow() -> LatentDiffusion:
    return LatentDiffusion(
        Pixels(), UNet(replace(PLAIN, channels=3)), Diffusion(RectifiedFlow(), "flow"), Unconditional()
    )


MODELS = {
    "labels as a vector": latent_diffusion,
    "labels as context": lambda: latent_diffusion(replace(PLAIN, context=6, depth=2), "context", snr_cap=5.0),
    "unconditional l1": lambda: latent_diffusion(PLAIN, distance="l1"),
    "a flow in pixels": flow,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_samples_the_same(name, tmp_path):
    model = MODELS[name]().eval()
    if name != "a flow in pixels":
        model.first_stage.scale.fill_(0.123456789)
    model.save(tmp_path)
    again = LatentDiffusion.load(tmp_path)
    told = batch(2) if name.startswith("labels") else {}
    settings = {"n": 2, "steps": 2, "size": SIZE, "seed": 1}
    assert torch.equal(again.sample(told, **settings), model.sample(told, **settings))
    assert describe(again) == describe(model) and not again.training
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_weights_saved_in_half_precision_are_the_nearest_ones_and_the_scale_keeps_its_digits(tmp_path):
    model = latent_diffusion().eval()
    model.first_stage.scale.fill_(0.123456789)
    model.save(tmp_path, torch.float16)
    again = LatentDiffusion.load(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs, ours if ours.ndim == 0 else ours.half().float()), name
    settings = {"steps": 3, "size": SIZE}
    torch.testing.assert_close(
        again.sample(batch(2), **settings), model.sample(batch(2), **settings), rtol=0, atol=0.02
    )
    assert load_file(tmp_path / "model.safetensors")["denoiser.stem.weight"].dtype == torch.float16


def test_a_runs_folder_and_its_model_are_the_same_to_load(tmp_path):
    latent_diffusion().save(tmp_path / "model")
    assert found(tmp_path) == found(tmp_path / "model") == tmp_path / "model"


@pytest.mark.parametrize("name", MODELS)
def test_assembled_is_the_inverse_of_describe(name):
    model = MODELS[name]()
    values = json.loads(json.dumps(describe(model)))
    again = assembled(values)
    assert describe(again) == values and again.diffusion == model.diffusion
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items()}
    assert shapes(again) == shapes(model)


def without(values: dict, *path: str) -> dict:
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return values


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: [], "type None is not one of LatentDiffusion, Autoencoder"),
        (lambda v: v | {"type": "GAN"}, "type 'GAN' is not one of"),
        (lambda v: without(v, "denoiser"), "not a model of ours .*denoiser"),
        (lambda v: without(v, "diffusion", "schedule", "type"), "not a model of ours .*type"),
        (lambda v: v | {"conditioner": {"type": "os.system"}}, "type 'os.system' is not one of"),
        (lambda v: v | {"diffusion": v["diffusion"] | {"predicts": "x0"}}, "predicts: x0"),
        (lambda v: v | {"diffusion": v["diffusion"] | {"guess": 1}}, "guess"),
        (lambda v: v | {"denoiser": v["denoiser"] | {"widht": 8}}, "widht: UNetConfig has channels, width"),
        (
            lambda v: v | {"denoiser": v["denoiser"] | {"heads": 3}},
            "heads, head_channels: .*cannot be split into 3 heads",
        ),
    ],
)
def test_a_config_that_is_no_model_of_ours_is_named(spoil, message, tmp_path):
    latent_diffusion().save(tmp_path)
    values = spoil(json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as caught:
        LatentDiffusion.load(tmp_path)
    assert "\n" not in str(caught.value)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_another_model(path):
    save_file(latent_diffusion(replace(UNET, width=12)).state_dict(), path)


SPOILT = {
    "truncated": (truncated, "truncated or not a safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or not a safetensors file"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG" * 99), "truncated or not a safetensors file"),
    "missing": (lambda path: path.unlink(), "no such file"),
    "of another width": (of_another_model, "weights of another model .*size mismatch"),
    "of nothing": (lambda path: save_file({}, path), "weights of another model .*Missing key"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_weights_that_do_not_fit_are_named(how, tmp_path):
    latent_diffusion().save(tmp_path)
    spoil, message = SPOILT[how]
    spoil(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"model.safetensors: {message}") as caught:
        LatentDiffusion.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_or_with_a_first_stage_alone_is_named(tmp_path):
    with pytest.raises(InputError, match="not a model's folder"):
        LatentDiffusion.load(tmp_path)
    with pytest.raises(InputError, match="no-such-model: no such folder or shipped weights"):
        LatentDiffusion.load("no-such-model")
    tiny.task("autoencoder").save(tmp_path)
    with pytest.raises(InputError, match="holds Autoencoder, not a whole model"):
        LatentDiffusion.load(tmp_path)


def crowded(stage, name: str, most: int, seen: list[int]) -> None:
    """A first stage of which a method takes more memory than there is for more than so many images."""
    own = getattr(stage, name)

    def asked(rows, **settings):
        seen.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(rows, **settings)

    setattr(stage, name, asked)


@torch.no_grad()
def test_samples_are_decoded_in_halves_where_memory_has_no_room_for_a_batch():
    model, seen = latent_diffusion().eval(), []
    batch, settings = {"label": torch.arange(11) % 3}, {"steps": 2, "size": 8, "batch_size": 7}
    whole = model.sample(batch, **settings)
    crowded(model.first_stage, "decode", 2, seen)
    torch.testing.assert_close(model.sample(batch, **settings), whole)
    assert seen == [7, 4, 2, 2, 2, 2, 2, 1]
    crowded(model.first_stage, "decode", 0, seen)
    with pytest.raises(torch.OutOfMemoryError):
        model.sample(batch, **settings)
