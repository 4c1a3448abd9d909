"""The command ``superdiff``: serve, compose, models, calibrate."""

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from evaluation.cli import evaluate
from pipelines import calibration
from pipelines.composition import lead, leaves
from pipelines.errors import InvalidInputError
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams, Select, image_seed
from service.cli_common import CatalogOption, DeviceOption, catalog_path, open_catalog, read_settings, told
from service.cli_models import models_app
from service.expressions import from_text, leaf_names
from service.schemas.fields import default, drawn_seed

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.sampler import Samples

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Compose pretrained diffusion models by superposition."
)

_LAST_ANSWERS_S: Final = 5


app.add_typer(models_app, name="models")
app.command(name="eval")(evaluate)


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
    text: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION",
            help='What to compose, as one argument: \'"a red circle" AND ("a blue star" OR fox) NOT "a black shape"\'. '
            "docs/expressions.md describes it.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the picture goes; several get numbers.")] = Path(
        "composed.png"
    ),
    steps: Annotated[int | None, typer.Option(help="Network calls; the model's default where absent.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="1 for none; where absent the model's default, times the prompts that must hold together."),
    ] = None,
    guidance_start: Annotated[
        float | None,
        typer.Option(help="Share of the steps that are first taken without guidance; the operator's where absent."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn where absent.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="How many.", min=1)] = 1,
    candidates: Annotated[
        int, typer.Option(help="Pictures that are drawn for each one that is written: the best.", min=1)
    ] = default(SamplingParams, "candidates"),
    select: Annotated[
        Select | None, typer.Option(help="What candidates are chosen by: lift at no cost, density on fresh noise.")
    ] = None,
    particles: Annotated[
        int, typer.Option(help="Samples for each candidate, reweighted to follow the expression's density.", min=1)
    ] = default(SamplingParams, "particles"),
    kernel: Annotated[Kernel | None, typer.Option(help="Transition kernel; the model's default where absent.")] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Compose pictures without a service."""
    from PIL import Image
    from tqdm import tqdm

    from pipelines.plan import make_plan
    from pipelines.sampler import sample

    with told():
        check_output(out)
        held = open_catalog(catalog, device)
        written = from_text(text, held.names)
        expression = written.expression
        defaults = held.defaults(expression)
        params = SamplingParams(
            steps=defaults.steps if steps is None else steps,
            guidance_scale=defaults.guidance_scale if guidance is None else guidance,
            guidance_start=defaults.guidance_start if guidance_start is None else guidance_start,
            seed=drawn_seed(seed),
            num_images=images,
            kernel=kernel or defaults.kernel,
            negative_prompt=negative,
            candidates=candidates,
            select=select or default(SamplingParams, "select"),
            particles=particles,
        )
        names = dict.fromkeys(leaf.model for leaf in leaves(expression))
        models = {name: held.get(name) for name in names}
        bounds = [rows for name in names if (rows := held.entry(name).forward_rows)]
        with written.located():
            plan = make_plan(expression, params, {name: model.card for name, model in models.items()})
        with tqdm(total=plan.calls, unit="step") as bar:
            samples = sample(expression, params, models, lambda _: bar.update(), min(bounds, default=None))
        pictures = models[lead(expression)].decode(samples.z)
    for i, picture in enumerate(pictures):
        path = out if images == 1 else out.with_stem(f"{out.stem}-{i}")
        pixels = picture.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
        Image.fromarray(pixels).save(path)
        typer.echo(f"{path}  seed {image_seed(params.seed, i)}" + _chosen(params, samples, i))
        told_of = zip(leaf_names(leaves(expression)), samples.log_density[i], samples.lift[i], strict=True)
        for name, density, lift in told_of:
            typer.echo(f"  {name}: log-density {_nats(density)}, lift {_nats(lift)}")


def _chosen(params: SamplingParams, samples: "Samples", image: int) -> str:
    """Which candidate an image is, and how many particles it comes from, where there were several."""
    candidate = f"  candidate {samples.candidate[image] + 1} of {params.candidates}" if params.candidates > 1 else ""
    left = f"  {samples.survivors[image]} of {params.particles} particles left" if params.particles > 1 else ""
    return candidate + left


def _nats(value: "Tensor") -> str:
    return f"{value:.1f} nats" if value.isfinite() else "unknown"


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(help="A model of the catalogue.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to sample; repeat for more. Empty by default.")] = None,
    images: Annotated[int, typer.Option(help="Samples to measure on.", min=2)] = calibration.IMAGES,
    steps: Annotated[int, typer.Option(help="Steps to draw them with.", min=1)] = calibration.STEPS,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure a model's denoising error m(σ) on its own samples, and store it in the model's folder."""
    from pipelines.families.folder import calibration_path, write_calibration

    with told():
        held = open_catalog(catalog, device)
        rows = min(calibration.FORWARD_ROWS, held.entry(name).forward_rows or calibration.FORWARD_ROWS)
        curve = calibration.calibrate_on_own_samples(
            held.get(name), prompt or [""], images=images, steps=steps, forward_rows=rows
        )
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


if __name__ == "__main__":
    app()
