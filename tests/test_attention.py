"""Attention against PyTorch's own, against explicit formulas, and the properties of every cell of the grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rcmha_lite import attention, exercises, positions
from rcmha_lite.attention import (
    AttentionCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    fused_attention,
    mdha,
    mha,
    rcmha,
    rmha,
)
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.positions import (
    AlibiPosition,
    LearnedRelativePosition,
    RotaryPosition,
    SinusoidalRelativePosition,
    factorise,
    shift,
    sinusoids,
)

CELLS = {
    "mha": lambda: mha(16, 4),
    "mdha": lambda: mdha(16, 4),
    "rmha sinusoidal": lambda: rmha(16, 4),
    "rmha learned": lambda: rmha(16, 4, distances=32),
    "rcmha sinusoidal": lambda: rcmha(16, 4),
    "rcmha learned": lambda: rcmha(16, 4, distances=32),
    "rcmha kernel 9": lambda: rcmha(16, 4, kernel_size=9),
    "rope": lambda: MultiHeadAttention(16, 4, position=RotaryPosition(4, 4)),
    "rope convolved": lambda: MultiHeadAttention(
        16, 4, position=RotaryPosition(4, 4), convolution=HeadConvolution(4, 4)
    ),
    "alibi": lambda: MultiHeadAttention(16, 4, position=AlibiPosition(4, 4)),
    "alibi convolved": lambda: MultiHeadAttention(
        16, 4, position=AlibiPosition(4, 4), convolution=HeadConvolution(4, 4)
    ),
}


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with every parameter random, so that no zero hides a term."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return module


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(params=CELLS)
def cell(request) -> MultiHeadAttention:
    return scrambled(CELLS[request.param]())


def test_small_integers_by_hand():
    """Two positions, width one: the second weighs keys 0 and ln 3 as 1 : 3."""
    q = torch.ones(1, 1, 2, 1)
    k = torch.tensor([1.0, 3.0]).log()[None, None, :, None]
    v = torch.tensor([4.0, 8.0])[None, None, :, None]
    close(attention_weights(q, k)[0, 0], torch.tensor([[1.0, 0.0], [0.25, 0.75]]), 1e-6)
    close(attention.attention(q, k, v).flatten(), torch.tensor([4.0, 7.0]), 1e-6)


@pytest.mark.parametrize("time", [1, 2, 17])
def test_equals_torch_multihead_attention(time):
    ours, theirs = scrambled(mha(16, 4)), nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    x = exercises.random(3, time, 16)
    mask = ~attention.causal_mask(time, time)
    y, weights = theirs(x, x, x, attn_mask=mask, average_attn_weights=False)
    close(ours(x), y)
    close(ours.weights(x), weights)


@given(queries=st.integers(1, 9), past=st.integers(0, 9), width=st.integers(4, 7), biased=st.booleans())
@settings(max_examples=30, deadline=None)
def test_fused_equals_plain_forward_and_backward(queries, past, width, biased):
    q, k, v = (
        exercises.random(2, 3, n, w, seed=s).requires_grad_()
        for s, (n, w) in enumerate([(queries, width), (queries + past, width), (queries + past, 4)])
    )
    bias = exercises.random(2, 3, queries, queries + past, seed=4).requires_grad_() if biased else None
    inputs = [t for t in (q, k, v, bias) if t is not None]
    results = []
    for function in (attention.attention, fused_attention):
        y = function(q, k, v, bias, scale=0.3)
        results.append((y, *torch.autograd.grad((y * exercises.random(*y.shape, seed=5)).sum(), inputs)))
    for plain, fused in zip(*results, strict=True):
        close(fused, plain)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 8), (1, 6), (513, 513)])
def test_fused_bfloat16_is_close_forward_and_backward(queries, keys):
    """Below and above the length at which the fast way changes; within 2 % of the largest element."""
    shapes = (queries, 8), (keys, 8), (keys, 4)
    exact = [exercises.random(1, 2, *shape, seed=s).requires_grad_() for s, shape in enumerate(shapes)]
    rough = [t.detach().bfloat16().requires_grad_() for t in exact]
    outputs = attention.attention(*exact, scale=0.3), fused_attention(*rough, scale=0.3)
    gradients = [torch.autograd.grad(y.square().sum(), t) for y, t in zip(outputs, (exact, rough), strict=True)]
    for a, b in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        assert (a - b.double()).abs().max() < 0.02 * a.abs().max()


@pytest.mark.parametrize("time", [16, 256, 2048])
def test_bfloat16_relative_attention_is_within_one_per_cent(time):
    """Outputs and gradients against the explicit shift in float64, from the same inputs; relative in norm."""
    rough = [exercises.random(1, 2, time, 32, seed=s).bfloat16().requires_grad_() for s in range(4)]
    exact = [t.detach().double().requires_grad_() for t in rough]
    waves, upstream = sinusoids(torch.arange(time), 32), exercises.random(1, 2, time, 32, seed=9)
    q, k, v, a = exact
    expected = attention.attention(q, k, v, shift(a @ waves.T), scale=0.2)
    q, k, v, a = rough
    waves = waves.bfloat16()
    q, k = torch.cat((q, factorise(a, waves)), dim=-1), torch.cat((k, waves.expand_as(k)), dim=-1)
    found = fused_attention(q, k, v, scale=0.2)
    gradients = torch.autograd.grad(expected, exact, upstream), torch.autograd.grad(found, rough, upstream.bfloat16())
    for right, close in zip((expected, *gradients[0]), (found, *gradients[1]), strict=True):
        assert (close.double() - right).norm() < 0.01 * right.norm()


def test_scaled_dot_product_attention_agrees():
    q, k, v = (exercises.random(2, 3, 8, 4, seed=s) for s in range(3))
    close(attention.attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("past", [0, 7])
def test_causality(cell, past):
    memory = exercises.random(2, past, 16, seed=9) if past else None
    exercises.check_causal(lambda x: cell(x, memory))


def test_every_query_sees_all_of_memory(cell):
    x, memory = exercises.random(1, 4, 16), exercises.random(1, 6, 16, seed=1)
    weights = cell.weights(x, memory)
    assert weights.shape == (1, 4, 4, 10)
    close(weights.sum(-1), torch.ones(1, 4, 4, dtype=torch.float64))
    assert (weights[..., :7] > 0).all()
    assert (weights[0, :, 0, 7:] == 0).all()


@given(time=st.integers(1, 12), shared=st.booleans(), kernel=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_identity_kernel_makes_mdha_mha(time, shared, kernel):
    plain = scrambled(mha(16, 4))
    module = MultiHeadAttention(16, 4, convolution=HeadConvolution(4, 4, kernel, shared=shared)).double()
    module.load_state_dict(plain.state_dict(), strict=False)
    x = exercises.random(2, time, 16)
    close(module(x), plain(x))


@pytest.mark.parametrize("distances", [None, 12])
def test_zeroed_relative_part_makes_rmha_mha(distances):
    plain, module = scrambled(mha(16, 4)), scrambled(rmha(16, 4, distances=distances))
    module.load_state_dict(plain.state_dict(), strict=False)
    x = exercises.random(2, 12, 16)
    assert (module(x) - plain(x)).abs().max() > 1e-3
    with torch.no_grad():
        for parameter in module.position.parameters():
            parameter.zero_()
    close(module(x), plain(x))


@given(past=st.integers(0, 8), time=st.integers(1, 8), shift=st.integers(1, 5000))
@settings(max_examples=20, deadline=None)
def test_positions_enter_only_as_differences(past, time, shift):
    """Keys at shift … shift + past + time − 1 and queries at the last of these score as they do at 0 …"""
    module = scrambled(positions.SinusoidalRelativePosition(4, 4, 6))
    q, k = exercises.random(1, 4, time, 4), exercises.random(1, 4, past + time, 4, seed=1)
    here = module.queries(q, past) @ module.keys(k, 0).transpose(-1, -2)
    there = module.queries(q, shift + past) @ module.keys(k, shift).transpose(-1, -2)
    close(there, here, 1e-8)


@pytest.mark.parametrize("name", CELLS)
def test_memory_and_segment_shifted_together(name):
    """A module's output depends on what it is given, not on how much text came before."""
    module = scrambled(CELLS[name]())
    stream = exercises.random(1, 14, 16)
    whole = module(stream[:, 4:14])
    split = module(stream[:, 9:14], stream[:, 4:9])
    close(split, whole[:, 5:])


def test_fresh_queries_break_the_equality_with_the_whole():
    """RCMHA's public code restarts the query convolution at each segment."""
    module = scrambled(rcmha(16, 4, distances=16))
    stream = exercises.random(1, 10, 16)
    whole = module(stream)[:, 5:]
    close(module(stream[:, 5:], stream[:, :5]), whole)
    module.fresh_queries = True
    difference = (module(stream[:, 5:], stream[:, :5]) - whole).abs().amax(dim=(0, 2))
    assert (difference[:2] > 1e-3).all()
    close(difference[2:], torch.zeros(3, dtype=torch.float64))


def test_errors_say_what_to_do(unchecked):
    with pytest.raises(ValueError, match="d_model 130 is not divisible by n_heads 8"):
        mha(130, 8)
    for heads in (0, -4):
        with pytest.raises(ValueError, match=f"d_model 16 is not divisible by n_heads {heads}"):
            mdha(16, heads)
    with pytest.raises(ValueError, match=r"the input has shape \(9, 16\): give \[batch, time, d_model\]"):
        rcmha(16, 4)(torch.zeros(9, 16))
    with pytest.raises(ValueError, match="limit -1 is negative"):
        AttentionCache(limit=-1)
    with pytest.raises(IndexError, match="12 positions back lies outside a table of 12 distances"):
        rmha(16, 4, distances=12).double()(exercises.random(1, 13, 16))
    with pytest.raises(ValueError, match="distances for a learned table or d_position for sinusoids"):
        rcmha(16, 4, distances=12, d_position=8)
    with pytest.raises(ValueError, match="6 queries of 5 keys"):
        causal_mask(6, 5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"convolution": HeadConvolution(8, 4)},
            "convolution is made for 8 heads of 4 channels, the module has 4 of 8",
        ),
        ({"position": SinusoidalRelativePosition(1, 8, 16)}, "position is made for 1 heads of 8 channels"),
        ({"position": LearnedRelativePosition(4, 4, 16)}, "position is made for 4 heads of 4 channels"),
        ({"position": RotaryPosition(2, 16)}, "position is made for 2 heads of 16 channels"),
        ({"position": AlibiPosition(8, 4)}, "position is made for 8 heads of 4 channels"),
    ],
)
def test_parts_made_for_other_heads_are_refused(part, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(32, 4, **part)


@pytest.mark.parametrize(
    ("x", "memory", "message"),
    [
        (torch.zeros(16), None, r"shape \(16,\): give \[batch, time, d_model\]"),
        (torch.zeros(1, 5, 15), None, r"shape \(1, 5, 15\): give \[batch, time, 16\]"),
        (torch.zeros(1, 5, 16).double(), None, "the input is in torch.float64, the module in torch.float32"),
        (torch.zeros(2, 5, 16), torch.zeros(1, 5, 16), "a memory .* of the input's batch and width"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 5, 15), "a memory .* of the input's batch and width"),
        (torch.zeros(2, 5, 16), torch.zeros(5, 16), "a memory .* of the input's batch and width"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, memory, message, unchecked):
    for ask in (rcmha(16, 4), rcmha(16, 4).weights):
        with pytest.raises(ValueError, match=message):
            ask(x, memory)


@pytest.mark.parametrize("queries", [-1, 11])
@pytest.mark.parametrize("fresh", [False, True])
def test_more_queries_than_positions_are_refused(queries, fresh, unchecked):
    module = rcmha(16, 4)
    module.fresh_queries = fresh
    with pytest.raises(ValueError, match=f"{queries} queries of 10 positions: give a number from 0 to 10"):
        module.attend(torch.zeros(1, 10, 16), queries)


@pytest.mark.parametrize("name", CELLS)
def test_bfloat16_is_close(name):
    """Under autocast, within 2 % of the largest output."""
    module = CELLS[name]()
    x = torch.randn(2, 12, 16)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x)
    assert (rough.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_stream_keeps_no_graph():
    torch.manual_seed(0)
    module, cache = rcmha(16, 2), AttentionCache()
    for _ in range(3):
        module(torch.randn(1, 4, 16), cache=cache)
    assert not cache.history.requires_grad
    assert all(not seen.requires_grad for seen in cache.extend(torch.zeros(1, 2, 1, 40), torch.zeros(1, 2, 1, 8)))


def test_a_refused_piece_leaves_the_stream_as_it_was():
    torch.manual_seed(0)
    module = scrambled(rcmha(16, 2, distances=6))
    text = torch.randn(1, 6, 16, dtype=torch.float64)
    cache = AttentionCache()
    first = module(text[:, :4], cache=cache)
    with pytest.raises(IndexError, match="outside a table of 6 distances"):
        module(torch.randn(1, 3, 16, dtype=torch.float64), cache=cache)
    with pytest.raises(ValueError, match="a piece of batch 3 does not continue a stream of batch 1"):
        module(torch.zeros(3, 1, 16, dtype=torch.float64), cache=cache)
    with pytest.raises(ValueError, match="give one of them"):
        module(text[:, 4:], text[:, :4], cache=cache)
    close(torch.cat((first, module(text[:, 4:], cache=cache)), dim=1), module(text))


def test_no_queries_give_no_outputs(cell):
    """Nor does an empty piece of a stream move anything but nothing."""
    nothing, past = torch.zeros(2, 0, 16, dtype=torch.float64), exercises.random(2, 5, 16)
    assert cell(nothing).shape == cell(nothing, past).shape == (2, 0, 16)
    cache = AttentionCache()
    pieces = [cell(piece, cache=cache) for piece in (past[:, :3], nothing, past[:, 3:])]
    close(torch.cat(pieces, dim=1), cell(past))


def test_values_may_be_wider_than_queries():
    q, k, v = (exercises.random(1, 2, 6, width, seed=width) for width in (4, 4, 9))
    close(fused_attention(q, k, v), attention.attention(q, k, v))


def test_width_of_the_sinusoids_is_its_own_choice():
    assert rcmha(192, 6).position.projection.shape == (192, 32)
    assert rmha(15, 3, d_position=8).position.projection.shape == (15, 8)


def test_a_limited_cache_gives_back_what_a_long_piece_took():
    module, cache = rcmha(16, 2), AttentionCache(limit=15)
    with torch.no_grad():
        for time in (2000, 1):
            module(torch.randn(1, time, 16), cache=cache)
    assert len(cache) == 15
    assert cache._keys.untyped_storage().nbytes() < 40 * cache._keys[:, :, :1].nbytes
    assert cache.history.untyped_storage().nbytes() == cache.history.nbytes


def test_no_mask_is_made_that_nothing_reads(monkeypatch):
    """Over T positions the fused kernel needs none, and one would cost T × T."""

    def refuse(*_):
        raise AssertionError("a mask of queries × keys was made")

    monkeypatch.setattr(attention, "causal_mask", refuse)
    q, k, v = (exercises.random(1, 2, 9, 4, seed=seed) for seed in range(3))
    fused_attention(q, k, v)


def test_a_stream_stays_in_its_precision():
    module, cache = rcmha(16, 2), AttentionCache()
    text = torch.randn(1, 6, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = module(text[:, :4], cache=cache)
        with (
            torch.autocast("cpu", enabled=False),
            pytest.raises(ValueError, match=r"float32 does not continue a stream in torch\.bfloat16"),
        ):
            module(text[:, 4:], cache=cache)
        streamed = torch.cat((first, module(text[:, 4:], cache=cache)), dim=1)
        assert (streamed - module(text)).abs().max() < 0.02 * streamed.abs().max()


@given(cuts=st.sets(st.integers(1, 13)), name=st.sampled_from(["rope", "rope convolved", "alibi", "alibi convolved"]))
@settings(max_examples=20, deadline=None)
def test_rotary_and_alibi_streams_equal_the_whole(cuts, name):
    """Through a cache, fresh queries or not, and from a memory; with fresh queries but for the reach of the kernel."""
    module, text = scrambled(CELLS[name]()), exercises.random(2, 14, 16)
    whole, ends = module(text), [*sorted(cuts), 14]
    for module.fresh_queries in (False, True):
        cache, start, pieces = AttentionCache(), 0, []
        with torch.no_grad():
            for stop in ends:
                pieces.append(module(text[:, start:stop], cache=cache))
                start = stop
        close(torch.cat(pieces, dim=1), whole, 1e-12)
        for cut in cuts:
            found = module(text[:, cut:], text[:, :cut])
            fresh = 2 if module.fresh_queries and module.convolution else 0
            close(found[:, fresh:], whole[:, cut + fresh :], 1e-12)
            assert not fresh or not torch.allclose(found[:, :1], whole[:, cut : cut + 1])


@pytest.mark.parametrize("kind", [RotaryPosition, AlibiPosition])
def test_rotary_and_alibi_are_mha_with_other_scores(kind):
    """No parameter more than MHA has; another output from the second position on, and the same at the first."""
    plain, module = scrambled(mha(16, 4)), scrambled(MultiHeadAttention(16, 4, position=kind(4, 4)))
    assert module.state_dict().keys() == plain.state_dict().keys()
    x = exercises.random(2, 6, 16)
    close(module(x)[:, :1], plain(x)[:, :1])
    assert ((module(x) - plain(x)).abs().amax(dim=(0, 2))[1:] > 1e-4).all()


@pytest.mark.parametrize("kind", [RotaryPosition, AlibiPosition])
def test_rotary_and_alibi_weights_by_their_formulas(kind):
    """The whole module, memory and all, from the projections and the distance of every pair."""
    module = scrambled(MultiHeadAttention(16, 2, position=kind(2, 8)))
    x, memory = exercises.random(1, 3, 16), exercises.random(1, 4, 16, seed=1)
    q, k = module.query(x).view(3, 2, 8), module.key(torch.cat((memory, x), dim=1)).view(7, 2, 8)
    omega = torch.tensor([10_000 ** (-m / 4) for m in range(4)], dtype=torch.float64)
    for head, slope in ((0, 1 / 16), (1, 1 / 256)):
        for i in range(3):
            delta = 4 + i - torch.arange(5 + i, dtype=torch.float64)
            if kind is AlibiPosition:
                scores = k[: 5 + i, head] @ q[i, head] / 8**0.5 - slope * delta
            else:  # Re conj(z_q)·z_k·exp(−iδω), over pairs
                z_q, z_k = (torch.complex(z[..., :4], z[..., 4:]) for z in (q[i, head], k[: 5 + i, head]))
                scores = (z_q.conj() * z_k * torch.exp(-1j * delta[:, None] * omega)).sum(-1).real / 8**0.5
            close(module.weights(x, memory)[0, head, i, : 5 + i], scores.softmax(0), 1e-12)
