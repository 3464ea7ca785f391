"""What the files of a package are written from: a configuration's Verilog, ports and registers."""

import dataclasses
import functools
import pathlib
import re
from importlib import metadata

from moska.gen.config import Config
from moska.gen.emit import convert_unit
from moska.gen.ports import Port, ports
from moska.gen.smoke import Smoke, smoke
from moska.hw.registers import RegisterMap, load_map

TEMPLATES = pathlib.Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Design:
    """One configuration, with all that follows from it computed once."""

    config: Config

    @property
    def version(self) -> str:
        """Version of the generator."""
        return metadata.version("moska")

    @functools.cached_property
    def verilog(self) -> str:
        """Verilog as Amaranth and Yosys write it."""
        return convert_unit(self.config)

    @functools.cached_property
    def smoke(self) -> Smoke:
        """Job of the smoke test."""
        return smoke(self.config)

    @functools.cached_property
    def ports(self) -> list[Port]:
        """Ports of the top module."""
        return ports(self.verilog)

    @functools.cached_property
    def registers(self) -> RegisterMap:
        """Register map, the same for all configurations."""
        return load_map()

    @property
    def masters(self) -> list[str]:
        """Names of the memory ports."""
        return ["m_axi", "m_axi_v"][: self.config.read_ports]

    @property
    def summary(self) -> str:
        """What the unit is, in a sentence."""
        config = self.config
        ports = "a memory port" if config.read_ports == 1 else f"{config.read_ports} memory ports"
        return (
            "Unit that attends queries to a shared store of keys and values: heads of "
            f"{config.head_dim} elements, {config.macs:,} multipliers in two arrays, up to "
            f"{config.max_rows} query rows a job, {ports} of {config.bus_width} bits."
        )

    def fill(self, template: str, /, **values: object) -> str:
        """Text of a file in ``templates`` with each ``@name@`` replaced by a value.

        The configuration's name and clock and the version need not be given.

        Raises
        ------
        KeyError
            when there is no value of a name.
        """
        values = {
            "name": self.config.name,
            "version": self.version,
            "clock_mhz": self.config.clock_mhz,
        } | values
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        return re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), text)
