"""How every dialect's routes read bodies: bounded while they come, then a few large ones at a time, and soon forgotten.

A large body waits on disk for its turn: while it comes its client sets the pace, and nobody should hold memory for as
long as a stranger likes. From its turn on only this process sets the pace. The turn ends, and the body with it, when
the request's job is taken in (:func:`let_go`), or with the request.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from service import strict_json
from service.body_limit import forget
from service.services import Services
from service.store.port import NO_SPACE

LARGE_BYTES: Final = 256 << 10
"""Of a body that waits on disk for its turn; smaller ones stay in memory and wait for nobody."""
# What FastAPI sees of a body: it asks only whether there is one.
_SOME: Final = b"{"


class BoundedRequest(Request):
    """A request whose body is bounded: see the module."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # As a form's files are kept: in memory while it is small, then in a file without a name.
        spooled: Any = SpooledTemporaryFile(LARGE_BYTES)  # noqa: SIM115 - closed by let_go
        self._kept = UploadFile(spooled, size=0)
        self._seen: bytes | None = None
        self._turn = contextlib.AsyncExitStack()

    @property
    def _is_json(self) -> bool:
        return "json" in self.headers.get("content-type", "").partition(";")[0].lower()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, JSON counted; see :class:`service.strict_json.Scan` for what is raised."""
        services: Services = self.app.state.services
        is_json, scan = self._is_json, strict_json.Scan(services.settings.json_bounds)
        async for chunk in super().stream():
            if is_json:
                for i, window in enumerate(strict_json.windows(chunk)):
                    if i:
                        await asyncio.sleep(0)
                    scan.feed(window)
            yield chunk

    async def body(self) -> bytes:
        """Whether there is a body; what it is, :meth:`json` tells. No route reads other kinds in this way."""
        if self._seen is None:
            seen, is_json = b"", self._is_json
            async for chunk in self.stream():
                seen = seen or chunk[:1]
                if is_json:
                    await self._keep(chunk)
            self._seen = seen and _SOME
        return self._seen

    async def _keep(self, chunk: bytes) -> None:
        try:
            await self._kept.write(chunk)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            detail = "the disk is full: there is no space for the body until it is read"
            raise HTTPException(HTTPStatus.INSUFFICIENT_STORAGE, detail) from error

    async def json(self) -> Any:
        """The body's value; see :func:`service.strict_json.parse` for what is raised."""
        if not hasattr(self, "_json"):
            await self.body()
            size = self._kept.size or 0
            await self.enter(size)
            if size > LARGE_BYTES:
                services: Services = self.app.state.services
                self._json = await services.decoded(self._parsed)
            else:
                self._json = self._parsed()
        return self._json

    def _parsed(self) -> Any:
        """Not for the event loop where it is large."""
        with self._kept.file as file:
            file.seek(0)
            text = file.read()
        return strict_json.parse(text)

    async def enter(self, size: int) -> None:
        """Wait until a body of so many bytes may be read."""
        if size > LARGE_BYTES:
            services: Services = self.app.state.services
            await self._turn.enter_async_context(services.reading.hold(size))

    async def let_go(self) -> None:
        """End the turn, and forget the body."""
        self._kept.file.close()
        if isinstance(value := getattr(self, "_json", None), dict):
            # FastAPI refers to it until the request is answered.
            value.clear()
        forget(self.scope)
        await self._turn.aclose()


async def let_go(request: Request) -> None:
    """Forget a request's body, once its job is taken in: its answer may take long, and others wait for their turn."""
    if isinstance(request, BoundedRequest):
        await request.let_go()


class Route(APIRoute):
    """A route whose body is bounded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that bounds its body."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            asked = BoundedRequest(request.scope, request.receive)
            try:
                return await handle(asked)
            finally:
                await asked.let_go()

        return bounded
