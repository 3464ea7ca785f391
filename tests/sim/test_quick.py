"""Blocks that are computed together give the bits of the golden model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.golden.unit import Store
from moska.golden.unit import attend as golden
from moska.sim.quick import attend


def extreme_store(rng, n_tokens, chunk_tokens, dim):
    """Any integers and any scales, runs of equal ones among them."""
    k, v = (rng.choice([-128, -1, 0, 1, 127], size=(n_tokens, dim)) for _ in range(2))
    random = rng.random(n_tokens) < 0.5
    k[random] = rng.integers(-128, 128, size=(int(random.sum()), dim))
    scales = rng.integers(0, 0x7F80, size=(2, n_tokens))
    if rng.random() < 0.5:
        scales = rng.integers(0x3000, 0x4800, size=(2, n_tokens))
    k, v = k.astype(np.int8), v.astype(np.int8)
    return Store(k, v, *scales.astype(np.uint16), chunk_tokens)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 1 << 32), st.integers(1, 400), st.sampled_from([16, 32, 48, 64, 128]),
    st.sampled_from([1, 2, 5, 40]), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans(),
)  # fmt: skip
def test_bits(seed, n_tokens, chunk_tokens, n_rows, share, extreme):
    rng = np.random.default_rng(seed)
    if extreme:
        store = extreme_store(rng, n_tokens, chunk_tokens, 16)
    else:
        k, v = rng.normal(size=(2, n_tokens, 16))
        store = Store.from_float(k, v, chunk_tokens=chunk_tokens)
    q = rng.integers(-(1 << 15), 1 << 15, size=(n_rows, 16)).astype(np.int16)
    q_scale = rng.integers(0x3000, 0x3C00, size=n_rows).astype(np.uint16)
    selected = rng.random((n_rows, store.n_chunks)) < share
    actual, expected = attend(store, q, q_scale, selected), golden(store, q, q_scale, selected)
    np.testing.assert_array_equal(actual.o, expected.o)
    np.testing.assert_array_equal(actual.lse, expected.lse)
    np.testing.assert_array_equal(actual.selected, selected)


@pytest.mark.parametrize("n_rows", [1, 512])
def test_long_store(n_rows):
    """More blocks than are computed at once."""
    rng = np.random.default_rng(3)
    store = Store.from_float(*rng.normal(size=(2, 5000, 32)), chunk_tokens=64)
    q = rng.integers(-3000, 3000, size=(n_rows, 32)).astype(np.int16)
    q_scale = np.full(n_rows, 0x3A80, dtype=np.uint16)
    selected = rng.random((n_rows, store.n_chunks)) < 0.2
    actual, expected = attend(store, q, q_scale, selected), golden(store, q, q_scale, selected)
    np.testing.assert_array_equal(actual.o, expected.o)
    np.testing.assert_array_equal(actual.lse, expected.lse)
