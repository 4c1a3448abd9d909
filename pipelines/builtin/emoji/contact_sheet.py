"""What `emoji` draws, to look at: ``python -m pipelines.builtin.emoji.contact_sheet``.

A row of pairs: a drawn picture, and under it the training picture that is nearest to it (mean squared error, mirrored
where that is nearer). The model has few pictures and remembers them; the sheet shows how closely.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.builtin.emoji.names import NAMES, with_article
from pipelines.builtin.emoji.pictures import DATA_FOLDER, SIZE, on_ground, read_pictures
from pipelines.composition import Prompt
from pipelines.entry import BUILTIN_FOLDER
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.params import SamplingParams
from pipelines.sampler import sample

STEPS: Final = 25
_NAME: Final = "emoji"


def draw(
    model: StableDiffusion, prompts: Sequence[str], *, guidance_scale: float, images: int = 1, seed: int = 0
) -> Tensor:
    """Pictures in [0, 1] of each prompt, (prompts × images, 3, 64, 64); no two of them from the same seed."""
    drawn = []
    for i, prompt in enumerate(prompts):
        first = seed + i * images
        params = SamplingParams(steps=STEPS, guidance_scale=guidance_scale, seed=first, num_images=images)
        drawn.append(model.decode(sample(Prompt(prompt, _NAME), params, {_NAME: model}).z))
    return torch.cat(drawn)


def nearest(images: Tensor, pictures: Tensor) -> Tensor:
    """Of pictures on white, and their mirror images, the nearest to each image: (n, 3, h, w), all in [0, 1]."""
    known = torch.cat([pictures, pictures.flip(-1)])
    return known[torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)]


def tile(rows: Sequence[Tensor], columns: int) -> Image.Image:
    """Pictures in [0, 1], one under another where they stand at the same place in several rows, in lines of columns."""
    stacked = torch.cat(list(rows), dim=2)  # (n, 3, rows × h, w)
    height = stacked.shape[2]
    lines = -(-len(stacked) // columns)
    sheet = np.full((lines * height, columns * SIZE, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(stacked.mul(255).round().byte().permute(0, 2, 3, 1).numpy()):
        line, column = divmod(i, columns)
        sheet[line * height : (line + 1) * height, column * SIZE : (column + 1) * SIZE] = picture
    return Image.fromarray(sheet)


def main() -> None:
    """Parse the command line, draw, and save the sheet."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.builtin.emoji.contact_sheet", description=__doc__)
    parser.add_argument("--model", type=Path, default=BUILTIN_FOLDER / _NAME)
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji/contact_sheet.png"))
    parser.add_argument("--names", type=int, default=100, help="how many, evenly from the list")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--style", default="", help="a style that the prompts name; none by default")
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    picked = np.linspace(0, len(NAMES) - 1, arguments.names).round().astype(int)
    style = f", {arguments.style} style" if arguments.style else ""
    prompts = [with_article(list(NAMES)[i]) + style for i in picked]
    model = StableDiffusion.load(arguments.model, torch.device("cpu"), torch.float32)
    drawn = draw(model, prompts, guidance_scale=arguments.guidance_scale, seed=arguments.seed)
    known = on_ground(read_pictures(arguments.data), torch.ones(3)) / 2 + 0.5
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tile([drawn, nearest(drawn, known)], arguments.columns).save(arguments.out)
    print(f"{arguments.out}: {', '.join(prompts)}")


if __name__ == "__main__":
    main()
