"""Simulate jobs on the generated Verilog of a configuration and compare with the golden model."""

import pathlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from moska.gen.config import Config
from moska.gen.emit import TOP, generate
from moska.golden.layout import (
    COMPLETION_BYTES,
    COUNTERS,
    DESCRIPTOR_BYTES,
    pack_descriptor,
)
from moska.golden.unit import Result
from moska.sim import verilator
from moska.sim.job import Job, overrun


@dataclass(frozen=True)
class Outcome:
    """What came back from one job."""

    result: Result
    sequence: int
    tag: int
    counters: dict[str, int]
    error_code: int
    error_address: int
    overrun: bool  # bytes behind a result were written

    @property
    def error(self) -> bool:
        """Whether the job failed."""
        return self.error_code != 0


class Simulation:
    """Generated and verilated unit of one configuration, in ``directory``."""

    def __init__(self, config: Config, directory: pathlib.Path, *, waves: bool = False):
        self.config = config
        self.directory = pathlib.Path(directory).resolve()
        self.waves = waves
        self.verilog = generate(config, self.directory)[0]
        self.runner = verilator.build(
            self.verilog, TOP, self.directory / "sim_build", waves=waves
        )

    def run(
        self,
        jobs: Sequence[Job],
        *,
        stall: float = 0.0,
        seed: int = 0,
        beat_interval: int = 1,
        queue: bool = True,
        reset_after: dict[int, int] | None = None,
        max_cycles: int = 2_000_000,
    ) -> list[Outcome | None]:
        """Run ``jobs`` in one simulation.

        Parameters
        ----------
        jobs
            what to run
        stall
            chance of a pause in each cycle, on every channel of the memory port
        seed
            of the pauses
        beat_interval
            cycles per data beat that memory needs; 2 halves its bandwidth
        queue
            announce all jobs at once; else each one when the one before is complete
        reset_after
            number of a job: cycle after its start at which the unit is reset; its outcome is None.
            Only without ``queue``
        max_cycles
            limit of one job

        Raises
        ------
        RuntimeError
            when a job does not end; names the log.
        """
        if reset_after and queue:
            raise ValueError("queue must be False to reset after a job")
        ring_size = max(1, (len(jobs) - 1).bit_length())
        ring = 0x1000
        completions = ring + (DESCRIPTOR_BYTES << ring_size)
        base = completions + (COMPLETION_BYTES << ring_size)
        entries = []
        images = []
        for index, job in enumerate(jobs):
            base = -(-base // 0x1000) * 0x1000
            image = job.image(base)
            base = image.end
            images.append(image)
            entries.append(
                {
                    "segments": image.segments,
                    "descriptor": pack_descriptor(**image.fields),
                    "results": image.results,
                    "reset_after": (reset_after or {}).get(index),
                }
            )
        options = {
            "seed": seed,
            "stall": stall,
            "beat_interval": beat_interval,
            "queue": queue,
            "ring": ring,
            "completions": completions,
            "ring_size": ring_size,
            "reset_cycles": 8,
            "poll": 100_000,
            "max_cycles": max_cycles,
            "memory_bytes": 1 << max(20, base.bit_length()),
        }
        build_dir = self.directory / "sim_build"
        plan, results = build_dir / "jobs.pickle", build_dir / "results.pickle"
        plan.write_bytes(pickle.dumps({"options": options, "jobs": entries}))
        results.unlink(missing_ok=True)
        verilator.run(
            self.runner,
            TOP,
            "moska.sim.tb_unit",
            build_dir,
            env={"MOSKA_JOBS": str(plan), "MOSKA_RESULTS": str(results)},
            waves=self.waves,
        )
        outcomes: list[Outcome | None] = []
        returned = pickle.loads(results.read_bytes())
        for job, image, raw in zip(jobs, images, returned, strict=True):
            if raw is None:
                outcomes.append(None)
                continue
            record, memory = raw["record"], raw["memory"]
            sizes = {name: size for name, (_, size) in image.results.items()}
            outcomes.append(
                Outcome(
                    result=job.decode({name: memory[name][:size] for name, size in sizes.items()}),
                    sequence=record["sequence"],
                    tag=record["tag"],
                    counters={name: record[name] for name in COUNTERS},
                    error_code=record["code"],
                    error_address=record["error_addr"],
                    overrun=any(overrun(memory[name], size) for name, size in sizes.items()),
                )
            )
        return outcomes
