"""The new checks of chapters 3 and 5: right answers pass however they are written, wrong ones are told apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcmha_lite import exercises


def module_counts(channels, kernel, depthwise):
    module = nn.Conv1d(channels, channels, kernel, groups=channels if depthwise else 1)
    return sum(p.numel() for p in module.parameters())


RIGHT = [
    ("check_counts", module_counts),
    ("check_counts", lambda c, k, d: c * (k + 1) if d else c * (c * k + 1)),
    ("check_counts", lambda c, k, d: torch.tensor(c * k * (1 if d else c) + c)),
    ("check_taps", [0, -1, 1]),
    ("check_taps", (0.0, 2.5, -2.5)),
    ("check_taps", torch.tensor([0.0, -1.0, 1.0])),
    ("check_reach", lambda n, k: n * (k - 1) + 1),
    ("check_reach", lambda n, k: n * k - n + 1),
    ("check_reach", lambda n, k: 1 + sum(k - 1 for _ in range(n))),
    ("check_backward", lambda x, g: g * 2 * x.clamp(min=0)),
    ("check_backward", lambda x, g: torch.where(x > 0, 2 * x * g, 0.0)),
    ("check_backward", lambda x, g: x.relu_().mul_(2).mul_(g)),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(F.linear(x, w, b).relu().square(), v, c)),
    ("check_feed_forward", lambda x, w, b, v, c: ((x @ w.T + b).clamp(min=0) ** 2) @ v.T + c),
    ("check_feed_forward", lambda x, w, b, v, c: torch.einsum("btf,df->btd", (x @ w.T + b).relu_().square_(), v) + c),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    assert getattr(exercises, check)(answer).startswith("Right")


WRONG = [
    ("check_counts", lambda c, k, d: c * k * (1 if d else c), "biases are missing"),
    ("check_counts", lambda c, k, d: module_counts(c, k, not d), "exchanged"),
    ("check_counts", lambda c, k, d: c * k * (1 if d else c) + 1, "one bias in all"),
    ("check_counts", lambda c, k, d: 2 * c * k * (1 if d else c), "bias for every weight"),
    ("check_counts", lambda c, k, d: c * c * k + c, "depthwise True: expected 512, found 49280"),
    ("check_counts", lambda c, k, d: None, "returned nothing"),
    ("check_taps", [1, -1, 0], "In reverse they would do"),
    ("check_taps", [1, -1, 1], "at place 2 the signal repeats .* expected 0, found 3"),
    ("check_taps", [0, 1, 1], "expected 0"),
    ("check_taps", [0, 0, 0], "0 everywhere"),
    ("check_taps", [-1, 0, 1], "expected 0"),
    ("check_taps", [1, -1], "expected 3 numbers, found 2"),
    ("check_taps", [0, -1, "one"], "expected a number"),
    ("check_reach", lambda n, k: k**n, "do not multiply"),
    ("check_reach", lambda n, k: n * k, "counted in every layer"),
    ("check_reach", lambda n, k: n * (k - 1), "left out"),
    ("check_reach", lambda n, k: k, "one layer alone"),
    ("check_reach", lambda n, k: 2 * n * (k - 1) + 1, "both sides"),
    ("check_reach", lambda n, k: "far", "expected a number"),
    ("check_backward", lambda x, g: 2 * x.clamp(min=0), "not multiplied in"),
    ("check_backward", lambda x, g: g * (x > 0), "ReLU's"),
    ("check_backward", lambda x, g: g * x.clamp(min=0), "factor 2"),
    ("check_backward", lambda x, g: g * 2 * x, "let nothing through"),
    ("check_backward", lambda x, g: g * x.clamp(min=0) ** 2, "by the output"),
    ("check_backward", lambda x, g: x.zero_(), "zero"),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(F.linear(x, w, b).relu(), v, c), "not squared"),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(F.linear(x, w, b).square(), v, c), "let through"),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(F.linear(x, w).relu().square(), v, c), "first bias"),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(F.linear(x, w, b).relu().square(), v), "second bias"),
    (
        "check_feed_forward",
        lambda x, w, b, v, c: x + F.linear(F.linear(x, w, b).relu().square(), v, c),
        "block's affair",
    ),
    ("check_feed_forward", lambda x, w, b, v, c: F.linear(x, w, b), "expected shape"),
]


@pytest.mark.parametrize(("check", "answer", "said"), WRONG)
def test_wrong_answers_are_told_apart(check, answer, said):
    with pytest.raises(AssertionError, match=said):
        getattr(exercises, check)(answer)
