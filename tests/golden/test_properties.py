"""What holds for every job: batch invariance, routing limits, sharding, widths."""

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.golden.data import NAMES, load
from moska.golden.formats import CHUNK_MULTIPLE, MAX_TOKENS
from moska.golden.merge import merge_states
from moska.golden.quantize import quantize_q
from moska.golden.reference import relative_error
from moska.golden.state import RowState
from moska.golden.unit import Store, attend, route

SEEDS = st.integers(0, 2**32 - 1)
CHECK = settings(max_examples=40, deadline=None, derandomize=True, database=None)

SHARD_BOUND = 1e-4  # any store: O relative (Frobenius), LSE absolute
REAL_SHARD_BOUND = 1e-5, 5e-5  # shipped data: O, LSE


def float_job(seed, chunk_tokens=16, router="minmax", n_tokens=None):
    """Return (store, q, q_scale) of a random float job whose scores spread over some ten."""
    rng = np.random.default_rng(seed)
    n_tokens = n_tokens or int(rng.integers(1, 150))
    k, v = rng.standard_normal((2, n_tokens, 8))
    q = rng.standard_normal((int(rng.integers(1, 7)), 8)) * 2.0 ** rng.integers(-2, 4)
    store = Store.from_float(k, v, chunk_tokens=chunk_tokens, router=router)
    return store, *quantize_q(q)


def assert_same(result, expected, rows=slice(None)):
    """Compare the bits of two results."""
    np.testing.assert_array_equal(result.o, expected.o[rows])
    np.testing.assert_array_equal(result.lse, expected.lse[rows])


@CHECK
@given(seed=SEEDS, chunk_tokens=st.sampled_from([16, 32, 48]), routed=st.booleans())
def test_batch_invariance(seed, chunk_tokens, routed):
    """Subsets, orders and repetitions of rows leave each row's bits as they are."""
    store, q, q_scale = float_job(seed, chunk_tokens)
    rng = np.random.default_rng(seed + 1)
    k = int(rng.integers(0, store.n_chunks + 1)) if routed else store.n_chunks
    selected = route(store, q, q_scale, k)
    everything = attend(store, q, q_scale, selected)
    for rows in (rng.permutation(len(q)), rng.integers(0, len(q), 9), [len(q) - 1]):
        part = route(store, q[rows], q_scale[rows], k)
        np.testing.assert_array_equal(part, selected[rows])
        assert_same(attend(store, q[rows], q_scale[rows], part), everything, rows)


@CHECK
@given(seed=SEEDS, router=st.sampled_from(["mean", "minmax", "submean:4"]), group=st.booleans())
def test_all_chunks_routed_is_unrouted(seed, router, group):
    store, q, q_scale = float_job(seed, router=router)
    selected = route(store, q, q_scale, store.n_chunks, group=len(q) if group else 1)
    assert selected.all()
    assert_same(attend(store, q, q_scale, selected), attend(store, q, q_scale))


@CHECK
@given(seed=SEEDS)
def test_selection_equals_a_store_of_the_selected_chunks(seed):
    """Chunks that a row did not select do not exist for it."""
    store, q, q_scale = float_job(seed, n_tokens=96)
    rng = np.random.default_rng(seed + 1)
    kept = np.flatnonzero(rng.random(store.n_chunks) < 0.5)
    if not kept.size:
        kept = np.array([0])
    tokens = np.concatenate([np.array(store.chunk(chunk)) for chunk in kept.tolist()])
    selected = np.zeros((len(q), store.n_chunks), dtype=bool)
    selected[:, kept] = True
    small = dataclasses.replace(
        store,
        k=store.k[tokens],
        v=store.v[tokens],
        k_scale=store.k_scale[tokens],
        v_scale=store.v_scale[tokens],
        rep=None,
        rep_scale=None,
    )
    assert_same(attend(store, q, q_scale, selected), attend(small, q, q_scale))


def shards(store, n_parts):
    """Cut a store into ``n_parts`` at chunk boundaries."""
    bounds = np.linspace(0, store.n_chunks, n_parts + 1).astype(int) * store.chunk_tokens
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        yield Store(
            store.k[part],
            store.v[part],
            store.k_scale[part],
            store.v_scale[part],
            store.chunk_tokens,
        )


def merged(store, q, q_scale, n_parts):
    """O and LSE of the shards' results, folded in store order."""
    total = None
    for shard in shards(store, n_parts):
        result = attend(shard, q, q_scale)
        state = result.o.view(np.float32), result.lse.view(np.float32)
        total = state if total is None else merge_states(*total, *state)
    return total


def test_shards():
    """Shards merged by LSE are within REAL_SHARD_BOUND of one store."""
    for name in NAMES:
        k, v, q = load(name)
        store = Store.from_float(k, v, chunk_tokens=32)
        q_int, q_scale = quantize_q(q.reshape(-1, 64))
        whole = attend(store, q_int, q_scale)
        for n_parts in (2, 3, 8):
            o, lse = merged(store, q_int, q_scale, n_parts)
            error = relative_error(o, whole.o.view(np.float32).astype(np.float64))
            lse_error = np.abs(lse - whole.lse.view(np.float32)).max()
            print(f"{name}, {n_parts} shards: O {error:.1e}, LSE {lse_error:.1e}")
            assert error <= REAL_SHARD_BOUND[0]
            assert lse_error <= REAL_SHARD_BOUND[1]


@CHECK
@given(seed=SEEDS, n_parts=st.integers(2, 5))
def test_shards_of_random_stores(seed, n_parts):
    store, q, q_scale = float_job(seed, n_tokens=96)
    whole = attend(store, q, q_scale)
    o, lse = merged(store, q, q_scale, n_parts)
    expected = whole.o.view(np.float32).astype(np.float64)
    assert relative_error(o, expected) <= SHARD_BOUND
    assert np.abs(lse - whole.lse.view(np.float32)).max() <= SHARD_BOUND


@CHECK
@given(seed=SEEDS)
def test_merge_with_empty_states(seed):
    store, q, q_scale = float_job(seed)
    result = attend(store, q, q_scale)
    o, lse = result.o.view(np.float32), result.lse.view(np.float32)
    nothing = np.zeros_like(o), np.full_like(lse, -np.inf)
    for merged_o, merged_lse in (
        merge_states(o, lse, *nothing),
        merge_states(*nothing, o, lse),
    ):
        np.testing.assert_array_equal(merged_o, o)
        np.testing.assert_array_equal(merged_lse, lse)
    empty_o, empty_lse = merge_states(*nothing, *nothing)
    assert not empty_o.any()
    assert np.all(np.isneginf(empty_lse))


def test_merge_mixes_empty_and_full_rows():
    o = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    lse = np.array([0.0, 1.0, -np.inf], dtype=np.float32)
    other = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 6.0]], dtype=np.float32)
    other_lse = np.array([-np.inf, 1.0, 7.0], dtype=np.float32)
    merged_o, merged_lse = merge_states(o, lse, other, other_lse)
    assert merged_o.tolist() == [[1, 2], [2, 2], [5, 6]]
    assert merged_lse.tolist() == [0, 2, 7]


ENDS_16 = st.sampled_from([-32768, -1, 0, 1, 32767])
ENDS_8 = st.sampled_from([-128, -1, 0, 1, 127])
PATTERNS = st.one_of(
    st.sampled_from([0x0000, 0x007F, 0x0080, 0x3F80, 0x7F7F, 0x7FFF]), st.integers(0, 0x7FFF)
)


@CHECK
@given(data=st.data(), n_tokens=st.integers(1, 80), n_rows=st.integers(1, 3))
def test_no_width_overflows(data, n_tokens, n_rows):
    """Extreme integers under extreme scales: `fit` refuses none of the intermediates."""

    def array(element, dtype, *shape):
        count = int(np.prod(shape))
        values = data.draw(st.lists(element, min_size=min(count, 6), max_size=min(count, 6)))
        return np.resize(np.array(values), shape).astype(dtype)

    k, v = (array(ENDS_8, np.int8, n_tokens, 5) for _ in range(2))
    k_scale, v_scale = (array(PATTERNS, np.uint16, n_tokens) for _ in range(2))
    q, q_scale = array(ENDS_16, np.int16, n_rows, 5), array(PATTERNS, np.uint16, n_rows)
    rep, rep_scale = k.repeat(2, axis=0)[None], k_scale.repeat(2)[None]
    n_chunks = -(-n_tokens // 16)
    store = Store(k, v, k_scale, v_scale, 16)
    result = attend(store, q, q_scale)
    assert not np.isnan(result.o.view(np.float32)).any()
    assert np.isfinite(result.lse.view(np.float32)).all()
    rep = np.resize(rep, (n_chunks, 2, 5))
    store = Store(
        k, v, k_scale, v_scale, 16, rep=rep, rep_scale=np.resize(rep_scale, (n_chunks, 2))
    )
    assert route(store, q, q_scale, 1).sum() == n_rows


def test_equal_largest_products():
    """A mean over many blocks of equal weights is exact but for the last rounding."""
    rng = np.random.default_rng(13)
    n_tokens = 1 << 15
    k = np.zeros((n_tokens, 2), dtype=np.int8)
    v = np.full((n_tokens, 2), -128, dtype=np.int8)
    v[:, 1] = rng.integers(-128, 127, n_tokens)
    scale = np.full(n_tokens, 0x3FFF, dtype=np.uint16)
    store = Store(k, v, scale, scale, 16)
    q = np.zeros((1, 2), dtype=np.int16)
    result = attend(store, q, np.full(1, 0x3F80, np.uint16))
    o = result.o.view(np.float32)[0]
    step = 255 / 128
    np.testing.assert_allclose(o, [-128 * step, v[:, 1].mean() * step], rtol=1e-6)
    assert result.lse[0] == np.float32(15).view(np.uint32)


def test_state_holds_the_largest_job():
    """The last block of MAX_TOKENS tokens with the largest P and scaled P fits the row state."""
    pv, block = (65535 * 255 + 64) >> 7, CHUNK_MULTIPLE
    before = MAX_TOKENS - block
    rounding = MAX_TOKENS // block  # a merge adds at most one half
    for element in (-128, 127):
        state = RowState(
            m=np.array([2048]),
            l=np.array([before * 65535 * 8 + rounding]),
            e=np.array([2303]),
            o=np.array([[before * pv * element * 8 - rounding]]),
        )
        state.merge(
            np.array([0]),
            np.array([2048]),
            np.array([block * 65535]),
            np.array([2303]),
            np.array([[block * pv * element]]),
        )
        assert state.l[0] == MAX_TOKENS * 65535 * 8 + rounding
