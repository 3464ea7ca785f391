"""What can go wrong between a job and its result: one exception for each cause."""

from collections.abc import Mapping

from moska.golden.layout import ErrorCode


class MoskaError(RuntimeError):
    """Any error of the host side that is not a wrong argument."""


class TransportError(MoskaError):
    """The link to the unit is broken, or what comes over it cannot be right."""


class LinkCut(TransportError):
    """The connection to the board has ended: a cable, a port, a process."""


class LinkTimeout(TransportError):
    """The board did not answer in time, repeated requests included."""


class LinkCorrupted(TransportError):
    """Frames between host and board were damaged, repeated ones included."""


class BusError(TransportError):
    """The board's bus answered an access with an error, or not at all."""


class BoardReset(TransportError):
    """The board was reset or loaded anew: its memory has lost its contents."""


class IncompatibleUnit(MoskaError):
    """The unit is not one that this driver and the golden model know."""


class OutOfMemory(MoskaError):
    """Device memory has no room; the text names sizes."""


class BudgetExceeded(OutOfMemory):
    """A library's budget has no room beside what is in use; the text names sizes."""


class NotStored(MoskaError):
    """The library does not hold, or no longer holds, what was asked for."""


class InUse(MoskaError):
    """A lease holds what was to be removed."""


class CorruptLibrary(MoskaError):
    """A library on disk is not what was saved; the text names the chunk."""


class DeviceClosed(MoskaError):
    """The device was closed before the job was done, or before it was submitted."""


class DeviceTimeout(MoskaError):
    """The unit made no progress for the wall-clock limit and was reset."""


class JobError(MoskaError):
    """The unit ended a job with an error.

    Parameters
    ----------
    code
        why
    address
        what could not be read, written or accepted
    sequence
        number of the job since the rings were started
    tag
        of the job's descriptor
    """

    cause = "ended"

    def __init__(self, code: ErrorCode, address: int, sequence: int, tag: int):
        super().__init__(f"job {sequence} (tag {tag}) {self.cause}, at address {address:#x}")
        self.code = code
        self.address = address
        self.sequence = sequence
        self.tag = tag

    def __reduce__(self) -> tuple[type["JobError"], tuple[ErrorCode, int, int, int]]:
        """Pickle by the arguments: futures cross process borders."""
        return type(self), (self.code, self.address, self.sequence, self.tag)


class DescriptorError(JobError):
    """A field of the descriptor is not allowed; the address is the field's."""

    cause = "has a descriptor that the unit refuses"


class ReadError(JobError):
    """Memory answered a read with an error; the address is the bus word's."""

    cause = "met an error of memory on a read"


class WriteError(JobError):
    """Memory answered a write with an error; the address is the burst's."""

    cause = "met an error of memory on a write"


class WindowError(JobError):
    """An array leaves the window that the unit may touch; the address is the array's."""

    cause = "has an array outside the unit's window"


class ChecksumError(JobError):
    """A chunk does not match its checksum; the address is the checksum's."""

    cause = "read a chunk that does not match its checksum"


class JobTimeout(JobError):
    """The job took more cycles than the limit; the address is the descriptor's."""

    cause = "took more cycles than allowed"


BY_CODE: Mapping[ErrorCode, type[JobError]] = {
    ErrorCode.DESCRIPTOR: DescriptorError,
    ErrorCode.READ: ReadError,
    ErrorCode.WRITE: WriteError,
    ErrorCode.WINDOW: WindowError,
    ErrorCode.CHECKSUM: ChecksumError,
    ErrorCode.TIMEOUT: JobTimeout,
}


def job_error(record: Mapping[str, int]) -> JobError | None:
    """Return the exception that a completion record stands for, None when the job is good.

    Raises
    ------
    TransportError
        for a code that no job can have.
    """
    code = record["code"]
    if code == ErrorCode.NONE:
        return None
    if code not in BY_CODE:
        raise TransportError(f"completion must have a known error code, not {code}")
    kind = BY_CODE[ErrorCode(code)]
    return kind(ErrorCode(code), record["error_addr"], record["sequence"], record["tag"])
