"""A run's folder: config.json, weights.safetensors, training.safetensors, results.json. Each is written whole."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rcmha_lite.cache import write_whole
from rcmha_lite.config import Config
from rcmha_lite.model import LanguageModel, Memory

CONFIG, WEIGHTS, TRAINING, RESULTS = ("config.json", "weights.safetensors", "training.safetensors", "results.json")

MAY_CHANGE = ("compile", "device", "eval_every", "checkpoint_every")
"""Fields that a resumed run may change, since they change no more than last digits; the record names them."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or of another configuration; the message says which."""


class Progress(NamedTuple):
    """What a run has done: optimiser steps, seconds of training, its learning curve (a dict a validation), and the
    sums of loss, accuracy and steps since the curve's last point. ``origins``: the manifest of each program, machine
    and text that had a part in it, the first one first. ``more``: the steps of each part after the configuration's
    own, and ``earlier`` the results before each. ``scaler``: of the loss in float16."""

    step: int = 0
    seconds: float = 0.0
    curve: tuple[dict[str, float], ...] = ()
    since: tuple[float, ...] = (0.0, 0.0, 0.0)
    origins: tuple[dict[str, Any], ...] = ()
    more: tuple[int, ...] = ()
    earlier: tuple[dict[str, Any], ...] = ()
    scaler: dict[str, float] = {}  # noqa: RUF012


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a run's folder, so that no other run writes there; of several processes the first does.

    CheckpointError, at once, while another run owns it. A run that died owns nothing.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        for _ in range(2):  # the last owner may have removed the file that we opened
            lock.acquire(timeout=0)
            if Path(lock.lock_file).exists():
                break
            lock.release()
    except Timeout as error:
        busy = f"another run is writing into {folder}"
        raise CheckpointError(f"{busy}: wait until it ends, or name another --out folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it at the release
            Path(lock.lock_file).unlink()
        lock.release()
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def save_weights(folder: str | Path, model: LanguageModel) -> None:
    """Configuration and weights: all that evaluation and sampling need."""
    folder = Path(os.path.expanduser(folder))
    write_whole(folder / CONFIG, model.config.to_json().encode())
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> LanguageModel:
    """The model of a run's folder, in evaluation mode. CheckpointError says what is missing or does not fit."""
    folder = Path(os.path.expanduser(folder))
    config = load_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}: name the --out folder of a training run")
    model = LanguageModel(config)
    tensors = _read(folder / WEIGHTS)[0]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        fault = f"{folder / WEIGHTS} does not fit {CONFIG} beside it ({_brief(error)})"
        raise CheckpointError(f"{fault}: put back the two files of one run") from error
    return model.to(device).eval()


def save_training(
    folder: Path,
    model: LanguageModel,
    optimizers: list[torch.optim.Optimizer],
    memory: Memory | None,
    progress: Progress,
) -> None:
    """Everything that a resumed run needs to go on bit for bit, in one file. No pickle."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for n, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    if memory:
        tensors["memory"] = torch.stack(memory.hidden)
    state = progress._asdict() | {"seen": memory.seen if memory else 0, "config": model.config.to_json()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(folder / TRAINING, save(tensors, {"state": json.dumps(state)}))


def step_of(folder: Path) -> int | None:
    """The steps that the checkpoint in a folder has done; None without one that can be read. Its header is read alone."""
    try:
        with safe_open(folder / TRAINING, "pt") as file:
            return int(json.loads((file.metadata() or {})["state"])["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def load_training(
    folder: Path, model: LanguageModel, optimizers: list[torch.optim.Optimizer]
) -> tuple[Memory | None, Progress]:
    """Put a stopped run's state back; a folder without one, or without a step, starts afresh.

    CheckpointError if the folder holds another run, a finished one that cannot go on, or another's configuration.
    """
    if not (folder / TRAINING).is_file():
        if (folder / RESULTS).exists():
            raise CheckpointError(f"{folder} holds a finished run without its {TRAINING}: name another --out folder")
        if (folder / CONFIG).exists():
            try:
                _require_same(_read_config(folder), model.config, folder)
            except ValueError as error:
                raise CheckpointError(f"{error}: name another --out folder") from error
        return None, Progress()
    tensors, metadata = _read(folder / TRAINING)
    try:
        return _restore(folder, tensors, json.loads(metadata["state"]), model, optimizers)
    except (KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        foreign = f"{folder / TRAINING} is not a checkpoint of this program, or damaged"
        raise CheckpointError(f"{foreign} ({_brief(error)}): name another --out folder") from error


def _restore(
    folder: Path,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    model: LanguageModel,
    optimizers: list[torch.optim.Optimizer],
) -> tuple[Memory | None, Progress]:
    if not state["step"]:  # nothing is lost: advice such as --no-compile can be followed in the same folder
        return None, Progress()
    _require_same(Config.from_json(state["config"], folder / TRAINING), model.config, folder)
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for n, optimizer in enumerate(optimizers):
        whole: dict[str, Any] = optimizer.state_dict()
        whole["state"] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{n}."):
                index, key = name.split(".", 3)[2:]
                whole["state"].setdefault(int(index), {})[key] = tensor
        _require_fitting(n, optimizer, whole["state"])
        optimizer.load_state_dict(whole)
    device = next(model.parameters()).device
    memory = Memory(tensors["memory"].to(device).unbind(), state["seen"]) if "memory" in tensors else None
    later = {name: tuple(state.get(name, ())) for name in ("origins", "more", "earlier")}
    curve, since = tuple(state["curve"]), tuple(state["since"])
    return memory, Progress(state["step"], state["seconds"], curve, since, scaler=state.get("scaler", {}), **later)


def _require_fitting(n: int, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """ValueError where an average does not have its parameter's shape: PyTorch would take it, and crash in a step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, averages in state.items():
        if index >= len(parameters):
            raise ValueError(f"optimizer.{n}.{index}: the optimiser has {len(parameters)} parameters")
        for key, tensor in averages.items():
            if tensor.ndim and tensor.shape != parameters[index].shape:
                shapes = f"{list(tensor.shape)}, its parameter {list(parameters[index].shape)}"
                raise ValueError(f"optimizer.{n}.{index}.{key} has shape {shapes}")


def load_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run. CheckpointError if the file is damaged."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except ValueError as error:
        again = "delete it, and the same command makes it again"
        raise CheckpointError(f"{folder / RESULTS} is damaged ({error}): {again}") from error
    return found


def _require_same(theirs: Config, ours: Config, folder: Path) -> None:
    differences = [
        f"{name} {getattr(theirs, name)} there, {getattr(ours, name)} here"
        for name in vars(ours)
        if getattr(theirs, name) != getattr(ours, name)
        and name not in MAY_CHANGE
        and not (name == "precision" and "auto" in (theirs.precision, ours.precision))  # which no machine is bound to
    ]
    if differences:
        other = f"{folder} holds a run of another configuration ({'; '.join(differences)})"
        remedy = "name another --out folder" if theirs.vocabulary == ours.vocabulary else "give the run's own --text"
        raise CheckpointError(f"{other}: {remedy}")


def load_config(folder: str | Path) -> Config:
    """The configuration of a run's folder. CheckpointError if it has none, or a damaged one."""
    folder = Path(os.path.expanduser(folder))
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}: name the --out folder of a training run")
    try:
        return _read_config(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _read_config(folder: Path) -> Config:
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / CONFIG} is not text: {error}") from error
    return Config.from_json(text, folder / CONFIG)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb"):  # safetensors says of a file that may not be read that it is not there
        pass
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        fault = f"{path} cannot be read as safetensors ({error}): it was cut short, or is something else"
        raise CheckpointError(f"{fault}; {_REMEDY[path.name]}") from error


_REMEDY = {
    WEIGHTS: f"where {TRAINING} is beside it, the command that trained the run writes it anew",
    TRAINING: f"put back a copy, or name another --out folder; evaluate and sample need only {WEIGHTS} beside it",
}


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
