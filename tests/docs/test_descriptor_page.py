"""The page on descriptors lists every field of the layout, in order, with offset and size."""

import pathlib
import re

from moska.golden.layout import DESCRIPTOR, DESCRIPTOR_BYTES
from moska.hw.control.sequencer import ErrorCode

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "descriptor.md"
FIELD = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \| [^|]+ \| [^|]+ \|$", re.M)
ERROR = re.compile(r"^\| (\d+) \| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", re.M)


def test_every_field_with_offset_and_size():
    """A changed layout must change the page."""
    listed = [(name, int(at), int(size)) for at, size, name in FIELD.findall(PAGE.read_text())]
    assert listed == [(name, at, size) for name, (at, size) in DESCRIPTOR.items()]


def test_reserved_bytes():
    """The page names the size of a descriptor and the bytes behind its last field."""
    end = max(at + size for at, size in DESCRIPTOR.values())
    text = PAGE.read_text()
    assert f"{DESCRIPTOR_BYTES} bytes, little endian" in text
    assert f"Bytes {end} to {DESCRIPTOR_BYTES - 1} are reserved" in text


def test_every_error_code():
    """A new error code must be on the page."""
    listed = [(int(code), name) for code, name in ERROR.findall(PAGE.read_text())]
    assert listed == [(code.value, code.name) for code in ErrorCode]
