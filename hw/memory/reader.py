"""Read master: tagged commands in, AXI4 read bursts of several IDs out, beats back."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.memory.axi import (
    CACHE_NORMAL,
    AXI4Read,
    Burst,
    BurstSplitter,
    Response,
    check_data_width,
    check_max_burst,
    default_max_burst,
)
from moska.hw.memory.window import WindowGuard, guarded_burst_layout
from moska.hw.stream import RegisterSlice

BEATS_BITS = 20  # of the beats of a command


def read_command_layout(n_ids, tag_shape):
    """Struct of a read command: a run of bus words, its ID, and what travels to its beats."""
    return data.StructLayout(
        {"addr": 64, "n_beats": BEATS_BITS, "id": range(max(n_ids, 2)), "tag": tag_shape}
    )


def read_beat_layout(data_width, n_ids, tag_shape):
    """Struct of a delivered beat.

    ``beat``: number within its command; ``last``: of its command; ``bad``: RRESP is not OKAY;
    ``addr``: of the beat, with the bits below the bus word as in the command.
    """
    return data.StructLayout(
        {
            "data": data_width,
            "id": range(max(n_ids, 2)),
            "tag": tag_shape,
            "beat": BEATS_BITS,
            "last": 1,
            "bad": 1,
            "addr": 64,
        }
    )


class ReadMaster(wiring.Component):
    """Read runs of bus words; deliver their beats with the tags of their commands.

    A command becomes INCR bursts that end at multiples of ``max_burst`` bytes, hence never cross
    4 KiB. Bursts are requested ahead, one a cycle at most, across commands, until
    ``max_in_flight`` bytes are requested and not yet delivered on ``o``. Latency: ARVALID
    ``latency`` cycles after the command's transfer; ``o`` offers a beat ``beat_latency`` cycles
    after its transfer on R. One beat a cycle; RREADY comes from a register. The rate holds as long
    as memory answers within ``(max_in_flight - max_burst) / bus bytes`` cycles.

    Beats of one ID are delivered in the order of its commands; memory may answer different IDs in
    any order and interleave their beats. RLAST is not used. A beat of an ID without a command
    waits, which a correct memory never causes.

    No burst that is not wholly in the window is put on AR: ``fault`` is set until reset, what was
    requested before is delivered, and the rest stays undone.

    Storage: ``n_ids * max_commands`` x (84 + bits of a tag) bits of memory read without a clock;
    two beats; two bursts.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 8 to 1024
    tag_shape : ShapeLike
        what a command brings for its beats
    n_ids : int
        read IDs, a power of two
    max_in_flight : int
        bytes requested and not yet delivered, at least ``max_burst``
    max_burst : int
        bytes of the longest burst: a power of two, from one beat to 256 beats or 4096 bytes;
        1024 (or 256 beats, if that is less) when not given
    max_commands : int
        commands of one ID that are accepted and not wholly delivered

    Members
    -------
    cmd : :py:`In(stream.Signature(read_command_layout(n_ids, tag_shape)))`
        ``addr`` in bytes, its bits below the bus word taken as 0 for AR; ``n_beats`` at least 1
    o : :py:`Out(stream.Signature(read_beat_layout(data_width, n_ids, tag_shape)))`
    axi : :py:`Out(AXI4Read(data_width, id_width=max(1, exact_log2(n_ids))))`
    window_base, window_limit : :py:`In(64)`
        addresses of the first and the last byte that may be read; constant while ``busy``
    fault : :py:`Out(1)`
    busy : :py:`Out(1)`
        an accepted command has beats to deliver

    """

    latency = 4
    beat_latency = 1

    def __init__(
        self,
        *,
        data_width,
        tag_shape,
        n_ids=4,
        max_in_flight=8192,
        max_burst=None,
        max_commands=16,
    ):
        check_data_width(data_width)
        if n_ids < 1 or n_ids & (n_ids - 1):
            raise ValueError(f"n_ids must be a power of two, not {n_ids!r}")
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
        self.tag_shape = tag_shape
        self.n_ids = n_ids
        self.max_in_flight = max_in_flight
        self.max_burst = max_burst
        self.max_commands = max_commands
        super().__init__(
            {
                "cmd": In(stream.Signature(read_command_layout(n_ids, tag_shape))),
                "o": Out(stream.Signature(read_beat_layout(data_width, n_ids, tag_shape))),
                "axi": Out(AXI4Read(data_width, id_width=max(1, exact_log2(n_ids)))),
                "window_base": In(64),
                "window_limit": In(64),
                "fault": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.splitter = splitter = BurstSplitter(
            data_width=self.data_width, max_burst=self.max_burst
        )
        # Between the address arithmetic and the count of what is in flight.
        m.submodules.bursts = bursts = RegisterSlice(guarded_burst_layout(self.n_ids))
        m.submodules.guard = guard = WindowGuard(
            data_width=self.data_width, max_burst=self.max_burst, n_ids=self.n_ids
        )
        # Commands whose beats are not all delivered, a queue for each ID.
        entry = data.StructLayout({"addr": 64, "last_beat": BEATS_BITS, "tag": self.tag_shape})
        queues = []
        for index in range(self.n_ids):
            queue = SyncFIFO(width=entry.size, depth=self.max_commands)
            m.submodules[f"queue_{index}"] = queue
            queues.append(queue)

        axi = self.axi
        id_bits = exact_log2(self.n_ids)
        word_bits = exact_log2(self.data_width // 8)
        max_beats = self.max_in_flight // (self.data_width // 8)

        def is_id(value, index):
            return value == index if id_bits else Const(1, 1)

        def of_id(values, index):
            return Cat(values).bit_select(index, 1) if id_bits else values[0]

        # A command enters the splitter and the queue of its ID in the same cycle.
        cmd = self.cmd.payload
        queued = Signal(entry)
        room_in_queue = Signal()
        m.d.comb += [
            queued.addr.eq(cmd.addr),
            queued.last_beat.eq(cmd.n_beats - 1),
            queued.tag.eq(cmd.tag),
            room_in_queue.eq(of_id([queue.w_rdy for queue in queues], cmd.id)),
            splitter.i.p.addr.eq(cmd.addr),
            splitter.i.p.n_beats.eq(cmd.n_beats),
            splitter.i.valid.eq(self.cmd.valid & room_in_queue),
            self.cmd.ready.eq(splitter.i.ready & room_in_queue),
        ]
        some = Signal()  # a command without beats is dropped
        m.d.comb += some.eq(cmd.n_beats != 0)
        for index, queue in enumerate(queues):
            accept = self.cmd.valid & splitter.i.ready & some & is_id(cmd.id, index)
            m.d.comb += [queue.w_data.eq(queued), queue.w_en.eq(accept)]
        split_id = Signal(cmd.id.shape(), reset_less=True)  # of the command in the splitter
        with m.If(splitter.i.ready):
            m.d.sync += split_id.eq(cmd.id)

        # Requests. A burst takes its room when it enters the guard.
        delivered = Signal()
        requested = Signal()
        enough = Signal()
        room = Signal(range(max_beats + 1), init=max_beats)
        m.d.comb += [
            bursts.i.valid.eq(splitter.o.valid),
            bursts.i.p.addr.eq(splitter.o.p.addr),
            bursts.i.p.length.eq(splitter.o.p.n_beats - 1),
            bursts.i.p.id.eq(split_id),
            splitter.o.ready.eq(bursts.i.ready),
            enough.eq(bursts.o.p.length < room),
            guard.i.valid.eq(bursts.o.valid & enough),
            guard.i.payload.eq(bursts.o.payload),
            bursts.o.ready.eq(guard.i.ready & enough),
            requested.eq(guard.i.valid & guard.i.ready),
            guard.window_base.eq(self.window_base),
            guard.window_limit.eq(self.window_limit),
            self.fault.eq(guard.fault),
        ]
        taken = Signal(range(max_beats + 1))
        m.d.comb += taken.eq(Mux(requested, bursts.o.p.length + 1, 0))
        m.d.sync += room.eq(room + delivered - taken)

        # Constants are driven too: an undriven signal would become an input of the top.
        m.d.comb += [
            axi.arprot.eq(0),
            axi.arsize.eq(word_bits),
            axi.arburst.eq(Burst.INCR),
            axi.arcache.eq(CACHE_NORMAL),
            guard.o.ready.eq(~axi.arvalid | axi.arready),
        ]
        with m.If(guard.o.ready):
            m.d.sync += [
                axi.arvalid.eq(guard.o.valid),
                axi.araddr.eq(guard.o.p.addr),
                axi.arlen.eq(guard.o.p.length),
                axi.arid.eq(guard.o.p.id),
            ]

        # Beats that have arrived.
        arrival = data.StructLayout({"data": self.data_width, "id": axi.arid.shape(), "bad": 1})
        m.submodules.beats = beats = RegisterSlice(arrival)
        head = beats.o.p
        m.d.comb += [
            beats.i.valid.eq(axi.rvalid),
            beats.i.p.data.eq(axi.rdata),
            beats.i.p.id.eq(axi.rid),
            beats.i.p.bad.eq(axi.rresp != Response.OKAY),
            axi.rready.eq(beats.i.ready),
            beats.o.ready.eq(delivered),
        ]

        # Delivery: the oldest command of the beat's ID says what the beat is.
        command = Signal(entry)
        numbers = [Signal(BEATS_BITS, name=f"number_{index}") for index in range(self.n_ids)]
        number = Signal(BEATS_BITS)  # of the next beat of the ID
        word = Signal(64 - word_bits)
        last = Signal()
        m.d.comb += [
            word.eq(command.addr[word_bits:] + number),
            last.eq(number == command.last_beat),
            self.o.valid.eq(beats.o.valid & of_id([queue.r_rdy for queue in queues], head.id)),
            self.o.p.data.eq(head.data),
            self.o.p.id.eq(head.id),
            self.o.p.tag.eq(command.tag),
            self.o.p.beat.eq(number),
            self.o.p.last.eq(last),
            self.o.p.bad.eq(head.bad),
            self.o.p.addr.eq(Cat(command.addr[:word_bits], word)),
            delivered.eq(self.o.valid & self.o.ready),
            self.busy.eq(Cat(queue.r_rdy for queue in queues).any()),
        ]
        for index, queue in enumerate(queues):
            with m.If(is_id(head.id, index)):
                m.d.comb += [command.eq(queue.r_data), number.eq(numbers[index])]
            of_queue = delivered & is_id(head.id, index)
            m.d.comb += queue.r_en.eq(of_queue & last)
            with m.If(of_queue):
                m.d.sync += numbers[index].eq(Mux(last, 0, number + 1))

        return m
