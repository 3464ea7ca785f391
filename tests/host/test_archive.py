"""Libraries on disk: the same bits come back, and nothing else."""

import json
import shutil

import numpy as np
import pytest

import moska.host
from moska.golden.unit import Store
from moska.host import BudgetExceeded, CorruptLibrary, Library, OutOfMemory, archive
from moska.host.chunks import short

CHUNK = 16
ARRAYS = ("k", "v", "k_scale", "v_scale", "rep", "rep_scale")


@pytest.fixture
def texts(model):
    """Two documents with a common beginning, and a text without a name."""
    rng = np.random.default_rng(1)
    head = model.tokens(rng, 3 * CHUNK)
    return {
        "a": np.concatenate([head, model.tokens(rng, 4 * CHUNK + 5)]),
        "b": np.concatenate([head, model.tokens(rng, 2 * CHUNK)]),
        None: model.tokens(rng, 2 * CHUNK),
    }


@pytest.fixture
def library(tiny, model, texts):
    """Library of these texts, whose segments have at most four chunks."""
    with Library(tiny, model.geometry, chunk_tokens=CHUNK, segment_chunks=4) as library:
        for name, tokens in texts.items():
            library.add(tokens, *model.kv(tokens), name=name)
        yield library


@pytest.fixture
def saved(library, tmp_path):
    """Folder of the library."""
    library.save(tmp_path / "kv")
    return tmp_path / "kv"


def bits(library, tokens):
    """All stored bits of a text's chunks, read back from device memory."""
    parts = []
    for span in library.match(tokens).spans:
        for layer in range(2):
            for head in range(2):
                store = span.segment.handle(layer, head).store()
                rows = {"rep": span.n_chunks, "rep_scale": span.n_chunks}
                parts += [
                    getattr(store, name)[: rows.get(name, span.n_tokens)].tobytes()
                    for name in ARRAYS
                ]
    return parts


def chunk_name(library, tokens, index):
    return f"chunk {short(library.format.addresses(tokens.astype(np.uint32))[index])}"


def flip(file, offset, bit=0):
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1 << bit
    file.write_bytes(raw)


def place(file, tensor):
    """Bytes of a tensor in a safetensors file: (first, end)."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    first, end = json.loads(raw[8 : 8 + size])[tensor]["data_offsets"]
    return 8 + size + first, 8 + size + end


def test_the_same_bits_come_back_without_quantising(
    library, saved, tiny, texts, monkeypatch, capsys
):
    def never(*args, **options):
        pytest.fail("quantised again")

    monkeypatch.setattr(Store, "from_float", never)
    monkeypatch.setattr("moska.golden.unit.quantize_kv", never)
    used = tiny.memory.used_bytes
    with Library.load(tiny, saved, segment_chunks=4) as loaded:
        assert loaded.format == library.format
        assert loaded.nbytes == library.nbytes == tiny.memory.used_bytes - used
        for name, tokens in texts.items():
            assert bits(loaded, tokens) == bits(library, tokens)
            assert len(bits(loaded, tokens)) >= 24
            if name is not None:
                assert np.array_equal(loaded.documents[name].tokens, tokens)
                assert loaded.compose([name]).n_chunks == len(tokens) // CHUNK
        assert [s.run.addresses for s in loaded.segments] == [
            s.run.addresses for s in library.segments
        ]
        assert [s.children for s in loaded.segments] == [s.children for s in library.segments]
        assert loaded.statistics.leases == 0
    assert tiny.memory.used_bytes == used
    assert capsys.readouterr().out == ""


def test_a_loaded_library_grows_and_is_saved_again(saved, tiny, model, texts, tmp_path):
    longer = np.concatenate([texts["b"], model.tokens(np.random.default_rng(2), 3 * CHUNK)])
    with Library.load(tiny, saved) as loaded:
        loaded.add(longer, *model.kv(longer), name="c")
        expected = bits(loaded, longer)
        loaded.save(tmp_path / "again")
        loaded.save(saved)
    for folder in (saved, tmp_path / "again"):
        with Library.load(tiny, folder) as loaded:
            assert bits(loaded, longer) == expected
            assert set(loaded.documents) == {"a", "b", "c"}


@pytest.mark.parametrize("segment_chunks", [1, 3, 16])
def test_segments_are_cut_for_the_unit_that_loads(saved, tiny, library, texts, segment_chunks):
    with Library.load(tiny, saved, segment_chunks=segment_chunks) as loaded:
        assert max(s.n_chunks for s in loaded.segments) == min(segment_chunks, 4)
        for tokens in texts.values():
            a, b = loaded.match(tokens), library.match(tokens)
            assert a.n_chunks == b.n_chunks
            np.testing.assert_array_equal(a.tokens, b.tokens)
        whole = [library.match(texts["a"]).spans[0].segment.store(1, 0)]
        parts = [s.segment.handle(1, 0).store() for s in loaded.match(texts["a"]).spans]
        for name in ARRAYS:
            joined = np.concatenate([getattr(store, name) for store in parts])
            np.testing.assert_array_equal(
                joined[: len(getattr(whole[0], name))], getattr(whole[0], name)
            )


def test_what_was_evicted_is_not_saved_but_its_document_is(library, texts, tiny, model, tmp_path):
    library.match(texts["b"])
    library.match(texts[None])
    library.evict(1)  # the tail of a
    library.save(tmp_path)
    with Library.load(tiny, tmp_path) as loaded:
        assert loaded.match(texts["a"]).n_chunks == 4
        with pytest.raises(moska.host.NotStored, match="'a' must be added again"):
            loaded.compose(["a"])
        loaded.add(texts["a"], *model.kv(texts["a"]))
        assert loaded.compose(["a"]).n_chunks == 7


def test_saving_removes_files_that_nobody_names(library, saved, texts):
    other = saved / "notes.txt"
    other.write_text("mine")
    before = set(saved.iterdir())
    library.remove("a")
    library.save(saved)
    gone = before - set(saved.iterdir())
    assert len(gone) == 1
    assert other.exists()
    assert len(list(saved.glob("*.safetensors"))) == len(library.segments)


def test_an_interrupted_save_leaves_what_was_there(library, saved, tiny, model, texts, monkeypatch):
    longer = np.concatenate([texts["b"], model.tokens(np.random.default_rng(3), 6 * CHUNK)])
    library.add(longer, *model.kv(longer), name="c")
    save_file, calls = archive.save_file, []

    def stop(tensors, file):
        calls.append(file)
        if len(calls) == 3:
            file.write_bytes(b"half of it")
            raise KeyboardInterrupt
        save_file(tensors, file)

    monkeypatch.setattr(archive, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        library.save(saved)
    with Library.load(tiny, saved) as loaded:
        assert set(loaded.documents) == {"a", "b"}
        assert loaded.compose(["a"]).n_chunks == 7
    monkeypatch.undo()
    library.save(saved)
    assert not list(saved.glob("*.part"))


def test_an_empty_library(tiny, model, tmp_path):
    with Library(tiny, model.geometry) as library:
        library.save(tmp_path)
    with Library.load(tiny, tmp_path) as loaded:
        assert loaded.segments == ()
        assert loaded.chunk_tokens == 32


# Corruption --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("k", "keys"),
        ("v", "values"),
        ("scales", "scales"),
        ("rep", "representatives"),
        ("rep_scale", "representatives"),
    ],
)
def test_names_the_chunk_that_is_corrupt(library, saved, tiny, texts, tensor, part):
    segment = library.match(texts["a"]).spans[1].segment  # chunks 4..6 of a
    file = saved / archive.file_name(segment.run.addresses[-1])
    first, end = place(file, tensor)
    # Layer 1, KV head 0, the second of the segment's three chunks, somewhere in its middle.
    store = (end - first) // 4
    flip(file, first + 2 * store + store // 2, bit=5)
    used = tiny.memory.used_bytes
    name = chunk_name(library, texts["a"], 5)
    with pytest.raises(CorruptLibrary) as caught:
        Library.load(tiny, saved)
    message = str(caught.value)
    assert message.startswith(f"{name} (tokens 80..95 of 'a') is corrupt in {file}: ")
    assert message.endswith(f"its {part} of layer 1, KV head 0 do not match their checksum")
    assert tiny.memory.used_bytes == used


def test_names_the_chunk_of_other_tokens(library, saved, tiny, texts):
    segment = library.match(texts["a"]).spans[1].segment
    file = saved / archive.file_name(segment.run.addresses[-1])
    flip(file, place(file, "tokens")[0] + 4 * (2 * CHUNK + 3))
    name = chunk_name(library, texts["a"], 6)
    with pytest.raises(CorruptLibrary, match=f"{name}.*token ids do not match its address"):
        Library.load(tiny, saved)


def test_names_a_chunk_without_a_document(library, saved, tiny, texts):
    file = saved / archive.file_name(library.match(texts[None]).spans[0].segment.run.addresses[-1])
    flip(file, place(file, "v")[0])
    name = chunk_name(library, texts[None], 0)
    with pytest.raises(CorruptLibrary, match=f"^{name} is corrupt in .* layer 0, KV head 0"):
        Library.load(tiny, saved)


def test_no_flipped_bit_is_ever_loaded(library, saved, tiny, texts, tmp_path):
    """Random flips of single bits in all files: refused, or without any effect."""
    rng = np.random.default_rng(4)
    expected = {name: bits(library, tokens) for name, tokens in texts.items()}
    used, harmless = tiny.memory.used_bytes, 0
    n_flips = 400
    for _ in range(n_flips):
        folder = tmp_path / "flipped"
        shutil.copytree(saved, folder)
        file = sorted(folder.iterdir())[rng.integers(4)]
        header = 2000  # half of the flips meet what describes the arrays
        size = file.stat().st_size
        offset, bit = rng.integers(header if rng.random() < 0.5 else size), rng.integers(8)
        flip(file, min(offset, size - 1), bit)
        try:
            with Library.load(tiny, folder) as loaded:
                for name, tokens in texts.items():
                    assert bits(loaded, tokens) == expected[name], (file.name, offset, bit)
                harmless += 1
        except CorruptLibrary:
            pass
        assert tiny.memory.used_bytes == used, (file.name, offset, bit)
        shutil.rmtree(folder)
    assert harmless < n_flips / 20


def test_files_that_are_cut_or_gone(library, saved, tiny, tmp_path):
    files = sorted(saved.glob("*.safetensors"))
    for index, file in enumerate(files):
        name = short(bytes.fromhex(file.stem))
        for size in (0, 7, 100, file.stat().st_size - 1):
            folder = tmp_path / f"cut-{index}-{size}"
            shutil.copytree(saved, folder)
            (folder / file.name).write_bytes(file.read_bytes()[:size])
            with pytest.raises(CorruptLibrary, match=f"must hold the . chunks up to {name}"):
                Library.load(tiny, folder)
        folder = tmp_path / f"gone-{index}"
        shutil.copytree(saved, folder)
        (folder / file.name).unlink()
        with pytest.raises(CorruptLibrary, match=f"must hold the . chunks up to {name}"):
            Library.load(tiny, folder)


def test_files_that_are_swapped(tiny, model, tmp_path):
    rng = np.random.default_rng(5)
    texts = {name: model.tokens(rng, 2 * CHUNK) for name in "ab"}
    with Library(tiny, model.geometry, chunk_tokens=CHUNK) as library:
        for name, tokens in texts.items():
            library.add(tokens, *model.kv(tokens), name=name)
        library.save(tmp_path)
    files = [
        tmp_path / archive.file_name(library.format.addresses(t.astype(np.uint32))[-1])
        for t in texts.values()
    ]
    raw = [file.read_bytes() for file in files]
    for file, other in zip(files, reversed(raw), strict=True):
        file.write_bytes(other)
    name = chunk_name(library, texts["a"], 1)
    with pytest.raises(CorruptLibrary, match=f"{name} .*: its address is not the one in the index"):
        Library.load(tiny, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be an index of a library"),
        ("[]", "must be an index of a library"),
        ("{}", "must be an index of a library"),
        ('{"body": 1, "sha256": ""}', "does not match its checksum"),
    ],
)
def test_indexes_that_are_none(saved, tiny, text, message):
    (saved / archive.INDEX).write_text(text)
    with pytest.raises(CorruptLibrary, match=message):
        Library.load(tiny, saved)


def test_an_index_of_another_version(saved, tiny):
    body = json.loads((saved / archive.INDEX).read_text())["body"] | {"format": "moska-library-9"}
    text = json.dumps({"body": body, "sha256": archive._digest(body)})
    (saved / archive.INDEX).write_text(text)
    with pytest.raises(CorruptLibrary, match="must be moska-library-1, not moska-library-9"):
        Library.load(tiny, saved)


def test_a_folder_without_a_library(tiny, tmp_path):
    with pytest.raises(FileNotFoundError):
        Library.load(tiny, tmp_path)


# Room --------------------------------------------------------------------------------------------


def test_a_budget_that_is_too_small_is_refused_before_anything_is_loaded(
    library, saved, tiny, monkeypatch
):
    need = library.nbytes
    with Library.load(tiny, saved, budget_bytes=need, segment_chunks=4) as loaded:
        assert loaded.nbytes == need
        assert loaded.statistics.evicted_segments == 0
    monkeypatch.setattr(tiny, "load", lambda *args, **options: pytest.fail("loaded"))
    message = f"budget must be at least the {need:,} bytes of .*, not {need - 1:,}"
    with pytest.raises(BudgetExceeded, match=message):
        Library.load(tiny, saved, budget_bytes=need - 1, segment_chunks=4)


def test_device_memory_that_is_too_small_is_left_empty(library, saved):
    with moska.host.open("golden:tiny?memory=36K") as device:
        used = device.memory.used_bytes
        assert device.memory.free_bytes < library.nbytes
        with pytest.raises(OutOfMemory):
            Library.load(device, saved)
        assert device.memory.used_bytes == used


def test_progress(library, saved, tiny, tmp_path, capsys):
    library.save(tmp_path, progress=True)
    assert "saving" in capsys.readouterr().out
    Library.load(tiny, saved, progress=True).close()
    assert "loading" in capsys.readouterr().out
