"""A reader's module beside the package's, one part switched on after another, so that the first difference has a name.

Parts are switched by weights: a matrix of zeros is silent, and so are a kernel with 1 on the present and 0 before, and
position parameters of zeros.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rcmha_lite.exercises._telling import assert_shape, plain, random, refuse, relation, require, shown

Inputs = dict[str, Tensor]
Call = Callable[[Any, Inputs], tuple[Tensor, Tensor]]
"""Of a module and inputs: all outputs, ``[batch, time, …]``, and those whose gradient counts."""

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Slip:
    """A way to go wrong that can be had from the package's module by an ``edit``; its question, and the part to blame
    where it is not the stage's."""

    ask: str
    edit: Callable[[Any], None]
    part: str = ""


@dataclass(frozen=True)
class Stage:
    """What is compared at once: a part, with the parameters that are ``silent`` meanwhile, in several cases."""

    part: str
    ask: str
    silent: tuple[str, ...]
    cases: tuple[tuple[int, ...], ...]
    slips: tuple[Slip, ...] = ()
    of_one_position: bool = False


def drawn(shapes: Mapping[str, tuple[int, ...]], silent: tuple[str, ...]) -> dict[str, Tensor]:
    """Random weights in float64; those whose name holds one of ``silent`` add nothing to the rest."""
    state = {}
    for n, (name, shape) in enumerate(shapes.items()):
        weight, off = random(*shape, seed=n + 1), any(part in name for part in silent)
        if off:
            weight.zero_()
            if name.endswith("convolution.weight"):
                weight[..., -1] = 1
        elif "norm.weight" in name:
            weight = 1 + 0.3 * weight
        elif name.endswith("bias") and "position" not in name:
            weight = weight / 2
        elif weight.ndim == 2 and "position." not in name and "embedding" not in name:
            weight = weight / shape[1] ** 0.5
        elif name.endswith("position.projection"):
            weight = weight / 4
        state[name] = weight
    return state


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write the weights into the parameters of these names, as ``load_state_dict`` does."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state[name])


@dataclass
class Trial:
    """One comparison: both modules with the same weights, the inputs, and how they are called."""

    yours: nn.Module
    theirs: nn.Module
    inputs: Inputs
    call: Call
    where: str

    def difference(self, stage: Stage, tolerance: float = TOLERANCE) -> tuple[str, str]:
        """The part to blame and what to say; two empty strings where outputs and gradients agree."""
        found, expected = self.call(self.yours, self.inputs), self.call(self.theirs, self.inputs)
        assert_shape(found[0], tuple(expected[0].shape), f"{stage.part}: {self.where}: the outputs")
        kind = next((x.dtype for x in self.inputs.values() if x.is_floating_point()), torch.float64)
        require(
            found[0].dtype == kind,
            f"{stage.part}: {self.where}: expected outputs in {kind}, found {found[0].dtype}:"
            " which of your numbers are made in another precision?",
        )
        y, z = plain(found[0], "the outputs"), plain(expected[0], "the outputs")
        apart = ~((y - z).abs() <= tolerance * z.abs().max().clamp(min=1))
        if apart.any():
            return self.explained(stage, y, z, apart)
        return self.gradients(stage, found[1], expected[1], tolerance * 100)

    def explained(self, stage: Stage, y: Tensor, z: Tensor, apart: Tensor) -> tuple[str, str]:
        """Where the outputs differ, and the question that fits."""
        t = int(apart.transpose(0, 1).flatten(1).any(dim=1).nonzero()[0])
        b, c = apart[:, t].nonzero()[0].tolist()
        before = f"; before position {t} all is right" if t else ""
        place = f"text {b}, position {t}, channel {c}"
        numbers = f"expected {shown(z[b, t, c])}, found {shown(y[b, t, c])}"
        told = f"{self.where}\n  {place}: {numbers} ({int(apart.sum())} of {apart.numel()} numbers differ{before})"
        again = plain(self.call(self.yours, self.inputs)[0], "the outputs")
        if not torch.equal(again.nan_to_num(), y.nan_to_num()):
            return "chance", f"{told}\n  Two calls with the same inputs answer differently. Is there dropout?"
        if y.isfinite().all() and not self.alone(y):
            return "the batch", f"{told}\n  What you answer to a text changes with the texts beside it in the batch."
        if stage.of_one_position and not y.isfinite().all():
            return "the mask", f"{told}\n  {relation(y, z)} Does a query see its own position?"
        ahead = self.looks_ahead(y)
        for slip in stage.slips:
            edited = copy.deepcopy(self.theirs)
            with torch.no_grad():
                slip.edit(edited)
            other = plain(self.call(edited, self.inputs)[0], "the outputs")
            if torch.allclose(y, other, rtol=0, atol=10 * TOLERANCE * float(z.abs().max().clamp(min=1))):
                return slip.part or stage.part, f"{told}\n{ahead}  {slip.ask}"
        simple = relation(y, z, order=False)
        return stage.part, f"{told}\n{ahead}{f'  {simple}' + chr(10) if simple else ''}  {stage.ask}"

    def alone(self, y: Tensor) -> bool:
        """Whether the first text gets the same answer without the others."""
        found = self.call(self.yours, {name: x[:1] for name, x in self.inputs.items()})[0]
        return found.shape == y[:1].shape and torch.allclose(plain(found, ""), y[:1], rtol=0, atol=1e-7)

    def looks_ahead(self, y: Tensor) -> str:
        """A sentence where a change at the last position changes an earlier output."""
        name, x = next(iter(self.inputs.items()))
        changed = x.clone()
        changed[:, -1] = changed[:, -1] + 1 if x.is_floating_point() else 1 - changed[:, -1].clamp(max=1)
        found = plain(self.call(self.yours, {**self.inputs, name: changed})[0], "")
        moved = ~((found - y).abs() <= 1e-9)[:, :-1]
        if not moved.any() or not y.isfinite().all():
            return ""
        t = int(moved.transpose(0, 1).flatten(1).any(dim=1).nonzero()[0])
        return f"  Your output at position {t} changes when {name} changes at position {x.shape[1] - 1}.\n"

    def gradients(self, stage: Stage, y: Tensor, z: Tensor, tolerance: float) -> tuple[str, str]:
        """The first input, or parameter that is not silent, whose gradient differs."""
        if not y.requires_grad:
            return (
                stage.part,
                f"{self.where}\n  The outputs agree, but no gradient reaches anything: is there a detach?",
            )
        upstream = random(*z.shape, seed=77).to(z)
        leaves = {name: x for name, x in self.inputs.items() if x.requires_grad}
        heard = {n: p for n, p in self.yours.named_parameters() if not any(part in n for part in stage.silent)}
        theirs = dict(self.theirs.named_parameters())
        try:
            mine = _gradients(y, [*leaves.values(), *heard.values()], upstream)
        except RuntimeError as error:
            return stage.part, f"{self.where}\n  The outputs agree, but their gradient cannot be formed: {error}"
        names = [*leaves, *heard]
        right = _gradients(z, [*leaves.values(), *(theirs[name] for name in heard)], upstream)
        for name, a, b in zip(names, mine, right, strict=True):
            if not torch.allclose(a, b, rtol=0, atol=tolerance * float(b.abs().max().clamp(min=1))):
                at = tuple((~torch.isclose(a, b, rtol=0, atol=tolerance)).nonzero()[0].tolist())
                numbers = f"at {list(at)} expected {shown(b[at])}, found {shown(a[at])}"
                cut = " All of it is zero: is there a detach, .data or no_grad on its way?" if not a.any() else ""
                told = f"{self.where}\n  The outputs agree, the gradient of {name} does not: {numbers}.{cut}"
                return stage.part, f"{told}\n  {stage.ask}"
        return "", ""


def _gradients(y: Tensor, wanted: list[Tensor], upstream: Tensor) -> list[Tensor]:
    frozen = [not w.requires_grad for w in wanted]
    got = iter(torch.autograd.grad(y, [w for w in wanted if w.requires_grad], upstream, allow_unused=True))
    found = [None if off else next(got) for off in frozen]
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def compare(
    stage: Stage,
    yours: nn.Module,
    theirs: nn.Module,
    inputs: Inputs,
    call: Call,
    before: list[str],
    where: str,
    more: Callable[[], str] = str,
) -> None:
    """AssertionError, under the part to blame, unless both modules agree with the stage's weights; ``more`` says more."""
    state = drawn({name: tuple(p.shape) for name, p in theirs.named_parameters()}, stage.silent)
    load(yours, state)
    load(theirs, state)
    try:
        part, message = Trial(yours, theirs, inputs, call, where + _silence(stage)).difference(stage)
    except AssertionError as error:  # of a module that stopped
        message = str(error).removeprefix(f"{stage.part}: ")
        raise AssertionError(told(stage.part, f"{message}\n  {stage.ask}", before)) from error
    if part:
        refuse(told(part, message + more(), before))


def told(part: str, message: str, before: list[str]) -> str:
    """The message, under its part, and the parts that were right."""
    return f"{part}: {message}" + (f"\n  Right so far: {', '.join(before)}." if before else "")


def _silence(stage: Stage) -> str:
    if not stage.silent:
        return ""
    kernels = " (kernels 1 on the present, 0 before)" if "convolution" in "".join(stage.silent) else ""
    return f"; weights of zero: {', '.join(stage.silent)}{kernels}"
