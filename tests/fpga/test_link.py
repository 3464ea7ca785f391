# amaranth: UnusedElaboratable=no
"""Link: whole frames reach the bus once, bad ones never, and every one is answered."""

import random
import zlib

import pytest
from amaranth.back import rtlil

from moska.fpga import frame
from moska.fpga.frame import Operation, Status
from moska.fpga.link import NAME, Link, verilog
from moska.sim.bench import check_hold, simulate

SEED = 20_251_205
GAP, BUS = 60, 40
BAD_ADDRESS, DEAD_ADDRESS = 0x9000_0000, 0xA000_0000  # answer with an error, not at all


class Bus:
    """A slave with words in a dictionary, whose answers take a random time."""

    def __init__(self, dut, seed, *, both=False):
        self.dut = dut
        self.rng = random.Random(seed)
        self.words = {}
        self.log = []  # (is_write, word address, data, bytes)
        self.both = both  # an error comes with ack

    async def run(self, ctx):
        dut = self.dut
        waits = 0
        while True:
            stb, cyc, we, adr, data, sel = (
                ctx.get(signal)
                for signal in (dut.stb, dut.cyc, dut.we, dut.adr, dut.dat_w, dut.sel)
            )
            assert stb == cyc
            ack = err = 0
            if cyc and waits:
                waits -= 1
            elif cyc and adr < DEAD_ADDRESS >> 2:
                err = int(adr >= BAD_ADDRESS >> 2)
                ack = int(not err or self.both)
                waits = self.rng.choice((0, 0, 1, 5))
                if not err:
                    self.access(we, adr, data, sel)
            ctx.set(dut.dat_r, self.words.get(adr, 0) if ack else self.rng.getrandbits(32))
            ctx.set(dut.ack, ack)
            ctx.set(dut.err, err)
            await ctx.tick()

    def access(self, we, adr, data, sel):
        self.log.append((we, adr, data if we else None, sel))
        if we:
            mask = sum(0xFF << 8 * byte for byte in range(4) if sel >> byte & 1)
            self.words[adr] = self.words.get(adr, 0) & ~mask | data & mask


class Host:
    """The other end: sends bytes and takes responses apart, from within a bench."""

    def __init__(self, dut, ctx, seed=0, *, idle=0.0, stall=0.0):
        self.dut, self.ctx = dut, ctx
        self.rng = random.Random(seed)
        self.idle, self.stall = idle, stall

    async def send(self, raw):
        for byte in raw:
            while self.rng.random() < self.idle:
                await self.ctx.tick()
            self.ctx.set(self.dut.rx.payload, byte)
            self.ctx.set(self.dut.rx.valid, 1)
            taken = False
            while not taken:
                _, _, taken = await self.ctx.tick().sample(self.dut.rx.ready)
            self.ctx.set(self.dut.rx.valid, 0)

    async def byte(self, cycles=4000):
        for _ in range(cycles):
            self.ctx.set(self.dut.tx.ready, self.rng.random() >= self.stall)
            _, _, valid, ready, byte = await self.ctx.tick().sample(
                self.dut.tx.valid, self.dut.tx.ready, self.dut.tx.payload
            )
            if valid and ready:
                self.ctx.set(self.dut.tx.ready, 0)
                return byte
        raise AssertionError("no answer")

    async def receive(self):
        """Return sequence, status with its flags, payload."""
        raw = bytes([await self.byte() for _ in range(4)])
        magic, sequence, status, last = raw
        assert magic == frame.RESPONSE
        words = last + 1 if status & frame.PAYLOAD else 0
        rest = bytes([await self.byte() for _ in range(4 * words + 4)])
        assert zlib.crc32(raw + rest[:-4]).to_bytes(4, "little") == rest[-4:]
        return sequence, status, rest[:-4]

    async def ask(self, sequence, operation, address, **options):
        await self.send(frame.request(sequence, operation, address, **options))
        number, status, payload = await self.receive()
        assert number == sequence
        return status & ~frame.PAYLOAD, payload

    async def silent(self, cycles):
        """Nothing comes for so long."""
        self.ctx.set(self.dut.tx.ready, 1)
        for _ in range(cycles):
            _, _, valid = await self.ctx.tick().sample(self.dut.tx.valid)
            assert not valid
        self.ctx.set(self.dut.tx.ready, 0)


def play(scene, *, seed=SEED, cycles=20_000, both=False, **rates):
    """Run ``scene(host, bus)``; returns the bus."""
    dut = Link(gap_cycles=GAP, bus_cycles=BUS)
    bus = Bus(dut, seed, both=both)

    async def bench(ctx):
        await scene(Host(dut, ctx, seed, **rates), bus)

    async def background(ctx):
        await bus.run(ctx)

    simulate(dut, bench, monitors=[check_hold(dut.tx), background], cycles=cycles)
    return bus


def payload(rng, words):
    return rng.randbytes(4 * words)


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.6), (0.3, 0.3)])
def test_writes_and_reads(idle, stall):
    rng = random.Random(SEED)

    async def scene(host, bus):
        assert await host.ask(0, Operation.HELLO, 0x1234_5678) == (0, b"\x78\x56\x34\x12")
        memory = bytearray(4 * 300)
        for sequence in range(1, 12):
            first = rng.randrange(200)
            if sequence % 3:
                raw = payload(rng, rng.choice((1, 2, 37)))
                status, back = await host.ask(
                    sequence, Operation.WRITE, 0x4000_0000 + 4 * first, payload=raw
                )
                memory[4 * first : 4 * first + len(raw)] = raw
                assert (status, back) == (0, b"")
            else:
                words = rng.choice((1, 5, 60))
                status, back = await host.ask(
                    sequence, Operation.READ, 0x4000_0000 + 4 * first, words=words
                )
                assert (status, back) == (0, bytes(memory[4 * first : 4 * (first + words)]))

    play(scene, idle=idle, stall=stall)


def test_the_longest_frames():
    raw = payload(random.Random(SEED), frame.MAX_WORDS)

    async def scene(host, bus):
        await host.ask(9, Operation.HELLO, 0)
        assert await host.ask(10, Operation.WRITE, 0x400, payload=raw) == (0, b"")
        assert await host.ask(11, Operation.READ, 0x400, words=frame.MAX_WORDS) == (0, raw)

    bus = play(scene)
    assert [entry[1] for entry in bus.log] == 2 * list(range(0x100, 0x200))


def test_chosen_bytes():
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        await host.ask(1, Operation.WRITE, 8, payload=b"\x11\x22\x33\x44")
        await host.ask(2, Operation.WRITE, 8, payload=b"abcd", select=0b0110)
        assert await host.ask(3, Operation.READ, 8) == (0, b"\x11bc\x44")

    bus = play(scene)
    assert [entry[3] for entry in bus.log] == [0xF, 0b0110, 0xF]


def test_a_repeated_sequence_is_answered_and_not_done_again():
    async def scene(host, bus):
        await host.ask(5, Operation.HELLO, 0)
        bus.words[4] = 1
        assert await host.ask(6, Operation.READ, 16) == (0, b"\1\0\0\0")
        bus.words[4] = 2
        # A bad frame between them, with a payload that reaches the buffer.
        spoiled = bytearray(frame.request(6, Operation.WRITE, 16, payload=bytes(range(40))))
        spoiled[20] ^= 8
        await host.send(spoiled)
        assert (await host.receive())[1] == Status.REJECTED
        assert await host.ask(6, Operation.READ, 16) == (0, b"\1\0\0\0")
        assert await host.ask(7, Operation.READ, 16) == (0, b"\2\0\0\0")
        for _ in range(3):
            assert await host.ask(8, Operation.WRITE, 16, payload=b"once") == (0, b"")
        # A greeting is always carried out.
        assert await host.ask(8, Operation.HELLO, 3) == (0, b"\3\0\0\0")
        assert await host.ask(9, Operation.WRITE, 16, payload=b"more") == (0, b"")

    bus = play(scene)
    assert [entry[0] for entry in bus.log] == [0, 0, 1, 1]


def test_no_greeting():
    async def scene(host, bus):
        assert await host.ask(0, Operation.WRITE, 0, payload=bytes(4)) == (Status.STRANGER, b"")
        assert await host.ask(1, Operation.READ, 0) == (Status.STRANGER, b"")
        await host.ask(1, Operation.HELLO, 0)
        assert await host.ask(2, Operation.READ, 0) == (0, bytes(4))

    assert len(play(scene).log) == 1


GOOD = frame.request(1, Operation.WRITE, 0x4000_0010, payload=b"ABCDEFGH")


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_a_corrupted_byte_reaches_nothing(place):
    rng = random.Random(place)

    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        spoiled = bytearray(GOOD)
        spoiled[place] ^= rng.randrange(1, 256)
        await host.send(spoiled)
        assert await host.receive() == (0, Status.REJECTED, b"")
        assert bus.log == []
        assert await host.ask(1, Operation.WRITE, 0x4000_0010, payload=b"ABCDEFGH") == (0, b"")
        await host.silent(3 * GAP)

    assert len(play(scene).log) == 2


@pytest.mark.parametrize("lost", [0, 1, 3, 7, 8, 15, len(GOOD) - 1])
@pytest.mark.parametrize("count", [1, 4])
def test_lost_bytes_reach_nothing(lost, count):
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        await host.send(GOOD[:lost] + GOOD[lost + count :])
        assert await host.receive() == (0, Status.REJECTED, b"")
        assert bus.log == []
        assert await host.ask(1, Operation.WRITE, 0x4000_0010, payload=b"ABCDEFGH") == (0, b"")

    play(scene)


def test_frames_within_a_bad_frame_are_no_frames():
    inner = frame.request(2, Operation.WRITE, 0x4000_0000, payload=b"evil")

    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        await host.send(b"\0" + inner)  # the first byte was inserted
        await host.send(inner)
        assert await host.receive() == (0, Status.REJECTED, b"")
        await host.send(frame.request(1, Operation.READ, 0, words=256)[:-1] + b"\0" + inner)
        assert await host.receive() == (0, Status.REJECTED, b"")
        assert await host.ask(1, Operation.READ, 0) == (0, bytes(4))

    assert len(play(scene).log) == 1


def test_pauses_shorter_than_the_gap_do_not_matter():
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        for byte in frame.request(1, Operation.READ, 0):
            await host.ctx.tick().repeat(GAP - 2)
            await host.send([byte])
        assert (await host.receive())[0] == 1

    play(scene)


def test_an_unknown_operation_is_rejected():
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        head = frame.HEADER.pack(frame.REQUEST, 1, 3 | 0xF0, 0)
        await host.send(frame.sealed(head + bytes(4)))
        assert await host.receive() == (0, Status.REJECTED, b"")

    assert play(scene).log == []


@pytest.mark.parametrize("both", [False, True])
def test_bus_errors(both):
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        bad = BAD_ADDRESS - 8
        assert await host.ask(1, Operation.WRITE, bad, payload=bytes(20)) == (
            Status.BUS_ERROR, b"",
        )  # fmt: skip
        assert len(bus.log) == 2
        assert await host.ask(2, Operation.READ, bad, words=5) == (Status.BUS_ERROR, b"")
        assert await host.ask(2, Operation.READ, bad, words=5) == (Status.BUS_ERROR, b"")
        assert len(bus.log) == 4
        for sequence, address in ((3, DEAD_ADDRESS), (4, DEAD_ADDRESS + 4)):
            assert await host.ask(sequence, Operation.READ, address) == (Status.BUS_ERROR, b"")
        assert await host.ask(5, Operation.READ, 0) == (0, bytes(4))

    play(scene, both=both)


def test_the_interrupt_is_told():
    async def scene(host, bus):
        await host.ask(0, Operation.HELLO, 0)
        host.ctx.set(host.dut.interrupt, 1)
        assert (await host.ask(1, Operation.READ, 0))[0] == frame.INTERRUPT
        host.ctx.set(host.dut.interrupt, 0)
        assert (await host.ask(1, Operation.READ, 0))[0] == 0

    play(scene)


def test_arguments():
    for name in ("gap_cycles", "bus_cycles"):
        with pytest.raises(ValueError, match=f"{name} must be at least 2, not 1"):
            Link(**{name: 1})
    with pytest.raises(ValueError, match="words must be from 1 to 256, not 257"):
        frame.request(0, Operation.READ, 0, words=257)
    with pytest.raises(ValueError, match="payload must be whole words, not 3 bytes"):
        frame.request(0, Operation.WRITE, 0, payload=b"abc")


def test_conversion():
    link = Link(gap_cycles=GAP)
    rtlil.convert(link, ports=link.ports())
    text = verilog()
    assert f"module {NAME}(" in text
    names = "clk rst rx_valid rx_ready rx_data tx_valid tx_ready tx_data interrupt".split()
    names += [f"wb_{name}" for name in "adr dat_w dat_r sel cyc stb ack we err".split()]
    for name in names:
        assert name in text.split("(")[3].split(")")[0].split(", ") or f" {name};" in text
    assert text == verilog()
