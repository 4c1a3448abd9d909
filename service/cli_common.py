"""What the commands share: the catalogue, the settings, and how what goes wrong is told."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from pipelines.catalog import Catalog
from pipelines.errors import InvalidInputError, PipelineError
from pipelines.grammar import GrammarError, UnknownModelInTextError
from service.settings import Settings

DEFAULT_CATALOG: Final = Path("superdiff.toml")
CatalogOption = Annotated[
    Path | None,
    typer.Option("--catalog", help="Catalogue file; else SUPERDIFF_CATALOG, ./superdiff.toml, the builtin models."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; none to choose.")]


def catalog_path(named: Path | None, settings: Settings) -> Path | None:
    """The catalogue that the command line or the environment names, else ./superdiff.toml if there is one."""
    return named or settings.catalog or (DEFAULT_CATALOG if DEFAULT_CATALOG.exists() else None)


def open_catalog(named: Path | None, device: str | None) -> Catalog:
    """The catalogue of :func:`catalog_path`, else the builtin models."""
    settings = read_settings()
    path, device, fast = catalog_path(named, settings), device or settings.device, settings.fast
    return Catalog.read(path, device, fast=fast) if path else Catalog.builtin(device, fast=fast)


def read_settings(**given: Any) -> Settings:
    """The settings, with what the command line gave; what makes no sense is told by its name."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        told = f"SUPERDIFF_{name.upper()}: {first['msg']}, got {first['input']!r}"
        raise InvalidInputError(told, field=(name,)) from error


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say what a user can mend, without a stack trace, and exit with 2."""
    try:
        yield
    except PipelineError as error:
        typer.secho(f"superdiff: {error}", fg="red", err=True)
        if isinstance(error, GrammarError | UnknownModelInTextError):
            typer.echo(error.pointer_text, err=True)
        raise typer.Exit(2) from error
