# amaranth: UnusedElaboratable=no
"""Finisher against the golden model, bit for bit, with and without stalls."""

import itertools
import random

import numpy as np
import pytest
from amaranth.back import rtlil

from moska.gen.config import Config
from moska.golden.finish import finish, log2_fraction, normalise_l, reciprocal
from moska.golden.formats import FP32_NEG_INF, FP32_POS_INF, RECIPROCAL_BITS
from moska.golden.state import RowState
from moska.hw.finish import (
    ElementScaler,
    Finisher,
    LseEncoder,
    ReciprocalLog2,
    RowScaler,
)
from moska.sim.bench import check_hold, get, put, simulate

M_LOW, M_HIGH = -4096, 4095
E_LOW, E_HIGH = -8192, 8191
L_MAX = (1 << 39) - 1
O_LOW, O_HIGH = -(1 << 47), (1 << 47) - 1


def state_of(rows, head_dim, seed):
    """RowState of (m, l, e, elements) rows; missing elements are random."""
    rng = random.Random(seed)
    o = []
    for *_, elements in rows:
        elements = [*elements[:head_dim]]
        while len(elements) < head_dim:
            elements.append(rng.getrandbits(rng.randint(1, 47)) * rng.choice([-1, 1]))
        o.append(elements)
    m, total, e = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(3))
    return RowState(m, total, e, np.array(o, dtype=np.int64))


def random_rows(count, seed):
    """Rows whose results are mostly normal numbers, with l and o of random length."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        m = rng.randint(M_LOW, M_HIGH)
        total = 0 if rng.random() < 0.1 else rng.getrandbits(rng.randint(1, 39))
        e = max(E_LOW, min(E_HIGH, m + rng.randint(-180, 420)))
        rows.append((m, total, e, []))
    return rows


def edge_rows():
    """Limits of every field, powers of two, results around overflow and underflow."""
    powers = [(-1) ** bit << bit for bit in range(0, 47, 3)]
    extremes = [O_LOW, O_HIGH, 0, 1, -1, O_LOW + 1, 1 << 46, -(1 << 46), (1 << 27) - 1, 1 << 27]
    rows = [
        (0, total, 127, extremes)
        for total in (0, 1, 2, 3, L_MAX, L_MAX - 1, 1 << 38, (1 << 38) - 1, (1 << 38) + 1, 1 << 19)
    ]
    rows += [
        (m, total, e, powers)
        for m, e in itertools.product((M_LOW, 0, M_HIGH), (E_LOW, 0, E_HIGH))
        for total in (1, 1 << 19, L_MAX)
    ]
    # l = 1: an element 2**k has the exponent field k + e - m.
    rows += [(0, 1, e, powers) for e in range(-48, 4, 3)]
    rows += [(0, 1, e, powers) for e in range(206, 260, 3)]
    # LSE around 0: whole parts -1 and 0; exactly 0.
    rows += [
        (whole - top, total, 127, [])
        for whole in (18, 19)
        for top in (0, 19, 38)
        for total in (1 << top, (2 << top) - 1)
    ]
    return rows


def run_finisher(state, *, lanes, idle=0.0, stall=0.0, lse_stall=0.0, seed=0):
    """Send the state through a Finisher; return its (O, LSE) as uint32 arrays."""
    n_rows, head_dim = state.o.shape
    dut = Finisher(head_dim=head_dim, lanes=lanes)
    rows = [
        {"m": m, "e": e, "l": total}
        for m, e, total in zip(state.m.tolist(), state.e.tolist(), state.l.tolist(), strict=True)
    ]
    words = state.o.reshape(-1, lanes).tolist()
    o_bits, lse_bits = [], []

    simulate(
        dut,
        put(dut.row, rows, idle=idle, seed=seed),
        put(dut.o, words, idle=idle, seed=seed + 1),
        get(dut.result, o_bits, len(words), stall=stall, seed=seed + 2),
        get(dut.lse, lse_bits, n_rows, stall=lse_stall, seed=seed + 3),
        monitors=[check_hold(dut.result), check_hold(dut.lse)],
        cycles=20 * (len(words) + 40 * n_rows) + 200,
    )
    o = [word[lane] for word in o_bits for lane in range(lanes)]
    return (
        np.array(o, dtype=np.uint32).reshape(n_rows, head_dim),
        np.array(lse_bits, dtype=np.uint32),
    )


def check(state, **run):
    o, lse = run_finisher(state, **run)
    golden_o, golden_lse = finish(state)
    np.testing.assert_array_equal(o, golden_o)
    np.testing.assert_array_equal(lse, golden_lse)
    return o, lse


def test_reciprocal_and_log2_match_golden():
    rng = random.Random(5)
    low, high = 1 << 38, (1 << 39) - 1
    values = [low, low + 1, low + (1 << 11), high, high - 1, high - (1 << 11)]
    values += [low | low >> i for i in range(1, 39)]
    values += [low | rng.getrandbits(38) for _ in range(60)]
    dut = ReciprocalLog2()
    out = []
    simulate(
        dut,
        put(dut.i, values, idle=0.1),
        get(dut.o, out, len(values), stall=0.2),
        monitors=[check_hold(dut.o)],
        cycles=60 * len(values),
    )
    l_norm = np.array(values, dtype=np.int64)
    assert [int(q.reciprocal) for q in out] == reciprocal(l_norm).tolist()
    assert [int(q.log2) for q in out] == log2_fraction(l_norm).tolist()
    assert max(q.log2 for q in out) == 1 << 24  # rounds up to one
    assert min(q.reciprocal for q in out) == 1 << (RECIPROCAL_BITS - 1)


def test_edges():
    state = state_of(edge_rows(), 16, seed=2)
    o, lse = check(state, lanes=4)
    # The rows reach what they are for.
    assert FP32_POS_INF in o
    assert 0xFF800000 in o
    assert (o[state.l == 0] == 0).all()
    assert (lse[state.l == 0] == FP32_NEG_INF).all()
    assert ((o == 0) & (state.o != 0) & (state.l[:, None] != 0)).any()
    assert (lse == 0).any()


@pytest.mark.parametrize(
    ("head_dim", "lanes"), [(1, 1), (16, 1), (16, 4), (16, 16), (64, 2), (64, 16)]
)
def test_random_rows_with_stalls(head_dim, lanes):
    state = state_of(random_rows(24, seed=head_dim), head_dim, seed=lanes)
    check(state, lanes=lanes, idle=0.3, stall=0.3, lse_stall=0.3, seed=head_dim + lanes)


@pytest.mark.parametrize(("stall", "lse_stall"), [(0.9, 0.0), (0.0, 0.97)])
def test_one_slow_output(stall, lse_stall):
    state = state_of(random_rows(16, seed=7), 8, seed=8)
    check(state, lanes=4, stall=stall, lse_stall=lse_stall, seed=9)


# Preset and its finisher: lanes as in hw/unit.py.
PRESETS = {"tiny": (16, 1), "ulx3s": (64, 2), "sim64": (64, 16), "u55c": (128, 16)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_as_listed(name):
    config = Config.load(name)
    assert PRESETS[name] == (config.head_dim, min(config.merge_lanes, config.bus_width // 32))


@pytest.mark.parametrize(("head_dim", "lanes"), [*PRESETS.values(), (64, 1), (16, 16)])
def test_cycles(head_dim, lanes):
    """Latencies; and a word a cycle over all rows, however few words a row has."""
    n_words = head_dim // lanes
    n_rows = 6 if n_words >= 27 else 40
    state = state_of([(0, 12345 + i, 127, []) for i in range(n_rows)], head_dim, seed=3)
    dut = Finisher(head_dim=head_dim, lanes=lanes)
    cycles = {"row": [], "o": [], "result": [], "lse": []}

    def transfers(name):
        port = getattr(dut, name)

        async def monitor(ctx):
            cycle = 0
            async for _, _, valid, ready in ctx.tick().sample(port.valid, port.ready):
                if valid and ready:
                    cycles[name].append(cycle)
                cycle += 1

        return monitor

    simulate(
        dut,
        put(dut.row, [{"m": 0, "e": 127, "l": total} for total in state.l.tolist()]),
        put(dut.o, state.o.reshape(-1, lanes).tolist()),
        get(dut.result, [], n_rows * n_words),
        get(dut.lse, [], n_rows),
        monitors=[transfers(name) for name in cycles],
    )
    assert cycles["o"][0] - cycles["row"][0] == dut.first_word
    assert cycles["lse"][0] - cycles["row"][0] == dut.lse_latency
    assert [b - a for a, b in zip(cycles["o"], cycles["result"], strict=True)] == [
        dut.latency
    ] * (n_rows * n_words)
    assert np.diff(cycles["o"]).tolist() == [1] * (n_rows * n_words - 1)


@pytest.mark.parametrize("n_dividers", [1, 3])
def test_row_scaler_takes_dividers_in_turn(n_dividers):
    """n_dividers rows in the latency of a division, in order."""
    rows = [{"m": i, "e": 127, "l": 5 * i + 1} for i in range(4 * n_dividers)]
    dut = RowScaler(n_dividers=n_dividers)
    scales, lse, cycles = [], [], []

    async def monitor(ctx):
        cycle = 0
        async for _, _, valid, ready in ctx.tick().sample(dut.scale.valid, dut.scale.ready):
            if valid and ready:
                cycles.append(cycle)
            cycle += 1

    simulate(
        dut,
        put(dut.row, rows),
        get(dut.scale, scales, len(rows)),
        get(dut.lse, lse, len(rows)),
        monitors=[monitor],
    )
    period = ReciprocalLog2.latency
    assert [b - a for a, b in zip(cycles, cycles[n_dividers:], strict=False)] == (
        [period] * (3 * n_dividers)
    )
    assert np.diff(cycles[:n_dividers]).tolist() == [1] * (n_dividers - 1)
    state = state_of([(row["m"], row["l"], 127, []) for row in rows], 1, seed=1)
    assert lse == finish(state)[1].tolist()
    top, l_norm = normalise_l(state.l)
    assert [scale.reciprocal for scale in scales] == reciprocal(l_norm).tolist()
    assert [scale.field for scale in scales] == (127 - state.m - top - 1).tolist()


def test_components_convert():
    for dut in (
        ReciprocalLog2(),
        LseEncoder(),
        RowScaler(),
        RowScaler(n_dividers=3),
        ElementScaler(lanes=2, n_words=1),
        Finisher(head_dim=64, lanes=2),
        Finisher(head_dim=64, lanes=16),
    ):
        assert "module \\top" in rtlil.convert(dut)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Finisher(head_dim=64, lanes=0), "lanes must be at least 1, not 0"),
        (lambda: Finisher(head_dim=10, lanes=4), r"multiple of lanes \(4\), not 10"),
        (lambda: Finisher(head_dim=0, lanes=4), r"multiple of lanes \(4\), not 0"),
        (lambda: RowScaler(n_dividers=0), "n_dividers must be at least 1, not 0"),
        (lambda: ElementScaler(lanes=0, n_words=1), "lanes must be at least 1, not 0"),
        (lambda: ElementScaler(lanes=1, n_words=0), "n_words must be at least 1, not 0"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
