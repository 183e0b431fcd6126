"""Parameters and operations against formulas written out by hand."""

import pytest
import torch

from rcmha_lite.accounting import flops, parameters_by_part
from rcmha_lite.config import CELLS, PRESETS
from rcmha_lite.model import LanguageModel

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
    width = d + config.n_heads * p if config.relative else d  # of the glued queries, all heads together
    layer = (
        2 * n * (4 * d * d + 2 * d * f) + 2 * n * n * width + 2 * n * n * (width if config.relative else d)
    )
    if config.relative:
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
