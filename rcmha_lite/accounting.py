"""What a model costs: parameters by part, floating-point operations, bytes kept for backward, memory on a GPU."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rcmha_lite.model import LanguageModel

PARTS = {
    "embedding": (".embedding.",),
    "attention projections": (".attention.query.", ".attention.key.", ".attention.value.", ".attention.output."),
    "convolution": (".attention.convolution.",),
    "relative positions": (".attention.position.",),
    "absolute positions": ("position.table",),
    "feed-forward": (".feed_forward.",),
    "norms": ("norm.",),
    "output layer": (".output.",),
}
"""Parts of a model and what the names of their parameters hold; the first part that fits counts."""


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    """Number of parameters in each part that has any, "other" for parts of one's own. They sum to the model's."""
    counts = dict.fromkeys([*PARTS, "other"], 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, words in PARTS.items() if any(word in "." + name for word in words)), "other")
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def flops(model: LanguageModel, ids: Int[Tensor, "batch time"], *, backward: bool = False) -> int:
    """Multiplications and additions of matrix products and convolutions in a pass over ``ids``, as PyTorch counts them.

    A multiply-add counts as two. Masked scores count like the others; element-wise work (softmax, norms,
    activations) does not count.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # PyTorch does not count inside its fused kernel for CPUs
    with plain, FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits, _ = model(ids)
        if backward:
            torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    # PyTorch counts the backward pass of a depth-wise convolution as if it mixed channels: it is two forward ones.
    counts["aten.convolution_backward"] = 2 * counts.get("aten.convolution", 0) if backward else 0
    return int(sum(counts.values()))


def saved_bytes(run: Callable[[], Tensor], *, but_not: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct arrays that autograd keeps until the backward pass of ``run()``.

    Exact, and the same on every machine: each array that PyTorch saves passes a hook, and arrays that share memory
    count once. ``but_not`` names arrays that exist anyway, such as inputs and parameters. ValueError where
    nothing requires a gradient.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in but_not}
    kept: dict[int, Tensor] = {}  # holding them keeps their addresses from being used again

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in anyway:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        result = run()
    if not result.requires_grad:
        raise ValueError("nothing is kept: no input of the computation requires a gradient")
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_cuda_bytes(run: Callable[[], object]) -> int:
    """The most memory that PyTorch's tensors took on the GPU during ``run()``. RuntimeError without a GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device: on a CPU see saved_bytes, and manifest.process_cost")
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def relative_attention_saved_bytes(batch: int, heads: int, time: int, d_head: int, d_position: int) -> int:
    """What ``saved_bytes`` finds for factorised relative attention in float32: linear in ``time``.

    Queries, keys, padded values and output are d_head + d_position wide; the fused kernel also keeps one number a
    query (the log of its softmax's sum), and the factorisation keeps its table of sinusoids.
    """
    return 4 * (batch * heads * time * (4 * (d_head + d_position) + 1) + time * d_position)
