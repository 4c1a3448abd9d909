"""What the sampler and the service need from a loaded model of any family."""

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from pipelines.card import Card, Shape

Condition = Mapping[str, Tensor]
"""The network's conditioning inputs by name; the first axis of every tensor counts rows."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model, besides its source, device and type.

    Attributes:
        loras: Name → file of its LoRAs.
        config: The diffusers folder that has the configuration of a single file; None to let diffusers look for it.
        space: The name that the operator gives the data space; empty for the fingerprint of the autoencoder.
        tiling: Whether pictures are decoded and encoded in tiles.
        clip_skip: The number of CLIP's last layers that are left out.
        channels_last: Whether the network's weights are laid out channels last.
        compile: Whether the network is compiled.
        data_std: The standard deviation of its data, for the error curve of a model that was not calibrated; None for
            the usual value of its family.
        parts: Loaded networks by the files that they were read from; models that share files share these.
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

    def predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ = (z − x̂0) / σ of noisy rows, from the network's own output (:mod:`pipelines.prediction`).

        Args:
            z: (R, …) rows in variance-exploding coordinates, float32.
            sigma: (R,) their noise levels.
            condition: R rows, as :meth:`Conditioner.encode_prompts` returns them.

        Returns:
            (R, …) in the type of ``z``.
        """
        ...

    def differentiate_noise(
        self, z: Tensor, sigma: Tensor, condition: Condition, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ε̂ and its derivative along a direction, (∂ε̂/∂z) e, both (R, …).

        Args:
            z: As in :meth:`predict_noise`.
            sigma: Likewise.
            condition: Likewise.
            direction: (R, …) e.

        Raises:
            InvalidInputError: The network has no forward-mode derivative; the field is ("kernel",).
        """
        ...

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """The grid that the model's authors sample it on: (N + 1,) float64, descending to 0, within its levels."""
        ...


class Conditioner(Protocol):
    """Prompts to conditions."""

    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """One row for each text; a row depends on its own text alone.

        Args:
            texts: The prompts.
            adapters: The LoRAs that are applied to the model for these rows: name → scale.
        """
        ...


class Codec(Protocol):
    """Samples to pictures and back."""

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
        """The inputs of an inpainting model (``card.paints``) from the known picture, one row; {} for others.

        Args:
            shape: Of one sample.
            image: (1, 3, height, width) in [0, 1]; None for no picture.
            mask: (1, 1, height, width) in [0, 1], 1 where the picture is replaced; None for everywhere.
        """
        ...


class Model(Denoiser, Conditioner, Codec, Protocol):
    """A loaded model."""

    @property
    def card(self) -> Card:
        """What is known about it without its weights."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        ...

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """All modules that hold its weights."""
        ...
