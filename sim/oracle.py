"""What the unit must make of a descriptor, worked out from memory with the golden model."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from moska.gen.config import Config
from moska.golden.check import Window, arrays, check
from moska.golden.layout import (
    CHECKSUM_BYTES,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
    ErrorCode,
    Opcode,
    Selection,
    pack_selection,
    padded_size,
    unpack_selection,
)
from moska.golden.router import Bool, Router
from moska.golden.unit import Store, attend, route


class Injection(NamedTuple):
    """Accesses to these bytes are answered with an error."""

    kind: str  # "read" or "write"
    address: int
    size: int
    response: int = 2

    def meets(self, first: int, end: int) -> bool:
        """Whether a byte of it is in a range."""
        return self.address < end and first < self.address + self.size


class Span(NamedTuple):
    """Bytes from ``first`` up to ``end``."""

    first: int
    end: int


def unpack_descriptor(raw: bytes) -> dict[str, int]:
    """Fields of a descriptor."""
    return {
        name: int.from_bytes(raw[offset : offset + size], "little")
        for name, (offset, size) in DESCRIPTOR.items()
    }


def refusal(
    config: Config, fields: Mapping[str, int], address: int, read: Window, write: Window
) -> tuple[ErrorCode, int]:
    """Code and address with which a descriptor is refused, or NONE."""
    return check(
        fields,
        address=address,
        head_dim=config.head_dim,
        max_rows=config.max_rows,
        max_chunks=config.max_chunks,
        buffer_tokens=config.buffer_tokens,
        read_window=read,
        write_window=write,
    )


@dataclass(frozen=True)
class Expectation:
    """A job, as its descriptor and memory say; memory must hold still until it is judged."""

    config: Config
    fields: Mapping[str, int]
    address: int  # of the descriptor
    memory: np.ndarray
    injections: Sequence[Injection]
    read_window: Window
    write_window: Window

    def _array(self, field, count, dtype, offset=0):
        start = self.fields[field] + offset
        raw = self.memory[start : start + count * np.dtype(dtype).itemsize]
        return np.frombuffer(raw.tobytes(), dtype=dtype)

    @cached_property
    def attends(self) -> bool:
        """Whether there are outputs."""
        return self.fields["opcode"] == Opcode.ATTEND

    @cached_property
    def refused(self) -> tuple[ErrorCode, int]:
        """Code and address when the descriptor cannot be read or is not allowed."""
        words = range(self.address, self.address + DESCRIPTOR_BYTES, self.config.bus_bytes)
        for word in words:
            span = Span(word, word + self.config.bus_bytes)
            if any(i.kind == "read" and i.meets(*span) for i in self.injections):
                return ErrorCode.READ, word
        return refusal(
            self.config, self.fields, self.address, self.read_window, self.write_window
        )

    @cached_property
    def store(self) -> Store:
        """Keys, values and representatives in memory."""
        f, dim = self.fields, self.config.head_dim
        tokens, chunks = f["n_tokens"], f["n_chunks"]
        rep = rep_scale = None
        if f["selection"] == Selection.TOP_K:
            n_rep = chunks * f["rep_rows"]
            shape = (chunks, f["rep_rows"])
            rep = self._array("rep_addr", n_rep * dim, np.int8).reshape(*shape, dim)
            rep_scale = self._array("rep_scale_addr", 2 * n_rep, np.uint16)[::2].reshape(shape)
        if self.attends:
            scales = self._array("scale_addr", 2 * tokens, np.uint16).reshape(-1, 2)
            k = self._array("k_addr", tokens * dim, np.int8).reshape(-1, dim)
            v = self._array("v_addr", tokens * dim, np.int8).reshape(-1, dim)
        else:  # not used
            k = v = np.zeros((tokens, dim), np.int8)
            scales = np.zeros((tokens, 2), np.uint16)
        router = Router(f["router"])
        return Store(
            k, v, scales[:, 0], scales[:, 1], f["chunk_tokens"], router, rep, rep_scale
        )

    @cached_property
    def queries(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries and their scales."""
        n_rows, dim = self.fields["n_rows"], self.config.head_dim
        q = self._array("q_addr", n_rows * dim, np.int16).reshape(-1, dim)
        return q, self._array("q_scale_addr", n_rows, np.uint16)

    @cached_property
    def selected(self) -> Bool:
        """Chunks of each row."""
        f = self.fields
        if f["selection"] == Selection.ALL:
            return np.ones((f["n_rows"], f["n_chunks"]), dtype=bool)
        if f["selection"] == Selection.EXPLICIT:
            raw = self._array("selection_addr", f["n_chunks"] * SELECTION_LINE, np.uint8)
            return unpack_selection(raw.tobytes(), f["n_rows"])
        return route(
            self.store,
            *self.queries,
            f["k"],
            keep_first=f["keep_first"],
            keep_last=f["keep_last"],
            group=f["group"],
        )

    @cached_property
    def results(self) -> dict[int, bytes]:
        """What is at which address when the job is done."""
        f = self.fields
        found = {}
        if self.attends:
            result = attend(self.store, *self.queries, self.selected)
            found[f["o_addr"]] = result.o.astype("<u4").tobytes()
            found[f["lse_addr"]] = result.lse.astype("<u4").tobytes()
        if f["write_selection"]:
            found[f["selection_addr"]] = pack_selection(self.selected)
        return found

    @property
    def written(self) -> list[Span]:
        """Bytes that the job writes."""
        return [
            Span(self.fields[array.field], self.fields[array.field] + array.n_bytes)
            for array in arrays(self.fields, self.config.head_dim)
            if array.written
        ]

    @property
    def _per_token(self):
        """Arrays of chunks: field of the address, bytes of a token."""
        dim = self.config.head_dim
        return (("k_addr", dim), ("v_addr", dim), ("scale_addr", 4))

    def _chunks(self):
        """Chunks that are read: number, first token, tokens."""
        size = self.fields["chunk_tokens"]
        for chunk in np.flatnonzero(self.selected.any(axis=0)):
            first = int(chunk) * size
            yield int(chunk), first, min(size, self.fields["n_tokens"] - first)

    @cached_property
    def whole_reads(self) -> list[Span]:
        """Arrays that are read from end to end, whatever is selected."""
        chunked = {"k_addr", "v_addr", "scale_addr", "checksum_addr"}
        return [
            Span(self.fields[a.field], self.fields[a.field] + padded_size(a.n_bytes))
            for a in arrays(self.fields, self.config.head_dim)
            if not a.written and a.field not in chunked
        ]

    @cached_property
    def chunk_reads(self) -> list[Span]:
        """What is read of the chunks."""
        if not self.attends:
            return []
        found = []
        for chunk, first, n_tokens in self._chunks():
            for field, size in self._per_token:
                start = self.fields[field] + first * size
                found.append(Span(start, start + padded_size(n_tokens * size)))
            if self.fields["checksum"]:
                start = self.fields["checksum_addr"] + chunk * CHECKSUM_BYTES
                word = self.config.bus_bytes
                start = start // word * word
                found.append(Span(start, start + max(word, CHECKSUM_BYTES)))
        return found

    def read_errors(self) -> list[Span]:
        """Bus words that the job reads and that are answered with an error."""
        word = self.config.bus_bytes
        reads = [i for i in self.injections if i.kind == "read"]
        if not reads:
            return []

        def hit(spans):
            found = []
            for span in spans:
                for item in reads:
                    first = max(span.first, item.address // word * word)
                    end = min(span.end, item.address + item.size)
                    if first < end:
                        found.append(Span(first, end))
            return found

        # With a bad query or representative the selection, hence what else is read, is not known.
        return hit(self.whole_reads) or hit(self.chunk_reads)

    def checksum_errors(self) -> list[int]:
        """Addresses of the records that do not match their chunk."""
        if not (self.attends and self.fields["checksum"]):
            return []
        found = []
        for chunk, first, n_tokens in self._chunks():
            record = self._array("checksum_addr", 3, np.uint32, chunk * CHECKSUM_BYTES)
            sums = []
            for field, size in self._per_token:
                raw = self._array(field, padded_size(n_tokens * size), np.uint8, first * size)
                sums.append(zlib.crc32(raw.tobytes()))
            if sums != record.tolist():
                found.append(self.fields["checksum_addr"] + chunk * CHECKSUM_BYTES)
        return found

    def write_errors(self) -> list[tuple[int, int]]:
        """Ranges (first, last) that the address of a write error may have."""
        word = self.config.bus_bytes
        found = []
        for span in self.written:
            end = -(-span.end // word) * word
            for item in self.injections:
                if item.kind == "write" and item.meets(span.first, end):
                    last = min(end, item.address + item.size) - 1
                    found.append((span.first, last))
        return found

    def judge(self, code: ErrorCode, address: int, *, timed_out: bool) -> str | None:
        """Say what is wrong with an outcome; ``timed_out``: it took long enough for that."""
        got = f"{code.name} at {address:#x}"
        if self.refused[0] is not ErrorCode.NONE:
            wanted = f"{self.refused[0].name} at {self.refused[1]:#x}"
            return None if got == wanted else f"{got} instead of {wanted}"
        if code is ErrorCode.TIMEOUT:
            if not timed_out:
                return f"{got} before its time"
            return None if address == self.address else f"{got} instead of {self.address:#x}"
        if self.fields["opcode"] == Opcode.FENCE:
            return None if got == "NONE at 0x0" else f"{got} of a fence"
        reads = self.read_errors()
        # A selection that rests on bad data names no chunks.
        known = not any(
            span.first < read.end and read.first < span.end
            for read in reads
            for span in self.whole_reads
        )
        checksums = self.checksum_errors() if known else []
        if reads or checksums:
            if code is ErrorCode.READ and any(s.first <= address < s.end for s in reads):
                return None
            if code is ErrorCode.CHECKSUM and address in checksums:
                return None
            return f"{got} instead of READ in {reads} or CHECKSUM in {checksums}"
        writes = self.write_errors()
        if writes:
            if code is ErrorCode.WRITE and any(a <= address <= b for a, b in writes):
                return None
            return f"{got} instead of WRITE in {writes}"
        return None if got == "NONE at 0x0" else f"{got} of a good job"

    def wrong_result(self) -> str | None:
        """First result in memory that is not the golden model's."""
        for start, expected in self.results.items():
            actual = self.memory[start : start + len(expected)]
            wrong = np.flatnonzero(actual != np.frombuffer(expected, np.uint8))
            if len(wrong):
                return f"result at {start:#x}: {len(wrong)} bytes differ, first at {wrong[0]}"
        return None
