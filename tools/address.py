"""The repository's public address: ``repository: url`` in `_config.yml` is its one place; this writes it into the rest.

`python -m tools.address` after a change there. Without an address the pages show no button for the repository, its
issues or Colab, and a set-up cell far from the repository says how to get it.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config

from tools.pages import NOTEBOOKS, ROOT

BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button", "launch_buttons")


def address(root: Path = ROOT) -> str:
    """The address, or "" where there is none."""
    found = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    return str(found or "").rstrip("/")


def with_address(name: str, text: str, url: str) -> str:
    """A file of the project, ``name``, with the address ``url``, or without one."""
    if name == "CITATION.cff":
        text = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
        return text.replace("references:\n", f"repository-code: {url}\nreferences:\n") if url else text
    if name == "pyproject.toml":
        text = re.sub(r"^\[project\.urls\]\nRepository = .*\n\n", "", text, flags=re.MULTILINE)
        place = "[project.scripts]\n"
        return text.replace(place, f'[project.urls]\nRepository = "{url}"\n\n{place}') if url else text
    return re.sub(r'"REPOSITORY = \\".*?\\"', lambda _: f'"REPOSITORY = \\"{url}\\"', text, count=1)  # a set-up cell


def rest(root: Path = ROOT) -> dict[Path, str]:
    """Every file that names the address, as it should be."""
    names = ["CITATION.cff", "pyproject.toml", *(f"{name}.ipynb" for name in NOTEBOOKS)]
    url = address(root)
    return {
        root / n: with_address(n, (root / n).read_text(encoding="utf-8"), url) for n in names if (root / n).exists()
    }


def drop_buttons(app: Sphinx, config: Config) -> None:
    """Without an address, no button that would need one."""
    options: dict[str, Any] = config.html_theme_options
    if not options.get("repository_url"):
        for name in BUTTONS:
            options.pop(name, None)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", drop_buttons, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for path, text in rest().items():
        path.write_text(text, encoding="utf-8")
