"""Command line `moska`."""

# Everything heavy (Amaranth, the simulation) is imported by the command that needs it.
import json
import pathlib
from importlib import metadata

import click

from moska.gen.config import Config, preset_names

PRESETS = ", ".join(preset_names())


class Refusal(click.ClickException):
    """A refused configuration or file: one line on standard error, exit status 2."""

    exit_code = 2

    def show(self, file=None):
        """Print the line."""
        line = " ".join(self.message.split())
        click.echo(f"moska: error: {line}", file=file, err=True)


class Failure(click.ClickException):
    """A simulation that failed or differs from the golden model: exit status 1."""

    exit_code = 1

    def show(self, file=None):
        """Print the message, with the end of a log if it has one."""
        click.echo(f"moska: error: {self.message}", file=file, err=True)


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


@main.command(short_help="Show a configuration and what follows from it.")
@click.argument("config", type=ConfigType())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def info(config, as_json):
    """Show the parameters of CONFIG and what follows from them.

    That is: shapes of the arrays, widths of the numbers in bits, bits of each memory, and the
    figures that the cycle bound of a job is made of.

    \b
    Examples:
      moska info ulx3s
      moska info my_unit.toml --json
    """
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


@main.command(short_help="Write the unit's Verilog and what belongs to it.")
@click.argument("config", type=ConfigType())
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    required=True,
    help="Folder to write into; made if it does not exist.",
)
def generate(config, output):
    """Write the unit that CONFIG describes into a folder, and list the files written.

    \b
    Examples:
      moska generate ulx3s -o out/ulx3s
      moska generate my_unit.toml -o out/my_unit
    """
    from moska.gen import emit

    try:
        paths = emit.generate(config, output)
    except OSError as error:
        raise Refusal(f"output must be a writable folder: {output}: {error.strerror}") from error
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
