# amaranth: UnusedElaboratable=no
"""Packer: words, early ends, stalls, rate. Register slice: order, stalls, rate, latency."""

import random

import pytest

from moska.hw.stream import Packer, RegisterSlice
from moska.sim.bench import check_hold, get, put, simulate


def pack(items, width, ratio):
    """Words that ``items`` (data, last) fill."""
    words, parts = [], []
    for value, last in items:
        parts.append(value)
        if last or len(parts) == ratio:
            words.append(sum(part << (width * place) for place, part in enumerate(parts)))
            parts = []
    assert not parts, "the items must end a word"
    return words


def random_items(count, width, last, seed):
    rng = random.Random(seed)
    items = [(rng.getrandbits(width), int(rng.random() < last)) for _ in range(count)]
    return [*items[:-1], (items[-1][0], 1)]


@pytest.mark.parametrize(("width", "ratio"), [(32, 1), (32, 2), (8, 4), (16, 8), (5, 3)])
@pytest.mark.parametrize("last", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.4, 0.1), (0.1, 0.6)])
def test_words(width, ratio, last, idle, stall):
    dut = Packer(width=width, ratio=ratio)
    items = random_items(100, width, last, seed=width * ratio)
    expected = pack(items, width, ratio)
    words = []
    simulate(
        dut,
        put(dut.i, [{"data": value, "last": end} for value, end in items], idle=idle, seed=1),
        get(dut.o, words, len(expected), stall=stall, seed=2),
        monitors=[check_hold(dut.o)],
    )
    assert words == expected


def test_one_payload_a_cycle():
    dut = Packer(width=8, ratio=4)
    transfers = {"i": [], "o": []}

    async def monitor(ctx):
        cycle = 0
        async for _, _, i_valid, i_ready, o_valid, o_ready in ctx.tick().sample(
            dut.i.valid, dut.i.ready, dut.o.valid, dut.o.ready
        ):
            if i_valid and i_ready:
                transfers["i"].append(cycle)
            if o_valid and o_ready:
                transfers["o"].append(cycle)
            cycle += 1

    simulate(
        dut,
        put(dut.i, [{"data": value, "last": 0} for value in range(32)]),
        get(dut.o, [], 8),
        monitors=[monitor],
    )
    first = transfers["i"][0]
    assert transfers["i"] == list(range(first, first + 32))
    assert transfers["o"] == [cycle + 1 for cycle in transfers["i"][3::4]]


def test_ratio_is_checked():
    with pytest.raises(ValueError, match="ratio must be at least 1, not 0"):
        Packer(width=8, ratio=0)


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.4, 0.1), (0.1, 0.6), (0.5, 0.5)])
def test_register_slice(idle, stall):
    dut = RegisterSlice(8)
    items = list(range(200))
    words = []
    simulate(
        dut,
        put(dut.i, items, idle=idle, seed=3),
        get(dut.o, words, len(items), stall=stall, seed=4),
        monitors=[check_hold(dut.o)],
    )
    assert words == items


def test_register_slice_cuts_ready():
    """``i.ready`` falls a cycle after ``o.ready`` at the earliest, with two payloads inside."""
    dut = RegisterSlice(8)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        for value, (ready, valid) in enumerate([(1, 0), (1, 1), (0, 1), (0, 1)]):
            ctx.set(dut.i.payload, value)
            assert (ctx.get(dut.i.ready), ctx.get(dut.o.valid)) == (ready, valid)
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        for value in (0, 1):
            assert (ctx.get(dut.o.valid), ctx.get(dut.o.payload)) == (1, value)
            await ctx.tick()
        assert not ctx.get(dut.o.valid)

    simulate(dut, bench)
