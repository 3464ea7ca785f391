"""Integer magnitudes to float32 bits: normalise, round, pack.

The components are pipelines without handshake: ``advance`` clocks all their registers, so a parent
that holds it low stalls them. Each takes one input per advance.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moska.golden.formats import FP32_POS_INF

MANTISSA_BITS = 24  # with the hidden one
SIGNIFICAND_BITS = MANTISSA_BITS + 1  # and the rounding bit
FIELD_MAX = 255  # exponent field of infinity
FIELD_BIAS = 127


def significand_layout(exponent_width):
    """``(-1)**negative * significand * 2**(field - 151)``; zero unless bit 24 is set."""
    return data.StructLayout(
        {
            "negative": 1,
            "field": signed(exponent_width),
            "significand": SIGNIFICAND_BITS,
        }
    )


def magnitude_layout(width, exponent_width):
    """``(-1)**negative * magnitude * 2**exponent``."""
    return data.StructLayout(
        {"negative": 1, "exponent": signed(exponent_width), "magnitude": width}
    )


def normaliser_latency(width):
    """Advances a :class:`Normaliser` of ``width`` bits takes: two steps of its shift each."""
    return (ceil_log2(width) + 1) // 2


def encoder_latency(width):
    """Advances an :class:`Fp32Encoder` of ``width`` bits takes."""
    return normaliser_latency(width) + Fp32Packer.latency


class Normaliser(wiring.Component):
    """Index of the leading one, and the number shifted left until its highest bit is set.

    Golden model: :func:`moska.golden.formats.leading_one`. Latency ``latency`` advances: two steps
    of the shift (by half the width, a quarter, ...) between registers.

    Parameters
    ----------
    width : int
        bits of the magnitude, at least 2

    Members
    -------
    advance : :py:`In(1)`
    magnitude : :py:`In(width)`
    top : :py:`Out(range(width))`
        unspecified when the magnitude was 0
    normal : :py:`Out(width)`
        highest bit set; 0 when the magnitude was 0

    """

    def __init__(self, *, width):
        if width < 2:
            raise ValueError(f"width must be at least 2, not {width!r}")
        self.width = width
        super().__init__(
            {
                "advance": In(1),
                "magnitude": In(width),
                "top": Out(range(width)),
                "normal": Out(width),
            }
        )

    @property
    def latency(self):
        """Advances from ``magnitude`` to ``normal``."""
        return normaliser_latency(self.width)

    def elaborate(self, platform):
        m = Module()

        width = self.width
        n_steps = ceil_log2(width)
        x, shift = self.magnitude, 0  # shift: sum of the steps taken so far
        for step in range(n_steps):
            distance = 1 << (n_steps - 1 - step)
            skip = Signal(name=f"skip_{distance}")
            shifted = Signal(width, name=f"shifted_{distance}")
            m.d.comb += [
                skip.eq(x[width - distance :] == 0),
                shifted.eq(Mux(skip, x << distance, x)),
            ]
            x, shift = shifted, Cat(skip, shift) if step else skip
            if step % 2 == 1 or step == n_steps - 1:
                x = Signal(width, name=f"x_s{step // 2 + 1}", reset_less=True)
                total = Signal(step + 1, name=f"shift_s{step // 2 + 1}", reset_less=True)
                with m.If(self.advance):
                    m.d.sync += [x.eq(shifted), total.eq(shift)]
                shift = total

        m.d.comb += [self.normal.eq(x), self.top.eq(width - 1 - shift)]
        return m


class Fp32Packer(wiring.Component):
    """Round a normalised significand to 24 bits and pack it as float32.

    Golden model: the second half of :func:`moska.golden.formats.to_fp32`. Rounds half away from
    zero, overflows to infinity; zero and results below the smallest normal number become +0.
    Latency ``latency`` advances.

    Parameters
    ----------
    exponent_width : int
        bits of the signed exponent field before overflow is looked at, at least 10

    Members
    -------
    advance : :py:`In(1)`
    i : :py:`In(significand_layout(exponent_width))`
    o : :py:`Out(32)`

    """

    latency = 2

    def __init__(self, *, exponent_width):
        if exponent_width < 10:
            raise ValueError(f"exponent_width must be at least 10, not {exponent_width!r}")
        self.exponent_width = exponent_width
        super().__init__(
            {"advance": In(1), "i": In(significand_layout(exponent_width)), "o": Out(32)}
        )

    def elaborate(self, platform):
        m = Module()

        negative_s1 = Signal(reset_less=True)
        zero_s1 = Signal(reset_less=True)
        field_s1 = Signal(signed(self.exponent_width), reset_less=True)
        mantissa_s1 = Signal(MANTISSA_BITS + 1, reset_less=True)
        packed_s2 = Signal(32, reset_less=True)

        # A mantissa that carries is a power of two: its bits below the carry are 0 as they stand.
        carried = Signal()
        field = Signal(signed(self.exponent_width + 1))
        m.d.comb += [
            carried.eq(mantissa_s1[MANTISSA_BITS]),
            field.eq(field_s1 + carried),
            self.o.eq(packed_s2),
        ]
        with m.If(self.advance):
            m.d.sync += [
                negative_s1.eq(self.i.negative),
                zero_s1.eq(~self.i.significand[-1]),
                field_s1.eq(self.i.field),
                mantissa_s1.eq(self.i.significand[1:] + self.i.significand[0]),
            ]
            with m.If(zero_s1 | (field <= 0)):
                m.d.sync += packed_s2.eq(0)
            with m.Elif(field >= FIELD_MAX):
                m.d.sync += packed_s2.eq(Cat(Const(FP32_POS_INF, 31), negative_s1))
            with m.Else():
                m.d.sync += packed_s2.eq(
                    Cat(mantissa_s1[: MANTISSA_BITS - 1], field[:8], negative_s1)
                )
        return m


class Fp32Encoder(wiring.Component):
    """float32 bits of ``(-1)**negative * magnitude * 2**exponent``.

    Golden model: :func:`moska.golden.formats.to_fp32`. Latency ``latency`` advances.

    Parameters
    ----------
    width : int
        bits of the magnitude, at least 2
    exponent_width : int
        bits of the signed exponent, at least 8

    Members
    -------
    advance : :py:`In(1)`
    i : :py:`In(magnitude_layout(width, exponent_width))`
    o : :py:`Out(32)`

    """

    def __init__(self, *, width, exponent_width):
        if width < 2:
            raise ValueError(f"width must be at least 2, not {width!r}")
        if exponent_width < 8:
            raise ValueError(f"exponent_width must be at least 8, not {exponent_width!r}")
        self.width = width
        self.exponent_width = exponent_width
        super().__init__(
            {"advance": In(1), "i": In(magnitude_layout(width, exponent_width)), "o": Out(32)}
        )

    @property
    def latency(self):
        """Advances from ``i`` to ``o``."""
        return encoder_latency(self.width)

    def elaborate(self, platform):
        m = Module()

        m.submodules.normaliser = normaliser = Normaliser(width=self.width)
        m.submodules.packer = packer = Fp32Packer(exponent_width=self.exponent_width + 2)

        m.d.comb += [
            normaliser.advance.eq(self.advance),
            normaliser.magnitude.eq(self.i.magnitude),
            packer.advance.eq(self.advance),
            self.o.eq(packer.o),
        ]

        negative, exponent = self.i.negative, self.i.exponent
        for stage in range(1, normaliser.latency + 1):
            negative_s = Signal(name=f"negative_s{stage}", reset_less=True)
            exponent_s = Signal(
                signed(self.exponent_width), name=f"exponent_s{stage}", reset_less=True
            )
            with m.If(self.advance):
                m.d.sync += [negative_s.eq(negative), exponent_s.eq(exponent)]
            negative, exponent = negative_s, exponent_s

        # The highest bits of the normal number, followed by zeros where it is short.
        kept = min(self.width, SIGNIFICAND_BITS)
        m.d.comb += [
            packer.i.negative.eq(negative),
            packer.i.field.eq(exponent + normaliser.top + FIELD_BIAS),
            packer.i.significand[SIGNIFICAND_BITS - kept :].eq(
                normaliser.normal[self.width - kept :]
            ),
        ]
        return m
