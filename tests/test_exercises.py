"""The reader's checks accept right answers and refuse the usual wrong ones."""

import itertools
import statistics
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rcmha_lite import attention, convolution, exercises, generation, positions
from rcmha_lite.accounting import flops
from rcmha_lite.model import LanguageModel, squared_relu


def successors(text):
    following = defaultdict(Counter)
    for a, b in itertools.pairwise(text):
        following[a][b] += 1
    return following


def bigram(text):
    return {a: counts.most_common(1)[0][0] for a, counts in successors(text).items()}


def weights(q, k):
    return attention.attention_weights(q[None, None], k[None, None])[0, 0]


def convolve(x, taps):
    return convolution.causal_depthwise_convolution(x[None], taps)[0]


shift = positions.shift


def factors(a, i):
    return positions.factorise(a, torch.stack((i.sin(), i.cos()), dim=1))


def counted(config, time):
    return flops(LanguageModel(config), torch.zeros(1, time, dtype=torch.long))


def degrees(table):
    return (len(table) - 1) * (len(table[0]) - 1)


def noise(table):
    """By least squares on a column of zeros and ones for each row and each column."""
    m, n = np.shape(table)
    rows, columns = np.kron(np.eye(m), np.ones((n, 1))), np.kron(np.ones((m, 1)), np.eye(n))
    design, y = np.hstack([rows, columns]), np.ravel(table)
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return (left @ left / degrees(table)) ** 0.5


def interval(differences, t):
    half = t * statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences) - half, statistics.mean(differences) + half


def reset(counter):
    so_far = [0, *(n * shown for n, shown in enumerate(counter, 1))]
    return [b - a for a, b in itertools.pairwise(so_far)]


def running_mean(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


RIGHT = [
    (exercises.check_bigram, bigram),
    (exercises.check_accuracy, lambda logits, targets: (logits.argmax(-1) == targets).float().mean()),
    (exercises.check_weights, weights),
    (exercises.check_weights, lambda q, k: weights(q.float(), k.float())),
    (exercises.check_shift, lambda s: shift(s.float())),
    (exercises.check_causal, running_mean),
    (exercises.check_causal, attention.mha(16, 2).double()),
    (exercises.check_causal, lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1]),
    (exercises.check_convolution, convolve),
    (exercises.check_shift, shift),
    (lambda yours: exercises.check_shift(yours, memory=3), shift),
    (exercises.check_factors, factors),
    (exercises.check_squared_relu, squared_relu),
    (exercises.check_flops, counted),
    (exercises.check_interval, interval),
    (exercises.check_noise, noise),
    (exercises.check_reset, reset),
    (exercises.check_temperature, lambda z, t: generation.next_probabilities(z, temperature=t)),
]

WRONG = {
    "bigram: predecessors": (exercises.check_bigram, lambda text: bigram(text[::-1])),
    "bigram: the first successor": (exercises.check_bigram, lambda text: dict(reversed([*itertools.pairwise(text)]))),
    "bigram: the most frequent other character": (
        exercises.check_bigram,
        lambda text: {a: max((b for b in Counter(text) if b != a), key=Counter(text).get) for a in text[:-1]},
    ),
    "bigram: the last successor": (exercises.check_bigram, lambda text: dict(itertools.pairwise(text))),
    "bigram: of equally frequent ones, the last": (
        exercises.check_bigram,
        lambda text: {a: max(reversed([*row]), key=row.get) for a, row in successors(text).items()},
    ),
    "bigram: pairs that do not overlap": (
        exercises.check_bigram,
        lambda text: {a: max(row, key=lambda b: text.count(a + b)) for a, row in successors(text).items()},
    ),
    "accuracy: of the first window": (exercises.check_accuracy, lambda z, y: (z.argmax(-1) == y).double()[0].mean()),
    "accuracy: by length only": (exercises.check_accuracy, lambda z, y: (z.argmax(-1) == y).sum() / y.shape[1]),
    "accuracy: of the first position": (exercises.check_accuracy, lambda z, y: (z.argmax(-1) == y).float()[0, 0]),
    "weights: no mask": (exercises.check_weights, lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(-1)),
    "weights: masked after the softmax": (exercises.check_weights, lambda q, k: (q @ k.T).softmax(-1).tril()),
    "weights: no scale": (exercises.check_weights, lambda q, k: weights(q * q.shape[1] ** 0.5, k)),
    "weights: the diagonal hidden": (
        exercises.check_weights,
        lambda q, k: (q @ k.T).masked_fill(torch.ones(len(q), len(q)).triu().bool(), -1e9).softmax(-1),
    ),
    "causal: the mean of all": (exercises.check_causal, lambda x: x.mean(1, keepdim=True).expand_as(x)),
    "causal: of nothing": (exercises.check_causal, torch.zeros_like),
    "causal: one step early": (exercises.check_causal, lambda x: F.pad(x, (0, 0, 0, 1))[:, 1:] + x),
    "convolution: padded on the right": (
        exercises.check_convolution,
        lambda x, w: convolve(F.pad(x, (0, 0, 0, w.shape[1] - 1)), w)[w.shape[1] - 1 :],
    ),
    "convolution: taps reversed": (exercises.check_convolution, lambda x, w: convolve(x, w.flip(1))),
    "convolution: channels mixed": (exercises.check_convolution, lambda x, w: convolve(x.roll(1, 1), w)),
    "shift: transposed": (exercises.check_shift, lambda s: shift(s).T),
    "shift: one off": (exercises.check_shift, lambda s: shift(s).roll(1, 1)),
    "shift: none": (exercises.check_shift, lambda s: s),
    "shift: a causal mask": (exercises.check_shift, lambda s: torch.ones_like(s, dtype=torch.bool).tril()),
    "shift behind a memory: as without": (
        lambda yours: exercises.check_shift(yours, memory=3),
        lambda s: F.pad(s.flip(1), (1, 0)).flatten()[s.shape[1] :][: s.numel()].view(s.shape[0], -1),
    ),
    "factors: a itself": (exercises.check_factors, lambda a, i: a),
    "factors: turned the wrong way": (exercises.check_factors, lambda a, i: factors(a, -i)),
    "flops: relative positions forgotten": (
        exercises.check_flops,
        lambda config, time: counted(config.replace(position="absolute-sinusoidal", window=128), time),
    ),
    "flops: convolution forgotten": (
        exercises.check_flops,
        lambda config, time: counted(config.replace(kernel_size=0), time),
    ),
    "interval: divided by n": (exercises.check_interval, lambda x, t: interval(x, t * ((len(x) - 1) / len(x)) ** 0.5)),
    "interval: around the median": (
        exercises.check_interval,
        lambda x, t: tuple(end + statistics.median(x) - statistics.mean(x) for end in interval(x, t)),
    ),
    "interval: of one run, not of the mean": (exercises.check_interval, lambda x, t: interval(x, t * len(x) ** 0.5)),
    "noise: over all runs": (exercises.check_noise, lambda t: noise(t) * (degrees(t) / np.size(t)) ** 0.5),
    "noise: the seeds left in": (
        exercises.check_noise,
        lambda t: (np.var(t, axis=1).sum() / degrees(t) * len(t[0])) ** 0.5,
    ),
    "noise: the choices left in": (
        exercises.check_noise,
        lambda t: (np.var(t, axis=0).sum() / degrees(t) * len(t)) ** 0.5,
    ),
    "noise: squared": (exercises.check_noise, lambda t: noise(t) ** 2),
    "reset: the counter itself": (exercises.check_reset, lambda c: c),
    "reset: differences of the counter": (
        exercises.check_reset,
        lambda c: [b - a for a, b in itertools.pairwise([0, *c])],
    ),
    "reset: one epoch late": (exercises.check_reset, lambda c: reset(c)[1:]),
    "squared ReLU: x²": (exercises.check_squared_relu, torch.square),
    "squared ReLU: ReLU": (exercises.check_squared_relu, torch.relu),
    "temperature: multiplied": (exercises.check_temperature, lambda z, t: (z * t).softmax(-1)),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    assert check(answer).startswith("Right")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail(name):
    check, answer = WRONG[name]
    with pytest.raises(AssertionError, match=r"\w"):
        check(answer)


@pytest.mark.parametrize(
    "check",
    sorted({c for c, _ in RIGHT if c.__name__ != "<lambda>"}, key=lambda c: c.__name__),
    ids=lambda c: c.__name__,
)
def test_an_unfinished_answer_is_told_so(check):
    with pytest.raises(AssertionError, match=r"returned nothing|expected a tensor, found NoneType"):
        check(lambda *_: None)
