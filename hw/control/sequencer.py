"""Sequencer: takes jobs through their stages, several at once, and names what cycles go into."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import ALIGN, Q_BITS, SCALE_BITS
from moska.golden.layout import SELECTION_LINE, Opcode, Selection
from moska.hw.control.descriptor import ErrorCode, descriptor_layout, frontend_job_layout
from moska.hw.control.fetch import fetch_job_layout, load_command_layout
from moska.hw.control.load import Target
from moska.hw.control.results import results_job_layout
from moska.hw.router.select import select_job_layout


class Cause(enum.Enum, shape=4):
    """What a cycle went into."""

    SCORE_ACTIVE = 0
    LOAD = 1
    MEMORY = 2
    QUERY = 3
    SOFTMAX = 4
    SELECT = 5
    DRAIN = 6
    FINISH = 7


def error_layout(n_contexts):
    """Struct of an error of a job: what happened at which address."""
    return data.StructLayout(
        {"valid": 1, "context": range(n_contexts), "code": ErrorCode, "addr": 64}
    )


class Sequencer(wiring.Component):
    """Hold the jobs under way and start each of their stages.

    A job takes the next context and passes through the stages in order, each of which holds one
    job at a time: load (selection, queries, empty row state), route (representatives, selection),
    attend (chunks), results. A job whose descriptor was refused, and a fence, pass through all of
    them without work. A job that fails on its way is not given up but cut short (``failed``), so
    every stage sees its end.

    Parameters
    ----------
    max_rows, max_chunks, n_contexts, head_dim, bus_bytes : int
    flush_cycles : int
        from the last beat of a representative to its key in the selector, at most

    Members
    -------
    job : :py:`In(stream.Signature(frontend_job_layout()))`
        checked descriptors
    frontend_busy : :py:`In(1)`
        a descriptor is on its way
    load_cmd : :py:`Out(stream.Signature(load_command_layout(n_contexts)))`
    loaded : In
        valid, target, context: a load is complete
    clear : Out
        row of a context to mark as empty
    ready : :py:`Out(n_contexts)`
        queries are on chip and the row state is empty
    route, attend : :py:`Out(stream.Signature(fetch_job_layout(n_contexts)))`
    next_listed : :py:`Out(1)`
        a job behind the one on ``attend`` has its chunks selected
    allocated : In
        valid, representative: a slot was allocated
    none : :py:`In(1)`
        the job on ``attend`` reads no chunk
    score_done : In
        valid, representative: the score array has taken the last beat of a slot
    select : stream to the selector; selected : :py:`In(1)`, pulse when the lists are built
    merged : In
        valid, context: the last block of a job is merged
    results : :py:`Out(stream.Signature(results_job_layout(n_contexts)))`
    result_code, result_error_addr : Out
        of the job on ``results``, as known now
    released : :py:`In(1)`
        the results need the job's context no more
    completed : :py:`In(1)`
        pulse: a completion is written
    results_busy : :py:`In(1)`
    errors : :py:`In(ArrayLayout(error_layout(n_contexts), n_errors))`
        errors of jobs on their way; the first one of a job counts
    timeout : :py:`In(32)`
        cycles between completions, 0: no limit
    score_active, stalled_query, stalled_softmax : :py:`In(1)`
        a beat enters the score array, or why none does
    failed : :py:`Out(n_contexts)`
    route_job : :py:`Out(descriptor_layout())`, rep_shift : :py:`Out(4)`
        of the job being routed: constants of the score side
    load_context, select_context, attend_context, results_context : Out
    n_rows : :py:`Out(ArrayLayout(range(max_rows + 1), n_contexts))`
    n_jobs : :py:`Out(range(n_contexts + 1))`
        jobs that hold a context
    idle_jobs : :py:`Out(1)`
        no job is under way behind the frontend
    busy : :py:`Out(1)`
    cause : :py:`Out(Cause)`
        of this cycle, while ``busy``

    """

    def __init__(
        self, *, max_rows, max_chunks, n_contexts, head_dim, bus_bytes, flush_cycles, n_errors
    ):
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.n_contexts = n_contexts
        self.head_dim = head_dim
        self.bus_bytes = bus_bytes
        self.flush_cycles = flush_cycles
        self.n_errors = n_errors
        context = range(n_contexts)
        fetch_job = stream.Signature(fetch_job_layout(n_contexts))
        representative = data.StructLayout({"valid": 1, "representative": 1})
        super().__init__(
            {
                "job": In(stream.Signature(frontend_job_layout())),
                "frontend_busy": In(1),
                "load_cmd": Out(stream.Signature(load_command_layout(n_contexts))),
                "loaded": In(
                    data.StructLayout({"valid": 1, "target": Target, "context": context})
                ),
                "clear": Out(
                    data.StructLayout({"valid": 1, "row": range(n_contexts * max_rows)})
                ),
                "ready": Out(n_contexts),
                "route": Out(fetch_job),
                "attend": Out(fetch_job),
                "next_listed": Out(1),
                "allocated": In(representative),
                "none": In(1),
                "score_done": In(representative),
                "select": Out(stream.Signature(select_job_layout(max_rows, max_chunks))),
                "selected": In(1),
                "merged": In(data.StructLayout({"valid": 1, "context": context})),
                "results": Out(stream.Signature(results_job_layout(n_contexts))),
                "result_code": Out(ErrorCode),
                "result_error_addr": Out(64),
                "released": In(1),
                "completed": In(1),
                "results_busy": In(1),
                "errors": In(data.ArrayLayout(error_layout(n_contexts), n_errors)),
                "timeout": In(32),
                "score_active": In(1),
                "stalled_query": In(1),
                "stalled_softmax": In(1),
                "failed": Out(n_contexts),
                "route_job": Out(descriptor_layout()),
                "rep_shift": Out(4),
                "load_context": Out(context),
                "select_context": Out(context),
                "attend_context": Out(context),
                "results_context": Out(context),
                "n_rows": Out(data.ArrayLayout(range(max_rows + 1), n_contexts)),
                "n_jobs": Out(range(n_contexts + 1)),
                "idle_jobs": Out(1),
                "busy": Out(1),
                "cause": Out(Cause),
            }
        )

    def elaborate(self, platform):
        m = Module()

        self.jobs = [
            Signal(frontend_job_layout(), name=f"job_{index}") for index in range(self.n_contexts)
        ]
        # Stages that a context's job has behind it.
        self.occupied = Signal(self.n_contexts)
        self.issued = Signal(self.n_contexts)  # its loads are requested
        self.listed = Signal(self.n_contexts)  # which rows attend to which chunk is known
        self.fetched = Signal(self.n_contexts)  # its chunks are requested
        self.attended = Signal(self.n_contexts)  # its last block is merged
        self.idle = Signal(self.n_contexts)  # nothing to compute: refused, or a fence

        m.d.comb += [
            self.n_rows[index].eq(self.jobs[index].descriptor.n_rows)
            for index in range(self.n_contexts)
        ]
        self.errors_of_jobs(m)
        loading = self.load_stage(m)
        routing, selecting = self.route_stage(m)
        attending = self.attend_stage(m)
        self.result_stage(m)
        self.causes(m, loading, routing, selecting, attending)
        return m

    def job_of(self, m, context, name):
        """Return a register that holds the job of ``context``, from its second cycle on.

        A descriptor is wide: what a stage does with it must not begin with the choice among jobs.
        """
        job = Signal(frontend_job_layout(), name=name)
        with m.Switch(context):
            for index, held in enumerate(self.jobs):
                with m.Case(index):
                    m.d.sync += job.eq(held)
        return job

    def flag(self, m, flags, context):
        """Set the bit of ``context``."""
        m.d.sync += flags.bit_select(context, 1).eq(1)

    def errors_of_jobs(self, m):
        """Keep the first error of every job; watch the time."""
        interval = Signal(32)
        expired = Signal()
        oldest = self.results_context
        # The time of a job begins with the completion before it, not with that job's release.
        unanswered = Signal()
        with m.If(self.released):
            m.d.sync += unanswered.eq(1)
        with m.Elif(self.completed):
            m.d.sync += unanswered.eq(0)
        m.d.comb += expired.eq(
            (self.timeout != 0)
            & ~unanswered
            & (interval >= self.timeout)
            & self.occupied.bit_select(oldest, 1)
        )
        with m.If(self.completed | self.idle_jobs):
            m.d.sync += interval.eq(0)
        with m.Elif(interval != (1 << 32) - 1):
            m.d.sync += interval.eq(interval + 1)

        for index in range(self.n_contexts):
            job = self.jobs[index]
            m.d.comb += self.failed[index].eq(job.code != ErrorCode.NONE)
            with m.If(self.occupied[index] & (job.code == ErrorCode.NONE)):
                with m.If(expired & (oldest == index)):
                    m.d.sync += job.code.eq(ErrorCode.TIMEOUT)
                for error in reversed(range(self.n_errors)):
                    event = self.errors[error]
                    with m.If(event.valid & (event.context == index)):
                        m.d.sync += [job.code.eq(event.code), job.error_addr.eq(event.addr)]

    def load_stage(self, m):
        """Take a job into the next context; load its selection and queries; empty its rows."""
        context = self.load_context
        job = Signal(frontend_job_layout(), name="load_job")
        descriptor = job.descriptor
        word_bits = exact_log2(self.bus_bytes)

        def beats(count, size):
            """Beats of ``count`` items of ``size`` bytes, rounded up to ALIGN bytes."""
            lines = (count * size + ALIGN - 1) >> exact_log2(ALIGN)
            return lines << (exact_log2(ALIGN) - word_bits)

        clearing = Signal()
        cleared = Signal(range(self.max_rows))
        m.d.comb += [
            self.clear.valid.eq(clearing),
            self.clear.row.eq(Cat(cleared, context)),
        ]
        with m.If(clearing):
            m.d.sync += cleared.eq(cleared + 1)
            with m.If(cleared == descriptor.n_rows - 1):
                m.d.sync += clearing.eq(0)
        complete = Signal()  # the queries have come
        with m.If(
            self.loaded.valid
            & (self.loaded.target == Target.QUERIES)
            & (self.loaded.context == context)
        ):
            m.d.sync += complete.eq(1)

        loading = Signal(init=1)
        command = self.load_cmd.payload
        m.d.comb += command.context.eq(context)

        def state(name, target, addr, n_beats, following):
            with m.State(name):
                m.d.comb += [
                    self.load_cmd.valid.eq(1),
                    command.target.eq(target),
                    command.addr.eq(addr),
                    command.n_beats.eq(n_beats),
                ]
                with m.If(self.load_cmd.ready):
                    m.next = following

        with m.FSM(name="load"):
            with m.State("IDLE"):
                m.d.comb += [
                    loading.eq(0),
                    self.job.ready.eq(~self.occupied.bit_select(context, 1)),
                ]
                m.d.sync += [cleared.eq(0), complete.eq(0)]
                with m.If(self.job.valid & self.job.ready):
                    m.d.sync += job.eq(self.job.payload)
                    for index, held in enumerate(self.jobs):
                        with m.If(context == index):
                            m.d.sync += held.eq(self.job.payload)
                    self.flag(m, self.occupied, context)
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                with m.If((job.code != ErrorCode.NONE) | (descriptor.opcode == Opcode.FENCE)):
                    self.flag(m, self.idle, context)
                    self.flag(m, self.issued, context)
                    self.flag(m, self.ready, context)
                    m.d.sync += context.eq(context + 1)
                    m.next = "IDLE"
                with m.Else():
                    m.d.sync += clearing.eq(1)
                    m.next = "QUERY_SCALES"
                    with m.If(descriptor.selection == Selection.EXPLICIT):
                        m.next = "SELECTION"
            state(
                "SELECTION",
                Target.SELECTION,
                descriptor.selection_addr,
                descriptor.n_chunks << (exact_log2(SELECTION_LINE) - word_bits),
                "QUERY_SCALES",
            )
            state(
                "QUERY_SCALES",
                Target.QUERY_SCALES,
                descriptor.q_scale_addr,
                beats(descriptor.n_rows, SCALE_BITS // 8),
                "QUERIES",
            )
            state(
                "QUERIES",
                Target.QUERIES,
                descriptor.q_addr,
                beats(descriptor.n_rows, self.head_dim * Q_BITS // 8),
                "WAIT",
            )
            with m.State("WAIT"):
                self.flag(m, self.issued, context)
                with m.If(complete & ~clearing):
                    self.flag(m, self.ready, context)
                    m.d.sync += context.eq(context + 1)
                    m.next = "IDLE"
        return loading

    def route_stage(self, m):
        """Have representatives scored and chunks selected."""
        context = self.select_context
        job = self.job_of(m, context, "routed_job")
        m.d.comb += [
            self.route_job.eq(job.descriptor),
            self.rep_shift.eq(job.rep_shift),
            self.route.payload.context.eq(context),
            self.route.payload.descriptor.eq(job.descriptor),
            self.route.payload.rep_shift.eq(job.rep_shift),
            self.select.payload.n_rows.eq(job.descriptor.n_rows),
            self.select.payload.n_chunks.eq(job.descriptor.n_chunks),
            self.select.payload.k.eq(job.descriptor.k),
            self.select.payload.keep_first.eq(job.descriptor.keep_first),
            self.select.payload.keep_last.eq(job.descriptor.keep_last),
            self.select.payload.group.eq(job.descriptor.group),
        ]
        slots = Signal(6)  # of representatives that the score array has not finished
        m.d.sync += slots.eq(
            slots
            + (self.allocated.valid & self.allocated.representative)
            - (self.score_done.valid & self.score_done.representative)
        )
        flush = Signal(range(self.flush_cycles + 1))

        def bit(flags):
            return flags.bit_select(context, 1)

        def advance():
            self.flag(m, self.listed, context)
            m.d.sync += context.eq(context + 1)
            m.next = "TURN"

        routing = Signal()
        selecting = Signal()
        # Slots of representatives would hold up the chunks behind them until the queries are there.
        others = Signal()
        m.d.comb += others.eq((self.occupied & ~self.attended & ~(1 << context)) != 0)
        with m.FSM(name="route"):
            with m.State("TURN"):
                m.next = "IDLE"  # with the job of the next context
            with m.State("IDLE"):
                with m.If(bit(self.issued) & ~bit(self.listed)):
                    with m.If(bit(self.idle) | (job.descriptor.selection == Selection.ALL)):
                        advance()
                    with m.Elif(job.descriptor.selection == Selection.EXPLICIT):
                        with m.If(bit(self.ready)):
                            advance()
                    with m.Elif(bit(self.ready) | ~others):
                        m.next = "REPRESENTATIVES"
            with m.State("REPRESENTATIVES"):
                m.d.comb += [routing.eq(1), self.route.valid.eq(1)]
                m.d.sync += flush.eq(self.flush_cycles)
                with m.If(self.route.ready):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                # The last keys are on their way through the lanes.
                m.d.comb += selecting.eq(1)
                with m.If(slots == 0):
                    m.d.sync += flush.eq(flush - 1)
                    with m.If(flush == 0):
                        m.next = "SELECT"
            with m.State("SELECT"):
                m.d.comb += [selecting.eq(1), self.select.valid.eq(1)]
                with m.If(self.select.ready):
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.comb += selecting.eq(1)
                with m.If(self.selected):
                    advance()
        return routing, selecting

    def attend_stage(self, m):
        """Have chunks read."""
        context = self.attend_context
        job = self.job_of(m, context, "attending_job")
        m.d.comb += [
            self.attend.payload.context.eq(context),
            self.attend.payload.descriptor.eq(job.descriptor),
            self.attend.payload.rep_shift.eq(job.rep_shift),
            self.next_listed.eq((self.listed & ~self.fetched & ~(1 << context)) != 0),
        ]
        attending = Signal()
        with m.FSM(name="attend"):
            with m.State("TURN"):
                m.next = "IDLE"  # with the job of the next context
            with m.State("IDLE"):
                with m.If(
                    self.listed.bit_select(context, 1) & ~self.fetched.bit_select(context, 1)
                ):
                    with m.If(
                        self.idle.bit_select(context, 1)
                        | (job.descriptor.opcode == Opcode.ROUTE)
                    ):
                        self.flag(m, self.fetched, context)
                        self.flag(m, self.attended, context)
                        m.d.sync += context.eq(context + 1)
                        m.next = "TURN"
                    with m.Else():
                        m.next = "CHUNKS"
            with m.State("CHUNKS"):
                m.d.comb += [attending.eq(1), self.attend.valid.eq(1)]
                with m.If(self.attend.ready):
                    self.flag(m, self.fetched, context)
                    m.d.sync += context.eq(context + 1)
                    m.next = "TURN"
        with m.If(self.none):
            self.flag(m, self.attended, context)
        with m.If(self.merged.valid):
            self.flag(m, self.attended, self.merged.context)
        return attending

    def result_stage(self, m):
        """Have results written in the order of the jobs; free their contexts."""
        context = self.results_context
        job = self.job_of(m, context, "ending_job")
        payload = self.results.payload
        written = Signal()
        m.d.comb += [
            written.eq(~self.idle.bit_select(context, 1)),
            payload.context.eq(context),
            payload.descriptor.eq(job.descriptor),
            payload.attend.eq(written & (job.descriptor.opcode == Opcode.ATTEND)),
            payload.select.eq(written & (job.descriptor.write_selection != 0)),
            payload.sequence.eq(job.sequence),
            payload.completion_addr.eq(job.completion_addr),
        ]
        # Errors may still come, and count at once.
        with m.Switch(context):
            for index, held in enumerate(self.jobs):
                with m.Case(index):
                    m.d.comb += [
                        self.result_code.eq(held.code),
                        self.result_error_addr.eq(held.error_addr),
                    ]
        taken = Signal()
        turning = Signal()  # the job of the next context is on its way to the register
        m.d.sync += turning.eq(self.released)
        m.d.comb += self.results.valid.eq(
            (self.occupied & self.attended & self.ready).bit_select(context, 1)
            & ~taken
            & ~turning
        )
        with m.If(self.results.valid & self.results.ready):
            m.d.sync += taken.eq(1)
        with m.If(self.released):
            m.d.sync += [taken.eq(0), context.eq(context + 1)]
            for flags in (
                self.occupied, self.issued, self.ready, self.listed, self.fetched, self.attended,
                self.idle,
            ):
                m.d.sync += flags.bit_select(context, 1).eq(0)
        m.d.comb += [
            self.idle_jobs.eq((self.occupied == 0) & ~self.results_busy),
            self.busy.eq(~self.idle_jobs | self.frontend_busy | self.job.valid),
            self.n_jobs.eq(sum(self.occupied)),
        ]

    def causes(self, m, loading, routing, selecting, attending):
        """Say what this cycle goes into: the score array's beat, or what it waits for."""
        pending = Signal(6)  # slots that the score array has not finished
        m.d.sync += pending.eq(pending + self.allocated.valid - self.score_done.valid)
        computing = Signal()
        m.d.comb += computing.eq((self.occupied & self.listed & ~self.attended) != 0)
        with m.If(self.score_active):
            m.d.comb += self.cause.eq(Cause.SCORE_ACTIVE)
        with m.Elif((pending != 0) & self.stalled_softmax):
            m.d.comb += self.cause.eq(Cause.SOFTMAX)
        with m.Elif((pending != 0) & self.stalled_query):
            m.d.comb += self.cause.eq(Mux(loading, Cause.LOAD, Cause.QUERY))
        with m.Elif((pending != 0) | routing | attending):
            m.d.comb += self.cause.eq(Cause.MEMORY)
        with m.Elif(selecting):
            m.d.comb += self.cause.eq(Cause.SELECT)
        with m.Elif(loading | (self.frontend_busy & ~self.job.valid)):
            m.d.comb += self.cause.eq(Cause.LOAD)
        with m.Elif(computing):
            m.d.comb += self.cause.eq(Cause.DRAIN)
        with m.Else():
            m.d.comb += self.cause.eq(Cause.FINISH)
