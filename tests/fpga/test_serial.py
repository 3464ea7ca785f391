"""The transport to a board: what it acknowledges is done, whatever the wire does."""

import contextlib
import os
import random
import select
import socket
import threading
import time

import numpy as np
import pytest

import moska.host
from moska.fpga import map
from moska.fpga.frame import Operation
from moska.fpga.serial import FRAME_BYTES, SerialTransport
from moska.gen.config import Config
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, attend
from moska.host import (
    BoardReset,
    BusError,
    Device,
    IncompatibleUnit,
    LinkCorrupted,
    LinkCut,
    LinkTimeout,
    TransportError,
    regmap,
)
from moska.host.selftest import Extent, climb
from moska.host.transport import connect

SEED = 20_251_206
TINY = Config.load("tiny")
BASE = map.MEMORY_BASE
TIMEOUT = 2.0  # seconds of an answer: the simulation is slow, and shares its processor
SECONDS = 120
DIRECTIONS = ("to board", "to host")
KINDS = ("flip", "lose", "insert")
HEAD_BYTES = {"to board": 8, "to host": 4}  # before the payload


@pytest.fixture
def link(wire):
    """Transport over a wire that damages."""
    transport = SerialTransport(wire.url, timeout=TIMEOUT, parameters=TINY.parameters())
    yield transport
    transport.close()


def fill(link, rng, size=4096, at=0):
    """Write random bytes; return them."""
    raw = rng.randbytes(size)
    link.write(BASE + at, raw)
    return raw


def job(rng):
    """Store, queries and expected bits."""
    k, v = rng.normal(size=(2, 40, TINY.head_dim))
    store = Store.from_float(k, v, chunk_tokens=16)
    rows = quantize_q(rng.normal(size=(4, TINY.head_dim)))
    return store, rows, attend(store, *rows).o


def jobs_until_an_error(device, handle, rows):
    """Run a job again and again, in vain some time."""
    for _ in range(50):
        device.submit(handle, rows).result(SECONDS)


def check_job(device, seed):
    """Run a job and compare every bit."""
    store, rows, expected = job(np.random.default_rng(seed))
    with device.load(store) as handle:
        result = device.submit(handle, rows).result(SECONDS)
    np.testing.assert_array_equal(result.o.view(np.uint32), expected)


# Good links ------------------------------------------------------------------------------------


def test_memory_at_any_address(link):
    rng = random.Random(SEED)
    shadow = bytearray(fill(link, rng))
    for _ in range(30):
        at = rng.randrange(len(shadow) - 1)
        size = min(rng.choice((1, 2, 3, 4, 5, 64, 1500)), len(shadow) - at)
        if rng.random() < 0.6:
            shadow[at : at + size] = raw = rng.randbytes(size)
            link.write(BASE + at, raw)
        else:
            assert link.read(BASE + at, size) == shadow[at : at + size]
    assert link.read(BASE, len(shadow)) == shadow
    assert link.read(BASE + 5, 0) == b""
    link.write(BASE + 5, b"")
    assert link.retries == 0


def test_the_ends_of_memory(link):
    last = BASE + link.memory_bytes - 3
    link.write(last, b"end")
    assert link.read(last, 3) == b"end"
    for address, size in ((BASE - 1, 2), (last, 4), (last + 3, 1)):
        with pytest.raises(TransportError, match="are not in it"):
            link.read(address, size)
        with pytest.raises(TransportError, match="are not in it"):
            link.write(address, bytes(size))


def test_registers_and_reset(link):
    assert link.read32(regmap.ID) == regmap.ID_VALUE
    link.write32(regmap.SCRATCH, 0x1234_5678)
    assert link.read32(regmap.SCRATCH) == 0x1234_5678
    link.reset()
    assert link.read32(regmap.SCRATCH) == 0
    assert link.clock_mhz == 50


def test_several_threads(link):
    errors = []

    def run(number):
        rng = random.Random(number)
        try:
            for _ in range(5):
                raw = fill(link, rng, 300, at=number * 512)
                assert link.read(BASE + number * 512, 300) == raw
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_waiting_ends_early(link):
    started = time.monotonic()
    assert link.wait(0.01) is False
    threading.Timer(0.1, link.wake).start()
    assert link.wait(SECONDS) is False
    assert time.monotonic() - started < SECONDS / 2


def test_the_ladder(wire):
    report = climb(
        f"serial:{wire.url}?timeout={TIMEOUT}&config=tiny",
        Extent(rows=20, tokens=128, memory_bytes=1 << 13, jobs=8),
    )
    assert report.passed, report.rungs[-1]
    assert [rung.name for rung in report.rungs] == [
        "identity", "scratch", "data lines", "address lines", "memory walk", "loop-back", "dense",
        "routed", "soak",
    ]  # fmt: skip
    assert report.link_retries == 0


# Damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_damage_is_repaired(link, wire, direction, kind):
    rng = random.Random(SEED)
    expected = fill(link, rng, 2048)
    places = (0, 1, 2, 3, HEAD_BYTES[direction] + 9)
    for count, place in enumerate(places, 1):
        wire.damage(direction, kind, place)
        if direction == "to board":
            expected = fill(link, rng, 2048)
        assert link.read(BASE, 2048) == expected
        assert link.retries >= count
    assert wire.pending == 0
    assert link.read(BASE, 2048) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_damage_without_retries_is_an_error(link, wire, direction, kind):
    rng = random.Random(SEED)
    expected = fill(link, rng, 2048)
    link.max_retries, link.timeout = 0, 1.0
    for place in (0, HEAD_BYTES[direction] + 9):
        wire.damage(direction, kind, place)
        with pytest.raises((LinkCorrupted, LinkTimeout)) as caught:
            link.write(BASE + 4096, bytes(64)) if direction == "to board" else link.read(BASE, 64)
        if kind == "flip":
            assert caught.type is LinkCorrupted
        assert link.read(BASE, 2048) == expected
    assert link.retries == 0


def test_a_lost_answer_does_not_repeat_the_request(stand_in):
    with contextlib.closing(SerialTransport(stand_in.url, timeout=0.2)) as link:
        stand_in.done.clear()
        stand_in.mute = True
        threading.Timer(0.5, setattr, (stand_in, "mute", False)).start()
        link.write32(regmap.SCRATCH, 7)
        assert link.retries >= 2
        assert stand_in.done == [(Operation.WRITE, map.UNIT_BASE + regmap.SCRATCH)]
        assert link.read32(regmap.SCRATCH) == 7


def test_all_that_is_acknowledged_is_there(link, wire):
    """Frames that failed are there whole or not at all."""
    rng = random.Random(SEED)
    size = 16 * FRAME_BYTES
    shadow = fill(link, rng, size)
    possible = {at: {shadow[at : at + FRAME_BYTES]} for at in range(0, size, FRAME_BYTES)}
    link.max_retries, link.timeout = 0, 1.0
    wire.damage_often(rng, 4e-4)
    acknowledged = 0
    for _ in range(40):
        at, raw = rng.randrange(16) * FRAME_BYTES, rng.randbytes(FRAME_BYTES)
        try:
            link.write(BASE + at, raw)
        except (LinkCorrupted, LinkTimeout):
            possible[at].add(raw)
        else:
            acknowledged += 1
            possible[at] = {raw}
    wire.damage_often(rng, 0)
    link.max_retries = 3
    assert 5 <= acknowledged < 40
    for at, contents in possible.items():
        assert link.read(BASE + at, FRAME_BYTES) in contents


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("place", [0, 3, 700, 1500])
def test_a_cut_in_mid_transfer(link, wire, direction, place):
    rng = random.Random(SEED)
    expected = fill(link, rng)
    wire.damage(direction, "cut", place)
    raw = rng.randbytes(4096)
    with pytest.raises(LinkCut):
        link.write(BASE + 4096, raw) if direction == "to board" else link.read(BASE, 4096)
    with pytest.raises(LinkCut):
        link.read32(regmap.ID)
    link.restart()
    assert link.read32(regmap.ID) == regmap.ID_VALUE
    assert link.read(BASE, 4096) == expected
    if direction == "to board":  # whole frames before the cut
        sent = place // (FRAME_BYTES + 12) * FRAME_BYTES
        assert link.read(BASE + 4096, sent) == raw[:sent]
    link.write(BASE + 4096, raw)
    assert link.read(BASE + 4096, 4096) == raw


def test_memory_is_used_again_after_a_reset_of_the_unit_only(link, wire):
    """Another thread's access opens the link, and the unit's jobs count as lost until restart."""
    expected = fill(link, random.Random(SEED))
    wire.damage("to board", "cut", 0)
    with pytest.raises(LinkCut):
        link.write32(regmap.SCRATCH, 1)
    assert link.read(BASE, 4096) == expected
    for access in (link.read32, lambda offset: link.write32(offset, 0), lambda _: link.wait(0)):
        with pytest.raises(LinkCut, match="jobs"):
            access(regmap.SCRATCH)
    link.restart()
    assert link.read32(regmap.SCRATCH) == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_device_goes_on_after_a_cut(wire, direction):
    link = SerialTransport(wire.url, timeout=TIMEOUT)
    rng = np.random.default_rng(SEED)
    with Device(link) as device:
        check_job(device, 1)
        store, rows, expected = job(rng)
        with device.load(store) as handle:
            wire.damage(direction, "cut", 500)
            with pytest.raises(LinkCut):
                jobs_until_an_error(device, handle, rows)
            # The first ones fail while the link is mended; what lies in memory is there.
            for _ in range(5):
                with contextlib.suppress(LinkCut):
                    result = device.submit(handle, rows).result(SECONDS)
                    break
            np.testing.assert_array_equal(result.o.view(np.uint32), expected)
            np.testing.assert_array_equal(handle.store().k, store.k)
        check_job(device, 2)


def test_a_device_on_a_bad_wire(wire):
    link = SerialTransport(wire.url, timeout=TIMEOUT, retries=10)
    with Device(link) as device:
        wire.damage_often(random.Random(SEED), 1e-3)
        for seed in range(4):
            check_job(device, seed)
        wire.damage_often(None, 0)
    assert link.retries > 3


# Other boards ----------------------------------------------------------------------------------


def test_another_configuration(wire):
    parameters = Config.load("ulx3s").parameters()
    with pytest.raises(IncompatibleUnit, match="configuration"):
        SerialTransport(wire.url, timeout=TIMEOUT, parameters=parameters)
    with pytest.raises(IncompatibleUnit, match="configuration"):
        moska.host.open(f"serial:{wire.url}?config=ulx3s")
    report = climb(f"serial:{wire.url}?config=ulx3s")
    assert not report.passed
    assert [rung.name for rung in report.rungs] == ["identity"]
    assert "IncompatibleUnit" in report.rungs[0].detail


@pytest.mark.parametrize("name", ["magic", "map_version"])
def test_another_bitstream(stand_in, name):
    stand_in.registers[map.BOARD[name]] ^= 2
    with pytest.raises(IncompatibleUnit, match=f"board must have {name} 0x"):
        SerialTransport(stand_in.url)
    assert stand_in.writes == []


def test_a_unit_with_another_map(stand_in):
    stand_in.model._constants[regmap.VERSION] = 99
    with pytest.raises(IncompatibleUnit, match="register map"):
        moska.host.open(f"serial:{stand_in.url}")


def test_nobody_answers(stand_in):
    stand_in.mute = True
    with pytest.raises(LinkTimeout, match=r"within 0\.1 seconds"):
        SerialTransport(stand_in.url, timeout=0.1, retries=1)


def test_an_echo_is_no_board(stand_in):
    stand_in.echo = True
    with pytest.raises(LinkCorrupted):
        SerialTransport(stand_in.url, timeout=0.5, retries=1)


def test_no_port(stand_in):
    with pytest.raises(LinkCut, match="open"):
        SerialTransport("socket://127.0.0.1:1")
    with pytest.raises(LinkCut, match="open"):
        SerialTransport("/dev/no-such-port")


@contextlib.contextmanager
def terminal(port):
    """Path of a terminal whose other end is connected to a TCP port."""
    ours, theirs = os.openpty()
    with socket.create_connection(("127.0.0.1", port)) as board:
        ending = threading.Event()

        def pump():
            while not ending.is_set():
                ready, _, _ = select.select([ours, board], [], [], 0.05)
                if ours in ready:
                    board.sendall(os.read(ours, 4096))
                if board in ready:
                    os.write(ours, board.recv(4096))

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            yield os.ttyname(theirs)
        finally:
            ending.set()
            thread.join()
            os.close(ours)
            os.close(theirs)


def test_a_terminal(stand_in):
    """A port of the system, with every byte there is; taken by one transport at a time."""
    with terminal(stand_in.port) as path:
        with contextlib.closing(connect(f"serial:{path}?config=tiny&baud=115200")) as link:
            raw = bytes(range(256)) * 8
            link.write(BASE, raw)
            assert link.read(BASE, len(raw)) == raw
            assert link.retries == 0
            with pytest.raises(LinkCut, match="open"):
                connect(f"serial:{path}")
        with contextlib.closing(connect(f"serial:{path}")) as link:
            assert link.read(BASE, len(raw)) == raw


def test_the_sdram_is_initialised_once(stand_in):
    with contextlib.closing(SerialTransport(stand_in.url)) as link:
        expected = fill(link, random.Random(SEED))
        commands = [value for at, value in stand_in.writes if at == map.SDRAM["command"]]
        due = [value for name, value, *_ in map.SDRAM_INIT if name == "command"]
        assert commands == due
        assert stand_in.registers[map.SDRAM["control"]] == map.CONTROL_HARDWARE
    stand_in.writes.clear()
    with contextlib.closing(SerialTransport(stand_in.url)) as link:
        assert link.read(BASE, 4096) == expected
    assert stand_in.writes == []


def test_a_board_that_was_reset(stand_in):
    with contextlib.closing(SerialTransport(stand_in.url)) as link:
        fill(link, random.Random(SEED))
        stand_in.reset()
        with pytest.raises(BoardReset):
            link.read(BASE, 4)
        with pytest.raises(BoardReset, match="lost its contents"):
            link.restart()
        with pytest.raises(BoardReset):
            link.read(BASE, 4)
    with contextlib.closing(SerialTransport(stand_in.url)) as link:
        fill(link, random.Random(SEED))


def test_an_access_that_nothing_answers(link):
    for address in (0x9000_0000, map.UNIT_BASE + 0x800):
        with pytest.raises(BusError, match=f"{address:#010x}"):
            link._read(address, 4)
    assert link.read32(regmap.ID) == regmap.ID_VALUE
    assert link.retries == 0


def test_closed(link):
    link.close()
    link.close()
    with pytest.raises(LinkCut, match="open"):
        link.read(BASE, 4)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("serial:", "name must be a port"),
        ("serial:x?baud=0", "baud must be a number of bits a second, not '0'"),
        ("serial:x?retries=-1", "retries must be a number of repetitions, not '-1'"),
        ("serial:x?timeout=no", "timeout must be a number of seconds, not 'no'"),
        ("serial:x?config=none", "config must be a preset or a TOML file, not 'none'"),
        ("serial:x?speed=1", "option of serial: must be one of baud, config, retries, timeout"),
        ("soc:tiny?baud=1", "option of soc: must be one of retries, timeout"),
    ],
)
def test_arguments(uri, message):
    with pytest.raises(ValueError, match=message):
        moska.host.open(uri)
