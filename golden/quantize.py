"""Floating point to the stored formats: int8 keys and values, 16-bit queries, bfloat16 scales."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import KV_BITS, Q_BITS, scale_value

Float = NDArray[np.floating]

SCALE_MAX = 255 * 2.0**120  # the largest finite bfloat16 number


def scale_up(x: Float) -> NDArray[np.uint16]:
    """Bits of the smallest positive normal bfloat16 number that is at least ``x``.

    Raises
    ------
    ValueError
        when an element is negative, not finite, or above the largest bfloat16 number.
    """
    x = np.asarray(x, dtype=np.float64)
    if not np.all(np.isfinite(x)) or np.any(x < 0):
        raise ValueError("scale must be finite and not negative")
    if np.any(x > SCALE_MAX):
        raise ValueError(f"scale must be at most {SCALE_MAX}, not {float(np.max(x))}")
    single = np.maximum(x, 2.0**-126).astype(np.float32)
    single = np.where(single < x, np.nextafter(single, np.float32(np.inf)), single)
    bits = (single.view(np.uint32).astype(np.int64) + 0xFFFF) >> 16
    return bits.astype(np.uint16)


def quantize_rows(x: Float, bits: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Quantise each row to signed ``bits``-bit integers with a bfloat16 scale of its own.

    x: (..., D). Returns integers (..., D) in +-(2**(bits-1) - 1) and scales (...). The integers are
    relative to the rounded scale, so ``integer * scale`` carries no error of the scale.
    """
    x = np.asarray(x, dtype=np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("values to quantise must be finite")
    limit = (1 << (bits - 1)) - 1
    scale = scale_up(np.max(np.abs(x), axis=-1) / limit)
    integers = np.rint(x / scale_value(scale)[..., None]).astype(np.int64)
    return np.clip(integers, -limit, limit), scale


def quantize_kv(x: Float) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Keys or values (S, D) to int8 with one scale per token (S,)."""
    integers, scale = quantize_rows(x, KV_BITS)
    return integers.astype(np.int8), scale


def quantize_q(
    q: Float, softmax_scale: float | None = None
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Quantise queries (M, D) to int16 with one scale per row (M,).

    The scale includes ``softmax_scale`` (default 1/sqrt(D)) and log2(e): dot products with keys
    come out in the log2 domain.
    """
    q = np.asarray(q, dtype=np.float64)
    factor = (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale) * np.log2(np.e)
    integers, scale = quantize_rows(q * factor, Q_BITS)
    return integers.astype(np.int16), scale
