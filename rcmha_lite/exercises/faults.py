"""The checks of chapter 10: modules with one wrong line, whether the part that holds it is named, and an alarm for leaks.

A part is judged by an experiment in which no other part can show, so that whoever names the wrong part is told what
the experiment with that part found.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rcmha_lite import attention
from rcmha_lite.exercises import rcmha_in_one_file
from rcmha_lite.exercises._manners import undisturbed
from rcmha_lite.exercises._stages import drawn, load
from rcmha_lite.exercises._telling import asked, random, refuse, require, shown, telling


def planted(*changes: tuple[str, str]) -> ModuleType:
    """``rcmha_in_one_file`` with changes, each ``(right, wrong)``, of a piece of one line: the names of that file.

    ValueError unless each right piece stands in it exactly once.
    """
    source = inspect.getsource(rcmha_in_one_file)
    for right, wrong in changes:
        if (times := source.count(right)) != 1:
            raise ValueError(f"{right!r} stands in the file {times} times: give what stands in one line, and once")
        source = source.replace(right, wrong)
    module = ModuleType("planted")
    exec(compile(source, "planted", "exec"), vars(module))
    return module


@dataclass(frozen=True)
class Fault:
    """A wrong line: the part that holds it, the right piece, the wrong one, and what is wrong in words."""

    part: str
    right: str
    wrong: str
    told: str


_KERNEL = "self.weight[:, None, :, None, :, s]"

FAULTS = (
    Fault("mask", "triu(k.shape[2] - queries + 1)", "triu(k.shape[2] - queries + 2)", "a query sees one key too many"),
    Fault(
        "distances",
        "by_distance.gather(3, delta.clamp(min=0).expand_as(by_distance))",
        "by_distance",
        "the shift is lost: column j holds the score of distance j, for every query",
    ),
    Fault(
        "heads",
        "self.output(y.transpose(1, 2).flatten(2))",
        "self.output(y.reshape(x.shape))",
        "the heads are merged without being brought behind the time",
    ),
    Fault(
        "kernels",
        "padded[:, :, :, s : s + time]",
        "qkv.roll(taps - 1 - s, dims=3)",
        "the text is rolled, not padded: its last rows stand before its first",
    ),
    Fault("scale", "math.sqrt(self.d)", "math.sqrt(x.shape[2])", "the root is of d_model, not of a head's width"),
    Fault(
        "memory",
        "q = q[:, :, k.shape[2] - queries :]",
        "q = self.convolution(qkv[:, :, :, k.shape[2] - queries :])[0]",
        "the queries are convolved without the memory before them",
    ),
    Fault(
        "u and v",
        "content = (q + self.content_bias[:, None])",
        "content = (q + self.position_bias[:, None])",
        "v stands where u should",
    ),
    Fault("kernels", _KERNEL, "self.weight[:1, None, :, None, :, s]", "one kernel serves queries, keys and values"),
)
"""What ``broken`` draws from, by number from 1 on."""


def broken(n: int) -> nn.Module:
    """RCMHA of width 16 with 2 heads, in float64, with one wrong line; called as ``module(x, memory=None)``.

    Its parameters have the names and shapes of ``attention.rcmha(16, 2)``, and random numbers. ValueError for a number
    that no module has.
    """
    fault = _fault(n)
    module = _made(planted((fault.right, fault.wrong)).RCMHA, 16, 2)
    load(module, drawn(_shapes(module), ()))
    return module


def _fault(n: int) -> Fault:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(FAULTS):
        raise ValueError(f"there is no broken module {n!r}: give a number from 1 to {len(FAULTS)}")
    return FAULTS[n - 1]


def _made(kind: Callable[[int, int], nn.Module], d_model: int, n_heads: int) -> nn.Module:
    with undisturbed():
        return kind(d_model, n_heads).double()


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


@dataclass(frozen=True)
class Part:
    """A part's names, and the experiment in which it alone can show: with the parameters of ``silent`` adding nothing,
    what a module of so many heads answers to ``time`` positions after ``past`` others; ``last``: to the last of them.

    Without ``silent``, the module is compared with itself: a text read in two pieces, and at once.
    """

    spellings: tuple[str, ...]
    told: str
    silent: tuple[str, ...] = ()
    heads: int = 1
    time: int = 6
    past: int = 0
    last: bool = True

    def measure(self, kind: Callable[[int, int], nn.Module]) -> tuple[Tensor, Tensor]:
        """What a module of this kind answers, and what it should."""
        module, right = _made(kind, 8 * self.heads, self.heads), attention.rcmha(8 * self.heads, self.heads).double()
        state = drawn(_shapes(right), self.silent)
        load(module, state)
        load(right, state)
        x = random(2, self.time, 8 * self.heads, seed=101)
        memory = random(2, self.past, 8 * self.heads, seed=102) if self.past else None
        found: Tensor = module(x, memory)
        expected: Tensor = right(x, memory)
        if not self.silent and memory is not None:
            expected = module(torch.cat((memory, x), dim=1))[:, self.past :]
        return (found[:, -1:], expected[:, -1:]) if self.last else (found, expected)


_SCORES = ("query", "key")

PARTS = {
    "mask": Part(
        ("mask", "causal mask", "masking"),
        "queries, keys, distances and kernels silent, one head: each output is the mean of the values that its query sees",
        (*_SCORES, "convolution", "position"),
        last=False,
    ),
    "heads": Part(
        (
            "heads",
            "head",
            "split",
            "merge",
            "split and merge",
            "split into heads",
            "merge of heads",
            "merging of heads",
        ),
        "queries, keys, distances and kernels silent, two heads, at the last position, which sees all: the mean of the"
        " values of each head, side by side, through the output projection",
        (*_SCORES, "convolution", "position"),
        heads=2,
    ),
    "scale": Part(
        ("scale", "scaling", "root", "square root", "root of d", "sqrt d", "√d"),
        "distances and kernels silent, two heads, one query after 6 positions of memory: the softmax of q·k, divided",
        ("convolution", "position"),
        heads=2,
        time=1,
        past=6,
    ),
    "kernels": Part(
        ("kernels", "kernel", "convolution", "convolutions", "taps", "padding"),
        "queries, keys and distances silent, one head, at the last position, which sees all: the mean of the convolved"
        " values",
        (*_SCORES, "position"),
    ),
    "distances": Part(
        ("distances", "distance", "positions", "position", "relative positions", "shift", "relative shift", "waves"),
        "u, v and kernels silent, one head, at the last position, which sees all: the scores are q·k and q·W r",
        ("convolution", "content_bias", "position_bias"),
    ),
    "u and v": Part(
        ("u and v", "u", "v", "u v", "u or v", "biases u and v", "content bias", "position bias"),
        "W, v and kernels silent, one head, at the last position, which sees all: the scores are q·k and u·k",
        ("convolution", "position.projection", "position_bias"),
    ),
    "memory": Part(
        ("memory",),
        "nothing silent, one head: a text read in two pieces, the first as memory of the second, and the same text at"
        " once",
        past=4,
        last=False,
    ),
}
"""The parts by name, in the order in which the chapter lists them."""


@telling
def check_fault(n: int, part: str) -> str:
    """Whether the ``part`` with this name holds the wrong line of ``broken(n)``; if not, what speaks against it."""
    return _judged(n, part)


@telling
def check_faults(parts: Mapping[int, str], *, first: int = 2, last: int = 5) -> str:
    """``check_fault`` of several modules, from ``first`` to ``last``: ``parts`` has a name for each number."""
    numbers = [*range(first, last + 1)]
    require(isinstance(parts, Mapping), f"give {{number: part}}, found {type(parts).__name__}")
    require(set(parts) == set(numbers), f"give a part for each of {numbers}, found {sorted(parts, key=repr)}")
    return "\n".join(_judged(n, parts[n]).splitlines()[0] for n in numbers)


def _judged(n: int, part: Any) -> str:
    """Praise, or AssertionError with the experiment that speaks against the part."""
    try:
        fault = _fault(n)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    name = _named(part)
    kind = planted((fault.right, fault.wrong)).RCMHA
    with undisturbed(), torch.no_grad():
        found, expected = PARTS[name].measure(kind)
        wrong, right = PARTS[name].measure(_example(name))
    apart = (found - expected).abs()
    if name == fault.part:
        told = f"Right: {_called(name)}. In broken({n}) {fault.told}."
        return f"{told}\n  The experiment: {PARTS[name].told}. Outputs differ by up to {shown(apart.max())}."
    at = tuple(int(i) for i in torch.unravel_index((wrong - right).abs().argmax(), right.shape))
    refuse(
        f"{_called(name)} {'is' if name in ('mask', 'scale', 'memory') else 'are'} right in broken({n}).\n"
        f"  The experiment: {PARTS[name].told}.\n"
        f"  No other part shows in it. At {list(at)} expected {shown(expected[at])}, found {shown(found[at])};"
        f" nowhere more than {max(1e-9, apart.max().item()):.0e} apart.\n"
        f"  A fault of this part would show: with one of them {shown(wrong[at])} stands there in place of {shown(right[at])}."
    )


def _named(part: Any) -> str:
    """The part that the reader's word means; AssertionError with all names for any other."""
    listed = ", ".join(PARTS)
    require(isinstance(part, str), f"give the name of a part, one of {listed}; found {type(part).__name__}")
    words = re.sub(r"[^\w√]+", " ", part.lower().replace("&", " and ").replace("1/√", "√").replace("1/sqrt", "sqrt"))
    word = re.sub(r"^(the|a) ", "", words.strip()).strip()
    for name, known in PARTS.items():
        if word in known.spellings:
            return name
    refuse(f"{part!r} is no part of the list: give one of {listed}")


def _called(name: str) -> str:
    return name if name == "u and v" else f"the {name}"


def _example(part: str) -> Callable[[int, int], nn.Module]:
    """RCMHA with the first fault of a part."""
    fault = next(fault for fault in FAULTS if fault.part == part)
    kind: Callable[[int, int], nn.Module] = planted((fault.right, fault.wrong)).RCMHA
    return kind


class _Turned(nn.Module):
    """A module that reads time backwards."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x.flip(1)).flip(1)
        return found


class _Faint(nn.Module):
    """x, with a millionth of the row ``ahead`` later, where there is one; 0: of the last row at the first alone."""

    def __init__(self, ahead: int) -> None:
        super().__init__()
        self.ahead = ahead

    def forward(self, x: Tensor) -> Tensor:
        found = x.clone()
        if self.ahead:
            found[:, : -self.ahead] += 1e-6 * x[:, self.ahead :]
        elif x.shape[1] > 1:
            found[:, 0] += 1e-6 * x[:, -1]
        return found


def _alarms() -> dict[str, tuple[nn.Module, bool]]:
    """Modules of width 16 under what they are, and whether the alarm must sound."""

    def with_weights(kind: Callable[[int, int], nn.Module]) -> nn.Module:
        module = _made(kind, 16, 2)
        load(module, drawn(_shapes(module), ()))
        return module

    softmax = 'scores.masked_fill(future, float("-inf")).softmax(dim=3)'
    after = planted((softmax, "scores.softmax(dim=3).masked_fill(future, 0.0)")).RCMHA
    sides = planted(("F.pad(qkv, (0, 0, taps - 1, 0))", "F.pad(qkv, (0, 0, 1, 1))")).RCMHA
    unmasked = planted((softmax, "scores.softmax(dim=3)")).RCMHA
    return {
        "RCMHA as it should be": (with_weights(rcmha_in_one_file.RCMHA), False),
        "RCMHA without a mask": (with_weights(unmasked), True),
        "RCMHA with its mask after the softmax: the future is in the denominators alone": (with_weights(after), True),
        "RCMHA with kernels padded on both sides": (with_weights(sides), True),
        "RCMHA with kernels that wrap around: the last two positions reach the first two": (
            with_weights(_example("kernels")),
            True,
        ),
        "RCMHA that sees one key too many": (with_weights(_example("mask")), True),
        "RCMHA that reads time backwards": (_Turned(with_weights(rcmha_in_one_file.RCMHA)), True),
        "a module that answers with its input": (nn.Identity(), False),
        "a linear layer at each position": (with_weights(lambda d, _: nn.Linear(d, d)), False),
        "a module that adds a millionth of the next row": (_Faint(1), True),
        "a module that adds a millionth of the row 4 later": (_Faint(4), True),
        "a module whose first output holds a millionth of the last row": (_Faint(0), True),
    }


@telling
def check_alarm(alarm: Callable[[nn.Module, Tensor], bool]) -> str:
    """``alarm(module, x)``, x ``[batch, time, width]`` in float64: True where an output depends on a later input."""
    x = random(2, 9, 16, seed=3)
    with undisturbed():
        for what, (module, expected) in _alarms().items():
            answer = asked(alarm, {"module": module, "x": x}, "your alarm")
            try:
                found = bool(answer)
            except Exception as error:
                raise AssertionError(f"your alarm: expected True or False, found {type(answer).__name__}") from error
            if found != expected:
                silent = "Is every earlier output compared, at every position that can change, to the last digits?"
                false = "An output may depend on its own position and on what came before: leave those out."
                refuse(f"{what}: expected {expected}, found {found}.\n  {silent if expected else false}")
    return "Right: it sounds at every leak, however faint or far, and at nothing else."
