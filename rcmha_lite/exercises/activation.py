"""Checks for chapter 5: squared ReLU and its gradient, what it makes of a normal input, the feed-forward layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcmha_lite.exercises._telling import asked, assert_same, numbers, random, refuse, require, telling


@telling
def check_squared_relu(activation: Callable[[Tensor], Tensor]) -> str:
    """``activation(x)`` is max(x, 0)², with gradient 2·max(x, 0)."""
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0, 7.0, 40.0], dtype=torch.float64)
    what = "squared ReLU of −2, −½, 0, ½, 3, 7 and 40"
    assert_same(asked(activation, {"x": x}), x.clamp(min=0) ** 2, what, slips=_slips(x))
    leaf = x.clone().requires_grad_()
    y = asked(activation, {"x": leaf})  # gets a copy that leads back to the leaf, and may change it
    assert_same(y, x.clamp(min=0) ** 2, what + ", where a gradient is wanted")
    require(y.requires_grad, "no gradient reaches the input: use torch's operations, without detach or .item()")
    try:
        y.sum().backward()
    except RuntimeError as error:
        refuse(f"the gradient cannot be formed: {error}")
    gradient = torch.zeros_like(x) if leaf.grad is None else leaf.grad
    slips = {
        "That is the slope of ReLU: does a part of x not count as x?": (x > 0).double(),
        "That is half of it: does one of two factors not count as x?": x.clamp(min=0),
        "That is the slope of x², on the left as well.": 2 * x,
    }
    assert_same(gradient, 2 * x.clamp(min=0), "its gradient there", slips=slips)
    return "Right: zero on the left, a parabola on the right."


def _slips(x: Tensor) -> dict[str, Tensor]:
    right = x.clamp(min=0)
    return {
        "That is ReLU: square it.": right,
        "That is x²: negative numbers should give 0.": x**2,
        "Negative numbers keep their sign and their square: they should give 0.": x * x.abs(),
        "Right for x < 0 and 0 for x > 0: the sides are exchanged.": (-x).clamp(min=0) ** 2,
        "That is half of it.": right**2 / 2,
        "That is doubled, not squared.": 2 * right,
        "That is the cube.": right**3,
        "Large numbers are cut off: the parabola has no upper end.": x.clamp(0, 6) ** 2,
        "Large numbers are cut off at 3: the parabola has no upper end.": x.clamp(0, 3) ** 2,
    }


@telling
def check_mean_squares(mean_squares: Callable[[float], Sequence[float]]) -> str:
    """``mean_squares(sigma)``: of a normal input with mean 0 and standard deviation ``sigma``, the mean squares after ReLU
    and after squared ReLU: σ²/2 and 3σ⁴/2."""
    for sigma in (1.0, 2.0, 0.5, 3**-0.5):
        what = f"mean squares after ReLU and squared ReLU, σ = {sigma:.4g}"
        found = numbers(asked(mean_squares, {"sigma": sigma}), 2, what)
        pair = torch.tensor([sigma**2 / 2, 1.5 * sigma**4], dtype=torch.float64)

        def of(first: float, second: float) -> Tensor:
            return torch.tensor([first, second], dtype=torch.float64)

        slips = {
            "Half of the inputs are negative and give 0: that half is missing.": 2 * pair,
            "The scale is not used: twice the input gives twice the output of ReLU.": of(0.5, 1.5),
            "σ enters ReLU² squared, and its mean square with the fourth power.": of(sigma**2 / 2, 1.5 * sigma**2),
            "A mean square grows with σ², not σ; that of a square with σ⁴.": of(sigma / 2, 1.5 * sigma),
            "A mean square of ReLU grows with σ², that of ReLU² with σ⁴.": of(sigma / 2, 1.5 * sigma**2),
            "The two are exchanged: ReLU comes first.": pair.flip(0),
            "The fourth moment of a normal number is 3σ⁴, not σ⁴.": of(sigma**2 / 2, sigma**4 / 2),
            "These are roots of the mean squares.": pair.sqrt(),
        }
        assert_same(found, pair, what, 1e-6, slips={s: v for s, v in slips.items() if not torch.equal(v, pair)})
    return "Right: a half of σ², and three halves of σ to the fourth."


@telling
def check_feed_forward(FeedForward: Any) -> str:
    """``FeedForward(d_model, d_ff)`` is a module of two linear layers, ``input`` and ``output``, and computes
    W_2 · max(W_1 · x + b_1, 0)² + b_2 of ``x [batch, time, d_model]``."""
    with torch.random.fork_rng(devices=[]):
        for width, hidden, seed in ((3, 5, 1), (1, 1, 0), (6, 24, 2)):
            module = asked(FeedForward, {"d_model": width, "d_ff": hidden}, "your class")
            require(isinstance(module, nn.Module), f"expected an nn.Module, found {type(module).__name__}")
            module.double()
            _fill(module, width, hidden, seed)
            _compare(module, random(2, 4, width, seed=seed + 9), f"d_model {width}, d_ff {hidden}")
    return "Right: widen, square what is positive, narrow; a gradient reaches every weight."


def _fill(module: nn.Module, width: int, hidden: int, seed: int) -> None:
    """Numbers for the parameters; AssertionError where names or shapes differ."""
    expected = {
        "input.weight": [hidden, width],
        "input.bias": [hidden],
        "output.weight": [width, hidden],
        "output.bias": [width],
    }
    found = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    told = f"parameters of your module with d_model {width} and d_ff {hidden}: expected {expected}, found {found or 'none'}"
    hint = ""
    if found and found.keys() == expected.keys():
        turned = found["input.weight"] == expected["output.weight"]
        hint = ".\n  The sizes are exchanged: nn.Linear(inputs, outputs) widens first." if turned else ""
    elif found and not any(name.endswith("bias") for name in found):
        hint = ".\n  The biases are missing."
    require(found == expected, told + hint)
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=10 * seed + n))


def _compare(module: nn.Module, x: Tensor, what: str) -> None:
    """Output and gradients beside the formula's."""
    w1, b1, w2, b2 = (
        module.get_parameter(f"{layer}.{kind}") for layer in ("input", "output") for kind in ("weight", "bias")
    )
    wide = x @ w1.T + b1
    right = wide.clamp(min=0) ** 2
    expected = right @ w2.T + b2
    with torch.no_grad():
        slips = {
            "That is with ReLU: square it.": wide.clamp(min=0) @ w2.T + b2,
            "Nothing is bent: between the two layers stands the activation.": wide @ w2.T + b2,
            "That is with x²: negative numbers should give 0.": wide**2 @ w2.T + b2,
            "That is with GELU.": nn.functional.gelu(wide) @ w2.T + b2,
            "The bend comes last; it stands between the two layers.": (wide @ w2.T + b2).clamp(min=0) ** 2,
            "The output is bent once more: the second layer comes last.": expected.clamp(min=0) ** 2,
            "The output's bias is missing.": right @ w2.T,
            "The first bias is missing inside the bend.": (x @ w1.T).clamp(min=0) ** 2 @ w2.T + b2,
            "The first bias is added after the bend.": ((x @ w1.T).clamp(min=0) ** 2 + b1) @ w2.T + b2,
            "x is added to it: that is the block's work, outside this layer.": expected + x,
            "The square is taken at the end, not between the layers.": (wide.clamp(min=0) @ w2.T + b2) ** 2,
        }
    found = asked(module, {"x": x}, "your module")
    assert_same(found, expected.detach(), what, slips=slips)
    require(found.requires_grad, f"{what}: no gradient reaches the weights: use torch's operations, without detach")
    weights = (w1, b1, w2, b2)
    mine = torch.autograd.grad(expected.square().sum(), weights)
    yours = torch.autograd.grad(found.square().sum(), weights, allow_unused=True)
    for name, a, b in zip(("input.weight", "input.bias", "output.weight", "output.bias"), yours, mine, strict=True):
        if a is None:
            refuse(f"{what}: no gradient reaches {name}")
        assert_same(a, b, f"{what}, gradient of {name}", 1e-7)
