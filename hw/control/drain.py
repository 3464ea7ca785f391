"""Drain: walks the finished block of every row of a tile and has it merged."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moska.hw.state import merge_step_layout


def drain_block_layout(query_tile, n_tables):
    """Struct of a block to drain: rows of its tile, their table, what ends with it."""
    return data.StructLayout(
        {
            "n_rows": range(query_tile + 1),
            "table": range(n_tables),
            "tile_last": 1,  # last block of its tile
            "job_last": 1,  # last block of its job
        }
    )


class Drain(wiring.Component):
    """Issue one merge step a cycle for each block that the value array has captured.

    Blocks are announced on ``block`` when their last token is issued and drained in that order
    once ``captured``. A row's id is looked up while the row before it is merged. ``release`` pulses
    when few enough steps remain (``slack``) that the value array's next block may be captured; the
    next block's last token waits for it.

    Parameters
    ----------
    max_rows, n_contexts, query_tile, n_words, n_tables : int
    slack : int
        steps that may remain after the cycle of the release, for a tile of one row; each further
        row adds one, since a row is overwritten one cycle after the row before it

    Members
    -------
    block : :py:`In(stream.Signature(drain_block_layout(query_tile, n_tables)))`
    captured : :py:`In(1)`
    release : :py:`Out(1)`
        pulse, at least a cycle after the block's first step
    table, position : Out
        row of the tile whose row id is asked for
    row : :py:`In(range(n_contexts * max_rows))`
        its {context, row}, in the same cycle
    hazard : :py:`In(1)`
        a merge of the row of ``step`` is under way, in the same cycle
    step : :py:`Out(merge_step_layout(n_contexts * max_rows, n_words))`
        ``row`` and ``word`` are valid before the step is
    block_row : :py:`Out(range(query_tile))`
        row of the tile that ``step`` merges
    table_done : :py:`Out(1)`
        pulse in the cycle after the last step of a tile's last block
    job_done : :py:`Out(1)`
        pulse with the last step of a job's last block
    busy : :py:`Out(1)`

    """

    def __init__(self, *, max_rows, n_contexts, query_tile, n_words, n_tables, slack):
        self.max_rows = max_rows
        self.n_contexts = n_contexts
        self.query_tile = query_tile
        self.n_words = n_words
        self.n_tables = n_tables
        self.slack = slack
        super().__init__(
            {
                "block": In(stream.Signature(drain_block_layout(query_tile, n_tables))),
                "captured": In(1),
                "release": Out(1),
                "table": Out(range(n_tables)),
                "position": Out(range(query_tile)),
                "row": In(range(n_contexts * max_rows)),
                "hazard": In(1),
                "step": Out(merge_step_layout(n_contexts * max_rows, n_words)),
                "block_row": Out(range(query_tile)),
                "table_done": Out(1),
                "job_done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.blocks = blocks = SyncFIFO(
            width=len(self.block.payload.as_value()), depth=4
        )
        block = Signal(self.block.payload.shape())
        m.d.comb += [
            blocks.w_en.eq(self.block.valid),
            blocks.w_data.eq(self.block.payload),
            self.block.ready.eq(blocks.w_rdy),
            block.eq(blocks.r_data),
        ]

        # The row that is merged: looked up when the row before it is done.
        position = Signal(range(self.query_tile))
        next_last = Signal()
        row = Signal(
            data.StructLayout(
                {
                    "row": self.row.shape(),
                    "position": position.shape(),
                    "last": 1,  # last row of its block
                    "tile_last": 1,
                    "job_last": 1,
                    # The first word after which few enough steps remain, if one of this row.
                    "release_from": signed(ceil_log2(self.query_tile * self.n_words + 1) + 1),
                }
            ),
            reset_less=True,
        )
        held = Signal()
        take = Signal()
        m.d.comb += [
            self.table.eq(block.table),
            self.position.eq(position),
            next_last.eq(position == block.n_rows - 1),
            blocks.r_en.eq(take & next_last),
        ]
        with m.If(take):
            m.d.sync += [
                held.eq(blocks.r_rdy),
                row.row.eq(self.row),
                row.position.eq(position),
                row.last.eq(next_last),
                row.tile_last.eq(block.tile_last),
                row.job_last.eq(block.job_last),
                row.release_from.eq(
                    (block.n_rows - position) * self.n_words - block.n_rows - self.slack - 1
                ),
            ]
            with m.If(blocks.r_rdy):
                m.d.sync += position.eq(Mux(next_last, 0, position + 1))

        n_captured = Signal(range(4))
        word = Signal(range(max(self.n_words, 2)))
        go = Signal()
        last_word = Signal()
        block_end = Signal()
        m.d.comb += [
            last_word.eq(word == self.n_words - 1),
            # Within a row the words differ, so only its first step can meet an older merge.
            go.eq(held & (n_captured != 0) & ~((word == 0) & self.hazard)),
            take.eq(~held | (go & last_word)),
            block_end.eq(go & last_word & row.last),
            self.block_row.eq(row.position),
            self.step.valid.eq(go),
            self.step.row.eq(row.row),
            self.step.word.eq(word),
            self.step.last.eq(last_word),
            self.job_done.eq(block_end & row.job_last),
            self.busy.eq(blocks.r_rdy | held | (n_captured != 0)),
        ]
        with m.If(go):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))

        released = Signal()
        releases = Signal()
        m.d.comb += releases.eq(go & ~released & (word >= row.release_from))
        m.d.sync += [
            n_captured.eq(n_captured + self.captured - block_end),
            released.eq((released | releases) & ~block_end),
            self.release.eq(releases),
            self.table_done.eq(block_end & row.tile_last),
        ]

        return m
