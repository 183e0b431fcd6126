"""The language model: memory, streaming, configuration."""

import dataclasses
import itertools
import json
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rcmha_lite import exercises
from rcmha_lite.attention import AttentionCache, MultiHeadAttention
from rcmha_lite.config import CELLS, PRESETS, Config, Position
from rcmha_lite.evaluation import read_window
from rcmha_lite.model import Dropout, FeedForward, LanguageModel, squared_relu

SMALL = Config(
    vocabulary=11, layers=2, d_model=16, n_heads=2, d_ff=24, d_position=6, context=16, window=16, zero_output=False,
    kernel_init="pytorch",
)  # fmt: skip
GRID = {
    **CELLS,
    "learned table": {"position": "relative-learned"},
    "no position": {"position": "none"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi", "kernel_size": 0},
}


def build(**changes) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(SMALL.replace(**changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


ids = torch.arange(48).mul(7).remainder(11).view(2, 24)


@pytest.mark.parametrize("cell", GRID)
def test_cells_of_one_seed_start_from_the_same_linear_layers(cell):
    """So that a comparison of cells with paired seeds sees the cells, and less of the seeds."""
    torch.manual_seed(5)
    plain = LanguageModel(SMALL.replace(**CELLS["mha"])).state_dict()
    torch.manual_seed(5)
    other = LanguageModel(SMALL.replace(**GRID[cell])).state_dict()
    assert plain.keys() <= other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("cell", GRID)
@given(cuts=st.sets(st.integers(1, 15)))
@settings(max_examples=6, deadline=None)
def test_streaming_equals_the_whole(cell, cuts):
    """Fed in any pieces through the cache, a sequence gives the logits of the sequence fed at once."""
    model = build(**GRID[cell])
    whole, _ = model(ids[:, :16])
    cache, parts, at = model.new_cache(), [], [0, *sorted(cuts), 16]
    for start, stop in itertools.pairwise(at):
        parts.append(model(ids[:, start:stop], cache=cache)[0])
    close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("cell", GRID)
def test_segments_with_long_memory_equal_the_whole_in_one_layer(cell):
    """With memory that reaches back to the start, segment by segment equals all at once."""
    changes = GRID[cell] | {"context": 4, "memory": 20, "layers": 1}
    model = build(**changes)
    close(read_window(model, ids), model(ids)[0])


def test_memory_is_bounded_detached_and_ordered():
    model = build(context=4, memory=6)
    _, memory = model(ids[:, :4])
    assert [layer.shape for layer in memory.hidden] == [(2, 4, 16)] * 2
    logits, memory = model(ids[:, 4:8], memory)
    assert [layer.shape for layer in memory.hidden] == [(2, 6, 16)] * 2
    assert memory.seen == 8
    assert not any(layer.requires_grad for layer in memory.hidden)
    assert logits.requires_grad
    close(memory.hidden[0][:, -4:], model.embedding(ids[:, 4:8]))
    close(memory.hidden[0][:, :2], model.embedding(ids[:, 2:4]))


@pytest.mark.parametrize("cell", GRID)
def test_model_is_causal_through_memory(cell):
    model = build(**GRID[cell], memory=5)
    _, memory = model(ids[:, :5])
    changed = ids[:, 5:10].clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    a, b = (model(x, memory)[0] for x in (ids[:, 5:10], changed))
    close(a[:, :3], b[:, :3], 1e-12)
    assert (a[:, 3:] - b[:, 3:]).abs().max() > 1e-6
    other = memory._replace(hidden=tuple(layer.flip(2) for layer in memory.hidden))
    assert (model(ids[:, 5:10], other)[0] - a).abs().max() > 1e-6


def test_relative_model_does_not_know_where_it_is():
    """The same memory and segment give the same logits however much text came before; absolute ones do not."""
    for position in ("relative-sinusoidal", "relative-learned", "rope", "alibi", "absolute-sinusoidal"):
        model = build(position=position, memory=4)
        _, memory = model(ids[:, :4])
        later = memory._replace(seen=memory.seen + 100)
        difference = (model(ids[:, 4:8], memory)[0] - model(ids[:, 4:8], later)[0]).abs().max()
        assert (difference < 1e-10) == (position != "absolute-sinusoidal")


def test_tied_embeddings_share_the_weight():
    tied, free = build(tie_embeddings=True), build()
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 17
    logits, _ = tied(ids)
    logits[..., 5].sum().backward()
    assert tied.embedding.weight.grad[5].abs().max() > 0
    assert not any(name.startswith("output") for name in tied.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's own, in its first jvp
def test_squared_relu():
    exercises.check_squared_relu(squared_relu)
    x, upstream = exercises.random(3, 50).requires_grad_(), exercises.random(3, 50, seed=1)
    plain, ours = F.relu(x).square(), squared_relu(x)
    assert torch.equal(ours, plain)
    close(*(torch.autograd.grad(y, x, upstream)[0] for y in (ours, plain)))
    assert torch.autograd.gradgradcheck(squared_relu, (x,))
    _, tangent = torch.func.jvp(squared_relu, (x,), (upstream,))
    close(tangent, 2 * F.relu(x) * upstream)
    with torch.autocast("cpu", torch.bfloat16):
        assert squared_relu(x.bfloat16()).dtype == torch.bfloat16  # a power would go to float32 and back


def test_dropout_only_in_training():
    model = build(dropout=0.5)
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])


def test_dropout_keeps_the_stated_share_and_the_mean():
    x, dropout = torch.ones(999, 1001, requires_grad=True), Dropout(0.25)
    y = dropout(x)
    kept = y > 0
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.003)
    assert torch.allclose(y[kept], torch.tensor(4 / 3))
    assert kept.double().mean(0).std() < 0.03 > kept.double().mean(1).std()
    y.sum().backward()
    assert torch.equal(x.grad > 0, kept)
    torch.manual_seed(7)
    again = dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), again)
    assert not torch.equal(y, again)
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout {p} is not a share"):
            Dropout(p)


def test_zero_output_starts_as_the_embedding_alone():
    model = LanguageModel(SMALL.replace(zero_output=True)).eval()
    expected = model.output(model.norm(model.embedding(ids)))
    assert torch.allclose(model(ids)[0], expected, atol=1e-6)


def test_paper_preset_has_the_parameters_counted_from_the_public_code():
    """0.84 M with the tables cut to the 34 rows in use; in each layer 192 convolution weights and biases."""
    model = LanguageModel(PRESETS["paper"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.84e6, abs=5e3)
    attention = model.blocks[0].attention
    assert sum(p.numel() for p in attention.convolution.parameters()) == 192
    assert attention.position.embedding.shape == (34, 8, 16)
    tables = sum(p.numel() for p in (attention.position.embedding, attention.position.table_bias))
    kept = sum(p.numel() for p in attention.parameters()) - tables
    assert kept + tables * 8192 // 34 == 1_180_224


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_forward_and_backward(name):
    config = PRESETS[name].replace(layers=1, dropout=0.0)
    model = LanguageModel(config)
    segment = torch.zeros(1, 2, dtype=torch.long)
    _, memory = model(segment)
    logits, _ = model(segment, memory)
    logits.sum().backward()
    assert logits.shape == (1, 2, 65)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("past", [0, 7])
def test_no_query_and_key_bias_equals_zero_bias(past):
    """RCMHA's public code has none there."""
    with_bias, without = (MultiHeadAttention(16, 4).double(), MultiHeadAttention(16, 4, query_key_bias=False).double())
    state = {name: value for name, value in with_bias.state_dict().items() if name not in ("query.bias", "key.bias")}
    without.load_state_dict(state)
    with torch.no_grad():
        with_bias.query.bias.zero_()
        with_bias.key.bias.zero_()
    x, memory = exercises.random(2, 5, 16), exercises.random(2, past, 16, seed=1) if past else None
    close(without(x, memory), with_bias(x, memory))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 130, "n_heads": 8}, "d_model 130 is not divisible by n_heads 8"),
        ({"position": "nowhere"}, "position 'nowhere' is not one of none, absolute-sinusoidal"),
        ({"dropout": 1.5}, "dropout 1.5 is too large: give less than 1"),
        ({"decay": 1.5}, "decay 1.5 is a share of the steps: give 1 or less"),
        ({"layers": 0}, "layers 0 is too small: give 1 or more"),
        ({"layers": 2.5}, "layers 2.5 is not of type int"),
        ({"layers": True}, "layers True is not of type int"),
        ({"compile": 1}, "compile 1 is not of type bool"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"batch": 10, "accumulate": 3}, "batch 10 is not divisible by accumulate 3"),
        ({"position": "absolute-learned", "memory": 3}, "absolute-learned positions end with the table"),
        ({"position": "absolute-learned", "window": 300}, "untrained beyond context 16"),
        ({"memory": 3, "accumulate": 2}, "memory follows whole batches"),
        ({"position": "relative-learned", "window": 17}, "untrained beyond context 16"),
        ({"position": "absolute-sinusoidal", "window": 17}, "untrained beyond context 16"),
        ({"position": "absolute-sinusoidal", "d_model": 15, "n_heads": 3}, "d_model 15 is odd"),
        ({"convolve": "x"}, "convolve 'x' is not one of q, k, v, qk"),
        ({"schedule": "noam"}, "schedule noam is made for Adam's rate"),
        ({"d_position": 7}, "d_position 7 is odd"),
        (
            {"position": "rope", "d_model": 18, "n_heads": 2},
            "d_model 18 .* n_heads 2 is 9, odd: .* give an even number",
        ),
        ({"position": "rope", "d_model": 4, "n_heads": 4}, "n_heads 4 is 1, odd"),
        ({"layer_init": "xavier"}, "layer_init 'xavier' is not one of scaled, public-code"),
        ({"kernel_rate": -1.0}, "kernel_rate -1.0 is too small: give 0 or more"),
    ],
)
def test_bad_configurations_are_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        LanguageModel(SMALL.replace(**changes))


def test_configuration_round_trip_and_unknown_fields():
    assert Config.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(ValueError, match="does not know: depth"):
        Config.from_json('{"depth": 3}')
    fields = json.loads(SMALL.to_json())
    del fields["activation"]
    with pytest.raises(ValueError, match="lacks activation: add what the run had"):
        Config.from_json(json.dumps(fields))
    for text in ("weights", "[1]"):
        with pytest.raises(ValueError, match="does not hold a configuration"):
            Config.from_json(text)


@pytest.mark.parametrize("position", get_args(Position))
def test_every_position_makes_the_round_trip_and_a_model(position):
    config = SMALL.replace(position=position)
    assert Config.from_json(config.to_json()) == config
    logits, _ = LanguageModel(config)(ids[:, :16])
    logits.sum().backward()
    assert logits.isfinite().all()


def test_fields_that_came_later_may_be_missing_and_no_others():
    """What is missing is what the first runs did; a field that they had may not be guessed."""
    config = SMALL.replace(layer_init="public-code", kernel_rate=2.5, n_kv_heads=1)
    assert Config.from_json(config.to_json()) == config
    for field in dataclasses.fields(Config):
        fields = json.loads(config.to_json())
        del fields[field.name]
        if field.name in (later := {"layer_init": "scaled", "kernel_rate": 1.0, "n_kv_heads": 0}):
            found = Config.from_json(json.dumps(fields))
            assert getattr(found, field.name) == later[field.name]
            assert found.replace(**{field.name: getattr(config, field.name)}) == config
        else:
            with pytest.raises(ValueError, match=f"lacks {field.name}: add what the run had"):
                Config.from_json(json.dumps(fields))


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_rotary_and_alibi_models_have_mhas_parameters_and_no_end(position):
    plain, model = build(position="none", kernel_size=0), build(position=position, kernel_size=0, window=40)
    assert [*map(str, model.state_dict())] == [*map(str, plain.state_dict())]
    assert model(torch.arange(40).remainder(11)[None])[0].isfinite().all()  # past the context of 16
    assert (build(position=position)(ids)[0] - build(position="none")(ids)[0]).abs().max() > 1e-3


def test_an_empty_cache_is_used():
    network = LanguageModel(SMALL).eval()
    ids = torch.arange(5)[None]
    cache = network.new_cache()
    assert all(cache)
    with torch.no_grad():
        network(ids, cache=cache)
    assert [one.seen for one in cache] == [5] * len(network.blocks)


@pytest.mark.parametrize("make", [lambda n: [], lambda n: AttentionCache(), lambda n: [AttentionCache()] * n])
def test_a_cache_that_is_not_the_models_is_refused(make, unchecked):
    network = LanguageModel(SMALL)
    with pytest.raises(ValueError, match=f"a list of {len(network.blocks)}, one for each block"):
        network(torch.zeros(1, 3, dtype=torch.long), cache=make(len(network.blocks)))


def test_ids_without_a_batch_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"shape \(3,\): give \[batch, time\]"):
        LanguageModel(SMALL)(torch.zeros(3, dtype=torch.long))


def test_an_unknown_activation_is_refused(unchecked):
    with pytest.raises(ValueError, match="activation 'silu' is not one of relu, relu2, gelu"):
        FeedForward(8, 8, "silu")


def test_every_field_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(Config))


def test_parts_of_the_grid():
    for name, changes in CELLS.items():
        attention = build(**changes).blocks[0].attention
        assert (attention.position is not None) == name.startswith("r")
        assert (attention.convolution is not None) == ("c" in name or "d" in name)
        assert isinstance(attention.query, nn.Linear)


def test_a_model_without_memory_can_be_planned():
    with torch.device("meta"):
        planned = LanguageModel(SMALL)
    assert sum(p.numel() for p in planned.parameters()) == sum(p.numel() for p in build().parameters())
