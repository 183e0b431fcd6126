"""What reaches PyTorch's fused kernels on a GPU is what they take: seen without one, by what would be given to them."""

import pytest
import torch
from torch.nn import functional as F

from rcmha_lite import attention
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.model import LanguageModel

fused = attention.fused_attention


def elsewhere(x):
    """The same tensor on a device without numbers, laid out in the same way, from the same place of its memory."""
    if x is None:
        return None
    size = x.untyped_storage().nbytes() // x.element_size()
    memory = torch.empty(size, dtype=x.dtype, device="meta", requires_grad=x.requires_grad)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.fixture
def given(monkeypatch):
    """What ``fused_attention`` would hand to the kernel for each of its calls, were it not on a CPU."""
    seen, real = [], F.scaled_dot_product_attention

    def note(q, k, v, mask=None, **named):
        seen.append((q, k, v, mask, named["is_causal"]))
        return real(q, k, v, mask, **named)

    def watched(q, k, v, bias=None, *, scale=None):
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", note)
            if q.shape[2] > 4:  # fewer take the formula, which would need autocast there
                fused(*(elsewhere(x) for x in (q, k, v, bias)), scale=scale)
        return fused(q, k, v, bias, scale=scale)

    monkeypatch.setattr(attention, "fused_attention", watched)
    return seen


def shaped(config: Config) -> Config:
    """What makes the shapes of attention stays; the rest is small."""
    return config.replace(layers=1, batch=2, d_ff=8, dropout=0.0)


CONFIGS = {
    f"{preset}-{cell}": shaped(PRESETS[preset].replace(**changes, window=PRESETS[preset].context))
    for preset in PRESETS
    for cell, changes in CELLS.items()
} | {
    "paper": shaped(PRESETS["paper"]),
    "learned": shaped(PRESETS["laptop"].replace(position="relative-learned", window=128)),
    "learned, ragged": shaped(PRESETS["laptop"].replace(position="relative-learned", context=100, window=100)),
    "rope": shaped(PRESETS["laptop"].replace(position="rope")),
    "alibi": shaped(PRESETS["laptop"].replace(position="alibi", context=100)),
    "memory": shaped(PRESETS["laptop"].replace(context=30, memory=70)),
    "odd widths": shaped(PRESETS["laptop"].replace(d_model=200, n_heads=8, d_position=10, context=33, memory=16)),
}


def faults(q, k, v, mask, causal) -> list[str]:
    """Why a fused kernel for half precision would refuse these, or copy them first."""
    found = [] if q.dtype == k.dtype == v.dtype else [f"precisions {q.dtype}, {k.dtype}, {v.dtype}"]
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.shape[-1] % 8 or x.shape[-1] > 256 or x.shape[-1] != q.shape[-1]:
            found.append(f"{name} is {x.shape[-1]} wide")
        if x.stride(-1) != 1 or any(step % 8 for step in (*x.stride()[:-1], x.storage_offset())):
            found.append(f"{name} has strides {x.stride()} from {x.storage_offset()}")
    if mask is None:
        return found if causal else [*found, "neither a mask nor causal"]
    if causal:
        found.append("a mask and causal")
    if mask.dtype != q.dtype or mask.stride(-1) != 1 or any(step % 16 for step in mask.stride()[:-1]):
        found.append(f"the mask is {mask.dtype} with strides {mask.stride()}")
    if torch.broadcast_shapes(mask.shape, (*q.shape[:3], k.shape[2])) != (*q.shape[:3], k.shape[2]):
        found.append(f"the mask has shape {tuple(mask.shape)}")
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("unchecked")
def test_what_the_kernels_are_given(given, name, dtype):
    config = CONFIGS[name]
    model = LanguageModel(config)
    ids = torch.zeros(2, config.context, dtype=torch.long)
    memory = None
    with torch.autocast("cpu", dtype):
        for _ in range(2):  # the second segment has a memory
            logits, memory = model(ids, memory)
    assert logits.isfinite().all()
    expected = 0 if config.context <= 4 else 2
    assert len(given) == expected, "few queries take the formula"
    for call in given:
        assert faults(*call) == []
    if not config.memory and config.position not in ("relative-learned", "alibi"):
        assert all(mask is None and causal for *_, mask, causal in given)


def test_faults_are_seen():
    x = torch.zeros(2, 3, 32, 16, dtype=torch.half)
    mask = torch.zeros(32, 32, dtype=torch.half)
    assert faults(x, x, x, None, True) == faults(x, x, x, mask, False) == []
    wide, narrow = torch.zeros(2, 3, 32, 264), x[..., :12]
    bad = [
        (x, x, x.float(), None, True),
        (wide, wide, wide, None, True),
        (narrow, narrow, narrow, None, True),
        (x, x.transpose(2, 3).contiguous().transpose(2, 3), x, None, True),
        (x, x, x, None, False),
        (x, x, x, mask, True),
        (x, x, x, mask.bool(), False),
        (x, x, x, torch.zeros(32, 33, dtype=torch.half)[:, :32], False),
        (x, x, x, torch.zeros(5, 3, 32, 32, dtype=torch.half), False),
    ]
    for call in bad:
        try:
            found = faults(*call)
        except RuntimeError:  # shapes that do not broadcast
            continue
        assert found, call


@pytest.mark.parametrize("keys", [33, 48])
@pytest.mark.parametrize("width", [10, 16])
def test_what_is_padded_for_a_gpu_changes_nothing(monkeypatch, keys, width):
    """The GPU's way, taken on a CPU in float64, against the formula: with a bias, after a memory, and square."""

    class Elsewhere(torch.Tensor):
        device = property(lambda self: torch.device("meta"))

    q, k, v, bias = (
        torch.randn(2, 3, n, w, dtype=torch.float64) for n, w in ((33, width), (keys, width), (keys, 7), (33, keys))
    )
    monkeypatch.setattr(attention, "causal_mask", lambda a, b, device=None: torch.ones(a, b).bool().tril(b - a))
    for given in (None, bias):
        expected = attention.attention(q, k, v, given)
        found = fused(q.as_subclass(Elsewhere), k, v, given).as_subclass(torch.Tensor)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_on_a_cpu_nothing_is_padded_but_values(monkeypatch):
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *a, **k: seen.append((q, a[2])) or real(q, *a, **k)
    )
    q, k, v = (torch.randn(1, 2, n, w) for n, w in ((9, 10), (11, 10), (11, 7)))
    fused(q, k, v)
    assert seen[0][0] is q
    assert seen[0][1].dtype == torch.bool
