"""Execute notebooks in place, so that two runs on one machine store the same bytes."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, resources=folder, record_timing=False, coalesce_streams=True).execute()
    nbformat.write(notebook, path)


for name in sys.argv[1:]:
    print("executing", name, flush=True)
    execute(Path(name))
