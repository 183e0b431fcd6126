"""Counting as a language model: interpolated n-grams, the baseline that a network must beat."""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from jaxtyping import Float, Int


def ngram_probabilities(
    train: Int[np.ndarray, " n"], text: Int[np.ndarray, " m"], order: int, vocabulary: int
) -> Float[np.ndarray, "predictions vocabulary"]:
    """Probabilities of each character of ``text`` but the first, from the ``order`` − 1 characters before it.

    Witten–Bell interpolation (Witten and Bell 1991), which has nothing to tune: with N(c) the times that context c
    was followed by anything in ``train``, T(c) by how many different characters, and c′ the context less its oldest,

        p(x | c) = (count(c x) + T(c) · p(x | c′)) / (N(c) + T(c)),   ending with p uniform.

    Near the start of ``text``, where the context is shorter than it should be, the shorter one is used. ValueError for
    an order below 1, or so high that contexts cannot be numbered in 63 bits.
    """
    if not order >= 1 or vocabulary**order >= 2**63:
        raise ValueError(f"order {order} is not between 1 and {int(63 / np.log2(vocabulary))}")
    return next(islice(interpolations(train, text, vocabulary), order - 1, None))


def interpolations(
    train: Int[np.ndarray, " n"], text: Int[np.ndarray, " m"], vocabulary: int
) -> Iterator[Float[np.ndarray, "predictions vocabulary"]]:
    """``ngram_probabilities`` of order 1, 2, 3 … in turn, each made from the one before, in one array: copy what you
    keep. It ends where contexts cannot be numbered in 63 bits."""
    p = np.full((len(text) - 1, vocabulary), 1 / vocabulary)
    for context in count():
        if vocabulary ** (context + 1) >= 2**63:
            return
        grams, counts = np.unique(_keys(train, context + 1, vocabulary), return_counts=True)
        first = max(context, 1)  # the first predicted character that has such a context
        wanted = _keys(text, context, vocabulary)[first - context : len(text) - context]
        begin, end = np.searchsorted(grams, (wanted * vocabulary, (wanted + 1) * vocabulary))
        kinds = end - begin
        row = np.repeat(np.arange(len(wanted)), kinds)
        entry = np.arange(len(row)) - np.repeat(np.cumsum(kinds) - kinds, kinds) + np.repeat(begin, kinds)
        total = np.bincount(row, counts[entry], minlength=len(wanted))
        known = kinds > 0
        rows = p[first - 1 :]
        rows[known] *= kinds[known, None]
        np.add.at(rows, (row, grams[entry] % vocabulary), counts[entry])
        rows[known] /= (total + kinds)[known, None]
        yield p


def _keys(ids: Int[np.ndarray, " n"], length: int, vocabulary: int) -> Int[np.ndarray, " k"]:
    """Every run of ``length`` ids as one number in base ``vocabulary``; n + 1 zeros for length 0."""
    keys = np.zeros(max(len(ids) - length + 1, 0), dtype=np.int64)
    for offset in range(length):
        keys = keys * vocabulary + ids[offset : offset + len(keys)]
    return keys


def score(p: Float[np.ndarray, "predictions vocabulary"], text: Int[np.ndarray, " m"]) -> tuple[float, float]:
    """Mean −log p of the characters that came, in nats, and the share of them that were the most probable."""
    wanted = text[1:]
    loss = -np.log(p[np.arange(len(wanted)), wanted]).mean()
    return float(loss), float((p.argmax(axis=1) == wanted).mean())
