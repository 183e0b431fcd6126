"""Sampling: the distribution, the stream, and the cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcmha_lite import exercises
from rcmha_lite.config import CELLS, PRESETS
from rcmha_lite.data import CharTokenizer
from rcmha_lite.evaluation import read_window
from rcmha_lite.generation import generate, generate_ids, next_probabilities
from rcmha_lite.model import LanguageModel

logits = torch.tensor([2.0, 1.0, 0.0, -1.0])


def model(**changes):
    torch.manual_seed(0)
    changes = {"context": 12, "window": 12, "zero_output": False} | changes
    return LanguageModel(PRESETS["tiny"].replace(**changes)).eval()


def test_temperature():
    exercises.check_temperature(lambda z, t: next_probabilities(z, temperature=t))
    assert next_probabilities(logits, temperature=0).tolist() == [1, 0, 0, 0]
    assert next_probabilities(torch.tensor([1.0, 3.0, 3.0]), temperature=0).tolist() == [0, 1, 0]


def test_top_k_and_top_p_by_hand():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert torch.allclose(next_probabilities(p.log(), top_k=2), torch.tensor([0.625, 0.375, 0, 0]))
    assert torch.allclose(next_probabilities(p.log(), top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]))
    assert torch.allclose(next_probabilities(p.log(), top_p=0.4), torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(next_probabilities(p.log(), top_p=1.0), p)
    assert torch.allclose(next_probabilities(p.log(), top_k=9), p)
    assert next_probabilities(torch.zeros(4), top_k=2).count_nonzero() == 2


@given(st.integers(1, 4), st.floats(0.01, 1), st.floats(0, 5))
def test_always_a_distribution(top_k, top_p, temperature):
    p = next_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert p.sum().item() == pytest.approx(1)
    assert 1 <= p.count_nonzero() <= top_k


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_bad_sampling_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        next_probabilities(logits, **arguments)


@pytest.mark.parametrize("changes", [*CELLS.values(), {"position": "rope"}, {"position": "alibi"}])
def test_cached_greedy_text_equals_recomputation(changes):
    network, prompt = model(**changes).double(), torch.tensor([1, 2, 3])
    cached = list(generate_ids(network, prompt, 9, temperature=0))
    ids = prompt.tolist()
    for _ in range(9):
        ids.append(int(network(torch.tensor([ids]))[0][0, -1].argmax()))
    assert cached == ids[3:]


@pytest.mark.parametrize(
    "changes", [*CELLS.values(), *({"position": p} for p in ("absolute-learned", "relative-learned", "rope", "alibi"))]
)
def test_runs_past_the_context_with_bounded_cache(changes):
    network = model(**changes)
    held = []
    new_cache = network.new_cache
    network.new_cache = lambda limit: held.append(new_cache(limit)) or held[-1]
    assert len(list(generate_ids(network, torch.arange(20), 30))) == 30
    assert max(len(layer) for cache in held for layer in cache) < 12


@pytest.mark.parametrize("position", ["none", "relative-sinusoidal", "relative-learned", "rope", "alibi"])
def test_where_nothing_ends_the_cache_slides(position):
    """Past the context the stream goes on, the oldest key dropped at each step; nothing is read twice."""
    network, ids = model(position=position, kernel_init="pytorch").double(), list(range(20))
    cache, unread = network.new_cache(11), ids[-12:]
    for _ in range(30):
        unread = [int(network(torch.tensor([unread]), cache=cache)[0][0, -1].argmax())]
        ids += unread
    assert len(set(ids[20:])) > 5
    assert list(generate_ids(network, torch.arange(20), 30, temperature=0)) == ids[20:]


def test_fresh_queries_are_sampled_as_they_were_trained():
    """RCMHA's public code restarts queries at each segment: greedy text follows the segments, not the stream."""
    network = model(
        position="relative-learned", fresh_queries=True, context=2, window=2, memory=6, kernel_init="pytorch"
    )
    ids = list(range(9))
    expected = ids.copy()
    for _ in range(7):
        start = -(-max(0, len(expected) - 8) // 2) * 2
        expected.append(int(read_window(network, torch.tensor([expected[start:]]))[0, -1].argmax()))
    assert list(generate_ids(network, torch.tensor(ids), 7, temperature=0)) == expected[9:]


def test_seed_decides_the_text():
    network = model()
    first, again, other = ("".join(generate(network, "ROMEO:", 40, seed=s)) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 40


def test_stop_string_is_cut_wherever_the_pieces_fall(monkeypatch):
    text = "to be, or not to be"
    monkeypatch.setattr("rcmha_lite.generation.generate_ids", lambda *_: iter(CharTokenizer().encode(text).tolist()))
    for stop, expected in (("or", "to be, "), ("t to", "to be, or no"), ("zz", text), ("to ", ""), ("ee", text)):
        pieces = list(generate(model(), "A", stop=stop))
        assert "".join(pieces) == expected
        assert all(pieces)
    assert len(list(generate(model(), "A"))) == len(text)


def test_training_mode_comes_back():
    network = model().train()
    list(generate_ids(network, torch.tensor([1]), 2))
    assert network.training


def test_bad_prompts(unchecked):
    with pytest.raises(ValueError, match="prompt is empty"):
        list(generate(model(), ""))
    for prompt, message in (
        ([99], "id 99 is outside the model's vocabulary"),
        ([[1, 2]], r"shape \(1, 2\): give one row"),
    ):
        with pytest.raises(ValueError, match=message):
            list(generate_ids(model(), torch.tensor(prompt), 1))
    with pytest.raises(ValueError, match="unknown characters 'é'"):
        list(generate(model(), "café"))
    with pytest.raises(ValueError, match="the model has a vocabulary of 65, the tokenizer 2 characters"):
        list(generate(model(), "ab", tokenizer=CharTokenizer("ab")))


def test_a_diverged_model_is_named():
    with pytest.raises(ValueError, match="the model diverged in training"):
        next_probabilities(torch.tensor([0.0, float("nan")]))


def test_no_filter_drops_no_character():
    logits = torch.tensor([40.0, 0.0, -20.0])
    assert (next_probabilities(logits) > 0).all()
    torch.testing.assert_close(next_probabilities(logits), logits.softmax(0))


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}])
def test_filters_reach_the_samples(filters):
    network = model()
    greedy = list(generate_ids(network, torch.arange(5), 20, temperature=0))
    assert list(generate_ids(network, torch.arange(5), 20, seed=3, **filters)) == greedy


@pytest.mark.parametrize("position", ["none", "relative-sinusoidal", "relative-learned", "rope", "alibi"])
def test_a_full_cache_holds_the_last_positions_and_no_more(position):
    network = model(position=position, kernel_size=0, layers=1).double()
    ids = torch.randint(65, (1, 20))
    cache = network.new_cache(7)
    for t in range(20):
        streamed = network(ids[:, t : t + 1], cache=cache)[0]
        window = network(ids[:, max(0, t - 7) : t + 1])[0][:, -1:]
        torch.testing.assert_close(streamed, window, rtol=0, atol=1e-10)
