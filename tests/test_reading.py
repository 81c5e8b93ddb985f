"""What pictures of scenes show, against what was asked for."""

import math
from dataclasses import replace

import pytest
import tiny
import torch

from ldm_lite import reading
from ldm_lite.conditioners import BoxesConfig, TextConfig, TogetherConfig, build
from ldm_lite.config import InputError
from ldm_lite.data.scenes import COLOURS, OBJECTS, Census, Scenes
from ldm_lite.features import ObjectFinder, ObjectFinderConfig, Places
from ldm_lite.latent import LatentDiffusion
from ldm_lite.reading import Thing, Wanted, finder, heard, iou, placed, things, wanted
from ldm_lite.runs import miou, obeyed
from ldm_lite.training import FinderTask, TrainConfig


class Oracle(torch.nn.Module):
    """A finder that answers with what it was built with: {(row, y, x): (kind, colour, box, logit)}."""

    def __init__(self, rows: int, side: int, answers: dict):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.said = Places(*(torch.zeros(rows, c, side, side) for c in (5, 4, 4)))
        self.said.heat.fill_(-9)
        for (row, y, x), (kind, colour, box, logit) in answers.items():
            self.said.heat[row, kind, y, x] = logit
            self.said.box[row, :, y, x] = torch.tensor(box)
            self.said.colour[row, colour, y, x] = 5.0

    def forward(self, image):
        return self.said


def test_a_peak_is_a_thing_at_its_cell_with_its_offset_size_and_colour():
    box = (0.01, -0.02, 0.2, 0.3)
    network = Oracle(1, 10, {(0, 4, 7): (OBJECTS.index("boat"), COLOURS.index("blue"), box, 3.0)})
    ((thing,),) = things(torch.zeros(1, 3, 20, 20), network)
    assert (thing.kind, thing.colour) == ("boat", "blue")
    assert thing.box == pytest.approx((0.76 - 0.1, 0.43 - 0.15, 0.76 + 0.1, 0.43 + 0.15), abs=1e-6)


def test_a_neighbour_of_a_peak_and_a_doubtful_one_are_no_things_and_a_pine_has_no_colour():
    pine, at = OBJECTS.index("pine"), (0.0, 0.0, 0.1, 0.1)
    first, doubtful = {(0, 2, 2): (pine, 0, at, 3.0), (0, 2, 3): (1, 0, at, 2.0)}, {(0, 7, 7): (1, 0, at, -0.5)}
    network = Oracle(2, 10, first | doubtful | {(1, 5, 5): (1, 0, at, 1.0)})
    found = things(torch.zeros(2, 3, 20, 20), network)
    assert [[t.kind for t in row] for row in found] == [["pine"], ["tree"]] and found[0][0].colour is None
    assert len(things(torch.zeros(2, 3, 20, 20), network, least=0.3)[0]) == 2


def test_every_caption_of_the_scenes_is_understood_and_asks_for_all_its_objects():
    scenes = Scenes("validation", size=16)
    for row in range(150):
        item, plan = scenes[row], scenes.plan([row])
        asked = wanted(item["caption"])
        assert sum(one.n for one in asked) == len(item["boxes"])
        kinds, colours, middles = (v[0][plan.there[0]].tolist() for v in (plan.kind, plan.colour, plan.x))
        real = [
            Thing(OBJECTS[k], COLOURS[c] if OBJECTS[k] in ("house", "boat") else None, (x - 0.1, 0.0, x + 0.1, 1.0))
            for k, c, x in zip(kinds, colours, middles)
        ]
        assert heard(asked, real, slack=1e-6) == (len(real), len(real)), item["caption"]


def test_a_caption_is_read_phrase_by_phrase():
    assert wanted("three cacti, two red houses and a pine in the middle, on sand by day") == [
        Wanted(3, "cactus"),
        Wanted(2, "house", "red"),
        Wanted(1, "pine", None, "middle"),
    ]
    with pytest.raises(InputError, match=r"^caption: 'fog' names no object of the scenes$"):
        wanted("fog")


def at(kind: str, x: float, colour: str | None = None) -> Thing:
    return Thing(kind, colour, (x - 0.1, 0.2, x + 0.1, 0.6))


def test_what_is_wanted_says_its_words_as_the_caption_does():
    plan = Scenes("train", size=16).plan(range(400))
    seen = set()
    for caption in map(plan.caption, range(400)):
        for one in wanted(caption):
            assert one.phrase in caption and one.phrase.endswith(one.word), (one, caption)
            assert wanted(one.phrase) == [one._replace(side=None)]
            seen.add(one.word)
    assert {"houses", "cacti", "cactus", "pine"} <= seen


def test_a_thing_is_meant_by_its_kind_and_by_its_colour_where_one_is_said():
    house = Thing("house", "red", (0.0, 0.0, 1.0, 1.0))
    assert Wanted(1, "house").means(house) and Wanted(2, "house", "red", "left").means(house)
    assert not Wanted(1, "house", "blue").means(house) and not Wanted(1, "boat", "red").means(house)


@pytest.mark.parametrize(
    ("shown", "right"),
    [
        ([at("house", 0.2, "red"), at("pine", 0.5), at("pine", 0.7)], 3),
        ([at("house", 0.2, "blue"), at("pine", 0.5), at("pine", 0.7)], 2),  # the colour
        ([at("house", 0.8, "red"), at("pine", 0.5), at("pine", 0.7)], 2),  # the side
        ([at("house", 0.2, "red"), at("pine", 0.5)], 2),  # one is missing
        ([at("house", 0.2, "red"), at("pine", 0.5), at("pine", 0.7), at("pine", 0.9)], 2),  # one too many
        ([at("tree", 0.2), at("boat", 0.5, "red")], 0),
        ([], 0),
    ],
)
def test_what_is_heard_has_the_kind_the_colour_the_number_and_the_side(shown, right):
    assert heard(wanted("a red house on the left and two pines, on grass by day"), shown) == (right, 3)


def test_intersection_over_union_is_torchvisions():
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    a, b = (torch.rand(n, 4, dtype=torch.float64) for n in (5, 7))
    a, b = (torch.cat([x[:, :2], x[:, :2] + x[:, 2:] + 0.01], 1) for x in (a, b))
    torch.testing.assert_close(iou(a, b), ops.box_iou(a, b))
    assert iou([], b).shape == (0, 7)


def test_each_thing_is_placed_once_best_pairs_first():
    boxes = [[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 0.9, 0.9]]
    shown = [Thing("pine", None, (0.1, 0.0, 0.5, 0.4)), Thing("tree", None, (0.0, 0.0, 0.2, 0.4))]
    assert placed(boxes, ["pine", "pine", "pine"], shown) == [(0.5, False), (1.0, True), (0.0, False)]
    assert placed(boxes[:1], ["pine"], []) == [(0.0, False)]


def test_a_census_holds_every_object_of_its_scenes():
    census, scenes = Census("validation", size=32), Scenes("validation", size=32)
    batch = census.batch([4, 9])
    for i, row in enumerate([4, 9]):
        real, item = batch["kinds"][i] >= 0, scenes[row]
        assert torch.equal(batch["boxes"][i][real], item["boxes"])
        assert torch.equal(batch["kinds"][i][real], item["box_labels"])
        assert torch.equal(batch["image"][i].float() / 127.5 - 1, item["image"])


def test_a_finder_learns_where_the_objects_of_a_few_scenes_are():
    torch.manual_seed(0)
    batch = Census("validation", size=32).batch(range(4))
    batch["image"] = batch["image"].float() / 127.5 - 1
    network = ObjectFinder(ObjectFinderConfig((8, 16, 24)))
    task = FinderTask(network, TrainConfig(steps=220, lr=1e-2, batch=4, ema=0.0, warmup=0, precision="fp32", clip=10.0))
    losses = [task.step(batch, step)["loss"] for step in range(220)]
    assert losses[-1] < 0.1 * losses[0]
    found = things(batch["image"], network.eval())
    for i in range(4):
        real = batch["kinds"][i] >= 0
        kinds = [OBJECTS[k] for k in batch["kinds"][i][real].tolist()]
        pairs = placed(batch["boxes"][i][real], kinds, found[i])
        assert sum(alike and value > 0.5 for value, alike in pairs) >= len(kinds) - 1


def test_cells_beside_a_middle_count_less_than_those_far_from_it():
    """CornerNet's equation 1 by hand, for a network that is undecided everywhere."""
    network, side = Oracle(1, 8, {}), 8
    network.said.heat.zero_()  # a probability of 1/2
    task = FinderTask(network, TrainConfig(steps=1, batch=1, ema=0.0, precision="fp32"))
    kinds, boxes = torch.full((1, 4), -1), torch.zeros(1, 4, 4)
    kinds[0, 2], boxes[0, 2] = OBJECTS.index("pine"), torch.tensor([0.3, 0.5, 0.5, 0.9])  # the middle is in (5, 3)
    batch = {"image": torch.zeros(1, 3, 16, 16), "kinds": kinds, "boxes": boxes, "colours": torch.zeros(1, 4).long()}
    expected = 0.0
    for kind in OBJECTS:
        for y in range(side):
            for x in range(side):
                near = math.exp(-((y - 5) ** 2 + (x - 3) ** 2) / 2) if kind == "pine" else 0.0
                weight = 1.0 if near == 1 else (1 - near) ** 4
                expected += weight * 0.5**2 * math.log(2)
    assert float(task.loss(batch)[1]["heat"]) == pytest.approx(expected, rel=1e-5)


def test_weights_that_find_no_objects_are_refused():
    with pytest.raises(InputError, match=r"^scenes-features: finds no objects; scenes-objects does$"):
        finder("scenes-features")


def test_a_map_that_is_shown_as_asked_has_an_miou_of_one_and_one_half_wrong_less():
    asked = torch.tensor([[[0, 0, 1, 1], [3, 3, 3, 3]]])
    assert miou(asked, asked) == 1.0
    shown = torch.tensor([[[0, 0, 1, 2], [3, 3, 3, 3]]])
    assert miou(asked, shown) == round((1 + 1 / 2 + 1) / 3, 4)  # of the segments asked for: 2 is none


def test_samples_are_judged_by_captions_and_boxes(monkeypatch):
    """A finder that sees exactly what half of the captions and boxes ask for."""
    house, pine = OBJECTS.index("house"), OBJECTS.index("pine")
    answers = {(0, 5, 2): (house, 0, (0.0, 0.0, 0.2, 0.3), 5.0), (1, 5, 7): (pine, 0, (0.0, 0.0, 0.2, 0.3), 5.0)}
    monkeypatch.setattr(reading, "finder", lambda: Oracle(2, 10, answers))
    told = TogetherConfig(
        (
            TextConfig(width=6, depth=1, heads=2, head_channels=3),
            BoxesConfig(OBJECTS, width=6, depth=1, heads=2, head_channels=3),
        )
    )
    base = tiny.latent_diffusion(replace(tiny.UNET, vector=0, context=6))
    model = LatentDiffusion(base.first_stage, base.denoiser, base.diffusion, build(told))
    at = torch.tensor([[0.15, 0.4, 0.35, 0.7]])
    given = {
        "caption": ["a red house on the left, on grass by day", "a pine on the left, on grass by day"],
        "boxes": [at, at],
        "box_labels": [torch.tensor([house]), torch.tensor([pine])],
    }
    numbers = obeyed(model, given, torch.zeros(2, 3, 20, 20))
    assert numbers == {"heard": 0.5, "iou": 0.5, "kinds": 0.5}
    assert obeyed(model, given, torch.zeros(2, 3, 20, 20), scenes=False) == {}
