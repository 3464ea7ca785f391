"""Floating point to the stored formats."""

import numpy as np
import pytest

from moska.golden.formats import scale_value
from moska.golden.quantize import quantize_kv, quantize_q, scale_up


def test_scale_up_is_the_smallest_pattern_at_least_x():
    pattern = np.arange(0x0080, 0x7F80, dtype=np.uint16)
    value = scale_value(pattern)
    np.testing.assert_array_equal(scale_up(value), pattern)
    np.testing.assert_array_equal(scale_up(np.nextafter(value[:-1], np.inf)), pattern[1:])
    np.testing.assert_array_equal(scale_up(np.nextafter(value[1:], 0.0)), pattern[1:])


def test_scale_up_has_no_zero_and_no_subnormals():
    assert scale_up(np.array([0.0, 5e-324, 1e-40, 2.0**-126])).tolist() == [0x0080] * 4


@pytest.mark.parametrize("x", [-1.0, np.inf, np.nan, 3.4e38, 1e39, 1e300])
def test_scale_up_refuses(x):
    with pytest.raises(ValueError, match="scale must be"):
        scale_up(np.array([1.0, x]))


def test_rows_are_within_half_a_step():
    rng = np.random.default_rng(8)
    x = rng.standard_normal((200, 16)) * 2.0 ** rng.integers(-60, 60, (200, 1))
    for quantize, limit, unit in (
        (quantize_kv, 127, 1.0),
        (quantize_q, 32767, 0.25 * np.log2(np.e)),
    ):
        integers, scale = quantize(x)
        step = scale_value(scale)[:, None]
        wanted = x * unit
        assert np.abs(integers).max() <= limit
        assert np.all(np.abs(integers * step - wanted) <= step * (0.5 + 1e-9)), "seed 8"
        # the scale exceeds the exact one by at most one step of bfloat16
        exact = np.abs(wanted).max(axis=1) / limit
        assert np.all(scale_value(scale) >= exact * (1 - 1e-15))
        assert np.all(scale_value(scale) <= exact * (1 + 2.0**-7))


def test_formats_and_zero_rows():
    integers, scale = quantize_kv(np.zeros((2, 4)))
    assert integers.dtype == np.int8
    assert scale.dtype == np.uint16
    assert not integers.any()
    assert scale.tolist() == [0x0080, 0x0080]
    integers, scale = quantize_q(np.ones((1, 4)))
    assert integers.dtype == np.int16
    assert scale.dtype == np.uint16


def test_ties_round_to_even():
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    integers, scale = quantize_kv(x)
    assert scale.tolist() == [0x3F80]
    assert integers.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_softmax_scale_replaces_the_default():
    q = np.array([[1.0, -3.0, 2.0, 0.5]])
    default, scale = quantize_q(q)
    same, same_scale = quantize_q(q, softmax_scale=0.5)
    np.testing.assert_array_equal(default, same)
    np.testing.assert_array_equal(scale, same_scale)
    _, double = quantize_q(q, softmax_scale=1.0)
    assert double[0] == scale[0] + 0x80


def test_not_finite_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        quantize_kv(np.array([[1.0, np.nan]]))
