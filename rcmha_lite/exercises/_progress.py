"""What a reader has solved: each check that passes is written down, and ``progress`` reads the list.

The book's exercises stand in ``book.json`` beside this, which ``python -m tools.exercises`` writes from the notebooks.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from rcmha_lite.cache import cache_folder, write_whole

BOOK = Path(__file__).with_name("book.json")
OFF = ("", "off", "0")


def record_file() -> Path | None:
    """``progress.json`` in the package's cache folder, or the file that ``RCMHA_PROGRESS`` names; None where that says
    ``off``, and while the book is built or tested (``RCMHA_LITE_STATIC``)."""
    named = os.environ.get("RCMHA_PROGRESS")
    if os.environ.get("RCMHA_LITE_STATIC") or (named is not None and named.strip().lower() in OFF):
        return None
    return Path(named).expanduser() if named else cache_folder() / "progress.json"


def key(check: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """The name of what a check grades: its own, and its options (what must be given by name) where they are not the
    default ones: ``check_shift(memory=3)``."""
    parameters = inspect.signature(check).parameters.values()
    said = [
        f"{p.name}={options[p.name]!r}"
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name in options and options[p.name] != p.default
    ]
    return f"{check.__name__}({', '.join(said)})" if said else check.__name__


def solved() -> set[str]:
    """The keys that were written down; none where there is no file, or none that can be read."""
    file = record_file()
    if file is None:
        return set()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["solved"]
        return {name for name in found if isinstance(name, str)}
    except Exception:
        return set()


def record(check: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Write down that the check passed. Where that cannot be done, nothing happens."""
    with suppress(Exception):
        file, name = record_file(), key(check, options)
        if file is None or name in solved():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=2):  # another notebook may pass at this moment
            text = json.dumps({"solved": sorted(solved() | {name})}, indent=1)
            write_whole(file, f"{text}\n".encode())


def progress() -> None:
    """Print the book's graded exercises, chapter by chapter: which of them you have solved, and which are open.

    Solved is what a check has accepted on this machine. It is kept in ``progress.json`` in the package's cache folder;
    the environment variable ``RCMHA_PROGRESS`` names another file, or says ``off``.
    """
    book, done = json.loads(BOOK.read_text(encoding="utf-8")), solved()
    width = max(len(one["exercise"]) for chapter in book for one in chapter["graded"])
    count = [one["check"] in done for chapter in book for one in chapter["graded"]]
    for chapter in book:
        marks = [one["check"] in done for one in chapter["graded"]]
        print(f"{chapter['chapter']}. {chapter['title']}: {sum(marks)} of {len(marks)}")
        for one, mark in zip(chapter["graded"], marks, strict=True):
            print(f"   {one['level']}  {one['exercise']:{width}}  {'solved' if mark else 'open'}")
    print(f"{sum(count)} of {len(count)} solved" + (", all of them" if all(count) else ""))
