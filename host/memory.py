"""Who has which part of device memory."""

import bisect
import threading

from moska.golden.formats import ALIGN
from moska.golden.layout import padded_size
from moska.host.errors import OutOfMemory


class Allocator:
    """Allocates aligned blocks of a range of addresses; safe from several threads.

    First fit in the order of addresses; a freed block joins its free neighbours.

    Parameters
    ----------
    base, size
        first byte and bytes of the range; multiples of ALIGN
    """

    def __init__(self, base: int, size: int):
        if base % ALIGN or size % ALIGN or size <= 0:
            raise ValueError(
                f"base and size must be multiples of {ALIGN}, not {base:#x} and {size}"
            )
        self.base = base
        self.size = size
        self._lock = threading.Lock()
        self._starts = [base]  # of the holes, ascending
        self._sizes = [size]
        self._used: dict[int, int] = {}  # address: bytes
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that are allocated."""
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that are not."""
        return self.size - self._used_bytes

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest block that can be allocated."""
        with self._lock:
            return max(self._sizes, default=0)

    @property
    def blocks(self) -> dict[int, int]:
        """Allocated blocks: address and bytes."""
        with self._lock:
            return dict(self._used)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes, rounded up to a multiple of ALIGN.

        Raises
        ------
        OutOfMemory
            when no hole is large enough.
        """
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        size = padded_size(size)
        with self._lock:
            index = next((i for i, hole in enumerate(self._sizes) if hole >= size), None)
            if index is None:
                raise OutOfMemory(
                    f"device memory must have room for {size:,} bytes: of {self.size:,}, "
                    f"{self.size - self._used_bytes:,} are free, "
                    f"{max(self._sizes, default=0):,} in one piece"
                )
            address = self._starts[index]
            if self._sizes[index] == size:
                del self._starts[index], self._sizes[index]
            else:
                self._starts[index] += size
                self._sizes[index] -= size
            self._used[address] = size
            self._used_bytes += size
            return address

    def free(self, address: int) -> None:
        """Give a block back.

        Raises
        ------
        ValueError
            when none was allocated at ``address``.
        """
        with self._lock:
            if address not in self._used:
                raise ValueError(f"address must be one that was allocated, not {address:#x}")
            size = self._used.pop(address)
            self._used_bytes -= size
            index = bisect.bisect(self._starts, address)
            if index and self._starts[index - 1] + self._sizes[index - 1] == address:
                index -= 1
                self._sizes[index] += size
            else:
                self._starts.insert(index, address)
                self._sizes.insert(index, size)
            following = index + 1
            end = self._starts[index] + self._sizes[index]
            if following < len(self._starts) and self._starts[following] == end:
                self._sizes[index] += self._sizes[following]
                del self._starts[following], self._sizes[following]
