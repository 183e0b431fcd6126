"""From what an attention reads to the queries, keys and values of its heads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rcmha_lite.config import key_value_heads
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.plain import side_by_side
from rcmha_lite.positions import Position
from rcmha_lite.streaming import AttentionCache, kernel_reach, last


class Projections(nn.Module):
    """What every multi-head attention has before its scores: layers, two parts that can be plugged in, and heads.

    ValueError for heads that do not divide, for parts made for other heads or for causal attention alone, for an input,
    memory, context or padding of another shape or precision, for more queries than positions, for two pasts at once,
    and for a stream or a second sequence where a part, or what is not causal, has none.

    Args:
        d_model, n_heads: width of the input, and heads of d_head = d_model / n_heads channels.
        n_kv_heads: heads of keys and values, each for n_heads / n_kv_heads neighbouring heads of queries (grouped-query
            attention, Ainslie et al. 2023, arXiv 2305.13245); as many as of queries for 0 or None.
        causal: whether a query sees only what stands before it and itself; otherwise it sees all of ``x``.
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
        n_kv_heads: int | None = None,
        causal: bool = True,
        position: nn.Module | None = None,
        convolution: nn.Module | None = None,
        query_key_bias: bool = True,
        fresh_queries: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, head_width(d_model, n_heads)
        self.n_kv_heads, self.causal, self.fresh_queries = key_value_heads(n_heads, n_kv_heads), causal, fresh_queries
        d_kv = self.n_kv_heads * self.d_head
        self.query, self.key = (nn.Linear(d_model, d, bias=query_key_bias) for d in (d_model, d_kv))
        self.value, self.output = nn.Linear(d_model, d_kv), nn.Linear(d_model, d_model)
        self.position, self.convolution = position, convolution
        require_fit(self)

    def project(
        self, x: Tensor, projections: str, history: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The named projections of ``x`` side by side, before and after the convolution.

        What is padding is zero for the kernels, as what stands before a text is.
        """
        layers = [{"q": self.query, "k": self.key, "v": self.value}[name] for name in projections]
        stored = layers[0].weight.dtype if type(layers[0]) is nn.Linear else x.dtype
        if x.dtype != stored and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"the input is in {x.dtype}, the module in {stored}: convert one with .to(…)")
        projected = side_by_side(layers, x)
        if self.convolution is None:
            return projected, projected
        if padding is not None:
            projected = projected.masked_fill(padding[:, padding.shape[1] - x.shape[1] :, None], 0.0)
        return projected, self.convolution(projected, projections, history)

    def heads(
        self,
        context: Float[Tensor, "batch time d_model"],
        queries: int | None = None,
        cache: AttentionCache | None = None,
        padding: Bool[Tensor, "batch keys"] | None = None,
        asking: Float[Tensor, "batch asking d_model"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The last ``queries`` queries (None: all), keys, values and score bias of every head; the cache moves on.

        The queries are those of another sequence where one is ``asking``.
        """
        require_inputs(self, context, queries, cache, padding, asking)
        raw, d_kv = context[:, :0], self.n_kv_heads * self.d_head
        queries = context.shape[1] if queries is None else queries
        if asking is None and not (queries < context.shape[1] and self.fresh_queries):
            raw, qkv = self.project(context, "qkv", cache.history if cache is not None else None, padding)
            parts = list(qkv.split((self.d_model, d_kv, d_kv), dim=-1))
            parts[0] = last(parts[0], queries)
        else:
            own = None if asking is not None else padding
            q = self.project(last(context, queries) if asking is None else asking, "q", padding=own)[1]
            parts = [q, *self.project(context, "kv", padding=padding)[1].chunk(2, dim=-1)]
        q, k, v = (part.unflatten(-1, (-1, self.d_head)).transpose(1, 2) for part in parts)
        bias = None
        if self.position is not None:  # a table may refuse, before the cache moves
            start, past = (cache.seen, len(cache)) if cache is not None else (0, 0)
            q, k, bias = self.position(q, k, start, past)
        if cache is not None:
            reach, common = kernel_reach(self.convolution), getattr(self.position, "common_channels", 0)
            k, v = cache.extend(k, v, common)
            if reach:
                cache.keep(raw, reach)
        if (group := self.n_heads // self.n_kv_heads) > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return q, k, v, bias


def require_fit(module: Projections) -> None:
    """ValueError for parts that are made for another module than this."""
    n_heads, d_head, position, convolution = module.n_heads, module.d_head, module.position, module.convolution
    for name, part in (("position", position), ("convolution", convolution)):
        made_for = (part.n_heads, part.d_head) if isinstance(part, Position | HeadConvolution) else None
        if made_for and made_for != (n_heads, d_head):
            theirs = f"the {name} is made for {made_for[0]} heads of {made_for[1]} channels"
            raise ValueError(f"{theirs}, the module has {n_heads} of {d_head}: give both the same")
    if isinstance(convolution, HeadConvolution) and convolution.n_kv_heads != module.n_kv_heads:
        theirs = f"the convolution is made for {convolution.n_kv_heads} heads of keys and values"
        raise ValueError(f"{theirs}, the module has {module.n_kv_heads}: give both the same n_kv_heads")
    if module.causal and getattr(convolution, "centred", False):
        centred = "centred kernels reach what follows, and the module is causal"
        raise ValueError(f"{centred}: give the module causal=False, or the convolution centred=False")
    if not module.causal and not getattr(position, "both_signs", True):
        theirs = f"the position, {type(position).__name__}, has distances to what came before alone"
        raise ValueError(f"{theirs}, and the module is not causal: make the position with causal=False, too")


def require_inputs(
    module: Projections,
    context: Tensor,
    queries: int | None,
    cache: AttentionCache | None,
    padding: Tensor | None,
    asking: Tensor | None,
) -> None:
    """ValueError for what ``Projections.heads`` cannot be given, before anything is computed or remembered."""
    if context.ndim != 3 or context.shape[2] != module.d_model:
        raise ValueError(f"the input has shape {tuple(context.shape)}: give [batch, time, {module.d_model}]")
    if asking is not None:
        if asking.ndim != 3 or len(asking) != len(context) or asking.shape[2] != module.d_model:
            shapes = f"the input has shape {tuple(asking.shape)}, its context {tuple(context.shape)}"
            raise ValueError(f"{shapes}: give both as [batch, time, {module.d_model}], of one batch")
        if module.position is not None and not getattr(module.position, "across", False):
            theirs = f"the position, {type(module.position).__name__}, measures distances within one sequence"
            raise ValueError(f"{theirs}, and a query and a context's key have none: attend to a context without one")
    if cache is not None:
        cache.require_batch(len(context))
        if queries is not None and queries < context.shape[1]:
            raise ValueError("a stream is continued from a memory or from a cache: give one of them")
        if not module.causal:
            raise ValueError("a stream's next piece is unknown, and this module is not causal: give it the whole text")
    if padding is not None:
        wanted = (len(context), context.shape[1] + (0 if cache is None else len(cache)))
        if padding.dtype != torch.bool or tuple(padding.shape) != wanted:
            theirs = f"the padding is {padding.dtype} of shape {tuple(padding.shape)}"
            raise ValueError(f"{theirs}: give bool of shape {wanted}, [batch, keys], True where a key is padding")


def head_width(d_model: int, n_heads: int) -> int:
    """Channels of a head. ValueError unless there is a whole number of them."""
    if n_heads < 1 or d_model < 1 or d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}: give a multiple of the heads")
    return d_model // n_heads
