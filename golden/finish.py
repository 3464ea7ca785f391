"""Row state to results: O = o / l and LSE = m + log2(l), in float32 bits."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import (
    FP32_NEG_INF,
    L_STATE_WIDTH,
    LOG2_FRAC,
    O_STATE_WIDTH,
    P_WIDTH,
    RECIPROCAL_BITS,
    STATE_GUARD,
    Int,
    leading_one,
    round_shift,
    to_fp32,
)
from moska.golden.state import RowState
from moska.golden.tables import LOG2_STEPS, LOG2_TERM_FRAC, log2_terms

LOG2_TERMS = log2_terms()


def normalise_l(l: Int) -> tuple[Int, Int]:
    """(index of the leading one, l shifted left until bit 38 is set). l: positive."""
    top = leading_one(l)
    return top, l << (L_STATE_WIDTH - 1 - top)


def reciprocal(l_norm: Int) -> Int:
    """``floor((2**65 - 1) / l_norm)``, RECIPROCAL_BITS bits with the highest set."""
    numerator = (1 << (L_STATE_WIDTH - 1 + RECIPROCAL_BITS)) - 1
    quotients = [numerator // int(x) for x in l_norm.ravel()]
    return np.array(quotients, dtype=np.int64).reshape(l_norm.shape)


def log2_fraction(l_norm: Int) -> Int:
    """``log2(l_norm / 2**38)`` in 0..2**24, by multiplicative normalisation.

    z starts as the top 28 bits of l_norm, in [1, 2). Step i multiplies z by ``1 + 2**-i`` when the
    product stays below 2; the logarithm of what was multiplied in is 1 minus the result. Shifts
    truncate.
    """
    z = l_norm >> (L_STATE_WIDTH - 1 - LOG2_TERM_FRAC)
    y = np.zeros_like(z)
    for step in range(1, LOG2_STEPS + 1):
        product = z + (z >> step)
        take = product < (2 << LOG2_TERM_FRAC)
        z = np.where(take, product, z)
        y = np.where(take, y + LOG2_TERMS[step - 1], y)
    # y may pass 1 by the rounding of the terms.
    rest = np.maximum((1 << LOG2_TERM_FRAC) - y, 0)
    return round_shift(rest, np.int64(LOG2_TERM_FRAC - LOG2_FRAC))


def finish(state: RowState) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """O (M, D) and base-2 LSE (M,) as float32 bits. A row with l = 0 gives O = 0, LSE = -inf."""
    empty = state.l == 0
    top, l_norm = normalise_l(np.where(empty, 1, state.l))

    magnitude = np.abs(state.o)  # (M, D), below 2**47
    o_top = leading_one(np.maximum(magnitude, 1))
    # Normalised to O_STATE_WIDTH bits, then truncated to RECIPROCAL_BITS.
    x = (magnitude << (O_STATE_WIDTH - 1 - o_top)) >> (O_STATE_WIDTH - RECIPROCAL_BITS)
    product = x * reciprocal(l_norm)[:, None]  # below 2**54
    # product / 2**53 is the quotient of the two normalised numbers.
    exponent = o_top - top[:, None] + (state.e - state.m)[:, None] - 127 - 53
    o = to_fp32(state.o < 0, product, exponent)

    whole = state.m - P_WIDTH - STATE_GUARD + top
    lse_fixed = (whole << LOG2_FRAC) + log2_fraction(l_norm)
    lse = to_fp32(lse_fixed < 0, np.abs(lse_fixed), np.full_like(lse_fixed, -LOG2_FRAC))
    return np.where(empty[:, None], 0, o).astype(np.uint32), np.where(
        empty, FP32_NEG_INF, lse
    ).astype(np.uint32)
