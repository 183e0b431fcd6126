"""Reading what the experiments wrote."""

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results"


@cache
def load(name: str) -> dict[str, Any]:
    """The results of the run ``group/name``. FileNotFoundError says how to make them."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run  python -m experiments {name}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def seeds(name: str) -> list[int]:
    """The seeds for which ``group/name-SEED`` has results."""
    group, _, run = name.partition("/")
    return sorted(int(file.stem.rpartition("-")[2]) for file in (RESULTS / group).glob(f"{run}-[0-9]*.json"))


def values(name: str, *keys: str, over: list[int] | None = None) -> list[float]:
    """One number of each ``group/name-SEED``, found by its keys: ``values("ablation/mha-relu", "val_loss")``."""
    found = []
    for seed in seeds(name) if over is None else over:
        value: Any = load(f"{name}-{seed}")
        for key in keys:
            value = value[key]
        found.append(float(value))
    return found
