"""The next character of a stream from the weights where they are stored: what the modules compute, without calling them."""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.model import Block, Dropout, FeedForward, LanguageModel
from rcmha_lite.plain import HOOKS
from rcmha_lite.positions import AbsolutePosition, SinusoidalRelativePosition, SinusoidTable, factorise
from rcmha_lite.streaming import AttentionCache

KINDS = {
    LanguageModel, nn.Embedding, AbsolutePosition, nn.ModuleList, Block, nn.LayerNorm, MultiHeadAttention, nn.Linear,
    SinusoidalRelativePosition, HeadConvolution, FeedForward, Dropout,
}  # fmt: skip
"""Modules whose formulas ``Stepper`` has; a model with any other is called."""


class Stepper:
    """``model(ids, cache=cache)`` for one more id in each stream: the same logits, several times as fast.

    It reads the very arrays that the parameters are, through views made once, so that a weight that is edited in place
    counts at the next character. Before each, it looks whether a module, a parameter or a hook was put in or taken out;
    then the views are made again, or, where a module is no longer nothing but its formula, the model is called.
    For inference; the streams of a batch are as long as each other.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._prepare()

    def __call__(self, ids: Int[Tensor, " batch"], cache: list[AttentionCache]) -> Float[Tensor, "batch vocabulary"]:
        """Logits after ``ids``, one for each stream; the cache moves on."""
        if not self._unchanged():
            self._prepare()
        ready = self.plain and cache[0].seen > 0 and not torch.is_autocast_enabled(ids.device.type)
        if not ready or not all(self._continues(one) for one in cache):
            with torch.no_grad():
                logits: Tensor = self.model(ids[:, None], cache=cache)[0][:, -1]
            return logits
        with torch.inference_mode():
            logits = self._step(ids, cache)
        return logits.clone()  # outside, an ordinary tensor

    def _step(self, ids: Tensor, cache: list[AttentionCache]) -> Tensor:
        model, at = self.model, cache[0].seen
        x = F.embedding(ids, model.embedding.weight)
        if model.position is not None:
            x = model.position(x[:, None], at)[:, 0]
        for step, one in zip(self.steps, cache, strict=True):
            x = step(x, one, at)
        x = F.layer_norm(x, model.norm.normalized_shape, model.norm.weight, model.norm.bias, model.norm.eps)
        if model.output is None:
            return F.linear(x, model.embedding.weight)
        return F.linear(x, model.output.weight, model.output.bias)

    def _continues(self, cache: AttentionCache) -> bool:
        """Whether kernels have all the past that they reach: not at the first characters of a stream."""
        return self.past == 0 or (cache.history is not None and cache.history.shape[1] == self.past)

    def _prepare(self) -> None:
        """Views of the weights, and what ``_unchanged`` compares; or ``plain`` is False."""
        modules = list(self.model.modules())
        self.attributes = [vars(module) for module in modules]
        self.hooks = [table[name] for table in self.attributes for name in HOOKS]
        self.children = [(t["_modules"], list(t["_modules"].values())) for t in self.attributes if t["_modules"]]
        self.parameters = [
            (t["_parameters"], list(t["_parameters"].values())) for t in self.attributes if t["_parameters"]
        ]
        self.flat = [p for _, held in self.parameters for p in held if p is not None]
        self.places = [p.data_ptr() for p in self.flat]
        config, self.steps, self.past, self.only = self.model.config, [], 0, self._only_formulas()
        self.plain = (
            all(type(module) in KINDS for module in modules)
            and all(type(p) is nn.Parameter for p in self.flat)
            and self.only
            and not config.fresh_queries
            and (not config.kernel_size or config.convolve == "qkv")
        )
        if self.plain:
            self.past = max(config.kernel_size - 1, 0)
            turns = Turns(config.d_position)
            self.steps = [_step_of(block, turns) for block in self.model.blocks]

    def _only_formulas(self) -> bool:
        return not (
            any(self.hooks)
            or global_hooks._has_any_global_hook()
            or any("forward" in table or table.get("_compiled_call_impl") for table in self.attributes)
        )

    def _unchanged(self) -> bool:
        """Whether modules, parameters and their places are those that were prepared for."""
        return (
            all(_same(held.values(), then) for held, then in self.children)
            and all(_same(held.values(), then) for held, then in self.parameters)
            and [p.data_ptr() for p in self.flat] == self.places
            and self._only_formulas() == self.only
        )


def _same(now: Any, then: list[Any]) -> bool:
    return len(now) == len(then) and all(map(is_, now, then))


class Turns:
    """φ of ``factorise`` as a matrix for each position, φ(i) = a · turn(i): one product a head in place of eight steps."""

    def __init__(self, d: int) -> None:
        self.d, self.table, self.made, self.first = d, SinusoidTable(d), torch.empty(0, d, d), 0

    def at(self, like: Tensor, position: int) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
        """The matrix of ``position``, and its sinusoids."""
        wave = self.table.rows(like[:1], position)
        if not 0 <= position - self.first < len(self.made) or self.made.dtype != like.dtype:
            ahead = self.table.rows(like.new_empty(256, 1), position)
            basis = torch.eye(self.d).to(like)[:, None].expand(-1, len(ahead), -1)
            self.made, self.first = factorise(basis, ahead).transpose(0, 1).contiguous(), position
        return self.made[position - self.first], wave[0]


Step = Callable[[Tensor, AttentionCache, int], Tensor]


def _step_of(block: Any, turns: Turns) -> Step:
    """A block as a function of one position of each stream, ``[batch, d_model]``."""
    attention, norms = block.attention, (block.attention_norm, block.feed_forward_norm)
    heads, kv_heads, width, d_head = attention.n_heads, attention.n_kv_heads, attention.d_model, attention.d_head
    group, widths = heads // kv_heads, (width, kv_heads * d_head, kv_heads * d_head)
    first, second = ((n.normalized_shape, n.weight, n.bias, n.eps) for n in norms)
    project = [(layer.weight.t(), layer.bias) for layer in (attention.query, attention.key, attention.value)]
    out, out_bias = attention.output.weight.t(), attention.output.bias
    wide, wide_bias = block.feed_forward.input.weight.t(), block.feed_forward.input.bias
    narrow, narrow_bias = block.feed_forward.output.weight.t(), block.feed_forward.output.bias
    activation, position, convolution = block.feed_forward.activation, attention.position, attention.convolution
    scale, nothing = d_head**-0.5, out.new_zeros(())
    if position is not None:
        content, place = position.content_bias, position.position_bias[:, None]
        projection = position.projection.unflatten(0, (heads, d_head))

    def step(x: Tensor, cache: AttentionCache, at: int) -> Tensor:
        batch = len(x)
        normed = F.layer_norm(x, *first)
        raw = [torch.mm(normed, w) if b is None else torch.addmm(b, normed, w) for w, b in project]
        if convolution is not None:
            present = torch.cat(raw, dim=-1)[:, None]
            rows = present if cache.history is None else torch.cat((cache.history, present), dim=1)
            cache.history = rows[:, 1:]
            raw = convolution.next(rows)[:, 0].split(widths, dim=-1)
        q, k, v = (part.unflatten(1, (-1, d_head)) for part in raw)
        content_q, wave, together = q, nothing, batch * kv_heads
        if position is not None:
            turn, wave = turns.at(q, at)
            a = torch.bmm(q.transpose(0, 1) + place, projection).transpose(0, 1)
            content_q = q + content
        k, v = k[:, :, None], v[:, :, None]
        new, seen = cache.reserve(k, v, 0 if position is None else len(wave))
        keys, values, common = cache.buffers()
        keys[:, :, new], values[:, :, new] = k, v
        keys, values = keys.flatten(0, 1)[:, seen].transpose(1, 2), values.flatten(0, 1)[:, seen]
        content_q = content_q.reshape(together, group, d_head)  # heads that share keys stand together
        if position is None:
            scores = torch.baddbmm(nothing, content_q, keys, beta=0, alpha=scale)
        else:
            common[new] = wave
            by_position = ((a.reshape(batch * heads, -1) @ turn) @ common[seen].t()).view(together, group, -1)
            scores = torch.baddbmm(by_position, content_q, keys, beta=scale, alpha=scale)
        y = torch.bmm(scores.softmax(dim=-1), values).view(batch, width)
        x = torch.addmm(x, y, out).add_(out_bias)
        h = activation(torch.addmm(wide_bias, F.layer_norm(x, *second), wide))
        return torch.addmm(x, h, narrow).add_(narrow_bias)

    return step
