"""Checks for the reader's own code: each raises AssertionError, saying what differs, or returns a line of praise.

A check hands out copies, so an answer may change what it is given; it shows what was found beside what was expected,
and says so where it knows the slip. One file a theme; ``rcmha_in_one_file`` is the solution of the largest exercise.
"""

from rcmha_lite.exercises._progress import progress
from rcmha_lite.exercises._telling import answered, assert_same, assert_shape, random
from rcmha_lite.exercises.activation import check_feed_forward, check_mean_squares, check_squared_relu
from rcmha_lite.exercises.attention import Attend, check_causal, check_heads, check_weights
from rcmha_lite.exercises.baselines import check_constant_guess, check_windows
from rcmha_lite.exercises.convolution import check_convolution, check_parameter_counts, check_reach, check_taps
from rcmha_lite.exercises.costs import check_cache_bytes, check_product_cost, check_roofline
from rcmha_lite.exercises.data import check_accuracy, check_bigram, check_temperature
from rcmha_lite.exercises.faults import broken, check_alarm, check_fault, check_faults, planted
from rcmha_lite.exercises.language_model import check_language_model
from rcmha_lite.exercises.positions import check_factors, check_memory, check_shift, check_terms
from rcmha_lite.exercises.rcmha import check_rcmha
from rcmha_lite.exercises.statistics import check_flops, check_interval, check_noise, check_reset
from rcmha_lite.exercises.streams import check_longest_text, check_pieces
from rcmha_lite.exercises.training import check_schedule, check_training_loop

__all__ = [
    "Attend",
    "answered",
    "assert_same",
    "assert_shape",
    "broken",
    "check_accuracy",
    "check_alarm",
    "check_bigram",
    "check_cache_bytes",
    "check_causal",
    "check_constant_guess",
    "check_convolution",
    "check_factors",
    "check_fault",
    "check_faults",
    "check_feed_forward",
    "check_flops",
    "check_heads",
    "check_interval",
    "check_language_model",
    "check_longest_text",
    "check_mean_squares",
    "check_memory",
    "check_noise",
    "check_parameter_counts",
    "check_pieces",
    "check_product_cost",
    "check_rcmha",
    "check_reach",
    "check_reset",
    "check_roofline",
    "check_schedule",
    "check_shift",
    "check_squared_relu",
    "check_taps",
    "check_temperature",
    "check_terms",
    "check_training_loop",
    "check_weights",
    "check_windows",
    "planted",
    "progress",
    "random",
]
