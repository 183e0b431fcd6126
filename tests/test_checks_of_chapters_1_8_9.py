"""The checks of windows, baselines, streams and costs accept right answers and refuse the usual wrong ones."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rcmha_lite import exercises
from rcmha_lite.convolution import causal_depthwise_convolution


def window(ids, start, length):
    return ids[start : start + length], ids[start + 1 : start + length + 1]


def window_in_place(ids, start, length):
    inputs = ids[start : start + length].clone()
    ids.copy_(ids.roll(-1))
    return [inputs, ids[start : start + length]]


def window_of_rows(ids, start, length):
    rows = ids.unfold(0, length + 1, 1)[start]
    return rows[:-1].int(), rows[1:].int()


def guess(train, text):
    shares = torch.bincount(train).double() / len(train)
    return -shares[text].log().mean(), (text == shares.argmax()).double().mean()


def guess_by_counter(train, text):
    counts = Counter(train.tolist())
    best = counts.most_common(1)[0][0]
    losses = [math.log(len(train) / counts[x]) for x in text.tolist()]
    return sum(losses) / len(losses), sum(x == best for x in text.tolist()) / len(text)


def guess_by_numpy(train, text):
    shares = np.bincount(train.numpy()) / len(train)
    return np.array([-np.log(shares[text.numpy()]).mean(), (text.numpy() == shares.argmax()).mean()])


def guess_by_torch(train, text):
    logits = torch.bincount(train).double().log()
    return F.cross_entropy(logits.expand(len(text), -1), text), logits.argmax().eq(text).float().mean().item()


def with_loss(change):
    return lambda train, text: (change(train, text), guess(train, text)[1])


def with_accuracy(change):
    return lambda train, text: (guess(train, text)[0], change(train, text))


def shares(train):
    return torch.bincount(train).double() / len(train)


def pieces(x, taps, history):
    rows = torch.cat((history, x))
    y = causal_depthwise_convolution(rows[None], taps)[0, len(history) :]
    return y, rows[len(rows) - len(history) :]


def pieces_by_loop(x, taps, history):
    rows = torch.cat((history, x))
    y = [(rows[t : t + taps.shape[1]] * taps.T).sum(0) for t in range(len(x))]
    return torch.stack(y), rows[len(x) :]


def pieces_by_conv1d(x, taps, history):
    rows = torch.cat((history, x)).T
    return F.conv1d(rows, taps[:, None], groups=len(taps)).T, rows[:, rows.shape[1] - len(history) :].T


def pieces_in_place(x, taps, history):
    rows = torch.cat((history, x))
    for t in range(len(x)):
        x[t] = (rows[t : t + taps.shape[1]] * taps.T).sum(0)
    if len(history):
        history.copy_(rows[-len(history) :])
    return x, history


def with_rows(change):
    return lambda x, taps, history: (change(x, taps, history), pieces(x, taps, history)[1])


def with_history(change):
    return lambda x, taps, history: (pieces(x, taps, history)[0], change(x, taps, history))


def longest(gigabytes, heads, layers):
    return math.isqrt(int(gigabytes * 1e9 / (4 * heads * layers)))


def longest_by_search(gigabytes, heads, layers):
    low, high = 0, 10**6
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if 4 * heads * layers * middle**2 <= gigabytes * 1e9 else (low, middle)
    return low


def product_cost(n, a, b):
    return 2 * n * a * b, 4 * (n * a + a * b + n * b)


def product_by_tensors(n, a, b):
    x, y = torch.zeros(n, a), torch.zeros(a, b)
    return [2 * x.numel() * b, x.nbytes + y.nbytes + (x @ y).nbytes]


def roofline(flops, moved, flop_rate, byte_rate):
    return max(flops / flop_rate, moved / byte_rate)


def cache_bytes(config):
    waves = config.d_position if config.position == "relative-sinusoidal" else 0
    return 4 * config.layers * (2 * config.d_model + waves)


def of_cache(change):
    """``change`` of (layers, channels, sinusoids if any, heads)."""

    def count(config):
        waves = config.d_position * config.position.startswith("relative")
        return change(config.layers, config.d_model, waves, config.n_heads)

    return count


# For each check: right answers, written differently, and plausible wrong ones.
ANSWERS = {
    exercises.check_windows: (
        [window, window_in_place, window_of_rows, lambda ids, s, n: (ids[s:][:n], ids[s + 1 :][:n])],
        {
            "the inputs twice": lambda ids, s, n: (ids[s : s + n], ids[s : s + n]),
            "what came before": lambda ids, s, n: (ids[s : s + n], ids.roll(1)[s : s + n]),
            "two steps on": lambda ids, s, n: (ids[s : s + n], ids.roll(-2)[s : s + n]),
            "the next window": lambda ids, s, n: (ids[s : s + n], ids.roll(-n)[s : s + n]),
            "only the next character": lambda ids, s, n: (ids[s : s + n], ids[s + n]),
            "from the beginning": lambda ids, s, n: (ids[:n], ids[1 : n + 1]),
            "one too many": lambda ids, s, n: (ids[s : s + n + 1], ids[s + 1 : s + n + 2]),
            "targets one short": lambda ids, s, n: (ids[s : s + n], ids[s + 1 : s + n]),
            "targets first": lambda ids, s, n: window(ids, s, n)[::-1],
            "one row": lambda ids, s, n: ids[s : s + n + 1],
            "places": lambda ids, s, n: (torch.arange(s, s + n), torch.arange(s + 1, s + n + 1)),
            "the ids spoilt": lambda ids, s, n: window(ids.zero_(), s, n),
            "lists": lambda ids, s, n: tuple(x.tolist() for x in window(ids, s, n)),
        },
    ),
    exercises.check_constant_guess: (
        [guess, guess_by_counter, guess_by_numpy, guess_by_torch],
        {
            "exchanged": lambda a, b: guess(a, b)[::-1],
            "no sign": with_loss(lambda a, b: -guess(a, b)[0]),
            "in bits": with_loss(lambda a, b: guess(a, b)[0] / math.log(2)),
            "to base 10": with_loss(lambda a, b: guess(a, b)[0] / math.log(10)),
            "summed": with_loss(lambda a, b: guess(a, b)[0] * len(b)),
            "the mean share": with_loss(lambda a, b: shares(a)[b].mean()),
            "the logarithm of the mean": with_loss(lambda a, b: -shares(a)[b].mean().log()),
            "perplexity": with_loss(lambda a, b: guess(a, b)[0].exp()),
            "shares of the text": with_loss(lambda a, b: guess(b, b)[0]),
            "of train": with_loss(lambda a, b: guess(a, a)[0]),
            "equal shares": with_loss(lambda a, b: math.log(len(shares(a)))),
            "the favourite's share": with_accuracy(lambda a, b: shares(a).max()),
            "in percent": with_accuracy(lambda a, b: 100 * guess(a, b)[1]),
            "hits": with_accuracy(lambda a, b: guess(a, b)[1] * len(b)),
            "misses": with_accuracy(lambda a, b: 1 - guess(a, b)[1]),
            "the text's favourite": with_accuracy(lambda a, b: shares(b).max()),
            "the rarest": with_accuracy(lambda a, b: (b == shares(a).argmin()).double().mean()),
            "one number": lambda a, b: guess(a, b)[0],
            "spoilt": lambda a, b: guess(a, b.zero_()),
        },
    ),
    exercises.check_pieces: (
        [pieces, pieces_by_loop, pieces_by_conv1d, pieces_in_place],
        {
            "zeros before each piece": with_rows(lambda x, w, h: pieces(x, w, torch.zeros_like(h))[0]),
            "the history behind": with_rows(lambda x, w, h: pieces_by_loop(torch.cat((x, h))[len(h) :], w, x[: len(h)])[0] if len(x) > len(h) else x),
            "the history reversed": with_rows(lambda x, w, h: pieces(x, w, h.flip(0))[0]),
            "taps reversed": with_rows(lambda x, w, h: pieces(x, w.flip(1), h)[0]),
            "history and piece": with_rows(lambda x, w, h: causal_depthwise_convolution(torch.cat((h, x))[None], w)[0]),
            "the old history": with_history(lambda x, w, h: h),
            "the outputs": with_history(lambda x, w, h: torch.cat((torch.zeros_like(h), pieces(x, w, h)[0]))[len(x) :]),
            "of the piece alone": with_history(lambda x, w, h: x[-len(h) :] if len(h) else x[:0]),
            "all of a piece": with_history(lambda x, w, h: torch.cat((h, x))[-len(h) :]),
            "the first rows": with_history(lambda x, w, h: x[: len(h)]),
            "in reverse order": with_history(lambda x, w, h: pieces(x, w, h)[1].flip(0)),
            "one row too many": with_history(lambda x, w, h: torch.cat((h, x))[-len(h) - 1 :]),
            "zeros": with_history(lambda x, w, h: torch.zeros_like(h)),
            "rows alone": lambda x, w, h: pieces(x, w, h)[0],
            "spoilt": lambda x, w, h: pieces(x.zero_(), w, h.zero_()),
        },
    ),
    exercises.check_longest_text: (
        [longest, longest_by_search, lambda g, h, n: float(longest(g, h, n)), lambda g, h, n: np.floor(np.sqrt(g * 1e9 / 4 / h / n))],
        {
            "rounded up": lambda g, h, n: longest(g, h, n) + 1,
            "not rounded": lambda g, h, n: (g * 1e9 / (4 * h * n)) ** 0.5,
            "numbers for bytes": lambda g, h, n: longest(4 * g, h, n),
            "one head": lambda g, h, n: longest(g, 1, n),
            "one layer": lambda g, h, n: longest(g, h, 1),
            "neither": lambda g, h, n: longest(g, 1, 1),
            "no root": lambda g, h, n: int(g * 1e9 / (4 * h * n)),
            "gibibytes": lambda g, h, n: longest(g * 1.073741824, h, n),
            "the visible half": lambda g, h, n: longest(2 * g, h, n),
            "words": lambda g, h, n: "long",
        },
    ),
    exercises.check_product_cost: (
        [product_cost, product_by_tensors, lambda n, a, b: torch.tensor(product_cost(n, a, b))],
        {
            "multiply-adds": lambda n, a, b: (n * a * b, product_cost(n, a, b)[1]),
            "exchanged": lambda n, a, b: product_cost(n, a, b)[::-1],
            "one addition fewer": lambda n, a, b: (n * b * (2 * a - 1), product_cost(n, a, b)[1]),
            "entries alone": lambda n, a, b: (2 * n * b, product_cost(n, a, b)[1]),
            "backward": lambda n, a, b: (4 * n * a * b, product_cost(n, a, b)[1]),
            "numbers": lambda n, a, b: (2 * n * a * b, n * a + a * b + n * b),
            "reading alone": lambda n, a, b: (2 * n * a * b, 4 * (n * a + a * b)),
            "writing alone": lambda n, a, b: (2 * n * a * b, 4 * n * b),
            "the second left out": lambda n, a, b: (2 * n * a * b, 4 * (n * a + n * b)),
            "the first left out": lambda n, a, b: (2 * n * a * b, 4 * (a * b + n * b)),
            "in float64": lambda n, a, b: (2 * n * a * b, 8 * (n * a + a * b + n * b)),
            "in bfloat16": lambda n, a, b: (2 * n * a * b, 2 * (n * a + a * b + n * b)),
            "one number": lambda n, a, b: 2 * n * a * b,
        },
    ),
    exercises.check_roofline: (
        [
            roofline,
            lambda f, m, fr, br: f / fr if f * br > m * fr else m / br,
            lambda f, m, fr, br: torch.tensor([f / fr, m / br], dtype=torch.float64).max(),
        ],
        {
            "the faster clock": lambda f, m, fr, br: min(f / fr, m / br),
            "added": lambda f, m, fr, br: f / fr + m / br,
            "the mean": lambda f, m, fr, br: (f / fr + m / br) / 2,
            "milliseconds": lambda f, m, fr, br: 1000 * roofline(f, m, fr, br),
            "operations alone": lambda f, m, fr, br: f / fr,
            "bytes alone": lambda f, m, fr, br: m / br,
            "multiplied": lambda f, m, fr, br: max(f * fr, m * br),
            "rates exchanged": lambda f, m, fr, br: max(f / br, m / fr),
            "which one": lambda f, m, fr, br: "bytes",
        },
    ),
    exercises.check_cache_bytes: (
        [cache_bytes, of_cache(lambda n, d, p, h: 4 * n * (d + d + p)), lambda c: torch.tensor(cache_bytes(c))],
        {
            "sinusoids for every head": of_cache(lambda n, d, p, h: 4 * n * (2 * d + h * p)),
            "without sinusoids": of_cache(lambda n, d, p, h: 8 * n * d),
            "always with sinusoids": lambda c: 4 * c.layers * (2 * c.d_model + c.d_position),
            "values with sinusoids": of_cache(lambda n, d, p, h: 8 * n * (d + p)),
            "one layer": of_cache(lambda n, d, p, h: 4 * (2 * d + p)),
            "numbers": of_cache(lambda n, d, p, h: n * (2 * d + p)),
            "keys alone": of_cache(lambda n, d, p, h: 4 * n * (d + p)),
            "for every head": of_cache(lambda n, d, p, h: 4 * n * (2 * d * h + p)),
            "nothing": lambda c: None,
        },
    ),
}  # fmt: skip

RIGHT = [(check, answer) for check, (right, _) in ANSWERS.items() for answer in right]
WRONG = {
    f"{check.__name__}: {name}": (check, answer)
    for check, (_, wrong) in ANSWERS.items()
    for name, answer in wrong.items()
}
by_name = pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)


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


@by_name
def test_every_check_has_its_answers_and_tells_the_wrong_ones_apart(check):
    right, wrong = ANSWERS[check]
    assert len(right) >= 3
    assert len(wrong) >= 5
    messages = {name: refused(check, answer) for name, answer in wrong.items()}
    twins = {name for name, said in messages.items() if [*messages.values()].count(said) > 1}
    assert not twins


@by_name
def test_an_unfinished_answer_is_told_so(check):
    assert "returned nothing" in refused(check, lambda *_: None)


def failing(*_):
    raise KeyError("my own fault")


@by_name
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
        lambda *_: float("nan"),
        lambda *_: (float("nan"), float("inf")),
        lambda *_: (torch.zeros(3, device="meta"), torch.zeros(3, device="meta")),
        lambda *_: {1: torch.zeros(2)},
        lambda *_: [[], []],
        lambda: 1,
        ...,
        7,
        None,
    ],
)
@by_name
def test_an_odd_answer_gets_a_message(check, odd, unchecked):
    assert refused(check, odd)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("check_windows: the inputs twice", "copies"),
        ("check_windows: the next window", "target of its own"),
        ("check_windows: one too many", "4 of them"),
        ("check_constant_guess: in bits", "bits"),
        ("check_constant_guess: shares of the text", "count in train"),
        ("check_constant_guess: exchanged", "each other's place"),
        ("check_constant_guess: in percent", "percent"),
        ("check_pieces: zeros before each piece", "not zeros"),
        ("check_pieces: the outputs", "before the convolution"),
        ("check_pieces: of the piece alone", "old history is still needed"),
        ("check_pieces: all of a piece", "x[-0:]"),
        ("check_longest_text: rounded up", "round down"),
        ("check_longest_text: no root", "take the root"),
        ("check_longest_text: numbers for bytes", "4 bytes"),
        ("check_product_cost: multiply-adds", "two operations"),
        ("check_product_cost: reading alone", "written, too"),
        ("check_roofline: added", "side by side"),
        ("check_roofline: the faster clock", "both pieces"),
        ("check_cache_bytes: sinusoids for every head", "kept once"),
        ("check_cache_bytes: one layer", "one layer"),
    ],
)
def test_a_slip_is_named(name, said):
    assert said in refused(*WRONG[name])
