"""The command ``superdiff models``: list the catalogue, check it, add to it."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import CatalogError, PipelineError
from service.commands.common import (
    DEFAULT_CATALOG,
    CatalogOption,
    DeviceOption,
    Exit,
    JsonOption,
    KeyOption,
    UrlOption,
    catalog_path,
    open_catalog,
    print_json,
    read_settings,
    told,
)
from service.commands.output import write_whole
from service.commands.remote import RemoteSession

if TYPE_CHECKING:
    from pipelines.card import Card
    from pipelines.catalog import Catalog

models_app = typer.Typer(help="The catalogue: list it, check it, add to it.", invoke_without_command=True)


@models_app.callback()
def models(context: typer.Context, catalog: CatalogOption = None) -> None:
    """The catalogue: list it (the default), check it, add to it."""
    context.obj = catalog
    if context.invoked_subcommand is None:
        list_models(context, catalog)


@models_app.command("list")
def list_models(
    context: typer.Context,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the models of the catalogue, or of a service with --url; nothing is loaded."""
    with told():
        if url is not None:
            with RemoteSession(url, key) as session:
                answer = session.get("/v1/models")
            if as_json:
                print_json(answer)
            else:
                for model in answer["data"]:
                    loaded = "loaded" if model["loaded"] else model.get("error") or "not loaded"
                    typer.echo(f"{model['id']}: {model['family'] or 'family unknown'}, {model['dtype']}, {loaded}")
            return
        held = open_catalog(catalog or context.obj, None)
        found = [_listed(held, name) for name in held.names]
    if as_json:
        print_json(found)
        return
    for model in found:
        worn = f", LoRAs {', '.join(model['loras'])}" if model["loras"] else ""
        family = model["family"] or "family given by its folder"
        typer.echo(f"{model['name']}: {model['source']}, {family}, {model['dtype']}{worn}")


@models_app.command("check")
def check_models(
    context: typer.Context, catalog: CatalogOption = None, device: DeviceOption = None, *, as_json: JsonOption = False
) -> None:
    """Load and describe every model, and say which compose; exit with 2 if a model or a LoRA cannot be loaded."""
    with told():
        held = open_catalog(catalog or context.obj, device)
        cards: dict[str, Card] = {}
        for name in held.names:
            card = _loaded(held, name)
            if card is not None:
                cards[name] = card
                if not as_json:
                    _describe(name, card)
    groups = [
        [name for name, card in cards.items() if card.space == space]
        for space in dict.fromkeys(card.space for card in cards.values())
    ]
    if as_json:
        print_json({"models": {name: _facts(card) for name, card in cards.items()}, "compose": groups})
    else:
        for group in groups:
            typer.echo(f"compose with one another: {', '.join(group)}")
    if len(cards) < len(held.names) or any(card.broken_adapters for card in cards.values()):
        raise typer.Exit(Exit.WRONG)


@models_app.command("add")
def add_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name in requests.")],
    source: Annotated[str, typer.Argument(help="A folder, a .safetensors file, builtin:NAME or hub:OWNER/NAME.")],
    family: Annotated[str | None, typer.Option(help="Required for a .safetensors file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub source.")] = None,
    catalog: CatalogOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Add a model to the catalogue file, by default ./superdiff.toml; it is not loaded yet."""
    given = {"source": source, "family": family, "dtype": dtype, "revision": revision}
    table = {key: value for key, value in given.items() if value is not None}
    with told():
        from pipelines.entry import Entry, cannot_be_source

        path = catalog_path(catalog or context.obj, read_settings()) or DEFAULT_CATALOG
        entry = Entry.parse(name, table, path.parent)
        if not entry.hub and (reason := cannot_be_source(entry.source)):
            raise CatalogError(f"models.{name}.source: {source}: {reason}")
        try:
            written = path.read_text() if path.exists() else ""
            if name in _models_of(written, path):
                raise CatalogError(f"models.{name}: {path} already has this model")
            lines = [f"[models.{_quoted(name)}]", *(f"{key} = {_quoted(value)}" for key, value in table.items())]
            text = written + ("\n" if written else "") + "\n".join(lines) + "\n"
            # What stands there may not take a table of its own more: models = {…} on one line does not.
            _models_of(text, path)
            write_whole(path, text.encode())
        except OSError as error:
            raise CatalogError(f"{path}: cannot be written: {error.strerror}") from error
    if as_json:
        print_json({"file": str(path), "name": name, **table})
        return
    typer.echo(f"{path}: added {name}; superdiff models check --catalog {path} tries it")


def _listed(held: "Catalog", name: str) -> dict[str, Any]:
    """What the catalogue says of a model."""
    entry = held.entry(name)
    source = f"hub:{entry.hub}" if entry.hub else str(entry.source)
    return {
        "name": name,
        "source": source,
        "family": entry.family,
        "dtype": held.dtype(name),
        "loras": list(entry.loras),
    }


def _loaded(held: "Catalog", name: str) -> "Card | None":
    """The card of a model that can be loaded; of one that cannot, it is told why."""
    try:
        card = held.get(name).card
    except PipelineError as error:
        typer.secho(f"{error}", fg="red", err=True)
        return None
    for lora, reason in card.broken_adapters.items():
        typer.secho(f"{name}: the LoRA {lora!r} cannot be loaded: {reason}", fg="red", err=True)
    return card


def _facts(card: "Card") -> dict[str, Any]:
    """A card for machines."""
    return {
        "parameters": card.parameters,
        "memory_bytes": card.memory,
        "width": card.width,
        "height": card.height,
        "space": str(card.space),
        "sigma_min": card.sigma_min,
        "sigma_max": card.sigma_max,
        "calibrated": card.calibrated,
        "loras": list(card.adapters),
    }


def _describe(name: str, card: "Card") -> None:
    curve = "measured" if card.calibrated else "Gaussian fallback"
    worn = f", LoRAs {', '.join(card.adapters)}" if card.adapters else ""
    typer.echo(
        f"{name}: {card.parameters / 1e6:.1f} M parameters, {card.memory / 2**20:.0f} MiB, {card.width}×{card.height}, "
        f"{card.space}, σ {card.sigma_min:.3g}–{card.sigma_max:.3g}, denoising error: {curve}{worn}"
    )


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's differs in the delete character alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _models_of(text: str, path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(text).get("models", {})
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path.name}: not TOML: {error}") from error
    return found if isinstance(found, dict) else {}
