"""Precision by hardware; float16 with a scaled loss: what overflows is skipped by all, clipped after it is unscaled, resumed."""

import json
import signal

import pytest
import torch

from rcmha_lite import checkpoint, precision, training
from rcmha_lite.checkpoint import CheckpointError
from rcmha_lite.config import PRESETS
from rcmha_lite.manifest import compiler_is_there
from rcmha_lite.precision import LossScaler, precision_for
from rcmha_lite.training import Interrupted, Trainer, train
from tests.test_training import FAST, TEXT, assert_same_weights, weights

HALF = FAST.replace(precision="float16")


@pytest.mark.parametrize(
    ("device", "capability", "found", "compiles"),
    [
        ("cuda", (9, 0), "bf16", True),
        ("cuda", (8, 0), "bf16", True),
        ("cuda", (7, 5), "fp16", True),
        ("cuda", (7, 0), "fp16", True),
        ("cuda", (6, 1), "no", False),
        ("mps", None, "fp16", False),
    ],
)
def test_auto_takes_what_the_hardware_multiplies_in(monkeypatch, device, capability, found, compiles):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert precision_for("auto", torch.device(device)) == found
    assert compiler_is_there(torch.device(device)) == compiles
    assert precision_for("float32", torch.device(device)) == "no"
    assert precision_for("float16", torch.device(device)) == "fp16"


def test_auto_on_a_cpu_is_never_float16(monkeypatch):
    for fast, found in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(precision, "bfloat16_is_fast", lambda device, fast=fast: fast)
        assert precision_for("auto", torch.device("cpu")) == found
    assert PRESETS["gpu"].precision == "auto"


@pytest.mark.parametrize(
    "config",
    [HALF, HALF.replace(memory=8), HALF.replace(optimizer="adamw", accumulate=2), HALF.replace(position="rope")],
)
def test_float16_trains_about_as_float32_and_keeps_weights_in_it(tmp_path, config):
    config = config.replace(dropout=0.0, steps=30, eval_every=0)
    half = train(config, tmp_path / "half", text=TEXT, progress=False)
    whole = train(config.replace(precision="float32"), tmp_path / "whole", text=TEXT, progress=False)
    assert half["manifest"]["precision"] == "fp16"
    assert half["val_loss"] == pytest.approx(whole["val_loss"], rel=0.02)
    assert half["val_loss"] != whole["val_loss"]
    assert half["skipped_steps"] <= 3
    assert "skipped_steps" not in whole
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "half").values())


def test_a_step_in_float16_is_autocast(tmp_path, monkeypatch):
    """With a working scaler and float32 products, the test above would pass too."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *a, **k: seen.append(q.dtype) or attend(q, *a, **k),
    )
    trainer = Trainer(HALF, tmp_path, TEXT)
    trainer.step(0)
    assert set(seen) == {torch.float16}


@pytest.mark.parametrize("names", [["feed_forward.input.weight"], ["embedding"]], ids=["Muon's", "AdamW's"])
def test_an_overflow_skips_the_step_of_all_optimisers_and_training_goes_on(tmp_path, names):
    """Where only one optimiser's gradients overflow, the other must wait too."""
    trainer = Trainer(HALF, tmp_path, TEXT)
    handles = []
    for name, parameter in trainer.model.named_parameters():
        if any(word in name for word in names):
            handles.append(parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf)))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.advance(0)
    assert trainer.scaler.state()["scale"] == 2.0**15
    assert trainer.scaler.skipped == 1
    assert not any(optimizer.state for optimizer in trainer.optimizers)
    trainer.advance(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert trainer.scaler.state()["scale"] == 2.0**14
    trainer.look()  # the loss is a number: nothing to complain of
    for handle in handles:
        handle.remove()
    trainer.advance(2)
    changed = [name for name, tensor in trainer.model.state_dict().items() if not torch.equal(before[name], tensor)]
    assert {"embedding.weight", "blocks.0.feed_forward.output.weight"} <= set(changed)
    assert trainer.scaler.skipped == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(HALF.muon_rate), "the schedule went on"


def test_gradients_are_unscaled_once_and_before_they_are_clipped(tmp_path, monkeypatch):
    """Every optimiser's: Accelerate would divide those of the second optimiser twice."""
    found = {}
    for config in (HALF.replace(dropout=0.0), FAST.replace(dropout=0.0)):
        norms, clip = [], training.Accelerator.clip_grad_norm_

        def noted(self, parameters, norm, norms=norms, clip=clip):
            parameters = list(parameters)
            norms.append([p.grad.norm().item() for p in parameters])
            return clip(self, parameters, norm)

        with monkeypatch.context() as patch:
            patch.setattr(training.Accelerator, "clip_grad_norm_", noted)
            Trainer(config, tmp_path, TEXT).step(0)
        found[config.precision] = norms[0]
    assert found["float16"] == pytest.approx(found["float32"], rel=0.05, abs=1e-3)


def test_each_optimiser_steps_with_gradients_that_were_divided_once():
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([parameter], lr=1.0) for parameter in parameters]
    scaler = LossScaler("fp16", torch.device("cpu"), optimizers)
    scaler.scale(parameters[0].sum() + 2 * parameters[1].sum()).backward()
    assert parameters[0].grad.item() == 2.0**16
    scaler.unscale()
    scaler.step()
    assert [parameter.item() for parameter in parameters] == [0.0, -1.0]


def test_resumed_in_float16_equals_never_stopped(tmp_path, monkeypatch):
    """With the scale as it was: an overflow in the first part has halved it, and it is about to grow."""
    init = LossScaler.__init__

    def quick(self, *arguments):
        init(self, *arguments)
        self.scaler.set_growth_interval(4)

    monkeypatch.setattr(LossScaler, "__init__", quick)
    step = Trainer.step

    def overflow_at_two(self, n):
        handles = []
        if n == 2:
            weight = self.model.embedding.weight
            handles.append(weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf)))
        if n == 5 and "parts" in str(self.out):
            signal.raise_signal(signal.SIGINT)
        found = step(self, n)
        for handle in handles:
            handle.remove()
        return found

    monkeypatch.setattr(Trainer, "step", overflow_at_two)
    whole = train(HALF, tmp_path / "whole", text=TEXT, progress=False)
    with pytest.raises(Interrupted):
        train(HALF, tmp_path / "parts", text=TEXT, progress=False)
    state = json.loads(checkpoint._read(tmp_path / "parts" / checkpoint.TRAINING)[1]["state"])
    assert state["scaler"]["skipped"] == 1
    assert state["scaler"]["scale"] == 2.0**15
    assert state["scaler"]["_growth_tracker"] == 3
    monkeypatch.setattr(Trainer, "step", step)
    parts = train(HALF, tmp_path / "parts", text=TEXT, progress=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert parts["skipped_steps"] == whole["skipped_steps"] >= 1
    ends = [
        json.loads(checkpoint._read(tmp_path / out / checkpoint.TRAINING)[1]["state"])["scaler"]
        for out in ("whole", "parts")
    ]
    assert ends[0] == ends[1]
    assert ends[0]["scale"] >= 2.0**16, "it grew"


def test_a_loss_that_is_no_number_stays_an_error_in_float16(tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: give a lower learning_rate"):
        train(HALF.replace(learning_rate=float("inf"), steps=60), tmp_path, text=TEXT, progress=False)


def test_the_first_loss_that_is_no_number_is_named_though_later_ones_are(tmp_path):
    trainer = Trainer(FAST, tmp_path, TEXT)
    losses = iter([1.0, torch.inf, 2.0, torch.nan, 3.0])
    trainer.step = lambda step: torch.tensor([next(losses), 0.5])
    for step in range(5):
        trainer.advance(step)
    with pytest.raises(ValueError, match="the loss is inf at step 2: give"):
        trainer.look()


def test_auto_may_go_on_with_a_run_of_any_precision_and_nothing_else_may(tmp_path, monkeypatch):
    """Run folders of the gpu preset from when it named bfloat16; and Colab, which lends another GPU every day."""

    original = Trainer.step

    def stop_at(n):
        def stopping(self, step):
            if step == n:
                signal.raise_signal(signal.SIGINT)
            return original(self, step)

        return stopping

    for n, kind in ((2, "bfloat16"), (4, "float16")):
        monkeypatch.setattr(Trainer, "step", stop_at(n))
        with pytest.raises(Interrupted):
            train(FAST.replace(precision=kind if n == 2 else "auto"), tmp_path, text=TEXT, progress=False)
        monkeypatch.setattr(training, "precision_for", lambda wanted, device: "fp16")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="layers 1 there, 2 here"):
        train(FAST.replace(precision="auto", layers=2), tmp_path, text=TEXT, progress=False)
    found = train(FAST.replace(precision="float32"), tmp_path, text=TEXT, progress=False)
    kinds = [found["manifest"]["precision"], *(later["precision"] for later in found["manifest"]["resumed"])]
    assert kinds[0] == "bf16"
    assert kinds[-1] == "no"
    with pytest.raises(CheckpointError, match="precision float32 there, float16 here"):
        train(HALF.replace(precision="float16", seed=FAST.seed), tmp_path, text=TEXT, progress=False)
