"""Router: chunk representatives, chunk scores, exact top-k selection, inversion to query lists."""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moska.golden.attention import scores
from moska.golden.formats import KEY_FRAC, KEY_WIDTH, SCORE_FRAC, Int, saturate
from moska.golden.quantize import quantize_kv

Bool = NDArray[np.bool_]


class Router(IntEnum):
    """How representative rows combine. The value is the descriptor's code."""

    ROWS = 0  # each row is a group of its own; phi(q) = q
    MINMAX = 1  # two rows a group: max(q, 0) . kmax + min(q, 0) . kmin


def router_kind(name: str) -> tuple[Router, int]:
    """Parse ``mean``, ``minmax`` or ``submean:n`` into (kind, tokens a mean; 0 = whole chunk).

    Raises
    ------
    ValueError
        for any other name.
    """
    if name == "mean":
        return Router.ROWS, 0
    if name == "minmax":
        return Router.MINMAX, 0
    head, _, tokens = name.partition(":")
    if head == "submean" and tokens.isdigit() and int(tokens) > 0:
        return Router.ROWS, int(tokens)
    raise ValueError(f"router must be mean, minmax or submean:<tokens>, not {name!r}")


def representatives(
    k: NDArray[np.float64], chunk_tokens: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Build the representative rows of every chunk: int8 (N, r, D) and scales (N, r).

    k: (S, D) keys as the unit sees them (stored value times scale). ``mean``: r = 1. ``minmax``
    (Quest, arXiv 2406.10774): rows kmax, kmin, r = 2. ``submean:n``: r = chunk_tokens / n means of
    n tokens; in a short last chunk, empty groups repeat the last mean.
    """
    kind, tokens = router_kind(name)
    rows = []
    for start in range(0, len(k), chunk_tokens):
        chunk = k[start : start + chunk_tokens]
        if kind is Router.MINMAX:
            rows.append(np.stack([chunk.max(axis=0), chunk.min(axis=0)]))
        elif tokens == 0:
            rows.append(chunk.mean(axis=0, keepdims=True))
        else:
            if chunk_tokens % tokens:
                raise ValueError(
                    f"chunk_tokens must be a multiple of submean's {tokens}, not {chunk_tokens}"
                )
            means = [chunk[i : i + tokens].mean(axis=0) for i in range(0, len(chunk), tokens)]
            means += [means[-1]] * (chunk_tokens // tokens - len(means))
            rows.append(np.stack(means))
    return quantize_kv(np.stack(rows))


def chunk_keys(
    q: NDArray[np.int16],
    q_scale: NDArray[np.uint16],
    rep: NDArray[np.int8],
    rep_scale: NDArray[np.uint16],
    kind: Router,
) -> Int:
    """Order-preserving key of every chunk for every row, (M, N), signed KEY_WIDTH bits.

    A group's score is the sum of its rows' scores, the chunk's score the maximum over its groups;
    the key drops fraction bits below KEY_FRAC (towards minus infinity) and saturates.
    """
    n_chunks, n_rep, head_dim = rep.shape
    if kind is Router.MINMAX:
        high, low = (
            scores(part, q_scale, rep[:, i::2].reshape(-1, head_dim), rep_scale[:, i::2].ravel())
            for i, part in enumerate((np.maximum(q, 0), np.minimum(q, 0)))
        )
        group = (high + low).reshape(len(q), n_chunks, n_rep // 2)
    else:
        flat = scores(q, q_scale, rep.reshape(-1, head_dim), rep_scale.reshape(-1))
        group = flat.reshape(len(q), n_chunks, n_rep)
    return saturate(group.max(axis=2) >> (SCORE_FRAC - KEY_FRAC), KEY_WIDTH)


def forced_chunks(n_chunks: int, keep_first: int, keep_last: int) -> Bool:
    """Chunks that are always kept, (N,): the first (attention sink) and the last ones."""
    index = np.arange(n_chunks)
    return (index < keep_first) | (index >= n_chunks - keep_last)


def select(keys: Int, k: int, *, keep_first: int = 0, keep_last: int = 0, group: int = 1) -> Bool:
    """Exact top-k of every row, (M, N).

    ``min(k, N)`` chunks: forced chunks rank above all others, then larger keys, then lower chunk
    ids. With ``group`` > 1, each run of ``group`` rows (GQA) shares one decision, made on the
    largest of their keys.

    Raises
    ------
    ValueError
        when k is negative or M is not a multiple of ``group``.
    """
    n_rows, n_chunks = keys.shape
    if k < 0:
        raise ValueError(f"k must not be negative, not {k}")
    if group < 1 or n_rows % group:
        raise ValueError(f"rows must be a multiple of group ({group}), not {n_rows}")
    ranked = keys.reshape(n_rows // group, group, n_chunks).max(axis=1)
    forced = forced_chunks(n_chunks, keep_first, keep_last)
    ranked = ranked + (forced.astype(np.int64) << KEY_WIDTH)
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    selected = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(selected, order, True, axis=1)
    return np.repeat(selected, group, axis=0)


def invert(selected: Bool) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Per-chunk query lists: (chunk id, ascending row ids) of every chunk that a row selected."""
    for chunk in np.flatnonzero(selected.any(axis=0)):
        yield int(chunk), np.flatnonzero(selected[:, chunk])
