r"""
title: A tour of latent diffusion
goal: Watch each part of a latent diffusion model do its work, then turn its knobs
needs: Python and a little PyTorch; nothing about diffusion
memory: under 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: sixteen landscapes that nobody drew, and a clear idea of where each came from
objectives:
  - name the three networks of the model, and say what goes into each and what comes out
  - write down what noise does to a latent at any time, and check it
  - follow one sample from pure noise to a picture, in six lines of code
  - say what guidance buys and what it costs, with numbers
  - tell a model that works from one that only looks as if it did
"""

# %% the-idea [markdown]
r"""
**What to see.** Two rows. Above, the model *learns*: a picture is made small, noise is added, and
a network learns to take the noise away. Below, it *generates*: starting from nothing but noise,
the same network takes away a little at a time, and a decoder makes a picture of what is left.
Dark boxes are networks.

The one idea of Rombach et al. [1] is the blue area in the middle. Diffusion works, but in pixels
it spends most of its effort on detail that nobody notices. So let an autoencoder throw that
detail away first, and diffuse in the small space that remains. Everything you will see today
happens there.
"""

# %% first-pictures [markdown]
r"""
## 1. Sixteen pictures in one call

The package comes with a small trained model. It has only ever seen `Scenes`: little landscapes
that the package draws itself, in sixteen classes, four times of day by four kinds of ground. We
ask for one picture of each class.
"""

# %% load
import torch

from ldm_lite.data import Scenes
from ldm_lite.latent import LatentDiffusion

model = LatentDiffusion.load("scenes-ldm4").to(device)
names = model.conditioner.names
torch.set_grad_enabled(False)  # we only look today; nothing is trained
print(", ".join(names))

# %% sheet tags=figure
images = model.sample({"label": torch.arange(16)}, steps=20 if fast else 50, guidance=2.0, seed=4)
figures.pictures(
    images,
    "Sixteen samples: rows are dawn, day, dusk and night, columns are grass, snow, sand and water.",
    columns=4,
    above=("grass", "snow", "sand", "water"),
    left=("dawn", "day", "dusk", "night"),
)

# %% sheet-read [markdown]
r"""
**What to see.** Read along a row: the sky keeps its light. Read down a column: the ground keeps
its kind. The model was told only a number from 0 to 15 for each picture. That cacti belong on
sand and boats on water it found out by itself, from examples. Look for flaws too, such as a
second moon, or a tree that is half a house: section 6 has a way to make more of them.

What did this work? Three networks, and a table with one vector for each class.
"""

# %% networks
stage = model.first_stage
parts = {
    "encoder   image 3×64×64 -> latent 3×16×16": stage.encoder,
    "denoiser  noisy latent, time, class -> a better latent": model.denoiser,
    "decoder   latent 3×16×16 -> image 3×64×64": stage.decoder,
    "classes   a number -> a vector": model.conditioner,
}
for what, part in parts.items():
    print(f"{sum(p.numel() for p in part.parameters()):9,} weights   {what}")

# %% into-latent [markdown]
r"""
## 2. From image to latent, and back

The encoder $E$ makes a picture $x$ smaller, and a constant $s$ brings the result to a handy size.
The decoder $D$ undoes both:

$$z_0 = s\,E(x), \qquad \hat x = D(z_0 / s)$$

In code each is one line. The package's `encode` and `decode` do the same, and we let it prove
that. The pictures are from the *test* set: the model has never seen them.
"""


# %% encode
def scenes(rows, texture=1.0):
    """Test images (B, 3, 64, 64) in [-1, 1], and their labels."""
    batch = Scenes(split="test", texture=texture).batch(rows)
    return (batch["image"].float() / 127.5 - 1).to(device), batch["label"]


x, labels = scenes(range(5))
z0 = stage.scale * stage.code(x, sample=False).mean
back = stage.picture(z0 / stage.scale)
torch.testing.assert_close(z0, stage.encode(x))
torch.testing.assert_close(back, stage.decode(z0))
print("image", [*x.shape[1:]], "-> latent", [*z0.shape[1:]], "-> image", [*back.shape[1:]])

# %% encode-figure tags=figure
figures.pictures(
    [part[:4] for part in (x, figures.latent(z0), back, (4 * (back - x)).clamp(-1, 1))],
    "Four test images; their latents, three channels in a square, positive orange and negative "
    "blue; the images decoded from the latents; the difference, times four, where grey is none.",
    left=("image", "latent,\n3 channels", "decoded", "difference\n× 4"),
)

# %% encode-read [markdown]
r"""
**What to see.** The latent is still a *picture*: find the horizon and the boats in it. It is
coarser, and its three channels are nothing that has a name, but everything has kept its place. The
decoded images look right. The last row says what went: blades of grass, ripples, the smaller
stars, sharp edges. That is the bargain of the paper: what is given up is what you did not miss.

Looking right is not enough. Before anything is built on an autoencoder, three numbers should be
right, and here they are.
"""


# %% gates tags=check
def psnr(a, b):
    """Peak signal-to-noise ratio in dB of images in [-1, 1]; 6 dB more is half the error."""
    return float(10 * torch.log10(4 / ((a - b) ** 2).mean()))


many = range(100, 132 if fast else 228)
held_out, held_out_labels = scenes(many)
plain, _ = scenes(many, texture=0)  # the same scenes without grass, ripples and grain
latents = stage.encode(held_out)
decoded = stage.decode(latents)
print(f"numbers per image {x[0].numel()}, per latent {z0[0].numel()}")
print(f"standard deviation of the latents {float(latents.std()):.2f}")
print(f"PSNR {psnr(decoded, held_out):.1f} dB; without texture {psnr(decoded, plain):.1f} dB")

# %% gate-claims tags=check
size, deviation = z0[0].numel() / x[0].numel(), float(latents.std())
assert size == 1 / 16, "Sides 4 times smaller, as many channels: 16 times fewer numbers."
assert 0.8 < deviation < 1.2, "Latents must be as large as the noise, whose deviation is 1."
assert psnr(decoded, plain) > 26, "The decoder is the ceiling of everything that follows."
assert psnr(decoded, plain) > psnr(decoded, held_out), "What it gives up should be the texture."

# %% gates-read [markdown]
r"""
The deviation is why $s$ exists: noise of deviation 1 will be added, and a latent ten times larger
would hardly notice it. The PSNR is the *gate*: no sampler can draw better than the decoder can.
That it is higher against the same scenes drawn without grass, ripples and grain says that texture
is what the autoencoder gives up first.
"""

# %% noise [markdown]
r"""
## 3. Noise, on purpose

Now the diffusion half. Time $t$ runs from 0 (data) to 1 (noise), and at each time a latent is
mixed with Gaussian noise. How much there is of either is fixed in advance by two weights,
$\alpha_t$ and $\sigma_t$. Nothing here is learned.
"""

# %% schedule tags=figure
schedule = model.diffusion.schedule
times = torch.linspace(0, 1, 201)
alpha, sigma = schedule(times)
figure, (left, right) = figures.canvas(8, 2.8, columns=2)
left.plot(times, alpha, label=r"$\alpha_t$, of the latent")
left.plot(times, sigma, label=r"$\sigma_t$, of the noise")
left.set(xlabel="time t", title="the two weights")
left.legend()
right.semilogy(times[1:], (alpha / sigma)[1:] ** 2)
right.set(xlabel="time t", title=r"signal to noise, $\alpha_t^2 / \sigma_t^2$")
words = "Left: alpha falls from 1 to almost 0, sigma rises from 0 to 1. Right: their squared ratio."
figures.show(figure, words)

# %% schedule-claims tags=check
assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)), "Variance 1 in, variance 1 out."
ratio = (alpha / sigma) ** 2
assert (ratio.diff() < 0).all(), "Signal to noise must fall all the way."
assert sigma[0] == 0 and sigma[-1] > 0.99, (
    "t = 0 must be clean; t = 1, where sampling starts, noise."
)
print(f"signal to noise at t = 0.5: {float(ratio[100]):.3f}, at t = 1: {float(ratio[-1]):.4f}")

# %% schedule-read [markdown]
r"""
**What to see.** The curves cross well before the middle: already at $t = 0.5$ noise is the larger
part. The ratio on the right covers several powers of ten; a network that serves all times must
serve them all.

With these weights the noisy latent is a sum:

$$z_t = \alpha_t\, z_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, 1)$$

In code it is one line, the last but one below. The last compares it with the package's.
"""

# %% noised
t = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
one = z0[1:2].expand(6, -1, -1, -1)  # the same latent at six times
eps = torch.randn(one.shape, generator=torch.Generator().manual_seed(0)).to(device)
alpha, sigma = (weight.to(one).view(-1, 1, 1, 1) for weight in schedule(t))
z_t = alpha * one + sigma * eps
torch.testing.assert_close(z_t, model.diffusion.noised(one, eps, t))

# %% noised-figure tags=figure
seen = stage.decode(z_t)
figures.pictures(
    [figures.latent(z_t), seen],
    "One latent at six times from 0 to 1, and below it what the decoder makes of it.",
    above=[f"t = {float(v):g}" for v in t],
    left=("latent $z_t$", "decoded"),
)

# %% noised-read [markdown]
r"""
**What to see.** The upper row dissolves evenly. The lower row does not: the decoder has learned
clean latents only, and what it makes of noise is coloured rubble. Nobody will show it noise
again. It waits until the end.
"""

# %% one-look-idea [markdown]
r"""
## 4. One look

The denoiser sees $z_t$, the time and the class, and estimates the clean latent, $\hat z_0$, and
with it the noise: as $z_t$ is given, one determines the other. How a network learns this is the
subject of notebooks 05 to 07. Here we just ask ours about the six latents above.
"""

# %% one-look tags=figure
from ldm_lite.samplers import predictor


def asking(labels, guidance=1.0):
    """predict(z, t) -> (z0, eps): the denoiser, told these classes."""
    told, blank = model.conditions({"label": labels})
    return predictor(model.denoiser, model.diffusion, told, blank, guidance)


guess = asking(labels[1:2].expand(6))(z_t, t).z0
seen = stage.decode(guess)
figures.pictures(
    [figures.latent(guess), seen],
    f"The denoiser's guess at the clean latent, told the class {names[labels[1]]}, from each of "
    "the six noisy ones above; the guess decoded.",
    above=[f"t = {float(v):g}" for v in t],
    left=("guess $\\hat z_0$", "decoded"),
)

# %% one-look-read [markdown]
r"""
**What to see.** From left to right the guess gets vaguer, but never noisy. While the noise is
weak, it is the picture we started from. In the middle it begins to make things up. Where only
noise is left, it is a blur: the average of all pictures that are still possible. An average of
sharp pictures is not a sharp picture, and that is why one look is not enough.

How good is a look, in numbers? Suppose you know nothing about landscapes except that latents have
variance 1. Then the best guess is $\alpha_t z_t$, and its mean squared error is $\sigma_t^2$.
This is the line to beat.
"""

# %% beat-the-line tags=figure
probe = torch.linspace(0.05, 0.95, 7 if fast else 13)
look = asking(held_out_labels)
errors, knowing_nothing = [], []
for moment in probe:
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(device)
    z = model.diffusion.noised(latents, noise, moment)
    errors.append(float(((look(z, moment).z0 - latents) ** 2).mean()))
    knowing_nothing.append(float(((schedule(moment)[0].to(z) * z - latents) ** 2).mean()))
figure, axis = figures.canvas(6, 2.8)
axis.plot(probe, errors, "o-", label="the denoiser")
axis.plot(probe, knowing_nothing, "o-", label=r"$\alpha_t z_t$, which knows nothing")
axis.plot(probe, schedule(probe)[1] ** 2, "--", color=figures.SOFT, label=r"$\sigma_t^2$, theory")
axis.set(xlabel="time t", ylabel="squared error of the guess", ylim=(0, 1.15))
axis.legend(loc="upper left")
words = "Squared error against time: the denoiser's, and that of the best guess without knowledge."
figures.show(figure, words)

# %% beat-claims tags=check
middle = len(probe) // 2
learned, ignorant = errors[middle], knowing_nothing[middle]
theory = float(schedule(probe[middle])[1] ** 2)
print(f"at t = {float(probe[middle]):.2f}: {learned:.3f}; without knowledge {ignorant:.3f}")
assert abs(ignorant - theory) < 0.15, "The theory is sigma², if latents have variance 1."
assert learned < ignorant / 2, "This denoiser has learned too little about landscapes."

# %% beat-read [markdown]
r"""
**What to see.** The dashed line is theory, and the guess that knows nothing follows it. The
distance to the lower curve is what the network knows about landscapes. At the right end $z_t$ is
only noise, and still the network's error is far below 1: that much the class alone gives away.
When you train your own model and its samples are bad, look at this plot first. It tells within a
second whether the network or the sampler is to blame.
"""

# %% sampling [markdown]
r"""
## 5. From noise to a picture

If one look gives a blur, look often. Start with pure noise at $t = 1$. Ask for $\hat z_0$ and
$\hat\varepsilon$. Go a small step to an earlier time $s$ by mixing the two again, now with the
weights of $s$, and repeat:

$$z_s = \alpha_s\, \hat z_0 + \sigma_s\, \hat\varepsilon$$

This is DDIM [2], and it is the noising equation once more, with guesses in the place of truth.
The last line of the loop is it.
"""

# %% generate
from itertools import pairwise

from ldm_lite.latent import Noise


def generate(predict, z, steps):
    """From pure noise z at t = 1 to a latent at t = 0."""
    times = schedule.grid(steps)
    for t, s in pairwise(times):
        clean, noise = predict(z, t)
        alpha, sigma = (float(weight) for weight in schedule(s))
        z = alpha * clean + sigma * noise
    return z


wanted = torch.tensor([names.index(name) for name in ("dawn grass", "night snow", "dusk water")])
start = Noise(seed=7, shape=(3, *z0.shape[1:]))(z0)
mine = stage.decode(generate(asking(wanted), start, steps=20)).clamp(-1, 1).cpu()

# %% package-agrees tags=check
theirs = model.sample({"label": wanted}, steps=20, seed=7)
torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)
print("your six lines and model.sample draw the same pictures")

# %% trajectory tags=figure
path = list(model.trajectory({"label": wanted[:1]}, steps=24, guidance=2.0, seed=7))
shown = [path[i] for i in (0, 5, 8, 11, 14, 18, 23)]
aims = stage.decode(torch.cat([step.z0 for step in shown]))
figures.pictures(
    [figures.latent(torch.cat([step.z for step in shown])), aims],
    "One sample on its way from noise to data: the latent, and the guess at that moment, decoded.",
    above=[f"t = {float(step.t):.2f}" for step in shown],
    left=("latent $z_t$", "aiming at"),
)

# %% trajectory-read [markdown]
r"""
**What to see.** The lower row decides in order: first the light, then where the horizon is and
what stands where, then edges and windows. Coarse things first, because while there is much noise
they are all that can be seen. The upper row shows how little changes in the last steps.

There was chance only at the start. From there on the path is fixed, and each sample minds its own
business.
"""

# %% deterministic tags=check
again = model.sample({"label": wanted}, steps=20, seed=7)
assert torch.equal(theirs, again), "Without fresh noise (eta = 0) the seed decides everything."
alone = model.sample({"label": wanted[:1]}, steps=20, seed=7)
assert torch.allclose(theirs[:1], alone, atol=2e-3), "The rest of the batch must not matter."
ancestral = model.sample({"label": wanted}, steps=20, seed=7, eta=1.0)
assert not torch.allclose(theirs, ancestral, atol=0.1), "With eta = 1 every step adds noise."
print("same seed, same picture, alone or in company; eta = 1 (DDPM) draws another")

# %% knobs-intro [markdown]
r"""
## 6. The knobs: guidance, steps, class

**Guidance.** During training the class was hidden from the network now and then, so that it can
also answer without one. Its two answers differ, and the difference points towards the class.
Guidance [3] walks along it, further than the network itself would go: $w = 0$ ignores the class,
$w = 1$ is the network's plain answer, $w > 1$ exaggerates.
"""

# %% guidance-drawing tags=figure
figure, axis = figures.canvas(6, 2.6)
axis.set(xlim=(-0.6, 4.6), ylim=(-0.5, 1.5), xticks=[], yticks=[])
axis.spines[:].set_visible(False)
axis.annotate("", (4.2, 1.3), (0, 0), arrowprops={"arrowstyle": "-|>", "color": figures.LINE})
for w, colour in ((0, figures.SOFT), (1, figures.BLUE), (2, figures.ORANGE), (3.5, figures.RED)):
    axis.plot(w * 1.1, w * 0.34, "o", color=colour, markersize=9, zorder=3)
    axis.text(w * 1.1 + 0.08, w * 0.34 - 0.22, f"w = {w:g}", color=colour)
axis.text(-0.45, 0.22, "no class told", color=figures.SOFT)
axis.text(0.55, 0.62, "class told", color=figures.BLUE)
axis.text(2.6, 1.25, "more class than any picture has", color=figures.RED, ha="center")
words = "A line through the network's two answers; guidance takes a point on it, or far beyond."
figures.show(figure, words)

# %% guidance-read [markdown]
r"""
**What to see.** There is one straight line, and one number that says where on it to stand. Both
ends of the claim can be checked: at $w = 1$ nothing must have changed, and three times the
guidance must be three times the way, for every channel of the latent.
"""

# %% guidance-claims tags=check
z = torch.randn((12, *z0.shape[1:]), generator=torch.Generator().manual_seed(2)).to(device)
twelve, moment = torch.arange(12), torch.tensor(0.6)
at = {w: asking(twelve, w)(z, moment).eps for w in (0.0, 0.9999, 1.0, 3.0)}
plain_answer = asking(twelve)(z, moment).eps
line = at[0.0] + 3 * (at[1.0] - at[0.0])
assert torch.equal(at[1.0], plain_answer), "w = 1 must be the plain conditional model."
assert torch.allclose(at[0.9999], plain_answer, atol=2e-3), "... and nothing may jump there."
assert torch.allclose(at[3.0], line, atol=1e-3), "A straight line in w, in every channel."
print("guidance is a straight line through the two answers, in all", z.shape[1], "channels")

# %% guidance-figure tags=figure
sand = names.index("dusk sand")
strengths = (0.0, 1.0, 2.0, 6.0)
rows = [
    model.sample({"label": torch.full((4,), sand)}, steps=10 if fast else 25, guidance=w, seed=11)
    for w in strengths
]
figures.pictures(
    rows,
    f"Samples of the class {names[sand]}, guidance 0, 1, 2 and 6 from top to bottom. The noise is "
    "the same down each column.",
    left=[f"w = {w:g}" for w in strengths],
)

# %% predict-first [markdown]
r"""
**What to see.** The top row ignores the request. In the second, all or nearly all pictures obey.
Further down they do not obey better. They get poorer and stranger: fewer things, colours that
match the sky too well, here and there a second sun.

**Predict before you run.** The next cell draws samples of all sixteen classes at rising $w$. It
measures how many show the class that was asked for: `read_label` reads sky and ground back from
the picture. And it measures how much the pictures of one class differ. Write down: what share
obeys at $w = 0$, when the class is not told? From which $w$ on does nearly every picture obey?
Does more guidance make the pictures of a class more or less alike?
"""

# %% experiment tags=figure,timeout-600
from ldm_lite.data.scenes import read_label

each = 2 if fast else 6
asked = torch.arange(16).repeat_interleave(each)
scale = (0.0, 1.0, 3.0) if fast else (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
obeyed, variety = [], []
for w in scale:
    drawn = model.sample({"label": asked}, steps=8 if fast else 16, guidance=w, seed=3)
    obeyed.append(float((read_label(drawn) == asked).float().mean()))
    variety.append(float(drawn.view(16, each, -1).std(dim=1).mean()))
figure, (left, right) = figures.canvas(8, 2.8, columns=2)
left.plot(scale, [100 * share for share in obeyed], "o-")
left.axhline(100 / 16, linestyle="--", color=figures.SOFT)
left.set(xlabel="guidance w", title="pictures that show their class, %", ylim=(0, 104))
right.plot(scale, variety, "o-", color=figures.ORANGE)
right.set(xlabel="guidance w", title="how much pictures of a class differ", ylim=(0, None))
words = "Left: how many samples show their class, with chance, 1 in 16, dashed. Right: variety."
figures.show(figure, words)

# %% experiment-claims tags=check
for w, share, spread in zip(scale, obeyed, variety):
    print(f"w = {w:g}: {share:4.0%} show their class, they differ by {spread:.2f}")
assert obeyed[-1] > 8 / 16, "Guided samples must obey at least 8 times as often as chance."
assert obeyed[0] < 4 / 16, "Nobody told the class: if pictures obey all the same, it leaks."
assert variety[-1] < variety[0], "Obedience is paid for with variety."

# %% steps-intro [markdown]
r"""
**What to see.** At $w = 0$ the share is near the dashed line: the model draws anything. At $w =
1$ nearly every picture obeys already, in this small world, and most of the variety is gone,
because pictures of one class differ less than pictures of all. Going further gains no obedience
and costs a little more variety. So choose the *smallest* guidance that serves; classes that are
harder to tell apart, and text, need more. One run with one seed does not settle the second digit:
notebook 12 measures with error bars.

**Steps.** Each step costs one call of the denoiser, two with guidance. How many are needed?
"""

# %% steps-figure tags=figure
five = ("dawn snow", "day grass", "day water", "dusk sand", "night snow")
mixed = torch.tensor([names.index(name) for name in five])
counts = (1, 2, 4, 8, 20) if fast else (1, 2, 4, 8, 50)
figures.pictures(
    [model.sample({"label": mixed}, steps=k, guidance=2.0, seed=5) for k in counts],
    f"Five classes drawn in {', '.join(map(str, counts))} steps from top to bottom. The noise is "
    "the same down each column.",
    left=[f"{k} step{'s' * (k > 1)}" for k in counts],
)

# %% steps-read [markdown]
r"""
**What to see.** One step is the blur of section 4. Two to four give the composition, eight nearly
everything; after that, details change. Each column stays the *same* picture: more steps follow
the same path more exactly. Notebook 08 gets more out of few steps.

**Your turn.** With a kernel running in full mode, sliders appear below the pictures. Find the
fewest steps and the least guidance that still give you a good boat. Without a kernel, three fixed
rows show what there is to find.
"""

# %% knobs tags=figure
from ldm_lite.course import widgets


def draw(label, guidance, steps, seed):
    chosen = torch.full((4,), names.index(label))
    return model.sample({"label": chosen}, guidance=guidance, steps=steps, seed=seed)


panel = widgets.knobs(
    draw,
    choices={
        "label": names,
        "guidance": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
        "steps": (1, 2, 3, 4, 6, 8, 12, 16, 25, 50),
        "seed": range(20),
    },
    rows=[
        {"label": "day water", "guidance": 2.0, "steps": 16, "seed": 1},
        {"steps": 4},
        {"label": "night water"},
    ],
    words="Four samples of each: boats by day in 16 steps, the same in 4 steps, by night in 16.",
)

# %% knobs-read [markdown]
r"""
**What to see.** Compare the rows column by column. Boats keep their places by day and by night:
the noise at the start decides what stands where, the class decides the rest, and the number of
steps how exactly it is drawn.
"""

# %% map [markdown]
r"""
## 7. Where the course goes from here

You have now seen every box of the first figure at work. Each of the next notebooks opens one of
them, builds it from nothing, and checks that what it built agrees with the package.
"""

# %% map-figure tags=figure
figures.pipeline("00", numbers=True)

# %% map-table [markdown]
r"""
**What to see.** The two halves of the model are two courses: 01 to 04 are about the small space,
05 to 08 about what happens in it. 09 to 11 steer it, 12 and 13 judge it, and from 14 on it grows
up. Those without a link are still to come.

<!-- syllabus -->
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% smaller [exercise] title="How much smaller?" difficulty=1 minutes=4
r"""
An RGB image has `side` pixels on each side. A first stage with factor `f` makes it `f` times
smaller on both sides and gives the latent `channels` channels. How many numbers does the image
have for each number of the latent? Section 2 had one case, 64, 4 and 3. Write it for all.
"""


# %% [stub]
def times_smaller(side, f, channels):
    return ...  # numbers in the image / numbers in the latent


# %% [check]
from ldm_lite.course.checks import check

hint = "times_smaller still returns ...: count the numbers in each, then divide."
with check("How much smaller?", hint) as c:
    for side, f, channels in ((64, 4, 3), (256, 8, 4), (96, 2, 7)):
        image, small = torch.empty(3, side, side), torch.empty(channels, side // f, side // f)
        mine, right = times_smaller(side, f, channels), image.numel() / small.numel()
        why = f"Wrong for side {side}, f {f}, channels {channels}. An image has 3 side² numbers."
        mistakes = {"Both sides shrink by f, so f enters twice.": 3 * f / channels}
        c.close(mine, right, why, mistakes=mistakes)


# %% [solution]
def times_smaller(side, f, channels):
    return (
        3 * side**2 / (channels * (side // f) ** 2)
    )  # = 3 f² / channels: the size of the image does not matter


# %% [wrong]
def times_smaller(side, f, channels):
    return 3 * side**2 / (channels * side * (side // f))


# %% half-and-half [exercise] title="Half signal, half noise" difficulty=2 minutes=6
r"""
Find the time at which there is as much signal as noise, $\alpha_t = \sigma_t$, to three digits,
then make the noisy latent of that time. `schedule(t)` takes a tensor and returns both weights;
the left curve of section 3 tells you roughly where to look.
"""

# %% [stub]
t_half = ...  # a number between 0 and 1


def noised_at(z0, eps, t):
    return ...  # z_t


# %% [check]
with check("Half signal, half noise", "Find t_half first, then write z_t as in section 3.") as c:
    c.answered(t_half)
    a, b = (float(weight) for weight in schedule(torch.tensor(float(t_half))))
    more = "noise" if b > a else "signal"
    why = f"At t = {float(t_half):.3f} there is more {more}: alpha is {a:.3f}, sigma {b:.3f}."
    c.that(abs(a - b) < 5e-3, why)
    some, noise = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    for moment in (0.1, 0.8):
        t = torch.tensor(moment)
        a, b = (float(weight) for weight in schedule(t))
        right = model.diffusion.noised(some, noise, t)
        mistakes = {
            "alpha and sigma have changed places.": b * some + a * noise,
            "Mix with alpha and sigma, not with their squares.": a**2 * some + b**2 * noise,
        }
        c.close(noised_at(some, noise, t), right, f"z_t is off at t = {moment}.", mistakes=mistakes)

# %% [solution]
grid = torch.linspace(0, 1, 10_001)
t_half = float(grid[(schedule(grid)[0] - schedule(grid)[1]).abs().argmin()])


def noised_at(z0, eps, t):
    alpha, sigma = schedule(t)
    return alpha.to(z0) * z0 + sigma.to(z0) * eps


# %% [wrong]
t_half = 0.5


def noised_at(z0, eps, t):
    return z0 * (1 - t) + eps * t


# %% guide [exercise] title="Write guidance" difficulty=2 minutes=5
r"""
Given the network's answer without the class and its answer with it, both of shape (batch,
channels, height, width), return the guided one [3]:

$$\tilde\varepsilon = \varepsilon_\varnothing + w\,(\varepsilon_c - \varepsilon_\varnothing)$$
"""


# %% [stub]
def guided(without, told, w):
    return ...  # one line


# %% [check]
with check("Write guidance", "guided still returns ...: one line, from the formula.") as c:
    without, told = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    for w in (3.5, 0.0, 1.0):
        mistakes = {
            "The original paper counts w from 0, we count from 1.": told + w * (told - without),
            "The two answers have changed places.": torch.lerp(told, without, w),
        }
        why = f"Wrong at w = {w}. 0 must give the answer without the class, 1 the one with it."
        c.close(guided(without, told, w), torch.lerp(without, told, w), why, mistakes=mistakes)


# %% [solution]
def guided(without, told, w):
    return without + w * (told - without)


# %% [wrong]
def guided(without, told, w):
    return told + w * (told - without)


# %% break-it [markdown]
r"""
### Break it: does it look right?

The next function guides, too. Published code for latents of four channels guided only the first
three: the line was copied from code for RGB images. Here is its like for our latents, in which the
last channel is left out. We draw the same pictures with the package's guidance and with this one.
"""


# %% broken tags=figure
def suspect(without, told, w):
    eps, rest = told[:, :-1], told[:, -1:]
    return torch.cat([without[:, :-1] + w * (eps - without[:, :-1]), rest], dim=1)


def guiding(rule, labels, w):
    """predict(z, t) that applies a rule to the network's two answers."""
    with_class, without_class = asking(labels), asking(labels, 0.0)
    return lambda z, t: [rule(b, a, w) for a, b in zip(with_class(z, t), without_class(z, t))]


start = Noise(seed=5, shape=(5, *z0.shape[1:]))(z0)
right, doubtful = (
    generate(rule, start, 16) for rule in (asking(mixed, 4.0), guiding(suspect, mixed, 4.0))
)
figures.pictures(
    [stage.decode(right), stage.decode(doubtful)],
    "Five classes with guidance 4, above by the package, below by the function suspect.",
    left=("package", "suspect"),
)

# %% broken-read [markdown]
r"""
**What to see.** The pictures are not the same. But would you have called one of the rows wrong,
had you seen it alone? That is how such a line survives for years. A test without any picture
finds it in a millisecond, and you will write it.
"""

# %% catch-it [exercise] title="Catch it" difficulty=3 minutes=10
r"""
Write `is_guidance(rule)`, which is `True` if `rule(without, told, w)` is guidance and `False` if
it is anything else. You may call the rule with any tensors you like. The check tries your test on
right rules and on wrong ones, `suspect` among them. Section 6 has two properties to start from.
"""


# %% [stub]
def is_guidance(rule):
    return ...


# %% [check]
rules = {
    "the right rule": (lambda a, b, w: a + w * (b - a), True),
    "the right rule, written differently": (lambda a, b, w: (1 - w) * a + w * b, True),
    "suspect, which leaves a channel out": (suspect, False),
    "one that counts w from 0": (lambda a, b, w: b + w * (b - a), False),
    "one in which the answers have changed places": (lambda a, b, w: b + w * (a - b), False),
    "one that is right at w = 0 and 1 only": (lambda a, b, w: a + w**2 * (b - a), False),
    "one that guides by at most 1": (lambda a, b, w: a + min(w, 1.0) * (b - a), False),
}
with check("Catch it", "is_guidance still returns ...", "No wrong rule passes your test.") as c:
    for name, (rule, verdict) in rules.items():
        mine = is_guidance(rule)
        c.answered(mine)
        c.that(bool(mine) == verdict, f"Your test says {bool(mine)} to {name}.")


# %% [solution]
def is_guidance(rule):
    a, b = torch.randn(2, 3, 4, 5, 7).unbind()  # 4 channels
    return all(
        torch.allclose(rule(a, b, w), torch.lerp(a, b, w), atol=1e-4) for w in (0.0, 1.0, 3.0)
    )


# %% [wrong]
def is_guidance(rule):
    a, b = torch.randn(2, 3, 4, 5, 7).unbind()
    return torch.allclose(rule(a, b, 1.0), b)


# %% summary [markdown]
r"""
## Summary

- An autoencoder trades detail that nobody misses for sixteen times fewer numbers. Its
  reconstructions are the ceiling.
- Noise is added by a formula, and a network learns to guess what was below it. One guess is a
  blur.
- Sampling repeats guess and re-noise from $t = 1$ to $0$; the noise at the start decides the
  picture.
- Guidance exaggerates what the class changes. It buys obedience with variety.
- Pictures convince too easily. A gate, a best guess that knows nothing and a property test cost
  milliseconds, and do not.

**What next.** Notebook 01 asks which part of a picture the eye does not miss. Impatient? Train a
model of your own, from nothing, in ten minutes on a laptop: `ldm-lite demo`, and then read its
report.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021. [arXiv
   2010.02502](https://arxiv.org/abs/2010.02502)
3. J. Ho, T. Salimans. *Classifier-Free Diffusion Guidance.* 2022. [arXiv
   2207.12598](https://arxiv.org/abs/2207.12598)
4. J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020. [arXiv
   2006.11239](https://arxiv.org/abs/2006.11239)
5. T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR
   2022, where what our denoiser predicts ("v") comes from. [arXiv
   2202.00512](https://arxiv.org/abs/2202.00512)
"""
