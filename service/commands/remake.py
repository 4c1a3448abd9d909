"""``superdiff remake``: a picture drawn again, from what its file says of itself."""

import base64
import io
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.common import (
    CatalogOption,
    CommandError,
    DeviceOption,
    JsonOption,
    KeyOption,
    UrlOption,
    read_file,
    told,
)
from service.commands.follow import answer_of
from service.commands.opening import opened
from service.commands.output import target_of
from service.commands.pictures import write_answer


def remake(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG that the service or this command wrote.")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="Picture file. Default: PICTURE-remade.png.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture it started from, if any.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Its mask, if any.")] = None,
    *,
    url: UrlOption = None,
    key: KeyOption = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a picture again from the request in its file."""
    with told():
        from service.metadata import read

        recipe = read(read_file(picture, "PICTURE"))
        if recipe is None:
            raise CommandError(f"{picture}: contains no request; only PNGs written by superdiff do")
        body = recipe["request"] | _source(picture, recipe.get("source"), image, mask)
        target = target_of(out or str(picture.with_name(f"{picture.stem}-remade.png")), 1)
        body["output_format"] = target.format
        with opened(url, key, catalog, device) as session:
            answer = answer_of(session, str(recipe["path"]), body)
        write_answer(answer, target, as_json=as_json, asked=body)


def _source(picture: Path, source: dict[str, Any] | None, image: Path | None, mask: Path | None) -> dict[str, Any]:
    """The image and mask that a request needs besides, held against their digests."""
    from service.metadata import digest

    needed = {"image": (source or {}).get("image_sha256"), "mask": (source or {}).get("mask_sha256")}
    given = {"image": image, "mask": mask}
    found: dict[str, Any] = {}
    for name, expected in needed.items():
        path = given[name]
        if expected is None and path is not None:
            raise CommandError(f"--{name}: {picture} was made without one")
        if expected is None:
            continue
        if path is None:
            raise CommandError(f"{picture} was made from another picture: give its --{name}, SHA-256 {expected}")
        file = read_file(path, f"--{name}")
        found[name] = base64.b64encode(file).decode()
        if digest(file) != expected:
            raise CommandError(
                f"--{name} {path}: this is not the file that {picture} was made from, SHA-256 {expected}"
            )
    if mask is not None and source is not None and source["painted"] != "white":
        found["mask"] = _whitened(mask, source["painted"])
    return found


def _whitened(path: Path, painted: str) -> str:
    """A mask that says by black or by transparency what is painted, as one that says it by white."""
    from PIL import Image

    from service.sources import read_mask

    with Image.open(path) as mask:
        white = read_mask(mask, "clear" if painted == "clear" else "black", mask.size)
    buffer = io.BytesIO()
    white.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
