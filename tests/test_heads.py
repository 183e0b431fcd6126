"""The stored attention weights that chapter 2 draws, and the script that made them."""

import json

import pytest
import torch

from rcmha_lite.config import Config
from rcmha_lite.data import SHAKESPEARE_CHARACTERS, CharTokenizer
from rcmha_lite.model import LanguageModel
from tools import heads


@pytest.fixture(scope="module")
def found():
    return json.loads(heads.FILE.read_text(encoding="utf-8"))


def weights_of(found):
    """[layers, heads, query, key], with zeros for the keys after the query, which the file leaves out."""
    time = len(found["line"])
    return torch.tensor(
        [[[row + [0.0] * (time - len(row)) for row in head] for head in layer] for layer in found["weights"]]
    )


def test_every_query_shares_out_1_among_the_keys_up_to_it(found):
    config, time = Config(**found["config"]), len(found["line"])
    weights = weights_of(found)
    assert weights.shape == (config.layers, config.n_heads, time, time)
    assert all(len(row) == i + 1 for layer in found["weights"] for head in layer for i, row in enumerate(head))
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=0.005)  # rounded to 4 digits
    assert len(found["next_probability"]) == time - 1
    assert all(0 <= p <= 1 for p in found["next_probability"])


def test_it_comes_from_the_script_as_it_is(found):
    assert found["line"] == heads.LINE
    assert Config(**found["config"]) == heads.CONFIG
    assert not found["manifest"]["commit"].endswith("+changes")
    assert set(found["line"]) <= set(SHAKESPEARE_CHARACTERS)


def test_the_model_is_one_of_plain_attention(found):
    config = Config(**found["config"])
    assert (config.kernel_size, config.position) == (0, "relative-sinusoidal")


def test_a_name_that_training_lacks_is_copied(found):
    """From its third letter on, where the first two tell which of the speakers it is."""
    line = found["line"]
    assert found["times_in_training"]["CURTIS"] == 0
    again = line.rindex("CURTIS")
    assert min(found["next_probability"][again + n] for n in range(1, 6)) > 0.5


def test_capitals_change_places_and_nothing_else_does():
    tokenizer = CharTokenizer()
    capitals = tokenizer.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    ids = tokenizer.encode("ROMEO:\nAy me!").repeat(2, 1)
    one, other = heads.renamed(ids, capitals, torch.Generator().manual_seed(0))
    assert not torch.equal(one, other)
    for row in (tokenizer.decode(one), tokenizer.decode(other)):
        assert row[5:7] == ":\n"
        assert row[8:] == "y me!"
        assert row[1] == row[4]
        assert len({*row[:4], row[7]}) == 5


def test_speeches_are_cut():
    text = "A:\none\ntwo\n\nB:\nthree"
    assert heads.shortened(text, 1) == "A:\none\n\nB:\nthree"
    assert heads.shortened(text, 0) == "A:\n\nB:"


def test_weights_are_the_ones_that_the_model_uses():
    config = heads.CONFIG.replace(layers=1, d_model=8, n_heads=2, d_ff=8, d_position=4)
    model = LanguageModel(config)
    ids = torch.arange(6)
    weights, probabilities = heads.looked(model, ids)
    x = model.blocks[0].attention_norm(model.embedding(ids[None]))
    assert torch.allclose(weights[0], model.blocks[0].attention.weights(x)[0], atol=1e-6)
    expected = model(ids[None])[0][0].softmax(-1)
    assert torch.allclose(probabilities, expected[range(5), range(1, 6)], atol=1e-6)
