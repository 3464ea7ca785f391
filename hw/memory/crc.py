"""CRC-32 (IEEE 802.3, as ``zlib.crc32``) over bus words.

The state starts as INITIAL and ends as the complement of the CRC. A step is linear over single
bits: each bit of the next state is the parity of some bits of the state and of the word, found
here by running the bitwise definition on every unit vector.
"""

import functools

from amaranth.hdl import Cat

POLYNOMIAL = 0xEDB88320  # reflected: the lowest bit of a byte goes first
CRC_BITS = 32
INITIAL = (1 << CRC_BITS) - 1


def _shift(state, n_steps):
    """Return the state after ``n_steps`` bits of 0."""
    for _ in range(n_steps):
        state = (state >> 1) ^ (POLYNOMIAL if state & 1 else 0)
    return state


def _masks(columns):
    """Return, for each bit of the next state, which inputs it is the parity of."""
    return [
        sum((column >> bit & 1) << index for index, column in enumerate(columns))
        for bit in range(CRC_BITS)
    ]


@functools.cache
def crc_masks(data_width):
    """Bits of the state, and of the word, that make up each bit of the next state.

    Returns two lists of CRC_BITS integers.
    """
    of_state = _masks([_shift(1 << bit, data_width) for bit in range(CRC_BITS)])
    # A bit of the word enters as the lowest bit of the state, before the shift that uses it up.
    of_data = _masks([_shift(1, data_width - bit) for bit in range(data_width)])
    return of_state, of_data


def crc_of_state(state, data_width):
    """Expression: what the state adds to the next one, after a word of ``data_width`` bits."""
    return Cat((state & mask).xor() for mask in crc_masks(data_width)[0])


def crc_of_data(data):
    """Expression: what a word adds to the next state; it does not depend on the state."""
    return Cat((data & mask).xor() for mask in crc_masks(len(data))[1])


def crc_step(state, data):
    """Expression: the state after the word ``data``, its lowest byte first."""
    return crc_of_state(state, len(data)) ^ crc_of_data(data)
