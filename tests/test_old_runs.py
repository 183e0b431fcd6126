"""Run folders that an earlier commit wrote (``tests/fixtures``) load, evaluate, sample, go on and count as done."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.make import PROMPT, RUNS, SMALL, STOPPED, TEXT
from safetensors.torch import load_file

from rcmha_lite import checkpoint, training
from rcmha_lite.checkpoint import load_model
from rcmha_lite.config import Config
from rcmha_lite.data import CharTokenizer, split
from rcmha_lite.evaluation import evaluate
from rcmha_lite.generation import generate
from rcmha_lite.manifest import manifest
from rcmha_lite.training import train

FIXTURES = Path(__file__).parent / "fixtures"
SAME = ("torch", "processor", "instructions", "threads", "system")


def results_of(folder: Path) -> dict:
    return json.loads((folder / checkpoint.RESULTS).read_text(encoding="utf-8"))


def same_machine(recorded: dict) -> bool:
    """Whether sums are taken in the recorded order, so that bits may be compared."""
    here, there = manifest(), {"instructions": "AVX512"} | recorded["manifest"]  # which these recorded without a word
    return all(here[name] == there[name] for name in SAME)


@pytest.fixture(params=RUNS)
def name(request) -> str:
    return request.param


@pytest.fixture
def copied(name, tmp_path) -> Path:
    """Both folders of a run, where they may be written to."""
    for folder in (name, f"{name}-stopped"):
        shutil.copytree(FIXTURES / "runs" / folder, tmp_path / folder)
    return tmp_path


def test_the_files_are_older_than_the_later_fields(name):
    """Or these tests would show nothing."""
    written = json.loads((FIXTURES / "runs" / name / checkpoint.CONFIG).read_text())
    assert not {"layer_init", "kernel_rate"} & written.keys()
    assert results_of(FIXTURES / "runs" / name)["manifest"]["commit"].startswith("9dbb8b5")


def test_loads_and_evaluates_to_the_recorded_losses(name):
    model, recorded = load_model(FIXTURES / "runs" / name), results_of(FIXTURES / "runs" / name)
    ids = split(CharTokenizer().encode(TEXT))[1]
    for sliding, suffix in ((False, ""), (True, "_sliding")):
        found = evaluate(model, ids, window=model.config.window, sliding=sliding)
        assert found.loss == pytest.approx(recorded["val_loss" + suffix], abs=1e-6)
        assert found.accuracy == pytest.approx(recorded["val_accuracy" + suffix], abs=1e-9)


def test_samples_the_recorded_text(name):
    expected = json.loads((FIXTURES / "samples.json").read_text(encoding="utf-8"))[name]
    assert "".join(generate(load_model(FIXTURES / "runs" / name), PROMPT, 40)) == expected


def test_a_stopped_run_goes_on_to_its_recorded_end(name, copied, monkeypatch):
    taken, step = [], training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, n: taken.append(n) or step(self, n))
    recorded, stopped = results_of(copied / name), copied / f"{name}-stopped"
    found = train(Config(**SMALL | RUNS[name]), stopped, text=TEXT, progress=False)
    assert taken == list(range(STOPPED, SMALL["steps"]))
    ours, theirs = (load_file(folder / checkpoint.WEIGHTS) for folder in (stopped, copied / name))
    assert ours.keys() == theirs.keys()
    exact = same_machine(recorded)
    tolerance = 0 if exact else 2e-3 if found["config"]["optimizer"] == "muon" else 1e-5  # Muon rounds to bfloat16
    for key, tensor in ours.items():
        if not exact and "attention" in key and key.endswith(("key.bias", "convolution.bias")):
            continue  # a key's bias moves no weight of the softmax: its gradient is rounding alone, and Adam makes it large
        torch.testing.assert_close(
            tensor, theirs[key], rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
    for point, expected in zip(found["curve"], recorded["curve"], strict=True):
        assert point == pytest.approx(expected, abs=tolerance)
    assert found["val_loss_sliding"] == pytest.approx(recorded["val_loss_sliding"], abs=tolerance)


def test_a_finished_run_is_done(name, copied, monkeypatch):
    monkeypatch.setattr(training.Trainer, "step", lambda *_: pytest.fail("a finished run was trained"))
    recorded = results_of(copied / name)
    assert train(Config(**SMALL | RUNS[name]), copied / name, text=TEXT, progress=False) == recorded


def test_another_start_or_rate_is_another_run(name, copied):
    """The fields that old files lack are those runs' own, and are compared like the rest."""
    for change in ({"kernel_rate": 3.0}, {"layer_init": "public-code"}):
        with pytest.raises(checkpoint.CheckpointError, match=f"{next(iter(change))} .* there, .* here"):
            train(Config(**SMALL | RUNS[name] | change), copied / f"{name}-stopped", text=TEXT, progress=False)
