"""The SoC of a board: the unit, its SDRAM and the link to the host on one bus, without a CPU."""

import contextlib
import copy
import logging
import pathlib
import re
from typing import ClassVar

from litedram.common import LiteDRAMNativePort
from litedram.frontend.axi import LiteDRAMAXI2Native
from litedram.init import get_sdram_phy_py_header
from litedram.modules import MT48LC16M16
from litedram.phy import HalfRateGENSDRPHY, dfi
from litedram.phy.model import SDRAMPHYModel
from litex.build.generic_platform import GenericPlatform, Pins, Subsignal
from litex.build.io import DDROutput
from litex.gen import LiteXModule
from litex.soc.cores.clock import ECP5PLL
from litex.soc.cores.uart import RS232PHY
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import stream, wishbone
from litex.soc.interconnect.axi import AXIInterface, AXILiteInterface
from litex.soc.interconnect.csr import CSRStatus, CSRStorage
from litex_boards.platforms import radiona_ulx3s
from migen import ClockDomain, ClockSignal, Instance, Record, ResetSignal, Signal
from migen.genlib.record import DIR_M_TO_S

from moska.fpga import link, map, quiesce
from moska.gen import emit
from moska.gen.config import Config
from moska.gen.readable import hide_zeros, plain_names

NAME = "ulx3s"  # of the Verilog module
CLOCK_HZ = 50_000_000
BAUDRATE = 3_000_000
SDRAM_RATE = "1:2"  # clock of bus and unit to clock of the SDRAM
SDRAM_PADS = [("a", 13), ("ba", 2), ("dq", 16), ("dm", 2)]
SDRAM_PADS += [(name, 1) for name in ("ras_n", "cas_n", "we_n", "cs_n", "cke")]
BYTES = [("valid", 1), ("ready", 1), ("data", 8)]  # a byte stream
MEMORY_WIDTH = 64  # bits of the unit's port
READ_ID_WIDTH = 2

READ_CHANNELS = {
    "ar": "id addr len size burst cache prot valid",
    "r": "id data resp last valid",
}
WRITE_CHANNELS = {
    "aw": "id addr len size burst cache prot valid",
    "w": "data strb last valid",
    "b": "id resp valid",
}
LITE_CHANNELS = {
    "aw": "addr prot valid",
    "w": "data strb valid",
    "b": "resp valid",
    "ar": "addr prot valid",
    "r": "data resp valid",
}
ANSWERS = ("r", "b")  # channels from subordinate to manager
WISHBONE = [("o", name) for name in ("adr", "dat_w", "sel", "cyc", "stb", "we")]
WISHBONE += [("i", name) for name in ("dat_r", "ack", "err")]


def axi_ports(prefix, axi, channels, *, manager):
    """Ports of an instance that connect its AXI bus, ``prefix``, to ``axi``.

    ``manager``: whether the instance is.
    """
    ports = {}
    for channel, names in channels.items():
        out = manager != (channel in ANSWERS)
        endpoint = getattr(axi, channel)
        for name in names.split():
            ports[f"{'o' if out else 'i'}_{prefix}_{channel}{name}"] = getattr(endpoint, name)
        ports[f"{'i' if out else 'o'}_{prefix}_{channel}ready"] = endpoint.ready
    return ports


class Clocks(LiteXModule):
    """Clock of bus and unit, and twice that for the SDRAM, of the board's 25 MHz."""

    def __init__(self, platform, clock_hz):
        self.cd_sys = ClockDomain()
        # What runs at 100 MHz falls into step without a reset, which would have to be fast too.
        self.cd_sys2x = ClockDomain(reset_less=True)
        self.cd_sys2x_ps = ClockDomain(reset_less=True)
        self.pll = pll = ECP5PLL()
        self.comb += pll.reset.eq(platform.request("user_btn", 1))
        pll.register_clkin(platform.request("clk25"), 25e6)
        pll.create_clkout(self.cd_sys, clock_hz)
        pll.create_clkout(self.cd_sys2x, 2 * clock_hz, with_reset=False)
        # Half a period late: the SDRAM samples what the pins have held for half of one.
        pll.create_clkout(self.cd_sys2x_ps, 2 * clock_hz, phase=180, with_reset=False)
        self.specials += DDROutput(1, 0, platform.request("sdram_clock"), ClockSignal("sys2x_ps"))


class SimulatedClock(LiteXModule):
    """Clock and reset from ports."""

    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


class Board(LiteXModule):
    """Registers of the board (:data:`moska.fpga.map.BOARD`)."""

    def __init__(self, config, *, clock_hz, memory_bytes, resetting, interrupt):
        self.magic = CSRStatus(32, reset=map.MAGIC)
        self.map_version = CSRStatus(32, reset=map.MAP_VERSION)
        self.config_hash = CSRStatus(32, reset=map.config_hash(config.parameters()))
        self.clock_hz = CSRStatus(32, reset=int(clock_hz))
        self.memory_bytes = CSRStatus(32, reset=memory_bytes)
        self.reset = CSRStorage(1)
        self.status = CSRStatus(2)
        self.sdram_ready = CSRStorage(1)
        self.reset_request = Signal()
        self.comb += [
            self.reset_request.eq(self.reset.re & self.reset.storage),
            self.status.status[0].eq(resetting),
            self.status.status[1].eq(interrupt),
        ]


class RegisteredPHY(LiteXModule):
    """A PHY with registers before it and behind it.

    Between the controller's registers and those of the PHY, which run at twice their clock, lies
    half a cycle. Without these, memories and multiplexers would have to fit into it.
    """

    def __init__(self, phy):
        self.settings = copy.copy(phy.settings)
        self.settings.read_latency += 2
        first = phy.dfi.phases[0]
        self.dfi = dfi.Interface(
            addressbits=len(first.address),
            bankbits=len(first.bank),
            nranks=len(first.cs_n),
            databits=len(first.wrdata),
            nphases=len(phy.dfi.phases),
        )
        for ours, theirs in zip(self.dfi.phases, phy.dfi.phases, strict=True):
            for name, _, direction in ours.layout:
                ends = [getattr(theirs, name), getattr(ours, name)]
                target, value = ends if direction == DIR_M_TO_S else reversed(ends)
                self.sync += target.eq(value)


class Narrow(LiteXModule):
    """A memory port twice as wide as the SDRAM controller's, which gets two commands for one.

    LiteDRAM's own converter spends a cycle between commands, a third of the bandwidth.
    """

    def __init__(self, wide, narrow):
        second = Signal()
        self.cmd = stream.Buffer(wide.cmd.description, pipe_valid=True, pipe_ready=True)
        command = self.cmd.source
        self.comb += [
            wide.cmd.connect(self.cmd.sink),
            narrow.cmd.valid.eq(command.valid),
            narrow.cmd.we.eq(command.we),
            narrow.cmd.addr[0].eq(second),
            narrow.cmd.addr[1:].eq(command.addr),
            command.ready.eq(narrow.cmd.ready & second),
        ]
        self.sync += second.eq(second ^ (narrow.cmd.valid & narrow.cmd.ready))
        self.write = stream.StrideConverter(wide.wdata.description, narrow.wdata.description)
        self.read = stream.StrideConverter(narrow.rdata.description, wide.rdata.description)
        self.submodules += [
            stream.Pipeline(wide.wdata, self.write, narrow.wdata),
            stream.Pipeline(narrow.rdata, self.read, wide.rdata),
        ]


class AXISlice(LiteXModule):
    """Registers between two AXI buses, so that no path goes through from one to the other."""

    def __init__(self, manager, subordinate):
        for channel in (*READ_CHANNELS, *WRITE_CHANNELS):
            ends = [getattr(manager, channel), getattr(subordinate, channel)]
            sink, source = reversed(ends) if channel in ANSWERS else ends
            buffer = stream.Buffer(sink.description, pipe_valid=True, pipe_ready=True)
            self.add_module(channel, buffer)
            self.comb += [sink.connect(buffer.sink), buffer.source.connect(source)]


def check_port(config, width):
    """Raise ``ValueError`` when the unit's memory port is another one than the board's."""
    if config.bus_width != width or config.read_ports != 1:
        raise ValueError(
            f"config must have 1 read port of {width} bits on this board, not "
            f"{config.read_ports} of {config.bus_width}"
        )


def unit_instance(registers, memory, *, reset, interrupt):
    """Return the unit, in the clock domain of the bus, with its buses."""
    return Instance(
        emit.TOP,
        name=emit.TOP,
        i_aclk=ClockSignal(),
        i_aresetn=~reset,
        o_interrupt=interrupt,
        **axi_ports("s_axil", registers, LITE_CHANNELS, manager=False),
        **axi_ports("m_axi", memory, READ_CHANNELS | WRITE_CHANNELS, manager=True),
    )


class SoC(SoCCore):
    """Unit, SDRAM, link and the board's registers.

    Parameters
    ----------
    config : Config
        of the unit: one read port of 64 bits
    simulated : bool
        a model of the SDRAM, and the link's bytes at ports ``rx_*`` and ``tx_*`` instead of a
        UART; ports ``clk`` and ``rst``
    clock_hz : int
        clock of bus and unit

    """

    mem_map: ClassVar = {"main_ram": map.MEMORY_BASE, "csr": map.CSR_BASE}

    def __init__(self, config: Config, *, simulated: bool, clock_hz: int = CLOCK_HZ):
        check_port(config, MEMORY_WIDTH)
        if simulated:
            ports = [(name, 0, Pins(1)) for name in ("clk", "rst")]
            for name in ("rx", "tx"):
                signals = [Subsignal(signal, Pins(width)) for signal, width in BYTES]
                ports.append((name, 0, *signals))
            platform = GenericPlatform("simulation", ports)
            clocks = SimulatedClock(platform)
        else:
            platform = radiona_ulx3s.Platform(device="LFE5U-85F", revision="2.0")
            clocks = Clocks(platform, clock_hz)
        super().__init__(
            platform,
            clock_hz,
            cpu_type=None,
            bus_timeout=None,  # the link has one, and does not take silence for data
            integrated_sram_size=0,
            with_uart=False,
            with_timer=False,
            with_ctrl=False,
        )
        self.crg = clocks
        self.sources: dict[str, str] = {}  # file name -> Verilog
        interrupt, resetting = Signal(), Signal()

        self.add_memory(simulated)
        self.board = Board(
            config,
            clock_hz=clock_hz,
            memory_bytes=self.bus.regions["main_ram"].size,
            resetting=resetting,
            interrupt=interrupt,
        )
        self.csr.add("board", n=0)
        self.add_unit(config, resetting, interrupt)
        self.add_link(simulated, interrupt)

        if not simulated:
            # Without this the ESP32 module resets the FPGA.
            self.comb += platform.request("wifi_gpio0").eq(1)
            leds = [self.board.sdram_ready.storage, interrupt, resetting]
            self.comb += [platform.request("user_led", i).eq(led) for i, led in enumerate(leds)]

    def add_memory(self, simulated):
        """Add controller and PHY of the SDRAM, with their registers."""
        self.csr.add("sdram", n=1)
        module = MT48LC16M16(self.sys_clk_freq, SDRAM_RATE)
        pads = Record(SDRAM_PADS) if simulated else self.platform.request("sdram")
        phy = HalfRateGENSDRPHY(pads, self.sys_clk_freq)
        check_sdram_init(phy.settings, module.timing_settings)
        # The model gets the settings of the PHY that it stands for.
        self.sdrphy = SDRAMPHYModel(module, phy.settings) if simulated else phy
        self.registered_phy = RegisteredPHY(self.sdrphy)
        self.add_sdram(
            "sdram", phy=self.registered_phy, module=module, origin=map.MEMORY_BASE, l2_cache_size=0
        )

    def add_unit(self, config, resetting, interrupt):
        """Add the unit, with the gate that a reset goes through."""
        self.sources["moska.v"] = hide_zeros(plain_names(emit.convert_unit(config)))
        self.sources["quiesce.v"] = quiesce.verilog(
            data_width=MEMORY_WIDTH, id_width=READ_ID_WIDTH
        )
        registers = AXILiteInterface(data_width=32, address_width=32)
        asked = AXIInterface(data_width=MEMORY_WIDTH, address_width=64, id_width=READ_ID_WIDTH)
        gated, sliced = (
            AXIInterface(data_width=MEMORY_WIDTH, address_width=32, id_width=READ_ID_WIDTH)
            for _ in range(2)
        )
        channels = READ_CHANNELS | WRITE_CHANNELS
        reset = Signal()
        self.specials += [
            unit_instance(registers, asked, reset=ResetSignal() | reset, interrupt=interrupt),
            Instance(
                quiesce.NAME,
                name=quiesce.NAME,
                i_clk=ClockSignal(),
                i_rst=ResetSignal(),
                i_request=self.board.reset_request,
                o_busy=resetting,
                o_reset=reset,
                **axi_ports("s_axi", asked, channels, manager=False),
                **axi_ports("m_axi", gated, channels, manager=True),
            ),
        ]
        self.bus.add_slave(
            "unit", registers, SoCRegion(origin=map.UNIT_BASE, size=map.UNIT_BYTES, cached=False)
        )
        port = self.sdram.crossbar.get_port()
        wide = LiteDRAMNativePort(port.mode, port.address_width - 1, MEMORY_WIDTH)
        self.narrow = Narrow(wide, port)
        self.slice = AXISlice(gated, sliced)
        self.memory_port = LiteDRAMAXI2Native(sliced, wide, base_address=map.MEMORY_BASE)

    def add_link(self, simulated, interrupt):
        """Add the link as the only master of the bus."""
        gap = link.SIMULATED_GAP_CYCLES if simulated else link.GAP_CYCLES
        self.sources["link.v"] = link.verilog(gap_cycles=gap)
        bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        signals = {f"{way}_wb_{name}": getattr(bus, name) for way, name in WISHBONE}
        if simulated:
            rx, tx = self.platform.request("rx"), self.platform.request("tx")
        else:
            phy = RS232PHY(self.platform.request("serial"), self.sys_clk_freq, BAUDRATE)
            self.phy = phy
            rx, tx = phy.source, phy.sink
        self.specials += Instance(
            link.NAME,
            name=link.NAME,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            i_rx_valid=rx.valid,
            o_rx_ready=rx.ready,
            i_rx_data=rx.data,
            o_tx_valid=tx.valid,
            i_tx_ready=tx.ready,
            o_tx_data=tx.data,
            i_interrupt=interrupt,
            **signals,
        )
        self.bus.add_master("link", bus)


def check_sdram_init(phy_settings, timing_settings):
    """Raise ``RuntimeError`` when LiteDRAM initialises the SDRAM in another way than the map."""
    header = {}
    exec(get_sdram_phy_py_header(phy_settings, timing_settings), header)
    steps = tuple(
        (command, address, bank, wait)
        for _, address, bank, command, wait in header["init_sequence"]
    )
    if steps != tuple(step[1:] for step in map.SDRAM_INIT):
        raise RuntimeError(f"SDRAM_INIT of the map must be as LiteDRAM's: {steps}")


def check_map(soc: SoC):
    """Raise ``RuntimeError`` when LiteX has put something elsewhere than the map says."""
    found = {name: region.origin for name, region in soc.bus.regions.items()}
    known = {"main_ram": map.MEMORY_BASE, "unit": map.UNIT_BASE, "csr": map.CSR_BASE}
    for name, registers, prefix in (("board", map.BOARD, ""), ("sdram", map.SDRAM, "dfii_")):
        address = soc.csr.regions[name].origin
        for csr in soc.csr.regions[name].obj:
            found[f"{name}.{csr.name}"] = address
            address += map.WORD * -(-csr.size // (8 * map.WORD))
        for register, address in registers.items():
            phase = "" if register == "control" or not prefix else "pi0_"
            known[f"{name}.{prefix}{phase}{register}"] = address
    for name, address in known.items():
        if found[name] != address:
            raise RuntimeError(f"{name} must be at 0x{address:x}, not at 0x{found[name]:x}")


@contextlib.contextmanager
def quiet():
    """Keep LiteX's account of what it does out of the output."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# Dates and versions, and a tree of the design, in the comments of LiteX.
COMMENTS = re.compile(r"^//[^\n]*\n|/\*.*?\*/", re.M | re.S)


def write(
    config: Config, out_dir: pathlib.Path, *, simulated: bool, clock_hz: int = CLOCK_HZ
) -> list[pathlib.Path]:
    """Write the Verilog of a SoC into ``out_dir``, and for a board its pins, ``ulx3s.lpf``.

    The top module is ``ulx3s``, in ``ulx3s.v``. The bytes depend on the arguments only.

    Returns
    -------
    list of Path
        the Verilog files

    """
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with quiet():
        soc = SoC(config, simulated=simulated, clock_hz=clock_hz)
        soc.finalize()
        check_map(soc)
        if simulated:
            fragment = soc.get_fragment()
            soc.platform.finalize(fragment)
            soc.platform.get_verilog(fragment, name=NAME).write(str(out_dir / f"{NAME}.v"))
        else:
            soc.platform.build(soc, build_dir=str(out_dir), build_name=NAME, run=False)
    top = out_dir / f"{NAME}.v"
    top.write_text(COMMENTS.sub("", top.read_text()).lstrip())
    for name, text in soc.sources.items():
        (out_dir / name).write_text(text)
    return [top, *(out_dir / name for name in soc.sources)]
