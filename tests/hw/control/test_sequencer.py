# amaranth: UnusedElaboratable=no
"""Sequencer: jobs of all kinds among models of its neighbours, errors, time limit, causes."""

import itertools
import random
from collections import deque

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Value

from moska.golden.layout import DESCRIPTOR, Opcode, Selection, pack_descriptor
from moska.golden.router import Router
from moska.hw.control.descriptor import ErrorCode, frontend_job_layout
from moska.hw.control.load import Target
from moska.hw.control.sequencer import Cause, Sequencer
from moska.sim.bench import check_hold, fields, simulate

MAX_ROWS = 16
MAX_CHUNKS = 16
HEAD_DIM = 16
FLUSH = 5
N_ERRORS = 2
N_SLOTS = 4
LINE = 64  # bytes: arrays are padded to lines; a selection has one a chunk
NEVER = 1 << 60  # cycle of what has not happened
ADDRESSES = tuple(name for name in DESCRIPTOR if name.endswith("_addr"))
KINDS = ("all", "top_k", "explicit", "route", "fence", "refused")


def sequencer(n_contexts=2, bus_bytes=8, **options):
    arguments = {
        "max_rows": MAX_ROWS,
        "max_chunks": MAX_CHUNKS,
        "head_dim": HEAD_DIM,
        "flush_cycles": FLUSH,
        "n_errors": N_ERRORS,
        **options,
    }
    return Sequencer(n_contexts=n_contexts, bus_bytes=bus_bytes, **arguments)


class Job:
    """A job and what has happened to it."""

    def __init__(self, rng, kind, number):
        self.kind = kind
        self.number = number
        garbage = {name: rng.getrandbits(8 * size) for name, (_, size) in DESCRIPTOR.items()}
        self.fields = garbage
        self.refused = kind == "refused"
        self.works = kind not in ("refused", "fence")  # has anything to compute
        if self.works:
            self.fields |= {
                "opcode": Opcode.ROUTE if kind == "route" else Opcode.ATTEND,
                "selection": {
                    "all": Selection.ALL, "explicit": Selection.EXPLICIT
                }.get(kind, Selection.TOP_K),
                "router": rng.choice(list(Router)),
                "write_selection": {"route": 1, "top_k": rng.randrange(2)}.get(kind, 0),
                "n_rows": rng.choice((1, 2, MAX_ROWS, rng.randrange(1, MAX_ROWS + 1))),
                "n_chunks": rng.randrange(1, MAX_CHUNKS + 1),
                "group": rng.randrange(1, MAX_ROWS + 1),
            }  # fmt: skip
            self.fields |= {name: 64 * rng.getrandbits(58) for name in ADDRESSES}
        elif kind == "fence":
            self.fields["opcode"] = Opcode.FENCE
        else:
            self.fields["opcode"] = rng.choice([*Opcode, 77])
        self.selects = kind in ("top_k", "route")
        self.attends = kind in ("all", "top_k", "explicit")
        self.rep_shift = rng.randrange(5)
        self.completion_addr = 128 * rng.getrandbits(57)
        self.code = ErrorCode.NONE
        self.error_addr = 0
        if self.refused:
            self.code = rng.choice((ErrorCode.DESCRIPTOR, ErrorCode.READ, ErrorCode.WINDOW))
            self.error_addr = rng.getrandbits(64)

        # Cycles in which it happened.
        self.taken = NEVER
        self.requested = NEVER  # the last load
        self.loaded = NEVER  # the queries
        self.ready = NEVER
        self.attended = NEVER
        self.n_cleared = 0
        self.cleared = NEVER
        self.routed = NEVER
        self.scored = NEVER  # the last representatives
        self.selected = NEVER
        self.fetched = NEVER
        self.handed_on = NEVER  # to the results
        self.released = NEVER
        self.completed = NEVER

    @property
    def descriptor(self):
        return int.from_bytes(pack_descriptor(**self.fields), "little")

    @property
    def failed(self):
        return self.code != ErrorCode.NONE

    def bits(self):
        """Payload of ``job``."""
        job = {
            "descriptor": self.fields,
            "rep_shift": self.rep_shift,
            "sequence": self.number + 1,
            "completion_addr": self.completion_addr,
            "code": self.code,
            "error_addr": self.error_addr,
        }
        return frontend_job_layout().const(job).as_value()

    def loads(self, context, bus_bytes):
        """Read commands: target, address, beats, context."""

        def beats(n_bytes):
            return -(-n_bytes // LINE) * LINE // bus_bytes

        get = self.fields
        if not self.works:
            return []
        commands = [
            (Target.QUERY_SCALES, get["q_scale_addr"], beats(2 * get["n_rows"]), context),
            (Target.QUERIES, get["q_addr"], beats(2 * HEAD_DIM * get["n_rows"]), context),
        ]
        if self.kind == "explicit":
            n_beats = beats(LINE * get["n_chunks"])
            commands.insert(0, (Target.SELECTION, get["selection_addr"], n_beats, context))
        return commands


class World:
    """The neighbours of a Sequencer, and what must be seen of it, cycle by cycle.

    ``pace``: chance that a neighbour does in this cycle what it is to do; ``error``: of an error on
    a port. ``hung``: names of neighbours that do nothing.
    """

    def __init__(self, dut, *, seed, pace=0.3, error=0.0, timeout=0):
        self.dut = dut
        self.seed = seed
        self.rng = random.Random(seed)
        self.pace = pace
        self.error = error
        self.timeout = timeout
        self.hung = set()
        self.cycle = 0
        self.sent = deque()  # jobs to offer
        self.all = []  # jobs taken
        self.commands = deque()  # expected of `load_cmd`
        self.loads = deque()  # requested
        self.reps = None  # [job, slots left, cycle of the last allocation]
        self.chunks = None
        self.slots = deque()  # (representative, job, last of its job)
        self.merges = deque()
        self.selecting = None
        self.ending = None  # the job that the results have
        self.pending = self.pending_reps = 0
        self.interval = 0
        self.offering = False
        self.causes = []
        self.most = 0

    # What the sequencer knows at the start of a cycle.
    @property
    def held(self):
        return [job for job in self.all if job.released == NEVER]

    def context(self, job):
        return job.number % self.dut.n_contexts

    def may(self, name):
        return name not in self.hung and self.rng.random() < self.pace

    def is_ready(self, job):
        return job.ready < self.cycle

    async def step(self, ctx):
        """Run a cycle."""
        self.at = f"seed {self.seed}, cycle {self.cycle}"
        inputs = self.drive(ctx)
        self.check_state(ctx, inputs)
        self.check_cause(ctx, inputs)
        self.check_load(ctx, inputs)
        self.check_fetch(ctx, inputs)
        self.check_select(ctx, inputs)
        self.check_results(ctx, inputs)
        self.follow_errors(ctx, inputs)
        if self.all:
            self.check_progress()
        if inputs["taken"]:
            job = self.sent.popleft()
            job.taken = self.cycle
            self.all.append(job)
            self.commands += job.loads(self.context(job), self.dut.bus_bytes)
            self.offering = False
        self.cycle += 1
        await ctx.tick()

    def drive(self, ctx):
        """Set the inputs; return what they say and which transfers they make."""
        dut, rng = self.dut, self.rng
        got = {}
        if not self.offering and self.sent and self.may("frontend"):
            self.offering = True
            ctx.set(Value.cast(dut.job.payload), self.sent[0].bits())
        ctx.set(dut.job.valid, self.offering)
        got["job_valid"] = self.offering
        got["frontend_busy"] = rng.randrange(2)
        ctx.set(dut.frontend_busy, got["frontend_busy"])
        ctx.set(dut.timeout, self.timeout)
        got["taken"] = self.offering and ctx.get(dut.job.ready)
        if got["taken"]:
            assert len(self.held) < dut.n_contexts, self.at

        # Loads answer in order; descriptors come in between.
        loaded = None
        if self.loads and self.may("loads"):
            loaded = self.loads.popleft()
            if loaded[0] == Target.QUERIES:
                loaded[1].loaded = self.cycle
        elif rng.random() < 0.1:
            loaded = (Target.DESCRIPTOR, rng.randrange(dut.n_contexts))
        ctx.set(dut.loaded.valid, loaded is not None)
        if loaded is not None:
            target, job = loaded
            context = job if target == Target.DESCRIPTOR else self.context(job)
            ctx.set(dut.loaded, {"valid": 1, "target": target, "context": context})
        got["load_ready"] = self.may("load_cmd")
        ctx.set(dut.load_cmd.ready, got["load_ready"])

        self.drive_fetch(ctx, got)

        got["select_ready"] = self.selecting is None and self.may("select")
        ctx.set(dut.select.ready, got["select_ready"])
        got["selected"] = self.selecting is not None and self.may("selector")
        ctx.set(dut.selected, got["selected"])

        # Results: one job at a time, released, then completed.
        got["results_busy"] = self.ending is not None
        got["results_ready"] = self.ending is None and self.may("results")
        ending = self.ending
        got["recording"] = ending is not None and ending.released != NEVER
        got["released"] = ending is not None and not got["recording"] and self.may("release")
        got["completed"] = got["recording"] and self.may("complete")
        ctx.set(dut.results_busy, got["results_busy"])
        ctx.set(dut.results.ready, got["results_ready"])
        ctx.set(dut.released, got["released"])
        ctx.set(dut.completed, got["completed"])

        got["errors"] = []
        for port in range(N_ERRORS):
            event = {
                "valid": rng.random() < self.error,
                "context": rng.randrange(dut.n_contexts),
                "code": rng.choice((ErrorCode.READ, ErrorCode.CHECKSUM)),
                "addr": rng.getrandbits(64),
            }
            ctx.set(dut.errors[port], event)
            got["errors"].append(event)
        for name in ("score_active", "stalled_query", "stalled_softmax"):
            got[name] = rng.randrange(2)
            ctx.set(getattr(dut, name), got[name])
        return got

    def drive_fetch(self, ctx, got):
        """Allocate slots for representatives and chunks; use them in order."""
        dut, rng = self.dut, self.rng
        chunks = None if "chunks" in self.hung else self.chunks
        sides = [side for side in (self.reps, chunks) if side is not None and side[1]]
        allocated = None
        if sides and len(self.slots) < N_SLOTS and self.may("fetch"):
            side = allocated = rng.choice(sides)
            side[1] = 0 if side[0].failed else side[1] - 1
            side[2] = self.cycle
            self.slots.append((side is self.reps, side[0], side[1] == 0))
        got["allocated"] = allocated is not None
        got["allocated_rep"] = allocated is not None and allocated is self.reps
        # The last command goes out, at least a cycle after the slot is allocated.
        for name, side in (("route_ready", self.reps), ("attend_ready", self.chunks)):
            issued = side is not None and side[1] == 0 and self.cycle >= side[2] + 2
            got[name] = issued and self.may("fetch")
        got["none"] = self.chunks is not None and self.chunks[1] is None
        got["attend_ready"] |= got["none"]
        ctx.set(dut.allocated, {
            "valid": got["allocated"], "representative": got["allocated_rep"]
        })  # fmt: skip
        ctx.set(dut.none, got["none"])
        ctx.set(dut.route.ready, got["route_ready"])
        ctx.set(dut.attend.ready, got["attend_ready"])

        got["score_done"] = got["rep_done"] = False
        head = self.slots[0] if self.slots else None
        fresh = head is not None and got["allocated"] and len(self.slots) == 1
        if head is not None and not fresh and self.is_ready(head[1]) and self.may("score"):
            self.slots.popleft()
            representative, job, last = head
            got["score_done"], got["rep_done"] = True, representative
            if last and representative:
                job.scored = self.cycle
            elif last:
                self.merges.append(job)
        ctx.set(dut.score_done, {"valid": got["score_done"], "representative": got["rep_done"]})

        merged = None
        if self.merges and self.merges[0].fetched != NEVER and self.may("merge"):
            merged = self.merges.popleft()
            merged.attended = self.cycle
        got["merged"] = merged
        ctx.set(dut.merged, {
            "valid": merged is not None,
            "context": self.context(merged) if merged else rng.randrange(dut.n_contexts),
        })  # fmt: skip

    def check_state(self, ctx, got):
        """Which jobs are under way, and which have failed."""
        dut = self.dut
        held = self.held
        self.most = max(self.most, len(held))
        assert ctx.get(dut.n_jobs) == len(held) <= dut.n_contexts, self.at
        idle = not held and not got["results_busy"]
        got["idle"] = idle
        assert ctx.get(dut.idle_jobs) == idle, self.at
        busy = not idle or got["frontend_busy"] or got["job_valid"]
        assert ctx.get(dut.busy) == busy, self.at
        failed = ctx.get(dut.failed)
        n_rows = ctx.get(dut.n_rows.as_value())
        for job in held:
            context = self.context(job)
            assert failed >> context & 1 == job.failed, f"{self.at}, job {job.number}"
            if job.works:
                got_rows = n_rows >> (context * len(dut.n_rows[0])) & (2 * MAX_ROWS - 1)
                assert got_rows == job.fields["n_rows"], self.at

    def check_cause(self, ctx, got):
        """Compare the cycle's cause, in the order in which causes count."""
        dut = self.dut
        held = self.held
        loading = any(not ctx.get(dut.ready) >> self.context(job) & 1 for job in held)
        selecting = any(job.routed != NEVER and job.selected == NEVER for job in held)
        reading = ctx.get(dut.route.valid) or ctx.get(dut.attend.valid)
        if got["score_active"]:
            expected = {Cause.SCORE_ACTIVE}
        elif self.pending and got["stalled_softmax"]:
            expected = {Cause.SOFTMAX}
        elif self.pending and got["stalled_query"]:
            expected = {Cause.LOAD if loading else Cause.QUERY}
        elif self.pending or reading:
            expected = {Cause.MEMORY}
        elif selecting:
            expected = {Cause.SELECT}
        elif loading or (got["frontend_busy"] and not got["job_valid"]):
            expected = {Cause.LOAD}
        elif any(job.fetched != NEVER and not self.is_attended(job) for job in held):
            expected = {Cause.DRAIN}
        elif all(self.is_attended(job) if job.attends else job.handed_on != NEVER for job in held):
            expected = {Cause.FINISH}
        else:
            expected = {Cause.DRAIN, Cause.FINISH}  # between two stages
        cause = ctx.get(dut.cause)
        assert cause in expected, f"{self.at}: {cause}, not {expected}"
        if not got["idle"]:
            self.causes.append(cause)
        self.pending += got["allocated"] - got["score_done"]
        self.pending_reps += got["allocated_rep"] - got["rep_done"]

    def is_attended(self, job):
        return job.attended < self.cycle

    def check_load(self, ctx, got):
        """Load commands, cleared rows, ready."""
        dut = self.dut
        if ctx.get(dut.load_cmd.valid) and got["load_ready"]:
            assert self.commands, self.at
            names = ("target", "addr", "n_beats", "context")
            command = ctx.get(dut.load_cmd.payload)
            expected = self.commands.popleft()
            assert tuple(getattr(command, name) for name in names) == expected, self.at
            job = next(job for job in self.held if self.context(job) == expected[3])
            older = [other for other in self.held if other.number < job.number]
            assert all(self.is_ready(other) for other in older), f"{self.at}: loads of two jobs"
            assert ctx.get(dut.load_context) == expected[3], self.at
            self.loads.append((expected[0], job))
            if expected[0] == Target.QUERIES:
                job.requested = self.cycle
        clear = fields(ctx, dut.clear, ("valid", "row"))
        if clear["valid"]:
            context, row = divmod(clear["row"], MAX_ROWS)
            job = next((job for job in self.held if self.context(job) == context), None)
            assert job is not None, f"{self.at}: {clear}"
            assert job.works, f"{self.at}: {clear}"
            assert job.ready == NEVER, f"{self.at}: {clear}"
            assert row == job.n_cleared < job.fields["n_rows"], f"{self.at}: {clear}"
            job.n_cleared += 1
            if job.n_cleared == job.fields["n_rows"]:
                job.cleared = self.cycle
        ready = ctx.get(dut.ready)
        for job in self.held:
            is_ready = ready >> self.context(job) & 1
            assert is_ready or job.ready == NEVER, f"{self.at}: ready does not stay"
            if is_ready and job.ready == NEVER:
                job.ready = self.cycle - 1
                if job.works:
                    # The pulse, and the last row, are at least a cycle ago.
                    assert job.loaded < self.cycle, self.at
                    assert job.cleared < self.cycle, self.at
        free = set(range(dut.n_contexts)) - {self.context(job) for job in self.held}
        assert not any(ready >> context & 1 for context in free), self.at

    def same_job(self, ctx, payload, job):
        assert ctx.get(Value.cast(payload.descriptor)) == job.descriptor, self.at
        assert ctx.get(payload.context) == self.context(job), self.at
        assert ctx.get(payload.rep_shift) == job.rep_shift, self.at

    def check_fetch(self, ctx, got):
        """See that representatives and chunks are of the right job, and not read too early."""
        dut = self.dut
        if ctx.get(dut.route.valid) and self.reps is None:
            job = next(job for job in self.all if job.selects and job.routed == NEVER)
            self.same_job(ctx, dut.route.payload, job)
            assert job.requested != NEVER, self.at
            older = [other for other in self.held if other.number < job.number]
            # Slots that the score array does not take must not be ahead of those of another job.
            waits = any(other.attends and not self.is_attended(other) for other in older)
            assert self.is_ready(job) or not waits, f"{self.at}: representatives too early"
            self.reps = [job, self.rng.randrange(1, 5), self.cycle]
        elif got["route_ready"]:
            assert ctx.get(dut.route.valid), self.at
            self.reps[0].routed = self.cycle
            self.reps = None

        if ctx.get(dut.attend.valid) and self.chunks is None:
            job = next(job for job in self.all if job.attends and job.fetched == NEVER)
            self.same_job(ctx, dut.attend.payload, job)
            assert ctx.get(dut.attend_context) == self.context(job), self.at
            if job.kind == "all":
                assert job.requested != NEVER, self.at
            elif job.kind == "explicit":
                assert self.is_ready(job), self.at
            else:
                assert job.selected < self.cycle, self.at
            n_slots = self.rng.randrange(1, 5)
            if job.kind != "all" and self.rng.random() < 0.3:
                n_slots = None
            self.chunks = [job, n_slots, self.cycle]
        if ctx.get(dut.attend.valid):
            number = self.chunks[0].number + 1
            behind = next((job for job in self.held if job.number == number), None)
            listed = ctx.get(dut.next_listed)
            if behind is None:
                assert not listed, f"{self.at}: no job is behind"
            elif behind.selects:
                assert listed == (behind.selected < self.cycle), f"{self.at}: job {number}"
        if got["attend_ready"]:
            assert ctx.get(dut.attend.valid), self.at
            job = self.chunks[0]
            job.fetched = self.cycle
            if got["none"]:
                job.attended = self.cycle
            self.chunks = None

    def check_select(self, ctx, got):
        """See that chunks are selected when all representatives are scored."""
        dut = self.dut
        job = next((job for job in self.held if job.selects and job.selected == NEVER), None)
        under_way = job is not None and (job.routed != NEVER or ctx.get(dut.route.valid))
        if under_way:
            assert ctx.get(Value.cast(dut.route_job)) == job.descriptor, self.at
            assert ctx.get(dut.rep_shift) == job.rep_shift, self.at
            assert ctx.get(dut.select_context) == self.context(job), self.at
        if ctx.get(dut.select.valid):
            assert job.routed < self.cycle, self.at
            assert not self.pending_reps, self.at
            assert self.selecting is None, self.at
            assert self.cycle > job.scored + FLUSH, f"{self.at}: keys are on their way"
            if got["select_ready"]:
                names = ("n_rows", "n_chunks", "k", "keep_first", "keep_last", "group")
                assert fields(ctx, dut.select.payload, names) == {
                    name: job.fields[name] for name in names
                }, self.at
                self.selecting = job
        if got["selected"]:
            self.selecting.selected = self.cycle
            self.selecting = None

    def check_results(self, ctx, got):
        """Results of the oldest job, once it is attended and ready; its code until the release."""
        dut = self.dut
        held = self.held
        valid = ctx.get(dut.results.valid)
        job = held[0] if held else None
        if job is not None:
            assert ctx.get(dut.results_context) == self.context(job), self.at
            assert ctx.get(dut.result_code) == job.code, self.at
            addr = ctx.get(dut.result_error_addr)
            assert not job.failed or addr == job.error_addr, self.at
        if job is not None and job.attends and job.handed_on == NEVER:
            # In the cycle after a release its job is on its way to the register.
            turning = any(other.released == self.cycle - 1 for other in self.all)
            known = self.is_ready(job) and self.is_attended(job)
            assert valid == (known and not turning), self.at
        if valid:
            assert job is not None, self.at
            assert job.handed_on == NEVER, self.at
            assert self.is_ready(job), self.at
            if job.selects:
                assert job.selected < self.cycle, self.at
            if got["results_ready"]:
                payload = dut.results.payload
                assert ctx.get(Value.cast(payload.descriptor)) == job.descriptor, self.at
                names = ("context", "attend", "select", "sequence", "completion_addr")
                assert fields(ctx, payload, names) == {
                    "context": self.context(job),
                    "attend": job.attends,
                    "select": job.works and job.fields["write_selection"] == 1,
                    "sequence": job.number + 1,
                    "completion_addr": job.completion_addr,
                }, self.at
                job.handed_on = self.cycle
                self.ending = job
        if got["completed"]:
            self.ending.completed = self.cycle
            self.ending = None

    def follow_errors(self, ctx, got):
        """Keep the first error of each job; the job that is late is the one that is next."""
        late = self.timeout and self.interval >= self.timeout
        held = self.held
        for job in held:
            if job.failed:
                continue
            for event in got["errors"]:
                if event["valid"] and event["context"] == self.context(job):
                    job.code, job.error_addr = event["code"], event["addr"]
                    break
            else:
                if late and job is held[0] and not got["recording"]:
                    job.code = ErrorCode.TIMEOUT
        if got["released"]:
            self.ending.released = self.cycle
        self.interval = 0 if got["completed"] or got["idle"] else self.interval + 1

    def check_progress(self):
        """See that what depends on the sequencer alone does not wait."""
        job = self.held[0] if self.held else None
        if job is not None and job.ready == NEVER:
            assert self.cycle < max(job.loaded, job.cleared) + 3, f"{self.at}: not ready"

    async def run(self, ctx, kinds):
        """Send jobs of ``kinds``; run until all are complete."""
        number = len(self.all) + len(self.sent)
        self.sent += [Job(self.rng, kind, number + index) for index, kind in enumerate(kinds)]
        while self.sent or self.held or self.ending:
            await self.step(ctx)


def run_world(dut, world, bench, cycles=60_000):
    monitors = [
        check_hold(port) for port in (dut.load_cmd, dut.route, dut.attend, dut.select, dut.results)
    ]
    simulate(dut, bench, monitors=monitors, cycles=cycles)
    jobs = world.all
    assert all(job.completed != NEVER for job in jobs)
    for job in jobs:
        assert (job.requested != NEVER) == job.works
        assert (job.routed != NEVER) == (job.selected != NEVER) == job.selects
        assert (job.fetched != NEVER) == job.attends
    return jobs


@pytest.mark.parametrize(
    ("n_contexts", "bus_bytes", "pace", "error"),
    [
        (2, 8, 0.3, 0.0),
        (2, 64, 0.1, 0.01),
        (4, 16, 0.5, 0.02),
        (4, 32, 1.0, 0.0),
        (4, 8, 0.2, 0.6),
    ],
)
def test_random_jobs(n_contexts, bus_bytes, pace, error):
    seed = 10 * n_contexts + bus_bytes
    dut = sequencer(n_contexts, bus_bytes)
    world = World(dut, seed=seed, pace=pace, error=error)
    kinds = random.Random(seed).choices(KINDS, k=40)
    if bus_bytes == 8:  # every kind follows every kind
        kinds = [kind for pair in itertools.product(KINDS, KINDS) for kind in pair]

    async def bench(ctx):
        await world.run(ctx, kinds)

    jobs = run_world(dut, world, bench)
    assert world.most == n_contexts
    # Every outcome and every cause is met: none of the comparisons is of nothing.
    codes = {job.code for job in jobs if not job.refused}
    failures = {ErrorCode.READ, ErrorCode.CHECKSUM} if error else set()
    assert codes - {ErrorCode.NONE} == failures
    assert ErrorCode.NONE in codes or error > 0.5
    # Neighbours that answer at once leave no cycle in which only queries are waited for.
    assert set(world.causes) == set(Cause) - ({Cause.QUERY} if pace > 0.9 else set())


@pytest.mark.parametrize("n_contexts", [2, 4])
def test_next_job_is_listed(n_contexts):
    """While a job's chunks are read, the jobs behind it are selected; the first one tells."""
    dut = sequencer(n_contexts)
    world = World(dut, seed=3, pace=0.5)

    async def bench(ctx):
        world.hung |= {"chunks"}
        for number in range(n_contexts):
            world.sent.append(Job(world.rng, "top_k", number))
        while len(world.all) < n_contexts or world.all[1].selected >= world.cycle:
            await world.step(ctx)
            assert not ctx.get(dut.next_listed) or world.all[1].selected < world.cycle
        # A cycle later, and from then on.
        await world.step(ctx)
        for _ in range(50):
            await world.step(ctx)
            assert ctx.get(dut.attend.valid)
            assert ctx.get(dut.next_listed)
        world.hung.clear()
        await world.run(ctx, [])
        assert not ctx.get(dut.next_listed)

    run_world(dut, world, bench)


@pytest.mark.parametrize(("n_contexts", "timeout"), [(2, 30), (4, 25), (2, 1)])
def test_time_limit(n_contexts, timeout):
    """Counted from the last completion, or from idle; the oldest job that is not released fails."""
    dut = sequencer(n_contexts)
    world = World(dut, seed=n_contexts, pace=0.3, error=0.002, timeout=timeout)
    kinds = random.Random(n_contexts).choices(KINDS, k=60)

    async def bench(ctx):
        await world.run(ctx, kinds)

    jobs = run_world(dut, world, bench)
    codes = [job.code for job in jobs if not job.refused]
    assert codes.count(ErrorCode.TIMEOUT) > 5
    # With a limit of a cycle a job is in time only when its error came before.
    assert ErrorCode.NONE in codes or timeout == 1


@pytest.mark.parametrize(("timeout", "kind"), [(0, "all"), (100, "all"), (100, "fence")])
def test_time_from_idle(timeout, kind):
    """Time stands still while no job is here; an idle frontend does not count."""
    dut = sequencer()
    world = World(dut, seed=7, pace=1.0, timeout=timeout)

    async def bench(ctx):
        for _ in range(200):
            await world.step(ctx)
        world.hung |= {"loads", "results"}
        world.sent.append(Job(world.rng, kind, 0))
        while not world.all:
            await world.step(ctx)
        (job,) = world.all
        for _ in range(timeout + 1 if timeout else 500):
            assert not job.failed
            await world.step(ctx)
        assert job.code == (ErrorCode.TIMEOUT if timeout else ErrorCode.NONE)
        world.hung.clear()
        world.timeout = 0
        await world.run(ctx, ["top_k"])

    jobs = run_world(dut, world, bench)
    assert jobs[1].code == ErrorCode.NONE


def test_late_job_does_not_fail_the_next_one():
    """While the record of a job that was late is written, the time is still that job's."""
    dut = sequencer()
    world = World(dut, seed=8, pace=1.0, timeout=200)

    async def bench(ctx):
        world.hung |= {"loads", "complete"}
        world.sent += [Job(world.rng, "all", 0), Job(world.rng, "all", 1)]
        while not (world.all and world.all[0].failed):
            await world.step(ctx)
        world.hung.remove("loads")
        for _ in range(300):
            await world.step(ctx)
        assert world.all[0].released != NEVER
        assert len(world.all) == 2
        world.hung.clear()
        await world.run(ctx, [])

    jobs = run_world(dut, world, bench)
    assert [job.code for job in jobs] == [ErrorCode.TIMEOUT, ErrorCode.NONE]


@pytest.mark.parametrize("kind", KINDS)
def test_waits_of_a_job_alone(kind):
    """Cycles that the sequencer itself adds between the answers of its neighbours."""
    dut = sequencer()
    world = World(dut, seed=9, pace=1.0)
    streams = ("load_cmd", "route", "select", "attend", "results")
    first = {}

    async def bench(ctx):
        job = Job(world.rng, kind, 0)
        if job.works:
            job.fields["n_rows"] = 9
        world.sent.append(job)
        while world.sent or world.held or world.ending:
            for name in (*streams, "clear"):
                if ctx.get(getattr(dut, name).valid):
                    first.setdefault(name, world.cycle)
            await world.step(ctx)

    (job,) = run_world(dut, world, bench)
    expected = {}
    if job.works:
        expected |= {"load_cmd": job.taken + 2, "clear": job.taken + 2}
        assert job.ready == job.cleared + 1  # the queries were there before
        assert job.cleared == first["clear"] + 8
    else:
        assert job.ready == job.taken + 1
        expected["results"] = job.taken + 4
    if job.selects:
        expected["route"] = job.requested + 3
        expected["select"] = job.scored + FLUSH + 2
    if job.attends:
        expected["attend"] = {
            "all": job.requested + 4, "explicit": job.ready + 3
        }.get(kind, job.selected + 2)  # fmt: skip
        expected["results"] = max(job.attended, job.ready) + 1
    elif job.selects:
        expected["results"] = job.selected + 2
    assert first == expected


@pytest.mark.parametrize("bus_bytes", [8, 16, 32, 64])
def test_converts(bus_bytes):
    rtlil.convert(sequencer(4, bus_bytes))
    rtlil.convert(sequencer(2, bus_bytes, max_rows=1, n_errors=1))
