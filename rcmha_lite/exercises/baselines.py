"""Checks for chapter 1: windows of a text, and the best guess that looks at nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import asked, assert_same, numbers, refuse, require, telling


@telling
def check_windows(window: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]) -> str:
    """``window(ids, start, length)`` gives inputs and targets: ``length`` ids from ``start`` on, and what follows each."""
    for count, start, length in ((11, 2, 4), (12, 0, 5), (7, 5, 1)):
        ids = 10 + torch.arange(count) ** 2
        what = f"of {count} ids, start {start}, length {length}"
        found = asked(window, {"ids": ids, "start": start, "length": length})
        two = isinstance(found, tuple | list) and len(found) == 2
        require(two, f"{what}: expected a pair, inputs and targets, found {type(found).__name__}")
        inputs, targets = ids[start : start + length], ids[start + 1 : start + length + 1]
        for name, yours, expected, slips in (
            ("inputs", found[0], inputs, _wrong_inputs(ids, start, length)),
            ("targets", found[1], targets, _wrong_targets(ids, start, length)),
        ):
            _require_row(yours, expected, f"{what}: the {name}", slips)
    return "Right: each target is the character that follows its input."


def _require_row(yours: Any, expected: Tensor, what: str, slips: dict[str, Tensor]) -> None:
    if isinstance(yours, Tensor) and yours.ndim == 1 and len(yours) != len(expected):
        refuse(f"{what}: expected {expected.tolist()}, {len(expected)} of them, found {yours.tolist()}")
    assert_same(yours, expected, what, slips=slips)


def _wrong_inputs(ids: Tensor, start: int, length: int) -> dict[str, Tensor]:
    return {
        "That is the first window, wherever it should start.": ids[:length],
        "The window starts one too late.": ids[start + 1 : start + 1 + length],
        "The window starts one too early.": ids[max(start - 1, 0) : max(start - 1, 0) + length],
        "These are the places in the text, not what stands there.": torch.arange(start, start + length),
    }


def _wrong_targets(ids: Tensor, start: int, length: int) -> dict[str, Tensor]:
    return {
        "These are the inputs once more: a model that copies would be right.": ids[start : start + length],
        "These are the characters before the inputs: a target is what follows.": ids.roll(1)[start : start + length],
        "These stand two steps after the inputs: a target follows at once.": ids[start + 2 : start + 2 + length],
        "These follow the whole window; each input has a target of its own.": ids[start + length : start + 2 * length],
    }


@telling
def check_constant_guess(guess: Callable[[Tensor, Tensor], Sequence[float]]) -> str:
    """``guess(train, text)``, both ids: loss and accuracy in ``text`` of each character's share in ``train``."""
    for train, text in (
        ([0, 0, 0, 1, 1, 2], [1, 0, 0, 2]),
        ([0, 1, 1, 1, 2, 2, 3, 3], [2, 1, 3, 2, 0, 1, 1, 2]),
        ([1, 0, 0], [1]),
    ):
        a, b = torch.tensor(train), torch.tensor(text)
        found = asked(guess, {"train": a, "text": b})
        what = f"counted in {train}, the text {text}"
        yours = numbers(found, 2, f"{what}: loss and accuracy")
        shares = torch.bincount(a).double() / len(a)
        p, hit = shares[b], b == shares.argmax()
        own = torch.bincount(b).double() / len(b)
        loss, accuracy = -p.log().mean(), hit.double().mean()
        slips = {
            "Loss and accuracy stand in each other's place: the loss comes first.": accuracy,
            "The sign is missing: logarithms of shares are negative.": -loss,
            "That is a sum: divide it by the characters of the text.": -p.log().sum(),
            "That is in bits: take natural logarithms.": -p.log2().mean(),
            "That takes logarithms to base 10: take natural ones.": -p.log10().mean(),
            "That is the mean share: take logarithms, then the mean.": p.mean(),
            "That is the logarithm of the mean share: take logarithms first.": -p.mean().log(),
            "That is what the loss is the logarithm of: e to it.": loss.exp(),
            "The shares are those of the text itself; count in train.": -own[b].log().mean(),
            "That is the loss in train; score the text.": -shares[a].log().mean(),
            "That is the loss of equal shares: count in train.": torch.tensor(float(len(shares))).log(),
        }
        assert_same(yours[0], loss, f"{what}: the loss", 1e-5, slips=slips)
        slips = {
            "That is the share of the favourite in train; count its hits in the text.": shares.max(),
            "That is the mean probability: count how often the favourite comes.": p.mean(),
            "That is in percent.": 100 * accuracy,
            "That is the number of hits, not their share.": hit.double().sum(),
            "That is the share of misses.": 1 - accuracy,
            "The favourite is that of the text itself; count in train.": own.max(),
            "That guesses the rarest character.": (b == shares.argmin()).double().mean(),
        }
        assert_same(yours[1], accuracy, f"{what}: the accuracy", 1e-5, slips=slips)
    return "Right: what can be had without looking at any context."
