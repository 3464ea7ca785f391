"""Ports of the unit as its Verilog declares them, and text that connects them."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from moska.gen.emit import MODULE, TOP

DECLARATION = re.compile(r"^  (?P<way>input|output) (?:\[(?P<high>\d+):0\] )?(?P<name>\w+);$", re.M)


class Port(NamedTuple):
    """A port of the top module. ``way``: "input" or "output"."""

    name: str
    way: str
    width: int

    @property
    def range(self) -> str:
        """Range of a declaration with a space behind it, empty for one bit."""
        return f"[{self.width - 1}:0] " if self.width > 1 else ""


def ports(verilog: str, *, top: str = TOP) -> list[Port]:
    """Ports of module ``top``: clock, reset and interrupt first, then bus by bus."""
    (body,) = (match["body"] for match in MODULE.finditer(verilog) if match["name"] == top)
    found = [
        Port(match["name"], match["way"], int(match["high"] or 0) + 1)
        for match in DECLARATION.finditer(body)
    ]
    return sorted(found, key=lambda port: port.name.startswith(("s_axil_", "m_axi_")))


def instance(
    module: str, name: str, connected: Iterable[tuple[str, str]], *, indent: str = "  "
) -> str:
    """Instance with a line for each pair of a port and what it is connected to."""
    pairs = list(connected)
    longest = max(len(port) for port, _ in pairs)
    lines = ",\n".join(
        f"{indent}  .{port}{' ' * (longest - len(port))} ({net})" for port, net in pairs
    )
    return f"{indent}{module} {name} (\n{lines}\n{indent});\n"
