"""The native dialect's faults: problem documents (RFC 9457)."""

from typing import Annotated, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.faults import Dialect, Fault, pointer

MEDIA_TYPE: Final = "application/problem+json"


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
    errors: Annotated[list[FieldProblem], Field(description="The fields at fault, the first of many.")] = []
    errors_left_out: Annotated[int | None, Field(description="How many further fields are at fault.")] = None
    queue_position: int | None = None


def problem(fault: Fault, instance: str) -> Problem:
    """The document of a fault.

    Args:
        fault: What went wrong.
        instance: The path that it concerns.
    """
    places = [FieldProblem(pointer=pointer(p.path), detail=p.detail, column=p.column) for p in fault.places]
    return Problem(
        title=fault.status.phrase,
        status=fault.status,
        detail=fault.detail,
        instance=instance,
        errors=places,
        errors_left_out=fault.left_out or None,
        queue_position=fault.queue_position,
    )


def render(request: Request, fault: Fault) -> JSONResponse:
    """The response that carries a fault."""
    document = problem(fault, request.url.path).model_dump(exclude_none=True)
    return JSONResponse(document, fault.status, fault.headers, MEDIA_TYPE)


DIALECT: Final = Dialect(render, Problem, MEDIA_TYPE)
"""The native one."""
