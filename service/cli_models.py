"""The command ``superdiff models``: list the catalogue, check it, add to it."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.card import Card
from pipelines.catalog import Catalog
from pipelines.entry import Entry, cannot_be_source
from pipelines.errors import CatalogError, PipelineError
from service.cli_common import (
    DEFAULT_CATALOG,
    CatalogOption,
    DeviceOption,
    catalog_path,
    open_catalog,
    read_settings,
    told,
)

models_app = typer.Typer(help="The catalogue: list it, check it, add to it.", invoke_without_command=True)


@models_app.callback()
def models(context: typer.Context, catalog: CatalogOption = None) -> None:
    """The catalogue: list it (the default), check it, add to it."""
    context.obj = catalog
    if context.invoked_subcommand is None:
        list_models(context, catalog)


@models_app.command("list")
def list_models(context: typer.Context, catalog: CatalogOption = None) -> None:
    """Say what stands in the catalogue; nothing is loaded."""
    with told():
        held = open_catalog(catalog or context.obj, None)
        for name in held.names:
            entry = held.entry(name)
            source = f"hub:{entry.hub}" if entry.hub else entry.source
            worn = f", LoRAs {', '.join(entry.loras)}" if entry.loras else ""
            typer.echo(f"{name}: {source}, {entry.family or 'family as its folder says'}, {held.dtype(name)}{worn}")


@models_app.command("check")
def check_models(context: typer.Context, catalog: CatalogOption = None, device: DeviceOption = None) -> None:
    """Load every model and describe it, and say which compose; exit with 1 where one cannot be loaded."""
    with told():
        held = open_catalog(catalog or context.obj, device)
        cards = {name: card for name in held.names if (card := _checked(held, name)) is not None}
    for space in dict.fromkeys(card.space for card in cards.values()):
        typer.echo(f"compose with one another: {', '.join(n for n, card in cards.items() if card.space == space)}")
    if len(cards) < len(held.names):
        raise typer.Exit(1)


@models_app.command("add")
def add_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What requests shall call it.")],
    source: Annotated[str, typer.Argument(help="A folder, a .safetensors file, builtin:NAME or hub:OWNER/NAME.")],
    family: Annotated[str | None, typer.Option(help="Needed for a .safetensors file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub source.")] = None,
    catalog: CatalogOption = None,
) -> None:
    """Write a model into the catalogue file, ./superdiff.toml where none is named; it is not loaded yet."""
    given = {"source": source, "family": family, "dtype": dtype, "revision": revision}
    table = {key: value for key, value in given.items() if value is not None}
    with told():
        path = catalog_path(catalog or context.obj, read_settings()) or DEFAULT_CATALOG
        entry = Entry.parse(name, table, path.parent)
        if entry.source.is_file() and (reason := cannot_be_source(entry.source)):
            raise CatalogError(f"models.{name}.source: {source}: {reason}")
        try:
            written = path.read_text() if path.exists() else ""
            if name in _models_of(written, path):
                raise CatalogError(f"models.{name}: {path} has it already")
            lines = [f"[models.{_quoted(name)}]", *(f"{key} = {_quoted(value)}" for key, value in table.items())]
            text = written + ("\n" if written else "") + "\n".join(lines) + "\n"
            # What stands there may not take a table of its own more: models = {…} on one line does not.
            _models_of(text, path)
            path.write_text(text)
        except OSError as error:
            raise CatalogError(f"{path}: cannot be written: {error.strerror}") from error
    typer.echo(f"{path}: added {name}; superdiff models check --catalog {path} tries it")


def _checked(held: Catalog, name: str) -> Card | None:
    """The card of a model that can be loaded, told; of one that cannot, why."""
    try:
        card = held.get(name).card
    except PipelineError as error:
        typer.secho(f"{error}", fg="red", err=True)
        return None
    curve = "measured" if card.calibrated else "Gaussian fallback"
    worn = f", LoRAs {', '.join(card.adapters)}" if card.adapters else ""
    typer.echo(
        f"{name}: {card.parameters / 1e6:.1f} M parameters, {card.memory / 2**20:.0f} MiB, {card.width}×{card.height}, "
        f"{card.space}, σ {card.sigma_min:.3g}–{card.sigma_max:.3g}, denoising error: {curve}{worn}"
    )
    return card


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's differs in the delete character alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _models_of(text: str, path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(text).get("models", {})
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path.name}: not TOML: {error}") from error
    return found if isinstance(found, dict) else {}
