"""The training loop waits for its device at stated points alone, and its compiled step is one graph, compiled once."""

import signal

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from rcmha_lite import training
from rcmha_lite.evaluation import evaluate
from rcmha_lite.model import LanguageModel
from rcmha_lite.training import Interrupted, Trainer, train
from tests.test_training import FAST, TEXT, assert_same_weights

READS = ("tolist", "item", "numpy", "cpu")


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read from tensors, tensors copied for NumPy or by cpu()."""

    def __init__(self, patch):
        super().__init__()
        self.count, self.patch = 0, patch
        for name in READS:  # on a CPU these do not come by the dispatcher
            patch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, method):
        def read(*arguments, **named):
            self.count += 1
            return method(*arguments, **named)

        return read

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += any(word in str(function) for word in ("_local_scalar_dense", "nonzero"))
        return function(*arguments, **named or {})


@pytest.fixture
def waits(monkeypatch):
    with Waits(monkeypatch) as counting:
        yield counting


def test_the_counter_counts(waits):
    x = torch.ones(3)
    for n, read in enumerate((x.tolist, x[0].item, lambda: bool(x[0] > 0), x.numpy, x.cpu, x.nonzero), 1):
        read()
        assert waits.count >= n, read


@pytest.mark.parametrize("changes", [{}, {"memory": 8}, {"accumulate": 2, "optimizer": "adamw"}, {"clip": 0.0}])
def test_a_step_does_not_wait(tmp_path, waits, changes):
    trainer = Trainer(FAST.replace(**changes), tmp_path, TEXT)
    trainer.advance(0)  # an optimiser's first step makes its state
    waits.count = 0
    for step in range(1, 4):
        trainer.advance(step)
    assert waits.count == 0
    trainer.look()
    assert waits.count == 1


def test_a_step_in_float16_waits_once_to_know_whether_it_may_be_taken(tmp_path, waits):
    trainer = Trainer(FAST.replace(precision="float16"), tmp_path, TEXT)
    trainer.advance(0)
    waits.count = 0
    for step in range(1, 4):
        trainer.advance(step)
    assert waits.count in (3, 6), "read once: on the way .item() passes the dispatcher too"


def test_a_validation_waits_at_its_end(waits):
    model, ids = LanguageModel(FAST), torch.randint(65, (500,))
    waits.count = 0
    evaluate(model, ids, window=16, batch=2)
    few = waits.count
    evaluate(model, ids, window=16, batch=32)
    assert waits.count == 2 * few <= 16, "as often for sixteen batches as for one"


def test_the_loop_looks_where_it_must_and_where_it_looks_changes_nothing(tmp_path, monkeypatch):
    looks, look = [], Trainer.look
    monkeypatch.setattr(Trainer, "look", lambda self: looks.append(self.done) or look(self))
    for name, seconds in (("seldom", float("inf")), ("always", 0.0)):
        looks.clear()
        monkeypatch.setattr(training, "LOOK_SECONDS", seconds)
        found = train(FAST, tmp_path / name, text=TEXT, progress=False)
        assert looks == ([3, 5, 6, 9, 10, 12] if name == "seldom" else list(range(1, 13)))
        curve = found["curve"] if name == "seldom" else curve
        assert found["curve"] == curve
        assert found["seconds"] > 0
    assert_same_weights(tmp_path / "seldom", tmp_path / "always")


def test_a_stop_is_heard_within_its_step_though_nobody_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOOK_SECONDS", float("inf"))
    step = Trainer.step

    def stop_at_eight(self, n):
        if n == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, n)

    monkeypatch.setattr(Trainer, "step", stop_at_eight)
    with pytest.raises(Interrupted, match="stopped after step 8"):
        train(FAST.replace(eval_every=0, checkpoint_every=100), tmp_path, text=TEXT, progress=False)


def test_several_processes_look_at_the_same_steps(tmp_path, monkeypatch):
    """By their number, not by a clock or a signal, which differ from process to process."""
    trainer = Trainer(FAST, tmp_path, TEXT)
    monkeypatch.setattr(training, "LOOK_SECONDS", 0.0)
    trainer.world, trainer.stop.requested = 2, True
    trainer.accelerator = type("Elsewhere", (), {"device": torch.device("cuda")})
    looked = []
    for trainer.done in range(1, 31):
        if trainer.look_is_due():
            looked.append(trainer.done)
    assert looked == [10, 20, 30]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("changes", [{}, {"position": "rope", "accumulate": 2}, {"position": "relative-learned"}])
@pytest.mark.usefixtures("unchecked")
def test_the_compiled_step_is_one_graph_compiled_once(tmp_path, monkeypatch, precision, changes):
    """No graph break, and no recompilation: not by later steps, nor by validations with their shorter last batch."""
    compile_it, counter = torch.compile, CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda model: compile_it(model, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    config = FAST.replace(**changes, layers=2, steps=6, eval_every=2, compile=True, precision=precision)
    found = train(config, tmp_path, text=TEXT, progress=False)
    assert found["manifest"]["compile"]
    assert counter.frame_count == 1
    assert len(found["curve"]) == 3
    torch._dynamo.reset()


def test_where_there_is_no_compiler_a_run_does_without_and_says_so_in_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "compiler_is_there", lambda device: False)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    found = train(FAST.replace(compile=True), tmp_path, text=TEXT, progress=False)
    assert found["manifest"]["compile"] is False
    assert found["config"]["compile"] is True
