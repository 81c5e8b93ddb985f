r"""
title: The UNet
goal: Build the paper's denoiser by hand, weigh its parts, and tell a healthy one from a broken one
needs: Python and some PyTorch; notebook 05 helps and is not required
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: a UNet that equals the package's, and a bill for the paper's 274 million parameters
objectives:
  - say what a sinusoidal embedding lets a network read from a step number
  - write the residual block, attention and the UNet, and check each against an authority
  - show by an experiment why skips are needed, and when they are not
  - measure what a network sees and what it costs, level by level
  - use four quick gates that find broken networks which run without a complaint
"""

# %% the-idea [markdown]
r"""
**What to see.** One box in colour: the denoiser. It is called at every step of sampling, nearly
all the time goes there, and it is the only part that knows what pictures look like from afar.

The paper took its network from guided diffusion [2], which grew out of DDPM's [1], which took the
shape from medical imaging [3]. It looks like a lot of machinery. It is five small ideas, and each
fits in a cell: a clock, a residual block, half and double size, attention, and skips.
"""

# %% job [markdown]
r"""
## 1. The job

The network gets a noised latent $z_t$ and a number that says *how* noised, the **clock**. It
returns something of the same shape, from which a guess of the clean latent follows (notebook 05).
We load a trained one, and ask it about the same scene under more and more noise.
"""

# %% load
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_lite.condition import Condition
from ldm_lite.data import Scenes
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion

torch.set_grad_enabled(False)  # switched on where a gradient is what we look at
model = LatentDiffusion.load("scenes-ldm4").to(device)
diffusion, trained = model.diffusion, model.denoiser


def latents(split, rows):
    batch = Scenes(split=split, size=64).batch(rows)
    images = (batch["image"].float() / 127.5 - 1).to(device)
    z = torch.cat([model.first_stage.encode(part) for part in images.split(32)])
    return z, model.conditioner({"label": batch["label"].to(device)})


# %% job-figure tags=figure
z0, told = latents("test", [20, 60, 26, 53, 142, 148, 174, 98])
channels, decode = z0.shape[1], model.first_stage.decode
eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0)).to(device)


def noised(t):
    """The eight latents at time t, the time, and what the network's clock reads."""
    t = torch.full((len(z0),), t)
    return diffusion.noised(z0, eps, t), t, diffusion.schedule.clock(t).to(z0)


def guess(network, t):
    z, t, clock = noised(t)
    return diffusion.estimate(network(z, clock, told), z, t).z0


times = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
rows = [[f(t)[0] for t in times] for f in (lambda t: noised(t)[0], lambda t: guess(trained, t))]
figures.pictures(
    [decode(torch.stack(row)) for row in rows],
    "A scene with more and more noise, and the trained network's guess of the clean one; decoded.",
    above=[f"t = {t}" for t in times],
    left=("noised", "guess"),
)

# %% job-read [markdown]
r"""
**What to see.** On the left there is little to do and the guess is sharp. In the middle the network
must know what scenes look like. On the right nothing is left of the scene, and it answers with
a mean of all it can imagine for this class. One network does all this. Cleaning grain is local
work, imagining is not, so it needs to see near *and* far, and it needs to be told which is due.

## 2. What time is it?

The clock counts the steps of the chain, from 0 to 999. A single number is hard to read for a layer
that multiplies and adds. So we spread it over $w$ features, hands of clocks that turn at
different speeds [4], for $i = 0 \ldots w/2 - 1$:

$$e_i = \cos(c\, \omega_i), \quad e_{i + w/2} = \sin(c\, \omega_i), \qquad
  \omega_i = 10000^{-2i/w}$$
"""


# %% embedding tags=check
from ldm_lite.layers import sinusoidal


def embedding(clock, width):
    omega = 10000.0 ** (-2 * torch.arange(width // 2, device=clock.device) / width)
    angle = clock[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], 1)


e = embedding(c := torch.arange(1000.0), 64)
torch.testing.assert_close(e, sinusoidal(c, 64), atol=1e-3, rtol=0)
torch.testing.assert_close(e[7:] @ e[7:].T, e[:-7] @ e[:-7].T, atol=1e-3, rtol=0)  # 7 steps on

# %% time-figure tags=figure
figure, (left, right) = figures.canvas(9.8, 3.2, columns=2)
left.imshow(e.T, aspect="auto", cmap="RdBu_r", interpolation="nearest")
left.set(title="64 features of the clock", xlabel="clock", ylabel="feature")
left.grid(False)
for width, colour in ((8, figures.LINE), (64, figures.BLUE)):
    likeness = embedding(c, width) @ embedding(c[500:501], width)[0] / (width / 2)
    right.plot(c - 500, likeness, color=colour, lw=1.2, label=f"w = {width}")
right.set(title="likeness with step 500", xlabel="difference in steps")
right.legend(loc="upper right")
figures.show(figure, "The embedding of all steps, and its likeness (cosine) with that of step 500.")

# %% time-read [markdown]
r"""
**What to see.** On the left, fast hands above, slow ones below. On the right, steps that are near
are more alike than those far away, and by how much depends on their difference alone, as we
asserted. Eight features are too few: likeness comes back again and again.

What can the next layer *read*? A linear layer reads a weighted sum. We fit the best one, with a
price on large weights, for two things a denoiser may want: the signal-to-noise ratio, and "is it
about step 500?". We give it the bare number, the embedding, and the embedding of $t$ in
[0, 1], a classic mistake.
"""


# %% read-figure tags=figure
def readable(features, target, price=1e-4):
    """The best linear reading of target (n,) from features (n, k)."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    weights = torch.linalg.solve(x.T @ x + price * len(x) * torch.eye(x.shape[1]), x.T @ target)
    return x @ weights


alpha, sigma = diffusion.schedule((c + 1) / 1000)
wanted = {"log SNR": 2 * (alpha / sigma).log10(), "near 500": torch.exp(-(((c - 500) / 50) ** 2))}
given = {"the number": c[:, None] / 1000, "t in [0, 1]": embedding(c / 1000, 64), "embedding": e}
figure, axes = figures.canvas(9.5, 3.2, columns=2)
found = {}
for axis, (title, target) in zip(axes, wanted.items()):
    axis.plot(c, target, color=figures.LINE, lw=5, label="wanted")
    for name, features in given.items():
        reading = readable(features, target.double())
        found[name] = 1 - float((reading - target).var() / target.var())
        axis.plot(c, reading, lw=1.3, label=f"{name}: {max(0, found[name]):.0%}")
    axis.set(title=title, xlabel="clock")
    axis.legend(title="read from", fontsize=8)
figures.show(figure, "Two functions of the clock, and the best linear readings from three codes.")
assert found["embedding"] > 0.9, "Hands of many speeds pick out any moment."
assert max(found["the number"], found["t in [0, 1]"]) < 0.3, "Slow hands and lines have no bump."

# %% read-read [markdown]
r"""
**What to see.** The grey band is wanted. From the embedding both can be read; the percentage is
the variance explained. The slow slope all of them give. The bump only the embedding does: the
bare number has a straight line to offer, and a clock in [0, 1] hardly more, as all its hands
barely move. Such a network trains, and its losses look fine; finer differences in time are just
hard to hear.

## 3. A block that is told the time

Most of the network is one block, repeated. It normalises, bends (SiLU) and convolves, twice,
and adds its input: with norms $N$, convolutions $C$, a linear layer $W$, and $S$ the identity or,
where the width changes, a 1×1 convolution,

$$h' = S h + C_2\, \mathrm{silu}\, N_2 \big( C_1\, \mathrm{silu}\, N_1 h
      + W\, \mathrm{silu}\, e \big)$$

First the norm. *GroupNorm* takes a picture's channels in groups, and gives each group mean 0 and
variance 1.
"""


# %% groupnorm tags=check
def group_norm(h, groups, eps=1e-5):
    g = rearrange(h, "b (g c) y x -> b g (c y x)", g=groups)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, keepdim=True, correction=0) + eps).sqrt()
    return g.reshape(h.shape)


h = torch.randn(3, 12, 5, 7)
torch.testing.assert_close(group_norm(h, 4), F.group_norm(h, 4))
alone = group_norm(h[:1], 4)
torch.testing.assert_close(group_norm(100 * h - 30, 4), group_norm(h, 4), atol=1e-4, rtol=1e-4)
assert torch.equal(group_norm(h, 4)[:1], alone), "Unlike BatchNorm: no picture sees another one."

# %% block-text [markdown]
r"""
The block is the equation. The other way to tell the time, `film`, lets it scale and shift *after*
the norm [2]; of the paper's models only the churches' has it. Parts have the package's names, so
that weights will fit.

Here is a thought before the check. An *added* time comes before a norm, and a norm removes means.
If it moves all channels of a group alike, is the block deaf to it?
"""

# %% block
from ldm_lite.layers import norm  # nn.GroupNorm, with the number of groups that suits a width


def conv3(c_in, c_out, stride=1):
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1)


def zeroed(layer):
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class TimedBlock(nn.Module):
    def __init__(self, c_in, c_out, emb, film=False):
        super().__init__()
        self.film = film
        self.norm1, self.conv1 = norm(c_in, 1e-5), conv3(c_in, c_out)
        self.emb = nn.Linear(emb, 2 * c_out if film else c_out)
        self.norm2, self.conv2 = norm(c_out, 1e-5), zeroed(conv3(c_out, c_out))  # zero: section 8
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def time(self, emb):
        return self.emb(F.silu(emb))[:, :, None, None]  # (B, C) -> (B, C, 1, 1): for every place

    def forward(self, h, emb):
        x, time = self.conv1(F.silu(self.norm1(h))), self.time(emb)
        if self.film:
            scale, shift = time.chunk(2, 1)
            x = self.norm2(x) * (1 + scale) + shift
        else:
            x = self.norm2(x + time)
        return self.skip(h) + self.conv2(F.silu(x))


# %% block-check tags=check
from ldm_lite.layers import ResBlock


def shaken(module):
    """With PyTorch's usual start where ours is zero, so that everything matters."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            layer.reset_parameters()
    return module


h, emb = torch.randn(3, 12, 5, 7), torch.randn(3, 10)
for film in (False, True):
    theirs, mine = shaken(ResBlock(12, 20, 10, film)), TimedBlock(12, 20, 10, film)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(h, emb), theirs(h, emb))
    size = 20 // mine.norm2.num_groups  # now the time says the same to all channels of a group
    mine.emb.weight.copy_(mine.emb.weight[::size].repeat_interleave(size, 0))
    change = float((mine(h, emb) - mine(h, emb.flip(0))).abs().max())
    print(f"film {film!s:5}: another time changes the output by {change:.1e}")
    assert (change > 1e-3) == film, "A shift of a whole group does not survive the next norm."

# %% resize [markdown]
r"""
It is. An added time works only through differences *within* a group; FiLM is heard in any case.

## 4. Half the size and back

To see far at low cost, make the map small. Down: a convolution with stride 2. Up: repeat each
value, then a convolution. Why not a transposed convolution, the exact mirror of a strided one?
Give both a constant map and random weights.
"""


# %% resize-check tags=check
class Halve(nn.Module):
    def __init__(self, width, stride=2):
        super().__init__()
        self.conv = conv3(width, width, stride)

    def forward(self, h, emb=None):
        return self.conv(h)


class Double(Halve):
    def forward(self, h, emb=None):
        return self.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3))


from ldm_lite.layers import Downsample, Upsample

h = torch.randn(2, 5, 6, 14)
for mine, theirs in ((Halve(5), Downsample(5, one_sided=False)), (Double(5, 1), Upsample(5))):
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(h), theirs(h))

# %% checker-figure tags=figure
torch.manual_seed(3)
flat = torch.ones(1, 6, 10, 10)
mirrored = nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1)(flat)
repeated = conv3(6, 3)(flat.repeat_interleave(2, 2).repeat_interleave(2, 3))
inside = [out[:, :, 2:-2, 2:-2] for out in (mirrored, repeated)]
figures.pictures(
    torch.cat([out / out.abs().amax() for out in inside]),
    "A constant map doubled by a transposed convolution, and by repeating and convolving.",
    above=("transposed", "repeat, convolve"),
)
ripple = [float(out.std((2, 3)).mean()) for out in inside]
assert ripple[1] < 1e-6 < 0.02 < ripple[0], "Only one of them keeps a constant map constant."

# %% checker-read [markdown]
r"""
**What to see.** With stride 2, a 3×3 kernel reaches some pixels with four weights, some with two,
some with one. The result is a chequerboard that the network would have to unlearn [5].

## 5. Everyone looks at everyone

Convolutions pass news on from neighbour to neighbour. *Self-attention* lets every position look
at all others at once. Each sends out a query $q$, a key $k$ and a value $v$; where query and key
agree, the value is taken:

$$A = \mathrm{softmax}\big( Q K^\top / \sqrt{d} \big), \qquad \text{out} = A V$$
"""


# %% attend tags=check
def attention(q, k):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


q, k, v = torch.randn(3, 2, 4, 35, 8)  # each (batch, heads, positions, d)
a = attention(q, k)
torch.testing.assert_close(a.sum(-1), torch.ones(2, 4, 35))  # each query gives away exactly 1
torch.testing.assert_close(a @ v, F.scaled_dot_product_attention(q, k, v))
print(f"{tuple(a.shape)}: for every head, each of 35 positions weighs all 35")


# %% look
class Look(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm, self.qkv = heads, norm(width, 1e-5), nn.Conv2d(width, 3 * width, 1)
        self.proj_out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, h):
        split = "b (heads three d) y x -> three b heads (y x) d"  # head by head: q, k, v, q, k, v
        q, k, v = rearrange(self.qkv(self.norm(h)), split, heads=self.heads, three=3)
        self.weights = attention(q, k)
        x = rearrange(self.weights @ v, "b heads (y x) d -> b (heads d) y x", y=h.shape[2])
        return h + self.proj_out(x)


# %% look-check tags=check
from ldm_lite.layers import SelfAttention

h = torch.randn(2, 24, 5, 7)
for heads in (1, 2, 6):
    theirs, mine = shaken(SelfAttention(24, heads)), Look(24, heads)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(h), theirs(h))
places = torch.randperm(35)
shuffle = lambda h: h.flatten(2)[:, :, places].unflatten(2, (5, 7))
torch.testing.assert_close(mine(shuffle(h)), shuffle(mine(h)))
print("positions shuffled before or after: the same; attention does not know where anything is")

# %% look-read [markdown]
r"""
The last line surprises many. There are no position codes in this network. What it knows of places
it has from the borders of its convolutions, which pad with zeros.

Note also that `heads` appears in no weight's shape. Remember this for the end.

## 6. The whole UNet

One step is a residual block, attention if the level has it, and a change of size if the level
ends. On the way down every result is kept; on the way up each step gets one of them back, the
latest first, beside its input.
"""


# %% step
class Step(nn.Module):
    def __init__(self, res, attend=None, resample=None):
        super().__init__()
        self.res, self.attend, self.resample = res, attend, resample

    def forward(self, h, emb):
        h = self.res(h, emb)
        h = self.attend(h) if self.attend else h
        return self.resample(h, emb) if self.resample else h


# %% unet-text [markdown]
r"""
And the network. The constructor keeps a list of the skips' widths, the forward pass one of the
skips. `join` sets a skip beside its input; it has a name so that we can tamper with it later.
"""


# %% unet
class Mine(nn.Module):
    join = staticmethod(lambda i, h, skip: torch.cat([h, skip], 1))

    def __init__(self, c):
        super().__init__()
        emb, self.config = 4 * c.width, c
        layers = lambda n: nn.Sequential(nn.Linear(n, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.time, self.vector = layers(c.width), layers(c.vector) if c.vector else None
        self.stem, levels = conv3(c.channels, c.width), [*enumerate(c.width * m for m in c.mult)]

        def step(c_in, width, attends, larger=None):
            attend = Look(width, c.split(width)[0]) if attends else None
            return Step(TimedBlock(c_in, width, emb, c.film), attend, larger)

        self.down, self.up, h, skips = nn.ModuleList(), nn.ModuleList(), c.width, [c.width]
        for i, width in levels:
            if i:
                self.down.append(Halve(h))
                skips.append(h)
            for _ in range(c.blocks):
                self.down.append(step(h, width, 2**i in c.attend_at))
                skips.append(h := width)
        self.mid = nn.ModuleList([step(h, h, True), step(h, h, False)])
        for i, width in levels[::-1]:
            for j in range(c.blocks + 1):
                larger = Double(width, 1) if i and j == c.blocks else None
                self.up.append(step(h + skips.pop(), h := width, 2**i in c.attend_at, larger))
        self.norm_out, self.conv_out = norm(h, 1e-5), zeroed(conv3(h, c.channels))

    def forward(self, z, clock, cond=None):
        emb = self.time(embedding(clock, self.config.width).to(z))
        emb = emb + self.vector(cond.vector) if self.vector else emb
        skips = [h := self.stem(z)]
        for step in self.down:
            skips.append(h := step(h, emb))
        for step in self.mid:
            h = step(h, emb)
        for i, step in enumerate(self.up):
            h = step(self.join(i, h, skips.pop()), emb)
        return self.conv_out(F.silu(self.norm_out(h)))


# %% unet-check tags=check
from ldm_lite.unet import UNet, UNetConfig

z, clock = torch.randn(3, 2, 12, 20), torch.tensor([3.0, 640.0, 999.0])
shape = {"channels": 2, "width": 8, "mult": (1, 2, 3), "head_channels": 4}
for config in (UNetConfig(**shape, attend_at=(2, 4)), UNetConfig(**shape, blocks=1, film=True)):
    theirs, mine = shaken(UNet(config)), Mine(config)
    mine.load_state_dict(theirs.state_dict())
    expected = theirs(z, clock, Condition())
    torch.testing.assert_close(mine(z, clock), expected, atol=1e-4, rtol=1e-4)
own = Mine(trained.config).to(device)
own.load_state_dict(trained.state_dict())
torch.testing.assert_close(guess(own, 0.3), guess(trained, 0.3), atol=1e-4, rtol=1e-4)

# %% draw-figure tags=figure
from ldm_lite.course import drawings

words = "The trained UNet: a box is a step, with its channels and its map's size. Blue: residual "
words += (
    "block, purple: with attention, orange: halving, grey: first and last layer. Arrows: skips."
)
drawings.unet(own.config, z0.shape[2], words)

# %% draw-read [markdown]
r"""
**What to see.** Read it from left to right, like the code. Every box left of the middle sends one
arrow, every box right of it receives one; the last one out is the first one in. There is one
more block per level on the way up, because the stem and the halvings send skips too.

Where do the parameters sit? We count them by part, then by kind.
"""

# %% params-check tags=check
count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())
of = lambda kind: [m for m in own.modules() if isinstance(m, kind)]
whole, parts = count(own), {name: count(part) for name, part in own.named_children()}
kinds = {"blocks": TimedBlock, "attention": Look, "sizes": Halve}
kinds = {name: count(*of(kind)) for name, kind in kinds.items()}
for table in (parts, kinds):
    print(", ".join(f"{name} {n / whole:.1%}" for name, n in table.items()))
print(f"together {whole:,}")
assert whole == sum(parts.values()) == count(trained), "Every parameter belongs to one part."
assert parts["up"] > 1.5 * parts["down"], "Upwards the blocks take skips in, and there are more."

# %% maps [markdown]
r"""
Well over half sits on the way up. And what does the trained attention look at? We choose
a position, and draw from where it takes its values, at half the latent's size.
"""

# %% maps-figure tags=figure
guess(own, 0.3)  # leaves the weights where they were computed
look = [s.attend for s in own.up if s.attend and s.attend.weights.shape[-1] == 64][-1]
rows, picture = [], decode(z0).cpu()
for i, (y, x) in ((0, (6, 2)), (3, (2, 5)), (6, (5, 5))):
    weights = look.weights[i, :, None, 8 * y + x].unflatten(2, (8, 8)).cpu()
    light = figures.enlarged(weights / weights.amax(), 64, 64)
    marked = picture[i : i + 1].clone()
    marked[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = torch.tensor([1.0, -1, -1])[:, None, None]
    rows.append(torch.cat([marked, (0.75 * (2 * light - 1) + 0.25 * picture[i])]))
words = "Three scenes with a place in red, and where the heads of one attention layer look from it."
above = ["from here", *(f"head {i + 1}" for i in range(look.heads))]
figures.pictures(rows, words, above=above)

# %% maps-read [markdown]
r"""
**What to see.** From the boat two heads look at the hull itself, and one at the sail above it; from
the sky one looks at the sun and two along the sky; from the foot of a tree at meadow and its edge.
Convolutions know what is next door. Attention gathers what belongs together, wherever it is.

## 7. Why skips?

On the way down the map loses detail. To say what noise was added, *every* value must be known:
noise cannot be compressed. So a narrow middle is hopeless, unless detail has another way. We
train a small UNet to predict noise, twice, with the same weights, pictures and noise. Once its
skips are zero.
"""


# %% hourglass
@torch.enable_grad()
def descend(net, loss, steps):
    """The values of loss(), while the net takes steps against its gradient."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        yield value.item()


lessons, _ = latents("train", range(128 if fast else 512))
tiny = UNetConfig(channels, width=16, mult=(1, 2, 2), blocks=1, attend_at=(4,), heads=2)
noise = Diffusion(VariancePreserving(), "eps")


def lesson(net):
    z = lessons[torch.randint(len(lessons), (16,)).to(device)]
    target, t = torch.randn(z.shape).to(device), noise.schedule.draw(16)
    return noise.loss(net, z, target, t).mean()


# %% hourglass-figure tags=figure,timeout-600
grid, final = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0), {}
figure, (left, right) = figures.canvas(9.5, 3.2, columns=2)
for name, keep in {"with skips": 1.0, "skips are zero": 0.0}.items():
    torch.manual_seed(0)
    net = Mine(tiny).to(device)
    net.join = lambda i, h, skip, keep=keep: torch.cat([h, keep * skip], 1)
    left.plot([*descend(net, lambda: lesson(net), 40 if fast else 300)], label=name)  # noqa: B023
    at = [noise.loss(net, z0, eps, torch.full((len(z0),), t)).mean().item() for t in grid]
    right.plot(grid, at, "o-")
    final[name] = at
left.set(title="in training", xlabel="step", ylabel="loss", ylim=(0, 1.15))
right.set(title="after it, on test latents", xlabel="time t", ylabel="loss", ylim=(0, 1.15))
left.legend(loc="center right")
figures.show(figure, "The loss of two twins, one without skips: in training, and then by noise.")
means = [sum(at) / len(grid) for at in final.values()]
print(f"test loss with skips {means[0]:.2f}, without {means[1]:.2f}")
assert means[0] < 0.7 * means[1], "With skips the network must be far ahead."
assert z0[0].numel() > 32 * 4 * 4, "The middle must be narrower than what has to pass."
assert final["skips are zero"][-1] > 0.5 > final["with skips"][-1], "At t = 1: copy the input."

# %% hourglass-read [markdown]
r"""
**What to see.** Without skips the loss stays near 1, which is what an output of zero gets. The
point on the far right says it all: at $t = 1$ the input *is* the noise, so the network only needs
to copy it, and the hourglass cannot. Its middle has 512 numbers, fewer than the noise.

So is it always the skips? Ask the trained network, which predicts $v$: zero those of one level,
and see what its guess lacks.
"""

# %% surgery-figure tags=figure
depth = len(own.config.mult)
cuts = {"all skips": []} | {f"none at 1/{2**i}": [depth - 1 - i] for i in range(depth)}
cuts["no skips"] = range(depth)  # counted from the deepest, as they are used


def guesses(t):
    """The guess without the skips of each cut."""
    for cut in cuts.values():
        kept = [float(i // (own.config.blocks + 1) not in cut) for i in range(len(own.up))]
        own.join = lambda i, h, skip, kept=kept: torch.cat([h, kept[i] * skip], 1)
        yield guess(own, t)
    del own.join  # as it was


seen = {t: [*guesses(t)] for t in (0.1, 0.8)}
words = "The guess with all skips, without those of one level, and without any, at two times."
shown = [decode(torch.stack([g[0] for g in row])) for row in seen.values()]
figures.pictures(shown, words, above=list(cuts), left=[f"t = {t}" for t in seen])
for t, row in seen.items():
    lost = [float((g - z0).square().mean()) for g in row]
    print(f"t = {t}: error", ", ".join(f"{name} {e:.3f}" for name, e in zip(cuts, lost)))
    most = lost[-1] / lost[0]
    assert most > 2 if t == 0.1 else most < 1.3, "Detail needs skips; without detail, no need."

# %% surgery-read [markdown]
r"""
**What to see.** Above, the skips at full size carry the picture's detail, those at half size
some, the deepest nearly nothing. Below, at much noise, you can cut them *all*, and the error
hardly grows. Ghosts of small things go, the scene stays: the middle does the imagining. Skips are
for what need not be understood, only kept.

## 8. Why start at zero?

Two kinds of layers start with zeros: the last convolution of each residual branch and attention,
and that of the whole network. So at the start each block is the identity, and the output is 0.
But is a network of zeros not dead?

**Predict before you run.** In the first training step, how many of the parameter tensors get a
gradient that is not zero? In the second, and the third?
"""


# %% waking tags=check
torch.manual_seed(0)
net, z, awake = Mine(tiny), torch.randn(8, channels, 16, 16), []
copy = lambda: (net(z, 100 * torch.arange(8.0)) - z).square().mean()
for loss in descend(net, copy, 4):
    awake.append(sum(bool(p.grad.any()) for p in net.parameters()))
    print(f"loss {loss:.3f}, {awake[-1]} of {len([*net.parameters()])} tensors feel a gradient")
assert awake[0] == 2, "First only the last convolution: behind its zeros nothing is felt."
assert 2 < awake[1] < awake[2], "Then the ends of the branches, and what lies on the open road."
assert awake[2] == len([*net.parameters()]), "And then everything."

# %% waking-read [markdown]
r"""
It wakes from the outside in, and all of it is awake in the third step. Zeros are harmless where
only *one* factor of a product is zero: its gradient has the other one in it. Two zeros in a row
never wake, as we will see.

What does it buy? In a deep stack without zeros, each block adds something random to the sum, and it
piles up. We try 32 blocks in a row. (The paper's network for faces has 22, as we will count.)
"""


# %% depth-figure tags=figure
figure, axis = figures.canvas(6, 2.8)
spread, emb = {}, torch.randn(4, 64)
for name, start in {"zeros": nn.Identity(), "no zeros": shaken}.items():
    h, spread[name] = torch.randn(4, 16, 8, 8), []
    for block in start(nn.ModuleList(TimedBlock(16, 16, 64) for _ in range(32))):
        h = block(h, emb)
        spread[name].append(float(h.std()))
    axis.plot(range(1, 33), spread[name], label=name)
axis.set(title="a stack of 32 blocks, untrained", xlabel="block", ylabel="deviation of h")
axis.legend()
figures.show(figure, "The standard deviation along 32 untrained blocks, with zeros and without.")
assert spread["no zeros"][-1] > 1.5 * spread["zeros"][-1], "Identities keep the scale."

# %% depth-read [markdown]
r"""
**What to see.** With zeros nothing changes along the stack, however deep. Without, the scale
grows from block to block. That matters with depth; our tiny UNet, when we tried, learned no
faster with zeros. What you always get is a first loss that you know. It must be the mean square
of the target, 1 for noise; if not, something is wrong before training has begun.

## 9. What it sees, and what it costs

How far does an output pixel see? Count kernels, or ask autograd: the gradient of one output with
respect to the whole input is zero where the network is blind. We take a UNet of two levels and
random weights, on a map of 96 × 96. By counting, its convolutions reach 30 pixels to each side.
"""


# %% reach-figure tags=figure
@torch.enable_grad()
def sensitivity(net, z, at):
    """(y, x) mean size of the gradient of one place of the output with respect to the input."""
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(z)[:, :, at, at].sum(), z)
    return gradient.abs().mean((0, 1)).cpu()


def seen(norms, attend):
    torch.manual_seed(0)
    net = shaken(Mine(UNetConfig(3, width=8, mult=(1, 2), blocks=1, heads=1)))
    for module in [m for m in net.modules() if hasattr(m, "attend") or hasattr(m, "norm1")]:
        if hasattr(module, "attend"):
            module.attend = module.attend if attend else None
        elif not norms:
            module.norm1, module.norm2 = nn.Identity(), nn.Identity()
    net.norm_out = net.norm_out if norms else nn.Identity()
    return sensitivity(lambda z: net(z, torch.zeros(2)), torch.randn(2, 3, 96, 96), 48)


names = ("convolutions", "+ attention", "+ GroupNorm", "+ both")
maps = dict(zip(names, (seen(n, a) for n, a in ((0, 0), (0, 1), (1, 0), (1, 1)))))
logs = {name: (m / m.amax()).clamp(min=1e-9).log10() for name, m in maps.items()}
words = "What the pixel in the middle depends on, in four UNets with random weights."
drawings.heat(logs, words, "log₁₀ gradient")

# %% reach-check tags=check
inside = (maps["convolutions"] > 0).nonzero()
reach = (48 - inside.amin(0)).tolist(), (inside.amax(0) - 48).tolist()
outside = maps["convolutions"] == 0
leaks = {name: float(m[outside].sum() / m.sum()) for name, m in maps.items()}
print(f"reach {reach}; share from outside:", ", ".join(f"{n} {s:.2%}" for n, s in leaks.items()))
assert reach == ([30, 30], [30, 30]), "Counted by hand: 30 pixels to each side."
assert all(maps[name].amin() > 0 for name in names[1:]), "These see the whole map."

# %% reach-read [markdown]
r"""
**What to see.** Convolutions alone see a square, and towards its edge hardly anything. With
attention the network sees everything, as promised. But so it does with GroupNorm: each value is
divided by a standard deviation *of the whole map*. Before training that is even the larger leak.
It is a crude sense, one mean and one variance a group, yet it tells every pixel how bright the
picture is.

That is what the network *could* use. What does the trained one use, if there is little noise and
if there is much?
"""

# %% trained-figure tags=figure
shares = {}
for t in (0.02, 0.1, 0.3, 0.6, 0.9):
    z, when, clock = noised(t)
    belief = lambda z: diffusion.estimate(trained(z, clock, told), z, when).z0  # noqa: B023
    seen_at = sensitivity(belief, z, 8)
    shares[f"t = {t}"] = seen_at / seen_at.sum()
words = "What the guess at one place of the latent depends on, at five times; roots of the shares."
drawings.heat({name: m.sqrt() for name, m in shares.items()}, words, "√ share")
near = {name: float(m[8, 8]) for name, m in shares.items()}
print("share of the place itself:", ", ".join(f"{name} {n:.0%}" for name, n in near.items()))
assert near["t = 0.02"] > 2 * near["t = 0.9"], "Less noise, nearer sight."

# %% trained-read [markdown]
r"""
**What to see.** With very little noise a value is guessed for a good part from itself; with more,
from its neighbours, and then from all over the map. Nobody programmed it: the clock decides how far
to look.

Now the price. Attention compares each of $n$ positions with every other. We measure one residual
block and one attention at the levels of the paper's CelebA-HQ network: 64 × 64 latents, 224
channels at full size. On PyTorch's `meta` device tensors have shapes and no values, so it costs
nothing to ask.
"""

# %% cost-figure tags=figure
from torch.utils.flop_counter import FlopCounterMode


def costs(side, width):
    """Operations of a residual block, of attention's projections, and of its pairs."""
    with torch.device("meta"):
        h, emb = torch.empty(1, width, side, side), torch.empty(1, 896)
        block, look = ResBlock(width, width, 896), SelfAttention(width)
    with FlopCounterMode(display=False) as second:
        look(h)
    with FlopCounterMode(display=False) as first:
        block(h, emb)
    pairs = second.get_flop_counts()["Global"][torch.ops.aten.bmm]
    return first.get_total_flops(), second.get_total_flops() - pairs, pairs


labels = ("residual block", "attention: projections", "attention: all pairs")
rows = zip(*(costs(64 // f, 224 * m) for f, m in ((1, 1), (2, 2), (4, 3), (8, 4))))
levels = ("1/1\n64² × 224", "1/2\n32² × 448", "1/4\n16² × 672", "1/8\n8² × 896")
figure, axis = figures.canvas(7.5, 3.2)
drawings.bars(axis, levels, {name: [n / 1e9 for n in row] for name, row in zip(labels, rows)})
axis.legend(title="billions of operations")
figures.show(figure, "Operations of a residual block and of attention at the paper's four levels.")
print(f"A of one picture: {7 * 64**4 * 4 >> 20} MB at 1/1, {14 * 32**4 * 4 >> 20} MB at 1/2")
assert costs(128, 224)[2] == 16 * costs(64, 224)[2], "Twice the side is 16 times the pairs."

# %% cost-read [markdown]
r"""
**What to see.** Halve the map and double the channels, as from 1/1 to 1/2, and a block costs the
same. All pairs cost twice a block at full size, and next to nothing at 1/8. Hence "attention at
2, 4 and 8" in the paper's models, and not at 1. In pixels, four times larger on a side, pairs
would cost 256 times as much.

These are *factors* of the latent, not sizes. Confusing them is the first exercise.

## 10. Four gates

A broken network seldom stops with an error. It trains, its loss falls, its samples are bad. Before
a long run, let it pass gates that cost seconds. First, the classic: **overfit one batch**. Eight
latents, one noise each, again and again. We have trained healthy networks from five seeds, and
kept a band around their losses.
"""

# %% gate-code
corner = lessons[:8, :, :8, :8]
fixed = torch.randn(corner.shape, generator=torch.Generator().manual_seed(1)).to(device)
moments = (torch.arange(8) + 0.5) / 8
BAND = {1: (0.9, 1.15), 10: (0.35, 0.75), 20: (0.08, 0.4), 30: (0.008, 0.15)}
pocket = UNetConfig(channels, width=16, mult=(1, 2), blocks=1, attend_at=(2,), heads=2)


def overfitted(make, seed=0):
    torch.manual_seed(seed)
    net = make(pocket).to(device)
    losses = [*descend(net, lambda: noise.loss(net, corner, fixed, moments).mean(), 30)]
    return net, losses, all(a < losses[step - 1] < b for step, (a, b) in BAND.items())


# %% gate-text [markdown]
r"""
Then three that need no training. **Hears**: another clock must change the output. **Alone**: a
picture's output must not depend on its company in the batch. **Loads**: with the weights of the
trained network, its output must be the package's. Six networks with one wrong line each:
"""


# %% suspects
def broken(join=None, time=None, dead=False):
    """Mine with another way to join skips, or to say the time, or with a zero too many."""

    def made(c):
        net = Mine(c)
        net.join = join or net.join
        zeroed(net.norm_out) if dead else None
        for block in [m for m in net.modules() if time and isinstance(m, TimedBlock)]:
            block.time = lambda emb, block=block: time(block.emb(F.silu(emb)))
        return net

    return made


SUSPECTS = {
    "healthy": Mine,
    "zero behind a zero": broken(dead=True),
    "skips lost": broken(lambda i, h, skip: torch.cat([h, 0 * skip], 1)),
    "deaf": broken(time=lambda e: 0 * e[:, :, None, None]),
    "time of the mean": broken(time=lambda e: e.mean(0)[None, :, None, None]),
    "rows mixed up": broken(time=lambda e: e.T.reshape(*e.shape, 1, 1)),
    "skip before h": broken(lambda i, h, skip: torch.cat([skip, h], 1)),
}


# %% gate-figure tags=figure
def gates(make):
    """Whether the network passes each gate, and its losses on one batch."""
    net, losses, overfits = overfitted(make)
    z, clock = torch.randn(4, channels, 8, 8).to(device), torch.tensor([9.0, 300, 600, 990]).to(z0)
    hears = not torch.allclose(net(z, clock), net(z, clock * 0 + 500), atol=1e-3)
    alone = torch.allclose(net(z, clock)[2:3], net(z[2:3], clock[2:3]), atol=1e-2)
    net = make(trained.config).to(device)
    net.load_state_dict(trained.state_dict())
    z, _, clock = noised(0.3)
    clock = clock + 10 * torch.arange(len(z)).to(z)  # each row another one
    loads = torch.allclose(net(z, clock, told), trained(z, clock, told), atol=1e-3)
    return (overfits, hears, alone, loads), losses


tried = {name: gates(make) for name, make in SUSPECTS.items()}
figure, (left, right) = figures.canvas(10.8, 3.4, columns=2, width_ratios=(1, 1.1))
for step, band in BAND.items():
    left.plot([step, step], band, color=figures.LINE, lw=9, solid_capstyle="butt")
for passed, losses in tried.values():
    left.semilogy(range(1, 31), losses, color=figures.BLUE if passed[0] else figures.RED, lw=1)
left.set(title="overfit one batch: inside the band?", xlabel="step", ylabel="loss")
drawings.marks(
    right, {n: p for n, (p, _) in tried.items()}, ("overfits", "hears", "alone", "loads")
)
figures.show(figure, "The losses of seven networks on one batch, the band in grey; and the gates.")
stopped = {name: 4 - sum(passed) for name, (passed, _) in tried.items()}
assert stopped.pop("healthy") == 0 < min(stopped.values()), "All but the healthy one are stopped."
assert sum(not passed[0] for passed, _ in tried.values()) == 2, "Overfitting finds two of six."

# %% gate-read [markdown]
r"""
**What to see.** Overfitting, the gate that everybody knows, lets four of six pass: a batch can be
learned by heart without a clock, and wiring that is wrong in a consistent way is just another
network. It finds what blocks the flow of gradients or of detail. *Hears* finds the deaf,
*alone* what mixes a batch. The last, "skip before h", is no fault at all until you load
weights that somebody trained in the other order. Only an authority finds it.

## 11. Where 274 million parameters sit

The paper's network for CelebA-HQ, bedrooms and faces [6]. The same classes at another size, on the
meta device. Two numbers to meet: 274 056 163 parameters, as the published checkpoint has, and 101.2
billion multiply-adds for one pass, which is what the original code takes.
"""

# %% celeba tags=check
from ldm_lite.presets import UNETS

with torch.device("meta"):
    faces = Mine(UNETS["celebahq-ldm4"])
    with FlopCounterMode(display=False) as counter:
        faces(torch.empty(1, 3, 64, 64), torch.empty(1))
flops, totals = counter.get_flop_counts(), (count(faces), counter.get_total_flops() // 2)
places, level, bill, blocks = ("1/1", "1/2", "1/4", "1/8", "middle"), 0, {}, 0
for name, step in faces.named_modules():
    if isinstance(step, (TimedBlock, Look, Halve)):
        part, layer = name.split(".")[0], name.split(".")[-1]
        level += type(step) is Halve  # the way down
        blocks += layer == "res"
        kind = {"res": f"blocks, {part}", "attend": "attention"}.get(layer, "sizes")
        sums = bill.setdefault(kind, torch.zeros(2, 5).double())
        both = count(step), sum(flops[f"Mine.{name}"].values()) / 2
        sums[:, 4 if part == "mid" else level] += torch.tensor(both).double()
        level -= type(step) is Double  # the way up
print(f"{totals[0]:,} parameters, {totals[1] / 1e9:.1f} billion multiply-adds, {blocks} blocks")
assert totals[0] == 274_056_163, "As many as the published checkpoint has."
assert abs(totals[1] / 1e9 - 101.2) < 0.05, "As the original classes, measured."

# %% celeba-figure tags=figure
figure, axes = figures.canvas(9.8, 3.3, columns=2)
for j, axis in enumerate(axes):
    drawings.bars(axis, places, {k: v[j] / 1000 ** (2 + j) for k, v in bill.items()}, stacked=True)
    axis.set(title=("parameters, millions", "multiply-adds, billions")[j])
axes[1].legend()
figures.show(
    figure, "Parameters and multiply-adds of the 274 M UNet by level and by kind of layer."
)
share = torch.stack([*sum(bill.values()).T, bill["attention"].sum(1)]) / torch.tensor(totals)
print(*(f"{n}: {a:.0%} and {b:.0%}" for n, (a, b) in zip((*places, "attention"), share)), sep=", ")
assert share[:5].sum(0).min() > 0.99, "The bill is complete but for the clock and the two ends."
assert share[3:5, 0].sum() > 0.5 > 0.2 > share[3:5, 1].sum(), "Deep is large, and not slow."

# %% celeba-read [markdown]
r"""
**What to see.** The two sides run opposite ways. More than half of the parameters sit at 1/8
and in the middle, and do little work there, because the maps are small. Most of the work is done
above, by few weights used at many places. So adding a deep level is cheap in time and dear
in memory, and a wider first level is the opposite.

The way up is heavier than the way down at every level: its blocks are fed with skips, and there is
one more. Attention, famous as it is, takes about an eighth of either.

## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% where [exercise] title="Where does it attend?" difficulty=1 minutes=5
r"""
The original calls its setting `attention_resolutions` and means *factors*: at 2, the latent is
half as large. Return the sides of the maps at which a network attends (without the middle), the
largest first, given the setting, the number of levels and the side of the latent.
"""


# %% [stub]
def attends(attention_resolutions, levels, side):
    return ...


# %% [check]
from ldm_lite.config import InputError
from ldm_lite.course.checks import check

models = {
    "CelebA-HQ": ((8, 4, 2), 4, 64, [32, 16, 8]),
    "super-resolution": ((16, 8), 4, 64, [8]),
    "semantic maps": ((32, 16, 8), 3, 64, []),
}
praise = "The last asked for what it does not have, and attends in the middle alone."
with check(
    "Where does it attend?", "attends still returns ...: the factors are 1, 2, 4 …", praise
) as c:
    for name, (setting, levels, side, right) in models.items():
        mine = attends(setting, levels, side)
        c.answered(mine)
        hint = "8 means 1/8, not a map of 8 × 8."
        c.that(list(mine) == right, f"{name}: {mine}, but it should be {right}. {hint}")
try:  # the package does not attend nowhere in silence
    UNetConfig(mult=(1, 4, 8), attend_at=(8, 16, 32), heads=8)
except InputError as refused:
    print(refused)


# %% [solution]
def attends(attention_resolutions, levels, side):
    return [side // 2**i for i in range(levels) if 2**i in attention_resolutions]


# %% [wrong]
def attends(attention_resolutions, levels, side):
    return [s for s in (side // 2**i for i in range(levels)) if s in attention_resolutions]


# %% tie [exercise] title="When does attention cost more?" difficulty=2 minutes=8
r"""
A residual block of width $c$ on $n$ positions takes $36\, n c^2$ operations: two convolutions
with nine taps, two operations for each weight and place. Write the same for attention: three 1×1
projections in, one out, and the two products with all pairs. Then return the $n$ at which it
costs as much as the block.
"""


# %% [stub]
def attention_cost(n, c):
    return ...


def tie(c):
    return ...


# %% [check]
with check("When does attention cost more?", "Still ...: count weights × places first.") as c:
    for side, width in ((8, 64), (32, 224), (64, 96)):
        _, layers, pairs = costs(side, width)
        mistakes = {
            "All pairs are missing.": layers,
            "The projections are missing.": pairs,
            "There are two products with all pairs: Q with K, and A with V.": layers + pairs / 2,
            "A multiplication and an addition are two operations.": (layers + pairs) / 2,
        }
        why = f"Measured for n = {side**2}, c = {width}: {layers + pairs}."
        c.close(attention_cost(side**2, width), layers + pairs, why, 1e-6, 0, mistakes)
        nine = {"At 9 c the pairs alone cost as much; the projections count too.": 9 * width}
        c.close(tie(width), 7 * width, "Solve attention_cost(n, c) = 36 n c².", mistakes=nine)


# %% [solution]
def attention_cost(n, c):
    return 8 * n * c**2 + 4 * n**2 * c


def tie(c):
    return 7 * c


# %% [wrong]
def attention_cost(n, c):
    return 8 * n * c**2 + 4 * n**2 * c


def tie(c):
    return 9 * c


# %% catch [exercise] title="Catch it" difficulty=3 minutes=12
r"""
Telling a map the time: `tell(h, e)` adds `e`, (B, C), to `h`, (B, C, y, x), everywhere.
Broadcasting makes it easy to add it along the wrong axis, and at some sizes nothing stops you.
Write `honest(tell)`: True if it is right, else False. You choose what to call it with. An
exception counts as False.
"""


# %% [stub]
def honest(tell):
    # which sizes would let no mistake through?
    return ...


# %% [check]
right = {
    "with None": lambda h, e: h + e[:, :, None, None],
    "with einops": lambda h, e: h + rearrange(e, "b c -> b c 1 1"),
}
bad = {
    "along x": lambda h, e: h + e[:, None, None, :],
    "over the map": lambda h, e: h + e,
    "the first row for all": lambda h, e: h + e[:1, :, None, None],
    "rows mixed up": lambda h, e: h + e.T.reshape(*e.shape, 1, 1),
    "one for all channels": lambda h, e: h + e[:, :1, None, None],
}
with check("Catch it", "honest still returns ...: which h and e give every mistake away?") as c:
    for name, tell in (right | bad).items():
        try:
            verdict = honest(tell)
        except (RuntimeError, IndexError):
            verdict = False
        c.answered(verdict)
        c.that(verdict or name in bad, f"You reject one that is right ({name}).")
        hint = f"You let one pass: {name}. Are all four sizes different, and all numbers in e?"
        c.that(not verdict or name in right, hint)


# %% [solution]
def honest(tell):
    h, e = torch.randn(2, 3, 5, 7), torch.randn(2, 3)
    out = tell(h, e)
    return all(torch.allclose(out[b, c], h[b, c] + e[b, c]) for b in range(2) for c in range(3))


# %% [wrong]
def honest(tell):
    h, e = torch.randn(4, 4, 4, 4), torch.ones(4, 4)
    return torch.allclose(tell(h, e), h + 1)


# %% break-it [markdown]
r"""
### Break it: it loads, it runs, it is wrong

Four copies of the trained network, each with one wrong line. All load its weights strictly, all
run. Two have another number of heads, as can happen to published models: for ImageNet, say, the
paper has one head [6], and today's code, given the file's settings, makes eight and more. One
takes skips first. One has the autoencoder's $10^{-6}$ in its norms, where the UNet has $10^{-5}$.
Which would you notice?
"""

# %% silent-figure tags=figure
from dataclasses import replace


def opened(make=Mine, eps=1e-5, **settings):
    net = make(replace(trained.config, **settings))
    net.load_state_dict(trained.state_dict())
    for module in [m for m in net.modules() if isinstance(m, nn.GroupNorm)]:
        module.eps = eps
    return net.to(device)


copies = {
    "as trained": opened(),
    "1 head": opened(heads=1, head_channels=None),
    "16 heads": opened(heads=16, head_channels=None),
    "skips first": opened(SUSPECTS["skip before h"]),
    "eps 1e-6": opened(eps=1e-6),
}
believed = {name: guess(net, 0.2) for name, net in copies.items()}
wrong = {name: float((g - z0).square().mean()) for name, g in believed.items()}
rows = [decode(torch.stack([g[i] for g in believed.values()])) for i in (0, 3)]
words = "Guesses at t = 0.2 of five networks with the same weights, for two scenes."
figures.pictures(rows, words, above=[f"{name}\nerror {e:.3f}" for name, e in wrong.items()])
assert wrong["1 head"] > 1.3 * wrong["as trained"], "Other heads are another network."

# %% silent-check tags=check
z, _, clock = (x.cpu() for x in noised(0.5))
wide, cond = (z.double(), clock), told.map(Tensor.cpu)
exact, moved = (opened(eps=e).cpu().double()(*wide, cond.map(Tensor.double)) for e in (1e-5, 1e-6))
rounding = float((opened().cpu()(z, clock, cond) - exact).abs().max())
shift = float((moved - exact).abs().max())
print(f"eps 1e-6 moves the output by {shift:.1e}; rounding moves it by {rounding:.1e}")
assert 3 * rounding < shift < 1e-3, "Far above rounding, and below a careless tolerance."
faint = 1e-3 * torch.randn(1, 8, 16, 16)
std = [float(F.group_norm(faint, 2, eps=eps).std()) for eps in (1e-5, 1e-6)]
print(f"a nearly flat map comes out with a deviation of {std[0]:.2f}, or of {std[1]:.2f}")
assert std[1] > 1.5 * std[0], "eps decides how far a faint map is amplified."

# %% silent-read [markdown]
r"""
**What to see.** Skips first is rubbish: anybody would see it. Wrong heads give a usable picture,
a little off, and that is what makes them a trap: samples look merely poor. No shape tells. You
have to know the number, or to compare *outputs* with an authority, or losses on data.

The last you cannot see at all, and a test with a tolerance of $10^{-3}$ passes it. So know your
rounding error, and ask for not much more than it. It may matter where a map is nearly flat.
"""

# %% summary [markdown]
r"""
## Summary

- An embedding of clocks' hands lets a linear layer pick out any moment; feed it steps, not [0, 1].
- A residual block starts as the identity. An added time works within the groups of a norm; FiLM
  comes after it.
- Skips carry what cannot be squeezed through the middle. At much noise there is nothing to carry.
- Attention gathers from everywhere, and costs with the square of the positions: not at full size.
- Parameters sit deep, work is done high.
- Overfit a batch, change the clock, change the company, compare with an authority. No gate
  replaces another.

**What next.** Notebook 07 puts this network into the latents of the first stage, and trains it for
real. Notebook 09 gives its attention something else to look at: words.
"""

# %% references [markdown]
r"""
## References

1. J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
   [arXiv 2006.11239](https://arxiv.org/abs/2006.11239)
2. P. Dhariwal, A. Nichol. *Diffusion Models Beat GANs on Image Synthesis.* NeurIPS 2021.
   [arXiv 2105.05233](https://arxiv.org/abs/2105.05233)
3. O. Ronneberger, P. Fischer, T. Brox. *U-Net: Convolutional Networks for Biomedical Image
   Segmentation.* MICCAI 2015. [arXiv 1505.04597](https://arxiv.org/abs/1505.04597)
4. A. Vaswani et al. *Attention Is All You Need.* NeurIPS 2017.
   [arXiv 1706.03762](https://arxiv.org/abs/1706.03762)
5. A. Odena, V. Dumoulin, C. Olah. *Deconvolution and Checkerboard Artifacts.* Distill 2016.
   [doi 10.23915/distill.00003](https://doi.org/10.23915/distill.00003)
6. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
"""
