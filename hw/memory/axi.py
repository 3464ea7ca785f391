"""AXI4 and AXI4-Lite signatures, the burst splitter, and the names that buses get in Verilog."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

# No burst may touch two pages of this size (AXI4), nor have more beats.
PAGE_BYTES = 4096
MAX_BEATS = 256


class Response(enum.Enum, shape=2):
    """Codes of RRESP and BRESP."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


class Burst(enum.Enum, shape=2):
    """Codes of ARBURST and AWBURST."""

    FIXED = 0
    INCR = 1
    WRAP = 2


# ARCACHE and AWCACHE of all bursts: normal memory, not cacheable, bufferable.
CACHE_NORMAL = 0b0011


def check_data_width(data_width):
    """Raise ``ValueError`` unless ``data_width`` is a width that AXI4 allows, in bits."""
    if data_width not in (8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"data_width must be a power of two from 8 to 1024, not {data_width!r}")


class AXI4Read(wiring.Signature):
    """Read channels (AR, R) of AXI4, seen from the manager.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 8 to 1024
    addr_width : int
        bits of a byte address
    id_width : int
        bits of ARID and RID

    """

    def __init__(self, data_width, addr_width=64, id_width=1):
        check_data_width(data_width)
        self.data_width = data_width
        self.addr_width = addr_width
        self.id_width = id_width
        super().__init__(
            {
                "arid": Out(id_width),
                "araddr": Out(addr_width),
                "arlen": Out(8),
                "arsize": Out(3),
                "arburst": Out(Burst),
                "arcache": Out(4),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rid": In(id_width),
                "rdata": In(data_width),
                "rresp": In(Response),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )

    def _parameters(self):
        return self.data_width, self.addr_width, self.id_width

    def __eq__(self, other):
        return isinstance(other, AXI4Read) and self._parameters() == other._parameters()

    def __repr__(self):
        return f"AXI4Read({self.data_width}, {self.addr_width}, {self.id_width})"


class AXI4Write(wiring.Signature):
    """Write channels (AW, W, B) of AXI4, seen from the manager.

    Parameters
    ----------
    data_width : int
        bits of a beat, a power of two from 8 to 1024
    addr_width : int
        bits of a byte address
    id_width : int
        bits of AWID and BID

    """

    def __init__(self, data_width, addr_width=64, id_width=1):
        check_data_width(data_width)
        self.data_width = data_width
        self.addr_width = addr_width
        self.id_width = id_width
        super().__init__(
            {
                "awid": Out(id_width),
                "awaddr": Out(addr_width),
                "awlen": Out(8),
                "awsize": Out(3),
                "awburst": Out(Burst),
                "awcache": Out(4),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(data_width),
                "wstrb": Out(data_width // 8),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(id_width),
                "bresp": In(Response),
                "bvalid": In(1),
                "bready": Out(1),
            }
        )

    def _parameters(self):
        return self.data_width, self.addr_width, self.id_width

    def __eq__(self, other):
        return isinstance(other, AXI4Write) and self._parameters() == other._parameters()

    def __repr__(self):
        return f"AXI4Write({self.data_width}, {self.addr_width}, {self.id_width})"


class AXI4Lite(wiring.Signature):
    """All five channels of AXI4-Lite, seen from the manager.

    Parameters
    ----------
    addr_width : int
        bits of a byte address
    data_width : int
        32 or 64 bits

    """

    def __init__(self, addr_width, data_width=32):
        if data_width not in (32, 64):
            raise ValueError(f"data_width must be 32 or 64, not {data_width!r}")
        self.addr_width = addr_width
        self.data_width = data_width
        super().__init__(
            {
                "awaddr": Out(addr_width),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(data_width),
                "wstrb": Out(data_width // 8),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(Response),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(addr_width),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(data_width),
                "rresp": In(Response),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )

    def __eq__(self, other):
        return (
            isinstance(other, AXI4Lite)
            and self.addr_width == other.addr_width
            and self.data_width == other.data_width
        )

    def __repr__(self):
        return f"AXI4Lite({self.addr_width}, {self.data_width})"


def export(prefix, interface):
    """Ports of ``interface`` for ``amaranth.back.verilog.convert(ports=...)``.

    Returns ``{"<prefix>_<member>": (Value, None)}``, one entry per signal of the interface.
    """
    return {
        "_".join((prefix, *(str(part) for part in path))): (Value.cast(value), None)
        for path, _, value in interface.signature.flatten(interface)
    }


class Command(data.Struct):
    """A run of bus words. ``addr``: byte address of the first; ``n_beats``: 1 to 2**20 - 1."""

    addr: 64
    n_beats: 20


class BurstCommand(data.Struct):
    """One INCR burst. ``addr``: byte address, aligned to the bus; ``n_beats``: 1 to 256."""

    addr: 64
    n_beats: 9


def default_max_burst(data_width):
    """Return the bytes of the longest burst when the user names none: 1 KiB, or 256 beats."""
    return min(1024, MAX_BEATS * data_width // 8)


def check_max_burst(data_width, max_burst):
    """Raise ``ValueError`` unless bursts may end at multiples of ``max_burst`` bytes."""
    bus_bytes = data_width // 8
    limit = min(PAGE_BYTES, MAX_BEATS * bus_bytes)
    if max_burst & (max_burst - 1) or not bus_bytes <= max_burst <= limit:
        raise ValueError(
            f"max_burst must be a power of two from {bus_bytes} to {limit} bytes, "
            f"not {max_burst!r}"
        )


class BurstSplitter(wiring.Component):
    """Cut commands into bursts that end at multiples of ``max_burst`` bytes.

    ``max_burst`` divides 4096, so no burst crosses a 4 KiB boundary. A burst is valid 1 cycle
    after its command; one burst per cycle, with no gap between commands. The low address bits,
    below a bus word, are taken as 0. A command of 0 beats gives no burst.

    Parameters
    ----------
    data_width : int
        bits of a beat
    max_burst : int
        bytes of the longest burst: a power of two, from one beat to 256 beats or 4096 bytes

    Members
    -------
    i : :py:`In(stream.Signature(Command))`
    o : :py:`Out(stream.Signature(BurstCommand))`

    """

    i: In(stream.Signature(Command))
    o: Out(stream.Signature(BurstCommand))

    def __init__(self, *, data_width, max_burst):
        check_data_width(data_width)
        check_max_burst(data_width, max_burst)
        self.data_width = data_width
        self.max_burst = max_burst
        super().__init__()

    def elaborate(self, platform):
        m = Module()

        word_bits = exact_log2(self.data_width // 8)
        burst_beats = self.max_burst // (self.data_width // 8)
        low_bits = exact_log2(burst_beats)

        active = Signal()
        word = Signal(64 - word_bits, reset_less=True)
        left = Signal(20, reset_less=True)

        to_boundary = Signal(range(burst_beats + 1))
        final = Signal()
        m.d.comb += [
            to_boundary.eq(burst_beats - word[:low_bits]),
            final.eq(left <= to_boundary),
            self.o.valid.eq(active),
            self.o.p.addr.eq(Cat(Const(0, word_bits), word)),
            self.o.p.n_beats.eq(Mux(final, left, to_boundary)),
            self.i.ready.eq(~active | (self.o.ready & final)),
        ]

        with m.If(self.i.ready):
            m.d.sync += [
                active.eq(self.i.valid & (self.i.p.n_beats != 0)),
                word.eq(self.i.p.addr[word_bits:]),
                left.eq(self.i.p.n_beats),
            ]
        with m.Elif(self.o.ready):
            # Only the command's last burst may end off a boundary, so the next one starts on one.
            m.d.sync += [
                word.eq(Cat(Const(0, low_bits), word[low_bits:] + 1)),
                left.eq(left - to_boundary),
            ]

        return m
