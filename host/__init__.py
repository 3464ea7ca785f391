"""Host side: a driver of the unit and what serves language models with it.

It never imports the hardware.
"""

from moska.host.device import Attention, Device, Statistics, StoreHandle, open
from moska.host.errors import (
    ChecksumError,
    DescriptorError,
    DeviceClosed,
    DeviceTimeout,
    IncompatibleUnit,
    JobError,
    JobTimeout,
    MoskaError,
    OutOfMemory,
    ReadError,
    TransportError,
    WindowError,
    WriteError,
)
from moska.host.transport import Transport

__all__ = [
    "Attention",
    "ChecksumError",
    "DescriptorError",
    "Device",
    "DeviceClosed",
    "DeviceTimeout",
    "IncompatibleUnit",
    "JobError",
    "JobTimeout",
    "MoskaError",
    "OutOfMemory",
    "ReadError",
    "Statistics",
    "StoreHandle",
    "Transport",
    "TransportError",
    "WindowError",
    "WriteError",
    "open",
]
