"""From exceptions to problem documents (RFC 9457): the one place where the wire learns of what went wrong."""

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from pipelines.errors import (
    CatalogError,
    IncompatibleModelsError,
    InvalidInputError,
    ModelLoadError,
    NonFiniteError,
    PipelineError,
    UnknownModelError,
)
from pipelines.grammar import GrammarError, UnknownModelInTextError
from service.engine.job import CancelledJobError, DeadlineError, EngineStoppedError
from service.engine.scheduler import QueueFullError
from service.idempotency import IdempotencyError
from service.pictures import PictureTooLargeError
from service.registry import UnknownJobError
from service.schemas.fields import within_sentence

MEDIA_TYPE: Final = "application/problem+json"
_LOG: Final = logging.getLogger(__name__)


class FieldProblem(BaseModel):
    """One field at fault."""

    pointer: str
    detail: str
    column: Annotated[
        int | None, Field(description="Where in an expression's text, in characters; the first is 1.")
    ] = None


class Problem(BaseModel):
    """A problem document, RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem] = []
    queue_position: int | None = None


STATUS: Final[Mapping[type[Exception], HTTPStatus]] = {
    PictureTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IncompatibleModelsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    NonFiniteError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ModelLoadError: HTTPStatus.SERVICE_UNAVAILABLE,
    CatalogError: HTTPStatus.INTERNAL_SERVER_ERROR,
    PipelineError: HTTPStatus.INTERNAL_SERVER_ERROR,
    QueueFullError: HTTPStatus.TOO_MANY_REQUESTS,
    EngineStoppedError: HTTPStatus.SERVICE_UNAVAILABLE,
    CancelledJobError: HTTPStatus.CONFLICT,
    DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
    UnknownJobError: HTTPStatus.NOT_FOUND,
    IdempotencyError: HTTPStatus.CONFLICT,
}
_RETRY_AFTER: Final = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 10}


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer as a URI fragment (RFC 6901): ("components", 0) → "#/components/0"."""
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def problem(
    request: Request,
    status: HTTPStatus,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The response that carries a problem."""
    document = Problem(
        title=status.phrase, status=status, detail=detail, instance=request.url.path, errors=list(errors)
    )
    return _response(document, headers)


def _response(document: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    status = HTTPStatus(document.status)
    retry = {"Retry-After": str(_RETRY_AFTER[status])} if status in _RETRY_AFTER else {}
    return JSONResponse(document.model_dump(exclude_none=True), status, {**retry, **(headers or {})}, MEDIA_TYPE)


def describe(error: Exception, instance: str, reference: str | None = None) -> Problem:
    """The problem document of an exception; one that is not in the table keeps its inside to itself.

    Args:
        error: What was raised.
        instance: The path that it concerns.
        reference: Under what the log holds its inside already; None to log it now under a new request id.
    """
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        if reference is None:
            reference = f"request id {uuid.uuid4().hex}"
            _LOG.error("%s failed", reference, exc_info=error)
        detail = f"The service failed at this request. Tell its operator the {reference}."
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return Problem(title=status.phrase, status=status, detail=detail, instance=instance)
    document = Problem(title=status.phrase, status=status, detail=str(error), instance=instance)
    if isinstance(error, InvalidInputError | UnknownModelError) and error.field:
        column = error.column if isinstance(error, GrammarError | UnknownModelInTextError) else None
        document.errors = [FieldProblem(pointer=pointer(error.field), detail=str(error), column=column)]
    if isinstance(error, QueueFullError):
        document.queue_position = error.waiting
    return document


def install(app: FastAPI) -> None:
    """Let the app answer every exception with a problem document."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        headers = {}
        if isinstance(error, QueueFullError) and error.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        return _response(describe(error, request.url.path), headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _refusal(request, error)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Exception) and error.status_code == HTTPStatus.BAD_REQUEST:
            return _unreadable(request, error.__cause__)  # FastAPI has one sentence for whatever json.loads raises
        return problem(request, HTTPStatus(error.status_code), error.detail, headers=error.headers)

    for kind in STATUS:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, known)


def _unreadable(request: Request, cause: Exception) -> JSONResponse:
    """415 for a compressed body, 422 for endless nesting, 400 for broken text or numbers of thousands of digits."""
    if "content-encoding" in request.headers:
        detail = "the body must be sent as it is, without Content-Encoding"
        return problem(request, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    if isinstance(cause, RecursionError):
        detail = "the body is nested far deeper than any request may be"
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail)
    detail = "the body cannot be read: it must be JSON in UTF-8, its numbers of few digits"
    return problem(request, HTTPStatus.BAD_REQUEST, detail)


def _refusal(request: Request, error: RequestValidationError) -> JSONResponse:
    """400 for a body that is not JSON, 415 for one that does not say it is, else 422 with every field at fault."""
    faults = error.errors()
    if error.body is None and [fault["loc"] for fault in faults] == [("body",)]:
        return problem(request, HTTPStatus.BAD_REQUEST, "the body is empty or null; it must be a JSON object")
    if any(fault["type"] == "json_invalid" for fault in faults):
        reason = faults[0].get("ctx", {}).get("error", "")
        return problem(request, HTTPStatus.BAD_REQUEST, f"the body is not JSON: {reason}")
    if isinstance(error.body, bytes):
        detail = "the body must be JSON: send Content-Type: application/json"
        return problem(request, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    errors = [FieldProblem(pointer=pointer(_path(fault)), detail=_told(fault)) for fault in faults]
    detail = "; ".join(f"{e.pointer}: {e.detail}" for e in errors)
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors)


def _path(fault: Mapping[str, Any]) -> list[str | int]:
    """Where the fault lies: inside the body without a word before it, elsewhere after "header", "path" or "query"."""
    where, *path = fault["loc"]
    return path if where == "body" else [where, *path]


def _told(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    return within_sentence(str(fault["msg"]))
