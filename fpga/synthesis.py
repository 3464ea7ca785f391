"""Synthesis with yosys, in a process of its own: python -m moska.fpga.synthesis TOP FILES...

Runs in the folder of the files and leaves the netlist TOP.json there.
"""

import json
import pathlib
import sys

from pyosys import libyosys

from moska.fpga import ecp5, floorplan


def main(top: str, files: list[str]) -> None:
    """Synthesise ``top`` of Verilog ``files`` for ECP5."""
    netlist = pathlib.Path(f"{top}.json")
    design = libyosys.Design()
    for command in (
        *(f"read_verilog {file}" for file in files),
        # LiteX writes attributes as text.
        'attrmap -tocase keep -imap keep="true" keep=1 -imap keep="false" keep=0 -remove keep=0',
        f"synth_ecp5 -top {top} -json {netlist}",
    ):
        libyosys.run_pass(command, design)
    found = json.loads(netlist.read_text(encoding="utf-8"))
    for what, count in ecp5.rewrite(found["modules"][top]).items():
        print(f"{what}: {count}")
    print(f"multipliers with a fixed place: {floorplan.place(found['modules'][top])}")
    netlist.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
