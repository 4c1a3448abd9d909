"""What the sampler and the service ask of a model, whatever its family."""

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError
from pipelines.noise import Grid

Condition = Mapping[str, Tensor]
"""What conditions the network, by the network's own argument names; the first axis of every tensor counts rows."""

Shape = tuple[int, ...]


class Guidance(StrEnum):
    """What a guidance scale means to a model."""

    CLASSIFIER_FREE = "classifier_free"
    """It is led away from what it says under the negative prompt (Ho & Salimans, 2022)."""
    DISTILLED = "distilled"
    """The scale is an input of the network, which has learnt what guidance does."""
    NONE = "none"
    """It knows no guidance: the scale must be 1."""


@dataclass(frozen=True, slots=True)
class DataSpace:
    """Where a model's samples live. Models compose if and only if their spaces are equal.

    Attributes:
        kind: "latent", "pixel" or "vector".
        channels: Channels of a sample.
        factor: Pixels along one side of a latent cell; 1 where samples are the data themselves.
        codec: Fingerprint of the weights that decode a sample, or the name that the catalogue gives the space; empty
            where nothing needs decoding.
    """

    kind: str
    channels: int
    factor: int = 1
    codec: str = ""

    def __str__(self) -> str:
        codec = f", autoencoder {self.codec[:12]}" if self.codec else ""
        return f"{self.kind}, {self.channels} channels, factor {self.factor}{codec}"


@dataclass(frozen=True, slots=True)
class Card:
    """What a model says of itself without computing anything.

    Attributes:
        space: The data space.
        sigma_min: The smallest noise level that it was trained on.
        sigma_max: The largest.
        error: Its denoising-error curve m(σ).
        width: Its native picture width in pixels.
        height: Its native height.
        takes_prompts: Whether a prompt means anything to it.
        parameters: How many weights, all parts together.
        memory: Bytes that they take.
        calibrated: Whether ``error`` was measured; otherwise it is the Gaussian fallback.
        guidance: What a guidance scale means to it.
        grid: How its noise levels are best spaced.
        adapters: The names of the LoRAs that it can wear.
        paints: Whether it reads the known picture and the mask as inputs of its network.
        multiple: What its pictures' sides are multiples of, in pixels; 0 where it draws one size only.
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
    paints: bool = False
    multiple: int = 1
    memory: int = 0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be loaded, besides where it is, to which device and in what type.

    Attributes:
        loras: Name → file of the LoRAs that it shall be able to wear.
        config: The diffusers folder that a single file goes with; None to let diffusers look for it.
        space: The name of the data space that it is said to be of; empty for its autoencoder's own.
        tiling: Whether pictures are decoded and encoded in tiles.
        clip_skip: How many of CLIP's last layers are left out.
        channels_last: Whether the network's weights are laid out channels last.
        compile: Whether the network is compiled.
        data_std: The standard deviation of its data, for the error curve of a model that was not calibrated; None for
            what is usual of its kind.
        parts: Networks that are loaded already, by what they were read from; models that share files share these.
    """

    loras: Mapping[str, Path] = field(default_factory=dict)
    config: Path | None = None
    space: str = ""
    tiling: bool = False
    clip_skip: int = 0
    channels_last: bool = False
    compile: bool = False
    data_std: float | None = None
    parts: MutableMapping[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)


DEFAULT_OPTIONS: Final = LoadOptions()


class Denoiser(Protocol):
    """The network as one function."""

    def denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0 of noisy rows.

        Args:
            z: (R, …) rows in variance-exploding coordinates, float32.
            sigma: (R,) their noise levels.
            condition: What :meth:`Conditioner.encode_prompts` gave, R rows.

        Returns:
            (R, …) in the type of ``z``.
        """
        ...

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """The grid that the model's makers sample it with: (N + 1,) float64, descending to 0, within its levels."""
        ...


class Conditioner(Protocol):
    """Prompts to conditions."""

    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """One row a text; what a row holds depends on its own text alone.

        Args:
            texts: The prompts.
            adapters: The LoRAs that the model wears for these rows, by name, each with its scale.
        """
        ...


class Codec(Protocol):
    """Samples to pictures and back."""

    def sample_shape(self, width: int, height: int) -> Shape:
        """The shape of one sample for a picture size; :class:`InvalidInputError` where the model has no such size."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """(B, …) clean samples to (B, 3, height, width) pictures in [0, 1]."""
        ...

    def preview(self, z: Tensor) -> Tensor:
        """(B, …) estimates of clean samples to small (B, 3, h, w) pictures in [0, 1], at little cost."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) pictures in [0, 1] to (B, …) clean samples."""
        ...

    def painted(self, shape: Shape, image: Tensor | None = None, mask: Tensor | None = None) -> Condition:
        """What a model that paints (``card.paints``) reads of the picture it paints on, one row; {} for others.

        Args:
            shape: Of one sample.
            image: (1, 3, height, width) in [0, 1]; None for no picture.
            mask: (1, 1, height, width) in [0, 1], 1 where it is painted anew; None for everywhere.
        """
        ...


class Model(Denoiser, Conditioner, Codec, Protocol):
    """A loaded model."""

    @property
    def card(self) -> Card:
        """What it is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """All that holds its weights."""
        ...


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuse a picture size that is not a positive multiple of ``multiple``."""
    for side, value in (("width", width), ("height", height)):
        if value <= 0 or value % multiple:
            raise InvalidInputError(f"{side} must be a positive multiple of {multiple}, got {value}", field=(side,))
