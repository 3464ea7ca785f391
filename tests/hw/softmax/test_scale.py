# amaranth: UnusedElaboratable=no
"""ScoreScale against golden.attention.scores: every exponent sum, edges, random numbers."""

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.attention import exact_matmul, scores
from moska.golden.formats import SCORE_WIDTH
from moska.hw.softmax.scale import ScoreScale
from moska.sim.bench import simulate

LOW, HIGH = -(1 << (SCORE_WIDTH - 1)), (1 << (SCORE_WIDTH - 1)) - 1


def vectors(rng, head_dim, kind):
    """Make a query and a key whose dot product is of the wanted kind."""
    q = np.zeros(head_dim, dtype=np.int16)
    k = np.zeros(head_dim, dtype=np.int8)
    if kind == "most":
        q[:], k[:] = -32768, -128
    elif kind == "least":
        q[:], k[:] = -32768, 127
    elif kind == "power":
        q[0], k[0] = rng.choice([-1, 1]) << rng.integers(0, 14), 1 << rng.integers(0, 7)
    elif kind == "carry":  # 2**24 - 1: 24 ones, whose rounding carries into a bit too many
        q[:6], k[:6] = [32767, 32767, 32767, 32767, 1036, 7], [127, 127, 127, 127, 127, 1]
    elif kind == "small":
        q[0], k[0] = rng.integers(-4, 5), 1
    else:
        reach = 1 << rng.integers(1, 16)
        q[:] = rng.integers(-reach, reach, head_dim)
        k[:] = rng.integers(-128, 128, head_dim)
    return q, k


def split_exponents(rng, total):
    """Two exponents of 0..255 with this sum."""
    q_exponent = rng.integers(max(0, total - 255), min(255, total) + 1)
    return int(q_exponent), int(total - q_exponent)


def scale_bits(rng, exponent, mantissa):
    """Scale with a random sign bit, which has no meaning."""
    return int(rng.integers(0, 2)) << 15 | exponent << 7 | int(mantissa)


def make_cases(rng, head_dim):
    """List of (dot, q_scale, k_scale, score)."""
    kinds = ["most", "least", "power", "power", "small", "small", "random", "random"]
    plan = [(kind, total) for total in range(511) for kind in kinds]
    # Where scores of ordinary size lie: the exponents at which they neither vanish nor saturate.
    plan += [("random", int(rng.integers(218, 250))) for _ in range(3000)]
    # Every third has mantissas of one; with them 24 ones at 241 round to one above the largest.
    plan = [("carry", 241), ("carry", 241), ("carry", 241), ("carry", 240), *plan]
    cases = []
    for index, (kind, total) in enumerate(plan):
        q, k = vectors(rng, head_dim, kind)
        exponents = split_exponents(rng, total)
        # Mantissas of one (128) make exact halves, the others do not.
        mantissas = (0, 0) if index % 3 == 0 else rng.integers(0, 128, 2)
        q_scale, k_scale = (
            scale_bits(rng, exponent, mantissa)
            for exponent, mantissa in zip(exponents, mantissas, strict=True)
        )
        score = scores(q[None], np.array([q_scale], np.uint16), k[None],
                       np.array([k_scale], np.uint16))  # fmt: skip
        dot = exact_matmul(q[None], k[:, None])
        cases.append((int(dot[0, 0]), q_scale, k_scale, int(score[0, 0])))
    return cases


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_scores(head_dim):
    dut = ScoreScale(head_dim=head_dim)
    cases = make_cases(np.random.default_rng(head_dim), head_dim)
    results = [score for *_, score in cases]
    assert results.count(LOW) > 100, "no saturation below"
    assert results.count(HIGH) > 100, "no saturation above"
    assert len(set(results)) > 1500, "hardly any score between the limits"

    async def bench(ctx):
        for index in range(len(cases) + dut.latency):
            if index < len(cases):
                dot, q_scale, k_scale, _ = cases[index]
                ctx.set(dut.dot, dot)
                ctx.set(dut.q_scale, q_scale)
                ctx.set(dut.k_scale, k_scale)
            if index >= dut.latency:
                case = cases[index - dut.latency]
                actual = ctx.get(dut.score)
                assert actual == case[3], (
                    f"seed {head_dim}, case {index - dut.latency} {case}: got {actual}"
                )
            await ctx.tick()

    simulate(dut, bench, cycles=10_000)


def test_rejects_head_dim():
    with pytest.raises(ValueError, match="head_dim must be at least 1, not 0"):
        ScoreScale(head_dim=0)


def test_convert():
    assert rtlil.convert(ScoreScale(head_dim=64))
