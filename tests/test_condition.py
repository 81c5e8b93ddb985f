"""The three doors."""

import pytest
import torch

from ldm_lite.condition import Condition


def full(rows: int = 3, seed: int = 0) -> Condition:
    torch.manual_seed(seed)
    return Condition(torch.randn(rows, 5, 7), torch.randn(rows, 2, 4, 6), torch.randn(rows, 9))


def assert_same(a: Condition, b: Condition) -> None:
    torch.testing.assert_close(a.open(), b.open(), rtol=0, atol=0)


def test_open_names_the_doors_that_are_not_shut():
    assert list(full().open()) == ["context", "concat", "vector"]
    assert list(Condition(vector=torch.zeros(2, 3)).open()) == ["vector"]
    assert Condition().open() == {}


def test_where_takes_rows_of_one_and_of_the_other():
    a, b, mask = full(seed=1), full(seed=2), torch.tensor([True, False, True])
    mixed = a.where(mask, b)
    for row, source in enumerate((a, b, a)):
        assert_same(mixed.map(lambda t, row=row: t[row : row + 1]), source.map(lambda t, row=row: t[row : row + 1]))


def test_stack_puts_the_rows_of_one_after_those_of_the_other():
    a, b = full(3, 1), full(2, 2)
    both = Condition.stack([a, b])
    assert_same(both.map(lambda t: t[:3]), a)
    assert_same(both.map(lambda t: t[3:]), b)


def test_map_is_applied_to_open_doors_only():
    assert_same(Condition(vector=torch.ones(2, 3)).map(lambda t: t + 1), Condition(vector=torch.full((2, 3), 2.0)))


def test_or_joins_tokens_channels_and_features():
    a = Condition(torch.zeros(3, 5, 7), torch.zeros(3, 2, 4, 6), torch.zeros(3, 9))
    b = Condition(torch.ones(3, 1, 7), torch.ones(3, 3, 4, 6), torch.ones(3, 4))
    both = a | b
    assert both.context.shape == (3, 6, 7) and both.concat.shape == (3, 5, 4, 6) and both.vector.shape == (3, 13)
    assert (both.context[:, 5:] == 1).all() and (both.concat[:, 2:] == 1).all() and (both.vector[:, 9:] == 1).all()


def test_or_keeps_doors_that_only_one_side_opens():
    a, b = Condition(vector=torch.ones(3, 9)), Condition(context=torch.zeros(3, 5, 7))
    assert_same(a | b, Condition(vector=torch.ones(3, 9), context=torch.zeros(3, 5, 7)))
    assert_same(full() | Condition(), full())


@pytest.mark.parametrize(
    ("door", "shape", "dimensions"), [("context", (3, 5), 3), ("concat", (3, 5, 7), 4), ("vector", (3, 5, 7), 2)]
)
def test_a_tensor_of_the_wrong_number_of_dimensions_is_refused(door, shape, dimensions):
    with pytest.raises(ValueError, match=rf"^{door} has shape .*: {dimensions} dimensions are needed"):
        Condition(**{door: torch.zeros(shape)})


def test_batches_that_differ_are_refused():
    with pytest.raises(ValueError, match="batches differ: context 3, vector 2"):
        Condition(context=torch.zeros(3, 5, 7), vector=torch.zeros(2, 9))


@pytest.mark.parametrize("join", [lambda a, b: Condition.stack([a, b]), lambda a, b: a.where(torch.ones(3) > 0, b)])
def test_conditions_with_other_doors_cannot_serve_one_denoiser(join):
    a, b = Condition(vector=torch.zeros(3, 9)), Condition(context=torch.zeros(3, 5, 7), concat=torch.zeros(3, 1, 2, 2))
    with pytest.raises(ValueError, match="open doors differ: vector against context, concat"):
        join(a, b)
    with pytest.raises(ValueError, match="open doors differ: vector against none"):
        join(a, Condition())
