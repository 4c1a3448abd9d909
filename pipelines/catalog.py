"""The catalogue: which models there are, loaded when they are first wanted.

A catalogue is a TOML file:

    [models.shapes]
    source = "builtin:shapes"        # a model that ships with the product, or a folder, relative to this file
    family = "stable_diffusion"      # optional: read from the folder's model_index.json
    dtype = "float32"                # optional: float32, float16, bfloat16
    device = "cuda:0"                # optional: the catalogue's own device otherwise
"""

import threading
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import torch

from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.model import Model

BUILTIN_PREFIX: Final = "builtin:"
BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin" / "models"
BUILTIN_MODELS: Final = ("shapes", "shapes-round", "shapes-sharp")
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Loader = Callable[[Path, torch.device, torch.dtype], Model]


def _families() -> Mapping[str, tuple[str, Loader]]:
    """Family → (pipeline class in model_index.json, loader). Imported late: diffusers takes seconds."""
    from pipelines.families import stable_diffusion, unconditional

    return MappingProxyType(
        {
            "stable_diffusion": (stable_diffusion.PIPELINE, stable_diffusion.StableDiffusion.load),
            "unconditional": (unconditional.PIPELINE, unconditional.Unconditional.load),
        }
    )


FAMILIES: Final = ("stable_diffusion", "unconditional")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue, not yet loaded.

    Attributes:
        name: What requests call it.
        folder: Where its files are.
        family: Its family; None to read it from the folder.
        dtype: Name of the type to compute in.
        device: Where to compute; None for the catalogue's default.
    """

    name: str
    folder: Path
    family: str | None = None
    dtype: str = "float32"
    device: str | None = None

    @classmethod
    def parse(cls, name: str, table: Mapping[str, Any], base: Path) -> Self:
        """Read one ``[models.NAME]`` table, paths relative to ``base``; :class:`CatalogError` says what is wrong."""
        allowed = ("source", "family", "dtype", "device")
        for key, value in table.items():
            if key not in allowed or not isinstance(value, str):
                told = f"allowed keys are {', '.join(allowed)}, each a string"
                raise CatalogError(f"models.{name}.{key}: {told}")
        source = table.get("source")
        if not source:
            raise CatalogError(f"models.{name}.source: missing; name a folder or {BUILTIN_PREFIX}NAME")
        for key, choices in (("family", FAMILIES), ("dtype", tuple(_DTYPES))):
            if key in table and table[key] not in choices:
                raise CatalogError(f"models.{name}.{key}: {table[key]!r} is unknown; allowed are {', '.join(choices)}")
        if "device" in table:
            _check_device(table["device"], f"models.{name}.device")
        if source.startswith(BUILTIN_PREFIX):
            wanted = source.removeprefix(BUILTIN_PREFIX)
            if wanted not in BUILTIN_MODELS:
                raise CatalogError(f"models.{name}.source: builtin models are {', '.join(BUILTIN_MODELS)}")
            folder = BUILTIN_FOLDER / wanted
        else:
            folder = (base / Path(source).expanduser()).resolve()
        return cls(name, folder, table.get("family"), table.get("dtype", "float32"), table.get("device"))


def _check_device(device: str, told_as: str) -> None:
    try:
        torch.device(device)
    except RuntimeError:
        raise CatalogError(f"{told_as}: {device!r} is no device; allowed are cpu, cuda, cuda:1 and the like") from None


@dataclass(slots=True)
class _Slot:
    """Where one model is kept, and the lock under which it is loaded."""

    entry: Entry
    lock: threading.Lock = field(default_factory=threading.Lock)
    model: Model | None = None


class Catalog:
    """Name → model. Safe to use from several threads; a model is loaded once, by whoever wants it first.

    Args:
        entries: What it holds.
        device: Where models compute whose entry does not say; None for the first CUDA device, else the CPU.
    """

    def __init__(self, entries: Iterable[Entry], device: str | None = None) -> None:
        self._slots = {entry.name: _Slot(entry) for entry in entries}
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(self._device, "device")

    @classmethod
    def builtin(cls, device: str | None = None) -> Self:
        """The models that ship with the product."""
        return cls((Entry(name, BUILTIN_FOLDER / name) for name in BUILTIN_MODELS), device)

    @classmethod
    def read(cls, path: Path, device: str | None = None) -> Self:
        """Read a catalogue file; :class:`CatalogError` names the key at fault."""
        try:
            data = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise CatalogError(f"{path}: no such catalogue") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CatalogError(f"{path.name}: not TOML: {error}") from error
        models = data.get("models")
        if set(data) != {"models"} or not isinstance(models, dict) or not models:
            raise CatalogError(f"{path.name}: a catalogue holds [models.NAME] tables, at least one, and nothing else")
        for name, table in models.items():
            if not isinstance(table, dict):
                raise CatalogError(f"models.{name}: must be a table")
        return cls((Entry.parse(name, table, path.parent) for name, table in models.items()), device)

    @classmethod
    def of(cls, models: Mapping[str, Model]) -> Self:
        """A catalogue of models that are loaded already."""
        catalog = cls(Entry(name, Path()) for name in models)
        for name, model in models.items():
            catalog._slots[name].model = model
        return catalog

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in the catalogue's order."""
        return tuple(self._slots)

    def entry(self, name: str) -> Entry:
        """The entry of a name; :class:`UnknownModelError` where there is none."""
        return self._slot(name).entry

    def loaded(self, name: str) -> Model | None:
        """The model if it is loaded."""
        return self._slot(name).model

    def get(self, name: str) -> Model:
        """The model, loaded now if it was not; :class:`ModelLoadError` where it cannot be."""
        slot = self._slot(name)
        with slot.lock:
            if slot.model is None:
                slot.model = self._load(slot.entry)
            return slot.model

    def _slot(self, name: str) -> _Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise UnknownModelError(name, self.names) from None

    def _load(self, entry: Entry) -> Model:
        from pipelines.families.folder import pipeline_class

        families = _families()
        if entry.family is not None:
            _, load = families[entry.family]
        else:
            found = pipeline_class(entry.folder)
            loaders = dict(families.values())
            if found not in loaders:
                raise ModelLoadError(f"{entry.name}: no family loads a {found}; known are {', '.join(loaders)}")
            load = loaders[found]
        return load(entry.folder, torch.device(entry.device or self._device), _DTYPES[entry.dtype])
