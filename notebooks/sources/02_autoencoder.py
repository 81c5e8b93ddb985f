r"""
title: The autoencoder
goal: Build the first stage by hand, squeeze its bottleneck, and see how small a latent can be
needs: Python and a little PyTorch; notebooks 00 and 01 help and are not required
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: your own autoencoder, running on the package's weights, and why it needs diffusion
objectives:
  - build encoder and decoder from three small blocks, and load trained weights into them
  - derive the KL term, and check its value and its gradient against exact ones
  - see a latent collapse, and say in which units a weight of 1e-6 is small
  - say what one latent number does to the picture, and measure the scale of all of them
  - show why noise does not decode to a picture, and how small a latent can be
"""

# %% the-idea [markdown]
r"""
**What to see.** Three boxes in colour. The encoder makes a picture small, the decoder makes it
large again, and between them lies the latent, where diffusion will work. Rombach et al. [1] call
the pair the *first stage*. It is trained once and then frozen.

It has to serve two masters. The picture should come back, and the latent should be a good place
for diffusion: smooth, and of a known size. We build it, then squeeze it until it breaks.
"""

# %% start
import torch
import torch.nn.functional as F
from torch import nn

from ldm_lite.data import Scenes
from ldm_lite.presets import load_first_stage

stage = load_first_stage("scenes-kl-f4").to(device).requires_grad_(False)


def scenes(rows, size=64):  # test images (B, 3, size, size) in [-1, 1]
    return (Scenes("test", size).batch(rows)["image"].float() / 127.5 - 1).to(device)


# %% block-idea [markdown]
r"""
## 1. A block that does no harm

Most weights of the model sit in one kind of block: normalise, bend, convolve, twice, and add the
input. Three decisions, each with a reason.

**GroupNorm** [2] divides the channels into groups and brings each group of each image to mean 0
and variance 1. BatchNorm would do so over the *batch*: with eight pictures per step that is a
noisy mean, and an image would depend on its neighbours.
"""


# %% groupnorm tags=check
def groupnorm(h, groups, weight, bias, eps=1e-6):
    g = h.unflatten(1, (groups, -1)).flatten(2)  # (B, groups, all numbers of a group)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + eps).sqrt()
    return g.view_as(h) * weight[:, None, None] + bias[:, None, None]


h, (weight, bias) = 4 * torch.randn(3, 12, 5, 7) + 2, torch.randn(2, 12)
together, alone = (groupnorm(images, 3, weight, bias) for images in (h, h[:1]))
torch.testing.assert_close(together, F.group_norm(h, 3, weight, bias, 1e-6))
assert torch.allclose(together[:1], alone, atol=1e-5), "GroupNorm: company must not matter."
batchnorm = [F.batch_norm(images, None, None, training=True)[:1] for images in (h, h[:1])]
assert not torch.allclose(*batchnorm, atol=0.01), "BatchNorm: company matters."

# %% silu [markdown]
r"""
**SiLU** is $h \cdot \mathrm{sigmoid}(h)$: like ReLU, but smooth and never quite dead.

**The input is added** [3]. If the convolutions have nothing to say, the picture passes unharmed,
and so does the gradient on its way back. When the width changes, a $1 \times 1$ convolution
carries the input over. The names of the parts are the package's, so that its weights will fit.
"""


# %% res tags=check
class Res(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1 = nn.GroupNorm(c_in // 4, c_in, eps=1e-6)  # from 128 channels on: 32 groups
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(c_out // 4, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, h):
        x = self.conv1(F.silu(self.norm1(h)))
        return self.skip(h) + self.conv2(F.silu(self.norm2(x)))


from ldm_lite.layers import ResBlock

theirs, h = ResBlock(24, 48, eps=1e-6, zero=False), torch.randn(2, 24, 5, 7)
mine = Res(24, 48)
mine.load_state_dict(theirs.state_dict())
torch.testing.assert_close(mine(h), theirs(h))
torch.testing.assert_close(F.silu(h), h * torch.sigmoid(h))

# %% residual tags=figure
small = scenes(range(64), size=32)


class Plain(Res):
    def forward(self, h):
        return super().forward(h) - self.skip(h)  # the same block, nothing added


def copying(block, steps, seed):
    """Losses of a stack of blocks that learns to return its input."""
    torch.manual_seed(seed)
    ends = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
    net = nn.Sequential(ends[0], *(block(16, 16) for _ in range(8)), ends[1]).to(device)
    optimizer, losses = torch.optim.Adam(net.parameters(), 1e-3), []
    for _ in range(steps):
        loss = (net(small[:8]) - small[:8]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


runs = {block: copying(block, 30 if fast else 100, seed=0) for block in (Res, Plain)}
figure, (left, right) = figures.canvas(8, 2.8, columns=2)
line = torch.linspace(-5, 3, 161)
left.plot(line, F.silu(line), label="SiLU")
left.plot(line, F.relu(line), "--", color=figures.SOFT, label="ReLU")
left.legend()
for losses, name in zip(runs.values(), ("input added", "nothing added")):
    right.semilogy(losses, label=name)
right.set(xlabel="step", title="error of eight blocks that learn to copy")
right.legend()
figures.show(figure, "Left: SiLU and ReLU. Right: squared error of two stacks that learn to copy.")
assert runs[Res][-1] < runs[Plain][-1] / 1.5, "With the input added, depth should do no harm."

# %% residual-read [markdown]
r"""
**What to see.** Left, SiLU dips below zero and has no corner. Right, two stacks with the same
weights at the start. To copy is the easiest task there is, and where nothing is added each block
has to learn it all the same. An autoencoder has more than eight in a row.

## 2. Down and up

**Down** is a $3 \times 3$ convolution with stride 2. The original pads with zeros on the right and
at the bottom only, which looks like a mistake. Is the usual `padding=1`, on every side, more
correct?
"""

# %% padding tags=figure
figure, axes = figures.canvas(10, 2.0, columns=2)
for axis, first, name in zip(axes, (0, 1), ("padding=1, on both sides", "on the right only")):
    for c in range(first, 8, 2):
        axis.plot((c - 1, c, c, c, c + 1), (0, 1, 0, 1, 0), color=figures.LINE, zorder=0)
    axis.plot((-1, 8)[first:], (0, 0)[first:], "s", color="white", mec=figures.SOFT, ms=13)
    axis.plot(range(8), 8 * [0], "s", color=figures.BLUE, ms=13)
    axis.plot(range(first, 8, 2), 4 * [1], "o", color=figures.ORANGE, ms=13)
    axis.set(title=name, xlim=(-1.7, 8.7), ylim=(-0.5, 1.5))
    axis.axis("off")
axes[0].plot(8, 0, "x", color=figures.RED, ms=11, mew=2)
words = "A row of eight pixels, blue, and the four outputs that read three pixels each, orange."
figures.show(figure, words + " Padding is white; what no output reads has a cross.")


# %% padding-claims tags=check
class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.pad = nn.Conv2d(width, width, 3, stride=2), (0, 1, 0, 1)

    def forward(self, h):
        return self.conv(F.pad(h, self.pad))  # left, right, top, bottom


weight, h = torch.randn(4, 3, 3, 3), torch.randn(2, 3, 6, 10)
usual = F.conv2d(h, weight, stride=2, padding=1)
left_top = F.conv2d(F.pad(h, (1, 0, 1, 0)), weight, stride=2)
right_bottom = F.conv2d(F.pad(h, (0, 1, 0, 1)), weight, stride=2)
mirror = F.conv2d(h.flip(2, 3), weight.flip(2, 3), stride=2, padding=1).flip(2, 3)
torch.testing.assert_close(usual, left_top)  # what is on the right and below is never read
torch.testing.assert_close(right_bottom, mirror)  # the original's is the usual one, mirrored

# %% padding-read [markdown]
r"""
**What to see.** Follow the lines to the white squares. Eight pixels and stride 2 need exactly one
more. The usual padding puts in two and reads the left one: it is one-sided as well, only on the
other side. Neither is a mistake. The mistake is to load weights that have learned the one into
the other, and in section 3 we make it.

**Up** doubles every pixel, then convolves. Why not a transposed convolution, which is made for
this? Its kernel covers some pixels twice and some four times. Three little networks learn to
enlarge pictures, one with each kind. Then we give them plain grey, and stretch the contrast of
what comes out twentyfold.
"""


# %% checkerboard tags=figure
class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h):
        return self.conv(h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def enlarging(up, steps=40 if fast else 150):
    """A network that has learned to enlarge pictures twofold."""
    torch.manual_seed(0)
    ends = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
    net = nn.Sequential(ends[0], nn.SiLU(), up, nn.SiLU(), ends[1]).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(half) - small[:16]).abs().mean().backward()
        optimizer.step()
    return net.requires_grad_(False)


half, grey = F.avg_pool2d(small[:16], 2), torch.full((1, 3, 16, 16), 0.5, device=device)
kinds = {
    "double,\nconvolve": lambda: Up(16),
    "transposed,\nkernel 3": lambda: nn.ConvTranspose2d(16, 16, 3, 2, 1, 1),
    "transposed,\nkernel 4": lambda: nn.ConvTranspose2d(16, 16, 4, 2, 1),
}
nets = [enlarging(kind()) for kind in kinds.values()]
rows, few = [], [0, 2, 4, 9]
for net in nets:
    inside = net(grey)[..., 4:-4, 4:-4]  # away from the border, which every padding disturbs
    stretched = F.pad(20 * (inside - inside.mean((2, 3), keepdim=True)), (4, 4, 4, 4))
    rows.append(torch.cat([stretched, net(half[few])]))
wanted = torch.cat([torch.zeros(1, 3, 32, 32, device=device), small[few]])
words = "First column: what each network makes of plain grey, contrast times twenty. Then scenes."
figures.pictures([wanted, *rows], words, left=("wanted", *kinds))


# %% checkerboard-claims tags=check
def checkers(h):
    """How far the four pixels under one coarse pixel differ on average, away from the border."""
    h = h[..., 4:-4, 4:-4]
    means = torch.stack([h[..., y::2, x::2].mean((2, 3)) for y in (0, 1) for x in (0, 1)])
    return float(means.std(0, correction=0).mean())


untrained = [checkers(kind()(torch.ones(1, 16, 16, 16)).detach()) for kind in kinds.values()]
assert untrained[0] < 1e-6, "Doubling leaves no checkerboard, whatever the weights."
trained_ones = [checkers(net(grey)) for net in nets]
print("before training and after:", *(f"{a:.4f} {b:.4f};" for a, b in zip(untrained, trained_ones)))
assert min(untrained[1:]) > 0.01 and min(trained_ones[1:]) > 2 * trained_ones[0], "Others do."

# %% checkerboard-read [markdown]
r"""
**What to see.** Look at the first column. Doubling leaves grey grey: all four pixels come from the
same value, so no weights can tell them apart. A transposed convolution has other weights for each
of the four, and must *learn* that grey is grey. It leaves a pattern with a period of two pixels.
The scenes beside it look alike, so you would not notice, until the pattern shows in a smooth sky.
(The argument is that of Odena et al. [4].)

## 3. Encoder and decoder

Now we put the blocks in a row. Each level of the encoder has one block and halves the size, while
the width doubles: 64 × 64 × 16, then 32 × 32 × 32, then 16 × 16 × 64.
"""


# %% encoder
class Level(nn.Module):
    def __init__(self, c_in, c_out, blocks, resample):
        super().__init__()
        self.block = nn.ModuleList(Res(c_in if i == 0 else c_out, c_out) for i in range(blocks))
        self.resample = resample

    def forward(self, h):
        for block in self.block:
            h = block(h)
        return h if self.resample is None else self.resample(h)


def middle(width):  # the published models have attention here, in the place of Identity
    return nn.Sequential(Res(width, width), nn.Identity(), Res(width, width))


class Encoder(nn.Module):
    """image (B, 3, H, W) -> (B, 2C, H/4, W/4)"""

    def __init__(self, width, channels):
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        levels = Level(a, a, 1, Down(a)), Level(a, b, 1, Down(b)), Level(b, c, 1, None)
        self.conv_in = nn.Conv2d(3, a, 3, padding=1)
        self.down, self.mid = nn.ModuleList(levels), middle(c)
        self.norm_out = nn.GroupNorm(c // 4, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, 2 * channels, 3, padding=1)

    def forward(self, image):
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


# %% decoder-idea [markdown]
r"""
The decoder is the same in reverse, with one block more on each level: it has to make up detail,
the encoder only to drop it. Around the latent stand two $1 \times 1$ convolutions that mix
channels. The encoder's output has $2C$ channels, for a reason that section 4 gives.
"""


# %% decoder
class Decoder(nn.Module):
    """(B, C, h, w) -> image (B, 3, 4h, 4w)"""

    def __init__(self, width, channels):
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        levels = Level(c, c, 2, Up(c)), Level(c, b, 2, Up(b)), Level(b, a, 2, None)
        self.conv_in, self.mid = nn.Conv2d(channels, c, 3, padding=1), middle(c)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(a // 4, a, 1e-6), nn.Conv2d(a, 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Mine(nn.Module):
    def __init__(self, width=16, channels=3):
        super().__init__()
        self.encoder, self.decoder = Encoder(width, channels), Decoder(width, channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.register_buffer("scale", torch.ones(()))  # section 7

    def moments(self, image):
        """Mean and log variance of the latent, each (B, C, H/4, W/4)."""
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)

    def picture(self, z):
        return self.decoder(self.post_quant_conv(z))


# %% agrees tags=check
import copy

from ldm_lite.metrics import psnr
from ldm_lite.presets import build

mine = Mine().to(device).requires_grad_(False)
mine.load_state_dict(stage.state_dict())  # strict: every name and every shape must fit
x = scenes(range(16 if fast else 64))
mean, logvar = mine.moments(x)
back = mine.picture(mean)
torch.testing.assert_close(mean * mine.scale, stage.encode(x), atol=1e-4, rtol=1e-4)
torch.testing.assert_close(back, stage.decode(stage.encode(x)), atol=1e-4, rtol=1e-4)
corrected = copy.deepcopy(mine)
for module in corrected.modules():
    if isinstance(module, Down):
        module.pad = (1, 1, 1, 1)  # the "more correct" padding
right, wrong = (float(psnr(m.picture(m.moments(x)[0]), x).mean()) for m in (mine, corrected))
print(f"{sum(p.numel() for p in mine.parameters()):,} weights; PSNR {right:.1f} dB", end="")
print(f", with the other padding {wrong:.1f} dB")
assert right > 26 and wrong < right - 8, "Weights belong to the padding they were trained with."

# %% published tags=check
with torch.device("meta"):  # shapes only: nothing is allocated
    sizes = {f: sum(p.numel() for p in build(f"kl-f{f}").parameters()) for f in (4, 8, 16, 32)}
print(", ".join(f"kl-f{f} {size / 1e6:.2f} M" for f, size in sizes.items()))
published = {4: 55.31, 8: 83.65, 16: 69.61, 32: 103.88}
for f, millions in published.items():
    assert abs(sizes[f] / 1e6 - millions) < 0.01, f"kl-f{f}: not the published architecture."

# %% published-read [markdown]
r"""
Your blocks run on the package's weights and agree with it. With the other padding the same weights
lose nearly half of their decibels, and no error is raised: every shape still fits.

The second check builds the published architectures with the package. They are the same blocks,
wider, with attention in the middle. The numbers of weights, in millions, are those of the original
checkpoints.
"""

# %% latents tags=figure
words = "Three test images; their latents, three channels in a square, orange above 0, blue below; "
figures.pictures(
    [x[:3], figures.latent(mean[:3] * mine.scale), back[:3]],
    words + "and what the decoder makes of the latents.",
    left=("image", "latent,\n3 channels", "decoded"),
)

# %% latents-read [markdown]
r"""
**What to see.** The latent is a small picture with three colours of its own. Things stay in their
places. The networks are convolutions: they have hardly a way to move them.

## 4. The bottleneck

The encoder does not name a latent but a *distribution*: a mean $\mu$ and a log variance $\log
\sigma^2$ for each number. That is why it has $2C$ channels. Training draws from it,

$$z = \mu + \sigma\,\varepsilon, \qquad \sigma = e^{\frac12 \log \sigma^2}, \quad \varepsilon \sim
\mathcal N(0, 1)$$

and written like this [5], chance comes in from outside: $z$ is a smooth function of $\mu$ and
$\sigma$, and gradients pass. Take $f(z) = z^2$. Its expectation is $\mu^2 + \sigma^2$, so the
gradients *must* be $2\mu$, and $\sigma^2$ for the log variance.
"""


# %% reparameterised tags=figure
def drawn(mean, logvar, eps):
    return mean + torch.exp(logvar / 2) * eps


torch.manual_seed(0)
mu, sigma, n = 1.0, 0.5, 20_000
m = torch.full((n,), mu, requires_grad=True)  # n copies: one gradient for each draw
v = torch.full((n,), 2 * torch.tensor(sigma).log(), requires_grad=True)
z = drawn(m, v, torch.randn(n))
(z**2).sum().backward()
score = (z**2 * (z - m) / sigma**2).detach()  # f(z) d log q(z) / d mu needs no gradient of f
figure, axis = figures.canvas(6.5, 2.6)
for values, name in ((m.grad, "through the sample"), (score, "around it, by the score")):
    axis.hist(values.numpy(), bins=80, range=(-3, 12), alpha=0.6, density=True, label=name)
axis.axvline(2 * mu, color=figures.INK, linestyle="--", label="exact, 2μ")
axis.set(xlabel="gradient of one draw with respect to the mean", yticks=[])
axis.legend()
figures.show(figure, "Gradients of single draws by two rules, and the exact gradient, dashed.")

# %% gradient-claims tags=check
for name, values, exact in (("mean", m.grad, 2 * mu), ("log variance", v.grad, sigma**2)):
    print(f"{name}: gradient {float(values.mean()):.3f}, exactly {exact:.3f}")
    error = float(values.std()) / n**0.5
    assert abs(float(values.mean()) - exact) < 5 * error, "Gradients should pass through a sample."
ratio = float(score.var() / m.grad.var())
print(f"around the sample: {score.mean():.2f} on average, the variance {ratio:.0f} times larger")
assert ratio > 5 and abs(score.mean() - 2 * mu) < 0.3, "So one draw per image is enough."
torch.manual_seed(1)
package = torch.distributions.Normal(torch.zeros(7), torch.full((7,), 2.0)).rsample()
torch.manual_seed(1)
by_hand = drawn(torch.zeros(7), torch.full((7,), 4.0).log(), torch.randn(7))
torch.testing.assert_close(by_hand, package)

# %% kl-idea [markdown]
r"""
**What to see.** Both rules are right on average. The one that goes through the sample is far
narrower: it knows which way $f$ slopes.

Left alone, the encoder would make $\sigma$ tiny and $\mu$ huge, and drawing would change nothing.
So a *KL divergence* pulls each Gaussian $q$ towards $p = \mathcal N(0, 1)$. With $z = \mu +
\sigma\varepsilon$,

$$\mathrm{KL} = \mathbb E_q[\log q(z) - \log p(z)] = \mathbb E\left[-\log\sigma - \tfrac12
\varepsilon^2 + \tfrac12 z^2\right] = \tfrac12\left(\mu^2 + \sigma^2 - 1 - \log \sigma^2\right)$$

because the constants cancel, $\mathbb E\,\varepsilon^2 = 1$ and $\mathbb E\,z^2 = \mu^2 +
\sigma^2$. It is in *nats*, for one number. The nats of an image are the sum over its latent.
"""


# %% kl tags=check
from torch.distributions import Normal, kl_divergence


def kl(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar)


a, b = torch.randn(2, 3, 5, 7)
torch.testing.assert_close(kl(a, b), kl_divergence(Normal(a, (b / 2).exp()), Normal(0.0, 1.0)))
assert kl(a, b).min() > 0 == float(kl(*torch.zeros(2))), "0 for N(0, 1), more for all others."
torch.testing.assert_close(nats := kl(mean, logvar).sum((1, 2, 3)), stage.code(x).penalty)
print(f"{nats.mean():.0f} nats; std of mu {mean.std():.2f}, sigma {logvar.div(2).exp().mean():.3f}")

# %% loss-idea [markdown]
r"""
The trained encoder is sure of itself: its $\sigma$ is a small fraction of the spread of its means.

## 5. The loss, and one batch

With $N$ numbers in an image and a weight $w$ on the nats,

$$L = \frac1N \sum_{i=1}^{N} |x_i - \hat x_i| \; + \; \frac{w}{N}\,\mathrm{KL}$$

The paper adds a perceptual and an adversarial term; notebook 03 is about those. We write the
loss, compare it with the package's, and train a narrow autoencoder from nothing on *one batch of
eight pictures*. A model that cannot learn eight pictures by heart has a bug.
"""


# %% loss tags=check
from ldm_lite.losses import LossConfig, Objective


def objective(model, x, w):
    mean, logvar = model.moments(x)
    back = model.picture(drawn(mean, logvar, torch.randn_like(mean)))
    nats = kl(mean, logvar).flatten(1).sum(1).mean()
    return (back - x).abs().mean() + w * nats / x[0].numel()


torch.manual_seed(0)
my_loss = objective(mine, x[:4], w=1e-3)
torch.manual_seed(0)
decoded, code = stage(x[:4])
last_layer = stage.decoder.conv_out.weight
theirs, _ = Objective(LossConfig(kl=1e-3))(x[:4], decoded, code, last_layer, step=0)
torch.testing.assert_close(my_loss, theirs, atol=1e-5, rtol=1e-4)
print(f"loss {float(my_loss):.4f}, by your formula and by the package's")


# %% overfit tags=figure,timeout-300
def trained(images, w, steps, watch=()):
    """A narrow autoencoder, its losses, and its reconstructions of six images at some steps."""
    torch.manual_seed(0)
    model = Mine(width=8, channels=4).to(device)
    optimizer, losses, seen = torch.optim.Adam(model.parameters(), 3e-3), [], []
    for step in range(steps):
        first = 8 * step % len(images)
        loss = objective(model, images[first : first + 8], w)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step in watch:
            seen.append(model.picture(model.moments(images[:6])[0]).detach())
    return model.requires_grad_(False), losses, seen


steps = 100 if fast else 400
_, losses, seen = trained(small[:8], 1e-3, steps, watch := (0, 10, 40, steps - 1))
labels = (f"step {step}\nloss {losses[step]:.2f}" for step in watch)
words = "Six of eight pictures that an autoencoder learns by heart, and its state at four steps."
figures.pictures([small[:6], *seen], words, left=("image", *labels))
assert losses[-1] < losses[0] / (2 if fast else 4), "One batch: the loss must fall, and far."

# %% overfit-read [markdown]
r"""
**What to see.** First light and horizon, then the places of things. Edges come last, and are not
sharp yet. An autoencoder learns in this order, since large areas have the most pixels. The test
takes seconds and finds most bugs of a training loop. Make it your first run, always.

## 6. How much does a latent carry?

Draw an image $x$, then a latent $z$. The nats have two parts [6], with $q(z)$ the mixture over all
images:

$$\mathbb E_x\,\mathrm{KL}(q(z|x)\,\|\,p) = I(x; z) + \mathrm{KL}(q(z)\,\|\,p)$$

$I$ is the information that the latent *carries* about its image. So KL is a price for
information, and at a high price none is bought. The last line of `carried` estimates $I$ for each
number, as if everything were Gaussian: $\frac12 \log$ of total over drawn variance.
"""


# %% carried
def carried(mean, logvar):
    """Nats that each latent number carries about its image, a Gaussian proxy: (C, h, w)."""
    noise = logvar.exp().mean(0)
    return 0.5 * torch.log((mean.var(0) + noise) / noise)


def recognised(mean, logvar):
    """The share of drawn latents whose own image explains them best, in a line-up of all."""
    z = drawn(mean, logvar, torch.randn_like(mean)).flatten(1)
    mean, logvar = mean.flatten(1), logvar.flatten(1)
    distance = ((z[:, None] - mean) ** 2 / logvar.exp() + logvar).sum(2)  # -2 log q + constant
    return float((distance.argmin(1).cpu() == torch.arange(len(z))).float().mean())


# %% collapse-predict [markdown]
r"""
**Predict before you run.** Three narrow autoencoders learn 64 pictures, with a weight of $w =
10^{-6}$, of 1 and of 100. Which of them will still show the picture? Given a latent, drawn at
random, which will tell from which of the 64 pictures it came? Write down a share for each.
"""

# %% collapse tags=figure,timeout-300
rows, labels, carries, shares = [], [], [], []
for w in (1e-6, 1.0, 100.0):
    model, *_ = trained(small, w, 60 if fast else 400)
    m, v = model.moments(small)
    rows.append(model.picture(drawn(m, v, torch.randn_like(m)))[:6])
    carries.append(carried(m, v).mean())
    shares.append(recognised(m, v))
    labels.append(f"w = {w:g}\n{float(kl(m, v).sum((1, 2, 3)).mean()):.1f} nats")
    channels = (f"{channel:.2f}" for channel in kl(m, v).mean((0, 2, 3)).tolist())
    print(f"w = {w:g}: nats per number, in each channel:", *channels)
words = "Six pictures, and reconstructions from drawn latents by autoencoders with three weights."
figures.pictures([small[:6], *rows], words, left=("image", *labels))

# %% collapse-claims tags=check
print("carried, nats per number:", *(f"{float(value):.3f}" for value in carries))
print("recognised in the line-up:", *(f"{share:.0%}" for share in shares))
assert shares[0] > 0.9, "With a tiny weight every latent must point to its image."
assert shares[-1] < 0.2 and carries[-1] < 0.02, "At w = 100 the latents must carry nothing."
assert carries[0] > 3 * carries[1] > 9 * carries[2], "The higher the price, the less is bought."
differ = [float(images.std(0).mean()) for images in (small[:6], *rows)]
assert differ[-1] < 0.2 * differ[0], "At w = 100 the decoder should draw one picture for all."

# %% collapse-read [markdown]
r"""
**What to see.** At $10^{-6}$ every picture is itself, as far as so short a training gets. At 1
light and ground are left, and a few dark places: facts that are worth their nats. The numbers
above the figure say how: channels are switched off, one by one. At 100 all pictures are the same
one, and a line-up of 64 is a guess. This is *posterior collapse*. The loss is finite,
nothing crashes, and the decoder has learned to ignore what it reads.

So the weight is a price per nat. In which units? The paper's $10^{-6}$ multiplies a *sum* over the
latent, beside a *sum* over the image. We divide both by $N$, which changes nothing. Who takes the
mean of each over its own elements, as many codes do, means another weight by the same number.
"""

# %% units tags=check
l1, total = float((back - x).abs().flatten(1).sum(1).mean()), float(nats.mean())
for w in (1e-6, 1e-3, 1.0):
    print(f"w = {w:g}: KL would add {w * total:.2g} to an L1 of {l1:.0f}, sums over an image")
latents_share = {f: c * (256 // f) ** 2 / (3 * 256**2) for f, c in ((4, 3), (8, 4))}
print("1e-6 on the sum is, as a weight on the mean over the latent,", end=" ")
print(", ".join(f"{1e-6 * share:.2e} (kl-f{f})" for f, share in latents_share.items()))
assert 1e-6 * total < 1e-4 * l1, "At 1e-6 the KL term must be next to nothing."
assert latents_share[4] == 1 / 16, "kl-f4: the latent has 1/16 of the image's numbers."

# %% units-read [markdown]
r"""
At $10^{-6}$ the KL term is less than a ten-thousandth of the loss. It does not buy information. It
is a leash: something has to keep the means from drifting to ever larger values, and almost nothing
is enough. Our first stage was trained with $10^{-3}$, as it had minutes and not days, and still
pays little. Latent diffusion takes the other half of the VAE's job, to know $q(z)$, away from the
KL term and gives it to diffusion.

## 7. What one latent number does

Add 1 to one latent number, about one standard deviation. Which pixels move? We ask at one place
in sixteen pictures, for each channel.
"""


# %% neighbourhood tags=figure
z0 = stage.encode(x[:16])
moved = []
for channel in range(3):
    touched = z0.clone()
    touched[:, channel, 8, 8] += 1
    moved.append((stage.decode(touched) - stage.decode(z0)).square().sum(1).mean(0).cpu())
energy = sum(moved)
offset = (torch.arange(64) - 33.5).abs()  # latent (8, 8) stands for pixels 32 to 35
distance = torch.maximum(offset[:, None], offset)
sides = list(range(4, 36, 4))
inside = [float(energy[distance < side / 2].sum() / energy.sum()) for side in sides]
figure, (left, right) = figures.canvas(8, 3.0, columns=2)
picture = left.imshow((energy / energy.max()).log10(), vmin=-6, vmax=0, cmap="magma")
figure.colorbar(picture, ax=left, label="log10, 0 for the most")
left.set(title="how much each pixel moves")
left.grid(False)
right.plot(sides, inside, "o-")
right.set(xlabel="side of a square around it, pixels", title="share of the change", ylim=(0, 1.03))
figures.show(figure, "How far a change of one latent number reaches, by pixel and by square.")

# %% neighbourhood-claims tags=check
wide = scenes((5,), size=160)
z = stage.encode(wide)
touched = z.clone()
touched[:, :, 4, 4] += 1
reach = 16 + 4 + 52  # from its pixels, 16 to 19, the convolutions reach 52 further
beyond = (stage.decode(touched) - stage.decode(z)).abs()[..., reach:].max()
print(f"a square of 8 x 8 pixels has {inside[1]:.0%} of the change, one of 16 x 16 {inside[3]:.0%}")
print(f"out of all convolutions' reach, a pixel still moves by {float(beyond):.5f}")
assert inside[1] > 0.7 and inside[3] > 0.9, "A latent number should be a local thing."
assert beyond > 1e-6, "GroupNorm's mean and variance are the whole picture's."

# %% neighbourhood-read [markdown]
r"""
**What to see.** A bright spot about two latents wide, and a glow that fades with distance. Nearly
all of the change is in the next few pixels, though the convolutions could reach 52 pixels to each
side. GroupNorm reaches everywhere: a moved mean moves every pixel, by very little.

So this is no code in which one number means "night" and another "house". It is a picture with the
fine detail taken out. The paper wants it so: meaning is left to diffusion. What can one calculate
with such a code? Move in a straight line to another scene; or add the difference between the mean
latents of night and day. In a running kernel there are menus below the pictures.
"""

# %% knobs tags=figure
from ldm_lite.course import widgets
from ldm_lite.data.scenes import read_label

many, times = scenes(rows := range(96 if fast else 384)), Scenes("test").batch(rows)["label"] // 4
latents, days = torch.cat([*map(stage.encode, many.split(32))]), (times == 1).nonzero().flatten()
codes = {"latent": latents, "pixels": many}


def draw(space, move, scene):
    code, start = codes[space], codes[space][days[scene]]
    night = code[times == 3].mean(0) - code[times == 1].mean(0)  # times: dawn, day, dusk, night
    step = night if move == "to night" else code[days[scene + 1]] - start
    path = start + torch.linspace(0, 1, 5, device=device).view(-1, 1, 1, 1) * step
    return (path if space == "pixels" else stage.decode(path)).clamp(-1, 1)


menus = {"space": ("latent", "pixels"), "move": ("to another", "to night"), "scene": range(12)}
shown = [{"space": "latent", "move": "to another", "scene": 3}, {"space": "pixels"}]
shown += [{"move": "to night"}, {"space": "pixels", "move": "to night"}]
words = "A day scene moves in four steps to another one, and to night, in latents and in pixels."
panel = widgets.knobs(draw, choices=menus, rows=shown, words=words)

# %% knobs-claims tags=check
night = latents[times == 3].mean(0) - latents[times == 1].mean(0)
after, before = read_label(stage.decode(latents[days] + night)), read_label(many[days])
dark, same = (
    float((after // 4 == 3).float().mean()),
    float((after % 4 == before % 4).float().mean()),
)
print(f"{dark:.0%} of the day scenes read back as night, {same:.0%} with the ground they had")
assert dark > 0.7, "Night minus day is a direction in the latent."
assert same > 0.6, "... which leaves the rest in place."

# %% knobs-read [markdown]
r"""
**What to see.** Half way, both spaces show both scenes at once: two suns, a house in a tree. The
latent's row keeps its contrast and changes its mind faster; grass turns to snow by way of sand.
Night can be added in either; the latent's way leads through dusk, and stars come out. Things stay,
and so does a trace of the sun: where it stands in *this* picture no mean can know. There is little
here that pixels could not do.

## 8. The scale

Diffusion will add noise of deviation 1. How large are latents? A few lines measure it, over many
images and all elements together, and the package's `measure_scale` does the same. The result is
saved with the weights as `scale`, and `encode` multiplies by it.
"""

# %% scale tags=check
means = torch.cat([mine.moments(part)[0] for part in many.split(32)])  # not scaled
by_hand = float(1 / means.std())
by_package = copy.deepcopy(stage).measure_scale(many.split(32))
dusks = float(1 / means[times == 2].std())
single = torch.tensor([float(1 / part.std()) for part in means.split(8)])
print(f"by hand {by_hand:.3f}, by the package {by_package:.3f}, saved {float(stage.scale):.3f}")
print(f"single batches of 8: {float(single.min()):.3f} to {float(single.max()):.3f}", end="; ")
print(f"dusks only: {dusks:.3f}")
assert abs(by_hand / by_package - 1) < 0.01, "1 / standard deviation, over all elements."
assert abs(by_package / float(stage.scale) - 1) < 0.05, "From training images, true of others."
assert dusks > 1.04 * by_hand, "A scale belongs to a data set: dusks are another one."
assert "scale" in stage.state_dict(), "It must be saved, or decode divides by another number."

# %% scale-figure tags=figure
from ldm_lite.diffusion import VariancePreserving

t = torch.tensor([0.05, 0.3, 0.7])
alpha, sigma = (weight.float().view(-1, 1, 1, 1).to(device) for weight in VariancePreserving()(t))
eps = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
one, deviations = stage.encode(many[1:2]), (0.2, 1.0, 5.0)
figures.pictures(
    [stage.decode((alpha * s * one + sigma * eps) / (alpha * s)) for s in deviations],
    "A latent made to have standard deviation 0.2, 1 and 5, noised at three times, then decoded.",
    above=[f"t = {float(moment):g}" for moment in t],
    left=[f"deviation {s:g}" for s in deviations],
)

# %% scale-read [markdown]
r"""
**What to see.** The noise is the same everywhere. Too small a latent has drowned at once: a
network would spend nearly all times on noise. Too large a one is clean until late, and then
everything happens in a few steps. A schedule is made for one size.

The original takes the first training batch for this [1]. Our batches of eight differ by some per
cent, dusks from the rest by more, which does little harm. Another encoder has quite another
number: 0.18215, the famous one of Stable Diffusion, is a fact about one encoder and one data set,
no constant to copy.

## 9. Why noise is not a picture

The KL term pulls every latent towards $\mathcal N(0, 1)$, and the scale makes the variance 1. Can
we not draw from $\mathcal N(0, 1)$ and decode? Compare first how latents are spread.
"""


# %% covariance tags=figure
def resemblance(d, k):
    """Correlation of latents at k positions' distance: sideways, and up and down."""
    sideways, vertical = d[..., k:] * d[..., : 16 - k], d[:, :, k:] * d[:, :, : 16 - k]
    return [float(pairs.mean() / d.square().mean()) for pairs in (sideways, vertical)]


d = latents - latents.mean(0)
noise = torch.randn(d.shape, generator=torch.Generator().manual_seed(0))
curves = torch.tensor([[*resemblance(d, k), resemblance(noise, k)[0]] for k in range(9)])
figure, (left, right) = figures.canvas(8, 2.8, columns=2)
left.plot(curves, "o-", label=("latents, sideways", "latents, up and down", "N(0, 1)"))
left.set(xlabel="distance in positions", title="correlation", ylim=(-0.05, 1.05))
left.legend()
bins = torch.linspace(-4, 4, 81)
right.hist(latents.flatten().cpu().numpy(), bins.tolist(), density=True, label="latents", alpha=0.6)
right.plot(bins, Normal(0.0, 1.0).log_prob(bins).exp(), color=figures.GREEN, label="N(0, 1)")
right.set(title="all latent numbers", yticks=[])
right.legend()
figures.show(figure, "Left: correlation of latents at a distance. Right: histogram of all latents.")
print("at distance 1:", ", ".join(f"{float(value):.2f}" for value in curves[1]))
assert curves[1, :2].min() > 0.35 > 0.1 > curves[1, 2].abs(), "Neighbours know about each other."

# %% covariance-read [markdown]
r"""
**What to see.** Right, nothing to complain of: mean 0, variance 1, nearly a bell. Left, the
difference. A latent's neighbours, even far ones, resemble it; in $\mathcal N(0, 1)$ they know
nothing of each other. In the terms of section 6, $q(z)$ is far from $p$.

Mean and covariance of $n$ latents $z_i$ can be imitated exactly, by a Gaussian again:

$$z = \bar z + \frac{1}{\sqrt{n - 1}} \sum_{i=1}^{n} a_i\,(z_i - \bar z), \qquad a_i \sim \mathcal
N(0, 1)$$
"""

# %% prior tags=figure
from ldm_lite.features import Features
from ldm_lite.metrics import fid

generator, n, count = torch.Generator().manual_seed(0), len(d), 48 if fast else 128
a = torch.randn(count, n, generator=generator).to(device)
white = torch.randn(count, 3, 16, 16, generator=generator).to(device)
gaussian = latents.mean(0) + torch.einsum("kn,ncyx->kcyx", a, d) / (n - 1) ** 0.5
sources = {"N(0, 1)": white, "Gaussian with\ntheir covariance": gaussian, "of images": latents}
decoded = {name: stage.decode(z[:count]).clamp(-1, 1) for name, z in sources.items()}
features = Features("scenes").to(device)
real = features(scenes(range(1000, 1000 + count)))
distances = [fid(real, features(images)) for images in decoded.values()]
figures.pictures(
    [images[:4] for images in decoded.values()],
    "What the decoder makes of noise, of a Gaussian with the mean and covariance of latents, and "
    "of the latents of images.",
    left=list(decoded),
)
print("distance to real scenes (FID):", ", ".join(f"{value:.0f}" for value in distances))
assert distances[0] > 3 * distances[1] > 9 * distances[2], "Each step should come much nearer."

# %% prior-read [markdown]
r"""
**What to see.** Above, rubble. In the middle, with the right mean and covariance, there is sky
above ground, in one light, and not a thing that is a thing: covariance knows pairs, and a
house is more than pairs. Below, what a perfect model of $q(z)$ would draw.

Here is the reason for the other half of the course. A KL term strong enough to make $q(z)$ normal
would collapse the latent. So the leash stays loose, and a diffusion model learns $q(z)$ as it is.

## 10. How small can a latent be?

The package has first stages of several downsampling factors $f$, trained at equal compute with the
same loss: $w = 10^{-3}$ and the two terms of notebook 03. How many numbers has a latent, what do
its nats come to in bits per pixel, and how good are the pictures?
"""

# %% rate-table tags=check
import math

from ldm_lite.config import read
from ldm_lite.folders import found as folder

compared = ("scenes-kl-f2", "scenes-kl-f4", "scenes-kl-f8", "scenes-kl-f16")
judged, table = x if fast else many[:96], {}
for name in compared:
    model = load_first_stage(name).to(device).requires_grad_(False)
    code = model.code(judged, sample=False)
    pictures = model.picture(code.z).clamp(-1, 1)
    card = read(folder(name) / "metrics.json")  # of 2048 other images
    numbers, decibels = code.mean[0].numel(), float(psnr(pictures, judged).mean())
    bits = float(code.penalty.mean()) / math.log(2) / 64**2
    table[model.f] = card | {"numbers": numbers, "bits": bits, "pictures": pictures}
    print(f"f = {model.f:2d}: {numbers:4d} numbers, {bits:.2f} bits per pixel", end="; ")
    print(f"{decibels:.1f} dB here, {card['psnr']:.1f} on the card, rFID {card['rfid']:.2f}")
    assert abs(decibels - card["psnr"]) < 2, "A card must be true of other images, too."
at = {f: torch.tensor([row["bits"], row["psnr"]]) for f, row in table.items()}
(coarse_bits, coarse), (fine_bits, fine) = at[4] - at[8], at[2] - at[4]
assert coarse / coarse_bits > 1.5 * fine / fine_bits > 0, "The first bits should buy the most."

# %% rate-table-read [markdown]
r"""
rFID is the distance between the features of pictures and of their reconstructions: 0 if the sets
look alike. PSNR compares pixel by pixel. Here are some of the pictures.
"""

# %% rate-pictures tags=figure
chosen = [1, 3, 9]
figures.pictures(
    [judged[chosen], *(row["pictures"][chosen] for row in table.values())],
    "Three test images, and their reconstructions by first stages of rising downsampling factor.",
    left=("image", *(f"f = {f}\n{row['numbers']} numbers" for f, row in table.items())),
)

# %% rate-pictures-read [markdown]
r"""
**What to see.** At $f = 2$ you have to look for a difference. At 4 every thing is in its place. Its
texture is there, but made up: other blades, other ripples, the work of the critic of notebook 03.
At 8, with a third of the numbers, *structure* goes: houses lose their colours, windows glow where
none were, sails melt. It is the border that notebook 01 found in JPEG. First goes what nobody
misses, then what everybody does. $f = 16$ has as many numbers as 8, in 16 channels instead of 4,
and is a ruin: where something stood, and hardly what.
"""

# %% rate-curve tags=figure
figure, axes = figures.canvas(8, 2.8, columns=2)
for axis, name, up in zip(axes, ("psnr", "rfid"), (-13, 6)):
    bits, values = ([row[key] for row in table.values()] for key in ("bits", name))
    axis.plot(bits, values, "o-")
    axis.set(xlabel="bits per pixel", xmargin=0.15, ymargin=0.15)
    for f, place in zip(table, zip(bits, values)):
        axis.annotate(f"f = {f}", place, xytext=(7, up), textcoords="offset points")
axes[0].set(title="PSNR, dB")
axes[1].set(title="rFID, smaller is better", yscale="log")
figures.show(figure, "PSNR, left, and rFID, right, of each first stage against its rate.")

# %% rate-curve-read [markdown]
r"""
**What to see.** A rate–distortion curve, as in notebook 01, and of the same form. The first bits
buy most: from $f = 8$ to 4 a bit per pixel is worth twice as many decibels as from 4 to 2, and
more. What a small $f$ still buys is grain, which a diffusion model then has to learn. $f = 16$
falls below the curve: it has not yet learnt to fill its numbers.

| published, ImageNet [1] | numbers | PSNR, dB | rFID |
|---|---|---|---|
| kl-f4, 3 channels | 12,288 | 27.53 | 0.27 |
| kl-f8, 4 channels | 4,096 | 24.19 | 0.90 |
| kl-f16, 16 channels | 4,096 | 24.08 | 0.87 |
| kl-f32, 64 channels | 4,096 | 22.27 | 2.04 |

The paper's own: f8 and f16 have equally many numbers and are equally good, f32 is not. Theirs took
hundreds of thousands of steps, ours 4,300. So count the numbers first, and $f$ second. Which is
best for diffusion is a question for notebook 13.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below.
"""

# %% translate [exercise] title="Translate the weight" difficulty=1 minutes=6
r"""
The paper adds the L1 error, *summed* over an image, and $w$ times the KL, *summed* over the latent.
Another code takes the *mean* of each: the L1 over the elements of the RGB image, the KL over those
of the latent. Which weight must it use for the same result, up to one factor for both terms?
"""


# %% [stub]
def translated(w, f, channels):
    return ...  # the weight on the mean KL


# %% [check]
from ldm_lite.course.checks import check

hint = "translated still returns ...: divide the summed loss by the numbers in the image."
with check("Translate the weight", hint) as c:
    for w, f, channels in ((1e-6, 4, 3), (2.0, 8, 4), (0.5, 2, 7)):
        error, price = torch.rand(3, 8 * f, 24 * f), torch.rand(channels, 8, 24)
        summed = (error.sum() + w * price.sum()) / error.numel()
        right = w * price.numel() / error.numel()
        assert abs(summed - error.mean() - right * price.mean()) < 1e-5, "The two losses agree."
        mistakes = {
            "Upside down: one number of the latent stands for many of the image.": w**2 / right,
            "Both sides shrink by f.": right * f,
            "Count the channels, too: the image has 3.": w / f**2,
        }
        why = f"Wrong for w = {w}, f = {f}, {channels} channels."
        c.close(translated(w, f, channels), right, why, 1e-3, 0, mistakes)


# %% [solution]
def translated(w, f, channels):
    return w * channels / (3 * f**2)  # latent's numbers for each of the image's


# %% [wrong]
def translated(w, f, channels):
    return w * 3 * f**2 / channels


# %% stream [exercise] title="Measure the scale of a stream" difficulty=2 minutes=8
r"""
`batches` yields latents (B, C, h, w). Return 1 / the standard deviation of all their elements
together, with one batch in memory at a time. Batches may differ in size and in brightness, and the
mean need not be zero.
"""


# %% [stub]
def measured(batches):
    return ...


# %% [check]
def stream():
    torch.manual_seed(0)
    for size, mean, spread in ((3, 1.0, 0.5), (8, -2.0, 1.5), (1, 4.0, 3.0), (5, 0.5, 1.0)):
        yield mean + spread * torch.randn(size, 2, 5, 7)


hint = "measured still returns ...: which three sums are enough?"
with check("Measure the scale of a stream", hint) as c:
    parts = list(stream())
    whole = torch.cat(parts)
    stds, sizes_ = torch.tensor([float(p.std()) for p in parts]), torch.tensor([3.0, 8.0, 1.0, 5.0])
    within = ((stds**2 * sizes_).sum() / 17) ** -0.5
    mistakes = {
        "A mean of deviations is not the deviation of all: keep sums instead.": 1 / stds.mean(),
        "You average 1 / deviation over batches; keep sums instead.": (1 / stds).mean(),
        "Batches differ in their mean, and that is spread as well.": within,
        "The mean is not zero: take it off.": 1 / whole.square().mean().sqrt(),
        "You return the deviation; the scale divides by it.": whole.std(),
    }
    c.close(measured(stream()), 1 / whole.std(), "Not 1 / deviation.", rtol=5e-3, mistakes=mistakes)


# %% [solution]
def measured(batches):
    n = first = second = 0.0
    for z in batches:
        z = z.double()
        n, first, second = n + z.numel(), first + z.sum(), second + z.square().sum()
    return (second / n - (first / n) ** 2) ** -0.5


# %% [wrong]
def measured(batches):
    deviations = [z.std() for z in batches]
    return 1 / (sum(deviations) / len(deviations))


# %% reach [exercise] title="How far can a latent see?" difficulty=2 minutes=10
r"""
A stack of convolutions is a list of (kernel, stride). How many input pixels, in a row, can one
output depend on? A kernel of $k$ adds $k - 1$ neighbours, and neighbours lie further apart after
each stride. Then ask it about our encoder: `encoder_layers` has its convolutions in order.
"""


# %% [stub]
def receptive(layers):
    return ...  # pixels on a side


# %% [check]
block = [(3, 1), (3, 1)]
encoder_layers = [(3, 1), *block, (3, 2), *block, (3, 2), *block, *block, *block, (3, 1)]


def footprint(layers):  # the same, asked of autograd
    h = pixels = torch.ones(1, 1, 401, requires_grad=True)
    for kernel, stride in layers:
        h = F.conv1d(h, torch.ones(1, 1, kernel), stride=stride)
    h[0, 0, h.shape[2] // 2].backward()
    return int((pixels.grad != 0).sum())


hint = "receptive still returns ...: keep two numbers, how far apart and how many so far."
others = [(5, 1)], [(3, 2), (3, 1)], [(3, 1), (4, 2), (1, 1), (3, 2), (5, 1)]
with check("How far can a latent see?", hint, "More than the 64 pixels of our pictures.") as c:
    for layers in (*others, encoder_layers):
        mistakes = {
            "Neighbours lie further apart after a stride.": 1 + sum(k - 1 for k, _ in layers),
            "Start with the one pixel itself.": footprint(layers) - 1,
        }
        c.close(receptive(layers), footprint(layers), f"Wrong for {layers[:5]}.", mistakes=mistakes)


# %% [solution]
def receptive(layers):
    seen, apart = 1, 1
    for kernel, stride in layers:
        seen += (kernel - 1) * apart
        apart *= stride
    return seen


# %% [wrong]
def receptive(layers):
    return 1 + sum((kernel - 1) for kernel, stride in layers)


# %% break-it [markdown]
r"""
### Break it: half of a half

A bottleneck of many private codes. We put it into our trained autoencoder, and look at pictures
and PSNR.
"""


# %% broken tags=figure
def suspect(mean, logvar, eps):
    return mean + logvar.exp() * eps


torch.manual_seed(0)
eps = torch.randn_like(mean)
ours, theirs = (mine.picture(rule(mean, logvar, eps)) for rule in (drawn, suspect))
decibels = [float(psnr(y.clamp(-1, 1), x).mean()) for y in (ours, theirs)]
labels = ("image", f"ours\n{decibels[0]:.2f} dB", f"suspect\n{decibels[1]:.2f} dB")
words = "Three images, decoded from latents drawn by our rule, and by the function suspect."
figures.pictures([x[:3], ours[:3], theirs[:3]], words, left=labels)
assert abs(decibels[0] - decibels[1]) < 0.1, "Nobody would see this, and PSNR does not either."

# %% broken-read [markdown]
r"""
**What to see.** Nothing, and that is the point. Where $\sigma$ is small it hardly matters how
small, so the pictures are equal, and the PSNR is no worse. In training, too, the loss would fall.
But latents are drawn with the deviation $\sigma^2$, while the KL term believes in $\sigma$ and
charges for another distribution than the one that is drawn. No picture shows it. Write the test
that does.
"""

# %% catch-it [exercise] title="Catch it" difficulty=3 minutes=10
r"""
Write `is_sampler(rule)`: `True` if `rule(mean, logvar, eps)` draws from $\mathcal N(\mu,
\sigma^2)$ *and* lets the right gradients pass, `False` if not. You may call it with any tensors.
The check tries right rules and wrong ones, `suspect` among them.
"""


# %% [stub]
def is_sampler(rule):
    return ...


# %% [check]
rules = {
    "the right rule": (drawn, True),
    "the same with a square root": (lambda m, v, e: m + v.exp().sqrt() * e, True),
    "suspect": (suspect, False),
    "one that always returns the mean": (lambda m, v, e: m + 0 * v * e, False),
    "one that forgets the mean": (lambda m, v, e: 0 * m + (v / 2).exp() * e, False),
    "one that takes the log variance for a deviation": (lambda m, v, e: m + v * e, False),
    "one whose deviation gets no gradient": (lambda m, v, e: m + (v / 2).exp().detach() * e, False),
    "one whose mean gets no gradient": (lambda m, v, e: m.detach() + (v / 2).exp() * e, False),
}
with check("Catch it", "is_sampler still returns ...", "Milliseconds, and no picture.") as c:
    for name, (rule, verdict) in rules.items():
        mine_ = is_sampler(rule)
        c.answered(mine_)
        c.that(bool(mine_) == verdict, f"Your test says {bool(mine_)} to {name}.")


# %% [solution]
def is_sampler(rule):
    mean, logvar = torch.randn(2, 3, 4, 5).requires_grad_(True)
    eps = torch.randn(3, 4, 5)
    z = rule(mean, logvar, eps)
    slopes = torch.autograd.grad(z.sum(), (mean, logvar), allow_unused=True)
    noise = ((logvar / 2).exp() * eps).detach()
    exact = torch.ones(3, 4, 5), noise / 2
    passed = all(a is not None and torch.allclose(a, b, atol=1e-4) for a, b in zip(slopes, exact))
    return passed and torch.allclose(z.detach(), mean.detach() + noise, atol=1e-4)


# %% [wrong]
def is_sampler(rule):
    mean, logvar, eps = torch.randn(3, 3, 4, 5)
    return torch.allclose(rule(mean, logvar, eps), mean + (logvar / 2).exp() * eps, atol=1e-4)


# %% summary [markdown]
r"""
## Summary

- Three blocks are enough: a residual one, down, up. Paddings that look wrong are part of the
  weights.
- A latent is drawn as $\mu + \sigma\varepsilon$, so that gradients pass. The KL term is a price in
  nats, and a weight means nothing without its units.
- At a high price the latent carries nothing. At the paper's it is a leash, and the latent a small
  picture.
- Its scale is measured on data and saved. Its numbers have unit variance, and are anything but
  independent.
- That is why noise does not decode, and why there is a diffusion model: to learn what the KL term
  was too cheap to enforce.

**What next.** The mean of two sharp pictures is a blurred one, and L1 alone leads to something
like it. Notebook 03 adds the two terms that make reconstructions sharp.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022; section 3.1, appendices D.1 and G, table 8. [arXiv
   2112.10752](https://arxiv.org/abs/2112.10752)
2. Y. Wu, K. He. *Group Normalization.* ECCV 2018. [arXiv
   1803.08494](https://arxiv.org/abs/1803.08494)
3. K. He, X. Zhang, S. Ren, J. Sun. *Deep Residual Learning for Image Recognition.* CVPR 2016.
   [arXiv 1512.03385](https://arxiv.org/abs/1512.03385)
4. A. Odena, V. Dumoulin, C. Olah. *Deconvolution and Checkerboard Artifacts.* Distill, 2016.
   [doi 10.23915/distill.00003](https://doi.org/10.23915/distill.00003)
5. D. P. Kingma, M. Welling. *Auto-Encoding Variational Bayes.* ICLR 2014. [arXiv
   1312.6114](https://arxiv.org/abs/1312.6114)
6. M. D. Hoffman, M. J. Johnson. *ELBO surgery: yet another way to carve up the variational evidence
   lower bound.* NIPS 2016 workshop on Advances in Approximate Bayesian Inference.
"""
