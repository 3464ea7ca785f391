"""The NumPy model and the integer oracle agree bit for bit on whole jobs."""

import pathlib
import re

import numpy as np
import pytest

from moska.golden import oracle
from moska.golden.finish import LOG2_TERMS
from moska.golden.quantize import quantize_rows, scale_up
from moska.golden.router import Router, chunk_keys, representatives, router_kind
from moska.golden.softmax import EXP2_BASE, EXP2_SLOPE
from moska.golden.unit import Store, attend, route

SPECIFICATION = pathlib.Path(__file__).parents[2] / "docs" / "number-formats.md"

N_DENSE = 160
N_ROUTED = 160


def random_scales(rng, n, style):
    """Scale patterns (n,) uint16: near the useful range, anywhere, or from the ends."""
    if style == "useful":  # scores of some ten
        return rng.integers(114 << 7, 121 << 7, n).astype(np.uint16)
    if style == "any":
        return rng.integers(0, 0x8000, n).astype(np.uint16)
    return rng.choice(np.array([0x0000, 0x007F, 0x0080, 0x7F7F, 0x7F80, 0x7FFF], np.uint16), n)


def random_integers(rng, shape, bits, style):
    """Integers of the whole range, or only its ends and zero."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if style == "ends":
        values = rng.choice(np.array([low, high, 0]), shape)
    else:
        values = rng.integers(low, high, shape, endpoint=True)
    return values.astype(np.int16 if bits == 16 else np.int8)


def random_job(seed):
    """Return (store without representatives, q, q_scale) of a small job."""
    rng = np.random.default_rng(seed)
    head_dim = int(rng.choice([2, 4, 8]))
    n_rows = int(rng.integers(1, 5))
    n_tokens = int(rng.integers(1, 130))
    chunk_tokens = int(rng.choice([16, 32, 48, 64]))
    style = rng.choice(["full", "full", "ends"])
    scale_style = rng.choice(["useful", "useful", "any", "ends"])
    q = random_integers(rng, (n_rows, head_dim), 16, style)
    k = random_integers(rng, (n_tokens, head_dim), 8, style)
    v = random_integers(rng, (n_tokens, head_dim), 8, style)
    k_scale = random_scales(rng, n_tokens, scale_style)
    v_scale = random_scales(rng, n_tokens, rng.choice(["useful", "any", "ends"]))
    if scale_style == "useful":
        # dot products of some 2**20 and K scales of 2**-10 give scores of some ten
        q_scale = rng.integers(112 << 7, 124 << 7, n_rows).astype(np.uint16)
    else:
        q_scale = random_scales(rng, n_rows, scale_style)
    if rng.random() < 0.3:  # duplicated keys
        source = rng.integers(0, max(1, n_tokens // 4), n_tokens)
        k, k_scale = k[source], k_scale[source]
    return Store(k, v, k_scale, v_scale, chunk_tokens), q, q_scale


def oracle_attend(store, q, q_scale, selected=None):
    """Run the oracle on a job and return its (o, lse) as uint32 arrays."""
    o, lse = oracle.attend(
        q.tolist(),
        q_scale.tolist(),
        store.k.tolist(),
        store.k_scale.tolist(),
        store.v.tolist(),
        store.v_scale.tolist(),
        chunk_tokens=store.chunk_tokens,
        selected=None if selected is None else selected.tolist(),
    )
    return np.array(o, dtype=np.uint32), np.array(lse, dtype=np.uint32)


def check_attend(store, q, q_scale, selected=None, message=""):
    """Compare the golden model with the oracle on one job."""
    result = attend(store, q, q_scale, selected)
    o, lse = oracle_attend(store, q, q_scale, selected)
    np.testing.assert_array_equal(result.o, o, err_msg=f"O {message}")
    np.testing.assert_array_equal(result.lse, lse, err_msg=f"LSE {message}")


@pytest.mark.parametrize("first", range(0, N_DENSE, 40))
def test_dense_jobs(first):
    for seed in range(first, first + 40):
        check_attend(*random_job(seed), message=f"seed {seed}")


@pytest.mark.parametrize("first", range(0, 80, 40))
def test_random_selections(first):
    for seed in range(first, first + 40):
        store, q, q_scale = random_job(1000 + seed)
        rng = np.random.default_rng(seed)
        selected = rng.random((len(q), store.n_chunks)) < rng.choice([0.0, 0.3, 0.8])
        check_attend(store, q, q_scale, selected, message=f"seed {seed}")


@pytest.mark.parametrize("name", ["mean", "minmax", "submean:4", "submean:16"])
def test_routed_jobs(name):
    kind, _ = router_kind(name)
    for seed in range(2000, 2000 + N_ROUTED // 4):
        rng = np.random.default_rng(seed)
        plain, _, _ = random_job(seed)
        # Duplicated rows make ties; few distinct values make more of them.
        stored = plain.k.astype(np.float64) * 2.0**-8
        rep, rep_scale = representatives(stored, plain.chunk_tokens, name)
        extreme = rng.random() < 0.2
        if extreme:
            rep_scale = random_scales(rng, rep_scale.size, "any").reshape(rep_scale.shape)
        store = Store(
            plain.k, plain.v, plain.k_scale, plain.v_scale, plain.chunk_tokens, kind, rep, rep_scale
        )
        group = int(rng.choice([1, 2, 3]))
        q = random_integers(rng, (2 * group, plain.k.shape[1]), 16, "full")
        if rng.random() < 0.3:
            q[:] = 0  # every key ties
        q_scale = random_scales(rng, len(q), "any" if extreme else "useful")
        keys = [
            [
                oracle.chunk_key(
                    q[row].tolist(),
                    int(q_scale[row]),
                    rep[chunk].tolist(),
                    rep_scale[chunk].tolist(),
                    pairs=kind is Router.MINMAX,
                )
                for chunk in range(store.n_chunks)
            ]
            for row in range(len(q))
        ]
        np.testing.assert_array_equal(
            chunk_keys(q, q_scale, rep, rep_scale, kind), keys, err_msg=f"seed {seed}"
        )
        options = {
            "keep_first": int(rng.integers(0, 3)),
            "keep_last": int(rng.integers(0, 3)),
            "group": group,
        }
        for k in (0, 1, int(rng.integers(0, store.n_chunks + 1)), store.n_chunks + 3):
            selected = route(store, q, q_scale, k, **options)
            expected = oracle.route(
                q.tolist(),
                q_scale.tolist(),
                rep.tolist(),
                rep_scale.tolist(),
                pairs=kind is Router.MINMAX,
                k=k,
                **options,
            )
            np.testing.assert_array_equal(selected, expected, err_msg=f"seed {seed}, k {k}")
        check_attend(store, q, q_scale, selected, message=f"seed {seed}")


@pytest.mark.parametrize("scale", [0x0000, 0x007F, 0x0080, 0x3F80, 0x7F7F, 0x7F80, 0x7FFF])
def test_one_scale_everywhere(scale):
    for seed in range(6):
        store, q, q_scale = random_job(3000 + seed)
        store.k_scale[:] = store.v_scale[:] = scale
        check_attend(store, q, q_scale, message=f"seed {seed}")
        q_scale[:] = scale
        check_attend(store, q, q_scale, message=f"seed {seed}, all scales")


def test_scale_sign_is_ignored():
    store, q, q_scale = random_job(7)
    expected = attend(store, q, q_scale)
    negative = Store(
        store.k, store.v, store.k_scale | 0x8000, store.v_scale | 0x8000, store.chunk_tokens
    )
    result = attend(negative, q, q_scale | 0x8000)
    np.testing.assert_array_equal(result.o, expected.o)
    np.testing.assert_array_equal(result.lse, expected.lse)
    check_attend(negative, q, q_scale | 0x8000)


def test_all_score_exponents():
    """Every sum of scale exponents: shifts from none to beyond the clamp, both signs."""
    q = np.array([[-32768, 3], [1, 0], [-1, 0], [32767, -5]], dtype=np.int16)
    k = np.array([[-128, 127], [1, 1], [127, -128]], dtype=np.int8)
    v = np.array([[1, -128], [127, 3], [-1, 1]], dtype=np.int8)
    v_scale = np.array([0x3F80, 0x3F85, 0x3FFF], dtype=np.uint16)
    for total in range(0, 511, 3):
        high = min(total, 255)
        q_scale = np.full(4, high << 7 | 5, dtype=np.uint16)
        k_scale = np.full(3, (total - high) << 7 | 101, dtype=np.uint16)
        check_attend(Store(k, v, k_scale, v_scale, 16), q, q_scale, message=f"exponents {total}")


@pytest.mark.parametrize("name", ["mean", "minmax", "submean:4", "submean:8"])
def test_representatives(name):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n_tokens, chunk_tokens = int(rng.integers(1, 100)), int(rng.choice([16, 32, 48]))
        x = rng.standard_normal((n_tokens, 8)) * 2.0 ** rng.integers(-30, 30, (n_tokens, 1))
        store = Store.from_float(x, x, chunk_tokens=chunk_tokens, router=name)
        rep, rep_scale = oracle.representatives(
            store.k.tolist(), store.k_scale.tolist(), chunk_tokens=chunk_tokens, router=name
        )
        np.testing.assert_array_equal(store.rep, rep, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(store.rep_scale, rep_scale, err_msg=f"seed {seed}")


def test_quantisation():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((300, 6)) * 2.0 ** rng.integers(-140, 120, (300, 1))
    x[:20] = np.rint(x[:20] / np.abs(x[:20]).max() * 8) / 2  # halves: ties of the rounding
    x[20] = 0
    for bits in (8, 16):
        integers, scale = quantize_rows(x, bits)
        for row in range(len(x)):
            expected = oracle.quantize_row(x[row].tolist(), (1 << (bits - 1)) - 1)
            assert (integers[row].tolist(), int(scale[row])) == expected, f"seed 11, row {row}"
    sizes = np.abs(x).max(axis=1)
    assert scale_up(sizes).tolist() == [oracle.scale_up(size) for size in sizes.tolist()]


def test_tables():
    assert list(zip(EXP2_BASE.tolist(), EXP2_SLOPE.tolist(), strict=True)) == oracle.SEGMENTS
    assert LOG2_TERMS.tolist() == oracle.LOG2_TERMS


def test_tables_of_the_specification():
    text = SPECIFICATION.read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    base, slope, terms = [[int(word) for word in block.split()] for block in blocks[-3:]]
    assert base == EXP2_BASE.tolist()
    assert slope == EXP2_SLOPE.tolist()
    assert terms == LOG2_TERMS.tolist()
