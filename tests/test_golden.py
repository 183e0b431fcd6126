"""Arrays recorded from public implementations, matched in float64. The keys of a file say what to build."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.config import Config
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.model import LanguageModel
from rcmha_lite.positions import LearnedRelativePosition

ATTENTION = {
    "content_bias": "position.content_bias",
    "rel_embedding": "position.embedding",
    "rel_bias": "position.table_bias",
}
ATTENTION |= {f"{kind}_{p[0]}": f"{p}.{long}" for kind, long in (("w", "weight"), ("b", "bias"))
              for p in ("query", "key", "value", "output")}  # fmt: skip
BLOCK = {"attn_norm": "attention_norm", "ff_norm": "feed_forward_norm", "ff_in": "feed_forward.input",
         "ff_out": "feed_forward.output"}  # fmt: skip
MODEL = {"embedding": "embedding.weight", "head_weight": "output.weight", "head_bias": "output.bias",
         "final_norm_weight": "norm.weight", "final_norm_bias": "norm.bias"}  # fmt: skip


def load(file: Path) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        found = {key: torch.as_tensor(arrays[key]) for key in arrays}
    return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}


def build_attention(golden: dict[str, Tensor]) -> MultiHeadAttention:
    """The module that the keys describe; a part that was not recorded is zero."""
    d_model, n_heads = golden["w_q"].shape[1], int(golden["n_heads"])
    d_head = d_model // n_heads
    convolved = "".join(p for p in "qkv" if f"conv_{p}_weight" in golden)
    convolution = position = None
    if convolved:
        kernel = golden[f"conv_{convolved[0]}_weight"]
        convolution = HeadConvolution(
            n_heads, d_head, kernel.shape[-1], shared=kernel[..., 0].numel() == d_head,
            bias=any(f"conv_{p}_bias" in golden for p in convolved), projections=convolved,
        )  # fmt: skip
    if "rel_embedding" in golden:
        position = LearnedRelativePosition(n_heads, d_head, len(golden["rel_embedding"]))
    module = MultiHeadAttention(d_model, n_heads, position=position, convolution=convolution, fresh_queries=True)
    module.double()
    state = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    state |= {ours: golden[theirs] for theirs, ours in ATTENTION.items() if theirs in golden}
    for n, p in enumerate(convolved):
        for kind in ("weight", "bias"):
            if f"conv_{p}_{kind}" in golden:
                whole = state[f"convolution.{kind}"]
                whole[n] = golden[f"conv_{p}_{kind}"].reshape(whole[n].shape)
    module.load_state_dict(state)
    return module


def build_model(golden: dict[str, Tensor]) -> LanguageModel:
    layers = [
        {key.removeprefix(f"layer{n}."): v for key, v in golden.items() if key.startswith(f"layer{n}.")}
        for n in range(sum(key.endswith(".w_q") for key in golden))
    ]
    vocabulary, d_model = golden["embedding"].shape
    model = LanguageModel(
        Config(
            position="none",
            kernel_size=0,
            activation="relu",
            vocabulary=vocabulary,
            layers=len(layers),
            d_model=d_model,
            n_heads=int(golden["n_heads"]),
            d_ff=len(layers[0]["ff_in_weight"]),
            context=int(golden["segment_length"]),
            memory=int(golden["memory_length"]),
            tie_embeddings="head_weight" not in golden,
        )
    ).double()
    for block, layer in zip(model.blocks, layers, strict=True):
        block.attention = build_attention({"n_heads": golden["n_heads"]} | layer)
    state = {n: v if ".attention." in n else torch.zeros_like(v) for n, v in model.state_dict().items()}
    state |= {ours: golden[theirs] for theirs, ours in MODEL.items() if theirs in golden}
    for n, layer in enumerate(layers):
        for theirs, ours in BLOCK.items():
            for kind in ("weight", "bias"):
                if f"{theirs}_{kind}" in layer:
                    state[f"blocks.{n}.{ours}.{kind}"] = layer[f"{theirs}_{kind}"]
    model.load_state_dict(state)
    return model


def assert_close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=1e-10)


def check_attention(golden: dict[str, Tensor]) -> None:
    module = build_attention(golden)
    x = golden["x"].requires_grad_()
    memory = golden["memory"] if "memory" in golden and golden["memory"].shape[1] else None
    y = module(x, memory)
    assert_close(y, golden["y"])
    (y * golden["cotangent"]).sum().backward()
    assert_close(x.grad, golden["grad_x"])


def check_model(golden: dict[str, Tensor]) -> None:
    model, ids, length = build_model(golden), golden["ids"].long(), int(golden["segment_length"])
    memory, logits, loss = None, [], torch.tensor(0.0)
    for start in range(0, ids.shape[1] - 1, length):
        model.zero_grad()
        segment, memory = model(ids[:, start : start + length], memory)
        logits.append(segment)
        loss = F.cross_entropy(segment.flatten(0, 1), ids[:, start + 1 : start + 1 + length].flatten())
        loss.backward()
    assert_close(torch.stack(logits), golden["logits"])
    assert_close(loss, golden["last_loss"])
    assert_close(model.embedding.weight.grad, golden["last_grad_embedding"])


def test_recorded_arrays(golden_file: Path) -> None:
    golden = load(golden_file)
    (check_model if "logits" in golden else check_attention)(golden)


def test_folder_holds_arrays(request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--golden-dir")
    assert list(folder.glob("*.npz")), f"no recorded arrays in {folder}: the golden tests checked nothing"


def test_other_recordings_would_be_built_too() -> None:
    """Kernels for every head, kernels for every channel, longer tables, and parts left out."""
    folder = Path(__file__).parent / "golden"
    model, attention = load(folder / "model_rcmha.npz"), load(folder / "attention_rcmha_memory.npz")
    heads = int(attention["n_heads"])
    check_model({k: v.expand(2, *v.shape).clone() if ".conv_" in k else v for k, v in model.items()})
    check_model({k: F.pad(v, (0, 0) * (v.dim() - 1) + (0, 20)) if ".rel_" in k else v for k, v in model.items()})
    check_attention({k: torch.cat([v] * heads) if k.startswith("conv_") else v for k, v in attention.items()})
    for part in ("conv_q_bias", "conv_", "rel_bias", "content_bias", "head_", "head_bias", "ff_in_bias"):
        build_model({k: v for k, v in model.items() if part not in k})
    build_model(model | {"memory_length": torch.tensor(0)})
