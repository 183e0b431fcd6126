"""The command line, as a stranger uses it: good uses work, bad ones get one line and a non-zero exit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import rcmha_lite
from rcmha_lite import checkpoint, data, here, training
from rcmha_lite.config import PRESETS, Config
from rcmha_lite.model import LanguageModel


@pytest.fixture
def corpus(monkeypatch):
    """A small text in the place of Tiny Shakespeare: these tests are about the commands."""
    text = "MENENIUS:\nWhat work's, my countrymen, in hand?\n\n" * 60
    monkeypatch.setattr(data, "load_tiny_shakespeare", lambda path=None: text)
    return text


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    checkpoint.save_weights(tmp_path / "run", LanguageModel(PRESETS["tiny"]))
    return tmp_path / "run"


def test_no_command_shows_help(call):
    status, out, _ = call()
    assert status == 0
    assert all(name in out for name in ("data", "train", "evaluate", "sample", "info"))


def test_every_field_is_a_flag_with_help(call):
    _, out, _ = call("train", "--help")
    words = " ".join(out.split())
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in out
        assert field.metadata["help"][:20] in words


def test_train_evaluate_sample(call, corpus, tmp_path):
    small = ["--layers", 1, "--d-model", 16, "--n-heads", 2, "--d-ff", 16, "--steps", 3, "--no-kernel-bias"]
    status, out, err = call("train", "--preset", "tiny", "--cell", "mdha", *small, "--out", tmp_path)
    assert (status, "validation loss" in out) == (0, True), err
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    assert (config["position"], config["kernel_size"]) == ("absolute-sinusoidal", 3)
    assert (config["layers"], config["kernel_bias"], config["context"]) == (1, False, 64)
    results = json.loads((tmp_path / checkpoint.RESULTS).read_text())
    _, out, _ = call("evaluate", "--checkpoint", tmp_path)
    assert f"loss {results['val_loss']:.4f}" in out
    assert f"loss {results['val_loss_sliding']:.4f}" in out
    _, first, _ = call("sample", "--checkpoint", tmp_path, "--prompt", "MEN", "--length", 20, "--seed", 1)
    _, again, _ = call("sample", "--checkpoint", tmp_path, "--prompt", "MEN", "--length", 20, "--seed", 1)
    assert first == again
    assert first.startswith("MEN")
    assert len(first) == 24


def test_info(call):
    status, out, _ = call("info")
    assert status == 0
    assert all(preset in out for preset in PRESETS)
    assert torch.__version__ in out
    assert rcmha_lite.__version__ in out
    assert all(here.describe(config) in out for config in PRESETS.values())
    assert call("--version") == (0, f"rcmha_lite {rcmha_lite.__version__}\n", "")


@pytest.mark.parametrize("position", ["none", "relative-sinusoidal", "relative-learned", "alibi"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [4, 16, 600])
def test_info_names_the_kernels_that_a_step_calls(monkeypatch, position, precision, context):
    config = PRESETS["tiny"].replace(
        position=position, precision=precision, context=context, window=4, kernel_size=0, layers=1, d_model=8,
        n_heads=2, device="cpu",
    )  # fmt: skip
    masks, fused = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda q, k, v, mask, **named: masks.append(mask) or fused(q, k, v, mask, **named),
    )
    monkeypatch.setattr(here, "PartialState", lambda cpu: SimpleNamespace(device=torch.device("cpu")))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        LanguageModel(config)(torch.zeros(1, context, dtype=torch.long))
    words = here.describe(config)
    assert words.startswith(f"cpu, {precision}, ")
    learned = bool(masks) and masks[0] is not None and masks[0].requires_grad
    assert ("not fused" in words) == learned
    assert ("fused attention" in words) == (bool(masks) and not learned)


def test_absolute_cells_end_with_the_context_that_is_given(call, corpus, monkeypatch):
    seen = []
    monkeypatch.setattr("rcmha_lite.training.train", lambda config, *_, **__: seen.append(config))
    for context in (64, 256):
        assert call("train", "--cell", "mha", "--context", context)[0] == 0
    assert [config.window for config in seen] == [64, 256]


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_train_with_another_position_stop_and_go_on(call, corpus, tmp_path, monkeypatch, position):
    small = ["--layers", 1, "--d-model", 16, "--n-heads", 2, "--d-ff", 16, "--steps", 2]
    words = ["train", "--preset", "tiny", "--position", position, "--kernel-rate", 2, *small, "--out"]
    assert call(*words, tmp_path / "whole")[0] == 0
    step = training.Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", lambda self, n: signal.raise_signal(signal.SIGINT) or step(self, n))
        status, _, err = call(*words, tmp_path / "parts")
    assert (status, "stopped after step 1" in err) == (130, True)
    status, out, err = call(*words, tmp_path / "parts")
    assert (status, "validation loss" in out) == (0, True), err
    whole, parts = (checkpoint.load_model(tmp_path / name) for name in ("whole", "parts"))
    assert (parts.config.position, parts.config.kernel_rate) == (position, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    status, out, _ = call("evaluate", "--checkpoint", tmp_path / "parts", "--window", 200)
    assert (status, "windows of 200" in out) == (0, True)
    assert call("sample", "--checkpoint", tmp_path / "parts", "--length", 100)[0] == 0  # past the context of 64


BAD = {
    "bad flag": (["train", "--bogus", "1"], "o such option"),
    "bad command": (["walk"], "No such command 'walk'"),
    "bad value": (["train", "--layers", "many"], "'many' is not a valid integer"),
    "bad choice": (["train", "--optimizer", "sgd"], "'sgd' is not one of"),
    "odd heads": (["train", "--position", "rope", "--d-model", "18", "--n-heads", "6"], "is 3, odd: rope turns pairs"),
    "bad configuration": (["train", "--d-model", "130", "--n-heads", "8"], "d_model 130 is not divisible by n_heads 8"),
    "unknown home": (["data", "--path", "~nosuchuser/x"], "is not Tiny Shakespeare"),
    "missing data": (["data", "--path", "nowhere.txt"], "nowhere.txt"),
    "no checkpoint": (["evaluate", "--checkpoint", "nowhere"], "nowhere holds no config.json"),
    "no prompt": (["sample", "--checkpoint", "RUN", "--prompt", ""], "the prompt is empty"),
    "unknown characters": (["sample", "--checkpoint", "RUN", "--prompt", "café"], "unknown characters 'é'"),
    "cold": (["sample", "--checkpoint", "RUN", "--temperature", "-1"], "temperature -1.0 is not a number from 0 up"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(call, corpus, trained, tmp_path, monkeypatch, name):
    words, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RCMHA_TINY_SHAKESPEARE", raising=False)
    if name in ("missing data", "unknown home"):
        monkeypatch.undo()
        monkeypatch.setattr(sys, "argv", [])
    status, out, err = call(*(str(trained) if word == "RUN" else word for word in words))
    assert status in (1, 2)
    assert message in err
    assert err.startswith("rcmha_lite: ")
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    ("preset", "cell", "found"),
    [
        ("paper", "rmha", {"position": "relative-learned", "kernel_size": 0}),
        ("paper", "rcmha", {"position": "relative-learned", "kernel_size": 3}),
        ("laptop", "rmha", {"position": "relative-sinusoidal", "kernel_size": 0, "window": 256}),
        ("laptop", "mdha", {"position": "absolute-sinusoidal", "kernel_size": 3, "window": 128}),
    ],
)
def test_cells_of_a_preset(call, corpus, monkeypatch, preset, cell, found):
    seen = []
    monkeypatch.setattr("rcmha_lite.training.train", lambda config, *_, **__: seen.append(config))
    assert call("train", "--preset", preset, "--cell", cell)[0] == 0
    assert {name: getattr(seen[0], name) for name in found} == found


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        MemoryError("Unable to allocate 7.28 TiB for an array"),
    ],
)
def test_too_little_memory_gets_one_line(call, corpus, monkeypatch, tmp_path, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("rcmha_lite.training.train", fail)
    assert call("train", "--out", tmp_path) == (
        1, "", "rcmha_lite: not enough memory: give a smaller batch, context or width\n",
    )  # fmt: skip


def test_checkpoint_of_another_configuration(call, corpus, tmp_path):
    small = ["train", "--preset", "tiny", "--steps", 2, "--out", tmp_path]
    assert call(*small)[0] == 0
    status, _, err = call(*small, "--layers", 1)
    assert status == 1
    assert "layers 2 there, 1 here" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to another process")
def test_interrupt_leaves_a_usable_checkpoint(tmp_path):
    (tmp_path / "start.py").write_text(
        "import sys; from rcmha_lite import data, training, __main__\n"
        "text = 'To be, or not to be.\\n' * 400\n"
        "data.load_tiny_shakespeare = lambda path=None: text\n"
        "__main__.main()\n"
    )
    out = tmp_path / "run"
    words = ["train", "--preset", "tiny", "--steps", "100000", "--checkpoint-every", "100000", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "start.py", *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (out / checkpoint.WEIGHTS).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "the same command goes on" in err.splitlines()[-1]
    assert checkpoint.load_model(out).config.steps == 100_000
    state = json.loads(checkpoint._read(out / checkpoint.TRAINING)[1]["state"])
    assert 0 < state["step"] < 100_000


@pytest.mark.parametrize(
    ("cell", "flags", "fits"),
    [
        ("mha", ["--kernel-size", "3"], False),
        ("mdha", ["--position", "relative-sinusoidal"], False),
        ("rcmha", ["--kernel-size", "0"], False),
        ("rcmha", ["--kernel-size", "5"], True),
        ("rmha", ["--position", "relative-learned"], True),
        ("mha", ["--position", "none"], True),
    ],
)
def test_a_cell_is_not_contradicted(call, corpus, monkeypatch, cell, flags, fits):
    monkeypatch.setattr("rcmha_lite.training.train", lambda *arguments, **options: None)
    status, _, err = call("train", "--preset", "tiny", "--cell", cell, *flags)
    assert status == (0 if fits else 2)
    assert fits or "ask for different cells" in err


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_cells_take_any_relative_positions(call, corpus, monkeypatch, position):
    seen = []
    monkeypatch.setattr("rcmha_lite.training.train", lambda config, *_, **__: seen.append(config))
    assert call("train", "--cell", "rmha", "--position", position)[0] == 0
    assert (seen[0].position, seen[0].kernel_size, seen[0].window) == (position, 0, 256)
    status, _, err = call("train", "--cell", "mha", "--position", position)
    assert (status, "ask for different cells" in err) == (2, True)
