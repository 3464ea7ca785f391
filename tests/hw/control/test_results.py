"""Results: bytes and strobes of O, LSE and the selection, against the golden model."""

import random

import numpy as np
import pytest

from moska.golden.finish import finish
from moska.golden.formats import FP32_NEG_INF
from moska.golden.layout import SELECTION_LINE, pack_selection
from moska.golden.state import RowState
from moska.hw.control.results import Results
from moska.hw.router.invert import row_word_bits
from moska.sim.bench import check_hold, simulate

MAX_CHUNKS = 16


def results(*, max_rows=64, head_dim=16, lanes=4, finish_lanes=2, bus_bytes=8):
    return Results(
        max_rows=max_rows,
        max_chunks=MAX_CHUNKS,
        head_dim=head_dim,
        lanes=lanes,
        finish_lanes=finish_lanes,
        bus_bytes=bus_bytes,
    )


def random_state(max_rows, head_dim, seed):
    """RowState of every row, with l, o of random length; the first row has merged nothing."""
    rng = random.Random(seed)
    m = [rng.randint(-4096, 4095) for _ in range(max_rows)]
    total = [rng.getrandbits(rng.randint(1, 39)) for _ in range(max_rows)]
    total[0] = 0
    e = [max(-8192, min(8191, ref + rng.randint(-180, 420))) for ref in m]
    o = [
        [rng.getrandbits(rng.randint(1, 47)) * rng.choice([-1, 1]) for _ in range(head_dim)]
        for _ in range(max_rows)
    ]
    return RowState(*(np.array(field, dtype=np.int64) for field in (m, total, e, o)))


def take(state, n_rows):
    return RowState(state.m[:n_rows], state.l[:n_rows], state.e[:n_rows], state.o[:n_rows])


class Run:
    """State memory, inverter and write master around a Results, cycle by cycle."""

    def __init__(self, dut, *, seed, stall):
        self.dut = dut
        self.rng = random.Random(seed)
        self.stall = stall  # chance that a stream waits a cycle
        self.state = random_state(dut.max_rows, dut.head_dim, seed)
        # Bits of rows past the job's are what earlier jobs left.
        bits = np.random.default_rng(seed).integers(0, 2, (dut.max_rows, MAX_CHUNKS))
        self.selected = bits.astype(bool)
        self.cycles = []  # of each job

    def word(self, chunk, row_word):
        """Word of the inverter's list memory."""
        width = row_word_bits(self.dut.max_rows)
        rows = self.selected[row_word * width : (row_word + 1) * width, chunk]
        return sum(int(bit) << index for index, bit in enumerate(rows))

    def expected(self, job):
        """(address, bytes) of each command."""
        n_rows = job["n_rows"]
        o, lse = finish(take(self.state, n_rows))
        regions = [
            (job["o_addr"], o.astype("<u4").tobytes()),
            (job["lse_addr"], lse.astype("<u4").tobytes()),
        ]
        if job["write_selection"]:
            lines = pack_selection(self.selected[:n_rows, : job["n_chunks"]])
            assert len(lines) == job["n_chunks"] * SELECTION_LINE
            regions.append((job["selection_addr"], bytes(lines)))
        return regions

    async def run_job(self, ctx, job):
        """Run one job; return the commands' (address, data, strobed bytes)."""
        dut, rng = self.dut, self.rng
        bus_bytes = dut.bus_bytes
        n_regions = len(self.expected(job))
        read = None  # row and word of the state read in the cycle before
        asked = None  # word of the inverter that is on its way
        wait = left = cycle = 0
        written = []
        started = shown = False
        while not started or len(written) < n_regions or left:
            if cycle < 2:
                ctx.set(dut.start, int(not started))
            if not started:
                for name, value in job.items():
                    ctx.set(getattr(dut.job, name), value)
            # Row state one cycle after its address, anything in the other cycles.
            if read is not None:
                row, part = read
                words = self.state.o[row, part * dut.lanes : (part + 1) * dut.lanes].tolist()
                meta = (self.state.m[row], self.state.e[row], self.state.l[row])
                ctx.set(dut.read_o, words)
                ctx.set(dut.read_meta, dict(zip("mel", map(int, meta), strict=True)))
                shown = True
            elif shown:
                ctx.set(dut.read_o, [rng.getrandbits(47) for _ in range(dut.lanes)])
                ctx.set(dut.read_meta, {"m": rng.getrandbits(12), "e": 0, "l": rng.getrandbits(39)})
                shown = False
            ctx.set(dut.vector_cmd.ready, int(asked is None and rng.random() >= self.stall))
            offers = asked is not None and wait == 0
            ctx.set(dut.vector.valid, int(offers))
            if asked is not None:
                ctx.set(dut.vector.payload, asked if offers else rng.getrandbits(16))
            wait = max(0, wait - 1)
            # The write master takes a command when it has the beats of the one before.
            ctx.set(dut.cmd.ready, int(left == 0 and rng.random() >= self.stall))
            ctx.set(dut.o.ready, int(left != 0 and rng.random() >= self.stall))

            assert ctx.get(dut.busy)
            read = None
            if ctx.get(dut.read.valid):
                step = ctx.get(dut.read)
                assert step.row < job["n_rows"]
                read = step.row, step.word
            if offers and ctx.get(dut.vector.ready):
                asked = None
            if ctx.get(dut.vector_cmd.valid) and ctx.get(dut.vector_cmd.ready):
                vector_cmd = ctx.get(dut.vector_cmd.payload)
                assert vector_cmd.chunk < job["n_chunks"]
                assert vector_cmd.row_word * dut.row_word_bits < job["n_rows"]
                asked = self.word(vector_cmd.chunk, vector_cmd.row_word)
                wait = rng.randrange(4) if self.stall else 0
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                beat = ctx.get(dut.o.payload)
                strb = [beat.strb >> index & 1 for index in range(bus_bytes)]
                written[-1][1].extend(int(beat.data).to_bytes(bus_bytes, "little"))
                written[-1][2].extend(strb)
                left -= 1
            if ctx.get(dut.cmd.valid) and ctx.get(dut.cmd.ready):
                cmd = ctx.get(dut.cmd.payload)
                written.append((cmd.addr, bytearray(), []))
                left = cmd.n_beats
            await ctx.tick()
            started = True
            cycle += 1
        ctx.set(dut.cmd.ready, 1)
        ctx.set(dut.o.ready, 1)
        for _ in range(20):
            for port in (dut.busy, dut.cmd.valid, dut.o.valid, dut.vector_cmd.valid):
                assert not ctx.get(port)
            await ctx.tick()
        self.cycles.append(cycle)
        return written

    def bench(self, jobs):
        async def run(ctx):
            for job in jobs:
                written = await self.run_job(ctx, job)
                expected = self.expected(job)
                assert len(written) == len(expected)
                for (addr, data, strobes), (to, raw) in zip(written, expected, strict=True):
                    assert addr == to
                    n_beats = -(-len(raw) // self.dut.bus_bytes)
                    assert len(data) == n_beats * self.dut.bus_bytes
                    assert strobes == [1] * len(raw) + [0] * (len(data) - len(raw))
                    assert bytes(data[: len(raw)]) == raw

        return run


def job_of(n_rows, *, n_chunks=0, write_selection=0):
    return {
        "n_rows": n_rows,
        "n_chunks": n_chunks,
        "write_selection": write_selection,
        "o_addr": 0x1_2345_6000 + 64 * n_rows,
        "lse_addr": 0x77_0000_0040,
        "selection_addr": 0xFEDC_BA98_7654_3240,
    }


def check(dut, jobs, *, seed=0, stall=0.0):
    run = Run(dut, seed=seed, stall=stall)
    simulate(
        dut,
        run.bench(jobs),
        monitors=[check_hold(port) for port in (dut.cmd, dut.o, dut.vector_cmd)],
    )
    return run


@pytest.mark.parametrize("bus_bytes", [8, 64])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_jobs_after_each_other(bus_bytes, stall):
    """Full and partial last beats of LSE; rows of the selection that the job does not have."""
    dut = results(bus_bytes=bus_bytes)
    jobs = [
        job_of(19, n_chunks=3, write_selection=1),
        job_of(1, n_chunks=2, write_selection=0x80),
        job_of(16, n_chunks=5),
        job_of(2, n_chunks=1, write_selection=1),
    ]
    check(dut, jobs, seed=bus_bytes, stall=stall)


@pytest.mark.parametrize(
    ("max_rows", "head_dim", "lanes", "finish_lanes", "bus_bytes", "n_rows"),
    [
        (16, 16, 4, 1, 8, 5),  # row words of 16 bits
        (16, 16, 16, 16, 64, 16),  # one state word a row, all rows
        (16, 32, 8, 2, 32, 7),
        (64, 16, 2, 2, 8, 35),
        (2, 16, 4, 4, 64, 2),
        (512, 16, 8, 8, 64, 35),  # as many row words as a line has
    ],
)
def test_shapes(max_rows, head_dim, lanes, finish_lanes, bus_bytes, n_rows):
    dut = results(
        max_rows=max_rows,
        head_dim=head_dim,
        lanes=lanes,
        finish_lanes=finish_lanes,
        bus_bytes=bus_bytes,
    )
    jobs = [job_of(n_rows, n_chunks=4, write_selection=1), job_of(1)]
    run = check(dut, jobs, seed=max_rows, stall=0.2)
    lse = finish(take(run.state, n_rows))[1]
    assert lse[0] == FP32_NEG_INF  # a row that has merged nothing is among them


@pytest.mark.parametrize("stall", [0.9, 0.97])
def test_slow_write_master(stall):
    """Nothing is lost when every FIFO on the way is full."""
    check(results(bus_bytes=64, finish_lanes=4), [job_of(10)], seed=3, stall=stall)
