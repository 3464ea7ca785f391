# amaranth: UnusedElaboratable=no
"""ScoreRow and ScoreArray against int64 NumPy, bit for bit and cycle for cycle."""

import re

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.attention import exact_matmul
from moska.golden.formats import dot_width
from moska.hw.arrays.score import Phi, ScoreArray, ScoreRow
from moska.sim.bench import simulate

GRID = [(16, 4, 2), (64, 8, 8), (64, 1, 2), (64, 1, 4), (64, 1, 8), (16, 1, 2), (64, 4, 8)]
ROW_GRID = [(16, 4), (16, 1), (64, 8), (8, 8), (2, 2), (1, 1)]


def apply_phi(q, phi):
    """Part of q that ``phi`` chooses. q: (D,) int64."""
    if phi == Phi.POSITIVE:
        return np.maximum(q, 0)
    return np.minimum(q, 0) if phi == Phi.NEGATIVE else q


class Stimulus:
    """Random and extreme tokens with their cycles, query tiles, and the cycles of their writes.

    Tile n sits in bank n % 2. Its words are written in random order while tile n - 1 is in use,
    from the cycle on in which the last row reads tile n - 2 for the last time.
    """

    def __init__(self, *, head_dim, fold, rows, seed, n_tiles=4, tokens=12, idle=0.25):
        rng = np.random.default_rng(seed)
        beat_dim = head_dim // fold
        self.q = rng.integers(-(1 << 15), 1 << 15, (n_tiles, rows, head_dim), dtype=np.int64)
        self.q[1, 0] = -(1 << 15)
        self.q[1, -1] = (1 << 15) - 1
        self.beats = {}  # cycle -> (beat, bank, phi, data)
        self.dots = []  # (cycle of the last beat, dots of all rows)
        self.writes = {}  # cycle -> (row, bank, beat, data)

        words = [(r, f) for r in range(rows) for f in range(fold)]
        cycle = 1
        used = {0: 0, 1: 0}  # cycle in which the last row reads the bank last
        for tile in range(n_tiles):
            bank = tile % 2
            begin = max(used[bank], max(self.writes, default=-1) + 1)
            for n, index in enumerate(rng.permutation(len(words))):
                r, f = words[index]
                word = self.q[tile, r, f * beat_dim : (f + 1) * beat_dim]
                self.writes[begin + n] = (r, bank, f, word)
            cycle = max(cycle, max(self.writes) + 1)
            for token in range(tokens):
                k = rng.integers(-128, 128, head_dim, dtype=np.int64)
                if token < 2:
                    k[:] = -128 if token == 0 else 127
                phi = Phi(int(rng.integers(3))) if token > 2 else Phi.ALL
                for f in range(fold):
                    while rng.random() < idle:
                        cycle += 1
                    self.beats[cycle] = (f, bank, phi, k[f * beat_dim : (f + 1) * beat_dim])
                    cycle += 1
                part = np.stack([apply_phi(q, phi) for q in self.q[tile]])
                self.dots.append((cycle - 1, exact_matmul(part, k[:, None])[:, 0]))
            used[bank] = cycle - 1 + rows - 1
        self.cycles = cycle + rows + 40
        self.seed = seed


def drive(ctx, dut, stimulus, cycle):
    """Set ``k`` and ``q`` of a cycle; payloads of idle cycles are garbage."""
    if cycle in stimulus.beats:
        beat, bank, phi, word = stimulus.beats[cycle]
        ctx.set(
            dut.k,
            {"valid": 1, "beat": beat, "bank": bank, "phi": phi, "data": [int(x) for x in word]},
        )
    else:
        ctx.set(dut.k.valid, 0)
        ctx.set(dut.k.bank, cycle % 2)
    write = {"valid": int(cycle in stimulus.writes)}
    if write["valid"]:
        row, write["bank"], write["beat"], word = stimulus.writes[cycle]
        write["data"] = [int(x) for x in word]
        if isinstance(dut, ScoreArray):
            write["row"] = row
        ctx.set(dut.q, write)
    else:
        ctx.set(dut.q.valid, 0)


@pytest.mark.parametrize(("head_dim", "fold"), ROW_GRID)
def test_row(head_dim, fold):
    dut = ScoreRow(head_dim=head_dim, fold=fold)
    stimulus = Stimulus(head_dim=head_dim, fold=fold, rows=1, seed=1)
    expected = {cycle + dut.latency: int(dots[0]) for cycle, dots in stimulus.dots}

    async def bench(ctx):
        for cycle in range(stimulus.cycles):
            drive(ctx, dut, stimulus, cycle)
            dot = ctx.get(dut.dot)
            actual = dot.value if dot.valid else None
            assert actual == expected.get(cycle), (stimulus.seed, cycle)
            k_next = ctx.get(dut.k_next)
            previous = stimulus.beats.get(cycle - 1)
            assert k_next.valid == (previous is not None), (stimulus.seed, cycle)
            if previous:
                beat, bank, phi, word = previous
                assert (k_next.beat, k_next.bank, k_next.phi) == (beat, bank, phi)
                assert [k_next.data[d] for d in range(len(word))] == word.tolist()
            await ctx.tick()

    simulate(dut, bench)
    assert len(expected) == len(stimulus.dots) > 0


@pytest.mark.parametrize(("head_dim", "fold", "query_tile"), GRID)
@pytest.mark.parametrize("idle", [0.0, 0.3])
def test_array(head_dim, fold, query_tile, idle):
    dut = ScoreArray(head_dim=head_dim, fold=fold, query_tile=query_tile)
    stimulus = Stimulus(head_dim=head_dim, fold=fold, rows=query_tile, seed=2, idle=idle)
    rows = min(fold, query_tile)
    assert (dut.lane_rows, dut.n_lanes) == (rows, query_tile // rows)
    expected = {
        (cycle + dut.latency + j, j // rows): int(dots[j])
        for cycle, dots in stimulus.dots
        for j in range(query_tile)
    }
    # The extremes of the dot product are there: all q and k at their lowest.
    assert max(expected.values()) == head_dim << 22 < 1 << (dot_width(head_dim) - 1)

    async def bench(ctx):
        for cycle in range(stimulus.cycles):
            drive(ctx, dut, stimulus, cycle)
            dots = ctx.get(dut.dots)
            for lane in range(dut.n_lanes):
                actual = dots[lane].value if dots[lane].valid else None
                assert actual == expected.get((cycle, lane)), (stimulus.seed, cycle, lane)
            await ctx.tick()

    simulate(dut, bench)
    assert len(expected) == len(stimulus.dots) * query_tile


@pytest.mark.parametrize(
    ("head_dim", "fold", "row_latency"), [(64, 8, 6), (64, 1, 8), (16, 4, 5), (16, 1, 6), (8, 8, 3)]
)
def test_latency(head_dim, fold, row_latency):
    assert ScoreRow(head_dim=head_dim, fold=fold).latency == row_latency
    array = ScoreArray(head_dim=head_dim, fold=fold, query_tile=2)
    assert array.latency == row_latency + 1


@pytest.mark.parametrize(("head_dim", "fold", "query_tile"), GRID)
def test_convert(head_dim, fold, query_tile):
    assert "product_0" in rtlil.convert(ScoreRow(head_dim=head_dim, fold=fold))
    text = rtlil.convert(ScoreArray(head_dim=head_dim, fold=fold, query_tile=query_tile))
    rows = [body for body in text.split("\nmodule ") if re.match(r"\\top\.row_\d+\n", body)]
    assert len(rows) == query_tile
    assert len({ports(body) for body in rows}) == 1, "rows must have the same ports"


def ports(body):
    """Names and widths of the ports of a module in RTLIL."""
    lines = (line.split() for line in body.splitlines())
    return frozenset(
        (words[-1], tuple(words[1 : words.index(kind)]))
        for words in lines
        for kind in ("input", "output")
        if words[:1] == ["wire"] and kind in words
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 60, "fold": 4, "query_tile": 2}, "head_dim must be a power of two, not 60"),
        ({"head_dim": 64, "fold": 3, "query_tile": 2}, "fold must be a power of two, not 3"),
        ({"head_dim": 4, "fold": 8, "query_tile": 2}, "fold must be at most head_dim .4., not 8"),
        ({"head_dim": 64, "fold": 4, "query_tile": 0}, "query_tile must be a power of two, not 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreArray(**arguments)
