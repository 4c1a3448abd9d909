"""A client of superdiff-serve's native API: one file, the standard library alone.

Krita brings Python 3.8 on some systems, and neither Krita nor ComfyUI installs packages for a plug-in. So this file
keeps to what Python 3.8 has, needs nothing else, and stands as it is in every integration.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Callable, Mapping, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

DEFAULT_URL = "http://127.0.0.1:8000"
SEED_LIMIT = 2**53
"""Seeds are smaller than this."""
MAX_STEPS = 1000
MAX_CANDIDATES = 16
MAX_SIDE = 4096
"""Pixels of a picture's longer side, at most."""

_OVER = ("completed", "failed", "cancelled")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UNREADABLE = "the answer of {url} is not one of superdiff-serve's; is something else listening there?"


class ServiceError(Exception):
    """What went wrong, in words for the person who asked."""


class CancelledError(Exception):
    """The person who asked changed their mind; the job was cancelled on the server."""


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
        step: Network calls made.
        steps: Network calls in all.
        ahead: Jobs that will start before it; None once it runs.
    """

    step: int
    steps: int
    ahead: int | None


class Drawn(NamedTuple):
    """A completed job.

    Attributes:
        pictures: The files, in the format asked for.
        result: The service's answer: seeds, log-densities, lifts, timings.
    """

    pictures: list[bytes]
    result: dict[str, Any]


def _ignore(_: Progress) -> None:
    pass


def _never() -> bool:
    return False


class Client:
    """The service at one address.

    Args:
        url: Where it listens, such as ``http://127.0.0.1:8000``.
        key: An API key, for services that want one; empty for none.
        timeout_s: How long one answer may take. Drawing is asked for and then looked at again and again, so that no
            answer takes long however long the picture does.

    Raises:
        ServiceError: The address is none, or the key has characters that no key has.
    """

    def __init__(self, url: str = DEFAULT_URL, key: str = "", timeout_s: float = 30.0) -> None:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServiceError(f"the address of the service must look like {DEFAULT_URL}, not {url!r}")
        self.url = url.strip().rstrip("/")
        key = key.strip()
        if not key.isascii() or any(c.isspace() for c in key):
            raise ServiceError("the API key has characters that no key has; copy it again")
        self._key = key
        self._timeout_s = timeout_s
        # A proxy that is set for the world must not be asked for this machine.
        direct = [ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener: OpenerDirector = build_opener(*direct)

    def models(self) -> list[dict[str, Any]]:
        """The catalogue, as /v1/models tells it; the default model is first.

        Raises:
            ServiceError: It cannot be had.
        """
        return list(self._json("GET", "/v1/models")["data"])

    def density(self, body: Mapping[str, Any], timeout_s: float = 600.0) -> dict[str, Any]:
        """What explains a picture, as /v1/density tells it.

        Args:
            body: The request.
            timeout_s: How long the answer may take.

        Raises:
            ServiceError: The service refuses, or cannot be reached.
        """
        return self._json("POST", "/v1/density", body, timeout_s=timeout_s)

    def draw(
        self,
        body: Mapping[str, Any],
        tell: Callable[[Progress], None] = _ignore,
        stopped: Callable[[], bool] = _never,
        every_s: float = 0.2,
    ) -> Drawn:
        """Have pictures drawn by /v1/superpose, and wait for them.

        Whatever ends the waiting early, an exception of ``tell`` too, cancels the job on the server.

        Args:
            body: The request.
            tell: Called each time that the job was looked at.
            stopped: Whether the person who asked changed their mind.
            every_s: Seconds between two looks.

        Raises:
            ServiceError: The service refuses, fails or cannot be reached.
            CancelledError: ``stopped`` said so.
        """
        job = self._json("POST", "/v1/superpose", body, {"Prefer": "respond-async"})
        path = "/v1/jobs/" + quote(job["id"], safe="")
        try:
            while job["status"] not in _OVER:
                tell(Progress(job["step"], job["steps"], job["queue_position"]))
                _check(stopped)
                time.sleep(every_s)
                job = self._json("GET", path)
        except BaseException:
            with suppress(ServiceError):
                self._json("DELETE", path)
            raise
        if job["status"] != "completed":
            raise ServiceError(f"the job was {job['status']}" + (f": {job['error']}" if job["error"] else ""))
        result = job["result"]
        return Drawn([self._bytes("GET", image["url"]) for image in result["images"]], result)

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        data = self._bytes(method, path, body, headers, timeout_s)
        try:
            told = json.loads(data)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ServiceError(_UNREADABLE.format(url=self.url))
        return told

    def _bytes(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        typed = {} if data is None else {"Content-Type": "application/json"}
        # The scheme is http or https: __init__ lets no other through.
        request = Request(self.url + path, data, {**typed, **(headers or {})}, method=method)  # noqa: S310
        if self._key:
            # Not for where a redirect leads.
            request.add_unredirected_header("Authorization", "Bearer " + self._key)
        try:
            with self._opener.open(request, timeout=timeout_s or self._timeout_s) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            with error:
                raise ServiceError(words(error.code, error.read(), error.headers.get("Retry-After"))) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(f"superdiff-serve does not answer at {self.url} ({reason}); is it running?") from None


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise CancelledError("cancelled")


def words(status: int, body: bytes, retry_after: str | None = None) -> str:
    """What a refusal says, in plain words: each field at fault and what is allowed.

    Args:
        status: The HTTP status.
        body: A problem document (RFC 9457), or what some other server sent.
        retry_after: The seconds of the header of that name, if it came.
    """
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return f"the service answered {status} {_phrase(status)}"
    fields = [_field(error) for error in problem.get("errors") or []]
    said = "; ".join(fields) or str(problem.get("detail") or problem.get("title") or _phrase(status))
    return f"{said} (try again in {retry_after} s)" if retry_after else said


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(unknown status)"


def _field(error: Mapping[str, Any]) -> str:
    """``expression: at column 12: …`` of ``{"pointer": "#/expression", …}``."""
    place = str(error.get("pointer", "")).lstrip("#/")
    return f"{place}: {error.get('detail', '')}" if place else str(error.get("detail", ""))
