"""Places of the arrays' multipliers on the device."""

import itertools
import json
import subprocess
import sys

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module

from moska.fpga import floorplan, report
from moska.hw.arrays.score import ScoreArray
from moska.hw.arrays.value import ValueArray


def netlist(rows, elements):
    """Multipliers of two arrays and one of something else."""
    cells, names = {"other": {"type": "MULT18X18D", "attributes": {}}}, {}
    bit = 100
    for array in ("value", "score"):
        for row in reversed(range(rows)):
            for element in range(elements):
                name = f"{array} {row} {element}"
                cells[name] = {"type": "MULT18X18D", "attributes": {}}
                names[f"u.{array}_array.row_{row}.product_{element}"] = {"bits": [bit + 35]}
                cells[name]["connections"] = {f"P{n}": [bit + n] for n in range(36)}
                bit += 36
    cells["other"]["connections"] = {f"P{n}": [n + 2] for n in range(36)}
    return {"cells": cells, "netnames": names}


def places(module):
    """(x, y) of each cell with a fixed place, by name."""
    found = {}
    for name, cell in module["cells"].items():
        if "BEL" in cell["attributes"]:
            x, y, _ = cell["attributes"]["BEL"].split("/")
            found[name] = (int(x[1:]), int(y[1:]))
    return found


def test_each_place_is_there_once():
    names = [name for lines in floorplan.places().values() for line in lines for name in line]
    assert len(names) == len(set(names)) == report.DEVICE["DSP"]


@pytest.mark.parametrize(("rows", "elements"), [(8, 8), (2, 8), (1, 1), (3, 26), (4, 13), (9, 8)])
def test_rows_are_together_and_near_the_one_before(rows, elements):
    module = netlist(rows, elements)
    assert floorplan.place(module) == 2 * rows * elements
    assert "BEL" not in module["cells"]["other"]["attributes"]
    at = places(module)
    assert len(set(at.values())) == len(at)
    for array in ("score", "value"):
        middles = []
        for row in range(rows):
            spots = [at[f"{array} {row} {element}"] for element in range(elements)]
            assert len({y for _, y in spots}) == 1
            assert spots == sorted(spots)
            assert spots[-1][0] - spots[0][0] <= 5 * elements
            middles.append((sum(x for x, _ in spots) / elements, spots[0][1]))
        for (x0, y0), (x1, y1) in itertools.pairwise(middles):
            # To the next one of a line, or from its end to the next line.
            assert abs(y1 - y0) in (0, 24)
            assert abs(x1 - x0) <= (4 if y1 != y0 else 5 * elements)


@pytest.mark.parametrize(("rows", "elements"), [(10, 8), (1, 27), (4, 26)])
def test_what_does_not_fit_is_left_to_the_placer(rows, elements):
    module = netlist(rows, elements)
    assert floorplan.place(module) == 0
    assert not places(module)


def test_a_design_without_arrays():
    assert floorplan.place({"cells": {}, "netnames": {}}) == 0


@pytest.mark.fpga
def test_the_arrays_are_found(tmp_path):
    shape = {"head_dim": 16, "fold": 4, "query_tile": 2}
    m = Module()
    m.submodules.score_array = score = ScoreArray(**shape)
    m.submodules.value_array = value = ValueArray(**shape, merge_lanes=2)
    ports = [signal for array in (score, value) for _, _, signal in array.signature.flatten(array)]
    ports = [getattr(port, "as_value", lambda port=port: port)() for port in ports]
    (tmp_path / "top.v").write_text(verilog.convert(m, name="top", ports=ports))
    subprocess.run(
        [sys.executable, "-m", "moska.fpga.synthesis", "top", "top.v"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=600,
    )
    module = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]
    found = floorplan.multipliers(module)
    assert {array: sorted(rows) for array, rows in found.items()} == {
        "score": [0, 1],
        "value": [0, 1],
    }
    assert all(sorted(row) == [0, 1, 2, 3] for rows in found.values() for row in rows.values())
    assert len(places(module)) == 16
