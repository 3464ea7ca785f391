"""Random queues of random jobs, many of them bad, on the simulated unit.

``python -m moska.sim.fuzz --seed N --count M [--config tiny]`` runs rounds with the seeds N, N + 1
and so on until M descriptors are done. A round has its own memory, timing, windows, injected
errors and resets; every descriptor's outcome is compared with :mod:`moska.sim.oracle`. A failure
names the seed of its round: that seed with ``--count 1`` repeats the round alone.
"""

import argparse
import contextlib
import pathlib
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

from moska.gen.config import Config
from moska.golden.check import arrays
from moska.golden.formats import ALIGN, MAX_TOKENS
from moska.golden.layout import (
    COMPLETION_BYTES,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
    ErrorCode,
    Opcode,
    Selection,
    pack_array,
    pack_descriptor,
    pack_selection,
    padded_size,
    unpack_completion,
)
from moska.golden.router import Router
from moska.golden.unit import Store
from moska.host import regmap
from moska.sim.coverage import STALLS, Coverage, classify
from moska.sim.device import CHANNELS, Device, cache_directory, generated
from moska.sim.job import FILL, store_image
from moska.sim.oracle import Expectation, Injection, Span, refusal, unpack_descriptor

MEMORY = 1 << 20
RINGS, READS, WRITES = 0x1000, 0x4000, 0xC0000  # first bytes; the windows end where these begin
MAX_WAIT = 400_000  # cycles without a completion: a hang
MAX_WORK = 12_000  # rows x tokens of a job
N_JOBS = (16, 33)  # of a round
MEMORY_CHANNELS = tuple(name for name in CHANNELS if name != "axil")


class FuzzError(AssertionError):
    """A round in which the unit did wrong; the text names its seed."""


@dataclass
class Report:
    """What a run met."""

    coverage: Coverage
    descriptors: int = 0
    rounds: int = 0
    resets: int = 0
    cycles: int = 0
    codes: Counter[str] = field(default_factory=Counter)


@dataclass
class Entry:
    """A descriptor to run, and what coverage says of it."""

    fields: dict[str, int]
    base: dict[str, int]  # the fields before they were spoilt
    expected: Expectation | None = None


class Round:
    """One seed: makes memory and jobs, runs them, compares."""

    def __init__(self, config: Config, seed: int, verilog: pathlib.Path, cache: pathlib.Path):
        self.config = config
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.verilog, self.cache = verilog, cache
        self.injections: list[Injection] = []
        self.read_window = (RINGS, WRITES - 1)
        self.write_window = (WRITES, MEMORY - 1)
        self.free_read, self.free_write = READS, WRITES
        self.stores: list[tuple[Store, dict[str, int]]] = []

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, choices, weights=None):
        weights = None if weights is None else np.array(weights) / sum(weights)
        return choices[int(self.rng.choice(len(choices), p=weights))]

    # Memory ------------------------------------------------------------------------------------

    def put(self, raw: bytes) -> int:
        """Place bytes where the unit may read."""
        address = self.free_read
        self.device.write(address, raw)
        self.free_read = address + padded_size(len(raw))
        assert self.free_read <= WRITES, "reads must fit"
        return address

    def room(self, size: int) -> int:
        """Place for a result, with a line behind it that stays as it is."""
        address = self.free_write
        self.free_write = address + padded_size(size) + ALIGN
        assert self.free_write <= MEMORY, "results must fit"
        return address

    def integers(self, low, high, shape, dtype):
        return self.rng.integers(low, high, shape).astype(dtype)

    def scales(self, *shape):
        """Scales: mostly of middle size, sometimes of any bits."""
        if self.chance(0.1):
            return self.integers(0, 1 << 16, shape, np.uint16)
        return self.integers(116 << 7, 124 << 7, shape, np.uint16)

    def new_store(self) -> tuple[Store, dict[str, int]]:
        """Place a store; returns it and the fields that name it."""
        slot = self.config.buffer_tokens
        size = self.pick((16, 32, slot + 16, 2 * slot + 16), (6, 6, 5, 1))
        n_chunks = int(self.rng.integers(1, min(self.config.max_chunks, 5) + 1))
        if self.chance(0.1):
            n_chunks = self.config.max_chunks
            size = 16
        n_tokens = size * n_chunks - int(self.pick((0, 1, self.rng.integers(0, size)), (4, 1, 2)))
        router = self.pick(tuple(Router))
        most = min(self.config.buffer_tokens, 4)
        n_rep = self.pick([1 << i for i in range(most.bit_length())][router.value :])
        dim = self.config.head_dim
        store = Store(
            self.integers(-128, 128, (n_tokens, dim), np.int8),
            self.integers(-128, 128, (n_tokens, dim), np.int8),
            self.scales(n_tokens),
            self.scales(n_tokens),
            size,
            router,
            self.integers(-128, 128, (n_chunks, n_rep, dim), np.int8),
            self.scales(n_chunks, n_rep),
        )
        image = store_image(store, self.free_read, checksums=True)
        for address, raw in image.segments:
            self.device.write(address, raw)
        self.free_read = padded_size(image.end)
        return store, image.fields

    # Descriptors -------------------------------------------------------------------------------

    def job(self, *, own_store: bool) -> dict[str, int]:
        """Place a good job; returns its fields."""
        config = self.config
        pair = self.new_store() if own_store else self.pick(self.stores)
        store, fields = pair[0], dict.fromkeys(DESCRIPTOR, 0) | pair[1]
        tile, most = config.query_tile, config.max_rows
        limit = max(1, min(most, MAX_WORK // store.n_tokens))
        rows = (1, tile - 1, tile, int(self.rng.integers(1, most + 1)), most)
        n_rows = min(limit, max(1, self.pick(rows, (3, 2, 3, 6, 3))))
        selection = self.pick(tuple(Selection), (2, 5, 2))
        opcode = Opcode.ATTEND
        fields["group"] = 1
        n_chunks = store.n_chunks
        if selection is Selection.TOP_K:
            some = int(self.rng.integers(1, n_chunks + 1))
            k = self.pick((0, 1, some, n_chunks, n_chunks + 3), (2, 3, 4, 2, 1))
            group = self.pick([g for g in range(1, n_rows + 1) if n_rows % g == 0])
            fields |= {"k": k, "group": group if self.chance(0.4) else 1, "write_selection": 1}
            if self.chance(0.2):
                opcode = Opcode.ROUTE
            elif self.chance(0.3):
                fields["write_selection"] = 0
        if selection is Selection.EXPLICIT:
            wanted = self.rng.random((n_rows, n_chunks)) < self.pick((0.2, 0.6, 1.0))
            fields["selection_addr"] = self.put(pack_selection(wanted))
        elif fields["write_selection"]:
            fields["selection_addr"] = self.room(SELECTION_LINE * n_chunks)
        q = self.integers(-32768, 32768, (n_rows, config.head_dim), np.int16)
        if opcode is Opcode.ATTEND:
            fields["o_addr"] = self.room(4 * n_rows * config.head_dim)
            fields["lse_addr"] = self.room(4 * n_rows)
        return fields | {
            "opcode": opcode,
            "selection": selection,
            "n_rows": n_rows,
            "keep_first": int(self.rng.integers(0, 3)),
            "keep_last": int(self.rng.integers(0, 3)),
            "q_addr": self.put(pack_array(q)),
            "q_scale_addr": self.put(pack_array(self.scales(n_rows))),
            "checksum": int(self.chance(0.4)),
            "tag": int(self.rng.integers(0, 1 << 32)),
        }

    def spoil_field(self, fields):
        name = self.pick(tuple(DESCRIPTOR))
        _, size = DESCRIPTOR[name]
        top = (1 << 8 * size) - 1
        around = fields[name] + int(self.rng.integers(-2, 3))
        any_value = int.from_bytes(self.rng.bytes(size), "little")
        return {name: self.pick((0, 1, top, any_value, around, around * 2)) & top}

    def spoil_bytes(self, fields):
        raw = bytearray(pack_descriptor(**fields))
        for _ in range(int(self.rng.integers(1, 9))):
            raw[int(self.rng.integers(len(raw)))] ^= int(self.rng.integers(1, 256))
        return unpack_descriptor(bytes(raw))

    def spoil_value(self, fields):
        """Give one field a value that is not allowed."""
        config = self.config
        choices = {
            "opcode": (0, 4, 255),
            "selection": (3, 255),
            "router": (2, 255),
            "write_selection": (2, 255),
            "n_rows": (0, config.max_rows + 1, 65535),
            "n_tokens": (0, MAX_TOKENS + 1),
            "n_chunks": (0, fields["n_chunks"] + 1),
            "chunk_tokens": (0, 8, 24),
            "checksum": (2, 128),
            "kv_format": (1, 255),
            "reserved": (1, 1 << 47),
            **{a.field: (fields[a.field] | 1 << int(self.rng.integers(6)),)
               for a in arrays(fields, config.head_dim)},
        }  # fmt: skip
        name = self.pick(tuple(choices))
        return {name: self.pick(choices[name])}

    def spoil_window(self, fields):
        """Move an array that is used out of its window."""
        array = self.pick(arrays(fields, self.config.head_dim))
        first, last = self.write_window if array.written else self.read_window
        size = padded_size(array.n_bytes)
        high = int(self.rng.integers(1 << 40)) * (1 << 24)
        places = (first - ALIGN, last + 1, last + 1 - size + ALIGN, (1 << 64) - size, high)
        return {array.field: self.pick(places) % (1 << 64) // ALIGN * ALIGN}

    def spoil(self, fields, how):
        """Change a descriptor; what is still allowed must write to its own places only."""
        own = self.extent(fields)
        for _ in range(30):
            spoilt = fields | how(fields)
            code, _ = refusal(self.config, spoilt, 0, self.read_window, self.write_window)
            if code is not ErrorCode.NONE or self.harmless(spoilt, own):
                return spoilt
        return fields

    def extent(self, fields) -> list[Span]:
        """Places for results."""
        return [
            Span(fields[a.field], fields[a.field] + padded_size(a.n_bytes) + ALIGN)
            for a in arrays(fields, self.config.head_dim)
            if a.written
        ]

    def harmless(self, fields, own) -> bool:
        if fields["opcode"] == Opcode.FENCE:
            return True
        if fields["n_rows"] * fields["n_tokens"] > MAX_WORK:
            return False
        taken = [False] * len(own)
        for array in arrays(fields, self.config.head_dim):
            start = fields[array.field]
            end = start + padded_size(array.n_bytes)
            if array.written:
                inside = [span.first <= start and end < span.end for span in own]
                if True not in inside or taken[inside.index(True)]:
                    return False
                taken[inside.index(True)] = True
            elif start < READS:
                return False  # the rings change
        return True

    def entry(self) -> Entry:
        """Make one descriptor, good or bad."""
        kind = self.pick(
            ("good", "fence", "value", "field", "bytes", "window", "read", "write", "checksum"),
            (40, 3, 9, 4, 4, 9, 11, 11, 9),
        )
        if kind == "fence":
            tag = int(self.rng.integers(1 << 32))
            fence = dict.fromkeys(DESCRIPTOR, 0) | {"opcode": Opcode.FENCE, "tag": tag}
            return Entry(fence, fence)
        fields = self.job(own_store=kind in ("read", "checksum"))
        base = fields
        if kind in ("value", "field", "bytes", "window"):
            fields = self.spoil(fields, getattr(self, f"spoil_{kind}"))
        elif kind in ("read", "write"):
            used = [a for a in arrays(fields, self.config.head_dim)
                    if a.written == (kind == "write")]  # fmt: skip
            if used:
                self.inject(kind, fields, self.pick(used))
        elif kind == "checksum" and fields["opcode"] == Opcode.ATTEND:
            fields["checksum"] = 1
            self.corrupt(fields)
        return Entry(fields, base)

    def inject(self, kind, fields, array):
        size = min(array.n_bytes, self.pick((1, 8, 64, array.n_bytes)))
        offset = int(self.rng.integers(array.n_bytes - size + 1))
        address = fields[array.field] + offset
        self.injections.append(Injection(kind, address, size, self.pick((2, 3))))

    def corrupt(self, fields):
        """Change bits of keys, values, scales or checksums."""
        for _ in range(int(self.rng.integers(1, 4))):
            name, size = self.pick((
                ("k_addr", fields["n_tokens"] * self.config.head_dim),
                ("v_addr", fields["n_tokens"] * self.config.head_dim),
                ("scale_addr", fields["n_tokens"] * 4),
                ("checksum_addr", fields["n_chunks"] * 16),
            ))  # fmt: skip
            address = fields[name] + int(self.rng.integers(size))
            old = self.device.read(address, 1)[0]
            self.device.write(address, bytes([old ^ 1 << int(self.rng.integers(8))]))

    # Running -----------------------------------------------------------------------------------

    def conditions(self):
        """Choose timing, time-out and ring of this round."""
        rng = self.rng
        if self.chance(0.7):
            stall = self.pick(STALLS)
            stalls = dict.fromkeys(MEMORY_CHANNELS, stall)
        else:
            stalls = {name: self.pick(STALLS) for name in MEMORY_CHANNELS}
        self.stall = max(stalls.values())
        chances = {name: value / 100 for name, value in stalls.items()}
        self.device.timing(
            latency=int(self.pick((0, rng.integers(1, 40), rng.integers(40, 300)), (2, 3, 2))),
            stall=chances | {"axil": self.pick(STALLS) / 100},
            shuffle=self.chance(0.5),
        )
        self.timeout = int(rng.integers(50, 4000)) if self.chance(0.22) else 0
        self.entries = 1 << int(rng.integers(0, 5))
        self.ring = RINGS
        self.records = self.room(self.entries * COMPLETION_BYTES)

    def pair(self, name, value):
        self.device.write32(getattr(regmap, f"{name}_LO"), value & 0xFFFFFFFF)
        self.device.write32(getattr(regmap, f"{name}_HI"), value >> 32)

    def begin(self):
        """Program the unit after a reset."""
        write32 = self.device.write32
        self.pair("READ_BASE", self.read_window[0])
        self.pair("READ_LIMIT", self.read_window[1])
        self.pair("WRITE_BASE", self.write_window[0])
        self.pair("WRITE_LIMIT", self.write_window[1])
        if self.chance(0.3):
            write32(regmap.LOCK, 1)
            self.pair("WRITE_LIMIT", (1 << 64) - 1)  # without effect
            self.pair("READ_BASE", 0)
        write32(regmap.TIMEOUT, self.timeout)
        self.pair("RING", self.ring)
        self.pair("COMPLETION", self.records)
        write32(regmap.RING_SIZE, self.entries.bit_length() - 1)
        write32(regmap.TAIL, 0)
        write32(regmap.MASK, regmap.MASK_DONE_MASK)
        write32(regmap.CONTROL, regmap.CONTROL_ENABLE_MASK)
        self.posted = self.collected = 0
        self.under_way: deque[Entry] = deque()
        self.first_error = None
        self.overrun = None
        self.before = self.device.memory.copy()
        self.may_change = np.zeros(len(self.before), dtype=bool)

    def run(self, report: Report) -> None:
        """Run the round.

        Raises
        ------
        FuzzError
            when the unit does anything wrong.
        """
        with Device(
            self.config, self.cache, memory_bytes=MEMORY, seed=self.seed, verilog=self.verilog
        ) as device:
            self.device = device
            device.memory[:READS] = 0
            device.memory[WRITES:] = FILL
            device.allow(
                read=(self.read_window[0], self.read_window[1] + 1),
                write=(self.write_window[0], self.write_window[1] + 1),
            )
            self.conditions()
            self.stores = [self.new_store() for _ in range(3)]
            waiting = deque(self.entry() for _ in range(int(self.rng.integers(*N_JOBS))))
            if self.chance(0.3):
                self.inject_rings(len(waiting))
            for item in self.injections:
                device.inject(**item._asdict())
            reset_at = None
            if self.chance(0.2):
                reset_at = device.cycle + int(self.rng.integers(100, 30_000))
            self.begin()
            self.waited = 0
            while waiting or self.under_way:
                if reset_at is not None and device.cycle >= reset_at:
                    reset_at = None
                    waiting = self.reset(waiting)
                    report.resets += 1
                    continue
                self.post(waiting)
                limit = 1000 if reset_at is None else max(1, min(1000, reset_at - device.cycle))
                self.waited += device.run(limit)
                self.collect(report)
                if self.waited > MAX_WAIT:
                    self.fail(f"no completion within {MAX_WAIT} cycles")
            self.end()
            report.rounds += 1
            report.cycles += device.cycle

    def inject_rings(self, count):
        """Errors on reads of descriptors, rarely on writes of records."""
        entry = int(self.rng.integers(self.entries))
        if self.chance(0.7):
            offset = int(self.rng.integers(DESCRIPTOR_BYTES))
            address = self.ring + entry * DESCRIPTOR_BYTES + offset
            self.injections.append(Injection("read", address, 1, self.pick((2, 3))))
        else:
            address = self.records + entry * COMPLETION_BYTES
            self.injections.append(Injection("write", address, 1, self.pick((2, 3))))

    def post(self, waiting):
        """Announce some jobs, if there is room."""
        room = min(self.entries - len(self.under_way), len(waiting))
        if not room or self.chance(0.3):
            return
        for _ in range(int(self.rng.integers(1, room + 1))):
            entry = waiting.popleft()
            index = self.posted % self.entries
            address = self.ring + index * DESCRIPTOR_BYTES
            self.device.write(address, pack_descriptor(**entry.fields))
            record = self.records + index * COMPLETION_BYTES
            self.device.write(record, bytes([FILL]) * COMPLETION_BYTES)
            entry.expected = Expectation(
                self.config, entry.fields, address, self.device.memory, self.injections,
                self.read_window, self.write_window,
            )  # fmt: skip
            self.under_way.append(entry)
            self.posted += 1
        if self.chance(0.05):
            tail = (self.posted + self.entries + int(self.rng.integers(1, 100))) & 0xFFFF
            self.device.write32(regmap.TAIL, tail)
            self.overrun = self.overrun or tail
        self.device.write32(regmap.TAIL, self.posted & 0xFFFF)

    def collect(self, report):
        """Look at the jobs that are complete."""
        device = self.device
        event = device.read32(regmap.EVENT)
        device.write32(regmap.EVENT, event & regmap.EVENT_DONE_MASK)
        done = (device.read32(regmap.COMPLETED) - self.collected) & 0xFFFF
        if done > len(self.under_way):
            self.fail(f"{done} completions, but {len(self.under_way)} jobs under way")
        for _ in range(done):
            self.waited = 0
            self.collect_one(self.under_way.popleft(), report)

    def collect_one(self, entry, report):
        expected = entry.expected
        record_at = self.records + self.collected % self.entries * COMPLETION_BYTES
        raw = self.device.read(record_at, COMPLETION_BYTES)
        self.collected += 1
        report.descriptors += 1
        lost = any(
            i.kind == "write" and i.meets(record_at, record_at + COMPLETION_BYTES)
            for i in self.injections
        )
        if lost:
            if raw != bytes([FILL]) * COMPLETION_BYTES:
                self.fail("a completion that was refused is in memory", entry)
            self.first_error = self.first_error or (None, self.collected, None)
            self.allow_results(expected)
            report.codes["lost"] += 1
            return
        record = unpack_completion(raw)
        if record["sequence"] != self.collected:
            self.fail(f"sequence {record['sequence']} instead of {self.collected}", entry)
        try:
            code = ErrorCode(record["code"])
        except ValueError:
            self.fail(f"code {record['code']}", entry)
        refused = expected.refused[0]
        timed_out = self.timeout and record["cycles"] >= self.timeout
        wrong = expected.judge(code, record["error_addr"], timed_out=bool(timed_out))
        if wrong:
            self.fail(wrong, entry)
        if refused is not ErrorCode.READ and record["tag"] != expected.fields["tag"]:
            self.fail(f"tag {record['tag']} instead of {expected.fields['tag']}", entry)
        if code is ErrorCode.NONE and expected.fields["opcode"] != Opcode.FENCE:
            wrong = expected.wrong_result()
            if wrong:
                self.fail(wrong, entry)
        if code in (ErrorCode.NONE, ErrorCode.WRITE, ErrorCode.TIMEOUT):
            self.allow_results(expected)
        if code is not ErrorCode.NONE and self.first_error is None:
            self.first_error = (code, self.collected, record["error_addr"])
        report.codes[code.name.lower()] += 1
        fields = entry.base if refused is not ErrorCode.NONE else expected.fields
        classes = classify(self.config, fields, stall=self.stall, error=code)
        if classes:
            report.coverage.add(classes)

    def allow_results(self, expected):
        """Accept writes to the results of a job that was not refused."""
        if expected.refused[0] is ErrorCode.NONE:
            for span in expected.written:
                self.may_change[span.first : span.end] = True

    def check_memory(self):
        """Nothing but results, records and the ring has changed."""
        self.may_change[self.ring : self.ring + self.entries * DESCRIPTOR_BYTES] = True
        self.may_change[self.records : self.records + self.entries * COMPLETION_BYTES] = True
        changed = (self.device.memory != self.before) & ~self.may_change
        if changed.any():
            self.fail(f"{int(np.flatnonzero(changed)[0]):#x} was written")
        if self.device.violations:
            self.fail(self.device.violations[0])

    def reset(self, waiting):
        """Reset in the middle; the jobs that are not done are to be done again."""
        for entry in self.under_way:
            self.allow_results(entry.expected)
        self.check_memory()
        again = deque([*self.under_way, *waiting])
        self.device.memory[WRITES:] = FILL
        self.device.reset(int(self.rng.integers(1, 20)))
        self.begin()
        self.waited = 0
        return again

    def end(self):
        """Everything is done: the unit is idle and its registers agree."""
        device = self.device
        status = device.read32(regmap.STATUS)
        if status:
            self.fail(f"STATUS is {status:#x} at the end")
        for name, offset in (("HEAD", regmap.HEAD), ("COMPLETED", regmap.COMPLETED)):
            value = device.read32(offset)
            if value != self.posted & 0xFFFF:
                self.fail(f"{name} is {value} after {self.posted} jobs")
        device.run(200, until_interrupt=False)
        if device.read32(regmap.COMPLETED) != self.posted & 0xFFFF:
            self.fail("a completion too many")
        code = ErrorCode(device.read32(regmap.ERROR) & regmap.ERROR_CODE_MASK)
        low, high = device.read32(regmap.ERROR_ADDRESS_LO), device.read32(regmap.ERROR_ADDRESS_HI)
        address = low | high << 32
        got = (code, device.read32(regmap.ERROR_SEQUENCE), address)
        wanted = [self.first_error or (ErrorCode.NONE, 0, 0)]
        if self.overrun is not None:
            wanted.append((ErrorCode.RING, 0, self.overrun))
        if not any(w[1] == got[1] and w[0] in (None, code) and w[2] in (None, address)
                   for w in wanted):  # fmt: skip
            self.fail(f"registers hold the error {got}, not {wanted}")
        event = device.read32(regmap.EVENT) & regmap.EVENT_ERROR_MASK
        if bool(event) != (self.first_error is not None or self.overrun is not None):
            self.fail(f"EVENT.error is {event}")
        self.check_memory()

    def fail(self, text, entry=None):
        lines = [f"seed {self.seed}, cycle {self.device.cycle}: {text}"]
        if entry:
            lines.append(f"job {self.collected} of its ring: {entry.expected.fields}")
        lines.append(
            f"again: python -m moska.sim.fuzz --seed {self.seed} --count 1 "
            f"--config {self.config.name}"
        )
        raise FuzzError("\n".join(lines))


def fuzz(
    config: Config,
    *,
    seed: int,
    count: int,
    cache: pathlib.Path | None = None,
    progress: Callable[[int], None] = lambda descriptors: None,
) -> Report:
    """Run rounds with the seeds from ``seed`` on until ``count`` descriptors are complete.

    Raises
    ------
    FuzzError
        in the first round that goes wrong.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    cache = cache or cache_directory()
    verilog = generated(config, cache)
    report = Report(Coverage(config))
    while report.descriptors < count:
        Round(config, seed + report.rounds, verilog, cache).run(report)
        progress(report.descriptors)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="moska.sim.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000, help="descriptors")
    parser.add_argument("--config", default="tiny", help="preset or file")
    parser.add_argument("--coverage", type=pathlib.Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(Progress(SpinnerColumn(), *columns, transient=True))
        task = shown.add_task("descriptors", total=options.count)
        try:
            config = Config.load(options.config)
            report = fuzz(
                config,
                seed=options.seed,
                count=options.count,
                progress=lambda done: shown.update(task, completed=done),
            )
        except (FuzzError, OSError, ValueError) as error:
            shown.stop()
            print(error, file=sys.stderr)
            return 1 if isinstance(error, FuzzError) else 2
    codes = ", ".join(f"{code} {n}" for code, n in sorted(report.codes.items()))
    print(
        f"{report.descriptors} descriptors, {report.rounds} rounds, {report.resets} resets, "
        f"{report.cycles} cycles: {codes}\n\n{report.coverage.markdown()}"
    )
    if options.coverage:
        options.coverage.write_text(report.coverage.json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
