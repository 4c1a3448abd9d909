"""What the commands share: options, the catalogue, the settings, exit codes, and how what goes wrong is told."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import ValidationError

from pipelines.errors import InvalidInputError, PipelineError
from pipelines.grammar import GrammarError, UnknownModelInTextError
from pipelines.grammar.errors import point
from service.settings import Settings

if TYPE_CHECKING:
    from pipelines.catalog import Catalog

DEFAULT_CATALOG: Final = Path("superdiff.toml")
DEFAULT_URL: Final = "http://127.0.0.1:8000"
CatalogOption = Annotated[
    Path | None,
    typer.Option("--catalog", help="Catalogue file. Default: SUPERDIFF_CATALOG, ./superdiff.toml, builtin models."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; chosen automatically by default.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="Use the service at http://HOST:PORT instead of computing here.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="SUPERDIFF_KEY", help="API key for the service (Authorization: Bearer KEY)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout; messages go to stderr.")]
_VERBOSITY: Final = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")
_POINTER: Final = re.compile(r"#/(?=[\w/]+: )")


class Exit(IntEnum):
    """How a command ends."""

    FINE = 0
    """All is done."""
    PROBLEMS = 1
    """The doctor found what keeps the service from working."""
    WRONG = 2
    """The command, its input, its output or a local model is wrong."""
    UNREACHABLE = 3
    """There is no service at the address, or it went away."""
    REFUSED = 4
    """The service refused, failed or cancelled the job."""
    INTERRUPTED = 130
    """Ctrl-C; the job is cancelled."""


class CommandError(Exception):
    """Why a command ends early.

    Args:
        message: One sentence for the user.
        code: The exit code.
        shown: What is printed below the message.
    """

    def __init__(self, message: str, code: Exit = Exit.WRONG, shown: str = "") -> None:
        super().__init__(message)
        self.code, self.shown = code, shown


def refused(problem: Mapping[str, Any], expression: object = None) -> CommandError:
    """What a service's problem document (RFC 9457) comes to: where it names a field, the input is wrong.

    Args:
        problem: The document.
        expression: The text that was sent, to show where in it the fault lies.
    """
    faults = problem.get("errors") or []
    columns = [fault["column"] for fault in faults if fault.get("column")]
    shown = point(expression, columns[0]) if columns and isinstance(expression, str) else ""
    message = _POINTER.sub("", str(problem.get("detail") or problem.get("title") or "the service gave no reason"))
    return CommandError(message, Exit.WRONG if faults else Exit.REFUSED, shown)


def catalog_path(named: Path | None, settings: Settings) -> Path | None:
    """The catalogue that the command line or the environment names, else ./superdiff.toml if there is one."""
    return named or settings.catalog or (DEFAULT_CATALOG if DEFAULT_CATALOG.exists() else None)


def open_catalog(named: Path | None, device: str | None) -> "Catalog":
    """The catalogue of :func:`catalog_path`, else the builtin models."""
    quiet()
    from pipelines.catalog import Catalog

    settings = read_settings()
    path, device, fast = catalog_path(named, settings), device or settings.device, settings.fast
    return Catalog.read(path, device, fast=fast) if path else Catalog.builtin(device, fast=fast)


def quiet() -> None:
    """Have the libraries that are imported from now on keep their notes on loading to themselves."""
    for name in _VERBOSITY:
        os.environ.setdefault(name, "error")


def read_settings(**given: Any) -> Settings:
    """The settings, with what the command line gave; what makes no sense is told by its name."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        # What concerns several settings names them itself.
        told = f"SUPERDIFF_{name.upper()}: {reason}, got {first['input']!r}" if name else f"settings: {reason}"
        raise InvalidInputError(told, field=(name,)) from error


def read_file(path: Path, name: str) -> bytes:
    """A file that the command line names.

    Args:
        path: Where it is.
        name: Of the option or argument.

    Raises:
        CommandError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{name} {path}: cannot be read: {error.strerror}") from error


def print_json(document: object) -> None:
    """A document on stdout, for machines."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say what went wrong in a line, without a stack trace, and exit with its code."""
    try:
        yield
    except PipelineError as error:
        shown = error.pointer_text if isinstance(error, GrammarError | UnknownModelInTextError) else ""
        raise _ended(str(error), Exit.WRONG, shown) from error
    except CommandError as error:
        raise _ended(str(error), error.code, error.shown) from error
    except KeyboardInterrupt:
        raise _ended("interrupted", Exit.INTERRUPTED) from None


def _ended(message: str, code: Exit, shown: str = "") -> typer.Exit:
    typer.secho(f"superdiff: {message}", fg="red", err=True)
    if shown:
        typer.echo(shown, err=True)
    return typer.Exit(code)
