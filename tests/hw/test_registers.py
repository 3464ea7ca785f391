"""RegisterFile against a Python model of the map, with delays on every AXI4-Lite channel."""

import random

import pytest
from amaranth.back import rtlil, verilog

from moska.golden.layout import COUNTERS
from moska.hw.memory.axi import Response, export
from moska.hw.registers import Kind, RegisterFile, field_path, load_map
from moska.sim.bench import simulate

OKAY, DECERR = Response.OKAY, Response.DECERR
MAP = load_map()
FIELDS = {
    field_path(register, field): field for register in MAP.registers for field in register.fields
}
WRITABLE = sorted(
    {
        register.offset
        for register in MAP.registers
        for field in register.fields
        if field.kind not in (Kind.CONSTANT, Kind.INPUT)
    }
)
LOCK = MAP["lock"].offset
TAIL = MAP["tail"].offset
SCRATCH = MAP["scratch"].offset

# A map with a pulse: the unit's own has none.
PULSES = """
addrmap t {
    desc = "d";
    reg {
        desc = "d";
        field { desc = "d"; sw = w; hw = r; singlepulse; } go[0:0] = 0;
        field { desc = "d"; sw = w; hw = r; singlepulse; } halt[9:9] = 0;
        field { desc = "d"; sw = rw; hw = r; } mode[3:2] = 1;
    } control @ 0x8;
};
"""


class Manager:
    """AXI4-Lite manager: writes with AW and W in any order, reads, random waits on each channel."""

    def __init__(self, dut, *, stall=0.0, seed=0):
        self.axil = dut.axil
        self.stall = stall
        self.rng = random.Random(seed)

    async def _wait(self, ctx):
        while self.rng.random() < self.stall:
            await ctx.tick()

    async def write(self, ctx, addr, value, strb=15, *, order=None):
        """Write and return the response. ``order``: "aw", "w" first, or "both" at once."""
        axil = self.axil
        order = order or self.rng.choice(("aw", "w", "both"))
        ctx.set(axil.awaddr, addr)
        ctx.set(axil.wdata, value)
        ctx.set(axil.wstrb, strb)
        pending = {"aw", "w"}
        started = {order} if order != "both" else {"aw", "w"}
        while pending:
            ctx.set(axil.awvalid, int("aw" in pending & started))
            ctx.set(axil.wvalid, int("w" in pending & started))
            _, _, awready, wready = await ctx.tick().sample(axil.awready, axil.wready)
            if awready:
                pending -= {"aw"} & started
            if wready:
                pending -= {"w"} & started
            if started != {"aw", "w"} and not pending & started and self._go():
                started = {"aw", "w"}
        ctx.set(axil.awvalid, 0)
        ctx.set(axil.wvalid, 0)
        await self._wait(ctx)
        return await self._response(ctx)

    def _go(self):
        return self.rng.random() >= self.stall

    async def _response(self, ctx):
        axil = self.axil
        ctx.set(axil.bready, 1)
        _, _, response = await self._until(ctx, axil.bvalid, axil.bresp)
        ctx.set(axil.bready, 0)
        return response

    async def _until(self, ctx, valid, *values):
        while True:
            clk, rst, done, *got = await ctx.tick().sample(valid, *values)
            if done:
                return clk, rst, *got

    async def read(self, ctx, addr):
        """Return the datum and the response."""
        axil = self.axil
        await self._wait(ctx)
        ctx.set(axil.araddr, addr)
        ctx.set(axil.arvalid, 1)
        await self._until(ctx, axil.arready)
        ctx.set(axil.arvalid, 0)
        await self._wait(ctx)
        ctx.set(axil.rready, 1)
        _, _, value, response = await self._until(ctx, axil.rvalid, axil.rdata, axil.rresp)
        ctx.set(axil.rready, 0)
        return value, response


class Model:
    """What software sees: constants, inputs, stored fields; counts pulses and told writes."""

    def __init__(self, register_map=MAP):
        self.registers = {register.offset: register for register in register_map.registers}
        self.fields = {
            field_path(register, field): field.reset
            for register in register_map.registers
            for field in register.fields
        }
        self.pulses = 0
        self.told = []
        self.refused = 0

    def write(self, addr, value, strb):
        register = self.registers.get(addr & ~3)
        if register is None:
            return DECERR
        enabled = sum(255 << 8 * byte for byte in range(4) if strb >> byte & 1)
        for field in register.fields:
            path = field_path(register, field)
            named = (enabled & field.mask) >> field.lsb
            ones = (value & enabled & field.mask) >> field.lsb
            match field.kind:
                case Kind.STORAGE:
                    if field.lock and self.fields[field.lock]:
                        self.refused += 1
                        continue
                    self.fields[path] = self.fields[path] & ~named | ones
                    if field.notifies and named:
                        self.told.append(self.fields[path])
                case Kind.SET_ONCE:
                    self.fields[path] |= ones
                case Kind.STICKY:
                    self.fields[path] &= ~ones
                case Kind.PULSE:
                    self.pulses += ones
        return OKAY

    def read(self, addr):
        register = self.registers.get(addr & ~3)
        if register is None:
            return 0, DECERR
        value = sum(
            self.fields[field_path(register, field)] << field.lsb for field in register.fields
        )
        return value, OKAY


def test_map_is_the_contract():
    offsets = {register.name: register.offset for register in MAP.registers if not register.group}
    assert offsets == {
        "id": 0x00, "version": 0x04, "control": 0x08, "status": 0x0C, "ring_lo": 0x10,
        "ring_hi": 0x14, "completion_lo": 0x18, "completion_hi": 0x1C, "ring_size": 0x20,
        "tail": 0x24, "head": 0x28, "completed": 0x2C, "event": 0x30, "mask": 0x34,
        "timeout": 0x38, "scratch": 0x3C, "error": 0x40, "error_sequence": 0x44,
        "error_address_lo": 0x48, "error_address_hi": 0x4C,
    }  # fmt: skip
    groups = {}
    for register in MAP.registers:
        groups.setdefault(register.group, []).append(register.name)
    window = [
        f"{master}_{end}_{half}"
        for master in ("read", "write")
        for end in ("base", "limit")
        for half in ("lo", "hi")
    ]
    assert groups["window"] == [*window, "lock"]
    assert groups["parameters"] == (
        "head_dim fold query_tile bus_bytes max_rows max_chunks block_tokens q_bits "
        "buffer_tokens buffer_slots contexts read_ports"
    ).split()
    assert groups["counters"] == [*COUNTERS, "jobs", "errors"]
    firsts = [MAP[names[0]].offset for names in (window, groups["parameters"], COUNTERS)]
    assert firsts == [0x50, 0x80, 0xC0]
    assert MAP["id"].fields[0].reset.to_bytes(4, "little") == b"MOSK"
    assert [field.reset for field in MAP["version"].fields] == [2, 1]

    def fields(name):
        return {field.name: (field.lsb, field.width, field.kind) for field in MAP[name].fields}

    assert fields("control") == {"enable": (0, 1, Kind.STORAGE)}
    assert fields("status") == {
        "busy": (0, 1, Kind.INPUT),
        "jobs": (8, 8, Kind.INPUT),
        "read_fault": (16, 1, Kind.INPUT),
        "write_fault": (17, 1, Kind.INPUT),
    }
    assert fields("event") == {"done": (0, 1, Kind.STICKY), "error": (1, 1, Kind.STICKY)}
    assert fields("lock") == {"value": (0, 1, Kind.SET_ONCE)}
    told = [path for path, field in FIELDS.items() if field.notifies]
    assert told == ["tail"]
    assert {path: field.lock for path, field in FIELDS.items() if field.lock} == dict.fromkeys(
        window, "lock"
    )
    for name in window:
        assert MAP[name].fields[0].reset == (0xFFFFFFFF if "limit" in name else 0)


@pytest.mark.parametrize("stall", [0.0, 0.25, 0.75])
def test_random_accesses(stall):
    seed = 300 + int(100 * stall)
    rng = random.Random(seed)
    dut = RegisterFile()
    manager = Manager(dut, stall=stall, seed=seed)
    model = Model()
    inputs = [(path, field.width) for path, field in FIELDS.items() if field.kind is Kind.INPUT]
    sticky = [path for path, field in FIELDS.items() if field.kind is Kind.STICKY]
    told = []

    async def watch(ctx):
        async for _, _, swmod, tail in ctx.tick().sample(dut.tail_swmod, dut.tail):
            if swmod:
                told.append(tail)

    async def bench(ctx):
        for path, width in inputs:
            model.fields[path] = rng.getrandbits(width)
            ctx.set(dut.f[path], model.fields[path])
        offsets = [register.offset for register in MAP.registers]
        for offset in range(0, 0x110, 4):
            assert await manager.read(ctx, offset) == model.read(offset), f"{offset:#x}"
        for step in range(500):
            often = [rng.choice([*WRITABLE, TAIL, TAIL]) for _ in range(3)]
            addr = rng.choice([*often, rng.choice(offsets), rng.randrange(4096)])
            addr |= rng.choice((0, 0, 1, 3))
            at = f"seed {seed}, step {step}, {addr:#x}"
            kind = rng.randrange(6)
            if kind == 0:
                path, width = rng.choice(inputs)
                model.fields[path] = rng.getrandbits(width)
                ctx.set(dut.f[path], model.fields[path])
            elif kind == 1:
                path = rng.choice(sticky)
                ctx.set(dut.f[f"{path}.set"], 1)
                await ctx.tick()
                ctx.set(dut.f[f"{path}.set"], 0)
                model.fields[path] = 1
            elif kind < 4:
                value, strb = rng.getrandbits(32), rng.choice((15, rng.randrange(16)))
                if addr & ~3 == LOCK and step < 250:  # the windows stay open for a while
                    value &= ~1
                elif step > 250 and model.refused <= 3:  # then they are locked and tried
                    addr, value, strb = rng.choice(((LOCK, 1, 1), (LOCK - 4, value, 15)))
                response = await manager.write(ctx, addr, value, strb)
                assert response == model.write(addr, value, strb), at
                for path, signal in dut.f.items():
                    if path in model.fields:
                        assert ctx.get(signal) == model.fields[path], f"{at}: {path}"
            else:
                assert await manager.read(ctx, addr) == model.read(addr), at
        await ctx.tick().repeat(3)

    simulate(dut, bench, monitors=[watch], cycles=20_000)
    assert len(model.told) > 3
    assert told == model.told, f"seed {seed}"
    assert model.fields["lock"] == 1
    assert model.refused > 3


def test_pulses(tmp_path):
    path = tmp_path / "t.rdl"
    path.write_text(PULSES, encoding="utf-8")
    register_map = load_map(path)
    seed = 310
    rng = random.Random(seed)
    dut = RegisterFile(register_map)
    manager = Manager(dut, stall=0.25, seed=seed)
    model = Model(register_map)
    pulses = []

    async def count_pulses(ctx):
        async for _, _, go, halt in ctx.tick().sample(dut.control_go, dut.control_halt):
            pulses.append(go + halt)

    async def bench(ctx):
        for step in range(60):
            value, strb = rng.getrandbits(32), rng.choice((15, rng.randrange(16)))
            assert await manager.write(ctx, 0x8, value, strb) == model.write(0x8, value, strb)
            assert ctx.get(dut.control_mode) == model.fields["control.mode"], f"step {step}"
            assert await manager.read(ctx, 0x8) == model.read(0x8), f"step {step}"

    simulate(dut, bench, monitors=[count_pulses], cycles=2000)
    assert model.pulses > 20
    assert sum(pulses) == model.pulses, f"seed {seed}"


def test_lock():
    """A locked register keeps its value; nothing but a reset opens it."""
    dut = RegisterFile()
    manager = Manager(dut, seed=13)
    base = MAP["read_base_lo"].offset

    async def bench(ctx):
        assert await manager.write(ctx, base, 0x1000) == OKAY
        assert await manager.write(ctx, LOCK, 0) == OKAY
        assert ctx.get(dut.lock) == 0
        assert await manager.write(ctx, base, 0x2000) == OKAY
        assert await manager.write(ctx, LOCK, 1) == OKAY
        for value in (0, 1, 0xFFFFFFFF):
            assert await manager.write(ctx, base, 0x3000) == OKAY
            assert await manager.write(ctx, LOCK, value) == OKAY
            assert (ctx.get(dut.lock), ctx.get(dut.read_base_lo)) == (1, 0x2000)
            assert await manager.read(ctx, base) == (0x2000, OKAY)

    simulate(dut, bench, cycles=500)


@pytest.mark.parametrize("order", ["aw", "w", "both"])
def test_order_of_address_and_data(order):
    dut = RegisterFile()
    manager = Manager(dut, stall=0.5, seed=11)

    async def bench(ctx):
        for value in (0xDEADBEEF, 0x12345678):
            assert await manager.write(ctx, SCRATCH, value, order=order) == OKAY
            assert ctx.get(dut.scratch) == value
        assert await manager.write(ctx, SCRATCH, 0xAABBCCDD, 0b0110, order=order) == OKAY
        assert ctx.get(dut.scratch) == 0x12BBCC78

    simulate(dut, bench, cycles=500)


def test_set_wins_over_clear_in_the_same_cycle():
    """Sweep a one-cycle set over a clear: one of the cycles is the clear's own."""
    after = []
    for offset in range(6):
        dut = RegisterFile()
        manager = Manager(dut, seed=12)
        trace = []

        async def pulse(ctx, dut=dut, offset=offset):
            ctx.set(dut.event_done_set, 1)
            await ctx.tick()
            ctx.set(dut.event_done_set, 0)
            await ctx.tick().repeat(offset + 1)
            ctx.set(dut.event_done_set, 1)
            await ctx.tick()
            ctx.set(dut.event_done_set, 0)

        async def clear(ctx, dut=dut, manager=manager):
            await ctx.tick().repeat(2)
            await manager.write(ctx, MAP["event"].offset, 1, order="both")
            await ctx.tick().repeat(6)

        async def watch(ctx, dut=dut, trace=trace):
            async for _, _, done in ctx.tick().sample(dut.event_done):
                trace.append(done)

        simulate(dut, pulse, clear, monitors=[watch], cycles=100)
        first = trace.index(1)
        after.append((0 in trace[first:], trace[-1]))
    # Set before the clear: cleared. In its cycle: never falls. After it: falls and rises again.
    tie = after.index((False, 1))
    assert tie > 0
    assert after[:tie] == [(True, 0)] * tie
    assert after[tie + 1 :] == [(True, 1)] * (5 - tie)
    assert tie < 5


def test_one_outstanding_response_each():
    """Without BREADY and RREADY, one access each is done and the next waits."""
    dut = RegisterFile()
    axil = dut.axil

    async def bench(ctx):
        ctx.set(axil.awaddr, SCRATCH)
        ctx.set(axil.wstrb, 15)
        ctx.set(axil.wdata, 1)
        ctx.set(axil.awvalid, 1)
        ctx.set(axil.wvalid, 1)
        ctx.set(axil.araddr, 0x00)
        ctx.set(axil.arvalid, 1)
        await ctx.tick()
        ctx.set(axil.wdata, 2)
        ctx.set(axil.araddr, SCRATCH)
        await ctx.tick().repeat(10)
        assert ctx.get(dut.scratch) == 1
        assert (ctx.get(axil.bvalid), ctx.get(axil.awready), ctx.get(axil.wready)) == (1, 0, 0)
        assert (ctx.get(axil.rvalid), ctx.get(axil.arready)) == (1, 0)
        assert ctx.get(axil.rdata) == 0x4B534F4D
        ctx.set(axil.bready, 1)
        ctx.set(axil.awvalid, 0)
        ctx.set(axil.wvalid, 0)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.scratch) == 2

    simulate(dut, bench, cycles=100)


def test_latency():
    """A write shows, and B answers, 2 cycles after AW and W; R answers 1 cycle after AR."""
    dut = RegisterFile()
    axil = dut.axil

    async def bench(ctx):
        for signal, value in (
            (axil.awaddr, TAIL), (axil.wdata, 3), (axil.wstrb, 1),
            (axil.awvalid, 1), (axil.wvalid, 1), (axil.araddr, 0x04), (axil.arvalid, 1),
        ):  # fmt: skip
            ctx.set(signal, value)
        await ctx.tick()
        for signal in (axil.awvalid, axil.wvalid, axil.arvalid):
            ctx.set(signal, 0)
        assert (ctx.get(axil.rvalid), ctx.get(axil.rdata)) == (1, 0x0001_0002)
        assert (ctx.get(axil.bvalid), ctx.get(dut.tail_swmod), ctx.get(dut.tail)) == (0, 0, 0)
        await ctx.tick()
        assert (ctx.get(axil.bvalid), ctx.get(dut.tail_swmod), ctx.get(dut.tail)) == (1, 1, 3)
        await ctx.tick()
        assert (ctx.get(axil.bvalid), ctx.get(dut.tail_swmod), ctx.get(dut.tail)) == (1, 0, 3)

    simulate(dut, bench, cycles=20)


def test_converts_with_bus_names():
    rtlil.convert(RegisterFile())
    dut = RegisterFile()
    ports = {
        **export("s_axil", dut.axil),
        **{path.replace(".", "_"): (signal, None) for path, signal in dut.f.items()},
    }
    top = verilog.convert(dut, ports=ports, emit_src=False)
    for name, member in dut.axil.signature.members.items():
        way = "output" if member.flow.name == "Out" else "input"
        lines = [line.split() for line in top.splitlines() if line.endswith(f" s_axil_{name};")]
        assert [way] == [words[0] for words in lines if words[0] in ("input", "output")], name


HEAD = 'addrmap t { desc = "d"; reg { desc = "d"; field { desc = "d"; '


def locked(lock):
    """Return a map with a field whose lock, ``y``, is declared as ``lock``."""
    field = HEAD + "sw=rw; hw=r; } x[0:0] = 0; "
    return field + f'field {{ desc = "d"; {lock}; x -> swwel = y; }} a @ 0; }};'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "sw=rw; hw=rw; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind listed"),
        (HEAD + "sw=rw; hw=r; woclr; hwset; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; onwrite=wzs; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; woset; hwset; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; woset; swmod; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=r; hw=w; swmod; } x[0:0]; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; swacc; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; swwe; } x[0:0] = 0; } a @ 0; };", "t.a.x must be of a kind"),
        (HEAD + "sw=rw; hw=r; swwel; } x[0:0] = 0; } a @ 0; };", "swwel of field t.a.x must refer"),
        (locked("sw=r; hw=w; } y[1:1]"), "swwel of field t.a.x must refer"),
        (HEAD + "sw=rw; hw=r; } x[0:0]; } a @ 0; };", "t.a.x must have a reset value"),
        (HEAD + "sw=r; hw=w; } x[0:0]; } a @ 0x1000; };", "below 0x1000, not 0x1000"),
        (
            'addrmap t { desc = "d"; reg { field { desc = "d"; sw=r; hw=w; } x[0:0]; } a @ 0; };',
            "t.a must have a desc",
        ),
        (
            HEAD.replace("field", "regwidth = 16; field") + "sw=r; hw=w; } x[0:0]; } a @ 0; };",
            "t.a must have 32 bits, not 16",
        ),
    ],
)
def test_refuses(tmp_path, text, message):
    path = tmp_path / "t.rdl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_map(path)
