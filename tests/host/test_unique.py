"""Paths of the unique part against float64; the ones of a GPU through recorded calls."""

import importlib.machinery
import subprocess
import sys
import types

import numpy as np
import pytest

from moska.host import unique
from moska.host.unique import flash_attn, torch_cpu, torch_cuda

CPU_PATHS = ["numpy", "torch-cpu", "torch-flex"]
# B, H, G, T, S, D: decode and prefill, with and without groups, one token, no token.
SHAPES = [
    (3, 6, 2, 1, 37, 64),
    (2, 9, 3, 5, 40, 64),
    (1, 4, 4, 7, 7, 32),
    (2, 2, 1, 3, 1, 16),
    (2, 6, 2, 3, 0, 16),
]


def path_of(name):
    if name != "numpy":
        pytest.importorskip("torch")
    return unique.get(name)


def case(shape, seed, dtype=np.float32):
    b, h, g, t, s, d = shape
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=x) for x in ((b, h, t, d), (b, g, s, d), (b, g, s, d)))
    return tuple(x.astype(dtype) for x in (2 * q, k, v))


def causal_mask(shape, padding):
    """Causal, the last query sees all; request i has padding[i] tokens of padding in front."""
    t, s = shape[3:5]
    token = np.arange(s)
    mask = token[None] <= np.arange(t)[:, None] + s - t
    return (mask[None] & (token >= np.array(padding)[:, None, None]))[:, None]


def reference(q, k, v, mask, scale=None):
    """Float64; rows without a token are o = 0, lse = -inf."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat(repeats, axis=1) for x in (k, v))
    s = q @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if mask is not None:
        s = np.where(mask, s, -np.inf)
    with np.errstate(divide="ignore"):
        p = np.exp(s)
        total = p.sum(-1)
        return p @ v / np.where(total, total, 1)[..., None], np.log(total)


def run(path, q, k, v, mask=None, scale=None):
    arrays = [q, k, v] if mask is None else [q, k, v, mask]
    if path.library == "torch":
        import torch

        arrays = [torch.from_numpy(x) for x in arrays]
    return tuple(np.asarray(x) for x in path.attend(*arrays, scale=scale))


def check(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", CPU_PATHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_path_against_float64(name, shape, scale):
    q, k, v = case(shape, seed=1)
    o, lse = run(path_of(name), q, k, v, scale=scale)
    assert o.dtype == lse.dtype == np.float32
    check((o, lse), reference(q, k, v, None, scale))


@pytest.mark.parametrize("name", CPU_PATHS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_masks_and_rows_that_may_attend_to_nothing(name, shape):
    b, _, _, t, s, _ = shape
    q, k, v = case(shape, seed=2)
    path = path_of(name)
    random = np.random.default_rng(3).random((b, 1, t, s)) < 0.5
    nothing = random.copy()
    nothing[0, 0, t // 2] = False
    masks = [causal_mask(shape, [2 * i for i in range(b)]), random, nothing, random & False]
    for mask in masks:
        o, lse = run(path, q, k, v, mask)
        check((o, lse), reference(q, k, v, mask))
        assert np.isneginf(lse[0, :, t // 2]).all() == (not mask[0, 0, t // 2].any())


@pytest.mark.parametrize("name", CPU_PATHS)
def test_queries_that_do_not_lie_in_order(name):
    q, k, v = case((2, 5, 6, 3, 11, 16), seed=4)  # (B, T, H, ...), as models make them
    q = q.swapaxes(1, 2)
    check(run(path_of(name), q, k[:, :3], v[:, :3]), reference(q, k[:, :3], v[:, :3], None))


def test_numpy_takes_float64():
    q, k, v = case(SHAPES[1], seed=5, dtype=np.float64)
    o, lse = unique.get("numpy").attend(q, k, v)
    assert (o.dtype, lse.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(o, reference(q, k, v, None)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_takes_16_bit_types(dtype):
    torch = pytest.importorskip("torch")
    path = unique.get("torch-cpu")
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in case(SHAPES[1], seed=6)]
    mask = causal_mask(SHAPES[1], [3, 38])
    o, lse = path.attend(*tensors, torch.from_numpy(mask))
    assert (o.dtype, lse.dtype) == (tensors[0].dtype, torch.float32)
    expected = reference(*(path.to_numpy(x) for x in tensors), mask)
    check((path.to_numpy(o), lse.numpy()), expected, tolerance=2e-2)


def test_a_mask_that_changes_in_place_is_seen():
    torch = pytest.importorskip("torch")
    path = unique.get("torch-cpu")
    q, k, v = case(SHAPES[1], seed=7)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    mask = torch.from_numpy(causal_mask(SHAPES[1], [0, 0]))
    path.attend(*tensors, mask)
    mask[1, 0, :, :4] = False
    check([x.numpy() for x in path.attend(*tensors, mask)], reference(q, k, v, mask.numpy()))
    with torch.inference_mode():
        mask = mask.clone()
        path.attend(*tensors, mask)
        mask[1, 0, :, 4:6] = False
        check([x.numpy() for x in path.attend(*tensors, mask)], reference(q, k, v, mask.numpy()))


def test_explicit_softmax_stands_in_for_another_operator(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch_cpu, "ARGUMENTS", ("query", "key", "value"))
    path = unique.get("torch-cpu")
    assert "explicit softmax" in path.detail
    for shape in SHAPES[:3]:
        q, k, v = case(shape, seed=8)
        mask = causal_mask(shape, [2 * i for i in range(shape[0])])
        check(run(path, q, k, v, mask), reference(q, k, v, mask))
        check(run(path, q, k, v), reference(q, k, v, None))
    missing = torch_cpu.find_operator(torch, "_no_such_operator", (), ())
    assert missing is None


def test_operators_of_this_torch_have_the_schemas_that_the_paths_expect():
    torch = pytest.importorskip("torch")
    cpu = (torch_cpu.OPERATOR, torch_cpu.ARGUMENTS, torch_cpu.RESULTS)
    for operator in (cpu, torch_cuda.FLASH, torch_cuda.EFFICIENT):
        assert torch_cpu.find_operator(torch, *operator) is not None, operator[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": (1, 5, 1, 16)}, ValueError, "heads must be a multiple of KV heads (2), not 5"),
        ({"q": (4, 1, 16)}, ValueError, "q and k must have 4 dimensions, not 3 and 4"),
        ({"v": (1, 2, 8, 8)}, ValueError, "k and v must have shape (1, G, S, 16), not (1, 2, 9, 1"),
        ({"mask": (1, 1, 9)}, ValueError, "mask must have shape (1, 1, 1, 9), not (1, 1, 9)"),
        ({"mask": (1, 4, 1, 9)}, ValueError, "mask must have shape (1, 1, 1, 9), not (1, 4, 1"),
    ],
)
def test_shapes_are_checked(change, error, message):
    shapes = {"q": (1, 4, 1, 16), "k": (1, 2, 9, 16), "v": (1, 2, 9, 16)} | change
    mask = shapes.pop("mask", None)
    arrays = [np.zeros(shape, dtype=np.float32) for shape in shapes.values()]
    with pytest.raises(error) as caught:
        unique.get("numpy").attend(*arrays, None if mask is None else np.ones(mask, dtype=bool))
    assert str(caught.value).startswith(message)


def test_types_are_checked():
    q, k, v = case(SHAPES[0], seed=9)
    path = unique.get("numpy")
    with pytest.raises(TypeError, match="q must be float32 or float64 for numpy, not float16"):
        path.attend(q.astype(np.float16), k, v)
    with pytest.raises(TypeError, match="mask must be bool, not float32"):
        path.attend(q, k, v, np.zeros((3, 1, 1, 37), dtype=np.float32))


def test_names():
    listed = unique.available()
    assert [one.name for one in listed] == [
        "flashinfer",
        "flash-attn",
        "torch-cuda",
        "torch-cpu",
        "numpy",
        "torch-flex",
    ]
    by_name = {one.name: one for one in listed}
    assert by_name["numpy"].usable
    for one in listed:
        assert one.detail
        if not one.usable:
            with pytest.raises(RuntimeError, match=f"path {one.name} cannot be used: .*"):
                unique.get(one.name)
    first = next(one for one in listed if one.usable)
    assert unique.best().name == first.name
    assert unique.best(device="cpu", dtype="float64").device == "cpu"
    with pytest.raises(ValueError, match=r"path must be one of flashinfer, .*, not 'cublas'"):
        unique.get("cublas")
    with pytest.raises(RuntimeError, match="no path can be used here for int8 on cpu"):
        unique.best(device="cpu", dtype="int8")


def test_a_package_that_is_broken_is_told(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart is missing')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from moska.host import unique; "
        "print(unique.best().name, [x.detail for x in unique.available() if x.name == 'torch-cpu'])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "numpy ['torch cannot be imported: libcudart is missing']\n"


def test_nothing_is_imported_that_is_not_asked_for():
    code = (
        "import sys, moska.host, moska.host.unique, moska.host.merge, moska.host.policy, "
        "moska.host.orchestrator; "
        "print([m for m in ('torch', 'amaranth', 'moska.hw', 'moska.gen', 'moska.sim') "
        "if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


def test_numpy_serves_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "import numpy as np; from moska.host import unique; from moska.host.merge import "
        "merge_states; path = unique.best(); "
        "q = np.ones((1, 2, 1, 16), np.float32); o, lse = path.attend(q, q, q); "
        "merge_states(o, lse, o, lse); print(path.name, o.shape)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "numpy (1, 2, 1, 16)\n"


# Libraries that need a GPU: stand-ins, by their documentation, see what they are asked for. ------


@pytest.fixture
def gpu(monkeypatch):
    """Let torch say that it has a GPU; tensors stay on the CPU."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return torch


def fake_module(name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    return module


class RaggedWrapper:
    """FlashInfer's BatchPrefillWithRaggedKVCacheWrapper, by its documentation: base-2 LSE."""

    plans = 0

    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        assert kv_layout == "NHD"
        assert float_workspace_buffer.numel() == 128 << 20

    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, *,
        custom_mask, causal, sm_scale, q_data_type, kv_data_type,
    ):  # fmt: skip
        type(self).plans += 1
        self.rows, self.tokens = qo_indptr.tolist(), kv_indptr.tolist()
        self.heads, self.dim, self.mask = (num_qo_heads, num_kv_heads), head_dim_qk, custom_mask
        self.scale, self.types = sm_scale, (q_data_type, kv_data_type)
        assert not causal

    def run(self, q, k, v, *, return_lse):
        import torch

        assert return_lse
        assert self.types == (q.dtype, k.dtype)
        assert q.shape == (self.rows[-1], self.heads[0], self.dim)
        assert k.shape == v.shape == (self.tokens[-1], self.heads[1], self.dim)
        outputs, sums, used = [], [], 0
        for i in range(len(self.rows) - 1):
            row, token = slice(*self.rows[i : i + 2]), slice(*self.tokens[i : i + 2])
            parts = q[row], k[token], v[token]
            arrays = (x.float().numpy().swapaxes(0, 1)[None] for x in parts)
            mask = None
            if self.mask is not None:
                shape = (row.stop - row.start, token.stop - token.start)
                size = shape[0] * shape[1]
                mask = self.mask[used : used + size].reshape(1, 1, *shape).numpy()
                used += size
            o, lse = reference(*arrays, mask, self.scale)
            outputs.append(o[0].swapaxes(0, 1))
            # Where all scores are masked, FlashInfer subtracts its finite infinity from itself.
            sums.append(np.where(np.isneginf(lse), -5e4, lse / np.log(2))[0].T)
        o, lse = (torch.from_numpy(np.concatenate(x)) for x in (outputs, sums))
        return o.to(q.dtype), lse.float()


def test_flashinfer(gpu, monkeypatch):
    module = fake_module("flashinfer")
    module.__version__ = "0.7"
    module.BatchPrefillWithRaggedKVCacheWrapper = RaggedWrapper
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(RaggedWrapper, "plans", 0)
    path = unique.best(device="cuda")
    assert (path.name, path.detail) == ("flashinfer", "flashinfer 0.7")
    shape = SHAPES[1]
    tensors = [gpu.from_numpy(x).half() for x in case(shape, seed=10)]
    rounded = [x.float().numpy() for x in tensors]
    masks = [causal_mask(shape, [0, 37]), np.random.default_rng(11).random((2, 1, 5, 40)) < 0.5]
    for mask in (None, *masks):
        given = () if mask is None else (gpu.from_numpy(mask),)
        for _ in range(3):  # layers of a step share their plan
            o, lse = path.attend(*tensors, *given, scale=0.2)
        expected = reference(*rounded, mask, 0.2)
        check((o.float().numpy(), lse.numpy()), expected, tolerance=2e-3)
    assert RaggedWrapper.plans == 3
    path.attend(*(x[:, :, 1:] for x in tensors))
    assert RaggedWrapper.plans == 4
    with pytest.raises(TypeError, match="q must be bfloat16 or float16 for flashinfer"):
        path.attend(*(x.float() for x in tensors))


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,
    *, return_softmax_lse=False,
):  # fmt: skip
    """Stand-in for flash-attn's function, by its documentation; natural LSE, +inf for nothing."""
    import torch

    calls.append(causal)
    assert return_softmax_lse
    (b, t), s = q.shape[:2], k_cache.shape[1]
    mask = np.ones((b, 1, t, s), dtype=bool)
    if cache_seqlens is not None:
        assert cache_seqlens.dtype == cache_leftpad.dtype == torch.int32
        stop, first = cache_seqlens.numpy()[:, None, None], cache_leftpad.numpy()[:, None, None]
        last = stop - 1 + (np.arange(t)[:, None] - (t - 1)) * causal
        mask = ((np.arange(s) >= first) & (np.arange(s) <= last))[:, None]
    arrays = (x.float().numpy().swapaxes(1, 2) for x in (q, k_cache, v_cache))
    o, lse = reference(*arrays, mask, softmax_scale)
    lse = np.where(np.isneginf(lse), np.inf, lse)
    return torch.from_numpy(o.swapaxes(1, 2)).to(q.dtype), torch.from_numpy(lse).float()


calls = []


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_flash_attn(gpu, monkeypatch, shape):
    module = fake_module("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    path = unique.get("flash-attn")
    b, _, _, t, s, _ = shape
    tensors = [gpu.from_numpy(x).half() for x in case(shape, seed=12)]
    rounded = [x.float().numpy() for x in tensors]
    padded = causal_mask(shape, [min(3 * i, s - 1) for i in range(b)])
    trailing = causal_mask(shape, [0] * b)[:, :, -1:].repeat(t, axis=2)
    trailing[0, ..., -2:] = False
    nothing = padded.copy()
    nothing[0] = False
    masks = [(None, False), (padded, t > 1), (trailing, False), (nothing, t > 1 and b > 1)]
    for mask, causal in masks:
        calls.clear()
        given = () if mask is None else (gpu.from_numpy(mask),)
        o, lse = path.attend(*tensors, *given)
        assert calls == [causal]
        check((o.float().numpy(), lse.numpy()), reference(*rounded, mask), tolerance=2e-3)


def test_flash_attn_leaves_other_masks_to_torch(gpu, monkeypatch):
    module = fake_module("flash_attn")
    module.flash_attn_with_kvcache = None
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    # The kernels of a GPU do not run here, explicit softmax does.
    monkeypatch.setattr(torch_cuda, "EFFICIENT", ("none", (), ()))
    path = unique.get("flash-attn")
    tensors = [gpu.from_numpy(x).half() for x in case(SHAPES[1], seed=13)]
    mask = np.random.default_rng(14).random((2, 1, 5, 40)) < 0.5
    assert flash_attn.find_window(gpu, gpu.from_numpy(mask)) is None
    o, lse = path.attend(*tensors, gpu.from_numpy(mask))
    expected = reference(*(x.float().numpy() for x in tensors), mask)
    check((o.float().numpy(), lse.numpy()), expected, tolerance=2e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_cuda_calls_the_kernel_that_fits(gpu, monkeypatch, masked, dtype):
    called = []

    def flash(q, k, v, dropout_p, is_causal, return_debug_mask, *, scale):
        called.append("flash")
        assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
        return *answer(q, k, v, None, scale), None, None

    def efficient(q, k, v, attn_bias, compute_log_sumexp, dropout_p, is_causal, *, scale):
        called.append("efficient")
        assert (compute_log_sumexp, dropout_p, is_causal) == (True, 0.0, False)
        if attn_bias is not None:
            assert attn_bias.dtype == q.dtype
            assert attn_bias.shape == (*q.shape[:3], k.shape[2])
            assert attn_bias.stride(2) % 16 == 0
        o, lse = answer(q, k, v, attn_bias, scale)
        # As on the GPU, rows of the LSE are padded to whole tiles.
        return o, gpu.nn.functional.pad(lse, (0, -lse.shape[2] % 32)), None, None

    def answer(q, k, v, bias, scale):
        assert q.shape[1] == k.shape[1]
        mask = None if bias is None else bias.float().numpy() == 0
        o, lse = reference(*(x.float().numpy() for x in (q, k, v)), mask, scale)
        return gpu.from_numpy(o).to(q.dtype), gpu.from_numpy(lse).float()

    path = unique.get("torch-cuda")
    monkeypatch.setattr(path, "_flash", flash)
    monkeypatch.setattr(path, "_efficient", efficient)
    shape = SHAPES[1]
    tensors = [gpu.from_numpy(x).to(getattr(gpu, dtype)) for x in case(shape, seed=15)]
    mask = causal_mask(shape, [0, 37]) if masked else None
    o, lse = path.attend(*tensors, None if mask is None else gpu.from_numpy(mask))
    assert called == ["flash" if not masked and dtype == "bfloat16" else "efficient"]
    expected = reference(*(x.float().numpy() for x in tensors), mask)
    check((o.float().numpy(), lse.numpy()), expected, tolerance=2e-2)
