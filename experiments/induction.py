"""Induction in one layer: having seen "a b" earlier, predict b after the next a (Olsson et al. 2022, arXiv 2209.11895)."""

import dataclasses
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.config import Config
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.manifest import manifest
from rcmha_lite.model import LanguageModel
from rcmha_lite.optimizers import build_optimizers, rate_factor

PERIODS = (12, 32)  # of a sequence: at least, and less than


def sequences(generator: torch.Generator, count: int, config: Config) -> Int[Tensor, "count context+1"]:
    """Each a random order of distinct tokens, again and again, with a period of its own: no fixed distance helps."""
    rows = []
    for _ in range(count):
        period = int(torch.randint(*PERIODS, (), generator=generator))
        order = torch.randperm(config.vocabulary, generator=generator)[:period]
        rows.append(order.repeat(config.context // period + 2)[: config.context + 1])
    return torch.stack(rows)


def score(logits: Tensor, ids: Tensor) -> float:
    """The share of right predictions, where the token to come follows one that has been seen before."""
    right = logits.argmax(-1) == ids[:, 1:]
    repeated = torch.stack([ids[:, t, None].eq(ids[:, :t]).any(1) for t in range(ids.shape[1] - 1)], dim=1)
    return right[repeated].double().mean().item()


def hand_built(vocabulary: int, *, convolution: bool) -> MultiHeadAttention:
    """One head of one-hot tokens. A kernel (1, 0) on the keys makes each stand for the token *before* it, so the
    query, the current token, finds the place after its last occurrence, and the value there is the answer.
    """
    kernels = HeadConvolution(1, vocabulary, 2, bias=False, projections="k") if convolution else None
    module = MultiHeadAttention(vocabulary, 1, convolution=kernels)
    with torch.no_grad():
        for layer, size in ((module.query, 1000.0), (module.key, 1.0), (module.value, 1.0), (module.output, 1.0)):
            layer.weight.copy_(size * torch.eye(vocabulary))
            layer.bias.zero_()
        if kernels is not None:
            kernels.weight.copy_(torch.tensor([1.0, 0.0]).expand_as(kernels.weight))
    return module


def hand_built_score(config: Config, *, convolution: bool, count: int = 64) -> float:
    """The score of ``hand_built`` weights on sequences that training never sees."""
    ids = sequences(torch.Generator().manual_seed(-1), count, config)
    tokens = F.one_hot(ids[:, :-1], config.vocabulary).float()
    with torch.no_grad():
        return score(hand_built(config.vocabulary, convolution=convolution)(tokens), ids)


def train(config: Config) -> dict[str, Any]:
    """Train one model on fresh sequences; its score on others along the way, configuration and manifest."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    held_out = sequences(torch.Generator().manual_seed(-1), 64, config)
    model = LanguageModel(config)
    optimizers = build_optimizers(model, config)
    schedulers = [LambdaLR(optimizer, partial(rate_factor, config)) for optimizer in optimizers]
    curve = []
    for step in range(config.steps):
        ids = sequences(generator, config.batch, config)
        F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()).backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if (step + 1) % config.eval_every == 0:
            with torch.no_grad():
                curve.append({"step": step + 1, "score": score(model(held_out[:, :-1])[0], held_out)})
    return {
        "score": curve[-1]["score"],
        "hand_built_score": hand_built_score(config, convolution=bool(config.kernel_size)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve,
        "config": dataclasses.asdict(config),
        "manifest": manifest() | {"seed": config.seed},
    }
