# amaranth: UnusedElaboratable=no
"""Selector against golden top-k selection."""

import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.router import select
from moska.hw.router.select import Selector
from moska.sim.bench import check_hold, put, simulate

SMALL = {"max_rows": 8, "max_chunks": 32, "width": 8, "n_lanes": 1}


def write_keys(dut, keys, rng, idle, stored=None):
    """Bench: write all keys but those equal to ``stored``, which are there.

    The lanes work on different rows, and skip a taken bank's turn.
    """

    async def bench(ctx):
        queues = [[] for _ in range(dut.n_lanes)]
        for row in range(len(keys)):
            queues[row % dut.n_lanes] += [
                (row, chunk, int(key)) for chunk, key in enumerate(keys[row]) if key != stored
            ]
        for queue in queues:
            rng.shuffle(queue)
        while any(queues):
            taken = set()
            for i, queue in enumerate(queues):
                write = {"valid": 0, "row": 0, "chunk": i, "key": -1}
                if queue and rng.random() >= idle and queue[-1][1] % dut.width not in taken:
                    row, chunk, key = queue.pop()
                    taken.add(chunk % dut.width)
                    write = {"valid": 1, "row": row, "chunk": chunk, "key": key}
                ctx.set(dut.keys[i], write)
            await ctx.tick()
        for i in range(dut.n_lanes):
            ctx.set(dut.keys[i].valid, 0)

    return bench


def run(dut, jobs, *, seed, stall=0.0, idle=0.0, stored=None):
    """Run (keys, select arguments) jobs one by one; return (selections, cycles of each)."""
    rng = random.Random(seed)
    results, cycles = [], []

    async def bench(ctx):
        for keys, job in jobs:
            n_rows, n_chunks = keys.shape
            await write_keys(dut, keys, rng, idle, stored)(ctx)
            await put(dut.start, [{"n_rows": n_rows, "n_chunks": n_chunks, **job}])(ctx)
            assert ctx.get(dut.busy)
            n_words = -(-n_chunks // dut.width)
            got = np.zeros((n_rows, n_words * dut.width), dtype=bool)
            expected = [(row, word) for row in range(n_rows) for word in range(n_words)]
            taken = n_cycles = 0
            while taken < len(expected):
                ctx.set(dut.o.ready, int(rng.random() >= stall))
                _, _, valid, ready, p = await ctx.tick().sample(
                    dut.o.valid, dut.o.ready, dut.o.payload
                )
                n_cycles += 1
                if valid and ready:
                    row, word = expected[taken]
                    assert (p.row, p.word) == (row, word), f"seed {seed}"
                    taken += 1
                    assert p.last == (taken == len(expected)), f"seed {seed}"
                    for b in range(dut.width):
                        got[row, word * dut.width + b] = p.bits >> b & 1
            ctx.set(dut.o.ready, 0)
            assert not ctx.get(dut.busy)
            assert not ctx.get(dut.o.valid)
            assert not got[:, n_chunks:].any(), f"seed {seed}"
            results.append(got[:, :n_chunks])
            cycles.append(n_cycles)

    simulate(dut, bench, monitors=[check_hold(dut.o)], cycles=300_000)
    return results, cycles


def check(dut, jobs, **options):
    results, cycles = run(dut, jobs, **options)
    for index, ((keys, job), got) in enumerate(zip(jobs, results, strict=True)):
        want = select(
            keys.astype(np.int64),
            job["k"],
            keep_first=job["keep_first"],
            keep_last=job["keep_last"],
            group=job["group"],
        )
        assert np.array_equal(got, want), (
            f"{options}, job {index} {job}: row, chunk {np.argwhere(got != want)[0]}"
        )
    return cycles


def job_of(k, keep_first=0, keep_last=0, group=1):
    return {"k": k, "keep_first": keep_first, "keep_last": keep_last, "group": group}


def random_keys(rng, rows, chunks, kind):
    if kind == "ties":
        return rng.integers(-2, 2, (rows, chunks))
    if kind == "equal":
        return np.full((rows, chunks), int(rng.integers(-32768, 32768)))
    if kind == "edges":
        return rng.choice([-32768, -32767, -1, 0, 1, 32766, 32767], (rows, chunks))
    return rng.integers(-32768, 32768, (rows, chunks))


@pytest.mark.parametrize("kind", ["any", "ties", "equal", "edges"])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_every_chunk_count(kind, stall):
    seed = 11
    rng = np.random.default_rng(seed)
    jobs = []
    for n_chunks in range(1, 33):
        k = (0, 1, n_chunks // 4, n_chunks - 1, n_chunks, n_chunks + 1, 65535)[n_chunks % 7]
        jobs.append((random_keys(rng, 2, n_chunks, kind), job_of(k)))
    check(Selector(**SMALL), jobs, seed=seed, stall=stall)


@pytest.mark.parametrize("kind", ["any", "ties", "equal"])
def test_every_k(kind):
    seed = 12
    rng = np.random.default_rng(seed)
    jobs = [(random_keys(rng, 2, 19, kind), job_of(k)) for k in range(21)]
    check(Selector(**SMALL), jobs, seed=seed, stall=0.2)


@pytest.mark.parametrize("kind", ["any", "ties"])
def test_forced_chunks(kind):
    seed = 13
    rng = np.random.default_rng(seed)
    jobs = []
    for n_chunks in (1, 7, 8, 9, 24, 32):
        for keep_first, keep_last, k in (
            (1, 0, 3),
            (0, 1, 2),
            (1, 2, n_chunks // 2),
            (5, 5, 4),
            (9, 0, 9),
            (n_chunks, 0, 2),
            (0, n_chunks, 3),
            (65535, 65535, 1),
            (3, n_chunks - 1, n_chunks - 2 if n_chunks > 2 else 1),
        ):
            jobs.append((random_keys(rng, 1, n_chunks, kind), job_of(k, keep_first, keep_last)))
    check(Selector(**SMALL), jobs, seed=seed)


@pytest.mark.parametrize("kind", ["any", "ties", "edges"])
@pytest.mark.parametrize("group", [2, 3, 4, 8])
def test_groups(kind, group):
    seed = 14 + group
    rng = np.random.default_rng(seed)
    jobs = []
    for n_chunks in (1, 8, 13, 32):
        for k in (1, n_chunks // 4, n_chunks // 2, n_chunks):
            keys = random_keys(rng, 8 // group * group, n_chunks, kind)
            jobs.append((keys, job_of(k, keep_first=k & 1, group=group)))
    check(Selector(**SMALL), jobs, seed=seed, stall=0.3)


@pytest.mark.parametrize(
    ("max_rows", "max_chunks", "width", "n_lanes"),
    [(16, 16, 8, 1), (2, 4, 4, 1), (4, 8, 2, 3), (8, 64, 32, 4), (4, 128, 64, 2), (64, 256, 16, 1)],
)
def test_sizes(max_rows, max_chunks, width, n_lanes):
    seed = 15
    rng = np.random.default_rng(seed)
    dut = Selector(max_rows=max_rows, max_chunks=max_chunks, width=width, n_lanes=n_lanes)
    n_rows = min(max_rows, 6)
    jobs = []
    for kind in ("any", "ties", "equal"):
        for n_chunks in (max_chunks, max_chunks // 2 + 1):
            keys = random_keys(rng, n_rows, n_chunks, kind)
            jobs.append((keys, job_of(n_chunks // 4, keep_last=1, group=2 - n_chunks % 2)))
    check(dut, jobs, seed=seed, idle=0.2)


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("n_words", [2, 3, 4])
def test_searches_that_end_one_by_one(width, n_words):
    """Rows under way get fewer pass by pass, in every order: no pass precedes a decision."""
    seed = 20
    rng = np.random.default_rng(seed)
    dut = Selector(max_rows=8, max_chunks=8 * width, width=width, n_lanes=1)
    jobs = []
    for n_rows in range(2, 6):
        for _ in range(12):
            keys = np.rint(rng.normal(200, 60, (n_rows, n_words * width))).astype(int)
            jobs.append((keys, job_of(n_words * width // 2, 1, 1)))
    check(dut, jobs, seed=seed)


def test_all_rows():
    """Every row and chunk address of the `tiny` size, in one job."""
    rng = np.random.default_rng(16)
    dut = Selector(max_rows=16, max_chunks=16, width=8, n_lanes=1)
    check(dut, [(random_keys(rng, 16, 16, "any"), job_of(4))] * 2, seed=16)


def test_keys_that_arrive_while_maxima_are_stored():
    """A lane that writes another row all the time delays the maxima and loses no key."""
    rng = np.random.default_rng(17)
    keys = random_keys(rng, 4, 32, "any")
    dut = Selector(**SMALL)
    words = []

    async def bench(ctx):
        await write_keys(dut, keys, random.Random(17), 0.0)(ctx)
        await put(dut.start, [{"n_rows": 2, "n_chunks": 32, **job_of(8, group=2)}])(ctx)
        ctx.set(dut.o.ready, 1)
        writes = random.Random(18)
        while len(words) < 8:
            lane = {"valid": 0, "row": 0, "chunk": writes.randrange(32), "key": 32767}
            if writes.random() < 0.8:
                lane |= {"valid": 1, "row": 3, "key": writes.randrange(-32768, 32768)}
                keys[3, lane["chunk"]] = lane["key"]
            ctx.set(dut.keys[0], lane)
            _, _, valid, p = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            if valid:
                words.append(p.bits)
        ctx.set(dut.keys[0].valid, 0)
        await put(dut.start, [{"n_rows": 4, "n_chunks": 32, **job_of(8)}])(ctx)
        while len(words) < 24:
            _, _, valid, p = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            if valid:
                words.append(p.bits)

    simulate(dut, bench)
    rows = np.array([[word >> b & 1 for b in range(8)] for word in words]).reshape(6, 32)
    assert np.array_equal(rows[:2], select(keys[:2].astype(np.int64), 8, group=2))
    assert np.array_equal(rows[5], select(keys[3:].astype(np.int64), 8)[0])


def test_no_rows():
    """A job without rows sends nothing and frees the component."""
    dut = Selector(**SMALL)

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        await put(dut.start, [{"n_rows": 0, "n_chunks": 4, **job_of(2)}] * 2)(ctx)
        for _ in range(4):
            _, _, valid = await ctx.tick().sample(dut.o.valid)
            assert not valid
        assert not ctx.get(dut.busy)

    simulate(dut, bench)


LOWEST = -32768  # what the banks of a new Selector hold


def cycles_of(width, n_words, n_rows, key, share=4, group=1):
    """Cycles of one job: every fourth key is ``key``, the others are LOWEST."""
    dut = Selector(max_rows=16, max_chunks=8 * width, width=width, n_lanes=1)
    keys = np.full((n_rows, n_words * width), LOWEST)
    keys[:, ::4] = key
    job = job_of(n_words * width // share, group=group)
    (cycles,) = check(dut, [(keys, job)], seed=1, stored=LOWEST)
    return cycles


@pytest.mark.parametrize(("width", "overhead"), [(8, 2), (16, 2), (64, 3)])
@pytest.mark.parametrize("n_words", [1, 2, 4, 8])
def test_cycles(width, overhead, n_words):
    # Keys that differ in the last digit only need all 8 passes.
    one_row = cycles_of(width, n_words, 1, LOWEST + 1)
    assert one_row == 8 * (n_words + overhead) + n_words + 7
    # One pass decides when the first digits do.
    assert one_row - cycles_of(width, n_words, 1, 5) == 7 * (n_words + overhead)
    # Of several rows, the passes of one hide the overhead of the others.
    n_rows = 2 * (overhead + 1)
    n_reads = 9 * n_words * n_rows
    cycles = cycles_of(width, n_words, n_rows, LOWEST + 1)
    assert n_reads < cycles <= n_reads + 12 + (n_rows if n_words == 1 else 0)
    # Rows without a pass.
    assert cycles_of(width, n_words, n_rows, LOWEST, share=1) == n_rows * (n_words + 1) + 5


@pytest.mark.parametrize("n_words", [1, 4])
def test_cycles_of_ties(n_words):
    """All keys are equal: 8 passes, and two reads a word and some steps to send it."""
    cycles = cycles_of(16, n_words, 12, LOWEST)
    n_reads = 12 * (8 * n_words + n_words)
    assert n_reads < cycles <= 12 * (10 * n_words + 6) + 12 * n_words


def test_cycles_of_groups():
    """The maxima of a group are made while others are searched."""
    cycles = cycles_of(8, 4, 16, LOWEST + 1, group=2)
    # Reads: the members for the maxima, 8 passes, the members' words; the first group's maxima
    # and the last group's search are not hidden.
    n_reads = 8 * (2 + 8 + 2) * 4
    assert n_reads < cycles <= n_reads + (4 * (2 + 2) + 1) + 16 * (4 + 2)


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 4])
def test_narrow_keys(n_chunks):
    """The size of the proofs: keys of 2 bits, all of them for one row."""
    dut = Selector(max_rows=2, max_chunks=4, width=2, n_lanes=1, key_width=2)
    assert (dut.n_slots, dut.n_digits) == (3, 1)
    rng = np.random.default_rng(19)
    jobs = []
    for code in range(4**n_chunks):
        first = [(code >> 2 * chunk & 3) - 2 for chunk in range(n_chunks)]
        keys = np.array([first, rng.integers(-2, 2, n_chunks)])
        k, keep_first, keep_last = (int(x) for x in rng.integers(0, 4, 3))
        jobs.append((keys, job_of(k, keep_first // 2, keep_last // 2, group=1 + code % 2)))
    check(dut, jobs, seed=19, stall=0.2)


@pytest.mark.parametrize(
    ("max_rows", "max_chunks", "width", "n_lanes"),
    [
        (16, 16, 8, 1),
        (64, 256, 16, 1),
        (16, 1024, 64, 16),
        # A bit of stored keys costs microseconds, to write its initial value: here 16 Mbit.
        pytest.param(512, 2048, 64, 16, marks=pytest.mark.slow),
    ],
)
def test_converts(max_rows, max_chunks, width, n_lanes):
    dut = Selector(max_rows=max_rows, max_chunks=max_chunks, width=width, n_lanes=n_lanes)
    assert rtlil.convert(dut, emit_src=False).count("cell $meminit_v2") == width + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_rows": 6}, "max_rows must be a power of two, at least 2, not 6"),
        ({"width": 1}, "width must be a power of two, at least 2, not 1"),
        ({"max_chunks": 4}, "max_chunks must be a power of two, at least 8, not 4"),
        ({"n_lanes": 0}, "n_lanes must be at least 1, not 0"),
        ({"key_width": 0}, "key_width must be even, at least 2, not 0"),
        ({"key_width": 3}, "key_width must be even, at least 2, not 3"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selector(**{**SMALL, **arguments})
