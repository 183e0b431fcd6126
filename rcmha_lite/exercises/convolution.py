"""Checks for chapter 3: a causal convolution of each channel alone, its taps, its reach and its parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import (
    asked,
    assert_same,
    assert_shape,
    number,
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
def check_convolution(convolve: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``convolve(x, taps)``, ``[time, channels]`` and ``[channels, kernel]``, the last tap on the current row."""
    digits = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    by_hand = torch.tensor([[100.0, 10.0, 1.0]], dtype=torch.float64)
    yours, expected = asked(convolve, {"x": digits, "taps": by_hand}), torch.tensor([[1.0], [12.0], [123.0], [234.0]])
    require_rows(yours, expected, _slips(digits, by_hand))
    for time, channels, kernel in ((1, 1, 1), (5, 2, 3), (3, 4, 9)):
        x, taps = random(time, channels), random(channels, kernel, seed=1)
        expected, yours = _sum(x, taps), asked(convolve, {"x": x, "taps": taps})
        what = f"{time} rows, {channels} channels, {kernel} taps"
        assert_same(yours, expected, what, slips=_slips(x, taps))
    return "Right: each channel sees its own past, and the last tap the present."


def require_rows(yours: Tensor, expected: Tensor, slips: dict[str, Tensor]) -> None:
    """``assert_same`` for one channel, with all rows in view."""
    what = "taps 100, 10, 1 over rows 1, 2, 3, 4"
    assert_shape(yours, tuple(expected.shape), what)
    found = plain(yours, what)
    what = f"{what}: expected {shown(expected.flatten())}, found {shown(found.flatten())}; first"
    assert_same(yours, expected, what, slips=slips)


def _sum(x: Tensor, taps: Tensor, ahead: int = 0, around: bool = False) -> Tensor:
    """The sum itself; every tap ``ahead`` rows later, and the text a ring, if asked."""
    (time, _), kernel = x.shape, taps.shape[1]
    y = torch.zeros_like(x)
    for t in range(time):
        for s in range(kernel):
            row = t - (kernel - 1) + s + ahead
            if around or 0 <= row < time:
                y[t] += taps[:, s] * x[row % time]
    return y


def _slips(x: Tensor, taps: Tensor) -> dict[str, Tensor]:
    kernel = taps.shape[1]
    return {
        "The taps stand in reverse order: the last one belongs to the present.": _sum(x, taps.flip(1)),
        "The zeros stand on the right: a row sees the future.": _sum(x, taps, ahead=kernel - 1),
        "The zeros stand on both sides: a row sees the future.": _sum(x, taps, ahead=kernel // 2),
        "On the left stands the end of the text, not zeros: it goes round in a ring.": _sum(x, taps, around=True),
        "The last tap stands on the row before the present one.": _sum(x, taps, ahead=-1),
        "The last tap stands on the row after the present one.": _sum(x, taps, ahead=1),
        "On the left the first row is repeated; there should be zeros.": _sum(
            torch.cat((x[:1].expand(kernel, -1), x)), taps
        )[kernel:],
        "Every channel is convolved with the first channel's taps.": _sum(x, taps[:1].expand_as(taps)),
        "Channels are summed; each should stay alone.": _sum(x, taps).sum(1, keepdim=True).expand_as(x),
        "A channel reads another channel.": _sum(x.roll(1, 1), taps) if x.shape[1] > 1 else torch.tensor(0.0),
        "The channels run along the rows: the kernel goes over the wrong axis.": _sum(
            x.T, taps[:1].expand(len(x), -1)
        ).T,
    }


@telling
def check_taps(taps: Iterable[Any]) -> str:
    """Three ``taps``, the oldest first, whose output is zero where the signal repeats the value before, and only there:
    (0, −a, a) with any a but 0."""
    oldest, before, now = numbers(taps, 3, "the taps").tolist()
    found = f"found taps {shown(torch.tensor([oldest, before, now]))}"
    require(any((oldest, before, now)), f"{found}: they make everything zero, also where the signal changes")
    signal = torch.tensor([[3.0], [3.0], [3.0], [5.0], [5.0]], dtype=torch.float64)
    kernel = torch.tensor([[oldest, before, now]], dtype=torch.float64)
    y = _sum(signal, kernel)[1:].flatten()
    told = f"{found}: of 3, 3, 3, 5, 5 they make {shown(y)} from the second value on; expected 0, 0, not 0, 0"
    slips = {
        "The oldest tap is counted too: the value before the one before should not matter.": oldest != 0,
        "They stand at the other end: the last tap belongs to the present.": now == 0 and oldest == -before,
        "Equal values cancel only if the two taps have opposite signs.": oldest == 0 and before == now,
        "Equal values cancel only if the two taps are equally large.": abs(before) != abs(now),
    }
    order = ("They stand", "The oldest", "Equal values cancel only if the two taps have", "Equal values")
    reasons = sorted(
        (r for r, holds in slips.items() if holds), key=lambda r: [r.startswith(o) for o in order].index(True)
    )
    if reasons:
        refuse(f"{told}.\n  {reasons[0]}")
    return "Right: the present less the value before, so that equal neighbours cancel."


@telling
def check_reach(reach: Callable[[int, int], Any]) -> str:
    """``reach(layers, kernel_size)``: positions that the last output depends on, the current one included."""
    for layers, kernel in ((4, 3), (1, 3), (2, 3), (1, 5), (3, 3), (4, 2), (3, 1)):
        what, expected = f"{layers} layers of kernel size {kernel}", layers * (kernel - 1) + 1
        found = number(asked(reach, {"layers": layers, "kernel_size": kernel}), what)
        slips = {
            "The current position is reached, too: it counts once.": expected - 1,
            "Each layer's current position is the last one's own: it is counted again and again.": layers * kernel,
            "Layers do not multiply: one more layer reaches kernel_size − 1 positions further.": kernel**layers,
            "That is the reach of one layer.": kernel,
            "Each layer adds kernel_size − 1 positions, not kernel_size.": layers * kernel + 1,
            "With every layer the reach does not double.": (kernel - 1) * 2**layers,
        }
        _counted(found, expected, what, slips)
    return "Right: each layer reaches kernel_size − 1 positions further back."


@telling
def check_parameter_counts(count: Callable[[int, int, int, bool], Any]) -> str:
    """``count(d_model, n_heads, kernel_size, shared)``: weights and biases of the kernels on queries, keys and values;
    with ``shared``, all heads have the same ones."""
    for width, heads, kernel, shared in ((128, 8, 3, True), (128, 8, 3, False), (192, 6, 5, True), (30, 3, 2, False)):
        channels = width // heads if shared else width
        other = width if shared else width // heads
        what = f"d_model {width}, n_heads {heads}, kernel_size {kernel}, shared {shared}"
        named = {"d_model": width, "n_heads": heads, "kernel_size": kernel, "shared": shared}
        found, expected = number(asked(count, named), what), 3 * channels * (kernel + 1)
        slips = {
            "The biases are missing: a number for each kernel.": 3 * channels * kernel,
            "That is of one projection: queries, keys and values have kernels of their own.": channels * (kernel + 1),
            "That is of one projection, and without biases.": channels * kernel,
            "One bias for all: each kernel has its own.": 3 * channels * kernel + 1,
            "One bias for each projection: each kernel has its own.": 3 * (channels * kernel + 1),
            "The heads are counted once more; shared kernels are stored once."
            if shared
            else "Without sharing, every head has kernels of its own.": 3 * other * (kernel + 1),
            "Channels do not mix: each needs kernel_size weights, not kernel_size for every channel.": 3
            * (channels * channels * kernel + channels),
            "Four projections: the output projection is not convolved.": 4 * channels * (kernel + 1),
        }
        _counted(found, expected, what, slips)
    return "Right: three projections, and for each channel its taps and a bias."


def _counted(found: float, expected: int, what: str, slips: dict[str, int]) -> None:
    """AssertionError, with the slip where it is known, unless ``found`` is the count."""
    if found == expected:
        return
    reason = recognised(torch.tensor(found, dtype=torch.float64), {s: v for s, v in slips.items() if v != expected})
    refuse(f"{what}: expected {expected}, found {found:g}" + (f".\n  {reason}" if reason else ""))
