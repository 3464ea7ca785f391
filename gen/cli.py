"""Command line `moska`."""

# Everything heavy (Amaranth, the simulation) is imported by the command that needs it.
import json
import pathlib
from importlib import metadata

import click

from moska.fpga.cli import build, flash
from moska.gen.config import Config, preset_names
from moska.host.cli import Failure, Refusal, chat, evaluate, selftest

PRESETS = ", ".join(preset_names())


class ConfigType(click.ParamType):
    """The name of a preset or the path of a TOML file."""

    name = "config"

    def convert(self, value, param, ctx):
        """Load and check the configuration."""
        if isinstance(value, Config):
            return value
        try:
            return Config.load(value)
        except (TypeError, ValueError) as error:
            raise Refusal(str(error)) from error

    def shell_complete(self, ctx, param, incomplete):
        """Complete preset names, then files."""
        presets = [name for name in preset_names() if name.startswith(incomplete)]
        return [click.shell_completion.CompletionItem(name) for name in presets] or [
            click.shell_completion.CompletionItem(incomplete, type="file")
        ]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"CONFIG is a preset ({PRESETS}) or the path of a TOML file.",
)
@click.version_option(metadata.version("moska"), prog_name="moska")
def main():
    """Generate, inspect and try a shared-KV attention unit.

    The unit attends many queries to one shared store of keys and values: it picks chunks per
    query, reads each picked chunk once, and returns partial outputs with their log-sum-exp.
    """


main.add_command(chat)
main.add_command(evaluate)
main.add_command(build)
main.add_command(flash)
main.add_command(selftest)


@main.command(short_help="Show a configuration and what follows from it, or the host side.")
@click.argument("config", type=ConfigType(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def info(config, as_json):
    """Show the parameters of CONFIG and what follows from them.

    That is: shapes of the arrays, widths of the numbers in bits, bits of each memory, and the
    figures that the cycle bound of a job is made of. Without CONFIG, show what the host side finds
    on this machine: links to units, and what could compute the requests' own attention.

    \b
    Examples:
      moska info
      moska info ulx3s
      moska info my_unit.toml --json
    """
    if config is None:
        show_host(as_json)
        return

    from moska.gen.info import as_dict, sections

    if as_json:
        click.echo(json.dumps(as_dict(config), indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, entries in sections(config).items():
        table = Table(title=f"{config.name}: {title}", title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column()
        for entry in entries:
            plain = isinstance(entry.value, str)
            table.add_row(entry.name, entry.value if plain else f"{entry.value:,}", entry.meaning)
        console.print(table)


def show_host(as_json):
    """Print what the host side finds on this machine."""
    from moska.host.info import found

    shown = found()
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"moska {shown['version']}", highlight=False)
    table = Table("URI", "from", title="Links to units", title_justify="left")
    for scheme, value in shown["transports"].items():
        table.add_row(scheme, value)
    console.print(table)
    table = Table("path", "", "what, or why not", title="Unique part", title_justify="left")
    for path in shown["paths"]:
        chosen = path["name"] == shown["chosen_path"]
        state = "chosen" if chosen else "usable" if path["usable"] else "no"
        table.add_row(path["name"], state, path["detail"])
    console.print(table)


@main.command(short_help="Write the unit's Verilog and what belongs to it.")
@click.argument("config", type=ConfigType())
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    required=True,
    help="Folder to write into; made if it does not exist.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: what each file is, its SHA-256.")
def generate(config, output, as_json):
    """Write the hardware package of CONFIG into a folder, and list the files written.

    That is: Verilog with a smoke test, file lists for FuseSoC and others, the register map for
    hardware, C and Python, constraints, and scripts for Vivado and Vitis. Its README.md says what
    each file is for. The same configuration and version give the same bytes.

    \b
    Examples:
      moska generate ulx3s -o out/ulx3s
      moska generate my_unit.toml -o out/my_unit --json
    """
    from moska.gen import package

    try:
        paths = package.write(config, output)
    except OSError as error:
        raise Refusal(f"output must be a writable folder: {output}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps(package.manifest(config, output), indent=2))
        return
    for path in paths:
        click.echo(path)


@main.command(short_help="Run the unit in simulation on real work and report.")
@click.argument("config", type=ConfigType(), default="ulx3s")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default="build/demo",
    show_default=True,
    help="Folder for the report; made if it does not exist.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Seed that picks the requests run one at a time.",
)
def demo(config, output, seed):
    """Simulate the unit that CONFIG describes (ulx3s if not given) and write a report.

    Needs the extras `sim` and `demo` of the package, a C++ compiler, make and Perl.

    \b
    Examples:
      moska demo
      moska demo sim64 -o build/sim64
    """
    try:
        from moska.sim import demo as simulation
    except ImportError as error:
        raise Refusal(f"the extras sim and demo must be installed: {error}") from error

    try:
        simulation.run(config, output, seed=seed)
    except ValueError as error:
        raise Refusal(str(error)) from error
    except OSError as error:
        raise Refusal(f"output must be a writable folder: {output}: {error.strerror}") from error
    except (simulation.Mismatch, RuntimeError) as error:
        raise Failure(str(error)) from error


def figures_options(command):
    """Options that `simulate` and `bench` share."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=1,
            show_default=True,
            help="Seed of the data and of the memory's pauses.",
        ),
        click.option(
            "--json",
            "json_path",
            is_flag=False,
            flag_value="-",
            type=click.Path(dir_okay=False, allow_dash=True),
            metavar="FILE",
            help="Write the figures as JSON, without FILE to standard output.",
        ),
    ):
        command = option(command)
    return command


def check_option(text):
    """Option that leaves the golden model out."""
    return click.option("--check/--no-check", "checked", default=True, help=text)


def write_json(figures, path):
    """Write figures to a file or, for "-", to standard output."""
    text = json.dumps(figures, indent=2)
    if path == "-":
        click.echo(text)
        return
    try:
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise Refusal(f"json must be a writable file: {path}: {error.strerror}") from error


def make_console(json_path):
    """Console for tables, wide enough for them when the output is not a terminal."""
    from rich.console import Console

    console = Console(stderr=json_path == "-")
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console


@main.command(short_help="Run one job on the simulated unit and check every bit.")
@click.argument("config", type=ConfigType())
@click.option("--rows", type=click.IntRange(min=1), help="Query rows.  [default: 64, or fewer]")
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens of the store.")
@click.option(
    "--chunk",
    type=click.IntRange(min=16),
    help="Tokens of a chunk, a multiple of 16.  [default: 32, or what a long store needs]",
)
@click.option(
    "--keep",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Share of the chunks that each row keeps; without it, all, and no routing.",
)
@click.option(
    "--router",
    default="minmax",
    show_default=True,
    help="mean, minmax or submean:N (means of N tokens).",
)
@click.option("--checksum", is_flag=True, help="Compare chunks with their checksums.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Equal jobs, announced at once.",
)
@click.option(
    "--latency",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Cycles until memory answers.",
)
@click.option(
    "--stall",
    type=click.FloatRange(0, 0.95),
    default=0.0,
    show_default=True,
    help="Chance of a pause in each cycle of each channel.",
)
@click.option(
    "--store",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    metavar="FILE.npz",
    help="Arrays k, v (tokens, D) and, if there, q (rows, D); else a real model's.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    metavar="FILE.fst",
    help="Write waves; .vcd is known as well.",
)
@check_option("Compare results with the golden model (default), or only count cycles.")
@figures_options
def simulate(config, json_path, trace, chunk, **options):
    """Run a job on the unit that CONFIG describes, in simulation, and compare every bit.

    Needs the extra `sim` of the package, a C++ compiler, make and Perl. Exit status 1 when a bit
    differs.

    \b
    Examples:
      moska simulate ulx3s
      moska simulate sim64 --rows 128 --tokens 4096 --keep 0.25 --latency 100 --jobs 4
      moska simulate ulx3s --rows 8 --tokens 1048576
      moska simulate my_unit.toml --store kv.npz --json -
      moska simulate tiny --rows 4 --tokens 128 --trace tiny.fst
    """
    try:
        from moska.sim import single
        from moska.sim.device import Device
    except ImportError as error:
        raise Refusal(f"the extra sim must be installed: {error}") from error

    console = make_console(json_path)
    request = single.Request(chunk_tokens=chunk, **options)
    with console.status("prepare the data") as status:
        try:
            job = single.prepare(config, request)
            status.update("generate the Verilog and build its simulator (minutes, once)")
            device = Device(
                config, memory_bytes=single.MEMORY_BYTES, seed=request.seed, trace=trace
            )
        except ValueError as error:
            raise Refusal(str(error)) from error
        except OSError as error:
            raise Refusal(f"{error.filename} must be writable: {error.strerror}") from error
        except RuntimeError as error:
            raise Failure(str(error)) from error
        with device:
            try:
                figures = single.run(device, config, request, job, status.update)
            except RuntimeError as error:
                raise Failure(str(error)) from error
    console.print(single.table(figures))
    if json_path:
        write_json(figures, json_path)
    if figures["problems"]:
        raise Failure("; ".join(figures["problems"][:5]))


@main.command(short_help="Measure cycles against their bound over many shapes.")
@click.argument("config", type=ConfigType(), default="ulx3s")
@click.option("--preset", type=ConfigType(), metavar="CONFIG", help="The same as CONFIG.")
@click.option("--quick", is_flag=True, help="Only a few shapes, less than a minute.")
@click.option(
    "--only", metavar="TEXT", help='Only shapes with TEXT in their name, as "m64 c32" or "crc".'
)
@check_option("Compare results with the golden model (default), or only jobs with each other.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    metavar="FILE",
    help="Write a plot of ratios and causes, .png or .svg.",
)
@figures_options
def bench(config, preset, quick, only, checked, plot, seed, json_path):
    """Measure the unit that CONFIG describes (ulx3s if not given) in simulation.

    Each line is a shape: equal jobs are announced at once, and the cycles from one completion to
    the next, in the middle of the queue, are compared with the bound. Results are those of a real
    model's keys and queries, checked bit for bit. Exit status 1 when a target is missed.

    Needs the extras `sim` and `demo` of the package, a C++ compiler, make and Perl.

    \b
    Examples:
      moska bench --quick
      moska bench sim64 --json bench.json --plot bench.svg
    """
    try:
        from moska.sim import chart, measure
        from moska.sim.device import Device
        from moska.sim.shapes import LATENCIES, latencies, shapes
    except ImportError as error:
        raise Refusal(f"the extras sim and demo must be installed: {error}") from error
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    config = preset or config
    listed = [shape for shape in shapes(config, quick=quick) if not only or only in shape.name]
    if not listed:
        raise Refusal(f"only must be part of a shape's name, not {only!r}")
    if plot and plot.suffix not in (".png", ".svg"):
        raise Refusal(f"plot must be a .png or .svg file, not {plot}")
    console = make_console(json_path)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    costs = {shape: measure.expected_cycles(config, shape) for shape in listed}
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=sum(costs.values()))
        done = iter([0, *costs.values()])

        def say(text):
            progress.update(task, description=text)
            if not console.is_terminal:
                click.echo(text, err=True)

        def step(shape):
            progress.update(task, advance=next(done))
            say(f"{listed.index(shape) + 1} of {len(listed)}: {shape.name}")

        say("generate the Verilog and build its simulator (minutes, once)")
        try:
            with Device(config, memory_bytes=measure.MEMORY_BYTES, seed=seed) as device:
                measured = measure.measure_all(
                    device, config, listed, seed=seed, checked=checked, progress=step
                )
        except (measure.Mismatch, RuntimeError) as error:
            raise Failure(str(error)) from error
    console.print(chart.cycles_table(config, measured))
    console.print(chart.causes_table(measured))
    left_out = [latency for latency in LATENCIES if latency not in latencies(config)]
    if left_out:
        console.print(
            f"Latencies left out, because max_in_flight ({config.max_in_flight} bytes) does not "
            f"cover them: {', '.join(map(str, left_out))}."
        )
    console.print(chart.verdict(measured), highlight=False)
    if plot:
        try:
            chart.plot(config, measured, plot)
        except OSError as error:
            raise Refusal(f"plot must be a writable file: {plot}: {error.strerror}") from error
    counted = measure.summary(measured)
    if json_path:
        figures = {
            "config": config.name,
            "parameters": config.parameters(),
            "version": metadata.version("moska"),
            "seed": seed,
            "checked": checked,
            "summary": counted,
            "shapes": [one.as_dict() for one in measured],
        }
        write_json(figures, json_path)
    if counted["met"] < counted["judged"]:
        missed = counted["judged"] - counted["met"]
        raise Failure(f"{missed} of {counted['judged']} targets are missed")
