"""The checks of heads, of the four terms and of the memory accept right answers and refuse the usual wrong ones."""

import numpy as np
import pytest
import torch

from rcmha_lite import exercises


def check_heads(answer):
    """One answer is a pair, split and merge."""
    return exercises.check_heads(*(answer if isinstance(answer, tuple) else (answer, answer)))


def split(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def merge(y):
    return y.transpose(1, 2).flatten(2)


def split_by_view(x, n):
    b, t, c = x.shape
    return x.view(b, t, n, c // n).permute(0, 2, 1, 3)


def merge_by_view(y):
    b, h, t, d = y.shape
    return y.transpose(1, 2).contiguous().view(b, t, h * d)


def merge_in_place(y):
    out = torch.cat([*y.unbind(1)], dim=-1)
    y.zero_()
    return out


def terms(q, k, r, w, u, v):
    return q @ k, q @ (w @ r), u @ k, v @ (w @ r)


def terms_by_sums(q, k, r, w, u, v):
    r = [sum(w[c, n] * r[n] for n in range(len(r))) for c in range(len(q))]
    pairs = ((q, k), (q, r), (u, k), (v, r))
    return [sum(a * b for a, b in zip(*pair, strict=True)).item() for pair in pairs]


def terms_as_array(q, k, r, w, u, v):
    distance = torch.einsum("dp,p->d", w, r)
    left, right = torch.stack((q, q, u, v)), torch.stack((k, distance, k, distance))
    return (left * right).sum(1)


def terms_in_place(q, k, r, w, u, v):
    r = w.mm(r[:, None])[:, 0]
    last = v.mul_(r).sum()
    return np.array([float(q.dot(k)), float(q.dot(r)), float(u.mul_(k).sum()), float(last)])


def remember(memory, x, n):
    return torch.cat((memory, x))[-n:].detach()


def remember_by_count(memory, x, n):
    with torch.no_grad():
        rows = [*memory, *x]
        return torch.stack(rows[max(0, len(rows) - n) :])


def remember_in_place(memory, x, n):
    rows = x.detach().new_empty(len(memory) + len(x), x.shape[1])
    rows[: len(memory)] = memory
    rows[len(memory) :] = x.data
    memory.zero_()
    return rows[-n:]


def remember_in_float32(memory, x, n):
    return torch.cat((memory, x)).detach().float()[-n:]


# For each check: right answers, written differently, and plausible wrong ones.
ANSWERS = {
    check_heads: (
        [
            (split, merge),
            (split_by_view, merge_by_view),
            (lambda x, n: torch.stack(x.chunk(n, dim=2), dim=1), merge_in_place),
            (lambda x, n: torch.stack(x.float().chunk(n, dim=2), dim=1), lambda y: torch.cat([*y.unbind(1)], dim=2)),
        ],
        {
            "positions mixed with heads": (lambda x, n: x.view(len(x), n, x.shape[1], -1), merge),
            "channels dealt out in turn": (lambda x, n: x.unflatten(-1, (-1, n)).permute(0, 3, 1, 2), merge),
            "heads reversed": (lambda x, n: split(x, n).flip(1), merge),
            "no transposition": (lambda x, n: x.unflatten(-1, (n, -1)), merge),
            "not split": (lambda x, n: x, merge),
            "heads and width exchanged": (lambda x, n: split(x, n).transpose(1, 3), merge),
            "the first head for all": (lambda x, n: split(x, n)[:, :1].expand(-1, n, -1, -1), merge),
            "merged without a transposition": (split, lambda y: y.reshape(len(y), y.shape[2], -1)),
            "merged by turns": (split, lambda y: y.permute(0, 2, 3, 1).flatten(2)),
            "merged in reverse order": (split, lambda y: merge(y.flip(1))),
            "a view of what was transposed": (split, lambda y: y.transpose(1, 2).view(len(y), y.shape[2], -1)),
            "heads added": (split, lambda y: y.sum(1)),
            "batch joined": (split, lambda y: merge(y).flatten(0, 1)),
        },
    ),
    exercises.check_terms: (
        [terms, terms_by_sums, terms_as_array, terms_in_place, lambda *a: terms(*(x.float() for x in a))],
        {
            "u and v exchanged": lambda q, k, r, w, u, v: terms(q, k, r, w, v, u),
            "u twice": lambda q, k, r, w, u, v: terms(q, k, r, w, u, u),
            "v twice": lambda q, k, r, w, u, v: terms(q, k, r, w, v, v),
            "u with v": lambda q, k, r, w, u, v: (*terms(q, k, r, w, u, v)[:3], u @ v),
            "middle terms exchanged": lambda q, k, r, w, u, v: [terms(q, k, r, w, u, v)[n] for n in (0, 2, 1, 3)],
            "(q + v)·Wr": lambda q, k, r, w, u, v: (q @ k, (q + v) @ w @ r, u @ k, v @ w @ r),
            "(q + u)·k": lambda q, k, r, w, u, v: ((q + u) @ k, q @ w @ r, u @ k, v @ w @ r),
            "the key asks": lambda q, k, r, w, u, v: (q @ k, k @ w @ r, u @ k, v @ w @ r),
            "W transposed": lambda q, k, r, w, u, v: terms(q, k, r, w.T, u, v),
            "no W": lambda q, k, r, w, u, v: (q @ k, q @ r, u @ k, v @ r),
            "divided by the root": lambda q, k, r, w, u, v: [x / len(q) ** 0.5 for x in terms(q, k, r, w, u, v)],
            "their sum": lambda *given: sum(terms(*given)),
            "two of them": lambda q, k, r, w, u, v: ((q + u) @ k, (q + v) @ w @ r),
            "the inputs spoilt": lambda q, k, r, w, u, v: terms(*(x.zero_() for x in (q, k, r, w, u, v))),
        },
    ),
    exercises.check_memory: (
        [remember, remember_by_count, remember_in_place, remember_in_float32],
        {
            "the segment alone": lambda memory, x, n: x[-n:].detach(),
            "the memory as it was": lambda memory, x, n: memory[-n:],
            "the first": lambda memory, x, n: torch.cat((memory, x))[:n].detach(),
            "everything": lambda memory, x, n: torch.cat((memory, x)).detach(),
            "the other way round": lambda memory, x, n: torch.cat((x, memory))[-n:].detach(),
            "latest first": lambda memory, x, n: remember(memory, x, n).flip(0),
            "one too many": lambda memory, x, n: remember(memory, x, n + 1),
            "all but the last": lambda memory, x, n: torch.cat((memory, x))[:-1][-n:].detach(),
            "with gradients": lambda memory, x, n: torch.cat((memory, x))[-n:],
            "the memory detached alone": lambda memory, x, n: torch.cat((memory.detach(), x))[-n:],
            "joined along the channels": lambda memory, x, n: torch.cat((memory[: len(x)], x), dim=1).detach(),
            "averaged": lambda memory, x, n: remember(memory, x, n).mean(0, keepdim=True).expand(n, -1),
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


@by_name
def test_every_check_has_its_answers_and_tells_the_wrong_ones_apart(check):
    right, wrong = ANSWERS[check]
    assert len(right) >= 3
    assert len(wrong) >= 5
    messages = {name: refused(check, answer) for name, answer in wrong.items()}
    assert all(len(said) > 20 for said in messages.values())
    said = [*messages.values()]
    twins = {name for name, one in messages.items() if said.count(one) > 1}
    assert not twins - {"with gradients", "the memory detached alone"}


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
        lambda *_: (..., ..., ..., ...),
        lambda *_: float("nan"),
        lambda *_: torch.full((4, 4), torch.nan),
        lambda *_: torch.zeros(3, device="meta"),
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
        ("check_heads: positions mixed with heads", "cut the channels first"),
        ("check_heads: channels dealt out in turn", "different heads"),
        ("check_heads: heads reversed", "reverse order"),
        ("check_heads: merged without a transposition", "bring time before the heads"),
        ("check_heads: merged by turns", "alternate"),
        ("check_heads: a view of what was transposed", "flatten and reshape copy"),
        ("check_terms: u and v exchanged", "exchanged"),
        ("check_terms: u twice", "u stands where v should"),
        ("check_terms: W transposed", "maps the distance"),
        ("check_terms: no W", "W is missing"),
        ("check_terms: divided by the root", "times what it should be"),
        ("check_terms: two of them", "4 numbers"),
        ("check_memory: the segment alone", "lost"),
        ("check_memory: the first", "not the last"),
        ("check_memory: everything", "Nothing was cut off"),
        ("check_memory: the other way round", "before the old"),
        ("check_memory: with gradients", "detach"),
        ("check_memory: one too many", "One position too many"),
    ],
)
def test_a_slip_is_named(name, said):
    assert said in refused(*WRONG[name])
