"""Score issue: streams the tokens of a buffer slot past each tile of queries."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import BLOCK_TOKENS
from moska.golden.router import Router
from moska.hw.arrays.score import Phi
from moska.hw.control.gather import slot_number_layout, tile_layout

SCORE_BANKS = 4  # blocks of scores that may wait for their value pass


def block_layout(*, query_tile, n_tables, buffer_slots):
    """Struct of a block whose scores are on their way: work for the value pass."""
    return data.StructLayout(
        {
            "n_tokens": range(BLOCK_TOKENS + 1),
            "n_rows": range(query_tile + 1),
            "table": range(n_tables),
            "slot": range(buffer_slots),
            "tile_last": 1,  # last block of its tile
            "job_last": 1,  # last block of its job
            "slot_last": 1,  # last block of the last tile: the slot is free afterwards
            "slot_first": 1,  # first block of a tile: tokens start at the slot's first
        }
    )


def key_tag_layout(*, max_rows, max_chunks):
    """Struct that says which chunk and tile of rows a router key belongs to."""
    return data.StructLayout({"chunk": range(max_chunks), "first_row": range(max(max_rows, 2))})


class ScoreIssue(wiring.Component):
    """Issue one beat a cycle into the score array; address the key buffer and the scales.

    ``issue`` describes the beat whose ``k_addr`` and ``scale_addr`` are presented in the same
    cycle. A token's beats are never interrupted. A block starts when one of SCORE_BANKS score
    banks is free; ``block_done`` frees one. With more than one lane, lanes lag behind each other
    by up to ``query_tile`` cycles, and a key bank of the selector takes one key a cycle. So when
    a tile of representatives ends less than that after it began its last round over the
    ``select_width`` banks, idle cycles follow until it is that long.

    Members
    -------
    tile : :py:`In(stream.Signature(tile_layout(...)))`
    k_filled : :py:`In(1)`
        pulse: the next slot's keys and scales are in the buffer
    router : :py:`In(Router)`, rep_shift : :py:`In(4)`
        kind of representatives; log2 of their number per chunk
    issue : Out
        valid, beat, bank, phi, first, last (of the block), score_bank, token, representative,
        rep_first, rep_last
    k_addr, scale_addr : Out
    block : :py:`Out(stream.Signature(block_layout(...)))`
        presented with the block's first beat; must be accepted at once
    key_tag : Out
        valid with the beat 0 of a chunk's last representative
    tile_issued : :py:`Out(1)`
        last beat of a tile
    score_done : :py:`Out(slot_number_layout(buffer_slots))`
        valid, slot: last beat of a slot's last tile
    stalled_memory, stalled_query, stalled_softmax : :py:`Out(1)`
        why no beat is issued, one at most

    """

    def __init__(
        self,
        *,
        max_rows,
        max_chunks,
        fold,
        query_tile,
        buffer_tokens,
        buffer_slots,
        n_tables,
        n_lanes,
        select_width,
        n_contexts,
    ):
        self.fold = fold
        self.query_tile = query_tile
        self.buffer_tokens = buffer_tokens
        self.buffer_slots = buffer_slots
        self.n_lanes = n_lanes
        self.select_width = select_width
        tokens = buffer_tokens * buffer_slots
        super().__init__(
            {
                "tile": In(
                    stream.Signature(
                        tile_layout(
                            max_rows=max_rows,
                            max_chunks=max_chunks,
                            query_tile=query_tile,
                            buffer_tokens=buffer_tokens,
                            n_tables=n_tables,
                            n_contexts=n_contexts,
                        )
                    )
                ),
                "k_filled": In(1),
                "block_done": In(1),
                "router": In(Router),
                "rep_shift": In(4),
                "issue": Out(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "beat": range(max(fold, 2)),
                            "bank": 1,
                            "phi": Phi,
                            "first": 1,
                            "last": 1,
                            "score_bank": range(SCORE_BANKS),
                            "token": range(BLOCK_TOKENS),
                            "representative": 1,
                            "rep_first": 1,
                            "rep_last": 1,
                        }
                    )
                ),
                "k_addr": Out(range(tokens * fold)),
                "scale_addr": Out(range(tokens)),
                "block": Out(
                    stream.Signature(
                        block_layout(
                            query_tile=query_tile, n_tables=n_tables, buffer_slots=buffer_slots
                        )
                    )
                ),
                "key_tag": Out(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "tag": key_tag_layout(max_rows=max_rows, max_chunks=max_chunks),
                        }
                    )
                ),
                "tile_issued": Out(1),
                "score_done": Out(slot_number_layout(buffer_slots)),
                "stalled_memory": Out(1),
                "stalled_query": Out(1),
                "stalled_softmax": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        tile = self.tile.payload
        token = Signal(range(self.buffer_tokens))
        beat = Signal(range(max(self.fold, 2)))
        slot = Signal(range(self.buffer_slots))
        n_filled = Signal(range(self.buffer_slots + 1))
        n_blocks = Signal(range(SCORE_BANKS + 1))
        score_bank = Signal(range(SCORE_BANKS))
        gap = Signal(range(self.query_tile + 1))

        block_bits = exact_log2(BLOCK_TOKENS)
        opening = Signal()
        credit = Signal()
        go = Signal()
        token_end = Signal()
        block_end = Signal()
        tile_end = Signal()
        last_token = Signal()
        m.d.comb += [
            opening.eq((token[:block_bits] == 0) & (beat == 0)),
            credit.eq(tile.representative | (n_blocks < SCORE_BANKS)),
            go.eq(
                (n_filled != 0) & self.tile.valid & (gap == 0) & (~opening | credit)
            ),
            last_token.eq(token == tile.n_tokens - 1),
            token_end.eq(go & (beat == self.fold - 1)),
            block_end.eq(token_end & (last_token | token[:block_bits].all())),
            tile_end.eq(token_end & last_token),
            self.stalled_memory.eq(n_filled == 0),
            self.stalled_query.eq((n_filled != 0) & (~self.tile.valid | (gap != 0))),
            self.stalled_softmax.eq(
                (n_filled != 0) & self.tile.valid & (gap == 0) & opening & ~credit
            ),
        ]
        with m.If(go):
            m.d.sync += beat.eq(Mux(token_end, 0, beat + 1))
        with m.If(token_end):
            m.d.sync += token.eq(Mux(last_token, 0, token + 1))
        with m.If(tile_end & tile.last):
            m.d.sync += slot.eq(slot + 1)
        with m.If(block_end & ~tile.representative):
            m.d.sync += score_bank.eq(score_bank + 1)
        if self.n_lanes > 1:
            # A round: one chunk of each key bank.
            in_round = Signal(range(self.buffer_tokens))
            beats = Signal(range(self.buffer_tokens * self.fold + 1))
            m.d.comb += [
                in_round.eq(token & ((self.select_width << self.rep_shift) - 1)),
                beats.eq((in_round + 1) << exact_log2(self.fold)),
            ]
            with m.If(tile_end & tile.representative & (beats < self.query_tile)):
                m.d.sync += gap.eq(self.query_tile - beats)
            with m.Elif(gap != 0):
                m.d.sync += gap.eq(gap - 1)
        starts_block = go & opening & ~tile.representative
        m.d.sync += [
            n_filled.eq(n_filled + self.k_filled - (tile_end & tile.last)),
            n_blocks.eq(n_blocks + starts_block - self.block_done),
        ]

        within = Signal(range(self.buffer_tokens))
        # Known long before: the job's constants change between representatives only.
        rep_mask = Signal(range(self.buffer_tokens))
        m.d.sync += rep_mask.eq((1 << self.rep_shift) - 1)
        pairs = Signal()
        m.d.comb += [
            pairs.eq(self.router == Router.MINMAX),
            within.eq(token & rep_mask),
            self.issue.valid.eq(go),
            self.issue.beat.eq(beat),
            self.issue.bank.eq(tile.bank),
            self.issue.phi.eq(
                Mux(
                    tile.representative & pairs,
                    Mux(token[0], Phi.NEGATIVE, Phi.POSITIVE),
                    Phi.ALL,
                )
            ),
            self.issue.first.eq(token[:block_bits] == 0),
            self.issue.last.eq(last_token | token[:block_bits].all()),
            self.issue.score_bank.eq(score_bank),
            self.issue.token.eq(token[:block_bits]),
            self.issue.representative.eq(tile.representative),
            self.issue.rep_first.eq(within == 0),
            self.issue.rep_last.eq(within == rep_mask),
            self.scale_addr.eq((slot << exact_log2(self.buffer_tokens)) | token),
            self.k_addr.eq(
                (self.scale_addr << exact_log2(self.fold)) | (beat if self.fold > 1 else 0)
            ),
            self.tile.ready.eq(tile_end),
            self.tile_issued.eq(tile_end),
            self.score_done.valid.eq(tile_end & tile.last),
            self.score_done.slot.eq(slot),
            self.key_tag.valid.eq(
                go & (beat == 0) & tile.representative & self.issue.rep_last
            ),
            self.key_tag.tag.chunk.eq(tile.chunk + (token >> self.rep_shift)),
            self.key_tag.tag.first_row.eq(tile.first_row),
        ]

        rest = Signal(range(self.buffer_tokens + 1))
        block = self.block.payload
        m.d.comb += [
            rest.eq(tile.n_tokens - token),
            self.block.valid.eq(starts_block),
            block.n_tokens.eq(Mux(rest > BLOCK_TOKENS, BLOCK_TOKENS, rest)),
            block.n_rows.eq(tile.n_rows),
            block.table.eq(tile.table),
            block.slot.eq(slot),
            block.tile_last.eq(rest <= BLOCK_TOKENS),
            block.job_last.eq((rest <= BLOCK_TOKENS) & tile.job_last),
            block.slot_last.eq((rest <= BLOCK_TOKENS) & tile.last),
            block.slot_first.eq(token == 0),
        ]

        return m
