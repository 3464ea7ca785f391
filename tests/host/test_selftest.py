"""moska selftest: each rung holds on a good unit, and breaks on a unit with a fault of its kind."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from moska.gen.cli import main
from moska.gen.config import Config
from moska.host import TransportError, regmap, selftest
from moska.host.selftest import Extent, climb
from moska.sim.model import ModelDevice
from moska.sim.transport import GoldenTransport

RUNGS = [
    "identity", "scratch", "data lines", "address lines", "memory walk", "loop-back", "dense",
    "routed", "soak",
]  # fmt: skip
TINY = Config.load("tiny")
MEMORY = 1 << 20
SMALL = Extent(rows=20, tokens=150, memory_bytes=1 << 14, jobs=6)


def run(*arguments):
    return CliRunner().invoke(main, ["selftest", *arguments])


@pytest.mark.parametrize(
    "uri",
    [
        "golden:tiny",
        pytest.param("sim:tiny?latency=20", marks=pytest.mark.xdist_group("device-tiny")),
    ],
)
def test_a_good_unit(uri, tmp_path):
    path = tmp_path / "report.json"
    result = run(uri, "--rows", "20", "--tokens", "150", "--memory", "16K", "--jobs", "6",
                 "--json", str(path))  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[:14].strip() for line in lines] == RUNGS
    assert all(line[15:].startswith("ok ") for line in lines)
    report = json.loads(path.read_text())
    assert report["passed"]
    assert report["uri"] == uri
    assert report["clock_mhz"] == TINY.clock_mhz
    assert report["parameters"]["head_dim"] == TINY.head_dim
    assert [rung["name"] for rung in report["rungs"]] == RUNGS
    assert report["link_retries"] is None
    assert "20 rows x 150 tokens, all chunks" in report["rungs"][6]["detail"]
    assert "8 jobs" in report["rungs"][8]["detail"]  # whole batches


def test_the_size_of_a_board():
    """64 rows x 2,048 tokens of a real model, dense and routed, with the unit of the ULX3S."""
    report = climb("golden:ulx3s", Extent(memory_bytes=1 << 12, jobs=1))
    assert report.passed
    details = {rung.name: rung.detail for rung in report.rungs}
    assert details["dense"].startswith("64 rows x 2048 tokens, all chunks, every bit")
    assert details["routed"].startswith("64 rows x 2048 tokens, 16 of 64 chunks, every bit")


class Faulty(GoldenTransport):
    """A unit with one fault."""

    def __init__(self, fault):
        super().__init__(ModelDevice(TINY, memory_bytes=MEMORY))
        self.fault = fault
        self.closed = 0

    def read32(self, offset):
        value = super().read32(offset)
        if self.fault == "identity" and offset == regmap.ID:
            return value ^ 1
        if self.fault == "link":
            raise TransportError("nobody there")
        return value | 1 << 17 if self.fault == "scratch" and offset == regmap.SCRATCH else value

    def write(self, address, raw):
        if self.fault == "data lines":  # bit 3 of a byte is stuck at 0
            raw = bytes(byte & ~8 for byte in raw)
        if self.fault == "address lines":  # line 14 is not connected
            address &= ~(1 << 14)
        if self.fault == "memory walk" and address >= 12 << 15 and len(raw) > 8:  # a bad cell
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        super().write(address, raw)

    def wait(self, timeout):
        return False if self.fault == "loop-back" else super().wait(timeout)

    def close(self):
        self.closed += 1


@pytest.fixture
def faulty(monkeypatch):
    """Make the ladder open a faulty unit."""

    def make(fault):
        link = Faulty(fault)
        monkeypatch.setattr(selftest, "connect", lambda uri: link)
        return link

    return make


@pytest.mark.parametrize(
    ("fault", "rung", "text"),
    [
        ("link", "identity", "TransportError: nobody there"),
        ("identity", "identity", "IncompatibleUnit: unit must have ID"),
        ("scratch", "scratch", "scratch register must be 0x00000000, not 0x00020000"),
        ("data lines", "data lines", "must hold 0xff, not 0xf7; 4 of 8 bytes differ, in bits 0x08"),
        ("address lines", "address lines", "memory at 0x00000000 must hold"),
        ("memory walk", "memory walk", "1 of 1024 bytes differ, in bits 0x01"),
        ("loop-back", "loop-back", "DeviceTimeout: unit must complete 6 fences within 0.2 seconds"),
    ],
)
def test_a_fault_breaks_its_rung(faulty, fault, rung, text):
    link = faulty(fault)
    link.stall_timeout = 0.2
    said = []
    report = climb("x", SMALL, say=said.append)
    assert not report.passed
    assert said == report.rungs
    assert [one.name for one in report.rungs] == RUNGS[: RUNGS.index(rung) + 1]
    assert [one.passed for one in report.rungs] == [True] * RUNGS.index(rung) + [False]
    assert text in report.rungs[-1].detail
    assert link.closed == 1


@pytest.mark.parametrize(
    ("rung", "name", "text"),
    [("dense", "attend", "o[0, 0] must be"), ("routed", "route", "selection[0, 0] must be")],
)
def test_a_wrong_bit_breaks_its_rung(monkeypatch, rung, name, text):
    """The expected bits differ in one: as if the unit's did."""
    original = getattr(selftest, name)

    def wrong(*arguments, **options):
        result = original(*arguments, **options)
        if name == "route":
            result[0, 0] ^= True
        else:
            result.o[0, 0] ^= 1
        return result

    monkeypatch.setattr(selftest, name, wrong)
    report = climb("golden:tiny", SMALL)
    assert report.rungs[-1].name == rung
    assert text in report.rungs[-1].detail


def test_a_wrong_bit_in_the_soak(monkeypatch):
    original, calls = selftest.attend, []

    def wrong(*arguments):
        result = original(*arguments)
        calls.append(1)
        if len(calls) == 5:
            result.lse[-1] ^= np.uint32(1 << 31)
        return result

    monkeypatch.setattr(selftest, "attend", wrong)
    report = climb("golden:tiny", Extent(rows=20, tokens=150, memory_bytes=1 << 14, jobs=40))
    assert report.rungs[-1].name == "soak"
    assert "lse[" in report.rungs[-1].detail


def test_the_soak_lasts(monkeypatch):
    report = climb("golden:tiny", Extent(rows=2, tokens=32, memory_bytes=1, jobs=1, seconds=1.0))
    assert report.passed
    assert report.rungs[-1].seconds >= 1.0


def test_what_broke_is_the_exit_status(faulty):
    faulty("scratch")
    result = run("golden:tiny")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("scratch        FAILED")
    assert "moska: error: rung scratch broke: Mismatch: scratch register" in result.stderr


def test_json_on_standard_output():
    result = run("golden:tiny", "--rows", "2", "--tokens", "32", "--memory", "4096", "--jobs", "1",
                 "--json")  # fmt: skip
    assert json.loads(result.stdout)["passed"]
    assert "soak" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere:tiny"], "moska: error: uri must begin with one of golden:"),
        (["golden:none"], "moska: error: "),
        (["golden:tiny", "--memory", "0"], "'0' is no number of bytes, as 4096, 256K or 32M"),
        (["golden:tiny", "--memory", "4X"], "'4X' is no number of bytes"),
    ],
)
def test_refusals(arguments, text):
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr


def test_extent():
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        Extent(rows=0)
