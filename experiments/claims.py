"""The claims ledger, chapters/claims.yml: every claim, its verdict, its effect, and the test or file that carries it."""

import ast
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.comparisons import MEASURES
from experiments.inference import Finding
from experiments.questions import finding
from experiments.registry import RUNS
from experiments.results import ROOT, worth_of_time
from experiments.statistics import Interval

LEDGER = ROOT / "chapters/claims.yml"
VERDICTS = ("supported", "contradicted", "open", "not testable here")


@dataclass(frozen=True)
class Claim:
    """A statement and where it comes from. ``evidence`` names tests (file::name), assertions of a chapter (file::text at
    the beginning of its line), files, and groups of results.

    ``effect`` is computed, and the verdict with it. It has a bound, ``above`` or ``below``, and names one of these:
    a ``question`` of questions.py with its ``comparison`` and ``measure``, judged by the rule of inference.py
    (``priced``: with the loss that a step's price costs, from the regime and the cell whose steps are cheaper); a
    ``benchmark``, whose median decides, its extremes shown beside it; a ``value`` of a file.

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
        bound = self.effect[self.side]
        if "priced" in self.effect:
            bound -= _cost(self.effect["measure"], *self.effect["priced"])
        return finding(self.effect["question"], self.effect["comparison"], self.effect["measure"], bound)

    def measured(self) -> Interval | None:
        """The effect with its interval, from the files; for a ratio, the median with the extremes of its rounds."""
        if found := self.finding():
            return found.interval
        kind = next((kind for kind in ("benchmark", "value") if kind in self.effect), None)
        return READ[kind](*self.effect[kind]) if kind else None

    def entailed(self) -> str | None:
        """The verdict that the effect entails; None where there is no effect."""
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


def _cost(measure: str, regime: str, cheaper: str) -> float:
    """What the dearer steps of RCMHA, beside those of the ``cheaper`` cell, cost in loss at equal time."""
    price = _benchmark("regimes", f"{regime}, rcmha / {cheaper}").mean
    return worth_of_time(regime, *MEASURES[measure]) * math.log(price)


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
