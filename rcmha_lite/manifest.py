"""Where a result comes from: commit, versions, hardware."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

VARIABLES = ("ACCELERATE_", "ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "GOMP_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_",
             "OPENBLAS_", "PYTORCH_", "TORCH", "FSDP_", "XLA_")  # fmt: skip
"""Beginnings of the names of environment variables that the libraries of a run read."""

PLACES = ("_DIR", "_FILE", "_HOME", "_PATH")
"""Endings of those that only say where something lies."""

CODE = [f":/{folder}" for folder in ("rcmha_lite", "experiments/*.py", "benchmarks/*.py")]
"""What results follow from."""


def manifest() -> dict[str, Any]:
    """The commit, versions and hardware of this process; ``+changes`` where code of the repository differs from it."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # one name may stand for several generations
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and not name.endswith(PLACES)
        },
    }


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bfloat16: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def float16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices faster in float16 than in float32: CUDA from Volta on, and Apple's GPUs."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return device.type == "mps"


def compiler_is_there(device: torch.device) -> bool:
    """Whether ``torch.compile`` is made for the device: CPUs, and CUDA from Volta on, as Triton is; not Apple's GPUs."""
    return float16_is_fast(device) if device.type == "cuda" else device.type == "cpu"


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails where we are installed in another's checkout
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class ProcessCost(NamedTuple):
    """What this process has used so far: wall seconds since it started, and its largest resident memory in bytes."""

    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        where = f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        return f"{self.seconds:.0f} s and {self.peak_bytes / 1e6:.0f} MB at most, on {where}"


def process_cost() -> ProcessCost:
    """The cost of this process, a notebook's kernel for instance, up to now."""
    process = psutil.Process()
    memory = process.memory_info()
    return ProcessCost(time.time() - process.create_time(), max(_peak_bytes(memory), memory.rss))


def _peak_bytes(memory: Any) -> int:
    try:  # Linux; getrusage would count the parent's memory at the time of the fork
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
