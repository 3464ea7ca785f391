"""Fetch against a Python model of its commands; Load's routing and selection words."""

import random

import pytest

from moska.golden.layout import DESCRIPTOR_BYTES, SELECTION_LINE, Selection, pack_descriptor
from moska.golden.router import Router
from moska.hw.control.fetch import Fetch, Load, Phase, Target
from moska.hw.router.invert import row_word_bits
from moska.sim.bench import check_hold, get, put, simulate

MAX_CHUNKS = 32
SLOT_FIELDS = "representative", "chunk", "n_tokens", "all"
DESCRIPTOR_ADDR = 0x1234_5678_9AC0
BASES = {
    "q_addr": 0x1_0000_0000,
    "q_scale_addr": 0x2_0000_0040,
    "k_addr": 0x3_0000_0080,
    "v_addr": 0x4_0000_00C0,
    "scale_addr": 0x5_0000_0100,
    "rep_addr": 0x6_0000_0140,
    "rep_scale_addr": 0x7_0000_0180,
    "selection_addr": 0xFFFF_FFFF_0000_0000,
}


class Model:
    """What Fetch asks for, phase after phase; the slot number goes on through all of them."""

    def __init__(self, dut, job, wanted):
        self.dut = dut
        self.job = {**BASES, **job}
        self.wanted = wanted  # chunks that a row selected, None: every chunk
        self.slot = 0
        self.cmds = []  # (addr, n_beats, target, slot or None)
        self.slots = []
        self.skipped = self.read = 0

    def beats(self, n_bytes):
        return -(-n_bytes // self.dut.bus_bytes)

    def tokens(self, first, count, *, representative, chunk):
        dut, job = self.dut, self.job
        prefix = "rep_" if representative else ""
        keys = job["rep_addr"] if representative else job["k_addr"]
        while count:
            n = min(count, dut.buffer_tokens)
            row_bytes = n * dut.head_dim
            scales = job[f"{prefix}scale_addr"] + 4 * first
            self.cmds.append((scales, self.beats(4 * n), Target.SCALES, self.slot))
            place = first * dut.head_dim
            self.cmds.append((keys + place, self.beats(row_bytes), Target.KEYS, self.slot))
            if not representative:
                self.cmds.append(
                    (job["v_addr"] + place, self.beats(row_bytes), Target.VALUES, self.slot)
                )
            self.slots.append(
                {
                    "representative": int(representative),
                    "chunk": first // job["rep_rows"] if representative else chunk,
                    "n_tokens": n,
                    "all": int(representative or self.wanted is None),
                }
            )
            self.slot = (self.slot + 1) % dut.buffer_slots
            first += n
            count -= n

    def phase(self, phase):
        job = self.job
        if phase is Phase.DESCRIPTOR:
            n_beats = self.beats(DESCRIPTOR_BYTES)
            self.cmds.append((DESCRIPTOR_ADDR, n_beats, Target.DESCRIPTOR, None))
        elif phase is Phase.SELECTION:
            n_beats = self.beats(SELECTION_LINE * job["n_chunks"])
            self.cmds.append((job["selection_addr"], n_beats, Target.SELECTION, None))
        elif phase is Phase.QUERIES:
            n_beats = self.beats(2 * job["n_rows"])
            self.cmds.append((job["q_scale_addr"], n_beats, Target.QUERY_SCALES, None))
            n_beats = self.beats(2 * job["n_rows"] * self.dut.head_dim)
            self.cmds.append((job["q_addr"], n_beats, Target.QUERIES, None))
        elif phase is Phase.REPRESENTATIVES:
            self.tokens(0, job["n_chunks"] * job["rep_rows"], representative=True, chunk=None)
        else:
            for chunk in range(job["n_chunks"]):
                first = chunk * job["chunk_tokens"]
                if self.wanted is not None and chunk not in self.wanted:
                    self.skipped += 1
                    continue
                self.read += 1
                count = min(job["chunk_tokens"], job["n_tokens"] - first)
                self.tokens(first, count, representative=False, chunk=chunk)


def run_fetch(dut, job, phases, wanted=None, *, seed=0, stall=0.2, keep=5):
    """Run the phases; compare commands, slots and counts with the model. Returns the model."""
    model = Model(dut, job, wanted)
    for phase in phases:
        model.phase(phase)
    rng = random.Random(seed)
    cmds, slots = [], []
    counts = {"read": 0, "skipped": 0, "most": 0}

    async def bench(ctx):
        todo = list(phases)
        in_use = []  # cycles that each taken slot is still kept
        used = freed = 0
        asked = [0, 0]
        ctx.set(dut.descriptor_addr, DESCRIPTOR_ADDR)
        descriptor = pack_descriptor(**model.job)
        ctx.set(dut.job.as_value(), int.from_bytes(descriptor, "little"))
        ctx.set(dut.every, int(wanted is None))
        busy = True
        while todo or busy:
            if todo:
                ctx.set(dut.start.payload, todo[0])
            ctx.set(dut.start.valid, int(bool(todo)))
            ctx.set(dut.cmd.ready, int(rng.random() >= stall))
            ctx.set(dut.target.ready, int(rng.random() >= stall))
            ctx.set(dut.slot.ready, int(rng.random() >= stall))
            slot_done = bool(in_use) and in_use[0] == 0
            ctx.set(dut.slot_done, int(slot_done))
            ctx.set(dut.wanted, int(wanted is not None and asked[0] in wanted))

            started = ctx.get(dut.start.valid) and ctx.get(dut.start.ready)
            cmd, target = ctx.get(dut.cmd.payload), ctx.get(dut.target.payload)
            cmd_taken = ctx.get(dut.cmd.valid) and ctx.get(dut.cmd.ready)
            target_taken = ctx.get(dut.target.valid) and ctx.get(dut.target.ready)
            assert cmd_taken == target_taken, "a command and its target leave together"
            slot_taken = ctx.get(dut.slot.valid) and ctx.get(dut.slot.ready)
            slot = ctx.get(dut.slot.payload)
            counts["read"] += ctx.get(dut.chunk_read)
            counts["skipped"] += ctx.get(dut.chunk_skipped)
            asked = [asked[1], ctx.get(dut.wanted_chunk)]
            await ctx.tick()
            in_use = [max(0, cycles - 1) for cycles in in_use]
            if cmd_taken:
                has_slot = target.target in (Target.SCALES, Target.KEYS, Target.VALUES)
                where = target.slot if has_slot else None
                cmds.append((cmd.addr, cmd.n_beats, target.target, where))
                if target.target == Target.SCALES:
                    used += 1
                    assert used - freed <= dut.buffer_slots, "a slot in use is filled again"
                    counts["most"] = max(counts["most"], used - freed)
            if slot_done:
                in_use.pop(0)
                freed += 1
            if slot_taken:
                slots.append({name: getattr(slot, name) for name in SLOT_FIELDS})
                in_use.append(rng.randint(0, keep))
            if started:
                todo.pop(0)
            ctx.set(dut.start.valid, 0)
            busy = bool(ctx.get(dut.busy))

    simulate(dut, bench)
    assert cmds == model.cmds
    assert slots == model.slots
    assert (counts["read"], counts["skipped"]) == (model.read, model.skipped)
    model.most = counts["most"]
    return model


def fetch(*, bus_bytes=8, head_dim=16, buffer_tokens=32, buffer_slots=2):
    return Fetch(
        max_chunks=MAX_CHUNKS,
        head_dim=head_dim,
        bus_bytes=bus_bytes,
        buffer_tokens=buffer_tokens,
        buffer_slots=buffer_slots,
    )


SHAPES = [(8, 16), (16, 64), (64, 64), (64, 128), (32, 64)]


@pytest.mark.parametrize(("bus_bytes", "head_dim"), SHAPES)
@pytest.mark.parametrize("n_rows", [1, 7, 16])
def test_loads(bus_bytes, head_dim, n_rows):
    dut = fetch(bus_bytes=bus_bytes, head_dim=head_dim)
    job = {"n_rows": n_rows, "n_chunks": 5, "chunk_tokens": 16, "n_tokens": 80}
    phases = [Phase.DESCRIPTOR, Phase.SELECTION, Phase.QUERIES]
    model = run_fetch(dut, job, phases, seed=n_rows)
    assert len(model.cmds) == 4


@pytest.mark.parametrize(("bus_bytes", "head_dim"), SHAPES)
@pytest.mark.parametrize(
    ("chunk_tokens", "n_tokens"),
    [
        (32, 32 * 6),  # a chunk fills a slot
        (16, 16 * 5 + 1),  # half a slot; one token in the last
        (80, 80 * 3 + 47),  # several slots to a chunk, the last one short
        (64, 64 * 2 + 33),
        (4096, 95),  # one chunk, shorter than its size
    ],
)
def test_all_chunks(bus_bytes, head_dim, chunk_tokens, n_tokens):
    dut = fetch(bus_bytes=bus_bytes, head_dim=head_dim)
    n_chunks = -(-n_tokens // chunk_tokens)
    job = {"n_chunks": n_chunks, "chunk_tokens": chunk_tokens, "n_tokens": n_tokens}
    model = run_fetch(dut, job, [Phase.CHUNKS], seed=n_tokens)
    assert sum(slot["n_tokens"] for slot in model.slots) == n_tokens


@pytest.mark.parametrize(
    "wanted", [set(), {0}, {31}, {0, 1, 2, 30, 31}, set(range(1, 32, 2)), set(range(32))]
)
def test_unwanted_chunks_are_skipped(wanted):
    dut = fetch()
    job = {"n_chunks": 32, "chunk_tokens": 48, "n_tokens": 48 * 31 + 5}
    model = run_fetch(dut, job, [Phase.CHUNKS], wanted, seed=len(wanted))
    assert model.read == len(wanted)


@pytest.mark.parametrize(
    ("rep_rows", "n_chunks"), [(1, 1), (1, 32), (2, 17), (4, 8), (8, 9), (32, 3), (16, 5)]
)
def test_representatives(rep_rows, n_chunks):
    dut = fetch()
    job = {
        "selection": Selection.TOP_K,
        "router": Router.ROWS,
        "rep_rows": rep_rows,
        "n_chunks": n_chunks,
        "chunk_tokens": 16,
        "n_tokens": 16 * n_chunks,
    }
    phases = [Phase.QUERIES, Phase.REPRESENTATIVES, Phase.CHUNKS]
    run_fetch(dut, job | {"n_rows": 3}, phases, set(range(0, n_chunks, 2)), seed=rep_rows)


@pytest.mark.parametrize("buffer_slots", [2, 4])
def test_slots_are_filled_ahead_and_never_twice(buffer_slots):
    dut = fetch(buffer_slots=buffer_slots)
    job = {"n_chunks": 20, "chunk_tokens": 32, "n_tokens": 640}
    slow = run_fetch(dut, job, [Phase.CHUNKS], seed=1, stall=0.0, keep=60)
    assert slow.most == buffer_slots


# Load ----------------------------------------------------------------------------------------


def run_load(dut, commands, n_rows, *, idle=0.2, stall=0.2, seed=0):
    """Send commands (target, slot, beats); return (strobes, ends, selection words)."""
    beats = [
        {"data": beat, "last": int(index == len(data) - 1)}
        for _, _, data in commands
        for index, beat in enumerate(data)
    ]
    strobes, ends, words = [], [], []

    async def monitor(ctx):
        ctx.set(dut.n_rows, n_rows)
        async for _, _, strobe, beat, data, slot, k, v, done in ctx.tick().sample(
            dut.strobe, dut.beat, dut.data, dut.slot, dut.k_filled, dut.v_filled, dut.done
        ):
            if strobe:
                strobes.append((strobe, beat, data, slot))
            if k or v or done:
                ends.append((k, v, done))

    n_words = sum(
        len(data) * dut.data_width // (8 * SELECTION_LINE) * dut.n_row_words
        for target, _, data in commands
        if target is Target.SELECTION
    )

    async def finish(ctx):
        for _ in range(3):
            await ctx.tick()

    async def send(ctx):
        await put(dut.i, beats, idle=idle, seed=seed)(ctx)
        await finish(ctx)

    simulate(
        dut,
        send,
        put(
            dut.target,
            [{"target": target, "slot": slot} for target, slot, _ in commands],
            idle=idle,
            seed=seed + 1,
        ),
        get(dut.selection, words, n_words, stall=stall, seed=seed + 2),
        monitors=[monitor, check_hold(dut.selection)],
        cycles=100_000,
    )
    return strobes, ends, words


def expected_ends(commands):
    ends = []
    for target, _, _ in commands:
        k, v = int(target is Target.KEYS), int(target is Target.VALUES)
        if target is not Target.SCALES:
            ends.append((k, v, int(not k and not v)))
    return ends


@pytest.mark.parametrize("data_width", [64, 512])
def test_beats_go_to_their_target(data_width):
    dut = Load(data_width=data_width, max_rows=64, max_chunks=MAX_CHUNKS, buffer_slots=4)
    rng = random.Random(data_width)
    targets = [target for target in Target if target is not Target.SELECTION]
    commands = [
        (
            rng.choice(targets),
            rng.randrange(4),
            [rng.getrandbits(data_width) for _ in range(rng.randint(1, 12))],
        )
        for _ in range(40)
    ]
    assert {target for target, _, _ in commands} == set(targets)
    strobes, ends, _ = run_load(dut, commands, 64)
    assert strobes == [
        (1 << target.value, beat, data, slot)
        for target, slot, beats in commands
        for beat, data in enumerate(beats)
    ]
    assert ends == expected_ends(commands)


def test_one_beat_a_cycle():
    dut = Load(data_width=64, max_rows=64, max_chunks=MAX_CHUNKS, buffer_slots=4)
    cycles = []

    async def monitor(ctx):
        cycle = 0
        async for _, _, strobe in ctx.tick().sample(dut.strobe):
            if strobe:
                cycles.append(cycle)
            cycle += 1

    commands = [(Target.KEYS, 1), (Target.VALUES, 1), (Target.SCALES, 2)]
    simulate(
        dut,
        put(dut.i, [{"data": n, "last": int(n % 8 == 7)} for n in range(24)]),
        put(dut.target, [{"target": target, "slot": slot} for target, slot in commands]),
        monitors=[monitor],
    )
    assert cycles == list(range(cycles[0], cycles[0] + 24))


@pytest.mark.parametrize("data_width", [64, 128, 512])
@pytest.mark.parametrize(
    ("max_rows", "n_rows"), [(16, 16), (16, 5), (64, 64), (64, 33), (64, 32), (64, 1), (512, 300)]
)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_selection_words(data_width, max_rows, n_rows, stall):
    """Row words of each line in order; bits of rows past the job's are cleared."""
    dut = Load(data_width=data_width, max_rows=max_rows, max_chunks=MAX_CHUNKS, buffer_slots=2)
    rng = random.Random(max_rows + n_rows)
    n_chunks = 3
    lines = [rng.getrandbits(8 * SELECTION_LINE) for _ in range(n_chunks)]
    beats = [
        line >> (data_width * part) & ((1 << data_width) - 1)
        for line in lines
        for part in range(8 * SELECTION_LINE // data_width)
    ]
    other = (Target.DESCRIPTOR, 0, [rng.getrandbits(data_width) for _ in range(2)])
    commands = [other, (Target.SELECTION, 0, beats), other]
    strobes, ends, words = run_load(dut, commands, n_rows, stall=stall, idle=stall, seed=n_rows)
    n_bits = row_word_bits(max_rows)
    expected = []
    for chunk, line in enumerate(lines):
        used = line & ((1 << n_rows) - 1)
        for row_word in range(max_rows // n_bits):
            bits = used >> (n_bits * row_word) & ((1 << n_bits) - 1)
            expected.append((chunk, row_word, bits))
    assert [(word.chunk, word.row_word, word.bits) for word in words] == expected
    assert [strobe for strobe, *_ in strobes] == [1 << Target.DESCRIPTOR.value] * 4
    assert ends == expected_ends(commands)
