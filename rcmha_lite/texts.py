"""A text of the reader's own: read whole, its characters, and what a run's folder keeps of it."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rcmha_lite.cache import write_whole
from rcmha_lite.checkpoint import CheckpointError
from rcmha_lite.data import SHA256, SHAKESPEARE_CHARACTERS, CharTokenizer

TOKENIZER = "tokenizer.json"


def read_text(path: str | Path) -> str:
    """A file in UTF-8 as it stands. ValueError, saying what to do, for one that is empty or not UTF-8, that begins with
    a byte order mark, or has Windows line ends: a model would learn them as characters."""
    path = Path(os.path.expanduser(path))
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        strange = f"byte {data[error.start]:#04x} at place {error.start}"
        raise ValueError(f"{path} is not UTF-8 ({strange}): save it as UTF-8") from error
    if not text:
        raise ValueError(f"{path} is empty: name a file with text in it")
    if text.startswith("\ufeff"):
        raise ValueError(f"{path} begins with a byte order mark (BOM): save it as UTF-8 without one")
    if "\r\n" in text:
        raise ValueError(rf"{path} has Windows line ends, \r\n: save it with Unix line ends, \n (LF)")
    return text


@dataclass(frozen=True)
class OwnText:
    """A text to train on in its own alphabet: its distinct characters, sorted. ``path``: the file it was read from.

    ValueError for fewer than two distinct characters: there would be nothing to predict.
    """

    text: str
    path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.tokenizer) < 2:
            where = self.path or "the text"
            held = f"only one character, {self.tokenizer.characters!r}" if self.text else "no character"
            raise ValueError(f"{where} holds {held}: give a text with two or more different ones")

    @classmethod
    def read(cls, path: str | Path) -> "OwnText":
        """The text of a file. Errors as ``read_text``."""
        return cls(read_text(path), Path(os.path.expanduser(path)))

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """Of the whole text, so that what only its end holds has an id, too."""
        return CharTokenizer(sorted(set(self.text)))

    @cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8: that of its file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def save_tokenizer(folder: Path, own: OwnText | None) -> None:
    """Write the alphabet beside the weights, with the text's SHA-256 and its place seen from there.

    None is for Tiny Shakespeare's, which needs no file.
    """
    if own is None:
        (folder / TOKENIZER).unlink(missing_ok=True)
        return
    place = None
    if own.path is not None:
        file = own.path.resolve()
        try:
            place = os.path.relpath(file, folder.resolve())
        except ValueError:  # on another drive
            place = str(file)
    record = {"characters": own.tokenizer.characters, "sha256": own.sha256, "path": place}
    write_whole(folder / TOKENIZER, (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())


def load_tokenizer(folder: str | Path, vocabulary: int | None = None) -> CharTokenizer:
    """The alphabet of a run: Tiny Shakespeare's where its folder has none.

    CheckpointError for a damaged file, and for one of another number of characters than ``vocabulary``.
    """
    folder = Path(os.path.expanduser(folder))
    tokenizer = CharTokenizer(_record(folder)[0])
    if vocabulary not in (None, len(tokenizer)):
        held = f"{TOKENIZER} has {len(tokenizer)}" if (folder / TOKENIZER).exists() else f"there is no {TOKENIZER}"
        raise CheckpointError(
            f"the model of {folder} has {vocabulary} characters, and {held}: put the run's own {TOKENIZER} beside it"
        )
    return tokenizer


def find_text(folder: str | Path, named: Path | None = None) -> OwnText | None:
    """The text of a run: the file ``named``, else the one that its folder names; None for Tiny Shakespeare.

    CheckpointError for another text than the run's, by its SHA-256, and where there is none.
    """
    folder = Path(os.path.expanduser(folder))
    _, sha256, place = _record(folder)
    own = (folder / TOKENIZER).exists()
    if named is None and not own:
        return None
    if named is None and place is None:
        raise CheckpointError(f"{folder} holds a run on a text of its own: name it with --text")
    try:
        found = OwnText.read(named or folder / str(place))
    except FileNotFoundError as error:
        if named:
            raise
        gone = f"the text of {folder} is no longer at {os.path.normpath(folder / str(place))}"
        raise CheckpointError(f"{gone}: name it with --text") from error
    if found.sha256 != sha256:
        whose = f"the text of {folder}" if own else f"Tiny Shakespeare, the text of {folder}"
        shown = os.path.normpath(found.path or "")
        differ = f"SHA-256 {sha256[:12]}… there, {found.sha256[:12]}… here"
        raise CheckpointError(f"{shown} is not {whose} ({differ}): name an unchanged copy with --text")
    return found


def _record(folder: Path) -> tuple[str, str, str | None]:
    """Characters, SHA-256 and place of the text of a run."""
    file = folder / TOKENIZER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        record = found["characters"], found["sha256"], found["path"]
        if not (isinstance(record[0], str) and isinstance(record[1], str)):
            raise TypeError("they are not text")
        CharTokenizer(record[0])
    except FileNotFoundError:
        return SHAKESPEARE_CHARACTERS, SHA256, None
    except (ValueError, KeyError, TypeError) as error:
        again = "the command that trained the run writes it anew"
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error}): {again}") from error
    return record
