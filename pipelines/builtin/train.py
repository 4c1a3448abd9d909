"""The recipe of the builtin models: ``python -m pipelines.builtin.train``.

Five stages, each resumable: the autoencoder on endless scenes; the latents of a fixed set of scenes; the `shapes`
denoiser together with the text encoder; then `shapes-round` and `shapes-sharp` from scratch on disjoint halves of the
shapes, over the same frozen autoencoder and text encoder; last, each model's denoising error m(σ) on new scenes, for
the calibrated kernel. With ``--further`` denoisers are trained on from an earlier run's. How the models that ship came
about, with times, their card tells.

The denoisers predict v (Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022) on
Stable Diffusion's schedule, with the plain mean squared error in v.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.builtin.captions import CaptionedScenes, noisy_words
from pipelines.builtin.fitting import Plan, fit, save_whole
from pipelines.builtin.scenes import ROUND, SHAPES, SHARP, SIZE, Scene, draw_scene, render
from pipelines.builtin.vocabulary import MAX_TOKENS, write_tokenizer
from pipelines.calibration import calibrate_on_samples
from pipelines.entry import BUILTIN_FOLDER
from pipelines.families.folder import CALIBRATION_FILE, fingerprint, write_calibration
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.kernel import DenoisingError

MODELS: Final[dict[str, tuple[str, ...]]] = {"shapes": SHAPES, "shapes-round": ROUND, "shapes-sharp": SHARP}
SHARED: Final = ("vae", "text_encoder", "tokenizer")
_Part = TypeVar("_Part", AutoencoderKL, CLIPTextModel, UNet2DConditionModel)
_WIDTH: Final = 64
_KL_WEIGHT: Final = 1e-4
_UNCONDITIONAL: Final = 0.1
_NOISY_WORDS: Final = 0.1

_AUTOENCODER: Final = Plan(steps=3_600, batch=32, learning_rate=2e-3, ema_decay=0.99)
_SHAPES: Final = Plan(steps=14_000, batch=64, learning_rate=8e-4)
_HALF: Final = Plan(steps=9_000, batch=32, learning_rate=1.6e-3)
_FURTHER: Final = Plan(steps=6_000, batch=32, learning_rate=8e-4)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes of a run: each stage's plan, and that of training a denoiser further; scenes of each model, and how many
    others its denoising error is measured on.
    """

    autoencoder: Plan = _AUTOENCODER
    shapes: Plan = _SHAPES
    half: Plan = _HALF
    further: Plan = _FURTHER
    scenes: int = 30_000
    measured: int = 512
    seed: int = 0

    def smoke(self) -> "Recipe":
        """The same recipe in about a minute: it proves that every stage runs, not that it learns."""
        tiny = {"steps": 4, "batch": 4, "warmup": 1}
        return replace(
            self,
            autoencoder=replace(self.autoencoder, **tiny),
            shapes=replace(self.shapes, **tiny),
            half=replace(self.half, **tiny),
            further=replace(self.further, **tiny),
            scenes=16,
            measured=4,
        )


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes in [−1, 1], shape (n, 3, 64, 64)."""
    stack = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def new_autoencoder() -> AutoencoderKL:
    """Stable Diffusion's autoencoder in small: 64×64×3 pixels to 8×8×4 latents, 0.94 M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )


def new_denoiser() -> UNet2DConditionModel:
    """Stable Diffusion's U-Net in small: two levels, cross-attention at both, 4.2 M parameters."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer, width: int = _WIDTH) -> CLIPTextModel:
    """CLIP's text transformer in small: two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule, for v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_autoencoder(recipe: Recipe, work: Path) -> AutoencoderKL:
    """Stage 1: L1 + MSE reconstruction with a light KL term; the latents' scale is measured and stored."""
    torch.manual_seed(recipe.seed)
    autoencoder = new_autoencoder().to(memory_format=torch.channels_last)
    plan = recipe.autoencoder

    def loss(rng: np.random.Generator) -> Tensor:
        images = pixels([draw_scene(rng) for _ in range(plan.batch)])
        posterior = autoencoder.encode(images).latent_dist
        decoded = autoencoder.decode(posterior.sample()).sample
        reconstruction = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
        total: Tensor = reconstruction + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        return total

    fit(autoencoder, loss, plan, checkpoint=work / "autoencoder.pt", label="autoencoder", seed=recipe.seed)
    rng = np.random.default_rng((recipe.seed, 2**31))
    with torch.no_grad():
        latents = autoencoder.encode(pixels([draw_scene(rng) for _ in range(min(512, recipe.scenes))])).latent_dist.mean
    autoencoder.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return autoencoder


def encode_scenes(autoencoder: AutoencoderKL, scenes: Sequence[Scene], cache: Path, label: str) -> Tensor:
    """Stage 2: the scaled latents of the scenes, (n, 4, 8, 8), read from the cache if it holds just these."""
    made_of = [fingerprint(autoencoder), repr(scenes[0]), len(scenes)]
    if cache.exists():
        cached = torch.load(cache, weights_only=True)
        if cached["made_of"] == made_of:
            kept: Tensor = cached["latents"]
            return kept
    chunks = [scenes[i : i + 64] for i in range(0, len(scenes), 64)]
    with torch.no_grad():
        encoded = [autoencoder.encode(pixels(chunk)).latent_dist.mean for chunk in tqdm(chunks, desc=label)]
    latents: Tensor = torch.cat(encoded) * autoencoder.config.scaling_factor
    save_whole({"made_of": made_of, "latents": latents}, cache)
    return latents


def training_pair(scenes: CaptionedScenes, rng: np.random.Generator) -> tuple[str, int]:
    """A caption and a scene that it is true of; 10 % of captions are empty (for guidance), 10 % have noisy words."""
    if rng.random() < _UNCONDITIONAL:
        return "", int(rng.integers(len(scenes.scenes)))
    caption, index = scenes.draw(rng)
    return noisy_words(str(caption), rng) if rng.random() < _NOISY_WORDS else str(caption), index


def load_part(kind: type[_Part], folder: Path, part: str) -> _Part:
    """A network of a model folder, in float32."""
    loaded: _Part = kind.from_pretrained(folder / part, dtype=torch.float32)
    return loaded


def velocity_loss(
    denoiser: UNet2DConditionModel, scheduler: DDIMScheduler, clean: Tensor, condition: Tensor, rng: np.random.Generator
) -> Tensor:
    """The mean squared error in v at random timesteps, for latents (n, …) and their condition (n, tokens, width).

    One timestep from each of n equal strata: the same distribution as uniform ones, with less variance.
    """
    strata = (rng.permutation(len(clean)) + rng.random(len(clean))) / len(clean)
    timesteps = torch.from_numpy((strata * scheduler.config.num_train_timesteps).astype(np.int64))
    noise = torch.randn_like(clean)
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    predicted = denoiser(scheduler.add_noise(clean, noise, timesteps), timesteps, condition).sample
    return functional.mse_loss(predicted.float(), velocity)


def train_denoiser(
    recipe: Recipe,
    plan: Plan,
    name: str,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    work: Path,
    start: Path | None = None,
) -> UNet2DConditionModel:
    """Stages 3 and 4: a denoiser on the latents of its shapes; the text encoder learns too unless it is frozen.

    It starts from the weights of the model folder ``start``, or from scratch.
    """
    seed = recipe.seed + 1 + list(MODELS).index(name) + (0 if start is None else len(MODELS))
    rng = np.random.default_rng((seed, 2**31))
    scenes = [draw_scene(rng, MODELS[name]) for _ in range(recipe.scenes)]
    captioned = CaptionedScenes(scenes)
    latents = encode_scenes(autoencoder, scenes, work / f"{name}-latents.pt", f"{name}: latents")
    torch.manual_seed(seed)
    denoiser = new_denoiser() if start is None else load_part(UNet2DConditionModel, start, "unet")
    denoiser.to(memory_format=torch.channels_last)
    scheduler = new_scheduler()

    def loss(rng: np.random.Generator) -> Tensor:
        captions, picked = zip(*(training_pair(captioned, rng) for _ in range(plan.batch)), strict=True)
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        condition = text_encoder(tokens).last_hidden_state
        return velocity_loss(denoiser, scheduler, latents[list(picked)], condition, rng)

    text_learns = next(text_encoder.parameters()).requires_grad
    learner = nn.ModuleList([denoiser, text_encoder] if text_learns else [denoiser])
    label = name if start is None else f"{name}-further"
    fit(learner, loss, plan, checkpoint=work / f"{label}.pt", label=label, seed=seed)
    return denoiser


def save_model(
    folder: Path,
    denoiser: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    shared_with: Path | None,
) -> None:
    """Save a Stable Diffusion folder in float16 safetensors; parts shared with another model become links to it."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    pipeline.to(torch.float32)
    for config in folder.glob("*/config.json"):
        said = json.loads(config.read_text())
        said.pop("_name_or_path", None)  # where an earlier run's weights lay
        config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    if shared_with is not None:
        for part in SHARED:
            shutil.rmtree(folder / part)
            (folder / part).symlink_to(os.path.relpath(shared_with / part, folder), target_is_directory=True)


def measure(recipe: Recipe, name: str, folder: Path) -> DenoisingError:
    """The saved model's denoising error on scenes and captions that it was not trained on."""
    model = StableDiffusion.load(folder, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng((recipe.seed, 2**32, list(MODELS).index(name)))
    captioned = CaptionedScenes([draw_scene(rng, MODELS[name]) for _ in range(recipe.measured)])
    pairs = [captioned.draw(rng) for _ in range(recipe.measured)]
    images = pixels([captioned.scenes[index] for _, index in pairs]) / 2 + 0.5
    condition = model.encode_prompts([str(caption) for caption, _ in pairs])
    return calibrate_on_samples(model, model.encode(images), condition, recipe.seed)


def train(
    recipe: Recipe,
    work: Path,
    out: Path,
    *,
    only: Sequence[str] = tuple(MODELS),
    frozen: Path | None = None,
    further: Path | None = None,
) -> None:
    """Run the stages, resuming from what ``work`` holds, and write the models into ``out``.

    Args:
        recipe: how long each stage trains, and the seed.
        work: the folder of checkpoints and caches.
        out: the folder that the models are written into, each in a folder of its name.
        only: the models to train. The halves need the autoencoder and text encoder of `shapes`, hence its run in the
            same ``work``, or ``frozen``; and its folder in ``out``, to which they link.
        frozen: a folder of models whose autoencoder and text encoder are taken as they are, and learn no more.
        further: the same, and the denoisers are those of its models, trained on, instead of new ones.

    Raises:
        ValueError: a half alone, and ``out`` holds no `shapes`.
    """
    if "shapes" not in only and not (out / "shapes").exists():
        raise ValueError(f"the halves share parts of shapes, and {out / 'shapes'} is not there; train shapes first")
    work.mkdir(parents=True, exist_ok=True)
    frozen = further or frozen
    tokenizer = write_tokenizer(work / "tokenizer")
    if frozen is None:
        autoencoder = train_autoencoder(recipe, work).requires_grad_(False)
        torch.manual_seed(recipe.seed)
        text_encoder = new_text_encoder(tokenizer)
    else:
        autoencoder = load_part(AutoencoderKL, frozen / "shapes", "vae").requires_grad_(False).eval()
        text_encoder = load_part(CLIPTextModel, frozen / "shapes", "text_encoder").requires_grad_(False).eval()
    for name in MODELS:
        if name not in only and (frozen is not None or name != "shapes"):
            continue
        start = None if further is None else further / name
        plan = recipe.further if start is not None else recipe.shapes if name == "shapes" else recipe.half
        denoiser = train_denoiser(recipe, plan, name, autoencoder, tokenizer, text_encoder, work, start)
        text_encoder.requires_grad_(False).eval()
        shared = None if name == "shapes" else out / "shapes"
        save_model(out / name, denoiser, autoencoder, tokenizer, text_encoder, shared)
        write_calibration(out / name / CALIBRATION_FILE, measure(recipe, name, out / name))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.builtin.train", description=__doc__)
    parser.add_argument("--work", type=Path, help="checkpoints and caches; runs/builtin by default")
    parser.add_argument("--out", type=Path, help="where the models go; by default where the product finds them")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="which models; all by default")
    parser.add_argument(
        "--frozen", type=Path, metavar="MODELS", help="keep autoencoder and text encoder of this folder"
    )
    parser.add_argument("--further", type=Path, metavar="MODELS", help="keep those, and train its denoisers on")
    parser.add_argument("--steps", type=int, default=_FURTHER.steps, help="of training further")
    parser.add_argument("--batch", type=int, default=_FURTHER.batch, help="of training further")
    parser.add_argument("--scenes", type=int, default=Recipe().scenes, help="how many scenes a model is trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a minute's run that proves every stage, in runs/smoke")
    arguments = parser.parse_args()
    longer = replace(_FURTHER, steps=arguments.steps, batch=arguments.batch)
    recipe = Recipe(further=longer, scenes=arguments.scenes, seed=arguments.seed)
    if arguments.smoke:
        recipe = recipe.smoke()
    work = arguments.work or Path("runs/smoke/work" if arguments.smoke else "runs/builtin")
    out = arguments.out or (Path("runs/smoke/models") if arguments.smoke else BUILTIN_FOLDER)
    train(recipe, work, out, only=arguments.only, frozen=arguments.frozen, further=arguments.further)


if __name__ == "__main__":
    main()
