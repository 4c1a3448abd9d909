"""GET /v1/jobs/{id}/trajectory: a composition step by step, as JSON, a table or a figure."""

import asyncio
import csv
import io
from collections.abc import Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Response
from starlette.exceptions import HTTPException

from pipelines.composition import leaves
from service.api.accept import JSON, Lines, joined, liked_best
from service.api.answers import drawn_outcome, trajectory_point
from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.jobs import JobId
from service.api.problem import Problem
from service.engine.job import Job, Point
from service.expressions import leaf_names
from service.plots import draw_trajectory
from service.schemas.answers import TrajectoryPoint
from service.services import ServicesDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


class TrajectoryFormat(StrEnum):
    """How a trajectory can be had."""

    JSON = "json"
    CSV = "csv"
    PNG = "png"
    SVG = "svg"


_MEDIA_TYPES: Final = {
    JSON: TrajectoryFormat.JSON,
    "text/csv": TrajectoryFormat.CSV,
    "image/png": TrajectoryFormat.PNG,
    "image/svg+xml": TrajectoryFormat.SVG,
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": list[TrajectoryPoint], "content": {media_type: {} for media_type in _MEDIA_TYPES}},
    404: {"model": Problem},
    409: {"model": Problem},
}
_COLUMNS: Final = (
    "step",
    "sigma",
    "image",
    "candidate",
    "particle",
    "component",
    "weight",
    "log_density",
    "effective_sample_size",
    "kappa",
)


@router.get("/{job_id}/trajectory", responses=_RESPONSES, response_model=None)
async def job_trajectory(
    job_id: JobId,
    services: ServicesDep,
    caller: CallerDep,
    accept: Annotated[Lines, Header(description=f"{', '.join(_MEDIA_TYPES)}; `format` goes before it.")] = None,
    wanted: Annotated[
        TrajectoryFormat | None, Query(alias="format", description="As Accept says where absent.")
    ] = None,
) -> Response | list[TrajectoryPoint]:
    """κ and log-densities of every step, for a request with include_trajectory; as numbers, a table or a figure.

    The figure shows, for each component, the median over the samples and the band from the least to the most: κ, the
    log-density less the components' mean, the gap between the largest and the smallest, and the effective sample size
    where there are particles.
    """
    job = (await services.keeper.find(job_id, caller.id)).job
    points = drawn_outcome(job, "trajectory").trajectory
    if not job.ask.keep_trajectory:
        detail = "this job kept no trajectory; ask for one with include_trajectory"
        raise HTTPException(HTTPStatus.CONFLICT, detail)
    media_type = liked_best(joined(accept), list(_MEDIA_TYPES))
    form = wanted or _MEDIA_TYPES[media_type]
    if form is TrajectoryFormat.JSON:
        return [trajectory_point(point) for point in points]
    if form is TrajectoryFormat.CSV:
        return Response(table(points, job), media_type="text/csv")
    names = leaf_names(leaves(job.expression))
    async with services.plotting:
        drawn = await asyncio.to_thread(draw_trajectory, points, names, form.value)
    return Response(drawn, media_type=next(kind for kind, each in _MEDIA_TYPES.items() if each is form))


def table(points: Sequence[Point], job: Job) -> str:
    """CSV, one line a step, sample and component."""
    names, candidates = leaf_names(leaves(job.expression)), job.params.candidates
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(_COLUMNS)
    for point in map(trajectory_point, points):
        # After the last step one particle of each candidate is left.
        particles = len(point.kappa) // (job.params.num_images * candidates)
        for sample, (kappas, densities) in enumerate(zip(point.kappa, point.log_density, strict=True)):
            group, particle = divmod(sample, particles)
            size = None if point.effective_sample_size is None else point.effective_sample_size[group]
            place = [point.step, point.sigma, *divmod(group, candidates), particle]
            writer.writerows(
                [*place, name, kappa, density, size, kappa]
                for name, kappa, density in zip(names, kappas, densities, strict=True)
            )
    return buffer.getvalue()
