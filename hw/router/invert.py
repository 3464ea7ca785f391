"""Selections of queries in, query lists of chunks out."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.delay import delayed
from moska.hw.router.select import check_power_of_two, select_word_layout
from moska.hw.stream import RegisterSlice

GROUP = 4  # rows that are listed from one register
QUEUED = 4  # row words on their way out of the list memory: a read that is taken at once, a cycle


def row_word_bits(max_rows):
    """Rows in one word of the list memory."""
    return min(32, max_rows)


def _row_word_shape(max_rows):
    return range(max(max_rows // row_word_bits(max_rows), 2))


def load_layout(max_rows, max_chunks):
    """Rows ``row_word * row_word_bits`` and up that select ``chunk``, one bit a row."""
    return data.StructLayout({
        "chunk": range(max_chunks),
        "row_word": _row_word_shape(max_rows),
        "bits": row_word_bits(max_rows),
    })


def rows_cmd_layout(max_rows, max_chunks):
    """Ask for the rows below ``n_rows`` that selected ``chunk``; ``all``: for every one of them."""
    return data.StructLayout({"chunk": range(max_chunks), "n_rows": range(max_rows + 1), "all": 1})


def rows_layout(max_rows):
    """One row of a list; ``last`` marks the end of the list."""
    return data.StructLayout({"row": range(max_rows), "last": 1})


def vector_cmd_layout(max_rows, max_chunks):
    """Ask for one word of the list memory."""
    return data.StructLayout({"chunk": range(max_chunks), "row_word": _row_word_shape(max_rows)})


class Inverter(wiring.Component):
    """Store which rows selected each chunk; list the rows of a chunk, one a cycle.

    There is a selection for each context. ``i`` takes the words of one in the order of
    :class:`~moska.hw.router.select.Selector`. The first row of each row word overwrites what an
    earlier selection left, so nothing is cleared: bits of rows past the last one are 0 in its row
    word; chunks past the last word and later row words keep old contents, and nobody may ask for
    them. ``stored`` pulses when all of the selection may be asked for. ``load`` stores an explicit
    list instead, row word 0 of a chunk first; ``wanted`` and ``rows_cmd`` see it from the next
    cycle on, ``vector_cmd`` from the one after.

    Everybody shares the one port that reads the list memory. Lists go first, which need a read for
    a row word; then ``i``, then ``vector``. Otherwise ``i`` takes a word a cycle, except that a
    word waits for one cycle when the one before it had the same word and row word (as when a row
    has one word). ``load`` takes a word a cycle while none of ``i`` is there.

    ``rows``: in the order of the commands, of all contexts. The first row comes at least
    ``latency`` cycles after its command; then one a cycle, with a gap of at most one cycle for
    each empty row word and between lists. A list without rows gives a pulse of ``empty`` and
    nothing on ``rows``. ``vector``: one word a cycle, the first at least ``vector_latency`` cycles
    after its command.

    Storage: ``width`` banks of ``n_contexts * max_rows * max_chunks / width`` bits in words of
    ``row_word_bits`` (one read, one write port); one bit a chunk, and a few row words on their way
    out, read without a clock.

    Parameters
    ----------
    n_contexts : int
        a power of two
    max_rows : int
        a power of two, at least 2
    max_chunks : int
        a power of two, at least ``width``
    width : int
        chunks in a word of ``i``: a power of two, at least 2

    Members
    -------
    i : :py:`In(stream.Signature(select_word_layout(max_rows, max_chunks, width)))`
    load : :py:`In(stream.Signature(load_layout(max_rows, max_chunks)))`
    stored : :py:`Out(1)`
    wanted_chunk : :py:`In(range(max_chunks))`
    wanted : :py:`Out(1)`
        some row selected the chunk that ``wanted_chunk`` named 2 cycles before
    rows_cmd : :py:`In(stream.Signature(rows_cmd_layout(max_rows, max_chunks)))`
    rows : :py:`Out(stream.Signature(rows_layout(max_rows)))`
        ascending
    empty : :py:`Out(1)`
    vector_cmd : :py:`In(stream.Signature(vector_cmd_layout(max_rows, max_chunks)))`
    vector : :py:`Out(stream.Signature(row_word_bits(max_rows)))`
    i_context, load_context, wanted_context, rows_context, vector_context
        :py:`In(range(n_contexts))`, of the word, chunk or command in the same cycle

    """

    latency = 7
    wanted_latency = 2
    vector_latency = 3

    def __init__(self, *, n_contexts, max_rows, max_chunks, width):
        check_power_of_two("n_contexts", n_contexts, 1)
        check_power_of_two("max_rows", max_rows, 2)
        check_power_of_two("width", width, 2)
        check_power_of_two("max_chunks", max_chunks, width)
        self.n_contexts = n_contexts
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.width = width
        self.row_word_bits = row_word_bits(max_rows)
        context = range(n_contexts)
        super().__init__({
            "i": In(stream.Signature(select_word_layout(max_rows, max_chunks, width))),
            "i_context": In(context),
            "load": In(stream.Signature(load_layout(max_rows, max_chunks))),
            "load_context": In(context),
            "stored": Out(1),
            "wanted_chunk": In(range(max_chunks)),
            "wanted_context": In(context),
            "wanted": Out(1),
            "rows_cmd": In(stream.Signature(rows_cmd_layout(max_rows, max_chunks))),
            "rows_context": In(context),
            "rows": Out(stream.Signature(rows_layout(max_rows))),
            "empty": Out(1),
            "vector_cmd": In(stream.Signature(vector_cmd_layout(max_rows, max_chunks))),
            "vector_context": In(context),
            "vector": Out(stream.Signature(self.row_word_bits)),
        })

    def elaborate(self, platform):
        m = Module()

        width = self.width
        n_bits = self.row_word_bits
        lane_bits = exact_log2(width)  # of a chunk id: its bank
        word_bits = exact_log2(self.max_chunks // width)
        bit_bits = exact_log2(n_bits)  # of a row: its place in the row word
        row_word_address_bits = exact_log2(self.max_rows // n_bits)
        context_bits = exact_log2(self.n_contexts)
        address_bits = word_bits + row_word_address_bits + context_bits
        row_word_shape = _row_word_shape(self.max_rows)
        context_shape = range(self.n_contexts)

        def address(context, row_word, word):
            return Cat(word[:word_bits], row_word[:row_word_address_bits], context[:context_bits])

        # Writing, stage 0: a word of `i`, or of `load`, and the read of what it adds to.
        word_shape = data.StructLayout({
            "context": context_shape,
            "word": self.i.payload.shape(),
        })
        m.submodules.words = words = RegisterSlice(word_shape)
        i, load = words.o.p.word, self.load
        word_offered = words.o.valid
        list_read = Signal()  # by the lists, this cycle
        valid_s1 = Signal()
        load_s1 = Signal(reset_less=True)
        last_s1 = Signal(reset_less=True)  # word of the selection
        address_s1 = Signal(address_bits, reset_less=True)
        first_s1 = Signal(reset_less=True)  # of the selection: overwrites the union
        overwrite_s1 = Signal(reset_less=True)  # the list word
        chunks_s1 = Signal(width, reset_less=True)  # that the row selects, or one-hot
        bits_s1 = Signal(n_bits, reset_less=True)  # the row, one-hot, or the rows
        word_address = address(words.o.p.context, i.row[bit_bits:], i.word)
        load_address = address(self.load_context, load.p.row_word, load.p.chunk[lane_bits:])
        m.d.comb += [
            words.i.valid.eq(self.i.valid),
            words.i.p.context.eq(self.i_context),
            words.i.p.word.eq(self.i.payload),
            self.i.ready.eq(words.i.ready),
            # The word in stage 1 is written at the end of the cycle: too late for this read.
            words.o.ready.eq(~list_read & ~(valid_s1 & (address_s1 == word_address))),
            load.ready.eq(~word_offered),
        ]
        m.d.sync += [
            valid_s1.eq(Mux(word_offered, words.o.ready, load.valid)),
            load_s1.eq(~word_offered),
            last_s1.eq(i.last),
            self.stored.eq(valid_s1 & ~load_s1 & last_s1),
        ]
        with m.If(word_offered):
            m.d.sync += [
                address_s1.eq(word_address),
                first_s1.eq(i.row == 0),
                overwrite_s1.eq(i.row[:bit_bits] == 0),
                chunks_s1.eq(i.bits),
                bits_s1.eq(Const(1, 1) << i.row[:bit_bits]),
            ]
        with m.Else():
            m.d.sync += [
                address_s1.eq(load_address),
                first_s1.eq(load.p.row_word == 0),
                overwrite_s1.eq(1),
                chunks_s1.eq(Const(1, 1) << load.p.chunk[:lane_bits]),
                bits_s1.eq(load.p.bits),
            ]

        # Reading, stage 0: the row words of a list, or one for `vector`, while the queues behind
        # have places.
        cmd = Signal(self.rows_cmd.payload.shape(), reset_less=True)
        context = Signal(context_shape, reset_less=True)
        listing = Signal()
        row_word = Signal(row_word_shape, reset_less=True)
        final = Signal()
        vector_read = Signal()
        list_places = Signal(range(QUEUED + 1), init=QUEUED)
        vector_places = Signal(range(QUEUED + 1), init=QUEUED)
        whole, rest = cmd.n_rows[bit_bits:], cmd.n_rows[:bit_bits]
        m.d.comb += [
            self.rows_cmd.ready.eq(~listing),
            list_read.eq(listing & (list_places != 0)),
            self.vector_cmd.ready.eq(~list_read & ~word_offered & (vector_places != 0)),
            vector_read.eq(self.vector_cmd.valid & self.vector_cmd.ready),
            final.eq((row_word + 1 > whole) | ((row_word + 1 == whole) & (rest == 0))),
        ]
        with m.If(~listing):
            m.d.sync += [
                cmd.eq(self.rows_cmd.p),
                context.eq(self.rows_context),
                row_word.eq(0),
                listing.eq(self.rows_cmd.valid),
            ]
        with m.Elif(list_read):
            m.d.sync += [row_word.eq(row_word + 1), listing.eq(~final)]

        # List memory. Nobody reads a word while it is written.
        vector = self.vector_cmd.p
        list_address = address(context, row_word, cmd.chunk[lane_bits:])
        vector_address = address(self.vector_context, vector.row_word, vector.chunk[lane_bits:])
        lists = []
        for b in range(width):
            bank = Memory(shape=n_bits, depth=1 << address_bits, init=[], attrs={"no_rw_check": 1})
            m.submodules[f"bank_{b}"] = bank
            read_port = bank.read_port()
            write_port = bank.write_port()
            old = Signal(n_bits, name=f"old_{b}")
            added = Signal(n_bits, name=f"added_{b}")
            m.d.comb += [
                read_port.addr.eq(
                    Mux(list_read, list_address, Mux(word_offered, word_address, vector_address))
                ),
                old.eq(Mux(overwrite_s1, 0, read_port.data)),
                added.eq(Mux(chunks_s1[b], bits_s1, 0)),
                write_port.en.eq(valid_s1 & (~load_s1 | chunks_s1[b])),
                write_port.addr.eq(address_s1),
                write_port.data.eq(old | added),
            ]
            lists.append(read_port.data)

        # Union memory.
        def union_address(context, word):
            return Cat(word[:word_bits], context[:context_bits])

        m.submodules.union = union = Memory(
            shape=width, depth=max(1 << (word_bits + context_bits), 2), init=[]
        )
        union_write = union.write_port()
        union_read = union.read_port(domain="comb")
        kept = Signal(width)  # bits of the union that stay
        context_s1 = address_s1[word_bits + row_word_address_bits :]
        m.d.comb += [
            union_read.addr.eq(union_address(context_s1, address_s1)),
            union_write.addr.eq(union_read.addr),
            union_write.en.eq(valid_s1),
        ]
        with m.If(~first_s1):
            m.d.comb += kept.eq(union_read.data)
        with m.Elif(load_s1):
            m.d.comb += kept.eq(union_read.data & ~chunks_s1)
        m.d.comb += union_write.data.eq(kept | Mux(bits_s1.any(), chunks_s1, 0))

        wanted_read = union.read_port(domain="comb")
        wanted_chunk_s1 = Signal(range(self.max_chunks), reset_less=True)
        wanted_context_s1 = Signal(context_shape, reset_less=True)
        m.d.comb += wanted_read.addr.eq(
            union_address(wanted_context_s1, wanted_chunk_s1[lane_bits:])
        )
        m.d.sync += [
            wanted_chunk_s1.eq(self.wanted_chunk),
            wanted_context_s1.eq(self.wanted_context),
            self.wanted.eq(wanted_read.data.bit_select(wanted_chunk_s1[:lane_bits], 1)),
        ]

        # Reading, stages 1 and 2: the bank's output; rows that are not asked for left out.
        bank_f1 = Signal(range(width), reset_less=True)
        below_f1 = Signal(reset_less=True)  # all rows of the row word are below n_rows
        rest_f1 = Signal(bit_bits, reset_less=True)  # else: those below this one, or none
        word_f2 = Signal(n_bits, reset_less=True)
        mask_f2 = Signal(n_bits, reset_less=True)
        m.d.sync += [
            bank_f1.eq(Mux(list_read, cmd.chunk, vector.chunk)),
            below_f1.eq(row_word < whole),
            rest_f1.eq(Mux(row_word == whole, rest, 0)),
            word_f2.eq(data.View(data.ArrayLayout(n_bits, width), Cat(lists))[bank_f1]),
            mask_f2.eq(Mux(below_f1, ~Const(0, n_bits), (Const(1, 1) << rest_f1) - 1)),
        ]

        # Queues: of a list's row words, and of words for `vector`.
        queued_layout = data.StructLayout({
            "bits": n_bits,
            "row_word": row_word_shape,
            "final": 1,
        })
        m.submodules.list_queue = list_queue = SyncFIFO(width=queued_layout.size, depth=QUEUED)
        m.submodules.vector_queue = vector_queue = SyncFIFO(width=n_bits, depth=QUEUED)
        queued = Signal(queued_layout)
        in_queue = data.View(queued_layout, list_queue.r_data)
        every_f2 = delayed(m, cmd.all, 2, name="every")
        m.d.comb += [
            queued.bits.eq((word_f2 | every_f2.replicate(n_bits)) & mask_f2),
            queued.row_word.eq(delayed(m, row_word, 2, name="row_word")),
            queued.final.eq(delayed(m, final, 2, name="final")),
            list_queue.w_data.eq(queued),
            list_queue.w_en.eq(delayed(m, list_read, 2, name="list_read")),
            vector_queue.w_data.eq(word_f2),
            vector_queue.w_en.eq(delayed(m, vector_read, 2, name="vector_read")),
            self.vector.valid.eq(vector_queue.r_rdy),
            self.vector.p.eq(vector_queue.r_data),
            vector_queue.r_en.eq(self.vector.ready),
        ]
        for places, read, queue in (
            (list_places, list_read, list_queue),
            (vector_places, vector_read, vector_queue),
        ):
            m.d.sync += places.eq(places - read + (queue.r_rdy & queue.r_en))

        self.list_rows(m, list_queue, in_queue)

        return m

    def list_rows(self, m, queue, word):
        """Rows of the row ``word`` at the head of ``queue``: its groups, then the rows of each.

        A row is offered only when it is known whether another one follows, so the list is one row
        ahead.
        """
        n_bits = self.row_word_bits
        group_bits = min(GROUP, n_bits)
        n_groups = n_bits // group_bits
        row_word_address_bits = exact_log2(self.max_rows // n_bits)

        def lowest(bits):
            """Lowest set bit, one-hot, its index, and the bits without it."""
            first = Cat(bits[0], *(bits[n] & ~bits[:n].any() for n in range(1, len(bits))))
            index = Cat(
                Cat(first[n] for n in range(len(bits)) if n >> k & 1).any()
                for k in range(exact_log2(len(bits)))
            )
            return first, index, bits & ~first

        # Groups still to be listed of a row word.
        groups = Signal(data.ArrayLayout(group_bits, n_groups), reset_less=True)
        filled = Signal(n_groups)
        row_word = Signal.like(word.row_word, reset_less=True)
        final = Signal()  # no row words of this list follow
        first_group, group_index, groups_left = lowest(filled)
        # Rows still to be listed of a group.
        rows = Signal(group_bits)
        group_row = Signal(range(max(self.max_rows // group_bits, 2)), reset_less=True)
        ends = Signal()  # no groups of this list follow
        _, row_index, rows_left = lowest(rows)
        # The row ahead.
        ahead = Signal()
        ended = Signal()  # it is the last one
        row = Signal(range(self.max_rows), reset_less=True)

        found = Signal()
        strip = Signal()
        close = Signal()  # the list ends without a further row
        take_group = Signal()
        take_word = Signal()
        m.d.comb += [
            found.eq(rows.any()),
            self.rows.valid.eq(ahead & (ended | found | ends)),
            self.rows.p.row.eq(row),
            self.rows.p.last.eq(ended | ~found),
            strip.eq(found & (~ahead | self.rows.ready)),
            close.eq(~found & ends & (~ahead | (self.rows.ready & ~ended))),
            self.empty.eq(close & ~ahead),
            take_group.eq(Mux(found, strip & ~rows_left.any(), ~ends | close)),
            take_word.eq((~filled.any() & ~final) | (take_group & ~groups_left.any())),
            queue.r_en.eq(take_word),
        ]
        with m.If(self.rows.valid & self.rows.ready):
            m.d.sync += [ahead.eq(0), ended.eq(0)]
        with m.If(strip):
            m.d.sync += [
                rows.eq(rows_left),
                ahead.eq(1),
                ended.eq(ends & ~rows_left.any()),
                row.eq(Cat(row_index, group_row)),
            ]
        with m.If(take_group):
            m.d.sync += [
                rows.eq(
                    Cat(
                        Cat(first_group[g] & groups[g][k] for g in range(n_groups)).any()
                        for k in range(group_bits)
                    )
                ),
                group_row.eq(Cat(group_index, row_word[:row_word_address_bits])),
                ends.eq(final & ~groups_left.any()),
                filled.eq(groups_left),
            ]
        with m.If(take_word):
            m.d.sync += [
                groups.eq(word.bits),
                filled.eq(
                    Mux(
                        queue.r_rdy,
                        Cat(word.bits.word_select(g, group_bits).any() for g in range(n_groups)),
                        0,
                    )
                ),
                row_word.eq(word.row_word),
                final.eq(queue.r_rdy & word.final),
            ]
