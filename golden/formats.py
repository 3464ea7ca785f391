"""Widths, roundings and bit formats that the whole project shares.

Every width in hardware comes from here. All arithmetic is on int64 arrays; :func:`fit` states and
checks the range of each intermediate that exists as a register.
"""

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

BLOCK_TOKENS = 32  # T: tokens that share one softmax reference
Q_BITS = 16
KV_BITS = 8
SCALE_BITS = 16  # bfloat16 bits, sign ignored, no subnormals
SCALE_MANTISSA_BITS = 8  # with the hidden one
SCALE_BIAS = 127

SCORE_FRAC = 12
SCORE_WIDTH = 24
SCORE_SHIFT_MAX = 63
SCORE_PRESHIFT = 9  # left shift that makes every larger score saturate

P_WIDTH = 16  # probability, unsigned, 2**16 stands for one
PV_WIDTH = 17  # probability times V scale, unsigned
PV_SHIFT_MAX = 31

STATE_GUARD = 3  # fraction bits of the row state below a block's last bit
O_STATE_WIDTH = 48
L_STATE_WIDTH = 39
M_WIDTH = 13  # softmax reference, signed
V_EXP_WIDTH = 8
O_EXP_WIDTH = 14  # reference plus V exponent, signed
ALIGN_SHIFT_MAX = 63

KEY_FRAC = 5
KEY_WIDTH = 16

RECIPROCAL_BITS = 27
LOG2_FRAC = 24
FP32_NEG_INF = 0xFF800000
FP32_POS_INF = 0x7F800000

MAX_TOKENS = 1 << 20  # tokens of one job; the row state cannot overflow below this
MAX_ROWS = 512
CHUNK_MULTIPLE = 16  # tokens; keeps every chunk's scales aligned to ALIGN
ALIGN = 64  # bytes; every array in memory starts at a multiple of this


def dot_width(head_dim: int) -> int:
    """Bits of a signed dot product of ``head_dim`` Q_BITS and KV_BITS integers."""
    return Q_BITS + KV_BITS + (head_dim - 1).bit_length()


def block_o_width() -> int:
    """Bits of a signed sum of BLOCK_TOKENS products of PV_WIDTH and KV_BITS integers."""
    return PV_WIDTH + KV_BITS + (BLOCK_TOKENS - 1).bit_length()


def block_l_width() -> int:
    """Bits of the unsigned sum of BLOCK_TOKENS probabilities."""
    return P_WIDTH + (BLOCK_TOKENS - 1).bit_length()


def fit(x: Int, width: int, *, signed: bool = True, name: str = "value") -> Int:
    """Return ``x`` unchanged after checking that it fits ``width`` bits.

    Raises
    ------
    OverflowError
        when an element lies outside, naming the intermediate.
    """
    if x.dtype != np.int64:
        raise TypeError(f"{name} must be int64, not {x.dtype}")
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    if x.size and (x.min() < low or x.max() > high):
        kind = "signed" if signed else "unsigned"
        raise OverflowError(f"{name} must fit {kind} {width} bits, not [{x.min()}, {x.max()}]")
    return x


def round_shift(x: Int, shift: Int | np.int64) -> Int:
    """``floor(x / 2**shift + 1/2)``: right shift, round half up. ``shift`` is 0..63."""
    # (x >> (shift - 1)) is the result with one more bit; its last bit is the rounding bit.
    once = np.where(shift == 0, x, x >> np.maximum(shift - 1, 0))
    return np.where(shift == 0, x, (once >> 1) + (once & 1))


def saturate(x: Int, width: int) -> Int:
    """Clip to signed ``width`` bits."""
    return np.clip(x, -(1 << (width - 1)), (1 << (width - 1)) - 1)


def scale_mantissa(scale: NDArray[np.uint16]) -> Int:
    """Mantissa 128..255 of a bfloat16 scale: value = mantissa * 2**(exponent - 134)."""
    return (np.asarray(scale, dtype=np.int64) & 0x7F) | 0x80


def scale_exponent(scale: NDArray[np.uint16]) -> Int:
    """Biased exponent 0..255 of a bfloat16 scale."""
    return (np.asarray(scale, dtype=np.int64) >> 7) & 0xFF


def scale_value(scale: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return what a scale stands for. Zero and subnormal patterns keep the hidden one."""
    return np.ldexp(
        scale_mantissa(scale).astype(np.float64), (scale_exponent(scale) - 134).astype(np.int64)
    )


def leading_one(x: Int) -> Int:
    """Index of the highest set bit of positive integers below 2**62."""
    _, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    index = exponent.astype(np.int64) - 1
    # The conversion to float64 may round up to the next power of two.
    return np.where((np.int64(1) << np.maximum(index, 0)) > x, index - 1, index)


def to_fp32(negative: NDArray[np.bool_], magnitude: Int, exponent: Int) -> NDArray[np.uint32]:
    """float32 bits of ``(-1)**negative * magnitude * 2**exponent``.

    magnitude: 0..2**54. Rounds half away from zero; overflows to infinity; results below the
    smallest normal number become +0.
    """
    top = leading_one(np.maximum(magnitude, 1))
    mantissa = np.where(
        top >= 23,
        round_shift(magnitude, np.maximum(top - 23, 0)),
        magnitude << np.maximum(23 - top, 0),
    )
    carried = mantissa >> 24
    field = exponent + top + carried + 127
    bits = (field << 23) | (np.where(carried == 1, 0, mantissa) & 0x7FFFFF)
    bits = np.where(field >= 255, FP32_POS_INF, bits)
    bits = bits | (negative.astype(np.int64) << 31)
    return np.where((field <= 0) | (magnitude == 0), 0, bits).astype(np.uint32)
