"""What must hold on a GPU, for `make gpu`; where there is none, what of it a CPU can be held to.

Every kernel against float64 on the CPU, the fused ones really taken, memory linear in the length, no wait in the loop,
and bit for bit what is promised so: weights at the start, batches, and what a checkpoint holds.
"""

import copy
import os
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcmha_lite import checkpoint
from rcmha_lite.accounting import peak_cuda_bytes, saved_bytes
from rcmha_lite.attention import attention, fused_attention, rcmha
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.convolution import filled
from rcmha_lite.generation import generate
from rcmha_lite.model import LanguageModel
from rcmha_lite.precision import precision_for
from rcmha_lite.training import Interrupted, Trainer, train
from tests.test_training import FAST, TEXT

GPU = torch.cuda.is_available() and not os.environ.get("RCMHA_DRY")
DEVICE = torch.device("cuda" if GPU else "cpu")
HALF = torch.bfloat16 if precision_for("auto", DEVICE) != "fp16" else torch.float16
needs_gpu = pytest.mark.skipif(not GPU, reason="there is no GPU")

HERE = FAST.replace(device="auto" if GPU else "cpu")
MODELS = (
    {cell: FAST.replace(**changes, context=64, window=64, dropout=0.0) for cell, changes in CELLS.items()}
    | {
        name: FAST.replace(position=name, context=64, window=64, dropout=0.0)
        for name in ("relative-learned", "rope", "alibi", "absolute-learned")
    }
    | {
        "memory": FAST.replace(context=32, window=32, memory=24, dropout=0.0),
        "odd": FAST.replace(d_model=18, dropout=0.0),
    }
)


@pytest.fixture(autouse=True)
def _full_float32():
    """TF32, where a program has asked for it, is not float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def logits_and_gradients(model: LanguageModel, ids: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of two segments, the second with the memory of the first if the model has one."""
    found, memory = [], None
    for x in ids.chunk(2, dim=1):
        with torch.autocast(ids.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            logits, memory = model(x, memory)
        found.append(logits.double())
    F.cross_entropy(torch.cat(found, 1).flatten(0, 1)[:-1], ids.flatten()[1:]).backward()
    return [logits.detach().cpu() for logits in found] + [
        torch.zeros(1).double() if p.grad is None else p.grad.double().cpu() for p in model.parameters()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_itself_in_float64_on_the_cpu(name, dtype):
    config = MODELS[name].replace(zero_output=False)
    model = LanguageModel(config)
    ids = torch.randint(65, (4, 2 * config.context))
    exact = logits_and_gradients(copy.deepcopy(model).double(), ids, torch.float64)
    found = logits_and_gradients(model.to(DEVICE), ids.to(DEVICE), dtype)
    largest = 2e-5 if dtype == torch.float32 else 0.06
    for a, b in zip(exact, found, strict=True):
        assert (a - b).norm() <= largest * max(a.norm(), 1e-2), (name, a.shape)


CASES = {
    "square": (65, 65, 32, 32, False),
    "padded values": (64, 64, 48, 32, False),
    "odd width": (40, 40, 20, 12, False),
    "after a memory": (33, 70, 24, 16, False),
    "bias": (50, 50, 16, 16, True),
    "bias after a memory": (33, 70, 16, 16, True),
    "long": (1024, 1024, 64, 32, False),
    "a generated character": (1, 130, 64, 32, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_its_formula_in_float64_on_the_cpu(name, dtype):
    queries, keys, width, d_head, biased = CASES[name]
    shapes = [(queries, width), (keys, width), (keys, d_head), *([(queries, keys)] if biased else [])]
    inputs = [torch.randn(2, 3, *shape).to(dtype) for shape in shapes]
    results = []
    for compute, device, kind in ((attention, "cpu", torch.float64), (fused_attention, DEVICE, dtype)):
        given = [x.detach().to(device, kind).requires_grad_() for x in inputs]
        y = compute(*given)
        gradients = torch.autograd.grad(y.square().sum(), given)
        results.append([x.double().cpu() for x in (y.detach(), *gradients)])
    largest = 1e-5 if dtype == torch.float32 else 0.02
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= largest * a.norm(), name


@needs_gpu
@pytest.mark.parametrize("name", [name for name in CASES if name != "a generated character"])
def test_a_fused_kernel_is_taken(name):
    """PyTorch refuses, where only the formula would be left."""
    queries, keys, width, d_head, biased = CASES[name]
    q, k, v = (
        torch.randn(2, 3, n, w, device=DEVICE, dtype=HALF, requires_grad=True)
        for n, w in ((queries, width), (keys, width), (keys, d_head))
    )
    bias = torch.randn(2, 3, queries, keys, device=DEVICE, dtype=HALF) if biased else None
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        fused_attention(q, k, v, bias).sum().backward()


def test_memory_is_linear_in_the_length():
    module = rcmha(128, 4).to(DEVICE)
    sizes = []
    for time in (512, 1024, 2048, 4096):
        x = torch.randn(1, time, 128, device=DEVICE)

        def forward(x=x):
            return module(x).square().sum()

        if GPU:
            held = torch.cuda.memory_allocated()
            sizes.append(peak_cuda_bytes(lambda forward=forward: forward().backward()) - held)
        else:
            sizes.append(saved_bytes(forward, but_not=[x, *module.parameters()]))
    ratios = [b / a for a, b in pairwise(sizes)]
    assert all(1.5 < ratio < 2.3 for ratio in ratios), sizes


@needs_gpu
def test_the_loop_does_not_wait(tmp_path):
    trainer = Trainer(HERE.replace(precision="bfloat16"), tmp_path, TEXT)
    trainer.advance(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 5):
            trainer.advance(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.look()


def test_weights_and_batches_at_the_start_are_those_of_a_cpu(tmp_path):
    here, cpu = (Trainer(FAST.replace(device=device), tmp_path, TEXT) for device in (HERE.device, "cpu"))
    for (name, a), b in zip(here.model.state_dict().items(), cpu.model.state_dict().values(), strict=True):
        assert torch.equal(a.cpu(), b), name
    for a, b in zip(here.batch(3), cpu.batch(3), strict=True):
        assert a.device.type == DEVICE.type
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("memory", [0, 8])
def test_a_checkpoint_holds_the_run_bit_for_bit(tmp_path, precision, memory):
    config, kept = HERE.replace(precision=precision, memory=memory, checkpoint_every=7, eval_every=0), []

    def stop(trainer):
        kept.append(trainer)
        trainer.stop.requested = True

    with pytest.raises(Interrupted):
        train(config, tmp_path, text=TEXT, progress=False, watch=stop)
    old, new = kept[0], Trainer(config, tmp_path, TEXT)
    assert new.done == old.done == 8
    for a, b in zip(old.model.state_dict().values(), new.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(old.optimizers, new.optimizers, strict=True):
        mine, theirs = ([o.state[p] for group in o.param_groups for p in group["params"]] for o in (a, b))
        for x, y in zip(mine, theirs, strict=True):
            assert all(torch.equal(torch.as_tensor(x[key]).cpu(), torch.as_tensor(y[key]).cpu()) for key in x)
    assert old.scaler.state() == new.scaler.state()
    assert torch.equal(old.since, new.since)
    if memory:
        assert all(torch.equal(a, b) for a, b in zip(old.memory.hidden, new.memory.hidden, strict=True))


@pytest.mark.parametrize("name", ["rcmha", "mha", "relative-learned"])
def test_the_favourite_characters_are_those_of_a_cpu(name):
    """Character by character from the cache."""
    model = LanguageModel(MODELS[name].replace(zero_output=False)).eval()
    texts = ["".join(generate(m, "ROMEO:", 40, temperature=0)) for m in (model, copy.deepcopy(model).to(DEVICE))]
    assert texts[0] == texts[1]


@pytest.mark.skipif(not GPU, reason="compilers for CPUs are tried in test_waiting")
@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_the_full_size_trains_compiled(tmp_path, precision):
    config: Config = PRESETS["gpu"].replace(layers=2, steps=6, eval_every=3, precision=precision, warmup=2)
    found = train(config, tmp_path, text=TEXT * 20, progress=False)
    assert found["curve"][-1]["val_loss"] < found["curve"][0]["val_loss"] + 0.5
    assert found["manifest"]["compile"]
    assert checkpoint.load_model(tmp_path).config == config


def test_a_run_of_another_device_goes_on_here(tmp_path):
    partial(train, text=TEXT, progress=False)(FAST.replace(steps=3), tmp_path / "done")
    with pytest.raises(Interrupted):
        train(
            FAST, tmp_path / "run", text=TEXT, progress=False, watch=lambda t: setattr(t.stop, "requested", True)
        )  # fmt: skip
    found = train(HERE, tmp_path / "run", text=TEXT, progress=False)
    assert found["curve"][-1]["step"] == 12


@pytest.mark.parametrize(
    "changes", [{}, {"layer_init": "public-code", "kernel_init": "pytorch"}, {"tie_embeddings": True}]
)
def test_a_model_made_on_the_device_has_the_weights_of_one_made_on_a_cpu(changes):
    """But for the embedding, which PyTorch draws where it is."""
    config = FAST.replace(**changes)
    models = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(LanguageModel(config))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert b.device.type == DEVICE.type
        if name != "embedding.weight" and "projection" not in name:
            assert torch.equal(a, b.cpu()), name


def test_numbers_are_drawn_where_the_generator_is():
    """What a CPU can show of it: a tensor that says it is elsewhere gets the same numbers by a copy."""

    class Elsewhere(torch.Tensor):
        device = property(lambda self: torch.device("cuda"))

    drawn = []
    for kind in (torch.Tensor, Elsewhere):
        generator = torch.Generator().manual_seed(3)
        x, places = torch.zeros(4, 5), []

        def draw(y, generator=generator, places=places):
            places.append(type(y))
            return y.normal_(generator=generator)

        filled(x.as_subclass(kind), draw, generator)
        assert places == [torch.Tensor]
        drawn.append(x)
    assert torch.equal(*drawn)
