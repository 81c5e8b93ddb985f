"""The built-in data: little landscapes drawn from (seed, split, index) alone, at any size, with exact truth.

The sky is drawn by time of day, the ground by biome, then a ridge, sun or moon, and one to four objects, larger when
nearer. Coordinates are in [0, 1], y down. Pictures are equal on every platform: all arithmetic is elementwise
+ - * / sqrt, which IEEE 754 rounds exactly, and all randomness is integer hashing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import InputError, suggest

TIMES = ("dawn", "day", "dusk", "night")
BIOMES = ("grass", "snow", "sand", "water")
LABELS = tuple(f"{time} {biome}" for time in TIMES for biome in BIOMES)
OBJECTS = ("house", "tree", "pine", "cactus", "boat")
SEGMENTS = ("sky", "sun", "moon", "mountain", *BIOMES, *OBJECTS)
COLOURS = ("red", "blue", "yellow", "white")
KEYS = ("image", "label", "caption", "boxes", "box_labels", "segmentation")
SPLITS = {"train": 1_000_000, "validation": 10_000, "test": 10_000}

HOUSE, TREE, PINE, CACTUS, BOAT = range(5)
LIVES = ((HOUSE, TREE, PINE), (HOUSE, PINE, HOUSE), (HOUSE, CACTUS, CACTUS), (BOAT, BOAT, BOAT))  # by biome
WIDTH, HEIGHT = (1.0, 0.92, 0.78, 0.72, 1.0), (0.98, 1.22, 1.45, 1.30, 1.12)  # of each object; height in its widths
MOST = 4  # objects

# Colours in [0, 1]. Sky: at the top, half way, and at the horizon, by time; light multiplies what it falls on.
SKY = np.array(
    [
        [[0.38, 0.56, 0.76], [0.72, 0.72, 0.80], [1.00, 0.80, 0.62]],
        [[0.20, 0.48, 0.88], [0.44, 0.69, 0.95], [0.78, 0.90, 0.98]],
        [[0.27, 0.15, 0.42], [0.70, 0.27, 0.42], [1.00, 0.60, 0.24]],
        [[0.03, 0.04, 0.15], [0.07, 0.11, 0.27], [0.17, 0.24, 0.44]],
    ],
    np.float32,
)
LIGHT = np.array([[1.0, 0.87, 0.80], [1.0, 1.0, 0.98], [0.95, 0.68, 0.57], [0.40, 0.46, 0.70]], np.float32)
GROUND = np.array([[0.40, 0.62, 0.22], [0.93, 0.96, 1.00], [0.93, 0.77, 0.47], [0.13, 0.45, 0.62]], np.float32)
GRAIN = np.array([0.012, 0.0, 0.0, 0.05, *(0.16, 0.035, 0.07, 0.10), *(0.06, 0.16, 0.16, 0.10, 0.05)], np.float32)
PAINT = np.array([[0.84, 0.23, 0.19], [0.22, 0.42, 0.80], [0.96, 0.80, 0.28], [0.95, 0.94, 0.91]], np.float32)
ROOF = np.array([[0.44, 0.20, 0.16], [0.33, 0.27, 0.33], [0.62, 0.30, 0.20], [0.38, 0.42, 0.50]], np.float32)
LAMP = (1.0, 0.84, 0.42)

Array = np.ndarray


class Scenes(Dataset):
    """Items are dicts of

    image (3, size, size) in [-1, 1] · caption · label, LABELS[label] = time and biome
    boxes (K, 4) as x0 y0 x1 y1 in [0, 1], nearest last · box_labels (K,), OBJECTS[i]
    segmentation (size, size), SEGMENTS[i]

    split: train, validation and test are disjoint streams. size: 16 to 512 pixels. texture: how much of the fine detail
    (grass, ripples, grain) is drawn, 0 for none. seed: another world of scenes. count: only the first so many. keys: of
    KEYS, what `batch` returns."""

    label_names, box_names, segment_names = LABELS, OBJECTS, SEGMENTS

    def __init__(
        self,
        split: Literal["train", "validation", "test"] = "train",
        size: int = 64,
        texture: float = 1.0,
        seed: int = 0,
        count: int | None = None,
        keys: Sequence[str] = ("image", "label"),
    ):
        for key in keys:
            if key not in KEYS:
                raise suggest(key, KEYS, "key of Scenes")
        if split not in SPLITS:
            raise suggest(split, SPLITS, "split of Scenes")
        if not 16 <= size <= 512:
            raise InputError(f"size: {size} is not from 16 to 512; Scenes are drawn at these sizes")
        if count is not None and not 1 <= count <= SPLITS[split]:
            raise InputError(f"count: {count} is not from 1 to {SPLITS[split]}")
        self.split, self.size, self.texture, self.seed = split, size, float(texture), seed
        self.count, self.keys = SPLITS[split] if count is None else count, tuple(keys)

    def __repr__(self) -> str:
        return f"Scenes({self.split}, size={self.size}, texture={self.texture}, seed={self.seed}, count={self.count})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        plan = self.plan([row])
        pixels, segments = paint(plan, self.size, self.texture)
        boxes, kinds = plan.boxes(0)
        return {
            "image": torch.from_numpy(pixels[0]).float() / 127.5 - 1,
            "caption": plan.caption(0),
            "label": int(plan.label[0]),
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(kinds).long(),
            "segmentation": torch.from_numpy(segments[0]).long(),
        }

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """{"image": uint8 (B, 3, size, size), "label": (B,)} of these rows, many at once: the fast way.

        Of other `keys`: segmentation uint8 (B, size, size); caption, boxes and box_labels as lists."""
        at_once = max(1, 16 * 64**2 // self.size**2)  # what fits the processor's cache
        plans = [self.plan(rows[i : i + at_once]) for i in range(0, len(rows), at_once)]
        painted = [paint(plan, self.size, self.texture) for plan in plans]
        each = [(plan, i) for plan in plans for i in range(len(plan.label))]
        found: dict[str, Any] = {
            "image": torch.from_numpy(np.concatenate([pixels for pixels, _ in painted])),
            "label": torch.from_numpy(np.concatenate([plan.label for plan in plans])),
        }
        if "segmentation" in self.keys:
            found["segmentation"] = torch.from_numpy(np.concatenate([s for _, s in painted]).astype(np.uint8))
        if "caption" in self.keys:
            found["caption"] = [plan.caption(i) for plan, i in each]
        if "boxes" in self.keys or "box_labels" in self.keys:
            boxes = [tuple(map(torch.from_numpy, plan.boxes(i))) for plan, i in each]
            found |= {"boxes": [b for b, _ in boxes], "box_labels": [kinds.long() for _, kinds in boxes]}
        return {key: found[key] for key in self.keys}

    def plan(self, rows: Sequence[int]) -> Plan:
        """What the scenes of these rows consist of. IndexError beyond the end."""
        rows = [row + self.count if row < 0 else int(row) for row in rows]
        for row in rows:
            if not 0 <= row < self.count:
                raise IndexError(f"row {row} of {self.count}")
        start = hashed(np.array([self.seed], np.uint64), list(SPLITS).index(self.split) + 1)
        return planned(hashed(start ^ np.array(rows, np.uint64), 0))


class Quiz(Scenes):
    """Scenes with the answers that a reader of them learns, a batch at a time; for training in any texture.

    batch(rows) -> image uint8 (B, 3, size, size) · label (B,) · counts (B, 5) of each kind of object, 0 to 4 ·
    segmentation uint8 (B, size, size)"""

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        plan = self.plan(rows)
        texture = 2 * self.texture * uniform(plan.key, 99) if self.split == "train" else self.texture
        pixels, segments = paint(plan, self.size, texture)
        counts = np.stack([(plan.there & (plan.kind == kind)).sum(1) for kind in range(len(OBJECTS))], 1)
        answers = {"image": pixels, "label": plan.label, "counts": counts, "segmentation": segments.astype(np.uint8)}
        return {name: torch.from_numpy(values) for name, values in answers.items()}


class Census(Scenes):
    """Scenes with every object in them, a batch at a time; for training in any texture.

    batch(rows) -> image uint8 (B, 3, size, size) · boxes (B, MOST, 4) · kinds (B, MOST), -1 where there is none ·
    colours (B, MOST)"""

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        plan = self.plan(rows)
        texture = 2 * self.texture * uniform(plan.key, 99) if self.split == "train" else self.texture
        kinds = np.where(plan.there, plan.kind, -1)
        answers = {"boxes": plan.extents(), "kinds": kinds, "colours": plan.colour}
        answers["image"] = paint(plan, self.size, texture)[0]
        return {name: torch.from_numpy(values) for name, values in answers.items()}


# Randomness: integer hashing ----------------------------------------------------------------------------------------


def hashed(key: Array, slot: int) -> Array:
    """A uint64 for each key and slot: splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = key + np.uint64((0x9E3779B97F4A7C15 * (slot + 1)) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(key: Array, slot: int) -> Array:
    """float32 in [0, 1) for each key, by 24 bits."""
    return (hashed(key, slot) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def lattice(key: Array, slot: int, *shape: int) -> Array:
    """(B, *shape) independent uniforms for each key, hashed in 32 bits."""
    n = math.prod(shape)
    start = (hashed(key, slot) >> np.uint64(32)).astype(np.uint32)
    with np.errstate(over="ignore"):
        z = start[:, None] + np.arange(n, dtype=np.uint32)[None] * np.uint32(0x9E3779B9)
        z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        z ^= z >> np.uint32(16)
    return (z >> np.uint32(8)).astype(np.float32).reshape(len(key), *shape) * np.float32(2.0**-24)


def between(values: Array, at: Array, axis: int, smooth: bool = True) -> Array:
    """Values on an even lattice along `axis`, interpolated at positions in [0, 1]."""
    place = at * (values.shape[axis] - 1)
    low = np.minimum(place.astype(np.int64), values.shape[axis] - 2)
    part = place - low.astype(np.float32)
    if smooth:
        part = part * part * (3 - 2 * part)
    part = part.reshape([-1 if a == axis % values.ndim else 1 for a in range(values.ndim)])
    first, second = np.take(values, low, axis), np.take(values, low + 1, axis)
    return first + (second - first) * part


# The plan: what a scene consists of ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """B scenes in numbers. Of the objects (B, MOST), far to near, those not `there` come first."""

    key: Array  # (B,) uint64
    label: Array  # (B,)
    horizon: Array  # (B,) y
    there: Array  # (B, MOST) bool
    kind: Array  # (B, MOST) index into OBJECTS
    colour: Array  # (B, MOST) index into COLOURS
    depth: Array  # (B, MOST) 0 far, 1 near
    x: Array  # (B, MOST) centre
    base: Array  # (B, MOST) y of the foot
    width: Array  # (B, MOST)

    def boxes(self, i: int) -> tuple[Array, Array]:
        """(K, 4) extents and (K,) kinds of scene i, far to near."""
        return self.extents()[i][self.there[i]], self.kind[i][self.there[i]]

    def extents(self) -> Array:
        """(B, MOST, 4) of every object, those that are not there too."""
        half, tall = self.width * np.float32(0.5), self.width * np.array(HEIGHT, np.float32)[self.kind]
        return np.clip(np.stack([self.x - half, self.base - tall, self.x + half, self.base], 2), 0, 1)

    def caption(self, i: int) -> str:
        """For instance: a red house on the left and two pines on grass at night."""
        things: dict[str, list[float]] = {}
        order = sorted(np.flatnonzero(self.there[i]), key=lambda k: float(self.x[i, k]))
        for k in order:
            name = OBJECTS[self.kind[i, k]]
            if name in ("house", "boat"):
                name = f"{COLOURS[self.colour[i, k]]} {name}"
            things.setdefault(name, []).append(float(self.x[i, k]))
        phrases = []
        for name, places in things.items():
            many = {1: "a", 2: "two", 3: "three", 4: "four"}[len(places)]
            words = f"{many} {name}" + ("s" if len(places) > 1 and name != "cactus" else "")
            if len(places) > 1 and name == "cactus":
                words = f"{many} cacti"
            if len(places) == 1:
                x = places[0]
                words += " on the left" if x < 0.38 else " on the right" if x > 0.62 else " in the middle"
            phrases.append(words)
        listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
        time, biome = divmod(int(self.label[i]), len(BIOMES))
        ground = ("on grass", "in the snow", "on sand", "on the water")[biome]
        return f"{listed}, {ground} {('at dawn', 'by day', 'at dusk', 'at night')[time]}"


def planned(key: Array) -> Plan:
    """The plan of each key."""
    f = np.float32
    label = (uniform(key, 1) * f(len(LABELS))).astype(np.int64)
    biome = label % len(BIOMES)
    horizon = f(0.44) + f(0.12) * uniform(key, 2)
    some = uniform(key, 3)
    count = 1 + (some > f(0.2)) + (some > f(0.6)).astype(np.int64) + (some > f(0.9))
    there = np.arange(MOST)[None] < count[:, None]

    def each(slot: int) -> Array:
        return np.stack([uniform(key, slot + i) for i in range(MOST)], 1)

    kind = np.array(LIVES)[biome[:, None], (each(10) * f(3)).astype(np.int64)]
    colour = (each(20) * f(len(COLOURS))).astype(np.int64)
    depth = each(30)
    # each object has a strip of the width to itself, wider when there are fewer: they overlap a little, rarely much
    strip = f(0.96) / count[:, None].astype(f)
    width = np.minimum((f(0.24) + f(0.17) * depth) * np.array(WIDTH, f)[kind], strip * f(1.2))
    place = np.arange(MOST, dtype=f)[None] + f(0.5) + (each(40) - f(0.5)) * f(0.7)
    x = f(0.02) + strip * place
    x = np.minimum(np.maximum(x, width * f(0.5) + f(0.01)), f(0.99) - width * f(0.5))
    base = horizon[:, None] + (f(0.95) - horizon[:, None]) * (f(0.14) + f(0.82) * depth)
    # far to near, with those that are absent first
    order = np.argsort(np.where(there, depth, f(-1)), axis=1, kind="stable")
    sort = lambda a: np.take_along_axis(a, order, 1)
    return Plan(key, label, horizon, *(sort(a) for a in (there, kind, colour, depth, x, base, width)))


# The painting -------------------------------------------------------------------------------------------------------


class Canvas:
    """Colour (B, 3, h, w) and coverage (B, 1, h, w) of shapes laid over one another."""

    def __init__(self, shape: tuple[int, int, int], pixel: Array | float):
        b, h, w = shape
        self.colour, self.cover = np.zeros((b, 3, h, w), np.float32), np.zeros((b, 1, h, w), np.float32)
        self.pixel = pixel  # the size of a pixel in the units of the shapes

    def coverage(self, distance: Array) -> Array:
        """The covered share of each pixel from the signed distance (B, h, w) of its centre to an edge."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)[:, None]

    def over(self, distance: Array, colour: Array) -> None:
        """Lays a shape over the others. colour: (B, 3, 1, 1) or (B, 3, h, w)."""
        self.blend(self.coverage(distance), colour)

    def blend(self, share: Array, colour: Array) -> None:
        self.colour += share * (colour - self.colour)
        self.cover += share * (1 - self.cover)


def rgb(colour: Any) -> Array:
    """(B, 3, 1, 1) of one colour or of an array (B, 3)."""
    return np.asarray(colour, np.float32).reshape(-1, 3, 1, 1)


def box(x: Array, y: Array, cx: Any, cy: Any, half_w: Any, half_h: Any) -> Array:
    return np.maximum(np.abs(x - cx) - half_w, np.abs(y - cy) - half_h)


def disc(x: Array, y: Array, cx: Any, cy: Any, r: Any) -> Array:
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - r


def capsule(x: Array, y: Array, cx: float, y0: float, y1: float, r: float) -> Array:
    dx, dy = x - cx, y - np.clip(y, y0, y1)
    return np.sqrt(dx * dx + dy * dy) - r


def gable(x: Array, y: Array, top: float, bottom: float, half: float) -> Array:
    """An isosceles triangle, apex up."""
    tall = bottom - top
    length = float(np.sqrt(np.float32(half * half + tall * tall)))
    return np.maximum((np.abs(x) * tall - half * (y - top)) / length, y - bottom)


def paint(plan: Plan, size: int, texture: Array | float) -> tuple[Array, Array]:
    """uint8 pixels (B, 3, size, size) and segments (B, size, size) of a plan. texture: one number, or one for each."""
    f, key = np.float32, plan.key
    time, biome = plan.label // len(BIOMES), plan.label % len(BIOMES)
    at = (np.arange(size, dtype=f) + f(0.5)) / f(size)
    y, x = at[None, :, None], at[None, None, :]
    horizon = plan.horizon[:, None, None]
    light, hue = rgb(LIGHT[time]), f(0.97) + f(0.06) * lattice(key, 50, 3)  # no two meadows are quite the same

    picture, luminary = sky(plan, x, y, size, time)
    segments = np.where(luminary > 0.5, np.where(time == 3, 2, 1)[:, None, None], 0)
    pixel = 1 / size

    # a far ridge: three octaves of straight slopes, lit from the left, capped with snow where it is high
    peaks = between(lattice(key, 61, 5), at, 1, smooth=False) * f(0.15)
    peaks = peaks + between(lattice(key, 62, 10), at, 1, smooth=False) * f(0.07)
    peaks = peaks + between(lattice(key, 63, 23), at, 1, smooth=False) * f(0.022)
    slope = np.zeros_like(peaks)
    slope[:, 1:] = (peaks[:, 1:] - peaks[:, :-1]) * f(size)
    peaks = (peaks * (f(0.55) + f(0.6) * uniform(key, 64)[:, None]))[:, None]
    share = np.clip(f(0.5) - (horizon - peaks - y) / pixel, 0, 1)
    hazy = rgb(SKY[time, 2])
    rock = (rgb((0.42, 0.43, 0.50)) * (1 + np.clip(slope, -1, 1)[:, None, None] * f(0.22))) * light
    cap = np.clip((f(0.055) * (f(0.6) + lattice(key, 65, 1)[..., None]) - (y - horizon + peaks)) * f(60), 0, 1)
    cap = cap * np.clip((peaks - f(0.11)) * f(40), 0, 1)
    rock = rock + cap[:, None] * (rgb((0.96, 0.97, 1.0)) * light - rock)
    rock = rock + f(0.30) * (hazy - rock)
    picture += share[:, None] * (rock - picture)
    segments = np.where(share > 0.5, SEGMENTS.index("mountain"), segments)

    # the ground: hazy far away, soft large patches, rolling edge (water is flat)
    roll = between(lattice(key, 66, 6), at, 1)[:, None] * f(0.035) * (biome != 3)[:, None, None]
    near = np.clip((y - horizon) / (1 - horizon), 0, 1)
    share = np.clip(f(0.5) - (horizon - roll - y) / pixel, 0, 1)
    patches = between(between(lattice(key, 67, 9, 4), at, 1), at, 2) - f(0.5)
    swing = np.array([0.22, 0.07, 0.12, 0.12], f)[biome][:, None, None]
    shade = (f(0.86) + f(0.16) * near) * (1 + swing * patches)
    ground = rgb(GROUND[biome] * hue) * shade[:, None] * light
    mirror = (biome == 3)[:, None, None, None] * (f(0.42) - f(0.25) * near[:, None])
    ground = ground + mirror * (rgb(SKY[time, 1]) - ground)
    ground = ground + ((1 - near) * (1 - near) * f(0.22))[:, None] * (hazy - ground)
    glitter = sunlit_water(plan, x, near, time, biome)
    gold = rgb(np.array([[1, 0.9, 0.75], [1, 1, 0.9], [1, 0.75, 0.5], [0.8, 0.85, 1]])[time])
    ground = ground + glitter[:, None] * (gold - ground)
    picture += share[:, None] * (ground - picture)
    segments = np.where(share > 0.5, 4 + biome[:, None, None], segments)

    stand(plan, picture, segments, size, time, biome)

    if np.any(texture):
        rough = np.reshape(f(texture), (-1, 1, 1)) * GRAIN[segments]
        picture *= (1 + rough * detail(plan, near, at, biome))[:, None]
    return (np.clip(picture, 0, 1) * f(255) + f(0.5)).astype(np.uint8), segments


def sky(plan: Plan, x: Array, y: Array, size: int, time: Array) -> tuple[Array, Array]:
    """The sky (B, 3, size, size) with clouds or stars, sun or moon, and the coverage (B, size, size) of the latter."""
    f, key, horizon = np.float32, plan.key, plan.horizon[:, None, None]
    down = np.clip(y / horizon, 0, 1)[:, None]
    top, middle, low = (rgb(SKY[time, i]) for i in range(3))
    upper, lower = np.clip(down * 2, 0, 1), np.clip(down * 2 - 1, 0, 1)
    picture = top + upper * (middle - top) + lower * (low - middle)
    picture = np.broadcast_to(picture, (len(key), 3, size, size)).copy()

    low_sun = (time == 0) | (time == 2)
    sx = f(0.12) + f(0.76) * uniform(key, 71)
    sy = np.where(low_sun, f(0.20), f(0.09)) + uniform(key, 72) * f(0.10)
    r = np.where(time == 3, f(0.052), f(0.058)) + f(0.015) * uniform(key, 73)
    sx, sy, r = (a.astype(f)[:, None, None] for a in (sx, sy, r))
    distance = disc(x, y, sx, sy, f(0))
    halo = np.array([0.50, 0.40, 0.55, 0.22], f)[time][:, None, None]
    glow = halo / (1 + (distance / (r * f(1.6))) * (distance / (r * f(1.6))))
    shine = rgb(np.array([[1, 0.86, 0.62], [1, 0.97, 0.80], [1, 0.62, 0.28], [0.62, 0.70, 0.95]])[time])
    picture += glow[:, None] * (shine - picture)

    # stars: at most one in each cell of a grid, only at night
    night = (time == 3)[:, None, None]
    cells = 12
    cell_x, cell_y = (x * cells).astype(np.int64), (y * cells).astype(np.int64)
    place = lattice(key, 74, 3, cells, cells)[:, :, cell_y[0, :, 0]][:, :, :, cell_x[0, 0]]
    inner = f(0.2) + f(0.6) * place[:, :2]
    spot = disc(x * cells - cell_x, y * cells - cell_y, inner[:, 0], inner[:, 1], f(0))
    star = np.clip(1 - spot * f(7.0), 0, 1) * (place[:, 2] > 0.62) * night * np.clip((place[:, 2] - f(0.5)) * 2, 0, 1)
    picture += star[:, None] * (1 - picture)

    ink = Canvas((len(key), size, size), 1 / size)
    ink.colour = picture
    body = distance - r
    bite = disc(x, y, sx + r * f(0.55), sy - r * f(0.30), r * f(0.92))
    body = np.where(night, np.maximum(body, -bite), body)
    colour = rgb(np.array([[1, 0.93, 0.78], [1, 0.96, 0.70], [1, 0.80, 0.46], [0.97, 0.96, 0.86]])[time])
    ink.over(body, colour)
    luminary = ink.coverage(body)[:, 0]

    # two clouds of three puffs each, flat below; some skies have one, or none
    white = rgb(np.array([[1, 0.88, 0.86], [1, 1, 1], [0.88, 0.46, 0.46], [0.15, 0.19, 0.33]])[time])
    for i in range(2):
        cx, cy = uniform(key, 80 + i), f(0.08) + f(0.20) * uniform(key, 82 + i)
        wide = (f(0.05) + f(0.05) * uniform(key, 84 + i)) * (uniform(key, 86 + i) < f(0.6)) + f(1e-6)
        cx, cy, wide = (a.astype(f)[:, None, None] for a in (cx, cy, wide))
        puff = disc(x, y, cx, cy, wide * f(0.8))
        puff = np.minimum(puff, disc(x, y, cx - wide * f(0.9), cy + wide * f(0.25), wide * f(0.52)))
        puff = np.minimum(puff, disc(x, y, cx + wide * f(0.9), cy + wide * f(0.22), wide * f(0.55)))
        puff = np.maximum(puff, y - cy - wide * f(0.5))
        soft = np.clip(f(0.5) - puff / f(1.5 / 64), 0, 1) * f(0.85) * (wide > 0.01)
        ink.blend(soft[:, None], white)
        luminary = luminary * (1 - soft)
    return picture, luminary


def sunlit_water(plan: Plan, x: Array, near: Array, time: Array, biome: Array) -> Array:
    """The path of light (B, size, size) below sun or moon, on water only."""
    f = np.float32
    sx = (f(0.12) + f(0.76) * uniform(plan.key, 71))[:, None, None]
    wide = f(0.05) + f(0.09) * near
    off = (x - sx) / wide
    strength = np.array([0.55, 0.35, 0.70, 0.40], f)[time] * (biome == 3)
    return strength[:, None, None].astype(f) / (1 + off * off * off * off)


def detail(plan: Plan, near: Array, at: Array, biome: Array) -> Array:
    """Fine structure (B, size, size) in about [-1, 1]: blades, ripples or grain by biome, at the pixels' own scale."""
    size = len(at)
    noise = lattice(plan.key, 90, size, size) * 2 - 1
    blurred_y, blurred_x = noise.copy(), noise.copy()
    blurred_y[:, 1:] += noise[:, :-1]
    blurred_x[:, :, 1:] += noise[:, :, :-1]
    blurred_x[:, :, 2:] += noise[:, :, :-2]
    blades, ripples = blurred_y * np.float32(0.6), blurred_x * np.float32(0.5)
    pick = biome[:, None, None]
    return np.where(pick == 0, blades, np.where(pick == 1, noise, ripples))


def stand(plan: Plan, picture: Array, segments: Array, size: int, time: Array, biome: Array) -> None:
    """Paints the objects into picture and segments, far to near: a kind at a time, on small patches."""
    f = np.float32
    side = min(size, int(0.62 * size) + 3)
    patches: dict[tuple[int, int], tuple[Array, Array, Array, int, int]] = {}
    for kind in range(len(OBJECTS)):
        rows, slots = np.nonzero((plan.kind == kind) & plan.there)
        if not len(rows):
            continue
        width, cx, base = plan.width[rows, slots], plan.x[rows, slots], plan.base[rows, slots]
        left = np.clip(((cx - f(0.62) * width) * size).astype(np.int64), 0, size - side)
        below = np.clip(((base + f(0.16) * width) * size).astype(np.int64) + 1, side, size)
        steps = np.arange(side)
        px = ((left[:, None] + steps).astype(f) + f(0.5)) / f(size)
        py = ((below[:, None] - side + steps).astype(f) + f(0.5)) / f(size)
        u = ((px - cx[:, None]) / width[:, None])[:, None, :]
        v = ((py - base[:, None]) / width[:, None])[:, :, None]
        canvas = Canvas((len(rows), side, side), (1 / (f(size) * width))[:, None, None])
        look = Look(PAINT[plan.colour[rows, slots]], ROOF[plan.colour[rows, slots]], time[rows], biome[rows])
        PAINTERS[kind](canvas, u, v, look)
        # a little haze on what is far, and a soft shadow on the ground
        far = ((1 - plan.depth[rows, slots]) * f(0.14))[:, None, None, None]
        canvas.colour += far * (rgb(SKY[time[rows], 2]) - canvas.colour)
        spread = (u * f(1.9)) * (u * f(1.9)) + (v - f(0.01)) * (v - f(0.01)) * f(110)
        shadow = np.clip(1 - spread, 0, 1) * f(0.45)
        for i, (row, slot) in enumerate(zip(rows, slots)):
            patches[row, slot] = canvas.colour[i], canvas.cover[i], shadow[i], int(left[i]), int(below[i])
    for (row, slot), (colour, cover, shadow, left, below) in sorted(patches.items(), key=lambda p: p[0]):
        part = picture[row, :, below - side : below, left : left + side]
        part *= 1 - shadow
        part += cover * (colour - part)
        area = segments[row, below - side : below, left : left + side]
        area[cover[0] > 0.5] = SEGMENTS.index(OBJECTS[plan.kind[row, slot]])


class Look:
    """The colours of the objects that are painted together, under the light of their scenes: (B, 3, 1, 1) each."""

    def __init__(self, paint: Array, roof: Array, time: Array, biome: Array):
        self.light = rgb(LIGHT[time])
        self.paint, self.roof = rgb(paint) * self.light, rgb(roof) * self.light
        self.snowy = (biome == 1)[:, None, None]
        self.dark = (time >= 2)[:, None, None, None]

    def lit(self, colour: Any) -> Array:
        return rgb(colour) * self.light


NOWHERE = np.float32(9.0)  # a distance at which nothing is covered


def house(c: Canvas, u: Array, v: Array, look: Look) -> None:
    c.over(box(u, v, 0.24, -0.76, 0.065, 0.17), look.lit((0.52, 0.32, 0.28)))
    wall = box(u, v, 0.0, -0.27, 0.40, 0.27)
    c.over(wall, look.paint)
    c.over(np.maximum(gable(u, v, -0.90, -0.50, 0.42), -v - 0.95), look.paint * np.float32(0.92))
    c.over(box(u, v, 0.28, -0.27, 0.12, 0.27), look.paint * np.float32(0.80))
    roof = np.maximum(gable(u, v, -0.98, -0.46, 0.5), -gable(u, v, -0.80, -0.40, 0.46))
    c.over(roof, np.where(look.snowy[..., None], look.lit((0.95, 0.97, 1.0)), look.roof))
    glass = np.where(look.dark, rgb(LAMP), look.lit((0.36, 0.50, 0.62)))
    c.over(box(u, v, -0.22, -0.30, 0.085, 0.085), glass)
    c.over(box(u, v, 0.22, -0.30, 0.085, 0.085), glass)
    c.over(disc(u, v, 0.0, -0.60, 0.065), glass)
    c.over(box(u, v, 0.0, -0.145, 0.08, 0.145), look.roof * np.float32(0.8))


def tree(c: Canvas, u: Array, v: Array, look: Look) -> None:
    c.over(box(u, v, 0.0, -0.20, 0.065, 0.20), look.lit((0.40, 0.27, 0.17)))
    crown = disc(u, v, 0.0, -0.86, 0.36)
    crown = np.minimum(crown, disc(u, v, -0.22, -0.60, 0.28))
    crown = np.minimum(crown, disc(u, v, 0.22, -0.60, 0.28))
    c.over(crown, look.lit((0.15, 0.40, 0.16)))
    light = np.minimum(disc(u, v, -0.07, -0.93, 0.24), disc(u, v, -0.24, -0.66, 0.17))
    c.over(np.maximum(light, crown + 0.02), look.lit((0.30, 0.57, 0.20)))


def pine(c: Canvas, u: Array, v: Array, look: Look) -> None:
    c.over(box(u, v, 0.0, -0.12, 0.075, 0.12), look.lit((0.36, 0.24, 0.16)))
    green, shade, white = look.lit((0.10, 0.40, 0.30)), look.lit((0.06, 0.29, 0.23)), look.lit((0.95, 0.97, 1.0))
    for top, bottom, half in ((-0.80, -0.20, 0.50), (-1.12, -0.58, 0.41), (-1.45, -0.95, 0.31)):
        tier = gable(u, v, top, bottom, half)
        c.over(tier, green)
        c.over(np.maximum(tier, 0.10 * half - u), shade)
        tip = np.maximum(tier, v - top - 0.42 * (bottom - top))
        c.over(np.where(look.snowy, tip, NOWHERE), white)


def cactus(c: Canvas, u: Array, v: Array, look: Look) -> None:
    plant = capsule(u, v, 0.0, -1.16, -0.10, 0.14)
    for side, low, high in ((-0.39, -0.52, -0.86), (0.39, -0.66, -0.98)):
        plant = np.minimum(plant, capsule(u, v, side, high, low, 0.11))
        plant = np.minimum(plant, box(u, v, side / 2, low + 0.02, abs(side) / 2, 0.09))
    plant = np.maximum(plant, v)
    c.over(plant, look.lit((0.22, 0.50, 0.28)))
    c.over(np.maximum(plant, 0.05 - u), look.lit((0.14, 0.37, 0.22)))


def boat(c: Canvas, u: Array, v: Array, look: Look) -> None:
    c.over(box(u, v, -0.02, -0.62, 0.022, 0.50), look.lit((0.40, 0.28, 0.20)))
    big = np.maximum(np.maximum(0.035 - u, v + 0.28), (u * 0.80 + (v + 1.10) * -0.44) / 0.913)
    c.over(big, look.paint)
    jib = np.maximum(np.maximum(u + 0.07, v + 0.30), (-u * 0.60 + (v + 0.98) * -0.40) / 0.721)
    c.over(jib, look.lit((0.97, 0.95, 0.90)))
    hull = np.maximum(np.maximum(-v - 0.22, v), (np.abs(u) * 0.22 + (v + 0.22) * 0.14 - 0.50 * 0.22) / 0.261)
    c.over(hull, look.lit((0.46, 0.26, 0.16)))
    c.over(np.maximum(hull, v + 0.15), look.lit((0.93, 0.90, 0.84)))


PAINTERS = (house, tree, pine, cactus, boat)


# Reading a picture back ---------------------------------------------------------------------------------------------


def read_label(images: Tensor) -> Tensor:
    """(B,) the label whose sky and ground an image (B, 3, H, W) in [-1, 1] shows.

    The time is that of the nearest sky colour; the biome, under that time's light, that of the nearest ground colour.
    Each is a median over an edge of the picture, which no object fills, and so is not disturbed by blur or grain."""
    picture = (images.detach().float().cpu() + 1) / 2
    height = picture.shape[2]
    above = picture[:, :, : max(1, round(0.16 * height))].flatten(2).median(2).values
    below = picture[:, :, -max(1, round(0.07 * height)) :].flatten(2).median(2).values
    sky, light = torch.from_numpy(SKY), torch.from_numpy(LIGHT)
    # the edge's middle lies 0.16 of the way from the top to the horizon
    time = torch.cdist(above, sky[:, 0] + 0.32 * (sky[:, 1] - sky[:, 0])).argmin(1)
    ground = torch.from_numpy(GROUND)[None] * light[:, None]  # (times, biomes, 3)
    ground[:, BIOMES.index("water")] += 0.18 * (sky[:, 1] - ground[:, BIOMES.index("water")])
    far = ((below[:, None] - ground[time]) / light[time][:, None]).norm(dim=2)
    return time * len(BIOMES) + far.argmin(1)
