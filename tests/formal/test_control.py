"""Proofs: jobs pass through the sequencer, descriptors through the frontend; nothing gets stuck.

The neighbours are environments that answer anything, in any cycle, but at last.
"""

import pytest
from amaranth.hdl import Array, Cat, Const, Fragment, Mux, Signal, Value
from amaranth.utils import exact_log2

from moska.golden.formats import MAX_TOKENS
from moska.golden.layout import DESCRIPTOR_BYTES, Opcode, Selection
from moska.hw.control.check import N_WORDS, WindowCheck
from moska.hw.control.descriptor import ErrorCode
from moska.hw.control.frontend import Frontend
from moska.hw.control.load import Target
from moska.hw.control.sequencer import Sequencer
from moska.sim.formal import Bug, Harness, Proof, check_held

pytestmark = pytest.mark.formal

N_CONTEXTS = 2
MAX_ROWS = 2
ANSWER = 2  # cycles within which a neighbour answers
LOAD = 3  # and memory: after all that may be begun without waiting for it
STALL = 6  # cycles without any step of any job; a job has 23 steps at most, so all are completed


def answered(h, name, waiting, answer, cycles=ANSWER):
    """Assume that ``answer`` comes while ``waiting``, and in one of the first ``cycles`` of it."""
    count = Signal(range(cycles + 1), name=f"{name}_wait")
    h.m.d.sync += count.eq(Mux(waiting & ~answer, count + 1, 0))
    h.assume(~answer | waiting)
    h.assume(~waiting | answer | (count < cycles - 1))


def sequencer():
    """Jobs of any kind, in any mixture: each stage in order, each condition met, none stuck.

    The time limit is off: a job that is late is one with an error, and errors are arbitrary.
    """
    # All registers are reset; the ones of fields that are left out go only from initial values.
    h = Harness(power_up=True)
    m = h.m
    m.submodules.dut = dut = Sequencer(
        max_rows=MAX_ROWS,
        max_chunks=2,
        n_contexts=N_CONTEXTS,
        head_dim=16,
        bus_bytes=64,
        flush_cycles=1,
        n_errors=1,
    )
    both = range(N_CONTEXTS)

    def flags(name):
        return Array(Signal(name=f"{name}_{context}") for context in both)

    # Jobs: what a good descriptor may say, or anything with a code.
    job = dut.job.payload
    code, descriptor = job.code, job.descriptor
    # The other fields only pass through.
    seen = Cat(
        descriptor.opcode[:2],
        descriptor.selection[:2],
        descriptor.n_rows[:2],
        descriptor.write_selection[0],
        job.sequence[:2],
        Value.cast(code)[:2],
        job.error_addr[:1],
    )
    h.drive(dut.job.valid)
    h.drive(seen)
    waited = h.past(dut.job.valid & ~dut.job.ready, "job_waited")
    h.assume(~waited | (dut.job.valid & (seen == h.past(seen, "job_past"))))
    fence = descriptor.opcode == Opcode.FENCE
    good = code == ErrorCode.NONE
    route_only = descriptor.opcode == Opcode.ROUTE
    top_k = descriptor.selection == Selection.TOP_K
    h.assume(~good | (descriptor.opcode != 0))
    works = good & ~fence
    h.assume(
        ~works
        | (
            (descriptor.selection <= max(Selection))
            & (descriptor.n_rows != 0)
            & (descriptor.n_rows <= MAX_ROWS)
            & (top_k | ~route_only)
        )
    )
    taken = dut.job.valid & dut.job.ready
    n_taken, n_handed, n_released = Signal(2), Signal(2), Signal(2)
    h.assume(job.sequence[:2] == n_taken)

    # What the jobs are, and what has happened to them, by context.
    held, working, selects, attends = (
        flags(name) for name in ("held", "working", "selects", "attends")
    )
    explicit, asked, came = flags("explicit"), flags("asked"), flags("came")
    chosen, fetched, merged = flags("chosen"), flags("fetched"), flags("merged")
    n_rows = Array(Signal(2, name=f"n_rows_{context}") for context in both)
    cleared = Array(Signal(2, name=f"cleared_{context}") for context in both)
    codes = Array(Signal(2, name=f"code_{context}") for context in both)
    addrs = Array(Signal(1, name=f"addr_{context}") for context in both)
    at = n_taken[0]
    with m.If(taken):
        m.d.sync += [
            n_taken.eq(n_taken + 1),
            held[at].eq(1),
            working[at].eq(works),
            selects[at].eq(works & top_k),
            attends[at].eq(works & ~route_only),
            explicit[at].eq(works & (descriptor.selection == Selection.EXPLICIT)),
            n_rows[at].eq(descriptor.n_rows),
            codes[at].eq(Value.cast(code)),
            addrs[at].eq(job.error_addr),
            *(flag[at].eq(0) for flag in (asked, came, chosen, fetched, merged, cleared)),
        ]
    h.check("context_free", ~taken | ~held[at])
    h.check("n_jobs", dut.n_jobs == sum(held))
    oldest = n_released[0]

    def older_done(context, flag, concerned):
        """Whether the other job is younger than that of ``context``, or has passed."""
        other = ~context
        return (context == oldest) | ~held[other] | ~concerned[other] | flag[other]

    # Loads and rows.
    load = dut.load_cmd
    sent = load.valid & load.ready
    h.drive(load.ready)
    answered(h, "load_cmd", load.valid, load.ready)
    check_held(h, "load_cmd", load.valid, load.ready, Cat(load.p.target, load.p.context))
    is_queries = load.p.target == Target.QUERIES
    due, due_context = Signal(), Signal()
    h.drive(dut.loaded)
    queries = dut.loaded.valid & (dut.loaded.target == Target.QUERIES)
    answered(h, "loaded", due, queries, cycles=LOAD)
    h.assume(~queries | (dut.loaded.context == due_context))
    with m.If(queries):
        m.d.sync += [due.eq(0), came[due_context].eq(1)]
    with m.If(sent & is_queries):
        m.d.sync += [due.eq(1), due_context.eq(load.p.context), asked[load.p.context].eq(1)]
    loads = load.p.context
    h.check("load_of_a_job", ~load.valid | (held[loads] & working[loads] & ~asked[loads]))
    h.check("loads_in_order", ~load.valid | (loads == oldest) | dut.ready.bit_select(oldest, 1))
    clear = dut.clear
    clears = clear.row[-1]
    rows_left = cleared[clears] < n_rows[clears]
    h.check("clear_of_a_job", ~clear.valid | (held[clears] & working[clears] & rows_left))
    h.check("clear_in_order", ~clear.valid | (clear.row[:-1] == cleared[clears][:-1]))
    with m.If(clear.valid):
        m.d.sync += cleared[clears].eq(cleared[clears] + 1)
    for context in both:
        empty = (cleared[context] == n_rows[context]) & came[context]
        ready = dut.ready[context]
        h.check(f"ready_{context}", ~ready | (held[context] & (empty | ~working[context])))

    # Slots: one or two of each job, used in order, and only once their job is ready.
    route, attend = dut.route, dut.attend
    h.drive(route.ready)
    h.drive(attend.ready)
    h.drive(dut.allocated)
    h.drive(dut.none)
    h.drive(dut.score_done)
    last = h.free(1, "last")
    level = Signal(range(3))
    slots = [
        (Signal(name=f"rep_{n}"), Signal(name=f"context_{n}"), Signal(name=f"last_{n}"))
        for n in range(2)
    ]
    ends = {}
    room = level != 2
    for name, port, own in (
        ("route", route, dut.allocated.representative),
        ("attend", attend, ~dut.allocated.representative),
    ):
        begun, done = Signal(name=f"{name}_begun"), Signal(name=f"{name}_done")
        given = dut.allocated.valid & own
        wants = port.valid & ~done & room
        if name == "attend":
            wants &= ~dut.none
            may_read_none = explicit[port.p.context] | selects[port.p.context]
            h.assume(~dut.none | (port.valid & port.ready & ~begun & may_read_none))
        answered(h, f"{name}_slot", wants, given)
        h.assume(~given | ~begun | last)
        with m.If(given):
            m.d.sync += [begun.eq(1), done.eq(last)]
        issued = done | dut.none if name == "attend" else done
        answered(h, name, port.valid & issued, port.ready)
        with m.If(port.valid & port.ready):
            m.d.sync += [begun.eq(0), done.eq(0)]
        check_held(h, name, port.valid, port.ready, port.p.context)
        ends[name] = port.valid & port.ready
    rep, head, head_last = slots[0]
    eligible = (level != 0) & dut.ready.bit_select(head, 1)
    used = dut.score_done.valid
    answered(h, "score", eligible, used)
    h.assume(dut.score_done.representative == rep)
    new = (
        dut.allocated.representative,
        Mux(dut.allocated.representative, route.p.context, attend.p.context),
        last,
    )
    m.d.sync += level.eq(level + dut.allocated.valid - used)
    with m.If(used):
        m.d.sync += [mine.eq(next_one) for mine, next_one in zip(*slots, strict=True)]
    for index, slot in enumerate(slots):
        with m.If(dut.allocated.valid & (level - used == index)):
            m.d.sync += [mine.eq(value) for mine, value in zip(slot, new, strict=True)]
    scored = Signal()  # all representatives of the job being routed
    with m.If(used & rep & head_last):
        m.d.sync += scored.eq(1)

    routed = route.p.context
    job_on = held[routed] & selects[routed] & asked[routed] & ~chosen[routed]
    h.check("route_of_a_job", ~route.valid | job_on)
    h.check("routes_in_order", ~route.valid | older_done(routed, chosen, selects))
    free = dut.ready.bit_select(routed, 1) | older_done(routed, merged, attends)
    h.check("route_holds_up_none", ~(dut.allocated.valid & dut.allocated.representative) | free)

    # Selection.
    h.drive(dut.select.ready)
    h.drive(dut.selected)
    selecting = Signal()
    answered(h, "select", dut.select.valid & ~selecting, dut.select.ready)
    answered(h, "selected", selecting, dut.selected)
    check_held(h, "select", dut.select.valid, dut.select.ready, dut.select_context)
    h.check("select_when_scored", ~dut.select.valid | (scored & ~selecting))
    with m.If(dut.select.valid & dut.select.ready):
        m.d.sync += [selecting.eq(1), scored.eq(0)]
    with m.If(dut.selected):
        m.d.sync += [selecting.eq(0), chosen[dut.select_context].eq(1)]

    # Chunks.
    reads = attend.p.context
    known = Mux(selects[reads], chosen[reads], ~explicit[reads] | dut.ready.bit_select(reads, 1))
    job_on = held[reads] & attends[reads] & asked[reads] & ~fetched[reads]
    h.check("attend_of_a_job", ~attend.valid | job_on)
    h.check("attend_when_chosen", ~attend.valid | known)
    h.check("attends_in_order", ~attend.valid | older_done(reads, fetched, attends))
    with m.If(ends["attend"]):
        m.d.sync += fetched[reads].eq(1)
    with m.If(dut.none):
        m.d.sync += merged[reads].eq(1)

    # The last block is merged after the last command has been issued.
    h.drive(dut.merged)
    computed = flags("computed")
    with m.If(used & ~rep & head_last):
        m.d.sync += computed[head].eq(1)
    merge = dut.merged
    may_merge = [computed[context] & fetched[context] for context in both]
    answered(h, "merged", may_merge[0] | may_merge[1], merge.valid)
    h.assume(~merge.valid | Array(may_merge)[merge.context])
    with m.If(merge.valid):
        m.d.sync += [computed[merge.context].eq(0), merged[merge.context].eq(1)]

    # Results.
    h.drive(dut.results.ready)
    h.drive(dut.released)
    h.drive(dut.completed)
    ending, recording = Signal(), Signal()
    h.m.d.comb += dut.results_busy.eq(ending | recording)
    results = dut.results
    handed = results.valid & results.ready
    answered(h, "results", results.valid & ~dut.results_busy, results.ready)
    answered(h, "released", ending, dut.released)
    answered(h, "completed", recording, dut.completed)
    check_held(h, "results", results.valid, results.ready, results.p.context)
    with m.If(handed):
        m.d.sync += [ending.eq(1), n_handed.eq(n_handed + 1)]
    with m.If(dut.released):
        m.d.sync += [
            ending.eq(0),
            recording.eq(1),
            n_released.eq(n_released + 1),
            held[oldest].eq(0),
        ]
    with m.If(dut.completed):
        m.d.sync += recording.eq(0)
    ended = results.p.context
    done = (merged[ended] | ~attends[ended]) & (chosen[ended] | ~selects[ended])
    h.check("results_in_order", ~results.valid | (ended == n_handed[0]))
    h.check("results_of_a_job", ~results.valid | (results.p.sequence[:2] == n_handed))
    h.check("results_when_done", ~results.valid | (held[ended] & done))
    h.check("results_when_ready", ~results.valid | dut.ready.bit_select(ended, 1))
    h.check("results_attend", ~results.valid | (results.p.attend == attends[ended]))
    h.check("idle_jobs", dut.idle_jobs == (~(held[0] | held[1]) & ~dut.results_busy))

    # Errors: the first one of a job is kept.
    event = dut.errors[0]
    met = Signal()
    h.drive(Cat(event.valid, event.context, Value.cast(event.code)[:2], event.addr[:1]))
    with m.If(event.valid & held[event.context]):
        m.d.sync += met.eq(1)
        with m.If(codes[event.context] == 0):
            m.d.sync += [
                codes[event.context].eq(Value.cast(event.code)),
                addrs[event.context].eq(event.addr),
            ]
    for context in both:
        is_failed = codes[context] != 0
        h.check(f"failed_{context}", ~held[context] | (dut.failed[context] == is_failed))
    h.check("code", ~ending | (Value.cast(dut.result_code) == codes[oldest]))
    known_addr = ~ending | (dut.result_error_addr[:1] == addrs[oldest])
    h.check("error_addr", known_addr)

    # Every job moves on.
    steps = Cat(
        taken, sent, queries, clear.valid, dut.allocated.valid, used, ends["route"],
        ends["attend"], dut.select.valid & dut.select.ready, dut.selected, merge.valid,
        handed, dut.released, dut.completed,
    )  # fmt: skip
    stall = Signal(range(STALL + 1))
    m.d.sync += stall.eq(Mux(dut.idle_jobs | steps.any(), 0, stall + 1))
    h.check("never_stuck", stall < STALL)
    h.cover("both_attend_and_route", attend.valid & route.valid)
    h.cover("idle_after_error", met & (n_released == 2) & dut.idle_jobs)
    h.cover("three_completed", (n_released == 3) & dut.completed & merged[0])
    return h


BUS_BYTES = 64
FRONTEND = {"head_dim": 16, "max_rows": 16, "max_chunks": 16, "buffer_tokens": 16}
ASKING = ("RING", "COMPLETIONS", "ENTRY", "RECORD")
TESTED = ("COMPLETIONS", "ENTRY", "READ", "RECORD", "LOAD", "CHECK", "HAND_ON", "FENCE")


def states(h, fragment, name, *path):
    """Return a function of state names: whether the FSM ``name`` at ``path`` is in one of them."""
    for part in path:
        [fragment] = [found for found, own, _ in fragment.subfragments if own == part]
    encoding = fragment.generated[name].encoding
    state = h.inside(".".join(("dut", *path, f"{name}_state")), (len(encoding) - 1).bit_length())

    def is_in(*names):
        return Cat(state == encoding[one] for one in names).any()

    h.check(f"{name}_state", state < len(encoding))
    return is_in


def frontend():
    """Whatever a descriptor says, it is dealt with in bounded time, and read inside the window.

    ``left`` is how long it still takes at most, while the frontend waits for nobody.
    """
    h = Harness()
    m = h.m
    m.submodules.dut = dut = Frontend(bus_bytes=BUS_BYTES, n_contexts=2, **FRONTEND)
    for name in ("ring_addr", "completion_addr", "ring_size"):
        port = getattr(dut, name)
        m.d.comb += port.eq(h.constant(len(port), name))
    for name in ("read_base", "read_limit", "write_base", "write_limit"):
        m.d.comb += getattr(dut, name).eq(h.constant(64, name))
    for port in (
        dut.enable,
        dut.tail,
        dut.tail_written,
        dut.cmd.ready,
        dut.beat,
        dut.loaded,
        dut.bad,
        dut.job.ready,
        dut.idle_jobs,
        dut.completed_pulse,
    ):
        h.drive(port)
    # A descriptor's beats come while it is read.
    loading = Signal()
    with m.If(dut.cmd.valid & dut.cmd.ready):
        m.d.sync += loading.eq(1)
    with m.If(dut.loaded):
        m.d.sync += loading.eq(0)
    h.assume(loading | ~(dut.loaded | dut.beat.valid | dut.bad.valid))

    fragment = Fragment.get(dut, None)
    in_frontend = states(h, fragment, "frontend")
    in_check = states(h, fragment, "check", "check")
    in_window = states(h, fragment, "window", "window")
    step = h.inside("dut.check.step", 5)
    by_group = h.inside("dut.check.by_group", 1)
    arrived = h.inside("dut.arrived", 1)
    address = h.inside("dut.address", 64)
    head = h.inside("dut.ring.sequence", 32)

    # Who asks for a window, and when a descriptor is checked.
    h.check("check_starts_idle", in_frontend("CHECK") | in_check("IDLE"))
    h.check("check_runs", ~in_frontend("CHECK") | ~in_check("IDLE"))
    asks = in_frontend(*ASKING) | in_check("BLAME", "WINDOWS")
    h.check("window_is_asked", in_window("SUM") | asks)
    h.check("read_once", ~loading | in_frontend("RECORD", "LOAD"))
    h.check("arrives_later", ~in_frontend("READ") | ~arrived)
    h.check("loaded_or_arrived", ~in_frontend("RECORD", "LOAD") | (loading ^ arrived))

    # Reads: an entry of a ring that is inside the window.
    first = Cat(Const(0, 6), dut.ring_addr[6:])
    span = (Const(DESCRIPTOR_BYTES, 23) << dut.ring_size) - 1
    last = Signal(65)
    index = Signal(16)
    m.d.comb += [last.eq(first + span), index.eq(head & ((1 << dut.ring_size) - 1))]
    fits = (first >= dut.read_base) & (last <= dut.read_limit)
    entry = Signal(64)
    m.d.comb += entry.eq(first + (index << exact_log2(DESCRIPTOR_BYTES)))
    h.check("ring_inside", ~in_frontend(*TESTED) | fits)
    h.check("address", ~in_frontend("READ") | (address == entry))
    cmd = dut.cmd
    n_bytes = cmd.p.n_beats * BUS_BYTES
    h.check("reads_a_descriptor", ~cmd.valid | (n_bytes == DESCRIPTOR_BYTES))
    end = Signal(66)
    m.d.comb += end.eq(cmd.p.addr + (DESCRIPTOR_BYTES - 1))
    h.check("reads_inside", ~cmd.valid | ((cmd.p.addr >= dut.read_base) & (end <= dut.read_limit)))
    check_held(h, "cmd", cmd.valid, cmd.ready, cmd.payload)
    check_held(h, "job", dut.job.valid, dut.job.ready, Cat(
        dut.job.p.code, dut.job.p.descriptor, dut.job.p.sequence, dut.job.p.error_addr
    ))  # fmt: skip

    # How long it takes: the window check, the descriptor check, all of it.
    window_left = Signal(3)
    with m.If(in_window("SUM")):
        m.d.comb += window_left.eq(4)
    with m.Elif(in_window("BASE")):
        m.d.comb += window_left.eq(3)
    with m.Elif(in_window("LIMIT")):
        m.d.comb += window_left.eq(2)
    with m.Else():
        m.d.comb += window_left.eq(1)
    check_left = Signal(8)
    divide_left = Signal(5)
    token_bits = exact_log2(MAX_TOKENS)
    m.d.comb += divide_left.eq(token_bits - step)
    windows = 4 * N_WORDS + 1  # and DONE
    tokens = 1 + token_bits + 1 + windows  # JUDGE_GROUP, DIVIDE, JUDGE_CHUNKS
    judge = 1 + exact_log2(FRONTEND["max_rows"]) + 1 + tokens
    for names, value in (
        (("IDLE",), 0),
        (("FIELDS",), N_WORDS - step + judge),
        (("JUDGE",), judge),
        (("DIVIDE",), divide_left + Mux(by_group, tokens, 1 + windows)),
        (("JUDGE_GROUP",), tokens),
        (("JUDGE_CHUNKS",), 1 + windows),
        (("BLAME",), window_left + 1),
        (("WINDOWS",), 4 * (N_WORDS - 1 - step) + window_left + 1),
        (("DONE",), 1),
    ):
        with m.If(in_check(*names)):
            m.d.comb += check_left.eq(value)
    h.check("step_of_words", ~in_check("FIELDS", "WINDOWS") | (step < N_WORDS))
    h.check("step_of_bits", ~in_check("DIVIDE") | (step < token_bits))
    check_most = N_WORDS + judge
    left = Signal(9)
    record = 4 + 1 + check_most
    for names, value in (
        (("RING",), window_left + 4 + 4 + 1 + record),
        (("COMPLETIONS",), window_left + 4 + 1 + record),
        (("REFUSE",), 1),
        (("ENTRY",), window_left + 1 + record),
        (("READ",), 1 + record),
        (("RECORD",), window_left + 1 + check_most),
        (("LOAD",), 1 + check_most),
        (("CHECK",), check_left),
    ):
        with m.If(in_frontend(*names)):
            m.d.comb += left.eq(value)
    idle = in_frontend("IDLE", "HAND_ON", "FENCE")
    waits = in_frontend("READ") & ~cmd.ready
    waits |= in_frontend("LOAD") & ~arrived
    doorbell_is_bad = dut.ring_error.valid & (dut.ring_error.code == ErrorCode.RING)
    waits |= in_frontend("REFUSE") & doorbell_is_bad
    before, counts = h.past(left, "left_past"), h.past(~idle & ~waits, "counts")
    h.check("moves_on", idle | ~counts | (left < before))
    h.check("dealt_with_in_time", left <= 12 + 1 + record)
    h.check("busy", in_frontend("IDLE", "FENCE") | dut.busy)
    h.cover("second_half_of_memory", cmd.valid & cmd.ready & cmd.p.addr[-1])
    h.cover("refused_doorbell", doorbell_is_bad & in_frontend("REFUSE"))
    return h


PROOFS = [
    Proof(
        name="sequencer",
        build=sequencer,
        engine="pdr",
        reach=32,
        bugs=(
            Bug(
                name="explicit_selection_not_awaited",
                owner=Sequencer,
                method="route_stage",
                old="with m.If(bit(self.ready)):",
                new="with m.If(1):",
                caught_by="attend_when_chosen",
            ),
            Bug(
                name="representatives_before_chunks",
                owner=Sequencer,
                method="route_stage",
                old="bit(self.ready) | ~others",
                new="1",
                caught_by="route_holds_up_none",
            ),
            Bug(
                name="ready_without_queries",
                owner=Sequencer,
                method="load_stage",
                old="complete & ~clearing",
                new="~clearing",
                caught_by="ready_0",
            ),
            Bug(
                name="context_taken_twice",
                owner=Sequencer,
                method="load_stage",
                old="~self.occupied.bit_select(context, 1)",
                new="1",
                caught_by="context_free",
            ),
            Bug(
                name="last_error_counts",
                owner=Sequencer,
                method="errors_of_jobs",
                old="self.occupied[index] & (job.code == ErrorCode.NONE)",
                new="self.occupied[index]",
                caught_by="code",
            ),
            Bug(
                name="job_with_error_never_over",
                owner=Sequencer,
                method="attend_stage",
                old="self.flag(m, self.attended, context)\n                    m.d.sync",
                new="m.d.sync",
                caught_by="never_stuck",
            ),
            Bug(
                name="chunks_of_the_job_before_count",
                owner=Sequencer,
                method="result_stage",
                old="self.listed, self.fetched, self.attended,",
                new="self.listed, self.attended,",
                caught_by="never_stuck",
            ),
        ),
    ),
    Proof(
        name="frontend",
        build=frontend,
        engine="induction",
        depth=7,
        reach=17,
        bugs=(
            Bug(
                name="window_of_one_entry",
                owner=Frontend,
                old="ask(ring_addr, span)",
                new="ask(ring_addr, entry)",
                caught_by="reads_inside",
            ),
            Bug(
                name="ring_that_wraps",
                owner=WindowCheck,
                old="~wrapped & ~below & carry",
                new="~below & carry",
                caught_by="ring_inside",
            ),
            Bug(
                name="refusal_waits_for_a_doorbell",
                owner=Frontend,
                old="with m.Elif(~ring.bad):",
                new="with m.Elif(ring.good):",
                caught_by="moves_on",
            ),
        ),
    ),
]


def test_holds(proof, check_holds):
    check_holds(proof)


def test_reached(proof, check_reached):
    check_reached(proof)


def test_bug_is_caught(proof, bug, check_caught):
    check_caught(proof, bug)
