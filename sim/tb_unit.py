"""cocotb test bench of the whole unit: runs the jobs of a file, stores what came back."""

import itertools
import os
import pathlib
import pickle
import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from moska.golden.formats import ALIGN
from moska.host import regmap

CLOCK_NS = 2
COUNTERS = (
    "CYCLES", "SCORE_ACTIVE", "STALL_LOAD", "STALL_MEMORY", "STALL_QUERY", "STALL_SOFTMAX",
    "STALL_SELECT", "STALL_DRAIN", "STALL_FINISH", "VALUE_ACTIVE", "READ_BEATS", "WRITE_BEATS",
    "CHUNKS_READ", "CHUNKS_SKIPPED",
)


def pauses(rng, probability):
    """Endless random pauses of a channel."""
    while True:
        yield rng.random() < probability


@cocotb.test()
async def jobs(dut):
    """Run every job of ``MOSKA_JOBS``; write results to ``MOSKA_RESULTS``."""
    plan = pickle.loads(pathlib.Path(os.environ["MOSKA_JOBS"]).read_bytes())
    options = plan["options"]
    rng = random.Random(options["seed"])

    cocotb.start_soon(Clock(dut.aclk, CLOCK_NS, unit="ns").start())
    dut.aresetn.value = 0
    ram = AxiRam(
        AxiBus.from_prefix(dut, "m_axi"), dut.aclk, dut.aresetn, reset_active_level=False,
        size=options["memory_bytes"],
    )
    registers = AxiLiteMaster(
        AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, dut.aresetn, reset_active_level=False
    )
    channels = (
        ram.read_if.ar_channel, ram.read_if.r_channel, ram.write_if.aw_channel,
        ram.write_if.w_channel, ram.write_if.b_channel,
    )
    if options["stall"]:
        for channel in channels:
            channel.set_pause_generator(pauses(random.Random(rng.random()), options["stall"]))
    if options["beat_interval"] > 1:
        for channel in (ram.read_if.r_channel, ram.write_if.w_channel):
            channel.set_pause_generator(
                itertools.cycle([False] + [True] * (options["beat_interval"] - 1))
            )

    async def reset():
        dut.aresetn.value = 0
        await ClockCycles(dut.aclk, options["reset_cycles"])
        dut.aresetn.value = 1
        await ClockCycles(dut.aclk, 2)

    async def read(name):
        return await registers.read_dword(getattr(regmap, name))

    await reset()
    outcomes = []
    for job in plan["jobs"]:
        for address, raw in job["segments"]:
            ram.write(address, raw)
        await registers.write_dword(regmap.DESCRIPTOR_LO, job["descriptor"] & 0xFFFFFFFF)
        await registers.write_dword(regmap.DESCRIPTOR_HI, job["descriptor"] >> 32)
        await registers.write_dword(regmap.CONTROL, 0b11)
        limit = job.get("reset_after") or options["max_cycles"]
        done = RisingEdge(dut.interrupt)
        first = await First(done, ClockCycles(dut.aclk, limit))
        if first is not done:
            assert job.get("reset_after"), f"no interrupt within {limit} cycles"
            await reset()
            outcomes.append(None)
            continue
        outcome = {
            "status": await read("STATUS"),
            "counters": {name.lower(): await read(name) for name in COUNTERS},
            "error_address": await read("ERROR_ADDRESS_LO")
            | (await read("ERROR_ADDRESS_HI")) << 32,
            "memory": {
                name: bytes(ram.read(address, -(-size // ALIGN) * ALIGN + ALIGN))
                for name, (address, size) in job["results"].items()
            },
        }
        await registers.write_dword(regmap.STATUS, 0b110)
        outcomes.append(outcome)
    pathlib.Path(os.environ["MOSKA_RESULTS"]).write_bytes(pickle.dumps(outcomes))
