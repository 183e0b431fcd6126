"""Files of the book by their SHA-256: nothing unverified is used or kept."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pooch


class CorpusUnavailable(RuntimeError):  # noqa: N818 (the name says the state)
    """A text could not be had, or is not the expected one; the message says what to do."""


def cache_folder() -> Path:
    """The platform's cache folder for this package, or the one that `RCMHA_CACHE` names."""
    return Path(os.path.expanduser(os.environ.get("RCMHA_CACHE") or pooch.os_cache("rcmha_lite")))


def verified(data: bytes, sha256: str) -> bytes:
    """`data` itself if its SHA-256 is `sha256`; raises `CorpusUnavailable` if not."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorpusUnavailable(f"{len(data)} bytes have SHA-256 {found}, expected {sha256}")
    return data


def fetch(name: str, sha256: str, sources: Mapping[str, Callable[[], bytes]]) -> bytes:
    """The file `name`: the first verified one of the cache and then of each source in turn.

    What a source gives is kept in the cache. A cached file that does not match is replaced; a cache that
    cannot be written is done without. Raises `CorpusUnavailable`, with the reason of each step, if all fail.
    """
    path = cache_folder() / name
    failures = []
    for step, obtain in {f"cache {path}": path.read_bytes, **sources}.items():
        try:
            data = verified(obtain(), sha256)
        except (OSError, CorpusUnavailable) as error:
            failures.append(f"{step}: {error}".replace("\n", "\n  "))
            continue
        if failures:  # it is not from the cache
            with suppress(OSError):
                write_whole(path, data)
        return data
    raise CorpusUnavailable("\n  - ".join([f"{name} is not available:", *failures]))


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside `path`, then renames: a reader, or a crash, finds the old file or the new, never a part.

    OSError, saying what to do, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            partial = Path(scratch, path.name)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = f"no space left in {path.parent} for the {len(data) / 1e6:.1f} MB of {path.name}"
        raise OSError(f"{full}: free some and give the same command again; what was there before is whole") from error
