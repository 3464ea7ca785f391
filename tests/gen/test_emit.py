"""Verilog output: equal modules shared, stable bytes, no paths, clean lint, settled processes."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
from amaranth.back import rtlil, verilog
from amaranth.hdl import Module, Signal
from amaranth.lib.memory import Memory

import moska.gen
from moska.gen.config import Config
from moska.gen.emit import (
    INSTANCE,
    MODULE,
    TOP,
    contents_at_once,
    convert,
    generate,
    share_modules,
)
from moska.sim.verilator import environment

LINT = pathlib.Path(moska.gen.__file__).parent / "lint.vlt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Path of the Verilog of ``tiny``."""
    (path,) = generate(Config.load("tiny"), tmp_path_factory.mktemp("tiny"))
    return path


def names_of(text):
    return [match["name"] for match in MODULE.finditer(text)]


def types_of(text):
    return {match[2] for match in INSTANCE.finditer(text)}


def module(name, body, *, ports="clk, a"):
    return f'(* generator = "Amaranth" *)\nmodule {name} ({ports});\n{body}endmodule\n\n'


def instance(kind, name):
    return f"  {kind}  {name} (\n    .clk(clk),\n    .a(a)\n  );\n"


def test_equal_modules_are_shared():
    text = (
        module(TOP, instance("\\top.x_0", "x_0") + instance("\\top.x_1", "x_1"))
        + module("\\top.x_0", "  assign a = 1;\n")
        + module("\\top.x_1", "  assign a = 1;\n")
        + module("\\top.x_10", "  assign a = 2;\n")
    )
    shared = share_modules(text)
    assert names_of(shared) == [TOP, "\\top.x_0", "\\top.x_10"]
    assert instance("\\top.x_0", "x_1") in shared
    assert "\\top.x_1 " not in shared


def test_parents_are_shared_after_their_parts():
    parts = module("\\t.a.p", "  assign a = 1;\n") + module("\\t.b.p", "  assign a = 1;\n")
    text = (
        module(TOP, instance("\\t.a", "a") + instance("\\t.b", "b"))
        + module("\\t.a", instance("\\t.a.p", "p"))
        + module("\\t.b", instance("\\t.b.p", "p"))
        + parts
    )
    shared = share_modules(text)
    assert names_of(shared) == [TOP, "\\t.a", "\\t.a.p"]
    assert types_of(shared) == {"\\t.a", "\\t.a.p"}


def test_parents_of_different_parts_are_kept():
    """Two parents that differ only in what a part of the same name does are not equal."""
    text = (
        module(TOP, instance("\\t.a", "a") + instance("\\t.b", "b"))
        + module("\\t.a", instance("\\t.a.p", "p"))
        + module("\\t.b", instance("\\t.b.p", "p"))
        + module("\\t.a.p", "  assign a = 1;\n")
        + module("\\t.b.p", "  assign a = 2;\n")
    )
    assert share_modules(text) == text


def test_modules_with_other_ports_are_kept():
    text = module("\\t.a", "  assign a = 1;\n") + module(
        "\\t.b", "  assign a = 1;\n", ports="clk, a, b"
    )
    assert share_modules(text) == text


def test_top_keeps_its_name():
    text = module("\\t.a", "  assign a = 1;\n") + module(TOP, "  assign a = 1;\n")
    assert names_of(share_modules(text)) == ["\\t.a", TOP]


def test_modules_of_a_unit(tiny):
    """Every module is instantiated and defined once; equal rows and lanes are shared."""
    text = tiny.read_text()
    names = names_of(text)
    assert len(names) == len(set(names)) == len(re.findall(r"^endmodule$", text, re.M))
    assert types_of(text) == set(names) - {TOP}
    bodies = [match["body"] for match in MODULE.finditer(text)]
    assert len(bodies) == len(set(bodies))
    config = Config.load("tiny")
    rows = [name for name in names if re.search(r"\.row_\d+$", name)]
    assert len(rows) < 2 * config.query_tile


def test_ports(tiny):
    """Clock, reset, two AXI buses and an interrupt, by the names that tools look for."""
    top = next(match for match in MODULE.finditer(tiny.read_text()) if match["name"] == TOP)
    ports = re.findall(r"^  (?:input|output) (?:\[\d+:0\] )?(\w+);$", top["body"], re.M)
    assert {"aclk", "aresetn", "interrupt"} <= set(ports)
    others = {name for name in ports if not name.startswith(("s_axil_", "m_axi_"))}
    assert others == {"aclk", "aresetn", "interrupt"}
    for bus, channels in (("s_axil", 5), ("m_axi", 5)):
        ready = [name for name in ports if name.startswith(bus) and name.endswith("ready")]
        assert len(ready) == channels


def test_bytes_are_stable(tiny, tmp_path):
    """A second process, with another hash seed and directory, writes the same bytes."""
    code = (
        "import sys; from moska.gen.config import Config; from moska.gen.emit import generate; "
        "generate(Config.load('tiny'), sys.argv[1])"
    )
    for_child = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        env=for_child,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "other" / tiny.name).read_bytes() == tiny.read_bytes()


def test_no_paths_in_the_text(tiny):
    text = tiny.read_text()
    assert "src =" not in text
    assert ".py" not in text
    assert str(pathlib.Path(moska.gen.__file__).parent.parent) not in text
    assert not re.search(r'"/|/(?:home|usr|tmp|root|work)/', text)


def lint(path):
    """Return Verilator's lint messages, all rules on but those of ``lint.vlt``."""
    done = subprocess.run(
        ["verilator", "--lint-only", "-Wall", "--top-module", TOP, str(LINT), str(path)],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def messages(output):
    return re.findall(r"^%(?:Warning|Error).*", output, re.M)


def test_lint_tiny(tiny):
    code, output = lint(tiny)
    assert messages(output) == []
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ulx3s"])
def test_lint_presets(preset, tmp_path):
    (path,) = generate(Config.load(preset), tmp_path)
    code, output = lint(path)
    assert messages(output) == []
    assert code == 0


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("  wire w; assign z = w;\n", "UNDRIVEN"),
        ("  reg r; always @* if (clk) r = a; assign z = r;\n", "LATCH"),
        (
            "  reg r; always @(posedge clk) r <= a; always @(posedge a) r <= 1; assign z = r;\n",
            "MULTIDRIVEN",
        ),
        ("  part p (.clk(clk));\n  assign z = a;\n", "PINMISSING"),
    ],
)
def test_lint_sees_faults(tmp_path, statement, rule):
    """The waivers leave the rules that find real faults."""
    path = tmp_path / f"{TOP}.v"
    path.write_text(
        f"module {TOP} (input clk, input a, output z);\n{statement}endmodule\n"
        "module part (input clk, input b, output y);\n  assign y = clk & b;\nendmodule\n"
    )
    code, output = lint(path)
    assert code != 0
    assert any(rule in message for message in messages(output)), output


@pytest.mark.parametrize("init", [[1, 2, 0x1FF, 0, 5], list(range(16))])
def test_contents_of_memories_are_amaranths(init):
    """Contents written at once are the text that Amaranth writes bit by bit."""

    def text():
        m = Module()
        m.submodules.memory = memory = Memory(shape=9, depth=16, init=init)
        data = Signal(9)
        m.d.sync += data.eq(memory.read_port().data)
        memory.write_port()
        return rtlil.convert(m, ports=[data], emit_src=False)

    expected = text()
    with contents_at_once():
        assert text() == expected
    assert "$meminit" in expected


MEMORY = re.compile(r"^  reg (?:\[\d+:0\] )?(?P<name>\w+|\\\S+ ) \[(?P<last>\d+):0\];\n", re.M)


# One of 32 bits is written in decimal; `union` and `table` are words of Verilog.
@pytest.mark.parametrize("shape", [1, 9, 32])
@pytest.mark.parametrize("depth", [1, 2, 16])
@pytest.mark.parametrize("name", ["words", "union"])
def test_memory_of_zeros_starts_with_zeros(shape, depth, name):
    m = Module()
    m.submodules[name] = memory = Memory(shape=shape, depth=depth, init=[])
    data = Signal(shape)
    m.d.sync += data.eq(memory.read_port().data)
    memory.write_port()
    text = convert(m, {"data": (data, None)})
    (match,) = MEMORY.finditer(text)
    assert int(match["last"]) == depth - 1
    assert zeroed(text, match)


def zeroed(text, memory):
    """Whether a memory is declared in front of a loop that writes zeros into all of its words."""
    name = re.escape(memory["name"])
    loop = re.compile(
        rf"  initial begin : \S+\n    integer word_;\n"
        rf"    for \(word_ = 0; word_ <= {memory['last']}; word_ = word_ \+ 1\)\n"
        rf"      {name}\[word_\] = \d+'[dh]0+;\n  end\n"
    )
    return loop.match(text, memory.end()) is not None


def test_every_word_of_every_memory_has_a_value(tiny):
    text = tiny.read_text()
    memories = list(MEMORY.finditer(text))
    assert len(memories) == len(re.findall(r"^  reg .*\[\d+:0\];$", text, re.M))
    assert len(memories) > 20
    for memory in memories:
        if not zeroed(text, memory):
            name = re.escape(memory["name"])
            block = text[memory.end() : text.index("  end\n", memory.end())]
            words = re.findall(rf"^    {name}\[(\d+)\] = ", block, re.M)
            assert sorted(map(int, words)) == list(range(int(memory["last"]) + 1)), memory["name"]


PROCESS = re.compile(r"^  always @\*( begin\n.*?^  end$|\n[^;]*;)", re.M | re.S)
TARGET = re.compile(r"^ +(?!if |case)([^=\n]+?) = ", re.M)
NAME = re.compile(r"\\\S+|(?<![\w'$\\])[A-Za-z_][\w$]*")


def names_read_and_assigned(text):
    """For each combinational process of Verilog as Yosys writes it, what it reads of its own.

    Such a process is not woken by its own assignments: what it reads before it assigns it is old.
    Amaranth's simulator settles instead, so that no component test can see it.
    """
    found = []
    for process in PROCESS.finditer(text):
        targets = {name for target in TARGET.findall(process[1]) for name in NAME.findall(target)}
        found.append(targets & set(NAME.findall(TARGET.sub("", process[1]))))
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"fold": 4, "query_tile": 8, "contexts": 4, "read_ports": 2}]
)
def test_no_process_reads_what_it_assigns(tiny, tmp_path, changes):
    path = tiny
    if changes:
        (path,) = generate(dataclasses.replace(Config.load("tiny"), **changes), tmp_path)
    text = path.read_text()
    found = names_read_and_assigned(text)
    assert len(found) == text.count("always @*") != 0
    assert not any(found), set().union(*found)


def pair_in(process):
    """Verilog of a module in which ``process`` (module, pair, x, c) assigns the two bytes."""
    m = Module()
    pair, x, c = Signal(16, name="pair"), Signal(8, name="x"), Signal(name="c")
    process(m, pair[:8], pair[8:], x, c)
    return verilog.convert(m, ports=[pair, x, c], emit_src=False)


def condition(m, low, high, x, c):
    with m.If(low[0]):
        m.d.comb += high.eq(x)
    m.d.comb += low.eq(x)


def case(m, low, high, x, c):
    with m.Switch(low):
        with m.Case(3):
            m.d.comb += high.eq(x)
    with m.If(c):
        m.d.comb += low.eq(x)


def value(m, low, high, x, c):
    with m.If(c):
        m.d.comb += [high.eq(low), low.eq(x)]


def sum_outside(m, low, high, x, c):
    with m.If(c):
        m.d.comb += [high.eq(low + 1), low.eq(x)]


@pytest.mark.parametrize("process", [condition, case, value])
def test_process_that_reads_what_it_assigns_is_seen(process):
    assert names_read_and_assigned(pair_in(process)) == [{"pair"}]


def test_process_that_is_woken_is_not_taken_for_one():
    """The sum is an assignment of its own: its change wakes the process once more."""
    assert names_read_and_assigned(pair_in(sum_outside)) == [set()]
