"""The hardware package: everything that `moska generate` writes into a folder."""

import hashlib
import json
import pathlib
import textwrap
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

from moska.gen import constraints, registers, testbench, vivado
from moska.gen.config import Config
from moska.gen.design import Design
from moska.gen.emit import TOP
from moska.gen.info import as_dict
from moska.gen.ports import instance
from moska.gen.readable import readable
from moska.hw.registers import RDL

WAIVERS = pathlib.Path(__file__).with_name("lint.vlt")


class File(NamedTuple):
    """A file of the package: what it is for, and the function that makes its text."""

    purpose: str
    text: Callable[[Design], str]


def readme(design: Design) -> str:
    """Page about the package, with a template of an instance."""
    connected = [(port.name, port.name) for port in design.ports]
    return design.fill(
        "README.md",
        summary=textwrap.fill(design.summary, 110),
        files="\n".join(f"| `{name}` | {file.purpose} |" for name, file in FILES.items()),
        second_port="; values have a port of their own, `m_axi_v`" * (len(design.masters) - 1),
        template=instance(TOP, "unit", connected, indent=""),
    )


def config_json(design: Design) -> str:
    """Parameters, and the sizes that follow from them."""
    return json.dumps({"version": design.version} | as_dict(design.config), indent=2) + "\n"


def verilog(design: Design) -> str:
    """Verilog of the unit, with a header."""
    return readable(
        design.verilog,
        design.fill(
            "header.txt",
            summary=textwrap.fill(design.summary, 97),
            parameters="\n".join(
                f"  {name} = {value}" for name, value in design.config.parameters().items()
            ),
        ),
    )


FILES = {
    "README.md": File("this page", readme),
    "config.json": File("parameters, and the sizes that follow from them", config_json),
    "moska.core": File(
        "FuseSoC: targets `lint`, `sim`, `sim_icarus`, `synth`, `synth_ecp5`",
        lambda design: design.fill("moska.core"),
    ),
    "moska.f": File("list of the Verilog files", lambda design: f"rtl/{TOP}.v\n"),
    "rtl/moska.v": File("the unit, module `moska`", verilog),
    "rtl/moska.vlt": File(
        "rules of Verilator that generated Verilog cannot meet; all others hold",
        lambda design: WAIVERS.read_text(encoding="utf-8"),
    ),
    "rtl/moska_kernel.v": File("the unit under the names of ports of Vitis", vivado.kernel),
    "registers/moska.rdl": File(
        "register map in SystemRDL, the source of the next three",
        lambda design: RDL.read_text(encoding="utf-8"),
    ),
    "registers/moska_regs.h": File(
        "offsets, fields and masks for C", lambda design: registers.c_header(design.registers)
    ),
    "registers/moska_regs.py": File(
        "the same for Python", lambda design: registers.python(design.registers)
    ),
    "registers/registers.md": File(
        "the same to read", lambda design: registers.markdown(design.registers)
    ),
    "sim/smoke_tb.sv": File("self-checking smoke test", testbench.testbench),
    "sim/smoke_memory.hex": File("its memory: a small job", testbench.memory),
    "sim/smoke_results.hex": File("results of that job, by the golden model", testbench.results),
    "constraints/moska.sdc": File("clock and delays of the ports", constraints.sdc),
    "constraints/moska_ooc.xdc": File("clock, for Vivado out of context", constraints.xdc),
    "vivado/package_ip.tcl": File("packages the unit as IP of Vivado", vivado.package_ip),
    "vitis/package_kernel.tcl": File(
        "packages it as a user-managed kernel of Vitis", vivado.package_kernel
    ),
    "vitis/link.cfg": File("connects that kernel to memory", vivado.link),
}


def write(config: Config, out_dir: pathlib.Path) -> list[pathlib.Path]:
    """Write the package of ``config`` into ``out_dir``; returns its files.

    The bytes depend on the configuration and the version only.
    """
    design = Design(config)
    paths = []
    for name, file in FILES.items():
        path = pathlib.Path(out_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.text(design).encode())
        paths.append(path)
    return paths


def manifest(config: Config, out_dir: pathlib.Path) -> dict:
    """Describe a written package: configuration, version, purpose and hash of each file."""
    return {
        "config": config.name,
        "parameters": config.parameters(),
        "version": metadata.version("moska"),
        "files": {
            name: {
                "purpose": file.purpose,
                "sha256": hashlib.sha256(pathlib.Path(out_dir, name).read_bytes()).hexdigest(),
            }
            for name, file in FILES.items()
        },
    }
