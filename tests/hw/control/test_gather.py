"""Query gather: tiles of the listed rows, their queries, scales and row ids in place and kept."""

import random

import pytest

from moska.hw.control.gather import QueryGather
from moska.sim.bench import simulate

MAX_ROWS = 16
MAX_CHUNKS = 16
BUFFER_TOKENS = 32
HEAD_DIM = 16
N_TABLES = 4


class Surroundings:
    """Inverter, query memories, score array and drain around a QueryGather, cycle by cycle."""

    def __init__(self, dut, slots, *, seed, pace, n_rows=MAX_ROWS):
        self.dut = dut
        self.slots = slots  # (slot fields, rows that the inverter answers)
        self.rng = random.Random(seed)
        self.pace = pace  # chances a cycle: a row arrives, a tile is issued, a table is done
        self.n_rows = n_rows
        self.beats = {
            addr: self.rng.getrandbits(dut.beat_dim * 16) for addr in range(MAX_ROWS * dut.fold)
        }
        self.scales = [self.rng.getrandbits(16) for _ in range(MAX_ROWS)]
        self.tiles = []
        self.most_banks = self.most_tables = 0

    def expected(self):
        """Tiles (fields without the table, rows) that the slots give."""
        out, bank, table = [], 0, 0
        for fields, rows in self.slots:
            groups = [
                rows[start : start + self.dut.query_tile]
                for start in range(0, len(rows), self.dut.query_tile)
            ]
            for index, group in enumerate(groups):
                tile = {
                    "representative": fields["representative"],
                    "chunk": fields["chunk"],
                    "n_tokens": fields["n_tokens"],
                    "n_rows": len(group),
                    "first_row": group[0],
                    "bank": bank,
                    "last": int(index == len(groups) - 1),
                }
                if not fields["representative"]:
                    tile["table"] = table
                    table = (table + 1) % N_TABLES
                out.append((tile, group))
                bank ^= 1
        return out

    async def bench(self, ctx):
        dut, rng = self.dut, self.rng
        row_pace, issue_pace, done_pace = self.pace
        expected = self.expected()
        in_array, scale_in_array = {}, {}
        listed = []  # rows still to give, of the accepted command
        computing = []  # tiles that were taken and not yet issued
        merging = []  # tables whose tiles wait for their merge
        given = n_cmds = cycle = n_tables_done = 0
        ctx.set(dut.n_rows, self.n_rows)
        while n_tables_done < sum("table" in tile for tile, _ in expected) or (
            len(self.tiles) < len(expected) or computing
        ):
            cycle += 1
            if given < len(self.slots):
                ctx.set(dut.slot.payload, self.slots[given][0])
                ctx.set(dut.slot.valid, 1)
            else:
                ctx.set(dut.slot.valid, 0)
            ctx.set(dut.rows_cmd.ready, int(not listed))
            offer = bool(listed) and rng.random() < row_pace
            offer = offer or (bool(listed) and ctx.get(dut.rows.valid) == 1)  # hold until taken
            ctx.set(dut.rows.valid, int(offer))
            if listed:
                ctx.set(dut.rows.payload, {"row": listed[0], "last": int(len(listed) == 1)})

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

            slot_taken = ctx.get(dut.slot.valid) and ctx.get(dut.slot.ready)
            cmd = ctx.get(dut.rows_cmd.payload)
            cmd_taken = ctx.get(dut.rows_cmd.valid) and ctx.get(dut.rows_cmd.ready)
            assert slot_taken == cmd_taken
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
                listed.pop(0)
            if slot_taken:
                fields, rows = self.slots[given]
                assert (cmd.chunk, cmd.all) == (fields["chunk"], fields["all"])
                assert cmd.n_rows == self.n_rows
                listed = list(rows)
                given += 1
                n_cmds += 1
            if row_taken or not listed:
                ctx.set(dut.rows.valid, 0)
            if tile_taken:
                fields, group = expected[len(self.tiles)]
                assert {name: getattr(tile, name) for name in fields} == fields
                self.tiles.append(fields)
                computing.append((fields, group))
            self.most_banks = max(self.most_banks, len(computing))
            with_table = sum("table" in entry[0] for entry in computing) + len(merging)
            self.most_tables = max(self.most_tables, with_table)
        for _ in range(20):
            await ctx.tick()
        assert not ctx.get(dut.tile.valid)
        assert not ctx.get(dut.busy)


def random_slots(count, seed, *, n_rows=MAX_ROWS):
    rng = random.Random(seed)
    slots = []
    for _ in range(count):
        representative = rng.random() < 0.3
        every = representative or rng.random() < 0.3
        rows = range(n_rows) if every else sorted(rng.sample(range(n_rows), rng.randint(1, n_rows)))
        fields = {
            "representative": int(representative),
            "chunk": rng.randrange(MAX_CHUNKS),
            "n_tokens": rng.randint(1, BUFFER_TOKENS),
            "all": int(every),
        }
        slots.append((fields, list(rows)))
    return slots


def gather(fold, query_tile):
    return QueryGather(
        max_rows=MAX_ROWS,
        max_chunks=MAX_CHUNKS,
        head_dim=HEAD_DIM,
        fold=fold,
        query_tile=query_tile,
        buffer_tokens=BUFFER_TOKENS,
        n_tables=N_TABLES,
    )


@pytest.mark.parametrize(("fold", "query_tile"), [(4, 2), (1, 2), (2, 8), (8, 4)])
@pytest.mark.parametrize(
    "pace", [(1.0, 1.0, 1.0), (1.0, 0.05, 0.2), (1.0, 0.3, 0.03), (0.3, 0.2, 0.2)]
)
def test_tiles_are_complete_and_kept(fold, query_tile, pace):
    dut = gather(fold, query_tile)
    n_rows = 13
    slots = random_slots(8, seed=fold + query_tile, n_rows=n_rows)
    around = Surroundings(dut, slots, seed=fold, pace=pace, n_rows=n_rows)
    simulate(dut, around.bench)
    assert len(around.tiles) == len(around.expected())
    if pace == (1.0, 0.05, 0.2):
        assert around.most_banks == 2
    if pace == (1.0, 0.3, 0.03):
        assert around.most_tables == N_TABLES


def test_one_beat_a_cycle():
    """A tile takes its beats and no more, when rows and banks are there."""
    dut = gather(4, 2)
    fields = {"representative": 0, "chunk": 3, "n_tokens": 32, "all": 1}
    around = Surroundings(dut, [(fields, [2, 5])], seed=1, pace=(1.0, 1.0, 1.0))
    writes = []

    async def monitor(ctx):
        cycle = 0
        async for _, _, q in ctx.tick().sample(dut.q):
            if q.valid:
                writes.append((cycle, q.row, q.beat))
            cycle += 1

    simulate(dut, around.bench, monitors=[monitor])
    first = writes[0][0]
    assert writes == [(first + n, n // 4, n % 4) for n in range(8)]
