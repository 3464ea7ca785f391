# amaranth: UnusedElaboratable=no
"""WriteMaster against a memory that stalls, delays and answers with errors."""

import collections
import random

import pytest
from amaranth.back import rtlil, verilog

from moska.hw.memory.axi import Response, export
from moska.hw.memory.writer import WriteMaster
from moska.sim.bench import put, simulate

OKAY, SLVERR, DECERR = Response.OKAY.value, Response.SLVERR.value, Response.DECERR.value
TOP = (1 << 64) - 1
EVERYTHING = (0, TOP)


class WriteMemory:
    """Subordinate for AW, W and B, one ID, in order, with byte contents in ``bytes``.

    A burst is answered ``latency`` cycles after its AW and last W are in. ``stall`` is the chance
    that AWREADY, WREADY or BVALID is 0 for a cycle. ``bad`` maps a burst's address to its BRESP.
    ``w_first`` holds AWREADY at 0 until a beat has been offered, as AXI allows. The model gives the
    master its ``window`` and checks that AW stays in it.
    """

    def __init__(
        self, dut, *, latency=2, stall=0.0, bad=(), w_first=False, window=EVERYTHING, seed=0
    ):
        self.dut = dut
        self.latency = latency
        self.stall = stall
        self.bad = dict(bad)
        self.w_first = w_first
        self.window = window
        self.rng = random.Random(seed)
        self.bytes = {}
        self.bursts = []  # (cycle, address, beats)
        self.beats = []  # cycle of each W beat
        self.answers = 0
        self.peak = 0  # most bursts accepted and not answered

    async def bench(self, ctx):
        axi = self.dut.axi
        n_bytes = self.dut.data_width // 8
        waiting = collections.deque()  # bursts with AW but not all of W
        early = collections.deque()  # W beats without AW
        answers = collections.deque()  # (first cycle, response)
        taken = cycle = 0
        held_aw = held_w = None
        showing = False
        request = (
            axi.awaddr, axi.awlen, axi.awsize, axi.awburst, axi.awcache, axi.awprot, axi.awid
        )  # fmt: skip
        ctx.set(self.dut.window_base, self.window[0])
        ctx.set(self.dut.window_limit, self.window[1])
        while True:
            free = not self.w_first or early or ctx.get(axi.wvalid)
            ctx.set(axi.awready, int(free and self.rng.random() >= self.stall))
            ctx.set(axi.wready, int(self.rng.random() >= self.stall))
            if (
                not showing
                and answers
                and answers[0][0] <= cycle
                and self.rng.random() >= self.stall
            ):
                ctx.set(axi.bvalid, 1)
                ctx.set(axi.bresp, Response(answers[0][1]))
                showing = True
            (
                _, _, awvalid, awready, wvalid, wready, bvalid, bready, busy, wdata, wstrb, wlast,
                *aw,
            ) = await ctx.tick().sample(
                axi.awvalid, axi.awready, axi.wvalid, axi.wready, axi.bvalid, axi.bready,
                self.dut.busy, axi.wdata, axi.wstrb, axi.wlast, *request,
            )  # fmt: skip
            if held_aw is not None:
                assert awvalid, f"cycle {cycle}: AWVALID fell before AWREADY"
                assert aw == held_aw, f"cycle {cycle}: AW changed before AWREADY"
            held_aw = aw if awvalid and not awready else None
            w = (wdata, wstrb, wlast)
            if held_w is not None:
                assert wvalid, f"cycle {cycle}: WVALID fell before WREADY"
                assert w == held_w, f"cycle {cycle}: W changed before WREADY"
            held_w = w if wvalid and not wready else None
            if awvalid or wvalid or waiting or answers:
                assert busy, f"cycle {cycle}: busy is 0 with work outstanding"
            # Beats may pass their address, but not by more than the burst that AW offers.
            if wvalid and not waiting:
                assert awvalid, f"cycle {cycle}: WVALID without a burst"
                assert len(early) <= aw[1], f"cycle {cycle}: W runs past the burst on AW"
            if bvalid and bready:
                answers.popleft()
                self.answers += 1
                ctx.set(axi.bvalid, 0)
                showing = False
            if awvalid:
                addr, awlen, awsize, awburst, *_ = aw
                size = (awlen + 1) * n_bytes
                assert addr >= self.window[0], f"{addr:#x} below the window"
                assert addr + size - 1 <= self.window[1], f"{addr:#x} above the window"
            if awvalid and awready:
                assert 1 << awsize == n_bytes
                assert awburst.value == 1, "burst is not INCR"
                assert addr % n_bytes == 0
                assert addr // 4096 == (addr + size - 1) // 4096, f"{addr:#x} crosses 4 KiB"
                assert size <= self.dut.max_burst
                self.bursts.append((cycle, addr, awlen + 1))
                waiting.append((addr, awlen + 1))
                self.peak = max(self.peak, len(self.bursts) - self.answers)
            if wvalid and wready:
                early.append(w)
                self.beats.append(cycle)
            while waiting and early:
                addr, n_beats = waiting[0]
                data, strb, last = early.popleft()
                for byte in range(n_bytes):
                    if strb >> byte & 1:
                        self.bytes[addr + taken * n_bytes + byte] = data >> 8 * byte & 255
                taken += 1
                assert last == (taken == n_beats), f"{addr:#x}: WLAST in beat {taken} of {n_beats}"
                if last:
                    waiting.popleft()
                    answers.append((cycle + self.latency, self.bad.get(addr, OKAY)))
                    taken = 0
            cycle += 1


def random_job(rng, data_width, count):
    """Return commands, beats, and the bytes that memory holds afterwards."""
    n_bytes = data_width // 8
    commands, beats, image = [], [], {}
    for _ in range(count):
        addr = rng.getrandbits(48) // n_bytes * n_bytes
        if rng.random() < 0.34:
            addr = (addr | 4095) + 1 - n_bytes * rng.randint(1, min(20, 4096 // n_bytes))
        n_beats = rng.choice((1, 2, rng.randint(1, 40)))
        commands.append({"addr": addr, "n_beats": n_beats})
        for n in range(n_beats):
            word = rng.getrandbits(data_width)
            strb = rng.choice(((1 << n_bytes) - 1, rng.getrandbits(n_bytes)))
            beats.append({"data": word, "strb": strb})
            for byte in range(n_bytes):
                if strb >> byte & 1:
                    image[addr + n * n_bytes + byte] = word >> 8 * byte & 255
    return commands, beats, image


def run(dut, memory, commands, beats, *, idle=0.0, seed=0, cycles=20_000, idle_i=None):
    """Send commands and beats; return when all is answered and the master is idle."""

    async def ends_idle(ctx):
        while len(memory.beats) < len(beats) or memory.answers < len(memory.bursts):
            await ctx.tick()
        await ctx.tick().repeat(2)
        assert ctx.get(dut.busy) == 0
        assert memory.answers == len(memory.bursts)

    simulate(
        dut,
        put(dut.cmd, commands, idle=idle, seed=seed),
        put(dut.i, beats, idle=idle if idle_i is None else idle_i, seed=seed + 1),
        ends_idle,
        monitors=[memory.bench],
        cycles=cycles,
    )


@pytest.mark.parametrize("data_width", [8, 64, 512])
@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
def test_random_commands(data_width, stall):
    seed = 200 + data_width + int(100 * stall)
    rng = random.Random(seed)
    dut = WriteMaster(data_width=data_width, max_burst=data_width, max_bursts=4)
    memory = WriteMemory(dut, latency=rng.choice((1, 5, 30)), stall=stall, seed=seed)
    commands, beats, image = random_job(rng, data_width, 25)
    run(dut, memory, commands, beats, idle=stall, seed=seed)
    assert memory.bytes == image, f"seed {seed}"
    assert sum(n for _, _, n in memory.bursts) == len(beats)


def test_subordinate_that_waits_for_w_before_aw():
    seed = 2
    rng = random.Random(seed)
    dut = WriteMaster(data_width=64)
    memory = WriteMemory(dut, stall=0.25, w_first=True, seed=seed)
    commands, beats, image = random_job(rng, 64, 20)
    run(dut, memory, commands, beats, seed=seed)
    assert memory.bytes == image, f"seed {seed}"


def test_beat_without_command_waits():
    dut = WriteMaster(data_width=64)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.axi.wready, 1)
        ctx.set(dut.axi.awready, 1)
        for _ in range(20):
            assert ctx.get(dut.axi.wvalid) == 0
            assert ctx.get(dut.i.ready) == 0
            assert ctx.get(dut.busy) == 0
            await ctx.tick()

    simulate(dut, bench, cycles=100)


def test_full_rate_and_outstanding_bursts():
    """Beats leave one a cycle while responses take 40 cycles; bursts wait up to the limit."""
    seed = 4
    dut = WriteMaster(data_width=64, max_burst=64, max_bursts=8)
    memory = WriteMemory(dut, latency=40, seed=seed)
    beats = [{"data": n, "strb": 255} for n in range(320)]
    run(dut, memory, [{"addr": 0x10000, "n_beats": 320}], beats, seed=seed)
    assert memory.beats[-1] - memory.beats[0] == 320 - 1
    assert memory.peak >= 5

    dut = WriteMaster(data_width=64, max_burst=8, max_bursts=4)
    memory = WriteMemory(dut, latency=100, seed=seed)
    run(dut, memory, [{"addr": 0x10000, "n_beats": 12}], beats[:12], seed=seed)
    assert memory.peak == 4


def test_latency_of_first_request():
    dut = WriteMaster(data_width=64)
    memory = WriteMemory(dut, seed=5)
    run(dut, memory, [{"addr": 0, "n_beats": 1}], [{"data": 1, "strb": 1}], seed=5)
    # The command's transfer is in cycle 0; W follows AWVALID by one cycle.
    assert memory.bursts[0][0] == dut.latency
    assert memory.beats[0] == dut.latency + 1


@pytest.mark.parametrize("max_burst", [8, 64, 2048, None])
def test_splits_at_multiples_of_max_burst(max_burst):
    seed = 6
    dut = WriteMaster(data_width=64, max_burst=max_burst)
    memory = WriteMemory(dut, seed=seed)
    addr = 0x1_0000_0FF0 - 0x500
    beats = [{"data": n, "strb": 255} for n in range(600)]
    run(dut, memory, [{"addr": addr, "n_beats": 600}], beats, seed=seed)
    at = addr
    for _, burst_addr, n in memory.bursts:
        assert burst_addr == at
        at += 8 * n
        assert at % dut.max_burst == 0 or at == addr + 4800
    assert max(n for _, _, n in memory.bursts) == dut.max_burst // 8


@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
def test_error_is_sticky_and_names_first_bad_burst(stall):
    seed = 700 + int(100 * stall)
    dut = WriteMaster(data_width=64, max_burst=64)
    first, second, third = 0xFFFF_FFFF_0000_1040, 0xFFFF_FFFF_0000_1080, 0x2008
    memory = WriteMemory(
        dut, latency=3, stall=stall, seed=seed, bad={first: SLVERR, second: DECERR, third: 1}
    )

    async def job(ctx, addr, n_beats):
        await put(dut.cmd, [{"addr": addr, "n_beats": n_beats}])(ctx)
        await put(dut.i, [{"data": n, "strb": 255} for n in range(n_beats)])(ctx)
        while ctx.get(dut.busy):
            await ctx.tick()

    async def bench(ctx):
        await job(ctx, 0x1000, 8)
        assert ctx.get(dut.error) == 0
        await job(ctx, 0xFFFF_FFFF_0000_1000, 40)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, first)
        await ctx.tick().repeat(5)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, first)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert ctx.get(dut.error) == 0
        await job(ctx, 0x2008, 3)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, third)

    simulate(dut, bench, monitors=[memory.bench], cycles=5_000)


def test_error_in_the_cycle_of_clear_wins():
    """With ``clear`` held, each bad response sets ``error``, with its own address."""
    dut = WriteMaster(data_width=64, max_burst=8)
    memory = WriteMemory(dut, seed=8, bad={0x10: SLVERR, 0x18: DECERR})
    seen = []

    async def watch(ctx):
        ctx.set(dut.clear, 1)
        async for _, _, error, addr in ctx.tick().sample(dut.error, dut.error_addr):
            if error:
                seen.append(addr)

    commands = [{"addr": 0, "n_beats": 6}]
    beats = [{"data": n, "strb": 255} for n in range(6)]

    async def drained(ctx):
        while memory.answers < 6:
            await ctx.tick()
        await ctx.tick().repeat(2)

    simulate(
        dut,
        put(dut.cmd, commands),
        put(dut.i, beats),
        drained,
        monitors=[memory.bench, watch],
        cycles=500,
    )
    assert seen == [0x10, 0x18]


@pytest.mark.parametrize("data_width", [8, 64, 512])
def test_window_that_just_fits(data_width):
    """Bursts that begin at the base and end at the limit pass."""
    seed = 40
    n_bytes = data_width // 8
    base = 0xFFFF_0000_0000_1000 + 2 * n_bytes
    window = base, base + 50 * n_bytes - 1
    dut = WriteMaster(data_width=data_width, max_burst=8 * n_bytes)
    memory = WriteMemory(dut, window=window, seed=seed)
    strb = (1 << n_bytes) - 1
    beats = [{"data": n, "strb": strb} for n in range(51)]
    commands = [{"addr": base, "n_beats": 50}, {"addr": window[1], "n_beats": 1}]
    run(dut, memory, commands, beats, seed=seed)
    assert set(memory.bytes) == set(range(base, window[1] + 1))
    assert memory.bytes[window[1] - n_bytes + 1] == 50


@pytest.mark.parametrize(
    ("window", "addr", "n_beats"),
    [
        ((0x1000, 0x1FFF), 0xFF8, 1),  # just below
        ((0x1000, 0x1FFF), 0x2000, 1),  # just above
        ((0x1000, 0x1FFF), 0x1FF8, 2),  # its second burst is above
        ((0x1001, 0x1FFF), 0x1000, 1),  # the base is inside the word
        ((0x1000, 0x1FFE), 0x1FF8, 1),  # the limit is inside the word
        ((0x1000, 0x1FFF), 0x8000_0000_0000_1000, 1),
        ((0x8000_0000_0000_0000, TOP), 0x7FFF_FFFF_FFFF_FFF8, 1),
        ((0x8000_0000_0000_0000, TOP), TOP - 7, 2),  # wraps to 0
        ((0x1000, 0xFFF), 0x1000, 1),  # nothing is inside
    ],
)
@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_burst_outside_the_window_is_the_end(window, addr, n_beats, stall):
    """What is before the burst is written and answered; AWVALID stays low, ``fault`` stays 1."""
    seed = 50 + int(10 * stall)
    base = 0x1000 if window[0] < 0x8000 else TOP - 0xFFF
    good = [{"addr": base + 64 * (n + 1), "n_beats": 8} for n in range(6)]
    good = good if window[1] > window[0] else []
    commands = [*good, {"addr": addr, "n_beats": n_beats}, {"addr": base + 64, "n_beats": 3}]
    inside = window[0] <= addr and addr + 7 <= window[1] and n_beats > 1  # its first burst
    n_beats_inside = 8 * len(good) + inside
    dut = WriteMaster(data_width=64, max_burst=64)
    memory = WriteMemory(dut, latency=4, stall=stall, window=window, seed=seed)
    image = {
        at + byte: n >> 8 * byte & 255
        for n, at in enumerate(
            [command["addr"] + 8 * n for command in good for n in range(8)] + [addr] * inside
        )
        for byte in range(8)
    }

    async def bench(ctx):
        while not ctx.get(dut.fault) or memory.answers < len(good) + inside:
            await ctx.tick()
        for _ in range(60):
            assert (ctx.get(dut.fault), ctx.get(dut.busy)) == (1, 1), f"seed {seed}"
            assert (ctx.get(dut.axi.awvalid), ctx.get(dut.axi.wvalid)) == (0, 0), f"seed {seed}"
            await ctx.tick()
        assert len(memory.bursts) == len(good) + inside
        assert len(memory.beats) == n_beats_inside
        assert memory.bytes == image, f"seed {seed}"

    simulate(
        dut,
        bench,
        monitors=[
            memory.bench,
            put(dut.cmd, commands, seed=seed),
            put(dut.i, [{"data": n, "strb": 255} for n in range(100)], seed=seed),
        ],
        cycles=2_000,
    )


def test_converts_without_combinational_loop():
    rtlil.convert(WriteMaster(data_width=512))


def test_verilog_ports_have_the_directions_of_the_signature():
    dut = WriteMaster(data_width=64)
    ports = {**export("m_axi", dut.axi), **export("cmd", dut.cmd), **export("i", dut.i)}
    top = verilog.convert(dut, ports=ports, emit_src=False).split("module top")[1]
    for name, member in dut.axi.signature.members.items():
        way = "output" if member.flow.name == "Out" else "input"
        lines = [line.split() for line in top.splitlines() if line.endswith(f" m_axi_{name};")]
        assert [way] == [words[0] for words in lines if words[0] in ("input", "output")], name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_width": 48}, "data_width must be a power of two from 8 to 1024, not 48"),
        ({"data_width": 64, "max_burst": 4096}, "max_burst must be a power of two from 8 to 2048"),
        ({"data_width": 64, "max_bursts": 3}, "max_bursts must be at least 4, not 3"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        WriteMaster(**arguments)
