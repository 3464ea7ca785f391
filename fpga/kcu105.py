"""Project of a PCIe board, the Xilinx KCU105, for Vivado.

Unit, DDR4 memory and PCIe on one LiteX SoC. Neither Vivado nor the board has been tried.

    python -m moska.fpga.kcu105 OUT_DIR
"""

import pathlib
import sys
from typing import ClassVar

from litedram.frontend.axi import LiteDRAMAXI2Native
from litedram.frontend.dma import LiteDRAMDMAReader, LiteDRAMDMAWriter
from litedram.modules import EDY4016A
from litedram.phy.usddrphy import USDDRPHY
from litepcie.phy.uspciephy import USPCIEPHY
from litex.gen import LiteXModule
from litex.soc.cores.clock import USIDELAYCTRL, USMMCM
from litex.soc.integration.export import get_csr_csv
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect.axi import AXIInterface, AXILiteInterface
from litex_boards.platforms import xilinx_kcu105
from migen import ClockDomain, Instance, ResetSignal, Signal

from moska.fpga.soc import READ_ID_WIDTH, AXISlice, check_port, quiet, unit_instance
from moska.gen.config import Config
from moska.gen.design import Design
from moska.gen.package import verilog

NAME = "kcu105"
CONFIG = pathlib.Path(__file__).with_name(f"{NAME}.toml")
CLOCK_HZ = 125_000_000
MEMORY_BASE = 0x4000_0000
MEMORY_BYTES = 0x4000_0000
MEMORY_WIDTH = 512  # bits of the unit's port: DDR4 of 64 bits at four times the clock
CSR_BASE = 0xF000_0000
UNIT_BASE = 0xF001_0000  # in the window that PCIe sees, behind the CSRs
UNIT_BYTES = 0x1000
WINDOW_BYTES = 0x2_0000  # BAR 0, from CSR_BASE on
PCIE_WIDTH = 128


class Clocks(LiteXModule):
    """Clock of bus and unit, four times that for the memory, and 200 MHz for its delay lines."""

    def __init__(self, platform, clock_hz):
        self.cd_sys = ClockDomain()
        self.cd_sys4x = ClockDomain()
        self.cd_pll4x = ClockDomain()
        self.cd_idelay = ClockDomain()
        self.pll = pll = USMMCM(speedgrade=-2)
        self.comb += pll.reset.eq(platform.request("cpu_reset"))
        pll.register_clkin(platform.request("clk125"), 125e6)
        pll.create_clkout(self.cd_pll4x, 4 * clock_hz, buf=None, with_reset=False)
        pll.create_clkout(self.cd_idelay, 200e6)
        platform.add_false_path_constraints(self.cd_sys.clk, pll.clkin)
        # Dividers of one clock keep both in phase.
        self.specials += [
            Instance(
                "BUFGCE_DIV", p_BUFGCE_DIVIDE=4, i_CE=1, i_I=self.cd_pll4x.clk, o_O=self.cd_sys.clk
            ),
            Instance("BUFGCE", i_CE=1, i_I=self.cd_pll4x.clk, o_O=self.cd_sys4x.clk),
        ]
        self.idelayctrl = USIDELAYCTRL(cd_ref=self.cd_idelay, cd_sys=self.cd_sys)


class SoC(SoCCore):
    """Unit, DDR4 and PCIe.

    The host sees the CSRs and the unit's registers in BAR 0, and moves data between its memory and
    the DDR4 with LitePCIe's DMA: `to_memory` and `from_memory` say where. The unit's interrupt is
    an MSI. A processor trains the DDR4 with LiteX's BIOS when the board starts.

    Parameters
    ----------
    config : Config
        of the unit: one read port of 512 bits
    clock_hz : int
        clock of bus and unit

    """

    mem_map: ClassVar = {**SoCCore.mem_map, "main_ram": MEMORY_BASE, "csr": CSR_BASE}

    def __init__(self, config: Config, *, clock_hz: int = CLOCK_HZ):
        check_port(config, MEMORY_WIDTH)
        platform = xilinx_kcu105.Platform()
        super().__init__(
            platform,
            clock_hz,
            cpu_type="vexriscv",
            cpu_variant="lite",
            integrated_rom_size=0x1_0000,
            integrated_sram_size=0x2000,
            ident=f"moska {config.name}",
            ident_version=False,
        )
        self.crg = Clocks(platform, clock_hz)
        self.ddrphy = USDDRPHY(
            platform.request("ddram"), memtype="DDR4", sys_clk_freq=clock_hz, iodelay_clk_freq=200e6
        )
        self.add_sdram(
            "sdram",
            phy=self.ddrphy,
            module=EDY4016A(clock_hz, "1:4"),
            size=MEMORY_BYTES,
            l2_cache_size=0,  # host and unit see the same memory
        )
        interrupt = Signal()
        self.add_unit(config, interrupt)
        self.add_host(platform, interrupt)

    def add_unit(self, config, interrupt):
        """Add the unit between bus and memory."""
        self.sources = {"moska.v": verilog(Design(config))}
        registers = AXILiteInterface(data_width=32, address_width=32)
        asked = AXIInterface(data_width=MEMORY_WIDTH, address_width=64, id_width=READ_ID_WIDTH)
        sliced = AXIInterface(data_width=MEMORY_WIDTH, address_width=32, id_width=READ_ID_WIDTH)
        self.specials += unit_instance(
            registers, asked, reset=ResetSignal(), interrupt=interrupt
        )
        self.bus.add_slave(
            "unit", registers, SoCRegion(origin=UNIT_BASE, size=UNIT_BYTES, cached=False)
        )
        self.slice = AXISlice(asked, sliced)
        port = self.sdram.crossbar.get_port(data_width=MEMORY_WIDTH)
        self.memory_port = LiteDRAMAXI2Native(sliced, port, base_address=MEMORY_BASE)

    def add_host(self, platform, interrupt):
        """Add PCIe: registers, data in both directions, interrupt."""
        self.pcie_phy = USPCIEPHY(
            platform,
            platform.request("pcie_x4"),
            data_width=PCIE_WIDTH,
            bar0_size=WINDOW_BYTES,
        )
        self.add_pcie(
            phy=self.pcie_phy, ndmas=1, with_dma_loopback=False, msis={"UNIT": interrupt}
        )
        crossbar = self.sdram.crossbar
        self.to_memory = LiteDRAMDMAWriter(
            crossbar.get_port(mode="write", data_width=PCIE_WIDTH), with_csr=True
        )
        self.from_memory = LiteDRAMDMAReader(
            crossbar.get_port(mode="read", data_width=PCIE_WIDTH), with_csr=True
        )
        self.comb += [
            self.pcie_dma0.source.connect(self.to_memory.sink),
            self.from_memory.source.connect(self.pcie_dma0.sink),
        ]


def write(
    config: Config, out_dir: pathlib.Path, *, clock_hz: int = CLOCK_HZ
) -> list[pathlib.Path]:
    """Write the project into ``out_dir``.

    The ROM of the processor is left empty.

    Returns
    -------
    list of Path
        Verilog of SoC and unit, ``kcu105.xdc`` with pins and clocks, ``kcu105.tcl`` that Vivado
        builds the bitstream with, ``csr.csv`` with the addresses of the registers

    """
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with quiet():
        soc = SoC(config, clock_hz=clock_hz)
        for name, text in soc.sources.items():
            (out_dir / name).write_text(text)
            soc.platform.add_source(str(out_dir / name))
        soc.finalize()
        soc.platform.build(soc, build_dir=str(out_dir), build_name=NAME, run=False)
    registers = get_csr_csv(soc.csr.regions, soc.constants, soc.bus.regions)
    (out_dir / "csr.csv").write_text(registers)
    names = (f"{NAME}.v", *soc.sources, f"{NAME}.xdc", f"{NAME}.tcl", "csr.csv")
    return [out_dir / name for name in names]


def main(out_dir: str) -> None:
    """Write the project of the board's configuration and list its files."""
    for path in write(Config.load(CONFIG), pathlib.Path(out_dir)):
        print(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
