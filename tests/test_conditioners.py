"""From a batch to a condition, and to the null condition."""

import pytest
import torch

from ldm_lite.conditioners import Labels, LabelsConfig, Unconditional
from ldm_lite.config import InputError

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


def test_the_null_embedding_learns_from_blank_batches_alone():
    conditioner, batch = Labels(LabelsConfig(NAMES, 5)), {"label": torch.tensor([2, 0])}
    conditioner(conditioner.blank(batch)).context.sum().backward()
    assert conditioner.embedding.weight.grad.abs().sum(1).gt(0).tolist() == [False, False, False, True]


def test_a_negative_label_is_the_null_class():
    conditioner = Labels(LabelsConfig(NAMES, 5))
    context = conditioner({"label": torch.tensor([-1, 2, -3])}).context[:, 0]
    assert torch.equal(context, conditioner.embedding.weight[torch.tensor([3, 2, 3])])


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
