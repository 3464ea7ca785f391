# amaranth: UnusedElaboratable=no
"""Quiesce between a unit with random traffic, or one that hangs, and a memory that stalls."""

import collections
import random

import pytest
from amaranth.back import rtlil

from moska.fpga.quiesce import RESET_CYCLES, Quiesce, verilog
from moska.sim.bench import simulate

WIDTH = 64
FULL = (1 << WIDTH // 8) - 1


class Traffic:
    """Plays both sides of the gate, cycle by cycle, and checks what each of them sees.

    The unit reads and writes bursts at random, until it hangs: then it offers nothing and takes
    nothing. In reset it takes nothing and forgets everything. ``resets`` are requested at random.
    """

    def __init__(self, dut, *, seed, stall, resets, hang=0.0, latency=12):
        self.dut = dut
        self.rng = random.Random(seed)
        self.stall = stall
        self.resets = resets
        self.hang = hang
        self.latency = latency
        self.memory_reads = collections.deque()  # [first cycle, address, beats left, ID]
        self.memory_writes = collections.deque()  # [address, beats left, beat]
        self.memory_answers = collections.deque()  # first cycle
        self.contents = {}
        self.seen = collections.Counter()
        self.peak = 0
        self.forget()

    def forget(self):
        """Lose what the unit knew, as in reset."""
        self.unit_reads = collections.deque()  # [address, beats left, ID]
        self.unit_writes = collections.deque()  # beats of bursts whose address is taken or not
        self.unit_answers = 0
        self.address = {"ar": None, "aw": None}
        self.beat = None
        self.hanging = False

    def chance(self):
        return self.rng.random() >= self.stall

    def offer_requests(self):
        """Let the unit offer bursts; an offer stands until it is taken."""
        rng = self.rng
        for channel in ("ar", "aw"):
            if self.address[channel] is None and not self.hanging and rng.random() < 0.3:
                burst = (rng.randrange(1 << 20) * 8, rng.choice((0, 0, 1, 3, 7)), rng.randrange(4))
                self.address[channel] = burst
                if channel == "aw":
                    addr, length, _ = burst
                    self.unit_writes.extend((addr + 8 * i, i == length) for i in range(length + 1))
        if self.beat is None and self.unit_writes and not self.hanging and self.chance():
            addr, last = self.unit_writes.popleft()
            self.beat = (rng.getrandbits(WIDTH), rng.randrange(1, FULL + 1), last, addr)

    def drive(self, ctx):
        """Put what both sides offer on the ports."""
        read, write = self.dut.i_read, self.dut.i_write
        for bus, channel in ((read, "ar"), (write, "aw")):
            burst = self.address[channel]
            ctx.set(getattr(bus, f"{channel}valid"), burst is not None)
            if burst:
                ctx.set(getattr(bus, f"{channel}addr"), burst[0])
                ctx.set(getattr(bus, f"{channel}len"), burst[1])
                if channel == "ar":
                    ctx.set(read.arid, burst[2])
        ctx.set(write.wvalid, self.beat is not None)
        if self.beat:
            data, strobe, last, _ = self.beat
            ctx.set(write.wdata, data)
            ctx.set(write.wstrb, strobe)
            ctx.set(write.wlast, last)
        deaf = self.hanging or ctx.get(self.dut.reset)
        ctx.set(read.rready, not deaf and self.chance())
        ctx.set(write.bready, not deaf and self.chance())
        read, write = self.dut.o_read, self.dut.o_write
        for signal in (read.arready, write.awready, write.wready):
            ctx.set(signal, self.chance())
        if not self.showing_read and self.memory_reads and self.chance():
            self.showing_read = self.memory_reads[0][0] <= self.cycle
        ctx.set(read.rvalid, self.showing_read)
        if self.showing_read:
            _, addr, left, number = self.memory_reads[0]
            ctx.set(read.rdata, addr * 3)
            ctx.set(read.rlast, left == 0)
            ctx.set(read.rid, number)
        if not self.showing_answer and self.memory_answers and self.chance():
            self.showing_answer = self.memory_answers[0] <= self.cycle
        ctx.set(write.bvalid, self.showing_answer)

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        self.showing_read = self.showing_answer = False
        self.cycle = left = 0
        offered = {"ar": None, "aw": None, "w": None}  # to the memory, and not taken
        closed = False
        while left < 400 or closed:  # some cycles more after the last reset
            self.offer_requests()
            self.drive(ctx)
            request = not closed and self.resets > 0 and rng.random() < 0.02
            ctx.set(dut.request, request or rng.random() < 0.01 * closed)
            ir, iw, r, w = dut.i_read, dut.i_write, dut.o_read, dut.o_write
            _, _, busy, reset, *values = await ctx.tick().sample(
                dut.busy, dut.reset,
                ir.arvalid & ir.arready, iw.awvalid & iw.awready, iw.wvalid & iw.wready,
                ir.rvalid & ir.rready, ir.rdata, ir.rlast, ir.rid, iw.bvalid & iw.bready,
                r.arvalid, r.arready, r.araddr, r.arlen, r.arid,
                w.awvalid, w.awready, w.awaddr, w.awlen,
                w.wvalid, w.wready, w.wdata, w.wstrb, w.wlast,
                r.rvalid & r.rready, w.bvalid & w.bready,
            )  # fmt: skip
            assert busy == closed
            self.memory_side(values[8:], offered, closed, reset)
            self.unit_side(values[:8])
            if reset:
                self.forget()
                self.held_in_reset += 1
            else:
                assert not closed or self.held_in_reset == 0
                self.hanging |= rng.random() < self.hang
            if closed and not ctx.get(dut.busy):
                assert not self.memory_reads
                assert not self.memory_writes
                assert not self.memory_answers
                assert self.held_in_reset > RESET_CYCLES
                closed = False
                self.seen["resets"] += 1
            elif request:
                closed = True
                self.held_in_reset = 0
                self.resets -= 1
            left = 0 if self.resets else left + 1
            self.cycle += 1

    def memory_side(self, values, offered, closed, reset):
        """Check and carry out a cycle of the memory."""
        (
            arvalid, arready, araddr, arlen, arid, awvalid, awready, awaddr, awlen,
            wvalid, wready, wdata, wstrb, wlast, r_taken, b_taken,
        ) = values  # fmt: skip
        offers = {
            "ar": (arvalid, arready, (araddr, arlen, arid)),
            "aw": (awvalid, awready, (awaddr, awlen)),
            "w": (wvalid, wready, (wdata, wstrb, wlast)),
        }
        for channel, (valid, ready, payload) in offers.items():
            if offered[channel] is not None:
                assert valid, f"cycle {self.cycle}: {channel} withdrawn"
                assert payload == offered[channel], f"cycle {self.cycle}: {channel} changed"
            elif closed and channel != "w":
                assert not valid, f"cycle {self.cycle}: {channel} begun while closed"
            offered[channel] = payload if valid and not ready else None
        due = self.cycle + self.rng.randrange(self.latency)
        if r_taken:
            self.showing_read = False
            burst = self.memory_reads[0]
            burst[1], burst[2] = burst[1] + 8, burst[2] - 1
            self.seen["dropped"] += closed
            if burst[2] < 0:
                self.memory_reads.popleft()
        if b_taken:
            self.showing_answer = False
            self.memory_answers.popleft()
        if wvalid:
            assert self.memory_writes, f"cycle {self.cycle}: data before its address"
        if wvalid and wready:
            burst = self.memory_writes[0]
            assert wlast == (burst[1] == 0), f"cycle {self.cycle}: WLAST"
            if reset:
                assert wstrb == 0
                self.seen["made up"] += 1
            else:
                self.contents[burst[0]] = (wdata, wstrb)
            burst[0], burst[1] = burst[0] + 8, burst[1] - 1
            if burst[1] < 0:
                self.memory_writes.popleft()
                self.memory_answers.append(due)
        if arvalid and arready:
            self.memory_reads.append([due, araddr, arlen, arid])
        if awvalid and awready:
            self.memory_writes.append([awaddr, awlen])
        waiting = len(self.memory_writes) + len(self.memory_answers)
        self.peak = max(self.peak, len(self.memory_reads), waiting)

    def unit_side(self, values):
        """Check and carry out a cycle of the unit."""
        ar_taken, aw_taken, w_taken, r_taken, rdata, rlast, rid, b_taken = values
        if r_taken:
            addr, left, number = self.unit_reads[0]
            assert (rdata, rlast, rid) == (addr * 3, left == 0, number), f"cycle {self.cycle}"
            self.unit_reads[0] = (addr + 8, left - 1, number)
            if left == 0:
                self.unit_reads.popleft()
                self.seen["reads"] += 1
        if b_taken:
            assert self.unit_answers, f"cycle {self.cycle}: answer to nothing"
            self.unit_answers -= 1
            self.seen["writes"] += 1
        if ar_taken:
            self.unit_reads.append(self.address["ar"])
            self.address["ar"] = None
        if aw_taken:
            self.unit_answers += 1
            self.address["aw"] = None
        if w_taken:
            data, strobe, _, addr = self.beat
            assert self.contents[addr] == (data, strobe), f"cycle {self.cycle}"
            self.beat = None


def gate(**options):
    return Quiesce(data_width=WIDTH, id_width=2, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_bursts_end_well_through_resets(seed, stall):
    traffic = Traffic(gate(), seed=seed, stall=stall, resets=8, latency=40)
    simulate(traffic.dut, traffic.bench)
    assert traffic.seen["resets"] == 8
    assert traffic.seen["reads"] > 25
    assert traffic.seen["writes"] > 25
    assert traffic.seen["dropped"] > 5
    assert traffic.seen["made up"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_unit_that_hangs_is_reset(seed):
    traffic = Traffic(gate(), seed=seed, stall=0.2, resets=12, hang=0.05)
    simulate(traffic.dut, traffic.bench)
    assert traffic.seen["resets"] == 12


@pytest.mark.parametrize(("max_bursts", "max_addresses"), [(2, 1), (4, 2)])
def test_limits_hold_traffic_back(max_bursts, max_addresses):
    dut = gate(max_bursts=max_bursts, max_addresses=max_addresses)
    traffic = Traffic(dut, seed=1, stall=0.2, resets=4, latency=40)
    simulate(traffic.dut, traffic.bench)
    assert traffic.peak == max_bursts - 1
    assert traffic.seen["writes"] > 10


def test_full_rate_while_open():
    """Beats of a burst pass one a cycle, reads and writes at once."""
    dut = gate()

    async def bench(ctx):
        i, o = dut.i_write, dut.o_write
        for signal in (o.awready, o.wready, dut.o_read.rvalid, dut.i_read.rready):
            ctx.set(signal, 1)
        ctx.set(i.awlen, 15)
        ctx.set(i.awvalid, 1)
        await ctx.tick()
        ctx.set(i.awvalid, 0)
        ctx.set(i.wvalid, 1)
        for beat in range(16):
            ctx.set(i.wdata, beat)
            _, _, taken, data, last, read = await ctx.tick().sample(
                i.wready & o.wvalid, o.wdata, o.wlast, dut.i_read.rvalid & dut.o_read.rready
            )
            assert (taken, data, last, read) == (1, beat, beat == 15, 1)

    simulate(dut, bench)


def test_options_are_checked():
    with pytest.raises(ValueError, match="max_bursts must be a power of two from 2, not 3"):
        gate(max_bursts=3)
    with pytest.raises(ValueError, match="max_addresses must be at least 1, not 0"):
        gate(max_addresses=0)


def test_converts():
    rtlil.convert(gate())
    text = verilog(data_width=WIDTH, id_width=2)
    assert "module quiesce(" in text
    assert text == verilog(data_width=WIDTH, id_width=2)
