"""Pipelines in the layout of the original Stable Diffusion code: one file, other names."""

import re

from safetensors.torch import save_file

RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
OUTER = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)


def _first(name, pairs):
    for ours, theirs in pairs:
        if re.match(rf"{re.escape(ours)}(\.|$)", name):
            return theirs + name[len(ours) :]
    return name


def unet_name(name, unet):
    """down_blocks.1.resnets.0.norm1.weight → input_blocks.3.0.in_layers.0.weight."""
    layers = unet.config.layers_per_block
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        attends = hasattr(getattr(unet, f"{way}_blocks")[block], "attentions")
        if way == "down":
            place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
            slot, stem = {"resnets": 0, "attentions": 1, "downsamplers": 0}[kind], "input_blocks"
        else:
            place = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
            slot, stem = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[kind], "output_blocks"
        if kind == "resnets":
            rest = _first(rest, RESNET)
        elif kind == "downsamplers":
            rest = rest.replace("conv", "op")
        return f"{stem}.{place}.{slot}.{rest}"
    if found := re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name):
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_first(found[3], RESNET)}"
    return _first(name, OUTER)


def vae_name(name, vae):
    """encoder.down_blocks.0.resnets.1.conv_shortcut.weight → encoder.down.0.block.1.nin_shortcut.weight."""
    last = len(vae.config.block_out_channels) - 1
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    return name


def write_single_file(pipeline, path):
    """A Stable Diffusion 1 pipeline as one safetensors file in the original layout."""
    state = {}
    for name, weight in pipeline.unet.state_dict().items():
        state[f"model.diffusion_model.{unet_name(name, pipeline.unet)}"] = weight
    for name, weight in pipeline.vae.state_dict().items():
        original = vae_name(name, pipeline.vae)
        # The original's attention is made of 1×1 convolutions.
        as_convolution = "mid.attn_1" in original and weight.ndim == 2
        state[f"first_stage_model.{original}"] = weight[:, :, None, None] if as_convolution else weight
    for name, weight in pipeline.text_encoder.state_dict().items():
        whole = name if name.startswith("text_model.") else f"text_model.{name}"
        state[f"cond_stage_model.transformer.{whole}"] = weight
    save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    return path
