"""What a bitstream takes and how fast it is: from the netlist and the report of nextpnr."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

# Blocks of the table, and the parts of the unit (submodules of moska.hw.unit) that each holds.
UNIT_BLOCKS = {
    "score array": ("score_array", "score_issue"),
    "value array": ("value_array", "value_issue"),
    "softmax lanes": ("lane",),
    "row state": ("state", "drain"),
    "router": ("selector", "inverter", "key", "key_tags"),
    "buffers": ("k_buffer", "v_buffer", "k_scales", "v_scales", "queries", "query_scales"),
    "memory side (DMA)": ("reader", "writer", "load", "fetch", "checksum"),
    "results": ("results",),
    "control": ("sequencer", "frontend", "gather", "registers"),
}
# Blocks that signals between parts, and ports, count to.
UNIT_SIGNALS = {
    "m_axi_": "memory side (DMA)",
    "s_axil_": "control",
    "control__": "control",
    "error_": "control",
}
REST_OF_UNIT = "between blocks"
SOC_BLOCKS = {"link": "link", "quiesce": "gate for reset"}
REST = "SDRAM controller, bus"
BLOCKS = (*UNIT_BLOCKS, REST_OF_UNIT, *SOC_BLOCKS.values(), REST)

# Positions of a LUT4 that a cell takes: a carry cell two, a 16x4 RAM four and two for its writes.
LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
OTHERS = {"TRELLIS_FF": "FF", "MULT18X18D": "DSP", "DP16KD": "RAM"}
COLUMNS = ("LUT", *OTHERS.values())
DEVICE = {"LUT": 83_640, "FF": 83_640, "DSP": 156, "RAM": 208}  # of LFE5U-85F; RAM: of 18 kbit

# Instances in a row are named with a number.
NUMBERED = re.compile(r"_\d+$")


def block_of(name: str) -> str:
    """Block of a cell, by its name in the flat netlist: instances before dots, then a signal."""
    instance, _, rest = name.partition(".")
    if instance != "moska":
        return SOC_BLOCKS.get(instance, REST)
    part = rest.removeprefix("unit.").partition(".")[0]
    for block, parts in UNIT_BLOCKS.items():
        if part in parts or NUMBERED.sub("", part) in parts:
            return block
    for prefix, block in UNIT_SIGNALS.items():
        if part.startswith(prefix):
            return block
    return REST_OF_UNIT


def utilisation(cells: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Count what each block takes.

    yosys merges signals and moves logic over the borders of blocks: a cell counts to the block of
    the signal that it is named after.

    Parameters
    ----------
    cells
        name and type of each

    Returns
    -------
    dict
        of each block that has cells, in the order of BLOCKS: number of each of COLUMNS

    """
    used = collections.defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
    for name, kind in cells:
        if kind in LUTS:
            used[block_of(name)]["LUT"] += LUTS[kind]
        elif kind in OTHERS:
            used[block_of(name)][OTHERS[kind]] += 1
    return {block: used[block] for block in BLOCKS if block in used}


@dataclasses.dataclass(frozen=True)
class Domain:
    """A clock: frequencies in MHz."""

    name: str
    reached: float
    needed: float

    @property
    def met(self) -> bool:
        """Whether it is fast enough."""
        return self.reached >= self.needed


# nextpnr puts this before the net of a clock that it gives a global line.
GLOBAL = "$glbnet$"
# Outputs of the PLL, in the order in which moska.fpga.soc.Clocks asks for them.
PLL = "EHXPLLL"
CLOCKS = {"CLKOP": "sys_clk", "CLKOS": "sys2x_clk", "CLKOS2": "sys2x_ps_clk"}


def clock_names(module: Mapping) -> dict[str, str]:
    """Clock that each net is, of those that come from the PLL; yosys picks any name for its net."""
    (pll,) = (cell for cell in module["cells"].values() if cell["type"] == PLL)
    clocks = {pll["connections"][port][0]: clock for port, clock in CLOCKS.items()}
    return {
        name: clocks[net["bits"][0]]
        for name, net in module["netnames"].items()
        if len(net["bits"]) == 1 and net["bits"][0] in clocks
    }


def domains(report: Mapping, names: Mapping[str, str]) -> list[Domain]:
    """Clocks of nextpnr's report; ``names`` as of :func:`clock_names`."""
    return [
        Domain(names.get(net.removeprefix(GLOBAL), net), speed["achieved"], speed["constraint"])
        for net, speed in report["fmax"].items()
    ]


@dataclasses.dataclass(frozen=True)
class Path:
    """The slowest path from one clock to one, or another. ``delays``: place and nanoseconds."""

    start: str
    end: str
    delays: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        """Nanoseconds."""
        return sum(delay for _, delay in self.delays)


def paths(report: Mapping, names: Mapping[str, str]) -> list[Path]:
    """Critical paths of nextpnr's report; ``names`` as of :func:`clock_names`."""
    found = []
    for path in report["critical_paths"]:
        delays = []
        for step in path["path"]:
            place = step["to"]["cell"]
            if step["type"] == "routing":
                place = f"net {step['net']}"
            delays.append((place, step["delay"]))
        ends = []
        for end in ("from", "to"):
            edge, _, net = path[end].partition(" ")  # net is empty at a pin, which is <async>
            net = net.removeprefix(GLOBAL)
            ends.append(f"{edge} {names.get(net, net)}".rstrip())
        found.append(Path(*ends, tuple(delays)))
    return found


def crossing_limit(clocks: set[str], clock_hz: float) -> float | None:
    """Nanoseconds that a path between two clocks may take; None when nothing limits it.

    Edges of the SDRAM's clock, which is twice as fast, are those of the bus clock and halfway
    between them.
    """
    return 1e9 / (2 * clock_hz) if clocks == {"sys_clk", "sys2x_clk"} else None


def make(module: Mapping, routed: Mapping, *, clock_hz: float) -> dict:
    """Return the report: what is used, how fast it is, and what is too slow.

    Parameters
    ----------
    module
        the netlist, as yosys writes it to JSON
    routed
        report of nextpnr
    clock_hz
        of the bus

    """
    blocks = utilisation((name, cell["type"]) for name, cell in module["cells"].items())
    total = {column: sum(used[column] for used in blocks.values()) for column in COLUMNS}
    missed = []
    names = clock_names(module)
    reached, slowest = domains(routed, names), paths(routed, names)
    if "sys_clk" not in [domain.name for domain in reached if domain.needed >= clock_hz / 1e6]:
        missed.append("sys_clk has not been held to its frequency")
    missed += [
        f"{domain.name} reaches {domain.reached:.1f} MHz of {domain.needed:.1f}"
        for domain in reached
        if not domain.met
    ]
    for path in slowest:
        limit = crossing_limit({path.start.split()[-1], path.end.split()[-1]}, clock_hz)
        if limit is not None and path.total > limit:
            missed.append(f"{path.start} to {path.end} takes {path.total:.1f} ns of {limit:.1f}")
    return {
        "timing_met": not missed,
        "missed": missed,
        "clocks": [dataclasses.asdict(domain) for domain in reached],
        "critical_paths": [
            {"ns": round(path.total, 2), **dataclasses.asdict(path)} for path in slowest
        ],
        "used": total,
        "device": DEVICE,
        "blocks": blocks,
    }


def markdown(found: Mapping) -> str:
    """Return the report as text."""
    lines = [f"# {found['config']} on ULX3S-85F", ""]
    state = "met" if found["timing_met"] else f"**not met**: {'; '.join(found['missed'])}"
    tools = ", ".join(f"{tool} {version}" for tool, version in found["tools"].items())
    lines += [f"Timing is {state}. Seed {found['seed']}, moska {found['moska']}, {tools}.", ""]
    lines += ["| clock | reached, MHz | needed, MHz |", "|---|---:|---:|"]
    for clock in found["clocks"]:
        lines.append(f"| {clock['name']} | {clock['reached']:.1f} | {clock['needed']:.1f} |")
    lines += ["", f"| block | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    rows = {**found["blocks"], "all": found["used"], "LFE5U-85F": found["device"]}
    for name, used in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{used[column]:,}' for column in COLUMNS)} |")
    share = (f"{100 * found['used'][name] / found['device'][name]:.0f} %" for name in COLUMNS)
    lines.append(f"| share | {' | '.join(share)} |")
    lines += [
        "",
        "LUT: positions of a LUT4; a carry cell takes two, a 16x4 RAM six. DSP: MULT18X18D. RAM:",
        "DP16KD. A cell counts to the block of the signal that yosys names it after.",
    ]
    for path in found["critical_paths"]:
        lines += ["", f"## {path['start']} to {path['end']}: {path['ns']:.2f} ns", ""]
        lines += ["| ns | to |", "|---:|---|"]
        lines += [f"| {delay:.2f} | `{place}` |" for place, delay in path["delays"]]
    lines += ["", "| step | seconds | of a processor |", "|---|---:|---:|"]
    lines += [
        f"| {step} | {taken['elapsed']:.0f} | {taken['processor']:.0f} |"
        for step, taken in found["seconds"].items()
    ]
    return "\n".join(lines) + "\n"
