"""Value array: sums of scaled probabilities times values, one output row per query.

Value beats enter row 0 and hop to the next row a cycle later, so row j works j cycles after row 0.
The sum of a block moves to a shadow store, which is read while the next block is summed.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import (
    KV_BITS,
    M_WIDTH,
    O_EXP_WIDTH,
    PV_WIDTH,
    block_l_width,
    block_o_width,
)
from moska.hw.arrays.score import check_fold, check_power_of_two, index_width, lane_rows


class Probability(data.Struct):
    """What a softmax lane hands to a row for one token.

    ``l`` is the sum of the probabilities of the block up to and including this token; ``ref`` and
    ``pv_ref`` are the references of the whole block for ``l`` and for the products.
    """

    pv: unsigned(PV_WIDTH)
    l: unsigned(block_l_width())
    ref: signed(M_WIDTH)
    pv_ref: signed(O_EXP_WIDTH)


class BlockStats(data.Struct):
    """Sum of probabilities and references of a finished block."""

    l: unsigned(block_l_width())
    ref: signed(M_WIDTH)
    pv_ref: signed(O_EXP_WIDTH)


def value_beat_layout(head_dim, fold):
    """Layout of one value beat.

    ``beat`` counts 0 to ``fold - 1`` within a token; ``first`` and ``last`` say that the token is
    the first or the last of its block, and are the same for all beats of a token.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "beat": index_width(fold),
            "first": 1,
            "last": 1,
            "data": data.ArrayLayout(signed(KV_BITS), head_dim // fold),
        }
    )


def block_read_layout(head_dim, query_tile, merge_lanes):
    """Layout of a shadow address: elements ``word * merge_lanes`` on, of row ``row``."""
    return data.StructLayout(
        {"row": index_width(query_tile), "word": index_width(head_dim // merge_lanes)}
    )


class ValueRow(wiring.Component):
    """One row: ``o[d] = sum over the tokens of a block of pv * v[d]``, exact.

    Golden function: :func:`moska.golden.attention.values`. One beat per cycle, any number of idle
    cycles between beats. ``p`` is sampled in the cycle in which beat 0 of a token is at ``v``, and
    holds for all beats of the token. The sum of a block goes to the shadow store with the beats
    of its ``last`` token: ``captured`` is 1 in the cycle before beat 0 of the shadow and ``stats``
    become readable, ``latency`` cycles after beat 0 entered ``v``; beat f is readable f cycles
    later when the beats come without gap. The next block overwrites the shadow at its last token.

    Storage: ``head_dim`` sums of 30 bits, twice; LUT RAM when ``fold`` is above 1, else registers.
    Multipliers: ``head_dim / fold``, 17 bits unsigned x 8 bits, operands and product registered.

    Parameters
    ----------
    head_dim : int
        elements of a value, a power of two
    fold : int
        beats per token, a power of two up to ``head_dim``

    Members
    -------
    v : :py:`In(value_beat_layout(head_dim, fold))`
    v_next : :py:`Out(value_beat_layout(head_dim, fold))`
        ``v`` one cycle later, for the next row
    p : :py:`In(Probability)`
    captured : :py:`Out(1)`
    read_beat : :py:`In(range(fold))`
        at least 1 bit
    o : :py:`Out(ArrayLayout(signed(30), head_dim // fold))`
        beat ``read_beat`` of the shadow store, in the same cycle
    stats : :py:`Out(BlockStats)`
        of the block in the shadow store

    """

    latency = 2

    def __init__(self, *, head_dim, fold):
        check_fold(head_dim, fold)
        self.head_dim = head_dim
        self.fold = fold
        self.beat_dim = head_dim // fold
        super().__init__(
            {
                "v": In(value_beat_layout(head_dim, fold)),
                "v_next": Out(value_beat_layout(head_dim, fold)),
                "p": In(Probability),
                "captured": Out(1),
                "read_beat": In(index_width(fold)),
                "o": Out(data.ArrayLayout(signed(block_o_width()), self.beat_dim)),
                "stats": Out(BlockStats),
            }
        )

    def elaborate(self, platform):
        m = Module()

        v = self.v
        word = data.ArrayLayout(signed(block_o_width()), self.beat_dim)

        # Operands. The value's register is also the hop to the next row.
        valid_s1 = Signal()
        beat_s1 = Signal.like(v.beat, reset_less=True)
        first_s1 = Signal(reset_less=True)
        last_s1 = Signal(reset_less=True)
        v_s1 = Signal(v.data.shape(), reset_less=True)
        pv_s1 = Signal(PV_WIDTH, reset_less=True)
        stats_s1 = Signal(BlockStats, reset_less=True)
        m.d.sync += [
            valid_s1.eq(v.valid),
            beat_s1.eq(v.beat),
            first_s1.eq(v.first),
            last_s1.eq(v.last),
            v_s1.eq(v.data),
        ]
        with m.If(v.valid & (v.beat == 0)):
            m.d.sync += [
                pv_s1.eq(self.p.pv),
                stats_s1.l.eq(self.p.l),
                stats_s1.ref.eq(self.p.ref),
                stats_s1.pv_ref.eq(self.p.pv_ref),
            ]
        m.d.comb += [
            self.v_next.valid.eq(valid_s1),
            self.v_next.beat.eq(beat_s1),
            self.v_next.first.eq(first_s1),
            self.v_next.last.eq(last_s1),
            self.v_next.data.eq(v_s1),
        ]

        # Products.
        valid_s2 = Signal()
        beat_s2 = Signal.like(v.beat, reset_less=True)
        first_s2 = Signal(reset_less=True)
        last_s2 = Signal(reset_less=True)
        stats_s2 = Signal(BlockStats, reset_less=True)
        m.d.sync += [
            valid_s2.eq(valid_s1),
            beat_s2.eq(beat_s1),
            first_s2.eq(first_s1),
            last_s2.eq(last_s1),
            stats_s2.eq(stats_s1),
        ]
        products = []
        for d in range(self.beat_dim):
            product = Signal(signed(PV_WIDTH + KV_BITS), name=f"product_{d}", reset_less=True)
            m.d.sync += product.eq(pv_s1 * v_s1[d])
            products.append(product)

        # Sums. `held` is the sum so far of the elements of this beat, garbage at the first token.
        # A signal per element: one of the whole beat would be copied for every element in
        # simulation.
        def elements(name):
            return [
                Signal(signed(block_o_width()), name=f"{name}_{d}", reset_less=True)
                for d in range(self.beat_dim)
            ]

        held, total = elements("held"), elements("total")
        keep = Signal()
        capture = Signal()
        m.d.comb += [keep.eq(valid_s2 & ~last_s2), capture.eq(valid_s2 & last_s2)]
        for d, product in enumerate(products):
            m.d.comb += total[d].eq(Mux(first_s2, 0, held[d]) + product)

        if self.fold > 1:
            m.submodules.sums = sums = Memory(
                shape=word, depth=self.fold, init=[], attrs={"ram_style": "distributed"}
            )
            m.submodules.shadow = shadow = Memory(
                shape=word, depth=self.fold, init=[], attrs={"ram_style": "distributed"}
            )
            sums_write, sums_read = sums.write_port(), sums.read_port(domain="comb")
            shadow_write, shadow_read = shadow.write_port(), shadow.read_port(domain="comb")
            m.d.comb += [
                sums_read.addr.eq(beat_s2),
                Cat(held).eq(sums_read.data),
                sums_write.en.eq(keep),
                sums_write.addr.eq(beat_s2),
                sums_write.data.eq(Cat(total)),
                shadow_write.en.eq(capture),
                shadow_write.addr.eq(beat_s2),
                shadow_write.data.eq(Cat(total)),
                shadow_read.addr.eq(self.read_beat),
                self.o.eq(shadow_read.data),
            ]
        else:
            shadow = elements("shadow")
            m.d.comb += self.o.eq(Cat(shadow))
            for d in range(self.beat_dim):
                sums = Signal(signed(block_o_width()), name=f"sum_{d}", reset_less=True)
                m.d.comb += held[d].eq(sums)
                with m.If(keep):
                    m.d.sync += sums.eq(total[d])
                with m.If(capture):
                    m.d.sync += shadow[d].eq(total[d])

        shadow_stats = Signal(BlockStats, reset_less=True)
        m.d.comb += [self.captured.eq(capture & (beat_s2 == 0)), self.stats.eq(shadow_stats)]
        with m.If(self.captured):
            m.d.sync += shadow_stats.eq(stats_s2)

        return m


class ValueArray(wiring.Component):
    """``query_tile`` rows: the block sums of all queries of a tile, and a read port for them.

    Golden function: :func:`moska.golden.attention.values`. Row j samples ``p[j // lane_rows]`` j
    cycles after beat 0 of a token entered ``v``. ``captured`` is 1 ``latency`` cycles after beat 0
    of the last token of a block entered ``v``. The shadow of beat f of row j can be read from j + f
    + 1 cycles after ``captured`` on, when the beats come without gap, and until j + f cycles after
    the ``captured`` of the next block; ``stats`` as beat 0.

    Element e of a row is element ``e % beat_dim`` of beat ``e // beat_dim``; word w of a row is its
    elements ``w * merge_lanes`` to ``(w + 1) * merge_lanes - 1``. ``o`` and ``stats`` show what
    ``read`` addressed ``read_latency`` cycles before.

    Parameters
    ----------
    head_dim : int
        elements of a value, a power of two
    fold : int
        beats per token, a power of two up to ``head_dim``
    query_tile : int
        rows, a power of two
    merge_lanes : int
        elements of a word, a power of two up to ``head_dim / fold``

    Members
    -------
    v : :py:`In(value_beat_layout(head_dim, fold))`
    p : :py:`In(ArrayLayout(Probability, n_lanes))`
    captured : :py:`Out(1)`
    read : :py:`In(block_read_layout(head_dim, query_tile, merge_lanes))`
    o : :py:`Out(ArrayLayout(signed(30), merge_lanes))`
    stats : :py:`Out(BlockStats)`

    """

    # Rows whose shadows one multiplexer reads before the first register of the read path.
    READ_GROUP = 4

    def __init__(self, *, head_dim, fold, query_tile, merge_lanes):
        check_fold(head_dim, fold)
        check_power_of_two("query_tile", query_tile)
        check_power_of_two("merge_lanes", merge_lanes)
        if merge_lanes > head_dim // fold:
            raise ValueError(
                f"merge_lanes must be at most head_dim / fold ({head_dim // fold}), "
                f"not {merge_lanes}"
            )
        self.head_dim = head_dim
        self.fold = fold
        self.query_tile = query_tile
        self.merge_lanes = merge_lanes
        self.lane_rows = lane_rows(fold, query_tile)
        self.n_lanes = query_tile // self.lane_rows
        super().__init__(
            {
                "v": In(value_beat_layout(head_dim, fold)),
                "p": In(data.ArrayLayout(Probability, self.n_lanes)),
                "captured": Out(1),
                "read": In(block_read_layout(head_dim, query_tile, merge_lanes)),
                "o": Out(data.ArrayLayout(signed(block_o_width()), merge_lanes)),
                "stats": Out(BlockStats),
            }
        )

    @property
    def latency(self):
        """Cycles from beat 0 of the last token of a block at ``v`` to ``captured``."""
        return ValueRow.latency

    @property
    def read_latency(self):
        """Cycles from ``read`` to ``o`` and ``stats``."""
        return 1 if self.query_tile <= self.READ_GROUP else 2

    def elaborate(self, platform):
        m = Module()

        words_per_beat = self.head_dim // self.fold // self.merge_lanes
        word_bits = exact_log2(words_per_beat)
        read_beat = Signal(index_width(self.fold))
        m.d.comb += read_beat.eq(self.read.word[word_bits:])

        rows = [ValueRow(head_dim=self.head_dim, fold=self.fold) for _ in range(self.query_tile)]
        for r, row in enumerate(rows):
            m.submodules[f"row_{r}"] = row
            m.d.comb += [
                row.v.eq(rows[r - 1].v_next if r else self.v),
                row.p.eq(self.p[r // self.lane_rows]),
                row.read_beat.eq(read_beat),
            ]
        m.d.comb += self.captured.eq(rows[0].captured)

        # Read by nothing: with them, all rows keep their ports and are the same module.
        v_last = Signal.like(self.v)
        row_captured = Signal(self.query_tile)
        m.d.comb += [
            v_last.eq(rows[-1].v_next),
            row_captured.eq(Cat(row.captured for row in rows)),
        ]

        # Read path: word of the beat and row of the group, a register, group, a register.
        group_rows = min(self.READ_GROUP, self.query_tile)
        row_bits = exact_log2(group_rows)
        n_groups = self.query_tile // group_rows
        group_s1 = Signal(index_width(n_groups), reset_less=True)
        m.d.sync += group_s1.eq(self.read.row[row_bits:])
        shown = []
        for g in range(n_groups):
            o_s1 = Signal(self.o.shape(), name=f"group_{g}_o", reset_less=True)
            stats_s1 = Signal(BlockStats, name=f"group_{g}_stats", reset_less=True)
            with m.Switch(self.read.row[:row_bits]):
                for n in range(group_rows):
                    row = rows[g * group_rows + n]
                    words = row.o.as_value()
                    width = len(words) // words_per_beat
                    with m.Case(n):
                        m.d.sync += [
                            o_s1.eq(words.word_select(self.read.word[:word_bits], width)),
                            stats_s1.eq(row.stats),
                        ]
            shown.append((o_s1, stats_s1))

        if n_groups == 1:
            ((o_s1, stats_s1),) = shown
            m.d.comb += [self.o.eq(o_s1), self.stats.eq(stats_s1)]
        else:
            o_s2 = Signal(self.o.shape(), reset_less=True)
            stats_s2 = Signal(BlockStats, reset_less=True)
            with m.Switch(group_s1):
                for g, (o_s1, stats_s1) in enumerate(shown):
                    with m.Case(g):
                        m.d.sync += [o_s2.eq(o_s1), stats_s2.eq(stats_s1)]
            m.d.comb += [self.o.eq(o_s2), self.stats.eq(stats_s2)]

        return m
