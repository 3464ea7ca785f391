"""The steps of a build with the real tools, on a small design in place of the SoC."""

import json

import pytest
from click.testing import CliRunner

from moska.gen.cli import main
from moska.gen.config import Config

pytestmark = [pytest.mark.fpga, pytest.mark.xdist_group("nextpnr")]
SEED = 3


def write_small(width):
    """Return a stand-in for soc.write: a sum of products in both clock domains of the board."""

    def write(config, out_dir, *, simulated, clock_hz):
        from litex_boards.platforms import radiona_ulx3s
        from migen import Cat, Module, Signal

        from moska.fpga.soc import NAME, Clocks

        platform = radiona_ulx3s.Platform(device="LFE5U-85F", revision="2.0")
        module = Module()
        module.submodules.clocks = Clocks(platform, clock_hz)
        count, total, fast = Signal(width), Signal(width), Signal(2)
        module.sync += [count.eq(count + 1), total.eq(count * count + total * total)]
        module.sync.sys2x += fast.eq(Cat(total[-1], fast))
        module.comb += platform.request("user_led", 0).eq(fast[-1])
        platform.build(module, build_dir=str(out_dir), build_name=NAME, run=False)
        return [out_dir / f"{NAME}.v"]

    return write


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `moska build` on a design of a width."""
    from moska.fpga import build

    def run(width, *arguments):
        monkeypatch.setattr(build, "write", write_small(width))
        return CliRunner().invoke(
            main, ["build", "ulx3s", "-o", str(tmp_path), "--seed", str(SEED), *arguments]
        )

    return run


def test_a_bitstream_and_its_report(run, tmp_path):
    result = run(8)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "ulx3s.bit").stat().st_size > 10_000
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["timing_met"]
    clocks = {clock["name"]: clock for clock in found["clocks"]}
    assert clocks.keys() == {"sys_clk", "sys2x_clk"}
    assert [clocks[name]["needed"] for name in ("sys_clk", "sys2x_clk")] == [50, 100]
    assert all(clock["reached"] >= clock["needed"] for clock in clocks.values())
    assert found["used"]["DSP"] > 0
    assert found["used"]["FF"] > 16
    crossings = [p for p in found["critical_paths"] if {p["start"], p["end"]} == {
        "posedge sys_clk", "posedge sys2x_clk"
    }]  # fmt: skip
    assert crossings
    assert found["seed"] == SEED
    assert found["parameters"] == Config.load("ulx3s").parameters()
    assert found["seconds"].keys() == {"generate", "synthesise", "place and route", "pack"}
    assert 0 < found["seconds"]["synthesise"]["processor"]
    assert "| sys2x_clk |" in (tmp_path / "report.md").read_text()
    assert "sys_clk: " in result.stdout
    assert "place and route" in result.stderr


def test_no_bitstream_when_timing_is_not_met(run, tmp_path):
    (tmp_path / "ulx3s.bit").write_bytes(b"of a build before")
    result = run(40, "--frequency", "100")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "moska: error: timing is not met: sys_clk reaches"
    )
    assert not (tmp_path / "ulx3s.bit").exists()
    assert not json.loads((tmp_path / "report.json").read_text())["timing_met"]
    assert "**not met**" in (tmp_path / "report.md").read_text()


def test_a_tool_that_fails(tmp_path, monkeypatch):
    from moska.fpga import build

    def write(config, out_dir, **options):
        (out_dir / "ulx3s.v").write_text("module ulx3s(")
        return [out_dir / "ulx3s.v"]

    monkeypatch.setattr(build, "write", write)
    result = CliRunner().invoke(main, ["build", "ulx3s", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "synthesise ended with status" in result.stderr
    assert "syntax error" in (tmp_path / "synthesise.log").read_text()
