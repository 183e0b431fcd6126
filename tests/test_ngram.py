"""The n-gram baseline: by hand, against a slow transcription, and as a distribution."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcmha_lite.ngram import interpolations, ngram_probabilities, score


def by_definition(train, context, x, vocabulary):
    if context is None:
        return 1 / vocabulary
    n = len(context)
    followers = [train[i + n] for i in range(len(train) - n) if train[i : i + n] == context]
    shorter = by_definition(train, context[1:] if n else None, x, vocabulary)
    kinds = len(set(followers))
    return (followers.count(x) + kinds * shorter) / (len(followers) + kinds) if followers else shorter


texts = st.lists(st.integers(0, 2), min_size=2, max_size=25)


@given(texts, texts, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_equals_the_definition_and_sums_to_one(train, text, order):
    p = ngram_probabilities(np.array(train), np.array(text), order, 3)
    assert p.shape == (len(text) - 1, 3)
    assert np.allclose(p.sum(axis=1), 1)
    for t in range(1, len(text)):
        context = text[max(0, t - order + 1) : t]
        for x in range(3):
            assert p[t - 1, x] == pytest.approx(by_definition(train, context, x, 3))


def test_score_by_hand():
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    loss, accuracy = score(p, np.array([2, 0, 1]))
    assert loss == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2)
    assert accuracy == 0.5


@pytest.mark.parametrize("order", [0, 11])
def test_orders_that_cannot_be_counted_are_refused(order):
    with pytest.raises(ValueError, match="not between 1 and 10"):
        ngram_probabilities(np.arange(3), np.arange(3), order, 65)


def test_every_order_in_turn():
    train, text = np.array([0, 1, 0, 2, 0, 1]), np.array([0, 2, 0, 1])
    for order, p in enumerate(islice(interpolations(train, text, 3), 4), start=1):
        assert np.array_equal(p, ngram_probabilities(train, text, order, 3))
    assert sum(1 for _ in interpolations(train, text, 65)) == 10
