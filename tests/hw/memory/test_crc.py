"""CRC-32 of bus words against zlib."""

import random
import zlib

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moska.hw.memory.crc import CRC_BITS, INITIAL, crc_masks, crc_of_data, crc_of_state, crc_step
from moska.sim.bench import simulate


class Crc(wiring.Component):
    """CRC of the words so far, from one expression, or from its two halves with a register."""

    def __init__(self, data_width, *, halves=False):
        self.halves = halves
        super().__init__({"data": In(data_width), "valid": In(1), "crc": Out(CRC_BITS)})

    def elaborate(self, platform):
        m = Module()
        state = Signal(CRC_BITS, init=INITIAL)
        m.d.comb += self.crc.eq(~state)
        if self.halves:
            part, part_valid = Signal(CRC_BITS), Signal()
            m.d.sync += [part.eq(crc_of_data(self.data)), part_valid.eq(self.valid)]
            with m.If(part_valid):
                m.d.sync += state.eq(crc_of_state(state, len(self.data)) ^ part)
        else:
            with m.If(self.valid):
                m.d.sync += state.eq(crc_step(state, self.data))
        return m


def run(dut, raw):
    """Return the CRC after every word of ``raw``."""
    n_bytes = len(dut.data) // 8
    seen = []

    async def bench(ctx):
        for start in range(0, len(raw), n_bytes):
            ctx.set(dut.data, int.from_bytes(raw[start : start + n_bytes], "little"))
            ctx.set(dut.valid, 1)
            await ctx.tick()
            ctx.set(dut.valid, 0)
            if dut.halves:
                await ctx.tick()
            seen.append(ctx.get(dut.crc))

    simulate(dut, bench)
    return seen


@pytest.mark.parametrize("data_width", [8, 16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("halves", [False, True])
def test_agrees_with_zlib(data_width, halves):
    seed = data_width
    n_bytes = data_width // 8
    raw = random.Random(seed).randbytes(40 * n_bytes) + bytes(2 * n_bytes) + b"\xff" * 2 * n_bytes
    crcs = run(Crc(data_width, halves=halves), raw)
    for index, crc in enumerate(crcs):
        want = zlib.crc32(raw[: (index + 1) * n_bytes])
        assert crc == want, f"seed {seed}, word {index}"


@pytest.mark.parametrize("data_width", [32, 512])
def test_every_bit_of_a_word(data_width):
    for bit in range(data_width):
        raw = (1 << bit).to_bytes(data_width // 8, "little")
        of_state, of_data = crc_masks(data_width)
        state = sum(
            (((INITIAL & one).bit_count() + (1 << bit & other).bit_count()) & 1) << index
            for index, (one, other) in enumerate(zip(of_state, of_data, strict=True))
        )
        assert state ^ INITIAL == zlib.crc32(raw), f"bit {bit}"


def test_check_value():
    """The check value that catalogues of CRCs give for CRC-32."""
    assert run(Crc(8), b"123456789")[-1] == 0xCBF43926


def test_converts():
    rtlil.convert(Crc(512))
