# amaranth: UnusedElaboratable=no
"""WordBuffer against a flat list of bits, narrow to wide and wide to narrow."""

import random

import pytest

from moska.hw.memory.buffer import WordBuffer
from moska.sim.bench import simulate


@pytest.mark.parametrize(
    ("write_width", "read_width", "depth"),
    [
        (32, 32, 16),
        (64, 8, 16),
        (64, 32, 8),
        (8, 64, 32),
        (16, 32, 8),
        (64, 16, 1),
        (8, 64, 8),
        (64, 64, 1),
    ],
)
def test_random_writes_and_reads(write_width, read_width, depth):
    dut = WordBuffer(write_width=write_width, read_width=read_width, depth=depth)
    rng = random.Random(write_width * read_width + depth)
    assert dut.read_depth * read_width == depth * write_width
    written = [rng.getrandbits(write_width) for _ in range(depth)]
    contents = sum(word << (write_width * addr) for addr, word in enumerate(written))
    mask = (1 << read_width) - 1
    reads = 0

    def overlap(write_addr, read_addr):
        first, last = write_addr * write_width, (write_addr + 1) * write_width - 1
        return first < (read_addr + 1) * read_width and read_addr * read_width <= last

    async def bench(ctx):
        nonlocal contents, reads
        for addr, word in enumerate(written):
            ctx.set(dut.write, {"valid": 1, "addr": addr, "data": word})
            await ctx.tick()
        for _ in range(400):
            write_addr, read_addr = rng.randrange(depth), rng.randrange(dut.read_depth)
            word, valid = rng.getrandbits(write_width), rng.random() < 0.5
            # What a read gives in the cycle of a write to the same place is not specified.
            valid = valid and not overlap(write_addr, read_addr)
            ctx.set(dut.write, {"valid": valid, "addr": write_addr, "data": word})
            ctx.set(dut.read_addr, read_addr)
            await ctx.tick()
            ctx.set(dut.read_addr, rng.randrange(dut.read_depth))
            assert ctx.get(dut.read_data) == contents >> (read_addr * read_width) & mask
            reads += 1
            if valid:
                place = write_addr * write_width
                contents &= ~(((1 << write_width) - 1) << place)
                contents |= word << place

    simulate(dut, bench)
    assert reads == 400


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"write_width": 64, "read_width": 24, "depth": 8}, r"write_width \(64\) .*, not 24"),
        ({"write_width": 8, "read_width": 24, "depth": 6}, r"write_width \(8\) .*, not 24"),
        ({"write_width": 8, "read_width": 64, "depth": 4}, "whole read words, not 4"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        WordBuffer(**parameters)
