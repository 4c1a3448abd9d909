"""Before every route: who asks, whether it may, and whether it may now. What is not listed here as open is closed.

Refused before a byte of the body is read, and in the words of the path's dialect.
"""

import base64
import binascii
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import callers
from service.callers import Caller, UnauthorizedError
from service.faults import Fault, Renderer, fault_of
from service.quotas import JOBS, PIXEL_STEPS, QuotaError, Standing
from service.services import Services
from service.store.port import StoreUnavailableError

_OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
_OPEN_BELOW: Final = ("/web/", "/docs/")
# What is not listed needs the scope generate.
_SCOPES: Final[Mapping[str, callers.Scope]] = {
    "/metrics": callers.Scope.READ_METRICS,
    "/v1/workers": callers.Scope.READ_METRICS,
    "/v1/admin": callers.Scope.ADMIN,
}
_REALM: Final = 'realm="superdiff"'
_UNITS: Final[Mapping[str, str]] = {JOBS: "concurrent-requests", PIXEL_STEPS: "pixel-steps"}


class Gate:
    """Answers 401, 403 and 429 itself; lets the rest through with its caller in ``request.state.caller``.

    Args:
        app: What lies behind.
        services: The application's parts.
        render: How faults are told on a path.
        basic: First parts of the paths whose clients send their key as the password of HTTP Basic.
    """

    def __init__(self, app: ASGIApp, services: Services, render: Renderer, basic: Collection[str]) -> None:
        self._app, self._services, self._render, self._basic = app, services, render, basic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        request, caller = Request(scope), None
        basic = any(request.url.path.startswith(f"{prefix}/") for prefix in self._basic)
        try:
            key = key_of(request.headers, basic=basic)
            caller = await self._services.keyring.caller(key, request.client.host if request.client else None)
            wanted = _scope_of(scope["path"])
            if not caller.may(wanted):
                await self._render(request, _forbidden(wanted))(scope, receive, send)
                return
            self._services.quotas.count_request(caller)
        except UnauthorizedError as error:
            await self._render(request, _unauthorized(error, basic=basic))(scope, receive, send)
            return
        except StoreUnavailableError as error:
            await self._render(request, fault_of(error))(scope, receive, send)
            return
        except QuotaError as error:
            sending = self._told(send, caller) if caller else send
            await self._render(request, fault_of(error))(scope, receive, sending)
            return
        request.state.caller = caller
        await self._app(scope, receive, self._told(send, caller))

    def _told(self, send: Send, caller: Caller) -> Send:
        """Sends with headers that tell a caller how it stands with its limits, if it has some."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and caller.allowance != callers.Allowance():
                jobs = self._services.keeper.unfinished(caller.id)
                standings = await self._services.quotas.standings(caller, jobs)
                MutableHeaders(scope=message).update(limit_headers(standings))
            await send(message)

        return sending


def key_of(headers: Headers, *, basic: bool) -> str | None:
    """The key that a request brings: a bearer token (RFC 6750) or, where clients speak so, a password (RFC 7617).

    Basic is not taken elsewhere: a browser sends a password that it remembers by itself, for any page that asks.
    """
    scheme, _, given = headers.get("authorization", "").strip().partition(" ")
    given = given.strip()
    if scheme.lower() == "bearer":
        return given or None
    if scheme.lower() == "basic" and basic:
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def limit_headers(standings: list[Standing]) -> dict[str, str]:
    """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers): several limits, each by its name.

    X-RateLimit-* has one limit, and no agreed meaning of its reset.
    """
    policies, left = [], []
    for each in standings:
        window = "" if each.window_s is None else f";w={each.window_s}"
        unit = f';qu="{_UNITS[each.name]}"' if each.name in _UNITS else ""
        policies.append(f'"{each.name}";q={each.quota}{unit}{window}')
        left.append(f'"{each.name}";r={each.left}' + ("" if each.reset_s is None else f";t={each.reset_s}"))
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)} if standings else {}


def _is_open(path: str) -> bool:
    """Whether anyone may ask: how the service is, its description, and the page, which asks for a key itself."""
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def _scope_of(path: str) -> callers.Scope:
    """What a key must be allowed for a path."""
    found = (scope for first, scope in _SCOPES.items() if path == first or path.startswith(f"{first}/"))
    return next(found, callers.Scope.GENERATE)


def _unauthorized(error: UnauthorizedError, *, basic: bool) -> Fault:
    if basic:
        way, challenge = (
            "the password of HTTP Basic, or as Authorization: Bearer KEY",
            f'Basic {_REALM}, charset="UTF-8"',
        )
    else:
        way, challenge = "Authorization: Bearer KEY", f"Bearer {_REALM}"
        if error.given:
            challenge += ', error="invalid_token"'
    headers = {"WWW-Authenticate": challenge}
    return Fault(HTTPStatus.UNAUTHORIZED, f"{error}: send one as {way}", headers=headers)


def _forbidden(scope: callers.Scope) -> Fault:
    headers = {"WWW-Authenticate": f'Bearer {_REALM}, error="insufficient_scope", scope="{scope}"'}
    return Fault(HTTPStatus.FORBIDDEN, f"this API key lacks the scope {scope.value!r}", headers=headers)
