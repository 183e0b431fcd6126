"""Relative encodings against their index formulas, and absolute ones against theirs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcmha_lite import attention, exercises
from rcmha_lite.positions import (
    AbsolutePosition,
    AlibiPosition,
    LearnedRelativePosition,
    RotaryPosition,
    SinusoidalRelativePosition,
    alibi_slopes,
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


def called(module, q, k, start=0):
    """``scores`` of a module that is called, the first key at ``start``."""
    q, k, bias = module(q, k, start)
    found = q @ k.transpose(-1, -2) + (0 if bias is None else bias)
    return found.tril(found.shape[3] - found.shape[2])


def turned(x, position, base=10_000.0):
    """R_p x of one vector, by complex numbers: (x_m + i·x_{m + d/2})·exp(i·p·ω_m)."""
    half = len(x) // 2
    omega = torch.tensor([base ** (-2 * m / len(x)) for m in range(half)], dtype=torch.float64)
    z = torch.complex(x[:half], x[half:]) * torch.exp(1j * position * omega)
    return torch.cat((z.real, z.imag))


@given(
    queries=st.integers(1, 4),
    past=st.integers(0, 4),
    heads=st.integers(1, 3),
    d=st.sampled_from([2, 4, 10]),
    start=st.sampled_from([0, 1, 999]),
)
@settings(max_examples=20, deadline=None)
def test_rotary_equals_complex_numbers(queries, past, heads, d, start):
    """Every vector turned by its own position, and every score by q_i·R_{j − i} k_j."""
    module = RotaryPosition(heads, d)
    q, k = exercises.random(2, heads, queries, d, seed=7), exercises.random(2, heads, queries + past, d, seed=8)
    found_q, found_k, bias = module(q, k, start)
    assert bias is None
    for j in range(queries + past):
        expected = torch.stack([torch.stack([turned(x, start + j) for x in row]) for row in k[:, :, j]])
        torch.testing.assert_close(found_k[:, :, j], expected, rtol=0, atol=1e-10)
    for i in range(queries):
        expected = torch.stack([torch.stack([turned(x, start + past + i) for x in row]) for row in q[:, :, i]])
        torch.testing.assert_close(found_q[:, :, i], expected, rtol=0, atol=1e-10)

    def score(b, h, i, j, delta):
        return q[b, h, i] @ turned(k[b, h, j], -delta)

    torch.testing.assert_close(called(module, q, k, start), explicit_scores(q, k, score), rtol=0, atol=1e-10)


def test_rotary_by_hand():
    """One pair: angles 0, 1 and 2. Two pairs: channel 1 belongs with channel 3, and turns by base^(−1/2) a position."""
    ones = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 3, 2)
    found = RotaryPosition(1, 2)(ones, ones)[1][0, 0]
    for p in range(3):
        assert found[p].tolist() == pytest.approx([math.cos(p), math.sin(p)], abs=1e-15)
    x = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(1, 1, 2, 4)
    assert RotaryPosition(1, 4)(x, x)[1][0, 0, 1].tolist() == pytest.approx([0, math.cos(0.01), 0, math.sin(0.01)])
    assert RotaryPosition(1, 4, base=16.0)(x, x)[1][0, 0, 1].tolist() == pytest.approx(
        [0, math.cos(0.25), 0, math.sin(0.25)]
    )


@given(past=st.integers(0, 5), start=st.integers(0, 5000), d=st.sampled_from([2, 8]))
@settings(max_examples=10, deadline=None)
def test_rotary_turns_and_keeps_lengths(past, start, d):
    """Position 0 stays as it is; everywhere the norm of each pair does."""
    module, q, k = RotaryPosition(2, d), exercises.random(1, 2, 3, d), exercises.random(1, 2, 3 + past, d, seed=1)
    assert torch.equal(module(q, k)[1][:, :, 0], k[:, :, 0])
    for before, after in zip((q, k), module(q, k, start), strict=False):
        pairs = [x.unflatten(-1, (2, d // 2)).norm(dim=-2) for x in (before, after)]
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [RotaryPosition, AlibiPosition])
@pytest.mark.parametrize("past", [0, 5])
def test_only_differences_of_positions_count(kind, past):
    module = kind(2, 8)
    q, k = exercises.random(1, 2, 4, 8), exercises.random(1, 2, 4 + past, 8, seed=1)
    torch.testing.assert_close(called(module, q, k, 4096), called(module, q, k), rtol=0, atol=1e-9)
    assert (called(module, q, k) - called(RotaryPosition(2, 8, base=7.0), q, k)).abs().max() > 1e-3


def test_rotary_stays_exact_in_long_texts():
    """In float32, angles at 100 000 would be off by 4e-3: what is left is the rounding of q, k, sines and cosines."""
    q = exercises.random(1, 1, 1, 64).float()
    for start in (4096, 100_000):
        found = RotaryPosition(1, 64)(q, q, start)[0][0, 0, 0]
        torch.testing.assert_close(found.double(), turned(q[0, 0, 0].double(), start), rtol=0, atol=1e-6)
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 4e-3)):
        rough = q.to(dtype)
        found = RotaryPosition(1, 64)(rough, rough, 100_000)[0]
        assert found.dtype == dtype
        expected = turned(rough[0, 0, 0].double(), 100_000)
        torch.testing.assert_close(found[0, 0, 0].double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [RotaryPosition, AlibiPosition])
def test_gradients_are_those_of_the_formula(kind):
    module = kind(2, 4)
    inputs = [exercises.random(1, 2, n, 4, seed=n).requires_grad_() for n in (3, 5)]
    assert torch.autograd.gradcheck(lambda q, k: called(module, q, k, 11), inputs)
    assert not list(module.parameters())
    assert not module.state_dict()


def test_rotary_needs_pairs():
    for width in (1, 7):
        with pytest.raises(ValueError, match=f"{width} channels .* give an even number, 2 or more"):
            RotaryPosition(2, width)


@shapes
@few
def test_alibi_equals_the_index_formula(queries, past):
    """score / √d_head = q·k / √d_head − m·(i − j), with cached keys before the given ones or not."""
    module, (a, b) = AlibiPosition(2, 3), (1 / 16, 1 / 256)
    q, k = exercises.random(2, 2, queries, 3, seed=7), exercises.random(2, 2, queries + past, 3, seed=8)

    def score(batch, h, i, j, delta):
        return q[batch, h, i] @ k[batch, h, j] / 3**0.5 - (a, b)[h] * delta

    expected = explicit_scores(q, k, score)
    torch.testing.assert_close(called(module, q, k) / 3**0.5, expected, rtol=0, atol=1e-12)
    found_q, found_k, bias = module(q, k[:, :, past:], past, past)
    assert found_q is q
    assert torch.equal(found_k, k[:, :, past:])
    assert bias.shape == (1, 2, queries, past + queries)  # once for the whole batch
    assert torch.equal(bias, module(q, k)[2])


def test_alibi_slopes_are_those_of_the_public_code():
    """For 8 heads 1/2 … 1/256; for 3, 6 and 12 as its ``get_slopes`` gives them; one head, one slope."""
    root = 2**-0.5
    by_hand = {
        1: [2**-8],
        2: [2**-4, 2**-8],
        3: [2**-4, 2**-8, 2**-2],
        4: [2**-2, 2**-4, 2**-6, 2**-8],
        6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
        8: [2**-n for n in range(1, 9)],
        12: [*(2**-n for n in range(1, 9)), root, root / 2, root / 4, root / 8],
    }
    for heads, expected in by_hand.items():
        found = alibi_slopes(heads)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(expected, rel=1e-15)
    assert len(alibi_slopes(16)) == len(set(alibi_slopes(16).tolist())) == 16


@pytest.mark.parametrize("past", [0, 6])
def test_alibi_lets_no_query_see_what_follows(past):
    """Where j > i its bias rewards; the mask must win, in both ways of computing attention, in every precision."""
    module = AlibiPosition(4, 4)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        q, k, v = (exercises.random(2, 4, n, 4, seed=s).to(dtype) for s, n in enumerate((6, 6 + past, 6 + past)))
        q, k, bias = module(q, k)
        weights = attention.attention_weights(q, k, bias, scale=0.5)
        assert not weights.triu(past + 1).any()
        fused = attention.fused_attention(q, k, v, bias, scale=0.5)
        later = v.clone()
        later[:, :, past + 4 :] = 100.0
        assert torch.equal(attention.fused_attention(q, k, later, bias, scale=0.5)[:, :, :4], fused[:, :, :4])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("heads", [6, 8])
def test_alibi_in_both_ways_and_every_precision(dtype, tolerance, heads):
    """Plain and fused attention against float64, over 300 keys; a bias in float16 may reach −∞, and gives no NaN."""
    module, time = AlibiPosition(heads, 16), 300
    q, k, v = (exercises.random(2, heads, time, 16, seed=s).to(dtype) for s in range(3))
    exact = attention.attention(q.double(), k.double(), v.double(), module(q.double(), k.double())[2], scale=0.25)
    q, k, bias = module(q, k)
    assert bias.dtype == dtype
    for way in (attention.attention, attention.fused_attention):
        found = way(q, k, v, bias, scale=0.25)
        assert (found.double() - exact).norm() < tolerance * exact.norm(), way.__name__
    weights = attention.attention_weights(q, k, bias, scale=0.25)
    torch.testing.assert_close(
        weights @ v, attention.fused_attention(q, k, v, bias, scale=0.25), rtol=0, atol=tolerance * 4
    )
    far = torch.zeros(1, heads, 1, 16, dtype=dtype)
    many = torch.zeros(1, heads, 70_000, 16, dtype=dtype)
    assert attention.attention_weights(far, many, module(far, many)[2], scale=0.25).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_alibi_slopes_keep_their_precision(dtype):
    """Each number of the bias is rounded once, though neither √3 nor half the slopes of 12 heads are round."""
    module, q = AlibiPosition(12, 3), torch.zeros(1, 12, 1, 3, dtype=dtype)
    found, exact = (module(x, x.expand(1, 12, 200, 3))[2] for x in (q, q.double()))
    assert ((found.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * 1.001 * exact.abs()).all()


def test_alibi_copies_nothing_from_the_cpu():
    """Where the queries are, everything is made: on the meta device a tensor of the CPU would be refused, or be seen."""
    made = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            made.extend(
                x.device.type for x in (found if isinstance(found, tuple) else (found,)) if hasattr(x, "device")
            )
            return found

    part = AlibiPosition(12, 8)
    with Seen():
        bias = part.bias(torch.empty(1, 12, 3, 8, device="meta"), 5)
    assert bias.shape == (1, 12, 3, 5)
    assert set(made) == {"meta"}
