"""The script that puts areas into the page on performance."""

import importlib.util
import json
import pathlib

import pytest

from moska.gen.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICE = {"LUT": 1000, "FF": 2000, "DSP": 100, "RAM": 10}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return the script, with a page of its own."""
    spec = importlib.util.spec_from_file_location(
        "area_tables", ROOT / "scripts" / "area_tables.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    names = ("area", "area blocks", "area peers")
    module.PAGE.write_text("".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in names))
    return module


def figures(tmp_path, name, **changes):
    """File of figures as scripts/area.py writes them."""
    config = Config.load(name)
    lanes = {"LUT": 300, "FF": 100, "DSP": 20, "RAM": 0}
    rest = {"LUT": 100, "FF": 60, "DSP": 5, "RAM": 2.5}
    path = tmp_path / f"{name}-ecp5.json"
    values = {
        "config": name,
        "parameters": config.parameters(),
        "macs": config.macs,
        "clock_mhz": config.clock_mhz,
        "family": "ecp5",
        "part": "PART",
        "device": DEVICE,
        "used": {column: lanes[column] + rest[column] for column in DEVICE},
        "blocks": {"softmax lanes": lanes, "control": rest},
    }
    path.write_text(json.dumps(values | changes))
    return path


def test_areas_and_blocks(script, tmp_path):
    script.main([str(figures(tmp_path, "tiny"))])
    lines = script.PAGE.read_text().splitlines()
    columns = "400 (40 %) | 160 (8 %) | 25 (25 %) | 2.5 (25 %) | -"
    assert f"| `tiny` | PART | 16 | {columns} | 25 |" in lines
    assert "| softmax lanes | 300 | 100 | 20 | 0 |" in lines
    assert "| control | 100 | 60 | 5 | 2.5 |" in lines
    assert "old" not in lines


def test_rate_is_of_the_clock_that_the_board_reaches(script, tmp_path):
    paths = [figures(tmp_path, "tiny"), figures(tmp_path, "ulx3s")]
    script.main([str(path) for path in paths])
    text = script.PAGE.read_text()
    assert "| 128 | 50 (assumed) | 6.4 | 3 | synthesis |" in text
    board = {"clocks": [{"name": "sys_clk", "reached": 62.5}], "critical_paths": []}
    (tmp_path / "report.json").write_text(json.dumps(board))
    script.main([str(path) for path in [*paths, tmp_path / "report.json"]])
    text = script.PAGE.read_text()
    assert "| 128 | 62 | 8.0 | 3 | placed and routed |" in text
    assert "| 16 | 50 (assumed) | 0.8 | 25 | synthesis |" in text
    # 351,000 LUTs and 256 multipliers at 70 MHz.
    assert "| 256 | 70 | 17.9 | 1,371 |" in text


def test_figures_of_another_preset_are_refused(script, tmp_path):
    old = Config.load("tiny").parameters() | {"fold": 8}
    with pytest.raises(SystemExit, match=r"must be of the presets as they are, .*: tiny"):
        script.main([str(figures(tmp_path, "tiny", parameters=old))])
