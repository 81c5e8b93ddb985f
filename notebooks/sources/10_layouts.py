r"""
title: Layouts and semantic maps
goal: Tell a model what goes where, by boxes and by maps, and measure whether it obeys
needs: Python and some PyTorch; notebooks 07 and 09 help and are not required
memory: about 1 GB; no GPU needed
download: nothing, the trained weights come with the package
result: landscapes from boxes and from a map that you paint, some larger than the model ever saw
objectives:
  - choose between tokens and maps by what they carry, cost and lose
  - write a layout as tokens, and say what order, padding and grid do to it
  - measure by IoU and mIoU whether a picture shows what was asked for
  - give a trained network a new input without changing what it says
  - draw pictures larger than those a model was trained on, in one piece and by windows
"""

# %% the-idea [markdown]
r"""
**What to see.** One box in colour: the condition. A class or a caption says *what* is in a picture.
This notebook is about *where*: a list of boxes, or a map with a name for each pixel.

They come in by different doors. Boxes are words, so they take the door of words, cross-attention. A
map is a picture, so it is laid beside the latent. Both are the paper's. The loss and the sampler
never hear of either.
"""

# %% start
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from ldm_lite import reading, runs, windows
from ldm_lite.course import drawings
from ldm_lite.course.widgets import coloured, painter, shapes
from ldm_lite.data import Scenes
from ldm_lite.data.scenes import OBJECTS, SEGMENTS
from ldm_lite.latent import LatentDiffusion

torch.set_grad_enabled(False)  # switched on where something learns
by_boxes = LatentDiffusion.load("scenes-layout").to(device)
by_map = LatentDiffusion.load("scenes-map").to(device)
schedule = by_map.diffusion.schedule


# %% batches
def scenes(rows, split="test", size=64):
    keys = ("image", "boxes", "box_labels", "segmentation")
    batch = Scenes(split, size, keys=keys).batch(rows)
    image, segmentation = batch["image"].float() / 127.5 - 1, batch["segmentation"].long()
    return batch | {"image": image.to(device), "segmentation": segmentation.to(device)}


def drawn(model, batch, steps=8 if fast else 20, **settings):
    return model.sample(batch, steps=steps, sampler="dpm_solver", **settings)


# %% doors [markdown]
r"""
## 1. Two doors

`Condition` has a door for tokens, `context`, and one for maps, `concat`:

| | tokens, seen by cross-attention | maps, beside the latent |
|---|---|---|
| carries | a list of any length | a few numbers for each place |
| where | must be written into the tokens, and learned | is where it stands |
| cannot say | the outline of a thing | "a house, anywhere" |
| left out by | the empty list | nothing that it was taught |

How do they act? We take a noisy scene with one object, and tell each model of another kind of
object: one token of four, or the label of the object's pixels. Where does the guess change?
"""

# %% doors-figure tags=figure,check
one = scenes([4])
kind, other = int(one["box_labels"][0]), OBJECTS.index("house")
told = torch.where(one["segmentation"] == 8 + kind, 8 + other, one["segmentation"])
as_other = one | {"box_labels": [torch.tensor([other])], "segmentation": told}
eps = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)


def guess(model, batch, scene=one):
    """The clean latents that the model sees in a scene under 16 noises."""
    t = torch.full((len(eps),), 0.6)
    z = model.diffusion.noised(model.first_stage.encode(scene["image"]), eps, t)
    cond = model.conditioner(batch).map(lambda x: x.expand(len(z), *x.shape[1:]))
    return model.diffusion.estimate(model.denoiser(z, schedule.clock(t).to(z), cond), z, t).z0


change = {}
x0, y0, x1, y1 = (one["boxes"][0][0] * 16 + torch.tensor([0, 0, 1, 1])).long().tolist()
for name, model in (("a token", by_boxes), ("a map", by_map)):
    moved = (guess(model, as_other) - guess(model, one)).square().mean((0, 1)).cpu()
    inside = float(moved[y0:y1, x0:x1].sum() / moved.sum())
    assert inside > 2 * (y1 - y0) * (x1 - x0) / 256, "What is told of a place acts there."
    change[f"{name}: {inside:.0%} inside the box"] = (moved / moved.max()).sqrt()
drawings.heat(change, "How much each cell of the guess changes when a pine is said to be a house.")

# %% doors-read [markdown]
r"""
**What to see.** Both models change their minds where the object stands, and hardly elsewhere. The
map changes the very cells of the object. The token says a kind and two corners; where in the
picture those are had to be learned.

And what does each door cost? We count weights.
"""

# %% doors-cost tags=check
from ldm_lite.layers import SelfAttention, SpatialTransformer

weights = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())
transformers = [m for m in by_boxes.denoiser.modules() if isinstance(m, SpatialTransformer)]
blocks = [block for m in transformers for block in m.blocks]
by_attention = weights(*(b.attn2 for b in blocks)), weights(by_boxes.conditioner)
by_concat = by_map.denoiser.stem.weight[:, 3:].numel(), weights(by_map.conditioner)
print(f"tokens: {by_attention[0]:,} weights in the UNet, {by_attention[1]:,} in the encoder")
print(f"a map: {by_concat[0]:,} weights in the UNet, {by_concat[1]:,} in the encoder")
assert sum(by_concat) < sum(by_attention) / 50, "One layer grows, by a few channels."

# %% tokens [markdown]
r"""
A map costs next to nothing: it has the latent's grid already. A token has to be *found* by each
place, in every block.

## 2. A layout as a sentence

Three words say a box: its kind, its upper left corner, its lower right corner. The corners are
words because they are rounded to a grid of $g$ by $g$ places, which are numbered:

$$k(x, y) = g \cdot \mathrm{round}\big((g - 1)\, y\big) + \mathrm{round}\big((g - 1)\, x\big)$$

The original [1] has $g = 90$, up to 30 boxes and 8192 words; ours has 32, four and 1025. One table
holds kinds and corners: the place in the sentence tells which is meant. The last word pads what is
left.
"""


# %% corner tags=check
def corner(points, g):
    x, y = (points.double() * (g - 1)).round().long().unbind(-1)
    return g * y + x


def place(tokens, g):
    """The way back: (K,) -> (K, 2)"""
    return torch.stack([tokens % g, tokens // g], -1) / (g - 1)


def sentence(boxes, kinds, g=32, most=4):
    three = torch.stack([kinds, corner(boxes[:, :2], g), corner(boxes[:, 2:], g)], 1).flatten()
    return F.pad(three, (0, 3 * most - len(three)), value=g * g)


test = scenes(range(16 if fast else 64))
rows = [sentence(b, k) for b, k in zip(test["boxes"], test["box_labels"])]
theirs = [by_boxes.conditioner.row(b, k) for b, k in zip(test["boxes"], test["box_labels"])]
assert [row.tolist() for row in rows] == theirs, "The package writes the same sentences."
print(rows[1].tolist())

# %% iou-idea [markdown]
r"""
What does rounding lose? To say it in one number, and for all that follows, we need to compare two
boxes. The usual measure is the area they share, in parts of the area they cover together:

$$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}$$
"""


# %% iou tags=check
def iou(a, b):
    """(K, L) for boxes (K, 4) and (L, 4)"""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)
    return shared / (area(a)[:, None] + area(b) - shared)


boxes = torch.cat(test["boxes"]).double()
torch.testing.assert_close(iou(boxes[:5], boxes[:7]), reading.iou(boxes[:5], boxes[:7]))


# %% rounding tags=check
def rounded(boxes, g):
    return torch.cat([place(corner(boxes[:, i : i + 2], g), g) for i in (0, 2)], 1).double()


kept = {}
for g in (8, 16, 32, 90):
    back = rounded(boxes, g)
    assert (back - boxes).abs().max() <= 0.5 / (g - 1) + 1e-9, "By half a step at most."
    kept[g] = float(iou(back, boxes).diag().mean())
    print(f"g = {g:2}: {g * g:4} words, mean IoU with the true boxes {kept[g]:.3f}")
assert kept[8] < kept[32] < kept[90], "A finer grid, less lost."

# %% tokens-figure tags=figure
WHITE, AMBER, CYAN = "#ffffff", "#ffb020", "#22d3ee"


def framed(image, *layers, side=192):
    """An image (3, H, W) enlarged, with the frames of boxes: layers of (colour, boxes)."""
    lines = []
    for i, (_, boxes) in enumerate(layers, 1):
        for x0, y0, x1, y1 in torch.as_tensor(boxes).reshape(-1, 4).tolist():
            lines.append(("stroke", i, (x0, y0, x1, y0, x1, y1, x0, y1, x0, y0), 0.014))
    frames = shapes(torch.zeros(side, side), lines)
    palette = ("#00000000", *(colour for colour, _ in layers))
    return coloured(frames, palette, figures.enlarged(image[None], side, side)[0])


shown = [framed(test["image"][1])]
for g in (8, 32, 90):
    b = test["boxes"][1]
    shown.append(framed(test["image"][1], (WHITE, b), (AMBER, rounded(b, g))))
above = ("a scene", "g = 8", "g = 32", "g = 90")
words = "A scene, and its boxes, white, with the boxes that three grids can say, orange."
figures.pictures(torch.stack(shown), words, above=above, scale=1)

# %% tokens-read [markdown]
r"""
**What to see.** Eight places a side are too few. With 32 a frame moves by a pixel, which costs
boxes as small as these a tenth of their IoU. With 90 nobody sees a difference.

So why not give the four numbers as they are? One can: as waves of many lengths, like the clock of
notebook 06; later work does [2]. Waves round nothing, and know from the start that places are
neighbours. A row of a table that begins at random needs examples of *its* place. `scenes-layout`
takes a middle way: a table whose corners begin as waves.
"""

# %% order-idea [markdown]
r"""
## 3. A set, not a list

A layout is a set of boxes and a sentence is a list. Cross-attention would not mind: it is a
weighted mean over tokens, and a mean has no order. But which corner belongs to which kind? In the
original the encoder learns a vector for each place in the sentence, boxes are shuffled, and the
rest is learned.

That is slow. A small model had, after 12,000 steps, 72 % of the kinds right: things
stood in each other's boxes. So `scenes-layout` is told one token a box: a matrix joins the
three words before the encoder, as in GLIGEN [2], and the encoder knows no places.

**Predict before you run.** The same two boxes in two orders: is the denoiser's guess the same,
nearly the same, or quite another? And with their kinds exchanged?
"""

# %% order tags=check
pair = scenes([30])  # a pine on the right, a house on the left
b, k = pair["boxes"][0], pair["box_labels"][0]
scene = {"image": pair["image"]}
ways = {
    "the other order": {"boxes": [b.flip(0)], "box_labels": [k.flip(0)]},
    "the kinds exchanged": {"boxes": [b], "box_labels": [k.flip(0)]},
    "the second box left out": {"boxes": [b[:1]], "box_labels": [k[:1]]},
}
first, off = guess(by_boxes, {"boxes": [b], "box_labels": [k]}, scene=scene), {}
for way, told in ways.items():
    off[way] = float((guess(by_boxes, told, scene=scene) - first).square().mean().sqrt())
    print(f"{way}: the guess moves by {off[way]:.4f}")
assert off["the other order"] < 1e-4, "A set: the same guess, up to rounding."
assert off["the kinds exchanged"] > 0.01, "Which kind has which box is another picture."

attend = blocks[0].attn2
x = torch.randn(2, 5, attend.to_q.in_features).to(device)
tokens, order = torch.randn(2, 12, 96).to(device), torch.randperm(12)
torch.testing.assert_close(attend(x, tokens[:, order]), attend(x, tokens), atol=1e-5, rtol=1e-4)
blank = by_boxes.conditioner.blank({"boxes": [b], "box_labels": [k]})
print("the empty layout:", by_boxes.conditioner.row(blank["boxes"][0], blank["box_labels"][0]))

# %% order-read [markdown]
r"""
The same, up to rounding: neither the encoder nor attention can see an order. Exercise 1 shows that
a matrix behind three words is a sum of three tables.

The padding is a word like any other. Twelve of it are the empty layout, and this is what guidance
leads away from (notebook 09): in training a tenth of the layouts were emptied.

## 4. Ask, look, compare

Does the picture show what was asked for? A small network, trained on scenes, finds the objects in a
picture, `reading.things`. `reading.placed` pairs them with the boxes asked for, best IoU first,
each once. A box that nothing answers scores 0.
"""

# %% obey
finder = reading.finder().to(device)


def obeyed(images, boxes, labels):
    """Mean IoU and share of right kinds, over the boxes asked for, and the things found."""
    found = reading.things(images, finder)
    rows = zip(boxes, labels, found)
    each = [p for b, k, f in rows for p in reading.placed(b, [OBJECTS[i] for i in k], f)]
    return sum(v for v, _ in each) / len(each), sum(right for _, right in each) / len(each), found


# %% obey-run tags=check
several = {key: test[key][: 12 if fast else 48] for key in ("image", "boxes", "box_labels")}
asked = {key: several[key] for key in by_boxes.conditioner.keys}
scales = (1.0, 3.0) if fast else (1.0, 2.0, 3.0, 5.0)
made = {f"guidance {w:g}": drawn(by_boxes, asked, guidance=w) for w in scales}
seen = {"real scenes": several["image"]} | made
score = {name: obeyed(images, *asked.values()) for name, images in seen.items()}
others = [rows[1:] + rows[:1] for rows in asked.values()]
score["boxes of another scene"] = obeyed(made["guidance 3"], *others)
for name, (overlap, right, _) in score.items():
    print(f"{name}: mean IoU {overlap:.2f}, right kind {right:.0%}")
(overlap, right, found), (chance, *_) = score["guidance 3"], score["boxes of another scene"]
assert overlap > max(0.5, chance + 0.2) and right > 0.7, "What is told, where it is told."

# %% obey-figure tags=figure
shown = [i for i in range(12) if len(asked["boxes"][i]) > 1][:5]
blank = torch.full((3, 64, 64), 0.15)
above = [framed(blank, (WHITE, asked["boxes"][i])) for i in shown]
answers = made["guidance 3"]
both = [((WHITE, asked["boxes"][i]), (AMBER, [t.box for t in found[i]])) for i in shown]
below = [framed(answers[i], *layers) for i, layers in zip(shown, both)]
names = [", ".join(OBJECTS[k] for k in asked["box_labels"][i]) for i in shown]
words = "Five layouts; a picture for each, with the boxes asked for, white, and found, orange."
rows, left = [torch.stack(above), torch.stack(below)], ("asked", "drawn")
figures.pictures(rows, words, above=names, left=left, scale=1)

# %% obey-read [markdown]
r"""
**What to see.** The kinds are the ones asked for, and the frames nearly coincide. Where boxes
overlap, one thing hides the other, and the finder may see one. Time of day and ground are nobody's
business here: the layout does not say them, so they are drawn by chance, in accord with the kinds.
Boats come with water.

Two things keep a model from 1: the finder, which reads real scenes with the IoU of the first line,
and the grid, which kept 0.90 (section 2). Guidance has little to add. The last line is what chance
gives: the same pictures against the boxes of others.

Of 1,000 layouts, `benchmarks/RESULTS.md` has a table. What one wants from a condition is more than
a score, though: that turning one knob changes one thing.
"""

# %% moving-figure tags=figure,check
wanted = torch.linspace(0.18, 0.82, 5)
layouts = [torch.tensor([[0.4, 0.38, 0.6, 0.62], [x - 0.16, 0.56, x + 0.16, 0.88]]) for x in wanted]
kinds = torch.tensor([OBJECTS.index("pine"), OBJECTS.index("house")])
noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)).expand(5, -1, -1, -1)
moving = drawn(by_boxes, {"boxes": layouts, "box_labels": [kinds] * 5}, start=noise, guidance=3.0)
houses = [[t.x for t in seen if t.kind == "house"] for seen in reading.things(moving, finder)]
far = [min([abs(x - float(w)) for x in h], default=1.0) for h, w in zip(houses, wanted)]
print("distance of a house from where it was asked for:", [f"{d:.2f}" for d in far])
assert sum(d < 0.1 for d in far) >= 4, "The house should follow its box."
words = "From one noise: a house asked for at five places from left to right, a pine in the middle."
frames = torch.stack([framed(p, (WHITE, b[1:]), (CYAN, b[:1])) for p, b in zip(moving, layouts)])
figures.pictures([moving, frames], words, left=("drawn", "asked"))

# %% moving-read [markdown]
r"""
**What to see.** The house goes where its box goes, and the pine stays. So does the rest, which
comes from the noise, and that is the same; but the house changes its colour, and there are two
moons. Nothing that is told says otherwise.

## Break it: four numbers

A colleague asks our model for layouts from annotation files. Four numbers say a box, and there are
three conventions: two corners (`xyxy` for short), a corner and the size (`xywh`, COCO's files), the
middle and the size (`cxcywh`, many detectors). Hers are of the second kind. `Boxes` refused them:
*number 1 is empty or inverted; give x0 y0 x1 y1*. "Easily repaired", she thought, and put the
corners in order.
"""


# %% xywh tags=check
def repaired(boxes):
    """Her boxes, x y w h, as the model is told them: read as x0 y0 x1 y1, and put in order."""
    first, second = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


true = torch.cat(scenes(range(200))["boxes"])
legal = float((true[:, :2] < true[:, 2:] - true[:, :2]).all(1).float().mean())
agree = float(iou(repaired(true), true).diag().mean())
print(f"{legal:.0%} of her boxes were legal as they were; mean IoU after the repair {agree:.2f}")
assert (repaired(true)[:, :2] < repaired(true)[:, 2:]).all() and agree < 0.3, "Legal, and wrong."

# %% xywh-figure tags=figure
meant = {key: several[key][:5] for key in ("image", "boxes", "box_labels")}
said = [repaired(b) for b in meant["boxes"]]
answers = drawn(by_boxes, {"boxes": said, "box_labels": meant["box_labels"]}, guidance=3.0)
rows = (meant["image"], [((WHITE, b), (AMBER, s)) for b, s in zip(meant["boxes"], said)])
above = [framed(x, *layers) for x, layers in zip(*rows)]
below = [framed(x, (AMBER, s)) for x, s in zip(answers, said)]
words = "Scenes with their boxes, white, and those the model is told, orange; what it draws."
names = [", ".join(OBJECTS[k] for k in kinds) for kinds in meant["box_labels"]]
left = ("annotated", "drawn")
figures.pictures([torch.stack(above), torch.stack(below)], words, above=names, left=left, scale=1)

# %% xywh-read [markdown]
r"""
**What to see.** Orange boxes are legal, and mean nothing: most are slivers near the horizon,
between a corner and a size. The model does its best with them. No line of code has complained.

A test of form cannot know what numbers mean, and a repair that is silent makes of an error a lie.
Note that a model *trained* on her own numbers would learn them: any convention will do, if it is
one. It is at the seams, from file to model and from training to use, that conventions meet.

Two tests know the meaning. *Look*: draw ten pictures with their frames. And *count*: an object
fills about half of its box. Exercise 3 makes a detector of that. """

# %% map-idea [markdown]
r"""
## 5. A map beside the latent

A semantic map has a name for each pixel, $s(y, x) \in \{0, \ldots, 12\}$. The latent has a cell for
each $f \times f$ pixels. So the map is brought to the latent's size: for each name $k$ the share of
the cell that has it. Then few channels are made of many by a learned matrix $M$, with no bias:

$$p_k(y, x) = \frac{1}{f^2} \sum_{i,j<f} \big[\, s(fy + i,\, fx + j) = k \,\big], \qquad
c = M p$$
"""


# %% map tags=check
def shares(segments, f=4, n=13):
    """(B, H, W) -> (B, n, H / f, W / f)"""
    return reduce(F.one_hot(segments, n).float(), "b (y i) (x j) k -> b k y x", "mean", i=f, j=f)


p = shares(test["segmentation"])
M = by_map.conditioner.channel_mapper.weight[:, :, 0, 0]
c = torch.einsum("ck, bkyx -> bcyx", M, p)
torch.testing.assert_close(c, by_map.conditioner(test).concat, atol=1e-5, rtol=1e-4)
torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))  # every cell is something
sizes = test["segmentation"][0].numel(), p[0].numel(), c[0].numel()
print("numbers for a picture: {} names, {} shares, {} for the UNet".format(*sizes))

# %% map-figure tags=figure
PALETTE = (
    *("#9fd0f5", "#ffd84d", "#dfe6f5", "#8a8fa3", "#7fb24a", "#f4f7ff", "#e8c77d", "#2f7ea8"),
    *("#d1403a", "#2f9d4a", "#14532d", "#86a32a", "#7c3aed"),
)
shown = [3, 1, 4, 5, 7]
maps = test["segmentation"][shown]
rgb = coloured(torch.arange(len(SEGMENTS))[None], PALETTE)[:, 0]  # (3, 13)
tinted = torch.einsum("ck, bkyx -> bcyx", rgb, p[shown].cpu())
rows = [coloured(maps, PALETTE), coloured(maps[:, 2::4, 2::4], PALETTE), tinted]
words = "Five maps; one pixel of sixteen; shares, as mixed colours; what the UNet sees."
left = ("the map", "nearest", "shares", "M times\nshares")
figures.pictures([*rows, figures.latent(c[shown], most=1.0)], words, left=left)

# %% map-read [markdown]
r"""
**What to see.** One pixel of sixteen keeps a mast or loses it by chance, and a moon becomes a
square. Shares keep all of it as a tint: a cell that is one third boat. The last row is what the
UNet sees, thirteen names in three numbers.

The original does the same by bilinear halvings, which are means over 2 x 2.

## 6. A new input for a trained network

The map goes in by the first convolution, which gets three channels more. Must one train from
nothing for that? No: give the new channels weights of **zero**. The network then says what it has
always said, whatever is on the map, and begins to listen with the first gradient.
"""


# %% widened
from ldm_lite.conditioners import Together, TogetherConfig
from ldm_lite.unet import UNet


def widened(unet, extra):
    """A copy that takes `extra` more channels beside z, and makes nothing of them yet."""
    wide, state = UNet(replace(unet.config, concat=extra)), unet.state_dict()
    state["stem.weight"] = F.pad(state["stem.weight"], (0, 0, 0, 0, 0, extra))
    wide.load_state_dict(state)
    return wide


# %% widened-check tags=check
base = LatentDiffusion.load("scenes-ldm4").to(device)
torch.manual_seed(0)
both = Together(TogetherConfig((base.conditioner.config, by_map.conditioner.config)))
both.parts[0].load_state_dict(base.conditioner.state_dict())
torch.nn.init.normal_(both.parts[1].channel_mapper.weight)  # maps as large as latents
wide = widened(base.denoiser, 3)
pupil = LatentDiffusion(base.first_stage, wide, base.diffusion, both).to(device)
z, clock = torch.randn(4, 3, 16, 16).to(device), torch.full((4,), 500.0).to(device)
nothing = {"label": torch.full((4,), 16, device=device)}  # the class that says nothing
mapped = nothing | {"segmentation": test["segmentation"][:4]}
new = pupil.denoiser(z, clock, pupil.conditioner(mapped))
old = base.denoiser(z, clock, base.conditioner(nothing))
torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-4)
print(f"largest difference, told a map: {float((new - old).abs().max()):.1e}")

# %% learn-idea [markdown]
r"""
Now it learns for a moment. What to watch? Not the training loss, which noise dominates. We ask for
the loss on the same held-out latents twice: told their own maps, and told each other's. As long as
both are equal, nobody listens.
"""

# %% learn
size, many = (96, 8) if fast else (512, 16)
course, held = scenes(range(size), "train"), scenes(range(16 if fast else 48))
encode = lambda batch: torch.cat(list(map(base.first_stage.encode, batch["image"].split(64))))
z_course, z_held = encode(course), encode(held)


def loss_with(maps):
    torch.manual_seed(1)  # the same noise each time
    nobody = torch.full((len(maps),), 16, device=device)
    batch = {"z": z_held, "label": nobody, "segmentation": maps}
    return float(pupil(batch, times=torch.linspace(0.5, 0.95, len(maps)).double()).mean())


# %% learn-loop
steps, every = (20, 5) if fast else (160, 16)
fresh = [pupil.denoiser.stem.weight, *pupil.conditioner.parts[1].parameters()]
known = [w for w in pupil.denoiser.parameters() if w is not fresh[0]]
for w in fresh + known:
    w.requires_grad_(True)
groups = [{"params": fresh, "lr": 3e-3}, {"params": known, "lr": 1e-4}]  # what is new may hurry
optimizer, history = torch.optim.Adam(groups), []
for step in range(steps + 1):
    if step % every == 0:
        maps = held["segmentation"]
        history.append((step, loss_with(maps), loss_with(maps.roll(1, 0))))
    torch.manual_seed(step)
    rows = torch.randint(size, (many,))
    batch = {"z": z_course[rows], "segmentation": course["segmentation"][rows]}
    batch["label"] = torch.full((many,), 16, device=device)
    with torch.enable_grad():
        pupil(batch).mean().backward()
    optimizer.step()
    optimizer.zero_grad()

# %% learn-figure tags=figure,check
at, own, others = zip(*history)
figure, axis = figures.canvas(6.5, 2.8)
axis.plot(at, others, "o-", color=figures.ORANGE, label="told another scene's map")
axis.plot(at, own, "o-", label="told its own map")
axis.set(xlabel="steps", title="loss of held-out latents")
axis.legend()
figures.show(figure, "The loss of held-out latents while the widened network learns, by map told.")
costs = [other / mine - 1 for mine, other in zip(own, others)]
print(f"a wrong map costs {costs[0]:.2%} before, {costs[-1]:.0%} after {steps} steps")
assert abs(costs[0]) < 1e-4, "It starts as the model it was, deaf to maps."
assert costs[-1] > 0.02, "A wrong map should cost something by now."

# %% learn-read [markdown]
r"""
**What to see.** Both curves begin at one point: deaf, exactly. Then they part, first because a
wrong map does harm, later because the right one helps.

Stable Diffusion's inpainting model and InstructPix2Pix [3] were begun in this way, and
`scenes-layout` with the UNet of `scenes-text`. `scenes-map`, which we use from here on, was trained
from nothing for 8,000 steps.

## 7. Is the map obeyed?

The package's reader names every pixel of a picture. We compare with the map that was asked for: IoU
again, of the pixels of each name, and its mean over the names that were asked for, mIoU.
"""


# %% miou
from ldm_lite.features import Features

reader = Features("scenes").to(device)


def read(images):
    return torch.cat([reader.read(x.to(device)).segmentation for x in images.split(64)])


def by_name(asked, shown):
    """{name: IoU} of the names asked for, of two maps (B, H, W)"""
    a, s = (F.one_hot(m, len(SEGMENTS)).bool().flatten(0, 2) for m in (asked, shown))
    scores = (a & s).sum(0) / (a | s).sum(0).clamp(min=1)
    return {name: float(v) for name, v, n in zip(SEGMENTS, scores, a.sum(0)) if n}


mean = lambda scores: sum(scores.values()) / len(scores)

# %% miou-run tags=check
maps = test["segmentation"][: 8 if fast else 48]
real = test["image"][: len(maps)]
landscapes = drawn(by_map, {"segmentation": maps})
looks = {"scenes": real, "decoded": by_map.decoded(by_map.first_stage.encode(real))}
looks |= {"samples": landscapes, "of other maps": landscapes.roll(1, 0)}
seen_maps = {name: read(images) for name, images in looks.items()}
scores = {name: by_name(maps, seen) for name, seen in seen_maps.items()}
for name, values in scores.items():
    print(f"{name}: mIoU {mean(values):.3f}")
    assert abs(mean(values) - runs.miou(maps.cpu(), seen_maps[name].cpu())) < 1e-3, name
assert mean(scores["samples"]) > 0.65, "The model should draw what the map says."
assert mean(scores["samples"]) > mean(scores["of other maps"]) + 0.25, "And not by chance."

# %% miou-figure tags=figure
shown = range(min(7, len(maps)))
flat = [coloured(m[shown], PALETTE) for m in (maps, seen_maps["samples"])]
words = "Seven maps, a picture drawn for each, and the map that the reader sees in it."
figures.pictures([flat[0], landscapes[shown], flat[1]], words, left=("asked", "drawn", "read"))

# %% miou-read [markdown]
r"""
**What to see.** The first and the last row are hard to tell apart, down to the notches of a ridge.
What differs lies along outlines, where a cell is part this and part that, and at suns behind
clouds.

The numbers bracket the model: real scenes, and real scenes through the autoencoder, above which it
hardly comes; other people's pictures, which share a sky and a ground. The map fixes *where*, and no
colour, no texture: those are drawn anew. The time of day it tells: a moon is night.

## 8. Paint a landscape

Nobody paints in a stored notebook, so here is a map made of shapes. With `anywidget` installed, you
get a canvas: paint over it, then run the cell below it. Again, and again.
"""

# %% paint tags=figure
number = SEGMENTS.index
ridge = (0, 0.4, 0.2, 0.3, 0.35, 0.4, 0.6, 0.28, 0.8, 0.42, 1, 0.36)
scenery = [
    ("ellipse", number("sun"), (0.68, 0.1, 0.84, 0.26)),
    ("polygon", number("mountain"), (0, 0.5, *ridge, 1, 0.5)),
    ("rectangle", number("grass"), (0, 0.48, 1, 1)),
    ("rectangle", number("house"), (0.14, 0.6, 0.46, 0.8)),
    ("polygon", number("house"), (0.1, 0.62, 0.3, 0.46, 0.5, 0.62)),
    ("polygon", number("pine"), (0.6, 0.72, 0.7, 0.4, 0.8, 0.72)),
    ("polygon", number("pine"), (0.74, 0.74, 0.86, 0.38, 0.98, 0.74)),
]
start, words = shapes(torch.zeros(64, 64), scenery), "A map to start from, and its thirteen names."
painting = painter(start, PALETTE, SEGMENTS, words)

# %% paint-read [markdown]
r"""
**What to see.** Thirteen names, flat colours. No shadow is on this map, no snow on the peaks, no
door in the house.
"""

# %% painted-figure tags=figure
again = painting.labels.to(device).expand(5, -1, -1)
painted = drawn(by_map, {"segmentation": again}, seed=2)
words = "The map as it is painted now, and five pictures of it from five noises."
figures.pictures(torch.cat([coloured(painting.labels, PALETTE)[None], painted]), words)
print(f"mIoU of the map and what is read: {mean(by_name(again, read(painted))):.2f}")

# %% painted-read [markdown]
r"""
**What to see.** Peaks got snow, trees a shadow, the house a door and a colour: white, yellow or
red. The map's author never asked for that.

**Stronger, please?** With boxes we could turn guidance up. Not here. Guidance leads from what the
model says *without* the condition to what it says with it, and this model was never without. An
empty map is no "no map"; all zeros are something that it has not seen. So there is no null, the
package does not guide, and draws the same picture:
"""

# %% no-null tags=check
told, null = by_map.conditions({"segmentation": maps[:2]})
assert null is None, "A map beside the latent has no null condition."
weak, strong = (drawn(by_map, {"segmentation": maps[:2]}, 4, guidance=w) for w in (1.0, 7.0))
assert torch.equal(weak, strong), "Without a null there is nothing to lead away from."
told, null = by_boxes.conditions({"boxes": [b], "box_labels": [k]})
print("boxes have a null of", tuple(null.context.shape), "tokens; the map has none")

# %% no-null-read [markdown]
r"""
Nor can one leave *half* of a map open: every pixel has a name. Exercise 2 gives the map a
fourteenth, "anything", and with it both wishes come true.

## Break it: a map that was resized

Your map is small, 16 pixels a side, as a sketch is. The model wants 64. Labels are numbers, so a
colleague calls `F.interpolate(..., mode="bilinear")` and rounds. In many a library for images that
is the default.
"""

# %% resize tags=figure,check
sketch, rows = scenes([3, 1, 61, 9, 4])["segmentation"][:, 2::4, 2::4], []
larger = lambda mode: F.interpolate(sketch[:, None].float(), (64, 64), mode=mode)[:, 0]
ways = {"nearest": larger("nearest").long(), "bilinear": larger("bilinear").round().long()}
for way, m in ways.items():
    added = [set(a.unique().tolist()) - set(b.unique().tolist()) for a, b in zip(m, sketch)]
    print(f"{way}: names that are not in the sketch:", end=" ")
    print("; ".join(", ".join(SEGMENTS[i] for i in sorted(row)) or "none" for row in added))
    assert any(added) == (way == "bilinear"), "Nearest invents no names."
    rows += [coloured(m, PALETTE), drawn(by_map, {"segmentation": m}, seed=1)]
words = "Five sketches brought from 16 to 64 pixels in two ways, and pictures drawn for them."
figures.pictures(rows, words, left=("nearest", "drawn", "bilinear", "drawn"))

# %% resize-read [markdown]
r"""
**What to see.** Half way from sky, 0, to boat, 12, is 6: sand. On the way lie all other names, so
each outline gets a hem of things that are not there. The model obeys: boats are drawn as trees or
grow green, and haze gathers at edges. From rough sketches by nearest it draws fine boats and
houses.

A mean of names is not a name. Resize labels by nearest, or take shares, as the package does: those
are means of *ones and zeros*, which do mean something.
"""

# %% larger [markdown]
r"""
## 9. Larger than it was taught

The UNet is made of convolutions and attention. Neither has the picture's size in its weights. So a
model of 64 x 64 pixels can be run on any size that its halvings divide (the paper's section 4.3.2:
maps of 256 pixels learned, 512 x 1024 drawn). Below: a wide map for one model; and two classes,
with no map, for another.
"""

# %% larger-figure tags=figure
tops = (0, 0.4, 0.1, 0.3, 0.25, 0.4, 0.5, 0.28, 0.6, 0.42, 0.8, 0.36, 0.9, 0.4, 1, 0.3)
scenery = [
    ("ellipse", number("sun"), (0.48, 0.1, 0.56, 0.26)),
    ("polygon", number("mountain"), (0, 0.5, *tops, 1, 0.5)),
    ("rectangle", number("water"), (0, 0.48, 1, 1)),
    ("polygon", number("grass"), (0, 0.48, 0.42, 0.48, 0.5, 1, 0, 1)),
    ("rectangle", number("house"), (0.07, 0.61, 0.23, 0.8)),
    ("polygon", number("house"), (0.05, 0.62, 0.15, 0.46, 0.25, 0.62)),
    ("polygon", number("pine"), (0.27, 0.68, 0.32, 0.4, 0.37, 0.68)),
    ("polygon", number("boat"), (0.6, 0.76, 0.8, 0.76, 0.77, 0.83, 0.63, 0.83)),
    ("polygon", number("boat"), (0.7, 0.74, 0.7, 0.4, 0.62, 0.74)),
    ("polygon", number("boat"), (0.71, 0.74, 0.71, 0.45, 0.79, 0.74)),
]
panorama = shapes(torch.zeros(64, 128), scenery)
wide = drawn(by_map, {"segmentation": panorama.to(device)[None]}, size=(64, 128))
classes = {"label": torch.tensor([4, 7]).to(device)}
square = drawn(base, classes, size=(128, 128), guidance=2.0)
tall = torch.cat([coloured(panorama, PALETTE), wide[0]], 1)  # one above the other
words = "A map of 128 x 64 pixels, its picture below; two of 128 x 128 for a class, without a map."
figures.pictures(torch.cat([tall[None], square]), words, scale=2)

# %% larger-read [markdown]
r"""
**What to see.** The wide map becomes one picture, with one light: what is on the map goes where the
map says. Without a map something else happens, on the right: one sky above, and a ground with room
for many more objects. They are as large as they were, and stand as far down as the lower border.
The picture is not enlarged, it is *continued*. A convolution knows sizes in pixels.

And self-attention? It was trained on few places, and now there are four times as many. Its weights
still sum to one, so they may spread thinner. And each place is compared with each: four times the
places, sixteen times the products.
"""


# %% attention tags=check
def looked_at(unet, z, told):
    """(places, how many of them a place looks at, e to the entropy), in each self-attention."""
    layers, said = [m for m in unet.modules() if isinstance(m, SelfAttention)], []
    hooks = [m.qkv.register_forward_hook(lambda *args: said.append(args[2])) for m in layers]
    unet(z, torch.full((len(z),), 500.0).to(z), told)
    for layer, hook, qkv in zip(layers, hooks, said):
        hook.remove()
        pattern = "b (n three d) y x -> three b n (y x) d"
        q, k, _ = rearrange(qkv, pattern, n=layer.heads, three=3)
        share = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        yield share.shape[-1], float(torch.special.entr(share).sum(-1).exp().mean())


seen = []
for images in (drawn(base, classes, guidance=2.0), square):
    z0 = base.first_stage.encode(images.to(device))
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1)).to(device)
    z = base.diffusion.noised(z0, noise, torch.full((2,), 0.5))
    seen.append(list(looked_at(base.denoiser, z, base.conditioner(classes))))
for (n, at_home), (m, abroad) in zip(*seen):
    print(f"of {n:2} places {at_home:2.0f} are looked at; of {m:3}, {abroad:3.0f}")
    assert abroad > 1.5 * at_home, "Attention spreads with the canvas."

# %% snr-idea [markdown]
r"""
Each place looks at several times as many, with weights several times as small. What comes out is
a mean over more of the picture, and a network that has only met means over few may be off. Ours
bears it, at twice the side.

There is one more trap, which the paper met (its appendix D.1). Noise is drawn for each cell of the
latent alone. In the mean of $p \times p$ cells it is $p$ times weaker, while skies and grounds are
as strong as ever. So what is large is seen through much noise: it is decided *early*, and what is
small late. For patches of $p \times p$ cells of latents that are $k$ times too large,

$$\mathrm{SNR}_p(t) = \frac{\alpha_t^2}{\sigma_t^2}\; k^2 p^2\,
  \mathrm{Var}\big[\text{mean of } p \times p \text{ cells of } z_0\big]$$
"""

# %% snr-figure tags=figure,check
z0 = by_map.first_stage.encode(test["image"])
line = torch.linspace(0.01, 1, 400).double()
alpha, sigma = schedule(line)
raw = 1 / float(by_map.first_stage.scale)  # the deviation of what the encoder itself says
figure, axis = figures.canvas(7.5, 3.0)
drowned = {}
for p_, colour in ((1, figures.BLUE), (4, figures.GREEN), (16, figures.ORANGE)):
    patch = F.avg_pool2d(z0, p_).var(dim=(0, 2, 3)).mean()
    for k_, style in ((1.0, "-"), (raw, "--")):
        ratio = (k_ * p_ * alpha / sigma) ** 2 * float(patch)
        label = f"{p_} x {p_} cells" + (", not scaled" if k_ != 1 else "")
        axis.semilogy(line, ratio, style, color=colour, label=label)
        drowned[p_, k_ == 1] = float(line[ratio < 1][0])
axis.axhline(1, color=figures.SOFT, lw=1)
axis.set(xlabel="time t", title="signal to noise, of patches", ylim=(1e-4, 1e4))
axis.legend(fontsize=8)
figures.show(figure, "SNR by time, of patches of three sizes, of latents that are scaled and not.")
print("more noise than signal from t =", {f"{p_}": f"{drowned[p_, True]:.2f}" for p_ in (1, 4, 16)})
assert drowned[1, True] < drowned[4, True] < drowned[16, True], "What is large is decided first."
assert all(drowned[p_, False] > drowned[p_, True] for p_ in (1, 4, 16)), "Unscaled: earlier still."

# %% snr-read [markdown]
r"""
**What to see.** Sampling goes from right to left. The mean of a whole picture (orange) comes out of
the noise first, single cells (blue) last. Latents that are not scaled (dashed) are wider, and all
of it happens earlier. The paper reports what follows for its KL models: much of the meaning is
settled in the very first steps, and large pictures come out worse; dividing by the standard
deviation helps. Our first stage does so (notebook 07). We have not trained a model without.

## 10. Windows

What does not fit into memory at once goes in windows [1, 4]. The denoiser is asked for each, and
where they overlap, a weighted mean is taken of what it says, $o_i$:

$$o(x) = \sum_i \hat w_i(x)\, o_i(x), \qquad \hat w_i(x) = \frac{w_i(x)}{\sum_j w_j(x)}$$

with weights $w_i$ that fall towards the borders of a window.
"""


# %% windows tags=check
def begins(n, side, overlap):
    many = max(1, math.ceil((n - overlap) / (side - overlap)))
    return [round(i * (n - side) / max(1, many - 1)) for i in range(many)]


def hats(n, side, overlap):
    """(windows, n): each window's weights along a side, and sums of one over the windows."""
    at = torch.arange(side) + 0.5
    w = torch.zeros(len(begins(n, side, overlap)), n)
    for i, b in enumerate(begins(n, side, overlap)):
        w[i, b : b + side] = (torch.minimum(at, side - at) / max(overlap, 0.5)).clamp(max=1)
    return w / w.sum(0)


def by_windows(run, z, *cut):
    """run(rows, columns) -> what the network says of a window; cut: its side and the overlap."""
    out = torch.zeros_like(z)
    (down, high), (across, wide) = ((begins(n, *cut), hats(n, *cut)) for n in z.shape[2:])
    for y, wy in zip(down, high):
        for x, wx in zip(across, wide):
            rows, columns = slice(y, y + cut[0]), slice(x, x + cut[0])
            weight = wy[rows, None] * wx[columns]
            out[..., rows, columns] += weight.to(z) * run(rows, columns)
    return out


for n, side, overlap in ((48, 16, 0), (48, 16, 4), (45, 16, 7)):
    torch.testing.assert_close(hats(n, side, overlap).sum(0), torch.ones(n))
z = torch.randn(1, 3, 21, 40, generator=torch.Generator().manual_seed(0))
run = lambda rows, columns: z[..., rows, columns].cumsum(3)  # which depends on the window
same = windows.blended(run, 21, 40, 16, 5)
torch.testing.assert_close(by_windows(run, z, 16, 5), same)
agreed = by_windows(lambda rows, columns: z[..., rows, columns], z, 16, 5)
torch.testing.assert_close(agreed, z)  # where all windows say the same, so does the whole

# %% seams-idea [markdown]
r"""
One wide map in three, four and five windows: overlaps of 0, 16 and 32 pixels. Only those that hold
the sun are told the time of day. Do windows agree?
"""

# %% seams-figure tags=figure,check
long = torch.cat([panorama, panorama.flip(1)], 1)[:, :192]
long = shapes(long, [("rectangle", number("sky"), (0.9, 0, 1, 0.27))]).to(device)[None]  # one sun
strip = lambda **how: drawn(by_map, {"segmentation": long}, size=(64, 192), **how)
strips = {f"overlap {o}": strip(window=64, overlap=o) for o in (0, 16, 32)}
strips["one piece"] = strip()


def seam(image):
    """How much a column differs from the next at the windows' borders, in parts of elsewhere."""
    jump = image.diff(dim=3).abs().mean((0, 1, 2))
    return float(jump[[63, 127]].mean() / jump.median())


steps_at = {how: seam(image) for how, image in strips.items()}
print("the step at the borders, in parts of the usual:", end=" ")
print(", ".join(f"{how} {value:.1f}" for how, value in steps_at.items()))
assert steps_at["overlap 0"] > 2 * steps_at["overlap 16"], "Without overlap windows have borders."
words = "One map of 192 x 64 pixels, drawn in windows of 64 with three overlaps, and in one piece."
figures.pictures(list(strips.values()), words, left=list(strips), columns=1, scale=3)

# %% seams-read [markdown]
r"""
**What to see.** With no overlap there are borders: the third window, without a sun, has its own
time of day. With overlap the borders are gone and the disagreement is not: day turns to night and
then dusk (16 pixels), or to dusk (32). In one piece there is one light.

Blending hides a border; it does not make windows *agree*. Only what all are told does that. Without
a map it is worse: each window believes that it is a picture, and draws its own sun or, below
another, its own horizon.

What do windows save? We count the bytes that are alive during one call of the denoiser, at most.
"""


# %% memory tags=check
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """most: the bytes of the tensors that were made and not yet forgotten, at their most."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                self.made[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.made = {k: v for k, v in self.made.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.made.values()))
        return out


def megabytes(run, side):
    cond = by_map.conditioner({"segmentation": torch.zeros(1, side, side, device=device).long()})
    z, clock = torch.randn(1, 3, side // 4, side // 4).to(device), torch.full((1,), 500.0)
    with Alive() as count:
        count.made, count.most = {}, 0
        run(z, clock.to(z), cond)
    return count.most / 2**20


unet, needs = by_map.denoiser, {}
for side in (64, 128, 256) if fast else (64, 128, 256, 512):
    needs[side] = megabytes(unet, side), megabytes(windows.windowed(unet, 16, 4), side)
    print("{0} x {0}: {1:.1f} MiB at once, {2:.1f} by windows of 64".format(side, *needs[side]))
assert needs[256][0] > 2.5 * needs[128][0], "At once, memory grows with the area."
assert needs[256][1] < 0.5 * needs[256][0], "By windows, little more than one window's."

# %% memory-read [markdown]
r"""
At once, memory grows with the area; by windows, only what holds the picture does. (Time by windows
grows with the area, overlaps done twice; at once, attention's grows with its square.) Attention's
table of products is not among it: the fused kernel of PyTorch never holds it whole.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check below your code tells whether it is right, and if
not, what to look at. Solutions are folded below; give yourself the time first.
"""

# %% set [exercise] title="A layout without an order" difficulty=1 minutes=6
r"""
A matrix behind the three words of a box, end to end, is the same as three tables. Write
`tokens(boxes, kinds, tables)`: **one** token for each box, (K, 8), the sum of three rows, one from
each table: of its kind, of its upper left and of its lower right corner. `corner(points, 32)` is at
hand.
"""


# %% [stub]
def tokens(boxes, kinds, tables):
    # of_kind, of_upper, of_lower = tables
    return ...


# %% [check]
from ldm_lite.course.checks import check

generator = torch.Generator().manual_seed(0)
tables_ = [torch.randn(n, 8, generator=generator) for n in (5, 1024, 1024)]
three_ = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9], [0.0, 0.5, 0.3, 0.8]])
kinds_ = torch.tensor([0, 3, 1])
praise = "A set of such tokens has no order to learn, and nothing gets lost."
with check("A layout without an order", "tokens still returns ...", praise) as c:
    mine_ = tokens(three_, kinds_, tables_)
    c.answered(mine_)
    c.that(mine_.shape != (9, 8), "Nine tokens: which corner belongs to which kind? Add them up.")
    a_, u_, l_ = tables_
    up_, low_ = corner(three_[:, :2], 32), corner(three_[:, 2:], 32)
    mistakes = {
        "The lower right corner has a table of its own.": a_[kinds_] + u_[up_] + u_[low_],
        "x1 y1 are the last two numbers of a box.": a_[kinds_] + u_[up_] + l_[up_],
        "Add them up, without a mean.": (a_[kinds_] + u_[up_] + l_[low_]) / 3,
    }
    right_ = a_[kinds_] + u_[up_] + l_[low_]
    c.close(mine_, right_, "Not the sum of the three rows.", mistakes=mistakes)
    turned_ = tokens(three_.flip(0), kinds_.flip(0), tables_)
    c.close(turned_.flip(0), mine_, "Another order of boxes must give the same tokens.")


# %% [solution]
def tokens(boxes, kinds, tables):
    of_kind, of_upper, of_lower = tables
    upper, lower = corner(boxes[:, :2], 32), corner(boxes[:, 2:], 32)
    return of_kind[kinds] + of_upper[upper] + of_lower[lower]


# %% [wrong]
def tokens(boxes, kinds, tables):
    of_kind, of_upper, of_lower = tables
    upper, lower = corner(boxes[:, :2], 32), corner(boxes[:, 2:], 32)
    return torch.cat([of_kind[kinds], of_upper[upper], of_lower[lower]])


# %% anything [exercise] title="White spots" difficulty=2 minutes=8
r"""
A painter may want to leave spots open, and guidance needs a map that says nothing. Write
`open_shares(segments)`: like `shares`, (B, H, W) to (B, 14, H / 4, W / 4), but -1 is allowed in
`segments`, and means "anything". The fourteenth channel is its share.
"""


# %% [stub]
def open_shares(segments):
    return ...


# %% [check]
painted_ = test["segmentation"][:2].clone()
painted_[0, :10, 20:41] = -1
painted_[1] = -1
masks_ = torch.stack([painted_ == k for k in (*range(13), -1)], 1).float()
praise = "Trained with random white spots, such a model can be guided, and filled in."
with check("White spots", "open_shares still returns ...", praise) as c:
    mine_ = open_shares(painted_)
    c.answered(mine_)
    c.that(mine_.shape == (2, 14, 16, 16), "(B, 14, H / 4, W / 4): one channel more than names.")
    c.close(mine_.sum(1), torch.ones(2, 16, 16), "The shares of a cell must sum to one.")
    c.that((mine_[1, 13] == 1).all(), "The second map is all white: its last channel is 1.")
    c.that((mine_[0, 0, :2, 6:10] == 0).all(), "White is not sky: -1 must not become another name.")
    c.close(mine_, F.avg_pool2d(masks_, 4), "Shares are of all 16 pixels of a cell, white or not.")


# %% [solution]
def open_shares(segments):
    return shares(torch.where(segments < 0, 13, segments), n=14)


# %% [wrong]
def open_shares(segments):
    known = shares(segments.clamp(min=0))
    return torch.cat([known, 1 - known.sum(1, keepdim=True)], 1)


# %% convention [exercise] title="Which convention?" difficulty=3 minutes=15
r"""
Boxes come as `"corners"`, `"corner and size"` or `"middle and size"`, and nobody wrote down which.
Write `convention(boxes, kinds, segmentation)`: lists of (K, 4) and (K,), and maps (B, 64, 64),
where the pixels of an object of kind `k` are `8 + k`. Return one of the three strings. Read the
boxes in each way, and see how much of them is of their kind.
"""


# %% [stub]
def convention(boxes, kinds, segmentation):
    # readings = {"corners": lambda b: b, "corner and size": ..., "middle and size": ...}
    return ...


# %% [check]
quiz_ = scenes(range(40))
quiz_ = quiz_ | {"segmentation": quiz_["segmentation"].cpu()}
sizes_ = lambda b: b[:, 2:] - b[:, :2]
written_ = {
    "corners": lambda b: b,
    "corner and size": lambda b: torch.cat([b[:, :2], sizes_(b)], 1),
    "middle and size": lambda b: torch.cat([b[:, :2] + sizes_(b) / 2, sizes_(b)], 1),
}
praise = "A test of meaning: it looks at pictures, and no test of form could do it."
with check("Which convention?", "convention still returns ...", praise) as c:
    mild_ = [i for i, b in enumerate(quiz_["boxes"]) if (b[:, :2] + 1.5 * sizes_(b) <= 1).all()]
    for rows_ in (range(40), mild_):  # the second are legal in more than one way
        for right_, write_ in written_.items():
            said_ = convention(
                [write_(quiz_["boxes"][i]) for i in rows_],
                [quiz_["box_labels"][i] for i in rows_],
                quiz_["segmentation"][list(rows_)],
            )
            c.answered(said_)
            c.that(said_ == right_, f"{len(rows_)} scenes had {right_}; you say {said_}.")


# %% [solution]
def convention(boxes, kinds, segmentation):
    half = lambda b: b[:, 2:] / 2
    readings = {
        "corners": lambda b: b,
        "corner and size": lambda b: torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], 1),
        "middle and size": lambda b: torch.cat([b[:, :2] - half(b), b[:, :2] + half(b)], 1),
    }

    def filled(read):
        hits = total = 0
        for b, k, m in zip(boxes, kinds, segmentation):
            cells = (read(b).clamp(0, 1) * 64).round().long().tolist()
            for (x0, y0, x1, y1), kind in zip(cells, k.tolist()):
                hits += int((m[y0:y1, x0:x1] == 8 + kind).sum())
                total += max(0, y1 - y0) * max(0, x1 - x0) + int((m == 8 + kind).sum())
        return hits / total

    return max(readings, key=lambda name: filled(readings[name]))


# %% [wrong]
def convention(boxes, kinds, segmentation):
    every = torch.cat(boxes)
    if (every[:, :2] < every[:, 2:]).all():
        return "corners"
    inside = (every[:, :2] + every[:, 2:] <= 1.0).all()
    return "corner and size" if inside else "middle and size"


# %% summary [markdown]
r"""
## Summary

- Tokens carry lists and must learn where; maps stand where they act, cost next to nothing, and have
  to be complete.
- A box is three words, joined into one token. The grid rounds; a set has no order; the empty list
  is what guidance leads away from.
- Whether a picture obeys is a number, IoU or mIoU, between chance and what real scenes get.
- New channels with zero weights change nothing, until they learn.
- Numbers of boxes and names of pixels can be wrong and look right. Draw them; count.
- A convolutional model continues a picture beyond its size. Windows save memory, and agree only on
  what they are told.

**What next.** Notebook 11 lays pictures beside the latent: small ones to be enlarged, and ones with
a hole. 12 asks when one model is better than another.
"""

# %% references [markdown]
r"""
## References

1. R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
   Latent Diffusion Models.* CVPR 2022: sections 3.3 and 4.3, appendices D and E.
   [arXiv 2112.10752](https://arxiv.org/abs/2112.10752)
2. Y. Li, H. Liu, Q. Wu et al. *GLIGEN: Open-Set Grounded Text-to-Image Generation.* CVPR 2023:
   boxes as waves, one token each. [arXiv 2301.07093](https://arxiv.org/abs/2301.07093)
3. T. Brooks, A. Holynski, A. A. Efros. *InstructPix2Pix.* CVPR 2023: new channels, begun at zero.
   [arXiv 2211.09800](https://arxiv.org/abs/2211.09800)
4. O. Bar-Tal, L. Yariv, Y. Lipman, T. Dekel. *MultiDiffusion.* ICML 2023: windows averaged in every
   step. [arXiv 2302.08113](https://arxiv.org/abs/2302.08113)
"""
