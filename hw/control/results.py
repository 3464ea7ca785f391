"""Results: row states are finished and written to memory, then the selection if asked for."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import O_STATE_WIDTH
from moska.golden.layout import SELECTION_LINE
from moska.hw.control.descriptor import descriptor_layout
from moska.hw.finish import Finisher
from moska.hw.memory.writer import WriteCommand
from moska.hw.router.invert import row_word_bits, vector_cmd_layout
from moska.hw.state import RowMeta, merge_step_layout
from moska.hw.stream import Packer

STATE_FIFO = 8


class Results(wiring.Component):
    """Read the state of rows 0..n_rows-1, finish them, write O, then LSE, then the selection.

    Members
    -------
    start : :py:`In(1)`
        pulse; the job's merges must all be written
    job : :py:`In(descriptor_layout())`
    read : :py:`Out(merge_step_layout(...))`, read_o, read_meta : In
        row state, one cycle later
    vector_cmd, vector : streams to and from the inverter
    cmd, o : streams to the write master
    busy : :py:`Out(1)`
        results are left to be handed to the write master

    """

    def __init__(self, *, max_rows, max_chunks, head_dim, lanes, finish_lanes, bus_bytes):
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.head_dim = head_dim
        self.lanes = lanes
        self.finish_lanes = finish_lanes
        self.bus_bytes = bus_bytes
        self.n_words = head_dim // lanes
        bus_bits = 8 * bus_bytes
        self.row_word_bits = row_word_bits(max_rows)
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor_layout()),
                "read": Out(merge_step_layout(max_rows, self.n_words)),
                "read_o": In(data.ArrayLayout(signed(O_STATE_WIDTH), lanes)),
                "read_meta": In(RowMeta),
                "vector_cmd": Out(stream.Signature(vector_cmd_layout(max_rows, max_chunks))),
                "vector": In(stream.Signature(self.row_word_bits)),
                "cmd": Out(stream.Signature(WriteCommand)),
                "o": Out(
                    stream.Signature(data.StructLayout({"data": bus_bits, "strb": bus_bytes}))
                ),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        job = self.job
        words_per_beat = self.bus_bytes // 4
        m.submodules.finisher = finisher = Finisher(
            head_dim=self.head_dim, lanes=self.finish_lanes
        )
        m.submodules.o_packer = o_packer = Packer(
            width=32 * self.finish_lanes, ratio=words_per_beat // self.finish_lanes
        )
        m.submodules.lse_packer = lse_packer = Packer(width=32, ratio=words_per_beat)
        m.submodules.lse_words = lse_words = SyncFIFOBuffered(
            width=8 * self.bus_bytes, depth=max(2, self.max_rows // words_per_beat)
        )

        self.read_rows(m, finisher)

        # Elements of O: packed to bus words, never a partial one.
        m.d.comb += [
            o_packer.i.payload.data.eq(finisher.result.payload),
            o_packer.i.payload.last.eq(0),
            o_packer.i.valid.eq(finisher.result.valid),
            finisher.result.ready.eq(o_packer.i.ready),
        ]
        lse_row = Signal(range(self.max_rows + 1))
        lse_last = Signal()
        m.d.comb += [
            lse_last.eq(lse_row == job.n_rows - 1),
            lse_packer.i.payload.data.eq(finisher.lse.payload),
            lse_packer.i.payload.last.eq(lse_last),
            lse_packer.i.valid.eq(finisher.lse.valid),
            finisher.lse.ready.eq(lse_packer.i.ready),
            lse_words.w_data.eq(lse_packer.o.payload),
            lse_words.w_en.eq(lse_packer.o.valid),
            lse_packer.o.ready.eq(lse_words.w_rdy),
        ]
        with m.If(finisher.lse.valid & finisher.lse.ready):
            m.d.sync += lse_row.eq(Mux(lse_last, 0, lse_row + 1))

        # Command and beats of O, LSE, selection, one after the other.
        beat = Signal(20)
        n_beats = Signal(20)
        rows_in_last = Signal(range(words_per_beat + 1))
        lse_rest = Signal(range(max(words_per_beat, 2)))
        m.d.comb += [
            self.cmd.payload.n_beats.eq(n_beats),
            lse_rest.eq(job.n_rows & (words_per_beat - 1)),
            rows_in_last.eq(Mux(lse_rest == 0, words_per_beat, lse_rest)),
        ]
        sent = Signal()
        last = Signal()
        m.d.comb += [
            sent.eq(self.o.valid & self.o.ready),
            last.eq(sent & (beat == n_beats - 1)),
        ]
        with m.If(sent):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))

        o_shift = exact_log2(self.head_dim * 4 // self.bus_bytes)
        line_shift = exact_log2(SELECTION_LINE // self.bus_bytes)
        all_bytes = Const(-1, self.bus_bytes)
        idle = Signal()
        m.d.comb += self.busy.eq(~idle)
        with m.FSM(name="results"):
            with m.State("IDLE"):
                m.d.comb += idle.eq(~self.start)
                with m.If(self.start):
                    m.d.sync += n_beats.eq(job.n_rows << o_shift)
                    m.next = "O_COMMAND"
            with m.State("O_COMMAND"):
                m.d.comb += [self.cmd.valid.eq(1), self.cmd.payload.addr.eq(job.o_addr)]
                with m.If(self.cmd.ready):
                    m.next = "O"
            with m.State("O"):
                m.d.comb += [
                    self.o.valid.eq(o_packer.o.valid),
                    self.o.payload.data.eq(o_packer.o.payload),
                    self.o.payload.strb.eq(all_bytes),
                    o_packer.o.ready.eq(self.o.ready),
                ]
                with m.If(last):
                    m.d.sync += n_beats.eq(
                        (job.n_rows + words_per_beat - 1) >> exact_log2(words_per_beat)
                    )
                    m.next = "LSE_COMMAND"
            with m.State("LSE_COMMAND"):
                m.d.comb += [self.cmd.valid.eq(1), self.cmd.payload.addr.eq(job.lse_addr)]
                with m.If(self.cmd.ready):
                    m.next = "LSE"
            with m.State("LSE"):
                strobe = Signal(self.bus_bytes)
                with m.If(beat == n_beats - 1):
                    m.d.comb += strobe.eq((1 << (rows_in_last << 2)) - 1)
                with m.Else():
                    m.d.comb += strobe.eq(all_bytes)
                m.d.comb += [
                    self.o.valid.eq(lse_words.r_rdy),
                    self.o.payload.data.eq(lse_words.r_data),
                    self.o.payload.strb.eq(strobe),
                    lse_words.r_en.eq(self.o.ready),
                ]
                with m.If(last):
                    m.d.sync += n_beats.eq(job.n_chunks << line_shift)
                    m.next = "IDLE"
                    with m.If(job.write_selection != 0):
                        m.next = "SELECTION_COMMAND"
            with m.State("SELECTION_COMMAND"):
                m.d.comb += [self.cmd.valid.eq(1), self.cmd.payload.addr.eq(job.selection_addr)]
                with m.If(self.cmd.ready):
                    m.next = "VECTOR"
            self.write_selection(m, beat, last, line_shift)

        return m

    def read_rows(self, m, finisher):
        """Stream row after row of the state into the finisher."""
        m.submodules.state_words = state_words = SyncFIFO(
            width=self.lanes * O_STATE_WIDTH, depth=STATE_FIFO
        )
        m.submodules.state_meta = state_meta = SyncFIFO(width=RowMeta.as_shape().size, depth=4)
        row = Signal(range(self.max_rows + 1))
        word = Signal(range(max(self.n_words, 2)))
        reading = Signal()
        go = Signal()
        last_word = Signal()
        read_s1 = Signal()
        meta_s1 = Signal()
        m.d.comb += [
            # One read is under way while its predecessor's data enters the FIFO.
            go.eq(
                reading
                & (state_words.level < STATE_FIFO - 1)
                & ((word != 0) | (state_meta.level < 3))
            ),
            last_word.eq(word == self.n_words - 1),
            self.read.valid.eq(go),
            self.read.row.eq(row),
            self.read.word.eq(word),
            state_words.w_en.eq(read_s1),
            state_words.w_data.eq(self.read_o),
            state_meta.w_en.eq(meta_s1),
            state_meta.w_data.eq(self.read_meta),
            finisher.row.valid.eq(state_meta.r_rdy),
            finisher.row.payload.eq(state_meta.r_data),
            state_meta.r_en.eq(finisher.row.ready),
        ]
        m.d.sync += [read_s1.eq(go), meta_s1.eq(go & (word == 0))]
        with m.If(self.start):
            m.d.sync += [reading.eq(1), row.eq(0)]
        with m.If(go):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
            with m.If(last_word):
                m.d.sync += row.eq(row + 1)
                with m.If(row == self.job.n_rows - 1):
                    m.d.sync += reading.eq(0)

        # A state word holds several words of the finisher.
        n_parts = self.lanes // self.finish_lanes
        part = Signal(range(max(n_parts, 2)))
        m.d.comb += [
            finisher.o.valid.eq(state_words.r_rdy),
            finisher.o.payload.eq(
                state_words.r_data.word_select(part, self.finish_lanes * O_STATE_WIDTH)
            ),
            state_words.r_en.eq(finisher.o.ready & (part == n_parts - 1)),
        ]
        with m.If(finisher.o.valid & finisher.o.ready):
            m.d.sync += part.eq(Mux(part == n_parts - 1, 0, part + 1))

    def write_selection(self, m, beat, last, line_shift):
        """States that write one line of row bits per chunk; rows of no request are zero."""
        words_per_beat = self.bus_bytes // 4
        n_row_words = self.max_rows // self.row_word_bits
        word = Signal(range(max(words_per_beat, 2)))
        number = Signal(range(SELECTION_LINE // 4))
        line = Signal(8 * self.bus_bytes)
        bits = Signal(32)
        used = Signal()
        mask = Signal(32)
        m.d.comb += [
            number.eq((beat & ((1 << line_shift) - 1)) * words_per_beat + word),
            used.eq((number < n_row_words) & ((number << 5) < self.job.n_rows)),
            mask.eq(Cat((number << 5) + bit < self.job.n_rows for bit in range(32))),
            bits.eq(Mux(used, self.vector.payload & mask, 0)),
            self.vector_cmd.payload.chunk.eq(
                (beat >> line_shift)[: len(self.vector_cmd.payload.chunk)]
            ),
            self.vector_cmd.payload.row_word.eq(number[: len(self.vector_cmd.payload.row_word)]),
        ]

        def advance():
            m.d.sync += line.word_select(word, 32).eq(bits)
            with m.If(word == words_per_beat - 1):
                m.d.sync += word.eq(0)
                m.next = "SELECTION"
            with m.Else():
                m.d.sync += word.eq(word + 1)
                m.next = "VECTOR"

        with m.State("VECTOR"):
            with m.If(used):
                m.d.comb += self.vector_cmd.valid.eq(1)
                with m.If(self.vector_cmd.ready):
                    m.next = "VECTOR_DATA"
            with m.Else():
                advance()
        with m.State("VECTOR_DATA"):
            m.d.comb += self.vector.ready.eq(1)
            with m.If(self.vector.valid):
                advance()
        with m.State("SELECTION"):
            m.d.comb += [
                self.o.valid.eq(1),
                self.o.payload.data.eq(line),
                self.o.payload.strb.eq(Const(-1, self.bus_bytes)),
            ]
            with m.If(self.o.ready):
                m.next = "VECTOR"
            with m.If(last):
                m.next = "IDLE"
