"""Multi-head attention, and the four cells of one grid: position × convolution."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.plain import calls_only_forward, transforms_are_active
from rcmha_lite.positions import LearnedRelativePosition, Position, RelativePosition, SinusoidalRelativePosition
from rcmha_lite.streaming import AttentionCache, kernel_reach


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "{queries} {keys}"]:
    """True where a query may look: key j ≤ i + (keys − queries), so the queries are the last of the keys.

    ValueError for more queries than keys.
    """
    if queries > keys:
        raise ValueError(
            f"{queries} queries of {keys} keys: the queries are the last of the keys, so give as many or more"
        )
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attention_weights(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """softmax over the keys that a query may see of  scale · (q·k + bias).

    ``scale`` is 1/√width unless given: q·k of independent unit-variance channels has variance ``width``.
    """
    scores = q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if q.shape[2] > 1:  # one query is the last position: it may see every key
        scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], q.device), float("-inf"))
    return scores.softmax(dim=-1)


def attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    v: Float[Tensor, "batch heads key d_head"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads query d_head"]:
    """Causal attention by its formula: each query's average of the values, weighted by ``attention_weights``."""
    return attention_weights(q, k, bias, scale=scale) @ v


def fused_attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    v: Float[Tensor, "batch heads key d_head"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads query d_head"]:
    """``attention``, by the fastest exact way.

    PyTorch's fused kernels, which ``torch.func`` cannot transform, never store the weights, except on a CPU where a bias
    wants a gradient, as a learned table's does in training; a bias is itself an array of heads × queries × keys. They
    want values as wide as the queries, so narrower values are padded with zeros and the padding cut off; on a GPU, where
    they refuse or copy what is not aligned, all widths become multiples of 8, and the mask's rows of 16. In bfloat16 on
    a CPU they pay only for long texts; up to 512 keys, one matrix product that starts from the mask is taken instead.
    """
    queries, keys, width, d_head = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    scale = width**-0.5 if scale is None else scale
    general = torch.compiler.is_exporting()  # one graph for every length
    if d_head > width or transforms_are_active() or (not general and queries <= 4):  # nothing to fuse, or worth fusing
        return attention(q, k, v, bias, scale=scale)
    if not general and bias is None and q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= 512:
        start = q.new_zeros(queries, keys).masked_fill(~causal_mask(queries, keys), float("-inf"))
        q, k, batch = (q * scale).flatten(0, 1), k.flatten(0, 1), q.shape[:2]
        scores = torch.baddbmm(start.expand(len(q), -1, -1), q, k.transpose(1, 2)).unflatten(0, batch)
        return scores.softmax(dim=-1) @ v
    square = bias is None and bool(queries == keys)  # a compiled length compares to what is no bool
    mask: Tensor | None = None
    if bias is not None:
        mask = (bias * scale).masked_fill(~causal_mask(queries, keys, q.device), float("-inf")).to(q.dtype)
    elif not square:
        mask = causal_mask(queries, keys, q.device)
    if q.device.type != "cpu":
        q, k, width = F.pad(q, (0, -width % 8)), F.pad(k, (0, -width % 8)), width + -width % 8
        mask = None if mask is None else aligned(mask, q.dtype)
    v = F.pad(v, (0, width - d_head))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=square, scale=scale)[..., :d_head]


def aligned(mask: Shaped[Tensor, "*batch query key"], dtype: torch.dtype) -> Float[Tensor, "*batch query key"]:
    """A mask as the memory-efficient kernel reads it without a copy: numbers to add, in rows of a multiple of 16."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
    keys = mask.shape[-1]
    return F.pad(mask, (0, -keys % 16))[..., :keys]


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) with two parts that can be plugged in.

        [Q K V] = convolution(context · [W_q W_k W_v] + [b_q b_k b_v])
        y = concat_h softmax(score(Q_h, K_h) / √d_head) V_h · W_o + b_o

    ``convolution`` is the identity and ``score`` the dot product unless the parts say otherwise. The context is
    ``memory`` followed by ``x``; queries come from ``x`` alone. There is no padding mask: what is padded on the right
    changes nothing before it, and on the left nothing should be padded.

    Every layer and part is called, once a pass, so that whatever is attached to one, or put in its place, takes effect.
    Query, key and value layers that are nothing but ``nn.Linear`` are multiplied as one matrix instead, which is the same
    and faster (``plain.calls_only_forward`` decides). With fresh queries after a memory, the convolution is called for the
    queries and for the rest.

    ValueError for heads that do not divide the width, for parts made for other heads, for an input or a memory that is
    not [batch, time, d_model] in the module's precision, for more queries than positions, and for both a memory and a
    cache.

    Args:
        d_model, n_heads: width of the input, and heads of d_head = d_model / n_heads channels.
        position: scores that know the distance between query and key: a ``Position``, or any module that is called as
            one, with (q, k, start, past), and returns queries, keys, and a bias or None.
        convolution: kernels over the projections: a ``HeadConvolution``, or any module that is called as one, with
            (x, projections, history); in a stream it needs a ``kernel_size``.
        query_key_bias: biases on the query and key projections; RCMHA's public code has none there.
        fresh_queries: with memory, start the query convolution at ``x`` with zeros to its left, as RCMHA's public
            code does. By default it sees the memory, so that segment by segment equals all at once.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        position: nn.Module | None = None,
        convolution: nn.Module | None = None,
        query_key_bias: bool = True,
        fresh_queries: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, head_width(d_model, n_heads)
        self.query, self.key = (nn.Linear(d_model, d_model, bias=query_key_bias) for _ in range(2))
        self.value, self.output = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.position, self.convolution, self.fresh_queries = position, convolution, fresh_queries
        for name, part in (("position", position), ("convolution", convolution)):
            made_for = (part.n_heads, part.d_head) if isinstance(part, Position | HeadConvolution) else None
            if made_for and made_for != (n_heads, self.d_head):
                theirs = f"the {name} is made for {made_for[0]} heads of {made_for[1]} channels"
                raise ValueError(f"{theirs}, the module has {n_heads} of {self.d_head}: give both the same")

    def project(self, x: Tensor, projections: str, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The named projections of ``x`` side by side, before and after the convolution."""
        layers = [{"q": self.query, "k": self.key, "v": self.value}[name] for name in projections]
        stored = layers[0].weight.dtype if type(layers[0]) is nn.Linear else x.dtype
        if x.dtype != stored and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"the input is in {x.dtype}, the module in {stored}: convert one with .to(…)")
        if all(calls_only_forward(layer) for layer in layers):
            projected = F.linear(x, torch.cat([layer.weight for layer in layers]), _joined_biases(layers))
        else:
            projected = torch.cat([layer(x) for layer in layers], dim=-1)
        return projected, projected if self.convolution is None else self.convolution(projected, projections, history)

    def heads(
        self,
        context: Float[Tensor, "batch time d_model"],
        queries: int | None = None,
        cache: AttentionCache | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The last ``queries`` queries (None: all), keys, values and score bias of every head; the cache moves on."""
        if context.ndim != 3 or context.shape[2] != self.d_model:
            raise ValueError(f"the input has shape {tuple(context.shape)}: give [batch, time, {self.d_model}]")
        queries = context.shape[1] if queries is None else queries
        if cache is not None:
            cache.require_batch(len(context))
        if cache is not None and queries < context.shape[1]:
            raise ValueError("a stream is continued from a memory or from a cache: give one of them")
        raw = context[:, :0]
        if queries < context.shape[1] and self.fresh_queries:
            q, kv = self.project(last(context, queries), "q")[1], self.project(context, "kv")[1]
            parts = [q, *kv.chunk(2, dim=-1)]
        else:
            raw, qkv = self.project(context, "qkv", cache.history if cache is not None else None)
            parts = list(qkv.chunk(3, dim=-1))
            parts[0] = last(parts[0], queries)
        q, k, v = (part.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2) for part in parts)
        bias = None
        if self.position is not None:  # a table may refuse, before the cache moves
            start, past = (cache.seen, len(cache)) if cache is not None else (0, 0)
            q, k, bias = self.position(q, k, start, past)
        if cache is not None:
            reach, common = kernel_reach(self.convolution), getattr(self.position, "common_channels", 0)
            k, v = cache.extend(k, v, common)
            if reach:
                cache.keep(raw, reach)
        return q, k, v, bias

    def weights(
        self, x: Float[Tensor, "batch time d_model"], memory: Float[Tensor, "batch past d_model"] | None = None
    ) -> Float[Tensor, "batch heads query key"]:
        """The attention weights themselves, to look at."""
        q, k, _, bias = self.heads(joined(memory, x), x.shape[1])
        return attention_weights(q, k, bias, scale=self.d_head**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        memory: Float[Tensor, "batch past d_model"] | None = None,
        cache: AttentionCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """y for every position of ``x``, after ``memory`` or after what the ``cache`` has seen; give at most one.

        A cache is for inference: through it no gradient reaches the key and value layers.
        """
        return self.attend(joined(memory, x), x.shape[1], cache)

    def attend(
        self, context: Float[Tensor, "batch time d_model"], queries: int, cache: AttentionCache | None = None
    ) -> Float[Tensor, "batch {queries} d_model"]:
        """``forward`` for a memory and an ``x`` of ``queries`` positions that already stand in one tensor."""
        q, k, v, bias = self.heads(context, queries, cache)
        y = fused_attention(q, k, v, bias, scale=self.d_head**-0.5)
        return self.output(y.transpose(1, 2).flatten(2))


def last(x: Tensor, n: int) -> Tensor:
    """The last ``n`` positions of ``[batch, time, width]``. All of them are ``x`` itself: a slice costs a copy backward.

    ValueError unless there are so many.
    """
    if not 0 <= n <= x.shape[1]:
        raise ValueError(f"{n} queries of {x.shape[1]} positions: give a number from 0 to {x.shape[1]}")
    return x if n == x.shape[1] else x[:, x.shape[1] - n :]


def joined(memory: Tensor | None, x: Tensor) -> Tensor:
    """``memory`` followed by ``x`` in time. ValueError unless they fit."""
    if x.ndim != 3:
        raise ValueError(f"the input has shape {tuple(x.shape)}: give [batch, time, d_model]")
    if memory is None:
        return x
    if memory.ndim != 3 or len(memory) != len(x) or memory.shape[2] != x.shape[2]:
        shape = f"the memory has shape {tuple(memory.shape)}, the input {tuple(x.shape)}"
        raise ValueError(f"{shape}: give a memory [batch, past, d_model] of the input's batch and width")
    return torch.cat((memory, x), dim=1)


def _joined_biases(layers: list[nn.Linear]) -> Tensor:
    """Biases of several layers side by side, zeros for a layer that has none."""
    return torch.cat(
        [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    )


def head_width(d_model: int, n_heads: int) -> int:
    """Channels of a head. ValueError unless there is a whole number of them."""
    if n_heads < 1 or d_model < 1 or d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}: give a multiple of the heads")
    return d_model // n_heads


def mha(d_model: int, n_heads: int) -> MultiHeadAttention:
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762): neither part. Errors as ``MultiHeadAttention``."""
    return MultiHeadAttention(d_model, n_heads)


def mdha(d_model: int, n_heads: int, *, kernel_size: int = 3) -> MultiHeadAttention:
    """Multi-dconv-head attention (So et al. 2021, arXiv 2109.08668): separate kernels for every head channel.

    Errors as ``MultiHeadAttention`` and ``HeadConvolution``.
    """
    convolution = HeadConvolution(n_heads, head_width(d_model, n_heads), kernel_size, shared=False, init="primer")
    return MultiHeadAttention(d_model, n_heads, convolution=convolution)


def rmha(
    d_model: int, n_heads: int, *, distances: int | None = None, d_position: int | None = None
) -> MultiHeadAttention:
    """Relative multi-head attention: a learned table of ``distances`` rows, or, without, Transformer-XL's sinusoids.

    ``d_position`` is the number of sinusoids, 32 unless given; each costs every head a channel of queries and keys.
    Errors as ``MultiHeadAttention`` and the encodings; ValueError for both ``distances`` and ``d_position``.
    """
    return MultiHeadAttention(d_model, n_heads, position=_relative(d_model, n_heads, distances, d_position))


def rcmha(
    d_model: int, n_heads: int, *, kernel_size: int = 3, distances: int | None = None, d_position: int | None = None
) -> MultiHeadAttention:
    """Relative convolutional multi-head attention (Sugiharto et al. 2023, arXiv 2308.03429): ``rmha`` with kernels.

    They start at random, as PyTorch draws them. Its public code also has a learned table, no query and key biases and
    fresh queries: the ``paper`` preset, from which ``rcmha_lite.model.build_attention`` makes it. Errors as ``rmha`` and
    ``HeadConvolution``.
    """
    convolution = HeadConvolution(n_heads, head_width(d_model, n_heads), kernel_size, init="pytorch")
    position = _relative(d_model, n_heads, distances, d_position)
    return MultiHeadAttention(d_model, n_heads, position=position, convolution=convolution)


def _relative(d_model: int, n_heads: int, distances: int | None, d_position: int | None) -> RelativePosition:
    d_head = head_width(d_model, n_heads)
    if distances is None:
        return SinusoidalRelativePosition(n_heads, d_head, 32 if d_position is None else d_position)
    if d_position is not None:
        raise ValueError("give distances for a learned table or d_position for sinusoids, not both")
    return LearnedRelativePosition(n_heads, d_head, distances)
