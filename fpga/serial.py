"""Transport of the driver to a board: requests over a serial port or a socket."""

import contextlib
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from moska.fpga import frame, map
from moska.fpga.frame import Operation, Status
from moska.host.errors import (
    BoardReset,
    BusError,
    IncompatibleUnit,
    LinkCorrupted,
    LinkCut,
    LinkTimeout,
    TransportError,
)
from moska.host.transport import Option, Transport, parse_options

WORD = frame.WORD.size
FRAME_BYTES = frame.MAX_WORDS * WORD  # of memory in a frame
BAUD = 3_000_000
RETRIES = 3
TIMEOUT = 1.0  # seconds until a request is repeated
QUIET_SECONDS = 0.1  # without a byte: what was damaged is over
POLL_SECONDS = 1e-3  # between questions whether the interrupt is high
RESET_SECONDS = 10.0  # that a reset may take
EXTRA = "pip install 'moska[serial]'"


class SerialTransport(Transport):
    """A board behind a serial port: its memory, the registers of its unit.

    A request that is not answered in time, or whose answer is damaged, is repeated; the board does
    nothing twice. What has returned without an error has been done.

    Opening initialises the SDRAM when nobody has since the board's reset.

    When the link was cut, :meth:`read` and :meth:`write` open it again, and reset the unit first:
    a job that was under way must not write where another one's data is put. What concerns jobs
    raises LinkCut then, until :meth:`restart` says that they are given up.

    Parameters
    ----------
    port
        a device, or a URL of pyserial, as ``socket://localhost:2345``
    baud
        bits a second of a serial port
    retries
        how often a request is repeated
    timeout
        seconds until a request is repeated
    parameters
        of the configuration that the board must have been built of; any when not given

    Attributes
    ----------
    retries
        requests that were repeated since the object was made
    max_retries, timeout
        as given; tests change them

    Raises
    ------
    IncompatibleUnit
        when the bitstream is another one.
    TransportError
        when the port cannot be opened or nothing answers.
    """

    def __init__(
        self,
        port: str,
        *,
        baud: int = BAUD,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        parameters: Mapping[str, object] | None = None,
    ):
        self.port = port
        self.baud = baud
        self.max_retries = retries
        self.timeout = timeout
        self.retries = 0
        self._expected = None if parameters is None else map.config_hash(parameters)
        self._found: Mapping[str, int] = {}  # registers of the board
        self._lock = threading.Lock()  # for one request
        self._mending = threading.RLock()
        self._down = False  # the link was cut and is not mended
        self._lost = False  # the unit was reset, and nobody has given up its jobs
        self._woken = threading.Event()
        self._serial: Any = None
        self._sequence = 0
        self._interrupt = False  # as the last answer said
        self.description = f"board at {port}"
        try:
            self._connect()
            self._identify()
            if not self._found["sdram_ready"]:
                self._initialise()
        except BaseException:
            self.close()
            raise
        self.memory_base = map.MEMORY_BASE
        self.memory_bytes = self._found["memory_bytes"]
        self.clock_mhz = self._found["clock_hz"] / 1e6

    # Opening -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Open the port and begin a conversation."""
        try:
            import serial
        except ImportError as error:
            raise TransportError(f"pyserial must be installed ({EXTRA}): {error}") from error

        with self._cutting("open"), self._lock:
            self._shut()
            self._serial = serial.serial_for_url(
                self.port, baudrate=self.baud, timeout=0, exclusive=True
            )
            # Adapters hold bytes back for up to 16 ms otherwise; not all ports can be told.
            with contextlib.suppress(AttributeError, NotImplementedError, ValueError, OSError):
                self._serial.set_low_latency_mode(True)
            self._serial.reset_input_buffer()
        self._greet(secrets.randbits(32))

    def _greet(self, number: int) -> None:
        """Say HELLO, which the board answers with the number."""
        (answer,) = frame.WORD.unpack(self._exchange(Operation.HELLO, number, words=1))
        if answer != number:
            raise LinkCorrupted(f"board must answer {number:#010x} to itself, not {answer:#010x}")

    def _identify(self) -> None:
        """Read the board's registers and compare them with what is expected."""
        raw = self._read(map.BOARD_BASE, WORD * len(map.BOARD))
        values = [value for (value,) in frame.WORD.iter_unpack(raw)]
        found = dict(zip(map.BOARD, values, strict=True))
        for name, due in (("magic", map.MAGIC), ("map_version", map.MAP_VERSION)):
            if found[name] != due:
                raise IncompatibleUnit(f"board must have {name} {due:#x}, not {found[name]:#x}")
        if self._expected not in (None, found["config_hash"]):
            raise IncompatibleUnit(
                f"board must be built of the configuration {self._expected:#010x}, "
                f"not {found['config_hash']:#010x}"
            )
        self._found = found

    def _initialise(self) -> None:
        """Initialise the SDRAM."""
        for register, value, address, bank, microseconds in map.SDRAM_INIT:
            self._set(map.SDRAM["address"], address)
            self._set(map.SDRAM["baddress"], bank)
            self._set(map.SDRAM[register], value)
            if register == "command":
                self._set(map.SDRAM["command_issue"], 1)
            time.sleep(microseconds / 1e6)
        self._set(map.SDRAM["control"], map.CONTROL_HARDWARE)
        self._set(map.BOARD["sdram_ready"], 1)

    # Frames ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _cutting(self, doing: str):
        """Turn what a port raises into LinkCut."""
        try:
            yield
        except TransportError:
            raise
        # A port that was unplugged raises OSError, termios.error or TypeError.
        except Exception as error:
            raise LinkCut(f"link to {self.port} was cut ({doing}): {error}") from error

    def _exchange(
        self, operation: Operation, address: int, *, words: int = 0, **options: Any
    ) -> bytes:
        """Send a request until it is answered; return the payload of ``words`` words."""
        with self._lock:
            if self._serial is None:
                raise LinkCut(f"link to {self.port} must be open, not closed")
            self._sequence = (self._sequence + 1) % 256
            raw = frame.request(self._sequence, operation, address, words=max(words, 1), **options)
            for attempt in range(self.max_retries + 1):
                self.retries += attempt > 0
                try:
                    with self._cutting("write"):
                        self._serial.write(raw)
                    return self._answer(words, address)
                except (LinkTimeout, LinkCorrupted) as error:
                    last = error
                except LinkCut:
                    self._down = True
                    raise
            raise last

    def _answer(self, words: int, address: int) -> bytes:
        """Return the payload of the answer to the last request; skip those to earlier ones."""
        end = time.monotonic() + self.timeout
        while True:
            sequence, flags, payload = self._frame(end)
            status = flags & frame.STATUS_MASK
            if status == Status.REJECTED:
                raise LinkCorrupted("board has rejected a damaged request")
            if sequence != self._sequence:
                continue
            self._interrupt = bool(flags & frame.INTERRUPT)
            if status == Status.STRANGER:
                raise BoardReset("board was reset since the link was opened")
            if status == Status.BUS_ERROR:
                raise BusError(f"bus has no answer to an access at {address:#010x} or behind it")
            if status != Status.DONE or len(payload) != words * WORD:
                raise LinkCorrupted(
                    f"answer must have {words} words, not status {status} and {len(payload)} bytes"
                )
            return payload

    def _frame(self, end: float) -> tuple[int, int, bytes]:
        """Sequence, status with its flags, and payload of the next frame."""
        head = self._take(frame.HEADER.size, end)
        magic, sequence, flags, last = frame.HEADER.unpack(head)
        words = last + 1 if flags & frame.PAYLOAD else 0
        if magic == frame.RESPONSE:
            rest = self._take(WORD * (words + 1), end)
            if zlib.crc32(rest[:-WORD], zlib.crc32(head)) == frame.WORD.unpack(rest[-WORD:])[0]:
                return sequence, flags, rest[:-WORD]
        with self._cutting("read"):
            self._serial.timeout = QUIET_SECONDS
            while self._serial.read(FRAME_BYTES) and time.monotonic() < end:
                pass
        raise LinkCorrupted("answer does not match its CRC")

    def _take(self, size: int, end: float) -> bytes:
        with self._cutting("read"):
            self._serial.timeout = max(0.0, end - time.monotonic())
            raw = self._serial.read(size)
        if len(raw) < size:
            raise LinkTimeout(f"board did not answer within {self.timeout:g} seconds")
        return raw

    # Words -------------------------------------------------------------------------------------

    def _get(self, address: int) -> int:
        return frame.WORD.unpack(self._exchange(Operation.READ, address, words=1))[0]

    def _set(self, address: int, value: int) -> None:
        self._exchange(Operation.WRITE, address, payload=frame.WORD.pack(value))

    def _read(self, address: int, size: int) -> bytes:
        """Read whole words."""
        return b"".join(
            self._exchange(Operation.READ, address + at, words=min(FRAME_BYTES, size - at) // WORD)
            for at in range(0, size, FRAME_BYTES)
        )

    def _range(self, address: int, size: int) -> None:
        end = self.memory_base + self.memory_bytes
        if not self.memory_base <= address <= address + size <= end:
            raise TransportError(
                f"memory has {self.memory_bytes} bytes from {self.memory_base:#x} on; {size} at "
                f"{address:#x} are not in it"
            )

    # Transport ---------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """Read a register."""
        self._check_jobs()
        return self._get(map.UNIT_BASE + offset)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        self._check_jobs()
        self._set(map.UNIT_BASE + offset, value)

    def read(self, address: int, size: int) -> bytes:
        """Read memory."""
        self._range(address, size)
        self._mend()
        before = address % WORD
        after = -(address + size) % WORD
        return self._read(address - before, before + size + after)[before : before + size]

    def write(self, address: int, raw: bytes) -> None:
        """Write memory."""
        self._range(address, len(raw))
        self._mend()
        before = address % WORD
        if before and raw:
            raw = bytes(before) + raw
            address -= before
            self._write_bytes(address, raw[:WORD], before)
            address, raw = address + WORD, raw[WORD:]
        whole = len(raw) - len(raw) % WORD
        for at in range(0, whole, FRAME_BYTES):
            self._exchange(
                Operation.WRITE, address + at, payload=raw[at : min(at + FRAME_BYTES, whole)]
            )
        if raw[whole:]:
            self._write_bytes(address + whole, raw[whole:], 0)

    def _write_bytes(self, address: int, raw: bytes, first: int) -> None:
        """Write the bytes from ``first`` on of a word."""
        select = (1 << len(raw)) - (1 << first)
        self._exchange(Operation.WRITE, address, payload=raw.ljust(WORD, b"\0"), select=select)

    def wait(self, timeout: float) -> bool:
        """Ask until the interrupt is high."""
        end = time.monotonic() + timeout
        while True:
            self._check_jobs()
            self._greet(self._sequence)
            if self._interrupt:
                return True
            if self._woken.wait(POLL_SECONDS) or time.monotonic() >= end:
                self._woken.clear()
                return False

    def wake(self) -> None:
        """End a wait of another thread early."""
        self._woken.set()

    def reset(self) -> None:
        """Reset the unit, once memory has answered what it has asked for."""
        self._set(map.BOARD["reset"], 1)
        end = time.monotonic() + RESET_SECONDS
        while self._get(map.BOARD["status"]) & map.STATUS_RESETTING:
            if time.monotonic() > end:
                raise TransportError(f"unit must be reset within {RESET_SECONDS:g} seconds")

    def restart(self) -> None:
        """Open the port again and reset the unit.

        Raises
        ------
        BoardReset
            when memory has lost its contents.
        """
        with self._mending:
            self._reopen()
            self._lost = False

    def _mend(self) -> None:
        """Open the link again when it was cut."""
        if self._down:
            with self._mending:
                if self._down:
                    self._reopen()
                    self._lost = True

    def _reopen(self) -> None:
        self._down = True
        self._connect()
        self._identify()
        if not self._found["sdram_ready"]:
            raise BoardReset("board was reset: its memory has lost its contents; open it again")
        self.reset()
        self._down = False

    def _check_jobs(self) -> None:
        """Raise LinkCut when there is no unit with the jobs that it was given."""
        if self._down or self._lost:
            raise LinkCut(f"link to {self.port} was cut, and the unit's jobs with it")

    def close(self) -> None:
        """Close the port."""
        with self._lock:
            self._shut()
            self._down = False

    def _shut(self) -> None:
        if self._serial is not None:
            with contextlib.suppress(Exception):
                self._serial.close()
            self._serial = None


def _positive(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    return convert


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _parameters(text: str) -> Mapping[str, object]:
    from moska.gen.config import Config

    return Config.load(text).parameters()


OPTIONS: Mapping[str, Option] = {
    "baud": (_positive(int), "a number of bits a second"),
    "retries": (_count, "a number of repetitions"),
    "timeout": (_positive(float), "a number of seconds"),
    "config": (_parameters, "a preset or a TOML file"),
}


def open_serial(name: str, options: Mapping[str, str]) -> SerialTransport:
    """Open ``serial:/dev/ttyUSB0?baud=3000000``, or ``serial:socket://localhost:2345``."""
    values = parse_options("serial", options, OPTIONS)
    if not name:
        raise ValueError("name must be a port, as in serial:/dev/ttyUSB0")
    return SerialTransport(name, parameters=values.pop("config", None), **values)
