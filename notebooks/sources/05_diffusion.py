r"""
title: Diffusion
goal: Turn data into noise, derive what a network must learn to come back, and come back
needs: Python, some PyTorch, the normal distribution; no earlier notebook
memory: about 1 GB; no GPU needed
download: nothing
result: a model of points that matches an exact answer, and a model of pictures that you trained
objectives:
  - jump to any time of the noising process, and say how much signal is left at its end
  - show that to guess the noise is to know the score, and check it against an exact score
  - derive the bound, and say which weights the loss of the paper drops
  - read the clean point, the noise and v from one prediction, and say where each is fragile
  - walk from noise to data by DDPM and DDIM, and diagnose training bugs that no loss curve shows
"""

# %% the-idea [markdown]
r"""
**What to see.** Two boxes in colour. *Add noise* ruins data step by step, and nothing in it is
learned. The *sampler* goes back, with the help of a network. This notebook is about what that
network must know. What it is made of can wait for notebook 06.

So we use the smallest network that works, on the smallest data that is interesting: points in a
plane, where the exact answer is known. In the end we do the same to small pictures. A latent
diffusion model that works on pixels has factor $f = 1$; the paper calls it LDM-1.
"""

# %% start
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ldm_lite.data import Scenes
from ldm_lite.diffusion import Diffusion, RectifiedFlow, VariancePreserving

T = 1000  # steps from data to noise
schedule = VariancePreserving()  # the paper's; section 1 builds it by hand

# %% world [markdown]
r"""
## 1. The way to noise

Our world is a face that winks, nine islands of points: one for an eye, three for the eye that is
shut, five for the mouth. Each is a normal distribution with its own share, centre and width, and
the whole has mean 0 and variance 1.
"""

# %% islands
arc = torch.deg2rad(torch.linspace(205, 325, 5))
eyes = torch.tensor([[-0.9, 1.0], [0.5, 1.0], [0.9, 1.0], [1.3, 1.0]])
centres = torch.cat([eyes, torch.stack([1.4 * arc.cos(), 1.2 * arc.sin() - 0.1], 1)])
shares = torch.tensor([0.25] + 3 * [0.25 / 3] + 5 * [0.1])
centres, widths = centres - shares @ centres, torch.tensor([0.2] + 3 * [0.07] + 5 * [0.12])
size = (shares @ ((centres**2).mean(1) + widths**2)).sqrt()  # the deviation of it all
centres, widths = centres / size, widths / size


def islands(n):
    k = torch.multinomial(shares, n, replacement=True)
    return centres[k] + widths[k, None] * torch.randn(n, 2)


# %% chain-idea [markdown]
r"""
One step makes a point a little smaller and adds a little noise. The $\beta_n$ are small, and fixed
in advance; in the paper their square roots grow evenly [1].

$$z_n = \sqrt{1 - \beta_n}\; z_{n-1} + \sqrt{\beta_n}\; \varepsilon_n, \qquad \varepsilon_n \sim
\mathcal N(0, 1)$$

Why smaller? If $z_{n-1}$ has variance 1, then $z_n$ has $(1 - \beta_n) + \beta_n = 1$ again.
Nothing explodes, and nothing dies away.
"""

# %% chain tags=figure
beta = torch.linspace(0.0015**0.5, 0.0195**0.5, T, dtype=torch.float64) ** 2
torch.manual_seed(2)
chain = [islands(4000)]
for b in beta:
    chain.append((1 - b).sqrt() * chain[-1] + b.sqrt() * torch.randn(4000, 2))
palette = [figures.BLUE] + 3 * [figures.ORANGE] + 5 * [figures.PURPLE]
colours = [palette[k] for k in torch.cdist(chain[0][:1500], centres).argmin(1)]
figure, axes = figures.canvas(11, 2.7, columns=5, sharex=True, sharey=True)
for axis, n in zip(axes, (0, 50, 150, 300, 1000)):
    axis.scatter(*chain[n][:1500].T, s=2, c=colours)
    axis.set(title=f"after {n} steps", aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
figures.show(figure, "Points after 0, 50, 150, 300, 1000 steps, coloured by their first part.")

# %% chain-read [markdown]
r"""
**What to see.** First the fine things go: the shut eye becomes rounder, gaps in the mouth close.
Then the parts run into each other. At the end there is one round cloud, the same for any data, and
we know how to draw from it. That is where the way back will begin.

**The jump.** A thousand steps for one training example would be absurd. But follow the two
weights: a step multiplies what is left of $z_0$ by $\sqrt{1 - \beta}$, and turns a noise variance
$\sigma^2$ into $(1 - \beta)\,\sigma^2 + \beta$. So with $t = n / T$

$$z_t = \alpha_t\, z_0 + \sigma_t\, \varepsilon, \qquad \alpha_t^2 = \bar\alpha_t = \prod_{m \le
n} (1 - \beta_m), \quad \sigma_t^2 = 1 - \bar\alpha_t$$

In code it is the last line of `noised`. The check follows both weights step by step, then the
points.
"""


# %% jump tags=check
def columns(t):
    """alpha and sigma at times t (B,), as columns (B, 1)."""
    return tuple(weight.float().view(-1, 1) for weight in schedule(t))


def noised(z0, eps, t):
    alpha, sigma = columns(t)
    return alpha * z0 + sigma * eps


weights = [(1.0, 0.0)]  # alpha and sigma²
for b in beta.tolist():
    signal, variance = weights[-1]
    weights.append((math.sqrt(1 - b) * signal, (1 - b) * variance + b))
signal, variance = torch.tensor(weights, dtype=torch.float64).T
torch.testing.assert_close((signal, variance.sqrt()), schedule(torch.arange(T + 1).double() / T))
draws = torch.randn(5, 2), torch.randn(5, 2), torch.rand(5)
torch.testing.assert_close(noised(*draws), Diffusion(schedule).noised(*draws))
for n in (100, 300, 600):
    left = float((chain[n] * chain[0]).sum() / (chain[0] ** 2).sum())
    print(f"t = {n / T}: the points say {left:.3f}, the formula {float(signal[n]):.3f}")
    assert abs(left - signal[n]) < 0.06, "The steps and the jump must end at the same place."


# %% pictures tags=figure
def scenes(split, rows, side=16):
    """Landscapes (B, 3, side, side) in [-1, 1]."""
    return Scenes(split, side).batch(rows)["image"].float() / 127.5 - 1


times = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0])
noise = torch.randn(len(times), 768, generator=torch.Generator().manual_seed(1))
landscapes = scenes("test", [20, 60, 26]).flatten(1)
rows = [noised(x.expand(8, -1), noise, times).view(-1, 3, 16, 16) for x in landscapes]
words = "Three landscapes of 16 pixels at eight times from 0 to 1."
figures.pictures(rows, words, above=[f"t = {t:g}" for t in times.tolist()], scale=7)

# %% pictures-read [markdown]
r"""
**What to see.** To `noised` a picture is a point in 768 dimensions. The order is the same: first
detail goes, then shapes, and the light of the day goes last. A network that undoes this has a
different job at each time. Early on it only cleans surfaces, and late it has to invent scenes.

## 2. How fast? And what is left?

The $\beta_n$ are a choice, the *schedule*. Three are common: the paper's, even in $\sqrt\beta$
(`scaled_linear`); the one of DDPM [2], even in $\beta$; and the cosine of Nichol and Dhariwal
(2021), which shapes $\bar\alpha$ itself.
"""

# %% schedules tags=figure
line, ddpm = torch.linspace(0, 1, 501), VariancePreserving("linear", start=1e-4, end=0.02)
schedules = {"scaled_linear": schedule, "linear": ddpm, "cosine": VariancePreserving("cosine")}
figure, (left, right) = figures.canvas(9, 2.9, columns=2)
for name, kind in schedules.items():
    a, s = kind(line)
    left.plot(line, a, label=name)
    right.semilogy(line[1:], ((a / s) ** 2)[1:])
left.set(xlabel="time t", title=r"$\alpha_t$: how much of the data is left")
right.set(xlabel="time t", title=r"signal to noise, $\alpha_t^2 / \sigma_t^2$", ylim=(1e-6, 1e5))
left.legend()
figures.show(figure, "Left: alpha of three schedules by time. Right: their signal to noise.")

# %% schedules-check tags=check
shape = torch.cos((torch.arange(T + 1).double() / T + 0.008) / 1.008 * math.pi / 2) ** 2
betas = {"cosine": (1 - shape[1:] / shape[:-1]).clamp(max=0.999), "scaled_linear": beta}
betas["linear"] = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
at = torch.arange(1, T + 1).double() / T
for name, kind in schedules.items():
    torch.testing.assert_close(torch.log(1 - betas[name]).cumsum(0), kind.log_alpha_bar(at))
    a, s = kind(at)
    assert ((a / s).diff() < 0).all(), "Signal to noise must fall at every step."
    half = float(at[a < s][0])
    print(f"{name:14} half of each at t = {half:.2f}; at t = 1 alpha is {float(a[-1]):.5f}")

# %% schedules-read [markdown]
r"""
**What to see.** The cosine keeps data longest. All three end near 0, but only the cosine ends
*at* about 0. Does a rest of one per cent matter? For one pixel it does not. But the mean of $d$
numbers has noise of only $1 / \sqrt d$. So the larger the picture, the better its brightness can be
read from $z_1$, and a network will read it. A sampler then starts from noise, in which there is
nothing to read, and the network takes it for a picture of middling brightness [6].

We measure the correlation between the brightness of a picture and that of its $z_1$.
"""

# %% leak tags=check
torch.manual_seed(0)
for side in (16, 64):
    x = scenes("train", range(500), side).flatten(1)
    for name, kind in schedules.items():
        a, s = (float(weight) for weight in kind(torch.tensor(1.0)))
        light, seen = x.mean(1), (a * x + s * torch.randn_like(x)).mean(1)
        found = float(torch.corrcoef(torch.stack([light, seen]))[0, 1])
        spread = a * float(light.std())  # beside what is left of the noise
        theory = spread / math.hypot(spread, s / math.sqrt(x.shape[1]))
        print(f"{side} px, {name:14} correlation {found:+.2f}, theory {theory:.2f}")
        assert abs(found - theory) < 0.2, "Averaging removes noise and leaves the signal."

# %% leak-read [markdown]
r"""
At 16 pixels the rest is hardly noticeable. At 64 it is plain, except for the cosine. Small latents
suffer less: a quiet advantage of the paper's idea. The cure, a schedule that ends at exactly 0, is
exercise 2.

## 3. What there is to know: the score

A network sees $z_t$ and should say which noise is in it. It cannot know: many pairs of point and
noise lead to one $z_t$. Under squared error its best answer is the mean of all that are possible,
$\mathbb E[\varepsilon \mid z_t]$. Which is that?

For our face we can say. Noised islands are islands, with centres $\alpha \mu_k$ and variances $v_k
= \alpha^2 w_k^2 + \sigma^2$, so we know the density $p_t$ of noisy points, and can compute the
gradient of its logarithm, the *score*: a mean of the ways to the centres.
"""


# %% score
def islands_at(z, t):
    """Of each island (B, K): log density at z, the way to its centre (B, K, 2), variance."""
    alpha, sigma = columns(t)
    v = (alpha * widths) ** 2 + sigma**2
    way = alpha[..., None] * centres - z[:, None]
    return shares.log() - (2 * math.pi * v).log() - (way**2).sum(2) / (2 * v), way, v


def score(z, t):
    log, way, v = islands_at(z, t)
    return (log.softmax(1)[..., None] * way / v[..., None]).sum(1)


# %% tweedie [markdown]
r"""
Now take *any* data, and differentiate the density of noisy points:

$$p_t(z) = \int p(z_0)\, \mathcal N(z;\, \alpha z_0, \sigma^2)\, dz_0 \quad\Rightarrow\quad
\nabla \log p_t(z) = \mathbb E\left[ -\frac{z - \alpha z_0}{\sigma^2} \;\middle|\; z \right] =
-\frac{\mathbb E[\varepsilon \mid z]}{\sigma}$$

The gradient only meets the Gaussian, and pulls down $-(z - \alpha z_0) / \sigma^2 = -\varepsilon /
\sigma$. So to guess the noise *is* to know the score [3]. The check has two parts. Is `score` the
gradient? Autograd says. And is it a mean over noises? We draw 100,000 points, and weigh each by how
well it explains $z$.
"""

# %% score-check tags=check
torch.manual_seed(0)
t = torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0])
z = noised(islands(5), torch.randn(5, 2), t).requires_grad_()
(slope,) = torch.autograd.grad(islands_at(z, t)[0].logsumexp(1).sum(), z)
torch.testing.assert_close(score(z, t), slope, atol=1e-4, rtol=1e-4)
(alpha, sigma), z = columns(t[2:]), z.detach()[2:]
noises = (z[:, None] - alpha[..., None] * islands(100_000)) / sigma[..., None]
chance = (-(noises**2).sum(2) / 2).softmax(1)
mean, exact_mean = (chance[..., None] * noises).sum(1), -sigma * score(z, t[2:])
print("mean of all possible noises", mean[0], "by the score", exact_mean[0])
assert (mean - exact_mean).abs().max() < 0.05, "The mean of all possible noises is the score."

# %% score-figure tags=figure
side = torch.linspace(-2.6, 2.6, 90)
fine, coarse = (torch.cartesian_prod(axis, axis) for axis in (side, side[4::7]))
figure, axes = figures.canvas(10.5, 3.9, columns=3)
for axis, moment in zip(axes, (0.03, 0.15, 0.4)):
    now = torch.tensor([moment])
    density = islands_at(fine, now)[0].logsumexp(1).exp().view(90, 90).T
    axis.contourf(side, side, density, levels=12, cmap="Blues")
    arrows = columns(now)[1] * score(coarse, now)
    axis.quiver(*coarse.T, *arrows.T, angles="xy", color=figures.ORANGE, width=0.006, scale=40)
    axis.set(title=f"t = {moment}", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    axis.grid(False)
figures.show(figure, "Noisy points at three times: their density; arrows: sigma × score.")

# %% score-read [markdown]
r"""
**What to see.** Every arrow is minus the noise that a perfect network would guess there. While
there is little noise, an arrow points to the nearest part of the face. With more, there are no
parts any more, and all arrows go to the middle. In between lie places where the arrows change their
mind: there it is decided whether a point becomes an eye or the mouth.
"""

# %% posterior-idea [markdown]
r"""
## 4. The bound, and the weights it has

Why squared error? Because likelihood asks for it. A model walks from noise to data in $T$ steps,
and by Jensen's inequality, as for the autoencoder of notebook 02, $-\log p(z_0)$ is at most a sum
over the steps from $t$ to $s = t - 1/T$ [2]. Each term is a divergence between the model's step and
the truth, $q(z_s \mid z_t, z_0)$: where was the point before, if we also know where it began?

Two things are known about $z_s$. From the start it is $\mathcal N(\alpha_s z_0, \sigma_s^2)$. And
$z_t$ is a shrunk view of it: $r z_s$ with $r = \alpha_t / \alpha_s$, plus noise of variance
$\sigma_t^2 - r^2 \sigma_s^2$. Multiply both; the result is normal. The check conditions the pair
$(z_s, z_t)$ as a textbook does.
"""


# %% posterior tags=check
def posterior(t, s):
    """z_s given z_t and z0: the weight of z0, the weight of z_t, the deviation."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    kept = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2
    new = 1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2  # of the noise in z_t: what came after s
    return alpha_s * new, kept, sigma_s * new.sqrt()


t, s = torch.tensor(0.4), torch.tensor(0.3)
(alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
gain = alpha_t / alpha_s * sigma_s**2 / sigma_t**2  # covariance of the pair / variance of z_t
textbook = alpha_s - gain * alpha_t, gain, (sigma_s**2 - gain**2 * sigma_t**2).sqrt()
torch.testing.assert_close(posterior(t, s), textbook)

# %% bound-idea [markdown]
r"""
The model does not know $z_0$, so it takes the same normal with its guess $\hat z_0$. Two normals
with one variance differ by their means alone, and the divergence collapses to

$$\mathrm{KL} = \tfrac12 \left( \mathrm{SNR}_s - \mathrm{SNR}_t \right) \lVert z_0 - \hat z_0
\rVert^2 = \tfrac12 \left( \frac{\mathrm{SNR}_s}{\mathrm{SNR}_t} - 1 \right) \lVert \varepsilon -
\hat\varepsilon \rVert^2, \qquad \mathrm{SNR} = \frac{\alpha^2}{\sigma^2}$$

The second form holds because at fixed $z_t$ an error of the noise is $\alpha / \sigma$ times one
of $z_0$. Both forms are a line of code; `torch.distributions` judges them.
"""

# %% bound-weights tags=check
from torch.distributions import Normal, kl_divergence

later, earlier = torch.arange(2, T + 1).double() / T, torch.arange(1, T).double() / T
snr = lambda t: (schedule(t)[0] / schedule(t)[1]) ** 2
on_z0 = (snr(earlier) - snr(later)) / 2
on_eps = (snr(earlier) / snr(later) - 1) / 2

of_z0, of_zt, deviation = posterior(later, earlier)
z0, z0_guess, zt = 0.3, -0.8, 1.1
true, model = (Normal(of_z0 * start + of_zt * zt, deviation) for start in (z0, z0_guess))
torch.testing.assert_close(kl_divergence(true, model), on_z0 * (z0 - z0_guess) ** 2)
torch.testing.assert_close(on_eps, on_z0 / snr(later))

# %% bound-figure tags=figure
torch.manual_seed(0)
points, errors = islands(300 if fast else 1000), []
for moment in later.view(-1, 1):  # the error that a perfect guess of the noise has
    eps = torch.randn_like(points)
    guess = -columns(moment)[1] * score(noised(points, eps, moment), moment)
    errors.append((eps - guess).square().mean())
errors = torch.stack(errors).double()
figure, (left, right) = figures.canvas(9, 2.9, columns=2)
left.semilogy(later, on_eps, label="the bound's weight")
left.axhline(1, linestyle="--", color=figures.SOFT, label="the paper's loss: 1")
left.set(xlabel="time t", title="weight of an error of the noise")
left.legend()
for terms, name in ((on_eps * errors, "the bound"), (errors, "weights dropped")):
    share = terms.cumsum(0) / terms.sum()
    right.plot(later, share, label=name)
    print(f"{name}: {float(share[48]):.0%} of the loss lies before t = 0.05")
right.set(xlabel="time t", title="share of the loss that lies before t")
right.legend()
figures.show(figure, "Left: weights by time. Right: where a perfect guesser's loss comes from.")
assert on_eps[0] > 20 * on_eps[499], "The bound should care most about the last specks of noise."

# %% bound-read [markdown]
r"""
**What to see.** Left, the bound cares enormously about the first steps. Right, more than half of
its sum lies at the very left, where nothing is decided: that is how many digits of a point are to
be told. For pictures these are the bits of imperceptible detail of notebook 01.

So DDPM [2] and the paper (equation 2) drop the weights, $L = \mathbb E\, \lVert \varepsilon -
\varepsilon_\theta(z_t, t) \rVert^2$ with $t$ drawn evenly, and spend the effort later, where
shapes are decided. That is no bound any more. The minimum stays where it is: at every time, the
mean.
"""

# %% readings-idea [markdown]
r"""
## 5. One prediction, three readings

Must the output be the noise? Given $z_t$, the noise determines $z_0$, and the other way round. Any
mixture $a z_0 + b\, \varepsilon$ will do, as long as it says something that $z_t$ does not:

$$\begin{pmatrix} z_t \\ \mathrm{output} \end{pmatrix} = \begin{pmatrix} \alpha & \sigma \\ a & b
\end{pmatrix} \begin{pmatrix} z_0 \\ \varepsilon \end{pmatrix}$$

`eps` is the row $(0, 1)$, `z0` the row $(1, 0)$, and `v` [4] is $(-\sigma, \alpha)$. To read both
unknowns is to solve two equations: the last line.
"""


# %% readings
def reading(predicts, t):
    """The row (a, b), each (B, 1)."""
    alpha, sigma = columns(t)
    none, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    return {"eps": (none, one), "z0": (one, none), "v": (-sigma, alpha)}[predicts]


def solved(output, z, t, predicts):
    """z0 and eps, each (B, 2)."""
    matrix = torch.stack([torch.cat(columns(t), 1), torch.cat(reading(predicts, t), 1)], 1)
    return torch.linalg.solve(matrix, torch.stack([z, output], 1)).unbind(1)


# %% readings-read [markdown]
r"""
The check takes a true output of each kind through both systems, ours and the package's `estimate`.
There the last lines also try the row $(-1, 1)$ of a later model.
"""

# %% readings-check tags=check
torch.manual_seed(0)
z0, eps, t = torch.randn(7, 2), torch.randn(7, 2), torch.linspace(0.05, 0.8, 7)
for predicts in ("eps", "z0", "v"):
    diffusion, (a, b), z = Diffusion(schedule, predicts), reading(predicts, t), noised(z0, eps, t)
    torch.testing.assert_close(a * z0 + b * eps, diffusion.target(z0, eps, t))
    mine = solved(a * z0 + b * eps, z, t, predicts)
    torch.testing.assert_close(mine, (z0, eps), atol=1e-4, rtol=1e-4)
    theirs = tuple(diffusion.estimate(a * z0 + b * eps, z, t))
    torch.testing.assert_close(theirs, (z0, eps), atol=1e-4, rtol=1e-4)
flow = Diffusion(RectifiedFlow(), "flow")  # of notebook 17: the same two equations
found = tuple(flow.estimate(eps - z0, flow.noised(z0, eps, t), t))
torch.testing.assert_close(found, (z0, eps), atol=1e-4, rtol=1e-4)

# %% compass tags=figure
figure, (left, right) = figures.canvas(9, 3.4, columns=2, width_ratios=(1, 1.4))
around, t = torch.linspace(0, 2 * math.pi, 200), torch.tensor([0.16])
left.plot(around.cos(), around.sin(), color=figures.LINE)
rows = {"$z_t$": columns(t)} | {name: reading(name, t) for name in ("eps", "z0", "v")}
for (name, row), colour in zip(rows.items(), (figures.INK, *figures.COLOURS)):
    x, y = map(float, row)
    left.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
    left.text(1.18 * x, 1.14 * y, name, color=colour, ha="center", va="center")
left.set(xlim=(-1.25, 1.35), ylim=(-0.3, 1.35), aspect="equal", xticks=[], yticks=[])
left.set(xlabel="how much of $z_0$", ylabel="how much of ε", title="the rows, at t = 0.16")
z, slip, t = torch.zeros(500, 2), torch.ones(500, 2), line[1:]
for name in ("eps", "z0", "v"):
    right.semilogy(t, solved(slip, z, t, name)[0][:, 0].abs(), label=name)
right.set(xlabel="time t", title=r"error of $\hat z_0$ for an error of 1 in the output")
right.legend()
words = "Left: what z_t and the outputs contain, as directions. Right: errors of z0 by time."
figures.show(figure, words)

# %% compass-read [markdown]
r"""
**What to see.** On the left $z_t$ is one direction; time turns it from `z0` to `eps`. A second
direction that is nearly the same adds nothing: that is `eps` late and `z0` early. `v` stands at a
right angle always. On the right is the price. With `eps`, the clean guess near $t = 1$ is
worthless.

**Predict before you run.** Three equal networks will learn for a few seconds, one for each
reading. Then we compare how wrong $\hat z_0$ is. Write down: which one is worst near $t = 1$?
Which near $t = 0$? Is one good everywhere?

## 6. A network, at last

It gets the point and a *clock*, the step number spread over sines and cosines (notebook 06 builds
that), and adds the two. The loss is the last line of `loss`, and the package's must be the same.
"""

# %% network tags=check
from ldm_lite.layers import sinusoidal


class Net(nn.Module):
    """(z (B, 2), clock (B,)) -> output (B, 2)."""

    def __init__(self, width=128):
        super().__init__()
        self.point, self.time = nn.Linear(2, width), nn.Linear(32, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.out = nn.Linear(width, 2)

    def forward(self, z, clock):
        h = self.point(z) + self.time(sinusoidal(clock, 32))
        for layer in self.hidden:
            h = h + F.silu(layer(F.silu(h)))
        return self.out(F.silu(h))


def loss(net, z0, eps, t, predicts="eps", noised=noised):
    """(B,) the mean squared error of each sample."""
    a, b = reading(predicts, t)
    output = net(noised(z0, eps, t), (T * t - 1).float())  # the original counts from 0
    return (a * z0 + b * eps - output).square().mean(1)


for predicts in ("eps", "z0", "v"):
    net, draws = Net(), (islands(9), torch.randn(9, 2), schedule.draw(9))
    torch.testing.assert_close(
        loss(net, *draws, predicts), Diffusion(schedule, predicts).loss(net, *draws)
    )

# %% learn
steps = 250 if fast else 1200


def learn(predicts="eps", kind=Net, noised=noised, seed=0):
    """A network that has learned, in eval mode, and its losses."""
    torch.manual_seed(seed)
    net, losses = kind(), []
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z0 = islands(256)
        value = loss(net, z0, torch.randn_like(z0), schedule.draw(256), predicts, noised).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        decay.step()
        losses.append(value.item())
    return net.requires_grad_(False), losses


learned = {predicts: learn(predicts) for predicts in ("eps", "z0", "v")}


# %% exact
def exact(z, t):
    """(z0, eps): what a perfect network would say."""
    eps = -columns(t)[1] * score(z, t.view(-1))
    return (z - columns(t)[1] * eps) / columns(t)[0], eps


def asking(net, diffusion):
    """predict(z, t) -> (z0, eps), as `exact` is, from a network."""
    schedule = diffusion.schedule
    clock = lambda z, t: schedule.clock(t).to(z.device, torch.float32).expand(len(z))
    return lambda z, t: diffusion.estimate(net(z, clock(z, t)), z, t)


# %% measure-idea [markdown]
r"""
Now the comparison: the same 4000 points at eleven times, the same noise for all, and the error of
each network's $\hat z_0$ beside that of a perfect one. The loss gets a line to compare with too:
what a perfect network would have.
"""

# %% measure
asked = {name: asking(net, Diffusion(schedule, name)) for name, (net, _) in learned.items()}
asked["exact"] = exact
probe = torch.tensor([0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
torch.manual_seed(1)
points = islands(4000)
noisy = [(noised(points, torch.randn(4000, 2), t[None]), t) for t in probe]
error = lambda predict, z, t: (predict(z, t)[0] - points).square().mean()
wrong = {name: torch.stack([error(p, z, t) for z, t in noisy]) for name, p in asked.items()}
z0, eps, t = islands(20_000), torch.randn(20_000, 2), schedule.draw(20_000)
floor = float((exact(noised(z0, eps, t), t)[1] - eps).square().mean())

# %% learn-figure tags=figure
curve = torch.tensor(learned["eps"][1]).unfold(0, 25, 5).mean(1)
figure, (left, right) = figures.canvas(9.5, 3.1, columns=2, width_ratios=(1, 1.3))
left.plot(torch.arange(len(curve)) * 5 + 12, curve)
left.axhline(floor, linestyle="--", color=figures.SOFT, label="a perfect network")
left.set(xlabel="step", title="loss of eps, mean of 25 steps", ylim=(0, 0.6))
for name in ("eps", "z0", "v"):
    right.loglog(probe, wrong[name] / wrong["exact"], "o-", label=name)
title = r"error of $\hat z_0$, against a perfect network's"
right.set(xlabel="time t", title=title, yticks=(1, 2, 4, 8), yticklabels=("1", "2", "4", "8"))
right.minorticks_off()
right.legend()
left.legend()
figures.show(figure, "Left: loss, and a perfect network's, dashed. Right: errors of z0 by time.")

# %% learn-check tags=check
ratio = {name: (wrong[name] / wrong["exact"]).tolist() for name in ("eps", "z0", "v")}
for name, times_worse in ratio.items():
    print(f"{name:4}at t = 0.001 {times_worse[0]:.2f} times the least error,", end=" ")
    print(f"at t = 1 {times_worse[-1]:.2f} times")
reached = float(curve[-8:].mean())
print(f"loss {reached:.3f}; a perfect network has {floor:.3f}, one that knows nothing 1")
near = reached < (1.5 if fast else 1.25) * floor
assert floor > 0.1 and near, "Near the best there is, and that is not zero."
assert ratio["eps"][-1] > 1.5 * max(ratio["z0"][-1], ratio["v"][-1]), "Late, eps is fragile."
assert ratio["z0"][0] > 2 * max(ratio["eps"][0], ratio["v"][0]), "Early, z0 is."
gaps = [float((asked["eps"](z, t)[1] - exact(z, t)[1]).square().mean()) for z, t in noisy[4:]]
print(f"its noise is within {max(gaps):.3f} of exact, squared, from t = 0.1 on")
assert max(gaps) < (0.5 if fast else 0.06), (
    "From t = 0.1 on, its noise divided by -sigma is the exact score."
)

# %% learn-read [markdown]
r"""
**What to see.** The loss stops well above zero, and it *should*: noise cannot be guessed for
certain. That is why a loss curve says so little, and why an exact floor is worth having. On the
right, each reading fails where its row comes near that of $z_t$: `z0` early, `eps` late. `v` fails
nowhere, and hides the curve of `eps` where both are good. The paper
uses `eps` all the same: at $t = 1$ there is no good $\hat z_0$ to be had. What came after it mostly
uses `v` or the flow (notebook 17).
"""

# %% draw-idea [markdown]
r"""
## 7. The way back

Start with noise at $t = 1$. Guess $\hat z_0$ and $\hat\varepsilon$. Where was the point a little
earlier, at $s$? If the guesses were the truth, any

$$z_s = \alpha_s\, \hat z_0 + \sqrt{\sigma_s^2 - f^2}\; \hat\varepsilon + f\, \xi, \qquad \xi \sim
\mathcal N(0, 1)$$

would be right: the two noises add up to variance $\sigma_s^2$, whichever part $f$ of it is fresh.
DDPM's $f$ is the one of section 4, the deviation of $z_s$ given $z_t$ and $z_0$. DDIM [5] takes $f
= 0$: no chance after the start. One number $\eta$ goes from one to the other.

The check compares with the package's `ddim`, and one step at $\eta = 1$ with a draw from
`posterior`.
"""

# %% draw tags=check
from ldm_lite.samplers import ddim


def draw(predict, z, times, eta=0.0):
    """The path from noise z at the first of the times to data at the last, 0."""
    path = [z]
    for t, s in pairwise(times):
        (z0, eps), (alpha, sigma) = predict(path[-1], t), schedule(s)
        fresh = eta * posterior(t, s)[2]
        kept = (sigma**2 - fresh**2).clamp(min=0).sqrt()
        path.append(alpha * z0 + kept * eps + (fresh * torch.randn_like(z) if eta else 0))
    return path


torch.manual_seed(3)
start, grid = torch.randn(1200 if fast else 2000, 2), schedule.grid(20)
finest = schedule.grid(500 if fast else T)
for eta in (0.0, 0.6, 1.0):
    torch.manual_seed(4)
    mine = draw(asked["eps"], start, grid, eta)
    torch.manual_seed(4)
    theirs = [step.z for step in ddim(asked["eps"], start, grid, schedule, eta)]
    torch.testing.assert_close(mine[1:], theirs, atol=1e-3, rtol=1e-3)
(z0, eps), (of_z0, of_zt, deviation) = exact(start, grid[9]), posterior(grid[9], grid[10])
torch.manual_seed(5)
ancestral = of_z0 * z0 + of_zt * start + deviation * torch.randn_like(start)
torch.manual_seed(5)
torch.testing.assert_close(draw(exact, start, grid[9:11], eta=1.0)[-1], ancestral)

# %% paths tags=figure
torch.manual_seed(6)
paths = {eta: torch.stack(draw(exact, start, finest, eta)) for eta in (0.0, 1.0)}
quick = draw(asked["eps"], start, schedule.grid(50 if fast else 200))[-1]
figure, axes = figures.canvas(10.5, 3.9, columns=3)
for axis, eta in zip(axes, paths):
    for path in paths[eta].unbind(1)[: 5 if eta else 14]:
        colour = palette[int(torch.cdist(path[-1:], centres).argmin())]
        axis.plot(*path.T, "-o", markevery=[-1], color=colour, lw=0.7, ms=4, alpha=0.8)
axes[2].scatter(*quick[:1500].T, s=2, color=figures.BLUE)
for axis, title in zip(axes, ("DDIM, no fresh noise", "DDPM, fresh noise", "the network's face")):
    axis.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
figures.show(figure, "Fourteen paths by DDIM, five by DDPM, and points that the network drew.")


# %% paths-check tags=check
def census(points):
    """The share of each island, and how much of it is wrong: 0 … 1."""
    found = torch.bincount(torch.cdist(points, centres).argmin(1), minlength=9) / len(points)
    return found, float((found - shares).abs().sum() / 2)


truth, drawn = islands(2000), {"DDIM": paths[0.0][-1], "DDPM": paths[1.0][-1]}
print(f"real points: {census(truth)[1]:.3f} in the wrong part", end="; ")
print(f"the network's: {census(quick)[1]:.3f}")
assert census(quick)[1] < (0.25 if fast else 0.15), "Every part must get about its share of points."
for name, sample in drawn.items():
    eye = sample[torch.cdist(sample, centres).argmin(1) == 0].std(0).mean() / widths[0]
    print(f"{name}, exact score: {census(sample)[1]:.3f}; the eye is {float(eye):.2f} as wide")
    assert census(sample)[1] < 0.12, "With the exact score, every part gets its share."
    assert torch.allclose(sample.T.cov(), truth.T.cov(), atol=0.12), "... the covariance,"
    assert abs(eye - 1) < 0.2, "... and the width of the eye."

# %% paths-read [markdown]
r"""
**What to see.** A path of DDIM is short and smooth, one of DDPM wanders all over the place. From
the same noise they may end in different parts of the face. Both are right: one point says nothing,
and as a crowd they agree with the data in shares and spread. The network's face is good, with some
points astray between the parts.

With the exact score we took 1000 steps. How to get by with twenty is the subject of notebook 08.

## 8. Break it: three losses that fall

Here are the sound training run and three with a bug each. The sampler is right. Bugs like these
are not for beginners only: a widely read annotated implementation had one of them for two months.
"""


# %% bugs tags=figure
class Deaf(Net):
    def forward(self, z, clock):
        return super().forward(z, 0 * clock)


def alpha_twice(z0, eps, t):
    alpha, _ = columns(t)
    return alpha * z0 + alpha * eps


def rootless(z0, eps, t):
    alpha, sigma = columns(t)
    return alpha**2 * z0 + sigma**2 * eps


cases = {"sound": learned["eps"], "A": learn(noised=rootless), "B": learn(kind=Deaf)}
cases["C"] = learn(noised=alpha_twice)
figure, axes = figures.canvas(11, 2.8, columns=5, width_ratios=(1.3, 1, 1, 1, 1))
for name, (_, losses) in cases.items():
    axes[0].plot(torch.tensor(losses).unfold(0, 25, 25).mean(1), label=name)
axes[0].set(title="loss, mean of 25 steps", ylim=(0, 0.8), xticks=[])
axes[0].legend(ncols=2)
for axis, (name, (net, _)) in zip(axes[1:], cases.items()):
    face = draw(asking(net, Diffusion(schedule)), start[:1200], schedule.grid(100))[-1]
    axis.scatter(*face.T, s=2, color=figures.BLUE)
    axis.set(title=name, aspect="equal", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
words = "Losses of four training runs, and what each network draws: the sound one, and A, B, C."
figures.show(figure, words)

# %% bugs-read [markdown]
r"""
**What to see.** Run A has a loss as low as the sound one's, and a face drawn with too thin a pen.
Run B has a loss that is plainly too high, and draws a face all the same, with more points astray.
Run C draws one point. All losses fall. So neither a falling loss nor one look is a test.

One of them forgot a square root, $\bar\alpha$ for $\alpha$ and $1 - \bar\alpha$ for $\sigma$. One
took $\sqrt{\bar\alpha}$ for $\sqrt{1 - \bar\alpha}$. In one the time never reaches the network.
Which is which? Exercise 4 asks for a test that knows.

## 9. Pictures: LDM-1

Nothing changes but the data and the network. `Pixels` is a first stage that does nothing, `UNet` is
the subject of notebook 06, and `Unconditional` tells it nothing. Before we train, one question to
its cost.
"""

# %% ldm1 tags=check
from torch.utils.flop_counter import FlopCounterMode

from ldm_lite.autoencoder import Pixels
from ldm_lite.condition import Condition
from ldm_lite.conditioners import Unconditional
from ldm_lite.latent import LatentDiffusion, Noise
from ldm_lite.training import EMA
from ldm_lite.unet import UNet, UNetConfig

torch.manual_seed(0)
unet = UNet(UNetConfig(3, width=24, mult=(1, 2, 2), blocks=1, attend_at=(4,), heads=2)).to(device)
ldm1 = LatentDiffusion(Pixels(), unet, Diffusion(schedule, "v"), Unconditional())
train, test = (scenes(split, range(n)).to(device) for split, n in (("train", 4000), ("test", 128)))
cost = {}
for side in (16, 64):
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        unet(torch.zeros(1, 3, side, side).to(train), torch.zeros(1).to(train), Condition())
    cost[side] = counted.get_total_flops()
print(f"{sum(p.numel() for p in unet.parameters()):,} weights, one look at 16 px: ", end="")
print(f"{cost[16] / 1e6:.0f} million operations, at 64 px {cost[64] / cost[16]:.1f} times as many")
assert 15 < cost[64] / cost[16] < 20, "Convolutions pay for each position, attention for pairs."

# %% ldm1-train tags=timeout-900
count, history = 80 if fast else 1200, []
optimizer = torch.optim.AdamW(unet.parameters(), 3e-3)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=count, pct_start=0.1)
average = EMA(unet, 0.995)  # of the weights over the last steps: calmer than the last ones alone
for _ in range(count):
    batch = train[torch.randint(len(train), (16,)).to(device)]
    value = ldm1({"image": batch}).mean()
    optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    rate.step()
    average.update()
    history.append(value.item())
with average.applied():
    kept = {name: p.clone() for name, p in unet.state_dict().items()}
unet.load_state_dict(kept)
unet.eval().requires_grad_(False)
first, final = sum(history[:20]) / 20, sum(history[-20:]) / 20
print(f"{count} steps of 16 pictures; loss {first:.3f} at first, {final:.3f} at the end")
assert final < 0.7 * first, "A loss that does not fall: look at the data and the clock first."

# %% rival-idea [markdown]
r"""
Is that good? This time there is no exact answer, so we need a rival whose knowledge we know:
a perfect model that has learned nothing but the mean of all pictures and the covariance of their
pixels. For normal data the best guess is linear: in the direction of each eigenvector, with
variance $\lambda$, it trusts the picture with $\alpha\lambda / (\alpha^2 \lambda + \sigma^2)$.
"""

# %% rival tags=check
flat = train.flatten(1).cpu()
middle = flat.mean(0)
strength, axes_of = torch.linalg.eigh(flat.T.cov())
strength = strength.clamp(min=0)


def rival(z, t):
    """z0 and eps of one who knows means and covariances; z (B, 3, 16, 16)."""
    alpha, sigma = (weight.float() for weight in schedule(t))
    trust = alpha * strength / (alpha**2 * strength + sigma**2)
    along = (z.cpu().flatten(1) - alpha * middle) @ axes_of
    z0 = (middle + (trust * along) @ axes_of.T).view(z.shape).to(z)
    return z0, (z - alpha * z0) / sigma


alpha, sigma = (weight.float() for weight in schedule(torch.tensor(0.3)))
torch.manual_seed(0)
z = alpha * train + sigma * torch.randn(train.shape).to(train)
found = float((rival(z, torch.tensor(0.3))[0] - train).square().mean())
theory = float((sigma**2 * strength / (alpha**2 * strength + sigma**2)).mean())
print(f"the rival's error at t = 0.3: {found:.4f}; theory {theory:.4f}")
assert abs(found / theory - 1) < 0.05, "The best linear guess has an error that can be computed."

# %% rival-figure tags=figure
looking = asking(lambda z, clock: unet(z, clock, Condition()), ldm1.diffusion)
moments = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
errors = {"the UNet": [], "the rival": []}
for moment in moments:
    z = ldm1.diffusion.noised(test, torch.randn(test.shape).to(test), moment)
    for name, predict in zip(errors, (looking, rival)):
        errors[name].append(float((predict(z, moment)[0] - test).square().mean()))
nothing = float((train.mean(0) - test).square().mean())
figure, (left, right) = figures.canvas(9, 2.9, columns=2)
for name, values in errors.items():
    left.plot(moments, values, "o-", label=name)
    right.plot(moments, [v / r for v, r in zip(values, errors["the rival"])], "o-")
left.axhline(nothing, linestyle="--", color=figures.SOFT, label="the mean picture")
left.set(xlabel="time t", title=r"error of $\hat z_0$ on test pictures", ylim=(0, None))
top = 2.5 if fast else 1.5
right.set(xlabel="time t", title="the same, divided by the rival's", ylim=(0, top))
left.legend(loc="lower right")
figures.show(figure, "Error of the clean guess by time: the UNet, its rival, the mean picture.")
mean_ratio = sum(u / r for u, r in zip(*errors.values())) / len(moments)
print(f"on average the UNet's error is {mean_ratio:.2f} times the rival's")
assert errors["the UNet"][4] < nothing / (1.3 if fast else 3), "It should have learned something."
assert mean_ratio < (4 if fast else 1.35), "A minute should bring it near the linear rival."

# %% rival-read [markdown]
r"""
**What to see.** The two errors nearly agree. This brief training has brought the UNet about as far
as one who knows nothing but how pixels vary together; at some times it is ahead by a little.
Squared error is mostly about light and large shapes, and there a linear guess goes far. Is it all
the same, then, who draws?
"""

# %% samples tags=figure
begin, moments = Noise(5, (8, 3, 16, 16))(train), schedule.grid(20 if fast else 100)
torch.manual_seed(7)
sheets = {"test pictures": test[:8], "the rival": draw(rival, begin, moments)[-1]}
sheets["UNet, DDIM"] = draw(looking, begin, moments)[-1]
sheets["UNet, DDPM"] = draw(looking, begin, moments, eta=1.0)[-1]
theirs = ldm1.sample({}, n=8, size=16, steps=len(moments) - 1, seed=5)
mine = sheets["UNet, DDIM"].clamp(-1, 1).cpu()
torch.testing.assert_close(mine, theirs, atol=0.01, rtol=0)  # the package draws the same
words = "Test pictures; samples of the rival, and of the UNet by DDIM and DDPM, from one noise."
figures.pictures(list(sheets.values()), words, left=list(sheets), scale=7)

# %% samples-read [markdown]
r"""
**What to see.** Look at the rival first: a horizon in the right place, plausible colours, no
things, and here and there a light that no time of day has. The UNet has the horizon too. Its skies
are more often of one kind, day or dusk or night, and dark blots stand where things could stand.
Nothing is a house or a tree, and everything is grainy. That is what so short a training buys.

It is not the method. DDPM's network, for photographs of 32 pixels, saw 800,000 batches of 128 [2],
and ours 1200 of 16. `count` is yours to raise. The next notebooks make each step count for more.
"""

# %% knobs tags=figure
from ldm_lite.course import widgets


def aims(steps, eta, seed):  # eight of the clean guesses on the way of one sample
    trail = list(ldm1.trajectory({}, steps=steps, eta=eta, seed=seed, size=16))
    return torch.cat([trail[round(i * (steps - 1) / 7)].z0 for i in range(8)]).clamp(-1, 1)


choices = {"eta": (0.0, 0.5, 1.0), "steps": (8, 20, 50, 100, 250), "seed": range(20)}
rows = [{"eta": 0.0, "steps": 20 if fast else 100, "seed": 3}, {"eta": 0.5}, {"eta": 1.0}]
words = "What the UNet aims at from t = 1, left, to 0, by eta."
panel = widgets.knobs(aims, choices, rows, words, scale=7)

# %% knobs-read [markdown]
r"""
**What to see.** Each row is one sample, and what the network aims at: first a mean of all
pictures, grey above and brown below, then a light, then blots, and grain last. The noise at the
start is the same, and with $\eta > 0$ the rows end as different pictures. Coarse things come first:
the order of the first landscapes of this notebook, backwards.

**Your turn.** With a kernel, sliders appear below. Do more steps give better pictures here, or is
the network the limit?
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% read-v [exercise] title="Read v" difficulty=1 minutes=4
r"""
A network gave $v = -\sigma z_0 + \alpha\, \varepsilon$. Section 5 solved a system for it. Because
the rows of `v` and $z_t$ are at a right angle, no system is needed: write $z_0$ and $\varepsilon$
as sums of $z_t$ and $v$.
"""


# %% [stub]
def from_v(v, z, alpha, sigma):
    return ..., ...  # z0, eps


# %% [check]
from ldm_lite.course.checks import check

with check("Read v", "from_v still returns ...: look at the compass of section 5.") as c:
    generator = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, 11, 3, generator=generator)
    alpha, sigma = columns(torch.linspace(0, 1, 11))
    mine = from_v(alpha * eps - sigma * z0, alpha * z0 + sigma * eps, alpha, sigma)
    c.that(len(mine) == 2, "Return two tensors, z0 and eps.")
    for name, found, right in (("z0", mine[0], z0), ("eps", mine[1], eps)):
        c.answered(found)
        c.close(found, right, f"{name} is wrong: alpha² + sigma² = 1 turns the system over.")


# %% [solution]
def from_v(v, z, alpha, sigma):
    return alpha * z - sigma * v, sigma * z + alpha * v


# %% [wrong]
def from_v(v, z, alpha, sigma):
    return alpha * z + sigma * v, sigma * z - alpha * v


# %% zero-snr [exercise] title="A schedule that ends" difficulty=2 minutes=8
r"""
Section 2 found light that leaks through the end of a schedule. Lin et al. [6] repair any schedule:
shift the $\alpha$ of all steps so that the last is 0, then scale them so that the first is what it
was. `alpha` holds steps 1 to T. Return the new ones.
"""


# %% [stub]
def ending_at_zero(alpha):
    return ...


# %% [check]
praise = "At t = 1 the noise is z itself and says nothing of z0: such a model has to predict v."
with check("A schedule that ends", "ending_at_zero still returns ...", praise) as c:
    for name, kind in schedules.items():
        alpha = kind(torch.arange(1, T + 1, dtype=torch.float64) / T)[0]
        new = ending_at_zero(alpha)
        right = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        bar = (
            (alpha**2 - alpha[-1] ** 2) * alpha[0] ** 2 / (alpha[0] ** 2 - alpha[-1] ** 2)
        ).sqrt()
        mistakes = {
            "The first step has changed: scale after the shift.": alpha - alpha[-1],
            "Shift alpha, not its square.": bar,
            "Scale back to the first alpha, not to 1.": (alpha - alpha[-1])
            / (alpha[0] - alpha[-1]),
        }
        c.close(new, right, f"Wrong for {name}.", 1e-6, 1e-7, mistakes)
        c.that(float(new[-1]) == 0, "The last one must be exactly 0, not nearly.")


# %% [solution]
def ending_at_zero(alpha):
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


# %% [wrong]
def ending_at_zero(alpha):
    return (alpha - alpha[-1]) / (1 - alpha[-1])


# %% remember [exercise] title="The perfect student" difficulty=2 minutes=10
r"""
A training set is finite: points $x_1 \dots x_N$. For *it*, too, there is a perfect answer. Given
$z$, point $x_i$ is as likely as $\mathcal N(z;\, \alpha x_i, \sigma^2)$ says, so $\hat z_0$ is a
mean of all $x_i$ with these weights. Write it; `softmax` helps. Before you run: what will this
model draw?
"""


# %% [stub]
def remembered(z, x, alpha, sigma):
    """z (B, 2), training points x (N, 2), two numbers -> the clean guess (B, 2)."""
    return ...


# %% [check]
praise = "It draws its training points, and nothing else. What is new comes from imperfection."
with check("The perfect student", "remembered still returns ...", praise) as c:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(7, 2, generator=generator), torch.randn(5, 2, generator=generator)
    for alpha, sigma in ((0.9, 0.3), (0.4, 0.8)):
        squared = torch.cdist(z, alpha * x) ** 2
        right = (-squared / (2 * sigma**2)).softmax(1) @ x
        mistakes = {
            "z lies near alpha x, not near x.": (
                -(torch.cdist(z, x) ** 2) / (2 * sigma**2)
            ).softmax(1)
            @ x,
            "A normal has sigma², twice, below.": (-squared / (2 * sigma)).softmax(1) @ x,
            "There is a 2 below.": (-squared / sigma**2).softmax(1) @ x,
        }
        c.close(remembered(z, x, alpha, sigma), right, "The weights are off.", mistakes=mistakes)

    def student(z, t):
        alpha, sigma = (float(weight) for weight in schedule(t))
        z0 = remembered(z, x, alpha, sigma)
        return z0, (z - alpha * z0) / sigma

    drawn_points = draw(student, torch.randn(50, 2, generator=generator), schedule.grid(200))[-1]
    away = float(torch.cdist(drawn_points, x).amin(1).median())
    c.that(away < 0.01, "Samples should end on training points.")


# %% [solution]
def remembered(z, x, alpha, sigma):
    return (-(torch.cdist(z, alpha * x) ** 2) / (2 * sigma**2)).softmax(1) @ x


# %% [wrong]
def remembered(z, x, alpha, sigma):
    return (-(torch.cdist(z, x) ** 2) / (2 * sigma**2)).softmax(1) @ x


# %% catch [exercise] title="Catch them" difficulty=3 minutes=12
r"""
The test that section 8 asks for. `verdict(noised, net)` gets a noising function,
`noised(z0, eps, t)` with points (B, 2), and a network, `net(z, clock)`. It returns `"sound"`,
`"root"`, `"alpha twice"` or `"deaf"`. Do not compare with our `noised`: the check brings another
schedule, which is sound. Ask what *every* one must obey.
"""


# %% [stub]
def verdict(noised, net):
    # noised(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.3])) is alpha at t = 0.3
    return ...


# %% [check]
cosine = Diffusion(schedules["cosine"]).noised
suspects = {
    "our noised with Net": (noised, Net(), "sound"),
    "the cosine schedule with a narrow Net": (cosine, Net(16), "sound"),
    "rootless with Net": (rootless, Net(), "root"),
    "alpha_twice with Net": (alpha_twice, Net(), "alpha twice"),
    "our noised with Deaf": (noised, Deaf(), "deaf"),
    "the cosine schedule with Deaf": (cosine, Deaf(16), "deaf"),
}
praise = "And so: A forgot the root, B is deaf, C took alpha twice."
with check("Catch them", "verdict still returns ...", praise) as c:
    for name, (function, net, right) in suspects.items():
        mine = verdict(function, net)
        c.answered(mine)
        c.that(mine == right, f"{name} is {right!r}, and verdict says {mine!r}.")


# %% [solution]
def verdict(noised, net):
    one, none, t = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.3])
    alpha, sigma = float(noised(one, none, t)[0, 0]), float(noised(none, one, t)[0, 0])
    if abs(alpha**2 + sigma**2 - 1) > 1e-3:
        return "alpha twice" if abs(alpha - sigma) < 1e-3 else "root"
    early, late = (net(one, torch.tensor([clock])) for clock in (10.0, 900.0))
    return "deaf" if torch.equal(early, late) else "sound"


# %% [wrong]
def verdict(noised, net):
    one, none, t = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.3])
    alpha, sigma = float(noised(one, none, t)[0, 0]), float(noised(none, one, t)[0, 0])
    if abs(alpha**2 + sigma**2 - 1) > 1e-3:
        return "alpha twice" if abs(alpha - sigma) < 1e-3 else "root"
    return "sound"


# %% summary [markdown]
r"""
## Summary

- Noising is fixed: $z_t = \alpha z_0 + \sigma \varepsilon$, any time in one jump. Look at what is
  left at $t = 1$.
- To guess the noise is to know the score, $-\mathbb E[\varepsilon \mid z_t] / \sigma$. The best
  guess is a mean, and its error is not zero.
- The bound weighs errors of the noise by $\frac12 (\mathrm{SNR}_s / \mathrm{SNR}_t - 1)$; the
  paper's loss drops that.
- `eps`, `z0` and `v` are one prediction. Where a row is nearly that of $z_t$, it is fragile.
- DDPM draws fresh noise, DDIM none.
- A falling loss is no test. $\alpha^2 + \sigma^2 = 1$, and a clock that matters, are.

**What next.** Notebook 06 opens the UNet. 07 puts all of this in the latent space, where the
sixteenfold cost is not paid. 08 makes the way back short.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
   [arXiv 2006.11239](https://arxiv.org/abs/2006.11239)
3. Y. Song and others. *Score-Based Generative Modeling through Stochastic Differential Equations.*
   ICLR 2021. [arXiv 2011.13456](https://arxiv.org/abs/2011.13456)
4. T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
   [arXiv 2202.00512](https://arxiv.org/abs/2202.00512)
5. J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021.
   [arXiv 2010.02502](https://arxiv.org/abs/2010.02502)
6. S. Lin, B. Liu, J. Li, X. Yang. *Common Diffusion Noise Schedules and Sample Steps are Flawed.*
   WACV 2024. [arXiv 2305.08891](https://arxiv.org/abs/2305.08891)
"""
