"""The board's SoC in Verilator, in a process of its own behind a socket: ``soc:ulx3s``."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

from moska.fpga import serial
from moska.fpga.serial import SerialTransport
from moska.gen.config import Config
from moska.host.errors import TransportError
from moska.host.transport import parse_options
from moska.sim.device import OPTIMIZE, cache_directory, cached, sources
from moska.sim.verilator import environment

SOURCE = pathlib.Path(__file__).with_name("board.cpp")
TOOLS = ("amaranth", "litedram", "litex", "litex-boards", "migen")  # that write the Verilog
VERILATOR_ARGS = (
    "--cc", "--prefix", "Vboard", "-Wno-fatal", "-Wno-lint", "-Wno-PROCASSINIT",
    "--x-assign", "fast", "--x-initial", "fast", "-O3", "--timescale", "1ns/1ns",
)  # fmt: skip
COMPILER_ARGS = ("-std=gnu++20", "-w")
EXTRA = "pip install 'moska[fpga,sim]'"
TIMEOUT = 60.0  # seconds of an answer: the simulation may be slow
END_SECONDS = 5.0  # that the process may take to end by itself


class SimulatedBoard(contextlib.AbstractContextManager):
    """The simulated SoC of a configuration, with a TCP port that stands for its serial port.

    It is built when no cached one fits, which takes a minute or two; the cache is that of
    :class:`moska.sim.device.Device`. The model of the SDRAM is LiteDRAM's: neither its PHY nor a
    UART is simulated, and nothing limits the rate of bytes.

    Parameters
    ----------
    config
        of the unit
    directory
        cache to use instead

    Attributes
    ----------
    port : int
        of TCP, on this machine; takes one connection at a time, and another one after it
    process : subprocess.Popen

    Raises
    ------
    TransportError
        when a tool is missing or the build fails.
    ValueError
        for a configuration that the board has no SoC for.
    """

    def __init__(self, config: Config, directory: pathlib.Path | None = None):
        program = built(config, directory or cache_directory())
        self._errors = tempfile.TemporaryFile()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = listening.getsockname()[1]
            self.process = subprocess.Popen(
                [program, str(listening.fileno())],
                pass_fds=(listening.fileno(),),
                stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors,
            )  # fmt: skip

    def __exit__(self, *exception):
        self.close()

    @property
    def url(self) -> str:
        """Port as pyserial names it."""
        return f"socket://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End the process; may be called again."""
        self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()

    def how_it_ended(self) -> str:
        """Why there is no process any more, for an error message; empty when there is."""
        code = self.process.poll()
        if code is None:
            return ""
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        self._errors.seek(0)
        return f"simulator ended {how}: {self._errors.read().decode(errors='replace')[-2000:]}"


def generated(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Return the cached Verilog of a simulated SoC, one file; write it when there is none."""
    try:
        from moska.fpga import soc
    except ImportError as error:
        raise TransportError(f"the extra fpga must be installed ({EXTRA}): {error}") from error

    versions = [importlib.metadata.version(name) for name in TOOLS]
    key = hashlib.sha256(repr((sorted(config.parameters().items()), versions)).encode())
    key.update(sources("golden", "hw", "gen", "fpga"))

    def make(scratch):
        paths = soc.write(config, scratch, simulated=True)
        whole = scratch / "board.v"
        whole.write_text("".join(path.read_text() for path in paths))
        return whole

    return cached(directory, f"soc-{config.name}-{key.hexdigest()[:24]}.v", make)


def built(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Return the cached program of a simulated board; build it when there is none."""
    verilog = generated(config, directory)
    options = (*VERILATOR_ARGS, *COMPILER_ARGS, OPTIMIZE)
    key = hashlib.sha256()
    for part in (
        verilog.read_text(), SOURCE.read_text(), *options, platform.machine(),
        importlib.metadata.version("verilator"),
    ):  # fmt: skip
        key.update(part.encode() + b"\0")

    def make(scratch):
        return _build(verilog, scratch)

    return cached(directory, f"soc-{config.name}-{key.hexdigest()[:24]}.board", make)


def _build(verilog, scratch):
    """Verilate and compile in ``scratch``; returns the program."""
    from moska.fpga.soc import NAME

    program = scratch / "board"
    command = [
        "verilator", *VERILATOR_ARGS, "--top-module", NAME, "--exe", "--build",
        "-j", str(os.cpu_count()), "-CFLAGS", " ".join(COMPILER_ARGS), "-MAKEFLAGS", OPTIMIZE,
        "--Mdir", str(scratch / "obj"), "-o", str(program), str(verilog.resolve()), str(SOURCE),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **environment()}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise TransportError(f"build of {verilog} failed:\n{tail}")
    return program


class SocTransport(SerialTransport):
    """A simulated board and the link to it, which end together.

    Parameters
    ----------
    config
        of the unit
    options
        more arguments of :class:`moska.fpga.serial.SerialTransport`

    Attributes
    ----------
    board : SimulatedBoard
    """

    stall_timeout = 600.0  # a large job takes minutes

    def __init__(self, config: Config, **options: Any):
        self.board = SimulatedBoard(config)
        try:
            super().__init__(
                self.board.url, parameters=config.parameters(), **{"timeout": TIMEOUT} | options
            )
        except BaseException:
            self.board.close()
            raise
        self.description = f"simulated board with {config.name}"

    def close(self) -> None:
        """End the link and the simulator."""
        super().close()
        self.board.close()


OPTIONS = {name: serial.OPTIONS[name] for name in ("retries", "timeout")}


def open_soc(name: str, options: Mapping[str, str]) -> SocTransport:
    """Open ``soc:ulx3s``: the simulated SoC with the unit of a preset or a TOML file.

    The first time, building it takes a minute or two.
    """
    values = parse_options("soc", options, OPTIONS)
    return SocTransport(Config.load(name), **values)
