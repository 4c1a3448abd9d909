"""Faults as OpenAI tells them: ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse

from service.api.openai.schemas import Error, ErrorResponse
from service.faults import Dialect, Fault, Place

_CODES: Final = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.FORBIDDEN: "insufficient_permissions",
    HTTPStatus.UNPROCESSABLE_ENTITY: "invalid_value",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


def render(request: Request, fault: Fault) -> JSONResponse:
    """The response that carries a fault."""
    return JSONResponse(error_of(fault), fault.status, fault.headers)


def error_of(fault: Fault) -> dict[str, Any]:
    """The body of a fault; a fault in an expression's text tells its column besides."""
    # Two native fields may be one here: a size is a width and a height.
    more = [f"and {fault.left_out} more"] if fault.left_out else []
    told = "; ".join([*dict.fromkeys(_told(place) for place in fault.places), *more])
    first = fault.places[0] if fault.places else None
    error = Error(
        message=told or fault.detail,
        type=_type(fault.status),
        param=written(first.path) or None if first else None,
        code=_code(fault),
        column=first.column if first else None,
    )
    unsaid = {"column"} if error.column is None else set()
    return {"error": error.model_dump(exclude=unsaid)}


def written(path: Sequence[str | int]) -> str:
    """A place in a body as OpenAI writes it: ("superdiff", "expression", "and", 0) → "superdiff.expression.and[0]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _told(place: Place) -> str:
    return f"{written(place.path)}: {place.detail}" if place.path else place.detail


def _type(status: HTTPStatus) -> str:
    if status is HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _code(fault: Fault) -> str:
    """A model that there is not stands at a place in the body; what else is not found is the path."""
    if fault.status is HTTPStatus.NOT_FOUND:
        return "model_not_found" if fault.places else "unknown_url"
    return _CODES.get(fault.status, fault.status.name.lower())


DIALECT: Final = Dialect(render, ErrorResponse)
"""How it tells faults."""
