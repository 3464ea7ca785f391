"""Exact merge of partial attention states by log-sum-exp, for NumPy arrays and torch tensors.

A state is an output o (..., D) and a float32 log-sum-exp (...) of the scores that made it. The
empty set is o = 0, lse = -inf. LSEs are natural logarithms; the unit's memory and FlashInfer's
kernels hold base-2 ones, which :func:`from_base2` and :func:`to_base2` translate.
"""

import math
import sys
from typing import Any

import numpy as np

Array = Any  # a NumPy array or a torch tensor

LOWEST = float(np.finfo(np.float32).min)

# What FlashInfer has for an empty set: its kernels calculate with a finite "infinity", because two
# real ones subtract to no number. Merging n empty sets there adds log2(n), so any LSE far below
# what scores can give means an empty set.
FLASHINFER_EMPTY = -5e4
FLASHINFER_EMPTY_BELOW = -2.5e4


def namespace(x: Array) -> Any:
    """Return the module whose functions take ``x``: numpy or torch, which is never imported."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def merge_states(
    o_a: Array, lse_a: Array, o_b: Array, lse_b: Array, *, base2: bool = False
) -> tuple[Array, Array]:
    """Attention over the union of two disjoint token sets.

    An empty set leaves the other state's bits as they are, and two empty sets give an empty set. To
    merge several, fold from the left in a fixed order: the result is reproducible.

    Parameters
    ----------
    o_a, o_b
        (..., D) outputs, float32 (other formats are converted).
    lse_a, lse_b
        (...) log-sum-exps, float32.
    base2
        LSEs are base 2, in and out; then the bits are those of :mod:`moska.golden.merge`.
    """
    xp = namespace(lse_a)
    o_a, lse_a, o_b, lse_b = (_single(xp, x) for x in (o_a, lse_a, o_b, lse_b))
    exp, log = (xp.exp2, xp.log2) if base2 else (xp.exp, xp.log)
    # With both sets empty, -inf - -inf is not a number: measure from the lowest one instead.
    base = xp.maximum(lse_a, lse_b).clip(LOWEST)
    w_a, w_b = exp(lse_a - base), exp(lse_b - base)
    total = w_a + w_b
    # One weight is 1, or both are 0: then a quotient is none either, so divide by one instead.
    safe = total.clip(1.0)
    o = o_a * (w_a / safe)[..., None] + o_b * (w_b / safe)[..., None]
    with np.errstate(divide="ignore"):
        return o, base + log(total)


def from_base2(lse: Array) -> Array:
    """Natural-log LSE of a base-2 one, float32; FlashInfer's mark of an empty set becomes -inf."""
    xp = namespace(lse)
    lse = _single(xp, lse)
    empty = lse < FLASHINFER_EMPTY_BELOW
    return xp.where(empty, xp.full_like(lse, -math.inf), lse * math.log(2))


def to_base2(lse: Array, *, flashinfer: bool = False) -> Array:
    """Base-2 LSE of a natural-log one, float32.

    With ``flashinfer``, an empty set gets the finite mark that FlashInfer's merge kernels need: two
    states with -inf would merge to NaN there.
    """
    xp = namespace(lse)
    base2 = _single(xp, lse) * math.log2(math.e)
    if not flashinfer:
        return base2
    return xp.where(xp.isneginf(base2), xp.full_like(base2, FLASHINFER_EMPTY), base2)


def _single(xp: Any, x: Array) -> Array:
    return np.asarray(x, dtype=np.float32) if xp is np else x.to(xp.float32)
