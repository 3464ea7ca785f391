"""The unit: shared-KV attention behind AXI4 memory and AXI4-Lite registers."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import BLOCK_TOKENS, KV_BITS, Q_BITS, SCALE_BITS
from moska.hw.arrays.score import ScoreArray, lane_rows, score_beat_layout
from moska.hw.arrays.value import ValueArray, value_beat_layout
from moska.hw.control.drain import Drain
from moska.hw.control.fetch import Fetch, Load, Target
from moska.hw.control.gather import QueryGather
from moska.hw.control.results import Results
from moska.hw.control.score_issue import SCORE_BANKS, ScoreIssue, key_tag_layout
from moska.hw.control.sequencer import Cause, ErrorCode, Sequencer
from moska.hw.control.value_issue import ValueIssue
from moska.hw.delay import delayed
from moska.hw.memory.axi import AXI4Lite, AXI4Read, AXI4Write
from moska.hw.memory.buffer import WordBuffer
from moska.hw.memory.reader import ReadMaster
from moska.hw.memory.writer import WriteMaster
from moska.hw.registers import ADDR_WIDTH, RegisterFile, load_map
from moska.hw.router.invert import Inverter
from moska.hw.router.key import ChunkKey
from moska.hw.router.select import Selector
from moska.hw.softmax.lane import SoftmaxLane, score_slot_layout, value_slot_layout
from moska.hw.state import RowState

N_TABLES = 4  # tiles whose row ids are kept: loading, scoring, value pass, merge
KEY_TAGS = 64  # chunks whose router keys may be on their way through a lane


def merge_lane_count(head_dim, fold, query_tile):
    """Elements merged per cycle so that a block drains while the next one computes."""
    return max(1, head_dim * query_tile // (fold * BLOCK_TOKENS))


class Unit(wiring.Component):
    """Memory-side shared-KV attention unit.

    Golden model: :func:`moska.golden.unit.attend`, bit for bit. A job is a descriptor in memory
    (:mod:`moska.golden.layout`) whose address is written to the registers (``regs.rdl``).

    Parameters
    ----------
    head_dim : int
        D, elements of a query, key and value
    fold : int
        beats per token; the arrays have ``head_dim / fold`` columns
    query_tile : int
        rows of the arrays
    bus_width : int
        bits of the memory port
    max_rows, max_chunks : int
        limits of a job
    buffer_tokens, buffer_slots : int
        tokens of a buffer slot, and number of slots
    select_width : int
        chunks that the selector examines per cycle
    max_in_flight : int
        bytes of reads in flight

    Members
    -------
    control : :py:`In(AXI4Lite(12))`
    read : :py:`Out(AXI4Read(bus_width))`
    write : :py:`Out(AXI4Write(bus_width))`
    interrupt : :py:`Out(1)`

    """

    def __init__(
        self,
        *,
        head_dim,
        fold,
        query_tile,
        bus_width,
        max_rows,
        max_chunks,
        buffer_tokens,
        buffer_slots,
        select_width,
        max_in_flight,
    ):
        self.head_dim = head_dim
        self.fold = fold
        self.query_tile = query_tile
        self.bus_width = bus_width
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.buffer_tokens = buffer_tokens
        self.buffer_slots = buffer_slots
        self.select_width = select_width
        self.max_in_flight = max_in_flight

        self.bus_bytes = bus_width // 8
        self.beat_dim = head_dim // fold
        self.lane_rows = lane_rows(fold, query_tile)
        self.n_lanes = query_tile // self.lane_rows
        self.merge_lanes = merge_lane_count(head_dim, fold, query_tile)
        self.finish_lanes = min(self.merge_lanes, self.bus_bytes // 4)
        super().__init__(
            {
                "control": In(AXI4Lite(ADDR_WIDTH)),
                "read": Out(AXI4Read(bus_width)),
                "write": Out(AXI4Write(bus_width)),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        self.memory_side(m)
        self.score_side(m)
        self.value_side(m)
        self.job_control(m)
        self.register_side(m)
        return m

    # ------------------------------------------------------------------------------------------
    # memory side: read master, its targets, write master, results
    # ------------------------------------------------------------------------------------------
    def memory_side(self, m):
        """Read and write masters, buffers, fetch."""
        m.submodules.reader = self.reader = reader = ReadMaster(
            data_width=self.bus_width, max_in_flight=self.max_in_flight
        )
        m.submodules.writer = self.writer = writer = WriteMaster(data_width=self.bus_width)
        m.submodules.fetch = self.fetch = fetch = Fetch(
            max_chunks=self.max_chunks,
            head_dim=self.head_dim,
            bus_bytes=self.bus_bytes,
            buffer_tokens=self.buffer_tokens,
            buffer_slots=self.buffer_slots,
        )
        m.submodules.load = self.load = load = Load(
            data_width=self.bus_width,
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            buffer_slots=self.buffer_slots,
        )
        # Targets wait for their data behind the read master's queue of commands.
        target_shape = load.target.payload.shape()
        m.submodules.targets = targets = SyncFIFO(width=target_shape.size, depth=32)
        m.d.comb += [
            targets.w_en.eq(fetch.target.valid),
            targets.w_data.eq(fetch.target.payload),
            fetch.target.ready.eq(targets.w_rdy),
            load.target.valid.eq(targets.r_rdy),
            load.target.payload.eq(targets.r_data),
            targets.r_en.eq(load.target.ready),
        ]
        wiring.connect(m, fetch=fetch.cmd, reader=reader.cmd)
        wiring.connect(m, reader=reader.o, load=load.i)
        wiring.connect(m, axi=reader.axi, port=wiring.flipped(self.read))
        wiring.connect(m, axi=writer.axi, port=wiring.flipped(self.write))

        m.submodules.results = self.results = results = Results(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            head_dim=self.head_dim,
            lanes=self.merge_lanes,
            finish_lanes=self.finish_lanes,
            bus_bytes=self.bus_bytes,
        )
        wiring.connect(m, results=results.cmd, writer=writer.cmd)
        wiring.connect(m, results=results.o, writer=writer.i)

        tokens = self.buffer_tokens * self.buffer_slots
        beat_bits = self.beat_dim * KV_BITS

        def buffer(name, target, read_width, depth, slot_beats=0):
            """Buffer filled by the beats of ``target``; a slot takes ``slot_beats`` words."""
            m.submodules[name] = result = WordBuffer(
                write_width=self.bus_width, read_width=read_width, depth=depth
            )
            addr = load.beat
            if slot_beats:
                addr = load.beat[: exact_log2(slot_beats)] | (load.slot << exact_log2(slot_beats))
            m.d.comb += [
                result.write.valid.eq(load.strobe[target.value]),
                result.write.addr.eq(addr),
                result.write.data.eq(load.data),
            ]
            return result

        kv_beats = self.buffer_tokens * self.head_dim * KV_BITS // self.bus_width
        scale_beats = max(1, self.buffer_tokens * 2 * SCALE_BITS // self.bus_width)
        scale_depth = self.buffer_slots * scale_beats
        kv_depth = self.buffer_slots * kv_beats
        assert kv_depth * self.bus_width == tokens * self.head_dim * KV_BITS
        self.k_buffer = buffer("k_buffer", Target.KEYS, beat_bits, kv_depth, kv_beats)
        self.v_buffer = buffer("v_buffer", Target.VALUES, beat_bits, kv_depth, kv_beats)
        # Read by both passes, hence twice.
        self.k_scales = buffer(
            "k_scales", Target.SCALES, 2 * SCALE_BITS, scale_depth, scale_beats
        )
        self.v_scales = buffer(
            "v_scales", Target.SCALES, 2 * SCALE_BITS, scale_depth, scale_beats
        )
        self.queries = buffer(
            "queries",
            Target.QUERIES,
            self.beat_dim * Q_BITS,
            self.max_rows * self.head_dim * Q_BITS // self.bus_width,
        )
        self.query_scales = buffer(
            "query_scales",
            Target.QUERY_SCALES,
            SCALE_BITS,
            max(1, self.max_rows * SCALE_BITS // self.bus_width),
        )

    # ------------------------------------------------------------------------------------------
    # score side: queries and keys to scores, router keys
    # ------------------------------------------------------------------------------------------
    def score_side(self, m):
        """Query gather, score array, the lanes' score side, chunk keys."""
        m.submodules.gather = self.gather = gather = QueryGather(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            head_dim=self.head_dim,
            fold=self.fold,
            query_tile=self.query_tile,
            buffer_tokens=self.buffer_tokens,
            n_tables=N_TABLES,
        )
        m.submodules.score_issue = self.score_issue = score_issue = ScoreIssue(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            fold=self.fold,
            query_tile=self.query_tile,
            buffer_tokens=self.buffer_tokens,
            buffer_slots=self.buffer_slots,
            n_tables=N_TABLES,
            n_lanes=self.n_lanes,
        )
        m.submodules.score_array = self.score = score = ScoreArray(
            head_dim=self.head_dim, fold=self.fold, query_tile=self.query_tile
        )
        wiring.connect(m, gather=gather.tile, issue=score_issue.tile)
        m.d.comb += [
            gather.tile_issued.eq(score_issue.tile_issued),
            self.queries.read_addr.eq(gather.q_addr),
            gather.q_data.eq(self.queries.read_data),
            self.query_scales.read_addr.eq(gather.scale_addr),
            gather.scale_data.eq(self.query_scales.read_data),
            score.q.valid.eq(gather.q.valid),
            score.q.row.eq(gather.q.row),
            score.q.bank.eq(gather.q.bank),
            score.q.beat.eq(gather.q.beat),
            score.q.data.eq(gather.q.data),
            score_issue.k_filled.eq(self.load.k_filled),
            self.k_buffer.read_addr.eq(score_issue.k_addr),
            self.k_scales.read_addr.eq(score_issue.scale_addr),
        ]

        # The buffers answer a cycle after the issue.
        issue_s1 = Signal(score_issue.issue.shape())
        m.d.sync += issue_s1.eq(score_issue.issue)
        k_beat = Signal(score_beat_layout(self.head_dim, self.fold))
        scales = Signal(data.StructLayout({"k": SCALE_BITS, "v": SCALE_BITS}))
        m.d.comb += [
            scales.eq(self.k_scales.read_data),
            k_beat.valid.eq(issue_s1.valid),
            k_beat.beat.eq(issue_s1.beat),
            k_beat.bank.eq(issue_s1.bank),
            k_beat.phi.eq(issue_s1.phi),
            k_beat.data.eq(self.k_buffer.read_data),
            score.k.eq(k_beat),
        ]

        # Slot s of a token meets its dot product: beat s, delayed like the last beat's product.
        slot = Signal(score_slot_layout(self.lane_rows, SCORE_BANKS))
        m.d.comb += [
            slot.valid.eq(issue_s1.valid & (issue_s1.beat < self.lane_rows)),
            slot.slot.eq(issue_s1.beat),
            slot.first.eq(issue_s1.first),
            slot.last.eq(issue_s1.last),
            slot.bank.eq(issue_s1.score_bank),
            slot.token.eq(issue_s1.token),
            slot.q_bank.eq(issue_s1.bank),
            slot.k_scale.eq(scales.k),
            slot.v_exponent.eq(scales.v[7:15]),
            slot.representative.eq(issue_s1.representative),
            slot.rep_first.eq(issue_s1.rep_first),
            slot.rep_last.eq(issue_s1.rep_last),
        ]
        slot = delayed(m, slot, self.fold - 1 + score.latency, name="slot")

        # Query scales change when the last product of the bank's tile before has passed.
        q_scale = delayed(m, gather.q_scale, score.latency + 1, name="q_scale")

        self.lanes = []
        self.chunk_keys = []
        for index in range(self.n_lanes):
            m.submodules[f"lane_{index}"] = lane = SoftmaxLane(
                head_dim=self.head_dim, rows=self.lane_rows, banks=SCORE_BANKS
            )
            m.submodules[f"key_{index}"] = chunk_key = ChunkKey(rows=self.lane_rows)
            row_bits = exact_log2(self.lane_rows)
            m.d.comb += [
                lane.dot.eq(score.dots[index]),
                lane.score.eq(slot),
                lane.q_scale.valid.eq(q_scale.valid & ((q_scale.row >> row_bits) == index)),
                lane.q_scale.bank.eq(q_scale.bank),
                lane.q_scale.slot.eq(q_scale.row[:row_bits] if row_bits else 0),
                lane.q_scale.scale.eq(q_scale.scale),
                chunk_key.rep.eq(lane.rep),
            ]
            # The next lane's rows work lane_rows cycles later.
            if index < self.n_lanes - 1:
                slot = delayed(m, slot, self.lane_rows, name=f"slot_{index + 1}")
            self.lanes.append(lane)
            self.chunk_keys.append(chunk_key)

        self.router(m)

    def router(self, m):
        """Chunk keys to selections to query lists."""
        m.submodules.selector = self.selector = selector = Selector(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            width=self.select_width,
            n_lanes=self.n_lanes,
        )
        m.submodules.inverter = self.inverter = inverter = Inverter(
            max_rows=self.max_rows, max_chunks=self.max_chunks, width=self.select_width
        )
        wiring.connect(m, selector=selector.o, inverter=inverter.i)
        wiring.connect(m, gather=self.gather.rows_cmd, inverter=inverter.rows_cmd)
        wiring.connect(m, inverter=inverter.rows, gather=self.gather.rows)
        wiring.connect(m, load=self.load.selection, inverter=inverter.load)
        wiring.connect(m, results=self.results.vector_cmd, inverter=inverter.vector_cmd)
        wiring.connect(m, inverter=inverter.vector, results=self.results.vector)
        m.d.comb += [
            inverter.wanted_chunk.eq(self.fetch.wanted_chunk),
            self.fetch.wanted.eq(inverter.wanted),
        ]

        tag_shape = key_tag_layout(max_rows=self.max_rows, max_chunks=self.max_chunks)
        m.submodules.key_tags = key_tags = SyncFIFO(width=tag_shape.size, depth=KEY_TAGS)
        first_key = self.chunk_keys[0].key
        tag = Signal(tag_shape)
        last_slot = self.lane_rows - 1
        m.d.comb += [
            key_tags.w_en.eq(self.score_issue.key_tag.valid),
            key_tags.w_data.eq(self.score_issue.key_tag.tag),
            tag.eq(key_tags.r_data),
            key_tags.r_en.eq(first_key.valid & (first_key.slot == last_slot)),
        ]
        row_bits = exact_log2(self.lane_rows)
        for index, chunk_key in enumerate(self.chunk_keys):
            key = selector.keys[index]
            row = Signal(range(2 * self.max_rows), name=f"key_row_{index}")
            m.d.comb += [
                row.eq(
                    tag.first_row
                    + (index << row_bits)
                    + (chunk_key.key.slot if row_bits else 0)
                ),
                # Rows beyond the job's belong to a tile that is not full.
                key.valid.eq(chunk_key.key.valid & (row < self.load.n_rows)),
                key.row.eq(row[: len(key.row)]),
                key.chunk.eq(tag.chunk),
                key.key.eq(chunk_key.key.key),
            ]
            if index < self.n_lanes - 1:
                tag = delayed(m, tag, self.lane_rows, name=f"tag_{index + 1}")

    # ------------------------------------------------------------------------------------------
    # value side: probabilities and values to block results to row state
    # ------------------------------------------------------------------------------------------
    def value_side(self, m):
        """Value issue, the lanes' value side, value array, drain, row state."""
        m.submodules.value_issue = self.value_issue = value_issue = ValueIssue(
            fold=self.fold,
            query_tile=self.query_tile,
            buffer_tokens=self.buffer_tokens,
            buffer_slots=self.buffer_slots,
            n_tables=N_TABLES,
        )
        m.submodules.value_array = self.value = value = ValueArray(
            head_dim=self.head_dim,
            fold=self.fold,
            query_tile=self.query_tile,
            merge_lanes=self.merge_lanes,
        )
        wiring.connect(m, score=self.score_issue.block, value=value_issue.block)
        m.d.comb += [
            self.score_issue.block_done.eq(value_issue.block_done),
            value_issue.scored.eq(self.lanes[0].scored),
            value_issue.v_filled.eq(self.load.v_filled),
            self.v_scales.read_addr.eq(value_issue.scale_addr),
        ]

        issue_s1 = Signal(value_issue.issue.shape())
        m.d.sync += issue_s1.eq(value_issue.issue)
        scales = Signal(data.StructLayout({"k": SCALE_BITS, "v": SCALE_BITS}))
        slot = Signal(value_slot_layout(self.lane_rows, SCORE_BANKS))
        m.d.comb += [
            scales.eq(self.v_scales.read_data),
            slot.valid.eq(issue_s1.valid & (issue_s1.beat < self.lane_rows)),
            slot.slot.eq(issue_s1.beat),
            slot.first.eq(issue_s1.first),
            slot.last.eq(issue_s1.last),
            slot.bank.eq(issue_s1.score_bank),
            slot.token.eq(issue_s1.token),
            slot.v_scale.eq(scales.v),
        ]
        for index, lane in enumerate(self.lanes):
            m.d.comb += [lane.value.eq(slot), value.p[index].eq(lane.p)]
            if index < self.n_lanes - 1:
                slot = delayed(m, slot, self.lane_rows, name=f"value_slot_{index + 1}")

        # The value beat meets the probability of slot 0, p_latency after the value slot.
        p_latency = SoftmaxLane.p_latency
        beat = Signal(
            data.StructLayout(
                {
                    "valid": 1,
                    "beat": value_issue.issue.beat.shape(),
                    "first": 1,
                    "last": 1,
                    "addr": value_issue.v_addr.shape(),
                }
            )
        )
        m.d.comb += [
            beat.valid.eq(value_issue.issue.valid),
            beat.beat.eq(value_issue.issue.beat),
            beat.first.eq(value_issue.issue.first),
            beat.last.eq(value_issue.issue.last),
            beat.addr.eq(value_issue.v_addr),
        ]
        read_beat = delayed(m, beat, p_latency, name="value_beat")
        beat_s1 = delayed(m, read_beat, 1, name="value_beat_read")
        v_beat = Signal(value_beat_layout(self.head_dim, self.fold))
        m.d.comb += [
            self.v_buffer.read_addr.eq(read_beat.addr),
            v_beat.valid.eq(beat_s1.valid),
            v_beat.beat.eq(beat_s1.beat),
            v_beat.first.eq(beat_s1.first),
            v_beat.last.eq(beat_s1.last),
            v_beat.data.eq(self.v_buffer.read_data),
            value.v.eq(v_beat),
        ]

        # From the issue of a block's last token to its capture; the margin covers waits of the
        # drain for older merges, which end within the depth of the merge pipeline.
        to_capture = p_latency + 1 + value.latency
        merge_depth = 8
        m.submodules.drain = self.drain = drain = Drain(
            max_rows=self.max_rows,
            query_tile=self.query_tile,
            n_words=self.head_dim // self.merge_lanes,
            n_tables=N_TABLES,
            slack=to_capture - merge_depth,
        )
        m.submodules.state = self.state = state = RowState(
            max_rows=self.max_rows,
            head_dim=self.head_dim,
            lanes=self.merge_lanes,
            block_latency=value.read_latency,
        )
        wiring.connect(m, value=value_issue.drain, drain=drain.block)
        m.d.comb += [
            value_issue.release.eq(drain.release),
            drain.captured.eq(value.captured),
            self.gather.table.eq(drain.table),
            self.gather.position.eq(drain.position),
            self.gather.table_done.eq(drain.table_done),
            drain.row.eq(self.gather.row),
            state.query_row.eq(self.gather.row),
            drain.hazard.eq(state.hazard),
            value.read.row.eq(drain.position),
            value.read.word.eq(drain.word),
            state.step.eq(drain.step),
            state.l.eq(value.stats.l),
            state.ref.eq(value.stats.ref),
            state.pv_ref.eq(value.stats.pv_ref),
            state.o.eq(value.o),
            state.read.eq(self.results.read),
            self.results.read_o.eq(state.read_o),
            self.results.read_meta.eq(state.read_meta),
        ]

    # ------------------------------------------------------------------------------------------
    # job control and registers
    # ------------------------------------------------------------------------------------------
    def job_control(self, m):
        """Sequencer and what it starts."""
        flush = (
            self.fold
            + self.score.latency
            + SoftmaxLane.rep_latency
            + ChunkKey.latency
            + self.query_tile
            + 8
        )
        m.submodules.sequencer = self.sequencer = sequencer = Sequencer(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            buffer_tokens=self.buffer_tokens,
            bus_bytes=self.bus_bytes,
            flush_cycles=flush,
        )
        job = sequencer.job
        wiring.connect(m, sequencer=sequencer.fetch, fetch=self.fetch.start)
        wiring.connect(m, sequencer=sequencer.select, selector=self.selector.start)
        m.d.comb += [
            sequencer.descriptor_beat.valid.eq(self.load.strobe[Target.DESCRIPTOR.value]),
            sequencer.descriptor_beat.data.eq(self.load.data),
            sequencer.loaded.eq(self.load.done),
            sequencer.fetch_issuing.eq(~self.fetch.start.ready),
            sequencer.fetch_busy.eq(self.fetch.busy),
            sequencer.score_active.eq(self.score_issue.issue.valid),
            sequencer.score_pending.eq(self.gather.busy),
            sequencer.stalled_memory.eq(self.score_issue.stalled_memory),
            sequencer.stalled_query.eq(self.score_issue.stalled_query),
            sequencer.stalled_softmax.eq(self.score_issue.stalled_softmax),
            sequencer.merging.eq(
                self.value_issue.busy | self.drain.busy | self.state.busy
            ),
            sequencer.writing.eq(self.results.busy | self.writer.busy),
            sequencer.read_error.eq(self.reader.error),
            sequencer.write_error.eq(self.writer.error),
            self.reader.clear.eq(sequencer.clear_errors),
            self.writer.clear.eq(sequencer.clear_errors),
            self.state.clear.eq(sequencer.clear),
            self.results.start.eq(sequencer.results_start),
            self.results.job.eq(job),
            self.fetch.job.eq(job),
            self.fetch.every.eq(sequencer.every),
            self.fetch.slot_done.eq(self.score_issue.slot_done | self.value_issue.slot_done),
            self.load.n_rows.eq(job.n_rows),
            self.gather.n_rows.eq(job.n_rows),
            self.score_issue.router.eq(job.router),
            self.score_issue.rep_shift.eq(sequencer.rep_shift),
        ]
        for chunk_key in self.chunk_keys:
            m.d.comb += chunk_key.pairs.eq(job.router[0])

        # Slots are seen by the gather once the queries are on chip.
        m.d.comb += [
            self.gather.slot.payload.eq(self.fetch.slot.payload),
            self.gather.slot.valid.eq(self.fetch.slot.valid & sequencer.queries_loaded),
            self.fetch.slot.ready.eq(self.gather.slot.ready & sequencer.queries_loaded),
        ]

        # The lists are complete when the inverter has taken the last word and written it.
        words_done = self.selector.o
        m.d.comb += sequencer.selected.eq(
            delayed(
                m,
                words_done.valid & words_done.ready & words_done.payload.last,
                4,
                name="selected",
            )
        )

    def register_side(self, m):
        """Connect registers, counters and the interrupt."""
        m.submodules.registers = regs = RegisterFile(load_map())
        sequencer = self.sequencer
        wiring.connect(m, bus=regs.axil, port=wiring.flipped(self.control))
        code = Signal(ErrorCode)
        address = Signal(64)
        m.d.comb += [
            sequencer.start.eq(regs.control_start),
            self.fetch.descriptor_addr.eq(Cat(regs.descriptor_lo, regs.descriptor_hi)),
            regs.status_busy.eq(sequencer.busy),
            regs.status_done_set.eq(sequencer.done),
            regs.status_error_set.eq(sequencer.done & (sequencer.error != ErrorCode.NONE)),
            regs.status_error_code.eq(code),
            regs.error_address_lo.eq(address[:32]),
            regs.error_address_hi.eq(address[32:]),
            self.interrupt.eq(regs.control_irq_enable & (regs.status_done | regs.status_error)),
        ]
        with m.If(sequencer.done):
            m.d.sync += code.eq(sequencer.error)
            with m.Switch(sequencer.error):
                with m.Case(ErrorCode.READ):
                    m.d.sync += address.eq(self.reader.error_addr)
                with m.Case(ErrorCode.WRITE):
                    m.d.sync += address.eq(self.writer.error_addr)
                with m.Case(ErrorCode.DESCRIPTOR):
                    m.d.sync += address.eq(self.fetch.descriptor_addr)
                with m.Default():
                    m.d.sync += address.eq(0)

        for name, value in self.parameters().items():
            m.d.comb += getattr(regs, name).eq(value)

        running = Signal()
        m.d.comb += running.eq(sequencer.busy)
        events = {
            "cycles": running,
            "score_active": running & (sequencer.cause == Cause.SCORE_ACTIVE),
            "stall_load": running & (sequencer.cause == Cause.LOAD),
            "stall_memory": running & (sequencer.cause == Cause.MEMORY),
            "stall_query": running & (sequencer.cause == Cause.QUERY),
            "stall_softmax": running & (sequencer.cause == Cause.SOFTMAX),
            "stall_select": running & (sequencer.cause == Cause.SELECT),
            "stall_drain": running & (sequencer.cause == Cause.DRAIN),
            "stall_finish": running & (sequencer.cause == Cause.FINISH),
            "value_active": self.value_issue.issue.valid,
            "read_beats": self.read.rvalid & self.read.rready,
            "write_beats": self.write.wvalid & self.write.wready,
            "chunks_read": self.fetch.chunk_read,
            "chunks_skipped": self.fetch.chunk_skipped,
        }
        for name, event in events.items():
            counter = Signal(32, name=name)
            m.d.comb += getattr(regs, name).eq(counter)
            with m.If(sequencer.clear_errors):
                m.d.sync += counter.eq(0)
            with m.Elif(event):
                m.d.sync += counter.eq(counter + 1)

    def parameters(self):
        """Build parameters as the registers report them."""
        return {
            "head_dim": self.head_dim,
            "fold": self.fold,
            "query_tile": self.query_tile,
            "bus_bytes": self.bus_bytes,
            "max_rows": self.max_rows,
            "max_chunks": self.max_chunks,
            "block_tokens": BLOCK_TOKENS,
            "q_bits": Q_BITS,
            "buffer_tokens": self.buffer_tokens,
            "buffer_slots": self.buffer_slots,
        }
