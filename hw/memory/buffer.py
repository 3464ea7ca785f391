"""On-chip buffer between bus words and the words that a consumer reads."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2


class WordBuffer(wiring.Component):
    """RAM written in words of ``write_width`` bits and read in words of ``read_width`` bits.

    One width is a power of two times the other; word n of the narrow side is part of word
    n // ratio of the wide side, lowest bits first. Latency: ``read_data`` belongs to the
    ``read_addr`` of the cycle before. Storage: ``depth * write_width`` bits.

    Parameters
    ----------
    write_width, read_width : int
        bits
    depth : int
        words of the write side

    Members
    -------
    write : :py:`In(StructLayout({"valid": 1, "addr": range(depth), "data": write_width}))`
    read_addr : :py:`In(range(depth * write_width // read_width))`
    read_data : :py:`Out(read_width)`

    """

    def __init__(self, *, write_width, read_width, depth):
        wide, narrow = max(write_width, read_width), min(write_width, read_width)
        if wide % narrow or wide // narrow & (wide // narrow - 1):
            raise ValueError(
                f"read_width must be write_width ({write_width}) times or over a power of two, "
                f"not {read_width}"
            )
        if depth * write_width % read_width:
            raise ValueError(f"depth must fill whole read words, not {depth}")
        self.write_width = write_width
        self.read_width = read_width
        self.depth = depth
        self.read_depth = depth * write_width // read_width
        super().__init__(
            {
                "write": In(
                    data.StructLayout(
                        {"valid": 1, "addr": ceil_log2(depth), "data": write_width}
                    )
                ),
                "read_addr": In(ceil_log2(self.read_depth)),
                "read_data": Out(read_width),
            }
        )

    def elaborate(self, platform):
        m = Module()

        n_banks = max(1, self.read_width // self.write_width)
        select_bits = exact_log2(n_banks)
        words = []
        part_bits = exact_log2(max(1, self.write_width // self.read_width))
        for index in range(n_banks):
            m.submodules[f"bank_{index}"] = bank = Memory(
                shape=self.write_width, depth=max(1, self.depth // n_banks), init=[]
            )
            write, read = bank.write_port(), bank.read_port()
            m.d.comb += [
                write.en.eq(self.write.valid & (self.write.addr[:select_bits] == index)),
                write.addr.eq(self.write.addr[select_bits:]),
                write.data.eq(self.write.data),
                read.en.eq(1),
                read.addr.eq(self.read_addr[part_bits:]),
            ]
            words.append(read.data)

        if part_bits:
            part = Signal(part_bits)
            m.d.sync += part.eq(self.read_addr[:part_bits])
            m.d.comb += self.read_data.eq(words[0].word_select(part, self.read_width))
        else:
            m.d.comb += self.read_data.eq(Cat(*words))

        return m
