"""Checks for the reader's own code: each raises AssertionError, saying what differs, or returns a line of praise.

A check hands out copies, so an answer may change what it is given; it shows what was found beside what was expected,
and says so where it knows the slip. One file a theme; ``rcmha_in_one_file`` is the solution of the largest exercise.
"""

from rcmha_lite.exercises._telling import answered, assert_same, assert_shape, random
from rcmha_lite.exercises.activation import check_squared_relu
from rcmha_lite.exercises.attention import Attend, check_causal, check_weights
from rcmha_lite.exercises.convolution import check_convolution
from rcmha_lite.exercises.data import check_accuracy, check_bigram, check_temperature
from rcmha_lite.exercises.faults import broken, check_alarm, check_fault, check_faults, planted
from rcmha_lite.exercises.language_model import check_language_model
from rcmha_lite.exercises.positions import check_factors, check_shift
from rcmha_lite.exercises.rcmha import check_rcmha
from rcmha_lite.exercises.statistics import check_flops, check_interval, check_noise, check_reset

__all__ = [
    "Attend",
    "answered",
    "assert_same",
    "assert_shape",
    "broken",
    "check_accuracy",
    "check_alarm",
    "check_bigram",
    "check_causal",
    "check_convolution",
    "check_factors",
    "check_fault",
    "check_faults",
    "check_flops",
    "check_interval",
    "check_language_model",
    "check_noise",
    "check_rcmha",
    "check_reset",
    "check_shift",
    "check_squared_relu",
    "check_temperature",
    "check_weights",
    "planted",
    "random",
]
