"""Representatives, keys, exact selection and inversion."""

import numpy as np
import pytest

from moska.golden import oracle
from moska.golden.formats import scale_value
from moska.golden.router import (
    Router,
    chunk_keys,
    forced_chunks,
    invert,
    representatives,
    router_kind,
    select,
)
from moska.golden.unit import Store, route

ONE = 0x3F80  # scale pattern of 1.0


def test_router_names():
    assert router_kind("mean") == (Router.ROWS, 0)
    assert router_kind("minmax") == (Router.MINMAX, 0)
    assert router_kind("submean:4") == (Router.ROWS, 4)
    for name in ("", "submean", "submean:", "submean:0", "submean:-1", "median"):
        with pytest.raises(ValueError, match="router must be"):
            router_kind(name)


def test_representatives_by_hand():
    k = np.arange(20, dtype=np.float64)[:, None] * np.array([1.0, -2.0])
    for name, expected in (
        ("mean", [[[7.5, -15]], [[17.5, -35]]]),
        ("minmax", [[[15, 0], [0, -30]], [[19, -32], [16, -38]]]),
        ("submean:8", [[[3.5, -7], [11.5, -23]], [[17.5, -35], [17.5, -35]]]),
    ):
        rep, scale = representatives(k, 16, name)
        value = rep * scale_value(scale)[..., None]
        assert value.shape == np.array(expected).shape
        error = np.abs(value - expected)
        assert np.all(error <= 0.5 * scale_value(scale)[..., None]), name
    with pytest.raises(ValueError, match="multiple of submean's 5"):
        representatives(k, 16, "submean:5")


def test_minmax_bounds_every_score_of_the_chunk():
    rng = np.random.default_rng(9)
    k = rng.standard_normal((64, 8))
    rep, scale = representatives(k, 16, "minmax")
    q = rng.integers(-32768, 32767, (30, 8)).astype(np.int16)
    q_scale = np.full(30, 0x3A00, dtype=np.uint16)
    keys = chunk_keys(q, q_scale, rep, scale, Router.MINMAX) / 32
    s = (q * scale_value(q_scale)[:, None]) @ k.T
    best = s.reshape(30, 4, 16).max(axis=2)
    # half a step of the representatives a product, one step of the key
    size = np.abs(q * scale_value(q_scale)[:, None]).sum(axis=1, keepdims=True)
    slack = 0.5 * scale_value(scale).max() * size + 1 / 32
    assert np.all(keys >= best - slack), "seed 9"


def keys_of(dots, scale=ONE):
    """Return keys of chunks with one representative each, whose dot products are ``dots``."""
    rep = np.array(dots, dtype=np.int8)[:, None, None]
    rep_scale = np.full((len(dots), 1), scale, dtype=np.uint16)
    return chunk_keys(
        np.ones((1, 1), np.int16), np.array([ONE], np.uint16), rep, rep_scale, Router.ROWS
    )[0].tolist()


def test_keys_truncate_towards_minus_infinity():
    assert keys_of([3, -3, 0]) == [96, -96, 0]
    tiny = (127 - 12) << 7  # 2**-12: one unit of a score, 1/128 of a key
    assert keys_of([1, 127, -1, -128 + 1], tiny) == [0, 0, -1, -1]


def test_keys_saturate():
    assert keys_of([127, -128], (127 + 10) << 7) == [32767, -32768]


def test_chunk_score_is_the_maximum_of_its_groups():
    rep = np.array([[[1], [5]], [[4], [4]], [[-3], [-7]]], dtype=np.int8)
    scale = np.full((3, 2), ONE, dtype=np.uint16)
    q, q_scale = np.array([[1]], np.int16), np.array([ONE], np.uint16)
    assert chunk_keys(q, q_scale, rep, scale, Router.ROWS).tolist() == [[160, 128, -96]]
    # pairs: the first row meets max(q, 0), the second min(q, 0)
    assert chunk_keys(q, q_scale, rep, scale, Router.MINMAX).tolist() == [[32, 128, -96]]
    assert chunk_keys(-q, q_scale, rep, scale, Router.MINMAX).tolist() == [[-160, -128, 224]]


def slow_select(keys, k, keep_first, keep_last, group):
    """Exact top-k by sorting tuples."""
    n_rows, n_chunks = keys.shape
    out = np.zeros(keys.shape, dtype=bool)
    for start in range(0, n_rows, group):
        best = [max(keys[start : start + group, c].tolist()) for c in range(n_chunks)]
        forced = [c < keep_first or c >= n_chunks - keep_last for c in range(n_chunks)]
        order = sorted(range(n_chunks), key=lambda c: (not forced[c], -best[c], c))
        out[start : start + group, order[:k]] = True
    return out


def test_select_against_sorting():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = int(rng.integers(1, 4))
        n_chunks = int(rng.integers(1, 100))
        spread = int(rng.choice([1, 3, 32768]))
        keys = rng.integers(-spread, spread, (2 * group, n_chunks))
        if rng.random() < 0.2:
            keys = rng.choice([-32768, 32767], keys.shape)
        k = int(rng.integers(0, n_chunks + 3))
        first, last = rng.integers(0, 4, 2).tolist()
        got = select(keys, k, keep_first=first, keep_last=last, group=group)
        expected = slow_select(keys, k, first, last, group)
        np.testing.assert_array_equal(got, expected, err_msg=f"seed {seed}")
        assert np.all(got.sum(axis=1) == min(k, n_chunks)), f"seed {seed}"


def test_ties_and_forced_chunks():
    keys = np.array([[5, 5, 5, 5]])
    assert select(keys, 2).tolist() == [[True, True, False, False]]
    low = np.array([[32767, -32768, 32767, -32768]])
    assert select(low, 1, keep_last=1).tolist() == [[False, False, False, True]]
    # more forced chunks than k: the larger key, then the lower id
    assert select(low, 1, keep_first=2, keep_last=2).tolist() == [[True, False, False, False]]
    assert forced_chunks(2, 5, 5).tolist() == [True, True]
    assert not select(low, 0, keep_first=1).any()


def test_select_refuses():
    keys = np.zeros((3, 2), dtype=np.int64)
    with pytest.raises(ValueError, match="k must not be negative"):
        select(keys, -1)
    with pytest.raises(ValueError, match="multiple of group"):
        select(keys, 1, group=2)
    plain = Store(
        np.zeros((1, 1), np.int8),
        np.zeros((1, 1), np.int8),
        np.full(1, ONE, np.uint16),
        np.full(1, ONE, np.uint16),
        16,
    )
    with pytest.raises(ValueError, match="must have representatives"):
        route(plain, np.zeros((1, 1), np.int16), np.full(1, ONE, np.uint16), 1)


def test_invert():
    selected = np.array([[1, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)
    assert [(chunk, rows.tolist()) for chunk, rows in invert(selected)] == [
        (0, [0, 2]),
        (3, [0, 1]),
    ]


@pytest.mark.parametrize("n_rep", [2, 4, 8])
def test_several_pairs_of_a_chunk(n_rep):
    """The key of a chunk with several pairs of largest and smallest keys is that of the best."""
    rng = np.random.default_rng(11)
    q = rng.integers(-32768, 32768, (3, 16)).astype(np.int16)
    q_scale = rng.integers(0x3000, 0x4000, 3).astype(np.uint16)
    rep = rng.integers(-128, 128, (5, n_rep, 16)).astype(np.int8)
    rep_scale = rng.integers(0x3000, 0x3F80, (5, n_rep)).astype(np.uint16)
    keys = chunk_keys(q, q_scale, rep, rep_scale, Router.MINMAX)
    for row in range(3):
        for chunk in range(5):
            expected = oracle.chunk_key(
                q[row].tolist(), int(q_scale[row]), rep[chunk].tolist(),
                rep_scale[chunk].tolist(), pairs=True,
            )
            assert keys[row, chunk] == expected
    # The maximum over the pairs, one at a time.
    single = [
        chunk_keys(q, q_scale, rep[:, i : i + 2], rep_scale[:, i : i + 2], Router.MINMAX)
        for i in range(0, n_rep, 2)
    ]
    assert (keys == np.max(single, axis=0)).all()
    assert len(np.unique(keys)) > 1
