"""Addresses and constants of the SoC that the host knows too: plain numbers, no LiteX.

:mod:`moska.fpga.soc` refuses to build a SoC that differs from this page.
"""

import hashlib
import json
from collections.abc import Mapping

MAGIC = 0x4D4F_534B  # "MOSK"
MAP_VERSION = 1

MEMORY_BASE = 0x4000_0000  # SDRAM; the unit sees it at the same addresses
UNIT_BASE = 0x8000_0000  # registers of the unit (hw/regs.rdl)
UNIT_BYTES = 0x1000
WORD = 4  # bytes of a register
CSR_BASE = 0xF000_0000
# An access elsewhere is never answered: the link's time limit ends it.

# Registers, in this order.
BOARD_BASE = CSR_BASE
BOARD = {
    name: BOARD_BASE + WORD * place
    for place, name in enumerate(
        (
            "magic",  # MAGIC
            "map_version",  # MAP_VERSION
            "config_hash",  # config_hash of the unit's parameters
            "clock_hz",  # clock of bus and unit
            "memory_bytes",
            "reset",  # write 1: reset the unit, when memory has answered all that it asked for
            "status",  # STATUS_*
            "sdram_ready",  # the host sets bit 0 when it has initialised the SDRAM
        )
    )
}
STATUS_RESETTING = 1 << 0  # a reset of the unit is under way
STATUS_INTERRUPT = 1 << 1  # level of the unit's interrupt

# Registers of LiteDRAM's DFI injector that initialisation needs.
SDRAM_BASE = CSR_BASE + 0x800
SDRAM = {
    "control": SDRAM_BASE,
    "command": SDRAM_BASE + 0x4,
    "command_issue": SDRAM_BASE + 0x8,
    "address": SDRAM_BASE + 0xC,
    "baddress": SDRAM_BASE + 0x10,
}
CONTROL_HARDWARE = 0x1  # the controller drives the SDRAM
CONTROL_SOFTWARE = 0xE  # these registers do: CKE, ODT and reset inactive
COMMAND_REFRESH = 0xD
COMMAND_MODE = 0xF
COMMAND_PRECHARGE = 0xB

# Commands that initialise the SDRAM, in this order: register that is written (control, or command
# and then command_issue), its value, address and bank that are written before, and microseconds
# to wait afterwards. Control goes to CONTROL_HARDWARE at the end.
SDRAM_INIT = (
    ("control", CONTROL_SOFTWARE, 0x000, 0, 20_000),
    ("command", COMMAND_PRECHARGE, 0x400, 0, 0),
    ("command", COMMAND_MODE, 0x121, 0, 200),
    ("command", COMMAND_PRECHARGE, 0x400, 0, 0),
    ("command", COMMAND_REFRESH, 0x000, 0, 4),
    ("command", COMMAND_REFRESH, 0x000, 0, 4),
    ("command", COMMAND_MODE, 0x021, 0, 200),
)


def config_hash(parameters: Mapping[str, object]) -> int:
    """32 bits that stand for a configuration: of SHA-256 of its parameters as JSON."""
    text = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
