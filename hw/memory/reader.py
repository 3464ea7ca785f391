"""Read master: commands in, AXI4 read bursts out, beats back in order."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.memory.axi import (
    CACHE_NORMAL,
    AXI4Read,
    Burst,
    BurstSplitter,
    Command,
    Response,
    check_data_width,
    check_max_burst,
    default_max_burst,
)

ReadCommand = Command


class ReadMaster(wiring.Component):
    """Read runs of bus words; deliver their beats in command order.

    A command becomes INCR bursts with one ID that end at multiples of ``max_burst`` bytes, hence
    never cross 4 KiB. Bursts are requested ahead, one a cycle at most, across commands, until
    ``max_in_flight`` bytes are requested and not yet delivered on ``o``. Latency: ARVALID
    ``latency`` cycles after the command's transfer. R passes to ``o`` without a register, one beat
    a cycle; RREADY is ``o.ready`` while a command is open. The rate holds as long as memory
    answers within ``(max_in_flight - max_burst) / bus bytes`` cycles.

    A beat whose RRESP is not OKAY sets ``error`` and, when it is the first since ``clear``, stores
    its address; the data passes all the same, so that the receiver drains. A bad beat in the
    cycle of ``clear`` wins: ``error`` is set, with the address of that beat. RLAST and RID are not
    used: with one ID, AXI4 returns the beats in order.

    Storage: ``max_commands`` x 84 bits of memory read without a clock.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 8 to 1024
    max_in_flight : int
        bytes requested and not yet delivered, at least ``max_burst``
    max_burst : int
        bytes of the longest burst: a power of two, from one beat to 256 beats or 4096 bytes;
        1024 (or 256 beats, if that is less) when not given
    max_commands : int
        accepted commands that wait behind the one being delivered

    Members
    -------
    cmd : :py:`In(stream.Signature(ReadCommand))`
        ``addr`` in bytes, its bits below the bus word taken as 0; ``n_beats`` at least 1
    o : :py:`Out(stream.Signature(StructLayout({"data": data_width, "last": 1})))`
        ``last`` marks the last beat of a command
    axi : :py:`Out(AXI4Read(data_width))`
    clear : :py:`In(1)`
    error : :py:`Out(1)`
    error_addr : :py:`Out(64)`
    busy : :py:`Out(1)`
        an accepted command has beats to deliver

    """

    latency = 2

    def __init__(self, *, data_width, max_in_flight=8192, max_burst=None, max_commands=16):
        check_data_width(data_width)
        if max_burst is None:
            max_burst = default_max_burst(data_width)
        check_max_burst(data_width, max_burst)
        if max_in_flight < max_burst:
            raise ValueError(
                f"max_in_flight must be at least max_burst ({max_burst}), not {max_in_flight!r}"
            )
        if max_commands < 1:
            raise ValueError(f"max_commands must be at least 1, not {max_commands!r}")
        self.data_width = data_width
        self.max_in_flight = max_in_flight
        self.max_burst = max_burst
        self.max_commands = max_commands
        super().__init__(
            {
                "cmd": In(stream.Signature(ReadCommand)),
                "o": Out(stream.Signature(data.StructLayout({"data": data_width, "last": 1}))),
                "axi": Out(AXI4Read(data_width)),
                "clear": In(1),
                "error": Out(1),
                "error_addr": Out(64),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.splitter = splitter = BurstSplitter(
            data_width=self.data_width, max_burst=self.max_burst
        )
        # Commands whose beats have not started to arrive, for `last` and the address of a beat.
        m.submodules.waiting = waiting = SyncFIFO(
            width=Command.as_shape().size, depth=self.max_commands
        )

        axi = self.axi
        word_bits = exact_log2(self.data_width // 8)
        max_beats = self.max_in_flight // (self.data_width // 8)

        # A command enters the splitter and the queue in the same cycle.
        m.d.comb += [
            splitter.i.payload.eq(self.cmd.payload),
            splitter.i.valid.eq(self.cmd.valid & waiting.w_rdy),
            waiting.w_data.eq(self.cmd.payload),
            waiting.w_en.eq(self.cmd.valid & splitter.i.ready),
            self.cmd.ready.eq(splitter.i.ready & waiting.w_rdy),
        ]

        # Requests.
        delivered = Signal()
        room = Signal(range(max_beats + 1), init=max_beats)
        burst = splitter.o.p
        requested = Signal()
        # Constants are driven too: an undriven signal would become an input of the top.
        m.d.comb += [
            axi.arid.eq(0),
            axi.arprot.eq(0),
            axi.arsize.eq(word_bits),
            axi.arburst.eq(Burst.INCR),
            axi.arcache.eq(CACHE_NORMAL),
            splitter.o.ready.eq((~axi.arvalid | axi.arready) & (burst.n_beats <= room)),
            requested.eq(splitter.o.valid & splitter.o.ready),
        ]
        with m.If(requested):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(burst.addr),
                axi.arlen.eq(burst.n_beats - 1),
                room.eq(room - burst.n_beats + delivered),
            ]
        with m.Else():
            m.d.sync += room.eq(room + delivered)
            with m.If(axi.arready):
                m.d.sync += axi.arvalid.eq(0)

        # Delivery. A command is loaded here before its first beat can arrive: the load takes 1
        # cycle from the command's transfer, ARVALID 2.
        head = data.View(Command, waiting.r_data)
        open_command = Signal()
        word = Signal(64 - word_bits, reset_less=True)
        left = Signal(20, reset_less=True)
        last = Signal()
        m.d.comb += [
            last.eq(left == 1),
            self.o.valid.eq(axi.rvalid & open_command),
            self.o.p.data.eq(axi.rdata),
            self.o.p.last.eq(last),
            axi.rready.eq(self.o.ready & open_command),
            delivered.eq(axi.rvalid & axi.rready),
            waiting.r_en.eq(~open_command | (delivered & last)),
            self.busy.eq(open_command | waiting.r_rdy),
        ]
        with m.If(waiting.r_en):
            m.d.sync += [
                open_command.eq(waiting.r_rdy),
                word.eq(head.addr[word_bits:]),
                left.eq(head.n_beats),
            ]
        with m.Elif(delivered):
            m.d.sync += [word.eq(word + 1), left.eq(left - 1)]

        # Errors.
        bad = Signal()
        m.d.comb += bad.eq(delivered & (axi.rresp != Response.OKAY))
        with m.If(bad & (~self.error | self.clear)):
            m.d.sync += [
                self.error.eq(1),
                self.error_addr.eq(Cat(Const(0, word_bits), word)),
            ]
        with m.Elif(self.clear):
            m.d.sync += self.error.eq(0)

        return m
