"""Dot products to scores in the log2 domain."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moska.golden.formats import (
    SCALE_BITS,
    SCALE_MANTISSA_BITS,
    SCORE_PRESHIFT,
    SCORE_SHIFT_MAX,
    SCORE_WIDTH,
    dot_width,
)
from moska.hw.delay import delay_line

LOW_BITS = 17  # of the dot product, in the first of two 18x18 multipliers
SHIFT_BITS = SCORE_SHIFT_MAX.bit_length()
FINE_BITS = 4  # of the shift, after the steps of 16
# A number of more bits saturates whatever the fine shift; the last bit of the result is the round.
FINE_WIDTH = SCORE_WIDTH + 1 + (1 << FINE_BITS) - 1


def mantissa_of(scale):
    """Mantissa 128..255 of a bfloat16 scale."""
    return Cat(scale[: SCALE_MANTISSA_BITS - 1], Const(1, 1))


def exponent_of(scale):
    """Biased exponent 0..255 of a bfloat16 scale."""
    return scale[SCALE_MANTISSA_BITS - 1 : SCALE_BITS - 1]


class ScoreScale(wiring.Component):
    """``dot * q_scale * k_scale`` with 12 fraction bits, rounded half up, saturated to 24 bits.

    Golden model: :func:`moska.golden.attention.scores`, after its matrix product. Latency
    ``latency`` cycles, one score a cycle. Multipliers: 8x8, 17x16 and 15x16 bits (at D = 128).

    Parameters
    ----------
    head_dim : int
        D

    Members
    -------
    dot : :py:`In(signed(dot_width(head_dim)))`
    q_scale : :py:`In(16)`
        bfloat16 bits
    k_scale : :py:`In(16)`
        bfloat16 bits
    score : :py:`Out(signed(24))`

    """

    latency = 9

    def __init__(self, *, head_dim):
        if head_dim < 1:
            raise ValueError(f"head_dim must be at least 1, not {head_dim!r}")
        self.head_dim = head_dim
        super().__init__(
            {
                "dot": In(signed(dot_width(head_dim))),
                "q_scale": In(SCALE_BITS),
                "k_scale": In(SCALE_BITS),
                "score": Out(signed(SCORE_WIDTH)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        width = dot_width(self.head_dim)
        product_width = width + 2 * SCALE_MANTISSA_BITS

        dot_s1 = Signal(signed(width), reset_less=True)
        q_mantissa_s1 = Signal(SCALE_MANTISSA_BITS, reset_less=True)
        k_mantissa_s1 = Signal(SCALE_MANTISSA_BITS, reset_less=True)
        exponent_s1 = Signal(9, reset_less=True)
        m.d.sync += [
            dot_s1.eq(self.dot),
            q_mantissa_s1.eq(mantissa_of(self.q_scale)),
            k_mantissa_s1.eq(mantissa_of(self.k_scale)),
            exponent_s1.eq(exponent_of(self.q_scale) + exponent_of(self.k_scale)),
        ]

        low_s2 = Signal(LOW_BITS, reset_less=True)
        high_s2 = Signal(signed(width - LOW_BITS), reset_less=True)
        mantissa_s2 = Signal(2 * SCALE_MANTISSA_BITS, reset_less=True)
        distance = Signal(signed(11))
        shift_s2 = Signal(SHIFT_BITS, reset_less=True)
        m.d.comb += distance.eq(256 + SCORE_PRESHIFT - exponent_s1)
        m.d.sync += [
            low_s2.eq(dot_s1[:LOW_BITS]),
            high_s2.eq(dot_s1 >> LOW_BITS),
            mantissa_s2.eq(q_mantissa_s1 * k_mantissa_s1),
            shift_s2.eq(
                Mux(
                    distance < 0,
                    0,
                    Mux(distance[SHIFT_BITS:].any(), SCORE_SHIFT_MAX, distance[:SHIFT_BITS]),
                )
            ),
        ]
        shift = delay_line(m, shift_s2, 5, name="shift_s2")

        low_product_s3 = Signal(LOW_BITS + 2 * SCALE_MANTISSA_BITS, reset_less=True)
        high_product_s3 = Signal(signed(product_width - LOW_BITS), reset_less=True)
        product_s4 = Signal(signed(product_width), reset_less=True)
        m.d.sync += [
            low_product_s3.eq(low_s2 * mantissa_s2),
            high_product_s3.eq(high_s2 * mantissa_s2),
            product_s4.eq((high_product_s3 << LOW_BITS) + low_product_s3),
        ]

        # One more bit than the score has: the one that rounds.
        doubled = Signal(signed(product_width + SCORE_PRESHIFT + 1))
        coarse_s5 = Signal.like(doubled, name="coarse_s5", reset_less=True)
        m.d.comb += doubled.eq(product_s4 << (SCORE_PRESHIFT + 1))
        with m.Switch(shift[2][FINE_BITS:]):
            for n in range(1 << (SHIFT_BITS - FINE_BITS)):
                with m.Case(n):
                    m.d.sync += coarse_s5.eq(doubled >> (n << FINE_BITS))

        fine = Signal(signed(FINE_WIDTH))
        fine_s6 = Signal(signed(FINE_WIDTH), reset_less=True)
        fine_s7 = Signal(signed(FINE_WIDTH), reset_less=True)
        over_s6 = Signal(reset_less=True)
        over_s7 = Signal(reset_less=True)
        m.d.comb += fine.eq(coarse_s5[:FINE_WIDTH])
        with m.Switch(shift[3][2:FINE_BITS]):
            for n in range(1 << (FINE_BITS - 2)):
                with m.Case(n):
                    m.d.sync += fine_s6.eq(fine >> (4 * n))
        with m.Switch(shift[4][:2]):
            for n in range(4):
                with m.Case(n):
                    m.d.sync += fine_s7.eq(fine_s6 >> n)
        m.d.sync += [
            over_s6.eq(mixed(coarse_s5[FINE_WIDTH - 1 :])),
            over_s7.eq(over_s6),
        ]
        negative = delay_line(m, coarse_s5[-1], 3, name="negative_s5")

        rounded_s8 = Signal(signed(SCORE_WIDTH + 1), reset_less=True)
        over_s8 = Signal(reset_less=True)
        score_s9 = Signal(signed(SCORE_WIDTH), reset_less=True)
        m.d.sync += [
            rounded_s8.eq((fine_s7[: SCORE_WIDTH + 1].as_signed() + 1) >> 1),
            over_s8.eq(over_s7 | mixed(fine_s7[SCORE_WIDTH:])),
        ]
        with m.If(over_s8 | mixed(rounded_s8[SCORE_WIDTH - 1 :])):
            m.d.sync += score_s9.eq(
                Mux(negative[3], -(1 << (SCORE_WIDTH - 1)), (1 << (SCORE_WIDTH - 1)) - 1)
            )
        with m.Else():
            m.d.sync += score_s9.eq(rounded_s8)
        m.d.comb += self.score.eq(score_s9)

        return m


def mixed(bits):
    """Whether ``bits`` has both ones and zeros: as top bits, that the number does not fit."""
    return bits.any() & ~bits.all()
