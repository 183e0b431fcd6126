"""The notebooks' first cell finds the package, or fetches it, or says what to do; `make` works in any folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import set_up
from tools.pages import NOTEBOOKS, ROOT

ELSEWHERE = "sp ace/fre sh é"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_has_the_cell(name):
    text = (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")
    assert set_up.with_cell(text) == text, "run python -m tools.set_up"


def test_nothing_but_the_cell_is_written():
    text = (ROOT / f"{NOTEBOOKS[0]}.ipynb").read_text(encoding="utf-8")
    spoilt = text.replace("def whole(folder", "def hole(folder")
    assert spoilt != text
    assert set_up.with_cell(spoilt) == text


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / ELSEWHERE
    folder.mkdir(parents=True)
    return folder


def repository(folder: Path) -> Path:
    """As much of one as the cell looks for; its package says where it was found."""
    for name in ("rcmha_lite/__init__.py", "experiments/results.py", "chapters/index.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def committed(folder: Path) -> Path:
    """A repository of git's, too."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=repository(folder), check=True, capture_output=True)
    return folder


def run(where: Path, address: str | Path = "", path: Path | None = None) -> tuple[str, str]:
    """The cell, run in a folder: the root that it found, and what it said."""
    source = set_up.SOURCE.read_text(encoding="utf-8").replace('REPOSITORY = ""', f"REPOSITORY = {str(address)!r}")
    source += "\nimport rcmha_lite\nprint('ROOT', ROOT)\nprint('FROM', Path(rcmha_lite.__file__).parents[1])\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONUTF8": "1", "GIT_TERMINAL_PROMPT": "0"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=where, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        return "", done.stderr
    root, origin = (line.split(" ", 1)[1] for line in lines[-2:])
    assert root == origin
    return root, "\n".join(lines[:-2])


def test_the_repository_around_the_notebook_comes_first(elsewhere):
    installed = repository(elsewhere / "installed")
    assert run(repository(elsewhere) / "chapters", path=installed) == (str(elsewhere), "")


def test_a_folder_that_bears_the_name_is_not_the_package(elsewhere):
    whole = repository(elsewhere / "whole")
    below = whole / "chapters/deep/rcmha_lite"
    below.mkdir(parents=True)
    assert run(below.parent)[0] == str(whole)
    (elsewhere / "rcmha_lite").mkdir()
    assert run(elsewhere)[1] == "rcmha_lite is not here: download the repository and start Jupyter inside it\n"


def test_an_installed_package_is_used_and_nothing_is_fetched(elsewhere):
    installed = elsewhere / "site"
    shutil.copytree(ROOT / "rcmha_lite", installed / "rcmha_lite", ignore=shutil.ignore_patterns("__pycache__"))
    root, said = run(elsewhere, address="https://nowhere.invalid/x", path=installed)
    assert root == str(installed)
    assert said == "Results are in the repository: start Jupyter inside it."
    assert not (elsewhere / "rcmha-lite").exists()


def test_a_clone_is_fetched_once(elsewhere, tmp_path):
    address = committed(tmp_path / "origin")
    assert run(elsewhere, address) == (str(elsewhere / "rcmha-lite"), "")
    assert run(elsewhere, "https://nowhere.invalid/x") == (str(elsewhere / "rcmha-lite"), "")


@pytest.mark.parametrize("left", ["", ".git/config", "rcmha_lite/mine.txt", "a file"])
def test_a_clone_that_was_cut_off_is_made_again_and_nothing_is_lost(elsewhere, tmp_path, left):
    address, broken = committed(tmp_path / "origin"), elsewhere / "rcmha-lite"
    if left == "a file":
        broken.write_text("mine")
    else:
        (broken / left).parent.mkdir(parents=True, exist_ok=True)
        (broken / left).write_text("mine") if left else broken.mkdir(exist_ok=True)
    mine = left in ("rcmha_lite/mine.txt", "a file")
    expected = str(elsewhere / ("rcmha-lite-again" if mine else "rcmha-lite"))
    for _ in range(2):
        assert run(elsewhere, address)[0] == expected
    assert not mine or (broken if left == "a file" else broken / left).read_text() == "mine"


@pytest.mark.parametrize("git", [True, False])
def test_what_cannot_be_fetched_is_one_line(elsewhere, tmp_path, monkeypatch, git):
    if not git:
        monkeypatch.setenv("PATH", str(tmp_path))
    said = run(elsewhere, tmp_path / "missing")[1].splitlines()[-1]
    assert said.startswith(f"{tmp_path / 'missing'} could not be cloned")
    assert said.endswith("download the repository and start Jupyter inside it")
    assert not (elsewhere / "rcmha-lite").exists()


@pytest.fixture
def checkout(elsewhere):
    """The project's files under a name with spaces and an accent, with this machine's environment made already."""
    if not shutil.which("make"):
        pytest.skip("there is no make")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("experiments/results/", "tests/golden")):
            (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, elsewhere / name)
    bin = elsewhere / ".venv/bin"
    bin.mkdir(parents=True)
    (bin / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin / "jupyter-book").write_text("#!/bin/sh\nmkdir -p _build/html\n")
    for tool in bin.iterdir():
        tool.chmod(0o755)
    (elsewhere / ".venv/.installed").touch()
    return elsewhere


def made(where: Path, *targets: str) -> str:
    done = subprocess.run(["make", *targets], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="make's recipes are for a POSIX shell")
def test_make_in_a_folder_with_spaces_and_accents(checkout):
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": []}
    code = ["import rcmha_lite, pathlib\n", "print(pathlib.Path(rcmha_lite.__file__).parents[1])"]
    notebook = {"cells": [cell | {"source": code}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = checkout / "chapters/05_squared_relu.ipynb"
    path.write_text(json.dumps(notebook))
    made(checkout, "chapters/05_squared_relu.ipynb")
    outputs = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["outputs"]
    assert outputs[0]["text"] == [f"{checkout}\n"]
    assert (checkout / "_build/html/index.html").as_uri() in made(checkout, "book")
    made(checkout, "clean", "help")
    assert not (checkout / "_build").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="make's recipes are for a POSIX shell")
def test_make_says_why_there_is_no_environment(elsewhere):
    shutil.copy(ROOT / "Makefile", elsewhere)
    (elsewhere / "requirements.txt").touch()
    (elsewhere / ".venv").symlink_to("nowhere/at/all")
    done = subprocess.run(
        ["make", "book", f"PYTHON={sys.executable}"], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "No .venv was made here" in done.stdout
    assert "apt install" not in done.stdout
