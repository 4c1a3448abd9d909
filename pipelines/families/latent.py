"""What all models over an autoencoder's latents share: the autoencoder, sizes, and the card."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from pipelines.families.folder import count_bytes, count_parameters, fingerprint
from pipelines.families.lora import WORN, Wardrobe
from pipelines.families.preview import apply_colours, fit_colours
from pipelines.families.speed import speed_up
from pipelines.kernel import DenoisingError
from pipelines.model import Card, Condition, DataSpace, Guidance, LoadOptions, Shape, check_size
from pipelines.noise import Grid

LATENT_STD: Final = 1.0
"""Latents are scaled to unit variance, so that is what an unmeasured model's error curve assumes."""
_CHEAP_AUTOENCODER: Final = 4_000_000
_KEPT: Final = 0.5


class LatentCodec:
    """AutoencoderKL between pictures and latents of zero mean and unit variance.

    Args:
        vae: The autoencoder.
        space: The name of the data space that it is said to be of; empty for its own.
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
        """Small autoencoders decode; for large ones a linear map from latents to colours, one pixel a latent cell."""
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
        """What Stable Diffusion's inpainting networks read beside the noisy latents, one row.

        ``mask`` (1, 1, h, w), 1 where painted; ``masked`` (1, channels, h, w), the latents of the picture with grey
        where it is painted.

        References:
            diffusers' StableDiffusionInpaintPipeline, prepare_mask_latents.
        """
        height, width = shape[1] * self.factor, shape[2] * self.factor
        image = torch.full((1, 3, height, width), 0.5) if image is None else image
        mask = torch.ones(1, 1, height, width) if mask is None else mask
        mask = (mask >= _KEPT).float()
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
    adapters: tuple[str, ...],
    guidance: Guidance = Guidance.CLASSIFIER_FREE,
    grid: Grid = Grid.KARRAS,
    paints: bool = False,
) -> Card:
    """The card of a model over latents.

    Args:
        codec: The autoencoder.
        networks: All that holds weights.
        levels: The smallest and the largest σ.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How it is to be loaded.
        side: Its native width and height, in latent cells.
        cell: What numbers of latent cells are multiples of, along a side.
        adapters: Its LoRAs.
        guidance: What a guidance scale means to it.
        grid: How its noise levels are best spaced.
        paints: Whether it is an inpainting model.
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
        memory=count_bytes(*networks),
        calibrated=error is not None,
        guidance=guidance,
        grid=grid,
        adapters=adapters,
        paints=paints,
        multiple=codec.factor * cell,
    )


class LatentModel(ABC):
    """A model over latents; its family adds the network and its prompts.

    Args:
        codec: The autoencoder.
        card: What it is.
        network: The denoising network.
        wardrobe: Its LoRAs.
        options: How it is to be loaded.
    """

    def __init__(
        self, codec: LatentCodec, card: Card, network: torch.nn.Module, wardrobe: Wardrobe, options: LoadOptions
    ) -> None:
        self._codec, self._card, self._network, self._wardrobe = codec, card, network, wardrobe
        speed_up(network, options)
        self._compiled = options.compile

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    @property
    def device(self) -> torch.device:
        """Where it computes."""
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
        """One row a text, by the encoders as they are dressed."""

    @abstractmethod
    def _denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0 by one forward of the network as it is dressed."""

    @torch.inference_mode()
    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """What the network is told of each text, and which LoRAs it wears for it."""
        for encoder in self._encoders:
            self._wardrobe.dress(encoder, adapters or {})
        return {**self._encode(texts), **self._wardrobe.worn(adapters, len(texts), self.device)}

    @torch.inference_mode()
    def denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0, every row at its own noise level and with its own LoRAs."""
        told = dict(condition)
        worn = told.pop(WORN, None)
        if worn is None:
            if self._compiled and len(z) == 1:
                # torch.compile would take one row for a constant, and compile again.
                doubled = {key: torch.cat([value, value]) for key, value in told.items()}
                return self._denoised(torch.cat([z, z]), torch.cat([sigma, sigma]), doubled)[:1]
            return self._denoised(z, sigma, told)

        def compute(rows: Tensor) -> Tensor:
            return self._denoised(z[rows], sigma[rows], {key: value[rows] for key, value in told.items()})

        return self._wardrobe.forward(self._network, worn, compute)

    @abstractmethod
    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """The grid that the model's makers sample it with."""

    def sample_shape(self, width: int, height: int) -> Shape:
        """(channels, height / factor, width / factor); sizes must be multiples of what the network can halve."""
        check_size(width, height, self._card.multiple)
        return self._codec.channels, height // self._codec.factor, width // self._codec.factor

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
        """The known picture and the mask, for a network that reads them; nothing for others."""
        return self._codec.painted(shape, image, mask) if self._card.paints else {}
