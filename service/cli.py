"""The command ``superdiff``: serve, compose, models, calibrate."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Or, Product, Prompt, leaves
from pipelines.errors import InvalidInputError, PipelineError
from pipelines.kernel import Kernel
from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Compose pretrained diffusion models by superposition."
)

_LAST_ANSWERS_S: Final = 5
_OPERATORS: Final = {"or": Or, "and": And, "average": Average, "product": Product}

CatalogOption = Annotated[Path | None, typer.Option("--catalog", help="Catalogue file; none for the builtin models.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; none to choose.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [SUPERDIFF_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [SUPERDIFF_PORT]", min=0, max=65535)] = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Start the service. What is not given here is read from SUPERDIFF_* in the environment."""
    import uvicorn

    from service.app import create_app
    from service.services import Services

    given = {"host": host, "port": port, "catalog": catalog, "device": device}
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with _told():
        settings = _settings(**{key: value for key, value in given.items() if value is not None})
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
    steps: Annotated[int, typer.Option(help="Network calls.")] = 25,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 for none.")] = 4.0,
    seed: Annotated[int | None, typer.Option(help="Drawn where absent.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="How many.", min=1)] = 1,
    kernel: Annotated[Kernel, typer.Option(help="Transition kernel.")] = Kernel.CALIBRATED,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    temperature: Annotated[float, typer.Option(help="OR's temperature.")] = 1.0,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Compose pictures without a service."""
    import secrets

    from PIL import Image
    from tqdm import tqdm

    from pipelines.sampler import SEED_LIMIT, SamplingParams, image_seed, sample

    with _told():
        held = _catalog(catalog, device)
        expression = parse_words(words, held.names, temperature)
        params = SamplingParams(
            steps=steps,
            guidance_scale=guidance,
            seed=secrets.randbelow(SEED_LIMIT) if seed is None else seed,
            num_images=images,
            kernel=kernel,
            negative_prompt=negative,
        )
        names = dict.fromkeys(leaf.model for leaf in leaves(expression))
        models = {name: held.get(name) for name in names}
        with tqdm(total=steps, unit="step") as bar:
            samples = sample(expression, params, models, lambda _: bar.update())
        pictures = models[leaves(expression)[0].model].decode(samples.z)
    for i, picture in enumerate(pictures):
        path = out if images == 1 else out.with_stem(f"{out.stem}-{i}")
        pixels = picture.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        density = ", ".join(f"{value:.1f}" for value in samples.log_density[i].tolist())
        typer.echo(f"{path}  seed {image_seed(params.seed, i)}  log-densities {density} nats")


@app.command()
def models(catalog: CatalogOption = None, device: DeviceOption = None) -> None:
    """List the catalogue: every model is loaded and described."""
    with _told():
        held = _catalog(catalog, device)
        for name in held.names:
            card = held.get(name).card
            curve = "measured" if card.calibrated else "Gaussian fallback"
            typer.echo(
                f"{name}: {card.parameters / 1e6:.1f} M parameters, {card.width}×{card.height}, {card.space}, "
                f"σ {card.sigma_min:.3g}–{card.sigma_max:.3g}, denoising error: {curve}"
            )


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
    from pipelines.calibration import calibrate_on_own_samples
    from pipelines.families.folder import CALIBRATION_FILE, write_calibration

    with _told():
        held = _catalog(catalog, device)
        curve = calibrate_on_own_samples(held.get(name), prompt or [""], images=images, steps=steps)
        path = held.entry(name).folder / CALIBRATION_FILE
        write_calibration(path, curve)
    typer.echo(f"{path}: m(σ) at {len(curve.sigmas)} levels, from {curve.values[0]:.3g} to {curve.values[-1]:.3g}")


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


def _catalog(path: Path | None, device: str | None) -> Catalog:
    settings = _settings()
    path, device = path or settings.catalog, device or settings.device
    return Catalog.read(path, device) if path else Catalog.builtin(device)


def _settings(**given: Any) -> Settings:
    """The settings, with what the command line gave; what makes no sense is told by its name."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        told = f"SUPERDIFF_{name.upper()}: {first['msg']}, got {first['input']!r}"
        raise InvalidInputError(told, field=(name,)) from error


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what a user can mend, without a stack trace, and exit with 2."""
    try:
        yield
    except PipelineError as error:
        typer.secho(f"superdiff: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
