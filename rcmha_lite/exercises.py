"""Checks for the reader's own code: the assertions that the package's tests use, with messages that help.

Each takes the reader's function and raises AssertionError, saying what differs, or returns a line of praise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite.accounting import flops
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.model import LanguageModel

Attend = Callable[[Tensor], Tensor]


def require(fact: Any, message: str) -> None:
    """AssertionError with this message unless ``fact`` holds; also under ``python -O``, which leaves out ``assert``."""
    if not fact:
        raise AssertionError(message)


def assert_same(yours: Any, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Same shape, and no element further than ``tolerance`` (in float32 at least 1e-5) from the expected one."""
    assert_shape(yours, tuple(expected.shape), what)
    worst = (yours.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    tolerance = tolerance if yours.dtype == torch.float64 else max(tolerance, 1e-5)
    require(worst <= tolerance, f"{what}: the largest difference from the expected values is {worst:.3g}")


def assert_shape(yours: Any, shape: tuple[int, ...], what: str) -> None:
    """A tensor of this shape: not a number, and not nothing."""
    require(isinstance(yours, Tensor), f"{what}: expected a tensor, found {type(yours).__name__}")
    require(yours.shape == shape, f"{what}: expected shape {shape}, found {tuple(yours.shape)}")


def answered(found: Any) -> Any:
    """What the reader's function returned, if it returned something."""
    require(found is not None, "your function returned nothing: does it end with return?")
    return found


def random(*shape: int, seed: int = 0) -> Float[Tensor, "..."]:
    """Standard normal numbers in float64, the same at every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_bigram(count: Callable[[str], dict[str, str]]) -> str:
    """``count(text)`` gives, for each character that has a successor, its most frequent one, in a tie the first seen."""
    for text, expected in (  # of a: neither the first nor the last that follows; then not the commonest character
        ("abacab", {"a": "b", "b": "a", "c": "a"}),
        ("abacacad", {"a": "c", "b": "a", "c": "a"}),
        ("abcbcbacac", {"a": "c", "b": "c", "c": "b"}),
        ("acab", {"a": "c", "c": "a"}),  # ties, the second between pairs that overlap
        ("aaabab", {"a": "a", "b": "a"}),
    ):
        found = answered(count(text))
        require(found == expected, f"in {text!r} you found {found}, expected {expected}")
    return "Right: every character predicts its most frequent successor."


def check_accuracy(accuracy: Callable[[Tensor, Tensor], float]) -> str:
    """``accuracy(logits, targets)`` is the share of positions whose largest logit is the target's."""
    logits = torch.tensor([[[0.1, 2.0, 0.3], [1.0, 0.0, 0.5]]])
    for targets, expected in (([[1, 0]], 1.0), ([[1, 2]], 0.5), ([[0, 2]], 0.0)):
        found = float(answered(accuracy(logits, torch.tensor(targets))))
        require(found == expected, f"targets {targets} should score {expected}, you found {found}")
    logits = random(2, 3, 5)
    favourites = logits.argmax(dim=-1)
    favourites[1] = (favourites[1] + 1) % 5
    found = float(answered(accuracy(logits, favourites)))
    require(found == 0.5, f"of two windows, one all right and one all wrong, you found {found}")
    return "Right: accuracy counts exact hits and nothing else."


def check_weights(weights: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``weights(q, k)``, both ``[time, d]``: softmax over j ≤ i of q_i·k_j / √d."""
    for time, d in ((1, 2), (4, 3), (7, 16)):
        q, k = random(time, d, seed=1), random(time, d, seed=2)
        yours, expected = weights(q, k), torch.zeros(time, time, dtype=torch.float64)
        for i in range(time):
            expected[i, : i + 1] = (k[: i + 1] @ q[i] / d**0.5).softmax(dim=0)
        assert_shape(yours, (time, time), "the weights")
        future = yours.triu(1).abs().max().item()
        require(future == 0, f"a query puts weight {future:.3g} on a later key: mask before the softmax")
        assert_same(yours.sum(dim=1), torch.ones(time, dtype=torch.float64), "the weights of each query must sum to 1")
        assert_same(yours, expected, f"the weights of {time} positions of width {d}")
    return "Right: causal, normalised, and scaled by √d."


def check_causal(attend: Attend, *, width: int = 16, times: Sequence[int] = (1, 2, 9)) -> str:
    """``attend``, of x ``[batch, time, width]``: changing x at t must leave every output before t as it was."""
    moved = 0.0
    for time in times:
        x = random(2, time, width)
        y = answered(attend(x))
        for t in range(time):
            changed = x.clone()
            changed[:, t] += random(2, width, seed=t + 1)
            found = attend(changed)
            assert_same(found[:, :t], y[:, :t], f"outputs before position {t}, after a change at {t}", 1e-12)
            moved = max(moved, (found - y).abs().max().item())
    require(moved > 0, "no output depends on any input")
    return "Right: no output depends on what comes after it."


def check_convolution(convolve: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``convolve(x, taps)``, ``[time, channels]`` and ``[channels, kernel]``, the last tap on the current row."""
    ones = torch.ones(4, 1, dtype=torch.float64)
    yours = convolve(ones, torch.tensor([[100.0, 10.0, 1.0]], dtype=torch.float64))
    assert_same(yours, torch.tensor([[1.0], [11], [111], [111]]), "taps 100, 10, 1 over ones (zeros to the left)")
    for time, channels, kernel in ((1, 1, 1), (5, 2, 3), (3, 4, 9)):
        x, taps = random(time, channels), random(channels, kernel, seed=1)
        expected = torch.zeros_like(x)
        for t in range(time):
            for back in range(min(kernel, t + 1)):
                expected[t] += taps[:, kernel - 1 - back] * x[t - back]
        assert_same(convolve(x, taps), expected, f"{time} rows, {channels} channels, {kernel} taps")
    return "Right: each channel sees its own past, and the last tap the present."


def check_shift(shift: Callable[[Tensor], Tensor], *, memory: int = 0) -> str:
    """``shift(by_distance)`` turns columns δ of ``[time, memory + time]`` into columns j, δ = memory + i − j ≥ 0."""
    for time in (1, 2, 6):
        by_distance = random(time, memory + time)
        yours = shift(by_distance)
        assert_shape(yours, tuple(by_distance.shape), "the shifted scores")
        require(yours.is_floating_point(), f"the shifted scores: expected floating point, found {yours.dtype}")
        for i in range(time):
            for j in range(memory + i + 1):
                delta = memory + i - j
                wanted = by_distance[i, delta].to(yours.dtype)
                require(yours[i, j] == wanted, f"row {i}, column {j} must hold distance {delta}")
    return "Right: every score sits under its key."


def check_factors(phi: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``phi(a, i)``, ``[time, 2]`` and angles ``[time]``: row·(sin j, cos j) = a_s sin(i − j) + a_c cos(i − j)."""
    a, i, j = random(7, 2), random(7, seed=1), random(5, seed=2)
    delta = i[:, None] - j
    expected = a[:, :1] * delta.sin() + a[:, 1:] * delta.cos()
    yours = phi(a, i)
    assert_shape(yours, tuple(a.shape), "φ of the queries")
    assert_same(yours @ torch.stack((j.sin(), j.cos())), expected, "scores of 7 queries and 5 keys")
    return "Right: what knows i stands on one side, what knows j on the other."


def check_flops(count: Callable[[Config, int], float]) -> str:
    """``count(config, time)`` is within one in a thousand of PyTorch's count of a forward pass, in every cell."""
    for cell, changes in CELLS.items():
        for time in (16, 128):
            config = PRESETS["laptop"].replace(**changes, window=128)
            expected = flops(LanguageModel(config), torch.zeros(1, time, dtype=torch.long))
            found = answered(count(config, time))
            what = (
                f"{cell} over {time} characters: expected {expected:,} within one in a thousand, you counted {found:,}"
            )
            require(abs(found - expected) <= 0.001 * expected, what)
    return "Right: the pencil and PyTorch's counter agree on all four cells."


def check_squared_relu(activation: Callable[[Tensor], Tensor]) -> str:
    """``activation(x)`` is max(x, 0)², with gradient 2·max(x, 0)."""
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    y = activation(x)
    assert_same(y, torch.tensor([0.0, 0.0, 0.0, 0.25, 9.0]), "squared ReLU of −2, −½, 0, ½, 3")
    y.sum().backward()
    require(x.grad is not None, "no gradient reaches the input: use torch's operations")
    assert_same(x.grad, torch.tensor([0.0, 0.0, 0.0, 1.0, 6.0]), "its gradient there")
    return "Right: zero on the left, a parabola on the right."


def check_temperature(probabilities: Callable[[Tensor, float], Tensor]) -> str:
    """``probabilities(logits, temperature)`` is softmax(logits / temperature)."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    for temperature in (0.25, 1.0, 4.0):
        expected = F.softmax(logits / temperature, dim=0)
        assert_same(probabilities(logits, temperature), expected, f"probabilities at temperature {temperature}")
    return "Right: low temperatures sharpen, high ones flatten."


def check_reset(reset: Callable[[Sequence[float]], Sequence[float]]) -> str:
    """``reset(counter)``: from c_e, the mean over epochs 1 … e, the mean over epoch e alone."""
    for counter, expected in (([0.41, 0.5025], (0.41, 0.595)), ([0.9, 0.45, 0.5], (0.9, 0.0, 0.6)), ([0.3], (0.3,))):
        found = torch.tensor([float(x) for x in answered(reset(counter))])
        assert_same(
            found, torch.tensor(expected), f"the accuracy of each epoch where the counter shows {counter}", 1e-5
        )
    return "Right: each epoch by itself."


def check_interval(interval: Callable[[Sequence[float], float], tuple[float, float]]) -> str:
    """``interval(differences, t)`` is mean ± t · s / √n, with s² the sum of squared deviations over n − 1."""
    for differences, t, expected in (
        ([1.0, 3.0], 2.0, (0.0, 4.0)),
        ([1.0, 2.0, 3.0], 3**0.5, (1.0, 3.0)),
        ([-2.0, 0.0, 0.0, 2.0], 3**0.5, (-(2**0.5), 2**0.5)),
        ([0.0, 0.0, 3.0], 2.0, (-1.0, 3.0)),
    ):
        found = torch.tensor([float(end) for end in answered(interval(differences, t))])
        assert_same(found, torch.tensor(expected), f"the ends for {differences} and t = {t:.3f}", 1e-5)
    return "Right: the mean, give or take t standard errors."


def check_noise(noise: Callable[[Sequence[Sequence[float]]], float]) -> str:
    """``noise(table)``, a row a choice and a column a seed, is √(Σ ε̂² / ((m − 1)(n − 1))), rows' and columns' means out."""
    for table, expected in (
        ([[0.0, 1.0], [2.0, 3.0]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], 4.5**0.5),
        ([[2.0, 5.0], [7.0, 4.0], [0.0, 3.0]], 6**0.5),
    ):
        found = torch.tensor(float(answered(noise(table))))
        assert_same(found, torch.tensor(expected), f"the noise of {table}", 1e-5)
    return "Right: what neither the choice nor the seed explains."
