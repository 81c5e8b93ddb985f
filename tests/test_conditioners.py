"""From a batch to a condition, and to the null condition."""

import math

import pytest
import torch
import torch.nn.functional as F

from ldm_lite.conditioners import (
    Boxes,
    BoxesConfig,
    Inpainting,
    InpaintingConfig,
    Labels,
    LabelsConfig,
    LowRes,
    LowResConfig,
    SemanticMap,
    SemanticMapConfig,
    Text,
    TextConfig,
    Together,
    TogetherConfig,
    Unconditional,
    build,
    waves,
    widths,
)
from ldm_lite.config import InputError, from_dict, to_dict
from ldm_lite.layers import TokenEncoder
from ldm_lite.tokens import learned

NAMES = ("grass", "snow", "sand")


def test_a_label_is_one_token_or_a_vector_of_its_embedding():
    label = torch.tensor([2, 0, 2, 1])
    token, vector = (Labels(LabelsConfig(NAMES, 5, door)) for door in ("context", "vector"))
    assert torch.equal(token({"label": label}).context, token.embedding.weight[label][:, None])
    assert torch.equal(vector({"label": label}).vector, vector.embedding.weight[label])
    assert list(token({"label": label}).open()) == ["context"] and list(vector({"label": label}).open()) == ["vector"]


def test_the_blank_label_is_the_class_after_the_last_and_the_rest_of_the_batch_is_kept():
    conditioner, batch = (
        Labels(LabelsConfig(NAMES, 5)),
        {"label": torch.tensor([2, 0]), "image": torch.ones(2, 3, 4, 4)},
    )
    blank = conditioner.blank(batch)
    assert blank["label"].tolist() == [3, 3] and blank["image"] is batch["image"]
    assert batch["label"].tolist() == [2, 0]
    assert torch.equal(conditioner(blank).context[0, 0], conditioner.embedding.weight[3])
    assert len(conditioner.embedding.weight) == 4


def test_classes_without_a_trained_null_have_no_blank():
    conditioner, batch = Labels(LabelsConfig(NAMES, 5)), {"label": torch.tensor([2, 0])}
    with torch.no_grad():
        conditioner.embedding.weight[3] = 0
    assert conditioner.eval().blank(batch) is batch
    assert conditioner.train().blank(batch)["label"].tolist() == [3, 3]  # which is how it would be trained


def test_the_null_embedding_learns_from_blank_batches_alone():
    conditioner, batch = Labels(LabelsConfig(NAMES, 5)), {"label": torch.tensor([2, 0])}
    conditioner(conditioner.blank(batch)).context.sum().backward()
    assert conditioner.embedding.weight.grad.abs().sum(1).gt(0).tolist() == [False, False, False, True]


def test_a_negative_label_is_the_null_class():
    conditioner = Labels(LabelsConfig(NAMES, 5))
    context = conditioner({"label": torch.tensor([-1, 2, -3])}).context[:, 0]
    assert torch.equal(context, conditioner.embedding.weight[torch.tensor([3, 2, 3])])


def test_the_number_of_classes_is_no_class_and_larger_labels_are_refused():
    conditioner = Labels(LabelsConfig(NAMES, 5)).eval()
    assert torch.equal(conditioner({"label": torch.tensor([3])}).context[0, 0], conditioner.embedding.weight[3])
    with pytest.raises(InputError, match=r"^label: 4; there are 3 classes, and 3 is no class$"):
        conditioner({"label": torch.tensor([0, 4])})


def test_unconditional_opens_no_door_and_blanks_nothing():
    batch = {"image": torch.ones(2, 3, 4, 4)}
    assert Unconditional()(batch).open() == {} and Unconditional().blank(batch) is batch


def test_a_name_has_the_number_of_its_place_and_an_unknown_one_is_told_the_names():
    conditioner = Labels(LabelsConfig(NAMES))
    assert [conditioner.index(name) for name in NAMES] == [0, 1, 2]
    with pytest.raises(InputError, match=r"^sandy: no such label; did you mean sand\? there are grass, snow, sand$"):
        conditioner.index("sandy")


@pytest.mark.parametrize("what", ["forward", "blank"])
def test_a_batch_without_labels_is_told_what_it_lacks(what):
    with pytest.raises(InputError, match=r"^Labels needs the key label; the batch has image, caption$"):
        getattr(Labels(LabelsConfig(NAMES)), what)({"image": torch.ones(2, 3, 4, 4), "caption": ["a", "b"]})


def test_an_unknown_door_is_refused():
    with pytest.raises(ValueError, match="door: concat is not context or vector"):
        LabelsConfig(NAMES, door="concat")


# Sequences of tokens ------------------------------------------------------------------------------------------------

MERGES = learned(["a red house on the left and two pines in the snow"] * 2, 320)
CAPTIONS = ["two pines", "a red house in the snow", ""]


def text(**other) -> Text:
    torch.manual_seed(3)
    return Text(TextConfig(**({"width": 6, "depth": 1, "heads": 2, "head_channels": 5, "length": 7} | other)))


def boxes(**other) -> Boxes:
    torch.manual_seed(3)
    settings = {"width": 6, "depth": 1, "heads": 2, "head_channels": 5, "most": 3, "grid": 9} | other
    return Boxes(BoxesConfig(("house", "pine"), **settings)).eval()


def layout(*rows) -> dict:
    """A batch of layouts from rows of (kind, x0, y0, x1, y1)."""
    return {
        "boxes": [torch.tensor([r[1:] for r in row], dtype=torch.float32).reshape(-1, 4) for row in rows],
        "box_labels": [torch.tensor([r[0] for r in row], dtype=torch.long) for row in rows],
    }


def test_a_caption_is_its_tokens_padded_with_the_end_and_encoded():
    conditioner = text(merges=MERGES)
    context = conditioner({"caption": CAPTIONS}).context
    assert context.shape == (3, 7, 6)
    tokens = [conditioner.tokens.encode(c) for c in CAPTIONS]
    padded = torch.tensor([row + [256] * (7 - len(row)) for row in tokens])
    assert torch.equal(context, conditioner.encoder(padded))


def test_the_context_of_a_caption_does_not_depend_on_the_others():
    conditioner = text(merges=MERGES)
    together = conditioner({"caption": CAPTIONS}).context
    for i, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(conditioner({"caption": [caption]}).context[0], together[i])


def test_the_order_of_the_words_matters():
    a, b = text(merges=MERGES)({"caption": ["red house", "house red"]}).context
    assert not torch.allclose(a.mean(0), b.mean(0), atol=1e-3)


def test_a_long_caption_is_cut_in_training_told_of_in_sampling_and_refused_in_a_prompt(recwarn):
    conditioner = text()  # bytes
    assert torch.equal(*conditioner({"caption": ["a house", "a houseboat"]}).context)
    conditioner.eval()({"caption": ["a house", ""]})
    assert not recwarn
    with pytest.warns(UserWarning, match="^caption: 11 tokens, and the model reads 7; the rest is left out$"):
        conditioner({"caption": ["a house", "a houseboat", "a car"]})
    with pytest.raises(InputError, match=r"^prompt: 10000 tokens, and the model reads 7; say it in fewer words$"):
        conditioner.prompt("x" * 10_000)
    assert conditioner.prompt("a house") == "a house"


@pytest.mark.parametrize(
    ("words", "why"), [("", "is empty"), (" \n", "is empty"), ("a \udcff", "has bytes that are no UTF-8 text")]
)
def test_a_prompt_that_says_nothing_is_refused(words, why):
    with pytest.raises(InputError, match=rf"^prompt: {why}; "):
        text().prompt(words)


def test_a_word_lies_in_the_tokens_that_spell_it():
    conditioner = text(merges=MERGES, length=19)
    caption = "Two red pines and a redred house"
    spelt = [conditioner.tokens.decode([t]) for t in conditioner.tokens.encode(caption)]
    assert "".join(spelt[k] for k in conditioner.places(caption, "red")) == " red"
    assert "house" in "".join(spelt[k] for k in conditioner.places(caption, "House"))
    assert text(length=5).places("a pine", "pine") == [2, 3, 4]  # the last byte is cut
    with pytest.raises(InputError, match=r"^word: 'ed' is not in the caption 'two red pines"):
        conditioner.places(caption, "ed")


def test_the_encoder_equals_torchs_with_the_same_weights():
    torch.manual_seed(0)
    ours = TokenEncoder(11, 5, 12, 1, 3, 4)
    theirs = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    block = ours.blocks[0]
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(
            torch.cat([block.attn.to_q.weight, block.attn.to_k.weight, block.attn.to_v.weight])
        )
        theirs.self_attn.in_proj_bias.zero_()
    for a, b in (
        (theirs.self_attn.out_proj, block.attn.to_out), (theirs.norm1, block.norm1), (theirs.norm2, block.norm2),
        (theirs.linear1, block.ff[0]), (theirs.linear2, block.ff[2]),
    ):  # fmt: skip
        a.load_state_dict(b.state_dict())
    tokens = torch.randint(11, (2, 5))
    x = ours.token(tokens) + ours.place(torch.arange(5))
    torch.testing.assert_close(ours(tokens), ours.norm(theirs(x)))


def test_an_encoder_may_be_wider_inside_than_its_tokens_and_knows_its_length():
    encoder = TokenEncoder(11, 5, 6, 2, 8, 64)
    assert encoder.blocks[0].attn.to_q.weight.shape == (512, 6)
    with pytest.raises(ValueError, match="4 tokens in place of 5"):
        encoder(torch.zeros(1, 4, dtype=torch.long))


def test_a_box_is_its_kind_and_two_corners_on_the_grid_row_by_row():
    row = boxes().row([[0.0, 0.0, 1.0, 1.0], [0.26, 0.5, 0.3, 0.74]], [1, 0])
    # a grid of 9 has steps of 1/8: 0.26 is place 2, 0.5 place 4, 0.3 place 2, 0.74 place 6; the 81st token pads
    assert row == [1, 0, 80, 0, 4 * 9 + 2, 6 * 9 + 2, 81, 81, 81]


def test_the_papers_layout_is_92_tokens_of_8192_with_the_crop_last():
    config = BoxesConfig(tuple(map(str, range(600))), most=30, grid=90, vocabulary=8192, crop=True, width=6, depth=1)
    row = Boxes(config).row([[0.0, 0.0, 0.5, 1.0]], [599], (0.25, 0.0, 1.0, 1.0))
    # round(x 89) + 90 round(y 89), as taming-transformers' builder; Python rounds 44.5 to 44 and so does torch
    assert len(row) == 92 and row[:4] == [599, 0, 89 * 90 + 44, 8191] and row[-2:] == [22, 89 * 90 + 89]


def test_the_order_of_boxes_is_shuffled_in_training_only():
    conditioner = boxes()
    three = ([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]], [0, 1, 0])
    once = conditioner.row(*three)
    assert conditioner.row(*three) == once
    conditioner.train()
    torch.manual_seed(1)
    orders = {tuple(conditioner.row(*three)) for _ in range(40)}
    split = lambda row: sorted(zip(row[::3], row[1::3], row[2::3]))
    assert len(orders) == 6 and all(split(row) == split(once) for row in orders)


def test_corners_of_joined_boxes_begin_as_waves():
    table = waves(9, 14)
    assert table.shape == (81, 14) and (table[:, 12:] == 0).all()
    by_hand = []  # of the place in row 2, column 5, y first
    for at in (2 / 8, 5 / 8):
        angles = [math.pi * at * 4.5 ** (i / 2) for i in range(3)]
        by_hand += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(table[2 * 9 + 5, :12], torch.tensor(by_hand))
    start = boxes(joined=True).encoder.token.weight
    torch.testing.assert_close(start[2:81], 2**0.5 * waves(9, 6)[2:])


def test_joined_boxes_are_one_token_each_and_have_no_order():
    conditioner = boxes(joined=True)
    two, kinds = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.3, 0.1, 1.0, 0.9]]), torch.tensor([1, 0])
    context = conditioner({"boxes": [two], "box_labels": [kinds]}).context
    assert context.shape == (1, 3, 6)
    other = conditioner({"boxes": [two.flip(0)], "box_labels": [kinds.flip(0)]}).context
    torch.testing.assert_close(other[:, [1, 0, 2]], context)
    exchanged = conditioner({"boxes": [two], "box_labels": [kinds.flip(0)]}).context
    assert (exchanged - context).abs().max() > 1e-3  # which kind has which box is told
    encoder, row = conditioner.encoder, torch.tensor([conditioner.row(two, kinds)])
    by_hand = [encoder.join(encoder.token(row[0, i : i + 3]).flatten()) for i in (0, 3, 6)]
    torch.testing.assert_close(encoder.embedded(row)[0], torch.stack(by_hand))
    with pytest.raises(InputError, match=r"^joined: a crop's two tokens are no box"):
        boxes(joined=True, crop=True)


def test_training_takes_some_of_too_many_boxes_and_sampling_refuses():
    conditioner, many = boxes(), ([[0.0, 0.0, 0.5, 0.5]] * 4, [0, 1, 0, 1])
    with pytest.raises(InputError, match=r"^boxes: 4, and the model was trained with at most 3; leave some out$"):
        conditioner.row(*many)
    assert 81 not in conditioner.train().row(*many)


@pytest.mark.parametrize(
    ("box", "kind", "message"),
    [
        ([0.1, 0.1, 1.2, 0.3], 0, r"boxes: number 1 \(0.1 0.1 1.2 0.3\) is not inside \[0, 1\]; give shares"),
        ([0.5, 0.1, 0.2, 0.3], 0, r"boxes: number 1 \(0.5 0.1 0.2 0.3\) is empty or inverted; give x0 y0 x1 y1"),
        ([float("nan"), 0.1, 0.2, 0.3], 0, r"boxes: number 1 \(nan 0.1 0.2 0.3\) is not inside"),
        ([0.1, 0.1, 0.2, 0.3], 2, r"box_labels: number 1 is 2; there are 0 to 1"),
    ],
)
def test_a_box_that_cannot_be_is_refused(box, kind, message):
    with pytest.raises(InputError, match=f"^{message}"):
        boxes().row([box], [kind])


def test_each_box_needs_a_kind_and_kinds_have_names():
    with pytest.raises(InputError, match=r"^boxes: 1, and 2 kinds; each box needs one$"):
        boxes().row([[0.1, 0.1, 0.2, 0.3]], [0, 1])
    assert boxes().index("pine") == 1
    with pytest.raises(InputError, match=r"^pines: no such kind of object; did you mean pine\?"):
        boxes().index("pines")


# Maps beside the latent ---------------------------------------------------------------------------------------------


def test_a_semantic_map_is_the_shares_of_its_segments_through_the_1x1_convolution():
    conditioner = SemanticMap(SemanticMapConfig(("sky", "sea", "sand"), f=2, channels=2))
    segments = torch.tensor([[[0, 1, 2, 2], [1, 1, 2, 2]]])
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    expected = shares @ conditioner.channel_mapper.weight[:, :, 0, 0].T
    concat = conditioner({"segmentation": segments}).concat
    torch.testing.assert_close(concat[0, :, 0].T, expected)
    assert torch.equal(conditioner({"segmentation": segments.byte()}).concat, concat)


def test_shares_are_what_the_originals_bilinear_halvings_give():
    shares = torch.rand(2, 3, 12, 20)
    halved = shares
    for _ in range(2):
        halved = F.interpolate(halved, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(F.avg_pool2d(shares, 4), halved)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (torch.full((1, 4, 4), 3), r"segmentation: 3 is no segment; there are 0 to 2: sky, sea, sand"),
        (torch.full((1, 4, 4), -1), r"segmentation: -1 is no segment"),
        (torch.zeros(1, 4, 5), r"segmentation: \(1, 4, 5\) is not \(B, H, W\) with sides divisible by 2"),
    ],
)
def test_a_map_that_cannot_be_is_refused(segments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        SemanticMap(SemanticMapConfig(("sky", "sea", "sand"), f=2))({"segmentation": segments})


@pytest.mark.parametrize(("factor", "f", "channels"), [(4, 4, 3), (2, 4, 12), (8, 4, 3), (4, 1, 3)])
def test_a_low_resolution_picture_is_set_beside_the_latent_as_it_is(factor, f, channels):
    config = LowResConfig(factor, f)
    low = torch.rand(2, 3, 24 // factor, 40 // factor)
    concat = LowRes(config)({"low": low}).concat
    assert concat.shape == (2, channels, 24 // f, 40 // f) and config.channels == channels
    if factor == f:
        assert torch.equal(concat, low)
    if factor == 8:
        assert torch.equal(concat, low.repeat_interleave(2, 2).repeat_interleave(2, 3))
    if factor == 2:  # the four pixels of a cell, in reading order, for each colour
        assert torch.equal(concat[:, :4, 1, 2], low[:, 0, 2:4, 4:6].flatten(1))


def test_noise_is_added_in_training_and_the_model_is_told_how_much():
    conditioner, low = LowRes(LowResConfig(noise=0.5)), torch.zeros(64, 3, 10, 10)
    torch.manual_seed(0)
    concat = conditioner.train()({"low": low}).concat
    level = concat[:, 3, 0, 0] * 0.5
    assert concat.shape[1] == 4 and 0.2 < level.mean() < 0.3 and level.max() <= 0.5
    torch.testing.assert_close(concat[:, :3].flatten(1).std(1), level, rtol=0.15, atol=0.01)
    quiet = conditioner.eval()({"low": low, "low_noise": torch.tensor(0.25)}).concat
    assert (quiet[:, :3] == 0).all() and (quiet[:, 3] == 0.5).all()


def test_inpainting_sets_the_masked_latent_and_the_hole_beside_the_latent():
    conditioner = Inpainting(InpaintingConfig(channels=2, f=2))
    mask = torch.ones(1, 1, 4, 6)
    mask[..., :2, 2:] = 0
    z = torch.rand(1, 2, 2, 3)
    concat = conditioner({"masked_z": z, "mask": mask}).concat
    assert torch.equal(concat[:, :2], z)
    assert concat[0, 2].tolist() == [[-1, 1, 1], [-1, -1, -1]]  # 1 in the hole, as in the original
    with pytest.raises(InputError, match=r"^mask: \(4, 4\) is of another size than its image$"):
        conditioner({"masked_z": z, "mask": mask[..., :4]})
    with pytest.raises(InputError, match=r"^mask: \(1, 4, 6\) is not \(B, 1, H, W\)$"):
        conditioner({"masked_z": z, "mask": mask[0]})
    conditioner.eval()({"masked_z": z, "mask": mask})
    for other in (0.5, -1.0, 255.0, float("nan")):  # as of a soft brush, of a mask in [-1, 1], of a file's bytes
        with pytest.raises(InputError, match=r"^mask: has values other than 1, which is kept, and 0, which"):
            conditioner({"masked_z": z, "mask": mask.index_put((torch.tensor(0),), torch.tensor(other))})


@pytest.mark.parametrize(
    ("conditioner", "key"),
    [
        (text(), "caption"),
        (boxes(), "boxes"),
        (SemanticMap(SemanticMapConfig(("sky",))), "segmentation"),
        (LowRes(LowResConfig()), "low"),
        (Inpainting(InpaintingConfig()), "masked"),
    ],
)
def test_a_batch_without_its_key_is_told_what_it_lacks(conditioner, key):
    with pytest.raises(InputError, match=f"^{type(conditioner).__name__} needs the key {key}; the batch has image"):
        conditioner({"image": torch.ones(2, 3, 4, 4), "mask": torch.ones(1)})


# Nothing, and several -----------------------------------------------------------------------------------------------


def test_blank_empties_captions_and_layouts_and_keeps_maps():
    assert text().blank({"caption": ["a", "b"], "z": 1}) == {"caption": ["", ""], "z": 1}
    blank = boxes().blank(layout([(0, 0.1, 0.1, 0.5, 0.5)], []))
    assert [len(b) for b in blank["boxes"]] == [0, 0] and boxes().row(blank["boxes"][0], blank["box_labels"][0]) == [
        81
    ] * 9
    for conditioner in (
        SemanticMap(SemanticMapConfig(("sky",))),
        LowRes(LowResConfig()),
        Inpainting(InpaintingConfig()),
    ):
        batch = {"anything": 1}
        assert conditioner.blank(batch) is batch and conditioner.dropped(batch, 0.9) is batch


@pytest.mark.parametrize("share", [0.0, 0.13, 1.0])
def test_the_share_of_rows_that_are_dropped_is_the_one_asked_for(share):
    n = 20_000
    torch.manual_seed(0)
    labels = Labels(LabelsConfig(NAMES, 5)).dropped({"label": torch.ones(n, dtype=torch.long), "x": 1}, share)
    captions = text().dropped({"caption": ["a"] * n}, share)["caption"]
    for dropped in ((labels["label"] == 3).float().mean(), captions.count("") / n):
        assert abs(float(dropped) - share) < 3 * (share * (1 - share) / n) ** 0.5 + 1e-9
    assert labels["x"] == 1


def test_a_dropped_layout_is_empty_and_the_others_are_whole():
    n, batch = 200, layout(*[[(0, 0.1, 0.1, 0.5, 0.5)], [(1, 0.1, 0.1, 0.5, 0.5), (0, 0.2, 0.1, 0.5, 0.5)]] * 100)
    torch.manual_seed(0)
    dropped = boxes().dropped(batch, 0.5)
    sizes = [len(b) for b in dropped["boxes"]]
    assert sizes == [len(b) for b in dropped["box_labels"]]
    assert all(size in (0, 1 + i % 2) for i, size in enumerate(sizes)) and 0.35 * n < sizes.count(0) < 0.65 * n


def both() -> Together:
    torch.manual_seed(3)
    one = TextConfig(width=6, depth=1, heads=2, head_channels=5, length=7)
    return Together(TogetherConfig((one, LabelsConfig(NAMES, 6), SemanticMapConfig(("sky", "sea"), f=2))))


def told(n: int = 2) -> dict:
    return {
        "caption": ["a house", "pines"] * (n // 2),
        "label": torch.tensor([0, 2] * (n // 2)),
        "segmentation": torch.zeros(n, 4, 4, dtype=torch.long),
    }


def test_conditions_together_open_all_their_doors_one_after_the_other():
    conditioner, batch = both(), told()
    cond = conditioner(batch)
    assert conditioner.keys == ("caption", "label", "segmentation") and widths(conditioner.config) == {
        "context": 6,
        "concat": 3,
    }
    a, b, c = (part(batch) for part in conditioner.parts)
    assert torch.equal(cond.context, torch.cat([a.context, b.context], 1)) and torch.equal(cond.concat, c.concat)


def test_each_condition_is_dropped_by_itself():
    torch.manual_seed(0)
    dropped = both().dropped(told(4000), 0.3)
    no_words = torch.tensor([caption == "" for caption in dropped["caption"]])
    no_label = dropped["label"] == 3
    for share, expected in ((no_words, 0.3), (no_label, 0.3), (no_words & no_label, 0.09)):
        assert abs(float(share.float().mean()) - expected) < 0.03
    assert torch.equal(dropped["segmentation"], told(4000)["segmentation"])


def test_without_tells_nothing_then_the_first_condition_then_the_first_two():
    rows = both().without(told())
    assert [row["caption"] for row in rows] == [["", ""], ["a house", "pines"]]
    assert [row["label"].tolist() for row in rows] == [[3, 3], [3, 3]]


def test_tokens_of_two_widths_cannot_come_together():
    with pytest.raises(InputError, match=r"^width: 6 and 5; tokens that come together need one width$"):
        widths(TogetherConfig((LabelsConfig(NAMES, 6), LabelsConfig(NAMES, 5))))
    with pytest.raises(InputError, match=r"^parts: two conditions or more are needed$"):
        TogetherConfig((LabelsConfig(NAMES, 6),))


@pytest.mark.parametrize("conditioner", [text(merges=MERGES), boxes(), both(), LowRes(LowResConfig(noise=0.1))])
def test_a_conditioner_is_built_again_from_what_its_config_looks_like_in_a_file(conditioner):
    values = to_dict(conditioner.config)
    again = build(from_dict(type(conditioner.config), values))
    assert type(again) is type(conditioner) and again.config == conditioner.config
    assert widths(again.config) == widths(conditioner.config)
    again.load_state_dict(conditioner.state_dict())
