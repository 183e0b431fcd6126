"""Starting weights: shared by cells of one seed, as at the first runs, and as in PyTorch and RCMHA's public code."""

import math
from pathlib import Path

import pytest
import torch
from fixtures.make import SMALL, STARTS
from safetensors.torch import load_file
from torch import nn

from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.model import LanguageModel

CONFIG = Config(**SMALL, zero_output=False).replace(layers=3)
KERNELS = {
    "identity": {},
    "primer": {"kernel_init": "primer"},
    "pytorch": {"kernel_init": "pytorch"},
    "separate": {"kernel_init": "pytorch", "shared_kernels": False, "kernel_size": 5},
    "without bias": {"kernel_init": "pytorch", "kernel_bias": False, "convolve": "kv"},
}
PUBLIC = PRESETS["paper"].replace(layers=3)


def started(config: Config, seed: int = 5) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(config)


@pytest.mark.parametrize("name", STARTS)
def test_cells_start_as_at_the_first_runs(name):
    """The recorded weights of ``tests/fixtures``, for every cell whose draws stood in the same order then."""
    recorded = load_file(Path(__file__).parent / "fixtures" / "starts.safetensors")
    found = started(Config(**(SMALL | STARTS[name]), zero_output=False), seed=7).state_dict()
    expected = {key.removeprefix(f"{name}."): t for key, t in recorded.items() if key.startswith(f"{name}.")}
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("position", ["relative-sinusoidal", "relative-learned", "rope", "alibi", "none"])
@pytest.mark.parametrize("layers", ["scaled", "public-code"])
def test_cells_with_and_without_kernels_share_every_other_weight(kernels, position, layers):
    """Bit for bit, in every block; and PyTorch's own generator stands where it would stand without them."""
    config = CONFIG.replace(position=position, layer_init=layers)
    plain, after = started(config.replace(kernel_size=0)).state_dict(), torch.get_rng_state()
    other = started(config.replace(**KERNELS[kernels])).state_dict()
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())
    rest = other.keys() - plain.keys()
    assert rest
    assert all(".convolution." in name for name in rest)


@pytest.mark.parametrize(
    "position", ["relative-sinusoidal", "relative-learned", "rope", "alibi", "absolute-sinusoidal"]
)
@pytest.mark.parametrize("layers", ["scaled", "public-code"])
def test_cells_of_every_position_share_every_other_weight(position, layers):
    """Whatever the positions draw: weights and biases of linear layers, kernels, embedding and output."""
    config = CONFIG.replace(layer_init=layers, kernel_init="pytorch")
    plain = started(config.replace(position="none")).state_dict()
    other = started(config.replace(position=position)).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())
    assert all(".attention.position." in name for name in other.keys() - plain.keys())


def test_kernels_are_not_the_numbers_that_linear_layers_drew():
    """Both are uniform in the public code's start: from one seed they would be the same numbers, scaled."""
    attention = started(PUBLIC).blocks[0].attention
    kernels, weights = attention.convolution.weight.flatten(), attention.query.weight.flatten()
    both = torch.stack((kernels, weights[: len(kernels)])).detach()
    assert torch.corrcoef(both)[0, 1].abs() < 0.3


def test_random_kernels_differ_from_block_to_block_and_follow_the_seed():
    config = CONFIG.replace(kernel_init="pytorch")
    first, again, other = started(config), started(config), started(config, seed=6)
    kernels = [[block.attention.convolution.weight for block in model.blocks] for model in (first, again, other)]
    assert all(map(torch.equal, kernels[0], kernels[1]))
    assert len({w.detach().sum().item() for w in kernels[0] + kernels[2]}) == 6


@pytest.mark.parametrize("init", ["identity", "primer", "pytorch"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_only_pytorchs_kernels_draw_and_from_the_generator_given(init, kernel_size):
    generator, before, ours = torch.Generator().manual_seed(1), torch.get_rng_state(), []
    state = generator.get_state()
    ours.append(HeadConvolution(2, 3, kernel_size, init=init, generator=generator))
    assert torch.equal(generator.get_state(), state) == (init != "pytorch")
    assert torch.equal(torch.get_rng_state(), before)
    again = HeadConvolution(2, 3, kernel_size, init=init)  # from PyTorch's own
    assert torch.equal(torch.get_rng_state(), before) == (init != "pytorch")
    again.reset_parameters(generator.manual_seed(1))
    for name, tensor in ours[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_the_public_codes_layers_start_as_pytorchs():
    """σ = 1/√(3·inputs), biases within 1/√inputs, N(0, 1) for the embedding; blocks are copies, kernels included."""
    model = started(PUBLIC)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
            assert 0.97 * bound < layer.weight.abs().max() <= bound, name
            if layer.bias is not None:
                assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name
                assert 0.8 * bound < layer.bias.abs().max() <= bound, name
        if isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    assert model.embedding.weight.std().item() == pytest.approx(1, rel=0.03)
    assert torch.equal(model.embedding.weight, started(PUBLIC.replace(layer_init="scaled")).embedding.weight)
    convolution = model.blocks[0].attention.convolution
    for parameter in convolution.parameters():
        assert 0.9 / math.sqrt(3) < parameter.abs().max() <= 1 / math.sqrt(3)
    first, *others = (block.state_dict() for block in model.blocks)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)  # copies, that part as they learn


def test_scaled_layers_start_without_biases_and_apart():
    model = started(CONFIG.replace(d_model=64, d_ff=256))
    for layer in (one for one in model.modules() if isinstance(one, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert not layer.bias.any()
    assert len({block.attention.query.weight.detach().sum().item() for block in model.blocks}) == 3


def test_the_public_codes_start_with_zero_outputs():
    """Both fields have their say: outputs of sublayers are zero, their biases are PyTorch's."""
    for block in started(PUBLIC.replace(zero_output=True)).blocks:
        for layer in (block.attention.output, block.feed_forward.output):
            assert not layer.weight.any()
            assert layer.bias.any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_public_codes_start_can_be_planned(cell):
    config = PUBLIC.replace(**{k: v for k, v in CELLS[cell].items() if k == "kernel_size"})
    with torch.device("meta"):
        planned = LanguageModel(config)
    assert all(p.is_meta for p in planned.parameters())
