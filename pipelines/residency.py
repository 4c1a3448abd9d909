"""Which models are in memory, who holds them, and which leave when the memory policy says so.

A model is absent, present (its networks are on the device where it computes) or offloaded (they wait on the CPU). A
model that a request holds, or that is marked ``keep``, never leaves. Of the others the one unused for longest leaves
first.
"""

import gc
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch

from pipelines.errors import CatalogError
from pipelines.memory import count_bytes, give_back_memory
from pipelines.model import Model

_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """When models leave.

    Attributes:
        budget: Bytes that the weights of all present models may take together.
        idle_s: Seconds after which an unused model leaves.
        offload: Whether models leave an accelerator for the CPU's memory instead of being dropped.
    """

    budget: float = math.inf
    idle_s: float = math.inf
    offload: bool = False

    @classmethod
    def parse(cls, table: object) -> Self:
        """Read the ``[memory]`` table; :class:`CatalogError` names the key at fault."""
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
        return cls(table.get("budget_gib", math.inf) * _GIB, table.get("idle_s", math.inf), table.get("offload", False))


STAY: Final = MemoryPolicy()
"""Models never leave."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model belongs.

    Attributes:
        device: The device that it computes on.
        keep: Whether it never leaves.
    """

    device: torch.device
    keep: bool = False


@dataclass(slots=True, eq=False)
class _Slot:
    """The state of one model: how many requests hold it, and when it was last loaded or released."""

    name: str
    place: Place
    model: Model | None = None
    holders: int = 0
    used: float = 0.0
    offloaded: bool = False
    retired: bool = False

    @property
    def present(self) -> Model | None:
        """The model if it is on its device."""
        return None if self.offloaded else self.model


def weight_bytes(models: Iterable[Model]) -> int:
    """Bytes of the models' weights; a network that several models share counts once."""
    networks = {id(network): network for model in models for network in model.networks}
    return count_bytes(*networks.values())


class Residency:
    """The models in memory, by name. Safe to use from several threads.

    Args:
        places: Where each model belongs; these are the names that it knows.
        policy: When models leave.
        clock: The monotonic clock, in seconds.
        size: Bytes of several models together.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        policy: MemoryPolicy = STAY,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[Iterable[Model]], int] = weight_bytes,
    ) -> None:
        self._policy, self._clock, self._size = policy, clock, size
        self._lock = threading.Lock()
        self._slots = {name: _Slot(name, place) for name, place in places.items()}

    def follow(self, policy: MemoryPolicy) -> None:
        """Let models leave by another policy from now on."""
        with self._lock:
            self._policy = policy

    def add(self, name: str, place: Place) -> None:
        """Know one more model, absent as yet."""
        with self._lock:
            self._slots = {**self._slots, name: _Slot(name, place)}

    def retire(self, names: Iterable[str]) -> None:
        """Nobody new will ask for these: each leaves for good, and is forgotten, once nobody holds it.

        They leave at the next :meth:`unload_idle`, so this takes no time.
        """
        with self._lock:
            for name in names:
                self._slots[name].retired = True

    def present(self, name: str) -> Model | None:
        """The model if it is on its device. It never waits for the lock: the engine asks at every step."""
        return self._slots[name].present

    def bring_back(self, name: str) -> Model | None:
        """The model on its device, moved there now if it was offloaded; None if it is absent."""
        slot = self._slots[name]
        if (model := slot.present) is not None:
            return model
        with self._lock:
            if (model := slot.model) is None:
                return None
            if slot.offloaded:
                for network in model.networks:
                    network.to(slot.place.device)
                slot.offloaded, slot.used = False, self._clock()
        self._unload_beyond_budget(newcomer=slot)
        return model

    def admit(self, name: str, model: Model) -> None:
        """Take in a model that was just loaded; others leave if it exceeds the budget."""
        slot = self._slots[name]
        with self._lock:
            slot.model, slot.offloaded, slot.used = model, False, self._clock()
        self._unload_beyond_budget(newcomer=slot)

    def hold(self, names: Iterable[str]) -> None:
        """Keep models from leaving until each is released as often as it was held; absent ones may be held too."""
        with self._lock:
            for name in names:
                self._slots[name].holders += 1

    def release(self, names: Iterable[str], *, unload: bool = True) -> None:
        """Undo :meth:`hold`. The time for which a model is unused starts now.

        Args:
            names: As they were held.
            unload: Whether models beyond the budget leave now; False for callers that must not wait for that.
        """
        with self._lock:
            for name in names:
                slot = self._slots[name]
                slot.holders, slot.used = slot.holders - 1, self._clock()
        if unload:
            self._unload_beyond_budget()

    def unload_idle(self) -> list[str]:
        """Make the models leave that were unused for the policy's ``idle_s``, or retired; returns their names."""
        with self._lock:
            gone = [slot for slot in self._slots.values() if slot.retired and not slot.holders]
            self._slots = {name: slot for name, slot in self._slots.items() if slot not in gone}
            latest = self._clock() - self._policy.idle_s
            idle = [slot for slot in self._unused() if slot.used <= latest]
            self._unload([*idle, *gone])
        return [slot.name for slot in (*idle, *gone)]

    def _unload_beyond_budget(self, newcomer: _Slot | None = None) -> None:
        """Make the fewest models leave that bring the rest within the budget; the newcomer is needed now and stays."""
        if self._policy.budget == math.inf:
            return
        with self._lock:
            present = [slot for slot in self._slots.values() if slot.present is not None]
            free = [slot for slot in self._unused() if slot is not newcomer]
            count = 0
            while count < len(free) and self._size_without(present, free[:count]) > self._policy.budget:
                count += 1
            self._unload(free[:count])

    def _size_without(self, present: Sequence[_Slot], leaving: Sequence[_Slot]) -> int:
        staying = (slot.model for slot in present if slot not in leaving)
        return self._size([model for model in staying if model is not None])

    def _unused(self) -> list[_Slot]:
        """The present models that may leave, the one unused for longest first."""
        free = [s for s in self._slots.values() if s.present is not None and not s.holders and not s.place.keep]
        return sorted(free, key=lambda slot: slot.used)

    def _unload(self, leaving: Sequence[_Slot]) -> None:
        """Offload or drop models, and return their memory; the lock is held."""
        if not leaving:
            return
        for slot in leaving:
            if self._policy.offload and slot.place.device.type != "cpu" and not slot.retired:
                slot.offloaded = True
            else:
                slot.model = None
        # A network that a present model shares may be computing now, so it must not move.
        present = [slot.present for slot in self._slots.values()]
        staying = {id(network) for model in present if model is not None for network in model.networks}
        for slot in leaving:
            for network in slot.model.networks if slot.model is not None else ():
                if id(network) not in staying:
                    network.to("cpu")
        gc.collect()
        give_back_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
