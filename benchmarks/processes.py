"""Is a machine of two cores better used by one run of two threads or by two runs of one?"""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.times import spread, training_step
from experiments import registry


def steps_per_second(threads: int, start: float, seconds: float) -> float:
    """Training steps of the ablation's RCMHA that this process makes, from ``start`` (a Unix time) for ``seconds``."""
    torch.set_num_threads(threads)
    step = training_step(registry.BASE)
    wait = start - time.time()
    if wait < 0:
        raise RuntimeError(f"A process was ready {-wait:.0f} s too late to start with the others: free the machine.")
    time.sleep(wait)
    steps, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        step()
        steps += 1
    return steps / taken


def side_by_side(rounds: int = 5, seconds: float = 15) -> dict[str, Any]:
    """Training steps a second of the ablation's RCMHA: two processes of one thread together / one of two threads."""
    found: list[tuple[float, ...]] = []
    for _ in range(rounds):
        rates = []
        for processes, threads in ((1, 2), (2, 1)):
            with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
                start = time.time() + 25
                runs = [pool.submit(steps_per_second, threads, start, seconds) for _ in range(processes)]
                rates.append(sum(run.result() for run in runs))
        found.append(tuple(rates))
    ratios = [together / alone for alone, together in found]
    return {
        "two runs of one thread / one of two": {
            "steps_per_second": [statistics.median(column) for column in zip(*found, strict=True)],
            "ratio": spread(ratios),
            "rounds": rounds,
        }
    }
