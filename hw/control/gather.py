"""Query gather: loads the queries that selected a chunk into the score array, tile by tile."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import Q_BITS, SCALE_BITS
from moska.hw.router.invert import rows_cmd_layout, rows_layout


def slot_layout(*, max_chunks, buffer_tokens):
    """Struct of a filled (or filling) buffer slot: what its tokens are."""
    return data.StructLayout(
        {
            "representative": 1,  # rows are representatives, not keys
            "chunk": range(max_chunks),  # for representatives: chunk of the first row
            "n_tokens": range(buffer_tokens + 1),
            "all": 1,  # every row attends, no list is read
        }
    )


def tile_layout(*, max_rows, max_chunks, query_tile, buffer_tokens, n_tables):
    """Struct of a tile whose queries are loaded: one pass of a slot's tokens."""
    return data.StructLayout(
        {
            "representative": 1,
            "chunk": range(max_chunks),
            "n_tokens": range(buffer_tokens + 1),
            "n_rows": range(query_tile + 1),
            "first_row": range(max(max_rows, 2)),
            "bank": 1,
            "table": range(n_tables),
            "last": 1,  # last tile of its slot
        }
    )


class QueryGather(wiring.Component):
    """Load tiles of at most ``query_tile`` rows for each slot, one query beat a cycle.

    A tile is loaded into one of two banks of the score array while the other one computes, and its
    row ids into one of ``n_tables`` tables, kept until its last block is merged. The queries come
    from a memory with one cycle of latency.

    Members
    -------
    n_rows : :py:`In(range(max_rows + 1))`
    slot : :py:`In(stream.Signature(slot_layout(...)))`
    rows_cmd, rows : streams to and from the inverter
    q_addr, q_data, scale_addr, scale_data
        query memory (beats) and query scale memory
    q, q_scale : Out
        writes into the score array and the softmax lanes
    tile : :py:`Out(stream.Signature(tile_layout(...)))`
        always accepted within two tiles: ``tile_issued`` frees a bank
    tile_issued, table_done : :py:`In(1)`
    table, position : In
    row : :py:`Out(range(max_rows))`
        row id at ``position`` of ``table``, in the same cycle
    waiting, busy : Out

    """

    def __init__(
        self, *, max_rows, max_chunks, head_dim, fold, query_tile, buffer_tokens, n_tables
    ):
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.beat_dim = head_dim // fold
        self.fold = fold
        self.query_tile = query_tile
        self.buffer_tokens = buffer_tokens
        self.n_tables = n_tables
        beat = range(max(fold, 2))
        row = range(max(max_rows, 2))
        super().__init__(
            {
                "n_rows": In(range(max_rows + 1)),
                "slot": In(
                    stream.Signature(
                        slot_layout(max_chunks=max_chunks, buffer_tokens=buffer_tokens)
                    )
                ),
                "rows_cmd": Out(
                    stream.Signature(rows_cmd_layout(max_rows, max_chunks))
                ),
                "rows": In(stream.Signature(rows_layout(max_rows))),
                "q_addr": Out(range(max_rows * fold)),
                "q_data": In(self.beat_dim * Q_BITS),
                "scale_addr": Out(row),
                "scale_data": In(SCALE_BITS),
                "q": Out(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "row": range(query_tile),
                            "bank": 1,
                            "beat": beat,
                            "data": self.beat_dim * Q_BITS,
                        }
                    )
                ),
                "q_scale": Out(
                    data.StructLayout(
                        {"valid": 1, "row": range(query_tile), "bank": 1, "scale": SCALE_BITS}
                    )
                ),
                "tile": Out(
                    stream.Signature(
                        tile_layout(
                            max_rows=max_rows,
                            max_chunks=max_chunks,
                            query_tile=query_tile,
                            buffer_tokens=buffer_tokens,
                            n_tables=n_tables,
                        )
                    )
                ),
                "tile_issued": In(1),
                "table_done": In(1),
                "table": In(range(n_tables)),
                "position": In(range(query_tile)),
                "row": Out(row),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.tables = tables = Memory(
            shape=range(max(self.max_rows, 2)), depth=self.n_tables * self.query_tile, init=[]
        )
        table_write, table_read = tables.write_port(), tables.read_port(domain="comb")
        tile_shape = self.tile.payload.shape()
        m.submodules.tiles = tiles = SyncFIFO(width=tile_shape.size, depth=4)

        slot = Signal(self.slot.payload.shape())
        gathering = Signal()
        bank = Signal()
        table = Signal(range(self.n_tables))
        banks_used = Signal(range(3))
        tables_used = Signal(range(self.n_tables + 1))
        position = Signal(range(self.query_tile))
        beat = Signal(range(max(self.fold, 2)))
        first_row = Signal(range(max(self.max_rows, 2)))

        # A tile starts when a bank and a table are free.
        opening = Signal()
        room = Signal()
        go = Signal()
        row_done = Signal()
        tile_done = Signal()
        m.d.comb += [
            opening.eq((position == 0) & (beat == 0)),
            room.eq((banks_used < 2) & (tables_used < self.n_tables)),
            go.eq(gathering & self.rows.valid & (~opening | room)),
            row_done.eq(go & (beat == self.fold - 1)),
            tile_done.eq(
                row_done & ((position == self.query_tile - 1) | self.rows.payload.last)
            ),
            self.rows.ready.eq(row_done),
            self.rows_cmd.payload.chunk.eq(self.slot.payload.chunk),
            self.rows_cmd.payload.n_rows.eq(self.n_rows),
            self.rows_cmd.payload.all.eq(self.slot.payload.all),
            self.rows_cmd.valid.eq(self.slot.valid & ~gathering),
            self.slot.ready.eq(self.rows_cmd.ready & ~gathering),
        ]
        with m.If(self.slot.valid & self.slot.ready):
            m.d.sync += [slot.eq(self.slot.payload), gathering.eq(1)]
        with m.If(go):
            m.d.sync += beat.eq(Mux(beat == self.fold - 1, 0, beat + 1))
            with m.If(opening):
                m.d.sync += first_row.eq(self.rows.payload.row)
        with m.If(row_done):
            m.d.sync += position.eq(Mux(tile_done, 0, position + 1))
        with m.If(tile_done):
            m.d.sync += [bank.eq(~bank), gathering.eq(~self.rows.payload.last)]
            with m.If(~slot.representative):
                m.d.sync += table.eq(table + 1)
        opens = go & opening
        m.d.sync += [
            banks_used.eq(banks_used + opens - self.tile_issued),
            tables_used.eq(tables_used + (opens & ~slot.representative) - self.table_done),
        ]

        row_bits = exact_log2(self.fold)
        place = Signal(range(self.n_tables * self.query_tile))
        m.d.comb += [
            self.q_addr.eq((self.rows.payload.row << row_bits) | (beat if row_bits else 0)),
            self.scale_addr.eq(self.rows.payload.row),
            table_write.en.eq(go & (beat == 0) & ~slot.representative),
            place.eq((table << exact_log2(self.query_tile)) | position),
            table_write.addr.eq(place),
            table_write.data.eq(self.rows.payload.row),
            table_read.addr.eq((self.table << exact_log2(self.query_tile)) | self.position),
            self.row.eq(table_read.data),
        ]

        # Memory latency: the write follows the address by one cycle.
        m.d.sync += [
            self.q.valid.eq(go),
            self.q.row.eq(position),
            self.q.bank.eq(bank),
            self.q.beat.eq(beat),
            self.q_scale.valid.eq(go & (beat == 0)),
            self.q_scale.row.eq(position),
            self.q_scale.bank.eq(bank),
        ]
        m.d.comb += [self.q.data.eq(self.q_data), self.q_scale.scale.eq(self.scale_data)]

        # The tile is announced when its last query is in place.
        made = [Signal(name=f"made_s{n}") for n in range(1, 4)]
        tile = [Signal(tile_shape, name=f"tile_s{n}") for n in range(1, 4)]
        m.d.sync += [
            made[0].eq(tile_done),
            tile[0].representative.eq(slot.representative),
            tile[0].chunk.eq(slot.chunk),
            tile[0].n_tokens.eq(slot.n_tokens),
            tile[0].n_rows.eq(position + 1),
            tile[0].first_row.eq(Mux(opening, self.rows.payload.row, first_row)),
            tile[0].bank.eq(bank),
            tile[0].table.eq(table),
            tile[0].last.eq(self.rows.payload.last),
        ]
        m.d.comb += self.busy.eq(
            gathering | self.slot.valid | Cat(*made).any() | tiles.r_rdy
        )
        for index in (1, 2):
            m.d.sync += [made[index].eq(made[index - 1]), tile[index].eq(tile[index - 1])]
        m.d.comb += [
            tiles.w_en.eq(made[2]),
            tiles.w_data.eq(tile[2]),
            self.tile.valid.eq(tiles.r_rdy),
            self.tile.payload.eq(tiles.r_data),
            tiles.r_en.eq(self.tile.ready),
        ]

        return m
