"""The command ``superdiff``: serve, compose, models, calibrate."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from pipelines.composition import And, Average, Expression, Or, Product, Prompt, leaves
from pipelines.errors import InvalidInputError
from pipelines.kernel import Kernel
from service.cli_common import CatalogOption, DeviceOption, catalog_path, open_catalog, read_settings, told
from service.cli_models import models_app

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Compose pretrained diffusion models by superposition."
)

_LAST_ANSWERS_S: Final = 5
_OPERATORS: Final = {"or": Or, "and": And, "average": Average, "product": Product}


app.add_typer(models_app, name="models")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [SUPERDIFF_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [SUPERDIFF_PORT]", min=0, max=65535)] = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    fast: Annotated[
        bool | None, typer.Option("--fast", help="bfloat16 and channels last; pictures differ a little.")
    ] = None,
) -> None:
    """Start the service. What is not given here is read from SUPERDIFF_* in the environment."""
    import uvicorn

    from service.app import create_app
    from service.services import Services

    given = {"host": host, "port": port, "catalog": catalog, "device": device, "fast": fast}
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with told():
        settings = read_settings(**{key: value for key, value in given.items() if value is not None})
        settings = settings.model_copy(update={"catalog": catalog_path(None, settings)})
        application = create_app(settings)
    services: Services = application.state.services

    class Server(uvicorn.Server):
        """Stops the engine before it stops listening.

        Until running jobs are done, new requests are answered that the service is shutting down, and answers and events
        go out as ever; what is left to write then takes a moment.
        """

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(services.engine.stop, settings.grace_s)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application, host=settings.host, port=settings.port, timeout_graceful_shutdown=_LAST_ANSWERS_S
    )
    Server(config).run()


@app.command()
def compose(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT [OPERATOR PROMPT]...",
            help='Prompts with one operator (or, and, average, product) between them: "a red circle" and "a blue star".'
            " PROMPT@MODEL names a model of the catalogue.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the picture goes; several get numbers.")] = Path(
        "composed.png"
    ),
    steps: Annotated[int | None, typer.Option(help="Network calls; the model's default where absent.")] = None,
    guidance: Annotated[float | None, typer.Option(help="1 for none; the model's default where absent.")] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn where absent.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="How many.", min=1)] = 1,
    kernel: Annotated[Kernel | None, typer.Option(help="Transition kernel; the model's default where absent.")] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    temperature: Annotated[float, typer.Option(help="OR's temperature.")] = 1.0,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Compose pictures without a service."""
    import secrets

    from PIL import Image
    from tqdm import tqdm

    from pipelines.params import SEED_LIMIT, SamplingParams, image_seed
    from pipelines.sampler import sample

    with told():
        check_output(out)
        held = open_catalog(catalog, device)
        expression = parse_words(words, held.names, temperature)
        defaults = held.defaults(leaves(expression)[0].model)
        params = SamplingParams(
            steps=defaults.steps if steps is None else steps,
            guidance_scale=defaults.guidance_scale if guidance is None else guidance,
            seed=secrets.randbelow(SEED_LIMIT) if seed is None else seed,
            num_images=images,
            kernel=kernel or defaults.kernel,
            negative_prompt=negative,
        )
        names = dict.fromkeys(leaf.model for leaf in leaves(expression))
        models = {name: held.get(name) for name in names}
        with tqdm(total=params.steps, unit="step") as bar:
            bounds = [rows for name in names if (rows := held.entry(name).forward_rows)]
            samples = sample(expression, params, models, lambda _: bar.update(), min(bounds, default=None))
        pictures = models[leaves(expression)[0].model].decode(samples.z)
    for i, picture in enumerate(pictures):
        path = out if images == 1 else out.with_stem(f"{out.stem}-{i}")
        pixels = picture.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
        Image.fromarray(pixels).save(path)
        density = ", ".join(f"{value:.1f}" for value in samples.log_density[i].tolist())
        typer.echo(f"{path}  seed {image_seed(params.seed, i)}  log-densities {density} nats")


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(help="A model of the catalogue.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to sample; repeat for more. Empty by default.")] = None,
    images: Annotated[int, typer.Option(help="Samples to measure on.", min=2)] = 64,
    steps: Annotated[int, typer.Option(help="Steps to draw them with.", min=1)] = 50,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure a model's denoising error m(σ) on its own samples, and store it in the model's folder."""
    from pipelines.calibration import FORWARD_ROWS, calibrate_on_own_samples
    from pipelines.families.folder import calibration_path, write_calibration

    with told():
        held = open_catalog(catalog, device)
        rows = min(FORWARD_ROWS, held.entry(name).forward_rows or FORWARD_ROWS)
        curve = calibrate_on_own_samples(held.get(name), prompt or [""], images=images, steps=steps, forward_rows=rows)
        path = calibration_path(held.source(name))
        write_calibration(path, curve)
    typer.echo(f"{path}: m(σ) at {len(curve.sigmas)} levels, from {curve.values[0]:.3g} to {curve.values[-1]:.3g}")


def check_output(path: Path) -> None:
    """Refuse a picture's path that cannot be written, before anything is sampled for it; makes its folder."""
    from PIL import Image

    kinds = Image.registered_extensions()
    if kinds.get(path.suffix.lower()) not in Image.SAVE:
        detail = f"--out {path}: its ending must be that of a picture: .png, .jpg, .webp and the like"
        raise InvalidInputError(detail, field=("out",))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--out {path}: cannot be written: {error.strerror}", field=("out",)) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(f"--out {path}: cannot be written", field=("out",))


def parse_words(words: Sequence[str], names: Sequence[str], temperature: float = 1.0) -> Expression:
    """["a red circle", "and", "a blue star"] → the expression; prompts and operators alternate.

    Raises:
        InvalidInputError: The words do not alternate, or the operators differ.
    """
    prompts, operators = words[::2], {word.lower() for word in words[1::2]}
    allowed = ", ".join(_OPERATORS)
    if len(words) % 2 == 0 or not operators <= set(_OPERATORS) or len(operators) > 1:
        detail = f"prompts must stand with one and the same operator between them; operators are {allowed}"
        raise InvalidInputError(detail, field=("words",))
    terms = tuple(_term(prompt, names) for prompt in prompts)
    if not operators:
        return terms[0]
    (operator,) = operators
    return Or(terms, temperature) if operator == "or" else _OPERATORS[operator](terms)


def _term(text: str, names: Sequence[str]) -> Prompt:
    """PROMPT@MODEL, or a prompt to the first model; an @ before anything else belongs to the prompt."""
    prompt, at, model = text.rpartition("@")
    return Prompt(prompt.strip(), model) if at and model in names else Prompt(text, names[0])


if __name__ == "__main__":
    app()
