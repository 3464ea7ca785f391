# amaranth: UnusedElaboratable=no
"""Query gather: tiles of the listed rows in place and kept; rate of the whole slot path."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moska.hw.control.drain import Drain
from moska.hw.control.gather import LISTS, QueryGather
from moska.hw.control.score_issue import ScoreIssue
from moska.hw.control.value_issue import ValueIssue
from moska.hw.delay import delayed
from moska.hw.router.invert import Inverter, load_layout
from moska.sim.bench import check_hold, put, simulate

MAX_ROWS = 16
MAX_CHUNKS = 16
BUFFER_TOKENS = 32
HEAD_DIM = 16
N_TABLES = 4
N_CONTEXTS = 2


class Surroundings:
    """Inverters, query memories, score array and drain around a QueryGather, cycle by cycle."""

    def __init__(self, dut, slots, *, seed, pace, n_rows):
        self.dut = dut
        self.slots = slots  # (slot fields, rows that the inverter answers)
        self.rng = random.Random(seed)
        self.pace = pace  # chances a cycle: a row arrives, a tile is issued, a table is done
        self.n_rows = n_rows  # of each context
        n_places = N_CONTEXTS * MAX_ROWS
        self.beats = [self.rng.getrandbits(dut.beat_dim * 16) for _ in range(n_places * dut.fold)]
        self.scales = [self.rng.getrandbits(16) for _ in range(n_places)]
        self.tiles = []
        self.most_banks = self.most_tables = self.most_lists = 0
        self.both_contexts = False

    def expected(self):
        """Tiles (fields, {context, row} of their rows) that the slots give."""
        out, bank, table = [], 0, 0
        for slot, rows in self.slots:
            groups = [
                rows[start : start + self.dut.query_tile]
                for start in range(0, len(rows), self.dut.query_tile)
            ]
            for index, group in enumerate(groups):
                last = int(index == len(groups) - 1)
                tile = {name: slot[name] for name in ("representative", "context", "chunk")} | {
                    "n_tokens": slot["n_tokens"],
                    "n_rows": len(group),
                    "first_row": group[0],
                    "bank": bank,
                    "last": last,
                    "job_last": int(last and slot["job_last"]),
                }
                if not slot["representative"]:
                    tile["table"] = table
                    table = (table + 1) % N_TABLES
                out.append((tile, [slot["context"] * MAX_ROWS + row for row in group]))
                bank ^= 1
        return out

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        row_pace, issue_pace, done_pace = self.pace
        expected = self.expected()
        in_array, scale_in_array = {}, {}
        # Of each inverter: lists of rows still to give; whether the first row is on offer.
        listed = [[] for _ in range(N_CONTEXTS)]
        offers = [False] * N_CONTEXTS
        order = []  # contexts of the lists that are under way
        computing = []  # tiles that were taken and not yet issued
        merging = []  # tables whose tiles wait for their merge
        given = asked = cycle = n_tables_done = 0
        ctx.set(dut.n_rows, self.n_rows)
        while n_tables_done < sum("table" in tile for tile, _ in expected) or (
            len(self.tiles) < len(expected) or computing
        ):
            cycle += 1
            ctx.set(dut.slot.valid, int(given < len(self.slots)))
            if given < len(self.slots):
                ctx.set(dut.slot.payload, self.slots[given][0])
            # An inverter holds two lists at most.
            cmd_context = ctx.get(dut.rows_cmd_context)
            ctx.set(dut.rows_cmd.ready, int(len(listed[cmd_context]) < 2))
            for context, lists in enumerate(listed):
                offers[context] |= bool(lists) and rng.random() < row_pace
            context = ctx.get(dut.rows_context)
            offer = offers[context]
            ctx.set(dut.rows.valid, int(offer))
            if offer:
                rows = listed[context][0]
                ctx.set(dut.rows.payload, {"row": rows[0], "last": int(len(rows) == 1)})
            self.both_contexts |= all(listed)

            # The compute side takes a tile at once, and is done with it some time later.
            ctx.set(dut.tile.ready, int(rng.random() < 0.7))
            tile_issued = bool(computing) and rng.random() < issue_pace
            ctx.set(dut.tile_issued, int(tile_issued))
            table_done = bool(merging) and rng.random() < done_pace
            ctx.set(dut.table_done, int(table_done))

            # Whatever a tile in use needs is there, in every cycle until it is handed back.
            for tile, group in computing:
                for position, row in enumerate(group):
                    assert scale_in_array[tile["bank"], position] == self.scales[row]
                    for beat in range(dut.fold):
                        place = tile["bank"], position, beat
                        assert in_array[place] == self.beats[row * dut.fold + beat]
            for table, group in merging:
                ctx.set(dut.table, table)
                for position, row in enumerate(group):
                    ctx.set(dut.position, position)
                    assert ctx.get(dut.row) == row

            assert ctx.get(dut.busy) >= (len(self.tiles) < asked)
            slot_taken = ctx.get(dut.slot.valid) and ctx.get(dut.slot.ready)
            cmd = ctx.get(dut.rows_cmd.payload)
            cmd_taken = ctx.get(dut.rows_cmd.valid) and ctx.get(dut.rows_cmd.ready)
            row_taken = offer and ctx.get(dut.rows.ready)
            tile_taken = ctx.get(dut.tile.valid) and ctx.get(dut.tile.ready)
            tile = ctx.get(dut.tile.payload)
            q, q_scale = ctx.get(dut.q), ctx.get(dut.q_scale)
            if q.valid:
                in_array[q.bank, q.row, q.beat] = q.data
            if q_scale.valid:
                scale_in_array[q_scale.bank, q_scale.row] = q_scale.scale
            q_addr, scale_addr = ctx.get(dut.q_addr), ctx.get(dut.scale_addr)
            await ctx.tick()
            ctx.set(dut.q_data, self.beats[q_addr])
            ctx.set(dut.scale_data, self.scales[scale_addr])

            if tile_issued:
                done_tile, group = computing.pop(0)
                if "table" in done_tile:
                    merging.append((done_tile["table"], group))
            if table_done:
                merging.pop(0)
                n_tables_done += 1
            if row_taken:
                assert context == order[0], "a row of another list"
                listed[context][0].pop(0)
                offers[context] = False
                if not listed[context][0]:
                    listed[context].pop(0)
                    order.pop(0)
            given += slot_taken
            if cmd_taken:
                slot, rows = self.slots[asked]
                asked += 1
                assert asked <= given
                assert (cmd.chunk, cmd.all) == (slot["chunk"], slot["all"])
                assert cmd_context == slot["context"]
                assert cmd.n_rows == self.n_rows[cmd_context]
                listed[cmd_context].append(list(rows))
                order.append(cmd_context)
            if tile_taken:
                tile_fields, group = expected[len(self.tiles)]
                assert {name: getattr(tile, name) for name in tile_fields} == tile_fields
                self.tiles.append(tile_fields)
                computing.append((tile_fields, group))
            self.most_banks = max(self.most_banks, len(computing))
            with_table = sum("table" in entry[0] for entry in computing) + len(merging)
            self.most_tables = max(self.most_tables, with_table)
            self.most_lists = max(self.most_lists, asked - sum(t["last"] for t in self.tiles))
        for _ in range(20):
            await ctx.tick()
        assert not ctx.get(dut.tile.valid)
        assert not ctx.get(dut.busy)


def random_slots(count, seed, n_rows):
    rng = random.Random(seed)
    slots = []
    for _ in range(count):
        context = rng.randrange(N_CONTEXTS)
        some = n_rows[context]
        representative = rng.random() < 0.3
        every = representative or rng.random() < 0.3
        rows = range(some) if every else sorted(rng.sample(range(some), rng.randint(1, some)))
        slot = {
            "representative": int(representative),
            "context": context,
            "chunk": rng.randrange(MAX_CHUNKS),
            "n_tokens": rng.randint(1, BUFFER_TOKENS),
            "all": int(every),
            "job_last": rng.randint(0, 1),
        }
        slots.append((slot, list(rows)))
    return slots


def gather(fold, query_tile, *, n_contexts=N_CONTEXTS):
    return QueryGather(
        max_rows=MAX_ROWS,
        max_chunks=MAX_CHUNKS,
        head_dim=HEAD_DIM,
        fold=fold,
        query_tile=query_tile,
        buffer_tokens=BUFFER_TOKENS,
        n_tables=N_TABLES,
        n_contexts=n_contexts,
    )


@pytest.mark.parametrize(("fold", "query_tile"), [(4, 2), (1, 2), (2, 8), (8, 4)])
@pytest.mark.parametrize(
    "pace", [(1.0, 1.0, 1.0), (1.0, 0.05, 0.2), (1.0, 0.3, 0.03), (0.3, 0.2, 0.2)]
)
def test_tiles_are_complete_and_kept(fold, query_tile, pace):
    dut = gather(fold, query_tile)
    n_rows = [13, 5]
    slots = random_slots(10, fold + query_tile, n_rows)
    around = Surroundings(dut, slots, seed=fold, pace=pace, n_rows=n_rows)
    simulate(dut, around.bench, monitors=[check_hold(dut.rows_cmd), check_hold(dut.tile)])
    assert len(around.tiles) == len(around.expected())
    if pace == (1.0, 0.05, 0.2):
        assert around.most_banks == 2
        assert around.both_contexts
        assert around.most_lists >= LISTS
    if pace == (1.0, 0.3, 0.03):
        assert around.most_tables == N_TABLES


def test_one_beat_a_cycle():
    """A tile takes its beats and no more, when rows and banks are there."""
    dut = gather(4, 2)
    slot = {
        "representative": 0,
        "context": 1,
        "chunk": 3,
        "n_tokens": 32,
        "all": 1,
        "job_last": 1,
    }
    around = Surroundings(
        dut, [(slot, [2, 5])], seed=1, pace=(1.0, 1.0, 1.0), n_rows=[16, 16]
    )
    writes, tiles = [], []

    async def monitor(ctx):
        cycle = 0
        async for _, _, q, tile in ctx.tick().sample(dut.q, dut.tile.valid):
            if q.valid:
                writes.append((cycle, q.row, q.beat))
            if tile:
                tiles.append(cycle)
            cycle += 1

    simulate(dut, around.bench, monitors=[monitor])
    first = writes[0][0]
    assert writes == [(first + n, n // 4, n % 4) for n in range(8)]
    # The write follows the address by one cycle.
    assert tiles[0] == writes[-1][0] - 1 + QueryGather.tile_latency


@pytest.mark.parametrize(
    ("argument", "value"), [("max_rows", 24), ("n_tables", 3), ("n_contexts", 1)]
)
def test_constructor(argument, value):
    arguments = {
        "max_rows": 16,
        "max_chunks": 16,
        "head_dim": 16,
        "fold": 1,
        "query_tile": 4,
        "buffer_tokens": 32,
        "n_tables": 4,
        "n_contexts": 2,
    }
    with pytest.raises(ValueError, match=f"{argument} must be a power of two"):
        QueryGather(**arguments | {argument: value})


@pytest.mark.parametrize("n_contexts", [2, 4])
def test_converts(n_contexts):
    assert "gather" in rtlil.convert(gather(1, 4, n_contexts=n_contexts), name="gather")


# The slot path with its inverters --------------------------------------------------------------

SCORED = 24  # cycles from the last beat of a block to its references
CAPTURED = 16  # cycles from the start of a block's last token to its capture


class SlotPath(wiring.Component):
    """Gather, issue and drain as in the unit; arrays are delays, and memory is always in time."""

    def __init__(self, *, query_tile, n_tables, max_rows, max_chunks, buffer_tokens):
        self.sizes = {
            "max_rows": max_rows,
            "max_chunks": max_chunks,
            "query_tile": query_tile,
            "buffer_tokens": buffer_tokens,
            "n_tables": n_tables,
        }
        self.gather = QueryGather(head_dim=64, fold=1, n_contexts=2, **self.sizes)
        self.inverter = Inverter(
            n_contexts=2, max_rows=max_rows, max_chunks=max_chunks, width=8
        )
        super().__init__(
            {
                "slot": In(stream.Signature(self.gather.slot.payload.shape())),
                "load": In(stream.Signature(load_layout(max_rows, max_chunks))),
                "load_context": In(1),
                "active": Out(1),
                "score_done": Out(1),
                "job_done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        sizes, gather = self.sizes, self.gather
        m.submodules.gather = gather
        # A round of the selector as long as a slot: keys of two tiles never meet in it.
        m.submodules.score_issue = score_issue = ScoreIssue(
            fold=1,
            buffer_slots=16,
            n_lanes=sizes["query_tile"],
            n_contexts=2,
            select_width=sizes["query_tile"],
            **sizes,
        )
        m.submodules.value_issue = value_issue = ValueIssue(
            fold=1,
            query_tile=sizes["query_tile"],
            buffer_tokens=sizes["buffer_tokens"],
            buffer_slots=16,
            n_tables=sizes["n_tables"],
        )
        m.submodules.drain = drain = Drain(
            max_rows=sizes["max_rows"],
            n_contexts=2,
            query_tile=sizes["query_tile"],
            n_words=2,
            n_tables=sizes["n_tables"],
            slack=CAPTURED - 8,
        )
        m.submodules.inverter = inverter = self.inverter
        wiring.connect(m, wiring.flipped(self.load), inverter.load)
        wiring.connect(m, gather.rows_cmd, inverter.rows_cmd)
        wiring.connect(m, inverter.rows, gather.rows)
        m.d.comb += [
            inverter.load_context.eq(self.load_context),
            inverter.rows_context.eq(gather.rows_cmd_context),
        ]
        wiring.connect(m, wiring.flipped(self.slot), gather.slot)
        wiring.connect(m, gather.tile, score_issue.tile)
        wiring.connect(m, score_issue.block, value_issue.block)
        wiring.connect(m, value_issue.drain, drain.block)

        # Keys and values of a slot are there as soon as the slot is known.
        filled = Signal()
        block_end = Signal()
        takes = Signal()
        m.d.comb += [
            filled.eq(self.slot.valid & self.slot.ready),
            block_end.eq(score_issue.issue.valid & score_issue.issue.last),
            takes.eq(value_issue.drain.valid),
            *(n_rows.eq(sizes["max_rows"]) for n_rows in gather.n_rows),
            score_issue.k_filled.eq(filled),
            score_issue.block_done.eq(value_issue.block_done),
            value_issue.v_filled.eq(filled & ~self.slot.payload.representative),
            value_issue.scored.eq(
                delayed(m, block_end & ~score_issue.issue.representative, SCORED, name="scored")
            ),
            value_issue.release.eq(drain.release),
            drain.captured.eq(delayed(m, takes, CAPTURED, name="captured")),
            drain.row.eq(gather.row),
            gather.tile_issued.eq(score_issue.tile_issued),
            gather.table_done.eq(drain.table_done),
            gather.table.eq(drain.table),
            gather.position.eq(drain.position),
            self.active.eq(score_issue.issue.valid),
            self.score_done.eq(score_issue.score_done.valid),
            self.job_done.eq(drain.job_done),
        ]
        return m


def run_path(lists, *, n_tables=8, query_tile=16, n_tokens=32, max_rows=64):
    """Send a slot for each (context, rows, representative); return (beats, first, last cycle).

    ``rows``: rows of its list, None: all.
    """
    dut = SlotPath(
        query_tile=query_tile,
        n_tables=n_tables,
        max_rows=max_rows,
        max_chunks=64,
        buffer_tokens=32,
    )
    loads, slots, n_beats = [[], []], [], 0
    for index, (context, rows, representative) in enumerate(lists):
        listed = range(max_rows) if rows is None else rows
        n_beats += -(-len(listed) // query_tile) * n_tokens
        if rows is not None:
            for word in range(max_rows // 32):
                bits = sum(1 << row - 32 * word for row in rows if row // 32 == word)
                loads[context].append({"chunk": index, "row_word": word, "bits": bits})
        slots.append(
            {
                "representative": int(representative),
                "context": context,
                "chunk": index,
                "n_tokens": n_tokens,
                "all": int(rows is None),
                "job_last": int(index == len(lists) - 1),
            }
        )
    cycles = []

    async def bench(ctx):
        for context in range(2):
            ctx.set(dut.load_context, context)
            await put(dut.load, loads[context])(ctx)

        await ctx.tick()
        given = cycle = done = in_use = 0
        while not done:
            # As many slots as the chunk buffer holds.
            ready = ctx.get(dut.slot.ready)
            valid = given < len(slots) and in_use < 16
            if valid:
                ctx.set(dut.slot.payload, slots[given])
            ctx.set(dut.slot.valid, int(valid))
            active, freed, done = (
                ctx.get(port) for port in (dut.active, dut.score_done, dut.job_done)
            )
            await ctx.tick()
            given += valid and ready
            in_use += (valid and ready) - freed
            if active:
                cycles.append(cycle)
            cycle += 1

    simulate(dut, bench, cycles=4000)
    assert len(cycles) == n_beats
    return n_beats, cycles[0], cycles[-1]


def idle_cycles(lists, **arguments):
    n_beats, first, last = run_path(lists, **arguments)
    return last - first + 1 - n_beats


def test_full_tiles_leave_no_idle_cycle():
    assert idle_cycles([(0, None, False)] * 8) == 0


@pytest.mark.parametrize("n_rows", [1, 5, 16, 17, 33])
def test_lists_leave_no_idle_cycle(n_rows):
    """Rows of the next chunks are listed and loaded while this one computes."""
    rng = random.Random(n_rows)
    lists = [(0, sorted(rng.sample(range(64), n_rows)), False) for _ in range(12)]
    assert idle_cycles(lists) == 0, f"seed {n_rows}"


def test_contexts_alternate_without_idle_cycle():
    """Slots of two jobs, representatives of the one between chunks of the other."""
    rng = random.Random(7)
    lists = [
        (1, None, True) if index % 3 == 1 else (0, sorted(rng.sample(range(64), 3)), False)
        for index in range(15)
    ]
    assert idle_cycles(lists) == 0


def test_lists_are_asked_for_ahead():
    """A list of many row words is searched while the ones before it are loaded and used."""
    n_words = 16
    lists = [(0, [511], index < 11) for index in range(12)]
    idle = idle_cycles(lists, n_tokens=n_words, max_rows=32 * n_words)
    # A cycle for the command of each list, besides those for its words.
    assert idle <= len(lists)
