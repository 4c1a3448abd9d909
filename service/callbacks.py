"""Callbacks: a client that need not ask again and again is told when its job is over.

A message is signed as Standard Webhooks (standardwebhooks.com) has it: `webhook-signature` is `v1,` and the base64 of
HMAC-SHA256 over `ID.TIMESTAMP.BODY`. It goes out again with growing pauses until it is taken, and keeps its id, so that
a receiver knows it when it comes twice.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import httpx

from pipelines.errors import InvalidInputError
from service.engine.metrics import Metrics
from service.outbound import NoAnswerError, PrivateAddressError, Resolve, post, resolved
from service.quotas import QuotaError
from service.settings import SECRET_PREFIX

_LOG: Final = logging.getLogger(__name__)
_TIMEOUT_S: Final = 10.0
# Five pauses of 2, 8, 32, 128 and 512 s, each up to a fifth longer: a receiver may be away for ten minutes.
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 2.0
_GROWTH: Final = 4
_AT_ONCE: Final = 8
_MOST: Final = 4096
_GONE: Final = 410
_LONGEST: Final = 2048
_FIELD: Final = ("callback_url",)


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """What `webhook-signature` holds.

    Args:
        secret: `whsec_` and the key in base64.
        message_id: As in `webhook-id`.
        timestamp: As in `webhook-timestamp`.
        body: As it is sent.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class Callbacks:
    """Sends messages when jobs are over. For one event loop; what is not sent when it closes is lost.

    Args:
        hosts: Where messages may go: NAME, or NAME:PORT where it is not the scheme's own; none for nowhere.
        secret: Signs them.
        private: Whether addresses of private networks are let through, and plain HTTP.
        metrics: Where it counts.
        pause: Waits so many seconds.
        resolve: How names are resolved.
    """

    def __init__(
        self,
        hosts: Collection[str],
        secret: str,
        *,
        private: bool,
        metrics: Metrics,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        resolve: Resolve = resolved,
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._secret, self._private, self._metrics = secret, private, metrics
        self._pause, self._resolve = pause, resolve
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def checked(self, text: str) -> httpx.URL:
        """The address of a callback.

        Raises:
            InvalidInputError: It may not be called, or is no address.
            QuotaError: Too many callbacks are on their way.
        """
        if not self._hosts:
            raise InvalidInputError("callback_url: this service calls nobody back", field=_FIELD)
        schemes = ("https", "http") if self._private else ("https",)
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidInputError(f"callback_url is no address: {error}", field=_FIELD) from error
        if url.scheme not in schemes or not url.host or url.userinfo or url.fragment or len(text) > _LONGEST:
            detail = f"callback_url must be {' or '.join(f'{scheme}://' for scheme in schemes)}HOST/PATH"
            raise InvalidInputError(f"{detail}, without user and fragment, of {_LONGEST} characters", field=_FIELD)
        named = url.host.lower() if url.port is None else f"{url.host.lower()}:{url.port}"
        if named not in self._hosts:
            raise InvalidInputError(f"callback_url: this service may not call {named}", field=_FIELD)
        if len(self._tasks) >= _MOST:
            raise QuotaError(f"{_MOST} callbacks are on their way already; no more may be now", _TIMEOUT_S)
        return url

    def send_when(self, over: Awaitable[None], message_id: str, url: httpx.URL, told: Callable[[], bytes]) -> None:
        """Send a message once something is over.

        Args:
            over: What.
            message_id: Unlike any other.
            url: Where to; see :meth:`checked`.
            told: The message, asked for when it is over.
        """
        task = asyncio.create_task(self._send_when(over, message_id, url, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is not sent yet."""
        if self._tasks:
            _LOG.warning("%d callbacks are not sent: the service ends", len(self._tasks))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send_when(
        self, over: Awaitable[None], message_id: str, url: httpx.URL, told: Callable[[], bytes]
    ) -> None:
        await over
        try:
            outcome = await self._delivered(message_id, url, told())
        except Exception:
            _LOG.exception("callback %s failed", message_id)
            outcome = "failed"
        self._metrics.callbacks.labels(outcome).inc()

    async def _delivered(self, message_id: str, url: httpx.URL, body: bytes) -> str:
        """Try until the message is taken; how it ended."""
        why = ""
        for attempt in range(_TRIES):
            if attempt:
                await self._pause(_FIRST_PAUSE_S * _GROWTH ** (attempt - 1) * random.uniform(1, 1.2))
            try:
                async with self._turn:
                    status = await self._posted(message_id, url, body)
            except PrivateAddressError as error:
                _LOG.warning("callback %s is not sent: %s", message_id, error)
                return "refused"
            except NoAnswerError as error:
                why = str(error)
                continue
            if httpx.codes.is_success(status):
                return "delivered"
            why = f"the receiver answered {status}"
            if status == _GONE:
                break
        _LOG.warning("callback %s to %s is given up: %s", message_id, url.host, why)
        return "failed"

    async def _posted(self, message_id: str, url: httpx.URL, body: bytes) -> int:
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "superdiff-serve",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secret, message_id, now, body),
        }
        return await post(url, headers, body, _TIMEOUT_S, private=self._private, resolve=self._resolve)
