"""The recipe of `emoji`: ``python -m pipelines.builtin.emoji.train``, after ``python -m scripts.fetch_emoji``.

Stages, each seeded and resumable:

1. the encoder, which is computed and not trained, and the decoder (:mod:`pipelines.builtin.emoji.autoencoder`);
2. the denoiser together with the text encoder (:mod:`pipelines.builtin.emoji.denoiser`), which needs only the encoder;
3. one LoRA a style, which draws in its style what a caption does not give one;
4. the denoising error m(σ), for the calibrated kernel.

``--only`` runs some of the first two; with ``--further MODELS`` both start from the weights of an earlier run.
"""

import argparse
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.builtin.emoji.autoencoder import (
    Components,
    new_autoencoder,
    principal_components,
    read_components,
    train_decoder,
)
from pipelines.builtin.emoji.captions import Thing, plain_caption, read_things, words_of
from pipelines.builtin.emoji.denoiser import WIDTH, encode_views, new_denoiser, train_denoiser
from pipelines.builtin.emoji.names import NAMES, STYLES
from pipelines.builtin.emoji.pictures import DATA_FOLDER, GENTLY, may_be_mirrored, place, read_pictures
from pipelines.builtin.emoji.styles import save_lora, train_lora
from pipelines.builtin.fitting import Plan
from pipelines.builtin.train import load_part, new_text_encoder, save_model
from pipelines.builtin.vocabulary import write_tokenizer
from pipelines.calibration import calibrate_on_samples
from pipelines.entry import BUILTIN_FOLDER
from pipelines.families.folder import CALIBRATION_FILE, write_calibration
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.kernel import DenoisingError

MODEL: Final = "emoji"
NOTICE: Final = Path(__file__).parent / "NOTICE"
STAGES: Final = ("decoder", "denoiser", "loras")
_CHECKPOINT_EVERY: Final = 100
_MEASURED: Final = 512

_DECODER: Final = Plan(steps=2_000, batch=8, learning_rate=2e-3, ema_decay=0.99, warmup=100)
_DENOISER: Final = Plan(steps=8_000, batch=64, learning_rate=1.5e-3)
_LORA: Final = Plan(steps=300, batch=32, learning_rate=2e-3, warmup=20, ema_decay=0.98)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes of a run.

    Attributes:
        decoder: The decoder's plan.
        denoiser: That of the denoiser and the text encoder.
        lora: That of each LoRA.
        views: In how many ways the denoiser sees each picture placed.
        names: The things that are drawn.
        seed: Of all that is random.
    """

    decoder: Plan = _DECODER
    denoiser: Plan = _DENOISER
    lora: Plan = _LORA
    views: int = 24
    names: tuple[str, ...] = tuple(NAMES)
    seed: int = 0

    def smoke(self) -> "Recipe":
        """The same recipe in half a minute, with two things: it proves that every stage runs, not that it learns."""
        tiny = {"steps": 3, "batch": 4, "warmup": 1}
        return replace(
            self,
            decoder=replace(self.decoder, **tiny),
            denoiser=replace(self.denoiser, **tiny),
            lora=replace(self.lora, **tiny),
            views=2,
            names=self.names[:2],
        )


class _Parts:
    """What the stages share: the data, and the networks as far as they have come."""

    def __init__(self, recipe: Recipe, data: Path, work: Path, further: Path | None) -> None:
        self.recipe, self.work = recipe, work
        self.label = "" if further is None else "-further"
        # Trained on, a run draws other views and other noise than before.
        self.seed = recipe.seed if further is None else recipe.seed + 1000
        self.pictures = read_pictures(data, recipe.names)
        self.mirrored = may_be_mirrored(recipe.names)
        self.things: list[Thing] = read_things(data, recipe.names)
        self.tokenizer: CLIPTokenizer = write_tokenizer(work / "tokenizer", words_of(read_things(data)))
        torch.manual_seed(recipe.seed)
        self.autoencoder: AutoencoderKL
        self.denoiser: UNet2DConditionModel
        self.text_encoder: CLIPTextModel
        self.components: Components
        if further is None:
            rng = np.random.default_rng((recipe.seed, 2**31))
            placed = [place(self.pictures, self.mirrored, rng) for _ in range(8)]
            self.components = principal_components(torch.cat(placed))
            self.autoencoder = new_autoencoder(self.components)
            torch.manual_seed(recipe.seed + 1)
            self.denoiser, self.text_encoder = new_denoiser(), new_text_encoder(self.tokenizer, WIDTH)
        else:
            self.autoencoder = load_part(AutoencoderKL, further / MODEL, "vae")
            self.denoiser = load_part(UNet2DConditionModel, further / MODEL, "unet")
            self.text_encoder = load_part(CLIPTextModel, further / MODEL, "text_encoder")
            self.components = read_components(self.autoencoder)

    def decoder_stage(self) -> None:
        train_decoder(
            self.autoencoder,
            self.components,
            self.pictures,
            self.mirrored,
            self.recipe.decoder,
            self.work / f"decoder{self.label}.pt",
            self.seed,
            checkpoint_every=_CHECKPOINT_EVERY,
        )

    def latents(self) -> Tensor:
        rng = np.random.default_rng((self.seed, 2**32))
        return encode_views(self.pictures, self.mirrored, self.components, self.recipe.views, rng)

    def denoiser_stage(self, latents: Tensor) -> None:
        train_denoiser(
            self.denoiser,
            self.text_encoder,
            self.tokenizer,
            self.things,
            latents,
            self.recipe.denoiser,
            self.work / f"denoiser{self.label}.pt",
            self.seed + 1,
            checkpoint_every=_CHECKPOINT_EVERY,
        )


def measure(parts: _Parts, folder: Path) -> DenoisingError:
    """The saved model's denoising error on pictures placed as it has not seen them, under plain captions."""
    model = StableDiffusion.load(folder, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng((parts.seed, 2**33))
    picked = rng.permutation(len(parts.pictures))[:_MEASURED]
    images = place(parts.pictures[picked], parts.mirrored[picked], rng, GENTLY)
    captions = [plain_caption(parts.things[i // len(STYLES)], rng) for i in map(int, picked)]
    condition = model.encode_prompts(captions)
    return calibrate_on_samples(model, parts.components(images), condition, parts.seed)


def train(
    recipe: Recipe,
    data: Path,
    work: Path,
    out: Path,
    *,
    only: Collection[str] = STAGES,
    further: Path | None = None,
) -> None:
    """Run the stages, resuming from what ``work`` holds, and write the model into ``out``.

    Args:
        recipe: How long each stage trains, and the seed.
        data: What ``scripts.fetch_emoji`` left.
        work: The folder of checkpoints.
        out: The folder that the model's folder is written into.
        only: The stages to run; with fewer than all, nothing is written into ``out``.
        further: A folder of models to start from, instead of new networks.
    """
    work.mkdir(parents=True, exist_ok=True)
    parts = _Parts(recipe, data, work, further)
    if "decoder" in only:
        parts.decoder_stage()
    latents = parts.latents()
    if "denoiser" in only:
        parts.denoiser_stage(latents)
    if set(only) != set(STAGES):
        return
    folder = out / MODEL
    save_model(folder, parts.denoiser, parts.autoencoder, parts.tokenizer, parts.text_encoder, None)
    shutil.copy(NOTICE, folder)
    write_calibration(folder / CALIBRATION_FILE, measure(parts, folder))
    for place_of_style, style in enumerate(STYLES):
        lora = train_lora(
            folder,
            parts.things,
            latents[place_of_style :: len(STYLES)],
            recipe.lora,
            work / f"lora-{style}{parts.label}.pt",
            parts.seed + 2 + place_of_style,
        )
        save_lora(lora, folder / "loras" / f"{style}.safetensors")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.builtin.emoji.train", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help=f"the fetched pictures; {DATA_FOLDER}")
    parser.add_argument("--work", type=Path, default=Path("runs/emoji"), help="checkpoints; runs/emoji by default")
    parser.add_argument("--out", type=Path, default=BUILTIN_FOLDER, help="by default where the product finds it")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="which stages; all by default")
    parser.add_argument("--further", type=Path, metavar="MODELS", help="train the networks of this folder on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = Recipe(seed=arguments.seed)
    train(recipe, arguments.data, arguments.work, arguments.out, only=arguments.only, further=arguments.further)


if __name__ == "__main__":
    main()
