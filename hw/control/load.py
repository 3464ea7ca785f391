"""Load: sends the beats of memory to their targets and tells what is complete."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.layout import CHECKSUM_BYTES, SELECTION_LINE
from moska.hw.memory.crc import CRC_BITS, INITIAL, crc_of_data, crc_of_state
from moska.hw.memory.reader import BEATS_BITS, read_beat_layout
from moska.hw.router.invert import load_layout, row_word_bits


class Channel(enum.Enum, shape=2):
    """Read IDs: beats of one come in command order, those of different ones in any order."""

    CONTROL = 0  # descriptors, selections, query scales, queries
    SCALES = 1  # of chunks and representatives; checksum records
    KEYS = 2  # keys, representatives
    VALUES = 3


class Target(enum.Enum, shape=4):
    """Where the beats of a read command go."""

    DESCRIPTOR = 0
    SELECTION = 1
    QUERY_SCALES = 2
    QUERIES = 3
    SCALES = 4
    KEYS = 5  # of representatives too
    VALUES = 6
    CHECKSUM = 7


# Targets whose end `loaded` tells.
LOADED = (Target.DESCRIPTOR, Target.SELECTION, Target.QUERY_SCALES, Target.QUERIES)


def tag_layout(n_contexts, buffer_slots):
    """Struct that travels with a read command to its beats.

    ``slot`` and the fields after it are of slot commands. ``chunk_first`` and ``chunk_last`` mark
    the commands that start and end a chunk's bytes of their kind; ``checked`` says that the chunk
    is compared with its checksums.
    """
    return data.StructLayout(
        {
            "target": Target,
            "context": range(n_contexts),
            "slot": range(buffer_slots),
            "representative": 1,
            "chunk_first": 1,
            "chunk_last": 1,
            "checked": 1,
        }
    )


def write_layout(data_width, n_contexts, buffer_slots):
    """Struct of a word to store: bit t of ``strobe`` is set for Target t."""
    return data.StructLayout(
        {
            "strobe": len(Target),
            "beat": BEATS_BITS,
            "data": data_width,
            "context": range(n_contexts),
            "slot": range(buffer_slots),
        }
    )


def crc_layout(n_contexts):
    """Struct of a pulse with the CRC-32 of a chunk's bytes of one kind."""
    return data.StructLayout({"valid": 1, "crc": CRC_BITS, "context": range(n_contexts)})


def expected_layout(n_contexts):
    """Struct of a pulse with a chunk's checksum record and its address."""
    return data.StructLayout(
        {
            "valid": 1,
            "keys": CRC_BITS,
            "values": CRC_BITS,
            "scales": CRC_BITS,
            "addr": 64,
            "context": range(n_contexts),
        }
    )


class Load(wiring.Component):
    """Send the read beats to their targets; tell what is complete, bad, or to be compared.

    A beat is registered once: what it causes on ``write``, ``keys_filled``, ``values_filled``,
    ``loaded`` and ``error`` comes ``latency`` cycles after its transfer. One beat a cycle, except
    that a beat of an explicit selection takes a cycle for each of its row words that is used, at
    least one, and longer while ``selection`` is not ready; then ``loaded`` comes one cycle after
    the command's last word, and the cycle before takes no beat. A reader that follows one of the
    pulses by a cycle finds what was written.

    Beats of different targets may interleave: a slot's keys are filled when its scales and its keys
    are, in whatever order they come. Commands with one of these targets come in slot order.

    CRCs are of the beats of commands with ``checked``; they and ``expected`` come up to
    ``checksum_latency`` cycles after the transfer of the last beat. A checksum record is 16 bytes
    at the command's address; further beats of its command are ignored.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 32 to 512
    max_rows, max_chunks, n_contexts, buffer_slots : int

    Members
    -------
    i : :py:`In(stream.Signature(read_beat_layout(data_width, 4, tag_layout(...))))`
    n_rows : :py:`In(range(max_rows + 1))`
        rows of the job whose selection comes; selection bits of other rows are cleared
    write : :py:`Out(write_layout(data_width, n_contexts, buffer_slots))`
        beats of all targets but SELECTION
    keys_filled, values_filled : :py:`Out(1)`
        pulses: scales and keys of the next slot, values of the next slot of a chunk are complete
    loaded : :py:`Out(StructLayout({"valid": 1, "target": Target, "context": range(n_contexts)}))`
        pulse: a command with one of the targets LOADED is complete
    error : :py:`Out(StructLayout({"valid", "context", "addr", "target"}))`
        pulse: a bad beat, whose data goes its way all the same
    selection : :py:`Out(stream.Signature(load_layout(max_rows, max_chunks)))`
    selection_context : :py:`Out(range(n_contexts))`
    keys_crc, values_crc, scales_crc : :py:`Out(crc_layout(n_contexts))`
        pulses
    expected : :py:`Out(expected_layout(n_contexts))`
        pulse

    """

    latency = 1
    checksum_latency = 3

    def __init__(self, *, data_width, max_rows, max_chunks, n_contexts, buffer_slots):
        if data_width not in (32, 64, 128, 256, 512):
            raise ValueError(f"data_width must be a power of two from 32 to 512, not {data_width}")
        self.data_width = data_width
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.n_contexts = n_contexts
        self.buffer_slots = buffer_slots
        self.n_row_words = max_rows // row_word_bits(max_rows)
        tag_shape = tag_layout(n_contexts, buffer_slots)
        context_shape = range(n_contexts)
        super().__init__(
            {
                "i": In(stream.Signature(read_beat_layout(data_width, len(Channel), tag_shape))),
                "n_rows": In(range(max_rows + 1)),
                "write": Out(write_layout(data_width, n_contexts, buffer_slots)),
                "keys_filled": Out(1),
                "values_filled": Out(1),
                "loaded": Out(
                    data.StructLayout({"valid": 1, "target": Target, "context": context_shape})
                ),
                "error": Out(
                    data.StructLayout(
                        {"valid": 1, "context": context_shape, "addr": 64, "target": Target}
                    )
                ),
                "selection": Out(stream.Signature(load_layout(max_rows, max_chunks))),
                "selection_context": Out(context_shape),
                "keys_crc": Out(crc_layout(n_contexts)),
                "values_crc": Out(crc_layout(n_contexts)),
                "scales_crc": Out(crc_layout(n_contexts)),
                "expected": Out(expected_layout(n_contexts)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # Stage 1: the beat in a register. It stays there while its selection words leave.
        beat, tag = self.i.payload, self.i.payload.tag
        taken = Signal()
        ends = Signal()  # a command's last beat is taken
        beat_s1 = Signal(beat.shape(), reset_less=True)
        strobe_s1 = Signal(len(Target))
        bad_s1 = Signal()
        unpacking = Signal()  # the beat in stage 1 is of a selection
        unpacked = Signal()  # and has no word after this one
        m.d.comb += [
            self.i.ready.eq(~unpacking | (unpacked & ~beat_s1.last)),
            taken.eq(self.i.valid & self.i.ready),
            ends.eq(taken & beat.last),
        ]
        m.d.sync += [strobe_s1.eq(0), bad_s1.eq(taken & beat.bad)]
        with m.If(taken):
            m.d.sync += [
                beat_s1.eq(beat),
                strobe_s1.eq(
                    Cat(
                        Const(0) if target is Target.SELECTION else tag.target == target
                        for target in Target
                    )
                ),
            ]
        with m.If(taken & (tag.target == Target.SELECTION)):
            m.d.sync += unpacking.eq(1)
        with m.Elif(unpacked):
            m.d.sync += unpacking.eq(0)
        m.d.comb += [
            self.write.strobe.eq(strobe_s1),
            self.write.beat.eq(beat_s1.beat),
            self.write.data.eq(beat_s1.data),
            self.write.context.eq(beat_s1.tag.context),
            self.write.slot.eq(beat_s1.tag.slot),
            self.error.valid.eq(bad_s1),
            self.error.context.eq(beat_s1.tag.context),
            self.error.addr.eq(beat_s1.addr),
            self.error.target.eq(beat_s1.tag.target),
        ]

        # Slots whose scales are complete and keys are not; below 0, the other way round.
        surplus = Signal(range(-self.buffer_slots, self.buffer_slots + 1))
        scales_end = Signal()
        keys_end = Signal()
        m.d.comb += [
            scales_end.eq(ends & (tag.target == Target.SCALES)),
            keys_end.eq(ends & (tag.target == Target.KEYS)),
        ]
        m.d.sync += [
            surplus.eq(surplus + scales_end - keys_end),
            self.keys_filled.eq((scales_end & (surplus < 0)) | (keys_end & (surplus > 0))),
            self.values_filled.eq(ends & (tag.target == Target.VALUES)),
        ]

        # No beat is taken in the cycle of a selection's last word.
        others = Cat(tag.target == target for target in LOADED if target is not Target.SELECTION)
        loaded_s1 = Signal()
        m.d.sync += loaded_s1.eq((ends & others.any()) | (unpacked & beat_s1.last))
        m.d.comb += [
            self.loaded.valid.eq(loaded_s1),
            self.loaded.target.eq(beat_s1.tag.target),
            self.loaded.context.eq(beat_s1.tag.context),
        ]

        self.unpack_selection(m, beat_s1, unpacking, unpacked)
        self.compute_checksums(m, beat_s1, strobe_s1)
        self.collect_record(m, beat_s1, strobe_s1)
        return m

    def unpack_selection(self, m, beat_s1, unpacking, unpacked):
        """Row words of a selection's beat: a line is a chunk, its 32-bit words are rows."""
        words_per_beat = self.data_width // 32
        line_bits = exact_log2(SELECTION_LINE * 8 // self.data_width)  # of a beat in its line
        word_bits = exact_log2(words_per_beat)
        word = Signal(word_bits)
        number = Signal(range(SELECTION_LINE // 4))  # of the word in the line
        used = Signal()
        mask = Signal(32)
        rest = self.n_rows[:5]
        # Words all of whose rows are the job's. A unit of fewer than 32 rows has none.
        whole = Signal(range(SELECTION_LINE // 4 + 1))
        below = Signal()
        if len(self.n_rows) > 5:
            m.d.comb += [whole.eq(self.n_rows[5:]), below.eq(number < whole)]
        m.d.comb += [
            number.eq(Cat(word, beat_s1.beat[:line_bits])),
            used.eq(number < self.n_row_words),
            mask.eq(
                Mux(
                    below,
                    ~Const(0, 32),
                    Mux(number == whole, (Const(1, 1) << rest) - 1, 0),
                )
            ),
            self.selection.valid.eq(unpacking & used),
            self.selection.p.chunk.eq(beat_s1.beat[line_bits:]),
            self.selection.p.row_word.eq(number),
            self.selection.p.bits.eq(beat_s1.data.word_select(word, 32) & mask),
            self.selection_context.eq(beat_s1.tag.context),
        ]
        final = Signal()
        m.d.comb += [
            final.eq((word == words_per_beat - 1) | (number == self.n_row_words - 1)),
            unpacked.eq(unpacking & (~used | (self.selection.ready & final))),
        ]
        with m.If(unpacked):
            m.d.sync += word.eq(0)
        with m.Elif(self.selection.valid & self.selection.ready):
            m.d.sync += word.eq(word + 1)

    def compute_checksums(self, m, beat_s1, strobe_s1):
        """CRCs of the three kinds of bytes; their beats interleave, so each has its state."""
        tag_s1 = beat_s1.tag
        of_data_s2 = Signal(CRC_BITS, reset_less=True)
        first_s2 = Signal(reset_less=True)
        last_s2 = Signal(reset_less=True)
        context_s2 = Signal(range(self.n_contexts), reset_less=True)
        context_s3 = Signal(range(self.n_contexts), reset_less=True)
        m.d.sync += [
            of_data_s2.eq(crc_of_data(beat_s1.data)),
            first_s2.eq(tag_s1.chunk_first & (beat_s1.beat == 0)),
            last_s2.eq(tag_s1.chunk_last & beat_s1.last),
            context_s2.eq(tag_s1.context),
            context_s3.eq(context_s2),
        ]
        state = Signal(CRC_BITS)  # of the kind in stage 2
        following = Signal(CRC_BITS)
        kinds = (
            (Target.SCALES, self.scales_crc),
            (Target.KEYS, self.keys_crc),
            (Target.VALUES, self.values_crc),
        )
        for target, crc in kinds:
            name = target.name.lower()
            valid_s2 = Signal(name=f"{name}_valid_s2")
            valid_s3 = Signal(name=f"{name}_valid_s3")
            state_s3 = Signal(CRC_BITS, name=f"{name}_state_s3", reset_less=True)
            m.d.sync += [
                valid_s2.eq(strobe_s1[target.value] & tag_s1.checked),
                valid_s3.eq(valid_s2 & last_s2),
            ]
            with m.If(valid_s2):
                m.d.comb += state.eq(state_s3)
                m.d.sync += state_s3.eq(following)
            m.d.comb += [
                crc.valid.eq(valid_s3),
                crc.crc.eq(~state_s3),
                crc.context.eq(context_s3),
            ]
        started = Mux(first_s2, INITIAL, state)
        m.d.comb += following.eq(crc_of_state(started, self.data_width) ^ of_data_s2)

    def collect_record(self, m, beat_s1, strobe_s1):
        """Words of a checksum record, from one beat or several."""
        width = self.data_width
        record_bits = 8 * CHECKSUM_BYTES
        n_beats = max(1, record_bits // width)
        place_bits = exact_log2(max(1, width // record_bits))
        addr = beat_s1.addr
        part = Signal(min(width, record_bits))
        place = addr[4 : 4 + place_bits]
        if place_bits:
            m.d.comb += part.eq(beat_s1.data.word_select(place, record_bits))
        else:
            m.d.comb += part.eq(beat_s1.data)
        arrived = strobe_s1[Target.CHECKSUM.value]
        valid_s2 = Signal()
        record = Signal(expected_layout(self.n_contexts), reset_less=True)
        m.d.sync += valid_s2.eq(arrived & (beat_s1.beat == n_beats - 1))
        with m.If(arrived & (beat_s1.beat == 0)):
            m.d.sync += [record.addr.eq(addr), record.context.eq(beat_s1.tag.context)]
        for index, name in enumerate(("keys", "values", "scales")):
            number, start = divmod(CRC_BITS * index, len(part))
            with m.If(arrived & (beat_s1.beat == number)):
                m.d.sync += record[name].eq(part[start : start + CRC_BITS])
        m.d.comb += [self.expected.eq(record), self.expected.valid.eq(valid_s2)]
