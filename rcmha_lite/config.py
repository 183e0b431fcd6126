"""Every choice of a run in one validated dataclass, and the presets built from it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

Position = Literal[
    "none", "absolute-sinusoidal", "absolute-learned", "relative-sinusoidal", "relative-learned", "rope", "alibi"
]
Activation = Literal["relu", "relu2", "gelu"]
Projections = Literal["q", "k", "v", "qk", "qv", "kv", "qkv"]
KernelInit = Literal["identity", "primer", "pytorch"]
LayerInit = Literal["scaled", "public-code"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choice(
    default: Any, help: str, at_least: float | None = None, below: float | None = None, *, later: bool = False
) -> Any:
    """A dataclass field with the help its command-line flag shows and the range it must lie in.

    A field that came ``later`` than the first runs has what they did as its default, and may be missing in their files.
    """
    return field(default=default, metadata={"help": help, "at_least": at_least, "below": below, "later": later})


def key_value_heads(n_heads: int, n_kv_heads: int | None) -> int:
    """Heads of keys and values: ``n_kv_heads``, or as many as of queries for 0 or None. ValueError unless they divide."""
    if not n_kv_heads:
        return n_heads
    if n_kv_heads < 0 or n_heads % n_kv_heads:
        raise ValueError(
            f"n_heads {n_heads} is not divisible by n_kv_heads {n_kv_heads}: each head of keys and values serves as many "
            "heads of queries, so give a divisor of n_heads, or 0 for as many"
        )
    return n_kv_heads


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model and its training, RCMHA by default. ValueError where a field is out of range or two disagree."""

    position: Position = choice("relative-sinusoidal", "how the model knows where a token is")
    kernel_size: int = choice(3, "taps of the convolution on the projections; 0 leaves it out", 0)
    convolve: Projections = choice("qkv", "projections to convolve: some of q, k and v")
    shared_kernels: bool = choice(True, "one kernel per head channel for all heads, or separate kernels")
    kernel_bias: bool = choice(True, "a bias in the convolution")
    kernel_init: KernelInit = choice(
        "pytorch", "what the kernels start as; random values as PyTorch draws them do best"
    )
    fresh_queries: bool = choice(False, "restart the query convolution at each segment, as RCMHA's public code does")
    query_key_bias: bool = choice(True, "biases on the query and key projections; RCMHA's public code has none")
    layer_init: LayerInit = choice(
        "scaled",
        "scaled: weights of standard deviation 1/sqrt(inputs), no biases; public-code: PyTorch's, blocks alike",
        later=True,
    )
    activation: Activation = choice("relu2", "of the feed-forward layer; relu2 is squared ReLU")
    vocabulary: int = choice(65, "distinct characters", 1)
    layers: int = choice(4, "blocks", 1)
    d_model: int = choice(192, "channels of the residual stream", 1)
    n_heads: int = choice(6, "attention heads", 1)
    n_kv_heads: int = choice(
        0, "heads of keys and values, each for n_heads / n_kv_heads heads of queries; 0: as many", 0, later=True
    )
    d_ff: int = choice(768, "channels inside the feed-forward layer", 1)
    d_position: int = choice(32, "channels of the relative sinusoids", 2)
    context: int = choice(128, "characters in a training window or segment", 1)
    memory: int = choice(0, "hidden states kept from earlier segments; 0 trains on random windows", 0)
    tie_embeddings: bool = choice(False, "use the embedding as the output layer's weight")
    zero_output: bool = choice(True, "start each block as the identity: zero output projections")
    dropout: float = choice(
        0.0, "share of elements dropped on the embedding and after each sublayer, in 256ths on a CPU", 0, 1
    )

    steps: int = choice(1000, "optimiser steps", 1)
    batch: int = choice(32, "windows in a step, over all processes and accumulation", 1)
    accumulate: int = choice(1, "parts that a batch is cut into to save memory", 1)
    optimizer: Literal["muon", "adamw", "adam"] = choice("muon", "muon: for the blocks' matrices, AdamW for the rest")
    learning_rate: float = choice(3e-3, "of AdamW or Adam; with noam, the factor", 0)
    muon_rate: float = choice(0.02, "learning rate of Muon", 0)
    kernel_rate: float = choice(
        1.0, "learning rate of the convolution's kernels, in multiples of learning_rate", 0, later=True
    )
    weight_decay: float = choice(0.1, "of matrices; vectors and tables have none", 0)
    beta2: float = choice(0.95, "decay of Adam's second moment", 0, 1)
    schedule: Literal["linear", "noam"] = choice("linear", "linear: warm up, hold, fall to zero; noam: 1/sqrt(step)")
    warmup: int = choice(20, "steps of linear warm-up", 0)
    decay: float = choice(0.7, "last share of the steps, over which the linear schedule falls", 0)
    clip: float = choice(1.0, "largest gradient norm; 0 does not clip", 0)
    precision: Precision = choice(
        "auto",
        "auto: bfloat16 where hardware has it, else float16 where a GPU has that (the loss is scaled), else float32",
    )
    compile: bool = choice(False, "torch.compile the model, where there is a compiler for the device")
    device: Literal["auto", "cpu"] = choice("auto", "auto: a GPU where there is one")
    seed: int = choice(0, "of initial weights, windows and dropout", 0, 2**40)
    window: int = choice(256, "characters in an evaluation window", 1)
    eval_every: int = choice(250, "steps between validations; 0 validates at the end alone", 0)
    checkpoint_every: int = choice(250, "steps between checkpoints", 1)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), hints[f.name]
            low, high = f.metadata["at_least"], f.metadata["below"]
            options = get_args(kind)
            if options and value not in options:
                raise ValueError(f"{f.name} {value!r} is not one of {', '.join(map(str, options))}")
            fits = (bool,) if kind is bool else (int, float) if kind is float else (kind,)
            if not options and (not isinstance(value, fits) or isinstance(value, bool) != (kind is bool)):
                raise ValueError(f"{f.name} {value!r} is not of type {kind.__name__}")
            if low is not None and not value >= low:
                raise ValueError(f"{f.name} {value} is too small: give {low} or more")
            if high is not None and not value < high:
                raise ValueError(f"{f.name} {value} is too large: give less than {high}")
        if self.decay > 1:
            raise ValueError(f"decay {self.decay} is a share of the steps: give 1 or less")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}: give a multiple of them"
            )
        key_value_heads(self.n_heads, self.n_kv_heads)  # raises where it would
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not divisible by accumulate {self.accumulate}: give a multiple")
        if self.position == "absolute-learned" and self.memory:
            raise ValueError("absolute-learned positions end with the table: with memory, use another position")
        bounded = self.position.startswith("absolute") or self.position == "relative-learned"
        if bounded and not self.memory and self.window > self.context:
            raise ValueError(
                f"{self.position} positions are untrained beyond context {self.context}: "
                f"give window {self.context} or less, or a longer context"
            )
        for name, kind in (("d_model", "absolute-sinusoidal"), ("d_position", "relative-sinusoidal")):
            if self.position == kind and getattr(self, name) % 2:
                raise ValueError(f"{name} {getattr(self, name)} is odd: {kind} positions need an even number")
        if self.position == "rope" and (width := self.d_model // self.n_heads) % 2:
            heads = f"d_model {self.d_model} over n_heads {self.n_heads} is {width}, odd"
            raise ValueError(f"{heads}: rope turns pairs of channels, so give an even number for each head")
        if self.schedule == "noam" and self.optimizer == "muon":
            raise ValueError("schedule noam is made for Adam's rate: give optimizer adam or adamw, or schedule linear")
        if self.memory and self.accumulate > 1:
            raise ValueError("memory follows whole batches: with memory, accumulate must be 1")

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Every field, as ``from_json`` reads them."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str | Path = "the configuration") -> "Config":
        """Read what ``to_json`` wrote; ValueError names the fields that are unknown or missing."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise TypeError(f"it holds a {type(fields).__name__}")
            known = {f.name for f in dataclasses.fields(cls)}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source} does not hold a configuration in JSON: {error}") from error
        if unknown := set(fields) - known:
            raise ValueError(f"{source} has fields this version does not know: {', '.join(sorted(unknown))}")
        later = {f.name for f in dataclasses.fields(cls) if f.metadata["later"]}
        if missing := known - later - set(fields):  # a default could be another model than the one that was trained
            raise ValueError(f"{source} lacks {', '.join(sorted(missing))}: add what the run had")
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


RELATIVE = ("relative-sinusoidal", "relative-learned", "rope", "alibi")
"""Positions that enter by their difference alone: what makes MHA into RMHA."""

CELLS: dict[str, dict[str, Any]] = {
    "mha": {"position": "absolute-sinusoidal", "kernel_size": 0},
    "mdha": {"position": "absolute-sinusoidal", "kernel_size": 3},
    "rmha": {"position": "relative-sinusoidal", "kernel_size": 0},
    "rcmha": {"position": "relative-sinusoidal", "kernel_size": 3},
}
"""The grid, position × convolution: what each name changes in a configuration. The kernels of ``mdha`` stay those of
the preset (shared, from random values), so that cells differ in nothing else; ``attention.mdha`` has Primer's."""

PRESETS: dict[str, Config] = {
    "tiny": Config(
        layers=2, d_model=64, n_heads=4, d_ff=256, d_position=16, context=64, window=64, batch=16,
        steps=200, eval_every=0, checkpoint_every=50, precision="float32",
    ),
    "laptop": Config(dropout=0.1, steps=1900, eval_every=190),
    "paper": Config(
        position="relative-learned", activation="relu", fresh_queries=True, query_key_bias=False,
        layer_init="public-code",
        layers=6, d_model=128, n_heads=8, d_ff=256, context=2, memory=32, batch=32, steps=156_850,
        optimizer="adam", learning_rate=1.0, beta2=0.999, weight_decay=0.0, schedule="noam", warmup=2000,
        zero_output=False, precision="float32", eval_every=15_685, checkpoint_every=1000,
    ),
    "gpu": Config(
        layers=6, d_model=384, n_heads=6, d_ff=1536, d_position=64, context=256, batch=64, dropout=0.3,
        steps=2500, compile=True,
    ),
}  # fmt: skip
"""tiny: seconds, for tests · laptop: six to ten minutes of two CPU cores · paper: the public code's settings · gpu."""
