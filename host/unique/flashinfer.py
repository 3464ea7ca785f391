"""FlashInfer: its batch prefill kernel on ragged keys, which serves decoding steps as well."""

import importlib
from typing import Any, ClassVar

from moska.host.merge import from_base2
from moska.host.unique.path import Array, TorchPath, dtype_name, no_cuda_for

WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends


class FlashInferPath(TorchPath):
    """FlashInfer with any mask; a plan is made once a step and serves all layers."""

    name: ClassVar[str] = "flashinfer"
    device: ClassVar[str] = "cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")

    def __init__(self) -> None:
        super().__init__()
        self._module: Any = importlib.import_module("flashinfer")
        # A wrapper keeps the mask of earlier plans, so calls without one have their own.
        self._wrappers: dict[tuple[bool, str], Any] = {}
        self._planned: dict[bool, tuple[Any, ...]] = {}
        self.detail = f"flashinfer {getattr(self._module, '__version__', '')}".strip()

    @classmethod
    def unusable(cls) -> str | None:
        """Tell that FlashInfer or a GPU is missing."""
        return no_cuda_for("flashinfer")

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        b, h, t, d = q.shape
        g, s = k.shape[1:3]
        shape = (b, h, g, t, s, d, scale, dtype_name(q), str(q.device))
        if mask is None:
            wrapper = self._wrapper(False, q)
            if self._planned.get(False) != shape:
                self._plan(wrapper, q, k, None, scale)
                self._planned[False] = shape
        else:
            wrapper = self._wrapper(True, q)
            self._once(shape, mask, lambda: self._plan(wrapper, q, k, mask, scale))
        o, lse = wrapper.run(
            q.transpose(1, 2).reshape(b * t, h, d),
            k.transpose(1, 2).reshape(b * s, g, d),
            v.transpose(1, 2).reshape(b * s, g, d),
            return_lse=True,
        )
        lse = from_base2(lse).reshape(b, t, h).transpose(1, 2)
        return o.reshape(b, t, h, d).transpose(1, 2), lse

    def _wrapper(self, masked: bool, q: Array) -> Any:
        key = (masked, str(q.device))
        if key not in self._wrappers:
            workspace = self._torch.zeros(
                WORKSPACE_BYTES, dtype=self._torch.uint8, device=q.device
            )
            self._wrappers[key] = self._module.BatchPrefillWithRaggedKVCacheWrapper(
                workspace, "NHD"
            )
        return self._wrappers[key]

    def _plan(self, wrapper: Any, q: Array, k: Array, mask: Array | None, scale: float) -> None:
        b, h, t, d = q.shape
        g, s = k.shape[1:3]
        index = self._torch.arange(b + 1, dtype=self._torch.int32, device=q.device)
        wrapper.plan(
            index * t,
            index * s,
            h,
            g,
            d,
            custom_mask=None if mask is None else mask.reshape(-1),
            causal=False,
            sm_scale=scale,
            q_data_type=q.dtype,
            kv_data_type=k.dtype,
        )
