r"""
title: Latent diffusion
goal: Put the two halves together, train in the latents, and find out why samples are bad
needs: Python, some PyTorch; notebooks 02 and 05 help and are not required
memory: about 1 GB; no GPU needed
download: nothing, the trained first stage comes with the package
result: a latent diffusion model that you trained, and seven gates to test any other
objectives:
  - say why the first stage is frozen, and what a loss may be compared with
  - measure the latent scale, and say what a copied constant does
  - cache latents, and know when a cache is wrong
  - write a latent diffusion model's training loss, sampler and weight average in a few lines each
  - find the broken part of a model by gates, in order, in place of looking at samples
"""

# %% the-idea [markdown]
r"""
**What to see.** Three boxes in colour, in the middle. Notebooks 01 to 04 made a latent of a
picture, 05 and 06 made pictures of noise. Here they meet, and what is between them fits in a few
lines: a number, a cache, a loss.

Few lines, and most of the grief. When samples of a latent model are bad, either half can be the
reason, or the seam. So this notebook ends with an ordered list of *gates*, and with seven broken
models to try them on.
"""

# %% start
import copy
import functools
import math
import tempfile
import time
from itertools import pairwise

import torch
import tqdm.auto

from ldm_lite.data import Latents, Scenes, cache_latents
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.presets import load_first_stage


class Quiet(tqdm.auto.tqdm):  # no bars in a stored notebook
    def __init__(self, *items, **settings):
        super().__init__(*items, **(settings | {"disable": True}))


tqdm.auto.tqdm = Quiet
torch.set_grad_enabled(False)  # switched on where something learns
stage = load_first_stage("scenes-kl-f4").to(device)
schedule = VariancePreserving()


def scenes(split, rows):
    """Landscapes (B, 3, 64, 64) in [-1, 1]."""
    return (Scenes(split).batch(rows)["image"].float() / 127.5 - 1).to(device)


def encoded(images, sample=False):
    return torch.cat([stage.encode(part, sample) for part in images.split(64)])


# %% freeze-idea [markdown]
r"""
## 1. The first half stands still

The paper trains an autoencoder, freezes it, and trains a denoiser in its latents. Why not both at
once, the encoder learning from the denoiser's loss too? Suppose every number of a latent is normal
with deviation $k$. Then the best guess of the noise is known, and what it misses is

$$L_\varepsilon(k) = \mathbb E_t\, \frac{\alpha_t^2 k^2}{\alpha_t^2 k^2 + \sigma_t^2}, \qquad
L_v(k) = \mathbb E_t\, \frac{k^2}{\alpha_t^2 k^2 + \sigma_t^2}$$

The first fraction: the error of $z_0$ has variance $\sigma^2 k^2 / (\alpha^2 k^2 + \sigma^2)$, and
one of $\varepsilon$ is $\alpha / \sigma$ times that of $z_0$; for $v$ it is $1 / \sigma$.
`Diffusion.gain` is that factor.
"""


# %% freeze
def least(predicts, k):
    """The loss of a perfect guesser of latents with deviation k, a mean over all steps."""
    alpha, sigma = schedule(torch.arange(1, 1001).double() / 1000)
    error = sigma**2 * k**2 / (alpha**2 * k**2 + sigma**2)
    return (Diffusion(schedule, predicts).gain(alpha, sigma) ** 2 * error).mean()


# %% freeze-figure tags=figure,check
k = torch.logspace(-2, 1, 60).double().requires_grad_()
figure, axis = figures.canvas(6.5, 2.9)
for predicts in ("eps", "v"):
    with torch.enable_grad():
        curve = torch.stack([least(predicts, deviation) for deviation in k])
        (slope,) = torch.autograd.grad(curve.sum(), k)
    assert (slope > 0).all(), "Smaller latents, smaller loss: the encoder would shrink them."
    axis.semilogx(k.detach(), curve.detach(), label=f"predicts {predicts}")
axis.axvline(1, linestyle="--", color=figures.SOFT)
axis.set(xlabel="deviation k of the latents", title="least loss there can be", ylim=(0, 1.6))
axis.legend()
figures.show(figure, "The loss of a perfect guesser by the deviation of its data, for eps and v.")

# %% freeze-read [markdown]
r"""
**What to see.** Both curves rise. An encoder that listened to this loss would have an easy way to
please it: make every latent 0. So it must not listen. `LatentDiffusion` freezes the first stage,
and section 4 checks that no gradient arrives there.

The second lesson is for later. A loss depends on the scale of the data. Two losses may be compared
only if the latents are the same; *"mine is lower"* says nothing by itself.

## 2. One number: the scale

A schedule was made for data as large as its noise, of deviation 1. What the encoder says is not.
So the paper multiplies it with a constant, measured over *all* numbers of many latents:

$$z_0 = s\, E(x), \qquad s = 1 \Big/ \sqrt{\mathbb E\, [E(x)^2] - \mathbb E\, [E(x)]^2}$$
"""


# %% scale
def measured(batches):
    """The scale from latents, batch by batch: three sums are all that is kept."""
    total = torch.zeros(3, dtype=torch.float64)
    for z in batches:
        z = z.cpu().double()
        total += torch.tensor([z.numel(), z.sum(), (z**2).sum()], dtype=torch.float64)
    n, first, second = total.tolist()
    return (second / n - (first / n) ** 2) ** -0.5


# %% scale-check tags=check
x = scenes("train", range(128 if fast else 512))
said = encoded(x, sample=True) / stage.scale  # what the encoder itself says
s, again = measured(said.split(32)), copy.deepcopy(stage)
torch.manual_seed(0)
package = again.measure_scale(x.split(64))
print(f"deviation {float(said.std()):.2f}, scale {s:.4f}; the package {package:.4f}; ", end="")
print(f"stored with the weights {float(stage.scale):.4f}")
assert abs(s / package - 1) < 1e-3, "The package adds up the same three sums."
assert abs(s / float(stage.scale) - 1) < 0.05, "Other scenes of the same kind, the same scale."

# %% scale-figure tags=figure
line, columns = torch.linspace(-9, 9, 181), said.cpu().transpose(0, 1).flatten(1)
figure, (left, right) = figures.canvas(9, 2.8, columns=2)
for axis, scale in ((left, 1.0), (right, s)):
    for c, values in enumerate(scale * columns):
        axis.hist(values, 90, range=(-9, 9), density=True, histtype="step", label=f"channel {c}")
    axis.plot(line, torch.exp(-(line**2) / 2) / math.sqrt(2 * math.pi), "--", color=figures.SOFT)
left.set(title="as the encoder says it")
right.set(title="times the scale", xlim=(-4.5, 4.5))
left.legend()
figures.show(figure, "Three latent channels before and after scaling; dashed: the noise.")
print("deviations after scaling:", [f"{float(d):.2f}" for d in (s * columns).std(1)])

# %% scale-read [markdown]
r"""
**What to see.** Left, two of the three channels are far wider than the noise (dashed). Right, all
three together have deviation 1. Not each of them: one channel says much and one says little, and
one number for all keeps it so. The decoder knows them by these proportions.

Who measures on one channel alone is off by the factors printed. And who measures on one batch? The
paper's code does just that: on the first batch of training, on one process.
"""

# %% batches-figure tags=figure,check
figure, axis = figures.canvas(7, 2.6)
spread = {}
for place, size in enumerate((2, 8, 32)):
    found = torch.tensor([measured([z]) for z in said.split(size)][:64])
    spread[size] = float(found.std() / found.mean())
    axis.plot(place + torch.linspace(-0.25, 0.25, len(found)), found, ".")
axis.axhline(s, linestyle="--", color=figures.SOFT)
axis.set_xticks(range(3), [f"{n} pictures\nspread {v:.1%}" for n, v in spread.items()])
axis.set(title="the scale, measured on one batch of so many", ylabel="scale")
figures.show(figure, "The scale from single batches of 2, 8 and 32 pictures; dashed: from all.")
assert spread[2] > 2 * spread[32], "More pictures, less chance: a few hundred are enough."

# %% batches-read [markdown]
r"""
**What to see.** Two pictures can be off by a fifth, 32 are good to a few per cent. A batch of 48
or 96, as in the paper, does; there is still no reason to take only one. In several processes it is
worse: each would have its own number, or one of them a number and the others 1.

**A famous constant.** Stable Diffusion's code has 0.18215. It was measured on *its* autoencoder,
f = 8 with four channels, and its photographs, and has since been copied to models that know
neither. A latent that is $k$ times too large has

$$\mathrm{SNR}_k(t) = k^2\, \frac{\alpha_t^2}{\sigma_t^2}$$

which is another schedule: one that nobody chose. What would 0.18215 do to our first stages?
"""

# %% constant tags=figure,check
names = ("scenes-kl-f2", "scenes-kl-f4", "scenes-kl-f8", "scenes-vq-f4")
factor = {name: 0.18215 / float(load_first_stage(name).scale) for name in names}
line = torch.linspace(0.001, 1, 500).double()
alpha, sigma = schedule(line)
figure, (left, right) = figures.canvas(9.5, 2.9, columns=2)
left.bar([name.removeprefix("scenes-") for name in names], list(factor.values()), 0.6)
left.axhline(1, linestyle="--", color=figures.SOFT)
left.set_axisbelow(True)
left.set(title="deviation of the latents under 0.18215")
for name, k in {"1": 1.0, "kl-f4": factor[names[1]], "vq-f4": factor[names[3]]}.items():
    ratio = (k * alpha / sigma) ** 2
    right.semilogy(line, ratio, label=f"k = {k:.2f}" + (f", {name}" if k != 1 else ""))
    half = float(line[ratio < 1][0])
    print(f"k = {k:.2f}: as much noise as signal at t = {half:.2f}")
    assert k > 0.99 or half < 0.27, "Smaller latents drown earlier."
right.axhline(1, linestyle="--", color=figures.SOFT)
right.set(xlabel="time t", title="signal to noise", ylim=(1e-6, 1e4))
right.legend()
figures.show(figure, "Left: four first stages under Stable Diffusion's number. Right: their SNR.")

# %% constant-read [markdown]
r"""
**What to see.** None comes near 1. For our KL model half of the signal is gone, for the VQ model
nine tenths, and its latents drown almost at once. This happened: a library's default of 0.18215
once stood in for the 1 that belongs to the paper's VQ models [5]. Their latents need no scale, the
paper says: the variance is close to 1. Ours need one, 2.02. Measure, and believe nobody.

The schedule moves, so the cure could be another schedule; exercise 3 finds it. Section 6 will train
with a wrong scale and look.

## 3. Encode once

The first stage stands still, so a picture's latent is always the same. Why compute it in every
epoch? `cache_latents` encodes every picture once and keeps the result, as halves.
"""

# %% cache tags=check
keys, short = ("count", "steps", "lr", "warmup", "ema"), (512, 100, 3e-3, 10, 0.98)
settings = dict(zip(keys, short if fast else (2048, 700, 2e-3, 50, 0.995)))  # of our training
began = time.perf_counter()
cache = cache_latents(stage, Scenes("train", count=settings["count"]), progress=False)
print(f"{len(cache)} pictures in {time.perf_counter() - began:.1f} s, {3 * 16 * 16 * 2} bytes each")
test, x = cache_latents(stage, Scenes("test", count=64), progress=False), scenes("test", range(64))
z0_test, labels = test.columns["z"].float().to(device), test.columns["label"].to(device)
off = float((z0_test - encoded(x)).square().mean().sqrt())
print(f"{x[0].numel()} bytes as pixels; rounding changes a latent by {off:.4f}")
assert 8 * 2 * z0_test[0].numel() == x[0].numel(), "Two bytes a number, a sixteenth of the numbers."
assert off < 0.03, "What is cached is what encode says, but for rounding."

# %% stale [markdown]
r"""
**When is a cache wrong?** When something happens to a picture *after* it was cached. Say you flip
half of the pictures, as is usual, and flip the cached latents instead. Is the flipped latent the
latent of the flipped picture? A convolution does not promise that.

And the posterior? The paper draws $z_0$ from it anew at every look. A cache holds its mean, or one
draw. We measure both.
"""

# %% stale-figure tags=figure,check
right_way, wrong_way = encoded(x.flip(3)), encoded(x).flip(3)
mismatch = float((right_way - wrong_way).square().mean().sqrt())
width = float((encoded(x, sample=True) - encoded(x)).square().mean().sqrt())
print(
    f"latents have deviation 1; the flip is off by {mismatch:.2f}, a posterior draw by {width:.3f}"
)
assert mismatch > 10 * width, "A flip is not a small matter, a draw is."
shown = [20, 60, 26, 53, 10, 5]
both = [stage.decode(z[shown]) for z in (right_way, wrong_way)]
words = "Six pictures: flipped before encoding, flipped as latents, and the difference."
left = ("flip, encode,\ndecode", "encode, flip,\ndecode", "difference")
figures.pictures([*both, both[1] - both[0]], words, left=left)

# %% stale-read [markdown]
r"""
**What to see.** The second row is made of latents that no picture has. Suns fade, and houses and
boats are drawn with a trembling hand: this encoder says where an edge is in a way that has a left
and a right. A denoiser would learn to make such latents. So augment first:
`cache_latents(..., epochs=k)` stores k draws of each picture, flipped and cropped anew.

The posterior is narrow here, and the mean will do. That is a fact about this first stage. With a
strong KL term the width would be real information, and the cache should hold draws.
"""

# %% whole [markdown]
r"""
## 4. The whole model

Encode, add noise, ask the denoiser, compare. The denoiser is a small UNet; it is told the class by
one learned vector (notebook 09 has the rest). It predicts $v$, which is good at all times (notebook
05):

$$L = \lVert v - v_\theta(z_t, t, c) \rVert^2, \qquad z_t = \alpha_t z_0 + \sigma_t \varepsilon,
\quad v = \alpha_t\, \varepsilon - \sigma_t z_0$$

In `by_hand` each is one line. We ask the shipped model and ours for the same loss, from the same
picture and the same chance. And we look where the gradient goes.
"""

# %% parts
from ldm_lite.conditioners import Labels, LabelsConfig
from ldm_lite.latent import LatentDiffusion, Noise
from ldm_lite.unet import UNet, UNetConfig

kind = {"width": 32, "mult": (1, 2, 2), "attend_at": (2, 4), "heads": 2, "blocks": 1, "vector": 32}


def fresh(first_stage=stage, kind=kind, seed=4):
    torch.manual_seed(seed)
    labels = Labels(LabelsConfig(cache.label_names, 32, "vector"))
    unet = UNet(UNetConfig(3, **kind))
    return LatentDiffusion(first_stage, unet, Diffusion(schedule, "v"), labels).to(device)


mine, shipped = fresh(), LatentDiffusion.load("scenes-ldm4").to(device)
size = sum(p.numel() for p in mine.denoiser.parameters())
print(f"ours: {size / 1e6:.2f} million weights; shipped: ", end="")
print(f"{sum(p.numel() for p in shipped.denoiser.parameters()) / 1e6:.2f} million")


# %% by-hand tags=check
def by_hand(model, image, label):
    """(B,) the loss of each picture."""
    z0 = model.first_stage.encode(image, sample=True)
    t = schedule.draw(len(z0))
    alpha, sigma = (weight.float().view(-1, 1, 1, 1).to(z0) for weight in schedule(t))
    eps = torch.randn_like(z0)
    z, v = alpha * z0 + sigma * eps, alpha * eps - sigma * z0
    clock = (1000 * t - 1).float().to(z0.device)  # the chain counts its steps from 0
    output = model.denoiser(z, clock, model.conditioner({"label": label}))
    return (v - output).square().mean((1, 2, 3))


for model in (mine, shipped):
    torch.manual_seed(1)
    losses = by_hand(model, x[:5], labels[:5])
    torch.manual_seed(1)
    torch.testing.assert_close(losses, model({"image": x[:5], "label": labels[:5]}))
with torch.enable_grad():
    mine({"image": x[:5], "label": labels[:5]}).mean().backward()
assert all(p.grad is None for p in mine.first_stage.parameters()), "The first stage stands still."
assert any(p.grad.abs().sum() > 0 for p in mine.denoiser.parameters()), "The denoiser learns."

# %% generate [markdown]
r"""
Generating starts at the other end. Noise, then for each step: ask for $v$, read $\hat z_0$ and
$\hat\varepsilon$ from it, and take both to the next time, which is DDIM. Last, the decoder, once.
"""


# %% generate-check tags=check
def drawn(model, label, steps=20, seed=0):
    z, told = Noise(seed, (len(label), 3, 16, 16))(x), model.conditioner({"label": label})
    for t, later in pairwise(schedule.grid(steps)):
        (alpha, sigma), (to_z0, to_eps) = (map(float, schedule(at)) for at in (t, later))
        v = model.denoiser(z, (1000 * t - 1).float().to(z).expand(len(z)), told)
        z = to_z0 * (alpha * z - sigma * v) + to_eps * (sigma * z + alpha * v)
    return model.first_stage.decode(z).clamp(-1, 1).cpu()


four = torch.arange(0, 16, 5).to(device)
theirs = shipped.sample({"label": four}, steps=6, seed=3)
torch.testing.assert_close(drawn(shipped, four, 6, 3), theirs, atol=1e-3, rtol=0)

# %% cost [markdown]
r"""
What did the cache save? A look of the denoiser, and its training, cost operations that can be
counted, on any machine. Training takes about three times a look: forth, back to the inputs, back to
the weights.
"""

# %% cost-check tags=check
from torch.utils.flop_counter import FlopCounterMode

from ldm_lite.condition import Condition


def operations(work):
    with FlopCounterMode(display=False) as counted:
        work()
    return counted.get_total_flops()


def look(net, side):
    told = Condition(vector=torch.zeros(1, 32, device=device))
    return lambda: net(torch.zeros(1, 3, side, side).to(device), torch.zeros(1).to(device), told)


encode, step = operations(lambda: stage.encode(x[:1])), 3 * operations(look(mine.denoiser, 16))
print(
    f"to encode a picture: {encode / 1e6:.0f} million operations; to train on it: {step / 1e6:.0f}"
)
assert encode > 0.2 * step, "Without a cache every step would pay for the encoder too."
print(f"without a cache a step would cost {1 + encode / step:.2f} times as much")

# %% average-idea [markdown]
r"""
## 5. A minute of training, and its average

The last step of training is one step of a random walk: it saw 16 pictures and their noise. An
average over many steps is calmer, and it costs one addition. The paper's code keeps an *exponential
moving average*, and samples with it:

$$\bar\theta_n = d_n\, \bar\theta_{n-1} + (1 - d_n)\, \theta_n, \qquad d_n = \min\left(d,\;
\frac{1 + n}{10 + n}\right)$$

The second part is the warm-up. Without it the average would be made of the random first weights for
a long time: of $\theta_0$ it keeps $d^n$.

`fit` is the package's loop: it draws batches, calls `task.step`, and saves. We let our own average
watch it.
"""

# %% watched
from ldm_lite.training import DiffusionTask, TrainConfig, fit


class Watched(DiffusionTask):
    """The package's task; beside it an average by hand, and one without the warm-up."""

    def __init__(self, model, config):
        super().__init__(model, config)
        self.losses, self.n = [], 0
        self.average, self.cold = ({n: p.clone() for n, p in self.own()} for _ in range(2))

    def own(self):
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def step(self, batch, step):
        with torch.enable_grad():
            numbers = super().step(batch, step)
        self.losses.append(numbers["loss"])
        self.n += 1
        d = min(self.config.ema, (1 + self.n) / (10 + self.n))
        for name, p in self.own():
            self.average[name] = d * self.average[name] + (1 - d) * p
            self.cold[name] = 0.9999 * self.cold[name] + (1 - 0.9999) * p
        return numbers


# %% train tags=check,timeout-900
def train(model, data, **changed):
    own = {name: value for name, value in settings.items() if name != "count"} | changed
    config = TrainConfig(batch=16, betas=(0.9, 0.99), weight_decay=0.0, save_every=10**6, **own)
    task = Watched(model, config)
    with tempfile.TemporaryDirectory() as folder:
        fit(task, data, config, folder)
    return task


task = train(mine, cache)
print(f"{task.n} steps of 16 latents; the average by hand is the package's")
torch.testing.assert_close(task.average, task.descent.ema.average, atol=1e-4, rtol=1e-3)

# %% train-figure tags=figure,check
n, d = task.n, task.config.ema
warm = torch.tensor([min(d, (1 + i) / (10 + i)) for i in range(1, n + 1)], dtype=torch.float64)
later = warm.flip(0).cumprod(0).flip(0)  # what is left of a step at the end: all later decays
share = (1 - warm) * torch.cat([later[1:], torch.ones(1)])
first, none = float(later[0]), 0.9999**n  # what the first weights still count
figure, (left, right) = figures.canvas(9.5, 2.9, columns=2)
window = max(5, n // 35)
left.plot(task.losses, color=figures.LINE)
left.plot(
    range(window // 2, n - window // 2),
    torch.tensor(task.losses).unfold(0, window, 1).mean(1)[: n - 2 * (window // 2)],
)
left.set(xlabel="step", title=f"loss of the batches, and a mean over {window}", ylim=(0, 1.3))
right.plot(range(1, n + 1), share)
right.set(xlabel="step", title="what each step's weights count in the average")
figures.show(figure, "Left: the loss while training. Right: shares of the steps in the average.")
print(f"the first weights count {first:.1e}; with 0.9999 and no warm-up they would: {none:.0%}")
assert abs(float(share.sum()) + first - 1) < 1e-9, "An average: all shares together are 1."
assert sum(task.losses[-20:]) < 0.85 * sum(task.losses[:20]), "The loss should have fallen."

# %% train-read [markdown]
r"""
**What to see.** The loss falls fast and then seems to stand still, and most of its trembling is the
luck of the draw: which times, which noise. On the right, the average is made of the last part of
training, and hardly any of it is from the first steps. The last number printed is a fault to
remember: a long average of a short run is an average of *nothing learned*.

## 6. The loss, time by time

One number hides most. The loss is a mean over all times, and each time is a job of its own. So we
measure each apart: fixed test latents, fixed noise, ten times.

And what should come out? For that there is a *band*. `benchmarks/bands.py` trained this notebook's
model three times, with other seeds, and wrote down what it found, widened by some. A healthy run
lies inside.
"""

# %% by-time
from ldm_lite.course.bands import band

known = band("07_latent_diffusion", "fast" if fast else "full")


def by_time(model, data=test, moments=known.times):
    """The loss on 64 test latents at each of these times."""
    batch, losses = {k: v.to(device) for k, v in data.batch(range(64)).items()}, []
    for t in moments:
        torch.manual_seed(0)
        losses.append(float(model.eval()(batch, times=torch.full((64,), t).double()).mean()))
    return losses


# %% band tags=figure,check
assert known.settings == settings, "A band is of one training: other settings, another band."
raw = by_time(mine)
with task.descent.averaged():
    smooth = by_time(mine)
curves = {"your run, raw weights": raw, "your run, averaged": smooth}
curves["shipped, an hour of training"] = known.shipped
figure, axis = figures.canvas(7.5, 3.1)
axis.fill_between(known.times, known.low, known.high, color=figures.LINE, label="band", alpha=0.6)
for name, values in curves.items():
    axis.plot(known.times, values, "o-", label=name)
axis.axhline(1, linestyle="--", color=figures.SOFT)
axis.set(xlabel="time t", title="loss of v by time; dashed: knowing nothing", ylim=(0, 1.5))
axis.legend(fontsize=8, ncols=2)
figures.show(figure, "The loss by time: the stored band, this run's two, the shipped model's.")
assert all(known.holds(raw)), f"Your run left the band: {[round(v, 3) for v in raw]}"
better = sum(raw) / sum(smooth)
print(f"the raw weights' loss is {better - 1:+.1%} beside the average's")
assert better > (0.93 if fast else 1.0), "The average should not be worse than the last step."

# %% band-read [markdown]
r"""
**What to see.** The curve falls, and rises again a little. With little noise $v$ is nearly the
noise itself, which is hard to see in so little of it. In the middle most can be told from the rest
of the picture. Towards the end $v$ is nearly $-z_0$: the network can only say what such scenes
have in common. Seeds hardly matter, so the band is narrow.

The shipped model is lower everywhere, and most at the left: detail is what an hour buys. Its curve
is the right end of any training here. Ours is a minute old.

Now let three things go wrong, with *the same weights*. The clock runs backwards, as in papers whose
data is at $t = 1$. The output $v$ is taken for $\varepsilon$. The latents come without their scale.
"""


# %% readings
class Backwards(VariancePreserving):
    def clock(self, t):
        return self.steps * (1 - t)


@functools.cache
def read_by(diffusion):
    """The loss by time of our raw weights under another diffusion."""
    return by_time(LatentDiffusion(stage, mine.denoiser, diffusion, mine.conditioner))


def scaled(data, k):
    """Cached latents, k times as large."""
    z = (k * data.columns["z"].float()).half()
    return Latents(data.columns | {"z": z}, data.label_names)


# %% readings-figure tags=figure,check
wrong = {"clock backwards": read_by(Diffusion(Backwards(), "v"))}
wrong["v taken for eps"] = read_by(Diffusion(schedule, "eps"))
wrong["latents without scale"] = by_time(mine, scaled(test, 1 / s))
figure, axis = figures.canvas(7.5, 3.1)
axis.fill_between(known.times, known.low, known.high, color=figures.LINE, label="band")
for name, values in wrong.items():
    axis.plot(known.times, values, "o-", label=name)
    outside = len(values) - sum(known.holds(values))
    print(f"{name}: outside at {outside} of {len(values)} times")
    # after seconds of training a network hardly looks at its clock yet
    assert outside >= (0 if fast and "clock" in name else 3), "It must leave the band."
axis.set(xlabel="time t", title="loss by time, same weights, read wrongly", yscale="log")
axis.set(yticks=(0.3, 1, 3, 10), yticklabels=("0.3", "1", "3", "10"), ylim=(0.25, 25))
axis.minorticks_off()
axis.legend(fontsize=8, ncols=2)
figures.show(figure, "The same weights' loss by time under three wrong readings; the band.")

# %% readings-read [markdown]
r"""
**What to see.** The missing scale is worst: a loss of several times 1, which no healthy run has at
any time. $v$ taken for $\varepsilon$ is near the band early, where the two are nearly the same, and
later as bad as knowing nothing. The clock is right in the middle, where both clocks agree, and
wrong to both sides, the more so the longer a network was trained. The shape names the fault.

**Predict before you run.** Now not a wrong reading, but a whole training: the same network, the
same steps, in latents with the 0.18215 of a VQ model, k = 0.09 times as large as they should be.
Write down: will its loss be higher than ours, the same, or lower? And its samples?
"""

# %% thin tags=check,timeout-900
k = factor["scenes-vq-f4"]
smaller = copy.deepcopy(stage)
smaller.scale.mul_(k)
thin = fresh(smaller)
thin_task = train(thin, scaled(cache, k), **({"steps": 40} if fast else {}))
thin_loss = by_time(thin, scaled(test, k))
print(
    f"mean loss by time: ours {sum(raw) / 10:.3f}, with the wrong scale {sum(thin_loss) / 10:.3f}"
)
assert sum(thin_loss) < 0.6 * sum(raw), "Smaller latents, smaller loss: section 1 said so."
assert sum(known.holds(thin_loss)) <= 5, "The band knows."

# %% thin-figure tags=figure
from ldm_lite.data.scenes import read_label

every = torch.arange(16)
some = {"label": every.to(device)}
look_at = {"sampler": "dpm_solver", "steps": 12, "seed": 5}
sheets = {}
with task.descent.averaged():
    sheets["our scale"] = mine.sample(some, **look_at)
with thin_task.descent.averaged():
    sheets["0.09 of it"] = thin.sample(some, **look_at)
sheets["shipped,\nour scale"] = shipped.sample(some, **look_at)
for name, sheet in sheets.items():
    right = float((read_label(sheet) == every).float().mean())
    print(f"{name.replace(chr(10), ' ')}: {right:.0%} read back as their class")
assert right > 0.8, "What an hour buys: sky and ground are what was asked for."
words = "Six classes, sampled by our model, by one trained with a wrong scale, by the shipped one."
figures.pictures([sheet[::3] for sheet in sheets.values()], words, left=list(sheets))

# %% thin-read [markdown]
r"""
**What to see.** A loss far below ours, and worse pictures: light and ground are there, and hardly a
thing. In so small latents nearly all times are nearly pure noise, so that is what nearly all of the
training went to. And the least noise of the chain, of deviation 0.04, is half as large as they are,
so the last step leaves grain. Under the loss of section 1 all of this looks like success.

## 7. Was it worth it? A race

LDM-1 is the same model without a first stage: diffusion in pixels (notebook 05). We give it a UNet
with as many weights, and both as many operations: not seconds, since neither fills a large GPU.

**Predict before you run.** How many more steps will the latent model make? Which pictures will be
better, and would you bet on the same after a week?
"""

# %% race tags=check
from ldm_lite.autoencoder import Pixels
from ldm_lite.features import Features
from ldm_lite.metrics import kid

in_pixels = kind | {"width": 24, "mult": (1, 1, 2, 3), "attend_at": (4, 8)}
racers = {"latents": fresh(), "pixels": fresh(Pixels(), in_pixels)}
weights = {name: sum(p.numel() for p in m.denoiser.parameters()) for name, m in racers.items()}
pixel_cost = operations(look(racers["pixels"].denoiser, 64)) / operations(look(mine.denoiser, 16))
print(f"{weights}; a look at pixels costs {pixel_cost:.1f} times as much")
assert 0.9 < weights["pixels"] / weights["latents"] < 1.1, "Matched in weights, within a tenth."
assert pixel_cost > 5, "Sixteen times as many places to look at."


# %% raced
def raced(model, data, steps):
    """Trains on so many batches of 16. Returns the task and the seconds without reading data."""
    config = TrainConfig(lr=2e-3, warmup=10, ema=0.98, betas=(0.9, 0.99), weight_decay=0.0)
    runner, spent = DiffusionTask(model, config), 0.0
    for n in range(steps):
        rows = torch.randint(len(cache), (16,), generator=torch.Generator().manual_seed(n))
        batch = {k: v.to(device) for k, v in data.batch(rows.tolist()).items()}
        batch |= {k: v / 127.5 - 1 for k, v in batch.items() if k == "image"}
        began = time.perf_counter()
        torch.enable_grad()(runner.step)(batch, n)
        spent += time.perf_counter() - began
    return runner, spent


# %% race-figure tags=figure,timeout-900
features, sheets, gap = Features("scenes").to(device), {"test": x[:16].cpu()}, {}
real, budget = features(x).cpu(), 24 if fast else 210
for name, data in {"pixels": Scenes("train"), "latents": cache}.items():
    steps = budget if name == "latents" else round(budget / pixel_cost)
    runner, spent = raced(racers[name], data, steps)
    with runner.descent.averaged():
        sheets[name] = racers[name].sample(some, **look_at | {"steps": 5 if fast else 12})
    gap[name] = kid(real, features(sheets[name].to(device)).cpu())[0]
    print(f"{name}: {steps} steps, {spent:.1f} s, KID of 16 samples {gap[name]:.1f}")
words = "Test pictures; samples of the pixel model and of the latent model after equal work."
figures.pictures([sheet[::3] for sheet in sheets.values()], words, left=list(sheets))
assert fast or gap["latents"] < gap["pixels"] / 3, "The latent model must be far ahead by now."

# %% race-read [markdown]
r"""
**What to see.** After as many operations one model has colours and light, and the other has hardly
begun: every look at pixels costs six times as much, and so it made a sixth of the steps. (KID is a
distance of two crowds of pictures, 0 for equals: notebook 12.)

What does it show? One seed, a small budget, one kind of data: the *start* of a race. That the
latent model is ahead here is as sure as the pictures are plain. Who wins after days, this cannot
say: the latent model can never beat its decoder, and pixels have no such limit. Also, the latent
model was given a first stage that somebody else had paid for. `benchmarks/race.py` runs the long
form.
"""

# %% gates-idea [markdown]
r"""
## 8. Break it: why are my samples bad?

Anything can be the reason. But the parts can be asked one by one, in an order in which each gate
trusts only those before it:

1. **Reconstruct.** Do pictures survive the first stage?
2. **Statistics.** Have the latents that you train on deviation 1?
3. **Overfit one batch.** Can the loss go to nothing at all?
4. **Loss by time.** Is it in the band?
5. **Partly noised.** From real latents with some noise: does the sampler come home about as near
   as a single look does?
6. **Swap.** Our denoiser, the rest yours: good pictures? Then yours has to train on. If not, look
   behind the sampler. (A first stage of your own can be swapped as well.)
7. **Averages.** Are the averaged weights as good as the raw ones?

The first three come before any training.
"""

# %% systems
rule = mine.diffusion
sound = {
    "prepare": lambda pixels: pixels.float() / 127.5 - 1,  # what the encoder reads
    "encode": stage.encode,  # what is cached
    "training": rule,
    "sampling": rule,
    "decode": stage.decode,  # what the sampling script does with a latent
    "average": task.average,
}


# %% faults
import warnings
from types import SimpleNamespace

from ldm_lite.metrics import psnr
from ldm_lite.samplers import ddim, last, predictor


class Redrawn(Diffusion):
    def target(self, z0, eps, t):
        return super().target(z0, torch.randn_like(eps), t)


class Rootless(VariancePreserving):
    def __call__(self, t):
        alpha, sigma = super().__call__(t)
        return alpha**2, sigma**2


as_eps = Diffusion(schedule, "eps")
faults = {
    "A": {"prepare": lambda pixels: pixels.float() / 255},
    "B": {"encode": lambda image: stage.code(image, sample=False).mean},
    "C": {"training": Redrawn(schedule, "v")},
    "D": {"training": as_eps, "sampling": as_eps},
    "E": {"sampling": Diffusion(Rootless(), "v")},
    "F": {"decode": lambda z: stage.picture(z * stage.scale)},
    "G": {"average": task.cold},
}
systems = {n: SimpleNamespace(**sound | fault) for n, fault in ({"sound": {}} | faults).items()}

# %% systems-read [markdown]
r"""
Seven systems with one fault each, and one without. Read the code and you know them all; try first
to *see* them. A, B and C are faults of training, and their owners have not trained yet. D to G have
your weights, and have drawn pictures.
"""


# %% puzzle
def walk(s, model, z, label, times):
    """The latent at the end of the times, from z at their first, by the system's sampler."""
    predict = predictor(model.denoiser, s.sampling, model.conditioner({"label": label}))
    return last(ddim(predict, z, times, s.sampling.schedule))


def averaged(s):
    model = fresh()
    model.load_state_dict(s.average, strict=False)
    return model.eval()


# %% puzzle-figure tags=figure
sheets, asked = {}, every[::3].to(device)
for name in ("sound", "D", "E", "F", "G"):
    system, begin = systems[name], Noise(5, (16, 3, 16, 16))(x)[::3]
    z = walk(system, averaged(system), begin, asked, schedule.grid(12 if fast else 20))
    sheets[name] = system.decode(z).clamp(-1, 1)
words = "Samples of the same six classes: the sound system, and four with one fault each."
figures.pictures(list(sheets.values()), words, left=list(sheets))

# %% puzzle-read [markdown]
r"""
**What to see.** D is cells of too much contrast, F is mud, G is noise in the colours of pictures.
And E? It looks smooth, and if you had no sound row above it you might call it good. Which part is
broken in each? Write down a guess, then let the gates speak.
"""


# %% gates
def reconstruct(s):
    pixels = Scenes("test").batch(range(16))["image"].to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of what this gate looks for
        back = stage.decode(stage.encode(s.prepare(pixels)))
    value = float(psnr(back, pixels.float() / 127.5 - 1).mean())
    return value > 22, f"{value:.0f} dB"


def statistics(s):
    deviation = float(s.encode(x).std())
    return 0.8 < deviation < 1.25, f"{deviation:.2f}"


# %% overfit-gate
@functools.cache
def overfitted(diffusion, steps=45):
    """What is left of the loss on four latents, with one noise, after some steps."""
    model, z0, t = fresh(), z0_test[:4], torch.tensor([0.1, 0.2, 0.3, 0.4])
    told, eps = model.conditioner({"label": labels[:4]}), torch.randn_like(z0)
    optimizer, losses = torch.optim.Adam(model.denoiser.parameters(), 2e-3), []
    net = lambda z, clock: model.denoiser(z, clock, told)
    for _ in range(steps):
        with torch.enable_grad():
            loss = diffusion.loss(net, z0, eps, t).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[-1] / losses[0]


def overfit(s):
    left = overfitted(s.training)
    return left < 0.4, f"{left:.0%} left"


# %% more-gates-idea [markdown]
r"""
The rest needs a trained denoiser. For the sixth, `swap`, that is ours, an hour old: if it draws
good pictures in somebody's system, that system is sound behind the denoiser.
"""


# %% more-gates
def times_in_band(s):
    inside = sum(known.holds(read_by(s.training)))
    return inside == 10, f"{inside} of 10"


def partly_noised(s):
    times = schedule.grid(20)[16:]  # from t = 0.2
    eps = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    z = rule.noised(z0_test[:16], eps, times[0])
    home = walk(s, mine, z, labels[:16], times)
    at_once = walk(SimpleNamespace(sampling=rule), mine, z, labels[:16], times[[0, -1]])
    far, near = (float((found - z0_test[:16]).square().mean()) for found in (home, at_once))
    return far / near < 1.8, f"{far / near:.1f} times"


@functools.cache
def theirs_by(sampling):
    """The shipped denoiser's latents, one for each class, by this way of sampling."""
    s, begin = SimpleNamespace(sampling=sampling), Noise(5, (16, 3, 16, 16))(x)
    return walk(s, shipped, begin, every.to(device), schedule.grid(12))


def swap(s):
    z = theirs_by(s.sampling)
    share = float((read_label(s.decode(z).clamp(-1, 1)) == every).float().mean())
    return share > 0.7, f"{share:.0%} read"


def averages(s):
    ratio = sum(by_time(averaged(s), moments=known.times[2::3])) / sum(raw[2::3])
    return ratio < 1.1, f"{ratio:.2f} times"


gates = (reconstruct, statistics, overfit, times_in_band, partly_noised, swap, averages)

# %% table tags=figure,check
verdicts = {}
figure, axis = figures.canvas(9.5, 3.4)
for i, (name, system) in enumerate(systems.items()):
    passed = True
    for j, gate in enumerate(gates):
        if not passed:
            axis.barh(-i, 0.94, 0.84, left=j - 0.47, color=figures.PALE)
            continue
        passed, said = gate(system)
        colour = figures.GREEN if passed else figures.RED
        axis.barh(-i, 0.94, 0.84, left=j - 0.47, color=colour)
        axis.text(j, -i, said, color="white", ha="center", va="center", fontsize=8)
        if not passed:
            verdicts[name] = j
axis.set_xticks(range(7), [gate.__name__.replace("_", " ") for gate in gates], fontsize=8)
axis.set_yticks([-i for i in range(8)], list(systems))
axis.set_xlim(-0.5, 6.5)
axis.grid(False)
figures.show(figure, "Eight systems, seven gates: passed green, stopped red, not asked pale.")
assert "sound" not in verdicts, "The sound system must pass every gate."
assert verdicts == {name: j for j, name in enumerate("ABCDEFG")}, "Each fault has its gate."

# %% table-read [markdown]
r"""
**What to see.** Each fault stops at a gate of its own, and its gate names the part:

- **A** gave pictures in [0, 1] to an encoder that was trained on [−1, 1], as a published course did
  for years (notebook 01).
- **B** cached latents before they were scaled.
- **C** drew the noise of the target anew, so there is nothing to learn.
- **D** has a settings file that says `eps`, and weights that say $v$.
- **E** has a sampler without the square root: $\bar\alpha$ for $\alpha$, as in notebook 05.
- **F** multiplied by the scale before decoding, in place of dividing.
- **G** averaged with 0.9999 and no warm-up.

And where all gates pass and pictures are still poor, like ours? Then nothing is broken, and it has
to train on. That is worth knowing too.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% decay [exercise] title="A decay for your run" difficulty=1 minutes=4
r"""
You will train for `n` steps, and average without a warm-up. Which decay $d$ leaves `left` of the
first weights in the average at the end? Write it for any `n`.
"""


# %% [stub]
def decay(n, left=0.01):
    return ...


# %% [check]
from ldm_lite.course.checks import check

praise = "For 700 steps that is 0.9934, and 0.9999 suits 46,000."
with check(
    "A decay for your run", "decay still returns ...: what is left after n steps?", praise
) as c:
    for n, left in ((100, 0.01), (700, 0.01), (46_000, 0.05)):
        mistakes = {
            "That is a memory of n steps: e^-1 = 37 % of the first weights stay.": 1 - 1 / n,
            "What is left is d to the power of n; solve for d.": left**n,
            "One step does not take 1 - left, all n together do.": 1 - (1 - left) / n,
        }
        c.close(decay(n, left), left ** (1 / n), f"Wrong for n = {n}.", 1e-9, 1e-9, mistakes)


# %% [solution]
def decay(n, left=0.01):
    return left ** (1 / n)


# %% [wrong]
def decay(n, left=0.01):
    return 1 - 1 / n


# %% together [exercise] title="One scale for all" difficulty=2 minutes=8
r"""
Several processes have each looked at their own latents. Each knows how many numbers it saw, their
mean and their deviation: `parts` is a list of `(n, mean, std)`. What scale should *all* of them
use? It must be what one process would have found that saw everything.
"""


# %% [stub]
def together(parts):
    return ...


# %% [check]
praise = "The package adds up three sums over all ranks; yours is the same number."
with check("One scale for all", "together still returns ...", praise) as c:
    generator = torch.Generator().manual_seed(2)
    for sizes_, shift in (((300, 500), 0.0), ((200, 700, 90), 2.0)):
        seen_ = [
            2.5 * torch.randn(n, generator=generator).double() + shift * i
            for i, n in enumerate(sizes_)
        ]
        parts = [(len(z), float(z.mean()), float(z.std(correction=0))) for z in seen_]
        n = sum(sizes_)
        inside = sum(m * d**2 for m, _, d in parts) / n
        mistakes = {
            "Parts of other sizes count differently.": sum(1 / d for *_, d in parts) / len(parts),
            "The means differ too, and that is spread.": inside**-0.5,
            "Deviations cannot be averaged, variances can.": n / sum(m * d for m, _, d in parts),
        }
        right = 1 / float(torch.cat(seen_).std(correction=0))
        c.close(together(parts), right, "It should be 1 / std of all.", 1e-6, 1e-9, mistakes)


# %% [solution]
def together(parts):
    n = sum(m for m, _, _ in parts)
    first = sum(m * mean for m, mean, _ in parts) / n
    second = sum(m * (std**2 + mean**2) for m, mean, std in parts) / n
    return (second - first**2) ** -0.5


# %% [wrong]
def together(parts):
    n = sum(m for m, _, _ in parts)
    return (sum(m * std**2 for m, _, std in parts) / n) ** -0.5


# %% same-noise [exercise] title="The schedule that undoes a scale" difficulty=2 minutes=12
r"""
Latents that are $k$ times too large, at time $t$, are as noisy as right ones at another time.
Write `same_noise(t, k)`: the time (or times, a tensor) at which `schedule` has the signal to noise
of section 2, $k^2 \alpha_t^2 / \sigma_t^2$. A table of ratios and `torch.searchsorted` will do.
"""


# %% [stub]
def same_noise(t, k):
    # table = torch.linspace(0, 1, 100_001).double()
    return ...


# %% [check]
praise = "So a wrong scale is a schedule that nobody chose, and can be undone by another."
with check("The schedule that undoes a scale", "same_noise still returns ...", praise) as c:
    ratio = lambda t: schedule(t)[0] / schedule(t)[1]
    t = torch.tensor([0.1, 0.2, 0.35, 0.5], dtype=torch.float64)
    for k in (0.5, 1.0, 2.0):
        mine_ = same_noise(t, k)
        c.answered(mine_)
        c.that(mine_.shape == t.shape, "One time for each time.")
        said_ = ratio(mine_.double())
        mistakes = {
            "The latents are k times larger, not smaller: smaller ones are noisier.": ratio(t) / k,
            "SNR has squares: alpha / sigma changes by k, not by k².": k**2 * ratio(t),
        }
        c.close(said_, k * ratio(t), f"Wrong for k = {k}.", 1e-2, 1e-4, mistakes)


# %% [solution]
def same_noise(t, k):
    table = torch.linspace(0, 1, 100_001).double()
    alpha, sigma = schedule(table)
    wanted, noise = schedule(t)
    return table[torch.searchsorted(sigma / alpha, noise / (k * wanted)).clamp(max=100_000)]


# %% [wrong]
def same_noise(t, k):
    table = torch.linspace(0, 1, 100_001).double()
    alpha, sigma = schedule(table)
    wanted, noise = schedule(t)
    return table[torch.searchsorted(sigma / alpha, k * noise / wanted).clamp(max=100_000)]


# %% eighth [exercise] title="An eighth gate" difficulty=3 minutes=12
r"""
All seven gates pass, the pictures are good, and are of the wrong class. Write `listens(losses)`.
It gets a function: `losses(label)` is the mean loss late in time, with these labels (64,) told to
the model for the test latents. `labels` are the true ones, and 16 tells nothing. Return
`"listens"`, `"deaf"`, or `"other names"` if the model learned the classes in another order.
"""


# %% [stub]
def listens(losses):
    return ...


# %% [check]
def losses_of(heard):
    def losses(label):
        torch.manual_seed(0)
        batch = {"z": z0_test, "label": heard(label.to(device))}
        return float(shipped(batch, times=torch.full((64,), 0.8).double()).mean())

    return losses


order = torch.cat([torch.arange(16).view(4, 4).T.flatten(), torch.tensor([16])]).to(device)
ears = {
    "the shipped model": (lambda label: label, "listens"),
    "one that hears nothing": (lambda label: torch.full_like(label, 16), "deaf"),
    "one that counts grounds first, then times of day": (lambda label: order[label], "other names"),
}
with check("An eighth gate", "listens still returns ...", "And it needs no sample.") as c:
    for name, (heard, right) in ears.items():
        found = listens(losses_of(heard))
        c.answered(found)
        c.that(found == right, f"{name} is {right!r}; you say {found!r}.")


# %% [solution]
def listens(losses):
    told, untold = losses(labels), losses(torch.full_like(labels, 16))
    if abs(told / untold - 1) < 0.005:
        return "deaf"
    return "listens" if told < untold else "other names"


# %% [wrong]
def listens(losses):
    told, other = losses(labels), losses(labels.roll(1))
    return "listens" if told < other else "deaf"


# %% summary [markdown]
r"""
## Summary

- The first stage is frozen: the denoiser's loss would only make latents small. A loss compares
  only with losses in the same latents.
- The scale is one number, 1 / deviation over all channels and many pictures. A copied constant is
  another schedule.
- Cache latents after every augmentation, never before.
- Loss, sampler and average are a few lines each; ours and the package's agree.
- A band by time tells a healthy run from a broken one; the mean loss does not.
- Seven gates, in order, name the broken part without a look at a sample.

**What next.** Notebook 08 asks how few steps the sampler can do with. 09 lets the model listen to
text. 13 returns to the race, with all factors and a judge.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine. *Analyzing and Improving the
   Training Dynamics of Diffusion Models.* CVPR 2024: averages, after the fact.
   [arXiv 2312.02696](https://arxiv.org/abs/2312.02696)
3. A. Vahdat, K. Kreis, J. Kautz. *Score-based Generative Modeling in Latent Space.* NeurIPS 2021:
   both halves at once, and what it takes. [arXiv 2106.05931](https://arxiv.org/abs/2106.05931)
4. T. Chen. *On the Importance of Noise Scheduling for Diffusion Models.* 2023: scale as a schedule.
   [arXiv 2301.10972](https://arxiv.org/abs/2301.10972)
5. huggingface/diffusers, issue 6725: a scale of 0.18215 for a model that has 1.
   [github.com](https://github.com/huggingface/diffusers/issues/6725)
"""
