"""The reader's answers are judged under ``python -O`` too, which leaves out every ``assert``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = {
    "check_bigram": "lambda text: {}",
    "check_accuracy": "lambda logits, targets: 1.0",
    "check_weights": "lambda q, k: torch.ones(len(q), len(q), dtype=torch.float64)",
    "check_causal": "lambda x: x.flip(1)",
    "check_convolution": "lambda x, taps: x",
    "check_shift": "lambda s: s",
    "check_factors": "lambda a, i: a",
    "check_flops": "lambda config, time: 1",
    "check_squared_relu": "lambda x: x",
    "check_temperature": "lambda logits, temperature: logits",
    "check_reset": "lambda counter: counter",
    "check_interval": "lambda differences, t: (0.0, 1.0)",
    "check_noise": "lambda table: 7.0",
}


@pytest.mark.parametrize("flag", [[], ["-O"]])
def test_wrong_answers_are_refused(flag):
    lines = ["import torch", "from rcmha_lite import exercises", "passed = []"]
    for name, answer in WRONG.items():
        lines += [
            "try:",
            f"    exercises.{name}({answer})",
            f"    passed.append({name!r})",
            "except AssertionError: pass",
        ]
    code = "\n".join([*lines, "print(passed, 'judged')"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *flag, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[] judged\n", done.stdout + done.stderr
