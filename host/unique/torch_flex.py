"""torch's flex_attention: compiled on a GPU, step by step on the CPU."""

import importlib
import math
import warnings
from typing import Any, ClassVar

from moska.host.unique.path import Array, TorchPath, no_cuda, unimportable


class TorchFlexPath(TorchPath):
    """flex_attention with grouped heads and its LSE."""

    name: ClassVar[str] = "torch-flex"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "float64")

    def __init__(self) -> None:
        super().__init__()
        flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
        self._request = flex.AuxRequest(lse=True)
        compiled = no_cuda() is None
        self._flex = (
            self._torch.compile(flex.flex_attention, dynamic=True)
            if compiled
            else flex.flex_attention
        )
        how = "compiled" if compiled else "not compiled, for comparison"
        self.detail = f"torch {self._torch.__version__}, flex_attention, {how}"

    @classmethod
    def unusable(cls) -> str | None:
        """Tell that torch, or this function of it, is missing."""
        reason = unimportable("torch")
        if reason:
            return reason
        try:
            flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
        except ImportError:
            return "torch has no flex_attention"
        return None if hasattr(flex, "AuxRequest") else "flex_attention of torch returns no LSE"

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        def masked(score: Array, b: Array, h: Array, t: Array, s: Array) -> Array:
            assert mask is not None
            return self._torch.where(mask[b, 0, t, s], score, -math.inf)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            o, auxiliary = self._flex(
                q,
                k,
                v,
                score_mod=None if mask is None else masked,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
                return_aux=self._request,
            )
        return o, auxiliary.lse.float()
