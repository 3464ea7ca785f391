"""Counting of what blocks take, of netlists that are small enough to count by hand."""

import importlib.util
import pathlib

import pytest

pytestmark = pytest.mark.readers
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    """Return scripts/area.py, which needs yosys."""
    spec = importlib.util.spec_from_file_location("area", ROOT / "scripts" / "area.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(**kinds):
    return {"cells": {name: {"type": kind} for name, kind in kinds.items()}}


def test_modules_are_counted_with_what_is_in_them(script):
    """Each instance of a module, and not the models of the device's cells."""
    netlist = {
        "modules": {
            "moska": cells(unit="moska_unit", m_axi_x="LUT2"),
            "moska_unit": cells(
                lane_0="moska_unit_lane_0", lane_1="moska_unit_lane_0", results="moska_unit_results"
            ),
            "moska_unit_lane_0": cells(a="LUT6", b="FDRE", scale="moska_unit_lane_0_scale"),
            "moska_unit_lane_0_scale": cells(a="DSP48E2", b="FDRE"),
            "moska_unit_results": cells(a="RAMB18E2", b="RAM32M16"),
            "LUT6": cells(x="$specify2"),
        }
    }
    blocks = script.nested_blocks(netlist)
    assert blocks["softmax lanes"] == {"LUT6": 2, "FDRE": 4, "DSP48E2": 2}
    assert blocks["results"] == {"RAMB18E2": 1, "RAM32M16": 1}
    assert blocks["memory side (DMA)"] == {"LUT2": 1}
    family = script.FAMILIES["xcup"]
    assert script.counted(family, blocks["softmax lanes"]) == {
        "LUT": 2, "FF": 4, "DSP": 2, "RAM": 0, "URAM": 0,
    }  # fmt: skip
    assert 2 * script.counted(family, blocks["results"])["RAM"] == 1
    assert script.counted(family, blocks["results"])["LUT"] == 8


def test_flat_cells_are_counted_by_their_names(script):
    netlist = {
        "modules": {
            "moska": {
                "cells": {
                    "unit.lane_3.scale.x_LUT4_Z": {"type": "LUT4"},
                    "unit.lane_3.scale.y": {"type": "CCU2C"},
                    "unit.fetch.z": {"type": "TRELLIS_FF"},
                }
            }
        }
    }
    blocks = script.flat_blocks(netlist)
    family = script.FAMILIES["ecp5"]
    assert script.counted(family, blocks["softmax lanes"])["LUT"] == 3
    assert script.counted(family, blocks["memory side (DMA)"])["FF"] == 1
