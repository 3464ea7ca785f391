"""Lower bound of a job's cycles: what the arrays and the memory port need at the least."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from moska.gen.config import Config
from moska.golden.formats import CHUNK_MULTIPLE, KV_BITS, MAX_TOKENS, SCALE_BITS
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION_BYTES,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
)

FP32_BYTES = 4
REP_SCALE_BYTES = 4  # slot of a representative's scale


@dataclasses.dataclass(frozen=True)
class Bound:
    """Bound of one job, in cycles, and the bytes it stands on."""

    score: int  # cycles of the score array
    value: int  # cycles of the value array
    compute: int  # the longer of the two
    memory: int  # cycles of the slowest memory port
    bound: int  # the longer of compute and memory
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes that cross the memory ports, both directions."""
        return self.read_bytes + self.written_bytes

    @property
    def limit(self) -> str:
        """What binds: "compute" or "memory" ("compute" when they are equal)."""
        return "memory" if self.memory > self.compute else "compute"


def token_bytes(config: Config) -> int:
    """Bytes of a token in memory: its key, its value and a scale for each."""
    return 2 * (config.head_dim * KV_BITS + SCALE_BITS) // 8


def value_bytes(config: Config) -> int:
    """Bytes of a token's value without its scale: what the second read port carries."""
    return config.head_dim * KV_BITS // 8


def query_bytes(config: Config) -> int:
    """Bytes of a query row in memory, with its scale."""
    return (config.head_dim * config.q_bits + SCALE_BITS) // 8


def result_bytes(config: Config) -> int:
    """Bytes of a row's output and log-sum-exp."""
    return FP32_BYTES * (config.head_dim + 1)


def representative_bytes(config: Config) -> int:
    """Bytes of a representative row with the slot of its scale."""
    return config.head_dim * KV_BITS // 8 + REP_SCALE_BYTES


def checksum_bytes(config: Config) -> int:
    """Bytes read for a chunk's checksum record: at least a beat."""
    return max(CHECKSUM_BYTES, config.bus_bytes)


def balance_rows(config: Config) -> float:
    """Rows per token read from which on compute takes as long as memory."""
    token = token_bytes(config)
    if config.read_ports == 2:
        token = max(value_bytes(config), token - value_bytes(config))
    return token * config.query_tile / (config.memory_bytes_per_cycle * config.fold)


def bound(
    config: Config,
    *,
    n_rows: int,
    chunk_tokens: int,
    n_tokens: int,
    rows_per_chunk: ArrayLike,
    rep_rows: int,
    write_selection: bool = False,
    checksums: bool = False,
    route_only: bool = False,
) -> Bound:
    """Return the fewest cycles that a job can take.

    With F = fold, Mt = query_tile, M = n_rows, M_c = rows_per_chunk[c] and C_c the tokens of
    chunk c (chunk_tokens, less in the last chunk)::

        score   = F * (ceil(M / Mt) * Nc * r + sum over c of ceil(M_c / Mt) * C_c)
        value   = F * sum over c of ceil(M_c / Mt) * C_c
        compute = max(score, value)
        memory  = ceil(bytes / memory_bytes_per_cycle), of the slowest port
        bound   = max(compute, memory)

    The bytes are those of the descriptor, the queries, the representatives, the chunks with
    M_c > 0, the outputs, the log-sum-exps, the completion record and, if asked for, the checksum
    records of those chunks and the written selection (a line of 64 bytes per chunk). Reading an
    explicit selection is not counted. With two read ports, the values without their scales cross
    the second one, everything else the first one.

    Parameters
    ----------
    config
        the unit.
    n_rows
        M, query rows of the job.
    chunk_tokens
        tokens of a chunk, a multiple of 16.
    n_tokens
        tokens of the store.
    rows_per_chunk
        (Nc,) integers: rows that attend to each chunk, Nc = ceil(n_tokens / chunk_tokens).
    rep_rows
        r, representative rows of a chunk; 0 when the job is not routed.
    write_selection
        the job writes its selection to memory.
    checksums
        the job compares chunks with their checksums.
    route_only
        the job only selects, and writes its selection: no chunk is read, there are no outputs.

    Raises
    ------
    ValueError
        when a size is out of the unit's range or the sizes contradict each other.
    """
    if not 1 <= n_rows <= config.max_rows:
        raise ValueError(f"n_rows must be from 1 to max_rows ({config.max_rows}), not {n_rows}")
    if chunk_tokens < CHUNK_MULTIPLE or chunk_tokens % CHUNK_MULTIPLE:
        raise ValueError(
            f"chunk_tokens must be a positive multiple of {CHUNK_MULTIPLE}, not {chunk_tokens}"
        )
    if not 1 <= n_tokens <= MAX_TOKENS:
        raise ValueError(f"n_tokens must be from 1 to {MAX_TOKENS}, not {n_tokens}")
    n_chunks = -(-n_tokens // chunk_tokens)
    # A job that selects all chunks may have more.
    if rep_rows and n_chunks > config.max_chunks:
        raise ValueError(
            f"n_tokens must make at most max_chunks ({config.max_chunks}) chunks to route, "
            f"not {n_chunks}"
        )
    if rep_rows < 0:
        raise ValueError(f"rep_rows must be 0 or more, not {rep_rows}")
    if route_only and (rep_rows == 0 or not write_selection):
        raise ValueError(
            "route_only must come with rep_rows and write_selection, "
            f"not {rep_rows} and {write_selection}"
        )
    rows = np.asarray(rows_per_chunk)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"rows_per_chunk must be integers, not {rows.dtype}")
    if rows.shape != (n_chunks,):
        raise ValueError(f"rows_per_chunk must have shape ({n_chunks},), not {rows.shape}")
    if rows.min() < 0 or rows.max() > n_rows:
        raise ValueError(
            f"rows_per_chunk must be from 0 to n_rows ({n_rows}), "
            f"not [{rows.min()}, {rows.max()}]"
        )
    if route_only:
        rows = np.zeros(n_chunks, dtype=np.int64)

    tokens = np.full(n_chunks, chunk_tokens, dtype=np.int64)
    tokens[-1] = n_tokens - chunk_tokens * (n_chunks - 1)
    tiles = -(-rows.astype(np.int64) // config.query_tile)
    value = config.fold * int((tiles * tokens).sum())
    rep_beats = -(-n_rows // config.query_tile) * n_chunks * rep_rows
    score = config.fold * rep_beats + value
    compute = max(score, value)

    tokens_read = int(tokens[rows > 0].sum())
    read_bytes = (
        DESCRIPTOR_BYTES
        + n_rows * query_bytes(config)
        + n_chunks * rep_rows * representative_bytes(config)
        + tokens_read * token_bytes(config)
    )
    if checksums:
        read_bytes += int((rows > 0).sum()) * checksum_bytes(config)
    written_bytes = COMPLETION_BYTES
    if not route_only:
        written_bytes += n_rows * result_bytes(config)
    if write_selection:
        written_bytes += n_chunks * SELECTION_LINE

    ports = [read_bytes + written_bytes]
    if config.read_ports == 2:
        values = tokens_read * value_bytes(config)
        ports = [ports[0] - values, values]
    memory = -(-max(ports) // config.memory_bytes_per_cycle)
    return Bound(score, value, compute, memory, max(compute, memory), read_bytes, written_bytes)
