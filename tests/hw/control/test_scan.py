# amaranth: UnusedElaboratable=no
"""Chunk scan: wanted chunks in order, the last one marked, at one chunk a cycle."""

import itertools
import random

import pytest
from amaranth.back import rtlil

from moska.hw.control.scan import AHEAD, ChunkScan
from moska.sim.bench import check_hold, get, put, simulate

MAX_CHUNKS = 64
FIELDS = "chunk", "token", "last", "none"


def lists(dut, jobs):
    """Bench: answers ``wanted`` as the lists of the jobs' chunks do, two cycles later."""

    async def bench(ctx):
        done = -1
        asked = [(0, 0)] * dut.wanted_latency  # (job, chunk)
        while True:
            job, chunk = asked.pop(0)
            ctx.set(dut.wanted, int(job >= 0 and chunk in jobs[job][2]))
            asked.append((done, ctx.get(dut.wanted_chunk)))
            _, _, valid, ready = await ctx.tick().sample(dut.start.valid, dut.start.ready)
            done += valid & ready

    return bench


def expected(jobs):
    """Items and numbers of chunks found and passed over."""
    items, n_read, n_skipped = [], 0, 0
    for n_chunks, chunk_tokens, wanted, every in jobs:
        found = [chunk for chunk in range(n_chunks) if every or chunk in wanted]
        n_read += len(found)
        n_skipped += n_chunks - len(found)
        items += [(chunk, chunk * chunk_tokens, int(chunk == found[-1]), 0) for chunk in found]
        if not found:
            items.append((None, None, 1, 1))
    return items, n_read, n_skipped


def run(jobs, *, idle=0.0, stall=0.0, seed=0):
    """Scan ``jobs`` (n_chunks, chunk_tokens, wanted chunks, every); compare items and pulses."""
    dut = ChunkScan(max_chunks=MAX_CHUNKS)
    items, n_read, n_skipped = expected(jobs)
    out, pulses, cycles = [], [0, 0], {"start": [], "o": []}

    async def count(ctx):
        cycle = 0
        async for _, _, read, skipped, *moves in ctx.tick().sample(
            dut.read, dut.skipped, dut.start.valid, dut.start.ready, dut.o.valid, dut.o.ready
        ):
            pulses[0] += read
            pulses[1] += skipped
            if moves[0] and moves[1]:
                cycles["start"].append(cycle)
            if moves[2] and moves[3]:
                cycles["o"].append(cycle)
            cycle += 1

    starts = [
        {"n_chunks": n_chunks, "chunk_tokens": chunk_tokens, "every": int(every)}
        for n_chunks, chunk_tokens, _, every in jobs
    ]
    simulate(
        dut,
        put(dut.start, starts, idle=idle, seed=seed),
        get(dut.o, out, len(items), stall=stall, seed=seed + 1),
        monitors=[lists(dut, jobs), count, check_hold(dut.o)],
    )
    for index, (item, wanted) in enumerate(zip(out, items, strict=True)):
        actual = tuple(getattr(item, name) for name in FIELDS)
        if wanted[3]:
            actual = (None, None, *actual[2:])
        assert actual == wanted, f"seed {seed}, item {index}: {actual} instead of {wanted}"
    assert pulses == [n_read, n_skipped], f"seed {seed}"
    return cycles


def random_jobs(count, seed):
    rng = random.Random(seed)
    jobs = []
    for _ in range(count):
        n_chunks = rng.choice([1, 2, rng.randint(1, MAX_CHUNKS), MAX_CHUNKS])
        density = rng.choice([0.0, 0.05, 0.5, 1.0])
        wanted = {chunk for chunk in range(n_chunks) if rng.random() < density}
        jobs.append((n_chunks, 16 * rng.randint(1, 8), wanted, rng.random() < 0.2))
    return jobs


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.3, 0.3), (0.0, 0.9), (0.9, 0.0)])
def test_items(seed, idle, stall):
    run(random_jobs(10, seed), idle=idle, stall=stall, seed=seed)


@pytest.mark.parametrize("wanted", [set(), {0}, {63}, {0, 63}, {62, 63}, set(range(64))])
def test_edges(wanted):
    run([(64, 32, wanted, False), (1, 16, {0}, False), (1, 16, set(), False)])


def test_more_chunks_than_lists_name():
    """A job that reads every chunk may have more than ``max_chunks``."""
    run([(3 * MAX_CHUNKS + 1, 16, set(), True)], stall=0.2, seed=5)


@pytest.mark.parametrize("n_chunks", [1, 2, 20])
def test_latency(n_chunks):
    cycles = run([(n_chunks, 32, set(range(n_chunks)), False)])
    start = cycles["start"][0]
    assert cycles["o"] == [start + ChunkScan.latency + index for index in range(n_chunks)]


def test_one_chunk_a_cycle():
    """A chunk that is passed over costs a cycle, no more."""
    cycles = run([(61, 32, {0, 20, 40, 60}, False)])
    gaps = [b - a for a, b in itertools.pairwise(cycles["o"])]
    assert gaps == [20, 20, 1]  # an item leaves when the next one is found
    # The next job starts when the last item of the one before is in the queue.
    cycles = run([(30, 32, {3}, False), (30, 32, {4}, False)])
    assert cycles["start"][1] - cycles["start"][0] == 30 + 4


@pytest.mark.parametrize("wait", [0, 1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("every", [0, 1])
def test_stop(wait, every):
    """After a stop, what was found is given out, its end marked, and the next job is whole."""
    dut = ChunkScan(max_chunks=MAX_CHUNKS)
    jobs = [(60, 32, {0, 7, 9, 30, 59}, bool(every)), (20, 16, {3, 5}, False)]
    first, second = [], []

    async def bench(ctx):
        async def start(job):
            n_chunks, chunk_tokens, _, every = job
            payload = {"n_chunks": n_chunks, "chunk_tokens": chunk_tokens, "every": int(every)}
            await put(dut.start, [payload])(ctx)

        async def take(sink):
            while not sink or not sink[-1].last:
                await get(dut.o, sink, len(sink) + 1)(ctx)

        await start(jobs[0])
        for _ in range(wait):
            await ctx.tick()
        ctx.set(dut.stop, 1)
        await take(first)
        ctx.set(dut.stop, 0)
        await start(jobs[1])
        await take(second)

    simulate(dut, bench, monitors=[lists(dut, jobs)])
    chunks = [item.chunk for item in first if not item.none]
    wanted = [chunk for chunk in range(60) if every or chunk in jobs[0][2]]
    assert chunks == wanted[: len(chunks)]
    assert len(chunks) == len([chunk for chunk in wanted if chunk < wait][: AHEAD + 1])
    assert [item.none for item in first] == ([0] * len(chunks) or [1])
    assert [(item.chunk, item.token, item.last) for item in second] == [(3, 48, 0), (5, 80, 1)]


def test_constructor():
    with pytest.raises(ValueError, match="max_chunks must be at least 2, not 1"):
        ChunkScan(max_chunks=1)


def test_converts():
    assert "wanted" in rtlil.convert(ChunkScan(max_chunks=MAX_CHUNKS))
