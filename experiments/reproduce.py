"""Train pairs of runs again, both on this machine, and compare their differences: python -m experiments.reproduce

A pair's starting weights and windows are made again, so the same processor and PyTorch should find the same numbers.
Another processor rounds otherwise, which acts like another seed. So a difference agrees if it lies as near the committed
one as a difference of another seed does, at 95 % for all lines together:

    |now − committed| ≤ t(1 − 0.05 / 2k, n − 1) · s · √2,    s over the n committed seeds, k lines.

What that refutes: an effect larger than this tolerance, were it not there. The last column says whether the mean effect
is, line by line; it is for relative positions and for the look-up by one layer. It is not for the convolution, whose
effect is smaller than what one seed differs from another by: there a pair can show a gross error, not the effect, which
takes all the seeds (``python -m experiments kernel_starts --into FOLDER``).
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.results import RESULTS, ROOT, paired_seeds, values


class Pair(NamedTuple):
    """``one`` less ``other``, ``group/name`` each, of one seed that today's code starts as the committed runs did."""

    what: str
    one: str
    other: str
    seed: int
    measures: tuple[str, ...]

    @property
    def runs(self) -> tuple[str, str]:
        return f"{self.one}-{self.seed}", f"{self.other}-{self.seed}"


BOTH = ("val_loss", "val_accuracy")
PAIRS = (
    Pair("relative positions", "ablation/rmha-relu2", "ablation/mha-relu2", 0, BOTH),
    Pair("convolution from PyTorch's start", "kernel_starts/pytorch", "kernel_starts/rmha", 24, BOTH),
    Pair("one layer looks up", "induction/rcmha", "induction/rmha", 0, ("score",)),
)
INTO = ROOT / "runs/reproduce"


class Line(NamedTuple):
    """A difference on one measure: as committed, as found now, how far apart they may be, and its mean over seeds."""

    what: str
    measure: str
    committed: float
    found: float
    tolerance: float
    effect: float

    @property
    def agrees(self) -> bool:
        return abs(self.found - self.committed) <= self.tolerance

    @property
    def refutes(self) -> bool:
        """Whether the effect, were it not there, would be missed here."""
        return abs(self.effect) > self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{self.what:32} {self.measure:12} {self.committed:+.4f} {self.found:+.4f}  {verdict} (within"
            f" {self.tolerance:.4f}; effect {self.effect:+.4f}, {'told' if self.refutes else 'not told'} from none)"
        )


def committed(pairs: tuple[Pair, ...] = PAIRS) -> list[Pair]:
    """The pairs whose runs are there to be compared with, in two seeds or more."""
    return [pair for pair in pairs if pair.seed in (there := paired_seeds(pair.one, pair.other)) and len(there) > 1]


def compare(folder: Path, pairs: tuple[Pair, ...] = PAIRS) -> list[Line]:
    """Every measure of the committed pairs, in the committed results and in ``folder``."""
    pairs = tuple(committed(pairs))
    lines, k = [], sum(len(pair.measures) for pair in pairs)
    for pair in pairs:
        over = paired_seeds(pair.one, pair.other)
        for measure in pair.measures:
            with_it, without = (np.array(values(run, measure, over=over)) for run in (pair.one, pair.other))
            each = with_it - without
            tolerance = stats.t.ppf(1 - 0.05 / (2 * k), len(over) - 1) * np.std(each, ddof=1) * math.sqrt(2)
            one, other = (json.loads((folder / f"{run}.json").read_text(encoding="utf-8")) for run in pair.runs)
            before, effect = float(each[over.index(pair.seed)]), float(np.mean(each))
            found = one[measure] - other[measure]
            lines.append(Line(pair.what, measure, before, found, float(tolerance), effect))
    return lines


def main() -> None:
    shutil.rmtree(INTO, ignore_errors=True)  # what an earlier program left there would agree with itself
    pairs = committed()
    for pair in PAIRS:
        if pair not in pairs:
            print(f"{pair.what}: nothing to compare with, {RESULTS.relative_to(ROOT)} lacks {' or '.join(pair.runs)}")
    command = [sys.executable, "-m", "experiments", *(run for pair in pairs for run in pair.runs), "--into", str(INTO)]
    if ended := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(ended)
    lines = compare(INTO)
    print(f"{'difference':32} {'of':12} before  now")
    print(*lines, sep="\n")
    sys.exit(0 if all(line.agrees for line in lines) else 1)


if __name__ == "__main__":
    main()
