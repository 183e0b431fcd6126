"""A Transformer-XL language model (Dai et al. 2019, arXiv 1901.02860) around the grid of attentions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.config import Activation, Config
from rcmha_lite.convolution import HeadConvolution, filled
from rcmha_lite.plain import transforms_are_active
from rcmha_lite.positions import (
    AbsolutePosition,
    AlibiPosition,
    LearnedRelativePosition,
    Position,
    RotaryPosition,
    SinusoidalRelativePosition,
)
from rcmha_lite.streaming import AttentionCache, last, takes_cache


class _SquaredReLU(torch.autograd.Function):
    """Its derivative, 2·max(x, 0), needs no second look at the sign: fewer passes over the widest array of a block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x).square_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = F.relu(x) * gradient
        return 2 * slope if torch.is_grad_enabled() else slope.mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², the activation of Primer (So et al. 2021, arXiv 2109.08668)."""
    if transforms_are_active() or torch.compiler.is_compiling():
        return F.relu(x).square()
    if not torch.is_grad_enabled():
        return F.relu(x).square_()
    found: Tensor = _SquaredReLU.apply(x)
    return found


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu2": squared_relu, "gelu": F.gelu}


class Memory(NamedTuple):
    """Detached inputs of every layer at the last positions, and the number of positions seen so far."""

    hidden: tuple[Float[Tensor, "batch past d_model"], ...]
    seen: int


def random_words(n: int) -> Int[Tensor, " {n}"]:
    """64 random bits in each of ``n`` numbers, on the CPU, from PyTorch's generator."""
    return torch.empty(n, dtype=torch.int64).random_(-(2**63), None)


@torch.library.custom_op("rcmha_lite::random_words", mutates_args=())
def _random_words(like: Tensor, n: int) -> Tensor:
    """``random_words`` for the compiler, which would leave its graph for ``random_``: with the same bits."""
    return random_words(n)


@_random_words.register_fake
def _(like: Tensor, n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int64)


class Dropout(nn.Module):
    """Zero each element with probability ``p`` in training, and divide the rest by what is left of 1.

    On a CPU, PyTorch draws one random number an element, on one core, which is slow. Here each number
    decides eight elements, a byte each, so that ``p`` is rounded to 256ths, and the factor to the input's precision.
    ValueError unless 0 ≤ p < 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout {p} is not a share: give 0 or more, and less than 1")
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``x`` with elements dropped; ``x`` itself outside training."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu" or transforms_are_active():
            return F.dropout(x, self.p)
        dropped = min(max(round(self.p * 256), 1), 255)
        n = -(-x.numel() // 8)
        words = _random_words(x, n) if torch.compiler.is_compiling() else random_words(n)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * keep.to(x.dtype).mul_(256 / (256 - dropped))


class FeedForward(nn.Module):
    """W_out · activation(W_in · x + b_in) + b_out, at each position alone. ValueError for an unknown activation."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation = "relu2") -> None:
        super().__init__()
        self.input, self.output = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """The formula above, position by position."""
        return self.output(self.activation(self.input(x)))


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then x + feed_forward(norm x), each after dropout."""

    def __init__(self, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model))
        self.attention = build_attention(config, generator)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation)
        self.attention_dropout, self.feed_forward_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def forward(
        self,
        context: Float[Tensor, "batch time d_model"],
        queries: int | None = None,
        cache: AttentionCache | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """The last ``queries`` positions of ``context`` (all, unless given), answered; those before are memory.

        ``attention`` may be any module that is called with (x), or (x, memory) where there is a memory, and with a
        ``cache`` in a stream.
        """
        queries = context.shape[1] if queries is None else queries
        x, normed = last(context, queries), self.attention_norm(context)
        past, given = context.shape[1] - queries, {} if cache is None else {"cache": cache}
        memory, present = normed.split((past, queries), dim=1) if past else (None, normed)
        answer = self.attention(present, **given) if memory is None else self.attention(present, memory, **given)
        x = x + self.attention_dropout(answer)
        return x + self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)))


def build_attention(config: Config, generator: torch.Generator | None = None) -> MultiHeadAttention:
    """The cell of the grid that a configuration asks for; ``generator`` is for its kernels."""
    d_head = config.d_model // config.n_heads
    position: Position | None = None
    if config.position == "relative-learned":
        position = LearnedRelativePosition(config.n_heads, d_head, config.context + config.memory)
    elif config.position == "relative-sinusoidal":
        position = SinusoidalRelativePosition(config.n_heads, d_head, config.d_position)
    elif config.position == "rope":
        position = RotaryPosition(config.n_heads, d_head)
    elif config.position == "alibi":
        position = AlibiPosition(config.n_heads, d_head)
    convolution = None
    if config.kernel_size:
        convolution = HeadConvolution(
            config.n_heads, d_head, config.kernel_size, shared=config.shared_kernels, bias=config.kernel_bias,
            projections=config.convolve, init=config.kernel_init, generator=generator, n_kv_heads=config.n_kv_heads,
        )  # fmt: skip
    return MultiHeadAttention(
        config.d_model, config.n_heads, n_kv_heads=config.n_kv_heads, position=position, convolution=convolution,
        query_key_bias=config.query_key_bias, fresh_queries=config.fresh_queries,
    )  # fmt: skip


class LanguageModel(nn.Module):
    """Characters in, next-character logits out: embedding, blocks, norm, output layer.

    x_0 = embedding[ids] (+ absolute positions),   x_n = block_n(x_{n−1}),   logits = W · norm(x_N) + b
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        shared, kernels = torch.Generator(), torch.Generator()
        kernels.manual_seed(shared.manual_seed(int(torch.randint(2**62, (), device="cpu"))).initial_seed() + 1)
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        kind = config.position.removeprefix("absolute-")
        self.position: AbsolutePosition | None = None
        if kind in ("sinusoidal", "learned"):
            self.position = AbsolutePosition(config.d_model, learned=kind == "learned", length=config.context)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, kernels) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.output = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocabulary)
        self.apply(partial(self._initialise, generator=shared))
        for block in self.blocks[1:] if config.layer_init == "public-code" else ():
            block.load_state_dict(self.blocks[0].state_dict())

    def _initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Linear layers from a generator of their own, as kernels are: cells of one seed start from the same ones."""
        if isinstance(module, nn.Linear):
            scale = module.in_features**-0.5
            if self.config.layer_init == "public-code":  # PyTorch's own start
                for parameter in module.parameters():
                    filled(parameter, partial(nn.init.uniform_, a=-scale, b=scale, generator=generator), generator)
            else:
                filled(module.weight, partial(nn.init.normal_, std=scale, generator=generator), generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and self.config.tie_embeddings:
            std = self.config.d_model**-0.5
            filled(module.weight, partial(nn.init.normal_, std=std, generator=generator), generator)
        if isinstance(module, MultiHeadAttention | FeedForward) and self.config.zero_output:
            nn.init.zeros_(module.output.weight)

    def new_cache(self, limit: int | None = None) -> list[AttentionCache]:
        """An empty cache for each block, of at most ``limit`` keys (None: all). ValueError if an attention takes none."""
        if without := self.without_cache():
            raise ValueError(
                f"{without[0]} takes no cache: give its forward a cache=None that it uses, or read the text again "
                "for each character, as generate does"
            )
        return [AttentionCache(limit) for _ in self.blocks]

    def without_cache(self) -> list[str]:
        """The blocks' attentions, by name, that take no cache, so that a text cannot be read in pieces."""
        blocks = [(name, module) for name, module in self.named_modules() if isinstance(module, Block)]
        return [f"{name}.attention" for name, block in blocks if not takes_cache(block.attention)]

    def tied_weight(self, device: torch.device) -> Float[Tensor, "vocabulary d_model"]:
        """The embedding as the output layer's weight.

        An embedding that is more than a table (adapted, sharded, offloaded) is called with every id. Hooks act on the
        look-up alone, as with any two layers of one weight.
        """
        table, weight = self.embedding, getattr(self.embedding, "weight", None)
        if type(table) is nn.Embedding and type(weight) in (nn.Parameter, Tensor) and "forward" not in vars(table):
            return table.weight
        everything: Tensor = self.embedding(torch.arange(self.config.vocabulary, device=device))
        return everything

    @property
    def device(self) -> torch.device:
        """Where ids go: to the first parameter that is anywhere, for what is offloaded is on "meta" between calls."""
        return next((p.device for p in self.parameters() if not p.is_meta), torch.device("cpu"))

    def require_known(self, ids: Int[Tensor, " time"]) -> None:
        """ValueError unless ``ids`` stand in one row and are all of the vocabulary."""
        if ids.ndim != 1:
            raise ValueError(f"the ids have shape {tuple(ids.shape)}: give one row of them")
        strange = ids[(ids < 0) | (ids >= self.config.vocabulary)]
        if len(strange):
            raise ValueError(f"id {int(strange[0])} is outside the model's vocabulary of {self.config.vocabulary}")

    def forward(
        self, ids: Int[Tensor, "batch time"], memory: Memory | None = None, cache: list[AttentionCache] | None = None
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Memory | None]:
        """Logits for the character after each of ``ids``, and the memory to give with the next segment.

        ``memory`` (training, evaluation) holds hidden states, ``cache`` (generation, without gradients) keys and
        values. ValueError for both, for a cache that is not ``new_cache``'s or that a block of one's own does not use,
        and for ids that are not [batch, time].
        """
        if ids.ndim != 2 or not ids.shape[1]:
            raise ValueError(f"the ids have shape {tuple(ids.shape)}: give [batch, time], at least one in time")
        if memory is not None and cache is not None:
            raise ValueError("a stream is continued from a memory or from a cache: give one of them")
        if cache is not None and not (
            isinstance(cache, list) and len(cache) == len(set(map(id, cache))) == len(self.blocks)
        ):
            raise ValueError(
                f"the cache must be a list of {len(self.blocks)}, one for each block: give what new_cache() makes"
            )
        seen = memory.seen if memory is not None else cache[0].seen if cache is not None else 0
        x = self.embedding(ids)
        x = self.dropout(x if self.position is None else self.position(x, seen))
        kept, time = [], ids.shape[1]
        for n, block in enumerate(self.blocks):
            context = torch.cat((memory.hidden[n], x), dim=1) if memory is not None else x
            if self.config.memory:
                kept.append(context.detach()[:, -self.config.memory :])
            x = block(context, time, cache[n] if cache is not None else None)
            if cache is not None and cache[n].seen != seen + time:
                raise ValueError(
                    f"block {n} was given a cache and left it as it was: hand it on to the attention inside"
                )
        x = self.norm(x)
        logits = F.linear(x, self.tied_weight(x.device)) if self.output is None else self.output(x)
        return logits, Memory(tuple(kept), seen + time) if self.config.memory else None
