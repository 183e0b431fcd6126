"""Depth-wise convolution, causal unless centred, of the query, key and value projections."""

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.config import KernelInit, key_value_heads


def causal_depthwise_convolution(
    x: Float[Tensor, "batch time channels"],
    taps: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
    history: Float[Tensor, "batch past channels"] | None = None,
) -> Float[Tensor, "batch time channels"]:
    """Mix each channel with its own recent past, and with nothing else.

        y[t, c] = bias[c] + Σ_s taps[c, s] · x[t − (kernel − 1) + s, c],   s = 0 … kernel − 1

    The last tap multiplies the current position. Before the first position stand the last kernel − 1 rows of
    ``history``, or zeros where there is none.
    """
    if not x.shape[1]:
        return x
    past = taps.shape[1] - 1
    context = x if history is None else torch.cat((history, x), dim=1)
    known = context[:, max(context.shape[1] - x.shape[1] - past, 0) :]
    zeros = x.new_zeros(x.shape[0], past + x.shape[1] - known.shape[1], x.shape[2])
    padded = torch.cat((zeros, known), dim=1)  # cheaper than F.pad, whose backward copies
    # As an image of height one: on a CPU, conv2d's channels-last kernel is several times faster than conv1d's.
    image = padded.transpose(1, 2).unsqueeze(2)
    return F.conv2d(image, taps[:, None, None], bias, groups=taps.shape[0]).squeeze(2).transpose(1, 2)


def centred_depthwise_convolution(
    x: Float[Tensor, "batch time channels"],
    taps: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch time channels"]:
    """``causal_depthwise_convolution`` with the middle tap on the current position, so that half of them look ahead.

    y[t, c] = bias[c] + Σ_s taps[c, s] · x[t − (kernel − 1) / 2 + s, c],   zeros before and after the text
    """
    ahead = taps.shape[1] // 2
    return causal_depthwise_convolution(F.pad(x, (0, 0, 0, ahead)), taps, bias)[:, ahead:]


@torch.no_grad()
def filled(x: Tensor, draw: Callable[[Tensor], Tensor], generator: torch.Generator | None) -> None:
    """Draw ``x`` where the generator's numbers are, and bring them to where ``x`` is: on a GPU those of a CPU, too."""
    if generator is None or x.device.type in (generator.device.type, "meta"):
        draw(x)
    else:
        x.copy_(draw(torch.empty(x.shape, dtype=x.dtype, device=generator.device)))


class HeadConvolution(nn.Module):
    """The part that makes MHA into MDHA: short kernels over the projected queries, keys and values.

    Each channel of a head has its own kernel; ``shared`` kernels serve every head (RCMHA's public code), separate
    ones differ from head to head (Primer, arXiv 2109.08668). Where there are fewer heads of keys and values than of
    queries, separate kernels are stored in one row: those of the first projection's heads, then of the next.

    Args:
        n_heads, d_head: heads, and channels of each.
        kernel_size: taps, at least 1; the last multiplies the current position.
        n_kv_heads: heads of keys and values; as many as of queries for 0 or None.
        centred: the middle tap multiplies the current position instead, so that outputs depend on what follows, too.
        shared, bias: one set of kernels for all heads; a bias for each kernel.
        projections: which of ``q``, ``k`` and ``v`` are convolved; the others pass through.
        init: ``identity`` (1 on the current position, 0 on the past), ``primer`` (0.5 on the current position and, where
            there are others, 0.5 / kernel_size on each of these) or ``pytorch`` (uniform in ±1/√kernel_size, biases too,
            as ``nn.Conv1d``). Only ``pytorch`` draws random numbers.
        generator: to draw them from; PyTorch's own unless given.

    ValueError without a tap, for heads that do not divide, for other projections or another ``init``, and for centred
    kernels without a middle or with a history: what follows is unknown in a stream.
    """

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        kernel_size: int = 3,
        *,
        shared: bool = True,
        bias: bool = True,
        projections: str = "qkv",
        init: KernelInit = "identity",
        generator: torch.Generator | None = None,
        n_kv_heads: int | None = None,
        centred: bool = False,
    ) -> None:
        super().__init__()
        if centred and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} has no middle tap: centred kernels need an odd number")
        if kernel_size < 1:
            raise ValueError(f"kernel_size {kernel_size} has no tap: give 1 or more")
        if projections not in ("q", "k", "v", "qk", "qv", "kv", "qkv"):
            raise ValueError(f"projections {projections!r} must be some of q, k and v, in that order, such as 'kv'")
        if init not in get_args(KernelInit):
            raise ValueError(f"init {init!r} is not one of {', '.join(get_args(KernelInit))}")
        self.n_heads, self.d_head, self.projections, self.init = n_heads, d_head, projections, init
        self.n_kv_heads, self.centred = key_value_heads(n_heads, n_kv_heads), centred
        self.rows = [1 if shared else n_heads if name == "q" else self.n_kv_heads for name in projections]
        alike = len(set(self.rows)) == 1
        kernels = (len(projections), self.rows[0], d_head) if alike else (sum(self.rows), d_head)
        self.weight = nn.Parameter(torch.empty(*kernels, kernel_size))
        self.bias = nn.Parameter(torch.empty(kernels)) if bias else None
        self.reset_parameters(generator)

    @property
    def kernel_size(self) -> int:
        """Taps, the current position included."""
        return self.weight.shape[-1]

    @property
    def present(self) -> int:
        """The tap that multiplies the current position."""
        return self.kernel_size // 2 if self.centred else self.kernel_size - 1

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start again as ``init`` says."""
        if self.init == "pytorch":
            bound = 1 / math.sqrt(self.kernel_size)
            for parameter in self.parameters():
                filled(parameter, lambda x: x.uniform_(-bound, bound, generator=generator), generator)
            return
        primer = self.init == "primer" and self.kernel_size > 1
        self.weight.fill_(0.5 / self.kernel_size if primer else 0.0)
        self.weight[..., self.present] = 0.5 if primer else 1.0
        if self.bias is not None:
            self.bias.zero_()

    def taps(self, projections: str = "qkv") -> tuple[Float[Tensor, "channels kernel"], Tensor | None]:
        """The kernels and biases of ``projections`` laid out channel by channel, heads repeated.

        ValueError for other letters than q, k and v.
        """
        if not projections or set(projections) - set("qkv"):
            raise ValueError(f"projections {projections!r} must be some of q, k and v, such as 'kv'")
        stored, biases = self._by_projection(self.weight), self._by_projection(self.bias)
        identity = torch.zeros_like(stored[0][:1])
        identity[..., self.present] = 1
        taps, bias = [], []
        for name in projections:
            at, heads = self.projections.find(name), self.n_heads if name == "q" else self.n_kv_heads
            taps.append((stored[at] if at >= 0 else identity).expand(heads, -1, -1).flatten(0, 1))
            if biases is not None:
                row = biases[at] if at >= 0 else torch.zeros_like(biases[0][:1])
                bias.append(row.expand(heads, -1).flatten())
        return torch.cat(taps), torch.cat(bias) if bias else None

    def _by_projection(self, kernels: Any) -> Any:
        """Weights or biases by projection, each ``[1 or its heads, d_head, …]``; None for none."""
        return kernels if kernels is None or len(set(self.rows)) == 1 else kernels.split(self.rows)

    def forward(
        self,
        x: Float[Tensor, "batch time channels"],
        projections: str = "qkv",
        history: Float[Tensor, "batch past channels"] | None = None,
    ) -> Float[Tensor, "batch time channels"]:
        """Convolve ``projections``, laid side by side in the channels, each with its heads side by side."""
        if self.centred:
            if history is not None:
                raise ValueError("centred kernels reach what follows, unknown in a stream: give the whole text at once")
            return centred_depthwise_convolution(x, *self.taps(projections))
        if history is not None and self.reaches(history, projections) and x.shape[1] == 1:
            return self.next(torch.cat((history, x), dim=1))
        return causal_depthwise_convolution(x, *self.taps(projections), history)

    def reaches(self, history: Tensor, projections: str = "qkv") -> bool:
        """Whether ``next`` can be asked: all that the kernels reach has been, and every projection is convolved."""
        whole = history.shape[1] == self.kernel_size - 1 and projections == self.projections
        return whole and not torch.compiler.is_compiling()

    def next(self, rows: Float[Tensor, "batch kernel channels"]) -> Float[Tensor, "batch 1 channels"]:
        """``forward`` at the last of ``kernel_size`` positions, with the kernels as they are stored."""
        if self.n_kv_heads != self.n_heads:
            taps, bias = self.taps(self.projections)
            y = (rows * taps.T).sum(dim=1, keepdim=True)
            return y if bias is None else y + bias
        by_head = rows.unflatten(2, (len(self.projections), self.n_heads, self.d_head))
        y = (by_head * self.weight.movedim(-1, 0)).sum(dim=1, keepdim=True)
        return (y if self.bias is None else y + self.bias).flatten(2)
