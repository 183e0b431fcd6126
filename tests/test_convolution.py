"""The causal depth-wise convolution against PyTorch's, and its kernels' layout and starting values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rcmha_lite import exercises
from rcmha_lite.convolution import HeadConvolution, causal_depthwise_convolution


def test_explicit_sum():
    exercises.check_convolution(lambda x, taps: causal_depthwise_convolution(x[None], taps)[0])


@given(time=st.integers(1, 9), channels=st.integers(1, 5), kernel=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_equals_conv1d(time, channels, kernel):
    x, taps = exercises.random(2, time, channels), exercises.random(channels, kernel, seed=1)
    bias = exercises.random(channels, seed=2)
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    expected = F.conv1d(padded, taps[:, None], bias, groups=channels).transpose(1, 2)
    torch.testing.assert_close(causal_depthwise_convolution(x, taps, bias), expected)


@given(past=st.integers(1, 9), time=st.integers(1, 9), kernel=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_history_continues(past, time, kernel):
    x, taps = exercises.random(1, past + time, 3), exercises.random(3, kernel, seed=1)
    whole = causal_depthwise_convolution(x, taps)
    part = causal_depthwise_convolution(x[:, past:], taps, history=x[:, :past])
    torch.testing.assert_close(part, whole[:, past:])


def test_shared_kernels_repeat_over_heads_and_separate_ones_do_not():
    shared, separate = (HeadConvolution(3, 4, init="pytorch"), HeadConvolution(3, 4, shared=False, init="pytorch"))
    assert sum(p.numel() for p in shared.parameters()) == 3 * 4 * (3 + 1)
    assert sum(p.numel() for p in separate.parameters()) == 3 * 3 * 4 * (3 + 1)
    taps = shared.taps("q")[0].unflatten(0, (3, 4))
    assert torch.equal(taps[0], taps[2])
    taps = separate.taps("q")[0].unflatten(0, (3, 4))
    assert not torch.equal(taps[0], taps[2])


def test_unnamed_projections_pass_through():
    module = HeadConvolution(2, 3, projections="kv", init="pytorch")
    x = torch.randn(1, 5, 18)
    y = module(x)
    assert torch.equal(y[..., :6], x[..., :6])
    assert not torch.allclose(y[..., 6:12], x[..., 6:12])
    assert torch.allclose(module(x[..., 12:], "v"), y[..., 12:], atol=1e-6)


@pytest.mark.parametrize(("init", "taps"), [("identity", [0, 0, 1]), ("primer", [1 / 6, 1 / 6, 0.5])])
def test_starting_values(init, taps):
    module = HeadConvolution(2, 3, init=init)
    assert torch.allclose(module.weight, torch.tensor(taps, dtype=torch.float32).expand_as(module.weight))
    assert not module.bias.any()


def test_pytorch_start_has_conv1d_range():
    weight = HeadConvolution(64, 64, 4, shared=False, init="pytorch").weight
    assert 0.49 < weight.abs().max() <= 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "1 or more"),
        ({"projections": "x"}, "q, k and v"),
        ({"init": "Primer"}, "'Primer' is not one of identity, primer, pytorch"),
    ],
)
def test_bad_arguments(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        HeadConvolution(2, 4, **arguments)


@pytest.mark.parametrize("projections", ["", "z", "kz"])
def test_taps_of_no_projection_are_refused(projections):
    with pytest.raises(ValueError, match="must be some of q, k and v"):
        HeadConvolution(2, 4).taps(projections)
