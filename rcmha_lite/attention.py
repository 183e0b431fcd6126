"""Multi-head attention, and the four cells of one grid: position × convolution."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.plain import transforms_are_active
from rcmha_lite.positions import LearnedRelativePosition, RelativePosition, SinusoidalRelativePosition
from rcmha_lite.projections import Projections, head_width
from rcmha_lite.streaming import AttentionCache, joined


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "{queries} {keys}"]:
    """True where a query may look: key j ≤ i + (keys − queries), so the queries are the last of the keys.

    ValueError for more queries than keys.
    """
    if queries > keys:
        raise ValueError(
            f"{queries} queries of {keys} keys: the queries are the last of the keys, so give as many or more"
        )
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def visible_keys(
    queries: int, keys: int, causal: bool, padding: Bool[Tensor, "batch {keys}"] | None, device: torch.device
) -> tuple[Bool[Tensor, "*rows query {keys}"] | None, Bool[Tensor, "batch 1 query 1"] | None]:
    """True where a query may look, None for everywhere; and the queries that padding leaves without any key.

    Those look everywhere, so that no softmax is taken of nothing; what they find is then to be made zero.
    """
    visible = causal_mask(queries, keys, device) if causal else None
    if padding is None:
        return visible, None
    visible = ~padding[:, None, None] if visible is None else visible & ~padding[:, None, None]
    keyless = ~visible.any(dim=-1, keepdim=True)
    return visible | keyless, keyless


def attention_weights(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    padding: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """softmax over the keys that a query may see of  scale · (q·k + bias).

    ``scale`` is 1/√width unless given: q·k of independent unit-variance channels has variance ``width``. A query may
    see every key unless ``causal``, and none that is ``padding``. Where that leaves no key, all weights are zero.
    """
    scores = q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    causal = causal and q.shape[2] > 1  # one query is the last position: it may see every key
    visible, keyless = visible_keys(q.shape[2], k.shape[2], causal, padding, q.device)
    weights = (scores if visible is None else scores.masked_fill(~visible, float("-inf"))).softmax(dim=-1)
    return weights if keyless is None else weights.masked_fill(keyless, 0.0)


def attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    v: Float[Tensor, "batch heads key d_head"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    padding: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch heads query d_head"]:
    """Attention by its formula: each query's average of the values, weighted by ``attention_weights``."""
    return attention_weights(q, k, bias, scale=scale, causal=causal, padding=padding) @ v


def fused_attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    v: Float[Tensor, "batch heads key d_head"],
    bias: Float[Tensor, "#batch heads query key"] | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    padding: Bool[Tensor, "batch key"] | None = None,
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
        return attention(q, k, v, bias, scale=scale, causal=causal, padding=padding)
    plain = bias is None and causal and padding is None
    if not general and plain and q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= 512:
        start = q.new_zeros(queries, keys).masked_fill(~causal_mask(queries, keys), float("-inf"))
        q, k, batch = (q * scale).flatten(0, 1), k.flatten(0, 1), q.shape[:2]
        scores = torch.baddbmm(start.expand(len(q), -1, -1), q, k.transpose(1, 2)).unflatten(0, batch)
        return scores.softmax(dim=-1) @ v
    square = plain and bool(queries == keys)  # a compiled length compares to what is no bool
    visible, keyless = visible_keys(queries, keys, causal and not square, padding, q.device)
    mask = visible
    if bias is not None:
        mask = bias * scale
        mask = (mask if visible is None else mask.masked_fill(~visible, float("-inf"))).to(q.dtype)
    if q.device.type != "cpu":
        q, k, width = F.pad(q, (0, -width % 8)), F.pad(k, (0, -width % 8)), width + -width % 8
        mask = None if mask is None else aligned(mask, q.dtype)
    v = F.pad(v, (0, width - d_head))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=square, scale=scale)[..., :d_head]
    return y if keyless is None else y.masked_fill(keyless, 0.0)


def aligned(mask: Shaped[Tensor, "*batch query key"], dtype: torch.dtype) -> Float[Tensor, "*batch query key"]:
    """A mask as the memory-efficient kernel reads it without a copy: numbers to add, in rows of a multiple of 16."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
    keys = mask.shape[-1]
    return F.pad(mask, (0, -keys % 16))[..., :keys]


class MultiHeadAttention(Projections):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) with two parts that can be plugged in.

        [Q K V] = convolution(context · [W_q W_k W_v] + [b_q b_k b_v])
        y = concat_h softmax(score(Q_h, K_g) / √d_head) V_g · W_o + b_o,   g = ⌊h · n_kv_heads / n_heads⌋

    ``convolution`` is the identity and ``score`` the dot product unless the parts say otherwise. The context is
    ``memory`` followed by ``x``; queries come from ``x`` alone.

    Every layer and part is called, once a pass, so that whatever is attached to one, or put in its place, takes effect.
    Query, key and value layers that are nothing but ``nn.Linear`` are multiplied as one matrix instead, which is the same
    and faster (``plain.calls_only_forward`` decides). With fresh queries after a memory, and for two sequences, the
    convolution is called for the queries and for the rest.

    Heads, parts and what may be given are those of ``Projections``, and so are the errors.
    """

    def weights(
        self,
        x: Float[Tensor, "batch time d_model"],
        memory: Float[Tensor, "batch past d_model"] | None = None,
        *,
        context: Float[Tensor, "batch keys d_model"] | None = None,
        padding: Bool[Tensor, "batch all"] | None = None,
    ) -> Float[Tensor, "batch heads query key"]:
        """The attention weights themselves, to look at; given what ``forward`` is."""
        if context is None:
            q, k, _, bias = self.heads(joined(memory, x), x.shape[1], padding=padding)
        else:
            q, k, _, bias = self.heads(context, padding=padding, asking=x)
        causal = self.causal and context is None
        return attention_weights(q, k, bias, scale=self.d_head**-0.5, causal=causal, padding=padding)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        memory: Float[Tensor, "batch past d_model"] | None = None,
        cache: AttentionCache | None = None,
        *,
        context: Float[Tensor, "batch keys d_model"] | None = None,
        padding: Bool[Tensor, "batch all"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """y for every position of ``x``, after ``memory`` or after what the ``cache`` has seen; give at most one.

        A cache is for inference: through it no gradient reaches the key and value layers.

        With a ``context``, keys and values come from there, every query sees all of it, and kernels run over each of the
        two by itself: cross-attention. ``padding`` is True where a key, whether of memory, cache, ``x`` or context, is
        to be seen by no query nor, being zero for them, by kernels; heads that then have no key answer zero. In
        cross-attention nothing is known of padding in ``x``: on the right, causal kernels do not reach it.
        """
        if context is None:
            return self.attend(joined(memory, x), x.shape[1], cache, padding)
        if memory is not None or cache is not None:
            raise ValueError("a context takes the place of memory and cache: give it alone")
        return self._answer(self.heads(context, padding=padding, asking=x), False, padding)

    def attend(
        self,
        context: Float[Tensor, "batch time d_model"],
        queries: int,
        cache: AttentionCache | None = None,
        padding: Bool[Tensor, "batch all"] | None = None,
    ) -> Float[Tensor, "batch {queries} d_model"]:
        """``forward`` for a memory and an ``x`` of ``queries`` positions that already stand in one tensor."""
        return self._answer(self.heads(context, queries, cache, padding), self.causal, padding)

    def _answer(
        self, heads: tuple[Tensor, Tensor, Tensor, Tensor | None], causal: bool, padding: Tensor | None
    ) -> Tensor:
        given: dict[str, Any] = {} if causal and padding is None else {"causal": causal, "padding": padding}
        y = fused_attention(*heads, scale=self.d_head**-0.5, **given)
        return self.output(y.transpose(1, 2).flatten(2))


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
