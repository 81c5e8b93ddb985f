"""The objective of a first stage: a perceptual distance, a critic, and their balance."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_features import vgg16_file
from torch import nn

from ldm_lite.config import InputError
from ldm_lite.data import Scenes
from ldm_lite.features import Features
from ldm_lite.losses import LPIPS, LossConfig, Objective, PatchDiscriminator, balance, hinge, unit, vanilla

GAN = LossConfig(kl=0.5, perceptual=0.7, trunk="scenes", adversarial=0.3, start=3, critic_width=4, critic_layers=1)


@pytest.fixture(scope="module")
def lpips():
    return LPIPS(Features("scenes"))


@pytest.fixture(scope="module")
def scenes():
    return Scenes("test").batch(range(12))["image"].float() / 127.5 - 1


# LPIPS --------------------------------------------------------------------------------------------------------------


def test_the_distance_of_equal_pictures_is_0_and_it_is_symmetric(lpips, scenes):
    a, b = scenes[:5], scenes[5:10]
    assert torch.equal(lpips(a, a), torch.zeros(5))
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert (lpips(a, b) > 0.1).all() and (lpips(a, b) < 4).all()


def test_the_distance_is_the_mean_over_maps_of_squared_differences_of_unit_vectors(lpips, scenes):
    a, b = scenes[:3], scenes[3:6]
    expected = 0
    for x, y in zip(lpips.trunk.maps(a), lpips.trunk.maps(b)):
        expected = expected + (2 - 2 * F.cosine_similarity(x, y, dim=1)).mean((1, 2)) / 4
    # where a vector is 0 the cosine is 0 as well, but the distance is 1 or 0 and not 2: such positions are few
    torch.testing.assert_close(lpips(a, b), expected, rtol=0.02, atol=0)


def test_the_distance_on_vgg16_is_torchmetrics(tmp_path):
    """Random trunk, published heads."""
    torchmetrics = pytest.importorskip("torchmetrics.functional.image.lpips")
    trunk = Features("vgg16", vgg16_file(tmp_path / "vgg16.pth"))
    authority = torchmetrics._LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    state = trunk.network.features.state_dict()
    for name, p in authority.net.named_parameters():
        p.data.copy_(state[name.split(".", 1)[1]])
    a, b = torch.rand(2, 3, 3, 48, 32) * 2 - 1
    ours = LPIPS(trunk)(a, b)
    assert ours.min() > 0
    torch.testing.assert_close(ours, authority(a, b).detach().flatten(), rtol=1e-4, atol=1e-7)


def test_the_published_heads_are_used(tmp_path):
    ours = LPIPS(Features("vgg16", vgg16_file(tmp_path / "vgg16.pth")))
    assert [len(w) for w in ours.heads] == [64, 128, 256, 512, 512]
    assert all((w >= 0).all() and w.std() > 0 for w in ours.heads)
    assert not any(p.requires_grad for p in ours.parameters())


def test_vectors_of_length_0_have_a_gradient():
    h = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).view(2, 2, 1, 1).requires_grad_()
    assert torch.allclose(unit(h).flatten(1), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    unit(h).sum().backward()
    assert h.grad.isfinite().all()


def test_the_distance_has_a_gradient_that_makes_pictures_alike(lpips, scenes):
    image, blurred = scenes[:2], F.avg_pool2d(scenes[:2], 3, 1, 1).requires_grad_()
    before = lpips(image, blurred)
    (gradient,) = torch.autograd.grad(before.sum(), blurred)
    assert gradient.abs().sum() > 0
    assert (lpips(image, blurred - 1e-2 * gradient / gradient.abs().max()) < before).all()


# The critic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "sees"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, sees):
    critic, image = PatchDiscriminator(4, layers).eval(), torch.rand(1, 3, 96, 96, requires_grad=True)
    logits = critic(image)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == sees


@pytest.mark.parametrize(("layers", "millions"), [(2, 0.66), (3, 2.77)])
def test_the_critic_has_the_originals_size_and_names(layers, millions):
    critic = PatchDiscriminator(64, layers)
    assert round(sum(p.numel() for p in critic.parameters()) / 1e6, 2) == millions
    if layers == 3:
        assert {int(k.split(".")[1]) for k in critic.state_dict()} == {0, 2, 3, 5, 6, 8, 9, 11}


@pytest.mark.parametrize(("form", "real", "fake", "loss"), [
    (hinge, [2.0, 0.5], [-3.0], 0.125), (hinge, [0.0], [0.0], 1.0), (hinge, [-1.0], [1.0], 2.0),
    (vanilla, [0.0], [0.0], 0.693147), (vanilla, [50.0], [-50.0], 0.0),
])  # fmt: skip
def test_the_critics_losses_have_known_values(form, real, fake, loss):
    torch.testing.assert_close(form(torch.tensor(real), torch.tensor(fake)), torch.tensor(loss))


def test_the_best_vanilla_critic_is_the_log_ratio_of_densities():
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    logit = (p / q).log().requires_grad_()
    (0.5 * (p * F.softplus(-logit) + q * F.softplus(logit)).sum()).backward()
    torch.testing.assert_close(logit.grad, torch.zeros(3), atol=1e-6, rtol=0)


# The balance --------------------------------------------------------------------------------------------------------


def test_balanced_gradients_of_the_last_layer_have_equal_length():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(7, 5)
    likeness, g = layer(x).abs().mean(), -17 * layer(x).tanh().mean()
    a, b = (torch.autograd.grad(v, layer.weight, retain_graph=True)[0].norm() for v in (likeness, g))
    torch.testing.assert_close(balance(likeness, g, layer.weight) * b, a, rtol=1e-3, atol=0)
    scaled = balance(likeness, g, layer.weight, scale=1024.0)
    torch.testing.assert_close(scaled, balance(likeness, g, layer.weight))
    assert not scaled.requires_grad


def test_the_balance_is_taken_at_a_smaller_scale_where_half_precision_overflows():
    w = torch.ones(3, requires_grad=True)
    likeness, g = 300 * w.half().float().sum(), -100 * w.half().float().sum()  # what comes back passes through fp16
    for scale in (1.0, 2.0**7, 2.0**20, 2.0**40):
        assert balance(likeness, g, w, scale=scale) == pytest.approx(3.0, rel=1e-3)
    assert balance(float("nan") * likeness, g, w, scale=2.0**20).isnan()  # which no scale mends


def test_the_balance_is_bounded_where_the_critic_says_nothing():
    w = torch.ones(2, requires_grad=True)
    assert balance(1e9 * w.sum(), 0 * w.sum(), w) == 1e4


# The objective ------------------------------------------------------------------------------------------------------


def parts(bottleneck="kl", config=GAN, step=3):
    torch.manual_seed(4)
    model, objective = tiny.autoencoder(bottleneck), Objective(config)
    torch.manual_seed(5)  # what the objective drew when it was made depends on its settings
    image = torch.rand(5, 3, 24, 16) * 2 - 1
    reconstruction, code = model(image)
    return model, objective, image, reconstruction, code, step


def valued(model, objective, image, reconstruction, code, step):
    return objective(image, reconstruction, code, model.decoder.conv_out.weight, step)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_the_loss_is_the_sum_of_its_weighted_terms(bottleneck):
    made = parts(bottleneck)
    loss, named = valued(*made)
    _, objective, image, reconstruction, code, _ = made
    l1 = (image - reconstruction).abs().mean()
    penalty = code.penalty.mean() if bottleneck == "vq" else 0.5 * code.penalty.mean() / (3 * 24 * 16)
    distance, g = objective.lpips(image, reconstruction).mean(), -objective.critic(reconstruction).mean()
    torch.testing.assert_close(loss, l1 + 0.7 * distance + penalty + 0.3 * named["balance"] * g, rtol=1e-4, atol=1e-6)
    assert named["balance"] > 0


def test_before_its_start_the_critic_is_not_asked(monkeypatch):
    model, objective, image, reconstruction, code, _ = parts()
    monkeypatch.setattr(objective.critic, "forward", lambda x: pytest.fail("asked"))
    loss, named = valued(model, objective, image, reconstruction, code, 2)
    torch.testing.assert_close(loss, named["l1"] + 0.7 * named["lpips"] + named["penalty"])
    assert named["g"] == named["balance"] == 0


def test_the_autoencoders_loss_leaves_no_gradient_in_the_critic_nor_in_the_trunk():
    made = parts()
    loss, _ = valued(*made)
    loss.backward()
    assert all(p.grad is None for p in made[1].parameters())
    assert all(p.grad is not None for p in made[0].parameters())


def test_the_perceptual_term_reaches_the_encoder():
    """The widely copied script computes it without gradients."""
    gradients = []
    for weight in (0.0, 0.7):
        made = parts(config=LossConfig(perceptual=weight, trunk="scenes"))
        valued(*made)[0].backward()
        gradients.append(made[0].encoder.conv_in.weight.grad)
    assert (gradients[0] - gradients[1]).abs().sum() > 0.01 * gradients[0].abs().sum() > 0


def test_terms_of_weight_0_are_not_made():
    objective = Objective(LossConfig())
    assert objective.lpips is None and objective.critic is None


@pytest.mark.parametrize(("setting", "says"), [
    ({"kl": -1.0}, "kl: -1.0 is below 0"), ({"perceptual": float("nan")}, "perceptual: nan is below 0"),
    ({"trunk": "alex"}, "trunk: alex is not scenes or vgg16"), ({"form": "wgan"}, "form: wgan is not hinge or vanilla"),
    ({"critic_layers": 0}, "critic_layers: 0 is not 1 or more"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting, says):
    with pytest.raises(InputError, match=says):
        LossConfig(**setting)
