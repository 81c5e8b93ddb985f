r"""
title: Cross-attention
goal: Build the door through which classes and words reach the denoiser, and find out what it hears
needs: Notebooks 00 and 06, or what a denoiser and self-attention are
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: a page of code that listens to text, maps of what each word lit up, a prompt to play with
objectives:
  - write cross-attention and its queries, keys and values, and prove the page equal to the package
  - say what attention is as a map of values, and why that is not a projection
  - turn a caption into tokens, and train a class encoder and a text encoder with the denoiser
  - derive guidance from Bayes' rule, and measure what it buys and what it costs
  - read attention maps, with a number beside the picture
"""

# %% the-idea [markdown]
r"""
**What to see.** One box in colour, outside of the blue area. What comes in there is not a picture:
it is a number, a sentence, a list of boxes. The denoiser is made of maps. How does a sentence get
into a map?

The paper's answer [1] has two halves. A small network $\tau_\theta$, made for the kind of input,
turns it into a row of vectors, *tokens*. And at some levels of the UNet every place of the map
looks through the tokens and takes what it needs: *cross-attention*. Nothing else about the UNet
changes. Notebook 06 had places that look at places. Now they look at words.
"""

# %% attention [markdown]
r"""
## 1. A soft look-up

A place asks with a query $q$, each token has a key $k$ and a value $v$. How well query and key
agree, as a share of 1, says how much of the value is taken. In the paper's letters, section 3.3,
with $\varphi(z_t)$ the UNet's features, a row for each place, and $\tau_\theta(y)$ the tokens:

$$\mathrm{softmax}\!\left( \frac{Q K^\top}{\sqrt d} \right) V, \qquad Q = \varphi(z_t)\, W_Q^\top,
\quad K = \tau_\theta(y)\, W_K^\top, \quad V = \tau_\theta(y)\, W_V^\top$$

Two functions are all of it. Every size below differs from every other one: a product along a wrong
axis then stops the program.
"""

# %% start tags=check
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

torch.set_grad_enabled(False)  # but for where something learns
torch.manual_seed(0)


def weights(q, k):
    """How N queries share their attention among L keys: (…, N, d), (…, L, d) -> (…, N, L)."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def attention(q, k, v):
    return weights(q, k) @ v


places, tokens = torch.randn(35, 4), torch.randn(11, 9)  # phi: 35 places; tau: 11 tokens
w_q, w_k, w_v = torch.randn(7, 4), torch.randn(7, 9), torch.randn(3, 9)
q, k, v = places @ w_q.T, tokens @ w_k.T, tokens @ w_v.T
print(f"Q {tuple(q.shape)}, K {tuple(k.shape)}, V {tuple(v.shape)}", end=": ")
print(f"weights {tuple(weights(q, k).shape)}, result {tuple(attention(q, k, v).shape)}")


# %% by-hand tags=check
def by_hand(query, k, v):
    """One query, without a matrix."""
    scores = [math.exp(sum(query * key) / math.sqrt(len(query))) for key in k]
    return sum(score / sum(scores) * value for score, value in zip(scores, v))


one = torch.stack([by_hand(query, k, v) for query in q])
torch.testing.assert_close(attention(q, k, v), one)
torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
torch.testing.assert_close(weights(q, k).sum(-1), torch.ones(35))
print("a loop, two lines of matrices and torch agree; each place gives away exactly 1")

# %% order-idea [markdown]
r"""
What does it not know? Shuffle the tokens, keys and values alike: the same sum in another order.
Shuffle the places: the answers are shuffled with them. So attention knows neither the order of the
words nor where a place is. Both must be told otherwise, and section 4 comes back to that.

And why $\sqrt d$? The sum of $d$ products of independent standard normal numbers has deviation
$\sqrt d$ [4]. Without the root, the wider the vectors, the more the softmax picks one token, and
hardly any gradient is left.
"""

# %% order tags=check
mixed, moved = torch.randperm(11), torch.randperm(35)
torch.testing.assert_close(attention(q, k[mixed], v[mixed]), attention(q, k, v))
torch.testing.assert_close(attention(q[moved], k, v), attention(q, k, v)[moved])
astray = attention(q, k[mixed], v)
assert not torch.allclose(astray, attention(q, k, v), atol=0.1), "Keys must fetch their own values."
for d in (8, 512):
    a, b = torch.randn(2, 500, d)
    bare, rooted = (p.amax(1).mean() for p in ((a @ b.T).softmax(1), weights(a, b)))
    deviation = float((a @ b.T).std())
    print(f"d = {d}: scores deviate by {deviation:.1f}; the largest weight of 500", end=" ")
    print(f"is {bare:.2f} without the root, {rooted:.2f} with it")
    assert abs(deviation / d**0.5 - 1) < 0.1, "A sum of d products deviates by the root of d."

# %% colours-idea [markdown]
r"""
To see it, let values be colours. The three keys are arrows in the plane, each with a colour.
Every point of the plane is a query, and is painted in what it is answered. Longer keys mean larger
scores.
"""

# %% colours tags=figure
arrows = torch.tensor([[0, 1], [-0.866, -0.5], [0.866, -0.5]])
paint = torch.tensor([[0.15, 0.39, 0.92], [0.85, 0.47, 0.02], [0.02, 0.59, 0.41]])
y, x = torch.meshgrid(torch.linspace(2, -2, 120), torch.linspace(-2, 2, 120), indexing="ij")
figure, axes = figures.canvas(10.4, 2.9, columns=4)
for axis, length in zip(axes, (0.3, 1, 4, 40)):
    answer = attention(torch.stack([x, y], -1), length * arrows, paint)
    axis.imshow(answer.numpy(), extent=(-2, 2, -2, 2))
    axis.plot(*torch.stack([0 * arrows, arrows]).unbind(2), "w.-")
    axis.set(title=f"keys × {length:g}", xticks=[], yticks=[])
    beyond = torch.maximum(answer - paint.amax(0), paint.amin(0) - answer)
    assert beyond.max() < 1e-5, "No mixture is more than its parts."
figures.show(figure, "A plane of queries, each in the colour that three keys (white) answer.")

# %% colours-read [markdown]
r"""
**What to see.** Left, all answers are near the mean of the three. Right, everyone gets one colour
pure: attention has become a choice, by direction alone. In between, and this is where training
works, the answer passes smoothly from one to the other. It is always a *mixture* of the three: no
point is red or black.

## 2. In the UNet

The paper's layer has several heads, each with queries, keys and values of its own, and a last
matrix that brings their answers together. `attend` is an argument for the sake of section 9.
"""


# %% listen
class Listen(nn.Module):
    def __init__(self, width, context, heads, d, attend=attention):
        super().__init__()
        self.heads, self.attend = heads, attend
        self.to_q = nn.Linear(width, heads * d, bias=False)
        self.to_k = nn.Linear(context, heads * d, bias=False)
        self.to_v = nn.Linear(context, heads * d, bias=False)
        self.to_out = nn.Linear(heads * d, width)

    def forward(self, x, context=None):
        context = x if context is None else context  # self-attention: the places are the tokens
        rows = (self.to_q(x), self.to_k(context), self.to_v(context))
        split = (rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads) for t in rows)
        return self.to_out(rearrange(self.attend(*split), "b heads n d -> b n (heads d)"))


def ours(theirs, attend=attention):
    """A Listen with the weights of one of the package's layers."""
    (inner, width), context = theirs.to_q.weight.shape, theirs.to_k.weight.shape[1]
    mine = Listen(width, context, theirs.heads, inner // theirs.heads, attend)
    mine.load_state_dict(theirs.state_dict())
    return mine.to(theirs.to_q.weight.device)


# %% trained [markdown]
r"""
Two tests: with random weights, in sizes that differ. And with a trained model, `scenes-text`, which
is told captions: we take *all* its layers of cross-attention out, put ours in, and ask both
networks about the same noise. Where do they stand? At half and at a quarter of the latent's side;
where the map is largest there are only convolutions.
"""

# %% model
import copy

from ldm_lite.latent import LatentDiffusion, Noise
from ldm_lite.layers import CrossAttention, TransformerBlock
from ldm_lite.samplers import predictor

model = LatentDiffusion.load("scenes-text").to(device)
stage, told, schedule = model.first_stage, model.conditioner, model.diffusion.schedule
captions = [
    "a red house on the left and a pine on the right, in the snow at night",
    "two trees and a blue house in the middle, on grass by day",
    "a white boat on the left and a yellow boat on the right, on the water at dusk",
    "three cacti, on sand at dawn",
]


def rebuilt(denoiser, attend=attention):
    """A copy that listens with our code."""
    denoiser = copy.deepcopy(denoiser)
    for block in denoiser.modules():
        if isinstance(block, TransformerBlock):
            block.attn2 = ours(block.attn2, attend)
    return denoiser


# %% model-check tags=check
x, context = torch.randn(2, 35, 8), torch.randn(2, 11, 9)
for heads, d in ((1, 7), (3, 5), (5, 2)):
    theirs = CrossAttention(8, 9, heads, d)
    torch.testing.assert_close(ours(theirs)(x, context), theirs(x, context))
z = Noise(0, (4, 3, 16, 16))(torch.empty(0, device=device))
clock, cond = torch.full((4,), 600.0, device=device), told({"caption": captions})
mine, theirs = rebuilt(model.denoiser), model.denoiser(z, clock, cond)
torch.testing.assert_close(mine(z, clock, cond), theirs, atol=1e-4, rtol=0)
layers = [m for m in mine.modules() if isinstance(m, Listen)]
print(f"{len(layers)} layers of {layers[0].heads} heads replaced; the same answer comes of it")

# %% one-token [markdown]
r"""
**A class is one token.** The paper's ImageNet model is told its class through the same door: a row
with a single vector. But a softmax over one number is 1, whatever the number. So every place hears
the same, it does not matter what it asks, and queries and keys learn nothing. Cross-attention to
one token is an expensive way to add a vector everywhere.
"""

# %% one-token-check tags=check
layer, single = Listen(8, 9, 3, 5), torch.randn(2, 1, 9)
heard = layer(x, single)
torch.testing.assert_close(heard, layer.to_out(layer.to_v(single)).expand(2, 35, 8))
with torch.enable_grad():
    layer(x, single).square().sum().backward()
reached = {name: float(p.grad.norm()) for name, p in layer.named_parameters()}
print(", ".join(f"{name} {norm:.1f}" for name, norm in reached.items()))
assert max(reached["to_q.weight"], reached["to_k.weight"]) < 1e-3, "One token leaves no choice."
assert min(reached["to_v.weight"], reached["to_out.weight"]) > 1, "The value is all there is."

# %% projection [markdown]
r"""
## 3. Is it a projection?

One often reads that attention *projects* the picture onto the text. Let us take the word
seriously. A projection is a linear map that changes nothing the second time, $\Pi^2 = \Pi$. The
orthogonal one takes a point to the nearest of all weighted sums of the keys, *span(K)*. With one
key in each row of $K$, linearly independent:

$$\Pi = K^\top (K K^\top)^{-1} K, \qquad \Pi^2 = \Pi = \Pi^\top$$
"""


# %% projector tags=check
def projector(k):
    """(d, d): onto the span of the rows of k (L, d), independent."""
    return k.mT @ torch.linalg.solve(k @ k.mT, k)


few, points = torch.randn(4, 9).double(), torch.randn(35, 9).double()  # 4 keys in 9 dimensions
onto = projector(few)
torch.testing.assert_close(onto @ onto, onto)
torch.testing.assert_close(onto.T, onto)
torch.testing.assert_close(few @ onto, few)  # what is there already stays
nearest = torch.linalg.lstsq(few.T, points.T).solution.T @ few  # the same, another way
torch.testing.assert_close(points @ onto, nearest)

# %% claims-idea [markdown]
r"""
And attention? Its matrix of weights, $P$, acts on values. Four things are true of it:

- it is *linear* in the values;
- every row is a mixture, so answers lie in the *span* of the values, and even in their *convex
  hull*, the smallest convex set that holds them;
- it is a choice in the limit of large scores: each place takes one value whole;
- but $P$ is *not* a projection. From $L$ tokens to $N$ places it cannot even be applied twice. In
  self-attention it can, and in general $P^2 \ne P$, even for a choice.

All of this is about values. As a map of the *queries*, attention is not even linear: twice the
query gets another mixture, not twice the answer.
"""

# %% claims tags=check
q, k, v, u = (torch.randn(n, 9).double() for n in (35, 4, 4, 4))
p = weights(q, k)
torch.testing.assert_close(p @ (2 * v - 3 * u), 2 * (p @ v) - 3 * (p @ u))  # linear in values
torch.testing.assert_close(p @ v @ projector(v), p @ v)  # in their span
ways = torch.randn(9, 500).double()  # in the hull: in no direction beyond the outermost value
assert ((p @ v @ ways).amax(0) <= (v @ ways).amax(0) + 1e-9).all(), "No mixture leaves the hull."
own, choice = weights(q, q), weights(1e6 * q, points)  # self-attention: square; and large scores
again, changed = (float((m @ m - m).norm() / m.norm()) for m in (own, choice))
assert min(again, changed) > 0.2, "Mixing twice, or choosing twice, is another thing: P² is not P."
stretched = float((weights(2 * q, k) @ v - 2 * (p @ v)).norm() / (p @ v).norm())
assert stretched > 0.2, "Attention is not linear in its queries."
print(f"P² is {again:.0%} away from P; twice the query, {stretched:.0%} away from twice the answer")

# %% between [markdown]
r"""
There *is* a road from the one to the other. Leave the softmax out, take the keys as values: $Q
K^\top K$. If the keys are orthonormal, $K K^\top = 1$, and that is $Q\,\Pi$ exactly. With other
keys it is not, and $(K K^\top)^{-1}$ repairs it. The softmax then does what no projection does: it
makes shares of the scores. Turn the scores up, and each query lands on the key it agrees with
most; orthonormal keys stay where they are.
"""

# %% hard tags=check
keys = torch.linalg.qr(few.T).Q.T  # orthonormal, of the same span
torch.testing.assert_close(points @ keys.T @ keys, points @ onto)
slanted = points @ few.T @ few
assert not torch.allclose(slanted, points @ onto, atol=0.1), "Keys that overlap count twice."
torch.testing.assert_close(points @ few.T @ torch.linalg.solve(few @ few.T, few), points @ onto)
soft = lambda q: attention(q, keys, keys)
hard = lambda q: attention(1e4 * q, keys, keys)
torch.testing.assert_close(hard(points), keys[(points @ keys.T).argmax(1)])
torch.testing.assert_close(hard(hard(points)), hard(points))  # orthonormal keys choose themselves
twice = float((soft(soft(points)) - soft(points)).norm() / soft(points).norm())
print(f"attention twice is {twice:.0%} away from once; the hard choice, 0%")
assert twice > 0.1, "A mixture does not repeat itself."

# %% three-maps tags=figure
torch.manual_seed(1)
cloud, two = torch.randn(60, 3).double(), torch.eye(3).double()[:2]
maps = {"projection, Q Π": lambda q: q @ projector(two)}
maps["attention"] = lambda q: attention(2 * q, two, two)
maps["attention, scores × 1000"] = lambda q: attention(2000 * q, two, two)
figure, axes = figures.canvas(10.4, 3.8, columns=3, sharex=True, sharey=True)
for axis, (title, way) in zip(axes, maps.items()):
    first, second = way(cloud), way(way(cloud))
    axis.plot(*two.T[:2], "*", color=figures.LINE, ms=26, label="keys")
    axis.plot(*first.T[:2], "o", color=figures.BLUE, ms=6, label="once")
    axis.plot(*second.T[:2], "x", color=figures.ORANGE, ms=6, label="twice")
    axis.set(title=title, xlim=(-2.7, 2.7), ylim=(-2.7, 2.7))
    axis.set_box_aspect(1)
axes[1].legend(loc="lower left")
words = (
    "Sixty points in space under three maps onto two orthonormal keys, seen in the keys' plane: "
    "applied once, blue, and twice, orange."
)
figures.show(figure, words)

# %% three-maps-read [markdown]
r"""
**What to see.** The projection fills the plane of the two keys, and twice is once. Attention
answers on the segment between the keys, their hull; a second time draws everything towards the
middle. With huge scores only the keys themselves are left, and twice is once again.

So in what sense does a picture meet the text? The layer's answer is *added* to the map, $h + P V
W_O^\top$: nothing of the picture is projected away. What is added is, for each head, a mixture of
the words' values, and each place has its own. *Translated* would be a better word.

## 4. From a sentence to tokens

Now the other half, $\tau_\theta$. A sentence is bytes. Single bytes are many and say little, so
pairs that come often are made one token, and so on: *byte-pair encoding* [3]; the paper has BERT's.
"""

# %% pairs tags=check
from collections import Counter
from itertools import pairwise

from ldm_lite.data import Scenes
from ldm_lite.tokens import WORDS, BytePairs, learned, merged

plan = Scenes("train").plan(range(300 if fast else 2000))
texts = [plan.caption(i) for i in range(len(plan.label))]


def grown(texts, vocabulary):
    """The pairs that become tokens 257, 258, … ; 0 to 255 are the bytes, 256 is the end."""
    words, pairs = Counter(word for text in texts for word in WORDS.findall(text)), []
    split = {word: list(word.encode()) for word in words}
    for token in range(257, vocabulary):
        counts = Counter()
        for word, n in words.items():
            counts.update({pair: n * k for pair, k in Counter(pairwise(split[word])).items()})
        pairs.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        split = {word: merged(row, pairs[-1], token) for word, row in split.items()}
    return tuple(pairs)


assert grown(texts, 300) == learned(texts, 300), "The package must find the same pairs."
tokenizer = BytePairs(grown(texts, 300))
assert tokenizer.decode(tokenizer.encode(captions[0])) == captions[0], "Nothing may be lost."
print("the first pairs:", ", ".join(repr(tokenizer.decode([257 + i])) for i in range(9)))

# %% pieces tags=figure
merges = {str(size): learned(texts, size) for size in (257, 273, 300)}
merges["the model's"] = told.config.merges
figure, axis = figures.canvas(10.4, 2.4)
for row, some in enumerate(merges.values()):
    spans = BytePairs(some).spans(captions[0])
    for i, (a, b) in enumerate(spans):
        axis.barh(-row, b - a - 0.12, left=a, color=figures.COLOURS[i % 4], alpha=0.25)
        axis.text((a + b) / 2 - 0.06, -row, captions[0][a:b].strip(), ha="center", va="center")
    axis.text(len(captions[0]) + 0.6, -row, f"{len(spans)} tokens", va="center")
axis.set(yticks=range(0, -4, -1), yticklabels=merges, xticks=[], xlim=(-0.5, 78))
axis.grid(False)
figures.show(
    figure,
    "A caption cut into tokens: by bytes alone (257), by larger vocabularies, by the model's.",
)

# %% pieces-read [markdown]
r"""
**What to see.** From top to bottom the pieces grow, from letters to syllables to words, each with
the blank before it. The captions of our world have few words, so in the end each has a token of
its own. A word that nobody ever wrote there still has tokens, its pieces: nothing is unknown.

Then the *transformer*: a vector for each token, plus a vector for its place in the row, and blocks
in which tokens attend to tokens. Without the places, the encoder could not tell which one is red in
"a red house and a blue boat", as section 1 said it cannot.
"""


# %% encoder tags=check
def encoded(encoder, ids):
    x = encoder.token(ids) + encoder.place.weight
    for block in encoder.blocks:
        x = x + ours(block.attn)(block.norm1(x))
        x = x + block.ff(block.norm2(x))
    return encoder.norm(x)


ids = torch.tensor([told.tokens.row(caption, told.length) for caption in captions], device=device)
context = encoded(told.encoder, ids)
torch.testing.assert_close(context, told({"caption": captions}).context, atol=1e-4, rtol=0)
print(f"4 captions -> {tuple(context.shape)}; {(ids != 256).sum(1).tolist()} tokens, then ends")

# %% swapped tags=check
house = "a {} house on the left and a {} house on the right, on grass by day"
twins = {"caption": [house.format("red", "blue"), house.format("blue", "red")]}
rows = [sorted(told.tokens.row(caption, told.length)) for caption in twins["caption"]]
assert rows[0] == rows[1], "Both captions have the same tokens, in another order."
placeless, apart = copy.deepcopy(told), []
placeless.encoder.place.weight.zero_()
for conditioner in (told, placeless):
    a, b = model.denoiser(z[:1].expand(2, -1, -1, -1), clock[:2], conditioner(twins))
    apart.append(float((a - b).norm() / a.norm()))
print(f"with places the answers differ by {apart[0]:.1%}, without by {apart[1]:.6%}")
assert apart[1] < 1e-5 and apart[1] < apart[0] / 100, "Without places, order cannot be known."

# %% joint-idea [markdown]
r"""
## 5. Nobody teaches the encoder

There is no label for what a token's vector should be. The paper trains $\tau_\theta$ and the
denoiser together, on the one loss that there is. Whatever of the sentence helps to remove noise,
the gradient carries back through keys and values into the words.

We train two small denoisers for a moment, from nothing. One is told the class. The other is told
the end of the caption, which says the same in words: *on sand at dusk*. (Whole captions need
longer. Before anything is learned, attention is even, and a word among forty is a fortieth of the
sum.)
"""


# %% apprentices
from ldm_lite.conditioners import LabelsConfig, TextConfig, build
from ldm_lite.data.scenes import LABELS
from ldm_lite.diffusion import Diffusion
from ldm_lite.unet import UNet, UNetConfig

batch = Scenes("train", keys=("image", "label", "caption")).batch(range(256 + 64))
latents = [stage.encode(x.to(device).float() / 127.5 - 1) for x in batch["image"].split(64)]
latents = F.avg_pool2d(torch.cat(latents), 2)  # half the sides: enough for light and ground
ends = [caption.rsplit(", ", 1)[1] for caption in batch["caption"]]
lessons = {"z": latents, "label": batch["label"].to(device), "caption": ends}
small = UNetConfig(width=16, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=16, context=32)
one_token = LabelsConfig(LABELS, width=32)
ending = TextConfig(32, 1, 2, 16, length=8, vocabulary=400, merges=learned(ends, 400))


def some(i):
    return {k: v[i] if k != "caption" else [v[j] for j in i.tolist()] for k, v in lessons.items()}


def apprentice(config):
    torch.manual_seed(0)
    return LatentDiffusion(stage, UNet(small), Diffusion(schedule, "v"), build(config)).to(device)


# %% learn
@torch.enable_grad()
def learn(student, steps):
    """Trains denoiser and encoder; yields the norm of the gradient that reaches the encoder."""
    encoder = [*student.conditioner.parameters()]
    everything = [*student.denoiser.parameters(), *encoder]
    optimizer = torch.optim.Adam(everything, 4e-3)
    for _ in range(steps):
        loss = student(some(torch.randint(256, (16,))), dropout=0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        yield float(torch.stack([p.grad.norm() for p in encoder if p.grad is not None]).norm())
        nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()


steps = 50 if fast else 300
students = {"told a class": apprentice(one_token), "told words": apprentice(ending)}
reach = {name: list(learn(student, steps)) for name, student in students.items()}

# %% judge-idea [markdown]
r"""
Did they listen? On scenes that they have not seen, we tell them the truth, nothing, or what is true
of another scene, and compare the errors. The noise is the same each time.
"""

# %% judge tags=check
held, times = torch.arange(256, 320), (torch.arange(64, device=device) + 0.5).double() / 64
truth, errors = some(held), {}
false = some(held.roll(1)) | {"z": truth["z"]}
for name, student in students.items():
    errors[name] = []
    for given in (truth, student.conditioner.blank(truth), false):
        torch.manual_seed(2)
        errors[name].append(float(student.eval()(given, times=times).mean()))
    print(f"{name:13}" + "truth {:.3f}, nothing {:.3f}, false {:.3f}".format(*errors[name]))
    assert errors[name][0] < 0.95 * min(errors[name][1:]), "Being told the truth should help."

# %% learn-figure tags=figure
from ldm_lite.course import drawings

figure, (left, right) = figures.canvas(10, 3, columns=2)
for name, norms in reach.items():
    left.semilogy(range(steps), [norm or math.nan for norm in norms], lw=1, label=name)
left.set(xlabel="step", title="gradient that reaches the encoder")
left.legend(loc="lower right")
drawings.bars(right, ("the truth", "nothing", "something false"), errors)
right.set(title="error on held-out scenes, told …", ylim=(0, None))
right.legend(loc="upper left")
words = "Left: the encoders' gradient by step. Right: two students' errors, told three things."
figures.show(figure, words)

# %% reach tags=check
for name, norms in reach.items():
    print(f"{name:13} gradient at the encoder, first steps:", *(f"{n:.1e}" for n in norms[:4]))
    assert norms[0] == norms[1] == 0 < norms[2], "Zeros block it twice, then it must arrive."
student, three = students["told words"], some(torch.arange(3))
with torch.enable_grad():
    student.zero_grad()
    student(three).mean().backward()
norms = student.conditioner.encoder.token.weight.grad.norm(dim=1).cpu()
read = {t for text in three["caption"] for t in student.conditioner.tokens.row(text, 8)}
assert set(norms.nonzero()[:, 0].tolist()) == read, "What was read learns, and nothing else."
print(f"{len(read)} tokens of {len(norms)} were in the batch, and just these have a gradient")

# %% learn-read [markdown]
r"""
**What to see.** Left, nothing arrives in the first two steps. The UNet's last layer starts with
zeros, and so does the last layer of each transformer: two doors that are shut, and each step opens
one. Right, what is told is used: the error is lowest with the truth. The words work too, although
nobody said what *dusk* means.

The students also make do with nothing, because now and then they *were* told nothing. That is the
next subject.
"""

# %% bayes-idea [markdown]
r"""
## 6. Guidance, from Bayes' rule

The noise that a perfect network sees is $\varepsilon = -\sigma \nabla \log p(z)$ (notebook 05).
Bayes' rule says $p(z \mid y) \propto p(z)\, p(y \mid z)$: told minus untold is what a *classifier*
would say. Ask for a stronger classifier, to the power $w$:

$$p_w(z) \propto p(z)\, p(y \mid z)^w \quad\Longrightarrow\quad \tilde\varepsilon =
\varepsilon_\varnothing + w\, (\varepsilon_y - \varepsilon_\varnothing)$$

No classifier is left in it: *classifier-free guidance* [2] (whose $w$ is our $w - 1$). On two
Gaussians we know every term, and let autograd differentiate $\log p + w \log p(y \mid z)$.
"""


# %% bayes tags=check
def guided(without, told, w):
    return without + w * (told - without)


centres, wide = torch.tensor([[-0.8, 0.0], [0.8, 0.5]]).double(), 0.7


def logs(z, alpha, sigma):
    """log p(z, y) of two classes, each half of the points, noised: (B, 2) -> (B, 2 classes)."""
    v = (alpha * wide) ** 2 + sigma**2
    return -(z[:, None] - alpha * centres).square().sum(2) / (2 * v) - math.log(v)


@torch.enable_grad()
def noise(z, alpha, sigma, w):
    """-sigma times the gradient of log p(z) + w log p(y = 1 | z)."""
    z = z.detach().requires_grad_()
    log = logs(z, alpha, sigma)
    total = (1 - w) * log.logsumexp(1) + w * log[:, 1]
    return -sigma * torch.autograd.grad(total.sum(), z)[0]


spots = torch.randn(50, 2).double() * 2
for place in ((0.95, math.sqrt(1 - 0.95**2)), (0.4, math.sqrt(1 - 0.4**2))):
    for w in (3.0, 8.0):
        untold, as_told = (noise(spots, *place, w) for w in (0.0, 1.0))
        torch.testing.assert_close(guided(untold, as_told, w), noise(spots, *place, w))

# %% two-worlds tags=figure
from ldm_lite import samplers
from ldm_lite.diffusion import Estimate


def perfect(w):
    def predict(z, t):
        alpha, sigma = map(float, schedule(t))
        eps = guided(noise(z, alpha, sigma, 0.0), noise(z, alpha, sigma, 1.0), w)
        return Estimate((z - sigma * eps) / alpha, eps)

    return predict


torch.manual_seed(0)
crowd, ends_at = torch.randn(800, 2).double(), {}
figure, axes = figures.canvas(10.4, 2.9, columns=4, sharex=True, sharey=True)
for axis, w in zip(axes, (0.0, 1.0, 3.0, 8.0)):
    ends_at[w] = samplers.last(samplers.ddim(perfect(w), crowd, schedule.grid(40), schedule))
    axis.plot(*ends_at[w].T, ".", ms=3, color=figures.BLUE)
    for centre, colour in zip(centres.tolist(), (figures.SOFT, figures.ORANGE)):
        axis.plot(*centre, "P", color=colour, ms=9, mec="white")
    axis.set(title=f"w = {w:g}", xlim=(-3, 4), ylim=(-2.5, 4.5))
    axis.set_box_aspect(1)
words = "Samples of a world with two classes, asked for the orange one at four scales of guidance."
figures.show(figure, words)

# %% two-worlds-check tags=check
line = torch.linspace(-8, 8, 401).double()
mesh = torch.cartesian_prod(line, line)
log = logs(mesh, 1.0, 0.0)
for w, end in ends_at.items():
    share = ((1 - w) * log.logsumexp(1) + w * log[:, 1]).softmax(0)
    sharp, mean = share @ mesh, end.mean(0)
    print(f"w = {w:g}: the samples' mean is {mean[0]:+.2f}, that of p_w itself {sharp[0]:+.2f}")
    if w <= 1:
        assert torch.allclose(mean, sharp, atol=0.12), "0 and 1 are plain sampling."
assert ends_at[8.0].mean(0)[0] > centres[1, 0] + 0.3, "Guidance must go beyond the class."
assert ends_at[8.0].std(0)[0] < 0.8 * ends_at[1.0].std(0)[0], "... and crowd together."

# %% two-worlds-read [markdown]
r"""
**What to see.** At 0 both classes, at 1 the orange one as it is. Beyond that, samples leave the
class's middle, away from the other class, and crowd together. Obedience is bought with truth and
variety.

The printed lines hold a warning. The formula sharpens the *noised* densities, each by itself, and
these are not the noised versions of one sharp density. At 0 and 1 samples follow $p_w$; above they
do not.

**The null condition.** Training must show the network what $\varnothing$ is. So now and then a
row's condition is emptied: the class after the last, the empty caption. Emptied per row, by
chance, and nothing else in the row is touched. Both halves of guidance then come from one network.
"""

# %% null tags=check
many = {"caption": [captions[i % 4] for i in range(10_000)]}
torch.manual_seed(0)
after = told.dropped(many, 0.1)["caption"]
emptied = torch.tensor([text == "" for text in after]).float()
print(f"{float(emptied.mean()):.1%} of 10,000 captions emptied where 10% were asked for")
assert abs(float(emptied.mean()) - 0.1) < 0.01, "The share that is emptied must be eta."
assert emptied.view(-1, 4).mean(0).std() < 0.02, "All captions must be emptied alike."
assert all(a in ("", b) for a, b in zip(after, many["caption"])), "The others must stay."
_, blank = model.conditions({"caption": captions})
torch.testing.assert_close(blank.context, told({"caption": [""] * 4}).context)

# %% linear [markdown]
r"""
**Linear, on all channels.** Published code for latents of four channels guided only three: the line
came from code for RGB. Pictures and FID were fine, so it stayed, with a comment. So the check here
goes through the channels one by one: equal steps of $w$ must be equal steps of the answer. And one
property comes free: with the prompt itself in the place of $\varnothing$, there is nothing to lead
away from, and $w$ must not matter.
"""


# %% linear-check tags=check
asks = lambda *told: predictor(model.denoiser, model.diffusion, *told)(z, torch.tensor(0.6)).eps
close = lambda a, b: torch.testing.assert_close(a, b, atol=5e-4, rtol=0)
at = {w: asks(cond, blank, w) for w in (0.0, 0.9999, 1.0, 4.0, 7.0)}
for channel in range(z.shape[1]):
    a, b, c = (at[w][:, channel] for w in (1.0, 4.0, 7.0))
    close(c - b, b - a)  # equal steps
    assert (b - a).abs().max() > 0.01, f"Channel {channel} is not guided at all."
for mine in (asks(cond), at[0.9999], asks(cond, cond, 7.0)):
    close(mine, at[1.0])
close(at[0.0], asks(blank))
close(at[4.0], guided(at[0.0], at[1.0], 4.0))

# %% obey-idea [markdown]
r"""
## 7. How much guidance?

Two models, two readers. `scenes-ldm4` is told a class, and we read sky and ground back.
`scenes-text` is told captions of scenes that it has never seen (most of the captions it has). A
small network looks for objects, and we count those with the kind, colour, number and side that were
asked for.

**Predict before you run.** Which of the two needs more guidance, and why? Does obedience fall
again if there is too much? And what happens to the variety of pictures of one class?
"""

# %% obey tags=timeout-900
from ldm_lite.data.scenes import read_label
from ldm_lite.reading import finder, heard, things, wanted

by_class, network = LatentDiffusion.load("scenes-ldm4").to(device), finder().to(device)
scales = (0.0, 1.0, 4.0) if fast else (0.0, 1.0, 2.0, 4.0, 8.0)
each, n, count = (2, 14, 6) if fast else (4, 64, 16)
asked = torch.arange(16).repeat_interleave(each)
sentences = Scenes("validation", size=16, keys=("caption",)).batch(range(n))["caption"]


def understood(images, captions):
    """The share of the objects asked for that are there as they should be."""
    found = [heard(wanted(text), shown) for text, shown in zip(captions, things(images, network))]
    return sum(right for right, _ in found) / sum(all_ for _, all_ in found)


curves = {"class": [], "text": [], "variety": []}
for w in scales:
    images = by_class.sample({"label": asked}, steps=count, guidance=w, seed=1)
    curves["class"].append(float((read_label(images) == asked).float().mean()))
    curves["variety"].append(float(images.unflatten(0, (16, each)).std(1).mean()))
    images = model.sample({"caption": sentences}, steps=count, guidance=w, seed=1)
    curves["text"].append(understood(images, sentences))
    print(f"w = {w:g}:", ", ".join(f"{name} {values[-1]:.2f}" for name, values in curves.items()))

# %% obey-figure tags=figure
figure, (left, right) = figures.canvas(10, 3, columns=2)
for name, label in {"class": "class read back", "text": "objects as in the caption"}.items():
    left.plot(scales, curves[name], "o-", label=label)
left.set(xlabel="guidance w", title="share that obeys", ylim=(0, 1.05))
left.legend(loc="lower right")
right.plot(scales, curves["variety"], "o-", color=figures.PURPLE)
right.set(xlabel="guidance w", title="how much pictures of one class differ", ylim=(0, None))
figures.show(figure, "Left: how far two models obey. Right: the spread of pictures of one class.")
assert curves["class"][0] < 0.3 < 0.8 < max(curves["class"]), "Told, pictures should obey."
assert max(curves["text"]) > 2 * curves["text"][0] + 0.1, "So should they with captions."
assert curves["variety"][-1] < curves["variety"][0], "Variety is the price."

# %% obey-read [markdown]
r"""
**What to see.** Told nothing, both draw what they like, and one class in sixteen is right by
chance. Told a class, every picture obeys, without any guidance. A sentence asks for more: kinds,
colours, numbers and sides. Without guidance about six of seven objects are right, with $w = 4$
nearly all, and beyond that nothing is gained. Variety falls as soon as the class is heard, as it
must; the guidance itself costs little of it here.

**Two refinements.** Guidance need not act all the time: an *interval* leaves the noisy beginning
and the end alone [5], and saves evaluations. And $\varnothing$ can be replaced by a *negative*
prompt: what to lead away from.
"""

# %% refine tags=figure
three, timeless = [captions[i] for i in (0, 1, 3)] * 2, ["two trees, on grass"] * 6
dusk = {"caption": ["two trees, on grass at dusk"] * 6}
rows_drawn = {
    "w = 1": (three, {"guidance": 1.0}),
    "w = 6": (three, {"guidance": 6.0}),
    "w = 6 where\n0.2 ≤ t ≤ 0.8": (three, {"guidance": 6.0, "interval": (0.2, 0.8)}),
    "no time\nis said": (timeless, {"guidance": 3.0}),
    "... but not\nat dusk": (timeless, {"guidance": 3.0, "negative": dusk}),
}
sheets = [
    model.sample({"caption": text}, steps=count, seed=5, **way) for text, way in rows_drawn.values()
]
words = (
    "Three captions, twice each: plain, guided, guided for a part of the time. Below, one caption "
    "without a time of day, and the same led away from dusk."
)
figures.pictures(sheets, words, left=list(rows_drawn), scale=2)
light_of_day = [Counter(LABELS[i].split()[0] for i in read_label(s).tolist()) for s in sheets[3:]]
print("no time said:", *light_of_day[0].items(), "| not at dusk:", *light_of_day[1].items())

# %% refine-read [markdown]
r"""
**What to see.** At $w = 6$ colours are heavier. Guided in the middle of the time alone, the
pictures are nearly the same, for fewer evaluations. Below, all six pictures show dusk when no time
is said, and three trees for two: training captions always said a time. Led away from dusk, one
still shows it: a negative prompt is a direction and not a ban. And one got a house that nobody
asked for.

## 8. What each word looks at

Attention can be *watched* [6]. `recorded` keeps the weights of every layer while a model draws, and
we take their mean over heads, steps and the layers with the finest maps. In the others, of 4 × 4
places, one place holds an object and its neighbours. For a word that is several tokens the weights
are summed.
"""

# %% watch
from ldm_lite.attention import recorded

watched = sentences[: 14 if fast else 32]
with recorded(model.denoiser) as seen:
    drawn = model.sample({"caption": watched}, steps=count, guidance=4.0, seed=3)
where = seen.mean(16, least=8)[-len(watched) :]  # (n, 16, 16, tokens): of the rows that are told
torch.testing.assert_close(where.sum(-1), torch.ones(where.shape[:3]), atol=1e-4, rtol=0)
padding = [where[i, ..., told.count(text) :].sum(-1).mean() for i, text in enumerate(watched)]
print(f"{float(torch.stack(padding).mean()):.0%} of the attention goes to padding")

# %% overlays tags=figure
sheet, above, orange = [], [], torch.tensor([0.9, 0.0, -1.0]).view(3, 1, 1)
for i in (0, 7, 13):
    kept = [w for w in watched[i].replace(",", "").split() if len(w) > 3 or w in ("red", "day")]
    sheet, above = [*sheet, drawn[i]], [*above, "picture", *dict.fromkeys(kept)]
    for word in dict.fromkeys(kept):
        light = where[i][..., told.places(watched[i], word)].sum(-1)
        light = (light - light.min()) / (light.max() - light.min())
        light = F.interpolate(light[None, None], (64, 64), mode="bilinear")[0]
        sheet.append(torch.lerp(drawn[i].mean(0).expand(3, -1, -1), orange, 0.8 * light**2))
words = "Samples, and each in grey for its main words: orange where the word is most listened to."
figures.pictures(torch.stack(sheet), words, columns=8, above=above, scale=2)

# %% overlays-read [markdown]
r"""
**What to see.** A colour lights up its object: *yellow* the one house, *blue* the one boat and
*red* the other. The nouns mostly do not: *house* lights up the ground, *boat* the water; of two
*pines* one does. *Left* and *right* look at the sky and the horizon. Tokens have read each other in
the encoder before the UNet sees them. Which of them carries *a yellow house* is the encoder's own
choice: the word is written on the box, and says little about what is in it.

A picture convinces, so count. For each noun, *house*, and for the noun with what belongs to it, *a
red house*: where is the map brightest, and does that place lie inside the box of such an object, as
the finder sees it in the drawn picture? By chance that would happen as often as the boxes cover the
picture.
"""


# %% peaks tags=check
def cells(boxes):
    """(16, 16): whether the middle of each cell lies in one of the boxes."""
    at, inside = (torch.arange(16) + 0.5) / 16, torch.zeros(16, 16, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((y0 <= at) & (at <= y1))[:, None] & ((x0 <= at) & (at <= x1))
    return inside


hits = {"the noun": [], "with number and colour": [], "by chance": []}
for text, light, shown in zip(watched, where, things(drawn, network)):
    for one in wanted(text):
        inside = cells([thing.box for thing in shown if one.means(thing)])
        if inside.any():
            both = told.places(text, one.phrase)
            own = both[-told.count(f" {one.word}") :]  # of this phrase: there may be two boats
            for place, name in zip((own, both), hits):
                peak = light[..., place].sum(-1).argmax()
                hits[name].append(inside.flatten()[peak].float())
            hits["by chance"].append(inside.float().mean())
noun, phrase, chance = share = [float(torch.stack(some).mean()) for some in hits.values()]
print(*(f"{name} {hit:.0%}," for name, hit in zip(hits, share)), f"of {len(hits['by chance'])}")
assert phrase > 0.5 and phrase > 2 * chance, "Words for objects should look at objects."

# %% peaks-read [markdown]
r"""
A noun alone peaks inside its object in four of ten cases, more often than by chance. With its
number and colour it is three of four. With all the layers (`least=1`) both shares are smaller.

**Your turn.** With a kernel, a line to type in stands below the next pictures. Write a sentence and
see what is heard. The last row is a test: in the scenes there is no cactus in the snow.
"""

# %% prompt tags=figure
from ldm_lite.course import widgets


def draw(prompt, guidance, seed):
    asked = {"caption": [prompt] * (3 if fast else 6)}
    return model.sample(asked, steps=count, guidance=guidance, seed=seed)


first = "a red house on the left, on grass by day"
choices = {"prompt": first, "guidance": (1.0, 2.0, 4.0, 8.0), "seed": range(20)}
settings = [{"prompt": first, "guidance": 4.0, "seed": 1}]
settings += [{"prompt": "a red house on the right, on grass at night"}]
settings += [{"prompt": "a cactus on the left, in the snow by day"}]
words = "Samples of three sentences, guidance 4: a house left, a house right at night, a cactus."
panel = widgets.knobs(draw, choices, settings, words, scale=2)

# %% prompt-read [markdown]
r"""
**What to see.** Side, colour, ground and time are heard. The cactus is not: a *pine* stands in the
snow. In the scenes cacti grow on sand only. New scenes are no problem, section 7 had no others; a
pair of words that never came together is: the model believes the ground.

## 9. Break it: three bugs that looked fine

Three programs have one bug each, all three published in code that many learn from:

- conditions were emptied where they should have been kept, and the other way round, for a month;
- guidance left the last channel of the latent out, for years;
- the softmax was taken over the queries in place of the keys, for eleven months.

Two of them are at work when a model draws: we put them into ours, as A and B. The third, C, is at
work in training.
"""


# %% bugs tags=figure
def last_left_out(without, told, w):
    return torch.cat([guided(without, told, w)[:, :-1], told[:, -1:]], 1)


def over_places(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2) @ v


def dropped(captions, share):
    return ["" if torch.rand(()) < share else text for text in captions]


def dropped_too(captions, share):
    return ["" if torch.rand(()) > share else text for text in captions]


def drawing(rule=guided, attend=attention):
    halves = [predictor(rebuilt(model.denoiser, attend), model.diffusion, c) for c in (blank, cond)]
    both = lambda z, t: zip(*(half(z, t) for half in halves))
    predict = lambda z, t: Estimate(*(rule(*pair, 3.0) for pair in both(z, t)))
    return stage.decode(samplers.last(samplers.ddim(predict, z, schedule.grid(count), schedule)))


programs = {"sound": {}, "A": {"attend": over_places}, "B": {"rule": last_left_out}}
sheets = [drawing(**program) for program in programs.values()]
words = "Four captions, drawn by a sound program and by A and B, which have one bug each."
figures.pictures(sheets, words, left=list(programs), scale=2)

# %% bugs-read [markdown]
r"""
**What to see.** A is broken: houses stand where boats should sail, trees are a heap of pieces. (The
published program was *trained* with its bug, ours without.) B is hard to tell from the sound
program. It drew one boat for two, but so did the other, and every picture is a good picture. Nobody
who only looks would find it.

So ask for what must hold. Emptied rows are about $\eta$ of all. Each channel of the guided answer
must move by $w$ times the difference. And if every value is 1, every answer must be 1, since
mixtures of ones are ones: that tells whether rows sum to 1 without a look inside.
"""


# %% audit tags=figure
def audit(drop=dropped, rule=guided, attend=attention):
    torch.manual_seed(0)
    share = drop(["words"] * 10_000, 0.1).count("") / 10_000
    a, b = torch.randn(2, 3, 4, 5, 7)
    away = (rule(a, b, 3.0) - a - 3 * (b - a)).abs().amax((0, 2, 3))
    q, k = torch.randn(2, 35, 8), torch.randn(2, 11, 8)
    ones = attend(q, k, torch.ones(2, 11, 3))
    print(f"emptied {share:.0%}; channels off by {away.max():.2f}; ones become {ones.mean():.2f}")
    return abs(share - 0.1) < 0.02, bool((away < 1e-4).all()), bool((ones - 1).abs().max() < 1e-4)


programs["C"] = {"drop": dropped_too}
results = {name: audit(**program) for name, program in programs.items()}
figure, axis = figures.canvas(6.5, 2.2)
drawings.marks(axis, results, ("emptied: η", "guided: all channels", "rows sum to 1"))
figures.show(figure, "Which of three properties the sound program and A, B and C have.")
assert all(results["sound"]), "The sound program must have all three."
for name in "ABC":
    assert results[name].count(False) == 1, f"{name} has one bug, and one property must find it."

# %% audit-read [markdown]
r"""
**What to see.** A took the softmax over the places, B forgot a channel, C empties what it should
keep. Three lines find all three, without a picture.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% padding [exercise] title="Deaf to padding" difficulty=1 minutes=6
r"""
Captions are filled up to forty tokens, and our model looks at the filling, as the paper's does.
Other models do not. Write attention in which only the tokens where `real` (L,) is true can be
looked at, and rows still sum to 1.
"""


# %% [stub]
def attend_to(q, k, v, real):
    return ...


# %% [check]
from ldm_lite.course.checks import check

praise = "Minus infinity before the softmax, not zero after it."
with check("Deaf to padding", "attend_to still returns ...: where is the softmax?", praise) as c:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 35, 7), torch.randn(2, 11, 7), torch.randn(2, 11, 3)
    at = torch.arange(11)
    for real in (at < 11, at < 4, at % 4 == 2, at < 1):
        right_one = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        mistakes = {
            "Rows no longer sum to 1: what padding had is lost.": (weights(q, k) * real) @ v,
            "A score of 0 is not silence: exp(0) is 1.": attention(q, k * real[:, None], v),
        }
        why = f"Wrong where tokens {at[real].tolist()} are real."
        c.close(attend_to(q, k, v, real), right_one, why, mistakes=mistakes)


# %% [solution]
def attend_to(q, k, v, real):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~real, -math.inf).softmax(-1) @ v


# %% [wrong]
def attend_to(q, k, v, real):
    return (weights(q, k) * real) @ v


# %% louder [exercise] title="A word said louder" difficulty=2 minutes=10
r"""
People who write prompts want to stress a word. Say it $n$ times? That takes room, and $n = 1.5$ is
impossible. Write attention that answers as if token `j` stood in the row $n$ times, without
repeating it. One number, added in one place, is enough.
"""


# %% [stub]
def louder(q, k, v, j, n):
    return ...


# %% [check]
praise = "exp(score + log n) is n times exp(score): the row is as if the token stood there n times."
with check("A word said louder", "louder still returns ...: what is n times exp(s)?", praise) as c:
    torch.manual_seed(0)
    q, k, v = torch.randn(35, 7), torch.randn(11, 7), torch.randn(11, 3)
    for j, n in ((0, 1), (4, 3), (10, 7), (6, 1.5)):
        often = torch.full((11,), 2)
        often[j] = round(2 * n)
        again = torch.arange(11).repeat_interleave(often)  # 1.5 to 1 is 3 to 2
        scaled = weights(q, k)
        scaled[:, j] *= n
        key, value = k.clone(), v.clone()
        key[j], value[j] = n * k[j], n * v[j]
        mistakes = {
            "Rows no longer sum to 1: the others must give way.": scaled @ v,
            "A longer key is disagreed with more loudly, too.": attention(q, key, v),
            "That changes what the word says, not how well it is heard.": attention(q, k, value),
        }
        why = f"Wrong for token {j} said {n} times."
        c.close(louder(q, k, v, j, n), attention(q, k[again], v[again]), why, mistakes=mistakes)


# %% [solution]
def louder(q, k, v, j, n):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores[..., j] += math.log(n)
    return scores.softmax(-1) @ v


# %% [wrong]
def louder(q, k, v, j, n):
    p = weights(q, k)
    p[..., j] *= n
    return p @ v


# %% catch [exercise] title="Catch it" difficulty=3 minutes=12
r"""
Write `is_dropout(drop)`: true if `drop(captions, share)` empties each caption with chance `share`
and leaves the others as they are, each row for itself. You may call it as often as you like. The
check tries your test on right functions and on wrong ones.
"""


# %% [stub]
def is_dropout(drop):
    return ...


# %% [check]
def one_coin(captions, share):
    return [""] * len(captions) if torch.rand(()) < share else list(captions)


def the_first(captions, share):
    return [""] * round(share * len(captions)) + captions[round(share * len(captions)) :]


def shuffled(captions, share):
    order = torch.randperm(len(captions)).tolist()
    return dropped([captions[i] for i in order], share)


functions = {
    "a right one": (dropped, True),
    "the package's": (lambda texts, eta: told.dropped({"caption": texts}, eta)["caption"], True),
    "C, which keeps what it should empty": (dropped_too, False),
    "one that throws one coin for the whole batch": (one_coin, False),
    "one that always empties the first rows": (the_first, False),
    "one that shuffles the captions on the way": (shuffled, False),
    "one that empties half as many": (lambda texts, eta: dropped(texts, eta / 2), False),
}
praise = "No wrong function passes your test."
with check("Catch it", "is_dropout still returns ...", praise) as c:
    torch.manual_seed(0)
    for name, (drop, verdict) in functions.items():
        mine = is_dropout(drop)
        c.answered(mine)
        c.that(bool(mine) == verdict, f"Your test says {bool(mine)} to {name}.")


# %% [solution]
def is_dropout(drop):
    texts = [f"caption {i}" for i in range(4000)]
    out = drop(texts, 0.2)
    gone = torch.tensor([text == "" for text in out]).float()
    stayed = all(a == b for a, b in zip(out, texts) if a)
    halves = gone.view(2, -1).mean(1)
    return stayed and bool(((halves - 0.2).abs() < 0.04).all())


# %% [wrong]
def is_dropout(drop):
    gone = [text == "" for text in drop(["words"] * 4000, 0.2)]
    return abs(sum(gone) / 4000 - 0.2) < 0.04


# %% summary [markdown]
r"""
## Summary

- Cross-attention is a soft look-up: places ask, tokens answer, and the answer is a mixture of their
  values. To one token it only adds a vector.
- As a map of values it is linear and stays in their hull. It is no projection; a choice, in the
  limit.
- It knows no order. The encoder tells it, and is taught by the denoiser's loss alone.
- Guidance is Bayes' rule to a power, a straight line in $w$ through two answers, in every channel.
- Maps show where words are listened to. Count before you believe them.

**What next.** Notebook 10 compares this door with the other one, maps set beside the latent.
`python benchmarks/tasks.py text` is the long form of sections 7 and 8.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022. [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. J. Ho, T. Salimans. *Classifier-Free Diffusion Guidance.* 2022.
   [arXiv 2207.12598](https://arxiv.org/abs/2207.12598)
3. R. Sennrich, B. Haddow, A. Birch. *Neural Machine Translation of Rare Words with Subword Units.*
   ACL 2016. [arXiv 1508.07909](https://arxiv.org/abs/1508.07909)
4. A. Vaswani and others. *Attention Is All You Need.* NeurIPS 2017.
   [arXiv 1706.03762](https://arxiv.org/abs/1706.03762)
5. T. Kynkäänniemi and others. *Applying Guidance in a Limited Interval Improves Sample and
   Distribution Quality in Diffusion Models.* NeurIPS 2024.
   [arXiv 2404.07724](https://arxiv.org/abs/2404.07724)
6. R. Tang and others. *What the DAAM: Interpreting Stable Diffusion Using Cross
   Attention.* ACL 2023.
   [arXiv 2210.04885](https://arxiv.org/abs/2210.04885)
"""
