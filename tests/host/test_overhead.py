"""The benchmark of what the host adds runs, and its figures add up."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "overhead.py"


def test_benchmark(tmp_path):
    pytest.importorskip("torch")
    page, output = tmp_path / "page.md", tmp_path / "overhead.json"
    page.write_text("before\n<!-- overhead -->\nold\n<!-- end -->\nbehind\n")
    command = [
        sys.executable, SCRIPT, "--shapes", "3x2", "4x1", "--layers", "4", "--tokens", "16", "64",
        "--repeats", "3", "--output", output, "--page", page,
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    first, second = json.loads(output.read_text())
    assert (first["jobs"], second["jobs"]) == (12, 12)
    for one in (first, second):
        assert 0 < one["host"]["cpu"]
        assert 0 < one["null_unit_seconds"] < one["host"]["wall"]
        # Parts leave out what is not profiled only: the loop over the layers.
        assert min(one["cpu_seconds"].values()) > 0
        assert [sdpa["tokens"] for sdpa in one["sdpa"]] == [16, 64]
        for sdpa in one["sdpa"]:
            ratio = one["host"]["wall"] / 4 / sdpa["per_layer"]["wall"]
            assert sdpa["ratio"] == pytest.approx(ratio)
            assert sdpa["step_to_one_call"] == pytest.approx(4 * ratio)
    text = page.read_text()
    assert text.startswith("before\n<!-- overhead -->\n")
    assert text.endswith("<!-- end -->\nbehind\n")
    assert "| 3 x 2 | 16 |" in text
    assert "| step: quantise |" in text
    assert "old" not in text
