"""A library on disk: a folder with an index and a safetensors file per segment.

``library.json`` describes the library, its segments (parents first) and its documents, with a
SHA-256 over itself. ``<address of the last chunk>.safetensors`` holds a segment:

============  =======================  ==========================================================
tensor        shape, type              content
============  =======================  ==========================================================
addresses     (N, 32) uint8            SHA-256 addresses of the chunks
tokens        (S,) uint32              token ids
k, v          (L, G, S, D) int8        keys and values
scales        (L, G, S, 2) uint16      their scales, bfloat16 bits
rep           (L, G, N, r, D) int8     the router's representatives
rep_scale     (L, G, N, r) uint16      their scales, bfloat16 bits
checksums     (L, G, N, 4) uint32      CRC-32 of a chunk's keys, values, scales, representatives
============  =======================  ==========================================================

The first three checksums are the ones that the unit compares. Files are complete before they get
their names, the index last, so an interrupted save leaves the library that was there before.
"""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moska.golden.layout import pack_checksums
from moska.golden.router import router_kind
from moska.golden.unit import Store
from moska.host.chunks import ChunkFormat, Tokens, chain, short, token_array
from moska.host.errors import CorruptLibrary
from moska.host.progress import track
from moska.host.run import Run

INDEX = "library.json"
FORMAT = "moska-library-1"
PARTS = ("keys", "values", "scales", "representatives")  # of a checksum record


@dataclass(frozen=True)
class Entry:
    """Segment as the index names it."""

    address: bytes  # of the last chunk
    parent: bytes  # address of the chunk before the first one
    position: int
    n_chunks: int


@dataclass(frozen=True)
class Index:
    """What a folder holds."""

    format: ChunkFormat
    entries: Sequence[Entry]  # parents first
    documents: Mapping[str, Tokens]


def write(
    path: str | os.PathLike[str],
    chunk_format: ChunkFormat,
    runs: Sequence[Run],
    documents: Mapping[str, Tokens],
    *,
    progress: bool = False,
) -> None:
    """Write a library to the folder ``path``, in place of one that is there."""
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {INDEX}
    for run in track(runs, "saving", disable=not progress):
        name = file_name(run.addresses[-1])
        save_file(_tensors(run), folder / f"{name}.part")
        os.replace(folder / f"{name}.part", folder / name)
        kept.add(name)
    body = {
        "format": FORMAT,
        "library": chunk_format.to_dict(),
        "segments": [
            {
                "address": run.addresses[-1].hex(),
                "parent": run.parent.hex(),
                "position": run.position,
                "n_chunks": run.n_chunks,
            }
            for run in runs
        ],
        "documents": {name: tokens.tolist() for name, tokens in documents.items()},
    }
    text = json.dumps({"sha256": _digest(body), "body": body})
    (folder / f"{INDEX}.part").write_text(text, encoding="utf-8")
    os.replace(folder / f"{INDEX}.part", folder / INDEX)
    for file in folder.glob("*.safetensors*"):
        if file.name not in kept:
            file.unlink()


def read_index(path: str | os.PathLike[str]) -> Index:
    """Read what the folder ``path`` holds.

    Raises
    ------
    FileNotFoundError
        when there is no library.
    CorruptLibrary
        when the index is not the one that was written.
    """
    file = pathlib.Path(path) / INDEX
    try:
        outer = json.loads(file.read_text(encoding="utf-8"))
        body = outer["body"]
        intact = outer["sha256"] == _digest(body)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptLibrary(f"{file} must be an index of a library: {error}") from error
    if not intact:
        raise CorruptLibrary(f"{file} does not match its checksum")
    if body["format"] != FORMAT:
        raise CorruptLibrary(f"format of {file} must be {FORMAT}, not {body['format']}")
    entries = [
        Entry(bytes.fromhex(e["address"]), bytes.fromhex(e["parent"]), e["position"], e["n_chunks"])
        for e in body["segments"]
    ]
    documents = {name: token_array(tokens) for name, tokens in body["documents"].items()}
    return Index(ChunkFormat.from_dict(body["library"]), entries, documents)


def read_run(path: str | os.PathLike[str], index: Index, entry: Entry) -> Run:
    """Read a segment and check every chunk.

    Raises
    ------
    CorruptLibrary
        naming the first chunk that is not what was written, or the file when it is no such file.
    """
    file = pathlib.Path(path) / file_name(entry.address)
    try:
        tensors = load_file(file, backend="pread")
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptLibrary(
            f"{file} must hold the {entry.n_chunks} chunks up to {short(entry.address)}: {error}"
        ) from error
    _check_shapes(file, tensors, index, entry)
    size = index.format.chunk_tokens
    addresses = tuple(raw.tobytes() for raw in tensors["addresses"])

    def refuse(number: int, why: str) -> CorruptLibrary:
        name = _chunk_name(index, entry, number, addresses[number])
        return CorruptLibrary(f"{name} is corrupt in {file}: {why}")

    for number, address in enumerate(chain(entry.parent, tensors["tokens"], size)):
        if address != addresses[number]:
            raise refuse(number, "its token ids do not match its address")
    if addresses[-1] != entry.address:
        raise refuse(entry.n_chunks - 1, "its address is not the one in the index")
    kind, _ = router_kind(index.format.router)
    n_layers, n_kv_heads = tensors["k"].shape[:2]
    stores = []
    for layer in range(n_layers):
        heads = []
        for head in range(n_kv_heads):
            at = (layer, head)
            scales = tensors["scales"][at]
            store = Store(
                tensors["k"][at],
                tensors["v"][at],
                np.ascontiguousarray(scales[:, 0]),
                np.ascontiguousarray(scales[:, 1]),
                size,
                kind,
                tensors["rep"][at],
                tensors["rep_scale"][at],
            )
            wrong = np.argwhere(checksums(store) != tensors["checksums"][at])
            if len(wrong):
                number, part = (int(i) for i in wrong[0])
                what = f"{PARTS[part]} of layer {layer}, KV head {head}"
                raise refuse(number, f"its {what} do not match their checksum")
            heads.append(store)
        stores.append(tuple(heads))
    return Run(entry.parent, entry.position, tensors["tokens"], addresses, tuple(stores))


def checksums(store: Store) -> NDArray[np.uint32]:
    """CRC-32 of every chunk's keys, values, scales and representatives, (N, 4)."""
    assert store.rep is not None
    assert store.rep_scale is not None
    raw = pack_checksums(store.k, store.v, store.k_scale, store.v_scale, store.chunk_tokens)
    out = np.frombuffer(raw, "<u4").reshape(-1, 4)[: store.n_chunks].astype(np.uint32)
    for number, (rep, scale) in enumerate(zip(store.rep, store.rep_scale, strict=True)):
        out[number, 3] = zlib.crc32(scale.tobytes(), zlib.crc32(rep.tobytes()))
    return out


def file_name(address: bytes) -> str:
    """Name of the file of the segment that ends with the chunk at ``address``."""
    return f"{address.hex()}.safetensors"


def _check_shapes(
    file: pathlib.Path, tensors: Mapping[str, NDArray[Any]], index: Index, entry: Entry
) -> None:
    chunk_format, n_chunks = index.format, entry.n_chunks
    size, rows = chunk_format.chunk_tokens, chunk_format.rep_rows
    heads = (chunk_format.geometry.n_layers, chunk_format.geometry.n_kv_heads)
    dim = chunk_format.geometry.head_dim
    expected = {
        "addresses": ((n_chunks, 32), "uint8"),
        "tokens": ((n_chunks * size,), "uint32"),
        "k": ((*heads, n_chunks * size, dim), "int8"),
        "v": ((*heads, n_chunks * size, dim), "int8"),
        "scales": ((*heads, n_chunks * size, 2), "uint16"),
        "rep": ((*heads, n_chunks, rows, dim), "int8"),
        "rep_scale": ((*heads, n_chunks, rows), "uint16"),
        "checksums": ((*heads, n_chunks, 4), "uint32"),
    }
    found = {name: (x.shape, x.dtype.name) for name, x in tensors.items()}
    if found != expected:
        raise CorruptLibrary(
            f"{file} must hold the chunks up to {short(entry.address)} as {expected}, not {found}"
        )


def _chunk_name(index: Index, entry: Entry, number: int, address: bytes) -> str:
    """Name a segment's chunk by its address, and by a document that it is part of."""
    size = index.format.chunk_tokens
    first = entry.position + number * size
    for name, tokens in index.documents.items():
        whole = index.format.addresses(tokens)
        if entry.address in whole:
            address = whole[first // size]
            return f"chunk {short(address)} (tokens {first}..{first + size - 1} of {name!r})"
    return f"chunk {short(address)}"


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _tensors(run: Run) -> dict[str, NDArray[Any]]:
    def stack(rows: Iterable[Iterable[NDArray[Any]]]) -> NDArray[Any]:
        return np.stack([np.stack(list(row)) for row in rows])

    def of(name: str) -> NDArray[Any]:
        return stack((getattr(store, name) for store in layer) for layer in run.stores)

    return {
        "addresses": np.frombuffer(b"".join(run.addresses), np.uint8).reshape(-1, 32),
        "tokens": np.ascontiguousarray(run.tokens),
        "k": of("k"),
        "v": of("v"),
        "scales": np.stack([of("k_scale"), of("v_scale")], axis=-1),
        "rep": of("rep"),
        "rep_scale": of("rep_scale"),
        "checksums": stack((checksums(store) for store in layer) for layer in run.stores),
    }
