"""The README's tables and figure, made from the results files: python -m tools.readme"""

import hashlib
import json
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from experiments.inference import Finding
from experiments.questions import finding
from experiments.results import FACTORS
from experiments.yardsticks import LEVELS, NANOGPT
from rcmha_lite import figures
from tools.pages import CHAPTERS

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS, FIGURE = ROOT / "README.md", ROOT / "results/laptop.json", ROOT / "results/laptop.png"


def table() -> str:
    """Our runs, and what others report, as a Markdown table."""
    rows = [
        "| run | parameters | text read | time and hardware | validation loss | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    runs = {f"`--preset {path.stem}`": path for path in sorted(ROOT.glob("results/*.json"))}
    runs["half an hour"] = ROOT / "experiments/results/speed/30-minutes.json"
    if "`--preset gpu`" not in runs:
        runs["`--preset gpu` cut to 600 steps"] = ROOT / "experiments/results/capstone/gpu-preset-600-steps.json"
    for name, path in runs.items():
        run = json.loads(path.read_text(encoding="utf-8"))
        origin = run["manifest"]
        cores = "1 CPU core" if origin["threads"] == 1 else f"{origin['threads']} CPU cores"
        hardware = origin["gpu"] if origin["device"].startswith("cuda") else cores
        if origin.get("runs_side_by_side", 1) > 1:
            hardware += " beside another run"
        rows.append(
            f"| **RCMHA, {name}**, measured | {run['parameters'] / 1e6:.2f} M | "
            f"{run['characters'] / 1e6:.1f} M characters | {run['seconds'] / 60:.1f} min, {hardware} | "
            f"**{run['val_loss']:.4f}** | **{run['val_accuracy']:.4f}** |"
        )
    for kind, found in NANOGPT.items():
        config = found.config
        read, best = (steps * config.batch * config.context / 1e6 for steps in (config.steps, found.steps))
        text = f"{read:.1f} M characters" + (f" in all; a reader's best near {best:.0f} M" if best < read else "")
        shape = f"{config.layers} layers × {config.d_model}"
        rows.append(
            f"| nanoGPT's {kind.upper()} recipe, as reported | {shape} | {text} | {found.took} | {found.loss} | |"
        )
    rows.append(
        "| RCMHA, as its paper reports | | | 2 h 02 min | | 0.572 (how it was measured is not known: chapter 12) |"
    )
    return "\n".join(rows)


def speeds() -> str:
    """What was timed side by side, as a Markdown table."""
    found = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["results"]
        for file in sorted(ROOT.glob("benchmarks/results/*.json"))
        if file.stem != "gpu"
    }
    relative, cells, generation = found["relative_attention"]["4096"], found["cells"], found["generation"]
    paper = found["paper_step"]
    kept = relative["saved_bytes"]
    rows = {
        "relative attention over 4096 positions, forward and backward: explicit shift, not fused / ours": relative,
        "a training step with the public code's settings: its formulas, transcribed, with plain Adam / ours": paper[
            "plain Adam in the transcription"
        ],
        "the same with our fused Adam on both sides": paper["fused Adam in both"],
        "the next character after 1024: recomputed / cached": generation["1024"],
        "a cached character at 2048 / at 256": generation["a cached character at 2048 / at 256"],
        "a training step, RCMHA / MHA, same widths, 256 characters": cells["rcmha / mha, equal widths"],
        "a training step, RCMHA, float32 / bfloat16": cells["rcmha, float32 / bfloat16"],
    }
    table = ["| measured side by side | median ratio | smallest to largest |", "|---|---|---|"]
    for what, result in rows.items():
        ratio = result["ratio"]
        table.append(f"| {what} | **{ratio['median']:.2f}** | {ratio['min']:.2f} to {ratio['max']:.2f} |")
    table.append(f"| bytes kept for backward there: explicit shift / ours | **{kept[1] / kept[0]:.1f}** | exact |")
    table.insert(3, table.pop())
    return "\n".join(table)


def earned() -> dict[str, tuple[Finding, Finding]]:
    """What each part earns in loss and accuracy, and what the convolution adds to RMHA: from two starts, in steps and time."""
    rows = {
        **{f"{part}, averaged over the others": ("ablation", part) for part in FACTORS},
        "convolution added to RMHA, equal steps": ("sixteen seeds", "convolution beside RMHA"),
        "convolution added to RMHA, equal time": ("equal time", "rcmha less rmha"),
        "convolution added to RMHA, from PyTorch's start, equal steps": ("starts", "pytorch, beside RMHA"),
        "convolution added to RMHA, from PyTorch's start, equal time": ("starts at equal time", "pytorch, beside RMHA"),
    }
    return {name: (finding(*asked, "loss"), finding(*asked, "accuracy")) for name, asked in rows.items()}


def effects() -> str:
    """``earned`` as a Markdown table; what the rule does not settle is called open."""
    table = ["| part | change of validation loss | change of accuracy |", "|---|---|---|"]
    for name, both in earned().items():
        cells = (f"{found.interval}" if found.settled else f"{found.interval}, open" for found in both)
        table.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(table)


def gpu() -> str:
    """What a GPU was timed at, as a Markdown table; a sentence where none has been."""
    file = ROOT / "benchmarks/results/gpu.json"
    if not file.is_file():
        return "No GPU was at hand. Whoever has one makes its figures by `make gpu`: meant for ten minutes of an H100, tried so far only in small, on a CPU."
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        f"| measured side by side on {found['manifest']['gpu']} | median ratio | smallest to largest |",
        "|---|---|---|",
    ]
    what = {
        "relative": "relative attention over {} positions, forward and backward: explicit shift / ours",
        "steps": "a training step of the `gpu` preset, {}",
        "characters": "the next character after {}: recomputed / cached",
    }
    for group, results in found["results"].items():
        for name, result in results.items():
            ratio = result["ratio"]
            shown = f"**{ratio['median']:.2f}** | {ratio['min']:.2f} to {ratio['max']:.2f}"
            rows.append(f"| {what[group].format(name)} | {shown} |")
    return "\n".join(rows)


def walk() -> str:
    """The chapters: number and title from the notebooks, what the reader will do from the landing page."""
    index = (ROOT / "chapters/index.md").read_text(encoding="utf-8")
    will = dict(re.findall(r"^\| \{doc\}`(\w+)` \| (.*) \|$", index, re.MULTILINE))
    rows = ["| chapter | you will |", "|---|---|"]
    for name in CHAPTERS:
        page = name.removeprefix("chapters/")
        first = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"][0]["source"]
        rows.append(f"| {int(page[:2])} {first[0].removeprefix('# ').strip()} | {will[page]} |")
    return "\n".join(rows)


TABLES = {"walk": walk, "results": table, "effects": effects, "speeds": speeds, "gpu": gpu}


def with_tables(text: str) -> str:
    """The README with its tables made anew, each between two comments that name it."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin (python -m tools.readme) -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def digest() -> str:
    """The SHA-256 of the results that the figure shows; the figure carries it."""
    return hashlib.sha256(RESULTS.read_bytes()).hexdigest()


def draw() -> None:
    """The laptop run's learning curve, marked with the checksum of its results."""
    mpl.use("agg")
    run = json.loads(RESULTS.read_text(encoding="utf-8"))
    title = f"RCMHA on two CPU cores: validation loss {run['val_loss']:.3f} in {run['seconds'] / 60:.1f} minutes"
    figures.learning_curve(title, run, LEVELS)
    plt.savefig(FIGURE, dpi=110, metadata={"Description": digest()})


if __name__ == "__main__":
    draw()
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
