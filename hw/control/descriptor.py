"""The descriptor's layout in hardware; its fields come from ``golden.layout``."""

from amaranth.lib import data

from moska.golden.layout import DESCRIPTOR, DESCRIPTOR_BYTES


def descriptor_layout():
    """Layout of a descriptor as ``8 * DESCRIPTOR_BYTES`` bits, first byte lowest."""
    return data.FlexibleLayout(
        8 * DESCRIPTOR_BYTES,
        {name: data.Field(8 * size, 8 * offset) for name, (offset, size) in DESCRIPTOR.items()},
    )
