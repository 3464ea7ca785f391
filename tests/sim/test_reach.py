"""Points that count, and those that wiring ties to a constant."""

import pytest

from moska.sim.reach import Constants, Counts, Point, Tally, tally

TEXT = r"""
module moska(a, y);
  wire [1:0] \$1 ;
  input [3:0] a;
  wire [3:0] a;
  wire half;
  output [3:0] y;
  wire [3:0] y;
  assign \$1  = { a[0], 1'h1 };
  \moska.unit  first (
    .i({ \$1 , 2'h2 }),
    .o(y),
    .two({ 1'h1, half })
  );
  \moska.unit  second (
    .i(4'h6),
    .o(/* empty */),
    .two({ half, half })
  );
endmodule

module \moska.unit (i, o, two);
  reg \$initial  = 0;
  wire [3:0] \$2 ;
  input [3:0] i;
  wire [3:0] i;
  input [1:0] two;
  wire [1:0] two;
  output [3:0] o;
  wire [3:0] o;
  reg [3:0] \kept$1 ;
  assign { \$2 [3], \$2 [1:0] } = 3'h5;
  assign \$2 [2] = i[2];
  assign o = { 2'h0, i[1:0] };
  always @* begin
    if (\$initial ) begin end
    \kept$1  = i + \$2 ;
  end
endmodule
"""


def test_constants():
    """Of wiring, of escaped names, through ports; not where instances differ."""
    values = Constants(TEXT).values
    assert values["moska"] == {
        ("$1", 0): 1, ("y", 3): 0, ("y", 2): 0, ("y", 1): 1, ("y", 0): 0,
    }  # fmt: skip
    assert values["moska.unit"] == {
        ("$2", 3): 1, ("$2", 1): 0, ("$2", 0): 1, ("i", 2): 1, ("$2", 2): 1, ("i", 1): 1,
        ("i", 0): 0, ("o", 3): 0, ("o", 2): 0, ("o", 1): 1, ("o", 0): 0,
    }  # fmt: skip


def raw(page, line, comment, count, spans=""):
    fields = {"page": f"{page}/moska.unit", "l": str(line), "o": comment, "S": spans}
    text = "".join(f"\x01{name}\x02{value}" for name, value in fields.items())
    return f"C '{text}' {count}\n"


def line_of(text):
    return TEXT.splitlines().index(text) + 1


def test_tally(tmp_path):
    """Lines, toggles by their mangled names, sums over files; blocks that run once are left out."""
    initial = line_of("    if (\\$initial ) begin end")
    body = line_of("    \\kept$1  = i + \\$2 ;")
    counts = Counts()
    for index, (line, first, last) in enumerate(((0, 3, 0), (2, 0, 0))):
        path = tmp_path / f"{index}.dat"
        path.write_text(
            "# SystemC::Coverage-3\n"
            + raw("v_line", body, "block", line, f"{body}")
            + raw("v_branch", initial, "if", 0, f"{initial}")
            + raw("v_branch", body, "cond_then", 0)
            + raw("v_toggle", body, "kept__0241[2]:0->1", first)
            + raw("v_toggle", body, "kept__0241[2]:1->0", last)
            + raw("v_toggle", body, "__0242[3]:0->1", 0)
        )
        counts.add(path)
    assert counts.points()[Point("v_line", "moska.unit", body, "block", (body,))] == 2
    tallies, missed = tally(counts.points(), TEXT)
    (unit,) = tallies.values()
    assert (unit.reached, unit.counted) == (
        {"lines": 1, "branches": 0, "toggles": 1},
        {"lines": 1, "branches": 1, "toggles": 2},
    )
    assert unit.constant == 1
    assert [item[:2] for item in missed] == [("unit", "branch"), ("unit", "toggle")]
    assert missed[1][2] == "kept$1[2] 1->0"
    assert (unit + Tally()).share("toggles") == pytest.approx(0.5)
    path.write_text("# SystemC::Coverage-3\n" + raw("v_line", 1, "block", 1))
    with pytest.raises(ValueError, match="must be those of the files before"):
        counts.add(path)
