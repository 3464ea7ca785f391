# amaranth: UnusedElaboratable=no
"""Exp2 against the golden model, over every fraction; RoundShift over its edges."""

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.formats import round_shift
from moska.golden.softmax import exp2_mantissa
from moska.hw.softmax.exp2 import Exp2
from moska.hw.softmax.shift import RoundShift
from moska.sim.bench import simulate


def pipelined(dut, drive, inputs, output, *, cycles):
    """Feed one input a cycle; return the outputs that appear ``dut.latency`` cycles later."""
    outputs = []

    async def bench(ctx):
        for index in range(len(inputs) + dut.latency):
            if index < len(inputs):
                drive(ctx, inputs[index])
            if index >= dut.latency:
                outputs.append(ctx.get(output))
            await ctx.tick()

    simulate(dut, bench, cycles=cycles)
    return outputs


def test_exp2_every_fraction():
    dut = Exp2()
    fractions = np.random.default_rng(11).permutation(4096)  # any order: no state between them
    actual = pipelined(
        dut,
        lambda ctx, fraction: ctx.set(dut.fraction, int(fraction)),
        fractions,
        dut.mantissa,
        cycles=5000,
    )
    expected = exp2_mantissa(fractions.astype(np.int64))
    for fraction, want, got in zip(fractions, expected, actual, strict=True):
        assert got == want, f"seed 11, fraction {fraction}: expected {want}, got {got}"


@pytest.mark.parametrize("width", [17, 18])
def test_round_shift(width):
    dut = RoundShift(width=width)
    rng = np.random.default_rng(width)
    top = (1 << width) - 2
    edges = [0, 1, 2, 3, top - 1, top, *(1 << n for n in range(width)), *(
        (1 << n) - 1 for n in range(width)
    )]  # fmt: skip
    values = [*edges, *(int(x) for x in rng.integers(0, top + 1, 40))]
    cases = [(x, shift) for x in values for shift in range(32)]

    def drive(ctx, case):
        ctx.set(dut.x, case[0])
        ctx.set(dut.shift, case[1])

    actual = pipelined(dut, drive, cases, dut.o, cycles=5000)
    for (x, shift), got in zip(cases, actual, strict=True):
        want = int(round_shift(np.int64(x), np.int64(shift + 1)))
        assert got == want, f"seed {width}, {x} >> {shift}: expected {want}, got {got}"


def test_round_shift_rejects_width():
    with pytest.raises(ValueError, match=r"width must be in 2\.\.32, not 1"):
        RoundShift(width=1)


def test_convert():
    assert rtlil.convert(Exp2())
    assert rtlil.convert(RoundShift(width=17))
