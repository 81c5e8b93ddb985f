r"""
title: Super-resolution and inpainting
goal: Give a picture to the model, and measure what it keeps and what it makes up
needs: Notebooks 05 and 08, or the sampler's six lines in notebook 00; a little probability
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: scenes four times as large, a house taken out of a picture, and a fair vote on both
objectives:
  - make a picture small without aliasing, and say why a model fails on other small pictures
  - tell a denoiser a picture by setting it beside the latent, at any size
  - prove which answer PSNR likes best, and say what it costs and who would notice
  - fill a hole in two ways, say why one of them cannot be exact, and measure both
  - ask people which of two pictures they prefer, and say how much a few votes mean
"""

# %% the-idea [markdown]
r"""
**What to see.** Again only the condition is in colour. But now it is not a word or a class: it is a
*picture*, small or with a hole. The model has to keep what it is given and make up the rest.

So: what is kept, and how exactly? What is made up, and is it any good? The second question has a
trap, and section 3 walks into it.
"""

# %% start
import math

import torch
import torch.nn.functional as F
from einops import rearrange

from ldm_lite.data import Scenes
from ldm_lite.data.tasks import bsr, smaller

torch.set_grad_enabled(False)  # nothing is trained today


def scenes(rows, size=64):
    """Test images (B, 3, size, size) in [-1, 1]."""
    return Scenes("test", size).batch(rows)["image"].float() / 127.5 - 1


# %% alias-idea [markdown]
r"""
## 1. Making a picture small

To enlarge pictures one needs small ones to learn from. How they are made looks trivial, and decides
what the model will be good for.

The quick way is to keep every $k$-th pixel. A wave of $f$ periods a pixel is then seen at the
places $kn$ only. Whole turns between two looks do not show, so for any whole number $m$

$$\cos(2 \pi f\, k n) = \cos\bigl(2 \pi (f k - m)\, n\bigr)$$

If more than half a turn lies between two looks, some $m$ makes the wave a slower one, which was
never there. That is *aliasing*.
"""

# %% alias tags=check
k, places = 4, torch.arange(64)
for f in (0.05, 0.22, 0.30):
    seen = torch.cos(2 * math.pi * f * places)[::k]
    folded = f * k - round(f * k)
    twin = torch.cos(2 * math.pi * folded * torch.arange(len(seen)))
    torch.testing.assert_close(seen, twin, atol=1e-4, rtol=0)
    print(f"{f * k:.2f} turns between two looks pass for {abs(folded):.2f}")

# %% bicubic-idea [markdown]
r"""
The cure is to take away, before, what cannot be shown after. *Bicubic* resizing makes each new
pixel a weighted sum of old ones, with Keys' piecewise cubic as the weights [1]. It reaches two
pixels to either side, which is right for enlarging. Made small by 4, the middle two of four pixels
count, and the outer two count *against* them. With *antialiasing* the cubic is stretched by $k$.

Two libraries may both say "bicubic" and mean different things. Torch's is stretched, with $a =
-0.5$, if you ask for antialiasing, as Pillow's is, and otherwise narrow, with $a = -0.75$.
"""


# %% bicubic tags=check
def cubic(x, a):
    """Keys' weights: 1 at 0, and 0 at every other whole number."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def shares(n, k, stretch, a):
    """(n / k, n): how much of every old pixel goes into each new one."""
    centres = (torch.arange(n // k) + 0.5) * k - 0.5
    weight = cubic((torch.arange(n) - centres[:, None]) / stretch, a)
    return weight / weight.sum(1, keepdim=True)


def small(images, k, stretch=None, a=-0.5):
    down, across = (shares(n, k, stretch or k, a) for n in images.shape[2:])
    return torch.einsum("yh,bchw,xw->bcyx", down, images, across).clamp(-1, 1)


x = scenes(range(6))
for k in (2, 4, 8):
    torch.testing.assert_close(small(x, k), smaller(x, k), atol=1e-5, rtol=0)
narrow = F.interpolate(x, scale_factor=1 / 4, mode="bicubic").clamp(-1, 1)
torch.testing.assert_close(small(x, 4, 1, a=-0.75), narrow, atol=1e-5, rtol=0)

# %% aliasing-figure tags=figure
radius = torch.hypot(*torch.meshgrid(*[torch.arange(128) - 63.5] * 2, indexing="ij"))
rings = torch.cos(math.pi * 0.35 / 64 * radius**2).expand(1, 3, -1, -1)  # faster outwards
rows = []
for picture in (rings, scenes([17], 128)):
    three = picture[..., ::4, ::4], small(picture, 4, 1, a=-0.75), small(picture, 4)
    rows.append(torch.cat([picture, *(figures.enlarged(one, 128, 128) for one in three)]))
above = ("128 pixels", "every 4th pixel", "bicubic, narrow", "bicubic, antialiased")
figures.pictures(rows, "Rings and a scene: large, and made small in three ways.", above=above)
hidden = figures.enlarged(radius[None, None], 32, 32)[0, 0] > 40  # too fine for 32 pixels
ghost = {way: float(row[:, ::4, ::4][:, hidden].std()) for way, row in zip(above[1:], rows[0][1:])}
print("deviation where nothing can be shown:", {way: round(v, 2) for way, v in ghost.items()})
assert ghost["bicubic, antialiased"] < 0.2 * ghost["every 4th pixel"], "Smooth first, then skip."

# %% aliasing-read [markdown]
r"""
**What to see.** Upper row: rings that are too fine for 32 pixels should vanish into grey. Only the
last picture does that. In the others new rings appear, each the twin of a finer one. Below, the
same happens to a scene, and is harder to see: edges are ragged, stars come and go. A model that
learns from the third column learns that ragged edges mean smooth ones.
"""

# %% degradations-figure tags=figure
import numpy as np


def bad(images, k=4, seed=0):
    """Small pictures as they may come from anywhere: blurred, noisy, compressed."""
    random = [np.random.default_rng([seed, i]) for i in range(len(images))]
    return torch.stack([bsr((x + 1) / 2, k, r) for x, r in zip(images, random)]) * 2 - 1


rows = []
for row in (8, 31):
    picture = scenes([row])
    kinds = [picture, *(smaller(picture, k) for k in (2, 4, 8))]
    kinds += [bad(picture, 4, seed) for seed in (0, 1, 2)]
    rows.append(torch.cat([figures.enlarged(one, 64, 64) for one in kinds]))
above = ["64 pixels", "× 2", "× 4", "× 8", "bad, × 4", "bad, × 4", "bad, × 4"]
words = "Two scenes made small by 2, 4 and 8 with antialiasing, and by 4 in three bad ways."
figures.pictures(rows, words, above=above)

# %% degradations-read [markdown]
r"""
**What to see.** Each halving leaves a quarter of the numbers. At $\times 8$ a house is a few
pixels, and no method can know its windows.

The last three columns are for photographs from anywhere, which were blurred, resized and compressed
before you got them. `bsr` imitates that [2]: blur, two resizings, noise and JPEG, of random
strength in random order, and JPEG again. The paper trained a model on such pictures, because the
one trained on clean bicubic failed on photographs. Section 5 shows how ours fails.
"""

# %% concat-idea [markdown]
r"""
## 2. Beside the latent

Our model enlarges by 4, and its first stage has $f = 4$. So the small picture is exactly as large
as the latent: 16 × 16. There is nothing to encode. It is set *beside* the latent, as three more
channels, through the door `concat` of a `Condition`.

A convolution is a sum over its input channels, so the network's first layer splits:

$$W * [z, c] = W_z * z + W_c * c$$

The picture adds a map of its own to the first features. What was at a place in the small picture
arrives at the same place.
"""

# %% concat tags=check
from ldm_lite.latent import LatentDiffusion, Noise

model = LatentDiffusion.load("scenes-upscale").to(device)
stage, schedule, stem = model.first_stage, model.diffusion.schedule, model.denoiser.stem
low = smaller(x, 4).to(device)
z = Noise(0, (len(x), 3, 16, 16))(low)
of_both, bias = stem(torch.cat([z, low], 1)), stem.bias
apart = F.conv2d(z, stem.weight[:, :3], bias, 1, 1) + F.conv2d(low, stem.weight[:, 3:], None, 1, 1)
torch.testing.assert_close(of_both, apart, atol=1e-4, rtol=1e-4)
told, blank = model.conditions({"low": low})
assert torch.equal(told.concat, low), "With factor = f, the door gets the picture as it is."
assert blank is None, "There is no blank picture, so no guidance: nobody can exaggerate a given."

# %% sampling-idea [markdown]
r"""
Training is as ever: noise a latent, set the small picture beside it, learn to undo the noise. So is
sampling, with three input channels more, which are the same at every step. Here is the whole loop;
`editing.upscaled` is the package's.
"""

# %% sampling tags=check
from itertools import pairwise

from ldm_lite.condition import Condition
from ldm_lite.editing import upscaled
from ldm_lite.samplers import predictor


def enlarged(low, steps, seed=0):
    """(B, 3, 4 h, 4 w) in [-1, 1] from (B, 3, h, w)."""
    predict = predictor(model.denoiser, model.diffusion, Condition(concat=low))
    z = Noise(seed, (len(low), 3, *low.shape[2:]))(low)
    for t, s in pairwise(schedule.grid(steps)):
        z0, eps = predict(z, t)
        alpha, sigma = (float(weight) for weight in schedule(s))
        z = alpha * z0 + sigma * eps
    return stage.decode(z).clamp(-1, 1).cpu()


mine, theirs = enlarged(low[:2], 6), upscaled(model, low[:2], steps=6)
torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)

# %% upscale-figure tags=figure
few = {"sampler": "dpm_solver", "grid": "quadratic", "steps": 8 if fast else 12}  # notebook 08
bicubic = lambda low: F.interpolate(low, (64, 64), mode="bicubic").clamp(-1, 1)
shown = scenes([8, 12, 31, 40, 22])
low = smaller(shown, 4)
rows = [low, bicubic(low), upscaled(model, low.to(device), seed=1, **few), shown]
words = "Five test scenes: given at 16 pixels, enlarged by bicubic, by the model, and the truth."
left = ("given,\n16 pixels", "bicubic", "the model", "the truth,\n64 pixels")
figures.pictures([figures.enlarged(row, 64, 64) for row in rows], words, left=left)

# %% upscale-read [markdown]
r"""
**What to see.** Bicubic makes blur of the pixels, and no more. The model draws edges, windows and
grass. What the small picture says, the last rows share. What it does not say is made up: grass and
stars stand elsewhere, and so may a window. Which is which? Section 4 makes the model say it.
"""

# %% predict-first [markdown]
r"""
## 3. Why PSNR and eyes disagree

Is it *better* than bicubic? By which measure? We draw many samples of each small picture and
compare four answers: bicubic, one sample, the mean of all samples, and the truth sent through the
first stage, which is the best that a sample can be.

**Predict before you run.** Write down who wins by PSNR, a mean squared error on a logarithmic
scale. By how many dB does the mean beat a sample, or a sample the mean? Which of the four has the
least fine texture?
"""

# %% many tags=timeout-600
n, N = (24, 8) if fast else (64, 16)
truth = scenes(range(100, 100 + n))
low = smaller(truth, 4)
copies = low.repeat_interleave(N, 0).to(device)
samples = rearrange(upscaled(model, copies, seed=2, **few), "(n N) c y x -> n N c y x", N=N)
mean = samples.mean(1)

# %% mean-idea [markdown]
r"""
Let $s_1 \dots s_N$ be pictures, $\bar s$ their mean, and $c$ any other. Add and subtract $\bar s$
in the error. The mixed terms cancel, and

$$\frac1N \sum_j |s_j - c|^2 = |\bar s - c|^2 + \frac1N \sum_j |s_j - \bar s|^2$$

Read it twice. If the $s_j$ are all truths that fit the small picture $y$, and $c$ is your answer,
then the error is least for $c = \bar s$, which is $\mathbb E[x \mid y]$. If the $s_j$ are samples
and $c$ is the truth, then their mean is nearer to it than they are on average: *always*. Were the
truth just one more sample, and $N$ large, both terms on the right would be equal: half the error,
3 dB.
"""

# %% identity tags=check
square = lambda a, b: (a - b).square().mean()
spread = square(samples, mean[:, None])
torch.testing.assert_close(square(samples, truth[:, None]), square(mean, truth) + spread)
error = [float(square(samples[:, :m].mean(1), truth)) for m in range(1, N + 1)]
noise = float(spread) * N / (N - 1)  # of single samples about the mean of infinitely many
theory = [error[-1] + noise * (1 / m - 1 / N) for m in range(1, N + 1)]
print(f"error of one sample {error[0]:.4f}, of the mean {error[-1]:.4f}; spread {noise:.4f}")

# %% judges-idea [markdown]
r"""
That was arithmetic. Now all four answers and five measures. `texture` is the share of waves shorter
than four pixels, against the truth's. FID compares sets, seen by a small network.
"""

# %% judges
from ldm_lite.features import Features
from ldm_lite.losses import LPIPS
from ldm_lite.metrics import fid, high_frequency, psnr, ssim

features = Features("scenes").to(device)
see = lambda images: features(images.to(device)).cpu()
distance = LPIPS(features)
through = stage.decode(stage.encode(truth.to(device))).clamp(-1, 1).cpu()
answers = {"bicubic": bicubic(low), f"mean of {N}": mean, "one sample": samples[:, 0]}
answers["truth, decoded"] = through
measures = {
    "PSNR": lambda a: psnr(a, truth).mean(),
    "SSIM": lambda a: ssim(a, truth).mean(),
    "LPIPS": lambda a: distance(a.to(device), truth.to(device)).mean(),
    "FID": lambda a: fid(see(truth), see(a)),
    "texture": lambda a: high_frequency(a).mean() / high_frequency(truth).mean(),
}
table = {name: {m: float(f(a)) for m, f in measures.items()} for name, a in answers.items()}
for name, row in table.items():
    print(f"{name:15}", "  ".join(f"{m} {v:.3g}" for m, v in row.items()))

# %% judges-check tags=check
blur, average, one, _ = table.values()
assert average["PSNR"] > one["PSNR"] + 0.4, "The mean must beat a sample by PSNR."
assert average["texture"] < 0.97 * one["texture"], "Textures that differ cancel in a mean."
assert one["LPIPS"] < 0.7 * blur["LPIPS"], "A sample should look more like the truth than blur."
assert one["FID"] < 0.5 * blur["FID"], "Samples, as a set, should look like scenes."

# %% judges-figure tags=figure
from ldm_lite.course import drawings

figure, axes = figures.canvas(10.8, 2.9, columns=4)
axes[0].plot(range(1, N + 1), error, "o", label="measured")
axes[0].plot(range(1, N + 1), theory, label="from the spread")
axes[0].set(title="squared error of a mean of N", xlabel="N", ylim=(0, 1.1 * error[0]))
axes[0].legend(loc="lower right")
names = [name.replace(" ", "\n", 1) for name in table]
titles = {"PSNR": "PSNR, dB", "LPIPS": "LPIPS, a distance", "texture": "fine texture kept"}
for axis, (measure, title) in zip(axes[1:], titles.items()):
    values = [row[measure] for row in table.values()]
    if measure == "PSNR":  # 0 dB is no place to begin a bar
        axis.plot(names, values, "o")
        axis.margins(x=0.2)
    else:
        drawings.bars(axis, names, {title: values})
    axis.tick_params(axis="x", labelsize=8)
    axis.set(title=title)
words = "Error of the mean of N samples; PSNR, LPIPS and share of fine texture of four answers."
figures.show(figure, words)

# %% judges-read [markdown]
r"""
**What to see.** Left, the curve was not fitted to the dots: but for its last point it knows the
samples only, not the truth. Next, the mean wins by PSNR, and on the right one sees how: a part of
the fine texture is gone, because textures that differ cancel. A network that minimises squared
error is trained to draw this mean in one go. (It is not 3 dB: part of the error is the first
stage's.)

LPIPS, though made of features, compares with *this* truth too. FID and texture compare sets: could
a picture be one? Here FID, whose network learned to overlook texture, prefers the mean. No single
number does both [3].
"""

# %% crops-figure tags=figure
places = ((2, 20, 8), (5, 22, 20), (9, 22, 24), (14, 24, 8))  # picture, and where to look closer
cut = lambda images: torch.stack([images[i, :, y : y + 32, x : x + 32] for i, y, x in places])
rows = [cut(answer) for answer in (*list(answers.values())[:3], truth)]
words = "Four cut-outs of 32 pixels: bicubic, the mean of the samples, one sample, the truth."
figures.pictures(rows, words, left=(*list(answers)[:3], "truth"), scale=5)

# %% crops-read [markdown]
r"""
**What to see.** Compare the second and third rows. The mean is a little smoother: its grass is
fainter, edges are soft where samples disagree. The sample has its grain, and not one blade of it is
right. PSNR prefers the second row. Do you?
"""

# %% doubt-idea [markdown]
r"""
## 4. Where it makes things up

Where samples differ, somebody is guessing. So their deviation is a map of doubt, and needs no
truth. Is it honest? It should be large where samples miss the truth, and small where they hit it.
"""

# %% doubt-figure tags=figure
doubt = samples.std(1).mean(1, keepdim=True)
miss = (samples - truth[:, None]).abs().mean((1, 2))[:, None]
heat = lambda values: figures.latent(10 * values, 64)  # full orange from 0.25
columns = [figures.enlarged(low, 64, 64), *samples.unbind(1)[:3], truth, heat(doubt), heat(miss)]
rows = [torch.stack([column[i] for column in columns]) for i in (2, 9, 14)]
above = ("given", "a sample", "another", "another", "truth", "they differ", "they miss")
words = "Three scenes: given, three samples, truth, the deviation over samples, and their error."
figures.pictures(rows, words, above=above)

# %% doubt-check tags=check
alike = float(torch.corrcoef(torch.stack([doubt.flatten(), miss.flatten()]))[0, 1])
segments = Scenes("test", keys=("segmentation",)).batch(range(100, 100 + n))["segmentation"]
of = lambda *names: [segments == Scenes.segment_names.index(name) for name in names]
mean_doubt = lambda *names: float(doubt[:, 0][torch.stack(of(*names)).any(0)].mean())
sky, things = mean_doubt("sky"), mean_doubt("house", "tree", "pine", "cactus", "boat")
print(f"doubt in the sky {sky:.3f}, in things {things:.3f}; correlation with error {alike:.2f}")
assert things > 1.5 * sky, "Windows must be guessed, and a sky need not."
assert alike > 0.4, "Doubt that has nothing to do with error is no doubt."
held = {name: float(psnr(smaller(answer, 4), low).mean()) for name, answer in answers.items()}
held["another picture"] = float(psnr(low.roll(1, 0), low).mean())
print("made small again, dB:", ", ".join(f"{name} {v:.1f}" for name, v in held.items()))
assert held["one sample"] > 28, "What is given must be found again in the sample."

# %% doubt-read [markdown]
r"""
**What to see.** The last two columns have the same outlines: doubt is where errors are, at edges,
windows and what stands small and far. Clear skies are pale in both. But doubt is fainter. A part of
the error is the first stage's: all samples share it, so no spread can show it.

The last line of numbers asks the other question: what is kept? Made small again, a sample should
*be* what was given. It nearly is, not much further off than the truth that went through the first
stage, and far nearer than another scene. Nothing in the sampler demands it. The network has learned
that its door does not lie. Where "nearly" is not enough, an exercise repairs it.
"""

# %% wide-idea [markdown]
r"""
## 5. Any size, and any picture?

Nothing in a UNet depends on the size. What does not fit into memory is drawn by overlapping
windows: at every step each goes through the network by itself, with its part of the small picture,
and the results are blended. That a large picture becomes *one* picture is easy here: all windows
are told parts of the same small one.
"""

# %% wide-figure tags=figure,check
tall = scenes([64], 128)[..., 14:114, :]
given = smaller(tall, 4)  # 25 x 32: not even divisible by what the UNet halves
ways = {"windows side by side": {"overlap": 0}, "overlapping windows": {"overlap": 32}}
ways["in one piece"] = {"window": 128}
drawn = [upscaled(model, given.to(device), seed=3, **how, **few) for how in ways.values()]
assert drawn[0].shape == tall.shape, "Any size: edges are repeated, and cut off again."
above = ("given, 32 × 25", *ways, "truth, 128 × 100")
words = "A scene of 128 by 100 pixels: given four times smaller, drawn in three ways, the truth."
shown = torch.cat([figures.enlarged(given, 100, 128), *drawn, tall])
figures.pictures(shown, words, above=above, columns=3, scale=2)
close_up = tall[..., 36:100, :64]  # what the lower left window shows
decoded = stage.decode(stage.encode(close_up.to(device))).clamp(-1, 1).cpu()
alone = {"whole scenes": float(psnr(through, truth).mean())}
alone["the lower left window"] = float(psnr(decoded, close_up))
print("the first stage alone, dB:", ", ".join(f"{what} {dB:.1f}" for what, dB in alone.items()))
assert alone["the lower left window"] < alone["whole scenes"] - 4, "No denoiser can repair that."

# %% wide-read [markdown]
r"""
**What to see.** Side by side, windows meet in a seam. Where they overlap, their answers are blended
at every step, and the seam is gone. But sand has turned to snow, and in one piece it has not. Whose
fault is it?

Ask notebook 07's gate: send the *true* window through the first stage. It comes back as wrong. It
learned from whole scenes, half of them sky, and was never shown a close-up. *Any
size* is true of the code, and of a model only if it was taught. `--data.zoom 2` teaches squares of
half to all of a picture, and both halves of the model need it.

**And any small picture?** The network learned that small pictures are bicubic, antialiased. We give
it others of the same scenes: narrow bicubic, every fourth pixel, and `bad` ones.
"""

# %% other-figure tags=figure
some = truth[:16]
others = {"as it learned": smaller(some, 4), "narrow": small(some, 4, 1, a=-0.75)}
others |= {"every 4th pixel": some[..., ::4, ::4], "bad": bad(some, 4, 5)}
made = {kind: upscaled(model, small_.to(device), seed=4, **few) for kind, small_ in others.items()}
rows = []
for i in (2, 9):
    for kinds in (others, made):
        row = [figures.enlarged(one[i : i + 1], 64, 64) for one in kinds.values()]
        rows.append(torch.cat([*row, some[i : i + 1]]))
words = "Two scenes, made small in four ways, and below each what the model makes of it."
figures.pictures(rows, words, above=(*others, "truth"), left=("given", "enlarged") * 2)

# %% other-check tags=check
far = lambda images: float(distance(images.to(device), some.to(device)).mean())
gap = {kind: far(images) for kind, images in made.items()}
print("LPIPS from the truth:", ", ".join(f"{kind} {value:.2f}" for kind, value in gap.items()))
assert gap["narrow"] > 1.3 * gap["as it learned"], "It believes ragged edges."
assert gap["bad"] > 2 * gap["as it learned"], "It enlarges blur and noise as if they were real."

# %% other-read [markdown]
r"""
**What to see.** It trusts what it is given: ragged edges become ragged things, compression noise
becomes texture, and blur stays blur. The remedy is to learn from what will be given: `ldm-lite
train scenes-upscale --condition.degradation bsr`.
"""

# %% vote-idea [markdown]
r"""
## 6. Ask people

In the end the question is which picture people prefer. The paper's judges were shown two answers to
one small picture, and chose its model's over a pixel diffusion model's in 70.6 % of cases (table
4). Two things are easy to get wrong.

*The order.* It must be random and hidden, or habit votes.

*The doubt.* Wilson [4] asks: for which true shares $p$ would the observed $\hat p$ of $n$ votes be
within $z$ deviations, $|\hat p - p| \le z \sqrt{p (1 - p) / n}$? Square it, and $p$ lies between
the roots of a quadratic:

$$\frac{1}{1 + z^2 / n} \left( \hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} +
\frac{z^2}{4 n^2}} \right)$$
"""

# %% wilson tags=check
from ldm_lite.course import preference

z95 = 1.959964  # deviations: 95 % of a normal distribution


def interval(chosen, votes):
    share, slack = chosen / votes, z95**2 / votes
    root = z95 * math.sqrt(share * (1 - share) / votes + slack / (4 * votes))
    return tuple((share + slack / 2 + way * root) / (1 + slack) for way in (-1, 1))


def usual(chosen, votes):
    share = chosen / votes
    half = z95 * math.sqrt(share * (1 - share) / votes)
    return share - half, share + half


for counts in ((81, 263), (15, 148), (1, 29)):
    mine, theirs = (torch.tensor(rule(*counts)) for rule in (interval, preference.wilson))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
published = torch.tensor([0.2553, 0.3662])  # Newcombe 1998, table I
assert torch.allclose(torch.tensor(interval(81, 263)), published, atol=5e-5), "81 of 263 votes."


# %% promise tags=check
def promise(rule, p, votes=20):
    """How often the interval holds the true share p: exact, over all outcomes of the votes."""
    odds = [math.comb(votes, k) * p**k * (1 - p) ** (votes - k) for k in range(votes + 1)]
    ends = [rule(k, votes) for k in range(votes + 1)]
    return sum(o for o, (low, high) in zip(odds, ends) if low <= p <= high)


true = [k / 100 for k in range(5, 96)]
for rule in (interval, usual):
    held = [promise(rule, p) for p in true]
    print(f"{rule.__name__:9} holds in {sum(held) / len(held):.0%}, at worst {min(held):.0%}")
kept = [promise(interval, p) for p in true]
assert 0.94 < sum(kept) / len(kept) < 0.97, "95 % should mean 95 %."
assert min(promise(usual, p) for p in true) < 0.8, "The usual formula does not keep its word."
print("14 of 20 votes:", " to ".join(f"{v:.0%}" for v in interval(14, 20)))

# %% study-idea [markdown]
r"""
The usual formula, share ± z deviations, fails where shares are near 0 or 1. Wilson's keeps its
word. And 14 of 20 votes, a share as in the paper, do not even rule out a coin.

Now a study of our own: one sample against the mean, whose PSNR is better.
"""

# %% vote-figure tags=figure
question = {"names": ("one sample", "the mean"), "given": low, "seed": 1}
study = preference.Study(samples[:, 0], mean, **question)
panel = preference.ask(study, "Four of the pairs, as they are judged: given, left and right.")

# %% simulated tags=check
fine = lambda picture: float(high_frequency(picture[None]))
chance = np.random.default_rng(0)
simulated = {  # programs, not people
    "likes texture": lambda left, right: fine(left) > fine(right),
    "is wrong in 1 of 4": lambda left, right: (fine(left) > fine(right)) ^ (chance.random() < 0.25),
    "tosses a coin": lambda left, right: chance.random() < 0.5,
    "always says left": lambda left, right: True,
}
for name, judge in simulated.items():
    trial = preference.Study(samples[:, 0], mean, **question)
    print(f"{name:19} one sample: {trial.asked(judge)}; left {trial.leftness().share:.0%}")
assert trial.result().share == 0.5, "Each maker stands on the left half of the time: habit cancels."

# %% vote-read [markdown]
r"""
**What to see.** Four pairs, in an order that is not told. With a kernel, buttons appear below: be
the judge. Could you tell which is which?

The printed judges are *simulated*: programs, which say nothing about people. A judge of habit ends
at one half exactly, and `leftness` gives it away. One who errs in one of four needs dozens of votes
to be told from a coin.
"""

# %% mask-idea [markdown]
r"""
## 7. A hole in the picture

Now the picture is large, and a part of it is missing. A *mask* says what is there. In this course 1
means **keep**, always. Elsewhere you will meet the opposite; even within the paper's code the
sampler's masks mean keep, and the files of the inpainting script mean hole.

To learn from, holes are LaMa's [5]: thick strokes, or boxes. The picture with its hole at −1 goes
through the first stage, and is set beside $z$; one more channel has the mask by its nearest pixels,
1 in the hole and −1 elsewhere. The network draws the *whole* picture anew. From
that only the hole is taken, and elsewhere stand the pixels that were given: *compositing*.
"""

# %% filler tags=check,timeout-600
from ldm_lite.data import with_mask
from ldm_lite.editing import inpainted

rows = [(row, 0) for row in range(200, 224 if fast else 264)]  # and the epoch
batch = with_mask(Scenes("test")).draws(rows)
image, keep, masked = batch["image"], batch["mask"], batch["masked"]
filler = LatentDiffusion.load("scenes-inpaint").to(device)
told, _ = filler.conditions({"masked": masked[:4], "mask": keep[:4]})
hole = 1 - 2 * keep[:4, :, ::4, ::4].float().to(device)  # the nearest pixel of each cell
mine = torch.cat([filler.first_stage.encode(masked[:4].to(device)), hole], 1)
torch.testing.assert_close(mine, told.concat, atol=1e-4, rtol=1e-4)

redrawn = filler.sample({"masked": masked, "mask": keep}, seed=5, **few)
filled = torch.where(keep, image, redrawn)
theirs = inpainted(filler, image[:4], keep[:4], seed=5, **few)
torch.testing.assert_close(filled[:4], theirs, atol=2e-3, rtol=0)
print(f"holes take {1 - float(keep.float().mean()):.0%} of a picture on average")

# %% composite-figure tags=figure
grey = lambda images: ((images + 1) * 127.5).round()  # as a file has it, 0 to 255
outside = keep.expand_as(image)
off = {"redrawn": grey(redrawn) - grey(image), "composited": grey(filled) - grey(image)}
for name, levels in off.items():
    print(f"{name:10} off by {levels.abs()[outside].mean():.1f} of 255 where kept")
assert off["composited"].abs()[outside].max() <= 1, "What is kept must be what was given."
assert off["redrawn"].abs()[outside].mean() > 1, "A first stage is not the identity."
seen = (4 * keep * off["redrawn"] / 127.5).clamp(-1, 1)
rows = (keep.expand_as(image) * 2.0 - 1, masked, redrawn, seen, filled)
words = "Masks, white is kept; given; redrawn; its error where kept, times 4; composited."
left = ("mask", "given", "redrawn", "error × 4", "composited")
figures.pictures([row[:5] for row in rows], words, left=left)

# %% composite-read [markdown]
r"""
**What to see.** The third row looks fine. The fourth shows what was done to pixels that nobody
asked to touch: they have gone through the first stage. So the original pixels are put back at the
end, in pixels and not in the latent. The price may be a seam.
"""

# %% replace-idea [markdown]
r"""
## 8. The other way: put it back at every step

Must one train a model for holes? A model of whole pictures knows how they hang together. Sample
with it, and after each step *put back* the kept part, noised for that time. No training, any mask.
The package's `keep_known` does it to the guess, $\hat z_0 \leftarrow m\, z_0^{\text{given}} + (1 -
m)\, \hat z_0$, so that any sampler will do.

It is tempting, and only nearly right. Test it where the answer is known: pairs $(a, b)$ of normal
numbers with correlation 0.9. Given $a$, $b$ is normal with mean $0.9\, a$. At each time

$$\text{it uses } \mathbb E[\,b \mid a_t, b_t\,], \qquad \text{it needs } \mathbb E[\,b \mid a,
b_t\,]$$

At first $a_t$ is nearly all noise. When it speaks up, much of $b$ is settled.
"""

# %% toy
from ldm_lite import samplers
from ldm_lite.diffusion import Estimate

rho, a = 0.9, 1.5
both = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)


def joint(z, t):
    """What a perfect network of pairs says: the mean of (a, b), given both with noise."""
    alpha, sigma = map(float, schedule(t))
    noisy = alpha**2 * both + sigma**2 * torch.eye(2).double()
    z0 = z @ torch.linalg.solve(noisy, alpha * both)
    return Estimate(z0, (z - alpha * z0) / sigma)


def knowing(z, t):
    """What a perfect network says that is told a beside z."""
    (alpha, sigma), v = map(float, schedule(t)), 1 - rho**2
    b = rho * a + alpha * v / (alpha**2 * v + sigma**2) * (z[:, 1] - alpha * rho * a)
    z0 = torch.stack([torch.full_like(b, a), b], 1)
    return Estimate(z0, (z - alpha * z0) / sigma)


# %% toy-replace tags=check
def replacing(predict, known, keep):
    """predict(z, t) with the kept part of the guess replaced, and the noise that goes with it."""

    def wrapped(z, t):
        guess, (alpha, sigma) = predict(z, t), map(float, schedule(t))
        eps = keep * (z - alpha * known) / sigma + (1 - keep) * guess.eps
        return Estimate(keep * known + (1 - keep) * guess.z0, eps)

    return wrapped


def put_back(predict, z, known, keep, times, eta=0.0):
    """The original's form: a step, then the kept part is put back, noised for that time."""
    for t, s in pairwise(times):
        z = samplers.last(samplers.ddim(predict, z, torch.stack([t, s]), schedule, eta))
        alpha, sigma = map(float, schedule(s))
        z = keep * (alpha * known + sigma * torch.randn_like(z)) + (1 - keep) * z
    return z


torch.manual_seed(0)
crowd, first = torch.randn(20_000, 2).double(), torch.tensor([1.0, 0.0]).double()
known, times = a * first, samplers.grid("quadratic", schedule, 100)
t = torch.tensor(0.4)
mine, theirs = (
    rule(joint, known, first, *more)(crowd, t)
    for rule, *more in ((replacing,), (samplers.keep_known, schedule))
)
torch.testing.assert_close(mine, theirs)
ddim = lambda predict: samplers.last(samplers.ddim(predict, crowd, times, schedule))
ends = {"replaced": ddim(replacing(joint, known, first)), "told": ddim(knowing)}
ends["put back, η = 1"] = put_back(joint, crowd, known, first, times, eta=1.0)

# %% toy-figure tags=figure
figure, (left, right) = figures.canvas(10, 3.2, columns=2)
pairs = crowd[:2000] @ torch.linalg.cholesky(both).T
left.plot(*pairs.T, ".", color=figures.LINE, ms=3)
left.axvline(a, color=figures.RED)
left.set(xlabel="a", ylabel="b", title="pairs; what b goes with a = 1.5?")
for (name, end), colour in zip(ends.items(), (figures.ORANGE, figures.BLUE, figures.PURPLE)):
    right.hist(end[:, 1], 80, density=True, histtype="step", color=colour, label=name)
line, deviation = torch.linspace(-2.5, 3, 200), math.sqrt(1 - rho**2)
density = torch.exp(-0.5 * ((line - rho * a) / deviation) ** 2) / deviation / (2 * math.pi) ** 0.5
right.plot(line, density, "--", color=figures.INK, label="exact")
right.set(xlabel="b", title="b, given a = 1.5")
right.legend()
figures.show(figure, "Pairs with correlation 0.9, and the density of b given a, drawn three ways.")
for name, end in ends.items():
    print(f"{name:20} a {end[:, 0].mean():.2f}, b {end[:, 1].mean():.2f} ± {end[:, 1].std():.2f}")
print(f"exact                a {a:.2f}, b {rho * a:.2f} ± {deviation:.2f}")
b = {name: end[:, 1] for name, end in ends.items()}
assert abs(b["told"].mean() - rho * a) < 0.03, "Told a, a perfect network is exact."
assert abs(b["told"].std() - deviation) < 0.03, "So is the spread."
assert b["put back, η = 1"].mean() < rho * a - 0.25, "Replacement draws b as if it half knew a."
assert b["replaced"].mean() < b["put back, η = 1"].mean(), "Without chance on the way, even less."

# %% toy-read [markdown]
r"""
**What to see.** The network is perfect, and told $a$ it draws the dashed curve. By replacement $a$
is exact too, but $b$ stops half way. With chance at each step the hole hears more of $a$, and not
enough. In a picture this means things that do not go on across the border: half a house. The last
exercise has a cure, which costs time.

Back to pictures. Replacement needs a model of whole scenes: `scenes-ldm4`, which we even tell the
right class. It keeps the cells of the latent that are kept *whole*; for the encoder the hole has
the mean colour.
"""

# %% fill-figure tags=figure,timeout-600
whole = LatentDiffusion.load("scenes-ldm4").to(device)


def cells(keep):
    """(B, 1, h, w) 1 for cells of the latent all of whose pixels are kept, or 0."""
    return (F.avg_pool2d(keep.float(), 4) == 1).float().to(device)


def replaced(image, keep, label, cells=cells, seed=5):
    colour = (image * keep).sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True)
    known = whole.first_stage.encode(torch.where(keep, image, colour).to(device))
    wrap = lambda predict: samplers.keep_known(predict, known, cells(keep), schedule)
    return torch.where(keep, image, whole.sample({"label": label}, wrap=wrap, seed=seed, **few))


put_back = replaced(image, keep, batch["label"])
some = [0, 2, 4, 5, 7]
rows = [part[some] for part in (masked, put_back, filled, image)]
words = (
    "Five pictures with holes, filled by replacement, by the model told the hole, and the truth."
)
figures.pictures(rows, words, left=("given", "replacement", "concatenation", "truth"))


# %% fill-check tags=check
def seam(images):
    """The mean step between neighbouring pixels across the borders of the holes."""
    border = lambda d: keep.int().diff(dim=d) != 0
    steps = [images.diff(dim=d).abs().mean(1, keepdim=True)[border(d)] for d in (2, 3)]
    return float(torch.cat(steps).mean())


far = lambda images: float(distance(images.to(device), image.to(device)).mean())
for name, images in (("replacement", put_back), ("concatenation", filled), ("truth", image)):
    print(f"{name:14} LPIPS {far(images):.3f}, step across the border {seam(images):.3f}")
assert far(filled) < 0.9 * far(put_back), "The model that was told the hole should fill it better."
assert seam(filled) < seam(put_back), "And its seams should show less."

# %% fill-read [markdown]
r"""
**What to see.** Replacement draws things that do not belong: half of a house goes on as another,
water as sand. Concatenation goes on with what it sees. Both numbers say the same: LPIPS of
the whole picture, of which only the hole can differ, and the step across the border, which a seam
makes larger than the truth's.
"""

# %% paint-idea [markdown]
r"""
## 9. Paint a hole

With a kernel and `anywidget`, a canvas appears below. Paint over what should go, then run the cell
after it again. Without, the hole is the one that `shapes` draws.
"""

# %% paint tags=figure
from ldm_lite.course import widgets

photo = scenes([31])
stroke = ("stroke", 0, (0.8, 0.47, 0.95, 0.52), 0.34)  # label, from and to, width
start = widgets.shapes(torch.ones(64, 64), [stroke])
words = "A scene, and in red the hole that is to be filled."
painting = widgets.painter(start, ("#dc2626c0", "#ffffff00"), ("fill", "keep"), words, photo[0])

# %% paint-read [markdown]
r"""
**What to see.** Red is the hole. `painting.labels` is the mask: 0 fill, 1 keep.
"""

# %% painted tags=figure
copies = photo.expand(6, -1, -1, -1)
hole = painting.labels[None, None].expand(6, -1, -1, -1)
words = "The painted hole, filled six times from different noise."
figures.pictures(inpainted(filler, copies, hole, seed=3, **few), words)

# %% painted-read [markdown]
r"""
**What to see.** Six answers to one question. Where the surroundings say what must be there, the
mountains and the line where the sky ends, all agree. Elsewhere each is free.
"""

# %% break-it [markdown]
r"""
## 10. Break it: three programs

Each is a program as above with one bug. Two fill holes, where a thing is to be removed, and one
enlarges. All three run, and give pictures:

- masks that mean 1 = hole were given to a model for which 1 = keep;
- the mask was made small by a rule that keeps a cell if *any* of its pixels is kept;
- pictures in [0, 1] were given to a network that learned from [−1, 1].

Which is A, which B, which C? Look first.
"""

# %% bugs tags=figure
things = Scenes("test", keys=("image", "label", "boxes")).batch([2, 40, 31])
photo, label = things["image"].float() / 127.5 - 1, things["label"]
stay = torch.ones(len(photo), 1, 64, 64, dtype=torch.bool)
for row, boxes in zip(stay, things["boxes"]):  # a hole around the nearest thing
    x0, y0, x1, y1 = (boxes[-1] * 64).tolist()
    row[:, int(y0) - 1 : math.ceil(y1) + 1, max(0, int(x0) - 1) : math.ceil(x1) + 1] = False


def sound(image, keep, mask=None):
    told = {"masked": torch.where(keep, image, -1.0), "mask": keep if mask is None else mask}
    return filler.sample(told, seed=6, **few)


def program_a(image, keep):
    known = whole.first_stage.encode(image.to(device))
    some = F.max_pool2d(keep.float(), 4).to(device)
    wrap = lambda predict: samplers.keep_known(predict, known, some, schedule)
    return whole.sample({"label": label}, wrap=wrap, seed=6, **few)


def program_b(image, keep):
    return sound(image, keep, mask=~keep)


def larger(low):
    return upscaled(model, low.to(device), seed=6, **few)


def program_c(low):
    return larger((low + 1) / 2)


tiny, fillers = smaller(photo, 4), (sound, program_a, program_b)
final = [torch.where(stay, photo, job(photo, stay)) for job in fillers]
rows = [torch.where(stay, photo, -1.0), *final, larger(tiny), program_c(tiny)]
words = "Three holes around things, filled by a sound program, A and B; enlarged soundly, and by C."
figures.pictures(rows, words, left=("hole", "sound", "A", "B", "sound,\nenlarged", "C"))

# %% bugs-read [markdown]
r"""
**What to see.** In A something of the thing shines through. B's fillings do not fit, C is pale. But
would you have known B and C from bad models?

Ask for what *must* hold. What lies in the hole must not matter. What is kept must come back, before
compositing hides that it does not. And a large picture, made small again, must be the given one.
"""


# %% audit tags=check
def audit(job):
    """Whether what lies in the hole does not matter, and whether the rest comes back."""
    other = torch.where(stay, photo, -photo.flip(3))
    one, two = job(photo, stay), job(other, stay)
    kept = float((one - photo).abs()[stay.expand_as(photo)].mean())
    same = float((one - two).abs().max())
    print(f"{job.__name__:10} hole matters by {same:.2f}, the rest is off by {kept:.3f}")
    return same < 1e-3, kept < 0.1


def returns(job):
    again = float(psnr(smaller(job(tiny), 4), tiny).mean())
    print(f"{job.__name__:10} made small again: {again:.1f} dB")
    return again > 25


assert audit(sound) == (True, True) and returns(larger), "Sound programs must pass."
assert audit(program_a) == (False, True), "A knows what was in the hole."
assert audit(program_b) == (True, False), "B draws anew what it should keep."
assert not returns(program_c), "C draws another picture than the one it was given."

# %% audit-read [markdown]
r"""
A kept cells that reach into the hole, and the latent there has seen what was to be removed. By
LPIPS such a leak looks like *progress*, so it may live long. B has the masks the
wrong way round, C the range. A property finds each, without a picture.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% passes [exercise] title="What does it pass for?" difficulty=1 minutes=5
r"""
A wave has $f \ge 0$ periods a pixel, and every $k$-th pixel is kept. How many periods per *kept*
pixel does the slowest wave have that looks the same? It is never more than a half.
"""


# %% [stub]
def passes_for(f, k):
    return ...  # periods per kept pixel, 0 to 0.5


# %% [check]
from ldm_lite.course.checks import check

praise = "Wheels in films that turn backwards are this."
with check("What does it pass for?", "passes_for still returns ...: section 1.", praise) as c:
    for f, k in ((0.05, 4), (0.22, 4), (0.3, 4), (0.25, 2), (0.4, 3), (0.45, 8)):
        looks = torch.cos(2 * math.pi * f * k * torch.arange(4000).double())
        peak = torch.fft.rfft(looks * torch.hann_window(4000).double()).abs().argmax()
        mistakes = {"Those are turns between two looks; whole ones do not show.": f * k}
        mistakes["More than half a turn passes for less, the other way round."] = f * k % 1
        why = f"Wrong for f = {f}, k = {k}: take away the nearest whole number of turns."
        c.close(passes_for(f, k), float(peak) / 4000, why, 0, 1e-3, mistakes)


# %% [solution]
def passes_for(f, k):
    return abs(f * k - round(f * k))


# %% [wrong]
def passes_for(f, k):
    return f * k % 1


# %% votes [exercise] title="How many votes?" difficulty=1 minutes=6
r"""
You expect about 60 % to prefer your model's pictures. How many votes do you need, so that Wilson's
interval of 60 % lies above one half? Write the smallest multiple of 5. `preference.wilson(chosen,
votes)` gives the interval.
"""


# %% [stub]
def votes_needed(share):
    return ...  # the smallest multiple of 5 whose interval, of round(share * votes), is above 0.5


# %% [check]
with check("How many votes?", "votes_needed still returns ...", "Plan this before you ask.") as c:
    for share in (0.6, 0.8, 0.55):
        ends = {v: preference.wilson(round(share * v), v) for v in range(5, 2000, 5)}
        votes, half = (next(v for v in ends if ends[v][side] > 0.5) for side in (0, 1))
        mine = votes_needed(share)
        mistakes = {"That is where the upper end leaves one half; the lower one matters.": half}
        c.close(mine, votes, f"Wrong for a share of {share:.0%}.", 0, 0.5, mistakes)


# %% [solution]
def votes_needed(share):
    votes = 5
    while preference.wilson(round(share * votes), votes)[0] <= 0.5:
        votes += 5
    return votes


# %% [wrong]
def votes_needed(share):
    votes = 5
    while preference.wilson(round(share * votes), votes)[1] <= 0.5:
        votes += 5
    return votes


# %% repair [exercise] title="What is given is given" difficulty=2 minutes=10
r"""
A sample, made small again, is *nearly* the given picture. Repair it by *back-projection*: make it
small, enlarge what is missing with `bicubic`, add it, and repeat. `smaller(image, 4)` makes small.
"""


# %% [stub]
def repaired(image, low, rounds=10):
    """The image (B, 3, 64, 64), made to agree with low (B, 3, 16, 16)."""
    return ...


# %% [check]
praise = "No training, and the sample keeps its texture: only what was wrong at 16 pixels moved."
with check("What is given is given", "repaired still returns ...", praise) as c:
    image_, given = samples[:8, 0], low[:8]
    mine = repaired(image_, given)
    c.answered(mine)
    before, after = (float(psnr(smaller(v, 4), given).mean()) for v in (image_, mine))
    why = f"Small again it is now at {after:.1f} dB, before at {before:.1f}."
    c.that(after > before, f"{why} Add low less what the image is when small, not the reverse.")
    c.that(after > before + 8, f"{why} Did you repeat it, each time from the new image?")
    texture = float(high_frequency(mine).mean() / high_frequency(image_).mean())
    c.that(texture > 0.8, "The sample's texture is gone: correct the sample, do not replace it.")


# %% [solution]
def repaired(image, low, rounds=10):
    for _ in range(rounds):
        image = image + F.interpolate(low - smaller(image, 4), (64, 64), mode="bicubic")
    return image.clamp(-1, 1)


# %% [wrong]
def repaired(image, low, rounds=10):
    for _ in range(rounds):
        image = image + F.interpolate(smaller(image, 4) - low, (64, 64), mode="bicubic")
    return image.clamp(-1, 1)


# %% again [exercise] title="Back and forth" difficulty=3 minutes=15
r"""
RePaint [6] cures replacement: after a step from $t$ to $s$, add noise until it is $t$ again, and
repeat the step. Each time the hole hears the kept part anew. Write the way back: from $z_s =
\alpha_s z_0 + \sigma_s \varepsilon$ to something distributed as $z_t$. Signal falls by $\alpha /
\alpha_s$; how much fresh noise makes up the variance?
"""


# %% [stub]
def noised_again(z, alpha, sigma, alpha_s, sigma_s, noise):
    return ...  # z_t from z_s and standard normal noise of its shape


# %% [check]
def back_and_forth(rounds, z, steps=100):
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in samplers.legs(schedule.grid(steps), schedule):
        for k in range(rounds):
            z0 = joint(z, t).z0
            v = sigma**2 - (alpha / alpha_s * sigma_s) ** 2  # a step of DDPM, notebook 08
            there = (alpha_s * v * z0 + alpha / alpha_s * sigma_s**2 * z) / sigma**2
            there = there + sigma_s * math.sqrt(v) / sigma * torch.randn_like(z)
            given = alpha_s * known + sigma_s * torch.randn_like(z)
            there = first * given + (1 - first) * there
            if k < rounds - 1:
                z = noised_again(there, alpha, sigma, alpha_s, sigma_s, torch.randn_like(z))
                c.answered(z)
        z = there
    return float(z[:, 1].mean())


praise = "The more rounds, the nearer. Ten rounds cost ten times the evaluations."
with check("Back and forth", "noised_again still returns ...", praise) as c:
    z, noise = torch.randn(2, 50, 2).double()
    for alpha, sigma, alpha_s, sigma_s in ((0.6, 0.8, 0.8, 0.6), (0.28, 0.96, 0.6, 0.8)):
        ratio, mine = alpha / alpha_s, noised_again(z, alpha, sigma, alpha_s, sigma_s, noise)
        right = ratio * z + math.sqrt(sigma**2 - (ratio * sigma_s) ** 2) * noise
        lacking = sigma - ratio * sigma_s
        mistakes = {"Variances add up, not deviations.": ratio * z + lacking * noise}
        mistakes["All of sigma is too much: z has noise already."] = ratio * z + sigma * noise
        c.close(mine, right, "Scale z, then fill up to sigma².", mistakes=mistakes)
    torch.manual_seed(0)
    once, often = (back_and_forth(k, crowd[:4000]) for k in (1, 8))
    print(f"b once {once:.2f}, eight times {often:.2f}, exact {rho * a:.2f}")
    c.that(often > once + 0.2, "Going back and forth should bring b nearer.")


# %% [solution]
def noised_again(z, alpha, sigma, alpha_s, sigma_s, noise):
    ratio = alpha / alpha_s
    return ratio * z + math.sqrt(sigma**2 - (ratio * sigma_s) ** 2) * noise


# %% [wrong]
def noised_again(z, alpha, sigma, alpha_s, sigma_s, noise):
    ratio = alpha / alpha_s
    return ratio * z + (sigma - ratio * sigma_s) * noise


# %% summary [markdown]
r"""
## Summary

- Smooth before you skip pixels. How small pictures were made decides what a model is good for.
- A picture is told by setting it beside the latent: one more sum in the first layer, no null.
- The mean of samples always beats the samples by PSNR, and has lost what differs between them.
- Samples know where they guess: their deviation is a map of doubt.
- A vote needs a hidden order and an interval.
- Replacement needs no training and cannot be exact; a model told the hole can. Compositing keeps
  the rest.
- Leaks, ranges and conventions are found by properties.

**What next.** Notebook 12 measures with error bars. For your own pictures there are `ldm-lite
upscale` and `inpaint`; `benchmarks/tasks.py` is the long form of section 3.
"""

# %% references [markdown]
r"""
## References

1. R. Keys. *Cubic Convolution Interpolation for Digital Image Processing.* IEEE Transactions on
   Acoustics, Speech, and Signal Processing 29, 1981.
2. K. Zhang, J. Liang, L. Van Gool, R. Timofte. *Designing a Practical Degradation Model for Deep
   Blind Image Super-Resolution.* ICCV 2021. [arXiv 2103.14006](https://arxiv.org/abs/2103.14006)
3. Y. Blau, T. Michaeli. *The Perception-Distortion Tradeoff.* CVPR 2018.
   [arXiv 1711.06077](https://arxiv.org/abs/1711.06077)
4. E. Wilson. *Probable Inference, the Law of Succession, and Statistical Inference.* Journal of the
   American Statistical Association 22, 1927.
5. R. Suvorov and others. *Resolution-robust Large Mask Inpainting with Fourier Convolutions.* WACV
   2022. [arXiv 2109.07161](https://arxiv.org/abs/2109.07161)
6. A. Lugmayr and others. *RePaint: Inpainting using Denoising Diffusion Probabilistic Models.* CVPR
   2022. [arXiv 2201.09865](https://arxiv.org/abs/2201.09865)
"""
