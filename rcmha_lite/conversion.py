"""Weights from and to ``torch.nn.MultiheadAttention``, exactly."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.plain import calls_only_forward

Module = TypeVar("Module", bound=nn.Module)
ADVICE = "merge or remove what is attached to it (adapters, hooks, parametrizations, wrappers)"


def from_torch(module: nn.MultiheadAttention, *, causal: bool = True) -> MultiHeadAttention:
    """The same attention (Vaswani et al. 2017, arXiv 1706.03762) with the same weights, of the same type and device:

        [W_q; W_k; W_v] = in_proj_weight  [3·d_model, d_model],   W_o = out_proj.weight  [d_model, d_model]

    and their biases likewise. Weights are copied bit for bit; ``requires_grad`` and training mode are kept.

    What comes back is causal without being told, and takes [batch, time, d_model]. ``module`` is causal only with a
    mask, and wants the time first unless made with ``batch_first``:

        y, _ = module(x, x, x, attn_mask=~causal_mask(time, time), need_weights=False)   equals   from_torch(module)(x)

    Without a mask it equals ``from_torch(module, causal=False)(x)``, and ``module(x, other, other)`` either of them
    called with ``(x, context=other)``; its ``key_padding_mask`` is ``padding`` here.

    ValueError for what has no counterpart: keys or values of another width, ``bias_k`` and ``bias_v``,
    ``add_zero_attn``, dropout in training mode, and whatever is more than a plain ``nn.MultiheadAttention``.
    Source: the weights' layout in PyTorch's documentation of ``torch.nn.MultiheadAttention``.
    """
    plain = calls_only_forward(module, nn.MultiheadAttention)
    if not plain or not calls_only_forward(module.out_proj, NonDynamicallyQuantizableLinear):
        raise ValueError(f"{type(module).__name__} is more than a plain nn.MultiheadAttention: {ADVICE} first")
    if not module._qkv_same_embed_dim:
        widths = f"keys of {module.kdim} channels and values of {module.vdim}"
        raise ValueError(f"{widths}, queries of {module.embed_dim}: here all come from one input; leave kdim, vdim out")
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError("bias_k, bias_v and add_zero_attn add a key to every text: make the module without them")
    if module.dropout and module.training:
        theirs = f"dropout {module.dropout} of the weights has no counterpart here"
        raise ValueError(f"{theirs}: set module.dropout = 0, or call module.eval() first")
    tensors = {"output.weight": module.out_proj.weight}
    names = ("query", "key", "value")
    tensors |= zip([f"{name}.weight" for name in names], module.in_proj_weight.chunk(3), strict=True)
    if module.in_proj_bias is not None:
        tensors |= zip([f"{name}.bias" for name in names], module.in_proj_bias.chunk(3), strict=True)
        tensors["output.bias"] = module.out_proj.bias
    with torch.device("meta"):  # nothing is drawn: the weights are there
        ours = MultiHeadAttention(module.embed_dim, module.num_heads, causal=causal)
    for layer in (ours.query, ours.key, ours.value, ours.output):
        if module.in_proj_bias is None:
            layer.bias = None
    return _filled(ours, tensors, module)


def to_torch(module: MultiHeadAttention) -> nn.MultiheadAttention:
    """``from_torch`` the other way, with ``batch_first=True``: there and back again, every bit is the same.

    Give the result the causal mask, which ``MultiHeadAttention`` has built in:

        y, _ = to_torch(module)(x, x, x, attn_mask=~causal_mask(time, time), need_weights=False)

    and for a memory, keys and values [memory, x] with the mask ``~causal_mask(time, past + time)``; give none where
    ``module`` is not causal. Heads of keys and values that serve several of queries are repeated for each of these:
    the outputs are the same, the way back is another module.

    ValueError for what has no counterpart: a position or a convolution; biases, or ``requires_grad``, of some layers and
    not of others, for PyTorch holds the three projections in one array; and layers that are more than ``nn.Linear``.
    """
    layers = {"query": module.query, "key": module.key, "value": module.value, "output": module.output}
    for name, part in (("position", module.position), ("convolution", module.convolution)):
        if part is not None:
            theirs = f"the {name}, {type(part).__name__}, has no counterpart in nn.MultiheadAttention"
            raise ValueError(f"{theirs}: convert a module without one, such as mha(…)")
    if not calls_only_forward(module, MultiHeadAttention):
        raise ValueError(f"{type(module).__name__} is more than a plain MultiHeadAttention: {ADVICE} first")
    for name, layer in layers.items():
        if not calls_only_forward(layer):
            raise ValueError(f"{name}, {type(layer).__name__}, is more than a plain nn.Linear: {ADVICE} first")
    biased = [name for name, layer in layers.items() if layer.bias is not None]
    if biased and len(biased) < 4:
        advice = "give the others a bias of zeros, or take these away"
        raise ValueError(f"nn.MultiheadAttention has biases on all layers or none, here {', '.join(biased)}: {advice}")
    tensors = {"out_proj.weight": module.output.weight}
    shared = module.n_heads // module.n_kv_heads
    repeats = ((module.query, 1), (module.key, shared), (module.value, shared))
    tensors["in_proj_weight"] = _stacked([_repeated(layer.weight, n, module.d_head) for layer, n in repeats])
    if biased:
        tensors["out_proj.bias"] = module.output.bias
        tensors["in_proj_bias"] = _stacked([_repeated(layer.bias, n, module.d_head) for layer, n in repeats])
    with torch.device("meta"):
        theirs_empty = nn.MultiheadAttention(module.d_model, module.n_heads, bias=bool(biased), batch_first=True)
    return _filled(theirs_empty, tensors, module)


def _repeated(rows: Tensor, times: int, d_head: int) -> Tensor:
    """The rows of every head, so many times, one after the other."""
    return rows if times == 1 else rows.unflatten(0, (-1, d_head)).repeat_interleave(times, dim=0).flatten(0, 1)


def _stacked(parameters: list[Tensor]) -> Tensor:
    if len({parameter.requires_grad for parameter in parameters}) > 1:
        frozen = "query, key and value are one array in nn.MultiheadAttention, and some of them are frozen here"
        raise ValueError(f"{frozen}: freeze all or none, and again after the conversion")
    return torch.cat(parameters)


def _filled(module: Module, tensors: dict[str, Tensor], source: nn.Module) -> Module:
    """``module`` with copies of ``tensors`` as its parameters, frozen where those are, in the mode of ``source``."""
    module.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(tensors[name].requires_grad)
    return module.train(source.training)
