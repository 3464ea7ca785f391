"""Tools of others read the package: FuseSoC with Verilator, PeakRDL, slang, yosys, Icarus."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from moska.gen import package
from moska.gen.config import Config
from moska.sim.verilator import environment

pytestmark = pytest.mark.readers

TINY = Config.load("tiny")
# Both memory ports, and words of another width.
TWO_PORTS = dataclasses.replace(TINY, name="two_ports", read_ports=2, bus_width=128)
BIN = pathlib.Path(sys.executable).parent


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Return the folder of a configuration's package, written when it is first asked for."""
    folders = {}

    def folder(config):
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp(config.name)
            package.write(config, folders[config])
        return folders[config]

    return folder


def run(*command, cwd, timeout=900):
    """Run a tool; return its exit status and what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def fusesoc(folder, target, config, build):
    """Run a target of the package's `.core`."""
    core = f"moska:unit:{config.name}"
    command = ["--cores-root", folder, "run", "--build-root", build, f"--target={target}", core]
    return run(BIN / "fusesoc", *command, cwd=build)


# FuseSoC, Verilator and Icarus ----------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, TWO_PORTS], ids=lambda config: config.name)
def test_fusesoc_lints(packages, tmp_path, config):
    status, output = fusesoc(packages(config), "lint", config, tmp_path)
    assert status == 0, output
    assert "%Warning" not in output


def test_fusesoc_lint_sees_faults(packages, tmp_path):
    folder = shutil.copytree(packages(TINY), tmp_path / "package")
    path = folder / "rtl" / "moska.v"
    text = path.read_text()
    path.write_text(text.replace("assign interrupt = ", "assign interrupt = interrupt & ", 1))
    assert path.read_text() != text
    status, output = fusesoc(folder, "lint", TINY, tmp_path)
    assert status != 0
    assert "UNOPTFLAT" in output


@pytest.fixture(scope="module")
def simulated(packages, tmp_path_factory):
    """Folder with the smoke test of ``tiny`` as FuseSoC has built it, and what it printed."""
    build = tmp_path_factory.mktemp("build")
    status, output = fusesoc(packages(TINY), "sim", TINY, build)
    assert status == 0, output
    (binary,) = build.rglob("Vsmoke_tb")
    return binary.parent, output


def test_fusesoc_runs_the_smoke_test(simulated):
    assert re.search(r"^smoke test passed: job of \d+ cycles$", simulated[1], re.M)


def test_smoke_test_of_two_ports(packages, tmp_path):
    status, output = fusesoc(packages(TWO_PORTS), "sim", TWO_PORTS, tmp_path)
    assert status == 0, output
    assert "smoke test passed" in output


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("smoke_results.hex", 3, "result at 0x"),  # of O
        ("smoke_results.hex", -1, "result at 0x"),  # a guard line behind the selection
        ("smoke_memory.hex", 0x1000 // 8, "register 0x030"),  # opcode of the descriptor
    ],
)
def test_smoke_test_can_fail(simulated, tmp_path, name, line, message):
    """One wrong bit in an expected result, or in the job."""
    folder = shutil.copytree(simulated[0], tmp_path / "sim")
    lines = (folder / name).read_text().splitlines()
    lines[line] = lines[line][:-1] + f"{int(lines[line][-1], 16) ^ 4:x}"
    (folder / name).write_text("\n".join(lines) + "\n")
    status, output = run("./Vsmoke_tb", cwd=folder)
    assert status != 0
    assert message in output
    assert "passed" not in output


@pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")
@pytest.mark.parametrize("config", [TINY, TWO_PORTS], ids=lambda config: config.name)
def test_fusesoc_runs_the_smoke_test_in_icarus(packages, tmp_path, config):
    """Icarus is on no package index of Python; what is on the path is used."""
    status, output = fusesoc(packages(config), "sim_icarus", config, tmp_path)
    assert status == 0, output
    assert re.search(r"^smoke test passed: job of \d+ cycles$", output, re.M)


# PeakRDL --------------------------------------------------------------------------------------


def test_peakrdl_makes_html(packages, tmp_path):
    rdl = packages(TINY) / "registers" / "moska.rdl"
    status, output = run(BIN / "peakrdl", "html", rdl, "-o", tmp_path, cwd=tmp_path)
    assert status == 0, output
    assert (tmp_path / "index.html").stat().st_size > 0


def masks(header, pattern):
    """Names and numbers that a C header defines."""
    found = re.findall(rf"^#define {pattern}$", header.read_text(), re.M)
    return [(name, int(mask, 16)) for name, mask in found]


def test_peakrdl_agrees_with_the_header(packages, tmp_path):
    """Masks of all fields in PeakRDL's C header are those of the package's own."""
    folder = packages(TINY) / "registers"
    status, output = run(
        BIN / "peakrdl", "c-header", folder / "moska.rdl", "-o", tmp_path / "theirs.h", cwd=tmp_path
    )
    assert status == 0, output
    theirs = {
        name.replace("__", "_"): mask
        for name, mask in masks(tmp_path / "theirs.h", r"MOSKA__(\w+?)_bm (0x[0-9a-f]+)")
    }
    ours = dict(masks(folder / "moska_regs.h", r"MOSKA_(\w+)_MASK (0x[0-9A-F]+)u"))
    assert len(ours) > 10
    assert ours.items() <= theirs.items()


# slang ----------------------------------------------------------------------------------------


# In a process of its own, on one thread: in a worker of pytest that had other tools' extensions
# loaded, it has crashed.
SLANG = """
import sys
from pyslang.driver import Driver
driver = Driver()
driver.addStandardArgs()
assert driver.parseCommandLine(" ".join(["slang", "--threads", "1", *sys.argv[1:]]))
assert driver.processOptions()
print("elaborates:", driver.parseAllSources() and driver.runFullCompilation(True))
"""


def slang(*files, top):
    """Whether slang elaborates a module without errors."""
    pytest.importorskip("pyslang")
    status, output = run(
        sys.executable, "-c", SLANG, *files, "--top", top, cwd=files[0].parent, timeout=300
    )
    assert status == 0, output
    return output.endswith("elaborates: True\n")


@pytest.mark.parametrize("config", [TINY, TWO_PORTS, Config.load("ulx3s")], ids=lambda c: c.name)
def test_slang_elaborates(packages, config):
    rtl, sim = packages(config) / "rtl", packages(config) / "sim"
    assert slang(rtl / "moska.v", rtl / "moska_kernel.v", top="moska_kernel")
    assert slang(rtl / "moska.v", sim / "smoke_tb.sv", top="smoke_tb")


def test_slang_sees_faults(packages, tmp_path):
    text = (packages(TINY) / "rtl" / "moska.v").read_text()
    (tmp_path / "moska.v").write_text(text.replace("module moska_unit_fetch ", "module gone "))
    assert not slang(tmp_path / "moska.v", top="moska")


# yosys ----------------------------------------------------------------------------------------

YOSYS = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    libyosys.run_pass(command, design)
"""


def yosys(*commands, cwd):
    """Run passes of yosys, which ends the process at an error."""
    return run(sys.executable, "-c", YOSYS, *commands, cwd=cwd, timeout=1800)


def synthesised(folder, command, *, top, cwd):
    """Numbers of cells by type after a command of yosys, of module ``top`` and those below."""
    status, output = yosys(
        f"read_verilog {folder / 'rtl' / 'moska.v'}",
        f"hierarchy -check -top {top}",
        "proc",
        "check -assert",
        f"{command} -top {top}",
        f"tee -q -o {cwd / 'stat.txt'} stat",
        cwd=cwd,
    )
    assert status == 0, output[-3000:]
    lines = re.findall(r"^ +(\d+) +(\w+)$", (cwd / "stat.txt").read_text(), re.M)
    return {name: int(count) for count, name in lines}


# UltraScale+ flat: module by module takes longer than the rest of these tests together.
@pytest.mark.parametrize("command", ["synth_ecp5", "synth_xilinx -family xcup -flatten"])
def test_yosys_synthesises(packages, tmp_path, command):
    cells = synthesised(packages(TINY), command, top="moska", cwd=tmp_path)
    flip_flops = cells.get("TRELLIS_FF", 0) + cells.get("FDRE", 0)
    assert flip_flops > 5_000
    assert cells.get("MULT18X18D", 0) + cells.get("DSP48E2", 0) >= TINY.macs


def test_yosys_synthesises_module_by_module(packages, tmp_path):
    """The array of scores has names of arrays, which ABC9 takes for bits when they are escaped."""
    cells = synthesised(
        packages(TINY),
        "synth_xilinx -family xcup",
        top="moska_unit_score_array",
        cwd=tmp_path,
    )
    assert cells["DSP48E2"] > 0
