"""Relative encodings against their index formulas, and absolute ones against theirs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcmha_lite import exercises
from rcmha_lite.positions import (
    AbsolutePosition,
    LearnedRelativePosition,
    SinusoidalRelativePosition,
    factorise,
    scores_by_index,
    shift,
    shift_by_index,
    sinusoids,
)


def random_parameters(module):
    with torch.no_grad():
        for n, parameter in enumerate(module.double().parameters()):
            parameter.copy_(exercises.random(*parameter.shape, seed=n))
    return module


def explicit_scores(q, k, score):
    """score(b, h, i, j, δ) over every pair that causal attention meets; zero elsewhere."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    out = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(keys - queries + i + 1):
                    out[b, h, i, j] = score(b, h, i, j, keys - queries + i - j)
    return out


def scores(module, q, k):
    bias = module.bias(q, k.shape[2])
    found = module.queries(q, k.shape[2] - q.shape[2]) @ module.keys(k, 0).transpose(-1, -2)
    found = found + (0 if bias is None else bias)
    return found.tril(found.shape[3] - found.shape[2])


shapes = given(queries=st.integers(1, 4), past=st.integers(0, 4))
few = settings(max_examples=8, deadline=None)


@shapes
@few
def test_learned_equals_the_index_formula(queries, past):
    module = random_parameters(LearnedRelativePosition(2, 3, distances=8))
    q, k = exercises.random(1, 2, queries, 3, seed=7), exercises.random(1, 2, queries + past, 3, seed=8)
    u, r, s = module.content_bias, module.embedding, module.table_bias

    def score(b, h, i, j, delta):
        return (q[b, h, i] + u[h]) @ k[b, h, j] + q[b, h, i] @ r[delta, h] + s[delta, h]

    torch.testing.assert_close(scores(module, q, k), explicit_scores(q, k, score), rtol=0, atol=1e-10)


@shapes
@few
def test_sinusoidal_equals_the_four_terms(queries, past):
    module = random_parameters(SinusoidalRelativePosition(2, 3, 6))
    q, k = exercises.random(1, 2, queries, 3, seed=7), exercises.random(1, 2, queries + past, 3, seed=8)
    u, v, w = module.content_bias, module.position_bias, module.projection.unflatten(0, (2, 3))

    def score(b, h, i, j, delta):
        r = w[h] @ sinusoids(torch.tensor([float(delta)]), 6)[0]
        return q[b, h, i] @ k[b, h, j] + q[b, h, i] @ r + u[h] @ k[b, h, j] + v[h] @ r

    torch.testing.assert_close(scores(module, q, k), explicit_scores(q, k, score), rtol=0, atol=1e-10)


def test_long_sequences_stay_exact():
    """At position 4096 float32 angles would be off by 2e-4; ours are formed in float64."""
    exact = [math.sin(4096.0), math.sin(4096 / 100), math.cos(4096.0), math.cos(4096 / 100)]
    torch.testing.assert_close(sinusoids(torch.tensor([4096.0]), 4)[0], torch.tensor(exact, dtype=torch.float64))


@pytest.mark.parametrize("way", [shift, shift_by_index])
def test_shift(way):
    exercises.check_shift(way)


@given(queries=st.integers(1, 9), past=st.integers(0, 9), d=st.sampled_from([2, 6, 16]))
@settings(max_examples=25, deadline=None)
def test_three_ways_and_none_agree_forward_and_backward(queries, past, d):
    """Index, gathered shift, padded shift and factorisation: the same scores and the same gradients."""
    keys = past + queries
    a = exercises.random(2, 3, queries, d).requires_grad_()
    waves = sinusoids(torch.arange(keys), d)
    ways = {
        "index": lambda: scores_by_index(a, waves),
        "gathered shift": lambda: shift_by_index(a @ waves.T),
        "padded shift": lambda: shift(a @ waves.T),
        "factorised": lambda: factorise(a, waves[past:]) @ waves.T,
    }
    cotangent = exercises.random(2, 3, queries, keys, seed=1).tril(past)
    expected, gradient = None, None
    for way, compute in ways.items():
        found = compute().tril(past)
        (slope,) = torch.autograd.grad((found * cotangent).sum(), a)
        expected, gradient = (found, slope) if expected is None else (expected, gradient)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=way)
        torch.testing.assert_close(slope, gradient, rtol=0, atol=1e-10, msg=way)


def test_table_rows_beyond_the_longest_distance_get_no_gradient():
    module = random_parameters(LearnedRelativePosition(2, 3, distances=9))
    scores(module, exercises.random(1, 2, 4, 3), exercises.random(1, 2, 6, 3)).sum().backward()
    assert module.embedding.grad[:6].abs().sum(dim=(1, 2)).min() > 0
    assert not module.embedding.grad[6:].any()
    assert not module.table_bias.grad[6:].any()


def test_absolute_sinusoids_are_those_of_the_paper():
    x = torch.zeros(1, 5, 8, dtype=torch.float64)
    y = AbsolutePosition(8)(x, start=3)
    for t in range(5):
        for m in range(4):
            angle = (3 + t) / 10_000 ** (2 * m / 8)
            assert y[0, t, m].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert y[0, t, 4 + m].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_learned_absolute_table_ends():
    module = random_parameters(AbsolutePosition(8, learned=True, length=6))
    x = torch.zeros(1, 4, 8, dtype=torch.float64)
    assert torch.equal(module(x, start=2)[0], module.table[2:6])
    with pytest.raises(IndexError, match="position 6 lies outside a learned table of 6 positions"):
        module(x, start=3)


def test_odd_width_is_refused():
    for width in (7, 0, -2):
        with pytest.raises(ValueError, match=f"{width} channels .* give an even number, 2 or more"):
            SinusoidalRelativePosition(2, 4, width)
    with pytest.raises(ValueError, match="7 channels"):
        AbsolutePosition(7)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="a table of 0 distances"):
        LearnedRelativePosition(2, 4, 0)
