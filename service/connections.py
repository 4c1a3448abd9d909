"""How long a client may keep a connection without doing its part: uvicorn's own bounds, and those that it lacks.

uvicorn waits without end for headers and bodies that have begun to come, and for clients that take nothing of their
answer. This protocol gives each a time. Clients that wait, for an event or an answer, are not its matter.

What is refused before the application hears of it is told as the application tells faults: where the request can be
read, in its path's dialect; where it cannot, by a problem document.
"""

import asyncio
import functools
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import h11
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api.problem import MEDIA_TYPE, problem
from service.api.problem import render as native
from service.faults import Fault, Renderer
from service.settings import Settings

# Timers are no more exact.
_MOMENT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """How long clients are waited for.

    Attributes:
        header_s: Seconds for a request's line and headers, from its first byte, or from when the connection was made.
        body_s: Seconds for a body, from the end of the headers.
        body_bytes_per_s: How many bytes of a body give it a second more.
        send_s: Seconds in which a client must take something of an answer that waits for it.
        connections: How many may be open, and how many requests may run; further requests are refused.
    """

    header_s: float
    body_s: float
    body_bytes_per_s: float
    send_s: float
    connections: int


def server_options(settings: Settings, render: Renderer = native) -> dict[str, Any]:
    """What uvicorn is told of the settings' bounds.

    Args:
        settings: Has them.
        render: How faults are told on a path.
    """
    patience = Patience(
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.body_bytes_per_s,
        settings.send_timeout_s,
        settings.max_connections,
    )
    return {
        "http": functools.partial(PatientProtocol, patience=patience, render=render),
        "h11_max_incomplete_event_size": settings.max_header_bytes,
        "timeout_keep_alive": settings.keep_alive_s,
    }


class PatientProtocol(H11Protocol):
    """One connection, closed when its client keeps it waiting for too long; see uvicorn for the other arguments."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
        render: Renderer,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience, self._render = patience, render
        self._awaited: Any = None
        self._received = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def app(self) -> ASGIApp:
        """What answers the request that came just now: the application, if there is room."""
        allowed = self._patience.connections
        return self._crowded if len(self.connections) > allowed or len(self.tasks) > allowed else self._app

    @app.setter
    def app(self, app: ASGIApp) -> None:
        self._app = app

    async def _crowded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request beyond those that may run."""
        detail = f"{self._patience.connections} connections or requests are open already (max_connections)"
        fault = Fault(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1", "Connection": "close"})
        await self._render(Request(scope), fault)(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await(h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._await(None)
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what came, and wait for what is missing still."""
        super().data_received(data)
        state = self.conn.their_state
        self._await(state if state in {h11.IDLE, h11.SEND_BODY} else None)
        self._received += len(data)

    def on_response_complete(self) -> None:
        """Go on with the next request; uvicorn itself waits for its first byte."""
        super().on_response_complete()
        self._await(h11.SEND_BODY if self.conn.their_state is h11.SEND_BODY else None)

    def pause_writing(self) -> None:
        """Give the client a time to take something of what waits for it."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """The client took most of it."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; what is only too long is told how long it may be."""
        error = sys.exc_info()[1]
        too_long = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == too_long:
            allowed = self.config.h11_max_incomplete_event_size
            self._refuse(too_long, f"the request line and headers are larger than {allowed} bytes (max_header_bytes)")
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no valid HTTP request")

    def _await(self, awaited: Any) -> None:
        """Wait for headers (IDLE), for a body (SEND_BODY) or for neither; what is awaited already has its time."""
        if awaited is self._awaited:
            return
        self._awaited, self._received = awaited, 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if awaited is not None:
            self._look_again(self._patience.header_s if awaited is h11.IDLE else self._patience.body_s)

    def _look_again(self, after_s: float) -> None:
        self._deadline = self.loop.call_later(after_s, self._too_late)

    def _too_late(self) -> None:
        """Close the connection, unless so many bytes of a body came that it has more time."""
        more_s = 0.0
        if self._awaited is h11.SEND_BODY:
            more_s, self._received = self._received / self._patience.body_bytes_per_s, 0
        if more_s > _MOMENT_S:
            self._look_again(more_s)
        elif self._awaited is h11.IDLE and not self._received:
            # Nothing was asked. Browsers open connections in advance, and would take an answer for that to the request
            # that they send on it next.
            self.transport.close()
        elif self._awaited is h11.IDLE:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the headers did not come within {self._patience.header_s:g} s (header_timeout_s)",
            )
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time (body_timeout_s)")

    def _watch_sending(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self._patience.send_s, self._check_sending, left)

    def _check_sending(self, left_before: int) -> None:
        if self.transport.get_write_buffer_size() < left_before:
            self._watch_sending()
        else:
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Close the connection, with a reason where the client may still be answered."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Whoever waits for the body hears that the client has left.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        # What cannot be read names no path.
        path = "/" if cycle is None or cycle.response_complete else cycle.scope["path"]
        text = problem(Fault(status, reason), path).model_dump_json(exclude_none=True).encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        answer = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        for event in (answer, h11.Data(data=text), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
