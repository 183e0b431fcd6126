"""What an attention may see, and how many heads hold it: both directions, a second sequence, padding, shared keys."""

import pytest
import test_golden
import test_kernels
import torch
from test_attention import close, scrambled
from torch import nn
from torch.nn import functional as F

from rcmha_lite import exercises
from rcmha_lite.attention import (
    AttentionCache,
    MultiHeadAttention,
    attention,
    attention_weights,
    causal_mask,
    fused_attention,
    mha,
    rcmha,
)
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.conversion import from_torch, to_torch
from rcmha_lite.convolution import HeadConvolution, causal_depthwise_convolution, centred_depthwise_convolution
from rcmha_lite.generation import generate_ids
from rcmha_lite.model import LanguageModel
from rcmha_lite.positions import (
    AlibiPosition,
    LearnedRelativePosition,
    Position,
    RotaryPosition,
    SinusoidalRelativePosition,
    alibi_slopes,
    sinusoids,
)
from rcmha_lite.stepping import Stepper

H, D = 4, 4
D_MODEL = H * D
POSITIONS = {
    "none": lambda causal: None,
    "sinusoidal": lambda causal: SinusoidalRelativePosition(H, D, 6),
    "learned": lambda causal: LearnedRelativePosition(H, D, 16, causal=causal),
    "rope": lambda causal: RotaryPosition(H, D),
    "alibi": lambda causal: AlibiPosition(H, D, causal=causal),
}
KERNELS = {
    "": None,
    "shared": {},
    "separate": {"shared": False},
    "separate, of some": {"shared": False, "projections": "qk"},
    "separate, of keys and values": {"shared": False, "projections": "kv", "bias": False},
}
every_position = pytest.mark.parametrize("position", POSITIONS)
every_kernel = pytest.mark.parametrize("kernels", KERNELS)


def build(position="none", kernels="", *, causal=True, n_kv_heads=0, centred=False, **options) -> MultiHeadAttention:
    convolution = None
    if KERNELS[kernels] is not None:
        given = {"n_kv_heads": n_kv_heads, "centred": centred} | KERNELS[kernels]
        convolution = HeadConvolution(H, D, 3, **given)
    return scrambled(
        MultiHeadAttention(
            D_MODEL, H, n_kv_heads=n_kv_heads, causal=causal, position=POSITIONS[position](causal),
            convolution=convolution, **options,
        )
    )  # fmt: skip


def texts(*times, batch=2):
    return [exercises.random(batch, time, D_MODEL, seed=seed) for seed, time in enumerate(times)]


def padded(*rows: str) -> torch.Tensor:
    """A row of letters a text, x for padding."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


# --- nothing has changed


def as_before(module: MultiHeadAttention, x, memory):
    """The plain path of earlier versions, operation by operation."""
    context = x if memory is None else torch.cat((memory, x), dim=1)
    queries, whole = x.shape[1], x.shape[1] == context.shape[1]

    def project(rows, layers, names):
        biases = [w.new_zeros(len(w)) if b is None else b for w, b in ((layer.weight, layer.bias) for layer in layers)]
        y = F.linear(rows, torch.cat([layer.weight for layer in layers]), torch.cat(biases))
        if module.convolution is None:
            return y
        return causal_depthwise_convolution(y, *module.convolution.taps(names), None)

    if module.fresh_queries and not whole:
        q = project(context[:, -queries:], [module.query], "q")
        parts = [q, *project(context, [module.key, module.value], "kv").chunk(2, dim=-1)]
    else:
        parts = list(project(context, [module.query, module.key, module.value], "qkv").chunk(3, dim=-1))
        parts[0] = parts[0] if whole else parts[0][:, -queries:]
    q, k, v = (part.unflatten(-1, (module.n_heads, module.d_head)).transpose(1, 2) for part in parts)
    q, k, bias = (q, k, None) if module.position is None else module.position(q, k, 0, 0)
    y = fused_attention(q, k, v, bias, scale=module.d_head**-0.5)
    return module.output(y.transpose(1, 2).flatten(2))


def test_recorded_arrays_bit_for_bit_as_before(golden_file):
    """And within the golden test's bounds of what the public implementations recorded."""
    golden = test_golden.load(golden_file)
    if "logits" in golden:
        model = test_golden.build_model(golden)
        cases = [(block.attention, exercises.random(2, 5, model.config.d_model), None) for block in model.blocks]
    else:
        memory = golden["memory"] if golden.get("memory", torch.empty(0, 0)).shape[1] else None
        cases = [(test_golden.build_attention(golden), golden["x"], memory)]
    for module, x, memory in cases:
        found = []
        for way in (module, lambda *given, module=module: as_before(module, *given)):
            module.zero_grad()
            y = way(x.requires_grad_(), memory)
            (y * golden.get("cotangent", torch.ones(()).double())).sum().backward()
            found.append([y.detach(), x.grad, *(p.grad for p in module.parameters())])
            x.grad = None
        for now, before in zip(*found, strict=True):
            assert (now is None and before is None) or torch.equal(now, before)
        if "logits" not in golden:
            close(found[0][0], golden["y"])
            close(found[0][1], golden["grad_x"])


def test_shapes_of_earlier_configurations_stay():
    module = MultiHeadAttention(
        16, 4, position=LearnedRelativePosition(4, 4, 9), convolution=HeadConvolution(4, 4, shared=False)
    )
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    linear = {f"{n}.{kind}": (16, 16)[: 2 - (kind == "bias")]
              for n in ("query", "key", "value", "output") for kind in ("weight", "bias")}  # fmt: skip
    assert list(shapes.items()) == list(
        (
            linear
            | {"position.content_bias": (4, 4), "position.embedding": (9, 4, 4), "position.table_bias": (9, 4)}
            | {"convolution.weight": (3, 4, 4, 3), "convolution.bias": (3, 4, 4)}
        ).items()
    )


# --- both directions


def test_both_directions_equal_pytorchs_module():
    theirs = scrambled(nn.MultiheadAttention(16, 4, batch_first=True))
    (x,), ours = texts(7), from_torch(theirs, causal=False)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    close(ours(x), expected, 1e-12)
    close(ours.weights(x), weights, 1e-12)
    close(to_torch(ours)(x, x, x, need_weights=False)[0], expected, 1e-12)


def pair_score(module, q, k, head, delta):
    """The score of one query and one key, ``delta`` positions apart, by the formulas."""
    part = module.position
    if part is None:
        return q @ k
    if isinstance(part, LearnedRelativePosition):
        return (q + part.content_bias[head]) @ k + q @ part.embedding[delta, head] + part.table_bias[delta, head]
    if isinstance(part, SinusoidalRelativePosition):
        r = part.projection.unflatten(0, (H, D))[head] @ sinusoids(torch.tensor([delta]), 6)[0]
        return (q + part.content_bias[head]) @ k + (q + part.position_bias[head]) @ r
    if isinstance(part, AlibiPosition):
        return q @ k - alibi_slopes(H)[head] * abs(delta) * D**0.5
    turned = [torch.complex(z[: D // 2], z[D // 2 :]) for z in (q, k)]
    omega = 10_000.0 ** (-torch.arange(0, D, 2).double() / D)
    return (turned[0].conj() * turned[1] * torch.exp(-1j * delta * omega)).sum().real


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("time", [1, 6])
@every_position
def test_both_directions_by_loops(position, time, past):
    """Distances of both signs, pair by pair; a memory stands before."""
    module = build(position, causal=False)
    x, memory = texts(time, past, batch=1)
    context = torch.cat((memory, x), dim=1)[0]
    q, k, v = (layer(context).unflatten(-1, (H, D)) for layer in (module.query, module.key, module.value))
    y = torch.empty(time, H, D, dtype=torch.float64)
    for head in range(H):
        for i in range(past, past + time):
            scores = torch.stack([pair_score(module, q[i, head], k[j, head], head, i - j) for j in range(past + time)])
            weights = (scores / D**0.5).softmax(0)
            y[i - past, head] = weights @ v[:, head]
            close(module.weights(x, memory)[0, head, i - past], weights, 1e-12)
    close(module(x, memory)[0], module.output(y.flatten(1)), 1e-12)


@every_position
def test_rows_for_what_came_before_are_those_of_a_causal_part(position):
    """A part of both signs in a causal module: what follows is masked, the rest the same."""
    causal, both = build(position), build(position)
    both.position = POSITIONS[position](False)
    if both.position is not None:
        both.double().position.load_state_dict(
            {
                name: F.pad(value, (0, 0) * (value.dim() - 1) + (0, 15))
                if position == "learned" and name != "content_bias"
                else value
                for name, value in causal.position.state_dict().items()
            }
        )
    (x,) = texts(9)
    close(both(x), causal(x), 1e-12)


def test_reversed_text_reversed_table():
    """Reading backwards is the same with distances of the other sign, and centred kernels turned round."""
    module, back = (build("learned", "shared", causal=False, centred=True) for _ in range(2))
    with torch.no_grad():
        for name in ("embedding", "table_bias"):
            table = getattr(module.position, name)
            getattr(back.position, name).copy_(torch.cat((table[:1], table[1:].flip(0))))
        back.convolution.weight.copy_(module.convolution.weight.flip(-1))
    (x,) = texts(8)
    close(back(x.flip(1)), module(x).flip(1), 1e-12)


def test_a_table_of_both_signs_ends_on_both_sides():
    part = LearnedRelativePosition(2, 4, 5, causal=False)
    assert len(part.table_bias) == 9
    assert part.bias(torch.zeros(1, 2, 5, 4), 5).shape == (1, 2, 5, 5)
    with pytest.raises(IndexError, match="a key 5 positions back lies outside a table of 5 distances"):
        part.bias(torch.zeros(1, 2, 1, 4), 6)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_centred_kernels_by_loops(kernel):
    x, taps, bias = exercises.random(2, 5, 3), exercises.random(3, kernel, seed=1), exercises.random(3, seed=2)
    expected = bias.expand(2, 5, 3).clone()
    for t in range(5):
        for s in range(kernel):
            at = t - (kernel - 1) // 2 + s
            if 0 <= at < 5:
                expected[:, t] += taps[:, s] * x[:, at]
    close(centred_depthwise_convolution(x, taps, bias), expected, 1e-12)
    assert centred_depthwise_convolution(x[:, :0], taps, bias).shape == (2, 0, 3)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("projections", ["qkv", "kv"])
def test_centred_kernels_start_on_the_middle(shared, projections):
    part = HeadConvolution(2, 3, 5, init="identity", shared=shared, projections=projections, centred=True)
    x = torch.randn(2, 6, 18)
    torch.testing.assert_close(part(x, "qkv"), x)
    assert HeadConvolution(2, 3, 5, init="primer", centred=True).weight[0, 0, 0].tolist() == pytest.approx(
        [0.1, 0.1, 0.5, 0.1, 0.1]
    )


# --- a second sequence


@pytest.mark.parametrize("batch", [1, 2])
def test_a_second_sequence_equals_pytorchs_module(batch):
    theirs = scrambled(nn.MultiheadAttention(16, 4, batch_first=True))
    x, context = texts(5, 8, batch=batch)
    mask = padded("......xx", "....xxxx")[:batch]
    for ours in (from_torch(theirs), from_torch(theirs, causal=False)):
        close(ours(x, context=context), theirs(x, context, context, need_weights=False)[0], 1e-12)
        expected, weights = theirs(x, context, context, key_padding_mask=mask, average_attn_weights=False)
        close(ours(x, context=context, padding=mask), expected, 1e-12)
        close(ours.weights(x, context=context, padding=mask), weights, 1e-12)


@pytest.mark.parametrize("n_kv_heads", [0, 2])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kernels", ["shared", "separate"])
def test_kernels_run_over_each_sequence_by_itself(kernels, centred, n_kv_heads):
    module = build("none", kernels, causal=False, centred=centred, n_kv_heads=n_kv_heads)
    convolve = centred_depthwise_convolution if centred else causal_depthwise_convolution
    x, context = texts(5, 8)
    group = H // module.n_kv_heads
    q, k, v = (
        convolve(layer(rows), *module.convolution.taps(name)).unflatten(-1, (-1, D)).transpose(1, 2)
        for layer, rows, name in ((module.query, x, "q"), (module.key, context, "k"), (module.value, context, "v"))
    )
    y = F.scaled_dot_product_attention(q, *(part.repeat_interleave(group, dim=1) for part in (k, v)))
    close(module(x, context=context), module.output(y.transpose(1, 2).flatten(2)), 1e-12)


class Everywhere(Position):
    across = True


def test_a_position_that_says_it_has_a_meaning_across_is_called():
    module = build()
    x, context = texts(5, 8)
    expected = module(x, context=context)
    module.position = Everywhere(H, D)
    close(module(x, context=context), expected, 1e-12)


# --- padding


def test_padding_equals_pytorchs_module():
    theirs = scrambled(nn.MultiheadAttention(16, 4, batch_first=True))
    (x,), mask = texts(7), padded(".....xx", "xx..xx.")
    expected, weights = theirs(x, x, x, key_padding_mask=mask, average_attn_weights=False)
    ours = from_torch(theirs, causal=False)
    close(ours(x, padding=mask), expected, 1e-12)
    close(ours.weights(x, padding=mask), weights, 1e-12)
    future, mask = ~causal_mask(7, 7), padded("....x.x", "...xx..")  # where every query has a key
    expected = theirs(x, x, x, key_padding_mask=mask, attn_mask=future, need_weights=False)[0]
    close(from_torch(theirs)(x, padding=mask), expected, 1e-12)


def gradients(module, y):
    return torch.autograd.grad(
        (y * exercises.random(*y.shape, seed=9)).sum(), list(module.parameters()), allow_unused=True
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("causal", "centred"), [(True, False), (False, False), (False, True)])
@every_kernel
@every_position
def test_padded_equals_alone(position, kernels, causal, centred, side):
    """A text of 5 in a row of 8 answers as it does by itself, whatever stands in the padding; so do the gradients."""
    if centred and KERNELS[kernels] is None:
        pytest.skip("no kernels")
    module = build(position, kernels, causal=causal, centred=centred)
    text, noise = texts(5, 3)
    row = torch.cat((text, 9 * noise) if side == "right" else (9 * noise, text), dim=1)
    mask = padded(".....xxx" if side == "right" else "xxx.....").expand(2, -1)
    real = slice(0, 5) if side == "right" else slice(3, 8)
    alone, found = module(text), module(row, padding=mask)[:, real]
    close(found, alone, 1e-12)
    close(module.weights(row, padding=mask)[:, :, real, real], module.weights(text), 1e-12)
    for ours, theirs in zip(gradients(module, found), gradients(module, alone), strict=True):
        close(ours, theirs, 1e-11)


@every_position
@pytest.mark.parametrize("fresh_queries", [False, True])
@pytest.mark.parametrize("kernels", ["", "separate"])
def test_padding_before_a_memory_and_in_a_stream(position, kernels, fresh_queries):
    """Texts of different lengths stand at the right end of memory and segment: as in the whole, and as alone."""
    module = build(position, kernels, fresh_queries=fresh_queries)
    (x,), mask = texts(10), padded("..........", "xxx.......")
    whole, alone = module(x, padding=mask), module(x[1:, 3:])
    close(whole[1:, 3:], alone, 1e-12)
    if not fresh_queries:
        close(module(x[:, 6:], x[:, :6], padding=mask), whole[:, 6:], 1e-12)
    cache, stop, pieces = AttentionCache(), 0, []
    with torch.no_grad():
        for piece in x.split((5, 1, 1, 3), dim=1):
            stop += piece.shape[1]
            pieces.append(module(piece, cache=cache, padding=mask[:, :stop]))
    close(torch.cat(pieces, dim=1), whole, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("time", [3, 9])
def test_no_key_at_all_gives_zeros(causal, dtype, time):
    """In both ways of computing, with and without a bias; every gradient is finite, also under anomaly detection."""
    mask = torch.zeros(2, time, dtype=torch.bool)
    mask[0], mask[1, :2] = True, True
    for bias in (None, exercises.random(1, 3, time, time, seed=4).to(dtype)):
        q, k, v = (exercises.random(2, 3, time, 4, seed=s).to(dtype).requires_grad_() for s in range(3))
        for way in (attention, fused_attention):
            with torch.autograd.set_detect_anomaly(True):
                y = way(q, k, v, bias, causal=causal, padding=mask)
                found = torch.autograd.grad(y.sum(), (q, k, v))
            assert not y[0].any()
            assert y[1].isfinite().all()
            assert bool(y[1, :, :2].any()) == (not causal)
            assert y[1, :, 2:].any(dim=-1).all()
            assert all(g.isfinite().all() for g in found)
            assert not any(g[0].any() for g in found)
        weights = attention_weights(q, k, bias, causal=causal, padding=mask)
        assert not weights[0].any()
        assert not weights[1, :, :, :2].any()


@every_position
def test_a_text_of_nothing_but_padding(position):
    module = build(position, "shared", causal=False, centred=True)
    (x,) = texts(6)
    mask = padded("xxxxxx", "......")
    y = module(x, padding=mask)
    close(y[0], module.output.bias.expand(6, -1), 1e-12)
    assert all(g is None or g.isfinite().all() for g in gradients(module, y))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 9), (1, 6), (9, 5)])
def test_fused_equals_the_formula(causal, with_bias, queries, keys):
    if causal and queries > keys:
        pytest.skip("the queries are the last of the keys")
    q, k, v = (exercises.random(2, 3, n, 6, seed=s) for s, n in enumerate((queries, keys, keys)))
    bias = exercises.random(2, 3, queries, keys, seed=3) if with_bias else None
    mask = torch.rand(2, keys) < 0.4
    for padding in (None, mask):
        expected = torch.zeros(2, 3, queries, 6, dtype=torch.float64)
        for b in range(2):
            for i in range(queries):
                seen = [
                    j for j in range(keys)
                    if (not causal or j <= i + keys - queries) and (padding is None or not padding[b, j])
                ]  # fmt: skip
                if seen:
                    scores = torch.einsum("hd,hjd->hj", q[b, :, i], k[b][:, seen])
                    scores = scores + (0 if bias is None else bias[b, :, i][:, seen])
                    expected[b, :, i] = torch.einsum("hj,hjd->hd", (scores / 6**0.5).softmax(-1), v[b][:, seen])
        for way in (attention, fused_attention):
            close(way(q, k, v, bias, causal=causal, padding=padding), expected, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.usefixtures("unchecked")
def test_what_a_gpus_kernels_are_given(monkeypatch, causal, with_bias):
    """A mask in the queries' precision, in rows that need no copy: seen on a device without numbers."""
    seen = []
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, m, **named: seen.append((q, k, v, m, named["is_causal"])) or v,
    )
    q, k, v = (torch.empty(2, 3, 33, width, dtype=torch.bfloat16, device="meta") for width in (20, 20, 12))
    bias = torch.empty(2, 3, 33, 33, dtype=torch.bfloat16, device="meta") if with_bias else None
    fused_attention(q, k, v, bias, causal=causal, padding=torch.empty(2, 33, dtype=torch.bool, device="meta"))
    assert test_kernels.faults(*seen[0]) == []


# --- two numbers of heads


def repeated_heads(module: MultiHeadAttention, whole: MultiHeadAttention) -> MultiHeadAttention:
    """``whole``, with a head of keys and values for each of queries: rows repeated, not tiled."""

    def repeated(rows, n):
        return torch.cat([head for head in rows.split(len(rows) // n) for _ in range(H // n)])

    state = dict(module.state_dict())
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        state[name] = repeated(state[name], module.n_kv_heads)
    for name in ("convolution.weight", "convolution.bias"):
        if name in state and state[name].shape != whole.state_dict()[name].shape:
            numbers = [H if projection == "q" else module.n_kv_heads for projection in module.convolution.projections]
            rows = state[name].flatten(0, -3 if "weight" in name else -2).split(numbers)
            state[name] = torch.stack([repeated(row, n) for row, n in zip(rows, numbers, strict=True)])
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
@every_kernel
@every_position
def test_shared_keys_are_repeated_keys(position, kernels, causal, n_kv_heads):
    """Outputs, with a memory and without; in a stream the cache is as many times smaller."""
    module = build(position, kernels, causal=causal, n_kv_heads=n_kv_heads, centred=not causal)
    whole = repeated_heads(module, build(position, kernels, causal=causal, centred=not causal))
    assert module.key.weight.shape == module.value.weight.shape == (n_kv_heads * D, D_MODEL)
    x, memory = texts(7, 4)
    for past in (None, memory):
        close(module(x, past), whole(x, past), 1e-12)
    close(module.weights(x), whole.weights(x), 1e-12)
    if not causal:
        return
    ours, theirs = AttentionCache(), AttentionCache()
    with torch.no_grad():
        for piece in x.split((4, 1, 2), dim=1):
            close(module(piece, cache=ours), whole(piece, cache=theirs), 1e-12)
    small, large = ([b.nbytes for b in cache.buffers()[:2]] for cache in (ours, theirs))
    assert [s * H // n_kv_heads for s in small] == large


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_shared_keys_equal_pytorchs_grouped_attention(n_kv_heads):
    module, (x,) = build(n_kv_heads=n_kv_heads), texts(9)
    q, k, v = (layer(x).unflatten(-1, (-1, D)).transpose(1, 2) for layer in (module.query, module.key, module.value))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = module.output(y.transpose(1, 2).flatten(2))
    close(module(x), expected, 1e-12)
    for ours, theirs in zip(gradients(module, module(x)), gradients(module, expected), strict=True):
        close(ours, theirs, 1e-12)


def test_as_many_heads_is_the_module_as_it_was():
    """Bit for bit, however it is said."""
    (x,) = texts(9)
    first, *others = (
        scrambled(
            MultiHeadAttention(16, 4, n_kv_heads=n, convolution=HeadConvolution(4, 4, shared=False, n_kv_heads=n))
        )
        for n in (None, 0, 4)
    )
    assert all(torch.equal(module(x), first(x)) for module in others)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_shared_keys_become_pytorchs_module(n_kv_heads):
    """One way: keys and values are written once for every head of queries."""
    module, (x,) = build(n_kv_heads=n_kv_heads), texts(7)
    theirs = to_torch(module)
    close(theirs(x, x, x, attn_mask=~causal_mask(7, 7), need_weights=False)[0], module(x), 1e-12)
    close(from_torch(theirs)(x), module(x), 1e-12)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [*CELLS.values(), {"position": "rope"}, {"position": "alibi"}, {"shared_kernels": False}, {"convolve": "kv"}],
)
def test_a_model_of_shared_keys_streams_and_steps(changes, n_kv_heads):
    config = PRESETS["tiny"].replace(**changes, n_kv_heads=n_kv_heads, context=32, window=32)
    model = scrambled(LanguageModel(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(5)
    ids = torch.randint(65, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)[0]
    stepper = Stepper(model)
    assert stepper.plain == (config.position not in ("rope", "alibi") and config.convolve == "qkv")
    called, stepped = model.new_cache(), model.new_cache()
    with torch.no_grad():
        for cache in (called, stepped):
            close(model(ids[:, :6], cache=cache)[0], whole[:, :6], 1e-10)
        for t in range(6, 24):
            close(model(ids[:, t : t + 1], cache=called)[0][:, 0], whole[:, t], 1e-10)
            close(stepper(ids[:, t], stepped), whole[:, t], 1e-10)
    assert len(list(generate_ids(model, ids[0], 5, seed=0))) == 5


@pytest.mark.parametrize("n_kv_heads", [2, 3])
def test_separate_kernels_of_shared_keys_learn(n_kv_heads):
    """Each stored number is used: every gradient is more than zero."""
    module = MultiHeadAttention(
        24, 6, n_kv_heads=n_kv_heads, convolution=HeadConvolution(6, 4, shared=False, n_kv_heads=n_kv_heads)
    )
    assert module.convolution.weight.shape == (6 + 2 * n_kv_heads, 4, 3)
    assert module.convolution.bias.shape == (6 + 2 * n_kv_heads, 4)
    scrambled(module)(exercises.random(2, 5, 24)).square().sum().backward()
    assert module.convolution.weight.grad.all()


def test_a_configuration_names_the_heads(call):
    config = Config(n_heads=6, n_kv_heads=2)
    attention = LanguageModel(config).blocks[0].attention
    assert (attention.n_kv_heads, attention.convolution.n_kv_heads, len(attention.key.weight)) == (2, 2, 64)
    fields = config.to_json().replace('  "n_kv_heads": 2,\n', "")
    assert Config.from_json(fields).n_kv_heads == 0, "files of earlier runs lack it"
    assert "--n-kv-heads" in call("train", "--help")[1]
    status, _, error = call("train", "--n-kv-heads", "4")
    assert status
    assert "n_heads 6 is not divisible by n_kv_heads 4" in error


# --- what is refused


def refused(message, *, kind=ValueError):
    return pytest.raises(kind, match=message)


def test_heads_and_parts_that_do_not_fit_are_refused():
    with refused("n_heads 6 is not divisible by n_kv_heads 4: .* give a divisor of n_heads, or 0 for as many"):
        Config(n_heads=6, n_kv_heads=4)
    with refused("n_heads 4 is not divisible by n_kv_heads 3"):
        MultiHeadAttention(16, 4, n_kv_heads=3)
    with refused("n_heads 4 is not divisible by n_kv_heads -2"):
        HeadConvolution(4, 4, n_kv_heads=-2)
    with refused("made for 4 heads of keys and values, the module has 2: give both the same n_kv_heads"):
        MultiHeadAttention(16, 4, n_kv_heads=2, convolution=HeadConvolution(4, 4))
    with refused("centred kernels reach what follows, and the module is causal: give the module causal=False"):
        MultiHeadAttention(16, 4, convolution=HeadConvolution(4, 4, centred=True))
    with refused("kernel_size 4 has no middle tap: centred kernels need an odd number"):
        HeadConvolution(4, 4, 4, centred=True)
    for part in (AlibiPosition(4, 4), LearnedRelativePosition(4, 4, 9)):
        with refused(f"{type(part).__name__}, has distances to what came before alone, .* with causal=False, too"):
            MultiHeadAttention(16, 4, causal=False, position=part)


@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "none"])
def test_a_distance_between_two_sequences_is_refused(position):
    module, (x, context) = build(position), texts(3, 5)
    with refused(f"{type(module.position).__name__}, measures distances within one sequence, .* without one"):
        module(x, context=context)


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs_are_refused():
    module, both = build(), build("none", "shared", causal=False, centred=True)
    x, context = texts(3, 5)
    with refused("a context takes the place of memory and cache: give it alone"):
        module(x, x, context=context)
    with refused("a context takes the place of memory and cache: give it alone"):
        module(x, cache=AttentionCache(), context=context)
    with refused(r"the input has shape \(2, 3, 16\), its context \(1, 5, 16\): give both as \[batch, time, 16\]"):
        module(x, context=context[:1])
    with refused(r"the input has shape \(2, 5, 12\): give"):
        module(x, context=context[..., :12])
    with refused("the module in torch.float64"):
        module(x, context=context.float())
    with refused("a stream's next piece is unknown, and this module is not causal: give it the whole text"):
        both(x, cache=AttentionCache())
    with refused("centred kernels reach what follows, unknown in a stream"):
        both.convolution(torch.zeros(1, 2, 48).double(), "qkv", torch.zeros(1, 2, 48).double())
    shape = r"give bool of shape \(2, 5\), \[batch, keys\], True where a key is padding"
    with refused(rf"the padding is torch.bool of shape \(2, 3\): {shape}"):
        module(x, context=context, padding=padded("...", "..."))
    with refused(rf"the padding is torch.float32 of shape \(2, 5\): {shape}"):
        module(context, padding=torch.zeros(2, 5))
    cache = AttentionCache()
    module(x, cache=cache)
    with refused(rf"the padding is torch.bool of shape \(2, 2\): {shape}"):
        module(x[:, :2], cache=cache, padding=padded("..", ".."))
    assert (len(cache), cache.seen) == (3, 3), "the cache has not moved"


def test_both_directions_learn_what_causal_attention_cannot():
    """The first answer depends on the last character, through the mask's absence alone."""
    (x,) = texts(6)
    x.requires_grad_()
    for module, reaches in ((mha(16, 4), False), (rcmha(16, 4), False), (build(causal=False), True)):
        (slope,) = torch.autograd.grad(module.double()(x)[:, 0].square().sum(), x)
        assert bool(slope[:, 1:].any()) == reaches
