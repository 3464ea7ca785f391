# amaranth: UnusedElaboratable=no
"""ReadMaster against a memory that stalls, delays, reorders IDs, interleaves and answers badly."""

import collections
import itertools
import random

import pytest
from amaranth.back import rtlil, verilog
from amaranth.hdl import Value
from amaranth.lib import data

from moska.hw.memory.axi import AXI4Lite, AXI4Read, AXI4Write, BurstSplitter, Response, export
from moska.hw.memory.reader import ReadMaster
from moska.hw.memory.window import WindowGuard
from moska.sim.bench import check_hold, get, put, simulate

OKAY, EXOKAY, SLVERR, DECERR = (code.value for code in Response)
EVERYTHING = (0, (1 << 64) - 1)
TAG = data.StructLayout({"kind": 3, "number": 9})


def reader(*, data_width=64, **arguments):
    """Return a master whose tags number the commands."""
    return ReadMaster(data_width=data_width, tag_shape=TAG, **arguments)


def word_at(addr, data_width):
    """Return the memory's content at a byte address: a hash of it, ``data_width`` bits."""
    return random.Random(addr).getrandbits(data_width)


class ReadMemory:
    """Subordinate for AR and R: bursts of one ID in order, those of different IDs in any order.

    Between a burst's AR and its first beat lie ``latency`` to ``latency + spread`` cycles. The ID
    of the next beat is drawn among those that are due: after every beat with ``interleave``, else
    after every burst. ``stall`` is the chance that ARREADY or RVALID is 0 for a cycle. ``bad`` maps
    a byte address to the RRESP of its beat.
    """

    def __init__(
        self, dut, *, latency=2, spread=0, stall=0.0, interleave=False, bad=(), window=EVERYTHING,
        seed=0
    ):  # fmt: skip
        self.dut = dut
        self.latency = latency
        self.spread = spread
        self.stall = stall
        self.interleave = interleave
        self.bad = dict(bad)
        self.window = window
        self.rng = random.Random(seed)
        self.bursts = []  # (cycle, address, beats, ID)
        self.delivered = []  # (cycle, ID, last of its burst) of each beat
        self.peak = 0  # largest number of bytes requested and not taken on R

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        axi, width = dut.axi, dut.data_width
        n_bytes = width // 8
        queues = collections.defaultdict(collections.deque)  # (first cycle, address, last)
        shown = None  # ID on R
        chosen = None  # ID whose burst is under way, without interleaving
        requested = cycle = 0
        held = None
        request = (
            axi.araddr, axi.arlen, axi.arid, axi.arsize, axi.arburst, axi.arcache, axi.arprot
        )  # fmt: skip
        while True:
            ctx.set(axi.arready, int(rng.random() >= self.stall))
            if shown is None and rng.random() >= self.stall:
                due = [code for code, queue in queues.items() if queue and queue[0][0] <= cycle]
                if chosen is not None:
                    due = [code for code in due if code == chosen]
                if due:
                    shown = rng.choice(due)
                    _, addr, last = queues[shown][0]
                    chosen = None if self.interleave or last else shown
                    ctx.set(axi.rid, shown)
                    ctx.set(axi.rdata, word_at(addr, width))
                    ctx.set(axi.rresp, Response(self.bad.get(addr, OKAY)))
                    ctx.set(axi.rlast, last)
                    ctx.set(axi.rvalid, 1)
            _, _, arvalid, arready, rvalid, rready, *ar = await ctx.tick().sample(
                axi.arvalid, axi.arready, axi.rvalid, axi.rready, *request
            )
            if held is not None:
                assert arvalid, f"cycle {cycle}: ARVALID fell before ARREADY"
                assert ar == held, f"cycle {cycle}: AR changed before ARREADY"
            held = ar if arvalid and not arready else None
            if rvalid and rready:
                _, _, last = queues[shown].popleft()
                self.delivered.append((cycle, shown, last))
                ctx.set(axi.rvalid, 0)
                shown = None
            if arvalid:
                addr, arlen, code, arsize, arburst, *_ = ar
                size = (arlen + 1) * n_bytes
                low, high = self.window
                assert addr >= low, f"{addr:#x} below the window"
                assert addr + size - 1 <= high, f"{addr:#x} above the window"
            if arvalid and arready:
                assert 1 << arsize == n_bytes
                assert arburst.value == 1, "burst is not INCR"
                assert addr % n_bytes == 0
                assert addr // 4096 == (addr + size - 1) // 4096, f"{addr:#x} crosses 4 KiB"
                assert size <= dut.max_burst
                assert code < dut.n_ids
                self.bursts.append((cycle, addr, arlen + 1, code))
                first = cycle + self.latency + rng.randint(0, self.spread)
                for beat in range(arlen + 1):
                    queues[code].append((first, addr + beat * n_bytes, int(beat == arlen)))
                requested += size
            in_flight = requested - len(self.delivered) * n_bytes
            self.peak = max(self.peak, in_flight)
            assert in_flight <= dut.max_in_flight, f"cycle {cycle}: {in_flight} bytes"
            cycle += 1


def expected_beats(commands, data_width, bad=()):
    """Return, for each ID, ``(data, tag number, beat, last, bad, addr)`` of its beats in order."""
    n_bytes = data_width // 8
    bad = dict(bad)
    expected = collections.defaultdict(list)
    for command in commands:
        for n in range(command["n_beats"]):
            addr = command["addr"] + n * n_bytes
            aligned = addr // n_bytes * n_bytes
            expected[command.get("id", 0)].append(
                (
                    word_at(aligned, data_width),
                    command["tag"]["number"],
                    n,
                    int(n + 1 == command["n_beats"]),
                    int(bad.get(aligned, OKAY) != OKAY),
                    addr,
                )
            )
    return expected


def numbered(commands):
    """Give the commands tags."""
    for number, command in enumerate(commands):
        command["tag"] = {"kind": number % 7, "number": number}
    return commands


def random_commands(rng, data_width, count, n_ids=4):
    """Return commands of 1 to 40 beats; a third of them begin just below a 4 KiB boundary."""
    n_bytes = data_width // 8
    commands = []
    for _ in range(count):
        addr = rng.getrandbits(48) // n_bytes * n_bytes
        if rng.random() < 0.34:
            addr = (addr | 4095) + 1 - n_bytes * rng.randint(1, min(20, 4096 // n_bytes))
        commands.append(
            {
                "addr": addr + rng.choice((0, rng.randrange(n_bytes))),
                "n_beats": rng.choice((1, 2, rng.randint(1, 40))),
                "id": rng.randrange(n_ids),
            }
        )
    return numbered(commands)


def check_beats(sink, commands, data_width, *, bad=(), seed):
    """Compare the beats of every ID with its commands."""
    got = collections.defaultdict(list)
    for beat in sink:
        assert beat.tag.kind == beat.tag.number % 7
        got[beat.id].append(
            (beat.data, beat.tag.number, beat.beat, beat.last, beat.bad, beat.addr)
        )
    expected = expected_beats(commands, data_width, bad)
    assert set(got) == set(expected), f"seed {seed}"
    for code, beats in expected.items():
        for index, (beat, want) in enumerate(zip(got[code], beats, strict=True)):
            assert beat == want, f"seed {seed}, ID {code}, beat {index}"


def run(dut, memory, commands, *, idle=0.0, stall=0.0, seed=0, cycles=20_000, window=EVERYTHING):
    """Send commands, compare all beats, check that the master ends idle; return the beats."""
    sink = []
    n_beats = sum(command["n_beats"] for command in commands)

    async def ends_idle(ctx):
        ctx.set(dut.window_base, window[0])
        ctx.set(dut.window_limit, window[1])
        while len(sink) < n_beats:
            await ctx.tick()
        await ctx.tick().repeat(2)
        assert (ctx.get(dut.busy), ctx.get(dut.fault)) == (0, 0)

    simulate(
        dut,
        put(dut.cmd, commands, idle=idle, seed=seed),
        get(dut.o, sink, n_beats, stall=stall, seed=seed + 1),
        ends_idle,
        monitors=[memory.bench, check_hold(dut.o)],
        cycles=cycles,
    )
    check_beats(sink, commands, dut.data_width, bad=memory.bad, seed=seed)
    return sink


@pytest.mark.parametrize("data_width", [8, 64, 512])
@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("interleave", [False, True])
def test_random_commands(data_width, stall, interleave):
    seed = 100 + data_width + int(100 * stall) + interleave
    rng = random.Random(seed)
    n_bytes = data_width // 8
    dut = reader(
        data_width=data_width, max_in_flight=24 * n_bytes, max_burst=8 * n_bytes, max_commands=3
    )
    commands = random_commands(rng, data_width, 25)
    bad = {
        (command["addr"] // n_bytes + rng.randrange(command["n_beats"])) * n_bytes: response
        for command, response in zip(commands[::3], itertools.cycle((EXOKAY, SLVERR, DECERR)))
    }
    memory = ReadMemory(
        dut,
        latency=rng.choice((1, 5, 30)),
        spread=20,
        stall=stall,
        interleave=interleave,
        bad=bad,
        seed=seed,
    )
    sink = run(dut, memory, commands, idle=stall, stall=stall, seed=seed)
    assert sum(beat.bad for beat in sink) >= 5


@pytest.mark.parametrize("n_ids", [1, 2])
def test_fewer_ids(n_ids):
    seed = 20 + n_ids
    dut = reader(n_ids=n_ids, max_in_flight=512, max_burst=64, max_commands=2)
    memory = ReadMemory(dut, latency=3, spread=9, stall=0.25, interleave=True, seed=seed)
    commands = random_commands(random.Random(seed), 64, 30, n_ids)
    run(dut, memory, commands, idle=0.25, stall=0.25, seed=seed)
    assert {code for *_, code in memory.bursts} == set(range(n_ids))


def test_ids_overtake_and_interleave():
    """The memory model does what it is for: the order of delivery is not that of the commands."""
    seed = 30
    dut = reader(max_burst=64)
    memory = ReadMemory(dut, latency=3, spread=60, interleave=True, seed=seed)
    commands = numbered(
        [{"addr": 0x1000 * n, "n_beats": 16, "id": n % 4} for n in range(24)]
    )
    sink = run(dut, memory, commands, seed=seed)
    numbers = [beat.tag.number for beat in sink]
    assert numbers != sorted(numbers), "no ID overtook another"
    inside = [
        (one[1], other[1])
        for one, other in itertools.pairwise(memory.delivered)
        if not one[2] and one[1] != other[1]
    ]
    assert len(inside) > 20, "no burst was interrupted"


@pytest.mark.parametrize(("max_burst", "beats"), [(8, 1), (64, 8), (2048, 256), (None, 128)])
def test_splits_at_multiples_of_max_burst(max_burst, beats):
    seed = 3
    dut = reader(max_burst=max_burst)
    memory = ReadMemory(dut, seed=seed)
    addr = 0x1_0000_0FF0 - 0x500
    run(dut, memory, numbered([{"addr": addr, "n_beats": 600, "id": 2}]), seed=seed)
    words = [(at // 8, n) for _, at, n, _ in memory.bursts]
    assert words[0][0] == addr // 8
    assert all(
        first + n == second
        for (first, n), (second, _) in itertools.pairwise(words)
    )
    assert all((first + n) % beats == 0 for first, n in words[:-1])
    assert sum(n for _, n in words) == 600
    assert max(n for _, n in words) == beats


@pytest.mark.parametrize("n_ids", [1, 4])
@pytest.mark.parametrize("interleave", [False, True])
def test_full_rate_with_latency(n_ids, interleave):
    """64 bytes a cycle, 100 cycles of latency: no gap between the first and the last beat."""
    seed = 4
    dut = reader(data_width=512, n_ids=n_ids)
    memory = ReadMemory(dut, latency=100, interleave=interleave, seed=seed)
    commands = numbered(
        [{"addr": 0x4000 * n, "n_beats": 60, "id": n % n_ids} for n in range(10)]
    )
    run(dut, memory, commands, seed=seed)
    assert memory.delivered[-1][0] - memory.delivered[0][0] == 600 - 1
    assert memory.peak >= 100 * 64


@pytest.mark.parametrize("max_burst", [8, 64])
def test_limit_is_reached_and_kept(max_burst):
    """With a receiver that never takes a beat, requests stop at exactly ``max_in_flight``."""
    dut = reader(max_in_flight=256, max_burst=max_burst)
    memory = ReadMemory(dut, latency=1, seed=5)

    async def bench(ctx):
        ctx.set(dut.window_limit, EVERYTHING[1])
        await ctx.tick().repeat(100)
        assert sum(n for _, _, n, _ in memory.bursts) == 256 // 8
        assert len(memory.delivered) == 2, "the two that wait in the master"
        assert ctx.get(dut.busy) == 1

    simulate(
        dut,
        put(dut.cmd, numbered([{"addr": 0, "n_beats": 200}])),
        bench,
        monitors=[memory.bench],
        cycles=500,
    )


@pytest.mark.parametrize("max_commands", [1, 3, 16])
def test_commands_of_an_id_are_limited(max_commands):
    """An ID takes ``max_commands`` while none is delivered; the next one waits, others do not."""
    dut = reader(max_commands=max_commands)
    taken = []

    async def send(ctx):
        ctx.set(dut.window_limit, EVERYTHING[1])
        ctx.set(dut.axi.arready, 1)
        for code in (2, 1):
            ctx.set(dut.cmd.payload, {"addr": 0, "n_beats": 1, "id": code, "tag": {}})
            ctx.set(dut.cmd.valid, 1)
            for _ in range(40):
                _, _, ready = await ctx.tick().sample(dut.cmd.ready)
                taken.append((code, ready))

    simulate(dut, send, cycles=500)
    for code in (1, 2):
        assert taken.count((code, 1)) == max_commands


def test_single_beat_commands_follow_without_bubble():
    dut = reader()
    memory = ReadMemory(dut, latency=2, seed=6)
    commands = numbered([{"addr": 0x1000 + 64 * n, "n_beats": 1, "id": 3} for n in range(50)])
    run(dut, memory, commands, seed=6)
    starts = [cycle for cycle, *_ in memory.bursts]
    assert starts == list(range(starts[0], starts[0] + 50))
    assert [later - starts[0] for later, *_ in memory.delivered] == list(range(2, 52))


def test_latency():
    dut = reader()
    memory = ReadMemory(dut, seed=7)
    seen = []

    async def watch(ctx):
        cycle = 0
        async for _, _, valid in ctx.tick().sample(dut.o.valid):
            if valid and not seen:
                seen.append(cycle)
            cycle += 1

    async def bench(ctx):
        ctx.set(dut.window_limit, EVERYTHING[1])
        await put(dut.cmd, numbered([{"addr": 0, "n_beats": 1}]))(ctx)
        await get(dut.o, [], 1)(ctx)

    simulate(dut, bench, monitors=[memory.bench, watch], cycles=100)
    # The command's transfer is in cycle 0.
    assert memory.bursts[0][0] == dut.latency
    assert seen == [memory.delivered[0][0] + dut.beat_latency]


@pytest.mark.parametrize("data_width", [8, 64, 512])
def test_window_that_just_fits(data_width):
    """Bursts that begin at the base and end at the limit pass."""
    seed = 40
    n_bytes = data_width // 8
    base = 0xFFFF_0000_0000_1000 + 2 * n_bytes
    window = base, base + 50 * n_bytes - 1
    dut = reader(data_width=data_width, max_burst=8 * n_bytes)
    memory = ReadMemory(dut, window=window, seed=seed)
    commands = [{"addr": base, "n_beats": 50}, {"addr": window[1], "n_beats": 1, "id": 1}]
    run(dut, memory, numbered(commands), seed=seed, window=window)


TOP = (1 << 64) - 1


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
    """What is before the burst is delivered; ARVALID and the rest stay low, ``fault`` stays 1."""
    seed = 50 + int(10 * stall)
    base = 0x1000 if window[0] < 0x8000 else TOP - 0xFFF
    fits = window[1] > window[0]
    good = [{"addr": base + 64 * (n + 1), "n_beats": 8, "id": n % 4} for n in range(6)]
    good = good if fits else []
    commands = numbered(
        [
            *good,
            {"addr": addr, "n_beats": n_beats, "id": 1},
            *({"addr": base + 64, "n_beats": 3, "id": n} for n in range(4)),
        ]
    )
    dut = reader(max_burst=64)
    memory = ReadMemory(dut, latency=4, spread=9, stall=stall, window=window, seed=seed)
    expected = 48 if fits else 0
    inside = window[0] <= addr and addr + 7 <= window[1] and n_beats > 1  # its first burst
    expected += inside
    sink = []

    async def bench(ctx):
        ctx.set(dut.window_base, window[0])
        ctx.set(dut.window_limit, window[1])
        while not ctx.get(dut.fault):
            await ctx.tick()
        while len(sink) < expected:
            await ctx.tick()
        n_bursts = len(memory.bursts)
        for _ in range(60):
            assert (ctx.get(dut.fault), ctx.get(dut.axi.arvalid)) == (1, 0), f"seed {seed}"
            await ctx.tick()
        assert ctx.get(dut.busy) == 1
        assert n_bursts == len(memory.bursts) == (6 if fits else 0) + inside
        assert len(sink) == expected

    simulate(
        dut,
        bench,
        monitors=[
            memory.bench,
            put(dut.cmd, commands, seed=seed),
            get(dut.o, sink, 1000, stall=stall, seed=seed),
            check_hold(dut.o),
        ],
        cycles=2_000,
    )
    whole = [*good, {**commands[len(good)], "n_beats": 1}] if inside else good
    got = [(beat.data, beat.tag.number, beat.beat, beat.addr) for beat in sink]
    want = [
        (word, number, beat, at)
        for beats in expected_beats(whole, 64).values()
        for word, number, beat, _, _, at in beats
    ]
    assert sorted(got) == sorted(want), f"seed {seed}"


def test_converts_without_combinational_loop():
    rtlil.convert(reader(data_width=512))
    rtlil.convert(reader(n_ids=1, max_commands=1))
    rtlil.convert(BurstSplitter(data_width=8, max_burst=1))
    rtlil.convert(WindowGuard(data_width=64, max_burst=8, n_ids=4))


def test_verilog_ports_have_the_directions_of_the_signature():
    dut = reader()
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
        ({"data_width": 64, "n_ids": 3}, "n_ids must be a power of two, not 3"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        reader(**arguments)
