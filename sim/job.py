"""A job as the unit gets it: memory image, expected result, bound, comparison."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moska.gen.bound import Bound, bound
from moska.gen.config import Config
from moska.golden.formats import ALIGN
from moska.golden.layout import (
    SELECTION_LINE,
    Opcode,
    Selection,
    pack_array,
    pack_checksums,
    pack_descriptor,
    pack_scales,
    pack_selection,
    padded_size,
    unpack_selection,
)
from moska.golden.router import Bool
from moska.golden.unit import Result, Store, attend, route

FILL = 0xA5  # content of result memory before a job; shows what was not written


@dataclass
class Image:
    """Segments of memory that belong together, and the descriptor fields that name them."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    fields: dict[str, int] = field(default_factory=dict)
    descriptor: int = 0  # address
    results: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (address, bytes)
    end: int = 0  # first address behind it

    def place(self, raw: bytes) -> int:
        """Append a segment and return its address."""
        address = padded_size(self.end)
        self.segments.append((address, raw))
        self.end = address + len(raw)
        return address

    def result(self, name: str, size: int) -> int:
        """Append room for a result of ``size`` bytes and return its address."""
        # A guard line of zeros behind it shows writes that go too far.
        address = self.place(bytes([FILL]) * padded_size(size) + bytes(ALIGN))
        self.results[name] = (address, size)
        return address

    def finish(self) -> "Image":
        """Append the descriptor made of :attr:`fields`."""
        self.descriptor = self.place(pack_descriptor(**self.fields))
        return self


def store_image(store: Store, base: int, *, checksums: bool = False) -> Image:
    """Memory image of a store from ``base`` on; jobs on the same store may share it."""
    out = Image(end=base)
    if store.rep is not None and store.rep_scale is not None:
        out.fields["rep_rows"] = store.rep.shape[1]
        out.fields["rep_addr"] = out.place(pack_array(store.rep))
        out.fields["rep_scale_addr"] = out.place(pack_scales(store.rep_scale))
    out.fields["k_addr"] = out.place(pack_array(store.k))
    out.fields["v_addr"] = out.place(pack_array(store.v))
    out.fields["scale_addr"] = out.place(pack_scales(store.k_scale, store.v_scale))
    if checksums:
        raw = pack_checksums(store.k, store.v, store.k_scale, store.v_scale, store.chunk_tokens)
        out.fields["checksum_addr"] = out.place(raw)
    out.fields |= {
        "router": store.router,
        "n_tokens": store.n_tokens,
        "n_chunks": store.n_chunks,
        "chunk_tokens": store.chunk_tokens,
    }
    return out


@dataclass(frozen=True)
class Job:
    """One job on one store. ``explicit`` replaces routing; without it and ``k``: all chunks."""

    store: Store
    q: NDArray[np.int16]
    q_scale: NDArray[np.uint16]
    k: int | None = None
    keep_first: int = 1
    keep_last: int = 1
    group: int = 1
    explicit: Bool | None = None
    opcode: Opcode = Opcode.ATTEND  # ROUTE: select only, needs ``k``
    checksum: bool = False  # chunks are compared with their checksums
    tag: int = 0
    overrides: dict[str, int] = field(default_factory=dict)  # descriptor fields, for bad ones

    @property
    def mode(self) -> Selection:
        """How chunks are selected."""
        if self.explicit is not None:
            return Selection.EXPLICIT
        return Selection.ALL if self.k is None else Selection.TOP_K

    @property
    def attends(self) -> bool:
        """Whether there are outputs."""
        return self.opcode is not Opcode.ROUTE

    def selected(self) -> Bool:
        """Chunks that each row attends to, (M, N)."""
        if self.mode is Selection.TOP_K:
            assert self.k is not None
            return route(
                self.store,
                self.q,
                self.q_scale,
                self.k,
                keep_first=self.keep_first,
                keep_last=self.keep_last,
                group=self.group,
            )
        if self.explicit is not None:
            return self.explicit
        return np.ones((len(self.q), self.store.n_chunks), dtype=bool)

    def expected(self) -> Result:
        """Return the golden model's result."""
        selected = self.selected()
        if not self.attends:
            return routed_only(selected, self.q.shape[1])
        return attend(self.store, self.q, self.q_scale, selected)

    def bound(self, config: Config, selected: Bool) -> Bound:
        """Bound of the job's cycles when its rows select these chunks."""
        store = self.store
        routed = self.mode is Selection.TOP_K
        return bound(
            config,
            n_rows=len(self.q),
            chunk_tokens=store.chunk_tokens,
            n_tokens=store.n_tokens,
            rows_per_chunk=selected.sum(axis=0),
            rep_rows=store.rep.shape[1] if routed and store.rep is not None else 0,
            write_selection=routed,
            checksums=self.checksum,
            route_only=not self.attends,
        )

    def image(self, base: int = 0x1000, placed: Image | None = None) -> Image:
        """Memory image from ``base`` on, without the store if that is ``placed`` already."""
        n_rows, head_dim = self.q.shape
        if placed is None:
            out = store_image(self.store, base, checksums=self.checksum)
        else:
            out = Image(fields=dict(placed.fields), end=base)
        fields = out.fields
        fields["q_addr"] = out.place(pack_array(self.q))
        fields["q_scale_addr"] = out.place(pack_array(self.q_scale))
        if self.attends:
            fields["o_addr"] = out.result("o", 4 * n_rows * head_dim)
            fields["lse_addr"] = out.result("lse", 4 * n_rows)
        if self.mode is Selection.TOP_K:
            size = SELECTION_LINE * self.store.n_chunks
            fields["selection_addr"] = out.result("selection", size)
            fields["write_selection"] = 1
        elif self.explicit is not None:
            fields["selection_addr"] = out.place(pack_selection(self.explicit))
        fields |= {
            "opcode": self.opcode,
            "selection": self.mode,
            "n_rows": n_rows,
            "group": self.group,
            "k": self.k or 0,
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
            "checksum": int(self.checksum),
            "tag": self.tag,
        }
        fields |= self.overrides
        return out.finish()

    def decode(self, raw: dict[str, bytes]) -> Result:
        """Read the result from the bytes of :attr:`Image.results`."""
        n_rows, head_dim = self.q.shape
        if "selection" in raw:
            selected = unpack_selection(raw["selection"], n_rows)
        elif self.explicit is not None:
            selected = self.explicit
        else:
            selected = np.ones((n_rows, self.store.n_chunks), dtype=bool)
        if not self.attends:
            return routed_only(selected, head_dim)
        o = np.frombuffer(raw["o"], dtype="<u4").reshape(n_rows, head_dim)
        lse = np.frombuffer(raw["lse"], dtype="<u4")
        return Result(o, lse, selected)


@dataclass(frozen=True)
class Fence:
    """Holds later jobs back until all earlier ones are complete."""

    tag: int = 0
    overrides: dict[str, int] = field(default_factory=dict)

    def image(self, base: int = 0x1000, placed: Image | None = None) -> Image:
        """Memory image from ``base`` on: a descriptor and nothing else."""
        fields = {"opcode": Opcode.FENCE, "tag": self.tag}
        return Image(fields=fields | self.overrides, end=base).finish()

    def decode(self, raw: dict[str, bytes]) -> None:
        """Return None: a fence has no result."""


def routed_only(selected: Bool, head_dim: int) -> Result:
    """Return the result of a job that only selects: no outputs."""
    return Result(np.zeros((0, head_dim), np.uint32), np.zeros(0, np.uint32), selected)


def overrun(raw: bytes, size: int) -> bool:
    """Whether a result of ``size`` bytes touched its padding or the guard line behind it."""
    padded = padded_size(size)
    return raw[size:] != bytes([FILL]) * (padded - size) + bytes(len(raw) - padded)


def difference(actual: Result, expected: Result) -> str | None:
    """First difference between two results in words, or None when every bit is equal."""
    for name in ("selected", "lse", "o"):
        a, b = getattr(actual, name), getattr(expected, name)
        if a.shape != b.shape:
            return f"{name}: shape {a.shape}, expected {b.shape}"
        wrong = np.argwhere(a != b)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            shown = (f"{int(x[at]):#010x}" for x in (a, b))
            return f"{name}: {len(wrong)} of {a.size} differ, first at {at}: " + ", expected ".join(
                shown
            )
    return None
