"""The notebooks' first code cell, the same in all, written from `first_cell.py` beside this: python -m tools.set_up"""

import json
from pathlib import Path
from typing import Any

import yaml

from tools.pages import NOTEBOOKS, ROOT

SOURCE = Path(__file__).with_name("first_cell.py")


def cell() -> str:
    """Its source, with the repository's address of `_config.yml`, which may be empty."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    address = str(config["repository"]["url"] or "")
    return SOURCE.read_text(encoding="utf-8").rstrip().replace('REPOSITORY = ""', f'REPOSITORY = "{address}"', 1)


def with_cell(text: str) -> str:
    """A notebook's file with that cell in the place of its first; nothing else of it changes."""
    notebook: Any = json.loads(text)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"] = cell().splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name in NOTEBOOKS:
        path = ROOT / f"{name}.ipynb"
        path.write_text(with_cell(path.read_text(encoding="utf-8")), encoding="utf-8")
