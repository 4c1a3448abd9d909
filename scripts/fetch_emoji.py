"""The pictures and captions of the `emoji` model: ``python -m scripts.fetch_emoji``; npm fetches them.

Three packages, at the versions below, into an ignored folder:

* emoji-datasource-google: Google's Noto Emoji, 64×64 (the pictures Apache-2.0, the package MIT);
* @lobehub/fluent-emoji-3d: Microsoft's Fluent Emoji, 256×256 (MIT), made smaller here;
* cldr-annotations-full: the Unicode consortium's names and keywords (Unicode-3.0).

``pictures/STYLE/NAME.png`` (64×64, with transparency) and ``captions.json`` (name → the full name and keywords) are
left, as :mod:`pipelines.builtin.emoji.pictures` and :mod:`pipelines.builtin.emoji.captions` read them.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from PIL import Image

from pipelines.builtin.emoji.captions import CAPTIONS_FILE
from pipelines.builtin.emoji.names import NAMES
from pipelines.builtin.emoji.pictures import DATA_FOLDER, SIZE, picture_file

PACKAGES: Final = ("emoji-datasource-google@16.0.0", "@lobehub/fluent-emoji-3d@1.1.0", "cldr-annotations-full@48.2.0")
_NOTO: Final = "emoji-datasource-google/img/google/64"
_FLUENT: Final = "@lobehub/fluent-emoji-3d/assets"
_CLDR: Final = "cldr-annotations-full/annotations/en/annotations.json"
_EMOJI_PRESENTATION: Final = "\ufe0f"
"""A selector that asks for the coloured picture; file names have it or not."""


def install(folder: Path) -> Path:
    """Fetch the packages with npm, without running any of their scripts; returns the folder that holds them."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed; it fetches the pictures")
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))
    subprocess.run([npm, "install", *options, *PACKAGES], check=True)
    return folder / "node_modules"


def find(folder: Path, character: str, suffix: str) -> Path:
    """The picture of a character; :class:`SystemExit` where there is none."""
    for spelt in (character, character.replace(_EMOJI_PRESENTATION, "")):
        file = folder / f"{'-'.join(f'{ord(c):04x}' for c in spelt)}{suffix}"
        if file.exists():
            return file
    raise SystemExit(f"{folder} holds no picture of {character}")


def smaller(image: Image.Image) -> Image.Image:
    """64×64; colours are averaged by how opaque they are, so that none bleeds in from where nothing is seen."""
    premultiplied = image.convert("RGBA").convert("RGBa")
    return premultiplied.resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")


def main() -> None:
    """Fetch, and lay out what the recipe reads."""
    parser = argparse.ArgumentParser(prog="python -m scripts.fetch_emoji", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help=f"{DATA_FOLDER} by default")
    out = parser.parse_args().out
    packages = install(out / "npm")
    annotations = json.loads((packages / _CLDR).read_text())["annotations"]["annotations"]
    captions = {}
    for name, character in NAMES.items():
        for style, folder, suffix in (("noto", _NOTO, ".png"), ("fluent", _FLUENT, ".webp")):
            file = picture_file(out, style, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            smaller(Image.open(find(packages / folder, character, suffix))).save(file)
        said = annotations[character.replace(_EMOJI_PRESENTATION, "")]
        captions[name] = {"full_name": said["tts"][0], "keywords": said["default"]}
    (out / CAPTIONS_FILE).write_text(json.dumps(captions, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(NAMES)} names in {out}")


if __name__ == "__main__":
    main()
