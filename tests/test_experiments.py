"""The registry, the statistics and the results that the evidence stands on."""

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from experiments import __main__ as command
from experiments import induction, measures, reproduce, results
from experiments.measures import MEASURES
from experiments.questions import default_start
from experiments.registry import BASE, EQUAL_TIME, GROUPS, KERNELS, RUNS, Run, ablation
from experiments.statistics import common_deviation, interval
from experiments.yardsticks import operations
from rcmha_lite import attention
from rcmha_lite.config import PRESETS, Config
from rcmha_lite.data import CharTokenizer, load_tiny_shakespeare, split
from rcmha_lite.evaluation import evaluate
from rcmha_lite.model import LanguageModel
from rcmha_lite.training import Trainer

TINY = {
    "layers": 1,
    "d_model": 32,
    "n_heads": 2,
    "d_ff": 64,
    "d_position": 8,
    "context": 32,
    "window": 32,
    "batch": 4,
    "kernel_init": "identity",
}
FILES = sorted(results.RESULTS.glob("*/*.json"))


def test_the_default_start_is_what_the_runs_decide():
    """By the rule that was declared before them; ``rcmha`` and every preset have it."""
    assert default_start() == Config().kernel_init == attention.rcmha(16, 2).convolution.init
    assert {preset.kernel_init for preset in PRESETS.values()} == {default_start()}
    assert {"kernel_init": default_start()} == KERNELS


def test_names_are_unique_and_measures_exist():
    assert len(RUNS) == sum(len(list(group())) for group in GROUPS.values())
    assert all(measure in MEASURES for run in RUNS.values() for measure in run.measures)


def test_ablation_is_a_paired_factorial():
    """Eight cells, eight seeds; two runs of one seed differ in the three factors and in nothing else."""
    runs = list(ablation())
    varied = {"position", "kernel_size", "activation", "seed"}
    settings = {tuple(getattr(run.config, f) for f in sorted(varied)) for run in runs}
    assert len(runs) == len(settings) == 64
    rest = {tuple((k, v) for k, v in dataclasses.asdict(run.config).items() if k not in varied) for run in runs}
    assert len(rest) == 1


def test_equal_time_follows_from_the_measured_steps():
    file = Path(__file__).parents[1] / "benchmarks/results/ablation.json"
    adds = json.loads(file.read_text(encoding="utf-8"))["results"]["adds"]
    reference = adds["nothing"] + adds["squared ReLU"]
    for cell, steps in EQUAL_TIME.items():
        name, activation = cell.split("-")
        parts = {"relative positions": name.startswith("r"), "convolution": "c" in name or name == "mdha"}
        parts["squared ReLU"] = activation == "relu2"
        time = adds["nothing"] + sum(adds[part] for part, there in parts.items() if there)
        assert steps == pytest.approx(500 * reference / time, rel=0.03)


COMPARED = [
    ("ablation", "equal_time"),
    ("parts",),
    ("starts",),
    ("kernel_starts", "position_codes"),
    ("lasting",),
    ("regimes",),
    ("longer",),
]
ENGINE = [
    f"rcmha_lite/{name}.py"
    for name in ["attention", "convolution", "data", "evaluation", "model", "positions", "training"]
]
LATER = ["rcmha_lite/plain.py", "rcmha_lite/precision.py"]
"""What decides a result beside the configuration that each result carries."""

NUMBERS = ("val_loss", "val_accuracy", "val_loss_sliding", "curve", "measures")
"""What a run that is made again must find again."""


@cache
def engine_of(commit):
    """The trees of the engine at a commit; None where this checkout does not hold it."""
    listed = ["git", "ls-tree", "-r", commit, *ENGINE, *LATER]
    tree = subprocess.run(listed, cwd=results.ROOT, capture_output=True, text=True)
    if tree.returncode:
        return None
    assert len(tree.stdout.splitlines()) >= len(ENGINE)
    return tree.stdout


@cache
def same_engines():
    """Engine → the earliest one that found the same digits, as the ``repeats`` show."""
    same = {}
    for file in results.RESULTS.glob("repeats/*.json"):
        later, earlier = (json.loads(f.read_text()) for f in (file, results.RESULTS / "kernel_starts" / file.name))
        assert [later[name] for name in NUMBERS] == [earlier[name] for name in NUMBERS], file.name
        engines = [engine_of(found["manifest"]["commit"]) for found in (later, earlier)]
        same[engines[0]] = engines[1]
    return same


@pytest.mark.parametrize("groups", [g for g in COMPARED if any(f.parent.name in g for f in FILES)], ids=" and ".join)
def test_runs_that_are_compared_come_from_one_engine(groups):
    """The runs of one seed: same precision, processor and PyTorch, and the same modules in the commits they name, or
    modules that were shown to find the same digits."""
    by_seed = {}
    for file in FILES:
        if file.parent.name in groups:
            origin = json.loads(file.read_text())["manifest"]
            by_seed.setdefault(origin["seed"], []).append(origin)
    for origins in by_seed.values():
        assert len({(origin["precision"], origin["processor"], origin["torch"]) for origin in origins}) == 1
        engines = {engine_of(commit) for commit in {origin["commit"] for origin in origins}}
        if None in engines:
            pytest.skip("this checkout does not hold the commits that the results name")
        assert len({same_engines().get(engine, engine) for engine in engines}) == 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_results_are_of_the_registry_and_carry_their_manifest(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    run = RUNS[f"{file.parent.name}/{file.stem}"]
    assert Config(**found["config"]) == run.config
    origin = found["manifest"]
    assert len(origin["commit"]) == 40
    assert origin["seed"] == run.config.seed
    assert {"torch", "processor", "threads", "runs_side_by_side"} <= set(origin)
    if run.alone:
        assert origin["runs_side_by_side"] == 1
    if run.task != "induction":
        assert found["measures"].keys() == set(run.measures)
        assert not found.get("unfinished")
        assert found["curve"][-1]["step"] == run.config.steps
        assert found["curve"][-1]["val_loss"] == pytest.approx(found["val_loss"], abs=0.005)


@cache
def measures_at(commit):
    """The source of measures.py at a commit; None where this checkout does not hold it."""
    shown = subprocess.run(
        ["git", "show", f"{commit}:experiments/measures.py"], cwd=results.ROOT, capture_output=True, text=True
    )
    return None if shown.returncode else shown.stdout


def test_every_measure_was_taken_by_a_commit_that_has_it():
    """By the run's own commit, or by the one that ``measured_by`` names."""
    for file in FILES:
        found = json.loads(file.read_text(encoding="utf-8"))
        for name in found.get("measures", {}):
            source = measures_at(found.get("measured_by", {}).get(name, found["manifest"]["commit"]))
            if source is None:
                pytest.skip("this checkout does not hold the commits that the results name")
            assert f"def {name}(" in source, f"{file.parent.name}/{file.stem}: {name}"


def test_sixteen_runs_repeated_are_equal_to_the_last_bit():
    """Four choices of ``parts`` are cells of the ablation, trained again from other commits: same losses on the way."""
    again = {
        "rcmha": "rcmha-relu2",
        "kernel-0": "rmha-relu2",
        "activation-relu": "rcmha-relu",
        "position-absolute-sinusoidal": "mdha-relu2",
    }
    ends = set()
    for choice, cell in again.items():
        for seed in range(4):
            first, second = (results.load(f"{name}-{seed}") for name in (f"ablation/{cell}", f"parts/{choice}"))
            assert first["manifest"]["commit"] != second["manifest"]["commit"]
            assert first["manifest"]["processor"] == second["manifest"]["processor"]
            for key in ("val_loss", "val_accuracy"):
                assert first[key] == second[key]
            both = {point["step"]: point["val_loss"] for point in first["curve"]}
            assert all(point["val_loss"] == both[point["step"]] for point in second["curve"])
            ends.add(first["val_loss"])
    assert len(ends) == 16


def test_interval_by_hand():
    """Mean 2, s = 1, n = 3: half width t(0.975, 2) / √3 = 4.303 / 1.732."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert found.low < 0 < found.high
    assert interval([1.0, 2.0, 3.0], comparisons=7).high > found.high
    with pytest.raises(ValueError, match="give two paired runs or more"):
        interval([1.0])


def test_common_deviation_by_hand():
    """Variances 1 and 7 about means 2 and 3: √4, whatever the means."""
    assert common_deviation([[1.0, 2.0, 3.0], [0.0, 4.0, 5.0]]) == pytest.approx(2)


def test_running_counter_by_hand(monkeypatch):
    curve = [
        {"step": 9, "train_accuracy": 0.1, "val_accuracy": 0.4},
        {"step": 18, "train_accuracy": 0.5, "val_accuracy": 0.6},
    ]
    monkeypatch.setattr(results, "load", lambda name: {"config": {"eval_every": 9}, "curve": curve})
    first, second = results.running_counter("paper/rcmha")
    assert first == pytest.approx((9 * 0.1 + 0.4) / 10)
    assert second == pytest.approx((9 * 0.1 + 0.4 + 9 * 0.5 + 0.6) / 20)


def test_hand_built_induction_needs_the_convolution():
    config = next(run.config for run in RUNS.values() if run.task == "induction")
    assert induction.hand_built_score(config, convolution=True) == 1.0
    assert induction.hand_built_score(config, convolution=False) == 0.0


def test_sequences_repeat_with_periods_of_their_own():
    config = BASE.replace(vocabulary=64, context=64, window=64)
    ids = induction.sequences(torch.Generator().manual_seed(0), 50, config)
    periods = [next(t for t in range(1, 65) if row[t] == row[0]) for row in ids.tolist()]
    assert len(set(periods)) > 10
    assert all(torch.equal(row[period:], row[:-period]) for row, period in zip(ids, periods, strict=True))


def test_measures_of_a_model():
    torch.manual_seed(0)
    model = LanguageModel(Config(**TINY)).eval()
    profile = torch.tensor(MEASURES["heads"](model, "To be or not to be, " * 3000))
    assert profile.shape == (1, 2, 16)
    assert profile.sum(-1).max() < 1
    taps = MEASURES["taps"](model, "")
    assert taps["mean"] == [[[0.0, 0.0, 1.0]] * 3]
    assert MEASURES["taps"](LanguageModel(Config(**TINY, kernel_size=0)), "") is None


def test_unseen_scores_the_beginning_of_every_play(monkeypatch):
    plays = {"one": "To be, or not to be. " * 30, "two": "All the world's a stage. " * 1000}
    monkeypatch.setattr(measures, "load_unseen_plays", lambda: plays)
    model = LanguageModel(Config(**TINY))
    parts = [evaluate(model, CharTokenizer().encode(play[:10_000]), window=32) for play in plays.values()]
    positions = [part.positions for part in parts]
    assert positions == [629, 9999]
    found = MEASURES["unseen"](model, "")
    assert found["characters"] == sum(positions)
    assert found["loss"] == pytest.approx(np.average([part.loss for part in parts], weights=positions))
    assert found["accuracy"] == pytest.approx(np.average([part.accuracy for part in parts], weights=positions))


def test_lengths_are_windows_of_the_validation_split():
    text = "To be, or not to be, that is the question. " * 300
    model = LanguageModel(Config(**TINY, zero_output=False))
    found = MEASURES["lengths"](model, text)
    ids = split(CharTokenizer().encode(text))[1]
    assert found == {str(n): evaluate(model, ids, window=n).loss for n in measures.LENGTHS}
    assert len(set(found.values())) == len(found)


def test_contexts_score_one_character_at_a_time():
    """Each character from what its window holds: c to 2c − 1 others, only the first c characters fewer."""
    text = "To be, or not to be, that is the question. " * 20
    model = LanguageModel(Config(**TINY, zero_output=False))
    ids = split(CharTokenizer().encode(text))[1]
    losses = []
    with torch.no_grad():
        for t in range(1, len(ids)):
            first = max(0, (t - 1) // 32 * 32 - 32)
            logits = model(ids[None, first:t])[0][0, -1]
            losses.append(-logits.log_softmax(dim=-1)[ids[t]].item())
    assert MEASURES["contexts"](model, text)["32"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_running_memory_reads_the_split_as_one_stream():
    text = "To be, or not to be, that is the question. " * 30
    model = LanguageModel(Config(**TINY | {"context": 2}, memory=6, zero_output=False))
    ids = split(CharTokenizer().encode(text))[1]
    memory, loss = None, 0.0
    with torch.no_grad():
        for x, y in zip(ids[:-1].split(2), ids[1:].split(2), strict=True):
            logits, memory = model(x[None], memory)
            loss += torch.nn.functional.cross_entropy(logits[0], y, reduction="sum").item()
    found = MEASURES["running_memory"](model, text)
    assert found["loss"] == pytest.approx(loss / (len(ids) - 1), abs=1e-5)
    assert abs(found["loss"] - evaluate(model, ids, window=8).loss) > 1e-4  # there the memory starts empty


def test_a_run_without_its_measures_is_not_done(tmp_path):
    run = RUNS["equal_time/rmha-relu2-0"]
    found = {"config": dataclasses.asdict(run.config), "measures": {}}
    command.write(run, found, tmp_path)
    assert not command.is_done(run, tmp_path)
    command.write(run, found | {"measures": {"unseen": {}, "contexts": {}}}, tmp_path)
    assert command.is_done(run, tmp_path)


def test_profiles_of_heads_are_those_of_each_layer():
    text, model = "To be, or not to be, " * 3000, LanguageModel(Config(**TINY | {"layers": 2}, zero_output=False))
    ids = split(CharTokenizer().encode(text))[1][: 32 * 128].view(32, 128)
    with torch.no_grad():
        x = model.blocks[0](model.embedding(ids))
        second = model.blocks[1]
        weights = second.attention.weights(second.attention_norm(x))
    three_back = weights.diagonal(-3, 2, 3)[..., 16 - 3 :].mean(dim=(0, 2))
    profile = torch.tensor(MEASURES["heads"](model, text))
    torch.testing.assert_close(profile[1, :, 3], three_back, rtol=0, atol=1e-5)


def test_operations_count_the_optimisers_products():
    """Muon's five iterations on an m × n matrix, m ≤ n: X Xᵀ, its square, and its product with X; AdamW has none."""
    config = Config(**TINY, position="none", kernel_size=0)
    muon, adamw = (operations(config.replace(optimizer=name), 1) for name in ("muon", "adamw"))
    shapes = [p.shape for n, p in LanguageModel(config).named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    products = sum(5 * (2 * 2 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)
    assert muon - adamw == products
    assert operations(config, 7) == 7 * muon


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """A registry of two runs, one of each task, that take a second."""
    config = Config(**TINY, steps=3, eval_every=0, precision="float32", device="cpu")
    runs = [
        Run("small", "text", config),
        Run("small", "lookup", config.replace(vocabulary=64, eval_every=3), task="induction"),
    ]
    monkeypatch.setattr(command, "RUNS", {str(run): run for run in runs})
    monkeypatch.setattr(command, "GROUPS", {"small": None})
    return runs


def test_command_runs_what_is_missing_and_nothing_else(two_runs, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(command.main, [*arguments, "--into", str(tmp_path)], catch_exceptions=False)

    for run in two_runs:
        assert invoke(str(run), "--here", "1").exit_code == 0
        found = json.loads((tmp_path / f"{run}.json").read_text())
        assert Config(**found["config"]) == run.config
    assert "small: 2 of 2 done" in invoke("--list").output
    assert "0 of 2 runs are missing" in invoke("small").output
    file = tmp_path / "small/text.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"config": found["config"] | {"steps": 4}}))  # of another configuration
    assert "small: 1 of 2 done" in invoke("--list").output


def test_a_run_that_was_cut_off_shows_its_curve_and_goes_on(two_runs, tmp_path, monkeypatch):
    config = two_runs[0].config.replace(steps=4, eval_every=2, checkpoint_every=2)
    run = dataclasses.replace(two_runs[0], config=config)
    monkeypatch.setitem(command.RUNS, str(run), run)
    step, cut_at, made = Trainer.step, [3], []

    def step_or_die(trainer, number):
        if number in cut_at:
            raise ConnectionAbortedError
        made.append(number)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "step", step_or_die)

    def invoke(*arguments):
        return CliRunner().invoke(command.main, [str(run), *arguments, "--into", str(tmp_path)])

    assert "nothing yet" in invoke("--so-far").output
    assert isinstance(invoke("--here", "1").exception, ConnectionAbortedError)
    assert "written as unfinished" in invoke("--so-far").output
    found = json.loads((tmp_path / f"{run}.json").read_text())
    assert found["unfinished"]
    assert [point["step"] for point in found["curve"]] == [2]
    assert "0 of 1 done" in invoke("--list").output
    cut_at.clear()
    assert invoke("--here", "1").exit_code == 0
    assert made == [0, 1, 2, 2, 3]
    assert "1 of 1 done" in invoke("--list").output


def test_a_finished_run_is_measured_again_without_training(tmp_path, monkeypatch):
    text = "To be, or not to be, that is the question. " * 200
    monkeypatch.setattr(command, "load_tiny_shakespeare", lambda: text)
    monkeypatch.setattr("rcmha_lite.training.load_tiny_shakespeare", lambda: text)
    run = Run("small", "again", Config(**TINY, steps=2, device="cpu"), ("taps",))
    command.carry_out(run, 2, tmp_path, tmp_path / "runs")
    before = json.loads((tmp_path / f"{run}.json").read_text())
    monkeypatch.setattr(command, "train", None)  # must not be called again
    monkeypatch.setitem(MEASURES, "taps", None)  # nor this
    command.carry_out(dataclasses.replace(run, measures=("taps", "lengths")), 1, tmp_path, tmp_path / "runs")
    after = json.loads((tmp_path / f"{run}.json").read_text())
    assert after["measures"].pop("lengths").keys() == {str(length) for length in measures.LENGTHS}
    assert after == before


def test_recipes_never_see_the_validation_split(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(command, "train", lambda config, folder, text, progress: read.append(text) or {"manifest": {}})
    monkeypatch.setattr(command, "load_model", lambda folder: None)
    run = Run("small", "recipe", Config(**TINY), task="training split")
    command.carry_out(run, 1, tmp_path, tmp_path)
    text = load_tiny_shakespeare()
    assert read == [text[:1_003_854]]
    assert not any(run.task == "tiny-shakespeare" for run in RUNS.values() if run.group == "recipes")


def test_timed_runs_are_alone(two_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(command.RUNS, "small/timed", dataclasses.replace(two_runs[0], name="timed", alone=True))
    at_once = {}
    monkeypatch.setattr(command, "in_a_process", lambda run, jobs, *_: at_once.update({run.name: jobs}) or True)
    done = CliRunner().invoke(command.main, ["--into", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert at_once == {"text": 2, "lookup": 2, "timed": 1}


@pytest.fixture
def made_again(tmp_path):
    """A folder that holds the committed runs of the pairs, as a machine that rounds alike would make them."""
    for pair in reproduce.committed():
        for run in pair.runs:
            file = tmp_path / f"{run}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text((results.RESULTS / f"{run}.json").read_text())
    return tmp_path


def test_reproduction_compares_differences(made_again):
    """Both runs may move together; one against the other, no further than another seed would."""
    lines = reproduce.compare(made_again)
    assert all(line.agrees and line.found == pytest.approx(line.committed) for line in lines)
    line, (one, other) = lines[0], reproduce.PAIRS[0].runs
    assert line.measure == "val_loss"

    def moved(run, by):
        file = made_again / f"{run}.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps(found | {"val_loss": found["val_loss"] + by}))
        return reproduce.compare(made_again)[0].agrees

    assert moved(one, 0.99 * line.tolerance)
    assert not moved(one, 0.02 * line.tolerance)
    assert moved(other, 1.01 * line.tolerance)


def test_reproduction_refutes_positions_and_the_look_up(made_again):
    """What its docstring says: without relative positions' effect it would differ; the convolution's is within the spread."""
    told = {(line.what, line.measure): line.refutes for line in reproduce.compare(made_again)}
    assert {name for name, _ in told} == {pair.what for pair in reproduce.committed()}
    for (name, measure), refutes in told.items():
        assert refutes == (not name.startswith("convolution")), measure
    [positions] = (line for line in reproduce.compare(made_again) if line[:2] == ("relative positions", "val_loss"))
    assert not positions._replace(found=positions.committed - positions.effect).agrees


def test_the_tolerance_of_a_reproduction_is_another_seeds():
    """Two differences drawn alike: 95 % lie within it."""
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((4000, 10))
    spread = stats.t.ppf(0.975, 7) * drawn[:, :8].std(axis=1, ddof=1) * 2**0.5
    assert 0.93 < np.mean(np.abs(drawn[:, 8] - drawn[:, 9]) <= spread) < 0.97


def test_reproduction_leaves_out_what_is_not_committed(monkeypatch, capsys):
    missing = reproduce.Pair("of tomorrow", "ablation/rmha-relu2", "ablation/mha-relu2", 99, ("val_loss",))
    asked = []
    monkeypatch.setattr(reproduce, "PAIRS", (missing, reproduce.PAIRS[0]))
    monkeypatch.setattr(reproduce, "committed", lambda: [reproduce.PAIRS[1]])
    monkeypatch.setattr(reproduce.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(
        reproduce.subprocess, "run", lambda command, **_: asked.extend(command) or subprocess.CompletedProcess([], 3)
    )
    with pytest.raises(SystemExit, match="3"):
        reproduce.main()
    assert "of tomorrow: nothing to compare with" in capsys.readouterr().out
    assert "ablation/rmha-relu2-0" in asked
    assert "ablation/rmha-relu2-99" not in asked


def test_pairs_of_the_reproduction_are_declared():
    assert all(run in RUNS for pair in reproduce.PAIRS for run in pair.runs)
    assert [pair for pair in reproduce.PAIRS if pair in reproduce.committed()] == reproduce.committed()


def test_reproduction_starts_afresh(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "INTO", tmp_path / "reproduce")
    left_over = tmp_path / "reproduce/ablation/mha-relu-0.json"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("{}")

    def started(command, **_):
        assert not left_over.exists()
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(reproduce.subprocess, "run", started)
    with pytest.raises(SystemExit, match="3"):
        reproduce.main()


def test_unknown_names_are_refused():
    refused = CliRunner().invoke(command.main, ["nonsense"])
    assert refused.exit_code == 2
    assert "no group or run 'nonsense'; the groups are ablation" in refused.output


def test_command_line_lists_every_group():
    run = subprocess.run(
        [sys.executable, "-m", "experiments", "--list"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(f"{group}: " in run.stdout for group in GROUPS)
