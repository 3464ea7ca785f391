"""Links to a unit: the interface that each kind implements, and how a URI finds its kind."""

import abc
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

GROUP = "moska.transports"


class Transport(abc.ABC):
    """Registers, memory, interrupt and reset of one unit.

    Memory may be used from any thread, several at a time. Registers, :meth:`wait`, :meth:`reset`
    and :meth:`restart` are used by one thread at a time, after another thread made the object.

    Everything raises :class:`~moska.host.errors.TransportError` when the link is broken.
    """

    memory_base: int  # first byte of the memory that is the driver's; a multiple of 64
    memory_bytes: int  # a multiple of 64
    clock_mhz: float | None = None  # of the unit; None when unknown
    description: str = ""
    stall_timeout: float = 30.0  # seconds without a completion that mean that the unit hangs

    @abc.abstractmethod
    def read32(self, offset: int) -> int:
        """Read a register."""

    @abc.abstractmethod
    def write32(self, offset: int, value: int) -> None:
        """Write a register; what :meth:`write` has written before is seen by the unit then."""

    @abc.abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """Read memory."""

    @abc.abstractmethod
    def write(self, address: int, raw: bytes) -> None:
        """Write memory."""

    @abc.abstractmethod
    def wait(self, timeout: float) -> bool:
        """Wait until the interrupt is high, at most ``timeout`` seconds; return whether it is."""

    def wake(self) -> None:
        """End a :meth:`wait` of another thread early; that it cannot costs only time."""
        return

    @abc.abstractmethod
    def reset(self) -> None:
        """Reset the unit, with all that it has asked of memory; memory keeps its contents."""

    def restart(self) -> None:
        """Mend the link after a TransportError and reset the unit; memory keeps its contents.

        When that fails, the unit counts as dead: it touches memory no more.
        """
        self.reset()

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; may be called again."""


Opener = Callable[[str, Mapping[str, str]], Transport]


def connect(uri: str) -> Transport:
    """Open the transport that a URI names: ``scheme:name?option=value&option=value``.

    Schemes are the entry points of the group ``moska.transports``: functions of the name and the
    options.

    Raises
    ------
    ValueError
        for an unknown scheme, name or option.
    TransportError
        when there is no unit behind it.
    """
    scheme, colon, rest = uri.partition(":")
    openers = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if not colon or scheme not in openers:
        known = ", ".join(f"{name}:" for name in sorted(openers))
        raise ValueError(f"uri must begin with one of {known}, not {uri!r}")
    name, _, query = rest.partition("?")
    opener: Opener = openers[scheme].load()
    return opener(name, dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))))


Option = tuple[Callable[[str], Any], str]  # reads a value; what the value must be


def parse_options(
    scheme: str, options: Mapping[str, str], known: Mapping[str, Option]
) -> dict[str, Any]:
    """Return the values of a URI's options.

    Raises
    ------
    ValueError
        for an option that is not known, or a value that it cannot have.
    """
    values = {}
    for name, text in options.items():
        if name not in known:
            raise ValueError(
                f"option of {scheme}: must be one of {', '.join(sorted(known))}, not {name!r}"
            )
        convert, meaning = known[name]
        try:
            values[name] = convert(text)
        except ValueError:
            raise ValueError(f"{name} must be {meaning}, not {text!r}") from None
    return values
