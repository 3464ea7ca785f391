"""How jobs, queries and KV stores lie in memory, and how results come back. Little endian.

Every array starts at a multiple of ALIGN bytes and is padded to one:

=============  ==========================================================================
queries        (M, D) int16, row after row; scales (M,) bfloat16
keys, values   (S, D) int8, row after row
scales         (S, 2) bfloat16: K scale, V scale of a token
representatives (N * r, D) int8; scales (N * r, 2) bfloat16: scale, unused
selection      N lines of 64 bytes: bit i of line c says that row i selected chunk c
results        O (M, D) float32; LSE (M,) float32, base 2
=============  ==========================================================================
"""

from collections.abc import Mapping
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import ALIGN, MAX_ROWS
from moska.golden.router import Bool

DESCRIPTOR_BYTES = 128
SELECTION_LINE = MAX_ROWS // 8


class Opcode(IntEnum):
    """What a descriptor asks for."""

    ATTEND = 1


class Selection(IntEnum):
    """Which chunks a row attends to."""

    ALL = 0
    TOP_K = 1
    EXPLICIT = 2


# Field of the descriptor: (offset, size), bytes.
DESCRIPTOR: Mapping[str, tuple[int, int]] = {
    "opcode": (0, 1),
    "selection": (1, 1),
    "router": (2, 1),
    "write_selection": (3, 1),
    "n_rows": (4, 2),
    "group": (6, 2),
    "n_tokens": (8, 4),
    "n_chunks": (12, 4),
    "chunk_tokens": (16, 4),
    "k": (20, 2),
    "rep_rows": (22, 2),
    "keep_first": (24, 2),
    "keep_last": (26, 2),
    "tag": (28, 4),
    "q_addr": (32, 8),
    "q_scale_addr": (40, 8),
    "k_addr": (48, 8),
    "v_addr": (56, 8),
    "scale_addr": (64, 8),
    "rep_addr": (72, 8),
    "rep_scale_addr": (80, 8),
    "selection_addr": (88, 8),
    "o_addr": (96, 8),
    "lse_addr": (104, 8),
}


def pack_descriptor(**fields: int) -> bytes:
    """Bytes of a descriptor; fields that are not given are 0.

    Raises
    ------
    ValueError
        for an unknown field or a value that does not fit.
    """
    raw = bytearray(DESCRIPTOR_BYTES)
    for name, value in fields.items():
        if name not in DESCRIPTOR:
            raise ValueError(f"descriptor field must be one of {sorted(DESCRIPTOR)}, not {name!r}")
        offset, size = DESCRIPTOR[name]
        if not 0 <= value < 1 << (8 * size):
            raise ValueError(f"{name} must fit {size} bytes, not {value}")
        raw[offset : offset + size] = int(value).to_bytes(size, "little")
    return bytes(raw)


def padded(raw: bytes) -> bytes:
    """``raw`` with zeros up to a multiple of ALIGN bytes."""
    return raw + bytes(-len(raw) % ALIGN)


def pack_array(array: NDArray[np.generic]) -> bytes:
    """Return an array's little-endian bytes, padded."""
    return padded(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def pack_scales(k_scale: NDArray[np.uint16], v_scale: NDArray[np.uint16] | None = None) -> bytes:
    """K and V scales (S,) side by side, padded; without ``v_scale`` the second place is 0."""
    v = np.zeros_like(k_scale) if v_scale is None else v_scale
    return pack_array(np.stack([k_scale.ravel(), v.ravel()], axis=-1))


def pack_selection(selected: Bool) -> bytes:
    """Turn a selection (M, N) into N lines."""
    lines = np.zeros((selected.shape[1], MAX_ROWS), dtype=bool)
    lines[:, : selected.shape[0]] = selected.T
    return np.packbits(lines, axis=1, bitorder="little").tobytes()


def unpack_selection(raw: bytes, n_rows: int) -> Bool:
    """Turn N lines back into a selection (M, N)."""
    lines = np.frombuffer(raw, dtype=np.uint8).reshape(-1, SELECTION_LINE)
    bits: Bool = np.unpackbits(lines, axis=1, bitorder="little").astype(bool)
    return bits[:, :n_rows].T
