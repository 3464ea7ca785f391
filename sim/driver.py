"""Ring protocol on a simulated device: places jobs, rings the doorbell, collects completions."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from moska.golden.formats import ALIGN
from moska.golden.layout import (
    COMPLETION_BYTES,
    COUNTERS,
    DESCRIPTOR_BYTES,
    ErrorCode,
    pack_descriptor,
    padded_size,
    unpack_completion,
)
from moska.golden.unit import Result, Store
from moska.host import regmap
from moska.sim.job import Fence, Image, Job, overrun, store_image

PAGE = 4096
PROGRESS_CYCLES = 1 << 18  # between reports of progress


class Device(Protocol):
    """What the driver needs of a device."""

    @property
    def cycle(self) -> int:
        """Cycles that have passed."""

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt."""

    def read32(self, offset: int) -> int:
        """Read a register."""

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""

    def read(self, address: int, size: int) -> bytes:
        """Read memory."""

    def write(self, address: int, raw: bytes) -> None:
        """Write memory."""

    def run(self, max_cycles: int) -> int:
        """Run until the interrupt is high, at most ``max_cycles``; return the cycles run."""


@dataclass(frozen=True)
class Outcome:
    """What came back from one job."""

    result: Result | None  # None for a fence
    record: dict[str, int]  # fields of the completion
    overrun: bool  # bytes behind a result were written
    cycle: int  # of the device when the completion was seen

    @property
    def counters(self) -> dict[str, int]:
        """Counters of the completion."""
        return {name: self.record[name] for name in COUNTERS}

    @property
    def error_code(self) -> ErrorCode:
        """Why the job failed."""
        return ErrorCode(self.record["code"])

    @property
    def error(self) -> bool:
        """Whether the job failed."""
        return self.error_code is not ErrorCode.NONE

    @property
    def error_address(self) -> int:
        """Address that belongs to the error."""
        return self.record["error_addr"]


@dataclass(frozen=True)
class Placed:
    """A job in memory."""

    job: Job | Fence
    image: Image

    @property
    def descriptor(self) -> bytes:
        """Bytes for the ring."""
        return pack_descriptor(**self.image.fields)


class RingDriver:
    """Drives the rings of one device, from reset on.

    Memory from ``base`` to ``limit`` belongs to the driver: first both rings, then stores, queries
    and results in the order in which they are placed. Nothing is freed; jobs on the same
    :class:`Store` share its place.

    Parameters
    ----------
    device
        simulated device after reset, or anything with its methods
    ring_size
        log2 of the entries of both rings
    base, limit
        first byte and end of the memory to use; a multiple of ALIGN
    """

    def __init__(self, device: Device, *, ring_size: int = 4, base: int = PAGE, limit: int):
        if not 0 <= ring_size <= 15:
            raise ValueError(f"ring_size must be from 0 to 15, not {ring_size}")
        if base % ALIGN:
            raise ValueError(f"base must be a multiple of {ALIGN}, not {base}")
        self.device = device
        self.entries = 1 << ring_size
        self.limit = limit
        self.ring = base
        self.completions = self.ring + self.entries * DESCRIPTOR_BYTES
        self.end = self.completions + self.entries * COMPLETION_BYTES
        self._check_room(self.end)
        self.announced = 0
        self.collected = 0
        self._under_way: deque[Placed] = deque()
        self._stores: dict[tuple[int, bool], tuple[Store, Image]] = {}

        self.device.write(self.completions, bytes(self.entries * COMPLETION_BYTES))
        self.write64("RING", self.ring)
        self.write64("COMPLETION", self.completions)
        device.write32(regmap.RING_SIZE, ring_size)
        device.write32(regmap.EVENT, regmap.EVENT_DONE_MASK | regmap.EVENT_ERROR_MASK)
        device.write32(regmap.MASK, regmap.MASK_DONE_MASK | regmap.MASK_ERROR_MASK)
        device.write32(regmap.CONTROL, regmap.CONTROL_ENABLE_MASK)

    def write64(self, name: str, value: int) -> None:
        """Write the pair of registers ``name``_LO and ``name``_HI."""
        self.device.write32(getattr(regmap, f"{name}_LO"), value & 0xFFFFFFFF)
        self.device.write32(getattr(regmap, f"{name}_HI"), value >> 32)

    def place(self, job: Job | Fence) -> Placed:
        """Write a job's arrays to memory, results filled with a pattern.

        Raises
        ------
        ValueError
            when they do not fit below ``limit``.
        """
        store = None
        if isinstance(job, Job):
            key = (id(job.store), job.checksum)
            if key not in self._stores:
                image = store_image(job.store, self._page(), checksums=job.checksum)
                self._write(image)
                # The store is kept with its place: its id may be given away once it is gone.
                self._stores[key] = (job.store, image)
            store = self._stores[key][1]
        placed = Placed(job, job.image(self._page(), store))
        self._write(placed.image)
        return placed

    def post(self, jobs: Sequence[Placed]) -> None:
        """Write descriptors into the ring and ring the doorbell once.

        Raises
        ------
        ValueError
            when there are more than :attr:`room`.
        """
        if len(jobs) > self.room:
            raise ValueError(f"jobs must be at most {self.room}, not {len(jobs)}")
        for placed in jobs:
            entry = self.announced % self.entries
            self.device.write(self.ring + entry * DESCRIPTOR_BYTES, placed.descriptor)
            self._under_way.append(placed)
            self.announced += 1
        self.device.write32(regmap.TAIL, self.announced & 0xFFFF)

    @property
    def room(self) -> int:
        """Descriptors that the ring takes now."""
        return self.entries - len(self._under_way)

    def collect(self) -> list[Outcome]:
        """Clear the event and return the jobs that are complete, in order.

        Raises
        ------
        RuntimeError
            when the unit reports an error that is none of a job, or a completion is not the one
            that was due.
        """
        event = self.device.read32(regmap.EVENT)
        if event & regmap.EVENT_ERROR_MASK and not self.device.read32(regmap.ERROR_SEQUENCE):
            code = ErrorCode(self.device.read32(regmap.ERROR) & regmap.ERROR_CODE_MASK)
            address = self.device.read32(regmap.ERROR_ADDRESS_LO)
            address |= self.device.read32(regmap.ERROR_ADDRESS_HI) << 32
            raise RuntimeError(f"the unit reports {code.name} at {address:#x}")
        # First the event, then the count: a completion between the two sets the event again.
        self.device.write32(regmap.EVENT, event)
        done = (self.device.read32(regmap.COMPLETED) - self.collected) & 0xFFFF
        if done > len(self._under_way):
            raise RuntimeError(f"{done} completions, {len(self._under_way)} jobs were under way")
        return [self._collect_one() for _ in range(done)]

    def wait(
        self, count: int, *, max_cycles: int, progress: Callable[[int], None] | None = None
    ) -> list[Outcome]:
        """Run until ``count`` more jobs are complete; ``max_cycles`` is the limit of each wait.

        ``progress`` is called with the device's cycle now and then.

        Raises
        ------
        RuntimeError
            when no completion comes within ``max_cycles``, and as :meth:`collect`.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < count:
            end = self.device.cycle + max_cycles
            while not self.device.interrupt and self.device.cycle < end:
                left = end - self.device.cycle
                self.device.run(min(left, PROGRESS_CYCLES) if progress else left)
                if progress:
                    progress(self.device.cycle)
            if not self.device.interrupt:
                raise RuntimeError(
                    f"no completion within {max_cycles} cycles, after {self.collected} jobs"
                )
            outcomes += self.collect()
        return outcomes

    def run(self, jobs: Iterable[Job | Fence], *, max_cycles: int = 2_000_000) -> list[Outcome]:
        """Run jobs back to back: as many as the ring holds are announced at any time.

        Raises
        ------
        RuntimeError
            as :meth:`wait`.
        """
        waiting = deque(self.place(job) for job in jobs)
        outcomes: list[Outcome] = []
        while waiting or self._under_way:
            batch = [waiting.popleft() for _ in range(min(self.room, len(waiting)))]
            if batch:
                self.post(batch)
            outcomes += self.wait(1, max_cycles=max_cycles)
        return outcomes

    def _collect_one(self) -> Outcome:
        placed = self._under_way.popleft()
        entry = self.collected % self.entries
        raw = self.device.read(self.completions + entry * COMPLETION_BYTES, COMPLETION_BYTES)
        record = unpack_completion(raw)
        self.collected += 1
        if record["sequence"] != self.collected & 0xFFFFFFFF:
            raise RuntimeError(
                f"completion must have sequence {self.collected}, not {record['sequence']}"
            )
        memory = {
            name: bytes(self.device.read(address, padded_size(size) + ALIGN))
            for name, (address, size) in placed.image.results.items()
        }
        sizes = {name: size for name, (_, size) in placed.image.results.items()}
        return Outcome(
            result=placed.job.decode({name: memory[name][:size] for name, size in sizes.items()}),
            record=record,
            overrun=any(overrun(memory[name], size) for name, size in sizes.items()),
            cycle=self.device.cycle,
        )

    def _page(self) -> int:
        return -(-self.end // PAGE) * PAGE

    def _check_room(self, end: int) -> None:
        if end > self.limit:
            raise ValueError(f"memory must hold {end:#x} bytes, not {self.limit:#x}")

    def _write(self, image: Image) -> None:
        self._check_room(image.end)
        for address, raw in image.segments:
            self.device.write(address, raw)
        self.end = image.end
