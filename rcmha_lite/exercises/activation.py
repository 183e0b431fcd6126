"""Checks for chapter 5: squared ReLU, its gradient, and the feed-forward layer around it."""

from collections.abc import Callable

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import asked, assert_same, random, refuse, require, telling


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


@telling
def check_backward(backward: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``backward(x, upstream)``: the gradient in x of squared ReLU, given the gradient in its output."""
    x, upstream = random(4, 6), random(4, 6, seed=1)
    x[0, 0] = 0.0
    slope = 2 * x.clamp(min=0)
    slips = {
        "What comes from above is not multiplied in.": slope,
        "That is ReLU's: multiply by 2·max(x, 0).": upstream * (x > 0),
        "A factor 2 is missing.": upstream * x.clamp(min=0),
        "Negative inputs let nothing through.": upstream * 2 * x,
        "That multiplies by the output, not by its slope.": upstream * x.clamp(min=0) ** 2,
        "What comes from above is added, not multiplied.": upstream + slope,
    }
    found = asked(backward, {"x": x, "upstream": upstream})
    assert_same(found, upstream * slope, "the gradient in x, shape [4, 6]", slips=slips)
    return "Right: what comes from above, times the slope at x."


@telling
def check_feed_forward(feed_forward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> str:
    """``feed_forward(x, W1, b1, W2, b2)`` is W2 · max(W1 x + b1, 0)² + b2 at each position, W as ``nn.Linear`` keeps it.

    ``x [batch, time, D]``, ``W1 [4D, D]``, ``W2 [D, 4D]``.
    """
    for batch, time, width in ((1, 1, 2), (2, 5, 3)):
        x, w1, b1 = random(batch, time, width), random(4 * width, width, seed=1), random(4 * width, seed=2)
        w2, b2 = random(width, 4 * width, seed=3), random(width, seed=4)
        inside = x @ w1.T + b1
        hidden = inside.clamp(min=0) ** 2
        slips = {
            "That is ReLU: it is not squared.": inside.clamp(min=0) @ w2.T + b2,
            "Squared, but negative numbers are let through.": inside**2 @ w2.T + b2,
            "There is no activation between the matrices.": inside @ w2.T + b2,
            "The first bias is missing.": (x @ w1.T).clamp(min=0) ** 2 @ w2.T + b2,
            "The second bias is missing.": hidden @ w2.T,
            "The activation comes once more at the end.": (hidden @ w2.T + b2).clamp(min=0) ** 2,
            "The input is added: that is the block's affair.": x + hidden @ w2.T + b2,
        }
        named = {"x": x, "W1": w1, "b1": b1, "W2": w2, "b2": b2}
        assert_same(asked(feed_forward, named), hidden @ w2.T + b2, f"x [{batch}, {time}, {width}]", slips=slips)
    return "Right: up to four times the width, squared where positive, and down again."


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
