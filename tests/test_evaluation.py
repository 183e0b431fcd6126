"""Evaluation scores every character once, with the context it says."""

import math

import pytest
import torch
from torch.nn import functional as F

from rcmha_lite.config import PRESETS
from rcmha_lite.evaluation import evaluate
from rcmha_lite.model import LanguageModel

ids = torch.arange(100).mul(13).remainder(65)


def model(**changes):
    torch.manual_seed(1)
    return LanguageModel(PRESETS["tiny"].replace(zero_output=False, **changes)).double().eval()


def by_hand(network, spans):
    """Mean loss and accuracy of [start, stop) windows, the first ``skip`` predictions of each left out."""
    losses, hits = [], []
    for start, stop, skip in spans:
        logits = network(ids[None, start:stop])[0][0, skip:]
        wanted = ids[start + 1 : stop + 1][skip:]
        losses += F.cross_entropy(logits, wanted, reduction="none").tolist()
        hits += (logits.argmax(-1) == wanted).tolist()
    return sum(losses) / len(losses), sum(hits) / len(hits), len(losses)


@pytest.mark.parametrize(
    ("window", "sliding", "spans"),
    [
        (40, False, [(0, 40, 0), (40, 80, 0), (80, 99, 0)]),
        (40, True, [(0, 40, 0), (20, 60, 20), (40, 80, 20), (60, 99, 20)]),
        (33, False, [(0, 33, 0), (33, 66, 0), (66, 99, 0)]),
        (500, False, [(0, 99, 0)]),
        (500, True, [(0, 99, 0)]),
        (1, False, [(n, n + 1, 0) for n in range(99)]),
    ],
)
def test_windows(window, sliding, spans):
    network = model()
    found = evaluate(network, ids, window=window, sliding=sliding, batch=2)
    loss, accuracy, positions = by_hand(network, spans)
    assert positions == found.positions == 99
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.bits_per_character == pytest.approx(loss / math.log(2), rel=1e-6)


def test_model_with_memory_reads_segments_from_an_empty_memory():
    network = model(context=5, memory=7)
    losses = []
    for start in (0, 50):
        memory = None
        for at in range(start, min(start + 50, 99), 5):
            stop = min(at + 5, 99)
            logits, memory = network(ids[None, at:stop], memory)
            losses += F.cross_entropy(logits[0], ids[at + 1 : stop + 1], reduction="none").tolist()
    assert evaluate(network, ids, window=50).loss == pytest.approx(sum(losses) / 99, rel=1e-6)


def test_mode_comes_back_and_dropout_is_off():
    network = model(dropout=0.5).train()
    assert evaluate(network, ids) == evaluate(network, ids)
    assert network.training


def test_too_short():
    with pytest.raises(ValueError, match="1 characters leave nothing to predict"):
        evaluate(model(), ids[:1])


def test_a_diverged_model_and_foreign_ids_are_refused():
    network = model()
    with pytest.raises(ValueError, match=f"id 99 is outside the model's vocabulary of {network.config.vocabulary}"):
        evaluate(network, torch.tensor([0, 99]))
    with pytest.raises(ValueError, match="id -1 is outside"):
        evaluate(network, torch.tensor([-1, 0]))
    with torch.no_grad():
        network.output.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the validation loss is nan: the model diverged"):
        evaluate(network, ids)


@pytest.mark.parametrize("sizes", [{"window": 0}, {"batch": 0}])
def test_windows_without_characters_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        evaluate(model(), ids, **sizes)


def test_mode_comes_back_after_an_error():
    network = model(position="absolute-learned", context=16, window=16).train()
    with pytest.raises(IndexError):
        evaluate(network, ids, window=50)
    assert network.training
