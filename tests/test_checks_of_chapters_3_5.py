"""The checks that came with chapters 3 and 5: right answers in several forms, wrong ones told apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcmha_lite import exercises, model
from rcmha_lite.accounting import parameters_by_part
from rcmha_lite.config import Config
from rcmha_lite.convolution import HeadConvolution


def by_module(d_model, n_heads, kernel_size, shared):
    part = HeadConvolution(n_heads, d_model // n_heads, kernel_size, shared=shared)
    return sum(p.numel() for p in part.parameters())


def by_model(d_model, n_heads, kernel_size, shared):
    config = Config(d_model=d_model, n_heads=n_heads, kernel_size=kernel_size, shared_kernels=shared, layers=1, d_ff=1)
    return torch.tensor(parameters_by_part(model.LanguageModel(config))["convolution"])


def by_pencil(d_model, n_heads, kernel_size, shared):
    return 3 * (d_model // n_heads if shared else d_model) * (kernel_size + 1)


def channels(d_model, n_heads, shared):
    return d_model // n_heads if shared else d_model


def reach_by_autograd(layers, kernel_size):
    x = torch.ones(1, 1, 40, requires_grad=True)
    y = x
    for _ in range(layers):
        y = F.conv1d(F.pad(y, (kernel_size - 1, 0)), torch.ones(1, 1, kernel_size))
    return (torch.autograd.grad(y[0, 0, -1], x)[0] != 0).sum()


def reach_by_loop(layers, kernel_size):
    reached = {0}
    for _ in range(layers):
        reached = {t - s for t in reached for s in range(kernel_size)}
    return len(reached)


class Layers(nn.Module):
    """The right answer, and with its hooks changed, wrong ones."""

    def __init__(self, d_model, d_ff):
        super().__init__()
        self.input, self.output = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def bend(self, x):
        return F.relu(x) ** 2

    def forward(self, x):
        return self.output(self.bend(self.input(x)))


class Written(nn.Module):
    """With parameters in bare modules and a product of its own."""

    def __init__(self, d_model, d_ff):
        super().__init__()
        self.input, self.output = nn.Module(), nn.Module()
        for layer, rows, columns in ((self.input, d_ff, d_model), (self.output, d_model, d_ff)):
            layer.weight = nn.Parameter(torch.randn(rows, columns))
            layer.bias = nn.Parameter(torch.randn(rows))

    def forward(self, x):
        wide = torch.einsum("btd,fd->btf", x, self.input.weight) + self.input.bias
        return torch.where(wide > 0, wide * wide, 0.0) @ self.output.weight.T + self.output.bias


class InPlace(Layers):
    def forward(self, x):
        wide = self.input(x).clamp_(min=0)
        return self.output(wide * wide)


class Named(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)


class Exchanged(Layers):
    def __init__(self, d_model, d_ff):
        super().__init__(d_ff, d_model)


class NoBias(Layers):
    def __init__(self, d_model, d_ff):
        super().__init__(d_model, d_ff)
        self.input, self.output = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)


class Unfinished(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        ...

    def forward(self, x): ...


def bent(bend):
    return type("Bent", (Layers,), {"bend": lambda _, x: bend(x)})


def forward(function):
    return type("Forward", (Layers,), {"forward": function})


ANSWERS = {
    exercises.check_taps: (
        [(0, -1, 1), [0.0, 1.0, -1.0], torch.tensor([0, -2.5, 2.5]), (n for n in (0, 3, -3))],
        {
            "a delay": (0, 1, 0),
            "nothing": (0, 0, 0),
            "the mean of two": (0, 0.5, 0.5),
            "reversed": (1, -1, 0),
            "two steps": (-1, 0, 1),
            "a second difference": (1, -2, 1),
            "unequal": (0, -1, 2),
            "two taps": (-1, 1),
            "words": "abc",
            "a number": 1,
        },
    ),
    exercises.check_reach: (
        [lambda n, k: n * (k - 1) + 1, reach_by_autograd, reach_by_loop, lambda n, k: str(n * k - n + 1)],
        {
            "without the present": lambda n, k: n * (k - 1),
            "added": lambda n, k: n * k,
            "multiplied": lambda n, k: k**n,
            "of one layer": lambda n, k: k,
            "one more": lambda n, k: n * k + 1,
            "doubling": lambda n, k: (k - 1) * 2**n,
            "the largest of them": max,
            "nothing": lambda n, k: None,
        },
    ),
    exercises.check_parameter_counts: (
        [by_pencil, by_module, by_model],
        {
            "no biases": lambda d, h, k, s: 3 * channels(d, h, s) * k,
            "one projection": lambda d, h, k, s: channels(d, h, s) * (k + 1),
            "one projection, no biases": lambda d, h, k, s: channels(d, h, s) * k,
            "one bias": lambda d, h, k, s: 3 * channels(d, h, s) * k + 1,
            "a bias a projection": lambda d, h, k, s: 3 * (channels(d, h, s) * k + 1),
            "always separate": lambda d, h, k, s: 3 * d * (k + 1),
            "always shared": lambda d, h, k, s: 3 * (d // h) * (k + 1),
            "standard": lambda d, h, k, s: 3 * (channels(d, h, s) ** 2 * k + channels(d, h, s)),
            "four projections": lambda d, h, k, s: 4 * channels(d, h, s) * (k + 1),
            "a table": lambda d, h, k, s: {"weights": 1},
        },
    ),
    exercises.check_mean_squares: (
        [
            lambda s: (s**2 / 2, 1.5 * s**4),
            lambda s: torch.tensor([s * s, 3 * s**4], dtype=torch.float64) / 2,
            lambda s: iter([0.5 * s * s, 6 * (s * s / 2) ** 2]),
        ],
        {
            "no half": lambda s: (s**2, 3 * s**4),
            "no scale": lambda s: (0.5, 1.5),
            "σ² in both": lambda s: (s**2 / 2, 1.5 * s**2),
            "σ in both": lambda s: (s / 2, 1.5 * s),
            "σ and σ²": lambda s: (s / 2, 1.5 * s**2),
            "exchanged": lambda s: (1.5 * s**4, s**2 / 2),
            "the fourth moment 1": lambda s: (s**2 / 2, s**4 / 2),
            "roots": lambda s: (s / 2**0.5, 1.5**0.5 * s**2),
            "one number": lambda s: s**2 / 2,
        },
    ),
    exercises.check_feed_forward: (
        [Layers, Written, InPlace, lambda d, f: model.FeedForward(d, f)],
        {
            "ReLU": bent(F.relu),
            "x²": bent(torch.square),
            "GELU": bent(F.gelu),
            "nothing between": bent(lambda x: x),
            "no gradient": bent(lambda x: F.relu(x.detach()) ** 2),
            "half the gradient": bent(lambda x: F.relu(x) * F.relu(x).detach()),
            "the bend last": forward(lambda self, x: F.relu(self.output(self.input(x))) ** 2),
            "bent twice": forward(lambda self, x: self.bend(self.output(self.bend(self.input(x))))),
            "the square last": forward(lambda self, x: self.output(F.relu(self.input(x))) ** 2),
            "x added": forward(lambda self, x: x + self.output(self.bend(self.input(x)))),
            "no second bias": forward(lambda self, x: self.bend(self.input(x)) @ self.output.weight.T),
            "the first bias late": forward(
                lambda self, x: self.output(self.bend(x @ self.input.weight.T) + self.input.bias)
            ),
            "other names": Named,
            "exchanged": Exchanged,
            "no biases": NoBias,
            "unfinished": Unfinished,
            "no module": lambda d, f: 7,
        },
    ),
}

RIGHT = [(check, answer) for check, (right, _) in ANSWERS.items() for answer in right]
WRONG = {
    f"{check.__name__}: {name}": (check, answer)
    for check, (_, wrong) in ANSWERS.items()
    for name, answer in wrong.items()
}


def refused(check, answer):
    with pytest.raises(AssertionError) as caught:
        check(answer)
    return str(caught.value)


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("Right")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail(name):
    assert len(refused(*WRONG[name])) > 20


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_every_check_has_its_answers_and_tells_the_wrong_ones_apart(check):
    right, wrong = ANSWERS[check]
    assert len(right) >= 3
    assert len(wrong) >= 5
    messages = [refused(check, answer) for answer in wrong.values()]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize(
    "odd", [..., None, 7, object(), lambda: 1, lambda *_: None, lambda *_: torch.tensor(1j), nn.Linear]
)
@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_an_odd_answer_gets_a_message(check, odd):
    assert len(refused(check, odd)) > 10


def test_a_feed_forward_check_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    exercises.check_feed_forward(Layers)
    found = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(1))
