"""Attention in float64 on the same stored keys and values: bounds the error of the arithmetic."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import scale_value
from moska.golden.router import Bool
from moska.golden.unit import Store

Float = NDArray[np.float64]


def attention(
    store: Store,
    q: NDArray[np.floating],
    selected: Bool | None = None,
    softmax_scale: float | None = None,
) -> tuple[Float, Float]:
    """O (M, D) and base-2 LSE (M,) of float queries (M, D) over the chunks each row selected.

    A row with an empty selection gives O = 0, LSE = -inf.
    """
    q = np.asarray(q, dtype=np.float64)
    k = store.k * scale_value(store.k_scale)[:, None]
    v = store.v * scale_value(store.v_scale)[:, None]
    factor = q.shape[1] ** -0.5 if softmax_scale is None else softmax_scale
    s = (q @ k.T) * (factor * np.log2(np.e))
    if selected is not None:
        chunk_of = np.arange(store.n_tokens) // store.chunk_tokens
        s = np.where(selected[:, chunk_of], s, -np.inf)
    top = s.max(axis=1)
    empty = np.isneginf(top)
    p = np.exp2(s - np.where(empty, 0.0, top)[:, None])
    total = p.sum(axis=1)
    safe = np.where(empty, 1.0, total)
    with np.errstate(divide="ignore"):
        return (p @ v) / safe[:, None], np.where(empty, -np.inf, top + np.log2(safe))


def relative_error(x: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Frobenius norm of the difference over that of ``expected``."""
    return float(np.linalg.norm(np.asarray(x, np.float64) - expected) / np.linalg.norm(expected))
