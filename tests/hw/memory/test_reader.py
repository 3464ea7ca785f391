# amaranth: UnusedElaboratable=no
"""ReadMaster against a memory that stalls, delays and answers with errors."""

import collections
import itertools
import random

import pytest
from amaranth.back import rtlil, verilog
from amaranth.hdl import Value

from moska.hw.memory.axi import AXI4Lite, AXI4Read, AXI4Write, BurstSplitter, Response, export
from moska.hw.memory.reader import ReadMaster
from moska.sim.bench import check_hold, get, put, simulate

OKAY, SLVERR, DECERR = Response.OKAY.value, Response.SLVERR.value, Response.DECERR.value


def word_at(addr, data_width):
    """Return the memory's content at a byte address: a hash of it, ``data_width`` bits."""
    return random.Random(addr).getrandbits(data_width)


class ReadMemory:
    """Subordinate for AR and R, one ID, in order.

    ``latency`` cycles lie between a burst's AR and its first beat; ``stall`` is the chance that
    ARREADY or RVALID is 0 for a cycle. ``bad`` maps a byte address to the RRESP of its beat.
    """

    def __init__(self, dut, *, latency=2, stall=0.0, bad=(), seed=0):
        self.dut = dut
        self.latency = latency
        self.stall = stall
        self.bad = dict(bad)
        self.rng = random.Random(seed)
        self.bursts = []  # (cycle, address, beats)
        self.delivered = []  # cycle of each beat
        self.peak = 0  # largest number of bytes in flight

    async def bench(self, ctx):
        axi, width = self.dut.axi, self.dut.data_width
        n_bytes = width // 8
        queue = collections.deque()  # (first cycle, address, last, response)
        showing = False
        requested = cycle = 0
        held = None
        request = (
            axi.araddr, axi.arlen, axi.arsize, axi.arburst, axi.arcache, axi.arprot, axi.arid
        )  # fmt: skip
        while True:
            ctx.set(axi.arready, int(self.rng.random() >= self.stall))
            if not showing and queue and queue[0][0] <= cycle and self.rng.random() >= self.stall:
                _, addr, last, response = queue[0]
                ctx.set(axi.rdata, word_at(addr, width))
                ctx.set(axi.rresp, Response(response))
                ctx.set(axi.rlast, last)
                ctx.set(axi.rvalid, 1)
                showing = True
            _, _, arvalid, arready, rvalid, rready, *ar = await ctx.tick().sample(
                axi.arvalid, axi.arready, axi.rvalid, axi.rready, *request
            )
            if held is not None:
                assert arvalid, f"cycle {cycle}: ARVALID fell before ARREADY"
                assert ar == held, f"cycle {cycle}: AR changed before ARREADY"
            held = ar if arvalid and not arready else None
            if rvalid and rready:
                queue.popleft()
                self.delivered.append(cycle)
                ctx.set(axi.rvalid, 0)
                showing = False
            if arvalid and arready:
                addr, arlen, arsize, arburst, *_ = ar
                n_beats = arlen + 1
                size = n_beats * n_bytes
                assert 1 << arsize == n_bytes
                assert arburst.value == 1, "burst is not INCR"
                assert addr % n_bytes == 0
                assert addr // 4096 == (addr + size - 1) // 4096, f"{addr:#x} crosses 4 KiB"
                assert size <= self.dut.max_burst
                self.bursts.append((cycle, addr, n_beats))
                for beat in range(n_beats):
                    at = addr + beat * n_bytes
                    queue.append(
                        (cycle + self.latency, at, beat + 1 == n_beats, self.bad.get(at, OKAY))
                    )
                requested += size
            in_flight = requested - len(self.delivered) * n_bytes
            self.peak = max(self.peak, in_flight)
            assert in_flight <= self.dut.max_in_flight, f"cycle {cycle}: {in_flight} bytes"
            cycle += 1


def expected_beats(commands, data_width):
    """Return ``(data, last)`` of every beat of the commands."""
    n_bytes = data_width // 8
    return [
        (word_at(command["addr"] + n * n_bytes, data_width), int(n + 1 == command["n_beats"]))
        for command in commands
        for n in range(command["n_beats"])
    ]


def random_commands(rng, data_width, count):
    """Return commands of 1 to 40 beats; a third of them begin just below a 4 KiB boundary."""
    n_bytes = data_width // 8
    commands = []
    for _ in range(count):
        addr = rng.getrandbits(48) // n_bytes * n_bytes
        if rng.random() < 0.34:
            addr = (addr | 4095) + 1 - n_bytes * rng.randint(1, min(20, 4096 // n_bytes))
        commands.append({"addr": addr, "n_beats": rng.choice((1, 2, rng.randint(1, 40)))})
    return commands


def run(dut, memory, commands, *, idle=0.0, stall=0.0, seed=0, cycles=20_000):
    """Send commands, compare all beats, and check that the master ends idle."""
    sink = []
    expected = expected_beats(commands, dut.data_width)

    async def ends_idle(ctx):
        while len(sink) < len(expected):
            await ctx.tick()
        await ctx.tick().repeat(2)
        assert ctx.get(dut.busy) == 0

    simulate(
        dut,
        put(dut.cmd, commands, idle=idle, seed=seed),
        get(dut.o, sink, len(expected), stall=stall, seed=seed + 1),
        ends_idle,
        monitors=[memory.bench, check_hold(dut.o)],
        cycles=cycles,
    )
    for index, (beat, (word, last)) in enumerate(zip(sink, expected, strict=True)):
        assert (beat.data, beat.last) == (word, last), f"seed {seed}, beat {index}"


@pytest.mark.parametrize("data_width", [8, 64, 512])
@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
def test_random_commands(data_width, stall):
    seed = 100 + data_width + int(100 * stall)
    rng = random.Random(seed)
    n_bytes = data_width // 8
    dut = ReadMaster(
        data_width=data_width, max_in_flight=24 * n_bytes, max_burst=8 * n_bytes, max_commands=3
    )
    memory = ReadMemory(dut, latency=rng.choice((1, 5, 30)), stall=stall, seed=seed)
    run(dut, memory, random_commands(rng, data_width, 25), idle=stall, stall=stall, seed=seed)
    assert memory.peak <= 24 * n_bytes


@pytest.mark.parametrize(("max_burst", "beats"), [(8, 1), (64, 8), (2048, 256), (None, 128)])
def test_splits_at_multiples_of_max_burst(max_burst, beats):
    seed = 3
    dut = ReadMaster(data_width=64, max_burst=max_burst)
    memory = ReadMemory(dut, seed=seed)
    addr = 0x1_0000_0FF0 - 0x500
    run(dut, memory, [{"addr": addr, "n_beats": 600}], seed=seed)
    words = [(at // 8, n) for _, at, n in memory.bursts]
    assert words[0][0] == addr // 8
    assert all(
        first + n == second
        for (first, n), (second, _) in itertools.pairwise(words)
    )
    assert all((first + n) % beats == 0 for first, n in words[:-1])
    assert sum(n for _, n in words) == 600
    assert max(n for _, n in words) == beats


def test_full_rate_with_latency():
    """64 bytes a cycle, 100 cycles of latency: no gap between the first and the last beat."""
    seed = 4
    dut = ReadMaster(data_width=512)
    memory = ReadMemory(dut, latency=100, seed=seed)
    commands = [{"addr": 0x4000 * n, "n_beats": 60} for n in range(10)]
    run(dut, memory, commands, seed=seed)
    assert memory.delivered[-1] - memory.delivered[0] == 600 - 1
    assert memory.peak >= 100 * 64


def test_limit_is_reached_and_kept():
    """With a receiver that never takes a beat, requests stop at exactly ``max_in_flight``."""
    dut = ReadMaster(data_width=64, max_in_flight=256, max_burst=64)
    memory = ReadMemory(dut, latency=1, seed=5)

    async def bench(ctx):
        await ctx.tick().repeat(100)
        assert memory.peak == 256
        assert len(memory.bursts) == 4
        assert ctx.get(dut.busy) == 1

    simulate(
        dut,
        put(dut.cmd, [{"addr": 0, "n_beats": 200}]),
        bench,
        monitors=[memory.bench],
        cycles=500,
    )


def test_single_beat_commands_follow_without_bubble():
    dut = ReadMaster(data_width=64)
    memory = ReadMemory(dut, latency=2, seed=6)
    run(dut, memory, [{"addr": 0x1000 + 64 * n, "n_beats": 1} for n in range(50)], seed=6)
    starts = [cycle for cycle, _, _ in memory.bursts]
    assert starts == list(range(starts[0], starts[0] + 50))
    assert [later - starts[0] for later in memory.delivered] == list(range(2, 52))


def test_latency_of_first_request():
    dut = ReadMaster(data_width=64)
    memory = ReadMemory(dut, seed=7)
    run(dut, memory, [{"addr": 0, "n_beats": 1}], seed=7)
    # The command's transfer is in cycle 0.
    assert memory.bursts[0][0] == dut.latency


@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
def test_error_is_sticky_and_names_first_bad_beat(stall):
    seed = 800 + int(100 * stall)
    dut = ReadMaster(data_width=64, max_burst=64)
    first, second, third = 0xFFFF_FFFF_0000_1048, 0xFFFF_FFFF_0000_1080, 0x2008
    memory = ReadMemory(
        dut, latency=3, stall=stall, seed=seed, bad={first: SLVERR, second: DECERR, third: 1}
    )
    run_one = [{"addr": 0xFFFF_FFFF_0000_1000, "n_beats": 40}]
    again = [{"addr": 0x2000, "n_beats": 4}]
    sink = []

    async def bench(ctx):
        await put(dut.cmd, run_one, seed=seed)(ctx)
        assert ctx.get(dut.error) == 0
        await get(dut.o, sink, 40, stall=stall, seed=seed)(ctx)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, first)
        await ctx.tick().repeat(5)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, first)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert ctx.get(dut.error) == 0
        await put(dut.cmd, again, seed=seed)(ctx)
        await get(dut.o, sink, 44, stall=stall, seed=seed)(ctx)
        assert (ctx.get(dut.error), ctx.get(dut.error_addr)) == (1, third)

    simulate(dut, bench, monitors=[memory.bench, check_hold(dut.o)], cycles=5_000)
    got = [(beat.data, beat.last) for beat in sink]
    assert got == expected_beats(run_one + again, 64), f"seed {seed}"


def test_error_in_the_cycle_of_clear_wins():
    """With ``clear`` held, each bad beat sets ``error`` for a cycle, with its own address."""
    dut = ReadMaster(data_width=64)
    memory = ReadMemory(dut, seed=9, bad={0x10: SLVERR, 0x18: DECERR})
    seen = []

    async def watch(ctx):
        ctx.set(dut.clear, 1)
        async for _, _, error, addr in ctx.tick().sample(dut.error, dut.error_addr):
            if error:
                seen.append(addr)

    commands = [{"addr": 0, "n_beats": 6}]
    sink = []
    simulate(
        dut,
        put(dut.cmd, commands),
        get(dut.o, sink, 6),
        monitors=[memory.bench, watch],
        cycles=500,
    )
    assert seen == [0x10, 0x18]


def test_converts_without_combinational_loop():
    rtlil.convert(ReadMaster(data_width=512))
    rtlil.convert(BurstSplitter(data_width=8, max_burst=1))


def test_verilog_ports_have_the_directions_of_the_signature():
    dut = ReadMaster(data_width=64)
    ports = export("m_axi", dut.axi)
    assert set(ports) == {f"m_axi_{name}" for name in AXI4Read(64).members}
    assert all(isinstance(value, Value) and way is None for value, way in ports.values())
    others = {**export("cmd", dut.cmd), **export("o", dut.o)}
    top = verilog.convert(dut, ports={**ports, **others}, emit_src=False).split("module top")[1]
    for name, member in dut.axi.signature.members.items():
        way = "output" if member.flow.name == "Out" else "input"
        lines = [line.split() for line in top.splitlines() if line.endswith(f" m_axi_{name};")]
        assert [way] == [words[0] for words in lines if words[0] in ("input", "output")], name


def test_signatures_compare_by_parameters():
    assert AXI4Read(64) == AXI4Read(64)
    assert AXI4Read(64) != AXI4Read(128)
    assert AXI4Read(64, id_width=2) != AXI4Read(64)
    assert AXI4Write(64) == AXI4Write(64)
    assert AXI4Write(64) != AXI4Write(64, addr_width=32)
    assert AXI4Write(64) != AXI4Read(64)
    assert AXI4Lite(12) == AXI4Lite(12)
    assert AXI4Lite(12) != AXI4Lite(12, 64)
    assert repr(AXI4Read(64)) == "AXI4Read(64, 64, 1)"
    assert repr(AXI4Write(512, 40, 4)) == "AXI4Write(512, 40, 4)"
    assert repr(AXI4Lite(12)) == "AXI4Lite(12, 32)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_width": 48}, "data_width must be a power of two from 8 to 1024, not 48"),
        ({"data_width": 64, "max_burst": 96}, "max_burst must be a power of two from 8 to 2048"),
        ({"data_width": 64, "max_burst": 4096}, "max_burst must be a power of two from 8 to 2048"),
        ({"data_width": 512, "max_burst": 8192}, "power of two from 64 to 4096 bytes, not 8192"),
        ({"data_width": 64, "max_in_flight": 512}, "max_in_flight must be at least max_burst"),
        ({"data_width": 64, "max_commands": 0}, "max_commands must be at least 1, not 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReadMaster(**arguments)
