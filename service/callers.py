"""Who asks: API keys and what they allow, and the caller that a request comes from.

A key is ``sd_ID_SECRET``. The id finds its record; the secret is 32 random bytes, of which only a SHA-256 is stored. A
slow hash (bcrypt, Argon2) protects secrets that people choose, which can be guessed: to guess one of 2^256 random
secrets is hopeless however fast the hash, and a slow one would cost every request.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

_PREFIX: Final = "sd"
_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
# The part of an IPv6 address that a network is given; who has one may choose the rest freely.
_IPV6_NETWORK: Final = 64


Session = tuple[str, str | None]
"""A caller's id and a label: one of its clients."""


class Scope(StrEnum):
    """What a key may be used for."""

    GENERATE = "generate"
    """Everything that makes pictures and looks at one's own."""
    READ_METRICS = "read-metrics"
    """GET /metrics and GET /v1/workers."""
    ADMIN = "admin"
    """All of the others, and /v1/admin."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a caller may ask for; None for no bound of its own.

    Attributes:
        requests_per_minute: HTTP requests in any minute, whatever they ask.
        concurrent_jobs: Jobs waiting and running at once; never more than the service allows every caller.
        pixel_steps_per_day: Width × height × network rows over all steps, summed over the jobs of a day, which begins
            with its first.
    """

    requests_per_minute: int | None = None
    concurrent_jobs: int | None = None
    pixel_steps_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored. Times are Unix times in seconds.

    Attributes:
        id: Finds it; no secret.
        name: What its owner calls it; no two keys that are not revoked have the same.
        digest: SHA-256 of the whole key, in hexadecimal.
        scopes: What it may be used for.
        allowance: How much.
        created: When.
        expires: From when on it is refused; None for never.
        last_used: When a request came with it last, to the minute or so; None for never.
        revoked: When it was withdrawn; None while it was not.
    """

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    allowance: Allowance
    created: float
    expires: float | None = None
    last_used: float | None = None
    revoked: float | None = None

    def usable(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class KeyStore(Protocol):
    """Where keys are kept."""

    async def add(self, key: Key) -> None:
        """Keep a new key; :class:`KeyNameError` where one that is not revoked has its name."""
        ...

    async def find(self, key_id: str) -> Key | None:
        """The key of an id."""
        ...

    async def all(self) -> Sequence[Key]:
        """Every key, revoked ones too, the oldest first."""
        ...

    async def revoke(self, key_id: str, when: float) -> None:
        """Withdraw a key; one that was withdrawn before stays as it is."""
        ...

    async def used(self, key_id: str, when: float) -> None:
        """Note that a key was used."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


class KeyNameError(Exception):
    """A key of that name is there already."""


class UnauthorizedError(Exception):
    """A request without a key, or with one that is not accepted.

    Attributes:
        given: Whether there was one.
    """

    def __init__(self, detail: str, *, given: bool) -> None:
        super().__init__(detail)
        self.given = given


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Caps, turns and what may be seen go by ``id`` alone, which no client can choose.

    Attributes:
        id: Its key, or where keys are not asked for, its address.
        allowance: How much it may ask for.
        scopes: What it may ask.
        label: A name of the client's choice, which groups the caller's jobs; None for none.
    """

    id: str
    allowance: Allowance = Allowance()
    scopes: frozenset[Scope] = field(default_factory=lambda: frozenset(Scope))
    label: str | None = None

    @property
    def session(self) -> Session:
        """What is remembered for one of its clients: Idempotency-Keys, options, tasks."""
        return self.id, self.label

    def may(self, scope: Scope) -> bool:
        """Whether it may ask what the scope covers."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def mint(
    name: str, scopes: frozenset[Scope], allowance: Allowance, now: float, expires: float | None = None
) -> tuple[str, Key]:
    """A new key: the text that its owner is shown once, and what is stored of it."""
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return text, Key(key_id, name, digest_of(text), scopes, allowance, now, expires)


def digest_of(text: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str | None:
    """The id in a key's text; None where it is no key."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    return key_id if prefix == _PREFIX and key_id and secret else None


async def verified(text: str, store: KeyStore, now: float) -> Key:
    """The key of a text.

    Raises:
        UnauthorizedError: There is none, or it was revoked or has expired; the latter is told only to who has it.
    """
    key_id = id_of(text)
    key = None if key_id is None else await store.find(key_id)
    # Compared also where there is none, so that an answer takes as long for an id that exists as for another.
    matches = hmac.compare_digest(digest_of(text), key.digest if key else "0" * 64)
    if key is None or not matches:
        raise UnauthorizedError("there is no such API key", given=True)
    if key.revoked is not None:
        raise UnauthorizedError(f"the API key {key.name!r} was revoked", given=True)
    if not key.usable(now):
        raise UnauthorizedError(f"the API key {key.name!r} has expired", given=True)
    return key


def of_key(key: Key) -> Caller:
    """The caller that a key stands for."""
    return Caller(f"key:{key.id}", key.allowance, key.scopes)


def of_address(host: str | None) -> Caller:
    """The caller at an address, where keys are not asked for: of IPv6, the network, since its owner has all of it.

    Args:
        host: As the connection has it; None where it has none.
    """
    if host is None:
        return Caller("address:unknown")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Caller(f"address:{host}")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return Caller(f"address:{address.ipv4_mapped}")
        if not address.is_loopback:
            return Caller(f"address:{ipaddress.ip_network((address, _IPV6_NETWORK), strict=False)}")
    return Caller(f"address:{address}")


def is_loopback(host: str) -> bool:
    """Whether what listens at an address can be reached from its own machine alone; False where that is not known."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
