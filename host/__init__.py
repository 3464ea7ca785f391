"""Host side: a driver of the unit and what serves language models with it.

It never imports the hardware.
"""

from moska.host.device import Device, Statistics, open
from moska.host.errors import (
    BoardReset,
    BudgetExceeded,
    BusError,
    ChecksumError,
    CorruptLibrary,
    DescriptorError,
    DeviceClosed,
    DeviceTimeout,
    IncompatibleUnit,
    InUse,
    JobError,
    JobTimeout,
    LinkCorrupted,
    LinkCut,
    LinkTimeout,
    MoskaError,
    NotStored,
    OutOfMemory,
    ReadError,
    TransportError,
    WindowError,
    WriteError,
)
from moska.host.geometry import Geometry
from moska.host.handle import StoreHandle
from moska.host.job import Attention
from moska.host.library import Library
from moska.host.rope import Llama3Scaling, Rope
from moska.host.transport import Transport

__all__ = [
    "Attention",
    "BoardReset",
    "BudgetExceeded",
    "BusError",
    "ChecksumError",
    "CorruptLibrary",
    "DescriptorError",
    "Device",
    "DeviceClosed",
    "DeviceTimeout",
    "Geometry",
    "InUse",
    "IncompatibleUnit",
    "JobError",
    "JobTimeout",
    "Library",
    "LinkCorrupted",
    "LinkCut",
    "LinkTimeout",
    "Llama3Scaling",
    "MoskaError",
    "NotStored",
    "OutOfMemory",
    "ReadError",
    "Rope",
    "Statistics",
    "StoreHandle",
    "Transport",
    "TransportError",
    "WindowError",
    "WriteError",
    "open",
]
