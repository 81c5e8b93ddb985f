"""Text as byte pairs."""

from itertools import pairwise

import pytest

from ldm_lite.tokens import BytePairs, learned, merged

TEXTS = ("two red houses on grass", "a red house in the snow", "Two red boats", "naïve 雪 ☃!")


def test_without_merges_the_tokens_are_the_bytes_of_the_lower_case():
    assert BytePairs().encode("Ab é") == list("ab é".encode()) and BytePairs().size == 257 and BytePairs.end == 256


def test_known_pairs_are_merged_in_the_order_in_which_they_were_learned():
    pairs = BytePairs([(ord("b"), ord("c")), (ord("a"), ord("b")), (ord("a"), 257)])
    # b c first, then a with it; the pair a b, which is learned too, finds no b left
    assert pairs.encode("abc") == [259] and pairs.encode("ab") == [258] and pairs.encode("bcbc") == [257, 257]
    assert pairs.decode([259, 98]) == "abcb"


def test_pairs_do_not_overlap():
    assert merged([7, 7, 7, 7, 7], (7, 7), 9) == [9, 9, 7] and merged([1, 7, 2], (7, 7), 9) == [1, 7, 2]


@pytest.mark.parametrize("vocabulary", [257, 263, 300])
def test_any_text_comes_back_from_its_tokens_in_lower_case(vocabulary):
    pairs = BytePairs(learned(TEXTS, vocabulary))
    for text in (*TEXTS, "", "  two\n\tblanks  ", "never seen: ÄÖ~\x00"):
        assert pairs.decode(pairs.encode(text)) == text.lower()


def test_the_most_frequent_pair_is_learned_first_and_of_equals_the_smaller_one():
    assert learned(["abab", "ab", "xy xy xy xy"], 258) == ((ord("x"), ord("y")),)
    assert learned(["ba", "ba", "ab", "ab"], 258) == ((ord("a"), ord("b")),)


def test_learning_stops_at_the_vocabulary_and_where_no_pair_comes_twice():
    assert len(learned(TEXTS, 262)) == 5 and learned(["abc", "de"], 500) == ()


def test_a_word_seen_often_is_one_token_with_the_blank_before_it():
    pairs = BytePairs(learned(["a red house"] * 2, 400))
    tokens = pairs.encode("a red house")
    assert [pairs.decode([token]) for token in tokens] == ["a", " red", " house"]


def test_spans_lie_end_to_end_over_the_bytes_of_the_text():
    pairs = BytePairs(learned(TEXTS, 280))
    for text in TEXTS:
        spans = pairs.spans(text)
        assert spans[0][0] == 0 and spans[-1][1] == len(text.lower().encode())
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_the_same_texts_give_the_same_merges_in_any_order():
    assert learned(TEXTS, 290) == learned(TEXTS[::-1], 290)
