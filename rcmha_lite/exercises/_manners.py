"""What holds of every module that a reader hands in, whatever it computes: it is the reader's own, has the parameters
that are asked for, keeps to itself, and works in another precision and on another device."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rcmha_lite.exercises._stages import Call, Inputs, drawn, load
from rcmha_lite.exercises._telling import asked, described, refuse, require

MINE = "rcmha_lite."


@contextmanager
def undisturbed() -> Iterator[None]:
    """PyTorch's random numbers go on afterwards as if nothing had been; gradients are on."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        yield


def is_package(name: str) -> bool:
    """A module of the package that is not of the exercises."""
    return name.startswith(MINE) and not name.startswith(MINE + "exercises")


def refuse_the_package(act: Callable[[], Any], modules: Callable[[], list[nn.Module]], name: str) -> None:
    """AssertionError if ``act`` runs code of the package, or the reader's ``modules`` are of its classes."""
    called: dict[str, None] = {}

    def look(frame: Any, event: str, _: Any) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and is_package(module) and frame.f_code.co_name[0] != "<":
            called.setdefault(f"{frame.f_code.co_qualname} of {module}")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        act()
    except Exception:
        pass  # told of in its place
    finally:
        sys.setprofile(before)
    for module in modules():
        for kind in type(module).__mro__:
            if is_package(kind.__module__):
                refuse(f"{name} is made of the package's {kind.__qualname__} ({kind.__module__}): write it yourself")
    if called:
        refuse(f"{name} calls the package's {next(iter(called))}: write that part yourself")


def only_the_readers(make: Callable[[], nn.Module], inputs: Inputs, name: str) -> None:
    """AssertionError where making or calling it runs code of the package."""
    module: list[nn.Module] = []

    def act() -> None:
        module.append(make())
        module[0](*inputs.values())

    refuse_the_package(act, lambda: [m for whole in module for m in whole.modules()], name)


def made(kind: Any, arguments: Mapping[str, int], name: str) -> nn.Module:
    """The reader's class with these arguments, by place, in float64."""
    call = f"{name}({', '.join(map(str, arguments.values()))})"
    require(not isinstance(kind, nn.Module), f"give the class itself, {name}, not a module that it made")
    require(callable(kind), f"give the class itself: found {type(kind).__name__}")
    given = ", ".join(f"{key} {value}" for key, value in arguments.items())
    module = asked(kind, arguments, call, f"\n  It must be made with {given}.")
    require(isinstance(module, nn.Module), f"{call}: expected an nn.Module, found {type(module).__name__}")
    return module.double()


def require_names(yours: nn.Module, shapes: Mapping[str, tuple[int, ...]], call: str) -> None:
    """AssertionError, with the table of all names and shapes, unless the parameters are named and shaped so."""
    found = dict(yours.named_parameters(remove_duplicate=False))
    faults = []
    for name, shape in shapes.items():
        if name not in found:
            faults.append(f"{name} {list(shape)} is missing")
        elif tuple(found[name].shape) != shape:
            faults.append(f"{name} has shape {list(found[name].shape)}, expected {list(shape)}")
        elif twin := next((n for n in shapes if n < name and found.get(n) is found[name]), ""):
            faults.append(f"{name} and {twin} are one parameter: make two")
    faults += [f"{name} {list(p.shape)} is one too many" for name, p in found.items() if name not in shapes]
    if faults:
        table = "\n".join(f"    {name:45} {list(shape)}" for name, shape in shapes.items())
        told = "\n  ".join(faults)
        dots = "A dot leads into a module inside: position.projection is self.position.projection."
        refuse(f"names and shapes: of the parameters of {call}\n  {told}\n  {dots} Wanted are:\n{table}")


def require_manners(yours: nn.Module, theirs: nn.Module, inputs: Inputs, call: Call) -> None:
    """Whatever is not a part: inputs untouched, None as memory, single precision."""
    state = drawn({name: tuple(p.shape) for name, p in theirs.named_parameters()}, ())
    load(yours, state)
    load(theirs, state)
    untouched(yours, inputs)
    name, x = next(iter(inputs.items()))
    nothing: dict[str, Any] = {name: x, "memory": None}
    alone, none = call(yours, {name: x})[0], call(yours, nothing)[0]
    require(torch.equal(alone, none), f"memory: your module answers {name} and ({name}, None) differently")
    single = {key: value.detach().float() if value.is_floating_point() else value for key, value in inputs.items()}
    exact = call(theirs, inputs)[0]
    yours.float()
    try:
        rough = call(yours, single)[0]
    except AssertionError as error:
        raise AssertionError(f"float32: {error}\n  Which of your numbers are made in float64?") from error
    finally:
        yours.double()
    require(rough.dtype == torch.float32, f"float32: from float32 you make {rough.dtype}: which numbers are made so?")
    apart = (rough.double() - exact).abs().max().item()
    require(apart <= 1e-4 * exact.abs().max().item(), f"float32: the outputs lie {apart:.2g} from those in float64")


def require_independence(make: Callable[[], nn.Module], yours: nn.Module, inputs: Inputs, call: Call) -> None:
    """AssertionError where a second module is not one of its own, or does not take the first one's weights."""
    before, second = call(yours, inputs)[0].detach().clone(), make()
    for parameter in second.parameters():
        parameter.data.zero_()
    same = torch.equal(call(yours, inputs)[0], before)
    require(same, "what you keep: two modules of your class share weights: make them in __init__")
    try:
        second.load_state_dict(dict(yours.state_dict()))
    except Exception as error:
        raise AssertionError(f"what you keep: state_dict() does not fit a second module: {error}") from error
    apart = (call(second, inputs)[0] - before).abs().max().item()
    require(
        apart <= 1e-9, f"what you keep: a second module with the first one's state_dict answers {apart:.2g} otherwise"
    )
    on_no_device(second, inputs, call)


def untouched(module: nn.Module, inputs: Inputs) -> None:
    """AssertionError where a call changes what it was given, or a parameter, or answers otherwise the second time."""
    given = {name: x.detach().clone() for name, x in inputs.items()}
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    answers = []
    with torch.no_grad():
        for training in (True, False):
            module.train(training)
            found = asked(module, given, "your module", copies=False)
            answers.append(found[0] if isinstance(found, tuple | list) else found)
            for name, x in given.items():
                same = torch.equal(x, inputs[name])
                require(same, f"what you are given: your module changes {name} {described(x)}: work on a copy")
            for name, p in module.named_parameters():
                require(torch.equal(p, weights[name]), f"what you keep: a call changes the parameter {name}")
    module.train()
    same = torch.allclose(answers[0], answers[1], rtol=0, atol=1e-12)
    require(same, "what you keep: a second call, in eval(), answers otherwise than the first, in train()")


def on_no_device(module: nn.Module, inputs: Inputs, call: Call) -> None:
    """AssertionError where a number is made on another device than the inputs' (tried on PyTorch's ``meta`` device,
    where tensors have shapes and no numbers, so that what needs a number is not judged)."""
    module.to("meta")
    try:
        call(module, {name: x.detach().to("meta") for name, x in inputs.items()})
    except AssertionError as error:
        if "expected device" in str(error) or "same device" in str(error):
            refuse(f"device: on another device than the CPU your module stops. Where are its numbers made?\n  {error}")
