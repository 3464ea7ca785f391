"""Transports of the driver without a board: the golden model and the simulated unit."""

import contextlib
import mmap
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from moska.gen.config import Config
from moska.host.errors import TransportError
from moska.host.transport import Option, Transport, parse_options
from moska.sim.model import ModelDevice

PAGE = 4096
MEMORY_BYTES = 1 << 30  # memory that is not touched costs nothing
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
WAKE = "wake"  # message of SimTransport.wake
END_SECONDS = 5.0  # that a child may take to end by itself


def _size(text: str) -> int:
    """Bytes: a number with K, M or G behind it."""
    factor = UNITS.get(text[-1:].upper(), 1)
    size = int(text[:-1] if factor > 1 else text) * factor
    if size <= 0 or size % PAGE:
        raise ValueError
    return size


def _trace(text: str) -> pathlib.Path:
    if not text.endswith((".vcd", ".fst")):
        raise ValueError
    return pathlib.Path(text)


GOLDEN_OPTIONS: Mapping[str, Option] = {
    "memory": (_size, "a multiple of 4096 bytes, as 64M or 1G"),
}
TIMING_OPTIONS: Mapping[str, Option] = {  # of moska.sim.device.Device.timing
    "latency": (int, "a number of cycles"),
    "bytes_per_cycle": (float, "a number of bytes"),
    "stall": (float, "a chance from 0 to 1"),
    "shuffle": (lambda text: bool(int(text)), "0 or 1"),
}
SIM_OPTIONS: Mapping[str, Option] = {
    **GOLDEN_OPTIONS,
    **TIMING_OPTIONS,
    "seed": (int, "an integer"),
    "trace": (_trace, "a .vcd or .fst file"),
}


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

    def inject(self, **options: Any) -> None:
        """Answer accesses to memory with an error, as :meth:`ModelDevice.inject`."""
        self.model.inject(**options)

    def clear_injections(self) -> None:
        """Answer all accesses to memory with OKAY again."""
        self.model.clear_injections()


class SimTransport(MemoryTransport):
    """The simulated Verilog, in a process of its own that shares memory with this one.

    Cycles pass while the driver waits and with each access to a register. When the process ends,
    :meth:`restart` starts another one with the same memory.

    Parameters
    ----------
    config
        the unit
    memory_bytes
        of memory, a multiple of 4096
    timing
        how memory answers, as :meth:`moska.sim.device.Device.timing` takes it
    options
        more arguments of :class:`moska.sim.device.Device`

    Attributes
    ----------
    process
        the child, None before the first start and when closed
    """

    stall_timeout = 600.0  # a large job takes minutes

    def __init__(
        self,
        config: Config,
        *,
        memory_bytes: int = MEMORY_BYTES,
        timing: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        self.config = config
        self.process: subprocess.Popen | None = None
        self._timing, self._options = dict(timing or {}), options
        self._connection: Connection | None = None
        self._call_lock, self._send_lock = threading.Lock(), threading.Lock()
        # Files without a name: whatever ends, nothing stays behind.
        self._memory_file = _memory_file(memory_bytes)
        self._errors = tempfile.TemporaryFile()
        super().__init__(
            config, np.frombuffer(mmap.mmap(self._memory_file, memory_bytes), dtype=np.uint8)
        )
        self.description = f"simulated Verilog of {config.name}"
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "moska.sim.server",
                    str(theirs.fileno()), str(self._memory_file),
                ],
                pass_fds=(theirs.fileno(), self._memory_file),
                stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
            )  # fmt: skip
            self._connection = Connection(ours.detach())
        self._exchange((self.config.parameters(), self._timing, self._options))

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of the child's device, or read an attribute."""
        if not self._call_lock.acquire(blocking=False):
            self.wake()
            self._call_lock.acquire()
        try:
            return self._exchange((name, arguments))
        finally:
            self._call_lock.release()

    def _exchange(self, message: Any) -> Any:
        if self._connection is None:
            raise TransportError("simulator must run, but has ended")
        try:
            with self._send_lock:
                self._connection.send(message)
            good, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise TransportError(self._end()) from error
        if good:
            return value
        raise value if isinstance(value, ValueError) else TransportError(str(value))

    def _end(self) -> str:
        """End the child; return how it ended."""
        with self._send_lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        process, self.process = self.process, None
        if process is None:
            return "simulator is not running"
        try:
            code = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        self._errors.seek(0)
        self._errors.truncate()
        return f"simulator ended {how}" + (f": {said[-2000:]}" if said else "")

    # Transport ---------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """Read a register."""
        return self.call("read32", offset=offset)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        self.call("write32", offset=offset, value=value)

    def wait(self, timeout: float) -> bool:
        """Simulate until the interrupt is high."""
        return self.call("wait", seconds=timeout)

    def wake(self) -> None:
        """End a wait of another thread early."""
        with self._send_lock, contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send(WAKE)

    def reset(self) -> None:
        """Reset the unit."""
        self.call("reset")

    def restart(self) -> None:
        """Start a new child; the unit comes out of reset, memory is what it was."""
        self._end()
        self._start()

    def close(self) -> None:
        """End the child and give memory back."""
        self._end()
        self.memory = np.zeros(0, dtype=np.uint8)
        if self._memory_file >= 0:
            os.close(self._memory_file)
            self._memory_file = -1
        self._errors.close()

    # For tests ---------------------------------------------------------------------------------

    def timing(self, **options: Any) -> None:
        """Set how memory answers; what is not given gets its default."""
        self.call("timing", **options)
        self._timing = options

    def inject(self, **options: Any) -> None:
        """Answer accesses to memory with an error, as :meth:`moska.sim.device.Device.inject`."""
        self.call("inject", **options)

    def clear_injections(self) -> None:
        """Answer all accesses to memory with OKAY again."""
        self.call("clear_injections")

    @property
    def violations(self) -> list[str]:
        """Breaches of AXI since the child was started."""
        return self.call("violations")


def _memory_file(size: int) -> int:
    """Return the descriptor of a file without a name, ``size`` zeros that take no room yet."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("moska")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.truncate(number, size)
    return number


def open_golden(name: str, options: Mapping[str, str]) -> GoldenTransport:
    """Open ``golden:NAME?memory=1G``: the golden model of a preset or a TOML file."""
    values = parse_options("golden", options, GOLDEN_OPTIONS)
    config = Config.load(name)
    return GoldenTransport(ModelDevice(config, memory_bytes=values.get("memory", MEMORY_BYTES)))


def open_sim(name: str, options: Mapping[str, str]) -> SimTransport:
    """Open ``sim:NAME?latency=100``: the simulated Verilog of a preset or a TOML file.

    The first time, building it takes half a minute; see :class:`moska.sim.device.Device`.
    """
    values = parse_options("sim", options, SIM_OPTIONS)
    config = Config.load(name)
    timing = {name: values.pop(name) for name in TIMING_OPTIONS if name in values}
    return SimTransport(
        config, memory_bytes=values.pop("memory", MEMORY_BYTES), timing=timing, **values
    )
