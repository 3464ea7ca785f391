"""Stream helpers: packing narrow payloads into bus words, and a register slice."""

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


class RegisterSlice(wiring.Component):
    """Cut a stream's paths in both directions: outputs, ``i.ready`` too, come from registers.

    Latency 1 cycle, one payload a cycle. Holds two payloads: ``spare`` takes the one that comes
    when ``o`` has to stay.

    Parameters
    ----------
    shape : ShapeLike
        of the payload

    Members
    -------
    i : :py:`In(stream.Signature(shape))`
    o : :py:`Out(stream.Signature(shape))`

    """

    latency = 1

    def __init__(self, shape):
        super().__init__(
            {"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))}
        )

    def elaborate(self, platform):
        m = Module()

        shape = self.i.payload.shape()
        head = Signal(shape, reset_less=True)
        spare = Signal(shape, reset_less=True)
        spare_valid = Signal()
        m.d.comb += [self.i.ready.eq(~spare_valid), self.o.payload.eq(head)]
        with m.If(~spare_valid):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                head.eq(Mux(spare_valid, spare, self.i.payload)),
                self.o.valid.eq(spare_valid | self.i.valid),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid):
            m.d.sync += spare_valid.eq(1)

        return m
