"""What requests of the dialect may hold. Unknown fields are accepted, as clients of the WebUI always send more."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipelines.card import Defaults
from pipelines.errors import UnknownModelError
from pipelines.grammar import MAX_TEXT
from pipelines.kernel import Kernel
from pipelines.noise import Grid
from pipelines.params import MAX_STEPS, SEED_LIMIT, SamplingParams
from service.api.sdapi.script import Script, script_of
from service.engine.job import Ask
from service.expressions import Written
from service.schemas.fields import NAME_LENGTH, PROMPT_LENGTH, drawn_seed
from service.schemas.trees import fault

_MOST_IMAGES: Final = 64
_SIDE: Final = 4096
_DEEPEST: Final = 32
# A preview every ten steps, as the WebUI has it, and more often where there are few.
_PREVIEW_STEPS: Final = 10
_PREVIEWS: Final = 6
_USUAL_STEPS: Final = 20
# "name [1a2b3c4d]" and "name.safetensors" mean name.
_HASH: Final = re.compile(r"\s*\[[0-9a-fA-F]+\]$")
_ENDINGS: Final = (".safetensors", ".ckpt")
_E = TypeVar("_E", Kernel, Grid)


def _no_truth(value: Any) -> Any:
    """True is no number, though Python counts with it."""
    if isinstance(value, bool):
        raise fault((), "must be a number, not true or false")
    return value


# As the WebUI reads them: "20" and 20.0 are whole numbers.
Count = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Side = Annotated[Count | None, Field(ge=8, le=_SIDE)]


class OverrideSettings(BaseModel):
    """Settings for one request; only the model is honoured."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: Annotated[str | None, Field(max_length=NAME_LENGTH)] = None


class Processing(BaseModel):
    """What txt2img and img2img share. What is not listed here is accepted and has no effect."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    negative_prompt: Annotated[str, Field(max_length=PROMPT_LENGTH)] = ""
    seed: Annotated[Count, Field(ge=-1, lt=SEED_LIMIT, description="-1: drawn, and told in info.all_seeds.")] = -1
    steps: Annotated[Count | None, Field(ge=1, le=MAX_STEPS, description="Absent: the model's default.")] = None
    cfg_scale: Annotated[Number | None, Field(ge=0, le=100, description="Absent: the model's default.")] = None
    width: Side = None
    height: Side = None
    batch_size: Annotated[Count, Field(ge=1, le=_MOST_IMAGES)] = 1
    n_iter: Annotated[Count, Field(ge=1, le=_MOST_IMAGES)] = 1
    sampler_name: Annotated[str | None, Field(description="A kernel's name selects it; any other is ignored.")] = None
    sampler_index: Annotated[str | int | None, Field(description="Where sampler_name is absent.")] = None
    scheduler: Annotated[str | None, Field(description="A grid's name selects it; any other is ignored.")] = None
    override_settings: OverrideSettings = OverrideSettings()
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True
    force_task_id: Annotated[str | None, Field(max_length=NAME_LENGTH, description="The task's name.")] = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, body: Any) -> Any:
        """Null is as good as absent; what is echoed must be JSON again."""
        if not isinstance(body, dict):
            return body
        return {key: _echoed(value, 1) for key, value in body.items() if value is not None}

    @model_validator(mode="after")
    def _few_images(self) -> Self:
        if self.num_images > _MOST_IMAGES:
            detail = f"batch_size × n_iter must be at most {_MOST_IMAGES}, got {self.num_images}"
            raise fault(("n_iter",), detail)
        return self

    @property
    def num_images(self) -> int:
        """Pictures in all: a batch is no other than several."""
        return self.batch_size * self.n_iter

    def script(self) -> Script:
        """What alwayson_scripts.superdiff says."""
        return script_of(self.alwayson_scripts)

    def written(self, models: Sequence[str], chosen: str | None) -> Written:
        """What to compose; see :meth:`Script.written` for what is raised.

        Args:
            models: The names of the catalogue; the first is the default.
            chosen: The caller's own default.
        """
        named, default = self.override_settings.sd_model_checkpoint, chosen or models[0]
        if named:
            default = checkpoint(named, models, ("override_settings", "sd_model_checkpoint"))
        return self.script().written(self.prompt, (default, *(name for name in models if name != default)))

    def ask(self, caller: str, timeout_s: float) -> Ask:
        """What the engine is asked for besides the sample: a few previews, drawn only while somebody looks."""
        every = max(1, min((self.steps or _USUAL_STEPS) // _PREVIEWS, _PREVIEW_STEPS))
        return Ask(caller, timeout_s=timeout_s, preview_every=every)

    def params(self, defaults: Defaults) -> SamplingParams:
        """The sampling parameters, as the model has them where nothing is said; draws a seed where none was given."""
        script = self.script()
        start = script.guidance_start
        return SamplingParams(
            steps=defaults.steps if self.steps is None else self.steps,
            guidance_scale=defaults.guidance_scale if self.cfg_scale is None else self.cfg_scale,
            guidance_start=defaults.guidance_start if start is None else start,
            seed=drawn_seed(None if self.seed < 0 else self.seed),
            num_images=self.num_images,
            width=self.width,
            height=self.height,
            kernel=script.kernel or self._kernel() or defaults.kernel,
            grid=_named(Grid, self.scheduler),
            negative_prompt=self.negative_prompt,
            strength=self.strength(),
            candidates=script.candidates,
            select=script.select,
            particles=script.particles,
        )

    def strength(self) -> float:
        """How much of a known picture is sampled anew."""
        return 1.0

    def echo(self) -> dict[str, Any]:
        """The request as the answer repeats it."""
        return self.model_dump(mode="json")

    def _kernel(self) -> Kernel | None:
        return _named(Kernel, self.sampler_name if self.sampler_name is not None else self.sampler_index)

    def let_go(self) -> None:
        """Forget what is large and not told again, once the order is taken in."""


class TextToImage(Processing):
    """POST /sdapi/v1/txt2img."""


class ImageToImage(Processing):
    """POST /sdapi/v1/img2img."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1, description="One picture in base64.")]
    mask: Annotated[
        str | None, Field(description="White where it is painted anew, in base64, in the image's proportions.")
    ] = None
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1, description="1: black is painted anew.")] = 0
    mask_blur: Annotated[Number, Field(ge=0, le=256, description="Pixels over which painting blends in.")] = 4.0
    mask_round: Annotated[bool, Field(description="Whether every pixel is painted or kept as a whole.")] = True
    denoising_strength: Annotated[Number, Field(ge=0, le=1)] = 0.75
    resize_mode: Annotated[Count, Field(ge=0, le=3, description="0, 3: stretched. 1: cut. 2: filled up.")] = 0
    inpainting_fill: Annotated[Count, Field(ge=0, le=3, description="All begin from the original.")] = 1
    inpaint_full_res: Annotated[bool, Field(description="Whether only the masked region is sampled.")] = False
    inpaint_full_res_padding: Annotated[Count, Field(ge=0, le=_SIDE)] = 0
    include_init_images: bool = False

    def let_go(self) -> None:
        """Forget the pictures, unless the answer repeats them."""
        if not self.include_init_images:
            self.init_images, self.mask = [], None

    @field_validator("mask")
    @classmethod
    def _no_mask(cls, mask: str | None) -> str | None:
        return mask or None

    def strength(self) -> float:
        """How much of a known picture is sampled anew."""
        return self.denoising_strength

    def echo(self) -> dict[str, Any]:
        """The request as the answer repeats it, without its pictures unless they are wanted."""
        told = super().echo()
        return told if self.include_init_images else {**told, "init_images": None, "mask": None}


def checkpoint(named: str, models: Sequence[str], field: tuple[str, ...]) -> str:
    """The model that a checkpoint's title means: a name, perhaps with a hash or a file's ending behind it.

    Args:
        named: As the client wrote it.
        models: The names of the catalogue.
        field: Where it stands.

    Raises:
        UnknownModelError: There is no such model.
    """
    bare = _HASH.sub("", named)
    for name in (named, bare, *(bare.removesuffix(ending) for ending in _ENDINGS)):
        if name in models:
            return name
    raise UnknownModelError(named, tuple(models), field=field)


def _named(kind: type[_E], name: str | int | None) -> _E | None:
    """The member of a name, however it is cased or joined; None for what is none."""
    plain = re.sub(r"[\s\-]+", "_", str(name).strip().lower())
    return next((member for member in kind if member.value == plain), None)


def _echoed(value: Any, depth: int) -> Any:
    """A value as JSON has it: without NaN, and not nested endlessly."""
    if depth > _DEEPEST:
        raise fault((), f"the body is nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        return {key: _echoed(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_echoed(inner, depth + 1) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
