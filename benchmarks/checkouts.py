"""Is this checkout as fast as another? python -m benchmarks.checkouts FOLDER [NAME]

Both run in processes of their own, one thread each, and take turns in random order, so that whatever else the machine
does meets both alike. Results: benchmarks/results/against-NAME.json, NAME being the other's commit unless given.
"""

import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.__main__ import RESULTS
from rcmha_lite.cache import write_whole
from rcmha_lite.manifest import manifest

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import sys, time, torch
torch.set_num_threads(1)
from benchmarks.times import training_step
from rcmha_lite.config import PRESETS
from rcmha_lite.generation import generate_ids
from rcmha_lite.model import LanguageModel
config = PRESETS["laptop"].replace(kernel_init="identity")  # the same in every checkout
tasks = {"RCMHA": training_step(config)}
torch.manual_seed(0)
model = LanguageModel(config).eval()
prompt = torch.zeros(20, dtype=torch.long)
stream = None
def character():
    global stream
    stream = stream or generate_ids(model, prompt, 10**9)
    for _ in range(50):
        next(stream)
tasks["50 characters"] = character
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    tasks[line.strip()]()
    print(time.perf_counter() - began, flush=True)
"""


class Checkout:
    """A process that runs the code of a folder."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, task: str) -> float:
        """What the task takes once."""
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        return float(self._line())


def median_interval(ratios: list[float], level: float = 0.95) -> tuple[float, float]:
    """The order statistics that hold the median with probability ``level`` or more, whatever the distribution."""
    ordered, n = sorted(ratios), len(ratios)
    below = int(stats.binom.ppf((1 - level) / 2, n, 0.5))
    return ordered[max(below - 1, 0)], ordered[min(n - below, n - 1)]


def compare(one: Checkout, other: Checkout, task: str, pairs: int) -> dict[str, Any]:
    """The median ratio of times one / other over ``pairs`` pairs, each in random order, and its 95 % interval."""
    order, times = random.Random(0), []
    for checkout in (one, other):
        checkout.seconds(task)
    for _ in range(pairs):
        turn = [one, other] if order.random() < 0.5 else [other, one]
        took = {id(checkout): checkout.seconds(task) for checkout in turn}
        times.append((took[id(one)], took[id(other)]))
    ratios = [a / b for a, b in times]
    low, high = median_interval(ratios)
    return {
        "milliseconds": [1000 * statistics.median(column) for column in zip(*times, strict=True)],
        "ratio": {"median": statistics.median(ratios), "low": low, "high": high},
        "pairs": pairs,
    }


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    name = sys.argv[2] if len(sys.argv) > 2 else commit.stdout.strip()
    here, there = Checkout(ROOT), Checkout(folder)
    found = {}
    for task, pairs in (("RCMHA", 300), ("50 characters", 200)):
        found[task] = compare(here, there, task, pairs)
        print(task, found[task], flush=True)
    result = {"benchmark": f"against-{name}", "what": __doc__, "results": found, "manifest": manifest()}
    write_whole(RESULTS / f"against-{name}.json", (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
