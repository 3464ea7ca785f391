"""Row state to float32 results, against exact integers and float64."""

import numpy as np
import pytest

from moska.golden.finish import finish, log2_fraction, normalise_l, reciprocal
from moska.golden.formats import FP32_NEG_INF
from moska.golden.state import RowState, merge_aligned


def state_of(m, l, e, o):
    """State of one row."""
    one = (np.array([x], dtype=np.int64) for x in (m, l, e))
    return RowState(*one, np.array([o], dtype=np.int64))


def finish_one(m, l, e, o):
    """Return (o, lse) of one row as float64."""
    o, lse = finish(state_of(m, l, e, o))
    return o.view(np.float32)[0].astype(np.float64), float(lse.view(np.float32)[0])


def test_empty_row():
    o, lse = finish(RowState.empty(3, 4))
    assert not o.any()
    assert lse.tolist() == [FP32_NEG_INF] * 3


def test_normalise_l():
    l = np.array([1, 2, 3, 1 << 38, (1 << 39) - 1, (1 << 24) - 1])
    top, normal = normalise_l(l)
    assert top.tolist() == [0, 1, 1, 38, 38, 23]
    assert np.all(normal >> 38 == 1)
    assert (normal >> (38 - top)).tolist() == l.tolist()


def test_reciprocal_fits_and_bounds():
    rng = np.random.default_rng(4)
    l_norm = np.concatenate([
        [1 << 38, (1 << 38) + 1, (1 << 39) - 1],
        rng.integers(2**38, 2**39, 500),
    ])
    r = reciprocal(l_norm)
    assert r.min() >= 1 << 26
    assert r.max() < 1 << 27
    for value, quotient in zip(l_norm.tolist(), r.tolist(), strict=True):
        assert quotient * value <= 2**65 - 1 < (quotient + 1) * value, "seed 4"


def test_log2_error():
    """At most 1.5e-7, over the ends and seeded random numbers."""
    rng = np.random.default_rng(5)
    l_norm = np.concatenate([
        [1 << 38, (1 << 38) + 1, (3 << 37) - 1, 3 << 37, (1 << 39) - 1],
        rng.integers(1 << 38, 1 << 39, 20000),
    ])
    fraction = log2_fraction(l_norm)
    assert fraction.min() >= 0
    assert fraction.max() <= 1 << 24
    assert np.abs(fraction / 2**24 - np.log2(l_norm / 2.0**38)).max() <= 1.5e-7, "seed 5"


def test_quotient_error():
    """At most 2**-23 of the result: truncated operands, truncated reciprocal, float32."""
    rng = np.random.default_rng(6)
    n = 4000
    l = np.array([int(rng.integers(1, 1 << int(b))) for b in rng.integers(1, 40, n)])
    o = np.array([int(rng.integers(-(1 << int(b)), 1 << int(b))) for b in rng.integers(1, 47, n)])
    m = rng.integers(-2047, 2049, n)
    e = m + 127 + rng.integers(-60, 60, n)
    result, lse = finish(RowState(m, l, e, o[:, None]))
    exact = o.astype(np.float64) / l * np.exp2((e - m - 127).astype(np.float64))
    value = result.view(np.float32)[:, 0].astype(np.float64)
    assert np.abs(value - exact).max(initial=0, where=o == 0) == 0
    inside = o != 0
    assert np.abs(value[inside] / exact[inside] - 1).max() <= 2.0**-23, "seed 6"
    exact_lse = m - 19 + np.log2(l.astype(np.float64))
    error = np.abs(lse.view(np.float32) - exact_lse)
    # float32 near 2,000 has steps of 2**-13
    assert np.all(error <= 1.5e-7 + np.abs(exact_lse) * 2.0**-24), "seed 6"


@pytest.mark.parametrize("o", [-(1 << 47), (1 << 47) - 1])
@pytest.mark.parametrize("l", [1, 1 << 38, (1 << 39) - 1])
def test_extreme_states(o, l):
    values, _ = finish_one(0, l, 127, [o, -o if o > 0 else o, 0, 1])
    np.testing.assert_allclose(values[0], o / l, rtol=2**-23)
    assert values[2] == 0
    np.testing.assert_allclose(values[3], 1 / l, rtol=2**-23)


def test_out_of_range_results():
    values, _ = finish_one(-2047, 1 << 18, 2303, [1 << 40, -(1 << 40), 0])
    assert values.tolist() == [np.inf, -np.inf, 0]
    o, _ = finish(state_of(2048, 1 << 18, -2047, [1 << 40, -(1 << 40)]))
    assert o.tolist() == [[0, 0]]


def test_merge_aligned():
    def merge(fresh, state_ref, state, block_ref, block):
        arrays = (np.array([x], dtype=np.int64) for x in (state_ref, state, block_ref, block))
        reference, total = merge_aligned(np.array([fresh]), *arrays)
        return int(reference[0]), int(total[0])

    assert merge(True, 9, 0, -5, 77) == (-5, 77)
    assert merge(False, 3, 100, 3, 11) == (3, 111)
    assert merge(False, 4, 100, 2, 10) == (4, 103)  # 2.5 rounds up
    assert merge(False, 4, 100, 2, -10) == (4, 98)  # -2.5 rounds up
    assert merge(False, 2, 10, 4, 100) == (4, 103)
    assert merge(False, 2047, 100, -2047, -(1 << 32)) == (2047, 100)  # beyond the clamp
    assert merge(False, -2047, -(1 << 46), 2303, 5) == (2303, 5)


def test_state_refuses_what_its_registers_cannot_hold():
    rows = np.array([0])
    block = np.array([1 << 20])
    zero = np.array([0])
    full = state_of(0, (1 << 39) - 1, 0, [0])
    with pytest.raises(OverflowError, match="l must fit unsigned 39 bits"):
        full.merge(rows, zero, block, zero, np.array([[0]]))
    full = state_of(0, 1 << 20, 0, [(1 << 47) - 1])
    with pytest.raises(OverflowError, match="o must fit signed 48 bits"):
        full.merge(rows, zero, block, zero, np.array([[1]]))
