"""The pages that `_toc.yml` promises."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
_toc = yaml.safe_load((ROOT / "_toc.yml").read_text())

PAGES: list[str] = [_toc["root"], *(chapter["file"] for part in _toc["parts"] for chapter in part["chapters"])]
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]
CHAPTERS = [name for name in NOTEBOOKS if name.removeprefix("chapters/")[0].isdigit()]
"""The notebooks that are numbered: all but the appendix."""
