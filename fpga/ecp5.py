"""Rewritings of a netlist for ECP5 that save wires and that yosys does not do.

A netlist is a module of the JSON that yosys writes: cells with parameters, and connections that
are lists of nets (numbers) and constants ("0", "1", "x"). All rewritings are exact.
Cells as in FPGA-TN-02205 (sysDSP) and the simulation models of yosys (``lattice/``).
"""

from collections import defaultdict
from collections.abc import Callable

# CCU2C of yosys' adders: with D = 1, A xor B xor C is added to the carry; A is the carry out when
# that is 0.
SUM = 0x96AA
OPERAND = 18  # bits of a factor of MULT18X18D
PRODUCT = 36


class Uses:
    """Which pins of cells a net of ``module`` ends at; ports of the module count as well."""

    def __init__(self, module: dict):
        self._pins = defaultdict(list)
        for name, cell in module["cells"].items():
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] == "input":
                    for index, bit in enumerate(bits):
                        self._pins[bit].append((name, port, index))
        for port in module["ports"].values():
            if port["direction"] != "input":
                for bit in port["bits"]:
                    self._pins[bit].append(None)

    def of(self, bit) -> list:
        """Return (cell, port, index) of each pin, None for a port of the module."""
        return self._pins.get(bit, [])


def fold_into_adders(module: dict) -> int:
    """Move LUTs of few inputs into the adder that alone uses their output; return how many.

    An accumulator that starts anew, ``Mux(first, 0, total) + x``, costs a LUT a bit in yosys:
    CCU2C has an input free for ``first``.
    """
    cells, uses = module["cells"], Uses(module)
    folded = []
    for name, lut in cells.items():
        if lut["type"] != "LUT4":
            continue
        (output,) = lut["connections"]["Z"]
        inputs = [lut["connections"][port][0] for port in "ABCD"]
        nets = list(dict.fromkeys(bit for bit in inputs if isinstance(bit, int)))
        pins = uses.of(output)
        if len(pins) != 1 or pins[0] is None or len(nets) > 3:
            continue
        user, port, _ = pins[0]
        adder = cells[user]
        if adder["type"] != "CCU2C" or port[0] not in "AB":
            continue
        table = int(lut["parameters"]["INIT"], 2)

        def lut_value(values, table=table, inputs=inputs):
            index = sum((values.get(bit, bit == "1")) << n for n, bit in enumerate(inputs))
            return table >> index & 1

        if _fold(adder, port, nets, lut_value):
            folded.append(name)
    for name in folded:
        del cells[name]
    return len(folded)


def _fold(adder: dict, port: str, nets: list, lut_value: Callable[[dict], int]) -> bool:
    """Make ``port`` of an adder a function of ``nets``, if there are inputs free for that."""
    operand, half = port
    other = "B" if operand == "A" else "A"
    connections = adder["connections"]
    (kept,), (inverted,), (one,) = (connections[name + half] for name in (other, "C", "D"))
    inputs = [kept] if isinstance(kept, int) else []
    inputs += [net for net in nets if net != kept]
    if (
        int(adder["parameters"]["INIT" + half], 2) != SUM
        or one != "1"
        or inverted not in ("0", "1")
        or len(inputs) > 3
    ):
        return False
    invert = int(inverted)
    table = 0
    for index in range(8):
        values = {net: index >> n & 1 for n, net in enumerate(inputs)}
        value = values.get(kept, int(kept == "1"))
        table |= (lut_value(values) ^ value ^ invert) << (8 + index)
        # The carry when the sum bit without carry is 0, from inputs A and B only: the operand that
        # is kept, as both are equal then.
        if index < 4:
            table |= (value ^ (invert if operand == "A" else 0)) << index
    inputs += ["0"] * (3 - len(inputs))
    for name, bit in zip("ABC", inputs, strict=True):
        connections[name + half] = [bit]
    adder["parameters"]["INIT" + half] = f"{table:016b}"
    return True


def align_multipliers(module: dict) -> int:
    """Shift factors narrower than 18 bits up; return how many pins are free of a wire then.

    yosys extends their sign, which takes a wire to each of the upper pins. The lower ones are 0,
    which takes none.
    """
    uses = Uses(module)
    freed = 0
    for cell in module["cells"].values():
        if cell["type"] != "MULT18X18D":
            continue
        connections, aligned = cell["connections"], {}
        shift = 0
        for factor in "AB":
            bits = [connections[f"{factor}{n}"][0] for n in range(OPERAND)]
            copies = 0
            if connections["SIGNED" + factor] == ["1"] and isinstance(bits[-1], int):
                while copies < OPERAND - 1 and bits[-2 - copies] == bits[-1]:
                    copies += 1
            for n, bit in enumerate(["0"] * copies + bits[: OPERAND - copies]):
                aligned[f"{factor}{n}"] = [bit]
            shift += copies
        product = [connections[f"P{n}"][0] for n in range(PRODUCT)]
        dropped, kept = product[PRODUCT - shift :], product[: PRODUCT - shift]
        # Those above the sign are copies of it, which nothing reads after yosys.
        if any(uses.of(bit) for bit in dropped):
            continue
        aligned |= {f"P{n}": [bit] for n, bit in enumerate(dropped + kept)}
        connections |= aligned
        freed += shift
    return freed


def register_products(module: dict) -> int:
    """Move registers of products into the multipliers; return how many.

    Those without enable and reset, when each bit of a product goes to nothing else: a wire less
    for each, where the device has the fewest to spare.
    """
    cells, uses = module["cells"], Uses(module)
    used_up = set()
    for cell in cells.values():
        if cell["type"] != "MULT18X18D" or "CLK0" in cell["connections"]:
            continue
        connections = cell["connections"]
        pins = {n: uses.of(connections[f"P{n}"][0]) for n in range(PRODUCT)}
        used = {n: users for n, users in pins.items() if users}
        if not all(len(users) == 1 and users[0] is not None for users in used.values()):
            continue
        registers = {n: users[0][0] for n, users in used.items()}
        clocks = {_plain_clock(cells[name]) for name in registers.values()}
        if len(clocks) != 1 or None in clocks:
            continue
        for n, name in registers.items():
            connections[f"P{n}"] = cells[name]["connections"]["Q"]
        for port, bit in {"CLK0": clocks.pop(), "CE0": "1", "RST0": "0"}.items():
            connections[port] = [bit]
            cell["port_directions"][port] = "input"
        cell["parameters"] |= {
            "REG_OUTPUT_CLK": "CLK0",
            "REG_OUTPUT_CE": "CE0",
            "REG_OUTPUT_RST": "RST0",
        }
        used_up.update(registers.values())
    for name in used_up:
        del cells[name]
    return len(used_up)


def _plain_clock(cell: dict) -> int | None:
    """Clock of a flip-flop that takes its input at each rising edge; None of all others."""
    if cell["type"] != "TRELLIS_FF":
        return None
    modes = {name: value.strip() for name, value in cell["parameters"].items()}
    plain = modes["CEMUX"] == "1" or cell["connections"].get("CE") == ["1"]
    plain &= modes["CLKMUX"] == "CLK" and modes["REGSET"] == "RESET"
    plain &= modes["LSRMUX"] == "LSR" and cell["connections"].get("LSR", ["0"]) == ["0"]
    return cell["connections"]["CLK"][0] if plain else None


def tie_addresses(module: dict) -> int:
    """Give address bits of small LUT RAMs that are 0 the wire of another one; return how many pins.

    A constant 0 comes over a wire too, from one place of the device to all these pins.
    """
    tied = 0
    for cell in module["cells"].values():
        if cell["type"] != "TRELLIS_DPR16X4" or "1" in cell["parameters"]["INITVAL"]:
            continue
        read, write = (cell["connections"][port] for port in ("RAD", "WAD"))
        if not (isinstance(read[0], int) and isinstance(write[0], int)):
            continue
        for n in range(1, len(read)):
            if read[n] == write[n] == "0":
                read[n], write[n] = read[0], write[0]
                tied += 2
    return tied


def rewrite(module: dict) -> dict[str, int]:
    """Do all of it; return counts."""
    return {
        "LUTs moved into adders": fold_into_adders(module),
        "pins of multipliers without a wire": align_multipliers(module),
        "registers moved into multipliers": register_products(module),
        "address pins of LUT RAMs without the constant": tie_addresses(module),
    }
