"""Addresses of chunks: equal token ids behind an equal prefix have equal addresses.

An address is a SHA-256 over the address before it and the chunk's token ids; the first chunk
follows a root that stands for everything else that decides the stored bits (model, formats). An
address therefore names the whole prefix that ends with its chunk.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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
        raise ValueError(f"tokens must fit 32 bits, not [{ids.min()}, {ids.max()}]")
    return ids.astype(np.uint32)


def root_address(description: Mapping[str, object]) -> bytes:
    """Address that first chunks follow, from values that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).digest()


def chunk_address(parent: bytes, tokens: Tokens) -> bytes:
    """Address of the chunk with these token ids behind the chunk at ``parent``."""
    return hashlib.sha256(parent + tokens.astype("<u4").tobytes()).digest()


def chain(parent: bytes, tokens: Tokens, chunk_tokens: int) -> Iterator[bytes]:
    """Addresses of the whole chunks of ``tokens``, one after the other, behind ``parent``."""
    for start in range(0, len(tokens) - chunk_tokens + 1, chunk_tokens):
        parent = chunk_address(parent, tokens[start : start + chunk_tokens])
        yield parent


def short(address: bytes) -> str:
    """Return the first digits of an address, for messages."""
    return address.hex()[:12]
