"""How gradients flow through six blocks, and how many hidden units are silent, with each activation."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from rcmha_lite.config import PRESETS, Activation, Config
from rcmha_lite.data import CharTokenizer, load_tiny_shakespeare, random_windows, split
from rcmha_lite.model import LanguageModel
from rcmha_lite.optimizers import build_optimizers, rate_factor

ACTIVATIONS: tuple[Activation, ...] = ("relu", "relu2", "gelu")
SEEDS = 3
SIX_BLOCKS: Config = PRESETS["tiny"].replace(layers=6, zero_output=False, steps=100)
"""With output matrices drawn at random: where they are zero, no gradient passes them at the first step."""


def flow(model: LanguageModel, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Of each block's feed-forward layer: the norm of its first matrix's gradient, the share of hidden numbers that are
    exactly zero, and the share of hidden units that are zero at every position of ``inputs``; and the loss there."""
    silent, dead = [], []

    def look(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        zero = given[0].detach().flatten(0, -2) == 0
        silent.append(zero.double().mean().item())
        dead.append(zero.all(0).double().mean().item())

    layers = [block.feed_forward for block in model.blocks]
    handles = [layer.output.register_forward_pre_hook(look) for layer in layers]
    loss = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())
    gradients = torch.autograd.grad(loss, [layer.input.weight for layer in layers])
    for handle in handles:
        handle.remove()
    return {"gradient": [g.norm().item() for g in gradients], "silent": silent, "dead": dead, "loss": loss.item()}


def gradients() -> dict[str, Any]:
    """Six blocks, 100 steps of the tiny preset's recipe, ReLU, squared ReLU and GELU from the same weights and windows;
    looked at before and after on the same validation windows. One entry a seed."""
    train, validation = split(CharTokenizer().encode(load_tiny_shakespeare()))
    looked_at = random_windows(validation, batch=64, length=SIX_BLOCKS.context, seed=0, step=0)
    found: dict[str, Any] = {name: {"start": [], "trained": []} for name in ACTIVATIONS}
    for seed in range(SEEDS):
        for name in ACTIVATIONS:
            config = SIX_BLOCKS.replace(activation=name, seed=seed)
            torch.manual_seed(seed)
            model = LanguageModel(config)
            found[name]["start"].append(flow(model, *looked_at))
            optimizers = build_optimizers(model, config)
            schedulers = [LambdaLR(optimizer, partial(rate_factor, config)) for optimizer in optimizers]
            for step in range(config.steps):
                inputs, targets = random_windows(train, batch=config.batch, length=config.context, seed=seed, step=step)
                F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten()).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
            found[name]["trained"].append(flow(model, *looked_at))
    return found | {"steps": SIX_BLOCKS.steps, "layers": SIX_BLOCKS.layers}
