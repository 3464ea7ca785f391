# amaranth: UnusedElaboratable=no
"""Value issue: order and addresses of every beat, its waits, announcements to the drain."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat

from moska.golden.formats import BLOCK_TOKENS
from moska.hw.control.score_issue import SCORE_BANKS
from moska.hw.control.value_issue import ValueIssue
from moska.sim.bench import fields, simulate

BUFFER_TOKENS = 64
N_TABLES = 4
FREE = (1.0, 1.0, 1.0, 1.0)


def value_issue(*, fold=2, query_tile=4, buffer_slots=2):
    return ValueIssue(
        fold=fold,
        query_tile=query_tile,
        buffer_tokens=BUFFER_TOKENS,
        buffer_slots=buffer_slots,
        n_tables=N_TABLES,
    )


def make_blocks(slots, *, query_tile, buffer_slots, seed):
    """Blocks of (n_tokens, number of tiles) slots; slots of representatives lie in between."""
    rng = random.Random(seed)
    blocks, slot = [], 0
    for n_tokens, n_tiles in slots:
        for index in range(n_tiles):
            n_rows, table = rng.randint(1, query_tile), rng.randrange(N_TABLES)
            ends_job = rng.randint(0, 1)
            for start in range(0, n_tokens, BLOCK_TOKENS):
                rest = n_tokens - start
                tile_last = rest <= BLOCK_TOKENS
                blocks.append(
                    {
                        "n_tokens": min(rest, BLOCK_TOKENS),
                        "n_rows": n_rows,
                        "table": table,
                        "slot": slot,
                        "tile_last": int(tile_last),
                        "job_last": int(tile_last and ends_job),
                        "slot_last": int(tile_last and index == n_tiles - 1),
                        "slot_first": int(start == 0),
                    }
                )
        slot = (slot + rng.choice([1, 1, 2])) % buffer_slots
    return blocks


def expected_beats(blocks, *, fold):
    """(block, token of the block, beat, token of the slot) of each beat, in order."""
    beats, start = [], 0
    for index, block in enumerate(blocks):
        start = 0 if block["slot_first"] else start
        for token in range(block["n_tokens"]):
            beats += [(index, token, beat, start + token) for beat in range(fold)]
        start += block["n_tokens"]
    return beats


class Run:
    """Blocks through a ValueIssue; every cycle is what scores, values and release allow."""

    def __init__(self, dut, blocks, *, pace, seed=0):
        self.dut = dut
        self.blocks = blocks
        # Chances a cycle: a block is announced, is scored, a slot is filled, shadow released.
        self.pace = pace
        self.rng = random.Random(seed)
        self.beats = expected_beats(blocks, fold=dut.fold)
        self.cycles = []  # of each beat
        self.waits = {"scored": 0, "filled": 0, "release": 0}
        self.most_blocks = 0

    def check_beat(self, ctx, index, token, beat, position):
        dut, block = self.dut, self.blocks[index]
        last = int(token == block["n_tokens"] - 1)
        issue = {
            "beat": beat,
            "first": int(token == 0),
            "last": last,
            "score_bank": index % SCORE_BANKS,
            "token": token,
        }
        assert fields(ctx, dut.issue, issue) == issue
        scale_addr = block["slot"] * BUFFER_TOKENS + position
        assert ctx.get(dut.scale_addr) == scale_addr
        assert ctx.get(dut.v_addr) == scale_addr * dut.fold + beat
        announces = last and beat == 0
        assert ctx.get(dut.drain.valid) == announces
        if announces:
            drain = {name: block[name] for name in ("n_rows", "table", "tile_last", "job_last")}
            assert fields(ctx, dut.drain.payload, drain) == drain
        ends = last and beat == dut.fold - 1
        assert ctx.get(dut.block_done) == ends
        assert ctx.get(dut.value_done.valid) == int(ends and block["slot_last"])
        if ends and block["slot_last"]:
            assert ctx.get(dut.value_done.slot) == block["slot"]
        return announces, ends

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        block_pace, score_pace, fill_pace, release_pace = self.pace
        to_fill = sum(block["slot_last"] for block in self.blocks)
        announced = n_scored = n_done = filled = cycle = 0
        shadow = False  # taken by a block that the drain has not released
        ctx.set(dut.drain.ready, 1)
        while len(self.cycles) < len(self.beats):
            index, token, beat, position = self.beats[len(self.cycles)]
            announce = (
                announced < len(self.blocks)
                and announced - n_done < SCORE_BANKS
                and rng.random() < block_pace
            )
            if announce:
                ctx.set(dut.block.payload, self.blocks[announced])
            ctx.set(dut.block.valid, int(announce))
            scored = n_scored < announced and rng.random() < score_pace
            ctx.set(dut.scored, int(scored))
            fill = to_fill > 0 and filled < dut.buffer_slots and rng.random() < fill_pace
            ctx.set(dut.v_filled, int(fill))
            release = shadow and rng.random() < release_pace
            ctx.set(dut.release, int(release))

            opens_last = token == self.blocks[index]["n_tokens"] - 1 and beat == 0
            if n_scored == index:
                reason = "scored"
            elif not filled:
                reason = "filled"
            elif opens_last and shadow:
                reason = "release"
            else:
                reason = None
            assert ctx.get(dut.block.ready)
            assert ctx.get(dut.busy) == int(announced > n_done)
            valid = ctx.get(dut.issue.valid)
            assert valid == int(reason is None), reason
            takes_shadow = ends = slot_ends = 0
            if valid:
                takes_shadow, ends = self.check_beat(ctx, index, token, beat, position)
                slot_ends = int(ends and self.blocks[index]["slot_last"])
                if beat:
                    assert cycle == self.cycles[-1] + 1, "a token was interrupted"
                self.cycles.append(cycle)
            else:
                self.waits[reason] += 1
                assert ctx.get(Cat(dut.drain.valid, dut.block_done, dut.value_done.valid)) == 0
            await ctx.tick()
            cycle += 1
            announced += announce
            n_scored += scored
            n_done += ends
            filled += fill - slot_ends
            to_fill -= fill
            shadow = bool(takes_shadow) or (shadow and not release)
            self.most_blocks = max(self.most_blocks, announced - n_done)
        for port in (dut.block.valid, dut.scored, dut.v_filled, dut.release):
            ctx.set(port, 0)
        for _ in range(10):
            assert not ctx.get(dut.busy)
            assert not ctx.get(dut.issue.valid)
            await ctx.tick()


SLOTS = [(64, 2), (33, 2), (1, 3), (32, 1), (2, 1)]
SLOW_SCORES = (1.0, 0.02, 1.0, 1.0)
SLOW_FILL = (1.0, 1.0, 0.01, 1.0)
SLOW_RELEASE = (1.0, 1.0, 1.0, 0.02)


@pytest.mark.parametrize(
    ("fold", "query_tile", "buffer_slots"), [(1, 2, 2), (2, 8, 4)]
)
@pytest.mark.parametrize(
    "pace",
    [FREE, SLOW_SCORES, SLOW_FILL, SLOW_RELEASE, (0.1,) * 4],
)
def test_every_beat(fold, query_tile, buffer_slots, pace):
    dut = value_issue(fold=fold, query_tile=query_tile, buffer_slots=buffer_slots)
    blocks = make_blocks(SLOTS, query_tile=query_tile, buffer_slots=buffer_slots, seed=fold)
    run = Run(dut, blocks, pace=pace, seed=query_tile)
    simulate(dut, run.bench)
    if pace == SLOW_SCORES:
        assert run.waits["scored"] > 50
        assert run.most_blocks == SCORE_BANKS
    if pace == SLOW_RELEASE:
        assert run.waits["release"] > 50
    if pace == SLOW_FILL:
        assert run.waits["filled"] > 50


@pytest.mark.parametrize("fold", [1, 4])
def test_no_bubble(fold):
    """One beat a cycle across blocks, tiles and slots when everything is there."""
    dut = value_issue(fold=fold)
    blocks = make_blocks([(64, 1), (33, 2), (40, 1)], query_tile=4, buffer_slots=2, seed=fold)
    # A last token right behind another one cannot be released in time.
    blocks = [block | {"n_tokens": max(block["n_tokens"], 3)} for block in blocks]
    run = Run(dut, blocks, pace=FREE)
    simulate(dut, run.bench)
    first = run.cycles[0]
    assert run.cycles == list(range(first, first + len(run.beats)))


def test_last_token_waits_for_release():
    """Without a release the second block issues all tokens but its last."""
    fold, n_tokens = 2, 7
    dut = value_issue(fold=fold)
    block = make_blocks([(n_tokens, 1)], query_tile=4, buffer_slots=2, seed=0)[0]
    block["slot_last"] = 0

    async def bench(ctx):
        async def count(cycles):
            beats = drains = 0
            for _ in range(cycles):
                beats += ctx.get(dut.issue.valid)
                drains += ctx.get(dut.drain.valid)
                await ctx.tick()
            return beats, drains

        async def pulse(port):
            ctx.set(port, 1)
            await ctx.tick()
            ctx.set(port, 0)

        ctx.set(dut.drain.ready, 1)
        ctx.set(dut.block.payload, block)
        for _ in range(2):
            await pulse(dut.block.valid)
        await pulse(dut.v_filled)
        assert await count(20) == (0, 0)  # not scored
        await pulse(dut.scored)
        assert await count(40) == (n_tokens * fold, 1)
        await pulse(dut.scored)
        assert await count(40) == ((n_tokens - 1) * fold, 0)
        await pulse(dut.release)
        assert await count(40) == (fold, 1)
        assert not ctx.get(dut.busy)

    simulate(dut, bench)


def test_converts():
    assert "issue" in rtlil.convert(value_issue(fold=1), name="issue")
