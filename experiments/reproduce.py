"""Train a slice of the experiments again and compare it with the committed results: python -m experiments.reproduce"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.results import RESULTS, ROOT

SLICE = ("ablation/mha-relu-0", "ablation/rcmha-relu2-0", "induction/rmha-0", "induction/rcmha-0")
TOLERANCE = {"val_loss": 0.02, "val_accuracy": 0.006, "score": 0.05}
"""About three times the standard deviation of a difference of two seeds: another processor rounds otherwise, which acts
like another seed."""

INTO = ROOT / "runs/reproduce"


class Line(NamedTuple):
    """One number, as committed and as found now."""

    run: str
    what: str
    committed: float
    found: float

    @property
    def agrees(self) -> bool:
        return abs(self.found - self.committed) <= TOLERANCE[self.what]

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DIFFERS"
        limit = TOLERANCE[self.what]
        return f"{self.run:24} {self.what:13} {self.committed:.4f} {self.found:.4f}  {verdict} (within {limit})"


def compare(folder: Path) -> list[Line]:
    """Every number of the slice that has a tolerance, committed and in ``folder``."""
    lines = []
    for name in SLICE:
        committed, found = (
            json.loads((where / f"{name}.json").read_text(encoding="utf-8")) for where in (RESULTS, folder)
        )
        lines += [Line(name, what, committed[what], found[what]) for what in TOLERANCE if what in committed]
    return lines


def main() -> None:
    shutil.rmtree(INTO, ignore_errors=True)  # what an earlier program left there would agree with itself
    command = [sys.executable, "-m", "experiments", *SLICE, "--into", str(INTO)]
    if ended := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(ended)
    lines = compare(INTO)
    print(f"{'run':24} {'what':13} before now")
    print(*lines, sep="\n")
    sys.exit(0 if all(line.agrees for line in lines) else 1)


if __name__ == "__main__":
    main()
