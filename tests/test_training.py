"""Training: it learns, it stops and goes on bit for bit, several processes equal one, results say where they are from."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from rcmha_lite import checkpoint, training
from rcmha_lite.checkpoint import CheckpointError, load_model
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.data import CharTokenizer, split
from rcmha_lite.evaluation import evaluate
from rcmha_lite.model import LanguageModel
from rcmha_lite.optimizers import build_optimizers, rate_factor
from rcmha_lite.training import Interrupted, train

TEXT = "".join(f"{a} loves {b}.\n" for a in ("Romeo", "Juliet", "Hamlet", "Puck") for b in ("wine", "war", "gold")) * 30
FAST = Config(
    layers=1, d_model=16, n_heads=2, d_ff=32, d_position=8, context=16, window=16, batch=8, steps=12, warmup=2,
    dropout=0.1, eval_every=5, checkpoint_every=3, precision="float32", device="cpu",
)  # fmt: skip
MEMORY = FAST.replace(memory=8)
REPOSITORY = Path(__file__).parents[1]
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from rcmha_lite import training
from rcmha_lite.config import Config
text, config, out = open(sys.argv[1]).read(), Config.from_json(open(sys.argv[2]).read()), sys.argv[3]
training.train(config, out, text=text, progress=False)
"""


@pytest.fixture
def launch(tmp_path):
    """Start a training process; further words go before the script's arguments."""
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(config: Config, out: Path, *launcher: str) -> subprocess.Popen:
        arguments = out.with_suffix(f".{len(processes)}")
        arguments.write_text(config.to_json())
        command = [sys.executable, *launcher, tmp_path / "script.py", tmp_path / "text", arguments, out]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with (tmp_path / "errors").open("a") as errors:
            processes.append(subprocess.Popen(command, env=environment, stderr=errors))
        return processes[-1]

    processes: list[subprocess.Popen] = []
    yield start
    for process in processes:
        process.kill()
        process.wait()


def weights(out):
    return load_file(out / checkpoint.WEIGHTS)


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("changes", [*CELLS.values(), {"position": "rope"}, {"position": "alibi"}])
def test_learns(tmp_path, changes):
    results = train(FAST.replace(**changes, steps=60, dropout=0.0), tmp_path, text=TEXT, progress=False)
    first, last = results["curve"][0], results["curve"][-1]
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert last["val_accuracy"] > first["val_accuracy"]


@pytest.mark.parametrize(
    "config",
    [
        FAST,
        MEMORY,
        FAST.replace(optimizer="adamw", accumulate=2),
        FAST.replace(kernel_rate=3.0, position="rope"),
        MEMORY.replace(kernel_rate=3.0, optimizer="adam", schedule="noam", position="alibi"),
    ],
)
def test_stopped_and_resumed_equals_never_stopped(tmp_path, config, monkeypatch):
    """Stopped after each of several steps by a termination request, then resumed."""
    whole = train(config, tmp_path / "whole", text=TEXT, progress=False)
    step = training.Trainer.step

    def stop_after_some(self, n):
        if n in (1, 5, 7):
            signal.raise_signal(signal.SIGINT)
        return step(self, n)

    monkeypatch.setattr(training.Trainer, "step", stop_after_some)
    for _ in range(3):
        with pytest.raises(Interrupted, match="the same command goes on"):
            train(config, tmp_path / "parts", text=TEXT, progress=False)
    results = train(config, tmp_path / "parts", text=TEXT, progress=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert results["curve"] == whole["curve"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not replace a file that is being read")
def test_killed_at_any_moment_and_resumed_equals_never_stopped(tmp_path, launch):
    """SIGKILL, wherever the process happens to be, again and again; the tensors end the same bit for bit."""
    config = MEMORY.replace(steps=150, checkpoint_every=1, eval_every=40)
    whole = launch(config, tmp_path / "whole")
    parts, killed = tmp_path / "parts", 0
    while killed < 3:
        run = launch(config, parts)
        seen = checkpoint_step(parts)
        while run.poll() is None and checkpoint_step(parts) < seen + 20 + 7 * killed:
            time.sleep(0.001)
        if run.poll() is not None:
            break
        run.kill()
        run.wait()
        killed += 1
    assert killed == 3, "the run ended before it could be killed three times"
    assert launch(config, parts).wait() == 0
    assert whole.wait() == 0
    assert_same_weights(tmp_path / "whole", parts)


def checkpoint_step(out: Path) -> int:
    """The step of the checkpoint on disk: a file that is never seen in part. Its header is read, and no more."""
    if not (out / checkpoint.TRAINING).exists():
        return 0
    with (out / checkpoint.TRAINING).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["state"])["step"]


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher of several processes is not built for Windows")
@pytest.mark.parametrize("config", [FAST, MEMORY])
def test_two_processes_give_the_losses_of_one(tmp_path, launch, config):
    device = "cpu" if torch.cuda.is_available() else "auto"
    config = config.replace(dropout=0.0, eval_every=1, device=device, optimizer="adamw")  # Muon rounds to bfloat16
    train(config, tmp_path / "one", text=TEXT, progress=False)
    two = launch(config, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert two.wait(timeout=300) == 0, (tmp_path / "errors").read_text()
    one, two = (json.loads((tmp_path / out / checkpoint.RESULTS).read_text()) for out in ("one", "two"))
    assert (one["manifest"]["processes"], two["manifest"]["processes"]) == (1, 2)
    for a, b in zip(one["curve"], two["curve"], strict=True):
        assert a == pytest.approx(b, abs=2e-5)


def test_stopped_between_the_files_of_the_last_checkpoint(tmp_path, monkeypatch):
    train(FAST, tmp_path / "whole", text=TEXT, progress=False)
    save = checkpoint.save_training

    def fail_at_the_end(folder, model, optimizers, memory, progress):
        if progress.step == FAST.steps:
            raise KeyboardInterrupt
        save(folder, model, optimizers, memory, progress)

    monkeypatch.setattr(checkpoint, "save_training", fail_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        train(FAST, tmp_path / "parts", text=TEXT, progress=False)
    monkeypatch.undo()
    train(FAST, tmp_path / "parts", text=TEXT, progress=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_nothing_is_written_for_a_run_that_cannot_start(tmp_path):
    with pytest.raises(ValueError, match="vocabulary 30: training knows Tiny Shakespeare's 65 characters"):
        train(FAST.replace(vocabulary=30), tmp_path, text=TEXT, progress=False)
    with pytest.raises(ValueError, match="needs at least"):
        train(FAST.replace(context=10**6), tmp_path, text=TEXT, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_says_so_and_keeps_its_last_good_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: give a lower learning_rate"):
        train(FAST.replace(learning_rate=float("inf"), steps=60), tmp_path, text=TEXT, progress=False)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_a_foreign_checkpoint_is_refused(tmp_path):
    state = json.dumps({"step": 3, "config": FAST.to_json()})
    for metadata in (None, {"state": "{}"}, {"state": "x"}, {"state": state}):
        (tmp_path / checkpoint.TRAINING).write_bytes(save({"a": torch.zeros(1)}, metadata))
        with pytest.raises(CheckpointError, match="not a checkpoint of this program, or damaged"):
            train(FAST, tmp_path, text=TEXT, progress=False)


def test_accumulation_equals_one_batch(tmp_path):
    config = FAST.replace(dropout=0.0, optimizer="adamw")  # Muon rounds to bfloat16
    curves = [
        train(config.replace(accumulate=n), tmp_path / str(n), text=TEXT, progress=False)["curve"] for n in (1, 4)
    ]
    assert curves[0][-1] == pytest.approx(curves[1][-1], abs=2e-5)


def test_results_are_those_of_the_saved_weights_and_say_where_they_are_from(tmp_path):
    results = train(FAST, tmp_path, text=TEXT, progress=False)
    assert results == json.loads((tmp_path / checkpoint.RESULTS).read_text())
    ids = split(CharTokenizer().encode(TEXT))[1]
    found = evaluate(load_model(tmp_path), ids, window=FAST.window)
    assert (results["val_loss"], results["val_accuracy"]) == (found.loss, found.accuracy)
    assert results["curve"][-1]["val_loss"] == pytest.approx(found.loss, abs=1e-6)
    assert [point["step"] for point in results["curve"]] == [5, 10, 12]
    assert {"commit", "seed", "data_sha256", "torch", "processor", "threads", "device"} <= results["manifest"].keys()
    assert results["seconds"] > 0
    assert Config(**results["config"]) == FAST


def test_finished_run_is_not_trained_again_and_keeps_its_origin(tmp_path, monkeypatch):
    first = train(FAST, tmp_path, text=TEXT, progress=False)
    monkeypatch.setattr(training, "manifest", lambda: {"commit": "another"})
    assert train(FAST, tmp_path, text=TEXT, progress=False) == first
    (tmp_path / checkpoint.TRAINING).unlink()
    with pytest.raises(CheckpointError, match="holds a finished run without its training"):
        train(FAST.replace(layers=2), tmp_path, text=TEXT, progress=False)


def test_resumed_run_names_all_its_origins_and_refuses_another_text(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "validate", lambda self: (_ for _ in ()).throw(Interrupted("now")))
        with pytest.raises(Interrupted):
            train(FAST, tmp_path, text=TEXT, progress=False)
    with pytest.raises(CheckpointError, match="holds a run on another text"):
        train(FAST, tmp_path, text=TEXT[::-1], progress=False)
    monkeypatch.setattr(training, "manifest", lambda: {"commit": "another"})
    origin = train(FAST, tmp_path, text=TEXT, progress=False)["manifest"]
    assert origin["commit"] != "another"
    assert [later["commit"] for later in origin["resumed"]] == ["another"]


def test_a_run_without_a_step_can_be_given_another_configuration(tmp_path, monkeypatch):
    """As its own advice asks for: give --no-compile, or a lower learning rate."""
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", lambda self, step: (_ for _ in ()).throw(Interrupted("now")))
        with pytest.raises(Interrupted):
            train(FAST, tmp_path, text=TEXT, progress=False)
    assert (tmp_path / checkpoint.TRAINING).exists()
    assert train(FAST.replace(learning_rate=1e-3), tmp_path, text=TEXT, progress=False)["curve"][-1]["step"] == 12


def test_a_run_that_diverges_at_its_end_is_not_a_result(tmp_path):
    with pytest.raises(ValueError, match="the validation loss is nan: the model diverged"):
        train(FAST.replace(steps=1, learning_rate=1e30, muon_rate=1e30), tmp_path, text=TEXT, progress=False)
    assert not (tmp_path / checkpoint.RESULTS).exists()


def test_a_text_too_short_to_validate_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="leaves nothing to validate"):
        train(FAST.replace(context=4), tmp_path, text="To be, or!", progress=False)
    assert not list(tmp_path.iterdir())


def test_folder_of_another_run_is_refused(tmp_path):
    train(FAST, tmp_path, text=TEXT, progress=False)
    before = weights(tmp_path)
    with pytest.raises(
        CheckpointError, match="another configuration \\(layers 1 there, 2 here; steps 12 there, 20 here"
    ):
        train(FAST.replace(layers=2, steps=20), tmp_path, text=TEXT, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_damaged_checkpoints_are_named(tmp_path, name):
    train(FAST, tmp_path, text=TEXT, progress=False)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        load_model(tmp_path)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("fault", ["another shape", "one too many"])
def test_averages_of_another_shape_are_refused_in_a_line(tmp_path, monkeypatch, optimizer, fault):
    """PyTorch takes them, and ends the process in the next step. The file is left as it was."""
    config, step = FAST.replace(optimizer=optimizer), training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, n: signal.raise_signal(signal.SIGINT) or step(self, n))
    with pytest.raises(Interrupted):
        train(config, tmp_path, text=TEXT, progress=False)
    monkeypatch.setattr(training.Trainer, "step", step)
    file = tmp_path / checkpoint.TRAINING
    tensors = load_file(file)
    with checkpoint.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    name = next(n for n in tensors if n.startswith("optimizer.0.") and tensors[n].ndim == 2)
    other = name if fault == "another shape" else "optimizer.0.999." + name.rpartition(".")[2]
    tensors[other] = tensors[name][:-1].clone()
    file.write_bytes(save(tensors, metadata))
    before = file.read_bytes()
    said = "has shape" if fault == "another shape" else "the optimiser has"
    with pytest.raises(
        CheckpointError, match=f"damaged .*{other.rpartition('.')[0]}.*{said}.*name another --out folder"
    ) as refused:
        train(config, tmp_path, text=TEXT, progress=False)
    assert "\n" not in str(refused.value)
    assert file.read_bytes() == before


def test_a_finished_run_mends_its_weights(tmp_path):
    """All that they hold is in its last checkpoint."""
    found = train(FAST, tmp_path, text=TEXT, progress=False)
    before = {name: tensor.clone() for name, tensor in weights(tmp_path).items()}
    (tmp_path / checkpoint.CONFIG).unlink()
    (tmp_path / checkpoint.WEIGHTS).write_bytes(b"half")
    assert train(FAST, tmp_path, text=TEXT, progress=False) == found
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())
    (tmp_path / checkpoint.RESULTS).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        train(FAST, tmp_path, text=TEXT, progress=False)
    (tmp_path / checkpoint.RESULTS).unlink()
    assert train(FAST, tmp_path, text=TEXT, progress=False)["val_loss"] == found["val_loss"]


@pytest.mark.parametrize("theirs", ['{"my": "settings"}', FAST.replace(d_ff=64).to_json(), "é".encode("latin-1")])
def test_anothers_configuration_is_not_overwritten(tmp_path, theirs):
    theirs = theirs if isinstance(theirs, bytes) else theirs.encode()
    (tmp_path / checkpoint.CONFIG).write_bytes(theirs)
    with pytest.raises(CheckpointError, match="name another --out folder"):
        train(FAST, tmp_path, text=TEXT, progress=False)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(checkpoint.CONFIG, theirs)]


def test_what_a_killed_write_left_is_removed(tmp_path):
    left_over = tmp_path / ".partial-abc"
    left_over.mkdir()
    (left_over / checkpoint.WEIGHTS).write_bytes(b"half")
    train(FAST, tmp_path, text=TEXT, progress=False)
    assert not left_over.exists()


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    train(FAST, tmp_path, text=TEXT, progress=False)
    opened = Path.open

    def refuse(path, *arguments, **named):
        if path.name == checkpoint.TRAINING:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        train(FAST.replace(steps=20), tmp_path, text=TEXT, progress=False)


def test_weights_of_another_configuration_are_refused(tmp_path):
    train(FAST, tmp_path, text=TEXT, progress=False)
    (tmp_path / checkpoint.CONFIG).write_text(FAST.replace(d_ff=64).to_json())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(tmp_path)


def test_no_pickle_is_read_or_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.save", refuse)
    monkeypatch.setattr("torch.load", refuse)
    train(FAST, tmp_path, text=TEXT, progress=False)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_every_parameter_has_one_optimiser_and_matrices_decay():
    for optimizer in ("muon", "adamw", "adam"):
        model = LanguageModel(FAST.replace(optimizer=optimizer))
        groups = [group for o in build_optimizers(model, model.config) for group in o.param_groups]
        held = [p for group in groups for p in group["params"]]
        assert len(held) == len(set(held)) == len(list(model.parameters()))
        decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
        block = model.blocks[0]
        assert {block.attention.query.weight, block.attention.position.projection} <= decayed
        assert not {block.attention.query.bias, block.attention.position.content_bias, model.embedding.weight} & decayed


def test_schedules_by_hand():
    linear = FAST.replace(steps=100, warmup=10, decay=0.5)
    assert [rate_factor(linear, s) for s in (0, 9, 49, 50, 75, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.02])
    noam = PRESETS["paper"]
    peak = 128**-0.5 * 2000**-0.5
    assert rate_factor(noam, 1999) == pytest.approx(peak)
    assert rate_factor(noam, 0) == pytest.approx(peak / 2000)
    assert rate_factor(noam, 7999) == pytest.approx(peak / 2)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match="batch 8 is not divisible by 3 processes"):
        train(FAST, tmp_path, text=TEXT, progress=False)


@pytest.mark.parametrize("position", ["relative-sinusoidal", "rope", "alibi"])
def test_bfloat16_trains(tmp_path, position):
    config = FAST.replace(precision="bfloat16", steps=4, position=position)
    results = train(config, tmp_path, text=TEXT, progress=False)
    assert results["manifest"]["precision"] == "bf16"
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path).values())


def test_each_step_has_its_rate(tmp_path, monkeypatch):
    seen, step = [], training.Trainer.step

    def noted(self, n):
        found = step(self, n)
        seen.append([group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups])
        return found

    monkeypatch.setattr(training.Trainer, "step", noted)
    train(FAST, tmp_path, text=TEXT, progress=False)
    for n, rates in enumerate(seen):
        assert rates == pytest.approx([rate * rate_factor(FAST, n) for rate in (FAST.muon_rate, FAST.learning_rate)])


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms, clip = [], training.Accelerator.clip_grad_norm_
    monkeypatch.setattr(
        training.Accelerator, "clip_grad_norm_", lambda self, p, norm: norms.append(norm) or clip(self, p, norm)
    )
    train(FAST, tmp_path, text=TEXT, progress=False)
    assert norms == [FAST.clip] * FAST.steps


def test_the_seed_decides_weights_and_windows(tmp_path):
    a, b = (training.Trainer(FAST.replace(seed=seed), tmp_path / str(seed), TEXT) for seed in (0, 1))
    assert not torch.equal(a.model.embedding.weight, b.model.embedding.weight)
    assert not torch.equal(a.batch(0)[0], b.batch(0)[0])


def test_memory_starts_empty_in_each_epoch(tmp_path):
    trainer = training.Trainer(MEMORY.replace(context=64), tmp_path, TEXT)
    epoch = next(n for n in range(1, 100) if torch.equal(trainer.batch(n)[0], trainer.batch(0)[0]))
    seen = []
    for n in range(2 * epoch):
        trainer.step(n)
        seen.append(trainer.memory.seen)
    assert seen == [64 * (n % epoch + 1) for n in range(2 * epoch)]


def test_a_folder_has_one_owner(tmp_path, launch):
    """While one process trains, a second run is refused at once; a killed one owns nothing."""
    config, out = FAST.replace(steps=100_000, eval_every=0), tmp_path / "run"
    first = launch(config, out)
    while checkpoint_step(out) < 3:
        assert first.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    for other in (config, FAST.replace(seed=7)):
        with pytest.raises(CheckpointError, match=r"another run is writing into .*run: wait until it ends, or name"):
            train(other, out, text=TEXT, progress=False)
    assert time.monotonic() - began < 2
    assert first.poll() is None
    first.kill()
    first.wait()
    with pytest.raises(CheckpointError, match="another configuration"):
        train(FAST.replace(seed=7), out, text=TEXT, progress=False)
    assert not (out / ".lock").exists()


def test_a_variable_of_a_library_changes_nothing_and_is_recorded(tmp_path, monkeypatch):
    config = FAST.replace(optimizer="adamw")
    plain = train(config, tmp_path / "plain", text=TEXT, progress=False)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    again = train(config, tmp_path / "again", text=TEXT, progress=False)
    assert again["curve"] == plain["curve"]
    assert again["manifest"]["environment"]["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"
    assert again["manifest"]["precision"] == "no"


def test_what_changes_only_last_digits_may_change_and_is_recorded(tmp_path, monkeypatch):
    step = training.Trainer.step

    def stop_at_six(self, n):
        if n == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, n)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", stop_at_six)
        with pytest.raises(Interrupted):
            train(FAST, tmp_path, text=TEXT, progress=False)
    found = train(FAST.replace(eval_every=4, checkpoint_every=2), tmp_path, text=TEXT, progress=False)
    assert [point["step"] for point in found["curve"]] == [5, 8, 12]
    assert found["manifest"]["eval_every"] == 5
    assert [(later["eval_every"], later["checkpoint_every"]) for later in found["manifest"]["resumed"]] == [(4, 2)]


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train(FAST, "~/run", text=TEXT, progress=False)
    assert load_model("~/run").config == FAST
    assert (tmp_path / "run" / checkpoint.RESULTS).is_file()


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    train(FAST.replace(steps=6), tmp_path / "six", text=TEXT, progress=False)
    train(FAST, tmp_path / "run", text=TEXT, progress=False)
    before = (tmp_path / "run" / checkpoint.WEIGHTS).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rcmha_lite.cache.os.fsync", full)
    with pytest.raises(OSError, match=r"no space left in .*run for the .* MB of .*: free some and give the same"):
        train(FAST, tmp_path / "run", text=TEXT, progress=False)
    assert (tmp_path / "run" / checkpoint.WEIGHTS).read_bytes() == before


def names_by_group(model):
    """Of every optimiser, in order: its class and its groups' rates, decays and names of parameters."""
    names = {p: n for n, p in model.named_parameters()}
    return [
        (type(o).__name__, [(g["lr"], g["weight_decay"], [names[p] for p in g["params"]]) for g in o.param_groups])
        for o in build_optimizers(model, model.config)
    ]


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam"])
def test_groups_are_those_of_the_first_runs_unless_kernels_have_a_rate(optimizer):
    """Checkpoints number the parameters by group, so that the order may not change."""
    config = FAST.replace(optimizer=optimizer, layers=2, weight_decay=0.1)
    model = LanguageModel(config)
    named = [n for n, _ in model.named_parameters()]
    matrices = [
        n for n in named if n.startswith("blocks.") and n.endswith((
            "query.weight", "key.weight", "value.weight", "attention.output.weight", "position.projection",
            "feed_forward.input.weight", "feed_forward.output.weight",
        ))
    ]  # fmt: skip
    rest = [n for n in named if n not in matrices]
    kernels = [f"blocks.{n}.attention.convolution.{kind}" for n in (0, 1) for kind in ("weight", "bias")]
    assert set(kernels) < set(rest)
    adam = "Adam" if optimizer == "adam" else "AdamW"
    muon = [("Muon", [(0.02, 0.1, matrices)])] if optimizer == "muon" else []
    decayed = [] if muon else [(3e-3, 0.1, matrices)]
    assert names_by_group(model) == [*muon, (adam, [(3e-3, 0.0, rest), *decayed])]
    own = LanguageModel(config.replace(kernel_rate=2.0))
    others = [n for n in rest if n not in kernels]
    assert names_by_group(own) == [*muon, (adam, [(3e-3, 0.0, others), (6e-3, 0.0, kernels), *decayed])]
    without = LanguageModel(config.replace(kernel_rate=2.0, kernel_size=0))
    assert names_by_group(without)[-1][1][0][2] == others
    assert sum(len(groups) for _, groups in names_by_group(without)) == 2


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam"])
def test_kernels_move_at_their_own_rate_and_nothing_else_does(tmp_path, optimizer):
    """Adam's first step is as long as its rate: three times the rate, three times as far, weights and biases."""
    moved = []
    for rate in (1.0, 3.0, 0.0):
        config = FAST.replace(optimizer=optimizer, kernel_rate=rate, zero_output=False, dropout=0.0, layers=2)
        trainer = training.Trainer(config, tmp_path, TEXT)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.step(0)
        moved.append({n: p.detach() - before[n] for n, p in trainer.model.named_parameters()})
    for name, change in moved[0].items():
        if ".convolution." in name:
            assert change.abs().max() > 1e-3
            torch.testing.assert_close(moved[1][name], 3 * change, rtol=1e-3, atol=3e-7, msg=name)
            assert not moved[2][name].any()
        else:
            assert torch.equal(moved[1][name], change), name
            assert torch.equal(moved[2][name], change), name


@pytest.mark.parametrize("schedule", ["linear", "noam"])
def test_the_schedule_scales_the_kernels_rate(tmp_path, schedule):
    config = FAST.replace(optimizer="adamw", kernel_rate=3.0, schedule=schedule)
    trainer = training.Trainer(config, tmp_path, TEXT)
    for n in (0, 5, 11):
        trainer.step(n)
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        assert rates == pytest.approx([k * config.learning_rate * rate_factor(config, n) for k in (1, 3, 1)])


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_windows_longer_than_the_context_are_scored(tmp_path, position):
    """Rotary angles and slopes have no end; what is found is the mean over the windows, read by hand."""
    config = FAST.replace(position=position, window=48, steps=2)
    results = train(config, tmp_path, text=TEXT, progress=False)
    model, ids = load_model(tmp_path), split(CharTokenizer().encode(TEXT))[1]
    losses = [
        torch.nn.functional.cross_entropy(model(ids[at:-1][None, :48])[0][0], ids[at + 1 :][:48], reduction="sum")
        for at in range(0, len(ids) - 1, 48)
    ]
    assert results["val_loss"] == pytest.approx(sum(losses).item() / (len(ids) - 1), abs=1e-5)
