"""Checks for chapter 3: a causal convolution of each channel alone, what it holds and how far it reaches."""

from collections.abc import Callable, Mapping
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
    refuse,
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


@telling
def check_counts(parameters: Callable[[int, int, bool], int]) -> str:
    """``parameters(channels, kernel, depthwise)``: weights and biases of a convolution from so many channels to as many."""
    for channels, kernel in ((128, 3), (16, 5), (1, 3), (7, 1)):
        for depthwise in (False, True):
            named = {"channels": channels, "kernel": kernel, "depthwise": depthwise}
            found = number(asked(parameters, named, copies=False), f"parameters{tuple(named.values())}")
            weights = channels * kernel * (1 if depthwise else channels)
            right = weights + channels
            slips = {
                "The biases are missing: one for each channel that comes out.": weights,
                "That has a bias for every weight.": 2 * weights,
                "That has one bias in all.": weights + 1,
                "Depth-wise and standard are exchanged.": channels * kernel * (channels if depthwise else 1) + channels,
                "That is one kernel for all channels: each has its own.": kernel + channels,
                "A bias belongs to a channel, not to each tap.": weights + channels * kernel,
            }
            _require_number(found, right, ", ".join(f"{name} {value}" for name, value in named.items()), slips)
    return "Right: a standard convolution needs a kernel for each pair of channels, a depth-wise one for each channel."


@telling
def check_taps(taps: Any) -> str:
    """Three ``taps``, the oldest first: their output is 0 where a signal repeats the value before, and not elsewhere."""
    kernel = numbers(taps, 3, "the taps, the oldest first")
    signal = torch.tensor([3.0, 3, 3, 5, 5, 2, 2, 2, -4, -4, 0, 7, 7], dtype=torch.float64)
    y = _sum(signal[:, None], kernel[None])[:, 0]
    change = signal.diff(prepend=torch.zeros(1, dtype=torch.float64))
    if not y.any():
        refuse(f"taps {shown(kernel)}: the output is 0 everywhere, also where the signal changes")
    for t in range(len(signal)):
        if (y[t].abs() > 1e-9) != (change[t] != 0):
            where = "repeats the value before" if change[t] == 0 else "differs from the value before"
            seen = shown(signal[max(t - 2, 0) : t + 1])
            wanted = "0" if change[t] == 0 else "anything but 0"
            flipped = _sum(signal[:, None], kernel.flip(0)[None])[:, 0]
            hint = ".\n  In reverse they would do: the last tap stands on the present." * bool(
                torch.equal(flipped.abs() > 1e-9, change != 0)
            )
            refuse(
                f"taps {shown(kernel)}: at place {t} the signal {where} (… {seen}): expected {wanted}, "
                f"found {shown(y[t])}{hint}"
            )
    return "Right: what these taps let through is change."


@telling
def check_reach(reach: Callable[[int, int], int]) -> str:
    """``reach(layers, kernel)``: positions that an output depends on, its own included, behind so many convolutions."""
    for layers, kernel in ((1, 3), (2, 3), (5, 3), (3, 2), (4, 1), (2, 7)):
        found = number(asked(reach, {"layers": layers, "kernel": kernel}, copies=False), f"reach({layers}, {kernel})")
        slips = {
            "Layers do not multiply: each begins where the one below ended.": kernel**layers,
            "The present is counted in every layer.": layers * kernel,
            "The present itself is left out.": layers * (kernel - 1),
            "That is one layer alone.": kernel,
            "That is twice the present.": layers * (kernel - 1) + 2,
            "That looks to both sides: a causal kernel sees the past alone.": 2 * layers * (kernel - 1) + 1,
        }
        _require_number(found, layers * (kernel - 1) + 1, f"{layers} layers, kernel {kernel}", slips)
    return "Right: every layer reaches one position less than its taps further back."


def _require_number(found: float, right: float, given: str, slips: Mapping[str, float]) -> None:
    """AssertionError unless the two are equal; with the first slip's sentence that gives what was found."""
    if abs(found - right) > 1e-9:
        why = next((sentence for sentence, value in slips.items() if abs(found - value) <= 1e-9), "")
        refuse(f"{given}: expected {right:g}, found {found:g}" + (f".\n  {why}" if why else ""))


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
