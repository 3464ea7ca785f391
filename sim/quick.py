"""The golden model's attention with blocks computed together: the same bits in less time."""

import numpy as np
from numpy.typing import NDArray

from moska.golden.attention import scaled
from moska.golden.finish import finish
from moska.golden.formats import BLOCK_TOKENS, SCORE_WIDTH, STATE_GUARD, Int, dot_width, fit
from moska.golden.router import Bool
from moska.golden.softmax import probabilities, pv_reference, reference, scaled_probabilities
from moska.golden.state import RowState
from moska.golden.unit import Result, Store

AT_ONCE = 1 << 14  # scores: more of them leave the caches of the processor
NEVER = -(1 << 40)  # reference of a row that has merged nothing: below that of any block
LONGEST_SHIFT = 60  # from 49 on, a state that is aligned becomes 0


def attend(
    store: Store, q: NDArray[np.int16], q_scale: NDArray[np.uint16], selected: Bool
) -> Result:
    """Return what :func:`moska.golden.unit.attend` returns."""
    n_rows, head_dim = q.shape
    m, e = (np.full(n_rows, NEVER) for _ in range(2))
    l, o = np.zeros(n_rows, dtype=np.int64), np.zeros((n_rows, head_dim), dtype=np.int64)
    chunks, tokens, real = _blocks(store, selected.any(axis=0))
    step = max(1, AT_ONCE // (n_rows * BLOCK_TOKENS))
    for first in range(0, len(chunks), step):
        part = slice(first, first + step)
        results = _block_results(store, q, q_scale, tokens[part], real[part])
        for chunk, ref, l_block, pv_ref, o_block in zip(chunks[part], *results, strict=True):
            rows = selected[:, chunk]
            if rows.all():
                m, l = _merged(m, l, ref, l_block)
                e, o = _merged(e, o, pv_ref, o_block)
            else:
                m[rows], l[rows] = _merged(m[rows], l[rows], ref[rows], l_block[rows])
                e[rows], o[rows] = _merged(e[rows], o[rows], pv_ref[rows], o_block[rows])
    empty = l == 0
    return Result(*finish(RowState(np.where(empty, 0, m), l, np.where(empty, 0, e), o)), selected)


def _blocks(store: Store, wanted: Bool) -> tuple[Int, Int, Bool]:
    """Blocks of the wanted chunks: chunk (B,), tokens (B, T), whether they are real (B, T).

    The missing tokens of a short block are its first one, and not real.
    """
    size = store.chunk_tokens
    starts = np.arange(0, size, BLOCK_TOKENS)  # in a chunk
    chunks = np.repeat(np.flatnonzero(wanted), len(starts))
    start = np.tile(starts, len(chunks) // len(starts))
    end = np.minimum((chunks + 1) * size, store.n_tokens)
    first = chunks * size + start
    some = first < end
    chunks, first, end = chunks[some], first[some], end[some]
    tokens = first[:, None] + np.arange(BLOCK_TOKENS)
    real = tokens < end[:, None]
    return chunks, np.where(real, tokens, first[:, None]), real


def _block_results(
    store: Store, q: NDArray[np.int16], q_scale: NDArray[np.uint16], tokens: Int, real: Bool
) -> tuple[Int, Int, Int, Int]:
    """Return references (B, M), sums (B, M), references of values (B, M), values (B, M, D)."""
    n_blocks, n_rows = len(tokens), len(q)
    # Products of one block at a time: NumPy's library gives larger ones to several threads, which
    # costs more than it gains. Exact in float64, as moska.golden.attention.exact_matmul.
    dot = q.astype(np.float64) @ store.k[tokens].astype(np.float64).swapaxes(1, 2)
    dot = fit(dot.astype(np.int64), dot_width(q.shape[1]), name="dot")
    s = scaled(dot, q_scale[:, None], store.k_scale[tokens][:, None])
    padded = not real.all()
    if padded:
        # The smallest score there is: no maximum is one of a token that is not real.
        s = np.where(real[:, None], s, -(1 << (SCORE_WIDTH - 1)))
    s = s.reshape(-1, BLOCK_TOKENS)
    v_scale = np.repeat(store.v_scale[tokens], n_rows, axis=0)
    ref = reference(s)
    p = probabilities(s, ref)
    pv_ref = pv_reference(s, v_scale)
    pv = scaled_probabilities(s, v_scale, pv_ref)
    if padded:
        keep = np.repeat(real, n_rows, axis=0)
        p, pv = p * keep, pv * keep
    shape = (n_blocks, n_rows)
    o = pv.reshape(*shape, BLOCK_TOKENS).astype(np.float64) @ store.v[tokens].astype(np.float64)
    return (
        ref.reshape(shape),
        p.sum(axis=1).reshape(shape) << STATE_GUARD,
        pv_ref.reshape(shape),
        o.astype(np.int64) << STATE_GUARD,
    )


def _merged(state_ref: Int, state: Int, block_ref: Int, block: Int) -> tuple[Int, Int]:
    """Merge a block into states: reference, sum; as :func:`moska.golden.state.merge_aligned`."""
    distance = block_ref - state_ref
    wins = distance > 0
    shift = np.minimum(np.abs(distance), LONGEST_SHIFT)
    half = (np.int64(1) << shift) >> 1
    best = np.where(wins, block_ref, state_ref)
    if state.ndim == 2:
        wins, shift, half = wins[:, None], shift[:, None], half[:, None]
    kept, other = np.where(wins, block, state), np.where(wins, state, block)
    return best, kept + ((other + half) >> shift)
