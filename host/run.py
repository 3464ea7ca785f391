"""Runs of chunks in host memory: made from floating-point keys and values, cut into pieces."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moska.golden.unit import Store
from moska.host.chunks import ChunkFormat, Tokens
from moska.host.progress import track

Float = NDArray[np.floating]
Stores = tuple[tuple[Store, ...], ...]  # of each layer: of each KV head


@dataclass(frozen=True)
class Run:
    """Consecutive whole chunks with a store per (layer, KV head).

    Parameters
    ----------
    parent
        address of the chunk before the first one.
    position
        position of the first token when its keys were computed.
    tokens
        token ids (S,).
    addresses
        of the chunks (N,).
    stores
        the stored numbers.
    """

    parent: bytes
    position: int
    tokens: Tokens
    addresses: tuple[bytes, ...]
    stores: Stores

    @property
    def n_chunks(self) -> int:
        """N."""
        return len(self.addresses)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return len(self.tokens) // self.n_chunks

    def cut(self, max_chunks: int) -> Iterator["Run"]:
        """Pieces of at most ``max_chunks`` chunks, with the same bits and memory of their own."""
        if self.n_chunks <= max_chunks:
            yield self
            return
        for first in range(0, self.n_chunks, max_chunks):
            chunks = slice(first, min(first + max_chunks, self.n_chunks))
            tokens = slice(first * self.chunk_tokens, chunks.stop * self.chunk_tokens)
            yield Run(
                self.addresses[first - 1] if first else self.parent,
                self.position + tokens.start,
                self.tokens[tokens],
                self.addresses[chunks],
                tuple(tuple(part(s, tokens, chunks) for s in layer) for layer in self.stores),
            )


def part(store: Store, tokens: slice, chunks: slice) -> Store:
    """Store of some of a store's chunks."""
    assert store.rep is not None
    assert store.rep_scale is not None
    return dataclasses.replace(
        store,
        k=store.k[tokens].copy(),
        v=store.v[tokens].copy(),
        k_scale=store.k_scale[tokens].copy(),
        v_scale=store.v_scale[tokens].copy(),
        rep=store.rep[chunks].copy(),
        rep_scale=store.rep_scale[chunks].copy(),
    )


def quantise(
    k: Float, v: Float, chunk_format: ChunkFormat, *, first_token: int, progress: bool
) -> Stores:
    """Make the stores of keys and values (L, G, S, D), whose first token is ``first_token``.

    Raises
    ------
    ValueError
        for a number that is not finite, naming layer, KV head and token.
    """
    n_layers, n_kv_heads = k.shape[:2]
    stores = []
    for layer in track(range(n_layers), "quantising", disable=not progress):
        heads = []
        for head in range(n_kv_heads):
            for name, x in (("k", k[layer, head]), ("v", v[layer, head])):
                if not np.isfinite(x).all():
                    token, element = np.argwhere(~np.isfinite(x))[0]
                    raise ValueError(
                        f"{name} must be finite, not {x[token, element]} in layer {layer}, "
                        f"KV head {head}, token {first_token + token}"
                    )
            heads.append(
                Store.from_float(
                    k[layer, head],
                    v[layer, head],
                    chunk_tokens=chunk_format.chunk_tokens,
                    router=chunk_format.router,
                )
            )
        stores.append(tuple(heads))
    return tuple(stores)
