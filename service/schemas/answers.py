"""What answers hold."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pipelines.card import Guidance
from service.engine.job import Phase


class NodeDensity(BaseModel):
    """The log-density of a picture under an operator of the expression."""

    log_density: Annotated[
        float,
        Field(
            description="In nats, at the models' smallest noise level: the mean over the draws. For an operator it is "
            "computed from its terms draw by draw and then averaged."
        ),
    ]
    standard_error: Annotated[
        float | None, Field(description="Standard error of this mean over the draws; null for one draw.")
    ]


class Explanation(NodeDensity):
    """How well a component explains a picture."""

    posterior: Annotated[
        float,
        Field(
            description="Posterior probability of the component, from its density and, in a flat OR, its prior odds."
        ),
    ]


class Timings(BaseModel):
    """Where the time went."""

    queued_ms: float
    run_ms: float
    steps: Annotated[int, Field(description="Number of sequential network calls.")]
    resumed_from: Annotated[
        int, Field(description="How many of them an earlier process had made, before it stopped; 0 if none.")
    ] = 0


class DensityResponse(BaseModel):
    """A picture explained."""

    object: Literal["density"] = "density"
    id: str
    status: Literal["completed"] = "completed"
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: Annotated[list[str], Field(description="The keys of `explanations`, in the request's order.")]
    seed: int
    draws: int
    steps: int
    numbers: Annotated[int, Field(description="Dimension of a sample; log-densities grow with it.")]
    explanations: dict[str, Explanation]
    nodes: Annotated[
        dict[str, NodeDensity],
        Field(description="Operator, by its text form → its log-density; a balanced AND has none."),
    ]
    timings: Timings


class LiftMap(BaseModel):
    """Where in a picture a component is explained, as a small PNG: red above 0, blue below, white at 0."""

    b64_json: Annotated[str | None, Field(description="The encoded map.")] = None
    url: Annotated[str | None, Field(description="Where to fetch the map, for a limited time.")] = None
    scale: Annotated[
        float, Field(description="Nats of a cell in full red or blue; the same for all maps of a picture.")
    ]


class Picture(BaseModel):
    """One picture and what the density estimator says of it."""

    b64_json: Annotated[str | None, Field(description="The encoded picture.")] = None
    url: Annotated[str | None, Field(description="Where to fetch the picture, for a limited time.")] = None
    seed: Annotated[
        int,
        Field(description="A request with this seed, one image and the same candidates and particles draws it again."),
    ]
    log_density: Annotated[
        dict[str, float | None], Field(description="Component → log q in nats; null if no step added noise.")
    ]
    nodes: Annotated[
        dict[str, float | None],
        Field(description="Operator, by its text form → its log-density in nats; a balanced AND has none."),
    ]
    kappa: Annotated[
        dict[str, float | None],
        Field(
            description="Component → mean κ over the steps, its share of the mix of scores; null if no step was taken."
        ),
    ]
    weight: Annotated[
        dict[str, float | None],
        Field(
            description="Deprecated, gone in the next release: use kappa, which it equals. In a request a weight means "
            "something else, the number that an operator gives to a term.",
            json_schema_extra={"deprecated": True},
        ),
    ]
    lift: Annotated[
        dict[str, float | None],
        Field(
            description="Component → log q − log q of the empty (or negative) prompt, in nats: how much better it "
            "explains the picture than no prompt; null if it was not computed: at guidance 1 without candidates, or "
            "for a model without classifier-free guidance."
        ),
    ]
    lift_maps: Annotated[
        dict[str, LiftMap | None] | None,
        Field(description="Component → map of its lift over the picture; only with include_lift_maps."),
    ] = None
    clamp_rate: Annotated[float, Field(description="Share of the steps at which balanced AND's κ were clamped.")]
    candidate: Annotated[int, Field(description="Index of this picture among its candidates, from 0.")]
    survivors: Annotated[
        int | None,
        Field(description="Number of first particles with descendants at the end; null without particles."),
    ] = None


class TrajectoryPoint(BaseModel):
    """The state after one step: one list per sample, with one number per component.

    Samples are ordered by image, then by candidate, then by particle. After the last step each candidate has one
    particle.
    """

    step: int
    sigma: Annotated[float, Field(description="The noise level reached.")]
    log_density: Annotated[list[list[float | None]], Field(description="In nats; null if no step adds noise.")]
    kappa: Annotated[list[list[float]], Field(description="The components' shares of the mix of scores.")]
    weight: Annotated[
        list[list[float]],
        Field(
            description="Deprecated, gone in the next release: use kappa, which it equals.",
            json_schema_extra={"deprecated": True},
        ),
    ]
    effective_sample_size: Annotated[
        list[float] | None,
        Field(description="Of each candidate's particles before resampling; null without particles."),
    ] = None


class SuperposeResponse(BaseModel):
    """The answer to a composition."""

    object: Literal["superposition"] = "superposition"
    id: str
    status: Literal["completed"] = "completed"
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: Annotated[list[str], Field(description="The keys of the dictionaries below, in the request's order.")]
    seed: int
    images: list[Picture]
    trajectory: list[TrajectoryPoint] | None = None
    timings: Timings


class JobInfo(BaseModel):
    """The state of a job."""

    object: Literal["job"] = "job"
    kind: Annotated[
        Literal["superposition", "density"], Field(description="The kind of its result, as in the result's `object`.")
    ]
    id: str
    status: Phase
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: list[str]
    seed: int
    step: Annotated[int, Field(description="Network calls made.")]
    steps: Annotated[int, Field(description="Network calls in all.")]
    queue_position: Annotated[int | None, Field(description="Jobs that will start before it; null once it runs.")]
    attempts: Annotated[int, Field(description="How many processes took it up; more than 1 where one stopped.")] = 1
    error: Annotated[str | None, Field(description="Why it failed.")] = None
    result: Annotated[
        Annotated[SuperposeResponse | DensityResponse, Field(discriminator="object")] | None,
        Field(description="Of a completed job, null in lists: pictures by url; the trajectory has its own URL."),
    ] = None


class JobList(BaseModel):
    """The caller's jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]
    next: Annotated[str | None, Field(description="`after` of the next page; null on the last.")] = None


class QueuedEvent(BaseModel):
    """A job's place in the queue."""

    id: Annotated[str, Field(description="The job's id.")]
    position: Annotated[int, Field(description="Jobs that will start before it.")]


class ProgressEvent(TrajectoryPoint):
    """How far a job is."""

    id: Annotated[str, Field(description="The job's.")]
    steps: int


class PreviewEvent(BaseModel):
    """The pictures as predicted at this step."""

    id: Annotated[str, Field(description="The job's.")]
    step: int
    images: Annotated[list[str], Field(description="JPEG in base64.")]


class Space(BaseModel):
    """A data space: models compose if and only if these are equal."""

    kind: str
    channels: int
    factor: int
    codec: str


class ModelInfo(BaseModel):
    """A model of the catalogue; fields that are unknown until it is loaded are null."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Unix time of the service's start, when it read the catalogue.")]
    owned_by: str = "superdiff"
    loaded: bool
    default: bool
    family: str | None
    dtype: str
    space: Space | None = None
    composes_with: list[str] | None = None
    takes_prompts: bool | None = None
    width: int | None = None
    height: int | None = None
    multiple: Annotated[
        int | None, Field(description="Width and height must be multiples of it; 0 if the model has a single size.")
    ] = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    parameters: int | None = None
    memory_bytes: Annotated[int | None, Field(description="Memory of its weights.")] = None
    loras: list[str] | None = None
    guidance: Annotated[Guidance | None, Field(description="How the model applies a guidance scale.")] = None
    paints: Annotated[bool | None, Field(description="Whether it is an inpainting model.")] = None
    calibrated: bool | None = None
    error: Annotated[
        str | None, Field(description="Why it cannot be loaded; it stays so until its operator mends it.")
    ] = None
    lora_errors: Annotated[
        dict[str, str] | None, Field(description="Of LoRAs that cannot be loaded, why; requests that name one fail.")
    ] = None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    """How the service is."""

    status: str
    detail: str | None = None


class WorkerInfo(BaseModel):
    """Who computes, as it last told of itself."""

    id: str
    device: str
    seen: Annotated[float, Field(description="When it told, in Unix time.")]
    state: Annotated[
        Literal["loading", "ready", "stopping"], Field(description="loading: it takes no jobs yet; stopping: no more.")
    ]
    models: Annotated[list[str], Field(description="Those that it has loaded.")]
    running_jobs: int
    running_rows: Annotated[int, Field(description="Their network rows of one step.")]


class Backlog(BaseModel):
    """The work that waits for a worker."""

    jobs: int
    rows: Annotated[int, Field(description="Network rows of one step, all jobs together.")]
    seconds: Annotated[
        float | None, Field(description="How long one worker would compute them; none before any pace is known.")
    ]
    slack_s: Annotated[
        float | None, Field(description="Seconds until the first of them is worthless; none without timeouts.")
    ]


class WorkerList(BaseModel):
    """All who compute."""

    workers: list[WorkerInfo]
    backlog: Backlog


class Reloaded(BaseModel):
    """What a reload of the catalogue changed; names of models."""

    added: list[str]
    changed: Annotated[list[str], Field(description="Entry or files are others, or it could not be loaded before.")]
    removed: list[str]
    failed: Annotated[dict[str, str], Field(description="Of models that cannot be loaded, why.")]
