"""Where a command's files go: checked before anything is computed for them, and written whole or not at all."""

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.commands.common import CommandError

FORMATS: Final = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The ending of a picture's file → its format."""
_STEM: Final = "composed"
_PROBE: Final = b"\0" * 4096
_COLUMNS: Final = 4
_GAP: Final = 4  # pixels between the pictures of a contact sheet


@dataclass(frozen=True, slots=True)
class Target:
    """Files of one command.

    Attributes:
        folder: Where they are.
        stem: How their names begin.
        suffix: How the pictures' names end.
        numbered: Whether pictures have numbers.
        folder_asked: Whether a folder was asked for: then several pictures get a contact sheet.
    """

    folder: Path
    stem: str
    suffix: str
    numbered: bool
    folder_asked: bool

    @property
    def format(self) -> str:
        """The pictures' format."""
        return FORMATS[self.suffix.lower()]

    def picture(self, index: int, part: str = "", suffix: str | None = None) -> Path:
        """The path of a picture, or of what belongs to it."""
        number = f"-{index}" if self.numbered else ""
        return self.folder / f"{self.stem}{number}{part}{suffix or self.suffix}"

    def beside(self, name: str) -> Path:
        """The path of a file that there is once."""
        return self.folder / (name if self.folder_asked else f"{self.stem}-{name}")


def target_of(out: str, count: int, image_format: str | None = None) -> Target:
    """Where pictures go; makes the folder, and refuses what cannot be written.

    Args:
        out: A file, or a folder: one that is there, or a name that ends with a slash. Several pictures get numbers.
        count: How many pictures.
        image_format: "png", "jpeg" or "webp"; None for what the file's ending says, PNG in a folder.

    Raises:
        CommandError: Nothing can be written there, or the ending is none of a picture.
    """
    path = Path(out)
    folder_asked = out.endswith(("/", os.sep)) or path.is_dir()
    if folder_asked:
        target = Target(path, _STEM, f".{image_format or 'png'}", numbered=True, folder_asked=True)
    else:
        target = Target(path.parent, path.stem, path.suffix, numbered=count > 1, folder_asked=False)
    if target.suffix.lower() not in FORMATS:
        raise CommandError(f"--out {out}: its extension must be one of {', '.join(FORMATS)}")
    if image_format is not None and target.format != image_format:
        raise CommandError(f"--out {out}: its extension does not match --output-format {image_format}")
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CommandError(f"--out {out}: cannot be written: {target.folder} is not a folder") from error
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written: {error.strerror}") from error
    for index in range(count):
        if (file := target.picture(index)).is_dir():
            raise CommandError(f"--out {out}: cannot be written: {file} is a folder")
    probe = target.folder / f".{target.stem}.{os.getpid()}.probe"
    try:
        probe.write_bytes(_PROBE)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return target


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that there is never a part of it: beside its place first.

    Raises:
        CommandError: It cannot be written: no space, no permission.
    """
    path = path.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error


def contact_sheet(pictures: Sequence[bytes]) -> bytes:
    """One PNG with all pictures, in rows, each at the place of the largest."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    width, height = max(each.width for each in opened) + _GAP, max(each.height for each in opened) + _GAP
    columns = min(_COLUMNS, len(opened))
    rows = -(-len(opened) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for index, each in enumerate(opened):
        row, column = divmod(index, columns)
        sheet.paste(each, (column * width + _GAP, row * height + _GAP))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()
