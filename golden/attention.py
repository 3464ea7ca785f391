"""The two matrix products: queries by keys, probabilities by values."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import (
    SCORE_PRESHIFT,
    SCORE_SHIFT_MAX,
    SCORE_WIDTH,
    Int,
    block_o_width,
    dot_width,
    fit,
    round_shift,
    saturate,
    scale_exponent,
    scale_mantissa,
)


def exact_matmul(a: NDArray[np.integer], b: NDArray[np.integer]) -> Int:
    """Integer matrix product. Exact while every sum stays below 2**53, as all of ours do."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def scores(
    q: NDArray[np.integer],
    q_scale: NDArray[np.uint16],
    k: NDArray[np.int8],
    k_scale: NDArray[np.uint16],
) -> Int:
    """Scores in the log2 domain, SCORE_FRAC fraction bits, saturated to SCORE_WIDTH bits.

    q: (M, D) int16, q_scale: (M,), k: (T, D) int8, k_scale: (T,). Returns (M, T).

    ``dot * q_mantissa * k_mantissa * 2**(q_exponent + k_exponent - 256)``, rounded half up once.
    """
    dot = fit(exact_matmul(q, k.T), dot_width(q.shape[-1]), name="dot")  # (M, T)
    return scaled(dot, q_scale[:, None], k_scale[None, :])


def scaled(dot: Int, q_scale: NDArray[np.uint16], k_scale: NDArray[np.uint16]) -> Int:
    """Turn dot products, any shape, into scores; the scales are those of each product."""
    mantissa = scale_mantissa(q_scale) * scale_mantissa(k_scale)
    exponent = scale_exponent(q_scale) + scale_exponent(k_scale)
    product = (dot * mantissa) << SCORE_PRESHIFT
    shift = np.clip(256 + SCORE_PRESHIFT - exponent, 0, SCORE_SHIFT_MAX)
    return saturate(round_shift(product, shift), SCORE_WIDTH)


def values(pv: Int, v: NDArray[np.int8]) -> Int:
    """Block result (M, D): scaled probabilities pv (M, T) by values v (T, D), exact."""
    return fit(exact_matmul(pv, v), block_o_width(), name="block result")
