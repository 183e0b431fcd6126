"""Checks for chapters 9 to 12: operations counted, a counter undone, intervals and noise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rcmha_lite.accounting import flops
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.exercises._telling import asked, assert_same, number, numbers, refuse, telling
from rcmha_lite.model import LanguageModel


@telling
def check_flops(count: Callable[[Config, int], float]) -> str:
    """``count(config, time)`` is within one in a thousand of PyTorch's count of a forward pass, in every cell."""
    for cell, changes in CELLS.items():
        for time in (16, 128):
            config = PRESETS["laptop"].replace(**changes, window=128)
            expected, what = _flops(config, time), f"{cell} over {time} characters"
            found = number(asked(count, {"config": config, "time": time}), what)
            if not abs(found - expected) <= 0.001 * expected:
                told = f"{what}: expected {expected:,} within one in a thousand, you counted {found:,.0f}"
                refuse(f"{told}.{_missing(config, time, found, expected)}")
    return "Right: the pencil and PyTorch's counter agree on all four cells."


def _flops(config: Config, time: int) -> int:
    return flops(LanguageModel(config), torch.zeros(1, time, dtype=torch.long))


def _missing(config: Config, time: int, found: float, expected: int) -> str:
    d, p, layers = config.d_model, config.d_position, config.layers
    padded = p * config.n_heads if config.position == "relative-sinusoidal" else 0
    slips = {
        "A multiply-add counts as two.": expected / 2,
        "Count the forward pass alone: this is three times as much.": expected * 3,
        "That is of one character.": expected / time,
        "The convolution is missing.": _flops(config.replace(kernel_size=0), time),
        "All that relative positions add is missing.": _flops(config.replace(position="none"), time),
        "The zeros that the values are padded with are missing.": expected - 2 * layers * time * time * padded,
        "The product that maps queries to sinusoids is missing.": expected - 2 * layers * time * d * p,
        "The output layer is missing.": expected - 2 * time * d * config.vocabulary,
        "One of the four projections is missing.": expected - 2 * layers * time * d * d,
        "The feed-forward layers are missing.": expected - 4 * layers * time * d * config.d_ff,
        "The scores, or the mixing, are missing.": expected - 2 * layers * time * time * (d + padded),
    }
    near = [s for s, value in slips.items() if value != expected and abs(found - value) <= 2e-4 * expected]
    return f" {near[0]}" if near else f" That is {(found - expected) / expected:+.1%}."


@telling
def check_reset(reset: Callable[[Sequence[float]], Sequence[float]]) -> str:
    """``reset(counter)``: from c_e, the mean over epochs 1 … e, the mean over epoch e alone."""
    for counter, expected in (([0.9, 0.45, 0.5], (0.9, 0.0, 0.6)), ([0.41, 0.5025], (0.41, 0.595)), ([0.3], (0.3,))):
        what = f"the accuracy of each epoch where the counter shows {counter}"
        found = numbers(asked(reset, {"counter": counter}), len(counter), what)
        c = torch.tensor([0.0, *counter], dtype=torch.float64)
        sums = c * torch.arange(len(c))
        slips = {
            "That is the counter itself.": c[1:],
            "These are the counter's steps: what does one that stands still say of its epoch?": c.diff(),
            "These are sums over all epochs so far.": sums[1:],
            "Epochs are counted from 0.": torch.cat(
                (c[1:2], (c[2:] * torch.arange(1, len(c) - 1)).diff(prepend=c[:1]))
            ),
            "This averages the counter once more.": c[1:].cumsum(0) / torch.arange(1, len(c)),
        }
        assert_same(found, torch.tensor(expected), what, 1e-5, slips=slips)
    return "Right: each epoch by itself."


@telling
def check_interval(interval: Callable[[Sequence[float], float], tuple[float, float]]) -> str:
    """``interval(differences, t)`` is mean ± t · s / √n, with s² the sum of squared deviations over n − 1."""
    for differences, t, expected in (
        ([-2.0, 0.0, 0.0, 2.0], 3**0.5, (-(2**0.5), 2**0.5)),
        ([1.0, 3.0], 2.0, (0.0, 4.0)),
        ([1.0, 2.0, 3.0], 3**0.5, (1.0, 3.0)),
        ([0.0, 0.0, 3.0], 2.0, (-1.0, 3.0)),
    ):
        what = f"the ends for {differences} and t = {t:.3f}"
        found = numbers(asked(interval, {"differences": differences, "t": t}), 2, what)
        x = torch.tensor(differences, dtype=torch.float64)
        (n, mean, s), both = (len(x), x.mean(), x.std()), torch.tensor([-1.0, 1.0], dtype=torch.float64)
        slips = {
            "The squared deviations are divided by n; it should be n − 1.": mean
            + both * t * x.std(correction=0) / n**0.5,
            "That is the spread of one run; the mean of n spreads less.": mean + both * t * s,
            "The spread is divided by n, not by its root.": mean + both * t * s / n,
            "t is not used.": mean + both * s / n**0.5,
            "That is the variance, not its root.": mean + both * t * s**2 / n**0.5,
            "The interval lies around the median.": x.median() + both * t * s / n**0.5,
            "The interval lies around 0.": both * t * s / n**0.5,
            "The ends are exchanged: the lower one comes first.": mean - both * t * s / n**0.5,
        }
        assert_same(found, torch.tensor(expected), what, 1e-5, slips=slips)
    return "Right: the mean, give or take t standard errors."


@telling
def check_noise(noise: Callable[[Sequence[Sequence[float]]], float]) -> str:
    """``noise(table)``, a row a choice and a column a seed, is √(Σ ε̂² / ((m − 1)(n − 1))), rows' and columns' means out."""
    for table, expected in (
        ([[0.0, 1.0], [2.0, 3.0]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], 4.5**0.5),
        ([[2.0, 5.0], [7.0, 4.0], [0.0, 3.0]], 6**0.5),
    ):
        found = torch.tensor(number(asked(noise, {"table": table}), f"the noise of {table}"), dtype=torch.float64)
        slips = _noise_slips(torch.tensor(table, dtype=torch.float64))
        assert_same(found, torch.tensor(expected), f"the noise of {table}", 1e-5, slips=slips)
    return "Right: what neither the choice nor the seed explains."


def _noise_slips(table: Tensor) -> dict[str, Tensor]:
    (m, n), rows, columns = table.shape, table.mean(1, keepdim=True), table.mean(0, keepdim=True)
    free, left = (m - 1) * (n - 1), table - rows - columns + table.mean()
    return {
        "The choices' means are still in it.": ((table - columns).square().sum() / free) ** 0.5,
        "The seeds' means are still in it.": ((table - rows).square().sum() / free) ** 0.5,
        "The mean of all is taken out twice: add it once again.": ((table - rows - columns).square().sum() / free)
        ** 0.5,
        "Nothing but the mean of all is taken out.": ((table - table.mean()).square().sum() / free) ** 0.5,
        "The sum is divided by the number of runs; rows' and columns' means cost degrees of freedom.": left.square().mean()
        ** 0.5,
        "The sum is divided by m·n − 1.": (left.square().sum() / (m * n - 1)) ** 0.5,
        "That is the square: take the root.": left.square().sum() / free,
    }
