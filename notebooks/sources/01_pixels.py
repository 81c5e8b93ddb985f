r"""
title: Pixels and perception
goal: Find the part of a picture that the eye does not miss, and what a model pays for it
needs: Python and a little PyTorch; notebook 00 helps and is not required
memory: under 2 GB; no GPU needed
download: nothing, the trained weights come with the package
result: one curve from the first bit of a picture to the last, and the place where diffusion stops
objectives:
  - take a picture apart with the Fourier, Haar and cosine transforms and put it together again
  - build what loses information in JPEG, and predict the size of a real file
  - read a rate–distortion curve and compare it with the best that is possible for a Gaussian
  - say with two numbers why a likelihood cares more about grain than about night and day
  - place the families of generative models on one map, with a toy for each claim
"""

# %% the-idea [markdown]
r"""
**What to see.** Two boxes in colour: the image and the latent. An image is 64 × 64 × 3 = 12,288
numbers, its latent 16 × 16 × 3 = 768. This notebook is about the difference.

Rombach et al. [1] argue that little is lost: most bits of a picture describe detail that nobody
sees, and a model of pixels spends its effort there. That is a claim about numbers, so we measure
it. There is no network until section 6.
"""

# %% instrument [markdown]
r"""
## 1. The same scene twice

`Scenes` has a knob that no photograph has. With `texture=0` the very same scene is drawn without
blades of grass, ripples and grain. The difference of the two is *exactly* the fine detail.
"""

# %% instrument-figure tags=figure
import io
import math

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from ldm_lite.data import Scenes

torch.set_grad_enabled(False)


def draw(rows, texture=1.0, split="train"):  # (B, 3, 64, 64), from 0 to 255
    return Scenes(split=split, texture=texture).batch(rows)["image"].float()


count = 64 if fast else 512
scenes, plain = draw(range(count)), draw(range(count), texture=0)
x, y = (images[[0, 3, 6, 9, 12]] / 127.5 - 1 for images in (scenes, plain))
figures.pictures(
    [x, y, (6 * (x - y)).clamp(-1, 1)],
    "Five scenes with texture, without it, and the difference times six, where grey is none.",
    left=("texture=1", "texture=0", "difference\n× 6"),
)

# %% instrument-read [markdown]
r"""
**What to see.** Cover the second row with your hand, then the first. Each alone is complete: the
same houses, trees and boats, the same light. What differs is in the last row: noise on the ground
and on things, and next to nothing in the sky.

How much is it? We ask three ways. As error: PSNR, the ratio of the full range to the error, in
decibels (exercise 1). As variance. And as bits: PNG loses nothing, so its file is what the texture
costs to keep. On one sheet of 64 scenes the header does not count.
"""


# %% instrument-bits tags=check
from ldm_lite.metrics import psnr


def db(a, b):
    """PSNR of all numbers together; a, b from 0 to 255."""
    return float(psnr(a.reshape(1, -1) / 127.5 - 1, b.reshape(1, -1) / 127.5 - 1))


def stored(images, format, **settings):
    """(bits per pixel, the decoded images) of one file with the first 64 images (B, C, 64, 64)."""
    sheet = rearrange(images[:64], "(r q) c y x -> (r y) (q x) c", r=8).squeeze(-1)
    file = io.BytesIO()
    Image.fromarray(sheet.byte().numpy()).save(file, format, **settings)
    back = torch.from_numpy(np.array(Image.open(file))).float().reshape(512, 512, -1)
    back = rearrange(back, "(r y) (q x) c -> (r q) c y x", r=8, q=8)
    return 8 * len(file.getvalue()) / 512**2, back


share = float((scenes - plain).square().mean() / scenes.var((2, 3)).mean())
(full, back), (bare, _) = stored(scenes, "PNG"), stored(plain, "PNG")
print(f"PSNR between the two {db(scenes, plain):.1f} dB; texture is {share:.1%} of the variance")
print(f"PNG: {full:.1f} bits per pixel with texture, {bare:.1f} without")
assert torch.equal(back, scenes[:64]), "PNG must give back every pixel."
assert share < 0.02, "What the eye does not miss should be a small part of the variance."
assert 0.3 < 1 - bare / full < 0.6, "... and it should be a large part of the bits."

# %% instrument-numbers [markdown]
r"""
One hundredth of the variance takes nearly half of the bits: the whole notebook in one line. Noise
is expensive because nothing about it can be predicted; a sky is cheap.
"""

# %% fourier [markdown]
r"""
## 2. Where the energy is

A Fourier transform writes a picture as a sum of waves, from one period per picture to 32. With
the right constant (`norm="ortho"`) it only turns the coordinates: the sum of squares, the
*energy*, stays what it was (Parseval). So we can ask which waves have it. One channel is enough
for now: *luma*, the brightness that JPEG codes.
"""


# %% fourier-transform tags=check
def luma(images):
    """Brightness (B, 1, 64, 64), whole numbers from 0 to 255."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return torch.einsum("bcyx,c->byx", images, weights).round()[:, None]


grey, grey_plain = luma(scenes), luma(plain)
waves = torch.fft.fft2(grey, norm="ortho")
energies = waves.abs().square().sum((1, 2, 3)), grey.square().sum((1, 2, 3))
back = torch.fft.ifft2(waves, norm="ortho").real
assert torch.allclose(*energies, rtol=1e-4), "Parseval: a change of basis keeps the energy."
assert torch.allclose(back, grey, atol=1e-2), "... and it can be undone."

# %% falling tags=check
periods = torch.fft.fftfreq(64) * 64
radius = (periods**2 + periods[:, None] ** 2).sqrt().round()
fade = torch.hann_window(64)  # to black at the borders: a jump there would count as detail


def power(grey):
    flat = (grey - grey.mean((2, 3), keepdim=True)) * fade * fade[:, None]
    return torch.fft.fft2(flat, norm="ortho").abs().square().mean((0, 1))


def falling(grey):
    return torch.stack([power(grey)[radius == r].mean() for r in range(1, 33)])


curve, curve_plain = falling(grey), falling(grey_plain)
x, y = torch.arange(2, 25).log(), curve[1:24].log()
slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
coarse, fine = float((curve / curve_plain)[0]), float((curve / curve_plain)[-1])
print(f"power falls like f to the power {slope:.1f}")
print(f"with texture / without: coarsest waves {coarse:.2f}, finest {fine:.2f}")
assert -3.2 < slope < -1.8, "Pictures have most of their energy in coarse waves."
assert abs(coarse - 1) < 0.05 and fine > 1.1, "Texture lives at the fine end only."

# %% fourier-figure tags=figure
figure, (left, right) = figures.canvas(8, 3.2, columns=2)
left.imshow(torch.fft.fftshift(power(grey)).log10(), extent=(-32, 32, -32, 32), cmap="magma")
left.set(title="log power of each wave", xlabel="periods across", ylabel="periods down")
left.grid(False)
r = torch.arange(1, 33)
right.loglog(r, curve, label="texture=1")
right.loglog(r, curve_plain, label="texture=0")
right.loglog(r, curve[3] * (r / 4.0) ** -2, "--", color=figures.SOFT, label="$1/f^2$")
right.set(xlabel="periods per picture f", title="mean power by frequency")
right.legend()
words = "Left: mean power of every wave, coarse ones in the middle. Right: mean power by frequency."
figures.show(figure, words)

# %% fourier-read [markdown]
r"""
**What to see.** Power falls by several powers of ten from the centre to the corner. The bright
cross comes from horizons and walls, the slanting rays from roofs and ridges. On the right, both
curves fall together, and only at the fine end does texture lift one of them. Photographs fall
about like $1/f^2$ [3]. `Scenes` follow that line to about ten periods per picture and then fall
faster: their detail has no detail.

So a few coarse waves have nearly everything. But a wave fills the picture, and an edge is in one
place. Haar's basis is local. Take neighbours in pairs and keep their sum and difference:

$$s = \frac{a + b}{\sqrt 2}, \qquad d = \frac{a - b}{\sqrt 2}$$

along rows, then along columns; then the same for the quarter that holds the sums, and so on. In
code, the line with `cat` is it.
"""


# %% haar tags=check
def pairs(x):
    a, b = rearrange(x, "... (n two) -> two ... n", two=2)
    return torch.cat([a + b, a - b], dim=-1) / 2**0.5


def unpaired(y):
    s, d = y.chunk(2, dim=-1)
    return rearrange(torch.stack([s + d, s - d]) / 2**0.5, "two ... n -> ... (n two)")


def haar(x):
    y = x.clone()
    for n in (64, 32, 16, 8, 4, 2):
        y[..., :n, :n] = pairs(pairs(y[..., :n, :n]).mT).mT
    return y


def unhaar(y):
    x = y.clone()
    for n in (2, 4, 8, 16, 32, 64):
        x[..., :n, :n] = unpaired(unpaired(x[..., :n, :n].mT).mT)
    return x


wavelets = haar(scenes)
energies = wavelets.square().sum(), scenes.square().sum()
assert torch.allclose(unhaar(wavelets), scenes, atol=1e-2), "Perfect reconstruction."
assert torch.allclose(*energies, rtol=1e-3), "A change of basis keeps the energy."

# %% haar-figure tags=figure
few, rows, labels = [1, 5, 8, 11], [], []
for part in (0.01, 0.03, 0.1, 0.3):
    floor = wavelets.abs().flatten(1).quantile(1 - part, dim=1).view(-1, 1, 1, 1)
    kept = unhaar(wavelets * (wavelets.abs() > floor))
    rows.append(kept[few] / 127.5 - 1)
    labels.append(f"{part:.0%}\n{db(kept, scenes):.0f} dB")
figures.pictures(
    [scenes[few] / 127.5 - 1, (wavelets[few] / 64).clamp(-1, 1), *rows],
    "Four scenes; their Haar coefficients, grey where zero; the scenes from the largest of them.",
    left=("scene", "coefficients", *labels),
)

# %% haar-energy tags=check
around = scenes - scenes.mean((2, 3), keepdim=True)
for numbers, name, least in ((haar(around), "Haar coefficients", 0.9), (around, "pixels", 0.3)):
    energy = numbers.flatten(1).square().sort(descending=True).values
    held = float((energy[:, :1228].sum(1) / energy.sum(1)).mean())
    print(f"the largest tenth of the {name} holds {held:.1%} of the energy around the mean")
    assert least < held < least + 0.35, "In the right basis few numbers are large; in pixels many."

# %% haar-read [markdown]
r"""
**What to see.** The coefficients are mostly grey: nothing where the picture is smooth. From one
per cent of them you can guess what it shows. From ten you have to look for what is missing, and on
the ground it is texture. Nothing was learned: the largest coefficients are simply where the
picture is.
"""

# %% jpeg [markdown]
r"""
## 3. What JPEG throws away

JPEG [2] has known since 1992 what the eye does not miss. It cuts the picture into blocks of 8 × 8
pixels and writes each as a sum of 64 cosine patterns:

$$c = C\,x\,C^\top, \qquad C_{ui} = \sqrt{\tfrac{2}{8}}\,\cos\frac{(2i + 1)\,u\,\pi}{16}, \qquad
C_{0i} = \sqrt{\tfrac{1}{8}}$$

The function `cosines` is $C$, for any size; size 3 will serve for colours.
"""


# %% dct tags=check
def cosines(n):
    u, i = torch.arange(n)[:, None], torch.arange(n)[None]
    matrix = math.sqrt(2 / n) * torch.cos((2 * i + 1) * u * math.pi / (2 * n))
    return torch.where(u == 0, math.sqrt(1 / n), matrix)


def patterns(images):
    """(B, C, 64, 64) -> the coefficients (64 B, C, 8, 8) of all blocks."""
    blocks = rearrange(images, "b c (r y) (q x) -> (b r q) c y x", y=8, x=8)
    return torch.einsum(
        "dc,ncyx->ndyx", cosines(images.shape[1]), cosines(8) @ blocks @ cosines(8).T
    )


def pictured(coefficients):
    mixed = torch.einsum("dc,ndyx->ncyx", cosines(coefficients.shape[1]), coefficients)
    return rearrange(
        cosines(8).T @ mixed @ cosines(8), "(b r q) c y x -> b c (r y) (q x)", r=8, q=8
    )


assert torch.allclose(cosines(8) @ cosines(8).T, torch.eye(8), atol=1e-6), "C is orthonormal."
assert torch.allclose(pictured(patterns(scenes)), scenes, atol=1e-2), "Nothing is lost so far."

# %% table [markdown]
r"""
So far nothing is lost. One line loses something: each coefficient is divided by its entry in a
table and *rounded*. The table comes from trials with people. It is gentle on coarse patterns, top
left, and rough on fine ones; the quality setting scales it. What remains are small integers,
mostly zeros, stored without further loss.
"""

# %% quantise
rows = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62  18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""  # ITU-T T.81, table K.1
standard = torch.tensor([int(number) for number in rows.split()]).view(8, 8)


def table(quality):
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((standard * scale + 50) // 100).clamp(1, 255)


integers = (patterns(grey[:64] - 128) / table(50)).round()  # minus 128: grey is zero

# %% block-figure tags=figure
busy = int(integers.ne(0).sum((1, 2, 3)).argsort()[-500])  # a block with something in it
pixels = rearrange(grey[:64], "b c (r y) (q x) -> (b r q) c y x", y=8, x=8)
parts = {
    "pixels x": (pixels[busy, 0], "Greys_r", 0, 255),
    "coefficients c": (patterns(grey[:64] - 128)[busy, 0], "PuOr_r", -250, 250),
    "table, quality 50": (table(50), "Greys", 0, 255),
    "rounded: what is stored": (integers[busy, 0], "PuOr_r", -15, 15),
}
figure, axes = figures.canvas(11, 3.0, columns=4)
for axis, (name, (values, colours, low, high)) in zip(axes, parts.items()):
    axis.imshow(values, cmap=colours, vmin=low, vmax=high, alpha=0.6)
    for y, x in np.ndindex(8, 8):
        number = f"{float(values[y, x].round()) + 0:.0f}"
        axis.text(x, y, number, ha="center", va="center", fontsize=7)
    axis.set(title=name, xticks=[], yticks=[])
    axis.grid(False)
words = "A block of 8 × 8 pixels, its cosine coefficients, the table, and the rounded quotients."
figures.show(figure, words)

# %% block-read [markdown]
r"""
**What to see.** The largest coefficients are top left, the coarse patterns. The table grows to the
lower right. What is stored is some small integers and many zeros, and nothing but zeros at the fine
end.

How many bits do they need? If integer $q$ occurs with frequency $p_q$, an ideal code spends
$-\log_2 p_q$ bits on it, on average the *entropy*. Each of the 64 positions gets its own code. Is
this what a real file does? We compare table, picture and size with Pillow's.
"""


# %% pillow tags=check
def entropy(integers):  # bits per number of (N, …), with an ideal code for each column
    bits = 0.0
    for column in integers.flatten(1).T:
        share = column.unique(return_counts=True)[1] / len(column)
        bits -= float((share * share.log2()).sum())
    return bits / integers[0].numel()


with io.BytesIO() as file:
    Image.fromarray(grey[0, 0].byte().numpy()).save(file, "JPEG", quality=30)
    theirs = torch.tensor(Image.open(file).quantization[0]).view(8, 8)
assert torch.equal(theirs, table(30)), "The table in a real file must be ours, number by number."
ours, files = [], []
for quality in (90, 75, 50, 25, 10, 5):
    integers = (patterns(grey[:64] - 128) / table(quality)).round()
    mine = (pictured(integers * table(quality)) + 128).round().clamp(0, 255)
    size, decoded = stored(grey, "JPEG", quality=quality)
    ours.append((entropy(integers), db(mine, grey[:64])))
    files.append((size, db(decoded, grey[:64])))
    said = [f"{bits:.2f} bits per pixel, {ratio:.1f} dB" for bits, ratio in (ours[-1], files[-1])]
    print(f"quality {quality:2d}: ours {said[0]}; Pillow {said[1]}")
    assert (mine - decoded).abs().mean() < 1, "Ours and Pillow's: less than a level of 255 apart."
    assert quality < 25 or abs(size / ours[-1][0] - 1) < 0.25, "Entropy predicts the file."

# %% pillow-read [markdown]
r"""
The same table, the same picture, nearly the same size. At low quality the real file is larger: its
headers and codes do not shrink with the picture.

Now in colour, and for the eye. Pillow adds two channels for hue at half the size: we hardly see
where colours end.
"""

# %% jpeg-figure tags=figure
qualities = (95, 50, 20, 5)
decoded = {quality: stored(scenes, "JPEG", quality=quality) for quality in qualities}
figures.pictures(
    [scenes[few] / 127.5 - 1, *(images[few] / 127.5 - 1 for _, images in decoded.values())],
    "Four scenes and their JPEG versions of quality 95, 50, 20 and 5, with bits per pixel.",
    left=("scene\n24 bits", *(f"quality {q}\n{decoded[q][0]:.1f} bits" for q in qualities)),
)
cost = {}
for q in (95, 50, 10):
    cost[q] = stored(grey, "JPEG", quality=q)[0] / stored(grey_plain, "JPEG", quality=q)[0] - 1
    print(f"in grey, quality {q}: texture makes the file {cost[q]:+.0%} larger")
assert cost[95] > 0.12 and cost[10] < 0.05, "At low quality texture should cost next to nothing."

# %% jpeg-read [markdown]
r"""
**What to see.** A screen uses 24 bits per pixel. At quality 95 nothing seems to be gone.
At 50 and 20 the ground becomes smooth, and colours begin to run. At 5 there are blocks: now it is
*structure* that is given up, and everybody sees it. The numbers agree: at 95 texture costs many
bits, at 10 hardly any, because none is left.
"""

# %% rate-distortion [markdown]
r"""
## 4. Rate and distortion

How good can the trade of bits for error be? For a Gaussian of variance $\sigma^2$ and
squared error $D$ the answer is exact: $\tfrac12 \log_2(\sigma^2/D)$ bits. For many numbers, the
best is *reverse water-filling* [4]: let the same error $\theta$ into each, and spend nothing on
those whose variance is below it:

$$R = \frac1n \sum_k \max\left(0,\ \tfrac12 \log_2 \frac{\sigma_k^2}{\theta}\right), \qquad
D = \frac1n \sum_k \min(\theta, \sigma_k^2)$$
"""


# %% waterfill tags=check
def waterfill(variance, level):  # bits and squared error, per number
    rate = (0.5 * (variance / level).log2()).clamp(min=0).mean()
    return float(rate), float(variance.clamp(max=level).mean())


noise = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
integers = (noise / 0.125).round()
rate, error = entropy(integers[:, None]), float((0.125 * integers - noise).square().mean())
best, _ = waterfill(torch.ones(1), error)
print(f"rounding takes {rate:.3f} bits, the best code for its error {best:.3f}")
assert abs(rate - best - 0.5 * math.log2(math.pi * math.e / 6)) < 0.02, "Theory: 0.255 bits more."

# %% waterfill-read [markdown]
r"""
That is our oracle. On Gaussian noise, plain rounding is a quarter of a bit from the best that
*any* code can do, as theory says: $\tfrac12 \log_2(\pi e / 6)$.

Now pictures. A coder that only cares about squared error rounds all 64 coefficients with the same
step. Beside it, JPEG's table, Pillow's files, and the Gaussian with the same 64 variances.
"""


# %% curves tags=check
def coded(coefficients, step):  # bits per pixel and squared error of one step for all
    integers = (coefficients / step).round()
    error = float((integers * step - coefficients).square().mean())
    return entropy(integers) * coefficients.shape[1], error


def decibels(error):
    return 10 * math.log10(255**2 / error)


coefficients = patterns(grey[:64])
variance = coefficients.var(0).flatten()
flat = [coded(coefficients, step) for step in (3, 6, 12, 24, 48, 96)]
ideal = [waterfill(variance, step**2 / 12) for step in (3, 6, 12, 18, 24, 34, 48, 68, 96, 140, 200)]
(more, fine), (less, error) = flat[:2]
gaussian, _ = waterfill(variance, error)  # below every variance: level and error are the same
buys = (decibels(fine) - decibels(error)) / (more - less)
print(f"at fine steps one more bit buys {buys:.1f} dB")
print(f"{decibels(error):.0f} dB take {less:.2f} bits per pixel, of a Gaussian {gaussian:.2f}")
assert 5 < buys < 7, "One bit halves the step: a quarter of the error, 6 dB."
assert less < gaussian, "Pictures are easier than Gaussians of the same variances."
flat, ideal = ([(rate, decibels(error)) for rate, error in curve] for curve in (flat, ideal))

# %% rd-figure tags=figure
figure, (left, right) = figures.canvas(9, 3.2, columns=2)
heights, water = variance.sort(descending=True).values.log2(), math.log2(24**2 / 12)
left.bar(range(64), heights, width=1, color=figures.BLUE)
left.bar(range(64), heights.clamp(max=water), width=1, color=figures.LINE)
left.set(xlim=(-0.5, 63.5), xlabel="coefficient, sorted", title=r"who gets bits: $\log_2 \sigma^2$")
names = ("one step for all", "JPEG's table", "Pillow's files", "Gaussian, best")
for points, name, look in zip((flat, ours, files, ideal), names, ("o-", "s-", "x", "--")):
    right.plot(*zip(*points), look, label=name)
right.set(xlabel="bits per pixel", title="PSNR, dB")
right.legend()
words = "Left: log variance of the coefficients, grey below the water level. Right: PSNR by bits."
figures.show(figure, words)

# %% rd-read [markdown]
r"""
**What to see.** Left, a bar that stands out of the water gets half a bit for each unit of its blue
height; the grey rest is given up. Right, all curves have the same form: the first half bit buys
most, and at the right end each bit buys 6 dB. JPEG's table is worse than one step for all where
there are many bits, by this measure: it was made for eyes, and PSNR has none.

At fine steps, rounding pictures beats the *best* code for Gaussians of the same variances. No
contradiction: of all sources with given variances the Gaussian is the hardest. Pictures are not
Gaussian. A model has something to learn.
"""

# %% bits-by-wave [markdown]
r"""
## 5. What a likelihood pays for

Trained by likelihood, a model must give every picture a high density $p$. That is coding again:
$-\log_2 p$ is the length of the ideal code. Where do its bits go? Take the simplest model, an
independent Gaussian for each cosine pattern of the whole picture. Pattern $k$ costs

$$b_k = \tfrac12 \log_2\left(2 \pi e\,(\sigma_k^2 + \tfrac1{12})\right)$$

bits on average; $\tfrac1{12}$ is the variance of rounding pixels to whole numbers.
"""

# %% bits tags=check
C = cosines(64)
sigma2 = (C @ grey @ C.T).var((0, 1))
bits = 0.5 * torch.log2(2 * math.pi * math.e * (sigma2 + 1 / 12))
oracle = torch.distributions.Normal(0.0, (sigma2 + 1 / 12).sqrt()).entropy() / math.log(2)
torch.testing.assert_close(bits, oracle)
u, v = torch.arange(64.0), torch.arange(64.0)[:, None]
order = (u**2 + v**2).flatten().argsort()  # from coarse to fine
so_far = [numbers.flatten()[order].cumsum(0) / numbers.sum() for numbers in (sigma2, bits)]
energy, length = (float(share[64 * 64 // 16 - 1]) for share in so_far)
print(f"the coarsest 1/16 of the patterns: {energy:.1%} of the energy, {length:.1%} of the bits")
assert energy > 0.85 and length < 0.2, "Energy is coarse, bits are everywhere."

# %% bits-figure tags=figure
figure, (left, right) = figures.canvas(8, 3.0, columns=2)
for share, name in zip(so_far, ("energy", "bits")):
    left.plot(torch.arange(1, 4097) / 4096, share, label=name)
left.axvline(1 / 16, linestyle="--", color=figures.SOFT, label="1/16")
left.set(xlabel="share of the patterns, coarse to fine", title="how much is there so far")
left.legend(loc="lower right")
distance = (u**2 + v**2).sqrt().round()
right.plot(range(1, 64), [float(bits[distance == d].mean()) for d in range(1, 64)])
right.set(xlabel="frequency of the pattern", title="bits for one coefficient", ylim=(0, None))
words = "Left: share of energy and of bits in the coarsest patterns. Right: bits by frequency."
figures.show(figure, words)

# %% bits-read [markdown]
r"""
**What to see.** Energy is all in the first sixteenth, as many numbers as one channel of our latent
has. The bits hardly know where the energy is. A fine pattern still costs half as much as a coarse
one, and there are fifteen times as many of them. The *logarithm* does that: to halve an error costs
one bit, in a sky as in grain.

**Predict before you run.** A world has sixteen pictures, four of them night, all equally frequent,
with Gaussian grain. Two models know all of it, but for one fault each. *A* thinks that night comes
once in a thousand pictures: it would practically never draw one. *B* makes grain ten per cent too
strong. Which one loses more likelihood, and how many times more? Write it down.
"""

# %% nats tags=figure
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

labels = Scenes(split="train").batch(range(count))["label"]
first = [int((labels == label).nonzero()[0]) for label in range(16)]  # 12 to 15 are night
layouts = plain[first].flatten(1) / 127.5 - 1
grain = float((scenes - plain).div(127.5).square().mean().sqrt())


def world(weights, grain):
    return MixtureSameFamily(Categorical(weights), Independent(Normal(layouts, grain), 1))


fair = torch.full((16,), 1 / 16)
rare = torch.cat([torch.full((12,), 0.999 / 12), torch.full((4,), 0.001 / 4)])
models = {"the truth": (fair, grain), "A, no night": (rare, grain), "B, grain": (fair, 1.1 * grain)}
z = torch.randn(32, 12288, generator=torch.Generator().manual_seed(0))
samples = layouts.repeat(2, 1) + grain * z  # two of each picture
nats = {name: world(*model).log_prob(samples).mean() for name, model in models.items()}
rows = [layouts[few], layouts[few] + grain * z[:4], layouts[few] + 1.1 * grain * z[:4]]
figures.pictures(
    [row.view(4, 3, 64, 64).clamp(-1, 1) for row in rows],
    "Four of the sixteen pictures; with grain of the right strength; with 10 per cent more grain.",
    left=("picture", "right grain", "grain of B"),
)

# %% nats-claims tags=check
loss = {name: float(nats["the truth"] - value) for name, value in nats.items()}
exact_a = float(kl_divergence(Categorical(fair), Categorical(rare)))
exact_b = 12288 * float(kl_divergence(Normal(0.0, 1.0), Normal(0.0, 1.1)))
for name, exact in (("A, no night", exact_a), ("B, grain", exact_b)):
    print(f"{name}: loses {loss[name]:.1f} nats per picture; exactly {exact:.1f}")
print(f"grain off by {math.sqrt(exact_a / 12288):.1%} would cost as much as A's fault")
assert abs(loss["A, no night"] - exact_a) < 0.1, "Log-likelihoods differ by the KL divergence."
assert abs(loss["B, grain"] - exact_b) < 0.15 * exact_b, "... in both cases."
assert exact_b > 50 * exact_a, "Grain must matter far more than night."

# %% nats-read [markdown]
r"""
**What to see.** Nothing: the second row and the third look the same. And yet B loses about ninety
times as much as A, which hardly ever draws a night. To the likelihood, grain that is off by one per
cent is as bad as a world without night. That is not a flaw of some network, it is what likelihood
*means* where pixels are counted: 12,288 small errors outvote a large one. More such surprises: [6].

A model that must please this judge spends its weights and its hours on grain. The way out is to
take the grain out of the courtroom.
"""

# %% first-stage [markdown]
r"""
## 6. Two stages on one curve

Here is the network at last: the autoencoder of notebook 00 (02 and 03 build one). Which part of the
picture does it drop? We have the instrument. Compare what it decodes with the picture, and with the
same scene drawn without texture. And encode both: how much of the texture survives?
"""

# %% autoencoder tags=check
from ldm_lite.latent import LatentDiffusion
from ldm_lite.samplers import predictor

model = LatentDiffusion.load("scenes-ldm4").to(device)
stage = model.first_stage
unseen = range(12 if fast else 64)
x, x_plain = (draw(unseen, texture, "test") / 127.5 - 1 for texture in (1, 0))


def rebuilt(image):
    return stage.decode(stage.encode(image.to(device))).clamp(-1, 1).cpu()


y, y_plain = rebuilt(x), rebuilt(x_plain)
to_picture, to_plain = float(psnr(y, x).mean()), float(psnr(y, x_plain).mean())
texture = x - x_plain
texture_kept = float(((y - y_plain) * texture).sum() / texture.square().sum())
whole = x_plain - x_plain.mean((2, 3), keepdim=True)
structure_kept = float((y_plain * whole).sum() / whole.square().sum())
print(
    f"decoded against the picture {to_picture:.1f} dB, against it without texture {to_plain:.1f} dB"
)
print(f"texture kept {texture_kept:.0%}, everything else {structure_kept:.0%}")
assert to_plain > to_picture, "What is decoded should be nearer to the scene without texture."
assert texture_kept < 0.6 and structure_kept > 0.95, "Texture goes, structure stays."

# %% autoencoder-figure tags=figure
some = [2, 4, 5, 7]
figures.pictures(
    [x[some], y[some], (6 * texture[some]).clamp(-1, 1), (6 * (x - y)[some]).clamp(-1, 1)],
    "Test images; decoded from the latent; the texture, times six; what was lost, times six.",
    left=("image", "decoded", "texture\n× 6", "lost\n× 6"),
)

# %% autoencoder-read [markdown]
r"""
**What to see.** The ground in the last two rows: what was lost repeats the texture, blade by blade
and ripple by ripple. The rest is edges, stars, windows and slight shifts of colour. Texture cannot
be predicted from its surroundings, so it would fill the latent, and it buys little PSNR.

Next: how many bits does a *diffusion model* need for this latent? It knows landscapes. To describe
$z_0$ up to the noise of time $t$ costs, in nats [5],

$$I(z_0; z_t) = \tfrac12 \int_0^{\mathrm{SNR}_t} \mathbb E\,\lVert z_0 - \hat z_0 \rVert^2
\; d\,\mathrm{SNR}, \qquad \mathrm{SNR}_t = \alpha_t^2 / \sigma_t^2$$

if the guess $\hat z_0$ is the best there is; a worse guess costs more. In code, the integral runs
over log SNR. An oracle: for a Gaussian of variance 1 the best guess has error
$1/(1+\mathrm{SNR})$, and the rate is $\tfrac12 \log(1 + \mathrm{SNR})$.
"""


# %% rate tags=check
def nats_until(log_snr, error):
    height = 0.5 * log_snr.exp() * error  # d SNR = SNR d log SNR
    return torch.cat([torch.zeros(1), torch.cumulative_trapezoid(height, log_snr)])


times = torch.linspace(1, 0.1, 11 if fast else 16) ** 3  # denser where there is less noise
alpha, sigma = model.diffusion.schedule(times)
log_snr = 2 * (alpha / sigma).log().float()
integral, exact = nats_until(log_snr, 1 / (1 + log_snr.exp())), 0.5 * torch.log1p(log_snr.exp())
print(f"a Gaussian: {float(integral[-1]):.3f} nats by the integral, {float(exact[-1]):.3f} exactly")
assert torch.allclose(integral, exact, atol=0.06), "The integral must give the Gaussian's rate."

# %% semantic
told, _ = model.conditions({"label": Scenes(split="test").batch(unseen)["label"]})
predict = predictor(model.denoiser, model.diffusion, told)
z0 = stage.encode(x.to(device))
eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1)).to(device)
guesses = [predict(model.diffusion.noised(z0, eps, t), t).z0 for t in times]
errors = torch.tensor([float((guess - z0).square().sum() / len(z0)) for guess in guesses])
rates = (math.log2(16) + nats_until(log_snr, errors) / math.log(2)) / 64**2
seen = [stage.decode(guess).clamp(-1, 1).cpu() for guess in guesses]
wrong = [float((127.5 * (image - x)).square().mean()) for image in seen]
semantic = list(zip(rates.tolist(), wrong))

# %% semantic-read [markdown]
r"""
The first $\log_2 16 = 4$ bits name the class. `semantic` is now a list: bits per pixel that the
diffusion model has received, and the squared error of its best guess, decoded.

The second stage is the rest, $x - D(z_0)$, coded by cosines, as in section 4, with finer and finer
steps. For comparison, the same coder works alone, on the picture itself.
"""

# %% perceptual tags=check
lost = [coded(patterns(127.5 * (x - seen[-1])), step) for step in (48, 32, 16, 8, 4, 2)]
perceptual = [semantic[-1], *((semantic[-1][0] + bits, error) for bits, error in lost)]
alone = [coded(patterns(127.5 * x), s) for s in (400, 256, 160, 96, 64, 32, 16, 8, 4, 2)]
rate, error = min(semantic, key=lambda point: abs(decibels(point[1]) - 26))
by_cosines = float(np.interp(-error, [-e for _, e in alone], [b for b, _ in alone]))
part = semantic[-1][0] / perceptual[-1][0]
left_over = float(semantic[-1][1] / (127.5 * x).var((2, 3)).mean())
print(f"{decibels(error):.1f} dB: {rate:.3f} bits per pixel, by cosines alone {by_cosines:.2f}")
print(f"the latent: {part:.1%} of the bits of the whole curve, {1 - left_over:.1%} of the variance")
assert rate < by_cosines / 3, "A model that knows landscapes must need far fewer bits."
assert part < 0.1 and left_over < 0.1, "Few bits, nearly all of the picture."

# %% two-stages tags=figure
figure, (left, right) = figures.canvas(10, 3.5, columns=2)
both = {"semantic: the latent": semantic, "perceptual: the rest": perceptual}
for (name, points), colour in zip(both.items(), (figures.BLUE, figures.ORANGE)):
    rate, error = zip(*points)
    left.plot(rate, [e**0.5 for e in error], "o-", color=colour, label=name, markersize=4)
    right.plot(rate, [decibels(e) for e in error], "o-", color=colour, label=name, markersize=4)
right.plot(
    [rate for rate, _ in alone],
    [decibels(e) for _, e in alone],
    "s--",
    color=figures.SOFT,
    label="cosines alone",
    markersize=4,
)
left.set(
    xlabel="bits per pixel", title="error, in levels of 255", ylim=(0, None), xlim=(-0.2, None)
)
right.set(xscale="log", xlabel="bits per pixel", title="PSNR, dB")
left.legend()
right.legend(loc="upper left")
words = (
    "Error against bits per pixel: the latent by diffusion, then the rest by cosines. Right: the"
)
figures.show(figure, words + " same as PSNR over the logarithm of the bits, with cosines alone.")

# %% two-stages-read [markdown]
r"""
**What to see.** Left, a cliff and then a long tail: figure 2 of the paper [1], with numbers. The
cliff is *semantic* compression, what stands where; it takes a fraction of a bit per pixel. The tail
is *perceptual* compression; it takes nearly all of the bits, and section 1 says what it contains.
At the elbow stands the autoencoder. Diffusion learns the cliff. The tail is left out, or left to
the decoder to make up (notebook 03).

Right, the same from the first bit on. Where the blue curve flattens, the latent is exhausted.
Cosines know nothing about landscapes and need many times as many bits for the same error. A fair
warning: the model has seen landscapes only, and these are ideal codes, not files.
"""

# %% counting [markdown]
r"""
## 7. What it saves

The latent has 16 positions on a side instead of 64. A convolution works once at each position;
attention compares each with each. PyTorch counts floating-point operations (FLOPs), and so can we.
The denoiser is the course's UNet, the same layers for latents and for pixels.
"""

# %% flops tags=check
from torch.utils.flop_counter import FlopCounterMode


def flops(call, *inputs):  # by operation
    with FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_flop_counts()["Global"]


conv, by_hand = torch.nn.Conv2d(5, 7, 3, padding=1), 2 * 11 * 13 * 5 * 7 * 9
counted = flops(conv, torch.zeros(1, 5, 11, 13))[torch.ops.aten.convolution]
assert counted == by_hand, "2 × positions × weights, no more."

# %% ratios tags=check
import timeit
from dataclasses import replace

from ldm_lite.condition import Condition
from ldm_lite.presets import PRESETS
from ldm_lite.unet import UNet


def costs(channels, side):
    net = UNet(replace(PRESETS["scenes-ldm4"].model, channels=channels)).eval()
    image, cond = torch.zeros(1, channels, side, side), Condition(vector=torch.zeros(1, 64))
    attention = flops(lambda a: a @ a.mT, torch.zeros(1, side**2, 8))
    convolution = flops(net, image, torch.zeros(1), cond)[torch.ops.aten.convolution]
    clock = timeit.repeat(lambda: net(image, torch.zeros(1), cond), number=1, repeat=7)
    return image.numel(), convolution, sum(attention.values()), min(clock)


names = ("numbers", "convolution FLOPs", "attention FLOPs, full size", "seconds on this machine")
ratios = {n: big / small for n, big, small in zip(names, costs(3, 64), costs(3, 16))}
for name, ratio in ratios.items():
    print(f"{name}: {ratio:.1f} times as many in pixels")
assert ratios["numbers"] == 16, "3 × 64² against 3 × 16²."
assert 15 < ratios["convolution FLOPs"] < 17, "16 times the positions, nearly the same weights."
assert ratios["attention FLOPs, full size"] == 256, "n² with 16 times the n."

# %% flops-read [markdown]
r"""
Convolutions cost $f^2 = 16$ times as much in pixels, attention at full size $f^4 = 256$ times. The
clock is printed and not promised: tensors as small as ours leave a machine half idle. And a sampler
calls the denoiser some 20 to 50 times for each picture; the decoder is called once.
"""

# %% family [markdown]
r"""
## 8. The family

Why diffusion in the latent, and not another model? There are four families, and each has a habit.
One toy shows them: 30 per cent of the data are near −2, 70 per cent near 2, and nothing is between.

**VAEs** and all that is trained by squared error: a decoder that cannot know which mode is meant
answers with the mean, where no data are. **GANs** are punished for drawing what is not there, and
hardly for leaving something out. The reverse Kullback-Leibler divergence has the same habit, and
can be computed; likelihood, the forward one, has the opposite.
"""

# %% two-modes tags=check
weights, centres, width = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 2.0]), 0.4
data = MixtureSameFamily(Categorical(weights), Normal(centres, width))
torch.manual_seed(0)
points = data.sample((4000,))
line = torch.linspace(-6, 6, 2401)
dx = float(line[1] - line[0])
average = points.mean()  # what squared error likes best
forward = Normal(average, points.std())  # what likelihood likes best
with torch.enable_grad():
    place = torch.zeros(2, requires_grad=True)  # mean and log deviation
    optimizer = torch.optim.Adam([place], lr=0.05)
    for _ in range(300):
        log_q = Normal(place[0], place[1].exp()).log_prob(line)
        reverse_kl = (log_q.exp() * (log_q - data.log_prob(line))).sum() * dx
        optimizer.zero_grad()
        reverse_kl.backward()
        optimizer.step()
reverse = Normal(place[0].detach(), place[1].detach().exp())
gap = float(forward.cdf(torch.tensor(0.5)) - forward.cdf(torch.tensor(-0.5)))
empty = float((points.abs() < 0.5).float().mean())
cost, mean, spread = (float(v.detach()) for v in (reverse_kl, reverse.mean, reverse.stddev))
print(f"reverse KL: mean {mean:.2f}, deviation {spread:.2f}, cost {cost:.3f} nats")
print(f"between -0.5 and 0.5: {gap:.0%} of what forward KL draws, {empty:.1%} of the data")
assert data.log_prob(average) < data.log_prob(centres[0]) - 2, "The mean is like no datum."
assert reverse.cdf(torch.tensor(0.0)) < 0.01, "Reverse KL drops the smaller mode ..."
assert abs(cost + math.log(0.7)) < 0.01, "... and pays only -log 0.7 nats for it."
assert gap > 0.1, "Forward KL covers both, and the desert between."

# %% flow-idea [markdown]
r"""
**Flows** learn an invertible map $f$ from data to a Gaussian. The density follows from the change
of variables, exactly, whatever the weights are:

$$\log p(x) = \log \mathcal N(f(x); 0, 1) + \log f'(x)$$

A sum of rising functions rises, and so can be inverted: that is our flow. The price: it has as many
numbers inside as outside.
"""


# %% flow tags=check
class Flow(torch.nn.Module):
    def __init__(self, k=8):
        super().__init__()
        self.shift, self.scale = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
        self.height, self.slope = (torch.nn.Parameter(torch.zeros(k)) for _ in range(2))
        self.centre = torch.nn.Parameter(torch.linspace(-4, 4, k))

    def log_prob(self, x):
        s, h, c = (torch.nn.functional.softplus(p) for p in (self.scale, self.height, self.slope))
        bend = torch.tanh(c * (x[:, None] - self.centre))
        f, df = s * x + self.shift + bend @ h, s + (1 - bend**2) @ (h * c)
        return Normal(0.0, 1.0).log_prob(f) + df.log()


flow = Flow()
untrained = float(flow.log_prob(line).exp().sum() * dx)
with torch.enable_grad():
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (-flow.log_prob(data.sample((512,))).mean()).backward()
        optimizer.step()
trained = float(flow.log_prob(line).exp().sum() * dx)
behind = float((data.log_prob(points) - flow.log_prob(points)).mean())
straight = Flow()
straight.height.fill_(-100)  # no bends left: softplus(0) x, a Gaussian
known = Normal(0.0, 1 / math.log(2)).log_prob(line)
print(f"the integral: {untrained:.4f} before training, {trained:.4f} after")
print(f"likelihood: {behind:.3f} nats behind the truth")
assert abs(untrained - 1) < 1e-3 and abs(trained - 1) < 1e-3, "A density, whatever the weights."
assert torch.allclose(straight.log_prob(line), known, atol=1e-3), "Without bends: torch's Normal."
assert behind < 0.15, "Likelihood is what it was trained for."

# %% ar-idea [markdown]
r"""
**Autoregressive models** write the picture down symbol by symbol: $p(x_1)\,p(x_2 \mid x_1) \cdots$
The product is the likelihood, again exactly, and each symbol takes one call.

**Diffusion** needs only a denoiser. For this mixture the best one, $\mathbb E[z_0 \mid z_t]$, is a
formula: guess the mode, then shrink towards its centre. We give it to the package's own sampler.
Nothing is trained.
"""

# %% exact-diffusion tags=check
from ldm_lite.diffusion import Estimate, VariancePreserving
from ldm_lite.samplers import ddim, last

schedule = VariancePreserving()


def best(z, t):
    """E[z0 | z_t] for two Gaussians, and the noise that goes with it."""
    alpha, sigma = (float(weight) for weight in schedule(t))
    v = (alpha * width) ** 2 + sigma**2
    off = z[:, None] - alpha * centres
    mode = (weights.log() - off**2 / (2 * v)).softmax(dim=1)
    z0 = (mode * (centres + alpha * width**2 / v * off)).sum(1)
    return Estimate(z0, (z - alpha * z0) / sigma)


start = torch.randn(4000, generator=torch.Generator().manual_seed(0))
landed = last(ddim(best, start, schedule.grid(50), schedule))
in_left = float((landed < 0).float().mean())
stray = float((landed.abs() < 0.5).float().mean())
print(f"left mode: {in_left:.1%} of samples, after 50 calls each; between the modes {stray:.1%}")
assert abs(in_left - 0.3) < 0.05, "Both modes, in the right proportion."
assert stray < 0.01, "... and nothing in between."

# %% family-figure tags=figure
figure, axes = figures.canvas(11, 2.9, columns=4)
titles = ("average, or choose", "exact likelihood", "cover both", "a GAN's game")
for axis, title in zip(axes, titles):
    axis.set(title=title, xlim=(-5, 5), ylim=(0, 1.3), yticks=[])
for axis in axes[:3]:
    axis.fill_between(line, data.log_prob(line).exp(), color=figures.LINE)
axes[0].plot(line, forward.log_prob(line).exp(), label="forward KL")
axes[0].plot(line, reverse.log_prob(line).exp(), label="reverse KL")
axes[0].axvline(float(average), color=figures.RED, linestyle="--", label="squared error")
axes[1].plot(line, flow.log_prob(line).exp(), label="flow")
axes[2].stairs(
    *np.histogram(landed, 80, (-4, 4), density=True), color=figures.GREEN, label="diffusion"
)
for axis in axes[:3]:
    axis.legend(loc="upper left", fontsize=8)
game = [torch.tensor([1.0, 0.0])]
for _ in range(60):
    theta, psi = game[-1]
    game.append(torch.stack([theta - 0.15 * psi, psi + 0.15 * theta]))
distance = torch.stack(game).norm(dim=1)
growth = distance[1:] / distance[:-1]
assert torch.allclose(growth, torch.tensor(1 + 0.15**2).sqrt()), "Every step leads outwards."
axes[3].plot(*torch.stack(game).T, ".-", color=figures.PURPLE, markersize=3, linewidth=0.8)
axes[3].plot(0, 0, "k*", markersize=9)
axes[3].set(xlabel=r"point $\theta$", ylabel=r"slope $\psi$", xlim=(-2.4, 2.4), ylim=(-2, 2))
words = "The data in grey with what each family makes of them, and the path of a two-player game."
figures.show(figure, words)

# %% family-read [markdown]
r"""
**What to see.** First: the dashed mean stands where nothing is, one curve covers the desert, the
other forgets a mode. Second: both modes, and a thin bridge between them; an invertible map cannot
tear. Third: both modes, in proportion, slightly too narrow, as 50 steps are few. Fourth: the
smallest GAN there is (Mescheder et al. 2018). The data are at zero, the generator owns one point
$\theta$, the critic is a line of slope $\psi$, and both follow their gradients of $\theta\psi$.
The solution is the star, and *every* step leads away from it. Real GANs add brakes; that they need
them is what "unstable" means.

The next map has the calls per picture that are usual for each family, and what is known of the
likelihood, in a latent that of the latent.
"""

# %% map-figure tags=figure
places = {  # fewest and most calls, height, colour
    "GAN": (1, 1.6, 0, figures.RED),
    "VAE": (1, 1.6, 1, figures.GREEN),
    "flow": (1, 1.6, 2, figures.GREEN),
    "diffusion in pixels": (20, 1000, 1, figures.GREEN),
    "diffusion in latents": (20, 250, 0.55, figures.BLUE),
    "autoregressive,\n256 tokens": (230, 290, 2, figures.BLUE),
    "autoregressive,\npixels": (10_900, 13_800, 2, figures.GREEN),
}
figure, axis = figures.canvas(8, 3.2)
for name, (fewest, most, height, colour) in places.items():
    axis.plot([fewest, most], [height, height], color=colour, linewidth=9, solid_capstyle="round")
    axis.text((fewest * most) ** 0.5, height + 0.12, name, ha="center", va="bottom", fontsize=9)
axis.set(xscale="log", xlim=(0.5, 60_000), ylim=(-0.3, 2.7), xlabel="network calls for one picture")
axis.set_yticks((0, 1, 2), ("none", "a bound", "exact"))
axis.set_ylabel("likelihood")
words = "Map of the families: calls per picture against what is known of the likelihood. Red drops "
figures.show(figure, words + "modes, green covers them in pixels, blue covers them in a latent.")

# %% map-read [markdown]
r"""
**What to see.** Lower left is fast and tells you nothing, upper right knows everything and is slow.
Diffusion stands in the middle.

| family | likelihood | calls | covers the modes | training |
|---|---|---|---|---|
| GAN | none | 1 | drops some (the toy's reverse KL) | a game (the spiral) |
| VAE | bound | 1 | yes, and blurs (the mean) | stable |
| flow | exact (the integral is 1) | 1 | yes | stable, invertible layers only |
| autoregressive | exact (a product) | one per symbol | yes | stable |
| diffusion | bound | 20 to 1000 | yes (30 to 70) | stable: a regression |

What is in brackets you have just seen; the rest is common experience. Latent diffusion makes each
call of the last row cheap: an autoencoder for the tail of section 6, diffusion for the cliff.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below.
"""

# %% write-psnr [exercise] title="Write the PSNR" difficulty=1 minutes=5
r"""
The peak signal-to-noise ratio is $10 \log_{10}(\text{peak}^2 / \text{MSE})$ decibels. The *peak*
is the whole range of values: 255 for bytes, 2 for images in [−1, 1]. With a wrong peak you are off
by 6 dB or more, and nothing looks suspicious. Write it for two tensors of equal shape.
"""


# %% [stub]
def my_psnr(a, b, peak):
    return ...  # one number, in dB


# %% [check]
from ldm_lite.course.checks import check

with check("Write the PSNR", "my_psnr still returns ...: mean squared error first.") as c:
    a, b = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    for peak, right in zip((2, 1, 255), psnr(2 * a - 1, 2 * b - 1).expand(3)):
        mistakes = {"The peak is squared, as the error is.": right - 10 * math.log10(peak)}
        why = f"Wrong for peak {peak}: the range of a picture must not change its PSNR."
        c.close(my_psnr(peak * a, peak * b, peak), right, why, mistakes=mistakes)


# %% [solution]
def my_psnr(a, b, peak):
    return 10 * torch.log10(peak**2 / (a - b).square().mean())


# %% [wrong]
def my_psnr(a, b, peak):
    return 10 * torch.log10(peak / (a - b).square().mean())


# %% afford [exercise] title="Spend a budget" difficulty=2 minutes=8
r"""
You may spend `bits` bits on a tensor of $n$ Haar coefficients. Each one you keep costs 8 bits for
its value and $\log_2 n$ to say which it is. Return the coefficients with all others set to zero:
as many as you can pay, chosen so that `unhaar` of the result has the smallest squared error.
"""


# %% [stub]
def afford(coefficients, bits):
    return ...  # of the same shape


# %% [check]
hint = "afford still returns ...: how many can you pay, and which are they?"
with check("Spend a budget", hint, "Orthonormal: small coefficients are small errors.") as c:
    for picture, bits in ((scenes[3], 4000), (grey[5], 999)):
        y = haar(picture)
        k = int(bits / (8 + math.log2(y.numel())))
        mine = afford(y, bits)
        c.answered(mine)
        c.that(mine.shape == y.shape, "Return a tensor of the shape you were given.")
        spent = int((mine != 0).sum())
        c.that(spent <= k, f"{spent} coefficients cost more than {bits} bits: {k} are affordable.")
        c.that(spent == k, f"You keep {spent}, and could pay for {k}.")
        error = float((unhaar(mine) - picture).square().sum())
        least = float(y.square().flatten().sort().values[:-k].sum())
        why = (
            f"The squared error is {error / least:.1f} times the least possible. Keep the largest, "
        )
        c.that(error < 1.01 * least, why + "whatever their sign and place.")


# %% [solution]
def afford(coefficients, bits):
    k = int(bits / (8 + math.log2(coefficients.numel())))
    flat = coefficients.flatten()
    kept = torch.zeros_like(flat)
    largest = flat.abs().topk(k).indices
    kept[largest] = flat[largest]
    return kept.view_as(coefficients)


# %% [wrong]
def afford(coefficients, bits):
    k = int(bits / (8 + math.log2(coefficients.numel())))
    flat = coefficients.flatten()
    kept = torch.zeros_like(flat)
    largest = flat.topk(k).indices
    kept[largest] = flat[largest]
    return kept.view_as(coefficients)


# %% which-f [exercise] title="Which f?" difficulty=1 minutes=5
r"""
The paper's first stages have 3, 4, 16 or 64 channels. At which downsampling factor $f$ does a
latent of `channels` channels have `times` times fewer numbers than an RGB image? With `times=1`
compression only *begins*: at a smaller $f$ the latent has more numbers than the image. The result
need not be whole.
"""


# %% [stub]
def factor(channels, times):
    return ...


# %% [check]
with check(
    "Which f?", "factor still returns ...: count the numbers in each, as for 16 × 16 × 3."
) as c:
    for channels, f in ((3, 4), (4, 8), (16, 16), (64, 8), (12, 2)):
        times = (3 * 256**2) / (channels * (256 / f) ** 2)
        why = f"Wrong for {channels} channels and {times:.3g} times fewer numbers."
        mistakes = {"Both sides of the image shrink by f: take a root.": times * channels / 3}
        c.close(factor(channels, times), float(f), why, mistakes=mistakes)


# %% [solution]
def factor(channels, times):
    return math.sqrt(times * channels / 3)  # because the ratio is 3 f² / channels


# %% [wrong]
def factor(channels, times):
    return times * channels / 3


# %% break-it [markdown]
r"""
### Break it: a loader that looks right

The next function prepares pictures for the autoencoder. Its like has stood in a published course
for years. We show what comes out as the loader's author would.
"""


# %% broken tags=figure
def prepared(pixels):
    """Pixels 0 to 255 -> what the network reads."""
    return pixels / 255


pixels = draw((1, 2, 4, 5), split="test")
suspect = stage(prepared(pixels).to(device), sample=False)[0].clamp(0, 1).cpu()
figures.pictures(
    [pixels / 127.5 - 1, rebuilt(pixels / 127.5 - 1), 2 * suspect - 1],
    "Four test images, decoded after the package's preparation, and decoded after prepared().",
    left=("image", "package", "suspect"),
)

# %% broken-read [markdown]
r"""
**What to see.** Houses, boats, trees, all in place, in an odd light. Had you seen the last row
alone, would you have blamed the loader, or the training? Nothing raised an error: all values lie
in the range. A model that is trained on such latents learns another world. Find out what is
wrong, then write the line that would have caught it on the first day.
"""

# %% is-ready [exercise] title="Catch it" difficulty=2 minutes=8
r"""
Write `is_ready(batch)`: `True` when a batch of some 32 mixed images fills the range from −1 to 1 as
the autoencoder expects, `False` otherwise. The check tries it on right batches and on five wrong
loaders. (`encode` in the package looks for one of them, and warns.)
"""


# %% [stub]
def is_ready(batch):
    return ...


# %% [check]
loaders = {
    "pixels / 127.5 - 1": (lambda p: p / 127.5 - 1, True),
    "the same, in float16": (lambda p: (p / 127.5 - 1).half(), True),
    "prepared, above": (prepared, False),
    "pixels as they are": (lambda p: p, False),
    "pixels / 255 - 0.5": (lambda p: p / 255 - 0.5, False),
    "standardised, as for classifiers": (lambda p: (p / 255 - 0.45) / 0.225, False),
    "pixels / 127.5 - 1, divided by two again": (lambda p: (p / 127.5 - 1) / 2, False),
}
with check("Catch it", "is_ready still returns ...", "One line, on the first day.") as c:
    for rows in (range(32), range(500, 532)):
        for name, (loader, verdict) in loaders.items():
            mine = is_ready(loader(draw(rows, split="test")))
            c.answered(mine)
            c.that(bool(mine) == verdict, f"Your test says {bool(mine)} to {name}.")


# %% [solution]
def is_ready(batch):
    low, high = float(batch.min()), float(batch.max())
    return -1.01 < low < -0.6 and 0.6 < high < 1.01


# %% [wrong]
def is_ready(batch):
    return bool(batch.min() >= -1 and batch.max() <= 1)


# %% summary [markdown]
r"""
## Summary

- Energy is in few coarse numbers, bits are in many fine ones. Texture is a hundredth of the
  variance of `Scenes` and nearly half of a lossless file.
- Rounding cosine coefficients by a table is all that a grey JPEG loses, and their entropy predicts
  the file.
- For a Gaussian the best trade of bits for error is known; pictures are easier.
- Likelihood counts pixels, so grain outvotes night. An autoencoder that drops grain changes what
  likelihood is about.
- Diffusion in the latent learns the cliff of the curve, on 16 times fewer numbers, at 1/16 of the
  cost per call.

**What next.** Notebook 02 builds the autoencoder, and asks how small a latent can be before it is
structure that goes.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach et al. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. G. K. Wallace. *The JPEG Still Picture Compression Standard.* Communications of the ACM 34,
   1991.
3. D. J. Field. *Relations between the statistics of natural images and the response properties of
   cortical cells.* Journal of the Optical Society of America A 4, 1987.
4. T. M. Cover, J. A. Thomas. *Elements of Information Theory.* Wiley, 2006; chapter 10.
5. D. Guo, S. Shamai, S. Verdú. *Mutual Information and Minimum Mean-Square Error in Gaussian
   Channels.* IEEE Transactions on Information Theory 51, 2005. [arXiv
   cs/0412108](https://arxiv.org/abs/cs/0412108)
6. L. Theis, A. van den Oord, M. Bethge. *A note on the evaluation of generative models.* ICLR 2016.
   [arXiv 1511.01844](https://arxiv.org/abs/1511.01844)
"""
