"""The unit: shared-KV attention behind AXI4 memory and AXI4-Lite registers."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import BLOCK_TOKENS, KV_BITS, Q_BITS, SCALE_BITS
from moska.golden.layout import COUNTERS, padded_size
from moska.hw.arrays.score import ScoreArray, lane_rows, score_beat_layout
from moska.hw.arrays.value import ValueArray, value_beat_layout
from moska.hw.control.checksum import ChecksumCheck
from moska.hw.control.descriptor import ErrorCode
from moska.hw.control.drain import Drain
from moska.hw.control.fetch import Fetch
from moska.hw.control.frontend import Frontend
from moska.hw.control.gather import QueryGather
from moska.hw.control.load import Channel, Load, Target, tag_layout
from moska.hw.control.results import Results
from moska.hw.control.score_issue import SCORE_BANKS, ScoreIssue, key_tag_layout
from moska.hw.control.sequencer import Cause, Sequencer
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

N_TABLES = 8  # tiles whose row ids are kept, from loading to the merge of their last block
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
    contexts : int
        jobs under way at once
    select_width : int
        chunks that the selector examines per cycle
    read_ports : int
        1, or 2: values are read on a port of their own
    max_in_flight : int
        bytes of reads in flight, for each read port

    Members
    -------
    control : :py:`In(AXI4Lite(12))`
    read : :py:`Out(AXI4Read(bus_width, id_width=2))`
    read_v : :py:`Out(AXI4Read(bus_width))`
        with two read ports: values
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
        contexts,
        select_width,
        read_ports,
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
        self.contexts = contexts
        self.read_ports = read_ports
        self.max_in_flight = max_in_flight

        self.bus_bytes = bus_width // 8
        self.beat_dim = head_dim // fold
        self.lane_rows = lane_rows(fold, query_tile)
        self.n_lanes = query_tile // self.lane_rows
        self.merge_lanes = merge_lane_count(head_dim, fold, query_tile)
        self.finish_lanes = min(self.merge_lanes, self.bus_bytes // 4)
        ports = {
            "control": In(AXI4Lite(ADDR_WIDTH)),
            "read": Out(AXI4Read(bus_width, id_width=exact_log2(len(Channel)))),
            "write": Out(AXI4Write(bus_width)),
            "interrupt": Out(1),
        }
        if read_ports == 2:
            ports["read_v"] = Out(AXI4Read(bus_width))
        super().__init__(ports)

    @property
    def read_axi(self):
        """AXI read ports."""
        return [self.read, self.read_v] if self.read_ports == 2 else [self.read]

    def elaborate(self, platform):
        m = Module()

        self.memory_side(m)
        self.score_side(m)
        self.value_side(m)
        self.job_control(m)
        self.register_side(m)
        return m

    # ------------------------------------------------------------------------------------------
    # memory side: masters, what is read where, buffers, checksums
    # ------------------------------------------------------------------------------------------
    def memory_side(self, m):
        """Read and write masters, fetch, buffers, checksums, results."""
        m.submodules.fetch = self.fetch = fetch = Fetch(
            max_chunks=self.max_chunks,
            head_dim=self.head_dim,
            bus_bytes=self.bus_bytes,
            buffer_tokens=self.buffer_tokens,
            buffer_slots=self.buffer_slots,
            n_contexts=self.contexts,
        )
        tag_shape = tag_layout(self.contexts, self.buffer_slots)
        self.readers, self.loads = [], []
        for port in range(self.read_ports):
            suffix = "_v" if port else ""
            reader = ReadMaster(
                data_width=self.bus_width,
                tag_shape=tag_shape,
                n_ids=len(Channel) if port == 0 else 1,
                max_in_flight=self.max_in_flight,
            )
            load = Load(
                data_width=self.bus_width,
                max_rows=self.max_rows,
                max_chunks=self.max_chunks,
                n_contexts=self.contexts,
                buffer_slots=self.buffer_slots,
            )
            m.submodules[f"reader{suffix}"] = reader
            m.submodules[f"load{suffix}"] = load
            wiring.connect(m, axi=reader.axi, port=wiring.flipped(self.read_axi[port]))
            m.d.comb += [
                load.i.valid.eq(reader.o.valid),
                reader.o.ready.eq(load.i.ready),
                *(
                    getattr(load.i.payload, name).eq(getattr(reader.o.payload, name))
                    for name in ("data", "id", "tag", "beat", "last", "bad", "addr")
                ),
            ]
            self.readers.append(reader)
            self.loads.append(load)
        self.load = self.loads[0]
        self.load_v = self.loads[-1]

        # Values go to the last port.
        first, last = self.readers[0].cmd, self.readers[-1].cmd
        m.d.comb += [
            first.valid.eq(fetch.cmd.valid),
            first.payload.eq(fetch.cmd.payload),
            fetch.cmd.ready.eq(first.ready),
        ]
        if self.read_ports == 2:
            values = Signal()
            m.d.comb += [
                values.eq(fetch.cmd.payload.id == Channel.VALUES.value),
                first.valid.eq(fetch.cmd.valid & ~values),
                last.valid.eq(fetch.cmd.valid & values),
                last.payload.addr.eq(fetch.cmd.payload.addr),
                last.payload.n_beats.eq(fetch.cmd.payload.n_beats),
                last.payload.tag.eq(fetch.cmd.payload.tag),
                fetch.cmd.ready.eq(Mux(values, last.ready, first.ready)),
            ]

        m.submodules.checksum = self.checksum = checksum = ChecksumCheck(
            depth=2 * self.buffer_slots, n_contexts=self.contexts
        )
        m.d.comb += [
            checksum.expected.eq(self.load.expected),
            checksum.scales_crc.eq(self.load.scales_crc),
            checksum.keys_crc.eq(self.load.keys_crc),
            checksum.values_crc.eq(self.load_v.values_crc),
        ]

        m.submodules.writer = self.writer = writer = WriteMaster(data_width=self.bus_width)
        m.submodules.results = self.results = results = Results(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            n_contexts=self.contexts,
            head_dim=self.head_dim,
            lanes=self.merge_lanes,
            finish_lanes=self.finish_lanes,
            bus_bytes=self.bus_bytes,
        )
        wiring.connect(m, axi=writer.axi, port=wiring.flipped(self.write))
        wiring.connect(m, results=results.cmd, writer=writer.cmd)
        wiring.connect(m, results=results.o, writer=writer.i)
        m.d.comb += [
            results.writer_busy.eq(writer.busy),
            results.write_error.eq(writer.error),
            results.write_error_addr.eq(writer.error_addr),
            writer.clear.eq(results.clear_write_error),
        ]
        self.buffers(m)

    def buffers(self, m):
        """On-chip memories that the loads fill: slots of the chunk buffer, queries."""

        def buffer(name, target, read_width, area_beats, *, load=self.load, of_context=False):
            """Buffer whose slots, or contexts, take ``area_beats`` bus words each."""
            n_areas = self.contexts if of_context else self.buffer_slots
            m.submodules[name] = result = WordBuffer(
                write_width=self.bus_width, read_width=read_width, depth=area_beats * n_areas
            )
            write = load.write
            area = write.context if of_context else write.slot
            beat_bits = exact_log2(area_beats)
            m.d.comb += [
                result.write.valid.eq(write.strobe[target.value]),
                result.write.addr.eq((write.beat[:beat_bits]) | (area << beat_bits)),
                result.write.data.eq(write.data),
            ]
            return result

        def beats(n_bytes):
            """Bus words of an array, padded as in memory."""
            return padded_size(n_bytes) // self.bus_bytes

        beat_bits = self.beat_dim * KV_BITS
        kv_beats = beats(self.buffer_tokens * self.head_dim * KV_BITS // 8)
        scale_beats = beats(self.buffer_tokens * 2 * SCALE_BITS // 8)
        scale_bits = 2 * SCALE_BITS
        self.k_buffer = buffer("k_buffer", Target.KEYS, beat_bits, kv_beats)
        self.v_buffer = buffer("v_buffer", Target.VALUES, beat_bits, kv_beats, load=self.load_v)
        # Read by both passes, hence twice.
        self.k_scales = buffer("k_scales", Target.SCALES, scale_bits, scale_beats)
        self.v_scales = buffer("v_scales", Target.SCALES, scale_bits, scale_beats)
        self.queries = buffer(
            "queries",
            Target.QUERIES,
            self.beat_dim * Q_BITS,
            beats(self.max_rows * self.head_dim * Q_BITS // 8),
            of_context=True,
        )
        self.query_scales = buffer(
            "query_scales",
            Target.QUERY_SCALES,
            SCALE_BITS,
            beats(self.max_rows * SCALE_BITS // 8),
            of_context=True,
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
            n_contexts=self.contexts,
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
            select_width=self.select_width,
            n_contexts=self.contexts,
        )
        m.submodules.score_array = self.score = score = ScoreArray(
            head_dim=self.head_dim, fold=self.fold, query_tile=self.query_tile
        )
        row_bits = exact_log2(self.max_rows)
        wiring.connect(m, gather=gather.tile, issue=score_issue.tile)
        m.d.comb += [
            gather.tile_issued.eq(score_issue.tile_issued),
            self.queries.read_addr.eq(gather.q_addr),
            gather.q_data.eq(self.queries.read_data),
            # A context's scales are padded to whole lines of memory.
            self.query_scales.read_addr.eq(
                Cat(
                    gather.scale_addr[:row_bits],
                    Const(0, len(self.query_scales.read_addr) - len(gather.scale_addr)),
                    gather.scale_addr[row_bits:],
                )
            ),
            gather.scale_data.eq(self.query_scales.read_data),
            score.q.valid.eq(gather.q.valid),
            score.q.row.eq(gather.q.row),
            score.q.bank.eq(gather.q.bank),
            score.q.beat.eq(gather.q.beat),
            score.q.data.eq(gather.q.data),
            score_issue.k_filled.eq(self.load.keys_filled),
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
        self.route_rows = Signal(range(self.max_rows + 1))
        m.submodules.selector = self.selector = selector = Selector(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            width=self.select_width,
            n_lanes=self.n_lanes,
        )
        # One job is selected while another one's rows are listed.
        m.submodules.inverter = self.inverter = Inverter(
            n_contexts=self.contexts,
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            width=self.select_width,
        )

        tag_shape = key_tag_layout(max_rows=self.max_rows, max_chunks=self.max_chunks)
        m.submodules.key_tags = key_tags = SyncFIFO(width=tag_shape.size, depth=KEY_TAGS)
        first_key = self.chunk_keys[0].key
        key_tag = delayed(m, self.score_issue.key_tag, 1, name="key_tag")
        tag = Signal(tag_shape)
        last_slot = self.lane_rows - 1
        m.d.comb += [
            key_tags.w_en.eq(key_tag.valid),
            key_tags.w_data.eq(key_tag.tag),
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
                key.valid.eq(chunk_key.key.valid & (row < self.route_rows)),
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
            value_issue.v_filled.eq(self.load_v.values_filled),
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
            n_contexts=self.contexts,
            query_tile=self.query_tile,
            n_words=self.head_dim // self.merge_lanes,
            n_tables=N_TABLES,
            slack=to_capture - merge_depth,
        )
        m.submodules.state = self.state = state = RowState(
            max_rows=self.max_rows,
            n_contexts=self.contexts,
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
            state.query_row.eq(drain.step.row),
            drain.hazard.eq(state.hazard),
            value.read.row.eq(drain.block_row),
            value.read.word.eq(drain.step.word),
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
        """Frontend, sequencer, and what they start."""
        m.submodules.frontend = self.frontend = frontend = Frontend(
            head_dim=self.head_dim,
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            buffer_tokens=self.buffer_tokens,
            bus_bytes=self.bus_bytes,
            n_contexts=self.contexts,
        )
        flush = (
            self.fold
            + self.score.latency
            + SoftmaxLane.rep_latency
            + ChunkKey.latency
            + self.query_tile
            + 8
        )
        errors = self.errors()
        m.submodules.sequencer = self.sequencer = sequencer = Sequencer(
            max_rows=self.max_rows,
            max_chunks=self.max_chunks,
            n_contexts=self.contexts,
            head_dim=self.head_dim,
            bus_bytes=self.bus_bytes,
            flush_cycles=flush,
            n_errors=len(errors),
        )
        for port, (valid, event, code) in zip(sequencer.errors, errors, strict=True):
            m.d.comb += [
                port.valid.eq(valid),
                port.context.eq(event.context),
                port.code.eq(code),
                port.addr.eq(event.addr),
            ]
        load, fetch, results = self.load, self.fetch, self.results
        wiring.connect(m, frontend=frontend.job, sequencer=sequencer.job)
        wiring.connect(m, sequencer=sequencer.route, fetch=fetch.route)
        wiring.connect(m, sequencer=sequencer.attend, fetch=fetch.attend)
        wiring.connect(m, sequencer=sequencer.select, selector=self.selector.start)
        wiring.connect(m, sequencer=sequencer.results, results=results.job)

        score_done = delayed(m, self.score_issue.score_done, 1, name="score_done")
        representative_done = delayed(
            m, self.score_issue.issue.representative, 1, name="representative_done"
        )

        # Loads: the sequencer's go first, because their jobs are older than the next descriptor.
        m.d.comb += [
            fetch.load_cmd.valid.eq(sequencer.load_cmd.valid | frontend.cmd.valid),
            sequencer.load_cmd.ready.eq(fetch.load_cmd.ready),
            frontend.cmd.ready.eq(fetch.load_cmd.ready & ~sequencer.load_cmd.valid),
            fetch.load_cmd.payload.eq(sequencer.load_cmd.payload),
        ]
        with m.If(~sequencer.load_cmd.valid):
            m.d.comb += [
                fetch.load_cmd.payload.target.eq(Target.DESCRIPTOR),
                fetch.load_cmd.payload.addr.eq(frontend.cmd.payload.addr),
                fetch.load_cmd.payload.n_beats.eq(frontend.cmd.payload.n_beats),
            ]
        m.d.comb += [
            frontend.beat.valid.eq(load.write.strobe[Target.DESCRIPTOR.value]),
            frontend.beat.data.eq(load.write.data),
            frontend.loaded.eq(load.loaded.valid & (load.loaded.target == Target.DESCRIPTOR)),
            frontend.bad.valid.eq(load.error.valid & (load.error.target == Target.DESCRIPTOR)),
            frontend.bad.addr.eq(load.error.addr),
            frontend.idle_jobs.eq(sequencer.idle_jobs),
            frontend.completed_pulse.eq(results.completed.valid),
            sequencer.frontend_busy.eq(frontend.busy),
            sequencer.loaded.eq(load.loaded),
            sequencer.allocated.eq(fetch.allocated),
            sequencer.none.eq(fetch.none),
            sequencer.score_done.valid.eq(score_done.valid),
            sequencer.score_done.representative.eq(representative_done),
            sequencer.released.eq(results.released),
            sequencer.completed.eq(results.completed.valid),
            sequencer.results_busy.eq(results.busy),
            sequencer.score_active.eq(self.score_issue.issue.valid),
            sequencer.stalled_query.eq(self.score_issue.stalled_query),
            sequencer.stalled_softmax.eq(self.score_issue.stalled_softmax),
            results.code.eq(sequencer.result_code),
            results.error_addr.eq(sequencer.result_error_addr),
            fetch.failed.eq(sequencer.failed),
            fetch.next_listed.eq(sequencer.next_listed),
            fetch.score_done.eq(score_done),
            # Values are read p_latency cycles after their issue.
            fetch.value_done.eq(
                delayed(
                    m, self.value_issue.value_done, SoftmaxLane.p_latency + 1, name="value_done"
                )
            ),
            self.state.clear.eq(sequencer.clear),
            self.gather.n_rows.eq(sequencer.n_rows),
            self.route_rows.eq(sequencer.route_job.n_rows),
            self.score_issue.router.eq(sequencer.route_job.router),
            self.score_issue.rep_shift.eq(sequencer.rep_shift),
        ]
        for part in self.loads:
            m.d.comb += part.n_rows.eq(sequencer.n_rows[sequencer.load_context])
        for chunk_key in self.chunk_keys:
            m.d.comb += chunk_key.pairs.eq(sequencer.route_job.router[0])

        # Slots are seen by the gather once their job's queries are on chip.
        slot_ready = Signal()
        m.d.comb += [
            slot_ready.eq(sequencer.ready.bit_select(fetch.slot.payload.context, 1)),
            self.gather.slot.payload.eq(fetch.slot.payload),
            self.gather.slot.valid.eq(fetch.slot.valid & slot_ready),
            fetch.slot.ready.eq(self.gather.slot.ready & slot_ready),
        ]

        # The job's last merge is written when its last step has passed the merge.
        merged = Signal(sequencer.merged.shape())
        m.d.comb += [
            merged.valid.eq(self.drain.job_done),
            merged.context.eq(self.drain.step.row >> exact_log2(self.max_rows)),
            sequencer.merged.eq(delayed(m, merged, self.state.latency, name="merged")),
        ]
        self.lists(m)

    def errors(self):
        """Errors of jobs under way, the first one before the others: (valid, event, code)."""
        # A bad descriptor is the frontend's: its job has no context yet.
        reads = [
            (load.error.valid & (load.error.target != Target.DESCRIPTOR), load.error)
            for load in self.loads
        ]
        return [
            *((valid, event, ErrorCode.READ) for valid, event in reads),
            (self.checksum.error.valid, self.checksum.error, ErrorCode.CHECKSUM),
        ]

    def lists(self, m):
        """Connect the inverter to who uses it, each with its context."""
        inverter, sequencer, fetch = self.inverter, self.sequencer, self.fetch
        load, gather, results = self.load, self.gather, self.results
        wiring.connect(m, selector=self.selector.o, inverter=inverter.i)
        wiring.connect(m, load=load.selection, inverter=inverter.load)
        wiring.connect(m, gather=gather.rows_cmd, inverter=inverter.rows_cmd)
        wiring.connect(m, inverter=inverter.rows, gather=gather.rows)
        wiring.connect(m, results=results.vector_cmd, inverter=inverter.vector_cmd)
        wiring.connect(m, inverter=inverter.vector, results=results.vector)
        m.d.comb += [
            inverter.i_context.eq(sequencer.select_context),
            inverter.load_context.eq(load.selection_context),
            inverter.wanted_context.eq(sequencer.attend_context),
            inverter.rows_context.eq(gather.rows_cmd_context),
            inverter.vector_context.eq(results.vector_context),
            inverter.wanted_chunk.eq(fetch.wanted_chunk),
            fetch.wanted.eq(inverter.wanted),
            sequencer.selected.eq(inverter.stored),
        ]

    def register_side(self, m):
        """Connect registers, windows, counters and the interrupt."""
        m.submodules.registers = regs = RegisterFile(load_map())
        sequencer, frontend, results = self.sequencer, self.frontend, self.results
        wiring.connect(m, bus=regs.axil, port=wiring.flipped(self.control))

        def pair(name):
            """64-bit value of two registers."""
            return Cat(getattr(regs, f"{name}_lo"), getattr(regs, f"{name}_hi"))

        faults = [reader.fault for reader in self.readers]
        m.d.comb += [
            frontend.enable.eq(regs.control_enable),
            frontend.ring_addr.eq(pair("ring")),
            frontend.completion_addr.eq(pair("completion")),
            frontend.ring_size.eq(regs.ring_size),
            frontend.tail.eq(regs.tail),
            frontend.tail_written.eq(regs.tail_swmod),
            regs.head.eq(frontend.head),
            regs.completed.eq(frontend.completed),
            regs.status_busy.eq(sequencer.busy),
            regs.status_jobs.eq(sequencer.n_jobs),
            regs.status_read_fault.eq(Cat(faults).any()),
            regs.status_write_fault.eq(self.writer.fault),
            sequencer.timeout.eq(regs.timeout),
            frontend.read_base.eq(pair("read_base")),
            frontend.read_limit.eq(pair("read_limit")),
            frontend.write_base.eq(pair("write_base")),
            frontend.write_limit.eq(pair("write_limit")),
            self.writer.window_base.eq(pair("write_base")),
            self.writer.window_limit.eq(pair("write_limit")),
        ]
        for reader in self.readers:
            m.d.comb += [
                reader.window_base.eq(pair("read_base")),
                reader.window_limit.eq(pair("read_limit")),
            ]
        for name, value in self.parameters().items():
            m.d.comb += getattr(regs, name).eq(value)

        # Events, and the first error since the last one was cleared.
        completed = results.completed
        job_error = Signal()
        code = Signal(ErrorCode)
        addr = Signal(64)
        sequence = Signal(32)
        m.d.comb += [
            job_error.eq(completed.valid & (completed.code != ErrorCode.NONE)),
            regs.event_done_set.eq(completed.valid),
            regs.event_error_set.eq(job_error | frontend.ring_error.valid),
            self.interrupt.eq(
                (regs.event_done & regs.mask_done) | (regs.event_error & regs.mask_error)
            ),
            regs.error_code.eq(code),
            regs.error_sequence.eq(sequence),
            regs.error_address_lo.eq(addr[:32]),
            regs.error_address_hi.eq(addr[32:]),
        ]
        with m.If(~regs.event_error):
            with m.If(job_error):
                m.d.sync += [
                    code.eq(completed.code),
                    addr.eq(completed.error_addr),
                    sequence.eq(completed.sequence),
                ]
            with m.Elif(frontend.ring_error.valid):
                m.d.sync += [
                    code.eq(frontend.ring_error.code),
                    addr.eq(frontend.ring_error.addr),
                    sequence.eq(0),
                ]
        self.counters(m, regs)

    def counters(self, m, regs):
        """Count between completions; show and record the counts of the last one."""
        sequencer, results = self.sequencer, self.results
        events = {
            "cycles": 1,
            **{
                name: sequencer.cause == cause
                for name, cause in {
                    "score_active": Cause.SCORE_ACTIVE,
                    "stall_load": Cause.LOAD,
                    "stall_memory": Cause.MEMORY,
                    "stall_query": Cause.QUERY,
                    "stall_softmax": Cause.SOFTMAX,
                    "stall_select": Cause.SELECT,
                    "stall_drain": Cause.DRAIN,
                    "stall_finish": Cause.FINISH,
                }.items()
            },
            "value_active": self.value_issue.issue.valid,
            "read_beats": sum(
                (axi.rvalid & axi.rready for axi in self.read_axi), start=Const(0, 1)
            ),
            "write_beats": self.write.wvalid & self.write.wready,
            "chunks_read": self.fetch.chunk_read,
            "chunks_skipped": self.fetch.chunk_skipped,
        }
        assert tuple(events) == COUNTERS
        # All a cycle late, as the snapshot is: no path goes from a state through its cause into a
        # counter.
        busy_s1 = Signal()
        m.d.sync += busy_s1.eq(sequencer.busy)
        for name, event in events.items():
            count = Signal(32, name=name)
            event_s1 = Signal(Value.cast(event).shape(), name=f"{name}_s1")
            m.d.sync += event_s1.eq(event)
            last = Signal(32, name=f"last_{name}")
            m.d.comb += [
                getattr(results.record, name).eq(count),
                getattr(regs, name).eq(last),
            ]
            with m.If(~busy_s1):
                m.d.sync += count.eq(0)
            with m.Elif(results.snapshot):
                m.d.sync += [last.eq(count), count.eq(event_s1)]
            with m.Else():
                m.d.sync += count.eq(count + event_s1)
        for name, event in {
            "jobs": results.completed.valid,
            "errors": results.completed.valid & (results.completed.code != ErrorCode.NONE),
        }.items():
            total = Signal(32, name=f"total_{name}")
            m.d.comb += getattr(regs, name).eq(total)
            m.d.sync += total.eq(total + event)

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
            "contexts": self.contexts,
            "read_ports": self.read_ports,
        }
