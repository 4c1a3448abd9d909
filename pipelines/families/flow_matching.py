"""Stable Diffusion 3 and Flux: transformers trained by flow matching, x_t = (1 − t) x_0 + t ε."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor

from pipelines.card import Guidance, Shape
from pipelines.families.folder import (
    calibration_path,
    load_pipeline,
    read_calibration,
    skips_no_layers,
)
from pipelines.families.latent import LatentCodec, LatentModel, latent_card
from pipelines.families.lora import LoraAdapters
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, Condition, LoadOptions
from pipelines.noise import SIGMA_LIMIT, Grid, flow_sigma, flow_time
from pipelines.prediction import Prediction, network_input, to_noise

_TIMESTEPS: Final = 1000.0
_SIGMA_MIN: Final = 1e-3
_PATCH: Final = 2


class FlowPath:
    """The noise levels of a flow-matching model.

    Args:
        scheduler: The model's own, which sets the grids.
        from_one: Whether the model's pipeline passes the times 1 to 1/N to the scheduler, which shifts them; otherwise
            the scheduler chooses the times.
    """

    sigma_min: Final = _SIGMA_MIN
    sigma_max: Final = SIGMA_LIMIT

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, *, from_one: bool) -> None:
        self._scheduler, self._from_one = scheduler, from_one

    def own_sigmas(self, steps: int, tokens: int) -> Tensor:
        """Equally spaced times, shifted as the model's scheduler shifts them for this number of tokens.

        References:
            Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., ICML 2024), section
            5.3.2, for the reason; diffusers' FlowMatchEulerDiscreteScheduler and calculate_shift for the method.
        """
        scheduler = copy.deepcopy(self._scheduler)
        config = scheduler.config
        mu = None
        if config.get("use_dynamic_shifting", False):
            base, largest = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
            mu = low + (high - low) * (tokens - base) / (largest - base)
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps) if self._from_one else None, mu=mu)
        sigmas = flow_sigma(scheduler.sigmas.double())[:-1].clamp(min=self.sigma_min)
        beyond = int((sigmas >= self.sigma_max).sum())
        if 0 < beyond < len(sigmas):
            # Times close to 1 give σ far above the useful range. The same number of levels is placed from the largest
            # usable σ down to the first one below it.
            ends = math.log(self.sigma_max), float(sigmas[beyond].log())
            sigmas[1 : beyond + 1] = torch.linspace(*ends, beyond + 1, dtype=torch.float64)[1:].exp()
        return torch.cat([sigmas.clamp(max=self.sigma_max), sigmas.new_zeros(1)])


class _FlowModel(LatentModel):
    """The common part of Stable Diffusion 3 and Flux."""

    def __init__(
        self,
        pipeline: Any,
        path: FlowPath,
        error: DenoisingError | None,
        options: LoadOptions,
        *,
        guidance: Guidance,
        side: int,
        cell: int,
        max_cells: int | None = None,
    ) -> None:
        self._pipeline, self._transformer, self._path = pipeline, pipeline.transformer, path
        skips_no_layers(options)
        codec = LatentCodec(pipeline.vae, options.space, tiling=options.tiling)
        loras = LoraAdapters(pipeline, options.loras)
        card = latent_card(
            codec,
            [self._transformer, pipeline.vae, *self._encoders],
            (self._path.sigma_min, self._path.sigma_max),
            error,
            options,
            side=(side, side),
            cell=cell,
            loras=loras,
            guidance=guidance,
            grid=Grid.OWN,
            max_cells=max_cells,
        )
        super().__init__(codec, card, self._transformer, loras, options)
        self._cell = cell

    @property
    def _encoders(self) -> Sequence[torch.nn.Module]:
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        return [encoder for name in names if (encoder := getattr(self._pipeline, name, None)) is not None]

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Equally spaced times, shifted for the pictures' size."""
        return self._path.own_sigmas(steps, shape[1] // self._cell * (shape[2] // self._cell))


class StableDiffusion3(_FlowModel):
    """A transformer with joint attention over latents and the states of up to three text encoders.

    Args:
        pipeline: The loaded parts; the third encoder (T5) may be missing.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How to load it.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        error: DenoisingError | None = None,
        options: LoadOptions = DEFAULT_OPTIONS,
    ) -> None:
        config = pipeline.transformer.config
        path = FlowPath(pipeline.scheduler, from_one=False)
        super().__init__(
            pipeline,
            path,
            error,
            options,
            guidance=Guidance.CLASSIFIER_FREE,
            side=config.sample_size,
            cell=config.patch_size,
            # The transformer's table of positions has this many patches along a side.
            max_cells=config.pos_embed_max_size * config.patch_size,
        )

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a single file of safetensors; :meth:`Catalog.get` lists the errors."""
        with_t5 = source.is_file() or (source / "text_encoder_3").exists()
        without = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = load_pipeline(StableDiffusion3Pipeline, source, device, dtype, options, **without)
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    def _encode(self, texts: Sequence[str]) -> Condition:
        """All encoders' states in one sequence, (R, tokens, width), and the CLIP encoders' pooled ones, (R, widths).

        References:
            diffusers' StableDiffusion3Pipeline.encode_prompt, which this calls.
        """
        states, _, pooled, _ = self._pipeline.encode_prompt(
            list(texts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the transformer, each row at its own time."""
        x = network_input(Prediction.FLOW, z, sigma).to(self._dtype)
        output = self._transformer(
            hidden_states=x,
            timestep=(flow_time(sigma) * _TIMESTEPS).to(torch.float32),
            return_dict=False,
            **condition,
        )[0]
        return to_noise(Prediction.FLOW, output.to(z.dtype), z, sigma)


class Flux(_FlowModel):
    """A transformer over 2×2 patches of latents and T5's states.

    Its guidance is distilled (FLUX.1-dev: the scale is an input) or absent (FLUX.1-schnell).

    Args:
        pipeline: The loaded parts.
        error: Its measured m(σ), None for the Gaussian fallback.
        options: How to load it.
    """

    def __init__(
        self, pipeline: FluxPipeline, error: DenoisingError | None = None, options: LoadOptions = DEFAULT_OPTIONS
    ) -> None:
        guidance = Guidance.DISTILLED if pipeline.transformer.config.guidance_embeds else Guidance.NONE
        path = FlowPath(pipeline.scheduler, from_one=True)
        side = pipeline.default_sample_size
        super().__init__(pipeline, path, error, options, guidance=guidance, side=side, cell=_PATCH)

    @classmethod
    def load(
        cls, source: Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = DEFAULT_OPTIONS
    ) -> Self:
        """Load a folder or a single file of safetensors; :meth:`Catalog.get` lists the errors."""
        pipeline = load_pipeline(FluxPipeline, source, device, dtype, options)
        return cls(pipeline, read_calibration(calibration_path(source)), options)

    def _encode(self, texts: Sequence[str]) -> Condition:
        """T5's states, (R, tokens, width), and CLIP's pooled one, (R, width).

        References:
            diffusers' FluxPipeline.encode_prompt, which this calls.
        """
        states, pooled, _ = self._pipeline.encode_prompt(list(texts), None, device=self.device)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """ε̂ by one forward of the transformer, each row at its own time."""
        x = network_input(Prediction.FLOW, z, sigma).to(self._dtype)
        rows, height, width = len(z), z.shape[2] // _PATCH, z.shape[3] // _PATCH
        places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(height), torch.arange(width)).to(x)
        words = torch.zeros(condition["encoder_hidden_states"].shape[1], 3).to(x)
        output = self._transformer(
            hidden_states=_packed(x),
            timestep=flow_time(sigma).to(self._dtype),
            img_ids=places,
            txt_ids=words,
            return_dict=False,
            **({"guidance": None} | dict(condition)),
        )[0]
        unpacked = output.reshape(rows, height, width, -1, _PATCH, _PATCH).permute(0, 3, 1, 4, 2, 5).reshape(z.shape)
        return to_noise(Prediction.FLOW, unpacked.to(z.dtype), z, sigma)


def _packed(x: Tensor) -> Tensor:
    """(R, c, h, w) → (R, h/2 · w/2, 4c): each 2×2 patch becomes one token, in Flux's order."""
    rows, channels, height, width = x.shape
    patches = x.reshape(rows, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * _PATCH**2)
