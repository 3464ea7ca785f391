"""Timing constraints of the unit alone."""

import textwrap
from collections.abc import Iterable

from moska.gen.design import Design


def sdc(design: Design) -> str:
    """Clock and delays of the ports, a third of the period each."""
    period = 1000 / design.config.clock_mhz
    ports = [port for port in design.ports if port.name != "aclk"]
    return design.fill(
        "moska.sdc",
        period=f"{period:.3f}",
        delay=f"{period / 3:.3f}",
        inputs=_names(port.name for port in ports if port.way == "input"),
        outputs=_names(port.name for port in ports if port.way == "output"),
    )


def xdc(design: Design) -> str:
    """Clock for synthesis out of context."""
    return design.fill("moska_ooc.xdc", period=f"{1000 / design.config.clock_mhz:.3f}")


def _names(names: Iterable[str]) -> str:
    return textwrap.fill(" ".join(names), 100, initial_indent="  ", subsequent_indent="  ")
