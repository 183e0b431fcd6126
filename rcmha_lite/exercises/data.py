"""Checks for chapter 1 and for what is done with logits: successors, accuracy, temperature."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite.exercises._telling import (
    asked,
    assert_same,
    number,
    random,
    recognised,
    refuse,
    require,
    shortened,
    telling,
)


@telling
def check_bigram(count: Callable[[str], dict[str, str]]) -> str:
    """``count(text)`` gives, for each character that has a successor, its most frequent one, in a tie the first seen."""
    for text, expected in (  # of a: neither the first nor the last that follows; then not the commonest character
        ("abacab", {"a": "b", "b": "a", "c": "a"}),
        ("abacacad", {"a": "c", "b": "a", "c": "a"}),
        ("abcbcbacac", {"a": "c", "b": "c", "c": "b"}),
        ("acab", {"a": "c", "c": "a"}),  # ties, the second between pairs that overlap
        ("aaabab", {"a": "a", "b": "a"}),
        ("x", {}),
    ):
        found = asked(count, {"text": text})
        require(isinstance(found, dict), f"in {text!r}: expected a dict, found {type(found).__name__}")
        if not _equal(found, expected):
            shown = shortened(repr(found), 100)
            refuse(f"in {text!r} you found {shown}, expected {expected}.\n  {_wrong_successor(text, found, expected)}")
    return "Right: every character predicts its most frequent successor."


def _equal(found: dict[Any, Any], expected: dict[str, str]) -> bool:
    strings = all(isinstance(x, str) for pair in found.items() for x in pair)
    return strings and found == expected


def _wrong_successor(text: str, found: dict[Any, Any], expected: dict[str, str]) -> str:
    for character in found:
        if character not in expected:
            return f"Nothing follows {character!r}: leave it out."
    for character, best in expected.items():
        if character not in found:
            return f"{character!r} has a successor and is left out."
        if found[character] != best:
            following = Counter(b for a, b in pairwise(text) if a == character)
            counts = ", ".join(f"{b!r} {times} times" for b, times in following.items())
            tie = list(following.values()).count(following[best]) > 1
            order = " Of equally frequent ones the first seen counts." if tie else ""
            return f"After {character!r} stand, in the order first seen: {counts}.{order}"
    return ""


@telling
def check_accuracy(accuracy: Callable[[Tensor, Tensor], float]) -> str:
    """``accuracy(logits, targets)`` is the share of positions whose largest logit is the target's."""
    logits = random(2, 4, 5)
    hits = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])
    targets = (logits.argmax(dim=-1) + 1 - hits) % 5
    _check_share(accuracy, logits, targets, 5 / 8, f"of two windows with the hits {hits.tolist()}")
    logits = torch.tensor([[[0.1, 2.0, 0.3], [1.0, 0.0, 0.5]]])
    for wanted, expected in (([[1, 0]], 1.0), ([[1, 2]], 0.5), ([[0, 2]], 0.0)):
        _check_share(accuracy, logits, torch.tensor(wanted), expected, f"targets {wanted}, favourites [[1, 0]]")
    return "Right: accuracy counts exact hits and nothing else."


def _check_share(accuracy: Any, logits: Tensor, targets: Tensor, expected: float, what: str) -> None:
    found = number(asked(accuracy, {"logits": logits, "targets": targets}), what)
    if abs(found - expected) <= 1e-6:
        return
    hits = (logits.argmax(dim=-1) == targets).double()
    slips = {
        "That is the number of hits, not their share.": hits.sum(),
        "That is in percent.": 100 * hits.mean(),
        "That is the share of misses.": 1 - hits.mean(),
        "Hits are divided by the length of one window.": hits.sum() / targets.shape[1],
        "That is the share in the first window alone.": hits[0].mean(),
        "That is the share in the last window alone.": hits[-1].mean(),
        "That is the first position alone.": hits[0, 0],
        "That is the last position of each window alone.": hits[:, -1].mean(),
        "That looks for the smallest logit.": (logits.argmin(dim=-1) == targets).double().mean(),
    }
    refuse(
        f"{what}: expected {expected:.4g}, you found {found:.4g}.\n  {recognised(torch.tensor(found).double(), slips, 1e-7)}"
    )


@telling
def check_temperature(probabilities: Callable[[Tensor, float], Tensor]) -> str:
    """``probabilities(logits, temperature)`` is softmax(logits / temperature)."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    for temperature in (1.0, 0.25, 4.0):
        yours = asked(probabilities, {"logits": logits, "temperature": temperature})
        expected, scaled = F.softmax(logits / temperature, dim=0), logits / temperature
        slips = {
            "The temperature multiplies the logits: high ones should flatten.": F.softmax(logits * temperature, dim=0),
            "The temperature does nothing.": F.softmax(logits, dim=0),
            "The temperature divides the probabilities; it should divide the logits.": logits.softmax(0) / temperature,
            "These are logarithms of probabilities.": F.log_softmax(scaled, dim=0),
            "They do not sum to 1: divide by the sum.": scaled.exp(),
            "These are still logits.": scaled,
            "The root of the temperature divides.": F.softmax(logits / temperature**0.5, dim=0),
        }
        assert_same(yours, expected, f"probabilities at temperature {temperature}", slips=slips)
    return "Right: low temperatures sharpen, high ones flatten."
