"""flash-attn: flash_attn_with_kvcache, for causal masks with padding in front."""

import importlib
from typing import Any, ClassVar, NamedTuple

from moska.host.unique.path import Array, TorchPath, no_cuda_for
from moska.host.unique.torch_cuda import TorchCudaPath


class Window(NamedTuple):
    """Tokens that the kernel lets a request attend to."""

    first: Array  # (B,) int32: first token
    stop: Array  # (B,) int32: token behind the last one
    causal: bool  # the last query attends to all of them, each one before it to one token less


class FlashAttnPath(TorchPath):
    """flash-attn where the mask is a window of tokens (padding, causal), torch's kernels else."""

    name: ClassVar[str] = "flash-attn"
    device: ClassVar[str] = "cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")

    def __init__(self) -> None:
        super().__init__()
        module: Any = importlib.import_module("flash_attn")
        self._kernel = module.flash_attn_with_kvcache
        self._other = TorchCudaPath()
        self.detail = f"flash-attn {getattr(module, '__version__', '')}".strip()

    @classmethod
    def unusable(cls) -> str | None:
        """Tell that flash-attn or a GPU is missing."""
        return no_cuda_for("flash_attn")

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        window = None
        if mask is not None:
            window = self._once((), mask, lambda: find_window(self._torch, mask))
            if window is None:
                return self._other._attend(q, k, v, mask, scale)
        o, lse = self._kernel(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            cache_seqlens=None if window is None else window.stop,
            cache_leftpad=None if window is None else window.first,
            softmax_scale=scale,
            causal=window is not None and window.causal,
            return_softmax_lse=True,
        )[:2]
        return o.transpose(1, 2), lse


def find_window(torch: Any, mask: Array) -> Window | None:
    """Return the window that a mask (B, 1, T, S) is, or None when it is none.

    Queries that may attend to nothing do not count.
    """
    b, _, t, s = mask.shape
    rows = mask[:, 0]
    token = torch.arange(s, device=mask.device)
    some = rows.any(dim=1)  # (B, S)
    stop = torch.where(some, token + 1, 0).amax(dim=1)
    first = torch.where(some, token, s).amin(dim=1).minimum(stop)
    inside = (token >= first[:, None])[:, None] & (token < stop[:, None])[:, None]  # (B, 1, S)
    late = torch.arange(t, device=mask.device)[:, None] - (t - 1)  # (T, 1), 0 for the last query
    before = token < (stop[:, None, None] + late)  # (B, T, S)
    counts = rows.any(dim=2, keepdim=True)
    for causal, allowed in ((False, inside.expand(b, t, s)), (True, inside & before)):
        if bool(((rows == allowed) | ~counts).all()):
            return Window(first.int(), stop.int(), causal)
    return None
