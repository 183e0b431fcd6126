"""How a check asks the reader's code, compares what it says, and tells what differs: shared by all checks.

Nothing here judges by ``assert``, which ``python -O`` leaves out, and nothing that the reader's code raises comes
through: it becomes a sentence of the check's own.
"""

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from rcmha_lite.exercises._progress import record

Slips = Mapping[str, Any]
"""What a plausible slip would have given, under a sentence that says so."""


def refuse(message: str) -> NoReturn:
    """AssertionError with this message."""
    raise AssertionError(message)


def require(fact: bool, message: str) -> None:
    """AssertionError with this message unless ``fact``; also under ``python -O``."""
    if not fact:
        refuse(message)


def random(*shape: int, seed: int = 0) -> Float[Tensor, "..."]:
    """Standard normal numbers in float64, the same at every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def described(value: Any) -> str:
    """A tensor by its shape, what holds tensors by what it is, anything else as it is written."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if any(isinstance(x, Tensor) for x in held):
        return f"({type(value).__name__} of {', '.join(map(described, held))})"
    return shortened(repr(value))


def shortened(text: str, length: int = 400) -> str:
    """At most about ``length`` characters of a text."""
    return text if len(text) <= length else text[:length] + " …"


def copied(value: Any) -> Any:
    """The same in memory of its own, tensors inside lists, tuples and dicts too; a copy leads back to its graph."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        parts = [copied(x) for x in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def telling(check: Callable[..., str]) -> Callable[..., str]:
    """The check, which now raises AssertionError only: whatever else gets through says what stopped it. What it accepts
    is the reader's progress."""

    @functools.wraps(check)
    def checked(*answer: Any, **options: Any) -> str:
        try:
            praise = check(*answer, **options)
        except AssertionError:
            raise
        except Exception as error:
            said = shortened(traceback.format_exception_only(error)[-1].strip())
            raise AssertionError(f"your answer stopped the check: {said}") from error
        record(check, options)
        return praise

    return checked


def asked(
    function: Any, named: Mapping[str, Any], who: str = "your function", hint: str = "", *, copies: bool = True
) -> Any:
    """What ``function`` answers to the ``named`` inputs, given by place, as copies unless said otherwise.

    AssertionError, with the inputs' shapes, where it raises anything; where it returns nothing; and where it is no
    function.
    """
    require(callable(function), f"{who}: expected something to call, found {type(function).__name__}")
    given = ", ".join(f"{name} {described(value)}" for name, value in named.items())
    try:
        found = function(*(copied(x) if copies else x for x in named.values()))
    except Exception as error:
        said = shortened(traceback.format_exception_only(error)[-1].strip())
        raise AssertionError(f"{who} raised {said}\n  It was given {given}.{hint}") from error
    require(found is not None, f"{who} returned nothing: does it end with return?")
    return found


def answered(found: Any) -> Any:
    """What the reader's function returned, if it returned something."""
    require(found is not None, "your function returned nothing: does it end with return?")
    return found


def number(found: Any, what: str) -> float:
    """A number, or a tensor that holds one."""
    try:
        return float(found.detach() if isinstance(found, Tensor) else found)
    except Exception as error:
        text = shortened(repr(found), 100)
        raise AssertionError(f"{what}: expected a number, found {type(found).__name__} {text}") from error


def numbers(found: Any, count: int, what: str) -> Tensor:
    """So many numbers in float64, from anything that can be gone through."""
    try:
        listed = list(found)
    except Exception as error:
        raise AssertionError(f"{what}: expected {count} numbers, found {type(found).__name__}") from error
    require(len(listed) == count, f"{what}: expected {count} numbers, found {len(listed)}")
    return torch.tensor([number(x, what) for x in listed], dtype=torch.float64)


def assert_shape(yours: Any, shape: tuple[int, ...], what: str) -> None:
    """A tensor of this shape: not a number, and not nothing."""
    require(isinstance(yours, Tensor), f"{what}: expected a tensor, found {type(yours).__name__}")
    require(yours.shape == shape, f"{what}: expected shape {list(shape)}, found {list(yours.shape)}")


def plain(yours: Tensor, what: str) -> Float[Tensor, "..."]:
    """The tensor's numbers in float64, apart from any graph. AssertionError where it holds none."""
    require(not yours.is_complex(), f"{what}: expected real numbers, found {yours.dtype}")
    try:
        return yours.detach().cpu().to_dense().double().clone()
    except Exception as error:
        raise AssertionError(f"{what}: your tensor's numbers cannot be read ({type(error).__name__})") from error


def assert_same(yours: Any, expected: Tensor, what: str, tolerance: float = 1e-9, slips: Slips | None = None) -> None:
    """Same shape, and no element further than ``tolerance`` (in float32 at least 1e-5) from the expected one.

    AssertionError says where the first that differs stands, what was found and what was expected; and, if ``slips``
    hold what was found, or a simple relation leads there, which.
    """
    assert_shape(yours, tuple(expected.shape), what)
    tolerance = tolerance if yours.dtype == torch.float64 else max(tolerance, 1e-5)
    found, expected = plain(yours, what), expected.detach().double()
    apart = ~((found - expected).abs() <= tolerance)  # true of nan, too
    if not apart.any():
        return
    at = tuple(apart.nonzero()[0].tolist())
    place = f" at {list(at)}" if at else ""
    count = f" ({int(apart.sum())} of {apart.numel()} numbers differ)" if apart.numel() > 1 else ""
    message = f"{what}:{place} expected {shown(expected[at])}, found {shown(found[at])}{count}"
    reason = recognised(found, slips or {}, tolerance) or relation(found, expected)
    refuse(message + (f".\n  {reason}" if reason else ""))


def shown(x: Any) -> str:
    """A number with as many digits as are worth comparing; a row of numbers in brackets."""
    if isinstance(x, Tensor) and x.ndim:
        return "[" + ", ".join(map(shown, x)) + "]"
    return f"{float(x):.4g}"


def recognised(found: Tensor, slips: Slips, tolerance: float = 1e-9) -> str:
    """The sentence of the first slip that would give what was ``found``; nothing where none would."""
    for sentence, value in slips.items():
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.shape == found.shape and torch.allclose(found, value, rtol=0, atol=10 * tolerance, equal_nan=True):
            return sentence
    return ""


def relation(found: Tensor, expected: Tensor, *, order: bool = True) -> str:
    """How what was found can be had from what was expected, if simply: by a sign or a factor, and, where ``order`` is
    worth a look, by an order or a shift."""
    if found.isnan().any():
        return "nan comes of 0/0, ∞ − ∞, or the softmax of a row that is masked as a whole."
    if found.numel() < 2 or not expected.any():
        return ""

    def equal(other: Tensor) -> bool:
        return other.shape == found.shape and torch.allclose(found, other, rtol=1e-6, atol=1e-9)

    if not found.any():
        return "All your numbers are zero."
    if equal(-expected):
        return "Every number has the wrong sign."
    factor = (found * expected).sum() / expected.square().sum()
    if abs(factor - 1) < 1e-4 and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        return "So small a difference is float32's: is a number of yours made in float32?"
    if equal(factor * expected):
        return f"Every number is {shown(factor)} times what it should be."
    if not order:
        return ""
    if expected.ndim > 1 and equal(expected.transpose(-1, -2)):
        return "Rows and columns are exchanged."
    names = {1: ["place"], 2: ["row", "column"]}.get(expected.ndim, [f"index {n}" for n in range(expected.ndim)])
    for dim, name in enumerate(names):
        if expected.shape[dim] < 2:
            continue
        if equal(expected.flip(dim)):
            return f"The {name}s stand in reverse order."
        for by in (1, -1):
            kept = expected.shape[dim] - 1
            a, b = (found, expected) if by > 0 else (expected, found)
            if torch.allclose(a.narrow(dim, 1, kept), b.narrow(dim, 0, kept), rtol=1e-6, atol=1e-9):
                return f"What you found stands one {name} too {'far on' if by > 0 else 'early'}."
    return ""
