"""The models of a process that computes: loaded off the event loop, held while they are needed, read anew."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from pipelines.card import Card
from pipelines.catalog import Catalog, Changes
from pipelines.errors import ModelUnavailableError, PipelineError
from pipelines.model import Model

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelState:
    """How a model stands with those who compute.

    Attributes:
        card: What is known of it without its weights; None before it was ever loaded.
        loaded: Whether someone has it on a device now.
        failure: Why it cannot be loaded; None where nothing is known to be wrong.
    """

    card: Card | None = None
    loaded: bool = False
    failure: str | None = None


class Models:
    """A catalogue's models.

    Args:
        catalog: The models at first.
        preload: Whether all are loaded at the start, and after a reload those that are new or changed.

    Attributes:
        catalog: The models now. A reload puts the next catalogue in its place, so who needs it for longer than a moment
            takes it once.
        ready: Set when the models that are to be ready are loaded, or cannot be.
    """

    def __init__(self, catalog: Catalog, *, preload: bool) -> None:
        self.catalog = catalog
        self.ready = asyncio.Event()
        # A model's key among all that were loaded → what is known of it without its weights.
        self._cards: dict[str, Card] = {}
        self._preload = preload
        self._reloading = asyncio.Lock()

    def state(self, name: str) -> ModelState:
        """How a model stands; its card outlives its unloading."""
        catalog = self.catalog
        model = catalog.loaded(name)
        card = self._cards.get(catalog.key(name)) if model is None else model.card
        return ModelState(card, model is not None, catalog.failure(name))

    async def prepare(self) -> None:
        """Load what is to be ready before the first request."""
        if self._preload:
            await self._load_all(self.catalog)
        self.ready.set()

    async def reload(self) -> Changes:
        """Put the catalogue as its file is now in the place of the one that is used; one reload at a time.

        Jobs that wait or run finish on the models that they were planned for. Where models are preloaded, those that
        are new or changed are loaded before this returns; the service goes on answering meanwhile.

        Raises:
            CatalogError: The file cannot be read or makes no sense; all stays as it was.
        """
        async with self._reloading:
            earlier = self.catalog
            catalog = await asyncio.to_thread(earlier.reread)
            # No await between these two, or a request could hold models of the earlier one that are retired already.
            self.catalog = catalog
            changes = earlier.give_way(catalog)
            told = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
            named = "; ".join(f"{how} {', '.join(names)}" for how, names in told.items() if names)
            _LOG.info("catalogue reloaded: %s", named or "as it was")
            if self._preload:
                await self._load_all(catalog)
            return changes

    @contextlib.asynccontextmanager
    async def held(self, names: Iterable[str], catalog: Catalog) -> AsyncIterator[Mapping[str, Model]]:
        """The models of these names, loaded off the event loop, and kept loaded until the block is left.

        Args:
            names: Of models.
            catalog: The catalogue that has them.

        Raises:
            UnknownModelError: There is none of a name.
            ModelLoadError: One cannot be loaded.
            ModelUnavailableError: The service still loads what it starts with, or memory does not suffice now.
        """
        wanted = list(dict.fromkeys(names))
        catalog.hold(wanted)
        try:
            for name in wanted:
                if catalog.loaded(name) is None and catalog.failure(name) is None and not self.ready.is_set():
                    raise ModelUnavailableError(f"the model {name!r} is still being loaded")
            yield {name: catalog.loaded(name) or await self._load(name, catalog) for name in wanted}
        finally:
            catalog.release(wanted, unload=False)

    async def _load(self, name: str, catalog: Catalog) -> Model:
        """The model of a name, loaded off the event loop; see :meth:`Catalog.get` for what is raised.

        In a thread that ends with it: OpenMP keeps a team of workers for every thread that ever computed, and with more
        workers than processors they all go to sleep between any two operations. On two cores the engine's steps took
        three times as long while a thread that had loaded models lived on.
        """
        loader = ThreadPoolExecutor(1, "superdiff-loader")
        try:
            model = await asyncio.get_running_loop().run_in_executor(
                loader, contextvars.copy_context().run, catalog.get, name
            )
            self._cards[catalog.key(name)] = model.card
            return model
        finally:
            loader.shutdown(wait=False)

    async def _load_all(self, catalog: Catalog) -> None:
        """Load every model that is not loaded; one that fails is reported and leaves the others."""
        for name in catalog.names:
            if catalog.loaded(name) is not None:
                continue
            try:
                model = await self._load(name, catalog)
            except PipelineError as error:
                _LOG.error("%s", error)
            except Exception:
                _LOG.exception("%s cannot be loaded", name)
            else:
                _LOG.info("loaded %s", name)
                for lora, reason in model.card.broken_adapters.items():
                    _LOG.error("%s: the LoRA %r cannot be loaded: %s", name, lora, reason)
