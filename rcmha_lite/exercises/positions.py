"""Checks for chapters 4 and 8: the four terms of a score, scores moved from distances to keys, their factors, memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import (
    asked,
    assert_same,
    assert_shape,
    numbers,
    plain,
    random,
    recognised,
    refuse,
    require,
    shown,
    telling,
)


@telling
def check_terms(terms: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Sequence[Any]]) -> str:
    """``terms(q, k, r, W, u, v)``, q, k, u, v ``[d]``, r ``[p]``, W ``[d, p]``: q·k, q·Wr, u·k, v·Wr."""
    for d, p in ((4, 4), (3, 6), (1, 2)):
        q, k, u, v = random(4, d, seed=d)
        r, w = random(p, seed=p), random(d, p, seed=d + p)
        given = {"q": q, "k": k, "r": r, "W": w, "u": u, "v": v}
        what = f"the four terms for {d} channels and {p} sinusoids"
        yours = numbers(asked(terms, given, "terms"), 4, what)
        a, b, c, e = q @ k, q @ w @ r, u @ k, v @ w @ r
        slips = {
            "u and v are exchanged: u meets keys, v meets distances.": (a, b, v @ k, u @ w @ r),
            "In the last term u stands where v should.": (a, b, c, u @ w @ r),
            "In the third term v stands where u should.": (a, b, v @ k, e),
            "The last term is of u and v: it should be of v and the distance.": (a, b, c, u @ v),
            "The second and the third term are exchanged.": (a, c, b, e),
            "The second term holds (q + v)·Wr, which is two of the four.": (a, b + e, c, e),
            "The first term holds (q + u)·k, which is two of the four.": (a + c, b, c, e),
            "In the second term the distance meets the key; the query should ask.": (a, k @ w @ r, c, e),
        }
        if d == p > 1:
            slips |= {
                "W maps the distance to the channels, W r; you have r W.": (a, r @ w @ q, c, r @ w @ v),
                "W is missing: the sinusoids must first be mapped to the channels of the head.": (a, q @ r, c, v @ r),
            }
        stacked = {sentence: torch.stack([torch.as_tensor(x) for x in told]) for sentence, told in slips.items()}
        assert_same(yours, torch.stack((a, b, c, e)), what, tolerance=1e-5, slips=stacked)
    return "Right: content and distance, for what the query asks and for what every query asks."


@telling
def check_memory(remember: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """``remember(memory, x, length)``: the last ``length`` rows of memory followed by x, or all if there are fewer,
    without a way back for gradients."""
    for past, time, length in ((3, 4, 5), (0, 3, 2), (4, 1, 4), (0, 2, 5), (3, 2, 5), (5, 2, 1)):
        memory, x = random(past, 3, seed=1), random(time, 3).requires_grad_()
        found = asked(remember, {"memory": memory, "x": x, "length": length}, "remember")
        what = f"the memory of {length} after {past} remembered and {time} new positions"
        rows = torch.cat((memory, x.detach()))
        expected = rows[max(0, len(rows) - length) :]
        slips = {
            "What was remembered before is lost: join the memory and x, then cut.": x[-length:],
            "The new positions are missing.": memory[-length:],
            "These are the first positions, not the last.": rows[:length],
            "Nothing was cut off: keep the last ``length`` positions.": rows,
            "The new positions stand before the old ones.": torch.cat((x, memory))[-length:],
            "The positions stand in reverse order.": expected.flip(0),
            "One position too many is kept.": rows[-length - 1 :],
            "The last position is missing.": rows[:-1][-length:],
        }
        require(isinstance(found, Tensor), f"{what}: expected a tensor, found {type(found).__name__}")
        if found.shape != expected.shape:
            said = recognised(plain(found, what), {s: t.detach() for s, t in slips.items()})
            shapes = f"expected shape {list(expected.shape)}, found {list(found.shape)}"
            refuse(f"{what}: {shapes}" + (f".\n  {said}" if said else ""))
        assert_same(found, expected, what, slips={s: t.detach() for s, t in slips.items()})
        require(
            not found.requires_grad,
            f"{what}: right numbers, but a gradient would flow through them into the segments before: use detach()",
        )
    return "Right: the last positions, and no gradient into the past."


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
