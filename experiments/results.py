"""Reading what the experiments wrote."""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

from experiments import registry
from rcmha_lite.config import CELLS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results"
FACTORS = ("relative positions", "convolution", "squared ReLU")


@cache
def load(name: str) -> dict[str, Any]:
    """The results of the run ``group/name``. FileNotFoundError says how to make them."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run  python -m experiments {name}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def seeds(name: str) -> list[int]:
    """The seeds for which ``group/name-SEED`` has results and has come to its end."""
    group, _, run = name.partition("/")
    files = (RESULTS / group).glob(f"{run}-[0-9]*.json")
    return sorted(int(f.stem.rpartition("-")[2]) for f in files if not load(f"{group}/{f.stem}").get("unfinished"))


def values(name: str, *keys: str, over: list[int] | None = None) -> list[float]:
    """One number of each ``group/name-SEED``, found by its keys: ``values("ablation/mha-relu", "val_loss")``."""
    found = []
    for seed in seeds(name) if over is None else over:
        value: Any = load(f"{name}-{seed}")
        for key in keys:
            value = value[key]
        found.append(float(value))
    return found


def cell_runs() -> dict[tuple[bool, ...], str]:
    """The eight cells of the ablation by the presence of each of ``FACTORS``."""
    grid = zip(itertools.product((False, True), repeat=2), CELLS, strict=True)
    return {
        (*levels, squared): f"ablation/{cell}-{activation}"
        for levels, cell in grid
        for squared, activation in ((False, "relu"), (True, "relu2"))
    }


def paired_seeds(*runs: str) -> list[int]:
    """The seeds that all the runs have results for."""
    return sorted(set.intersection(*(set(seeds(run)) for run in runs)))


def choices() -> dict[str, list[float]]:
    """Validation losses of ``parts``, choice by choice, over the seeds that all have."""
    names = list(dict.fromkeys(run.name.rpartition("-")[0] for run in registry.parts()))
    paired = paired_seeds(*(f"parts/{name}" for name in names))
    return {name: values(f"parts/{name}", "val_loss", over=paired) for name in names}


def running_counter(name: str) -> list[float]:
    """Accuracy at each point of a run's curve as a counter shows it that is never reset.

    It counts the training batches since the start and, at every point, a validation split a ninth as long as the
    training split, in windows as ``evaluate`` reads them. The public code logs such a number.
    """
    shown, right, seen, step = [], 0.0, 0.0, 0
    run = load(name)
    epoch = run["config"]["eval_every"]
    for point in run["curve"]:
        trained, step = point["step"] - step, point["step"]
        right += trained * point["train_accuracy"] + epoch / 9 * point["val_accuracy"]
        seen += trained + epoch / 9
        shown.append(right / seen)
    return shown
