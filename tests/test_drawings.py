"""The drawings that notebooks share: what they draw is counted on the axes, and a plan is compared with the network."""

import pytest
import torch

from ldm_lite.course import drawings, figures
from ldm_lite.layers import Downsample
from ldm_lite.presets import UNETS
from ldm_lite.unet import Block, UNet, UNetConfig

CONFIG = UNetConfig(channels=3, width=8, mult=(1, 2, 3), blocks=2, attend_at=(2,), heads=2)


def test_the_plan_has_the_steps_of_the_network_with_its_channels_and_its_attention():
    unet = UNet(CONFIG)
    steps = [*unet.down, *unet.mid, *unet.up]
    boxes = drawings.plan(CONFIG)[1:-1]
    assert len(boxes) == len(steps)
    for box, step in zip(boxes, steps, strict=True):
        assert (box.kind == "halving") == isinstance(step, Downsample)
        if isinstance(step, Block):
            assert box.channels == step.res.conv2.out_channels
            assert (box.kind == "attention") == (step.attend is not None)


@pytest.mark.parametrize("config", [CONFIG, UNETS["celebahq-ldm4"]], ids=["small", "faces"])
def test_a_skip_goes_to_a_box_of_the_same_level_with_room_for_its_channels(config):
    with torch.device("meta"):
        unet = UNet(config)
    boxes, before = drawings.plan(config), 1 + len(unet.down) + len(unet.mid)
    sent = [(i, box) for i, box in enumerate(boxes) if box.skip is not None]
    assert sorted(box.skip for _, box in sent) == list(range(before, before + len(unet.up)))
    for _, box in sent:
        taken = unet.up[box.skip - before].res.conv1.in_channels
        assert box.level == boxes[box.skip].level
        assert taken == boxes[box.skip - 1].channels + box.channels


def test_bars_stand_side_by_side_or_are_stacked():
    _, axis = figures.canvas()
    drawings.bars(axis, ("a", "b", "c"), {"one": [1, 2, 3], "two": torch.tensor([3, 2, 1])})
    assert len({round(bar.get_x(), 6) for bar in axis.patches}) == 6
    _, axis = figures.canvas()
    drawings.bars(axis, ("a", "b", "c"), {"one": [1, 2, 3], "two": torch.tensor([3, 2, 1])}, stacked=True)
    assert [bar.get_x() + bar.get_width() for bar in axis.patches[3:]] == [4, 4, 4]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]


def test_marks_say_yes_and_no_in_words_and_colours():
    _, axis = figures.canvas()
    drawings.marks(axis, {"healthy": (True, True), "deaf": (False, True)}, ("hears", "runs"))
    assert [text.get_text() for text in axis.texts] == ["passes", "passes", "stopped", "passes"]
    assert len({bar.get_facecolor() for bar in axis.patches}) == 2


def test_heat_maps_share_one_scale_of_colours(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "show", lambda figure, words: shown.append(figure))
    drawings.heat({"low": torch.zeros(3, 5), "high": torch.ones(3, 5)}, "Two maps.")
    drawings.unet(CONFIG, 16, "A plan.")
    low, high = (axis.images[0] for axis in shown[0].axes[:2])
    assert low.get_clim() == high.get_clim() == (0, 1)
    numbers = [text.get_text() for text in shown[1].axes[0].texts]
    assert "24\n4²" in numbers and len([n for n in numbers if n]) == len(drawings.plan(CONFIG))
