"""Exact merge of partial attention states by log-sum-exp, in float32 and base 2."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def merge_states(o_a: F32, lse_a: F32, o_b: F32, lse_b: F32) -> tuple[F32, F32]:
    """Attention over the union of two disjoint token sets. o: (M, D), lse: (M,) base 2.

    An empty set is o = 0, lse = -inf; two empty sets give an empty set. To merge several, fold from
    the left in store order: the result is reproducible.
    """
    o_a, lse_a, o_b, lse_b = (np.asarray(x, dtype=np.float32) for x in (o_a, lse_a, o_b, lse_b))
    top = np.maximum(lse_a, lse_b)
    # With both sets empty, -inf - -inf is not a number: measure from zero instead.
    base = np.where(np.isneginf(top), np.float32(0), top)
    w_a = np.exp2(lse_a - base)
    w_b = np.exp2(lse_b - base)
    total = w_a + w_b
    some = total > 0
    safe = np.where(some, total, np.float32(1))
    o = (o_a * (w_a / safe)[:, None] + o_b * (w_b / safe)[:, None]).astype(np.float32)
    with np.errstate(divide="ignore"):
        lse = (base + np.log2(total)).astype(np.float32)
    return o, lse
