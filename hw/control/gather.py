"""Query gather: loads the queries that selected a chunk into the score array, tile by tile."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import Q_BITS, SCALE_BITS
from moska.hw.router.invert import rows_cmd_layout, rows_layout
from moska.hw.router.select import check_power_of_two

LISTS = 4  # slots whose rows are asked for and not loaded


def slot_layout(*, max_chunks, buffer_tokens, n_contexts):
    """Struct of a filled (or filling) buffer slot: what its tokens are."""
    return data.StructLayout(
        {
            "representative": 1,  # rows are representatives, not keys
            "context": range(n_contexts),
            "chunk": range(max_chunks),  # for representatives: chunk of the first row
            "n_tokens": range(buffer_tokens + 1),
            "all": 1,  # every row attends, no list is read
            "job_last": 1,  # no chunk, or representative, of the job follows
        }
    )


def slot_number_layout(buffer_slots):
    """Struct of a pulse that names a slot."""
    return data.StructLayout({"valid": 1, "slot": range(buffer_slots)})


def tile_layout(*, max_rows, max_chunks, query_tile, buffer_tokens, n_tables, n_contexts):
    """Struct of a tile whose queries are loaded: one pass of a slot's tokens."""
    return data.StructLayout(
        {
            "representative": 1,
            "context": range(n_contexts),
            "chunk": range(max_chunks),
            "n_tokens": range(buffer_tokens + 1),
            "n_rows": range(query_tile + 1),
            "first_row": range(max_rows),
            "bank": 1,
            "table": range(n_tables),
            "last": 1,  # last tile of its slot
            "job_last": 1,  # last tile of its job's chunks, or of its representatives
        }
    )


class QueryGather(wiring.Component):
    """Load tiles of at most ``query_tile`` rows for each slot, one query beat a cycle.

    A tile is loaded into one of two banks of the score array while the other one computes, and its
    row ids into one of ``n_tables`` tables, kept until its last block is merged. The queries come
    from a memory with one cycle of latency.

    Lists are asked for ahead: up to LISTS slots are taken before their rows are loaded, and up to
    ``query_tile`` rows wait in a queue, so that the next tile starts in the cycle after a bank and
    a table are free. Commands and rows of several contexts may be under way at once. From a slot to
    its first query beat: ``first_latency`` cycles and those of the inverter. A tile is on ``tile``
    ``tile_latency`` cycles after its last query beat was addressed; its first key may be issued in
    that cycle.

    Storage: ``n_tables * query_tile`` row ids, ``query_tile`` queued ones, both read without a
    clock.

    Parameters
    ----------
    max_rows, n_contexts, n_tables : int
        powers of two
    max_chunks, head_dim, fold, query_tile, buffer_tokens : int

    Members
    -------
    n_rows : :py:`In(ArrayLayout(range(max_rows + 1), n_contexts))`
        of each context's job
    slot : :py:`In(stream.Signature(slot_layout(...)))`
    rows_cmd : :py:`Out(stream.Signature(rows_cmd_layout(max_rows, max_chunks)))`
        for the selection of ``rows_cmd_context``; no list may be empty
    rows : :py:`In(stream.Signature(rows_layout(max_rows)))`
        of the selection of ``rows_context``
    rows_cmd_context, rows_context : :py:`Out(range(n_contexts))`
        the one goes with ``rows_cmd``; the other is the context of the oldest command whose list's
        last row is not taken, and stays until it is
    q_addr, q_data, scale_addr, scale_data
        query memory {context, row, beat} and query scale memory {context, row}, first field highest
    q, q_scale : Out
        writes into the score array and the softmax lanes
    tile : :py:`Out(stream.Signature(tile_layout(...)))`
    tile_issued : :py:`In(1)`
        pulse: the oldest tile's bank is free
    table_done : :py:`In(1)`
        pulse: the oldest table is free
    table, position : In
    row : :py:`Out(range(n_contexts * max_rows))`
        {context, row} at ``position`` of ``table``, in the same cycle
    busy : :py:`Out(1)`

    """

    first_latency = 2
    tile_latency = 2

    def __init__(
        self,
        *,
        max_rows,
        max_chunks,
        head_dim,
        fold,
        query_tile,
        buffer_tokens,
        n_tables,
        n_contexts,
    ):
        for name, value in {
            "max_rows": max_rows,
            "n_tables": n_tables,
            "n_contexts": n_contexts,
        }.items():
            check_power_of_two(name, value, 2)
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.beat_dim = head_dim // fold
        self.fold = fold
        self.query_tile = query_tile
        self.buffer_tokens = buffer_tokens
        self.n_tables = n_tables
        self.n_contexts = n_contexts
        beat = range(max(fold, 2))
        context = range(n_contexts)
        row = range(n_contexts * max_rows)
        slot = slot_layout(
            max_chunks=max_chunks, buffer_tokens=buffer_tokens, n_contexts=n_contexts
        )
        tile = tile_layout(
            max_rows=max_rows,
            max_chunks=max_chunks,
            query_tile=query_tile,
            buffer_tokens=buffer_tokens,
            n_tables=n_tables,
            n_contexts=n_contexts,
        )
        super().__init__(
            {
                "n_rows": In(data.ArrayLayout(range(max_rows + 1), n_contexts)),
                "slot": In(stream.Signature(slot)),
                "rows_cmd": Out(stream.Signature(rows_cmd_layout(max_rows, max_chunks))),
                "rows_cmd_context": Out(context),
                "rows": In(stream.Signature(rows_layout(max_rows))),
                "rows_context": Out(context),
                "q_addr": Out(range(n_contexts * max_rows * fold)),
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
                "tile": Out(stream.Signature(tile)),
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

        self.listing(m)
        self.loading(m)
        return m

    def listing(self, m):
        """Ask for the lists of the slots; queue their rows."""
        slot_shape = self.slot.payload.shape()
        context_bits = exact_log2(self.n_contexts)
        # Slots whose rows are being loaded, or asked for; contexts whose lists are not complete.
        m.submodules.lists = self.lists = lists = SyncFIFO(width=slot_shape.size, depth=LISTS)
        m.submodules.contexts = contexts = SyncFIFO(width=context_bits, depth=LISTS)
        row_shape = rows_layout(self.n_contexts * self.max_rows)
        m.submodules.queue = self.queue = queue = SyncFIFO(
            width=row_shape.size, depth=self.query_tile
        )

        slot = Signal(slot_shape)
        self.pending = pending = Signal()  # the list of ``slot`` is to be asked for
        asked = Signal()
        row = Signal(row_shape)
        taken = Signal()
        m.d.comb += [
            self.slot.ready.eq(~pending),
            self.rows_cmd.valid.eq(pending & lists.w_rdy),
            self.rows_cmd.payload.chunk.eq(slot.chunk),
            self.rows_cmd.payload.n_rows.eq(self.n_rows[slot.context]),
            self.rows_cmd.payload.all.eq(slot.all),
            self.rows_cmd_context.eq(slot.context),
            asked.eq(self.rows_cmd.valid & self.rows_cmd.ready),
            lists.w_data.eq(slot),
            lists.w_en.eq(asked),
            contexts.w_data.eq(slot.context),
            contexts.w_en.eq(asked),
            self.rows_context.eq(contexts.r_data),
            self.rows.ready.eq(contexts.r_rdy & queue.w_rdy),
            taken.eq(self.rows.valid & self.rows.ready),
            row.row.eq(Cat(self.rows.payload.row, self.rows_context)),
            row.last.eq(self.rows.payload.last),
            queue.w_data.eq(row),
            queue.w_en.eq(taken),
            contexts.r_en.eq(taken & row.last),
        ]
        with m.If(self.slot.ready):
            m.d.sync += [slot.eq(self.slot.payload), pending.eq(self.slot.valid)]
        with m.Elif(asked):
            m.d.sync += pending.eq(0)

    def loading(self, m):
        """Load the queued rows' queries into the banks; announce the tiles."""
        queue, lists = self.queue, self.lists
        m.submodules.tables = tables = Memory(
            shape=self.row.shape(), depth=self.n_tables * self.query_tile, init=[]
        )
        table_write, table_read = tables.write_port(), tables.read_port(domain="comb")
        tile_shape = self.tile.payload.shape()
        m.submodules.tiles = tiles = SyncFIFO(width=tile_shape.size, depth=2)

        slot = Signal(self.slot.payload.shape())
        next_row = Signal(rows_layout(self.n_contexts * self.max_rows))
        row = next_row.row
        bank = Signal()
        table = Signal(range(self.n_tables))
        banks_used = Signal(range(3))
        tables_used = Signal(range(self.n_tables + 1))
        position = Signal(range(self.query_tile))
        beat = Signal(range(max(self.fold, 2)))
        first_row = Signal(range(self.max_rows), reset_less=True)

        # A tile starts when a bank and a table are free.
        opening = Signal()
        room = Signal()
        go = Signal()
        row_done = Signal()
        tile_done = Signal()
        m.d.comb += [
            slot.eq(lists.r_data),
            next_row.eq(queue.r_data),
            opening.eq((position == 0) & (beat == 0)),
            room.eq((banks_used < 2) & (tables_used < self.n_tables)),
            go.eq(queue.r_rdy & (~opening | room)),
            row_done.eq(go & (beat == self.fold - 1)),
            tile_done.eq(row_done & ((position == self.query_tile - 1) | next_row.last)),
            queue.r_en.eq(row_done),
            lists.r_en.eq(tile_done & next_row.last),
        ]
        with m.If(go):
            m.d.sync += beat.eq(Mux(beat == self.fold - 1, 0, beat + 1))
            with m.If(opening):
                m.d.sync += first_row.eq(row)
        with m.If(row_done):
            m.d.sync += position.eq(Mux(tile_done, 0, position + 1))
        with m.If(tile_done):
            m.d.sync += bank.eq(~bank)
            with m.If(~slot.representative):
                m.d.sync += table.eq(table + 1)
        opens = go & opening
        m.d.sync += [
            banks_used.eq(banks_used + opens - self.tile_issued),
            tables_used.eq(tables_used + (opens & ~slot.representative) - self.table_done),
        ]

        fold_bits = exact_log2(self.fold)
        m.d.comb += [
            self.q_addr.eq(Cat(beat[:fold_bits], row)),
            self.scale_addr.eq(row),
            table_write.en.eq(go & (beat == 0) & ~slot.representative),
            table_write.addr.eq(Cat(position, table)),
            table_write.data.eq(row),
            table_read.addr.eq(Cat(self.position, self.table)),
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

        # Keys pass through a buffer on their way, so the last query and its scale, a cycle behind
        # it, arrive before the first key of the tile.
        made = Signal()
        tile = Signal(tile_shape, reset_less=True)
        m.d.sync += [
            made.eq(tile_done),
            tile.representative.eq(slot.representative),
            tile.context.eq(slot.context),
            tile.chunk.eq(slot.chunk),
            tile.n_tokens.eq(slot.n_tokens),
            tile.n_rows.eq(position + 1),
            tile.first_row.eq(Mux(opening, row, first_row)),
            tile.bank.eq(bank),
            tile.table.eq(table),
            tile.last.eq(next_row.last),
            tile.job_last.eq(next_row.last & slot.job_last),
        ]
        # Never full: a tile holds a bank.
        m.d.comb += [
            tiles.w_en.eq(made),
            tiles.w_data.eq(tile),
            self.tile.valid.eq(tiles.r_rdy),
            self.tile.payload.eq(tiles.r_data),
            tiles.r_en.eq(self.tile.ready),
            self.busy.eq(self.slot.valid | self.pending | lists.r_rdy | made | tiles.r_rdy),
        ]
