"""Score array: dot products of stationary queries with keys that stream by.

Key beats enter row 0 and hop to the next row a cycle later, so row j works j cycles after row 0.
``head_dim`` elements of a key come as ``fold`` beats of ``head_dim / fold`` elements each.
"""

import functools
import operator

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moska.golden.formats import KV_BITS, Q_BITS, dot_width


class Phi(enum.Enum, shape=2):
    """Part of the query that a key beat is multiplied with."""

    ALL = 0
    POSITIVE = 1  # max(q, 0)
    NEGATIVE = 2  # min(q, 0)


def index_width(count):
    """Bits of an index below ``count``, at least 1."""
    return max(1, ceil_log2(count))


def check_power_of_two(name, value):
    """Raise ``ValueError`` unless ``value`` is a power of two."""
    if not isinstance(value, int) or value < 1 or value & (value - 1):
        raise ValueError(f"{name} must be a power of two, not {value!r}")


def check_fold(head_dim, fold):
    """Raise ``ValueError`` unless a token of ``head_dim`` elements can come in ``fold`` beats."""
    check_power_of_two("head_dim", head_dim)
    check_power_of_two("fold", fold)
    if fold > head_dim:
        raise ValueError(f"fold must be at most head_dim ({head_dim}), not {fold}")


def lane_rows(fold, query_tile):
    """Rows that one softmax lane serves: a row has a new token at most every ``fold`` cycles."""
    return min(fold, query_tile)


def score_beat_layout(head_dim, fold):
    """Layout of one key beat.

    ``beat`` counts 0 to ``fold - 1`` within a token; ``bank`` and ``phi`` choose the query bank
    and its part, and are the same for all beats of a token.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "beat": index_width(fold),
            "bank": 1,
            "phi": Phi,
            "data": data.ArrayLayout(signed(KV_BITS), head_dim // fold),
        }
    )


def query_write_layout(head_dim, fold):
    """Layout of one query beat on its way into a row."""
    return data.StructLayout(
        {
            "valid": 1,
            "bank": 1,
            "beat": index_width(fold),
            "data": data.ArrayLayout(signed(Q_BITS), head_dim // fold),
        }
    )


def tile_write_layout(head_dim, fold, query_tile):
    """Layout of one query beat on its way into row ``row`` of the array."""
    return data.StructLayout(
        {
            "valid": 1,
            "row": index_width(query_tile),
            "bank": 1,
            "beat": index_width(fold),
            "data": data.ArrayLayout(signed(Q_BITS), head_dim // fold),
        }
    )


def dot_layout(head_dim):
    """Layout of one dot product."""
    return data.StructLayout({"valid": 1, "value": signed(dot_width(head_dim))})


def row_latency(head_dim, fold):
    """Cycles that a :class:`ScoreRow` takes from the last beat of a token to its dot product."""
    operand, product = 1, 1
    accumulate = 1 if fold > 1 else 0
    return operand + product + exact_log2(head_dim // fold) + accumulate


class ScoreRow(wiring.Component):
    """One row: ``dot = sum over d of phi(q[d]) * k[d]``, exact.

    Golden function: the ``dot`` of :func:`moska.golden.attention.scores`. One beat per cycle, any
    number of idle cycles between beats; ``dot.valid`` is 1 for one cycle, ``latency`` cycles
    after the last beat of a token entered ``k``. A query word written in one cycle is used by
    beats that enter ``k`` from the next cycle on, so a bank is loaded while the other is in use.

    Storage: two banks of ``head_dim`` 16-bit integers, LUT RAM when ``fold`` is above 1, else
    registers. Multipliers: ``head_dim / fold``, 16 x 8 bits, operands and product registered.

    Parameters
    ----------
    head_dim : int
        elements of a query or key, a power of two
    fold : int
        beats per token, a power of two up to ``head_dim``

    Members
    -------
    k : :py:`In(score_beat_layout(head_dim, fold))`
    k_next : :py:`Out(score_beat_layout(head_dim, fold))`
        ``k`` one cycle later, for the next row
    q : :py:`In(query_write_layout(head_dim, fold))`
    dot : :py:`Out(dot_layout(head_dim))`

    """

    def __init__(self, *, head_dim, fold):
        check_fold(head_dim, fold)
        self.head_dim = head_dim
        self.fold = fold
        self.beat_dim = head_dim // fold
        super().__init__(
            {
                "k": In(score_beat_layout(head_dim, fold)),
                "k_next": Out(score_beat_layout(head_dim, fold)),
                "q": In(query_write_layout(head_dim, fold)),
                "dot": Out(dot_layout(head_dim)),
            }
        )

    @property
    def latency(self):
        """Cycles from the last beat of a token at ``k`` to its product at ``dot``."""
        return row_latency(self.head_dim, self.fold)

    def elaborate(self, platform):
        m = Module()

        word = data.ArrayLayout(signed(Q_BITS), self.beat_dim)
        k = self.k

        # Stationary queries.
        query = Signal(word)
        if self.fold > 1:
            m.submodules.queries = queries = Memory(
                shape=word, depth=2 * self.fold, init=[], attrs={"ram_style": "distributed"}
            )
            write = queries.write_port()
            read = queries.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.q.valid),
                write.addr.eq(Cat(self.q.beat, self.q.bank)),
                write.data.eq(self.q.data),
                read.addr.eq(Cat(k.beat, k.bank)),
                query.eq(read.data),
            ]
        else:
            bank_0 = Signal(word, reset_less=True)
            bank_1 = Signal(word, reset_less=True)
            with m.If(self.q.valid & ~self.q.bank):
                m.d.sync += bank_0.eq(self.q.data)
            with m.If(self.q.valid & self.q.bank):
                m.d.sync += bank_1.eq(self.q.data)
            m.d.comb += query.eq(Mux(k.bank, bank_1, bank_0))

        # Operands. The key's register is also the hop to the next row.
        valid_s1 = Signal()
        beat_s1 = Signal.like(k.beat, reset_less=True)
        bank_s1 = Signal(reset_less=True)
        phi_s1 = Signal(Phi, reset_less=True)
        k_s1 = Signal(k.data.shape(), reset_less=True)
        m.d.sync += [
            valid_s1.eq(k.valid),
            beat_s1.eq(k.beat),
            bank_s1.eq(k.bank),
            phi_s1.eq(k.phi),
            k_s1.eq(k.data),
        ]
        m.d.comb += [
            self.k_next.valid.eq(valid_s1),
            self.k_next.beat.eq(beat_s1),
            self.k_next.bank.eq(bank_s1),
            self.k_next.phi.eq(phi_s1),
            self.k_next.data.eq(k_s1),
        ]

        no_positive = Signal()
        no_negative = Signal()
        m.d.comb += [no_positive.eq(k.phi == Phi.NEGATIVE), no_negative.eq(k.phi == Phi.POSITIVE)]
        products = []
        for d in range(self.beat_dim):
            q_s1 = Signal(signed(Q_BITS), name=f"q_s1_{d}", reset_less=True)
            product = Signal(signed(Q_BITS + KV_BITS), name=f"product_{d}", reset_less=True)
            negative = query[d][-1]
            dropped = Mux(negative, no_negative, no_positive)
            m.d.sync += [
                q_s1.eq(Mux(dropped, 0, query[d])),
                product.eq(q_s1 * k_s1[d]),
            ]
            products.append(product)

        # Adder tree, a register per level; `beat` and `valid` keep pace.
        terms = products
        valid, beat = valid_s1, beat_s1
        for level in range(exact_log2(self.beat_dim) + 1):
            if level:
                sums = []
                for n in range(len(terms) // 2):
                    total = Signal(
                        signed(Q_BITS + KV_BITS + level), name=f"sum_{level}_{n}", reset_less=True
                    )
                    m.d.sync += total.eq(terms[2 * n] + terms[2 * n + 1])
                    sums.append(total)
                terms = sums
            valid_next = Signal(name=f"valid_s{level + 2}")
            m.d.sync += valid_next.eq(valid)
            valid = valid_next
            if self.fold > 1:
                beat_next = Signal.like(beat, name=f"beat_s{level + 2}", reset_less=True)
                m.d.sync += beat_next.eq(beat)
                beat = beat_next
        (beat_sum,) = terms

        if self.fold > 1:
            partial_dot = Signal(signed(dot_width(self.head_dim)), reset_less=True)
            dot_valid = Signal()
            m.d.sync += dot_valid.eq(valid & (beat == self.fold - 1))
            with m.If(valid):
                m.d.sync += partial_dot.eq(Mux(beat == 0, 0, partial_dot) + beat_sum)
            m.d.comb += [self.dot.valid.eq(dot_valid), self.dot.value.eq(partial_dot)]
        else:
            m.d.comb += [self.dot.valid.eq(valid), self.dot.value.eq(beat_sum)]

        return m


class ScoreArray(wiring.Component):
    """``query_tile`` rows: the dot products of all queries of a tile with each key.

    Golden function: the ``dot`` of :func:`moska.golden.attention.scores`. Softmax lane i serves
    rows ``i * lane_rows`` to ``(i + 1) * lane_rows - 1``. The dot product of row j is at
    ``dots[j // lane_rows]`` exactly ``latency + j`` cycles after the last beat of its token
    entered ``k``.

    The tokens of ``k`` must start at least ``fold`` cycles apart, which beats at one per cycle
    do. A query word written in a cycle is used in row j by beats that enter ``k`` later than j
    cycles before; so a bank may be overwritten in row j from j cycles after the bank's last use
    at ``k`` on.

    Parameters
    ----------
    head_dim : int
        elements of a query or key, a power of two
    fold : int
        beats per token, a power of two up to ``head_dim``
    query_tile : int
        rows, a power of two

    Members
    -------
    k : :py:`In(score_beat_layout(head_dim, fold))`
    q : :py:`In(tile_write_layout(head_dim, fold, query_tile))`
    dots : :py:`Out(ArrayLayout(dot_layout(head_dim), n_lanes))`

    """

    def __init__(self, *, head_dim, fold, query_tile):
        check_fold(head_dim, fold)
        check_power_of_two("query_tile", query_tile)
        self.head_dim = head_dim
        self.fold = fold
        self.query_tile = query_tile
        self.lane_rows = lane_rows(fold, query_tile)
        self.n_lanes = query_tile // self.lane_rows
        super().__init__(
            {
                "k": In(score_beat_layout(head_dim, fold)),
                "q": In(tile_write_layout(head_dim, fold, query_tile)),
                "dots": Out(data.ArrayLayout(dot_layout(head_dim), self.n_lanes)),
            }
        )

    @property
    def latency(self):
        """Cycles from the last beat of a token at ``k`` to the product of row 0 at ``dots``."""
        return row_latency(self.head_dim, self.fold) + 1

    def elaborate(self, platform):
        m = Module()

        rows = [ScoreRow(head_dim=self.head_dim, fold=self.fold) for _ in range(self.query_tile)]
        for r, row in enumerate(rows):
            m.submodules[f"row_{r}"] = row
            m.d.comb += [
                row.k.eq(rows[r - 1].k_next if r else self.k),
                row.q.valid.eq(self.q.valid & (self.q.row == r)),
                row.q.bank.eq(self.q.bank),
                row.q.beat.eq(self.q.beat),
                row.q.data.eq(self.q.data),
            ]

        # Read by nothing: with it, the last row keeps its port and is the same module as the rest.
        k_last = Signal.like(self.k)
        m.d.comb += k_last.eq(rows[-1].k_next)

        # At most one row of a lane is valid: they work a cycle apart, tokens `fold` cycles apart.
        for i in range(self.n_lanes):
            group = rows[i * self.lane_rows : (i + 1) * self.lane_rows]
            value = Signal(dot_width(self.head_dim), name=f"lane_{i}_value", reset_less=True)
            valid = Signal(name=f"lane_{i}_valid")
            shown = [Mux(row.dot.valid, row.dot.value.as_unsigned(), 0) for row in group]
            m.d.sync += [
                valid.eq(functools.reduce(operator.or_, (row.dot.valid for row in group))),
                value.eq(functools.reduce(operator.or_, shown)),
            ]
            m.d.comb += [self.dots[i].valid.eq(valid), self.dots[i].value.eq(value)]

        return m
