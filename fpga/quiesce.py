"""Reset of the unit while it has bursts under way, without harm to the memory controller."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out, flipped

from moska.gen import emit
from moska.hw.memory.axi import AXI4Read, AXI4Write, export

NAME = "quiesce"  # of the Verilog module
RESET_CYCLES = 8  # that the unit is held in reset when nothing is under way any more


class Quiesce(wiring.Component):
    """A gate between the unit and its memory that closes before the unit is reset.

    After ``request``, bursts that the memory has been offered go on and no others begin. Once all
    that is on offer has been taken, the unit is reset, and what is still under way ends without it:
    read data and write responses are dropped, missing write data is made up with no byte enabled.
    Then the gate opens again. A request while one is under way changes nothing.

    Nothing waits for the unit, so one that hangs is reset too. While the gate is open, all channels
    pass in the same cycle, but write data only follows its address: from the cycle after it.

    Parameters
    ----------
    data_width : int
        bits of a beat
    id_width : int
        bits of a read ID
    max_bursts : int
        reads under way at once, and writes; a power of two. Further ones wait
    max_addresses : int
        write addresses that may be ahead of their data

    Members
    -------
    request : :py:`In(1)`
    busy : :py:`Out(1)`
        high from the cycle after the request to the end of the unit's reset
    reset : :py:`Out(1)`
        resets the unit
    i_read, i_write : :py:`In(AXI4Read(...))`, :py:`In(AXI4Write(...))`
        from the unit
    o_read, o_write : :py:`Out(AXI4Read(...))`, :py:`Out(AXI4Write(...))`
        to the memory

    """

    def __init__(self, *, data_width, id_width, max_bursts=1024, max_addresses=4):
        if max_bursts < 2 or max_bursts & (max_bursts - 1):
            raise ValueError(f"max_bursts must be a power of two from 2, not {max_bursts!r}")
        if max_addresses < 1:
            raise ValueError(f"max_addresses must be at least 1, not {max_addresses!r}")
        self.max_bursts = max_bursts
        self.max_addresses = max_addresses
        read, write = AXI4Read(data_width, id_width=id_width), AXI4Write(data_width)
        super().__init__(
            {
                "request": In(1),
                "busy": Out(1),
                "reset": Out(1),
                "i_read": In(read),
                "i_write": In(write),
                "o_read": Out(read),
                "o_write": Out(write),
            }
        )

    def ports(self):
        """Ports by their names in Verilog."""
        return {
            **{name: (getattr(self, name), None) for name in ("request", "busy", "reset")},
            **export("s_axi", self.i_read),
            **export("s_axi", self.i_write),
            **export("m_axi", self.o_read),
            **export("m_axi", self.o_write),
        }

    def elaborate(self, platform):
        m = Module()
        i_read, i_write = self.i_read, self.i_write
        o_read, o_write = self.o_read, self.o_write

        wiring.connect(m, flipped(i_read), flipped(o_read))
        wiring.connect(m, flipped(i_write), flipped(o_write))

        # Beats less 1 of the bursts whose data has not all been taken, oldest first.
        m.submodules.lengths = lengths = SyncFIFO(width=8, depth=self.max_addresses)
        beat = Signal(8)  # of the oldest one
        reads, writes = Signal(range(self.max_bursts)), Signal(range(self.max_bursts))
        left = Signal(range(RESET_CYCLES))

        # On offer in the cycle before and not taken: must stay on offer.
        ar_held, aw_held, w_held = Signal(), Signal(), Signal()
        open_, made_up = Signal(), Signal()
        ar_pass, aw_pass, w_pass = Signal(), Signal(), Signal()
        full = self.max_bursts - 1
        m.d.comb += [
            ar_pass.eq((open_ & (reads != full)) | ar_held),
            aw_pass.eq((open_ & (writes != full) & lengths.w_rdy) | aw_held),
            w_pass.eq((open_ & lengths.r_rdy) | w_held),
            o_read.arvalid.eq(i_read.arvalid & ar_pass),
            i_read.arready.eq(o_read.arready & ar_pass),
            o_write.awvalid.eq(i_write.awvalid & aw_pass),
            i_write.awready.eq(o_write.awready & aw_pass),
            o_write.wvalid.eq(Mux(made_up, lengths.r_rdy, i_write.wvalid & w_pass)),
            i_write.wready.eq(o_write.wready & w_pass),
            o_write.wlast.eq(beat == lengths.r_data),
            i_read.rvalid.eq(o_read.rvalid & open_),
            o_read.rready.eq(i_read.rready | ~open_),
            i_write.bvalid.eq(o_write.bvalid & open_),
            o_write.bready.eq(i_write.bready | ~open_),
        ]
        with m.If(made_up):
            m.d.comb += [o_write.wdata.eq(0), o_write.wstrb.eq(0)]
        m.d.sync += [
            ar_held.eq(o_read.arvalid & ~o_read.arready),
            aw_held.eq(o_write.awvalid & ~o_write.awready),
            w_held.eq(o_write.wvalid & ~o_write.wready & ~made_up),
        ]

        ar_taken, aw_taken, w_taken = Signal(), Signal(), Signal()
        m.d.comb += [
            ar_taken.eq(o_read.arvalid & o_read.arready),
            aw_taken.eq(o_write.awvalid & o_write.awready),
            w_taken.eq(o_write.wvalid & o_write.wready),
            lengths.w_data.eq(o_write.awlen),
            lengths.w_en.eq(aw_taken),
            lengths.r_en.eq(w_taken & o_write.wlast),
        ]
        r_ends = o_read.rvalid & o_read.rready & o_read.rlast
        b_ends = o_write.bvalid & o_write.bready
        m.d.sync += [reads.eq(reads + ar_taken - r_ends), writes.eq(writes + aw_taken - b_ends)]
        with m.If(w_taken):
            m.d.sync += beat.eq(Mux(o_write.wlast, 0, beat + 1))

        m.d.comb += self.busy.eq(~open_)
        with m.FSM(name="gate"):
            with m.State("OPEN"):
                m.d.comb += open_.eq(1)
                with m.If(self.request):
                    m.next = "CLOSE"
            with m.State("CLOSE"):
                with m.If(~(ar_held | aw_held | w_held)):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += [made_up.eq(1), self.reset.eq(1)]
                m.d.sync += left.eq(RESET_CYCLES - 1)
                with m.If((reads == 0) & (writes == 0)):
                    m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += self.reset.eq(1)
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    m.next = "OPEN"

        return m


def verilog(**options) -> str:
    """Verilog of the module ``quiesce``, with ports ``clk`` and ``rst``; options as of Quiesce."""
    quiesce = Quiesce(**options)
    return emit.convert(quiesce, quiesce.ports(), name=NAME)
