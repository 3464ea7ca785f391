"""Sequencer: takes a job from its descriptor to its results, and counts cycles by cause."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from moska.golden.formats import ALIGN, CHUNK_MULTIPLE, MAX_TOKENS
from moska.golden.layout import DESCRIPTOR_BYTES, Opcode, Selection
from moska.golden.router import Router
from moska.hw.control.descriptor import descriptor_layout
from moska.hw.control.fetch import Phase
from moska.hw.router.select import select_job_layout

MAX_ALL_CHUNKS = MAX_TOKENS // CHUNK_MULTIPLE
ADDRESSES = (
    "q_addr", "q_scale_addr", "k_addr", "v_addr", "scale_addr", "rep_addr", "rep_scale_addr",
    "selection_addr", "o_addr", "lse_addr",
)


class ErrorCode(enum.Enum, shape=4):
    """Why a job failed."""

    NONE = 0
    DESCRIPTOR = 1  # a field is out of range
    READ = 2  # a read beat came back with an error response
    WRITE = 3  # a write burst was answered with an error response


class Cause(enum.Enum, shape=4):
    """What a cycle of a job went into."""

    SCORE_ACTIVE = 0
    LOAD = 1
    MEMORY = 2
    QUERY = 3
    SOFTMAX = 4
    SELECT = 5
    DRAIN = 6
    FINISH = 7


class Sequencer(wiring.Component):
    """Run one job at a time.

    Members
    -------
    start : :py:`In(1)`
        ignored while ``busy``
    descriptor_beat : In
        valid and data: beats of the descriptor in order
    loaded : :py:`In(1)`
        pulse: a read command of descriptor, selection, query scales or queries is complete
    fetch : :py:`Out(stream.Signature(Phase))`
    fetch_issuing, fetch_busy : :py:`In(1)`
        commands are left to issue; or slots are in use
    score_active, score_pending : :py:`In(1)`
        a beat enters the score array; a slot or tile waits for its turn
    stalled_memory, stalled_query, stalled_softmax : :py:`In(1)`
    merging, writing : :py:`In(1)`
        the value pass, the drain or the merge; results or write responses
    select : stream to the selector; selected : :py:`In(1)`, pulse when the lists are built
    read_error, write_error : :py:`In(1)`
    clear : Out
        row to mark as empty
    queries_loaded, every : :py:`Out(1)`
        queries are on chip; all chunks are wanted
    results_start, clear_errors, busy, done : :py:`Out(1)`
    error : :py:`Out(ErrorCode)`
        of the job, valid with ``done``
    cause : :py:`Out(Cause)`
        of this cycle, while ``busy``
    rep_shift : :py:`Out(4)`
        log2 of the representatives per chunk

    """

    def __init__(self, *, max_rows, max_chunks, buffer_tokens, bus_bytes, flush_cycles):
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.buffer_tokens = buffer_tokens
        self.bus_bytes = bus_bytes
        self.flush_cycles = flush_cycles
        super().__init__(
            {
                "start": In(1),
                "descriptor_beat": In(data.StructLayout({"valid": 1, "data": 8 * bus_bytes})),
                "loaded": In(1),
                "fetch": Out(stream.Signature(Phase)),
                "fetch_issuing": In(1),
                "fetch_busy": In(1),
                "score_active": In(1),
                "score_pending": In(1),
                "stalled_memory": In(1),
                "stalled_query": In(1),
                "stalled_softmax": In(1),
                "merging": In(1),
                "writing": In(1),
                "select": Out(stream.Signature(select_job_layout(max_rows, max_chunks))),
                "selected": In(1),
                "read_error": In(1),
                "write_error": In(1),
                "job": Out(descriptor_layout()),
                "clear": Out(data.StructLayout({"valid": 1, "row": range(max(max_rows, 2))})),
                "queries_loaded": Out(1),
                "every": Out(1),
                "rep_shift": Out(4),
                "results_start": Out(1),
                "clear_errors": Out(1),
                "busy": Out(1),
                "done": Out(1),
                "error": Out(ErrorCode),
                "cause": Out(Cause),
            }
        )

    def elaborate(self, platform):
        m = Module()

        job = self.job
        with m.If(self.descriptor_beat.valid):
            width = 8 * self.bus_bytes
            if width < 8 * DESCRIPTOR_BYTES:
                shifted = Signal(8 * DESCRIPTOR_BYTES)
                m.d.comb += [
                    shifted[:-width].eq(job.as_value()[width:]),
                    shifted[-width:].eq(self.descriptor_beat.data),
                ]
                m.d.sync += job.eq(shifted)
            else:
                m.d.sync += job.eq(self.descriptor_beat.data)
        m.d.comb += self.every.eq(job.selection == Selection.ALL)
        with m.Switch(job.rep_rows):
            for shift in range(self.buffer_tokens.bit_length()):
                with m.Case(1 << shift):
                    m.d.comb += self.rep_shift.eq(shift)

        legal = Signal()
        self.check(m, legal)

        # Checks that take several steps: n_chunks against n_tokens, rows against group.
        step = Signal(range(18))
        product = Signal(40)  # (n_chunks - 1) * chunk_tokens
        addend = Signal(40)
        factor = Signal(17)
        group_rest = Signal(range(self.max_rows + 1))
        covers = Signal()
        m.d.comb += covers.eq(
            (product < job.n_tokens) & (job.n_tokens <= product + job.chunk_tokens)
        )

        cleared = Signal(range(self.max_rows + 1))
        clearing = Signal()
        n_loaded = Signal(2)
        flush = Signal(range(self.flush_cycles + 1))
        m.d.comb += [
            self.clear.valid.eq(clearing),
            self.clear.row.eq(cleared[: len(self.clear.row)]),
        ]
        with m.If(clearing):
            m.d.sync += cleared.eq(cleared + 1)
            with m.If(cleared == job.n_rows - 1):
                m.d.sync += clearing.eq(0)
        with m.If(self.loaded):
            m.d.sync += n_loaded.eq(n_loaded + 1)

        m.d.comb += [
            self.select.payload.n_rows.eq(job.n_rows),
            self.select.payload.n_chunks.eq(job.n_chunks),
            self.select.payload.k.eq(job.k),
            self.select.payload.keep_first.eq(job.keep_first),
            self.select.payload.keep_last.eq(job.keep_last),
            self.select.payload.group.eq(job.group),
        ]
        routed = Signal()
        explicit = Signal()
        m.d.comb += [
            routed.eq(job.selection == Selection.TOP_K),
            explicit.eq(job.selection == Selection.EXPLICIT),
        ]
        computing = Signal()
        m.d.comb += self.busy.eq(1)
        # The last load of the query phase: scales and queries, after an explicit selection.
        all_loaded = Signal()
        m.d.comb += all_loaded.eq(n_loaded == 2)
        m.d.comb += self.queries_loaded.eq(computing & all_loaded & ~clearing)

        with m.FSM(name="job"):
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                with m.If(self.start):
                    m.d.comb += self.clear_errors.eq(1)
                    m.d.sync += [
                        n_loaded.eq(0), cleared.eq(0), self.error.eq(0)
                    ]
                    m.next = "DESCRIPTOR"
            with m.State("DESCRIPTOR"):
                m.d.comb += [
                    self.cause.eq(Cause.LOAD),
                    self.fetch.valid.eq(1),
                    self.fetch.payload.eq(Phase.DESCRIPTOR),
                ]
                with m.If(self.fetch.ready):
                    m.next = "WAIT_DESCRIPTOR"
            with m.State("WAIT_DESCRIPTOR"):
                m.d.comb += self.cause.eq(Cause.LOAD)
                with m.If(self.loaded):
                    m.d.sync += [step.eq(0), product.eq(0)]
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += self.cause.eq(Cause.LOAD)
                m.d.sync += [
                    n_loaded.eq(0),
                    addend.eq(job.chunk_tokens),
                    factor.eq(job.n_chunks - 1),
                    group_rest.eq(job.n_rows),
                ]
                with m.If(self.read_error):
                    # What arrived is not the descriptor.
                    m.d.sync += self.error.eq(ErrorCode.READ)
                    m.next = "DONE"
                with m.Elif(legal):
                    m.next = "CHECK_PRODUCT"
                with m.Else():
                    m.d.sync += self.error.eq(ErrorCode.DESCRIPTOR)
                    m.next = "DONE"
            with m.State("CHECK_PRODUCT"):
                m.d.comb += self.cause.eq(Cause.LOAD)
                m.d.sync += [step.eq(step + 1), addend.eq(addend << 1), factor.eq(factor >> 1)]
                with m.If(factor[0]):
                    m.d.sync += product.eq(product + addend)
                with m.If(step == 17):
                    m.next = "CHECK_GROUP"
            with m.State("CHECK_GROUP"):
                m.d.comb += self.cause.eq(Cause.LOAD)
                with m.If((job.group > 1) & routed & (group_rest >= job.group)):
                    m.d.sync += group_rest.eq(group_rest - job.group)
                with m.Elif(covers & (~routed | (job.group == 1) | (group_rest == 0))):
                    m.d.sync += clearing.eq(1)
                    m.next = "QUERIES"
                    with m.If(explicit):
                        m.next = "SELECTION"
                with m.Else():
                    m.d.sync += self.error.eq(ErrorCode.DESCRIPTOR)
                    m.next = "DONE"
            with m.State("SELECTION"):
                m.d.comb += [
                    self.cause.eq(Cause.LOAD),
                    self.fetch.valid.eq(1),
                    self.fetch.payload.eq(Phase.SELECTION),
                ]
                with m.If(self.loaded):
                    m.d.sync += n_loaded.eq(0)
                with m.If(self.fetch.ready):
                    m.next = "WAIT_SELECTION"
            with m.State("WAIT_SELECTION"):
                m.d.comb += self.cause.eq(Cause.LOAD)
                with m.If(self.loaded):
                    m.d.sync += n_loaded.eq(0)
                    m.next = "QUERIES"
            with m.State("QUERIES"):
                m.d.comb += [
                    self.cause.eq(Cause.LOAD),
                    self.fetch.valid.eq(1),
                    self.fetch.payload.eq(Phase.QUERIES),
                ]
                with m.If(self.fetch.ready):
                    m.next = "CHUNKS"
                    with m.If(routed):
                        m.next = "REPRESENTATIVES"
            with m.State("REPRESENTATIVES"):
                m.d.comb += [
                    computing.eq(1),
                    self.fetch.valid.eq(1),
                    self.fetch.payload.eq(Phase.REPRESENTATIVES),
                ]
                with m.If(self.fetch.ready):
                    m.next = "ROUTE"
            with m.State("ROUTE"):
                m.d.comb += computing.eq(1)
                m.d.sync += flush.eq(self.flush_cycles)
                with m.If(~self.fetch_busy):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                # The last keys are on their way through the lanes.
                m.d.comb += self.cause.eq(Cause.SELECT)
                m.d.sync += flush.eq(flush - 1)
                with m.If(flush == 0):
                    m.next = "SELECT"
            with m.State("SELECT"):
                m.d.comb += [self.cause.eq(Cause.SELECT), self.select.valid.eq(1)]
                with m.If(self.select.ready):
                    m.next = "WAIT_SELECT"
            with m.State("WAIT_SELECT"):
                m.d.comb += self.cause.eq(Cause.SELECT)
                with m.If(self.selected):
                    m.next = "CHUNKS"
            with m.State("CHUNKS"):
                m.d.comb += [
                    computing.eq(1),
                    self.fetch.valid.eq(1),
                    self.fetch.payload.eq(Phase.CHUNKS),
                ]
                with m.If(self.fetch.ready):
                    m.next = "ATTEND"
            with m.State("ATTEND"):
                m.d.comb += computing.eq(1)
                with m.If(
                    ~self.fetch_busy & ~self.score_pending & ~self.merging & all_loaded & ~clearing
                ):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.d.comb += [self.cause.eq(Cause.FINISH), self.results_start.eq(1)]
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += self.cause.eq(Cause.FINISH)
                with m.If(~self.writing):
                    with m.If(self.read_error):
                        m.d.sync += self.error.eq(ErrorCode.READ)
                    with m.Elif(self.write_error):
                        m.d.sync += self.error.eq(ErrorCode.WRITE)
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += [self.cause.eq(Cause.FINISH), self.done.eq(1)]
                m.next = "IDLE"

        with m.If(computing):
            with m.If(self.score_active):
                m.d.comb += self.cause.eq(Cause.SCORE_ACTIVE)
            with m.Elif(~all_loaded):
                m.d.comb += self.cause.eq(Cause.LOAD)
            with m.Elif(~self.fetch_issuing & ~self.score_pending):
                m.d.comb += self.cause.eq(Cause.DRAIN)
            with m.Elif(self.stalled_softmax):
                m.d.comb += self.cause.eq(Cause.SOFTMAX)
            with m.Elif(self.stalled_query):
                m.d.comb += self.cause.eq(Cause.QUERY)
            with m.Else():
                m.d.comb += self.cause.eq(Cause.MEMORY)

        return m

    def check(self, m, legal):
        """Drive ``legal`` from the fields that can be judged at once."""
        job = self.job
        routed = job.selection == Selection.TOP_K
        rep_ok = Signal()
        with m.Switch(job.rep_rows):
            with m.Case(*(1 << shift for shift in range(self.buffer_tokens.bit_length()))):
                m.d.comb += rep_ok.eq((job.router == Router.ROWS) | ~job.rep_rows[0])
        align_bits = (ALIGN - 1).bit_length()
        aligned = sum(getattr(job, name)[:align_bits] for name in ADDRESSES) == 0
        multiple_bits = (CHUNK_MULTIPLE - 1).bit_length()
        m.d.comb += legal.eq(
            (job.opcode == Opcode.ATTEND)
            & (job.selection <= max(Selection))
            & (job.router <= max(Router))
            & (job.n_rows != 0)
            & (job.n_rows <= self.max_rows)
            & (job.n_tokens != 0)
            & (job.n_tokens <= MAX_TOKENS)
            & (job.n_chunks != 0)
            & (
                (job.n_chunks <= self.max_chunks)
                | ((job.selection == Selection.ALL) & (job.n_chunks <= MAX_ALL_CHUNKS))
            )
            & (job.chunk_tokens != 0)
            & (job.chunk_tokens <= MAX_TOKENS)
            & (job.chunk_tokens[:multiple_bits] == 0)
            & ((job.write_selection == 0) | routed)
            & (~routed | (rep_ok & (job.group != 0)))
            & aligned
        )
