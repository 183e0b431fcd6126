"""Causal depth-wise convolution of the query, key and value projections."""

import math
from collections.abc import Callable
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.config import KernelInit


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
    ones differ from head to head (Primer, arXiv 2109.08668).

    Args:
        n_heads, d_head: heads, and channels of each.
        kernel_size: taps, at least 1; the last multiplies the current position.
        shared, bias: one set of kernels for all heads; a bias for each kernel.
        projections: which of ``q``, ``k`` and ``v`` are convolved; the others pass through.
        init: ``identity`` (1 on the current position, 0 on the past), ``primer`` (0.5 on the current position and, where
            there are others, 0.5 / kernel_size on each of these) or ``pytorch`` (uniform in ±1/√kernel_size, biases too,
            as ``nn.Conv1d``). Only ``pytorch`` draws random numbers.
        generator: to draw them from; PyTorch's own unless given.

    ValueError without a tap, and for other projections or another ``init``.
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
    ) -> None:
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size {kernel_size} has no tap: give 1 or more")
        if projections not in ("q", "k", "v", "qk", "qv", "kv", "qkv"):
            raise ValueError(f"projections {projections!r} must be some of q, k and v, in that order, such as 'kv'")
        if init not in get_args(KernelInit):
            raise ValueError(f"init {init!r} is not one of {', '.join(get_args(KernelInit))}")
        self.n_heads, self.d_head, self.projections, self.init = n_heads, d_head, projections, init
        kernels = (len(projections), 1 if shared else n_heads, d_head)
        self.weight = nn.Parameter(torch.empty(*kernels, kernel_size))
        self.bias = nn.Parameter(torch.empty(kernels)) if bias else None
        self.reset_parameters(generator)

    @property
    def kernel_size(self) -> int:
        """Taps, the current position included."""
        return self.weight.shape[-1]

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
        self.weight[..., -1] = 0.5 if primer else 1.0
        if self.bias is not None:
            self.bias.zero_()

    def taps(self, projections: str = "qkv") -> tuple[Float[Tensor, "channels kernel"], Tensor | None]:
        """The kernels and biases of ``projections`` laid out channel by channel, heads repeated.

        ValueError for other letters than q, k and v.
        """
        if not projections or set(projections) - set("qkv"):
            raise ValueError(f"projections {projections!r} must be some of q, k and v, such as 'kv'")
        identity = torch.zeros_like(self.weight[0])
        identity[..., -1] = 1
        weight, bias = [], []
        for name in projections:
            at = self.projections.find(name)
            weight.append(self.weight[at] if at >= 0 else identity)
            if self.bias is not None:
                bias.append(self.bias[at] if at >= 0 else torch.zeros_like(self.bias[0]))
        heads = (self.n_heads, -1, -1)
        taps = torch.cat([w.expand(*heads).flatten(0, 1) for w in weight])
        return taps, torch.cat([b.expand(self.n_heads, -1).flatten() for b in bias]) if bias else None

    def forward(
        self,
        x: Float[Tensor, "batch time channels"],
        projections: str = "qkv",
        history: Float[Tensor, "batch past channels"] | None = None,
    ) -> Float[Tensor, "batch time channels"]:
        """Convolve ``projections``, laid side by side in the channels, each with its heads side by side."""
        if history is not None and self.reaches(history, projections) and x.shape[1] == 1:
            return self.next(torch.cat((history, x), dim=1))
        return causal_depthwise_convolution(x, *self.taps(projections), history)

    def reaches(self, history: Tensor, projections: str = "qkv") -> bool:
        """Whether ``next`` can be asked: all that the kernels reach has been, and every projection is convolved."""
        whole = history.shape[1] == self.kernel_size - 1 and projections == self.projections
        return whole and not torch.compiler.is_compiling()

    def next(self, rows: Float[Tensor, "batch kernel channels"]) -> Float[Tensor, "batch 1 channels"]:
        """``forward`` at the last of ``kernel_size`` positions, with the kernels as they are stored."""
        by_head = rows.unflatten(2, (len(self.projections), self.n_heads, self.d_head))
        y = (by_head * self.weight.movedim(-1, 0)).sum(dim=1, keepdim=True)
        return (y if self.bias is None else y + self.bias).flatten(2)
