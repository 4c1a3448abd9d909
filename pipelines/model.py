"""What the sampler and the service ask of a model, whatever its family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError

Condition = Mapping[str, Tensor]
"""What conditions the network, by the network's own argument names; the first axis of every tensor counts rows."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataSpace:
    """Where a model's samples live. Models compose if and only if their spaces are equal.

    Attributes:
        kind: "latent", "pixel" or "vector".
        channels: Channels of a sample.
        factor: Pixels along one side of a latent cell; 1 where samples are the data themselves.
        codec: Fingerprint of the weights that decode a sample; empty where nothing needs decoding.
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
        calibrated: Whether ``error`` was measured; otherwise it is the Gaussian fallback.
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


class Conditioner(Protocol):
    """Prompts to conditions."""

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """One row a text; what a row holds depends on its own text alone."""
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


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuse a picture size that is not a positive multiple of ``multiple``."""
    for field, value in (("width", width), ("height", height)):
        if value <= 0 or value % multiple:
            raise InvalidInputError(f"{field} must be a positive multiple of {multiple}, got {value}", field=(field,))
