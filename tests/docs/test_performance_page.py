"""The script that puts measured figures into the page."""

import importlib.util
import json
import pathlib

import pytest

from moska.gen.config import Config
from moska.golden.layout import COUNTERS
from moska.sim import measure, shapes
from moska.sim.shapes import Pattern, Shape

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = Config.load("tiny")
DENSE = Shape(rows=8, chunk_tokens=32, n_tokens=256)
ROUTED = Shape(
    rows=8, chunk_tokens=32, n_tokens=512, pattern=Pattern.DATA, keep=0.25, checksum=True
)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return the script, with a page of its own."""
    spec = importlib.util.spec_from_file_location(
        "performance_tables", ROOT / "scripts" / "performance_tables.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DOCS", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    module.PAGE.write_text(
        "before\n<!-- bench tiny -->\nold\n<!-- end -->\n![plot](images/bench-tiny.svg)\n"
        "<!-- bench ulx3s -->\nother\n<!-- end -->\n"
    )
    return module


def measured(shape, ratio):
    limits = shapes.estimate(CONFIG, shape)
    cycles = limits.bound * ratio
    counters = dict.fromkeys(COUNTERS, 0) | {"cycles": cycles, "score_active": cycles}
    return measure.Measurement(
        shape=shape, bound=limits, jobs=2, cycles=cycles, spread=0, counters=counters,
        alone=2 * limits.bound if shape.judged else None, rows_per_chunk=1.0, chunks_read=1,
        checked_rows=1,
    )  # fmt: skip


def test_figures_of_the_benchmark(script, tmp_path):
    found = measure.with_gains(
        [
            measured(DENSE, 1.03),
            measured(ROUTED, 1.5),
            measured(DENSE.single(), 1.0),
            measured(ROUTED.dense(), 1.2),
        ]
    )
    path = tmp_path / "tiny.json"
    figures = {"config": "tiny", "parameters": CONFIG.parameters()}
    path.write_text(json.dumps(figures | {"shapes": [one.as_dict() for one in found]}))
    script.refresh(path)
    text = script.PAGE.read_text()
    lines = text.splitlines()
    assert "| all | 2 | 1 | 1.265 | 1.500 | 2.00 | 2.00 |" in lines
    assert "| dense | 1 | 1 | 1.030 | 1.030 | 2.00 | 2.00 |" in lines
    assert "| routed, 25% | 1 | 0 | 1.500 | 1.500 | 2.00 | 2.00 |" in lines
    assert "| with checksums | 1 | 0 | 1.500 | 1.500 | 2.00 | 2.00 |" in lines
    gain, ideal = found[1].routing_gain
    assert f"| 8 | 32 | 512 | 25% | {gain:.2f} | {ideal:.2f} | 0.800 |" in lines
    gain, ideal = found[0].gemv_gain
    assert f"| 8 | 32 | 256 | dense | {gain:.2f} | {ideal:.2f} | {gain / ideal:.3f} |" in lines
    assert "old" not in lines
    assert "other" in lines
    plot = (tmp_path / "images" / "bench-tiny.svg").read_text()
    for one in found:
        assert one.shape.name in plot
    # The same figures once more change nothing.
    script.refresh(path)
    assert script.PAGE.read_text() == text


def test_other_configurations_are_refused(script, tmp_path):
    path = tmp_path / "none.json"
    path.write_text(json.dumps({"config": "none", "shapes": [measured(DENSE, 1.0).as_dict()]}))
    with pytest.raises(SystemExit, match="must have a line <!-- bench none -->"):
        script.refresh(path)


def test_the_page_has_all_sections():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    names = ("demo", "bench ulx3s", "bench sim64", "area", "area peers", "area blocks")
    for name in names:
        assert text.count(f"<!-- {name} -->\n") == 1
    assert text.count("<!-- end -->\n") == len(names)
