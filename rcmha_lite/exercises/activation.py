"""Check for chapter 5: squared ReLU and its gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from rcmha_lite.exercises._telling import asked, assert_same, refuse, require, telling


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
