"""A functional stand-in for the simulated device: the golden model behind its methods."""

import zlib

import numpy as np
import pytest

from moska.golden.formats import ALIGN
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION,
    COMPLETION_BYTES,
    COUNTERS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
    ErrorCode,
    Opcode,
    Selection,
    pack_array,
    pack_selection,
    unpack_selection,
)
from moska.golden.router import Router
from moska.golden.unit import Store
from moska.host import regmap
from moska.sim.job import Job

ACCESS_CYCLES = 5  # of a register access


class ModelDevice:
    """Runs jobs from the ring by the golden model, in order, and counts made-up cycles.

    A job takes ``ratio`` times its bound, and ``latency`` cycles more when the unit was idle. The
    attribute ``fault`` makes it misbehave: "silent" (no completion), "sequence" (a wrong number),
    "overrun" (a byte behind the LSE), "bit" (one bit of O of every third job), "counters" (causes
    that do not add up), "chunks" (a chunk counted twice).
    """

    def __init__(self, config, *, memory_bytes=1 << 20, ratio=1.03, latency=200, fault=None):
        self.config = config
        self.memory = np.zeros(memory_bytes, dtype=np.uint8)
        self.ratio, self.latency, self.fault = ratio, latency, fault
        self.cycle = 0
        self.options = None
        self.violations = []
        self.reset()

    def reset(self):
        self.registers = {}
        self.events = 0
        self.fetched = self.completed = 0
        self.error = (0, 0, 0)
        self.free_at = self.cycle
        self.queue = []  # (completion cycle, descriptor address)

    def timing(self, **options):
        self.options = options

    def allow(self, *, read, write):
        self.allowed = {"read": read, "write": write}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    # memory and registers -----------------------------------------------------------------------

    def read(self, address, size):
        assert address + size <= len(self.memory)
        return self.memory[address : address + size].tobytes()

    def write(self, address, raw):
        assert address + len(raw) <= len(self.memory)
        self.memory[address : address + len(raw)] = np.frombuffer(raw, dtype=np.uint8)

    def read32(self, offset):
        self._advance(ACCESS_CYCLES)
        code, sequence, address = self.error
        live = {
            regmap.EVENT: self.events,
            regmap.COMPLETED: self.completed & 0xFFFF,
            regmap.HEAD: self.fetched & 0xFFFF,
            regmap.ERROR: code,
            regmap.ERROR_SEQUENCE: sequence,
            regmap.ERROR_ADDRESS_LO: address & 0xFFFFFFFF,
            regmap.ERROR_ADDRESS_HI: address >> 32,
        }
        return live.get(offset, self.registers.get(offset, 0))

    def write32(self, offset, value):
        self._advance(ACCESS_CYCLES)
        if offset == regmap.EVENT:
            self.events &= ~value
            return
        self.registers[offset] = value
        if offset == regmap.TAIL:
            self._doorbell(value)

    def address(self, name):
        low, high = getattr(regmap, f"{name}_LO"), getattr(regmap, f"{name}_HI")
        return self.registers[low] | self.registers[high] << 32

    @property
    def interrupt(self):
        return bool(self.events & self.registers.get(regmap.MASK, 0))

    def run(self, max_cycles, until_interrupt=True):
        end = self.cycle + max_cycles
        while self.cycle < end and not (until_interrupt and self.interrupt):
            due = self.queue[0][0] if self.queue and self.fault != "silent" else end
            self._advance(max(0, min(due, end) - self.cycle))

    # jobs ---------------------------------------------------------------------------------------

    def _doorbell(self, tail):
        assert self.registers[regmap.CONTROL] & 1
        entries = 1 << self.registers[regmap.RING_SIZE]
        if (tail - self.completed) & 0xFFFF > entries:
            self._set_error(ErrorCode.RING, 0, tail)
            return
        while self.fetched & 0xFFFF != tail:
            address = self.address("RING") + self.fetched % entries * DESCRIPTOR_BYTES
            self.fetched += 1
            fields = self._descriptor(address)
            job = self._job(fields)
            bound = 16 if job is None else job.bound(self.config, job.selected()).bound
            if not self.queue:
                self.free_at = self.cycle + self.latency
            self.free_at += round(bound * self.ratio)
            self.queue.append((self.free_at, address, fields, job, bound))

    def _advance(self, cycles):
        self.cycle += cycles
        while self.queue and self.queue[0][0] <= self.cycle and self.fault != "silent":
            _, address, fields, job, bound = self.queue.pop(0)
            self._complete(address, fields, job, bound)

    def _descriptor(self, address):
        raw = self.read(address, DESCRIPTOR_BYTES)
        return {
            name: int.from_bytes(raw[offset : offset + size], "little")
            for name, (offset, size) in DESCRIPTOR.items()
        }

    def _array(self, address, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.read(address, size), dtype=dtype).reshape(shape)

    def _job(self, f):
        """Return the job that a descriptor describes, read from memory; None if it is none."""
        if f["opcode"] not in (Opcode.ATTEND, Opcode.ROUTE) or f["reserved"]:
            return None
        dim = self.config.head_dim
        tokens, chunks, rows = f["n_tokens"], f["n_chunks"], f["n_rows"]
        routed = f["selection"] == Selection.TOP_K
        scales = self._array(f["scale_addr"], (tokens, 2), "<u2")
        rep = rep_scale = explicit = None
        if routed:
            reps = f["rep_rows"]
            rep = self._array(f["rep_addr"], (chunks, reps, dim), np.int8)
            rep_scale = self._array(f["rep_scale_addr"], (chunks, reps, 2), "<u2")[:, :, 0]
        if f["selection"] == Selection.EXPLICIT:
            raw = self.read(f["selection_addr"], chunks * SELECTION_LINE)
            explicit = unpack_selection(raw, rows)
        store = Store(
            self._array(f["k_addr"], (tokens, dim), np.int8),
            self._array(f["v_addr"], (tokens, dim), np.int8),
            scales[:, 0],
            scales[:, 1],
            f["chunk_tokens"],
            Router(f["router"]),
            rep,
            rep_scale,
        )
        return Job(
            store,
            self._array(f["q_addr"], (rows, dim), "<i2").astype(np.int16),
            self._array(f["q_scale_addr"], (rows,), "<u2").astype(np.uint16),
            k=f["k"] if routed else None,
            keep_first=f["keep_first"],
            keep_last=f["keep_last"],
            group=f["group"],
            explicit=explicit,
            opcode=Opcode(f["opcode"]),
            checksum=bool(f["checksum"]),
        )

    def _checksum_error(self, f, job):
        """Address of the first checksum record that does not match, or None."""
        if not job.checksum:
            return None
        store = job.store
        for index in range(store.n_chunks):
            part = slice(*(store.chunk(index)[i] for i in (0, -1)))
            part = slice(part.start, part.stop + 1)
            scales = np.stack([store.k_scale[part], store.v_scale[part]], axis=-1)
            address = f["checksum_addr"] + index * CHECKSUM_BYTES
            stored = self._array(address, (3,), "<u4")
            arrays = (store.k[part], store.v[part], scales)
            if list(stored) != [zlib.crc32(pack_array(array)) for array in arrays]:
                return address
        return None

    def _set_error(self, code, sequence, address):
        if not self.events & regmap.EVENT_ERROR_MASK:
            self.error = (int(code), sequence, address)
        self.events |= regmap.EVENT_ERROR_MASK

    def _complete(self, address, f, job, bound):
        sequence = self.completed + 1
        code, error_addr = ErrorCode.NONE, 0
        if job is None and f["opcode"] != Opcode.FENCE:
            code, error_addr = ErrorCode.DESCRIPTOR, address + DESCRIPTOR["opcode"][0]
        elif job is not None and (bad := self._checksum_error(f, job)) is not None:
            code, error_addr = ErrorCode.CHECKSUM, bad
        elif job is not None:
            self._write_results(f, job, sequence)
        cycles = round(bound * self.ratio) + (self.latency if sequence == 1 else 0)
        chunks = 0
        if job is not None and job.attends:
            chunks = int(job.selected().any(axis=0).sum())
        record = dict.fromkeys(COUNTERS, 0) | {
            "chunks_read": chunks + (self.fault == "chunks"),
            "cycles": cycles,
            "score_active": bound,
            "stall_memory": cycles - bound - (self.fault == "counters"),
            "sequence": sequence + (self.fault == "sequence"),
            "tag": f["tag"],
            "code": int(code),
            "error_addr": error_addr,
        }
        raw = bytearray(COMPLETION_BYTES)
        for name, (offset, size) in COMPLETION.items():
            raw[offset : offset + size] = record[name].to_bytes(size, "little")
        entry = self.completed % (1 << self.registers[regmap.RING_SIZE])
        self.write(self.address("COMPLETION") + entry * COMPLETION_BYTES, bytes(raw))
        self.completed += 1
        self.events |= regmap.EVENT_DONE_MASK
        if code:
            self._set_error(code, sequence, error_addr)

    def _write_results(self, f, job, sequence):
        result = job.expected()
        if job.attends:
            o = result.o.copy()
            if self.fault == "bit" and sequence % 3 == 0:
                o[0, 0] ^= 1
            self.write(f["o_addr"], o.astype("<u4").tobytes())
            self.write(f["lse_addr"], result.lse.astype("<u4").tobytes())
            if self.fault == "overrun":
                end = f["lse_addr"] + -(-4 * len(result.lse) // ALIGN) * ALIGN
                self.write(end, b"\x01")
        if f["write_selection"]:
            self.write(f["selection_addr"], pack_selection(result.selected))


@pytest.fixture(scope="session")
def model_device():
    """Class of the stand-in."""
    return ModelDevice
