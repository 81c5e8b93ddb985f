r"""
title: Samplers
goal: Write five samplers that follow one equation, measure each, and spend few steps well
needs: Notebook 05, or the noising equation and what DDIM does; a little calculus
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: five samplers by your own hand, equal to the package's, and a rule for choosing one
objectives:
  - write down the one equation that all samplers follow, in three sets of coordinates
  - derive DDPM, DDIM, Heun, PLMS and DPM-Solver++ from it, each in a few lines
  - measure the order of a sampler on a world whose answer is known
  - choose sampler, grid and eta for a given number of evaluations, and say what was measured
  - turn a sampler round, to encode a picture, to mix two and to change one
"""

# %% the-idea [markdown]
r"""
**What to see.** One box in colour. The network is trained, and nothing in this notebook changes it.
We only decide *when* to ask it and what to do with the answer.

Each question costs an evaluation of the UNet, and that is nearly all the time that a picture takes.
A thousand questions were usual once, and the paper asks 50 to 500 times. How few will do? First we
ask where the exact answer is known, then with the model of notebook 00.
"""

# %% start
import math
from itertools import pairwise

import torch

from ldm_lite import samplers
from ldm_lite.diffusion import Estimate, VariancePreserving
from ldm_lite.samplers import grid, last

torch.set_grad_enabled(False)  # nothing is trained today
schedule = VariancePreserving()  # the paper's, and our model's


def legs(times):
    """From each time to the next: (t, alpha, sigma), (s, alpha_s, sigma_s), as plain numbers."""
    alpha, sigma = (weight.tolist() for weight in schedule(times))
    return pairwise(zip(times, alpha, sigma))


def agree(mine, theirs, predict, z, **own):
    """Both samplers must end at the same points, in 1, 7 and 20 steps, from the same chance."""
    for steps in (1, 7, 20):
        times = grid("uniform", schedule, steps)
        torch.manual_seed(1)
        end = mine(predict, z, times)
        torch.manual_seed(1)
        torch.testing.assert_close(end, last(theirs(predict, z, times, schedule, **own)))


# %% equation [markdown]
r"""
## 1. One equation

Noising says $z_t = \alpha z_0 + \sigma \varepsilon$. Keep point and noise, and let time move:
only the weights change, so $dz = z_0\, d\alpha + \varepsilon\, d\sigma$. Put the network's guesses
in the place of both, and this is the path of a sample from noise to data. Now watch $z / \alpha$
instead of $z$. By the quotient rule the part with $z_0$ drops out:

$$dz = \hat z_0\, d\alpha + \hat\varepsilon\, d\sigma \quad\Longleftrightarrow\quad d\!\left(
\frac z\alpha \right) = \hat\varepsilon\; d\rho, \qquad \rho = \frac\sigma\alpha$$

The slope of the path *is* the guess of the noise. For one Gaussian the path is known: a point stays
as many deviations from the mean as it was. We test the slope on it.
"""


# %% world
def mixture(centres, shares, width):
    """What a perfect network says of Gaussians at centres (K, D): (z (B, D), alpha, sigma)."""

    def world(z, alpha, sigma):
        v = (alpha * width) ** 2 + sigma**2
        way = z[:, None] - alpha * centres
        share = (shares.log() - way.square().sum(2) / (2 * v)).softmax(1)[..., None]
        z0 = (share * (centres + alpha * width**2 / v * way)).sum(1)
        return Estimate(z0, sigma / v * (share * way).sum(1))

    return world


def asked(world):
    """predict(z, t), as a sampler wants it."""
    return lambda z, t: world(z, *map(float, schedule(t)))


tensor = lambda *rows: torch.tensor(rows, dtype=torch.float64)

# %% slope tags=check
alone, off = mixture(tensor([1.7]), tensor(1.0), 0.4), torch.linspace(-2, 2, 5).double()[:, None]
known = lambda a, s: a * 1.7 + math.hypot(a * 0.4, s) * off  # off: how many deviations
(before, now, after), times = zip(*schedule(tensor(0.4001, 0.4005, 0.4009))), tensor(0.4005)
early, here, late = (known(*map(float, weights)) for weights in (before, now, after))
rise = late / after[0] - early / before[0]
slope = rise / (after[1] / after[0] - before[1] / before[0])
torch.testing.assert_close(slope, alone(here, *map(float, now)).eps, rtol=1e-5, atol=1e-5)
print("slope of the path", slope[:, 0].numpy().round(4))


# %% truth [markdown]
r"""
To judge samplers we need true paths of other worlds too. On this schedule $\alpha^2 + \sigma^2 =
1$, so $\alpha = \cos\varphi$, $\sigma = \sin\varphi$, and the equation reads $dz / d\varphi =
\cos\varphi\, \hat\varepsilon - \sin\varphi\, \hat z_0$. Runge and Kutta's method, four looks a step
and a thousand steps, is as good as exact. The single Gaussian confirms it.
"""


# %% follow tags=check
def followed(world, z, times):
    """The true path of z through the times (n), as (n, B, D)."""
    angles, path = torch.atan2(*schedule(times)[::-1]).tolist(), [z]

    def slope(z, angle):
        z0, eps = world(z, math.cos(angle), math.sin(angle))
        return math.cos(angle) * eps - math.sin(angle) * z0

    for angle, following in pairwise(angles):
        z, h = path[-1], following - angle
        a = slope(z, angle)
        b = slope(z + h / 2 * a, angle + h / 2)
        c = slope(z + h / 2 * b, angle + h / 2)
        d = slope(z + h * c, following)
        path.append(z + h / 6 * (a + 2 * b + 2 * c + d))
    return torch.stack(path)


finest = torch.arange(1000, 1, -1).double() / 1000
first, final = (known(*map(float, schedule(t))) for t in (finest[0], finest[-1]))
torch.testing.assert_close(followed(alone, first, finest)[-1], final, rtol=1e-5, atol=1e-5)

# %% paths tags=figure
line = mixture(tensor([-1.3], [0.1], [1.2]), tensor(0.4, 0.3, 0.3), 0.1)
path = followed(line, torch.linspace(-2.2, 2.2, 21).double()[:, None], finest)[..., 0]
alpha, sigma = schedule(finest)
figure, (left, right) = figures.canvas(10, 3.4, columns=2)
for one in path.T:
    colour = figures.COLOURS[int((one[-1] - tensor(-1.3, 0.1, 1.2)).abs().argmin())]
    left.plot(finest, one, color=colour, lw=1)
    right.plot(sigma / alpha, one / alpha, color=colour, lw=1)
left.set(xlabel="time t", title="z, as it is")
right.set(xlabel=r"ρ = σ / α", title="z / α: the slope is the guess of the noise")
right.set(xlim=(0, 4), ylim=(-6, 6))
figures.show(figure, "Paths from noise, right, to three islands of points, left, in two pictures.")

# %% paths-read [markdown]
r"""
**What to see.** Noise is on the right of both pictures, data on the left; colours say which island
a path ends on. Left, nothing happens for long, and then everything at once. Right, paths are
straight far out, because there the guess of the noise hardly changes, and they bend where it is
decided which island it will be. Where a path is straight, one long step is as good as a thousand.
So all our work is in the bends.

## 2. The simplest step, and its noisy sister

**DDIM.** Take the slope for constant during a step, from $\rho_t$ to $\rho_s$. This is Euler's
method, one line. Multiplied out it is $\alpha_s \hat z_0 + \sigma_s \hat\varepsilon$, the DDIM of
notebook 05 [1]. Seen from here, DDIM is simply what everybody tries first.
"""


# %% euler tags=check
def euler(predict, z, times):
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
        eps = predict(z, t).eps
        z = alpha_s * (z / alpha + (sigma_s / alpha_s - sigma / alpha) * eps)
    return z


centres, shares = tensor([1.0, 0.5], [-1.0, -0.2], [0.3, -1.1]), tensor(0.5, 0.3, 0.2)
plane = mixture(centres, shares, 0.4)  # three islands in the plane
torch.manual_seed(0)
start = torch.randn(100, 2, dtype=torch.float64)
agree(euler, samplers.ddim, asked(plane), start)

# %% ddpm [markdown]
r"""
**DDPM.** Its step draws from $q(z_s \mid z_t, z_0)$ with the guess for $z_0$ [2]. Two things are
known of $z_s$: it came from $z_0$, and $z_t$ came from it by $r = \alpha_t / \alpha_s$ and noise
of variance $v = \sigma_t^2 - r^2 \sigma_s^2$. The product of two normals is a normal. With
$\sigma_s^2 r^2 + v = \sigma_t^2$ its mean and variance are

$$\mathcal N(z_s;\, \alpha_s z_0, \sigma_s^2)\; \mathcal N(z_t;\, r z_s, v) \;\propto\; \mathcal
N\!\left( z_s;\; \frac{\alpha_s v\, z_0 + r \sigma_s^2\, z_t}{\sigma_t^2},\; \frac{\sigma_s^2
v}{\sigma_t^2} \right)$$

The check says that it is the package's `ddim` with $\eta = 1$, for any number of steps, if both
draw the same noise.
"""


# %% ancestral tags=check
def ancestral(predict, z, times, noise=torch.randn_like):
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
        z0, r = predict(z, t).z0, alpha / alpha_s
        v = sigma**2 - (r * sigma_s) ** 2
        mean = (alpha_s * v * z0 + r * sigma_s**2 * z) / sigma**2
        z = mean + sigma_s * math.sqrt(v) / sigma * noise(z)
    return z


agree(ancestral, samplers.ddim, asked(plane), start, eta=1.0)

# %% heun-idea [markdown]
r"""
## 3. Look twice: Heun

Euler believes the slope at the start of a step. Go there, ask again, and take the *mean* of both
slopes for the step: Heun's method [3]. It costs two evaluations a step, so it has to be more than
twice as good.

The last step ends at $t = 0$. There the network was never asked in training, and $\sigma = 0$: what
is the noise in a clean point? So this step stays Euler's. (In the package a very long first step
does too: in all but pure noise, a mean of two slopes makes things worse.)
"""


# %% heun tags=check
def heun(predict, z, times):
    for (t, alpha, sigma), (s, alpha_s, sigma_s) in legs(times):
        eps, ahead = predict(z, t).eps, sigma_s / alpha_s - sigma / alpha
        if sigma_s > 0:
            there = alpha_s * (z / alpha + ahead * eps)
            eps = (eps + predict(there, s).eps) / 2
        z = alpha_s * (z / alpha + ahead * eps)
    return z


agree(heun, samplers.heun, asked(plane), start)

# %% step tags=figure
figure, axis = figures.canvas(7.5, 3.4)
ratio, scaled, which = sigma / alpha, path / alpha[:, None], 13
begin, end = (int((ratio < limit).nonzero()[0]) for limit in (1.5, 0.5))
ask = lambda i, y: float(line(alpha[i] * y.view(1, 1), float(alpha[i]), float(sigma[i])).eps)
y, ahead = scaled[begin, which], float(ratio[end] - ratio[begin])
slopes = {"Euler": ask(begin, y)}
slopes["the second slope"] = ask(end, y + ahead * slopes["Euler"])
slopes["Heun: the mean"] = sum(slopes.values()) / 2
shown = slice(begin - 60, end + 60)
axis.plot(ratio[shown], scaled[shown, which], color=figures.INK, label="true path")
for (name, slope), colour in zip(slopes.items(), figures.COLOURS):
    ends, style = (float(y), float(y) + ahead * slope), ":" if "second" in name else "-o"
    axis.plot(ratio[[begin, end]], ends, style, color=colour, markevery=[1], label=name)
axis.set(xlabel=r"ρ = σ / α", ylabel="z / α", title="one long step, from right to left")
axis.legend()
figures.show(
    figure, "A true path that bends, and from one point on it the steps of Euler and Heun."
)
missed = {n: abs(float(y + ahead * k - scaled[end, which])) for n, k in slopes.items()}
print(", ".join(f"{name} misses by {gap:.3f}" for name, gap in missed.items()))
assert missed["Heun: the mean"] < missed["Euler"] / 2, "The mean of both slopes should be better."

# %% step-read [markdown]
r"""
**What to see.** The path bends, and Euler leaves it along the tangent. The slope at the far end
is wrong too, but on the other side. The mean of both lands near the path. Halve the step: Euler's
error per step becomes a quarter, Heun's an eighth. There are twice as many steps, so in the end
halving the step divides the errors by 2 and by 4. That is what *order* 1 and 2 mean, and section 5
measures it.
"""

# %% plms-idea [markdown]
r"""
## 4. Remember, in place of asking twice

**PLMS** [6]. A second look costs an evaluation. But the earlier looks are there for nothing.
Lay a polynomial through the last $k$ values of $\hat\varepsilon$, at the step numbers $0, -1, -2
\dots$, and take its mean over the coming step, from 0 to 1. The weights $b_i$ do not depend on the
values: they must be right for $1, x, x^2, \dots$

$$\sum_{i<k} b_i\, (-i)^j = \int_0^1 x^j\, dx = \frac1{j+1}, \qquad j = 0 \dots k - 1$$

That is a linear system, and its solution has a name: Adams and Bashforth.
"""


# %% adams tags=check
def adams(k):
    """The weights of the last k values, the newest first."""
    j = torch.arange(k, dtype=torch.float64)
    return torch.linalg.solve((-j) ** j[:, None], 1 / (j + 1))


for k in (1, 2, 3, 4):
    print(f"{k} values:", ", ".join(f"{b:+.4f}" for b in adams(k).tolist()))
    torch.testing.assert_close(adams(k), tensor(*samplers.ADAMS[k - 1]))
    assert abs(float(adams(k).sum()) - 1) < 1e-12, "A constant slope must stay what it is."


# %% plms tags=check
def plms(predict, z, times):
    held = []
    for (t, alpha, sigma), (s, alpha_s, sigma_s) in legs(times):
        held, ahead = [predict(z, t).eps, *held][:4], sigma_s / alpha_s - sigma / alpha
        eps = sum(b * e for b, e in zip(adams(len(held)).tolist(), held))
        if len(held) == 1 and sigma_s > 0:  # nothing to remember yet: Heun's step
            eps = (eps + predict(alpha_s * (z / alpha + ahead * eps), s).eps) / 2
        z = alpha_s * (z / alpha + ahead * eps)
    return z


agree(plms, samplers.plms, asked(plane), start)

# %% solver-idea [markdown]
r"""
**DPM-Solver++** [4] turns the picture over. Divide by $\sigma$ instead of $\alpha$, and the part
with the *noise* drops out: $d(z / \sigma) = \hat z_0\, d(\alpha / \sigma)$. With $\lambda =
\log(\alpha / \sigma)$, half the logarithm of the signal to noise ratio,

$$\frac{z_s}{\sigma_s} - \frac{z_t}{\sigma_t} = \int_{\lambda_t}^{\lambda_s} e^\lambda\, \hat
z_0(\lambda)\, d\lambda$$

The exponential is integrated exactly; only the guess is approximated. Draw the line through $\hat
z_0$ now and one step before, and take its value in the middle of the coming step. In code that is
`aim`: two steps of memory, hence *2M*.

The last step ends where $\lambda$ is infinite. Half of infinity is no place for a straight line,
so there `aim` is the guess itself: a first-order step.
"""


# %% solver tags=check
def solver(predict, z, times):
    before = None
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
        z0 = aim = predict(z, t).z0
        now = math.log(alpha / sigma)
        if before is not None and sigma_s > 0:
            (previous, then), ahead = before, math.log(alpha_s / sigma_s) - now
            aim = z0 + ahead / 2 * (z0 - previous) / (now - then)
        z = sigma_s / sigma * z + (alpha_s - alpha * sigma_s / sigma) * aim
        before = z0, now
    return z


agree(solver, samplers.dpm_solver, asked(plane), start)

# %% guesses tags=figure
log_ratio = torch.log(alpha / sigma)
points = [line(path[i, :, None], float(alpha[i]), float(sigma[i])) for i in range(0, 999, 3)]
figure, axes = figures.canvas(10, 3.2, columns=2, sharex=True)
for axis, name, title in zip(axes, ("eps", "z0"), ("the noise", "the clean point")):
    values = torch.stack([getattr(point, name)[:, 0] for point in points])
    for i in range(1, 21, 2):
        colour = figures.COLOURS[int((path[-1, i] - tensor(-1.3, 0.1, 1.2)).abs().argmin())]
        axis.plot(log_ratio[::3], values[:, i], color=colour, lw=1)
    axis.set(xlabel=r"λ = log(α / σ): noise on the left, data on the right")
    axis.set(title=f"guess of {title} along the paths")
figures.show(figure, "Guesses along ten true paths: of the noise, left, of the clean point, right.")

# %% guesses-read [markdown]
r"""
**What to see.** This is what a sampler has to draw on: left for Heun and PLMS, right for the
solver. The noise is settled at the start, and turns late. The clean point turns in the middle and
is at rest near the data, where the last steps are. Early there is nothing to choose, since all
guesses are one: the mean of everything. Whichever you hold on to, it is wrong in between.

## 5. The order, measured

On the plane with three islands we know where every path must end. We stop at $t = 0.1$, to keep the
special last step out of it, and count evaluations of the network, not steps.
"""

# %% orders tags=figure
ours = {"DDIM": euler, "Heun": heun, "PLMS": plms, "DPM-Solver++": solver}
colours = dict(zip([*ours, "DDPM"], figures.COLOURS))
counts = (18, 45, 90, 180) if fast else (18, 45, 90, 180, 450)
truth = followed(plane, start, torch.linspace(1, 0.1, 901, dtype=torch.float64))[-1]
errors = {name: [] for name in ours}
for name, sampler in ours.items():
    for steps in counts:
        times = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
        gap = sampler(asked(plane), start, times) - truth
        errors[name].append(float(gap.square().mean().sqrt()))
figure, axis = figures.canvas(6.5, 3.4)
for name, values in errors.items():
    looks = [steps * (2 if name == "Heun" else 1) for steps in counts]
    axis.loglog(looks, values, "o-", color=colours[name], label=name)
axis.set(xlabel="evaluations, from t = 1 to t = 0.1", ylabel="distance from the true end")
axis.legend()
figures.show(figure, "Error of four samplers against evaluations, both in powers of ten.")

# %% orders-check tags=check
for name, order in {"DDIM": 1, "Heun": 2, "PLMS": 2, "DPM-Solver++": 2}.items():
    coarse, fine = errors[name][-2:]
    found = math.log(coarse / fine) / math.log(counts[-1] / counts[-2])
    print(f"{name:13} order {found:.2f}, error with 18 steps {errors[name][0]:.4f}")
    assert abs(found - order) < 0.3, f"{name} should have order {order}."

# %% crowd tags=check
torch.manual_seed(2)
crowd = torch.randn(6000, 2, dtype=torch.float64)
mean = shares @ centres
spread = (shares * (centres - mean).T) @ (centres - mean) + 0.16 * torch.eye(2).double()
for name, sampler in {**ours, "DDPM": ancestral}.items():
    end = sampler(asked(plane), crowd, grid("uniform", schedule, 100))
    assert torch.allclose(end.mean(0), mean, atol=0.06), f"{name} misses the mean of the data."
    assert torch.allclose(end.T.cov(), spread, atol=0.12), f"{name} misses its covariance."
print("all five find the mean and the covariance of the data")

# %% orders-read [markdown]
r"""
**What to see.** Ten times the evaluations divide the error of DDIM by 10, and the others' by 100.
Heun pays double for each step and lies to the right of those that remember.

Why has PLMS only order 2, with four values in memory? Its weights give the mean over steps that
are equal in *time*, and the integral runs over $\rho$. The mean with the wrong measure is an error
of second order. It is small, and PLMS is the best here.

As a crowd, all five samplers find the data again. A crowd forgives errors that single paths show.
"""

# %% real [markdown]
r"""
## 6. A real model, and where to put the steps

Now the model of notebook 00, and paths in 768 dimensions. Nobody knows where they end. We take many
steps of Heun's method for the truth and call its end *converged*. All samplers start from the same
noise.

First the grid. `uniform` is even in time. `quadratic` is even in $\sqrt t$ [1], `karras` in
$\rho^{1/7}$ [3]. `original` is what the paper's code does.
"""

# %% model tags=check
from ldm_lite.course import drawings, widgets
from ldm_lite.data import Scenes
from ldm_lite.latent import LatentDiffusion, Noise
from ldm_lite.samplers import predictor

model = LatentDiffusion.load("scenes-ldm4").to(device)
stage, names = model.first_stage, model.conditioner.names


def listening(labels, guidance=1.0, denoiser=model.denoiser):
    """predict(z, t) of the model, told these classes."""
    told, blank = model.conditions({"label": labels})
    return predictor(denoiser, model.diffusion, told, blank, guidance)


labels = torch.tensor([0, 3, 5, 10] if fast else [0, 3, 5, 6, 9, 10, 12, 15])
predict = listening(labels)
noise = Noise(1, (len(labels), 3, 16, 16))(torch.empty(0, device=device))
times = grid("karras", schedule, 20 if fast else 60)
converged = last(samplers.heun(predict, noise, times, schedule))
times = grid("uniform", schedule, 5)
mine, theirs = solver(predict, noise, times), samplers.dpm_solver(predict, noise, times, schedule)
torch.testing.assert_close(mine, last(theirs), atol=1e-3, rtol=0)

# %% grids tags=figure
kinds = ("uniform", "quadratic", "karras", "original")
figure, (left, right) = figures.canvas(10, 2.6, columns=2, sharey=True)
for row, (kind, colour) in enumerate(zip(kinds, figures.COLOURS)):
    times = grid(kind, schedule, 10)
    alpha, sigma = schedule(times)
    left.plot(times, 0 * times - row, "o", color=colour)
    right.semilogx((sigma / alpha)[sigma > 0], (0 * times - row)[sigma > 0], "o", color=colour)
left.set(xlabel="time t", yticks=range(0, -4, -1), yticklabels=kinds, ylim=(-3.5, 0.5))
right.set(xlabel=r"ρ = σ / α; where it is 0 there is no dot")
figures.show(figure, "Ten steps on four grids: by time, left, and by noise to signal, right.")
table = range(1000)  # the original looks its steps up here, at range(0, 1000, 1000 // steps) + 1
beyond = [k for k in range(1, 1001) if max(range(0, 1000, 1000 // k)) + 1 not in table]
print(f"{len(beyond)} of 1000 step counts run over the end of the table: {beyond[:6]} ...")
assert len(beyond) == 599, "A range that starts at 1 can end at 1000, and the table at 999."

# %% grids-read [markdown]
r"""
**What to see.** From the right, noise, to the left, data. `uniform` takes its last step from
$\rho = 0.5$, half as much noise as signal, straight to nothing. `quadratic` spends more steps
there. `karras` spreads them almost evenly over the powers of ten, where there is only noise too.
`original` begins below $t = 1$ and stops early: what it returns keeps a little noise. Its formula
runs over the end of its table for 599 of 1000 step counts, 3 and 9 among them; that program
stops with an error. The package takes the table's last entry instead.
"""

# %% errors tags=figure
package = {"DDIM": samplers.ddim, "Heun": samplers.heun, "PLMS": samplers.plms}
package["DPM-Solver++"] = samplers.dpm_solver


def counting(looks, predict):
    """The same predict, but each look is noted."""
    return lambda z, t: looks.append(t) or predict(z, t)


def off_by(sampler, kind, steps):
    """Evaluations, and the distance from the converged latents: the median sample's."""
    looks = []
    end = last(sampler(counting(looks, predict), noise, grid(kind, schedule, steps), schedule))
    return len(looks), float((end - converged).square().flatten(1).mean(1).sqrt().median())


counts = (5, 10) if fast else (5, 10, 20, 40)
curves = {}
for kind in ("uniform", "quadratic"):
    for name, sampler in package.items():
        steps = [(k + 1) // 2 if name == "Heun" else k - (name == "PLMS") for k in counts]
        curves[kind, name] = [off_by(sampler, kind, k) for k in steps]
figure, (left, right) = figures.canvas(10, 3.4, columns=2, sharey=True)
for (kind, name), curve in curves.items():
    axis = left if kind == "uniform" else right
    axis.loglog(*zip(*curve), "o-", color=colours[name], label=name)
    axis.set(title=f"{kind} grid", xlabel="evaluations", xticks=counts, xticklabels=counts)
    axis.minorticks_off()
left.set(ylabel="distance from converged")
left.legend()
figures.show(figure, "Distance from the converged latents by evaluations: uniform, quadratic grid.")

# %% errors-check tags=check
for (kind, name), curve in curves.items():
    print(f"{kind:10}{name:13} {curve[1][0]:2} evaluations: {curve[1][1]:.3f} away")
plain, clever = curves["uniform", "DDIM"], curves["quadratic", "DPM-Solver++"]
assert clever[1][1] < plain[1][1] / 1.5, "A better grid and a memory should pay."
assert plain[1][1] < plain[0][1], "More evaluations of DDIM must come nearer."

# %% errors-read [markdown]
r"""
**What to see.** Left, from 10 evaluations on, all curves fall slowly: the order of section 5 is
gone. The last step is Euler's for every sampler, here it is long, and its error is all that one
sees. Right, it is short, and memory pays: with ten evaluations PLMS and DPM-Solver++ are nearer
than DDIM with twenty. (PLMS asks for even steps. Even in $\sqrt t$ will do.) So find out where the
error comes from before you buy a better method.
"""

# %% quality-idea [markdown]
r"""
## 7. Is nearer better?

Distance from the converged latents is numerics. Do the *pictures* look more like scenes? We ask FID
(notebook 12), the distance between what a small network sees in samples and in real scenes. It is
noisy: as few real scenes are some way off, too. The figure has them as a band, drawn five times.

**Predict before you run.** Each sampler draws the same number of pictures with 3, 5, 10 and 20
evaluations, or about as many, on the uniform grid. Write down: which is worst with so few as 3?
From how many on do more evaluations buy nothing? And DDPM, with its fresh noise?
"""

# %% quality tags=timeout-900
from functools import partial

from ldm_lite.features import Features
from ldm_lite.metrics import fid
from ldm_lite.runs import looked_at, pictures

features, n = Features("scenes").to(device), 48 if fast else 96
seen = lambda rows: looked_at(features, pictures(Scenes("validation"), rows))
real, others = seen(range(256 if fast else 1024)), seen(range(2000, 2000 + 5 * n)).split(n)
floor, counts = [fid(real, part) for part in others], (4, 10) if fast else (3, 5, 10, 20)
recipes = {"DDPM": "ddim", "DDIM": "ddim"}
recipes |= {} if fast else {"DPM-Solver++": "dpm_solver", "Heun": "heun"}
quality = {name: [] for name in recipes}
for name, sampler in recipes.items():
    for steps in (2, 3, 5, 10) if name == "Heun" else counts:
        own, looks = {"eta": 1.0} if name == "DDPM" else {}, []
        own |= {"sampler": sampler, "wrap": partial(counting, looks), "guidance": 1.0}
        drawn = model.sample({"label": torch.arange(n) % 16}, steps=steps, **own)
        quality[name].append((len(looks), fid(real, looked_at(features, drawn))))

# %% quality-figure tags=figure
figure, axis = figures.canvas(6.5, 3.4)
for name, curve in quality.items():
    axis.loglog(*zip(*curve), "o-", color=colours[name], label=name)
axis.axhspan(min(floor), max(floor), color=figures.LINE, label="real scenes, as many")
ticks = {"xticks": (3, 5, 10, 20), "xticklabels": (3, 5, 10, 20), "yticks": (5, 10, 20, 40)}
axis.set(**ticks, yticklabels=(5, 10, 20, 40), xlabel="evaluations a picture", ylabel="FID")
axis.minorticks_off()
axis.legend()
figures.show(figure, "FID of samplers by evaluations; a band: as many real scenes, five times.")

# %% quality-check tags=check
print(f"{n} other real scenes, five times: {min(floor):.1f} to {max(floor):.1f}")
for name, curve in quality.items():
    print(f"{name:13}", ", ".join(f"{looks}: {value:.1f}" for looks, value in curve))
ddpm, ddim = ([value for _, value in quality[name]] for name in ("DDPM", "DDIM"))
assert sum(ddpm) > (0.9 if fast else 1.2) * sum(ddim), "Few steps and fresh noise do not mix."
assert ddim[-1] < 1.5 * max(floor), "With enough steps, samples should look real."

# %% quality-read [markdown]
r"""
**What to see.** With 2 or 3 evaluations nobody is good. With 5, all but DDPM have come most of the
way, and DDPM needs more than twice the steps of DDIM. From 10 on the others lie on each other, a
little above the band, and stay there: what is left is the model's, and no sampler takes it away.
(Smaller differences than the band is wide mean nothing.) Compare with section 6: there, errors went
on falling after 10. *Nearer* paid as long as pictures were plainly wrong, and then no more. Our
world is small, and the model is told the class; 256 pixels and free text need more steps.
"""

# %% chance-idea [markdown]
r"""
## 8. Chance on the way

Is fresh noise good for nothing? Back to the plane, where we know what is right. We look at the
variance of a crowd, twice: from a sound start, and from noise that is far too small. The second
stands for any mistake made early, such as a network's.
"""


# %% chance tags=figure
def stochastic(predict, z, steps, eta):
    return last(samplers.ddim(predict, z, grid("uniform", schedule, steps), schedule, eta))


counts, etas = (5, 10, 20, 50) if fast else (5, 10, 20, 50, 200), (0.0, 0.5, 1.0)
torch.manual_seed(3)
crowd = torch.randn(3000 if fast else 10_000, 2, dtype=torch.float64)
figure, axes = figures.canvas(9, 3, columns=2, sharey=True)
variance = {}
for axis, (title, size) in zip(
    axes, {"a sound start": 1.0, "a start that is too small": 0.6}.items()
):
    for eta in etas:
        ends = [stochastic(asked(plane), size * crowd, k, eta) for k in counts]
        variance[size, eta] = [float(end.T.cov().trace() / spread.trace()) for end in ends]
        axis.semilogx(counts, variance[size, eta], "o-", label=f"η = {eta:g}")
    axis.axhline(1, linestyle="--", color=figures.SOFT)
    axis.set(xlabel="steps", title=title, xticks=counts, xticklabels=counts)
    axis.minorticks_off()
axes[0].set(ylabel="variance, against the data's", ylim=(0, None))
axes[0].legend()
figures.show(
    figure, "Variance of samples of three etas by steps: from a sound start and a bad one."
)

# %% chance-check tags=check
for (size, eta), values in variance.items():
    print(f"start × {size}, η = {eta:g}:", ", ".join(f"{v:.2f}" for v in values))
assert variance[1.0, 0.0][2] > variance[1.0, 1.0][2], "With few steps, fresh noise costs variance."
assert variance[0.6, 0.0][-1] < 0.7, "Without noise a mistake is carried to the end."
assert variance[0.6, 1.0][-1] > 0.8, "With noise and many steps it is forgotten."

# %% chance-read [markdown]
r"""
**What to see.** On the left, with few steps every crowd is too narrow: a guess is a mean, and means
are cautious. Fresh noise makes that a little worse. On the right, the mistake stays for ever
without noise, however many steps are taken. With noise it is forgotten, if there are steps enough.
So: few steps, $\eta = 0$; a doubtful network and time to spare, $\eta > 0$.

## 9. Backwards and sideways

Without chance a path can be walked **backwards**, from a picture to the noise that it comes from
[1]. One thing is awkward: the step from $s$ up to $t$ should use the guess at its far end, which we
do not know yet. `encode` asks with the point it has, and with more iterations it asks again with
the answer.
"""

# %% inversion tags=figure
scene = Scenes("test").batch([3, 8, 14, 40])
photos, shown = (scene["image"].float() / 127.5 - 1).to(device), scene["label"]
clean, knows = stage.encode(photos), listening(shown)


def round_trip(steps, iterations=1):
    """The noise that a picture comes from, and the picture that comes of it."""
    times = grid("quadratic", schedule, steps)
    code = last(samplers.encode(knows, clean, times, schedule, iterations))
    return code, last(samplers.ddim(knows, code, times, schedule))


trips = {"8 steps": round_trip(8), "8 steps, 3 iterations": round_trip(8, 3)}
most = "16 steps" if fast else "40 steps"
trips[most] = round_trip(int(most[:2]))
night = torch.full_like(shown, names.index("night snow"))
code, times = trips[most][0], grid("quadratic", schedule, int(most[:2]))
other = last(samplers.ddim(listening(night), code, times, schedule))
rows = [photos, figures.latent(code, 64), *(stage.decode(back) for _, back in trips.values())]
words = "Scenes; their noise; what comes back in three ways; the same noise told another class."
left = ["scene", "its noise", *(name.replace(", ", ",\n") for name in trips), "told\nnight snow"]
figures.pictures([*rows, stage.decode(other)], words, left=left, scale=2)

# %% inversion-check tags=check
away = {name: float((back - clean).square().mean().sqrt()) for name, (_, back) in trips.items()}
for name, gap in away.items():
    print(f"{name}: {gap:.3f} from the latent; its noise has deviation {trips[name][0].std():.2f}")
once, thrice, fine = away.values()
assert fine < once / 1.3, "Smaller steps must bring the picture back more exactly."
assert thrice < once / 1.5, "So must asking again."

# %% slerp-idea [markdown]
r"""
**What to see.** The second row looks like noise. With 8 steps the way back ends near the picture,
without its stars and with softer windows. Asking three times, or five times the steps, brings most
of it back. In the last row the same noise is told *night snow*: things stand about where things
stood.

**Sideways.** Two noises make two pictures. What is between them? The obvious mixture is a straight
line, $(1 - w)\, a + w\, b$. But noise in $d$ dimensions has length about $\sqrt d$, always, and two
independent ones stand at a right angle. So half way the line has length $\sqrt{d / 2}$, and that is
no noise that the network ever met. The circle keeps the length, *slerp*.
"""


# %% slerp tags=figure
def lerp(a, b, w):
    return (1 - w) * a + w * b


def slerp(a, b, w):
    """Along the circle from a to b, both (C, h, w)."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


a, b = Noise(3, (2, 3, 16, 16))(noise)
shares_of_b = torch.linspace(0, 1, 5 if fast else 7)
between = {way.__name__: torch.stack([way(a, b, w) for w in shares_of_b]) for way in (lerp, slerp)}
same = listening(torch.full((len(shares_of_b),), names.index("day grass")))
times = grid("quadratic", schedule, 12)
drawn = [
    stage.decode(last(samplers.dpm_solver(same, z, times, schedule))) for z in between.values()
]
words = (
    "Pictures between two noises, mixed along a straight line, above, and along a circle, below."
)
figures.pictures(drawn, words, left=list(between), above=[f"{w:.2f}" for w in shares_of_b])

# %% slerp-check tags=check
half = {way: float(z[len(z) // 2].norm()) for way, z in between.items()}
print(f"two noises: {a.norm():.1f} and {b.norm():.1f}, as √768 = {768**0.5:.1f}; half way", half)
assert abs(half["slerp"] / 768**0.5 - 1) < 0.1, "On the circle, the length must stay."
assert abs(half["lerp"] / (768 / 2) ** 0.5 - 1) < 0.1, "Half way on the line it is √½ of that."

# %% img2img-idea [markdown]
r"""
**What to see.** On the line the middle is poor: things and clouds vanish. On the circle they come
and go, and there is always something in the picture.

**Image to image** [5]. A path need not begin at $t = 1$. Add noise to a picture up to some time,
and go back from there: what is coarser than the noise stays, and the rest is drawn anew. *Strength*
is the share of the steps that are run. We tell the network another class, dusk on water, and use
guidance 2.
"""

# %% img2img tags=figure
strengths, times = (0.2, 0.4, 0.6, 0.8, 1.0), grid("uniform", schedule, 10 if fast else 20)
dusk = listening(torch.full_like(shown, names.index("dusk water")), 2.0)
fresh, sheets = Noise(4, clean.shape)(clean), [photos]
for strength in strengths:
    begin = samplers.partly_noised(clean, fresh, times, strength, schedule)
    sheets.append(stage.decode(last(samplers.ddim(dusk, *begin, schedule))))
words = "Four scenes, and what becomes of them, told another class, as strength rises to the right."
above = ["scene", *(f"strength {s:g}" for s in strengths)]
figures.pictures(list(torch.stack(sheets, 1)), words, above=above, scale=2)

# %% img2img-check tags=check
kept = [float((sheet - photos).square().mean().sqrt()) for sheet in sheets[1:]]
print("distance from the scene:", ", ".join(f"{k:.2f}" for k in kept))
assert kept[0] < kept[2] < kept[-1], "More strength must keep less of the picture."

# %% img2img-read [markdown]
r"""
**What to see.** Low strength keeps what stands where. By day the light changes first; the night, a
large and coarse thing, stays until the noise is strong enough to hide it. Houses become boats. At 1
next to nothing of the scene is left.

**Your turn.** With a kernel, sliders appear below the next pictures. They show what a sampler aims
at on its way. Find the fewest steps at which no sampler and no grid makes a difference to your
eye.
"""


# %% knobs tags=figure
def aims(label, **settings):  # eight of the clean guesses on the way of one sample
    trail = list(model.trajectory({"label": torch.tensor([names.index(label)])}, **settings))
    return stage.decode(torch.cat([trail[i * (len(trail) - 1) // 7].z0 for i in range(8)]))


choices = {"sampler": ("ddim", "heun", "dpm_solver", "plms"), "grid": kinds[:3], "label": names}
choices |= {"steps": (8, 12, 20, 50), "seed": range(20)}
rows = [{"sampler": "ddim", "grid": "uniform", "label": "day water", "steps": 8, "seed": 1}]
rows += [{"grid": "quadratic"}, {"sampler": "dpm_solver", "grid": "quadratic"}]
words = "What three ways to spend eight steps aim at, from noise, left, to data, right."
panel = widgets.knobs(aims, choices, rows, words)

# %% knobs-read [markdown]
r"""
**What to see.** Left, all rows aim at the same: a mean of many scenes. With the uniform grid the
boat appears half way; the quadratic grid gets there sooner, and has steps left for details. Memory,
in the last row, makes the mountains clearer.

## 10. Break it: three bugs that nobody saw

Four programs redraw scenes of their own class at strength 0.6 with $\eta = 1$. One is sound. Three
have a bug, and each of these bugs was published in code that many people learn from:

- $\sqrt{1 - \bar\alpha}$ was computed as $\sqrt{\bar\alpha}$, for two months;
- the fresh noise was multiplied by a second, independent noise, for a year;
- dropout was left on while sampling.

Which is A, which B, which C? Look first.
"""

# %% bugs tags=figure
import copy


def rootless(z0, eps, times, strength, schedule):
    begin = samplers.partly_noised(z0, eps, times, strength, schedule)
    root = float(schedule(begin.times[0])[0])
    return samplers.Start(root * z0 + root * eps, begin.times)


def twice(z):
    return torch.randn_like(z) * torch.randn_like(z)


awake = copy.deepcopy(model.denoiser).train()
for module in awake.modules():
    if hasattr(module, "dropout"):
        module.dropout = 0.1


def job(start=samplers.partly_noised, noise=torch.randn_like, denoiser=model.denoiser):
    torch.manual_seed(0)
    begin = start(clean, fresh, times, 0.6, schedule)
    predict = listening(shown, denoiser=denoiser)
    return last(samplers.ddim(predict, *begin, schedule, eta=1.0, noise=noise))


cases = {"sound": {}, "A": {"noise": twice}, "B": {"start": rootless}, "C": {"denoiser": awake}}
sheets = [stage.decode(job(**case)) for case in cases.values()]
words = "Four scenes redrawn at strength 0.6: by a sound program, and by three with one bug each."
figures.pictures([photos, *sheets], words, left=["scene", *cases], scale=2)

# %% bugs-read [markdown]
r"""
**What to see.** All four redraw the scenes, each in its own way. There is the ghost of a boat in A,
and the ghost of a house in the sound row. Nobody would find the bugs by looking.

A picture is no test here, so ask for what *must* hold. Noising a 1 without noise gives $\alpha$,
and a 0 with noise 1 gives $\sigma$: their squares add up to 1. A step from nothing, with guesses of
nothing, leaves the fresh noise alone: its *kurtosis*, the mean fourth power over the squared
variance, is 3 for a normal. And a question asked twice has one answer.
"""


# %% audit tags=figure
def audit(start=samplers.partly_noised, noise=torch.randn_like, denoiser=model.denoiser):
    """Whether squares add up to 1, one step's noise is normal, and an answer repeats."""
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    begin = lambda z0, eps: float(start(z0, eps, times, 0.6, schedule).z)
    alpha, sigma = begin(one, none), begin(none, one)
    torch.manual_seed(0)
    z, silent = torch.zeros(50_000), lambda z, t: Estimate(0 * z, 0 * z)
    step = next(samplers.ddim(silent, z, times[-4:], schedule, 1.0, noise)).z
    kurtosis = float((step**4).mean() / (step**2).mean() ** 2)
    asking = listening(shown, denoiser=denoiser)
    answers = [asking(fresh, torch.tensor(0.5)).z0 for _ in "ab"]
    print(f"α² + σ² {alpha**2 + sigma**2:.2f}, kurtosis {kurtosis:.1f}, ", end="")
    print(f"answers differ by {float((answers[0] - answers[1]).abs().max()):.3f}")
    return abs(alpha**2 + sigma**2 - 1) < 1e-3, abs(kurtosis - 3) < 0.5, torch.equal(*answers)


results = {name: audit(**case) for name, case in cases.items()}
figure, axis = figures.canvas(6.5, 2.2)
drawings.marks(axis, results, ("α² + σ² = 1", "kurtosis 3", "same answer twice"))
figures.show(figure, "Which of three properties the sound program and A, B and C have.")
assert all(results["sound"]), "The sound program must have all three."
for name in "ABC":
    assert results[name].count(False) == 1, f"{name} has one bug, and one property must find it."

# %% audit-read [markdown]
r"""
**What to see.** A multiplied the noise twice, B took the wrong root, C left dropout on. The
variance of A's noise is right, and so plots of it match. Three properties, a line or two each: put
them in your tests.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% straight [exercise] title="A straight flow" difficulty=1 minutes=5
r"""
A *rectified flow* (notebook 17) has $\alpha = 1 - t$, $\sigma = t$, and its network predicts $v =
\varepsilon - z_0$. The equation of section 1 holds for any weights. Write what Euler's step from
$t$ to $s$ makes of $z$. It is shorter than DDIM, and the check says that it *is* DDIM.
"""


# %% [stub]
def flow_step(z, v, t, s):
    return ...  # z at time s


# %% [check]
from ldm_lite.course.checks import check
from ldm_lite.diffusion import Diffusion, RectifiedFlow

praise = "On a flow, DDIM and the plainest method there is are the same."
with check("A straight flow", "flow_step still returns ...: what is dz / dt here?", praise) as c:
    flow, z = Diffusion(RectifiedFlow(), "flow"), torch.linspace(-2, 2, 7).double()
    v = torch.sin(3 * z + 1)
    guess = lambda z, t: flow.estimate(v, z, t)
    for t, s in ((1.0, 0.7), (0.8, 0.55), (0.3, 0.0)):
        right = last(samplers.ddim(guess, z, tensor(t, s), RectifiedFlow()))
        mistakes = {
            "That walks towards the noise: s is smaller than t.": z + (t - s) * v,
            "That is the clean guess: go only as far as s.": z - t * v,
        }
        why = f"Wrong from t = {t} to {s}. d alpha is -dt and d sigma is dt."
        c.close(flow_step(z, v, t, s), right, why, mistakes=mistakes)


# %% [solution]
def flow_step(z, v, t, s):
    return z + (s - t) * v


# %% [wrong]
def flow_step(z, v, t, s):
    return z + (t - s) * v


# %% wrapper [exercise] title="Guidance, around the outside" difficulty=2 minutes=8
r"""
No sampler here has a word about guidance. It is wrapped around `predict`: given two of them, one
that was not told the class and one that was, return a third, whose guesses lie on the line through
both: at $w = 0$ the first, at $w = 1$ the second, at $w = 3$ three times the way.
"""


# %% [stub]
def guided(without, told, w):
    """A function predict(z, t) -> Estimate(z0, eps)."""
    return ...


# %% [check]
from ldm_lite.condition import Condition

with check("Guidance, around the outside", "guided still returns ...: return a function.") as c:
    network = lambda z, clock, cond: torch.sin(2 * z + cond.vector[:, :, None, None])
    none, some = (Condition(vector=torch.full((3, 1), word)) for word in (0.0, 0.7))
    diffusion = Diffusion(schedule, "v")
    halves = [predictor(network, diffusion, cond) for cond in (none, some)]
    z = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    for w in (0.0, 1.0, 3.0):
        mine = guided(*halves, w)
        c.answered(mine)
        t = torch.tensor(0.6)
        mine, right = mine(z, t), predictor(network, diffusion, some, none, w)(z, t)
        c.answered(mine)
        told = halves[1](z, t)
        same = "is not guided: some samplers use one of the two guesses, some the other."
        for name in ("eps", "z0"):
            mistakes = {f"{name} {same}": getattr(told, name)}
            why = f"{name} is off at w = {w:g}."
            c.close(getattr(mine, name), getattr(right, name), why, mistakes=mistakes)


# %% [solution]
def guided(without, told, w):
    def predict(z, t):
        a, b = without(z, t), told(z, t)
        return Estimate(a.z0 + w * (b.z0 - a.z0), a.eps + w * (b.eps - a.eps))

    return predict


# %% [wrong]
def guided(without, told, w):
    def predict(z, t):
        a, b = without(z, t), told(z, t)
        return Estimate(b.z0, a.eps + w * (b.eps - a.eps))

    return predict


# %% parts [exercise] title="How much is fresh?" difficulty=2 minutes=8
r"""
A step of DDIM is $\alpha_s \hat z_0 + k\, \hat\varepsilon + f\, \xi$ with fresh noise $\xi$. At
$\eta = 1$, $f$ is the deviation of DDPM's step, in section 2; otherwise it is $\eta$ times that.
And $k$? Both noises together must have variance $\sigma_s^2$.
"""


# %% [stub]
def parts(alpha, sigma, alpha_s, sigma_s, eta):
    return ..., ...  # k, f


# %% [check]
only = lambda z, t: Estimate(0 * z, 0 * z + 1)  # a guess of noise 1 and nothing else


def landing(place, eta, fresh):
    """Where the package's step ends, from 0, if the fresh noise is this number."""
    noise = lambda z: 0 * z + fresh
    return float(last(samplers.ddim(only, 0 * place[:1], place, schedule, eta, noise)))


praise = "With eta = 1 and many steps nearly all of the noise is kept: each step changes little."
with check("How much is fresh?", "parts still returns ...: v is in section 2.", praise) as c:
    for place in (tensor(1, 0.9), tensor(0.5, 0.2), tensor(0.3, 0.299)):
        for eta in (0.0, 0.4, 1.0):
            (alpha, alpha_s), (sigma, sigma_s) = (weight.tolist() for weight in schedule(place))
            mine, k = parts(alpha, sigma, alpha_s, sigma_s, eta), landing(place, eta, 0.0)
            f = landing(place, eta, 1.0) - k
            mistakes = {"That is a variance: f is its root.": f**2 / max(eta, 1e-9)}
            why = f"f is wrong at eta = {eta}: it is eta times sigma_s √v / sigma."
            c.close(mine[1], f, why, 1e-3, 1e-5, mistakes)
            mistakes = {"All of the noise is kept, and fresh noise is added to it.": sigma_s}
            mistakes["Variances add up, not deviations."] = sigma_s - f
            c.close(mine[0], k, "k² + f² must be sigma_s².", 1e-3, 1e-5, mistakes)


# %% [solution]
def parts(alpha, sigma, alpha_s, sigma_s, eta):
    v = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    f = eta * sigma_s * math.sqrt(v) / sigma
    return math.sqrt(sigma_s**2 - f**2), f


# %% [wrong]
def parts(alpha, sigma, alpha_s, sigma_s, eta):
    v = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    f = eta * sigma_s * math.sqrt(v) / sigma
    return sigma_s, f


# %% midpoint [exercise] title="Another way to look twice" difficulty=3 minutes=15
r"""
Heun looks at both ends of a step. Look once in the *middle* instead: walk half of the step with the
slope at the start, ask there, and take that answer for the whole step, from the start. The time
where $\rho$ has a given value is `samplers.times_of(tensor(rho), schedule)[0]`.
"""


# %% [stub]
def midpoint(predict, z, times):
    # for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
    return ...


# %% [check]
praise = "Two evaluations a step, order 2: as good as Heun, and the last step needs no exception."
with check("Another way to look twice", "midpoint still returns ...", praise) as c:
    gaps, looks = [], []

    def counted(z, t):
        c.answered(z)
        looks.append(t)
        return asked(plane)(z, t)

    for steps in (45, 90):
        even = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
        mine = midpoint(counted, start, even)
        c.answered(mine)
        c.that(mine.shape == start.shape, "Return points of the shape of z.")
        gaps.append(float((mine - truth).square().mean().sqrt()))
    c.that(len(looks) == 2 * 135, f"Look twice a step: 270 times here, not {len(looks)}.")
    c.that(gaps[1] < 0.1, f"It ends {gaps[1]:.2f} from the truth: mind what moves, z / alpha.")
    found = math.log2(gaps[0] / gaps[1])
    why = f"Order {found:.2f}: take the middle's slope for the whole step, from where it began."
    c.that(found > 1.7, why)


# %% [solution]
def midpoint(predict, z, times):
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
        rho, rho_s = sigma / alpha, sigma_s / alpha_s
        half = samplers.times_of(tensor((rho + rho_s) / 2), schedule)[0]
        there = float(schedule(half)[0]) * (z / alpha + (rho_s - rho) / 2 * predict(z, t).eps)
        z = alpha_s * (z / alpha + (rho_s - rho) * predict(there, half).eps)
    return z


# %% [wrong]
def midpoint(predict, z, times):
    for (t, alpha, sigma), (_, alpha_s, sigma_s) in legs(times):
        rho, rho_s = sigma / alpha, sigma_s / alpha_s
        half = samplers.times_of(tensor((rho + rho_s) / 2), schedule)[0]
        there = z / alpha + (rho_s - rho) / 2 * predict(z, t).eps
        slope = predict(float(schedule(half)[0]) * there, half).eps
        z = alpha_s * (there + (rho_s - rho) / 2 * slope)
    return z


# %% summary [markdown]
r"""
## Summary

- One equation: $d(z / \alpha) = \hat\varepsilon\, d\rho$, or $d(z / \sigma) = \hat z_0\, d(\alpha /
  \sigma)$. A sampler is a way to guess a mean over the coming step.
- DDIM takes the guess for constant, Heun looks twice, PLMS and DPM-Solver++ remember.
- Order says how fast errors fall. Where the steps lie, and how the last one ends, can matter more.
- Near the converged latents and near real pictures are two questions.
- Fresh noise forgets mistakes and needs many steps for it.
- Without chance, a sampler can run backwards, start half way, and mix two noises along a circle.

**What next.** Notebook 09 tells the model what to draw, and 17 makes the paths straight.
`benchmarks/steps.py` is the long form of section 7.
"""

# %% references [markdown]
r"""
## References

1. J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021.
   [arXiv 2010.02502](https://arxiv.org/abs/2010.02502)
2. J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
   [arXiv 2006.11239](https://arxiv.org/abs/2006.11239)
3. T. Karras, M. Aittala, T. Aila, S. Laine. *Elucidating the Design Space of Diffusion-Based
   Generative Models.* NeurIPS 2022. [arXiv 2206.00364](https://arxiv.org/abs/2206.00364)
4. C. Lu and others. *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
   Models.* 2022. [arXiv 2211.01095](https://arxiv.org/abs/2211.01095)
5. C. Meng and others. *SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
   Equations.* ICLR 2022. [arXiv 2108.01073](https://arxiv.org/abs/2108.01073)
6. L. Liu, Y. Ren, Z. Lin, Z. Zhao. *Pseudo Numerical Methods for Diffusion Models on Manifolds.*
   ICLR 2022. [arXiv 2202.09778](https://arxiv.org/abs/2202.09778)
"""
