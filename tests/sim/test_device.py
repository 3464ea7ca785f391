"""The simulated device: memory timing, faults and checks, against traffic that a test writes.

``player.v`` stands for the unit: it plays lines on AR, AW and W, good ones and bad ones, and logs
every transfer with its cycle.
"""

import collections
import itertools
import math
import pathlib
import re
import threading
import time

import numpy as np
import pytest

from moska.gen.config import Config
from moska.host import regmap
from moska.sim import device as device_module
from moska.sim.device import Device, DeviceError, Totals, built, cache_directory, generated

SEED = 20_251_123
TINY = Config.load("tiny")
PLAYER = pathlib.Path(__file__).with_name("player.v").read_text()
CONTROL, FAULTS, STUCK, STAGE, COMMIT, LOG_AT, LOG_SIZE, LOG = (
    0x04, 0x08, 0x0C, 0x20, 0x2C, 0x30, 0x34, 0x40,
)  # fmt: skip
SLAVE_ERROR, NO_ANSWER = 0xEE0, 0xEE4  # registers of the player
GO, INTERRUPT, READY = 1, 2, 4
AR, AW, W, ARV = range(4)
EVENTS = ("ar", "r", "aw", "w", "b", "arv", "rv")
BASE = 0x2000

Event = collections.namedtuple("Event", "cycle kinds rid rresp rlast bid bresp data v_data v_last")


def config(bus_width=64):
    """Return a configuration with the bus of a player."""
    values = TINY.parameters() | {"name": f"player{bus_width}"}
    if bus_width > 64:
        values |= {"head_dim": 64, "bus_width": bus_width, "memory_bytes_per_cycle": 16}
    return Config.from_dict(values)


def player(bus_width, *, values):
    """Verilog of a player, with a second read port or without."""
    chosen = re.sub(
        r"`ifdef VALUES\n(.*?)(?:`else\n(.*?))?`endif\n",
        lambda m: m[1] if values else m[2] or "",
        PLAYER,
        flags=re.S,
    )
    for name, value in (
        ("DATA_MSB", bus_width - 1),
        ("STRB_MSB", bus_width // 8 - 1),
        ("SCRATCH", f"{regmap.SCRATCH:x}"),
    ):
        chosen = chosen.replace(name, str(value))
    return chosen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cache of this module, with the players' Verilog in it; its builds are quick ones."""
    path = tmp_path_factory.mktemp("device")
    patch = pytest.MonkeyPatch()
    patch.setattr(device_module, "OPTIMIZE", "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0")
    (path / "player64.v").write_text(player(64, values=True))
    (path / "player512.v").write_text(player(512, values=False))
    yield path
    patch.undo()


class Player(Device):
    """A device whose unit is a player."""

    def __init__(self, folder, bus_width=64, **options):
        options = {"memory_bytes": 1 << 16, "seed": SEED} | options
        super().__init__(
            config(bus_width), folder, verilog=folder / f"player{bus_width}.v", **options
        )
        self.timing(bytes_per_cycle=math.inf)

    def play(self, *, cycles=400, control=GO | READY, **lines):
        """Write lines (ar, aw, w, arv) to the player and let them run."""
        for channel, name in enumerate(("ar", "aw", "w", "arv")):
            # Lines that an earlier call has written do nothing in this one.
            entries = list(lines.get(name, ()))
            for index, words in enumerate(entries + [(0, 0, 0)] * (64 - len(entries))):
                for offset, word in enumerate(words):
                    self.write32(STAGE + 4 * offset, word)
                self.write32(COMMIT, channel << 6 | index)
        self.write32(CONTROL, control)
        self.run(cycles, until_interrupt=False)

    def events(self):
        """Return the log."""
        result = []
        for index in range(self.read32(LOG_SIZE)):
            self.write32(LOG_AT, index)
            words = [self.read32(LOG + 4 * i) for i in range(6)]
            bits = words[1]
            result.append(
                Event(
                    cycle=words[0],
                    kinds={name for i, name in enumerate(EVENTS) if bits >> i & 1},
                    rid=bits >> 8 & 15,
                    rresp=bits >> 12 & 3,
                    rlast=bits >> 14 & 1,
                    bid=bits >> 16 & 15,
                    bresp=bits >> 21 & 3,
                    data=words[2] | words[3] << 32,
                    v_data=words[4] | words[5] << 32,
                    v_last=bits >> 28 & 1,
                )
            )
        return result

    def cycles_of(self, kind):
        """Cycles of the transfers of a kind."""
        return [event.cycle for event in self.events() if kind in event.kinds]

    def fill(self):
        """Random memory; returns it as 64-bit words."""
        rng = np.random.default_rng(SEED)
        self.memory[:] = rng.integers(0, 256, len(self.memory), dtype=np.uint8)
        return self.memory.view("<u8").copy()


def line(address, low, *, hold=True, size=3, burst=1, last=False, ident=0):
    """Return the words of a line; ``low`` is the length of a burst less 1, or the strobe."""
    flags = 1 | hold << 1 | low << 8 | size << 16 | burst << 20 | last << 22 | ident << 24
    return flags, address & 0xFFFFFFFF, address >> 32


def idle(cycles):
    """Lines that offer nothing."""
    return [(0, 0, 0)] * cycles


def request(address, n_beats=1, **options):
    """Return a line for AR or AW."""
    return line(address, n_beats - 1, **options)


def beat(data, *, last=True, strobe=0xFF, **options):
    """Return a line for W."""
    return line(data, strobe, last=last, **options)


@pytest.fixture
def device(folder):
    """Return a player with a 64-bit bus and a second read port."""
    with Player(folder) as result:
        yield result


# Registers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_registers(device, stall):
    device.timing(stall={"axil": stall})
    assert device.read32(regmap.ID) == regmap.ID_VALUE
    rng = np.random.default_rng(SEED)
    for value in rng.integers(0, 1 << 32, 40).tolist():
        device.write32(regmap.SCRATCH, value)
        assert device.read32(regmap.SCRATCH) == value
    assert device.violations == []


def test_bad_register_accesses_raise(device):
    with pytest.raises(DeviceError, match=r"read of register 0xee0: SLVERR"):
        device.read32(SLAVE_ERROR)
    with pytest.raises(DeviceError, match=r"write of register 0xee0: SLVERR"):
        device.write32(SLAVE_ERROR, 1)
    with pytest.raises(DeviceError, match=r"read of register 0xee4: no response"):
        device.read32(NO_ANSWER)
    with pytest.raises(ValueError, match="offset"):
        device.read32(4096)
    with pytest.raises(ValueError, match="32 bits"):
        device.write32(regmap.SCRATCH, 1 << 32)
    assert device.violations == []
    device.reset()
    assert device.read32(regmap.ID) == regmap.ID_VALUE


def test_interrupt_ends_a_run(device):
    start = device.cycle
    assert device.run(100) == 100
    assert device.cycle == start + 100
    assert not device.interrupt
    device.write32(CONTROL, INTERRUPT)
    assert device.interrupt
    assert device.run(100) == 0
    assert device.run(30, until_interrupt=False) == 30
    device.reset(3)
    assert not device.interrupt
    assert device.cycle > start + 130


# Reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0, 1, 2, 17, 150])
def test_read_latency_is_exact(device, latency):
    words = device.fill()
    device.timing(latency=latency, bytes_per_cycle=math.inf)
    device.play(ar=[*idle(3), request(BASE, 5)])
    events = device.events()
    (asked,) = device.cycles_of("ar")
    assert device.cycles_of("r") == [asked + latency + 1 + n for n in range(5)]
    beats = [event for event in events if "r" in event.kinds]
    assert [event.data for event in beats] == words[BASE // 8 : BASE // 8 + 5].tolist()
    assert [event.rlast for event in beats] == [0, 0, 0, 0, 1]
    assert device.violations == []
    # Two bursts follow each other without a gap.
    device.reset()
    device.play(ar=[request(BASE, 8), request(BASE + 512, 8)])
    cycles = device.cycles_of("r")
    assert cycles == list(range(cycles[0], cycles[0] + 16))


@pytest.mark.parametrize("rate", [8, 4, 3, 2.5, 0.7])
def test_read_rate_is_exact(device, rate):
    device.timing(bytes_per_cycle=rate)
    device.play(ar=[request(BASE, 200)], cycles=3000)
    cycles = device.cycles_of("r")
    assert len(cycles) == 200
    for n, cycle in enumerate(cycles):
        assert abs(cycle - cycles[0] - n * 8 / rate) < 1, n


def test_rate_of_the_configuration_is_the_default(folder):
    with Player(folder, 512) as device:
        words = device.fill()
        device.timing()
        device.play(ar=[request(BASE, 20, size=6)])
        assert device.config.memory_bytes_per_cycle == 16
        cycles = device.cycles_of("r")
        assert np.diff(cycles).tolist() == [4] * 19
        # The player logs the last word of a beat.
        data = [event.data for event in device.events() if "r" in event.kinds]
        assert data == words[BASE // 8 + 7 :: 8][:20].tolist()
        assert device.totals["m_axi"].read_bytes == 20 * 64
        assert list(device.totals) == ["m_axi"]
        assert device.violations == []


def test_reads_and_writes_share_the_rate(device):
    beats = [beat(n, last=n == 59) for n in range(60)]
    device.timing(bytes_per_cycle=4)
    device.play(ar=[request(BASE, 60)], aw=[request(BASE + 0x1000, 60)], w=beats, cycles=600)
    reads, writes = device.cycles_of("r"), device.cycles_of("w")
    assert (len(reads), len(writes)) == (60, 60)
    both = sorted(reads + writes)
    for n, cycle in enumerate(both):
        assert abs(cycle - both[0] - n * 2) <= 2, n
    # In turn: none is ahead of the other by more than a few beats.
    assert abs(reads[-1] - writes[-1]) < 20
    assert device.violations == []


def test_second_port_has_its_own_rate(device):
    words = device.fill()
    device.timing(bytes_per_cycle=4)
    device.play(ar=[request(BASE, 40)], arv=[request(BASE + 0x1000, 40)])
    for kind in ("r", "rv"):
        assert set(np.diff(device.cycles_of(kind)).tolist()) == {2}
    beats = [event for event in device.events() if "rv" in event.kinds]
    start = (BASE + 0x1000) // 8
    assert [event.v_data for event in beats] == words[start : start + 40].tolist()
    assert [event.v_last for event in beats] == [0] * 39 + [1]
    assert device.totals["m_axi_v"].read_beats == 40
    assert device.totals["m_axi_v"].max_read_bytes == 320


def test_unit_that_is_not_ready_gets_no_beat(device):
    words = device.fill()
    device.play(ar=[request(BASE, 4)], control=GO, cycles=50)
    assert device.cycles_of("r") == []
    device.write32(CONTROL, GO | READY)
    device.run(20)
    beats = [event.data for event in device.events() if "r" in event.kinds]
    assert beats == words[BASE // 8 : BASE // 8 + 4].tolist()


def test_shuffled_reads(device):
    words = device.fill()
    bursts = [(BASE + 0x100 * n, n % 3) for n in range(12)]
    lines = [request(address, 8, ident=ident) for address, ident in bursts]

    def order():
        device.reset()
        device.play(ar=lines)
        beats = [event for event in device.events() if "r" in event.kinds]
        assert len(beats) == 96
        for ident in range(3):
            expected = [
                words[address // 8 + n] for address, other in bursts if other == ident
                for n in range(8)
            ]  # fmt: skip
            assert [event.data for event in beats if event.rid == ident] == expected, SEED
            last = [event.rlast for event in beats if event.rid == ident]
            assert last == ([0] * 7 + [1]) * 4
        return [event.rid for event in beats]

    assert order() == [ident for _, ident in bursts for _ in range(8)]
    device.timing(latency=40, bytes_per_cycle=math.inf, shuffle=True)
    first = order()
    # Beats of different bursts are interleaved, and differently each time.
    assert sum(a != b for a, b in itertools.pairwise(first)) > 30, SEED
    assert order() != first, SEED
    assert device.violations == []


# Writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0, 3, 60])
def test_writes(device, latency):
    before = device.fill()
    device.timing(latency=latency, bytes_per_cycle=math.inf)
    rng = np.random.default_rng(SEED)
    data = rng.integers(0, 1 << 63, 9).tolist()
    strobes = [0xFF, 0xFF, 0x0F, 0x81, 0x00, 0xFF, 0xFF, 0xFF, 0x10]
    lines = [
        beat(word, strobe=strobe, last=n in (6, 8))
        for n, (word, strobe) in enumerate(zip(data, strobes, strict=True))
    ]
    device.play(aw=[request(BASE, 7, ident=5), request(BASE + 0x80, 2, ident=9)], w=lines)
    expected = before.view(np.uint8).copy()
    for n, (word, strobe) in enumerate(zip(data, strobes, strict=True)):
        address = BASE + 8 * n if n < 7 else BASE + 0x80 + 8 * (n - 7)
        for i in range(8):
            if strobe >> i & 1:
                expected[address + i] = word >> 8 * i & 0xFF
    np.testing.assert_array_equal(device.memory, expected)
    assert device.read(BASE, 8) == data[0].to_bytes(8, "little")
    taken = device.cycles_of("w")
    answers = [event for event in device.events() if "b" in event.kinds]
    assert [event.cycle for event in answers] == [
        taken[6] + latency + 1, taken[8] + latency + 1,
    ]  # fmt: skip
    assert [(event.bid, event.bresp) for event in answers] == [(5, 0), (9, 0)]
    assert device.violations == []
    total = device.totals["m_axi"]
    assert (total.write_bursts, total.write_beats, total.responses) == (2, 9, 2)
    assert total.write_bytes == sum(strobe.bit_count() for strobe in strobes)


def test_write_is_seen_from_its_response_on(device):
    device.timing(latency=2000, bytes_per_cycle=math.inf)
    device.play(aw=[request(BASE)], w=[beat(0x1122)], cycles=20)
    assert len(device.cycles_of("w")) == 1
    assert device.cycles_of("b") == []
    assert device.read(BASE, 8) == bytes(8)
    device.run(2000)
    assert device.read(BASE, 8) == (0x1122).to_bytes(8, "little")


def test_data_may_come_while_its_request_waits(device):
    device.timing(bytes_per_cycle=math.inf, stall={"aw": 0.95})
    lines = [beat(n + 1, last=n % 4 == 3) for n in range(16)]
    device.play(aw=[request(BASE + 0x100 * n, 4) for n in range(4)], w=lines[:4], cycles=300)
    assert max(device.cycles_of("w")) < max(device.cycles_of("aw"))
    assert device.read(BASE, 32) == np.arange(1, 5, dtype="<u8").tobytes()
    assert device.violations == []


def test_shuffled_responses(device):
    device.timing(latency=80, bytes_per_cycle=math.inf, shuffle=True)
    requests = [request(BASE + 64 * n, ident=n % 4) for n in range(40)]
    device.play(aw=requests, w=[beat(n) for n in range(40)])
    order = [event.bid for event in device.events() if "b" in event.kinds]
    assert sorted(order) == sorted(n % 4 for n in range(40))
    assert order != [n % 4 for n in range(40)], SEED
    assert [int(n) for n in device.memory.view("<u8")[BASE // 8 :: 8][:40]] == list(range(40))
    assert device.violations == []


def test_stalls_slow_every_channel_and_break_nothing(folder):
    lines = {
        "ar": [request(BASE + 0x100 * n, 8, ident=n % 16) for n in range(20)],
        "arv": [request(BASE + 0x100 * n, 8, ident=n % 2) for n in range(20)],
        "aw": [request(0x8000 + 64 * n, 4) for n in range(5)],
        # Beats must not come before their request is shown.
        "w": [*idle(44), *(beat(n, last=n % 4 == 3) for n in range(20))],
    }

    def play(stall, seed=SEED):
        with Player(folder, seed=seed) as device:
            words = device.fill()
            device.timing(bytes_per_cycle=math.inf, stall=stall)
            device.play(cycles=3000, **lines)
            events = device.events()
            assert device.violations == []
        data = [event.data for event in events if "r" in event.kinds]
        expected = [words[(BASE + 0x100 * n) // 8 + i] for n in range(20) for i in range(8)]
        assert data == expected
        written = device.memory.view("<u8")
        for n in range(20):
            assert written[(0x8000 + 64 * (n // 4)) // 8 + n % 4] == n
        return {kind: [e.cycle for e in events if kind in e.kinds] for kind in EVENTS}

    base = play(0.0)
    for kind in ("ar", "r", "aw", "w", "b"):
        slow = play({kind: 0.95 if kind == "b" else 0.75})
        assert len(slow[kind]) == len(base[kind])
        assert np.mean(slow[kind]) > np.mean(base[kind]) + 1.5, (kind, SEED)
    everything = play(0.5)
    assert everything == play(0.5)
    assert everything != play(0.5, seed=SEED + 1)


# Faults ------------------------------------------------------------------------------------------


def test_injected_read_errors(device):
    words = device.fill()
    device.inject(kind="read", address=BASE + 20, size=8)
    device.inject(kind="read", address=BASE + 0x100, size=64, response=3, count=3)
    device.inject(kind="write", address=0, size=1 << 16)
    lines = [request(BASE, 8), request(BASE + 0x100, 4), request(BASE + 0x100, 4)]
    device.play(ar=lines)
    beats = [event for event in device.events() if "r" in event.kinds]
    # Bytes 20 to 27 are in beats 2 and 3.
    expected = [0, 0, 2, 2, 0, 0, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    assert [event.rresp for event in beats] == expected
    for event, code, n in zip(beats, expected, [*range(8), *range(4), *range(4)], strict=True):
        if event.rlast or n == 7:
            continue
        address = BASE + 8 * n + (0x100 if event.cycle >= beats[8].cycle else 0)
        assert (event.data == words[address // 8]) == (code == 0)
    device.clear_injections()
    device.reset()
    device.play(ar=lines)
    assert {event.rresp for event in device.events()} == {0}


def test_injected_write_errors(device):
    device.fill()
    before = device.memory.copy()
    device.inject(kind="write", address=BASE + 40, size=1, count=1)
    device.inject(kind="read", address=0, size=1 << 16)
    lines = {"aw": [request(BASE, 4), request(BASE + 32, 4)], "w": [
        beat(7, last=n % 4 == 3) for n in range(8)
    ]}  # fmt: skip
    device.play(**lines)
    assert [event.bresp for event in device.events() if "b" in event.kinds] == [0, 2]
    np.testing.assert_array_equal(device.memory[BASE + 32 :], before[BASE + 32 :])
    assert device.memory.view("<u8")[BASE // 8] == 7
    device.reset()
    device.play(**lines)
    assert [event.bresp for event in device.events() if "b" in event.kinds] == [0, 0]
    assert device.memory.view("<u8")[BASE // 8 + 7] == 7


def test_accesses_outside_memory_get_decode_errors(device):
    end = len(device.memory)
    far = (1 << 64) - 64
    device.fill()
    before = device.memory.copy()
    device.play(
        ar=[request(end - 16, 2), request(end, 1), request(far, 1)],
        aw=[request(end), request(far)],
        w=[beat(1), beat(2)],
    )
    events = device.events()
    assert [event.rresp for event in events if "r" in event.kinds] == [0, 0, 3, 3]
    assert [event.bresp for event in events if "b" in event.kinds] == [3, 3]
    np.testing.assert_array_equal(device.memory, before)


def test_large_memory(folder):
    size = 1 << 31
    with Player(folder, memory_bytes=size) as device:
        device.write(size - 8, b"endofmem")
        device.play(ar=[request(size - 8)])
        (event,) = [event for event in device.events() if "r" in event.kinds]
        assert event.data.to_bytes(8, "little") == b"endofmem"
        assert event.rresp == 0


GOOD = request(BASE, 4)
BAD_REQUESTS = {
    "valid dropped": [request(BASE, hold=False), *idle(3)],
    "changed before": [request(BASE, hold=False), request(BASE + 64)],
    "burst type 0 is not INCR": [request(BASE, burst=0)],
    "burst type 2 is not INCR": [request(BASE, 4, burst=2)],
    "size 2 is not that of the bus": [request(BASE, size=2)],
    "address is not aligned": [request(BASE + 4)],
    "burst of 64 bytes crosses 4 KiB": [request(BASE + 0x1000 - 56, 8)],
    "burst of 32 bytes outside": [request(BASE + 0x100 - 24, 4)],
    "burst of 8 bytes outside": [request(BASE - 8)],
}
NEEDS_WAIT = ("valid dropped", "changed before")


@pytest.mark.parametrize("channel", ["ar", "aw", "arv"])
@pytest.mark.parametrize("message", BAD_REQUESTS)
def test_bad_requests_are_violations(device, channel, message):
    name = {"ar": "m_axi AR", "aw": "m_axi AW", "arv": "m_axi_v AR"}[channel]
    if message in NEEDS_WAIT:
        device.timing(bytes_per_cycle=math.inf, stall={channel[:2]: 0.9999})
    if "outside" in message:
        allowed = (BASE, BASE + 0x100)
        device.allow(
            read=None if channel == "aw" else allowed, write=allowed if channel == "aw" else None
        )
    device.play(**{channel: BAD_REQUESTS[message]}, cycles=20)
    (violation,) = device.violations
    assert re.fullmatch(rf"cycle \d+: {name}.*: {message}.*", violation)


def test_changed_id_and_length_are_violations(device):
    device.timing(bytes_per_cycle=math.inf, stall={"ar": 0.9999})
    device.play(ar=[request(BASE, hold=False, ident=1), request(BASE, hold=False, ident=2),
                    request(BASE, 2, ident=2)], cycles=20)  # fmt: skip
    assert len(device.violations) == 2


def test_good_requests_in_the_allowed_ranges(device):
    device.allow(read=(BASE, BASE + 0x100), write=(BASE + 0x100, BASE + 0x200))
    device.play(
        ar=[request(BASE, 32), request(BASE + 0xF8)],
        aw=[request(BASE + 0x100, 1), request(BASE + 0x1F8)],
        w=[beat(1), beat(2)],
    )
    assert device.violations == []
    device.allow(read=None, write=(0, 0))
    device.reset()
    device.play(ar=[request(0)], aw=[request(BASE)], w=[beat(1)])
    (violation,) = device.violations
    assert "m_axi AW 0x2000: burst of 8 bytes outside the allowed range" in violation


BAD_DATA = {
    "valid dropped": [beat(1, hold=False), *idle(3), beat(1)],
    "changed before": [beat(1, hold=False), beat(2)],
    "changed before (strobe)": [beat(1, hold=False), beat(1, strobe=0x7F)],
    "changed before (last)": [beat(1, hold=False, last=False), beat(1)],
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_data_that_does_not_hold_is_a_violation(device, message):
    device.timing(bytes_per_cycle=math.inf, stall={"w": 0.97})
    device.play(aw=[request(BASE)], w=[*idle(5), *BAD_DATA[message]])
    (violation,) = device.violations
    assert re.fullmatch(rf"cycle \d+: m_axi W: {message.split(' (')[0]}.*", violation), SEED


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([True], ["last is 1 on beat 1 of 2", "last is 0 on beat 2 of 2"]),
        ([False, False], ["last is 0 on beat 2 of 2"]),
        ([True, True], ["last is 1 on beat 1 of 2"]),
        ([False, True, True], ["beat without a burst on AW"]),
    ],
)
def test_last_disagrees_with_the_length(device, lines, expected):
    lines = [*lines, False] if len(lines) == 1 else lines
    device.play(aw=[request(BASE, 2)], w=[*idle(2), *(beat(1, last=last) for last in lines)])
    assert len(device.violations) == len(expected)
    for text, message in zip(device.violations, expected, strict=True):
        assert message in text


def test_data_without_a_request_is_a_violation(device):
    device.play(w=[beat(1)])
    (violation,) = device.violations
    assert "beat without a burst on AW" in violation
    assert device.read(BASE, 8) == bytes(8)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, "s_axil R: changed"),
        (2, "s_axil R: valid dropped"),
        (4, "s_axil B: valid dropped"),
        (8, "s_axil B: changed"),
        (16, "s_axil B: response without a write"),
    ],
)
def test_bad_register_answers_are_violations(device, fault, message):
    device.write32(FAULTS, fault)
    device.timing(stall={"axil": 0.9})
    if fault == 16:
        device.run(10)
    for _ in range(3):
        try:
            device.read32(regmap.SCRATCH) if fault < 4 else device.write32(regmap.SCRATCH, 5)
        except DeviceError:
            break  # an answer that was dropped, or had another code
    assert device.violations
    assert all(message in violation for violation in device.violations)


def test_valid_in_reset_is_a_violation(device):
    device.write32(STUCK, 1)
    assert device.violations  # its size is 0, too
    device.reset(4)
    assert [text.split(": ", 1)[1] for text in device.violations].count(
        "m_axi AR: valid in reset"
    ) == 4


def test_reset_forgets_bursts_and_keeps_memory(device):
    device.fill()
    before = device.memory.copy()
    device.timing(latency=100, bytes_per_cycle=math.inf)
    device.play(ar=[request(BASE, 8)], aw=[request(BASE)], w=[beat(1)], cycles=20)
    device.reset()
    device.write32(CONTROL, READY)
    device.run(300)
    assert device.events() == []
    np.testing.assert_array_equal(device.memory, before)
    assert device.violations == []


def test_totals(device):
    device.timing(latency=30, bytes_per_cycle=math.inf)
    device.play(ar=[request(BASE, 16), request(BASE, 8), *idle(60), request(BASE, 4)])
    assert device.totals["m_axi"] == Totals(3, 28, 224, 192, 0, 0, 0, 0)
    device.clear_totals()
    assert device.totals == {name: Totals(*[0] * 8) for name in ("m_axi", "m_axi_v")}


# Arguments ---------------------------------------------------------------------------------------


def test_memory_ranges(device):
    device.write(0xFFF0, b"0123456789abcdef")
    assert device.read(0xFFF8, 8) == b"89abcdef"
    assert bytes(device.memory[0xFFF0:0xFFF4]) == b"0123"
    for address, size in ((0xFFF8, 9), (-1, 1), (1 << 40, 1), (0, -1)):
        with pytest.raises(ValueError, match="not in it"):
            device.read(address, size)
    with pytest.raises(ValueError, match="not in it"):
        device.write(0xFFF8, bytes(9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": -1}, "latency"),
        ({"bytes_per_cycle": 0}, "bytes_per_cycle"),
        ({"bytes_per_cycle": math.nan}, "bytes_per_cycle"),
        ({"stall": 1.0}, "stall"),
        ({"stall": {"ar": -0.1}}, "stall"),
        ({"stall": {"arv": 0.1}}, "stall must name"),
    ],
)
def test_bad_timing_is_refused(device, options, message):
    with pytest.raises(ValueError, match=message):
        device.timing(**options)


def test_bad_arguments_are_refused(device, folder, tmp_path):
    for options in (
        {"kind": "both", "address": 0, "size": 1},
        {"kind": "read", "address": 0, "size": 0},
        {"kind": "read", "address": 0, "size": 1, "response": 0},
        {"kind": "read", "address": 0, "size": 1, "count": 0},
        {"kind": "read", "address": -1, "size": 1},
    ):
        with pytest.raises(ValueError, match="must"):
            device.inject(**options)
    with pytest.raises(ValueError, match="range"):
        device.allow(read=(8, 4), write=None)
    with pytest.raises(ValueError, match="max_cycles"):
        device.run(-1)
    with pytest.raises(ValueError, match="cycles"):
        device.reset(0)
    with pytest.raises(ValueError, match="no trace"):
        device.trace_on()
    with pytest.raises(ValueError, match="memory_bytes"):
        Player(folder, memory_bytes=1000)
    with pytest.raises(ValueError, match="trace"):
        Player(folder, trace=tmp_path / "waves.txt")
    with pytest.raises(ValueError, match=r"bus of .* must have 64 bytes"):
        Device(config(512), folder, verilog=folder / "player64.v")


def test_closed_device(folder):
    with Player(folder) as device:
        device.write(0, b"kept")
    device.close()
    assert device.read(0, 4) == b"kept"
    with pytest.raises(ValueError, match="closed"):
        device.run(1)


# Builds ------------------------------------------------------------------------------------------


def test_waves(folder, tmp_path):
    waves = tmp_path / "waves.vcd"
    with Player(folder, trace=waves) as device:
        device.trace_off()
        device.run(1000)
        device.trace_on()
        start = device.cycle
        device.run(50)
        device.trace_off()
        device.run(1000)
    text = waves.read_text()
    assert "m_axi_araddr" in text
    times = [int(stamp) for stamp in re.findall(r"^#(\d+)$", text, re.M)]
    # Two stamps a cycle, of the first cycles and of those between on and off.
    during = [stamp for stamp in times if stamp > 200]
    assert during == list(range(2 * start + 2, 2 * (start + 50) + 2))


def test_library_is_built_once(folder, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("built again")

    with Player(folder):
        pass
    monkeypatch.setattr(device_module, "_build", refuse)
    with Player(folder) as device:
        assert device.library.parent == folder
    with pytest.raises(AssertionError, match="built again"):
        built(folder / "player64.v", folder, trace=".fst")


def test_two_builds_at_once(tmp_path, monkeypatch):
    builds = []

    def build(verilog, top, scratch, trace_args):
        builds.append(scratch)
        time.sleep(0.2)
        (scratch / "x.so").write_text("library")
        return scratch / "x.so"

    monkeypatch.setattr(device_module, "_build", build)
    path = tmp_path / "player.v"
    path.write_text(player(64, values=False))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(built(path, tmp_path / "cache")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(set(results)) == 1
    assert results[0].read_text() == "library"
    assert not builds[0].exists()
    path.write_text(path.read_text() + "// changed\n")
    assert built(path, tmp_path / "cache") != results[0]


def test_cache_forgets_what_was_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(device_module, "KEPT", 3)

    def make(scratch):
        (scratch / "x").write_text("made")
        return scratch / "x"

    for n in range(5):
        device_module.cached(tmp_path, f"a{n}.so", make)
        time.sleep(0.02)
        device_module.cached(tmp_path, "a0.so", make)
        time.sleep(0.02)
    assert sorted(path.name for path in tmp_path.glob("*.so")) == ["a0.so", "a3.so", "a4.so"]
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == [
        "a0.so.lock", "a3.so.lock", "a4.so.lock",
    ]  # fmt: skip


def test_generated_verilog_is_cached(tmp_path, monkeypatch):
    calls = []

    def generate(config, out_dir):
        calls.append(config)
        (out_dir / "moska.v").write_text(f"// {config.name}\n")
        return [out_dir / "moska.v"]

    monkeypatch.setattr(device_module, "generate", generate)
    first = generated(TINY, tmp_path)
    assert generated(TINY, tmp_path) == first
    assert first.read_text() == "// tiny\n"
    assert generated(config(512), tmp_path) != first
    assert len(calls) == 2


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("MOSKA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "moska"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "moska"
    monkeypatch.setenv("MOSKA_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_bad_verilog(tmp_path):
    path = tmp_path / "bad.v"
    path.write_text("module other;\nendmodule\n")
    with pytest.raises(ValueError, match="module moska"):
        Device(TINY, tmp_path, verilog=path)
    path.write_text(player(64, values=False).replace("reg stuck;", "reg stuck"))
    with pytest.raises(DeviceError, match=r"(?s)build of .*bad.v failed.*syntax error"):
        Device(TINY, tmp_path, verilog=path)


@pytest.mark.slow
def test_generated_unit():
    with Device(TINY, seed=SEED) as device:
        device.timing(stall=0.5)
        assert device.read32(regmap.ID) == regmap.ID_VALUE
        for value in (0, 0xFFFFFFFF, 0x12345678):
            device.write32(regmap.SCRATCH, value)
            assert device.read32(regmap.SCRATCH) == value
        assert device.run(1000) == 1000
        assert device.totals["m_axi"] == Totals(*[0] * 8)
        assert device.violations == []


def test_sources_are_those_that_were_loaded(tmp_path, monkeypatch):
    """A file that changes under a running process does not name what the loaded ones make."""
    monkeypatch.setattr(
        device_module, "generate", lambda config, scratch: [touched(scratch / "unit.v")]
    )
    before = generated(TINY, tmp_path)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"changed")
    assert generated(TINY, tmp_path) == before


def touched(path):
    """Make an empty file."""
    path.touch()
    return path
