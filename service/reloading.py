"""Reading the catalogue anew while the service runs."""

import asyncio
import logging
from typing import Final

from pipelines.catalog import Catalog, Changes
from pipelines.errors import PipelineError
from service.services import Services

_LOG: Final = logging.getLogger(__name__)


async def reload(services: Services) -> Changes:
    """Put the catalogue as its file is now in the place of the one that is used; one reload at a time.

    Jobs that wait or run finish on the models that they were planned for. Where models are preloaded, those that are
    new or changed are loaded before this returns; the service goes on answering meanwhile.

    Raises:
        CatalogError: The file cannot be read or makes no sense; all stays as it was.
    """
    async with services.reloading:
        earlier = services.catalog
        catalog = await asyncio.to_thread(earlier.reread)
        # No await between these two, or a request could hold models of the earlier one that are retired already.
        services.catalog = catalog
        changes = earlier.give_way(catalog)
        told = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
        named = "; ".join(f"{how} {', '.join(names)}" for how, names in told.items() if names)
        _LOG.info("catalogue reloaded: %s", named or "as it was")
        if services.settings.preload:
            await load_all(services, catalog)
        return changes


async def load_all(services: Services, catalog: Catalog) -> None:
    """Load every model that is not loaded; one that fails is reported and leaves the others."""
    for name in catalog.names:
        if catalog.loaded(name) is not None:
            continue
        try:
            model = await services.load(name, catalog)
        except PipelineError as error:
            _LOG.error("%s", error)
        except Exception:
            _LOG.exception("%s cannot be loaded", name)
        else:
            _LOG.info("loaded %s", name)
            for lora, reason in model.card.broken_adapters.items():
                _LOG.error("%s: the LoRA %r cannot be loaded: %s", name, lora, reason)
