"""Run what is missing, resume what was cut off: python -m experiments [GROUP or GROUP/NAME ...]"""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import click
import torch

from experiments import induction
from experiments.measures import MEASURES
from experiments.registry import GROUPS, RUNS, Run
from experiments.results import RESULTS, ROOT
from rcmha_lite.cache import write_whole
from rcmha_lite.checkpoint import RESULTS as FINISHED
from rcmha_lite.checkpoint import load_model
from rcmha_lite.config import Config
from rcmha_lite.data import load_tiny_shakespeare, split
from rcmha_lite.manifest import manifest
from rcmha_lite.training import Trainer, train

FOLDERS = ROOT / "runs/experiments"


def is_done(run: Run, results: Path = RESULTS) -> bool:
    """Whether the run's results are there, finished, with the configuration and the measures that the registry names.

    Where only measures are missing, the trained weights are measured again, if they are still there.
    """
    file = results / f"{run}.json"
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    measured = run.task == "induction" or found["measures"].keys() == set(run.measures)
    return Config(**found["config"]) == run.config and measured and not found.get("unfinished")


def write(run: Run, found: dict[str, Any], results: Path) -> None:
    """The results of a run, as its file."""
    file = results / f"{run}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(found) + "\n").encode())


def text_of(run: Run) -> str:
    """What the run reads: the whole of Tiny Shakespeare, or the part that does not hold the validation split."""
    text = load_tiny_shakespeare()
    return text[: split(torch.arange(len(text)))[0].numel()] if run.task == "training split" else text


def carry_out(run: Run, side_by_side: int, results: Path = RESULTS, folders: Path = FOLDERS) -> None:
    """Train, or go on with, one run; measure it; write its results.

    Of a finished run whose weights are still there, only the measures that its results lack are taken; ``measured_by``
    names the commit that took a measure where it is not the run's own.
    """
    file, folder, text = results / f"{run}.json", folders / str(run), text_of(run)
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"config": {}}
    finished = (folder / FINISHED).is_file() and not found.get("unfinished")
    if not finished or found["config"] != dataclasses.asdict(run.config):
        if run.task == "induction":
            found = induction.train(run.config)
        else:
            found = train(run.config, folder, text=text, progress=False) | {"measures": {}}
        found["manifest"]["runs_side_by_side"] = side_by_side
    if run.measures:
        model, taken = load_model(folder), found["measures"]
        now = {name: MEASURES[name](model, text) for name in run.measures if name not in taken}
        found["measures"] = {name: (taken | now)[name] for name in run.measures}
        here = manifest()["commit"]
        later = found.get("measured_by", {}) | (dict.fromkeys(now, here) if here != found["manifest"]["commit"] else {})
        found |= {"measured_by": later} if later else {}
    write(run, found, results)


def write_so_far(run: Run, side_by_side: int, results: Path = RESULTS, folders: Path = FOLDERS) -> bool:
    """Write the learning curve of a run that was cut off, marked as unfinished; False if it has no point yet."""
    trainer = Trainer(run.config, folders / str(run), text_of(run))
    if not trainer.curve:
        return False
    point = trainer.curve[-1]
    found = {
        "unfinished": True,
        "val_loss": point["val_loss"],
        "val_accuracy": point["val_accuracy"],
        "curve": trainer.curve,
        "config": dataclasses.asdict(run.config),
        "manifest": trainer.manifest() | {"runs_side_by_side": side_by_side},
        "measures": {},
    }
    write(run, found, results)
    return True


def in_a_process(run: Run, jobs: int, into: Path | None, stopped: Event) -> bool:
    """The run in a process of its own with its share of the cores; whether it ended well."""
    if stopped.is_set():
        return False
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "experiments", "--here", str(jobs), str(run)]
    command += ["--into", str(into)] if into else []
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": threads}, check=False)
    if done.returncode:
        stopped.set()
    click.echo(f"{run}: {'done' if not done.returncode else f'ended with {done.returncode}'}")
    return not done.returncode


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1), help="runs side by side, sharing the cores"
)
@click.option("--list", "listing", is_flag=True, help="say what is done and what is missing, and run nothing")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="write results and checkpoints here instead of over the committed ones",
)
@click.option("--so-far", is_flag=True, help="write the curves of runs that were cut off, as unfinished; run nothing")
@click.option("--here", type=int, hidden=True)
def main(names: tuple[str, ...], jobs: int, listing: bool, into: Path | None, so_far: bool, here: int | None) -> None:
    """Run the experiments that are missing (all, a GROUP, or a GROUP/NAME); the same command resumes them."""
    for name in names:
        if name not in GROUPS and name not in RUNS:
            raise click.UsageError(f"no group or run {name!r}; the groups are {', '.join(GROUPS)}")
    places = (into, into / "runs") if into else (RESULTS, FOLDERS)
    if here:
        carry_out(RUNS[names[0]], here, *places)
        return
    wanted = [run for run in RUNS.values() if not names or run.group in names or str(run) in names]
    missing = [run for run in wanted if not is_done(run, places[0])]
    if listing:
        for group in dict.fromkeys(run.group for run in wanted):
            runs = [run for run in wanted if run.group == group]
            click.echo(f"{group}: {sum(run not in missing for run in runs)} of {len(runs)} done")
        return
    if so_far:
        for run in missing:
            begun = (places[1] / str(run)).is_dir() and write_so_far(run, jobs, *places)
            click.echo(f"{run}: {'written as unfinished' if begun else 'nothing yet'}")
        return
    click.echo(f"{len(missing)} of {len(wanted)} runs are missing")
    stopped = Event()
    ended: list[bool] = []
    for alone, at_once in ((False, jobs), (True, 1)):
        with ThreadPoolExecutor(at_once) as pool:
            these = [run for run in missing if run.alone == alone]
            ended += pool.map(lambda run, at_once=at_once: in_a_process(run, at_once, into, stopped), these)
    sys.exit(0 if all(ended) else 1)


if __name__ == "__main__":
    main()
