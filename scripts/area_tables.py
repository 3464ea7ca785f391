"""Put figures of scripts/area.py and `moska build` into the page docs/performance.md.

    python scripts/area_tables.py build/area/*.json [build/ulx3s/report.json]

The tables behind ``<!-- area -->``, ``<!-- area blocks -->`` and ``<!-- area peers -->`` are
written anew.
"""

import json
import pathlib
import sys

from moska.gen.config import Config
from moska.sim import page
from moska.sim.page import table

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "performance.md"
COLUMNS = ("LUT", "FF", "DSP", "RAM", "URAM")
NONE = "-"


def number(used: dict, column: str) -> str:
    """Count of a column; RAM may be a half."""
    if column not in used:
        return NONE
    return f"{used[column]:,.1f}".removesuffix(".0")


def share(figures: dict, column: str) -> str:
    """Count of a column and its share of the part."""
    if column not in figures["device"]:
        return NONE
    percent = 100 * figures["used"][column] / figures["device"][column]
    return f"{number(figures['used'], column)} ({percent:.0f} %)"


def summary(found: list[dict]) -> str:
    """Table with a line for each configuration and family."""
    rows = [
        [
            f"`{one['config']}`",
            one["part"],
            f"{one['macs']:,}",
            *(share(one, column) for column in COLUMNS),
            f"{one['used']['LUT'] / one['macs']:,.0f}",
        ]
        for one in found
    ]
    header = ("configuration", "part", "MACs", *COLUMNS, "LUT per MAC")
    return "\n".join(table(header, rows, left=2))


def blocks(found: list[dict]) -> str:
    """Table of blocks for each configuration and family."""
    lines = []
    for one in found:
        columns = [column for column in COLUMNS if column in one["device"]]
        lines += [f"`{one['config']}` on {one['part']}:", ""]
        rows = [
            [block, *(number(used, column) for column in columns)]
            for block, used in one["blocks"].items()
        ]
        lines += table(("block", *columns), rows)
    return "\n".join(lines)


def speed(board: dict | None) -> float | None:
    """MHz that the unit reaches on the board, placed and routed."""
    if board is None:
        return None
    return min(clock["reached"] for clock in board["clocks"] if clock["name"] == "sys_clk")


# Figures that others have published: name, what it is, MACs, MHz, LUT (None: not an FPGA, or not
# published), source.
PEERS = (
    ("FSA, 16 x 16", "FP16 attention, Alveo U280", 256, 70, 351_000,
     "third-party port of VCA-EPFL's FSA; the core alone"),
    ("RedMulE, 12 x 4", "FP16 GEMM, 22 nm", 32, 666, None, "RedMulE, 2022"),
    ("hps_accel", "INT8 dot products, Arty A7", 32, 75, None, "CFU-Playground"),
)  # fmt: skip


def peers(found: list[dict], board: dict | None) -> str:
    """Table of LUT per MAC and peak rate, ours and theirs."""
    rows = []
    for one in found:
        reached = speed(board) if one["config"] == "ulx3s" and one["family"] == "ecp5" else None
        mhz = reached or one["clock_mhz"]
        rows.append([
            f"moska `{one['config']}`",
            f"INT8 keys and values, {one['part']}",
            f"{one['macs']:,}",
            f"{mhz:.0f}" + ("" if reached else " (assumed)"),
            f"{one['macs'] * mhz / 1000:,.1f}",
            f"{one['used']['LUT'] / one['macs']:,.0f}",
            "placed and routed" if reached else "synthesis",
        ])
    for name, what, macs, mhz, luts, source in PEERS:
        rows.append([
            name,
            what,
            f"{macs:,}",
            f"{mhz}",
            f"{macs * mhz / 1000:,.1f}",
            f"{luts / macs:,.0f}" if luts else NONE,
            source,
        ])
    header = ("unit", "what", "MACs", "MHz", "peak GMAC/s", "LUT per MAC", "figures from")
    return "\n".join(table(header, rows, left=2))


def main(paths: list[str]) -> None:
    """Write the sections."""
    read = [json.loads(pathlib.Path(path).read_text(encoding="utf-8")) for path in paths]
    boards = [one for one in read if "critical_paths" in one]
    order = ["tiny", "ulx3s", "sim64", "u55c"]
    found = sorted(
        (one for one in read if "family" in one and one["config"] in order),
        key=lambda one: (one["family"], order.index(one["config"])),
    )
    stale = [
        one["config"]
        for one in found
        if one["parameters"] != Config.load(one["config"]).parameters()
    ]
    if stale:
        sys.exit(f"figures must be of the presets as they are, not of others: {', '.join(stale)}")
    board = boards[-1] if boards else None
    page.put(PAGE, "area", summary(found))
    page.put(PAGE, "area blocks", blocks(found))
    page.put(PAGE, "area peers", peers(found, board))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
