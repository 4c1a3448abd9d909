"""PixArt-Σ and PixArt-α: transformers over latents and T5's states, trained on a variance-preserving schedule.

Σ has the latents of SDXL and α those of Stable Diffusion 1, so each composes with models of that architecture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor

from pipelines.card import Shape
from pipelines.errors import ModelLoadError
from pipelines.families.folder import calibration_path, load_pipeline, read_calibration, skips_no_layers
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import LoraAdapters
from pipelines.families.variance_preserving import VariancePreserving
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions

_TOKENS: Final = {PixArtAlphaPipeline: 120, PixArtSigmaPipeline: 300}


class PixArt(LatentModel):
    """A transformer with cross-attention to T5's states; the largest of α take the pictures' size as an input.

    Args:
        pipeline: The loaded parts.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How to load it.

    References:
        PixArt-α: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis (Chen et al., ICLR
        2024); PixArt-Σ: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image Generation (Chen et al.,
        ECCV 2024).
    """

    kind: type[PixArtAlphaPipeline | PixArtSigmaPipeline] = PixArtSigmaPipeline

    def __init__(
        self,
        pipeline: PixArtAlphaPipeline | PixArtSigmaPipeline,
        error: DenoisingError | None = None,
        options: LoadOptions = DEFAULT_OPTIONS,
    ) -> None:
        skips_no_layers(options)
        self._pipeline, self._transformer = pipeline, pipeline.transformer
        self._path = VariancePreserving(pipeline.scheduler)
        codec = LatentCodec(pipeline.vae, options.space, tiling=options.tiling)
        loras = LoraAdapters(pipeline, {})
        config = self._transformer.config
        card = latent_card(
            codec,
            [self._transformer, pipeline.vae, *self._encoders],
            (self._path.sigma_min, self._path.sigma_max),
            error,
            options,
            side=(config.sample_size, config.sample_size),
            cell=config.patch_size,
            loras=loras,
        )
        super().__init__(codec, card, self._transformer, loras, options)

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder; :meth:`Catalog.get` lists the errors."""
        if source.is_file():
            raise ModelLoadError("PixArt is loaded from a folder in diffusers' layout, not from a single file")
        if options.loras:
            raise ModelLoadError("PixArt takes no LoRAs: diffusers cannot load them for it")
        pipeline = load_pipeline(cls.kind, source, device, dtype, options)
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    @property
    def _encoders(self) -> Sequence[torch.nn.Module]:
        return [self._pipeline.text_encoder]

    def _encode(self, texts: Sequence[str]) -> Condition:
        """T5's states, (R, tokens, width), and the mask of those that are not padding, (R, tokens).

        References:
            diffusers' PixArtSigmaPipeline.encode_prompt, which this calls.
        """
        states, mask, _, _ = self._pipeline.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=False,
            max_sequence_length=_TOKENS[self.kind],
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the transformer, each row at its own timestep."""
        size = self._size(z) if self._transformer.use_additional_conditions else {}
        added = {"resolution": None, "aspect_ratio": None} | size

        def forward(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self._transformer(
                x, timestep=timesteps, added_cond_kwargs=added, return_dict=False, **condition
            )[0]
            # Some networks also output a variance; the calibrated kernel has a better one.
            return output[:, : x.shape[1]]

        return self._path.predict_noise(forward, z, sigma, self._dtype)

    def _size(self, z: Tensor) -> dict[str, Tensor]:
        """The inputs for pictures of this size: resolution (R, 2) and aspect ratio (R, 1)."""
        height, width = (side * self._codec.factor for side in z.shape[2:])
        resolution = torch.tensor([[height, width]], dtype=self._dtype, device=z.device)
        ratio = torch.tensor([[height / width]], dtype=self._dtype, device=z.device)
        return {"resolution": resolution.expand(len(z), -1), "aspect_ratio": ratio.expand(len(z), -1)}

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Equally spaced timesteps."""
        return self._path.own_sigmas(steps)


class PixArtAlpha(PixArt):
    """PixArt-α, whose texts are shorter."""

    kind = PixArtAlphaPipeline
