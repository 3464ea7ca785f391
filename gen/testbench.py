"""The smoke test of a package: testbench and contents of its memory."""

from moska.gen.design import Design
from moska.gen.emit import TOP
from moska.gen.ports import instance
from moska.gen.smoke import COMPLETIONS, RING, TAG, words
from moska.golden.formats import BLOCK_TOKENS
from moska.golden.layout import COMPLETION
from moska.hw.registers import Kind

MAX_CYCLES = 1_000_000  # after which the test gives up
REGISTERS = (
    "scratch", "control", "status", "ring_lo", "completion_lo", "ring_size", "tail", "completed",
    "event", "mask", "error",
)  # fmt: skip


def testbench(design: Design) -> str:
    """SystemVerilog of the test."""
    job, bus_bytes = design.smoke, design.config.bus_bytes
    widths = {port.name: port.width for port in design.ports}
    return design.fill(
        "smoke_tb.sv",
        bus_bytes=bus_bytes,
        memory_words=len(job.memory) // bus_bytes,
        result_words=len(job.results) // bus_bytes,
        results_at=job.results_at,
        ring=RING,
        completions=COMPLETIONS,
        tag=f"32'h{TAG:08x}",
        cycles_at=COMPLETION["cycles"][0],
        max_cycles=MAX_CYCLES,
        wires=_wires(design),
        unit=instance(TOP, "unit", [(port.name, port.name) for port in design.ports]),
        read_ports="\n".join(
            design.fill("smoke_read_port.sv", bus=bus, id_width=widths[f"{bus}_arid"])
            for bus in design.masters
        ),
        write_id_width=widths["m_axi_awid"],
        checks=_checks(design),
        **{name: f"12'h{design.registers[name].offset:03x}" for name in REGISTERS},
    )


def memory(design: Design) -> str:
    """Contents of the test's memory before the job."""
    return words(design.smoke.memory, design.config.bus_bytes)


def results(design: Design) -> str:
    """Contents that the job leaves where its results are."""
    return words(design.smoke.results, design.config.bus_bytes)


def _wires(design: Design) -> str:
    """Declare a signal for each port of a bus; what the test drives is a register."""
    driven = ("s_axil_", "m_axi_bvalid")
    lines = []
    for port in design.ports:
        if port.name.startswith(("s_axil_", "m_axi_")):
            is_reg = port.way == "input" and port.name.startswith(driven)
            lines.append(f"  {'reg' if is_reg else 'wire'} {port.range}{port.name};\n")
    return "".join(lines)


def _checks(design: Design) -> str:
    """Check the registers whose values a configuration fixes."""
    fixed = {"block_tokens": BLOCK_TOKENS}
    lines = []
    for register in design.registers.registers:
        if all(field.kind is Kind.CONSTANT for field in register.fields):
            value = sum(field.reset << field.lsb for field in register.fields)
        elif register.group == "parameters":
            value = fixed.get(register.name) or getattr(design.config, register.name)
        else:
            continue
        lines.append(f"    check(12'h{register.offset:03x}, {value});  // {register.name}\n")
    return "".join(lines)
