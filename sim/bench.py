"""Run an Amaranth component under test benches, with a cycle limit and stream helpers."""

import os
import random
from collections.abc import Iterable

from amaranth.hdl import Value
from amaranth.sim import Simulator


def simulate(dut, *benches, monitors=(), cycles=20_000):
    """Run until every bench has returned.

    ``WAVES=1`` writes ``<class>.vcd`` into the working directory.

    Raises
    ------
    TimeoutError
        when a bench is still running after ``cycles`` cycles.
    """
    sim = Simulator(dut)
    sim.add_clock(1e-8)
    running = [len(benches)]

    def counted(bench):
        async def run(ctx):
            await bench(ctx)
            running[0] -= 1

        return run

    for bench in benches:
        sim.add_testbench(counted(bench))
    for monitor in monitors:
        sim.add_testbench(monitor, background=True)

    async def watchdog(ctx):
        # A loop: `repeat` leaves an async generator open when the simulation ends first.
        for _ in range(cycles):
            await ctx.tick()
        raise TimeoutError(f"{type(dut).__name__}: still running after {cycles} cycles")

    sim.add_testbench(watchdog, background=True)
    if os.environ.get("WAVES") == "1":
        with sim.write_vcd(f"{type(dut).__name__}.vcd"):
            sim.run()
    else:
        sim.run()
    assert running[0] == 0, f"{type(dut).__name__}: a bench ended early"


def put(stream, items: Iterable, *, idle: float = 0.0, seed: int = 0):
    """Bench that sends ``items`` into input ``stream``; ``idle`` is the chance of a gap a cycle."""
    rng = random.Random(seed)

    async def bench(ctx):
        for item in items:
            while rng.random() < idle:
                await ctx.tick()
            ctx.set(stream.payload, item)
            ctx.set(stream.valid, 1)
            taken = False
            while not taken:
                _, _, taken = await ctx.tick().sample(stream.ready)
            ctx.set(stream.valid, 0)

    return bench


def get(stream, sink: list, count: int, *, stall: float = 0.0, seed: int = 0):
    """Bench that takes ``count`` payloads of the output ``stream`` into ``sink``."""
    rng = random.Random(seed)

    async def bench(ctx):
        while len(sink) < count:
            ctx.set(stream.ready, int(rng.random() >= stall))
            _, _, valid, ready, payload = await ctx.tick().sample(
                stream.valid, stream.ready, stream.payload
            )
            if valid and ready:
                sink.append(payload)
        ctx.set(stream.ready, 0)

    return bench


def fields(ctx, struct, names) -> dict:
    """Fields of ``struct`` as integers; one read, which is much faster than one a field."""
    bits = ctx.get(Value.cast(struct))
    places = {name: struct.shape()[name] for name in names}
    return {name: bits >> at.offset & ((1 << at.width) - 1) for name, at in places.items()}


def check_hold(stream):
    """Monitor: once ``valid``, payload and ``valid`` stay until the transfer."""

    async def monitor(ctx):
        held = None
        payload_bits = Value.cast(stream.payload)
        async for _, _, valid, ready, payload in ctx.tick().sample(
            stream.valid, stream.ready, payload_bits
        ):
            if held is not None:
                assert valid, "valid dropped before transfer"
                assert payload == held, f"payload changed before transfer: {held!r} -> {payload!r}"
            held = payload if valid and not ready else None

    return monitor
