"""Stream helpers: packing narrow payloads into bus words."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out


class Packer(wiring.Component):
    """Pack ``ratio`` payloads of ``width`` bits into one word, first payload lowest.

    A payload with ``last`` completes a word early; the rest of the word is zero. Latency 1 cycle,
    one payload a cycle.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout({"data": width, "last": 1})))`
    o : :py:`Out(stream.Signature(width * ratio))`

    """

    def __init__(self, *, width, ratio):
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, not {ratio}")
        self.width = width
        self.ratio = ratio
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": width, "last": 1}))),
                "o": Out(stream.Signature(width * ratio)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        count = Signal(range(max(self.ratio, 2)))
        kept = Signal(self.width * self.ratio)
        word = Signal(self.width * self.ratio)
        complete = Signal()
        taken = Signal()
        parts = [
            Mux(count == index, self.i.payload.data, kept.word_select(index, self.width))
            for index in range(self.ratio)
        ]
        m.d.comb += [
            word.eq(Cat(*parts)),
            complete.eq((count == self.ratio - 1) | self.i.payload.last),
            self.i.ready.eq(~self.o.valid | self.o.ready),
            taken.eq(self.i.valid & self.i.ready),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [kept.eq(word), count.eq(count + 1)]
            with m.If(complete):
                m.d.sync += [self.o.payload.eq(word), self.o.valid.eq(1), kept.eq(0), count.eq(0)]

        return m
