"""When a layer is nothing but its formula: only then may its weights be read instead of the layer being called."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def calls_only_forward(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether calling ``layer`` does what ``kind.forward`` does with its weights, and nothing else.

    Not where it is a subclass or a wrapper (adapters, quantised and sharded layers, parametrisations are), has hooks, a
    ``forward`` of its own or a compiled call, or where a weight or bias is anything but a plain parameter.
    """
    return (
        type(layer) is kind
        and all(type(p) is nn.Parameter for p in layer._parameters.values() if p is not None)
        and not any(getattr(layer, hooks) for hooks in HOOKS)
        and not global_hooks._has_any_global_hook()
        and "forward" not in vars(layer)
        and layer._compiled_call_impl is None
    )


def side_by_side(layers: list[Any], x: Tensor) -> Tensor:
    """What every layer makes of ``x``, in one product where they are nothing but ``nn.Linear``."""
    if not all(calls_only_forward(layer) for layer in layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return F.linear(x, torch.cat([layer.weight for layer in layers]), torch.cat(biases))


def transforms_are_active() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work, for which fused kernels and
    derivatives written by hand have no rules: there the plain formula serves."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0
