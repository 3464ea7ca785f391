"""Simulate jobs on the generated Verilog of a configuration and compare with the golden model."""

import pathlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from moska.gen.config import Config
from moska.gen.emit import TOP, generate
from moska.golden.unit import Result
from moska.sim import verilator
from moska.sim.job import Job, overrun


@dataclass(frozen=True)
class Outcome:
    """What came back from one job."""

    result: Result
    counters: dict[str, int]
    done: bool
    error: bool
    error_code: int
    error_address: int
    overrun: bool  # bytes behind a result were written


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
        reset_after: dict[int, int] | None = None,
        max_cycles: int = 2_000_000,
    ) -> list[Outcome | None]:
        """Run ``jobs`` one after the other in one simulation.

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
        reset_after
            number of a job: cycle after its start at which the unit is reset; its outcome is None
        max_cycles
            limit of one job

        Raises
        ------
        RuntimeError
            when a job does not end; names the log.
        """
        entries = []
        base = 0x1000
        images = []
        for index, job in enumerate(jobs):
            image = job.image(base)
            base = -(-image.end // 0x1000) * 0x1000
            images.append(image)
            entries.append(
                {
                    "segments": image.segments,
                    "descriptor": image.descriptor,
                    "results": image.results,
                    "reset_after": (reset_after or {}).get(index),
                }
            )
        options = {
            "seed": seed,
            "stall": stall,
            "beat_interval": beat_interval,
            "reset_cycles": 8,
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
            status = raw["status"]
            sizes = {name: size for name, (_, size) in image.results.items()}
            memory = raw["memory"]
            outcomes.append(
                Outcome(
                    result=job.decode({name: memory[name][:size] for name, size in sizes.items()}),
                    counters=raw["counters"],
                    done=bool(status & 2),
                    error=bool(status & 4),
                    error_code=(status >> 8) & 0xF,
                    error_address=raw["error_address"],
                    overrun=any(overrun(memory[name], size) for name, size in sizes.items()),
                )
            )
        return outcomes
