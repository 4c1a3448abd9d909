"""Common to families that are stored as diffusers folders: safe loading, the data space, the calibration."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.kernel import DenoisingError
from pipelines.model import DEFAULT_OPTIONS, LoadOptions
from pipelines.prediction import Prediction

CALIBRATION_FILE: Final = "calibration.json"
_VARIANCE_PRESERVING: Final = (Prediction.EPSILON, Prediction.V, Prediction.SAMPLE)
_IRRELEVANT_TO_DECODING: Final = {"sample_size", "force_upcast"}
_FINGERPRINTS: Final[WeakKeyDictionary[ConfigMixin, str]] = WeakKeyDictionary()
_SAMPLED_VALUES: Final = 64
_P = TypeVar("_P", bound=DiffusionPipeline)

# While they load, these libraries print messages for developers, progress bars among them.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_pipeline(
    kind: type[_P],
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
    options: LoadOptions = DEFAULT_OPTIONS,
    **parts: Any,
) -> _P:
    """A diffusers pipeline from local safetensors alone, on a device, for inference.

    Args:
        kind: The pipeline's class.
        source: A folder in diffusers' layout, or a single .safetensors file in the layout of the original code.
        device: The device to load it to.
        dtype: The type to compute in.
        options: How to load it; if they name no configuration for a single file, diffusers looks for one in its cache
            and on the hub.
        parts: Parts that are passed instead of read.
    """
    parts = shared_parts(source, dtype, device, options) | parts
    pipeline = _read(kind, source, dtype, options.config, parts)
    if (vae := pipeline.components.get("vae")) is not None:
        fingerprint(vae)
        if dtype is torch.bfloat16:
            (pipeline if source.is_file() else vae).to(dtype)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    share_parts(pipeline, source, dtype, device, options)
    return pipeline


def _read(kind: type[_P], source: Path, dtype: torch.dtype, config: Path | None, parts: dict[str, Any]) -> _P:
    # The fingerprint is of the weights in float16, to which bfloat16 has lost too many digits: cast after it is taken.
    coarse = dtype is torch.bfloat16
    if source.is_file():
        check_whole(source)
        beside = {} if config is None else {"config": str(config), "local_files_only": True}
        single: _P = kind.from_single_file(str(source), dtype=torch.float32 if coarse else dtype, **beside, **parts)
        return single
    variant = _variant(source)
    for file in source.glob("*/*.safetensors"):
        # "model.fp16.safetensors" belongs to a variant, "model-00001-of-00002.safetensors" does not.
        if (f".{variant}" in file.stem) if variant else ("." not in file.stem):
            check_whole(file)
    whole: _P = kind.from_pretrained(
        source,
        local_files_only=True,
        use_safetensors=True,
        dtype={"vae": torch.float32, "default": dtype} if coarse else dtype,
        variant=variant,
        **parts,
    )
    return whole


def shared_parts(source: Path, dtype: torch.dtype, device: torch.device, options: LoadOptions) -> dict[str, Any]:
    """The autoencoder and text encoders that another model has loaded from files of the same content, by part.

    Models with LoRAs or clip skip change their text encoders and so share none; an autoencoder with tiling is not
    shared with a model without.
    """
    found = {part: options.parts.get(key) for part, key in _part_keys(source, dtype, device, options).items()}
    return {part: module for part, module in found.items() if module is not None}


def share_parts(
    pipeline: DiffusionPipeline, source: Path, dtype: torch.dtype, device: torch.device, options: LoadOptions
) -> None:
    """Register a loaded pipeline's autoencoder and text encoders for the models that are loaded after it."""
    for part, key in _part_keys(source, dtype, device, options).items():
        if part in pipeline.components:
            options.parts.setdefault(key, pipeline.components[part])


def _part_keys(
    source: Path, dtype: torch.dtype, device: torch.device, options: LoadOptions
) -> dict[str, tuple[object, ...]]:
    if source.is_file():
        return {}
    keys: dict[str, tuple[object, ...]] = {}
    changed = options.loras or options.clip_skip
    for part in ("vae", *(() if changed else ("text_encoder", "text_encoder_2", "text_encoder_3"))):
        files = sorted(f for f in (source / part).glob("*") if f.suffix in {".json", ".safetensors"})
        if files:
            content = tuple(_file_hash(file) for file in files)
            keys[part] = (part, content, dtype, str(device), options.tiling and part == "vae")
    return keys


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def skips_no_layers(options: LoadOptions) -> None:
    """Raise :class:`ModelLoadError` if the options ask for clip skip, which the calling family does not support."""
    if options.clip_skip:
        raise ModelLoadError("clip_skip is for Stable Diffusion 1 and 2")


def check_whole(file: Path) -> None:
    """Raise :class:`ModelLoadError` for a file that is truncated or not safetensors; the header states the length."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        detail = f"{file.parent.name}/{file.name} is truncated or not a safetensors file: {error}"
        raise ModelLoadError(detail) from error


def _variant(folder: Path) -> str | None:
    """The variant "fp16" if a folder has its weights only as model.fp16.safetensors, else None."""
    for part in folder.iterdir():
        files = [file.name for file in part.glob("*.safetensors")] if part.is_dir() else []
        if files and all(".fp16" in name for name in files):
            return "fp16"
    return None


def calibration_path(source: Path) -> Path:
    """The file of a model's measured m(σ): in its folder, or beside its single file."""
    return source / CALIBRATION_FILE if source.is_dir() else source.with_suffix(f".{CALIBRATION_FILE}")


def prediction_of(scheduler: Mapping[str, Any]) -> Prediction:
    """The prediction type of a variance-preserving model, from its scheduler's config."""
    name = scheduler.get("prediction_type", Prediction.EPSILON)
    if name not in _VARIANCE_PRESERVING:
        known = ", ".join(_VARIANCE_PRESERVING)
        raise ModelLoadError(f"its scheduler has prediction_type {name!r}; known are {known}")
    return Prediction(name)


def side(size: int | Sequence[int]) -> tuple[int, int]:
    """(width, height) from a network's ``sample_size``, which is one number or (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return width, height


def fingerprint(codec: ConfigMixin) -> str:
    """SHA-256 of an autoencoder: of its weights in float16 and of the configuration that decoding depends on.

    It does not depend on the folder, on other files in it, or on whether the weights are stored in float32 or float16.
    It is computed once for each module and kept when the module is cast.
    """
    if codec in _FINGERPRINTS:
        return _FINGERPRINTS[codec]
    relevant = {k: v for k, v in codec.config.items() if not k.startswith("_") and k not in _IRRELEVANT_TO_DECODING}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode())
    for name, weight in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    _FINGERPRINTS[codec] = digest.hexdigest()
    return _FINGERPRINTS[codec]


def sampled_digest(modules: Iterable[torch.nn.Module]) -> str:
    """SHA-256 of the first and the middle values of every parameter: other weights of the same kind have another one.

    Reading all of them would take seconds, and would bring files into memory whose weights are not used yet.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in sorted(module.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            values = parameter.detach().flatten()
            for start in (0, len(values) // 2):
                chunk = values[start : start + _SAMPLED_VALUES].to("cpu").contiguous()
                digest.update(chunk.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_calibration(path: Path) -> DenoisingError | None:
    """The measured m(σ) that is stored at ``path``; None if there is no such file."""
    try:
        stored = json.loads(path.read_text())
        return DenoisingError(tuple(map(float, stored["sigmas"])), tuple(map(float, stored["denoising_error"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, InvalidInputError) as error:
        raise ModelLoadError(f"{path.name} is not a calibration: {error}") from error


def write_calibration(path: Path, curve: DenoisingError) -> None:
    """Store a measured m(σ) for :func:`read_calibration`."""
    stored = {"sigmas": list(curve.sigmas), "denoising_error": list(curve.values)}
    path.write_text(json.dumps(stored, indent=1) + "\n")


def count_parameters(*modules: torch.nn.Module) -> int:
    """The number of the modules' parameters together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
