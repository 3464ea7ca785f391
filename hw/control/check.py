"""Descriptor check: fields, relations between fields, and the windows of the job's arrays."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.golden.check import FP32_BYTES, MAX_ALL_CHUNKS
from moska.golden.formats import ALIGN, CHUNK_MULTIPLE, MAX_TOKENS, Q_BITS, SCALE_BITS
from moska.golden.layout import (
    CHECKSUM_BYTES,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    SELECTION_LINE,
    KVFormat,
    Opcode,
    Selection,
)
from moska.golden.router import Router
from moska.hw.control.descriptor import ErrorCode, descriptor_layout

WORD_BYTES = 8
N_WORDS = DESCRIPTOR_BYTES // WORD_BYTES


def ones(width):
    """Return a constant of ``width`` ones, which may be 0."""
    return Const((1 << width) - 1, width)


class WindowRequest(data.Struct):
    """Array to look up: its first byte, and how far behind that its last byte is.

    ``written``: it belongs into the write window, not into the read window.
    """

    addr: 64
    extent: 32
    written: 1


class WindowCheck(wiring.Component):
    """Say whether an array lies in its window; add an offset to an address.

    One 64-bit adder does it all, one step a cycle: ``ready`` comes ``latency`` cycles after
    ``valid`` rose. Its user holds the request until then.

    Golden model: :func:`moska.golden.check.inside`.

    Members
    -------
    read_base, read_limit, write_base, write_limit : :py:`In(64)`
        first and last byte of each window
    request : :py:`In(stream.Signature(WindowRequest))`
    inside : :py:`Out(1)`
        with ``request.ready``: both ends are in the window, in the right order
    last : :py:`Out(64)`
        with ``request.ready``: ``addr + extent``, modulo 2**64

    """

    request: In(stream.Signature(WindowRequest))
    read_base: In(64)
    read_limit: In(64)
    write_base: In(64)
    write_limit: In(64)
    inside: Out(1)
    last: Out(64)

    latency = 3

    def elaborate(self, platform):
        m = Module()

        request = self.request.payload
        x, y = Signal(64, reset_less=True), Signal(64, reset_less=True)
        carry_in = Signal()
        total = Signal(64)
        carry = Signal()
        m.d.comb += Cat(total, carry).eq(x + y + carry_in)

        # x - y as x + ~y + 1: the carry says that x is not less than y.
        wrapped = Signal()
        below = Signal()
        with m.FSM(name="window"):
            with m.State("SUM"):
                m.d.sync += [x.eq(request.addr), y.eq(request.extent), carry_in.eq(0)]
                with m.If(self.request.valid):
                    m.next = "BASE"
            with m.State("BASE"):
                m.d.sync += [
                    self.last.eq(total),
                    wrapped.eq(carry),
                    y.eq(~Mux(request.written, self.write_base, self.read_base)),
                    carry_in.eq(1),
                ]
                m.next = "LIMIT"
            with m.State("LIMIT"):
                m.d.sync += [
                    below.eq(~carry),
                    x.eq(Mux(request.written, self.write_limit, self.read_limit)),
                    y.eq(~self.last),
                ]
                m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += [
                    self.request.ready.eq(1),
                    self.inside.eq(~wrapped & ~below & carry),
                ]
                m.next = "SUM"

        return m


class DescriptorCheck(wiring.Component):
    """Hold a descriptor; find its first error.

    The descriptor turns by a word of 8 bytes a cycle: once past the tests of single fields, and,
    after the relations between fields, once past the window check of the arrays that the job uses.
    It stands as it was read when ``done`` comes, at most ``max_latency`` cycles after ``start``;
    the longest job with all arrays and 512 rows takes as long.

    Golden model: :func:`moska.golden.check.check`.

    Parameters
    ----------
    head_dim, max_rows, max_chunks, buffer_tokens : int
        powers of two
    bus_bytes : int
        a power of two, 8 or more

    Members
    -------
    beat : In
        valid and data: the descriptor's beats in order
    address : :py:`In(64)`
        where it was read
    start : :py:`In(1)`
        after the last beat; no beat may come until ``done``
    request : :py:`Out(stream.Signature(WindowRequest))`, inside, last : In
        to a :class:`WindowCheck`
    done : :py:`Out(1)`
        pulse; all below is valid from then on, until the next beat
    descriptor : :py:`Out(descriptor_layout())`
    rep_shift : :py:`Out(4)`
        log2 of the representatives per chunk
    code : :py:`Out(ErrorCode)`
        NONE, DESCRIPTOR or WINDOW
    error_addr : :py:`Out(64)`

    """

    # Fields; rows by group and tokens by chunk, a bit a cycle; words, 11 of them with arrays; done.
    max_latency = N_WORDS + (1 + 10) + (1 + 20) + 1 + N_WORDS + 11 * WindowCheck.latency + 1

    def __init__(self, *, head_dim, max_rows, max_chunks, buffer_tokens, bus_bytes):
        for name, value, low in (
            ("head_dim", head_dim, 1),
            ("max_rows", max_rows, 1),
            ("max_chunks", max_chunks, 1),
            ("buffer_tokens", buffer_tokens, 1),
            ("bus_bytes", bus_bytes, WORD_BYTES),
        ):
            if value < low or value & (value - 1):
                raise ValueError(f"{name} must be a power of two from {low}, not {value}")
        if bus_bytes > DESCRIPTOR_BYTES:
            raise ValueError(f"bus_bytes must be at most {DESCRIPTOR_BYTES}, not {bus_bytes}")
        self.head_dim = head_dim
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.buffer_tokens = buffer_tokens
        self.bus_bytes = bus_bytes
        super().__init__(
            {
                "beat": In(data.StructLayout({"valid": 1, "data": 8 * bus_bytes})),
                "address": In(64),
                "start": In(1),
                "request": Out(stream.Signature(WindowRequest)),
                "inside": In(1),
                "last": In(64),
                "done": Out(1),
                "descriptor": Out(descriptor_layout()),
                "rep_shift": Out(4),
                "code": Out(ErrorCode),
                "error_addr": Out(64),
            }
        )

    def elaborate(self, platform):
        m = Module()

        fields = self.descriptor
        bits = fields.as_value()
        width = 8 * self.bus_bytes
        word_bits = 8 * WORD_BYTES
        turn = Signal()
        with m.If(self.beat.valid):
            m.d.sync += bits.eq(Cat(bits, self.beat.data)[width:])
        with m.Elif(turn):
            m.d.sync += bits.eq(Cat(bits[word_bits:], bits[:word_bits]))

        # What the tests need while the descriptor turns.
        tokens_bits, chunks_bits = exact_log2(MAX_TOKENS), exact_log2(MAX_ALL_CHUNKS)
        self.fence = Signal()
        self.routes = Signal()
        self.attends = Signal()
        self.routed = Signal()
        self.explicit = Signal()
        self.checked = Signal()
        self.writes_selection = Signal()
        self.rep_ok = Signal()
        self.rows_1 = Signal(range(self.max_rows))  # count less 1, of each
        self.tokens_1 = Signal(tokens_bits)
        self.chunks_1 = Signal(chunks_bits)

        step = Signal(range(max(N_WORDS, tokens_bits) + 1))
        self.used = Signal()  # the array whose address is in the lowest word
        self.extent = Signal(32)
        self.arrays(m, step)
        bad = Signal()
        offset = Signal(range(DESCRIPTOR_BYTES))
        self.fields(m, step, bad, offset)

        # Restoring division, a bit a cycle: the quotient takes the dividend's place.
        dividend = Signal(tokens_bits)
        remainder = Signal(tokens_bits + 1)
        partial = Signal(tokens_bits + 1)
        divisor = Signal(tokens_bits + 1)
        difference = Signal(tokens_bits + 2)  # the highest bit is the borrow
        by_group = Signal()
        m.d.comb += [
            divisor.eq(Mux(by_group, fields.group, fields.chunk_tokens)),
            partial.eq(Cat(dividend[-1], remainder)),
            difference.eq(partial - divisor),
        ]
        rows_bits = len(self.rows_1) + 1

        found = Signal()  # an error is found
        first = Signal(range(DESCRIPTOR_BYTES))  # offset of the field to blame
        m.d.comb += [
            self.request.payload.addr.eq(bits[:64]),
            self.request.payload.extent.eq(self.extent),
            self.request.payload.written.eq(0),
        ]

        with m.FSM(name="check"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        step.eq(0), found.eq(0), by_group.eq(0),
                        self.code.eq(ErrorCode.NONE), self.error_addr.eq(0),
                    ]  # fmt: skip
                    self.remember(m)
                    m.next = "FIELDS"
            with m.State("FIELDS"):
                m.d.comb += turn.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.If(bad & ~found):
                    m.d.sync += [found.eq(1), first.eq(offset)]
                with m.If(step == N_WORDS - 1):
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [
                    remainder.eq(0),
                    dividend.eq(fields.n_rows << (tokens_bits - rows_bits)),
                    step.eq(tokens_bits - rows_bits),
                ]
                with m.If(found):
                    m.next = "BLAME"
                with m.Elif(self.fence):
                    m.next = "DONE"
                with m.Elif(self.routed):
                    m.d.sync += by_group.eq(1)
                    m.next = "DIVIDE"
                with m.Else():
                    m.next = "JUDGE_GROUP"
            with m.State("DIVIDE"):
                m.d.sync += [
                    step.eq(step + 1),
                    dividend.eq(Cat(~difference[-1], dividend)),
                    remainder.eq(Mux(difference[-1], partial, difference)),
                ]
                with m.If(step == tokens_bits - 1):
                    m.next = "JUDGE_CHUNKS"
                    with m.If(by_group):
                        m.next = "JUDGE_GROUP"
            with m.State("JUDGE_GROUP"):
                m.d.sync += [
                    first.eq(DESCRIPTOR["group"][0]),
                    by_group.eq(0),
                    remainder.eq(0),
                    dividend.eq(self.tokens_1),
                    step.eq(0),
                ]
                m.next = "DIVIDE"
                with m.If(remainder != 0):
                    m.next = "BLAME"
            with m.State("JUDGE_CHUNKS"):
                m.d.sync += [first.eq(DESCRIPTOR["n_chunks"][0]), step.eq(0)]
                m.next = "WINDOWS"
                with m.If(dividend != self.chunks_1):
                    m.next = "BLAME"
            with m.State("BLAME"):
                m.d.comb += [
                    self.request.valid.eq(1),
                    self.request.payload.addr.eq(self.address),
                    self.request.payload.extent.eq(first),
                ]
                with m.If(self.request.ready):
                    m.d.sync += [
                        self.code.eq(ErrorCode.DESCRIPTOR),
                        self.error_addr.eq(self.last),
                    ]
                    m.next = "DONE"
            with m.State("WINDOWS"):
                m.d.comb += [
                    self.request.valid.eq(self.used & ~found),
                    self.request.payload.written.eq(self.written),
                    turn.eq(~self.request.valid | self.request.ready),
                ]
                with m.If(turn):
                    m.d.sync += step.eq(step + 1)
                    with m.If(self.request.valid & ~self.inside):
                        m.d.sync += [
                            found.eq(1),
                            self.code.eq(ErrorCode.WINDOW),
                            self.error_addr.eq(bits[:64]),
                        ]
                    with m.If(step == N_WORDS - 1):
                        m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"

        return m

    def remember(self, m):
        """Keep what the tests need, while every field is in its place."""
        fields = self.descriptor
        attends = fields.opcode == Opcode.ATTEND
        routed = fields.selection == Selection.TOP_K
        m.d.sync += [
            self.fence.eq(fields.opcode == Opcode.FENCE),
            self.routes.eq(fields.opcode == Opcode.ROUTE),
            self.attends.eq(attends),
            self.routed.eq(routed),
            self.explicit.eq(fields.selection == Selection.EXPLICIT),
            self.checked.eq(attends & (fields.checksum != 0)),
            self.writes_selection.eq(fields.write_selection != 0),
            self.rows_1.eq(fields.n_rows - 1),
            self.tokens_1.eq(fields.n_tokens - 1),
            self.chunks_1.eq(fields.n_chunks - 1),
            self.rep_ok.eq(~routed),
            self.rep_shift.eq(0),
        ]
        with m.Switch(fields.rep_rows):
            for shift in range(exact_log2(self.buffer_tokens) + 1):
                with m.Case(1 << shift):
                    m.d.sync += self.rep_shift.eq(shift)
                    if shift == 0:
                        m.d.sync += self.rep_ok.eq(~routed | (fields.router == Router.ROWS))
                    else:
                        m.d.sync += self.rep_ok.eq(1)

    def fields(self, m, step, bad, offset):
        """Drive ``bad`` and ``offset`` from the first field of the lowest word that is wrong."""

        def get(name):
            """Return a field of word ``step`` where it lies in that step."""
            start, size = DESCRIPTOR[name]
            return self.descriptor.as_value()[8 * (start % WORD_BYTES) :][: 8 * size]

        rows, tokens, chunks = get("n_rows"), get("n_tokens"), get("n_chunks")
        chunk_tokens = get("chunk_tokens")
        every = ~self.routed & ~self.explicit
        right = {
            "opcode": (get("opcode") != 0) & (get("opcode") <= max(Opcode)),
            "selection": (get("selection") <= max(Selection)) & (self.routed | ~self.routes),
            "router": get("router") <= max(Router),
            "write_selection": Mux(
                self.routes, get("write_selection") == 1, get("write_selection") <= self.routed
            ),
            "n_rows": (rows != 0) & (rows <= self.max_rows),
            "group": ~self.routed | (get("group") != 0),
            "n_tokens": (tokens != 0) & (tokens <= MAX_TOKENS),
            "n_chunks": (chunks != 0)
            & ((chunks <= self.max_chunks) | (every & (chunks <= MAX_ALL_CHUNKS))),
            "chunk_tokens": (chunk_tokens != 0)
            & (chunk_tokens <= MAX_TOKENS)
            & (chunk_tokens[: exact_log2(CHUNK_MULTIPLE)] == 0),
            "rep_rows": self.rep_ok,
            "checksum": get("checksum") <= 1,
            "kv_format": get("kv_format") <= max(KVFormat),
            "reserved": get("reserved") == 0,
        }
        unaligned = Signal()
        m.d.comb += unaligned.eq(self.descriptor.as_value()[: exact_log2(ALIGN)] != 0)
        addressed = {
            start // WORD_BYTES for name, (start, _) in DESCRIPTOR.items() if name.endswith("_addr")
        }
        with m.Switch(step):
            for word in range(N_WORDS):
                with m.Case(word):
                    names = [name for name in right if DESCRIPTOR[name][0] // WORD_BYTES == word]
                    # The last assignment counts: the field that comes first.
                    for name in reversed(names):
                        start, _ = DESCRIPTOR[name]
                        always = name in ("opcode", "reserved")
                        with m.If(~right[name] if always else ~right[name] & ~self.fence):
                            m.d.comb += [bad.eq(1), offset.eq(start)]
                    if word in addressed:
                        with m.If(self.used & unaligned):
                            m.d.comb += [bad.eq(1), offset.eq(WORD_BYTES * word)]

    def arrays(self, m, step):
        """Drive ``used``, ``written`` and ``extent`` of the array whose address is lowest."""
        self.written = Signal()
        # Representatives less 1: the shift moves ones in.
        most = exact_log2(self.buffer_tokens)
        some_chunks = self.chunks_1[: exact_log2(self.max_chunks)]
        reps_1 = Signal(len(some_chunks) + most)
        m.d.comb += reps_1.eq((Cat(ones(most), some_chunks) << self.rep_shift) >> most)

        rows, tokens, chunks, reps = self.rows_1, self.tokens_1, self.chunks_1, reps_1
        scale = SCALE_BITS // 8
        arrays = {
            "q_addr": (1, 0, rows, self.head_dim * Q_BITS // 8),
            "q_scale_addr": (1, 0, rows, scale),
            "k_addr": (self.attends, 0, tokens, self.head_dim),
            "v_addr": (self.attends, 0, tokens, self.head_dim),
            "scale_addr": (self.attends, 0, tokens, 2 * scale),
            "rep_addr": (self.routed, 0, reps, self.head_dim),
            "rep_scale_addr": (self.routed, 0, reps, 2 * scale),
            "selection_addr": (
                self.explicit | self.writes_selection,
                self.writes_selection,
                chunks,
                SELECTION_LINE,
            ),
            "o_addr": (self.attends, 1, rows, self.head_dim * FP32_BYTES),
            "lse_addr": (self.attends, 1, rows, FP32_BYTES),
            "checksum_addr": (self.checked, 0, chunks, CHECKSUM_BYTES),
        }
        line_bits = exact_log2(ALIGN)
        with m.Switch(step):
            for name, (used, written, count_1, size) in arrays.items():
                shift = exact_log2(size) - line_bits
                lines_1 = Cat(ones(shift), count_1) if shift >= 0 else count_1[-shift:]
                with m.Case(DESCRIPTOR[name][0] // WORD_BYTES):
                    m.d.comb += [
                        self.used.eq(used & ~self.fence),
                        self.written.eq(written),
                        self.extent.eq(Cat(ones(line_bits), lines_1)),
                    ]
