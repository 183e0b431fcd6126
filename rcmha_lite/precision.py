"""In which numbers a run multiplies matrices: bfloat16, float16 with a scaled loss, or float32."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.config import Precision
from rcmha_lite.manifest import bfloat16_is_fast, float16_is_fast

NAMES: dict[str, str] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""Accelerate's names, which manifests carry."""


def precision_for(wanted: Precision, device: torch.device) -> str:
    """One of ``NAMES``' values; ``auto`` is bfloat16 where the hardware multiplies in it, else float16, else float32."""
    if wanted != "auto":
        return NAMES[wanted]
    return "bf16" if bfloat16_is_fast(device) else "fp16" if float16_is_fast(device) else "no"


class Together:
    """Several optimisers in one: what a loss scaler asks of an optimiser, so that a step is all of theirs or none's."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers, self.stepped = optimizers, False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """A step of each."""
        self.stepped = True
        for optimizer in self.optimizers:
            optimizer.step()


class LossScaler:
    """Backward passes in float16 (Micikevicius et al. 2018, arXiv 1710.03740), by PyTorch's ``GradScaler``.

    Gradients below float16's smallest number would vanish, so the loss is multiplied by ``scale``, and the gradients are
    divided by it, in float32, before they are clipped. Where one of them has overflowed, no optimiser steps and the
    scale is halved; after 2000 steps without, it is doubled. A skipped step stays a step of the run: its text is read
    and the schedule goes on. In other precisions everything passes through unchanged.

    Accelerate would scale each optimiser by itself: one may then step where another must not, and the second one's
    gradients are divided twice, since the first one's update forgets that they have been. Hence ``Together``.
    """

    def __init__(self, precision: str, device: torch.device, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.optimizers, self.device, self.skipped = Together(optimizers), device, 0

    def half(self) -> AbstractContextManager[Any]:
        """Where the model runs in float16, if it does: Accelerate, which sees to bfloat16, has no float16 on a CPU."""
        return torch.autocast(self.device.type, torch.float16) if self.scaler.is_enabled() else nullcontext()

    def scale(self, loss: Tensor) -> Tensor:
        """What backward starts from."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self) -> None:
        """Divide the gradients, and look for one that is not finite."""
        self.scaler.unscale_(self.optimizers)  # type: ignore[arg-type]

    def step(self) -> None:
        """A step of all optimisers, or of none. In float16 this waits for the device: it must know which."""
        self.optimizers.stepped = False
        self.scaler.step(self.optimizers)  # type: ignore[arg-type]
        self.scaler.update()
        self.skipped += not self.optimizers.stepped

    def state(self) -> dict[str, float]:
        """Scale, steps since it last changed, and steps skipped; empty in other precisions."""
        return self.scaler.state_dict() | {"skipped": self.skipped} if self.scaler.is_enabled() else {}

    def load(self, state: dict[str, float]) -> None:
        """Go on from ``state()``; from an empty one, which another precision leaves, afresh."""
        if state and self.scaler.is_enabled():
            self.skipped = int(state["skipped"])
            self.scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})
