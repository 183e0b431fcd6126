"""RCMHA and the language model around it, whole, in one file that needs torch alone: to read, and to take along.

Letters of the shapes: batch b, heads h, d = d_model / h, time t of x, time c of memory and x together, p waves.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Module):
    """Each channel of a head mixed with its own past: y_t = bias + Σ_s weight_s · x_(t − (taps − 1) + s)."""

    def __init__(self, d: int, taps: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 1, d, taps))  # of q, k and v; 1: all heads share it
        self.bias = nn.Parameter(torch.empty(3, 1, d))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -1 / math.sqrt(taps), 1 / math.sqrt(taps))

    def forward(self, qkv: Tensor) -> Tensor:
        time, taps = qkv.shape[3], self.weight.shape[-1]
        padded = F.pad(qkv, (0, 0, taps - 1, 0))  # [3, b, h, taps − 1 + c, d]: zeros before the first position
        y: Tensor = self.bias[:, None, :, None]  # [3, 1, 1, 1, d]
        for s in range(taps):
            y = y + self.weight[:, None, :, None, :, s] * padded[:, :, :, s : s + time]  # [3, b, h, c, d]
        return y


class Position(nn.Module):
    """Scores that know the distance: (q_i + u)·k_j + (q_i + v)·W r_(i − j), r_δ being sines and cosines of δ."""

    def __init__(self, heads: int, d: int, waves: int = 32) -> None:
        super().__init__()
        self.content_bias = nn.Parameter(torch.zeros(heads, d))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, d))  # v
        self.projection = nn.Parameter(torch.randn(heads * d, waves) / math.sqrt(waves))  # W, of every head

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        (heads, d), waves = self.content_bias.shape, self.projection.shape[1]
        queries, keys = q.shape[2], k.shape[2]  # t and c
        distances = torch.arange(keys, device=q.device, dtype=torch.float64)  # 0 … c − 1
        frequencies = 10_000.0 ** (-torch.arange(0, waves, 2, device=q.device, dtype=torch.float64) / waves)
        angles = distances[:, None] * frequencies  # [c, p/2]
        r = torch.cat((angles.sin(), angles.cos()), dim=1).to(q)  # [c, p]: sines first, then cosines
        by_head = (r @ self.projection.T).view(keys, heads, d).transpose(0, 1)  # [h, c, d]: W r of each distance

        content = (q + self.content_bias[:, None]) @ k.transpose(2, 3)  # [b, h, t, c], column j
        by_distance = (q + self.position_bias[:, None]) @ by_head.transpose(1, 2)  # [b, h, t, c], column δ
        i = torch.arange(keys - queries, keys, device=q.device)  # the queries are the last of the keys
        delta = i[:, None] - torch.arange(keys, device=q.device)  # [t, c]; after the query below 0, to be masked
        return content + by_distance.gather(3, delta.clamp(min=0).expand_as(by_distance))  # column j


class RCMHA(nn.Module):
    """Relative convolutional multi-head attention of x [b, t, d_model], after a memory [b, past, d_model]."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d = n_heads, d_model // n_heads
        self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.value, self.output = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.position, self.convolution = Position(n_heads, self.d), Convolution(self.d)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        queries = x.shape[1]
        context = x if memory is None else torch.cat((memory, x), dim=1)  # [b, c, d_model]
        qkv = torch.stack([layer(context) for layer in (self.query, self.key, self.value)])  # [3, b, c, d_model]
        qkv = qkv.unflatten(3, (self.n_heads, self.d)).transpose(2, 3)  # [3, b, h, c, d]
        q, k, v = self.convolution(qkv)  # each [b, h, c, d]
        q = q[:, :, k.shape[2] - queries :]  # [b, h, t, d]: convolved over the memory, which then asks nothing

        scores = self.position(q, k) / math.sqrt(self.d)  # [b, h, t, c]
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(k.shape[2] - queries + 1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=3)
        y = weights @ v  # [b, h, t, d]
        return self.output(y.transpose(1, 2).flatten(2))  # [b, t, d_model]


class FeedForward(nn.Module):
    """W_out · max(W_in · x + b_in, 0)² + b_out, at each position alone."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.input(x)).square())  # d_model → d_ff → d_model


class Block(nn.Module):
    """What attention makes of the norm is added to the stream, then what the feed-forward makes of its norm."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention, self.feed_forward = RCMHA(d_model, n_heads), FeedForward(d_model, d_ff)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        normed = None if memory is None else self.attention_norm(memory)
        x = x + self.attention(self.attention_norm(x), normed)
        return x + self.feed_forward(self.feed_forward_norm(x))


def start(module: nn.Module) -> None:
    """Matrices normal, of standard deviation 1 / √inputs, and biases zero; but a block starts as the identity."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        nn.init.zeros_(module.bias)
    if isinstance(module, RCMHA | FeedForward):
        nn.init.zeros_(module.output.weight)


class LanguageModel(nn.Module):
    """Logits for the character after each of ids [b, t], and the memory to give with the next segment of the text.

    The memory holds, for each block, what entered it at the last ``memory`` positions, cut off from the gradient.
    """

    def __init__(self, vocabulary: int, d_model: int, n_heads: int, d_ff: int, layers: int, memory: int = 0) -> None:
        super().__init__()
        self.memory = memory
        self.embedding = nn.Embedding(vocabulary, d_model)  # starts normal, with standard deviation 1
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(layers))
        self.norm, self.output = nn.LayerNorm(d_model), nn.Linear(d_model, vocabulary)
        self.apply(start)

    def forward(self, ids: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor] | None]:
        x, kept = self.embedding(ids), []  # [b, t, d_model]
        for n, block in enumerate(self.blocks):
            past = None if memory is None else memory[n]  # [b, past, d_model]
            context = x if past is None else torch.cat((past, x), dim=1)
            kept.append(context.detach()[:, max(context.shape[1] - self.memory, 0) :])  # [b, ≤ memory, d_model]
            x = block(x, past)
        return self.output(self.norm(x)), kept if self.memory else None  # [b, t, vocabulary]
