"""Answering requests in this process, by the service's own parts: the same intake, engine and words, no HTTP."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from pydantic import ValidationError

from pipelines.catalog import Catalog
from pipelines.errors import PipelineError
from service.api.answers import events
from service.api.problem import problem
from service.building import build_engine
from service.callbacks import Callbacks
from service.callers import Caller
from service.commands.common import refused
from service.commands.session import Told
from service.embedded import Embedded
from service.faults import fault_of, fields_at_fault
from service.keeper.keeper import Keeper
from service.keeper.worker import Worker
from service.keyring import Keyring
from service.loading import Models
from service.orders import accept
from service.pictures import ImageFormat
from service.registry import Record, Registry
from service.rendering import Rendering
from service.schemas.requests import Asking, DensityRequest, SuperposeRequest
from service.services import Services
from service.settings import Settings

_KINDS: Final[Mapping[str, type[Asking]]] = {"/v1/superpose": SuperposeRequest, "/v1/density": DensityRequest}
# What bounds strangers' requests does not bound those of whoever owns the machine.
_BOUNDS: Final = ("max_job_rows", "max_job_work", "max_pixels", "max_image_pixels", "waiting_rows", "waiting_bytes")
_NO_BOUND: Final = 1 << 62


class LocalSession:
    """Jobs of an engine in this process; see :class:`service.commands.session.Session`.

    Args:
        catalog: The models.
        settings: How the engine works.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        free = dict.fromkeys(_BOUNDS, _NO_BOUND) | {"max_timeout_s": float("inf")}
        settings = settings.model_copy(update=free)
        registry = Registry(settings.hold_s, settings.hold_bytes)
        self._engine = engine = build_engine(settings, catalog)
        self._models, worker = Models(catalog, preload=False), Worker(engine)
        # Its jobs end with the command: none is kept.
        self._services = Services(
            settings,
            self._models,
            Embedded(engine, self._models, registry, worker.id),
            registry,
            Keeper(registry, worker),
            Keyring(),
            Callbacks((), "", private=False, metrics=engine.metrics),
        )
        self._runner = asyncio.Runner()
        self._records: dict[str, Record] = {}

    def __enter__(self) -> Self:
        """Start the engine."""
        self._engine.start()
        self._runner.get_loop()
        self._models.ready.set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop it, with whatever still runs."""
        self._engine.stop()
        self._runner.close()

    def submit(self, path: str, body: Mapping[str, Any]) -> str:
        """Queue a request; returns the job's id."""
        try:
            request = _KINDS[path].model_validate(body)
            record = self._runner.run(self._take_in(request))
        except ValidationError as error:
            raise refused(problem(fields_at_fault(error.errors()), path).model_dump()) from error
        except PipelineError:
            raise
        except Exception as error:
            raise refused(problem(fault_of(error), path).model_dump()) from error
        self._records[record.job.id] = record
        return record.job.id

    def events(self, job_id: str) -> Iterator[Told]:
        """The job's events up to the last."""
        stream = events(self._records[job_id])

        async def following() -> Told | None:
            event = await anext(stream, None)
            return None if event is None else Told(str(event.event), json.loads(str(event.data)))

        while (told := self._runner.run(following())) is not None:
            yield told

    def cancel(self, job_id: str) -> None:
        """Cancel the job; harmless where it is over."""
        self._engine.cancel(self._records[job_id].job)

    async def _take_in(self, request: Asking) -> Record:
        services = self._services
        order = request.order(services.catalog.names, "", services.settings.max_timeout_s)
        rendering = Rendering(request.pictured or ImageFormat.PNG, request.by_url)
        return await accept(order, services, Caller(""), rendering)
