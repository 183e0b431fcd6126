"""The notebooks as stored, and proof that the checks on them can fail."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from tools.notebooks import faults, stale_figures
from tools.pages import NOTEBOOKS, PAGES, ROOT

MIB = 2**20


def test_every_chapter_is_promised() -> None:
    written = {f"chapters/{path.stem}" for path in (ROOT / "chapters").glob("*.ipynb")}
    assert written == {page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebook(name: str) -> None:
    path = ROOT / f"{name}.ipynb"
    assert path.stat().st_size <= MIB
    assert faults(nbformat.read(path, as_version=4)) == []


def test_set_up_is_the_same_everywhere() -> None:
    notebooks = [nbformat.read(ROOT / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS]
    first = {next(cell.source for cell in notebook.cells if cell.cell_type == "code") for notebook in notebooks}
    assert len(first) == 1


def picture(grey: int, size: int = 8) -> NotebookNode:
    """A grey square as the kernel stores it."""
    png = Image.new("L", (size, size), grey)._repr_png_()
    assert png is not None
    text = f"<PIL.Image.Image image mode=L size={size}x{size}>"
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": text}
    return new_output("execute_result", data, execution_count=1)


def described(*outputs: NotebookNode, count: int = 1, source: str = "square") -> NotebookNode:
    """An executed cell whose figure has its alt text, caption and name."""
    mystnb = {"image": {"alt": "a grey square"}, "figure": {"caption": "Grey.", "name": "fig-grey"}}
    return new_code_cell(source, execution_count=count, outputs=list(outputs), metadata={"mystnb": mystnb})


@pytest.mark.parametrize(
    ("stored", "fresh", "fault"),
    [
        ([], [], None),
        ([picture(200)], [picture(200)], None),
        ([picture(200)], [picture(201)], None),
        ([picture(200)], [picture(210)], "stale figure 1: differs by 8.7 of 255"),
        ([picture(200), picture(9)], [picture(200), picture(99)], "stale figure 2"),
        ([picture(200)], [picture(200, size=9)], "stale figure 1: stored 8×8, drawn now 9×9"),
        ([picture(200)], [], "stale figure: 1 stored, 0 drawn now"),
    ],
)
def test_stale_figures(stored: list[NotebookNode], fresh: list[NotebookNode], fault: str | None) -> None:
    found = stale_figures(stored, fresh)
    assert found == fault if fault is None or found is None else found.startswith(fault)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda cell: cell, None),
        (lambda cell: cell.update(execution_count=2), "execution counts [2]"),
        (lambda cell: cell.update(execution_count=None), "execution counts [None]"),
        (lambda cell: cell.metadata.mystnb.image.pop("alt"), "cell 1: figure without alt"),
        (lambda cell: cell.metadata.mystnb.figure.update(caption=""), "cell 1: figure without caption"),
        (lambda cell: cell.metadata.mystnb.figure.pop("name"), "cell 1: figure without name"),
        (lambda cell: cell.outputs.append(new_output("error", ename="E")), "cell 1: error E"),
        (
            lambda cell: cell.outputs.append(new_output("display_data", {"text/plain": "(0, 1)"})),
            "cell 1: another output",
        ),
    ],
)
def test_faults(spoil: Callable[[NotebookNode], object], fault: str | None) -> None:
    cell = described(picture(200))
    spoil(cell)
    found = faults(new_notebook(cells=[cell]))
    assert found == [] if fault is None else len(found) == 1 and found[0].startswith(fault)


def test_nbval_catches_altered_outputs(tmp_path: Path) -> None:
    """The hook in `conftest.py` is in force: of four cells, an altered figure and an altered number fail."""
    draw = "from PIL import Image\nImage.new('L', (8, 8), 200)"
    number = new_output("execute_result", {"text/plain": "3"}, execution_count=4)
    cells = [
        new_code_cell("import rcmha_lite", execution_count=1),
        described(picture(200), count=2, source=draw),
        described(picture(100), count=3, source=draw),
        new_code_cell("1 + 1", execution_count=4, outputs=[number]),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "altered.ipynb")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "conftest"]
    command = [*pytest_here, "--nbval", "--nbval-current-env", "altered.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "2 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "stale figure 1: differs by" in run.stdout
    assert "Cell 3: Cell outputs differ" in run.stdout
