"""Smoke test of a package: a small job in memory, and what the golden model says comes of it."""

import dataclasses
import hashlib

import numpy as np

from moska.gen.config import Config
from moska.golden.formats import BLOCK_TOKENS
from moska.golden.layout import (
    ALIGN,
    COMPLETION_BYTES,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
    Opcode,
    Selection,
    pack_array,
    pack_checksums,
    pack_descriptor,
    pack_scales,
    pack_selection,
    padded_size,
)
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, attend, route

RING = 0x1000
COMPLETIONS = RING + DESCRIPTOR_BYTES
INPUTS = COMPLETIONS + COMPLETION_BYTES
TAG = 0x5A17
CHUNKS, KEPT = 6, 3  # chunks of the store; those that a row attends to
FILL = 0xA5  # of result memory before the job; shows what was not written


@dataclasses.dataclass(frozen=True)
class Smoke:
    """Memory before the job, and the part of it that results are written to, after the job."""

    memory: bytes  # from address 0 on, a multiple of 4096 bytes
    results: bytes
    results_at: int  # address of the results, with a guard line behind each one


def noise(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Numbers from -1 to 1 that depend on the name and the shape only."""
    raw = hashlib.shake_256(name.encode()).digest(shape[0] * shape[1])
    return np.frombuffer(raw, dtype=np.int8).reshape(shape) / np.float32(128)


def smoke(config: Config) -> Smoke:
    """Routed job of two tiles of queries, one less a row, on six chunks, the last one short.

    Each row attends to three of the chunks; checksums are compared and the selection is written.
    """
    n_rows = min(2 * config.query_tile - 1, config.max_rows)
    shape = (CHUNKS * BLOCK_TOKENS - 5, config.head_dim)
    store = Store.from_float(
        noise("keys", shape), noise("values", shape), chunk_tokens=BLOCK_TOKENS
    )
    q, q_scale = quantize_q(4 * noise("queries", (n_rows, config.head_dim)))
    selected = route(store, q, q_scale, KEPT)
    result = attend(store, q, q_scale, selected)
    assert store.rep is not None
    assert store.rep_scale is not None

    memory = bytearray(INPUTS)

    def place(raw: bytes) -> int:
        memory.extend(bytes(padded_size(len(memory)) - len(memory)))
        address = len(memory)
        memory.extend(raw)
        return address

    fields = {
        "opcode": Opcode.ATTEND,
        "selection": Selection.TOP_K,
        "router": store.router,
        "write_selection": 1,
        "n_rows": n_rows,
        "group": 1,
        "n_tokens": store.n_tokens,
        "n_chunks": store.n_chunks,
        "chunk_tokens": store.chunk_tokens,
        "k": KEPT,
        "rep_rows": store.rep.shape[1],
        "keep_first": 1,
        "keep_last": 1,
        "tag": TAG,
        "checksum": 1,
        "q_addr": place(pack_array(q)),
        "q_scale_addr": place(pack_array(q_scale)),
        "rep_addr": place(pack_array(store.rep)),
        "rep_scale_addr": place(pack_scales(store.rep_scale)),
        "k_addr": place(pack_array(store.k)),
        "v_addr": place(pack_array(store.v)),
        "scale_addr": place(pack_scales(store.k_scale, store.v_scale)),
        "checksum_addr": place(
            pack_checksums(
                store.k, store.v, store.k_scale, store.v_scale, store.chunk_tokens
            )
        ),
    }
    written = {
        "o_addr": result.o.astype("<u4").tobytes(),
        "lse_addr": result.lse.astype("<u4").tobytes(),
        "selection_addr": pack_selection(selected),
    }
    assert len(written["selection_addr"]) == SELECTION_LINE * CHUNKS
    results_at = place(b"")
    results = bytearray()
    for name, raw in written.items():
        fields[name] = results_at + len(results)
        results += raw.ljust(padded_size(len(raw)) + ALIGN, bytes([FILL]))
    place(bytes([FILL]) * len(results))
    memory.extend(bytes(-len(memory) % 4096))
    memory[RING:COMPLETIONS] = pack_descriptor(**fields)
    return Smoke(bytes(memory), bytes(results), results_at)


def words(raw: bytes, size: int) -> str:
    """Lines for Verilog's $readmemh: words of ``size`` bytes, low byte last."""
    return "".join(
        f"{raw[at : at + size][::-1].hex()}\n" for at in range(0, len(raw), size)
    )
