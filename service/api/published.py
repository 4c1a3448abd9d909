"""The OpenAPI document, as the service answers: FastAPI's own, with each dialect's errors in its form."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI

from service.faults import Dialect, dialect_of

_REF: Final = "#/components/schemas/{model}"
_FIRST_ERROR: Final = 400
# What FastAPI publishes of errors that nobody here ever sees.
_FOREIGN: Final = ("HTTPValidationError", "ValidationError")


def publish(app: FastAPI, native: Dialect, dialects: Mapping[str, Dialect]) -> None:
    """Let an application publish its errors as it sends them.

    Args:
        app: The application.
        native: The dialect of paths that are no other's.
        dialects: The first part of a dialect's paths → the dialect.
    """
    plain = app.openapi
    told: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        nonlocal told
        document = plain()
        if document is not told:
            told = document
            _rewrite(document, native, dialects)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _rewrite(document: dict[str, Any], native: Dialect, dialects: Mapping[str, Dialect]) -> None:
    schemas = document["components"]["schemas"]
    for dialect in {native, *dialects.values()}:
        schema = dialect.error.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[dialect.error.__name__] = schema
    for path, operations in document["paths"].items():
        dialect = dialect_of(path, native, dialects)
        content = {dialect.media_type: {"schema": {"$ref": _REF.format(model=dialect.error.__name__)}}}
        for operation in operations.values():
            if "security" in operation:
                # A key is sent where the service asks for one, which the document cannot know.
                operation["security"].append({})
            responses = operation["responses"]
            for status in [status for status in responses if status.isdecimal() and int(status) >= _FIRST_ERROR]:
                responses[status] = {"description": HTTPStatus(int(status)).phrase, "content": content}
            responses["default"] = {"description": "Any other error", "content": content}
    for name in _FOREIGN:
        schemas.pop(name, None)
