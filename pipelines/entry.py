"""One entry of the catalogue: the keys of a ``[models.NAME]`` table and their meaning.

| key | |
|---|---|
| source | a diffusers folder or a .safetensors file, relative to the catalogue; builtin:NAME; hub:OWNER/NAME |
| revision | of a hub source: a branch, a tag or a commit |
| config | for a .safetensors file: a diffusers folder that has its configuration and tokenizers |
| family | optional for a folder, which names its own; required for a .safetensors file |
| dtype, device | the type and the device that the model computes in |
| steps, guidance_scale, kernel | the defaults of requests to the model |
| space | a name for the data space: models of the same name compose although their autoencoders differ |
| loras | a table of LoRAs: NAME = a .safetensors file, relative to the catalogue |
| keep | true: the model is never unloaded |
| clip_skip | the number of CLIP's last layers that are left out; 1 is called "clip skip 2" in some programs |
| channels_last | lay out the network's weights channels last: faster on most machines, float32 rounding differs |
| compile | compile the network when it is loaded (takes minutes and a C++ compiler); not together with loras |
| tiling | decode and encode in tiles, for large pictures in little memory |
| data_std | the standard deviation of the model's data, used while it is not calibrated |
| forward_rows | the most rows that one forward of the network takes; larger batches are split |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch

from pipelines.card import DEFAULT_KERNEL, DEFAULT_STEPS
from pipelines.errors import CatalogError
from pipelines.kernel import Kernel
from pipelines.params import MAX_STEPS

BUILTIN_PREFIX: Final = "builtin:"
HUB_PREFIX: Final = "hub:"
BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin" / "models"
BUILTIN_MODELS: Final = ("emoji", "shapes", "shapes-round", "shapes-sharp")
BUILTIN_GUIDANCE: Final = {"emoji": 2.0}
"""The default guidance scales of those builtin models that want another than their kind of guidance has."""
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SINGLE_FILE: Final = ".safetensors"
_MAX_GUIDANCE: Final = 100
_MAX_SKIPPED: Final = 11
_LONGEST_NAME: Final = 200
_MAX_ROWS: Final = 100_000
_LEAST_STD: Final = 0.001
_LARGEST_STD: Final = 1000


class Family(NamedTuple):
    """A family and the code that loads it.

    Attributes:
        pipeline: The pipeline class that model_index.json names in a folder of this family.
        model: The class in the family's module; its ``load(source, device, dtype, options)`` returns a model.
        module: The module in pipelines.families; empty if it has the family's name.
    """

    pipeline: str
    model: str
    module: str = ""


FAMILIES: Final = {
    "stable_diffusion": Family("StableDiffusionPipeline", "StableDiffusion"),
    "stable_diffusion_inpaint": Family("StableDiffusionInpaintPipeline", "StableDiffusion", "stable_diffusion"),
    "stable_diffusion_xl": Family("StableDiffusionXLPipeline", "StableDiffusionXL"),
    "stable_diffusion_xl_inpaint": Family(
        "StableDiffusionXLInpaintPipeline", "StableDiffusionXL", "stable_diffusion_xl"
    ),
    "stable_diffusion_3": Family("StableDiffusion3Pipeline", "StableDiffusion3", "flow_matching"),
    "flux": Family("FluxPipeline", "Flux", "flow_matching"),
    "pixart_sigma": Family("PixArtSigmaPipeline", "PixArt", "pixart"),
    "pixart_alpha": Family("PixArtAlphaPipeline", "PixArtAlpha", "pixart"),
    "unconditional": Family("DDPMPipeline", "Unconditional"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue, not yet loaded.

    Attributes:
        name: The name that requests use.
        source: Its folder or its .safetensors file; unused if ``hub`` is given.
        family: Its family; None to read it from the folder.
        dtype: Name of the type to compute in; None for the catalogue's default.
        device: The device to compute on; None for the catalogue's default.
        steps: The default number of steps of a request to it.
        guidance_scale: The default guidance scale; None for that of the model's kind of guidance.
        kernel: The default kernel.
        space: The name that the operator gives the data space; empty for the fingerprint of the autoencoder.
        loras: Name → file of its LoRAs.
        hub: OWNER/NAME of the repository that holds it; empty for none.
        revision: A branch, a tag or a commit of the repository; None for its main branch.
        config: The diffusers folder that has the configuration of a .safetensors file; None to let diffusers look for
            it.
        channels_last: Whether the network's weights are laid out channels last; None for the catalogue's default.
        compile: Whether the network is compiled.
        tiling: Whether pictures are decoded and encoded in tiles.
        clip_skip: The number of CLIP's last layers that are left out.
        keep: Whether it is never unloaded.
        forward_rows: The most rows of one forward; None for the service's own bound.
        data_std: σ_d of its data, for the error curve while it is not calibrated; None for the usual value of its
            family.
    """

    name: str
    source: Path
    family: str | None = None
    dtype: str | None = None
    device: str | None = None
    steps: int = DEFAULT_STEPS
    guidance_scale: float | None = None
    kernel: Kernel = DEFAULT_KERNEL
    space: str = ""
    loras: Mapping[str, Path] = field(default_factory=dict)
    hub: str = ""
    revision: str | None = None
    config: Path | None = None
    channels_last: bool | None = None
    compile: bool = False
    tiling: bool = False
    clip_skip: int = 0
    keep: bool = False
    forward_rows: int | None = None
    data_std: float | None = None

    @classmethod
    def parse(cls, name: str, table: Mapping[str, Any], base: Path) -> Self:
        """Read one ``[models.NAME]`` table, paths relative to ``base``; :class:`CatalogError` says what is wrong."""
        _check_name(name)
        for key, value in table.items():
            where = f"models.{name}.{key}"
            if key not in _KEYS:
                raise CatalogError(f"{where}: there is no such key; allowed are {', '.join(_KEYS)}")
            is_valid, allowed = _KEYS[key]
            if not is_valid(value):
                raise CatalogError(f"{where}: {value!r} is not allowed; it must be {allowed}")
        if "source" not in table:
            raise CatalogError(f"models.{name}.source: missing; it must be {_KEYS['source'][1]}")
        source = _source(str(table["source"]), f"models.{name}.source", base)
        given = _builtin_defaults(source["source"]) | dict(table) | source
        loras = {lora: _path(file, base) for lora, file in given.get("loras", {}).items()}
        # LoRAs cannot be switched once they are compiled in, so those that ship are left out then.
        shipped = {} if given.get("compile") else _builtin_loras(given["source"])
        given["loras"] = shipped | loras
        if "config" in given:
            given["config"] = _path(given["config"], base)
        if "kernel" in given:
            given["kernel"] = Kernel(given["kernel"])
        _check_together(name, given)
        return cls(name, **given)


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or "/" in name or name != name.strip():
        allowed = f"1 to {_LONGEST_NAME} printable characters, no slash, no space at either end"
        raise CatalogError(f"models.{name!r}: a name has {allowed}")


def _check_together(name: str, given: Mapping[str, Any]) -> None:
    """Refuse keys that do not go together."""
    if given["source"].suffix == SINGLE_FILE and "family" not in given:
        raise CatalogError(f"models.{name}.family: missing; a {SINGLE_FILE} file does not name its family")
    if "revision" in given and not given.get("hub"):
        raise CatalogError(f"models.{name}.revision: only {HUB_PREFIX}OWNER/NAME sources have revisions")
    if given.get("compile") and given.get("loras"):
        raise CatalogError(f"models.{name}.compile: not allowed with loras, which would be compiled into the network")


def cannot_be_source(path: Path) -> str | None:
    """Why nothing can be loaded from a path; None if loading may succeed."""
    if not path.exists():
        return "there is no such file or folder"
    if path.is_file() and path.suffix != SINGLE_FILE:
        return f"only {SINGLE_FILE} files are loaded: others are pickled and can run code"
    return None


def check_device(device: str, name: str) -> None:
    """Raise :class:`CatalogError`, which calls the value ``name``, if torch knows no such device."""
    if not _is_device(device):
        raise CatalogError(f"{name}: {device!r} is not a device; allowed are {_DEVICES}")


_DEVICES: Final = "cpu, cuda, cuda:1 and the like"


def _is_device(value: Any) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return isinstance(value, str)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(low: float, high: float, *kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= float(str(value)) <= high


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _is_table_of_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(v) and v.endswith(SINGLE_FILE) for v in value.values())


_KEYS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "source": (_is_text, f"a folder, a {SINGLE_FILE} file, {BUILTIN_PREFIX}NAME or {HUB_PREFIX}OWNER/NAME"),
    "family": _one_of(*FAMILIES),
    "dtype": _one_of(*DTYPES),
    "device": (_is_device, _DEVICES),
    "steps": (_is_number(1, MAX_STEPS, int), f"a whole number from 1 to {MAX_STEPS}"),
    "guidance_scale": (_is_number(0, _MAX_GUIDANCE, int, float), f"a number from 0 to {_MAX_GUIDANCE}"),
    "kernel": _one_of(*Kernel),
    "space": (_is_text, "a name"),
    "loras": (_is_table_of_files, f"a table of names to {SINGLE_FILE} files"),
    "revision": (_is_text, "a branch, a tag or a commit"),
    "config": (_is_text, "a diffusers folder"),
    "clip_skip": (_is_number(0, _MAX_SKIPPED, int), f"a whole number from 0 to {_MAX_SKIPPED}"),
    "channels_last": (_is_bool, "true or false"),
    "compile": (_is_bool, "true or false"),
    "tiling": (_is_bool, "true or false"),
    "keep": (_is_bool, "true or false"),
    "data_std": (_is_number(_LEAST_STD, _LARGEST_STD, int, float), f"a number from {_LEAST_STD} to {_LARGEST_STD}"),
    "forward_rows": (_is_number(1, _MAX_ROWS, int), f"a whole number from 1 to {_MAX_ROWS}"),
}


def _builtin_loras(source: Path) -> dict[str, Path]:
    """The LoRAs that ship with a builtin model, by name; none for any other source."""
    files = sorted((source / "loras").glob(f"*{SINGLE_FILE}")) if source.parent == BUILTIN_FOLDER else []
    return {path.stem: path for path in files}


def _builtin_defaults(source: Path) -> dict[str, Any]:
    """The keys that a builtin model has unless its table says otherwise; none for any other source."""
    scale = BUILTIN_GUIDANCE.get(source.name) if source.parent == BUILTIN_FOLDER else None
    return {} if scale is None else {"guidance_scale": scale}


def _path(text: str, base: Path) -> Path:
    return (base / Path(text).expanduser()).resolve()


def _source(text: str, where: str, base: Path) -> dict[str, Any]:
    if text.startswith(BUILTIN_PREFIX):
        model = text.removeprefix(BUILTIN_PREFIX)
        if model not in BUILTIN_MODELS:
            raise CatalogError(f"{where}: the builtin models are {', '.join(BUILTIN_MODELS)}")
        return {"source": BUILTIN_FOLDER / model}
    if text.startswith(HUB_PREFIX):
        repository = text.removeprefix(HUB_PREFIX)
        if repository.count("/") != 1 or repository.startswith("/") or repository.endswith("/"):
            raise CatalogError(f"{where}: {text!r} must be {HUB_PREFIX}OWNER/NAME")
        return {"source": Path(), "hub": repository}
    return {"source": _path(text, base)}
