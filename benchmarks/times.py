"""What takes how long: two things in turn, in one run, and the ratio of their times with its spread."""

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from benchmarks import public_code
from experiments import registry
from rcmha_lite.accounting import saved_bytes
from rcmha_lite.attention import attention, fused_attention
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.generation import generate_batch_ids
from rcmha_lite.model import LanguageModel, Memory, squared_relu
from rcmha_lite.optimizers import build_optimizers
from rcmha_lite.positions import factorise, shift, sinusoids
from rcmha_lite.stepping import Stepper


def in_turn(first: Callable[[], Any], second: Callable[[], Any], rounds: int = 9) -> dict[str, Any]:
    """Median milliseconds of both, and the ratio second / first round by round: median, smallest, largest."""
    times: list[tuple[float, float]] = []
    timers = [Timer("f()", globals={"f": f}, num_threads=torch.get_num_threads()) for f in (first, second)]
    number = max(1, round(0.2 / timers[0].timeit(1).median))
    for _ in range(rounds):
        a, b = (timer.timeit(number).median for timer in timers)
        times.append((1000 * a, 1000 * b))
    ratios = [b / a for a, b in times]
    return {
        "milliseconds": [statistics.median(column) for column in zip(*times, strict=True)],
        "ratio": spread(ratios),
        "rounds": rounds,
    }


def spread(found: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def relative_pair(time: int, heads: int = 6, d_head: int = 32) -> tuple[list[Tensor], Callable, Callable]:
    """Inputs q, k, v, a, and relative attention of them: factorised and fused, and with the explicit shift."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, time, d_head, generator=generator).requires_grad_() for _ in range(4)]
    waves = sinusoids(torch.arange(time), d_head).float()

    def ours() -> Tensor:
        q, k, v, a = inputs
        q = torch.cat((q, factorise(a, waves)), dim=-1)
        k = torch.cat((k, waves.expand(1, heads, -1, -1)), dim=-1)
        return fused_attention(q, k, v, scale=d_head**-0.5)

    def explicit() -> Tensor:
        q, k, v, a = inputs
        return attention(q, k, v, shift(a @ waves.T), scale=d_head**-0.5)

    return inputs, ours, explicit


def relative_attention() -> dict[str, Any]:
    """Forward and backward of relative attention over T positions, explicit shift / ours: time and saved bytes."""
    found = {}
    for time in (256, 512, 1024, 2048, 4096):
        inputs, ours, explicit = relative_pair(time)
        cotangent = torch.randn(1, 6, time, 32)
        timed = in_turn(*(partial(forward_backward, f, inputs, cotangent) for f in (ours, explicit)), rounds=5)
        kept = [saved_bytes(f, but_not=inputs) for f in (ours, explicit)]
        found[str(time)] = timed | {"saved_bytes": kept, "saved_bytes_ratio": kept[1] / kept[0]}
        print(time, found[str(time)], flush=True)
    return found


def forward_backward(compute: Callable[[], Tensor], inputs: list[Tensor], cotangent: Tensor) -> None:
    torch.autograd.grad(compute(), inputs, cotangent)


def copy_weights(ours: LanguageModel, theirs: public_code.Model) -> None:
    """Give the transcription our weights. The position tables and u start at zero in both: there is nothing to copy."""
    with torch.no_grad():
        theirs.embedding.load_state_dict(ours.embedding.state_dict())
        theirs.norm.load_state_dict(ours.norm.state_dict())
        theirs.output.load_state_dict(ours.output.state_dict())
        for block, layer in zip(ours.blocks, theirs.layers, strict=True):
            layer.attention_norm.load_state_dict(block.attention_norm.state_dict())
            layer.feed_forward_norm.load_state_dict(block.feed_forward_norm.state_dict())
            layer.inner.load_state_dict(block.feed_forward.input.state_dict())
            layer.outer.load_state_dict(block.feed_forward.output.state_dict())
            for name in ("query", "key", "value", "output"):
                getattr(layer.attention, name).load_state_dict(getattr(block.attention, name).state_dict())
            for n, name in enumerate(("q_conv", "k_conv", "v_conv")):
                conv, kernels = getattr(layer.attention, name).conv, block.attention.convolution
                conv.weight.copy_(kernels.weight[n, 0][:, None])
                conv.bias.copy_(kernels.bias[n, 0])


def public_step(
    dtype: torch.dtype = torch.float32, *, fused: bool = False
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A training step of our `paper` preset, and one of the transcription from the same weights on the same text.

    The transcription has PyTorch's plain Adam, or, like ours, the ``fused`` one.
    """
    config = PRESETS["paper"]
    torch.manual_seed(0)
    ours = LanguageModel(config).to(dtype)
    theirs = public_code.Model(config).to(dtype)
    copy_weights(ours, theirs)
    text = torch.randint(config.vocabulary, (config.batch, 4096), generator=torch.Generator().manual_seed(1))
    optimizers = build_optimizers(ours, config)[0], torch.optim.Adam(theirs.parameters(), lr=1.0, fused=fused)
    state: dict[str, Any] = {"memory": None, "memories": [], "steps": [0, 0]}

    def advance(which: int, model: nn.Module) -> tuple[Tensor, Tensor]:
        n = state["steps"][which]
        state["steps"][which] += 1
        rate = config.d_model**-0.5 * min((n + 1) ** -0.5, (n + 1) * config.warmup**-1.5)
        for group in optimizers[which].param_groups:
            group["lr"] = rate
        at = n * config.context % (text.shape[1] - config.context - 1)
        return text[:, at : at + config.context], text[:, at + 1 : at + 1 + config.context]

    def finish(which: int, model: nn.Module, logits: Tensor, targets: Tensor) -> float:
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizers[which].step()
        optimizers[which].zero_grad()
        return loss.item()

    def our_step() -> float:
        x, y = advance(0, ours)
        memory: Memory | None = state["memory"]
        logits, state["memory"] = ours(x, memory)
        return finish(0, ours, logits, y)

    def their_step() -> float:
        x, y = advance(1, theirs)
        logits, state["memories"] = theirs(x.T, state["memories"])
        return finish(1, theirs, logits.transpose(0, 1), y)

    return our_step, their_step


def paper_step() -> dict[str, Any]:
    """A training step at the `paper` preset, the transcription of the public code / ours; and with fused Adam in both."""
    ours, theirs = public_step(torch.float64)
    losses = [(ours(), theirs()) for _ in range(100)]
    difference = max(abs(a - b) for a, b in losses)
    found: dict[str, Any] = {}
    for fused in (False, True):
        ours, theirs = public_step(fused=fused)
        for _ in range(20):  # until the memory is full
            ours(), theirs()
        found["fused Adam in both" if fused else "plain Adam in the transcription"] = in_turn(ours, theirs)
    return found | {"largest_loss_difference_over_100_steps_in_float64": difference}


def generation() -> dict[str, Any]:
    """One more character after N, recomputed from the whole text / from the cache."""
    model = LanguageModel(PRESETS["laptop"]).eval()
    found = {}
    with torch.no_grad():
        for length in (256, 512, 1024, 2048):
            ids = torch.zeros(1, length, dtype=torch.long)
            cache = model.new_cache(length)
            model(ids, cache=cache)
            found[str(length)] = in_turn(partial(model, ids[:, :1], cache=cache), partial(model, ids), rounds=7)
            print(length, found[str(length)], flush=True)
        caches = [model.new_cache(length) for length in (256, 2048)]
        for cache, length in zip(caches, (256, 2048), strict=True):
            model(torch.zeros(1, length, dtype=torch.long), cache=cache)
        one = torch.zeros(1, 1, dtype=torch.long)
        steps = (partial(model, one, cache=cache) for cache in caches)
        found["a cached character at 2048 / at 256"] = in_turn(*steps, rounds=15)
    return found


def characters() -> dict[str, Any]:
    """A sampled character of the laptop preset: beside its matrix products alone; of 32 streams beside one; far in a text."""
    model, generator = LanguageModel(PRESETS["laptop"]).eval(), torch.Generator().manual_seed(0)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n and "position" not in n]
    columns = [torch.randn(1, matrix.shape[1]) for matrix in matrices]

    @torch.no_grad()
    def products() -> None:
        for column, matrix in zip(columns, matrices, strict=True):
            F.linear(column, matrix)

    def sampled(streams: int) -> Callable[[], Any]:
        ids = torch.randint(model.config.vocabulary, (32, 100), generator=generator)[:streams]
        return partial(next, generate_batch_ids(model, list(ids), 10**9))

    def after(seen: int) -> Callable[[], Any]:
        cache, stepper = model.new_cache(256), Stepper(model)
        with torch.no_grad():
            for piece in torch.zeros(1, seen, dtype=torch.long).split(256, dim=1):
                model(piece, cache=cache)
        return partial(stepper, torch.zeros(1, dtype=torch.long), cache)

    return {
        "one stream / its products alone": in_turn(products, sampled(1), rounds=15),
        "a step of 32 streams / of one": in_turn(sampled(1), sampled(32), rounds=15),
        "after 4096, of which 256 are kept / after 256": in_turn(after(256), after(4096), rounds=15),
    }


def training_step(config: Config, *, half: bool = True, compiled: bool = False) -> Callable[[], None]:
    torch.manual_seed(0)
    model = LanguageModel(config)
    optimizers = build_optimizers(model, config)
    forward = torch.compile(model) if compiled else model
    ids = torch.randint(config.vocabulary, (config.batch, config.context + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, _ = forward(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step()  # compiles, where it is compiled
    return step


def parameters(config: Config) -> int:
    return sum(p.numel() for p in LanguageModel(config).parameters())


def cells() -> dict[str, Any]:
    """A training step over 16 × 256 characters: cells / MHA at equal widths and at equal parameters; precision; compiler."""
    base = PRESETS["laptop"].replace(context=256, batch=16)
    width_of_one = base.layers * (2 * base.d_model + 1)  # parameters that one more channel of d_ff brings
    narrow = {cell: base.replace(**changes) for cell, changes in CELLS.items()}
    missing = {cell: parameters(base) - parameters(config) for cell, config in narrow.items()}
    equal = {c: narrow[c].replace(d_ff=base.d_ff + round(missing[c] / width_of_one)) for c in narrow}
    found: dict[str, Any] = {}
    for kind, configs in (("equal widths", narrow), ("equal parameters", equal)):
        for cell in ("mdha", "rmha", "rcmha"):
            pair = (training_step(configs[name]) for name in ("mha", cell))
            counts = [parameters(configs[name]) for name in ("mha", cell)]
            found[f"{cell} / mha, {kind}"] = in_turn(*pair, rounds=7) | {"parameters": counts}
    half = training_step(base)
    found["rcmha, float32 / bfloat16"] = in_turn(half, training_step(base, half=False), rounds=7)
    found["rcmha, eager / compiled, bfloat16"] = in_turn(training_step(base, compiled=True), half, rounds=7)
    for result in found.values():
        characters = base.batch * base.context
        result["characters_per_second"] = [1000 * characters / ms for ms in result["milliseconds"]]
    return found


def ablation() -> dict[str, Any]:
    """A training step of each of the ablation's eight cells, in rotation on one thread; what each part adds to it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    configs = {run.name.removesuffix("-0"): run.config for run in registry.ablation() if run.config.seed == 0}
    timers = {
        name: Timer("f()", globals={"f": training_step(config)}, num_threads=1) for name, config in configs.items()
    }
    rounds = [{name: timer.timeit(1).median for name, timer in timers.items()} for _ in range(31)]
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"config": dataclasses.asdict(registry.BASE), "threads": 1, "cells": {}}
    for name in configs:
        ratios = [one_round[name] / one_round["mha-relu"] for one_round in rounds]
        found["cells"][name] = {
            "milliseconds": 1000 * statistics.median(one_round[name] for one_round in rounds),
            "ratio": spread(ratios),
            "rounds": len(rounds),
        }
    medians = torch.tensor([found["cells"][name]["ratio"]["median"] for name in configs], dtype=torch.float64)
    parts = [
        [1.0, c.position == "relative-sinusoidal", c.kernel_size > 0, c.activation == "relu2"] for c in configs.values()
    ]
    fit = torch.linalg.lstsq(torch.tensor(parts, dtype=torch.float64), medians[:, None]).solution.flatten().tolist()
    found["adds"] = dict(zip(("nothing", "relative positions", "convolution", "squared ReLU"), fit, strict=True))
    return found


def regimes() -> dict[str, Any]:
    """A training step of RCMHA / RMHA and of RCMHA / RCMHA with ReLU, on one thread, where the group ``regimes`` trains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    configs = {run.name: run.config for run in registry.regimes() if run.config.seed == 16}
    found: dict[str, Any] = {}
    for regime in ("layers-1", "layers-2", "steps-125", "adamw"):  # a step is the same in 125 and in 1000
        for other in ("rmha", "relu"):
            pair = (training_step(configs[f"{regime}-{cell}-16"]) for cell in (other, "rcmha"))
            found[f"{regime}, rcmha / {other}"] = in_turn(*pair, rounds=31)
    torch.set_num_threads(threads)
    return found


def parts() -> dict[str, Any]:
    """Forward and backward of each part of a block of the `laptop` preset in float32, in turn with this machine's rates."""
    config = PRESETS["laptop"]
    batch, time, d = config.batch, config.context, config.d_model
    torch.manual_seed(0)
    block = LanguageModel(config).blocks[0]
    x, wide = torch.randn(batch, time, d), torch.randn(batch, time, 3 * d)
    inner = torch.randn(batch, time, config.d_ff)
    width = config.d_model // config.n_heads + config.d_position
    q, k, v = (torch.randn(batch, config.n_heads, time, n) for n in (width, width, d // config.n_heads))
    work: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "the whole block": (block, (x,)),
        "norm": (block.attention_norm, (x,)),
        "project q, k, v": (nn.Linear(d, 3 * d), (x,)),
        "convolve": (block.attention.convolution, (wide,)),
        "attend": (partial(fused_attention, scale=1.0), (q, k, v)),
        "project the output": (block.attention.output, (x,)),
        "feed forward, in": (block.feed_forward.input, (x,)),
        "squared ReLU": (squared_relu, (inner,)),
        "feed forward, out": (block.feed_forward.output, (inner,)),
    }
    steps = {name: differentiated(compute, inputs) for name, (compute, inputs) in work.items()}
    square, large, one = torch.randn(2048, 2048), torch.randn(2**26), torch.zeros(1)
    copy = torch.empty_like(large)
    steps["rate: 2048 × 2048 matrix product"] = lambda: square @ square
    steps["rate: copy of 256 MiB"] = lambda: copy.copy_(large)
    steps["rate: one number plus one"] = lambda: one + 1
    timers = {name: Timer("f()", globals={"f": f}, num_threads=torch.get_num_threads()) for name, f in steps.items()}
    rounds: list[dict[str, float]] = []
    for _ in range(9):
        rounds.append({name: 1000 * timer.blocked_autorange(min_run_time=0.1).median for name, timer in timers.items()})
    milliseconds = {name: [one_round[name] for one_round in rounds] for name in steps}
    return {name: spread(ms) for name, ms in milliseconds.items()}


def differentiated(compute: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward and backward of ``compute``, to its inputs and to its parameters."""
    inputs = tuple(x.requires_grad_() for x in inputs)
    weights = [p for p in compute.parameters() if p.requires_grad] if isinstance(compute, nn.Module) else []
    cotangent = torch.randn_like(compute(*inputs))
    return lambda: torch.autograd.grad(compute(*inputs), [*inputs, *weights], cotangent)
