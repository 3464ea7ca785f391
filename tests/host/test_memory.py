"""The allocator: blocks are aligned and apart, totals exact, what is freed comes together."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.golden.formats import ALIGN
from moska.host import OutOfMemory
from moska.host.memory import Allocator

BASE, SIZE = 0x1000, 1 << 16


def check(allocator, blocks):
    """Blocks are those that we know, in the range, apart; sums agree."""
    assert allocator.blocks == blocks
    spans = sorted(blocks.items())
    end = BASE
    holes = []
    for start, size in spans:
        assert start % ALIGN == size % ALIGN == 0
        assert start >= end
        holes.append(start - end)
        end = start + size
    assert end <= BASE + SIZE
    holes.append(BASE + SIZE - end)
    assert allocator.used_bytes == sum(blocks.values())
    assert allocator.free_bytes == SIZE - allocator.used_bytes
    # Neighbours are joined: the largest hole is as large as the space between two blocks.
    assert allocator.largest_hole == max(holes)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.integers(1, 1 << 14), st.integers(-1000, -1)), max_size=80))
def test_any_order(steps):
    """Positive: allocate so many bytes; negative: free one of the blocks."""
    allocator, blocks = Allocator(BASE, SIZE), {}
    for step in steps:
        if step > 0:
            size = -(-step // ALIGN) * ALIGN
            if size <= allocator.largest_hole:
                blocks[allocator.allocate(step)] = size
            else:
                with pytest.raises(OutOfMemory):
                    allocator.allocate(step)
        elif blocks:
            address = sorted(blocks)[step % len(blocks)]
            allocator.free(address)
            del blocks[address]
        check(allocator, blocks)
    for address in list(blocks):
        allocator.free(address)
    assert allocator.largest_hole == allocator.free_bytes == SIZE


def test_lowest_hole_that_fits():
    allocator = Allocator(BASE, SIZE)
    first, second, third, _ = (allocator.allocate(size) for size in (64, 256, 64, 64))
    allocator.free(second)
    assert allocator.allocate(320) > third
    assert allocator.allocate(128) == second
    allocator.free(first)
    assert allocator.allocate(1) == first


def test_full_memory_names_sizes():
    allocator = Allocator(0, 1024)
    blocks = [allocator.allocate(256) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    text = (
        r"^device memory must have room for 320 bytes: of 1,024, 512 are free, 256 in one piece$"
    )
    with pytest.raises(OutOfMemory, match=text):
        allocator.allocate(257)


@pytest.mark.parametrize("address", [BASE, BASE + 64, 0])
def test_only_what_was_allocated_is_freed(address):
    allocator = Allocator(BASE, SIZE)
    block = allocator.allocate(128)
    allocator.free(block)
    with pytest.raises(ValueError, match=rf"^address must be one .*, not {address:#x}$"):
        allocator.free(address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((32, 64), "base and size must be multiples of 64, not 0x20 and 64"),
        ((0, 100), "base and size must be multiples of 64, not 0x0 and 100"),
        ((0, 0), "base and size must be multiples of 64, not 0x0 and 0"),
    ],
)
def test_bad_ranges(arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        Allocator(*arguments)
    with pytest.raises(ValueError, match=r"^size must be positive, not 0$"):
        Allocator(0, 64).allocate(0)


def test_threads():
    """Four threads allocate, write a mark, look whether it is still theirs, and free."""
    allocator = Allocator(BASE, SIZE)
    owner = np.zeros(SIZE // ALIGN, dtype=np.int64)
    wrong = []

    def work(number):
        rng = np.random.default_rng(number)
        for _ in range(400):
            size = int(rng.integers(1, 4096))
            try:
                address = allocator.allocate(size)
            except OutOfMemory:
                continue
            mine = slice((address - BASE) // ALIGN, (address - BASE + size - 1) // ALIGN + 1)
            if owner[mine].any():
                wrong.append(number)
            owner[mine] = number
            if (owner[mine] != number).any():
                wrong.append(number)
            owner[mine] = 0
            allocator.free(address)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert allocator.largest_hole == SIZE
