"""Running state of the rows: blocks are merged one by one, in the canonical order.

A row is ``l * 2**(m - 19)`` (sum of probabilities) and ``o * 2**(e - 146)`` (sum of values), with
integers l, o that keep STATE_GUARD fraction bits below a block's last bit. References m and e only
grow; the operand with the smaller one is shifted right, rounded half up, and added.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import (
    ALIGN_SHIFT_MAX,
    L_STATE_WIDTH,
    M_WIDTH,
    O_EXP_WIDTH,
    O_STATE_WIDTH,
    STATE_GUARD,
    Int,
    fit,
    round_shift,
)


@dataclass
class RowState:
    """State of M rows; ``l == 0`` marks a row that has merged nothing."""

    m: Int  # (M,) softmax reference
    l: Int  # (M,) sum of probabilities; the field's letter
    e: Int  # (M,) reference of o
    o: Int  # (M, D)

    @classmethod
    def empty(cls, n_rows: int, head_dim: int) -> "RowState":
        """Rows that have merged nothing."""
        zeros = np.zeros(n_rows, dtype=np.int64)
        return cls(zeros, zeros.copy(), zeros.copy(), np.zeros((n_rows, head_dim), dtype=np.int64))

    def merge(
        self, rows: NDArray[np.intp], ref: Int, l_block: Int, pv_ref: Int, o_block: Int
    ) -> None:
        """Merge one block into ``rows`` (n,). ref, l_block, pv_ref: (n,); o_block: (n, D)."""
        fresh = self.l[rows] == 0
        m, l = merge_aligned(fresh, self.m[rows], self.l[rows], ref, l_block << STATE_GUARD)
        e, o = merge_aligned(
            fresh[:, None],
            self.e[rows][:, None],
            self.o[rows],
            pv_ref[:, None],
            o_block << STATE_GUARD,
        )
        self.m[rows] = fit(m, M_WIDTH, name="m")
        self.l[rows] = fit(l, L_STATE_WIDTH, signed=False, name="l")
        self.e[rows] = fit(e, O_EXP_WIDTH, name="e")[:, 0]
        self.o[rows] = fit(o, O_STATE_WIDTH, name="o")


def merge_aligned(
    fresh: NDArray[np.bool_], state_ref: Int, state: Int, block_ref: Int, block: Int
) -> tuple[Int, Int]:
    """Add ``block * 2**block_ref`` to ``state * 2**state_ref``; returns (reference, sum)."""
    distance = block_ref - state_ref
    shift = np.minimum(np.abs(distance), ALIGN_SHIFT_MAX)
    block_wins = distance > 0
    kept = np.where(block_wins, block, state)
    aligned = round_shift(np.where(block_wins, state, block), np.broadcast_to(shift, kept.shape))
    reference = np.where(fresh | block_wins, block_ref, state_ref)
    return reference, np.where(fresh, block, kept + aligned)
