"""The claims ledger, chapters/claims.yml: every claim, its verdict, its effect, and the test or file that carries it."""

import ast
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.registry import RUNS
from experiments.results import ROOT, ablation_effects, choices, difference, regime_effects, worth_of_time
from experiments.statistics import Interval, contrasts

LEDGER = ROOT / "chapters/claims.yml"
VERDICTS = ("supported", "contradicted", "open", "not testable here")


@dataclass(frozen=True)
class Claim:
    """A statement and where it comes from. ``evidence`` names tests (file::name), assertions of a chapter (file::text at
    the beginning of its line), files, and groups of results; ``effect`` is computed.

    Where nothing here can test it, ``note`` says why. With an effect, the verdict must be what its interval says of
    the bound: supported if all of the interval lies beyond it, contradicted if none does, open otherwise. Of a timing
    the median decides; the extremes of its rounds are shown beside it.
    """

    statement: str
    source: str
    verdict: str
    evidence: list[str] = field(default_factory=list)
    effect: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def measured(self) -> Interval | None:
        """The effect with its interval, from the files; for a ratio, the median with the extremes of its rounds."""
        rest = {key: value for key, value in self.effect.items() if key not in ("above", "below")}
        if not rest:
            return None
        kind = next(iter(rest))
        return EFFECTS[kind](*rest.pop(kind), **rest)

    def entailed(self) -> str | None:
        """The verdict that the effect entails; None where there is no effect."""
        found = self.measured()
        if found is None:
            return None
        low, high = (found.mean, found.mean) if "benchmark" in self.effect else (found.low, found.high)
        if "above" in self.effect:
            bound = self.effect["above"]
            return "supported" if low > bound else "contradicted" if high <= bound else "open"
        bound = self.effect["below"]
        return "supported" if high < bound else "contradicted" if low >= bound else "open"


def ledger() -> list[Claim]:
    """The claims as the file holds them."""
    return [Claim(**entry) for entry in yaml.safe_load(LEDGER.read_text(encoding="utf-8"))]


def missing_evidence(claim: Claim, root: Path = ROOT) -> list[str]:
    """What the claim names as evidence and is not there: a test or an assertion in its file, a file, a group's runs."""
    return [name for name in claim.evidence if not _is_there(name, root)]


def _is_there(name: str, root: Path) -> bool:
    file, _, test = name.partition("::")
    if (root / file).is_dir():
        runs = [run for run in RUNS.values() if run.group == (root / file).name]
        return bool(runs) and all((root / file / f"{run.name}.json").is_file() for run in runs)
    if not test:
        return (root / file).is_file()
    if not (root / file).is_file():
        return False
    text = (root / file).read_text(encoding="utf-8")
    if file.endswith(".ipynb"):
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        lines = "".join(line for cell in cells for line in [*cell, "\n"]).splitlines()
        return test.startswith("assert ") and any(line.strip().startswith(test) for line in lines)
    return any(isinstance(node, ast.FunctionDef) and node.name == test for node in ast.parse(text).body)


def _effect(names: str, *keys: str) -> Interval:
    return ablation_effects(*keys)[tuple(names.split(" × "))]


def _contrast(one: str, other: str, *, pool: Literal["kernels", "positions"], comparisons: int) -> Interval:
    return contrasts(choices(pool), {"": {one: 1, other: -1}}, comparisons=comparisons)[""]


def _regime(regime: str, part: str, *keys: str, comparisons: int, at_the_price_over: str | None = None) -> Interval:
    found = regime_effects(regime, *keys, comparisons=comparisons)[part]
    if at_the_price_over is None:
        return found
    price = _benchmark("regimes", f"{regime}, rcmha / {at_the_price_over}").mean
    return found.shifted(worth_of_time(regime, *keys) * math.log(price))


def _benchmark(file: str, *keys: str) -> Interval:
    found = json.loads((ROOT / f"benchmarks/results/{file}.json").read_text(encoding="utf-8"))["results"]
    for key in keys:
        found = found[key]
    ratio = found["ratio"]
    return Interval(ratio["median"], ratio["min"], ratio["max"], found["rounds"])


def _value(file: str, *keys: str) -> Interval:
    found = json.loads((ROOT / file).read_text(encoding="utf-8"))
    for key in keys:
        found = found[key]
    return Interval(found, found, found, 1)


EFFECTS: dict[str, Callable[..., Interval]] = {
    "effect": _effect,
    "contrast": _contrast,
    "regime": _regime,
    "difference": difference,
    "benchmark": _benchmark,
    "value": _value,
}
