"""Loss and accuracy over a whole text, in two stated ways."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite.model import LanguageModel, Memory


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats per character, share of characters whose most probable prediction is right."""

    loss: float
    accuracy: float
    positions: int

    @property
    def bits_per_character(self) -> float:
        """loss / ln 2."""
        return self.loss / math.log(2)


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    ids: Int[Tensor, " time"],
    *,
    window: int = 256,
    sliding: bool = False,
    batch: int = 32,
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Score every character of ``ids`` but the first, each once.

    Windows of ``window`` inputs lie side by side and every position is scored, nanoGPT's way; the first positions
    of each have little context. ``sliding`` windows overlap by half, and only the second half is scored (of the
    first window, all). A model with memory reads each window segment by segment, its memory empty at the start.
    ``between`` is called after each batch, and may raise.
    ValueError for fewer than two ids, ids that the model does not know, a window or batch below 1, or a loss that is
    not a finite number.
    """
    inputs, targets = ids[:-1], ids[1:]
    if window < 1 or batch < 1:
        raise ValueError(f"window {window} and batch {batch} must be at least 1")
    model.require_known(ids)
    if not len(inputs):
        raise ValueError(f"{len(ids)} characters leave nothing to predict: give at least 2")
    spans, done = [], 0
    while done < len(inputs):
        start = max(0, done - window // 2) if sliding else done
        stop = min(start + window, len(inputs))
        spans.append((start, stop - start, done - start))
        done = stop
    training, device = model.training, model.device
    inputs, targets = inputs.to(device), targets.to(device)
    losses: list[Tensor] = []
    rights: list[Tensor] = []
    model.eval()
    try:
        for (length, skip), group in groupby(spans, key=lambda span: span[1:]):
            starts = torch.tensor([start for start, *_ in group], device=device)
            for some in starts.split(batch):
                at = some[:, None] + torch.arange(length, device=device)
                logits = read_window(model, inputs[at])[:, skip:].flatten(0, 1).float()
                wanted = targets[at[:, skip:]].flatten()
                losses.append(F.cross_entropy(logits, wanted, reduction="sum"))
                rights.append((logits.argmax(dim=-1) == wanted).sum())
                if between is not None:
                    between()
    finally:
        model.train(training)
    loss, right = 0.0, sum(torch.stack(rights).tolist())
    for part in torch.stack(losses).tolist():  # sum() rounds otherwise from Python 3.12 on
        loss += part
    if not math.isfinite(loss):
        raise ValueError(f"the validation loss is {loss}: the model diverged in training; give a lower learning rate")
    return Evaluation(loss / len(inputs), right / len(inputs), len(inputs))


def read_window(model: LanguageModel, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
    """Logits over a window: at once, or for a model with memory segment by segment from an empty memory."""
    if not model.config.memory:
        return model(ids)[0]
    memory: Memory | None = None
    logits = []
    for segment in ids.split(model.config.context, dim=1):
        out, memory = model(segment, memory)
        logits.append(out)
    return torch.cat(logits, dim=1)
