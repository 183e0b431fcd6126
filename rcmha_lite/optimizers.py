"""Which optimiser moves which parameter, how fast at which step, and Muon where nothing multiplies in bfloat16."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rcmha_lite.config import Config
from rcmha_lite.manifest import bfloat16_is_fast
from rcmha_lite.model import LanguageModel


class InFloat32(TorchFunctionMode):
    """Inside, ``Tensor.bfloat16`` gives a copy in float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan et al. 2024), fast also where the hardware does not multiply in bfloat16.

    The update of a matrix of momenta M = U Σ Vᵀ is near U Vᵀ, by five Newton–Schulz iterations X ← aX + (bA + cA²)X,
    A = XXᵀ. PyTorch's run in bfloat16; most laptops' processors and older GPUs have to imitate that, and a product then
    takes tens of times as long as in float32. There, they run in float32.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all matrices."""
        here = self.param_groups[0]["params"][0].device
        with nullcontext() if bfloat16_is_fast(here) else InFloat32():
            return super().step(closure)


def build_optimizers(model: LanguageModel, config: Config) -> list[torch.optim.Optimizer]:
    """Matrices of the blocks to Muon (Jordan et al. 2024) or, decayed, to Adam; everything else to Adam undecayed.

    The convolution's kernels are of the latter; they make a group of their own where their rate is another.
    """
    named = list(model.named_parameters())
    hidden = {n for n, p in named if n.startswith("blocks.") and p.ndim == 2 and n.endswith(("weight", "projection"))}
    kernels = {n for n, _ in named if ".convolution." in n} if config.kernel_rate != 1 else set()
    matrices, rest = [p for n, p in named if n in hidden], [p for n, p in named if n not in hidden | kernels]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if kernels:
        rate = config.learning_rate * config.kernel_rate
        groups.append({"params": [p for n, p in named if n in kernels], "weight_decay": 0.0, "lr": rate})
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            Muon(matrices, lr=config.muon_rate, weight_decay=config.weight_decay, adjust_lr_fn="original")
        )
    else:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers.append(kind(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True))
    return optimizers


def rate_factor(config: Config, step: int) -> float:
    """What the learning rates are multiplied by at ``step`` = 0, 1, …, steps − 1.

    linear: min(1, (step + 1) / warmup, (steps − step) / (decay · steps)); noam (Vaswani et al. 2017):
    d_model^−½ · min((step + 1)^−½, (step + 1) · warmup^−1½).
    """
    done = step + 1
    if config.schedule == "noam":
        return config.d_model**-0.5 * min(done**-0.5, done * max(config.warmup, 1) ** -1.5)
    falling = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    return min(1.0, done / max(config.warmup, 1), falling)
