"""A stop is heard at once and costs at most the step in hand; a bar that cannot be written costs nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rcmha_lite import checkpoint, training
from rcmha_lite.stopping import SIGNALS, Interrupted, stop_requested
from rcmha_lite.training import train
from tests.test_training import FAST, REPOSITORY, TEXT, assert_same_weights, checkpoint_step

WORDS = "stopping after the step in hand; once more ends at once"


@pytest.mark.parametrize("number", SIGNALS)
def test_any_request_is_heard_at_once(number, capfd):
    with stop_requested() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
    assert WORDS in capfd.readouterr().err


def test_a_request_inside_another_library_is_heard():
    """torch.compile traces in a mode where no operation on a real tensor is allowed: the flag is none."""
    with stop_requested() as stop, FakeTensorMode():
        signal.raise_signal(signal.SIGINT)
    assert stop


def test_the_same_signal_twice_ends_at_once_and_another_kind_does_not():
    """A launcher of several processes passes Ctrl-C on as a request to terminate."""
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requested():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_the_hosts_stays_the_hosts(monkeypatch):
    """Ignored, as nohup asks, or handled outside Python, where there is nothing to put back."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGTERM else real(n))
    try:
        untouched = real(signal.SIGTERM)
        with stop_requested() as stop:
            signal.raise_signal(signal.SIGINT)
            assert real(signal.SIGTERM) == untouched
        assert not stop
        assert real(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_a_validation_is_cut_short_and_made_again(tmp_path, monkeypatch):
    whole = train(FAST, tmp_path / "whole", text=TEXT, progress=False)
    evaluate, asked = training.evaluate, []

    def asked_in_the_middle(*arguments, between=None, **named):
        def stop_then_look():
            asked.append(0)
            if len(asked) in (1, 3):
                signal.raise_signal(signal.SIGINT)
            between()
            assert len(asked) not in (1, 3), "validation went on"

        return evaluate(*arguments, between=stop_then_look, **named, batch=4)

    monkeypatch.setattr(training, "evaluate", asked_in_the_middle)
    for _ in range(2):
        with pytest.raises(Interrupted, match="stopped after step 5; the same command goes on"):
            train(FAST, tmp_path / "parts", text=TEXT, progress=False)
        assert checkpoint_step(tmp_path / "parts") == 5
        asked.append(0)
    found = train(FAST, tmp_path / "parts", text=TEXT, progress=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert [p["step"] for p in found["curve"]] == [p["step"] for p in whole["curve"]]
    for ours, theirs in zip(found["curve"], whole["curve"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_second_request_ends_at_once_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    step = training.Trainer.step

    def impatient(self, n):
        found = step(self, n)
        if n == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(training.Trainer, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(FAST, tmp_path, text=TEXT, progress=False)
    assert checkpoint_step(tmp_path) == 6
    checkpoint.load_model(tmp_path)


def command(tmp_path: Path, shell: str) -> subprocess.CompletedProcess:
    """The command line trains two steps with its standard error as the shell's words say."""
    (tmp_path / "text").write_text(TEXT)
    words = "train --preset tiny --steps 2 --layers 1 --d-model 16 --n-heads 2 --out run"
    code = (
        "import sys; from rcmha_lite import data, __main__ as m; "
        "data.load_tiny_shakespeare = lambda path=None: open('text').read(); "
        f"sys.argv = ['rcmha_lite'] + {words.split()}; m.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = ["bash", "-c", f'set -o pipefail; {sys.executable} -c "{code}" {shell}']
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and closed streams as Linux has them")
@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", "2> >(head -c 10 >/dev/null)"])
def test_a_bar_that_cannot_be_written_costs_nothing(tmp_path, shell):
    done = command(tmp_path, shell)
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert (tmp_path / "run" / checkpoint.RESULTS).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_two_processes_stop_together(tmp_path):
    """Ctrl-C reaches the launcher and both processes; all leave, with one checkpoint, and the run goes on."""
    import json
    import time

    config = FAST.replace(steps=4000, checkpoint_every=4000, eval_every=0, optimizer="adamw")
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "config").write_text(config.to_json())
    (tmp_path / "script.py").write_text(
        "import sys, torch\ntorch.set_num_threads(1)\nfrom rcmha_lite import training\n"
        "from rcmha_lite.config import Config\n"
        "training.train(Config.from_json(open('config').read()), 'run', text=open('text').read(), progress=False)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "errors").open("w") as errors:
        run = subprocess.Popen(launcher, cwd=tmp_path, env=environment, stderr=errors, start_new_session=True)
        while not (tmp_path / "run" / checkpoint.TRAINING).exists():
            assert run.poll() is None, (tmp_path / "errors").read_text()
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(timeout=120) != 0
    seen = (tmp_path / "errors").read_text()
    assert 0 < checkpoint_step(tmp_path / "run") < 4000, seen
    assert seen.count("Interrupted: stopped after step") >= 1
    assert not json.loads(config.to_json())["compile"]
    assert torch.isfinite(next(checkpoint.load_model(tmp_path / "run").parameters())).all()
