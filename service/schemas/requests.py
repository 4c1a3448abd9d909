"""What requests may hold, with every bound; and how a request becomes an order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from pipelines.card import Defaults
from pipelines.composition import MAX_DEPTH, MAX_LEAVES, And, Method, Or
from pipelines.errors import InvalidInputError
from pipelines.grammar import MAX_TEXT
from pipelines.kernel import Kernel
from pipelines.params import MAX_CANDIDATES, MAX_PARTICLES, MAX_STEPS, SEED_LIMIT, SamplingParams, Select
from service.engine.job import Ask
from service.engine.scheduler import DEFAULT_PRIORITY, HIGHEST_PRIORITY
from service.expressions import Written, from_components, from_text, from_tree
from service.orders import Known, Order
from service.pictures import ImageFormat
from service.schemas import habits
from service.schemas.closed import Closed
from service.schemas.fields import NATS, Real, Sharpness, Side, Temperature, Text, Truth, Whole, default, drawn_seed
from service.schemas.trees import Component, Term, check_size, fault
from service.sources import Fit

_FEATHER: Final = 4.0
_STRENGTH: Final = 0.75


def _text_or_tree(value: Any, _: ValidatorFunctionWrapHandler) -> str | Term:
    """A text as it is; a tree is bounded, then read. Which of both was meant is seen, not tried."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise PydanticKnownError("string_too_long", {"max_length": MAX_TEXT})
        return value
    check_size(value)
    return Term.model_validate(value)


Components = Annotated[
    list[Component],
    Field(min_length=1, max_length=MAX_LEAVES, description="What to compose: objects, or strings as prompts."),
]
TextOrTree = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT)] | Term,
    WrapValidator(_text_or_tree),
    Field(
        description='What to compose, as text: "a cat" AND ("a dog" OR "a fox"), or as a tree: '
        '{"and": ["a cat", {"or": ["a dog", "a fox"]}]}, where a string is a prompt for the default model. At most '
        f"{MAX_LEAVES} prompts, and operators at most {MAX_DEPTH} deep.",
        examples=['"a red circle" AND ("a blue star" OR "a green square") NOT "a black shape"'],
    ),
]


class Asking(Closed):
    """What every request has."""

    steps: Annotated[
        Whole | None, Field(ge=1, le=MAX_STEPS, description="Number of network calls. Default: the model's.")
    ] = None
    seed: Annotated[
        Whole | None, Field(ge=0, lt=SEED_LIMIT, description="Image i uses seed + i. Default: random, and returned.")
    ] = None
    width: Side = None
    height: Side = None
    kernel: Annotated[Kernel | None, Field(description="Transition kernel. Default: the model's.")] = None
    fit: Annotated[
        Fit, Field(description="How to bring the image to the requested size: crop, pad at its edges, or stretch.")
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
            description="Time limit in seconds, waiting included; the service has its own maximum.",
        ),
    ] = None

    callback_url: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="Where the job's document is posted when it is over, at least once; with "
            "Prefer: respond-async, to hosts that the service allows.",
        ),
    ] = None

    def written(self, models: Sequence[str]) -> Written:
        """The expression asked for, over a catalogue's models; the first is the default.

        Raises:
            InvalidInputError: It has no meaning.
            UnknownModelError: It names a model that there is not.
        """
        raise NotImplementedError

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters, as the model has them where nothing is said."""
        raise NotImplementedError

    def known(self) -> Known | None:
        """The picture that comes with the request."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Forget the pictures, which are large, once the order is taken in."""

    @property
    def pictured(self) -> ImageFormat | None:
        """The format of the pictures that the answer holds; None where it holds none."""
        return None

    @property
    def by_url(self) -> bool:
        """Whether the answer holds the pictures' addresses instead of the pictures."""
        return False

    def ask(self, caller: str, timeout_s: float) -> Ask:
        """What the engine is asked for besides the sample; ``timeout_s`` holds where the request names no time."""
        return Ask(caller, self.priority, timeout_s if self.timeout_s is None else self.timeout_s)

    def order(self, models: Sequence[str], caller: str, timeout_s: float) -> Order:
        """The request in the service's own words; see :meth:`written` and :meth:`ask`."""
        return Order(self.written(models), self.params, self.ask(caller, timeout_s), self.known())


class Drawing(Asking):
    """What the requests that draw pictures share."""

    negative_prompt: Annotated[Text, Field(description="What guidance steers away from.")] = default(
        SamplingParams, "negative_prompt"
    )
    guidance_scale: Annotated[
        Real | None,
        Field(
            ge=0,
            le=100,
            allow_inf_nan=False,
            description="Guidance w, 1 for none. Default: the model's, times the number of prompts that must hold "
            "together.",
        ),
    ] = None
    guidance_start: Annotated[
        Real | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Share of the steps, counted from the first, without guidance. The expression's operators set "
            "the default.",
        ),
    ] = None
    num_images: Annotated[
        Whole, Field(ge=1, le=64, description="Number of pictures; the service limits network rows × steps.")
    ] = default(SamplingParams, "num_images")
    candidates: Annotated[
        Whole,
        Field(
            ge=1,
            le=MAX_CANDIDATES,
            description="Pictures to draw for each one returned: the one that satisfies the expression best.",
        ),
    ] = default(SamplingParams, "candidates")
    select: Annotated[
        Select,
        Field(
            description='How to choose among candidates: "lift" from the sampling steps, at no cost; "density" on '
            "fresh noise, with 8 more network calls."
        ),
    ] = default(SamplingParams, "select")
    particles: Annotated[
        Whole,
        Field(
            ge=1,
            le=MAX_PARTICLES,
            description="Samples per candidate, reweighted to follow the expression's density; one of them is kept.",
        ),
    ] = default(SamplingParams, "particles")
    image: Annotated[
        str | None, Field(description="A picture to start from, in base64 or as a data: URI; URLs are not fetched.")
    ] = None
    mask: Annotated[
        str | None,
        Field(description="A picture of the image's size, in base64: white is repainted, black is kept."),
    ] = None
    strength: Annotated[
        Real | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Share of the steps that run from the image: 0 returns it, 1 keeps nothing of the repainted "
            f"part. Default: {_STRENGTH} for an image without mask, else 1.",
        ),
    ] = None
    mask_feather: Annotated[
        Real,
        Field(
            ge=0,
            le=256,
            allow_inf_nan=False,
            description="Width of the blend inside the mask's border, in pixels.",
        ),
    ] = _FEATHER
    output_format: ImageFormat = ImageFormat.PNG
    response_format: Annotated[
        Literal["b64_json", "url"], Field(description="Pictures in the answer, or URLs that work for a limited time.")
    ] = "b64_json"
    include_trajectory: Annotated[Truth, Field(description="Return κ and the log-densities of every step.")] = False
    include_lift_maps: Annotated[
        Truth, Field(description="Return a map per component: where it explains the picture.")
    ] = False
    preview_every: Annotated[
        Whole, Field(ge=0, le=MAX_STEPS, description="Send a preview event every N steps; 0 for never.")
    ] = 0

    @property
    def pictured(self) -> ImageFormat:
        """The format of the pictures that the answer holds."""
        return self.output_format

    @property
    def by_url(self) -> bool:
        """Whether the answer holds the pictures' addresses instead of the pictures."""
        return self.response_format == "url"

    def ask(self, caller: str, timeout_s: float) -> Ask:
        """What the engine is asked for besides the sample; ``timeout_s`` holds where the request names no time."""
        return replace(
            super().ask(caller, timeout_s),
            keep_trajectory=self.include_trajectory,
            keep_lift_maps=self.include_lift_maps,
            preview_every=self.preview_every,
        )

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters, as the model has them where nothing is said; draws a seed where none was given."""
        known = self.known()
        alone = known is not None and known.mask is None
        return SamplingParams(
            steps=defaults.steps if self.steps is None else self.steps,
            guidance_scale=defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            guidance_start=defaults.guidance_start if self.guidance_start is None else self.guidance_start,
            seed=drawn_seed(self.seed),
            num_images=self.num_images,
            width=self.width,
            height=self.height,
            kernel=self.kernel or defaults.kernel,
            negative_prompt=self.negative_prompt,
            strength=(_STRENGTH if alone else 1.0) if self.strength is None else self.strength,
            candidates=self.candidates,
            select=self.select,
            particles=self.particles,
        )

    def known(self) -> Known | None:
        """The picture to begin from, if there is one."""
        if self.image is not None:
            return Known(self.image, self.mask, self.fit, self.mask_feather)
        if self.mask is not None:
            raise InvalidInputError("a mask needs an image", field=("mask",))
        return None

    def let_go(self) -> None:
        """Forget the pictures."""
        self.image = self.mask = None


class SuperposeRequest(Drawing):
    """A picture of an expression."""

    habits = habits.EXPRESSION

    expression: TextOrTree

    def written(self, models: Sequence[str]) -> Written:
        """The expression asked for; see :meth:`Asking.written`."""
        return _from_either(self.expression, models)


class OrRequest(Drawing):
    """A picture that any of the components explains."""

    habits = habits.COMPONENTS

    components: Components
    temperature: Temperature = default(Or, "temperature")

    def written(self, models: Sequence[str]) -> Written:
        """The expression asked for; see :meth:`Asking.written`."""
        biases = _weights(self.components)
        return from_components(self.components, models, lambda terms: Or(terms, self.temperature, biases))


class AndRequest(Drawing):
    """A picture that shows all components, or that all explain equally well."""

    habits = habits.COMPONENTS

    components: Components
    method: Annotated[
        Method,
        Field(
            description='"soft": pictures that show all components. "balanced": pictures that all components explain '
            "equally well, with lifts as differences between their final log-densities."
        ),
    ] = default(And, "method")
    sharpness: Sharpness = default(And, "sharpness")
    lift: Annotated[
        Real,
        Field(
            ge=-NATS,
            le=NATS,
            allow_inf_nan=False,
            description="Lift of the first component in nats, added to its weight.",
        ),
    ] = 0.0

    def written(self, models: Sequence[str]) -> Written:
        """The expression asked for; see :meth:`Asking.written`."""
        lifts = _weights(self.components, first=self.lift)
        return from_components(self.components, models, lambda terms: And(terms, lifts, self.method, self.sharpness))


class DensityRequest(Asking):
    """How well components, or an expression and its parts, explain a picture.

    A component's weight is its log prior odds in nats: a list of components means their OR.
    """

    habits = habits.DENSITY

    components: Components | None = None
    expression: TextOrTree | None = None
    image: Annotated[str, Field(description="The picture, in base64 or as a data: URI; URLs are not fetched.")]
    steps: Annotated[
        Whole | None,
        Field(
            ge=2, le=MAX_STEPS, description="Number of network calls; the last one adds nothing. Default: the model's."
        ),
    ] = None
    draws: Annotated[Whole, Field(ge=1, le=64, description="Number of noise draws to average over.")] = 4

    @field_validator("kernel")
    @classmethod
    def _adds_noise(cls, kernel: Kernel | None) -> Kernel | None:
        if kernel is not None and not kernel.adds_noise:
            others = ", ".join(k for k in Kernel if k.adds_noise)
            raise ValueError(f"the estimate needs a kernel that adds noise: {others}")
        return kernel

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.components is None and self.expression is None:
            raise fault(("expression",), "either components or expression is required")
        if self.components is not None and self.expression is not None:
            raise fault(("expression",), "give either components or expression, not both")
        return self

    def written(self, models: Sequence[str]) -> Written:
        """The expression asked for; see :meth:`Asking.written`."""
        if self.expression is not None:
            return _from_either(self.expression, models)
        components = self.components or []
        return from_components(components, models, lambda terms: Or(terms, biases=_weights(components)))

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters: densities are those of the models themselves, without guidance."""
        return SamplingParams(
            steps=max(2, defaults.steps) if self.steps is None else self.steps,
            guidance_scale=1.0,
            seed=drawn_seed(self.seed),
            num_images=self.draws,
            width=self.width,
            height=self.height,
            kernel=self.kernel or (defaults.kernel if defaults.kernel.adds_noise else Kernel.CALIBRATED),
        )

    def known(self) -> Known:
        """The picture, of which nothing is painted."""
        return Known(self.image, None, self.fit, 0.0, retrace=True)

    def let_go(self) -> None:
        """Forget the picture."""
        self.image = ""


def _from_either(expression: str | Term, models: Sequence[str]) -> Written:
    return from_text(expression, models) if isinstance(expression, str) else from_tree(expression, models)


def _weights(components: Sequence[Component], first: float = 0.0) -> tuple[float, ...]:
    """The components' weights, with something added to the first; () where all are 0."""
    weights = [component.weight or 0.0 for component in components]
    weights[0] += first
    return tuple(weights) if any(weights) else ()
