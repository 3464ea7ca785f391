"""Sequencer: phases of a job in order, checks of the descriptor, errors, cycle causes."""

import itertools

import pytest

from moska.golden.formats import MAX_TOKENS
from moska.golden.layout import DESCRIPTOR, DESCRIPTOR_BYTES, Opcode, Selection, pack_descriptor
from moska.golden.router import Router
from moska.hw.control.fetch import Phase
from moska.hw.control.sequencer import ADDRESSES, Cause, ErrorCode, Sequencer
from moska.sim.bench import simulate

MAX_ROWS = 16
MAX_CHUNKS = 16
BUFFER_TOKENS = 32
FLUSH = 9

BASE = {
    "opcode": Opcode.ATTEND,
    "selection": Selection.ALL,
    "n_rows": 6,
    "n_tokens": 160,
    "n_chunks": 4,
    "chunk_tokens": 48,
    "tag": 0xDEADBEEF,
    **{name: 0x40 * (index + 1) << 20 for index, name in enumerate(ADDRESSES)},
}
ROUTED = {
    **BASE,
    "selection": Selection.TOP_K,
    "router": Router.ROWS,
    "group": 3,
    "k": 2,
    "rep_rows": 4,
    "keep_first": 1,
    "keep_last": 2,
    "write_selection": 1,
}
EXPLICIT = {**BASE, "selection": Selection.EXPLICIT}
JOB_PHASES = {
    Selection.ALL: [Phase.DESCRIPTOR, Phase.QUERIES, Phase.CHUNKS],
    Selection.TOP_K: [Phase.DESCRIPTOR, Phase.QUERIES, Phase.REPRESENTATIVES, Phase.CHUNKS],
    Selection.EXPLICIT: [Phase.DESCRIPTOR, Phase.SELECTION, Phase.QUERIES, Phase.CHUNKS],
}


def sequencer(bus_bytes=8):
    return Sequencer(
        max_rows=MAX_ROWS,
        max_chunks=MAX_CHUNKS,
        buffer_tokens=BUFFER_TOKENS,
        bus_bytes=bus_bytes,
        flush_cycles=FLUSH,
    )


class Unit:
    """Everything that the sequencer starts, answering after a fixed number of cycles."""

    def __init__(self, dut, *, pause=4, read_error=0, write_error=0, bad_descriptor=0):
        self.dut = dut
        self.pause = pause
        self.read_error = read_error
        self.bad_descriptor = bad_descriptor
        self.write_error = write_error

    async def run(self, ctx, fields):
        """Run one job; return a dictionary of what happened."""
        dut = self.dut
        raw = pack_descriptor(**fields)
        seen = {"phases": [], "cleared": [], "causes": [], "select": None, "results": 0, "done": 0}
        seen["clear_errors"] = 0
        loads = []  # pulses of `loaded` that are due: cycles left
        beats = []  # descriptor beats to send
        issuing = busy = writing = selecting = 0
        ctx.set(dut.read_error, 0)
        ctx.set(dut.write_error, 0)
        assert not ctx.get(dut.busy)
        ctx.set(dut.start, 1)
        seen["clear_errors"] += ctx.get(dut.clear_errors)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(600):
            ctx.set(dut.loaded, 0)
            ctx.set(dut.descriptor_beat, {"valid": 0})
            if beats:
                beat = beats.pop(0)
                ctx.set(dut.descriptor_beat, {"valid": 1, "data": int.from_bytes(beat, "little")})
                if not beats:
                    ctx.set(dut.loaded, 1)
                    ctx.set(dut.read_error, self.bad_descriptor)
            elif loads:
                loads[0] -= 1
                if loads[0] == 0:
                    ctx.set(dut.loaded, 1)
                    loads.pop(0)
            ctx.set(dut.fetch.ready, int(issuing == 0))
            ctx.set(dut.fetch_issuing, int(issuing != 0))
            ctx.set(dut.fetch_busy, int(busy != 0))
            ctx.set(dut.writing, int(writing != 0))
            ctx.set(dut.selected, int(selecting == 1))
            ctx.set(dut.select.ready, 1)
            issuing, busy = max(0, issuing - 1), max(0, busy - 1)
            writing, selecting = max(0, writing - 1), max(0, selecting - 1)

            if ctx.get(dut.fetch.valid) and ctx.get(dut.fetch.ready):
                phase = ctx.get(dut.fetch.payload)
                seen["phases"].append(phase)
                issuing = 2
                if phase == Phase.DESCRIPTOR:
                    size = dut.bus_bytes
                    beats = [raw[at : at + size] for at in range(0, DESCRIPTOR_BYTES, size)]
                elif phase == Phase.SELECTION:
                    loads.append(self.pause)
                elif phase == Phase.QUERIES:
                    loads += [self.pause, self.pause]
                else:
                    busy = 3 * self.pause
            if ctx.get(dut.select.valid):
                assert seen["select"] is None
                seen["select"] = ctx.get(dut.select.payload)
                selecting = self.pause
            clear = ctx.get(dut.clear)
            if clear.valid:
                seen["cleared"].append(clear.row)
            if ctx.get(dut.results_start):
                assert seen["cleared"] == list(range(ctx.get(dut.job.n_rows)))
                assert ctx.get(dut.queries_loaded) == 0
                seen["results"] += 1
                writing = self.pause
                ctx.set(dut.read_error, self.read_error)
                ctx.set(dut.write_error, self.write_error)
            if ctx.get(dut.busy):
                seen["causes"].append(ctx.get(dut.cause))
            done = ctx.get(dut.done)
            if done:
                seen["done"] += 1
                seen["error"] = ctx.get(dut.error)
                seen["job"] = {name: ctx.get(getattr(dut.job, name)) for name in DESCRIPTOR}
            await ctx.tick()
            if done:
                assert not ctx.get(dut.busy)
                break
        for _ in range(MAX_ROWS):
            await ctx.tick()
            assert not ctx.get(dut.busy)
        return seen


def run_jobs(jobs, *, bus_bytes=8, **unit):
    dut = sequencer(bus_bytes)
    results = []

    async def bench(ctx):
        for fields in jobs:
            results.append(await Unit(dut, **unit).run(ctx, fields))

    simulate(dut, bench, cycles=1000 * len(jobs))
    return results


@pytest.mark.parametrize("bus_bytes", [8, 64, 128])
@pytest.mark.parametrize("fields", [BASE, ROUTED, EXPLICIT], ids=["all", "top_k", "explicit"])
def test_legal_job(bus_bytes, fields):
    (seen,) = run_jobs([fields], bus_bytes=bus_bytes)
    assert seen["phases"] == JOB_PHASES[fields["selection"]]
    assert (seen["results"], seen["done"], seen["clear_errors"]) == (1, 1, 1)
    assert seen["error"] == ErrorCode.NONE
    assert seen["job"] == {name: int(fields.get(name, 0)) for name in DESCRIPTOR}
    if fields is ROUTED:
        select = seen["select"]
        names = "n_rows", "n_chunks", "k", "keep_first", "keep_last", "group"
        assert {name: getattr(select, name) for name in names} == {
            name: fields[name] for name in names
        }
    else:
        assert seen["select"] is None


def test_phases_have_causes():
    """Cycles outside the passes over tokens: loads, selection, results."""
    pause = 4
    (seen,) = run_jobs([ROUTED], pause=pause)
    causes = seen["causes"]
    starts = [cause for before, cause in itertools.pairwise([None, *causes]) if cause != before]
    # Nothing enters the score array and nothing is pending: a pass is drain, or memory while
    # its commands are issued (those of the first pass while the queries still load).
    assert starts == [
        Cause.LOAD, Cause.DRAIN, Cause.SELECT, Cause.DRAIN, Cause.MEMORY, Cause.DRAIN, Cause.FINISH
    ]  # fmt: skip
    # The flush counts down to 0; one cycle hands over the job; the pulse comes pause cycles later.
    assert causes.count(Cause.SELECT) == FLUSH + 1 + 1 + pause
    # results_start, results, its end, done.
    assert causes.count(Cause.FINISH) == 1 + pause + 1 + 1


NAMES = (
    "score_active", "stalled_softmax", "stalled_query", "stalled_memory", "score_pending",
    "fetch_issuing",
)  # fmt: skip


def cause_of(score_active, softmax, query, _memory, pending, issuing, loaded):
    """Order in which the causes of a cycle of a pass count."""
    if score_active:
        return Cause.SCORE_ACTIVE
    if not loaded:
        return Cause.LOAD
    if not pending and not issuing:
        return Cause.DRAIN
    if softmax:
        return Cause.SOFTMAX
    return Cause.QUERY if query else Cause.MEMORY


def test_causes_of_a_pass():
    """Every combination of what the score pass reports, before and after the queries are in."""
    dut = sequencer()
    met = set()

    async def pulse(ctx, signal):
        ctx.set(signal, 1)
        await ctx.tick()
        ctx.set(signal, 0)

    async def bench(ctx):
        await pulse(ctx, dut.start)
        await pulse(ctx, dut.fetch.ready)
        raw = pack_descriptor(**BASE)
        for at in range(0, DESCRIPTOR_BYTES, 8):
            word = int.from_bytes(raw[at : at + 8], "little")
            ctx.set(dut.descriptor_beat, {"valid": 1, "data": word})
            ctx.set(dut.loaded, int(at == DESCRIPTOR_BYTES - 8))
            await ctx.tick()
        ctx.set(dut.descriptor_beat, {"valid": 0})
        ctx.set(dut.loaded, 0)
        ctx.set(dut.fetch_busy, 1)
        ctx.set(dut.fetch.ready, 1)
        for phase in (Phase.QUERIES, Phase.CHUNKS):
            while not ctx.get(dut.fetch.valid):
                await ctx.tick()
            assert ctx.get(dut.fetch.payload) == phase
            await ctx.tick()
        for n_loaded in range(3):
            for bits in range(1 << len(NAMES)):
                values = [bits >> index & 1 for index in range(len(NAMES))]
                for name, value in zip(NAMES, values, strict=True):
                    ctx.set(getattr(dut, name), value)
                expected = cause_of(*values, n_loaded == 2)
                assert ctx.get(dut.cause) == expected
                assert ctx.get(dut.queries_loaded) == (n_loaded == 2)
                met.add(expected)
                await ctx.tick()
            await pulse(ctx, dut.loaded)

    simulate(dut, bench)
    assert met == set(Cause) - {Cause.SELECT, Cause.FINISH}


def test_jobs_follow_each_other():
    jobs = [ROUTED, {**BASE, "opcode": 7}, EXPLICIT, BASE, {**BASE, "n_rows": 0}, ROUTED]
    results = run_jobs(jobs)
    errors = [seen["error"] for seen in results]
    bad = ErrorCode.DESCRIPTOR
    assert errors == [ErrorCode.NONE, bad, ErrorCode.NONE, ErrorCode.NONE, bad, ErrorCode.NONE]
    for fields, seen in zip(jobs, results, strict=True):
        legal = seen["error"] == ErrorCode.NONE
        assert seen["phases"] == (JOB_PHASES[fields["selection"]] if legal else [Phase.DESCRIPTOR])


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ({"read_error": 1}, ErrorCode.READ),
        ({"write_error": 1}, ErrorCode.WRITE),
        ({"read_error": 1, "write_error": 1}, ErrorCode.READ),
    ],
)
def test_bus_errors(errors, code):
    (seen,) = run_jobs([BASE], **errors)
    assert (seen["error"], seen["results"], seen["done"]) == (code, 1, 1)


ILLEGAL = {
    "opcode 0": {**BASE, "opcode": 0},
    "opcode 2": {**BASE, "opcode": 2},
    "selection 3": {**BASE, "selection": 3},
    "selection 255": {**BASE, "selection": 255},
    "router": {**ROUTED, "router": max(Router) + 1},
    "router unused": {**BASE, "router": 255},
    "no rows": {**BASE, "n_rows": 0},
    "rows": {**BASE, "n_rows": MAX_ROWS + 1},
    "rows, high bits": {**BASE, "n_rows": 0x8001},
    "no tokens": {**BASE, "n_tokens": 0},
    "tokens": {
        **BASE, "n_tokens": MAX_TOKENS + 1, "n_chunks": 2, "chunk_tokens": MAX_TOKENS,
    },
    "no chunks": {**BASE, "n_chunks": 0},
    "chunks, routed": {
        **ROUTED, "n_chunks": MAX_CHUNKS + 1, "n_tokens": 16 * (MAX_CHUNKS + 1), "chunk_tokens": 16,
    },
    "chunks, explicit": {
        **EXPLICIT, "n_chunks": MAX_CHUNKS + 1, "n_tokens": 16 * MAX_CHUNKS + 1, "chunk_tokens": 16,
    },
    "chunks, all": {**BASE, "n_chunks": MAX_TOKENS // 16 + 1, "n_tokens": 1 << 20},
    "chunks, high bits": {**BASE, "n_chunks": 4 + (1 << 31)},
    "no chunk tokens": {**BASE, "chunk_tokens": 0},
    "chunk tokens": {
        **BASE, "chunk_tokens": MAX_TOKENS + 16, "n_chunks": 1, "n_tokens": 100,
    },
    "chunk multiple": {**BASE, "chunk_tokens": 40},
    "one token too many": {**BASE, "n_tokens": 4 * 48 + 1},
    "last chunk empty": {**BASE, "n_tokens": 3 * 48},
    "one chunk empty": {**BASE, "n_chunks": 10},
    "write_selection, all": {**BASE, "write_selection": 1},
    "write_selection, explicit": {**EXPLICIT, "write_selection": 1},
    "rep_rows 0": {**ROUTED, "rep_rows": 0},
    "rep_rows 3": {**ROUTED, "rep_rows": 3},
    "rep_rows 64": {**ROUTED, "rep_rows": 2 * BUFFER_TOKENS},
    "rep_rows 1, pairs": {**ROUTED, "router": Router.MINMAX, "rep_rows": 1},
    "group 0": {**ROUTED, "group": 0},
    "group 4 of 6": {**ROUTED, "group": 4},
    "group 7 of 6": {**ROUTED, "group": 7},
    "group, high bits": {**ROUTED, "group": 0x8003},
    **{f"{name} + {step}": {**ROUTED, name: ROUTED[name] + step} for name in ADDRESSES
       for step in (1, 32)},
}  # fmt: skip
LEGAL = {
    "one of all": {
        **BASE, "n_rows": 1, "n_tokens": 1, "n_chunks": 1, "chunk_tokens": 16,
    },
    "largest": {
        **BASE, "n_rows": MAX_ROWS, "n_tokens": MAX_TOKENS, "n_chunks": MAX_TOKENS // 16,
        "chunk_tokens": 16,
    },
    "one large chunk": {
        **BASE, "n_tokens": MAX_TOKENS, "n_chunks": 1, "chunk_tokens": MAX_TOKENS,
    },
    "last chunk full": {**BASE, "n_tokens": 4 * 48},
    "last chunk of one": {**BASE, "n_tokens": 3 * 48 + 1},
    "most chunks": {
        **ROUTED, "n_chunks": MAX_CHUNKS, "n_tokens": 16 * MAX_CHUNKS, "chunk_tokens": 16,
    },
    "rep_rows 1": {**ROUTED, "rep_rows": 1},
    "rep_rows 32": {**ROUTED, "rep_rows": BUFFER_TOKENS},
    "pairs": {**ROUTED, "router": Router.MINMAX, "rep_rows": 2},
    "group 1": {**ROUTED, "group": 1},
    "group 6 of 6": {**ROUTED, "group": 6},
    "no k": {**ROUTED, "k": 0},
    "unused fields": {**BASE, "group": 5, "rep_rows": 3, "k": 9, "keep_first": 3, "keep_last": 9},
    "routed, group unused": {**EXPLICIT, "group": 5, "rep_rows": 3},
}  # fmt: skip


def test_illegal_descriptors():
    results = run_jobs(list(ILLEGAL.values()))
    for name, seen in zip(ILLEGAL, results, strict=True):
        assert seen["done"] == 1, name
        assert seen["error"] == ErrorCode.DESCRIPTOR, name
        assert seen["phases"] == [Phase.DESCRIPTOR], name
        assert seen["results"] == 0, name


def test_legal_limits():
    results = run_jobs(list(LEGAL.values()))
    for (name, fields), seen in zip(LEGAL.items(), results, strict=True):
        assert seen["done"] == 1, name
        assert seen["error"] == ErrorCode.NONE, name
        assert seen["phases"] == JOB_PHASES[fields["selection"]], name


def test_rep_shift():
    dut = sequencer()
    shifts = []

    async def bench(ctx):
        for shift in range(6):
            await Unit(dut).run(ctx, {**ROUTED, "rep_rows": 1 << shift})
            shifts.append(ctx.get(dut.rep_shift))

    simulate(dut, bench)
    assert shifts == list(range(6))


def test_start_is_ignored_while_busy():
    dut = sequencer()

    async def bench(ctx):
        ctx.set(dut.start, 1)
        assert ctx.get(dut.clear_errors) == 1
        for _ in range(5):
            await ctx.tick()
            assert ctx.get(dut.busy) == 1
            assert ctx.get(dut.clear_errors) == 0
        ctx.set(dut.start, 0)

    simulate(dut, bench)


def test_descriptor_read_error():
    """A descriptor that came back with an error is not judged, and nothing else is fetched."""
    (seen,) = run_jobs([BASE], bad_descriptor=1)
    assert seen["error"] == ErrorCode.READ
    assert seen["phases"] == [Phase.DESCRIPTOR]
    assert (seen["results"], seen["done"], seen["cleared"]) == (0, 1, [])
