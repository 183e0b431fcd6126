"""The checks of chapter 7 refuse what is wrong, say why where they know it, and accept what is right."""

import pytest
import torch
from torch.nn import functional as F

from rcmha_lite import exercises


def loop(model, optimizer, batches, *, forget=True, target=1, reduction="mean", step=True, early=False):
    losses = []
    for batch in batches:
        logits, _ = model(batch[0])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[target].flatten(), reduction=reduction)
        if forget and not early:
            optimizer.zero_grad()
        loss.backward()
        if early:
            optimizer.zero_grad()
        if step:
            optimizer.step()
        losses.append(loss.item())
    return losses


def by_hand(model, optimizer, batches):
    losses = []
    for x, y in batches:
        chosen = model(x)[0].log_softmax(-1).gather(-1, y[..., None])
        loss = -chosen.mean()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses


def functional(model, optimizer, batches):
    def one(batch):
        x, y = batch
        loss = F.cross_entropy(model(x)[0].transpose(1, 2), y)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        return loss.item()

    return tuple(map(one, batches))


def with_gradients(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.nll_loss(F.log_softmax(model(x)[0].flatten(0, 1), 1), y.flatten())
        parameters = list(model.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("train", [loop, by_hand, functional, with_gradients])
def test_right_loops_are_accepted(train):
    assert exercises.check_training_loop(train).startswith("Right")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda m, o, b: loop(m, o, b, forget=False), "forget the old one"),
        (lambda m, o, b: loop(m, o, b, early=True), "never move"),
        (lambda m, o, b: loop(m, o, b, step=False), "never move"),
        (lambda m, o, b: loop(m, o, b, target=0), "of x itself"),
        (lambda m, o, b: loop(m, o, b, reduction="sum"), "take their mean"),
        (lambda m, o, b: loop(m, o, b)[-1:], "expected 4 numbers, found 1"),
        (lambda m, o, b: loop(m, o, b)[::-1], "reverse order"),
        (lambda m, o, b: None, "returned nothing"),
        (lambda m, o, b: loop(m, o, b[:2]) * 2, "expected .* found"),
        (lambda m, o, b: [x for x in loop(m, o, b) if m.table.data.zero_() is not None], "the weights after the last"),
        (lambda m, o, b: m.undefined, "raised AttributeError"),
    ],
)
def test_wrong_loops_are_refused(train, said):
    with pytest.raises(AssertionError, match=said):
        exercises.check_training_loop(train)


@pytest.mark.parametrize(
    "factor",
    [
        lambda s, n, w, f: min(1, (s + 1) / w, (n - s) / f),
        lambda s, n, w, f: min(1.0, (n - s) / f) if s >= w else min((s + 1) / w, (n - s) / f),
        lambda s, n, w, f: float(torch.tensor([(s + 1) / w, (n - s) / f], dtype=torch.float64).clamp(max=1).min()),
        lambda s, n, w, f: torch.tensor(min(1, (s + 1) / w, (n - s) / f), dtype=torch.float64),
    ],
)
def test_right_schedules_are_accepted(factor):
    assert exercises.check_schedule(factor).startswith("Right")


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (lambda s, n, w, f: min(1, s / w, (n - s) / f), "first step must go"),
        (lambda s, n, w, f: min(1, (s + 1) / w, (n - s - 1) / f), "last step must still"),
        (lambda s, n, w, f: min((s + 1) / w, (n - s) / f), "not exceed 1"),
        (lambda s, n, w, f: min(1, (s + 1) / w), "never falls"),
        (lambda s, n, w, f: min(1, (n - s) / f), "never climbs"),
        (lambda s, n, w, f: min(1, (s + 1) / w, (n - s) / n), "falls from the first"),
        (lambda s, n, w, f: 1.0, "step 0, steps 100, warmup 10, falling 50: expected 0.1, found 1"),
        (lambda s, n, w, f: "1", "expected"),
    ],
)
def test_wrong_schedules_are_refused(factor, said):
    with pytest.raises(AssertionError, match=said):
        exercises.check_schedule(factor)
