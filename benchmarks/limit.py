"""Memory that runs out: a pass over texts in a child process with a limit, and the ways that stay below it.

As a program, it is that child, and prints what it found: python -m benchmarks.limit
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcmha_lite import attention
from rcmha_lite.accounting import saved_bytes
from rcmha_lite.exercises import rcmha_in_one_file

BATCH, TIME, WIDTH, HEADS, PIECE = 4, 1024, 64, 4, 128
ROOM = 256 * 2**20  # bytes that the child may take beyond what it has at the start


def limit() -> dict[str, Any]:
    """Forward and backward of RCMHA that stores its scores, at a limit of memory, and three ways that stay below it."""
    command = [sys.executable, "-m", "benchmarks.limit"]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the child process ended with {run.returncode}: {run.stderr.strip()}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def ways() -> dict[str, Callable[[], Tensor]]:
    """Each way from the same texts and weights to the gradient of the queries' weights."""
    torch.manual_seed(0)
    stored, fused = rcmha_in_one_file.RCMHA(WIDTH, HEADS), attention.rcmha(WIDTH, HEADS)
    fused.load_state_dict(stored.state_dict())
    x = torch.randn(BATCH, TIME, WIDTH)

    def gradient(module: nn.Module, backward: Callable[[], None]) -> Tensor:
        module.zero_grad()
        backward()
        found = module.get_parameter("query.weight").grad
        assert found is not None
        return found.clone()

    def whole(module: nn.Module, texts: Tensor) -> None:
        module(texts).square().sum().backward()

    def one_by_one() -> None:
        for text in x.split(1):
            whole(stored, text)  # the gradients add up

    def in_pieces() -> None:
        memory: Tensor | None = None
        for piece in x.split(PIECE, dim=1):
            stored(piece, memory).square().sum().backward()
            memory = piece

    return {
        "all at once": lambda: gradient(stored, lambda: whole(stored, x)),
        "shorter pieces": lambda: gradient(stored, in_pieces),
        "accumulation": lambda: gradient(stored, one_by_one),
        "factorised, fused": lambda: gradient(fused, lambda: whole(fused, x)),
    }


def kept(batch: int, time: int) -> int:
    """Bytes that RCMHA with stored scores keeps for backward, over so many texts of this length."""
    module, x = rcmha_in_one_file.RCMHA(WIDTH, HEADS), torch.randn(batch, time, WIDTH)
    return saved_bytes(lambda: module(x), but_not=[x, *module.parameters()])


def limited() -> dict[str, Any]:
    """In this process: the gradient without a limit, then each way under one. For Linux, where a limit is kept."""
    import resource

    torch.set_num_threads(1)
    by_way = ways()
    right = by_way["all at once"]()
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    taken = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    found: dict[str, Any] = {"room": ROOM, "ways": {}}
    for name, way in by_way.items():
        try:
            gradient = way()
        except (RuntimeError, MemoryError) as error:
            found["ways"][name] = {"fits": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        else:
            apart = (gradient - right).norm() / right.norm()
            found["ways"][name] = {"fits": True, "apart": apart.item()}
    return found


if __name__ == "__main__":
    print(json.dumps(limited()))
