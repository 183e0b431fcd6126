"""What a run uses on this machine: its device, precision and attention kernels."""

import os

import torch
from accelerate import PartialState

from rcmha_lite.config import Config
from rcmha_lite.manifest import compiler_is_there
from rcmha_lite.precision import NAMES, precision_for


def on_cpu(config: Config) -> bool:
    """Whether a configuration must train on CPUs here."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # Accelerate shares out CPUs only when told to
    return config.device == "cpu" or (several and not torch.cuda.is_available())


def device_of(config: Config) -> torch.device:
    """Where a configuration trains here: the GPU, if it may and there is one."""
    device: torch.device = PartialState(cpu=on_cpu(config)).device
    return device


def kernels(config: Config, device: torch.device) -> str:
    """How ``attention.fused_attention`` computes a training step: in words, for a reader."""
    if config.context <= 4:
        return "attention by its formula (4 queries or fewer)"
    if device.type == "cpu" and config.position == "relative-learned":
        return "attention not fused (a learned table wants its gradient)"
    plain = config.position not in ("relative-learned", "alibi")
    if (
        device.type == "cpu"
        and plain
        and precision_for(config.precision, device) == "bf16"
        and config.context + config.memory <= 512
    ):
        return "attention as one matrix product (bfloat16, 512 keys or fewer)"
    return "fused attention"


def describe(config: Config) -> str:
    """Device, precision, kernels and compiler of a run of ``config`` here."""
    device = device_of(config)
    found = precision_for(config.precision, device)
    precision = next(name for name, theirs in NAMES.items() if theirs == found)
    compiled = "compiled" if config.compile and compiler_is_there(device) else "not compiled"
    return f"{device}, {precision}, {kernels(config, device)}, {compiled}"
