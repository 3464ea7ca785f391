# amaranth: UnusedElaboratable=no
"""SoftmaxLane against the golden model, both sides at work, with gaps on both."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.attention import exact_matmul, scores
from moska.golden.formats import scale_exponent
from moska.golden.softmax import probabilities, pv_reference, reference, scaled_probabilities
from moska.hw.softmax.lane import SoftmaxLane
from moska.hw.softmax.probability import TokenProbability
from moska.hw.softmax.reference import BlockReference
from moska.sim.bench import simulate

HEAD_DIM = 16


@dataclass
class Token:
    """One key: a token of a block, or a representative."""

    dot: np.ndarray  # (rows,)
    k_scale: int
    score: np.ndarray  # (rows,)
    representative: bool = False
    rep_first: int = 0
    rep_last: int = 0
    v_scale: int = 0
    # Of a token of a block: place, and what the lane must say for each row.
    token: int = 0
    first: int = 0
    last: int = 0
    expected: list = field(default_factory=list)  # of (pv, l, ref, pv_ref)


@dataclass
class Block:
    """Tokens of one block with the representatives among them, and the Q scales of its rows."""

    q_scale: np.ndarray  # (rows,)
    keys: list

    @property
    def tokens(self):
        return [key for key in self.keys if not key.representative]


def scales(rng, exponents):
    """Scales with these exponents, any mantissa and any sign."""
    exponents = np.asarray(exponents)
    bits = exponents << 7 | rng.integers(0, 128, exponents.shape)
    return (bits | rng.integers(0, 2, exponents.shape) << 15).astype(np.uint16)


def make_block(rng, rows, n, kind, n_reps):
    """Random block of ``n`` tokens and ``n_reps`` representatives in random places."""
    q = rng.integers(-32768, 32768, (rows, HEAD_DIM)).astype(np.int16)
    k = rng.integers(-128, 128, (n + n_reps, HEAD_DIM)).astype(np.int8)
    q_exponent = rng.integers(110, 114, rows)
    k_exponent = rng.integers(118, 124, n + n_reps)
    v_exponent = rng.integers(115, 125, n + n_reps)
    if kind == "equal":
        k[:], k_exponent[:] = k[0], k_exponent[0]
    elif kind == "saturated":
        q[:] = -32768
        k[:] = np.where(rng.integers(0, 2, (n + n_reps, 1)) == 1, -128, 127)
        k_exponent[:] = 255
    elif kind == "lowest":
        q[:], k[:], k_exponent[:] = -32768, 127, 255
    elif kind == "flat":
        k_exponent[:] = rng.integers(0, 100, n + n_reps)
    if kind in ("spread", "saturated"):
        v_exponent = rng.choice([0, 1, 100, 127, 254, 255], n + n_reps)
    elif kind == "wide":
        v_exponent = rng.integers(0, 256, n + n_reps)
        k_exponent[:] = rng.integers(112, 130, n + n_reps)
    elif kind == "close":
        k[:] = k[0] + (k[0] < 127) * rng.integers(0, 2, k.shape)
        v_exponent = rng.integers(119, 122, n + n_reps)

    q_scale, k_scale, v_scale = (
        scales(rng, exponents) for exponents in (q_exponent, k_exponent, v_exponent)
    )
    if kind == "equal":
        k_scale[:] = k_scale[0]
    s = scores(q, q_scale, k, k_scale)
    dot = exact_matmul(q, k.T)
    keys = [Token(dot[:, t], int(k_scale[t]), s[:, t]) for t in range(n + n_reps)]
    is_rep = np.zeros(n + n_reps, dtype=bool)
    is_rep[rng.permutation(n + n_reps)[:n_reps]] = True
    for t in np.flatnonzero(is_rep):
        keys[t].representative = True
        keys[t].rep_first, keys[t].rep_last = (int(x) for x in rng.integers(0, 2, 2))

    kept = np.flatnonzero(~is_rep)
    s, v_scale = s[:, kept], v_scale[kept]
    ref = reference(s)
    l_sum = np.cumsum(probabilities(s, ref), axis=-1)
    pv_ref = pv_reference(s, v_scale)
    pv = scaled_probabilities(s, v_scale, pv_ref)
    for index, t in enumerate(kept):
        key = keys[t]
        key.token, key.first, key.last = index, int(index == 0), int(index == n - 1)
        key.v_scale = int(v_scale[index])
        key.expected = [
            tuple(int(x[row]) for x in (pv[:, index], l_sum[:, index], ref, pv_ref))
            for row in range(rows)
        ]
    return Block(q_scale, keys)


class Driver:
    """Plays blocks through a lane and checks every cycle of its outputs.

    A token starts at the earliest ``rows`` cycles after the one before it; ``idle`` is the chance
    that it waits another cycle. The value side takes a block from the cycle after its ``scored``
    on; the score side fills a bank again when the value side has asked for all of it.
    """

    def __init__(self, dut, blocks, *, idle, seed):
        self.dut = dut
        self.blocks = blocks
        self.idle = idle
        self.rng = random.Random(seed)
        self.seed = seed
        self.n_scored = 0
        self.values_sent = 0  # blocks whose last value slot has been presented
        self.answers = {}  # cycle -> what p must show
        self.reps = {}  # cycle -> what rep must show
        self.scored_at = set()
        self.cycle = 0
        self.both = 0  # cycles with a slot on both sides

    def score_slots(self):
        """Yield what the score side presents in each cycle: None, or a tuple."""
        rows = self.dut.rows
        for number, block in enumerate(self.blocks):
            while number - self.values_sent >= self.dut.banks:
                yield None
            for key in block.keys:
                while self.rng.random() < self.idle:
                    yield None
                for slot in range(rows):
                    yield number, key, slot

    def value_slots(self):
        """Yield what the value side presents in each cycle: None, or a tuple."""
        rows = self.dut.rows
        for number, block in enumerate(self.blocks):
            while self.n_scored <= number:
                yield None
            for key in block.tokens:
                while not key.first and self.rng.random() < self.idle:
                    yield None
                for slot in range(rows):
                    if key.last and slot == rows - 1:
                        self.values_sent += 1
                    yield number, key, slot

    def q_writes(self):
        """Yield the Q scale writes: those of the block after the one now in."""
        for number, block in enumerate(self.blocks):
            while self.current < number - 1:
                yield None
            for slot in range(self.dut.rows):
                yield number % 2, slot, int(block.q_scale[slot])
            self.q_loaded = number

    async def bench(self, ctx):
        dut = self.dut
        self.current, self.q_loaded = -1, -1
        q_writes, score_slots, value_slots = self.q_writes(), self.score_slots(), self.value_slots()
        upcoming = next(score_slots)
        done = object()
        drain = 0
        while drain < dut.score_latency + dut.p_latency + 2:
            value = next(value_slots, done)
            q_write = next(q_writes, done)
            score = upcoming
            # A block waits for its Q scales; a write is seen by slots of the next cycle.
            if score not in (None, done) and score[0] > self.q_loaded:
                score = None
            else:
                upcoming = next(score_slots, done)
            drain = drain + 1 if value is done and score is done else 0
            score = None if score is done else score
            value = None if value is done else value
            q_write = None if q_write is done else q_write

            self.both += bool(score and value)
            ctx.set(dut.q_scale.valid, int(q_write is not None))
            if q_write is not None:
                bank, slot, scale = q_write
                ctx.set(dut.q_scale, {"valid": 1, "bank": bank, "slot": slot, "scale": scale})
            self.present_score(ctx, score)
            self.present_value(ctx, value)
            await self.check(ctx)
            if score is not None:
                self.current = max(self.current, score[0])
        assert self.n_scored == len(self.blocks)
        assert not self.answers
        assert not self.reps

    def present_score(self, ctx, slot_of):
        """Present a slot with its dot product, or noise that is not valid."""
        dut, rng = self.dut, self.rng
        if slot_of is None:
            ctx.set(dut.dot, {"valid": 0, "value": rng.randrange(-(1 << 20), 1 << 20)})
            ctx.set(dut.score.valid, 0)
            ctx.set(dut.score.first, rng.randrange(2))
            ctx.set(dut.score.last, rng.randrange(2))
            return
        number, key, slot = slot_of
        ctx.set(dut.dot, {"valid": 1, "value": int(key.dot[slot])})
        rep = int(key.representative)
        # What has no meaning for this kind of key is noise.
        ctx.set(
            dut.score,
            {
                "valid": 1,
                "slot": slot,
                "first": rng.randrange(2) if rep else key.first,
                "last": rng.randrange(2) if rep else key.last,
                "bank": number % dut.banks,
                "token": rng.randrange(32) if rep else key.token,
                "q_bank": number % 2,
                "k_scale": key.k_scale,
                "v_exponent": rng.randrange(256) if rep else int(scale_exponent(key.v_scale)),
                "representative": rep,
                "rep_first": key.rep_first if rep else rng.randrange(2),
                "rep_last": key.rep_last if rep else rng.randrange(2),
            },
        )
        if rep:
            self.reps[self.cycle + dut.rep_latency] = (
                slot, int(key.score[slot]), key.rep_first, key.rep_last
            )  # fmt: skip
        elif key.last and slot == 0:
            self.scored_at.add(self.cycle + dut.score_latency)

    def present_value(self, ctx, slot_of):
        """Present a value slot, or noise that is not valid."""
        dut, rng = self.dut, self.rng
        if slot_of is None:
            ctx.set(dut.value.valid, 0)
            ctx.set(dut.value.first, rng.randrange(2))
            return
        number, key, slot = slot_of
        ctx.set(
            dut.value,
            {
                "valid": 1,
                "slot": slot,
                "first": key.first,
                "last": key.last,
                "bank": number % dut.banks,
                "token": key.token,
                "v_scale": key.v_scale,
            },
        )
        self.answers[self.cycle + dut.p_latency] = (number, key, slot)

    async def check(self, ctx):
        """End the cycle and check what the lane said in it."""
        dut, p, rep = self.dut, self.dut.p, self.dut.rep
        _, _, scored, rep_valid, *rest = await ctx.tick().sample(
            dut.scored, rep.valid, rep.slot, rep.score, rep.first, rep.last,
            p.pv, p.l, p.ref, p.pv_ref,
        )  # fmt: skip
        where = f"seed {self.seed}, cycle {self.cycle}"
        assert scored == (self.cycle in self.scored_at), f"{where}: scored is {scored}"
        self.n_scored += scored
        expected_rep = self.reps.pop(self.cycle, None)
        assert rep_valid == (expected_rep is not None), f"{where}: rep.valid is {rep_valid}"
        if expected_rep is not None:
            assert tuple(rest[:4]) == expected_rep, (
                f"{where}: rep {tuple(rest[:4])}, expected {expected_rep}"
            )
        if self.cycle in self.answers:
            number, key, slot = self.answers.pop(self.cycle)
            assert tuple(rest[4:]) == key.expected[slot], (
                f"{where}, block {number}, token {key.token}, slot {slot}: (pv, l, ref, pv_ref) "
                f"{tuple(rest[4:])}, expected {key.expected[slot]}"
            )
        self.cycle += 1


KINDS = ["plain", "equal", "saturated", "lowest", "flat", "spread", "wide", "close"]


@pytest.mark.parametrize("idle", [0.0, 0.4])
@pytest.mark.parametrize(("rows", "banks"), [(1, 4), (1, 2), (2, 4), (4, 4), (8, 4), (4, 2)])
def test_lane(rows, banks, idle):
    seed = 100 * rows + 10 * banks + int(10 * idle)
    rng = np.random.default_rng(seed)
    n_blocks = {1: 48, 2: 32, 4: 18, 8: 16}[rows]
    lengths = [32, 1, 31, 1, 1, 1, 2, 32]
    blocks = []
    for index in range(n_blocks):
        n = lengths[index] if index < len(lengths) else int(rng.integers(1, 33))
        n_reps = int(rng.integers(0, 6)) if index % 3 == 1 else 0
        # Each kind meets a different length every time round.
        kind = KINDS[(index + index // len(KINDS)) % len(KINDS)]
        blocks.append(make_block(rng, rows, n, kind, n_reps))
    dut = SoftmaxLane(head_dim=HEAD_DIM, rows=rows, banks=banks)
    driver = Driver(dut, blocks, idle=idle, seed=seed)
    simulate(dut, driver.bench, cycles=20_000)
    assert driver.both > 100, "the two sides hardly ever worked at once"


@pytest.mark.parametrize("rows", [1, 8])
def test_full_rate(rows):
    """Full blocks without gaps: both sides take a slot every cycle once the first block is in."""
    rng = np.random.default_rng(rows)
    n_blocks = 8 if rows == 1 else 4
    blocks = [make_block(rng, rows, 32, "plain", 0) for _ in range(n_blocks)]
    dut = SoftmaxLane(head_dim=HEAD_DIM, rows=rows)
    driver = Driver(dut, blocks, idle=0.0, seed=rows)
    simulate(dut, driver.bench, cycles=5000)
    slots = 32 * rows * n_blocks
    # Slot 0 of the last token comes rows - 1 cycles before the last slot of a block.
    offset = 32 * rows - rows + 1 + dut.score_latency
    assert driver.both >= slots - offset


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SoftmaxLane(head_dim=64, rows=3), "rows must be a power of two, not 3"),
        (lambda: SoftmaxLane(head_dim=64, rows=2, banks=3), "banks must be a power of two, not 3"),
        (lambda: SoftmaxLane(head_dim=64, rows=2, banks=1), "banks must be at least 2, not 1"),
        (lambda: BlockReference(rows=0, banks=2), "rows must be a power of two, not 0"),
        (lambda: TokenProbability(rows=6), "rows must be a power of two, not 6"),
    ],
)
def test_rejects(make, error):
    with pytest.raises(ValueError, match=error):
        make()


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_convert(rows):
    assert rtlil.convert(SoftmaxLane(head_dim=64, rows=rows))
    assert rtlil.convert(BlockReference(rows=rows, banks=4))
    assert rtlil.convert(TokenProbability(rows=rows))
