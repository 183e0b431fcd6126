"""Whatever is attached to a layer, or put in its place, takes effect: every attachment on every cell of the grid.

Each row of the table is a thing that PyTorch, Accelerate or peft does to a model, with an expectation found another way.
"""

import copy
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.export import Dim, export
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from rcmha_lite import exercises
from rcmha_lite.accounting import parameters_by_part, saved_bytes
from rcmha_lite.attention import MultiHeadAttention, causal_mask, mdha, mha, rcmha, rmha
from rcmha_lite.config import CELLS, Config
from rcmha_lite.conversion import from_torch, to_torch
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.evaluation import evaluate, read_window
from rcmha_lite.generation import generate_ids
from rcmha_lite.model import Block, LanguageModel
from rcmha_lite.plain import calls_only_forward
from rcmha_lite.positions import Position
from rcmha_lite.streaming import AttentionCache

pytestmark = pytest.mark.usefixtures("unchecked")  # wrappers are of other types than what they wrap

SMALL = Config(
    vocabulary=11, layers=2, d_model=16, n_heads=2, d_ff=24, d_position=6, context=16, window=16, zero_output=False,
    kernel_init="pytorch",
)  # fmt: skip
SEGMENTS = {"context": 5, "window": 5, "memory": 4}
GRID = {
    **CELLS,
    "learned table": {"position": "relative-learned"},
    "absolute table": {"position": "absolute-learned"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi", "kernel_size": 0},
    "tied": {"tie_embeddings": True},
    "memory": SEGMENTS,
    "fresh queries": SEGMENTS | {"fresh_queries": True, "position": "relative-learned", "query_key_bias": False},
}
PROJECTIONS = ("query", "key", "value", "output")
ids = torch.arange(24).mul(7).remainder(11).view(2, 12)
every_cell = pytest.mark.parametrize("cell", GRID)


def build(cell: str, **changes) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(SMALL.replace(**GRID[cell] | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def read(model: nn.Module, text=ids):
    """Logits over the whole text, in segments where the model has a memory: two or three passes, in one otherwise."""
    return read_window(model, text)


def passes(model: LanguageModel) -> int:
    return -(-ids.shape[1] // model.config.context) if model.config.memory else 1


def loss(model: nn.Module):
    return F.cross_entropy(read(model).flatten(0, 1), ids.flatten())


def gradients(model: nn.Module) -> dict:
    model.zero_grad()
    loss(model).backward()
    return {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def differ(a, b):
    assert (a - b).abs().max() > 1e-6


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule but the two kinds that are never called, lists and the model itself."""
    return {name: m for name, m in model.named_modules() if name and not isinstance(m, nn.ModuleList)}


# --- adapters


SUBSETS = [list(some) for n in range(1, 5) for some in itertools.combinations(PROJECTIONS, n)]


FEW = [["query"], ["query", "value"], list(PROJECTIONS)]
LORA = [(cell, some) for cell in GRID for some in (SUBSETS if cell == "rcmha" else FEW)]


@pytest.mark.parametrize(("cell", "targets"), LORA, ids=[f"{cell} {'+'.join(some)}" for cell, some in LORA])
def test_lora_by_peft(cell, targets):
    """Against a model whose weights are W + scale · B A; every adapter gets a gradient; merging changes nothing."""
    plain, expected = build(cell), build(cell)
    names = [f"attention.{name}" for name in targets]
    adapted = get_peft_model(plain, LoraConfig(r=2, lora_alpha=6, target_modules=names, init_lora_weights=False))
    found = adapted.base_model.model
    for ours, theirs in zip(expected.blocks, found.blocks, strict=True):
        for name in targets:
            lora = getattr(theirs.attention, name)
            added = 3.0 * lora.lora_B["default"].weight @ lora.lora_A["default"].weight
            with torch.no_grad():
                getattr(ours.attention, name).weight += added
    before = read(build(cell))
    differ(read(adapted), before)
    close(read(adapted), read(expected))
    loss(adapted).backward()
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 2 * len(targets)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    assert list(generate_ids(adapted, ids[0, :3], 6)) == list(generate_ids(expected, ids[0, :3], 6))
    close(read(adapted.merge_and_unload()), read(expected))


def test_lora_on_a_tied_embedding_is_lora_on_both_its_uses():
    adapted = get_peft_model(build("tied"), LoraConfig(r=2, target_modules=["embedding"], init_lora_weights=False))
    differ(read(adapted), read(build("tied")))
    close(read(adapted), read(copy.deepcopy(adapted).merge_and_unload()))


class LoRA(nn.Linear):
    """As a reader writes it: a subclass with a ``forward`` of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=layer.weight.dtype)
        self.load_state_dict(layer.state_dict())
        self.a, self.b = (nn.Parameter(exercises.random(*shape)) for shape in ((2, 16), (16, 2)))

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


class Wrapper(nn.Module):
    """Adds a low-rank product to whatever it holds."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.a, self.b = (nn.Parameter(exercises.random(*shape)) for shape in ((2, 16), (16, 2)))

    def forward(self, x):
        return self.layer(x) + x @ self.a.T @ self.b.T


def own_forward(layer: nn.Linear) -> nn.Linear:
    """An instance whose ``forward`` is replaced, as Accelerate's hooks do."""
    layer.forward = lambda x: F.linear(x, layer.weight + exercises.random(16, 2) @ exercises.random(2, 16), layer.bias)
    return layer


class OnlyLinear(torch.Tensor):
    """A weight that knows nothing but ``linear``, as quantised ones do: w + B A."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, *rest = args
            whole = weight.as_subclass(torch.Tensor) + exercises.random(16, 2) @ exercises.random(2, 16)
            return F.linear(x, whole, *rest)
        if function is torch.cat:
            raise NotImplementedError("only linear")
        return super().__torch_function__(function, types, args, kwargs or {})


def own_weight(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OnlyLinear))
    return layer


class Added(nn.Module):
    def forward(self, weight):
        return weight + exercises.random(16, 2) @ exercises.random(2, 16)


def parametrized(layer: nn.Linear) -> nn.Linear:
    return parametrize.register_parametrization(layer, "weight", Added())


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda _, args, y: y + args[0] @ exercises.random(2, 16).T @ exercises.random(16, 2).T)
    return layer


def hooked_before(layer: nn.Linear) -> nn.Linear:
    weight = layer.weight.detach()
    more = torch.linalg.solve(weight, exercises.random(16, 2) @ exercises.random(2, 16))
    layer.register_forward_pre_hook(lambda _, args: (args[0] + args[0] @ more.T,))
    return layer


LOW_RANK = {
    "a subclass": LoRA, "a wrapper": Wrapper, "its forward replaced": own_forward, "a weight of its own kind": own_weight,
    "a parametrization": parametrized, "a forward hook": hooked, "a forward pre-hook": hooked_before,
}  # fmt: skip


@every_cell
@pytest.mark.parametrize("names", [["key"], PROJECTIONS], ids=["key", "all"])
@pytest.mark.parametrize("kind", LOW_RANK)
def test_low_rank_change_in_every_manner(kind, names, cell):
    """All of them make W + B A, with these B and A."""
    model, expected = build(cell), build(cell)
    for block, ours in zip(model.blocks, expected.blocks, strict=True):
        for name in names:
            setattr(block.attention, name, LOW_RANK[kind](getattr(block.attention, name)))
            with torch.no_grad():
                getattr(ours.attention, name).weight += exercises.random(16, 2) @ exercises.random(2, 16)
    close(read(model), read(expected), 1e-8)


# --- hooks


@every_cell
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of the embedding, whose ids have none
def test_every_submodule_is_called_once_a_pass_and_its_hooks_fire(cell):
    """The convolution of fresh queries: once for the queries, once for the rest; all other modules once."""
    model = build(cell)
    expected_loss = loss(model)
    counts: dict = {}

    def count(what):
        return lambda *_: counts.__setitem__(what, counts.get(what, 0) + 1)

    for name, module in layers_of(model).items():
        module.register_forward_pre_hook(count((name, "before")))
        module.register_forward_hook(count((name, "after")))
        module.register_full_backward_hook(count((name, "backward")))
        module.register_full_backward_pre_hook(count((name, "backward before")))
    found = loss(model)
    found.backward()
    close(found, expected_loss)
    for name, module in layers_of(model).items():
        twice = name.endswith("convolution") and model.config.fresh_queries
        often = passes(model) + (passes(model) - 1 if twice else 0)
        for what in ("before", "after"):
            assert counts[name, what] == often, (name, what)
        if name != "position":
            assert counts[name, "backward"] == counts[name, "backward before"] == often, (name, type(module))


@every_cell
@pytest.mark.parametrize("part", ["", ".query", ".key", ".value", ".output", ".position", ".convolution"])
def test_a_hooks_replacement_takes_effect(part, cell):
    model = build(cell)
    before, at = read(model), "blocks.1.attention" + part
    if at not in layers_of(model):
        assert part in (".position", ".convolution")
        return
    layers_of(model)[at].register_forward_hook(
        lambda _, args, y: (2 * y[0], y[1], y[2]) if part == ".position" else 2 * y
    )
    differ(read(model), before)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_backward_hooks_see_and_change_gradients(name):
    for register in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        model = build("mha")
        expected = gradients(model)[f"blocks.0.attention.{name}.weight"].clone()
        layer, heard = getattr(model.blocks[0].attention, name), []

        def double(_, gradients, *rest, heard=heard):
            heard.append(gradients)
            return tuple(2 * g for g in gradients)

        getattr(layer, register)(double)
        found = gradients(model)[f"blocks.0.attention.{name}.weight"]
        close(found, expected * (2 if "pre" in register else 1))
        assert len(heard) == 1


def test_hooks_on_all_modules_are_heard():
    model, called = build("rcmha"), []
    handle = register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        read(model)
    finally:
        handle.remove()
    assert set(layers_of(model).values()) <= set(called)


def test_operations_are_counted_under_the_layer_that_did_them():
    model = build("mha")
    with FlopCounterMode(display=False) as counter:
        read(model)
    counted = counter.get_flop_counts()
    for name in PROJECTIONS:
        assert sum(counted[f"LanguageModel.blocks.0.attention.{name}"].values()) == 2 * ids.numel() * 16 * 16


# --- what acts on weights


def weights_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, n) for m in list(model.modules()) for n, p in m.named_parameters(recurse=False) if p is not None]


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


@every_cell
def test_every_weight_can_be_parametrized(cell):
    """Kernels, tables and biases too: against a model whose parameters are twice as large."""
    model, expected = build(cell), build(cell)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(2)
    for module, name in weights_of(model):
        parametrize.register_parametrization(module, name, Twice())
    close(read(model), read(expected))
    assert all(gradient is not None for gradient in gradients(model).values())


@every_cell
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "act",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5), lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer), parametrizations.weight_norm, parametrizations.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "bias", 0.5) if layer.bias is not None else None,
    ],
    ids=["prune", "weight_norm", "spectral_norm", "new weight_norm", "new spectral_norm", "prune the bias"],
)  # fmt: skip
def test_pruning_and_normed_weights(act, cell):
    """Against plain layers that hold the weights that the utility made."""
    model, expected = build(cell), build(cell)
    for block, ours in zip(model.blocks, expected.blocks, strict=True):
        for name in PROJECTIONS:
            layer = getattr(block.attention, name)
            act(layer)
            with torch.no_grad():
                layer(torch.zeros(1, 16, dtype=torch.float64))  # the old ones work before a call
                made = {n: getattr(layer, n) for n in ("weight", "bias") if getattr(layer, n) is not None}
            getattr(ours.attention, name).load_state_dict(made)
    close(read(model), read(expected))
    assert all(gradient is not None for gradient in gradients(model).values())


@every_cell
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_quantization(cell):
    if torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no engine for quantised layers")
    model = build(cell).float()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not any(type(m) is nn.Linear for m in quantized.modules())
    with torch.no_grad():
        error = (read(quantized) - read(model)).abs().max()
    assert 0 < error < 0.3


def test_weights_as_one_vector_and_averaged_models():
    for cell in GRID:
        model = build(cell)
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(2 * vector, (other := build(cell)).parameters())
        average = AveragedModel(model)
        average.update_parameters(model)
        average.update_parameters(other)
        nn.utils.vector_to_parameters(1.5 * vector, (expected := build(cell)).parameters())
        close(read(average.module), read(expected))
        for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(read(same), read(model))


# --- modules of one's own


class Mean(nn.Module):
    """The smallest causal attention: the mean of what came before. It takes no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16).double()

    def forward(self, x, memory=None):
        context = x if memory is None else torch.cat((memory, x), dim=1)
        weights = torch.ones(x.shape[1], context.shape[1], dtype=x.dtype).tril(context.shape[1] - x.shape[1])
        return self.mix(weights / weights.sum(-1, keepdim=True) @ context)


class NoCache(nn.Module):
    """An attention of the package behind a signature without a cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x, memory=None):
        return self.inner(x) if memory is None else self.inner(x, memory)


class HandsOn(NoCache):
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Options(Mean):
    """Keywords of its own, and no attention inside that could take a cache."""

    def forward(self, x, memory=None, **options):
        return super().forward(x, memory)


class Swallows(NoCache):
    def forward(self, x, **kwargs):
        return self.inner(x)


@every_cell
def test_an_attention_of_ones_own(cell):
    model = build(cell)
    model.blocks[1].attention = Mean()
    text = read(model)
    differ(text, read(build(cell)))
    assert model.blocks[1].attention.mix.weight.grad is None
    assert all(g is not None for g in gradients(model).values())
    assert len(list(generate_ids(model, ids[0], 20))) == 20
    assert evaluate(model, ids.flatten(), window=5).positions == 23
    assert parameters_by_part(model)["other"] == 16 * 17
    with pytest.raises(ValueError, match=r"blocks\.1\.attention takes no cache: give its forward a cache=None"):
        model.new_cache()


@every_cell
def test_text_without_a_cache_is_text_with_one(cell):
    """As long as the window holds it."""
    model, other = build(cell, context=16, window=16), build(cell, context=16, window=16)
    other.blocks[0].attention = NoCache(other.blocks[0].attention)
    assert other.without_cache() == ["blocks.0.attention"]
    assert not model.without_cache()
    assert list(generate_ids(model, ids[0, :3], 10)) == list(generate_ids(other, ids[0, :3], 10))


def test_wrappers_that_hand_on_the_cache_are_given_it():
    expected = list(generate_ids(build("rcmha"), ids[0, :3], 10))
    model = build("rcmha")
    for block in model.blocks:
        block.attention = HandsOn(block.attention)
    assert not model.without_cache()
    assert list(generate_ids(model, ids[0, :3], 10)) == expected
    model.blocks[0].attention = Swallows(model.blocks[0].attention.inner)
    with pytest.raises(ValueError, match="block 0 was given a cache and left it as it was"):
        list(generate_ids(model, ids[0, :3], 2))
    model.blocks[0].attention = Options()
    assert model.without_cache() == ["blocks.0.attention"]
    model = build("rcmha")
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, MultiHeadAttention | Block))
    assert not model.without_cache()
    assert list(generate_ids(model, ids[0, :3], 10)) == expected
    model = build("rcmha")
    model.blocks[0].attention = torch.compile(model.blocks[0].attention, backend="eager")
    assert not model.without_cache()


def test_a_subclass_with_its_own_forward():
    class Doubled(MultiHeadAttention):
        def forward(self, x, memory=None, cache=None):
            return 2 * super().forward(x, memory, cache)

    for cell in ("mha", "memory", "fresh queries"):
        model, expected = build(cell), build(cell)
        for block, ours in zip(model.blocks, expected.blocks, strict=True):
            block.attention.__class__ = Doubled
            with torch.no_grad():
                for parameter in ours.attention.output.parameters():
                    parameter.mul_(2)
        close(read(model), read(expected))


class Recency(nn.Module):
    """A position in five lines: the nearer, the better. What ALiBi does, with one slope."""

    def forward(self, q, k, start, past):
        keys = past + k.shape[2]
        distance = torch.arange(keys - q.shape[2], keys)[:, None] - torch.arange(keys)
        return q, k, -0.5 * distance.to(q.dtype)[None, None]


class Shift(nn.Module):
    """A convolution in five lines: half of each row comes from the row before."""

    def forward(self, x, projections, history):
        first = x[:, :1] * 0 if history is None or not history.shape[1] else history[:, -1:]
        return (x + torch.cat((first, x[:, :-1]), dim=1)) / 2


class CountedShift(Shift):
    kernel_size = 2


def test_a_position_and_a_convolution_of_ones_own():
    """Whole and in pieces alike; the weights are those of the formula."""
    module = MultiHeadAttention(16, 2, position=Recency(), convolution=CountedShift()).double()
    x = exercises.random(2, 9, 16)
    q, k, v = (
        ((y := layer(x)) + F.pad(y, (0, 0, 1, -1))).div(2).view(2, 9, 2, 8).transpose(1, 2)
        for layer in (module.query, module.key, module.value)
    )
    i = torch.arange(9)
    scores = (q @ k.mT - 0.5 * (i[:, None] - i)) / 8**0.5
    weights = scores.masked_fill(i[:, None] < i, float("-inf")).softmax(-1)
    close(module(x), module.output((weights @ v).transpose(1, 2).flatten(2)))
    cache = AttentionCache()
    close(torch.cat([module(piece, cache=cache) for piece in x.split((4, 1, 4), dim=1)], dim=1), module(x))
    module.convolution = Shift()
    close(module(x[:, 4:], x[:, :4]), module(x)[:, 4:])
    with pytest.raises(ValueError, match="Shift, has kernel_size None: in a stream, give it the number of its taps"):
        module(x, cache=(cache := AttentionCache()))
    assert not len(cache)


# --- memory and compilation


@every_cell
@pytest.mark.parametrize("kind", [MultiHeadAttention, Block])
def test_activation_checkpointing(kind, cell):
    model, expected = build(cell).train(), build(cell).train()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, kind))
    kept = [saved_bytes(lambda m=m: loss(m), but_not=m.parameters()) for m in (model, expected)]
    assert kept[0] < 0.8 * kept[1]
    found, right = gradients(model), gradients(expected)
    assert found.keys() == right.keys()
    for name in right:
        close(found[name], right[name])
    assert model.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize("cell", ["rcmha", "fresh queries", "rope"])
@pytest.mark.parametrize("kind", [LanguageModel, Block, MultiHeadAttention, (HeadConvolution, Position)])
def test_each_submodule_compiles_by_itself(kind, cell):
    """In one graph, which is really what runs."""
    model, ran = build(cell), []

    def backend(graph, inputs):
        return lambda *args: ran.append(graph) or graph.forward(*args)

    compiled = [module for module in model.modules() if isinstance(module, kind)]
    for module in compiled:
        module.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        close(read(model), read(build(cell)))
    assert len(ran) >= len(compiled) * passes(model)
    torch.compiler.reset()


def test_only_a_layer_with_nothing_attached_is_read_instead_of_called():
    """Dynamo compiles no ``nn.Linear`` by itself, so that a compiled call is seen here alone."""
    layer = build("mha").blocks[0].attention.query
    assert calls_only_forward(layer)
    layer.compile(backend="eager")
    assert not calls_only_forward(layer)


@every_cell
def test_export_from_one_position_and_any_batch(cell):
    model = build(cell, context=16, window=16)
    least = model.config.memory + 1 if model.config.memory else 1  # a shorter text leaves a shorter memory behind
    shapes = ({0: Dim("batch", min=1), 1: Dim("time", min=least, max=16)},)
    program = export(model, (ids[:, :7].contiguous(),), dynamic_shapes=shapes).module()
    for batch, time in ((1, 1), (2, 1), (3, 2), (1, 4), (2, 5), (1, 16)):
        if time < least:
            continue
        text = torch.arange(batch * time).remainder(11).view(batch, time)
        close(program(text)[0], model(text)[0])
    static = export(model, (ids[:1, :1].contiguous(),)).module()
    close(static(ids[:1, :1])[0], model(ids[:1, :1])[0])


# --- transforms


def functional_loss(model, parameters, text):
    logits, _ = functional_call(model, parameters, (text[None],))
    return F.cross_entropy(logits[0], text)


@every_cell
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_transforms_of_the_whole_model(cell):
    """Each text's own gradient against one backward pass a text; a derivative in a direction against a difference."""
    model = build(cell, context=16, window=16)
    parameters = dict(model.named_parameters())
    per_text = vmap(grad(functional_loss, argnums=1), (None, None, 0))(model, parameters, ids)
    for n, text in enumerate(ids):
        model.zero_grad()
        functional_loss(model, parameters, text).backward()
        for name, parameter in parameters.items():
            close(per_text[name][n], parameter.grad)
    direction = {name: torch.ones_like(p) for name, p in parameters.items()}
    _, slope = jvp(lambda p: functional_loss(model, p, ids[0]), (parameters,), (direction,))
    with forward_ad.dual_level():  # the same without torch.func
        duals = {name: forward_ad.make_dual(p.detach(), direction[name]) for name, p in parameters.items()}
        close(forward_ad.unpack_dual(functional_loss(model, duals, ids[0])).tangent, slope)
    step = 1e-6
    there = [
        functional_loss(model, {n: p + s * step * direction[n] for n, p in parameters.items()}, ids[0]) for s in (1, -1)
    ]
    close(slope, (there[0] - there[1]) / (2 * step), 1e-6)


@every_cell
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_second_derivatives(cell):
    """Of one bias: torch.func's against autograd's, twice backwards, by PyTorch's plain kernels."""
    model = build(cell, context=16, window=16)
    name, parameters = "blocks.0.feed_forward.output.bias", dict(model.named_parameters())
    bias = parameters[name].detach()
    second = hessian(lambda b: functional_loss(model, parameters | {name: b}, ids[0]))(bias)
    with sdpa_kernel(SDPBackend.MATH):
        value = functional_loss(model, parameters, ids[0])
        (first,) = torch.autograd.grad(value, parameters[name], create_graph=True)
        rows = [torch.autograd.grad(g, parameters[name], retain_graph=True)[0] for g in first]
    close(second, torch.stack(rows))
    close(second, second.T)


@every_cell
def test_ensembles_with_dropout(cell):
    models = [build(cell, context=16, window=16, dropout=0.5), build(cell, context=16, window=16, dropout=0.5)]
    with torch.no_grad():
        models[1].norm.weight.mul_(2)
    parameters, buffers = stack_module_state(models)

    def call(p, b):
        return functional_call(models[0], (p, b), (ids,))[0]

    close(vmap(call)(parameters, buffers), torch.stack([m(ids)[0] for m in models]))
    models[0].train()
    twice = {name: p[:1].expand(2, *p.shape[1:]) for name, p in parameters.items()}
    one, other = vmap(call, randomness="different")(twice, buffers)
    differ(one, other)


# --- Accelerate


@every_cell
def test_offloaded_weights(cell, tmp_path):
    """Weights that are elsewhere between calls: reading, generating, evaluating."""
    from accelerate import cpu_offload, disk_offload, init_empty_weights
    from accelerate.hooks import ModelHook, add_hook_to_module

    expected = build(cell)
    text = list(generate_ids(expected, ids[0, :3], 6))
    with torch.no_grad():
        for offload in (cpu_offload, lambda m, **o: disk_offload(m, tmp_path, **o)):
            model = build(cell)
            offload(model, execution_device=torch.device("cpu"))
            assert model.blocks[0].attention.query.weight.is_meta
            close(read(model), read(expected))
            assert list(generate_ids(model, ids[0, :3], 6)) == text
            assert evaluate(model, ids.flatten(), window=5) == evaluate(expected, ids.flatten(), window=5)

    class Double(ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    model = build(cell)
    for ours, block in zip(expected.blocks, model.blocks, strict=True):
        add_hook_to_module(block.attention.query, Double())
        with torch.no_grad():
            for parameter in ours.attention.query.parameters():
                parameter.mul_(2)
    close(read(model), read(expected))
    with init_empty_weights():
        planned = LanguageModel(SMALL.replace(**GRID[cell]))
    assert all(p.is_meta for p in planned.parameters())


# --- several processes


def test_two_processes_are_as_one(tmp_path):
    """DDP, FSDP2 on blocks and on single layers, and sharded matrices; see the worker for what is compared."""
    worker = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"PYTHONPATH": str(worker.parents[1])}
    command = [sys.executable, worker, tmp_path / "meet"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


# --- weights from and to PyTorch's own module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_conversion_there_and_back(bias, dtype):
    theirs = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True, dtype=dtype).train()
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = from_torch(theirs)
    back = to_torch(ours)
    assert back.batch_first
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert ours.training
    assert not from_torch(theirs.eval()).training
    assert ours.query.weight.data_ptr() != theirs.in_proj_weight.data_ptr()
    if dtype != torch.float64:
        return
    x, mask = exercises.random(2, 7, 16), ~causal_mask(7, 7)
    for module in (theirs, back):
        y, _ = module(x, x, x, attn_mask=mask, need_weights=False)
        close(ours(x), y)
        ours.zero_grad()
        module.zero_grad()
        ours(x).square().sum().backward()
        y.square().sum().backward()
        stacked = torch.cat([layer.weight.grad for layer in (ours.query, ours.key, ours.value)])
        close(stacked, module.in_proj_weight.grad)
        close(ours.output.weight.grad, module.out_proj.weight.grad)
        if bias:
            close(torch.cat([lay.bias.grad for lay in (ours.query, ours.key, ours.value)]), module.in_proj_bias.grad)
    past = exercises.random(2, 3, 16, seed=5)
    whole = torch.cat((past, x), dim=1)
    close(ours(x, past), back(x, whole, whole, attn_mask=~causal_mask(7, 10), need_weights=False)[0])


def test_conversion_keeps_frozen_weights_and_the_random_state():
    theirs = nn.MultiheadAttention(16, 4)
    theirs.in_proj_weight.requires_grad_(False)
    state = torch.get_rng_state()
    ours = from_torch(theirs)
    assert not ours.key.weight.requires_grad
    assert ours.key.bias.requires_grad
    assert not to_torch(ours).in_proj_weight.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def attached(module: nn.Module, act) -> nn.Module:
    act(module)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MultiheadAttention(16, 4, kdim=8), "keys of 8 channels"),
        (lambda: nn.MultiheadAttention(16, 4, vdim=8), "values of 8"),
        (lambda: nn.MultiheadAttention(16, 4, add_bias_kv=True), "make the module without them"),
        (lambda: nn.MultiheadAttention(16, 4, add_zero_attn=True), "make the module without them"),
        (lambda: nn.MultiheadAttention(16, 4, dropout=0.1), r"dropout 0.1 .* set module.dropout = 0, or call"),
        (lambda: attached(nn.MultiheadAttention(16, 4), hooked), "more than a plain nn.MultiheadAttention: merge or"),
        (lambda: attached(nn.MultiheadAttention(16, 4), lambda m: hooked(m.out_proj)), "more than a plain"),
        (
            lambda: attached(
                nn.MultiheadAttention(16, 4),
                lambda m: parametrize.register_parametrization(m, "in_proj_weight", Twice()),
            ),
            "more than a plain nn.MultiheadAttention",
        ),
    ],
)
def test_what_has_no_counterpart_here_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        from_torch(make())
    assert from_torch(nn.MultiheadAttention(16, 4, dropout=0.1).eval())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmha(16, 4), "the position, SinusoidalRelativePosition, has no counterpart"),
        (lambda: mdha(16, 4), "the convolution, HeadConvolution, has no counterpart"),
        (lambda: rcmha(16, 4), "convert a module without one"),
        (
            lambda: MultiHeadAttention(16, 4, query_key_bias=False),
            "here value, output: give the others a bias of zeros",
        ),
        (lambda: attached(mha(16, 4), lambda m: hooked(m.key)), "key, Linear, is more than a plain nn.Linear: merge"),
        (lambda: attached(mha(16, 4), hooked), "MultiHeadAttention is more than a plain"),
        (lambda: attached(mha(16, 4), lambda m: m.query.requires_grad_(False)), "freeze all or none"),
        (lambda: attached(mha(16, 4), lambda m: setattr(m, "value", LoRA(m.value.double()))), "value, LoRA, is more"),
    ],
)
def test_what_has_no_counterpart_there_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        to_torch(make())
