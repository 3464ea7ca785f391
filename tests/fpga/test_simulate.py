"""The simulated board: the ladder at a board's size, its speed, its end."""

import contextlib
import os
import signal
import socket
import sys
import time

import pytest

import moska.host
from moska.fpga import frame
from moska.fpga.link import SIMULATED_GAP_CYCLES
from moska.fpga.simulate import SimulatedBoard, SocTransport, built, generated
from moska.gen.config import Config
from moska.host import BoardReset, LinkCut, TransportError
from moska.host.selftest import Extent, climb

pytestmark = pytest.mark.fpga
TINY = Config.load("tiny")
TINY_GROUP = pytest.mark.xdist_group("soc-tiny")  # its program is built once
ULX3S_GROUP = pytest.mark.xdist_group("soc-ulx3s")


def processor_seconds(board):
    """Time that the simulator has had a processor."""
    with open(f"/proc/{board.process.pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@ULX3S_GROUP
def test_the_ladder_at_the_size_of_the_board():
    """64 rows x 2,048 tokens of a real model, dense and routed, on the unit of the ULX3S."""
    said = []
    report = climb("soc:ulx3s", Extent(memory_bytes=1 << 16, jobs=8), say=said.append)
    for rung in said:
        print(f"{rung.name:<14} {rung.seconds:8.2f} s  {rung.detail}")
    assert report.passed, report.rungs[-1]
    details = {rung.name: rung.detail for rung in report.rungs}
    assert details["dense"].startswith("64 rows x 2048 tokens, all chunks, every bit")
    assert details["routed"].startswith("64 rows x 2048 tokens, 16 of 64 chunks, every bit")
    assert report.link_retries == 0


@ULX3S_GROUP
def test_speed():
    """Cycles a second: the board rejects a byte after a number of cycles without another one."""
    rounds = 30
    with (
        SimulatedBoard(Config.load("ulx3s")) as board,
        socket.create_connection(("127.0.0.1", board.port)) as link,
    ):
        before = processor_seconds(board)
        for _ in range(rounds):
            link.sendall(b"?")
            assert link.recv(100)[2] == frame.Status.REJECTED
        rate = rounds * SIMULATED_GAP_CYCLES / (processor_seconds(board) - before)
    print(f"{rate:,.0f} cycles a second of one processor")
    assert rate > 50_000


@TINY_GROUP
def test_nothing_stays_behind():
    files = len(os.listdir("/proc/self/fd"))
    link = SocTransport(TINY)
    process = link.board.process
    link.close()
    link.close()
    assert process.poll() == 0
    assert len(os.listdir("/proc/self/fd")) == files


@TINY_GROUP
def test_an_idle_board_costs_nothing():
    with SimulatedBoard(TINY) as board:
        time.sleep(3)
        before = processor_seconds(board)
        time.sleep(1)
        assert processor_seconds(board) - before <= 0.02


# pyserial leaves a socket that the other end has reset to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@TINY_GROUP
def test_a_killed_simulator_is_a_cut_link():
    with contextlib.closing(SocTransport(TINY)) as link:
        os.kill(link.board.process.pid, signal.SIGKILL)
        link.board.process.wait()
        for access in (lambda: link.read(link.memory_base, 4), link.restart, lambda: link.wait(1)):
            with pytest.raises(LinkCut):
                access()


@TINY_GROUP
def test_a_new_board_has_nothing_of_the_old_one():
    with SimulatedBoard(TINY) as first, SimulatedBoard(TINY) as second:
        with contextlib.closing(moska.host.transport.connect(f"serial:{first.url}")) as link:
            link.write(link.memory_base, b"data")
            link.port = second.url
            with pytest.raises(BoardReset):
                link.restart()


def test_missing_tools(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "litex", None)
    for name in [name for name in sys.modules if name.startswith(("moska.fpga.soc", "litex."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("moska.fpga.soc", raising=False)
    with pytest.raises(TransportError, match="extra fpga must be installed"):
        generated(TINY, tmp_path)


def test_a_build_that_fails(monkeypatch, tmp_path):
    broken = tmp_path / "broken.v"
    broken.write_text("module ulx3s(; endmodule\n")
    monkeypatch.setattr("moska.fpga.simulate.generated", lambda config, directory: broken)
    with pytest.raises(TransportError, match=r"build of .*broken.v failed:\n(.|\n)*syntax error"):
        built(TINY, tmp_path)
    assert not list(tmp_path.glob("*.board"))
