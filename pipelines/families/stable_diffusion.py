"""Stable Diffusion: any folder in the layout of diffusers' StableDiffusionPipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from pipelines.errors import ModelLoadError
from pipelines.families.folder import (
    CALIBRATION_FILE,
    count_parameters,
    fingerprint,
    load_pipeline,
    prediction_of,
    read_calibration,
    side,
)
from pipelines.families.preview import apply_colours, fit_colours
from pipelines.kernel import DenoisingError
from pipelines.model import Card, Condition, DataSpace, Shape, check_size
from pipelines.noise import noise_table
from pipelines.prediction import network_input, to_denoised

# Latents are scaled to unit variance, so that is what an unmeasured model's error curve assumes.
_LATENT_STD: Final = 1.0
_CHEAP_AUTOENCODER: Final = 4_000_000


class StableDiffusion:
    """A U-Net with cross-attention to CLIP's text encoder, over an autoencoder's latents.

    Args:
        pipeline: Its parts, loaded.
        error: Its measured m(σ), None for the Gaussian fallback.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, error: DenoisingError | None) -> None:
        self._pipeline = pipeline
        self._unet, self._vae = pipeline.unet, pipeline.vae
        self._colours: Tensor | None = None
        scheduler = pipeline.scheduler.config
        self._prediction = prediction_of(scheduler)
        self._table = noise_table(scheduler)
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        low, high = self._table.sigma_min, self._table.sigma_max
        self._multiple = factor * 2 ** (len(self._unet.config.block_out_channels) - 1)
        width, height = side(self._unet.config.sample_size)
        self._card = Card(
            space=DataSpace("latent", self._vae.config.latent_channels, factor, fingerprint(self._vae)),
            sigma_min=low,
            sigma_max=high,
            error=error or DenoisingError.gaussian(_LATENT_STD, low, high),
            width=width * factor,
            height=height * factor,
            takes_prompts=True,
            parameters=count_parameters(self._unet, self._vae, pipeline.text_encoder),
            calibrated=error is not None,
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a folder's safetensors; raises where it is not whole or not of this kind (see ``Catalog.get``)."""
        pipeline = load_pipeline(
            folder,
            StableDiffusionPipeline.from_pretrained,
            dtype=dtype,
            safety_checker=None,
            requires_safety_checker=False,
        )
        unet, latents = pipeline.unet.config, pipeline.vae.config.latent_channels
        if (unet.in_channels, unet.out_channels) != (latents, latents):
            channels = f"takes {unet.in_channels} channels and gives {unet.out_channels}"
            raise ModelLoadError(f"its U-Net {channels}, but its autoencoder has {latents}")
        pipeline.to(device)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        return cls(pipeline, read_calibration(folder / CALIBRATION_FILE))

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self._unet.device)

    @torch.inference_mode()
    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """CLIP's last hidden states; (R, tokens, width). Text beyond the tokenizer's length is cut, as diffusers does.

        References:
            diffusers' StableDiffusionPipeline.encode_prompt, which this calls.
        """
        embedded, _ = self._pipeline.encode_prompt(list(texts), self.device, 1, False)
        return {"encoder_hidden_states": embedded}

    @torch.inference_mode()
    def denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0 by one forward of the U-Net, every row at its own timestep."""
        x = network_input(self._prediction, z, sigma).to(self._unet.dtype)
        output = self._unet(x, self._table.timestep(sigma).to(torch.float32), return_dict=False, **condition)[0]
        return to_denoised(self._prediction, output.to(z.dtype), z, sigma)

    def sample_shape(self, width: int, height: int) -> Shape:
        """(channels, height / factor, width / factor); sizes must be multiples of what the U-Net can halve."""
        check_size(width, height, self._multiple)
        space = self._card.space
        return space.channels, height // space.factor, width // space.factor

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures in [0, 1], float32."""
        latents = (z / self._vae.config.scaling_factor).to(self._vae.dtype)
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def preview(self, z: Tensor) -> Tensor:
        """Small autoencoders decode; for large ones a linear map from latents to colours, one pixel a latent cell."""
        if count_parameters(self._vae) <= _CHEAP_AUTOENCODER:
            return self.decode(z)
        if self._colours is None:
            self._colours = fit_colours(self.decode, self._card.space.channels, self._card.space.factor, self.device)
        return apply_colours(self._colours, z)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] to latents: the mean of the autoencoder's posterior, float32."""
        posterior = self._vae.encode((images * 2 - 1).to(self.device, self._vae.dtype)).latent_dist
        latents: Tensor = posterior.mean.float() * self._vae.config.scaling_factor
        return latents
