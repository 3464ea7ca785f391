"""The unit as IP of Vivado, and as a user-managed kernel of Vitis."""

from moska.gen.design import Design
from moska.gen.emit import TOP
from moska.gen.ports import instance
from moska.hw.memory.axi import MAX_BEATS, PAGE_BYTES

KERNEL = f"{TOP}_kernel"
# Beginnings of names of the unit's ports, and of the kernel's; the first that fits counts.
KERNEL_NAMES = {
    "aclk": "ap_clk",
    "aresetn": "ap_rst_n",
    "s_axil": "s_axi_control",
    "m_axi_v": "m_axi_gmem1",
    "m_axi": "m_axi_gmem0",
}
# Registers of 64-bit addresses, by their lower half, that tell which memory a master reaches.
ARGUMENTS = {"m_axi": ("ring_lo", "completion_lo"), "m_axi_v": ("read_base_lo",)}
BANKS = {"m_axi": "HBM[0:15]", "m_axi_v": "HBM[16:31]"}


def kernel_name(port: str) -> str:
    """Name that a port or a bus of the unit has on the kernel."""
    for ours, theirs in KERNEL_NAMES.items():
        if port.startswith(ours):
            return theirs + port.removeprefix(ours)
    return port


def kernel(design: Design) -> str:
    """Verilog of the kernel: the unit under other names of ports."""
    declared = ",\n".join(
        f"  {port.way:6} wire {port.range}{kernel_name(port.name)}" for port in design.ports
    )
    connected = [(port.name, kernel_name(port.name)) for port in design.ports]
    return design.fill(
        "moska_kernel.v", ports=declared, instance=instance(TOP, "unit", connected)
    )


def package_ip(design: Design) -> str:
    """Script that packages the unit as IP."""
    return design.fill(
        "package_ip.tcl", masters=" ".join(design.masters), max_beats=_max_beats(design)
    )


def package_kernel(design: Design) -> str:
    """Script that packages the kernel."""
    arguments = (
        f"  {name.removesuffix('_lo')} 0x{design.registers[name].offset:02X} {kernel_name(bus)}"
        for bus in design.masters
        for name in ARGUMENTS[bus]
    )
    return design.fill(
        "package_kernel.tcl",
        masters=" ".join(map(kernel_name, design.masters)),
        max_beats=_max_beats(design),
        arguments="\n".join(arguments),
    )


def link(design: Design) -> str:
    """Connect the kernel's masters to memory: settings of v++."""
    connections = (
        f"sp={TOP}.{name.removesuffix('_lo')}:{BANKS[bus]}"
        for bus in design.masters
        for name in ARGUMENTS[bus]
    )
    return design.fill("link.cfg", connections="\n".join(connections))


def _max_beats(design: Design) -> int:
    return min(MAX_BEATS, PAGE_BYTES // design.config.bus_bytes)
