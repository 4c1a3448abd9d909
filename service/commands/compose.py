"""``superdiff compose``: pictures of an expression, by a service or here."""

import base64
from pathlib import Path
from typing import Annotated, Any, Final

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
from service.commands.output import target_of, write_whole
from service.commands.pictures import write_answer

_PATH: Final = "/v1/superpose"


def compose(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION",
            help='What to compose, as one argument: \'"a cat" AND ("a pizza" OR fox) NOT "a ball"\'. '
            "docs/expressions.md describes it.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Picture file or folder; several pictures get numbers, and in a folder a contact sheet."
        ),
    ] = "composed.png",
    steps: Annotated[int | None, typer.Option(help="Number of network calls. Default: the model's.")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale",
            "--guidance",
            help="1 for none. Default: the model's, times the number of prompts that must hold together.",
        ),
    ] = None,
    guidance_start: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps, counted from the first, without guidance; the operator sets the default."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random by default.")] = None,
    num_images: Annotated[int, typer.Option("--num-images", "--images", "-n", help="Number of pictures.", min=1)] = 1,
    candidates: Annotated[
        int | None, typer.Option(help="Pictures to draw for each one written; the best is kept.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(help="How to choose among candidates: lift is free, density makes 8 more network calls."),
    ] = None,
    particles: Annotated[
        int | None, typer.Option(help="Samples per candidate, reweighted to follow the expression's density.")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Transition kernel. Default: the model's.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", "--negative", help="What guidance steers away from.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. Default: the image's, else the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels, with the same default as the width.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture of the same size: white is repainted, black is kept.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much to change the image: 0 returns it, 1 keeps nothing.")
    ] = None,
    fit: Annotated[str | None, typer.Option(help="How to bring the image to the size: crop, pad or stretch.")] = None,
    mask_feather: Annotated[
        float | None, typer.Option(help="Width of the blend inside the mask's border, in pixels.")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option(help="png, jpeg or webp. Default: by the file extension; png in a folder.")
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Write a preview next to the pictures every N steps; 0 for never.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher runs earlier.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Time limit in seconds.")] = None,
    *,
    include_trajectory: Annotated[
        bool, typer.Option("--include-trajectory", help="Write κ and the log-densities of every step.")
    ] = False,
    include_lift_maps: Annotated[
        bool, typer.Option("--include-lift-maps", help="Write maps of where each component explains the picture.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compose pictures: here, or on a service with --url. Ctrl-C cancels the job."""
    with told():
        target = target_of(out, num_images, output_format)
        given: dict[str, Any] = {
            "steps": steps,
            "guidance_scale": guidance_scale,
            "guidance_start": guidance_start,
            "seed": seed,
            "num_images": num_images,
            "candidates": candidates,
            "select": select,
            "particles": particles,
            "kernel": kernel,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "image": None if image is None else encoded_file(image, "--image"),
            "mask": None if mask is None else encoded_file(mask, "--mask"),
            "strength": strength,
            "fit": fit,
            "mask_feather": mask_feather,
            "output_format": target.format,
            "preview_every": preview_every,
            "priority": priority,
            "timeout_s": timeout_s,
            "include_trajectory": include_trajectory or None,
            "include_lift_maps": include_lift_maps or None,
        }
        body = {"expression": expression} | {name: value for name, value in given.items() if value is not None}

        def preview(data: Any) -> None:
            for i, picture in enumerate(data["images"]):
                write_whole(target.picture(i, "-preview", ".jpg"), base64.b64decode(picture))

        with opened(url, key, catalog, device) as session:
            answer = answer_of(session, _PATH, body, preview)
        try:
            write_answer(answer, target, as_json=as_json, asked=body)
        except CommandError as error:
            if url is None:
                raise
            again = f"superdiff jobs fetch {answer['id']} --url {url} -o ELSEWHERE"
            raise CommandError(f"{error}; the service keeps the pictures for a while: {again}", error.code) from error


def encoded_file(path: Path, option: str) -> str:
    """A picture's file as the wire has it."""
    return base64.b64encode(read_file(path, option)).decode()
