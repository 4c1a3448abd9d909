"""Common to all models over an autoencoder's latents: the autoencoder, the card, the base class."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from pipelines.card import Card, DataSpace, Guidance, Shape
from pipelines.families.derivative import derivative
from pipelines.families.folder import count_parameters, fingerprint, sampled_digest
from pipelines.families.lora import LORA_SCALES, LoraAdapters
from pipelines.families.preview import apply_colours, fit_colours
from pipelines.families.speed import speed_up
from pipelines.kernel import DenoisingError
from pipelines.memory import count_bytes
from pipelines.model import Condition, LoadOptions
from pipelines.noise import Grid

LATENT_STD: Final = 1.0
"""Standard deviation of latents for the error curve of an uncalibrated model: they are scaled to unit variance."""
_CHEAP_AUTOENCODER: Final = 4_000_000  # parameters, up to which previews are decoded in full
_REPLACED: Final = 0.5  # the mask value from which a pixel counts as replaced


class LatentCodec:
    """AutoencoderKL between pictures and latents of zero mean and unit variance.

    Args:
        vae: The autoencoder.
        space: The name that the operator gives the data space; empty for the fingerprint of the autoencoder.
        tiling: Whether it works in tiles.
    """

    def __init__(self, vae: AutoencoderKL, space: str = "", *, tiling: bool = False) -> None:
        self.vae = vae
        if tiling:
            vae.enable_tiling()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = int(vae.config.latent_channels)
        self.space = DataSpace("latent", self.channels, self.factor, space or fingerprint(vae))
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.get("shift_factor") or 0.0)
        self._colours: Tensor | None = None

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures in [0, 1], float32."""
        latents = (z / self._scale + self._shift).to(self.vae.dtype)
        pixels: Tensor = self.vae.decode(latents, return_dict=False)[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def preview(self, z: Tensor) -> Tensor:
        """Decoded by a small autoencoder; for a large one, latents mapped linearly to colours, one pixel a cell."""
        if count_parameters(self.vae) <= _CHEAP_AUTOENCODER:
            return self.decode(z)
        if self._colours is None:
            self._colours = fit_colours(self.decode, self.channels, self.factor, self.vae.device)
        return apply_colours(self._colours, z)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] to latents: the mean of the autoencoder's posterior, float32."""
        posterior = self.vae.encode((images * 2 - 1).to(self.vae.device, self.vae.dtype)).latent_dist
        latents: Tensor = (posterior.mean.float() - self._shift) * self._scale
        return latents

    @torch.inference_mode()
    def painted(self, shape: Shape, image: Tensor | None, mask: Tensor | None) -> Condition:
        """The inputs of Stable Diffusion's inpainting networks beside the noisy latents, one row.

        ``mask`` (1, 1, h, w), 1 where the picture is replaced; ``masked`` (1, channels, h, w), the latents of the
        picture with grey where it is replaced.

        References:
            diffusers' StableDiffusionInpaintPipeline, prepare_mask_latents.
        """
        height, width = shape[1] * self.factor, shape[2] * self.factor
        image = torch.full((1, 3, height, width), 0.5) if image is None else image
        mask = torch.ones(1, 1, height, width) if mask is None else mask
        mask = (mask >= _REPLACED).float()
        masked = self.encode(torch.where(mask > 0, 0.5, image))
        return {"mask": functional.interpolate(mask, shape[1:]).to(masked), "masked": masked}


def latent_card(
    codec: LatentCodec,
    networks: Sequence[torch.nn.Module],
    levels: tuple[float, float],
    error: DenoisingError | None,
    options: LoadOptions,
    *,
    side: tuple[int, int],
    cell: int,
    loras: LoraAdapters,
    guidance: Guidance = Guidance.CLASSIFIER_FREE,
    grid: Grid = Grid.KARRAS,
    paints: bool = False,
    max_cells: int | None = None,
) -> Card:
    """The card of a model over latents.

    Args:
        codec: The autoencoder.
        networks: All modules with weights.
        levels: The smallest and the largest σ.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How it was loaded.
        side: Its native width and height, in latent cells.
        cell: The number of latent cells along a side is a multiple of this.
        loras: Its LoRAs.
        guidance: What a guidance scale means to it.
        grid: The grid of noise levels that it is sampled on by default.
        paints: Whether it is an inpainting model.
        max_cells: The most latent cells along a side; None for no limit.
    """
    return Card(
        space=codec.space,
        sigma_min=levels[0],
        sigma_max=levels[1],
        error=error or DenoisingError.gaussian(options.data_std or LATENT_STD, *levels),
        width=side[0] * codec.factor,
        height=side[1] * codec.factor,
        takes_prompts=True,
        parameters=count_parameters(*networks),
        weights=sampled_digest(networks),
        memory=count_bytes(*networks),
        calibrated=error is not None,
        guidance=guidance,
        grid=grid,
        adapters=loras.names,
        broken_adapters=loras.broken,
        paints=paints,
        multiple=codec.factor * cell,
        max_side=None if max_cells is None else max_cells * codec.factor,
    )


class LatentModel(ABC):
    """A model over latents; its family adds the network and the prompts.

    Args:
        codec: The autoencoder.
        card: What is known about it.
        network: The denoising network.
        loras: Its LoRAs.
        options: How it was loaded.
    """

    def __init__(
        self, codec: LatentCodec, card: Card, network: torch.nn.Module, loras: LoraAdapters, options: LoadOptions
    ) -> None:
        self._codec, self._card, self._network, self._loras = codec, card, network, loras
        speed_up(network, options)
        self._compiled = options.compile

    @property
    def card(self) -> Card:
        """What is known about it."""
        return self._card

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return next(self._network.parameters()).device

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The network, the autoencoder and the text encoders."""
        return [self._network, self._codec.vae, *self._encoders]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._network.parameters()).dtype

    @property
    @abstractmethod
    def _encoders(self) -> Sequence[torch.nn.Module]:
        """The text encoders."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> Condition:
        """One row for each text, by the encoders with the LoRAs that are applied to them."""

    @abstractmethod
    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the network with the LoRAs that are applied to it."""

    @torch.inference_mode()
    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """The network's inputs for each text, and the scales of the LoRAs for it."""
        for encoder in self._encoders:
            self._loras.apply(encoder, adapters or {})
        return {**self._encode(texts), **self._loras.condition(adapters, len(texts), self.device)}

    @torch.inference_mode()
    def predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂, each row at its own noise level and with its own LoRAs."""
        return self._predict_rows(z, sigma, condition)

    def differentiate_noise(
        self, z: Tensor, sigma: Tensor, condition: Condition, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ε̂ and (∂ε̂/∂z) e, by forward-mode differentiation."""
        return derivative(lambda rows: self._predict_rows(rows, sigma, condition), z, direction)

    def _predict_rows(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        inputs = dict(condition)
        scales = inputs.pop(LORA_SCALES, None)
        if scales is None:
            if self._compiled and len(z) == 1:
                # torch.compile treats a size of 1 as a constant, and would compile again.
                doubled = {key: torch.cat([value, value]) for key, value in inputs.items()}
                return self._predict_noise(torch.cat([z, z]), torch.cat([sigma, sigma]), doubled)[:1]
            return self._predict_noise(z, sigma, inputs)

        def compute(rows: Tensor) -> Tensor:
            return self._predict_noise(z[rows], sigma[rows], {key: value[rows] for key, value in inputs.items()})

        return self._loras.forward(self._network, scales, compute)

    @abstractmethod
    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """The grid that the model's authors sample it on."""

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures in [0, 1], float32."""
        return self._codec.decode(z)

    def preview(self, z: Tensor) -> Tensor:
        """Small pictures of latents, at little cost."""
        return self._codec.preview(z)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] to latents."""
        return self._codec.encode(images)

    def painted(self, shape: Shape, image: Tensor | None = None, mask: Tensor | None = None) -> Condition:
        """The known picture and the mask for an inpainting network; {} for others."""
        return self._codec.painted(shape, image, mask) if self._card.paints else {}
