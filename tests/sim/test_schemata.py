"""Mutants in one text: places found, what each change is, and that each does just that."""

import os
import re
import subprocess

import pytest

from moska.gen.config import Config
from moska.gen.emit import Top, convert, unit
from moska.sim.schemata import KINDS, Verilog
from moska.sim.verilator import environment

TEXT = r"""
module moska(aclk, a, b, y, z);
  input aclk;
  wire aclk;
  input [3:0] a;
  wire [3:0] a;
  input [3:0] b;
  wire [3:0] b;
  output [4:0] y;
  wire [4:0] y;
  output [3:0] z;
  wire [3:0] z;
  \moska.unit  unit (
    .a(a),
    .b(b),
    .clk(aclk),
    .y(y),
    .z(z)
  );
endmodule

module \moska.unit (a, b, clk, y, z);
  reg \$initial  = 0;
  wire [4:0] \$1 ;
  wire \$2 ;
  wire signed_;
  wire [3:0] \$3 ;
  reg [3:0] \$4 ;
  wire dead;
  input [3:0] a;
  wire [3:0] a;
  input [3:0] b;
  wire [3:0] b;
  input clk;
  wire clk;
  reg [3:0] kept = 4'h0;
  output [4:0] y;
  wire [4:0] y;
  output [3:0] z;
  wire [3:0] z;
  reg [3:0] \words  [1:0];
  initial begin
    \words [0] = 4'h9;
    \words [1] = 4'h6;
  end
  assign \$1  = $signed(a) + $signed(b);
  assign \$2  = a < 4'h9;
  assign dead = a == b;
  assign \$3  = \words [a[0]];
  assign y = \$2  ? \$1  : 5'h02;
  assign z = kept;
  always @(posedge clk)
    kept <= \$4 ;
  always @* begin
    if (\$initial ) begin end
    \$4  = \$3 ;
    casez (b)
      4'h3:
        \$4  = 4'h5;
    endcase
    if (rst) begin
      \$4  = 4'h0;
    end
  end
endmodule
"""


@pytest.fixture(scope="module")
def toy():
    return Verilog(TEXT)


def changes(verilog):
    return {(site.kind, site.change) for site in verilog.sites}


def test_places(toy):
    assert changes(toy) >= {
        ("arithmetic", "+ to -"),
        ("comparison", "< to <="),
        ("boolean", "arms swapped"),
        ("stuck", "not loaded"),
    }
    kinds = [site.kind for site in toy.sites]
    assert kinds.count("table") == 2
    assert kinds.count("constant") == 4  # 9 of <, 02 of ?:, the label, what it sets
    assert not any("dead" in toy.lines[site.line] for site in toy.sites)


def test_constants_differ_in_one_bit(toy):
    for site in toy.sites:
        if site.kind == "constant":
            old = re.search(r"\d+'h(\w+)", toy.lines[site.line])
            changed = re.findall(r"\d+'h(\w+)", site.code)
            assert any((int(old[1], 16) ^ int(new, 16)).bit_count() == 1 for new in changed)


def test_sample_is_even():
    config = Config.load("tiny")
    top = Top(unit(config))
    verilog = Verilog(convert(top, top.ports()))
    mutants = verilog.sample(400, seed=1)
    assert [m.number for m in mutants] == list(range(1, len(mutants) + 1))
    assert {m.module for m in mutants} == {site.module for site in verilog.sites}
    assert {m.kind for m in mutants} == set(KINDS)
    assert 380 <= len(mutants) <= 420
    assert mutants == Verilog("\n".join(verilog.lines)).sample(400, seed=1)
    assert len(verilog.text(mutants)) > len("\n".join(verilog.lines))


MAIN = """
#include "Vmoska.h"
#include <cstdio>
int main() {
    VerilatedContext context;
    Vmoska top{&context};
    for (int mutant = 0; mutant <= COUNT; ++mutant) {
        top.mutant = mutant;
        for (int warm = 1; warm >= 0; --warm) {
            for (int a = 0; a < 16; ++a) {
                for (int b = 0; b < 16; ++b) {
                    top.a = a;
                    top.b = b;
                    top.aclk = 0;
                    top.eval();
                    top.aclk = 1;
                    top.eval();
                    if (!warm) std::printf("%d %d ", top.y, top.z);
                }
            }
        }
        std::printf("\\n");
    }
}
"""


def signed(value):
    return value - 16 if value & 8 else value


def model(a, b, mutant, kept):
    """Return the outputs after the clock edge, with one mutant or None."""
    kind, change = (mutant.kind, mutant.change) if mutant else ("", "")
    source = mutant.source if mutant else ""
    total = signed(a) - signed(b) if change == "+ to -" else signed(a) + signed(b)
    limit = 9
    if kind == "constant" and "<" in source:
        limit = int(re.search(r"to 4'h(\w)", change)[1], 16)
    test = a <= limit if change == "< to <=" else a < limit
    other = 2
    if kind == "constant" and "?" in source:
        other = int(re.search(r"to 5'h(\w+)", change)[1], 16)
    arms = (other, total) if change == "arms swapped" else (total, other)
    y = (arms[0] if test else arms[1]) & 31
    word = [9, 6][a & 1]
    if kind == "table":
        index, mask = re.fullmatch(r"word (\d) xor 4'h(\w)", change).groups()
        word ^= int(mask, 16) * (int(index) == a & 1)
    label, value = 3, 5
    if change.startswith("label"):
        label = int(change[-1], 16)
    elif kind == "constant" and "= 4'h5" in source:
        value = int(change[-1], 16)
    z = kept if kind == "stuck" else value if b == label else word
    return y, z


def test_each_mutant_is_its_change(toy, tmp_path):
    """All mutants of the toy in Verilator, for all inputs, against a model in Python."""
    mutants = toy.sample(100)
    assert len(mutants) == len(toy.sites)
    text = toy.text(mutants).replace("if (rst)", "if (1'h0)")
    (tmp_path / "toy.v").write_text(text)
    (tmp_path / "main.cpp").write_text(MAIN.replace("COUNT", str(len(mutants))))
    variables = environment()
    done = subprocess.run(
        ["verilator", "--cc", "--exe", "--build", "--top-module", "moska", "-Wno-fatal",
         "-Wno-lint", "-CFLAGS", "-O0", "toy.v", "main.cpp"],
        cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    out = subprocess.run([tmp_path / "obj_dir/Vmoska"], capture_output=True, text=True, check=True)
    rows = out.stdout.strip().splitlines()
    assert len(set(rows)) == len(rows), "two mutants behave alike"
    kept = 0
    for mutant, row in zip([None, *mutants], rows, strict=True):
        numbers = [int(n) for n in row.split()]
        got = list(zip(numbers[::2], numbers[1::2], strict=True))
        due = [model(a, b, mutant, kept) for a in range(16) for b in range(16)]
        assert got == due, mutant
        # The next mutant is at work one clock edge after it is chosen.
        kept = got[0][1]
