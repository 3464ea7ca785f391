"""Block-local base-2 softmax: scores of one block of tokens to integer probabilities."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import (
    M_WIDTH,
    O_EXP_WIDTH,
    P_WIDTH,
    PV_SHIFT_MAX,
    PV_WIDTH,
    SCALE_MANTISSA_BITS,
    SCORE_FRAC,
    Int,
    fit,
    round_shift,
    scale_exponent,
    scale_mantissa,
)
from moska.golden.tables import EXP2_FRAC, EXP2_LOW_BITS, exp2_table

EXP2_BASE, EXP2_SLOPE = exp2_table()
P_SHIFT_MAX = P_WIDTH + 1  # from here on a probability rounds to zero


def reference(s: Int) -> Int:
    """Integer reference of each row, (M,): one above the floor of the block's maximum.

    It lies above every score, so a probability is below one and fits P_WIDTH bits; the largest one
    lies in [1/2, 1).
    """
    return fit((s.max(axis=-1) >> SCORE_FRAC) + 1, M_WIDTH, name="reference")


def exp2_mantissa(fraction: Int) -> Int:
    """``2**(fraction / 2**12) * 2**15``, 32768..65535, by 64 straight segments."""
    segment = fraction >> EXP2_LOW_BITS
    low = fraction & ((1 << EXP2_LOW_BITS) - 1)
    line = EXP2_BASE[segment] + EXP2_SLOPE[segment] * low
    return fit(
        round_shift(line, np.int64(EXP2_FRAC - P_WIDTH + 1)), P_WIDTH, signed=False, name="2**x"
    )


def probabilities(s: Int, ref: Int) -> Int:
    """P = 2**(s - ref) * 2**16, (M, T), rounded half up to P_WIDTH bits. s: (M, T), ref: (M,)."""
    below = s - (ref[:, None] << SCORE_FRAC)  # negative
    mantissa = exp2_mantissa(below & ((1 << SCORE_FRAC) - 1))
    shift = np.minimum(-(below >> SCORE_FRAC) - 1, P_SHIFT_MAX)
    return fit(round_shift(mantissa, shift), P_WIDTH, signed=False, name="probability")


def token_exponents(s: Int, v_scale: NDArray[np.uint16]) -> Int:
    """Exponents of ``2**s`` times the V scale, (M, T): floor(s) + 1 + biased scale exponent."""
    return (s >> SCORE_FRAC) + 1 + scale_exponent(v_scale)


def pv_reference(s: Int, v_scale: NDArray[np.uint16]) -> Int:
    """Return the reference of the scaled probabilities of each row, (M,).

    It is their largest exponent in the block, not the reference of the probabilities: attention
    sinks have large scores and small values, and would cost the tokens that matter their
    precision.
    """
    return fit(token_exponents(s, v_scale).max(axis=-1), O_EXP_WIDTH, name="pv reference")


def scaled_probabilities(s: Int, v_scale: NDArray[np.uint16], ref: Int) -> Int:
    """2**s times the V scale, relative to ``ref``, (M, T), rounded half up to PV_WIDTH bits.

    ``2**x * v_mantissa * 2**(exponent - ref - 7)`` with the 16-bit ``2**x`` of
    :func:`exp2_mantissa`: P is not rounded on the way.
    """
    product = exp2_mantissa(s & ((1 << SCORE_FRAC) - 1)) * scale_mantissa(v_scale)
    shift = ref[:, None] - token_exponents(s, v_scale) + SCALE_MANTISSA_BITS - 1
    scaled = round_shift(product, np.minimum(shift, PV_SHIFT_MAX))
    return fit(scaled, PV_WIDTH, signed=False, name="scaled probability")
