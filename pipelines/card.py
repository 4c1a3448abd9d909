"""What is known about a model without its weights: data space, noise levels, picture sizes, defaults of a request.

Everything here is plain values. A card can be copied to another process and compared there, and every question about a
request that needs no network (shapes, sizes, whether models compose) is answered from cards alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError, Kernel
from pipelines.noise import Grid

Shape = tuple[int, ...]
"""The shape of one sample, without the batch axis."""

ONE_SIZE: Final = 0
"""The ``multiple`` of a model that draws pictures of its native size only."""


class Guidance(StrEnum):
    """What a guidance scale means to a model."""

    CLASSIFIER_FREE = "classifier_free"
    """The estimate is extrapolated away from the one under the negative prompt (Ho & Salimans, 2022)."""
    DISTILLED = "distilled"
    """The scale is an input of the network, which was trained to imitate guidance."""
    NONE = "none"
    """The model has no guidance: the scale must be 1."""


DEFAULT_STEPS: Final = 25
DEFAULT_KERNEL: Final = Kernel.CALIBRATED
DEFAULT_GUIDANCE_START: Final = 0.25
"""Where prompts must hold together; a single prompt is guided from the start, as everywhere."""
DEFAULT_GUIDANCE_SCALES: Final[Mapping[Guidance, float]] = {
    Guidance.CLASSIFIER_FREE: 4.0,
    Guidance.DISTILLED: 3.5,
    Guidance.NONE: 1.0,
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """The sampling parameters of a request that does not give its own.

    Attributes:
        steps: Network calls.
        guidance_scale: w; 1 is no guidance.
        guidance_start: The share of the steps before guidance begins.
        kernel: The transition kernel.
    """

    steps: int = DEFAULT_STEPS
    guidance_scale: float = DEFAULT_GUIDANCE_SCALES[Guidance.CLASSIFIER_FREE]
    guidance_start: float = 0.0
    kernel: Kernel = DEFAULT_KERNEL


@dataclass(frozen=True, slots=True)
class DataSpace:
    """The space that a model's samples live in. Models compose if and only if their spaces are equal.

    Attributes:
        kind: What a sample is: an autoencoder's latent, a picture's pixels, or a vector.
        channels: Channels of a latent or a picture; the dimension of a vector.
        factor: Pixels along one side of a latent cell; 1 where samples are the data themselves.
        codec: Fingerprint of the weights that decode a sample, or the name that the catalogue gives the space; empty
            where nothing needs decoding.
    """

    kind: Literal["latent", "pixel", "vector"]
    channels: int
    factor: int = 1
    codec: str = ""

    def __str__(self) -> str:
        codec = f", autoencoder {self.codec[:12]}" if self.codec else ""
        return f"{self.kind}, {self.channels} channels, factor {self.factor}{codec}"


@dataclass(frozen=True, slots=True)
class Card:
    """What a model is, in plain values.

    Attributes:
        space: The data space.
        sigma_min: The smallest noise level that the model was trained on.
        sigma_max: The largest.
        error: Its denoising-error curve m(σ).
        width: Its native picture width in pixels.
        height: Its native height.
        takes_prompts: Whether it reads prompts.
        parameters: The number of its weights, all parts together.
        calibrated: Whether ``error`` was measured; otherwise it is the Gaussian fallback.
        guidance: What a guidance scale means to it.
        grid: The grid of noise levels that it is sampled on by default.
        adapters: The names of its LoRAs.
        broken_adapters: Name → why it cannot be loaded, of the LoRAs that cannot.
        paints: Whether its network takes the known picture and the mask as inputs.
        multiple: The sides of its pictures are multiples of this, in pixels, and this is a multiple of
            ``space.factor``; ``ONE_SIZE`` where it draws the native size only.
        memory: Bytes that its weights take.
        weights: Fingerprint of its weights, by samples of each; empty where it has none.
        max_side: The longest side of its pictures in pixels; None where its network sets no limit.
    """

    space: DataSpace
    sigma_min: float
    sigma_max: float
    error: DenoisingError
    width: int
    height: int
    takes_prompts: bool
    parameters: int
    calibrated: bool
    guidance: Guidance = Guidance.CLASSIFIER_FREE
    grid: Grid = Grid.KARRAS
    adapters: tuple[str, ...] = ()
    broken_adapters: Mapping[str, str] = field(default_factory=dict)
    paints: bool = False
    multiple: int = 1
    memory: int = 0
    weights: str = ""
    max_side: int | None = None

    def sample_shape(self, width: int, height: int) -> Shape:
        """The shape of one sample for a picture size.

        Args:
            width: Of the picture, in pixels.
            height: Likewise. Vectors have no size: their shape ignores both.

        Returns:
            (channels, height / factor, width / factor) of a latent or a picture, (dimension,) of a vector.

        Raises:
            InvalidInputError: The model cannot draw this size; the field is ("width",) or ("height",).
        """
        if self.space.kind == "vector":
            return (self.space.channels,)
        self._check_size(width, height)
        return self.space.channels, height // self.space.factor, width // self.space.factor

    def _check_size(self, width: int, height: int) -> None:
        if self.multiple == ONE_SIZE:
            if (width, height) != (self.width, self.height):
                detail = f"this model draws {self.width}×{self.height} only, got {width}×{height}"
                raise InvalidInputError(detail, field=("width" if width != self.width else "height",))
            return
        sides = {"width": width, "height": height}
        for name, side in sides.items():
            if self.max_side is not None and side > self.max_side:
                detail = f"{name} must be at most {self.max_side} for this model, got {side}"
                raise InvalidInputError(detail, field=(name,))
        for name, side in sides.items():
            if side <= 0 or side % self.multiple:
                detail = f"{name} must be a positive multiple of {self.multiple}, got {side}"
                raise InvalidInputError(detail, field=(name,))
