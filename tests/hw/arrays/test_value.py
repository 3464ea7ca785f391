# amaranth: UnusedElaboratable=no
"""ValueRow and ValueArray against int64 NumPy, bit for bit and cycle for cycle."""

import re

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.golden.attention import values
from moska.golden.formats import (
    BLOCK_TOKENS,
    M_WIDTH,
    O_EXP_WIDTH,
    PV_WIDTH,
    block_l_width,
    block_o_width,
)
from moska.hw.arrays.value import ValueArray, ValueRow
from moska.sim.bench import simulate

GRID = [
    (16, 4, 2, 2),
    (64, 8, 8, 8),
    (64, 1, 2, 16),
    (64, 1, 4, 64),
    (64, 1, 8, 8),
    (16, 1, 2, 4),
    (64, 4, 8, 4),
    (16, 8, 16, 1),
]
ROW_GRID = [(16, 4), (16, 1), (64, 8), (8, 8), (2, 2), (1, 1)]
LENGTHS = (BLOCK_TOKENS, 1, 1, 2, BLOCK_TOKENS, 5, 1)


class Stimulus:
    """Blocks of values and probabilities with their cycles. The first blocks hold the extremes."""

    def __init__(self, *, head_dim, fold, rows, seed, idle):
        rng = np.random.default_rng(seed)
        beat_dim = head_dim // fold
        lane_rows = min(fold, rows)
        self.seed = seed
        self.beats = {}  # cycle -> fields of `v`
        self.p = {}  # (cycle, lane) -> fields of `p`
        self.starts = []  # per block: the cycle of each beat of its last token
        self.o = []  # per block: (rows, head_dim)
        self.stats = []  # per block: rows x (l, ref, pv_ref)
        cycle = 1
        for n, length in enumerate(LENGTHS):
            v = rng.integers(-128, 128, (length, head_dim)).astype(np.int8)
            pv = rng.integers(0, 1 << PV_WIDTH, (rows, length))
            if length == BLOCK_TOKENS:
                pv[:] = (1 << PV_WIDTH) - 1
                v[:, ::2] = -128
                v[:, 1::2] = 127 if n else -128
            l_sum = rng.integers(0, 1 << block_l_width(), (rows, length))
            ref = rng.integers(-(1 << M_WIDTH - 1), 1 << M_WIDTH - 1, (rows, length))
            pv_ref = rng.integers(-(1 << O_EXP_WIDTH - 1), 1 << O_EXP_WIDTH - 1, (rows, length))
            for t in range(length):
                last_token = []
                for f in range(fold):
                    while rng.random() < idle:
                        cycle += 1
                    if f == 0:
                        for j in range(rows):
                            fields = (pv[j, t], l_sum[j, t], ref[j, t], pv_ref[j, t])
                            key = (cycle + j, j // lane_rows)
                            assert key not in self.p, "two rows of a lane in one cycle"
                            self.p[key] = dict(
                                zip(("pv", "l", "ref", "pv_ref"), map(int, fields), strict=True)
                            )
                    self.beats[cycle] = {
                        "valid": 1,
                        "beat": f,
                        "first": int(t == 0),
                        "last": int(t == length - 1),
                        "data": [int(x) for x in v[t, f * beat_dim : (f + 1) * beat_dim]],
                    }
                    last_token.append(cycle)
                    cycle += 1
            self.starts.append(last_token)
            self.o.append(values(pv, v))
            self.stats.append(
                [(int(l_sum[j, -1]), int(ref[j, -1]), int(pv_ref[j, -1])) for j in range(rows)]
            )
        # The lowest sum that a block can have is there.
        assert self.o[0].min() == -BLOCK_TOKENS * 128 * ((1 << PV_WIDTH) - 1)
        assert self.o[0].min() >= -(1 << (block_o_width() - 1))
        self.cycles = cycle + rows + 40
        # Block in the shadow of beat f of row j, by cycle: `block[j][f][cycle]`, None before.
        self.block = [
            [self._history([last[f] + j for last in self.starts]) for f in range(fold)]
            for j in range(rows)
        ]

    def _history(self, cycles):
        """Block whose beat passed the row ``ValueRow.latency + 1`` cycles ago or earlier."""
        readable = [cycle + ValueRow.latency + 1 for cycle in cycles]
        return [
            sum(start <= cycle for start in readable) - 1 if cycle >= readable[0] else None
            for cycle in range(self.cycles)
        ]


def idle_beat(rng, head_dim, fold):
    """Garbage in a cycle without a beat."""
    return {
        "valid": 0,
        "beat": int(rng.integers(fold)),
        "first": int(rng.integers(2)),
        "last": int(rng.integers(2)),
        "data": [int(x) for x in rng.integers(-128, 128, head_dim // fold)],
    }


def garbage_p(rng):
    """Probability in a cycle in which no row samples it."""
    return {
        "pv": int(rng.integers(1 << PV_WIDTH)),
        "l": int(rng.integers(1 << block_l_width())),
        "ref": -1,
        "pv_ref": -1,
    }


@pytest.mark.parametrize(("head_dim", "fold"), ROW_GRID)
@pytest.mark.parametrize("idle", [0.0, 0.3])
def test_row(head_dim, fold, idle):
    dut = ValueRow(head_dim=head_dim, fold=fold)
    stimulus = Stimulus(head_dim=head_dim, fold=fold, rows=1, seed=1, idle=idle)
    captured = {last[0] + dut.latency for last in stimulus.starts}
    beat_dim = head_dim // fold
    rng = np.random.default_rng(3)
    seen = set()

    async def bench(ctx):
        for cycle in range(stimulus.cycles):
            ctx.set(dut.v, stimulus.beats.get(cycle) or idle_beat(rng, head_dim, fold))
            ctx.set(dut.p, stimulus.p.get((cycle, 0)) or garbage_p(rng))
            f = int(rng.integers(fold))
            ctx.set(dut.read_beat, f)
            where = (stimulus.seed, cycle, f)
            assert ctx.get(dut.captured) == (cycle in captured), where
            v_next = ctx.get(dut.v_next)
            previous = stimulus.beats.get(cycle - 1)
            assert v_next.valid == (previous is not None), where
            if previous:
                assert {name: v_next[name] for name in ("beat", "first", "last")} == {
                    name: previous[name] for name in ("beat", "first", "last")
                }, where
                assert [v_next.data[d] for d in range(beat_dim)] == previous["data"], where
            block = stimulus.block[0][f][cycle]
            if block is not None:
                o = ctx.get(dut.o)
                expected = stimulus.o[block][0, f * beat_dim : (f + 1) * beat_dim].tolist()
                assert [o[d] for d in range(beat_dim)] == expected, where
                seen.add((block, f))
            block = stimulus.block[0][0][cycle]
            if block is not None:
                stats = ctx.get(dut.stats)
                assert (stats.l, stats.ref, stats.pv_ref) == stimulus.stats[block][0], where
            await ctx.tick()

    simulate(dut, bench)
    assert {block for block, _ in seen} >= {0, 3, 4, 6}


@pytest.mark.parametrize(("head_dim", "fold", "query_tile", "merge_lanes"), GRID)
@pytest.mark.parametrize("idle", [0.0, 0.2])
def test_array(head_dim, fold, query_tile, merge_lanes, idle):
    dut = ValueArray(
        head_dim=head_dim, fold=fold, query_tile=query_tile, merge_lanes=merge_lanes
    )
    stimulus = Stimulus(head_dim=head_dim, fold=fold, rows=query_tile, seed=2, idle=idle)
    captured = {last[0] + dut.latency for last in stimulus.starts}
    beat_dim = head_dim // fold
    n_words = head_dim // merge_lanes
    rng = np.random.default_rng(4)
    reads = {}
    checked = set()

    async def bench(ctx):
        for cycle in range(stimulus.cycles):
            ctx.set(dut.v, stimulus.beats.get(cycle) or idle_beat(rng, head_dim, fold))
            for lane in range(dut.n_lanes):
                ctx.set(dut.p[lane], stimulus.p.get((cycle, lane)) or garbage_p(rng))
            row, word = int(rng.integers(query_tile)), int(rng.integers(n_words))
            ctx.set(dut.read, {"row": row, "word": word})
            reads[cycle] = (row, word)
            assert ctx.get(dut.captured) == (cycle in captured), (stimulus.seed, cycle)

            then = cycle - dut.read_latency
            row, word = reads.get(then, (0, 0))
            where = (stimulus.seed, cycle, row, word)
            f = word * merge_lanes // beat_dim
            block = stimulus.block[row][f][then] if then >= 0 else None
            if block is not None:
                o = ctx.get(dut.o)
                expected = stimulus.o[block][row, word * merge_lanes : (word + 1) * merge_lanes]
                assert [o[n] for n in range(merge_lanes)] == expected.tolist(), where
                checked.add(row)
            block = stimulus.block[row][0][then] if then >= 0 else None
            if block is not None:
                stats = ctx.get(dut.stats)
                assert (stats.l, stats.ref, stats.pv_ref) == stimulus.stats[block][row], where
            await ctx.tick()

    simulate(dut, bench)
    assert checked == set(range(query_tile))


@pytest.mark.parametrize(("query_tile", "read_latency"), [(1, 1), (2, 1), (4, 1), (8, 2), (16, 2)])
def test_latency(query_tile, read_latency):
    array = ValueArray(head_dim=16, fold=2, query_tile=query_tile, merge_lanes=4)
    assert (array.latency, array.read_latency) == (2, read_latency)
    assert array.n_lanes * array.lane_rows == query_tile


@pytest.mark.parametrize(("head_dim", "fold", "query_tile", "merge_lanes"), GRID)
def test_convert(head_dim, fold, query_tile, merge_lanes):
    assert "product_0" in rtlil.convert(ValueRow(head_dim=head_dim, fold=fold))
    text = rtlil.convert(
        ValueArray(head_dim=head_dim, fold=fold, query_tile=query_tile, merge_lanes=merge_lanes)
    )
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
    ("change", "message"),
    [
        ({"head_dim": 60}, "head_dim must be a power of two, not 60"),
        ({"fold": 3}, "fold must be a power of two, not 3"),
        ({"fold": 32}, "fold must be at most head_dim .16., not 32"),
        ({"query_tile": 6}, "query_tile must be a power of two, not 6"),
        ({"merge_lanes": 3}, "merge_lanes must be a power of two, not 3"),
        ({"merge_lanes": 8}, "merge_lanes must be at most head_dim / fold .4., not 8"),
    ],
)
def test_errors(change, message):
    arguments = {"head_dim": 16, "fold": 4, "query_tile": 2, "merge_lanes": 4} | change
    with pytest.raises(ValueError, match=message):
        ValueArray(**arguments)
