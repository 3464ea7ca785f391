"""The unit without its hardware: the golden model behind the registers and the memory."""

import dataclasses
import math
import zlib

import numpy as np

from moska.gen.bound import Bound
from moska.gen.config import Config
from moska.golden.check import check, inside
from moska.golden.formats import BLOCK_TOKENS
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
    pack_selection,
    padded_size,
    unpack_selection,
)
from moska.golden.router import Router
from moska.golden.unit import Result, Store
from moska.host import regmap
from moska.sim.job import Job, routed_only
from moska.sim.quick import attend

ACCESS_CYCLES = 5  # of a register access
FENCE_CYCLES = 16  # of a job that does nothing
PAGE = 4096  # that a burst does not cross
BURST_BEATS = 256  # of a burst, at most
ALL = (1 << 64) - 1

RESET_VALUES = {
    regmap.ID: regmap.ID_VALUE,
    regmap.VERSION: regmap.VERSION_MAP_VALUE
    | regmap.VERSION_GENERATOR_VALUE << regmap.VERSION_GENERATOR_SHIFT,
    **dict.fromkeys(
        (
            regmap.READ_LIMIT_LO, regmap.READ_LIMIT_HI, regmap.WRITE_LIMIT_LO,
            regmap.WRITE_LIMIT_HI,
        ),
        0xFFFFFFFF,
    ),
}  # fmt: skip
WRITABLE = {
    regmap.RING_LO, regmap.RING_HI, regmap.COMPLETION_LO, regmap.COMPLETION_HI, regmap.RING_SIZE,
    regmap.MASK, regmap.TIMEOUT, regmap.SCRATCH,
}  # fmt: skip
READABLE = {
    value for name, value in vars(regmap).items()
    if name.isupper() and isinstance(value, int)
    and not name.endswith(("_SHIFT", "_MASK", "_VALUE"))
}  # fmt: skip


class _Fault(Exception):
    """Ends a job: an error code and its address."""

    def __init__(self, code: ErrorCode, address: int):
        super().__init__(code, address)
        self.code = code
        self.address = address


@dataclasses.dataclass
class _Injection:
    is_write: bool
    first: int
    end: int
    left: int | None  # accesses that still meet it; None: all


@dataclasses.dataclass
class _Work:
    """A job under way: what it will write, and when."""

    fields: dict[str, int]  # of the descriptor
    code: ErrorCode = ErrorCode.NONE
    error_address: int = 0
    result: Result | None = None  # None: nothing to write
    chunks_read: int = 0
    bound: Bound | None = None  # of the cycles
    cycles: int = FENCE_CYCLES
    due: int = 0  # cycle of the completion

    @property
    def active(self) -> int:
        """Cycles that are not lost."""
        return min(self.cycles, FENCE_CYCLES if self.bound is None else self.bound.bound)


class ModelDevice:
    """Registers, rings and memory of a unit whose jobs the golden model computes.

    It has the methods of :class:`moska.sim.device.Device`. Jobs run one by one, in order, as if a
    fence stood between any two. Results, errors and the counters of chunks are those of the unit;
    cycles are made up: ``ratio`` times the bound of the job, and ``latency`` more when the unit
    was idle.

    Parameters
    ----------
    config
        the unit
    memory_bytes, base
        size and first address of memory; multiples of 4096
    memory
        array to use as memory, instead of ``memory_bytes`` of its own
    ratio, latency
        of the cycles
    """

    def __init__(
        self,
        config: Config,
        *,
        memory_bytes: int = 1 << 26,
        base: int = 0,
        memory: np.ndarray | None = None,
        ratio: float = 1.0,
        latency: int = 0,
    ):
        self.config = config
        self.memory = np.zeros(memory_bytes, dtype=np.uint8) if memory is None else memory
        self.base = base
        self.ratio, self.latency = ratio, latency
        self.cycle = 0
        self.violations: list[str] = []
        self._injections: list[_Injection] = []
        self._constants = RESET_VALUES | {
            offset: BLOCK_TOKENS if name == "block_tokens" else getattr(config, name)
            for name, offset in regmap.PARAMETERS.items()
        }
        self.reset()

    def reset(self, cycles: int = 8) -> None:
        """Reset the unit; memory stays as it is."""
        self.cycle += cycles
        self._registers = dict(self._constants)
        self._events = 0
        self._fetched = self._completed = self._sequence = 0
        self._refused = False  # the last doorbell: nothing is fetched until a good one
        self._error = (0, 0, 0)
        self._work: _Work | None = None

    def timing(self, **options) -> None:
        """Take the options of :meth:`moska.sim.device.Device.timing`; they change no result."""

    # Memory ------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory."""
        return self.memory[self._range(address, size)].tobytes()

    def write(self, address: int, raw: bytes) -> None:
        """Write into memory."""
        self.memory[self._range(address, len(raw))] = np.frombuffer(raw, dtype=np.uint8)

    def _range(self, address: int, size: int) -> slice:
        offset = address - self.base
        if offset < 0 or size < 0 or offset + size > len(self.memory):
            raise ValueError(
                f"memory has {len(self.memory):#x} bytes from {self.base:#x} on; {size} bytes at "
                f"{address:#x} are not in it"
            )
        return slice(offset, offset + size)

    def inject(
        self, *, kind: str, address: int, size: int, response: int = 2, count: int | None = None
    ) -> None:
        """Answer the unit's accesses to these bytes with an error.

        ``count`` accesses (arrays read, bursts written), or all.
        """
        if kind not in ("read", "write"):
            raise ValueError(f"kind must be 'read' or 'write', not {kind!r}")
        if response not in (2, 3):
            raise ValueError(f"response must be 2 (SLVERR) or 3 (DECERR), not {response}")
        self._injections.append(_Injection(kind == "write", address, address + size, count))

    def clear_injections(self) -> None:
        """Answer all accesses to memory with OKAY again."""
        self._injections.clear()

    def _hit(self, is_write: bool, address: int, size: int) -> int | None:
        """Return the first address of an access that gets an error, None when there is none."""
        hits = []
        for item in self._injections:
            met = address < item.end and item.first < address + size
            if met and item.is_write == is_write and item.left != 0:
                if item.left is not None:
                    item.left -= 1
                hits.append(max(item.first, address))
        end = self.base + len(self.memory)
        if address < self.base:
            hits.append(address)
        elif address + size > end:
            hits.append(max(address, end))
        return min(hits, default=None)

    def _view(self, address: int, size: int) -> np.ndarray:
        """Bytes of memory without a copy; zeros where there is none."""
        if inside(address, size, (self.base, self.base + len(self.memory) - 1)):
            return self.memory[address - self.base : address - self.base + size]
        return np.zeros(size, dtype=np.uint8)

    def _load(self, address: int, size: int) -> np.ndarray:
        """Bytes as the unit reads them, in whole bus words."""
        word = self.config.bus_bytes
        if (hit := self._hit(False, address, -(-size // word) * word)) is not None:
            raise _Fault(ErrorCode.READ, hit // word * word)
        return self._view(address, size)

    def _save(self, address: int, raw: bytes) -> None:
        """Write as the unit does, up to the first burst that gets an error."""
        largest = min(BURST_BEATS * self.config.bus_bytes, PAGE)
        hit = self._hit(True, address, len(raw))
        end = len(raw) if hit is None else max(0, hit // largest * largest - address)
        self.write(address, raw[:end])
        if hit is not None:
            raise _Fault(ErrorCode.WRITE, address + end)

    # Registers ---------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """Read a register."""
        self._advance(ACCESS_CYCLES)
        if offset not in READABLE:
            raise RuntimeError(f"read of register {offset:#05x}: DECERR")
        code, sequence, address = self._error
        live = {
            regmap.STATUS: regmap.STATUS_BUSY_MASK | 1 << regmap.STATUS_JOBS_SHIFT
            if self._work
            else 0,
            regmap.EVENT: self._events,
            regmap.COMPLETED: self._completed & 0xFFFF,
            regmap.HEAD: self._fetched & 0xFFFF,
            regmap.ERROR: code,
            regmap.ERROR_SEQUENCE: sequence,
            regmap.ERROR_ADDRESS_LO: address & 0xFFFFFFFF,
            regmap.ERROR_ADDRESS_HI: address >> 32,
        }
        return live.get(offset, self._registers.get(offset, 0))

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        self._advance(ACCESS_CYCLES)
        if offset not in READABLE:
            raise RuntimeError(f"write of register {offset:#05x}: DECERR")
        if offset == regmap.EVENT:
            self._events &= ~value
        elif offset == regmap.TAIL:
            self._registers[offset] = value & 0xFFFF
            self._doorbell()
        elif offset == regmap.CONTROL:
            self._registers[offset] = value & regmap.CONTROL_ENABLE_MASK
            self._restart_rings()
            self._start()
        elif offset in WRITABLE:
            self._registers[offset] = value
        elif offset in regmap.WINDOW.values() and not self._registers.get(regmap.LOCK):
            self._registers[offset] = value & 1 if offset == regmap.LOCK else value

    def _pair(self, name: str) -> int:
        low, high = (getattr(regmap, f"{name}_{half}") for half in ("LO", "HI"))
        return self._registers.get(low, 0) | self._registers.get(high, 0) << 32

    def _window(self, direction: str) -> tuple[int, int]:
        return self._pair(f"{direction}_BASE"), self._pair(f"{direction}_LIMIT")

    @property
    def _enabled(self) -> bool:
        return bool(self._registers.get(regmap.CONTROL, 0))

    @property
    def _entries(self) -> int:
        return 1 << self._registers.get(regmap.RING_SIZE, 0)

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt."""
        return bool(self._events & self._registers.get(regmap.MASK, 0))

    def _set_error(self, code: ErrorCode, sequence: int, address: int) -> None:
        if not self._events & regmap.EVENT_ERROR_MASK:
            self._error = (int(code), sequence & 0xFFFFFFFF, address)
        self._events |= regmap.EVENT_ERROR_MASK

    # Rings -------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Jobs that are announced and not complete."""
        return (self._registers.get(regmap.TAIL, 0) - self._completed) & 0xFFFF

    def run(self, max_cycles: int, *, until_interrupt: bool = True) -> int:
        """Run until the interrupt is high, at most ``max_cycles``; return the cycles run."""
        start, end = self.cycle, self.cycle + max_cycles
        while self.cycle < end and not (until_interrupt and self.interrupt):
            due = end if self._work is None else self._work.due
            self._advance(max(0, min(due, end) - self.cycle))
        return self.cycle - start

    def run_job(self) -> bool:
        """Run until the job under way is complete; return False when there is none."""
        if self._work is None:
            return False
        self._advance(max(0, self._work.due - self.cycle))
        return True

    def _advance(self, cycles: int) -> None:
        self.cycle += cycles
        while self._work is not None and self._work.due <= self.cycle:
            work = self._work
            self._complete(work)
            self._work = None
            self._restart_rings()
            self._start(work.due)

    def _restart_rings(self) -> None:
        if not self._enabled and self._work is None:
            self._fetched = self._completed = self._sequence = 0
            self._refused = False

    def _doorbell(self) -> None:
        tail = self._registers[regmap.TAIL]
        self._refused = True
        if (tail - self._completed) & 0xFFFF > self._entries:
            self._set_error(ErrorCode.RING, 0, tail)
            return
        for direction, name in (("READ", "RING"), ("WRITE", "COMPLETION")):
            address = self._pair(name)
            if not inside(address, self._entries * DESCRIPTOR_BYTES, self._window(direction)):
                self._set_error(ErrorCode.WINDOW, 0, address)
                return
        self._refused = False
        self._start()

    def _start(self, now: int | None = None) -> None:
        """Take up the next job, at cycle ``now`` when the unit was busy until then."""
        waiting = (self._registers.get(regmap.TAIL, 0) - self._fetched) & 0xFFFF
        if self._work is not None or not self._enabled or self._refused or not waiting:
            return
        address = self._pair("RING") + self._fetched % self._entries * DESCRIPTOR_BYTES
        self._fetched += 1
        work = self._run_job(address)
        if now is None:
            now = self.cycle
            work.cycles += self.latency
        limit = self._registers.get(regmap.TIMEOUT, 0)
        if limit and work.cycles > limit and work.code is ErrorCode.NONE:
            work.code, work.error_address, work.result = ErrorCode.TIMEOUT, address, None
            work.cycles = limit
        work.due = now + work.cycles
        self._work = work

    def _complete(self, work: _Work) -> None:
        """Write the results and the record of a job, and tell the host."""
        self._sequence += 1
        if work.result is not None:
            try:
                self._write_results(work)
            except _Fault as fault:
                work.code, work.error_address = fault.code, fault.address
        record = self._record(work)
        raw = bytearray(COMPLETION_BYTES)
        for name, (offset, size) in COMPLETION.items():
            raw[offset : offset + size] = (record[name] & ((1 << 8 * size) - 1)).to_bytes(
                size, "little"
            )
        code, address = work.code, work.error_address
        entry = self._pair("COMPLETION") + self._completed % self._entries * COMPLETION_BYTES
        try:
            self._save(entry, bytes(raw))
        except _Fault as fault:
            if not code:
                code, address = fault.code, fault.address
        self._registers |= {offset: record[name] for name, offset in regmap.COUNTERS.items()
                            if name in record}  # fmt: skip
        for name, step in (("JOBS", 1), ("ERRORS", int(bool(code)))):
            offset = getattr(regmap, name)
            self._registers[offset] = (self._registers.get(offset, 0) + step) & 0xFFFFFFFF
        self._completed += 1
        self._events |= regmap.EVENT_DONE_MASK
        if code:
            self._set_error(code, self._sequence, address)

    def _record(self, work: _Work) -> dict[str, int]:
        """Fields of a job's completion."""
        skipped = read = written = 0
        if work.bound is not None:
            skipped = work.fields["n_chunks"] - work.chunks_read
            read, written = work.bound.read_bytes, work.bound.written_bytes
        return dict.fromkeys(COUNTERS, 0) | {
            "sequence": self._sequence,
            "tag": work.fields["tag"],
            "code": int(work.code),
            "error_addr": work.error_address,
            "cycles": work.cycles,
            "score_active": work.active,
            "stall_memory": work.cycles - work.active,
            "chunks_read": work.chunks_read,
            "chunks_skipped": skipped,
            "read_beats": -(-read // self.config.bus_bytes),
            "write_beats": -(-written // self.config.bus_bytes),
        }

    # Jobs --------------------------------------------------------------------------------------

    def _run_job(self, address: int) -> _Work:
        """Do what a descriptor says, up to its results."""
        work = _Work(dict.fromkeys(DESCRIPTOR, 0))
        try:
            raw = self._load(address, DESCRIPTOR_BYTES).tobytes()
            work.fields = {
                name: int.from_bytes(raw[offset : offset + size], "little")
                for name, (offset, size) in DESCRIPTOR.items()
            }
            code, error_address = check(
                work.fields, address=address,
                head_dim=self.config.head_dim, max_rows=self.config.max_rows,
                max_chunks=self.config.max_chunks, buffer_tokens=self.config.buffer_tokens,
                read_window=self._window("READ"), write_window=self._window("WRITE"),
            )  # fmt: skip
            if code:
                raise _Fault(code, error_address)
            if work.fields["opcode"] != Opcode.FENCE:
                self._attend(work)
        except _Fault as fault:
            work.code, work.error_address, work.result = fault.code, fault.address, None
        return work

    def _attend(self, work: _Work) -> None:
        """Compute a job's result."""
        job = self._job(work.fields)
        selected = job.selected()
        if job.attends:
            wanted = selected.any(axis=0)
            self._read_chunks(work.fields, job, wanted)
            work.chunks_read = int(wanted.sum())
            work.result = attend(job.store, job.q, job.q_scale, selected)
        else:
            work.result = routed_only(selected, self.config.head_dim)
        work.bound = job.bound(self.config, selected)
        work.cycles = round(work.bound.bound * self.ratio)

    def _job(self, f: dict[str, int]) -> Job:
        """Return the job that a legal descriptor describes; its arrays are views of memory.

        Keys, values and their scales meet no error here: those of chunks that the job selects are
        read by :meth:`_read_chunks`.
        """
        dim = self.config.head_dim
        tokens, chunks, rows = f["n_tokens"], f["n_chunks"], f["n_rows"]
        routed = f["selection"] == Selection.TOP_K

        def array(name, shape, dtype, get=self._load):
            size = math.prod(shape) * np.dtype(dtype).itemsize
            return get(f[name], size).view(dtype).reshape(shape)

        explicit = rep = rep_scale = None
        if f["selection"] == Selection.EXPLICIT:
            lines = array("selection_addr", (chunks, SELECTION_LINE), "u1")
            explicit = unpack_selection(lines, rows)
        q_scale = array("q_scale_addr", (rows,), "<u2")
        q = array("q_addr", (rows, dim), "<i2")
        if routed:
            shape = (chunks, f["rep_rows"])
            rep = array("rep_addr", (*shape, dim), "i1")
            rep_scale = array("rep_scale_addr", (*shape, 2), "<u2")[:, :, 0]
        if f["opcode"] == Opcode.ATTEND:
            k, v = (array(name, (tokens, dim), "i1", self._view) for name in ("k_addr", "v_addr"))
            scales = array("scale_addr", (tokens, 2), "<u2", self._view)
        else:
            k = v = np.broadcast_to(np.int8(0), (tokens, dim))
            scales = np.broadcast_to(np.uint16(0), (tokens, 2))
        store = Store(
            k, v, scales[:, 0], scales[:, 1], f["chunk_tokens"], Router(f["router"]), rep, rep_scale
        )
        return Job(
            store, q, q_scale,
            k=f["k"] if routed else None,
            keep_first=f["keep_first"], keep_last=f["keep_last"], group=f["group"],
            explicit=explicit,
            opcode=Opcode(f["opcode"]),
            checksum=bool(f["checksum"]),
        )  # fmt: skip

    def _read_chunks(self, fields: dict[str, int], job: Job, wanted: np.ndarray) -> None:
        """Meet the errors of the chunks that a job reads: of memory, and of checksums."""
        dim = self.config.head_dim
        token_bytes = {"k_addr": dim, "v_addr": dim, "scale_addr": 4}
        for index in np.flatnonzero(wanted):
            tokens = job.store.chunk(int(index))
            parts = [
                self._load(fields[name] + tokens.start * size, padded_size(len(tokens) * size))
                for name, size in token_bytes.items()
            ]
            if job.checksum:
                address = fields["checksum_addr"] + int(index) * CHECKSUM_BYTES
                stored = self._load(address, CHECKSUM_BYTES).view("<u4")
                if any(zlib.crc32(part) != kept for part, kept in zip(parts, stored, strict=False)):
                    raise _Fault(ErrorCode.CHECKSUM, address)

    def _write_results(self, work: _Work) -> None:
        fields, result = work.fields, work.result
        if fields["write_selection"]:
            self._save(fields["selection_addr"], pack_selection(result.selected))
        if fields["opcode"] == Opcode.ATTEND:
            self._save(fields["o_addr"], result.o.astype("<u4", copy=False).tobytes())
            self._save(fields["lse_addr"], result.lse.astype("<u4", copy=False).tobytes())
