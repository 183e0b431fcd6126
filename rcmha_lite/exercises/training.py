"""Checks for chapter 7: the lines that every training run repeats, and how its rate changes over the steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.exercises._telling import asked, assert_same, number, numbers, random, refuse, relation, telling

Batch = tuple[Tensor, Tensor]


class _Bigrams(nn.Module):
    """Logits of the next character from a table, and no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(random(4, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return F.pad(self.table, (0, 0, 0, 1))[x], None


def _taught(
    steps: Sequence[str], batches: Sequence[Batch], targets: Callable[[Batch], Tensor] = lambda b: b[1], **loss: Any
) -> tuple[list[float], Tensor]:
    """Losses, and the table at the end, of these steps for each batch."""
    model = _Bigrams()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for batch in batches:
        found = F.cross_entropy(model(batch[0])[0].flatten(0, 1), targets(batch).flatten(), **loss)
        acts = {"forget": optimizer.zero_grad, "backward": found.backward, "step": optimizer.step}
        for act in steps:
            acts[act]()
        losses.append(found.item())
    return losses, model.table.detach()


@telling
def check_training_loop(train: Callable[[nn.Module, torch.optim.Optimizer, list[Batch]], list[float]]) -> str:
    """``train(model, optimizer, batches)``: for each (x, y) one step down the mean cross-entropy; a list of the losses.

    ``logits, memory = model(x)``; x and y are ids ``[batch, time]``, logits ``[batch, time, vocabulary]``. A loss is that
    of the batch before its step.
    """
    generator = torch.Generator().manual_seed(3)
    batches = [tuple(torch.randint(4, (2, 2, 6), generator=generator)) for _ in range(4)]
    model = _Bigrams()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = asked(
        lambda given: train(model, optimizer, given), {"batches": batches}, "your train(model, optimizer, batches)"
    )
    losses = numbers(found, len(batches), "the losses, one for each batch")
    order = ["forget", "backward", "step"]
    expected, table = _taught(order, batches)
    wrong = {
        "Gradients of all batches add up: forget the old one.": _taught(["backward", "step"], batches),
        "The weights never move: is there a step, and a gradient when it is taken?": _taught([], batches),
        "The loss is of x itself: a model must predict y, the characters after x.": _taught(
            order, batches, lambda b: b[0]
        ),
        "The loss is a sum over the characters: take their mean.": _taught(order, batches, reduction="sum"),
        "The step is taken with the gradient of the batch before.": _taught(["step", "forget", "backward"], batches),
    }
    if not torch.allclose(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9):
        for sentence, (other, _) in wrong.items():
            if torch.allclose(losses, torch.tensor(other, dtype=torch.float64), rtol=0, atol=1e-9):
                refuse(f"the losses: expected {_short(expected)}, found {_short(losses.tolist())}.\n  {sentence}")
        told = relation(losses, torch.tensor(expected, dtype=torch.float64))
        refuse(
            f"the losses: expected {_short(expected)}, found {_short(losses.tolist())}"
            + (f".\n  {told}" if told else "")
        )
    assert_same(model.table, table, "the losses are right, the weights after the last step are not", 1e-9)
    return "Right: forward, loss, forget, backward, step, for each batch."


def _short(losses: Sequence[float]) -> str:
    return "[" + ", ".join(f"{x:.4f}" for x in losses) + "]"


@telling
def check_schedule(factor: Callable[[int, int, int, int], float]) -> str:
    """``factor(step, steps, warmup, falling)``: min(1, (step + 1) / warmup, (steps − step) / falling).

    ``step`` counts from 0; the first ``warmup`` steps climb to 1, the last ``falling`` fall towards 0.
    """
    for steps, warmup, falling in ((100, 10, 50), (12, 3, 3), (7, 1, 7)):
        for step in range(steps):
            named = {"step": step, "steps": steps, "warmup": warmup, "falling": falling}
            found = number(asked(factor, named, copies=False), f"factor{tuple(named.values())}")
            right = min(1, (step + 1) / warmup, (steps - step) / falling)
            if abs(found - right) <= 1e-9:
                continue
            slips = {
                "The first step must go somewhere: (step + 1) / warmup.": min(
                    1, step / warmup, (steps - step) / falling
                ),
                "The last step must still go somewhere: (steps − step) / falling.": min(
                    1, (step + 1) / warmup, (steps - step - 1) / falling
                ),
                "It must not exceed 1.": min((step + 1) / warmup, (steps - step) / falling),
                "It never falls.": min(1, (step + 1) / warmup),
                "It never climbs.": min(1, (steps - step) / falling),
                "It falls from the first step on.": min(1, (step + 1) / warmup, (steps - step) / steps),
            }
            why = next(
                (s for s, value in slips.items() if abs(found - value) <= 1e-9 and abs(value - right) > 1e-9), ""
            )
            given = ", ".join(f"{name} {value}" for name, value in named.items())
            refuse(f"{given}: expected {right:.4g}, found {found:.4g}" + (f".\n  {why}" if why else ""))
    return "Right: it climbs, stays at 1 and falls."
