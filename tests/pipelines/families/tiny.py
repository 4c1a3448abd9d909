"""Small randomly initialised models of the real classes, as diffusers' own tests make them."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pipelines.builtin.vocabulary import MAX_TOKENS, write_tokenizer

PREDICTIONS = ("epsilon", "v_prediction", "sample")


WIDTH = 16


def tokenizer_beside(folder):
    return write_tokenizer(folder.parent / f"{folder.name}-tokenizer")


def autoencoder(latent_channels=4, **config):
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def clip(tokenizer, kind=CLIPTextModel, layers=2):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def t5(width=WIDTH):
    letters = [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=2 * WIDTH, d_kv=8, num_heads=2, num_layers=2, pad_token_id=0
    )
    return tokenizer, T5EncoderModel(config)


def unet(latent_channels=4, **config):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        | config
    )


def scheduler(prediction="epsilon", **config):
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **config,
    )


def saved(pipeline, folder):
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion(
    folder, *, prediction="epsilon", seed=0, latent_channels=4, hearing=1.0, inpainting=False, zero_snr=False
):
    """A Stable Diffusion pipeline of random weights, saved in ``folder``.

    Fresh networks hardly listen to their prompts; ``hearing`` scales the weights by which they do.
    """
    torch.manual_seed(seed)
    tokenizer = tokenizer_beside(folder)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(latent_channels),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(latent_channels, **({"in_channels": 2 * latent_channels + 1} if inpainting else {})),
        scheduler=scheduler(prediction, rescale_betas_zero_snr=zero_snr),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for name, parameter in pipeline.unet.named_parameters():
        if "attn2" in name:
            parameter.data.mul_(hearing)
    return saved(pipeline, folder)


def stable_diffusion_xl(folder, *, seed=0):
    """A Stable Diffusion XL pipeline of random weights, saved in ``folder``."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_beside(folder)
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip(tokenizer),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, layers=3),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=scheduler(),
        add_watermarker=False,
    )
    return saved(pipeline, folder)


def stable_diffusion_3(folder, *, seed=0, with_t5=True):
    """A Stable Diffusion 3 pipeline of random weights, saved in ``folder``."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_beside(folder)
    t5_tokenizer, t5_encoder = t5(2 * WIDTH)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=32,
        ),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, layers=3),
        text_encoder_3=t5_encoder if with_t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer if with_t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    # Fresh output layers are zero; then nothing that comes before them would show.
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.1)
    return saved(pipeline, folder)


def pixart(folder, *, kind=PixArtSigmaPipeline, seed=0, size_inputs=False):
    """A PixArt pipeline of random weights, saved in ``folder``."""
    torch.manual_seed(seed)
    tokenizer, encoder = t5(WIDTH)
    pipeline = kind(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=24,
            sample_size=8,
            caption_channels=WIDTH,
            use_additional_conditions=size_inputs,
        ),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False),
    )
    return saved(pipeline, folder)


def flux(folder, *, seed=0, distilled=True):
    """A Flux pipeline of random weights, saved in ``folder``."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_beside(folder)
    t5_tokenizer, t5_encoder = t5()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=8,
            max_image_seq_len=64,
        ),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder,
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.1)
    return saved(pipeline, folder)


def unconditional(folder, *, seed=0, channels=3):
    """A DDPM pipeline of random weights, saved in ``folder``."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    pipeline = DDPMPipeline(network, DDPMScheduler(clip_sample=False))
    return saved(pipeline, folder)
