"""nanoGPT's two recipes for Tiny Shakespeare, and the operations that a run takes to their losses."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.results import load
from rcmha_lite.accounting import flops
from rcmha_lite.config import Config
from rcmha_lite.model import LanguageModel
from rcmha_lite.optimizers import build_optimizers


class Yardstick(NamedTuple):
    """A recipe as a configuration of ours of the same shapes, the iterations to its best, and that validation loss."""

    config: Config
    steps: int
    loss: float
    took: str


_GPT = Config(position="absolute-learned", kernel_size=0, activation="gelu", optimizer="adamw", window=64, context=64)

NANOGPT = {
    "gpu": Yardstick(
        _GPT.replace(layers=6, d_model=384, n_heads=6, d_ff=1536, context=256, window=256, batch=64, steps=5000),
        1750, 1.4697, "3 min, A100",
    ),
    "cpu": Yardstick(
        _GPT.replace(layers=4, d_model=128, n_heads=4, d_ff=512, context=64, window=64, batch=12, steps=2000),
        2000, 1.88, "3 min, CPU",
    ),
}  # fmt: skip
"""The GPU recipe's best loss is reported to come after about 1750 of its 5000 iterations, so that is what counts."""

LEVELS = {f"nanoGPT on a {kind.upper()}, {found.loss}": found.loss for kind, found in NANOGPT.items()}
"""Its losses as levels of a figure."""


def operations(config: Config, steps: int) -> int:
    """Multiplications and additions of ``steps`` training steps: forward, backward, and the optimisers' products."""
    model = LanguageModel(config)
    ids = torch.zeros(1, config.context, dtype=torch.long)
    products = flops(model, ids, backward=True) * config.batch
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounterMode(display=False) as counter:
        for optimizer in build_optimizers(model, config):
            optimizer.step()
    return steps * (products + int(counter.get_total_flops()))


def operations_to(name: str, loss: float) -> int:
    """Operations of the run ``group/name`` up to the first point of its curve at or below a validation ``loss``."""
    run = load(name)
    reached = [point["step"] for point in run["curve"] if point["val_loss"] <= loss]
    if not reached:
        raise ValueError(f"{name} does not reach {loss}: its last point is at {run['curve'][-1]['val_loss']:.4f}")
    return operations(Config(**run["config"]), reached[0])
