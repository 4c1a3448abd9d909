"""What the routes say of jobs: answers, job documents, events."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sse_starlette import ServerSentEvent
from starlette.exceptions import HTTPException

from pipelines.composition import leaves
from pipelines.params import image_seed
from service.api.addresses import job_path
from service.api.explanations import explain, node_densities, prior_odds
from service.api.problem import Problem, problem
from service.engine.events import Event
from service.engine.job import Job, Outcome, Phase, Point, Preview
from service.expressions import leaf_names, node_names
from service.faults import fault_of
from service.files import encoded
from service.pictures import ImageFormat, diverging_picture, encode_picture
from service.registry import Record
from service.schemas.answers import (
    DensityResponse,
    JobInfo,
    LiftMap,
    Picture,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    SuperposeResponse,
    Timings,
    TrajectoryPoint,
)
from service.store.records import JobRecord, JobState

# The axes of lift maps: images, leaves, rows, columns. Samples that are vectors have no maps.
_PLANE: Final = 4


def drawn_outcome(job: Job, what: str) -> Outcome:
    """The outcome of a completed composition.

    Args:
        job: The job.
        what: What of it is asked for.

    Raises:
        HTTPException: 404 for a job that draws nothing, 409 for one that is not completed.
    """
    if job.plan.retrace:
        detail = f"this is a density job: it has no {what}; GET {job_path(job.id)} tells its result"
        raise HTTPException(HTTPStatus.NOT_FOUND, detail)
    if job.phase is not Phase.COMPLETED:
        raise HTTPException(HTTPStatus.CONFLICT, f"this job is {job.phase}, not completed")
    return job.result.result()


def named_nodes(job: Job, outcome: Outcome) -> dict[str, NDArray[np.float64]]:
    """The log-densities of the operators that have one, by their names, parents first."""
    places, values = node_names(job.expression), outcome.node_log_density
    return {name: values[path] for path, name in places.items() if path in values}


def lift_scale(outcome: Outcome, image: int) -> float:
    """The nats of a cell in full colour in the lift maps of an image: the largest of all its maps."""
    maps = outcome.lift_maps
    return 0.0 if maps is None else float(np.abs(maps[image][np.isfinite(outcome.lift[image])]).max(initial=0.0))


def lift_cells(job: Job, outcome: Outcome, image: int, leaf: int) -> NDArray[np.float32] | None:
    """Where in an image a leaf's lift is, (rows, columns) in nats; None where that is not known.

    Samples that are vectors have no place, and where no step was taken nothing was seen.
    """
    maps = outcome.lift_maps
    known = maps is not None and maps.ndim == _PLANE and job.plan.steps and math.isfinite(outcome.lift[image, leaf])
    return maps[image, leaf] if maps is not None and known else None


def lift_picture(cells: NDArray[np.float32], scale: float) -> bytes:
    """A lift map as a PNG. Not for the event loop's thread."""
    return encode_picture(diverging_picture(cells, scale), ImageFormat.PNG)


def summary(record: Record, outcome: Outcome) -> SuperposeResponse | DensityResponse:
    """What there is to say of a completed job in few words: pictures as addresses, no trajectory."""
    return explained(record, outcome) if record.job.plan.retrace else drawn(record, outcome)


def drawn(record: Record, outcome: Outcome) -> SuperposeResponse:
    """The summary of a completed composition."""
    job = record.job
    names, nodes = leaf_names(leaves(job.expression)), named_nodes(job, outcome)
    return SuperposeResponse(
        id=job.id,
        created=int(job.created),
        models=_models(job),
        components=names,
        seed=job.params.seed,
        images=[_picture(job, outcome, names, nodes, i) for i in range(len(outcome.pictures))],
        timings=_timings(job, outcome),
    )


def explained(record: Record, outcome: Outcome) -> DensityResponse:
    """The answer of a job that tells the densities of a picture."""
    job = record.job
    names = leaf_names(leaves(job.expression))
    return DensityResponse(
        id=job.id,
        created=int(job.created),
        models=_models(job),
        components=names,
        seed=job.params.seed,
        draws=job.params.num_images,
        steps=job.params.steps,
        numbers=math.prod(job.plan.shape),
        explanations=explain(names, outcome.log_density, prior_odds(job.expression)),
        nodes=node_densities(named_nodes(job, outcome)),
        timings=_timings(job, outcome),
    )


def _timings(job: Job, outcome: Outcome) -> Timings:
    return Timings(
        queued_ms=outcome.queued_s * 1e3,
        run_ms=outcome.run_s * 1e3,
        steps=job.plan.calls,
        resumed_from=outcome.resumed_from,
    )


def _models(job: Job) -> list[str]:
    return list(dict.fromkeys(prompt.model for prompt in leaves(job.expression)))


def _picture(
    job: Job, outcome: Outcome, names: Sequence[str], nodes: Mapping[str, NDArray[np.float64]], i: int
) -> Picture:
    """An image of an outcome, its picture and maps as addresses."""
    stepped = job.plan.steps > 0
    kappa = _by_name(names, outcome.mean_weights[i], known=stepped)
    return Picture(
        url=f"{job_path(job.id)}/images/{i}",
        seed=image_seed(job.params.seed, i),
        log_density=_by_name(names, outcome.log_density[i], known=True),
        nodes={name: _known(float(values[i])) for name, values in nodes.items()},
        kappa=kappa,
        weight=kappa,
        lift=_by_name(names, outcome.lift[i], known=stepped),
        lift_maps=_lift_maps(job, outcome, names, i) if job.ask.keep_lift_maps else None,
        clamp_rate=float(outcome.clamp_rate[i]),
        candidate=int(outcome.candidate[i]),
        survivors=int(outcome.survivors[i]) if job.params.particles > 1 else None,
    )


def _by_name(names: Sequence[str], values: NDArray[np.float64], *, known: bool) -> dict[str, float | None]:
    """One number a leaf; null for what is not finite, and for all where nothing is known."""
    return {name: _known(value) if known else None for name, value in zip(names, values.tolist(), strict=True)}


def _known(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def _lift_maps(job: Job, outcome: Outcome, names: Sequence[str], i: int) -> dict[str, LiftMap | None]:
    """Where the lift maps of an image are; null for leaves whose lift is not known."""
    scale = lift_scale(outcome, i)
    return {
        name: None
        if lift_cells(job, outcome, i, leaf) is None
        else LiftMap(url=f"{job_path(job.id)}/lift-maps/{i}/{leaf}", scale=scale)
        for leaf, name in enumerate(names)
    }


def answer(record: Record, outcome: Outcome) -> str:
    """The whole answer of a completed job, as JSON. It may be large: not for the event loop's thread."""
    told = summary(record, outcome)
    if isinstance(told, DensityResponse):
        return told.model_dump_json()
    if not record.rendering.by_url:
        pictures = encoded(record, outcome, record.rendering.image_format)
        for i, (picture, data) in enumerate(zip(told.images, pictures, strict=True)):
            picture.url, picture.b64_json = None, base64.b64encode(data).decode()
            for leaf, lift_map in enumerate((picture.lift_maps or {}).values()):
                cells = lift_cells(record.job, outcome, i, leaf)
                if lift_map is not None and cells is not None:
                    drawn = lift_picture(cells, lift_map.scale)
                    lift_map.url, lift_map.b64_json = None, base64.b64encode(drawn).decode()
    if record.job.ask.keep_trajectory:
        told.trajectory = [trajectory_point(point) for point in outcome.trajectory]
    return told.model_dump_json()


def trajectory_point(point: Point) -> TrajectoryPoint:
    """One step of a trajectory."""
    kappa = point.weights.tolist()
    return TrajectoryPoint(
        step=point.step,
        sigma=point.sigma,
        log_density=[[_known(nats) for nats in row] for row in point.log_density.tolist()],
        kappa=kappa,
        weight=kappa,
        effective_sample_size=None if point.effective is None else point.effective.tolist(),
    )


def job_info(record: Record, positions: Mapping[str, int], *, with_result: bool = True) -> JobInfo:
    """A job as it stands.

    Args:
        record: The job and its request.
        positions: Where waiting jobs stand, as :meth:`Engine.positions` told.
        with_result: Whether to say what a completed job came to.
    """
    job = record.job
    phase = job.phase
    info = JobInfo(
        kind="density" if job.plan.retrace else "superposition",
        id=job.id,
        status=phase,
        created=int(job.created),
        models=_models(job),
        components=leaf_names(leaves(job.expression)),
        seed=job.params.seed,
        step=job.index,
        steps=job.plan.calls,
        queue_position=positions.get(job.id) if phase is Phase.QUEUED else None,
        attempts=job.attempt,
    )
    if phase is Phase.FAILED:
        return info.model_copy(update={"error": _reason(job)})
    if phase is Phase.COMPLETED and with_result:
        return info.model_copy(update={"result": summary(record, job.result.result())})
    return info


def stored_info(stored: JobRecord, positions: Mapping[str, int]) -> JobInfo:
    """A job that is not in this process, for lists: as it stands in the store."""
    return JobInfo(
        kind=stored.kind.value,
        id=stored.id,
        status=Phase(stored.state),
        created=int(stored.created),
        models=list(stored.models),
        components=list(stored.components),
        seed=stored.seed,
        step=stored.step,
        steps=stored.steps,
        queue_position=positions.get(stored.id) if stored.state is JobState.QUEUED else None,
        attempts=max(1, stored.attempts),
        error=stored.failure.reason if stored.failure else None,
    )


def _reason(job: Job) -> str:
    """Why a job failed."""
    error = job.result.exception()
    return _problem(job, error).detail if isinstance(error, Exception) else str(error)


def _problem(job: Job, error: Exception) -> Problem:
    """The problem of a failed job; the engine has logged its inside."""
    return problem(fault_of(error, reference=f"job id {job.id}"), job_path(job.id))


async def events(record: Record, after: int = 0) -> AsyncIterator[ServerSentEvent]:
    """A job's events from ``after`` on, as they come, up to the last."""
    async for event in record.job.channel.listen(after):
        yield ServerSentEvent(data=await _told(record, event), event=event.kind, id=str(event.id))


async def _told(record: Record, event: Event) -> str:
    """An event's data, as JSON."""
    match event.payload:
        case int() as position:
            return QueuedEvent(id=record.job.id, position=position).model_dump_json()
        case Point() as point:
            told = ProgressEvent(id=record.job.id, steps=record.job.plan.calls, **trajectory_point(point).model_dump())
            return told.model_dump_json()
        case Preview(step=step, pictures=pictures):
            images = [await asyncio.to_thread(encode_picture, pixels, ImageFormat.JPEG) for pixels in pictures]
            return PreviewEvent(
                id=record.job.id, step=step, images=[base64.b64encode(i).decode() for i in images]
            ).model_dump_json()
        case Outcome() as outcome:
            return await asyncio.to_thread(answer, record, outcome)
        case Exception() as error:
            return _problem(record.job, error).model_dump_json(exclude_none=True)
        case other:
            raise TypeError(f"no event carries a {type(other).__name__}")
