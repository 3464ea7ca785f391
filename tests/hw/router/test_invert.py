# amaranth: UnusedElaboratable=no
"""Inverter against golden inversion of selections."""

import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.router import invert
from moska.hw.router.invert import Inverter, row_word_bits
from moska.sim.bench import check_hold, get, put, simulate

SIZES = [
    (1, 16, 16, 8),
    (4, 64, 64, 16),
    (2, 128, 32, 8),
    (1, 2, 2, 2),
    (2, 2, 2, 2),
    (2, 64, 8, 8),
]


def words_of(selected, width):
    """Words in the order of the selector."""
    n_rows, n_chunks = selected.shape
    n_words = -(-n_chunks // width)
    padded = np.zeros((n_rows, n_words * width), dtype=bool)
    padded[:, :n_chunks] = selected
    return [
        {
            "row": row,
            "word": word,
            "bits": sum(int(padded[row, word * width + b]) << b for b in range(width)),
            "last": int(row == n_rows - 1 and word == n_words - 1),
        }
        for row in range(n_rows)
        for word in range(n_words)
    ]


def vectors_of(dut, column):
    """Row words of one chunk's rows."""
    n_bits = dut.row_word_bits
    return [
        sum(int(bit) << b for b, bit in enumerate(column[start : start + n_bits]))
        for start in range(0, len(column), n_bits)
    ]


def loads_of(dut, selected):
    return [
        {"chunk": chunk, "row_word": row_word, "bits": bits}
        for chunk in range(selected.shape[1])
        for row_word, bits in enumerate(vectors_of(dut, selected[:, chunk]))
    ]


def read_wanted(dut, n_chunks, sink):
    """Bench: ask for one chunk a cycle."""

    async def bench(ctx):
        for chunk in range(n_chunks + dut.wanted_latency):
            if chunk < n_chunks:
                ctx.set(dut.wanted_chunk, chunk)
            _, _, wanted = await ctx.tick().sample(dut.wanted)
            if chunk >= dut.wanted_latency:
                sink.append(wanted)

    return bench


async def read_lists(dut, ctx, commands, rng, idle, stall):
    """Return the lists of rows of ``commands``, in order, [] where ``empty`` pulses."""
    lists, current, sent = [], [], 0
    ready = offered = 0
    while len(lists) < len(commands):
        if not offered and sent < len(commands) and rng.random() >= idle:
            ctx.set(dut.rows_cmd.payload, commands[sent])
            offered = 1
        ctx.set(dut.rows_cmd.valid, offered)
        ready = int(rng.random() >= stall)
        ctx.set(dut.rows.ready, ready)
        _, _, taken, valid, p, empty = await ctx.tick().sample(
            dut.rows_cmd.ready, dut.rows.valid, dut.rows.payload, dut.empty
        )
        if offered and taken:
            sent, offered = sent + 1, 0
        assert not (valid and empty)
        if valid and ready:
            current.append(p.row)
            if p.last:
                lists.append(current)
                current = []
        if empty:
            assert not current
            lists.append([])
    ctx.set(dut.rows_cmd.valid, 0)
    ctx.set(dut.rows.ready, 0)
    for _ in range(8):
        _, _, valid, empty = await ctx.tick().sample(dut.rows.valid, dut.empty)
        assert not valid
        assert not empty
    return lists


async def store(dut, ctx, selected, *, load=False, idle=0.0, seed=0):
    """Store a selection, until it may be asked for."""
    if load:
        await put(dut.load, loads_of(dut, selected), idle=idle, seed=seed)(ctx)
        return
    await put(dut.i, words_of(selected, dut.width), idle=idle, seed=seed)(ctx)
    for _ in range(8):
        if ctx.get(dut.stored):
            return
        await ctx.tick()
    pytest.fail("the selection is not stored")


def check(dut, selections, *, seed, idle=0.0, stall=0.0, load=False):
    """Store the selections, a few contexts' at a time; compare each with golden.

    Union, lists and raw words.
    """
    rng = random.Random(seed)

    async def bench(ctx):
        for index, selected in enumerate(selections):
            if index % dut.n_contexts == 0:
                group = selections[index : index + dut.n_contexts]
                for context, other in enumerate(group):
                    ctx.set(dut.i_context, context)
                    ctx.set(dut.load_context, context)
                    await store(dut, ctx, other, load=load, idle=idle, seed=seed)
            for port in (dut.wanted_context, dut.rows_context, dut.vector_context):
                ctx.set(port, index % dut.n_contexts)
            where = f"seed {seed}, selection {index} of shape {selected.shape}"
            n_rows, n_chunks = selected.shape
            golden = {chunk: rows.tolist() for chunk, rows in invert(selected)}

            wanted = []
            await read_wanted(dut, n_chunks, wanted)(ctx)
            assert wanted == [int(chunk in golden) for chunk in range(n_chunks)], where

            chunks = [rng.randrange(n_chunks) for _ in range(6)]
            chunks += range(n_chunks) if n_chunks < 20 else list(golden)[:20]
            commands, expected = [], []
            for chunk in chunks:
                every = rng.random() < 0.2
                n = rng.randrange(dut.max_rows + 1) if every else n_rows
                commands.append({"chunk": chunk, "n_rows": n, "all": int(every)})
                expected.append(list(range(n)) if every else golden.get(chunk, []))
            lists = await read_lists(dut, ctx, commands, rng, idle, stall)
            assert lists == expected, where

            asked, vectors = [], []
            for chunk in chunks:
                for row_word, bits in enumerate(vectors_of(dut, selected[:, chunk])):
                    asked.append({"chunk": chunk, "row_word": row_word})
                    vectors.append(bits)
            seen = []
            while len(seen) < len(asked):
                # One request at a time here; full rate has a test of its own.
                await put(dut.vector_cmd, [asked[len(seen)]])(ctx)
                await get(dut.vector, seen, len(seen) + 1, stall=stall, seed=len(seen))(ctx)
            assert seen == vectors, where

    simulate(dut, bench, monitors=[check_hold(dut.rows), check_hold(dut.vector)], cycles=60_000)


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.4, 0.5)])
@pytest.mark.parametrize(("n_contexts", "max_rows", "max_chunks", "width"), SIZES)
def test_matches_golden(n_contexts, max_rows, max_chunks, width, idle, stall, load):
    seed = max_rows + max_chunks
    rng = np.random.default_rng(seed)
    dut = Inverter(n_contexts=n_contexts, max_rows=max_rows, max_chunks=max_chunks, width=width)
    selections = [rng.random((max_rows, max_chunks)) < 0.5]
    for density in (0.03, 0.25, 1.0):
        n_rows = int(rng.integers(1, max_rows, endpoint=True))
        n_chunks = int(rng.integers(1, max_chunks, endpoint=True))
        selections.append(rng.random((n_rows, n_chunks)) < density)
    selections.append(np.zeros((max_rows, max_chunks), dtype=bool))
    selections.append(rng.random((max_rows, 1)) < 0.5)
    check(dut, selections, seed=seed, idle=idle, stall=stall, load=load)


def test_list_rate():
    """First row after `latency`, then a row a cycle, a cycle for each empty row word and list."""
    dut = Inverter(n_contexts=1, max_rows=256, max_chunks=4, width=4)
    rng = np.random.default_rng(3)
    selected = rng.random((256, 4)) < 0.5
    selected[:, 1] = np.arange(256) % 32 == 5  # one row in every row word
    selected[:, 2] = False
    selected[[0, 200, 255], 2] = True  # empty row words between
    times = [[] for _ in range(4)]
    start = []

    async def bench(ctx):
        await store(dut, ctx, selected)
        ctx.set(dut.rows.ready, 1)
        cycle = chunk = done = 0
        while done < 4:
            ctx.set(dut.rows_cmd.valid, int(chunk < 4))
            ctx.set(dut.rows_cmd.payload, {"chunk": min(chunk, 3), "n_rows": 256, "all": 0})
            _, _, taken, valid, p = await ctx.tick().sample(
                dut.rows_cmd.ready, dut.rows.valid, dut.rows.payload
            )
            if valid:
                times[done].append(cycle)
                done += p.last
            if chunk < 4 and taken:
                start.append(cycle)
                chunk += 1
            cycle += 1

    simulate(dut, bench)
    assert [len(t) for t in times] == selected.sum(axis=0).tolist()
    assert times[0][0] == start[0] + dut.latency
    for chunk in (0, 1, 3):
        assert np.diff(times[chunk]).max() == 1, f"chunk {chunk}"
    # Row words 1 to 5 are empty; row 0 waits until row 200 is found, row 255 follows.
    assert times[2][2] - times[2][0] == 2
    assert times[2][0] - times[1][-1] <= 8
    assert times[1][0] - times[0][-1] == 1
    # Row 255 is in the last row word; that of the next list is read two cycles after it.
    assert times[3][0] - times[2][-1] == 2


def test_write_rate():
    """A word a cycle; one cycle more where a row has one word only."""
    # Two words wait at the input at the end.
    for n_chunks, cycles in ((32, 64 * 4), (8, 64 * 2 - 4)):
        dut = Inverter(n_contexts=1, max_rows=64, max_chunks=32, width=8)
        words = words_of(np.ones((64, n_chunks), dtype=bool), 8)
        taken = []

        async def bench(ctx, dut=dut, words=words, taken=taken):
            cycle = 0
            while len(taken) < len(words):
                ctx.set(dut.i.payload, words[len(taken)])
                ctx.set(dut.i.valid, 1)
                _, _, ready = await ctx.tick().sample(dut.i.ready)
                if ready:
                    taken.append(cycle)
                cycle += 1

        simulate(dut, bench)
        assert taken[-1] == cycles - 1
    dut = Inverter(n_contexts=1, max_rows=64, max_chunks=32, width=8)
    loads = loads_of(dut, np.ones((64, 32), dtype=bool))

    async def load(ctx):
        for item in loads:
            ctx.set(dut.load.payload, item)
            ctx.set(dut.load.valid, 1)
            _, _, ready = await ctx.tick().sample(dut.load.ready)
            assert ready

    simulate(dut, load)


def test_vector_rate():
    """Raw words one a cycle, `vector_latency` after the command."""
    dut = Inverter(n_contexts=1, max_rows=128, max_chunks=8, width=4)
    selected = np.random.default_rng(5).random((128, 8)) < 0.5
    asked = [{"chunk": c, "row_word": w} for c in (7, *range(7)) for w in (3, 0, 1, 2)]
    expected = [vectors_of(dut, selected[:, a["chunk"]])[a["row_word"]] for a in asked]
    seen = []

    async def bench(ctx):
        await store(dut, ctx, selected)
        ctx.set(dut.vector.ready, 1)
        for cycle in range(len(asked) + dut.vector_latency):
            ctx.set(dut.vector_cmd.valid, int(cycle < len(asked)))
            if cycle < len(asked):
                ctx.set(dut.vector_cmd.payload, asked[cycle])
            _, _, ready, valid, p = await ctx.tick().sample(
                dut.vector_cmd.ready, dut.vector.valid, dut.vector.payload
            )
            assert ready
            assert valid == (cycle >= dut.vector_latency)
            if valid:
                seen.append(p)

    simulate(dut, bench)
    assert seen == expected


def test_contexts_at_once():
    """Two contexts are written while a third one's lists and a fourth one's words are read."""
    dut = Inverter(n_contexts=4, max_rows=64, max_chunks=32, width=8)
    draw = np.random.default_rng(9)
    selections = [draw.random((64, 32)) < density for density in (0.1, 0.5, 0.3, 0.1)]
    chunks = draw.integers(0, 32, 60).tolist()
    asked = [{"chunk": chunk, "row_word": word} for chunk in chunks for word in (1, 0)]
    started, lists, vectors = [], [], []

    async def read(ctx, context):
        ctx.set(dut.rows_context, context)
        commands = [{"chunk": chunk, "n_rows": 64, "all": 0} for chunk in chunks]
        lists.append(await read_lists(dut, ctx, commands, random.Random(9), 0.0, 0.1))

    async def list_rows(ctx):
        for context in (2, 3):
            ctx.set(dut.i_context, context)
            await store(dut, ctx, selections[context])
        ctx.set(dut.vector_context, 3)
        started.append(True)
        for context in (2, 0, 1):
            await read(ctx, context)

    async def wait(ctx):
        while not started:
            await ctx.tick()

    async def write(ctx):
        await wait(ctx)
        ctx.set(dut.i_context, 0)
        await store(dut, ctx, selections[0])

    async def load(ctx):
        await wait(ctx)
        ctx.set(dut.load_context, 1)
        await store(dut, ctx, selections[1], load=True)

    async def read_vectors(ctx):
        await wait(ctx)
        await put(dut.vector_cmd, asked)(ctx)

    take_vectors = get(dut.vector, vectors, len(asked), stall=0.2)
    simulate(dut, list_rows, write, load, read_vectors, take_vectors)
    for context, got in zip((2, 0, 1), lists, strict=True):
        golden = {chunk: rows.tolist() for chunk, rows in invert(selections[context])}
        assert got == [golden.get(chunk, []) for chunk in chunks], f"context {context}"
    assert vectors == [vectors_of(dut, selections[3][:, a["chunk"]])[a["row_word"]] for a in asked]


@pytest.mark.parametrize("size", [(64, 256, 16), (512, 2048, 64), (2, 2, 2)])
def test_converts(size):
    max_rows, max_chunks, width = size
    dut = Inverter(n_contexts=4, max_rows=max_rows, max_chunks=max_chunks, width=width)
    assert "rows_cmd__ready" in rtlil.convert(dut, emit_src=False)


def test_row_word_bits():
    assert [row_word_bits(n) for n in (2, 16, 32, 64, 512)] == [2, 16, 32, 32, 32]


def test_rejects():
    with pytest.raises(ValueError, match="max_rows must be a power of two, at least 2, not 1"):
        Inverter(n_contexts=1, max_rows=1, max_chunks=8, width=8)
    with pytest.raises(ValueError, match="width must be a power of two, at least 2, not 12"):
        Inverter(n_contexts=1, max_rows=8, max_chunks=24, width=12)
    with pytest.raises(ValueError, match="n_contexts must be a power of two, at least 1, not 3"):
        Inverter(n_contexts=3, max_rows=8, max_chunks=8, width=8)
