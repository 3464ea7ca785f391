# amaranth: UnusedElaboratable=no
"""ChunkKey against the golden reduction of representative scores to keys."""

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.formats import KEY_FRAC, KEY_WIDTH, SCORE_FRAC, SCORE_WIDTH, saturate
from moska.golden.router import Router, chunk_keys
from moska.hw.router.key import ChunkKey
from moska.sim.bench import simulate

LOW, HIGH = -(1 << (SCORE_WIDTH - 1)), (1 << (SCORE_WIDTH - 1)) - 1


def keys_of(scores, pairs):
    """Keys of every slot and chunk, from scores (slots, chunks, representative rows)."""
    slots, chunks, n_rep = scores.shape
    if pairs:
        group = scores.reshape(slots, chunks, n_rep // 2, 2).sum(axis=3)
    else:
        group = scores
    return saturate(group.max(axis=2) >> (SCORE_FRAC - KEY_FRAC), KEY_WIDTH)


def run(dut, scores, pairs, rng, idle):
    """Feed every slot's rows in order, slots interleaved as in the array; return (cycles, keys)."""
    slots, chunks, n_rep = scores.shape
    sent, seen = {}, {}

    async def feed(ctx):
        cycle = 0

        async def tick():
            nonlocal cycle
            _, _, valid, slot, key = await ctx.tick().sample(
                dut.key.valid, dut.key.slot, dut.key.key
            )
            if valid:
                seen.setdefault(slot, []).append((cycle, key))
            cycle += 1

        ctx.set(dut.pairs, pairs)
        for chunk in range(chunks):
            for rep in range(n_rep):
                for slot in range(slots):
                    while rng.random() < idle:
                        # Fields of a bubble carry noise that must not be used.
                        noise = {"valid": 0, "slot": slot, "score": 5, "first": 1, "last": 1}
                        ctx.set(dut.rep, noise)
                        await tick()
                    ctx.set(
                        dut.rep,
                        {
                            "valid": 1,
                            "slot": slot,
                            "score": int(scores[slot, chunk, rep]),
                            "first": int(rep == 0),
                            "last": int(rep == n_rep - 1),
                        },
                    )
                    if rep == n_rep - 1:
                        sent.setdefault(slot, []).append(cycle)
                    await tick()
        ctx.set(dut.rep.valid, 0)
        for _ in range(dut.latency + 2):
            await tick()

    simulate(dut, feed)
    return sent, seen


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize(("pairs", "n_rep"), [(0, 1), (0, 3), (1, 2), (1, 6)])
def test_matches_golden(rows, pairs, n_rep):
    seed = 1000 * rows + 10 * n_rep + pairs
    for idle in (0.0, 0.4):
        rng = np.random.default_rng(seed)
        scores = rng.integers(LOW, HIGH, (rows, 24, n_rep), endpoint=True)
        scores[:, 8:16] = rng.integers(-3000, 3000, (rows, 8, n_rep))
        scores[:, 20] = LOW
        scores[:, 21] = HIGH
        scores[:, 22, 0] = LOW
        dut = ChunkKey(rows=rows)
        sent, seen = run(dut, scores, pairs, rng, idle)
        expected = keys_of(scores, pairs)
        for slot in range(rows):
            want = [
                (cycle + dut.latency, int(key))
                for cycle, key in zip(sent[slot], expected[slot], strict=True)
            ]
            assert seen.get(slot) == want, f"seed {seed}, idle {idle}, slot {slot}"


@pytest.mark.parametrize("kind", list(Router))
def test_reduction_is_that_of_chunk_keys(kind):
    """The reduction this file compares with is the one inside golden chunk_keys."""
    from moska.golden.attention import scores as golden_scores

    rng = np.random.default_rng(7)
    q = rng.integers(-32768, 32767, (4, 16), endpoint=True).astype(np.int16)
    q_scale = rng.integers(110 << 7, 124 << 7, 4).astype(np.uint16)
    rep = rng.integers(-128, 127, (9, 2, 16), endpoint=True).astype(np.int8)
    rep_scale = rng.integers(110 << 7, 124 << 7, (9, 2)).astype(np.uint16)
    phi = (np.maximum(q, 0), np.minimum(q, 0)) if kind is Router.MINMAX else (q, q)
    flat = np.stack(
        [golden_scores(phi[i], q_scale, rep[:, i], rep_scale[:, i]) for i in range(2)], axis=2
    )
    expected = chunk_keys(q, q_scale, rep, rep_scale, kind)
    assert len(np.unique(expected)) > 10
    assert np.array_equal(keys_of(flat, kind is Router.MINMAX), expected)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_converts(rows):
    assert "attribute" in rtlil.convert(ChunkKey(rows=rows), emit_src=False)


def test_rejects_rows():
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        ChunkKey(rows=0)
