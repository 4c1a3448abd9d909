"""API keys in a file: JSON, readable by its owner alone, always whole."""

import asyncio
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from service.callers import Allowance, Key, KeyNameError, Scope

_VERSION: Final = 1
_OWNER_ALONE: Final = 0o600
Keys = dict[str, Key]


class KeyFileError(Exception):
    """The file of keys cannot be read or written."""


class KeyFile:
    """See :class:`service.callers.KeyStore`. Several processes may share the file: whoever changes it holds a lock, and
    a change is seen by the next that looks, so that a revoked key is refused at once.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: Keys = {}

    async def add(self, key: Key) -> None:
        """Keep a new key; :class:`KeyNameError` where one that is not revoked has its name."""

        def change(keys: Keys) -> Keys:
            if any(other.name == key.name and other.revoked is None for other in keys.values()):
                raise KeyNameError(f"there is a key {key.name!r} already; revoke it first, or take another name")
            return {**keys, key.id: key}

        await asyncio.to_thread(self._change, change)

    async def find(self, key_id: str) -> Key | None:
        """The key of an id."""
        return self._read().get(key_id)

    async def all(self) -> Sequence[Key]:
        """Every key, revoked ones too, the oldest first."""
        return list(self._read().values())

    async def revoke(self, key_id: str, when: float) -> None:
        """Withdraw a key; one that was withdrawn before stays as it is."""
        await self._update(key_id, lambda key: key if key.revoked is not None else replace(key, revoked=when))

    async def used(self, key_id: str, when: float) -> None:
        """Note that a key was used."""
        await self._update(key_id, lambda key: replace(key, last_used=when))

    async def _update(self, key_id: str, update: Callable[[Key], Key]) -> None:
        def change(keys: Keys) -> Keys:
            return {**keys, key_id: update(keys[key_id])} if key_id in keys else keys

        await asyncio.to_thread(self._change, change)

    def _read(self) -> Keys:
        """What stands in the file; it is read again only where it is another than before."""
        try:
            found = self._path.stat()
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark != self._seen:
                self._keys, self._seen = _parsed(json.loads(self._path.read_bytes())), mark
        except FileNotFoundError:
            self._keys, self._seen = {}, None
        except OSError as error:
            raise KeyFileError(f"{self._path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise KeyFileError(f"{self._path}: this is no file of API keys of this version: {error}") from error
        return self._keys

    def _change(self, change: Callable[[Keys], Keys]) -> None:
        try:
            with self._locked():
                self._write(change(self._read()))
        except OSError as error:
            raise KeyFileError(f"{self._path}: cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep every other process from changing the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, _OWNER_ALONE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: Keys) -> None:
        """All of it or nothing: beside the file, then in its place. ``mkstemp`` lets the owner alone read it."""
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"version": _VERSION, "keys": [_written(key) for key in keys.values()]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _written(key: Key) -> dict[str, Any]:
    return {**asdict(key), "scopes": sorted(key.scopes)}


def _parsed(document: Any) -> Keys:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']}")
    keys = (
        Key(
            **{
                **each,
                "scopes": frozenset(map(Scope, each["scopes"])),
                "allowance": Allowance(**each["allowance"]),
            }
        )
        for each in document["keys"]
    )
    return {key.id: key for key in keys}
