# amaranth: UnusedElaboratable=no
"""Results: bytes and strobes of O, LSE and selection against the golden model; records; rates."""

import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.gen.config import Config
from moska.golden.finish import finish
from moska.golden.formats import FP32_NEG_INF
from moska.golden.layout import (
    COMPLETION_BYTES,
    COUNTERS,
    SELECTION_LINE,
    ErrorCode,
    pack_selection,
    unpack_completion,
)
from moska.golden.state import RowState
from moska.hw.control import descriptor
from moska.hw.control.results import Results
from moska.hw.finish import Finisher
from moska.hw.router.invert import row_word_bits
from moska.sim.bench import check_hold, simulate

MAX_CHUNKS = 16
RING = 0x8000_0000_1000  # of completions


def results(
    *, max_rows=64, n_contexts=2, head_dim=16, lanes=4, finish_lanes=1, bus_bytes=8
):
    return Results(
        max_rows=max_rows,
        max_chunks=MAX_CHUNKS,
        n_contexts=n_contexts,
        head_dim=head_dim,
        lanes=lanes,
        finish_lanes=finish_lanes,
        bus_bytes=bus_bytes,
    )


def random_state(n_rows, head_dim, seed):
    """RowState of every row, with l, o of random length; the first row has merged nothing."""
    rng = random.Random(seed)
    m = [rng.randint(-4096, 4095) for _ in range(n_rows)]
    total = [rng.getrandbits(rng.randint(1, 39)) for _ in range(n_rows)]
    total[0] = 0
    e = [max(-8192, min(8191, ref + rng.randint(-180, 420))) for ref in m]
    o = [
        [rng.getrandbits(rng.randint(1, 47)) * rng.choice([-1, 1]) for _ in range(head_dim)]
        for _ in range(n_rows)
    ]
    return RowState(*(np.array(field, dtype=np.int64) for field in (m, total, e, o)))


def take(state, rows):
    return RowState(state.m[rows], state.l[rows], state.e[rows], state.o[rows])


def job_of(n_rows=1, *, n_chunks=0, attend=1, select=0, code=ErrorCode.NONE, **how):
    """Job of a test.

    ``code``: known at the start. ``late``: (code, address) that becomes known while the first beat
    is written. ``bad``: index of the write command, the record's included, whose answer is an
    error.
    """
    return {
        "n_rows": n_rows,
        "n_chunks": n_chunks,
        "attend": attend,
        "select": select,
        "code": code,
        "error_addr": 0xABCD_0000_0040 + n_rows if code else 0,
        "late": None,
        "bad": None,
        "o_addr": 0x1_2345_6000 + 64 * n_rows,
        "lse_addr": 0x77_0000_0040,
        "selection_addr": 0xFEDC_BA98_7654_3240,
        "tag": 0xF000_0000 | n_rows,
        **how,
    }


class Run:
    """Sequencer, state memory, inverter and write master around a Results."""

    def __init__(self, dut, jobs, *, seed, stall, first_sequence=1):
        self.dut = dut
        self.jobs = jobs
        self.seed = seed
        self.stall = stall  # chance that a stream waits a cycle
        self.first_sequence = first_sequence
        self.n_rows = dut.n_contexts * dut.max_rows
        self.state = random_state(self.n_rows, dut.head_dim, seed)
        # Bits of rows past the job's are what earlier jobs left.
        bits = np.random.default_rng(seed).integers(0, 2, (self.n_rows, MAX_CHUNKS))
        self.selected = bits.astype(bool)
        self.counters = np.random.default_rng(seed + 1).integers(
            0, 1 << 32, (len(jobs), len(COUNTERS)), dtype=np.uint64
        )
        self.cycle = 0
        self.job = 0  # index of the job whose results are written
        self.ended = False
        self.owned = False  # the job's context is held
        self.commands = [[] for _ in jobs]  # (address, bytes, strobes) of each job
        self.beats = []  # (cycle, job, command) of each beat
        self.unanswered = 0  # commands whose beats are not all written and answered
        self.error = None  # address, as the write master keeps it
        self.snapshots = []
        self.accepted, self.released, self.completed = [], [], []  # cycles
        self.outcomes = []  # of `completed`

    def rows(self, index):
        """Rows of a job, in its context."""
        first = index % self.dut.n_contexts * self.dut.max_rows
        return slice(first, first + self.jobs[index]["n_rows"])

    def expected(self, index):
        """(address, bytes) of each command of a job, without the record."""
        job = self.jobs[index]
        regions = []
        if job["code"]:
            return regions
        if job["attend"]:
            o, lse = finish(take(self.state, self.rows(index)))
            regions += [
                (job["o_addr"], o.astype("<u4").tobytes()),
                (job["lse_addr"], lse.astype("<u4").tobytes()),
            ]
        if job["select"]:
            lines = pack_selection(self.selected[self.rows(index), : job["n_chunks"]])
            assert len(lines) == job["n_chunks"] * SELECTION_LINE
            regions.append((job["selection_addr"], bytes(lines)))
        return regions

    def known(self, index):
        """(code, address) that the record of a job shows, and those of ``completed``."""
        job = self.jobs[index]
        record = job["code"], job["error_addr"]
        if job["late"] and not job["code"]:
            record = job["late"]
        n_regions = len(self.expected(index))
        if job["bad"] is None or record[0]:
            return record, record
        failed = ErrorCode.WRITE, self.commands[index][job["bad"]][0]
        return (record if job["bad"] == n_regions else failed), failed

    async def clock(self, ctx):
        """Count cycles and watch the pulses; ends with the sequencer.

        It runs before the others in every cycle.
        """
        dut = self.dut
        ports = (dut.job.valid, dut.job.ready, dut.released, dut.completed, dut.snapshot)
        ports = (*ports, dut.clear_write_error, dut.busy)
        async for _, _, valid, ready, released, completed, snapshot, clear, busy in (
            ctx.tick().sample(*ports)
        ):
            started = bool(valid and ready)
            assert clear == started
            if self.ended:
                return
            if started:
                self.owned = True
                self.accepted.append(self.cycle)
                assert len(self.accepted) == self.job + 1
                assert not busy
            else:
                assert busy == (len(self.accepted) > len(self.completed))
            if released:
                assert self.owned
                self.owned = False
                self.released.append(self.cycle)
            if snapshot:
                assert self.unanswered == 0
                self.snapshots.append(self.cycle)
            if completed.valid:
                assert self.unanswered == 0
                self.completed.append(self.cycle)
                self.outcomes.append(
                    (completed.code.value, completed.error_addr, completed.sequence)
                )
            self.cycle += 1

    async def sequencer(self, ctx):
        """Offer jobs as soon as may be; hold each until its release, then show other values."""
        dut, rng = self.dut, random.Random(self.seed)
        for index, job in enumerate(self.jobs):
            self.job = index
            while rng.random() < self.stall:
                await ctx.tick()
            payload = dut.job.payload
            for name in ("n_rows", "n_chunks", "o_addr", "lse_addr", "selection_addr", "tag"):
                ctx.set(getattr(payload.descriptor, name), job[name])
            ctx.set(payload.context, index % dut.n_contexts)
            ctx.set(payload.attend, job["attend"])
            ctx.set(payload.select, job["select"])
            ctx.set(payload.sequence, self.first_sequence + index & 0xFFFF_FFFF)
            ctx.set(payload.completion_addr, RING + COMPLETION_BYTES * index)
            ctx.set(dut.code, descriptor.ErrorCode(job["code"]))
            ctx.set(dut.error_addr, job["error_addr"])
            ctx.set(dut.job.valid, 1)
            taken = False
            while not taken:
                _, _, taken = await ctx.tick().sample(dut.job.ready)
            ctx.set(dut.job.valid, 0)
            released = False
            while not released:
                if job["late"] and self.commands[index]:
                    ctx.set(dut.code, descriptor.ErrorCode(job["late"][0]))
                    ctx.set(dut.error_addr, job["late"][1])
                _, _, released = await ctx.tick().sample(dut.released)
            ctx.set(payload.descriptor, {"n_rows": 9, "tag": rng.getrandbits(32)})
            ctx.set(payload.sequence, rng.getrandbits(32))
            ctx.set(payload.completion_addr, rng.getrandbits(64))
            ctx.set(payload.context, rng.randrange(dut.n_contexts))
            ctx.set(dut.code, descriptor.ErrorCode.TIMEOUT)
            ctx.set(dut.error_addr, rng.getrandbits(64))
            while len(self.completed) <= index:
                await ctx.tick()
        for _ in range(20):
            for port in (dut.busy, dut.cmd.valid, dut.o.valid, dut.vector_cmd.valid):
                assert not ctx.get(port)
            await ctx.tick()
        self.ended = True

    async def state_memory(self, ctx):
        """Row state one cycle after its address, anything in the other cycles."""
        dut, rng, state = self.dut, random.Random(self.seed + 1), self.state
        async for _, _, read in ctx.tick().sample(dut.read):
            words = [rng.getrandbits(47)] * dut.lanes
            meta = [rng.getrandbits(12), 0, rng.getrandbits(39)]
            rows = self.rows(self.job)
            if read.valid:
                assert self.owned
                assert rows.start <= read.row < rows.stop
                part = slice(read.word * dut.lanes, (read.word + 1) * dut.lanes)
                words = state.o[read.row, part].tolist()
            if read.meta_valid:
                assert self.owned
                assert rows.start <= read.meta_row < rows.stop
                meta = [int(getattr(state, name)[read.meta_row]) for name in "mel"]
            ctx.set(dut.read_o, words)
            ctx.set(dut.read_meta, dict(zip("mel", meta, strict=True)))

    async def inverter(self, ctx):
        """Words of the lists, in order, two at once, at least 2 cycles after their command."""
        dut, rng = self.dut, random.Random(self.seed + 2)
        width = row_word_bits(dut.max_rows)
        queue = []  # (cycle from which it may be shown, word)
        offered = False
        async for _, _, command, ready, valid, context, taken in ctx.tick().sample(
            dut.vector_cmd.payload,
            dut.vector_cmd.ready,
            dut.vector_cmd.valid,
            dut.vector_context,
            dut.vector.ready,
        ):
            if offered and taken:
                queue.pop(0)
                offered = False
            if valid and ready:
                assert self.owned
                assert context == self.job % dut.n_contexts
                assert command.chunk < self.jobs[self.job]["n_chunks"]
                assert command.row_word * width < self.jobs[self.job]["n_rows"]
                first = context * dut.max_rows + command.row_word * width
                end = context * dut.max_rows + self.jobs[self.job]["n_rows"]
                bits = self.selected[first : min(first + width, end), command.chunk]
                word = sum(int(bit) << index for index, bit in enumerate(bits))
                queue.append((self.cycle + 2, word))
            if not offered:
                offered = bool(
                    queue and queue[0][0] <= self.cycle + 1 and rng.random() >= self.stall
                )
            ctx.set(dut.vector.valid, offered)
            ctx.set(dut.vector.payload, queue[0][1] if offered else rng.getrandbits(width))
            ctx.set(dut.vector_cmd.ready, len(queue) < 3 and rng.random() >= self.stall)

    async def write_master(self, ctx):
        """Take commands and, for each in turn, its beats; answer some cycles after the last."""
        dut, rng = self.dut, random.Random(self.seed + 3)
        left = 0
        answer = None  # cycles until the answer to the command
        ports = (
            dut.cmd.valid, dut.cmd.ready, dut.cmd.payload, dut.o.valid, dut.o.ready, dut.o.payload,
            dut.clear_write_error,
        )
        async for _, _, cmd_valid, cmd_ready, cmd, valid, ready, beat, clear in (
            ctx.tick().sample(*ports)
        ):
            commands = self.commands[self.job]
            if clear:
                self.error = None
            if answer is not None:
                answer -= 1
                if answer == 0:
                    answer = None
                    self.unanswered = 0
                    number = len(commands) - 1
                    if self.jobs[self.job]["bad"] == number and self.error is None:
                        self.error = commands[number][0]
            if valid and ready:
                _, data, strobes = commands[-1]
                data.extend(int(beat.data).to_bytes(dut.bus_bytes, "little"))
                strobes.extend(beat.strb >> index & 1 for index in range(dut.bus_bytes))
                self.beats.append((self.cycle, self.job, len(commands) - 1))
                left -= 1
                if left == 0:
                    answer = 1 + int(rng.random() * 9 * (self.stall > 0))
            if cmd_valid and cmd_ready:
                assert cmd.n_beats > 0
                # O, LSE and selection come before the release, the record after it.
                assert self.owned == (len(commands) < len(self.expected(self.job)))
                commands.append((cmd.addr, bytearray(), []))
                left = cmd.n_beats
                self.unanswered = 1
            ctx.set(dut.cmd.ready, left == 0 and answer is None and rng.random() >= self.stall)
            ctx.set(dut.o.ready, left != 0 and rng.random() >= self.stall)
            ctx.set(dut.writer_busy, self.unanswered)
            ctx.set(dut.write_error, self.error is not None)
            ctx.set(dut.write_error_addr, rng.getrandbits(64) if self.error is None else self.error)

    async def counter_values(self, ctx):
        """Counters of each record; they go on after the snapshot."""
        dut, rng = self.dut, random.Random(self.seed + 4)
        while True:
            row = self.counters[len(self.snapshots) % len(self.jobs)]
            ctx.set(dut.record, dict(zip(COUNTERS, row.tolist(), strict=True)))
            _, _, snapshot = await ctx.tick().sample(dut.snapshot)
            if snapshot:
                ctx.set(dut.record, {name: rng.getrandbits(32) for name in COUNTERS})
                while len(self.completed) < len(self.snapshots):
                    await ctx.tick()

    def check(self):
        """Compare all that was written with what was to be."""
        n_jobs = len(self.jobs)
        assert [len(x) for x in (self.accepted, self.released, self.snapshots)] == [n_jobs] * 3
        for index, commands in enumerate(self.commands):
            where = f"job {index}, seed {self.seed}"
            job = self.jobs[index]
            expected = self.expected(index)
            assert len(commands) == len(expected) + 1, where
            for (addr, data, strobes), (to, raw) in zip(commands, expected, strict=False):
                assert addr == to, where
                n_beats = -(-len(raw) // self.dut.bus_bytes)
                assert len(data) == n_beats * self.dut.bus_bytes, where
                assert strobes == [1] * len(raw) + [0] * (len(data) - len(raw)), where
                assert bytes(data[: len(raw)]) == raw, where
            addr, data, strobes = commands[-1]
            assert addr == RING + COMPLETION_BYTES * index, where
            assert strobes == [1] * COMPLETION_BYTES, where
            sequence = self.first_sequence + index & 0xFFFF_FFFF
            (code, error_addr), outcome = self.known(index)
            fields = {"sequence": sequence, "tag": job["tag"], "code": code}
            fields |= {"error_addr": error_addr}
            fields |= dict(zip(COUNTERS, self.counters[index].tolist(), strict=True))
            assert unpack_completion(bytes(data)) == fields, where
            # Bytes between and behind the fields are zero.
            named = bytearray(data)
            for offset, size in descriptor.layout.COMPLETION.values():
                named[offset : offset + size] = bytes(size)
            assert not any(named), where
            assert self.outcomes[index] == (*outcome, sequence), where
            assert self.accepted[index] < self.released[index] < self.snapshots[index], where
            assert self.snapshots[index] < self.completed[index], where


def check(dut, jobs, *, seed=0, stall=0.0, cycles=20_000, **how):
    run = Run(dut, jobs, seed=seed, stall=stall, **how)
    simulate(
        dut,
        run.clock,
        monitors=[
            run.sequencer,
            run.write_master,
            run.state_memory,
            run.inverter,
            run.counter_values,
            *(check_hold(port) for port in (dut.cmd, dut.o, dut.vector_cmd)),
        ],
        cycles=cycles,
    )
    run.check()
    return run


@pytest.mark.parametrize(("bus_bytes", "stall"), [(8, 0.4), (64, 0.0), (64, 0.4)])
def test_jobs_after_each_other(bus_bytes, stall):
    """Full and partial last beats of LSE; rows of the selection that the job does not have."""
    dut = results(bus_bytes=bus_bytes)
    jobs = [
        job_of(19, n_chunks=3, select=1),
        job_of(1, n_chunks=2),
        job_of(33, n_chunks=2, select=1, attend=0),
        job_of(32, n_chunks=2, select=1, attend=0),
        job_of(attend=0),  # nothing is due
        job_of(16, n_chunks=5),
        job_of(2, n_chunks=1, select=1),
    ]
    run = check(dut, jobs, seed=bus_bytes, stall=stall, first_sequence=0xFFFF_FFFE)
    if not stall:
        # A job that is offered is taken in the cycle after the completion before it.
        gaps = [
            accepted - completed
            for accepted, completed in zip(run.accepted[1:], run.completed, strict=False)
        ]
        assert gaps == [1] * (len(jobs) - 1)


@pytest.mark.parametrize(
    ("max_rows", "n_contexts", "head_dim", "lanes", "finish_lanes", "bus_bytes", "n_rows"),
    [
        (16, 2, 16, 4, 1, 8, 5),  # row words of 16 bits
        (16, 4, 16, 16, 16, 64, 16),  # one state word a row, all rows
        (16, 2, 32, 8, 2, 32, 7),
        (64, 1, 16, 2, 2, 8, 35),
        (2, 4, 16, 4, 4, 64, 2),
        (512, 2, 16, 8, 8, 64, 35),  # as many row words as a line has
    ],
)
def test_shapes(max_rows, n_contexts, head_dim, lanes, finish_lanes, bus_bytes, n_rows):
    dut = results(
        max_rows=max_rows,
        n_contexts=n_contexts,
        head_dim=head_dim,
        lanes=lanes,
        finish_lanes=finish_lanes,
        bus_bytes=bus_bytes,
    )
    jobs = [job_of(n_rows, n_chunks=4, select=1), job_of(1)]
    run = check(dut, jobs, seed=max_rows, stall=0.2)
    lse = finish(take(run.state, run.rows(0)))[1]
    assert lse[0] == FP32_NEG_INF  # a row that has merged nothing is among them


@pytest.mark.parametrize("stall", [0.9, 0.97])
def test_slow_write_master(stall):
    """Nothing is lost when every FIFO on the way is full."""
    dut = results(bus_bytes=64, finish_lanes=4)
    check(dut, [job_of(10, n_chunks=2, select=1)], seed=3, stall=stall)


@pytest.mark.parametrize(("bus_bytes", "stall"), [(8, 0.3), (64, 0.0)])
def test_errors(bus_bytes, stall):
    """At the start, on the way, of writes, of the record; the first one counts; none stays."""
    dut = results(bus_bytes=bus_bytes)
    late = ErrorCode.CHECKSUM, 0x55AA_0000_0040
    jobs = [
        job_of(3, code=ErrorCode.DESCRIPTOR),  # only the record is written
        job_of(3, n_chunks=2, select=1, code=ErrorCode.READ),
        job_of(4, n_chunks=1, attend=0, select=1, code=ErrorCode.WINDOW, late=late),
        job_of(3, n_chunks=2, select=1),
        job_of(3, late=late),
        job_of(4, n_chunks=2, select=1, bad=0),  # O
        job_of(3, bad=1),  # LSE
        job_of(3, n_chunks=2, select=1, bad=2),
        job_of(2, late=late, bad=0),
        job_of(5, bad=2),  # the record
        job_of(5, code=ErrorCode.TIMEOUT, bad=0),
        job_of(6),
    ]
    run = check(dut, jobs, seed=bus_bytes + 1, stall=stall)
    assert [code for code, *_ in run.outcomes] == [
        ErrorCode.DESCRIPTOR, ErrorCode.READ, ErrorCode.WINDOW, ErrorCode.NONE, ErrorCode.CHECKSUM,
        ErrorCode.WRITE, ErrorCode.WRITE, ErrorCode.WRITE, ErrorCode.CHECKSUM, ErrorCode.WRITE,
        ErrorCode.TIMEOUT, ErrorCode.NONE,
    ]


# Preset, rows of the test, cycles a row.
RATES = [("tiny", 16, 16), ("ulx3s", 12, 32), ("sim64", 48, 4), ("u55c", 32, 8)]


@pytest.mark.parametrize(("name", "n_rows", "rate"), RATES)
def test_rows_follow_each_other_at_the_rate_of_the_bus(name, n_rows, rate):
    """From the first beat of O to the last none is missing, for the shapes of the presets."""
    config = Config.load(name)
    finish_lanes = min(config.merge_lanes, config.bus_bytes // 4)
    assert rate == max(
        config.head_dim // config.merge_lanes,
        config.head_dim // finish_lanes,
        4 * config.head_dim // config.bus_bytes,
    )
    dut = results(
        max_rows=config.max_rows,
        n_contexts=config.contexts,
        head_dim=config.head_dim,
        lanes=config.merge_lanes,
        finish_lanes=finish_lanes,
        bus_bytes=config.bus_bytes,
    )
    run = check(dut, [job_of(n_rows)], seed=n_rows)
    cycles = [cycle for cycle, _, command in run.beats if command == 0]
    beats_per_row = 4 * config.head_dim // config.bus_bytes
    step = rate // beats_per_row
    assert np.diff(cycles).tolist() == [step] * (n_rows * beats_per_row - 1)
    # Start, row memory, FIFO, scaler, elements, packer of a bus word, register slice.
    start = cycles[0] - run.accepted[0]
    assert start == 5 + Finisher.first_word + Finisher.latency + step
    # What is not rows: the start, LSE, the answer to it, the record.
    n_lse = -(-n_rows * 4 // config.bus_bytes)
    rest = run.completed[0] - run.accepted[0] - rate * n_rows - n_lse
    assert rest <= start + COMPLETION_BYTES // config.bus_bytes + 12


@pytest.mark.parametrize(
    ("bus_bytes", "n_rows", "rate"), [(8, 16, 8), (8, 64, 8), (64, 33, 2), (64, 64, 2), (64, 32, 1)]
)
def test_selection_lines_follow_each_other(bus_bytes, n_rows, rate):
    """A line takes its beats, or its words of 32 rows, whichever is more."""
    dut = results(bus_bytes=bus_bytes)
    n_chunks = 12
    run = check(dut, [job_of(n_rows, n_chunks=n_chunks, attend=0, select=1)], seed=n_rows)
    cycles = [cycle for cycle, _, command in run.beats if command == 0]
    beats_per_line = SELECTION_LINE // bus_bytes
    assert cycles[-1] - cycles[beats_per_line - 1] == rate * (n_chunks - 1)


def test_converts():
    for parameters in (
        {},
        {"n_contexts": 4, "lanes": 8, "finish_lanes": 4, "bus_bytes": 64},
        {"n_contexts": 1, "max_rows": 2},
    ):
        assert "module \\top" in rtlil.convert(results(**parameters))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lanes": 3}, r"multiple of lanes \(3\), not 16"),
        ({"finish_lanes": 3}, r"multiple of finish_lanes \(3\), not 4"),
        ({"finish_lanes": 4}, r"bus_bytes must be a multiple of 16 \(finish_lanes\).*not 8"),
        ({"bus_bytes": 128}, r"divide 64 \(a row of O\), not 128"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        results(**parameters)
