"""Selections of queries in, query lists of chunks out."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moska.hw.router.select import check_power_of_two, select_word_layout


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

    ``i`` takes the words of a selection in the order of :class:`~moska.hw.router.select.Selector`.
    The first row of each row word overwrites what an earlier selection left, so nothing is cleared:
    bits of rows past the last one are 0 in its row word; chunks past the last word and later row
    words keep old contents, and nobody may ask for them. ``load`` stores an explicit list instead,
    row word 0 of a chunk first. One word a cycle on either, except that a word of ``i`` waits for
    one cycle when the transfer before it, in the cycle before, had the same word and row word (as
    when a row has one word). When both are offered, ``i`` goes first. What a transfer stores is
    seen by ``rows_cmd`` and ``wanted_chunk`` from the next cycle on, by ``vector_cmd`` from the one
    after. Golden model: :func:`moska.golden.router.invert`.

    ``rows``: the first row comes at least ``latency`` cycles after its command; then one a cycle,
    with a gap of at most one cycle for each empty row word and between lists. A list without rows
    gives a pulse of ``empty`` and nothing on ``rows``. ``vector``: one word a cycle, the
    first at least ``vector_latency`` cycles after its command. ``rows_cmd`` and ``vector_cmd``
    share the memory port with ``i`` and ``load``: the caller uses only one of the three at a
    time, and lets ``rows`` or ``vector`` run empty before the next. ``wanted`` has a port of its
    own.

    Storage: ``width`` banks of ``max_rows * max_chunks / width`` bits in words of
    ``row_word_bits``; one bit a chunk, read without a clock.

    Parameters
    ----------
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
    wanted_chunk : :py:`In(range(max_chunks))`
    wanted : :py:`Out(1)`
        some row selected the chunk that ``wanted_chunk`` named 2 cycles before
    rows_cmd : :py:`In(stream.Signature(rows_cmd_layout(max_rows, max_chunks)))`
    rows : :py:`Out(stream.Signature(rows_layout(max_rows)))`
        ascending
    empty : :py:`Out(1)`
    vector_cmd : :py:`In(stream.Signature(vector_cmd_layout(max_rows, max_chunks)))`
    vector : :py:`Out(stream.Signature(row_word_bits(max_rows)))`

    """

    latency = 5
    wanted_latency = 2
    vector_latency = 2

    def __init__(self, *, max_rows, max_chunks, width):
        check_power_of_two("max_rows", max_rows, 2)
        check_power_of_two("width", width, 2)
        check_power_of_two("max_chunks", max_chunks, width)
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.width = width
        self.row_word_bits = row_word_bits(max_rows)
        super().__init__({
            "i": In(stream.Signature(select_word_layout(max_rows, max_chunks, width))),
            "load": In(stream.Signature(load_layout(max_rows, max_chunks))),
            "wanted_chunk": In(range(max_chunks)),
            "wanted": Out(1),
            "rows_cmd": In(stream.Signature(rows_cmd_layout(max_rows, max_chunks))),
            "rows": Out(stream.Signature(rows_layout(max_rows))),
            "empty": Out(1),
            "vector_cmd": In(stream.Signature(vector_cmd_layout(max_rows, max_chunks))),
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
        address_bits = word_bits + row_word_address_bits
        row_word_shape = _row_word_shape(self.max_rows)

        def address(row_word, word):
            return Cat(word[:word_bits], row_word[:row_word_address_bits])

        # Writing, stage 0: a word of `i`, or of `load`, and the read of what it adds to.
        i, load = self.i, self.load
        valid_s1 = Signal()
        load_s1 = Signal(reset_less=True)
        address_s0 = Signal(address_bits)
        address_s1 = Signal(address_bits, reset_less=True)
        first_s1 = Signal(reset_less=True)  # of the selection: overwrites the union
        overwrite_s1 = Signal(reset_less=True)  # the list word
        chunks_s1 = Signal(width, reset_less=True)  # that the row selects, or one-hot
        bits_s1 = Signal(n_bits, reset_less=True)  # the row, one-hot, or the rows
        accept = Signal()
        # The word in stage 1 is written at the end of the cycle: too late for this read.
        m.d.comb += [
            accept.eq(~(valid_s1 & (address_s1 == address_s0))),
            i.ready.eq(accept),
            load.ready.eq(~i.valid),
        ]
        m.d.sync += [
            valid_s1.eq(Mux(i.valid, accept, load.valid)),
            load_s1.eq(~i.valid),
            address_s1.eq(address_s0),
        ]
        with m.If(i.valid):
            m.d.comb += address_s0.eq(address(i.p.row[bit_bits:], i.p.word))
            m.d.sync += [
                first_s1.eq(i.p.row == 0),
                overwrite_s1.eq(i.p.row[:bit_bits] == 0),
                chunks_s1.eq(i.p.bits),
                bits_s1.eq(Const(1, 1) << i.p.row[:bit_bits]),
            ]
        with m.Else():
            m.d.comb += address_s0.eq(address(load.p.row_word, load.p.chunk[lane_bits:]))
            m.d.sync += [
                first_s1.eq(load.p.row_word == 0),
                overwrite_s1.eq(1),
                chunks_s1.eq(Const(1, 1) << load.p.chunk[:lane_bits]),
                bits_s1.eq(load.p.bits),
            ]

        # Reading, stage 0: the row words of a list, or one for `vector`.
        cmd = Signal(rows_cmd_layout(self.max_rows, self.max_chunks), reset_less=True)
        listing = Signal()
        row_word = Signal(row_word_shape, reset_less=True)
        final = Signal()
        mask = Signal(n_bits)  # rows of the row word that are below n_rows
        fetch = Signal()
        fetch_vector = Signal()
        fetch_address = Signal(address_bits)
        move_f1 = Signal()  # stage 1 is free or becomes so
        whole, rest = cmd.n_rows[bit_bits:], cmd.n_rows[:bit_bits]
        m.d.comb += [
            self.rows_cmd.ready.eq(~listing),
            self.vector_cmd.ready.eq(~listing & move_f1),
            final.eq((row_word + 1 > whole) | ((row_word + 1 == whole) & (rest == 0))),
            mask.eq(
                Mux(
                    row_word < whole,
                    ~Const(0, n_bits),
                    Mux(row_word == whole, (Const(1, 1) << rest) - 1, 0),
                )
            ),
        ]
        with m.If(listing):
            m.d.comb += [
                fetch.eq(move_f1),
                fetch_address.eq(address(row_word, cmd.chunk[lane_bits:])),
            ]
            with m.If(move_f1):
                m.d.sync += row_word.eq(row_word + 1)
                with m.If(final):
                    m.d.sync += listing.eq(0)
        with m.Else():
            m.d.comb += [
                fetch_vector.eq(self.vector_cmd.valid & move_f1),
                fetch_address.eq(
                    address(self.vector_cmd.p.row_word, self.vector_cmd.p.chunk[lane_bits:])
                ),
            ]
            m.d.sync += [
                cmd.eq(self.rows_cmd.p),
                row_word.eq(0),
                listing.eq(self.rows_cmd.valid),
            ]

        # List memory.
        lists = []
        for b in range(width):
            bank = Memory(shape=n_bits, depth=1 << address_bits, init=[])
            m.submodules[f"bank_{b}"] = bank
            read_port = bank.read_port()
            write_port = bank.write_port()
            old = Signal(n_bits, name=f"old_{b}")
            added = Signal(n_bits, name=f"added_{b}")
            m.d.comb += [
                read_port.en.eq(i.valid | fetch | fetch_vector),
                read_port.addr.eq(Mux(i.valid, address_s0, fetch_address)),
                old.eq(Mux(overwrite_s1, 0, read_port.data)),
                added.eq(Mux(chunks_s1[b], bits_s1, 0)),
                write_port.en.eq(valid_s1 & (~load_s1 | chunks_s1[b])),
                write_port.addr.eq(address_s1),
                write_port.data.eq(old | added),
            ]
            lists.append(read_port.data)

        # Union memory.
        m.submodules.union = union = Memory(
            shape=width, depth=max(self.max_chunks // width, 2), init=[]
        )
        union_write = union.write_port()
        union_read = union.read_port(domain="comb")
        kept = Signal(width)  # bits of the union that stay
        m.d.comb += [
            union_read.addr.eq(address_s1[:word_bits]),
            union_write.addr.eq(address_s1[:word_bits]),
            union_write.en.eq(valid_s1),
        ]
        with m.If(~first_s1):
            m.d.comb += kept.eq(union_read.data)
        with m.Elif(load_s1):
            m.d.comb += kept.eq(union_read.data & ~chunks_s1)
        m.d.comb += union_write.data.eq(kept | Mux(bits_s1 != 0, chunks_s1, 0))

        wanted_read = union.read_port(domain="comb")
        wanted_chunk_s1 = Signal(range(self.max_chunks), reset_less=True)
        m.d.comb += wanted_read.addr.eq(wanted_chunk_s1[lane_bits:])
        m.d.sync += [
            wanted_chunk_s1.eq(self.wanted_chunk),
            self.wanted.eq(wanted_read.data.bit_select(wanted_chunk_s1[:lane_bits], 1)),
        ]

        # Reading, stage 1: the banks' outputs, which hold until they move on.
        valid_f1 = Signal()
        vector_f1 = Signal(reset_less=True)
        all_f1 = Signal(reset_less=True)
        final_f1 = Signal(reset_less=True)
        row_word_f1 = Signal(row_word_shape, reset_less=True)
        mask_f1 = Signal(n_bits, reset_less=True)
        bank_f1 = Signal(range(width), reset_less=True)
        with m.If(move_f1):
            m.d.sync += [
                valid_f1.eq(fetch | fetch_vector),
                vector_f1.eq(fetch_vector),
                all_f1.eq(fetch & cmd.all),
                final_f1.eq(final),
                row_word_f1.eq(row_word),
                mask_f1.eq(Mux(listing, mask, ~Const(0, n_bits))),
                bank_f1.eq(Mux(listing, cmd.chunk, self.vector_cmd.p.chunk)),
            ]

        # Stage 2: the next row word.
        valid_f2 = Signal()
        vector_f2 = Signal(reset_less=True)
        final_f2 = Signal(reset_less=True)
        row_word_f2 = Signal(row_word_shape, reset_less=True)
        bits_f2 = Signal(n_bits, reset_less=True)
        move_f2 = Signal()
        take = Signal()  # the list takes the row word
        banked = Signal(n_bits)
        m.d.comb += [
            banked.eq(data.View(data.ArrayLayout(n_bits, width), Cat(lists))[bank_f1]),
            move_f2.eq(~valid_f2 | Mux(vector_f2, self.vector.ready, take)),
            move_f1.eq(~valid_f1 | move_f2),
            self.vector.valid.eq(valid_f2 & vector_f2),
            self.vector.p.eq(bits_f2),
        ]
        with m.If(move_f2):
            m.d.sync += [
                valid_f2.eq(valid_f1),
                vector_f2.eq(vector_f1),
                final_f2.eq(final_f1),
                row_word_f2.eq(row_word_f1),
                bits_f2.eq(Mux(all_f1, mask_f1, banked & mask_f1)),
            ]

        # Stage 3: rows still to be listed. A row is offered only when it is known whether another
        # one follows, so the list is one row ahead.
        bits = Signal(n_bits)
        bits_row_word = Signal(row_word_shape, reset_less=True)
        ended = Signal()  # no row words of this list follow
        ahead = Signal()
        row = Signal(range(self.max_rows), reset_less=True)
        stripped = Signal(n_bits)
        lowest = Signal(bit_bits)
        found = Signal()
        strip = Signal()
        close = Signal()
        m.d.comb += [
            found.eq(bits != 0),
            stripped.eq(bits & (bits - 1)),
            *(
                lowest[k].eq(Cat((bits & ~stripped)[n] for n in range(n_bits) if n >> k & 1).any())
                for k in range(bit_bits)
            ),
            self.rows.valid.eq(ahead & (found | ended)),
            self.rows.p.row.eq(row),
            self.rows.p.last.eq(~found),
            strip.eq(found & (~ahead | self.rows.ready)),
            close.eq(~found & ended & (~ahead | self.rows.ready)),
            self.empty.eq(close & ~ahead),
            take.eq(Mux(found, strip & ~ended & (stripped == 0), ~ended | close)),
        ]
        with m.If(strip):
            m.d.sync += [
                bits.eq(stripped),
                ahead.eq(1),
                row.eq(Cat(lowest, bits_row_word[:row_word_address_bits])),
            ]
        with m.If(close):
            m.d.sync += [ahead.eq(0), ended.eq(0)]
        with m.If(take & valid_f2 & ~vector_f2):
            m.d.sync += [
                bits.eq(bits_f2),
                bits_row_word.eq(row_word_f2),
                ended.eq(final_f2),
            ]

        return m
