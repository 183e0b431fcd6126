"""Check for chapter 3: a causal convolution of each channel alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import asked, assert_same, assert_shape, plain, random, shown, telling


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
