"""The exercises of the notebooks are as readers and teachers need them, their solutions solve them, and the tests of
that can fail."""

import json
import os
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rcmha_lite.exercises._progress import BOOK
from tools import teachers
from tools.exercises import Exercise, book, checks, faults, headings, of_notebook, read, run, tried, written
from tools.notebooks import SKIPPED
from tools.pages import CHAPTERS, NOTEBOOKS, ROOT

NUMBERED = {name: int(name.rpartition("/")[2][:2]) for name in CHAPTERS}


@pytest.mark.parametrize("name", CHAPTERS)
def test_exercises_are_written_as_agreed(name):
    """From chapter 11 on, where the book becomes a record of evidence, 3 exercises are enough, and 1 graded."""
    least, graded = (4, 3) if NUMBERED[name] <= 10 else (3, 1)
    assert faults(read(name), least, graded) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_stubs_are_refused_and_solutions_pass(name):
    """In a process of its own, as in the reader's kernel: this one's type checks would answer for the checks."""
    code = f"from tools.exercises import read, tried; print(*tried(read({name!r})), sep='\\n')"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RCMHA_LITE_STATIC": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "chapters",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_progress_knows_every_graded_exercise():
    assert BOOK.read_text(encoding="utf-8") == written(book()), "exercises changed: run python -m tools.exercises"


def test_a_check_that_passes_tells_which_exercise_was_solved():
    called = Counter(one["check"] for chapter in json.loads(BOOK.read_text("utf-8")) for one in chapter["graded"])
    assert [name for name, times in called.items() if times > 1] == [], "give one of the two an option of its own"


QUESTION = """### Twice

★☆☆ fill in · graded

Write `double(x)`.

<details>
<summary>Hint</summary>

Add it to itself.

</details>"""
STUB = "def activation(x):  # [n] → [n]\n    ...\n\n\nprint(exercises.check_squared_relu(activation))"
SOLUTION = """<details>
<summary>Solution</summary>

```python
def activation(x):
    return relu(x) ** 2


print(exercises.check_squared_relu(activation))
```

```text
Right: zero on the left, a parabola on the right.
```

</details>"""
OPEN = (
    QUESTION.replace("Twice", "And then?").replace("★☆☆ fill in · graded", "★★★ explore"),
    "prediction = ...",
    SOLUTION.replace("relu(x) ** 2", "activation(x)").replace("def activation", "def again"),
)


def stub_cell(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags or (SKIPPED, "nbval-skip"))})


def solution_cell(source):
    return new_markdown_cell(source, metadata={"tags": ["solution"]})


def made(question=QUESTION, stub=STUB, solution=SOLUTION, *, more=(), last=OPEN):
    """A notebook of two exercises; ``more`` cells stand after the first."""
    cells = [
        new_markdown_cell("# A chapter\n\n```text\n## Exercises\n```"),
        new_code_cell("from rcmha_lite import exercises"),
        new_code_cell("def relu(x):\n    return x.clamp(min=0)"),
        new_markdown_cell("Prose.\n\n## Exercises\n\nDo them."),
    ]
    for one in ((question, stub, solution), last):
        cells.append(new_markdown_cell(one[0]))
        cells += [stub_cell(one[1])] if one[1] else []
        cells += [solution_cell(one[2])] if one[2] else []
        cells += more if one[0] == question else []
    return new_notebook(cells=[*cells, new_markdown_cell("## Summary\n\n### Not an exercise")])


def test_a_made_notebook_is_right():
    notebook = made()
    assert [(one.title, one.level, one.graded) for one in of_notebook(notebook)] == [
        ("Twice", "★☆☆ fill in", True),
        ("And then?", "★★★ explore", False),
    ]
    assert faults(notebook, 2, 1) == []
    assert tried(notebook) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"question": QUESTION.replace("★☆☆ fill in", "★★☆ fill in")}, "below the title"),
        ({"question": QUESTION.replace("★☆☆ fill in", "★★☆ write")}, "the first exercise must be ★☆☆"),
        ({"question": QUESTION.replace("\n\n★", "\n★")}, "below the title"),
        ({"question": QUESTION.replace(" · graded", " graded")}, "below the title"),
        ({"question": QUESTION.replace(" · graded", "")}, "not marked · graded"),
        ({"question": QUESTION.replace("<summary>Hint</summary>", "Hint")}, "no hint"),
        ({"question": QUESTION.replace("Hint</summary>\n\n", "Hint</summary>\n")}, "no hint"),
        ({"question": QUESTION.partition("<details>")[0]}, "no hint"),
        ({"question": QUESTION + "\n\n### Three times"}, "two titles in one cell"),
        ({"question": "So:\n\n" + QUESTION}, "starts with '### '"),
        ({"question": QUESTION.replace("Twice", "And then?")}, "two exercises are called 'And then?'"),
        ({"stub": ""}, "with 0 stubs"),
        ({"stub": STUB + "\nfor"}, "the stub cannot be read"),
        ({"stub": STUB.replace("squared_relu", "cubed_relu")}, "check_cubed_relu is not in the package"),
        ({"stub": STUB.replace("(activation))", "(activation, memory=n))")}, "the stub cannot be read"),
        (
            {"stub": STUB.replace("squared_relu", "shift")},
            "the stub calls check_shift, the solution check_squared_relu",
        ),
        ({"stub": STUB.replace("print(exercises", "print(len")}, "it calls 0"),
        ({"solution": ""}, "0 cells tagged solution"),
        ({"solution": SOLUTION.replace("<details>\n", "<details open>\n")}, "the solution must be <details>"),
        ({"solution": SOLUTION.replace("Solution</summary>", "Answer</summary>")}, "the solution must be <details>"),
        ({"solution": SOLUTION + "\n\nThat was it."}, "the solution must be <details>"),
        ({"solution": SOLUTION.replace("```\n\n</details>", "```\n</details>")}, "the solution must be <details>"),
        ({"solution": SOLUTION.replace("```python", "```")}, "no ```python block"),
        ({"solution": SOLUTION.replace("relu(x) ** 2", f"relu(x) ** 2  # {'so ' * 20}")}, "a line of "),
        ({"solution": SOLUTION.replace("def activation", "def")}, "the solution cannot be read"),
        ({"more": [solution_cell(SOLUTION)]}, "2 cells tagged solution"),
        (
            {"more": [new_code_cell("x.clamp(min=0) ** 2", metadata={"tags": ["hide-cell"]})]},
            "neither stub nor solution",
        ),
        ({"more": [stub_cell("x.clamp(min=0) ** 2")]}, "neither stub nor solution"),
        ({"more": [new_markdown_cell("## Notes"), solution_cell(SOLUTION)]}, "that is no exercise's solution"),
        ({"more": [new_markdown_cell("## Notes"), new_code_cell("exercises.check_shift(f)")]}, "calls a check"),
        ({"last": (OPEN[0].replace("★★★ explore", "★★☆ write"), *OPEN[1:])}, "the last exercise must be ★★★"),
    ],
)
def test_faults_of_form_are_found(changes, fault):
    found = faults(made(**changes), 2, 0)
    assert any(fault in one for one in found), found


def test_too_few_exercises_are_found():
    assert faults(made(), 3, 2) == ["2 exercises, at least 3 are wanted", "1 graded exercises, at least 2 are wanted"]


def test_a_stub_under_a_code_cell_with_other_tags_is_none():
    assert any("neither stub" in one for one in faults(made(stub="", more=[stub_cell(STUB, SKIPPED)]), 2, 0))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stub": STUB.replace("...", "return relu(x) ** 2")}, "the unsolved stub passes"),
        ({"stub": STUB.replace("...", "...\n\n\nassert False, 'mine'")}, "the stub's own AssertionError: mine"),
        ({"stub": STUB.replace("(activation)", "(activaton)")}, "the stub raises NameError"),
        ({"stub": STUB.replace("...", "...\n\n\nTASK = activation.answer")}, "the stub raises AttributeError"),
        ({"solution": SOLUTION.replace("** 2", "** 3")}, "the solution raises AssertionError"),
        ({"solution": SOLUTION.replace("relu(x)", "not_yet(x)")}, "the solution raises AssertionError"),
        ({"solution": SOLUTION.replace("def activation", "x = elsewhere\n\n\ndef activation")}, "raises NameError"),
        ({"solution": SOLUTION.replace("Right: zero", "Right: nothing")}, "the solution prints 'Right: zero"),
        ({"last": (OPEN[0], "prediction = none", OPEN[2])}, "And then?: the stub raises NameError"),
        ({"last": (OPEN[0], "assert False", OPEN[2])}, "And then?: the stub's own AssertionError"),
    ],
)
def test_faults_of_running_are_found(changes, fault):
    found, *_ = [one for one in tried(made(**changes)) if fault in one]
    assert found.startswith(("Twice: ", "And then?: "))


def test_a_stub_may_not_lean_on_a_solution_nor_a_solution_on_a_later_one():
    leaning = made(stub=STUB.replace("...", "...\n\n\nagain"), solution=SOLUTION.replace("relu(x)", "again(x)"))
    assert [one.partition(" raises")[0] for one in tried(leaning)][:2] == ["Twice: the stub", "Twice: the solution"]


def test_headings_inside_code_are_none():
    assert headings("# One\n\n```python\n# two\n```\n\n## Three\n#no") == ["# One", "## Three"]


def test_checks_are_named_with_their_options():
    source = "exercises.check_shift(f, memory=3)\nprint(exercises.check_shift(f, memory=0))\nother.check_shift(f)"
    assert sorted(checks(source)) == ["check_shift", "check_shift(memory=3)"]


def test_what_code_prints_is_caught(capsys):
    assert run("print(x)", {"x": 1}) == "1\n"
    assert capsys.readouterr().out == ""
    assert Exercise("### A\n\n★★☆ write").printed is None


def test_teachers_get_no_solution(tmp_path):
    """By the command; stubs and outputs stay unless they are not wanted."""
    command = [sys.executable, "-m", "tools.teachers", "--folder"]
    for folder, options in (("all", []), ("bare", ["--no-stubs", "--no-outputs"])):
        done = subprocess.run(
            [*command, tmp_path / folder, *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{len(NOTEBOOKS)} notebooks without solutions")
    for name in NOTEBOOKS:
        ours = read(name)
        theirs, bare = (nbformat.read(tmp_path / f / f"{name[9:]}.ipynb", as_version=4) for f in ("all", "bare"))
        nbformat.validate(theirs)
        assert "<summary>Solution</summary>" not in nbformat.writes(theirs)
        kept = [cell for cell in ours.cells if "solution" not in cell.metadata.get("tags", [])]
        assert [(cell.source, cell.get("outputs")) for cell in theirs.cells] == [
            (cell.source, cell.get("outputs")) for cell in kept
        ]
        assert not any(cell.get("outputs") for cell in bare.cells)
        assert len(kept) - len(bare.cells) == sum(len(one.stubs) for one in of_notebook(ours))


def test_what_is_handed_in_is_graded_by_running_it(tmp_path):
    """As the page for teachers says: the whole notebook runs, errors and all, and the record says what was solved."""
    notebook = teachers.without_solutions(made(stub=STUB.replace("...", "return x.clamp(min=0) ** 2")))
    (stub,) = [cell for cell in notebook.cells if "check_" in cell.source]
    notebook.cells.insert(notebook.cells.index(stub), new_code_cell("a_mistake"))
    nbformat.write(notebook, tmp_path / "ada.ipynb")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RCMHA_PROGRESS": str(tmp_path / "ada.json")}
    environment.pop("RCMHA_LITE_STATIC", None)
    command = [sys.executable, "-m", "jupyter", "execute", "--allow-errors", tmp_path / "ada.ipynb"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ada.json").read_text("utf-8")) == {"solved": ["check_squared_relu"]}


def test_a_made_notebook_loses_its_solutions_alone():
    notebook = made()
    notebook.cells.append(stub_cell("for readers alone"))
    kept = teachers.without_solutions(notebook, stubs=False).cells[-1]
    assert (kept.source, kept.metadata) == (notebook.cells[-1].source, notebook.cells[-1].metadata)
    notebook.cells.pop()
    left = teachers.without_solutions(notebook)
    assert len(left.cells) == len(notebook.cells) - 2
    assert [cell.source for cell in left.cells if cell.cell_type == "code"][2:] == [STUB, OPEN[1]]
    assert not any("nbval-skip" in cell.metadata.get("tags", []) for cell in left.cells)
    assert len(teachers.without_solutions(notebook, stubs=False).cells) == len(left.cells) - 2
    assert of_notebook(notebook)[0].solutions
