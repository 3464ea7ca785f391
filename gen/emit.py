"""Verilog of a configuration: conversion, module sharing, stable bytes."""

import pathlib
import re

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, ResetSignal, Signal

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
    "select_width",
    "max_in_flight",
)


def unit(config: Config) -> Unit:
    """The unit of a configuration."""
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
            "interrupt": (core.interrupt, None),
        }

    def elaborate(self, platform):
        """Clock domain and core."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.unit = self.core
        return m


def convert(elaboratable, ports, *, name: str = TOP) -> str:
    """Verilog text of a design, with equal modules emitted once.

    The text depends on the design only: no paths, no dates.
    """
    text = verilog.convert(elaboratable, name=name, ports=ports, emit_src=False)
    return share_modules(text)


MODULE = re.compile(r"^(?P<attributes>(?:\(\*.*?\*\)\n)*)module (?P<name>\S+)\s*\(.*?^endmodule\n", re.M | re.S)


def share_modules(text: str) -> str:
    """Keep one of each set of Verilog modules that are equal but for their names.

    Amaranth emits a module per instance; an array of equal rows becomes one module that is
    instantiated many times. The first of a set keeps its place, named after it without its index.
    """
    while True:
        bodies: dict[str, str] = {}
        renamed: dict[str, str] = {}
        for match in MODULE.finditer(text):
            name = match["name"]
            body = match[0].replace(name, "<name>")
            if name == TOP:
                continue
            if body in bodies:
                renamed[name] = bodies[body]
            else:
                bodies[body] = name
        if not renamed:
            return text
        text = MODULE.sub(lambda match: "" if match["name"] in renamed else match[0], text)
        for old, new in renamed.items():
            text = re.sub(rf"^(\s*){re.escape(old)} (?=\S+ +\()", lambda m, new=new: f"{m[1]}{new} ", text, flags=re.M)


def generate(config: Config, out_dir: pathlib.Path) -> list[pathlib.Path]:
    """Write the Verilog of ``config`` into ``out_dir``; returns the files."""
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    top = Top(unit(config))
    path = out_dir / f"{TOP}.v"
    path.write_text(convert(top, top.ports()))
    return [path]
