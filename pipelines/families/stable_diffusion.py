"""Stable Diffusion 1 and 2, base and inpainting: folders in the layout of diffusers' StableDiffusionPipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from pipelines.card import Shape
from pipelines.errors import ModelLoadError
from pipelines.families.folder import (
    calibration_path,
    load_pipeline,
    read_calibration,
    side,
)
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import LoraAdapters
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.families.weighting import WeightedEncoder, stack
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions


class StableDiffusion(LatentModel):
    """A U-Net with cross-attention to CLIP's text encoder, over an autoencoder's latents.

    Args:
        pipeline: The loaded parts.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How to load it.
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
        loras = LoraAdapters(pipeline, options.loras)
        card = latent_card(
            codec,
            [self._unet, pipeline.vae, *self._encoders],
            (self._path.sigma_min, self._path.sigma_max),
            error,
            options,
            side=side(self._unet.config.sample_size),
            cell=2 ** (len(self._unet.config.block_out_channels) - 1),
            loras=loras,
            paints=is_inpainting(self._unet.config, codec.channels),
        )
        super().__init__(codec, card, self._unet, loras, options)
        skip_layers(pipeline.text_encoder, options.clip_skip)
        self._weighted = WeightedEncoder([pipeline.tokenizer], [pipeline.text_encoder])

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a single file of safetensors; :meth:`Catalog.get` lists the errors."""
        without = {"safety_checker": None, "requires_safety_checker": False}
        pipeline = load_pipeline(StableDiffusionPipeline, source, device, dtype, options, **without)
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    @property
    def _encoders(self) -> Sequence[torch.nn.Module]:
        return [self._pipeline.text_encoder]

    def _encode(self, texts: Sequence[str]) -> Condition:
        """CLIP's last hidden states, (R, tokens, width); words may have weights, and long texts are encoded in pieces.

        References:
            diffusers' StableDiffusionPipeline.encode_prompt, which this calls; for weights and long texts,
            :mod:`pipelines.families.weighting`.
        """
        plain = [self._weighted.plain(text) for text in texts]
        if None not in plain:
            embedded, _ = self._pipeline.encode_prompt(plain, self.device, 1, False)
        else:
            embedded = stack([self._weighted.encode(text)[0] for text in texts]).to(self._dtype)
        return {"encoder_hidden_states": embedded}

    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the U-Net, each row at its own timestep."""

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            states = condition["encoder_hidden_states"]
            output: Tensor = self._unet(with_canvas(x, condition), timesteps, states, return_dict=False)[0]
            return output

        return self._path.predict_noise(forward, z, sigma, self._dtype)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Equally spaced timesteps."""
        return self._path.own_sigmas(steps)


def skip_layers(encoder: torch.nn.Module, count: int) -> None:
    """Remove the last ``count`` layers of a CLIP text model in place; its final norm follows the remaining ones.

    References:
        ``clip_skip`` of diffusers' StableDiffusionPipeline.encode_prompt.
    """
    layers: Any = getattr(encoder, "text_model", encoder).get_submodule("encoder.layers")
    if count >= len(layers):
        raise ModelLoadError(f"clip_skip is {count}, but its text encoder has {len(layers)} layers")
    del layers[len(layers) - count :]


def is_inpainting(unet: Mapping[str, int], latents: int) -> bool:
    """Whether a U-Net takes a mask and a masked picture beside the latents.

    Args:
        unet: Its configuration.
        latents: Channels of the autoencoder's latents.

    Raises:
        ModelLoadError: Its channels fit neither the latents alone nor the latents with both.
    """
    inputs, outputs = unet["in_channels"], unet["out_channels"]
    if outputs != latents or inputs not in {latents, 2 * latents + 1}:
        detail = f"its U-Net takes {inputs} channels and gives {outputs}, but its autoencoder has {latents}"
        raise ModelLoadError(detail)
    return inputs != latents


def with_canvas(x: Tensor, condition: Condition) -> Tensor:
    """The U-Net's input: the latents, followed by the mask and the masked picture's latents for an inpainting one."""
    if "mask" not in condition:
        return x
    return torch.cat([x, condition["mask"].to(x), condition["masked"].to(x)], dim=1)
