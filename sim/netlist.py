"""Patterns of the Verilog that :mod:`moska.gen.emit` makes: one statement a line."""

import re

NAME = r"\\\S+|[A-Za-z_]\w*"
MODULE = re.compile(r"^module (?P<name>\S+)\s*\(.*?^endmodule$", re.M | re.S)
PORT = re.compile(rf"^  (?P<way>input|output) (?:\[\d+:0\] )?(?P<name>{NAME}) *;$", re.M)
# Not memories.
DECLARED = re.compile(
    rf"^  (?:wire|reg) (?:signed )?(?:\[(?P<high>\d+):0\] )?(?P<name>{NAME})(?: += .*| *);$", re.M
)
ASSIGN = re.compile(r"^  assign (?P<target>.*?\S) += (?P<value>.*);$", re.M)
INSTANCE = re.compile(
    rf"^  (?P<type>{NAME}) +(?P<name>\S+) +\(\n(?P<ports>(?:    \..*\n)*)  \);$", re.M
)
CONNECTION = re.compile(rf"^    \.(?P<port>{NAME}) *\((?P<value>.*)\),?$", re.M)
CONSTANT = re.compile(r"(?P<width>\d+)'(?P<base>[hdb])(?P<digits>[0-9a-f]+)")
BASES = {"h": 16, "d": 10, "b": 2}


def plain(name: str) -> str:
    """Return a name without the backslash of an escaped one."""
    return name.removeprefix("\\")


def width(declared: re.Match) -> int:
    """Bits of what a match of DECLARED declares."""
    return int(declared["high"] or 0) + 1
