"""Checks for chapter 2: channels cut into heads, the weights of one head, whether a function of a sequence is causal."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import (
    asked,
    assert_same,
    assert_shape,
    plain,
    random,
    refuse,
    require,
    shown,
    telling,
)

Attend = Callable[[Tensor], Tensor]


@telling
def check_weights(weights: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``weights(q, k)``, both ``[time, d]``: softmax over j ≤ i of q_i·k_j / √d."""
    for time, d in ((1, 2), (4, 3), (7, 16)):
        q, k = random(time, d, seed=1), random(time, d, seed=2)
        yours, expected = asked(weights, {"q": q, "k": k}), torch.zeros(time, time, dtype=torch.float64)
        for i in range(time):
            expected[i, : i + 1] = (k[: i + 1] @ q[i] / d**0.5).softmax(dim=0)
        assert_same(yours, expected, f"the weights of {time} positions of width {d}", slips=_slips(q, k))
    return "Right: causal, normalised, and scaled by √d."


def _slips(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    time, d = q.shape
    scores, causal = q @ k.T, torch.ones(time, time).tril().bool()

    def masked(s: Tensor, mask: Tensor = causal, dim: int = 1) -> Tensor:
        return s.masked_fill(~mask, float("-inf")).softmax(dim=dim)

    half = scores / d**0.5
    found = {
        "Nothing is masked: a query puts weight on later keys.": half.softmax(1),
        "The mask comes after the softmax, so that a query's weights no longer sum to 1: mask before it.": half.softmax(
            1
        ).tril(),
        "Mask and root: later keys are set to 0 after the softmax, and nothing divides the scores.": scores.softmax(
            1
        ).tril(),
        "The scores are not divided by √d.": masked(scores),
        "The scores are divided by d, not by its root.": masked(scores / d),
        "The scores are multiplied by √d.": masked(scores * d**0.5),
        "The scores are divided by the root of the time; d is the width.": masked(scores / time**0.5),
        "Rows ask as keys: it should be queries in the rows, keys in the columns.": masked(half.T),
        "The softmax runs over the queries; for each query the weights of its keys should sum to 1.": masked(
            half, dim=0
        ),
        "A query does not see its own position.": masked(half, causal.tril(-1)),
        "A query sees one key too many.": masked(half, torch.ones(time, time).tril(1).bool()),
        "A query sees what comes after it, and not what came before.": masked(half, causal.T),
        "A score of 0 is not hidden: e⁰ is 1. Mask with −∞.": half.tril().softmax(1),
        "These are the scores, before the softmax.": half,
    }
    return found if time > 1 else {}


@telling
def check_causal(attend: Attend, *, width: int = 16, times: Sequence[int] = (1, 2, 9)) -> str:
    """``attend``, of x ``[batch, time, width]``: changing x at t must leave every output before t as it was, and those
    of the other texts of the batch."""
    moved = 0.0
    for time in times:
        x = random(2, time, width)
        y = _outputs(attend, x)
        again = _outputs(attend, x) - y
        require(not again.any(), "two calls with the same x give different outputs: is there dropout? call .eval()")
        for t in range(time):
            changed = x.clone()
            changed[:, t] += random(2, width, seed=t + 1)
            found = _outputs(attend, changed)
            _require_unmoved(
                found[:, :t], y[:, :t], f"x changed at position {t}, of {time}, and so did an output before"
            )
            moved = max(moved, (found - y).abs().max().item())
        changed = x.clone()
        changed[1] += random(time, width, seed=99)
        found = _outputs(attend, changed)
        _require_unmoved(found[:1], y[:1], "the second text of the batch changed, and so did an output of the first")
    require(moved > 0, "no output depends on any input")
    return "Right: no output depends on what comes after it."


def _outputs(attend: Any, x: Tensor) -> Tensor:
    found = asked(attend, {"x": x})
    require(isinstance(found, Tensor), f"the outputs: expected a tensor, found {type(found).__name__}")
    if found.shape[:2] != x.shape[:2]:
        refuse(f"the outputs: expected shape {[*x.shape[:2], '…']}, one for each position, found {list(found.shape)}")
    found = plain(found, "the outputs")
    require(bool(found.isfinite().all()), "an output is not a finite number: is a row masked as a whole?")
    return found


def _require_unmoved(found: Tensor, before: Tensor, what: str) -> None:
    assert_shape(found, tuple(before.shape), what)
    apart = (found - before).abs() > 1e-12
    if apart.any():
        at = tuple(apart.nonzero()[0].tolist())
        where = f"text {at[0]}, position {at[1]}" if len(at) > 1 else f"text {at[0]}"
        refuse(f"{what}: {where} was {shown(before[at])} and became {shown(found[at])}")


@telling
def check_heads(split: Callable[[Tensor, int], Tensor], merge: Callable[[Tensor], Tensor]) -> str:
    """``split(x, n_heads)``: ``[batch, time, d_model]`` → ``[batch, heads, time, d]``, head n with the channels from
    n·d on; ``merge`` undoes it."""
    for batch, time, heads, d in ((2, 3, 2, 4), (1, 5, 2, 2), (2, 4, 4, 2), (3, 1, 1, 4)):
        x, size = random(batch, time, heads * d), f"{heads} heads of {d} channels"
        y = torch.stack([x[:, :, n * d : n * d + d] for n in range(heads)], dim=1)
        hint = (
            "\n  Numbers that were transposed cannot be seen in another shape by view: flatten and reshape copy them."
        )
        yours = asked(split, {"x": x, "n_heads": heads}, "split", hint)
        assert_same(yours, y, f"split, for {size}", slips=_split_slips(x, heads, d))
        assert_same(asked(merge, {"y": y}, "merge", hint), x, f"merge, for {size}", slips=_merge_slips(y))
    return "Right: every channel goes to its head, and comes back to its place."


def _split_slips(x: Tensor, heads: int, d: int) -> dict[str, Tensor]:
    batch, time, _ = x.shape
    found = {
        "Positions were mixed with heads: cut the channels first, then exchange time and heads.": x.reshape(
            batch, heads, time, d
        ),
        "Neighbouring channels went to different heads: cut into (heads, d), not into (d, heads).": x.unflatten(
            2, (d, heads)
        ).permute(0, 3, 1, 2),
        "The heads stand in reverse order.": x.unflatten(2, (heads, d)).transpose(1, 2).flip(1),
    }
    return found if heads > 1 and time > 1 else {}


def _merge_slips(y: Tensor) -> dict[str, Tensor]:
    batch, heads, time, d = y.shape
    found = {
        "Positions were mixed with heads: bring time before the heads, then join the channels.": y.reshape(
            batch, time, heads * d
        ),
        "The heads' channels alternate; they should stand side by side, head after head.": y.permute(
            0, 2, 3, 1
        ).flatten(2),
        "The heads stand in reverse order.": y.flip(1).transpose(1, 2).flatten(2),
    }
    return found if heads > 1 and time > 1 else {}
