"""What the weights of published models take, by family: counted on networks of their configurations, without weights.

What a model takes on top while it computes depends on picture size and rows; `models` measures it for one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks.harness import arguments, report, table
from pipelines.families.folder import count_parameters

SDXL: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2: Mapping[str, Any] = {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD3: Mapping[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
GIB = 2**30


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """Stable Diffusion's, with so many latent channels."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
    )


def clip(width: int, layers: int) -> CLIPTextModelWithProjection:
    """One of CLIP's text models."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    return CLIPTextModelWithProjection(config)


def t5() -> T5EncoderModel:
    """T5-XXL's encoder."""
    return T5EncoderModel(
        T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu")
    )


def families() -> dict[str, tuple[torch.nn.Module, list[torch.nn.Module]]]:
    """The denoising network of each, and what else it loads."""
    large, larger = clip(768, 12), clip(1280, 32)
    return {
        "Stable Diffusion 1.5": (UNet2DConditionModel(cross_attention_dim=768), [autoencoder(), large]),
        "Stable Diffusion 2.1": (UNet2DConditionModel(**SD2), [autoencoder(), clip(1024, 23)]),
        "Stable Diffusion XL": (UNet2DConditionModel(**SDXL), [autoencoder(), large, larger]),
        "PixArt-Σ": (PixArtTransformer2DModel(caption_channels=4096), [autoencoder(), t5()]),
        "Stable Diffusion 3 medium": (SD3Transformer2DModel(**SD3), [autoencoder(16), large, larger, t5()]),
        "… without T5": (SD3Transformer2DModel(**SD3), [autoencoder(16), large, larger]),
        "Flux.1 dev": (FluxTransformer2DModel(guidance_embeds=True), [autoencoder(16), large, t5()]),
    }


def main() -> None:
    """Count, print, write."""
    given = arguments("weights", __doc__)
    with torch.device("meta"):
        made = families()
    numbers = {}
    for name, (network, others) in made.items():
        numbers[name] = {"network": count_parameters(network), "all": count_parameters(network, *others)}
    rows = [
        [
            name,
            f"{count['network'] / 1e9:.2f}",
            f"{count['all'] / 1e9:.2f}",
            f"{count['all'] * 4 / GIB:.1f}",
            f"{count['all'] * 2 / GIB:.1f}",
        ]
        for name, count in numbers.items()
    ]
    header = ["", "denoiser, 10⁹ parameters", "all parts", "GiB in float32", "GiB in 16 bits"]
    report("What weights take", table(header, rows), numbers, given.out)


if __name__ == "__main__":
    main()
