"""The unit with memory behind it, in C++: fast runs, faults, and a check of its AXI traffic."""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping

import numpy as np

from moska.gen.config import Config
from moska.gen.emit import TOP, generate
from moska.sim.verilator import environment

CHANNELS = ("ar", "r", "aw", "w", "b", "axil")  # order of `Channel` in device.cpp
KEPT = 48  # libraries and Verilog files that a cache keeps
TOKENS = 1 << 16  # of a byte
NO_LIMIT = (1 << 64) - 1
SOURCE = pathlib.Path(__file__).with_name("device.cpp")
VERILATOR_ARGS = (
    "--cc", "--prefix", "Vdevice", "--top-module", "device", "-Wno-fatal", "-Wno-lint",
    "--x-assign", "fast", "--x-initial", "fast", "-O3", "--timescale", "1ns/1ns",
)  # fmt: skip
COMPILER_ARGS = ("-std=gnu++20", "-fPIC", "-w")
# For what runs each cycle, what runs once, and Verilator's own sources.
OPTIMIZE = "OPT_FAST=-O2 OPT_SLOW=-O0 OPT_GLOBAL=-O2"
TRACE_ARGS = {".fst": ("--trace-fst", "--trace-structs"), ".vcd": ("--trace-vcd",)}
COVERAGE_ARGS = ("--coverage-line", "--coverage-toggle", "--coverage-max-width", "1024")


class DeviceError(RuntimeError):
    """A library that cannot be built, or a register access that fails."""


@dataclasses.dataclass(frozen=True)
class Totals:
    """Traffic of one memory port."""

    read_bursts: int
    read_beats: int
    read_bytes: int
    max_read_bytes: int  # requested and not delivered, at most
    write_bursts: int
    write_beats: int
    write_bytes: int  # those with a strobe
    responses: int


class Device(contextlib.AbstractContextManager):
    """A simulated unit, its memory and the host's side of its registers.

    Knows the ports of the unit only. The library is built when no cached one fits; the cache is
    ``$MOSKA_CACHE``, else ``$XDG_CACHE_HOME/moska``, else ``~/.cache/moska``. The unit comes out
    of reset when the device is made.

    Parameters
    ----------
    config
        the unit; with ``verilog``, only its bus and the rate of its memory count
    directory
        cache to use instead
    memory_bytes
        size of memory, a multiple of 4096; memory that is not touched costs nothing
    memory
        array of bytes to use as memory instead, shared with another process, say
    base
        first address of memory, a multiple of 4096
    seed
        of pauses and of the order of answers
    trace
        file for waves, .vcd or .fst (needs the headers of lz4 and zlib); begins with the reset
    verilog
        file with the module ``moska`` to simulate instead of generating it
    coverage
        count lines and toggles, for :meth:`write_coverage`; makes runs several times slower

    Raises
    ------
    DeviceError
        when the library cannot be built.
    ValueError
        when an argument is out of range or the Verilog does not have the unit's ports.
    """

    def __init__(
        self,
        config: Config,
        directory: pathlib.Path | None = None,
        *,
        memory_bytes: int = 1 << 26,
        memory: np.ndarray | None = None,
        base: int = 0,
        seed: int = 0,
        trace: pathlib.Path | None = None,
        verilog: pathlib.Path | None = None,
        coverage: bool = False,
    ):
        self._handle = None
        if memory is not None:
            memory_bytes = len(memory)
        if memory_bytes <= 0 or memory_bytes % 4096:
            raise ValueError(f"memory_bytes must be a multiple of 4096, not {memory_bytes}")
        if base % 4096 or not 0 <= base <= NO_LIMIT + 1 - memory_bytes:
            raise ValueError(
                f"base must be a multiple of 4096 with memory in 64 bits, not {base:#x}"
            )
        suffix = None if trace is None else pathlib.Path(trace).suffix
        if suffix is not None and suffix not in TRACE_ARGS:
            raise ValueError(f"trace must be a .vcd or .fst file, not {trace}")
        self.config = config
        self.directory = pathlib.Path(directory) if directory else cache_directory()
        self.verilog = pathlib.Path(verilog) if verilog else generated(config, self.directory)
        self.library = built(self.verilog, self.directory, trace=suffix, coverage=coverage)
        self._c = _load(self.library)
        if self._c.device_bus_bytes() != config.bus_bytes:
            raise ValueError(
                f"bus of {self.verilog} must have {config.bus_bytes} bytes as {config.name}, "
                f"not {self._c.device_bus_bytes()}"
            )
        self.ports = ("m_axi", "m_axi_v") if self._c.device_has_values() else ("m_axi",)
        self.memory = np.zeros(memory_bytes, dtype=np.uint8) if memory is None else memory
        self.base = base
        self._traces = trace is not None
        self._handle = self._c.device_create(
            self.memory.ctypes.data, base, memory_bytes, seed & NO_LIMIT,
            os.fsencode(trace) if trace else None,
        )  # fmt: skip
        self.timing()
        self.reset()

    def __exit__(self, *exception):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """End the simulation and its trace; memory stays."""
        if self._handle is not None:
            self._c.device_destroy(self._handle)
            self._handle = None

    @property
    def _open(self):
        if self._handle is None:
            raise ValueError("device is closed")
        return self._handle

    # Time --------------------------------------------------------------------------------------

    @property
    def cycle(self) -> int:
        """Clock cycles since the device was made."""
        return self._c.device_cycle(self._open)

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt in the current cycle."""
        return bool(self._c.device_interrupt(self._open))

    def run(self, max_cycles: int, *, until_interrupt: bool = True) -> int:
        """Run until the interrupt is high (now, or after a cycle), at most ``max_cycles``.

        Returns the cycles run.
        """
        if max_cycles < 0:
            raise ValueError(f"max_cycles must not be negative, not {max_cycles}")
        return self._c.device_run(self._open, max_cycles, until_interrupt)

    def reset(self, cycles: int = 8):
        """Hold the unit in reset; bursts under way are forgotten, memory stays as it is."""
        if cycles < 1:
            raise ValueError(f"cycles must be at least 1, not {cycles}")
        self._c.device_reset(self._open, cycles)

    def timing(
        self,
        *,
        latency: int = 0,
        bytes_per_cycle: float | None = None,
        stall: float | Mapping[str, float] = 0.0,
        shuffle: bool = False,
    ):
        """Set how memory answers, from the next cycle on. What is not given gets its default.

        Parameters
        ----------
        latency
            cycles between a request and the first cycle with an answer: the first beat of a burst
            is offered ``latency + 1`` cycles after its AR at the earliest, a response as many
            after its last beat
        bytes_per_cycle
            of R and W of a port together; the configuration's ``memory_bytes_per_cycle`` when not
            given; ``math.inf``: no limit
        stall
            chance of a pause in each cycle: of all channels, or by name ("ar", "r", "aw", "w",
            "b", and "axil": the host's side of the registers)
        shuffle
            answer bursts of different IDs in random order, their beats interleaved
        """
        if latency < 0:
            raise ValueError(f"latency must not be negative, not {latency}")
        rate = self.config.memory_bytes_per_cycle if bytes_per_cycle is None else bytes_per_cycle
        if not rate > 0:
            raise ValueError(f"bytes_per_cycle must be more than 0, not {bytes_per_cycle}")
        # More than a beat a cycle on R and on W makes no difference.
        rate = min(rate, 2 * self.config.bus_bytes)
        chances = stall if isinstance(stall, Mapping) else dict.fromkeys(CHANNELS, stall)
        for name, chance in chances.items():
            if name not in CHANNELS:
                raise ValueError(f"stall must name {', '.join(CHANNELS)}, not {name!r}")
            if not 0 <= chance < 1:
                raise ValueError(f"stall must be from 0 to less than 1, not {chance}")
        thresholds = (ctypes.c_uint32 * len(CHANNELS))(
            *(math.floor(chances.get(name, 0.0) * 2**32) for name in CHANNELS)
        )
        self._c.device_timing(
            self._open, latency, max(1, round(rate * TOKENS)), thresholds, shuffle
        )

    # Registers and memory ----------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """Read a register by an AXI4-Lite transaction."""
        return self._access(offset, None)

    def write32(self, offset: int, value: int):
        """Write a register by an AXI4-Lite transaction."""
        self._access(offset, value)

    def _access(self, offset, value):
        if not 0 <= offset < 4096:
            raise ValueError(f"offset must be from 0 to 4095, not {offset:#x}")
        if value is not None and not 0 <= value < 1 << 32:
            raise ValueError(f"value must have 32 bits, not {value:#x}")
        word = ctypes.c_uint32(value or 0)
        response = self._c.device_access(self._open, value is not None, offset, ctypes.byref(word))
        if response:
            kind = "read" if value is None else "write"
            names = {-1: "no response", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}
            raise DeviceError(f"{kind} of register {offset:#05x}: {names[response]}")
        return word.value

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory; what the unit writes is there once it could see the response."""
        return self.memory[self._range(address, size)].tobytes()

    def write(self, address: int, raw: bytes):
        """Write into memory."""
        self.memory[self._range(address, len(raw))] = np.frombuffer(raw, dtype=np.uint8)

    def _range(self, address, size):
        offset = address - self.base
        if offset < 0 or size < 0 or offset + size > len(self.memory):
            raise ValueError(
                f"memory has {len(self.memory):#x} bytes from {self.base:#x} on; {size} bytes at "
                f"{address:#x} are not in it"
            )
        return slice(offset, offset + size)

    # Faults ------------------------------------------------------------------------------------

    def inject(
        self, *, kind: str, address: int, size: int, response: int = 2, count: int | None = None
    ):
        """Answer accesses to ``size`` bytes at ``address`` with an error.

        Reads: beats that touch the bytes carry ``response`` and no data. Writes: bursts that touch
        them get ``response`` and change nothing. ``count`` accesses, or all. Accesses outside
        memory get DECERR without that.
        """
        if kind not in ("read", "write"):
            raise ValueError(f"kind must be 'read' or 'write', not {kind!r}")
        if response not in (2, 3):
            raise ValueError(f"response must be 2 (SLVERR) or 3 (DECERR), not {response}")
        if size < 1 or not 0 <= address <= NO_LIMIT - size:
            raise ValueError(f"range must lie in 64-bit memory, not {size} bytes at {address:#x}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self._c.device_inject(
            self._open, kind == "write", address, address + size, response,
            NO_LIMIT if count is None else count,
        )  # fmt: skip

    def clear_injections(self):
        """Answer all accesses to memory with OKAY again."""
        self._c.device_clear_injections(self._open)

    def allow(self, *, read: tuple[int, int] | None, write: tuple[int, int] | None):
        """Ranges (first address, end) that bursts must lie in; None allows all addresses."""
        for is_write, limits in enumerate((read, write)):
            first, end = limits or (0, 0)
            if not 0 <= first <= end <= NO_LIMIT:
                raise ValueError(f"range must be (first, end), not {limits}")
            self._c.device_allow(self._open, is_write, limits is not None, first, end)

    @property
    def violations(self) -> list[str]:
        """Breaches of AXI4, of AXI4-Lite and of :meth:`allow`, with their cycle; 1000 at most."""
        handle = self._open
        texts = iter(range(self._c.device_n_violations(handle)))
        raws = (self._c.device_violation(handle, index) for index in texts)
        return [raw.decode() for raw in raws if raw is not None]

    @property
    def totals(self) -> dict[str, Totals]:
        """Traffic of each memory port since the device was made or :meth:`clear_totals`."""
        result = {}
        for index, port in enumerate(self.ports):
            raw = _Totals()
            self._c.device_totals(self._open, index, ctypes.byref(raw))
            result[port] = Totals(**{name: getattr(raw, name) for name, _ in raw._fields_})
        return result

    def clear_totals(self):
        """Count traffic from 0 on again; what is in flight now is in no maximum."""
        self._c.device_clear_totals(self._open)

    # Waves -------------------------------------------------------------------------------------

    def trace_on(self):
        """Write waves from here on."""
        self._trace(True)

    def trace_off(self):
        """Write no waves from here on."""
        self._trace(False)

    def _trace(self, on):
        if not self._traces:
            raise ValueError("device has no trace")
        self._c.device_trace(self._open, on)

    # Coverage and mutants ----------------------------------------------------------------------

    def write_coverage(self, path: pathlib.Path):
        """Write the counts of lines and toggles since the device was made."""
        if not self._c.device_write_coverage(self._open, os.fsencode(path)):
            raise ValueError("device counts no coverage")

    def set_mutant(self, number: int):
        """Choose a mutant of Verilog that has them (:mod:`moska.sim.schemata`); 0: none."""
        if not self._c.device_set_mutant(self._open, number):
            raise ValueError(f"{self.verilog} has no mutants")


# Library ---------------------------------------------------------------------------------------


class _Totals(ctypes.Structure):
    _fields_ = tuple((field.name, ctypes.c_uint64) for field in dataclasses.fields(Totals))


def _load(path):
    """Load a library and declare its functions."""
    library = ctypes.CDLL(str(path))
    handle, u64, u32, flag = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
    for name, result, *arguments in (
        ("create", handle, handle, u64, u64, u64, ctypes.c_char_p),
        ("destroy", None, handle),
        ("bus_bytes", u32),
        ("has_values", flag),
        ("reset", None, handle, u64),
        ("run", u64, handle, u64, flag),
        ("access", flag, handle, flag, u32, ctypes.POINTER(u32)),
        ("cycle", u64, handle),
        ("interrupt", flag, handle),
        ("trace", None, handle, flag),
        ("write_coverage", flag, handle, ctypes.c_char_p),
        ("set_mutant", flag, handle, u32),
        ("timing", None, handle, u64, u64, ctypes.POINTER(u32), flag),
        ("inject", None, handle, flag, u64, u64, u32, u64),
        ("clear_injections", None, handle),
        ("allow", None, handle, flag, flag, u64, u64),
        ("n_violations", u64, handle),
        ("violation", ctypes.c_char_p, handle, u64),
        ("totals", None, handle, flag, ctypes.POINTER(_Totals)),
        ("clear_totals", None, handle),
    ):
        function = getattr(library, f"device_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


def cache_directory() -> pathlib.Path:
    """Return the folder for generated Verilog and libraries."""
    if os.environ.get("MOSKA_CACHE"):
        return pathlib.Path(os.environ["MOSKA_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "moska"


@functools.cache
def sources(*parts: str) -> bytes:
    """Digest of what Verilog is generated from, once: this process keeps the code it has loaded."""
    key = hashlib.sha256(importlib.metadata.version("amaranth").encode())
    root = pathlib.Path(__file__).resolve().parent.parent
    for part in parts:
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                key.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return key.digest()


def generated(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Return the cached Verilog of a configuration; generate it when there is none."""
    key = hashlib.sha256(repr(sorted(config.parameters().items())).encode())
    key.update(sources("golden", "hw", "gen"))

    def make(scratch):
        return generate(config, scratch)[0]

    return cached(directory, f"{config.name}-{key.hexdigest()[:24]}.v", make)


def built(
    verilog: pathlib.Path,
    directory: pathlib.Path,
    *,
    trace: str | None = None,
    coverage: bool = False,
) -> pathlib.Path:
    """Return the cached library of a Verilog file; build it when there is none.

    Parameters
    ----------
    verilog
        file with the module ``moska``
    directory
        the cache
    trace
        ".vcd" or ".fst" for a library that can write such waves
    coverage
        for a library that counts lines and toggles
    """
    text = verilog.read_text()
    extra = (*TRACE_ARGS.get(trace, ()), *(COVERAGE_ARGS if coverage else ()))
    options = (*VERILATOR_ARGS, *COMPILER_ARGS, OPTIMIZE, *extra)
    key = hashlib.sha256()
    for part in (
        text, SOURCE.read_text(), wrapper(text), *options, platform.machine(),
        importlib.metadata.version("verilator"),
    ):  # fmt: skip
        key.update(part.encode() + b"\0")

    def make(scratch):
        return _build(verilog.resolve(), wrapper(text), scratch, extra)

    return cached(directory, f"{verilog.stem.split('-')[0]}-{key.hexdigest()[:24]}.so", make)


def cached(directory: pathlib.Path, name: str, make: Callable) -> pathlib.Path:
    """Return the file ``name`` of a cache; ``make`` it in a folder of its own if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / name
    if not target.exists():
        with _lock(directory / f"{name}.lock"):
            if not target.exists():
                with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=directory) as scratch:
                    os.replace(make(pathlib.Path(scratch)), target)
        _prune(directory, f"*{target.suffix}")
    with contextlib.suppress(OSError):
        os.utime(target)
    return target


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Generator[None, None, None]:
    """Let one process at a time into the block."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _prune(directory, pattern):
    """Remove the files that were not used for longest, and their locks."""
    used = []
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            used.append((path.stat().st_mtime, path))
    for _, path in sorted(used)[:-KEPT]:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _build(verilog, top, scratch, extra):
    """Verilate and compile in ``scratch``; returns the library."""
    (scratch / "device.v").write_text(top)
    library = scratch / "libdevice.so"
    command = [
        "verilator", *VERILATOR_ARGS, *extra, "--exe", "--build", "-j", str(os.cpu_count()),
        "-CFLAGS", " ".join(COMPILER_ARGS), "-LDFLAGS", "-shared",
        "-MAKEFLAGS", OPTIMIZE,
        "--Mdir", str(scratch / "obj"), "-o", str(library),
        str(scratch / "device.v"), str(verilog), str(SOURCE),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **environment()}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise DeviceError(f"build of {verilog} failed:\n{tail}")
    return library


PORT = re.compile(
    r"\b(?P<kind>input|output)\s+(?:wire|reg|logic)?\s*(?:\[(?P<high>\d+):0\])?\s*"
    r"(?P<name>(?:aclk|aresetn|interrupt|mutant|(?:s_axil|m_axi|m_axi_v)_[a-z]+))\b"
)
MODULE = re.compile(rf"^module {TOP}\b.*?^endmodule", re.M | re.S)


def wrapper(text: str) -> str:
    """Verilog of the module ``device``: the unit with a register before each input.

    Raises
    ------
    ValueError
        when the text has no module of the unit's name with its ports.
    """
    module = MODULE.search(text)
    ports = {m["name"]: m for m in PORT.finditer(module[0])} if module else {}
    missing = {"aclk", "aresetn", "interrupt", "m_axi_rdata", "s_axil_rdata"} - set(ports)
    if missing:
        raise ValueError(f"verilog must have a module {TOP} with {', '.join(sorted(missing))}")
    declared, inputs, connections = [], [], []
    for name, port in sorted(ports.items()):
        # `interrupt` is a word of C++'s libraries: Verilator would rename it.
        outer = {"interrupt": "irq"}.get(name, name)
        bits = f"[{port['high'] or 0}:0] "
        declared.append(f"  {port['kind']} {bits if name != 'aclk' else ''}{outer}")
        if port["kind"] == "input" and name != "aclk":
            inputs.append((bits, name))
            connections.append(f"    .{name}({name}_q)")
        else:
            connections.append(f"    .{name}({outer})")
    return "\n".join([
        "module device (", ",\n".join(declared), ");",
        *(f"  reg {bits}{name}_q;" for bits, name in inputs),
        "  always @(posedge aclk) begin",
        *(f"    {name}_q <= {name};" for _, name in inputs),
        "  end",
        f"  {TOP} unit (", ",\n".join(connections), "  );",
        "endmodule\n",
    ])  # fmt: skip
