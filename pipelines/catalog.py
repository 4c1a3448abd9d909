"""The catalogue: which models there are, loaded when they are first wanted.

A catalogue is a TOML file of ``[models.NAME]`` tables; what may stand in one, :mod:`pipelines.entry` tells. Besides,

    [memory]
    budget_gib = 20        # models beyond are unloaded, the longest unused first
    idle_s = 600           # a model that was not used for so long is unloaded
    offload = true         # what is unloaded from an accelerator waits in the machine's memory

Without it models stay. A model that a request holds, or that says ``keep = true``, is never unloaded; one that was
unloaded is loaded again when it is next wanted, or copied back.
"""

import gc
import importlib
import json
import math
import re
import threading
import time
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import torch

from pipelines.entry import BUILTIN_FOLDER, BUILTIN_MODELS, DTYPES, FAMILIES, Entry, cannot_be_source, check_device
from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.kernel import Kernel
from pipelines.memory import give_back_memory
from pipelines.model import Guidance, LoadOptions, Model

_GUIDANCE: Final = {Guidance.CLASSIFIER_FREE: 4.0, Guidance.DISTILLED: 3.5, Guidance.NONE: 1.0}
# Loading swaps process-wide state (torch's default type, how modules register parameters): one model at a time.
_LOADING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets that does not say."""

    steps: int
    guidance_scale: float
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """When models are unloaded.

    Attributes:
        budget: Bytes that all models' weights may take together.
        idle_s: Seconds after which an unused model goes.
        offload: Whether models go from an accelerator to the machine's memory instead of being forgotten.
    """

    budget: float = math.inf
    idle_s: float = math.inf
    offload: bool = False

    @classmethod
    def parse(cls, table: object) -> Self:
        """Read the ``[memory]`` table; :class:`CatalogError` says what is wrong."""
        if not isinstance(table, dict):
            raise CatalogError("memory: must be a table")
        for key, value in table.items():
            if key not in {"budget_gib", "idle_s", "offload"}:
                raise CatalogError(f"memory.{key}: there is no such key; allowed are budget_gib, idle_s, offload")
            if key == "offload":
                if not isinstance(value, bool):
                    raise CatalogError(f"memory.{key}: {value!r} is not allowed; it must be true or false")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise CatalogError(f"memory.{key}: {value!r} is not allowed; it must be a number above 0")
        return cls(
            table.get("budget_gib", math.inf) * 2**30, table.get("idle_s", math.inf), table.get("offload", False)
        )


@dataclass(slots=True, eq=False)
class _Slot:
    """Where one model is kept, how many requests hold it, when it was last used, whether it is off its device."""

    entry: Entry
    model: Model | None = None
    holders: int = 0
    used: float = 0.0
    away: bool = False

    @property
    def present(self) -> Model | None:
        """The model if it is where it computes."""
        return None if self.away else self.model


# The folders of an absolute path, not of an address.
_FOLDERS: Final = re.compile(r"(?<![\w:/.])/(?:[^\s/'\":,]+/)+")
_STAY: Final = MemoryPolicy()


class Catalog:
    """Name → model. Safe to use from several threads; a model is loaded once, by whoever wants it first.

    Args:
        entries: What it holds.
        device: Where models compute whose entry does not say; None for the first CUDA device, else the CPU.
        policy: When models are unloaded.
        clock: The monotonic clock.
        fast: Whether models whose entry does not say compute in bfloat16, where the processor has it, and channels
            last.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        device: str | None = None,
        policy: MemoryPolicy = _STAY,
        clock: Callable[[], float] = time.monotonic,
        *,
        fast: bool = False,
    ) -> None:
        self._policy, self._clock, self._fast = policy, clock, fast
        self._lock = threading.Lock()
        self._slots = {entry.name: _Slot(entry) for entry in entries}
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(self._device, "device")
        self._parts: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    @classmethod
    def builtin(cls, device: str | None = None, *, fast: bool = False) -> Self:
        """The models that ship with the product."""
        return cls((Entry(name, BUILTIN_FOLDER / name) for name in BUILTIN_MODELS), device, fast=fast)

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
            told = "a catalogue holds [models.NAME] tables, at least one, it may hold [memory], and nothing else"
            raise CatalogError(f"{path.name}: {told}")
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
            catalog._slots[name].model = model
        return catalog

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in the catalogue's order."""
        return tuple(self._slots)

    def entry(self, name: str) -> Entry:
        """The entry of a name; :class:`UnknownModelError` where there is none."""
        return self._slot(name).entry

    def dtype(self, name: str) -> str:
        """The name of the type that a model computes in."""
        entry = self.entry(name)
        if entry.dtype is not None:
            return entry.dtype
        return "bfloat16" if self._fast and _has_bfloat16(self._device_of(entry)) else "float32"

    def source(self, name: str) -> Path:
        """Where a model's files are; taken from the hub now if they are to come from there."""
        return _fetched(self.entry(name))

    def loaded(self, name: str) -> Model | None:
        """The model if it is loaded and where it computes."""
        return self._slot(name).present

    def defaults(self, name: str) -> Defaults:
        """What a request to the model gets that does not say; the model is loaded if it was not."""
        entry = self.entry(name)
        guidance = entry.guidance_scale
        if guidance is None:
            guidance = _GUIDANCE[self.get(name).card.guidance]
        return Defaults(entry.steps, guidance, entry.kernel)

    def get(self, name: str) -> Model:
        """The model, loaded or brought back now if it was not there; :class:`ModelLoadError` where it cannot be."""
        slot = self._slot(name)
        model = slot.present
        if model is None:
            with _LOADING:
                if slot.model is None:
                    slot.model = self._load(slot.entry)
                model = slot.model
            with self._lock:
                if slot.away:
                    for part in model.networks:
                        part.to(self._device_of(slot.entry))
                    slot.away = False
                slot.used = self._clock()
            self._unload_beyond_budget(slot)
        return model

    def hold(self, names: Iterable[str]) -> None:
        """Keep models from being unloaded until they are released as often."""
        slots = [self._slot(name) for name in names]
        with self._lock:
            for slot in slots:
                slot.holders += 1

    def release(self, names: Iterable[str], *, unload: bool = True) -> None:
        """Undo :meth:`hold`; what nobody holds is unused from now on, and goes if the budget wants it.

        Args:
            names: As they were held.
            unload: False for callers that have no time to unload anything.
        """
        with self._lock:
            for name in names:
                slot = self._slots[name]
                slot.holders, slot.used = slot.holders - 1, self._clock()
        if unload:
            self._unload_beyond_budget()

    def unload_idle(self) -> list[str]:
        """Unload the models that nobody has used for the policy's time; their names."""
        with self._lock:
            latest = self._clock() - self._policy.idle_s
            idle = [slot for slot in self._unused() if slot.used <= latest]
            return self._drop(idle)

    def _unload_beyond_budget(self, newcomer: "_Slot | None" = None) -> None:
        if self._policy.budget == math.inf:
            return
        with self._lock:
            there = {slot for slot in self._slots.values() if slot.present is not None}
            free = [slot for slot in self._unused() if slot is not newcomer]
            going = 0
            while going < len(free) and _bytes_of(there - set(free[:going])) > self._policy.budget:
                going += 1
            self._drop(free[:going])

    def _unused(self) -> list["_Slot"]:
        """The loaded models that may be unloaded, longest unused first."""
        free = [s for s in self._slots.values() if s.present is not None and not s.holders and not s.entry.keep]
        return sorted(free, key=lambda slot: slot.used)

    def _drop(self, slots: Sequence["_Slot"]) -> list[str]:
        for slot in slots:
            if self._policy.offload and self._device_of(slot.entry).type != "cpu":
                slot.away = True
            else:
                slot.model = None
        # What is shared with a model that stays must not move: it may be computing.
        staying = {id(part) for slot in self._slots.values() if slot.present for part in slot.present.networks}
        for slot in slots:
            for part in slot.model.networks if slot.model is not None else ():
                if id(part) not in staying:
                    part.to("cpu")
        if slots:
            gc.collect()
            give_back_memory()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return [slot.entry.name for slot in slots]

    def _device_of(self, entry: Entry) -> torch.device:
        return torch.device(entry.device or self._device)

    def _slot(self, name: str) -> _Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise UnknownModelError(name, self.names) from None

    def _load(self, entry: Entry) -> Model:
        # Imported when first needed: diffusers takes seconds.
        try:
            source = _fetched(entry)
            family = _family_of(source) if entry.family is None else entry.family
            kind = FAMILIES[family]
            module = importlib.import_module(f"pipelines.families.{kind.module or family}")
            device = self._device_of(entry)
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
            dtype = DTYPES[self.dtype(entry.name)]
            model: Model = getattr(module, kind.model).load(source, device, dtype, options)
            if entry.compile:
                _compile_now(model)
        except ModelLoadError as error:
            raise ModelLoadError(f"{entry.name}: {error}") from error
        except Exception as error:
            # Whatever else loading raises (a device that is not there, memory, a value that no family foresaw) is the
            # operator's to mend, and never the fault of the request that happened to be first.
            raise ModelLoadError(f"{entry.name}: cannot be loaded: {_first_line(error)}") from error
        return model


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16; a processor without instructions for it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _compile_now(model: Model) -> None:
    """Draw two pictures in one step, so that no request waits for the compiler.

    Wider than high: what is of one size when it is compiled would be compiled for one size.
    """
    from pipelines.composition import Prompt
    from pipelines.params import SamplingParams
    from pipelines.sampler import sample

    card = model.card
    params = SamplingParams(
        steps=1, guidance_scale=1.0, num_images=2, width=card.width + card.multiple, height=card.height
    )
    sample(Prompt("", "it"), params, {"it": model})


def _bytes_of(slots: Iterable[_Slot]) -> int:
    """What the models' weights take, those that several share counted once."""
    parts = {id(part): part for slot in slots if slot.model is not None for part in slot.model.networks}
    return sum(weight.nbytes for part in parts.values() for weight in (*part.parameters(), *part.buffers()))


def _fetched(entry: Entry) -> Path:
    """Where an entry's files are, taken from the hub now if they are to come from there."""
    if not entry.hub:
        return entry.source
    from pipelines.families.hub import fetch

    return fetch(entry.hub, entry.revision)


def _family_of(folder: Path) -> str:
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
    """What an exception says, without where things lie on this machine: of paths, only their last part."""
    told = _FOLDERS.sub("", str(error)).strip()
    return (told or type(error).__name__).splitlines()[0]
