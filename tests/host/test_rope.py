"""Rotary embedding, and what it costs to move a stored document."""

import importlib.util
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.golden.data import NAMES, load
from moska.golden.formats import scale_value
from moska.golden.quantize import quantize_kv
from moska.golden.reference import relative_error
from moska.host.rope import Llama3Scaling, Rope

ROOT = pathlib.Path(__file__).resolve().parents[2]
LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 8192)
ROPES = [Rope(10_000, 16), Rope(100_000, 64), Rope(500_000, 64, LLAMA3)]
CHECK = settings(deadline=None, derandomize=True, database=None)
POSITIONS = st.integers(-1_000_000, 1_000_000)
ropes = st.sampled_from(ROPES)


def script():
    spec = importlib.util.spec_from_file_location("relocation", ROOT / "scripts" / "relocation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vectors(rope, seed, *shape):
    return np.random.default_rng(seed).normal(size=(*shape, rope.head_dim))


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_rotates_each_pair_by_position_times_frequency(rope):
    x, half = vectors(rope, 1, 5), rope.head_dim // 2
    positions = [0, 1, 7, 100, 30_000]
    turned = rope.rotate(x, positions)
    for row, position in enumerate(positions):
        for i in range(half):
            turn = np.exp(1j * position * rope.frequencies[i])
            pair = complex(x[row, i], x[row, half + i]) * turn
            assert abs(complex(turned[row, i], turned[row, half + i]) - pair) < 1e-9
    if rope.scaling is None:
        expected = [rope.theta ** (-2 * i / rope.head_dim) for i in range(half)]
        np.testing.assert_allclose(rope.frequencies, expected, rtol=1e-14)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    plain, scaled = Rope(500_000, 64).frequencies, Rope(500_000, 64, LLAMA3).frequencies
    for a, b in zip(plain, scaled, strict=True):
        wave = 2 * math.pi / a
        if wave < 8192 / 4:
            assert b == a
        elif wave > 8192 / 1:
            assert b == a / 8
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            assert b == pytest.approx((1 - smooth) * a / 8 + smooth * a, rel=1e-14)
    assert 0 < np.sum((scaled < plain) & (scaled > plain / 8)) < 16


@pytest.mark.slow  # the import alone takes ten seconds
@pytest.mark.parametrize("theta", [1e4, 1e5])
@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_equals_transformers(theta, scaling):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=131_072,
        rope_parameters={"rope_theta": theta, "rope_type": "default"} if scaling is None else {
            "rope_theta": theta, "rope_type": "llama3", **vars(scaling)
        },
    )  # fmt: skip
    rope = Rope(theta, 64, scaling)
    x = vectors(rope, 2, 1, 3, 200).astype(np.float32)
    embedding = llama.LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.from_numpy(x), torch.arange(200)[None])
    theirs, _ = llama.apply_rotary_pos_emb(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    np.testing.assert_allclose(rope.rotate(x, np.arange(200)), theirs.numpy(), atol=1e-4)


@CHECK
@given(ropes, POSITIONS, POSITIONS, st.integers(0, 99))
def test_shifts_compose(rope, a, b, seed):
    x = vectors(rope, seed, 4)
    np.testing.assert_allclose(
        rope.shift(rope.rotate(x, a), b), rope.rotate(x, a + b), atol=1e-8, rtol=0
    )
    np.testing.assert_allclose(rope.shift(rope.shift(x, a), -a), x, atol=1e-12, rtol=0)


@CHECK
@given(ropes, POSITIONS, POSITIONS, POSITIONS, st.integers(0, 99))
def test_query_rotated_back_scores_like_key_moved(rope, query, key, shift, seed):
    q, k = vectors(rope, seed, 2)
    moved = rope.rotate(q, query) @ rope.rotate(k, key + shift)
    back = rope.shift(rope.rotate(q, query), -shift) @ rope.rotate(k, key)
    assert abs(moved - back) < 1e-7


def test_positions_may_be_one_or_broadcast():
    rope = ROPES[0]
    x = vectors(rope, 3, 2, 5)
    row = rope.rotate(x, np.arange(5))
    for i in range(5):
        np.testing.assert_array_equal(row[:, i], rope.rotate(x[:, i], i))
    each = rope.rotate(x, np.arange(10).reshape(2, 5))
    np.testing.assert_array_equal(each[0], row[0])
    assert (each[1] != row[1]).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_keeps_the_type_and_rounds_once(dtype):
    rope = ROPES[1]
    x = vectors(rope, 4, 100).astype(dtype)
    turned = rope.rotate(x, np.arange(100) * 1000)
    assert turned.dtype == dtype
    exact = rope.rotate(x.astype(np.float64), np.arange(100) * 1000)
    np.testing.assert_array_equal(turned, exact.astype(dtype))


def test_refuses():
    rope = ROPES[0]
    x = np.zeros((3, 16))
    with pytest.raises(ValueError, match=r"x must end with head_dim \(16\), not shape \(3, 8\)"):
        rope.rotate(np.zeros((3, 8)), 1)
    with pytest.raises(TypeError, match="positions must be integers, not float64"):
        rope.rotate(x, 1.5)
    with pytest.raises(ValueError, match=r"positions must broadcast to \(3,\), not \(2, 1\)"):
        rope.rotate(x, [[1], [2]])
    with pytest.raises(ValueError, match="head_dim must be positive and even, not 15"):
        Rope(10_000, 15)
    with pytest.raises(ValueError, match=r"theta must be above 1, not 1\.0"):
        Rope(1, 16)
    with pytest.raises(ValueError, match="low_freq_factor must be positive and below"):
        Llama3Scaling(8.0, 4.0, 4.0, 8192)
    with pytest.raises(ValueError, match=r"factor must be at least 1, not 0\.5"):
        Llama3Scaling(0.5, 1.0, 4.0, 8192)


def test_theta_of_either_type_is_one_model():
    assert repr(Rope(10_000, 16)) == repr(Rope(10_000.0, 16))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_data_has_this_embedding(name):
    # Keys have a large part that does not depend on the token: rotated back to position 0, it adds
    # up, but only with the embedding that made them.
    k = load(name)[0].astype(np.float64)

    def common(theta, x=k):
        back = Rope(theta, 64).rotate(x, -np.arange(len(x)))
        return np.linalg.norm(back.mean(axis=0)) / np.linalg.norm(k, axis=1).mean()

    pairs_of_neighbours = k[:, np.arange(64).reshape(32, 2).T.ravel()]
    assert common(1e5) > 0.8
    for other in (1e4, 9e4, 1.1e5, 5e5):
        assert common(other) < common(1e5) - 0.02
    assert common(1e5, pairs_of_neighbours) < common(1e5) - 0.1


@pytest.mark.parametrize("name", NAMES)
def test_cost_of_relocation(name):
    measure = script().measure
    home = measure(name, 0)
    assert home.scores_moved == home.scores_shifted
    for offset in (1000, 65_536):
        errors = measure(name, offset)
        assert errors.scores_shifted < 6e-3
        assert errors.outputs_shifted < 1.6e-2
        # Wherever the document stands, the error is the one at home.
        assert errors.scores_shifted == pytest.approx(home.scores_shifted, rel=1e-3)
        assert errors.outputs_shifted == pytest.approx(home.outputs_shifted, rel=1e-2)
        # Moving the keys is no better.
        assert errors.scores_moved > 0.7 * errors.scores_shifted


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_of_relocation_agree(name):
    rope, offset = Rope(100_000, 64), 8192
    k, _, q = (x.astype(np.float64) for x in load(name))
    rows = rope.shift(q.reshape(-1, 64), offset)

    def stored(keys):
        integers, scale = quantize_kv(keys)
        return integers * scale_value(scale)[:, None]

    moved = rows @ stored(rope.shift(k, offset)).T
    back = rope.shift(rows, -offset) @ stored(k).T
    assert 1e-3 < relative_error(back, moved) < 1e-2  # two independent roundings to 8 bits
