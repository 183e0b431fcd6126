"""What readers have solved is written down where they have a folder, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rcmha_lite import exercises
from rcmha_lite.exercises import _progress
from rcmha_lite.exercises._progress import key, progress, record_file, solved

ROOT = Path(__file__).parents[1]


def square(x):
    return x.clamp(min=0) ** 2


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record of this test's own."""
    monkeypatch.setenv("RCMHA_PROGRESS", str(tmp_path / "mine" / "solved.json"))
    monkeypatch.delenv("RCMHA_LITE_STATIC", raising=False)
    return tmp_path / "mine" / "solved.json"


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    book = [
        {
            "chapter": 5,
            "title": "Squares",
            "graded": [
                {"exercise": "Square it", "level": "★☆☆", "check": "check_squared_relu"},
                {"exercise": "Behind a memory", "level": "★★☆", "check": "check_shift(memory=3)"},
            ],
        },
        {"chapter": 8, "title": "Shifts", "graded": [{"exercise": "Shift", "level": "★★☆", "check": "check_shift"}]},
    ]
    (tmp_path / "book.json").write_text(json.dumps(book), encoding="utf-8")
    monkeypatch.setattr(_progress, "BOOK", tmp_path / "book.json")


def shift(by_distance):
    queries, keys = by_distance.shape
    rows = [[by_distance[i, max(keys - queries + i - j, 0)] for j in range(keys)] for i in range(queries)]
    return by_distance.new_tensor(rows)


def test_what_passes_is_written_down_once_and_shown(record, small_book, capsys):
    progress()
    assert capsys.readouterr().out == (
        "5. Squares: 0 of 2\n"
        "   ★☆☆  Square it        open\n"
        "   ★★☆  Behind a memory  open\n"
        "8. Shifts: 0 of 1\n"
        "   ★★☆  Shift            open\n"
        "0 of 3 solved\n"
    )
    assert not record.exists()
    assert exercises.check_squared_relu(square).startswith("Right")
    written = record.read_text(encoding="utf-8")
    assert exercises.check_squared_relu(square).startswith("Right")
    assert record.read_text(encoding="utf-8") == written
    exercises.check_shift(shift, memory=3)
    assert solved() == {"check_squared_relu", "check_shift(memory=3)"}
    progress()
    shown = capsys.readouterr().out
    assert "   ★☆☆  Square it        solved\n   ★★☆  Behind a memory  solved\n" in shown
    assert shown.endswith("8. Shifts: 0 of 1\n   ★★☆  Shift            open\n2 of 3 solved\n")
    exercises.check_shift(shift)
    progress()
    assert capsys.readouterr().out.endswith("3 of 3 solved, all of them\n")


def test_what_is_refused_is_not_written_down(record):
    with pytest.raises(AssertionError):
        exercises.check_squared_relu(lambda x: x)
    assert not record.exists()
    assert solved() == set()


@pytest.mark.parametrize("setting", [{"RCMHA_LITE_STATIC": "1"}, {"RCMHA_PROGRESS": "off"}, {"RCMHA_PROGRESS": ""}])
def test_builds_and_readers_may_switch_it_off(record, monkeypatch, tmp_path, setting):
    exercises.check_shift(shift)
    before = record.read_text(encoding="utf-8")
    monkeypatch.setenv("RCMHA_CACHE", str(tmp_path / "cache"))
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert record_file() is None
    exercises.check_squared_relu(square)
    assert solved() == set()
    assert record.read_text(encoding="utf-8") == before
    assert not (tmp_path / "cache").exists()


def test_it_stands_in_the_package_s_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RCMHA_PROGRESS")
    monkeypatch.delenv("RCMHA_LITE_STATIC", raising=False)
    monkeypatch.setenv("RCMHA_CACHE", str(tmp_path))
    exercises.check_squared_relu(square)
    assert json.loads((tmp_path / "progress.json").read_text(encoding="utf-8")) == {"solved": ["check_squared_relu"]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"solved": 7}', "null", '{"solved": [1, ["x"]]}'])
def test_a_damaged_record_is_begun_anew(record, text):
    record.parent.mkdir()
    record.write_text(text, encoding="utf-8")
    assert solved() == set()
    assert exercises.check_squared_relu(square).startswith("Right")
    assert solved() == {"check_squared_relu"}


def test_a_failed_write_breaks_no_check(tmp_path, monkeypatch, small_book, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.delenv("RCMHA_LITE_STATIC", raising=False)
    monkeypatch.setenv("RCMHA_PROGRESS", str(tmp_path / "file" / "solved.json"))
    assert exercises.check_squared_relu(square).startswith("Right")
    progress()
    assert capsys.readouterr().out.endswith("0 of 3 solved\n")
    monkeypatch.setenv("RCMHA_PROGRESS", str(tmp_path))  # a folder
    assert exercises.check_squared_relu(square).startswith("Right")

    def fail(*_):
        raise MemoryError

    monkeypatch.setenv("RCMHA_PROGRESS", str(tmp_path / "new.json"))
    monkeypatch.setattr(_progress, "write_whole", fail)
    assert exercises.check_squared_relu(square).startswith("Right")
    assert not (tmp_path / "new.json").exists()


def test_two_kernels_lose_nothing(record):
    """Several processes pass a check at once."""
    code = (
        "import sys; from rcmha_lite.exercises._progress import record\n"
        "for n in range(10):\n"
        "    def check(): ...\n"
        "    check.__name__ = f'check_{sys.argv[1]}_{n}'\n"
        "    record(check, {})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=environment) for n in range(3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    assert solved() == {f"check_{n}_{m}" for n in range(3) for m in range(10)}


def test_names_hold_the_options_that_are_not_the_default():
    assert key(exercises.check_shift, {}) == "check_shift"
    assert key(exercises.check_shift, {"memory": 0}) == "check_shift"
    assert key(exercises.check_shift, {"memory": 3}) == "check_shift(memory=3)"
    assert key(exercises.check_causal, {"times": (4,), "width": 8}) == "check_causal(width=8, times=(4,))"


def test_the_book_s_list_is_in_the_package(monkeypatch, capsys, record):
    """Without the notebooks at hand."""
    monkeypatch.chdir(record.parent.parent)
    exercises.progress()
    found = capsys.readouterr().out.splitlines()
    assert found[0].startswith("1. ")
    assert found[-1].startswith("0 of ")
    assert len(found) > 20
