"""``superdiff calibrate``: the denoising error of a model, measured once."""

from typing import Annotated

import typer

from service.commands.common import CatalogOption, DeviceOption, JsonOption, open_catalog, print_json, told


def calibrate(
    name: Annotated[str, typer.Argument(help="A model of the catalogue.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt to sample; repeat it for more. Default: the empty prompt.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Number of samples to measure on.", min=2)] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps per sample.", min=1)] = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's denoising error m(σ) on its own samples and store it in the model's folder."""
    with told():
        from pipelines import calibration
        from pipelines.families.folder import calibration_path, write_calibration

        held = open_catalog(catalog, device)
        rows = min(calibration.FORWARD_ROWS, held.entry(name).forward_rows or calibration.FORWARD_ROWS)
        curve = calibration.calibrate_on_own_samples(
            held.get(name),
            prompt or [""],
            images=images or calibration.IMAGES,
            steps=steps or calibration.STEPS,
            forward_rows=rows,
        )
        path = calibration_path(held.source(name))
        write_calibration(path, curve)
    if as_json:
        print_json(
            {"file": str(path), "sigmas": [float(s) for s in curve.sigmas], "values": [float(v) for v in curve.values]}
        )
        return
    typer.echo(f"{path}: m(σ) at {len(curve.sigmas)} levels, from {curve.values[0]:.3g} to {curve.values[-1]:.3g}")
