"""Window guard: the last register before AR or AW, which no burst outside the window leaves."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.memory.axi import check_data_width, check_max_burst


def guarded_burst_layout(n_ids):
    """Struct of one INCR burst: byte address, beats minus 1 as on AxLEN, ID."""
    return data.StructLayout({"addr": 64, "length": 8, "id": range(max(n_ids, 2))})


class WindowGuard(wiring.Component):
    """Pass bursts that lie wholly in a window; stop for good at the first one that does not.

    One register: latency 1 cycle, one burst a cycle. Once a burst is not wholly inside
    ``window_base`` to ``window_limit``, both included, ``fault`` is set and ``o`` offers nothing
    any more, until reset. The window must not change while a burst is inside.

    Parameters
    ----------
    data_width : int
        bits of a beat
    max_burst : int
        bytes; no burst crosses a multiple of it
    n_ids : int
        a power of two

    Members
    -------
    i : :py:`In(stream.Signature(guarded_burst_layout(n_ids)))`
        ``addr`` aligned to the bus
    o : :py:`Out(stream.Signature(guarded_burst_layout(n_ids)))`
    window_base, window_limit : :py:`In(64)`
        addresses of the first and the last byte
    fault : :py:`Out(1)`
    busy : :py:`Out(1)`
        a burst is inside, or the guard has stopped

    """

    def __init__(self, *, data_width, max_burst, n_ids=1):
        check_data_width(data_width)
        check_max_burst(data_width, max_burst)
        self.data_width = data_width
        self.max_burst = max_burst
        self.n_ids = n_ids
        super().__init__(
            {
                "i": In(stream.Signature(guarded_burst_layout(n_ids))),
                "o": Out(stream.Signature(guarded_burst_layout(n_ids))),
                "window_base": In(64),
                "window_limit": In(64),
                "fault": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        word_bits = exact_log2(self.data_width // 8)
        burst_bits = exact_log2(self.max_burst)

        valid = Signal()
        burst = Signal(guarded_burst_layout(self.n_ids), reset_less=True)

        # No carry leaves the low part: the burst ends in the block of max_burst bytes it starts in.
        last_low = Signal(burst_bits - word_bits)
        last_byte = Signal(64)
        inside = Signal()
        m.d.comb += [
            last_low.eq(burst.addr[word_bits:burst_bits] + burst.length),
            last_byte.eq(Cat(~Const(0, word_bits), last_low, burst.addr[burst_bits:])),
            inside.eq((burst.addr >= self.window_base) & (last_byte <= self.window_limit)),
        ]

        # A burst outside leaves as well, to nowhere, which keeps the comparison out of `ready`.
        m.d.comb += [
            self.i.ready.eq((~valid | self.o.ready) & ~self.fault),
            self.o.valid.eq(valid & inside & ~self.fault),
            self.o.payload.eq(burst),
            self.busy.eq(valid | self.fault),
        ]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), burst.eq(self.i.payload)]
        with m.If(valid & ~inside):
            m.d.sync += self.fault.eq(1)

        return m
