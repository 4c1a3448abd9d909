"""Draws the pictures in the documents by each request's defaults, unselected: ``python -m scripts.draw_pictures``."""

from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Method, Or, Product, Prompt, lead
from pipelines.params import SamplingParams
from pipelines.sampler import sample

OUT: Final = Path(__file__).parents[1] / "docs/images"
COLUMNS: Final = 8
SCALE: Final = 2
RED: Final = Prompt("a red circle", "shapes")
BLUE: Final = Prompt("a blue star", "shapes")
CAT: Final = Prompt("a cat", "emoji")
LION: Final = Prompt("a lion", "emoji")
SUNFLOWER: Final = Prompt("a sunflower", "emoji")
FLUENT: Final = Prompt("a cat", "emoji", adapters=(("fluent", 1.0),))
NOTO: Final = Prompt("a cat", "emoji", adapters=(("noto", 1.0),))
ROWS: Final[dict[str, tuple[Expression, ...]]] = {
    "emoji": (
        And((CAT, Prompt("a pizza", "emoji"))),
        And((LION, SUNFLOWER)),
        And((Prompt("an octopus", "emoji"), Prompt("a strawberry", "emoji"))),
        And((Prompt("a robot", "emoji"), Prompt("a teapot", "emoji"))),
        FLUENT,
        NOTO,
        And((FLUENT, NOTO)),
    ),
    "emoji-operators": (
        Prompt("a lion and a sunflower", "emoji"),
        And((LION, SUNFLOWER)),
        And((LION, SUNFLOWER), method=Method.BALANCED),
        Average((LION, SUNFLOWER)),
        Product((LION, SUNFLOWER)),
        Or((LION, SUNFLOWER)),
    ),
    "operators": (
        Prompt("a red circle and a blue star", "shapes"),
        And((RED, BLUE)),
        And((RED, BLUE), method=Method.BALANCED),
        Average((RED, BLUE)),
        Product((RED, BLUE)),
    ),
    "halves-or": (Or((Prompt("", "shapes-round"), Prompt("", "shapes-sharp"))),),
    "halves-and": (And((Prompt("a red circle", "shapes-round"), Prompt("a blue star", "shapes-sharp"))),),
}


def main() -> None:
    """Draw every grid."""
    catalog = Catalog.builtin()
    models = {name: catalog.get(name) for name in catalog.names}
    cards = {name: model.card for name, model in models.items()}
    OUT.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        lines = []
        for expression in rows:
            params = SamplingParams(**asdict(catalog.defaults(expression, cards)), seed=0, num_images=COLUMNS)
            z = sample(expression, params, models).z
            pictures = models[lead(expression)].decode(z)
            pixels = pictures.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
            lines.append(np.concatenate(list(pixels), axis=1))
        grid = Image.fromarray(np.concatenate(lines, axis=0))
        grid.resize((grid.width * SCALE, grid.height * SCALE), Image.Resampling.NEAREST).save(OUT / f"{name}.png")
        print(OUT / f"{name}.png")


if __name__ == "__main__":
    main()
