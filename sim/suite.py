"""Scenes on the simulated device that meet every mechanism of the unit, checked to the bit.

A scene posts jobs, brings about errors and looks at everything that comes back: results, all other
memory, completion records, registers, interrupts and the AXI checker. It raises
:class:`Difference` at the first thing that is not as the golden model or the documentation says.
Tests play the scenes on the unit (``tests/sim/test_suite.py``), ``scripts/mutate.py`` on mutants
of it, ``scripts/coverage.py`` on a unit that counts lines and toggles.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moska.gen.config import Config
from moska.golden.check import arrays
from moska.golden.formats import ALIGN, BLOCK_TOKENS, CHUNK_MULTIPLE, MAX_TOKENS, Q_BITS
from moska.golden.layout import (
    CHECKSUM_BYTES,
    COMPLETION_BYTES,
    COUNTERS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    ErrorCode,
    pack_selection,
    padded_size,
    unpack_completion,
)
from moska.golden.unit import Result
from moska.host import regmap
from moska.hw.registers import Kind, load_map
from moska.sim.device import NO_LIMIT, Device, DeviceError
from moska.sim.driver import Placed, RingDriver
from moska.sim.job import FILL, Fence, Job, difference
from moska.sim.oracle import refusal
from moska.sim.workload import KINDS, extremes, jobs, queries, simple, store

SEED = 20_251_107
MEMORY = 1 << 20
# Memory that straddles a multiple of 2**32; between them, every address bit is 0 and 1.
BASES = (0x5A3C_96E7_FFF8_0000, 0xA5C3_6918_FFF8_0000)
MAX_CYCLES = 60_000
CALM: Mapping = {"latency": 0, "stall": 0.0}
ROUGH: Mapping = {"latency": 30, "stall": 0.3, "shuffle": True}
FULL: Mapping = {"latency": 5, "stall": {"w": 0.9, "aw": 0.9, "b": 0.9}}
# Sums over the jobs of a scene that do not depend on timing.
WORK = ("score_active", "value_active", "read_beats", "write_beats", "chunks_read",
        "chunks_skipped")  # fmt: skip


# Bench -----------------------------------------------------------------------------------------


class Difference(Exception):
    """Something that is not as it should be.

    Members
    -------
    kind
        "bits", "code", "counters", "memory", "register", "hang" or "violation"
    """

    def __init__(self, kind: str, text: str):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Expected:
    """What jobs must give, computed once each."""

    def __init__(self):
        self._results: dict[int, tuple[Job, Result]] = {}

    def __call__(self, job: Job) -> Result:
        if id(job) not in self._results:
            self._results[id(job)] = (job, job.expected())
        return self._results[id(job)][1]


class Bench:
    """A device out of reset with fresh rings, and a driver that checks all that comes back.

    Parameters
    ----------
    device
        the device; :attr:`Device.base` is where memory lies
    expected
        results, shared by benches
    ring_size
        log2 of the entries of the rings
    """

    def __init__(self, device: Device, expected: Expected, *, ring_size: int = 3):
        self.device = device
        self.config = device.config
        self.expected = expected
        self.first, self.last = device.base, device.base + len(device.memory) - 1
        self.log: list = []  # what may differ with timing
        self.sums = dict.fromkeys(WORK, 0)
        self.restart(ring_size)

    def restart(self, ring_size: int = 3):
        """Start with new rings after a reset."""
        self.driver = RingDriver(
            self.device, ring_size=ring_size, base=self.first + 4096, limit=self.last + 1
        )
        self.windows = {"READ": (self.first, self.last), "WRITE": (self.first, self.last)}
        for direction in self.windows:
            self.window(direction, *self.windows[direction])
        self.errors = 0

    def window(self, direction: str, first: int, last: int):
        """Set a window, and what the checker allows."""
        self.windows[direction] = (first, last)
        self.driver.write64(f"{direction}_BASE", first)
        self.driver.write64(f"{direction}_LIMIT", last)
        ranges = {name.lower(): (a, min(b + 1, NO_LIMIT)) for name, (a, b) in self.windows.items()}
        self.device.allow(**ranges)

    def pair(self, name: str) -> int:
        """64-bit register."""
        low, high = (self.device.read32(getattr(regmap, f"{name}_{h}")) for h in ("LO", "HI"))
        return low | high << 32

    def register(self, name: str, value: int, expected: int):
        """Compare a register."""
        if value != expected:
            raise Difference("register", f"{name} is {value:#x}, expected {expected:#x}")

    def check_quiet(self):
        """Nothing breaches the protocol."""
        if violations := self.device.violations:
            raise Difference("violation", violations[0])

    def check_idle(self):
        """Every job is complete and the unit at rest."""
        self.check_quiet()
        count = self.driver.announced & 0xFFFF
        counts = dict.fromkeys(("TAIL", "HEAD", "COMPLETED"), count)
        for name, due in {"STATUS": 0, "EVENT": 0, **counts}.items():
            self.register(name, self.device.read32(getattr(regmap, name)), due)
        if self.device.interrupt:
            raise Difference("register", "interrupt without an event")

    def error(self, code: ErrorCode, sequence: int, address: int):
        """Compare the registers that tell of the last error."""
        read = self.device.read32(regmap.ERROR) & regmap.ERROR_CODE_MASK
        if read != code or self.pair("ERROR_ADDRESS") != address:
            raise Difference("code", f"ERROR {read} at {self.pair('ERROR_ADDRESS'):#x}")
        self.register("ERROR_SEQUENCE", self.device.read32(regmap.ERROR_SEQUENCE), sequence)

    def place(self, *made: Job | Fence) -> list[Placed]:
        """Write jobs into memory."""
        return [self.driver.place(job) for job in made]

    def descriptor_address(self, ahead: int) -> int:
        """Where the descriptor lies that is posted after ``ahead`` others."""
        entry = (self.driver.announced + ahead) % self.driver.entries
        return self.driver.ring + entry * DESCRIPTOR_BYTES

    def verdict(self, placed: Placed, address: int) -> tuple[ErrorCode, int]:
        """Error code and address that the descriptor must give."""
        fields = dict.fromkeys(DESCRIPTOR, 0) | placed.image.fields
        return refusal(
            self.config, fields, address, self.windows["READ"], self.windows["WRITE"]
        )

    def run(
        self,
        placed: Sequence[Placed],
        errors: Mapping[int, tuple[ErrorCode, int]] | None = None,
        *,
        work: bool = False,
        after: Sequence[int] = (),
    ):
        """Run jobs back to back and check everything.

        Parameters
        ----------
        placed
            the jobs; more than the ring holds are posted as it empties
        errors
            code and address of jobs that must fail, by index; those with a code that says so may
            have written some of their results
        work
            no job fails: the sums of the counters that tell of work must be those of the jobs
        after
            indices of descriptors that are posted only when all before are complete
        """
        errors = errors or {}
        before = self.device.memory.copy()
        start = 0
        ends = [*after, len(placed)]
        outcomes = []
        first = self.driver.announced
        try:
            for end in ends:
                waiting = list(placed[start:end])
                left = len(waiting)
                start = end
                while left:
                    room = self.driver.room
                    if waiting and room:
                        self.driver.post(waiting[:room])
                        del waiting[:room]
                    got = self.driver.wait(1, max_cycles=self.limit)
                    left -= len(got)
                    outcomes += got
                    self.check_quiet()
        except (RuntimeError, DeviceError) as error:
            self.check_quiet()
            raise Difference("hang", f"after {len(outcomes)} jobs: {error}") from error
        for index, (outcome, one) in enumerate(zip(outcomes, placed, strict=True)):
            self._check_one(index, outcome, one, errors.get(index, (ErrorCode.NONE, 0)))
        self._check_memory(before, placed, errors)
        last = outcomes[-1]
        for name in COUNTERS:
            value = self.device.read32(getattr(regmap, name.upper()))
            if value != last.counters[name]:
                raise Difference("counters", f"register {name} is {value}")
        self.errors += len(errors)
        self.register("ERRORS", self.device.read32(regmap.ERRORS), self.errors)
        self.register(
            "JOBS", self.device.read32(regmap.JOBS), self.driver.announced & 0xFFFFFFFF
        )
        if errors:
            index = max(errors)
            self.error(*[errors[index][0], first + index + 1, errors[index][1]])
        self.check_idle()
        if work:
            self._check_work(outcomes, placed)
        self.log += [(outcome.cycle, *outcome.counters.values()) for outcome in outcomes]
        return outcomes

    limit = MAX_CYCLES

    def _check_one(self, index, outcome, one, due):
        where = f"job {index} of {self.driver.announced}"
        got = (outcome.error_code, outcome.error_address)
        if got != due:
            shown = [f"{code.name} at {address:#x}" for code, address in (got, due)]
            raise Difference("code", f"{where}: {shown[0]}, expected {shown[1]}")
        if due[0] is not ErrorCode.READ and outcome.record["tag"] != one.job.tag:
            raise Difference("code", f"{where}: tag {outcome.record['tag']:#x}")
        if outcome.overrun and not due[0]:
            raise Difference("memory", f"{where}: bytes behind a result")
        counters = outcome.counters
        causes = sum(value for name, value in counters.items() if name.startswith("stall_"))
        if counters["score_active"] + causes != counters["cycles"]:
            raise Difference("counters", f"{where}: causes {counters}")
        if not due[0] and isinstance(one.job, Job):
            if wrong := difference(outcome.result, self.expected(one.job)):
                raise Difference("bits", f"{where}: {wrong}")
            if "selection" in one.image.results:
                # Bits of rows that the job does not have are 0.
                raw = pack_selection(self.expected(one.job).selected)
                if self.device.read(*one.image.results["selection"]) != raw:
                    raise Difference("bits", f"{where}: selection has bits of other rows")

    def _check_memory(self, before, placed, errors):
        """Only results and completions have changed, and results of refused jobs have not."""
        changed = self.device.memory != before
        entries = self.driver.entries
        own = [(self.driver.ring, entries * DESCRIPTOR_BYTES)]
        own.append((self.driver.completions, entries * COMPLETION_BYTES))
        refused = (ErrorCode.DESCRIPTOR, ErrorCode.WINDOW)
        for index, one in enumerate(placed):
            if errors.get(index, (ErrorCode.NONE, 0))[0] not in refused:
                own += one.image.results.values()
        for address, size in own:
            changed[address - self.first : address - self.first + size] = False
        if changed.any():
            at = self.first + int(np.flatnonzero(changed)[0])
            raise Difference("memory", f"{at:#x} was written")

    def _check_work(self, outcomes, placed):
        for name in WORK:
            self.sums[name] += sum(outcome.counters[name] for outcome in outcomes)
        attending = [one.job for one in placed if isinstance(one.job, Job) and one.job.attends]
        for name, read in (("chunks_read", True), ("chunks_skipped", False)):
            due = sum(
                int((self.expected(job).selected.any(axis=0) == read).sum()) for job in attending
            )
            got = sum(outcome.counters[name] for outcome in outcomes)
            if got != due:
                raise Difference("counters", f"{name} is {got}, expected {due}")


# Scenes ----------------------------------------------------------------------------------------


def queue(bench, made, timing, rng):
    """All jobs in one queue."""
    bench.device.timing(**timing)
    bench.run(bench.place(*made["jobs"]), work=True)


def at_limits(bench, made, timing, rng):
    """Limits of configuration and numbers; then some of them, each alone."""
    bench.device.timing(**timing)
    placed = bench.place(*made["extremes"])
    bench.run(placed, work=True)
    few = placed[::4]
    # Results are there already: they must be written again.
    for one in few:
        for address, size in one.image.results.values():
            bench.device.write(address, bytes([FILL]) * size)
    bench.run(few, work=True, after=range(1, len(few)))


def registers(bench, made, timing, rng):
    """Constants, read and write of every bit, holes, events and masks."""
    device, config = bench.device, bench.config
    device.timing(**timing)
    constants = {
        "ID": regmap.ID_VALUE,
        "VERSION": regmap.VERSION_MAP_VALUE | regmap.VERSION_GENERATOR_VALUE << 16,
        "CONTROL": regmap.CONTROL_ENABLE_MASK,
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "Q_BITS": Q_BITS,
        **{
            name.upper(): getattr(config, name)
            for name in regmap.PARAMETERS
            if hasattr(config, name)
        },
    }
    for name, value in constants.items():
        bench.register(name, device.read32(getattr(regmap, name)), value)
    device.write32(regmap.CONTROL, 0)
    words = {
        "SCRATCH": (1 << 32) - 1, "TIMEOUT": (1 << 32) - 1, "MASK": 3, "RING_SIZE": 15,
        **{f"{name}_HI": (1 << 32) - 1 for name in ("RING", "COMPLETION")},
        **{f"{name}_LO": (1 << 32) - 1 for name in ("RING", "COMPLETION")},
        **{
            f"{d}_{e}_{h}": (1 << 32) - 1
            for d, e, h in itertools.product(("READ", "WRITE"), ("BASE", "LIMIT"), ("LO", "HI"))
        },
    }  # fmt: skip
    before = {name: device.read32(getattr(regmap, name)) for name in words}
    for salt in (0, (1 << 32) - 1):
        patterns = {
            name: ((0x9E3779B9 * (index + 1)) & 0xFFFFFFFF ^ salt) & mask
            for index, (name, mask) in enumerate(words.items())
        }
        for name, value in patterns.items():
            device.write32(getattr(regmap, name), value)
        for name, value in patterns.items():
            bench.register(name, device.read32(getattr(regmap, name)), value)
    for name, value in before.items():
        device.write32(getattr(regmap, name), value)
    # Each register answers; a write to one that only tells has no effect.
    for register in load_map().registers:
        value = device.read32(register.offset)
        if all(field.kind in (Kind.CONSTANT, Kind.INPUT) for field in register.fields):
            device.write32(register.offset, value ^ 0xFFFFFFFF)
            bench.register(register.name, device.read32(register.offset), value)
    offsets = {register.offset for register in load_map().registers}
    holes = set(range(0, 0x100, 4)) - offsets | {0x100, 0x104, 0x180, 0x200, 0x800, 0xFFC}
    for offset in sorted(holes):
        for access in (lambda o=offset: device.read32(o), lambda o=offset: device.write32(o, 1)):
            try:
                access()
            except DeviceError as error:
                if "no response" not in str(error):
                    continue
                raise
            raise Difference("register", f"there is a register at {offset:#x}")
    device.write32(regmap.CONTROL, regmap.CONTROL_ENABLE_MASK)

    # The mask decides on the interrupt; the event stays until it is cleared.
    (placed,) = bench.place(made["simple"]["dense"])
    for mask in (0, regmap.MASK_ERROR_MASK, regmap.MASK_DONE_MASK):
        device.write32(regmap.MASK, mask)
        bench.driver.post([placed])
        ran = device.run(MAX_CYCLES // 10)
        if device.interrupt != bool(mask & regmap.MASK_DONE_MASK):
            raise Difference("register", f"interrupt is {device.interrupt} with mask {mask}")
        bench.log.append(ran)
        bench.register("EVENT", device.read32(regmap.EVENT), regmap.EVENT_DONE_MASK)
        device.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
        bench.register("EVENT", device.read32(regmap.EVENT), regmap.EVENT_DONE_MASK)
        if len(bench.driver.collect()) != 1:
            raise Difference("hang", "no completion")
        bench.check_idle()
    device.write32(regmap.MASK, regmap.MASK_ERROR_MASK | regmap.MASK_DONE_MASK)


def descriptors(bench, made, timing, rng):
    """Descriptors that are not allowed, good ones among them; only the good ones write."""
    bench.device.timing(**timing)
    config = bench.config
    simple_jobs = made["simple"]
    changes = [
        ("dense", {"opcode": 0}), ("dense", {"opcode": 4}), ("dense", {"opcode": 129}),
        ("dense", {"selection": 3}), ("dense", {"selection": 64}), ("route", {"selection": 0}),
        ("routed", {"router": 2}), ("routed", {"router": 128}), ("dense", {"router": 2}),
        ("dense", {"write_selection": 1}), ("routed", {"write_selection": 2}),
        ("route", {"write_selection": 0}), ("routed", {"write_selection": 128}),
        ("dense", {"n_rows": 0}), ("dense", {"n_rows": config.max_rows + 1}),
        ("dense", {"n_rows": 0x8001}), ("dense", {"n_rows": 256 + 5}),
        ("routed", {"group": 0}), ("routed", {"group": 3}), ("dense", {"group": 0}),
        ("dense", {"n_tokens": 0}), ("dense", {"n_tokens": MAX_TOKENS + 1}),
        ("dense", {"n_tokens": 1 << 31}), ("dense", {"n_tokens": 97}),
        ("dense", {"n_tokens": 64}), ("dense", {"n_tokens": 65}), ("dense", {"n_tokens": 96}),
        ("dense", {"n_chunks": 0}), ("dense", {"n_chunks": 4}), ("dense", {"n_chunks": 2}),
        ("dense", {"n_chunks": 1 << 31}), ("dense", {"n_chunks": 0x10003}),
        ("routed", {"n_chunks": config.max_chunks + 1}),
        ("dense", {"chunk_tokens": 0}), ("dense", {"chunk_tokens": 24}),
        ("dense", {"chunk_tokens": 40}), ("dense", {"chunk_tokens": 33}),
        ("dense", {"chunk_tokens": MAX_TOKENS + 16}), ("dense", {"chunk_tokens": 1 << 30}),
        ("dense", {"chunk_tokens": 48, "n_chunks": 2}),
        ("routed", {"rep_rows": 0}), ("routed", {"rep_rows": 3}), ("routed", {"rep_rows": 1}),
        ("routed", {"rep_rows": 2 * config.buffer_tokens}), ("routed", {"rep_rows": 0x8000}),
        ("routed", {"rep_rows": 6}), ("routed", {"k": 0xFFFF}),
        ("checked", {"checksum": 2}), ("dense", {"checksum": 0x80}),
        ("dense", {"kv_format": 1}), ("dense", {"kv_format": 0x80}),
        ("dense", {"reserved": 1}), ("dense", {"reserved": 1 << 47}),
        ("routed", {"opcode": 9, "n_rows": 0, "reserved": 1}),
        ("dense", {"n_rows": 0, "k_addr": 8}), ("dense", {"k": 9, "rep_rows": 9}),
    ]  # fmt: skip
    for name, (offset, size) in DESCRIPTOR.items():
        if size == 8:
            for kind in ("checked", "routed", "explicit", "route"):
                changes += [(kind, {name: a}) for a in rng_addresses(bench, rng, offset)]
    made_jobs = []
    for index, (kind, overrides) in enumerate(changes):
        job = simple_jobs[kind]
        made_jobs.append(dataclasses.replace(job, overrides=overrides, tag=index << 9 | 5))
        if index % 12 == 0:
            made_jobs.append(simple_jobs[KINDS[index // 12 % len(KINDS)]])
    fence = {"k_addr": 8, "n_rows": 0xFFFF, "selection": 7, "kv_format": 9, "checksum": 3}
    made_jobs += [
        Fence(tag=5), Fence(tag=6, overrides={"reserved": 1 << 20}), simple_jobs["dense"],
        Fence(tag=7, overrides=fence),
    ]  # fmt: skip
    placed, errors = [], {}
    for job in made_jobs:
        # Those that pass after all have a result of their own: leave them out.
        one = place_shared(bench, job, placed)
        due = bench.verdict(one, bench.descriptor_address(len(placed)))
        overrides = isinstance(job, Job) and job.overrides
        if overrides and not due[0]:
            continue
        if due[0]:
            errors[len(placed)] = due
        placed.append(one)
    bench.run(placed, errors)


def place_shared(bench, job, placed):
    """Place a job, or give a refused one the place of an earlier job like it."""
    if isinstance(job, Job) and job.overrides:
        for one in placed:
            if isinstance(one.job, Job) and one.job.q is job.q and not one.job.overrides:
                image = dataclasses.replace(
                    one.image, fields=one.image.fields | job.overrides | {"tag": job.tag},
                    segments=[], results={},
                )  # fmt: skip
                return Placed(RefusedJob(job.tag), image)
    return bench.driver.place(job)


class RefusedJob(Fence):
    """A job of which nothing is read back."""


def rng_addresses(bench, rng, offset):
    """Addresses around the limits of the window, and misaligned."""
    first, last = bench.first, bench.last
    return [
        first + 0x8000 + int(rng.choice([1, 2, 4, 8, 16, 32])),
        (first - ALIGN) & NO_LIMIT,
        last + 1 - ALIGN,
        (last + 1) & NO_LIMIT,
        (1 << 64) - ALIGN,
        (first ^ 1 << int(rng.integers(34, 64))),
        0,
    ]


def windows(bench, made, timing, rng):
    """Windows as tight as a job's arrays, and one line less at each end; rings outside; LOCK."""
    device, driver = bench.device, bench.driver
    device.timing(**timing)
    dim = bench.config.head_dim
    for kind in ("checked", "routed", "explicit"):
        (placed,) = bench.place(made["simple"][kind])
        fields = dict.fromkeys(DESCRIPTOR, 0) | placed.image.fields
        used = [
            (fields[a.field], padded_size(a.n_bytes), a.written)
            for a in arrays(fields, dim)
        ]
        used.append((driver.ring, driver.entries * DESCRIPTOR_BYTES, False))
        used.append((driver.completions, driver.entries * COMPLETION_BYTES, True))
        tight = {}
        for direction, written in (("READ", False), ("WRITE", True)):
            own = [(a, n) for a, n, w in used if w == written]
            tight[direction] = (min(a for a, _ in own), max(a + n for a, n in own) - 1)
            bench.window(direction, *tight[direction])
        bench.run([placed])
        for direction, (first, last) in tight.items():
            bench.window(direction, first, last - 1)
            due = bench.verdict(placed, bench.descriptor_address(0))
            bench.run([placed], {0: due} if due[0] else {})
            bench.window(direction, first, last)
        wide = (bench.first, bench.last)
        for direction in tight:
            bench.window(direction, *wide)
    # An array that would pass the end of addresses.
    (placed,) = bench.place(made["simple"]["dense"])
    for name, direction in (("k_addr", "READ"), ("o_addr", "WRITE")):
        bench.window(direction, bench.first, NO_LIMIT)
        wraps = dataclasses.replace(
            placed.image, fields=placed.image.fields | {name: (1 << 64) - ALIGN}, results={}
        )
        one = Placed(RefusedJob(placed.job.tag), wraps)
        bench.run([one], {0: bench.verdict(one, bench.descriptor_address(0))})
        bench.window(direction, bench.first, bench.last)
    bench.run([placed])

    # Windows that hold the rings and nothing else.
    (fence,) = bench.place(Fence(tag=12))
    bench.window("READ", driver.ring, driver.ring + driver.entries * DESCRIPTOR_BYTES - 1)
    last = driver.completions + driver.entries * COMPLETION_BYTES - 1
    bench.window("WRITE", driver.completions, last)
    bench.run([fence] * (driver.entries + 1))
    for direction in ("READ", "WRITE"):
        bench.window(direction, bench.first, bench.last)

    # Rings outside: nothing is fetched until a doorbell after the windows are mended.
    for direction, blamed in (("READ", driver.ring), ("WRITE", driver.completions)):
        size = driver.entries * (DESCRIPTOR_BYTES if direction == "READ" else COMPLETION_BYTES)
        for first, last in ((blamed + ALIGN, bench.last), (bench.first, blamed + size - 2)):
            bench.window(direction, first, last)
            before = device.read32(regmap.HEAD)
            driver.post([placed])
            bench.log.append(device.run(2000))
            if not device.interrupt:
                raise Difference("hang", "no error of a ring outside its window")
            bench.error(ErrorCode.WINDOW, 0, blamed)
            bench.register("HEAD", device.read32(regmap.HEAD), before)
            device.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
            bench.window(direction, bench.first, bench.last)
            device.write32(regmap.TAIL, driver.announced & 0xFFFF)
            wait(bench, 1)
    lock = {name: bench.pair(name) for name in (
        "READ_BASE", "READ_LIMIT", "WRITE_BASE", "WRITE_LIMIT"
    )}  # fmt: skip
    device.write32(regmap.LOCK, 1)
    device.write32(regmap.LOCK, 0)
    bench.register("LOCK", device.read32(regmap.LOCK), 1)
    for name, value in lock.items():
        driver.write64(name, 0x1234_5678_9ABC_DEF0)
        if bench.pair(name) != value:
            raise Difference("register", f"{name} is not locked")
    bench.run([placed])


def edges(bench, made, timing, rng):
    """Windows that end with an array, each in turn, and a byte before its end."""
    bench.device.timing(**timing)
    dim = bench.config.head_dim
    for kind in ("checked", "routed", "explicit", "route"):
        job = made["simple"][kind]
        low, high = (
            bench.place(dataclasses.replace(job, store=dataclasses.replace(job.store)))[0]
            for _ in range(2)
        )
        names = {f"{name}_addr": name for name in low.image.results}
        fields = dict.fromkeys(DESCRIPTOR, 0) | low.image.fields
        for array in arrays(fields, dim):
            address = high.image.fields[array.field]
            image = dataclasses.replace(
                low.image, fields=low.image.fields | {array.field: address},
                results=dict(low.image.results),
            )  # fmt: skip
            if array.written:
                name = names[array.field]
                image.results[name] = high.image.results[name]
            # The other window holds nothing of `high`: the array must be held against its own.
            directions = ("WRITE", "READ") if array.written else ("READ", "WRITE")
            end = address + padded_size(array.n_bytes)
            bench.window(directions[1], bench.first, low.image.end - 1)
            for last in (end - 1, end - 2):
                bench.window(directions[0], bench.first, last)
                one = Placed(job, image)
                clear(bench, [one])
                due = (ErrorCode.WINDOW, address) if last < end - 1 else None
                bench.run([unread(one) if due else one], {0: due} if due else {})
            for direction in directions:
                bench.window(direction, bench.first, bench.last)
    # As many tokens as there can be, none of which the job reads.
    route = made["simple"]["route"]
    size = -(-MAX_TOKENS // (route.store.n_chunks * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE
    overrides = {"n_tokens": MAX_TOKENS, "chunk_tokens": size}
    bench.run(bench.place(dataclasses.replace(route, overrides=overrides)))
    one = dataclasses.replace(made["short"], overrides={"chunk_tokens": MAX_TOKENS})
    bench.run(bench.place(one))


def guards(bench, made, timing, rng):
    """Windows that close over a job on its way: nothing outside is touched; a reset mends it."""
    device = bench.device
    for direction, field in (("READ", "v_addr"), ("WRITE", "o_addr")):
        device.timing(**timing)
        (placed,) = bench.place(made["long"])
        bench.driver.post([placed])
        device.run(900, until_interrupt=False)
        count = bench.driver.announced
        bench.register("HEAD", device.read32(regmap.HEAD), count)
        limit = placed.image.fields[field] - 1
        bench.driver.write64(f"{direction}_LIMIT", limit)
        device.run(16, until_interrupt=False)  # what was checked before is on its way
        whole = (bench.first, bench.last + 1)
        device.allow(**{"read": whole, "write": whole, direction.lower(): (bench.first, limit + 1)})
        device.run(20_000, until_interrupt=False)
        bench.check_quiet()
        status = device.read32(regmap.STATUS)
        faults = (regmap.STATUS_READ_FAULT_MASK, regmap.STATUS_WRITE_FAULT_MASK)
        expected = faults[0] if direction == "READ" else faults[1]
        bench.register("STATUS faults", status & sum(faults), expected)
        bench.register("COMPLETED", device.read32(regmap.COMPLETED), count - 1)
        device.reset()
        bench.restart()
        bench.run(bench.place(made["simple"]["dense"]))


def wait(bench, count):
    """Wait for good jobs without looking at more than their completion."""
    try:
        outcomes = bench.driver.wait(count, max_cycles=bench.limit)
    except (RuntimeError, DeviceError) as error:
        raise Difference("hang", str(error)) from error
    for outcome in outcomes:
        if outcome.error:
            raise Difference("code", f"{outcome.error_code.name} at {outcome.error_address:#x}")
    return outcomes


def doorbell(bench, made, timing, rng):
    """Doorbells too far ahead or back are errors of no job; good ones go on, also while busy."""
    device, driver = bench.device, bench.driver
    device.timing(**timing)
    placed = bench.place(*(made["simple"][kind] for kind in ("dense", "routed", "explicit")))
    for busy in (False, True):
        if busy:
            driver.post(placed[:1])
        base = driver.collected + int(busy)
        for tail in (driver.collected + driver.entries + 1, (base - 1 - int(busy)) & 0xFFFF):
            device.write32(regmap.TAIL, tail & 0xFFFF)
            if not device.read32(regmap.EVENT) & regmap.EVENT_ERROR_MASK:
                raise Difference("code", f"no error of tail {tail}")
            bench.error(ErrorCode.RING, 0, tail & 0xFFFF)
            device.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
        driver.post(placed[1:])
        outcomes = wait(bench, len(placed) - (not busy))
        bench.log += [outcome.cycle for outcome in outcomes]
    # A full ring; more jobs than fit the lower byte of the counts.
    bench.run((placed * driver.entries)[: 2 * driver.entries])
    bench.run(bench.place(Fence(tag=1)) * 260)


READS = {  # what is read: kind of job, field of its address (None: the descriptor)
    "descriptor": ("routed", None),
    "selection": ("explicit", "selection_addr"),
    "query_scales": ("dense", "q_scale_addr"),
    "queries": ("dense", "q_addr"),
    "representatives": ("routed", "rep_addr"),
    "representative_scales": ("route", "rep_scale_addr"),
    "keys": ("dense", "k_addr"),
    "values": ("dense", "v_addr"),
    "scales": ("dense", "scale_addr"),
    "checksums": ("checked", "checksum_addr"),
}


def read_errors(bench, made, timing, rng):
    """Errors on the first and the last beat of each array, between good jobs."""
    device = bench.device
    device.timing(**timing)
    word = bench.config.bus_bytes
    good = bench.place(*(made["simple"][kind] for kind in KINDS))
    own = dict(zip(KINDS, good, strict=True))
    for number, (kind, field) in enumerate(READS.values()):
        one = own[kind]
        fields = dict.fromkeys(DESCRIPTOR, 0) | one.image.fields
        sizes = {a.field: a.n_bytes for a in arrays(fields, bench.config.head_dim)}
        size = DESCRIPTOR_BYTES if field is None else sizes[field]
        last = (size - 1) // word * word
        for offset in (0, last):
            ahead = number % 2
            start = bench.descriptor_address(ahead) if field is None else fields[field]
            device.inject(
                kind="read", address=start + offset, size=word, response=2 + number % 2, count=1
            )
            # The injection meets the first job that reads the address.
            placed = [own["routed" if kind != "routed" else "dense"]] * ahead
            placed += [one, own["checked" if kind == "dense" else "dense"]]
            clear(bench, placed)
            bench.run(
                [unread(p) if i == ahead else p for i, p in enumerate(placed)],
                {ahead: (ErrorCode.READ, start + offset)},
            )
            device.clear_injections()
    # The chunks that a failed job leaves are not those of the next one.
    for kind in ("many", "few of many"):
        (bad,) = bench.place(made[kind])
        read = np.flatnonzero(bench.expected(made[kind]).selected.any(axis=0))
        for chunk in (read[0], read[len(read) // 2], read[-1]):
            address = bad.image.fields["k_addr"] + int(chunk) * 16 * bench.config.head_dim
            device.inject(kind="read", address=address, size=word, count=1)
            placed = [own["explicit"], bad, own["dense"], own["explicit"]]
            clear(bench, placed)
            bench.run(
                [unread(p) if p is bad else p for p in placed], {1: (ErrorCode.READ, address)}
            )
    clear(bench, good)
    bench.run(good)


def unread(placed):
    """Return the job with results that are allowed to change and are not looked at."""
    return Placed(RefusedJob(placed.job.tag), dataclasses.replace(placed.image))


def clear(bench, placed):
    """Fill results with the pattern again, guard lines with zeros."""
    for one in placed:
        for address, size in one.image.results.values():
            bench.device.write(address, bytes([FILL]) * padded_size(size) + bytes(ALIGN))


def write_errors(bench, made, timing, rng):
    """Errors on writes of each result; a record that cannot be written."""
    device, driver = bench.device, bench.driver
    device.timing(**timing)
    burst = 256 * bench.config.bus_bytes
    routed, dense = bench.place(made["simple"]["routed"], made["simple"]["dense"])
    for name, (start, size) in routed.image.results.items():
        for address in (start, start + (size - 1) // ALIGN * ALIGN):
            due = max(start, address // burst * burst)
            device.inject(kind="write", address=address, size=4, response=3, count=1)
            clear(bench, [routed, dense])
            bench.run([dense, unread(routed), dense], {1: (ErrorCode.WRITE, due)})
            device.clear_injections()
        bench.log.append(name)
    # The first of two errors counts.
    (o, _), (selection, _) = (routed.image.results[n] for n in ("o", "selection"))
    for address in (o, selection):
        device.inject(kind="write", address=address, size=4, response=2, count=1)
    clear(bench, [routed, dense])
    driver.post([routed])
    bench.log.append(device.run(MAX_CYCLES))
    bench.log.append(bench.pair("ERROR_ADDRESS"))
    device.clear_injections()
    driver.collect()
    bench.errors += 1

    record = driver.completions + driver.announced % driver.entries * COMPLETION_BYTES
    device.inject(kind="write", address=record, size=COMPLETION_BYTES, count=1)
    sequence = driver.announced + 1
    driver.post([dense, routed])
    for _ in range(2):
        device.run(MAX_CYCLES)
        device.write32(regmap.EVENT, regmap.EVENT_DONE_MASK)
        device.run(4000, until_interrupt=False)
    device.clear_injections()
    bench.error(ErrorCode.WRITE, sequence, record)
    got = unpack_completion(device.read(record + 0, COMPLETION_BYTES))
    bench.log.append(got["sequence"])
    bench.errors += 1
    driver._under_way.clear()
    driver.collected = driver.announced
    device.write32(regmap.EVENT, 3)
    clear(bench, [routed, dense])
    bench.run([routed, dense])


def checksums(bench, made, timing, rng):
    """Flip a bit in each array of each chunk; a chunk that nobody reads does not matter."""
    device, config = bench.device, bench.config
    device.timing(**timing)
    job = made["simple"]["checked"]
    bad, good = bench.place(job, made["simple"]["routed"])
    fields = bad.image.fields
    per_token = {"k_addr": config.head_dim, "v_addr": config.head_dim, "scale_addr": 4}
    record = fields["checksum_addr"]
    for chunk, name in itertools.product(range(job.store.n_chunks), [*per_token, "checksum_addr"]):
        if name == "checksum_addr":
            address = record + chunk * CHECKSUM_BYTES + int(rng.integers(12))
        else:
            span = min(32, job.store.n_tokens - 32 * chunk) * per_token[name]
            address = fields[name] + 32 * per_token[name] * chunk
            address += (0, span - 1, int(rng.integers(span)))[chunk]
        mask = 1 << int(rng.integers(8))
        original = device.read(address, 1)[0]
        device.write(address, bytes([original ^ mask]))
        clear(bench, [bad, good])
        due = (ErrorCode.CHECKSUM, chunk_of(config, job, fields, chunk))
        bench.run([good, unread(bad)], {1: due})
        device.write(address, bytes([original]))
    clear(bench, [bad, good])
    bench.run([bad, good])
    wanted = np.ones((len(job.q), job.store.n_chunks), dtype=bool)
    wanted[:, 1] = False
    few = made["unread chunk"]
    (placed,) = bench.place(few)
    address = placed.image.fields["k_addr"] + 32 * config.head_dim
    device.write(address, bytes([device.read(address, 1)[0] ^ 1]))
    bench.run([placed])


def chunk_of(config, job, fields, chunk):
    """Address that a checksum error of a chunk tells: that of its keys."""
    return fields["checksum_addr"] + chunk * CHECKSUM_BYTES


def timeouts(bench, made, timing, rng):
    """Set a limit just above what jobs take, and one that a long job breaks."""
    device = bench.device
    device.timing(latency=100)
    n_contexts = bench.config.contexts
    kinds = [KINDS[index % 3] for index in range(n_contexts + 1)]
    long, *others = bench.place(made["long"], *(made["simple"][kind] for kind in kinds))
    placed = [others[0], long, *others[1:]]
    outcomes = bench.run(placed)
    cycles = [outcome.counters["cycles"] for outcome in outcomes]
    device.write32(regmap.TIMEOUT, cycles[1] + 500)
    clear(bench, placed)
    bench.run(placed)
    limit = max(c for index, c in enumerate(cycles) if index != 1) + 200
    device.write32(regmap.TIMEOUT, limit)
    # In each context.
    for place in range(1, n_contexts + 1):
        placed = [*others[:place], long, *others[place:]]
        clear(bench, placed)
        address = bench.descriptor_address(place)
        due = {place: (ErrorCode.TIMEOUT, address)}
        outcomes = bench.run([unread(p) if p is long else p for p in placed], due)
        if not limit <= outcomes[place].counters["cycles"] < cycles[1]:
            text = f"timeout after {outcomes[place].counters['cycles']} of {limit}"
            raise Difference("counters", text)
    device.write32(regmap.TIMEOUT, 0)
    clear(bench, placed)
    bench.run(placed)


def fences(bench, made, timing, rng):
    """Jobs behind a fence are not read before all earlier ones are complete."""
    device, driver = bench.device, bench.driver
    device.timing(**timing)
    placed = bench.place(
        *(made["simple"][kind] for kind in ("dense", "checked")), Fence(tag=3),
        made["simple"]["routed"], Fence(tag=4), Fence(tag=5), made["simple"]["route"],
    )  # fmt: skip
    bench.run(placed)
    # HEAD stands still behind a fence while a job before it is under way.
    clear(bench, placed)
    driver.post(placed)
    for _ in range(MAX_CYCLES // 16):
        head, completed = device.read32(regmap.HEAD), device.read32(regmap.COMPLETED)
        base = driver.announced - len(placed)
        for fence in (2, 4, 5):
            if head - base > fence + 1 and completed - base < fence + 1:
                raise Difference("code", f"head {head - base}, completed {completed - base}")
        if completed == driver.announced & 0xFFFF:
            break
        device.run(16, until_interrupt=False)
    wait(bench, len(placed))
    bench.check_idle()


def restarts(bench, made, timing, rng):
    """Disabling the ring starts it anew; a reset in the middle of jobs leaves no trace."""
    device, driver = bench.device, bench.driver
    device.timing(**timing)
    whole = made["simple"]["checked"]
    (placed,) = bench.place(whole)
    bench.run([placed])
    device.write32(regmap.CONTROL, 0)
    for name in ("HEAD", "COMPLETED"):
        bench.register(name, device.read32(getattr(regmap, name)), 0)
    device.write32(regmap.TAIL, 3)  # not looked at
    device.write32(regmap.CONTROL, regmap.CONTROL_ENABLE_MASK)
    if device.run(300) != 300:
        raise Difference("register", "interrupt while nothing was announced")
    bench.register("HEAD", device.read32(regmap.HEAD), 0)
    jobs_before = device.read32(regmap.JOBS)
    driver.announced = driver.collected = 0
    clear(bench, [placed])
    driver.post([placed])
    (outcome,) = wait(bench, 1)
    if wrong := difference(outcome.result, bench.expected(whole)):
        raise Difference("bits", wrong)
    bench.register("JOBS", device.read32(regmap.JOBS), jobs_before + 1)
    for point in (25, 90, 200, 330, 450, 600, 900):
        kinds = [KINDS[(point + i) % len(KINDS)] for i in range(4)]
        bench.driver.post(bench.place(*(made["simple"][kind] for kind in kinds)))
        device.run(point, until_interrupt=False)
        device.reset()
        bench.restart()
        bench.run(bench.place(made["simple"][kinds[0]], whole))


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene: where memory lies, how it answers, what is played."""

    name: str
    play: Callable
    timing: Mapping
    base: int
    ring_size: int = 3


SCENES = (
    Scene("queue", queue, CALM, BASES[0]),
    Scene("limits", at_limits, CALM, BASES[1], 4),
    Scene("queue rough", queue, ROUGH, BASES[1], 2),
    Scene("limits full", at_limits, FULL, BASES[0], 5),
    Scene("descriptors", descriptors, CALM, BASES[0]),
    Scene("read errors", read_errors, CALM, BASES[1]),
    Scene("read errors rough", read_errors, ROUGH, BASES[0]),
    Scene("write errors", write_errors, CALM, BASES[0]),
    Scene("checksums", checksums, CALM, BASES[1]),
    Scene("checksums rough", checksums, ROUGH, BASES[0], 1),
    Scene("windows", windows, CALM, BASES[1]),
    Scene("edges", edges, CALM, BASES[0]),
    Scene("guards", guards, {"latency": 50}, BASES[1]),
    Scene("doorbell", doorbell, CALM, BASES[0], 2),
    Scene("registers", registers, CALM, BASES[0]),
    Scene("registers rough", registers, ROUGH, BASES[1]),
    Scene("fences", fences, {"latency": 20}, BASES[1]),
    Scene("timeouts", timeouts, CALM, BASES[0]),
    Scene("restarts", restarts, {"latency": 10, "stall": 0.1}, BASES[1]),
)


class Suite:
    """The scenes on one configuration. Jobs and what they must give are computed once.

    Parameters
    ----------
    config
        the unit
    directory, verilog
        as in :class:`Device`
    """

    def __init__(
        self,
        config: Config,
        directory: pathlib.Path | None = None,
        *,
        verilog: pathlib.Path | None = None,
        scenes: Sequence[Scene] = SCENES,
    ):
        self.config = config
        self.options = {"directory": directory, "verilog": verilog}
        self.scenes = scenes
        self.expected = Expected()
        rng = np.random.default_rng(SEED)
        made = {kind: simple(rng, config, kind) for kind in KINDS}
        checked = made["checked"]
        wanted = np.ones((len(checked.q), checked.store.n_chunks), dtype=bool)
        wanted[:, 1] = False
        job_lists = {"jobs": jobs(config, rng), "extremes": extremes(config, rng)}
        n_chunks = config.max_chunks
        many = Job(store(rng, config, 16 * n_chunks, 16), *queries(rng, 3, config.head_dim))
        few = np.zeros((3, n_chunks), dtype=bool)
        few[:, 1::3] = True
        self.made = {
            **job_lists,
            "simple": {
                kind: dataclasses.replace(job, tag=0x5EED0000 + index)
                for index, (kind, job) in enumerate(made.items())
            },
            "many": many,
            "short": Job(store(rng, config, 16, 16), *queries(rng, 1, config.head_dim)),
            "few of many": dataclasses.replace(many, explicit=few),
            "unread chunk": dataclasses.replace(checked, explicit=wanted),
            "long": Job(
                store(rng, config, 32 * min(16, config.max_chunks), 32),
                *queries(rng, config.max_rows, config.head_dim),
                tag=9,
            ),
        }

    def play(
        self,
        scene: Scene,
        *,
        mutant: int | None = None,
        limit: int = MAX_CYCLES,
        cycles: list | None = None,
    ) -> tuple[list, dict[str, int]]:
        """Play a scene on a fresh device.

        Parameters
        ----------
        mutant
            number of the mutant at work, 0: none, in Verilog that has mutants
        limit
            cycles without a completion that count as a hang
        cycles
            gets the cycles that the scene takes

        Returns
        -------
        What may change with timing, and sums of the counters that tell of work.

        Raises
        ------
        Difference
        """
        with Device(
            self.config, memory_bytes=MEMORY, base=scene.base, seed=SEED, **self.options
        ) as device:
            if mutant is not None:
                device.set_mutant(mutant)
                device.reset()
            try:
                bench = Bench(device, self.expected, ring_size=scene.ring_size)
                bench.limit = limit
                scene.play(bench, self.made, scene.timing, np.random.default_rng(SEED))
                bench.check_quiet()
            except (RuntimeError, DeviceError) as error:
                violations = device.violations
                if violations:
                    raise Difference("violation", violations[0]) from error
                raise Difference("hang", str(error)) from error
            if cycles is not None:
                cycles.append(device.cycle)
            return bench.log, bench.sums
