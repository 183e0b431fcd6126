"""A text of the reader's own: read, trained on in its own alphabet, found again; what is wrong gets one line."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from rcmha_lite import checkpoint, texts, training
from rcmha_lite.checkpoint import CheckpointError, load_model
from rcmha_lite.data import SHAKESPEARE_CHARACTERS, CharTokenizer, load_tiny_shakespeare
from rcmha_lite.texts import OwnText, find_text, load_tokenizer, read_text

GREEK = "μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος\nοὐλομένην, 😀\n" * 40 + "Ω at the very end\n"
SMALL = ["--preset", "tiny", "--layers", 1, "--d-model", 16, "--n-heads", 2, "--d-ff", 16, "--context", 16]
SMALL += ["--window", 16, "--steps", 3, "--device", "cpu"]


@pytest.fixture
def greek(tmp_path):
    path = tmp_path / "greek.txt"
    path.write_bytes(GREEK.encode())
    return path


@pytest.fixture
def no_shakespeare(monkeypatch):
    def refuse(path=None):
        raise AssertionError("Tiny Shakespeare was asked for")

    monkeypatch.setattr("rcmha_lite.data.load_tiny_shakespeare", refuse)
    monkeypatch.setattr("rcmha_lite.training.load_tiny_shakespeare", refuse)


def one_line(result, *parts):
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("rcmha_lite: ")]
    assert status in (1, 2)
    assert len(lines) == 1
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def test_own_text_from_training_to_samples(call, greek, tmp_path, no_shakespeare):
    out = tmp_path / "run"
    status, shown, err = call("train", "--text", greek, *SMALL, "--out", out)
    assert status == 0, err
    record = json.loads((out / texts.TOKENIZER).read_text(encoding="utf-8"))
    assert record["characters"] == "".join(sorted(set(GREEK)))
    assert record["sha256"] == hashlib.sha256(greek.read_bytes()).hexdigest()
    assert json.loads((out / checkpoint.CONFIG).read_text())["vocabulary"] == len(set(GREEK))
    results = json.loads((out / checkpoint.RESULTS).read_text())
    assert results["manifest"]["data_sha256"] == record["sha256"]
    for given in ([], ["--text", greek]):
        status, shown, err = call("evaluate", "--checkpoint", out, *given)
        assert status == 0, err
        assert f"loss {results['val_loss']:.4f}" in shown
        assert f"loss {results['val_loss_sliding']:.4f}" in shown
    status, shown, err = call("sample", "--checkpoint", out, "--prompt", "μῆνιν", "--length", 30)
    assert status == 0, err
    assert shown.startswith("μῆνιν")
    assert set(shown) <= set(GREEK)


def test_what_only_the_end_holds_is_in_the_alphabet(greek):
    assert "Ω" not in GREEK[: int(0.9 * len(GREEK))]
    assert "Ω" in OwnText.read(greek).tokenizer.characters


def test_a_folder_without_an_alphabet_has_tiny_shakespeares(tmp_path):
    assert load_tokenizer(tmp_path).characters == SHAKESPEARE_CHARACTERS == CharTokenizer().characters
    assert find_text(tmp_path) is None


def test_moved_together_the_text_is_found(call, greek, tmp_path, no_shakespeare):
    (tmp_path / "a").mkdir()
    greek = greek.rename(tmp_path / "a/greek.txt")
    assert call("train", "--text", greek, *SMALL, "--out", tmp_path / "a/runs/one")[0] == 0
    (tmp_path / "a").rename(tmp_path / "b")
    assert call("evaluate", "--checkpoint", tmp_path / "b/runs/one")[0] == 0
    (tmp_path / "b/greek.txt").rename(tmp_path / "c.txt")
    out = tmp_path / "b/runs/one"
    one_line(call("evaluate", "--checkpoint", out), "no longer at", "greek.txt: name it with --text")
    assert call("evaluate", "--checkpoint", out, "--text", tmp_path / "c.txt")[0] == 0
    (tmp_path / "c.txt").write_text(GREEK[::-1], encoding="utf-8")
    one_line(
        call("evaluate", "--checkpoint", out, "--text", tmp_path / "c.txt"),
        "c.txt is not the text of", "name an unchanged copy",
    )  # fmt: skip
    one_line(call("evaluate", "--checkpoint", out, "--text", tmp_path / "none.txt"), "none.txt")


def test_a_run_of_tiny_shakespeare_has_no_other_text(tmp_path, greek):
    with pytest.raises(CheckpointError, match=r"greek.txt is not Tiny Shakespeare, the text of"):
        find_text(tmp_path, greek)


def test_a_text_without_a_file_is_asked_for(tmp_path):
    texts.save_tokenizer(tmp_path, OwnText("abba" * 9))
    with pytest.raises(CheckpointError, match="on a text of its own: name it with --text"):
        find_text(tmp_path)
    texts.save_tokenizer(tmp_path, None)
    assert not list(tmp_path.iterdir())


BAD = {
    "empty": (b"", "is empty"),
    "one character": (b"a", "holds only one character, 'a'"),
    "one again and again": (b"\n" * 9999, r"holds only one character, '\n'"),
    "windows": (b"one\r\ntwo\r\n" * 99, r"has Windows line ends, \r\n: save it with Unix line ends"),
    "marked": (b"\xef\xbb\xbf" + b"one\ntwo\n" * 99, "byte order mark (BOM): save it as UTF-8 without one"),
    "latin": (b"one\ntwo\n" * 99 + b"caf\xe9 ", "is not UTF-8 (byte 0xe9 at place 795): save it as UTF-8"),
    "wide": (("one\n" * 99).encode("utf-16"), "is not UTF-8 (byte 0xff at place 0)"),
    "short": (b"ab" * 8, "needs at least"),
    "missing": (None, "text.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_text_gets_one_line_and_nothing_is_written(call, tmp_path, name, no_shakespeare):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    one_line(call("train", "--text", tmp_path / "text.txt", *SMALL, "--out", tmp_path / "run"), message)
    assert sorted(tmp_path.iterdir()) == before


def test_contradictions_get_one_line(call, greek, tmp_path):
    out = ["--out", tmp_path / "run"]
    n = len(set(GREEK))
    one_line(call("train", "--text", greek, "--path", greek, *SMALL, *out), "--path for a copy of Tiny Shakespeare")
    one_line(call("train", "--text", greek, "--vocabulary", 65, *SMALL, *out), f"vocabulary 65: the text has {n}")
    one_line(call("evaluate", "--checkpoint", "x", "--text", greek, "--path", greek), "--path for a copy of Tiny")
    assert not (tmp_path / "run").exists()
    assert call("train", "--text", greek, "--vocabulary", n, *SMALL, *out)[0] == 0


def test_unknown_characters_of_a_prompt_are_named(call, greek, tmp_path, no_shakespeare):
    out = tmp_path / "run"
    assert call("train", "--text", greek, *SMALL, "--out", out)[0] == 0
    one_line(call("sample", "--checkpoint", out, "--prompt", "Zoë"), "unknown characters 'Zoë'")
    torch.manual_seed(0)
    config = load_model(out).config
    checkpoint.save_weights(tmp_path / "other", training.LanguageModel(config.replace(vocabulary=65)))
    one_line(
        call("sample", "--checkpoint", tmp_path / "other", "--prompt", "a\r\nb"),
        r"unknown characters '\r' (Windows line ends, \r\n: give \n alone)",
    )


def test_a_large_alphabet_is_not_listed():
    tokenizer = CharTokenizer(chr(0x4E00 + n) for n in range(3000))
    with pytest.raises(ValueError, match=r"unknown characters 'é'; the known ones are '一.*' and 2940 more") as caught:
        tokenizer.encode("é")
    assert len(str(caught.value)) < 200


def test_a_copy_of_tiny_shakespeare_with_windows_line_ends_is_called_so(tmp_path):
    (tmp_path / "input.txt").write_bytes(b"First Citizen:\r\nBefore\r\n")
    with pytest.raises(RuntimeError, match="with Windows line ends"):
        load_tiny_shakespeare(tmp_path / "input.txt")


def test_another_text_is_refused_and_harms_nothing(call, greek, tmp_path, monkeypatch, no_shakespeare):
    out = tmp_path / "run"
    step = training.Trainer.step

    def stop_at_once(self, n):
        signal.raise_signal(signal.SIGINT)
        return step(self, n)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", stop_at_once)
        assert call("train", "--text", greek, *SMALL, "--out", out)[0] == 130
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    swapped = tmp_path / "swapped.txt"
    swapped.write_text(GREEK[::-1], encoding="utf-8")
    one_line(call("train", "--text", swapped, *SMALL, "--out", out), "holds a run on another text")
    monkeypatch.setattr("rcmha_lite.data.load_tiny_shakespeare", lambda path=None: "To be, or not.\n" * 99)
    one_line(
        call("train", *SMALL, "--out", out), f"vocabulary {len(set(GREEK))} there, 65 here", "the run's own --text"
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert call("train", "--text", greek, *SMALL, "--out", out)[0] == 0


def test_the_same_text_in_another_alphabet_is_refused(tmp_path):
    """As many characters, other ids: a run goes on in its own alphabet only."""
    text = SHAKESPEARE_CHARACTERS * 30
    config = training.Config(
        layers=1, d_model=16, n_heads=2, d_ff=16, d_position=8, context=16, window=16, batch=4, steps=2,
        precision="float32", device="cpu",
    )  # fmt: skip
    training.train(config, tmp_path, text=text, progress=False)
    own = OwnText(text)
    training.train(config, tmp_path, text=own, progress=False)  # the alphabet is the same, sorted
    assert load_tokenizer(tmp_path).characters == SHAKESPEARE_CHARACTERS
    own.__dict__["tokenizer"] = CharTokenizer(SHAKESPEARE_CHARACTERS[::-1])
    with pytest.raises(CheckpointError, match="on another text"):
        training.train(config, tmp_path, text=own, progress=False)


def test_a_run_without_a_step_can_be_given_another_text(call, greek, tmp_path, monkeypatch):
    out, text = tmp_path / "run", "To be, or not to be.\n" * 99
    monkeypatch.setattr("rcmha_lite.data.load_tiny_shakespeare", lambda path=None: text)
    for words in (["--text", greek], []):
        with monkeypatch.context() as patch:
            patch.setattr(
                training.Trainer, "run", lambda self, show: (_ for _ in ()).throw(training.Interrupted("now"))
            )
            assert call("train", *words, *SMALL, "--out", out)[0] == 130
        assert len(load_tokenizer(out)) == load_model(out).config.vocabulary
    assert not (out / texts.TOKENIZER).exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"characters": "aa", "sha256": "", "path": null}', b"\xff", b"{}"])
def test_a_damaged_alphabet_is_named_and_mended(call, greek, tmp_path, content, no_shakespeare):
    out = tmp_path / "run"
    command = ["train", "--text", greek, *SMALL, "--out", out]
    assert call(*command)[0] == 0
    good = (out / texts.TOKENIZER).read_bytes()
    (out / texts.TOKENIZER).write_bytes(content)
    one_line(call("sample", "--checkpoint", out, "--prompt", "μ"), "tokenizer.json is damaged", "writes it anew")
    assert call(*command)[0] == 0
    assert (out / texts.TOKENIZER).read_bytes() == good
    (out / texts.TOKENIZER).unlink()
    one_line(
        call("sample", "--checkpoint", out, "--prompt", "a"),
        f"has {len(set(GREEK))} characters, and there is no tokenizer.json",
    )


def test_read_text_is_byte_for_byte(tmp_path):
    for text in ("a\rb", "  \n\n", "\u2028é\x00"):
        (tmp_path / "t").write_bytes(text.encode())
        assert read_text(tmp_path / "t") == text


def test_a_copied_folder_needs_nothing_else(call, greek, tmp_path, no_shakespeare):
    """Weights, configuration and alphabet are enough to sample."""
    assert call("train", "--text", greek, *SMALL, "--out", tmp_path / "run")[0] == 0
    (tmp_path / "copy").mkdir()
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, texts.TOKENIZER):
        shutil.copy(tmp_path / "run" / name, tmp_path / "copy" / name)
    Path(greek).unlink()
    status, shown, err = call("sample", "--checkpoint", tmp_path / "copy", "--prompt", "μ", "--length", 5)
    assert (status, shown[0]) == (0, "μ"), err
