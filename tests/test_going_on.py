"""More steps for a finished run: its schedule once again, from where it stands, with nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rcmha_lite import checkpoint, texts, training
from rcmha_lite.checkpoint import CheckpointError, load_model
from rcmha_lite.config import Config
from rcmha_lite.optimizers import rate_factor
from rcmha_lite.texts import OwnText
from rcmha_lite.training import Interrupted, train

TEXT = "".join(f"{a} loves {b}.\n" for a in ("Romeo", "Juliet", "Hamlet", "Puck") for b in ("wine", "war", "gold")) * 30
FAST = Config(
    layers=1, d_model=16, n_heads=2, d_ff=32, d_position=8, context=16, window=16, batch=8, steps=12, warmup=2,
    dropout=0.1, eval_every=5, checkpoint_every=3, precision="float32", device="cpu",
)  # fmt: skip


def go(config, out, text=TEXT, **options):
    return train(config, out, text=text, progress=False, **options)


def weights(out):
    return load_file(out / checkpoint.WEIGHTS)


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def stopping_at(monkeypatch, *steps):
    """A request to stop in each of these steps, once."""
    step, left = training.Trainer.step, list(steps)

    def stop(self, n):
        if n in left:
            left.remove(n)
            signal.raise_signal(signal.SIGINT)
        return step(self, n)

    monkeypatch.setattr(training.Trainer, "step", stop)


def test_the_record_goes_on_and_keeps_the_earlier_part(tmp_path):
    first, before = go(FAST, tmp_path), weights(tmp_path)
    on_disk = json.loads((tmp_path / checkpoint.RESULTS).read_text())
    then = go(FAST, tmp_path, more_steps=8)
    assert then["config"] == first["config"]
    assert (then["more_steps"], then["earlier"]) == ([8], [on_disk])
    assert then["curve"][: len(first["curve"])] == first["curve"]
    assert [point["step"] for point in then["curve"]] == [5, 10, 12, 15, 20]
    assert then["characters"] == 20 * FAST.batch * FAST.context
    assert then["seconds"] > first["seconds"]
    assert json.loads((tmp_path / checkpoint.RESULTS).read_text()) == then
    kept = tmp_path / "step-12"
    assert json.loads((kept / checkpoint.RESULTS).read_text()) == on_disk
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(kept).items())
    assert load_model(kept).config == FAST
    assert not torch.equal(before["embedding.weight"], weights(tmp_path)["embedding.weight"])
    last = go(FAST, tmp_path, more_steps=8)  # and again
    assert last["more_steps"] == [8, 8]
    assert [part["characters"] for part in last["earlier"]] == [first["characters"], then["characters"]]
    assert not any("earlier" in part for part in last["earlier"])
    assert last["curve"][-1]["step"] == 28
    assert go(FAST, tmp_path) == last


def test_a_run_of_one_part_has_no_word_of_others(tmp_path):
    assert not {"more_steps", "earlier"} & go(FAST, tmp_path).keys()


def test_each_part_has_its_own_schedule_and_new_windows(tmp_path, monkeypatch):
    rates, windows, step = [], [], training.Trainer.step

    def noted(self, n):
        found = step(self, n)
        rates.append(self.optimizers[-1].param_groups[0]["lr"])
        windows.append(self.batch(n)[0])
        return found

    monkeypatch.setattr(training.Trainer, "step", noted)
    go(FAST, tmp_path)
    go(FAST, tmp_path, more_steps=30)
    parts = [rate_factor(FAST, n) for n in range(12)] + [rate_factor(FAST.replace(steps=30), n) for n in range(30)]
    assert rates == pytest.approx([FAST.learning_rate * factor for factor in parts])
    assert len({tuple(window.flatten().tolist()) for window in windows}) == 42


@pytest.mark.parametrize("config", [FAST, FAST.replace(memory=8), FAST.replace(optimizer="adamw", accumulate=2)])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, config, monkeypatch):
    go(config, tmp_path / "whole")
    whole = go(config, tmp_path / "whole", more_steps=9)
    go(config, tmp_path / "parts")
    with monkeypatch.context() as patch:
        stopping_at(patch, 12, 15, 19)
        for options in ({"more_steps": 9}, {"more_steps": 9}, {}):  # the plain call goes on, too
            with pytest.raises(Interrupted, match="the same command goes on"):
                go(config, tmp_path / "parts", **options)
            assert not (tmp_path / "parts" / checkpoint.RESULTS).exists()
    parts = go(config, tmp_path / "parts", more_steps=9)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert parts["curve"] == whole["curve"]
    assert parts["more_steps"] == [9]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from rcmha_lite import training
from rcmha_lite.config import Config
text, config = open(sys.argv[1]).read(), Config.from_json(open(sys.argv[2]).read())
training.train(config, sys.argv[3], text=text, progress=False, more_steps=100)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not replace a file that is being read")
def test_killed_and_resumed_equals_never_stopped(tmp_path):
    """SIGKILL, twice in the middle of the new part; the weights end the same bit for bit."""
    config = FAST.replace(memory=8, checkpoint_every=1, eval_every=20)
    for out in ("whole", "parts"):
        go(config, tmp_path / out)
    go(config, tmp_path / "whole", more_steps=100)
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "config").write_text(config.to_json())
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, *(tmp_path / name for name in ("script.py", "text", "config", "parts"))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    for step in (30, 55):
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and checkpoint_step(tmp_path / "parts") < step:
            time.sleep(0.001)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def checkpoint_step(out):
    """The step of the checkpoint on disk, from its header alone."""
    with (out / checkpoint.TRAINING).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["state"])["step"]


def test_weights_optimisers_and_memory_go_on(tmp_path):
    """The first step of the new part is one more step of the old run, at the new part's rate."""
    config = FAST.replace(memory=8, dropout=0.0)
    go(config, tmp_path)
    trainer = training.Trainer(config, tmp_path, TEXT)
    assert trainer.memory.seen == 12 * 16
    assert all(len(optimizer.state) for optimizer in trainer.optimizers)
    trainer.extend(9)
    assert (trainer.done, trainer.steps, trainer.finished) == (12, 21, False)
    again = training.Trainer(config, tmp_path, TEXT)
    assert (again.done, again.more, again.memory.seen) == (12, (9,), 12 * 16)


def test_an_unfinished_run_is_refused_in_words(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"is not finished .step 0 of 12.: give the same command without more"):
        go(FAST, tmp_path / "none", more_steps=5)
    assert not (tmp_path / "none").exists()
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopping_at(patch, 6)
        with pytest.raises(Interrupted):
            go(FAST, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(CheckpointError, match=r"is not finished .step 7 of 12.: give the same command without more"):
        go(FAST, out, more_steps=5)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    go(FAST, out)
    with monkeypatch.context() as patch:
        stopping_at(patch, 14)
        with pytest.raises(Interrupted):
            go(FAST, out, more_steps=5)
    with pytest.raises(
        CheckpointError, match=r"step 15 of 17, 5 of them more.: give the same command with these first"
    ):
        go(FAST, out, more_steps=6)
    with pytest.raises(CheckpointError, match="another configuration"):
        go(FAST.replace(layers=2), out, more_steps=5)
    with pytest.raises(CheckpointError, match="another text"):
        go(FAST, out, TEXT[::-1], more_steps=5)
    with pytest.raises(ValueError, match="-1 more steps are none"):
        go(FAST, out, more_steps=-1)
    assert go(FAST, out, more_steps=5)["more_steps"] == [5]


@pytest.mark.parametrize("files", range(1, 7))
def test_ended_between_any_two_files(tmp_path, monkeypatch, files):
    """A new part begins with six files: whichever is the last that was written, nothing is lost."""
    run = tmp_path / "run"
    first = go(FAST, run)
    real, written = training.write_whole, []

    def write(path, data):
        if len(written) == files:
            raise KeyboardInterrupt
        written.append(path)
        real(path, data)

    with monkeypatch.context() as patch:
        for module in (training, checkpoint, texts):
            patch.setattr(module, "write_whole", write)
        with pytest.raises(KeyboardInterrupt):
            go(FAST, run, more_steps=6)
    if files < 6:
        assert go(FAST, run) == first
    found = go(FAST, run, more_steps=6)
    assert (found["more_steps"], found["earlier"]) == ([6], [first])
    go(FAST, tmp_path / "whole")
    go(FAST, tmp_path / "whole", more_steps=6)
    assert_same_weights(run, tmp_path / "whole")


def test_a_part_that_diverges_leaves_the_finished_one(tmp_path, monkeypatch):
    go(FAST, tmp_path)
    monkeypatch.setattr(training, "rate_factor", lambda config, step: float("inf"))
    with pytest.raises(ValueError, match="the loss is nan at step"):
        go(FAST, tmp_path, more_steps=20)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert load_model(tmp_path / "step-12").config == FAST


def test_own_text_goes_on_in_its_alphabet(tmp_path):
    own = OwnText(TEXT + "¿?")
    config = FAST.replace(vocabulary=len(own.tokenizer))
    go(config, tmp_path, own)
    go(config, tmp_path, own, more_steps=3)
    for folder in (tmp_path, tmp_path / "step-12"):
        assert texts.load_tokenizer(folder).characters == own.tokenizer.characters


def test_on_the_command_line(tmp_path, call):
    """The run's own configuration and text, found in its folder."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "run"
    small = ["--preset", "tiny", "--layers", 1, "--d-model", 16, "--n-heads", 2, "--d-ff", 16, "--steps", 3]
    train_it = ["train", "--text", tmp_path / "text.txt", *small, "--device", "cpu", "--out", out]
    status, _, err = call(*train_it, "--more-steps", 2)
    assert status == 1
    assert "holds no config.json" in err
    assert call(*train_it)[0] == 0
    assert call("train", "--out", out, "--more-steps", 2)[0] == 0
    assert call(*train_it, "--more-steps", 2)[0] == 0  # all of the same command
    status, _, err = call("train", "--out", out, "--more-steps", 2, "--layers", 2)
    assert status == 1
    assert "layers 1 there, 2 here" in err.splitlines()[-1]
    found = json.loads((out / checkpoint.RESULTS).read_text())
    assert (found["more_steps"], found["config"]["steps"]) == ([2, 2], 3)
    assert call("train", "--out", out, "--more-steps", 0)[0] == 2
    assert call("evaluate", "--checkpoint", out / "step-3")[0] == 0
