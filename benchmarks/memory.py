"""What takes how much memory: bytes kept for backward, counted; resident memory, each case in a fresh process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import public_code
from benchmarks.times import public_step, training_step
from rcmha_lite.accounting import saved_bytes
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.manifest import process_cost
from rcmha_lite.model import LanguageModel


def memory() -> dict[str, Any]:
    """A training step in float32: bytes kept for backward by context, four cells; resident memory, each in a fresh process."""
    found: dict[str, Any] = {"kept for backward": {}, "resident": {}}
    for cell, changes in CELLS.items():
        kept, resident = {}, {}
        for context in (128, 256, 512, 1024, 2048):
            config = PRESETS["laptop"].replace(**changes, context=context, window=context, batch=4, dropout=0.0)
            kept[context] = saved_bytes(partial(model_loss, *model_and_ids(config)))
            resident[context] = in_a_fresh_process(resident_bytes, config)
        found["kept for backward"][cell], found["resident"][cell] = kept, resident
        print(cell, kept, resident, flush=True)
    for which, name in enumerate(("paper preset, ours", "paper preset, transcription of the public code")):
        found["resident"][name] = in_a_fresh_process(public_resident_bytes, which)
    return found


def model_and_ids(config: Config) -> tuple[LanguageModel, Tensor]:
    torch.manual_seed(0)
    return LanguageModel(config), torch.randint(config.vocabulary, (config.batch, config.context + 1))


def model_loss(model: LanguageModel, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())


def resident_bytes(config: Config) -> int:
    """What this process's memory grows by at most: model, gradients, optimiser, two training steps."""
    before = process_cost().peak_bytes
    step = training_step(config, half=False)
    step()
    return process_cost().peak_bytes - before


def public_resident_bytes(which: int) -> int:
    """The same for ``public_step()[which]``, twenty steps, until its memory of hidden states is full."""
    step = public_step()[which]
    before = psutil.Process().memory_info().rss  # both models are there: one's parameters are added below
    for _ in range(20):
        step()
    model = public_code.Model(PRESETS["paper"]) if which else LanguageModel(PRESETS["paper"])
    return process_cost().peak_bytes - before + 4 * sum(p.numel() for p in model.parameters())


def in_a_fresh_process(function: Callable[..., int], *arguments: Any) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
