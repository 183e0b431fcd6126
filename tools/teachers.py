"""The notebooks for a class, without solutions: `python -m tools.teachers`, into `_build/teachers`.

The set-up cell finds the package as it does in the book: from inside the repository, or where it is installed.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import nbformat

from tools.exercises import SOLUTION, STUB, in_section, read
from tools.pages import NOTEBOOKS, ROOT


def without_solutions(notebook: Any, *, stubs: bool = True, outputs: bool = True) -> Any:
    """A copy without the cells tagged ``solution``; without stubs and outputs, too, if so wanted.

    Stubs lose the tags that keep the book from running them, so that a notebook that is handed in runs as a whole.
    """
    notebook = copy.deepcopy(notebook)
    to_fill_in = [cell for cell in in_section(notebook) if set(cell.metadata.get("tags", [])) >= STUB]
    kept = []
    for cell in notebook.cells:
        is_stub = any(cell is one for one in to_fill_in)
        if SOLUTION in cell.metadata.get("tags", []) or (is_stub and not stubs):
            continue
        if is_stub:
            cell.metadata.tags = [tag for tag in cell.metadata.tags if tag not in STUB]
        if cell.cell_type == "code" and not outputs:
            cell.outputs, cell.execution_count = [], None
        kept.append(cell)
    notebook.cells = kept
    return notebook


def write(folder: Path, *, stubs: bool = True, outputs: bool = True) -> list[Path]:
    """Every chapter's notebook into the folder, which is made; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name.rpartition('/')[2]}.ipynb" for name in NOTEBOOKS]
    for name, file in zip(NOTEBOOKS, files, strict=True):
        nbformat.write(without_solutions(read(name), stubs=stubs, outputs=outputs), file)
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the notebooks without solutions.")
    parser.add_argument("--no-stubs", action="store_true", help="leave the cells to fill in out, too")
    parser.add_argument("--no-outputs", action="store_true", help="leave the stored outputs out")
    parser.add_argument("--folder", type=Path, default=ROOT / "_build/teachers", help="where to (default: %(default)s)")
    asked = parser.parse_args()
    files = write(asked.folder, stubs=not asked.no_stubs, outputs=not asked.no_outputs)
    print(f"{len(files)} notebooks without solutions in {asked.folder}")
