"""Roundings, widths and conversions that every stage shares."""

from fractions import Fraction

import numpy as np
import pytest

from moska.golden import formats
from moska.golden.formats import (
    fit,
    leading_one,
    round_shift,
    saturate,
    scale_exponent,
    scale_mantissa,
    scale_value,
    to_fp32,
)


def test_fit_checks_both_ends():
    for width, signed, low, high in ((5, True, -16, 15), (5, False, 0, 31)):
        inside = np.array([low, high], dtype=np.int64)
        assert fit(inside, width, signed=signed) is inside
        for outside in (low - 1, high + 1):
            with pytest.raises(OverflowError, match="dot must fit"):
                fit(np.array([0, outside]), width, signed=signed, name="dot")
    assert fit(np.zeros(0, dtype=np.int64), 1).size == 0
    with pytest.raises(TypeError, match="must be int64, not int32"):
        fit(np.zeros(1, dtype=np.int32), 8)


def test_round_shift_is_floor_of_x_plus_half():
    rng = np.random.default_rng(1)
    x = np.concatenate([
        np.arange(-70, 70),
        rng.integers(-(1 << 62), 1 << 62, 200),
        [-(1 << 62), (1 << 62) - 1],
    ])
    for shift in range(64):
        expected = [(2 * value + (1 << shift)) >> (shift + 1) for value in x.tolist()]
        assert round_shift(x, np.int64(shift)).tolist() == expected, f"seed 1, shift {shift}"


def test_saturate():
    x = np.array([-129, -128, 0, 127, 128], dtype=np.int64)
    assert saturate(x, 8).tolist() == [-128, -128, 0, 127, 127]


def test_scale_of_every_normal_pattern_is_its_bfloat16_value():
    pattern = np.arange(0x0080, 0x7F80, dtype=np.uint16)
    single = (pattern.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(scale_value(pattern), single.astype(np.float64))


def test_other_scale_patterns_keep_the_hidden_one():
    pattern = np.array([0x0000, 0x007F, 0x7F80, 0x7FFF, 0x8000], dtype=np.uint16)
    assert scale_mantissa(pattern).tolist() == [128, 255, 128, 255, 128]
    assert scale_exponent(pattern).tolist() == [0, 0, 255, 255, 0]


def test_leading_one_beside_powers_of_two():
    x = [value for n in range(62) for value in ((1 << n) - 1, 1 << n, (1 << n) + 1) if value]
    x = [value for value in x if value < 1 << 62]
    expected = [value.bit_length() - 1 for value in x]
    assert leading_one(np.array(x, dtype=np.int64)).tolist() == expected


def test_widths_hold_the_largest_sums():
    for head_dim in (16, 64, 128):
        assert 2**15 * 2**7 * head_dim < 1 << (formats.dot_width(head_dim) - 1)
    # the 16-bit 2**x by the 8-bit mantissa, seven bits dropped
    pv_max = (65535 * 255 + 64) >> 7
    assert pv_max < 1 << formats.PV_WIDTH
    tokens = formats.BLOCK_TOKENS
    assert pv_max * 128 * tokens < 1 << (formats.block_o_width() - 1)
    assert 65535 * tokens < 1 << formats.block_l_width()
    # every merge adds at most one half by rounding; no block has fewer than 16 tokens but the last
    merges = formats.MAX_TOKENS // formats.CHUNK_MULTIPLE + 1
    guard = 1 << formats.STATE_GUARD
    assert 65535 * formats.MAX_TOKENS * guard + merges < 1 << formats.L_STATE_WIDTH
    largest_o = pv_max * 128 * formats.MAX_TOKENS * guard + merges
    assert largest_o < 1 << (formats.O_STATE_WIDTH - 1)
    lowest, highest = -(1 << 11) + 1, 1 << 11  # floor(score) + 1
    for reference, width in ((0, formats.M_WIDTH), (255, formats.O_EXP_WIDTH)):
        assert -(1 << (width - 1)) <= lowest
        assert highest + reference < 1 << (width - 1)


def nearest_half_away(value):
    """float32 bits of a positive Fraction inside the normal range, ties away from zero."""
    exponent = -126
    while value >= Fraction(2) ** (exponent + 1):
        exponent += 1
    scaled = value / Fraction(2) ** (exponent - 23)
    mantissa = int(scaled + Fraction(1, 2))
    return ((exponent + 127) << 23) + mantissa - (1 << 23)


def test_to_fp32_rounds_half_away_from_zero():
    rng = np.random.default_rng(2)
    magnitude = [1, 2, 3, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, (1 << 25) - 1, (1 << 25) + 2]
    magnitude += [(1 << 54) - 1, 1 << 54, (1 << 53) + (1 << 29), (3 << 29) + (1 << 53)]
    magnitude += [int(rng.integers(1, 1 << int(n))) for n in rng.integers(1, 54, 200)]
    for negative in (False, True):
        for exponent in (-70, -24, 0, 20):
            got = to_fp32(
                np.full(len(magnitude), negative),
                np.array(magnitude, dtype=np.int64),
                np.full(len(magnitude), exponent, dtype=np.int64),
            )
            expected = [
                nearest_half_away(value * Fraction(2) ** exponent) | negative << 31
                for value in magnitude
            ]
            assert got.tolist() == expected, f"seed 2, exponent {exponent}"


def one_fp32(magnitude, exponent, *, negative=False):
    """float32 bits of one number."""
    return int(to_fp32(np.array([negative]), np.array([magnitude]), np.array([exponent]))[0])


def test_to_fp32_at_the_ends_of_the_range():
    assert one_fp32(0, 0, negative=True) == 0
    assert one_fp32(1, -126) == 0x00800000
    assert one_fp32(1, -127) == 0
    assert one_fp32(1, -127, negative=True) == 0  # no minus zero
    assert one_fp32((1 << 24) - 1, -150) == 0  # largest number below the normal ones
    assert one_fp32((1 << 25) - 1, -151) == 0x00800000  # rounds up to the smallest normal one
    assert one_fp32((1 << 24) - 1, 104) == 0x7F7FFFFF
    assert one_fp32((1 << 25) - 1, 103) == 0x7F800000
    assert one_fp32(1, 128, negative=True) == 0xFF800000
