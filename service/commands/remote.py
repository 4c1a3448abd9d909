"""Talking to a service over HTTP."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx

from service.commands.common import CommandError, Exit, refused
from service.commands.session import Told

_CONNECT_S: Final = 10.0
# The service pings event streams every 15 s; what is silent for much longer has gone.
_SILENT_S: Final = 60.0
# A model may have to be loaded before a request is taken in.
_TAKEN_S: Final = 600.0
_TRIES: Final = 5
_BETWEEN_S: Final = 1.0
_LAST: Final = frozenset({"completed", "failed", "cancelled"})


class RemoteSession:
    """Jobs of a service; see :class:`service.commands.session.Session`.

    Args:
        url: http://HOST:PORT, or https.
        key: Sent as a bearer token; None for none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError(f"--url {url}: it must begin with http:// or https://")
        self._url = url
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._client = httpx.Client(
                base_url=url, headers=headers, timeout=httpx.Timeout(_SILENT_S, connect=_CONNECT_S)
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandError(f"--url {url}: {error}") from error

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the connections."""
        self._client.close()

    def submit(self, path: str, body: Mapping[str, Any]) -> str:
        """Queue a request; returns the job's id."""
        timeout = httpx.Timeout(_TAKEN_S, connect=_CONNECT_S)
        try:
            answer = self._ask("POST", path, body, json=body, headers={"Prefer": "respond-async"}, timeout=timeout)
        except KeyboardInterrupt:
            detail = "interrupted while sending the job; superdiff jobs list shows whether the service took it"
            raise CommandError(detail, Exit.INTERRUPTED) from None
        return str(answer.json()["id"])

    def events(self, job_id: str) -> Iterator[Told]:
        """The job's events up to the last; a broken connection is taken up again where it broke."""
        last, failures = "", 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with self._client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream:
                    if stream.is_error:
                        stream.read()
                        raise _refusal(stream)
                    for told in parsed(stream.iter_lines()):
                        last, failures = told.last or last, 0
                        yield told
                        if told.kind in _LAST:
                            return
            except httpx.HTTPError as error:
                if failures + 1 >= _TRIES:
                    raise self._unreachable(error) from error
            failures += 1
            if failures >= _TRIES:
                raise CommandError(
                    f"{self._url}: the events of job {job_id} ended before the job did", Exit.UNREACHABLE
                )
            time.sleep(_BETWEEN_S)

    def cancel(self, job_id: str) -> None:
        """Cancel the job; harmless where it is over."""
        self._ask("DELETE", f"/v1/jobs/{job_id}")

    def get(self, path: str, **params: Any) -> Any:
        """A document of the service."""
        return self._ask("GET", path, params=params).json()

    def delete(self, path: str) -> Any:
        """Delete something; what the service says of it."""
        return self._ask("DELETE", path).json()

    def file(self, path: str, **params: Any) -> bytes:
        """A file of the service."""
        return self._ask("GET", path, params=params).content

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **given: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **given)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _refusal(answer, (body or {}).get("expression"))
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> CommandError:
        return CommandError(
            f"{self._url}: no service answers there: {str(error) or type(error).__name__}", Exit.UNREACHABLE
        )


def _refusal(answer: httpx.Response, expression: object = None) -> CommandError:
    """The error of an answer that is one; of a proxy's page as much as of a problem document."""
    with contextlib.suppress(ValueError):
        problem = answer.json()
        if isinstance(problem, dict):
            return refused(problem, expression)
    return CommandError(f"the service answered {answer.status_code} {answer.reason_phrase}", Exit.REFUSED)


def parsed(lines: Iterable[str]) -> Iterator[Told]:
    """The events of a stream of server-sent events, as the WHATWG's standard reads them; comments are passed over."""
    kind, last, data = "message", "", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Told(kind, json.loads("\n".join(data)), last)
            kind, data = "message", []
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            last = value
