"""Write master: commands and beats in, AXI4 write bursts out, responses checked."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.memory.axi import (
    CACHE_NORMAL,
    AXI4Write,
    Burst,
    BurstSplitter,
    Command,
    Response,
    check_data_width,
    check_max_burst,
    default_max_burst,
)
from moska.hw.memory.window import WindowGuard

WriteCommand = Command


class WriteMaster(wiring.Component):
    """Write runs of bus words; beats are taken from ``i`` in command order.

    A command becomes INCR bursts with one ID that end at multiples of ``max_burst`` bytes, hence
    never cross 4 KiB; up to ``max_bursts`` bursts wait for their response. Latency: AWVALID
    ``latency`` cycles after the command's transfer. ``i`` passes to W without a register, one beat
    a cycle, from the cycle after its burst's AWVALID rises; neither channel waits for the other's
    ready. A beat offered on ``i`` without a command waits.

    A response that is not OKAY sets ``error`` and, when it is the first since ``clear``, stores
    the address of its burst. A bad response in the cycle of ``clear`` wins: ``error`` is set, with
    the address of that burst. BID is not used: with one ID, AXI4 returns responses in order.

    No burst that is not wholly in the window is put on AW: ``fault`` is set until reset, bursts
    before it are completed, and the rest stays undone, with ``busy`` at 1.

    Storage: ``max_bursts`` x (72 - log2(bus bytes)) bits of memory read without a clock.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 8 to 1024
    max_burst : int
        bytes of the longest burst: a power of two, from one beat to 256 beats or 4096 bytes;
        1024 (or 256 beats, if that is less) when not given
    max_bursts : int
        bursts without a response, at least 4

    Members
    -------
    cmd : :py:`In(stream.Signature(WriteCommand))`
        ``addr`` in bytes, its bits below the bus word taken as 0; ``n_beats`` at least 1
    i : :py:`In(stream.Signature(StructLayout({"data": data_width, "strb": data_width // 8})))`
        bit n of ``strb`` says that byte n is written
    axi : :py:`Out(AXI4Write(data_width))`
    clear : :py:`In(1)`
    error : :py:`Out(1)`
    error_addr : :py:`Out(64)`
    window_base, window_limit : :py:`In(64)`
        addresses of the first and the last byte that may be written; constant while ``busy``
    fault : :py:`Out(1)`
    busy : :py:`Out(1)`
        an accepted command has a burst, beat or response outstanding

    """

    latency = 3

    def __init__(self, *, data_width, max_burst=None, max_bursts=8):
        check_data_width(data_width)
        if max_burst is None:
            max_burst = default_max_burst(data_width)
        check_max_burst(data_width, max_burst)
        if max_bursts < 4:
            raise ValueError(f"max_bursts must be at least 4, not {max_bursts!r}")
        self.data_width = data_width
        self.max_burst = max_burst
        self.max_bursts = max_bursts
        beat = data.StructLayout({"data": data_width, "strb": data_width // 8})
        super().__init__(
            {
                "cmd": In(stream.Signature(WriteCommand)),
                "i": In(stream.Signature(beat)),
                "axi": Out(AXI4Write(data_width)),
                "clear": In(1),
                "error": Out(1),
                "error_addr": Out(64),
                "window_base": In(64),
                "window_limit": In(64),
                "fault": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        axi = self.axi
        word_bits = exact_log2(self.data_width // 8)

        m.submodules.splitter = splitter = BurstSplitter(
            data_width=self.data_width, max_burst=self.max_burst
        )
        m.submodules.guard = guard = WindowGuard(
            data_width=self.data_width, max_burst=self.max_burst
        )
        # Beats, less 1, of the bursts whose W has not started; words of those whose response is to
        # come.
        m.submodules.lengths = lengths = SyncFIFO(width=8, depth=self.max_bursts)
        m.submodules.words = words = SyncFIFO(width=64 - word_bits, depth=self.max_bursts)

        wiring.connect(m, cmd=wiring.flipped(self.cmd), splitter=splitter.i)

        # Requests. `lengths` never holds more bursts than `words`, so room in one is enough.
        burst = guard.o.p
        requested = Signal()
        # Constants are driven too: an undriven signal would become an input of the top.
        m.d.comb += [
            guard.i.valid.eq(splitter.o.valid),
            guard.i.p.addr.eq(splitter.o.p.addr),
            guard.i.p.length.eq(splitter.o.p.n_beats - 1),
            splitter.o.ready.eq(guard.i.ready),
            guard.window_base.eq(self.window_base),
            guard.window_limit.eq(self.window_limit),
            self.fault.eq(guard.fault),
            axi.awid.eq(0),
            axi.awprot.eq(0),
            axi.awsize.eq(word_bits),
            axi.awburst.eq(Burst.INCR),
            axi.awcache.eq(CACHE_NORMAL),
            guard.o.ready.eq((~axi.awvalid | axi.awready) & words.w_rdy),
            requested.eq(guard.o.valid & guard.o.ready),
            lengths.w_data.eq(burst.length),
            lengths.w_en.eq(requested),
            words.w_data.eq(burst.addr[word_bits:]),
            words.w_en.eq(requested),
        ]
        with m.If(requested):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(burst.addr),
                axi.awlen.eq(burst.length),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)

        # Data.
        open_burst = Signal()
        left = Signal(8, reset_less=True)  # beats after this one
        sent = Signal()
        m.d.comb += [
            axi.wvalid.eq(self.i.valid & open_burst),
            axi.wdata.eq(self.i.p.data),
            axi.wstrb.eq(self.i.p.strb),
            axi.wlast.eq(left == 0),
            self.i.ready.eq(axi.wready & open_burst),
            sent.eq(axi.wvalid & axi.wready),
            lengths.r_en.eq(~open_burst | (sent & axi.wlast)),
        ]
        with m.If(lengths.r_en):
            m.d.sync += [open_burst.eq(lengths.r_rdy), left.eq(lengths.r_data)]
        with m.Elif(sent):
            m.d.sync += left.eq(left - 1)

        # Responses and errors.
        answered = Signal()
        bad = Signal()
        m.d.comb += [
            axi.bready.eq(words.r_rdy),
            answered.eq(axi.bvalid & axi.bready),
            words.r_en.eq(answered),
            self.busy.eq(splitter.o.valid | guard.busy | words.r_rdy),
            bad.eq(answered & (axi.bresp != Response.OKAY)),
        ]
        with m.If(bad & (~self.error | self.clear)):
            m.d.sync += [
                self.error.eq(1),
                self.error_addr.eq(Cat(Const(0, word_bits), words.r_data)),
            ]
        with m.Elif(self.clear):
            m.d.sync += self.error.eq(0)

        return m
