"""The catalogue: which models there are. Each is loaded when it is first needed.

A catalogue is a TOML file of ``[models.NAME]`` tables; :mod:`pipelines.entry` lists their keys. It may also hold

    [memory]
    budget_gib = 20        # models beyond it are unloaded, the one unused for longest first
    idle_s = 600           # a model that was unused for this long is unloaded
    offload = true         # models are unloaded from an accelerator to the machine's memory

Without this table models stay loaded. A model that a request holds, or whose entry has ``keep = true``, is never
unloaded. An unloaded model is loaded or moved back when it is needed again.
"""

import importlib
import json
import re
import threading
import time
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import torch

from pipelines.card import DEFAULT_GUIDANCE_SCALES, DEFAULT_GUIDANCE_START, Defaults, Guidance
from pipelines.composition import Expression, conjuncts, lead
from pipelines.entry import (
    BUILTIN_MODELS,
    BUILTIN_PREFIX,
    DTYPES,
    FAMILIES,
    Entry,
    cannot_be_source,
    check_device,
)
from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.model import LoadOptions, Model
from pipelines.residency import STAY, MemoryPolicy, Place, Residency
from pipelines.warmup import compile_now

# Loading swaps process-wide state (torch's default type, how modules register parameters): one model at a time.
_LOADING: Final = threading.Lock()
# The folders of an absolute path; web addresses do not match.
_FOLDERS: Final = re.compile(r"(?<![\w:/.])/(?:[^\s/'\":,]+/)+")


class Catalog:
    """Name → model. Safe to use from several threads; a model is loaded once, by the thread that needs it first.

    Args:
        entries: The models.
        device: The device of the models whose entry names none; None for the first CUDA device, else the CPU.
        policy: When models are unloaded.
        clock: The monotonic clock, in seconds.
        fast: Whether models whose entry does not say compute in bfloat16, if their device is faster with it, and
            channels last.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        device: str | None = None,
        policy: MemoryPolicy = STAY,
        clock: Callable[[], float] = time.monotonic,
        *,
        fast: bool = False,
    ) -> None:
        self._fast = fast
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(self._device, "device")
        self._entries = {entry.name: entry for entry in entries}
        places = {name: Place(self._device_of(entry), entry.keep) for name, entry in self._entries.items()}
        self._residency = Residency(places, policy, clock)
        self._parts: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    @classmethod
    def builtin(cls, device: str | None = None, *, fast: bool = False) -> Self:
        """The models that ship with the product."""
        entries = (Entry.parse(name, {"source": f"{BUILTIN_PREFIX}{name}"}, Path()) for name in BUILTIN_MODELS)
        return cls(entries, device, fast=fast)

    @classmethod
    def read(cls, path: Path, device: str | None = None, *, fast: bool = False) -> Self:
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
        if not {"models"} <= set(data) <= {"models", "memory"} or not isinstance(models, dict) or not models:
            detail = "a catalogue holds at least one [models.NAME] table, optionally a [memory] table, and nothing else"
            raise CatalogError(f"{path.name}: {detail}")
        for name, table in models.items():
            if not isinstance(table, dict):
                raise CatalogError(f"models.{name}: must be a table")
        entries = [Entry.parse(name, table, path.parent) for name, table in models.items()]
        return cls(entries, device, MemoryPolicy.parse(data.get("memory", {})), fast=fast)

    @classmethod
    def of(cls, models: Mapping[str, Model]) -> Self:
        """A catalogue of models that are loaded already."""
        catalog = cls(Entry(name, Path()) for name in models)
        for name, model in models.items():
            catalog._residency.admit(name, model)
        return catalog

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in the catalogue's order."""
        return tuple(self._entries)

    def entry(self, name: str) -> Entry:
        """The entry of a name; :class:`UnknownModelError` if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModelError(name, self.names) from None

    def dtype(self, name: str) -> str:
        """The name of the type that a model computes in."""
        entry = self.entry(name)
        if entry.dtype is not None:
            return entry.dtype
        return "bfloat16" if self._fast and _has_bfloat16(self._device_of(entry)) else "float32"

    def source(self, name: str) -> Path:
        """Where a model's files are; files from the hub are downloaded now."""
        return _fetched(self.entry(name))

    def defaults(self, expression: Expression) -> Defaults:
        """The parameters of a request for an expression that gives none; may load the lead model.

        They are the lead model's own. Where n prompts must hold together, an average one of them gets an n-th of the
        guidance, so the scale is n times the model's.
        """
        name = lead(expression)
        entry, guidance = self.entry(name), self.get(name).card.guidance
        scale = DEFAULT_GUIDANCE_SCALES[guidance] if entry.guidance_scale is None else entry.guidance_scale
        together = conjuncts(expression)
        if guidance is not Guidance.CLASSIFIER_FREE or scale <= 1 or together == 1:
            return Defaults(entry.steps, scale, 0.0, entry.kernel)
        return Defaults(entry.steps, scale * together, DEFAULT_GUIDANCE_START, entry.kernel)

    def loaded(self, name: str) -> Model | None:
        """The model if it is loaded and on its device."""
        return self._residency.present(self.entry(name).name)

    def get(self, name: str) -> Model:
        """The model on its device; it is loaded or moved back now if necessary.

        Raises:
            UnknownModelError: There is no model of this name.
            ModelLoadError: It cannot be loaded; the message says why, without paths of this machine.
        """
        entry = self.entry(name)
        model = self._residency.bring_back(name)
        if model is not None:
            return model
        with _LOADING:
            model = self._residency.bring_back(name)
            if model is None:
                model = self._load(entry)
                self._residency.admit(name, model)
            return model

    def hold(self, names: Iterable[str]) -> None:
        """Keep models from being unloaded until they are released as often; see :meth:`Residency.hold`."""
        self._residency.hold([self.entry(name).name for name in names])

    def release(self, names: Iterable[str], *, unload: bool = True) -> None:
        """Undo :meth:`hold`; see :meth:`Residency.release`."""
        self._residency.release(names, unload=unload)

    def unload_idle(self) -> list[str]:
        """Unload the models that were unused for the policy's ``idle_s``; returns their names."""
        return self._residency.unload_idle()

    def _device_of(self, entry: Entry) -> torch.device:
        return torch.device(entry.device or self._device)

    def _load(self, entry: Entry) -> Model:
        try:
            source = _fetched(entry)
            family = _family_of(source) if entry.family is None else entry.family
            kind = FAMILIES[family]
            # Imported when it is first needed: diffusers takes seconds.
            module = importlib.import_module(f"pipelines.families.{kind.module or family}")
            device, dtype = self._device_of(entry), DTYPES[self.dtype(entry.name)]
            options = LoadOptions(
                loras=entry.loras,
                config=entry.config,
                space=entry.space,
                tiling=entry.tiling,
                clip_skip=entry.clip_skip,
                channels_last=self._fast if entry.channels_last is None else entry.channels_last,
                compile=entry.compile,
                data_std=entry.data_std,
                parts=self._parts,
            )
            model: Model = getattr(module, kind.model).load(source, device, dtype, options)
            if entry.compile:
                compile_now(model)
        except ModelLoadError as error:
            raise ModelLoadError(f"{entry.name}: {error}") from error
        except Exception as error:
            # Anything else (a missing device, too little memory, a value that no family foresaw) is for the operator to
            # fix. It is never the fault of the request that needed the model first.
            raise ModelLoadError(f"{entry.name}: cannot be loaded: {_first_line(error)}") from error
        return model


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16; a processor without instructions for it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _fetched(entry: Entry) -> Path:
    """Where an entry's files are; files from the hub are downloaded now."""
    if not entry.hub:
        return entry.source
    from pipelines.families.hub import fetch

    return fetch(entry.hub, entry.revision)


def _family_of(folder: Path) -> str:
    """The family whose pipeline class the folder names."""
    found = _pipeline_class(folder)
    for name, family in FAMILIES.items():
        if found == family.pipeline:
            return name
    known = ", ".join(family.pipeline for family in FAMILIES.values())
    raise ModelLoadError(f"no family loads a {found}; known are {known}")


def _pipeline_class(folder: Path) -> str:
    """The ``_class_name`` in the folder's model_index.json."""
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError | NotADirectoryError) else error.strerror
        reason = cannot_be_source(folder) or f"model_index.json there {reason}"
        raise ModelLoadError(f"its source must be a diffusers folder, but {reason}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError("its model_index.json names no pipeline class") from error


def _first_line(error: Exception) -> str:
    """The first line of an exception's message; paths of this machine are cut to their last part."""
    message = _FOLDERS.sub("", str(error)).strip()
    return (message or type(error).__name__).splitlines()[0]
