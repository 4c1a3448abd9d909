"""The catalogue: which models there are, loaded when they are first wanted.

A catalogue is a TOML file:

    [models.shapes]
    source = "builtin:shapes"        # a model that ships with the product, or a folder, relative to this file
    family = "stable_diffusion"      # optional: read from the folder's model_index.json
    dtype = "float32"                # optional: float32, float16, bfloat16
    device = "cuda:0"                # optional: the catalogue's own device otherwise
"""

import importlib
import json
import threading
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch

from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.model import Model

BUILTIN_PREFIX: Final = "builtin:"
BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin" / "models"
BUILTIN_MODELS: Final = ("shapes", "shapes-round", "shapes-sharp")
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Family(NamedTuple):
    """A family: the module of its name in pipelines.families.

    Attributes:
        pipeline: The class in model_index.json by which a folder is known to be of it.
        model: The class in the family's module; its ``load(folder, device, dtype)`` makes a model.
    """

    pipeline: str
    model: str


FAMILIES: Final = {
    "stable_diffusion": Family("StableDiffusionPipeline", "StableDiffusion"),
    "unconditional": Family("DDPMPipeline", "Unconditional"),
}
# Loading swaps process-wide state (torch's default type, how modules register parameters): one model at a time.
_LOADING: Final = threading.Lock()


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
        for key, choices in (("family", tuple(FAMILIES)), ("dtype", tuple(_DTYPES))):
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
    """Where one model is kept."""

    entry: Entry
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
        except OSError as error:
            raise CatalogError(f"{path}: cannot be read: {error.strerror}") from error
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
        if slot.model is None:
            with _LOADING:
                if slot.model is None:
                    slot.model = self._load(slot.entry)
        return slot.model

    def _slot(self, name: str) -> _Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise UnknownModelError(name, self.names) from None

    def _load(self, entry: Entry) -> Model:
        family = entry.family or _family_of(entry)
        # Imported when first needed: diffusers takes seconds.
        module = importlib.import_module(f"pipelines.families.{family}")
        device = torch.device(entry.device or self._device)
        try:
            model: Model = getattr(module, FAMILIES[family].model).load(entry.folder, device, _DTYPES[entry.dtype])
        except ModelLoadError as error:
            raise ModelLoadError(f"{entry.name}: {error}") from error
        except Exception as error:
            # Whatever else loading raises (a device that is not there, memory, a value that no family foresaw) is the
            # operator's to mend, and never the fault of the request that happened to be first.
            raise ModelLoadError(f"{entry.name}: cannot be loaded: {_first_line(error, entry.folder)}") from error
        return model


def _family_of(entry: Entry) -> str:
    found = _pipeline_class(entry)
    for name, family in FAMILIES.items():
        if found == family.pipeline:
            return name
    known = ", ".join(family.pipeline for family in FAMILIES.values())
    raise ModelLoadError(f"{entry.name}: no family loads a {found}; known are {known}")


def _pipeline_class(entry: Entry) -> str:
    """The ``_class_name`` in the folder's model_index.json."""
    try:
        return str(json.loads((entry.folder / "model_index.json").read_text())["_class_name"])
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError | NotADirectoryError) else error.strerror
        raise ModelLoadError(
            f"{entry.name}: its source must be a diffusers folder, but model_index.json there {reason}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{entry.name}: its model_index.json names no pipeline class") from error


def _first_line(error: Exception, folder: Path) -> str:
    """What an exception says, without where things lie on this machine."""
    return (str(error).replace(str(folder), folder.name).strip() or type(error).__name__).splitlines()[0]
