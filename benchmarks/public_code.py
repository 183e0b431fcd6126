"""RCMHA as its authors' public code computes it, transcribed from its formulas: the yardstick of the benchmarks.

Time first, one product a projection, learned tables of 8192 rows whose used part is sliced out, a mask made at every
call, scores shifted by padding; segment by segment, the query convolution starting afresh.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.config import Config

MAX_DISTANCE = 4096  # each way: a table has twice as many rows


class DepthwiseConv(nn.Module):
    """One kernel of three taps a head channel, shared by the heads: ``[time, batch, heads, d_head]``."""

    def __init__(self, d_head: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(d_head, d_head, 3, padding=2, groups=d_head)

    def forward(self, x: Tensor) -> Tensor:
        time, batch, heads, d_head = x.shape
        x = x.permute(1, 2, 3, 0).reshape(batch * heads, d_head, time)
        x = self.conv(x)[:, :, :-2]
        return x.view(batch, heads, d_head, time).permute(3, 0, 1, 2)


class Attention(nn.Module):
    """score(i, j) = ((q_i + u)·k_j + q_i·R[P − δ] + S[P − δ]) / √d_head, P = 4096."""

    def __init__(self, heads: int, d_model: int) -> None:
        super().__init__()
        self.heads, self.d_head = heads, d_model // heads
        self.query, self.key = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.value, self.output = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.q_conv, self.k_conv, self.v_conv = (DepthwiseConv(self.d_head) for _ in range(3))
        self.key_pos = nn.Parameter(torch.zeros(2 * MAX_DISTANCE, heads, self.d_head))
        self.key_pos_bias = nn.Parameter(torch.zeros(2 * MAX_DISTANCE, heads))
        self.query_pos_bias = nn.Parameter(torch.zeros(heads, self.d_head))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, self.d_head)

        q = self.q_conv(split(self.query(x)))
        k = self.k_conv(split(self.key(context)))
        v = self.v_conv(split(self.value(context)))
        queries, keys = len(q), len(k)
        rows = slice(MAX_DISTANCE - keys, MAX_DISTANCE + queries)
        r, s = self.key_pos[rows], self.key_pos_bias[rows]
        content = torch.einsum("ibhd,jbhd->ijbh", q + self.query_pos_bias, k)
        position = torch.einsum("ibhd,jhd->ijbh", q, r) + s[None, :, None, :]
        scores = (content + shift_right(position)[:, -keys:]) * self.d_head**-0.5
        mask = torch.cat((torch.ones(queries, keys - queries), torch.tril(torch.ones(queries, queries))), dim=1)
        scores = scores.masked_fill(mask[:, :, None, None] == 0, float("-inf"))
        y = torch.einsum("ijbh,jbhd->ibhd", scores.softmax(dim=1), v)
        return self.output(y.reshape(*x.shape))


def shift_right(x: Tensor) -> Tensor:
    """Row i slides i places to the right: pad a column, read in rows one shorter."""
    padded = torch.cat((x, x.new_zeros(x.shape[0], 1, *x.shape[2:])), dim=1)
    slid = padded.view(x.shape[1] + 1, x.shape[0], *x.shape[2:])
    return slid[:-1].view_as(x)


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model))
        self.attention = Attention(config.n_heads, config.d_model)
        self.inner, self.outer = (nn.Linear(config.d_model, config.d_ff), nn.Linear(config.d_ff, config.d_model))

    def forward(self, x: Tensor, memory: Tensor | None) -> Tensor:
        normed = self.attention_norm(x)
        context = normed if memory is None else torch.cat((self.attention_norm(memory), normed), dim=0)
        x = x + self.attention(normed, context)
        return x + self.outer(F.relu(self.inner(self.feed_forward_norm(x))))


class Model(nn.Module):
    """ids ``[time, batch]`` and a list of memories to logits ``[time, batch, vocabulary]`` and new memories.

    It starts as the public code does: PyTorch's own weights and biases, and all layers as copies of one.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memory_length = config.memory
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        layer = Layer(config)
        self.layers = nn.ModuleList(deepcopy(layer) for _ in range(config.layers))
        self.norm, self.output = nn.LayerNorm(config.d_model), nn.Linear(config.d_model, config.vocabulary)

    def forward(self, ids: Tensor, memories: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = self.embedding(ids)
        kept = []
        for n, layer in enumerate(self.layers):
            memory = memories[n] if memories else None
            kept.append((x if memory is None else torch.cat((memory, x), dim=0)).detach()[-self.memory_length :])
            x = layer(x, memory)
        return self.output(self.norm(x)), kept
