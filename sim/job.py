"""A job as the unit gets it: memory image, expected result, comparison."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moska.golden.formats import ALIGN
from moska.golden.layout import (
    SELECTION_LINE,
    Opcode,
    Selection,
    pack_array,
    pack_descriptor,
    pack_scales,
    pack_selection,
    unpack_selection,
)
from moska.golden.router import Bool
from moska.golden.unit import Result, Store, attend, route

FILL = 0xA5  # content of result memory before a job; shows what was not written


@dataclass
class Image:
    """Segments of memory: what to place before a job, where to find its results."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    descriptor: int = 0
    results: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (address, bytes)
    end: int = 0


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
    overrides: dict[str, int] = field(default_factory=dict)  # descriptor fields, for bad ones

    @property
    def mode(self) -> Selection:
        """How chunks are selected."""
        if self.explicit is not None:
            return Selection.EXPLICIT
        return Selection.ALL if self.k is None else Selection.TOP_K

    def expected(self) -> Result:
        """Return the golden model's result."""
        selected = self.explicit
        if self.mode is Selection.TOP_K:
            assert self.k is not None
            selected = route(
                self.store,
                self.q,
                self.q_scale,
                self.k,
                keep_first=self.keep_first,
                keep_last=self.keep_last,
                group=self.group,
            )
        return attend(self.store, self.q, self.q_scale, selected)

    def image(self, base: int = 0x1000) -> Image:
        """Memory image from ``base`` on."""
        store = self.store
        n_rows, head_dim = self.q.shape
        out = Image(end=base)

        def place(raw: bytes) -> int:
            address = out.end
            out.segments.append((address, raw))
            # A guard line between arrays shows writes that go too far.
            out.end = address + len(raw) + ALIGN
            return address

        fields: dict[str, int] = {}
        if store.rep is not None and store.rep_scale is not None:
            fields["rep_rows"] = store.rep.shape[1]
            fields["rep_addr"] = place(pack_array(store.rep))
            fields["rep_scale_addr"] = place(pack_scales(store.rep_scale))
        fields["k_addr"] = place(pack_array(store.k))
        fields["v_addr"] = place(pack_array(store.v))
        fields["scale_addr"] = place(pack_scales(store.k_scale, store.v_scale))
        fields["q_addr"] = place(pack_array(self.q))
        fields["q_scale_addr"] = place(pack_array(self.q_scale))

        def result(name: str, size: int) -> int:
            address = place(bytes([FILL]) * (-(-size // ALIGN) * ALIGN))
            out.results[name] = (address, size)
            return address

        fields["o_addr"] = result("o", 4 * n_rows * head_dim)
        fields["lse_addr"] = result("lse", 4 * n_rows)
        if self.mode is Selection.TOP_K:
            fields["selection_addr"] = result("selection", SELECTION_LINE * store.n_chunks)
            fields["write_selection"] = 1
        elif self.explicit is not None:
            fields["selection_addr"] = place(pack_selection(self.explicit))
        fields |= {
            "opcode": Opcode.ATTEND,
            "selection": self.mode,
            "router": store.router,
            "n_rows": n_rows,
            "group": self.group,
            "n_tokens": store.n_tokens,
            "n_chunks": store.n_chunks,
            "chunk_tokens": store.chunk_tokens,
            "k": self.k or 0,
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
        }
        fields |= self.overrides
        out.descriptor = place(pack_descriptor(**fields))
        return out

    def decode(self, raw: dict[str, bytes]) -> Result:
        """Read the result from the bytes of :attr:`Image.results`."""
        n_rows, head_dim = self.q.shape
        o = np.frombuffer(raw["o"], dtype="<u4").reshape(n_rows, head_dim)
        lse = np.frombuffer(raw["lse"], dtype="<u4")
        if "selection" in raw:
            selected = unpack_selection(raw["selection"], n_rows)
        elif self.explicit is not None:
            selected = self.explicit
        else:
            selected = np.ones((n_rows, self.store.n_chunks), dtype=bool)
        return Result(o, lse, selected)


def overrun(raw: bytes, size: int) -> bool:
    """Whether a result of ``size`` bytes touched its padding or the guard line behind it."""
    padded_size = -(-size // ALIGN) * ALIGN
    return raw[size:] != bytes([FILL]) * (padded_size - size) + bytes(len(raw) - padded_size)


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
