"""The checks of a whole module: the solution passes, other ways of writing it pass, and every fault is refused by name."""

import os
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcmha_lite import attention, convolution, exercises
from rcmha_lite.config import Config
from rcmha_lite.exercises import _manners, _stages, rcmha_in_one_file
from rcmha_lite.exercises import language_model as model_check
from rcmha_lite.exercises import rcmha as attention_check
from rcmha_lite.model import LanguageModel

SOURCE = Path(rcmha_in_one_file.__file__).read_text(encoding="utf-8")


def changed(*changes: tuple[str, str], extra: str = "") -> dict:
    """The solution's names, after these changes of its source."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, f"the solution was rewritten: {old!r} stands in it {source.count(old)} times"
        source = source.replace(old, new)
    scope = {"__name__": "a_readers_notebook"}
    exec(compile(source + "\n" + extra, "a_readers_notebook", "exec"), scope)
    return scope


PROJECT = "qkv = torch.stack([layer(context) for layer in (self.query, self.key, self.value)])"
SPLIT = "qkv = qkv.unflatten(3, (self.n_heads, self.d)).transpose(2, 3)"
CONVOLVE = "q, k, v = self.convolution(qkv)"
RETURN = "return self.output(y.transpose(1, 2).flatten(2))"
SCORES = "scores = self.position(q, k) / math.sqrt(self.d)"
MASKED = 'weights = scores.masked_fill(future, float("-inf")).softmax(dim=3)'
MASK = "triu(k.shape[2] - queries + 1)"
LAST = "q = q[:, :, k.shape[2] - queries :]"
PAD = "padded = F.pad(qkv, (0, 0, taps - 1, 0))"
TAP = "self.weight[:, None, :, None, :, s]"
R = "r = torch.cat((angles.sin(), angles.cos()), dim=1).to(q)"
CONTENT = "content = (q + self.content_bias[:, None]) @ k.transpose(2, 3)"
BY_DISTANCE = "by_distance = (q + self.position_bias[:, None]) @ by_head.transpose(1, 2)"
DELTA = "delta = i[:, None] - torch.arange(keys, device=q.device)"
GATHER = "by_distance.gather(3, delta.clamp(min=0).expand_as(by_distance))"
JOIN = "context = x if memory is None else torch.cat((memory, x), dim=1)"
BY_HEAD = "by_head = (r @ self.projection.T).view(keys, heads, d).transpose(0, 1)"

FAULTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "value bias forgotten": ("the values", [(PROJECT, PROJECT + "\n        qkv = torch.stack((qkv[0], qkv[1], F.linear(context, self.value.weight)))")]),
    "output bias forgotten": ("the values", [(RETURN, "return F.linear(y.transpose(1, 2).flatten(2), self.output.weight)")]),
    "no output projection": ("the values", [(RETURN, "return y.transpose(1, 2).flatten(2)")]),
    "length 1 fails": ("the values", [(SCORES, SCORES + "\n        assert queries > 1")]),
    "batch mixed": ("the batch", [(PROJECT, PROJECT + "\n        qkv = qkv + 0.1 * qkv.mean(dim=1, keepdim=True)")]),
    "batch mixed in the scores": ("the batch", [(SCORES, SCORES + "\n        scores = scores + scores.flip(0)")]),
    "no mask": ("the mask", [(MASKED, "weights = scores.softmax(dim=3)")]),
    "mask after the softmax": ("the mask", [(MASKED, "weights = scores.softmax(dim=3).masked_fill(future, 0.0)")]),
    "mask of zeros": ("the mask", [('float("-inf")', "0.0")]),
    "mask one too far": ("the mask", [(MASK, "triu(k.shape[2] - queries + 2)")]),
    "own position hidden": ("the mask", [(MASK, "triu(k.shape[2] - queries)")]),
    "softmax over the queries": ("the mask", [("softmax(dim=3)", "softmax(dim=2)")]),
    "mask transposed": ("the mask", [(MASK, "tril(queries - k.shape[2] - 1)")]),
    "no root of d": ("the scores", [(SCORES, "scores = self.position(q, k)")]),
    "divided by d": ("the scores", [("math.sqrt(self.d)", "self.d")]),
    "query and key exchanged": ("the scores", [("(self.query, self.key, self.value)", "(self.key, self.query, self.value)")]),
    "sigmoid for softmax": ("the values", [(".softmax(dim=3)", ".sigmoid()")]),
    "root of d_model": ("the heads", [("math.sqrt(self.d)", "math.sqrt(x.shape[2])")]),
    "heads split without transposing": ("the heads", [(SPLIT, "qkv = qkv.reshape(3, len(x), self.n_heads, -1, self.d)")]),
    "heads split by every h-th channel": ("the heads", [(SPLIT, "qkv = qkv.unflatten(3, (self.d, self.n_heads)).permute(0, 1, 4, 2, 3)")]),
    "heads merged without transposing": ("the heads", [(RETURN, "return self.output(y.reshape(x.shape))")]),
    "heads merged channel by channel": ("the heads", [(RETURN, "return self.output(y.permute(0, 2, 3, 1).flatten(2))")]),
    "heads merged in reverse": ("the heads", [(RETURN, "return self.output(y.flip(1).transpose(1, 2).flatten(2))")]),
    "kernels reversed": ("the kernels of the values", [(TAP, "self.weight.flip(-1)[:, None, :, None, :, s]")]),
    "padded on both sides": ("the kernels of the values", [(PAD, "padded = F.pad(qkv, (0, 0, 1, 1))")]),
    "padded on the right": ("the kernels of the values", [(PAD, "padded = F.pad(qkv, (0, 0, 0, taps - 1))")]),
    "padded with the first row": ("the kernels of the values", [(PAD, "padded = torch.cat((qkv[:, :, :, :1], qkv[:, :, :, :1], qkv), dim=3)")]),
    "the kernel runs over the heads": ("the kernels of the values", [(PAD, "qkv = qkv.transpose(2, 3); time = qkv.shape[3]; padded = F.pad(qkv, (0, 0, taps - 1, 0))"), ("padded[:, :, :, s : s + time]", "padded[:, :, :, s : s + time].transpose(2, 3)")]),
    "values not convolved": ("the kernels of the values", [(CONVOLVE, "(q, k, _), v = self.convolution(qkv), qkv[2]")]),
    "one kernel for all three": ("the kernels of the values", [(TAP, "self.weight[:1, None, :, None, :, s]")]),
    "queries not convolved": ("the kernels of the queries", [(CONVOLVE, "(_, k, v), q = self.convolution(qkv), qkv[0]")]),
    "keys not convolved": ("the kernels of the queries", [(CONVOLVE, "(q, _, v), k = self.convolution(qkv), qkv[1]")]),
    "kernel bias forgotten": ("the kernels' biases", [("y: Tensor = self.bias[:, None, :, None]", "y = 0 * self.bias[:, None, :, None]")]),
    "kernel bias added at every tap": ("the kernels' biases", [("            y = y + self", "            y = y + self.bias[:, None, :, None] * (s > 0) + self")]),
    "divided before the convolution": ("the kernels' biases", [(PROJECT, PROJECT + "\n        qkv = torch.stack((qkv[0] / math.sqrt(self.d), qkv[1], qkv[2]))"), (SCORES, "scores = self.position(q, k)")]),
    "distances forgotten": ("the waves", [(f"return content + {GATHER}", "return content")]),
    "cosines first": ("the waves", [(R, "r = torch.cat((angles.cos(), angles.sin()), dim=1).to(q)")]),
    "sines and cosines by turns": ("the waves", [(R, "r = torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1).to(q)")]),
    "base 1000": ("the waves", [("10_000.0", "1000.0")]),
    "frequencies of half the range": ("the waves", [("dtype=torch.float64) / waves)", "dtype=torch.float64) / (2 * waves))")]),
    "no shift": ("the waves", [(f"content + {GATHER}", "content + by_distance")]),
    "distance one too large": ("the waves", [("distances = torch.arange(keys,", "distances = torch.arange(1, keys + 1,")]),
    "shifted one too far": ("the waves", [(DELTA, DELTA + " - 1")]),
    "j - i": ("the waves", [("angles.sin(), angles.cos()", "-angles.sin(), angles.cos()")]),
    "distances in reverse": ("the waves", [("distances = torch.arange(keys, device=q.device, dtype=torch.float64)", "distances = torch.arange(keys - 1, -1, -1, device=q.device, dtype=torch.float64)")]),
    "W shared out to heads wrongly": ("the waves", [(BY_HEAD, "by_head = (r @ self.projection.T).view(keys, d, heads).permute(2, 0, 1)")]),
    "first head's W for all": ("the waves", [(BY_HEAD, "by_head = (r @ self.projection[:d].T).expand(heads, keys, d)")]),
    "position term not divided": ("the waves", [(f"content + {GATHER}", f"content + math.sqrt(d) * {GATHER}")]),
    "waves made in float32": ("the waves", [("device=q.device, dtype=torch.float64)  # 0", "device=q.device, dtype=torch.float32)  # 0"), ("device=q.device, dtype=torch.float64) / waves)", "device=q.device, dtype=torch.float32) / waves)")]),
    "W cut from the gradient": ("the waves", [(BY_HEAD, BY_HEAD + ".detach()")]),
    "v missing": ("v", [(BY_DISTANCE, "by_distance = q @ by_head.transpose(1, 2)")]),
    "v subtracted": ("v", [("(q + self.position_bias", "(q - self.position_bias")]),
    "u and v exchanged": ("u and v", [("(q + self.content_bias[:, None])", "(q + self.OTHER[:, None])"), ("(q + self.position_bias[:, None])", "(q + self.content_bias[:, None])"), ("self.OTHER", "self.position_bias")]),
    "u missing": ("u", [(CONTENT, "content = q @ k.transpose(2, 3)")]),
    "u on both terms": ("u", [("(q + self.position_bias[:, None])", "(q + self.position_bias[:, None] + self.content_bias[:, None])")]),
    "kernels after u": ("all parts", [(CONVOLVE, "qkv = torch.stack((qkv[0] + self.position.content_bias[:, None], qkv[1], qkv[2])); " + CONVOLVE), (CONTENT, "content = q @ k.transpose(2, 3)"), ("(q + self.position_bias[:, None])", "(q + self.position_bias[:, None] - self.content_bias[:, None])")]),
    "memory ignored": ("memory", [(JOIN, "context = x")]),
    "memory behind x": ("memory", [(JOIN, "context = x if memory is None else torch.cat((x, memory), dim=1)")]),
    "mask forgets memory": ("memory", [(MASK, "triu(1)")]),
    "memory answers too": ("memory", [(LAST, ""), (MASK, "triu(1)"), (RETURN, "return self.output(y.transpose(1, 2).flatten(2)[:, :queries])")]),
    "memory cut from the gradient": ("memory", [("torch.cat((memory, x), dim=1)", "torch.cat((memory.detach(), x), dim=1)")]),
    "memory reversed": ("memory and the", [("torch.cat((memory, x), dim=1)", "torch.cat((memory.flip(1), x), dim=1)")]),
    "queries convolved afresh": ("memory and the kernels", [(LAST, "q = self.convolution(qkv[:, :, :, k.shape[2] - queries :])[0]")]),
    "keys convolved afresh": ("memory and the kernels", [(LAST, LAST + "\n        k = torch.cat((k[:, :, : k.shape[2] - queries], self.convolution(qkv[:, :, :, k.shape[2] - queries :])[1]), dim=2)")]),
    "values convolved afresh": ("memory and the kernels", [(LAST, LAST + "\n        v = torch.cat((v[:, :, : k.shape[2] - queries], self.convolution(qkv[:, :, :, k.shape[2] - queries :])[2]), dim=2)")]),
    "distances from the beginning of x": ("memory and the distances", [("i = torch.arange(keys - queries, keys, device=q.device)", "i = torch.arange(queries, device=q.device)")]),
    "input changed in place": ("what you are given", [(PROJECT, "x.mul_(2); x = x / 2; context = x if memory is None else torch.cat((memory, x), dim=1); " + PROJECT)]),
    "waves left in float64": ("float32", [(".to(q)", ".double()"), ("(r @ self.projection.T)", "(r @ self.projection.T.double())")]),
    "mask on the CPU": ("device", [("dtype=torch.bool, device=x.device", "dtype=torch.bool")]),
    "dropout left in": ("chance", [(RETURN, "return F.dropout(self.output(y.transpose(1, 2).flatten(2)), 0.5)")]),
    "a parameter too many": ("names and shapes", [("self.n_heads, self.d = n_heads", "self.extra = nn.Parameter(torch.zeros(3)); self.n_heads, self.d = n_heads")]),
    "kernels for each head": ("names and shapes", [("torch.empty(3, 1, d, taps)", "torch.empty(3, 2, d, taps)")]),
    "W the other way round": ("names and shapes", [("torch.randn(heads * d, waves)", "torch.randn(waves, heads * d)")]),
    "no key bias": ("names and shapes", [("self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)", "self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model, bias=False)")]),
    "query and key one layer": ("names and shapes", [("        self.value, self.output =", "        self.key = self.query\n        self.value, self.output =")]),
}  # fmt: skip

BLOCK_ATTENTION = "x = x + self.attention(self.attention_norm(x), normed)"
BLOCK_FEED_FORWARD = "return x + self.feed_forward(self.feed_forward_norm(x))"
LOGITS = "return self.output(self.norm(x)), kept if self.memory else None"
KEEP = "kept.append(context.detach()[:, max(context.shape[1] - self.memory, 0) :])"
STEP = "x = block(x, past)"

MODEL_FAULTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "no last norm": ("the embedding", [(LOGITS, "return self.output(x), kept if self.memory else None")]),
    "output bias forgotten": ("the embedding", [(LOGITS, "return F.linear(self.norm(x), self.output.weight), kept if self.memory else None")]),
    "weights tied": ("the embedding", [(LOGITS, "return F.linear(self.norm(x), self.embedding.weight, self.output.bias), kept if self.memory else None")]),
    "probabilities, not logits": ("the embedding", [(LOGITS, "return self.output(self.norm(x)).softmax(-1), kept if self.memory else None")]),
    "embedding scaled": ("the embedding", [("self.embedding(ids), []", "self.embedding(ids) * math.sqrt(self.embedding.embedding_dim), []")]),
    "no residual around attention": ("the residual", [(BLOCK_ATTENTION, "x = self.attention(self.attention_norm(x), normed)")]),
    "no residual around feed-forward": ("the residual", [(BLOCK_FEED_FORWARD, "return self.feed_forward(self.feed_forward_norm(x))")]),
    "post-norm": ("the norms", [(BLOCK_ATTENTION, "x = self.attention_norm(x + self.attention(x, memory))"), (BLOCK_FEED_FORWARD, "return self.feed_forward_norm(x + self.feed_forward(x))")]),
    "ReLU": ("the feed-forward", [(".square())", ")")]),
    "square without ReLU": ("the feed-forward", [("F.relu(self.input(x)).square()", "self.input(x).square()")]),
    "no norm before feed-forward": ("the norms", [(BLOCK_FEED_FORWARD, "return x + self.feed_forward(x)")]),
    "no norm before attention": ("the norms", [(BLOCK_ATTENTION, "x = x + self.attention(x, normed)")]),
    "attention without root": ("attention in the block", [("math.sqrt(self.d)", "1.0")]),
    "sublayers beside each other": ("the block", [(BLOCK_ATTENTION, "y = self.attention(self.attention_norm(x), normed)"), (BLOCK_FEED_FORWARD, "return x + y + self.feed_forward(self.feed_forward_norm(x))")]),
    "feed-forward first": ("the block", [(BLOCK_ATTENTION, "x = x + self.feed_forward(self.feed_forward_norm(x))"), (BLOCK_FEED_FORWARD, "return x + self.attention(self.attention_norm(x), normed)")]),
    "blocks backwards": ("several blocks", [("enumerate(self.blocks)", "enumerate(reversed(self.blocks))")]),
    "first block twice": ("several blocks", [(STEP, "x = self.blocks[0](x, past)")]),
    "memory ignored": ("memory of one block", [(STEP, "x = block(x)")]),
    "memory not normed": ("memory of one block", [("normed = None if memory is None else self.attention_norm(memory)", "normed = memory")]),
    "memory keeps what leaves the block": ("memory of one block", [(f"            {KEEP}  # [b, ≤ memory, d_model]\n            {STEP}", f"            {STEP}\n            context = x\n            {KEEP}")]),
    "memory not cut from the gradient": ("memory of one block", [("context.detach()[", "context[")]),
    "memory keeps the segment alone": ("memory of one block", [(KEEP, "kept.append(x.detach()[:, max(x.shape[1] - self.memory, 0) :])")]),
    "memory keeps all": ("memory of one block", [(KEEP, "kept.append(context.detach())")]),
    "memory keeps the oldest": ("memory of one block", [(KEEP, "kept.append(context.detach()[:, : self.memory])")]),
    "memory one short": ("memory of one block", [("context.shape[1] - self.memory, 0)", "context.shape[1] - self.memory + 1, 0)")]),
    "first block's memory for all": ("memory of several blocks", [("memory[n]", "memory[0]")]),
    "logits alone": ("memory of one block", [(LOGITS, "return self.output(self.norm(x))")]),
    "no list of blocks": ("names and shapes", [("nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(layers))", "[Block(d_model, n_heads, d_ff) for _ in range(layers)]")]),
    "d_ff of one's own": ("names and shapes", [("Block(d_model, n_heads, d_ff) for", "Block(d_model, n_heads, 4 * d_model) for")]),
    "batch mixed": ("the batch", [(LOGITS, "return self.output(self.norm(x - x.mean(dim=0))), kept if self.memory else None")]),
    "looks ahead": ("attention in the block", [(MASK, "triu(k.shape[2] - queries + 2)")]),
    "single id fails": ("the embedding", [("x, kept = self.embedding(ids), []", "x, kept = self.embedding(ids.squeeze()), []")]),
}  # fmt: skip


def refused(check, answer) -> str:
    with pytest.raises(AssertionError) as caught:
        check(answer)
    return str(caught.value)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_and_its_part_named(name):
    part, changes = FAULTS[name]
    assert refused(exercises.check_rcmha, changed(*changes)["RCMHA"]).startswith(part)


@pytest.mark.parametrize("name", MODEL_FAULTS)
def test_a_fault_of_the_model_is_refused_and_its_part_named(name):
    part, changes = MODEL_FAULTS[name]
    assert refused(exercises.check_language_model, changed(*changes)["LanguageModel"]).startswith(part)


def the_other_way(name: str) -> type[nn.Module]:
    """The solution, written differently."""
    changes, extra = EQUIVALENTS[name]
    return changed(*changes, extra=extra)["RCMHA"]


EINSUM = """
def forward(self, x, memory=None):
    context = x if memory is None else torch.cat([memory, x], 1)
    h, d, queries = self.n_heads, self.d, x.shape[1]
    parts = []
    for n, layer in enumerate((self.query, self.key, self.value)):
        z = torch.einsum("bcm,nm->bcn", context, layer.weight) + layer.bias
        z = z.reshape(*z.shape[:2], h, d)
        out = torch.zeros_like(z)
        for back in range(self.convolution.weight.shape[-1]):
            moved = z.roll(back, 1).clone()
            moved[:, :back] = 0
            out = out + moved * self.convolution.weight[n, 0, :, -1 - back]
        parts.append(out + self.convolution.bias[n, 0])
    q, k, v = parts
    q = q[:, -queries:]
    keys, p = k.shape[1], self.position.projection.shape[1]
    i, j = torch.arange(keys - queries, keys).to(x.device), torch.arange(keys).to(x.device)
    delta = i[:, None] - j
    angle = delta.clamp(min=0)[..., None].double() * torch.exp(
        -math.log(10_000.0) * torch.arange(0, p, 2, dtype=torch.float64, device=x.device) / p
    )
    r = torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)
    w = self.position.projection.reshape(h, d, p)
    s = torch.einsum("bihd,bjhd->bhij", q + self.position.content_bias, k)
    s = s + torch.einsum("bihd,hdp,ijp->bhij", q + self.position.position_bias, w, r)
    s = torch.where(delta >= 0, s * d**-0.5, torch.full_like(s, float("-inf")))
    y = torch.einsum("bhij,bjhd->bihd", F.softmax(s, -1), v)
    return F.linear(y.reshape(x.shape), self.output.weight, self.output.bias)
"""

LOOPS = """
def forward(self, x, memory=None):
    context = x if memory is None else torch.cat((memory, x), dim=1)
    past, d = context.shape[1] - x.shape[1], self.d
    texts = []
    for b in range(len(x)):
        heads = []
        for h in range(self.n_heads):
            at = slice(h * d, (h + 1) * d)
            made = []
            for n, layer in enumerate((self.query, self.key, self.value)):
                z = context[b] @ layer.weight[at].T + layer.bias[at]
                rows = []
                for t in range(len(z)):
                    row = self.convolution.bias[n, 0]
                    for back in range(min(3, t + 1)):
                        row = row + self.convolution.weight[n, 0, :, 2 - back] * z[t - back]
                    rows.append(row)
                made.append(torch.stack(rows))
            q, k, v = made
            w, p = self.position.projection[at], self.position.projection.shape[1]
            omega = 10_000.0 ** (-torch.arange(0, p, 2, device=x.device).double() / p)
            out = []
            for i in range(past, len(k)):
                scores = []
                for j in range(i + 1):
                    r = torch.cat((((i - j) * omega).sin(), ((i - j) * omega).cos())).to(x)
                    content = (q[i] + self.position.content_bias[h]) @ k[j]
                    scores.append((content + (q[i] + self.position.position_bias[h]) @ (w @ r)) / d**0.5)
                out.append(torch.stack(scores).softmax(0) @ v[: i + 1])
            heads.append(torch.stack(out))
        texts.append(self.output(torch.cat(heads, dim=1)))
    return torch.stack(texts)
"""

CONV1D = """
def forward(self, qkv):
    three, b, h, t, d = qkv.shape
    image = qkv.permute(1, 2, 0, 4, 3).reshape(b * h, three * d, t)
    y = F.conv1d(image, self.weight.reshape(three * d, 1, -1), self.bias.flatten(), padding=2, groups=three * d)
    return y[..., :t].reshape(b, h, three, d, t).permute(2, 0, 1, 4, 3)
"""

UNFOLD = """
def forward(self, qkv):
    windows = F.pad(qkv, (0, 0, 2, 0)).unfold(3, 3, 1)
    return (windows * self.weight[:, None, :, None]).sum(-1) + self.bias[:, None, :, None]
"""

SDPA = """
def forward(self, x, memory=None):
    context = x if memory is None else torch.cat((memory, x), dim=1)
    qkv = torch.stack([layer(context) for layer in (self.query, self.key, self.value)])
    q, k, v = self.convolution(qkv.unflatten(3, (self.n_heads, self.d)).transpose(2, 3))
    q = q[:, :, k.shape[2] - x.shape[1] :]
    content = (q + self.position.content_bias[:, None]) @ k.transpose(2, 3)
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).triu(k.shape[2] - q.shape[2] + 1)
    bias = ((self.position(q, k) - content) / self.d**0.5).masked_fill(future, float("-inf"))
    y = F.scaled_dot_product_attention(q + self.position.content_bias[:, None], k, v, bias)
    return self.output(y.transpose(1, 2).flatten(2))
"""

FACTORS = """
def waves(first, last, p, like):
    angle = torch.arange(first, last, device=like.device).double()[:, None]
    angle = angle * 10_000.0 ** (-torch.arange(0, p, 2, device=like.device).double() / p)
    return angle.sin().to(like), angle.cos().to(like)


def forward(self, q, k):
    (h, d), p, keys = self.content_bias.shape, self.projection.shape[1], k.shape[2]
    a_s, a_c = ((q + self.position_bias[:, None]) @ self.projection.view(h, d, p)).chunk(2, dim=-1)
    sin_i, cos_i = waves(keys - q.shape[2], keys, p, q)
    phi = torch.cat((a_c * sin_i - a_s * cos_i, a_s * sin_i + a_c * cos_i), dim=-1)
    psi = torch.cat(waves(0, keys, p, q), dim=-1).expand(*k.shape[:2], -1, -1)
    return torch.cat((q + self.content_bias[:, None], phi), -1) @ torch.cat((k, psi), -1).transpose(2, 3)
"""

IN_PLACE = """
def forward(self, x, memory=None):
    context = x.clone() if memory is None else torch.cat((memory, x), dim=1)
    qkv = torch.stack([layer(context) for layer in (self.query, self.key, self.value)])
    q, k, v = self.convolution(qkv.unflatten(3, (self.n_heads, self.d)).transpose(2, 3))
    q = q[:, :, k.shape[2] - x.shape[1] :]
    scores = self.position(q, k)
    scores *= self.d**-0.5
    hidden = torch.arange(k.shape[2], device=x.device) > torch.arange(k.shape[2], device=x.device)[-q.shape[2] :, None]
    scores[..., hidden] = -float("inf")
    scores -= scores.amax(dim=-1, keepdim=True).detach()
    weights = scores.exp()
    self.last_weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for h in range(self.n_heads):
        y[..., h * self.d : (h + 1) * self.d] = self.last_weights[:, h] @ v[:, h]
    return self.output(y)
"""

BY_VIEW = """
def shifted(by_distance):
    queries, keys = by_distance.shape[-2:]
    flat = F.pad(by_distance.flip(-1), (1, 0)).flatten(-2)
    return flat[..., queries:].unflatten(-1, (queries, keys))
"""

EQUIVALENTS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "as it is": ([], ""),
    "einsum, and waves for every pair": ([], EINSUM + "RCMHA.forward = forward"),
    "loops over texts, heads, queries and keys": ([], LOOPS + "RCMHA.forward = forward"),
    "conv1d": ([], CONV1D + "Convolution.forward = forward"),
    "windows": ([], UNFOLD + "Convolution.forward = forward"),
    "scaled_dot_product_attention": ([], SDPA + "RCMHA.forward = forward"),
    "factors, without a shift": ([], FACTORS + "Position.forward = forward"),
    "in place, softmax by hand, weights kept": ([], IN_PLACE + "RCMHA.forward = forward"),
    "shift by a view": ([(GATHER, "shifted(by_distance)")], BY_VIEW),
    "a number that masks nearly": ([('float("-inf")', "-1e30")], ""),
    "the waves as a buffer": (
        [("# W, of every head", "\n        self.register_buffer('numbers', torch.arange(4096, dtype=torch.float64))"), ("distances = torch.arange(keys, device=q.device, dtype=torch.float64)", "distances = self.numbers[:keys].double()")],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_another_way_of_writing_it_passes(name):
    assert exercises.check_rcmha(the_other_way(name)).startswith("Right")


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_another_way_of_writing_its_attention_passes_in_the_model(name):
    changes, extra = EQUIVALENTS[name]
    assert exercises.check_language_model(changed(*changes, extra=extra)["LanguageModel"]).startswith("Right")


class Subclass(attention.MultiHeadAttention):
    def __init__(self, d_model, n_heads):
        part = attention.rcmha(d_model, n_heads)
        super().__init__(d_model, n_heads, position=part.position, convolution=part.convolution)


class Wrapper(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.inner = attention.rcmha(d_model, n_heads)

    def forward(self, x, memory=None):
        return self.inner(x, memory)


class Hidden(rcmha_in_one_file.RCMHA):
    """Has parameters of its own, and lets a module outside the parameters do the work."""

    def __init__(self, d_model, n_heads):
        super().__init__(d_model, n_heads)
        self.inner = [attention.rcmha(d_model, n_heads).double()]

    def forward(self, x, memory=None):
        self.inner[0].load_state_dict(self.state_dict())
        return self.inner[0].to(x)(x, memory)


class Borrowing(rcmha_in_one_file.RCMHA):
    def forward(self, x, memory=None):
        context = x if memory is None else torch.cat((memory, x), dim=1)
        qkv = torch.cat([layer(context) for layer in (self.query, self.key, self.value)], dim=-1)
        taps = self.convolution.weight.expand(-1, self.n_heads, -1, -1).flatten(0, 2)
        bias = self.convolution.bias.expand(-1, self.n_heads, -1).flatten()
        qkv = convolution.causal_depthwise_convolution(qkv, taps, bias)
        qkv = qkv.unflatten(2, (3, self.n_heads, self.d)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0][:, :, k_from(context, x) :], qkv[1], qkv[2]
        scores = self.position(q, k) / self.d**0.5
        future = ~attention.causal_mask(q.shape[2], k.shape[2], x.device)
        y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.output(y.transpose(1, 2).flatten(2))


def k_from(context, x):
    return context.shape[1] - x.shape[1]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (attention.rcmha, "package's"),
        (attention.mha, "package's"),
        (Subclass, "package's MultiHeadAttention"),
        (Wrapper, "package's MultiHeadAttention"),
        (Hidden, "package's"),
        (Borrowing, "package's causal_depthwise_convolution"),
    ],
)
def test_what_is_the_package_s_is_refused(theirs, said):
    assert said in refused(exercises.check_rcmha, theirs)


def test_a_model_around_the_package_s_attention_is_refused():
    scope = changed(
        (", FeedForward(d_model, d_ff)", ", FeedForward(d_model, d_ff)  # "),
        ("RCMHA(d_model, n_heads),", "rcmha(d_model, n_heads),"),
    )
    scope["rcmha"] = attention.rcmha
    assert "package's MultiHeadAttention" in refused(exercises.check_language_model, scope["LanguageModel"])
    assert "package's LanguageModel" in refused(
        exercises.check_language_model,
        lambda v, d, h, f, n, m=0: LanguageModel(
            Config(vocabulary=v, d_model=d, n_heads=h, d_ff=f, layers=n, memory=m)
        ),
    )


ONE = changed()["RCMHA"](16, 2)


class Shared(nn.Module):
    """All of its modules are one."""

    one: ClassVar[dict[tuple[int, int], nn.Module]] = {}

    def __new__(cls, *size):
        return cls.one.setdefault(size, rcmha_in_one_file.RCMHA(*size))


class StrangeError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raising(*_):
    raise StrangeError


ODD = {
    "a module, not a class": (ONE, "give the class itself"),
    "no class": (3, "give the class itself"),
    "nothing": (None, "give the class itself"),
    "no module": (lambda d, h: "RCMHA", "expected an nn.Module, found str"),
    "nothing made": (lambda d, h: None, "returned nothing"),
    "other arguments": (nn.Identity().forward, "It must be made with d_model 8, n_heads 1"),
    "an error without words": (raising, "StrangeError"),
    "shared": (Shared, "share weights"),
    "a pair": (changed((RETURN, RETURN.replace("return ", "return None, ")))["RCMHA"], "expected a tensor, found tuple"),
    "numbers of numpy": (changed((RETURN, RETURN + ".detach().numpy()"))["RCMHA"], "expected a tensor, found ndarray"),
    "detached": (changed((RETURN, RETURN + ".detach()"))["RCMHA"], "no gradient reaches anything"),
    "another shape": (changed((RETURN, RETURN + "[:, -1]"))["RCMHA"], "expected shape"),
    "half precision": (changed((RETURN, RETURN + ".half()"))["RCMHA"], "expected outputs in torch.float64"),
    "complex": (changed((RETURN, RETURN + ".to(torch.complex128)"))["RCMHA"], "complex"),
    "memory is not optional": (changed(extra="f = RCMHA.forward\nRCMHA.forward = lambda self, x, memory: f(self, x, memory)")["RCMHA"], "missing 1 required"),
    "state_dict renamed": (changed(extra="RCMHA.state_dict = lambda self: {'all': 1}")["RCMHA"], "state_dict"),
    "parameters rewritten": (changed((LAST, LAST + "\n        self.query.weight.data.mul_(1.001)"))["RCMHA"], ""),
    "counts its calls": (changed((LAST, LAST + "\n        self.calls = getattr(self, 'calls', 0) + 1\n        q = q * (self.calls < 2)"))["RCMHA"], ""),
    "gradients broken by an edit": (changed((MASKED, MASKED + "\n        weights.mul_(1)"))["RCMHA"], "gradient cannot be formed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_whatever_is_given_the_check_says_why_not(name, unchecked):
    answer, said = ODD[name]
    assert said in refused(exercises.check_rcmha, answer)


def test_the_check_leaves_random_numbers_and_profiles_as_they_are():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.no_grad():
        exercises.check_rcmha(changed()["RCMHA"])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(4), expected)
    assert sys.getprofile() is None


def test_a_right_class_passes_in_ten_seconds():
    began = time.perf_counter()
    exercises.check_rcmha(changed()["RCMHA"])
    exercises.check_language_model(changed()["LanguageModel"])
    assert time.perf_counter() - began < 10


def test_a_memory_may_have_any_form():
    keep_one_tensor = changed(
        (LOGITS, "return self.output(self.norm(x)), torch.stack(kept) if self.memory else None"),
        ("past = None if memory is None else memory[n]", "past = None if memory is None else memory[n]"),
    )
    assert exercises.check_language_model(keep_one_tensor["LanguageModel"]).startswith("Right")


# The solution itself.


def paired(**changes: int) -> tuple[nn.Module, LanguageModel]:
    """The solution's model as it starts, and the package's with the same weights, in float64."""
    numbers = {"vocabulary": 13, "d_model": 24, "n_heads": 3, "d_ff": 40, "layers": 2, "memory": 6} | changes
    yours, theirs = (
        rcmha_in_one_file.LanguageModel(*numbers.values()).double(),
        LanguageModel(Config(**numbers)).double(),
    )
    theirs.load_state_dict(yours.state_dict())
    return yours, theirs


def test_the_solution_stands_alone_and_is_short():
    lines = SOURCE.splitlines()
    assert len(lines) <= 150
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert {line.split()[1].split(".")[0] for line in imports} == {"math", "torch"}


def test_the_solution_is_the_package_s_attention():
    yours, theirs = rcmha_in_one_file.RCMHA(24, 3).double(), attention.rcmha(24, 3).double()
    for parameter in yours.parameters():
        nn.init.normal_(parameter, std=0.4)
    theirs.load_state_dict(yours.state_dict())
    for time_, past in ((1, 0), (9, 0), (1, 7), (30, 50)):
        x, memory = (
            exercises.random(2, time_, 24).requires_grad_(),
            exercises.random(2, past, 24, seed=1).requires_grad_(),
        )
        found = [module(x, memory if past else None) for module in (yours, theirs)]
        gradients = []
        for y, module in zip(found, (yours, theirs), strict=True):
            named = dict(module.named_parameters())
            wanted = [x, *([memory] if past else []), *(named[name] for name in sorted(named))]
            gradients.append(torch.autograd.grad(y.square().sum(), wanted))
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max().clamp(min=1)))


def test_the_solution_starts_as_the_package_does():
    yours, theirs = (
        rcmha_in_one_file.LanguageModel(65, 64, 4, 256, 2),
        LanguageModel(Config(d_model=64, n_heads=4, d_ff=256, layers=2)),
    )
    for name, parameter in theirs.named_parameters():
        mine = yours.get_parameter(name)
        if len(parameter.unique()) <= 2:
            assert torch.equal(mine, parameter), name
        else:
            few = 0.3 if parameter.numel() < 1000 else 0.1
            assert mine.std().item() == pytest.approx(parameter.std().item(), rel=few), name
            assert abs(mine.mean().item()) < 2 * few * parameter.std().item() + 0.01, name


def test_the_solution_trains_as_the_package_does():
    """50 steps over segments with memory: the two curves are one."""
    models = paired()
    text = torch.randint(13, (4, 8 * 51), generator=torch.Generator().manual_seed(1)).cumsum(1) % 13
    curves = []
    for model in models:
        optimizer, memory, curve = torch.optim.AdamW(model.parameters(), lr=3e-3), None, []
        for step in range(50):
            ids, targets = text[:, 8 * step : 8 * step + 8], text[:, 8 * step + 1 : 8 * step + 9]
            logits, memory = model(ids, memory)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=1e-9)
    assert curves[0][-1] < curves[0][0]


# The check, weakened: what each part of it is there for.


def named(answer: str, fault: str, table: dict) -> bool:
    """Whether the fault is refused and its part named."""
    part, changes = table[fault]
    check = exercises.check_rcmha if answer == "RCMHA" else exercises.check_language_model
    try:
        return not check(changed(*changes)[answer])
    except AssertionError as error:
        return str(error).startswith(part)


WEAKENED = {
    "gradients": ("W cut from the gradient", _stages.Trial, "gradients", lambda *_: ("", "")),
    "stages with memory": ("memory ignored", attention_check, "RCMHA_STAGES", attention_check.RCMHA_STAGES[:11]),
    "stages with kernels": (
        "kernel bias added at every tap",
        attention_check,
        "RCMHA_STAGES",
        tuple(stage for stage in attention_check.RCMHA_STAGES if "convolution" in stage.silent),
    ),
    "the tolerance": ("base 1000", _stages.Trial, "difference", partialmethod(_stages.Trial.difference, tolerance=1e3)),
    "inputs untouched": ("input changed in place", _manners, "untouched", lambda *_: None),
    "another device": ("mask on the CPU", _manners, "on_no_device", lambda *_: None),
    "names": ("a parameter too many", attention_check, "require_names", lambda *_: None),
}


@pytest.mark.parametrize("name", WEAKENED)
def test_weakened_the_check_does_not_name_a_fault(name, monkeypatch):
    fault, holder, attribute, weaker = WEAKENED[name]
    assert named("RCMHA", fault, FAULTS)
    monkeypatch.setattr(holder, attribute, weaker)
    assert not named("RCMHA", fault, FAULTS)


@pytest.mark.parametrize("stage", attention_check.RCMHA_STAGES[1:-1], ids=lambda stage: stage.part)
def test_every_stage_is_needed_to_name_its_faults(stage, monkeypatch):
    fault = [fault for fault, (part, _) in FAULTS.items() if stage.part.startswith(part)][-1]
    assert named("RCMHA", fault, FAULTS)
    left = tuple(other for other in attention_check.RCMHA_STAGES if other is not stage)
    monkeypatch.setattr(attention_check, "RCMHA_STAGES", left)
    monkeypatch.setitem(FAULTS, fault, (f"{stage.part}: ", FAULTS[fault][1]))  # no part that only begins so
    assert not named("RCMHA", fault, FAULTS)


def test_weakened_the_check_lets_the_package_s_module_pass(monkeypatch):
    assert "package's" in refused(exercises.check_rcmha, attention.rcmha)
    monkeypatch.setattr(attention_check, "only_the_readers", lambda *_: None)
    assert exercises.check_rcmha(attention.rcmha).startswith("Right")


@pytest.mark.parametrize("fault", ["memory not cut from the gradient", "memory keeps all", "memory not normed"])
def test_without_stages_of_memory_the_model_s_faults_pass(fault, monkeypatch):
    assert named("LanguageModel", fault, MODEL_FAULTS)
    kept = tuple(stage for stage in model_check.MODEL_STAGES if not stage.part.startswith("memory"))
    monkeypatch.setattr(model_check, "MODEL_STAGES", kept)
    assert not named("LanguageModel", fault, MODEL_FAULTS)


OPTIMISED = """
from rcmha_lite import exercises
assert False, "asserts are on"
exec(open("tests/test_check_rcmha.py").read().split("def refused")[0])
refused = 0
for check, table, name in (
    (exercises.check_rcmha, FAULTS, "RCMHA"),
    (exercises.check_language_model, MODEL_FAULTS, "LanguageModel"),
):
    check(changed()[name])
    for part, changes in list(table.values())[::15]:
        try:
            check(changed(*changes)[name])
        except AssertionError as error:
            refused += str(error).startswith(part)
print(refused)
"""


def test_without_asserts_the_same_is_refused():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", OPTIMISED]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONOPTIMIZE": "1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.split()[-1:] == [str(len([*FAULTS][::15]) + len([*MODEL_FAULTS][::15]))], run.stdout + run.stderr


HEADS_ONLY = [
    ("self.position, self.convolution = Position(n_heads, self.d), Convolution(self.d)", "pass"),
    (CONVOLVE, "q, k, v = qkv"),
    (SCORES, "scores = q @ k.transpose(2, 3) / math.sqrt(self.d)"),
]
KERNELS_ONLY = [
    (
        "self.position, self.convolution = Position(n_heads, self.d), Convolution(self.d)",
        "self.convolution = Convolution(self.d)",
    ),
    (SCORES, "scores = q @ k.transpose(2, 3) / math.sqrt(self.d)"),
]
NO_MEMORY = [
    (JOIN, "context = x"),
    (
        "def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:\n        queries",
        "def forward(self, x: Tensor) -> Tensor:\n        queries",
    ),
]
UNFINISHED = {"heads": HEADS_ONLY, "kernels": KERNELS_ONLY, "distances": NO_MEMORY}


@pytest.mark.parametrize("until", UNFINISHED)
def test_an_unfinished_class_is_right_until_its_last_part(until):
    """And refused where it ends: what comes next is named, as the parameters that are missing or as memory."""
    kind = changed(*UNFINISHED[until])["RCMHA"]
    assert exercises.check_rcmha(kind, until=until).startswith(f"Right, until the {until}: ")
    later = list(attention_check.UNTIL)[list(attention_check.UNTIL).index(until) + 1]
    with pytest.raises(AssertionError, match="is missing" if until != "distances" else "memory"):
        exercises.check_rcmha(kind, until=later)


@pytest.mark.parametrize(
    ("until", "fault"),
    [
        ("heads", "mask after the softmax"), ("heads", "no root of d"), ("heads", "heads merged without transposing"),
        ("heads", "softmax over the queries"), ("heads", "batch mixed"), ("heads", "own position hidden"),
        ("kernels", "kernels reversed"), ("kernels", "padded on both sides"), ("kernels", "keys not convolved"),
        ("kernels", "kernel bias forgotten"), ("kernels", "one kernel for all three"),
        ("distances", "no shift"), ("distances", "cosines first"), ("distances", "v missing"),
        ("distances", "u and v exchanged"), ("distances", "kernels after u"),
    ],
)  # fmt: skip
def test_a_fault_is_seen_as_soon_as_its_part_is_there(until, fault):
    part, edits = FAULTS[fault]
    unfinished = {} if until == "distances" else dict(UNFINISHED[until])
    for old, new in edits:
        unfinished[old] = new if old not in unfinished else new.replace("self.position(q, k)", "q @ k.transpose(2, 3)")
    with pytest.raises(AssertionError, match=part):
        exercises.check_rcmha(changed(*unfinished.items())["RCMHA"], until=until)


def test_another_end_is_refused_in_words():
    with pytest.raises(AssertionError, match="until: expected one of heads, kernels, distances, memory, found 'all'"):
        exercises.check_rcmha(rcmha_in_one_file.RCMHA, until="all")
