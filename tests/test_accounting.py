"""Parameters and operations against formulas written out by hand."""

import copy
import subprocess
import sys
from functools import partial
from time import sleep

import pytest
import torch

from benchmarks import public_code
from benchmarks.times import copy_weights, in_turn, public_step, relative_pair
from rcmha_lite.accounting import (
    flops,
    parameters_by_part,
    peak_cuda_bytes,
    relative_attention_saved_bytes,
    saved_bytes,
)
from rcmha_lite.config import CELLS, PRESETS
from rcmha_lite.model import FeedForward, LanguageModel

LAPTOP = PRESETS["laptop"].replace(window=128)
EVERY = [LAPTOP.replace(**changes) for changes in CELLS.values()] + [
    PRESETS["paper"],
    LAPTOP.replace(position="absolute-learned", window=128, tie_embeddings=True),
]


@pytest.mark.parametrize("config", EVERY)
def test_parts_sum_to_the_model(config):
    model = LanguageModel(config)
    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in model.parameters())


def test_parts_by_hand():
    parts = parameters_by_part(LanguageModel(LAPTOP))
    d, h, f, layers = LAPTOP.d_model, LAPTOP.n_heads, LAPTOP.d_ff, LAPTOP.layers
    assert parts == {
        "embedding": 65 * d,
        "attention projections": layers * 4 * (d * d + d),
        "convolution": layers * 3 * (d // h) * (3 + 1),
        "relative positions": layers * (2 * d + d * LAPTOP.d_position),
        "feed-forward": layers * (2 * d * f + d + f),
        "norms": (2 * layers + 1) * 2 * d,
        "output layer": 65 * (d + 1),
    }


@pytest.mark.parametrize("cell", CELLS)
def test_forward_operations_by_hand(cell):
    config = LAPTOP.replace(**CELLS[cell])
    d, f, n, p = config.d_model, config.d_ff, 128, config.d_position
    relative = config.position.startswith("relative")
    width = d + config.n_heads * p if relative else d  # of the glued queries, all heads together
    layer = 2 * n * (4 * d * d + 2 * d * f) + 2 * n * n * width + 2 * n * n * (width if relative else d)
    if relative:
        layer += 2 * n * d * p
    if config.kernel_size:
        layer += 2 * (n + 2) * 3 * 3 * d  # the two padded rows are computed and dropped by no one else
    expected = config.layers * layer + 2 * n * d * 65
    found = flops(LanguageModel(config), torch.zeros(1, n, dtype=torch.long))
    assert found == pytest.approx(expected, rel=0.002)


def test_backward_takes_about_twice_the_forward():
    model, ids = LanguageModel(LAPTOP), torch.zeros(1, 64, dtype=torch.long)
    assert flops(model, ids, backward=True) == pytest.approx(3 * flops(model, ids), rel=0.02)
    assert all(p.grad is None for p in model.parameters())


def test_saved_bytes_by_hand():
    x, y = torch.randn(2, 10, requires_grad=True), torch.randn(2, 10)
    assert saved_bytes(lambda: x.exp()) == 80  # the output
    assert saved_bytes(lambda: x * y) == 80  # y, for the gradient of x; x is not needed, y asks for none
    assert saved_bytes(lambda: x * x[:, :5].sum()) == 84  # x once, though two parts of it are kept, and the sum
    assert saved_bytes(lambda: x * y, but_not=[y]) == 0
    with pytest.raises(ValueError, match="no input of the computation requires a gradient"):
        saved_bytes(lambda: y.exp())


@pytest.mark.parametrize("time", [256, 1024])
def test_saved_bytes_of_relative_attention_are_as_predicted(time):
    inputs, ours, _ = relative_pair(time)
    assert saved_bytes(ours, but_not=inputs) == relative_attention_saved_bytes(1, 6, time, 32, 32)


def test_relative_attention_keeps_linear_memory():
    """Doubling the length doubles what is kept; the explicit shift keeps 7 times as much at 2048, 13 at 4096."""
    kept = {}
    for time in (2048, 4096):
        inputs, ours, explicit = relative_pair(time)
        kept[time] = saved_bytes(ours, but_not=inputs)
        assert saved_bytes(explicit, but_not=inputs) >= {2048: 7, 4096: 13}[time] * kept[time]
    assert kept[4096] <= 2.1 * kept[2048]


def test_paper_preset_starts_like_the_transcription_of_the_public_code():
    """Layer by layer the same spread of every weight and bias, and all layers as copies of the first."""
    config = PRESETS["paper"]
    torch.manual_seed(0)
    theirs, ours = public_code.Model(config), LanguageModel(config)
    for layers in (theirs.layers, ours.blocks):
        first, *others = (dict(layer.named_parameters()) for layer in layers)
        assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    copied = copy.deepcopy(theirs)
    copy_weights(ours, copied)
    drawn = 0
    for (name, a), b in zip(theirs.named_parameters(), copied.parameters(), strict=True):
        if a.std() > 0 and not torch.equal(a, b):
            assert (b.std() / a.std()).item() == pytest.approx(1, abs=0.4 if a.numel() < 1000 else 0.05), name
            drawn += 1
    assert drawn > 10 * config.layers


def test_paper_preset_trains_like_the_transcription_of_the_public_code():
    """The same losses, step by step, in float64: 34 rows under Adam are as good as 8192."""
    ours, theirs = public_step(torch.float64)
    for _ in range(10):
        assert ours() == pytest.approx(theirs(), abs=1e-6)


def test_peak_of_a_process_is_its_own():
    """A child of a large parent does not report the parent's memory as its own."""
    large = bytearray(b"x" * 2**30)
    code = "from rcmha_lite.manifest import process_cost; print(process_cost().peak_bytes)"
    assert 2**20 < int(subprocess.check_output([sys.executable, "-c", code])) < len(large)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_of_a_gpu_holds_what_was_allocated():
    assert peak_cuda_bytes(lambda: torch.zeros(2**20, device="cuda")) >= 2**22


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_peak_memory_of_a_gpu_needs_one():
    with pytest.raises(RuntimeError, match="no CUDA device: on a CPU see saved_bytes"):
        peak_cuda_bytes(lambda: None)


def test_squared_relu_keeps_one_array_more_in_its_layer():
    """By itself it keeps what ReLU keeps; in the layer the next matrix keeps the square beside it."""
    x, hidden = torch.randn(1, 10, 64), torch.randn(1, 10, 256, requires_grad=True)
    alone, inside = {}, {}
    for name in ("relu", "relu2"):
        layer = FeedForward(64, 256, name)
        alone[name] = saved_bytes(lambda f=layer.activation: f(hidden))
        inside[name] = saved_bytes(lambda f=layer: f(x), but_not=[x, *layer.parameters()])
    assert alone["relu2"] == alone["relu"] == hidden.nbytes
    assert inside["relu2"] == inside["relu"] + hidden.nbytes


def test_ratios_in_turn_are_second_over_first():
    found = in_turn(partial(sleep, 0.001), partial(sleep, 0.004), rounds=3)
    assert 2 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert found["milliseconds"][1] > found["milliseconds"][0]
