# amaranth: UnusedElaboratable=no
"""ChecksumCheck: the four pulses of a chunk at random times, some CRCs wrong."""

import random

import pytest
from amaranth.back import rtlil

from moska.hw.control.checksum import ChecksumCheck
from moska.sim.bench import simulate

KINDS = "keys", "values", "scales"


def run(dut, chunks, *, rate, seed):
    """Send the pulses of all chunks; return ``(cycle, context, addr)`` of errors, last pulses.

    ``chunks`` are dicts of record (keys, values, scales), crcs (same names), addr, context. Inputs
    run ahead of the slowest one as far as the queues allow.
    """
    rng = random.Random(seed)
    ports = {name: getattr(dut, f"{name}_crc") for name in KINDS} | {"record": dut.expected}
    errors = []
    complete = [0] * len(chunks)  # cycle of a chunk's last pulse
    sent = dict.fromkeys(ports, 0)

    async def bench(ctx):
        cycle = 0
        tail = 0
        gone = before = 0  # chunks complete two cycles ago, and one
        while tail < 4 + dut.depth:
            tail += min(sent.values()) == len(chunks)
            for name, port in ports.items():
                index = sent[name]
                free = index < len(chunks) and index - gone < dut.depth
                if not free or rng.random() >= rate.get(name, 0.5):
                    # What lies on an input without a pulse does not count.
                    ctx.set(port, {"valid": 0, "context": rng.randrange(dut.n_contexts)})
                    continue
                chunk = chunks[index]
                payload = {"valid": 1, "context": chunk["context"]}
                if name == "record":
                    payload |= {"addr": chunk["addr"], **chunk["record"]}
                else:
                    payload |= {"crc": chunk["crcs"][name]}
                ctx.set(port, payload)
                complete[index] = cycle
                sent[name] += 1
            gone, before = before, min(sent.values())
            _, _, error = await ctx.tick().sample(dut.error)
            if error.valid:
                errors.append((cycle, error.context, error.addr))
            cycle += 1

    simulate(dut, bench)
    return errors, complete


def random_chunks(rng, count, n_contexts, wrong):
    """Return chunks; ``wrong`` is the chance that a CRC differs in one bit."""
    chunks = []
    for index in range(count):
        record = {name: rng.getrandbits(32) for name in KINDS}
        crcs = {
            name: crc ^ (1 << rng.randrange(32) if rng.random() < wrong else 0)
            for name, crc in record.items()
        }
        chunks.append(
            {
                "record": record,
                "crcs": crcs,
                "addr": (rng.getrandbits(50) << 14) + 16 * index,
                "context": rng.randrange(n_contexts),
            }
        )
    return chunks


@pytest.mark.parametrize("depth", [1, 2, 16])
@pytest.mark.parametrize("late", ["record", "keys", "values", "scales"])
@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_errors_are_those_of_the_chunks(depth, late, wrong):
    seed = depth + len(late) + int(10 * wrong)
    dut = ChecksumCheck(depth=depth, n_contexts=4)
    chunks = random_chunks(random.Random(seed), 60, 4, wrong)
    errors, complete = run(dut, chunks, rate={late: 0.1}, seed=seed)
    bad = [index for index, chunk in enumerate(chunks) if chunk["record"] != chunk["crcs"]]
    assert bool(bad) == bool(wrong)
    assert [error[1:] for error in errors] == [
        (chunks[index]["context"], chunks[index]["addr"]) for index in bad
    ], f"seed {seed}"
    # Chunks become complete in order here, at most one a cycle.
    for (cycle, *_), index in zip(errors, bad, strict=True):
        assert cycle == complete[index] + dut.latency, f"seed {seed}, chunk {index}"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bit", [0, 31])
def test_one_wrong_bit(name, bit):
    dut = ChecksumCheck(depth=2, n_contexts=2)
    chunks = random_chunks(random.Random(bit), 3, 2, 0.0)
    chunks[1]["crcs"][name] ^= 1 << bit
    errors, _ = run(dut, chunks, rate={}, seed=bit)
    assert [error[1:] for error in errors] == [(chunks[1]["context"], chunks[1]["addr"])]


def test_a_chunk_a_cycle():
    dut = ChecksumCheck(depth=2, n_contexts=2)
    chunks = random_chunks(random.Random(3), 20, 2, 1.0)
    errors, complete = run(dut, chunks, rate=dict.fromkeys((*KINDS, "record"), 1.0), seed=3)
    assert [cycle for cycle, *_ in errors] == [cycle + dut.latency for cycle in complete]
    assert [cycle for cycle, *_ in errors] == list(range(dut.latency, dut.latency + 20))


def test_converts_without_combinational_loop():
    rtlil.convert(ChecksumCheck(depth=16, n_contexts=2))


def test_refuses():
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        ChecksumCheck(depth=0, n_contexts=2)
