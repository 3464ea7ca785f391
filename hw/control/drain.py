"""Drain: walks the finished block of every row of a tile and has it merged."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

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
    once ``captured``. ``release`` pulses when few enough steps remain (``slack``) that the value
    array's next block may be captured; the next block's last token waits for it.

    Parameters
    ----------
    max_rows, n_contexts, query_tile, n_words, n_tables : int
    slack : int
        steps that may remain at the release, for a tile of one row; each further row adds one,
        since a row is overwritten one cycle after the row before it

    Members
    -------
    block : :py:`In(stream.Signature(drain_block_layout(query_tile, n_tables)))`
    captured : :py:`In(1)`
    release : :py:`Out(1)`
    table, position : Out
        row of the tile whose row id is asked for
    row : :py:`In(range(n_contexts * max_rows))`
        its {context, row}, in the same cycle
    hazard : :py:`In(1)`
    step : :py:`Out(merge_step_layout(n_contexts * max_rows, n_words))`
    word, position : Out
        where the value array is to be read
    table_done : :py:`Out(1)`
        pulse when the last block of ``table``'s tile is drained
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
                "word": Out(range(max(n_words, 2))),
                "row": In(range(n_contexts * max_rows)),
                "hazard": In(1),
                "step": Out(merge_step_layout(n_contexts * max_rows, n_words)),
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

        n_captured = Signal(range(4))
        position = Signal(range(self.query_tile))
        word = Signal(range(max(self.n_words, 2)))
        go = Signal()
        last_word = Signal()
        last = Signal()
        m.d.comb += [
            last_word.eq(word == self.n_words - 1),
            last.eq(last_word & (position == block.n_rows - 1)),
            # Within a row the words differ, so only its first step can meet an older merge.
            go.eq(blocks.r_rdy & (n_captured != 0) & ~((word == 0) & self.hazard)),
            blocks.r_en.eq(go & last),
            self.table.eq(block.table),
            self.position.eq(position),
            self.word.eq(word),
            self.step.valid.eq(go),
            self.step.row.eq(self.row),
            self.step.word.eq(word),
            self.step.last.eq(last_word),
            self.table_done.eq(go & last & block.tile_last),
            self.job_done.eq(go & last & block.job_last),
            self.busy.eq(blocks.r_rdy | (n_captured != 0)),
        ]
        with m.If(go):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
            with m.If(last_word):
                m.d.sync += position.eq(Mux(last, 0, position + 1))
        m.d.sync += n_captured.eq(n_captured + self.captured - (go & last))

        # Steps that remain, counted down from the start of a block.
        total = Signal(range(self.query_tile * self.n_words + 1))
        remaining = Signal(range(self.query_tile * self.n_words + 1))
        fresh = Signal(init=1)
        released = Signal()
        at_most = Signal(range(self.slack + self.query_tile + 1))
        m.d.comb += [
            total.eq(block.n_rows * self.n_words),
            at_most.eq(self.slack + block.n_rows - 1),
            self.release.eq(
                go & ~released & ((Mux(fresh, total, remaining) - 1 <= at_most) | last)
            ),
        ]
        with m.If(go):
            m.d.sync += [
                remaining.eq(Mux(fresh, total, remaining) - 1),
                fresh.eq(last),
                released.eq((released | self.release) & ~last),
            ]

        return m
