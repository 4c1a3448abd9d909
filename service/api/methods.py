"""What HTTP says of every resource: HEAD works where GET does, OPTIONS and 405 tell all methods that there are."""

from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed(app: Starlette, scope: Scope) -> list[str]:
    """The methods of the resource that a request is for; none where there is no such resource."""
    whole = {**scope, "root_path": scope.get("app_root_path", scope.get("root_path", ""))}

    def has(route: BaseRoute, method: str) -> bool:
        # What is mounted are files, and would take any method for its own.
        mine = method == "GET" or not isinstance(route, Mount)
        return mine and route.matches({**whole, "method": method})[0] is Match.FULL

    own = [method for method in _METHODS if any(has(route, method) for route in app.router.routes)]
    return [*own, *(["HEAD"] if "GET" in own else []), "OPTIONS"] if own else []


class Methods:
    """Answer HEAD as GET without its body, and OPTIONS with the methods of the resource."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, as the method wants it."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
            return
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            methods = allowed(scope["app"], scope)
            if methods:
                response = Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join(methods)})
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    """Sends the head of an answer and ends it there: an endless stream too."""
    ended = False

    async def heads(message: Message) -> None:
        nonlocal ended
        if message["type"] != "http.response.body":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return heads
