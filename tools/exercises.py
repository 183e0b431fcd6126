"""The exercises of the notebooks: how they are written, what is wrong with them, and the list that the package keeps.

`python -m tools.exercises` writes that list, `rcmha_lite/exercises/book.json`, which `exercises.progress()` reads.
"""

import ast
import contextlib
import io
import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from rcmha_lite import exercises
from rcmha_lite.exercises._progress import BOOK, key
from tools.notebooks import SKIPPED
from tools.pages import CHAPTERS, ROOT

LEVELS = ("★☆☆ fill in", "★★☆ write", "★★★ explore")
GRADED = " · graded"
STUB = frozenset({SKIPPED, "nbval-skip"})
SOLUTION = "solution"
HINT = re.compile(r"<details>\n<summary>Hint</summary>\n\n.*?\S\n\n</details>", re.DOTALL)
WHOLE = re.compile(r"<details>\n<summary>Solution</summary>\n\n.*\S\n\n</details>", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WIDTH = 79


@dataclass(frozen=True)
class Exercise:
    """One exercise as it stands in a notebook: the question, and the cells up to the next one."""

    question: str
    stubs: tuple[str, ...] = ()
    solutions: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.question.splitlines()[0].removeprefix("### ").strip()

    @property
    def mark(self) -> str:
        """The line of its difficulty: the first that is not empty below the title."""
        return next((line for line in self.question.splitlines()[1:] if line.strip()), "")

    @property
    def level(self) -> str:
        return self.mark.removesuffix(GRADED)

    @property
    def graded(self) -> bool:
        return self.mark.endswith(GRADED)

    @property
    def code(self) -> str:
        """The solution's Python."""
        return "\n".join(block for language, block in self.blocks() if language == "python")

    @property
    def printed(self) -> str | None:
        """What the solution says that it prints; None where it says nothing."""
        said = [block for language, block in self.blocks() if language == "text"]
        return "".join(said) if said else None

    def blocks(self) -> list[tuple[str, str]]:
        return [(m[1], m[2]) for text in self.solutions for m in FENCE.finditer(text)]


def headings(text: str) -> list[str]:
    """The heading lines of a markdown cell, those inside code left out."""
    return [line for line in FENCE.sub("", text).splitlines() if re.match(r"#{1,6} ", line)]


def in_section(notebook: Any) -> Iterator[Any]:
    """The cells under the heading `## Exercises`: after the cell that has it, up to one with another `## `."""
    inside = False
    for cell in notebook.cells:
        chapters = [h for h in headings(cell.source) if h.startswith("## ")] if cell.cell_type == "markdown" else []
        if chapters:
            inside = chapters[-1].strip() == "## Exercises"
            if not (inside and any(h.startswith("### ") for h in headings(cell.source))):
                continue
        if inside:
            yield cell


def of_notebook(notebook: Any) -> list[Exercise]:
    """The exercises in order. Cells that have no place in one are kept as ``others``."""
    found: list[dict[str, Any]] = []
    for cell in in_section(notebook):
        tags = set(cell.metadata.get("tags", []))
        title = cell.cell_type == "markdown" and any(h.startswith("### ") for h in headings(cell.source))
        if title and SOLUTION not in tags:
            found.append({"question": cell.source, "stubs": [], "solutions": [], "others": []})
            continue
        if not found:
            found.append({"question": "", "stubs": [], "solutions": [], "others": [cell.source]})
            continue
        if SOLUTION in tags and cell.cell_type == "markdown":
            kind = "solutions"
        elif cell.cell_type == "code" and tags >= STUB and not found[-1]["solutions"]:
            kind = "stubs"
        else:
            kind = "others"
        found[-1][kind].append(cell.source)
    return [
        Exercise(one["question"], *(tuple(one[kind]) for kind in ("stubs", "solutions", "others"))) for one in found
    ]


def checks(source: str) -> list[str]:
    """The keys (``_progress.key``) of the checks that the code calls. ValueError for one that the package lacks, or an
    option that is not written out."""
    keys = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="exercises"), attr=name)) if name.startswith("check_"):
                if name not in exercises.__all__:
                    raise ValueError(f"exercises.{name} is not in the package")
                options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
                keys.append(key(getattr(exercises, name), options))
    return keys


def faults(notebook: Any, least: int = 4, least_graded: int = 3) -> list[str]:
    """What is wrong with a notebook's exercises as they are written."""
    section = of_notebook(notebook)
    found = [fault for one in section for fault in of_exercise(one)]
    titles = Counter(one.title for one in section if one.question)
    found += [f"two exercises are called {title!r}" for title, times in titles.items() if times > 1]
    if len(section) < least:
        found.append(f"{len(section)} exercises, at least {least} are wanted")
    graded = sum(one.graded for one in section)
    if graded < least_graded:
        found.append(f"{graded} graded exercises, at least {least_graded} are wanted")
    if section and section[0].level != LEVELS[0]:
        found.append(f"the first exercise must be {LEVELS[0]}, found {section[0].mark!r}")
    if section and section[-1].level != LEVELS[-1]:
        found.append(f"the last exercise must be {LEVELS[-1]}, found {section[-1].mark!r}")
    outside = [cell for cell in notebook.cells if SOLUTION in cell.metadata.get("tags", [])]
    if len(outside) != sum(len(one.solutions) for one in section):
        found.append(f"the tag {SOLUTION} stands on a cell that is no exercise's solution")
    stray = [c for c in notebook.cells if c.cell_type == "code" and SKIPPED not in c.metadata.get("tags", [])]
    if any("exercises.check_" in cell.source for cell in stray):
        found.append("a code cell of the chapter calls a check, which would record it as solved: use an assertion")
    return found


def of_exercise(one: Exercise) -> list[str]:
    """What is wrong with one exercise as it is written."""
    found = []
    if not one.question.startswith("### "):
        start = one.question or "".join(one.others)
        return [f"an exercise must be a cell of its own that starts with '### ', found {start[:40]!r}"]
    lines = one.question.splitlines()
    if sum(h.startswith("### ") for h in headings(one.question)) > 1:
        found.append("two titles in one cell")
    if one.level not in LEVELS or len(lines) < 4 or lines[1].strip() or lines[2] != one.mark or lines[3].strip():
        wanted = ", ".join(LEVELS)
        found.append(f"below the title, between empty lines, must stand one of {wanted}, then{GRADED} if it is")
    if not HINT.search(one.question) or one.question.count("<details>") != 1:
        found.append("no hint as the format wants it: <details>, <summary>Hint</summary>, empty lines around its text")
    found += [f"a cell that is neither stub nor solution, a code cell with a solution? {x[:40]!r}" for x in one.others]
    if len(one.solutions) != 1:
        found.append(f"{len(one.solutions)} cells tagged {SOLUTION}, 1 is wanted")
    found += [
        f"the solution must be <details>, <summary>Solution</summary>, an empty line … </details>, found {text[:40]!r}"
        for text in one.solutions
        if not WHOLE.fullmatch(text.strip()) or text.count("<details>") != 1
    ]
    if one.graded and len(one.stubs) != 1:
        found.append(f"graded, with {len(one.stubs)} stubs (tags {', '.join(sorted(STUB))}): 1 is wanted")
    if one.stubs and not one.code:
        found.append("there is a stub, and no ```python block in the solution")
    found += [f"a line of {len(line)} characters: {line[:30]}…" for line in one.code.splitlines() if len(line) > WIDTH]
    called = {}
    for name, source in (("stub", "\n".join(one.stubs)), ("solution", one.code)):
        try:
            called[name] = checks(source)
        except (SyntaxError, ValueError) as error:
            found.append(f"the {name} cannot be read: {error}")
    stub, solution = called.get("stub"), called.get("solution")
    if one.graded and stub is not None and len(stub) != 1:
        found.append(f"the stub must call one check, it calls {len(stub)}")
    if stub and not one.graded:
        found.append(f"the stub calls a check, and the exercise is not marked{GRADED}")
    if stub and solution is not None and stub[0] not in solution:
        found.append(f"the stub calls {stub[0]}, the solution {', '.join(solution) or 'no check'}")
    return [f"{one.title}: {fault}" for fault in found]


def tried(notebook: Any) -> list[str]:
    """What goes wrong when stubs and solutions run: each stub after the chapter's first two code cells, which must end
    in the message of a check; the solutions one after another, which must print what they say."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    section, found = of_notebook(notebook), []

    def fresh() -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        for source in code:
            run(source, names)
        return names

    first = fresh()
    for one in section:
        for stub in one.stubs:
            try:
                run(stub, dict(first))
                fault = "" if not one.graded else "the unsolved stub passes"
            except AssertionError as error:
                fault = "" if one.graded and says(error) else f"the stub's own AssertionError: {error}"
            except Exception as error:
                fault = f"the stub raises {type(error).__name__}: {error}"
            found += [f"{one.title}: {fault}"] if fault else []
    names = fresh()
    for one in section:
        try:
            printed = run(one.code, names)
        except Exception as error:
            found.append(f"{one.title}: the solution raises {type(error).__name__}: {error}")
            continue
        if one.printed is not None and printed.rstrip() != one.printed.rstrip():
            found.append(
                f"{one.title}: the solution prints {printed.rstrip()!r}, its text says {one.printed.rstrip()!r}"
            )
    return found


def run(source: str, names: dict[str, Any]) -> str:
    """What the code prints, run with these names."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(source, "<cell>", "exec"), names)
    return out.getvalue()


def says(error: AssertionError) -> bool:
    """Whether a check of the package raised it, with a message."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return bool(str(error)) and Path(last).is_relative_to(Path(exercises.__file__).parent)


def read(name: str) -> Any:
    """A notebook of the book by its page's name."""
    return nbformat.read(ROOT / f"{name}.ipynb", as_version=4)


def book(names: Sequence[str] = tuple(CHAPTERS)) -> list[dict[str, Any]]:
    """Every chapter's graded exercises, with what their checks are called: what `progress()` knows of the book."""
    chapters = []
    for name in names:
        notebook = read(name)
        title = next(h for cell in notebook.cells if cell.cell_type == "markdown" for h in headings(cell.source))
        graded = [
            {"exercise": one.title, "level": one.level[:3], "check": checks(one.stubs[0])[0]}
            for one in of_notebook(notebook)
            if one.graded and not of_exercise(one)
        ]
        number = int(name.rpartition("/")[2][:2])
        chapters.append({"chapter": number, "title": title.removeprefix("# "), "graded": graded})
    return chapters


def written(chapters: Sequence[dict[str, Any]]) -> str:
    """The list as the file has it."""
    return json.dumps(chapters, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    os.environ["RCMHA_PROGRESS"] = "off"  # the solutions are not the reader's answers
    if sys.argv[1:]:  # notebooks by name: what is wrong with their exercises
        notebooks = [nbformat.read(path, as_version=4) for path in sys.argv[1:]]
        wrong = [fault for notebook in notebooks for fault in (*faults(notebook), *tried(notebook))]
        print(*wrong, sep="\n")
        sys.exit(bool(wrong))
    BOOK.write_text(written(book()), encoding="utf-8")
