"""Unconditional pixel diffusion: folders in the layout of diffusers' DDPMPipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from pipelines.card import ONE_SIZE, Card, DataSpace, Shape
from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.families.derivative import derivative
from pipelines.families.folder import (
    calibration_path,
    count_parameters,
    load_pipeline,
    read_calibration,
    sampled_digest,
    side,
    skips_no_layers,
)
from pipelines.families.speed import speed_up
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.kernel import DenoisingError
from pipelines.memory import count_bytes
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions

# Pictures in [−1, 1] vary about half as much as unit-variance latents (Karras et al., 2022, section 5).
_PIXEL_STD: Final = 0.5


class Unconditional:
    """A U-Net over pixels in [−1, 1] without a condition.

    A scheduler's clipping (``clip_sample``) is not applied: the density ratio does not account for it.

    Args:
        unet: The network.
        path: Its noise levels and its prediction type.
        error: Its measured m(σ), None for the Gaussian fallback.
        std: The standard deviation of its data, for the fallback.
    """

    def __init__(
        self, unet: UNet2DModel, path: VariancePreserving, error: DenoisingError | None, std: float = _PIXEL_STD
    ) -> None:
        self._unet, self._path = unet, path
        width, height = side(unet.config.sample_size)
        self._card = Card(
            space=DataSpace("pixel", unet.config.in_channels),
            sigma_min=path.sigma_min,
            sigma_max=path.sigma_max,
            error=error or DenoisingError.gaussian(std, path.sigma_min, path.sigma_max),
            width=width,
            height=height,
            takes_prompts=False,
            parameters=count_parameters(unet),
            weights=sampled_digest((unet,)),
            memory=count_bytes(unet),
            calibrated=error is not None,
            multiple=ONE_SIZE,
        )

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder's safetensors; :meth:`Catalog.get` lists the errors."""
        if options.loras or options.tiling or options.compile:
            raise ModelLoadError("loras, tiling and compile are for models over latents")
        skips_no_layers(options)
        pipeline = load_pipeline(DDPMPipeline, source, device, dtype, options)
        unet = pipeline.unet
        if not isinstance(unet, UNet2DModel):
            raise ModelLoadError(f"its network is a {type(unet).__name__}, which takes a condition")
        channels = unet.config.in_channels
        if channels not in {1, 3} or unet.config.out_channels != channels or unet.config.sample_size is None:
            raise ModelLoadError("its network must give as many channels as it takes, 1 or 3, at a fixed size")
        speed_up(unet, options)
        path, error = VariancePreserving(pipeline.scheduler), read_calibration(calibration_path(source))
        return cls(unet, path, error, options.data_std or _PIXEL_STD)

    @property
    def card(self) -> Card:
        """What is known about it."""
        return self._card

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return torch.device(self._unet.device)

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The U-Net."""
        return [self._unet]

    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """{}: it has no condition; raises :class:`InvalidInputError` for a text that is not empty."""
        if any(texts):
            raise InvalidInputError("this model takes no prompts; leave it empty", field=("prompt",))
        return {}

    @torch.inference_mode()
    def predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the U-Net, each row at its own timestep."""
        return self._predict_rows(z, sigma)

    def differentiate_noise(
        self, z: Tensor, sigma: Tensor, condition: Condition, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ε̂ and (∂ε̂/∂z) e, by forward-mode differentiation."""
        return derivative(lambda rows: self._predict_rows(rows, sigma), z, direction)

    def _predict_rows(self, z: Tensor, sigma: Tensor) -> Tensor:

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self._unet(x, timesteps, return_dict=False)[0]
            return output

        return self._path.predict_noise(forward, z, sigma, self._unet.dtype)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Equally spaced timesteps."""
        return self._path.own_sigmas(steps)

    def decode(self, z: Tensor) -> Tensor:
        """Pixels in [−1, 1] to pictures in [0, 1], grey ones as RGB."""
        return (z.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def preview(self, z: Tensor) -> Tensor:
        """The pixels themselves."""
        return self.decode(z)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] to pixels in [−1, 1], by their mean where the model is grey."""
        pixels = images.to(self.device).float() * 2 - 1
        return pixels if self._card.space.channels == 3 else pixels.mean(1, keepdim=True)

    def painted(self, shape: Shape, image: Tensor | None = None, mask: Tensor | None = None) -> Condition:
        """{}: it does not inpaint."""
        return {}
