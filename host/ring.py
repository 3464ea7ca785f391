"""The unit behind its registers: who it is, and its rings of descriptors and completions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from moska.golden.formats import BLOCK_TOKENS, MAX_ROWS, Q_BITS
from moska.golden.layout import (
    COMPLETION,
    COMPLETION_BYTES,
    DESCRIPTOR_BYTES,
    ErrorCode,
    unpack_completion,
)
from moska.host import regmap
from moska.host.errors import IncompatibleUnit, TransportError

MAX_RING_SIZE = 15


class Link(Protocol):
    """Registers and memory of a unit."""

    def read32(self, offset: int) -> int:
        """Read a register."""

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""

    def read(self, address: int, size: int) -> bytes:
        """Read memory."""

    def write(self, address: int, raw: bytes) -> None:
        """Write memory."""


def read64(link: Link, name: str) -> int:
    """Read the pair of registers ``name``_LO and ``name``_HI."""
    low, high = (link.read32(getattr(regmap, f"{name}_{half}")) for half in ("LO", "HI"))
    return low | high << 32


def write64(link: Link, name: str, value: int) -> None:
    """Write the pair of registers ``name``_LO and ``name``_HI."""
    link.write32(getattr(regmap, f"{name}_LO"), value & 0xFFFFFFFF)
    link.write32(getattr(regmap, f"{name}_HI"), value >> 32)


@dataclass(frozen=True)
class Parameters:
    """Parameters of a unit, as its registers tell them."""

    head_dim: int  # elements of a query, key or value row (D)
    fold: int  # beats of the arrays per token (F)
    query_tile: int  # query rows that the arrays hold at once (Mt)
    bus_bytes: int  # of a beat of the memory port
    max_rows: int  # query rows of the largest job (M)
    max_chunks: int  # of the largest job that selects chunks
    block_tokens: int  # of a softmax block (T)
    q_bits: int  # of a query element
    buffer_tokens: int  # of a slot of the chunk buffer
    buffer_slots: int
    contexts: int  # jobs that may be under way at once
    read_ports: int


def identify(link: Link) -> Parameters:
    """Read who the unit is.

    Raises
    ------
    IncompatibleUnit
        when it is not the unit, has another register map, or computes other numbers than the
        golden model.
    """
    found = link.read32(regmap.ID)
    if found != regmap.ID_VALUE:
        raise IncompatibleUnit(f"unit must have ID {regmap.ID_VALUE:#010x}, not {found:#010x}")
    version = link.read32(regmap.VERSION) & regmap.VERSION_MAP_MASK
    if version != regmap.VERSION_MAP_VALUE:
        raise IncompatibleUnit(
            f"unit must have version {regmap.VERSION_MAP_VALUE} of the register map, "
            f"not {version}"
        )
    names = [field.name for field in fields(Parameters)]
    unit = Parameters(**{name: link.read32(regmap.PARAMETERS[name]) for name in names})
    for name, known in (("block_tokens", BLOCK_TOKENS), ("q_bits", Q_BITS)):
        if getattr(unit, name) != known:
            raise IncompatibleUnit(
                f"unit must have {name} {known} as the golden model, not {getattr(unit, name)}"
            )
    for name in names:
        if getattr(unit, name) < 1:
            raise IncompatibleUnit(f"unit must have {name} of at least 1, not 0")
    if unit.max_rows > MAX_ROWS:
        raise IncompatibleUnit(
            f"unit must have max_rows of at most {MAX_ROWS}, not {unit.max_rows}"
        )
    return unit


class Ring:
    """Both rings of a unit: descriptors that it fetches, completions that it writes.

    Parameters
    ----------
    link
        registers and memory
    address
        of :meth:`n_bytes` bytes for both rings, a multiple of 64
    size
        log2 of the entries of both rings
    """

    def __init__(self, link: Link, address: int, size: int):
        self.link = link
        self.size = size
        self.entries = 1 << size
        self.descriptors = address
        self.completions = address + self.entries * DESCRIPTOR_BYTES
        self.announced = 0
        self.collected = 0

    @staticmethod
    def n_bytes(size: int) -> int:
        """Bytes of memory that rings of 2**``size`` entries take.

        Raises
        ------
        ValueError
            when ``size`` is out of range.
        """
        if not 0 <= size <= MAX_RING_SIZE:
            raise ValueError(f"ring_size must be from 0 to {MAX_RING_SIZE}, not {size}")
        return (DESCRIPTOR_BYTES + COMPLETION_BYTES) << size

    @property
    def room(self) -> int:
        """Descriptors that may be posted now."""
        return self.entries - (self.announced - self.collected)

    def start(self) -> None:
        """Set up both rings of a unit that was reset, and let it fetch."""
        self.announced = self.collected = 0
        # Records that are left over from before would have valid sequence numbers.
        self.link.write(self.completions, bytes(self.entries * COMPLETION_BYTES))
        write64(self.link, "RING", self.descriptors)
        write64(self.link, "COMPLETION", self.completions)
        self.link.write32(regmap.RING_SIZE, self.size)
        self.link.write32(regmap.EVENT, regmap.EVENT_DONE_MASK | regmap.EVENT_ERROR_MASK)
        self.link.write32(regmap.MASK, regmap.MASK_DONE_MASK | regmap.MASK_ERROR_MASK)
        self.link.write32(regmap.CONTROL, regmap.CONTROL_ENABLE_MASK)

    def post(self, descriptors: Sequence[bytes]) -> None:
        """Write descriptors into the ring and ring the doorbell once.

        Raises
        ------
        ValueError
            when there are more than :attr:`room`.
        """
        if len(descriptors) > self.room:
            raise ValueError(f"descriptors must be at most {self.room}, not {len(descriptors)}")
        for raw in descriptors:
            entry = self.announced % self.entries
            self.link.write(self.descriptors + entry * DESCRIPTOR_BYTES, raw)
            self.announced += 1
        self.link.write32(regmap.TAIL, self.announced & 0xFFFF)

    def collect(self) -> list[dict[str, int]]:
        """Acknowledge the interrupt and return the new completion records, in order.

        Raises
        ------
        TransportError
            when the unit reports an error that is none of a job, or a record is not the one that
            was due.
        """
        # First the event, then the count: a completion between the two sets the event again.
        self.link.write32(regmap.EVENT, regmap.EVENT_DONE_MASK)
        count = (self.link.read32(regmap.COMPLETED) - self.collected) & 0xFFFF
        if count > self.announced - self.collected:
            raise TransportError(
                f"completions must be of the {self.announced - self.collected} jobs under way, "
                f"not {count}"
            )
        records = [self._record() for _ in range(count)]
        if not count or any(record["code"] for record in records):
            self._clear_error()
        return records

    def _record(self) -> dict[str, int]:
        entry = self.collected % self.entries
        raw = self.link.read(self.completions + entry * COMPLETION_BYTES, COMPLETION_BYTES)
        self.collected += 1
        due = self.collected & 0xFFFFFFFF
        record = unpack_completion(raw)
        if record["sequence"] == due:
            return record
        # A record that could not be written is told by the registers.
        code, sequence, address = self._error()
        if not code or sequence != due:
            raise TransportError(f"completion must have sequence {due}, not {record['sequence']}")
        known = {"sequence": due, "code": int(code), "error_addr": address}
        return {name: known.get(name, 0) for name in COMPLETION}

    def _error(self) -> tuple[int, int, int]:
        """Code, sequence number and address of the first error."""
        code = self.link.read32(regmap.ERROR) & regmap.ERROR_CODE_MASK
        return code, self.link.read32(regmap.ERROR_SEQUENCE), read64(self.link, "ERROR_ADDRESS")

    def _clear_error(self) -> None:
        if not self.link.read32(regmap.EVENT) & regmap.EVENT_ERROR_MASK:
            return
        code, sequence, address = self._error()
        if not sequence:
            raise TransportError(f"the unit reports {ErrorCode(code).name} at {address:#x}")
        self.link.write32(regmap.EVENT, regmap.EVENT_ERROR_MASK)
