"""Checks for chapters 4 and 8: scores moved from distances to keys, and their factors."""

from collections.abc import Callable

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


@telling
def check_shift(shift: Callable[[Tensor], Tensor], *, memory: int = 0) -> str:
    """``shift(by_distance)`` turns columns δ of ``[time, memory + time]`` into columns j, δ = memory + i − j ≥ 0."""
    for time in (6, 2, 1):
        by_distance = random(time, memory + time)
        yours = asked(shift, {"by_distance": by_distance})
        assert_shape(yours, tuple(by_distance.shape), "the shifted scores")
        require(yours.is_floating_point(), f"the shifted scores: expected floating point numbers, found {yours.dtype}")
        given, found = by_distance.to(yours.dtype).double(), plain(yours, "the shifted scores")
        i, j = torch.arange(time)[:, None], torch.arange(memory + time)
        delta = memory + i - j
        wanted = given.gather(1, delta.clamp(min=0))
        apart = (delta >= 0) & (found != wanted)
        if apart.any():
            refuse(_told(given, found, wanted, apart, memory))
    return "Right: every score sits under its key."


def _told(given: Tensor, found: Tensor, wanted: Tensor, apart: Tensor, memory: int) -> str:
    """The first row that differs, in numbers and in the distances that they had."""
    i, j = apart.nonzero()[0].tolist()
    distances = [_whence(given, x, i) for x in found[i, : memory + i + 1]]
    row = ", ".join(str(memory + i - j) for j in range(memory + i + 1))
    return (
        f"of {list(given.shape)}, row {i}, column {j} must hold distance {memory + i - j} of row {i}, {shown(wanted[i, j])};"
        f" you have {shown(found[i, j])}.\n  Up to the query, row {i} should hold the distances {row};"
        f" yours holds {', '.join(distances)}. {int(apart.sum())} places are wrong."
    )


def _whence(given: Tensor, value: Tensor, i: int) -> str:
    """Where the number that was found stood."""
    places = (given == value).nonzero().tolist()
    if not places:
        return shown(value) if not value else "?"
    row, delta = places[0]
    return str(delta) if row == i else f"{delta} of row {row}"


@telling
def check_factors(phi: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``phi(a, i)``, ``[time, 2]`` and angles ``[time]``: row·(sin j, cos j) = a_s sin(i − j) + a_c cos(i − j)."""
    a, i, j = random(7, 2), random(7, seed=1), random(5, seed=2)
    yours = asked(phi, {"a": a, "i": i})
    assert_shape(yours, tuple(a.shape), "φ of the queries")
    waves, delta, total = torch.stack((j.sin(), j.cos())), i[:, None] - j, i[:, None] + j

    def scores(a_s: Tensor, a_c: Tensor, angle: Tensor) -> Tensor:
        return a_s[:, None] * angle.sin() + a_c[:, None] * angle.cos()

    a_s, a_c = a[:, 0], a[:, 1]
    expected = scores(a_s, a_c, delta)
    s_sin, s_cos, c_sin, c_cos = a_s * i.sin(), a_s * i.cos(), a_c * i.sin(), a_c * i.cos()
    slips = {
        "The angle of the queries is not used: φ is a itself.": a @ waves,
        "These are the scores of −i − j: the queries are turned the wrong way.": scores(a_s, a_c, -total),
        "These are the scores of i + j: mind the signs.": scores(a_s, a_c, total),
        "These are the scores of j − i: the sine has the wrong sign.": scores(a_s, a_c, -delta),
        "The sine part and the cosine part of a are exchanged.": scores(a_c, a_s, delta),
        "The columns of φ are exchanged: the first meets sin j, the second cos j.": _columns(
            s_sin + c_cos, c_sin - s_cos
        )
        @ waves,
        "In the second column one product has the wrong sign.": _columns(c_sin - s_cos, c_cos - s_sin) @ waves,
        "In the first column one product has the wrong sign.": _columns(c_sin + s_cos, c_cos + s_sin) @ waves,
        "The products with sin i and with cos i are exchanged.": _columns(c_cos - s_sin, s_cos + c_sin) @ waves,
    }
    found = plain(yours, "φ of the queries") @ waves
    what = "scores of 7 queries (rows) and 5 keys (columns)"
    assert_same(found.to(yours.dtype), expected, what, slips=slips)
    return "Right: what knows i stands on one side, what knows j on the other."


def _columns(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack((first, second), dim=1)
