"""The judge of `emoji`: a small classifier that says which of the names a picture shows.

It is trained in minutes on the same pictures as the model, in all styles, placed and spoilt much more strongly than
there: turned, resized, recoloured, blurred, covered in part, noisy, and as the model's own autoencoder reconstructs
them from noisy latents. So it judges whether the model draws the thing that it was asked for, as it was shown it, and
not whether a stranger would agree: look at pictures too.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from evaluation.statistics import Rate
from pipelines.builtin.emoji.autoencoder import peak_signal_to_noise
from pipelines.builtin.emoji.captions import read_things
from pipelines.builtin.emoji.contact_sheet import draw
from pipelines.builtin.emoji.names import NAMES, STYLES, with_article
from pipelines.builtin.emoji.pictures import DATA_FOLDER, SIZE, may_be_mirrored, on_ground, place, read_pictures
from pipelines.builtin.fitting import Plan, fit
from pipelines.builtin.train import load_part
from pipelines.entry import BUILTIN_FOLDER
from pipelines.families.stable_diffusion import StableDiffusion

PLAN: Final = Plan(steps=2_500, batch=64, learning_rate=2e-3, ema_decay=0.99, warmup=100, weight_decay=0.05)
_WIDTHS: Final = (32, 64, 128, 256)
_SMOOTHING: Final = 0.1
_RECONSTRUCTED: Final = 0.5
_RECONSTRUCTIONS: Final = 4
_LATENT_NOISE: Final = 0.3
_TURN: Final = pi / 12
_ZOOM: Final = (0.75, 1.15)
_COVERED: Final = 20
_CHUNK: Final = 64
_FAITHFUL_DB: Final = 27


class EmojiJudge(nn.Module):
    """Which of the names a picture shows.

    Four convolutions of stride two with a residual block each, the mean over places, one linear map.

    Args:
        names: What it tells apart.
    """

    def __init__(self, names: Sequence[str] = tuple(NAMES)) -> None:
        super().__init__()
        self.names = tuple(names)
        widths = (3, *_WIDTHS)
        self.stages = nn.Sequential(*(_Stage(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], len(self.names))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, names) of pixels (n, 3, h, w) in [−1, 1]."""
        logits: Tensor = self.head(self.stages(images).mean((2, 3)))
        return logits

    @torch.inference_mode()
    def log_probabilities(self, images: Tensor) -> Tensor:
        """log p(name | picture), (n, names), of pictures (n, 3, h, w) in [0, 1] of any size."""
        resized = functional.interpolate(images, (SIZE, SIZE), mode="area") if images.shape[-1] != SIZE else images
        return torch.cat([self(chunk * 2 - 1).log_softmax(-1) for chunk in resized.split(_CHUNK)])


class _Stage(nn.Module):
    """A strided convolution and one residual convolution, each normalised over its channels' groups."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.first, self.second = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.same = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first(self.down(x)))
        return x + functional.silu(self.second(self.same(x)))


def recognised(judge: EmojiJudge, images: Tensor, names: Sequence[str]) -> Tensor:
    """Whether each picture is taken, of all names, for the one given: (n,) bool.

    Args:
        judge: Who says so.
        images: (n, 3, h, w) in [0, 1].
        names: One a picture; short names, as in :data:`pipelines.builtin.emoji.names.NAMES`.
    """
    asked = torch.tensor([judge.names.index(name) for name in names])
    return judge.log_probabilities(images).argmax(-1) == asked


def train_judge(
    data: Path, autoencoder: AutoencoderKL, checkpoint: Path, *, plan: Plan = PLAN, seed: int = 0
) -> EmojiJudge:
    """Train the judge, or go on where ``checkpoint`` stands; a finished one is only read.

    Args:
        data: What ``scripts.fetch_emoji`` left.
        autoencoder: That of the model that is to be judged.
        checkpoint: Where the run is kept.
        plan: How long and how fast.
        seed: Of all that is random.
    """
    pictures, mirrored = read_pictures(data), may_be_mirrored()
    rng = np.random.default_rng((seed, 2**31))
    torch.manual_seed(seed)
    rebuilt = torch.stack([reconstructions(autoencoder, pictures, mirrored, rng) for _ in range(_RECONSTRUCTIONS)])
    judge = EmojiJudge()

    def loss(rng: np.random.Generator) -> Tensor:
        images, labels = training_batch(pictures, mirrored, rebuilt, plan.batch, rng)
        return functional.cross_entropy(judge(images), labels, label_smoothing=_SMOOTHING)

    fit(judge, loss, plan, checkpoint=checkpoint, label="judge", seed=seed)
    return judge


@torch.no_grad()
def reconstructions(
    autoencoder: AutoencoderKL,
    pictures: Tensor,
    mirrored: Tensor,
    rng: np.random.Generator,
    noise: float = _LATENT_NOISE,
) -> Tensor:
    """The pictures placed anew, encoded, disturbed by up to ``noise``, and decoded: pixels (n, 3, 64, 64)."""
    decoded = []
    for chunk, flags in zip(pictures.split(_CHUNK), mirrored.split(_CHUNK), strict=True):
        latents = autoencoder.encode(place(chunk, flags, rng)).latent_dist.mean
        strength = torch.from_numpy(rng.uniform(0, noise, size=(len(chunk), 1, 1, 1)).astype(np.float32))
        decoded.append(autoencoder.decode(latents + strength * torch.randn_like(latents)).sample.clamp(-1, 1))
    return torch.cat(decoded)


def training_batch(
    pictures: Tensor, mirrored: Tensor, rebuilt: Tensor, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Spoilt pictures (size, 3, 64, 64) in [−1, 1], half of them reconstructions, and the indices of their names."""
    picked = rng.integers(len(pictures), size=size)
    images = place(pictures[picked], mirrored[picked], rng)
    from_rebuilt = torch.from_numpy(rng.random(size) < _RECONSTRUCTED)
    images[from_rebuilt] = rebuilt[rng.integers(len(rebuilt), size=size), picked][from_rebuilt]
    return spoil(images, rng), torch.from_numpy(picked // len(STYLES))


def spoil(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels in [−1, 1] turned, resized, moved, recoloured, and each half of the time blurred, covered and noisy."""
    n = len(images)
    angle, zoom = rng.uniform(-_TURN, _TURN, n), rng.uniform(*_ZOOM, n)
    affine = np.zeros((n, 2, 3), dtype=np.float32)
    affine[:, 0, 0] = affine[:, 1, 1] = np.cos(angle) / zoom
    affine[:, 0, 1], affine[:, 1, 0] = -np.sin(angle) / zoom, np.sin(angle) / zoom
    affine[:, :, 2] = rng.uniform(-0.12, 0.12, (n, 2))
    grid = functional.affine_grid(torch.from_numpy(affine), list(images.shape), align_corners=False)
    # The ground goes on beyond the edge.
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gains = torch.from_numpy(rng.uniform(0.75, 1.15, (n, 3, 1, 1)).astype(np.float32))
    moved = (moved + 1) * gains - 1
    blurred = functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    moved = torch.where(_half(n, rng), blurred, moved)
    moved = torch.where(_half(n, rng), _covered(moved, rng), moved)
    noisy = moved + torch.from_numpy(rng.normal(0, 0.1, moved.shape).astype(np.float32))
    return torch.where(_half(n, rng), noisy, moved).clamp(-1, 1)


def _half(n: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(n) < 0.5)[:, None, None, None]


def _covered(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A grey square of 20 pixels laid somewhere on each."""
    covered = images.clone()
    for image in covered:
        row, column = (int(c) for c in rng.integers(0, SIZE - _COVERED + 1, size=2))
        image[:, row : row + _COVERED, column : column + _COVERED] = 0
    return covered


def own_accuracy(
    judge: EmojiJudge, data: Path, autoencoder: AutoencoderKL, *, views: int = 4, seed: int = 1
) -> dict[str, float]:
    """How often it is right, of the pictures as they are, placed anew, reconstructed, and spoilt as never before."""
    pictures, mirrored = read_pictures(data), may_be_mirrored()
    rng = np.random.default_rng((seed, 2**31))
    torch.manual_seed(seed)
    asked = [name for name in judge.names for _ in STYLES]

    def rate(images: Tensor) -> float:
        return float(recognised(judge, images / 2 + 0.5, asked).float().mean())

    kinds: dict[str, Callable[[], Tensor]] = {
        "as drawn": lambda: on_ground(pictures, torch.ones(3)),
        "placed anew": lambda: place(pictures, mirrored, rng),
        "reconstructed": lambda: reconstructions(autoencoder, pictures, mirrored, rng, noise=0.0),
        "reconstructed from noisy latents": lambda: reconstructions(autoencoder, pictures, mirrored, rng),
        "spoilt": lambda: spoil(place(pictures, mirrored, rng), rng),
    }
    return {kind: float(np.mean([rate(draw()) for _ in range(views)])) for kind, draw in kinds.items()}


def main() -> None:
    """Train the judge if need be; print its accuracy, the autoencoder's, and how often what is drawn is recognised."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.judges.emoji", description=main.__doc__)
    parser.add_argument("--model", type=Path, default=BUILTIN_FOLDER / "emoji")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/emoji/judge.pt"))
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[3.0])
    parser.add_argument("--names", type=int, default=len(NAMES), help="how many of the names, evenly from the list")
    parser.add_argument("--images", type=int, default=1, help="pictures of each prompt")
    arguments = parser.parse_args()
    model = StableDiffusion.load(arguments.model, torch.device("cpu"), torch.float32)
    autoencoder = load_part(AutoencoderKL, arguments.model, "vae")
    ratios = peak_signal_to_noise(autoencoder, read_pictures(arguments.data))
    below = float((ratios < _FAITHFUL_DB).float().mean())
    print(
        f"autoencoder, PSNR of {len(ratios)} pictures: mean {ratios.mean():.1f} dB, median {ratios.median():.1f}, "
        f"lowest {ratios.min():.1f}; {below:.0%} below {_FAITHFUL_DB}"
    )
    judge = train_judge(arguments.data, autoencoder, arguments.checkpoint)
    for kind, rate in own_accuracy(judge, arguments.data, autoencoder).items():
        print(f"judge, {kind}: {rate:.1%}")
    picked = np.linspace(0, len(NAMES) - 1, arguments.names).round().astype(int)
    things = [read_things(arguments.data)[i] for i in picked]
    asked = [thing.name for thing in things for _ in range(arguments.images)]
    prompts = {
        "plain": [with_article(thing.name) for thing in things],
        "full names": [thing.full_name for thing in things],
        **{f"{style} style": [f"{with_article(thing.name)}, {style} style" for thing in things] for style in STYLES},
    }
    for scale in arguments.guidance_scales:
        for kind, texts in prompts.items():
            drawn = draw(model, texts, guidance_scale=scale, images=arguments.images)
            hits = recognised(judge, drawn, asked)
            print(f"guidance {scale:g}, {kind}: {Rate.of(hits.numpy())} of {len(hits)} recognised", flush=True)


if __name__ == "__main__":
    main()
