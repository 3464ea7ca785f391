"""Scores to probabilities: what a token weighs in l and in o."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from moska.golden.formats import (
    M_WIDTH,
    O_EXP_WIDTH,
    P_WIDTH,
    PV_WIDTH,
    SCALE_BITS,
    SCALE_MANTISSA_BITS,
    SCORE_FRAC,
    SCORE_WIDTH,
    block_l_width,
)
from moska.hw.arrays.score import check_power_of_two, index_width
from moska.hw.arrays.value import Probability
from moska.hw.delay import delay_line
from moska.hw.softmax.exp2 import Exp2
from moska.hw.softmax.scale import exponent_of, mantissa_of
from moska.hw.softmax.shift import SHIFT_WIDTH, RoundShift


def referenced_score_layout(rows):
    """Layout of one score with the references of its row and block."""
    return data.StructLayout(
        {
            "valid": 1,
            "slot": index_width(rows),
            "first": 1,
            "score": signed(SCORE_WIDTH),
            "v_scale": SCALE_BITS,
            "ref": signed(M_WIDTH),
            "pv_ref": signed(O_EXP_WIDTH),
        }
    )


def clip_shift(distance):
    """``distance``, which is not negative, limited to what a shifter of 5 bits can do."""
    return Mux(distance[SHIFT_WIDTH:].any(), (1 << SHIFT_WIDTH) - 1, distance[:SHIFT_WIDTH])


class TokenProbability(wiring.Component):
    """``2**(score - ref)``, its running sum in each row, and ``2**score`` times the V scale.

    Golden models: :func:`moska.golden.softmax.probabilities`, whose results ``p.l`` sums, and
    :func:`moska.golden.softmax.scaled_probabilities`. ``first`` starts the sum of a row. Latency
    ``latency`` cycles; one score a cycle, which may be of the same row every cycle.

    Storage: ``rows`` words of 21 bits read without a clock, none for one row. One 16x8 multiplier
    beside that of :class:`Exp2`.

    Parameters
    ----------
    rows : int
        rows that share the lane, a power of two

    Members
    -------
    i : :py:`In(referenced_score_layout(rows))`
        registered by the caller; ``score`` does not lie above ``ref``, nor its scaled exponent
        above ``pv_ref``
    p : :py:`Out(Probability)`

    """

    latency = Exp2.latency + 1 + RoundShift.latency

    def __init__(self, *, rows):
        check_power_of_two("rows", rows)
        self.rows = rows
        super().__init__({"i": In(referenced_score_layout(rows)), "p": Out(Probability)})

    def elaborate(self, platform):
        m = Module()

        i = self.i
        m.submodules.exp2 = exp2 = Exp2()
        m.submodules.p_shift = p_shift = RoundShift(width=P_WIDTH + 1)
        m.submodules.pv_shift = pv_shift = RoundShift(width=PV_WIDTH + 1)

        # Element n of each line is the value of stage n; stage 0 is the input.
        summed = Exp2.latency + RoundShift.latency
        valid = delay_line(m, i.valid, summed, name="valid", reset_less=False)
        first = delay_line(m, i.first, summed, name="first")
        slot = delay_line(m, i.slot, summed, name="slot")
        ref = delay_line(m, i.ref, self.latency, name="ref")
        pv_ref = delay_line(m, i.pv_ref, self.latency, name="pv_ref")
        v_mantissa = delay_line(m, mantissa_of(i.v_scale), Exp2.latency, name="v_mantissa")
        v_exponent = delay_line(m, exponent_of(i.v_scale), 1, name="v_exponent")

        # Distances below the references, while the power of two is looked up.
        above_s1 = Signal(signed(M_WIDTH), reset_less=True)
        below_s2 = Signal(signed(M_WIDTH + 1), reset_less=True)
        exponent_s2 = Signal(signed(O_EXP_WIDTH), reset_less=True)
        p_distance_s3 = Signal(SHIFT_WIDTH, reset_less=True)
        pv_below_s3 = Signal(signed(O_EXP_WIDTH + 1), reset_less=True)
        pv_distance_s4 = Signal(SHIFT_WIDTH, reset_less=True)
        m.d.sync += [
            above_s1.eq((i.score >> SCORE_FRAC) + 1),
            below_s2.eq(ref[1] - above_s1),
            exponent_s2.eq(above_s1 + v_exponent[1]),
            p_distance_s3.eq(clip_shift(below_s2)),
            pv_below_s3.eq(pv_ref[2] - exponent_s2),
            pv_distance_s4.eq(clip_shift(pv_below_s3)),
        ]

        # The product has 7 fraction bits more than pv at distance 0, of which one is the round.
        product_s4 = Signal(P_WIDTH + SCALE_MANTISSA_BITS, reset_less=True)
        m.d.sync += product_s4.eq(exp2.mantissa * v_mantissa[3])
        m.d.comb += [
            exp2.fraction.eq(i.score[:SCORE_FRAC]),
            p_shift.x.eq(exp2.mantissa << 1),
            p_shift.shift.eq(p_distance_s3),
            pv_shift.x.eq(product_s4[SCALE_MANTISSA_BITS - 2 :]),
            pv_shift.shift.eq(pv_distance_s4),
        ]

        # The sum of a row is ready for its next token one cycle later.
        l_s7 = Signal(block_l_width(), reset_less=True)
        before = Signal(block_l_width())
        total = Signal(block_l_width())
        m.d.comb += total.eq(Mux(first[summed], 0, before) + p_shift.o)
        with m.If(valid[summed]):
            m.d.sync += l_s7.eq(total)
        if self.rows == 1:
            m.d.comb += before.eq(l_s7)
        else:
            m.submodules.sums = sums = memory.Memory(
                shape=block_l_width(), depth=self.rows, init=[]
            )
            read = sums.read_port(domain="comb")
            write = sums.write_port()
            m.d.comb += [
                read.addr.eq(slot[summed]),
                before.eq(read.data),
                write.addr.eq(slot[summed]),
                write.data.eq(total),
                write.en.eq(valid[summed]),
            ]

        m.d.comb += [
            self.p.pv.eq(pv_shift.o),
            self.p.l.eq(l_s7),
            self.p.ref.eq(ref[self.latency]),
            self.p.pv_ref.eq(pv_ref[self.latency]),
        ]

        return m
