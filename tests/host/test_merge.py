import numpy as np
import pytest

from moska.golden import merge as golden
from moska.host.merge import FLASHINFER_EMPTY, from_base2, merge_states, to_base2

LIBRARIES = ["numpy", "torch"]


def to(library, x):
    return x if library == "numpy" else pytest.importorskip("torch").from_numpy(x)


def states(seed, shape=(3, 5, 7), head_dim=16):
    """Two states in float64 and the state of both, and the two in float32; some sets are empty."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 6, (2, *shape, 20))
    values = rng.normal(size=(2, *shape, 20, head_dim))
    scores[0, 0] = scores[1, :, 1] = -np.inf  # first set empty, second set empty, both

    def attend(scores, values):
        with np.errstate(divide="ignore"):
            p = np.exp(scores)
            total = p.sum(-1)
            lse = np.log(total)
        return (p[..., None, :] @ values)[..., 0, :] / np.where(total, total, 1)[..., None], lse

    parts = [attend(scores[i], values[i]) for i in range(2)]
    whole = attend(np.concatenate(list(scores), -1), np.concatenate(list(values), -2))
    single = [x.astype(np.float32) for part in parts for x in part]
    return single, whole


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("base2", [False, True])
def test_merge_equals_attention_over_both_sets(library, base2):
    (o_a, lse_a, o_b, lse_b), (o, lse) = states(seed=1)
    factor = np.float32(np.log2(np.e) if base2 else 1)
    arrays = [to(library, x) for x in (o_a, lse_a * factor, o_b, lse_b * factor)]
    got_o, got_lse = (np.asarray(x) for x in merge_states(*arrays, base2=base2))
    assert got_o.dtype == got_lse.dtype == np.float32
    np.testing.assert_allclose(got_o, o, rtol=0, atol=2e-6)
    np.testing.assert_allclose(got_lse, lse * factor, rtol=1e-6, atol=2e-6)
    assert np.isneginf(got_lse[0, 1]).all()
    assert not got_o[0, 1].any()


def test_base_2_is_bit_for_bit_the_golden_merge():
    (o_a, lse_a, o_b, lse_b), _ = states(seed=2, shape=(40,))
    got = merge_states(o_a, lse_a, o_b, lse_b, base2=True)
    expected = golden.merge_states(o_a, lse_a, o_b, lse_b)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("first", [True, False])
def test_an_empty_state_leaves_the_bits_of_the_other(library, first):
    (o, lse, _, _), _ = states(seed=3)
    empty = (to(library, np.zeros_like(o)), to(library, np.full_like(lse, -np.inf)))
    full = (to(library, o), to(library, lse))
    got = merge_states(*(empty + full if first else full + empty))
    np.testing.assert_array_equal(np.asarray(got[0]), o)
    np.testing.assert_array_equal(np.asarray(got[1]), lse)


@pytest.mark.parametrize("library", LIBRARIES)
def test_bases(library):
    lse = np.array([0.0, 1.0, -87.5, 300.25, -np.inf], dtype=np.float32)
    base2 = to_base2(to(library, lse))
    np.testing.assert_allclose(np.asarray(base2)[:4], lse[:4] / np.log(2), rtol=1e-6)
    assert np.isneginf(np.asarray(base2)[4])
    np.testing.assert_allclose(np.asarray(from_base2(base2)), lse, rtol=1e-6)


def flashinfer_merge_state(v_a, s_a, v_b, s_b):
    """FlashInfer's merge_state kernel, step by step as its source has it: no guard at all."""
    s_max = np.maximum(s_a, s_b)
    w_a, w_b = np.exp2(s_a - s_max), np.exp2(s_b - s_max)
    v = v_a * (w_a / (w_a + w_b))[..., None] + v_b * (w_b / (w_a + w_b))[..., None]
    return v, np.log2(w_a + w_b) + s_max


@pytest.mark.parametrize("library", LIBRARIES)
def test_states_go_through_the_kernel_of_flashinfer_and_back(library):
    (o_a, lse_a, o_b, lse_b), (o, lse) = states(seed=4)
    s_a, s_b = (np.asarray(to_base2(to(library, x), flashinfer=True)) for x in (lse_a, lse_b))
    v, s = flashinfer_merge_state(o_a, s_a, o_b, s_b)
    np.testing.assert_allclose(v, o, rtol=0, atol=2e-6)
    # Two empty sets have twice the weight of one there.
    assert (s[0, 1] == FLASHINFER_EMPTY + 1).all()
    back = np.asarray(from_base2(to(library, s)))
    assert np.isneginf(back[0, 1]).all()
    np.testing.assert_allclose(back, lse, rtol=1e-6, atol=2e-6)
