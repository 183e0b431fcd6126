"""The claims ledger, chapters/claims.yml: every claim, its verdict, its effect, and the test or file that carries it."""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments import price
from experiments.inference import Finding
from experiments.price import CURVES, Curve
from experiments.questions import finding
from experiments.registry import RUNS
from experiments.results import ROOT
from experiments.statistics import Interval

LEDGER = ROOT / "chapters/claims.yml"
VERDICTS = ("supported", "contradicted", "open", "not testable here")


@dataclass(frozen=True)
class Claim:
    """A statement and where it comes from. ``evidence`` names tests (file::name), assertions of a chapter (file::text at
    the beginning of its line), files, and groups of results.

    ``effect`` is computed, and the verdict with it. It has a bound, ``above`` or ``below``, and names one of these:
    a ``question`` of questions.py with its ``comparison`` and ``measure``, judged by the rule of inference.py; a
    ``benchmark``, whose median decides, its extremes shown beside it; a ``value`` of a file.

    At equal time a question has a ``price`` of a step (price.py): "as run", that of the steps which the runs were given, or
    "each", every measured one. Then the verdict is what the rule says at all of them, "open" if it says more than one
    thing, and the finding is that at the dearest. Where runs had equal steps, only "each" makes the time equal.

    Without an effect a test carries the verdict. Unless that is "supported", ``note`` says why.
    """

    statement: str
    source: str
    verdict: str
    evidence: list[str] = field(default_factory=list)
    effect: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def side(self) -> Literal["above", "below"]:
        """On which side of its bound the claim sees the effect."""
        return "above" if "above" in self.effect else "below"

    def finding(self) -> Finding | None:
        """What the rule says of the effect; None unless it answers a question."""
        if "question" not in self.effect:
            return None
        if self.effect.get("price") == "each":
            return self.priced()[-1]
        return finding(
            self.effect["question"], self.effect["comparison"], self.effect["measure"], self.effect[self.side]
        )

    def curve(self) -> Curve | None:
        """The effect over the price of a step; None unless the row names a price."""
        return CURVES[self.effect["question"], self.effect["comparison"]] if "price" in self.effect else None

    def priced(self) -> list[Finding]:
        """What the rule says at every measured price of the row's step, from the lowest; the bound is zero."""
        curve = self.curve()
        if curve is None or self.effect[self.side] != 0:
            raise ValueError(f"a claim at each price wants a `price` and a bound of 0, it has {self.effect}")
        question, comparison, measure = (self.effect[key] for key in ("question", "comparison", "measure"))
        return [price.finding(question, comparison, measure, one.price) for one in price.prices(curve.step)]

    def measured(self) -> Interval | None:
        """The effect with its interval, from the files; for a ratio, the median with the extremes of its rounds."""
        if found := self.finding():
            return found.interval
        kind = next((kind for kind in ("benchmark", "value") if kind in self.effect), None)
        return READ[kind](*self.effect[kind]) if kind else None

    def entailed(self) -> str | None:
        """The verdict that the effect entails; None where there is no effect."""
        if self.effect.get("price") == "each":
            verdicts = {found.verdict(self.side) for found in self.priced()}
            return verdicts.pop() if len(verdicts) == 1 else "open"
        if found := self.finding():
            return found.verdict(self.side)
        read = self.measured()
        if read is None:
            return None
        beyond = read.mean > self.effect["above"] if self.side == "above" else read.mean < self.effect["below"]
        return "supported" if beyond else "contradicted"


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


READ: dict[str, Callable[..., Interval]] = {"benchmark": _benchmark, "value": _value}
