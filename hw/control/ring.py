"""Ring: which descriptors are announced, fetched and completed."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Ring(wiring.Component):
    """Count the jobs of the ring; accept doorbells.

    Counts are modulo 2**16, ``sequence`` modulo 2**32. A doorbell is good when ``tail`` is at most
    ``2**ring_size`` ahead of ``completed`` and not behind a good one before. A bad one, and
    ``refused``, stop fetching until a good one, even if its ``tail`` is that of the last one.
    Doorbells have no effect while ``enable`` is 0.

    While ``enable`` is 0, and all descriptors fetched are completed jobs, all counts restart at 0.

    Members
    -------
    enable : :py:`In(1)`
    ring_size : :py:`In(4)`
        log2 of the entries
    tail : :py:`In(16)`, tail_written : :py:`In(1)`
        doorbell
    idle : :py:`In(1)`
        no descriptor is being fetched and no job is under way
    fetched, completed_pulse, refused : :py:`In(1)`
        pulses: a descriptor is read; a completion is written; the ring must not be read
    wanted : :py:`Out(1)`
        a descriptor is to be fetched
    index : :py:`Out(15)`
        its entry in the ring
    sequence : :py:`Out(32)`
        descriptors fetched: sequence number of the last one's job
    head, completed : :py:`Out(16)`
    drained : :py:`Out(1)`
        all descriptors fetched are completed jobs
    good, bad : :py:`Out(1)`
        with ``tail_written``: the doorbell is good; it is an error

    """

    enable: In(1)
    ring_size: In(4)
    tail: In(16)
    tail_written: In(1)
    idle: In(1)
    fetched: In(1)
    completed_pulse: In(1)
    refused: In(1)
    wanted: Out(1)
    index: Out(15)
    sequence: Out(32)
    head: Out(16)
    completed: Out(16)
    drained: Out(1)
    good: Out(1)
    bad: Out(1)

    def elaborate(self, platform):
        m = Module()

        announced = Signal(16)
        stopped = Signal()
        ahead, before = Signal(16), Signal(16)  # of completed: this doorbell, the last good one
        entries = Signal(16)
        mask = Signal(15)
        legal = Signal()
        m.d.comb += [
            self.head.eq(self.sequence),
            self.drained.eq(self.head == self.completed),
            entries.eq(1 << self.ring_size),
            mask.eq(entries - 1),
            self.index.eq(self.head & mask),
            ahead.eq(self.tail - self.completed),
            before.eq(announced - self.completed),
            legal.eq((ahead <= entries) & (ahead >= before)),
            self.good.eq(self.tail_written & self.enable & legal),
            self.bad.eq(self.tail_written & self.enable & ~legal),
            self.wanted.eq(self.enable & ~stopped & (announced != self.head)),
        ]

        with m.If(self.refused | self.bad):
            m.d.sync += stopped.eq(1)
        with m.Elif(self.good):
            m.d.sync += stopped.eq(0)
        with m.If(self.good):
            m.d.sync += announced.eq(self.tail)
        with m.If(self.fetched):
            m.d.sync += self.sequence.eq(self.sequence + 1)
        with m.If(self.completed_pulse):
            m.d.sync += self.completed.eq(self.completed + 1)
        with m.If(~self.enable & self.idle & self.drained):
            m.d.sync += [
                announced.eq(0), stopped.eq(0), self.sequence.eq(0), self.completed.eq(0)
            ]  # fmt: skip

        return m
