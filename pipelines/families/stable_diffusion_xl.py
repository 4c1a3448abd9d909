"""Stable Diffusion XL, base and inpainting: folders in the layout of diffusers' StableDiffusionXLPipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from pipelines.card import Shape
from pipelines.families.folder import (
    calibration_path,
    load_pipeline,
    read_calibration,
    side,
    skips_no_layers,
)
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import LoraAdapters
from pipelines.families.stable_diffusion import is_inpainting, with_canvas
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.families.weighting import WeightedEncoder, stack
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions


class StableDiffusionXL(LatentModel):
    """A U-Net with cross-attention to two CLIP text encoders; the pictures' size is one of its inputs.

    Args:
        pipeline: The loaded parts.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How to load it.
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
        skips_no_layers(options)  # its prompts skip the last layer already
        tokenizers = [t for t in (pipeline.tokenizer, pipeline.tokenizer_2) if t is not None]
        self._weighted = WeightedEncoder(tokenizers, self._encoders, penultimate=True, pooled=True)

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a single file of safetensors; :meth:`Catalog.get` lists the errors."""
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

        The states of the empty text are zeros if the model was trained so (``force_zeros_for_empty_prompt``), as in
        diffusers for an absent negative prompt.

        References:
            diffusers' StableDiffusionXLPipeline.encode_prompt, which this calls; for weights and long texts,
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
            given = torch.tensor([bool(text) for text in texts], device=states.device)
            states, pooled = states * given[:, None, None], pooled * given[:, None]
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the U-Net, each row at its own timestep."""
        height, width = (side * self._codec.factor for side in z.shape[2:])
        # Original size, crop, target size: pictures of this size, not cropped.
        time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=self._dtype, device=z.device)
        added = {"text_embeds": condition["text_embeds"], "time_ids": time_ids.expand(len(z), -1)}

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self._unet(
                with_canvas(x, condition),
                timesteps,
                condition["encoder_hidden_states"],
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
            return output

        return self._path.predict_noise(forward, z, sigma, self._dtype)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Equally spaced timesteps."""
        return self._path.own_sigmas(steps)
