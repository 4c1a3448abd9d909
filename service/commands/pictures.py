"""A composition's answer, written to files and told."""

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from service.commands.common import print_json
from service.commands.inline import inline, protocol_of
from service.commands.output import Target, contact_sheet, write_whole

_SHEET: Final = "contact-sheet.png"
_TRAJECTORY: Final = "trajectory.json"


def write_answer(answer: Mapping[str, Any], target: Target, *, as_json: bool, asked: Mapping[str, Any]) -> None:
    """Write an answer's pictures, maps and trajectory, and say of each picture what there is to say.

    Args:
        answer: As the wire has it, pictures in base64.
        target: Where the files go.
        as_json: Whether the answer is printed as JSON, with the files' paths instead of their contents.
        asked: The request: how many candidates and particles there were.
    """
    files = [base64.b64decode(image["b64_json"]) for image in answer["images"]]
    written = [
        _write_image(image, data, target, i)
        for i, (image, data) in enumerate(zip(answer["images"], files, strict=True))
    ]
    told = {**answer, "images": written}
    if target.folder_asked and len(files) > 1:
        write_whole(target.beside(_SHEET), contact_sheet(files))
        told["contact_sheet"] = str(target.beside(_SHEET))
    if as_json:
        print_json(told)
        return
    if answer.get("trajectory") is not None:
        path = target.beside(_TRAJECTORY)
        write_whole(path, json.dumps(answer["trajectory"]).encode())
        typer.echo(str(path))
    protocol = protocol_of(os.environ) if sys.stdout.isatty() else None
    for image, data in zip(written, files, strict=True):
        _tell(image, answer["components"], asked)
        if protocol is not None:
            typer.echo(inline(data, protocol))
    if "contact_sheet" in told:
        typer.echo(told["contact_sheet"])


def _write_image(image: Mapping[str, Any], data: bytes, target: Target, index: int) -> dict[str, Any]:
    """Write a picture and its lift maps; what the answer says of it, with paths instead of contents."""
    path = target.picture(index)
    write_whole(path, data)
    told = {key: value for key, value in image.items() if key not in {"b64_json", "url"}} | {"file": str(path)}
    if image.get("lift_maps"):
        told["lift_maps"] = {
            name: _write_map(lift_map, target, index, leaf)
            for leaf, (name, lift_map) in enumerate(image["lift_maps"].items())
        }
    return told


def _write_map(lift_map: Mapping[str, Any] | None, target: Target, index: int, leaf: int) -> dict[str, Any] | None:
    if lift_map is None:
        return None
    path = target.picture(index, f"-lift-{leaf}", ".png")
    write_whole(path, base64.b64decode(lift_map["b64_json"]))
    return {"file": str(path), "scale": lift_map["scale"]}


def _tell(image: Mapping[str, Any], components: Sequence[str], asked: Mapping[str, Any]) -> None:
    """A picture's path and seed, which candidate it is, and what each component makes of it."""
    candidates, particles = asked.get("candidates") or 1, asked.get("particles") or 1
    chosen = f"  candidate {image['candidate'] + 1} of {candidates}" if candidates > 1 else ""
    left = f"  {image['survivors']} of {particles} particles left" if particles > 1 else ""
    typer.echo(f"{image['file']}  seed {image['seed']}{chosen}{left}")
    for name in components:
        typer.echo(f"  {name}: log-density {nats(image['log_density'][name])}, lift {nats(image['lift'][name])}")


def nats(value: float | None) -> str:
    """A number of nats in words."""
    return "unknown" if value is None else f"{value:.1f} nats"
