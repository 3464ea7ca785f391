"""Results: row states are finished and written, then the selection, then the completion record."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from moska.golden.formats import O_STATE_WIDTH
from moska.golden.layout import COMPLETION, COMPLETION_BYTES, COUNTERS, SELECTION_LINE
from moska.hw.control.descriptor import ErrorCode, descriptor_layout
from moska.hw.finish import Finisher
from moska.hw.memory.writer import WriteCommand
from moska.hw.router.invert import row_word_bits, vector_cmd_layout
from moska.hw.state import RowMeta, state_read_layout
from moska.hw.stream import Packer, RegisterSlice

FIFO_DEPTH = 4  # state words and row metadata


def results_job_layout(n_contexts):
    """Struct of a job whose computation is done.

    ``attend``: O and LSE are due; ``select``: the selection is.
    """
    return data.StructLayout(
        {
            "context": range(n_contexts),
            "descriptor": descriptor_layout(),
            "attend": 1,
            "select": 1,
            "sequence": 32,
            "completion_addr": 64,
        }
    )


def record_layout():
    """Struct of the counters in a completion record."""
    return data.StructLayout({name: 8 * COMPLETION[name][1] for name in COUNTERS})


def completed_layout():
    """Struct of a job that is complete."""
    return data.StructLayout({"valid": 1, "code": ErrorCode, "error_addr": 64, "sequence": 32})


class Results(wiring.Component):
    """Write what a job was for: O, LSE, selection; then, when memory has answered, its record.

    Golden model of O and LSE: :func:`moska.golden.finish.finish`. A job with an error at the start
    has only its record written; an error that comes later is recorded, and the results are not to
    be trusted. The record says WRITE when a write failed and nothing went wrong before.

    Rows of O follow each other every ``head_dim / finish_lanes`` cycles, which is a bus word a
    cycle when a word holds ``finish_lanes`` elements. A line of the selection takes as many cycles
    as it has beats, or as the job has words of 32 rows, whichever is more.

    Parameters
    ----------
    max_rows, max_chunks, n_contexts, head_dim : int
    lanes : int
        elements of a word of the row state
    finish_lanes : int
        elements finished per cycle; divides ``lanes`` and the words of 4 bytes in a bus word
    bus_bytes : int

    Members
    -------
    job : :py:`In(stream.Signature(results_job_layout(n_contexts)))`
        the job's merges must all be written; the payload stays as it is until ``released``
    code, error_addr : In
        what has gone wrong with the job so far, until ``released``
    released : :py:`Out(1)`
        pulse: state, lists and descriptor of the job are needed no more
    read : :py:`Out(state_read_layout(...))`, read_o, read_meta : In
        row state, one cycle later
    vector_cmd, vector : streams to and from the inverter, for the selection of ``vector_context``
        bits of rows that the job does not have must be 0
    cmd, o : streams to the write master
    writer_busy, write_error, write_error_addr : In
        ``busy``, ``error`` and ``error_addr`` of the write master
    clear_write_error : :py:`Out(1)`
        pulse: a job starts
    snapshot : :py:`Out(1)`, record : :py:`In(record_layout())`
        counters are taken in the cycle of the pulse
    completed : :py:`Out(completed_layout())`
        pulse: memory has answered the record; the next job may come in the next cycle
    busy : :py:`Out(1)`
        a job is not completed

    """

    def __init__(
        self, *, max_rows, max_chunks, n_contexts, head_dim, lanes, finish_lanes, bus_bytes
    ):
        if head_dim % lanes:
            raise ValueError(f"head_dim must be a multiple of lanes ({lanes}), not {head_dim}")
        if lanes % finish_lanes:
            raise ValueError(
                f"lanes must be a multiple of finish_lanes ({finish_lanes}), not {lanes}"
            )
        if bus_bytes % (4 * finish_lanes) or (4 * head_dim) % bus_bytes:
            raise ValueError(
                f"bus_bytes must be a multiple of {4 * finish_lanes} (finish_lanes) and divide "
                f"{4 * head_dim} (a row of O), not {bus_bytes}"
            )
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.n_contexts = n_contexts
        self.head_dim = head_dim
        self.lanes = lanes
        self.finish_lanes = finish_lanes
        self.bus_bytes = bus_bytes
        self.n_words = head_dim // lanes
        self.row_word_bits = row_word_bits(max_rows)
        bus_bits = 8 * bus_bytes
        beat = data.StructLayout({"data": bus_bits, "strb": bus_bytes})
        super().__init__(
            {
                "job": In(stream.Signature(results_job_layout(n_contexts))),
                "code": In(ErrorCode),
                "error_addr": In(64),
                "released": Out(1),
                "read": Out(state_read_layout(n_contexts * max_rows, self.n_words)),
                "read_o": In(data.ArrayLayout(signed(O_STATE_WIDTH), lanes)),
                "read_meta": In(RowMeta),
                "vector_context": Out(range(n_contexts)),
                "vector_cmd": Out(stream.Signature(vector_cmd_layout(max_rows, max_chunks))),
                "vector": In(stream.Signature(self.row_word_bits)),
                "cmd": Out(stream.Signature(WriteCommand)),
                "o": Out(stream.Signature(beat)),
                "writer_busy": In(1),
                "write_error": In(1),
                "write_error_addr": In(64),
                "clear_write_error": Out(1),
                "snapshot": Out(1),
                "record": In(record_layout()),
                "completed": Out(completed_layout()),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        self.n_rows = Signal(range(self.max_rows + 1))
        self.last_row = Signal(range(self.max_rows), reset_less=True)
        start = Signal()  # of a job whose rows are due
        selecting = Signal()  # pulse: the selection comes next
        m.d.comb += [
            self.n_rows.eq(self.job.payload.descriptor.n_rows),
            self.vector_context.eq(self.job.payload.context),
        ]
        m.submodules.finisher = finisher = Finisher(
            head_dim=self.head_dim, lanes=self.finish_lanes
        )
        self.read_rows(m, finisher, start)
        o_words = self.pack_rows(m, finisher)
        words = self.pack_words(m, finisher, selecting)
        self.control(m, o_words, words, start, selecting)
        return m

    def read_rows(self, m, finisher, start):
        """Stream the state of rows 0..n_rows-1 into the finisher, metadata as early as it can."""
        # A state word holds several words of the finisher, each of which has a FIFO.
        n_parts = self.lanes // self.finish_lanes
        part_width = self.finish_lanes * O_STATE_WIDTH
        parts = [SyncFIFO(width=part_width, depth=FIFO_DEPTH) for _ in range(n_parts)]
        m.submodules.state_meta = state_meta = SyncFIFO(
            width=RowMeta.as_shape().size, depth=FIFO_DEPTH
        )
        row_bits = exact_log2(self.max_rows)
        context = self.job.payload.context
        row = Signal(range(self.max_rows + 1))
        meta_row = Signal(range(self.max_rows + 1))
        word = Signal(range(max(self.n_words, 2)))
        reading = Signal()
        reading_meta = Signal()
        last_word = Signal()
        m.d.comb += [
            # One read is under way while its predecessor's data enters the FIFO.
            self.read.valid.eq(reading & (parts[-1].level < FIFO_DEPTH - 1)),
            self.read.row.eq(Cat(row[:row_bits], context)),
            self.read.word.eq(word),
            self.read.meta_valid.eq(reading_meta & (state_meta.level < FIFO_DEPTH - 1)),
            self.read.meta_row.eq(Cat(meta_row[:row_bits], context)),
            last_word.eq(word == self.n_words - 1),
            state_meta.w_data.eq(self.read_meta),
            finisher.row.valid.eq(state_meta.r_rdy),
            finisher.row.payload.eq(state_meta.r_data),
            state_meta.r_en.eq(finisher.row.ready),
        ]
        read_s1 = Signal()
        m.d.sync += [read_s1.eq(self.read.valid), state_meta.w_en.eq(self.read.meta_valid)]
        with m.If(start):
            m.d.sync += [reading.eq(1), reading_meta.eq(1), row.eq(0), meta_row.eq(0)]
        with m.If(self.read.valid):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
            with m.If(last_word):
                m.d.sync += row.eq(row + 1)
                with m.If(row == self.last_row):
                    m.d.sync += reading.eq(0)
        with m.If(self.read.meta_valid):
            m.d.sync += meta_row.eq(meta_row + 1)
            with m.If(meta_row == self.last_row):
                m.d.sync += reading_meta.eq(0)

        part = Signal(range(max(n_parts, 2)))
        for index, words in enumerate(parts):
            m.submodules[f"state_words_{index}"] = words
            m.d.comb += [
                words.w_en.eq(read_s1),
                words.w_data.eq(self.read_o.as_value().word_select(index, part_width)),
            ]
            with m.If(part == index):
                m.d.comb += [
                    finisher.o.valid.eq(words.r_rdy),
                    finisher.o.payload.eq(words.r_data),
                    words.r_en.eq(finisher.o.ready),
                ]
        with m.If(finisher.o.valid & finisher.o.ready):
            m.d.sync += part.eq(Mux(part == n_parts - 1, 0, part + 1))

    def pack_rows(self, m, finisher):
        """Elements of O as bus words, never a partial one; returns their stream."""
        m.submodules.o_packer = packer = Packer(
            width=32 * self.finish_lanes, ratio=self.bus_bytes // (4 * self.finish_lanes)
        )
        m.d.comb += [
            packer.i.payload.data.eq(finisher.result.payload),
            packer.i.payload.last.eq(0),
            packer.i.valid.eq(finisher.result.valid),
            finisher.result.ready.eq(packer.i.ready),
        ]
        return packer.o

    def pack_words(self, m, finisher, selecting):
        """LSE of all rows, and after it the lists of all chunks, as bus words; returns the FIFO.

        A chunk's list starts a bus word and ends with its last word of rows that the job has.
        """
        words_per_beat = self.bus_bytes // 4
        m.submodules.packer = packer = Packer(width=32, ratio=words_per_beat)
        m.submodules.words = words = SyncFIFOBuffered(
            width=8 * self.bus_bytes, depth=max(2, self.max_rows // words_per_beat)
        )
        m.d.comb += [
            words.w_data.eq(packer.o.payload),
            words.w_en.eq(packer.o.valid),
            packer.o.ready.eq(words.w_rdy),
        ]

        # Commands of the lists, one a cycle.
        n_chunks = self.job.payload.descriptor.n_chunks
        self.last_number = last_number = Signal(range(SELECTION_LINE // 4))
        asking = Signal()
        chunk = Signal(range(self.max_chunks))
        asked_number = Signal.like(last_number)
        m.d.comb += [
            last_number.eq(self.last_row >> 5),
            self.vector_cmd.valid.eq(asking),
            self.vector_cmd.payload.chunk.eq(chunk),
            self.vector_cmd.payload.row_word.eq(asked_number),
        ]
        with m.If(selecting):
            m.d.sync += [asking.eq(1), chunk.eq(0), asked_number.eq(0)]
        with m.Elif(asking & self.vector_cmd.ready):
            m.d.sync += asked_number.eq(asked_number + 1)
            with m.If(asked_number == last_number):
                m.d.sync += [asked_number.eq(0), chunk.eq(chunk + 1)]
                with m.If(chunk == n_chunks - 1):
                    m.d.sync += asking.eq(0)

        # LSE and lists do not meet: a list is asked for when all of LSE has left.
        listing = Signal()
        row = Signal(range(self.max_rows))
        row_last = Signal()
        number = Signal.like(last_number)
        number_last = Signal()
        taken = Signal()
        m.d.comb += [
            row_last.eq(row == self.last_row),
            number_last.eq(number == last_number),
            taken.eq(packer.i.valid & packer.i.ready),
        ]
        with m.If(selecting):
            m.d.sync += listing.eq(1)
        with m.Elif(self.released):
            m.d.sync += listing.eq(0)
        with m.If(listing):
            m.d.comb += [
                packer.i.payload.data.eq(self.vector.payload),
                packer.i.payload.last.eq(number_last),
                packer.i.valid.eq(self.vector.valid),
                self.vector.ready.eq(packer.i.ready),
            ]
            with m.If(taken):
                m.d.sync += number.eq(Mux(number_last, 0, number + 1))
        with m.Else():
            m.d.comb += [
                packer.i.payload.data.eq(finisher.lse.payload),
                packer.i.payload.last.eq(row_last),
                packer.i.valid.eq(finisher.lse.valid),
                finisher.lse.ready.eq(packer.i.ready),
            ]
            with m.If(taken):
                m.d.sync += row.eq(Mux(row_last, 0, row + 1))
        return words

    def control(self, m, o_words, words, start, selecting):
        """Commands and beats of O, LSE, selection and record, one after the other; errors."""
        job = self.job.payload
        descriptor = job.descriptor
        words_per_beat = self.bus_bytes // 4
        all_bytes = ~Const(0, self.bus_bytes)

        # Kept beyond the release.
        code = Signal(ErrorCode)
        error_addr = Signal(64, reset_less=True)
        sequence = Signal(32, reset_less=True)
        tag = Signal(32, reset_less=True)
        completion_addr = Signal(64, reset_less=True)
        counters = Signal(record_layout(), reset_less=True)

        record = Signal(8 * COMPLETION_BYTES)
        fields = {"sequence": sequence, "tag": tag, "code": code, "error_addr": error_addr}
        fields |= {name: counters[name] for name in COUNTERS}
        for name, (offset, size) in COMPLETION.items():
            m.d.comb += record[8 * offset : 8 * (offset + size)].eq(fields[name])

        beat = Signal(20)
        n_beats = Signal(20)
        record_beats = COMPLETION_BYTES // self.bus_bytes
        record_beat = beat[: exact_log2(record_beats)]
        last_beat = Signal(20)  # in time: a command lies between n_beats and its first beat
        sent = Signal()
        last = Signal()
        m.submodules.beats = beats = RegisterSlice(self.o.payload.shape())
        connect(m, beats=beats.o, o=flipped(self.o))
        m.d.comb += [
            self.cmd.payload.n_beats.eq(n_beats),
            sent.eq(beats.i.valid & beats.i.ready),
            last.eq(sent & (beat == last_beat)),
        ]
        m.d.sync += last_beat.eq(n_beats - 1)
        with m.If(sent):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))

        lse_rest = self.n_rows[: exact_log2(words_per_beat)]
        lse_strobe = Signal(self.bus_bytes)
        m.d.comb += lse_strobe.eq(all_bytes)
        with m.If((beat == last_beat) & (lse_rest != 0)):
            m.d.comb += lse_strobe.eq((Const(1, 1) << (lse_rest << 2)) - 1)

        # Beats of a selection line past the job's rows are zero.
        line_shift = exact_log2(SELECTION_LINE // self.bus_bytes)
        empty = Signal()
        m.d.comb += empty.eq(
            (beat & ((1 << line_shift) - 1)) > (self.last_number >> exact_log2(words_per_beat))
        )

        def command(name, addr, following):
            with m.State(name):
                m.d.comb += [self.cmd.valid.eq(1), self.cmd.payload.addr.eq(addr)]
                with m.If(self.cmd.ready):
                    m.next = following

        def select():
            m.d.comb += selecting.eq(1)
            m.d.sync += n_beats.eq(descriptor.n_chunks << line_shift)
            m.next = "SELECTION_COMMAND"

        m.d.sync += self.snapshot.eq(0)
        with m.If(self.snapshot):
            m.d.sync += counters.eq(self.record)
        with m.FSM(name="results") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += [
                    self.last_row.eq(self.n_rows - 1),
                    sequence.eq(job.sequence),
                    tag.eq(descriptor.tag),
                    completion_addr.eq(job.completion_addr),
                ]
                with m.If(self.job.valid):
                    m.d.comb += self.clear_write_error.eq(1)
                    m.next = "RELEASE"
                    with m.If(self.code == ErrorCode.NONE):
                        with m.If(job.attend):
                            m.d.comb += start.eq(1)
                            m.d.sync += n_beats.eq(
                                descriptor.n_rows << exact_log2(self.head_dim * 4 // self.bus_bytes)
                            )
                            m.next = "O_COMMAND"
                        with m.Elif(job.select):
                            select()
            command("O_COMMAND", descriptor.o_addr, "O")
            with m.State("O"):
                m.d.comb += [
                    beats.i.valid.eq(o_words.valid),
                    beats.i.payload.data.eq(o_words.payload),
                    beats.i.payload.strb.eq(all_bytes),
                    o_words.ready.eq(beats.i.ready),
                ]
                with m.If(last):
                    m.d.sync += n_beats.eq(
                        (descriptor.n_rows + words_per_beat - 1) >> exact_log2(words_per_beat)
                    )
                    m.next = "LSE_COMMAND"
            command("LSE_COMMAND", descriptor.lse_addr, "LSE")
            with m.State("LSE"):
                m.d.comb += [
                    beats.i.valid.eq(words.r_rdy),
                    beats.i.payload.data.eq(words.r_data),
                    beats.i.payload.strb.eq(lse_strobe),
                    words.r_en.eq(beats.i.ready),
                ]
                with m.If(last):
                    m.next = "RELEASE"
                    with m.If(job.select):
                        select()
            command("SELECTION_COMMAND", descriptor.selection_addr, "SELECTION")
            with m.State("SELECTION"):
                m.d.comb += [
                    beats.i.valid.eq(empty | words.r_rdy),
                    beats.i.payload.data.eq(Mux(empty, 0, words.r_data)),
                    beats.i.payload.strb.eq(all_bytes),
                    words.r_en.eq(beats.i.ready & ~empty),
                ]
                with m.If(last):
                    m.next = "RELEASE"
            with m.State("RELEASE"):
                m.d.comb += self.released.eq(1)
                m.d.sync += [
                    code.eq(self.code),
                    error_addr.eq(Mux(self.code == ErrorCode.NONE, 0, self.error_addr)),
                ]
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(~self.writer_busy):
                    m.d.sync += [self.snapshot.eq(1), n_beats.eq(record_beats)]
                    with m.If(self.write_error & (code == ErrorCode.NONE)):
                        m.d.sync += [code.eq(ErrorCode.WRITE), error_addr.eq(self.write_error_addr)]
                    m.next = "RECORD_COMMAND"
            command("RECORD_COMMAND", completion_addr, "RECORD")
            with m.State("RECORD"):
                m.d.comb += [
                    beats.i.valid.eq(1),
                    beats.i.payload.data.eq(record.word_select(record_beat, 8 * self.bus_bytes)),
                    beats.i.payload.strb.eq(all_bytes),
                ]
                with m.If(last):
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                with m.If(~self.writer_busy):
                    m.d.comb += [
                        self.completed.valid.eq(1),
                        self.completed.code.eq(code),
                        self.completed.error_addr.eq(error_addr),
                        self.completed.sequence.eq(sequence),
                    ]
                    with m.If(self.write_error & (code == ErrorCode.NONE)):
                        m.d.comb += [
                            self.completed.code.eq(ErrorCode.WRITE),
                            self.completed.error_addr.eq(self.write_error_addr),
                        ]
                    m.next = "IDLE"
