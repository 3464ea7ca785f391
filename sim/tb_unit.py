"""cocotb test bench of the whole unit: runs the jobs of a file, stores what came back."""

import itertools
import os
import pathlib
import pickle
import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam, AxiRamRead, AxiReadBus

from moska.golden.formats import ALIGN
from moska.golden.layout import COMPLETION_BYTES, DESCRIPTOR_BYTES, padded_size, unpack_completion
from moska.host import regmap

CLOCK_NS = 2


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
    channels = [
        ram.read_if.ar_channel, ram.read_if.r_channel, ram.write_if.aw_channel,
        ram.write_if.w_channel, ram.write_if.b_channel,
    ]
    slow = [ram.read_if.r_channel, ram.write_if.w_channel]
    if hasattr(dut, "m_axi_v_araddr"):
        values = AxiRamRead(
            AxiReadBus.from_prefix(dut, "m_axi_v"), dut.aclk, dut.aresetn,
            reset_active_level=False, mem=ram.mem,
        )
        channels += [values.ar_channel, values.r_channel]
        slow.append(values.r_channel)
    if options["stall"]:
        for channel in channels:
            channel.set_pause_generator(pauses(random.Random(rng.random()), options["stall"]))
    if options["beat_interval"] > 1:
        for channel in slow:
            channel.set_pause_generator(
                itertools.cycle([False] + [True] * (options["beat_interval"] - 1))
            )

    async def read(name):
        return await registers.read_dword(getattr(regmap, name))

    async def write(name, value):
        await registers.write_dword(getattr(regmap, name), value)

    async def start():
        """Reset the unit and set up its rings."""
        dut.aresetn.value = 0
        await ClockCycles(dut.aclk, options["reset_cycles"])
        dut.aresetn.value = 1
        await ClockCycles(dut.aclk, 2)
        for name, address in (("RING", options["ring"]), ("COMPLETION", options["completions"])):
            await write(f"{name}_LO", address & 0xFFFFFFFF)
            await write(f"{name}_HI", address >> 32)
        await write("RING_SIZE", options["ring_size"])
        await write("MASK", 0b01)
        await write("CONTROL", 1)

    jobs = plan["jobs"]
    for job in jobs:
        for address, raw in job["segments"]:
            ram.write(address, raw)

    def announce(entry, job):
        ram.write(options["ring"] + DESCRIPTOR_BYTES * entry, job["descriptor"])

    async def completion(entry, limit):
        """Wait for the completion record ``entry``; None when it does not come in time."""
        waited = 0
        while await read("COMPLETED") <= entry:
            if waited >= limit:
                return None
            step = min(limit - waited, options["poll"])
            if not dut.interrupt.value:
                await First(RisingEdge(dut.interrupt), ClockCycles(dut.aclk, step))
                waited += step
            await write("EVENT", 0b01)
        address = options["completions"] + COMPLETION_BYTES * entry
        return unpack_completion(bytes(ram.read(address, COMPLETION_BYTES)))

    await start()
    records = []
    if options["queue"]:
        for entry, job in enumerate(jobs):
            announce(entry, job)
        await write("TAIL", len(jobs))
        for entry in range(len(jobs)):
            records.append(await completion(entry, options["max_cycles"]))
            assert records[-1] is not None, f"job {entry}: no completion"
    else:
        entry = 0
        for index, job in enumerate(jobs):
            announce(entry, job)
            await write("TAIL", entry + 1)
            records.append(
                await completion(entry, job["reset_after"] or options["max_cycles"])
            )
            entry += 1
            if records[-1] is None:
                assert job["reset_after"], f"job {index}: no completion"
                await start()
                entry = 0
    outcomes = [
        record
        and {
            "record": record,
            "memory": {
                name: bytes(ram.read(address, padded_size(size) + ALIGN))
                for name, (address, size) in job["results"].items()
            },
        }
        for job, record in zip(jobs, records, strict=True)
    ]
    pathlib.Path(os.environ["MOSKA_RESULTS"]).write_bytes(pickle.dumps(outcomes))
