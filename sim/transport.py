"""Transports of the driver without a board: the golden model and the simulated unit."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moska.gen.config import Config
from moska.host.errors import TransportError
from moska.host.transport import Transport
from moska.sim.model import ModelDevice

PAGE = 4096
MEMORY_BYTES = 1 << 30  # memory that is not touched costs nothing
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(text: str) -> int:
    """Bytes: a number with K, M or G behind it."""
    factor = UNITS.get(text[-1:].upper(), 1)
    size = int(text[:-1] if factor > 1 else text) * factor
    if size <= 0 or size % PAGE:
        raise ValueError
    return size


OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "memory": (_size, "a multiple of 4096 bytes, as 64M or 1G"),
}


def parse(
    scheme: str, options: Mapping[str, str], known: Mapping[str, tuple[Callable[[str], Any], str]]
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


class MemoryTransport(Transport):
    """A transport whose memory is an array of this process."""

    def __init__(self, config: Config, memory: np.ndarray):
        self.memory = memory
        self.memory_base = 0
        self.memory_bytes = len(memory)
        self.clock_mhz = float(config.clock_mhz)

    def read(self, address: int, size: int) -> bytes:
        """Read memory."""
        return self.memory[self._range(address, size)].tobytes()

    def write(self, address: int, raw: bytes) -> None:
        """Write memory."""
        self.memory[self._range(address, len(raw))] = np.frombuffer(raw, dtype=np.uint8)

    def _range(self, address: int, size: int) -> slice:
        if not 0 <= address <= address + size <= len(self.memory):
            raise TransportError(
                f"memory has {len(self.memory)} bytes; {size} at {address:#x} are not in it"
            )
        return slice(address, address + size)


class GoldenTransport(MemoryTransport):
    """The golden model, which computes while the driver waits.

    Attributes
    ----------
    model
        the unit; tests inject errors there
    """

    def __init__(self, model: ModelDevice):
        super().__init__(model.config, model.memory)
        self.model = model
        self.description = f"golden model of {model.config.name}"
        self._woken = threading.Event()

    def read32(self, offset: int) -> int:
        """Read a register."""
        return self.model.read32(offset)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        self.model.write32(offset, value)

    def wait(self, timeout: float) -> bool:
        """Compute the next job, if there is one."""
        if not self.model.run_job():
            self._woken.wait(timeout)
            self._woken.clear()
        return self.model.interrupt

    def wake(self) -> None:
        """End a wait of another thread early."""
        self._woken.set()

    def reset(self) -> None:
        """Reset the unit."""
        self.model.reset()

    def close(self) -> None:
        """Do nothing: memory goes with the object."""


def open_golden(name: str, options: Mapping[str, str]) -> GoldenTransport:
    """Open ``golden:NAME?memory=1G``: the golden model of a preset or a TOML file."""
    values = parse("golden", options, OPTIONS)
    config = Config.load(name)
    return GoldenTransport(ModelDevice(config, memory_bytes=values.get("memory", MEMORY_BYTES)))
