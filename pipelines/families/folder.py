"""What families that live in a diffusers folder share: reading it safely, its data space, its calibration."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from diffusers import ConfigMixin

from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.kernel import DenoisingError
from pipelines.prediction import Prediction

CALIBRATION_FILE: Final = "calibration.json"
_VARIANCE_PRESERVING: Final = (Prediction.EPSILON, Prediction.V, Prediction.SAMPLE)
_SAYS_NOTHING_OF_DECODING: Final = {"sample_size", "force_upcast"}
_P = TypeVar("_P")


def load_pipeline(folder: Path, load: Callable[..., _P], **options: Any) -> _P:
    """Call a diffusers ``from_pretrained`` on local safetensors only."""
    return load(folder, local_files_only=True, use_safetensors=True, **options)


def prediction_of(scheduler: Mapping[str, Any]) -> Prediction:
    """What a variance-preserving model predicts, from its scheduler's config."""
    name = scheduler.get("prediction_type", Prediction.EPSILON)
    if name not in _VARIANCE_PRESERVING:
        known = ", ".join(_VARIANCE_PRESERVING)
        raise ModelLoadError(f"its scheduler says prediction_type {name!r}; known are {known}")
    return Prediction(name)


def side(size: int | Sequence[int]) -> tuple[int, int]:
    """(width, height) from a network's ``sample_size``, which is one number or (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return width, height


def fingerprint(codec: ConfigMixin) -> str:
    """SHA-256 of an autoencoder: of what its configuration says of decoding, and of its weights in float16.

    So the same autoencoder is the same in whatever folder it lies, beside whatever other files, in float32 or float16.
    """
    said = {k: v for k, v in codec.config.items() if not k.startswith("_") and k not in _SAYS_NOTHING_OF_DECODING}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, weight in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_calibration(path: Path) -> DenoisingError | None:
    """The measured m(σ) stored at ``path``, None where there is no such file."""
    try:
        stored = json.loads(path.read_text())
        return DenoisingError(tuple(map(float, stored["sigmas"])), tuple(map(float, stored["denoising_error"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, InvalidInputError) as error:
        raise ModelLoadError(f"{path.name} is not a calibration: {error}") from error


def write_calibration(path: Path, curve: DenoisingError) -> None:
    """Store a measured m(σ) where :func:`read_calibration` finds it."""
    stored = {"sigmas": list(curve.sigmas), "denoising_error": list(curve.values)}
    path.write_text(json.dumps(stored, indent=1) + "\n")


def count_parameters(*modules: torch.nn.Module) -> int:
    """How many weights the modules have together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
