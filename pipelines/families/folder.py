"""What families that live in a diffusers folder share: reading it safely, its data space, its calibration."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.kernel import DenoisingError

CALIBRATION_FILE: Final = "calibration.json"
_CHUNK: Final = 1 << 20
_P = TypeVar("_P")


def pipeline_class(folder: Path) -> str:
    """The ``_class_name`` in a folder's model_index.json; :class:`ModelLoadError` where there is none."""
    index = folder / "model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except FileNotFoundError:
        raise ModelLoadError(f"{index.parent.name}: no model_index.json; this is not a diffusers folder") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise ModelLoadError(f"{index.parent.name}: model_index.json names no pipeline class") from None
    return str(name)


def load_pipeline(folder: Path, load: Callable[..., _P], **options: Any) -> _P:
    """Call a diffusers ``from_pretrained`` on local safetensors only; every failure becomes :class:`ModelLoadError`."""
    try:
        return load(folder, local_files_only=True, use_safetensors=True, **options)
    except Exception as error:  # loaders raise whatever their file formats raise: SafetensorError, OSError, KeyError …
        reason = str(error).replace(str(folder), folder.name).strip().split("\n")[0]
        raise ModelLoadError(f"{folder.name}: cannot be loaded: {reason}") from error


def fingerprint(folder: Path) -> str:
    """SHA-256 of a part's configuration and weights: equal parts are equal in whatever folder they lie.

    Of the configuration, what diffusers notes for itself (``_name_or_path``, ``_diffusers_version``) does not count.
    """
    config = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def read_calibration(path: Path) -> DenoisingError | None:
    """The measured m(σ) stored at ``path``, None where there is no such file."""
    try:
        stored = json.loads(path.read_text())
        return DenoisingError(tuple(map(float, stored["sigmas"])), tuple(map(float, stored["denoising_error"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, InvalidInputError) as error:
        raise ModelLoadError(f"{path.parent.name}: {path.name} is not a calibration: {error}") from error


def write_calibration(path: Path, curve: DenoisingError) -> None:
    """Store a measured m(σ) where :func:`read_calibration` finds it."""
    stored = {"sigmas": list(curve.sigmas), "denoising_error": list(curve.values)}
    path.write_text(json.dumps(stored, indent=1) + "\n")


def count_parameters(*modules: torch.nn.Module) -> int:
    """How many weights the modules have together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
