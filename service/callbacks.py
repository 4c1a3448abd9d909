"""Callbacks: a client that need not ask again and again is told when its job is over.

What is owed stands with the job in the store, from the moment it is accepted. A sender takes what is due, which counts
a try and keeps other processes from it for a while, and notes how it went; one that stops in between leaves it to the
next. So a message goes out at least once: again after a try that failed or was not noted, at most a few times, and
always with the same id, by which a receiver knows it when it comes twice.

A message is signed as Standard Webhooks (standardwebhooks.com) has it: `webhook-signature` is `v1,` and the base64 of
HMAC-SHA256 over `ID.TIMESTAMP.BODY`.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from typing import Any, Final

import httpx

from pipelines.errors import InvalidInputError
from service.engine.metrics import Metrics
from service.outbound import NoAnswerError, PrivateAddressError, Resolve, post, resolved
from service.settings import SECRET_PREFIX
from service.store.port import Store, StoreError, UnknownJobError
from service.store.records import JobRecord, Message
from service.tasks import happens

_LOG: Final = logging.getLogger(__name__)
_TIMEOUT_S: Final = 10.0
# Five pauses of 2, 8, 32, 128 and 512 s, each up to a fifth longer: a receiver may be away for ten minutes.
TRIES: Final = 6
_FIRST_PAUSE_S: Final = 2.0
_GROWTH: Final = 4
_AT_ONCE: Final = 8
HELD_S: Final = 30.0
"""How long a try keeps others from a message: longer than one takes."""
_LOOK_EVERY_S: Final = 5.0
"""How often the store is asked for what is due, besides when a job of this process ends."""
_GONE: Final = 410
_LONGEST: Final = 2048
_FIELD: Final = ("callback_url",)

Told = Callable[[JobRecord], Awaitable[bytes]]
"""What is said of a job that is over."""


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


def is_spent(message: Message) -> bool:
    """Whether a try that was begun is one too many: whoever began those before it did not note how they went."""
    return message.tries > TRIES


def after_try(tries: int, outcome: str | None) -> tuple[str | None, float]:
    """What comes of a try.

    Args:
        tries: Its number, from 1.
        outcome: How it ended the message, None where another try may end it better.

    Returns:
        The message's outcome, None where it goes out again; and seconds until then, without their random part.
    """
    if outcome is None and tries >= TRIES:
        outcome = "failed"
    return outcome, _FIRST_PAUSE_S * _GROWTH ** (tries - 1)


class Callbacks:
    """Sends what is owed of jobs that are over. For one event loop.

    Args:
        hosts: Where messages may go: NAME, or NAME:PORT where it is not the scheme's own; none for nowhere.
        secret: Signs them.
        private: Whether addresses of private networks are let through, and plain HTTP.
        metrics: Where it counts.
        clock: Unix time in seconds.
        resolve: How names are resolved.
    """

    def __init__(
        self,
        hosts: Collection[str],
        secret: str,
        *,
        private: bool,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        resolve: Resolve = resolved,
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._secret, self._private, self._metrics = secret, private, metrics
        self._clock, self._resolve = clock, resolve
        self._stirred = asyncio.Event()
        self._tries: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    def checked(self, text: str) -> httpx.URL:
        """The address of a callback.

        Raises:
            InvalidInputError: It may not be called, or is no address.
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
        return url

    def start(self, store: Store, told: Told) -> None:
        """Begin to send, where messages may go anywhere.

        Args:
            store: Has the jobs and what is owed of them.
            told: The message of a job.
        """
        self._store, self._told = store, told
        if self._hosts:
            self._loop = asyncio.create_task(self._run())

    def look_after(self, over: "Future[Any]") -> None:
        """Look for what is due as soon as something is over."""
        loop = asyncio.get_running_loop()

        def stir(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self._stirred.set)

        over.add_done_callback(stir)

    async def close(self) -> None:
        """Stop; what is not sent yet stays in the store."""
        tasks = [*self._tries] if self._loop is None else [self._loop, *self._tries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._stirred.clear()
            try:
                await self._begin()
            except StoreError as error:
                _LOG.warning("what is owed cannot be read: %s", error)
            except Exception:
                _LOG.exception("callbacks cannot be sent")
            await happens(self._stirred, _LOOK_EVERY_S)

    async def _begin(self) -> None:
        """Begin to send what is due, a few at once; whoever is done looks for more."""
        free = _AT_ONCE - len(self._tries)
        if free <= 0:
            return
        for record in await self._store.take_messages(self._clock(), HELD_S, free):
            if record.message is not None:
                task = asyncio.create_task(self._send(record, record.message))
                self._tries.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tries.discard(task)
        self._stirred.set()

    async def _send(self, record: JobRecord, message: Message) -> None:
        """Try once, and note how it went."""
        try:
            outcome, why = await self._tried(record, message)
        except UnknownJobError:
            return  # deleted meanwhile
        except Exception as error:
            _LOG.exception("callback of job %s failed", record.id)
            outcome, why = None, type(error).__name__
        outcome, pause = after_try(message.tries, outcome)
        due = None
        if outcome is None:
            pause *= random.uniform(1, 1.2)
            due = self._clock() + pause
            asyncio.get_running_loop().call_later(pause, self._stirred.set)
        elif outcome != "delivered":
            _LOG.warning("callback of job %s is given up: %s", record.id, why)
        try:
            await self._store.note_message(record.id, message.tries, due, outcome)
        except StoreError as error:
            _LOG.warning("the callback of job %s may go out again: %s", record.id, error)
        if outcome is not None:
            self._metrics.callbacks.labels(outcome).inc()

    async def _tried(self, record: JobRecord, message: Message) -> tuple[str | None, str]:
        """The outcome, None where another try may have a better one; and why it is not delivered."""
        if is_spent(message):
            return "failed", "whoever sent it stopped meanwhile, each time"
        try:
            url = self.checked(message.url)
            status = await self._posted(f"job_{record.id}", url, await self._told(record))
        except (InvalidInputError, PrivateAddressError) as error:
            return "refused", str(error)
        except NoAnswerError as error:
            return None, str(error)
        if httpx.codes.is_success(status):
            return "delivered", ""
        return "failed" if status == _GONE else None, f"{url.host} answered {status}"

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
