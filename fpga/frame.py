"""Frames of the link between host and board: what both sides agree on.

Little-endian words of 32 bits::

    request   magic, sequence, operation, words - 1   address   words of a WRITE   CRC-32
    response  magic, sequence, status, words - 1      words, if PAYLOAD is set     CRC-32

The first word is four bytes, the first one named is sent first. A CRC-32 (as ``zlib.crc32``) is
that of all bytes before it. The upper half of ``operation`` selects the bytes of each word that a
WRITE changes. HELLO begins a conversation: its address is any number, which comes back as payload.
"""

import struct
import zlib
from enum import IntEnum

REQUEST = 0xA6
RESPONSE = 0x59  # not REQUEST: what is sent must not pass for an answer
MAX_WORDS = 256  # of a frame
HEADER_WORDS = 2  # of a request
HEADER = struct.Struct("<BBBB")
WORD = struct.Struct("<I")
ALL_BYTES = 0xF
RESIDUE = 0xDEBB20E3  # state of the CRC after a frame and its CRC


class Operation(IntEnum):
    """What a request asks for."""

    HELLO = 0
    READ = 1
    WRITE = 2


class Status(IntEnum):
    """What became of a request."""

    DONE = 0
    REJECTED = 1  # no whole frame with a good CRC, or no known operation: nothing was done
    BUS_ERROR = 2  # words before the one with the error are done
    STRANGER = 3  # no HELLO since the board's reset: nothing was done


STATUS_MASK = 0x0F
PAYLOAD = 1 << 6  # of the status: words follow
INTERRUPT = 1 << 7  # of the status: level of the interrupt


def sealed(raw: bytes) -> bytes:
    """Return a frame with its CRC."""
    return raw + WORD.pack(zlib.crc32(raw))


def request(
    sequence: int,
    operation: Operation,
    address: int,
    *,
    words: int = 1,
    payload: bytes = b"",
    select: int = ALL_BYTES,
) -> bytes:
    """Return the frame of a request.

    Parameters
    ----------
    sequence
        0 to 255, another one than the request before
    operation
        what to do
    address
        of the first byte, a multiple of 4; any number with HELLO
    words
        to read
    payload
        words to write
    select
        bytes of each word that are written: bit n is byte n
    """
    if operation is Operation.WRITE:
        words, odd = divmod(len(payload), WORD.size)
        if odd:
            raise ValueError(f"payload must be whole words, not {len(payload)} bytes")
    if not 1 <= words <= MAX_WORDS:
        raise ValueError(f"words must be from 1 to {MAX_WORDS}, not {words}")
    head = HEADER.pack(REQUEST, sequence, operation | select << 4, words - 1)
    return sealed(head + WORD.pack(address) + payload)
