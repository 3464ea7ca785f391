"""A store in device memory."""

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moska.golden.layout import pack_array, pack_checksums, pack_scales
from moska.golden.router import Router
from moska.golden.unit import Store
from moska.host.errors import MoskaError

if TYPE_CHECKING:
    from moska.host.device import Device


class StoreHandle(contextlib.AbstractContextManager["StoreHandle"]):
    """A store in device memory; leaving it as a context manager frees it."""

    def __init__(self, device: "Device", store: Store, *, checksums: bool):
        self.device = device
        self.chunk_tokens = store.chunk_tokens
        self.n_tokens = store.n_tokens
        self.n_chunks = store.n_chunks
        self.router = store.router
        self.rep_rows = 0 if store.rep is None else store.rep.shape[1]
        self.checksums = checksums
        self.users = 0  # pieces of jobs that use it; kept by the device
        arrays: dict[str, bytes] = {
            "k_addr": pack_array(store.k),
            "v_addr": pack_array(store.v),
            "scale_addr": pack_scales(store.k_scale, store.v_scale),
        }
        if store.rep is not None and store.rep_scale is not None:
            arrays["rep_addr"] = pack_array(store.rep)
            arrays["rep_scale_addr"] = pack_scales(store.rep_scale)
        if checksums:
            arrays["checksum_addr"] = pack_checksums(
                store.k, store.v, store.k_scale, store.v_scale, store.chunk_tokens
            )
        raw = b"".join(arrays.values())
        self.nbytes = len(raw)
        self.address: int | None = device.memory.allocate(len(raw))
        self._offsets: dict[str, int] = {}
        end = 0
        for name, part in arrays.items():
            self._offsets[name] = end
            end += len(part)
        try:
            device.transport.write(self.address, raw)
        except BaseException:
            device.memory.free(self.address)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the store."""
        self.free()

    def free(self) -> None:
        """Give the memory back, once no job uses it; may be called again.

        Raises
        ------
        MoskaError
            from a future's callback while jobs use the store: they would never end.
        """
        self.device.free(self)

    @property
    def fields(self) -> dict[str, int]:
        """Fields of a descriptor that name the store.

        Raises
        ------
        MoskaError
            when the store was freed.
        """
        if self.address is None:
            raise MoskaError("store must not be freed before it is used")
        places = {name: self.address + offset for name, offset in self._offsets.items()}
        return places | {
            "router": self.router,
            "chunk_tokens": self.chunk_tokens,
            "rep_rows": self.rep_rows,
        }

    def store(self) -> Store:
        """Read the store back from device memory."""
        at = self.fields
        dim = self.device.parameters.head_dim
        tokens, reps = self.n_tokens, (self.n_chunks, self.rep_rows)

        def array(name: str, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
            count = int(np.prod(shape))
            raw = self.device.transport.read(at[name], count * np.dtype(dtype).itemsize)
            return np.frombuffer(raw, dtype=dtype).reshape(shape)

        scales = array("scale_addr", (tokens, 2), "<u2").astype(np.uint16)
        rep = rep_scale = None
        if self.rep_rows:
            rep = array("rep_addr", (*reps, dim), "i1").astype(np.int8)
            rep_scale = array("rep_scale_addr", (*reps, 2), "<u2").astype(np.uint16)[:, :, 0]
        return Store(
            array("k_addr", (tokens, dim), "i1").astype(np.int8),
            array("v_addr", (tokens, dim), "i1").astype(np.int8),
            scales[:, 0].copy(),
            scales[:, 1].copy(),
            self.chunk_tokens,
            Router(self.router),
            rep,
            rep_scale,
        )
