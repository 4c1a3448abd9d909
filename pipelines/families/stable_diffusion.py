"""Stable Diffusion 1 and 2, inpainting ones too: any folder in the layout of diffusers' StableDiffusionPipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from pipelines.errors import ModelLoadError
from pipelines.families.folder import (
    calibration_path,
    load_pipeline,
    read_calibration,
    side,
)
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import Wardrobe
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.families.weighting import WeightedEncoder, stack
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions, Shape


class StableDiffusion(LatentModel):
    """A U-Net with cross-attention to CLIP's text encoder, over an autoencoder's latents.

    Args:
        pipeline: Its parts, loaded.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How it is to be loaded.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        error: DenoisingError | None = None,
        options: LoadOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._pipeline, self._unet = pipeline, pipeline.unet
        self._path = VariancePreserving(pipeline.scheduler)
        codec = LatentCodec(pipeline.vae, options.space, tiling=options.tiling)
        wardrobe = Wardrobe(pipeline, options.loras)
        card = latent_card(
            codec,
            [self._unet, pipeline.vae, *self._encoders],
            (self._path.sigma_min, self._path.sigma_max),
            error,
            options,
            side=side(self._unet.config.sample_size),
            cell=2 ** (len(self._unet.config.block_out_channels) - 1),
            adapters=wardrobe.names,
            paints=paints(self._unet.config, codec.channels),
        )
        super().__init__(codec, card, self._unet, wardrobe, options)
        skip_layers(pipeline.text_encoder, options.clip_skip)
        self._weighted = WeightedEncoder([pipeline.tokenizer], [pipeline.text_encoder])

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a file of safetensors; :meth:`Catalog.get` says what is raised where it cannot be."""
        without = {"safety_checker": None, "requires_safety_checker": False}
        pipeline = load_pipeline(StableDiffusionPipeline, source, device, dtype, options, **without)
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    @property
    def _encoders(self) -> Sequence[torch.nn.Module]:
        return [self._pipeline.text_encoder]

    def _encode(self, texts: Sequence[str]) -> Condition:
        """CLIP's last hidden states, (R, tokens, width), with the weights of words, and long texts in pieces.

        References:
            diffusers' StableDiffusionPipeline.encode_prompt, which this calls; for what it cannot read,
            :mod:`pipelines.families.weighting`.
        """
        plain = [self._weighted.plain(text) for text in texts]
        if None not in plain:
            embedded, _ = self._pipeline.encode_prompt(plain, self.device, 1, False)
        else:
            embedded = stack([self._weighted.encode(text)[0] for text in texts]).to(self._dtype)
        return {"encoder_hidden_states": embedded}

    def _denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0 by one forward of the U-Net, every row at its own timestep."""

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            states = condition["encoder_hidden_states"]
            output: Tensor = self._unet(beside(x, condition), timesteps, states, return_dict=False)[0]
            return output

        return self._path.denoised(forward, z, sigma, self._dtype)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Timesteps equally spaced."""
        return self._path.own_sigmas(steps)


def skip_layers(encoder: torch.nn.Module, count: int) -> None:
    """Leave out the last ``count`` layers of a CLIP text model for good; its final norm follows what is left.

    References:
        ``clip_skip`` of diffusers' StableDiffusionPipeline.encode_prompt.
    """
    layers: Any = getattr(encoder, "text_model", encoder).get_submodule("encoder.layers")
    if count >= len(layers):
        raise ModelLoadError(f"clip_skip is {count}, but its text encoder has {len(layers)} layers")
    del layers[len(layers) - count :]


def paints(unet: Mapping[str, int], latents: int) -> bool:
    """Whether a U-Net reads a mask and a masked picture beside the latents; raises where it fits neither way."""
    taken, given = unet["in_channels"], unet["out_channels"]
    if given != latents or taken not in {latents, 2 * latents + 1}:
        raise ModelLoadError(f"its U-Net takes {taken} channels and gives {given}, but its autoencoder has {latents}")
    return taken != latents


def beside(x: Tensor, condition: Condition) -> Tensor:
    """The U-Net's input: the latents, and for an inpainting one the mask and the masked picture's latents."""
    if "mask" not in condition:
        return x
    return torch.cat([x, condition["mask"].to(x), condition["masked"].to(x)], dim=1)
