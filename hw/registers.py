"""Register map, compiled from ``regs.rdl``, and the AXI4-Lite register file made from it."""

import functools
import pathlib
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out
from systemrdl import RDLCompiler, RDLListener, RDLWalker
from systemrdl.node import FieldNode, RegfileNode
from systemrdl.rdltypes import AccessType, OnWriteType, PrecedenceType

from moska.hw.memory.axi import AXI4Lite, Response

RDL = pathlib.Path(__file__).with_name("regs.rdl")
ADDR_WIDTH = 12


class Kind(enum.Enum):
    """Behaviour of a field, seen from software."""

    CONSTANT = "constant"
    INPUT = "read only"
    STORAGE = "read, write"
    PULSE = "write 1 to trigger"
    STICKY = "read, write 1 to clear"
    SET_ONCE = "read, write 1 to set"


LOCKS = (Kind.STORAGE, Kind.STICKY, Kind.SET_ONCE)  # kinds that a lock may be of


@dataclass(frozen=True)
class Field:
    """One field: bits ``lsb`` to ``lsb + width - 1``. ``reset`` is 0 for an input.

    ``notifies``: a write is told to the hardware. ``lock``: path of the field that keeps writes
    out while it is 1, or empty. Both are of STORAGE only.
    """

    name: str
    desc: str
    lsb: int
    width: int
    reset: int
    kind: Kind
    notifies: bool = False
    lock: str = ""

    @property
    def mask(self):
        """Bits of the field in its register."""
        return ((1 << self.width) - 1) << self.lsb


@dataclass(frozen=True)
class Register:
    """One 32-bit register at byte ``offset``. ``group`` is its regfile's name, or empty."""

    name: str
    desc: str
    offset: int
    group: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class RegisterMap:
    """All registers, by rising offset. ``groups``: name and description of each regfile."""

    name: str
    desc: str
    registers: tuple[Register, ...]
    groups: tuple[tuple[str, str], ...]

    def __getitem__(self, name):
        """Return the register called ``name``."""
        for register in self.registers:
            if register.name == name:
                return register
        raise KeyError(name)


def field_path(register, field):
    """Return ``register.field``, or ``register`` alone for the field named ``value``."""
    return _path(register.name, field.name)


def _path(register_name, field_name):
    return register_name if field_name == "value" else f"{register_name}.{field_name}"


def _kind(node):
    """Return the Kind of a field; refuse combinations that the register file does not build."""
    sw, hw = node.get_property("sw"), node.get_property("hw")
    pulse = node.get_property("singlepulse")
    onwrite = node.get_property("onwrite")
    sets = node.get_property("hwset") is True
    others = [
        name
        for name in ("onread", "hwclr", "counter", "we", "wel", "swacc", "swwe", "rclr", "rset")
        if node.get_property(name)
    ]
    kind = None
    if not others:
        match sw, hw, pulse, onwrite, sets:
            case AccessType.r, AccessType.na, False, None, False:
                kind = Kind.CONSTANT
            case AccessType.r, AccessType.w, False, None, False:
                kind = Kind.INPUT
            case AccessType.rw, AccessType.r, False, None, False:
                kind = Kind.STORAGE
            case AccessType.w, AccessType.r, True, None, False:
                kind = Kind.PULSE
            case AccessType.rw, AccessType.r, False, OnWriteType.woclr, True:
                if node.get_property("precedence") is PrecedenceType.hw:
                    kind = Kind.STICKY
            case AccessType.rw, AccessType.r, False, OnWriteType.woset, False:
                kind = Kind.SET_ONCE
    # Told writes and locks are built for plain storage.
    if kind is not Kind.STORAGE and (node.get_property("swmod") or node.get_property("swwel")):
        kind = None
    if kind is None:
        raise ValueError(f"field {node.get_path()} must be of a kind listed in regs.rdl")
    return kind


def _lock(node):
    """Return the path of the field that ``swwel`` refers to, or an empty string."""
    lock = node.get_property("swwel")
    if lock is False:
        return ""
    # The compiler has made sure that a field referred to has one bit.
    if not isinstance(lock, FieldNode) or _kind(lock) not in LOCKS:
        raise ValueError(f"swwel of field {node.get_path()} must refer to a field that is stored")
    return _path(lock.parent.inst_name, lock.inst_name)


class _Reader(RDLListener):
    """Collect groups and registers of a compiled map."""

    def __init__(self):
        self.groups = []
        self.registers = []

    def _desc(self, node):
        desc = node.get_property("desc")
        if not desc:
            raise ValueError(f"{node.get_path()} must have a desc")
        return desc

    def enter_Regfile(self, node):
        self.groups.append((node.inst_name, self._desc(node)))

    def enter_Reg(self, node):
        if node.get_property("regwidth") != 32:
            raise ValueError(
                f"register {node.get_path()} must have 32 bits, "
                f"not {node.get_property('regwidth')}"
            )
        fields = []
        for field in node.fields():
            kind = _kind(field)
            reset = field.get_property("reset")
            if kind is not Kind.INPUT and reset is None:
                raise ValueError(f"field {field.get_path()} must have a reset value")
            fields.append(
                Field(
                    name=field.inst_name,
                    desc=self._desc(field),
                    lsb=field.lsb,
                    width=field.width,
                    reset=reset or 0,
                    kind=kind,
                    notifies=bool(field.get_property("swmod")),
                    lock=_lock(field),
                )
            )
        self.registers.append(
            Register(
                name=node.inst_name,
                desc=self._desc(node),
                offset=node.absolute_address,
                group=node.parent.inst_name if isinstance(node.parent, RegfileNode) else "",
                fields=tuple(fields),
            )
        )


@functools.cache
def load_map(path=RDL):
    """Compile a SystemRDL file into a RegisterMap.

    Raises
    ------
    ValueError
        when a register does not have 32 bits, a name occurs twice, an item has no ``desc``, an
        offset needs more than 12 bits, a field is of a kind that RegisterFile does not build, or
        a lock is not a stored field.
    systemrdl.RDLCompileError
        when the file is not correct SystemRDL.

    """
    compiler = RDLCompiler()
    compiler.compile_file(str(path))
    top = compiler.elaborate().top
    reader = _Reader()
    RDLWalker(unroll=True).walk(top, reader)
    registers = tuple(sorted(reader.registers, key=lambda register: register.offset))

    names = [register.name for register in registers]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"register names must be unique, not repeated as {', '.join(twice)}")
    if registers[-1].offset >= 1 << ADDR_WIDTH:
        raise ValueError(
            f"offsets must be below {1 << ADDR_WIDTH:#x}, not {registers[-1].offset:#x}"
        )
    return RegisterMap(
        name=top.inst_name,
        desc=reader._desc(top),
        registers=registers,
        groups=tuple(reader.groups),
    )


class RegisterFile(wiring.Component):
    """AXI4-Lite subordinate with the registers of a RegisterMap.

    Each field that is not constant has a port called ``<register>_<field>``, or ``<register>``
    for a field named ``value``: an input for a read-only field, else an output. A sticky field
    also has the input ``<register>_<field>_set``, a field that tells of writes (``swmod``) the
    output ``<register>_<field>_swmod``.

    - AW and W are taken in any order, one of each; the write happens in the cycle after the later
      one, and B answers in the cycle after that. A read answers in the cycle after AR.
    - Byte strobes select the bytes that change. The two low address bits are ignored.
    - A written pulse field is 1 for the cycle in which B becomes valid, and reads as 0.
    - A sticky field is set by its ``_set`` input and cleared by writing 1; when both happen in one
      cycle, it is set.
    - A field that is set by writing 1 and not sticky is cleared by a reset only.
    - ``_swmod`` is 1 for the cycle in which B becomes valid, when the write named a byte of the
      field; the field has its new value then.
    - A locked field keeps its value while its lock is 1; a write answers OKAY and has no effect,
      and ``_swmod`` stays 0.
    - A write to a read-only register answers OKAY and has no effect. An address without a register
      answers DECERR, reads 0, and has no effect.

    Parameters
    ----------
    register_map : RegisterMap
        the map of ``regs.rdl`` when not given

    Attributes
    ----------
    f : dict of str to Signal
        port of every field that is not constant, by ``register.field`` (``register`` alone for a
        field named ``value``); the ``_set`` input of a sticky field by ``register.field.set``, the
        ``_swmod`` output of a field that tells of writes by ``register.field.swmod``

    Members
    -------
    axil : :py:`In(AXI4Lite(12))`

    """

    def __init__(self, register_map=None):
        self.map = load_map() if register_map is None else register_map
        ports = {}
        for register in self.map.registers:
            for field in register.fields:
                path = field_path(register, field)
                match field.kind:
                    case Kind.INPUT:
                        ports[path] = In(field.width)
                    case Kind.STORAGE | Kind.PULSE | Kind.SET_ONCE:
                        ports[path] = Out(field.width, init=field.reset)
                    case Kind.STICKY:
                        ports[path] = Out(field.width, init=field.reset)
                        ports[f"{path}.set"] = In(field.width)
                if field.notifies:
                    ports[f"{path}.swmod"] = Out(1)
        members = {path.replace(".", "_"): member for path, member in ports.items()}
        super().__init__({"axil": In(AXI4Lite(ADDR_WIDTH)), **members})
        self.f = {path: getattr(self, path.replace(".", "_")) for path in ports}

    def elaborate(self, platform):
        m = Module()

        axil = self.axil

        # One write address and one write datum are held until both are there.
        has_addr = Signal()
        has_data = Signal()
        addr = Signal(ADDR_WIDTH - 2, reset_less=True)
        value = Signal(32, reset_less=True)
        strb = Signal(4, reset_less=True)
        bits = Signal(32)
        write = Signal()
        m.d.comb += [
            axil.awready.eq(~has_addr),
            axil.wready.eq(~has_data),
            bits.eq(Cat(bit.replicate(8) for bit in strb)),
            write.eq(has_addr & has_data & ~axil.bvalid),
        ]
        with m.If(axil.awvalid & axil.awready):
            m.d.sync += [has_addr.eq(1), addr.eq(axil.awaddr[2:])]
        with m.If(axil.wvalid & axil.wready):
            m.d.sync += [has_data.eq(1), value.eq(axil.wdata), strb.eq(axil.wstrb)]
        with m.If(axil.bready):
            m.d.sync += axil.bvalid.eq(0)
        with m.If(write):
            m.d.sync += [
                has_addr.eq(0),
                has_data.eq(0),
                axil.bvalid.eq(1),
                axil.bresp.eq(Response.DECERR),
            ]

        read = Signal()
        m.d.comb += [axil.arready.eq(~axil.rvalid), read.eq(axil.arvalid & axil.arready)]
        with m.If(axil.rready):
            m.d.sync += axil.rvalid.eq(0)
        with m.If(read):
            m.d.sync += [
                axil.rvalid.eq(1),
                axil.rdata.eq(0),
                axil.rresp.eq(Response.DECERR),
            ]

        for register in self.map.registers:
            selected = Signal(name=f"write_{register.name}")
            m.d.comb += selected.eq(write & (addr == register.offset >> 2))
            with m.If(selected):
                m.d.sync += axil.bresp.eq(Response.OKAY)

            current = Signal(32, name=f"read_{register.name}")
            for field in register.fields:
                path = field_path(register, field)
                port = self.f.get(path)
                part = slice(field.lsb, field.lsb + field.width)
                # Bits that a write names, and the ones it writes as 1.
                open_ = selected & ~self.f[field.lock] if field.lock else selected
                named = Mux(open_, bits[part], 0)
                ones = named & value[part]
                match field.kind:
                    case Kind.CONSTANT:
                        m.d.comb += current[part].eq(field.reset)
                    case Kind.INPUT:
                        m.d.comb += current[part].eq(port)
                    case Kind.STORAGE:
                        m.d.comb += current[part].eq(port)
                        m.d.sync += port.eq((port & ~named) | ones)
                        if field.notifies:
                            m.d.sync += self.f[f"{path}.swmod"].eq(named.any())
                    case Kind.PULSE:
                        m.d.sync += port.eq(ones)
                    case Kind.STICKY:
                        m.d.comb += current[part].eq(port)
                        m.d.sync += port.eq((port & ~ones) | self.f[f"{path}.set"])
                    case Kind.SET_ONCE:
                        m.d.comb += current[part].eq(port)
                        m.d.sync += port.eq(port | ones)
            with m.If(read & (axil.araddr[2:] == register.offset >> 2)):
                m.d.sync += [axil.rdata.eq(current), axil.rresp.eq(Response.OKAY)]

        return m
