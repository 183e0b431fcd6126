"""The whole of training: loop, checkpoints, results."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor
from torch.nn import functional as F

from rcmha_lite import checkpoint
from rcmha_lite.cache import write_whole
from rcmha_lite.checkpoint import Progress
from rcmha_lite.config import Config
from rcmha_lite.data import (
    SHAKESPEARE_CHARACTERS,
    CharTokenizer,
    contiguous_segments,
    load_tiny_shakespeare,
    random_windows,
    split,
)
from rcmha_lite.evaluation import evaluate
from rcmha_lite.here import device_of, on_cpu
from rcmha_lite.manifest import bfloat16_is_fast, compiler_is_there, manifest
from rcmha_lite.model import LanguageModel, Memory
from rcmha_lite.optimizers import Muon, build_optimizers, rate_factor
from rcmha_lite.precision import LossScaler, precision_for
from rcmha_lite.stopping import Interrupted as Interrupted
from rcmha_lite.stopping import Stop, progress_bar, stop_requested
from rcmha_lite.texts import OwnText, save_tokenizer

LOOK_SECONDS = 0.5
LOOK_STEPS = 10
"""A run looks at its device, and so waits for it, before each validation, checkpoint and stop, and between them for the
progress bar: one process after so many seconds, several after so many steps, the same in each."""


def loss_and_accuracy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats, and the share of targets that are the most probable prediction."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    return loss, (logits.detach().argmax(dim=-1) == targets).float().mean()


class Trainer:
    """One run: its model, optimisers, data and folder. ``train`` is the whole of its use."""

    def __init__(self, config: Config, out: Path, text: str | OwnText) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may train more than once
        device = device_of(config)
        self.precision, compiled = precision_for(config.precision, device), config.compile and compiler_is_there(device)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.precision == "bf16" else "no",  # float16 is LossScaler's
            cpu=on_cpu(config),
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulate),  # no variable overrides it
        )
        self.config, self.out, self.stop = config, out, Stop()
        self.watch: Callable[[Trainer], None] | None = None
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if config.batch % (self.world * config.accumulate):
            parts = f"{self.world} processes × accumulate {config.accumulate}"
            raise ValueError(f"batch {config.batch} is not divisible by {parts}")
        self.own = text if isinstance(text, OwnText) else None
        text, tokenizer = (self.own.text, self.own.tokenizer) if self.own else (str(text), CharTokenizer())
        if config.vocabulary != len(tokenizer):
            known = "the text has" if self.own else "training knows Tiny Shakespeare's"
            known = f"{known} {len(tokenizer)} characters"
            raise ValueError(f"vocabulary {config.vocabulary}: {known}, so leave it at {len(tokenizer)}")
        self.train_ids, self.validation_ids = split(tokenizer.encode(text))
        torch.manual_seed(config.seed)
        self.model = LanguageModel(config)
        self.optimizers = build_optimizers(self.model, config)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.runner, *self.prepared = self.accelerator.prepare(self.model, *self.optimizers)
        self.scaler = LossScaler(self.precision, device, self.prepared)
        if compiled:
            self.runner = torch.compile(self.runner)
        self.memory: Memory | None = None
        self.batch(0)  # a text that is too short says so before anything is written
        if len(self.validation_ids) < 2:
            raise ValueError(f"a text of {len(text)} characters leaves nothing to validate: give a longer one")
        memory, progress = checkpoint.load_training(out, self.model, self.optimizers)
        self.memory = memory and Memory(tuple(h[self.share] for h in memory.hidden), memory.seen)
        self.done, self.seconds, self.curve = progress.step, progress.seconds, list(progress.curve)
        self.more, self.earlier = progress.more, progress.earlier
        self.scaler.load(progress.scaler)
        self.last = torch.zeros(2, device=device)  # loss and accuracy of the last step, over all processes
        self.since = torch.tensor(progress.since, device=device)  # their sums, and the steps
        self.failed = torch.zeros(2, device=device)  # the first step whose loss was no number, and that loss
        self.asked, self.stopping = torch.zeros((), device=device), False  # by any process; and all know it
        self.looked, self.clock = self.done, time.perf_counter()
        origin = manifest() | {
            "data_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "device": str(self.accelerator.device),
            "precision": self.precision,
            "processes": self.world,
            **({"characters": tokenizer.characters} if self.own else {}),
            **{name: getattr(config, name) for name in checkpoint.MAY_CHANGE if name != "device"},
            "compile": compiled,
            **({"muon": "float32"} if isinstance(self.optimizers[0], Muon) and not bfloat16_is_fast(device) else {}),
        }
        texts = {(o["data_sha256"], o.get("characters", SHAKESPEARE_CHARACTERS)) for o in (*progress.origins, origin)}
        if len(texts) > 1:
            raise checkpoint.CheckpointError(f"{out} holds a run on another text: name another --out folder")
        self.origins = [*progress.origins, *([] if origin in progress.origins else [origin])]

    def manifest(self) -> dict[str, Any]:
        """Where the run's results come from: machine and versions, seed, text, device; what differed when resumed."""
        resumed = {"resumed": self.origins[1:]} if self.origins[1:] else {}
        return self.origins[0] | {"seed": self.config.seed} | resumed

    @property
    def steps(self) -> int:
        """Steps in all: the configuration's, and those of each later part."""
        return self.config.steps + sum(self.more)

    @property
    def finished(self) -> bool:
        """Whether the last step is done and its results are there."""
        return self.done == self.steps and (self.out / checkpoint.RESULTS).is_file()

    def extend(self, steps: int) -> None:
        """Give a finished run ``steps`` more: its schedule once again, over so many, from its weights and optimisers.

        An unfinished part of as many steps just goes on. What is finished stays whole in a folder of its own beside
        the checkpoint. CheckpointError for any other unfinished run.
        """
        if steps < 1:
            raise ValueError(f"{steps} more steps are none: give 1 or more")
        if not self.finished:
            if self.more and self.more[-1] == steps:
                return
            first = f"give the same command {'with these' if self.more else 'without more steps'} first"
            state = f"step {self.done} of {self.steps}" + (f", {self.more[-1]} of them more" if self.more else "")
            raise checkpoint.CheckpointError(f"the run in {self.out} is not finished ({state}): {first}")
        self.accelerator.wait_for_everyone()
        found = checkpoint.load_results(self.out)
        self.earlier = (*self.earlier, {name: value for name, value in found.items() if name != "earlier"})
        if self.accelerator.is_main_process:
            whole = self.out / f"step-{self.done}"
            checkpoint.save_weights(whole, self.model)
            save_tokenizer(whole, self.own)
            write_whole(whole / checkpoint.RESULTS, (self.out / checkpoint.RESULTS).read_bytes())
        self.more = (*self.more, steps)
        self.save()

    @property
    def share(self) -> slice:
        """This process's part of a batch."""
        return slice(self.rank * self.config.batch // self.world, (self.rank + 1) * self.config.batch // self.world)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's inputs and targets; with memory, segments that go on where the last step's ended."""
        config = self.config
        shape = {"batch": config.batch, "length": config.context}
        if config.memory:
            inputs, targets, first = contiguous_segments(self.train_ids, **shape, step=step)
            self.memory = None if first else self.memory
        else:
            inputs, targets = random_windows(self.train_ids, **shape, seed=config.seed, step=step)
        return self.sent(inputs[self.share]), self.sent(targets[self.share])

    def sent(self, ids: Tensor) -> Tensor:
        """Ids on the device, without waiting for it."""
        device = self.accelerator.device
        return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)

    def step(self, step: int) -> Tensor:
        """One optimiser step; this process's [loss, accuracy]."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) * self.world + self.rank)
        part, start = self.config, 0
        if self.more:  # the schedule starts anew
            part, start = self.config.replace(steps=self.more[-1]), self.steps - self.more[-1]
        for optimizer, initial in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * rate_factor(part, step - start)
        total = torch.zeros(2, device=self.accelerator.device)
        parts = self.config.accumulate
        for x, y in zip(*(ids.chunk(parts) for ids in self.batch(step)), strict=True):
            with self.accelerator.accumulate(self.runner):
                with self.scaler.half():
                    logits, self.memory = self.runner(x, self.memory)
                loss, accuracy = loss_and_accuracy(logits, y)
                self.accelerator.backward(self.scaler.scale(loss))
                if self.accelerator.sync_gradients:
                    self.scaler.unscale()
                    if self.config.clip:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
                    self.scaler.step()
                for optimizer in self.prepared:
                    optimizer.zero_grad()
            total += torch.stack((loss.detach(), accuracy)) / parts
        return total

    def save(self) -> None:
        """Checkpoint and weights, by the main process."""
        memory = self.memory and Memory(self.accelerator.gather(self.memory.hidden), self.memory.seen)
        if self.accelerator.is_main_process:
            for left_over in self.out.glob(".partial-*"):  # by a process that was killed while it wrote
                shutil.rmtree(left_over, ignore_errors=True)
            progress = Progress(
                self.done, self.seconds, tuple(self.curve), tuple(self.since.tolist()), tuple(self.origins),
                self.more, self.earlier, self.scaler.state(),
            )  # fmt: skip
            save_tokenizer(self.out, self.own)
            checkpoint.save_weights(self.out, self.model)  # first: a finished checkpoint has its weights
            checkpoint.save_training(self.out, self.model, self.optimizers, memory, progress)

    def run(self, show: bool) -> None:
        """The steps that are left. Interrupted, after a checkpoint, once ``stop`` was requested.

        The device is given its work without being waited for; ``look`` alone, and what follows it, needs its numbers.
        """
        with progress_bar(self.steps, self.done, show and self.accelerator.is_main_process) as bar:
            if self.validation_is_due() and (not self.curve or self.curve[-1]["step"] != self.done):
                self.finish_step()  # stopped in its validation
            self.looked, self.clock = self.done, time.perf_counter()
            for step in range(self.done, self.steps):
                self.advance(step)
                finishing = self.validation_is_due() or self.checkpoint_is_due()
                if not finishing and not self.look_is_due():
                    continue
                shown = self.look()
                if finishing or self.stopping:
                    self.finish_step()
                    if self.watch and self.accelerator.is_main_process:
                        self.watch(self)
                    self.clock = time.perf_counter()
                bar.set_postfix(shown, refresh=False)
                bar.update(self.done - bar.n)

    def advance(self, step: int) -> None:
        """One step, and its part in the sums, which stay on the device."""
        found = self.step(step)
        if self.world > 1:
            asked = torch.full((1,), float(self.stop.requested), device=found.device)
            found = self.accelerator.reduce(torch.cat((found, asked)), "sum") / self.world
            found, self.asked = found[:2], found[2]
        self.last, self.done = found, step + 1
        self.since = self.since + torch.cat((found, torch.ones_like(found[:1])))
        now = torch.stack((torch.full_like(found[0], self.done), found[0]))
        self.failed = torch.where((self.failed[0] == 0) & ~found[0].isfinite(), now, self.failed)

    def look_is_due(self) -> bool:
        """Whether to wait for the device: for the bar, for a loss that is no number, for a stop."""
        if self.world == 1:
            return self.stop.requested or time.perf_counter() - self.clock >= LOOK_SECONDS
        return self.accelerator.device.type == "cpu" or self.done % LOOK_STEPS == 0

    def look(self) -> dict[str, str]:
        """Wait for the device: what the bar shows. ValueError if a loss since the last look was not a number."""
        loss, accuracy, asked, failed, what = torch.cat((self.last, self.asked[None], self.failed)).tolist()
        now, steps = time.perf_counter(), self.done - self.looked
        speed = steps * self.config.batch * self.config.context / (now - self.clock)
        self.seconds, self.looked, self.clock = self.seconds + now - self.clock, self.done, now
        if failed:
            raise ValueError(f"the loss is {what} at step {failed:.0f}: give a lower learning_rate or muon_rate")
        self.stopping = bool(asked) if self.world > 1 else self.stop.requested  # the same in all processes
        return {"loss": f"{loss:.3f}", "accuracy": f"{accuracy:.3f}", "characters/s": f"{speed:,.0f}"}

    def validation_is_due(self) -> bool:
        """Whether the learning curve has a point after the last step."""
        every = self.config.eval_every
        return bool(self.done) and (self.done == self.steps or bool(every and self.done % every == 0))

    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint follows the last step, a stop aside."""
        return self.done % self.config.checkpoint_every == 0 or self.done == self.steps

    def finish_step(self) -> None:
        """What follows a step: a validation and a checkpoint where they are due. Interrupted, after a checkpoint, if
        a stop was requested; a validation that is cut short is made again."""
        try:
            if self.validation_is_due():
                began = time.perf_counter()
                self.curve.append(self.validate())
                self.since = torch.zeros_like(self.since)
                self.seconds += time.perf_counter() - began
        except Interrupted:
            self.save()
            raise
        if self.stopping or self.checkpoint_is_due():
            self.save()
        if self.stopping and self.done < self.steps:
            self.leave()

    def leave(self) -> None:
        """Interrupted, if any process was asked to stop."""
        requested = self.stop.requested
        if self.world > 1:
            asked = torch.full((), float(requested or self.stopping), device=self.accelerator.device)
            requested = bool(self.accelerator.reduce(asked, "sum") > 0)
        if requested:
            raise Interrupted(f"stopped after step {self.done}; the same command goes on from {self.out}")

    def validate(self) -> dict[str, float]:
        """A point of the learning curve: training means since the last one, and the whole validation split."""
        loss, accuracy = (self.since[:2] / self.since[2]).tolist()
        found = evaluate(self.model, self.validation_ids, window=self.config.window, between=self.leave)
        point = {"step": self.done, "train_loss": loss, "train_accuracy": accuracy}
        return point | {"val_loss": found.loss, "val_accuracy": found.accuracy}


def train(
    config: Config,
    out: str | Path,
    *,
    text: str | OwnText | None = None,
    more_steps: int = 0,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Train into the folder ``out``, or go on with the run that stopped there.

    ``text`` is Tiny Shakespeare unless given: a string in its 65 characters, or an ``OwnText``, whose alphabet is kept
    beside the weights and whose size is the configuration's ``vocabulary``.

    ``more_steps`` are for a finished run: the schedule once again, over so many steps, with the weights, the state of
    the optimisers and the stream of text going on. Its folder keeps what was finished in ``step-N``, the results have
    it as ``earlier``, and the curve goes on. An unfinished part goes on with the same call. CheckpointError for a run
    that is not finished.

    A step's windows and dropout depend on the seed and the step alone, so a run that is killed and resumed ends, on
    a CPU, with the same weights bit for bit as one that was not. Several processes (``torchrun -m rcmha_lite train``)
    share each batch. Returns the results, also written to ``out/results.json``. Seeds PyTorch's generator, and makes
    Accelerate's state anew. Raises CheckpointError if ``out`` holds another run; ValueError if the configuration does
    not fit the text or the processes, or the loss is no longer a number; and Interrupted, with the checkpoint
    written, after Ctrl-C or a request to terminate. A second one ends at once, the last checkpoint being whole.
    CheckpointError, too, while another run writes into ``out``. ``watch`` is called after each validation and
    checkpoint; its time is not the run's.
    """
    text, out = load_tiny_shakespeare() if text is None else text, Path(os.path.expanduser(out))
    with checkpoint.owned(out), stop_requested() as stop:
        trainer = Trainer(config, out, text)
        trainer.stop, trainer.watch = stop, watch
        if more_steps:
            trainer.extend(more_steps)
        if trainer.finished:
            if trainer.accelerator.is_main_process:  # they may have been damaged since
                save_tokenizer(out, trainer.own)
                checkpoint.save_weights(out, trainer.model)
            return checkpoint.load_results(out)
        if trainer.more and trainer.accelerator.is_main_process:  # the results of an earlier part, kept in its folder
            (out / checkpoint.RESULTS).unlink(missing_ok=True)
        if not trainer.done:
            trainer.save()
        trainer.run(progress)
        if not trainer.accelerator.is_main_process:
            return {}
        results = summarise(trainer)
        write_whole(out / checkpoint.RESULTS, (json.dumps(results, indent=2) + "\n").encode())
        return results


def summarise(trainer: Trainer) -> dict[str, Any]:
    """The finished run's validation figures in float32, both ways; its curve, configuration and manifest."""
    model = checkpoint.load_model(trainer.out, trainer.accelerator.device)
    config, ids = trainer.config, trainer.validation_ids
    characters = trainer.steps * config.batch * config.context
    later = {"more_steps": list(trainer.more), "earlier": list(trainer.earlier)} if trainer.more else {}
    alone = trainer.leave if trainer.world == 1 else None  # the other processes have ended
    side_by_side = evaluate(model, ids, window=config.window, between=alone)
    sliding = evaluate(model, ids, window=config.window, sliding=True, between=alone)
    return {
        "val_loss": side_by_side.loss,
        "val_accuracy": side_by_side.accuracy,
        "val_loss_sliding": sliding.loss,
        "val_accuracy_sliding": sliding.accuracy,
        "parameters": sum(p.numel() for p in model.parameters()),
        "characters": characters,
        "seconds": trainer.seconds,
        "characters_per_second": characters / trainer.seconds,
        "curve": trainer.curve,
        "config": dataclasses.asdict(config),
        "manifest": trainer.manifest(),
        **later,
        **({"skipped_steps": trainer.scaler.skipped} if trainer.precision == "fp16" else {}),
    }
