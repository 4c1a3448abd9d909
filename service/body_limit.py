"""Bounds on the bytes of request bodies that are refused like everything else: with a problem document.

Starlette's own middleware answers in plain text; this one lets the exception handlers speak.
"""

from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_FORGET: Final = "superdiff.forget_body"


def forget(scope: Scope) -> None:
    """Count a request's body no more: nothing of it is held any longer. Harmless where none is counted."""
    scope.get(_FORGET, lambda: None)()


class BodyLimit:
    """Raise 413 where a body is too large, or is told to be, and 503 where all bodies together are.

    For the event loop's thread alone.

    Args:
        app: The application.
        limit: The most bytes of one body.
        together: The most bytes of the bodies that are held, all together; see :func:`forget`.
    """

    def __init__(self, app: ASGIApp, limit: int, together: int) -> None:
        self._app, self._limit, self._together = app, limit, together
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = announced.isdecimal() and int(announced) > self._limit
        received = held = 0

        async def counted() -> Message:
            nonlocal received, held
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            held += size
            self._held += size
            if too_large or received > self._limit:
                detail = f"the body is larger than the {self._limit} bytes that this service allows (max_body_bytes)"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            if self._held > self._together:
                detail = (
                    f"the bodies of all requests are larger than {self._together} bytes together (max_bodies_bytes)"
                )
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail)
            return message

        def forgotten() -> None:
            nonlocal held
            self._held -= held
            held = 0

        # In the scope itself: what routes add to it, as the job in the path, is for those outside of this to see.
        scope[_FORGET] = forgotten
        try:
            await self._app(scope, counted, send)
        finally:
            forgotten()
