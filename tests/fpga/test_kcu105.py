"""The project of the KCU105: sources, pins and clocks, addresses; Verilator elaborates it."""

import dataclasses
import os
import pathlib
import re
import subprocess

import pytest

from moska.gen.config import Config
from moska.sim.verilator import environment

pytestmark = pytest.mark.fpga

# As few rows and chunks as possible: the same ports.
SMALL = {"fold": 8, "query_tile": 2, "max_rows": 16, "max_chunks": 32, "buffer_slots": 2}
# Modules that Vivado brings: primitives, and the PCIe core that the script makes.
VENDOR = {
    "BUFG", "BUFGCE", "BUFGCE_DIV", "FDCE", "FDPE", "IBUFDS", "IBUFDS_GTE3", "IDELAYCTRL",
    "IDELAYE3", "IOBUF", "IOBUFDSE3", "ISERDESE3", "MMCME2_ADV", "OBUFDS", "ODELAYE3",
    "OSERDESE3", "pcie_us",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder of the project of a small unit."""
    from moska.fpga import kcu105

    folder = tmp_path_factory.mktemp("kcu105")
    config = dataclasses.replace(Config.load(kcu105.CONFIG), **SMALL)
    for path in kcu105.write(config, folder):
        assert path.is_file()
    return folder


def sources(project):
    """Verilog files that the script reads."""
    found = re.findall(r"^read_verilog \{(.*)\}$", (project / "kcu105.tcl").read_text(), re.M)
    return [pathlib.Path(path) for path in found]


def test_configuration_of_the_board():
    from moska.fpga import kcu105

    config = Config.load(kcu105.CONFIG)
    assert config.bus_width == kcu105.MEMORY_WIDTH
    assert config.clock_mhz * 1_000_000 == kcu105.CLOCK_HZ
    assert config.macs <= 1_920  # multipliers of the FPGA


def test_other_ports_are_refused():
    from moska.fpga.kcu105 import SoC

    with pytest.raises(ValueError, match="config must have 1 read port of 512 bits"):
        SoC(Config.load("tiny"))


def test_script_reads_files_and_makes_the_bitstream(project):
    text = (project / "kcu105.tcl").read_text()
    names = [path.name for path in sources(project)]
    assert {"moska.v", "kcu105.v", "VexRiscv_Lite.v"} < set(names)
    assert "pcie3_ultrascale" in text
    assert "xcku040" in text
    assert "write_bitstream" in text


def test_every_port_has_a_pin_and_a_standard(project):
    """But those of transceivers, which have no standard."""
    head = re.search(r"^module kcu105 \((.*?)\);", (project / "kcu105.v").read_text(), re.M | re.S)
    ports = set()
    for width, name in re.findall(
        r"(?:input|output|inout) +(?:wire|reg) +(?:\[(\d+):0\])? *(\w+)", head[1]
    ):
        ports |= {f"{name}[{bit}]" for bit in range(int(width) + 1)} if width else {name}
    text = (project / "kcu105.xdc").read_text()
    placed = set(re.findall(r"^set_property LOC \w+ \[get_ports \{(.*?)\}\]", text, re.M))
    standard = set(re.findall(r"^set_property IOSTANDARD \w+ \[get_ports \{(.*?)\}\]", text, re.M))
    assert placed == ports
    assert {name for name in ports if not name.startswith("pcie_")} <= standard
    clocks = re.findall(r"^create_clock .*-period (\S+)", text, re.M)
    assert "8.0" in clocks


def test_host_sees_the_registers_in_its_window(project):
    from moska.fpga import kcu105

    rows = [line.split(",") for line in (project / "csr.csv").read_text().splitlines()]
    regions = {row[1]: int(row[2], 16) for row in rows if row[0] == "memory_region"}
    assert regions["unit"] == kcu105.UNIT_BASE
    assert regions["main_ram"] == kcu105.MEMORY_BASE
    registers = {row[1]: int(row[2], 16) for row in rows if row[0] == "csr_register"}
    window = range(kcu105.CSR_BASE, kcu105.CSR_BASE + kcu105.WINDOW_BYTES)
    assert kcu105.UNIT_BASE in window
    assert all(address in window and address < kcu105.UNIT_BASE for address in registers.values())
    assert {"to_memory_base", "from_memory_base", "pcie_dma0_writer_enable"} < set(registers)
    constants = {row[1] for row in rows if row[0] == "constant"}
    assert "unit_interrupt" in constants


def test_verilator_elaborates_the_project(project):
    """All modules but those of Vivado are there, and connected as they are declared."""
    done = subprocess.run(
        ["verilator", "--lint-only", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wwarn-MODMISSING",
         "-Wwarn-PINMISSING", "--top-module", "kcu105", *map(str, sources(project))],
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip
    missing = set(re.findall(r"Cannot find file containing module: '(\w+)'", done.stdout))
    assert missing <= VENDOR, missing - VENDOR
    assert "moska" not in missing
    errors = re.findall(r"^%Error(?!-MODMISSING).*", done.stdout, re.M)
    errors = [line for line in errors if "Exiting due to" not in line]
    assert not errors, errors[:10]
