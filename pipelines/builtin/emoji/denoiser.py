"""The denoiser of `emoji` and its text encoder, trained together on the latents of pictures placed anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.builtin.emoji.autoencoder import CHANNELS, PATCH, Components
from pipelines.builtin.emoji.captions import Thing, caption
from pipelines.builtin.emoji.names import STYLES
from pipelines.builtin.emoji.pictures import GENTLY, SIZE, place
from pipelines.builtin.fitting import Plan, fit, mixed_precision
from pipelines.builtin.train import new_scheduler, velocity_loss

WIDTH: Final = 96
"""Of the text encoder, and so of what the denoiser is told."""


def new_denoiser() -> UNet2DConditionModel:
    """Stable Diffusion's U-Net in small: three levels of 8×8, 4×4 and 2×2, cross-attention at 4×4 and in the middle.

    A pooled text also scales and shifts the features of every residual block, beside the timestep: the quickest way to
    say what the whole picture shows. The 2×2 level is where such a vector, the same everywhere, becomes a layout.
    """
    return UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def encode_views(
    pictures: Tensor, mirrored: Tensor, components: Components, views: int, rng: np.random.Generator
) -> Tensor:
    """Latents of each picture placed anew several times: (pictures, views, 16, 8, 8)."""
    return torch.stack([components(place(pictures, mirrored, rng, GENTLY)) for _ in range(views)], dim=1)


def train_denoiser(
    denoiser: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    things: Sequence[Thing],
    latents: Tensor,
    plan: Plan,
    checkpoint: Path,
    seed: int,
    **options: Any,
) -> None:
    """Fit both to the mean squared error in v, in bfloat16 where the processor multiplies it.

    Args:
        denoiser: Learns.
        text_encoder: Learns with it.
        tokenizer: Parts the captions.
        things: What they are called.
        latents: (things × styles, views, 16, 8, 8), a thing's styles together.
        plan: How long and how fast.
        checkpoint: Where the run is kept.
        seed: Of all that is random.
        options: Of :func:`~pipelines.builtin.fitting.fit`.
    """
    scheduler = new_scheduler()
    # Plain attention trains faster than the fused one where sequences are this short.
    denoiser.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")
    denoiser.to(memory_format=torch.channels_last)

    def loss(rng: np.random.Generator) -> Tensor:
        picked = rng.integers(len(latents), size=plan.batch)
        views = rng.integers(latents.shape[1], size=plan.batch)
        captions = [caption(things[i // len(STYLES)], STYLES[i % len(STYLES)], rng) for i in map(int, picked)]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with mixed_precision():
            condition = text_encoder(tokens).last_hidden_state
            return velocity_loss(denoiser, scheduler, latents[picked, views], condition, rng)

    fit(nn.ModuleList([denoiser, text_encoder]), loss, plan, checkpoint=checkpoint, label="emoji", seed=seed, **options)
