# amaranth: UnusedElaboratable=no
"""Drain: steps in order, waits for hazards, release and ends of tiles and jobs in their cycles."""

import random

import pytest
from amaranth.back import rtlil

from moska.hw.control.drain import Drain
from moska.sim.bench import simulate

N_TABLES = 4
MAX_ROWS = 16
N_CONTEXTS = 4


class Run:
    """Blocks through a Drain; ``captured`` follows the release as the value array's would."""

    def __init__(self, dut, blocks, tables, *, hazard=0.0, delay=0, seed=0):
        self.dut = dut
        self.blocks = blocks  # (n_rows, table, tile_last, job_last)
        self.tables = tables  # {context, row} of the tile of each block
        self.hazard = hazard
        self.delay = delay
        self.rng = random.Random(seed)
        self.steps = []  # (cycle, block, row, word, last)
        # What came in the cycle after a step: (block, steps of it that remain after that step).
        self.releases = []
        self.done = []
        self.jobs = []  # (block, steps of it that remain)

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        offered = n_captured = n_released = taken = in_block = cycle = 0
        hold = 0
        before = None  # the step of the cycle before: (block, steps of it that remain)
        remain = [n_rows * dut.n_words for n_rows, *_ in self.blocks]
        lookup = {}  # rows by table: a block is accepted when all of its table's are looked up
        while any(remain) or before:
            if offered < len(self.blocks):
                names = "n_rows", "table", "tile_last", "job_last"
                ctx.set(dut.block.payload, dict(zip(names, self.blocks[offered], strict=True)))
                ctx.set(dut.block.valid, int(rng.random() < 0.8))
            else:
                ctx.set(dut.block.valid, 0)
            # A block is captured once it was announced and the one before it released.
            captured = n_captured < min(taken, n_released + 1) and hold == 0
            ctx.set(dut.captured, int(captured))
            hold = rng.randint(0, self.delay) if captured else max(0, hold - 1)
            blocked = rng.random() < self.hazard
            ctx.set(dut.hazard, int(blocked))

            table, position = ctx.get(dut.table), ctx.get(dut.position)
            rows = lookup.get(table, [])
            ctx.set(dut.row, rows[position] if position < len(rows) else 0)
            step = ctx.get(dut.step)
            word = step.word
            release, table_done = ctx.get(dut.release), ctx.get(dut.table_done)
            accepted = ctx.get(dut.block.valid) and ctx.get(dut.block.ready)
            if step.valid:
                assert in_block < n_captured, "a step before its block is captured"
                assert not (blocked and word == 0), "a row started in spite of its hazard"
                assert ctx.get(dut.busy)
                remain[in_block] -= 1
                self.steps.append((cycle, in_block, step.row, step.word, step.last))
            elif in_block < n_captured and word:
                raise AssertionError("a row was interrupted")
            if release:
                assert before, "a release must follow a step"
                self.releases.append(before)
                n_released += 1
            if table_done:
                assert before, "the end of a tile must follow a step"
                self.done.append(before)
            if ctx.get(dut.job_done):
                assert step.valid
                self.jobs.append((in_block, remain[in_block]))
            before = None
            if step.valid:
                before = in_block, remain[in_block]
                assert ctx.get(dut.block_row) == self.tables[in_block].index(step.row)
                in_block += remain[in_block] == 0
            await ctx.tick()
            cycle += 1
            n_captured += captured
            if accepted:
                lookup[self.blocks[offered][1]] = self.tables[offered]
                taken += 1
                offered += 1
        assert not ctx.get(dut.busy)


def drain(query_tile, n_words, slack):
    return Drain(
        max_rows=MAX_ROWS,
        n_contexts=N_CONTEXTS,
        query_tile=query_tile,
        n_words=n_words,
        n_tables=N_TABLES,
        slack=slack,
    )


def random_blocks(query_tile, count, seed):
    rng = random.Random(seed)
    blocks = []
    for index in range(count):
        tile_last = rng.randint(0, 1)
        job_last = tile_last & rng.randint(0, 1)
        blocks.append((rng.randint(1, query_tile), index % N_TABLES, tile_last, job_last))
    tables = [rng.sample(range(N_CONTEXTS * MAX_ROWS), n_rows) for n_rows, *_ in blocks]
    return blocks, tables


@pytest.mark.parametrize(
    ("query_tile", "n_words", "slack"), [(2, 8, 3), (4, 4, 2), (8, 1, 4), (2, 1, 1), (4, 2, 0)]
)
@pytest.mark.parametrize(("hazard", "delay"), [(0.0, 0), (0.5, 3)])
def test_order_release_and_ends(query_tile, n_words, slack, hazard, delay):
    dut = drain(query_tile, n_words, slack)
    blocks, tables = random_blocks(query_tile, 40, seed=query_tile + n_words)
    run = Run(dut, blocks, tables, hazard=hazard, delay=delay, seed=slack)
    simulate(dut, run.bench)

    assert [step[1:] for step in run.steps] == [
        (index, row, word, int(word == n_words - 1))
        for index, rows in enumerate(tables)
        for row in rows
        for word in range(n_words)
    ]
    # As early as the next block may be captured: each further row adds one to the slack.
    assert run.releases == [
        (index, min(n_rows * n_words - 1, slack + n_rows))
        for index, (n_rows, *_) in enumerate(blocks)
    ]
    assert run.done == [
        (index, 0) for index, (*_, tile_last, _) in enumerate(blocks) if tile_last
    ]
    assert run.jobs == [(index, 0) for index, block in enumerate(blocks) if block[3]]


def test_one_step_a_cycle_across_blocks():
    dut = drain(4, 4, 3)
    blocks = [(4, table % N_TABLES, 1, 0) for table in range(6)]
    run = Run(dut, blocks, [[3, 1, 2, 0]] * 6)
    simulate(dut, run.bench)
    cycles = [step[0] for step in run.steps]
    assert cycles == list(range(cycles[0], cycles[0] + 6 * 16))


def test_converts():
    assert "drain" in rtlil.convert(drain(4, 4, 3), name="drain")
