"""The page on descriptors lists every field of the layout, in order, with offset and size."""

import pathlib
import re

from moska.golden.layout import (
    COMPLETION,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    ErrorCode,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "descriptor.md"
FIELD = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|[^|]+\|[^|]+\|$", re.M)
RECORD = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|[^|]+\|$", re.M)
ERROR = re.compile(r"^\| (\d+) \| `(\w+)` \|[^|]+\|[^|]+\|$", re.M)


def test_every_field_with_offset_and_size():
    """A changed layout must change the page."""
    listed = [(name, int(at), int(size)) for at, size, name in FIELD.findall(PAGE.read_text())]
    assert listed == [(name, at, size) for name, (at, size) in DESCRIPTOR.items()]


def test_sizes():
    """Fields fill the descriptor; the page names its size."""
    at, size = list(DESCRIPTOR.values())[-1]
    assert at + size == DESCRIPTOR_BYTES
    assert f"{DESCRIPTOR_BYTES} bytes, little endian" in PAGE.read_text()


def test_every_field_of_a_completion():
    """The page has the fields before the counters."""
    listed = [(name, int(at), int(size)) for at, size, name in RECORD.findall(PAGE.read_text())]
    fields = [(name, at, size) for name, (at, size) in COMPLETION.items() if at < 32]
    assert listed == fields


def test_every_error_code():
    """A new error code must be on the page."""
    listed = [(int(code), name) for code, name in ERROR.findall(PAGE.read_text())]
    assert listed == [(code.value, code.name) for code in ErrorCode]
