"""Slips as edits of the package's attention: what comes out then is what a reader with that slip gets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def scale(layer: str, factor: Callable[[Any], float]) -> Callable[[Any], None]:
    """The weights of a layer or part, times a factor."""

    def edit(module: Any) -> None:
        for parameter in getattr(module, layer).parameters():
            parameter.mul_(factor(module))

    return edit


def zero(*names: str) -> Callable[[Any], None]:
    """Parameters of zeros."""

    def edit(module: Any) -> None:
        for name in names:
            module.get_parameter(name).zero_()

    return edit


def kernel(index: int, source: int | None = None) -> Callable[[Any], None]:
    """The kernel of one projection as another's, or, without, as if there were none."""

    def edit(module: Any) -> None:
        weight, bias = module.convolution.weight, module.convolution.bias
        if source is None:
            weight[index], bias[index] = 0, 0
            weight[index, ..., -1] = 1
        else:
            weight[index], bias[index] = weight[source].clone(), bias[source].clone()

    return edit


def flip(module: Any) -> None:
    """Taps in reverse order."""
    module.convolution.weight.copy_(module.convolution.weight.flip(-1))


def heads_interleaved(module: Any) -> None:
    """Heads merged channel by channel."""
    weight = module.output.weight
    weight.copy_(weight.unflatten(1, (module.n_heads, -1)).transpose(1, 2).flatten(1))


def waves(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any], None]:
    """W with its columns for sines and those for cosines changed."""

    def edit(module: Any) -> None:
        sin, cos = module.position.projection.clone().chunk(2, dim=1)
        module.position.projection.copy_(torch.cat(change(sin, cos), dim=1))

    return edit


def interleaved(module: Any) -> None:
    """Sines and cosines by turns."""
    w = module.position.projection
    w.copy_(torch.cat((w[:, ::2], w[:, 1::2]), dim=1))


def later(by: int) -> Callable[[Any], None]:
    """Distances counted from ``by``."""

    def edit(module: Any) -> None:
        w = module.position.projection
        angle = by * 10_000.0 ** (-torch.arange(0, w.shape[1], 2, dtype=torch.float64) / w.shape[1])
        sin, cos = w.clone().chunk(2, dim=1)
        w.copy_(torch.cat((sin * angle.cos() - cos * angle.sin(), sin * angle.sin() + cos * angle.cos()), dim=1))

    return edit


def base(number: float) -> Callable[[Any], None]:
    """Waves of another base."""

    def edit(module: Any) -> None:
        module.position.table.base = number

    return edit


def exchange(first: str, second: str) -> Callable[[Any], None]:
    """Two parameters in each other's place."""

    def edit(module: Any) -> None:
        a, b = module.get_parameter(first), module.get_parameter(second)
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)

    return edit


def no_output_projection(module: Any) -> None:
    """The last layer as if it were not there."""
    nn.init.eye_(module.output.weight)
    nn.init.zeros_(module.output.bias)
