"""Row state to results: O = o / l and LSE = m + log2(l), as float32 bits."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moska.golden.formats import (
    L_STATE_WIDTH,
    LOG2_FRAC,
    M_WIDTH,
    O_EXP_WIDTH,
    O_STATE_WIDTH,
    P_WIDTH,
    RECIPROCAL_BITS,
    STATE_GUARD,
)
from moska.golden.tables import LOG2_STEPS, LOG2_TERM_FRAC, log2_terms
from moska.hw.fp32 import (
    FIELD_MAX,
    SIGNIFICAND_BITS,
    Fp32Encoder,
    Fp32Packer,
    Normaliser,
    encoder_latency,
    normaliser_latency,
)
from moska.hw.state import RowMeta
from moska.hw.stream import RegisterSlice

FIELD_WIDTH = O_EXP_WIDTH + 1  # exponent field of O before overflow is looked at
WHOLE_WIDTH = M_WIDTH + 1  # integer part of LSE
FRACTION_WIDTH = LOG2_FRAC + 1  # 0..1 inclusive
LSE_MAGNITUDE_WIDTH = WHOLE_WIDTH - 1 + LOG2_FRAC
LSE_EXPONENT_WIDTH = 9
# Factors of 17 and 10 bits: their products fit the multipliers of every FPGA family.
LOW_BITS = 17
HIGH_BITS = RECIPROCAL_BITS - LOW_BITS


class RowScale(data.Struct):
    """What the elements of a row have in common: ``o * reciprocal``, and the exponent field.

    ``field`` is the float32 exponent field of an element whose leading one is bit 0 and whose
    normalised product is below ``2**53``; ``reciprocal`` is 0 for a row without tokens.
    """

    reciprocal: RECIPROCAL_BITS
    field: signed(FIELD_WIDTH)


class Quotient(data.Struct):
    """Reciprocal and fraction of the logarithm of a normalised l."""

    reciprocal: RECIPROCAL_BITS
    log2: FRACTION_WIDTH


class ReciprocalLog2(wiring.Component):
    """``floor((2**65 - 1) / l)`` and ``log2(l / 2**38)`` of a normalised l, one step each a cycle.

    Golden model: :func:`moska.golden.finish.reciprocal` (restoring division, one bit a cycle) and
    :func:`moska.golden.finish.log2_fraction` (one factor a cycle). ``o.valid`` rises ``latency``
    cycles after the transfer on ``i``; the next transfer can be in the cycle of the one on ``o``.

    Members
    -------
    i : :py:`In(stream.Signature(39))`
        highest bit set; otherwise the result is unspecified
    o : :py:`Out(stream.Signature(Quotient))`

    """

    latency = RECIPROCAL_BITS

    i: In(stream.Signature(L_STATE_WIDTH))
    o: Out(stream.Signature(Quotient))

    def elaborate(self, platform):
        m = Module()

        step = Signal(range(1, RECIPROCAL_BITS + 1))
        load = Signal()

        # Division. The numerator is all ones: a step shifts a one into the remainder. The first
        # quotient bit is always 1, so the load does that step: 2**39 - 1 - l is the complement.
        divisor = Signal(L_STATE_WIDTH, reset_less=True)
        remainder = Signal(L_STATE_WIDTH, reset_less=True)
        quotient = Signal(RECIPROCAL_BITS, reset_less=True)
        doubled = Signal(L_STATE_WIDTH + 1)
        rest = Signal(signed(L_STATE_WIDTH + 2))
        m.d.comb += [doubled.eq(Cat(1, remainder)), rest.eq(doubled - divisor)]

        # Logarithm: z * (1 + 2**-step) when that stays below 2; unlogged counts down from log2(2).
        z = Signal(LOG2_TERM_FRAC + 1, reset_less=True)
        product = Signal(LOG2_TERM_FRAC + 2)
        unlogged = Signal(signed(LOG2_TERM_FRAC + 2), reset_less=True)
        term = Signal(LOG2_TERM_FRAC, reset_less=True)  # of this step, read one cycle ahead
        # The division takes longer; the terms of its last steps are 0.
        terms = [int(x) for x in log2_terms()] + [0] * (RECIPROCAL_BITS - LOG2_STEPS)
        rom = Array(Const(x, LOG2_TERM_FRAC) for x in terms)
        m.d.comb += product.eq(z + (z >> step))

        # The sum of the terms may pass 1 by their roundings.
        rounded = Signal(FRACTION_WIDTH + 1)
        drop = LOG2_TERM_FRAC - LOG2_FRAC
        m.d.comb += [
            rounded.eq(unlogged[drop - 1 : LOG2_TERM_FRAC + 1] + 1),
            self.o.payload.log2.eq(Mux(unlogged < 0, 0, rounded[1:])),
            self.o.payload.reciprocal.eq(quotient),
        ]

        with m.If(load):
            m.d.sync += [
                divisor.eq(self.i.payload),
                remainder.eq(~self.i.payload),
                quotient.eq(1),
                z.eq(self.i.payload[L_STATE_WIDTH - 1 - LOG2_TERM_FRAC :]),
                unlogged.eq(1 << LOG2_TERM_FRAC),
                term.eq(rom[0]),
            ]
        with m.Elif(~self.o.valid):
            m.d.sync += [
                remainder.eq(Mux(rest < 0, doubled, rest)),
                quotient.eq(Cat(rest >= 0, quotient)),
                term.eq(rom[step]),
            ]
            with m.If(~product[-1]):
                m.d.sync += [z.eq(product), unlogged.eq(unlogged - term)]

        with m.FSM(name="ctrl"):
            with m.State("WAIT"):
                m.d.comb += [self.i.ready.eq(1), load.eq(self.i.valid)]
                with m.If(load):
                    m.d.sync += step.eq(1)
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.sync += step.eq(step + 1)
                with m.If(step == RECIPROCAL_BITS - 1):
                    m.next = "DELIVER"
            with m.State("DELIVER"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.i.ready.eq(self.o.ready),
                    load.eq(self.i.valid & self.o.ready),
                ]
                with m.If(load):
                    m.d.sync += step.eq(1)
                    m.next = "DIVIDE"
                with m.Elif(self.o.ready):
                    m.next = "WAIT"
        return m


class LseEncoder(wiring.Component):
    """``m - 19 + top + log2`` as float32 bits; minus infinity for a row without tokens.

    Golden model: the second part of :func:`moska.golden.finish.finish`. Latency ``latency`` cycles,
    one result a cycle; all registers wait while ``o`` is stalled.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout({"empty": 1, "whole": signed(14), "log2": 25})))`
        ``whole`` is ``m - 19 + top``; ``log2`` has 24 fraction bits
    o : :py:`Out(stream.Signature(32))`

    """

    latency = 3 + encoder_latency(LSE_MAGNITUDE_WIDTH)
    layout = data.StructLayout({"empty": 1, "whole": signed(WHOLE_WIDTH), "log2": FRACTION_WIDTH})

    def __init__(self):
        super().__init__({"i": In(stream.Signature(self.layout)), "o": Out(stream.Signature(32))})

    def elaborate(self, platform):
        m = Module()

        m.submodules.encoder = encoder = Fp32Encoder(
            width=LSE_MAGNITUDE_WIDTH, exponent_width=LSE_EXPONENT_WIDTH
        )

        advance = Signal()
        valid = Signal(self.latency)  # bit i: stage i + 1
        m.d.comb += [
            self.o.valid.eq(valid[-1]),
            self.o.payload.eq(encoder.o),
            advance.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(advance),
            encoder.advance.eq(advance),
        ]

        row_s1 = Signal(self.layout, reset_less=True)
        empty_s2 = Signal(reset_less=True)
        lse_s2 = Signal(signed(LSE_MAGNITUDE_WIDTH + 1), reset_less=True)
        magnitude_s3 = Signal(encoder.i.shape(), reset_less=True)
        with m.If(advance):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid)),
                row_s1.eq(self.i.payload),
                empty_s2.eq(row_s1.empty),
                lse_s2.eq((row_s1.whole << LOG2_FRAC) + row_s1.log2),
                magnitude_s3.negative.eq(empty_s2 | (lse_s2 < 0)),
                magnitude_s3.exponent.eq(-LOG2_FRAC),
                magnitude_s3.magnitude.eq(Mux(lse_s2 < 0, -lse_s2, lse_s2)),
            ]
            # Any magnitude with this exponent overflows to infinity.
            with m.If(empty_s2):
                m.d.sync += [magnitude_s3.exponent.eq(FIELD_MAX), magnitude_s3.magnitude.eq(1)]
        m.d.comb += encoder.i.eq(magnitude_s3)
        return m


class RowScaler(wiring.Component):
    """Row metadata to the common factor of its elements, and to its LSE.

    Golden model: :func:`moska.golden.finish.finish`. Rows go to ``n_dividers`` dividers in turn and
    leave in the same order, ``n_dividers`` rows in ``ReciprocalLog2.latency`` cycles. l is
    normalised while the rows before are in the dividers. ``scale.valid`` rises ``latency`` cycles
    after the transfer on ``row`` when a divider is free; a row leaves its divider to both outputs
    in the same cycle.

    Parameters
    ----------
    n_dividers : int
        at least 1

    Members
    -------
    row : :py:`In(stream.Signature(RowMeta))`
    scale : :py:`Out(stream.Signature(RowScale))`
    lse : :py:`Out(stream.Signature(32))`
        valid ``LseEncoder.latency`` cycles after the transfer on ``scale``

    """

    latency = normaliser_latency(L_STATE_WIDTH) + ReciprocalLog2.latency

    def __init__(self, *, n_dividers=1):
        if n_dividers < 1:
            raise ValueError(f"n_dividers must be at least 1, not {n_dividers!r}")
        self.n_dividers = n_dividers
        super().__init__(
            {
                "row": In(stream.Signature(RowMeta)),
                "scale": Out(stream.Signature(RowScale)),
                "lse": Out(stream.Signature(32)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.normaliser = normaliser = Normaliser(width=L_STATE_WIDTH)
        m.submodules.encoder = encoder = LseEncoder()
        connect(m, encoder=encoder.o, lse=flipped(self.lse))

        # Normalised rows wait for their divider; m and e travel with them.
        advance = Signal()
        valid = Signal(normaliser.latency)
        accepted = Signal()  # the divider whose turn it is takes the row
        m.d.comb += [
            advance.eq(~valid[-1] | accepted),
            self.row.ready.eq(advance),
            normaliser.advance.eq(advance),
            normaliser.magnitude.eq(self.row.payload.l),
        ]
        row_m, row_e = self.row.payload.m, self.row.payload.e
        with m.If(advance):
            m.d.sync += valid.eq(Cat(self.row.valid, valid))
        for stage in range(1, normaliser.latency + 1):
            m_s = Signal(signed(M_WIDTH), name=f"m_s{stage}", reset_less=True)
            e_s = Signal(signed(O_EXP_WIDTH), name=f"e_s{stage}", reset_less=True)
            with m.If(advance):
                m.d.sync += [m_s.eq(row_m), e_s.eq(row_e)]
            row_m, row_e = m_s, e_s

        turn = range(max(self.n_dividers, 2))
        turn_in, turn_out = Signal(turn), Signal(turn)
        delivered = Signal()
        for index in range(self.n_dividers):
            m.submodules[f"divider_{index}"] = divider = ReciprocalLog2()
            # Of the row in the divider.
            empty = Signal(name=f"empty_{index}", reset_less=True)
            field = Signal(signed(FIELD_WIDTH), name=f"field_{index}", reset_less=True)
            whole = Signal(signed(WHOLE_WIDTH), name=f"whole_{index}", reset_less=True)
            m.d.comb += divider.i.payload.eq(normaliser.normal)
            with m.If(turn_in == index):
                m.d.comb += [
                    divider.i.valid.eq(valid[-1]),
                    accepted.eq(valid[-1] & divider.i.ready),
                ]
            with m.If(divider.i.valid & divider.i.ready):
                m.d.sync += [
                    empty.eq(~normaliser.normal[-1]),
                    field.eq(row_e - row_m - (normaliser.top + 1)),
                    whole.eq(row_m + normaliser.top - (P_WIDTH + STATE_GUARD)),
                ]
            result = divider.o.payload
            with m.If(turn_out == index):
                m.d.comb += [
                    # A factor of 0 makes the elements +0.
                    self.scale.payload.reciprocal.eq(Mux(empty, 0, result.reciprocal)),
                    self.scale.payload.field.eq(field),
                    encoder.i.payload.empty.eq(empty),
                    encoder.i.payload.whole.eq(whole),
                    encoder.i.payload.log2.eq(result.log2),
                    self.scale.valid.eq(divider.o.valid & encoder.i.ready),
                    encoder.i.valid.eq(divider.o.valid & self.scale.ready),
                    divider.o.ready.eq(self.scale.ready & encoder.i.ready),
                    delivered.eq(divider.o.valid & divider.o.ready),
                ]

        last = self.n_dividers - 1
        with m.If(accepted):
            m.d.sync += turn_in.eq(Mux(turn_in == last, 0, turn_in + 1))
        with m.If(delivered):
            m.d.sync += turn_out.eq(Mux(turn_out == last, 0, turn_out + 1))
        return m


class ElementLane(wiring.Component):
    """One lane of :class:`ElementScaler`: a pipeline clocked by ``advance``.

    Members
    -------
    advance : :py:`In(1)`
    o : :py:`In(signed(48))`
    row : :py:`In(RowScale)`
        of the element taken ``1 + normaliser_latency(48)`` advances before
    result : :py:`Out(32)`
        ``ElementScaler.latency`` advances after ``o``

    """

    advance: In(1)
    o: In(signed(O_STATE_WIDTH))
    row: In(RowScale)
    result: Out(32)

    def elaborate(self, platform):
        m = Module()

        m.submodules.normaliser = normaliser = Normaliser(width=O_STATE_WIDTH)
        m.submodules.packer = packer = Fp32Packer(exponent_width=FIELD_WIDTH + 1)

        magnitude_s1 = Signal(O_STATE_WIDTH, reset_less=True)
        m.d.comb += [
            normaliser.advance.eq(self.advance),
            normaliser.magnitude.eq(magnitude_s1),
            packer.advance.eq(self.advance),
            self.result.eq(packer.o),
        ]
        with m.If(self.advance):
            m.d.sync += magnitude_s1.eq(Mux(self.o < 0, -self.o, self.o))

        n_product = normaliser.latency + 4  # stage whose register holds the product
        negative = Signal(n_product, reset_less=True)
        with m.If(self.advance):
            m.d.sync += negative.eq(Cat(self.o < 0, negative))

        # Multiplication from four parts; the outer two do not overlap.
        x = normaliser.normal[O_STATE_WIDTH - RECIPROCAL_BITS :]
        r = self.row.reciprocal
        x_low, x_high, r_low, r_high = x[:LOW_BITS], x[LOW_BITS:], r[:LOW_BITS], r[LOW_BITS:]
        low = Signal(2 * LOW_BITS, reset_less=True)
        low_high = Signal(RECIPROCAL_BITS, reset_less=True)
        high_low = Signal(RECIPROCAL_BITS, reset_less=True)
        high = Signal(2 * HIGH_BITS, reset_less=True)
        outer = Signal(2 * RECIPROCAL_BITS, reset_less=True)
        cross = Signal(RECIPROCAL_BITS + 1, reset_less=True)
        product = Signal(2 * RECIPROCAL_BITS, reset_less=True)
        field_s5 = Signal(signed(FIELD_WIDTH), reset_less=True)
        field_s6 = Signal(signed(FIELD_WIDTH), reset_less=True)
        field_s7 = Signal(signed(FIELD_WIDTH), reset_less=True)
        with m.If(self.advance):
            m.d.sync += [
                low.eq(x_low * r_low),
                low_high.eq(x_low * r_high),
                high_low.eq(x_high * r_low),
                high.eq(x_high * r_high),
                field_s5.eq(self.row.field + normaliser.top),
                outer.eq(Cat(low, high)),
                cross.eq(low_high + high_low),
                field_s6.eq(field_s5),
                product.eq(outer + (cross << LOW_BITS)),
                field_s7.eq(field_s6),
            ]

        # The product of two normalised numbers has its highest bit in one of two places.
        carry = product[-1]
        m.d.comb += [
            packer.i.negative.eq(negative[-1]),
            packer.i.field.eq(field_s7 + carry),
            packer.i.significand.eq(
                Mux(
                    carry, product[-SIGNIFICAND_BITS:], product[-SIGNIFICAND_BITS - 1 : -1]
                )
            ),
        ]
        return m


class ElementScaler(wiring.Component):
    """Elements of o times the factor of their row, as float32 bits: one word a cycle.

    Golden model: :func:`moska.golden.finish.finish`. A word leaves ``latency`` cycles after its
    transfer on ``o``; all registers wait while ``result`` is stalled. The first word of a row is
    taken one cycle after the transfer of its factor at the earliest; the factor of the next row can
    be taken with the last word. Four multipliers of up to 17 x 17 bits a lane.

    Parameters
    ----------
    lanes : int
        elements of a word, at least 1
    n_words : int
        words of a row, at least 1

    Members
    -------
    scale : :py:`In(stream.Signature(RowScale))`
    o : :py:`In(stream.Signature(ArrayLayout(signed(48), lanes)))`
    result : :py:`Out(stream.Signature(ArrayLayout(32, lanes)))`

    """

    latency = 1 + normaliser_latency(O_STATE_WIDTH) + 3 + Fp32Packer.latency

    def __init__(self, *, lanes, n_words):
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes!r}")
        if n_words < 1:
            raise ValueError(f"n_words must be at least 1, not {n_words!r}")
        self.lanes = lanes
        self.n_words = n_words
        super().__init__(
            {
                "scale": In(stream.Signature(RowScale)),
                "o": In(stream.Signature(data.ArrayLayout(signed(O_STATE_WIDTH), lanes))),
                "result": Out(stream.Signature(data.ArrayLayout(32, lanes))),
            }
        )

    def elaborate(self, platform):
        m = Module()

        advance = Signal()
        valid = Signal(self.latency)  # bit i: stage i + 1
        m.d.comb += [
            self.result.valid.eq(valid[-1]),
            advance.eq(~self.result.valid | self.result.ready),
        ]

        # The row whose words are taken, and its words left after this one.
        scale = Signal(RowScale, reset_less=True)
        open_row = Signal()
        left = Signal(range(self.n_words))
        taken = Signal()
        last = Signal()
        m.d.comb += [
            self.o.ready.eq(open_row & advance),
            taken.eq(self.o.valid & self.o.ready),
            last.eq(taken & (left == 0)),
            self.scale.ready.eq(~open_row | last),
        ]
        with m.If(taken):
            m.d.sync += left.eq(left - 1)
        with m.If(self.scale.ready):
            m.d.sync += [
                open_row.eq(self.scale.valid),
                scale.eq(self.scale.payload),
                left.eq(self.n_words - 1),
            ]
        with m.If(advance):
            m.d.sync += valid.eq(Cat(taken, valid))

        # The factor travels with the words, up to the multipliers.
        row = scale
        for stage in range(1, 2 + normaliser_latency(O_STATE_WIDTH)):
            row_s = Signal(RowScale, name=f"row_s{stage}", reset_less=True)
            with m.If(advance):
                m.d.sync += row_s.eq(row)
            row = row_s

        for lane in range(self.lanes):
            m.submodules[f"lane_{lane}"] = element = ElementLane()
            m.d.comb += [
                element.advance.eq(advance),
                element.o.eq(self.o.payload[lane]),
                element.row.eq(row),
                self.result.payload[lane].eq(element.result),
            ]
        return m


class Finisher(wiring.Component):
    """Results of rows, in row order: O = o / l by words, and LSE = m + log2(l).

    Golden model: :func:`moska.golden.finish.finish`, bit for bit. A row with l = 0 gives words of
    +0 and an LSE of minus infinity.

    One word a cycle while nothing stalls and rows come ``first_word`` cycles before their first
    word: there are as many dividers as rows pass during one division, and divisions run during the
    words of the rows before. Words of o may come before, with or after their row. Their results
    leave ``latency`` cycles after them; the first word of a row is taken ``first_word`` cycles
    after the row at the earliest. LSE is valid ``lse_latency`` cycles after the row when a divider
    is free. An LSE not taken delays the words of the following rows.

    Parameters
    ----------
    head_dim : int
        elements of a row, a multiple of ``lanes``
    lanes : int
        elements of a word, at least 1; four multipliers each

    Members
    -------
    row : :py:`In(stream.Signature(RowMeta))`
    o : :py:`In(stream.Signature(ArrayLayout(signed(48), lanes)))`
        ``head_dim / lanes`` words a row
    result : :py:`Out(stream.Signature(ArrayLayout(32, lanes)))`
    lse : :py:`Out(stream.Signature(32))`

    """

    latency = ElementScaler.latency
    first_word = RowScaler.latency + RegisterSlice.latency + 1
    lse_latency = RowScaler.latency + LseEncoder.latency

    def __init__(self, *, head_dim, lanes):
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes!r}")
        if head_dim < 1 or head_dim % lanes:
            raise ValueError(
                f"head_dim must be a positive multiple of lanes ({lanes}), not {head_dim!r}"
            )
        self.head_dim = head_dim
        self.lanes = lanes
        self.n_dividers = -(-ReciprocalLog2.latency // (head_dim // lanes))
        super().__init__(
            {
                "row": In(stream.Signature(RowMeta)),
                "o": In(stream.Signature(data.ArrayLayout(signed(O_STATE_WIDTH), lanes))),
                "result": Out(stream.Signature(data.ArrayLayout(32, lanes))),
                "lse": Out(stream.Signature(32)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.rows = rows = RowScaler(n_dividers=self.n_dividers)
        m.submodules.elements = elements = ElementScaler(
            lanes=self.lanes, n_words=self.head_dim // self.lanes
        )
        # Words that wait stop the elements at once, and the dividers a cycle later.
        m.submodules.factors = factors = RegisterSlice(RowScale)
        connect(m, rows=rows.scale, factors=factors.i)
        connect(m, factors=factors.o, elements=elements.scale)
        connect(m, row=flipped(self.row), rows=rows.row)
        connect(m, o=flipped(self.o), elements=elements.o)
        connect(m, elements=elements.result, result=flipped(self.result))
        connect(m, rows=rows.lse, lse=flipped(self.lse))
        return m
