"""The built-in scenes: the same everywhere, and their captions, boxes, labels and segments are what is drawn."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm_lite.config import InputError
from ldm_lite.data.scenes import (
    BIOMES,
    COLOURS,
    HEIGHT,
    KEYS,
    LABELS,
    OBJECTS,
    PAINT,
    SEGMENTS,
    Scenes,
    between,
    hashed,
    lattice,
    read_label,
    uniform,
)


def images(batch):
    return batch["image"].float() / 127.5 - 1


# The same everywhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "size", "digest"),
    [
        ("train", 64, "264c7ec961fd3caf"),
        ("validation", 17, "d434dd143a182849"),
        ("test", 130, "9c79a1e374aede1e"),
    ],
)
def test_pixels_are_those_of_every_other_machine(split, size, digest):
    drawn = Scenes(split, size=size, seed=3).batch([0, 5, 811, 9999])["image"]
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16] == digest


def test_hashing_is_splitmix64():
    # the first outputs of the reference generator from state 0 (Vigna's splitmix64.c)
    zero = np.zeros(1, np.uint64)
    assert [int(hashed(zero, slot)[0]) for slot in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_uniforms_are_uniform_and_streams_unrelated():
    key = hashed(np.arange(20_000, dtype=np.uint64), 0)
    a, b = uniform(key, 1), uniform(key, 2)
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.002 and a.min() >= 0 and a.max() < 1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    noise = lattice(key[:7], 5, 31, 29)
    assert abs(noise.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.05


def test_interpolation_meets_its_lattice_and_is_linear_between():
    values = np.array([[1.0, 5.0, 2.0]], np.float32)
    at = np.array([0, 0.125, 0.25, 0.5, 1], np.float32)
    np.testing.assert_allclose(between(values, at, 1, smooth=False), [[1, 2, 3, 5, 2]])
    np.testing.assert_allclose(between(values, at, 1), [[1, 1 + 4 * 0.15625, 3, 5, 2]])  # 3 x^2 - 2 x^3 at 1/4


def test_a_batch_is_its_items_whatever_else_is_in_it():
    scenes = Scenes("validation", size=33)
    batch = scenes.batch(list(range(37)))
    for row in (0, 15, 16, 36):
        item = scenes[row]
        torch.testing.assert_close(images(batch)[row], item["image"], rtol=0, atol=0)
        assert int(batch["label"][row]) == item["label"]


def test_splits_and_seeds_share_no_scene():
    kinds = [Scenes(s, size=16, seed=k) for s in ("train", "validation", "test") for k in (0, 1)]
    drawn = [image.numpy().tobytes() for scenes in kinds for image in scenes.batch(range(150))["image"]]
    assert len(set(drawn)) == len(drawn) == 900


def test_a_count_takes_the_first_scenes():
    few, many = Scenes(count=5), Scenes()
    assert len(few) == 5 and torch.equal(few[-1]["image"], many[4]["image"])
    with pytest.raises(IndexError):
        few[5]


# What is said is what is drawn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("texture", [0.0, 1.0])
def test_sky_and_ground_read_back_as_the_label(texture):
    batch = Scenes("validation", texture=texture, seed=1).batch(range(1200))
    assert (read_label(images(batch)) == batch["label"]).float().mean() >= 0.995


def test_reading_a_label_survives_blur_noise_and_other_sizes():
    batch = Scenes("validation").batch(range(400))
    blurred = F.avg_pool2d(F.pad(images(batch), (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    noisy = images(batch) + 0.1 * torch.randn(400, 3, 64, 64)
    larger = F.interpolate(images(batch), size=150, mode="bilinear")
    for changed in (blurred, noisy, larger):
        assert (read_label(changed) == batch["label"]).float().mean() >= 0.99


def test_reading_a_wrong_label_is_noticed():
    batch = Scenes("validation").batch(range(400))
    assert (read_label(images(batch)) == (batch["label"] + 1) % 16).float().mean() < 0.01


def test_labels_are_balanced_and_segments_show_the_biome():
    scenes = Scenes("train", size=32)
    labels = scenes.batch(range(3200))["label"]
    assert len(LABELS) == 16 and torch.bincount(labels, minlength=16).min() > 140
    for row in range(40):
        item = scenes[row]
        assert SEGMENTS[item["segmentation"][-1].mode().values] in (*BIOMES, *OBJECTS)
        grounds = [SEGMENTS[i] for i in item["segmentation"].unique() if SEGMENTS[i] in BIOMES]
        assert grounds == [LABELS[item["label"]].split()[1]]
        assert ("moon" in [SEGMENTS[i] for i in item["segmentation"].unique()]) <= LABELS[item["label"]].startswith(
            "night"
        )


def test_boxes_are_the_extents_of_objects_that_nothing_hides():
    scenes, seen = Scenes("validation", size=128), 0
    for row in range(60):
        item = scenes[row]
        if len(item["boxes"]) != 1:
            continue
        seen += 1
        mask = item["segmentation"] == SEGMENTS.index(OBJECTS[item["box_labels"][0]])
        ys, xs = torch.nonzero(mask, as_tuple=True)
        extent = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 128
        torch.testing.assert_close(item["boxes"][0], extent, atol=0.022, rtol=0)
    assert seen >= 8


def test_boxes_come_far_to_near_and_nearer_ones_hide_farther_ones():
    scenes = Scenes("validation", size=64)
    for row in range(30):
        feet = scenes[row]["boxes"][:, 3]
        assert (feet.diff() >= 0).all()
    heights = torch.tensor(HEIGHT)
    item = next(scenes[row] for row in range(30) if len(scenes[row]["boxes"]) == 3)
    box = item["boxes"]
    torch.testing.assert_close(
        (box[:, 3] - box[:, 1]) / (box[:, 2] - box[:, 0]), heights[item["box_labels"]], atol=1e-4, rtol=0
    )


def test_captions_count_the_boxes_and_name_ground_and_time():
    numbers = {"a": 1, "two": 2, "three": 3, "four": 4}
    singular = {"cacti": "cactus", **{f"{name}s": name for name in OBJECTS}}
    scenes = Scenes("validation", size=16)
    for row in range(200):
        item = scenes[row]
        things, where = item["caption"].rsplit(",", 1)
        counted: dict[str, int] = {}
        for phrase in things.replace(" and ", ", ").split(", "):
            words = phrase.split()
            noun = next(singular.get(w, w) for w in words if singular.get(w, w) in OBJECTS)
            counted[noun] = counted.get(noun, 0) + numbers[words[0]]
        drawn = [OBJECTS[i] for i in item["box_labels"]]
        assert counted == {name: drawn.count(name) for name in set(drawn)}, item["caption"]
        time, biome = LABELS[item["label"]].split()
        assert time in where and biome in where


def test_captions_say_where_a_single_object_stands_and_of_what_colour_it_is():
    scenes, seen = Scenes("validation", size=128, texture=0), 0
    for row in range(200):
        item = scenes[row]
        if len(item["boxes"]) != 1 or not LABELS[item["label"]].startswith("day"):
            continue
        x = float(item["boxes"][0, [0, 2]].mean())
        side = "left" if x < 0.38 else "right" if x > 0.62 else "middle"
        assert f"the {side}" in item["caption"]
        if OBJECTS[item["box_labels"][0]] == "house":
            seen += 1
            mask = item["segmentation"] == SEGMENTS.index("house")
            pixels = (item["image"][:, mask].T + 1) / 2
            # the paint that most of the front has
            near = torch.cdist(pixels, torch.from_numpy(PAINT)).min(1)
            colour = COLOURS[near.indices[near.values < 0.15].mode().values]
            assert f"a {colour} house" in item["caption"]
    assert seen >= 3


def test_texture_is_fine_detail_that_can_be_left_out():
    textured, plain = (images(Scenes("validation", texture=t).batch(range(60))) for t in (1.0, 0.0))
    difference = textured - plain
    assert 0.01 < difference.abs().mean() < 0.06
    # it is fine: averaging 8 x 8 pixels takes nearly all of it away
    assert F.avg_pool2d(difference, 8).abs().mean() < 0.25 * difference.abs().mean()
    half = images(Scenes("validation", texture=0.5).batch(range(60)))
    inside = (textured.abs() < 1) & (plain.abs() < 1)  # elsewhere it was clipped
    torch.testing.assert_close(half[inside], ((textured + plain) / 2)[inside], atol=0.02, rtol=0)


def test_edges_are_antialiased():
    small, large = (images(Scenes("validation", size=s, texture=0).batch(range(20))) for s in (32, 256))
    assert (F.avg_pool2d(large, 8) - small).abs().mean() < 0.03


@pytest.mark.parametrize("size", [16, 37, 512])
def test_every_size_from_16_to_512_is_drawn(size):
    item = Scenes("test", size=size)[1]
    assert item["image"].shape == (3, size, size) and item["segmentation"].shape == (size, size)
    assert item["image"].min() >= -1 and item["image"].max() <= 1


@pytest.mark.parametrize("wrong", [{"size": 15}, {"size": 513}, {"count": 0}, {"split": "tset"}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Scenes(**wrong)


# Batches of more than pixels ----------------------------------------------------------------------------------------


def test_a_batch_holds_the_keys_that_are_asked_for_and_equals_the_items():
    scenes = Scenes("validation", size=48, keys=KEYS)
    rows = [5, 0, 31]
    batch = scenes.batch(rows)
    assert tuple(batch) == KEYS and batch["segmentation"].dtype == torch.uint8
    for i, row in enumerate(rows):
        item = scenes[row]
        assert batch["caption"][i] == item["caption"] and batch["label"][i] == item["label"]
        assert torch.equal(batch["image"][i].float() / 127.5 - 1, item["image"])
        for key in ("boxes", "box_labels", "segmentation"):
            assert torch.equal(batch[key][i].to(item[key].dtype), item[key])
    assert tuple(Scenes("validation", keys=("caption",)).batch([1])) == ("caption",)


def test_an_unknown_key_is_told_the_known_ones():
    with pytest.raises(InputError, match=r"^captions: no such key of Scenes; did you mean caption\?"):
        Scenes(keys=("captions",))


def test_datasets_say_the_names_of_their_objects_and_segments():
    assert Scenes.box_names == OBJECTS and Scenes.segment_names == SEGMENTS
