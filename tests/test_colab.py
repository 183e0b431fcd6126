"""The cell of chapter 7 that trains the full size: run as it stands, with a small preset; cut off, and run again."""

import base64
import shutil
import signal
import sys
import types

import nbformat
import pytest

from rcmha_lite import checkpoint, colab, training
from rcmha_lite.colab import copy_run, train_here
from rcmha_lite.training import Trainer, train
from tests.test_training import FAST, TEXT, assert_same_weights
from tools.notebooks import SKIPPED, faults
from tools.pages import ROOT

CHAPTER = nbformat.read(ROOT / "chapters/07_capstone.ipynb", as_version=4)
CELL = next(cell for cell in CHAPTER.cells if "train_here" in cell.source)


@pytest.fixture
def run_cell(tmp_path, monkeypatch):
    """The cell's own source with a stub for the preset; what it shows is kept."""
    pages = []
    monkeypatch.setattr(colab, "display", lambda: pages.append)
    monkeypatch.setattr(training, "load_tiny_shakespeare", lambda: TEXT)

    def run(drive: bool = False):
        pages.clear()
        source = CELL.source.replace("KEEP_IN_DRIVE = False", f"KEEP_IN_DRIVE = {drive}")
        names = {"PRESETS": {"gpu": FAST}, "ROOT": tmp_path, "LEVELS": {"a level": 2.0}}
        exec(source, names)
        return names["full_size"], list(pages)

    return run


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Google Drive, as far as the cell sees it."""
    mounted = []
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    return tmp_path / "drive/MyDrive/rcmha_lite/gpu"


def stop_at(monkeypatch, n, number=signal.SIGINT):
    """■ in step n."""
    step = Trainer.step

    def stopping(self, k):
        if k == n:
            signal.raise_signal(number)
        return step(self, k)

    monkeypatch.setattr(Trainer, "step", stopping)
    return step


def test_the_cell_is_short_and_left_out_of_the_books_own_run():
    assert set(CELL.metadata.tags) == {"nbval-skip", SKIPPED}
    assert CELL.execution_count is None
    assert not CELL.outputs
    assert len(CELL.source.splitlines()) <= 15
    assert "make" not in CELL.source
    assert faults(CHAPTER) == []
    CELL.metadata.tags.remove(SKIPPED)
    try:
        assert faults(CHAPTER), "without its tag it would count"
    finally:
        CELL.metadata.tags.append(SKIPPED)


def test_it_stops_and_goes_on_and_shows_curve_and_samples(run_cell, tmp_path, monkeypatch, capsys):
    whole = train(FAST, tmp_path / "whole", text=TEXT, progress=False)
    step = stop_at(monkeypatch, 6)
    found, pages = run_cell()
    assert found == {}
    assert "stopped after step 7; this cell goes on" in capsys.readouterr().out
    assert len(pages) == 1
    assert "Step 5 of 12: validation loss" in pages[0]
    monkeypatch.setattr(Trainer, "step", step)
    found, pages = run_cell()
    assert found["curve"] == whole["curve"]
    assert_same_weights(tmp_path / "whole", tmp_path / "runs/gpu")
    assert [title in page for title, page in zip(("Step 10 of 12", "Step 12 of 12"), pages, strict=True)] == [True] * 2
    assert base64.b64decode(pages[-1].split("base64,")[1].split('"')[0]).startswith(b"\x89PNG")
    sample = pages[-1].split("<pre>")[1]
    assert len(sample) > 200
    assert f"validation loss {found['val_loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["session", "machine"])
def test_a_lost_session_goes_on_from_drive(run_cell, drive, tmp_path, monkeypatch, lost):
    """Stopped in good order, or gone between two checkpoints; either way the machine's own folder is lost."""
    train(FAST, tmp_path / "whole", text=TEXT, progress=False)
    step = Trainer.step
    if lost == "session":
        stop_at(monkeypatch, 6)
        assert run_cell(drive=True)[0] == {}
        at = 7
    else:

        def gone(self, k):
            if k == 7:
                raise KeyboardInterrupt
            return step(self, k)

        monkeypatch.setattr(Trainer, "step", gone)
        with pytest.raises(KeyboardInterrupt):
            run_cell(drive=True)
        at = 6
    assert checkpoint.step_of(drive) == at
    shutil.rmtree(tmp_path / "runs")
    done = []
    monkeypatch.setattr(Trainer, "step", lambda self, k: done.append(k) or step(self, k))
    found, _ = run_cell(drive=True)
    assert done == list(range(at, 12))
    assert_same_weights(tmp_path / "whole", drive)
    assert checkpoint.load_results(drive) == found
    shutil.rmtree(tmp_path / "runs")
    done.clear()
    assert run_cell(drive=True)[0] == found
    assert not done, "a finished run is not trained again"


def test_outside_colab_the_switch_is_answered_in_words(run_cell, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    assert run_cell(drive=True)[0]["val_loss"]
    assert "There is no Google Drive outside Colab" in capsys.readouterr().out


def test_an_older_copy_does_not_replace_a_newer_run(tmp_path):
    train(FAST.replace(steps=6), tmp_path / "old", text=TEXT, progress=False)
    train(FAST, tmp_path / "new", text=TEXT, progress=False)
    copy_run(tmp_path / "old", tmp_path / "new")
    assert checkpoint.step_of(tmp_path / "new") == 12
    copy_run(tmp_path / "nothing", tmp_path / "new")
    copy_run(tmp_path / "new", tmp_path / "old")
    assert_same_weights(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old" / checkpoint.TRAINING).write_bytes(b"half")
    assert checkpoint.step_of(tmp_path / "old") is None


def test_what_is_watched_changes_nothing(tmp_path):
    """Samples are drawn between steps, by a generator of their own."""
    whole = train(FAST, tmp_path / "whole", text=TEXT, progress=False)
    pages = []
    found = train_here(FAST, tmp_path / "seen", text=TEXT, show=pages.append)
    assert len(pages) == 3
    assert found["curve"] == whole["curve"]
    assert_same_weights(tmp_path / "whole", tmp_path / "seen")
