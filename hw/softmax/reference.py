"""References of a block: the running maxima of its scores and of its scaled exponents."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import M_WIDTH, O_EXP_WIDTH, SCORE_FRAC, SCORE_WIDTH, V_EXP_WIDTH
from moska.hw.arrays.score import check_power_of_two, index_width

Reference = data.StructLayout({"ref": signed(M_WIDTH), "pv_ref": signed(O_EXP_WIDTH)})


def scored_token_layout(rows, banks):
    """Layout of one score on its way into the maxima of its row and block."""
    return data.StructLayout(
        {
            "valid": 1,
            "slot": index_width(rows),
            "first": 1,
            "last": 1,
            "bank": index_width(banks),
            "score": signed(SCORE_WIDTH),
            "v_exponent": V_EXP_WIDTH,
        }
    )


class BlockReference(wiring.Component):
    """Largest ``(score >> 12) + 1``, and that plus the V exponent, of each row and block.

    Golden models: :func:`moska.golden.softmax.reference` and
    :func:`moska.golden.softmax.pv_reference`. ``first`` starts the maxima of a row; a score is in
    them ``latency`` cycles after it entered, that is, visible at ``o``. One score a cycle, which
    may be of the same row every cycle. ``stored`` is 1 in the last cycle in which ``o`` does not
    show the ``last`` score of slot 0 yet.

    Storage: ``banks * rows`` words of 27 bits with two reads without a clock.

    Parameters
    ----------
    rows : int
        rows that share the lane, a power of two
    banks : int
        blocks held, a power of two, at least 2

    Members
    -------
    i : :py:`In(scored_token_layout(rows, banks))`
    bank : :py:`In(range(banks))`
    slot : :py:`In(range(rows))`
        what ``o`` shows, in the same cycle; at least 1 bit
    o : :py:`Out(Reference)`
    stored : :py:`Out(1)`

    """

    latency = 2

    def __init__(self, *, rows, banks):
        check_power_of_two("rows", rows)
        check_banks(banks)
        self.rows = rows
        self.banks = banks
        super().__init__(
            {
                "i": In(scored_token_layout(rows, banks)),
                "bank": In(index_width(banks)),
                "slot": In(index_width(rows)),
                "o": Out(Reference),
                "stored": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        slot_bits = exact_log2(self.rows)
        i = self.i

        # The maxima of an open block live in the word that keeps them when it is complete.
        m.submodules.maxima = maxima = memory.Memory(
            shape=Reference, depth=self.banks * self.rows, init=[]
        )
        write = maxima.write_port()
        running = maxima.read_port(domain="comb")
        stored = maxima.read_port(domain="comb")

        above = Signal(signed(M_WIDTH))
        valid_s1 = Signal()
        first_s1 = Signal(reset_less=True)
        final_s1 = Signal(reset_less=True)
        address_s1 = Signal(range(self.banks * self.rows), reset_less=True)
        token_s1 = Signal(Reference, reset_less=True)
        m.d.comb += above.eq((i.score >> SCORE_FRAC) + 1)
        m.d.sync += [
            valid_s1.eq(i.valid),
            first_s1.eq(i.first),
            final_s1.eq(i.last & (i.slot == 0)),
            address_s1.eq(Cat(i.slot[:slot_bits], i.bank)),
            token_s1.ref.eq(above),
            token_s1.pv_ref.eq(above + i.v_exponent),
        ]

        ref_grows = Signal()
        pv_ref_grows = Signal()
        m.d.comb += [
            running.addr.eq(address_s1),
            ref_grows.eq(first_s1 | (token_s1.ref > running.data.ref)),
            pv_ref_grows.eq(first_s1 | (token_s1.pv_ref > running.data.pv_ref)),
            write.addr.eq(address_s1),
            write.en.eq(valid_s1),
            write.data.ref.eq(Mux(ref_grows, token_s1.ref, running.data.ref)),
            write.data.pv_ref.eq(Mux(pv_ref_grows, token_s1.pv_ref, running.data.pv_ref)),
            self.stored.eq(valid_s1 & final_s1),
        ]

        m.d.comb += [
            stored.addr.eq(Cat(self.slot[:slot_bits], self.bank)),
            self.o.eq(stored.data),
        ]

        return m


def check_banks(banks):
    """Raise ``ValueError`` unless ``banks`` is a power of two of at least 2."""
    check_power_of_two("banks", banks)
    if banks < 2:
        raise ValueError(f"banks must be at least 2, not {banks!r}")
