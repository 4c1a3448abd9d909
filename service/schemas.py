"""What goes over the wire, with every bound; and how it becomes an expression and parameters."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from pipelines.catalog import Defaults
from pipelines.composition import MAX_COMPONENTS, And, Or, Prompt
from pipelines.kernel import Kernel
from pipelines.model import Guidance
from pipelines.params import MAX_STEPS, SEED_LIMIT, SamplingParams
from service.engine.job import Ask, Phase
from service.engine.scheduler import DEFAULT_PRIORITY, HIGHEST_PRIORITY
from service.sources import Fit

_PROMPT_LENGTH: Final = 4000
_NATS: Final = 1e4
_SIDE: Final = 4096
_LORAS: Final = 8
_FEATHER: Final = 4.0
_STRENGTH: Final = 0.75

Text = Annotated[str, Field(max_length=_PROMPT_LENGTH)]
# As JSON has them: neither "3" nor true is a number, and "yes" is no truth value.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Truth = Annotated[bool, Strict()]
Side = Annotated[
    Whole | None,
    Field(
        ge=8,
        le=_SIDE,
        description="Pixels, a multiple of what /v1/models tells; absent: the image's, else the model's own. The "
        "service bounds width × height × num_images.",
    ),
]


class ImageFormat(StrEnum):
    """The picture formats that a request may ask for."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """Its name in Accept and Content-Type."""
        return f"image/{self.value}"


def _or_a_string(schema: dict[str, Any]) -> None:
    """Let the published schema of a component admit a bare string, as the parser does."""
    whole = dict(schema)
    schema.clear()
    schema.update({"anyOf": [whole, {"type": "string", "maxLength": _PROMPT_LENGTH}], "title": whole.get("title")})


class Component(BaseModel):
    """One density of a composition. A bare string stands for a prompt to the default model."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_or_a_string)

    prompt: Annotated[Text, Field(description="Empty for the model's unconditional density.")]
    model: Annotated[
        str | None, Field(min_length=1, max_length=200, description="A name from /v1/models; none for the first.")
    ] = None
    weight: Annotated[
        Real,
        Field(
            ge=-_NATS,
            le=_NATS,
            allow_inf_nan=False,
            description="OR: log prior odds in nats. AND: the lift of this component's final log-density in nats.",
        ),
    ] = 0.0
    lora: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=200)],
            Annotated[Real, Field(ge=-10, le=10, allow_inf_nan=False)],
        ],
        Field(max_length=_LORAS, description="LoRAs of the model's own, by name, with their scales."),
    ] = {}
    negative_prompt: Annotated[
        str | None, Field(max_length=_PROMPT_LENGTH, description="For this component; none for the request's.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value


class Asking(BaseModel):
    """What every request has."""

    model_config = ConfigDict(extra="forbid")

    components: Annotated[
        list[Component],
        Field(min_length=1, max_length=MAX_COMPONENTS, description="What to compose: objects or bare prompts."),
    ]
    steps: Annotated[
        Whole | None, Field(ge=1, le=MAX_STEPS, description="Network calls; absent: the model's default.")
    ] = None
    seed: Annotated[
        Whole | None, Field(ge=0, lt=SEED_LIMIT, description="Image i is drawn from seed + i; absent: drawn, returned.")
    ] = None
    width: Side = None
    height: Side = None
    kernel: Annotated[
        Kernel | None, Field(description="How noise and densities are stepped; absent: the model's default.")
    ] = None
    fit: Annotated[
        Fit, Field(description="How an image comes to the size asked for: cut, filled up at its edges, or stretched.")
    ] = "crop"
    priority: Annotated[
        Whole, Field(ge=0, le=HIGHEST_PRIORITY, description="Higher runs earlier; waiting raises it.")
    ] = DEFAULT_PRIORITY
    timeout_s: Annotated[
        Real | None,
        Field(
            gt=0,
            le=86400,
            allow_inf_nan=False,
            description="After how many seconds the answer is worthless; the service may allow less.",
        ),
    ] = None

    def prompts(self, default_model: str) -> tuple[Prompt, ...]:
        """The components as leaves."""
        return tuple(
            Prompt(c.prompt, c.model or default_model, tuple(sorted(c.lora.items())), c.negative_prompt)
            for c in self.components
        )

    def ask(self, caller: str, timeout_s: float) -> Ask:
        """What the engine is asked for besides the sample; ``timeout_s`` holds where the request names no time."""
        return Ask(caller, self.priority, timeout_s if self.timeout_s is None else self.timeout_s)


class _Request(Asking):
    """What OR and AND share."""

    negative_prompt: Annotated[Text, Field(description="What guidance leads away from.")] = ""
    guidance_scale: Annotated[
        Real | None,
        Field(ge=0, le=100, allow_inf_nan=False, description="Guidance w; 1 for none; absent: the model's default."),
    ] = None
    num_images: Annotated[
        Whole, Field(ge=1, le=64, description="Pictures; the service bounds their network rows × steps.")
    ] = 1
    image: Annotated[
        str | None, Field(description="A picture to begin from, in base64 or as a data: URI; never an address.")
    ] = None
    mask: Annotated[
        str | None, Field(description="White where the image is painted anew, black where it is kept; in base64.")
    ] = None
    strength: Annotated[
        Real | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="How much of the image's own noise levels are sampled anew: 0 gives it back, 1 keeps nothing of"
            f" what is painted. Absent: {_STRENGTH} with an image alone, else 1.",
        ),
    ] = None
    mask_feather: Annotated[
        Real,
        Field(
            ge=0,
            le=256,
            allow_inf_nan=False,
            description="Pixels inside of the mask's border over which painting blends in.",
        ),
    ] = _FEATHER
    output_format: ImageFormat = ImageFormat.PNG
    response_format: Annotated[
        Literal["b64_json", "url"], Field(description="Pictures inside the answer, or where to fetch them for a while.")
    ] = "b64_json"
    include_trajectory: Annotated[Truth, Field(description="Return weights and log-densities of every step.")] = False
    preview_every: Annotated[
        Whole, Field(ge=0, le=MAX_STEPS, description="Every how many steps listeners get a preview; 0 for never.")
    ] = 0

    def ask(self, caller: str, timeout_s: float) -> Ask:
        """What the engine is asked for besides the sample; ``timeout_s`` holds where the request names no time."""
        asked = super().ask(caller, timeout_s)
        return replace(asked, keep_trajectory=self.include_trajectory, preview_every=self.preview_every)

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters, as the model has them where nothing is said; draws a seed where none was given."""
        alone = self.image is not None and self.mask is None
        return SamplingParams(
            steps=defaults.steps if self.steps is None else self.steps,
            guidance_scale=defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            seed=drawn_seed(self.seed),
            num_images=self.num_images,
            width=self.width,
            height=self.height,
            kernel=self.kernel or defaults.kernel,
            negative_prompt=self.negative_prompt,
            strength=(_STRENGTH if alone else 1.0) if self.strength is None else self.strength,
        )


def drawn_seed(seed: int | None) -> int:
    """The seed given, or one drawn now."""
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed


class OrRequest(_Request):
    """A picture that any of the components explains."""

    temperature: Annotated[
        Real,
        Field(ge=0, le=1e6, allow_inf_nan=False, description="T in κ = softmax(T log q + weight); 1 is the mixture."),
    ] = 1.0

    def expression(self, default_model: str) -> Or:
        """The expression asked for."""
        biases = tuple(component.weight for component in self.components)
        return Or(self.prompts(default_model), self.temperature, biases)


class AndRequest(_Request):
    """A picture that all components explain equally well."""

    lift: Annotated[
        Real,
        Field(
            ge=-_NATS,
            le=_NATS,
            allow_inf_nan=False,
            description="Nats by which the first component's log-density ends above the others'; adds to its weight.",
        ),
    ] = 0.0

    def expression(self, default_model: str) -> And:
        """The expression asked for."""
        first, *others = (component.weight for component in self.components)
        return And(self.prompts(default_model), (first + self.lift, *others))


class DensityRequest(Asking):
    """Which of the components explains a picture. A component's weight is its log prior odds in nats."""

    image: Annotated[str, Field(description="The picture, in base64 or as a data: URI; never an address.")]
    steps: Annotated[
        Whole | None,
        Field(ge=2, le=MAX_STEPS, description="Network calls, the last of which tells nothing; absent: the model's."),
    ] = None
    draws: Annotated[Whole, Field(ge=1, le=64, description="Draws of the noise to average over.")] = 4

    @field_validator("kernel")
    @classmethod
    def _adds_noise(cls, kernel: Kernel | None) -> Kernel | None:
        if kernel is Kernel.DETERMINISTIC:
            others = ", ".join(k for k in Kernel if k is not kernel)
            raise ValueError(f"the estimate needs a kernel that adds noise: {others}")
        return kernel

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters: densities are those of the models themselves, without guidance."""
        return SamplingParams(
            steps=max(2, defaults.steps) if self.steps is None else self.steps,
            guidance_scale=1.0,
            seed=drawn_seed(self.seed),
            num_images=self.draws,
            width=self.width,
            height=self.height,
            kernel=self.kernel or (Kernel.CALIBRATED if defaults.kernel is Kernel.DETERMINISTIC else defaults.kernel),
        )


class Explanation(BaseModel):
    """What a component makes of a picture."""

    log_density: Annotated[float, Field(description="log q at the model's smallest noise level, in nats: the mean.")]
    standard_error: Annotated[float | None, Field(description="Of that mean, over the draws; null for a single one.")]
    posterior: Annotated[float, Field(description="The component's share, by its density and its prior odds.")]


class DensityResponse(BaseModel):
    """A picture explained."""

    components: Annotated[list[str], Field(description="The components' names below, in order.")]
    seed: int
    draws: int
    steps: int
    numbers: Annotated[int, Field(description="How many numbers a sample has: what log-densities are extensive in.")]
    explanations: dict[str, Explanation]


class Picture(BaseModel):
    """One picture and what the density estimator says of it."""

    b64_json: Annotated[str | None, Field(description="The encoded picture.")] = None
    url: Annotated[str | None, Field(description="Where to fetch the picture for a while.")] = None
    seed: Annotated[int, Field(description="With it a request of one image draws this picture again.")]
    log_density: Annotated[
        dict[str, float | None], Field(description="Component → log q in nats; null where no step added noise.")
    ]
    weight: Annotated[
        dict[str, float | None], Field(description="Component → mean κ over the steps; null where none was taken.")
    ]
    clamp_rate: Annotated[float, Field(description="Share of the steps at which AND's weights were held back.")]


class TrajectoryPoint(BaseModel):
    """The state after one step; one list a picture, one number a component."""

    step: int
    sigma: Annotated[float, Field(description="The noise level reached.")]
    log_density: Annotated[list[list[float | None]], Field(description="In nats; null where no step adds noise.")]
    weight: list[list[float]]


class Timings(BaseModel):
    """Where the time went."""

    queued_ms: float
    run_ms: float
    steps: int


class SuperposeResponse(BaseModel):
    """The answer to a composition."""

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

    id: str
    status: Phase
    created: Annotated[int, Field(description="Unix time in seconds.")]
    models: list[str]
    components: list[str]
    seed: int
    step: Annotated[int, Field(description="Steps taken.")]
    steps: int
    queue_position: Annotated[int | None, Field(description="Jobs that will start before it; null once it runs.")]
    error: Annotated[str | None, Field(description="Why it failed.")] = None
    result: Annotated[
        SuperposeResponse | None,
        Field(description="Of one completed job, not in lists: pictures by url, the trajectory at its own address."),
    ] = None


class JobList(BaseModel):
    """The caller's jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]


class QueuedEvent(BaseModel):
    """Where a job waits."""

    position: Annotated[int, Field(description="Jobs that will start before it.")]


class ProgressEvent(TrajectoryPoint):
    """How far a job is."""

    steps: int


class PreviewEvent(BaseModel):
    """What the pictures would be if sampling ended now."""

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


def component_names(prompts: Sequence[Prompt]) -> list[str]:
    """A name for each component: its prompt, its model where prompts leave room for doubt, a number for twins.

    ["a cat", "a cat"] of one model → ["a cat", "a cat #2"]; of two → ["a cat @sd15", "a cat @sd21"].
    """
    several = len({prompt.model for prompt in prompts}) > 1
    names: list[str] = []
    for prompt in prompts:
        name = twin = f"{prompt.text} @{prompt.model}".strip() if several or not prompt.text else prompt.text
        count = 1
        while twin in names:
            count += 1
            twin = f"{name} #{count}"
        names.append(twin)
    return names
