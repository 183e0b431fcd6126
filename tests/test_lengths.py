"""Chapters can be read in one sitting: at most 2 500 words, what is folded left out."""

import json
import re

import pytest

from tools.pages import CHAPTERS, ROOT

MOST = 2_500


def words(markdown: list[str]) -> int:
    """Words of the cells, without what stands in a fold."""
    return sum(len(re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL).split()) for text in markdown)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_one_sitting(name: str) -> None:
    cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert words(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]) <= MOST


def test_what_is_folded_does_not_count_and_the_rest_does() -> None:
    assert words(["one two", "three <details>\n<summary>Hint</summary>\n\nfour five\n\n</details> six"]) == 4
