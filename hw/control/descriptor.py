"""Descriptors and the jobs made from them, in hardware; what they mean is in ``golden.layout``."""

from amaranth.lib import data, enum

from moska.golden import layout
from moska.golden.layout import DESCRIPTOR, DESCRIPTOR_BYTES


class ErrorCode(enum.Enum, shape=4):
    """Why a job failed; see :class:`moska.golden.layout.ErrorCode`."""

    NONE = layout.ErrorCode.NONE.value
    DESCRIPTOR = layout.ErrorCode.DESCRIPTOR.value
    READ = layout.ErrorCode.READ.value
    WRITE = layout.ErrorCode.WRITE.value
    WINDOW = layout.ErrorCode.WINDOW.value
    CHECKSUM = layout.ErrorCode.CHECKSUM.value
    TIMEOUT = layout.ErrorCode.TIMEOUT.value
    RING = layout.ErrorCode.RING.value


def descriptor_layout():
    """Layout of a descriptor as ``8 * DESCRIPTOR_BYTES`` bits, first byte lowest."""
    return data.FlexibleLayout(
        8 * DESCRIPTOR_BYTES,
        {name: data.Field(8 * size, 8 * offset) for name, (offset, size) in DESCRIPTOR.items()},
    )


def frontend_job_layout():
    """Struct of a job whose descriptor was read and checked.

    ``rep_shift`` is log2 of the representatives per chunk. ``sequence`` is 1 for the first job of
    the ring. ``completion_addr`` is where its completion record goes. With a ``code`` other than
    NONE, ``error_addr`` tells what was wrong, and the descriptor's fields are as read: they are not
    to be trusted.
    """
    return data.StructLayout(
        {
            "descriptor": descriptor_layout(),
            "rep_shift": 4,
            "sequence": 32,
            "completion_addr": 64,
            "code": ErrorCode,
            "error_addr": 64,
        }
    )
