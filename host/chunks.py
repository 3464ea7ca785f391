"""Chunks of tokens: what decides their stored bits, and their addresses.

An address is a SHA-256 over the address before it and the chunk's token ids; the first chunk
follows a root that stands for everything else that decides the stored bits: model and formats. An
address therefore names the whole prefix that ends with its chunk, and equal token ids behind equal
prefixes have equal addresses, whoever brings them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import CHUNK_MULTIPLE, MAX_TOKENS
from moska.golden.layout import CHECKSUM_BYTES, KVFormat, padded_size
from moska.golden.router import Router, router_kind
from moska.host.geometry import Geometry

Tokens = NDArray[np.uint32]
TokenIds = Sequence[int] | NDArray[np.integer]


def token_array(tokens: TokenIds) -> Tokens:
    """Token ids (S,) as uint32.

    Raises
    ------
    TypeError
        when they are not integers.
    ValueError
        when they are not a flat sequence or do not fit 32 bits.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1:
        raise ValueError(f"tokens must be a flat sequence, not of shape {ids.shape}")
    if not ids.size:
        return np.zeros(0, np.uint32)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"tokens must be integers, not {ids.dtype}")
    if ids.min() < 0 or ids.max() > 0xFFFFFFFF:
        raise ValueError(f"tokens must fit 32 bits, not {ids.min()}..{ids.max()}")
    return ids.astype(np.uint32)


def short(address: bytes) -> str:
    """Return the first digits of an address, for messages."""
    return address.hex()[:12]


def chain(parent: bytes, tokens: Tokens, chunk_tokens: int) -> Iterator[bytes]:
    """Addresses of the whole chunks of ``tokens``, one after the other, behind ``parent``."""
    raw = tokens.astype("<u4").tobytes()
    size = 4 * chunk_tokens
    for start in range(0, len(raw) - size + 1, size):
        parent = hashlib.sha256(parent + raw[start : start + size]).digest()
        yield parent


@dataclass(frozen=True)
class ChunkFormat:
    """Everything but the tokens that decides the stored bits of a chunk.

    Parameters
    ----------
    geometry
        of the model.
    chunk_tokens
        tokens of a chunk, a multiple of 16.
    router
        ``mean``, ``minmax`` or ``submean:n``.
    """

    geometry: Geometry
    chunk_tokens: int
    router: str

    def __post_init__(self) -> None:
        size = self.chunk_tokens
        if not CHUNK_MULTIPLE <= size <= MAX_TOKENS or size % CHUNK_MULTIPLE:
            raise ValueError(
                f"chunk_tokens must be a positive multiple of {CHUNK_MULTIPLE}, not {size}"
            )
        _, mean_tokens = router_kind(self.router)
        if mean_tokens and size % mean_tokens:
            raise ValueError(
                f"chunk_tokens must be a multiple of submean's {mean_tokens}, not {size}"
            )

    @cached_property
    def root(self) -> bytes:
        """Address that first chunks follow."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).digest()

    def addresses(self, tokens: Tokens) -> tuple[bytes, ...]:
        """Addresses of a text's whole chunks."""
        return tuple(chain(self.root, tokens, self.chunk_tokens))

    @property
    def rep_rows(self) -> int:
        """Representative rows of a chunk, r."""
        kind, mean_tokens = router_kind(self.router)
        if kind is Router.MINMAX:
            return 2
        return self.chunk_tokens // mean_tokens if mean_tokens else 1

    def nbytes(self, n_chunks: int, *, checksums: bool) -> int:
        """Device memory of ``n_chunks`` chunks in one piece, over all layers and KV heads."""
        dim, n_tokens = self.geometry.head_dim, n_chunks * self.chunk_tokens
        rows = n_chunks * self.rep_rows
        arrays = [n_tokens * dim, n_tokens * dim, 4 * n_tokens, rows * dim, 4 * rows]
        if checksums:
            arrays.append(CHECKSUM_BYTES * n_chunks)
        store = sum(map(padded_size, arrays))
        return self.geometry.n_layers * self.geometry.n_kv_heads * store

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "geometry": self.geometry.to_dict(),
            "kv_format": KVFormat.INT8.name,
            "chunk_tokens": self.chunk_tokens,
            "router": self.router,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ChunkFormat":
        """Format that :meth:`to_dict` described."""
        if fields["kv_format"] != KVFormat.INT8.name:
            raise ValueError(f"kv_format must be {KVFormat.INT8.name}, not {fields['kv_format']}")
        geometry = Geometry.from_dict(fields["geometry"])
        return cls(geometry, fields["chunk_tokens"], fields["router"])
