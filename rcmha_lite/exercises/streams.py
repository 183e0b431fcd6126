"""Checks for chapter 8: what a kernel carries from piece to piece, and how long a text fits into memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import asked, assert_same, number, random, refuse, require, shown, telling


@telling
def check_pieces(convolve: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """``convolve(x, taps, history)``, of ``[time, channels]``, ``[channels, kernel]`` and the ``kernel − 1`` rows before
    x, gives the convolved rows of x and the history of the next piece."""
    for kernel, cuts in ((3, (5, 2, 4)), (3, (1, 1, 4)), (4, (1, 6, 1, 2)), (1, (3, 2))):
        rows, taps = random(kernel - 1 + sum(cuts), 2), random(2, kernel, seed=1)
        x, y = rows[kernel - 1 :], _convolved(rows, taps)
        start = 0
        for length in cuts:
            piece, history = x[start : start + length], rows[start : start + kernel - 1]
            what = f"a piece of {length} rows, {kernel} {'tap' if kernel == 1 else 'taps'}, after {start} rows"
            found = asked(convolve, {"x": piece, "taps": taps, "history": history})
            two = isinstance(found, tuple | list) and len(found) == 2
            require(two, f"{what}: expected a pair, rows and history, found {type(found).__name__}")
            expected = y[start : start + length]
            assert_same(found[0], expected, f"{what}: the rows", slips=_wrong_rows(piece, taps, history))
            start += length
            carried = rows[start : start + kernel - 1]
            slips = {
                "That is the history that you were given; the piece has moved on.": history,
                "These are rows of the output: carry the input, as it was before the convolution.": y[
                    max(start - kernel + 1, 0) : start
                ],
                "These are the first rows: carry the last ones.": rows[
                    start - length + kernel - 1 : start - length + 2 * kernel - 2
                ],
                "The rows stand in reverse order.": carried.flip(0),
            }
            yours = found[1]
            if isinstance(yours, Tensor) and yours.shape != carried.shape:
                refuse(
                    f"{what}: the history: expected {list(carried.shape)}, the last {kernel - 1} rows of history and "
                    f"piece together, found {list(yours.shape)}.{_too_long(yours, piece, kernel)}"
                )
            assert_same(yours, carried, f"{what}: the history", slips=slips)
    return "Right: with kernel − 1 rows carried, pieces equal the whole."


def _convolved(rows: Tensor, taps: Tensor) -> Tensor:
    """Of ``kernel − 1`` rows more than come out."""
    return torch.einsum("tcs,cs->tc", rows.unfold(0, taps.shape[1], 1), taps)


def _wrong_rows(x: Tensor, taps: Tensor, history: Tensor) -> dict[str, Tensor]:
    zeros, past = torch.zeros_like(history), len(history)
    return {
        "The history is not used: before a piece stand the rows before it, not zeros.": _convolved(
            torch.cat((zeros, x)), taps
        ),
        "The history stands after the piece; it comes before it.": _convolved(torch.cat((x, history)), taps),
        "The rows of the history stand in reverse order.": _convolved(torch.cat((history.flip(0), x)), taps),
        "The taps stand in reverse order: the last one belongs to the present.": _convolved(
            torch.cat((history, x)), taps.flip(1)
        ),
        "The history is convolved afresh: it has zeros between itself and the piece.": _convolved(
            torch.cat((history, zeros, x)), taps
        )[past:],
    }


def _too_long(yours: Tensor, piece: Tensor, kernel: int) -> str:
    if kernel == 1 and len(yours):
        return "\n  With one tap nothing is carried; mind that x[-0:] is all of x."
    if len(yours) < kernel - 1:
        return "\n  Where a piece is shorter than the reach, part of the old history is still needed."
    return ""


@telling
def check_longest_text(longest: Callable[[float, int, int], int]) -> str:
    """``longest(gigabytes, heads, layers)``: the most positions T for which T × T weights in float32, of every head in
    every layer, fit into so many gigabytes of 10⁹ bytes."""
    for gigabytes, heads, layers in ((1.0, 1, 1), (16.0, 6, 4), (24.0, 8, 6), (0.5, 2, 3)):
        share = gigabytes * 1e9 / (4 * heads * layers)
        expected = int(share**0.5)
        what = f"{gigabytes:g} GB, {heads} heads, {layers} layers"
        found = number(asked(longest, {"gigabytes": gigabytes, "heads": heads, "layers": layers}), what)
        if found == expected:
            continue
        slips = {
            "One more does not fit: round down.": expected + 1,
            "A text has a whole number of positions: round down.": share**0.5,
            "A number in float32 takes 4 bytes.": int((4 * share) ** 0.5),
            "That is for one head: every head has weights of its own.": int((share * heads) ** 0.5),
            "That is for one layer: every layer keeps its own.": int((share * layers) ** 0.5),
            "That is for one head of one layer: every one keeps its own.": int((share * heads * layers) ** 0.5),
            "That is T × T: take the root.": int(share),
            "That counts 2³⁰ bytes a gigabyte: here they are 10⁹.": int((share * 1.073741824) ** 0.5),
            "That counts half of each square: a kernel that writes weights out writes the masked ones, too.": int(
                (2 * share) ** 0.5
            ),
        }
        said = next((s for s, value in slips.items() if abs(found - value) < 1e-6 * max(1.0, abs(value))), "")
        refuse(f"{what}: expected {expected}, found {shown_whole(found)}." + (f"\n  {said}" if said else ""))
    return "Right: twice the text takes four times the memory."


def shown_whole(x: float) -> str:
    """All digits of a whole number, four of another."""
    return str(int(x)) if float(x).is_integer() else (f"{x:.2f}" if abs(x) < 1e9 else shown(x))
