"""torch on a GPU: the fused kernels behind scaled_dot_product_attention, which return the LSE."""

from typing import ClassVar

from moska.host.unique.path import Array, TorchPath, fold, no_cuda
from moska.host.unique.torch_cpu import explicit, find_operator, make_bias

FLASH = (
    "_scaled_dot_product_flash_attention",
    ("query", "key", "value", "dropout_p", "is_causal", "return_debug_mask", "scale"),
    ("output", "logsumexp"),
)
EFFICIENT = (
    "_scaled_dot_product_efficient_attention",
    (
        "query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal",
        "scale",
    ),
    ("output", "log_sumexp"),
)  # fmt: skip
BIAS_ALIGNMENT = 16  # elements: rows of the bias must start at multiples of it


class TorchCudaPath(TorchPath):
    """FlashAttention of torch without a mask, its memory-efficient kernel with one."""

    name: ClassVar[str] = "torch-cuda"
    device: ClassVar[str] = "cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    def __init__(self) -> None:
        super().__init__()
        self._flash = find_operator(self._torch, *FLASH)
        self._efficient = find_operator(self._torch, *EFFICIENT)
        kernels = {"flash": self._flash, "memory-efficient": self._efficient}
        found = [name for name, kernel in kernels.items() if kernel] or ["explicit softmax"]
        self.detail = f"torch {self._torch.__version__}, {' and '.join(found)}"

    @classmethod
    def unusable(cls) -> str | None:
        """Tell that torch or a GPU is missing."""
        return no_cuda()

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        b, h, t, _ = q.shape
        g = k.shape[1]
        rows = fold(q, g)
        bias = None
        if mask is not None:
            key = (h // g, q.dtype)
            bias = self._once(key, mask, lambda: self._bias(mask, h // g, q.dtype))
        if bias is None and self._flash is not None and q.dtype != self._torch.float32:
            o, lse = self._flash(rows, k, v, 0.0, False, False, scale=scale)[:2]
        elif self._efficient is not None:
            full = None if bias is None else bias.expand(b, g, rows.shape[2], k.shape[2])
            o, lse = self._efficient(rows, k, v, full, True, 0.0, False, scale=scale)[:2]
        else:
            o, lse = explicit(self._torch, rows, k, v, bias, scale)
        # The kernels may pad the rows of the LSE to whole tiles.
        return o.reshape(q.shape), lse[:, :, : rows.shape[2]].float().reshape(b, h, t)

    def _bias(self, mask: Array, repeats: int, dtype: object) -> Array:
        bias = make_bias(self._torch, mask, repeats, dtype)
        s = bias.shape[-1]
        padded = self._torch.nn.functional.pad(bias, (0, -s % BIAS_ALIGNMENT))
        return padded[..., :s]
