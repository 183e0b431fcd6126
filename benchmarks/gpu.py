"""For whoever has a GPU: its tests, its timings, the full-size run. make gpu, or python -m benchmarks.gpu [--dry]

A stage that is done, with this code on this GPU, is not done again, and the full-size run goes on from its checkpoint.
What it leaves (results/gpu.json, results/gpu_sample.txt, benchmarks/results/gpu.json, the README's tables) is to be
committed. Without a GPU, or with --dry, every stage is tried in small on the CPU, under runs/gpu-dry, over no result.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.times import forward_backward, in_turn
from rcmha_lite import checkpoint
from rcmha_lite.accounting import peak_cuda_bytes, saved_bytes
from rcmha_lite.attention import attention, fused_attention
from rcmha_lite.cache import write_whole
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.data import SHAKESPEARE_CHARACTERS
from rcmha_lite.generation import generate
from rcmha_lite.manifest import manifest
from rcmha_lite.model import LanguageModel
from rcmha_lite.positions import factorise, shift, sinusoids
from rcmha_lite.precision import precision_for
from rcmha_lite.training import Interrupted, Trainer, train

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """Where and how large everything is."""

    device: torch.device
    config: Config
    lengths: tuple[int, ...]
    batch: int
    heads: int
    rounds: int
    runs: Path
    results: Path
    timings: Path

    @property
    def dry(self) -> bool:
        """Whether this is a trial on a CPU."""
        return self.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """In which the full-size run multiplies here."""
        return DTYPES[precision_for("auto", self.device)]


def real() -> Plan:
    """On the GPU, in the repository's own places."""
    return Plan(
        torch.device("cuda"), PRESETS["gpu"], (256, 1024, 4096, 8192), 1, 6, 7,
        ROOT / "runs/gpu", ROOT / "results", ROOT / "benchmarks/results",
    )  # fmt: skip


def dry(folder: Path = ROOT / "runs/gpu-dry") -> Plan:
    """The same stages in small, on the CPU."""
    small = PRESETS["gpu"].replace(
        device="cpu", layers=1, d_model=32, n_heads=2, d_ff=32, d_position=8, context=32, window=32, batch=8, steps=12,
        eval_every=6, checkpoint_every=4, compile=False,
    )  # fmt: skip
    return Plan(torch.device("cpu"), small, (32, 64), 1, 2, 2, folder / "run", folder / "results", folder / "timings")


def relative_pair(plan: Plan, time: int, width: int = 64) -> tuple[list[Tensor], Callable, Callable]:
    """Inputs q, k, v, a, and relative attention of them: factorised and fused, and with the explicit shift."""
    generator = torch.Generator().manual_seed(0)
    shape = (plan.batch, plan.heads, time, width)
    inputs = [
        torch.randn(shape, generator=generator).to(plan.device, plan.dtype).requires_grad_() for _ in range(4)
    ]  # fmt: skip
    waves = sinusoids(torch.arange(time), width).to(plan.device, plan.dtype)

    def ours() -> Tensor:
        q, k, v, a = inputs
        q = torch.cat((q, factorise(a, waves)), dim=-1)
        k = torch.cat((k, waves.expand(*k.shape[:2], -1, -1)), dim=-1)
        return fused_attention(q, k, v, scale=width**-0.5)

    def explicit() -> Tensor:
        q, k, v, a = inputs
        return attention(q, k, v, shift(a @ waves.T), scale=width**-0.5)

    return inputs, ours, explicit


def relative(plan: Plan) -> dict[str, Any]:
    """Relative attention over T positions, forward and backward: explicit shift / ours, in time and in memory."""
    found = {}
    for time in plan.lengths:
        inputs, ours, explicit = relative_pair(plan, time)
        cotangent = torch.randn_like(inputs[0])
        pair = [partial(forward_backward, f, inputs, cotangent) for f in (ours, explicit)]
        kept = [saved_bytes(f, but_not=inputs) for f in (ours, explicit)]
        found[str(time)] = in_turn(*pair, rounds=plan.rounds) | {"saved_bytes": kept}
        if not plan.dry:
            held = torch.cuda.memory_allocated()
            found[str(time)]["peak_bytes"] = [peak_cuda_bytes(f) - held for f in pair]
    return found


@contextmanager
def stepping(plan: Plan, **changes: Any) -> Iterator[Callable[[], None]]:
    """A training step as ``train`` makes it, on random characters, compiled where it would be."""
    letters = random.Random(0)
    text = "".join(letters.choices(SHAKESPEARE_CHARACTERS, k=60 * plan.config.context * 10))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(plan.config.replace(**changes), Path(folder), text)
        for step in range(3):
            trainer.advance(step)
        yield lambda: trainer.advance(3)


def steps(plan: Plan) -> dict[str, Any]:
    """A training step of the full size: the cells / MHA; RCMHA in float32, and eager, / as it is run here."""
    changes = {cell: CELLS[cell] | {"window": plan.config.context} for cell in CELLS} | {
        "rcmha, float32": {"precision": "float32"},
        "rcmha, eager": {"compile": False},
    }
    found = {}
    with ExitStack() as stack:  # each is compiled once
        step = {name: stack.enter_context(stepping(plan, **change)) for name, change in changes.items()}
        pairs = [("mha", cell) for cell in ("mdha", "rmha", "rcmha")]
        pairs += [("rcmha", name) for name in ("rcmha, float32", "rcmha, eager")]
        for first, second in pairs:
            timed = in_turn(step[first], step[second], plan.rounds)
            rates = [1000 * plan.config.batch * plan.config.context / ms for ms in timed["milliseconds"]]
            found[f"{second} / {first}"] = timed | {"characters_per_second": rates}
    return found


def characters(plan: Plan) -> dict[str, Any]:
    """One more character after N, recomputed from the whole text / from the cache."""
    model = LanguageModel(plan.config).to(plan.device).eval()
    found = {}
    with torch.no_grad():
        for length in plan.lengths[:3]:
            ids = torch.zeros(1, length, dtype=torch.long, device=plan.device)
            cache = model.new_cache(length)
            model(ids, cache=cache)
            found[str(length)] = in_turn(partial(model, ids[:, :1], cache=cache), partial(model, ids), plan.rounds)
    return found


def tests(plan: Plan) -> dict[str, Any]:
    """Every kernel against float64, memory, waiting, what holds bit for bit: tests/test_gpu.py."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"RCMHA_DRY": "1"} if plan.dry else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nThe tests failed: nothing is measured with what is wrong.")
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def capstone(plan: Plan) -> dict[str, Any]:
    """The full-size run, going on from its checkpoint; its results and a sample of it."""
    if plan.dry:
        letters = random.Random(0)
        text = "".join(letters.choices(SHAKESPEARE_CHARACTERS, k=4000))
        if checkpoint.step_of(plan.runs) is None:  # cut off on purpose, to go on
            try:
                train(plan.config, plan.runs, text=text, watch=lambda trainer: setattr(trainer.stop, "requested", True))
            except Interrupted as stopped:
                print(f"\n{stopped}; so it does:")
        found = train(plan.config, plan.runs, text=text)
    else:
        found = train(plan.config, plan.runs)
    model = checkpoint.load_model(plan.runs, plan.device)
    sample = "".join(generate(model, "ROMEO:", 60 if plan.dry else 600, temperature=0.8, seed=0))
    write_whole(plan.results / "gpu.json", (plan.runs / checkpoint.RESULTS).read_bytes())
    write_whole(plan.results / "gpu_sample.txt", ("ROMEO:" + sample).encode())
    return {name: found[name] for name in ("val_loss", "val_accuracy", "seconds")}


MEASURED = {"relative": relative, "steps": steps, "characters": characters}
STAGES: dict[str, Callable[[Plan], dict[str, Any]]] = {"tests": tests, **MEASURED, "capstone": capstone}


def carry_out(plan: Plan) -> list[str]:
    """Every stage that is missing; their names. SystemExit, in words, where there is no sense in going on."""
    here = {"device": str(plan.device), "precision": precision_for("auto", plan.device), "code": code()}
    origin = manifest() | here
    if not plan.dry and str(origin["commit"]).endswith("+changes"):
        raise SystemExit("Results carry the commit that made them, and code differs from it: commit first.")
    done, folder = [], plan.runs.with_name(plan.runs.name + "-stages")
    with tqdm(STAGES.items(), unit="stage") as bar:
        for name, stage in bar:
            bar.set_description(name)
            file = folder / f"{name}.json"
            if is_of(file, origin):
                continue
            found = {"results": stage(plan), "manifest": origin}
            write_whole(file, json.dumps(found).encode())
            done.append(name)
            if name in MEASURED:
                write_timings(plan, folder, origin)
    return done


def is_of(file: Path, origin: dict[str, Any]) -> bool:
    """Whether a stage's file is there, and of this code on this hardware."""
    if not file.is_file():
        return False
    theirs = json.loads(file.read_text("utf-8"))["manifest"]
    return all(theirs[key] == origin[key] for key in ("code", "torch", "gpu", "processor", "precision"))


def code() -> str:
    """A checksum of what is measured and of what measures: committing results does not make them old."""
    files = sorted(file for folder in ("rcmha_lite", "benchmarks") for file in (ROOT / folder).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def write_timings(plan: Plan, folder: Path, origin: dict[str, Any]) -> None:
    """What has been measured so far, with this code on this GPU, as one file."""
    files = {name: folder / f"{name}.json" for name in MEASURED}
    stages = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if is_of(file, origin)}
    found = {
        "benchmark": "gpu",
        "what": {name: MEASURED[name].__doc__ for name in MEASURED},
        "results": {name: stage["results"] for name, stage in stages.items()},
        "manifest": origin,
    }
    write_whole(plan.timings / "gpu.json", (json.dumps(found, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="try every stage in small, on the CPU")
    parser.add_argument("--into", type=Path, help="where a dry run writes  [default: runs/gpu-dry]")
    given = parser.parse_args()
    if not given.dry and not torch.cuda.is_available():
        print("There is no CUDA GPU here, so this is a dry run: every stage in small, on the CPU.")
        given.dry = True
    if not given.dry:
        done = carry_out(real())
        subprocess.run([sys.executable, "-m", "tools.readme"], cwd=ROOT, check=True)
        print(f"Done now: {', '.join(done) or 'nothing was missing'}. To be committed: results/gpu*, README.md,")
        print("benchmarks/results/gpu.json; then make chapters/07_capstone.ipynb, which prints them.")
        return
    plan = dry(given.into) if given.into else dry()
    if not given.into:
        shutil.rmtree(plan.runs.parent, ignore_errors=True)  # a trial starts afresh
    print(f"Done now: {', '.join(carry_out(plan))}.")
    print(
        f"Again: {', '.join(carry_out(plan)) or 'nothing was missing, as it should be'}. All is in {plan.runs.parent}."
    )


if __name__ == "__main__":
    main()
