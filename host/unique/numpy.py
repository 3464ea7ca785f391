"""NumPy: explicit softmax, always there."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moska.host.unique.path import Array, Path, fold


class NumpyPath(Path):
    """Explicit softmax in the type of the queries."""

    name: ClassVar[str] = "numpy"
    library: ClassVar[str] = "numpy"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    detail: str = "explicit softmax"

    @classmethod
    def unusable(cls) -> str | None:
        """Return None: NumPy is always there."""
        return None

    def from_numpy(self, x: NDArray[Any], like: Array) -> NDArray[Any]:
        """Return ``x``."""
        return x

    def cast(self, x: NDArray[Any], like: Array) -> NDArray[Any]:
        """Convert an array to the type of ``like``."""
        array: NDArray[Any] = x.astype(like.dtype, copy=False)
        return array

    def to_numpy(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return ``x``."""
        return x

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        b, h, t, _ = q.shape
        g, s = k.shape[1:3]
        scores = fold(q, g) @ k.swapaxes(2, 3)  # (B, G, R * T, S)
        scores *= scale
        if mask is not None:
            grouped = scores.reshape(b, g, h // g, t, s)
            np.copyto(grouped, -np.inf, where=~mask[:, :, None])
        top = scores.max(axis=-1, keepdims=True)
        top[np.isneginf(top)] = 0  # such a row has no token: -inf - -inf is not a number
        scores -= top
        p = np.exp(scores, out=scores)
        total = p.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        o = (p @ v / total).astype(q.dtype)
        lse = (top + np.log(total)).astype(np.float32)
        return o.reshape(q.shape), lse.reshape(b, h, t)

    def _nothing(self, q: Array) -> tuple[Array, Array]:
        return np.zeros_like(q), np.full(q.shape[:3], -np.inf, dtype=np.float32)

    def _guard(self, o: Array, lse: Array, mask: Array) -> tuple[Array, Array]:
        empty = ~mask.any(axis=-1)  # (B, 1, T)
        return np.where(empty[..., None], 0, o), np.where(empty, -np.inf, lse).astype(np.float32)
