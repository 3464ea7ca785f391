"""The whole unit: one job on one KV store, bit for bit what the hardware returns."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moska.golden.attention import scores, values
from moska.golden.finish import finish
from moska.golden.formats import (
    BLOCK_TOKENS,
    CHUNK_MULTIPLE,
    MAX_TOKENS,
    block_l_width,
    fit,
    scale_value,
)
from moska.golden.quantize import quantize_kv
from moska.golden.router import (
    Bool,
    Router,
    chunk_keys,
    invert,
    representatives,
    router_kind,
    select,
)
from moska.golden.softmax import probabilities, pv_reference, reference, scaled_probabilities
from moska.golden.state import RowState


@dataclass(frozen=True)
class Store:
    """Shared keys and values of one (layer, KV head), in the stored format."""

    k: NDArray[np.int8]  # (S, D)
    v: NDArray[np.int8]  # (S, D)
    k_scale: NDArray[np.uint16]  # (S,)
    v_scale: NDArray[np.uint16]  # (S,)
    chunk_tokens: int
    router: Router = Router.ROWS
    rep: NDArray[np.int8] | None = None  # (N, r, D)
    rep_scale: NDArray[np.uint16] | None = None  # (N, r)

    def __post_init__(self) -> None:
        if self.k.ndim != 2 or self.v.shape != self.k.shape:
            raise ValueError(f"v must have the shape of k {self.k.shape}, not {self.v.shape}")
        if not 1 <= len(self.k) <= MAX_TOKENS:
            raise ValueError(f"tokens must be 1..{MAX_TOKENS}, not {len(self.k)}")
        if self.chunk_tokens < CHUNK_MULTIPLE or self.chunk_tokens % CHUNK_MULTIPLE:
            raise ValueError(
                f"chunk_tokens must be a positive multiple of {CHUNK_MULTIPLE}, "
                f"not {self.chunk_tokens}"
            )

    @classmethod
    def from_float(
        cls,
        k: NDArray[np.floating],
        v: NDArray[np.floating],
        *,
        chunk_tokens: int,
        router: str = "minmax",
    ) -> "Store":
        """Quantise keys and values (S, D) and build the router's representatives."""
        return cls.from_parts([(k, v)], chunk_tokens=chunk_tokens, router=router)

    @classmethod
    def from_parts(
        cls,
        parts: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
        *,
        chunk_tokens: int,
        router: str = "minmax",
    ) -> "Store":
        """Store of keys and values that come in parts, so that no more than one is in memory.

        All parts but the last hold whole chunks.
        """
        kind, _ = router_kind(router)
        stored: list[tuple[NDArray[np.integer], ...]] = []
        for k, v in parts:
            if stored and len(stored[-1][0]) % chunk_tokens:
                raise ValueError(
                    f"parts must hold whole chunks of {chunk_tokens} tokens, "
                    f"not {len(stored[-1][0])} tokens"
                )
            k_int, k_scale = quantize_kv(k)
            v_int, v_scale = quantize_kv(v)
            exact = k_int * scale_value(k_scale)[:, None]
            rep, rep_scale = representatives(exact, chunk_tokens, router)
            stored.append((k_int, v_int, k_scale, v_scale, rep, rep_scale))
        k_int, v_int, k_scale, v_scale, rep, rep_scale = (
            np.concatenate(arrays) for arrays in zip(*stored, strict=True)
        )
        return cls(k_int, v_int, k_scale, v_scale, chunk_tokens, kind, rep, rep_scale)

    @property
    def n_tokens(self) -> int:
        """S."""
        return len(self.k)

    @property
    def n_chunks(self) -> int:
        """N; the last chunk may be short."""
        return -(-len(self.k) // self.chunk_tokens)

    def chunk(self, index: int) -> range:
        """Tokens of chunk ``index``."""
        start = index * self.chunk_tokens
        return range(start, min(start + self.chunk_tokens, self.n_tokens))


@dataclass(frozen=True)
class Result:
    """Result of a job."""

    o: NDArray[np.uint32]  # (M, D) float32 bits
    lse: NDArray[np.uint32]  # (M,) float32 bits, base 2
    selected: Bool  # (M, N)

    @property
    def chunks_read(self) -> int:
        """Chunks that at least one row selected."""
        return int(self.selected.any(axis=0).sum())


def route(
    store: Store,
    q: NDArray[np.int16],
    q_scale: NDArray[np.uint16],
    k: int,
    *,
    keep_first: int = 1,
    keep_last: int = 1,
    group: int = 1,
) -> Bool:
    """Chunks that each row selects, (M, N)."""
    if store.rep is None or store.rep_scale is None:
        raise ValueError("store must have representatives to route")
    keys = chunk_keys(q, q_scale, store.rep, store.rep_scale, store.router)
    return select(keys, k, keep_first=keep_first, keep_last=keep_last, group=group)


def attend(
    store: Store,
    q: NDArray[np.int16],
    q_scale: NDArray[np.uint16],
    selected: Bool | None = None,
) -> Result:
    """Attention of rows q (M, D) over the chunks each row selected (default: all).

    Chunks are taken in ascending order and cut into blocks of BLOCK_TOKENS tokens from their first
    token on; each block is merged into its rows in that order. A row's bits depend on its own query
    and chunks only.
    """
    if selected is None:
        selected = np.ones((len(q), store.n_chunks), dtype=bool)
    state = RowState.empty(*q.shape)
    for chunk, rows in invert(selected):
        tokens = store.chunk(chunk)
        for start in range(tokens.start, tokens.stop, BLOCK_TOKENS):
            block = slice(start, min(start + BLOCK_TOKENS, tokens.stop))
            s = scores(q[rows], q_scale[rows], store.k[block], store.k_scale[block])
            ref = reference(s)
            p = probabilities(s, ref)
            l_block = fit(p.sum(axis=1), block_l_width(), signed=False, name="block l")
            pv_ref = pv_reference(s, store.v_scale[block])
            pv = scaled_probabilities(s, store.v_scale[block], pv_ref)
            o_block = values(pv, store.v[block])
            state.merge(rows, ref, l_block, pv_ref, o_block)
    o, lse = finish(state)
    return Result(o, lse, selected)
