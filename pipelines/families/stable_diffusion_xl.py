"""Stable Diffusion XL, base and inpainting: any folder in the layout of diffusers' StableDiffusionXLPipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from pipelines.families.folder import (
    calibration_path,
    load_pipeline,
    read_calibration,
    side,
    skips_no_layers,
)
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import Wardrobe
from pipelines.families.stable_diffusion import beside, paints
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.families.weighting import WeightedEncoder, stack
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions, Shape


class StableDiffusionXL(LatentModel):
    """A U-Net with cross-attention to two CLIP text encoders, told its pictures' size.

    Args:
        pipeline: Its parts, loaded.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How it is to be loaded.
    """

    def __init__(
        self,
        pipeline: StableDiffusionXLPipeline,
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
        skips_no_layers(options)  # it leaves one out already
        tokenizers = [t for t in (pipeline.tokenizer, pipeline.tokenizer_2) if t is not None]
        self._weighted = WeightedEncoder(tokenizers, self._encoders, penultimate=True, pooled=True)

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a file of safetensors; :meth:`Catalog.get` says what is raised where it cannot be."""
        pipeline = load_pipeline(StableDiffusionXLPipeline, source, device, dtype, options, add_watermarker=False)
        if dtype is torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.to(torch.float32)  # as diffusers does where it decodes: in float16 it overflows
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    @property
    def _encoders(self) -> Sequence[torch.nn.Module]:
        encoders = self._pipeline.text_encoder, self._pipeline.text_encoder_2
        return [encoder for encoder in encoders if encoder is not None]

    def _encode(self, texts: Sequence[str]) -> Condition:
        """The two encoders' penultimate states, (R, tokens, widths together), and the second's pooled one, (R, width).

        The empty text is all zeros where the model was trained so (``force_zeros_for_empty_prompt``), as diffusers has
        it for an absent negative prompt.

        References:
            diffusers' StableDiffusionXLPipeline.encode_prompt, which this calls; for what it cannot read,
            :mod:`pipelines.families.weighting`.
        """
        plain = [self._weighted.plain(text) for text in texts]
        if None not in plain:
            states, _, pooled, _ = self._pipeline.encode_prompt(
                plain, device=self.device, do_classifier_free_guidance=False
            )
        else:
            encoded = [self._weighted.encode(text) for text in texts]
            states = stack([row for row, _ in encoded]).to(self._dtype)
            pooled = torch.cat([row for _, row in encoded if row is not None]).to(self._dtype)
        if self._pipeline.config.get("force_zeros_for_empty_prompt", True):
            said = torch.tensor([bool(text) for text in texts], device=states.device)
            states, pooled = states * said[:, None, None], pooled * said[:, None]
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def _denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x̂0 by one forward of the U-Net, every row at its own timestep."""
        height, width = (side * self._codec.factor for side in z.shape[2:])
        # Original size, crop, target size: a picture of just this size, not cropped.
        time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=self._dtype, device=z.device)
        added = {"text_embeds": condition["text_embeds"], "time_ids": time_ids.expand(len(z), -1)}

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self._unet(
                beside(x, condition),
                timesteps,
                condition["encoder_hidden_states"],
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
            return output

        return self._path.denoised(forward, z, sigma, self._dtype)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Timesteps equally spaced."""
        return self._path.own_sigmas(steps)
