"""The page on boards: its tables list the options and rungs that there are."""

import pathlib
import re

from moska.fpga import serial, simulate
from moska.fpga.link import BUS_CYCLES
from moska.host.selftest import Extent, climb

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "boards.md").read_text(encoding="utf-8")


def table(heading):
    """Rows of the first table of a section."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_rungs():
    report = climb("golden:tiny", Extent(rows=2, tokens=32, memory_bytes=1, jobs=1))
    assert [row[0].strip("` ") for row in table("Self-test")] == [one.name for one in report.rungs]
    assert "84 values" in report.rungs[1].detail


def test_options():
    rows = {row[0].strip("` "): row[1] for row in table("The link")}
    assert rows.keys() == serial.OPTIONS.keys()
    assert int(rows["baud"]) == serial.BAUD
    assert int(rows["retries"]) == serial.RETRIES
    assert rows["timeout"] == f"{serial.TIMEOUT:g}"
    for name in simulate.OPTIONS:
        assert f"`{name}`" in PAGE.split("## The simulated board")[1].split("\n## ")[0]


def test_limits():
    assert f"{BUS_CYCLES:,} cycles" in PAGE


def test_links_within_the_page():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("#")).strip().lower().replace(" ", "-")
        for line in PAGE.splitlines()
        if re.match(r"#{2,3} ", line)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings
