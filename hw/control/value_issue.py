"""Value issue: second pass over a block, from its scores to the value array."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import BLOCK_TOKENS
from moska.hw.control.drain import drain_block_layout
from moska.hw.control.gather import slot_number_layout
from moska.hw.control.score_issue import SCORE_BANKS, block_layout


class ValueIssue(wiring.Component):
    """Issue one beat a cycle of each scored block; address the value buffer and the V scales.

    A block starts when its scores are complete and its values are in the buffer, two cycles after
    it came at the earliest. Its last token
    waits until the drain has released the value array's shadow registers from the block before.

    Members
    -------
    block : :py:`In(stream.Signature(block_layout(...)))`
        always accepted within SCORE_BANKS blocks
    scored : :py:`In(1)`
        pulse: the next block's references are known
    v_filled : :py:`In(1)`
        pulse: the next slot's values are in the buffer
    release : :py:`In(1)`
        pulse from the drain
    issue : Out
        valid, beat, first, last, score_bank, token; with it, in the same cycle:
    v_addr, scale_addr : Out
    drain : :py:`Out(stream.Signature(drain_block_layout(...)))`
        with the first beat of a block's last token; must be accepted at once
    block_done : :py:`Out(1)`
    value_done : :py:`Out(slot_number_layout(buffer_slots))`
        valid, slot: with the last beat of a slot; its values are read as late as ``v_addr`` is used
    busy : :py:`Out(1)`

    """

    def __init__(self, *, fold, query_tile, buffer_tokens, buffer_slots, n_tables):
        self.fold = fold
        self.query_tile = query_tile
        self.buffer_tokens = buffer_tokens
        self.buffer_slots = buffer_slots
        tokens = buffer_tokens * buffer_slots
        super().__init__(
            {
                "block": In(
                    stream.Signature(
                        block_layout(
                            query_tile=query_tile, n_tables=n_tables, buffer_slots=buffer_slots
                        )
                    )
                ),
                "scored": In(1),
                "v_filled": In(1),
                "release": In(1),
                "issue": Out(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "beat": range(max(fold, 2)),
                            "first": 1,
                            "last": 1,
                            "score_bank": range(SCORE_BANKS),
                            "token": range(BLOCK_TOKENS),
                        }
                    )
                ),
                "v_addr": Out(range(tokens * fold)),
                "scale_addr": Out(range(tokens)),
                "drain": Out(
                    stream.Signature(drain_block_layout(query_tile=query_tile, n_tables=n_tables))
                ),
                "block_done": Out(1),
                "value_done": Out(slot_number_layout(buffer_slots)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        shape = self.block.payload.shape()
        m.submodules.blocks = blocks = SyncFIFOBuffered(
            width=shape.size, depth=SCORE_BANKS + 1
        )
        block = Signal(shape)
        m.d.comb += [
            blocks.w_en.eq(self.block.valid),
            blocks.w_data.eq(self.block.payload),
            self.block.ready.eq(blocks.w_rdy),
            block.eq(blocks.r_data),
        ]

        n_scored = Signal(range(SCORE_BANKS + 2))
        n_filled = Signal(range(self.buffer_slots + 1))
        shadow_free = Signal(init=1)
        token = Signal(range(self.buffer_tokens))  # within the slot
        in_block = Signal(range(BLOCK_TOKENS))
        beat = Signal(range(max(self.fold, 2)))
        score_bank = Signal(range(SCORE_BANKS))

        last_token = Signal()
        go = Signal()
        token_end = Signal()
        block_end = Signal()
        position = Signal(range(self.buffer_tokens))
        waits = Signal()
        m.d.comb += [
            last_token.eq(in_block == block.n_tokens - 1),
            # A token's beats are not interrupted: only its first beat may wait.
            waits.eq(last_token & (beat == 0) & ~shadow_free),
            go.eq(blocks.r_rdy & (n_scored != 0) & (n_filled != 0) & ~waits),
            token_end.eq(go & (beat == self.fold - 1)),
            block_end.eq(token_end & last_token),
            blocks.r_en.eq(block_end),
            self.busy.eq(blocks.level != 0),
            position.eq(Mux(block.slot_first & (in_block == 0), 0, token)),
        ]
        with m.If(go):
            m.d.sync += beat.eq(Mux(token_end, 0, beat + 1))
        with m.If(token_end):
            m.d.sync += [
                in_block.eq(Mux(last_token, 0, in_block + 1)),
                token.eq(position + 1),
            ]
        with m.If(block_end):
            m.d.sync += score_bank.eq(score_bank + 1)
        m.d.sync += [
            n_scored.eq(n_scored + self.scored - block_end),
            n_filled.eq(n_filled + self.v_filled - (block_end & block.slot_last)),
        ]
        takes_shadow = go & last_token & (beat == 0)
        with m.If(takes_shadow):
            m.d.sync += shadow_free.eq(0)
        with m.Elif(self.release):
            m.d.sync += shadow_free.eq(1)

        m.d.comb += [
            self.issue.valid.eq(go),
            self.issue.beat.eq(beat),
            self.issue.first.eq(in_block == 0),
            self.issue.last.eq(last_token),
            self.issue.score_bank.eq(score_bank),
            self.issue.token.eq(in_block),
            self.scale_addr.eq((block.slot << exact_log2(self.buffer_tokens)) | position),
            self.v_addr.eq(
                (self.scale_addr << exact_log2(self.fold)) | (beat if self.fold > 1 else 0)
            ),
            self.drain.valid.eq(takes_shadow),
            self.drain.payload.n_rows.eq(block.n_rows),
            self.drain.payload.table.eq(block.table),
            self.drain.payload.tile_last.eq(block.tile_last),
            self.drain.payload.job_last.eq(block.job_last),
            self.block_done.eq(block_end),
            self.value_done.valid.eq(block_end & block.slot_last),
            self.value_done.slot.eq(block.slot),
        ]

        return m
