# amaranth: UnusedElaboratable=no
"""Score issue: order, addresses and announcements of every beat, its waits and their reasons."""

import collections
import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat

from moska.golden.formats import BLOCK_TOKENS
from moska.golden.router import Router
from moska.hw.arrays.score import Phi
from moska.hw.control.score_issue import SCORE_BANKS, ScoreIssue
from moska.sim.bench import fields, simulate

MAX_ROWS = 16
MAX_CHUNKS = 64
N_TABLES = 4
N_CONTEXTS = 4
BUFFER_TOKENS = 64
SELECT_WIDTH = 8
FREE = (1.0, 1.0, 1.0)


def score_issue(*, fold=2, query_tile=4, buffer_slots=2, n_lanes=1):
    return ScoreIssue(
        max_rows=MAX_ROWS,
        max_chunks=MAX_CHUNKS,
        fold=fold,
        query_tile=query_tile,
        buffer_tokens=BUFFER_TOKENS,
        buffer_slots=buffer_slots,
        n_tables=N_TABLES,
        n_lanes=n_lanes,
        select_width=SELECT_WIDTH,
        n_contexts=N_CONTEXTS,
    )


def make_tiles(slots, *, query_tile, seed):
    """Tiles of (representative, n_tokens, number of tiles) slots."""
    rng = random.Random(seed)
    tiles = []
    for representative, n_tokens, n_tiles in slots:
        chunk = rng.randrange(MAX_CHUNKS - n_tokens + 1) if representative else 0
        context, ends_job = rng.randrange(N_CONTEXTS), rng.randint(0, 1)
        for index in range(n_tiles):
            tiles.append(
                {
                    "representative": int(representative),
                    "context": context,
                    "chunk": chunk,
                    "n_tokens": n_tokens,
                    "n_rows": rng.randint(1, query_tile),
                    "first_row": rng.randrange(MAX_ROWS),
                    "bank": len(tiles) % 2,
                    "table": rng.randrange(N_TABLES),
                    "last": int(index == n_tiles - 1),
                    "job_last": int(ends_job and index == n_tiles - 1),
                }
            )
    return tiles


def expected_beats(tiles, *, fold, buffer_slots, pairs, rep_shift):
    """One dictionary for each beat that the tiles give, in order."""
    beats, slot, n_blocks = [], 0, 0
    group = 1 << rep_shift
    for tile in tiles:
        n_tokens, representative = tile["n_tokens"], tile["representative"]
        for token in range(n_tokens):
            first = token % BLOCK_TOKENS == 0
            last = token == n_tokens - 1 or token % BLOCK_TOKENS == BLOCK_TOKENS - 1
            phi = Phi.ALL
            if representative and pairs:
                phi = Phi.NEGATIVE if token % 2 else Phi.POSITIVE
            for beat in range(fold):
                entry = {
                    "beat": beat,
                    "bank": tile["bank"],
                    "phi": phi.value,
                    "first": int(first),
                    "last": int(last),
                    "token": token % BLOCK_TOKENS,
                    "representative": representative,
                }
                if representative:
                    entry["rep_first"] = int(token % group == 0)
                    entry["rep_last"] = int(token % group == group - 1)
                else:
                    entry["score_bank"] = n_blocks % SCORE_BANKS
                block = tag = None
                if first and beat == 0 and not representative:
                    rest = n_tokens - token
                    block = {
                        "n_tokens": min(rest, BLOCK_TOKENS),
                        "n_rows": tile["n_rows"],
                        "table": tile["table"],
                        "slot": slot,
                        "tile_last": int(rest <= BLOCK_TOKENS),
                        "job_last": int(rest <= BLOCK_TOKENS and tile["job_last"]),
                        "slot_last": int(rest <= BLOCK_TOKENS and tile["last"]),
                        "slot_first": int(token == 0),
                    }
                if representative and beat == 0 and entry["rep_last"]:
                    tag = {"chunk": tile["chunk"] + token // group, "first_row": tile["first_row"]}
                tile_end = token == n_tokens - 1 and beat == fold - 1
                scale_addr = slot * BUFFER_TOKENS + token
                beats.append(
                    {
                        "issue": entry,
                        "scale_addr": scale_addr,
                        "k_addr": scale_addr * fold + beat,
                        "block": block,
                        "key_tag": tag,
                        "tile_issued": int(tile_end),
                        "slot": slot,
                        "slot_end": int(tile_end and tile["last"]),
                        "inside": beat != 0,
                    }
                )
            n_blocks += last and not representative
        if tile["last"]:
            slot = (slot + 1) % buffer_slots
    return beats


class Run:
    """Tiles through a ScoreIssue; every cycle is what the buffer, tiles and banks allow."""

    def __init__(self, dut, tiles, *, pace, seed=0, router=Router.ROWS, rep_shift=0):
        self.dut = dut
        self.tiles = tiles
        self.pace = pace  # chances a cycle: a slot is filled, a tile is offered, a block is done
        self.rng = random.Random(seed)
        self.router = router
        self.rep_shift = rep_shift
        self.beats = expected_beats(
            tiles,
            fold=dut.fold,
            buffer_slots=dut.buffer_slots,
            pairs=router == Router.MINMAX,
            rep_shift=rep_shift,
        )
        self.cycles = []  # of each beat
        self.reasons = {"memory": 0, "query": 0, "softmax": 0}
        self.most_blocks = 0

    def check_beat(self, ctx, expected):
        dut = self.dut
        assert fields(ctx, dut.issue, expected["issue"]) == expected["issue"]
        for name in ("k_addr", "scale_addr", "tile_issued"):
            assert ctx.get(getattr(dut, name)) == expected[name], name
        assert ctx.get(dut.score_done.valid) == expected["slot_end"]
        if expected["slot_end"]:
            assert ctx.get(dut.score_done.slot) == expected["slot"]
        assert ctx.get(dut.block.valid) == int(expected["block"] is not None)
        if expected["block"] is not None:
            assert fields(ctx, dut.block.payload, expected["block"]) == expected["block"]
        assert ctx.get(dut.key_tag.valid) == int(expected["key_tag"] is not None)
        if expected["key_tag"] is not None:
            assert fields(ctx, dut.key_tag.tag, expected["key_tag"]) == expected["key_tag"]

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        fill_pace, tile_pace, done_pace = self.pace
        to_fill = sum(tile["last"] for tile in self.tiles)
        filled = outstanding = gap = given = cycle = 0
        offered = False
        ctx.set(dut.router, self.router)
        ctx.set(dut.rep_shift, self.rep_shift)
        ctx.set(dut.block.ready, 1)
        while len(self.cycles) < len(self.beats):
            expected = self.beats[len(self.cycles)]
            fill = bool(to_fill) and filled < dut.buffer_slots and rng.random() < fill_pace
            ctx.set(dut.k_filled, int(fill))
            if given < len(self.tiles) and not offered:
                offered = rng.random() < tile_pace
                ctx.set(dut.tile.payload, self.tiles[given])
                ctx.set(dut.tile.valid, int(offered))
            done = outstanding > 0 and rng.random() < done_pace
            ctx.set(dut.block_done, int(done))

            if not filled:
                reason = "memory"
            elif not offered or gap:
                reason = "query"
            elif expected["block"] is not None and outstanding == SCORE_BANKS:
                reason = "softmax"
            else:
                reason = None
            valid = ctx.get(dut.issue.valid)
            assert valid == int(reason is None)
            stalls = ctx.get(Cat(dut.stalled_memory, dut.stalled_query, dut.stalled_softmax))
            assert stalls == sum(
                int(name == reason) << index for index, name in enumerate(self.reasons)
            )
            taken = ctx.get(dut.tile.ready)
            gap = max(0, gap - 1)
            starts = False
            if valid:
                self.check_beat(ctx, expected)
                assert taken == expected["tile_issued"]
                if expected["inside"]:
                    assert cycle == self.cycles[-1] + 1, "a token was interrupted"
                starts = expected["block"] is not None
                filled -= expected["slot_end"]
                if taken and expected["issue"]["representative"] and dut.n_lanes > 1:
                    round_tokens = SELECT_WIDTH << self.rep_shift
                    tokens = (self.tiles[given]["n_tokens"] - 1) % round_tokens + 1
                    gap = max(0, dut.query_tile - tokens * dut.fold)
                self.cycles.append(cycle)
            else:
                self.reasons[reason] += 1
                assert not taken
                pulses = Cat(
                    dut.block.valid, dut.key_tag.valid, dut.tile_issued, dut.score_done.valid
                )
                assert ctx.get(pulses) == 0
            await ctx.tick()
            cycle += 1
            if taken:
                given += 1
                offered = False
            filled += fill
            to_fill -= fill
            outstanding += starts - done
            self.most_blocks = max(self.most_blocks, outstanding)
        ctx.set(dut.tile.valid, 0)
        ctx.set(dut.k_filled, 0)
        ctx.set(dut.block_done, 0)
        for _ in range(10):
            await ctx.tick()
            assert not ctx.get(dut.issue.valid)


SLOTS = [
    (False, 64, 2),
    (True, 34, 2),
    (False, 33, 2),
    (False, 32, 1),
    (True, 2, 3),
    (False, 1, 6),
]
SLOW_FILL = (0.02, 1.0, 1.0)
SLOW_TILES = (1.0, 0.05, 1.0)
SLOW_BLOCKS = (0.3, 0.3, 0.015)


@pytest.mark.parametrize(
    ("fold", "query_tile", "buffer_slots", "n_lanes"),
    [(1, 2, 2, 1), (2, 8, 4, 4)],
)
@pytest.mark.parametrize("pace", [FREE, SLOW_FILL, SLOW_TILES, SLOW_BLOCKS])
def test_every_beat(fold, query_tile, buffer_slots, n_lanes, pace):
    dut = score_issue(
        fold=fold, query_tile=query_tile, buffer_slots=buffer_slots, n_lanes=n_lanes
    )
    tiles = make_tiles(SLOTS, query_tile=query_tile, seed=fold)
    run = Run(dut, tiles, pace=pace, seed=query_tile, router=Router.MINMAX, rep_shift=1)
    simulate(dut, run.bench)
    assert run.most_blocks <= SCORE_BANKS
    if pace == SLOW_FILL:
        assert run.reasons["memory"]
    if pace == SLOW_TILES:
        assert run.reasons["query"]
    if pace == SLOW_BLOCKS:
        assert run.most_blocks == SCORE_BANKS
        assert run.reasons["softmax"]


@pytest.mark.parametrize(
    ("router", "rep_shift"),
    [(Router.ROWS, 0), (Router.ROWS, 2), (Router.ROWS, 6), (Router.MINMAX, 1)],
)
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_representatives(router, rep_shift, n_lanes):
    dut = score_issue(n_lanes=n_lanes)
    slots = [(True, 64, 1), (True, max(4, 1 << rep_shift), 2), (False, 5, 2), (True, 64, 1)]
    tiles = make_tiles(slots, query_tile=4, seed=rep_shift)
    run = Run(dut, tiles, pace=(0.5, 0.5, 0.5), seed=n_lanes, router=router, rep_shift=rep_shift)
    simulate(dut, run.bench)
    tags = [beat["key_tag"] for beat in run.beats if beat["key_tag"] is not None]
    assert len(tags) == sum(n * m >> rep_shift for rep, n, m in slots if rep)


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_no_bubble(fold, n_lanes):
    """One beat a cycle across blocks, tiles and slots; short representatives wait for lanes."""
    query_tile = 8
    dut = score_issue(fold=fold, n_lanes=n_lanes, query_tile=query_tile)
    slots = [(False, 64, 2), (False, 1, 3), (True, 40, 3), (True, 1, 2), (True, 3, 2)]
    slots.append((False, 2, 1))
    tiles = make_tiles(slots, query_tile=query_tile, seed=fold)
    run = Run(dut, tiles, pace=FREE)
    simulate(dut, run.bench)
    short = {1: 7 + 7 + 5 + 5, 4: 4 + 4}[fold]  # below query_tile beats a tile
    gaps = short if n_lanes > 1 else 0
    assert run.cycles[-1] - run.cycles[0] + 1 == len(run.beats) + gaps
    assert run.reasons == {"memory": 1, "query": gaps, "softmax": 0}


@pytest.mark.parametrize(("fold", "rep_shift"), [(1, 0), (1, 1), (2, 0), (2, 2)])
@pytest.mark.parametrize("pace", [FREE, SLOW_TILES])
def test_key_banks(fold, rep_shift, pace):
    """Lanes that lag behind each other never write keys to one bank of the selector at once."""
    query_tile = 8
    n_lanes = query_tile // fold
    dut = score_issue(fold=fold, query_tile=query_tile, buffer_slots=4, n_lanes=n_lanes)
    slots = []  # of jobs of n chunks
    for n_chunks in (1, 2, 7, 8, 9, 12, 15, 16, 17, 30, 63, 3):
        for first in range(0, n_chunks << rep_shift, BUFFER_TOKENS):
            slots.append((first, min(BUFFER_TOKENS, (n_chunks << rep_shift) - first)))
    tiles = make_tiles([(True, n, 3) for _, n in slots], query_tile=query_tile, seed=fold)
    for index, tile in enumerate(tiles):
        tile["chunk"] = slots[index // 3][0] >> rep_shift
    run = Run(dut, tiles, pace=pace, seed=rep_shift, rep_shift=rep_shift)
    simulate(dut, run.bench)
    writers = collections.Counter(
        (cycle + lane * fold, beat["key_tag"]["chunk"] % SELECT_WIDTH)
        for cycle, beat in zip(run.cycles, run.beats, strict=True)
        if beat["key_tag"] is not None
        for lane in range(n_lanes)
    )
    assert max(writers.values()) == 1


def test_waits_for_a_score_bank():
    """SCORE_BANKS blocks start, then one for each that is done; representatives do not wait."""
    dut = score_issue(fold=2)
    block_beats = 2 * BLOCK_TOKENS
    tile = make_tiles([(False, 64, 1)], query_tile=4, seed=0)[0]
    tile["last"] = 0  # the slot is never left
    rep_tile = make_tiles([(True, 64, 1)], query_tile=4, seed=0)[0] | {"last": 0}

    async def bench(ctx):
        async def run(cycles):
            beats = blocks = stalled = 0
            for _ in range(cycles):
                beats += ctx.get(dut.issue.valid)
                blocks += ctx.get(dut.block.valid)
                stalled += ctx.get(dut.stalled_softmax)
                await ctx.tick()
            return beats, blocks, stalled

        ctx.set(dut.block.ready, 1)
        ctx.set(dut.k_filled, 1)
        await ctx.tick()
        ctx.set(dut.k_filled, 0)
        ctx.set(dut.tile.payload, tile)
        ctx.set(dut.tile.valid, 1)
        busy = SCORE_BANKS * block_beats
        assert await run(busy + 50) == (busy, SCORE_BANKS, 50)
        for _ in range(2):
            ctx.set(dut.block_done, 1)
            assert await run(1) == (0, 0, 1)
            ctx.set(dut.block_done, 0)
            assert await run(block_beats + 7) == (block_beats, 1, 7)
        ctx.set(dut.tile.payload, rep_tile)
        assert await run(2 * block_beats) == (2 * block_beats, 0, 0)

    simulate(dut, bench)


@pytest.mark.parametrize("n_lanes", [1, 2])
def test_converts(n_lanes):
    assert "issue" in rtlil.convert(score_issue(n_lanes=n_lanes), name="issue")
