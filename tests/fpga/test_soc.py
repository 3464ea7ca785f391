"""The SoC as LiteX makes it: addresses, stable bytes, pins, refusals."""

import re

import pytest

from moska.fpga import map
from moska.gen.config import Config

pytestmark = pytest.mark.fpga


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files of the tiny unit's SoC, for the board and simulated, by folder."""
    from moska.fpga.soc import write

    folders = {}
    for simulated in (False, True):
        folders[simulated] = tmp_path_factory.mktemp("soc")
        files = write(Config.load("tiny"), folders[simulated], simulated=simulated)
        assert [file.name for file in files] == ["ulx3s.v", "moska.v", "quiesce.v", "link.v"]
    return folders


def ports(text):
    """Ports of the top module: name -> (direction, width)."""
    head = re.search(r"^module ulx3s \((.*?)\);", text, re.M | re.S)[1]
    found = re.findall(r"(input|output|inout)\s+(?:wire|reg)\s+(?:\[(\d+):0\])?\s*(\w+)", head)
    return {name: (way, int(high or 0) + 1) for way, high, name in found}


def test_ports_of_the_simulated_soc(written):
    assert ports((written[True] / "ulx3s.v").read_text()) == {
        "clk": ("input", 1),
        "rst": ("input", 1),
        "rx_valid": ("input", 1),
        "rx_ready": ("output", 1),
        "rx_data": ("input", 8),
        "tx_valid": ("output", 1),
        "tx_ready": ("input", 1),
        "tx_data": ("output", 8),
    }


def test_every_port_of_the_board_has_a_pin(written):
    located = re.findall(r'LOCATE COMP "(\S+)" SITE', (written[False] / "ulx3s.lpf").read_text())
    named = []
    for name, (_, width) in ports((written[False] / "ulx3s.v").read_text()).items():
        named += [name] if width == 1 else [f"{name}[{bit}]" for bit in range(width)]
    assert sorted(located) == sorted(named)
    assert len(named) == 2 + 13 + 2 + 16 + 2 + 6 + 2 + 3 + 1


def test_the_bytes_depend_on_the_arguments_only(written, tmp_path):
    from moska.fpga.soc import write

    for file in write(Config.load("tiny"), tmp_path / "again", simulated=True):
        assert file.read_bytes() == (written[True] / file.name).read_bytes()
    text = (written[True] / "ulx3s.v").read_text()
    assert "LiteX" not in text  # nor its date
    assert str(tmp_path) not in text


def test_names_are_no_bits(written):
    """ABC9 takes an escaped name with brackets for a bit of a signal."""
    for folder in written.values():
        assert not re.findall(r"\\\S*\[", (folder / "moska.v").read_text())


def test_identity(written):
    """What the host compares is in the Verilog as constants."""
    text = (written[False] / "ulx3s.v").read_text()
    for value in (map.MAGIC, map.config_hash(Config.load("tiny").parameters()), 50_000_000):
        assert f"32'd{value}" in text


def test_the_hash_tells_configurations_apart():
    hashes = {
        map.config_hash(Config.load(name).parameters()) for name in ("tiny", "ulx3s", "u55c")
    }
    assert len(hashes) == 3
    assert all(0 <= value < 1 << 32 for value in hashes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("UNIT_BASE", 0x9000_0000, "unit must be at"),
        ("BOARD", {**map.BOARD, "status": 0xF000_0000}, "board.status must be at 0xf0000000"),
        ("SDRAM", {**map.SDRAM, "address": 0xF000_0000}, "sdram.dfii_pi0_address must be"),
        ("SDRAM_INIT", map.SDRAM_INIT[1:], "SDRAM_INIT of the map must be as LiteDRAM's"),
    ],
)
def test_a_map_that_is_not_the_socs_is_found(monkeypatch, tmp_path, name, value, message):
    from moska.fpga import soc

    if name == "UNIT_BASE":  # the SoC is made of the right map, and checked against the wrong one
        made = soc.check_map

        def check(made_soc):
            monkeypatch.setattr(map, name, value)
            made(made_soc)

        monkeypatch.setattr(soc, "check_map", check)
    else:
        monkeypatch.setattr(map, name, value)
    with pytest.raises(RuntimeError, match=message):
        soc.write(Config.load("tiny"), tmp_path, simulated=True)


def test_a_unit_that_the_board_has_no_port_for_is_refused(tmp_path):
    from moska.fpga.soc import write

    with pytest.raises(ValueError, match="must have 1 read port of 64 bits on this board, not"):
        write(Config.load("u55c"), tmp_path, simulated=False)
