"""Compare things in one run, and write what was found with its manifest: python -m benchmarks [NAME ...]"""

import argparse
import json
from pathlib import Path

from benchmarks.gradients import gradients
from benchmarks.limit import limit
from benchmarks.memory import memory
from benchmarks.processes import side_by_side
from benchmarks.times import ablation, cells, characters, generation, paper_step, parts, regimes, relative_attention
from rcmha_lite.cache import write_whole
from rcmha_lite.manifest import manifest

RESULTS = Path(__file__).parent / "results"

BENCHMARKS = {
    f.__name__: f
    for f in (
        paper_step,
        relative_attention,
        generation,
        characters,
        cells,
        parts,
        ablation,
        regimes,
        memory,
        gradients,
        limit,
        side_by_side,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; all if none is given")
    names = parser.parse_args().names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    for name in names:
        found = {"benchmark": name, "what": BENCHMARKS[name].__doc__, "results": BENCHMARKS[name]()}
        found |= {"manifest": manifest()}
        write_whole(RESULTS / f"{name}.json", (json.dumps(found, indent=2) + "\n").encode())
        print(json.dumps(found["results"], indent=2), flush=True)


if __name__ == "__main__":
    main()
