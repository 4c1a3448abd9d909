"""Idempotency-Key: a client that does not know whether its request arrived may send it again, and gets the same job."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from service.engine.job import Phase
from service.registry import Record, Registry

Session = tuple[str, str | None]
"""A caller, and the label of one of its clients."""


class IdempotencyError(Exception):
    """A key that stands for another request, or for one that is not yet taken in."""


@dataclass(slots=True)
class Claim:
    """What a key stands for.

    Attributes:
        digest: Of the request that came with it first.
        record: Its job; None until it has one.
    """

    digest: str
    record: Record | None = None


class IdempotencyKeys:
    """(session, key) → job, for as long as the job can be asked for. For the event loop's thread alone.

    The key of a job that failed or was cancelled is free again: who sends it once more wants the picture.

    Args:
        registry: Who knows which jobs can still be asked for.

    References:
        The Idempotency-Key HTTP Header Field, draft-ietf-httpapi-idempotency-key-header.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._claims: dict[tuple[Session, str], Claim] = {}

    @contextlib.contextmanager
    def claim(self, session: Session, key: str, asked: str) -> Iterator[Claim]:
        """The claim of a key, new or with its job; a new one that is left without a job is given up.

        Args:
            session: Who sends it, and the label of the client: sessions do not share keys.
            key: As it was sent.
            asked: All that the request asks for.

        Raises:
            IdempotencyError: The key stands for something else, or its first request is not yet taken in.
        """
        self._forget()
        name, digest = (session, key), hashlib.sha256(asked.encode()).hexdigest()
        claim = self._claims.get(name)
        if claim is not None and claim.digest != digest:
            raise IdempotencyError(f"the Idempotency-Key {key!r} came with another request before; take a new one")
        if claim is not None and claim.record is None:
            raise IdempotencyError(f"the first request with the Idempotency-Key {key!r} is not yet taken in")
        if claim is None:
            claim = self._claims[name] = Claim(digest)
        try:
            yield claim
        finally:
            if claim.record is None:
                del self._claims[name]

    def _forget(self) -> None:
        """Free the keys of jobs that failed, were cancelled, or cannot be asked for any more."""
        known = self._registry.ids()
        self._claims = {
            name: claim
            for name, claim in self._claims.items()
            if claim.record is None
            or (claim.record.job.id in known and claim.record.job.phase not in {Phase.FAILED, Phase.CANCELLED})
        }
