"""Row state: block results are merged into (m, l, e, O) of their rows."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

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
    """Struct of one step: merge one word of one row; ``last`` marks the row's last word.

    ``max_rows`` counts the rows of all contexts.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "row": range(max(max_rows, 2)),
            "word": range(max(n_words, 2)),
            "last": 1,
        }
    )


def state_read_layout(max_rows, n_words):
    """Struct of one read: a word of ``row``, and what ``meta_row`` keeps once.

    ``valid`` and ``meta_valid`` say which answer is used. ``max_rows`` counts the rows of all
    contexts.
    """
    row = range(max(max_rows, 2))
    return data.StructLayout(
        {
            "valid": 1,
            "row": row,
            "word": range(max(n_words, 2)),
            "meta_valid": 1,
            "meta_row": row,
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
        of the operands of the cycle before: it depends on a state that comes late in its cycle
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

        # Stage 1: registers, since operands come from memories.
        ref_s1 = [Signal(signed(self.ref_width), name=f"{n}_ref_s1") for n in ("state", "block")]
        m.d.sync += [ref_s1[0].eq(self.state_ref), ref_s1[1].eq(self.block_ref)]
        # Both differences at once, so that the sign of the one need not be known for the other.
        ahead = Signal(signed(self.ref_width + 1))
        behind = Signal(signed(self.ref_width + 1))
        block_wins = Signal()
        m.d.comb += [
            ahead.eq(ref_s1[1] - ref_s1[0]),
            behind.eq(ref_s1[0] - ref_s1[1]),
            block_wins.eq(behind < 0),
        ]

        def clamped(distance):
            return Mux(distance > ALIGN_SHIFT_MAX, ALIGN_SHIFT_MAX, distance[: len(shift_s2)])

        # Stage 2: which operand moves, how far. A fresh row's state counts as zero.
        shift_s2 = Signal(range(ALIGN_SHIFT_MAX + 1))
        ref_s2 = Signal(signed(self.ref_width))
        m.d.sync += [
            shift_s2.eq(Mux(block_wins, clamped(ahead), clamped(behind))),
            ref_s2.eq(Mux(self.fresh | block_wins, ref_s1[1], ref_s1[0])),
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
                kept_s2.eq(Mux(self.fresh | block_wins, block_s1, state_s1)),
                moved_s2.eq(Mux(self.fresh, 0, Mux(block_wins, state_s1, block_s1))),
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
    row see the references from before its block. One step a cycle. A read ``latency`` cycles after
    a row's last step, or later, sees the merge.

    Each context has memories of its own: in one cycle a row of one context is merged, one of
    another is cleared and one of a third is read. A row number is context and row, the row in the
    low bits.

    Storage: ``n_contexts * max_rows * (head_dim * 48 + 66)`` bits.

    Parameters
    ----------
    max_rows : int
        rows of a context, a power of two, at least 2
    n_contexts : int
        a power of two
    head_dim : int
    lanes : int
        elements of a word
    block_latency : int
        cycles from a step to its block result, at least 1

    Members
    -------
    step : :py:`In(merge_step_layout(n_contexts * max_rows, head_dim // lanes))`
    query_row : :py:`In(range(n_contexts * max_rows))`
        row that ``hazard`` speaks of
    hazard : :py:`Out(1)`
    l, ref, pv_ref, o : In
        the block result
    clear : :py:`In(StructLayout({"valid": 1, "row": range(n_contexts * max_rows)}))`
        marks a row as having merged nothing; not during merges of its context
    read : :py:`In(state_read_layout(n_contexts * max_rows, head_dim // lanes))`
        answered one cycle later; unspecified during merges of its context
    read_o, read_meta : Out
    busy : :py:`Out(1)`
        a step is not yet written

    """

    def __init__(self, *, max_rows, n_contexts, head_dim, lanes, block_latency):
        for name, value, least in (("max_rows", max_rows, 2), ("n_contexts", n_contexts, 1)):
            if value < least or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, at least {least}, not {value}")
        if head_dim % lanes:
            raise ValueError(f"head_dim must be a multiple of lanes ({lanes}), not {head_dim}")
        if block_latency < 1:
            raise ValueError(f"block_latency must be at least 1, not {block_latency}")
        self.max_rows = max_rows
        self.n_contexts = n_contexts
        self.head_dim = head_dim
        self.lanes = lanes
        self.n_words = head_dim // lanes
        self.block_latency = block_latency
        n_rows = n_contexts * max_rows
        super().__init__(
            {
                "step": In(merge_step_layout(n_rows, self.n_words)),
                "query_row": In(range(n_rows)),
                "hazard": Out(1),
                "l": In(block_l_width()),
                "ref": In(signed(M_WIDTH)),
                "pv_ref": In(signed(O_EXP_WIDTH)),
                "o": In(data.ArrayLayout(signed(block_o_width()), lanes)),
                "clear": In(data.StructLayout({"valid": 1, "row": range(n_rows)})),
                "read": In(state_read_layout(n_rows, self.n_words)),
                "read_o": Out(data.ArrayLayout(signed(O_STATE_WIDTH), lanes)),
                "read_meta": Out(RowMeta),
                "busy": Out(1),
            }
        )

    @property
    def latency(self):
        """Cycles from a row's last step to the first read that sees the merge."""
        return self.block_latency + AlignedAdd.latency + 1

    def elaborate(self, platform):
        m = Module()

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
                Cat(stage.valid & (stage.row == self.query_row) for stage in stages[1:]).any()
            ),
            self.busy.eq(Cat(stage.valid for stage in stages).any()),
        ]

        # Memories are read in the cycle before the block result arrives.
        fetch, fetch_s1 = stages[self.block_latency - 1], stages[self.block_latency]
        done = stages[n_stages]
        o_words, metas = self.memories(m, fetch, done, add_o, add_l)

        o = Signal(data.ArrayLayout(signed(O_STATE_WIDTH), self.lanes))
        meta = Signal(RowMeta)
        self.choose(m, fetch_s1.row, (o, o_words), (meta, metas))
        l_s1 = Signal(meta.l.shape(), reset_less=True)
        fresh = Signal()
        m.d.sync += l_s1.eq(meta.l)
        m.d.comb += [
            fresh.eq(l_s1 == 0),
            add_o.fresh.eq(fresh),
            add_o.state_ref.eq(meta.e),
            add_o.block_ref.eq(self.pv_ref),
            add_o.state.eq(o),
            add_l.fresh.eq(fresh),
            add_l.state_ref.eq(meta.m),
            add_l.block_ref.eq(self.ref),
            add_l.state[0].eq(meta.l),
            add_l.block[0].eq(self.l << STATE_GUARD),
        ]
        for index in range(self.lanes):
            m.d.comb += add_o.block[index].eq(self.o[index] << STATE_GUARD)

        read_s1 = Signal(self.read.shape(), reset_less=True)
        m.d.sync += read_s1.eq(self.read)
        self.choose(m, read_s1.row, (self.read_o, o_words))
        self.choose(m, read_s1.meta_row, (self.read_meta, metas))
        return m

    def choose(self, m, row, *choices):
        """Drive each target from its source of the row's context.

        A switch: an index into an array of this width would become a shift by any distance.
        """
        with m.Switch(row >> exact_log2(self.max_rows)):
            for context in range(self.n_contexts):
                with m.Case(context):
                    m.d.comb += [target.eq(sources[context]) for target, sources in choices]

    def memories(self, m, fetch, done, add_o, add_l):
        """Memories of each context; returns their outputs, one cycle after ``fetch``.

        ``done`` is the step whose sums are written. ``fetch`` goes before ``read``.
        """
        words = data.ArrayLayout(signed(O_STATE_WIDTH), self.lanes)
        o_words, metas = [], []
        row_bits = exact_log2(self.max_rows)
        word_bits = ceil_log2(self.n_words)

        def address(word, row):
            return word[:word_bits] | (row[:row_bits] << word_bits)

        for context in range(self.n_contexts):
            m.submodules[f"o_memory_{context}"] = o_memory = Memory(
                shape=words, depth=self.max_rows * self.n_words, init=[]
            )
            m.submodules[f"meta_memory_{context}"] = meta_memory = Memory(
                shape=RowMeta, depth=self.max_rows, init=[]
            )
            o_read, o_write = o_memory.read_port(), o_memory.write_port()
            meta_read, meta_write = meta_memory.read_port(), meta_memory.write_port()

            fetches = Signal(name=f"fetches_{context}")
            writes = Signal(name=f"writes_{context}")
            clears = Signal(name=f"clears_{context}")
            m.d.comb += [
                fetches.eq(fetch.valid & (fetch.row[row_bits:] == context)),
                writes.eq(done.valid & (done.row[row_bits:] == context)),
                clears.eq(self.clear.valid & (self.clear.row[row_bits:] == context)),
                o_read.addr.eq(
                    Mux(
                        fetches,
                        address(fetch.word, fetch.row),
                        address(self.read.word, self.read.row),
                    )
                ),
                meta_read.addr.eq(Mux(fetches, fetch.row, self.read.meta_row)[:row_bits]),
                o_write.en.eq(writes),
                o_write.addr.eq(address(done.word, done.row)),
                o_write.data.eq(add_o.sum),
                meta_write.en.eq((writes & done.last) | clears),
                meta_write.addr.eq(Mux(clears, self.clear.row, done.row)[:row_bits]),
                meta_write.data.m.eq(add_l.ref),
                meta_write.data.e.eq(add_o.ref),
                meta_write.data.l.eq(
                    Mux(clears, Const(0, L_STATE_WIDTH), add_l.sum[0][:L_STATE_WIDTH])
                ),
            ]
            o_words.append(o_read.data)
            metas.append(meta_read.data)
        return o_words, metas
