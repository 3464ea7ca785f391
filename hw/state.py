"""Row state: block results are merged into (m, l, e, O) of their rows."""

from amaranth.hdl import Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moska.golden.formats import (
    ALIGN_SHIFT_MAX,
    L_STATE_WIDTH,
    M_WIDTH,
    O_EXP_WIDTH,
    O_STATE_WIDTH,
    STATE_GUARD,
    block_l_width,
    block_o_width,
)


class RowMeta(data.Struct):
    """What a row keeps once: softmax reference, reference of O, sum of probabilities."""

    m: signed(M_WIDTH)
    e: signed(O_EXP_WIDTH)
    l: L_STATE_WIDTH


def merge_step_layout(max_rows, n_words):
    """Struct of one step: merge one word of one row; ``last`` marks the row's last word."""
    return data.StructLayout(
        {
            "valid": 1,
            "row": range(max(max_rows, 2)),
            "word": range(max(n_words, 2)),
            "last": 1,
        }
    )


class AlignedAdd(wiring.Component):
    """Add two integers with references of their own; golden model ``state.merge_aligned``.

    The operand with the smaller reference is shifted right by their distance, rounded half up.
    ``fresh`` replaces the state by the block. Latency ``AlignedAdd.latency`` cycles, one a cycle.

    Parameters
    ----------
    width : int
        bits of the state and of the block's words
    ref_width : int
        bits of the signed references
    n_words : int
        words that share the references

    Members
    -------
    fresh : :py:`In(1)`
    state_ref, block_ref : :py:`In(signed(ref_width))`
    state, block : :py:`In(ArrayLayout(signed(width), n_words))`
    ref : :py:`Out(signed(ref_width))`
    sum : :py:`Out(ArrayLayout(signed(width), n_words))`

    """

    latency = 5

    def __init__(self, *, width, ref_width, n_words):
        self.width = width
        self.ref_width = ref_width
        self.n_words = n_words
        words = data.ArrayLayout(signed(width), n_words)
        super().__init__(
            {
                "fresh": In(1),
                "state_ref": In(signed(ref_width)),
                "block_ref": In(signed(ref_width)),
                "state": In(words),
                "block": In(words),
                "ref": Out(signed(ref_width)),
                "sum": Out(words),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # Stage 1: distance of the references.
        distance = Signal(signed(self.ref_width + 1))
        fresh_s1 = Signal()
        ref_s1 = [Signal(signed(self.ref_width), name=f"{n}_ref_s1") for n in ("state", "block")]
        m.d.sync += [
            distance.eq(self.block_ref - self.state_ref),
            fresh_s1.eq(self.fresh),
            ref_s1[0].eq(self.state_ref),
            ref_s1[1].eq(self.block_ref),
        ]
        block_wins = Signal()
        magnitude = Signal(self.ref_width + 1)
        m.d.comb += [
            block_wins.eq(distance > 0),
            magnitude.eq(Mux(block_wins, distance, -distance)),
        ]

        # Stage 2: which operand moves, how far. A fresh row's state counts as zero.
        shift_s2 = Signal(range(ALIGN_SHIFT_MAX + 1))
        ref_s2 = Signal(signed(self.ref_width))
        m.d.sync += [
            shift_s2.eq(Mux(magnitude > ALIGN_SHIFT_MAX, ALIGN_SHIFT_MAX, magnitude)),
            ref_s2.eq(Mux(fresh_s1 | block_wins, ref_s1[1], ref_s1[0])),
        ]
        # Stages 3 and 4: shift by multiples of 8, then by 0..7 with one bit kept for rounding.
        low_s3 = Signal(3)
        ref_s3 = Signal(signed(self.ref_width))
        ref_s4 = Signal(signed(self.ref_width))
        m.d.sync += [
            low_s3.eq(shift_s2[:3]),
            ref_s3.eq(ref_s2),
            ref_s4.eq(ref_s3),
            self.ref.eq(ref_s4),
        ]

        for index in range(self.n_words):
            def register(stage, width=self.width, index=index):
                return Signal(signed(width), name=f"{stage}_{index}", reset_less=True)

            state_s1, block_s1 = register("state_s1"), register("block_s1")
            kept_s2, moved_s2 = register("kept_s2"), register("moved_s2")
            kept_s3, moved_s3 = register("kept_s3"), register("moved_s3", self.width + 1)
            kept_s4, moved_s4 = register("kept_s4"), register("moved_s4", self.width + 1)
            m.d.sync += [
                state_s1.eq(self.state[index]),
                block_s1.eq(self.block[index]),
                kept_s2.eq(Mux(fresh_s1 | block_wins, block_s1, state_s1)),
                moved_s2.eq(Mux(fresh_s1, 0, Mux(block_wins, state_s1, block_s1))),
                kept_s3.eq(kept_s2),
                moved_s3.eq((moved_s2 << 1) >> (shift_s2[3:] << 3)),
                kept_s4.eq(kept_s3),
                moved_s4.eq(moved_s3 >> low_s3),
                self.sum[index].eq(kept_s4 + (moved_s4 >> 1) + moved_s4[0]),
            ]

        return m


class RowState(wiring.Component):
    """Memories of the row state and the merge pipeline; golden model ``state.RowState``.

    A step names a row and word; its block result arrives ``block_latency`` cycles later. A row may
    be stepped again only when ``hazard`` is low for it (its last merge is written). All words of a
    row see the references from before its block. One step a cycle.

    Storage: ``max_rows * (head_dim * 48 + 66)`` bits.

    Parameters
    ----------
    max_rows, head_dim : int
    lanes : int
        elements of a word
    block_latency : int
        cycles from a step to its block result, at least 1

    Members
    -------
    step : :py:`In(merge_step_layout(max_rows, head_dim // lanes))`
    query_row : :py:`In(range(max_rows))`
        row that ``hazard`` speaks of
    hazard : :py:`Out(1)`
    l, ref, pv_ref, o : In
        the block result
    clear : :py:`In(StructLayout({"valid": 1, "row": range(max_rows)}))`
        marks a row as having merged nothing; not during merges
    read : :py:`In(merge_step_layout(...))`
        reads the state of a row one cycle later; not during merges
    read_o, read_meta : Out
    busy : :py:`Out(1)`
        a step is not yet written

    """

    def __init__(self, *, max_rows, head_dim, lanes, block_latency):
        if head_dim % lanes:
            raise ValueError(f"head_dim must be a multiple of lanes ({lanes}), not {head_dim}")
        if block_latency < 1:
            raise ValueError(f"block_latency must be at least 1, not {block_latency}")
        self.max_rows = max_rows
        self.head_dim = head_dim
        self.lanes = lanes
        self.n_words = head_dim // lanes
        self.block_latency = block_latency
        step = merge_step_layout(max_rows, self.n_words)
        super().__init__(
            {
                "step": In(step),
                "query_row": In(range(max(max_rows, 2))),
                "hazard": Out(1),
                "l": In(block_l_width()),
                "ref": In(signed(M_WIDTH)),
                "pv_ref": In(signed(O_EXP_WIDTH)),
                "o": In(data.ArrayLayout(signed(block_o_width()), lanes)),
                "clear": In(data.StructLayout({"valid": 1, "row": range(max(max_rows, 2))})),
                "read": In(step),
                "read_o": Out(data.ArrayLayout(signed(O_STATE_WIDTH), lanes)),
                "read_meta": Out(RowMeta),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        words = data.ArrayLayout(signed(O_STATE_WIDTH), self.lanes)
        m.submodules.o_memory = o_memory = Memory(
            shape=words, depth=self.max_rows * self.n_words, init=[]
        )
        m.submodules.meta_memory = meta_memory = Memory(
            shape=RowMeta, depth=self.max_rows, init=[]
        )
        o_read, o_write = o_memory.read_port(), o_memory.write_port()
        meta_read, meta_write = meta_memory.read_port(), meta_memory.write_port()

        m.submodules.add_o = add_o = AlignedAdd(
            width=O_STATE_WIDTH, ref_width=O_EXP_WIDTH, n_words=self.lanes
        )
        # One more bit: l is unsigned.
        m.submodules.add_l = add_l = AlignedAdd(
            width=L_STATE_WIDTH + 1, ref_width=M_WIDTH, n_words=1
        )

        # The step, delayed to each stage. Index 0 is the step itself.
        n_stages = self.block_latency + AlignedAdd.latency
        stages = [self.step]
        for index in range(1, n_stages + 1):
            stage = Signal(self.step.shape(), name=f"step_s{index}")
            m.d.sync += stage.eq(stages[-1])
            stages.append(stage)
        m.d.comb += [
            self.hazard.eq(
                sum(stage.valid & (stage.row == self.query_row) for stage in stages[1:]) != 0
            ),
            self.busy.eq(sum(stage.valid for stage in stages) != 0),
        ]

        # Memories are read in the cycle before the block result arrives.
        fetch = stages[self.block_latency - 1]
        address = Signal(merge_step_layout(self.max_rows, self.n_words))
        word_bits = ceil_log2(self.n_words)
        m.d.comb += [
            address.eq(Mux(fetch.valid, fetch.as_value(), self.read.as_value())),
            o_read.addr.eq(address.word[:word_bits] | (address.row << word_bits)),
            meta_read.addr.eq(address.row),
            self.read_o.eq(o_read.data),
            self.read_meta.eq(meta_read.data),
        ]

        meta = meta_read.data
        fresh = Signal()
        m.d.comb += [
            fresh.eq(meta.l == 0),
            add_o.fresh.eq(fresh),
            add_o.state_ref.eq(meta.e),
            add_o.block_ref.eq(self.pv_ref),
            add_o.state.eq(o_read.data),
            add_l.fresh.eq(fresh),
            add_l.state_ref.eq(meta.m),
            add_l.block_ref.eq(self.ref),
            add_l.state[0].eq(meta.l),
            add_l.block[0].eq(self.l << STATE_GUARD),
        ]
        for index in range(self.lanes):
            m.d.comb += add_o.block[index].eq(self.o[index] << STATE_GUARD)

        done = stages[n_stages]
        m.d.comb += [
            o_write.en.eq(done.valid),
            o_write.addr.eq(done.word[:word_bits] | (done.row << word_bits)),
            o_write.data.eq(add_o.sum),
            meta_write.en.eq((done.valid & done.last) | self.clear.valid),
            meta_write.addr.eq(Mux(self.clear.valid, self.clear.row, done.row)),
            meta_write.data.m.eq(add_l.ref),
            meta_write.data.e.eq(add_o.ref),
            meta_write.data.l.eq(
                Mux(self.clear.valid, Const(0, L_STATE_WIDTH), add_l.sum[0][:L_STATE_WIDTH])
            ),
        ]

        return m
