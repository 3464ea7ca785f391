# amaranth: UnusedElaboratable=no
"""Normaliser, packer and encoder against the golden float32 conversion, bit for bit."""

import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.formats import leading_one, to_fp32
from moska.hw.fp32 import (
    SIGNIFICAND_BITS,
    Fp32Encoder,
    Fp32Packer,
    Normaliser,
)
from moska.sim.bench import simulate


def run_pipeline(dut, i, items, read, *, stall=0.0, seed=0):
    """Feed ``items``, one an advance; return ``read`` after ``dut.latency`` advances for each."""
    rng = random.Random(seed)
    results = []

    async def bench(ctx):
        for item in [*items, *[items[0]] * dut.latency]:
            ctx.set(i, item)
            ctx.set(dut.advance, 0)
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(dut.advance, 1)
            await ctx.tick()
            results.append(read(ctx))

    simulate(dut, bench, cycles=20 * (len(items) + dut.latency))
    return results[dut.latency - 1 :][: len(items)]


def magnitudes(width, count, seed):
    """Edges of every bit position, then random numbers of random length."""
    rng = random.Random(seed)
    edges = [0, 1, (1 << width) - 1]
    for bit in range(1, width):
        edges += [1 << bit, (1 << bit) - 1, (1 << bit) + 1]
    return edges + [rng.getrandbits(rng.randint(1, width)) for _ in range(count)]


@pytest.mark.parametrize("width", [2, 3, 16, 17, 37, 39, 48, 54])
def test_normaliser_finds_leading_one(width):
    dut = Normaliser(width=width)
    values = magnitudes(width, 100, seed=width)
    out = run_pipeline(
        dut, dut.magnitude, values, lambda ctx: (ctx.get(dut.top), ctx.get(dut.normal)), stall=0.2
    )
    for value, (top, normal) in zip(values, out, strict=True):
        if value == 0:
            assert normal == 0
        else:
            assert top == int(leading_one(np.int64(value)))
            assert normal == value << (width - 1 - top)


def test_packer_rounds_overflows_and_flushes():
    # Every field around the limits, with significands that carry, tie and do neither.
    significands = [
        0,
        1 << 24,
        (1 << 24) + 1,
        (1 << 25) - 1,
        (1 << 25) - 2,
        (1 << 25) - 3,
        0x1555555,
        0x1AAAAAA,
    ]
    fields = [-32768, -300, -2, -1, 0, 1, 2, 127, 252, 253, 254, 255, 256, 300, 32767]
    items = [
        {"negative": negative, "field": field, "significand": significand}
        for negative in (0, 1)
        for field in fields
        for significand in significands
    ]
    rng = random.Random(1)
    items += [
        {
            "negative": rng.getrandbits(1),
            "field": rng.randint(-4, 260),
            "significand": 1 << 24 | rng.getrandbits(24),
        }
        for _ in range(500)
    ]
    dut = Fp32Packer(exponent_width=16)
    out = run_pipeline(dut, dut.i, items, lambda ctx: ctx.get(dut.o), stall=0.1)
    # The highest bit of the significand has weight 2**(field - 127).
    expected = to_fp32(
        np.array([item["negative"] == 1 for item in items]),
        np.array([item["significand"] for item in items], dtype=np.int64),
        np.array([item["field"] for item in items], dtype=np.int64) - 127 - SIGNIFICAND_BITS + 1,
    )
    assert out == expected.tolist()


@pytest.mark.parametrize(
    ("width", "exponent_width"), [(2, 8), (23, 9), (24, 9), (25, 9), (26, 9), (37, 9), (54, 12)]
)
def test_encoder_matches_golden(width, exponent_width):
    rng = random.Random(width)
    values = magnitudes(width, 300, seed=width)
    limit = 1 << (exponent_width - 1)
    near = min(limit, 190)
    exponents = [
        rng.choice([rng.randint(-near, near - 1), -limit, limit - 1, -24]) for _ in values
    ]
    negative = [rng.getrandbits(1) for _ in values]
    dut = Fp32Encoder(width=width, exponent_width=exponent_width)
    items = [
        {"negative": n, "exponent": e, "magnitude": v}
        for n, e, v in zip(negative, exponents, values, strict=True)
    ]
    out = run_pipeline(dut, dut.i, items, lambda ctx: ctx.get(dut.o), stall=0.1, seed=1)
    expected = to_fp32(
        np.array(negative) == 1,
        np.array(values, dtype=np.int64),
        np.array(exponents, dtype=np.int64),
    )
    assert out == expected.tolist()


def test_components_convert():
    for dut in (
        Normaliser(width=48),
        Fp32Packer(exponent_width=16),
        Fp32Encoder(width=37, exponent_width=9),
    ):
        assert "module \\top" in rtlil.convert(dut)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normaliser(width=1), "width must be at least 2, not 1"),
        (lambda: Fp32Packer(exponent_width=9), "exponent_width must be at least 10, not 9"),
        (
            lambda: Fp32Encoder(width=1, exponent_width=9),
            "width must be at least 2, not 1",
        ),
        (
            lambda: Fp32Encoder(width=8, exponent_width=7),
            "exponent_width must be at least 8, not 7",
        ),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
