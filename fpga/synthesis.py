"""Synthesis with yosys, in a process of its own: python -m moska.fpga.synthesis TOP FILES...

Runs in the folder of the files and leaves the netlist TOP.json there.
"""

import sys

from pyosys import libyosys


def main(top: str, files: list[str]) -> None:
    """Synthesise ``top`` of Verilog ``files`` for ECP5."""
    design = libyosys.Design()
    for command in (
        *(f"read_verilog {file}" for file in files),
        # LiteX writes attributes as text.
        'attrmap -tocase keep -imap keep="true" keep=1 -imap keep="false" keep=0 -remove keep=0',
        f"synth_ecp5 -top {top} -json {top}.json",
    ):
        libyosys.run_pass(command, design)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
