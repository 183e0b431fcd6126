"""Break the code on purpose: a named test must notice."""

import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType

import pytest
import test_attention
import test_convolution
import test_model
import test_positions
import torch
from test_attention import CELLS, scrambled

from rcmha_lite import attention, convolution, positions

Mutation = tuple[ModuleType, str, str, str, Callable[[], None]]

MUTATIONS: dict[str, Mutation] = {
    "the mask lets a query see one key too many": (
        attention, "causal_mask", ".tril(keys - queries)", ".tril(keys - queries + 1)",
        lambda: test_attention.test_causality(scrambled(CELLS["rmha learned"]()), 0),
    ),
    "the mask forgets that memory stands before the segment": (
        attention, "causal_mask", ".tril(keys - queries)", ".tril(0)",
        lambda: test_attention.test_every_query_sees_all_of_memory(scrambled(CELLS["mha"]())),
    ),
    "the fast path for short bfloat16 forgets the mask": (
        attention, "fused_attention", 'float("-inf"))\n        q, k', "0.0)\n        q, k",
        lambda: test_attention.test_fused_bfloat16_is_close_forward_and_backward(5, 5),
    ),
    "the relative shift is one off": (
        positions, "shift", "[..., queries:]", "[..., queries - 1 : -1]", lambda: test_positions.test_shift(positions.shift),
    ),
    "the relative shift ignores memory": (
        positions, "shift", "by_distance.flip(-1)", "by_distance.roll(keys - queries, -1).flip(-1)",
        lambda: test_attention.test_memory_and_segment_shifted_together("rmha learned"),
    ),
    "the convolution pads on the right": (
        convolution, "causal_depthwise_convolution", "(zeros, known)", "(known, zeros)",
        lambda: test_attention.test_causality(scrambled(CELLS["rcmha learned"]()), 0),
    ),
    "the convolution pads one too few, one on the right": (
        convolution, "causal_depthwise_convolution", "(zeros, known)", "(zeros[:, 1:], known, zeros[:, :1])",
        test_convolution.test_explicit_sum,
    ),
    "the convolution forgets its history": (
        convolution, "causal_depthwise_convolution", "x if history is None else torch.cat((history, x), dim=1)", "x",
        lambda: test_model.test_streaming_equals_the_whole(cell="mdha"),
    ),
    "the factorised sine has the wrong sign": (
        positions, "factorise", "a_cos * sin_i - a_sin * cos_i", "a_cos * sin_i + a_sin * cos_i",
        test_positions.test_sinusoidal_equals_the_four_terms,
    ),
    "a stream's positions start anew at each piece": (
        positions, "sinusoids", "positions.double()", "(positions - positions[0]).double()",
        lambda: test_model.test_streaming_equals_the_whole(cell="rmha"),
    ),
    "rotary angles turn the other way for the second half of a pair": (
        positions, "RotaryPosition", "x * sin + y * cos", "y * cos - x * sin", test_positions.test_rotary_equals_complex_numbers,
    ),
    "rotary keys stand one position late": (
        positions, "RotaryPosition", "self.queries(k, start)", "self.queries(k, start + 1)",
        test_positions.test_rotary_equals_complex_numbers,
    ),
    "ALiBi counts distances from the first query": (
        positions, "AlibiPosition", "torch.arange(keys - q.shape[2], keys,", "torch.arange(q.shape[2],",
        test_positions.test_alibi_equals_the_index_formula,
    ),
    "ALiBi's slopes are formed in the precision of the queries": (
        positions, "AlibiPosition", "torch.promote_types(q.dtype, torch.float32)", "q.dtype",
        lambda: test_positions.test_alibi_slopes_keep_their_precision(torch.bfloat16),
    ),
    "ALiBi's slopes between two powers of 2 are the wrong half": (
        positions, "alibi_slopes", "[::2]", "[1::2]", test_positions.test_alibi_slopes_are_those_of_the_public_code,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_breaking_the_code_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, old, new, named_test = MUTATIONS[name]
    named_test()  # passes as it is
    source = textwrap.dedent(inspect.getsource(getattr(module, function)))
    assert source.count(old) == 1, f"{function} was rewritten: this mutation no longer applies"
    scope = dict(vars(module))
    exec(compile(source.replace(old, new), module.__name__, "exec"), scope)
    for holder in (attention, convolution, positions, test_attention, test_convolution, test_positions):
        if getattr(holder, function, None) is getattr(module, function) and holder is not module:
            monkeypatch.setattr(holder, function, scope[function])
    monkeypatch.setattr(module, function, scope[function])
    with pytest.raises(AssertionError):
        named_test()
