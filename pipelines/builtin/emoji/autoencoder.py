"""The autoencoder of `emoji`: an encoder that is written down, a decoder that learns.

The 64×64×3 pixels are cut into 8×8 patches, and the latents are the first sixteen principal components of a patch:
8×8×16 numbers. Such an encoder needs no training, is linear (the mean of two latents is that of the mean picture),
gives uncorrelated channels, and lets the denoiser learn before the decoder has. It is written into the convolutions of
diffusers' AutoencoderKL, so any program that reads Stable Diffusion folders computes it:

* three strided convolutions gather 2×2, 4×4 and 8×8 pixels; the residual branches between them are zero;
* the group normalisation and SiLU at the end are undone. Each component stands there as (u, −u) beside constants of ±K,
  which keep the group's deviation the same for every picture as long as K ≫ |u|, and
  SiLU(u) − SiLU(−u) = u·(sigmoid(u) + sigmoid(−u)) = u.
"""

from math import sqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from pipelines.builtin.emoji.pictures import SIZE, on_ground, place
from pipelines.builtin.fitting import Plan, fit, mixed_precision

CHANNELS: Final = 16
PATCH: Final = 8
_WIDTHS: Final = (16, 32, 64, 128)
_GROUPS: Final = 8
_COLOURS: Final = 3
_PATCH_NUMBERS: Final = _COLOURS * PATCH**2
_CONSTANT: Final = 64.0
"""K; components have unit variance and seldom pass 6, which moves the group's deviation by 0.2 %."""
_LOG_VARIANCE: Final = -12.0
_WHITENING: Final = 0.5
_LATENT_NOISE: Final = 0.25
_EDGES: Final = 0.5


class Components(NamedTuple):
    """The affine map from patches to latents, z = matrix·patch + offset.

    Attributes:
        matrix: (16, 192); a patch's numbers are in the order of ``pixel_unshuffle``: colour, row, column.
        offset: (16,).
    """

    matrix: Tensor
    offset: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) in [−1, 1] to latents (n, 16, h/8, w/8)."""
        patches = functional.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1)
        return (patches @ self.matrix.T + self.offset).permute(0, 3, 1, 2)


def principal_components(images: Tensor) -> Components:
    """The components of the images' patches, half whitened.

    Component i, of standard deviation s_i, is divided by √s_i, and all together are scaled to unit variance. Wholly
    whitened, the denoiser would spend as much on the faintest texture as on a patch's colour; not whitened, it would
    hardly learn the texture.
    """
    patches = functional.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1).reshape(-1, _PATCH_NUMBERS).double()
    variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
    variances, vectors = variances.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    # The sign of an eigenvector is the solver's whim; a positive sum makes it the same on every machine.
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    scaled = vectors.T / variances[:, None] ** (_WHITENING / 2)
    matrix = scaled / (variances ** (1 - _WHITENING)).mean().sqrt()
    return Components(matrix.float(), -(matrix @ patches.mean(0)).float())


@torch.no_grad()
def read_components(autoencoder: AutoencoderKL) -> Components:
    """The map that an autoencoder's encoder was written with, read off its answers to single pixels."""
    pixels = torch.eye(_PATCH_NUMBERS).reshape(-1, _COLOURS, PATCH, PATCH)
    answers = autoencoder.encode(torch.cat([torch.zeros_like(pixels[:1]), pixels])).latent_dist.mean.flatten(1)
    return Components((answers[1:] - answers[0]).T.contiguous(), answers[0])


def new_autoencoder(components: Components) -> AutoencoderKL:
    """The autoencoder with its encoder written; its decoder knows nothing yet."""
    autoencoder = AutoencoderKL(
        block_out_channels=_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=_GROUPS,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        write_encoder(autoencoder, components)
        for module in autoencoder.decoder.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.zero_()  # the block starts as the identity, which trains faster
    return autoencoder.to(memory_format=torch.channels_last)


def write_encoder(autoencoder: AutoencoderKL, components: Components) -> None:
    """Set the encoder's weights so that the posterior's mean is ``components`` of the picture."""
    encoder = autoencoder.encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    encoder.conv_in.weight[:_COLOURS, :, 1, 1] = torch.eye(_COLOURS)
    within, across = _factors(components.matrix)
    halves = [block.downsamplers[0].conv for block in encoder.down_blocks[:3]]
    for colour in range(_COLOURS):
        for row in range(2):
            for column in range(2):
                halves[0].weight[4 * colour + 2 * row + column, colour, row, column] = 1
    halves[1].weight[: len(within), :12, :2, :2] = within
    halves[2].weight[:CHANNELS, : len(within), :2, :2] = across
    halves[2].bias[:CHANNELS] = components.offset
    for block in encoder.down_blocks[1:3]:
        shortcut = block.resnets[0].conv_shortcut
        shortcut.weight[: shortcut.in_channels, :, 0, 0] = torch.eye(shortcut.in_channels)
    _write_output(encoder)
    for convolution in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        convolution.weight[:, :, 0, 0] = torch.eye(len(convolution.weight))
        convolution.bias.zero_()


def _factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The 8×8 components by way of 4×4 quadrants: what is kept of a quadrant, and how quadrants add up.

    Returns:
        (32, 12, 2, 2), from a 2×2 block of cells that hold 2×2 pixels each, in the order colour, row, column, to the
        directions in which any component looks at a quadrant (the singular vectors: 32 of 48 hold nearly all); and
        (16, 32, 2, 2), from four quadrants to the components.
    """
    # Row = (quadrant, cell, pixel), column likewise.
    views = matrix.double().reshape(CHANNELS, _COLOURS, 2, 2, 2, 2, 2, 2)
    views = views.permute(0, 2, 5, 1, 4, 7, 3, 6)  # component; quadrant's place; colour, pixel's place; cell's place
    flat = views.reshape(CHANNELS * 4, 48)
    kept = torch.linalg.svd(flat, full_matrices=False)[2][: _WIDTHS[1]]
    across = (flat @ kept.T).reshape(CHANNELS, 2, 2, len(kept)).permute(0, 3, 1, 2)
    return kept.reshape(-1, 12, 2, 2).float(), across.float()


def _write_output(encoder: Any) -> None:
    """Undo normalisation and SiLU: pairs (u, −u) beside constants, see the head of this file."""
    spread, norm, out = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out
    size = _WIDTHS[3] // _GROUPS
    each = CHANNELS // _GROUPS
    constants = size - 2 * each
    norm.weight.fill_(1)
    norm.bias.zero_()
    deviation = _CONSTANT * sqrt(constants / size)
    for group in range(_GROUPS):
        first = group * size
        for i in range(each):
            component, positive = group * each + i, first + 2 * i
            spread.weight[positive, component], spread.weight[positive + 1, component] = 1, -1
            out.weight[component, positive, 1, 1], out.weight[component, positive + 1, 1, 1] = deviation, -deviation
        signs = torch.tensor([1.0, -1.0]).repeat(constants // 2)
        spread.bias[first + 2 * each : first + size] = _CONSTANT * signs
    out.bias[CHANNELS:] = _LOG_VARIANCE


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, along rows and along columns."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE, and L1 of the differences of neighbouring pixels, so that edges are sharp."""
    along = sum(functional.l1_loss(a, b) for a, b in zip(edges(decoded), edges(images), strict=True))
    return functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images) + _EDGES * along


def train_decoder(
    autoencoder: AutoencoderKL,
    components: Components,
    pictures: Tensor,
    mirrored: Tensor,
    plan: Plan,
    checkpoint: Path,
    seed: int,
    **options: Any,
) -> None:
    """Fit the decoder on pictures placed anew, their latents spoilt by noise of up to a quarter of their deviation.

    So it learns to decode what a denoiser draws, which is never quite a picture's latents, without showing the patches.

    In bfloat16 where the processor multiplies it: the weights stay float32.
    """
    decoder = autoencoder.decoder

    def loss(rng: np.random.Generator) -> Tensor:
        picked = torch.from_numpy(rng.integers(len(pictures), size=plan.batch))
        images = place(pictures[picked], mirrored[picked], rng).contiguous(memory_format=torch.channels_last)
        latents = components(images)
        strength = torch.from_numpy(rng.uniform(0, _LATENT_NOISE, size=(plan.batch, 1, 1, 1)).astype(np.float32))
        latents = latents + strength * torch.randn_like(latents)
        with mixed_precision():
            decoded = decoder(latents)
        return reconstruction_loss(decoded.float(), images)

    fit(decoder, loss, plan, checkpoint=checkpoint, label="decoder", seed=seed, **options)


def peak_signal_to_noise(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """PSNR in dB of each picture on white, encoded and decoded: 10·log₁₀(2² / MSE) over [−1, 1]."""
    ratios = []
    with torch.inference_mode():
        for chunk in pictures.split(64):
            images = on_ground(chunk, torch.ones(3))
            decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample.clamp(-1, 1)
            ratios.append(10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3))))
    return torch.cat(ratios)
