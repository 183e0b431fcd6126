"""The reader's checks accept right answers and refuse the usual wrong ones."""

import itertools
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rcmha_lite import attention, convolution, exercises, generation, positions
from rcmha_lite.accounting import flops
from rcmha_lite.exercises import _telling
from rcmha_lite.model import LanguageModel, squared_relu

ROOT = Path(__file__).parents[1]


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


def per_row(q, k):
    """Row by row, without a mask."""
    rows = []
    for i in range(len(q)):
        e = ((k[: i + 1] * q[i]).sum(1) / q.shape[1] ** 0.5).exp()
        rows.append(torch.cat((e / e.sum(), q.new_zeros(len(q) - i - 1))))
    return torch.stack(rows)


def in_place_weights(q, k):
    q /= q.shape[1] ** 0.5
    scores = q @ k.T
    scores += torch.full_like(scores, -torch.inf).triu(1)
    return scores.softmax(1)


def of_scores(change):
    """Weights from q·k by ``change``, which does the rest."""
    return lambda q, k: change(q @ k.T, q.shape[1] ** 0.5, torch.ones(len(q), len(q)).tril() > 0)


def hide(scores, seen):
    return scores.masked_fill(~seen, -torch.inf)


def mean_in_place(x):
    for t in range(x.shape[1] - 1, -1, -1):
        x[:, t] = x[:, : t + 1].mean(1)
    return x


def convolve_by_hand(x, taps, ahead=0, around=False):
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for s in range(taps.shape[1]):
            row = t - (taps.shape[1] - 1) + s + ahead
            if around or 0 <= row < len(x):
                y[t] += taps[:, s] * x[row % len(x)]
    return y


def convolve_in_place(x, taps):
    for t in range(len(x) - 1, -1, -1):
        window = x[max(0, t + 1 - taps.shape[1]) : t + 1]
        x[t] = (window.T * taps[:, taps.shape[1] - len(window) :]).sum(1)
    return x


def shift_in_place(b, memory=0):
    for i in range(len(b)):
        b[i, : memory + i + 1] = b[i, : memory + i + 1].flip(0).clone()
    return b


def by_index(b):
    queries, keys = b.shape
    return torch.stack(
        [torch.stack([b[i, max(keys - queries + i - j, 0)] for j in range(keys)]) for i in range(queries)]
    )


def phi_by_matrix(a, i):
    turn = torch.stack((torch.stack((-i.cos(), i.sin()), dim=1), torch.stack((i.sin(), i.cos()), dim=1)), dim=1)
    return torch.einsum("tij,tj->ti", turn, a)


def phi_in_place(a, i):
    s, c = a.clone().T
    a[:, 0], a[:, 1] = c * i.sin() - s * i.cos(), s * i.sin() + c * i.cos()
    return a


def phi_complex(a, i):
    z = torch.complex(a[:, 1], a[:, 0]) * torch.polar(torch.ones_like(i), -i)
    return torch.stack((-z.imag, z.real), dim=1)


def clamped_in_place(x):
    return x.clamp_(min=0).pow(2)


def relu_by_mask(x):
    return torch.where(x > 0, x * x, torch.zeros_like(x))


def softmax_in_place(z, t):
    z -= z.max()
    z /= t
    z.exp_()
    return z / z.sum()


def count_by_hand(text):
    table = {}
    for a in dict.fromkeys(text[:-1]):
        after = [text[n + 1] for n in range(len(text) - 1) if text[n] == a]
        table[a] = max(dict.fromkeys(after), key=after.count)
    return table


def count_sorted(text):
    pairs = Counter(itertools.pairwise(text))
    first = {pair: n for n, pair in reversed([*enumerate(itertools.pairwise(text))])}
    best = sorted(pairs, key=lambda pair: (-pairs[pair], first[pair]))
    return dict(reversed(best))


def hits_by_loop(z, y):
    return sum(int(z[b, t].argmax()) == int(y[b, t]) for b in range(len(y)) for t in range(y.shape[1])) / y.numel()


def by_formula(x, t):
    mean = sum(x) / len(x)
    s = (sum((d - mean) ** 2 for d in x) / (len(x) - 1)) ** 0.5
    return [mean - t * s / len(x) ** 0.5, mean + t * s / len(x) ** 0.5]


def noise_by_means(table):
    x = torch.tensor(table)
    left = x - x.mean(1, keepdim=True) - x.mean(0) + x.mean()
    return (left.square().sum() / degrees(table)).sqrt()


def noise_in_place(table):
    for row in table:
        mean = sum(row) / len(row)
        row[:] = [x - mean for x in row]
    for n in range(len(table[0])):
        mean = sum(row[n] for row in table) / len(table)
        for row in table:
            row[n] -= mean
    return (sum(x * x for row in table for x in row) / degrees(table)) ** 0.5


def reset_in_place(counter):
    for n in range(len(counter) - 1, 0, -1):
        counter[n] = (n + 1) * counter[n] - n * counter[n - 1]
    return counter


def pencil(config, time):
    """Operations by hand, a multiply-add counting as two."""
    d, p, heads = config.d_model, config.d_position, config.n_heads
    relative = config.position == "relative-sinusoidal"
    width = d + heads * p if relative else d
    attention_layer = 8 * time * d * d + 2 * time * d * p * relative + 4 * time * time * width
    convolved = 2 * 3 * config.kernel_size * time * d
    return config.layers * (attention_layer + convolved + 4 * time * d * config.d_ff) + 2 * time * d * config.vocabulary


def behind_memory(yours):
    return exercises.check_shift(yours, memory=3)


def without(**changes):
    return lambda config, time: counted(config.replace(window=128, **changes), time)


# For each check: right answers, written differently, and plausible wrong ones.
ANSWERS = {
    exercises.check_bigram: (
        [bigram, count_by_hand, count_sorted],
        {
            "predecessors": lambda text: bigram(text[::-1]),
            "the first successor": lambda text: dict(reversed([*itertools.pairwise(text)])),
            "the most frequent other character": lambda text: {
                a: max((b for b in Counter(text) if b != a), key=Counter(text).get, default="") for a in text[:-1]
            },
            "the last successor": lambda text: dict(itertools.pairwise(text)),
            "of equally frequent ones, the last": lambda text: {
                a: max(reversed([*row]), key=row.get) for a, row in successors(text).items()
            },
            "pairs that do not overlap": lambda text: {
                a: max(row, key=lambda b: text.count(a + b)) for a, row in successors(text).items()
            },
            "counts": lambda text: {a: max(row.values()) for a, row in successors(text).items()},
            "rows": successors,
            "a list": lambda text: [*bigram(text).items()],
            "the last character too": lambda text: {text[-1]: "", **bigram(text)},
            "nothing for one": lambda text: dict([*bigram(text).items()][1:]),
        },
    ),
    exercises.check_accuracy: (
        [
            lambda logits, targets: (logits.argmax(-1) == targets).float().mean(),
            hits_by_loop,
            lambda z, y: (z.gather(2, y[..., None])[..., 0] == z.amax(-1)).double().mean().item(),
            lambda z, y: z.neg_().argsort(2)[..., 0].eq(y).double().mean(),
        ],
        {
            "of the first window": lambda z, y: (z.argmax(-1) == y).double()[0].mean(),
            "of the last window": lambda z, y: (z.argmax(-1) == y).double()[-1].mean(),
            "by length only": lambda z, y: (z.argmax(-1) == y).sum() / y.shape[1],
            "of the first position": lambda z, y: (z.argmax(-1) == y).float()[0, 0],
            "hits": lambda z, y: (z.argmax(-1) == y).sum(),
            "in percent": lambda z, y: 100 * (z.argmax(-1) == y).double().mean(),
            "misses": lambda z, y: (z.argmax(-1) != y).double().mean(),
            "the smallest logit": lambda z, y: (z.argmin(-1) == y).double().mean(),
            "a tensor of hits": lambda z, y: z.argmax(-1) == y,
            "words": lambda z, y: "half",
        },
    ),
    exercises.check_temperature: (
        [
            lambda z, t: generation.next_probabilities(z, temperature=t),
            softmax_in_place,
            lambda z, t: torch.exp(z / t - torch.logsumexp(z / t, 0)),
            lambda z, t: (z.float() / t).softmax(0),
        ],
        {
            "multiplied": lambda z, t: (z * t).softmax(-1),
            "not used": lambda z, t: z.softmax(-1),
            "logarithms": lambda z, t: (z / t).log_softmax(-1),
            "not normalised": lambda z, t: (z / t).exp(),
            "divided afterwards": lambda z, t: z.softmax(-1) / t,
            "the logits": lambda z, t: z / t,
            "its root": lambda z, t: (z / t**0.5).softmax(-1),
            "the inputs spoilt": lambda z, t: z.zero_(),
        },
    ),
    exercises.check_weights: (
        [
            weights,
            lambda q, k: weights(q.float(), k.float()),
            per_row,
            in_place_weights,
            of_scores(lambda s, root, seen: (s / root).exp().mul(seen).div((s / root).exp().mul(seen).sum(1, keepdim=True))),
        ],
        {
            "no mask": of_scores(lambda s, root, seen: (s / root).softmax(-1)),
            "masked after the softmax": of_scores(lambda s, root, seen: (s / root).softmax(-1).tril()),
            "masked after, and no root": of_scores(lambda s, root, seen: s.softmax(-1).tril()),
            "no root": of_scores(lambda s, root, seen: hide(s, seen).softmax(-1)),
            "divided by d": of_scores(lambda s, root, seen: hide(s / root**2, seen).softmax(-1)),
            "multiplied by the root": of_scores(lambda s, root, seen: hide(s * root, seen).softmax(-1)),
            "divided by the root of the time": of_scores(lambda s, root, seen: hide(s / len(s) ** 0.5, seen).softmax(-1)),
            "the diagonal hidden": of_scores(lambda s, root, seen: hide(s / root, seen.tril(-1)).softmax(-1)),
            "one key too many": of_scores(lambda s, root, seen: hide(s / root, torch.ones_like(s).tril(1) > 0).softmax(-1)),
            "the future": of_scores(lambda s, root, seen: hide(s / root, seen.T).softmax(-1)),
            "over the queries": of_scores(lambda s, root, seen: hide(s / root, seen).softmax(0)),
            "keys ask": of_scores(lambda s, root, seen: hide(s.T / root, seen).softmax(-1)),
            "masked with 0": of_scores(lambda s, root, seen: (s / root).tril().softmax(-1)),
            "scores": of_scores(lambda s, root, seen: s / root),
            "the queries spoilt": lambda q, k: q.zero_() @ k.zero_().T,
            "transposed shapes": lambda q, k: weights(q.T, k.T),
        },
    ),
    exercises.check_causal: (
        [
            running_mean,
            attention.mha(16, 2).double(),
            lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1],
            lambda x: x.cumsum_(1),
            mean_in_place,
            lambda x: x.sum(2),
        ],
        {
            "the mean of all": lambda x: x.mean(1, keepdim=True).expand_as(x),
            "of nothing": torch.zeros_like,
            "one step early": lambda x: F.pad(x, (0, 0, 0, 1))[:, 1:] + x,
            "the batch mixed": lambda x: x + x.mean(0),
            "the last position alone": lambda x: x.cumsum(1)[:, -1:],
            "random": lambda x: F.dropout(x),
            "nothing finite": lambda x: x / 0,
            "in place, backwards": lambda x: x.copy_(x.flip(1)),
            "a pair": lambda x: (x, None),
            "of one width": lambda x: x.view(2, 9, 16),
        },
    ),
    exercises.check_convolution: (
        [
            convolve,
            convolve_by_hand,
            convolve_in_place,
            lambda x, w: F.conv1d(F.pad(x.T, (w.shape[1] - 1, 0)), w[:, None], groups=len(w)).T,
            lambda x, w: (F.pad(x.T, (w.shape[1] - 1, 0)).unfold(1, w.shape[1], 1) * w[:, None]).sum(2).T,
        ],
        {
            "padded on the right": lambda x, w: convolve_by_hand(x, w, ahead=w.shape[1] - 1),
            "padded on both sides": lambda x, w: convolve_by_hand(x, w, ahead=w.shape[1] // 2),
            "taps reversed": lambda x, w: convolve(x, w.flip(1)),
            "channels mixed": lambda x, w: convolve(x.roll(1, 1), w),
            "channels summed": lambda x, w: convolve(x, w).sum(1, keepdim=True).expand_as(x),
            "round in a ring": lambda x, w: convolve_by_hand(x, w, around=True),
            "one row late": lambda x, w: convolve_by_hand(x, w, ahead=-1),
            "the first row repeated": lambda x, w: convolve(torch.cat((x[:1].expand(9, -1), x)), w)[9:],
            "the first channel's taps": lambda x, w: convolve(x, w[:1].expand_as(w)),
            "over the channels": lambda x, w: convolve(x.T, w[:1].expand(len(x), -1)).T,
            "longer": lambda x, w: F.conv1d(F.pad(x.T, (9, 9)), w[:, None], groups=len(w)).T,
            "the taps spoilt": lambda x, w: convolve(x, w.zero_()),
        },
    ),
    exercises.check_shift: (
        [shift, lambda s: shift(s.float()), shift_in_place, by_index, lambda s: shift(s).tril() + torch.full_like(s, torch.nan).triu(1).nan_to_num(7)],
        {
            "transposed": lambda s: shift(s).T,
            "one off": lambda s: shift(s).roll(1, 1),
            "one off, in rows": lambda s: shift(s).roll(1, 0),
            "none": lambda s: s,
            "a causal mask": lambda s: torch.ones_like(s, dtype=torch.bool).tril(),
            "the input spoilt": lambda s: s.zero_(),
            "reversed": lambda s: s.flip(1),
            "the wrong sign": lambda s: -shift(s),
            "cut": lambda s: shift(s)[:, :-1],
        },
    ),
    behind_memory: (
        [shift, lambda s: shift_in_place(s, 3), by_index],
        {
            "as without": lambda s: F.pad(s.flip(1), (1, 0)).flatten()[s.shape[1] :][: s.numel()].view(s.shape[0], -1),
            "in place, as without": shift_in_place,
            "none": lambda s: s,
            "the input spoilt": lambda s: s.fill_(1),
            "only the segment": lambda s: shift(s)[:, 3:],
            "one off": lambda s: shift(s).roll(1, 1),
        },
    ),
    exercises.check_factors: (
        [factors, phi_by_matrix, phi_in_place, phi_complex, lambda a, i: factors(a.float(), i.float())],
        {
            "a itself": lambda a, i: a,
            "turned the wrong way": lambda a, i: factors(a, -i),
            "halves exchanged": lambda a, i: factors(a.flip(1), i),
            "columns exchanged": lambda a, i: factors(a, i).flip(1),
            "j - i": lambda a, i: factors(a * torch.tensor([-1.0, 1.0]), i),
            "i + j": lambda a, i: factors(a, i) * torch.tensor([-1.0, 1.0]),
            "the wrong sign": lambda a, i: -factors(a, i),
            "twice": lambda a, i: 2 * factors(a, i),
            "transposed": lambda a, i: factors(a, i).T,
            "the angles spoilt": lambda a, i: factors(a, i.zero_()),
        },
    ),
    exercises.check_squared_relu: (
        [squared_relu, clamped_in_place, relu_by_mask, lambda x: x * x.clamp(min=0), lambda x: F.relu(x) ** 2, lambda x: (x.float().relu() ** 2).double()],
        {
            "x²": torch.square,
            "ReLU": torch.relu,
            "cut off at 3": lambda x: x.clamp(0, 3) ** 2,
            "cut off at 6": lambda x: x.clamp(0, 6) ** 2,
            "signed": lambda x: x * x.abs(),
            "the other side": lambda x: (-x).clamp(min=0) ** 2,
            "half": lambda x: F.relu(x) ** 2 / 2,
            "doubled": lambda x: 2 * F.relu(x),
            "cubed": lambda x: F.relu(x) ** 3,
            "GELU": lambda x: F.gelu(x) ** 2,
            "leaky": lambda x: F.leaky_relu(x) ** 2,
            "no gradient": lambda x: F.relu(x.detach()) ** 2,
            "half the gradient": lambda x: F.relu(x) * F.relu(x).detach(),
            "the input spoilt": lambda x: x.detach().zero_(),
            "a number": lambda x: float(x[-1]) ** 2,
        },
    ),
    exercises.check_flops: (
        [counted, pencil, lambda config, time: str(counted(config, time))],
        {
            "relative positions forgotten": without(position="none"),
            "convolution forgotten": without(kernel_size=0),
            "multiply-adds": lambda config, time: counted(config, time) / 2,
            "backward too": lambda config, time: 3 * counted(config, time),
            "of one character": lambda config, time: counted(config, time) / time,
            "output layer forgotten": lambda config, time: counted(config, time) - 2 * time * config.d_model * config.vocabulary,
            "a projection forgotten": lambda config, time: counted(config, time) - 2 * config.layers * time * config.d_model**2,
            "nothing": lambda config, time: None,
        },
    ),
    exercises.check_interval: (
        [interval, by_formula, lambda x, t: iter(interval(x, t)), lambda x, t: torch.tensor(interval(x, t))],
        {
            "divided by n": lambda x, t: interval(x, t * ((len(x) - 1) / len(x)) ** 0.5),
            "around the median": lambda x, t: tuple(
                end + statistics.median_low(x) - statistics.mean(x) for end in interval(x, t)
            ),
            "of one run, not of the mean": lambda x, t: interval(x, t * len(x) ** 0.5),
            "by n, not its root": lambda x, t: interval(x, t / len(x) ** 0.5),
            "without t": lambda x, t: interval(x, 1),
            "the variance": lambda x, t: interval(x, t * statistics.stdev(x)),
            "ends exchanged": lambda x, t: interval(x, -t),
            "around 0": lambda x, t: [end - statistics.mean(x) for end in interval(x, t)],
            "the half width": lambda x, t: interval(x, t)[1] - statistics.mean(x),
            "three numbers": lambda x, t: (*interval(x, t), 0.0),
        },
    ),
    exercises.check_noise: (
        [noise, noise_by_means, noise_in_place],
        {
            "over all runs": lambda t: noise(t) * (degrees(t) / np.size(t)) ** 0.5,
            "the seeds left in": lambda t: (np.var(t, axis=1).sum() / degrees(t) * len(t[0])) ** 0.5,
            "the choices left in": lambda t: (np.var(t, axis=0).sum() / degrees(t) * len(t)) ** 0.5,
            "squared": lambda t: noise(t) ** 2,
            "of all": lambda t: (np.var(t) * np.size(t) / degrees(t)) ** 0.5,
            "the mean not put back": lambda t: (
                np.square(np.array(t) - np.mean(t, 1, keepdims=True) - np.mean(t, 0)).sum() / degrees(t)
            )
            ** 0.5,
            "one freedom less than runs": lambda t: noise(t) * (degrees(t) / (np.size(t) - 1)) ** 0.5,
            "a table": lambda t: np.array(t),
        },
    ),
    exercises.check_reset: (
        [reset, reset_in_place, lambda c: [e * c[e - 1] - (e - 1) * (c[e - 2] if e > 1 else 0) for e in range(1, len(c) + 1)]],
        {
            "the counter itself": lambda c: c,
            "differences of the counter": lambda c: [b - a for a, b in itertools.pairwise([0, *c])],
            "one epoch late": lambda c: reset(c)[1:],
            "sums": lambda c: [n * x for n, x in enumerate(c, 1)],
            "averaged again": lambda c: [sum(c[: n + 1]) / (n + 1) for n in range(len(c))],
            "epochs from 0": lambda c: [c[0], *(b - a for a, b in itertools.pairwise(n * x for n, x in enumerate(c)))],
            "one number": lambda c: c[0],
        },
    ),
}  # fmt: skip

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
    messages = {name: refused(check, answer) for name, answer in wrong.items()}
    twins = {name for name, said in messages.items() if [*messages.values()].count(said) > 1}
    assert not twins


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_an_unfinished_answer_is_told_so(check):
    assert "returned nothing" in refused(check, lambda *_: None)


def failing(*_):
    raise KeyError("my own fault")


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_an_error_of_the_reader_s_becomes_a_message_with_what_was_given(check):
    said = refused(check, failing)
    assert "KeyError: 'my own fault'" in said
    assert "It was given" in said


@pytest.mark.parametrize(
    "odd",
    [
        lambda *_: torch.tensor(1j),
        lambda *_: torch.zeros(2, 3, 4, 5),
        lambda *_: "words",
        lambda *_: object(),
        lambda *_: torch.full((4, 4), torch.nan),
        lambda *_: torch.zeros(3, device="meta"),
        lambda *_: {1: torch.zeros(2)},
        lambda *_: [[], []],
        lambda: 1,
        7,
        None,
    ],
)
@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_an_odd_answer_gets_a_message(check, odd, unchecked):
    assert refused(check, odd)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("check_weights: no root", "not divided by √d"),
        ("check_weights: masked after the softmax", "no longer sum to 1"),
        ("check_weights: keys ask", "Rows ask as keys"),
        ("check_convolution: padded on the right", "found [123, 234, 340, 400]"),
        ("check_convolution: round in a ring", "ring"),
        ("check_shift: one off", "row 0, column 0 must hold distance 0"),
        ("check_shift: the input spoilt", "you have 0"),
        ("check_factors: the wrong sign", "wrong sign"),
        ("check_factors: twice", "2 times what it should be"),
        ("check_squared_relu: cut off at 3", "no upper end"),
        ("check_bigram: the first successor", "2 times"),
        ("check_flops: convolution forgotten", "convolution is missing"),
        ("check_interval: divided by n", "n − 1"),
        ("check_causal: the batch mixed", "text of the batch"),
    ],
)
def test_a_slip_is_named(name, said):
    assert said in refused(*WRONG[name])


def test_without_copies_a_spoilt_input_would_pass(monkeypatch):
    """What ``asked`` hands out must be copies: else zeros are compared with zeros."""
    check, answer = WRONG["check_shift: the input spoilt"]
    assert refused(check, answer)
    monkeypatch.setattr(_telling, "copied", lambda value: value)
    assert check(answer).startswith("Right")


def test_without_asserts_the_same_is_refused():
    """``python -O`` leaves asserts out; no check may lean on one."""
    code = (
        "from rcmha_lite import exercises as e\n"
        "assert False\n"
        "for name in [n for n in dir(e) if n.startswith('check_') and n != 'check_flops']:\n"
        "    for odd in (lambda *_: 1, lambda x, *_: x[:1]):\n"
        "        try:\n"
        "            getattr(e, name)(odd)\n"
        "        except AssertionError:\n"
        "            continue\n"
        "        print(name)\n"
        "print('done')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stdout + run.stderr
