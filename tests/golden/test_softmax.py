"""Block-local softmax: the 2**x table, both references, both roundings."""

import numpy as np
import pytest

from moska.golden.formats import PV_WIDTH, SCORE_FRAC, scale_value
from moska.golden.softmax import (
    EXP2_BASE,
    EXP2_SLOPE,
    exp2_mantissa,
    probabilities,
    pv_reference,
    reference,
    scaled_probabilities,
)
from moska.golden.tables import EXP2_BASE_WIDTH, EXP2_SLOPE_WIDTH

FRACTIONS = np.arange(1 << SCORE_FRAC, dtype=np.int64)
S_MIN, S_MAX = -(1 << 23), (1 << 23) - 1


def test_segments_before_rounding():
    x = FRACTIONS / 4096
    line = (EXP2_BASE[FRACTIONS >> 6] + EXP2_SLOPE[FRACTIONS >> 6] * (FRACTIONS & 63)) / 2**23
    # 7.4e-6 is the error of an exact line; the roundings of base and slope add to it
    assert np.abs(line / np.exp2(x) - 1).max() <= 9.8e-6


def test_exp2_exhaustive():
    """Error against float64 at most 2.3e-5 of the result, over all 4,096 fractions."""
    mantissa = exp2_mantissa(FRACTIONS)
    exact = np.exp2(FRACTIONS / 4096) * 2**15
    assert np.abs(mantissa / exact - 1).max() <= 2.3e-5
    assert np.abs(mantissa - exact).max() <= 1.0  # units of the last bit; rounding alone is 0.5
    assert mantissa.min() == mantissa[0] == 1 << 15
    assert mantissa.max() < 1 << 16
    assert np.all(np.diff(mantissa) >= 0)


def test_table_widths():
    assert EXP2_BASE.min() >= 0
    assert EXP2_BASE.max() < 1 << EXP2_BASE_WIDTH
    assert EXP2_SLOPE.min() >= 0
    assert EXP2_SLOPE.max() < 1 << EXP2_SLOPE_WIDTH


def test_reference_lies_above_every_score():
    s = np.array([[0], [4095], [4096], [-1], [-4096], [-4097], [S_MIN], [S_MAX]])
    assert reference(s).tolist() == [1, 1, 2, 0, 0, -1, -2047, 2048]


@pytest.mark.parametrize("top", [S_MIN, -4097, -4096, -1, 0, 1, 4095, 4096, 123456, S_MAX])
def test_largest_probability_lies_in_the_upper_half(top):
    s = np.maximum(top - np.arange(32)[None, :] * 1000, S_MIN)
    p = probabilities(s, reference(s))
    assert 1 << 15 <= p[0, 0] < 1 << 16


def test_probability_is_within_the_rounding_of_the_exact_one():
    below = np.arange(0, 20 << SCORE_FRAC, 7)
    s = (5 << SCORE_FRAC) - below[None, :]
    p = probabilities(s, reference(s))
    exact = np.exp2(s / 4096 - reference(s)[:, None]) * 2**16
    # the error of 2**x, at most one bit, and P's rounding, half a bit when that one is halved
    assert np.abs(p - exact).max() <= 1.0


def test_small_probabilities_round_to_one_then_to_zero():
    s = np.array([[0, -(16 << 12), -(16 << 12) - 1, -(17 << 12), S_MIN]])
    assert probabilities(s, reference(s)).tolist() == [[1 << 15, 1, 0, 0, 0]]


def test_pv_reference_ignores_a_large_score_with_a_small_value():
    s = np.array([[20 << 12, 5 << 12]])
    v_scale = np.array([100 << 7, 120 << 7], dtype=np.uint16)
    assert reference(s).tolist() == [21]
    assert pv_reference(s, v_scale).tolist() == [126]  # 5 + 1 + 120, not 20 + 1 + 100


def test_scaled_probability_against_float64():
    rng = np.random.default_rng(3)
    s = rng.integers(-(20 << 12), 20 << 12, (50, 32))
    v_scale = rng.integers(100 << 7, 140 << 7, 32).astype(np.uint16)
    ref = pv_reference(s, v_scale)
    pv = scaled_probabilities(s, v_scale, ref)
    exact = np.exp2(s / 4096) * scale_value(v_scale) * np.exp2(143.0 - ref)[:, None]
    # half a bit for the rounding, one bit of 2**x times a mantissa below 2
    assert np.abs(pv - exact).max() <= 2.5, "seed 3"
    largest = pv.max(axis=1)
    assert largest.min() >= 1 << (PV_WIDTH - 2)
    assert largest.max() < 1 << PV_WIDTH


def test_scaled_probability_far_below_rounds_to_zero():
    s = np.array([[S_MAX, S_MIN, S_MIN]])
    v_scale = np.array([0x7FFF, 0x0000, 0x7FFF], dtype=np.uint16)
    ref = pv_reference(s, v_scale)
    assert ref.tolist() == [2048 + 255]
    assert scaled_probabilities(s, v_scale, ref)[0, 1:].tolist() == [0, 0]
