"""The broken modules of chapter 10 are broken in one part each, and its checks tell right answers from wrong ones."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rcmha_lite import attention, exercises
from rcmha_lite.exercises import faults, rcmha_in_one_file
from rcmha_lite.exercises.faults import FAULTS, PARTS

NUMBERS = range(1, len(FAULTS) + 1)


def refused(check, *answer) -> str:
    with pytest.raises(AssertionError) as caught:
        check(*answer)
    return str(caught.value)


def kind(n):
    return faults.planted((FAULTS[n - 1].right, FAULTS[n - 1].wrong)).RCMHA


@torch.no_grad()
def apart(part: str, kind) -> float:
    found, expected = PARTS[part].measure(kind)
    assert expected.abs().max() > 0.1
    return (found - expected).abs().max().item()


def test_every_part_has_a_broken_module():
    assert {fault.part for fault in FAULTS} == set(PARTS)
    assert 6 <= len(FAULTS) <= 8


@torch.no_grad()
@pytest.mark.parametrize("n", NUMBERS)
def test_a_broken_module_is_called_as_the_package_s_and_differs(n):
    module, right = exercises.broken(n), attention.rcmha(16, 2).double()
    right.load_state_dict(module.state_dict())
    x, memory = exercises.random(2, 7, 16), exercises.random(2, 5, 16, seed=1)
    assert module(x).shape == module(x, memory).shape == x.shape
    assert (module(x, memory) - right(x, memory)).abs().max() > 0.01
    if FAULTS[n - 1].part == "memory":
        torch.testing.assert_close(module(x), right(x), rtol=0, atol=1e-12)
    else:
        assert (module(x) - right(x)).abs().max() > 0.01


@pytest.mark.parametrize("n", NUMBERS)
def test_a_broken_module_does_not_name_its_fault(n):
    module = exercises.broken(n)
    assert repr(module) == repr(exercises.broken(1))
    assert vars(module).keys() == vars(exercises.broken(1)).keys()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), exercises.broken(1).parameters(), strict=True))


def test_a_broken_module_trains():
    module = exercises.broken(2)
    module(exercises.random(1, 4, 16)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(("n", "part"), [*itertools.product(NUMBERS, PARTS)])
def test_it_differs_in_its_part_only(n, part):
    """The experiment of each part sees the faults of that part and no other."""
    assert (apart(part, kind(n)) > 0.01) == (part == FAULTS[n - 1].part)
    assert apart(part, kind(n)) > 0.01 or apart(part, kind(n)) < 1e-12


@pytest.mark.parametrize("part", PARTS)
def test_without_a_fault_no_experiment_shows_any(part):
    assert apart(part, rcmha_in_one_file.RCMHA) < 1e-12


@pytest.mark.parametrize("n", NUMBERS)
def test_the_check_of_rcmha_refuses_it_too(n):
    with pytest.raises(AssertionError):
        exercises.check_rcmha(kind(n))


SPELLINGS = {
    "mask": ("mask", "The mask", " causal mask.", "MASKING"),
    "heads": ("heads", "the heads", "split into heads", "Merge"),
    "scale": ("scale", "the root", "√d", "1/√d", "sqrt d", "1/sqrt d"),
    "kernels": ("kernels", "the convolution", "Kernel", "padding"),
    "distances": ("distances", "the shift", "relative positions", "Waves"),
    "u and v": ("u and v", "u & v", "U, V", "the biases u and v", "u/v"),
    "memory": ("memory", "the memory", "Memory!"),
}


@pytest.mark.parametrize("n", NUMBERS)
def test_the_right_part_is_accepted_however_it_is_spelt(n):
    spellings = SPELLINGS[FAULTS[n - 1].part]
    assert len(spellings) >= 3
    for spelling in spellings:
        said = exercises.check_fault(n, spelling)
        assert said.startswith("Right")
        assert FAULTS[n - 1].told in said


@pytest.mark.parametrize("n", NUMBERS)
def test_another_part_is_refused_with_what_speaks_against_it(n):
    others = [part for part in PARTS if part != FAULTS[n - 1].part]
    assert len(others) >= 5
    for part in others:
        for spelling in SPELLINGS[part]:
            said = refused(exercises.check_fault, n, spelling)
            assert f"right in broken({n})" in said
            assert "expected" in said
            assert "found" in said
            assert FAULTS[n - 1].told not in said
            assert FAULTS[n - 1].wrong not in said


@pytest.mark.parametrize(
    "part", ["", "attention", "values", "the softmax", ..., None, 3, ["mask"], "maskkernels", "nan"]
)
def test_what_is_no_part_is_refused_with_their_names(part, unchecked):
    said = refused(exercises.check_fault, 1, part)
    assert all(name in said for name in PARTS)


@pytest.mark.parametrize("n", [0, len(FAULTS) + 1, -1, "1", 1.0, None, True])
def test_there_is_no_other_number(n, unchecked):
    assert "from 1 to 8" in refused(exercises.check_fault, n, "mask")
    with pytest.raises(ValueError, match="from 1 to 8"):
        exercises.broken(n)


@pytest.mark.parametrize("numbers", [(2, 5), (6, 8), (1, 8)])
def test_several_modules_at_once(numbers):
    first, last = numbers
    right = {n: FAULTS[n - 1].part for n in range(first, last + 1)}
    others = {"kernels": "mask", "mask": "kernels"}
    as_numbers = {"first": first, "last": last}
    for answer in (right, dict(reversed(right.items())), {n: f"The {part}." for n, part in right.items()}):
        said = exercises.check_faults(answer, **as_numbers)
        assert said.count("Right") == len(right)
    for n, part in right.items():
        said = refused(lambda wrong: exercises.check_faults(wrong, **as_numbers), right | {n: others.get(part, "mask")})
        assert f"right in broken({n})" in said


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "give a part for each of [2, 3, 4, 5], found []"),
        ({2: "mask"}, "found [2]"),
        (dict.fromkeys((1, 2, 3, 4, 5), "mask"), "found [1, 2, 3, 4, 5]"),
        ({str(n): "mask" for n in (2, 3, 4, 5)}, "found ['2', '3', '4', '5']"),
        (dict.fromkeys((2, 3, 4, 5), ...), "found ellipsis"),
        (["distances", "heads", "kernels", "scale"], "{number: part}, found list"),
        (..., "found ellipsis"),
    ],
)
def test_several_modules_want_a_name_each(parts, said, unchecked):
    assert said in refused(exercises.check_faults, parts)


def test_what_is_planted_replaces_pieces():
    assert exercises.planted(("triu(", "tril("), (" / math.sqrt(self.d)", "")).RCMHA(8, 2)(
        torch.zeros(1, 2, 8)
    ).shape == (1, 2, 8)
    for piece, times in (("no such line", 0), ("self", "")):
        with pytest.raises(ValueError, match=f"stands in the file {times}"):
            exercises.planted((piece, ""))


@torch.no_grad()
def test_planting_leaves_the_file_as_it_is():
    before = rcmha_in_one_file.RCMHA
    exercises.planted((" / math.sqrt(self.d)", ""))
    assert rcmha_in_one_file.RCMHA is before
    check = exercises.random(1, 3, 16)
    assert exercises.broken(5)(check).shape == check.shape


# The alarm.


@torch.no_grad()
def by_cutting(module, x):
    whole = module(x)
    return any((module(x[:, :t]) - whole[:, :t]).abs().max() > 1e-10 for t in range(1, x.shape[1]))


@torch.no_grad()
def by_changing(module, x):
    before, found = module(x), False
    for t in range(x.shape[1]):
        after = module(torch.cat((x[:, :t], x[:, t : t + 1] + 1, x[:, t + 1 :]), dim=1))
        found |= bool(((after - before)[:, :t].abs() > 1e-12).any())
    return torch.tensor(found)


def by_gradient(module, x):
    x.requires_grad_()
    y = module(x)
    for t in range(x.shape[1] - 1):
        (slope,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        if slope[:, t + 1 :].abs().max() > 0:
            return True
    return False


@torch.no_grad()
def by_noise(module, x):
    before = module(x.clone())
    for t in range(1, x.shape[1]):
        x[:, t:] = torch.randn_like(x[:, t:])
        if not torch.allclose(module(x)[:, :t], before[:, :t], rtol=0, atol=1e-11):
            return 1
        before = module(x.clone())
    return 0


@pytest.mark.parametrize("alarm", [by_cutting, by_changing, by_gradient, by_noise])
def test_an_alarm_that_hears_every_leak_passes(alarm):
    assert exercises.check_alarm(alarm).startswith("Right")


def changed_at(t, seen=slice(None), tolerance=1e-12):
    """Change one position, and look at some of the outputs."""

    @torch.no_grad()
    def alarm(module, x):
        other = x.clone()
        other[:, t] += 1
        apart = (module(other) - module(x)).abs() > tolerance
        return bool(apart[:, seen].any())

    return alarm


@pytest.mark.parametrize(
    ("alarm", "said"),
    [
        (lambda module, x: True, "RCMHA as it should be: expected False, found True"),
        (lambda module, x: False, "without a mask: expected True, found False"),
        (lambda module, x: None, "returned nothing"),
        (lambda module, x: module(x), "expected True or False, found Tensor"),
        (lambda module, x: module.alarm, "raised AttributeError"),
        (lambda module: True, "raised TypeError"),
        (3, "something to call"),
        (changed_at(4), "as it should be: expected False, found True"),  # looks at later outputs, too
        (changed_at(-1), "as it should be: expected False, found True"),  # and at the changed one
        (changed_at(-1, slice(-2, -1)), "a millionth of the row 4 later"),  # looks at the neighbour alone
        (changed_at(-1, slice(None, -1), 1e-3), "millionth of the next row"),
        (changed_at(4, slice(None, 4)), "wrap around"),  # in the middle alone
        (changed_at(0, slice(1, None)), "as it should be: expected False, found True"),  # the past, not the future
        (changed_at(4, slice(None, 1)), "kernels padded on both sides"),  # looks at the first output alone
    ],
)
def test_an_alarm_that_misses_a_leak_is_refused(alarm, said, unchecked):
    assert said in refused(exercises.check_alarm, alarm)


def test_the_alarm_s_modules_are_what_they_are_said_to_be():
    modules = faults._alarms()
    assert sum(sounds for _, sounds in modules.values()) >= 6
    for module, sounds in modules.values():
        assert isinstance(module, nn.Module)
        assert by_cutting(module, exercises.random(1, 9, 16)) == sounds


def test_the_stored_run_at_a_limit_of_memory():
    """What readers see whose system keeps no limit: the whole does not fit, each way out does, two with its gradient."""
    file = Path(__file__).parents[1] / "benchmarks/results/limit.json"
    ways = json.loads(file.read_text(encoding="utf-8"))["results"]["ways"]
    assert [name for name, way in ways.items() if not way["fits"]] == ["all at once"]
    assert "allocate" in ways["all at once"]["error"]
    same = [name for name, way in ways.items() if way["fits"] and way["apart"] < 1e-4]
    assert same == ["accumulation", "factorised, fused"]


OPTIMISED = """
from rcmha_lite import exercises
assert False, "asserts are on"
refused = 0
for check, answer in (
    (exercises.check_fault, (2, "mask")),
    (exercises.check_fault, (9, "mask")),
    (exercises.check_faults, ({2: "mask"},)),
    (exercises.check_alarm, (lambda module, x: False,)),
):
    try:
        check(*answer)
    except AssertionError:
        refused += 1
print(refused, exercises.check_fault(2, "shift")[:5])
"""


def test_without_asserts_the_same_is_refused():
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONOPTIMIZE": "1"}
    command = [sys.executable, "-c", OPTIMISED]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["4", "Right"], run.stdout + run.stderr
