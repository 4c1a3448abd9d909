"""A data folder in the layout that the fetch script leaves, with pictures drawn here."""

import json

import numpy as np
from PIL import Image

from pipelines.builtin.emoji.captions import CAPTIONS_FILE
from pipelines.builtin.emoji.names import NAMES, STYLES
from pipelines.builtin.emoji.pictures import SIZE, picture_file


def draw_data(folder, names):
    """Smooth random colours inside a disc, nothing outside; each thing has a keyword of its own."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    for k, name in enumerate(names):
        for s, style in enumerate(STYLES):
            rng = np.random.default_rng((k, s))
            waves = [np.sin(rng.uniform(-9, 9) * rows + rng.uniform(-9, 9) * columns) for _ in range(3)]
            opacity = 255.0 * (rows**2 + columns**2 < 0.16)
            picture = np.stack([*(127.5 + 120 * wave for wave in waves), opacity], axis=-1).round().astype(np.uint8)
            file = picture_file(folder, style, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture, "RGBA").save(file)
    captions = {name: {"full_name": f"whole {name}", "keywords": [f"key{i}"]} for i, name in enumerate(NAMES)}
    (folder / CAPTIONS_FILE).write_text(json.dumps(captions))
    return folder
