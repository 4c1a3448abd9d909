"""Around every request: its id, its line in the log, and the answer to what nobody foresaw."""

import logging
import time
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import about, accepted_id

_LOG: Final = logging.getLogger(__name__)
REQUEST_ID: Final = "X-Request-Id"
_JOB_ID: Final = "X-Superdiff-Id"
_FAILED: Final = 500
# What machines ask every few seconds is written at level debug only.
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Access:
    """Binds the request's id to the log, returns it, writes the access line, and answers unforeseen exceptions.

    Starlette answers those outside of all middleware, where the id is not known any more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = accepted_id(Headers(scope=scope).get(REQUEST_ID))
        state = scope.setdefault("state", {})
        told: dict[str, Any] = {"status": None, "job": None}
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = identity
                told.update(status=message["status"], job=headers.get(_JOB_ID))
            await send(message)

        with about(request=identity):
            try:
                await self._app(scope, receive, sending)
            except Exception as error:
                handler = scope["app"].exception_handlers.get(Exception)
                if handler is None or told["status"] is not None:
                    told["status"] = _FAILED
                    raise
                response = await handler(Request(scope), error)
                await response(scope, receive, sending)
            finally:
                fields = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": told["status"],
                    "ms": round(1e3 * (time.perf_counter() - began), 1),
                    "caller": state["caller"].id if "caller" in state else None,
                    "job_id": told["job"] or scope.get("path_params", {}).get("job_id"),
                }
                level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
                _LOG.log(level, "answered", extra={"fields": fields})
