"""How every dialect's routes read JSON bodies: bounded while they come, then strictly parsed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service import strict_json
from service.services import Services


class _BoundedRequest(Request):
    """A request whose JSON body is counted chunk by chunk, and refused at its first excess."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; see :class:`service.strict_json.Scan` for what is raised."""
        services: Services = self.app.state.services
        is_json = "json" in self.headers.get("content-type", "").partition(";")[0].lower()
        scan = strict_json.Scan(services.settings.json_bounds)
        async for chunk in super().stream():
            if is_json:
                for i, window in enumerate(strict_json.windows(chunk)):
                    if i:
                        await asyncio.sleep(0)
                    scan.feed(window)
            yield chunk

    async def json(self) -> Any:
        """The body's value; see :func:`service.strict_json.parse` for what is raised."""
        if not hasattr(self, "_json"):
            self._json = strict_json.parse(await self.body())
        return self._json


class Route(APIRoute):
    """A route whose JSON body is bounded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that bounds its body."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return bounded
