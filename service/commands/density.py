"""``superdiff density``: which part of an expression explains a picture, by a service or here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from service.commands.common import CatalogOption, DeviceOption, JsonOption, KeyOption, UrlOption, print_json, told
from service.commands.compose import encoded_file
from service.commands.follow import answer_of
from service.commands.opening import opened

_PATH: Final = "/v1/density"


def density(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.")],
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION",
            help='What may explain it: \'"a cat" OR "a pizza"\'. In a flat OR the number after a prompt is its log '
            "prior odds in nats.",
        ),
    ],
    draws: Annotated[int | None, typer.Option(help="Number of noise draws to average over.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of network calls. Default: the model's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random by default.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Transition kernel; it must add noise.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. Default: the image's.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels. Default: the image's.")] = None,
    fit: Annotated[str | None, typer.Option(help="How to bring the image to the size: crop, pad or stretch.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher runs earlier.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Time limit in seconds.")] = None,
    *,
    url: UrlOption = None,
    key: KeyOption = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the log-density of a picture under each prompt and operator, and which prompt explains it."""
    with told():
        given: dict[str, Any] = {
            "image": encoded_file(image, "IMAGE"),
            "draws": draws,
            "steps": steps,
            "seed": seed,
            "kernel": kernel,
            "width": width,
            "height": height,
            "fit": fit,
            "priority": priority,
            "timeout_s": timeout_s,
        }
        body = {"expression": expression} | {name: value for name, value in given.items() if value is not None}
        with opened(url, key, catalog, device) as session:
            answer = answer_of(session, _PATH, body)
    if as_json:
        print_json(answer)
    else:
        tell(answer)


def tell(answer: Mapping[str, Any]) -> None:
    """A density's answer in words."""
    for name, each in answer["explanations"].items():
        typer.echo(f"{name}: log-density {_measured(each)}, posterior {100 * each['posterior']:.1f} %")
    for name, each in answer["nodes"].items():
        typer.echo(f"{name}: log-density {_measured(each)}")
    typer.echo(f"seed {answer['seed']}, {answer['draws']} draws of {answer['steps']} steps")


def _measured(each: Mapping[str, Any]) -> str:
    error = each["standard_error"]
    return f"{each['log_density']:.1f}" + ("" if error is None else f" ± {error:.1f}") + " nats"
