"""How a run is stopped, and how it shows its progress: neither may cost more than the step in hand."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tqdm.auto import tqdm


class Interrupted(Exception):  # noqa: N818
    """Training was stopped by Ctrl-C or a request to terminate, after its checkpoint was written."""


@dataclass
class Stop:
    """Whether the run was asked to stop: a plain flag, since the handler may run inside any library's code."""

    requested: bool = False

    def __bool__(self) -> bool:
        return self.requested


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """A flag that Ctrl-C, a request to terminate or a closed terminal sets, so that the step in hand can end.

    It says at once that it has heard. The same signal once more raises KeyboardInterrupt. A signal that the host
    ignores, or handles outside Python, stays the host's; the other handlers are put back at the end.
    """
    stop, heard = Stop(), set()

    def hear(number: int, frame: FrameType | None) -> None:
        if number in heard:
            raise KeyboardInterrupt
        heard.add(number)
        if not stop.requested:
            say("stopping after the step in hand; once more ends at once")
        stop.requested = True

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(message: str) -> None:
    """A line on standard error, if there is one that can be written."""
    line = f"\n{message}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except RuntimeError:  # the signal came while the stream was writing
        with suppress(Exception):
            os.write(sys.stderr.fileno(), line.encode())
    except Exception:  # no stream, or one that cannot be written
        return


class Heedless:
    """A stream that goes on when it cannot be written: a full disk, or a reader that has gone."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def progress_bar(total: int, done: int, show: bool) -> Any:
    """A bar of steps on standard error; none where there is no such stream."""
    stream = sys.stderr
    return tqdm(
        total=total, initial=done, unit="step", disable=not show or stream is None, file=stream and Heedless(stream)
    )
