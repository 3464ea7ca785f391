"""Power of two of a fraction: a table of straight segments."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from moska.golden.formats import P_WIDTH, SCORE_FRAC
from moska.golden.tables import (
    EXP2_BASE_WIDTH,
    EXP2_FRAC,
    EXP2_LOW_BITS,
    EXP2_SEGMENT_BITS,
    EXP2_SLOPE_WIDTH,
    exp2_table,
)

Segment = data.StructLayout({"base": EXP2_BASE_WIDTH, "slope": EXP2_SLOPE_WIDTH})


class Exp2(wiring.Component):
    """``2**(fraction / 2**12) * 2**15``, 32768..65535.

    Golden model: :func:`moska.golden.softmax.exp2_mantissa`. Latency ``latency`` cycles, one result
    a cycle. Storage: 64 x 36 bits of registered ROM; one 12x6 multiplier. The last step is the
    carry chain of a 24-bit sum; the caller registers ``fraction``.

    Members
    -------
    fraction : :py:`In(12)`
    mantissa : :py:`Out(16)`

    """

    latency = 3

    fraction: In(SCORE_FRAC)
    mantissa: Out(P_WIDTH)

    def elaborate(self, platform):
        m = Module()

        drop = EXP2_FRAC - P_WIDTH + 1
        bases, slopes = exp2_table()
        # The bases hold the half that rounds the sum.
        half = 1 << (drop - 1)
        rows = [
            {"base": int(base) + half, "slope": int(slope)}
            for base, slope in zip(bases, slopes, strict=True)
        ]
        m.submodules.table = table = memory.Memory(
            shape=Segment, depth=1 << EXP2_SEGMENT_BITS, init=rows
        )
        read = table.read_port(domain="comb")

        segment_s1 = Signal(Segment, reset_less=True)
        low_s1 = Signal(EXP2_LOW_BITS, reset_less=True)
        base_s2 = Signal(EXP2_BASE_WIDTH, reset_less=True)
        rise_s2 = Signal(EXP2_SLOPE_WIDTH + EXP2_LOW_BITS, reset_less=True)
        line_s3 = Signal(EXP2_BASE_WIDTH, reset_less=True)

        m.d.comb += read.addr.eq(self.fraction[EXP2_LOW_BITS:])
        m.d.sync += [
            segment_s1.eq(read.data),
            low_s1.eq(self.fraction[:EXP2_LOW_BITS]),
            base_s2.eq(segment_s1.base),
            rise_s2.eq(segment_s1.slope * low_s1),
            line_s3.eq(base_s2 + rise_s2),
        ]
        m.d.comb += self.mantissa.eq(line_s3[drop:])

        return m
