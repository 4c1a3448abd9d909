"""What goes wrong, in the service's own words: one table of statuses, which every dialect renders in its own way."""

import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pipelines.errors import (
    CatalogError,
    IncompatibleModelsError,
    InvalidInputError,
    ModelLoadError,
    ModelUnavailableError,
    NonFiniteError,
    PipelineError,
    UnknownModelError,
)
from pipelines.grammar import GrammarError, UnknownModelInTextError
from service.durable.blobs import UnreadableError
from service.engine.job import CancelledJobError, DeadlineError, EngineStoppedError
from service.engine.scheduler import QueueFullError
from service.keeper.errors import EarlierFailureError, IdempotencyError, LostFileError, MovedError
from service.logs import request_id
from service.pictures import PictureTooLargeError
from service.quotas import QuotaError
from service.schemas.fields import MOST_PLACES, within_sentence
from service.store.port import DiskFullError, StoreUnavailableError, UnknownJobError
from service.strict_json import NestedTooDeepError, NotJsonError, TooManyItemsError

_LOG: Final = logging.getLogger(__name__)

STATUS: Final[Mapping[type[Exception], HTTPStatus]] = {
    PictureTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IncompatibleModelsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    NonFiniteError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ModelLoadError: HTTPStatus.SERVICE_UNAVAILABLE,
    ModelUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    CatalogError: HTTPStatus.INTERNAL_SERVER_ERROR,
    PipelineError: HTTPStatus.INTERNAL_SERVER_ERROR,
    QueueFullError: HTTPStatus.TOO_MANY_REQUESTS,
    QuotaError: HTTPStatus.TOO_MANY_REQUESTS,
    EngineStoppedError: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    CancelledJobError: HTTPStatus.CONFLICT,
    DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
    UnknownJobError: HTTPStatus.NOT_FOUND,
    IdempotencyError: HTTPStatus.CONFLICT,
    NotJsonError: HTTPStatus.BAD_REQUEST,
    TooManyItemsError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    NestedTooDeepError: HTTPStatus.UNPROCESSABLE_ENTITY,
    MovedError: HTTPStatus.SERVICE_UNAVAILABLE,
    EarlierFailureError: HTTPStatus.INTERNAL_SERVER_ERROR,
    UnreadableError: HTTPStatus.INTERNAL_SERVER_ERROR,
    DiskFullError: HTTPStatus.INSUFFICIENT_STORAGE,
    LostFileError: HTTPStatus.GONE,
}
# Seconds after which to ask again, where nothing better is known.
_RETRY_AFTER_S: Final = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 10}


@dataclass(frozen=True, slots=True)
class Place:
    """A field at fault.

    Attributes:
        path: Where it is in the body; for a header or a parameter "header", "path" or "query" stands before it.
        detail: What is wrong.
        column: Where in an expression's text, in characters; the first is 1.
    """

    path: tuple[str | int, ...]
    detail: str
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request is refused or failed.

    Attributes:
        status: The HTTP status.
        detail: One sentence for the client, without internals.
        places: The fields at fault, if it is about fields; at most MOST_PLACES.
        left_out: How many further fields are at fault.
        queue_position: How many jobs wait already, if the queue is full.
        headers: What the answer carries besides.
    """

    status: HTTPStatus
    detail: str
    places: tuple[Place, ...] = ()
    left_out: int = 0
    queue_position: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Renderer = Callable[[Request, Fault], Response]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a dialect tells faults.

    Attributes:
        render: Makes the answer.
        error: What the answer's body holds.
        media_type: Of that body.
    """

    render: Renderer
    error: type[BaseModel]
    media_type: str = "application/json"


def fault_of(error: Exception, reference: str | None = None) -> Fault:
    """The fault of an exception; an exception that is not in the table keeps its internals to itself.

    Args:
        error: What was raised.
        reference: The id under which the log has its internals already; None to log it now under a new request id.
    """
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        if reference is None:
            reference = f"request id {request_id() or uuid.uuid4().hex}"
            _LOG.error("%s failed", reference, exc_info=error)
        detail = f"The service failed at this request. Tell its operator the {reference}."
        return Fault(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
    if isinstance(error, EarlierFailureError):
        status = HTTPStatus(error.status)
    places: tuple[Place, ...] = ()
    if isinstance(error, InvalidInputError | UnknownModelError) and error.field:
        column = error.column if isinstance(error, GrammarError | UnknownModelInTextError) else None
        places = (Place(tuple(error.field), str(error), column),)
    lasting = isinstance(error, ModelLoadError) and not isinstance(error, ModelUnavailableError)
    headers, waiting = {} if lasting else _retry(status), None
    if isinstance(error, QueueFullError):
        waiting = error.waiting
    if isinstance(error, QueueFullError | QuotaError) and error.retry_after_s is not None:
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    detail = f"{error}; it stays so until the service's operator mends it" if lasting else str(error)
    return Fault(status, detail, places, queue_position=waiting, headers=headers)


def dialect_of(path: str, native: Dialect, dialects: Mapping[str, Dialect]) -> Dialect:
    """The dialect of a path; see :func:`by_path`."""
    found = [prefix for prefix in dialects if path == prefix or path.startswith(f"{prefix}/")]
    return dialects[max(found, key=len)] if found else native


def by_path(native: Dialect, dialects: Mapping[str, Dialect]) -> Renderer:
    """Renders a fault in the dialect of the request's path.

    Args:
        native: The dialect of paths that are no other's.
        dialects: The first part of a dialect's paths → the dialect.
    """

    def rendered(request: Request, fault: Fault) -> Response:
        response = dialect_of(request.url.path, native, dialects).render(request, fault)
        response.headers.update(getattr(request.state, "job_headers", {}))
        return response

    return rendered


def install(app: FastAPI, rendered: Renderer, methods: Callable[[Request], Sequence[str]] = lambda _: ()) -> None:
    """Let the app answer every exception.

    Args:
        app: The application.
        rendered: How a fault is told.
        methods: Those that the resource of a request has.
    """

    async def known(request: Request, error: Exception) -> Response:
        return rendered(request, fault_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return rendered(request, refusal(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Exception) and error.status_code == HTTPStatus.BAD_REQUEST:
            # FastAPI has one sentence for whatever reading a body raises.
            return rendered(request, _unreadable(error.__cause__, encoded="content-encoding" in request.headers))
        status = HTTPStatus(error.status_code)
        headers = {**_retry(status), **(error.headers or {})}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(methods(request))
        return rendered(request, Fault(status, error.detail, headers=headers))

    for kind in STATUS:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, known)


def _retry(status: HTTPStatus) -> dict[str, str]:
    return {"Retry-After": str(_RETRY_AFTER_S[status])} if status in _RETRY_AFTER_S else {}


def _unreadable(cause: Exception, *, encoded: bool) -> Fault:
    """415 for a compressed body; for another, what was found, and 400 where that is not in the table."""
    if encoded:
        detail = "the body must be sent as it is, without Content-Encoding"
        return Fault(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    return fault_of(cause) if type(cause) in STATUS else Fault(HTTPStatus.BAD_REQUEST, "the body cannot be read")


def refusal(error: RequestValidationError) -> Fault:
    """400 for no body, 415 for one that does not say it is JSON, else 422 with the fields at fault."""
    faults = error.errors()
    if error.body is None and [fault["loc"] for fault in faults] == [("body",)]:
        return Fault(HTTPStatus.BAD_REQUEST, "the body is empty or null; it must be a JSON object")
    if isinstance(error.body, bytes):
        detail = "the body must be JSON: send Content-Type: application/json"
        return Fault(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    return fields_at_fault(faults)


def fields_at_fault(faults: Sequence[Mapping[str, Any]]) -> Fault:
    """422 with what pydantic found, of many faults the first."""
    places = tuple(Place(_path(fault), within_sentence(str(fault["msg"]))) for fault in faults[:MOST_PLACES])
    left_out = len(faults) - len(places)
    more = [f"and {left_out} more"] if left_out else []
    detail = "; ".join([*(f"{pointer(place.path)}: {place.detail}" for place in places), *more])
    return Fault(HTTPStatus.UNPROCESSABLE_ENTITY, detail, places, left_out)


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer as a URI fragment (RFC 6901): ("components", 0) → "#/components/0"."""
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _path(fault: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Where the fault lies: inside the body without a word before it, elsewhere after "header", "path" or "query"."""
    where, *path = fault["loc"]
    return tuple(path) if where == "body" else (where, *path)
