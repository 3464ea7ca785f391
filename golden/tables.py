"""Contents of the hardware's tables."""

import math

import numpy as np

from moska.golden.formats import LOG2_FRAC, SCORE_FRAC, Int

EXP2_SEGMENT_BITS = 6
EXP2_LOW_BITS = SCORE_FRAC - EXP2_SEGMENT_BITS
EXP2_FRAC = 23  # fraction bits of base and slope
EXP2_BASE_WIDTH = EXP2_FRAC + 1
EXP2_SLOPE_WIDTH = 12

LOG2_STEPS = 24
LOG2_TERM_FRAC = 27


def exp2_table() -> tuple[Int, Int]:
    """Return base and slope of 64 straight segments of ``2**x`` on [0, 1), each (64,) int64.

    ``2**x ~ (base + slope * low) / 2**23`` with ``low`` the last 6 of the 12 fraction bits of x. A
    segment runs through the mean of the chord and the tangent parallel to it, so its largest errors
    above and below are equal (7.4e-6 of the result; 9.8e-6 with base and slope rounded).
    """
    segments = 1 << EXP2_SEGMENT_BITS
    steps = 1 << EXP2_LOW_BITS
    base, slope = [], []
    for index in range(segments):
        x0, x1 = index / segments, (index + 1) / segments
        rise = (2.0**x1 - 2.0**x0) / (x1 - x0)
        touch = math.log2(rise / math.log(2.0))
        gap = (2.0**x0 + rise * (touch - x0)) - 2.0**touch
        base.append(round((2.0**x0 - gap / 2) * (1 << EXP2_FRAC)))
        slope.append(round(rise / segments / steps * (1 << EXP2_FRAC)))
    return np.array(base, dtype=np.int64), np.array(slope, dtype=np.int64)


def log2_terms() -> Int:
    """``log2(1 + 2**-i)`` for i = 1..24 in units of 2**-27, (24,) int64."""
    terms = [
        round(math.log2(1.0 + 2.0**-i) * (1 << LOG2_TERM_FRAC)) for i in range(1, LOG2_STEPS + 1)
    ]
    return np.array(terms, dtype=np.int64)


assert LOG2_TERM_FRAC >= LOG2_FRAC
