# amaranth: UnusedElaboratable=no
"""Ring, descriptor check and frontend against the golden check and a model of the ring."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import wiring

from moska.golden.check import MAX_ALL_CHUNKS, arrays, check, inside
from moska.golden.formats import MAX_TOKENS
from moska.golden.layout import (
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    ErrorCode,
    Opcode,
    Selection,
    pack_descriptor,
)
from moska.hw.control import descriptor as hw_descriptor
from moska.hw.control.check import DescriptorCheck, WindowCheck
from moska.hw.control.frontend import Frontend
from moska.hw.control.ring import Ring
from moska.sim.bench import check_hold, simulate

LIMITS = {"head_dim": 16, "max_rows": 16, "max_chunks": 64, "buffer_tokens": 32}
TOP = (1 << 64) - 1
ADDRESSES = tuple(name for name in DESCRIPTOR if name.endswith("_addr"))
MAX_LATENCY = 150  # cycles from a descriptor's last beat to its job

ATTEND = {
    **dict.fromkeys(DESCRIPTOR, 0),
    "opcode": Opcode.ATTEND,
    "selection": Selection.ALL,
    "n_rows": 6,
    "n_tokens": 160,
    "n_chunks": 4,
    "chunk_tokens": 48,
    "tag": 0xDEADBEEF,
    **{name: (index + 1) << 32 for index, name in enumerate(ADDRESSES)},
}
TOP_K = {
    **ATTEND,
    "selection": Selection.TOP_K,
    "group": 3,
    "k": 2,
    "rep_rows": 4,
    "write_selection": 1,
    "checksum": 1,
}
ROUTE = {**TOP_K, "opcode": Opcode.ROUTE}
EXPLICIT = {**ATTEND, "selection": Selection.EXPLICIT}
FENCE = {**dict.fromkeys(DESCRIPTOR, 0), "opcode": Opcode.FENCE, "tag": 7}
JOBS = (ATTEND, TOP_K, ROUTE, EXPLICIT, FENCE)

# Values at the edges of what is allowed, and far from it.
EDGES = {
    "opcode": (0, 1, 2, 3, 4, 255),
    "selection": (0, 1, 2, 3, 255),
    "router": (0, 1, 2, 255),
    "write_selection": (0, 1, 2, 255),
    "n_rows": (0, 1, 15, 16, 17, 65535),
    "group": (0, 1, 2, 3, 4, 6, 65535),
    "n_tokens": (0, 1, 144, 145, 192, 193, MAX_TOKENS, MAX_TOKENS + 1, (1 << 32) - 1),
    "n_chunks": (0, 1, 3, 5, 64, 65, MAX_ALL_CHUNKS, MAX_ALL_CHUNKS + 1, (1 << 32) - 1),
    "chunk_tokens": (0, 16, 24, 32, 47, 160, MAX_TOKENS, MAX_TOKENS + 16, (1 << 32) - 16),
    "rep_rows": (0, 1, 2, 3, 16, 32, 33, 64, 32768),
    "checksum": (0, 1, 2, 255),
    "kv_format": (0, 1, 255),
    "reserved": (0, 1, 1 << 47),
    **{name: (1, 32, 64, TOP - 63, TOP) for name in ADDRESSES},
}


# Edges that need more than one field.
COMBINED = (
    {"router": 1, "rep_rows": 1},
    {"router": 1, "rep_rows": 2},
    {"chunk_tokens": 16, "n_chunks": 64, "n_tokens": 16 * 64},
    {"chunk_tokens": 16, "n_chunks": 65, "n_tokens": 16 * 65},
    {"chunk_tokens": 16, "n_chunks": MAX_ALL_CHUNKS, "n_tokens": MAX_TOKENS},
    {"n_rows": 16, "group": 5},
)


def mutated(rng, fields, n_changes):
    """Return ``fields`` with some of them changed, and windows that fit or nearly do."""
    fields = dict(fields)
    for name in rng.sample(list(EDGES), n_changes):
        fields[name] = rng.choice(EDGES[name])
    kind = rng.randrange(4)
    if kind == 0:  # shapes of every size
        fields["chunk_tokens"] = 16 * rng.randrange(1, 8)
        fields["n_chunks"] = rng.randrange(1, 65)
        fields["n_tokens"] = fields["chunk_tokens"] * fields["n_chunks"] - rng.randrange(17)
        fields["n_rows"] = rng.randrange(1, 17)
        fields["group"] = rng.randrange(1, 17)
    windows = {"read": (0, TOP), "write": (0, TOP)}
    if rng.randrange(2):
        # A window that ends, or begins, about where an array does, below or above all others.
        used = arrays(fields, LIMITS["head_dim"])
        if used:
            array = rng.choice(used)
            end = rng.choice((0, 1))
            first = fields[array.field] = (1 << 60) + 0xFFFF_FFC0 if end else 64 * rng.randrange(9)
            last = first + -(-array.n_bytes // 64) * 64 - 1
            step = rng.choice((-1, 0, 0, 1))
            window = (0, last + step) if end else (max(0, first + step), TOP)
            windows["write" if array.written else "read"] = window
    return fields, windows


def golden_check(fields, address, windows, limits=LIMITS):
    return check(
        fields,
        address=address,
        read_window=windows["read"],
        write_window=windows["write"],
        **limits,
    )


def set_windows(ctx, dut, windows):
    for name, (base, limit) in windows.items():
        ctx.set(getattr(dut, f"{name}_base"), base)
        ctx.set(getattr(dut, f"{name}_limit"), limit)


def beats(raw, size):
    return [int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size)]


def test_codes_are_those_of_the_golden_model():
    for code in ErrorCode:
        assert hw_descriptor.ErrorCode[code.name].value == code.value
    assert len(hw_descriptor.ErrorCode) == len(ErrorCode)


def test_window_check():
    seed = 40
    rng = random.Random(seed)
    dut = WindowCheck()
    seen = {True: 0, False: 0}

    def near(value):
        return (value + rng.randrange(-2, 3)) & TOP

    async def bench(ctx):
        for index in range(400):
            width = rng.choice((8, 33, 64))
            addr, extent = rng.getrandbits(width), rng.getrandbits(rng.choice((6, 32)))
            addr = rng.choice((addr, TOP - addr))
            last = (addr + extent) & TOP
            base = rng.choice((0, near(addr), rng.getrandbits(64)))
            limit = rng.choice((TOP, near(last), rng.getrandbits(64)))
            written = rng.randrange(2)
            other = (rng.getrandbits(64), rng.getrandbits(64))
            windows = {"write": (base, limit), "read": other}
            if not written:
                windows = {"read": (base, limit), "write": other}
            set_windows(ctx, dut, windows)
            ctx.set(dut.request.payload, {"addr": addr, "extent": extent, "written": written})
            ctx.set(dut.request.valid, 1)
            at = f"seed {seed}, {index}: {addr:#x} + {extent:#x} in {base:#x} to {limit:#x}"
            for _ in range(dut.latency):
                assert not ctx.get(dut.request.ready), at
                await ctx.tick()
            assert ctx.get(dut.request.ready), at
            expected = inside(addr, extent + 1, (base, limit))
            assert ctx.get(dut.inside) == expected, at
            assert ctx.get(dut.last) == last, at
            seen[expected] += 1
            await ctx.tick()
            ctx.set(dut.request.valid, rng.randrange(2))
            if ctx.get(dut.request.valid):
                continue
            await ctx.tick().repeat(rng.randrange(1, 3))

    simulate(dut, bench)
    assert min(seen.values()) > 100, seen


class CheckWithWindows(Elaboratable):
    """A DescriptorCheck and the WindowCheck that it asks."""

    def __init__(self, **kwargs):
        self.check = DescriptorCheck(**kwargs)
        self.window = WindowCheck()

    def elaborate(self, platform):
        m = Module()
        m.submodules.check = self.check
        m.submodules.window = self.window
        wiring.connect(m, check=self.check.request, window=self.window.request)
        m.d.comb += [
            self.check.inside.eq(self.window.inside),
            self.check.last.eq(self.window.last),
        ]
        return m


async def check_one(ctx, dut, rng, fields, address, windows, at, limits=LIMITS):
    """Load and check a descriptor; return the cycles from ``start`` to ``done``."""
    part = dut.check
    set_windows(ctx, dut.window, windows)
    ctx.set(part.address, address)
    for beat in beats(pack_descriptor(**fields), part.bus_bytes):
        while rng.random() < 0.2:
            await ctx.tick()
        ctx.set(part.beat, {"valid": 1, "data": beat})
        await ctx.tick()
        ctx.set(part.beat, {"valid": 0, "data": rng.getrandbits(32)})
    ctx.set(part.start, 1)
    await ctx.tick()
    ctx.set(part.start, 0)
    cycles = 1
    while not ctx.get(part.done):
        assert cycles < MAX_LATENCY, at
        await ctx.tick()
        cycles += 1
    code, error_addr = golden_check(fields, address, windows, limits)
    got = (ctx.get(part.code).value, ctx.get(part.error_addr))
    assert got == (code.value, error_addr), f"{at}: {got} is not {code!r}, {error_addr:#x}"
    for name in DESCRIPTOR:
        assert ctx.get(getattr(part.descriptor, name)) == fields[name], f"{at}: {name}"
    if code == ErrorCode.NONE and fields["selection"] == Selection.TOP_K:
        if fields["opcode"] != Opcode.FENCE:
            assert 1 << ctx.get(part.rep_shift) == fields["rep_rows"], at
    return cycles, code, error_addr


@pytest.mark.parametrize(("bus_bytes", "count"), [(8, 240), (16, 40), (32, 40), (64, 40)])
def test_check_of_random_descriptors(bus_bytes, count):
    seed = 50 + bus_bytes
    rng = random.Random(seed)
    dut = CheckWithWindows(bus_bytes=bus_bytes, **LIMITS)
    seen = {}
    longest = 0

    async def bench(ctx):
        nonlocal longest
        for index in range(count):
            fields, windows = mutated(rng, rng.choice(JOBS), rng.choice((0, 0, 0, 1, 1, 2, 4)))
            address = 64 * rng.getrandbits(rng.choice((8, 57)))
            at = f"seed {seed}, descriptor {index}: {fields}, {windows}"
            cycles, code, _ = await check_one(ctx, dut, rng, fields, address, windows, at)
            seen[code] = seen.get(code, 0) + 1
            longest = max(longest, cycles)
            await ctx.tick().repeat(rng.randrange(1, 3))

    simulate(dut, bench, cycles=100_000)
    assert set(seen) == {ErrorCode.NONE, ErrorCode.DESCRIPTOR, ErrorCode.WINDOW}, seen
    assert min(seen.values()) > count // 20, seen
    assert longest <= DescriptorCheck.max_latency < MAX_LATENCY


def test_check_of_every_field():
    """Every edge of every field in three kinds of job, and edges of some fields together."""
    seed = 60
    rng = random.Random(seed)
    dut = CheckWithWindows(bus_bytes=64, **LIMITS)
    blamed = set()

    async def bench(ctx):
        alone = [{name: value} for name, values in EDGES.items() for value in values]
        jobs = (ROUTE, {**EXPLICIT, "checksum": 1}, FENCE)
        cases = [(job, changes) for job in jobs for changes in alone]
        cases += [(job, changes) for job in JOBS for changes in COMBINED]
        windows = {"read": (0, TOP), "write": (0, TOP)}
        for job, changes in cases:
            at = f"seed {seed}, {changes} in {job}"
            fields = {**job, **changes}
            _, code, addr = await check_one(ctx, dut, rng, fields, 0x1240, windows, at)
            if code == ErrorCode.DESCRIPTOR:
                blamed.add(addr - 0x1240)
            await ctx.tick()

    simulate(dut, bench, cycles=200_000)
    assert blamed == {DESCRIPTOR[name][0] for name in EDGES}


@pytest.mark.parametrize(
    "limits",
    [
        {"head_dim": 256, "max_rows": 512, "max_chunks": 4096, "buffer_tokens": 256},
        {"head_dim": 128, "max_rows": 512, "max_chunks": 1024, "buffer_tokens": 32},
    ],
)
def test_check_of_the_largest_arrays(limits):
    """Every array at its largest, at the end of memory: it fits; a line later it does not."""
    rng = random.Random(61)
    dut = CheckWithWindows(bus_bytes=64, **limits)
    largest = {
        **TOP_K, "n_rows": limits["max_rows"], "group": limits["max_rows"], "n_tokens": MAX_TOKENS,
        "n_chunks": limits["max_chunks"], "chunk_tokens": MAX_TOKENS // limits["max_chunks"],
        "rep_rows": limits["buffer_tokens"],
    }  # fmt: skip
    many = {**ATTEND, "n_tokens": MAX_TOKENS, "n_chunks": MAX_ALL_CHUNKS, "chunk_tokens": 16}
    windows = {"read": (0, TOP), "write": (0, TOP)}
    longest = 0

    async def bench(ctx):
        nonlocal longest
        for job in (largest, {**many, "checksum": 1}):
            for array in arrays(job, limits["head_dim"]):
                n_bytes = -(-array.n_bytes // 64) * 64
                for late in (0, 64):
                    fields = {**job, array.field: (1 << 64) - n_bytes + late}
                    if fields[array.field] > TOP:
                        continue
                    at = f"{array}, {late} bytes late"
                    cycles, code, _ = await check_one(
                        ctx, dut, rng, fields, 64, windows, at, limits
                    )
                    assert (code == ErrorCode.NONE) == (late == 0), at
                    longest = max(longest, cycles)
                    await ctx.tick()

    simulate(dut, bench, cycles=20_000)
    # With 512 rows, as long as the docstring says.
    assert longest == DescriptorCheck.max_latency


class RingModel:
    """Counts of the ring, as Python integers that do not wrap."""

    def __init__(self):
        self.announced = self.head = self.completed = 0
        self.stopped = False

    def doorbell(self, tail, size):
        """Take a doorbell; return whether it is good."""
        ahead = (tail - self.completed) % 65536
        good = self.announced - self.completed <= ahead <= size
        if good:
            self.announced = self.completed + ahead
        self.stopped = not good
        return good


@pytest.mark.parametrize("ring_size", [0, 1, 4, 15])
def test_ring(ring_size):
    seed = 70 + ring_size
    rng = random.Random(seed)
    dut = Ring()
    size = 1 << ring_size
    count = {"good": 0, "bad": 0, "restart": 0}

    async def bench(ctx):
        model = RingModel()
        ctx.set(dut.ring_size, ring_size)
        enable = 1
        for cycle in range(3000):
            at = f"seed {seed}, cycle {cycle}"
            under_way = model.head - model.completed
            if rng.random() < 0.02:
                enable = 1 - enable
            idle = int(rng.random() < (0.2 if under_way else 0.8))
            far = rng.choice((0, 1, 1, 2, size // 2, size, size + 1, 40_000, 65_535))
            tail = (rng.choice((model.completed, model.announced)) + far) % 65536
            rings = int(rng.random() < 0.1)
            ctx.set(dut.enable, enable)
            ctx.set(dut.idle, idle)
            ctx.set(dut.tail, tail)
            ctx.set(dut.tail_written, rings)
            wanted = enable and not model.stopped and model.announced != model.head
            fetched = wanted and rng.random() < 0.4
            completes = under_way and rng.random() < 0.5
            refused = wanted and not fetched and rng.random() < 0.02
            ctx.set(dut.fetched, int(fetched))
            ctx.set(dut.completed_pulse, int(completes))
            ctx.set(dut.refused, int(refused))

            assert ctx.get(dut.wanted) == wanted, at
            assert ctx.get(dut.head) == model.head % 65536, at
            assert ctx.get(dut.sequence) == model.head, at
            assert ctx.get(dut.index) == model.head % size, at
            assert ctx.get(dut.completed) == model.completed % 65536, at
            assert ctx.get(dut.drained) == (under_way == 0), at
            good = bad = False
            if rings and enable:
                good = model.doorbell(tail, size)
                bad = not good
            assert (ctx.get(dut.good), ctx.get(dut.bad)) == (good, bad), at
            count["good"] += good
            count["bad"] += bad
            model.stopped |= refused
            model.head += fetched
            model.completed += completes
            if not enable and idle and not under_way:
                count["restart"] += model.head > 0
                model = RingModel()
            await ctx.tick()

    simulate(dut, bench)
    assert min(count.values()) > 10, count


class World:
    """Memory, host and the rest of the unit around a frontend, a cycle at a time."""

    def __init__(self, dut, ring_size, *, seed, stall):
        self.dut = dut
        self.rng = random.Random(seed)
        self.seed = seed
        self.stall = stall
        self.ring_size = ring_size
        self.size = 1 << ring_size
        self.ring_addr = 64 * self.rng.getrandbits(40)
        self.completion_addr = 64 * self.rng.getrandbits(40)
        self.windows = {"read": (0, TOP), "write": (0, TOP)}
        self.model = RingModel()
        self.cycle = 0
        self.memory = {}  # fields of the descriptor at an address
        self.read = None  # descriptor being read: [address, beats to come, beats that are bad]
        self.bad_addr = None
        self.expected = []  # jobs in order
        self.under_way = []  # cycle in which each job that was taken is complete
        self.taken = 0
        self.errors = []
        self.commands = []
        self.fence = False  # the job read last is a fence

    def chance(self):
        return self.rng.random() >= self.stall

    async def setup(self, ctx):
        dut = self.dut
        ctx.set(dut.ring_addr, self.ring_addr)
        ctx.set(dut.completion_addr, self.completion_addr)
        ctx.set(dut.ring_size, self.ring_size)
        ctx.set(dut.enable, 1)
        ctx.set(dut.idle_jobs, 1)
        set_windows(ctx, dut, self.windows)

    def announce(self, n_jobs, make):
        """Write descriptors behind those announced; return the new tail."""
        for index in range(self.model.announced, self.model.announced + n_jobs):
            self.memory[self.ring_addr + DESCRIPTOR_BYTES * (index % self.size)] = make()
        return self.model.announced + n_jobs

    async def step(self, ctx, *, tail=None, max_jobs=2):
        """Run a cycle; write ``tail`` to the doorbell if given."""
        dut, rng = self.dut, self.rng
        at = f"seed {self.seed}, cycle {self.cycle}"
        ctx.set(dut.tail_written, int(tail is not None))
        good = False
        if tail is not None:
            ctx.set(dut.tail, tail % 65536)
            good = self.model.doorbell(tail % 65536, self.size)

        completes = bool(self.under_way and self.under_way[0] <= self.cycle)
        ctx.set(dut.completed_pulse, int(completes))
        ctx.set(dut.idle_jobs, int(not self.under_way))
        takes = len(self.under_way) < max_jobs and self.chance()
        ctx.set(dut.job.ready, int(takes))
        ctx.set(dut.cmd.ready, int(self.chance()))

        # Memory: beats with gaps; `bad` with its beat or the next ones, no later than `loaded`.
        ctx.set(dut.beat, {"valid": 0, "data": rng.getrandbits(64)})
        ctx.set(dut.bad, {"valid": 0, "addr": rng.getrandbits(64)})
        ctx.set(dut.loaded, 0)
        if self.read is not None and self.chance():
            address, words, bad = self.read
            if words:
                word, is_bad = words.pop(0), bad.pop(0)
                ctx.set(dut.beat, {"valid": 1, "data": word})
                if is_bad:
                    index = DESCRIPTOR_BYTES // dut.bus_bytes - len(words) - 1
                    ctx.set(dut.bad, {"valid": 1, "addr": address + index * dut.bus_bytes})
            if not words and self.chance():
                ctx.set(dut.loaded, 1)
                self.read = None

        assert ctx.get(dut.head) in (self.model.head % 65536, (self.model.head - 1) % 65536), at
        assert ctx.get(dut.completed) == self.model.completed % 65536, at
        error = ctx.get(dut.ring_error)
        if tail is not None:
            assert bool(error.valid and error.code.value == ErrorCode.RING) == (not good), at
        if error.valid:
            self.errors.append((error.code.value, error.addr))

        if ctx.get(dut.cmd.valid) and ctx.get(dut.cmd.ready):
            assert self.read is None, at
            if self.fence:
                assert not self.under_way, at
                assert self.taken == len(self.expected), at
            address = ctx.get(dut.cmd.payload.addr)
            assert address == self.ring_addr + DESCRIPTOR_BYTES * (self.model.head % self.size), at
            assert ctx.get(dut.cmd.payload.n_beats) == DESCRIPTOR_BYTES // dut.bus_bytes, at
            self.start_read(address)
            self.commands.append(self.cycle)
        if ctx.get(dut.job.valid) and takes:
            self.compare(ctx, at)
            self.under_way.append(self.cycle + rng.randrange(1, 200))
            self.under_way.sort()
        busy = self.read is not None or ctx.get(dut.job.valid) or ctx.get(dut.cmd.valid)
        assert ctx.get(dut.busy) or not busy, at
        if completes:
            self.under_way.pop(0)
            self.model.completed += 1
        self.cycle += 1
        await ctx.tick()

    def start_read(self, address):
        """Prepare the beats of a descriptor and the job that it becomes."""
        fields = self.memory[address]
        size = self.dut.bus_bytes
        words = beats(pack_descriptor(**fields), size)
        bad = [self.rng.random() < 0.02 for _ in words]
        self.read = (address, words, bad)
        code, error_addr = golden_check(fields, address, self.windows)
        if any(bad):
            code, error_addr = ErrorCode.READ, address + size * bad.index(True)
        if code is ErrorCode.NONE:
            error_addr = address  # for an error that is known later
        record = self.completion_addr + DESCRIPTOR_BYTES * (self.model.head % self.size)
        self.model.head += 1
        self.expected.append((fields, self.model.head, record, code, error_addr))
        self.fence = fields["opcode"] == Opcode.FENCE and code == ErrorCode.NONE

    def compare(self, ctx, at):
        """Compare a job that is taken with the one expected."""
        job = self.dut.job.payload
        fields, sequence, record, code, error_addr = self.expected[self.taken]
        at = f"{at}, job {self.taken}: {fields}"
        for name in DESCRIPTOR:
            assert ctx.get(getattr(job.descriptor, name)) == fields[name], f"{at}: {name}"
        assert ctx.get(job.sequence) == sequence, at
        assert ctx.get(job.completion_addr) == record, at
        assert ctx.get(job.code).value == code.value, at
        assert ctx.get(job.error_addr) == error_addr, at
        self.taken += 1


def frontend(bus_bytes=8):
    return Frontend(bus_bytes=bus_bytes, n_contexts=2, **LIMITS)


@pytest.mark.parametrize(
    ("bus_bytes", "ring_size", "stall"), [(8, 2, 0.3), (16, 0, 0.0), (32, 1, 0.1), (64, 3, 0.7)]
)
def test_frontend_takes_jobs_in_order(bus_bytes, ring_size, stall):
    """Random jobs, fences, bad beats, bad doorbells; the ring runs round many times."""
    seed = 80 + bus_bytes
    dut = frontend(bus_bytes)
    world = World(dut, ring_size, seed=seed, stall=stall)
    rng = world.rng
    n_jobs = 24

    def make():
        return mutated(rng, rng.choice((*JOBS, FENCE)), rng.choice((0, 0, 0, 1)))[0]

    n_bad = 0

    async def bench(ctx):
        nonlocal n_bad
        await world.setup(ctx)
        model = world.model
        while world.taken < n_jobs:
            tail = None
            if rng.random() < 0.05:
                # No more than the ring holds, and no more than are wanted.
                room = min(world.size - (model.announced - model.completed), n_jobs)
                tail = world.announce(rng.randrange(room + 1), make)
                if rng.random() < 0.2:
                    n_bad += 1
                    tail = rng.choice((model.completed + world.size + 1, model.completed - 1))
            await world.step(ctx, tail=tail)
        while world.under_way or model.head > world.taken or world.read:
            await world.step(ctx)
        assert len(world.errors) == n_bad
        assert ctx.get(dut.head) == model.head

    simulate(dut, bench, monitors=[check_hold(dut.cmd), check_hold(dut.job)], cycles=40_000)
    codes = {code for *_, code, _ in world.expected}
    assert ErrorCode.NONE in codes
    assert n_bad >= 2
    assert any(fields["opcode"] == Opcode.FENCE for fields, *_ in world.expected)


def test_one_descriptor_is_read_ahead():
    """While no job is taken, one is checked and waits; the next one is not read."""
    dut = frontend()
    world = World(dut, 2, seed=90, stall=0.0)

    async def bench(ctx):
        await world.setup(ctx)
        await world.step(ctx, tail=world.announce(3, lambda: ATTEND))
        for _ in range(400):
            await world.step(ctx, max_jobs=0)
        assert len(world.commands) == 1
        assert ctx.get(dut.job.valid)
        assert ctx.get(dut.head) == 1
        while world.taken < 3:
            await world.step(ctx)

    simulate(dut, bench)


def test_latency():
    dut = frontend(64)
    world = World(dut, 2, seed=91, stall=0.0)
    largest = {**TOP_K, "write_selection": 1}

    async def bench(ctx):
        await world.setup(ctx)
        await world.step(ctx, tail=world.announce(1, lambda: largest))
        waited = 1
        while not ctx.get(dut.cmd.valid):
            await world.step(ctx)
            waited += 1
        assert waited == dut.latency
        while not ctx.get(dut.loaded):
            await world.step(ctx)
        waited = 0
        while not ctx.get(dut.job.valid):
            await world.step(ctx)
            waited += 1
        # A group of `max_rows` has fewer bits than one of 512.
        assert waited <= dut.job_latency
        assert waited >= dut.job_latency - 10
        assert dut.job_latency < MAX_LATENCY

    simulate(dut, bench)


@pytest.mark.parametrize("which", ["read", "write"])
@pytest.mark.parametrize("ring_size", [0, 3, 15])
def test_rings_outside_their_windows(which, ring_size):
    """Nothing is read until the window is right and a doorbell is written, the same or another."""
    dut = frontend()
    world = World(dut, ring_size, seed=92, stall=0.0)
    first = world.ring_addr if which == "read" else world.completion_addr
    last = first + (DESCRIPTOR_BYTES << ring_size) - 1

    async def bench(ctx):
        await world.setup(ctx)
        tail = world.announce(1, lambda: ATTEND)
        for window in ((first + 1, TOP), (0, last - 1)):
            set_windows(ctx, dut, {which: window})
            await world.step(ctx, tail=tail)
            for _ in range(50):
                await world.step(ctx)
            assert world.errors == [(ErrorCode.WINDOW, first)]
            assert not world.commands
            assert not ctx.get(dut.busy)
            world.errors.clear()
        set_windows(ctx, dut, {which: (first, last)})
        for _ in range(50):
            await world.step(ctx)
        assert not world.commands
        world.windows[which] = (first, last)
        await world.step(ctx, tail=tail)
        while world.taken < 1:
            await world.step(ctx)
        assert not world.errors

    simulate(dut, bench)


def test_doorbell_while_the_windows_are_tested():
    """A doorbell that comes with the right window, or later, is never lost."""
    for delay in range(14):
        dut = frontend()
        world = World(dut, 1, seed=93, stall=0.0)

        async def bench(ctx, dut=dut, world=world, delay=delay):
            await world.setup(ctx)
            tail = world.announce(1, lambda: ATTEND)
            set_windows(ctx, dut, {"write": (0, 0)})
            await world.step(ctx, tail=tail)
            for _ in range(delay):
                await world.step(ctx)
            set_windows(ctx, dut, {"write": (0, TOP)})
            await world.step(ctx, tail=tail)
            while world.taken < 1:
                await world.step(ctx)

        simulate(dut, bench, cycles=1000)


def test_bad_doorbell_stops_fetching():
    dut = frontend()
    world = World(dut, 2, seed=94, stall=0.0)

    async def bench(ctx):
        await world.setup(ctx)
        await world.step(ctx, tail=world.announce(4, lambda: ATTEND))
        await world.step(ctx, tail=5)
        for _ in range(600):
            await world.step(ctx)
        assert world.errors == [(ErrorCode.RING, 5)]
        # The doorbell is judged a cycle after the first one: one descriptor is on its way.
        assert len(world.commands) == 1
        await world.step(ctx, tail=4)
        while world.taken < 4:
            await world.step(ctx)
        # Back behind what was announced.
        await world.step(ctx, tail=3)
        assert world.errors[1:] == [(ErrorCode.RING, 3)]

    simulate(dut, bench)


def test_disable_finishes_and_restarts():
    """Counts restart when the jobs under way are complete; doorbells do nothing meanwhile."""
    dut = frontend()
    world = World(dut, 2, seed=95, stall=0.0)

    async def bench(ctx):
        await world.setup(ctx)
        await world.step(ctx, tail=world.announce(4, lambda: ATTEND))
        while not world.read:
            await world.step(ctx)
        ctx.set(dut.enable, 0)
        while world.taken < 1 or world.under_way:
            await world.step(ctx)
        assert (ctx.get(dut.head), ctx.get(dut.completed)) == (1, 1)
        assert len(world.commands) == 1
        ctx.set(dut.completed_pulse, 0)
        ctx.set(dut.idle_jobs, 1)
        await ctx.tick().repeat(2)
        assert (ctx.get(dut.head), ctx.get(dut.completed)) == (0, 0)
        ctx.set(dut.tail, 2)
        ctx.set(dut.tail_written, 1)
        await ctx.tick()
        ctx.set(dut.tail_written, 0)
        ctx.set(dut.enable, 1)
        for _ in range(50):
            await ctx.tick()
            assert not ctx.get(dut.cmd.valid)
        world.model = RingModel()
        world.memory.clear()
        await world.step(ctx, tail=world.announce(2, lambda: EXPLICIT))
        while world.taken < 3:
            await world.step(ctx)
        assert [sequence for _, sequence, *_ in world.expected] == [1, 1, 2]

    simulate(dut, bench)


def test_low_bits_of_the_rings_are_ignored():
    dut = frontend()
    world = World(dut, 1, seed=96, stall=0.0)

    async def bench(ctx):
        await world.setup(ctx)
        ctx.set(dut.ring_addr, world.ring_addr | 63)
        ctx.set(dut.completion_addr, world.completion_addr | 33)
        await world.step(ctx, tail=world.announce(2, lambda: ATTEND))
        while world.taken < 2:
            await world.step(ctx)

    simulate(dut, bench)


@pytest.mark.parametrize(
    ("name", "value"), [("head_dim", 60), ("max_rows", 0), ("bus_bytes", 4), ("bus_bytes", 256)]
)
def test_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*not {value}"):
        DescriptorCheck(**{"bus_bytes": 8, **LIMITS, name: value})


@pytest.mark.parametrize("bus_bytes", [8, 16, 32, 64])
def test_converts(bus_bytes):
    rtlil.convert(frontend(bus_bytes))
    if bus_bytes == 8:
        for part in (Ring(), WindowCheck(), DescriptorCheck(bus_bytes=bus_bytes, **LIMITS)):
            rtlil.convert(part)
