"""Fetch: decides what is read from memory, in which order, and where it goes."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import ALIGN, MAX_TOKENS, SCALE_BITS
from moska.golden.layout import CHECKSUM_BYTES, Selection
from moska.hw.control.descriptor import descriptor_layout
from moska.hw.control.gather import slot_layout, slot_number_layout
from moska.hw.control.load import Channel, Target, tag_layout
from moska.hw.control.scan import ChunkScan
from moska.hw.memory.reader import read_command_layout

PACE = 4  # slots of chunks between two of representatives, at most


def fetch_job_layout(n_contexts):
    """Struct of a job whose chunks or representatives are read."""
    return data.StructLayout(
        {
            "context": range(n_contexts),
            "descriptor": descriptor_layout(),
            "rep_shift": 4,  # log2 of the representatives of a chunk
        }
    )


def load_command_layout(n_contexts):
    """Struct of a read into a memory of the context, or of a descriptor."""
    return data.StructLayout(
        {"addr": 64, "n_beats": 20, "target": Target, "context": range(n_contexts)}
    )


def request_layout(n_contexts):
    """Struct of tokens that wait for slots: of a chunk, or all representatives of a job."""
    return data.StructLayout(
        {
            "context": range(n_contexts),
            "chunk": range(MAX_TOKENS),  # of the first token
            "token": range(MAX_TOKENS),
            "left": range(2 * MAX_TOKENS),
            "first": 1,  # no slot of the chunk was allocated yet
            "job_last": 1,  # no other tokens of the job follow these
        }
    )


class Fetch(wiring.Component):
    """Allocate buffer slots and issue the commands that fill them, ahead of their use.

    A slot holds up to ``buffer_tokens`` tokens. Its commands are, in this order: the checksum
    record (before the first slot of a chunk, when the descriptor asks for it), scales, keys, and
    (for chunks) values. Reads are rounded up to ALIGN bytes, except that of a record. Slots are
    allocated in circular order as soon as the next one is free. A chunk that no row selected is
    skipped.

    Chunks of the job on ``attend`` and representatives of the job on ``route`` share the slots.
    Representatives take much of the score array and little of the memory, so they are spread over
    the chunks: due as the ids of the chunks that are read pass by. With a job to follow the one on
    ``attend``, the next five chunks' representatives are due for four ids, which has all of them
    done in four fifths of a job of as many chunks and leaves a fifth for the selection. Without
    one there is no time to lose: two for one id, and at the latest after PACE chunk slots.

    Loads go before the commands of slots, one in two cycles. A slot takes one cycle and one for
    each command, a skipped chunk one. What the next slot would hold is chosen while the commands of
    the one before it are issued, in the cycle before a slot is allocated at the latest.

    Parameters
    ----------
    max_chunks, head_dim, bus_bytes, buffer_tokens, buffer_slots, n_contexts : int

    Members
    -------
    attend, route : :py:`In(stream.Signature(fetch_job_layout(n_contexts)))`
        held until ready, which comes after the job's last command was issued
    load_cmd : :py:`In(stream.Signature(load_command_layout(n_contexts)))`
    cmd : :py:`Out(stream.Signature(read_command_layout(len(Channel), tag_layout(...))))`
    next_listed : :py:`In(1)`
        another job's chunks can be read when those of the one on ``attend`` are
    failed : :py:`In(n_contexts)`
        jobs that have failed: their next slot is their last
    wanted_chunk : Out, wanted : In
        whether any row of the job on ``attend`` selected the chunk, two cycles later
    slot : :py:`Out(stream.Signature(slot_layout(...)))`
        ``job_last``: no chunk, or representative, of the job follows
    score_done, value_done : In
        valid, slot: the slot's keys, or values, are no longer read. A slot of representatives is
        free after the one, a slot of a chunk after the other, in any order of slots
    allocated : Out
        valid, representative: a slot was allocated
    none : :py:`Out(1)`
        pulse with the ready of ``attend``: the job reads no chunk and gives no slot
    chunk_read, chunk_skipped : :py:`Out(1)`
        pulses as chunks are examined, ahead of their reads
    busy : :py:`Out(1)`
        a job or a command is here, or slots are in use

    """

    def __init__(
        self, *, max_chunks, head_dim, bus_bytes, buffer_tokens, buffer_slots, n_contexts
    ):
        self.max_chunks = max_chunks
        self.head_dim = head_dim
        self.bus_bytes = bus_bytes
        self.buffer_tokens = buffer_tokens
        self.buffer_slots = buffer_slots
        self.n_contexts = n_contexts
        job = stream.Signature(fetch_job_layout(n_contexts))
        command = read_command_layout(len(Channel), tag_layout(n_contexts, buffer_slots))
        super().__init__(
            {
                "attend": In(job),
                "route": In(job),
                "load_cmd": In(stream.Signature(load_command_layout(n_contexts))),
                "cmd": Out(stream.Signature(command)),
                "next_listed": In(1),
                "failed": In(n_contexts),
                "wanted_chunk": Out(range(max_chunks)),
                "wanted": In(1),
                "slot": Out(
                    stream.Signature(
                        slot_layout(
                            max_chunks=max_chunks,
                            buffer_tokens=buffer_tokens,
                            n_contexts=n_contexts,
                        )
                    )
                ),
                "score_done": In(slot_number_layout(buffer_slots)),
                "value_done": In(slot_number_layout(buffer_slots)),
                "allocated": Out(data.StructLayout({"valid": 1, "representative": 1})),
                "none": Out(1),
                "chunk_read": Out(1),
                "chunk_skipped": Out(1),
                "busy": Out(1),
            }
        )

    def beats(self, count, size):
        """Expression: bus beats of ``count`` items of ``size`` bytes, rounded up to ALIGN."""
        if size >= ALIGN:
            lines = count << exact_log2(size // ALIGN)
        else:
            lines = (count + ALIGN // size - 1) >> exact_log2(ALIGN // size)
        return lines << exact_log2(ALIGN // self.bus_bytes)

    def elaborate(self, platform):
        m = Module()

        m.submodules.scan = self.scan = ChunkScan(max_chunks=self.max_chunks)
        m.d.comb += [
            self.wanted_chunk.eq(self.scan.wanted_chunk),
            self.scan.wanted.eq(self.wanted),
            self.chunk_read.eq(self.scan.read),
            self.chunk_skipped.eq(self.scan.skipped),
        ]

        # Tokens that wait for slots.
        shape = request_layout(self.n_contexts)
        self.chunk = Signal(shape)
        self.chunk_asks = Signal()
        self.rep = Signal(shape)
        self.rep_asks = Signal()
        # The slot that is allocated in this cycle, and whose it is.
        self.granted = Signal(range(self.buffer_tokens + 1))  # tokens
        self.ends_chunk = Signal()
        self.ends_job = Signal()
        self.chunk_granted = Signal()
        self.rep_granted = Signal()
        self.chunk_waits = Signal()  # a chunk asks, or is about to
        # Ids passed by since the representatives asked first; more than any of theirs.
        self.passed = Signal(range(2 * self.max_chunks))
        # Commands of a slot are left.
        self.chunk_issuing = Signal()
        self.rep_issuing = Signal()

        self.chunks(m)
        self.representatives(m)
        self.slots(m)
        return m

    def chunks(self, m):
        """Ask for slots for each wanted chunk of the job on ``attend``."""
        scan, job, chunk = self.scan, self.attend.payload, self.chunk
        descriptor, found = job.descriptor, self.scan.o.payload
        rest = Signal(range(MAX_TOKENS + 1))  # tokens of the job from the chunk's first one on
        left = Signal(rest.shape())
        found_last = Signal()
        m.d.comb += [
            scan.start.payload.n_chunks.eq(descriptor.n_chunks),
            scan.start.payload.chunk_tokens.eq(descriptor.chunk_tokens),
            scan.start.payload.every.eq(descriptor.selection == Selection.ALL),
            # The last chunk may be short.
            left.eq(Mux(rest < descriptor.chunk_tokens, rest, descriptor.chunk_tokens)),
        ]
        with m.FSM(name="chunks"):
            with m.State("IDLE"):
                m.d.comb += scan.start.valid.eq(self.attend.valid)
                m.d.sync += chunk.chunk.eq(0)
                with m.If(self.attend.valid & scan.start.ready):
                    m.next = "FIND"
            with m.State("FIND"):
                m.d.comb += [scan.o.ready.eq(1), self.chunk_waits.eq(scan.o.valid)]
                with m.If(scan.o.valid):
                    m.d.sync += [
                        found_last.eq(found.last),
                        chunk.context.eq(job.context),
                        chunk.chunk.eq(found.chunk),
                        chunk.token.eq(found.token),
                        rest.eq(descriptor.n_tokens - found.token),
                        chunk.first.eq(1),
                        chunk.job_last.eq(found.last),
                    ]
                    with m.If(~found.none & ~self.passed[-1]):
                        m.d.sync += self.passed.eq(self.passed + found.chunk - chunk.chunk)
                    m.next = "MEASURE"
                    with m.If(found.none):
                        m.d.comb += [self.none.eq(1), self.attend.ready.eq(1)]
                        m.next = "IDLE"
            with m.State("MEASURE"):
                m.d.comb += self.chunk_waits.eq(1)
                m.d.sync += chunk.left.eq(left)
                m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += [self.chunk_asks.eq(1), self.chunk_waits.eq(1)]
                with m.If(self.chunk_granted):
                    m.d.sync += [
                        chunk.token.eq(chunk.token + self.granted),
                        chunk.left.eq(chunk.left - self.granted),
                        chunk.first.eq(0),
                    ]
                    with m.If(self.ends_job):
                        m.next = "END"
                    with m.Elif(self.ends_chunk):
                        m.next = "FIND"
            with m.State("END"):
                # Chunks of a job that has failed may be left.
                m.d.comb += [scan.stop.eq(~found_last), scan.o.ready.eq(~found_last)]
                with m.If(scan.o.valid & scan.o.ready):
                    m.d.sync += found_last.eq(found.last)
                with m.If(found_last & ~self.chunk_issuing):
                    m.d.comb += self.attend.ready.eq(1)
                    m.next = "IDLE"

    def representatives(self, m):
        """Ask for slots for the representatives of the job on ``route``."""
        job, rep = self.route.payload, self.rep
        left = Signal(rep.left.shape())
        m.d.comb += [
            left.eq(job.descriptor.n_chunks << job.rep_shift),
            rep.context.eq(job.context),
            rep.chunk.eq(rep.token >> job.rep_shift),
            rep.first.eq(0),
            rep.job_last.eq(1),
        ]
        with m.FSM(name="representatives"):
            with m.State("IDLE"):
                m.d.sync += [rep.token.eq(0), rep.left.eq(left), self.passed.eq(0)]
                with m.If(self.route.valid):
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += self.rep_asks.eq(1)
                with m.If(self.rep_granted):
                    m.d.sync += [
                        rep.token.eq(rep.token + self.granted),
                        rep.left.eq(rep.left - self.granted),
                    ]
                    with m.If(self.ends_job):
                        m.next = "END"
            with m.State("END"):
                with m.If(~self.rep_issuing):
                    m.d.comb += self.route.ready.eq(1)
                    m.next = "IDLE"

    def slots(self, m):
        """Allocate slots; issue their commands, and those of loads."""
        slot_shape = self.slot.payload.shape()
        # Never full: an entry leaves before its slot is free.
        m.submodules.slots = slots = SyncFIFO(width=slot_shape.size, depth=self.buffer_slots)
        # Two places: full rate without a path from ready to ready.
        command_shape = self.cmd.payload.shape()
        m.submodules.commands = commands = SyncFIFO(width=command_shape.size, depth=2)

        # Slots in use.
        used = Signal(self.buffer_slots)
        of_representatives = Signal(self.buffer_slots)
        index = Signal(range(self.buffer_slots))  # being filled
        allocate = Signal()
        taken = Signal(self.buffer_slots)
        freed = Signal(self.buffer_slots)
        with m.If(allocate):
            m.d.comb += taken.eq(1 << index)
        for slot in range(self.buffer_slots):
            m.d.comb += freed[slot].eq(
                (self.score_done.valid & (self.score_done.slot == slot) & of_representatives[slot])
                | (self.value_done.valid & (self.value_done.slot == slot))
            )
        m.d.sync += used.eq((used | taken) & ~freed)

        # Whether the next slot is one of representatives.
        n_chunk_slots = Signal(range(PACE + 1))  # since the last one
        due = Signal()
        rep_next = Signal()
        passed = self.passed
        m.d.sync += due.eq(
            Mux(
                self.next_listed,
                self.rep.chunk <= passed + (passed >> 2),
                (self.rep.chunk <= passed << 1) | (n_chunk_slots == PACE),
            )
        )
        m.d.comb += rep_next.eq(self.rep_asks & (due | ~self.chunk_waits))
        with m.If(self.rep_granted):
            m.d.sync += n_chunk_slots.eq(0)
        with m.Elif(self.chunk_granted & (n_chunk_slots != PACE)):
            m.d.sync += n_chunk_slots.eq(n_chunk_slots + 1)

        # What the slot would hold, a cycle late: allocations are three cycles apart at least, so
        # who asks has taken note of the one before.
        offered = Signal()
        for_representatives = Signal()
        asked = Signal(self.chunk.shape(), reset_less=True)
        rest_fits = Signal()

        def fits(request):
            return request.left <= self.buffer_tokens

        m.d.sync += [
            offered.eq(rep_next | self.chunk_asks),
            for_representatives.eq(rep_next),
            asked.eq(Mux(rep_next, self.rep, self.chunk)),
            rest_fits.eq(Mux(rep_next, fits(self.rep), fits(self.chunk))),
        ]

        # The slot to allocate.
        failed = Signal()
        slot = Signal(slot_shape)
        m.d.comb += [
            failed.eq(self.failed.bit_select(asked.context, 1)),
            self.granted.eq(Mux(rest_fits, asked.left, self.buffer_tokens)),
            self.ends_chunk.eq(rest_fits | failed),
            self.ends_job.eq((rest_fits & asked.job_last) | failed),
            self.rep_granted.eq(allocate & for_representatives),
            self.chunk_granted.eq(allocate & ~for_representatives),
            slot.representative.eq(for_representatives),
            slot.context.eq(asked.context),
            slot.chunk.eq(asked.chunk),
            slot.n_tokens.eq(self.granted),
            slot.all.eq(for_representatives | self.scan.start.payload.every),
            slot.job_last.eq(self.ends_job),
            slots.w_data.eq(slot),
            slots.w_en.eq(allocate),
            self.slot.valid.eq(slots.r_rdy),
            self.slot.payload.eq(slots.r_data),
            slots.r_en.eq(self.slot.ready),
            self.allocated.valid.eq(allocate),
            self.allocated.representative.eq(for_representatives),
        ]

        # The slot whose commands are issued.
        current = Signal(asked.shape(), reset_less=True)
        representative = Signal()
        n_tokens = Signal(range(self.buffer_tokens + 1), reset_less=True)
        chunk_last = Signal(reset_less=True)
        issuing = Signal()
        m.d.comb += [
            self.rep_issuing.eq(issuing & representative),
            self.chunk_issuing.eq(issuing & ~representative),
        ]
        with m.If(allocate):
            m.d.sync += [
                current.eq(asked),
                representative.eq(for_representatives),
                n_tokens.eq(self.granted),
                chunk_last.eq(self.ends_chunk),
                of_representatives.bit_select(index, 1).eq(for_representatives),
            ]

        # A command, and a cycle later its address: a sum of 64 bits.
        base, offset = Signal(64), Signal(64)
        command = Signal(command_shape)
        made = Signal()
        made_base, made_offset = Signal(64, reset_less=True), Signal(64, reset_less=True)
        made_command = Signal(command_shape, reset_less=True)
        complete = Signal(command_shape)
        step = Signal()
        issue = Signal()
        issued = Signal()
        loads = Signal()  # a load is to be issued
        load = Signal(self.load_cmd.payload.shape(), reset_less=True)
        attend, route = self.attend.payload.descriptor, self.route.payload.descriptor
        m.d.comb += [
            step.eq(~made | commands.w_rdy),
            issued.eq(issue & step & ~loads),
            self.load_cmd.ready.eq(~loads),
            complete.eq(made_command),
            complete.addr.eq(made_base + made_offset),
            commands.w_en.eq(made),
            commands.w_data.eq(complete),
            self.cmd.valid.eq(commands.r_rdy),
            self.cmd.payload.eq(commands.r_data),
            commands.r_en.eq(self.cmd.ready),
        ]
        with m.If(self.load_cmd.valid & self.load_cmd.ready):
            m.d.sync += [load.eq(self.load_cmd.payload), loads.eq(1)]
        with m.Elif(step):
            m.d.sync += loads.eq(0)
        with m.If(step):
            m.d.sync += [
                made.eq(issue | loads),
                made_base.eq(base),
                made_offset.eq(offset),
                made_command.eq(command),
            ]

        def issue_read(channel, target, address, distance, n_beats):
            m.d.comb += [
                issuing.eq(1),
                issue.eq(1),
                base.eq(address),
                offset.eq(distance),
                command.id.eq(channel),
                command.tag.target.eq(target),
                command.n_beats.eq(n_beats),
            ]

        scale_bytes = 2 * SCALE_BITS // 8
        row_offset = current.token << exact_log2(self.head_dim)
        row_beats = self.beats(n_tokens, self.head_dim)
        with m.FSM(name="slots"):
            with m.State("ALLOCATE"):
                m.d.comb += allocate.eq(offered & ~used.bit_select(index, 1))
                with m.If(allocate):
                    m.next = "SCALES"
                    with m.If(~for_representatives & asked.first & attend.checksum[0]):
                        m.next = "CHECKSUM"
            with m.State("CHECKSUM"):
                issue_read(
                    Channel.SCALES,
                    Target.CHECKSUM,
                    attend.checksum_addr,
                    current.chunk << exact_log2(CHECKSUM_BYTES),
                    max(1, CHECKSUM_BYTES // self.bus_bytes),
                )
                with m.If(issued):
                    m.next = "SCALES"
            with m.State("SCALES"):
                issue_read(
                    Channel.SCALES,
                    Target.SCALES,
                    Mux(representative, route.rep_scale_addr, attend.scale_addr),
                    current.token << exact_log2(scale_bytes),
                    self.beats(n_tokens, scale_bytes),
                )
                with m.If(issued):
                    m.next = "KEYS"
            with m.State("KEYS"):
                issue_read(
                    Channel.KEYS,
                    Target.KEYS,
                    Mux(representative, route.rep_addr, attend.k_addr),
                    row_offset,
                    row_beats,
                )
                with m.If(issued):
                    m.next = "VALUES"
                    with m.If(representative):
                        m.d.sync += index.eq(index + 1)
                        m.next = "ALLOCATE"
            with m.State("VALUES"):
                issue_read(Channel.VALUES, Target.VALUES, attend.v_addr, row_offset, row_beats)
                with m.If(issued):
                    m.d.sync += index.eq(index + 1)
                    m.next = "ALLOCATE"

        m.d.comb += [
            command.tag.context.eq(current.context),
            command.tag.slot.eq(index),
            command.tag.representative.eq(representative),
            command.tag.chunk_first.eq(~representative & current.first),
            command.tag.chunk_last.eq(~representative & chunk_last),
            command.tag.checked.eq(~representative & attend.checksum[0]),
        ]
        with m.If(loads):
            m.d.comb += [
                command.eq(0),
                command.id.eq(Channel.CONTROL),
                base.eq(load.addr),
                offset.eq(0),
                command.n_beats.eq(load.n_beats),
                command.tag.target.eq(load.target),
                command.tag.context.eq(load.context),
            ]
        m.d.comb += self.busy.eq(
            self.attend.valid
            | self.route.valid
            | self.load_cmd.valid
            | loads
            | made
            | commands.r_rdy
            | (used != 0)
        )
