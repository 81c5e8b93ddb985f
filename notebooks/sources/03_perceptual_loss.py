r"""
title: Perceptual and adversarial loss
goal: Find out why a decoder that minimises error draws blur, and build the two losses that do not
needs: Python and a little PyTorch; notebooks 00 to 02 help and are not required
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: a decoder that you have taught to draw grass, and a plot of what the grass costs
objectives:
  - say which picture minimises a squared or an absolute error, and which waves are missing from it
  - build LPIPS from feature maps, and a patch critic whose field of view you derive and measure
  - say what a hinge critic and a vanilla critic converge to, and what a loss of 1 means in a log
  - balance two losses by their gradients, and find two published bugs that no picture shows
  - read PSNR, rFID and a spectrum together, and notice when the judge was the teacher
"""

# %% the-idea [markdown]
r"""
**What to see.** One box is in colour: the decoder. A latent is far too small to say where every
blade of grass stands, so the decoder has to guess. *How* it guesses is decided by its loss. That of
Rombach et al. [1] has four terms,

`|x − x'|  +  LPIPS(x, x')  +  λ · g(x')  +  penalty`

Notebook 02 was about the first and the last. This one is about the two in the middle, and about
the question why they are there at all.
"""

# %% grey [markdown]
r"""
## 1. A mean of pictures is grey

Here is the decoder's problem in small. The latent says "grass", but not exactly where. So there are
many pictures that it could have come from: one texture, moved by a random amount of about 1.5
pixels.
"""

# %% texture
import torch

seed = torch.Generator().manual_seed(0)
texture = torch.full((32, 32), 0.2)
for y, x, k in torch.randint(0, 32, (70, 3), generator=seed).tolist():
    for i in range(3 + k % 4):  # a blade, 3 to 6 pixels long, leaning a little
        texture[(y + i) % 32, (x + i // 3) % 32] = 0.6 + 0.012 * k
spread = 1.5  # pixels
shifts = torch.arange(-8, 9)
odds = torch.exp(-(shifts**2) / (2 * spread**2))
moves = shifts[torch.multinomial(odds, 1002, True, generator=seed)].view(501, 2).tolist()
possible = torch.stack([texture.roll(move, (0, 1)) for move in moves])

# %% minimisers [markdown]
r"""
Which single picture $c$ has the smallest error on average over all of them? Set the derivative to
zero. For squares, $\mathbb E\,2(c - x) = 0$. For absolute values the derivative counts how many $x$
lie above and how many below, and the two must be equal:

$$\arg\min_c \mathbb E\,|x - c|^2 = \mathbb E\,x, \qquad
\arg\min_c \mathbb E\,|x - c| = \mathrm{median}(x)$$

We do not use that. We let an optimiser search, and compare.
"""


# %% descend
def best(power):
    """The picture with the smallest mean of |x - c| ** power, found by descent."""
    c = torch.full_like(texture, 0.5, requires_grad=True)
    adam = torch.optim.Adam([c])
    for i in range(100):
        adam.param_groups[0]["lr"] = 0.08 * (1 - i / 100)
        adam.zero_grad()
        (possible - c).abs().pow(power).mean(0).sum().backward()
        adam.step()
    return c.detach()


# %% minimisers-figure tags=figure,check
squared, absolute = best(2), best(1)
off = absolute - possible.median(0).values
assert torch.allclose(squared, possible.mean(0), atol=1e-3), "The best for squares is the mean."
assert off.abs().mean() < 0.01, "The best for absolute values is the median."
five = torch.stack([*possible[:3], squared, absolute])[:, None]
figures.pictures(
    2 * five * torch.tensor([0.62, 1.0, 0.42]).view(3, 1, 1) - 1,
    "Three of the possible pictures, then the best guess by squared and by absolute error.",
    above=("possible", "possible", "possible", "best for L2", "best for L1"),
)

# %% damping [markdown]
r"""
**What to see.** Nothing here is a failure of training: both guesses are *optimal*. The fourth
picture has blurred blades. The fifth takes sides instead: where most pictures show ground, it
shows ground, and most blades are gone. Neither could be mistaken for one of the first three.

How much is missing can be said exactly. To average over shifts is to convolve with their
distribution, and by the convolution theorem each wave, of frequency $f$ in periods per pixel, is
multiplied by the transform of that distribution. Of a Gaussian with deviation $s$:

$$\widehat{\mathbb E\,x}(f) = \hat x(f)\; e^{-2 \pi^2 s^2 |f|^2}$$
"""

# %% damping-code tags=check
import math


def waves(images, window=1.0):
    """The power of each wave of images (…, H, H)."""
    flat = images - images.mean((-2, -1), keepdim=True)
    return torch.fft.fft2(flat * window).abs() ** 2


def frequency(side):
    """Periods per pixel of each wave: (side, side)."""
    return torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side))


def by_ring(values):
    """The mean of values (H, H) over waves of 1, 2, … H/2 periods."""
    ring = (frequency(len(values)) * len(values)).round()
    return torch.stack([values[ring == r].mean() for r in range(1, len(values) // 2 + 1)])


# %% damping-figure tags=figure,check
guesses = {"best for L2": squared, "best for L1": absolute}
left = {n: (by_ring(waves(c)) / by_ring(waves(texture))).sqrt() for n, c in guesses.items()}
theory = by_ring(torch.exp(-4 * (math.pi * spread * frequency(32)) ** 2)).sqrt()
assert (left["best for L2"] - theory).abs().max() < 0.1, "A mean over shifts is a Gaussian blur."
figure, axis = figures.canvas(6, 2.8)
periods = torch.arange(1, 17) / 32
for name, amplitude in left.items():
    axis.plot(periods, amplitude, "o-", label=name)
axis.plot(periods, theory, "--", color=figures.SOFT, label=r"$e^{-2\pi^2 s^2 f^2}$")
axis.set(xlabel="frequency f, periods per pixel", ylabel="amplitude left", ylim=(0, 1.05))
axis.legend()
words = "Amplitude of each wave that is left in the two best guesses, and the Gaussian of theory."
figures.show(figure, words)

fine = frequency(32) > 0.25  # waves shorter than four pixels
for name, c in (guesses | {"one of them": possible[0]}).items():
    kept = float(waves(c)[fine].sum() / waves(texture)[fine].sum())
    print(f"{name} keeps {kept:.1%} of the fine energy")
    assert kept < 0.1 or name == "one of them", "The best guess has next to no texture."
assert kept > 0.99, "... and every possible picture has all of it."

# %% signature [markdown]
r"""
**What to see.** The blue points lie on the dashed line, down to the noise of 501 shifts. The orange
ones follow no filter: a median keeps a few lumps, where blades crowd, and gives them hard edges.
Beyond 0.25, where the blades are, the first has lost nearly all energy and the second most of it.

So blur is not laziness. It is the right answer to the wrong question. Ask for the smallest error,
and you get an average over everything that the latent left open.
"""

# %% blind [markdown]
r"""
## 2. What a pixel distance does not see

Is a picture with half the error half as bad? We do five things to a picture: make it brighter,
move it one pixel to the right, add noise, weaken the contrast, blur it. Each is done just so
much that the mean squared error is that of the moved one. Our blur is the formula above.
"""


# %% five-ways
import torch.nn.functional as F

from ldm_lite.data import Scenes


def scenes(rows, split="test", texture=1.0):  # (B, 3, 64, 64) in [-1, 1]
    return (Scenes(split, texture=texture).batch(rows)["image"].float() / 127.5 - 1).to(device)


def blur(x, s=2.0):
    """Images (B, 3, H, H) blurred by a Gaussian of s pixels: the damping of section 1."""
    h = F.pad(x, (16,) * 4, mode="reflect")
    damping = torch.exp(-2 * (math.pi * s * frequency(h.shape[-1])) ** 2).to(x)
    return torch.fft.ifft2(torch.fft.fft2(h) * damping).real[..., 16:-16, 16:-16]


# %% equal-error
def toward(x, goal, error):
    """From x so far in the direction of goal that the mean squared error is as wanted."""
    step = goal - x
    return x + step * (error / step.square().mean((1, 2, 3), keepdim=True)).sqrt()


changes = {
    "brighter": lambda x: x + 1,
    "noise": lambda x: x + torch.randn(x.shape, generator=seed.manual_seed(1)).to(x),
    "less contrast": lambda x: x.mean((1, 2, 3), keepdim=True),
    "blurred": blur,
}

# %% equal-figure tags=figure,check
x = scenes(range(8, 24))
moved = torch.cat([x[..., :1], x[..., :-1]], dim=3)
wanted = (moved - x).square().mean((1, 2, 3), keepdim=True)
worse = {"moved": moved} | {name: toward(x, goal(x), wanted) for name, goal in changes.items()}
figures.pictures(
    torch.cat([torch.stack([x[i], *(y[i] for y in worse.values())]) for i in (1, 4)]),
    "Two test images and five versions of each, all with the same mean squared error.",
    columns=6,
    above=("image", *worse) * 2,
)

from ldm_lite.features import Features
from ldm_lite.losses import LPIPS
from ldm_lite.metrics import psnr, ssim

reader = Features("scenes").to(device)
package_lpips, far = LPIPS(reader), {}
for name, y in worse.items():
    far[name] = float(package_lpips(x, y).mean())
    two = f"PSNR {float(psnr(y, x).mean()):.2f} dB, SSIM {float(ssim(y, x).mean()):.2f}"
    print(f"{name:13s} {two}, LPIPS {far[name]:.3f}")
    assert (psnr(y, x) - psnr(moved, x)).abs().max() < 0.01, "All must be equally far away."
assert far["blurred"] > 2 * far["moved"], "To the eye, these are not equal."
assert far["blurred"] > 1.25 * far["noise"], "Blur hides shapes, this noise does not."

# %% equal-read [markdown]
r"""
**What to see.** The PSNR column is one number, five times. Your eye disagrees: brighter and moved
are the same picture, and the blurred one has lost everything small. To a squared error all five are
equally bad, and a decoder that minimises it may choose the last.

SSIM sees more, but it likes the blur better than the noise. The last column is the distance we
build next. It names the blur the worst.
"""

# %% maps [markdown]
r"""
## 3. A distance that looks

The idea of Zhang et al. [2]: do not compare pixels, compare what a trained network *sees*. Ours is
`Features("scenes")`, a small network that has learned to read scenes: sky, ground, every object,
pixel by pixel. It ships with the package. Its maps are large and simple at first, small and
abstract later.
"""

# %% maps-figure tags=figure
maps = reader.maps(x[1:2])
rows = []
for level in maps:
    liveliest = level[0].std((1, 2)).topk(7).indices.sort().values
    h = level[0, liveliest] / level[0, liveliest].amax((1, 2), keepdim=True)
    rows.append((2 * h - 1)[:, None].expand(-1, 3, -1, -1))
figures.pictures(
    rows,
    "What the network sees in one picture: seven channels from each of its four maps.",
    left=[f"{m.shape[1]} channels,\n{m.shape[2]} × {m.shape[3]}" for m in maps],
)

# %% lpips [markdown]
r"""
**What to see.** In the first row you can still see the grass, beside edges and colours. The second
has parts. The third and the fourth have things: the pine, both trees, the ground. Grass is gone by
then: for reading a scene, it does not matter where a blade stands.

LPIPS takes the vector of channels at each position, scales it to length 1, and takes the squared
difference, weighted per channel. Then it takes the mean over positions and goes over the $L$ maps:

$$d(x, x') = \frac 1 L \sum_l \operatorname{mean}_{p} \sum_c w_{lc}
\left(\frac{h_{lc}(x)_p}{|h_l(x)_p|} - \frac{h_{lc}(x')_p}{|h_l(x')_p|}\right)^2$$

For our reader all weights are 1: nobody was asked to judge pairs of scenes.
"""


# %% by-hand
def unit(h):
    return h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10)


def lpips(x, y):
    both = list(zip(reader.maps(x), reader.maps(y)))
    apart = [(unit(a) - unit(b)).square().sum(1) for a, b in both]  # (B, h, w): where
    return sum(d.mean((1, 2)) for d in apart) / len(apart)


# %% by-hand-claims tags=check
for y in worse.values():
    torch.testing.assert_close(lpips(x, y), package_lpips(x, y))
assert lpips(x, x).abs().max() == 0, "A picture has no distance from itself."
assert torch.allclose(lpips(x, moved), lpips(moved, x)), "It is the same in both directions."
assert all((h >= 0).all() for h in maps), "Maps after a ReLU have nothing below 0,"
assert lpips(x, -x).max() <= 2, "so unit vectors are at most at a right angle: 1² + 1² = 2."
y = worse["blurred"].clone().requires_grad_()
(slope,) = torch.autograd.grad(lpips(x, y).sum(), y)
along = torch.cosine_similarity(-slope.flatten(1), (x - y).flatten(1)).mean()
print(f"downhill, against the way to the sharp picture: cosine {along.item():.2f}")
assert along > 0.03, "Downhill must lead to the sharp picture, not just anywhere."

# %% where [markdown]
r"""
A loss is worth its gradient, so the last lines look at that: it points towards the sharp picture.

The published LPIPS looks with VGG16, a network for photographs. It *sums* over five maps, and its
weights $w$ (version 0.1) were fitted to people's judgements. The package has it as
`LPIPS(Features("vgg16"))`. We do not run it here, because VGG16 is a large download.

Now the five changes at many strengths. And one that only `Scenes` can make: the very same scene
drawn without grass, ripples and grain.
"""

# %% curves tags=figure,check
errors = (0.0005, 0.002, 0.008, 0.016)
curves = {
    name: [float(lpips(x, toward(x, goal(x), e)).mean()) for e in errors]
    for name, goal in changes.items()
}
bare = scenes(range(8, 24), texture=0)
plain = float(psnr(bare, x).mean()), float(lpips(x, bare).mean())
figure, axis = figures.canvas(6.5, 3)
for name, curve in curves.items():
    axis.plot([10 * math.log10(4 / e) for e in errors], curve, "o-", label=name)
axis.plot(float(psnr(moved, x).mean()), far["moved"], "D", color=figures.RED, label="moved")
axis.plot(*plain, "*", color=figures.INK, markersize=12, label="without texture")
axis.set(xlabel="PSNR, dB", ylabel="LPIPS")
axis.legend()
words = "LPIPS against PSNR for four changes of rising strength, a shift, and a scene's texture."
figures.show(figure, words)

print(f"without texture: PSNR {plain[0]:.1f} dB, LPIPS {plain[1]:.3f}")
blurred, noisy = (curves[name][2] for name in ("blurred", "noise"))
print(f"at 27 dB: blurred {blurred:.3f}, noise {noisy:.3f}")
assert plain[1] < 0.03, "All texture gone, and a reader of scenes hardly notices."
assert blurred > 1.2 * noisy > 2 * plain[1], "No texture is nearer than noise, noise than blur."

# %% curves-read [markdown]
r"""
**What to see.** One vertical line is one PSNR, and it meets the curves at very different heights.
The star is the most important point. It is far to the right and at the bottom: a scene without any
texture is close in pixels *and* close to the reader. So neither of the two terms that we have will
make a decoder draw grass. They see no reason to.
"""

# %% critic [markdown]
r"""
## 4. A critic of patches

What would make a decoder draw grass that nobody can tell from grass? Somebody who tries to tell.
A *critic* is a network that is shown real pictures and decoded ones and learns to give high
numbers to the first. It is never shown which original a picture belongs to, so a blade in another
place is no error. A missing blade is.

PatchGAN [3] is a critic without an overview. It is a short stack of 4 × 4 convolutions, and each
of its many outputs judges the patch that it can see.
"""

# %% patch-critic tags=check
from torch import nn

from ldm_lite.losses import PatchDiscriminator


def patch_critic(width, layers):
    """Image (B, 3, H, W) -> one logit for each patch (B, 1, h, w): positive for real."""
    parts, widths = [], [3] + [width * min(2**i, 8) for i in range(layers + 1)]
    for i in range(layers + 1):
        stride = 2 if i < layers else 1
        parts.append(nn.Conv2d(widths[i], widths[i + 1], 4, stride, 1, bias=i == 0))
        parts += [nn.BatchNorm2d(widths[i + 1])] * (i > 0) + [nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))


for width, layers in ((16, 2), (8, 3)):
    mine, theirs = patch_critic(width, layers), PatchDiscriminator(width, layers)
    mine.load_state_dict(theirs.main.state_dict())
    image = torch.randn(2, 3, 70, 83)
    torch.testing.assert_close(mine(image), theirs(image))
print("the same weights, the same logits")

# %% field [markdown]
r"""
How large is a patch? Walk back from one logit. What sees $r$ positions behind a layer of stride $s$
and kernel $k$ sees $s\,(r - 1) + k$ before it. The last two layers have stride 1, the others 2. In
code this is one line in a loop. Then we ask the network itself: from which pixels is there a
gradient to the logit in the middle?
"""


# %% field-figure tags=figure,check
def patch(layers, kernel=4):
    r = 1
    for stride in reversed([2] * layers + [1, 1]):
        r = stride * (r - 1) + kernel
    return r


def influence(critic, side=96):
    """How much the middle logit depends on each pixel: (side, side)."""
    image = torch.randn(1, 3, side, side, requires_grad=True)
    logits = critic(image)
    middle = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
    return torch.autograd.grad(middle, image)[0].abs().sum(1)[0]


torch.manual_seed(0)
fields = {layers: influence(PatchDiscriminator(16, layers).eval()) for layers in (1, 2, 3)}
for layers, field in fields.items():
    measured = [int((field.sum(side) > 0).sum()) for side in (0, 1)]
    assert measured == [patch(layers)] * 2, "The formula and the network must agree."
figures.pictures(
    torch.stack([torch.stack([2 * (f / f.max()).sqrt() - 1] * 3) for f in fields.values()]),
    "Which of 96 × 96 pixels the middle logit depends on: critics of one, two, three layers.",
    above=[f"{layers} layer{'s' * (layers > 1)}: {patch(layers)} pixels" for layers in fields],
    scale=2,
)
assert patch(3) == 70 and patch(2) == 34, "The 70 × 70 critic of the paper, and the small one."
training = influence(PatchDiscriminator(16, 2).train())
assert (training > 0).all(), "BatchNorm in training mode lets every logit see everything."

# %% field-read [markdown]
r"""
**What to see.** Sharp squares of 16, 34 and 70 pixels, brighter in the middle. A critic of 34
pixels cannot know whether a house stands on water. Whether grass looks like grass, it can.

Two notes. The last line of the check is a warning: in training mode, BatchNorm mixes all positions
and all pictures of a batch, and the square is no longer sharp. And the patch should not be much
larger than what is to be judged: the pixels and LPIPS already take care of the rest.
"""

# %% forms [markdown]
r"""
## 5. What a critic converges to

Let $r$ be the logit of a real picture and $f$ that of a decoded ("fake") one. Two losses are
common, `vanilla`, which is cross-entropy, and `hinge`, which stops caring once $r > 1$ and
$f < -1$ [4]. The decoder's own term is the same for both: $g = -f$, make the critic's number go up.
"""

# %% forms-figure tags=figure
logit = torch.linspace(-3, 3, 241, requires_grad=True)
figure, (one, two, three) = figures.canvas(10, 2.8, columns=3)
for name, loss in (("vanilla", F.softplus(-logit)), ("hinge", F.relu(1 - logit))):
    one.plot(logit.detach(), loss.detach(), label=name)
    two.plot(logit.detach(), torch.autograd.grad(loss.sum(), logit)[0])
three.plot(logit.detach(), -logit.detach(), color=figures.GREEN)
one.set(xlabel="logit of a real picture", title="critic's loss")
two.set(xlabel="logit of a real picture", title="its gradient")
three.set(xlabel="logit of a decoded picture", title="decoder's term g")
one.legend()
words = "The critic's two losses of a real picture's logit, their gradients, the decoder's term."
figures.show(figure, words)

# %% optimum [markdown]
r"""
**What to see.** Vanilla never rests. Hinge pushes with constant force and then not at all. The
decoder's term is a straight line: it is never satisfied, and it has no target.

If at some point real pictures have density $p$ and decoded ones $q$, then vanilla's loss is
$\tfrac12 (p \log(1 + e^{-D}) + q \log(1 + e^{D}))$. Its derivative is zero where $e^D = p / q$.
Hinge's is a straight line in $D$ between −1 and 1, so its minimum lies at an end:

$$D_\text{vanilla} = \log \frac{p}{q}, \qquad D_\text{hinge} = \operatorname{sign}(p - q)$$

Take densities that we know, let the critic be a table of free numbers, and train it.
"""


# %% toy tags=check
from torch.distributions import Normal

line = torch.linspace(-4, 4, 321)
p = (Normal(-1.5, 0.5).log_prob(line).exp() + Normal(1.5, 0.5).log_prob(line).exp()) / 2
q = Normal(0.0, 1.1).log_prob(line).exp()  # a decoder that averages: it covers the middle
p, q = p / p.sum(), q / q.sum()


def trained(push):
    """(best logits, their loss). push: the loss of a decoded one's logit, at -D of a real one's."""
    d = torch.zeros(len(line), requires_grad=True)
    adam = torch.optim.Adam([d])
    for i in range(500):
        adam.param_groups[0]["lr"] = 0.1 * (1 - i / 500)
        adam.zero_grad()
        loss = 0.5 * (p * push(-d) + q * push(d)).sum()
        loss.backward()
        adam.step()
    return d.detach(), loss.item()


log_ratio, cost = trained(F.softplus)
sign, cost_hinge = trained(lambda d: F.relu(1 + d))
overlap = float(torch.minimum(p, q).sum())
print(f"vanilla ends at {cost:.3f}, hinge at {cost_hinge:.3f}; p and q overlap by {overlap:.3f}")
some, clear = p + q > 1e-4, (p - q).abs() > 2e-4  # where there is something; where no tie
assert torch.allclose(log_ratio[some], (p / q).log()[some], atol=0.05), "Vanilla: log p/q."
assert torch.allclose(sign[clear], (p - q).sign()[clear], atol=0.05), "Hinge: sign(p - q)."
assert abs(cost_hinge - overlap) < 0.005, "At its best, hinge's loss is the overlap of p and q."

# %% toy-figure tags=figure
figure, (one, two) = figures.canvas(8, 2.9, columns=2)
one.fill_between(line, p, color=figures.BLUE, alpha=0.35, label="real p")
one.fill_between(line, q, color=figures.ORANGE, alpha=0.35, label="decoded q")
one.set(title="two densities", yticks=[])
two.plot(line, log_ratio, label="vanilla", linewidth=5, alpha=0.4)
two.plot(line, sign, label="hinge")
two.plot(line, (p / q).log(), "--", color=figures.INK, linewidth=1, label="log p / q")
two.set(title="the critic that they lead to", xlim=(-3.5, 3.5), ylim=(-4, 4))
for axis in (one, two):
    axis.legend(loc="upper left", fontsize=8)
words = "Left: densities of real and decoded numbers. Right: the trained critics, and log p / q."
figures.show(figure, words)

# %% toy-read [markdown]
r"""
**What to see.** The orange heap on the left is a decoder that averages: it covers the gap between
the two modes, where next to nothing real is. Both critics are negative there (and in the far
tails). Vanilla knows *how* sure it is, hinge only on which side.

It follows how to read a log. Hinge's loss at its best is the overlap of the two densities: 1 when
nobody could tell them apart, 0 when anybody could. A loss of 1 is therefore either a perfect
decoder or a critic that has learned nothing yet.
"""

# %% balance [markdown]
r"""
## 6. How loud may it be?

Two losses, two units. A logit can be anything, and its gradient changes by orders of magnitude
while the critic learns. A fixed weight is right for an hour at most. Esser et al. [5] measure
instead: at the decoder's last layer $L$, the critic's pull shall be as strong as that of the
likeness (pixels and LPIPS):

$$\lambda = \frac{|\partial\,\text{likeness} / \partial L|}{|\partial\,g / \partial L| + 10^{-4}}$$

The last layer, because every gradient passes it first, and because one layer is cheap.
"""

# %% balance-by-hand tags=check
from ldm_lite.losses import balance
from ldm_lite.presets import load_first_stage

stage = load_first_stage("scenes-kl-f4-l1").to(device)
last = stage.decoder.conv_out.weight
torch.manual_seed(0)
fresh = PatchDiscriminator(16, 2).to(device)
images = scenes(range(4), split="train")
code = stage.code(images, sample=False)
decoded = stage.picture(code.z)
likeness = (decoded - images).abs().mean() + lpips(images, decoded).mean()
g = -fresh(decoded).mean()


def pull(loss):
    return torch.autograd.grad(loss, last, retain_graph=True)[0].norm()


weight = pull(likeness) / (pull(g) + 1e-4)
torch.testing.assert_close(weight, balance(likeness, g, last))
print(", ".join(f"{float(pull(loss)):.2f}" for loss in (likeness, g, weight * g)))
assert abs(pull(weight * g) / pull(likeness) - 1) < 0.02, "After weighting, both pull equally."
shouted = 1000 * balance(likeness, 1000 * g, last)
assert abs(shouted / weight - 1) < 0.02, "A critic that shouts is not heard any better."
assert abs(balance(7 * likeness, g, last) / weight - 7) < 0.01, "λ has the likeness's unit."

# %% objective-agrees tags=check
from ldm_lite.losses import LossConfig, Objective

weights = {"perceptual": 1.0, "adversarial": 0.3, "kl": 1e-3, "start": 0}
config = LossConfig(**weights, trunk="scenes", critic_width=16, critic_layers=2)
objective = Objective(config).to(device)
objective.critic.load_state_dict(fresh.state_dict())
penalty = code.penalty.mean() / images[0].numel()
mine = likeness + 0.3 * weight * -objective.critic(decoded).mean() + 1e-3 * penalty
theirs, terms = objective(images, decoded, code, last, step=0)
torch.testing.assert_close(mine, theirs)
print("; ".join(f"{name} {value.item():.3g}" for name, value in terms.items()))

# %% balance-read [markdown]
r"""
That is the whole loss, and the package's `Objective` agrees with it.

One thing $\lambda$ cannot do: it does not know whether the critic is *worth* hearing. If $g$ pulls
in a silly direction, it pulls just as hard. This is why the original adds the critic only from a
certain step on. What would it see before? We train three critics of the same kind on real
pictures against something else, and watch their loss.
"""

# %% opponents
from ldm_lite.autoencoder import Autoencoder

torch.manual_seed(1)
untrained = Autoencoder(stage.config).to(device)
real = scenes(range(128 if fast else 256), split="train")
with torch.no_grad():
    latents = torch.cat([stage.code(part, sample=False).mean for part in real.split(32)])
    blurry, rubble = (
        torch.cat([s.picture(z) for z in latents.split(32)]) for s in (stage, untrained)
    )
other = scenes(range(1000, 1000 + len(real)), split="train")


# %% critic-step
def new_critic():
    critic = PatchDiscriminator(16, 2).to(device)
    for conv in (part for part in critic.main if isinstance(part, nn.Conv2d)):
        conv.reset_parameters()  # PyTorch's first weights: the published ones learn slower
    return critic, torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))


def judge(critic, adam, image, decoded):
    loss = hinge(critic(image), critic(decoded.detach()))
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.item()


# %% opponents-figure tags=figure,check,timeout-300
from ldm_lite.losses import hinge

judges, ends = {}, []
figure, axis = figures.canvas(7, 2.8)
for name, fakes in (("before training", rubble), ("trained by L1", blurry), ("real, too", other)):
    torch.manual_seed(3)
    judges[name], losses = new_critic(), []
    for _ in range(100 if fast else 150):
        rows, (down, right) = torch.randint(len(real), (8,)), torch.randint(33, (2,)).tolist()
        crops = [x[rows, :, down : down + 32, right : right + 32] for x in (real, fakes)]
        losses.append(judge(*judges[name], *crops))
    axis.plot(torch.tensor(losses).unfold(0, 10, 1).mean(1), label=name)
    ends.append(sum(losses[-20:]) / 20)
axis.set(xlabel="steps of the critic", ylabel="hinge loss, mean of 10", ylim=(0, 1.5))
axis.legend(loc="upper center", ncols=3, title="real against")
figures.show(figure, "Hinge loss of three critics: real pictures against three kinds of others.")
print("at the end:", ", ".join(f"{end:.2f}" for end in ends))
assert ends[0] < 0.2, "An untrained decoder gives itself away at a glance."
assert ends[0] + 0.05 < ends[1] < ends[2] - 0.1, "Blur is told apart by its texture, in time."
assert ends[2] > 0.8, "Real against real: the overlap is whole, and the loss stays near 1."

# %% opponents-read [markdown]
r"""
**What to see.** Against a decoder before training the critic has won after a few steps, by colour
alone. All it could teach is what the pixels say anyway, and with $\lambda$ it would get its full
share of the say. Against the trained decoder it *looks* as ignorant as
against real pictures, for a while. Then it finds the texture, and its loss leaves the upper line.
From here on it says something that no other term says. Our presets start it after 60 % of the
steps.

## 7. Teach a decoder

Now all of it, live: the decoder of the L1 model, and the middle critic above. Encoder and latents
stay as they are. This is the decoder's step.
"""


# %% decoder-step
def learn(student, adam, critic, rows, weight=0.3):
    """One step of the decoder, with a critic or None; the decoded pictures."""
    decoded = student.picture(latents[rows])
    loss = (decoded - real[rows]).abs().mean() + lpips(real[rows], decoded).mean()
    if critic is not None:
        g = -critic(decoded).mean()
        loss = loss + weight * balance(loss, g, student.decoder.conv_out.weight) * g
    adam.zero_grad()
    loss.backward()  # reaches the critic's weights too; its own step clears them first
    adam.step()
    return decoded


# %% loop [markdown]
r"""
Then a step of the critic, on the same pictures, and so on in turn. While we teach, we measure the
fine texture of pictures that neither of the two has seen.
"""

# %% teach
from ldm_lite.metrics import high_frequency

unseen = scenes(range(200, 216))


@torch.no_grad()
def texture_kept(stage):  # 1 for as much as the unseen images have
    again = stage(unseen, sample=False)[0].clamp(-1, 1)
    return float(high_frequency(again).mean() / high_frequency(unseen).mean())


def taught(critic, tuner, steps, rate=4e-4):
    """The L1 model after more steps of its decoder, and its texture over time."""
    student, curve = load_first_stage("scenes-kl-f4-l1").to(device), []
    adam = torch.optim.Adam(student.decoder.parameters(), betas=(0.5, 0.9))
    torch.manual_seed(5)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min((step + 1) / 10, 1 - step / steps)
        rows = torch.randint(len(real), (4,))
        decoded = learn(student, adam, critic, rows)
        if critic is not None:
            judge(critic, tuner, real[rows], decoded)
        if step % 6 == 0 or step == steps - 1:
            curve.append((step + 1, texture_kept(student)))
    return student, curve


# %% teach-figure tags=figure,timeout-600
steps, before = 24 if fast else 240, texture_kept(stage)
student, with_critic = taught(*judges["trained by L1"], steps)
control, without = taught(None, None, steps)
figure, axis = figures.canvas(7, 2.8)
for curve, name in ((with_critic, "with the critic"), (without, "pixels and LPIPS only")):
    axis.plot(*zip((0, before), *curve), "o-", markersize=3, label=name)
axis.axhline(1, linestyle="--", color=figures.SOFT, label="the images themselves")
axis.set(xlabel="steps", ylabel="fine texture kept", ylim=(0, 1.9))
axis.legend(loc="upper center", ncols=3)
words = "Fine texture of unseen decoded pictures while a decoder learns, with a critic and without."
figures.show(figure, words)

# %% teach-claims tags=check
with torch.no_grad():
    old, new = (s(unseen, sample=False)[0].clamp(-1, 1) for s in (stage, student))
cost = float(psnr(old, unseen).mean() - psnr(new, unseen).mean())
after, idle = with_critic[-1][1], without[-1][1]
print(f"texture kept: {before:.2f} before, {idle:.2f} without a critic, {after:.2f} with it")
print(f"PSNR has fallen by {cost:.1f} dB")
assert after > 1.4 * before, "The critic must make the decoder draw texture,"
assert after > 1.25 * idle, "... and it must be the critic that does."
assert cost > 0.2, "Guessed texture costs PSNR: it is seldom in the right place."

# %% teach-curve [markdown]
r"""
**What to see.** With the critic the texture rises within a few steps. Without it, the same number
of steps changes little.
"""

# %% teach-pictures tags=figure
figures.pictures(
    [unseen[2::3], old[2::3], new[2::3]],
    "Five unseen images, decoded by the L1 model, and by its decoder after the lessons.",
    left=("image", "L1", "with the critic"),
)

# %% teach-read [markdown]
r"""
**What to see.** Blades, ripples and stars come back, and edges get sharp again. Look closely,
though, and compare with the first row: the stars stand elsewhere. They are *invented*. PSNR
punishes this, and it is right: a wrong star is two errors, one where it is and one where it is
not.
"""

# %% three [markdown]
r"""
## 8. Three models, four judges

The package ships three first stages that differ in the loss alone: `scenes-kl-f4-l1`, `-lpips`
(pixels and LPIPS) and plain `scenes-kl-f4`, which has the critic as well. Each had the same 4,000
steps.

**Predict before you run.** The next cell measures PSNR, SSIM, LPIPS, rFID (the FID of decoded
against real images, seen by our reader) and the fine texture. Write down which of the three wins
each. Which of these judges would you trust with the question "can I tell it from a real picture"?
"""

# %% judged tags=timeout-300
from ldm_lite.metrics import fid
from ldm_lite.runs import reconstructed

names = {"L1": "scenes-kl-f4-l1", "+ LPIPS": "scenes-kl-f4-lpips", "+ critic": "scenes-kl-f4"}
models = {short: load_first_stage(name).to(device) for short, name in names.items()}
held = scenes(range(1000, 1064 if fast else 1512))
made = {short: reconstructed(model, held).to(device) for short, model in models.items()}


@torch.no_grad()
def numbers(y):
    pairs = list(zip(held.split(64), y.split(64)))
    return {
        "PSNR": psnr(y, held).mean(),
        "SSIM": ssim(y, held).mean(),
        "LPIPS": torch.cat([lpips(a, b) for a, b in pairs]).mean(),
        "rFID": fid(*(torch.cat([reader(pair[i]) for pair in pairs]) for i in (0, 1))),
        "texture": high_frequency(y).mean() / high_frequency(held).mean(),
    }


# %% judged-table tags=check
scores = {short: numbers(y) for short, y in made.items()}
print(" " * 10 + "".join(f"{name:>9s}" for name in scores["L1"]))
for short, row in scores.items():
    print(f"{short:10s}" + "".join(f"{float(value):9.3f}" for value in row.values()))
first, second, third = scores.values()
assert third["rFID"] < first["rFID"] / 2.5, "Against L1, the critic's model is far more real,"
assert third["PSNR"] < first["PSNR"] - 0.3, "... at a lower PSNR. This is the paper's trade."
assert third["texture"] > 1.8 * first["texture"], "It has most of the texture, L1 a third."
assert second["PSNR"] > third["PSNR"] + 0.6, "Did you expect the second to win in PSNR?"

# %% judged-read [markdown]
r"""
First against third is the trade that the paper makes: one dB of PSNR for a far smaller rFID.

But the second has the best PSNR, SSIM and LPIPS, and an rFID as good as the third's. It even beats
the first at the first's own loss: 4,000 steps are not many, and LPIPS helps to find the way. Is
the critic useless, then? Look at the texture column. And think of who judged: LPIPS and rFID look
with *the same network* that taught the second model, and the star in section 3 has shown that it
is blind to grass. The judge was the teacher. So take one who was nobody's teacher: the Fréchet
distance of plain grey patches, 8 × 8 pixels, no network at all.
"""


# %% patches tags=check
def grey(images):
    return torch.einsum("bcyx,c->byx", images.cpu(), torch.tensor([0.299, 0.587, 0.114]))


def patches(images, side=8):
    return F.unfold(grey(images)[:, None], side, stride=side).transpose(1, 2).flatten(0, 1)


strict = {short: fid(patches(held), patches(y)) for short, y in made.items()}
print("FID of patches:", ", ".join(f"{short} {value:.4f}" for short, value in strict.items()))
assert strict["+ critic"] < strict["+ LPIPS"] / 3, "Patch for patch, only the critic is realistic."

# %% spectrum-figure tags=figure
window = torch.outer(torch.hann_window(64), torch.hann_window(64))  # fades to the borders
spectra = {n: by_ring(waves(grey(y), window).mean(0)) for n, y in ({"images": held} | made).items()}
figure, (one, two) = figures.canvas(9, 3, columns=2)
periods = torch.arange(1, 33) / 64
for (name, spectrum), colour in zip(spectra.items(), (figures.INK, *figures.COLOURS)):
    one.semilogy(periods, spectrum, color=colour, label=name)
    two.plot(periods, spectrum / spectra["images"], color=colour, label=name)
one.set(xlabel="periods per pixel", title="power of each wave")
two.set(xlabel="periods per pixel", title="as a share of the images'", ylim=(0, 1.5))
one.legend()
words = "Power by frequency of images and of what three models make of them, and its share."
figures.show(figure, words)

# %% spectrum-read [markdown]
r"""
**What to see.** All three have the coarse waves right. From 0.15 periods per pixel on L1 falls,
from 0.2 on LPIPS, like the mean of section 1. The third stays near the images to the end.

Is what it adds *true*? There is an exact test. If a guess $m$ is the mean of everything possible,
it is uncorrelated with its own error, so $\mathbb E\,m x = \mathbb E\,m^2$, and therefore

$$\frac{\mathbb E\,m^2}{\mathbb E\,x^2} = \rho^2, \qquad
\rho = \frac{\mathbb E\,m x}{\sqrt{\mathbb E\,m^2 \; \mathbb E\,x^2}}$$

A mean has exactly as much energy as it can answer for. Here are both sides, for the fine waves.
"""


# %% mean-test tags=check
def fine_waves(images):
    flat = grey(images) - grey(images).mean((1, 2), keepdim=True)
    return torch.fft.fft2(flat * window)[:, frequency(64) > 0.25]


def energies(y):
    """(energy as a share of the images', squared correlation with them) of the fine waves."""
    m, x = fine_waves(y), fine_waves(held)
    mx, mm, xx = (float((a * b.conj()).real.sum()) for a, b in ((m, x), (m, m), (x, x)))
    return mm / xx, mx**2 / (mm * xx)


bare = scenes(range(1000, 1000 + len(held)), texture=0)
for name, y in ({"no texture": bare} | made).items():
    energy, answered = energies(y)
    print(f"{name:10s} fine energy {energy:.2f}, of which it can answer for {answered:.2f}")
    if name != "+ critic":
        assert abs(energy - answered) < 0.15, "What is blurred should be near to a mean."
assert energy > 1.8 * answered, "The critic's model has energy it cannot answer for: invented."

# %% trade-read [markdown]
r"""
The first three lines pass the test of a mean, nearly: leaving texture away *is* the mean, and the
two blurry models err a little on the cautious side. The critic's model does not *know* more than
they do. It shows more: to the same knowledge it adds as much invention as is missing. Blau and
Michaeli [6] prove that this cannot be had for nothing: beyond some point, what looks more real is
further from the original.

For latent diffusion it is a good bargain. Nobody will compare its pictures with an original,
because there is none. For a medical image it would be a bad one.

**Your turn.** With a kernel in full mode, a menu and a slider appear. Find a picture in which the
critic's model invents something that you mind.
"""

# %% knobs tags=figure
from ldm_lite.course import widgets


def shown(model, first):
    some = scenes(range(first, first + 6))
    return some if model == "image" else reconstructed(models[model], some)


choices = {"model": ("image", *names), "first": range(0, 600, 6)}
rows = [{"model": model, "first": 300} for model in choices["model"]]
words = "Six test images, decoded by the models trained by L1, with LPIPS, and with a critic."
panel = widgets.knobs(shown, choices, rows, words)

# %% knobs-read [markdown]
r"""
**What to see.** The second row is soft everywhere. The third has sharp houses on soft ground: its
teacher cared for what can be named. The fourth has ground. Where a window was too small for the
latent, it has drawn *some* window.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below.
"""

# %% order [exercise] title="Predict the order" difficulty=1 minutes=5
r"""
A picture is changed in four ways. `a`: every value plus 0.1. `b`: noise of deviation 0.2. `c`:
every tenth value off by 1, the others untouched. `d`: plus 0.6 in the left quarter of the picture.
Without the computer: write the letters in order, the *highest* PSNR first.
"""

# %% [stub]
order = ...  # for example "dcba"

# %% [check]
from ldm_lite.course.checks import check
from ldm_lite.metrics import psnr as decibel

with check("Predict the order", "Work out each mean squared error in your head.") as c:
    c.answered(order)
    step = torch.zeros(4, 3, 40, 40)
    step[0] += 0.1
    step[1] = 0.2 * torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0))
    step[2].view(-1)[::10] += 1
    step[3, :, :, :10] += 0.6
    measured = "".join("abcd"[i] for i in decibel(step, 0 * step).argsort(descending=True))
    c.that(sorted(order) == list("abcd"), "Each of the four letters once.")
    c.that(order[0] == "a", "The smallest mean squared error is 0.1² = 0.01, and it is a's.")
    c.that(order[-1] == "c", "Few and large counts most: 1² / 10 = 0.1 is the largest of the four.")
    c.that(order == measured, "Not yet: what is larger, 0.6² / 4 or 0.2²?")

# %% [solution]
order = "abdc"  # mean squared errors 0.01, 0.04, 0.09 and 0.1

# %% [wrong]
order = "acbd"  # by how much of the picture looks wrong


# %% safe-unit [exercise] title="Nothing has no direction" difficulty=2 minutes=7
r"""
After a ReLU, *all* channels at a position can be zero. Scaling to length 1 then divides by zero,
and adding `1e-10` below the line saves the value but not always the gradient. Write the scaling
of maps `h` (B, C, h, w) with plain arithmetic, without `vector_norm`, so that values agree with
`unit` and the gradient is finite everywhere.
"""


# %% [stub]
def safe_unit(h):
    return ...


# %% [check]
from ldm_lite.losses import unit as package_unit

with check("Nothing has no direction", "safe_unit still returns ...") as c:
    h = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0)).relu()
    h[0, :, 1, 2:] = 0
    h.requires_grad_()
    mine = safe_unit(h)
    c.close(mine, package_unit(h), "Divide by the length over the channels, dim=1.")
    (slope,) = torch.autograd.grad(mine.square().sum() + mine.sum(), h)
    why = "The value is right, the gradient is not finite: what is the slope of a root at zero?"
    c.that(slope.isfinite().all(), why)
    c.that(slope[1].abs().sum() > 0, "A gradient must get through: do not detach.")


# %% [solution]
def safe_unit(h):
    # the small number goes below the root: it keeps the slope finite
    return h / (h.square().sum(1, keepdim=True) + 1e-20).sqrt()


# %% [wrong]
def safe_unit(h):
    return h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)


# %% leak [exercise] title="The step that leaks" difficulty=2 minutes=10
r"""
The critic's step must not move the decoder. In a widely copied training script it left gradients
there, and the decoder's next step took them along. Write `leaks(step)`: `True` if
`step(decoder, critic, real, z)` leaves any gradient in the decoder. You may build a small decoder
and critic, as the check does.
"""


# %% [stub]
def leaks(step):
    return ...


# %% [check]
from ldm_lite.losses import hinge as package_hinge


def plain_step(decoder, critic, real, z):
    package_hinge(critic(real), critic(decoder(z))).backward()


def detached(decoder, critic, real, z):
    package_hinge(critic(real), critic(decoder(z).detach())).backward()


def half_detached(decoder, critic, real, z):
    fake = decoder(z)
    package_hinge(critic(real), critic(fake.detach())).backward()
    critic(fake).square().mean().mul(1e-3).backward()  # a penalty, added later


def without_graph(decoder, critic, real, z):
    with torch.no_grad():
        fake = decoder(z)
    package_hinge(critic(real), critic(fake)).backward()


suspects = {plain_step: True, detached: False, half_detached: True, without_graph: False}
with check("The step that leaks", "leaks still returns ...", "Test it before you train.") as c:
    for step, verdict in suspects.items():
        mine = leaks(step)
        c.answered(mine)
        why = f"Your test says {bool(mine)} to {step.__name__}. Look at w.grad of the decoder."
        c.that(bool(mine) == verdict, why)


# %% [solution]
def leaks(step):
    decoder, critic = torch.nn.Conv2d(2, 3, 1), torch.nn.Conv2d(3, 1, 4)
    step(decoder, critic, torch.randn(2, 3, 9, 7), torch.randn(2, 2, 9, 7))
    return any(w.grad is not None and w.grad.abs().sum() > 0 for w in decoder.parameters())


# %% [wrong]
def leaks(step):
    decoder, critic = torch.nn.Conv2d(2, 3, 1), torch.nn.Conv2d(3, 1, 4)
    before = decoder.weight.clone()
    step(decoder, critic, torch.randn(2, 3, 9, 7), torch.randn(2, 2, 9, 7))
    return not torch.equal(before, decoder.weight)


# %% break-it [markdown]
r"""
### Break it: a loss that only watches

A published script for training autoencoders computes its perceptual loss like `suspect` below. To
see what it does, we let a coarse grid of 16 × 16 colours, enlarged smoothly, learn four pictures.
It can only blur, and has to choose how. One training has the package's LPIPS, one has `suspect`.
Here are both logs.
"""


# %% broken tags=figure,check
def suspect(x, y):
    with torch.no_grad():  # saves memory
        return lpips(x, y)


goal, logs = scenes(range(4), split="train"), {}
for name, term in {"package": package_lpips, "suspect": suspect}.items():
    z, logs[name] = torch.zeros(4, 3, 16, 16, device=device, requires_grad=True), []
    adam = torch.optim.Adam([z], lr=0.1)
    for _ in range(36 if fast else 72):
        y = F.interpolate(z, (64, 64), mode="bicubic")
        watched = term(goal, y).mean()
        adam.zero_grad()
        ((y - goal).abs().mean() + watched).backward()
        adam.step()
        logs[name].append(watched.item())
assert logs["package"][-1] < 0.9 * logs["suspect"][-1], "A term with a gradient gets further."
figure, axis = figures.canvas(6, 2.6)
for name, log in logs.items():
    axis.plot(log, label=name)
axis.set(xlabel="steps", ylabel="LPIPS in the log", ylim=(0, None))
axis.legend()
figures.show(figure, "The perceptual loss as both trainings print it, step by step.")

# %% broken-read [markdown]
r"""
**What to see.** Both fall; the second is even ahead for a while. Had you seen it alone, you would
have called it a success: "LPIPS is going down". It goes down because the *pixels* improve. The
term itself says something and does nothing, and in the end this shows. A curve alone does not show
it, but a gradient does.
"""

# %% catch-it [exercise] title="Catch it" difficulty=3 minutes=10
r"""
Write `teaches(term)`: `True` if the loss `term(x, y)` of images `x` and reconstructions `y` (both
(B, 3, H, W) in [−1, 1]) tells `y` how to change, `False` if it only watches. The check tries it on
good terms and on bad ones; one of them has a gradient that is zero.
"""


# %% [stub]
def teaches(term):
    return ...


# %% [check]
some_critic = torch.nn.Conv2d(3, 1, 4, 2).to(device)
kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(device)
features = lambda image: F.conv2d(image, kernel)
terms = {
    "a distance of features": (lambda x, y: (features(x) - features(y)).square().mean(), True),
    "the critic's term": (lambda x, y: -some_critic(y).mean(), True),
    "suspect": (suspect, False),
    "a critic that reads y.detach()": (lambda x, y: -some_critic(y.detach()).mean(), False),
    "pixels in whole steps": (lambda x, y: (x - (127.5 * y).round() / 127.5).abs().mean(), False),
    "a number taken out with item()": (
        lambda x, y: torch.tensor((x - y).abs().mean().item(), requires_grad=True),
        False,
    ),
}
with check("Catch it", "teaches still returns ...", "One line in a test, and it stays right.") as c:
    for name, (term, verdict) in terms.items():
        mine = teaches(term)
        c.answered(mine)
        c.that(bool(mine) == verdict, f"Your test says {bool(mine)} to: {name}.")


# %% [solution]
def teaches(term):
    x = torch.rand(2, 3, 32, 32, device=device) * 2 - 1
    y = (torch.rand(2, 3, 32, 32, device=device) * 2 - 1).requires_grad_()
    loss = term(x, y)
    if not loss.requires_grad:
        return False
    (slope,) = torch.autograd.grad(loss, y, allow_unused=True)
    return slope is not None and bool(slope.abs().sum() > 0)


# %% [wrong]
def teaches(term):
    x, y = torch.rand(2, 2, 3, 32, 32, device=device).requires_grad_()
    return term(x, y).requires_grad


# %% summary [markdown]
r"""
## Summary

- The best guess for a squared error is the mean, for an absolute one the median. Both are blur
  where the latent leaves things open, wave by wave a Gaussian.
- LPIPS compares what a network sees. It sharpens what the network can name, and is blind to the
  rest.
- A critic of patches knows no original. At its best it is $\log p/q$ or its sign.
- $\lambda$ makes both sides pull equally at the last layer, whatever their units. It cannot know
  whether the critic is worth hearing, so the critic starts late.
- Texture is invented, and costs PSNR. Judge it by someone who was not its teacher.
- A loss that falls in a log may do nothing. Test its gradient.

**What next.** Notebook 04 asks whether a latent can be a word from a dictionary.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach et al. *High-Resolution Image Synthesis with Latent Diffusion Models.* CVPR 2022,
   appendix G. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. R. Zhang et al. *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric.* CVPR
   2018. [arXiv 1801.03924](https://arxiv.org/abs/1801.03924)
3. P. Isola et al. *Image-to-Image Translation with Conditional Adversarial Networks.* CVPR 2017.
   [arXiv 1611.07004](https://arxiv.org/abs/1611.07004)
4. J. H. Lim, J. C. Ye. *Geometric GAN.* 2017. [arXiv
   1705.02894](https://arxiv.org/abs/1705.02894)
5. P. Esser, R. Rombach, B. Ommer. *Taming Transformers for High-Resolution Image Synthesis.* CVPR
   2021, equation 7. [arXiv 2012.09841](https://arxiv.org/abs/2012.09841)
6. Y. Blau, T. Michaeli. *The Perception-Distortion Tradeoff.* CVPR 2018. [arXiv
   1711.06077](https://arxiv.org/abs/1711.06077)
"""
