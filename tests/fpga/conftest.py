"""A stand-in of a board, and a wire between host and board that does damage."""

import contextlib
import socket
import threading
import time

import pytest

from moska.fpga import frame, map
from moska.fpga.frame import Operation, Status
from moska.gen.config import Config
from moska.sim.model import ModelDevice

GAP = 0.02  # seconds of silence that end a frame


class Server(contextlib.AbstractContextManager):
    """A TCP port, served by a thread, one connection at a time."""

    def __init__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.05)
        self.port = self._listening.getsockname()[1]
        self.url = f"socket://127.0.0.1:{self.port}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(ConnectionError, OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.serve(connection)

    def serve(self, connection):
        raise NotImplementedError

    def __exit__(self, *exception):
        self._ending.set()
        self._thread.join()
        self._listening.close()


class StandIn(Server):
    """The link's protocol over the golden model of a unit, in Python.

    ``registers`` are those of the board, ``done`` the requests that were carried out. ``mute``: no
    answers; ``echo``: what comes goes back.
    """

    def __init__(self, config, *, memory_bytes=1 << 20):
        self.config = config
        self.model = ModelDevice(config, memory_bytes=memory_bytes, base=map.MEMORY_BASE)
        self.registers = dict.fromkeys([*map.BOARD.values(), *map.SDRAM.values()], 0)
        self.registers |= {
            map.BOARD["magic"]: map.MAGIC,
            map.BOARD["map_version"]: map.MAP_VERSION,
            map.BOARD["config_hash"]: map.config_hash(config.parameters()),
            map.BOARD["clock_hz"]: 50_000_000,
            map.BOARD["memory_bytes"]: memory_bytes,
        }
        self.writes = []  # (address, value) of registers
        self.done = []  # (operation, address)
        self.mute = self.echo = False
        self.reset()
        super().__init__()

    def reset(self):
        """As after power came back."""
        self._acquainted = False
        self._last = (None, b"")
        self.registers[map.BOARD["sdram_ready"]] = 0
        self.model.memory[:] = 0
        self.model.reset()

    def serve(self, connection):
        pending = bytearray()
        good = True
        last = time.monotonic()
        while not self._ending.is_set():
            connection.settimeout(GAP if pending or not good else 0.05)
            try:
                raw = connection.recv(4096)
            except TimeoutError:
                if time.monotonic() - last >= GAP and (pending or not good):
                    pending.clear()
                    good = True
                    self._send(connection, frame.sealed(self._head(0, Status.REJECTED)))
                continue
            if not raw:
                return
            last = time.monotonic()
            if self.echo:
                connection.sendall(raw)
            pending += raw
            good = good and pending[0] == frame.REQUEST
            while good and (size := self._size(pending)) and len(pending) >= size:
                request = bytes(pending[:size])
                if good := frame.sealed(request[:-4]) == request and request[2] & 0xF <= 2:
                    del pending[:size]
                    self._send(connection, self._answer(request))

    def _send(self, connection, raw):
        if not self.mute and not self.echo:
            connection.sendall(raw)

    @staticmethod
    def _size(pending):
        """Bytes of the frame that begins, 0 when that cannot be told yet."""
        if len(pending) < frame.HEADER.size:
            return 0
        words = pending[3] + 1 if pending[2] & 0xF == Operation.WRITE else 0
        return 4 * (frame.HEADER_WORDS + words + 1)

    def _head(self, sequence, status, payload=b""):
        flags = status | bool(payload) * frame.PAYLOAD | self.model.interrupt * frame.INTERRUPT
        return frame.HEADER.pack(frame.RESPONSE, sequence, flags, max(len(payload) // 4 - 1, 0))

    def _answer(self, request):
        _, sequence, operation, last = frame.HEADER.unpack(request[:4])
        (address,) = frame.WORD.unpack(request[4:8])
        operation, select = Operation(operation & 0xF), operation >> 4
        if operation is Operation.HELLO:
            self._acquainted = True
            self.model.run_job()
            self._last = (sequence, Status.DONE, request[4:8])
        elif not self._acquainted:
            return frame.sealed(self._head(sequence, Status.STRANGER))
        elif sequence != self._last[0]:
            self.done.append((operation, address))
            try:
                payload = b""
                for index in range(last + 1):
                    at = address + 4 * index
                    if operation is Operation.READ:
                        payload += frame.WORD.pack(self._read(at))
                    else:
                        self._write(at, request[8 + 4 * index :][:4], select)
                self._last = (sequence, Status.DONE, payload)
            except (KeyError, RuntimeError):
                self._last = (sequence, Status.BUS_ERROR, b"")
        sequence, status, payload = self._last
        return frame.sealed(self._head(sequence, status, payload) + payload)

    def _in_memory(self, address):
        return 0 <= address - map.MEMORY_BASE < len(self.model.memory)

    def _read(self, address):
        if self._in_memory(address):
            return frame.WORD.unpack(self.model.read(address, 4))[0]
        if map.UNIT_BASE <= address < map.UNIT_BASE + map.UNIT_BYTES:
            return self.model.read32(address - map.UNIT_BASE)
        return self.registers[address]

    def _write(self, address, raw, select):
        (value,) = frame.WORD.unpack(raw)
        if self._in_memory(address):
            assert self.registers[map.BOARD["sdram_ready"]], "SDRAM must be initialised"
            for byte in range(4):
                if select >> byte & 1:
                    self.model.write(address + byte, raw[byte : byte + 1])
        elif map.UNIT_BASE <= address < map.UNIT_BASE + map.UNIT_BYTES:
            self.model.write32(address - map.UNIT_BASE, value)
        else:
            self.registers[address]
            self.writes.append((address, value))
            if address == map.BOARD["reset"]:
                self.model.reset()
            else:
                self.registers[address] = value


class Wire(Server):
    """A connection to a board that damages bytes where it is told to."""

    DIRECTIONS = ("to board", "to host")

    def __init__(self, port):
        self.board = port
        self._lock = threading.Lock()
        self._faults = {direction: [] for direction in self.DIRECTIONS}  # (bytes until it, kind)
        self._chance = None
        super().__init__()

    def damage(self, direction, kind, place):
        """Flip a bit, lose or insert a byte, or cut the connection, ``place`` bytes from now."""
        with self._lock:
            self._faults[direction].append([place, kind])

    def damage_often(self, rng, chance):
        """Flip a bit or lose a byte with a chance; 0: no more."""
        with self._lock:
            self._chance = (rng, chance) if chance else None

    @property
    def pending(self):
        """Faults that are still to come."""
        with self._lock:
            return sum(len(faults) for faults in self._faults.values())

    def serve(self, connection):
        with socket.create_connection(("127.0.0.1", self.board)) as board:
            board.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways = [(connection, board, "to board"), (board, connection, "to host")]
            threads = [threading.Thread(target=self._pump, args=way, daemon=True) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _pump(self, source, target, direction):
        source.settimeout(0.05)
        with contextlib.suppress(OSError):
            while not self._ending.is_set():
                try:
                    raw = source.recv(4096)
                except TimeoutError:
                    continue
                kept, cut = self._spoil(raw, direction)
                target.sendall(kept)
                if cut or not raw:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spoil(self, raw, direction):
        """Return what is passed on, and whether the connection ends after it."""
        passed = bytearray()
        with self._lock:
            faults = self._faults[direction]
            for byte in raw:
                due = [fault for fault in faults if fault[0] == 0]
                self._faults[direction] = faults = [
                    [place - 1, kind] for place, kind in faults if place
                ]
                kinds = [kind for _, kind in due]
                if self._chance is not None and self._chance[0].random() < self._chance[1]:
                    kinds.append(self._chance[0].choice(["flip", "lose"]))
                if "cut" in kinds:
                    return bytes(passed), True
                if "insert" in kinds:
                    passed.append(0x55)
                if "lose" not in kinds:
                    passed.append(byte ^ 0x10 if "flip" in kinds else byte)
        return bytes(passed), False


@pytest.fixture
def stand_in():
    """Stand-in of a board with the unit of the preset `tiny`."""
    with StandIn(Config.load("tiny")) as board:
        yield board


@pytest.fixture(
    scope="module",
    params=[
        "stand-in",
        pytest.param("soc", marks=[pytest.mark.fpga, pytest.mark.xdist_group("soc-tiny")]),
    ],
)
def board(request):
    """Board with the unit of the preset `tiny`: its ``port``, and what is behind it."""
    if request.param == "stand-in":
        with StandIn(Config.load("tiny")) as board:
            yield board
    else:
        from moska.fpga.simulate import SimulatedBoard

        with SimulatedBoard(Config.load("tiny")) as board:
            yield board
            assert board.process.poll() is None


@pytest.fixture
def wire(board):
    """Wire to the board."""
    with Wire(board.port) as wire:
        yield wire
