"""What only a GPU does; skipped where there is none. The rest is tested on the CPU, wherever it is tested."""

import csv
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import SHARP, TRAIN, Pictures, at, autoencoder, latent_diffusion

from ldm_lite.condition import Condition
from ldm_lite.latent import LatentDiffusion
from ldm_lite.training import AutoencoderTask, DiffusionTask, fit, load_checkpoint, precision
from ldm_lite.unet import UNetConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def on_the_gpu(on_the_cpu, monkeypatch):
    monkeypatch.setenv("LDM_LITE_DEVICE", "cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def denoising(config, place="cuda"):
    torch.manual_seed(2)
    return DiffusionTask(latent_diffusion().to(place), config, dropout=0.3)


@torch.no_grad()
def held_out(model):
    """The loss of the pictures at times and with noise that are the same each time."""
    torch.manual_seed(5)
    data = Pictures()
    batch = {"image": data.images.repeat(8, 1, 1, 1).cuda(), "label": (torch.arange(56) % 7 % 3).cuda()}
    loss = float(model.eval()(batch, times=torch.linspace(0.05, 0.95, 56, dtype=torch.float64)).mean())
    model.train()
    return loss


def half():
    """The card's own: torch compiles nothing in bf16 for one that has none, and says so in a warning alone."""
    return precision("auto", torch.device("cuda"))


def test_compiled_in_half_precision_it_gives_the_same_output_and_gradients():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, attend_at=(2,), heads=2)
    unet = latent_diffusion(config).denoiser.cuda()
    z, clock, cond = torch.randn(2, 2, 8, 4).cuda(), torch.tensor([3.0, 70.0]).cuda(), Condition()
    results = []
    for forward in (unet, torch.compile(unet, fullgraph=True)):
        unet.zero_grad()
        with torch.autocast("cuda", half()):
            out = forward(z, clock, cond)
        out.float().square().mean().backward()
        results.append((out.detach().float().flatten(), torch.cat([p.grad.flatten() for p in unet.parameters()])))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 0.1 * a.norm()


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_a_run_learns_in_each_precision_and_draws(kind, compile, tmp_path):
    if compile and kind == "bf16" and half() != torch.bfloat16:
        pytest.skip("this card has no bf16, and torch compiles none for it")
    config = replace(TRAIN, steps=120, ema=0.98, precision=kind, compile=compile, sample_every=60)
    job = denoising(config)
    before = held_out(job.model)
    kernels = [p for p in job.model.denoiser.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=LAST) == (kind != "fp32") for p in kernels)
    fit(job, Pictures(), config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert held_out(job.model) < 0.85 * before and float(rows[-1]["memory"]) > 0
    assert len(list((tmp_path / "samples").iterdir())) == 2
    name = next(name for name, p in job.model.named_parameters() if p is kernels[0])
    saved, average = load_file(tmp_path / "model/model.safetensors")[name], job.descent.ema.average[name]
    assert torch.equal(saved, average.cpu()) and not torch.equal(average, kernels[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_first_stage_learns_from_a_critic_and_a_codebook(precision, tmp_path):
    config = replace(TRAIN, precision=precision)
    torch.manual_seed(2)
    job = AutoencoderTask(autoencoder("vq", codes=19).cuda(), config, SHARP)
    before = job.model.encoder.conv_in.weight.clone()
    assert fit(job, Pictures(), config, tmp_path) == TRAIN.steps
    moved = (job.model.encoder.conv_in.weight - before).abs().max()
    assert torch.isfinite(moved) and moved > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(first, then, precision, tmp_path):
    config = replace(TRAIN, precision=precision)
    stop = at(4, denoising(config, first), lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(stop, Pictures(), config, tmp_path)
    job = denoising(config, then)
    own, saved = job.load_state_dict, load_checkpoint(tmp_path / "checkpoint.pt")["task"]

    def load(state):
        own(state)
        for held, there in zip(job.descent.optimizer.state.values(), saved["optimizer"]["state"].values(), strict=True):
            assert there["exp_avg"].any() and torch.equal(held["exp_avg"].cpu(), there["exp_avg"].cpu())
        for name, value in saved["ema"]["average"].items():
            assert torch.equal(job.descent.ema.average[name].cpu(), value.cpu())

    job.load_state_dict = load
    assert fit(job, Pictures(), config, tmp_path) == TRAIN.steps
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert steps == list(range(1, TRAIN.steps + 1))


def test_a_shipped_model_draws_what_it_draws_on_the_cpu():
    model = LatentDiffusion.load("scenes-ldm4")
    some = {"label": torch.tensor([0, 5, 11])}
    expected = model.sample(some, steps=5, guidance=2.0, seed=3).cpu()
    drawn = model.cuda().sample(some, steps=5, guidance=2.0, seed=3).cpu()
    torch.testing.assert_close(drawn, expected, atol=2e-2, rtol=0)
    assert (drawn - expected).abs().mean() < 1e-3
