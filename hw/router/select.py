"""Exact top-k selection of chunks by radix search over stored keys."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moska.golden.formats import KEY_WIDTH

COUNT_GROUP = 16  # bits that are counted in one cycle


def check_power_of_two(name, value, low):
    """Raise ValueError when ``value`` is not a power of two of at least ``low``."""
    if value < low or value & (value - 1):
        raise ValueError(f"{name} must be a power of two, at least {low}, not {value!r}")


def key_write_layout(max_rows, max_chunks):
    """Key of ``chunk`` for query ``row``, to be stored."""
    return data.StructLayout({
        "valid": 1,
        "row": range(max_rows),
        "chunk": range(max_chunks),
        "key": signed(KEY_WIDTH),
    })


def select_job_layout(max_rows, max_chunks):
    """Struct of what to select: the arguments of :func:`moska.golden.router.select`."""
    return data.StructLayout({
        "n_rows": range(max_rows + 1),
        "n_chunks": range(max_chunks + 1),
        "k": 16,
        "keep_first": 16,
        "keep_last": 16,
        "group": range(max_rows + 1),
    })


def select_word_layout(max_rows, max_chunks, width):
    """Struct of the selection of ``row`` among chunks ``word * width`` and up, one bit a chunk.

    ``last`` marks the last word of the last row.
    """
    return data.StructLayout({
        "row": range(max_rows),
        "word": range(max(max_chunks // width, 2)),
        "bits": width,
        "last": 1,
    })


class Take(enum.Enum, shape=2):
    """Which of the chunks that are still candidates a row selects."""

    NONE = 0
    ALL = 1
    LOWEST = 2


def _total(values):
    """Sum of unsigned values (of a Value: its bits), as a balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return _total(values[:half]) + _total(values[half:])


class Selector(wiring.Component):
    """Store the keys of chunks, then select the ``k`` best chunks of every row.

    Forced chunks (the ``keep_first`` lowest ids and the ``keep_last`` highest) rank above all
    others, then larger keys, then lower ids. With ``group`` > 1, each run of ``group`` rows shares
    one decision, on the largest of their keys. Golden model: :func:`moska.golden.router.select`.

    A row is searched bit by bit, most significant first: a pass over its words counts the
    candidates with a 1 in that bit; when fewer than still wanted, all of them are selected, else
    they are the new candidates. The search ends early when the count is what is wanted. Of equal
    keys at the end, the lowest ids are taken. No pass is made when ``k`` is 0 or not less than
    ``n_chunks``.

    Timing, for n words a row: a pass takes ``n + pass_overhead`` cycles, of which a row needs at
    most 16 (17 when chunks are forced), plus ``n + 3`` cycles for the output; ties add at most
    ``(pass_overhead + 1) * n + width`` cycles. A group costs ``n * (group + 2) + 1`` cycles once,
    before the search.

    A key given in the cycle of ``start``'s transfer, or earlier, is seen. The keys of a row must
    stay until the words of that row appear. With ``group`` > 1, the stored keys of the first row
    of each group are replaced by the maxima; keys that arrive meanwhile go first and delay it.
    A job of 0 rows sends nothing.

    Storage: ``width`` banks of ``max_rows * max_chunks / width`` keys (one read, one write port),
    and ``3 * width`` bits for each word of a row, read without a clock.

    Parameters
    ----------
    max_rows : int
        a power of two, at least 2
    max_chunks : int
        a power of two, at least ``width``
    width : int
        keys examined in a cycle: a power of two, at least 2
    n_lanes : int
        writers of keys, at least 1

    Members
    -------
    keys : :py:`In(ArrayLayout(key_write_layout(max_rows, max_chunks), n_lanes))`
        in one cycle, at most one lane may write chunks of the same value modulo ``width``
    start : :py:`In(stream.Signature(select_job_layout(max_rows, max_chunks)))`
        ``n_chunks`` at least 1, ``group`` at least 1, ``n_rows`` a multiple of ``group``
    o : :py:`Out(stream.Signature(select_word_layout(max_rows, max_chunks, width)))`
        rows ascending, and the words of each; bits of chunks from ``n_chunks`` on are 0
    busy : :py:`Out(1)`
        from the cycle after ``start``'s transfer until the last word is taken

    """

    def __init__(self, *, max_rows, max_chunks, width, n_lanes):
        check_power_of_two("max_rows", max_rows, 2)
        check_power_of_two("width", width, 2)
        check_power_of_two("max_chunks", max_chunks, width)
        if n_lanes < 1:
            raise ValueError(f"n_lanes must be at least 1, not {n_lanes!r}")
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.width = width
        self.n_lanes = n_lanes
        write = key_write_layout(max_rows, max_chunks)
        super().__init__({
            "keys": In(data.ArrayLayout(write, n_lanes)),
            "start": In(stream.Signature(select_job_layout(max_rows, max_chunks))),
            "o": Out(stream.Signature(select_word_layout(max_rows, max_chunks, width))),
            "busy": Out(1),
        })

    @property
    def pass_overhead(self):
        """Cycles of a pass beyond one per word."""
        return 2 if self.width <= COUNT_GROUP else 3

    def elaborate(self, platform):
        m = Module()

        width = self.width
        lane_bits = exact_log2(width)  # of a chunk id: its bank
        word_bits = exact_log2(self.max_chunks // width)
        row_bits = exact_log2(self.max_rows)
        address_bits = word_bits + row_bits
        word_shape = range(max(self.max_chunks // width, 2))
        limit_shape = range(self.max_chunks + 1)

        def address(row, word):
            return Cat(word[:word_bits], row[:row_bits])

        # Job, and what follows from it.
        job = Signal(select_job_layout(self.max_rows, self.max_chunks), reset_less=True)
        last_word = Signal(word_shape, reset_less=True)
        head = Signal(limit_shape, reset_less=True)  # chunks below are forced
        tail = Signal(limit_shape, reset_less=True)  # and so are those from here on
        target = Signal(limit_shape, reset_less=True)  # chunks each row selects
        any_forced = Signal(reset_less=True)
        trivial = Signal(reset_less=True)

        # Position. `row` is the first row of a group until the output begins.
        row = Signal(range(self.max_rows), reset_less=True)
        member = Signal(range(self.max_rows), reset_less=True)
        word = Signal(word_shape, reset_less=True)
        last_member = Signal()
        m.d.comb += last_member.eq(member == job.group - 1)

        # Banks of keys, as offset binary: an unsigned comparison orders them.
        merged = [Signal(KEY_WIDTH, name=f"merged_{b}", reset_less=True) for b in range(width)]
        merge_write = Signal()
        no_key = Signal()
        m.d.comb += no_key.eq(~Cat(lane.valid for lane in self.keys).any())
        read_row = Signal.like(row)
        m.d.comb += read_row.eq(row + member)
        stored = []
        for b in range(width):
            bank = Memory(shape=KEY_WIDTH, depth=1 << address_bits, init=[])
            m.submodules[f"bank_{b}"] = bank
            write_port = bank.write_port()
            read_port = bank.read_port()
            write_en = Signal(name=f"write_en_{b}")
            write_addr = Signal(address_bits, name=f"write_addr_{b}", reset_less=True)
            write_data = Signal(KEY_WIDTH, name=f"write_data_{b}", reset_less=True)
            m.d.sync += write_en.eq(merge_write & no_key)
            with m.If(no_key):
                m.d.sync += [write_addr.eq(address(row, word)), write_data.eq(merged[b])]
            for i in range(self.n_lanes):
                lane = self.keys[i]
                # With one lane, address and data are equal in all banks and can be shared.
                hit = lane.valid & (lane.chunk[:lane_bits] == b)
                with m.If(lane.valid if self.n_lanes == 1 else hit):
                    m.d.sync += [
                        write_addr.eq(address(lane.row, lane.chunk[lane_bits:])),
                        write_data.eq(lane.key.as_unsigned() ^ (1 << (KEY_WIDTH - 1))),
                    ]
                with m.If(hit):
                    m.d.sync += write_en.eq(1)
            m.d.comb += [
                write_port.en.eq(write_en),
                write_port.addr.eq(write_addr),
                write_port.data.eq(write_data),
                read_port.en.eq(1),
                read_port.addr.eq(address(read_row, word)),
            ]
            stored.append(read_port.data)

        # Maximum over the rows of a group.
        merge = Signal()
        merge_s1 = Signal()
        merge_first_s1 = Signal(reset_less=True)
        m.d.sync += [merge_s1.eq(merge), merge_first_s1.eq(member == 0)]
        for b in range(width):
            with m.If(merge_s1 & (merge_first_s1 | (stored[b] > merged[b]))):
                m.d.sync += merged[b].eq(stored[b])

        # Stage 1: the word's keys, its chunks that exist, its forced chunks.
        def below(limit, name):
            """Mask of the chunks of ``word`` whose id is less than ``limit``."""
            mask = Signal(width, name=name)
            high = limit[lane_bits:]
            with m.If(word < high):
                m.d.comb += mask.eq(~Const(0, width))
            with m.Elif(word == high):
                m.d.comb += mask.eq((Const(1, 1) << limit[:lane_bits]) - 1)
            return mask

        load_s1 = Signal()
        word_s1 = Signal(word_shape, reset_less=True)
        last_s1 = Signal(reset_less=True)
        exists_s1 = Signal(width, reset_less=True)
        forced_s1 = Signal(width, reset_less=True)
        exists = below(job.n_chunks, "exists")
        forced = Signal(width)
        m.d.comb += forced.eq(below(head, "below_head") | ~below(tail, "below_tail"))
        with m.If(load_s1):
            m.d.sync += [
                word_s1.eq(word),
                last_s1.eq(word == last_word),
                exists_s1.eq(exists),
                forced_s1.eq(forced),
            ]

        # State of the search: candidates, those of them with a 1 in the bit of the last pass, and
        # selected chunks. What a pass decides is applied when the words are read the next time.
        masks = data.StructLayout({"candidates": width, "ones": width, "selected": width})
        m.submodules.state = state = Memory(
            shape=masks, depth=max(self.max_chunks // width, 2), init=[]
        )
        state_read = state.read_port(domain="comb")
        state_write = state.write_port()
        fresh = Signal(reset_less=True)  # no pass has been made
        keep_ones = Signal(reset_less=True)
        candidates = Signal(width)
        selected = Signal(width)
        old = state_read.data
        m.d.comb += state_read.addr.eq(word_s1)
        with m.If(fresh):
            m.d.comb += [candidates.eq(exists_s1), selected.eq(0)]
        with m.Elif(keep_ones):
            m.d.comb += [candidates.eq(old.ones), selected.eq(old.selected)]
        with m.Else():
            m.d.comb += [
                candidates.eq(old.candidates & ~old.ones),
                selected.eq(old.selected | old.ones),
            ]

        rank_bit = Signal(KEY_WIDTH + 1, reset_less=True)  # one-hot; the top bit is `forced`
        pass_s1 = Signal()
        ones = Signal(width)
        m.d.comb += [
            *(
                ones[b].eq(candidates[b] & (Cat(stored[b], forced_s1[b]) & rank_bit).any())
                for b in range(width)
            ),
            state_write.addr.eq(word_s1),
            state_write.en.eq(pass_s1),
            state_write.data.candidates.eq(candidates),
            state_write.data.ones.eq(ones),
            state_write.data.selected.eq(selected),
        ]

        # Stages 2 and 3 (and 4, when wide): count them, or, for ties, all candidates of a word.
        tie = Signal()
        tie_s1 = Signal()
        hits_s2 = Signal(width, reset_less=True)
        valid = Signal(name="valid_s2")
        last = Signal(name="last_s2", reset_less=True)
        m.d.sync += [
            hits_s2.eq(Mux(tie, candidates, ones)),
            valid.eq(pass_s1 | tie_s1),
            last.eq(last_s1),
        ]
        parts = hits_s2
        if width > COUNT_GROUP:
            parts = []
            for i in range(0, width, COUNT_GROUP):
                part = Signal(range(COUNT_GROUP + 1), name=f"part_s3_{i}", reset_less=True)
                m.d.sync += part.eq(_total(hits_s2[i : i + COUNT_GROUP]))
                parts.append(part)
            valid_s3 = Signal()
            last_s3 = Signal(reset_less=True)
            m.d.sync += [valid_s3.eq(valid), last_s3.eq(last)]
            valid, last = valid_s3, last_s3
        counted = Signal()
        counted_last = Signal(reset_less=True)
        count = Signal(range(width + 1), reset_less=True)
        m.d.sync += [counted.eq(valid), counted_last.eq(last), count.eq(_total(parts))]

        # Still wanted of the candidates: at the start of the pass, and after the words so far.
        wanted = Signal(limit_shape, reset_less=True)
        remaining = Signal(signed(ceil_log2(self.max_chunks) + 2), reset_less=True)
        difference = Signal.like(remaining)
        m.d.comb += difference.eq(remaining - count)

        o = self.o
        room = Signal()
        rest = Signal(Take, reset_less=True)
        out_selected = Signal(width, reset_less=True)
        pool = Signal(width, reset_less=True)
        lowest = Signal(width)
        m.d.comb += [
            room.eq(~o.valid | o.ready),
            lowest.eq(pool & ~(pool - 1)),
        ]
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)

        issuing = Signal()  # the first word of a pass goes out with the decision, without it
        issue = Signal()
        decide = Signal()
        more = Signal()  # the decision asks for another pass
        take = Signal(Take, reset_less=True)
        m.d.comb += more.eq((difference != 0) & ~rank_bit[0])
        m.d.sync += pass_s1.eq(issue)

        def emit(bits):
            """Send the word in stage 1 and go to the next word, row or group."""
            m.d.comb += load_s1.eq(1)
            m.d.sync += [
                o.valid.eq(1),
                o.p.row.eq(row),
                o.p.word.eq(word_s1),
                o.p.bits.eq(bits),
                o.p.last.eq(last_s1 & (row == job.n_rows - 1)),
                word.eq(word + 1),
            ]
            with m.If(last_s1):
                m.d.sync += [word.eq(0), row.eq(row + 1)]
                with m.If(row == job.n_rows - 1):
                    m.next = "IDLE"
                with m.Elif(last_member):
                    m.next = "ROW"
                with m.Else():
                    m.d.sync += member.eq(member + 1)
                    m.next = "FILL"
            with m.Else():
                m.next = "EMIT"

        with m.FSM(name="ctrl") as ctrl:
            with m.State("IDLE"):
                m.d.comb += self.start.ready.eq(1)
                m.d.sync += [job.eq(self.start.p), row.eq(0), word.eq(0)]
                with m.If(self.start.valid):
                    m.next = "PREPARE"

            with m.State("PREPARE"):
                m.d.sync += [
                    last_word.eq((job.n_chunks - 1)[lane_bits:]),
                    head.eq(Mux(job.keep_first < job.n_chunks, job.keep_first, job.n_chunks)),
                    tail.eq(Mux(job.keep_last < job.n_chunks, job.n_chunks - job.keep_last, 0)),
                    target.eq(Mux(job.k < job.n_chunks, job.k, job.n_chunks)),
                    any_forced.eq((job.keep_first != 0) | (job.keep_last != 0)),
                    trivial.eq((job.k == 0) | (job.k >= job.n_chunks)),
                ]
                m.next = "ROW"
                with m.If(job.n_rows == 0):
                    m.next = "IDLE"

            with m.State("ROW"):
                m.d.sync += [
                    member.eq(0),
                    fresh.eq(1),
                    wanted.eq(target),
                    remaining.eq(target),
                    rank_bit.eq(Mux(any_forced, 1 << KEY_WIDTH, 1 << (KEY_WIDTH - 1))),
                    take.eq(Mux(target == 0, Take.NONE, Take.ALL)),
                ]
                with m.If(trivial):
                    m.next = "FILL"
                with m.Elif(job.group == 1):
                    m.d.sync += issuing.eq(1)
                    m.next = "PASS"
                with m.Else():
                    m.next = "MERGE"

            with m.State("MERGE"):
                m.d.comb += merge.eq(1)
                m.d.sync += member.eq(member + 1)
                with m.If(last_member):
                    m.d.sync += member.eq(0)
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += merge_write.eq(1)
                with m.If(no_key):
                    m.d.sync += word.eq(word + 1)
                    m.next = "MERGE"
                    with m.If(word == last_word):
                        m.d.sync += word.eq(0)
                        m.next = "SETTLE"
            with m.State("SETTLE"):
                # The last maximum is written at the end of this cycle.
                m.d.sync += issuing.eq(1)
                m.next = "PASS"

            with m.State("PASS"):
                m.d.comb += [
                    load_s1.eq(1),
                    decide.eq(counted & counted_last),
                    issue.eq(issuing | (decide & more)),
                ]
                with m.If(issue):
                    m.d.sync += [word.eq(word + 1), issuing.eq(1)]
                    with m.If(word == last_word):
                        m.d.sync += [word.eq(0), issuing.eq(0)]
                with m.If(counted):
                    m.d.sync += remaining.eq(difference)
                with m.If(decide):
                    m.d.sync += [
                        fresh.eq(0),
                        rank_bit.eq(rank_bit >> 1),
                        keep_ones.eq(difference <= 0),
                        remaining.eq(wanted),
                        take.eq(Mux(difference == 0, Take.ALL, Take.LOWEST)),
                    ]
                    with m.If(difference > 0):
                        m.d.sync += [wanted.eq(difference), remaining.eq(difference)]
                    with m.If(~more):
                        m.next = "FILL"

            with m.State("FILL"):
                m.d.comb += load_s1.eq(1)
                m.d.sync += [word.eq(1), rest.eq(take), remaining.eq(wanted)]
                m.next = "EMIT"
            with m.State("EMIT"):
                with m.If(rest == Take.LOWEST):
                    m.d.comb += [tie.eq(1), tie_s1.eq(1)]
                    m.next = "COUNT"
                with m.Elif(room):
                    emit(selected | Mux(rest == Take.ALL, candidates, 0))
            with m.State("COUNT"):
                m.d.comb += tie.eq(1)
                with m.If(counted):
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += tie.eq(1)
                m.d.sync += [out_selected.eq(selected), pool.eq(candidates)]
                with m.If(difference < 0):
                    m.next = "PICK"
                with m.Elif(room):
                    m.d.sync += remaining.eq(difference)
                    with m.If(difference == 0):
                        m.d.sync += rest.eq(Take.NONE)
                    emit(selected | candidates)
            with m.State("PICK"):
                # One of the word's candidates a cycle; at least one is wanted, not all.
                with m.If(remaining != 0):
                    m.d.sync += [
                        out_selected.eq(out_selected | lowest),
                        pool.eq(pool & ~lowest),
                        remaining.eq(remaining - 1),
                    ]
                with m.Elif(room):
                    m.d.sync += rest.eq(Take.NONE)
                    emit(out_selected)

        m.d.comb += self.busy.eq(~ctrl.ongoing("IDLE") | o.valid)

        return m
