"""Error of the arithmetic against float64 attention, on the shipped keys, values and queries."""

import functools

import numpy as np
import pytest

from moska.golden import reference
from moska.golden.data import NAMES, load
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, attend, route

ERROR_BOUND = 1e-4  # relative, Frobenius, against the same stored keys and values
LSE_BOUND = 6e-4  # absolute, base 2


@functools.cache
def job(name, chunk_tokens=32, router="minmax"):
    """Return (store, float queries, integer queries, scales) of the shipped pair ``name``."""
    k, v, q = load(name)
    rows = q.astype(np.float64).reshape(-1, q.shape[-1])
    store = Store.from_float(k, v, chunk_tokens=chunk_tokens, router=router)
    return store, rows, *quantize_q(rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_tokens", [32, 48])
@pytest.mark.parametrize("quarter", [False, True], ids=["dense", "routed"])
def test_error_bound(name, chunk_tokens, quarter):
    store, q, q_int, q_scale = job(name, chunk_tokens)
    selected = None
    if quarter:
        selected = route(store, q_int, q_scale, store.n_chunks // 4, group=3)
    result = attend(store, q_int, q_scale, selected)
    o, lse = reference.attention(store, q, selected)
    error = reference.relative_error(result.o.view(np.float32), o)
    lse_error = np.abs(result.lse.view(np.float32) - lse).max()
    print(f"{name}, chunks of {chunk_tokens}: O {error:.2e}, LSE {lse_error:.2e}")
    assert error <= ERROR_BOUND
    assert lse_error <= LSE_BOUND


@pytest.mark.parametrize("name", NAMES)
def test_router_keeps_attention_mass(name):
    """A quarter of the chunks of 32 tokens holds 0.85 of the mass; random ones hold less."""
    store, q, q_int, q_scale = job(name)
    count = store.n_chunks // 4
    full = reference.attention(store, q)[1]

    def kept(selected):
        return np.exp2(reference.attention(store, q, selected)[1] - full).mean()

    routed = kept(route(store, q_int, q_scale, count))
    rng = np.random.default_rng(10)
    random = np.argsort(rng.random((len(q), store.n_chunks)), axis=1) < count
    print(f"{name}: routed {routed:.3f}, random {kept(random):.3f} (seed 10)")
    assert routed >= 0.85
    assert routed > kept(random) + 0.1


def test_reference_against_plain_softmax():
    rng = np.random.default_rng(12)
    k, v, q = (rng.standard_normal(shape) for shape in ((40, 8), (40, 8), (3, 8)))
    store = Store.from_float(k, v, chunk_tokens=16)
    o, lse = reference.attention(store, q, softmax_scale=0.7)
    stored_k = store.k * reference.scale_value(store.k_scale)[:, None]
    stored_v = store.v * reference.scale_value(store.v_scale)[:, None]
    weights = np.exp(0.7 * q @ stored_k.T)
    np.testing.assert_allclose(o, weights @ stored_v / weights.sum(axis=1)[:, None], rtol=1e-12)
    np.testing.assert_allclose(lse, np.log2(weights.sum(axis=1)), rtol=1e-12)


def test_reference_of_an_empty_selection():
    store, q, q_int, q_scale = job(NAMES[0])
    selected = np.zeros((len(q), store.n_chunks), dtype=bool)
    o, lse = reference.attention(store, q, selected)
    assert not o.any()
    assert np.all(np.isneginf(lse))
    result = attend(store, q_int, q_scale, selected)
    assert not result.o.any()
    assert np.all(np.isneginf(result.lse.view(np.float32)))


def test_load_refuses_unknown_names():
    with pytest.raises(ValueError, match="name must be one of"):
        load("layer3_kvhead0")
