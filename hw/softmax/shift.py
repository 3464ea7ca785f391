"""Rounding right shift of unsigned numbers."""

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

SHIFT_WIDTH = 5


class RoundShift(wiring.Component):
    """``floor(x / 2**(shift + 1) + 1/2)``: drop ``shift`` bits and one more, round half up.

    A number that is to be rounded with a shift of 0 comes doubled. Latency ``latency`` cycles, one
    result a cycle.

    Parameters
    ----------
    width : int
        bits of ``x``, which must stay below ``2**width - 1`` so that the result fits

    Members
    -------
    x : :py:`In(width)`
    shift : :py:`In(5)`
    o : :py:`Out(width - 1)`

    """

    latency = 3

    def __init__(self, *, width):
        if not 2 <= width <= 1 << SHIFT_WIDTH:
            raise ValueError(f"width must be in 2..{1 << SHIFT_WIDTH}, not {width!r}")
        self.width = width
        super().__init__({"x": In(width), "shift": In(SHIFT_WIDTH), "o": Out(width - 1)})

    def elaborate(self, platform):
        m = Module()

        coarse = Signal(self.width, reset_less=True)
        rest = Signal(2, reset_less=True)
        fine = Signal(self.width, reset_less=True)
        rounded = Signal(unsigned(self.width - 1), reset_less=True)

        with m.Switch(self.shift[2:]):
            for n in range(1 << (SHIFT_WIDTH - 2)):
                with m.Case(n):
                    m.d.sync += coarse.eq(self.x >> (4 * n))
        m.d.sync += rest.eq(self.shift[:2])

        with m.Switch(rest):
            for n in range(4):
                with m.Case(n):
                    m.d.sync += fine.eq(coarse >> n)

        m.d.sync += rounded.eq(fine[1:] + fine[0])
        m.d.comb += self.o.eq(rounded)

        return m
