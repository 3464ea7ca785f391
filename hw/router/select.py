"""Exact top-k selection of chunks by radix search over stored keys."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moska.golden.formats import KEY_WIDTH

DIGITS = (1, 2, 3)  # of two bits, that a pass tries
COUNT_GROUP = 16  # bits that are counted in one cycle
PICK_STEPS = 8  # cycles at most, to find the lowest of a word's equal keys


def check_power_of_two(name, value, low):
    """Raise ValueError when ``value`` is not a power of two of at least ``low``."""
    if value < low or value & (value - 1):
        raise ValueError(f"{name} must be a power of two, at least {low}, not {value!r}")


def key_write_layout(max_rows, max_chunks, key_width=KEY_WIDTH):
    """Key of ``chunk`` for query ``row``, to be stored."""
    return data.StructLayout({
        "valid": 1,
        "row": range(max_rows),
        "chunk": range(max_chunks),
        "key": signed(key_width),
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


def _total(values):
    """Sum of unsigned values (of a Value: its bits), as a balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return _total(values[:half]) + _total(values[half:])


def _any(values):
    """OR of values, as a balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return _any(values[:half]) | _any(values[half:])


class Selector(wiring.Component):
    """Store the keys of chunks, then select the ``k`` best chunks of every row.

    Forced chunks (the ``keep_first`` lowest ids and the ``keep_last`` highest) rank above all
    others, then larger keys, then lower ids. With ``group`` > 1, each run of ``group`` rows shares
    one decision, on the largest of their keys. Golden model: :func:`moska.golden.router.select`.

    What is forced is known without a search: either it fills the selection, and the search is
    among the forced chunks, or all of it is selected, and the search is among the others. For a
    row, or a group, the search finds the largest threshold that as many keys reach as are wanted,
    a digit of two bits after the other, the most significant first: a pass over the row's words
    counts the keys that reach the threshold with the digit 1, 2 and 3; the largest digit stays that
    more keys reach than wanted, and the search ends early when one is reached by just as many. When
    it does not, the keys above the threshold are selected, and the lowest ids of those equal to it.
    No pass is made when nothing is searched for: when ``k`` is 0, the number of forced chunks, or
    not less than ``n_chunks``.

    ``n_slots`` rows, or groups, are searched in turn, a pass each, so that the decision on a pass
    is made during the passes of the others. Results are sent in order. A row that waits for its
    turn keeps its slot.

    Timing, for n words a row: a word is read every cycle while there are enough rows to search. A
    row takes at most ``n_digits`` passes of n reads, and n reads to send its words, or 2 * n when
    it has ties. So R rows that need all 8 passes take at most ``9 * n * R + 12`` cycles, and R
    more when n is 1, from ``start``'s transfer until the last word is taken, when ``o`` does not
    wait and R is a multiple of ``n_slots``. One row alone with p > 0 passes takes ``p * (n +
    pass_overhead) + n + 7`` cycles, R rows without a pass ``R * (n + 1) + 5``. While a row's ties
    are not all broken, a word is sent every 12 cycles at most, and the next rows are searched
    meanwhile. The maxima of a group of more than one row take at least ``n * (group + 2)`` cycles,
    before the search, while others are searched.

    A key given in the cycle of ``start``'s transfer, or earlier, is seen. The keys of a row must
    stay until the words of that row appear. With ``group`` > 1, the stored keys of the first row
    of each group are replaced by the maxima; keys that arrive meanwhile go first and delay it.
    A job of 0 rows sends nothing.

    Storage: ``width`` banks of ``max_rows * max_chunks / width`` keys (one read, one write port),
    and for each slot a few words, read without a clock.

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
    key_width : int
        bits of a key, an even number; other than ``KEY_WIDTH`` for proofs only

    Members
    -------
    keys : :py:`In(ArrayLayout(key_write_layout(max_rows, max_chunks, key_width), n_lanes))`
        in one cycle, at most one lane may write chunks of the same value modulo ``width``
    start : :py:`In(stream.Signature(select_job_layout(max_rows, max_chunks)))`
        ``n_chunks`` at least 1, ``group`` at least 1, ``n_rows`` a multiple of ``group``
    o : :py:`Out(stream.Signature(select_word_layout(max_rows, max_chunks, width)))`
        rows ascending, and the words of each; bits of chunks from ``n_chunks`` on are 0
    busy : :py:`Out(1)`
        from the cycle after ``start``'s transfer until the last word is taken

    """

    def __init__(self, *, max_rows, max_chunks, width, n_lanes, key_width=KEY_WIDTH):
        check_power_of_two("max_rows", max_rows, 2)
        check_power_of_two("width", width, 2)
        check_power_of_two("max_chunks", max_chunks, width)
        if n_lanes < 1:
            raise ValueError(f"n_lanes must be at least 1, not {n_lanes!r}")
        if key_width < 2 or key_width % 2:
            raise ValueError(f"key_width must be even, at least 2, not {key_width!r}")
        self.max_rows = max_rows
        self.max_chunks = max_chunks
        self.width = width
        self.n_lanes = n_lanes
        self.key_width = key_width
        write = key_write_layout(max_rows, max_chunks, key_width)
        super().__init__({
            "keys": In(data.ArrayLayout(write, n_lanes)),
            "start": In(stream.Signature(select_job_layout(max_rows, max_chunks))),
            "o": Out(stream.Signature(select_word_layout(max_rows, max_chunks, width))),
            "busy": Out(1),
        })

    @property
    def n_digits(self):
        """Passes of a search, at most."""
        return self.key_width // 2

    @property
    def pass_overhead(self):
        """Cycles from the last word of a pass to the first of the row's next one, less one."""
        return 2 if self.width <= COUNT_GROUP else 3

    @property
    def n_slots(self):
        """Rows, or groups, under way: passes of one word each leave no gap."""
        return self.pass_overhead + 1

    def elaborate(self, platform):
        m = Module()

        width = self.width
        key_width = self.key_width
        n_slots = self.n_slots
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
        n_first = Signal(limit_shape, reset_less=True)  # chunks below are forced
        n_last = Signal(limit_shape, reset_less=True)
        tail = Signal(limit_shape, reset_less=True)  # and so are those from here on
        target = Signal(limit_shape, reset_less=True)  # chunks each row selects
        among_forced = Signal(reset_less=True)  # the search; else among the others
        quota = Signal(limit_shape, reset_less=True)  # chunks that the search is to find
        everything = Signal(reset_less=True)
        searches = Signal()
        m.d.comb += searches.eq((quota != 0) & ~everything)

        # Slots: rows under way, in circular order from `out_slot` to `feed_slot`.
        def following(slot):
            return Mux(slot == n_slots - 1, 0, slot + 1)

        searching = Signal(n_slots)
        done = Signal(n_slots)  # and waiting for its turn to be sent
        tied = Signal(n_slots)  # of a slot that is done
        feed_slot = Signal(range(n_slots))
        pass_slot = Signal(range(n_slots))
        out_slot = Signal(range(n_slots))

        # The row that is read: `feed_row` and following for the maxima, else that of the slot.
        feed_row = Signal(range(self.max_rows), reset_less=True)
        feed_member = Signal(range(self.max_rows), reset_less=True)
        feed_word = Signal(word_shape, reset_less=True)
        pass_word = Signal(word_shape)
        out_word = Signal(word_shape)
        feed = Signal()
        send = Signal()  # read a word of the row that is sent: goes first
        merging = Signal()
        merge = Signal()  # read a word for the maxima: goes second
        issue_slot = Signal(range(n_slots))
        issue_word = Signal(word_shape)
        read_row = Signal(range(self.max_rows))
        read_word = Signal(word_shape)
        m.submodules.rows = rows = Memory(shape=range(self.max_rows), depth=n_slots, init=[])
        rows_write = rows.write_port()
        # Both rows are known when it is decided which one is read.
        pass_row = rows.read_port(domain="comb")
        sent_row = rows.read_port(domain="comb")
        m.d.comb += [
            rows_write.addr.eq(feed_slot),
            rows_write.data.eq(feed_row),
            rows_write.en.eq(feed),
            issue_slot.eq(Mux(send, out_slot, pass_slot)),
            issue_word.eq(Mux(send, out_word, pass_word)),
            pass_row.addr.eq(pass_slot),
            sent_row.addr.eq(out_slot),
            read_row.eq(
                Mux(
                    send,
                    sent_row.data,
                    Mux(merging, feed_row + feed_member, pass_row.data),
                )
            ),
            read_word.eq(Mux(send, out_word, Mux(merging, feed_word, pass_word))),
        ]

        # Banks of keys, as offset binary: an unsigned comparison orders them.
        merged = [Signal(key_width, name=f"merged_{b}", reset_less=True) for b in range(width)]
        store = Signal()
        store_s1 = Signal()  # the maxima are written
        no_key = Signal()
        m.d.comb += no_key.eq(~Cat(lane.valid for lane in self.keys).any())
        m.d.sync += store_s1.eq(store & no_key)
        places = []  # of each lane: address and key
        for i in range(self.n_lanes):
            lane = self.keys[i]
            place = Signal(address_bits + key_width, name=f"place_{i}")
            flipped_key = lane.key.as_unsigned() ^ (1 << (key_width - 1))
            m.d.comb += place.eq(
                Cat(address(lane.row, lane.chunk[lane_bits:]), flipped_key[:key_width])
            )
            places.append(place)
        stored = []
        write_place = None
        for b in range(width):
            # What is read of a key that is written in that cycle is not used.
            bank = Memory(
                shape=key_width, depth=1 << address_bits, init=[], attrs={"no_rw_check": 1}
            )
            m.submodules[f"bank_{b}"] = bank
            write_port = bank.write_port()
            read_port = bank.read_port()
            write_en = Signal(name=f"write_en_{b}")
            hits = Signal(self.n_lanes, name=f"lane_hits_{b}")
            m.d.comb += hits.eq(
                Cat(lane.valid & (lane.chunk[:lane_bits] == b) for lane in self.keys)
            )
            m.d.sync += write_en.eq((store & no_key) | hits.any())
            # With one lane, address and key are the same for all banks.
            if write_place is None or self.n_lanes > 1:
                write_place = Signal(
                    address_bits + key_width, name=f"write_place_{b}", reset_less=True
                )
                m.d.sync += write_place.eq(
                    places[0]
                    if self.n_lanes == 1
                    else _any([Mux(hits[i], place, 0) for i, place in enumerate(places)])
                )
                with m.If(no_key):
                    m.d.sync += write_place[:address_bits].eq(address(feed_row, feed_word))
            m.d.comb += [
                write_port.en.eq(write_en),
                write_port.addr.eq(write_place[:address_bits]),
                write_port.data.eq(Mux(store_s1, merged[b], write_place[address_bits:])),
                read_port.en.eq(1),
                read_port.addr.eq(address(read_row, read_word)),
            ]
            stored.append(read_port.data)

        # Maximum over the rows of a group.
        merge_s1 = Signal()
        merge_first_s1 = Signal(reset_less=True)
        m.d.sync += [merge_s1.eq(merge), merge_first_s1.eq(feed_member == 0)]
        for b in range(width):
            with m.If(merge_s1 & (merge_first_s1 | (stored[b] > merged[b]))):
                m.d.sync += merged[b].eq(stored[b])

        # Passes, in circular order. A slot that is not searched takes its turn of one cycle. A pass
        # begins in the cycle of the decision on the slot's pass before it, or later.
        search = Signal()  # read a word of a pass
        turn = Signal()  # the slot is searched
        ends_pass = Signal()
        undecided = Signal(n_slots)  # a pass is read, and the decision on it is to come
        decide = Signal()
        counted_slot = Signal(range(n_slots), reset_less=True)
        early = Signal()
        m.d.comb += [
            turn.eq(searching.bit_select(pass_slot, 1)),
            early.eq(
                undecided.bit_select(pass_slot, 1) & ~(decide & (counted_slot == pass_slot))
            ),
            search.eq(turn & ~early & ~send & ~merge),
            ends_pass.eq(search & (pass_word == last_word)),
        ]
        with m.If(search):
            m.d.sync += pass_word.eq(pass_word + 1)
        with m.If(~turn | ends_pass):
            m.d.sync += [pass_slot.eq(following(pass_slot)), pass_word.eq(0)]
        # A pass that is long enough for the decision on the pass before it goes over slots that
        # are not searched, to the next that is.
        with m.If(turn & (last_word >= n_slots - 2)), m.Switch(pass_slot):
            for s in range(n_slots):
                with m.Case(s):
                    others = [(s + d) % n_slots for d in range(1, n_slots)]
                    for other in reversed(others):
                        with m.If(ends_pass & searching[other]):
                            m.d.sync += pass_slot.eq(other)
        with m.If(~searching.any()):
            m.d.sync += pass_slot.eq(feed_slot)
        with m.If(decide):
            m.d.sync += undecided.bit_select(counted_slot, 1).eq(0)
        with m.If(ends_pass):
            m.d.sync += undecided.bit_select(pass_slot, 1).eq(1)
        # A turn may begin in the cycle in which the slot's search ends: no decision follows.
        with m.If(feed):
            m.d.sync += undecided.bit_select(feed_slot, 1).eq(0)

        def at_digit(tried, digit):
            """Return the threshold with ``digit``, 0 to 3, in the place that is tried."""
            digit = Value.cast(digit)
            value = tried.threshold | Mux(digit[0], tried.bit, 0)
            if len(digit) == 1:
                return value
            return value | Mux(digit[1], (tried.bit << 1)[:key_width], 0)

        # Stage 1: keys that reach the threshold, or exceed it, among those that are searched.
        def below(limit, name):
            """Mask of the chunks of the word whose id is less than ``limit``."""
            mask = Signal(width, name=name)
            high = limit[lane_bits:]
            with m.If(word_s1 < high):
                m.d.comb += mask.eq(~Const(0, width))
            with m.Elif(word_s1 == high):
                m.d.comb += mask.eq((Const(1, 1) << limit[:lane_bits]) - 1)
            return mask

        exceed = Signal()
        slot_s1 = Signal(range(n_slots), reset_less=True)
        word_s1 = Signal(word_shape, reset_less=True)
        last_s1 = Signal(reset_less=True)
        exceed_s1 = Signal(reset_less=True)
        searched_s1 = Signal(width)
        sure_s1 = Signal(width)  # selected without a search
        exists = below(job.n_chunks, "exists")
        forced = Signal(width)
        m.d.sync += [
            slot_s1.eq(issue_slot),
            word_s1.eq(issue_word),
            last_s1.eq(issue_word == last_word),
            exceed_s1.eq(exceed),
        ]
        m.d.comb += [
            forced.eq(below(n_first, "below_first") | ~below(tail, "below_tail")),
            sure_s1.eq(Mux(among_forced, 0, exists & forced)),
            searched_s1.eq(Mux(quota == 0, 0, exists & Mux(among_forced, forced, ~forced))),
        ]
        # A threshold, and the lower bit of the digit of it that is tried: 0 after the search.
        tries = data.StructLayout({"threshold": key_width, "bit": key_width})
        m.submodules.tried = tried = Memory(shape=tries, depth=n_slots, init=[])
        tried_s1 = tried.read_port(domain="comb")
        reaches = [Signal(width, name=f"reach_{digit}") for digit in DIGITS]
        reach = reaches[0]  # of the threshold itself, after the search
        pass_s1 = Signal()
        valid_s1 = Signal()
        m.d.comb += tried_s1.addr.eq(slot_s1)
        for digit, reached in zip(DIGITS, reaches, strict=True):
            bound = Signal(key_width + 1, name=f"bound_{digit}")
            tries_digit = at_digit(tried_s1.data, digit)
            m.d.comb += [
                bound.eq(Cat(exceed_s1, tries_digit)),
                *(
                    reached[b].eq(searched_s1[b] & (Cat(Const(0, 1), stored[b]) >= bound))
                    for b in range(width)
                ),
            ]
        m.d.comb += [
            # The turn of a slot may begin in the cycle in which its search ends.
            valid_s1.eq(pass_s1 & searching.bit_select(slot_s1, 1)),
        ]
        m.d.sync += pass_s1.eq(search)

        # Stages 2 and 3 (and 4, when wide): count them.
        valid = Signal(name="valid_s2")
        last = Signal(name="last_s2", reset_less=True)
        slot = Signal(range(n_slots), name="slot_s2", reset_less=True)
        m.d.sync += [
            valid.eq(valid_s1),
            last.eq(last_s1),
            slot.eq(slot_s1),
        ]
        parts = []  # of each digit: bits, or numbers, to sum up
        for digit, reached in zip(DIGITS, reaches, strict=True):
            reach_s2 = Signal(width, name=f"reach_{digit}_s2", reset_less=True)
            m.d.sync += reach_s2.eq(reached)
            parts.append(reach_s2)
        if width > COUNT_GROUP:
            for index, digit in enumerate(DIGITS):
                sums = []
                for i in range(0, width, COUNT_GROUP):
                    part = Signal(
                        range(COUNT_GROUP + 1), name=f"part_{digit}_s3_{i}", reset_less=True
                    )
                    m.d.sync += part.eq(_total(parts[index][i : i + COUNT_GROUP]))
                    sums.append(part)
                parts[index] = sums
            valid_s3 = Signal()
            last_s3 = Signal(reset_less=True)
            slot_s3 = Signal(range(n_slots), reset_less=True)
            m.d.sync += [valid_s3.eq(valid), last_s3.eq(last), slot_s3.eq(slot)]
            valid, last, slot = valid_s3, last_s3, slot_s3
        counted = Signal()
        counted_last = Signal(reset_less=True)
        m.d.sync += [
            counted.eq(valid),
            counted_last.eq(last),
            counted_slot.eq(slot),
        ]

        # Decision: what the quota leaves after the words of the pass so far, for each digit.
        exact = Signal()
        ends = Signal()
        differences = []
        for digit, part in zip(DIGITS, parts, strict=True):
            count = Signal(range(width + 1), name=f"count_{digit}", reset_less=True)
            remaining = Signal(
                signed(ceil_log2(self.max_chunks) + 2), name=f"remaining_{digit}", reset_less=True
            )
            difference = Signal.like(remaining, name=f"difference_{digit}")
            m.d.sync += count.eq(_total(part))
            m.d.comb += difference.eq(remaining - count)
            with m.If(counted):
                m.d.sync += remaining.eq(difference)
            with m.If(decide | ~searching.any()):
                m.d.sync += remaining.eq(quota)
            differences.append(difference)
        m.submodules.lacking = lacking = Memory(shape=limit_shape, depth=n_slots, init=[])
        lacking_write = lacking.write_port()
        lacking_read = lacking.read_port(domain="comb")
        tried_counted = tried.read_port(domain="comb")
        tried_write = tried.write_port()
        old = tried_counted.data
        # Fewer keys reach a larger digit: the digits that stay are the lowest ones. The digit that
        # is reached by as many keys as are wanted, if any, is the next one.
        stay = Signal(len(DIGITS))
        digit = Signal(2)
        missed = Signal.like(differences[0])  # wanted beyond those that reach the next digit
        m.d.comb += [
            stay.eq(Cat(difference < 0 for difference in differences)),
            exact.eq(Cat(difference == 0 for difference in differences).any()),
            digit.eq(_total(stay) + exact),
            missed.eq(Mux(stay[0], Mux(stay[1], differences[2], differences[1]), differences[0])),
            decide.eq(counted & counted_last),
            ends.eq(exact | old.bit[0]),
            tried_counted.addr.eq(counted_slot),
            # With a slot's first digit; after a pass, with the next.
            tried_write.en.eq(feed | decide),
            tried_write.addr.eq(Mux(feed, feed_slot, counted_slot)),
            # Wanted of the keys that are equal to the final threshold.
            lacking_write.en.eq(feed | (decide & ~stay.all())),
            lacking_write.addr.eq(Mux(feed, feed_slot, counted_slot)),
            lacking_write.data.eq(Mux(feed, quota, missed[: len(quota)])),
            lacking_read.addr.eq(out_slot),
        ]
        with m.If(feed):
            m.d.comb += [
                tried_write.data.threshold.eq(0),
                tried_write.data.bit.eq(searches << (key_width - 2)),
            ]
        with m.Else():
            m.d.comb += [
                tried_write.data.threshold.eq(at_digit(old, digit)),
                tried_write.data.bit.eq(Mux(exact, 0, old.bit >> 2)),
            ]
        with m.If(decide & ends):
            m.d.sync += [
                searching.bit_select(counted_slot, 1).eq(0),
                done.bit_select(counted_slot, 1).eq(1),
                tied.bit_select(counted_slot, 1).eq(~exact),
            ]

        # Sending of the rows that are done, in order.
        o = self.o
        out_row = Signal(range(self.max_rows), reset_less=True)
        out_member = Signal(range(self.max_rows), reset_less=True)
        room = Signal()
        waited = Signal()  # `o` was not taken in the last cycle
        all_sent = Signal()  # the words of the row are all read
        send_s1 = Signal()
        row_sent = Signal()
        last_row = Signal()
        last_member = Signal()
        out_tied = Signal()
        next_slot = Signal.like(out_slot)  # of the row that is to be sent next
        ready_next = Signal()  # from the next cycle on, it is done, without ties
        m.d.comb += [
            last_member.eq(out_member == job.group - 1),
            next_slot.eq(out_slot),
            ready_next.eq(
                (done & ~tied).bit_select(next_slot, 1)
                | (decide & exact & (counted_slot == next_slot))
                | (feed & ~searches & (feed_slot == next_slot))
            ),
            room.eq(~o.valid | o.ready),
            last_row.eq(out_row == job.n_rows - 1),
            out_tied.eq(tied.bit_select(out_slot, 1)),
        ]
        m.d.sync += [waited.eq(~room), send_s1.eq(0)]
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)

        def fill():
            m.d.sync += [
                o.p.row.eq(out_row),
                o.p.word.eq(word_s1),
                o.p.bits.eq(sure_s1 | reach),
                o.p.last.eq(last_s1 & last_row),
            ]

        n_pick = -(-width // PICK_STEPS)
        n_steps = width // n_pick
        pool = Signal(width, reset_less=True)  # keys equal to the threshold
        left = Signal(limit_shape, reset_less=True)  # wanted of them
        none_left = Signal(reset_less=True)
        picked = Signal(n_pick)
        step = Signal(range(n_steps), reset_less=True)
        m.d.comb += [
            picked[j].eq(pool[j] & ((_total(pool[:j]) if j else 0) < left)) for j in range(n_pick)
        ]

        with m.FSM(name="sender"):
            with m.State("ROW"):
                # Of a row with ties, some are wanted.
                m.d.sync += [left.eq(lacking_read.data), none_left.eq(0)]
                with m.If(ready_next):
                    m.next = "SEND"
                with m.Elif(done.bit_select(out_slot, 1)):
                    m.next = "EXCEED"

            # Words without ties, or whose ties are not wanted.
            with m.State("SEND"):
                with m.If(last_member):
                    m.d.comb += next_slot.eq(following(out_slot))
                m.d.comb += [
                    send.eq(~all_sent & ~waited),
                    exceed.eq(send & out_tied),
                ]
                m.d.sync += send_s1.eq(send)
                with m.If(send):
                    m.d.sync += [out_word.eq(out_word + 1), all_sent.eq(out_word == last_word)]
                with m.If(send_s1):
                    with m.If(room):
                        fill()
                        m.d.sync += o.valid.eq(1)
                        with m.If(last_s1):
                            m.d.comb += row_sent.eq(1)
                            with m.If(~ready_next):
                                m.next = "ROW"
                    with m.Else():
                        # Read it again, and do not heed the word that is being read.
                        m.d.sync += [out_word.eq(word_s1), all_sent.eq(0), send_s1.eq(0)]

            # A word with ties: first the keys above the threshold, then those that reach it. In
            # the cycle after PICK, when `none_left` is late, `o` is valid.
            with m.State("EXCEED"):
                m.d.sync += none_left.eq(left == 0)
                with m.If(none_left):
                    m.next = "SEND"
                with m.Elif(~o.valid):
                    m.d.comb += [send.eq(1), exceed.eq(1)]
                    m.next = "REACH"
            with m.State("REACH"):
                m.d.comb += send.eq(1)
                fill()
                m.next = "POOL"
            with m.State("POOL"):
                m.d.sync += [pool.eq(reach & ~o.p.bits), step.eq(0)]
                m.next = "PICK"
            with m.State("PICK"):
                m.d.sync += [
                    pool.eq(pool >> n_pick),
                    o.p.bits.eq(Cat(o.p.bits[n_pick:], o.p.bits[:n_pick] | picked)),
                    left.eq(left - _total(picked)),
                    step.eq(step + 1),
                ]
                with m.If(step == n_steps - 1):
                    m.d.sync += [o.valid.eq(1), out_word.eq(out_word + 1)]
                    m.next = "EXCEED"
                    with m.If(out_word == last_word):
                        m.d.comb += row_sent.eq(1)
                        m.next = "ROW"

        with m.If(row_sent):
            m.d.sync += [
                out_word.eq(0),
                all_sent.eq(0),
                out_row.eq(out_row + 1),
                out_member.eq(out_member + 1),
            ]
            with m.If(last_member):
                m.d.sync += [
                    out_member.eq(0),
                    out_slot.eq(following(out_slot)),
                    done.bit_select(out_slot, 1).eq(0),
                ]

        # Job: the maxima of each group, and its slot.
        free = Signal()
        m.d.comb += free.eq(~(searching | done).bit_select(feed_slot, 1))
        with m.FSM(name="ctrl") as ctrl:
            with m.State("IDLE"):
                m.d.comb += self.start.ready.eq(1)
                m.d.sync += [
                    job.eq(self.start.p),
                    feed_row.eq(0),
                    feed_member.eq(0),
                    feed_word.eq(0),
                    out_row.eq(0),
                    out_member.eq(0),
                ]
                with m.If(self.start.valid):
                    m.next = "PREPARE"

            with m.State("PREPARE"):
                m.d.sync += [
                    last_word.eq((job.n_chunks - 1)[lane_bits:]),
                    n_first.eq(Mux(job.keep_first < job.n_chunks, job.keep_first, job.n_chunks)),
                    n_last.eq(Mux(job.keep_last < job.n_chunks, job.keep_last, job.n_chunks)),
                    target.eq(Mux(job.k < job.n_chunks, job.k, job.n_chunks)),
                    everything.eq(job.k >= job.n_chunks),
                ]
                m.next = "LIMIT"
                with m.If(job.n_rows == 0):
                    m.next = "IDLE"
            with m.State("LIMIT"):
                # The two kinds of forced chunks overlap only when all chunks are forced: then the
                # search is among them, or everything is selected.
                excess = Signal(signed(len(quota) + 2))
                m.d.comb += excess.eq(target - (n_first + n_last))
                m.d.sync += [
                    tail.eq(job.n_chunks - n_last),
                    among_forced.eq(excess < 0),
                    quota.eq(Mux(excess < 0, target, excess[: len(quota)])),
                ]
                m.next = "NEXT"

            with m.State("NEXT"):
                m.next = "FEED"
                with m.If(searches & (job.group != 1)):
                    m.next = "MERGE"
            with m.State("MERGE"):
                m.d.comb += [merging.eq(1), merge.eq(~send)]
                with m.If(merge):
                    m.d.sync += feed_member.eq(feed_member + 1)
                    with m.If(feed_member == job.group - 1):
                        m.d.sync += feed_member.eq(0)
                        m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += store.eq(1)
                with m.If(no_key):
                    m.d.sync += feed_word.eq(feed_word + 1)
                    m.next = "MERGE"
                    with m.If(feed_word == last_word):
                        m.d.sync += feed_word.eq(0)
                        m.next = "FEED"
            with m.State("FEED"):
                # The last maximum is written at the end of the first cycle.
                m.d.comb += feed.eq(free & ~decide)
                with m.If(feed):
                    m.d.sync += [
                        searching.bit_select(feed_slot, 1).eq(searches),
                        done.bit_select(feed_slot, 1).eq(~searches),
                        tied.bit_select(feed_slot, 1).eq(0),
                        feed_slot.eq(following(feed_slot)),
                        feed_row.eq(feed_row + job.group),
                    ]
                    with m.If(feed_row + job.group == job.n_rows):
                        m.next = "DRAIN"
                    with m.Elif(searches & (job.group != 1)):
                        m.next = "MERGE"
            with m.State("DRAIN"):
                with m.If(row_sent & last_row):
                    m.next = "IDLE"

        m.d.comb += self.busy.eq(~ctrl.ongoing("IDLE") | o.valid)

        return m
