"""Softmax lane: dot products of its rows in, probabilities of its rows out."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.formats import BLOCK_TOKENS, SCALE_BITS, SCORE_WIDTH, V_EXP_WIDTH
from moska.hw.arrays.score import check_power_of_two, dot_layout, index_width
from moska.hw.arrays.value import Probability
from moska.hw.delay import delay_line
from moska.hw.router.key import rep_score_layout
from moska.hw.softmax.probability import TokenProbability
from moska.hw.softmax.reference import BlockReference, check_banks
from moska.hw.softmax.scale import ScoreScale


def score_slot_layout(rows, banks):
    """Layout of what comes with a dot product: whose it is, and where its score goes.

    ``first`` and ``last`` mark the tokens of a block, which fills ``bank``; ``token`` is the place
    in the block, ``v_exponent`` the biased exponent of the token's V scale. A ``representative``
    has only ``rep_first`` and ``rep_last`` (first and last row of a chunk) beside ``slot``,
    ``q_bank`` and ``k_scale``.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "slot": index_width(rows),
            "first": 1,
            "last": 1,
            "bank": index_width(banks),
            "token": range(BLOCK_TOKENS),
            "q_bank": 1,
            "k_scale": SCALE_BITS,
            "v_exponent": V_EXP_WIDTH,
            "representative": 1,
            "rep_first": 1,
            "rep_last": 1,
        }
    )


def value_slot_layout(rows, banks):
    """Layout of a request for the probability of ``token`` of the block in ``bank``."""
    return data.StructLayout(
        {
            "valid": 1,
            "slot": index_width(rows),
            "first": 1,
            "last": 1,
            "bank": index_width(banks),
            "token": range(BLOCK_TOKENS),
            "v_scale": SCALE_BITS,
        }
    )


def lane_scale_layout(rows):
    """Layout of one Q scale (bfloat16 bits) on its way into row ``slot`` of a lane."""
    return data.StructLayout(
        {"valid": 1, "bank": 1, "slot": index_width(rows), "scale": SCALE_BITS}
    )


class SoftmaxLane(wiring.Component):
    """Block-local softmax of ``rows`` rows: scores in, then probabilities, one a cycle each.

    Golden functions: :func:`moska.golden.attention.scores` and :mod:`moska.golden.softmax`. The two
    sides run at the same time and know each other only through the score banks; they must not
    work on the same bank, except that the value side may start on a block from the cycle after
    ``scored``, in the order of the slots and not ahead of the score side's pace: slot s of any
    token at the earliest s cycles after slot 0 of the first. Slots may recur every cycle.

    Latencies in cycles: a dot product leaves as a representative's score after ``rep_latency``;
    ``scored`` is 1 ``score_latency`` after slot 0 of the last token of a block; a value slot is
    answered after ``p_latency``. A Q scale is used by dot products from the next cycle on.

    Storage: ``banks * 32 * rows`` scores of 24 bits (block RAM), ``2 * rows`` Q scales,
    ``banks * rows`` references of 27 bits.

    Parameters
    ----------
    head_dim : int
        D
    rows : int
        rows that share the lane, a power of two
    banks : int
        blocks of scores held, a power of two, at least 2

    Members
    -------
    dot : :py:`In(dot_layout(head_dim))`
        its ``valid`` equals that of ``score``
    score : :py:`In(score_slot_layout(rows, banks))`
    q_scale : :py:`In(lane_scale_layout(rows))`
    scored : :py:`Out(1)`
    rep : :py:`Out(rep_score_layout(rows))`
    value : :py:`In(value_slot_layout(rows, banks))`
    p : :py:`Out(Probability)`

    """

    rep_latency = ScoreScale.latency
    score_latency = ScoreScale.latency + BlockReference.latency - 1
    p_latency = 2 + TokenProbability.latency

    def __init__(self, *, head_dim, rows, banks=4):
        check_power_of_two("rows", rows)
        check_banks(banks)
        self.head_dim = head_dim
        self.rows = rows
        self.banks = banks
        super().__init__(
            {
                "dot": In(dot_layout(head_dim)),
                "score": In(score_slot_layout(rows, banks)),
                "q_scale": In(lane_scale_layout(rows)),
                "scored": Out(1),
                "rep": Out(rep_score_layout(rows)),
                "value": In(value_slot_layout(rows, banks)),
                "p": Out(Probability),
            }
        )

    def elaborate(self, platform):
        m = Module()

        slot_bits = exact_log2(self.rows)
        m.submodules.scale = scale = ScoreScale(head_dim=self.head_dim)
        m.submodules.reference = reference = BlockReference(rows=self.rows, banks=self.banks)
        m.submodules.probability = probability = TokenProbability(rows=self.rows)
        m.submodules.q_scales = q_scales = memory.Memory(
            shape=SCALE_BITS, depth=2 * self.rows, init=[]
        )
        m.submodules.scores = scores = memory.Memory(
            shape=signed(SCORE_WIDTH), depth=self.banks * BLOCK_TOKENS * self.rows, init=[]
        )

        # Score side.
        q_write = q_scales.write_port()
        q_read = q_scales.read_port(domain="comb")
        m.d.comb += [
            q_write.addr.eq(Cat(self.q_scale.slot[:slot_bits], self.q_scale.bank)),
            q_write.data.eq(self.q_scale.scale),
            q_write.en.eq(self.q_scale.valid),
            q_read.addr.eq(Cat(self.score.slot[:slot_bits], self.score.q_bank)),
            scale.dot.eq(self.dot.value),
            scale.q_scale.eq(q_read.data),
            scale.k_scale.eq(self.score.k_scale),
        ]

        representative = self.score.representative
        cycles = ScoreScale.latency
        token = Signal(
            data.StructLayout(
                {
                    "slot": self.score.slot.shape(),
                    "first": 1,
                    "last": 1,
                    "bank": self.score.bank.shape(),
                    "token": range(BLOCK_TOKENS),
                    "v_exponent": V_EXP_WIDTH,
                }
            )
        )
        m.d.comb += [
            token.slot.eq(self.score.slot),
            token.first.eq(Mux(representative, self.score.rep_first, self.score.first)),
            token.last.eq(Mux(representative, self.score.rep_last, self.score.last)),
            token.bank.eq(self.score.bank),
            token.token.eq(self.score.token),
            token.v_exponent.eq(self.score.v_exponent),
        ]
        done = delay_line(m, token, cycles, name="token")[cycles]
        is_kv = Signal()
        is_rep = Signal()
        m.d.comb += [
            is_kv.eq(self.score.valid & ~representative),
            is_rep.eq(self.score.valid & representative),
        ]
        kv_done = delay_line(m, is_kv, cycles, name="is_kv", reset_less=False)[cycles]
        rep_done = delay_line(m, is_rep, cycles, name="is_rep", reset_less=False)[cycles]

        write = scores.write_port()
        m.d.comb += [
            write.addr.eq(Cat(done.slot[:slot_bits], done.token, done.bank)),
            write.data.eq(scale.score),
            write.en.eq(kv_done),
            reference.i.valid.eq(kv_done),
            reference.i.slot.eq(done.slot),
            reference.i.first.eq(done.first),
            reference.i.last.eq(done.last),
            reference.i.bank.eq(done.bank),
            reference.i.score.eq(scale.score),
            reference.i.v_exponent.eq(done.v_exponent),
            self.scored.eq(reference.stored),
            self.rep.valid.eq(rep_done),
            self.rep.slot.eq(done.slot),
            self.rep.score.eq(scale.score),
            self.rep.first.eq(done.first),
            self.rep.last.eq(done.last),
        ]

        # Value side. Block RAM answers late in its cycle, hence a register behind it.
        read = scores.read_port()
        value_s1 = Signal(self.value.shape(), reset_less=True)
        valid_s1 = Signal()
        valid_s2 = Signal()
        found_s2 = Signal(probability.i.shape(), reset_less=True)
        m.d.comb += [
            read.addr.eq(Cat(self.value.slot[:slot_bits], self.value.token, self.value.bank)),
            reference.bank.eq(value_s1.bank),
            reference.slot.eq(value_s1.slot),
        ]
        m.d.sync += [
            value_s1.eq(self.value),
            valid_s1.eq(self.value.valid),
            valid_s2.eq(valid_s1),
            found_s2.slot.eq(value_s1.slot),
            found_s2.first.eq(value_s1.first),
            found_s2.score.eq(read.data),
            found_s2.v_scale.eq(value_s1.v_scale),
            found_s2.ref.eq(reference.o.ref),
            found_s2.pv_ref.eq(reference.o.pv_ref),
        ]
        m.d.comb += [
            probability.i.eq(found_s2),
            probability.i.valid.eq(valid_s2),
            self.p.eq(probability.p),
        ]

        return m
