"""Muon in float32, where the hardware does not multiply in bfloat16: near the formula, and told in the record."""

import copy

import pytest
import torch

from rcmha_lite import optimizers, training
from rcmha_lite.config import Config

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonalised(m: torch.Tensor) -> torch.Tensor:
    """Five Newton–Schulz iterations of Muon in float64, by their formula."""
    a, b, c = COEFFICIENTS
    x = m.double() / m.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize(("fast", "error"), [(True, 1e-1), (False, 1e-5)])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_is_near_its_formula_as_the_hardware_multiplies(monkeypatch, fast, error, shape):
    """In float32 10 000 times nearer: what is left of bfloat16's rounding would show."""
    monkeypatch.setattr(optimizers, "bfloat16_is_fast", lambda device: fast)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    gradient = torch.randn(shape)
    weight.grad = gradient.clone()
    optimizers.Muon([weight], lr=1.0, weight_decay=0.0, nesterov=False, momentum=0.0, adjust_lr_fn="original").step()
    wide = gradient if shape[0] <= shape[1] else gradient.T
    expected = orthogonalised(wide) if shape[0] <= shape[1] else orthogonalised(wide).T
    scale = max(1, shape[0] / shape[1]) ** 0.5
    apart = (-weight.double() / scale - expected).abs().max()
    assert apart < error
    assert fast == (apart > 1e-4), "bfloat16 is what PyTorch's takes, float32 is ours"
    assert torch.equal(weight.grad, gradient)


def test_the_momentum_is_kept_as_it_is(monkeypatch):
    """The iteration divides its matrix in place: that must be a copy, also where there is nothing to convert."""
    moved = {}
    for fast in (True, False):
        monkeypatch.setattr(optimizers, "bfloat16_is_fast", lambda device, fast=fast: fast)
        weight = torch.nn.Parameter(torch.ones(4, 4))
        muon = optimizers.Muon([weight], lr=0.1, nesterov=False)
        for n in range(3):
            weight.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(n))
            muon.step()
        moved[fast] = copy.deepcopy(muon.state[weight]["momentum_buffer"])
    assert torch.equal(moved[True], moved[False])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_record_says_where_muon_ran_in_float32(tmp_path, monkeypatch, fast, optimizer):
    for module in (optimizers, training):
        monkeypatch.setattr(module, "bfloat16_is_fast", lambda device: fast)
    config = Config(d_model=8, n_heads=1, d_ff=8, layers=1, context=8, batch=2, optimizer=optimizer, device="cpu")
    trainer = training.Trainer(config, tmp_path, "ROMEO: what light?\n" * 40)
    recorded = trainer.manifest()
    assert recorded.get("muon") == (None if fast or optimizer == "adamw" else "float32")
