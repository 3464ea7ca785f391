"""Synthesise the Verilog of a configuration with yosys, and say what each block of it takes.

    python scripts/area.py CONFIG FAMILY OUT_DIR

FAMILY is ecp5, or xcup (UltraScale+). The figures are left in OUT_DIR/CONFIG-FAMILY.json, from
which scripts/area_tables.py makes tables.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata

from pyosys import libyosys

from moska.fpga.report import BLOCKS, DEVICE, LUTS, OTHERS, block_of
from moska.gen.config import Config
from moska.gen.design import Design
from moska.gen.emit import TOP
from moska.gen.package import verilog

UNIT = f"{TOP}_unit"
XILINX_LUTS = {
    **{f"LUT{n}": 1 for n in range(1, 7)}, "INV": 1, "SRL16E": 1, "SRLC32E": 1, "RAM32X1D": 2,
    "RAM64X1D": 2, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM128X1D": 4,
    "RAM256X1D": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """How a device family is synthesised and counted.

    ``cells``: for each column, what a cell of a type counts. ``device``: a part, and what it has.
    """

    commands: tuple[str, ...]
    cells: Mapping[str, Mapping[str, float]]
    device: tuple[str, Mapping[str, int]]


FAMILIES = {
    "ecp5": Family(
        (f"synth_ecp5 -top {TOP}",),
        {"LUT": LUTS, **{column: {kind: 1} for kind, column in OTHERS.items()}},
        ("LFE5U-85F", DEVICE),
    ),
    # The steps of synth_xilinx with ABC in the place of ABC9, which takes far longer for modules.
    "xcup": Family(
        (
            f"synth_xilinx -family xcup -uram -noiopad -top {TOP} -run begin:map_luts",
            "opt_expr -mux_undef -noclkinv",
            "abc -luts 2:2,3,6:5,10,20",
            "clean",
            "xilinx_srl -fixed -minlen 3",
            "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
            "xilinx_dffopt",
            "opt_lut_ins -tech xilinx",
            "clean",
            "blackbox =A:whitebox",  # else the models of cells are a part of the netlist
        ),
        {
            "LUT": XILINX_LUTS,
            "FF": dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE"), 1),
            "DSP": {"DSP48E2": 1},
            "RAM": {"RAMB36E2": 1, "RAMB18E2": 0.5},
            "URAM": {"URAM288": 1},
        },
        (
            "XCU55C",
            {"LUT": 1_303_680, "FF": 2_607_360, "DSP": 9_024, "RAM": 2_016, "URAM": 960},
        ),
    ),
}


def counted(family: Family, kinds: Mapping[str, int]) -> dict[str, float]:
    """Columns of a family for numbers of cells by type."""
    return {
        column: sum(weight * kinds.get(kind, 0) for kind, weight in cells.items())
        for column, cells in family.cells.items()
    }


def flat_blocks(netlist: Mapping) -> dict[str, collections.Counter]:
    """Types of cells by block, of a netlist that is one module."""
    found = collections.defaultdict(collections.Counter)
    for name, cell in netlist["modules"][TOP]["cells"].items():
        found[block_of(f"{TOP}.{name}")][cell["type"]] += 1
    return found


def nested_blocks(netlist: Mapping) -> dict[str, collections.Counter]:
    """Types of cells by block, of a netlist with the modules of the Verilog."""
    modules = netlist["modules"]

    @functools.cache
    def total(kind: str) -> collections.Counter:
        """Types of cells that a cell stands for."""
        if not kind.startswith(TOP):  # of the device
            return collections.Counter([kind])
        cells = modules[kind]["cells"].values()
        return sum((total(cell["type"]) for cell in cells), collections.Counter())

    found = collections.defaultdict(collections.Counter)
    for module, path in ((TOP, TOP), (UNIT, f"{TOP}.unit")):
        for name, cell in modules[module]["cells"].items():
            if cell["type"] != UNIT:
                found[block_of(f"{path}.{name}")] += total(cell["type"])
    return found


def measure(config: Config, name: str, out: pathlib.Path) -> dict:
    """Synthesise a configuration for a family; return its figures."""
    family = FAMILIES[name]
    out.mkdir(parents=True, exist_ok=True)
    source, netlist = (out / f"{config.name}-{name}{suffix}" for suffix in (".v", "-netlist.json"))
    source.write_text(verilog(Design(config)), encoding="utf-8")
    start = time.process_time()
    design = libyosys.Design()
    for command in (f"read_verilog {source}", *family.commands, f"write_json {netlist}"):
        libyosys.run_pass(command, design)
    blocks_of: Callable = flat_blocks if name == "ecp5" else nested_blocks
    blocks = blocks_of(json.loads(netlist.read_text(encoding="utf-8")))
    netlist.unlink()
    used = sum(blocks.values(), collections.Counter())
    part, device = family.device
    return {
        "config": config.name,
        "parameters": config.parameters(),
        "macs": config.macs,
        "clock_mhz": config.clock_mhz,
        "family": name,
        "part": part,
        "device": device,
        "yosys": metadata.version("pyosys"),
        "seconds": round(time.process_time() - start),
        "cells": dict(sorted(used.items())),
        "used": counted(family, used),
        "blocks": {
            block: counted(family, blocks[block]) for block in BLOCKS if block in blocks
        },
    }


def main(name: str, family: str, out_dir: str) -> None:
    """Write the figures and print them."""
    config, out = Config.load(name), pathlib.Path(out_dir)
    figures = measure(config, family, out)
    path = out / f"{config.name}-{family}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\n{config.name} on {figures['part']}, {figures['seconds']} s of a processor:")
    for column, count in figures["used"].items():
        of = figures["device"][column]
        print(f"{column:5} {count:>10,.0f} of {of:>10,}, {100 * count / of:.0f} %")
    print(path)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] not in FAMILIES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
