# amaranth: UnusedElaboratable=no
"""Load against a Python model of all it tells, with beats of different IDs interleaved."""

import collections
import random
import zlib

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Value

from moska.golden.layout import CHECKSUM_BYTES, SELECTION_LINE
from moska.hw.control.load import LOADED, Channel, Load, Target
from moska.hw.memory.buffer import WordBuffer
from moska.hw.router.invert import row_word_bits
from moska.sim.bench import check_hold, get, put, simulate

MAX_CHUNKS = 32
CHUNK_KINDS = {Target.SCALES: "scales", Target.KEYS: "keys", Target.VALUES: "values"}
CHANNELS = {
    Target.SCALES: Channel.SCALES,
    Target.CHECKSUM: Channel.SCALES,
    Target.KEYS: Channel.KEYS,
    Target.VALUES: Channel.VALUES,
}


def load(*, data_width=64, max_rows=64, n_contexts=4, buffer_slots=4):
    return Load(
        data_width=data_width,
        max_rows=max_rows,
        max_chunks=MAX_CHUNKS,
        n_contexts=n_contexts,
        buffer_slots=buffer_slots,
    )


def command(dut, rng, target, n_beats, *, addr=None, beats=None, bad=0.0, slot_number=0, **tag):
    """Return the beats of a command, as payloads of ``i``."""
    n_bytes = dut.data_width // 8
    addr = rng.getrandbits(40) * n_bytes if addr is None else addr
    beats = [rng.getrandbits(dut.data_width) for _ in range(n_beats)] if beats is None else beats
    channel = CHANNELS.get(target, Channel.CONTROL)
    tag = {"target": target, "context": rng.randrange(dut.n_contexts), **tag}
    tag["slot"] = slot_number % dut.buffer_slots
    return [
        {
            "data": word,
            "id": channel.value,
            "tag": tag,
            "beat": number,
            "last": int(number == len(beats) - 1),
            "bad": int(rng.random() < bad),
            "addr": addr + number * n_bytes,
            "slot_number": slot_number,
        }
        for number, word in enumerate(beats)
    ]


def control_commands(dut, rng, count, *, selections=True):
    """Return beats of the CONTROL ID."""
    beats = []
    line_beats = 8 * SELECTION_LINE // dut.data_width
    targets = [target for target in LOADED if selections or target is not Target.SELECTION]
    for index in range(count):
        target = targets[index % len(targets)] if index < 2 * len(targets) else rng.choice(targets)
        n_beats = rng.choice((1, 2, rng.randint(1, 9)))
        if target is Target.SELECTION:
            n_beats = line_beats * rng.randint(1, 2)
        beats += command(dut, rng, target, n_beats, bad=0.1)
    return beats


def slot_commands(dut, rng, n_slots):
    """Return beats of each of the other IDs, and the checksums of the chunks.

    Representative slots come also between the slots of a chunk; some chunks are not checked.
    """
    beats = {target: [] for target in CHUNK_KINDS}
    crcs = {target: [] for target in CHUNK_KINDS}  # (CRC, context)
    records = []
    n_bytes = dut.data_width // 8
    left = 0  # slots of the chunk
    for number in range(n_slots):
        sizes = {target: rng.randint(1, 2 if target is Target.SCALES else 6) for target in beats}
        if rng.random() < 0.3:
            for target in (Target.SCALES, Target.KEYS):
                beats[target] += command(
                    dut, rng, target, sizes[target], slot_number=number, representative=1, bad=0.1
                )
            continue
        first = left == 0
        if first:
            left = rng.randint(1, 3)
            context = rng.randrange(dut.n_contexts)
            checked = int(rng.random() < 0.7)
            data = {target: b"" for target in CHUNK_KINDS}
            if checked:
                # Where the record is in its beat depends on the chunk.
                record_addr = rng.getrandbits(40) * CHECKSUM_BYTES
                words = [rng.getrandbits(32) for _ in range(4)]
                raw = b"".join(word.to_bytes(4, "little") for word in words)
                place = record_addr % n_bytes
                around = rng.randbytes(max(n_bytes, CHECKSUM_BYTES))
                raw = around[:place] + raw + around[place + CHECKSUM_BYTES :]
                record_beats = [
                    int.from_bytes(raw[at : at + n_bytes], "little")
                    for at in range(0, len(raw), n_bytes)
                ]
                if rng.random() < 0.2:
                    record_beats.append(rng.getrandbits(dut.data_width))
                records.append((*words[:3], record_addr, context))
                beats[Target.SCALES] += command(
                    dut, rng, Target.CHECKSUM, 0, addr=record_addr, beats=record_beats,
                    slot_number=number, context=context, checked=1, chunk_first=1, bad=0.1,
                )  # fmt: skip
        for target in CHUNK_KINDS:
            some = command(
                dut, rng, target, sizes[target], slot_number=number, context=context,
                chunk_first=int(first), chunk_last=int(left == 1), checked=checked, bad=0.1,
            )  # fmt: skip
            beats[target] += some
            data[target] += b"".join(
                beat["data"].to_bytes(n_bytes, "little") for beat in some
            )
            if left == 1 and checked:
                crcs[target].append((zlib.crc32(data[target]), context))
        left -= 1
    return beats, crcs, records


def interleave(dut, rng, streams):
    """Merge beats of several IDs; no ID is ``buffer_slots`` slots ahead of the slowest one."""
    streams = [collections.deque(beats) for beats in streams]
    merged = []
    while any(streams):
        slots = [beats[0]["slot_number"] for beats in streams[1:] if beats]
        slowest = min(slots, default=0)
        ready = [
            beats
            for index, beats in enumerate(streams)
            if beats and (index == 0 or beats[0]["slot_number"] - slowest < dut.buffer_slots)
        ]
        merged.append(rng.choice(ready).popleft())
    return merged


class Watch:
    """Record every pulse with its cycle, and check them against the beats that were taken."""

    def __init__(self, dut, n_rows=None):
        self.dut = dut
        self.n_rows = dut.max_rows if n_rows is None else n_rows
        self.cycle = 0
        self.taken = []  # (cycle, payload as integer)
        self.events = collections.defaultdict(list)  # name: [(cycle, ...)]
        self.words = []  # (cycle, chunk, row_word, bits, context)

    async def bench(self, ctx):
        dut, events = self.dut, self.events
        ctx.set(dut.n_rows, self.n_rows)
        crcs = [(f"{name}_crc", getattr(dut, f"{name}_crc")) for name in CHUNK_KINDS.values()]
        async for (
            _, _, valid, ready, write, keys, values, loaded, error, expected, shows, goes, word,
            context, *sums,
        ) in ctx.tick().sample(
            dut.i.valid, dut.i.ready, dut.write, dut.keys_filled, dut.values_filled, dut.loaded,
            dut.error, dut.expected, dut.selection.valid, dut.selection.ready,
            dut.selection.payload, dut.selection_context, *(port for _, port in crcs),
        ):  # fmt: skip
            cycle = self.cycle
            if valid and ready:
                self.taken.append(cycle)
            if write.strobe:
                events["write"].append(
                    (cycle, write.strobe, write.beat, write.data, write.context, write.slot)
                )
            if keys:
                events["keys_filled"].append((cycle,))
            if values:
                events["values_filled"].append((cycle,))
            if loaded.valid:
                events["loaded"].append((cycle, loaded.target, loaded.context))
            if error.valid:
                events["error"].append((cycle, error.context, error.addr, error.target))
            if expected.valid:
                events["expected"].append(
                    (
                        cycle, expected.keys, expected.values, expected.scales, expected.addr,
                        expected.context,
                    )
                )  # fmt: skip
            for (name, _), crc in zip(crcs, sums, strict=True):
                if crc.valid:
                    events[name].append((cycle, crc.crc, crc.context))
            if shows and goes:
                self.words.append((cycle, word.chunk, word.row_word, word.bits, context))
            self.cycle += 1

    def check(self, beats, *, seed, crcs=(), records=()):
        """Compare everything with what ``beats`` must cause."""
        dut = self.dut
        want = collections.defaultdict(list)
        words = []
        n_complete = collections.Counter()
        n_record = max(1, 8 * CHECKSUM_BYTES // dut.data_width)
        records = list(records)
        crcs = {target: list(found) for target, found in dict(crcs).items()}
        assert len(self.taken) == len(beats)
        for cycle, beat in zip(self.taken, beats, strict=True):
            tag = beat["tag"]
            target, context = tag["target"], tag["context"]
            now = cycle + dut.latency
            if beat["bad"]:
                want["error"].append((now, context, beat["addr"], target))
            if target is Target.SELECTION:
                rows = selection_words(dut, beat, self.n_rows)
                words += [(*row, context) for row in rows]
                if beat["last"]:
                    # The word before is known to have left: its cycle is looked up.
                    end = self.words[len(words) - 1][0] if rows else now
                    want["loaded"].append((end + 1, target, context))
                continue
            want["write"].append(
                (now, 1 << target.value, beat["beat"], beat["data"], context, tag["slot"])
            )
            if target is Target.CHECKSUM and beat["beat"] == n_record - 1:
                want["expected"].append((now + 1, *records.pop(0)))
            if not beat["last"]:
                continue
            if target in LOADED:
                want["loaded"].append((now, target, context))
            if target is Target.VALUES:
                want["values_filled"].append((now,))
            if target in (Target.SCALES, Target.KEYS):
                pairs = min(n_complete[Target.SCALES], n_complete[Target.KEYS])
                n_complete[target] += 1
                if min(n_complete[Target.SCALES], n_complete[Target.KEYS]) > pairs:
                    want["keys_filled"].append((now,))
            if target in CHUNK_KINDS and tag.get("checked") and tag.get("chunk_last"):
                name = f"{CHUNK_KINDS[target]}_crc"
                want[name].append((cycle + dut.checksum_latency, *crcs[target].pop(0)))
        assert not records
        assert not any(crcs.values())
        assert [word[1:] for word in self.words] == words, f"seed {seed}"
        for name in {*want, *self.events}:
            assert self.events[name] == want[name], f"seed {seed}: {name}"
        return want


def selection_words(dut, beat, n_rows):
    """Return ``(chunk, row_word, bits)`` of a beat of a selection."""
    line_beats = 8 * SELECTION_LINE // dut.data_width
    chunk, part = divmod(beat["beat"], line_beats)
    line = beat["data"] << part * dut.data_width & ((1 << n_rows) - 1)
    n_bits = row_word_bits(dut.max_rows)
    per_beat = dut.data_width // 32
    numbers = range(part * per_beat, min((part + 1) * per_beat, dut.n_row_words))
    return [
        (chunk, number, line >> n_bits * number & ((1 << n_bits) - 1)) for number in numbers
    ]


def run(dut, beats, *, n_rows=None, idle=0.0, stall=0.0, seed=0, **checks):
    """Send beats, check everything; return the Watch."""
    watch = Watch(dut, n_rows)
    payloads = [
        {name: value for name, value in beat.items() if name != "slot_number"} for beat in beats
    ]

    async def send(ctx):
        await put(dut.i, payloads, idle=idle, seed=seed)(ctx)
        await ctx.tick().repeat(6)
        while ctx.get(dut.selection.valid):
            await ctx.tick()
        await ctx.tick().repeat(6)

    simulate(
        dut,
        send,
        monitors=[
            watch.bench,
            get(dut.selection, [], 1_000_000, stall=stall, seed=seed + 1),
            check_hold(dut.selection),
        ],
        cycles=30_000,
    )
    watch.check(beats, seed=seed, **checks)
    return watch


@pytest.mark.parametrize("data_width", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("idle", [0.0, 0.3])
def test_everything_interleaved(data_width, idle):
    seed = data_width + int(10 * idle)
    rng = random.Random(seed)
    dut = load(data_width=data_width, max_rows=64)
    slots, crcs, records = slot_commands(dut, rng, 30)
    beats = interleave(dut, rng, [control_commands(dut, rng, 20), *slots.values()])
    assert all(crcs.values())
    watch = run(
        dut, beats, n_rows=37, idle=idle, stall=idle, seed=seed, crcs=crcs, records=records
    )
    assert len(watch.events["error"]) > 5
    assert len(watch.events["keys_filled"]) == 30
    targets = {target for _, target, _ in watch.events["loaded"]}
    assert targets == set(LOADED)


@pytest.mark.parametrize("first", [Target.SCALES, Target.KEYS])
def test_keys_are_filled_when_scales_are(first):
    """One kind of all slots before any of the other: a pulse for every command of the other."""
    rng = random.Random(5)
    dut = load(buffer_slots=4)
    second = Target.KEYS if first is Target.SCALES else Target.SCALES
    for _ in range(2):
        beats = []
        for target in (first, second):
            for slot in range(4):
                beats += command(dut, rng, target, 3, slot_number=slot)
    watch = run(dut, beats, seed=5)
    assert [cycle for cycle, in watch.events["keys_filled"]] == [
        cycle + dut.latency for cycle in watch.taken[14::3]
    ]


@pytest.mark.parametrize("data_width", [64, 512])
def test_one_beat_a_cycle(data_width):
    seed = 6
    rng = random.Random(seed)
    dut = load(data_width=data_width)
    slots, crcs, records = slot_commands(dut, rng, 20)
    control = control_commands(dut, rng, 12, selections=False)
    beats = interleave(dut, rng, [control, *slots.values()])
    watch = run(dut, beats, seed=seed, crcs=crcs, records=records)
    assert watch.taken == list(range(len(beats)))


@pytest.mark.parametrize("data_width", [32, 64, 512])
@pytest.mark.parametrize(
    ("max_rows", "n_rows"),
    [(16, 16), (16, 5), (32, 32), (64, 64), (64, 33), (64, 32), (64, 1), (512, 300), (512, 512)],
)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_selection_words(data_width, max_rows, n_rows, stall):
    """Row words of each line in order; bits of rows past the job's are cleared."""
    seed = max_rows + n_rows
    rng = random.Random(seed)
    dut = load(data_width=data_width, max_rows=max_rows)
    n_chunks = 3
    # A command of one beat on either side: `loaded` of the two never meet.
    around = [command(dut, rng, Target.QUERY_SCALES, 1) for _ in range(2)]
    n_beats = n_chunks * 8 * SELECTION_LINE // data_width
    selection = command(dut, rng, Target.SELECTION, n_beats, bad=0.2)
    beats = [*around[0], *selection, *around[1]]
    watch = run(dut, beats, n_rows=n_rows, idle=stall, stall=stall, seed=seed)
    lines = [
        sum(
            beat["data"] << data_width * index
            for index, beat in enumerate(selection[chunk * n_beats // n_chunks :][: n_beats // 3])
        )
        for chunk in range(n_chunks)
    ]
    n_bits = row_word_bits(max_rows)
    expected = [
        (chunk, row_word, (line & ((1 << n_rows) - 1)) >> n_bits * row_word & ((1 << n_bits) - 1))
        for chunk, line in enumerate(lines)
        for row_word in range(max_rows // n_bits)
    ]
    assert [word[1:4] for word in watch.words] == expected, f"seed {seed}"
    if not stall:
        # A cycle for every word, and for every beat without one; one more before `loaded`.
        per_beat = [len(selection_words(dut, beat, n_rows)) for beat in selection]
        cycles = sum(max(1, count) for count in per_beat)
        assert watch.taken[-1] - watch.taken[1] == cycles + 1


def test_a_reader_a_cycle_after_the_pulse_finds_the_last_beat():
    """The promise of ``keys_filled``, with the write port of a WordBuffer."""
    rng = random.Random(9)
    dut = load()
    buffer = WordBuffer(write_width=64, read_width=64, depth=16)
    found = []
    beats = command(dut, rng, Target.SCALES, 1) + command(dut, rng, Target.KEYS, 5)

    class Both(type(dut)):
        def elaborate(self, platform):
            m = super().elaborate(platform)
            m.submodules.buffer = buffer
            m.d.comb += [
                buffer.write.valid.eq(self.write.strobe[Target.KEYS.value]),
                buffer.write.addr.eq(self.write.beat),
                buffer.write.data.eq(self.write.data),
            ]
            return m

    both = Both(data_width=64, max_rows=64, max_chunks=32, n_contexts=2, buffer_slots=4)
    payloads = [
        {name: value for name, value in beat.items() if name != "slot_number"} for beat in beats
    ]
    for payload in payloads:
        payload["tag"] = {**payload["tag"], "context": 0}

    async def read(ctx):
        ctx.set(buffer.read_addr, 15)
        while not ctx.get(both.keys_filled):
            await ctx.tick()
        await ctx.tick()
        ctx.set(buffer.read_addr, 4)
        await ctx.tick()
        found.append(ctx.get(buffer.read_data))

    simulate(both, put(both.i, payloads), read, cycles=200)
    assert found == [beats[-1]["data"]]


def test_nothing_comes_of_a_payload_without_valid():
    dut = load()
    rng = random.Random(1)
    pulses = "error", "loaded", "selection", "expected", "keys_crc", "values_crc", "scales_crc"

    async def bench(ctx):
        for _ in range(200):
            ctx.set(Value.cast(dut.i.payload), rng.getrandbits(200))
            await ctx.tick()
            assert ctx.get(dut.i.ready) == 1
            for name in pulses:
                assert ctx.get(getattr(dut, name).valid) == 0, name
            for pulse in (dut.write.strobe, dut.keys_filled, dut.values_filled):
                assert ctx.get(pulse) == 0

    simulate(dut, bench)


@pytest.mark.parametrize("data_width", [32, 64, 512])
def test_converts_without_combinational_loop(data_width):
    rtlil.convert(load(data_width=data_width, max_rows=512))
    rtlil.convert(load(data_width=data_width, max_rows=16))


def test_refuses():
    with pytest.raises(ValueError, match="data_width must be a power of two from 32 to 512, not 8"):
        load(data_width=8)
