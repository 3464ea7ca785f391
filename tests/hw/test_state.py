# amaranth: UnusedElaboratable=no
"""Row state against the golden model, bit for bit: addition, merges, hazards, contexts."""

import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.formats import L_STATE_WIDTH, M_WIDTH, O_EXP_WIDTH, O_STATE_WIDTH
from moska.golden.state import RowState as GoldenState
from moska.golden.state import merge_aligned
from moska.hw.state import AlignedAdd, RowState
from moska.sim.bench import simulate

O_BLOCK = 29  # bits of a block's sum without its sign
L_BLOCK = (1 << 21) - 1
M_LIMITS = -(1 << (M_WIDTH - 1)), (1 << (M_WIDTH - 1)) - 1
E_LIMITS = -(1 << (O_EXP_WIDTH - 1)), (1 << (O_EXP_WIDTH - 1)) - 1


def add_cases(width, ref_width, n_words, seed):
    """(fresh, state reference, block reference, state words, block words), sums in range."""
    rng = random.Random(seed)
    half = 1 << (width - 2)
    low, high = -(1 << (ref_width - 1)), (1 << (ref_width - 1)) - 1
    edges = [0, 1, -1, half, -half, half - 1, 1 - half]

    def words(limit):
        out = []
        for _ in range(n_words):
            x = rng.choice(edges) if rng.random() < 0.3 else rng.getrandbits(rng.randint(1, width))
            out.append(max(-limit, min(limit - 1, x * rng.choice([-1, 1]))))
        return out

    cases = []
    for distance in [*range(-70, 71), low - high, high - low, 200, -200]:
        for fresh in (0, 0, 1):
            if distance > high:
                state_ref = low
            elif distance < low:
                state_ref = high
            else:
                state_ref = rng.randint(max(low, low - distance), min(high, high - distance))
            limit = 2 * half if fresh else half
            cases.append((fresh, state_ref, state_ref + distance, words(half), words(limit)))
    rng.shuffle(cases)
    return cases


@pytest.mark.parametrize(
    ("width", "ref_width", "n_words"),
    [(O_STATE_WIDTH, O_EXP_WIDTH, 2), (L_STATE_WIDTH + 1, M_WIDTH, 1), (O_STATE_WIDTH, 14, 4)],
)
def test_aligned_add_matches_golden(width, ref_width, n_words):
    dut = AlignedAdd(width=width, ref_width=ref_width, n_words=n_words)
    cases = add_cases(width, ref_width, n_words, seed=width + n_words)
    results = []

    async def bench(ctx):
        for index in range(len(cases) + AlignedAdd.latency):
            if index >= AlignedAdd.latency:
                results.append((ctx.get(dut.ref), list(ctx.get(dut.sum))))
            ctx.set(dut.fresh, cases[index - 1][0] if 0 < index <= len(cases) else 0)
            if index < len(cases):
                _, state_ref, block_ref, state, block = cases[index]
                ctx.set(dut.state_ref, state_ref)
                ctx.set(dut.block_ref, block_ref)
                ctx.set(dut.state, state)
                ctx.set(dut.block, block)
            await ctx.tick()

    simulate(dut, bench)

    fresh, state_ref, block_ref, state, block = (
        np.array(column) for column in zip(*cases, strict=True)
    )
    golden_ref, golden_sum = merge_aligned(
        fresh[:, None] == 1, state_ref[:, None], state, block_ref[:, None], block
    )
    assert [ref for ref, _ in results] == golden_ref[:, 0].tolist()
    assert [words for _, words in results] == golden_sum.tolist()


def random_blocks(count, max_rows, head_dim, seed, *, rows=None):
    """Blocks (row, ref, l, pv_ref, o): references 0..70 apart, some at their limits."""
    rng = random.Random(seed)
    m, e = [0] * max_rows, [0] * max_rows
    blocks = []
    for index in range(count):
        row = rng.randrange(max_rows) if rows is None else rows[index]
        m[row] = max(M_LIMITS[0], min(M_LIMITS[1], m[row] + rng.randint(-70, 70)))
        e[row] = max(E_LIMITS[0], min(E_LIMITS[1], e[row] + rng.randint(-70, 70)))
        ref, pv_ref = m[row], e[row]
        if rng.random() < 0.1:
            ref, pv_ref = rng.choice(M_LIMITS), rng.choice(E_LIMITS)
        total = rng.choice([1, L_BLOCK, rng.randint(1, L_BLOCK)])
        o = [
            rng.choice(
                [-(1 << O_BLOCK), (1 << O_BLOCK) - 1, 0, -1, rng.randint(-(1 << O_BLOCK), 1 << 20)]
            )
            for _ in range(head_dim)
        ]
        blocks.append((row, ref, total, pv_ref, o))
    return blocks


class Driver:
    """Steps blocks through a RowState as the drain does; keeps the golden state beside it."""

    def __init__(self, dut, seed):
        self.dut = dut
        self.rng = random.Random(seed)
        self.n_rows = dut.n_contexts * dut.max_rows
        self.golden = GoldenState.empty(self.n_rows, dut.head_dim)
        self.first_steps = []

    def expect(self, blocks):
        for row, ref, total, pv_ref, o in blocks:
            self.golden.merge(
                np.array([row]),
                np.array([ref]),
                np.array([total]),
                np.array([pv_ref]),
                np.array([o]),
            )

    async def merge(self, ctx, blocks, *, idle=0.0):
        """Step all words of all blocks, each block as soon as ``hazard`` lets it."""
        dut, rng = self.dut, self.rng
        line = [None] * dut.block_latency  # steps whose block result is due
        last_word = dut.n_words - 1
        todo = [(block, word, word == last_word) for block in blocks for word in range(dut.n_words)]
        cycle = 0
        while todo or any(item is not None for item in line):
            issued = None
            if todo and rng.random() >= idle:
                block, word, _ = todo[0]
                ctx.set(dut.query_row, block[0])
                if word or not ctx.get(dut.hazard):
                    issued = todo.pop(0)
                    if word == 0:
                        self.first_steps.append(cycle)
            if issued is None:
                ctx.set(dut.step, {"valid": 0, "row": rng.randrange(self.n_rows), "last": 1})
            else:
                block, word, last = issued
                ctx.set(dut.step, {"valid": 1, "row": block[0], "word": word, "last": last})
            due = line.pop(0)
            line.append(issued)
            if due is None:
                ctx.set(dut.l, rng.getrandbits(21))
                ctx.set(dut.ref, rng.randint(*M_LIMITS))
                ctx.set(dut.pv_ref, rng.randint(*E_LIMITS))
                ctx.set(dut.o, [rng.getrandbits(29) for _ in range(dut.lanes)])
            else:
                (_, ref, total, pv_ref, o), word, _ = due
                ctx.set(dut.l, total)
                ctx.set(dut.ref, ref)
                ctx.set(dut.pv_ref, pv_ref)
                ctx.set(dut.o, o[word * dut.lanes : (word + 1) * dut.lanes])
            await ctx.tick()
            cycle += 1
        ctx.set(dut.step, {"valid": 0})
        while ctx.get(dut.busy):
            await ctx.tick()

    async def clear(self, ctx, rows):
        """Clear rows, one a cycle."""
        for row in rows:
            ctx.set(self.dut.clear, {"valid": 1, "row": row})
            await ctx.tick()
            self.golden.l[row] = 0
        ctx.set(self.dut.clear, {"valid": 0, "row": self.rng.randrange(self.n_rows)})

    async def read(self, ctx, row, word, meta_row):
        """Read a word, and the metadata of a row; compare when the row has merged something."""
        dut, golden = self.dut, self.golden
        ctx.set(
            dut.read,
            {"valid": 1, "row": row, "word": word, "meta_valid": 1, "meta_row": meta_row},
        )
        await ctx.tick()
        meta = ctx.get(dut.read_meta)
        assert meta.l == golden.l[meta_row], f"l of row {meta_row}"
        if golden.l[meta_row]:
            assert (meta.m, meta.e) == (golden.m[meta_row], golden.e[meta_row])
        if golden.l[row]:
            part = slice(word * dut.lanes, (word + 1) * dut.lanes)
            assert list(ctx.get(dut.read_o)) == golden.o[row, part].tolist(), f"row {row} {word}"

    async def check(self, ctx, rows=None):
        """Compare every row that has merged something; the others have l = 0."""
        for row in range(self.n_rows) if rows is None else rows:
            for word in range(self.dut.n_words):
                await self.read(ctx, row, word, row)


def state(*, max_rows=4, n_contexts=2, head_dim=8, lanes=4, block_latency=1):
    return RowState(
        max_rows=max_rows,
        n_contexts=n_contexts,
        head_dim=head_dim,
        lanes=lanes,
        block_latency=block_latency,
    )


@pytest.mark.parametrize("block_latency", [1, 2])
@pytest.mark.parametrize(
    ("max_rows", "n_contexts", "head_dim", "lanes", "idle"),
    [(4, 1, 8, 2, 0.0), (4, 2, 8, 8, 0.0), (2, 4, 4, 1, 0.3), (2, 1, 8, 4, 0.1)],
)
def test_merges_match_golden(block_latency, max_rows, n_contexts, head_dim, lanes, idle):
    """Blocks of all contexts, mixed."""
    dut = state(
        max_rows=max_rows,
        n_contexts=n_contexts,
        head_dim=head_dim,
        lanes=lanes,
        block_latency=block_latency,
    )
    driver = Driver(dut, seed=head_dim + lanes)
    blocks = random_blocks(90, driver.n_rows, head_dim, seed=max_rows + lanes)

    async def bench(ctx):
        await driver.merge(ctx, blocks, idle=idle)
        driver.expect(blocks)
        await driver.check(ctx)

    simulate(dut, bench)
    assert (driver.golden.l > 0).all()


@pytest.mark.parametrize("block_latency", [1, 2])
@pytest.mark.parametrize(("head_dim", "lanes"), [(4, 4), (8, 2)])
def test_hazard_lasts_until_the_merge_is_written(block_latency, head_dim, lanes):
    """Blocks of one row follow each other at the latency of a merge, different rows at once.

    Rows 0 and 4 are row 0 of two contexts.
    """
    dut = state(head_dim=head_dim, lanes=lanes, block_latency=block_latency)
    rows = [0, 0, 0, 1, 4, 3, 1]
    blocks = random_blocks(len(rows), 8, head_dim, seed=1, rows=rows)
    driver = Driver(dut, seed=2)

    async def bench(ctx):
        await driver.merge(ctx, blocks)
        driver.expect(blocks)
        await driver.check(ctx)

    simulate(dut, bench)
    n_words = head_dim // lanes
    wait = n_words + block_latency + AlignedAdd.latency
    gaps = np.diff(driver.first_steps).tolist()
    assert gaps == [wait, wait, n_words, n_words, n_words, max(n_words, wait - 2 * n_words)]


@pytest.mark.parametrize("block_latency", [1, 3])
def test_latency(block_latency):
    """A read ``latency`` cycles after the last step sees the merge, one cycle before it does not.

    The read before names a context that is being merged, so its answer is the old state only
    because no step is in the memories' read stage.
    """
    dut = state(head_dim=4, lanes=4, block_latency=block_latency)
    blocks = random_blocks(2, 8, 4, seed=5, rows=[6, 6])
    driver = Driver(dut, seed=6)
    seen = []

    async def bench(ctx):
        await driver.merge(ctx, blocks[:1])
        _, ref, total, pv_ref, o = blocks[1]
        ctx.set(dut.step, {"valid": 1, "row": 6, "word": 0, "last": 1})
        ctx.set(dut.read, {"row": 6, "meta_row": 6})
        for cycle in range(dut.latency + 2):
            if cycle == block_latency:
                ctx.set(dut.l, total)
                ctx.set(dut.ref, ref)
                ctx.set(dut.pv_ref, pv_ref)
                ctx.set(dut.o, o)
            await ctx.tick()
            ctx.set(dut.step, {"valid": 0})
            # Answers to the read of this cycle.
            seen.append((ctx.get(dut.read_meta.l), list(ctx.get(dut.read_o))))

    simulate(dut, bench)
    driver.expect(blocks[:1])
    old = driver.golden.l[6], driver.golden.o[6].tolist()
    driver.expect(blocks[1:])
    new = driver.golden.l[6], driver.golden.o[6].tolist()
    assert old != new
    assert seen[dut.latency - 1] == old
    assert seen[dut.latency] == new


def test_clear_makes_rows_fresh():
    dut = state(max_rows=8, head_dim=4, lanes=2)
    driver = Driver(dut, seed=3)
    rounds = [random_blocks(80, 16, 4, seed=seed) for seed in (4, 5)]
    cleared = (0, 3, 7, 8, 13)

    async def bench(ctx):
        await driver.merge(ctx, rounds[0])
        driver.expect(rounds[0])
        assert all(driver.golden.l[row] for row in cleared)
        await driver.clear(ctx, cleared)
        await driver.check(ctx)
        await driver.merge(ctx, rounds[1])
        driver.expect(rounds[1])
        await driver.check(ctx)

    simulate(dut, bench)


@pytest.mark.parametrize(("n_contexts", "idle"), [(2, 0.0), (4, 0.0), (4, 0.3)])
def test_contexts_at_once(n_contexts, idle):
    """One context is merged while another is read and a third, if there is one, is cleared.

    Words and metadata are read in every cycle, of rows that differ; roles go round.
    """
    max_rows, head_dim, lanes = 4, 8, 2
    dut = state(max_rows=max_rows, n_contexts=n_contexts, head_dim=head_dim, lanes=lanes)
    driver = Driver(dut, seed=n_contexts)
    rng = random.Random(7)
    n_rows = n_contexts * max_rows
    counts = {"read": 0, "cleared": 0}
    merging = [False]
    turn = [0]

    def rows_of(context):
        first = context % n_contexts * max_rows
        return range(first, first + max_rows)

    async def merge(ctx):
        blocks = random_blocks(6 * n_rows, n_rows, head_dim, seed=8)
        await driver.merge(ctx, blocks)
        driver.expect(blocks)
        for context in range(2 * n_contexts):
            rows = [rng.choice(rows_of(context)) for _ in range(12)]
            blocks = random_blocks(12, n_rows, head_dim, seed=context, rows=rows)
            turn[0] = context
            merging[0] = True
            await driver.merge(ctx, blocks, idle=idle)
            merging[0] = False
            driver.expect(blocks)
            await ctx.tick().repeat(2)
        await driver.check(ctx)

    async def read(ctx):
        while True:
            await ctx.tick()
            while merging[0]:
                rows = rows_of(turn[0] + 1)
                await driver.read(
                    ctx, rng.choice(rows), rng.randrange(dut.n_words), rng.choice(rows)
                )
                counts["read"] += 1

    async def clear(ctx):
        while True:
            await ctx.tick()
            if merging[0] and n_contexts > 2:
                row = rng.choice(rows_of(turn[0] + 2))
                counts["cleared"] += int(driver.golden.l[row] != 0)
                await driver.clear(ctx, [row])

    simulate(dut, merge, monitors=[read, clear])
    assert counts["read"] > 100 * n_contexts
    assert (counts["cleared"] > 2 * n_contexts) == (n_contexts > 2)


def test_converts():
    for parameters in ({}, {"n_contexts": 4, "lanes": 8}, {"n_contexts": 1, "max_rows": 2}):
        assert "module \\top" in rtlil.convert(state(**parameters))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lanes": 3}, r"multiple of lanes \(3\), not 8"),
        ({"block_latency": 0}, "block_latency must be at least 1, not 0"),
        ({"max_rows": 6}, "max_rows must be a power of two, at least 2, not 6"),
        ({"max_rows": 1}, "max_rows must be a power of two, at least 2, not 1"),
        ({"n_contexts": 3}, "n_contexts must be a power of two, at least 1, not 3"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        state(**parameters)
