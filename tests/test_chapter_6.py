"""Whoever follows the walk needs no source: what the solution uses stands in the text of chapter 6 before it."""

import json
import re

import pytest

from rcmha_lite.exercises.rcmha_in_one_file import RCMHA, LanguageModel
from tools.exercises import of_notebook
from tools.pages import ROOT

CELLS = json.loads((ROOT / "chapters/06_write_rcmha.ipynb").read_text(encoding="utf-8"))["cells"]
MARKDOWN = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
BEFORE = "\n".join(MARKDOWN[: next(n for n, text in enumerate(MARKDOWN) if "<summary>Solution" in text)])


def named(name: str) -> bool:
    """Whether the name of a parameter stands in the text: whole, with n for a block's number, or as module and leaf."""
    name = re.sub(r"blocks\.\d+", "blocks.n", name)
    module, _, leaf = name.rpartition(".")
    inside = (
        module.removeprefix("blocks.n.attention").lstrip(".") if module.startswith("blocks.n.attention.") else module
    )
    whole = {f"`{name}`", f"`{name.removeprefix('blocks.n.attention.')}`"}
    return any(text in BEFORE for text in whole) or (f"`{inside}`" in BEFORE and (leaf in ("weight", "bias")))


@pytest.mark.parametrize("name", [*RCMHA(16, 2).state_dict(), *LanguageModel(5, 16, 2, 64, 2).state_dict()])
def test_every_parameter_stands_in_the_text_before_the_first_solution(name):
    assert named(name)


def test_a_name_that_is_not_there_would_be_missed():
    assert not named("position.scale")
    assert not named("blocks.0.gate.weight")


@pytest.mark.parametrize(
    "fact",
    [
        "$[D, D]$", "$[3, 1, d, 3]$", "$[3, 1, d]$", "$[h, d]$", "$[D, 32]$", "$[4D, D]$", "$[D, 4D]$",  # shapes
        r"$1/\sqrt D$", r"uniform in $\pm 1/\sqrt 3$", r"$1/\sqrt{32}$", "normal, standard deviation 1 |",  # starts
        "`output.weight` is 0", "the oldest first", "16 sines and then 16 cosines", r"10000^{-2m/32}", "float64",
        "channels $nd$ to $nd + d - 1$", "*before* its norm", "`detach()`", "x[:, -0:]", "dropout", "`d_ff`",
        "Only then are the last $T$ queries kept", "divided by $\\sqrt d$ once", "after the kernels",
    ],
)  # fmt: skip
def test_what_was_guessed_before_is_said(fact):
    assert fact in BEFORE


def test_the_stages_are_graded_until_each_part():
    notebook = __import__("nbformat").read(ROOT / "chapters/06_write_rcmha.ipynb", as_version=4)
    stubs = "\n".join(stub for one in of_notebook(notebook) for stub in one.stubs)
    for until in (
        'until="heads"',
        'until="kernels"',
        'until="distances"',
        "check_rcmha(RCMHA))",
        "check_language_model",
    ):
        assert until in stubs
