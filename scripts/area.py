"""Synthesise the Verilog of a configuration for ECP5 with yosys and print what it takes.

Usage: python scripts/area.py CONFIG OUT_DIR
"""

import json
import pathlib
import sys

from pyosys import libyosys

from moska.gen.config import Config
from moska.gen.emit import TOP, generate

# An LFE5U-85F has this many of each.
DEVICE = {"LUT4": 83_640, "FF": 83_640, "MULT18X18D": 156, "DP16KD": 208}
# LUT4 positions that a cell takes: a carry cell two, a 16x4 RAM four and two for its write port.
LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}


def main(config: str, out_dir: str) -> None:
    """Print a Markdown table; leave ``area.json`` in ``out_dir``."""
    out = pathlib.Path(out_dir)
    (verilog,) = generate(Config.load(config), out)
    design = libyosys.Design()
    stat = out / "area.json"
    for command in (
        f"read_verilog {verilog}",
        f"synth_ecp5 -top {TOP}",
        f"tee -q -o {stat} stat -json",
    ):
        libyosys.run_pass(command, design)
    cells = json.loads(stat.read_text())["design"]["num_cells_by_type"]
    used = {
        "LUT4": sum(count * cells.get(cell, 0) for cell, count in LUTS.items()),
        "FF": cells.get("TRELLIS_FF", 0),
        "MULT18X18D": cells.get("MULT18X18D", 0),
        "DP16KD": cells.get("DP16KD", 0),
    }
    print(f"\n| {config} | used | of LFE5U-85F | share |\n|---|---|---|---|")
    for name, count in used.items():
        print(f"| {name} | {count:,} | {DEVICE[name]:,} | {100 * count / DEVICE[name]:.0f} % |")
    detail = ", ".join(f"{cell} {cells.get(cell, 0):,}" for cell in LUTS)
    print(f"\nLUT4 positions from {detail}.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
