"""The catalogue: which models there are. Each is loaded when it is first needed.

A catalogue is a TOML file of ``[models.NAME]`` tables; :mod:`pipelines.entry` lists their keys. It may also hold

    [memory]
    budget_gib = 20        # models beyond it are unloaded, the one unused for longest first
    idle_s = 600           # a model that was unused for this long is unloaded
    offload = true         # models are unloaded from an accelerator to the machine's memory

Without this table models stay loaded. A model that a request holds, or whose entry has ``keep = true``, is never
unloaded. An unloaded model is loaded or moved back when it is needed again.

A catalogue never changes. :meth:`Catalog.reread` makes the next one from the file as it is now; both share the models
that are the same in both, and who took the earlier one goes on with it.
"""

import importlib
import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import torch

from pipelines.card import DEFAULT_GUIDANCE_SCALES, DEFAULT_GUIDANCE_START, Card, Defaults, Guidance
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
from pipelines.errors import CatalogError, ModelLoadError, ModelUnavailableError, UnknownModelError
from pipelines.importing import collector_paused
from pipelines.model import LoadOptions, Model
from pipelines.residency import STAY, MemoryPolicy, Place, Residency
from pipelines.warmup import compile_now

Files = tuple[tuple[str, int, int], ...]

# Loading swaps process-wide state (torch's default type, how modules register parameters): one model at a time.
_LOADING: Final = threading.Lock()
# The folders of an absolute path; web addresses do not match.
_FOLDERS: Final = re.compile(r"(?<![\w:/.])/(?:[^\s/'\":,]+/)+")


@dataclass(frozen=True, slots=True)
class Changes:
    """How a catalogue differs from the one before it; names of models.

    Attributes:
        added: That are new.
        changed: Whose entry or files are others, or that could not be loaded before.
        removed: That are gone.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Shared:
    """What a catalogue has in common with those that follow it: the loaded models and their parts."""

    residency: Residency
    parts: WeakValueDictionary[Hashable, Any] = field(default_factory=WeakValueDictionary)
    editions: int = 0


@dataclass(slots=True)
class _Kept:
    """A model as several catalogues know it: its name in the residency, and its files when it was loaded."""

    key: str
    files: Files | None = None


class Catalog:
    """Name → model. Safe to use from several threads; a model is loaded once, by the thread that needs it first.

    Args:
        entries: The models.
        device: The device of the models whose entry names none; None for the first CUDA device, else the CPU.
        policy: When models are unloaded.
        clock: The monotonic clock, in seconds.
        fast: Whether models whose entry does not say compute in bfloat16, if their device is faster with it, and
            channels last.
        path: The file that it was read from; None for none.
        shared: What it has in common with the catalogue that it follows; None for nothing.
        kept: The models that are the same in both.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        device: str | None = None,
        policy: MemoryPolicy = STAY,
        clock: Callable[[], float] = time.monotonic,
        *,
        fast: bool = False,
        path: Path | None = None,
        shared: "_Shared | None" = None,
        kept: Mapping[str, "_Kept"] = MappingProxyType({}),
    ) -> None:
        self._fast, self._policy, self._path = fast, policy, path
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(self._device, "device")
        self._entries = {entry.name: entry for entry in entries}
        self._shared = shared or _Shared(Residency({}, policy, clock))
        self._residency, self._parts = self._shared.residency, self._shared.parts
        self._shared.editions += 1
        # What changed has a name of its own in the residency, where it stands beside what it was.
        suffix = "" if shared is None else f"/{self._shared.editions}"
        self._kept = {name: kept.get(name) or _Kept(f"{name}{suffix}") for name in self._entries}
        # Model → why it cannot be loaded, until the catalogue is read anew.
        self._failures: dict[str, ModelLoadError] = {}
        for name, entry in self._entries.items():
            if name not in kept:
                self._residency.add(self._kept[name].key, Place(self._device_of(entry), entry.keep))

    @classmethod
    def builtin(cls, device: str | None = None, *, fast: bool = False) -> Self:
        """The models that ship with the product."""
        return cls(_builtin_entries(), device, fast=fast)

    @classmethod
    def read(cls, path: Path, device: str | None = None, *, fast: bool = False) -> Self:
        """Read a catalogue file; :class:`CatalogError` names the key at fault."""
        entries, policy = _read(path)
        return cls(entries, device, policy, fast=fast, path=path)

    def reread(self) -> Self:
        """The catalogue as its file and its models' files are now; this one stays as it is.

        Models whose entry and files are the same are shared, loaded or not. Others are loaded when they are first
        needed, and so are those that could not be loaded, or of which a LoRA could not.

        Raises:
            CatalogError: The file cannot be read any more, or makes no sense.
        """
        entries, policy = (list(self._entries.values()), self._policy) if self._path is None else _read(self._path)
        same = {entry.name: self._kept[entry.name] for entry in entries if self._still(entry)}
        return type(self)(
            entries, self._device, policy, fast=self._fast, path=self._path, shared=self._shared, kept=same
        )

    def give_way(self, following: "Catalog") -> Changes:
        """Let the catalogue that was reread take this one's place: models that only this one has leave after use."""
        gone = set(self.names) - set(following.names)
        changed = {name for name in set(self.names) - gone if self.key(name) != following.key(name)}
        self._residency.follow(following.policy)
        self._residency.retire(self.key(name) for name in gone | changed)
        added = set(following.names) - set(self.names)
        return Changes(*(tuple(sorted(names)) for names in (added, changed, gone)))

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

    @property
    def device(self) -> str:
        """The device of the models whose entry names none."""
        return self._device

    @property
    def policy(self) -> MemoryPolicy:
        """When its models are unloaded."""
        return self._policy

    def key(self, name: str) -> str:
        """What a model is called among all that are loaded: two catalogues share it if it is the same."""
        return self._kept[self.entry(name).name].key

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

    def defaults(self, expression: Expression, cards: Mapping[str, Card]) -> Defaults:
        """The parameters of a request for an expression that gives none.

        They are the lead model's own. Where n prompts must hold together, an average one of them gets an n-th of the
        guidance, so the scale is n times the model's.
        """
        name = lead(expression)
        entry, guidance = self.entry(name), cards[name].guidance
        scale = DEFAULT_GUIDANCE_SCALES[guidance] if entry.guidance_scale is None else entry.guidance_scale
        together = conjuncts(expression)
        if guidance is not Guidance.CLASSIFIER_FREE or scale <= 1 or together == 1:
            return Defaults(entry.steps, scale, 0.0, entry.kernel)
        return Defaults(entry.steps, scale * together, DEFAULT_GUIDANCE_START, entry.kernel)

    def loaded(self, name: str) -> Model | None:
        """The model if it is loaded and on its device."""
        return self._residency.present(self.key(name))

    def failure(self, name: str) -> str | None:
        """Why a model cannot be loaded, if that was tried and only mending and rereading helps."""
        error = self._failures.get(name)
        return None if error is None else str(error)

    def get(self, name: str) -> Model:
        """The model on its device; it is loaded or moved back now if necessary.

        Raises:
            UnknownModelError: There is no model of this name.
            ModelLoadError: It cannot be loaded; the message says why, without paths of this machine. It is not tried
                again by this catalogue.
            ModelUnavailableError: It cannot be loaded now; the next call tries again.
        """
        entry, key = self.entry(name), self.key(name)
        model = self._residency.bring_back(key)
        if model is not None:
            return model
        with _LOADING:
            model = self._residency.bring_back(key)
            if model is None:
                model = self._load_once(entry)
                self._residency.admit(key, model)
            return model

    def hold(self, names: Iterable[str]) -> None:
        """Keep models from being unloaded until they are released as often; see :meth:`Residency.hold`."""
        self._residency.hold([self.key(name) for name in names])

    def release(self, names: Iterable[str], *, unload: bool = True) -> None:
        """Undo :meth:`hold`; see :meth:`Residency.release`."""
        self._residency.release([self.key(name) for name in names], unload=unload)

    def unload_idle(self) -> list[str]:
        """Unload the models that were unused for the policy's ``idle_s``; returns their names."""
        return self._residency.unload_idle()

    def _device_of(self, entry: Entry) -> torch.device:
        return torch.device(entry.device or self._device)

    def _still(self, entry: Entry) -> bool:
        """Whether an entry says what this catalogue's own says, of the same files, and nothing failed."""
        name = entry.name
        if entry != self._entries.get(name) or name in self._failures:
            return False
        kept = self._kept[name]
        model = self._residency.present(kept.key)
        if model is not None and model.card.broken_adapters:
            return False
        return kept.files is None or kept.files == _files_of(entry)

    def _load_once(self, entry: Entry) -> Model:
        """Load a model, unless it is known that it cannot be."""
        if entry.name in self._failures:
            raise ModelLoadError(str(self._failures[entry.name]))
        self._kept[entry.name].files = _files_of(entry)
        try:
            return self._load(entry)
        except ModelUnavailableError:
            raise
        except ModelLoadError as error:
            self._failures[entry.name] = error.with_traceback(None)
            raise

    def _load(self, entry: Entry) -> Model:
        try:
            source = _fetched(entry)
            family = _family_of(source) if entry.family is None else entry.family
            kind = FAMILIES[family]
            # Imported when it is first needed: diffusers takes seconds. There is no model before the first family.
            with collector_paused("pipelines.families.folder"):
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
            raise type(error)(f"{entry.name}: {error}") from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelUnavailableError(f"{entry.name}: there is too little memory for it now") from error
        except Exception as error:
            # Anything else (a missing device, a broken file, a value that no family foresaw) is for the operator to
            # fix. It is never the fault of the request that needed the model first.
            raise ModelLoadError(f"{entry.name}: cannot be loaded: {_first_line(error)}") from error
        return model


def _builtin_entries() -> list[Entry]:
    return [Entry.parse(name, {"source": f"{BUILTIN_PREFIX}{name}"}, Path()) for name in BUILTIN_MODELS]


def _read(path: Path) -> tuple[list[Entry], MemoryPolicy]:
    """The entries and the policy of a catalogue file; :class:`CatalogError` names the key at fault."""
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
    return entries, MemoryPolicy.parse(data.get("memory", {}))


def _files_of(entry: Entry) -> Files:
    """Path, size and time of all files that a model is read from; of a hub's, whose cache has no changes, none."""
    folders = [entry.source, *([entry.config] if entry.config else [])] if not entry.hub else []
    files = [file for folder in folders for file in (_within(folder) if folder.is_dir() else [folder])]
    found = []
    for file in sorted({*files, *entry.loras.values()}):
        try:
            about = file.stat()
        except OSError:
            continue
        found.append((str(file), about.st_size, about.st_mtime_ns))
    return tuple(found)


def _within(folder: Path) -> list[Path]:
    """All files of a folder; its parts may be links to those of another model."""
    return [Path(root, file) for root, _, files in os.walk(folder, followlinks=True) for file in files]


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
