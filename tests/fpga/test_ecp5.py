"""Rewritings of the netlist for ECP5: what yosys proves to be the same before and after."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from moska.fpga import ecp5

pytestmark = pytest.mark.fpga
YOSYS = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    libyosys.run_pass(command, design)
"""
# FPGA-TN-02205: the product of two factors that are signed when told; of its registers, that of
# the product alone.
MULTIPLIER = """
module MULT18X18D(
    {inputs}
    input SIGNEDA, input SIGNEDB, input SOURCEA, input SOURCEB, input CLK0, input CE0, input RST0,
    {outputs}
);
    parameter REG_OUTPUT_CLK = "NONE";
    parameter REG_OUTPUT_CE = "CE0";
    parameter REG_OUTPUT_RST = "RST0";
    wire signed [18:0] a = {{SIGNEDA & A17, {a}}};
    wire signed [18:0] b = {{SIGNEDB & B17, {b}}};
    wire signed [37:0] product = a * b;
    reg [35:0] registered = 0;
    always @(posedge CLK0)
        if (RST0) registered <= 0;
        else if (CE0) registered <= product[35:0];
    assign {{{p}}} = REG_OUTPUT_CLK == "CLK0" ? registered : product[35:0];
endmodule
""".format(
    inputs=" ".join(f"input {factor}{n}," for factor in "ABC" for n in range(18)),
    outputs=", ".join(f"output P{n}" for n in range(36)),
    a=", ".join(f"A{n}" for n in reversed(range(18))),
    b=", ".join(f"B{n}" for n in reversed(range(18))),
    p=", ".join(f"P{n}" for n in reversed(range(36))),
)
ADDERS = """
module top(
    input [1:0] drop, input [7:0] x, input [7:0] y, input [7:0] z, output [9:0] sum,
    output [9:0] less, output [9:0] minus, output [8:0] more, output [8:0] carried,
    output [9:0] kept
);
    wire [7:0] masked = drop[0] ? 8'd0 : x;
    assign sum = masked + y;
    assign less = y - (drop[0] ? 8'd0 : z);
    assign minus = (drop[1] ? 8'd0 : z) - y;
    assign more = (drop == 2 ? z : 8'd0) + 8'd93;
    assign carried = (y & ~z) + z + drop[1];
    assign kept = ((x ^ y) & {8{drop[1]}}) - 10'd200;
endmodule
"""
MEMORY = """
module top(
    input clk, input en, input [2:0] into, input [2:0] from, input [1:0] few, input [3:0] x,
    output [3:0] y, output [3:0] z
);
    (* ram_style = "distributed" *) reg [3:0] eight [7:0];
    (* ram_style = "distributed" *) reg [3:0] four [3:0];
    always @(posedge clk) if (en) begin
        eight[into] <= x;
        four[into[1:0]] <= x;
    end
    assign y = eight[from];
    assign z = four[few];
endmodule
"""
PRODUCTS = """
module top(
    input clk, input en, input signed [4:0] a, input signed [3:0] b, output reg signed [8:0] plain,
    output reg signed [8:0] enabled, output reg [9:0] seen, output [9:0] raw
);
    initial {plain, enabled, seen} = 0;
    always @(posedge clk) begin
        plain <= a * b;
        if (en) enabled <= (a + 1'd1) * b;
        seen <= $unsigned(a) * $unsigned(b);
    end
    assign raw = $unsigned(a) * $unsigned(b);
endmodule
"""
FACTORS = [(16, 8), (18, 18), (17, 3), (2, 18), (8, 8)]


def multiply(a, b):
    """Verilog of a signed product, and of one whose factors are not."""
    return f"""
module top(
    input signed [{a - 1}:0] a, input signed [{b - 1}:0] b, output signed [35:0] y,
    output [{a + b - 1}:0] z
);
    assign y = a * b;
    assign z = $unsigned(a) * $unsigned(b);
endmodule
"""


def yosys(*commands, cwd):
    """Output of passes of yosys, which ends the process at an error."""
    result = subprocess.run(
        [sys.executable, "-c", YOSYS, *commands],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def synthesised(verilog, cwd):
    """Netlist of a design as yosys makes it."""
    (cwd / "design.v").write_text(verilog)
    yosys("read_verilog design.v", "synth_ecp5 -top top -json design.json", cwd=cwd)
    return json.loads((cwd / "design.json").read_text())


def commands(netlist, cwd):
    """Return passes that leave a netlist, in simulation models, as the module `gate`."""
    top = {"modules": {"top": netlist["modules"]["top"]}}  # without declarations of cells
    (cwd / "gate.json").write_text(json.dumps(top))
    (cwd / "multiplier.v").write_text(MULTIPLIER)
    return [
        "read_json gate.json",
        "rename top gate",
        "read_verilog multiplier.v",
        "read_verilog -overwrite +/lattice/cells_sim_ecp5.v",
        "hierarchy -top gate",
        "proc",
        "flatten",
        "memory",
        "opt_clean -purge",
    ]


def prove(netlist, options, cwd):
    """Have yosys prove that a netlist does what design.v says."""
    return yosys(
        *commands(netlist, cwd),
        "delete t:$scopeinfo",
        "design -stash gate",
        "read_verilog design.v",
        "hierarchy -top top",
        "proc",
        "memory",
        "design -copy-from gate -as gate gate",
        "miter -equiv -make_assert -flatten top gate miter",
        "hierarchy -top miter",
        f"sat -verify -prove-asserts {options} miter",
        cwd=cwd,
    )


def cells(netlist, kind):
    """All cells of a type."""
    return [cell for cell in netlist["modules"]["top"]["cells"].values() if cell["type"] == kind]


def test_adders_take_masks_in(tmp_path):
    netlist = synthesised(ADDERS, tmp_path)
    before = len(cells(netlist, "LUT4"))
    folded = ecp5.fold_into_adders(netlist["modules"]["top"])
    # 8 bits of each output that has a mask, some of them with another input as the one kept.
    assert folded >= 5 * 8
    assert len(cells(netlist, "LUT4")) == before - folded
    prove(netlist, "", tmp_path)


def test_the_proof_sees_a_wrong_table(tmp_path):
    netlist = synthesised(ADDERS, tmp_path)
    ecp5.fold_into_adders(netlist["modules"]["top"])
    adder = next(a for a in cells(netlist, "CCU2C") if int(a["parameters"]["INIT1"], 2) != ecp5.SUM)
    # The carry's table alone.
    adder["parameters"]["INIT1"] = f"{int(adder['parameters']['INIT1'], 2) ^ 1:016b}"
    with pytest.raises(AssertionError, match="proof did fail"):
        prove(netlist, "", tmp_path)


def test_a_lut_with_another_use_stays(tmp_path):
    verilog = ADDERS.replace("output [9:0] kept", "output [9:0] kept, output [7:0] seen").replace(
        "endmodule", "assign seen = masked;\nendmodule"
    )
    netlist = synthesised(verilog, tmp_path)
    seen = set(netlist["modules"]["top"]["ports"]["seen"]["bits"])
    ecp5.fold_into_adders(netlist["modules"]["top"])
    assert seen <= {cell["connections"]["Z"][0] for cell in cells(netlist, "LUT4")}
    prove(netlist, "", tmp_path)


def test_a_lut_before_one_that_is_folded_stays():
    """Its only user is gone when its turn comes."""
    ways = dict.fromkeys("ABCD", "input") | {"Z": "output"}
    lut = {"type": "LUT4", "parameters": {"INIT": f"{0x8888:016b}"}, "port_directions": ways}
    adder = {name + half: ["0"] for half in "01" for name in "ABC"}
    adder |= {"D0": ["1"], "D1": ["1"], "A0": [2], "B0": [3], "S0": [9]}
    module = {
        "ports": {},
        "cells": {
            "near": lut | {"connections": {"A": [4], "B": [5], "C": ["0"], "D": ["0"], "Z": [3]}},
            "far": lut | {"connections": {"A": [6], "B": [7], "C": ["0"], "D": ["0"], "Z": [4]}},
            "adder": {
                "type": "CCU2C",
                "parameters": dict.fromkeys(("INIT0", "INIT1"), f"{ecp5.SUM:016b}"),
                "port_directions": {port: "input" for port in adder} | {"S0": "output"},
                "connections": adder,
            },
        },
    }
    assert ecp5.fold_into_adders(module) == 1
    assert module["cells"].keys() == {"far", "adder"}


def test_memories_of_less_than_16_words(tmp_path):
    netlist = synthesised(MEMORY, tmp_path)
    memories = cells(netlist, "TRELLIS_DPR16X4")
    assert len(memories) == 2
    assert ecp5.tie_addresses(netlist["modules"]["top"]) == 2 * (1 + 2)
    assert all("0" not in m["connections"]["RAD"] + m["connections"]["WAD"] for m in memories)
    prove(netlist, "-seq 12 -set-init-zero", tmp_path)


def test_memories_with_contents_stay(tmp_path):
    netlist = synthesised(MEMORY, tmp_path)
    for memory in cells(netlist, "TRELLIS_DPR16X4"):
        memory["parameters"]["INITVAL"] = "1" + memory["parameters"]["INITVAL"][1:]
    before = copy.deepcopy(netlist)
    assert ecp5.tie_addresses(netlist["modules"]["top"]) == 0
    assert netlist == before


@pytest.mark.parametrize(("a", "b"), FACTORS)
def test_factors_are_shifted_up(a, b, tmp_path):
    netlist = synthesised(multiply(a, b), tmp_path)
    freed = ecp5.align_multipliers(netlist["modules"]["top"])
    assert freed == (18 - a) + (18 - b)
    signed = [m for m in cells(netlist, "MULT18X18D") if m["connections"]["SIGNEDA"] == ["1"]]
    assert len(signed) == 1
    (connections,) = (m["connections"] for m in signed)
    constants = sum(connections[f"{factor}{n}"] == ["0"] for factor in "AB" for n in range(18))
    assert constants == freed
    rng = np.random.default_rng(a * 100 + b)
    ends = [(x, y) for x in (-1 << a - 1, (1 << a - 1) - 1) for y in (-1 << b - 1, -1, 0, 1)]
    drawn = zip(
        rng.integers(-1 << a - 1, 1 << a - 1, 40), rng.integers(-1 << b - 1, 1 << b - 1, 40),
        strict=True,
    )  # fmt: skip
    values = [(int(x), int(y)) for x, y in [*ends, *drawn]]
    output = yosys(
        *commands(netlist, tmp_path),
        *(
            f"eval -set a {a}'d{x % (1 << a)} -set b {b}'d{y % (1 << b)} -show y -show z gate"
            for x, y in values
        ),
        cwd=tmp_path,
    )
    for name, width, expected in [
        ("y", 36, [x * y for x, y in values]),
        ("z", a + b, [x % (1 << a) * (y % (1 << b)) for x, y in values]),
    ]:
        got = re.findall(rf"Eval result: \\{name} = {width}'([01]+)\.", output)
        assert [int(bits, 2) for bits in got] == [value % (1 << width) for value in expected]


def test_multipliers_take_registers_in(tmp_path):
    netlist = synthesised(PRODUCTS, tmp_path)
    before = len(cells(netlist, "TRELLIS_FF"))
    # Not those with an enable, nor those of a product that is used unregistered too.
    assert ecp5.register_products(netlist["modules"]["top"]) == 9
    assert len(cells(netlist, "TRELLIS_FF")) == before - 9
    multipliers = cells(netlist, "MULT18X18D")
    assert sorted("REG_OUTPUT_CLK" in m["parameters"] for m in multipliers) == [0, 0, 1]
    prove(netlist, "-seq 4 -set-init-zero", tmp_path)


def test_all_of_it_at_once(tmp_path):
    netlist = synthesised(PRODUCTS, tmp_path)
    counts = ecp5.rewrite(netlist["modules"]["top"])
    assert counts["registers moved into multipliers"] == 9
    assert counts["pins of multipliers without a wire"] > 0
    prove(netlist, "-seq 4 -set-init-zero", tmp_path)
