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
            description="In nats, at the models' smallest noise level: the mean over the draws. An operator's is "
            "computed from its terms draw by draw, then averaged."
        ),
    ]
    standard_error: Annotated[float | None, Field(description="Of that mean, over the draws; null for a single one.")]


class Explanation(NodeDensity):
    """What a component makes of a picture."""

    posterior: Annotated[
        float, Field(description="The component's share of all, by its density and, in a flat OR, its prior odds.")
    ]


class Timings(BaseModel):
    """Where the time went."""

    queued_ms: float
    run_ms: float
    steps: Annotated[int, Field(description="Network calls, one after another.")]
    resumed_from: Annotated[
        int, Field(description="How many of them an earlier process had made, which stopped; 0 where none had.")
    ] = 0


class DensityResponse(BaseModel):
    """A picture explained."""

    object: Literal["density"] = "density"
    id: str
    status: Literal["completed"] = "completed"
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: Annotated[list[str], Field(description="The components' names below, in order.")]
    seed: int
    draws: int
    steps: int
    numbers: Annotated[int, Field(description="How many numbers a sample has: what log-densities are extensive in.")]
    explanations: dict[str, Explanation]
    nodes: Annotated[
        dict[str, NodeDensity],
        Field(description="Operator, by its text form → its log-density; a balanced AND has none."),
    ]
    timings: Timings


class LiftMap(BaseModel):
    """Where in a picture a component is explained, as a small PNG: red above 0, blue below, white at 0."""

    b64_json: Annotated[str | None, Field(description="The encoded map.")] = None
    url: Annotated[str | None, Field(description="Where to fetch the map for a while.")] = None
    scale: Annotated[
        float, Field(description="Nats of a cell in full colour, red or blue; the same for all maps of a picture.")
    ]


class Picture(BaseModel):
    """One picture and what the density estimator says of it."""

    b64_json: Annotated[str | None, Field(description="The encoded picture.")] = None
    url: Annotated[str | None, Field(description="Where to fetch the picture for a while.")] = None
    seed: Annotated[
        int, Field(description="With it a request of one image, as many candidates and particles, draws this again.")
    ]
    log_density: Annotated[
        dict[str, float | None], Field(description="Component → log q in nats; null where no step added noise.")
    ]
    nodes: Annotated[
        dict[str, float | None],
        Field(description="Operator, by its text form → its log-density in nats; a balanced AND has none."),
    ]
    kappa: Annotated[
        dict[str, float | None],
        Field(
            description="Component → mean κ over the steps, its share of the mix of scores; null where none was taken."
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
            "explains the picture than nothing; null where that was not computed: at guidance 1 without candidates, or "
            "for a model without classifier-free guidance."
        ),
    ]
    lift_maps: Annotated[
        dict[str, LiftMap | None] | None,
        Field(description="Component → where in the picture its lift is; only with include_lift_maps."),
    ] = None
    clamp_rate: Annotated[
        float, Field(description="Share of the steps at which balanced AND's weights were held back.")
    ]
    candidate: Annotated[int, Field(description="Which of its candidates this picture is; the first is 0.")]
    survivors: Annotated[
        int | None,
        Field(description="From how many of its first particles the last ones descend; null without particles."),
    ] = None


class TrajectoryPoint(BaseModel):
    """The state after one step: one list a sample, in it one number a component.

    Samples are in the order of images, in an image of candidates, in a candidate of particles; after the last step one
    particle of each candidate is left.
    """

    step: int
    sigma: Annotated[float, Field(description="The noise level reached.")]
    log_density: Annotated[list[list[float | None]], Field(description="In nats; null where no step adds noise.")]
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
        Field(description="Of each candidate's particles, before they are resampled; null without particles."),
    ] = None


class SuperposeResponse(BaseModel):
    """The answer to a composition."""

    object: Literal["superposition"] = "superposition"
    id: str
    status: Literal["completed"] = "completed"
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: Annotated[list[str], Field(description="The components' names in the dictionaries below, in order.")]
    seed: int
    images: list[Picture]
    trajectory: list[TrajectoryPoint] | None = None
    timings: Timings


class JobInfo(BaseModel):
    """A job as it stands."""

    object: Literal["job"] = "job"
    kind: Annotated[Literal["superposition", "density"], Field(description="What it gives: its result's `object`.")]
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
        Field(description="Of one completed job, not in lists: pictures by url, the trajectory at its own address."),
    ] = None


class JobList(BaseModel):
    """The caller's jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]
    next: Annotated[str | None, Field(description="`after` of the next page; null on the last.")] = None


class QueuedEvent(BaseModel):
    """Where a job waits."""

    id: Annotated[str, Field(description="The job's.")]
    position: Annotated[int, Field(description="Jobs that will start before it.")]


class ProgressEvent(TrajectoryPoint):
    """How far a job is."""

    id: Annotated[str, Field(description="The job's.")]
    steps: int


class PreviewEvent(BaseModel):
    """What the pictures would be if sampling ended now."""

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
    """What /v1/models tells of a model; what is not known before it is loaded is null."""

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
        int | None, Field(description="Pictures' sides are multiples of it; 0 for pictures of one size.")
    ] = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    parameters: int | None = None
    memory_bytes: Annotated[int | None, Field(description="What its weights take.")] = None
    loras: list[str] | None = None
    guidance: Annotated[Guidance | None, Field(description="What a guidance scale means to it.")] = None
    paints: Annotated[bool | None, Field(description="Whether it is an inpainting model.")] = None
    calibrated: bool | None = None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    """How the service is."""

    status: str
    detail: str | None = None
