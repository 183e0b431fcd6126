"""The fast way to the next character: the logits of the model itself, and never from weights that are gone."""

import pytest
import torch
from torch import nn

from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.model import LanguageModel
from rcmha_lite.stepping import Stepper

TINY = PRESETS["tiny"].replace(d_model=32, d_ff=64, zero_output=False, kernel_init="pytorch", device="cpu")
FAST = {
    **CELLS,
    "no positions": {"position": "none"},
    "a table of positions": {"position": "absolute-learned", "kernel_size": 1},
    "tied, without biases": {"tie_embeddings": True, "kernel_bias": False, "query_key_bias": False},
    "separate kernels of 9": {"shared_kernels": False, "kernel_size": 9, "activation": "gelu"},
}
CALLED = {
    "rotary": {"position": "rope"},
    "ALiBi": {"position": "alibi"},
    "a table of distances": {"position": "relative-learned"},
    "kernels on some": {"convolve": "kv"},
}


def build(dtype=torch.float64, **changes) -> LanguageModel:
    """Every parameter random, so that no zero hides a term."""
    torch.manual_seed(0)
    model = LanguageModel(Config(**vars(TINY) | changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def stream(model, ids, step, first, limit=None):
    """Logits after each of ``ids[:, first:]``, the rest read at once before them."""
    cache = model.new_cache(limit)
    with torch.no_grad():
        model(ids[:, :first], cache=cache)
        return torch.stack([step(ids[:, t], cache) for t in range(first, ids.shape[1])], dim=1)


def called(model):
    return lambda ids, cache: model(ids[:, None], cache=cache)[0][:, 0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
@pytest.mark.parametrize("name", FAST | CALLED)
def test_steps_equal_calls(name, dtype, tolerance):
    """From the second character on, past the limit of the cache, three streams at once."""
    model = build(dtype, **(FAST | CALLED)[name])
    ids, stepper = torch.randint(65, (3, 40), generator=torch.Generator().manual_seed(1)), Stepper(model)
    assert stepper.plain == (name in FAST)
    limit = None if "table" in name else 15
    expected, found = (stream(model, ids, step, 1, limit) for step in (called(model), stepper))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_a_far_position_is_as_exact_as_a_near_one():
    model = build()
    ids = torch.randint(65, (1, 30), generator=torch.Generator().manual_seed(1))
    logits = []
    for seen in (0, 1_000_000):
        cache, stepper = model.new_cache(), Stepper(model)
        for one in cache:
            one.seen = seen
        with torch.no_grad():
            model(ids[:, :5], cache=cache)
            logits.append(torch.stack([stepper(ids[:, t], cache) for t in range(5, 30)]))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-8)


class Adapter(nn.Module):
    """A layer with something added, as adapters are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + x.roll(1, -1)


def adapt(model):
    model.blocks[0].attention.key = Adapter(model.blocks[0].attention.key)


def edit(model):
    with torch.no_grad():
        model.blocks[0].attention.value.weight[3] += 1


def edit_data(model):
    """As some libraries merge adapters: no version counter of the parameter sees it."""
    model.blocks[1].attention.convolution.weight.data.mul_(2)


def optimise(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.zeros(1, 9, dtype=torch.long))[0].square().mean().backward()
    optimizer.step()


def load(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assign(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def replace(model):
    model.blocks[0].feed_forward.input.weight = nn.Parameter(model.blocks[0].feed_forward.input.weight * 2)


def hook(model):
    model.blocks[1].attention.position.register_forward_hook(lambda module, given, out: (out[0] * 2, *out[1:]))


def another_forward(model):
    norm = model.blocks[0].attention_norm
    norm.forward = lambda x: nn.LayerNorm.forward(norm, x) * 2


def through_another_place(model):
    """``.to`` gives parameters other arrays."""
    model.float()
    model.double()


CHANGES = [adapt, edit, edit_data, optimise, load, assign, replace, hook, another_forward, through_another_place]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_characters_counts_at_the_next(change):
    ids = torch.randint(65, (2, 14), generator=torch.Generator().manual_seed(1))
    results = []
    for fast in (False, True):
        model = build()
        step, cache = Stepper(model) if fast else called(model), model.new_cache()
        with torch.no_grad():
            model(ids[:, :5], cache=cache)
            logits = [step(ids[:, t], cache) for t in range(5, 8)]
        change(model)
        with torch.no_grad():
            logits += [step(ids[:, t], cache) for t in range(8, 14)]
        results.append(torch.stack(logits))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    unchanged = build()
    assert (stream(unchanged, ids, called(unchanged), 5)[:, 3:].transpose(0, 1) - results[0][3:]).abs().max() > 1e-9


def test_what_is_taken_off_again_is_fast_again():
    model = build()
    stepper, cache = Stepper(model), model.new_cache()
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    stepper(torch.zeros(1, dtype=torch.long), cache)
    assert not stepper.plain
    handle.remove()
    stepper(torch.zeros(1, dtype=torch.long), cache)
    assert stepper.plain


def test_a_stream_may_change_hands():
    """Steps and calls in turn; what a step leaves may be written by a call."""
    model = build()
    ids = torch.randint(65, (2, 20), generator=torch.Generator().manual_seed(1))
    stepper, call = Stepper(model), called(model)
    turns = iter(range(100))

    def either(token, cache):
        return (stepper if next(turns) % 3 else call)(token, cache)

    expected = stream(model, ids, call, 2, 9)
    torch.testing.assert_close(stream(model, ids, either, 2, 9), expected, rtol=0, atol=1e-12)
