"""How jobs, queries and KV stores lie in memory, and how results come back. Little endian.

Every array starts at a multiple of ALIGN bytes and is padded to one:

=============  ==========================================================================
queries        (M, D) int16, row after row; scales (M,) bfloat16
keys, values   (S, D) int8, row after row
scales         (S, 2) bfloat16: K scale, V scale of a token
representatives (N * r, D) int8; scales (N * r, 2) bfloat16: scale, unused
checksums      N records of 16 bytes: CRC-32 of the chunk's keys, values and scales, then 0
selection      N lines of 64 bytes: bit i of line c says that row i selected chunk c
results        O (M, D) float32; LSE (M,) float32, base 2
=============  ==========================================================================

Jobs are entries of a ring of descriptors; each ends with a record in a ring of completions with as
many entries.
"""

import struct
import zlib
from collections.abc import Mapping
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import ALIGN, MAX_ROWS
from moska.golden.router import Bool

DESCRIPTOR_BYTES = 128
COMPLETION_BYTES = 128
CHECKSUM_BYTES = 16  # of a chunk
SELECTION_LINE = MAX_ROWS // 8


class Opcode(IntEnum):
    """What a descriptor asks for."""

    ATTEND = 1  # attention of rows over a store
    ROUTE = 2  # select chunks and write the selection; no attention
    FENCE = 3  # nothing; later descriptors are read when all earlier jobs are complete


class ErrorCode(IntEnum):
    """Why a job failed."""

    NONE = 0
    DESCRIPTOR = 1  # a field of the descriptor is not allowed
    READ = 2  # memory answered a read with an error
    WRITE = 3  # memory answered a write with an error
    WINDOW = 4  # an array, or the ring, lies outside the window of its master
    CHECKSUM = 5  # a chunk's bytes do not match its checksum
    TIMEOUT = 6  # the job took longer than allowed
    RING = 7  # more descriptors were announced than the ring holds; not an error of a job


class KVFormat(IntEnum):
    """How keys and values are stored."""

    INT8 = 0  # with a scale per token


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
    "checksum_addr": (112, 8),
    "checksum": (120, 1),  # 1: chunks are compared with their checksums
    "kv_format": (121, 1),
    "reserved": (122, 6),  # must be 0
}

# Field of a completion record: (offset, size), bytes. Counters are of the time from the completion
# before, or from the start when the unit was idle.
COMPLETION: Mapping[str, tuple[int, int]] = {
    "sequence": (0, 4),  # 1 for the first job of the ring, and so on, modulo 2**32
    "tag": (4, 4),  # of the descriptor
    "code": (8, 4),
    "error_addr": (16, 8),  # of the first error: what could not be read, written or accepted
    "cycles": (32, 4),
    "score_active": (36, 4),
    "stall_load": (40, 4),
    "stall_memory": (44, 4),
    "stall_query": (48, 4),
    "stall_softmax": (52, 4),
    "stall_select": (56, 4),
    "stall_drain": (60, 4),
    "stall_finish": (64, 4),
    "value_active": (68, 4),
    "read_beats": (72, 4),
    "write_beats": (76, 4),
    "chunks_read": (80, 4),
    "chunks_skipped": (84, 4),
}
COUNTERS = tuple(name for name, (offset, _) in COMPLETION.items() if offset >= 32)


def _record_struct() -> struct.Struct:
    """Fields of a completion, with what lies between them."""
    text, end = "<", 0
    for offset, size in COMPLETION.values():
        text += f"{offset - end}x" + {4: "I", 8: "Q"}[size]
        end = offset + size
    return struct.Struct(text)


_RECORD = _record_struct()


def pack_descriptor(**fields: int) -> bytes:
    """Bytes of a descriptor; fields that are not given are 0.

    Raises
    ------
    ValueError
        for an unknown field or a value that does not fit.
    """
    # One large number: a host packs many of them.
    packed = 0
    for name, value in fields.items():
        if name not in DESCRIPTOR:
            raise ValueError(f"descriptor field must be one of {sorted(DESCRIPTOR)}, not {name!r}")
        offset, size = DESCRIPTOR[name]
        if value >> (8 * size):
            raise ValueError(f"{name} must fit {size} bytes, not {value}")
        packed |= int(value) << (8 * offset)
    return packed.to_bytes(DESCRIPTOR_BYTES, "little")


def padded_size(n_bytes: int) -> int:
    """``n_bytes`` rounded up to a multiple of ALIGN."""
    return -(-n_bytes // ALIGN) * ALIGN


def padded(raw: bytes) -> bytes:
    """``raw`` with zeros up to a multiple of ALIGN bytes."""
    return raw.ljust(padded_size(len(raw)), b"\0")


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


def unpack_completion(raw: bytes) -> dict[str, int]:
    """Fields of a completion record."""
    return dict(zip(COMPLETION, _RECORD.unpack_from(raw), strict=True))


def pack_checksums(
    k: NDArray[np.int8],
    v: NDArray[np.int8],
    k_scale: NDArray[np.uint16],
    v_scale: NDArray[np.uint16],
    chunk_tokens: int,
) -> bytes:
    """Checksum records of all chunks, padded.

    CRC-32 (IEEE 802.3, as ``zlib.crc32``) over the chunk's bytes, for a short last chunk followed
    by zeros up to a multiple of ALIGN bytes, as in memory.
    """
    out = bytearray()
    for start in range(0, len(k), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        scales = pack_scales(k_scale[part], v_scale[part])
        arrays = (pack_array(k[part]), pack_array(v[part]), scales)
        for raw in arrays:
            out += zlib.crc32(raw).to_bytes(4, "little")
        out += bytes(CHECKSUM_BYTES - 12)
    return padded(bytes(out))
