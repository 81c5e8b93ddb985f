r"""
title: Vector quantization
goal: Replace a latent by words from a dictionary, and learn what that buys and what it costs
needs: Python and some PyTorch; notebook 02 helps and is not required
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: pictures written in 256 words each, and a clear view of where the snap sits in an LDM
objectives:
  - find the nearest word of a dictionary in two ways, and say what it costs
  - explain why rounding has no gradient, and what straight-through puts in its place
  - tell the two terms that train a dictionary apart, although their values are equal
  - notice a dictionary that collapses, and repair it
  - compare KL, VQ and JPEG at equal bytes, and say what snapping does to noise
"""

# %% the-idea [markdown]
r"""
**What to see.** One box in colour: the latent. The autoencoder of notebook 02 wrote a picture as
numbers and kept them tidy with a slight KL term. Here is the paper's other way [1]: keep a
*dictionary* of vectors, and replace the latent at each position by the nearest of them. A picture
becomes a page of words.

The paper's models for CelebA-HQ, FFHQ and bedrooms diffuse in such a space. So the two questions
of today are what a word is worth, and what a denoiser has to do with it.
"""

# %% words [markdown]
r"""
## 1. A picture in 256 words

We load two trained first stages that differ in nothing but this. Both make a picture of 64 × 64
pixels four times smaller on a side, with three channels. `vq` then snaps each of its 16 × 16
positions to one of 512 words.
"""

# %% load
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange

from ldm_lite.autoencoder import Codebook, usage
from ldm_lite.data import Scenes
from ldm_lite.presets import load_first_stage

torch.set_grad_enabled(False)  # switched on where a gradient is what we look at
kl, vq = (load_first_stage(name).to(device) for name in ("scenes-kl-f4", "scenes-vq-f4"))


def scenes(rows, size=64):
    """Test pictures (B, 3, size, size) in [-1, 1]: no model has seen them in training."""
    return (Scenes(split="test", size=size).batch(rows)["image"].float() / 127.5 - 1).to(device)


x = scenes([20, 60, 26, 53, 142])
code = vq.code(x)
print(f"latent {tuple(code.mean.shape[1:])}, words {tuple(code.index.shape[1:])}")

# %% words-figure tags=figure
palette = torch.rand(512, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
vectors = code.z / code.z.std((0, 2, 3), keepdim=True) / 2
figures.pictures(
    [x, rearrange(palette[code.index.cpu()], "b y x c -> b c y x"), vectors, vq.picture(code.z)],
    "Five test pictures; their words, each of the 512 in a colour drawn at random; the same words, "
    "their three numbers taken for red, green and blue; the pictures decoded from the words.",
    left=("picture", "words", "vectors of\nthe words", "decoded"),
)

# %% words-read [markdown]
r"""
**What to see.** The second row is all that is stored: 256 whole numbers. You would not find a boat
in it; even in a clear sky the words change at nearly every step. Look the vectors up and things
are where they were: the horizon, hulls, a sun. The last row has blurred the grass, gained a fringe
at sharp edges, and the colours of small things run. Still, it is all there.

**The nearest word.** With latents $h$ and words $e_j$, the word of a position is

$$k = \arg\min_j \lVert h - e_j \rVert^2
    = \arg\min_j \left( \lVert e_j \rVert^2 - 2\, h \cdot e_j \right)$$

On the right $\lVert h \rVert^2$ is gone, as it is the same for all words. What is left is one
matrix product. `nearest` is the left side, `expanded` the right one.
"""


# %% nearest
def nearest(h, book):
    distance = torch.cdist(h, book, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.argmin(1)


def expanded(h, book):
    return ((book**2).sum(1) - 2 * h @ book.T).argmin(1)


# %% nearest-check tags=check
book = vq.bottleneck.embedding.weight.detach()  # (512, 3): the dictionary
h = rearrange(code.mean, "b c y x -> (b y x) c")
mine, other, theirs = nearest(h, book), expanded(h, book), code.index.flatten()
longer = (h - book[theirs]).norm(dim=1) - (h - book[mine]).norm(dim=1)
agree = float((mine == theirs).float().mean()), float((other == theirs).float().mean())
print(f"the package agrees with nearest at {agree[0]:.2%} of {len(h)} positions")
assert min(agree) > 0.99, "Two formulas and the package, one dictionary."
assert float(longer.abs().max()) < 1e-3, "They may differ only where two words are equally near."
assert (nearest(h, torch.cat([book, book])) < 512).all(), "Of two equal words, always the first."

# %% nearest-read [markdown]
r"""
The last line is more than a detail. A word that equals an earlier one is *never* chosen, and so,
as we will see, never learns. Subtraction of large squares costs digits; that is why the two
formulas may part where two words are equally near, and nowhere else.

What does the search cost? We count multiplications, for one picture here, and bytes for one of
256 pixels with the published vq-f4 and its 8192 words.
"""

# %% cost tags=check
from torch.utils.flop_counter import FlopCounterMode

with FlopCounterMode(display=False) as encoding:
    vq.encoder(x[:1])
with FlopCounterMode(display=False) as searching:
    expanded(h[:256], book)
share = searching.get_total_flops() / encoding.get_total_flops()
positions, size = (256 // 4) ** 2, 8192
print(f"the search takes {share:.2%} of the encoder's operations")
print(f"its matrix of distances, at 256 pixels: {positions * size * 4 / 1e6:.0f} MB")
assert searching.get_total_flops() == 2 * 256 * 512 * 3, "positions × words × channels, twice."
assert share < 0.05, "The search should be cheap beside the network."

# %% kmeans [markdown]
r"""
## 2. A dictionary in two dimensions

How does one *make* a dictionary? Take something you can see: the colours of pixels, red across
and blue up. Sixteen words shall stand for all of them. Lloyd's algorithm, *k-means* [4], repeats
two steps: give each point its nearest word, then move each word to the mean of its points.

$$e_j \leftarrow \frac{1}{n_j} \sum_{i \,:\, k(i) = j} h_i$$
"""


# %% lloyd tags=check
def lloyd(points, book):
    """One round: the moved dictionary, the points' words and their mean squared error before."""
    k = nearest(points, book)
    moved = book.clone()
    for j in k.unique():
        moved[j] = points[k == j].mean(0)
    return moved, k, float((points - book[k]).square().sum(1).mean())


generator = torch.Generator().manual_seed(0)
colours = rearrange(scenes(range(100)).cpu(), "b c y x -> (b y x) c")
colours = colours[torch.randperm(len(colours), generator=generator)[:4000]]
points = colours[:, [0, 2]]  # red, blue
start = 0.06 * (2 * torch.rand(16, 2, generator=generator) - 1)
books, errors = [start], []
for _ in range(20):
    moved, k, error = lloyd(points, books[-1])
    books.append(moved)
    errors.append(error)
print(", ".join(f"{error:.4f}" for error in errors[::4]))
assert all(b <= a + 1e-6 for a, b in pairwise(errors)), "No round can make it worse."
assert errors[-1] < errors[0] / 4, "Sixteen words say much more than nearly one."


# %% kmeans-figure tags=figure
def cells(axis, book, k, title):
    """Points in their colours, words in use as circles, the others as crosses, and the cells."""
    side = torch.linspace(-1.05, 1.05, 150)
    distance = torch.cdist(torch.cartesian_prod(side, side), book)
    for j in range(len(book)):
        rest = torch.cat([distance[:, :j], distance[:, j + 1 :]], 1).amin(1)
        ahead = (distance[:, j] - rest).view(150, 150).T
        if ahead.min() < 0 < ahead.max():
            axis.contour(side, side, ahead, levels=[0], colors=figures.SOFT, linewidths=0.8)
    axis.scatter(*points.T, s=2, c=((colours + 1) / 2).clamp(0, 1))
    used = torch.bincount(k, minlength=len(book)) > 0
    axis.plot(*book[used].T, "o", color=figures.INK, markerfacecolor="white", markersize=6)
    axis.plot(*book[~used].T, "x", color=figures.RED, markersize=5)
    axis.set(title=title, xlabel="red", ylabel="blue", aspect="equal")
    axis.grid(False)


figure, axes = figures.canvas(10.5, 3.9, columns=3)
for axis, rounds in zip(axes, (0, 2, 20)):
    k = nearest(points, books[rounds])
    cells(axis, books[rounds], k, f"after {rounds} rounds, {len(k.unique())} words in use")
figures.show(figure, "Pixels by red and blue, sixteen words, their cells, after 0, 2, 20 rounds.")

# %% kmeans-read [markdown]
r"""
**What to see.** Each word owns a cell of the plane, the *Voronoi* cell of all points nearest to
it. At the start the words sit in a heap in the middle, and crosses mark those that no point
chose. Then they spread, and in the end there are many where there are many points. A dictionary
puts its words where they are needed.

A network cannot stop for rounds, so it takes small steps down a gradient instead. They go the
same way, and we can show it: for fixed words, the gradient points from the mean of a cell to its
word, $n_j$ times.
"""

# %% gradient-is-lloyd tags=check
small = Codebook(16, 2)
small.embedding.weight.copy_(books[2])
with torch.enable_grad():
    penalty = small(rearrange(points, "n c -> 1 c n 1")).penalty
    penalty.sum().backward()
moved, k, _ = lloyd(points, books[2])
n = torch.bincount(k, minlength=16)[:, None]
towards_mean = 2 * n * (books[2] - moved) / points.numel()
torch.testing.assert_close(small.embedding.weight.grad, 0.25 * towards_mean, atol=1e-5, rtol=1e-3)
print("the package's gradient is Lloyd's step, up to a factor that depends on the cell")

# %% straight [markdown]
r"""
## 3. A gradient where there is none

Remember the 0.25; it comes back. First a deeper problem: the encoder. The loss is computed from
the *word*. What does it say about the latent? We try one dimension, a dictionary of four numbers,
and a loss that is the squared distance to 0.55.
"""

# %% stairs-figure tags=figure
four = torch.tensor([[-0.9], [-0.3], [0.2], [1.0]])
line = torch.linspace(-1.3, 1.4, 541)[:, None]
snapped = four[nearest(line, four)]
figure, (left, right) = figures.canvas(9, 3.2, columns=2)
left.plot(line, line, "--", color=figures.SOFT, label="straight-through pretends")
left.plot(line, snapped, label="snapped")
left.set(xlabel="latent h", title="the word of a latent", ylabel="z")
left.legend()
right.plot(line, (line - 0.55) ** 2, "--", color=figures.SOFT, label="loss without a dictionary")
right.plot(line, (snapped - 0.55) ** 2, label="loss")
for at, e in zip((-1.1, -0.45, 0.3, 1.15), four[:, 0]):
    slope, height = 2 * (e - 0.55), (e - 0.55) ** 2
    end = -0.16 * slope.sign()
    arrow = {"arrowstyle": "-|>", "color": figures.ORANGE, "lw": 1.8}
    right.annotate("", (at + end, height + slope * end), (at, height), arrowprops=arrow)
right.set(xlabel="latent h", title="what the encoder is told (arrows)", ylim=(-0.3, 3))
right.legend()
words = (
    "Left: snapping makes stairs. Right: so does the loss; arrows show straight-through's way down."
)
figures.show(figure, words)

# %% stairs-read [markdown]
r"""
**What to see.** The solid lines are stairs. On a step the slope is exactly zero; at a border it
is not defined. True gradients say nothing to the encoder, ever.

The *straight-through* estimator [2] lies a little: it takes the slope of the dashed loss at the
word, and hands it to the latent. The arrows all point towards the dashed minimum. The third one
sits on the best step there is and still pushes on. It is no gradient of anything, but it
usually knows the way.

We check the first claim on the real model, by a finite difference: move one latent a little,
decode, and look whether the error changes.
"""


# %% flat tags=check
def error(h, snap):
    grid = rearrange(book[nearest(h, book)] if snap else h, "(y x) c -> 1 c y x", y=16)
    return float((vq.picture(grid) - x[:1]).square().mean())


first, shifted = h[:256], h[:256].clone()
near = torch.cdist(first, book).topk(2, largest=False).values
shifted[(near[:, 1] - near[:, 0]).argmax()] += 1e-3  # far from any border
slope = {snap: (error(shifted, snap) - error(first, snap)) / 1e-3 for snap in (True, False)}
print(f"slope of the error with words {slope[True]}, without {slope[False]:.1e}")
assert slope[True] == 0 != slope[False], "On a step nothing changes, to the last bit."

# %% ste [markdown]
r"""
In code the lie is one line. $\mathrm{sg}$, *stop-gradient*, passes a value and no gradient;
PyTorch calls it `detach`:

$$z = h + \mathrm{sg}[e_k - h]$$

Forward, $h$ cancels and the word remains. Backward, only the first $h$ is seen. So whatever
gradient arrives from above must reach the encoder unchanged, and the dictionary not at all.
"""


# %% ste-code tags=check
def straight_through(h, e):
    return h + (e - h).detach()


weight = vq.bottleneck.embedding.weight.requires_grad_()
some, from_above = code.mean[:, :, :5, :7].clone().requires_grad_(), torch.randn(5, 3, 5, 7).to(h)
with torch.enable_grad():
    e = rearrange(weight[vq.bottleneck(some).index], "b y x c -> b c y x")
    for z in (straight_through(some, e), vq.bottleneck(some).z):  # ours and the package's
        torch.testing.assert_close(z, e)
        grads = torch.autograd.grad(z, (some, weight), from_above, allow_unused=True)
        assert torch.equal(grads[0], from_above) and grads[1] is None, "All to h, nothing to e."

# %% terms [markdown]
r"""
## 4. Two terms that are equal

So the reconstruction never moves a word. Two more terms do the housekeeping [2]:

$$a\,\lVert h - \mathrm{sg}[e_k] \rVert^2 + b\,\lVert \mathrm{sg}[h] - e_k \rVert^2$$

Commitment, the first, moves latents to their words. The second moves words to their latents. In
code they differ in where `detach` stands.
"""


# %% terms-check tags=check
commitment = lambda h, e: (h - e.detach()).square().mean()
codebook = lambda h, e: (h.detach() - e).square().mean()

with torch.enable_grad():
    e = rearrange(weight[vq.bottleneck(some).index], "b y x c -> b c y x")
    values = [term(some, e) for term in (commitment, codebook)]
    (to_h, none), (none_too, to_e) = (
        torch.autograd.grad(v, (some, weight), allow_unused=True) for v in values
    )
assert none is None and none_too is None, "Each moves one of the two, and not the other."
assert torch.equal(*values), "Stopping a gradient changes no value."
torch.testing.assert_close(to_h, 2 * (some - e) / e.numel())

# %% terms-drawn [markdown]
r"""
A picture of what each of the three losses wants, from real gradients in a toy of eighteen latents
and three words:
"""

# %% terms-figure tags=figure
generator = torch.Generator().manual_seed(3)
table = torch.tensor([[-0.55, -0.1], [0.45, 0.45], [0.5, -0.6]], requires_grad=True)
toy = table.detach()[:, None] + 0.1 + 0.2 * torch.randn(3, 6, 2, generator=generator)
toy, target = toy.flatten(0, 1).requires_grad_(), torch.tensor([-0.1, 1.0])
losses = {
    "reconstruction, straight through": lambda h, e: (
        (straight_through(h, e) - target).square().mean()
    ),
    "commitment": commitment,
    "codebook": codebook,
}
figure, axes = figures.canvas(10.5, 3.8, columns=3)
for axis, (name, loss) in zip(axes, losses.items()):
    with torch.enable_grad():
        value = loss(toy, table[nearest(toy, table)])
        grads = torch.autograd.grad(value, (toy, table), materialize_grads=True, allow_unused=True)
    for dots, grad, colour, size in zip((toy, table), grads, (figures.BLUE, figures.INK), (5, 10)):
        way = 0.32 * -grad / grad.norm(dim=1).amax().clamp(min=1e-9)
        dots, style = dots.detach(), {"angles": "xy", "scale_units": "xy", "scale": 1}
        axis.plot(*dots.T, "o", color=colour, markersize=size)
        axis.quiver(*dots.T, *way.T, color=figures.ORANGE, zorder=3, **style)
    axis.set(title=name, xlim=(-1, 1), ylim=(-1.05, 1.1), aspect="equal", xticks=[], yticks=[])
axes[0].plot(*target, "*", color=figures.RED, markersize=14)
words = "Latents (blue), three words (black), and where each of three losses moves them (arrows)."
figures.show(figure, words)

# %% terms-read [markdown]
r"""
**What to see.** On the left, the decoder would like the red star. Every latent of a cell gets the
*same* arrow, because the decoder has only seen the word. In the middle, latents move and words
stand still; on the right it is the other way round. Nobody but the right one moves a word.

Now read the two formulas again. `detach` does not change a value. So the terms are *equal numbers*
with different gradients, and your log cannot tell them apart. One weight is 1, the other
$\beta = 0.25$. The paper that invented this puts $\beta$ on one of them, famous code on the other.
Exercise 4 is to find out which is which, without reading either.
"""

# %% collapse [markdown]
r"""
## 5. When nobody uses the dictionary

A word that no latent chooses gets no gradient, stays where it is, and is not chosen next time
either. In section 2 all went well, because the words started in the middle. Start them in a
corner where no pixel is.

The cure is blunt: when a word has been idle for a while, move it onto some latent. The package's
`Codebook.restart` does, and `LossConfig(restart=…)` says after how many steps.
"""

# %% collapse-figure tags=figure
corner = torch.tensor([-0.9, 0.9]) + start.repeat(2, 1) + 0.001 * torch.arange(32)[:, None]


def learned(restart, rounds=30):
    dictionary = Codebook(32, 2)
    dictionary.embedding.weight.copy_(corner)
    for i in range(rounds):
        moved, k, _ = lloyd(points, dictionary.embedding.weight)
        dictionary.embedding.weight.copy_(moved)
        dead = (torch.bincount(k, minlength=32) == 0).nonzero().flatten()
        if restart and len(dead) and i < rounds - 5:
            dictionary.restart(dead, rearrange(points, "n c -> 1 c n 1"))
    return dictionary.embedding.weight.detach()


torch.manual_seed(0)  # restart draws its latents at random
figure, axes = figures.canvas(8.4, 4.6, columns=2)
alive = []
for axis, name, table in zip(axes, ("without", "with"), (learned(False), learned(True))):
    k = nearest(points, table)
    alive.append(len(k.unique()))
    cells(axis, table, k, f"{name} restart: {alive[-1]} of 32 words in use")
figures.show(
    figure, "32 words that start in the upper left corner, after 30 rounds; crosses are idle."
)

# %% collapse-read [markdown]
r"""
**What to see.** On the left a few words have won everything, and the red crosses still sit in
their corner. Nothing will ever move them. On the right all of them work.

How many words does a model *use*? A word that appears once in a million positions should hardly
count. *Perplexity* is the number of words that, if they were equally frequent, would be as hard to
guess:

$$P = \exp\Big(-\sum_j p_j \log p_j\Big), \qquad \text{bits} = \log_2 P$$
"""


# %% perplexity tags=check
def perplexity(index):
    n = torch.unique(index.cpu(), return_counts=True)[1].double()
    return float(torch.exp(-(n / n.sum() * (n / n.sum()).log()).sum()))


halves = torch.tensor([0, 0, 1, 2])
assert math.isclose(perplexity(torch.arange(512)), 512), "All equally often: as many as there are."
assert math.isclose(perplexity(torch.zeros(9)), 1), "Always the same word: one."
assert math.isclose(math.log2(perplexity(halves)), 1.5), "A half, two quarters: one bit and a half."
assert math.isclose(perplexity(code.index), usage(code.index, 512).perplexity), "As the package."
assert alive[0] < 16 < 28 < alive[1], "Restart brings words to life."

# %% tiny [markdown]
r"""
Now the real thing, in small: train an autoencoder with 512 words on scenes of 32 × 32 pixels,
twice from the same weights, without restart and with a restart after ten idle steps. The package's
task does the step; all we do is look.
"""


# %% tiny-code tags=timeout-600
from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig
from ldm_lite.losses import LossConfig
from ldm_lite.training import AutoencoderTask, TrainConfig

steps = 48 if fast else 120
held_out = scenes(range(64), size=32)
lessons = Scenes(split="train", size=32).batch(range(8 * steps))["image"].float() / 127.5 - 1
small = AutoencoderConfig(
    width=8, mult=(1, 2, 4), blocks=1, mid_attention=False, bottleneck="vq", codes=512
)


@torch.enable_grad()
def trained(restart):
    """[(step, words in use, perplexity)] of a run, on held-out pictures."""
    torch.manual_seed(0)
    settings = TrainConfig(steps, batch=8, lr=2e-3, warmup=20, ema=0, precision="fp32")
    task = AutoencoderTask(Autoencoder(small).to(device), settings, LossConfig(restart=restart))
    for step, batch in enumerate(lessons.split(8)):
        task.step({"image": batch.to(device)}, step)
        if (step + 1) % 8 == 0:
            with torch.no_grad():
                now = usage(task.model.eval().code(held_out).index, 512)
            yield step + 1, 512 * now.share, now.perplexity


runs = {"never": [*trained(0)], "after 10 idle steps": [*trained(10)]}

# %% tiny-figure tags=figure
figure, axes = figures.canvas(8.5, 3, columns=2)
for i, (axis, title) in enumerate(zip(axes, ("words in use", "perplexity")), 1):
    for name, history in runs.items():
        axis.plot(*zip(*((row[0], row[i]) for row in history)), "o-", markersize=4, label=name)
    axis.set(xlabel="training step", title=title, ylim=(0, 530))
axes[1].legend(title="restart", loc="upper left")
figures.show(figure, "Words in use and perplexity in training, without and with restart.")
(_, used, effective), (_, used_then, effective_then) = (run[-1] for run in runs.values())
print(f"at the end: {used:.0f} words, perplexity {effective:.0f}; restarted", end=" ")
print(f"{used_then:.0f} words, perplexity {effective_then:.0f}")
assert used_then > 2 * used and effective_then > 2 * effective, "Restart should wake most words."

# %% tiny-read [markdown]
r"""
**What to see.** Without restart most of the dictionary is dead paper: paid for and never read. It
wakes slowly, if at all. With restart most of it is in use after some dozens of steps. Watch this
curve whenever you train with words; the loss will not tell you.

## 6. Bits

An index of 512 words is $\log_2 512 = 9$ bits, whatever the words are. If some are rarer, a good
code needs fewer. How well are ours used?
"""

# %% bits tags=check
many = scenes(range(64 if fast else 256))
index = torch.cat([vq.code(part).index for part in many.split(32)])
bits = math.log2(perplexity(index))
print(f"{usage(index, 512).share:.1%} of the words are used, perplexity {perplexity(index):.0f}")
print(
    f"{bits:.2f} bits a word of at most 9; a picture: {256 * 9 // 8} bytes, packed {32 * bits:.0f}"
)
assert 8.5 < bits <= 9, "No code of 512 words needs more than 9 bits, and ours should come close."

# %% meaning [markdown]
r"""
Nearly all words are used nearly equally often. Good for a code. But what do they *say*? It is
tempting to think of a word as a small picture: a piece of roof, a wave. We ask where some words,
from the most frequent to a rare one, stand in pictures.
"""

# %% meaning-figure tags=figure
from ldm_lite.data.scenes import Quiz

quiz = Quiz("test", 64).batch(range(96))
image = quiz["image"].float() / 127.5 - 1
index = torch.cat([vq.code(part.to(device)).index.cpu() for part in image.split(32)])
around = F.pad(image, (4, 4, 4, 4), mode="replicate").unfold(2, 12, 4).unfold(3, 12, 4)
around = rearrange(around, "b c y x h w -> b y x c h w")  # 12 pixels; the word is the middle 4
rank = torch.bincount(index.flatten(), minlength=512).argsort(descending=True, stable=True)
places, rows = (0, 60, 200, 320, 500), []
for word in rank[list(places)]:
    pictures_with = (index == word).flatten(1).int()
    b = pictures_with.amax(1).nonzero().flatten()[:8]
    y, column = pictures_with[b].argmax(1) // 16, pictures_with[b].argmax(1) % 16
    rows.append(around[b, y, column])
figures.pictures(
    rows,
    "Each row is one word: where it stands in eight pictures, the 12 × 12 pixels around it.",
    columns=8,
    left=[f"word {int(rank[place])}\nrank {place + 1}" for place in places],
    scale=6,
)

# %% meaning-check tags=check
beneath = rearrange(quiz["segmentation"].long(), "b (y p) (x q) -> b y x (p q)", p=4, q=4)
pairs = (13 * index[..., None] + beneath).flatten()
table = torch.bincount(pairs, minlength=13 * 512).view(512, 13)
blind = float(table.sum(0).amax() / table.sum())
told = float(table.amax(1).sum() / table.sum())
print(f"guessing what is beneath a word: always sky {blind:.0%}; told the word {told:.0%}")
assert told < blind + 0.2, "Alone, a word says little about what it stands for."

# %% meaning-read [markdown]
r"""
**What to see.** One word is sky at dusk, water, grass, and sky at night. It is not a picture of
anything. Told the word, the best guess at what is beneath it is hardly better than always
saying "sky". The meaning is in the *company*: the decoder reads a whole neighbourhood at once.
Only the last, a rare one, is choosier: lit windows, hulls, a cactus against the sky. It wants
contrast.

So can you cut and paste words? `embed` looks words up, and `picture` decodes them.
"""

# %% paste-figure tags=figure
a, b = scenes([148, 174, 20]), scenes([98, 128, 26])
right_part = (torch.arange(16) >= 9).float().to(device).expand(1, 1, 16, 16).clone()
right_part[..., :5, :] = 0  # leave the sky alone
right_part[..., :9] = 0


def pasted(into, source):
    return torch.lerp(into, source, F.interpolate(right_part, into.shape[2:]))


wa, wb = vq.code(a).index, vq.code(b).index
sentence = torch.where(right_part[0] > 0, wb, wa)
decoded = [vq.picture(vq.bottleneck.embed(words)) for words in (wa, wb, sentence)]
torch.testing.assert_close(decoded[0], vq.decode(vq.encode(a)), atol=1e-3, rtol=0)
figures.pictures(
    [a, b, pasted(a, b), decoded[2], kl.decode(pasted(kl.encode(a), kl.encode(b)))],
    "Three pictures; three others; the right part of these pasted into the first as pixels, as "
    "words, and as latents of the KL model.",
    left=("picture", "another", "pixels\npasted", "words\npasted", "KL latents\npasted"),
)

# %% paste-check tags=check
inside = F.interpolate(right_part, (64, 64))
far = 1 - F.max_pool2d(inside, 33, stride=1, padding=16)  # more than 16 pixels away
change = lambda a, b, where: ((a - b).abs() * where).sum((1, 2, 3)) / (3 * where.sum())
changed, elsewhere = (change(decoded[2], decoded[0], where) for where in (inside, far))
strange = change(decoded[2], decoded[1], inside)  # from the picture that was copied
for name, values in {"changed": changed, "far away": elsewhere, "strange": strange}.items():
    print(f"{name:9s}", *(f"{float(v):.3f}" for v in values))
assert (strange[:2] < changed[:2] / 2).all(), "Pasted words must look like where they come from."
assert strange[2] > 3 * strange[:2].max(), "... but dusk, pasted into day, should be seen as day."
assert (elsewhere[:2] < changed[:2] / 4).all(), "Far away, little may happen."

# %% paste-read [markdown]
r"""
**What to see.** The decoder sews the seam: where pixels break off, words and latents join. In the
first two columns little changes far away. The third is a warning: the boat was pasted from
dusk and sails in *daylight*. Its words never said what light it was; their new company does.
KL latents do all this as well. Words are no better for editing. They are what a *language model*
of pictures needs [3], and that is where they came from.

## 7. Is it worth it?

Same network, same training: KL keeps 768 numbers, VQ 256 words. To be fair, we also compare at
equal bytes. JPEG gets the highest quality that fits, all pictures on one sheet, so that its
header costs nothing. And we simply *round* the KL latents, each number by itself, as coarsely
as it takes to need no more bits than the words.
"""

# %% rivals
import io

import numpy as np
from PIL import Image


def jpeg(images, size):
    """The images after JPEG with at most so many bytes each, and how many."""
    sheet = rearrange(images.cpu(), "(r q) c y x -> (r y) (q x) c", q=8)
    picture = Image.fromarray(((sheet + 1) * 127.5).round().byte().numpy())
    for quality in range(40, 0, -1):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if len(file.getvalue()) <= size * len(images):
            break
    back = torch.from_numpy(np.array(Image.open(file))).float() / 127.5 - 1
    back = rearrange(back, "(r y) (q x) c -> (r q) c y x", q=8, y=64)
    return back.to(device), len(file.getvalue()) / len(images)


def rounded(z, most):
    """Latents in steps just coarse enough to need at most so many bits a position, and how many."""
    for step in torch.arange(0.1, 2, 0.02):
        steps = (z / step).round()
        bits = sum(math.log2(perplexity(steps[:, c])) for c in range(z.shape[1]))
        if bits <= most:
            return steps * step, bits


# %% rivals-figure tags=figure
parts = lambda work, images: torch.cat([work(part) for part in images.split(32)])
z = parts(kl.encode, many)
coarse, coarse_bits = rounded(z, bits)
rivals = {
    "KL": (parts(kl.decode, z), 2 * z[0].numel()),
    "VQ": (parts(lambda images: vq.decode(vq.encode(images)), many), 32 * bits),
    "KL, rounded": (parts(kl.decode, coarse), 32 * coarse_bits),
    "JPEG": jpeg(many, 32 * bits),
}
rivals = {name: (images.clamp(-1, 1), size) for name, (images, size) in rivals.items()}
sizes = [f"{name}\n{size:.0f} bytes" for name, (_, size) in rivals.items()]
five = [1, 20, 26, 42, 60]
figures.pictures(
    [many[five], *(images[five] for images, _ in rivals.values())],
    "Five test pictures, and what is left of them by four routes, with the bytes for each picture.",
    left=[f"picture\n{many[0].numel()} bytes", *sizes],
)

# %% rivals-table tags=check
from ldm_lite.features import Features
from ldm_lite.losses import LPIPS
from ldm_lite.metrics import fid, psnr, ssim

features = Features("scenes").to(device)
lpips, real = LPIPS(features), features(many)
table = {}
print(f"{len(many)} pictures          bytes   PSNR   SSIM  LPIPS   rFID")
for name, (images, size) in rivals.items():
    means = [float(measure(images, many).mean()) for measure in (psnr, ssim, lpips)]
    means.append(fid(real, features(images)))
    table[name] = means
    print(f"{name:20s} {size:8.0f} {means[0]:6.2f}", *(f"{m:6.3f}" for m in means[1:]))
like = {name: row[2] for name, row in table.items()}
assert table["KL"][0] > table["VQ"][0] + 0.5, "Five times the bytes should show."
assert like["JPEG"] > 2 * like["VQ"], "At equal bytes, a learned code should look better than JPEG."
assert table["KL, rounded"][0] > table["VQ"][0] + 0.3, "Rounding a KL latent is hard to beat."

# %% rivals-read [markdown]
r"""
**What to see.** KL is the best, with five times the bytes. VQ has turned a red house orange. JPEG
at VQ's size falls apart into blocks; its PSNR is near VQ's, but LPIPS and rFID, which look for
texture and things, are several times worse. The surprise is the row between: KL latents,
rounded one by one, without any dictionary, are *better* than the words at the same bits. A learned
dictionary is one way to quantise, not the best one; that is the observation behind newer methods
that round [5], and exercise 3.

One run of one small model is no law. In the paper, too, KL reconstructs with a better FID than VQ
at every $f$ (table 8 there).

Is a space of words *smooth*? Walk from one picture to another in a straight line.
"""


# %% walk-figure tags=figure
def walk(stage, start, stop, n):
    """n + 1 pictures on the straight line between the latents of two pictures."""
    t = torch.linspace(start, stop, n + 1).view(-1, 1, 1, 1).to(device)
    return parts(stage.decode, torch.lerp(*stage.encode(scenes([20, 26])).split(1), t))


figures.pictures(
    [walk(stage, 0, 1, 6) for stage in (kl, vq)],
    "From day to dusk in a straight line through the latents of KL, above, and VQ, below.",
    left=("KL", "VQ"),
)

# %% walk-read [markdown]
r"""
**What to see.** Both fade into each other, with three boats half way. KL changes most between the
third and the fourth picture, VQ passes through a pale light that neither end has. Neither seems
to jump. So look closer. Take a tenth of the way, in $n$ steps, and add up the *squares* of the
changes. Where the way is smooth, half the step is a quarter of the square, and there are twice as
many: the sum halves. Where it jumps, a jump is a jump however small the steps.
"""

# %% zoom-figure tags=figure
finest = 64 if fast else 256
counts, sums = [2**i for i in range(1, 1 + int(math.log2(finest)))], {}
for name, stage in (("KL", kl), ("VQ", vq)):
    way = walk(stage, 0.45, 0.55, finest)
    whole = (way[-1] - way[0]).square().sum()
    sums[name] = [float(way[:: finest // n].diff(dim=0).square().sum() / whole) for n in counts]
sums["1 / n"] = [sums["KL"][0] * 2 / n for n in counts]
figure, axis = figures.canvas(6, 3)
for (name, values), style in zip(sums.items(), ("o-", "o-", "--")):
    axis.loglog(counts, values, style, label=name)
axis.set(xlabel="steps n over a tenth of the way", ylabel="sum of squared changes")
axis.set_xticks(counts, map(str, counts))
axis.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
axis.minorticks_off()
axis.legend()
figures.show(figure, "The sum of squared changes on a short way, by steps, for KL, VQ and theory.")
assert sums["KL"][-1] < 0.6 * sums["KL"][-2], "A smooth way: half the step, half the sum."
assert sums["VQ"][-1] > 0.75 * sums["VQ"][-2], "A way of jumps: smaller steps do not help."

# %% zoom-read [markdown]
r"""
**What to see.** KL follows $1/n$. VQ levels off: what is left is jumps, one at each border that a
latent crosses. With 512 words the jumps are small, and you saw none of them in the pictures. They
matter for what needs a derivative through the decoder.

## 8. Where the snap sits in a diffusion model

Does the denoiser learn words, then? No. In the paper's VQ models it learns the latent *before* it
is snapped, ordinary numbers with ordinary noise, and the snap is the first layer of the decoder.
"""

# %% snap tags=check
z0 = vq.encode(x)
torch.testing.assert_close(z0, vq.scale * vq.code(x).mean)  # not snapped
snapped = vq.scale * vq.bottleneck(z0 / vq.scale).z
assert not torch.allclose(z0, snapped, atol=0.01), (
    "encode must not snap: words are decode's matter."
)
torch.testing.assert_close(vq.decode(z0), vq.picture(snapped / vq.scale))
torch.testing.assert_close(vq.decode(snapped), vq.decode(z0))  # snapping twice is snapping once
print(f"deviation of z0 {float(z0.std()):.2f}, of z0 - snapped {float((z0 - snapped).std()):.3f}")

# %% margin [markdown]
r"""
A sampler is never exact. The original DDIM even stops with noise of deviation 0.04 left in the
latent. It is often said that the snap then cleans up. When does it? Between word $k$ and word $j$
the border is the plane half way, and a latent's distance to the nearest border is its *margin*:

$$m(h) = \min_{j \neq k}
    \frac{\lVert h - e_j \rVert^2 - \lVert h - e_k \rVert^2}{2\, \lVert e_j - e_k \rVert}$$

A shorter error is removed *completely*; a longer one may end in another word.
"""


# %% margin-code tags=check
def margins(h, book):
    """(N,) distances of latents (N, C) to the border of their cell, and the words beyond it."""
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    k, squared = nearest(h, book), torch.cdist(h, book, **exact) ** 2
    apart = torch.cdist(book[k], book, **exact)
    m = (squared - squared.gather(1, k[:, None])) / (2 * apart)
    m[apart == 0] = math.inf  # the word itself
    return m.min(1)


h = rearrange(z0.cpu(), "b c y x -> (b y x) c").double()
words = (vq.scale * book).cpu().double()  # in the units of z, whose deviation is 1
k, (margin, beyond) = nearest(h, words), margins(h, words)
towards = F.normalize(words[beyond] - words[k], dim=1) * margin[:, None]
anywhere = F.normalize(torch.randn(h.shape).to(h), dim=1) * margin[:, None]
assert (nearest(h + 0.99 * anywhere, words) == k).all(), "Within the margin, nothing can change."
assert (nearest(h + 0.99 * towards, words) == k).all(), "... not even straight to the border."
assert (nearest(h + 1.01 * towards, words) != k).all(), "Just beyond it, it is another word."
print(f"half of the margins are below {float(margin.median()):.3f}")

# %% predict-noise [markdown]
r"""
**Predict before you run.** We add noise of deviation $\sigma$ to the latents, and snap. Half of the
margins are tiny. Write down: at $\sigma = 0.04$, what share of the words stays? And the error that
is left after snapping, against the clean snapped latent: is it smaller than the noise that we
added, or larger? What about $\sigma = 0.6$?
"""

# %% noise-figure tags=figure
h, table = rearrange(vq.encode(many[:32]), "b c y x -> (b y x) c"), vq.scale * book
clean, margin = nearest(h, table), margins(h, table)[0]
noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(4)).to(device)
sigmas, stays, certain, ratio = torch.logspace(-2.5, 0, 11), [], [], []
for sigma in sigmas.tolist():
    now = nearest(h + sigma * noise, table)
    stays.append(float((now == clean).float().mean()))
    certain.append(float((margin > sigma * noise.norm(dim=1)).float().mean()))
    after, before = table[now] - table[clean], sigma * noise
    ratio.append(float(after.square().sum() / before.square().sum()))
figure, (left, right) = figures.canvas(9, 3.1, columns=2)
left.semilogx(sigmas, stays, "o-", label="words that stay")
left.semilogx(sigmas, certain, "o-", label="noise shorter than the margin")
left.set(xlabel="noise σ", title="share of positions", ylim=(0, 1))
left.legend()
right.loglog(sigmas, ratio, "o-", color=figures.PURPLE)
right.axhline(1, linestyle="--", color=figures.SOFT)
right.text(0.0035, 0.75, "below: the snap cleans", va="top", color=figures.SOFT)
right.text(0.3, 1.3, "above:\nit amplifies", color=figures.SOFT)
right.set(xlabel="noise σ", title="error after the snap / noise, squared", ylim=(0.4, None))
figures.show(figure, "By noise: the share of words that stay, and the error left after snapping.")

# %% noise-check tags=check
at = (sigmas - 0.04).abs().argmin()
for i in (at, -2):
    kept, error = f"{stays[i]:.0%} stay", f"the error is {ratio[i]:.1f} times the noise's"
    print(f"at σ = {float(sigmas[i]):.3f}: {kept}, {error}")
slope = math.log(ratio[3] / ratio[0]) / math.log(float(sigmas[3] / sigmas[0]))
print(f"for small noise the ratio goes like σ to the power {slope:.2f}")
assert all(s >= c for s, c in zip(stays, certain)), "Below the margin nothing can change."
assert ratio[at] > 1.3 and ratio[-2] < 0.9, "Small noise is amplified, large noise is reduced."
assert -1.3 < slope < -0.7, "A word changes with probability ~ σ, and then by a whole cell."

# %% noise-read [markdown]
r"""
**What to see.** On the left the lower curve is a promise, the upper what happens. On the right is
the surprise: for *small* noise the snap makes the error larger. Most positions are cleaned
perfectly, but latents fill their cells evenly, so a share like $\sigma$ crosses a border, and each
that does is off by a whole cell. The average error is $\sigma$ times a cell instead of $\sigma^2$.
Only noise larger than the cells is reduced, because the result must be a word.

So a snap protects *most* positions and not the average. It would, if latents sat at the centres of
cells: few words, far apart, and strong commitment.
"""

# %% noisy tags=check
noise = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(5)).to(device)
routes, lost = {"KL": kl.decode, "VQ": vq.decode}, {}
routes["VQ, no snap"] = lambda z: vq.picture(z / vq.scale)
for name, decode in routes.items():
    z = (kl if name == "KL" else vq).encode(many[:32])
    quality = [psnr(decode(z + s * noise), many[:32]).mean() for s in (0, 0.04, 0.16, 0.64)]
    lost[name] = quality[0] - quality[-1]
    print(f"{name:12s} PSNR at σ = 0, 0.04, 0.16, 0.64:", *(f"{q:.1f}" for q in quality))
assert lost["KL"] > lost["VQ"] + 1, "A decoder that has learned with snapped latents bears more."
assert abs(lost["VQ"] - lost["VQ, no snap"]) < 1, "... with or without the snap."

# %% noisy-read [markdown]
r"""
At 0.04 no picture changes. At 0.64 KL loses far more than VQ, but the snap is not why: the last two
rows are twins. With 512 words it hardly matters for the picture, and the original's
`force_not_quantize` leaves it out. It shaped encoder and decoder in training. Then it may go.

**Your turn.** How many words does a picture need? Keep only the most frequent ones, and snap to
those.
"""

# %% knobs tags=figure
from ldm_lite.course import widgets


def draw(words, first):
    kept, z = book[rank[:words].to(device)], vq.code(scenes(range(first, first + 6))).mean
    found = kept[nearest(rearrange(z, "b c y x -> (b y x) c"), kept)]
    return vq.picture(rearrange(found, "(b y x) c -> b c y x", y=16, x=16))


choices = {"words": [2**i for i in range(10)], "first": range(0, 60, 6)}
rows = [{"words": 512, "first": 0}, {"words": 128}, {"words": 32}, {"words": 8}]
panel = widgets.knobs(draw, choices, rows, "Six test pictures in 512, 128, 32 and 8 words.")

# %% knobs-read [markdown]
r"""
**What to see.** Nothing was trained anew. With 128 words little is missing. With 32 a tree is gone,
and the sea by day and by dusk turns green; with 8 even the day has a red sky. The frequent words
are the bland ones. A dictionary *trained* with few words would place them better, as in section 2.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% bytes [exercise] title="How many bytes?" difficulty=1 minutes=4
r"""
A first stage with factor `f` writes a picture of `side` pixels in words from a dictionary of
`codes`, each stored in $\log_2$ `codes` bits. How many bytes does the picture take?
"""


# %% [stub]
def bytes_of(side, f, codes):
    return ...


# %% [check]
from ldm_lite.course.checks import check

with check("How many bytes?", "bytes_of still returns ...: how many words, of how many bits?") as c:
    for side, f, codes in ((64, 4, 512), (256, 4, 8192), (256, 16, 16384)):
        right = (side // f) ** 2 * math.log2(codes) / 8
        why = f"Wrong for side {side}, f {f}, {codes} words."
        mistakes = {
            "f shrinks both sides.": side * (side // f) * math.log2(codes) / 8,
            "A byte has eight bits.": 8 * right,
            "The channels do not count: a word is one index.": 3 * right,
        }
        c.close(bytes_of(side, f, codes), right, why, mistakes=mistakes)


# %% [solution]
def bytes_of(side, f, codes):
    return (side // f) ** 2 * math.log2(codes) / 8


# %% [wrong]
def bytes_of(side, f, codes):
    return side * (side // f) * math.log2(codes) / 8


# %% average [exercise] title="A dictionary without gradients" difficulty=2 minutes=10
r"""
Many dictionaries learn without a codebook term, by moving averages ([2], appendix). Each word keeps
a count $N_j$ and a sum $m_j$ of the latents that chose it. In a batch $n_j$ latents choose it, and
their sum is $s_j$. The step is $N_j \leftarrow \gamma N_j + (1 - \gamma)\, n_j$, the same for $m_j$
and $s_j$, and the word is $e_j = m_j / N_j$.

Write the step. `h` is (n, C), `index` (n,), `count` (K,), `total` (K, C); return the new pair.
With $\gamma = 0$ it must be Lloyd's step.
"""


# %% [stub]
def averaged(count, total, h, index, gamma):
    # F.one_hot(index, len(count)).to(h) is (n, K): 1 where point n has chosen word K
    return ..., ...


# %% [check]
with check(
    "A dictionary without gradients", "averaged still returns ...: chosen.sum(0) is n."
) as c:
    generator = torch.Generator().manual_seed(5)
    h, index = torch.randn(40, 3, generator=generator), torch.arange(40) % 7
    count, total = torch.rand(7, generator=generator) + 1, torch.randn(7, 3, generator=generator)
    for gamma in (0.0, 0.9):
        new_count, new_total = averaged(count, total, h, index, gamma)
        n = torch.bincount(index, minlength=7).float()
        s = torch.zeros(7, 3).index_add_(0, index, h)
        means = {
            "Sum the latents; the division comes at the end.": gamma * total
            + (1 - gamma) * s / n[:, None]
        }
        c.close(new_count, gamma * count + (1 - gamma) * n, f"The counts are off at gamma {gamma}.")
        why = f"The sums are off at gamma {gamma}."
        c.close(new_total, gamma * total + (1 - gamma) * s, why, mistakes=means)
    h, book_now = points[:500], books[20]
    new_count, new_total = averaged(torch.ones(16), book_now, h, nearest(h, book_now), 0.0)
    moved, k, _ = lloyd(h, book_now)
    seen = k.unique()
    c.close(
        (new_total / new_count[:, None])[seen], moved[seen], "With gamma 0 it is not Lloyd's step."
    )


# %% [solution]
def averaged(count, total, h, index, gamma):
    chosen = F.one_hot(index, len(count)).to(h)
    count = gamma * count + (1 - gamma) * chosen.sum(0)
    return count, gamma * total + (1 - gamma) * chosen.T @ h


# %% [wrong]
def averaged(count, total, h, index, gamma):
    chosen = F.one_hot(index, len(count)).to(h)
    n = chosen.sum(0)
    return gamma * count + (1 - gamma) * n, gamma * total + (1 - gamma) * chosen.T @ h / n[:, None]


# %% fsq [exercise] title="A dictionary that nobody learns" difficulty=2 minutes=10
r"""
Finite scalar quantisation [5] drops the dictionary. Squash each channel with `tanh` into a range
of `levels` whole numbers (odd, such as 5: from −2 to 2), and round, straight through. The words are
then all combinations, and none can die. Return the rounded values, (n, C), with the gradient of the
squashed ones, and the number of the word, (n,): the digits, counted from 0, in base `levels`, first
channel first (the least).
"""


# %% [stub]
def fsq(h, levels):
    # squashed: (levels - 1) / 2 * torch.tanh(h)
    return ..., ...  # rounded, numbers


# %% [check]
with check("A dictionary that nobody learns", "fsq is not complete yet.", "No word can die.") as c:
    for levels, channels in ((5, 3), (3, 4)):
        generator = torch.Generator().manual_seed(6)
        h = 1.5 * torch.randn(4000, channels, generator=generator)
        with torch.enable_grad():
            values, number = fsq(h.requires_grad_(), levels)
            c.answered(values)
            c.answered(number)
            exact = ((levels - 1) / 2 * torch.tanh(h)).detach().round()
            c.close(values, exact, "The values are not the rounded ones.")
            (grad,) = torch.autograd.grad(values.sum(), h, allow_unused=True)
        c.that(
            grad is not None and bool(grad.any()),
            "No gradient reaches h: round is flat; go straight through.",
        )
        slope = (levels - 1) / 2 * (1 - torch.tanh(h.detach()) ** 2)
        c.close(grad, slope, "The gradient should be that of the squashed values.")
        base = torch.tensor([levels**i for i in range(channels)])
        right = ((exact + (levels - 1) / 2).long() * base).sum(1)
        c.close(number, right, f"The numbers should run from 0 to {levels**channels - 1}.")


# %% [solution]
def fsq(h, levels):
    squashed = (levels - 1) / 2 * torch.tanh(h)
    rounded = straight_through(squashed, squashed.round())
    digits = (squashed.round() + (levels - 1) / 2).long()
    return rounded, sum(digits[:, i] * levels**i for i in range(h.shape[1]))


# %% [wrong]
def fsq(h, levels):
    squashed = (levels - 1) / 2 * torch.tanh(h)
    rounded = squashed.round()
    digits = (rounded + (levels - 1) / 2).long()
    return rounded, sum(digits[:, i] * levels**i for i in range(h.shape[1]))


# %% break-it [markdown]
r"""
### Break it: where did β go?

Two loss functions for latents `h`, (n, C), that all have the word `e`, (C,). One is as printed in
the paper that invented it [2], the other as in the code that trained VQGAN and every VQ model of
our paper. We give both, and the package, the same input.
"""


# %% two-losses tags=check
printed = lambda h, e: codebook(h, e) + 0.25 * commitment(h, e)
published = lambda h, e: 0.25 * codebook(h, e) + commitment(h, e)


def package(h, e):
    one_word, latents = {"embedding.weight": e[None]}, rearrange(h, "n c -> 1 c n 1")
    return torch.func.functional_call(Codebook(1, len(e)), one_word, latents).penalty.sum()


values = [float(loss(torch.ones(11, 3), torch.zeros(3))) for loss in (printed, published, package)]
print(*values)
assert max(values) - min(values) < 1e-5, "Three losses, one number."

# %% two-losses-read [markdown]
r"""
Equal, for any input you may try. No log and no test of a value can find a β on the wrong
term. By the time it was noticed, everything had been trained with it; the code kept it as its
default, under the name `legacy`.
"""

# %% catch [exercise] title="Catch it" difficulty=3 minutes=10
r"""
Write `weights(loss)`, which returns two numbers: how much weight `loss(h, e)` gives to commitment,
and how much to the codebook term. You may call the loss with any tensors; gradients are on inside
the check. The check tries it on the three above, and on others.
"""


# %% [stub]
def weights(loss):
    # h and e: torch.randn(11, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    return ..., ...  # of commitment, of the codebook term


# %% [check]
suspects = {
    "printed": (printed, 0.25, 1.0),
    "published": (published, 1.0, 0.25),
    "one that stops no gradient": (lambda h, e: 1.25 * (h - e).square().mean(), 1.25, 1.25),
    "one that never moves a word": (
        lambda h, e: commitment(h, e) + codebook(h, e.detach()),
        1.0,
        0.0,
    ),
    "the package's": (package, 1.0, 0.25),
}
praise = "The package, like every published model: 1 on commitment, 0.25 on the codebook term."
with check("Catch it", "weights still returns ...: ask for the gradient of the loss.", praise) as c:
    for name, (loss, a, b) in suspects.items():
        with torch.enable_grad():
            mine = weights(loss)
        why = f"Wrong for {name}: it should be ({a:g}, {b:g}). What do h and e each feel?"
        swapped = {
            f"For {name} the two have changed places: commitment is what h feels.": torch.tensor(
                [b, a]
            )
        }
        c.answered(mine[0])
        c.answered(mine[1])
        found = torch.stack([torch.as_tensor(float(m)) for m in mine])
        c.close(found, torch.tensor([a, b]), why, 1e-3, 1e-4, mistakes=swapped if a != b else None)


# %% [solution]
def weights(loss):
    h, e = torch.randn(11, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    of = lambda f: torch.autograd.grad(f(h, e), (h, e), allow_unused=True, materialize_grads=True)
    to_h, to_e = of(loss)
    return (to_h / of(commitment)[0]).mean(), (to_e / of(codebook)[1]).mean()


# %% [wrong]
def weights(loss):
    h, e = torch.randn(11, 3), torch.randn(3)
    rest = loss(h, e) / commitment(h, e)
    return rest - 0.25, 0.25


# %% summary [markdown]
r"""
## Summary

- A word is the nearest vector of a dictionary. Its true gradient is zero; straight-through hands
  the decoder's on, unchanged.
- Commitment moves latents, the codebook term moves words. Their values are equal, so only a
  gradient tells which has the β.
- Unused words stay unused. Watch perplexity; restart them.
- An index has $\log_2 P$ bits. At equal bytes words beat JPEG by far, and rounded KL latents beat
  words here.
- The denoiser learns the latent before the snap; `decode` snaps first. That cleans most positions
  and not the average.

**What next.** Notebook 05 leaves the autoencoder and starts with noise. What a language model of
words and a denoiser of latents do with equal compute is a matter of 13.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. A. van den Oord, O. Vinyals, K. Kavukcuoglu. *Neural Discrete Representation Learning.* NeurIPS
   2017. [arXiv 1711.00937](https://arxiv.org/abs/1711.00937)
3. P. Esser, R. Rombach, B. Ommer. *Taming Transformers for High-Resolution Image Synthesis.* CVPR
   2021. [arXiv 2012.09841](https://arxiv.org/abs/2012.09841)
4. S. P. Lloyd. *Least Squares Quantization in PCM.* IEEE Transactions on Information Theory 28,
   1982.
5. F. Mentzer, D. Minnen, E. Agustsson, M. Tschannen. *Finite Scalar Quantization: VQ-VAE Made
   Simple.* ICLR 2024. [arXiv 2309.15505](https://arxiv.org/abs/2309.15505)
"""
