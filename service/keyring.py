"""Whether keys are asked for, and who a request's key stands for."""

import logging
import time
from collections.abc import Callable
from typing import Final

from service.callers import Caller, KeyStore, UnauthorizedError, is_loopback, of_address, of_key, verified
from service.settings import Settings
from service.store.port import StoreError

_LOG: Final = logging.getLogger(__name__)
_NOTED_EVERY_S: Final = 60.0


class NoKeysError(Exception):
    """The service may not start as it is set: others could reach it, and there is no key to tell them apart by."""


class Keyring:
    """Turns what a request brings into its caller. For one event loop.

    Args:
        clock: Unix time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._store: KeyStore | None = None
        self._asks = True
        # Key → when its use was noted last.
        self._noted: dict[str, float] = {}

    @property
    def asks(self) -> bool:
        """Whether requests need a key: yes until :meth:`open` has found that they do not."""
        return self._asks

    async def open(self, store: KeyStore, settings: Settings) -> None:
        """Find out whether keys are asked for.

        They are, unless ``allow_anyone`` is set, or the address is loopback and there never was a key.

        Args:
            store: Where the keys are; closed by who opened it.
            settings: What the operator set.

        Raises:
            NoKeysError: They are, and none is usable.
        """
        self._store = store
        keys = await store.all()
        alone = is_loopback(settings.host)
        self._asks = settings.require_keys or (not settings.allow_anyone and (bool(keys) or not alone))
        if self._asks and not any(key.usable(self._clock()) for key in keys):
            why = "API keys are required" if alone else f"{settings.host} can be reached from other machines"
            detail = (
                f"{why}, and there is no usable API key. Create one: superdiff keys create NAME. "
                "To answer anyone without a key: superdiff serve --allow-anyone, or SUPERDIFF_ALLOW_ANYONE=true."
            )
            raise NoKeysError(detail)

    async def caller(self, key: str | None, host: str | None) -> Caller:
        """Who asks.

        Args:
            key: As the request brings it; None for none. Not looked at where keys are not asked for.
            host: The connection's address.

        Raises:
            UnauthorizedError: A key is asked for, and this is none.
        """
        if not self._asks:
            return of_address(host)
        if key is None or self._store is None:
            raise UnauthorizedError("an API key is needed", given=False)
        now = self._clock()
        found = await verified(key, self._store, now)
        if now - self._noted.get(found.id, 0.0) >= _NOTED_EVERY_S:
            self._noted[found.id] = now
            try:
                await self._store.used(found.id, now)
            except StoreError as error:
                _LOG.warning("the use of the API key %s is not noted: %s", found.id, error)
        return of_key(found)
