"""Fetch: decides what is read from memory, in which order, and where it goes."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import MAX_TOKENS, Q_BITS, SCALE_BITS
from moska.golden.layout import DESCRIPTOR_BYTES, SELECTION_LINE
from moska.hw.control.descriptor import descriptor_layout
from moska.hw.control.gather import slot_layout
from moska.hw.memory.reader import ReadCommand
from moska.hw.router.invert import load_layout, row_word_bits


class Target(enum.Enum, shape=3):
    """Where the beats of a read command go."""

    DESCRIPTOR = 0
    SELECTION = 1
    QUERY_SCALES = 2
    QUERIES = 3
    SCALES = 4
    KEYS = 5  # of representatives too
    VALUES = 6


class Phase(enum.Enum, shape=3):
    """What the sequencer has fetched next."""

    DESCRIPTOR = 0
    SELECTION = 1
    QUERIES = 2
    REPRESENTATIVES = 3
    CHUNKS = 4


def target_layout(buffer_slots):
    """Struct that says where a read command's beats go."""
    return data.StructLayout({"target": Target, "slot": range(buffer_slots)})


class Fetch(wiring.Component):
    """Issue the read commands of a phase; allocate buffer slots ahead of their use.

    A slot holds up to ``buffer_tokens`` tokens: scales, keys, and (for chunks) values, read in that
    order. A chunk that no row selected is skipped. Slots are filled as soon as they are free, so
    the next chunk is fetched while the current one computes.

    Members
    -------
    start : :py:`In(stream.Signature(Phase))`
        ready when the commands of the last phase are all issued
    descriptor_addr : :py:`In(64)`
    job : :py:`In(descriptor_layout())`
    slot_done : :py:`In(1)`
        pulse: the oldest slot is free
    wanted_chunk : Out, wanted : In
        whether any row selected the chunk, two cycles later
    every : :py:`In(1)`
        all chunks are wanted
    cmd : :py:`Out(stream.Signature(ReadCommand))`
    target : :py:`Out(stream.Signature(target_layout(buffer_slots)))`
        one with every command
    slot : :py:`Out(stream.Signature(slot_layout(...)))`
    chunk_read, chunk_skipped : :py:`Out(1)`
        pulses
    busy : :py:`Out(1)`
        commands of a phase are left, or slots are in use

    """

    def __init__(self, *, max_chunks, head_dim, bus_bytes, buffer_tokens, buffer_slots):
        self.max_chunks = max_chunks
        self.head_dim = head_dim
        self.bus_bytes = bus_bytes
        self.buffer_tokens = buffer_tokens
        self.buffer_slots = buffer_slots
        super().__init__(
            {
                "start": In(stream.Signature(Phase)),
                "descriptor_addr": In(64),
                "job": In(descriptor_layout()),
                "slot_done": In(1),
                "wanted_chunk": Out(range(max_chunks)),
                "wanted": In(1),
                "every": In(1),
                "cmd": Out(stream.Signature(ReadCommand)),
                "target": Out(stream.Signature(target_layout(buffer_slots))),
                "slot": Out(
                    stream.Signature(
                        slot_layout(max_chunks=max_chunks, buffer_tokens=buffer_tokens)
                    )
                ),
                "chunk_read": Out(1),
                "chunk_skipped": Out(1),
                "busy": Out(1),
            }
        )

    def beats(self, count, bits):
        """Expression: bus beats of ``count`` items of ``bits`` bits, rounded up."""
        bus_bits = 8 * self.bus_bytes
        if bits >= bus_bits:
            return count << exact_log2(bits // bus_bits)
        return (count + bus_bits // bits - 1) >> exact_log2(bus_bits // bits)

    def elaborate(self, platform):
        m = Module()

        m.submodules.slots = slots = SyncFIFO(
            width=self.slot.payload.shape().size, depth=self.buffer_slots
        )
        job = self.job
        free = Signal(range(self.buffer_slots + 1), init=self.buffer_slots)
        index = Signal(range(self.buffer_slots))  # slot being filled
        chunk = Signal(range(MAX_TOKENS + 1))
        start_token = Signal(range(2 * MAX_TOKENS))  # first token of the chunk
        token = Signal(range(2 * MAX_TOKENS))  # first token of the slot
        left = Signal(range(2 * MAX_TOKENS))  # tokens of the chunk, or representatives, to fetch
        representative = Signal()
        n_tokens = Signal(range(self.buffer_tokens + 1))
        wait = Signal(2)

        # One command and its target leave together.
        addr = Signal(64)
        n_beats = Signal(20)
        target = Signal(Target)
        issue = Signal()
        issued = Signal()
        m.d.comb += [
            issued.eq(issue & self.cmd.ready & self.target.ready),
            self.cmd.valid.eq(issue & self.target.ready),
            self.target.valid.eq(issue & self.cmd.ready),
            self.cmd.payload.addr.eq(addr),
            self.cmd.payload.n_beats.eq(n_beats),
            self.target.payload.target.eq(target),
            self.target.payload.slot.eq(index),
            self.slot.valid.eq(slots.r_rdy),
            self.slot.payload.eq(slots.r_data),
            slots.r_en.eq(self.slot.ready),
            n_tokens.eq(Mux(left > self.buffer_tokens, self.buffer_tokens, left)),
            self.wanted_chunk.eq(chunk[: len(self.wanted_chunk)]),
        ]
        row_shift = exact_log2(self.head_dim)
        scale_base, key_base = Signal(64), Signal(64)
        m.d.comb += [
            scale_base.eq(Mux(representative, job.rep_scale_addr, job.scale_addr)),
            key_base.eq(Mux(representative, job.rep_addr, job.k_addr)),
        ]

        allocated = Signal()
        m.d.sync += free.eq(free + self.slot_done - allocated)
        idle = Signal()
        m.d.comb += self.busy.eq(~idle | (free != self.buffer_slots))

        # The last chunk may be short.
        rest = Signal(range(2 * MAX_TOKENS))
        chunk_tokens = Signal(range(2 * MAX_TOKENS))
        m.d.comb += [
            rest.eq(job.n_tokens - start_token),
            chunk_tokens.eq(Mux(rest < job.chunk_tokens, rest, job.chunk_tokens)),
        ]

        with m.FSM(name="fetch"):
            with m.State("IDLE"):
                m.d.comb += [idle.eq(1), self.start.ready.eq(1)]
                m.d.sync += [chunk.eq(0), start_token.eq(0), token.eq(0), wait.eq(0)]
                with m.If(self.start.valid):
                    with m.Switch(self.start.payload):
                        with m.Case(Phase.DESCRIPTOR):
                            m.next = "DESCRIPTOR"
                        with m.Case(Phase.SELECTION):
                            m.next = "SELECTION"
                        with m.Case(Phase.QUERIES):
                            m.next = "QUERY_SCALES"
                        with m.Case(Phase.REPRESENTATIVES):
                            m.d.sync += representative.eq(1)
                            m.next = "COUNT_REPRESENTATIVES"
                        with m.Case(Phase.CHUNKS):
                            m.d.sync += representative.eq(0)
                            m.next = "CHUNK"

            def single(name, target_code, address, beats, following="IDLE"):
                with m.State(name):
                    m.d.comb += [
                        issue.eq(1),
                        target.eq(target_code),
                        addr.eq(address),
                        n_beats.eq(beats),
                    ]
                    with m.If(issued):
                        m.next = following

            single(
                "DESCRIPTOR",
                Target.DESCRIPTOR,
                self.descriptor_addr,
                DESCRIPTOR_BYTES // self.bus_bytes,
            )
            single(
                "SELECTION",
                Target.SELECTION,
                job.selection_addr,
                self.beats(job.n_chunks, 8 * SELECTION_LINE),
            )
            single(
                "QUERY_SCALES",
                Target.QUERY_SCALES,
                job.q_scale_addr,
                self.beats(job.n_rows, SCALE_BITS),
                "QUERIES",
            )
            single(
                "QUERIES",
                Target.QUERIES,
                job.q_addr,
                self.beats(job.n_rows, self.head_dim * Q_BITS),
            )

            with m.State("COUNT_REPRESENTATIVES"):
                # Representatives per chunk are a power of two: one of these terms.
                counts = [
                    Mux(job.rep_rows[bit], job.n_chunks << bit, 0)
                    for bit in range(exact_log2(self.buffer_tokens) + 1)
                ]
                m.d.sync += left.eq(sum(counts))
                m.next = "SLOT"

            with m.State("CHUNK"):
                with m.If(chunk == job.n_chunks):
                    m.next = "IDLE"
                with m.Elif(self.every):
                    m.next = "TAKE"
                with m.Else():
                    m.d.sync += wait.eq(wait + 1)
                    with m.If(wait == 3):
                        with m.If(self.wanted):
                            m.next = "TAKE"
                        with m.Else():
                            m.d.comb += self.chunk_skipped.eq(1)
                            m.d.sync += [
                                chunk.eq(chunk + 1),
                                start_token.eq(start_token + job.chunk_tokens),
                            ]
            with m.State("TAKE"):
                m.d.comb += self.chunk_read.eq(1)
                m.d.sync += [
                    token.eq(start_token),
                    left.eq(chunk_tokens),
                    start_token.eq(start_token + job.chunk_tokens),
                    wait.eq(0),
                ]
                m.next = "SLOT"

            with m.State("SLOT"):
                with m.If((free != 0) & slots.w_rdy):
                    m.d.comb += [allocated.eq(1), slots.w_en.eq(1)]
                    m.next = "SCALES"
            with m.State("SCALES"):
                m.d.comb += [
                    issue.eq(1),
                    target.eq(Target.SCALES),
                    addr.eq(scale_base + (token << 2)),
                    n_beats.eq(self.beats(n_tokens, 2 * SCALE_BITS)),
                ]
                with m.If(issued):
                    m.next = "KEYS"
            with m.State("KEYS"):
                m.d.comb += [
                    issue.eq(1),
                    target.eq(Target.KEYS),
                    addr.eq(key_base + (token << row_shift)),
                    n_beats.eq(self.beats(n_tokens, 8 * self.head_dim)),
                ]
                with m.If(issued):
                    m.next = "VALUES"
                    with m.If(representative):
                        m.next = "NEXT"
            with m.State("VALUES"):
                m.d.comb += [
                    issue.eq(1),
                    target.eq(Target.VALUES),
                    addr.eq(job.v_addr + (token << row_shift)),
                    n_beats.eq(self.beats(n_tokens, 8 * self.head_dim)),
                ]
                with m.If(issued):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    index.eq(index + 1),
                    token.eq(token + n_tokens),
                    left.eq(left - n_tokens),
                ]
                with m.If(left != n_tokens):
                    m.next = "SLOT"
                with m.Elif(representative):
                    m.next = "IDLE"
                with m.Else():
                    m.d.sync += chunk.eq(chunk + 1)
                    m.next = "CHUNK"

        slot = Signal(self.slot.payload.shape())
        rep_chunk = Signal(range(2 * MAX_TOKENS))
        with m.Switch(job.rep_rows):
            for bit in range(exact_log2(self.buffer_tokens) + 1):
                with m.Case(1 << bit):
                    m.d.comb += rep_chunk.eq(token >> bit)
        m.d.comb += [
            slot.representative.eq(representative),
            slot.chunk.eq(Mux(representative, rep_chunk, chunk)),
            slot.n_tokens.eq(n_tokens),
            slot.all.eq(representative | self.every),
            slots.w_data.eq(slot),
        ]

        return m


class Load(wiring.Component):
    """Send the read beats to their targets; report what is complete.

    Full rate, except for an explicit selection, whose row words are stored one a cycle.

    Members
    -------
    i : In
        beats of the read master
    target : :py:`In(stream.Signature(target_layout(buffer_slots)))`
    n_rows : In
        rows of the job; selection bits of other rows are cleared
    write : Out
        data, and beat number within the target; ``strobe`` bit t is set for Target t
    slot : Out
    k_filled, v_filled, done : :py:`Out(1)`
        last beat of a slot's keys or values; last beat of any other command
    selection : Out
        stream of {chunk, row_word, bits} to the inverter

    """

    def __init__(self, *, data_width, max_rows, max_chunks, buffer_slots):
        self.data_width = data_width
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.n_row_words = max_rows // row_word_bits(max_rows)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": data_width, "last": 1}))),
                "target": In(stream.Signature(target_layout(buffer_slots))),
                "n_rows": In(range(max_rows + 1)),
                "strobe": Out(len(Target)),
                "beat": Out(20),
                "data": Out(data_width),
                "slot": Out(range(buffer_slots)),
                "k_filled": Out(1),
                "v_filled": Out(1),
                "done": Out(1),
                "selection": Out(
                    stream.Signature(
                        load_layout(max_rows, max_chunks)
                    )
                ),
            }
        )

    def elaborate(self, platform):
        m = Module()

        take = Signal()
        beat = Signal(20)
        target = self.target.payload.target
        m.d.comb += [
            self.target.ready.eq(take & self.i.payload.last),
            self.data.eq(self.i.payload.data),
            self.beat.eq(beat),
            self.slot.eq(self.target.payload.slot),
            self.i.ready.eq(take),
        ]
        with m.If(take):
            m.d.sync += beat.eq(Mux(self.i.payload.last, 0, beat + 1))

        # An explicit selection: line = chunk, 32-bit words of it = rows.
        words_per_beat = self.data_width // 32
        beats_per_line = SELECTION_LINE * 8 // self.data_width
        word = Signal(range(max(words_per_beat, 2)))
        number = Signal(range(max(SELECTION_LINE // 4, 2)))  # word within the line
        part = Signal(32)
        used = Signal()
        mask = Signal(32)
        line_beat = beat[: exact_log2(beats_per_line)] if beats_per_line > 1 else 0
        m.d.comb += [
            number.eq(line_beat * words_per_beat + word),
            used.eq(number < self.n_row_words),
            part.eq(self.data.word_select(word, 32)),
            mask.eq(Cat((number << 5) + bit < self.n_rows for bit in range(32))),
            self.selection.payload.chunk.eq(beat >> exact_log2(beats_per_line)),
            self.selection.payload.row_word.eq(number),
            self.selection.payload.bits.eq(part & mask),
        ]
        moves = Signal()
        selecting = Signal()
        m.d.comb += [
            selecting.eq(self.i.valid & self.target.valid & (target == Target.SELECTION)),
            self.selection.valid.eq(selecting & used),
            moves.eq(selecting & (~used | self.selection.ready)),
        ]
        with m.If(moves):
            m.d.sync += word.eq(Mux(word == words_per_beat - 1, 0, word + 1))

        with m.If(target == Target.SELECTION):
            m.d.comb += take.eq(moves & (word == words_per_beat - 1))
        with m.Else():
            m.d.comb += take.eq(self.i.valid & self.target.valid)
            with m.If(take):
                m.d.comb += self.strobe.eq(1 << target.as_value())

        complete = Signal()
        m.d.comb += [
            complete.eq(take & self.i.payload.last),
            self.k_filled.eq(complete & (target == Target.KEYS)),
            self.v_filled.eq(complete & (target == Target.VALUES)),
            self.done.eq(
                complete
                & (target != Target.KEYS)
                & (target != Target.VALUES)
                & (target != Target.SCALES)
            ),
        ]

        return m
