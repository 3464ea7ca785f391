"""Scores of representative rows in, one order-preserving key a chunk and query out."""

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moska.golden.formats import KEY_FRAC, KEY_WIDTH, SCORE_FRAC, SCORE_WIDTH

KEY_MIN = -(1 << (KEY_WIDTH - 1))
KEY_MAX = (1 << (KEY_WIDTH - 1)) - 1


def rep_score_layout(rows):
    """Score of one representative row for the query in ``slot``, of ``rows`` slots a lane.

    ``first`` and ``last`` mark the first and the last representative row of a chunk.
    """
    return data.StructLayout({
        "valid": 1,
        "slot": range(max(rows, 2)),
        "score": signed(SCORE_WIDTH),
        "first": 1,
        "last": 1,
    })


def key_layout(rows):
    """Key of one chunk for the query in ``slot``, of ``rows`` slots a lane."""
    return data.StructLayout({"valid": 1, "slot": range(max(rows, 2)), "key": signed(KEY_WIDTH)})


class ChunkKey(wiring.Component):
    """Reduce the scores of a chunk's representative rows to its key, one score a cycle.

    A group's score is the sum of its rows' scores: of two consecutive rows when ``pairs`` is 1,
    else of one. The key is the maximum over the chunk's groups, without its lowest
    ``SCORE_FRAC - KEY_FRAC`` fraction bits, saturated to ``KEY_WIDTH``. The rows of different
    slots may come in any order; those of one slot come chunk after chunk. With ``pairs``, a chunk
    has an even number of rows.

    Golden model: :func:`moska.golden.router.chunk_keys`. ``key`` is valid ``latency`` cycles after
    the row marked ``last``. One row a cycle, of the same slot or not.

    Parameters
    ----------
    rows : int
        slots, at least 1

    Members
    -------
    rep : :py:`In(rep_score_layout(rows))`
    pairs : :py:`In(1)`
        read together with each row
    key : :py:`Out(key_layout(rows))`

    """

    latency = 3

    def __init__(self, *, rows):
        if rows < 1:
            raise ValueError(f"rows must be at least 1, not {rows!r}")
        self.rows = rows
        super().__init__({
            "rep": In(rep_score_layout(rows)),
            "pairs": In(1),
            "key": Out(key_layout(rows)),
        })

    def elaborate(self, platform):
        m = Module()

        def per_slot(name, shape, slot, write):
            """State of every slot: what ``slot`` holds, and where to put what ``write`` stores."""
            if self.rows == 1:
                value = Signal(shape, name=name, reset_less=True)
                new = Signal(shape, name=f"{name}_new")
                with m.If(write):
                    m.d.sync += value.eq(new)
                return value, new
            memory = Memory(shape=shape, depth=self.rows, init=[])
            m.submodules[name] = memory
            write_port = memory.write_port()
            read_port = memory.read_port(domain="comb")
            m.d.comb += [
                read_port.addr.eq(slot),
                write_port.addr.eq(slot),
                write_port.en.eq(write),
            ]
            return read_port.data, write_port.data

        rep = self.rep
        valid_s1 = Signal()
        valid_s2 = Signal()
        m.d.sync += [valid_s1.eq(rep.valid), valid_s2.eq(valid_s1)]

        # Stage 1: sum of the group. `waiting` is 1 after the first row of a pair, `half` its score.
        half_layout = data.StructLayout({"waiting": 1, "score": unsigned(SCORE_WIDTH)})
        half, half_new = per_slot("half", half_layout, rep.slot, rep.valid)
        second = Signal()
        total_s1 = Signal(signed(SCORE_WIDTH + 1), reset_less=True)
        slot_s1 = Signal.like(rep.slot, reset_less=True)
        first_s1 = Signal(reset_less=True)
        last_s1 = Signal(reset_less=True)
        complete_s1 = Signal(reset_less=True)
        m.d.comb += [
            second.eq(self.pairs & ~rep.first & half.waiting),
            half_new.waiting.eq(~second),
            half_new.score.eq(rep.score),
        ]
        m.d.sync += [
            total_s1.eq(rep.score + Mux(second, half.score.as_signed(), 0)),
            slot_s1.eq(rep.slot),
            first_s1.eq(rep.first),
            last_s1.eq(rep.last),
            complete_s1.eq(~self.pairs | second),
        ]

        # Stage 2: key of the group. Dropping bits and saturating keep the order, so they may come
        # before the maximum.
        drop = SCORE_FRAC - KEY_FRAC
        shifted = Signal(signed(SCORE_WIDTH + 1 - drop))
        key_s2 = Signal(signed(KEY_WIDTH), reset_less=True)
        slot_s2 = Signal.like(rep.slot, reset_less=True)
        first_s2 = Signal(reset_less=True)
        last_s2 = Signal(reset_less=True)
        complete_s2 = Signal(reset_less=True)
        m.d.comb += shifted.eq(total_s1 >> drop)
        m.d.sync += [
            key_s2.eq(Mux(shifted > KEY_MAX, KEY_MAX, Mux(shifted < KEY_MIN, KEY_MIN, shifted))),
            slot_s2.eq(slot_s1),
            first_s2.eq(first_s1),
            last_s2.eq(last_s1),
            complete_s2.eq(complete_s1),
        ]

        # Stage 3: maximum over the groups. The first row of a pair adds nothing.
        best, best_new = per_slot("best", signed(KEY_WIDTH), slot_s2, valid_s2)
        base = Signal(signed(KEY_WIDTH))
        m.d.comb += [
            base.eq(Mux(first_s2, KEY_MIN, best)),
            best_new.eq(Mux(complete_s2 & (key_s2 > base), key_s2, base)),
        ]
        m.d.sync += [
            self.key.valid.eq(valid_s2 & last_s2),
            self.key.slot.eq(slot_s2),
            self.key.key.eq(best_new),
        ]

        return m
