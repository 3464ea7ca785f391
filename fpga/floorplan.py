"""Places of the arrays' multipliers on the LFE5U-85F.

Left to itself, nextpnr scatters what fills nine tenths of the device's multipliers; all else
follows them. A row of an array gets neighbours here: the score array the left half of the device
and the value array the right one, from row to row on the shortest way.
"""

import re

from moska.fpga import ecp5

# MULT18X18D: rows of the device, and those of a DSP block of nine columns with their names.
ROWS = (10, 34, 58)
BLOCKS = (*range(4, 60, 9), *range(69, 120, 9))
IN_BLOCK = {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}
PRODUCT = re.compile(r"(?:^|\.)(score|value)_array\.row_(\d+)\.product_(\d+)$")


def places() -> dict[str, list[list[str]]]:
    """Names of all multipliers of each half of the device, row by row, left to right."""
    columns = [(block + offset, name) for block in BLOCKS for offset, name in IN_BLOCK.items()]
    half = len(columns) // 2
    return {
        array: [[f"X{x}/Y{row}/{name}" for x, name in part] for row in ROWS]
        for array, part in {"score": columns[:half], "value": columns[half:]}.items()
    }


def multipliers(module: dict) -> dict[str, dict[int, dict[int, str]]]:
    """Cells of each array by row and element, by the names of their products."""
    products = {
        bit: match.groups()
        for name, net in module["netnames"].items()
        if (match := PRODUCT.search(name))
        for bit in net["bits"]
    }
    found = {"score": {}, "value": {}}
    for name, cell in module["cells"].items():
        if cell["type"] == "MULT18X18D":
            for n in range(ecp5.PRODUCT):
                if (place := products.get(cell["connections"][f"P{n}"][0])) is not None:
                    array, row, element = place
                    found[array].setdefault(int(row), {})[int(element)] = name
    return found


def place(module: dict) -> int:
    """Fix the multipliers of both arrays in a netlist; return how many, 0 when they do not fit."""
    fixed = {}
    for array, rows in multipliers(module).items():
        size = max((len(row) for row in rows.values()), default=0)
        spots = []
        for number, line in enumerate(places()[array]):
            groups = [line[n : n + size] for n in range(0, len(line) - size + 1, size or 1)]
            spots += groups[:: -1 if number % 2 else 1]  # on the way back, right to left
        if len(rows) > len(spots):
            return 0
        for row, spot in zip(sorted(rows), spots, strict=False):
            fixed |= dict(zip((name for _, name in sorted(rows[row].items())), spot, strict=False))
    for name, bel in fixed.items():
        module["cells"][name]["attributes"]["BEL"] = bel
    return len(fixed)
