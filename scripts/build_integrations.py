"""Builds what users install of integrations/: a zip for Krita's plug-in importer and one for ComfyUI's custom_nodes.

    python -m scripts.build_integrations [folder]

The client that both share is one file in the repository, to which each has a symbolic link; in the zips it is a file.
So there is nothing that could drift apart, and nothing that needs links where a zip is unpacked.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

ROOT: Final = Path(__file__).parents[1]
_SOURCE: Final = ROOT / "integrations"
_SKIPPED: Final = {"__pycache__", ".ruff_cache", ".mypy_cache"}
# The same files give the same bytes, whenever they are built.
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = 0o644 << 16
_FOLDER_MODE: Final = (0o40755 << 16) | 0x10


def build(folder: Path) -> list[Path]:
    """Write both zips into a folder and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    krita, comfyui = _SOURCE / "krita", _SOURCE / "comfyui"
    return [
        _zip(folder / "superdiff-krita.zip", krita, [krita / "superdiff_krita.desktop", krita / "superdiff_krita"]),
        _zip(folder / "superdiff-comfyui.zip", comfyui, [comfyui], under="superdiff/"),
    ]


def _zip(target: Path, base: Path, parts: list[Path], under: str = "") -> Path:
    """A zip of files and folders, named from ``base`` on; the licence goes with it."""
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for part in parts:
            for path in _walk(part):
                name = under + path.relative_to(base).as_posix()
                if path.is_dir():
                    # Krita's importer finds a package by its folder's own entry.
                    entry = ZipInfo(name.removesuffix(".").rstrip("/") + "/", _DATE)
                    entry.external_attr = _FOLDER_MODE
                    archive.writestr(entry, b"")
                else:
                    _add(archive, name, path)
        _add(archive, f"{under}LICENSE", ROOT / "LICENSE")
    return target


def _add(archive: ZipFile, name: str, path: Path) -> None:
    entry = ZipInfo(name, _DATE)
    entry.external_attr, entry.compress_type = _FILE_MODE, ZIP_DEFLATED
    archive.writestr(entry, path.read_bytes())


def _walk(path: Path) -> Iterator[Path]:
    """A file, or a folder and all that is in it, in order; links are followed."""
    yield path
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            if inner.name not in _SKIPPED:
                yield from _walk(inner)


if __name__ == "__main__":
    for built in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"):
        print(built)
