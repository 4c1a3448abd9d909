"""One LoRA a style: worn, it draws in its style what a caption gives none.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022; on the attention and on what the text and
the timestep do to each residual block.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.builtin.emoji.captions import Thing, plain_caption
from pipelines.builtin.fitting import Plan, fit
from pipelines.builtin.train import load_part, new_scheduler, velocity_loss

_RANK: Final = 8
_TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0", "time_emb_proj", "linear_1", "linear_2")
_UNCONDITIONAL: Final = 0.1


def train_lora(
    folder: Path, things: Sequence[Thing], latents: Tensor, plan: Plan, checkpoint: Path, seed: int
) -> UNet2DConditionModel:
    """A denoiser that wears a new LoRA, fitted on one style's pictures under captions that name no style.

    Args:
        folder: The model that is to wear it; its weights stay as they are.
        things: What the pictures show.
        latents: (things, views, 16, 8, 8), of one style.
        plan: How long and how fast.
        checkpoint: Where the run is kept.
        seed: Of all that is random.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = load_part(CLIPTextModel, folder, "text_encoder").requires_grad_(False).eval()
    denoiser = load_part(UNet2DConditionModel, folder, "unet").requires_grad_(False)
    torch.manual_seed(seed)
    denoiser.add_adapter(LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=list(_TARGETS)))
    scheduler = new_scheduler()

    def loss(rng: np.random.Generator) -> Tensor:
        picked, views = rng.integers(len(latents), size=plan.batch), rng.integers(latents.shape[1], size=plan.batch)
        said = ["" if rng.random() < _UNCONDITIONAL else plain_caption(things[i], rng) for i in map(int, picked)]
        tokens = tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return velocity_loss(denoiser, scheduler, latents[picked, views], text_encoder(tokens).last_hidden_state, rng)

    fit(denoiser, loss, plan, checkpoint=checkpoint, label=checkpoint.stem, seed=seed)
    return denoiser


def save_lora(denoiser: UNet2DConditionModel, file: Path) -> None:
    """Save what the denoiser wears, in float16, as diffusers and the programs that share LoRAs read it."""
    weights = {name: value.half() for name, value in get_peft_model_state_dict(denoiser).items()}
    StableDiffusionPipeline.save_lora_weights(file.parent, unet_lora_layers=weights, weight_name=file.name)
