# amaranth: UnusedElaboratable=no
"""Fetch against a Python model of its commands and slots: jobs, loads, interleaving, failures."""

import random

import pytest
from amaranth.back import rtlil

from moska.golden.formats import ALIGN
from moska.golden.layout import CHECKSUM_BYTES, Selection, pack_descriptor
from moska.hw.control.fetch import PACE, Fetch
from moska.hw.control.load import Channel, Target
from moska.sim.bench import check_hold, fields, simulate

MAX_CHUNKS = 32
N_CONTEXTS = 4
SLOT_FIELDS = "representative", "context", "chunk", "n_tokens", "all", "job_last"
CHANNELS = {
    Target.CHECKSUM: Channel.SCALES,
    Target.SCALES: Channel.SCALES,
    Target.KEYS: Channel.KEYS,
    Target.VALUES: Channel.VALUES,
}
BASES = {
    "k_addr": 0x3_0000_0080,
    "v_addr": 0x4_0000_00C0,
    "scale_addr": 0x5_0000_0100,
    "rep_addr": 0xFFFF_FFF0_0000_0140,
    "rep_scale_addr": 0x7_0000_0180,
    "checksum_addr": 0x8_0000_0040,
}


def fetch(*, bus_bytes=8, head_dim=16, buffer_tokens=32, buffer_slots=4):
    return Fetch(
        max_chunks=MAX_CHUNKS,
        head_dim=head_dim,
        bus_bytes=bus_bytes,
        buffer_tokens=buffer_tokens,
        buffer_slots=buffer_slots,
        n_contexts=N_CONTEXTS,
    )


def attend_job(context, chunk_tokens, n_tokens, *, wanted=None, checksum=0):
    """Job that reads chunks: the ``wanted`` ones, None: all."""
    return {
        "context": context,
        "wanted": wanted,
        "rep_shift": 0,
        "descriptor": BASES
        | {
            "selection": Selection.ALL if wanted is None else Selection.TOP_K,
            "n_chunks": -(-n_tokens // chunk_tokens),
            "chunk_tokens": chunk_tokens,
            "n_tokens": n_tokens,
            "checksum": checksum,
        },
    }


def route_job(context, n_chunks, rep_shift):
    """Job that reads representatives."""
    return {
        "context": context,
        "rep_shift": rep_shift,
        "descriptor": BASES
        | {
            "selection": Selection.TOP_K,
            "n_chunks": n_chunks,
            "chunk_tokens": 16,
            "n_tokens": 16 * n_chunks,
            "rep_rows": 1 << rep_shift,
        },
    }


def slots_of(dut, job, *, representative):
    """Slots of a job: (fields of the slot, its commands without the slot number)."""
    descriptor, context = job["descriptor"], job["context"]
    runs = []  # chunk, first token, tokens
    if representative:
        runs = [(None, 0, descriptor["n_chunks"] << job["rep_shift"])]
    else:
        for chunk in range(descriptor["n_chunks"]):
            first = chunk * descriptor["chunk_tokens"]
            if job["wanted"] is None or chunk in job["wanted"]:
                count = min(descriptor["chunk_tokens"], descriptor["n_tokens"] - first)
                runs.append((chunk, first, count))

    def beats(n_bytes):
        return -(-n_bytes // ALIGN) * ALIGN // dut.bus_bytes

    out = []
    for run, (chunk, start, count) in enumerate(runs):
        for done in range(0, count, dut.buffer_tokens):
            token, n = start + done, min(count - done, dut.buffer_tokens)
            last = done + n == count
            prefix = "rep_" if representative else ""
            rows = token * dut.head_dim, beats(n * dut.head_dim)
            keys = descriptor["rep_addr" if representative else "k_addr"]
            reads = [
                (Target.SCALES, descriptor[f"{prefix}scale_addr"] + 4 * token, beats(4 * n)),
                (Target.KEYS, keys + rows[0], rows[1]),
            ]
            if not representative:
                reads.append((Target.VALUES, descriptor["v_addr"] + rows[0], rows[1]))
                if descriptor["checksum"] and not done:
                    addr = descriptor["checksum_addr"] + CHECKSUM_BYTES * chunk
                    n_beats = max(1, CHECKSUM_BYTES // dut.bus_bytes)
                    reads.insert(0, (Target.CHECKSUM, addr, n_beats))
            slot = {
                "representative": int(representative),
                "context": context,
                "chunk": token >> job["rep_shift"] if representative else chunk,
                "n_tokens": n,
                "all": int(representative or job["wanted"] is None),
                "job_last": int(last and run == len(runs) - 1),
            }
            commands = [
                {
                    "target": target.value,
                    "addr": addr,
                    "n_beats": n_beats,
                    "context": context,
                    "representative": int(representative),
                    "chunk_first": int(not representative and not done),
                    "chunk_last": int(not representative and last),
                    "checked": int(not representative and descriptor["checksum"]),
                }
                for target, addr, n_beats in reads
            ]
            out.append((slot, commands))
    return out


class Run:
    """Jobs through a Fetch; its surroundings take commands and slots and hand slots back."""

    def __init__(
        self,
        dut,
        *,
        attend=(),
        route=(),
        loads=(),
        seed=0,
        idle=0.2,
        route_idle=0.2,
        stall=0.2,
        keep=10,
        next_listed=0,
        route_after=0,
        fail=None,
    ):
        self.dut = dut
        self.jobs = {"attend": list(attend), "route": list(route)}
        self.loads = list(loads)
        self.seed = seed
        self.rng = random.Random(seed)
        self.idle = {"attend": idle, "route": route_idle}  # chance a cycle that no job comes
        self.stall = stall
        self.next_listed = next_listed
        self.route_after = route_after  # slots, before the first job on ``route``
        self.keep = keep  # cycles that a slot's keys, and then its values, are in use, at most
        self.fail = fail or {}  # context: slots of its job that are allocated before it fails
        self.commands = []  # in order, fields
        self.slots = []
        self.allocated = []  # (cycle, representative)
        self.nones = self.n_read = self.n_skipped = 0
        self.ready_after = {"attend": [], "route": []}  # slots allocated when a job was ready
        self.reordered = False
        self.most = 0

    def model(self, name):
        return [
            slots_of(self.dut, job, representative=name == "route") for job in self.jobs[name]
        ]

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        todo = {name: list(jobs) for name, jobs in self.jobs.items()}
        model = {name: self.model(name) for name in todo}
        remaining = {
            name: [len(slots) for slots in model[name]] for name in todo
        }  # slots that each job may still give
        held = {"attend": 0, "route": 0}  # cycles that the job on a port waits
        loads = list(self.loads)
        asked = [(None, 0)] * 2
        current = None  # job on ``attend``
        keys, values = [], []  # slots in use: [number, representative, cycles]
        in_use, order = set(), []
        taken = cycle = quiet = 0
        chunk_slots = 0  # since representatives wait or were last served
        failed = 0
        given = {context: 0 for context in range(N_CONTEXTS)}
        ctx.set(dut.next_listed, self.next_listed)
        while quiet < 5:
            for name, port in (("attend", dut.attend), ("route", dut.route)):
                if name == "route" and len(self.allocated) < self.route_after:
                    continue
                if todo[name] and not held[name] and rng.random() >= self.idle[name]:
                    job = todo[name][0]
                    bits = int.from_bytes(pack_descriptor(**job["descriptor"]), "little")
                    ctx.set(port.payload.descriptor.as_value(), bits)
                    ctx.set(port.payload.context, job["context"])
                    ctx.set(port.payload.rep_shift, job["rep_shift"])
                    ctx.set(port.valid, 1)
                    held[name] = 1
                    if name == "attend":
                        current = job
            if loads and not ctx.get(dut.load_cmd.valid) and rng.random() < 0.05:
                ctx.set(dut.load_cmd.payload, loads[0])
                ctx.set(dut.load_cmd.valid, 1)
            ctx.set(dut.cmd.ready, int(rng.random() >= self.stall))
            ctx.set(dut.slot.ready, int(rng.random() >= self.stall))
            ctx.set(dut.failed, failed)
            job, chunk = asked.pop(0)
            listed = (job and job["wanted"]) or ()
            ctx.set(dut.wanted, int(chunk in listed))
            asked.append((current, ctx.get(dut.wanted_chunk)))

            # Who is done with a slot, in any order.
            over = [entry for entry in keys if entry[2] == 0]
            ctx.set(dut.score_done.valid, int(bool(over)))
            scored = valued = None
            if over:
                scored = rng.choice(over)
                ctx.set(dut.score_done.slot, scored[0])
            over = [entry for entry in values if entry[2] == 0]
            ctx.set(dut.value_done.valid, int(bool(over)))
            if over:
                valued = rng.choice(over)
                ctx.set(dut.value_done.slot, valued[0])

            self.nones += ctx.get(dut.none)
            self.n_read += ctx.get(dut.chunk_read)
            self.n_skipped += ctx.get(dut.chunk_skipped)
            allocated = ctx.get(dut.allocated)
            load_taken = ctx.get(dut.load_cmd.valid) and ctx.get(dut.load_cmd.ready)
            ready = {
                name: held[name] and ctx.get(getattr(dut, name).ready) for name in held
            }
            if ctx.get(dut.none):
                assert ready["attend"], "none comes with the ready of its job"
                assert not model["attend"][len(self.jobs["attend"]) - len(todo["attend"])]
            command = None
            if ctx.get(dut.cmd.valid) and ctx.get(dut.cmd.ready):
                names = "target", "context", "slot", "representative", "chunk_first", "chunk_last"
                command = fields(ctx, dut.cmd.payload.tag, (*names, "checked"))
                command |= fields(ctx, dut.cmd.payload, ("addr", "n_beats", "id"))
            slot = None
            if ctx.get(dut.slot.valid) and ctx.get(dut.slot.ready):
                slot = fields(ctx, dut.slot.payload, SLOT_FIELDS)

            if allocated.valid:
                name = "route" if allocated.representative else "attend"
                index = len(self.jobs[name]) - len(todo[name])
                waiting = held["route"] > 1
                if waiting:
                    waiting = remaining["route"][len(self.jobs["route"]) - len(todo["route"])]
                chunk_slots = 0 if allocated.representative or not waiting else chunk_slots + 1
                if not self.next_listed:
                    assert chunk_slots <= PACE, "representatives wait too long"
                number = len(self.allocated) % dut.buffer_slots
                assert number not in in_use, f"slot {number} is filled while in use"
                in_use.add(number)
                self.most = max(self.most, len(in_use))
                self.allocated.append((cycle, allocated.representative))
                context = self.jobs[name][index]["context"]
                remaining[name][index] -= 1
                if failed >> context & 1:
                    remaining[name][index] = 0  # this was its last one
            await ctx.tick()
            cycle += 1

            for name, port in (("attend", dut.attend), ("route", dut.route)):
                if ready[name]:
                    done = len(self.jobs[name]) - len(todo[name])
                    assert not remaining[name][done], "ready before the job's last slot"
                    todo[name].pop(0)
                    held[name] = 0
                    ctx.set(port.valid, 0)
                    if name == "attend":
                        current = None
                elif held[name]:
                    held[name] += 1
            if load_taken:
                loads.pop(0)
                ctx.set(dut.load_cmd.valid, 0)
            if command is not None:
                self.commands.append(command)
            if allocated.valid:
                given[context] += 1
            for context, count in self.fail.items():
                if given[context] >= count and rng.random() < 0.3:
                    failed |= 1 << context
            for entry in keys + values:
                entry[2] = max(0, entry[2] - 1)
            if scored:
                keys.remove(scored)
                if scored[1]:
                    in_use.remove(scored[0])
                    self.reordered |= order[0] != scored[0]
                    order.remove(scored[0])
                else:
                    values.append([scored[0], 0, rng.randint(0, self.keep)])
            if valued:
                values.remove(valued)
                in_use.remove(valued[0])
                self.reordered |= order[0] != valued[0]
                order.remove(valued[0])
            if slot is not None:
                self.slots.append(slot)
                number = taken % dut.buffer_slots
                keys.append([number, slot["representative"], rng.randint(0, self.keep)])
                order.append(number)
                taken += 1
            quiet = 0 if any(todo.values()) or loads or ctx.get(dut.busy) else quiet + 1

    def check(self):
        """Compare all that was seen with the model; return the slots that each job gave."""
        n_slots = self.dut.buffer_slots
        where = f"seed {self.seed}"
        # Slots and their commands, by kind, each in order.
        model = {1: self.model("route"), 0: self.model("attend")}
        loads = [command for command in self.commands if command["id"] == Channel.CONTROL.value]
        names = "addr", "n_beats", "target", "context"
        assert [{name: load[name] for name in names} for load in loads] == [
            load | {"target": load["target"].value} for load in self.loads
        ], where
        commands = [entry for entry in self.commands if entry["id"] != Channel.CONTROL.value]
        assert [entry[1] for entry in self.allocated] == [
            slot["representative"] for slot in self.slots
        ], where
        counts = {1: [0] * len(model[1]), 0: [0] * len(model[0])}
        job = {1: 0, 0: 0}
        for index, slot in enumerate(self.slots):
            kind = slot["representative"]
            while not model[kind][job[kind]]:
                job[kind] += 1
            expected, reads = model[kind][job[kind]][counts[kind][job[kind]]]
            counts[kind][job[kind]] += 1
            cut = slot["job_last"] and not expected["job_last"]
            if cut:
                assert expected["context"] in self.fail, f"{where}, slot {index}: cut short"
                expected = expected | {"job_last": 1}
                reads = [read | {"chunk_last": int(not kind)} for read in reads]
            assert slot == expected, f"{where}, slot {index}"
            for read in reads:
                command = commands.pop(0)
                wanted = read | {
                    "slot": index % n_slots,
                    "id": CHANNELS[Target(read["target"])].value,
                }
                assert command == wanted, f"{where}, slot {index}"
            job[kind] += slot["job_last"]
        assert not commands, where
        return counts


def run(dut, **arguments):
    """Run, check; every job that does not fail gives all of its slots."""
    result = Run(dut, **arguments)
    simulate(
        dut,
        result.bench,
        monitors=[check_hold(dut.cmd), check_hold(dut.slot)],
        cycles=30_000,
    )
    counts = result.check()
    for kind, name in ((1, "route"), (0, "attend")):
        for job, count, slots in zip(
            result.jobs[name], counts[kind], result.model(name), strict=True
        ):
            if job["context"] in result.fail:
                assert (count > 0) == (len(slots) > 0)
            else:
                assert count == len(slots)
    if not result.fail:
        jobs = result.jobs["attend"]
        n_chunks = sum(job["descriptor"]["n_chunks"] for job in jobs)
        n_read = sum(
            job["descriptor"]["n_chunks"] if job["wanted"] is None else len(job["wanted"])
            for job in jobs
        )
        assert (result.n_read, result.n_skipped) == (n_read, n_chunks - n_read)
        assert result.nones == sum(job["wanted"] == set() for job in jobs)
    return result, counts


SHAPES = [(8, 16), (16, 64), (64, 64), (64, 128), (32, 64)]


@pytest.mark.parametrize(("bus_bytes", "head_dim"), SHAPES)
@pytest.mark.parametrize(
    ("chunk_tokens", "n_tokens"),
    [
        (32, 32 * 6),  # a chunk fills a slot
        (16, 16 * 5 + 1),  # half a slot; one token in the last
        (80, 80 * 3 + 47),  # several slots to a chunk, the last one short
        (4096, 95),  # one chunk, shorter than its size
    ],
)
def test_all_chunks(bus_bytes, head_dim, chunk_tokens, n_tokens):
    dut = fetch(bus_bytes=bus_bytes, head_dim=head_dim)
    jobs = [attend_job(1, chunk_tokens, n_tokens, checksum=n_tokens % 2)]
    result, _ = run(dut, attend=jobs, seed=n_tokens)
    assert sum(slot["n_tokens"] for slot in result.slots) == n_tokens


@pytest.mark.parametrize(
    "wanted", [set(), {0}, {31}, {0, 1, 2, 30, 31}, set(range(1, 32, 2)), set(range(32))]
)
def test_unwanted_chunks_are_skipped(wanted):
    jobs = [
        attend_job(context, 48, 48 * 31 + 5, wanted=chunks, checksum=1)
        for context, chunks in ((0, {3}), (1, wanted), (2, {4, 5}))
    ]
    run(fetch(), attend=jobs, seed=len(wanted))


@pytest.mark.parametrize(
    ("rep_shift", "n_chunks"), [(0, 1), (0, 32), (1, 17), (2, 8), (3, 9), (5, 3)]
)
@pytest.mark.parametrize(("bus_bytes", "head_dim"), [(8, 16), (64, 128)])
def test_representatives(rep_shift, n_chunks, bus_bytes, head_dim):
    dut = fetch(bus_bytes=bus_bytes, head_dim=head_dim)
    run(dut, route=[route_job(3, n_chunks, rep_shift)], seed=rep_shift)


def random_load(rng):
    return {
        "addr": rng.getrandbits(64),
        "n_beats": rng.randrange(1, 1 << 20),
        "target": rng.choice(
            [Target.DESCRIPTOR, Target.SELECTION, Target.QUERY_SCALES, Target.QUERIES]
        ),
        "context": rng.randrange(N_CONTEXTS),
    }


@pytest.mark.parametrize("buffer_slots", [2, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_jobs_share_the_slots(buffer_slots, seed):
    """Representatives of later jobs between chunks of earlier ones, and loads between both."""
    rng = random.Random(seed)
    attend, route = [], []
    for index in range(4):
        n_chunks = rng.randint(1, MAX_CHUNKS)
        wanted = None if rng.random() < 0.3 else set(rng.sample(range(n_chunks), n_chunks // 2))
        chunk_tokens = 16 * rng.randint(1, 5)
        n_tokens = chunk_tokens * n_chunks - rng.randrange(chunk_tokens)
        attend.append(
            attend_job(
                index % N_CONTEXTS,
                chunk_tokens,
                n_tokens,
                wanted=wanted,
                checksum=rng.randint(0, 1),
            )
        )
        route.append(route_job((index + 1) % N_CONTEXTS, rng.randint(1, 12), rng.randint(0, 5)))
    result, _ = run(
        fetch(buffer_slots=buffer_slots),
        attend=attend,
        route=route,
        loads=[random_load(rng) for _ in range(10)],
        seed=seed,
        route_idle=0.99,
        keep=20,
    )
    kinds = [slot["representative"] for slot in result.slots]
    assert kinds != sorted(kinds, reverse=True), "representatives only before chunks"
    assert kinds != sorted(kinds), "representatives only behind chunks"
    if buffer_slots > 2:
        assert result.reordered, "slots were freed in order"


STEADY = {"keep": 200, "stall": 0.0, "idle": 0.0, "route_idle": 0.0}


def chunks_between(kinds):
    """Chunk slots before each slot of representatives, since the one before it."""
    counts, since = [], 0
    for kind in kinds:
        if kind:
            counts.append(since)
        since = 0 if kind else since + 1
    return counts


def test_representatives_of_the_next_job_are_done_by_the_middle():
    job = attend_job(0, 32, 32 * MAX_CHUNKS)
    result, _ = run(fetch(), attend=[job], route=[route_job(1, MAX_CHUNKS, 3)], seed=3, **STEADY)
    counts = chunks_between([slot["representative"] for slot in result.slots])
    assert len(counts) == MAX_CHUNKS * 8 // 32
    assert max(counts) <= PACE
    assert MAX_CHUNKS // 4 < sum(counts) <= MAX_CHUNKS // 2 + 1, counts


@pytest.mark.parametrize(
    ("wanted", "begin"), [(None, 3), (None, 20), (set(range(0, MAX_CHUNKS, 2)), 3)]
)
def test_representatives_of_a_later_job_are_spread_over_a_job(wanted, begin):
    """Wherever they begin, they go evenly, and into the chunks of the next job."""
    jobs = [attend_job(context, 32, 32 * MAX_CHUNKS, wanted=wanted) for context in (0, 1)]
    n_chunks = MAX_CHUNKS if wanted is None else len(wanted)
    result, _ = run(
        fetch(), attend=jobs, route=[route_job(2, MAX_CHUNKS, 3)], seed=3, next_listed=1,
        route_after=begin, **STEADY,
    )  # fmt: skip
    kinds = [slot["representative"] for slot in result.slots]
    counts = chunks_between(kinds)[1:]
    assert len(counts) == MAX_CHUNKS * 8 // 32 - 1
    # One more may go between two jobs, where no chunk waits.
    assert counts.count(0) <= 1, counts
    assert 0.65 * n_chunks < sum(counts) <= 0.85 * n_chunks, counts


def test_representatives_do_not_wait_when_no_chunk_does():
    result, _ = run(
        fetch(), route=[route_job(2, MAX_CHUNKS, 3)], seed=3, next_listed=1, **STEADY
    )
    assert len(result.slots) == MAX_CHUNKS * 8 // 32


@pytest.mark.parametrize("buffer_slots", [2, 4, 8])
def test_slots_are_filled_ahead_and_never_twice(buffer_slots):
    dut = fetch(buffer_slots=buffer_slots)
    result, _ = run(dut, attend=[attend_job(0, 32, 640)], seed=1, stall=0.0, keep=60)
    assert result.most == buffer_slots


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("before", [0, 1, 5])
def test_failed_jobs_end_soon(seed, before):
    """A job that fails gives one more slot; jobs around it are whole."""
    rng = random.Random(seed)
    wanted = [None, set(range(0, 32, 3)), set(range(20, 32))][seed % 3]
    attend = [
        attend_job(0, 48, 48 * 4),
        attend_job(1, 80, 80 * 32, wanted=wanted, checksum=1),
        attend_job(2, 32, 32 * 20, wanted={3, 11}),
    ]
    route = [route_job(3, 32, 4), route_job(2, 5, 3)]
    fail = {1: before, 3: before}
    result, counts = run(
        fetch(), attend=attend, route=route, fail=fail, loads=[random_load(rng)], seed=seed
    )
    # It may fail some cycles later than planned, but the slots are then still being taken.
    assert counts[0][1] < 10 + before
    assert counts[1][0] < 10 + before
    assert sum(slot["job_last"] for slot in result.slots) == 5


def allocation_cycles(dut, **arguments):
    result, _ = run(dut, idle=0.0, route_idle=0.0, stall=0.0, keep=0, **arguments)
    return [cycle for cycle, _ in result.allocated]


@pytest.mark.parametrize(("checksum", "cycles"), [(0, 4), (1, 5)])
def test_cycles_of_a_chunk_slot(checksum, cycles):
    """A cycle to allocate and one for each command."""
    dut = fetch(bus_bytes=64, head_dim=64, buffer_slots=16)
    jobs = [attend_job(0, 32, 32 * 12, wanted=set(range(12)), checksum=checksum)]
    at = allocation_cycles(dut, attend=jobs)
    assert at == [at[0] + cycles * index for index in range(12)]


def test_cycles_of_a_representative_slot():
    dut = fetch(bus_bytes=64, head_dim=64, buffer_slots=16)
    at = allocation_cycles(dut, route=[route_job(0, 32, 3)])
    assert at == [at[0] + 3 * index for index in range(8)]


def test_cycles_of_a_skipped_chunk():
    dut = fetch(bus_bytes=64, head_dim=64, buffer_slots=16)
    at = allocation_cycles(dut, attend=[attend_job(0, 32, 32 * 32, wanted={0, 20, 31})])
    assert at[1] - at[0] <= 20
    # The last one is found at once, since the scan goes on ahead of the reads.
    assert at[2] - at[1] <= 12


def test_converts():
    assert "fetch" in rtlil.convert(fetch(), name="fetch")
