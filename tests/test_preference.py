"""Which of two pictures is preferred: a hidden order, votes, and the interval of their share."""

import math
import random

import pytest
import torch

from ldm_lite.course import figures, preference
from ldm_lite.course.preference import Share, Study, Vote, ask, wilson


def pictures(n, value, h=5, w=7):
    """Row i is all value + i / 100, so that a picture says whose it is and which."""
    return (value + torch.arange(n) / 100).view(-1, 1, 1, 1).expand(n, 3, h, w)


def study(n=6, seed=0, **more):
    return Study(pictures(n, 0.5), pictures(n, -0.5), ("bright", "dark"), seed=seed, **more)


def brighter(left, right):
    return float(left.mean()) > float(right.mean())


# The interval -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "votes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_that_of_the_published_table(chosen, votes, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(chosen, votes) == pytest.approx((low, high), abs=5e-5)
    assert wilson(votes - chosen, votes) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_interval_is_scipys(confidence):
    stats = pytest.importorskip("scipy.stats")
    for chosen, votes in ((3, 7), (0, 1), (11, 11), (40, 97)):
        theirs = stats.binomtest(chosen, votes).proportion_ci(confidence, "wilson")
        assert wilson(chosen, votes, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_at_its_ends_the_share_is_just_z_deviations_away():
    for chosen, votes in ((3, 7), (40, 97), (1, 30)):
        for p in wilson(chosen, votes, math.erf(1.7 / math.sqrt(2))):
            assert abs(chosen / votes - p) == pytest.approx(1.7 * math.sqrt(p * (1 - p) / votes), rel=1e-9)


def test_the_interval_holds_what_it_should_as_often_as_it_says():
    """The exact probability, summed over all outcomes, for shares and sizes of small studies."""
    for votes in (20, 50):
        held = []
        for p in (k / 40 for k in range(2, 39)):
            odds = [math.comb(votes, k) * p**k * (1 - p) ** (votes - k) for k in range(votes + 1)]
            inside = [low <= p <= high for low, high in (wilson(k, votes) for k in range(votes + 1))]
            held.append(sum(o for o, i in zip(odds, inside) if i))
        assert 0.94 < sum(held) / len(held) < 0.97 and min(held) > 0.88


@pytest.mark.parametrize(("chosen", "votes"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_cannot_be_are_refused(chosen, votes):
    with pytest.raises(ValueError, match=f"chosen, votes: {chosen} of {votes} cannot be"):
        wilson(chosen, votes)


def test_a_confidence_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="confidence: 95 is not between 0 and 1"):
        wilson(1, 2, 95)


# The order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6, 9])
def test_each_maker_stands_on_the_left_half_of_the_time_and_each_row_comes_once(n):
    for seed in range(8):
        one = study(n, seed)
        assert sorted(one.order) == list(range(n)) and abs(2 * sum(one.swapped) - n) == n % 2


def test_the_order_is_another_for_another_seed_and_the_same_for_the_same():
    layout = lambda seed: (study(40, seed).order, study(40, seed).swapped)
    assert layout(3) == layout(3)
    assert layout(3)[0] != layout(4)[0] and layout(3)[1] != layout(4)[1]


def test_where_a_maker_stands_says_nothing_of_when_it_comes():
    first = [study(40, seed).swapped[study(40, seed).order[0]] for seed in range(60)]
    assert 15 < sum(first) < 45


def test_pairs_are_judged_in_that_order():
    one = study(40)
    one.asked(brighter)
    assert [vote.row for vote in one.votes] == one.order != list(range(40))


def test_of_an_odd_number_either_maker_may_stand_on_the_left_once_more():
    assert {sum(study(5, seed).swapped) for seed in range(20)} == {2, 3}


# Votes --------------------------------------------------------------------------------------------------------------


def test_a_judge_who_sees_the_difference_prefers_one_maker_wherever_it_stands():
    for seed in range(3):
        assert study(7, seed).asked(brighter).share == 1
        assert study(7, seed).asked(lambda left, right: not brighter(left, right)).share == 0


def test_a_judge_who_always_says_left_prefers_nobody_and_is_found_out():
    one = study(30)
    assert one.asked(lambda left, right: True).share == 0.5
    assert one.leftness() == Share(1.0, *wilson(30, 30), 30)


def test_a_coin_prefers_nobody_within_the_interval():
    coin = random.Random(1)
    result = study(200).asked(lambda left, right: coin.random() < 0.5)
    assert result.low < 0.5 < result.high and result.high - result.low < 0.15


def test_a_vote_is_recorded_with_its_row_its_maker_and_its_side():
    one = study(6)
    row = one.row
    _, right = one.pair(row)
    one.vote(left=False)
    maker = "bright" if float(right.mean()) > 0 else "dark"
    assert one.votes == [Vote(row, maker, False)] and one.row != row
    assert torch.equal(right, (one.first if maker == "bright" else one.second)[row])


def test_votes_by_hand_and_by_a_function_add_up():
    one = study(6)
    for _ in range(2):
        one.vote(brighter(*one.pair(one.row)))
    assert one.result() == Share(1.0, *wilson(2, 2), 2)
    assert one.asked(brighter) == Share(1.0, *wilson(6, 6), 6) and one.row is None


def test_the_share_says_how_sure_it_is():
    one = study(4)
    assert str(one.asked(brighter)) == "100% of 4 votes, from 51% to 100% at 95 %"


def test_there_is_no_result_without_votes_and_no_vote_after_the_last():
    one = study(2)
    with pytest.raises(ValueError, match="nobody has voted yet"):
        one.result()
    one.asked(brighter)
    with pytest.raises(ValueError, match="vote: all 2 pairs have been judged"):
        one.vote(True)


def test_what_is_no_set_of_pairs_is_refused():
    a, b = pictures(3, 0.5), pictures(3, -0.5)
    for pair in ((a, b[:2]), (a[0], b[0]), (a[:0], b[:0])):
        with pytest.raises(ValueError, match="are not pairs"):
            Study(*pair)
    with pytest.raises(ValueError, match="given: 2 pictures, and there are 3 pairs"):
        Study(a, b, given=a[:2])
    with pytest.raises(ValueError, match="new, new are not two names"):
        Study(a, b, ("new", "new"))


# What is shown ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """What is shown: rows of pictures, words and settings."""
    found = []
    monkeypatch.setattr(figures, "pictures", lambda *what, **settings: found.append((*what, settings)))
    return found


def test_the_fixed_grid_shows_pairs_as_they_are_judged_and_names_nobody(drawn):
    one = study(6, given=pictures(6, 0.1, 2, 3))
    assert ask(one, "Four pairs.") is None
    (given, left, right), words, settings = drawn[0]
    assert words == "Four pairs." and settings == {"left": ["given", "left", "right"]}
    assert given.shape == left.shape == (4, 3, 5, 7)
    for i, row in enumerate(one.order[:4]):
        assert torch.equal(left[i], one.pair(row)[0]) and torch.equal(right[i], one.pair(row)[1])
        assert torch.allclose(given[i], torch.tensor(0.1 + row / 100))
    ask(study(3), "Three pairs.")
    assert drawn[1][2] == {"left": ["left", "right"]} and len(drawn[1][0][0]) == 3


@pytest.mark.parametrize("given", [None, pictures(3, 0.1)])
def test_the_buttons_vote_for_what_stands_there_and_the_last_one_shows_the_result(given):
    pytest.importorskip("ipywidgets")
    one = study(3, given=given)
    text, image, row = preference.controls(one, "Which?").children
    left, right = row.children
    before = bytes(image.value)
    assert text.value == "Which? (1 of 3)" and before.startswith(b"\x89PNG")
    for i in range(3):
        where = one.row
        (left if brighter(*one.pair(where)) else right).click()
        assert one.votes[i].row == where and one.votes[i].chosen == "bright"
    assert bytes(image.value) != before and left.disabled and right.disabled
    assert text.value == f"bright preferred to dark: {Share(1.0, *wilson(3, 3), 3)}"
    left.click()
    assert len(one.votes) == 3


def test_while_pairs_are_left_the_panel_names_no_maker():
    pytest.importorskip("ipywidgets")
    panel = preference.controls(study(2), "Which?")
    assert not {"bright", "dark"} & set(" ".join(str(getattr(w, "value", "")) for w in panel.children[:1]).split())


def test_the_panel_is_made_only_where_somebody_may_be_there(drawn, monkeypatch):
    pytest.importorskip("ipywidgets")
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(preference, "live", lambda: True)
    panel = ask(study(3), "Three pairs.")
    assert shown == [panel] and len(drawn) == 1
