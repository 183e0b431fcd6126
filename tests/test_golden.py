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
    "rel_bias": "position.bias",
}
ATTENTION |= {f"{kind}_{p[0]}": f"{p}.{long}" for kind, long in (("w", "weight"), ("b", "bias"))
              for p in ("query", "key", "value", "output")}  # fmt: skip
BLOCK = {"attn_norm": "attention_norm", "ff_norm": "feed_forward_norm", "ff_in": "feed_forward.input",
         "ff_out": "feed_forward.output"}  # fmt: skip
MODEL = {"embedding": "embedding.weight", "head_weight": "output.weight", "head_bias": "output.bias",
         "final_norm_weight": "norm.weight", "final_norm_bias": "norm.bias"}  # fmt: skip


def load(file: Path) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays}


def attention_state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recorded weights under our names; a projection without a recorded bias has none: zeros."""
    state = {ours: golden[theirs] for theirs, ours in ATTENTION.items() if theirs in golden}
    for p in ("query", "key", "value", "output"):
        state.setdefault(f"{p}.bias", torch.zeros(golden["w_q"].shape[0], dtype=torch.float64))
    for kind in ("weight", "bias"):
        parts = [golden[f"conv_{p}_{kind}"] for p in "qkv" if f"conv_{p}_{kind}" in golden]
        if parts:
            stacked = torch.stack(parts)
            per_head = stacked.dim() == (4 if kind == "weight" else 3)
            state[f"convolution.{kind}"] = stacked if per_head else stacked.unsqueeze(1)
    return state


def build_attention(golden: dict[str, Tensor]) -> MultiHeadAttention:
    d_model, n_heads = golden["w_q"].shape[0], int(golden["n_heads"])
    convolved = "".join(p for p in "qkv" if f"conv_{p}_weight" in golden)
    convolution = position = None
    if convolved:
        kernel = golden[f"conv_{convolved[0]}_weight"]
        convolution = HeadConvolution(
            n_heads, d_model // n_heads, kernel.shape[-1], shared=kernel.dim() == 2,
            bias=f"conv_{convolved[0]}_bias" in golden, projections=convolved,
        )  # fmt: skip
    if "rel_embedding" in golden:
        position = LearnedRelativePosition(n_heads, d_model // n_heads, len(golden["rel_embedding"]))
    module = MultiHeadAttention(
        d_model, n_heads, position=position, convolution=convolution, fresh_queries=True
    )
    module.double().load_state_dict(attention_state(golden))
    return module


def build_model(golden: dict[str, Tensor]) -> LanguageModel:
    layer = {key.removeprefix("layer0."): value for key, value in golden.items() if key.startswith("layer0.")}
    convolved = "".join(p for p in "qkv" if f"conv_{p}_weight" in layer)
    config = Config(
        position="relative-learned" if "rel_embedding" in layer else "none",
        kernel_size=layer[f"conv_{convolved[0]}_weight"].shape[-1] if convolved else 0,
        convolve=convolved or "qkv",
        fresh_queries=True,
        activation="relu",
        vocabulary=len(golden["embedding"]),
        layers=sum(key.endswith(".w_q") for key in golden),
        d_model=golden["embedding"].shape[1],
        n_heads=int(golden["n_heads"]),
        d_ff=len(layer["ff_in_bias"]),
        context=int(golden["segment_length"]),
        memory=int(golden["memory_length"]),
    )
    state = {ours: golden[theirs] for theirs, ours in MODEL.items()}
    for n in range(config.layers):
        layer = {
            key.removeprefix(f"layer{n}."): v for key, v in golden.items() if key.startswith(f"layer{n}.")
        }
        state |= {f"blocks.{n}.attention.{key}": value for key, value in attention_state(layer).items()}
        for theirs, ours in BLOCK.items():
            state |= {f"blocks.{n}.{ours}.{kind}": layer[f"{theirs}_{kind}"] for kind in ("weight", "bias")}
    model = LanguageModel(config).double()
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
