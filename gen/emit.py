"""Verilog of a configuration: conversion, module sharing, stable bytes."""

import contextlib
import pathlib
import re

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, ResetSignal, Signal, _nir

from moska.gen.config import Config
from moska.hw.memory.axi import export
from moska.hw.unit import Unit

TOP = "moska"
UNIT_PARAMETERS = (
    "head_dim",
    "fold",
    "query_tile",
    "bus_width",
    "max_rows",
    "max_chunks",
    "buffer_tokens",
    "buffer_slots",
    "contexts",
    "select_width",
    "read_ports",
    "max_in_flight",
)


def unit(config: Config) -> Unit:
    """Return the unit of a configuration."""
    return Unit(**{name: getattr(config, name) for name in UNIT_PARAMETERS})


class Top(Elaboratable):
    """The unit with an AXI clock and reset: ``aclk``, ``aresetn`` (active low, synchronous)."""

    def __init__(self, core):
        self.core = core
        self.aclk = Signal()
        self.aresetn = Signal()

    def ports(self):
        """Ports by their names in Verilog."""
        core = self.core
        return {
            "aclk": (self.aclk, None),
            "aresetn": (self.aresetn, None),
            **export("s_axil", core.control),
            **export("m_axi", core.read),
            **export("m_axi", core.write),
            **(export("m_axi_v", core.read_v) if core.read_ports == 2 else {}),
            "interrupt": (core.interrupt, None),
        }

    def elaborate(self, platform):
        """Clock domain and core."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.unit = self.core
        return m


@contextlib.contextmanager
def contents_at_once():
    """Let Amaranth write a memory's initial contents as one number, of zeros the first word only.

    It makes an object of every bit otherwise, and Yosys a line of every word, which takes minutes
    for the memories of a large unit. :func:`zero_loop` sets the other words to zero. Amaranth's
    version is pinned.
    """
    original = rtlil.ModuleEmitter.emit_memory
    rtlil.ModuleEmitter.emit_memory = _emit_memory
    try:
        yield
    finally:
        rtlil.ModuleEmitter.emit_memory = original


def _emit_memory(emitter, cell_index, cell):
    memory = emitter.memories[cell_index]
    mask = (1 << cell.width) - 1
    words = cell.init if any(cell.init) else cell.init[:1]
    bits = "".join(f"{row & mask:0{cell.width}b}" for row in reversed(words))
    emitter.builder.cell(
        "$meminit_v2",
        ports={
            "ADDR": emitter.sigspec(),
            "DATA": f"{len(bits)}'{bits}",
            "EN": emitter.sigspec(_nir.Value.ones(cell.width)),
        },
        parameters={
            "MEMID": memory.memid,
            "ABITS": 0,
            "WIDTH": cell.width,
            "WORDS": len(words),
            "PRIORITY": 0,
        },
        src_loc=cell.src_loc,
    )


def convert(elaboratable, ports, *, name: str = TOP) -> str:
    """Verilog text of a design, with equal modules emitted once.

    The text depends on the design only: no paths, no dates.
    """
    with contents_at_once():
        text = verilog.convert(elaboratable, name=name, ports=ports, emit_src=False)
    text = STEP.sub(r"\\$initial ", text)
    # Yosys' order of ports differs between equal modules; they are connected by name.
    text = PORT_LIST.sub(lambda m: f"{m[1]}({', '.join(sorted(m[2].split(', ')))});", text)
    return share_modules(ZEROS.sub(zero_loop, text))


# A memory whose first word only has a value.
ZEROS = re.compile(
    r"^(?P<declaration>  reg \[\d+:0\] (?P<name>\w+|\\\S+ ) \[(?P<last>\d+):0\];\n)"
    r"  initial begin\n    (?P=name)\[0\] = (?P<zero>\d+'[dh]0+);\n  end\n",
    re.M,
)


def zero_loop(match: re.Match) -> str:
    """Return the loop that stands for a memory's initial zeros."""
    name = match["name"]
    return (
        f"{match['declaration']}  initial begin : {name.strip()}_zero\n    integer word_;\n"
        f"    for (word_ = 0; word_ <= {match['last']}; word_ = word_ + 1)\n"
        f"      {name}[word_] = {match['zero']};\n  end\n"
    )


# Yosys numbers the register that starts its always blocks through the whole design, after a line
# of its own source. A module has one; without the number, equal modules are equal in text.
STEP = re.compile(r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ ")
MODULE = re.compile(
    r"^(?:\(\*[^\n]*\*\)\n)*module (?P<name>\S+)(?P<body>\s*\(.*?^endmodule\n)\n?", re.M | re.S
)
PORT_LIST = re.compile(r"^(module \S+ ?)\(([^)]*)\);", re.M)
INSTANCE = re.compile(r"^( +)(\S+)(?= +\S+ +\($)", re.M)  # type, name, parenthesis


def share_modules(text: str, *, top: str = TOP) -> str:
    """Keep the first of each set of Verilog modules that are equal but for their names.

    Amaranth emits a module per instance; an array of equal rows becomes one module that is
    instantiated many times. Parents are compared after their parts. ``top`` keeps its name.
    """
    while True:
        first: dict[str, str] = {}
        renamed: dict[str, str] = {}
        for match in MODULE.finditer(text):
            kept = first.setdefault(match["body"], match["name"])
            if match["name"] not in (kept, top):
                renamed[match["name"]] = kept
        if not renamed:
            return text
        text = MODULE.sub(lambda m, old=renamed: "" if m["name"] in old else m[0], text)
        text = INSTANCE.sub(lambda m, new=renamed: m[1] + new.get(m[2], m[2]), text)


def convert_unit(config: Config) -> str:
    """Verilog text of the unit of a configuration: module ``moska``."""
    top = Top(unit(config))
    return convert(top, top.ports())


def generate(config: Config, out_dir: pathlib.Path) -> list[pathlib.Path]:
    """Write the Verilog of ``config`` into ``out_dir``; returns the files."""
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{TOP}.v"
    path.write_text(convert_unit(config))
    return [path]
