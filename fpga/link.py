"""The board's end of the link: frames of bytes in, accesses to the bus, frames of bytes out."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moska.fpga import frame
from moska.fpga.frame import Operation, Status
from moska.gen import emit
from moska.hw.memory.crc import CRC_BITS, INITIAL, crc_step

NAME = "link"  # of the Verilog module
WORD_BITS = 32
BYTES = WORD_BITS // 8
GAP_CYCLES = 1 << 20  # 20 ms of a board: longer than the host's pauses between USB packets
SIMULATED_GAP_CYCLES = 1 << 14  # bytes of a frame are there at once
BUS_CYCLES = 1 << 16


class Link(wiring.Component):
    """Carry out requests of :mod:`moska.fpga.frame` on a Wishbone bus, one at a time.

    A frame is stored whole, and its CRC compared, before the bus sees anything of it. One that is
    not good (a wrong first byte, CRC or operation, or a pause of ``gap_cycles`` before its end) is
    answered with REJECTED when no byte has come for ``gap_cycles``: then the next frame is awaited,
    so that nothing within a bad frame is taken for the beginning of one.

    A request with the sequence number of the one before is not carried out; the response to that
    one is sent again. It is kept apart from requests, so that a bad frame does not change it. HELLO
    is always carried out. Any other request before the first HELLO is answered with STRANGER.

    ``rx`` is ready from the end of a response to the end of the next frame.

    Storage: 512 words, half for the request and half for the response.

    Parameters
    ----------
    gap_cycles : int
        without a byte that end a frame, at least 2
    bus_cycles : int
        that an access may take, at least 2

    Members
    -------
    rx : :py:`In(stream.Signature(8))`
    tx : :py:`Out(stream.Signature(8))`
    adr : :py:`Out(30)`
        word address
    dat_w, dat_r : :py:`Out(32)`, :py:`In(32)`
    sel : :py:`Out(4)`
    cyc, stb, we : :py:`Out(1)`
    ack, err : :py:`In(1)`
        end of an access; an error is one with or without ``ack``
    interrupt : :py:`In(1)`
        told with every response

    """

    rx: In(stream.Signature(8))
    tx: Out(stream.Signature(8))
    adr: Out(WORD_BITS - 2)
    dat_w: Out(WORD_BITS)
    dat_r: In(WORD_BITS)
    sel: Out(BYTES)
    cyc: Out(1)
    stb: Out(1)
    we: Out(1)
    ack: In(1)
    err: In(1)
    interrupt: In(1)

    def __init__(self, *, gap_cycles=GAP_CYCLES, bus_cycles=BUS_CYCLES):
        for name, cycles in (("gap_cycles", gap_cycles), ("bus_cycles", bus_cycles)):
            if cycles < 2:
                raise ValueError(f"{name} must be at least 2, not {cycles}")
        self.gap_cycles = gap_cycles
        self.bus_cycles = bus_cycles
        super().__init__()

    def ports(self):
        """Ports by their names in Verilog."""
        named = {
            f"{name}_{signal}": getattr(port, member)
            for name, port in (("rx", self.rx), ("tx", self.tx))
            for signal, member in (("valid", "valid"), ("ready", "ready"), ("data", "payload"))
        }
        for name in ("adr", "dat_w", "dat_r", "sel", "cyc", "stb", "we", "ack", "err"):
            named[f"wb_{name}"] = getattr(self, name)
        named["interrupt"] = self.interrupt
        return {name: (signal, None) for name, signal in named.items()}

    def elaborate(self, platform):
        m = Module()

        # Requests in the lower half, what was read in the upper half.
        m.submodules.words = words = Memory(shape=WORD_BITS, depth=2 * frame.MAX_WORDS, init=[])
        store, fetch = words.write_port(), words.read_port()

        sequence, count = Signal(8), Signal(8)  # of the request; words less 1
        operation, select = Signal(4), Signal(BYTES)
        address = Signal(WORD_BITS)
        last_sequence = Signal(8)
        acquainted = Signal()  # a HELLO has come since reset
        status, payload = Signal(4), Signal()  # of the last request carried out
        words_answered = Signal(8)  # less 1
        left, ending = Signal(), Signal()  # more payload is to be sent; the CRC is being sent

        index = Signal(range(frame.HEADER_WORDS + frame.MAX_WORDS + 1))  # of a word
        place = Signal(range(BYTES))  # of a byte in it
        word = Signal(WORD_BITS)
        crc = Signal(CRC_BITS, init=INITIAL)
        silence = Signal(range(self.gap_cycles + 1))
        waited = Signal(range(self.bus_cycles + 1))

        # A byte that comes or goes.
        received, sent, passing = Signal(), Signal(), Signal(8)
        next_crc = Signal(CRC_BITS)
        m.d.comb += [
            received.eq(self.rx.valid & self.rx.ready),
            sent.eq(self.tx.valid & self.tx.ready),
            passing.eq(Mux(sent, word[:8], self.rx.payload)),
            next_crc.eq(crc_step(crc, passing)),
            self.tx.payload.eq(word[:8]),
        ]
        with m.If(received | sent):
            m.d.sync += [crc.eq(next_crc), word.eq(Cat(word[8:], passing)), place.eq(place + 1)]
        with m.If(received):
            m.d.sync += silence.eq(0)
        with m.Elif(silence != self.gap_cycles):
            m.d.sync += silence.eq(silence + 1)
        silent = silence == self.gap_cycles

        complete = Signal(WORD_BITS)  # the word that ends with this byte
        header_end = frame.HEADER_WORDS + Mux(operation == Operation.WRITE, count + 1, 0)
        m.d.comb += [
            complete.eq(Cat(word[8:], self.rx.payload)),
            store.addr.eq(Cat((index - frame.HEADER_WORDS)[:8], Const(0, 1))),
            store.data.eq(complete),
            fetch.en.eq(1),
            self.adr.eq(address[2:]),
            self.dat_w.eq(fetch.data),
            self.sel.eq(Mux(self.we, select, frame.ALL_BYTES)),
            self.we.eq(operation == Operation.WRITE),
        ]

        def answer(code, *, with_payload=0):
            """Note what became of the request."""
            return [
                status.eq(code),
                payload.eq(with_payload),
                words_answered.eq(count),
                last_sequence.eq(sequence),
            ]

        def begin(code, with_payload, number):
            """Load the first word of a response."""
            flags = Cat(code, Const(0, 2), with_payload, self.interrupt)
            head = Cat(Const(frame.RESPONSE, 8), number, flags, words_answered)
            return [
                word.eq(head), crc.eq(INITIAL), index.eq(0), place.eq(0),
                left.eq(with_payload), ending.eq(0),
            ]  # fmt: skip

        with m.FSM(name="control"):
            with m.State("RECEIVE"):
                m.d.comb += self.rx.ready.eq(1)
                with m.If(received):
                    with m.If((index == 0) & (place == 0) & (self.rx.payload != frame.REQUEST)):
                        m.next = "SILENCE"
                    with m.If(place == BYTES - 1):
                        m.d.sync += index.eq(index + 1)
                        with m.If(index == 0):
                            m.d.sync += [
                                sequence.eq(complete[8:16]),
                                operation.eq(complete[16:20]),
                                select.eq(complete[20:24]),
                                count.eq(complete[24:]),
                            ]
                        with m.Elif(index == 1):
                            m.d.sync += address.eq(complete)
                        with m.Elif(index == header_end):
                            m.next = "CHECK"
                        with m.Else():
                            m.d.comb += store.en.eq(1)
                with m.Elif(silent & ((index != 0) | (place != 0))):
                    m.next = "REJECT"
            with m.State("CHECK"):
                m.d.sync += [index.eq(0), waited.eq(0)]
                with m.If((crc != frame.RESIDUE) | (operation > max(Operation))):
                    m.next = "SILENCE"
                with m.Elif(operation == Operation.HELLO):
                    m.d.comb += [
                        store.addr.eq(frame.MAX_WORDS),
                        store.data.eq(address),
                        store.en.eq(1),
                    ]
                    m.d.sync += [*answer(Status.DONE, with_payload=1), acquainted.eq(1)]
                    m.d.sync += words_answered.eq(0)
                    m.next = "ANSWER"
                with m.Elif(~acquainted):
                    m.d.sync += begin(Const(Status.STRANGER, 4), Const(0, 1), sequence)
                    m.next = "SEND"
                with m.Elif(sequence == last_sequence):
                    m.next = "ANSWER"
                with m.Else():
                    m.d.sync += answer(Status.DONE, with_payload=operation == Operation.READ)
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += fetch.addr.eq(index[:8])
                m.next = "ACCESS"
            with m.State("ACCESS"):
                m.d.comb += [
                    fetch.addr.eq(index[:8]),
                    self.cyc.eq(1),
                    self.stb.eq(1),
                    store.addr.eq(Cat(index[:8], Const(1, 1))),
                    store.data.eq(self.dat_r),
                ]
                m.d.sync += waited.eq(waited + 1)
                with m.If(self.err | (waited == self.bus_cycles)):
                    m.d.sync += [status.eq(Status.BUS_ERROR), payload.eq(0)]
                    m.next = "ANSWER"
                with m.Elif(self.ack):
                    m.d.comb += store.en.eq(~self.we)
                    m.d.sync += [index.eq(index + 1), address.eq(address + BYTES), waited.eq(0)]
                    m.next = "FETCH"
                    with m.If(index == count):
                        m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.sync += begin(status, payload, last_sequence)
                m.next = "SEND"
            with m.State("SILENCE"):
                m.d.comb += self.rx.ready.eq(1)
                with m.If(silent):
                    m.next = "REJECT"
            with m.State("REJECT"):
                m.d.sync += begin(Const(Status.REJECTED, 4), Const(0, 1), Const(0, 8))
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [
                    fetch.addr.eq(Cat(index[:8], Const(1, 1))),
                    self.tx.valid.eq(1),
                ]
                with m.If(sent & (place == BYTES - 1)):
                    with m.If(left):
                        m.d.sync += [word.eq(fetch.data), index.eq(index + 1)]
                        m.d.sync += left.eq(index != words_answered)
                    with m.Elif(~ending):
                        m.d.sync += [word.eq(~next_crc), ending.eq(1)]
                    with m.Else():
                        m.d.sync += [index.eq(0), crc.eq(INITIAL)]
                        m.next = "RECEIVE"

        return m


def verilog(**options) -> str:
    """Verilog of the module ``link``, with ports ``clk`` and ``rst``; options as of Link."""
    link = Link(**options)
    return emit.convert(link, link.ports(), name=NAME)
