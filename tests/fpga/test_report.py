"""Report of a bitstream: cells by block, clocks, paths, verdict."""

import pytest

from moska.fpga import report

CELLS = [
    ("moska.unit.score_array.row_3.product_4_TRELLIS_FF_Q_19", "TRELLIS_FF"),
    ("moska.unit.score_array.row_7.$15_MULT18X18D_P9", "MULT18X18D"),
    ("moska.unit.value_array.sums_CCU2C_S0", "CCU2C"),
    ("moska.unit.lane_0.probability.x_LUT4_Z", "LUT4"),
    ("moska.unit.inverter_2.bank_0.0.2", "DP16KD"),
    ("moska.unit.key_tags.storage.0.1", "TRELLIS_DPR16X4"),
    ("moska.m_axi_arvalid_LUT4_A", "LUT4"),
    ("moska.unit.reader.queue_0.level_LUT4_Z", "LUT4"),
    ("moska.unit.control__rdata_LUT4_Z", "LUT4"),
    ("moska.unit.vector__payload$419_LUT4_Z", "LUT4"),
    ("link.word_TRELLIS_FF_Q", "TRELLIS_FF"),
    ("quiesce.gate_state_LUT4_Z", "LUT4"),
    ("soc_soc_sdram_bankmachine1_LUT4_D", "LUT4"),
    ("moska.unit.score_array", "$scopeinfo"),
    ("moska.unit.selector.x_PFUMX_Z", "PFUMX"),
]


# As yosys writes it: the clock's net has another name than in the Verilog.
NETLIST = {
    "cells": {
        **{name: {"type": kind} for name, kind in CELLS},
        "EHXPLLL": {
            "type": "EHXPLLL",
            "connections": {"CLKOP": [48], "CLKOS": [49], "CLKOS2": [50], "CLKOS3": [51]},
        },
    },
    "netnames": {
        "link.clk": {"bits": [48]},
        "moska.aclk": {"bits": [48]},
        "sys2x_clk": {"bits": [49]},
        "moska.unit.x": {"bits": [48, 49]},
    },
}


def test_cells_count_to_blocks():
    used = report.utilisation(CELLS)
    assert list(used) == [block for block in report.BLOCKS if block in used]
    counts = {block: {name: n for name, n in row.items() if n} for block, row in used.items()}
    assert counts == {
        "score array": {"FF": 1, "DSP": 1},
        "value array": {"LUT": 2},
        "softmax lanes": {"LUT": 1},
        "router": {"LUT": 6, "RAM": 1},
        "memory side (DMA)": {"LUT": 2},
        "control": {"LUT": 1},
        "between blocks": {"LUT": 1},
        "link": {"FF": 1},
        "gate for reset": {"LUT": 1},
        "SDRAM controller, bus": {"LUT": 1},
    }


def test_every_part_of_the_unit_has_a_block():
    """So that a new submodule of the unit gets a row, and not "between blocks"."""
    import re

    from moska.gen import emit
    from moska.gen.config import Config

    top = emit.Top(emit.unit(Config.load("tiny")))
    text = emit.convert(top, top.ports())
    body = re.search(r"^module \\moska\.unit .*?^endmodule", text, re.M | re.S)[0]
    parts = re.findall(r"^  \\moska\.unit\.\S+ +(\S+) \(", body, re.M)
    assert len(parts) > 25
    for part in parts:
        assert report.block_of(f"moska.unit.{part}.x") != report.REST_OF_UNIT, part


def routed(sys_clk=55.0, sys2x=120.0, crossing=(2.0, 3.0), needed=50.0):
    """Report as nextpnr writes it."""
    step = {"from": {"cell": "a", "loc": [1, 2], "port": "Q"}, "to": {"cell": "b", "port": "A"}}
    return {
        "fmax": {
            "$glbnet$moska.aclk": {"achieved": sys_clk, "constraint": needed},
            "sys2x_clk": {"achieved": sys2x, "constraint": 100.0},
        },
        "critical_paths": [
            {
                "from": "posedge $glbnet$moska.aclk",
                "to": "posedge sys2x_clk",
                "path": [
                    {**step, "delay": crossing[0], "type": "clk-to-q"},
                    {**step, "delay": crossing[1], "type": "routing", "net": "moska.unit.x"},
                ],
            }
        ],
    }


def made(**options):
    return report.make(NETLIST, routed(**options), clock_hz=50e6)


def test_timing_is_met():
    found = made()
    assert found["timing_met"]
    assert found["missed"] == []
    assert found["used"] == {"LUT": 15, "FF": 2, "DSP": 1, "RAM": 1}
    (path,) = found["critical_paths"]
    assert path["ns"] == pytest.approx(5)
    assert path["delays"] == (("b", 2.0), ("net moska.unit.x", 3.0))


@pytest.mark.parametrize(
    ("options", "missed"),
    [
        ({"sys_clk": 49.9}, "sys_clk reaches 49.9 MHz of 50.0"),
        ({"sys2x": 99.0}, "sys2x_clk reaches 99.0 MHz of 100.0"),
        ({"crossing": (4.0, 6.5)}, "posedge sys_clk to posedge sys2x_clk takes 10.5 ns of 10.0"),
        ({"needed": 12.0}, "sys_clk has not been held to its frequency"),
    ],
)
def test_timing_is_not_met(options, missed):
    found = made(**options)
    assert not found["timing_met"]
    assert found["missed"] == [missed]


@pytest.mark.parametrize("options", [{}, {"sys_clk": 40.0}])
def test_the_page_has_all_of_it(options):
    found = made(**options)
    found |= {"config": "ulx3s", "moska": "1", "tools": {"a": "2"}, "seed": 3}
    found["seconds"] = {"synthesise": {"elapsed": 300.4, "processor": 250.2}}
    text = report.markdown(found)
    assert ("**not met**" in text) == bool(options)
    for words in ("| sys2x_clk | 120.0 | 100.0 |", "| softmax lanes | 1 | 0 | 0 | 0 |",
                  "| share | 0 % | 0 % | 1 % | 0 % |", "| 3.00 | `net moska.unit.x` |",
                  "| synthesise | 300 | 250 |", "Seed 3"):  # fmt: skip
        assert words in text
