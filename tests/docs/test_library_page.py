"""The page about the KV library: its example runs, its figures are those of the scripts."""

import importlib.util
import pathlib
import re

import pytest

from moska.golden.data import NAMES
from moska.host.chunks import ChunkFormat
from moska.host.geometry import Geometry

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def test_the_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    exec(compile(example, "library.md", "exec"), {})
    out = capsys.readouterr().out
    assert "96 tokens are stored\n96 96 0 0\n[0, 64]\nStatistics(documents=2, " in out
    assert out.endswith("\n96\n")


@pytest.mark.parametrize("name", NAMES)
def test_cost_of_relocation(name):
    spec = importlib.util.spec_from_file_location("relocation", ROOT / "scripts" / "relocation.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for offset in script.OFFSETS[::2]:
        assert script.row(name, offset) in PAGE.splitlines()


def test_bytes_of_a_token():
    smollm2 = ChunkFormat(Geometry("SmolLM2-135M", 30, 9, 3, 64), 32, "minmax")
    per_token = smollm2.nbytes(64, checksums=True) / (64 * 32)
    assert f"takes {per_token:,.0f} bytes a token with the defaults, against " in PAGE
    assert f"against {30 * 3 * 2 * 64 * 2:,} in\nfloat16" in PAGE
