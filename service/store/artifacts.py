"""Files by their content: what jobs came with and what they made.

An artifact's address is the SHA-256 of its bytes, so equal files are one, a file never changes, and whoever reads one
knows that it is whole. Nothing here knows which job a file belongs to; :mod:`service.store.retention` removes those
that no job refers to. Whoever lets a job refer to a file stores it just before, even one that is there.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from service.store.port import NO_SPACE, DiskFullError, StoreError, StoreUnavailableError

_ADDRESS: Final = re.compile(r"[0-9a-f]{64}")


class UnknownArtifactError(Exception):
    """There is no file of that address, or none any more."""

    def __init__(self, address: str) -> None:
        super().__init__(f"there is no artifact {address[:64]!r}, or none any more")


class DamagedArtifactError(Exception):
    """A file does not have the bytes that its address stands for: the disk has lost or changed some."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the artifact {address!r} is damaged")


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is known of a file without reading it.

    Attributes:
        address: The SHA-256 of its bytes, in hexadecimal.
        size: In bytes.
        used: When it was last stored, in Unix seconds; storing it again counts.
    """

    address: str
    size: int
    used: float


class Artifacts(Protocol):
    """Where files are kept. Any number of processes may share one."""

    async def put(self, data: bytes, *, durable: bool = True) -> str:
        """Store bytes; their address.

        Args:
            data: The bytes.
            durable: Whether they are safe when this returns; else a crash of the machine may lose them.

        Raises:
            DiskFullError: There is no space left.
            StoreUnavailableError: They cannot be stored now.
        """
        ...

    async def get(self, address: str) -> bytes:
        """The bytes of an address.

        Raises:
            UnknownArtifactError: There are none.
            DamagedArtifactError: They are others than were stored.
            StoreUnavailableError: They cannot be read now.
        """
        ...

    async def all(self) -> list[Artifact]:
        """Every file."""
        ...

    async def remove(self, address: str, unused_since: float) -> bool:
        """Remove a file if it is there and was not stored again since a time; whether it was removed."""
        ...


def open_artifacts(url: str) -> Artifacts:
    """The artifacts at an address.

    Args:
        url: A folder's path; or any address that fsspec has a file system for, like ``s3://BUCKET/FOLDER``, with the
            package that it names for it installed.

    Raises:
        ValueError: There is no such file system here.
    """
    return RemoteArtifacts(url) if "://" in url else FolderArtifacts(Path(url))


def address_of(data: bytes) -> str:
    """The address that bytes have."""
    return hashlib.sha256(data).hexdigest()


class FolderArtifacts:
    """Artifacts in a folder: ``ab/abcdef…``, and ``partial`` for files that are being written.

    A file is written beside its place, made safe, and put there in one step, so that none is ever there in part.

    Args:
        folder: Made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder / "partial"

    async def put(self, data: bytes, *, durable: bool = True) -> str:
        """Store bytes."""
        return await asyncio.to_thread(self._put, data, durable=durable)

    async def get(self, address: str) -> bytes:
        """The bytes of an address."""
        return await asyncio.to_thread(self._get, address)

    async def all(self) -> list[Artifact]:
        """Every file."""
        return await asyncio.to_thread(lambda: list(self._all()))

    async def remove(self, address: str, unused_since: float) -> bool:
        """Remove a file that was not stored again since."""
        return await asyncio.to_thread(self._remove, address, unused_since)

    def _put(self, data: bytes, *, durable: bool) -> str:
        address = address_of(data)
        with _told():
            place = self._place(address)
            _make_folder(place.parent)
            with self._locked(fcntl.LOCK_SH):
                # It may be there already; storing it again must keep it from being removed as unused.
                if _touched(place, address, durable=durable):
                    return address
                _make_folder(self._partial)
                descriptor, name = tempfile.mkstemp(dir=self._partial)
                try:
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(data)
                        file.flush()
                        if durable:
                            os.fsync(file.fileno())
                    Path(name).replace(place)
                except BaseException:
                    Path(name).unlink(missing_ok=True)
                    raise
                if durable:
                    _sync(place.parent)
        return address

    def _get(self, address: str) -> bytes:
        place = self._place(address)
        with _told():
            try:
                data = place.read_bytes()
            except FileNotFoundError:
                raise UnknownArtifactError(address) from None
        if address_of(data) != address:
            raise DamagedArtifactError(address)
        return data

    def _all(self) -> Iterator[Artifact]:
        with _told():
            for place in self._folder.glob("[0-9a-f][0-9a-f]/*"):
                try:
                    known = place.stat()
                except FileNotFoundError:
                    continue
                if _ADDRESS.fullmatch(place.name):
                    yield Artifact(place.name, known.st_size, known.st_mtime)

    def _remove(self, address: str, unused_since: float) -> bool:
        place = self._place(address)
        with _told():
            if not self._folder.exists():
                return False
            with self._locked(fcntl.LOCK_EX):
                try:
                    if place.stat().st_mtime > unused_since:
                        return False
                    place.unlink()
                except FileNotFoundError:
                    return False
        return True

    def clean(self, before: float) -> int:
        """Remove what processes that were killed left half written before a time; how many files."""
        left = [file for file in self._partial.glob("*") if file.stat().st_mtime < before]
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)

    def _place(self, address: str) -> Path:
        if not _ADDRESS.fullmatch(address):
            raise UnknownArtifactError(address)
        return self._folder / address[:2] / address

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Between processes: many may store at once; none while one is removed."""
        with (self._folder / "lock").open("ab") as file:
            fcntl.flock(file, how)
            yield


class RemoteArtifacts:
    """Artifacts in any file system that fsspec knows.

    Such systems put a file in its place whole, and have no lock: that nothing is removed while it is stored again rests
    on the hours for which unused files are kept (:class:`service.store.retention.Retention`).

    Args:
        url: As :func:`open_artifacts` has it.
        clock: The time, in Unix seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        import fsspec

        try:
            self._system, folder = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            scheme = url.partition(":")[0]
            raise ValueError(f"there is no file system for {scheme}:// here: {error}") from error
        self._folder, self._clock = str(folder).rstrip("/"), clock

    async def put(self, data: bytes, *, durable: bool = True) -> str:
        """Store bytes; they are always safe then."""
        return await asyncio.to_thread(self._put, data)

    async def get(self, address: str) -> bytes:
        """The bytes of an address."""
        return await asyncio.to_thread(self._get, address)

    async def all(self) -> list[Artifact]:
        """Every file."""
        return await asyncio.to_thread(self._all)

    async def remove(self, address: str, unused_since: float) -> bool:
        """Remove a file that was not stored again since."""
        return await asyncio.to_thread(self._remove, address, unused_since)

    def _put(self, data: bytes) -> str:
        # Always written: that makes its time of use new.
        address = address_of(data)
        with _answered():
            self._system.pipe_file(self._place(address), data)
        return address

    def _get(self, address: str) -> bytes:
        with _answered():
            try:
                data: bytes = self._system.cat_file(self._place(address))
            except FileNotFoundError:
                raise UnknownArtifactError(address) from None
        if address_of(data) != address:
            raise DamagedArtifactError(address)
        return data

    def _all(self) -> list[Artifact]:
        with _answered():
            self._system.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._system.find(self._folder, detail=True)
        named = ((path.rpartition("/")[2], known) for path, known in found.items())
        return [
            Artifact(name, int(known["size"]), self._used(known))
            for name, known in named
            if _ADDRESS.fullmatch(name) and known["type"] == "file"
        ]

    def _remove(self, address: str, unused_since: float) -> bool:
        place = self._place(address)
        with _answered():
            try:
                # What a listing said of it before does not count: another process may have stored it again.
                self._system.invalidate_cache()
                if self._used(self._system.info(place)) > unused_since:
                    return False
                self._system.rm_file(place)
            except FileNotFoundError:
                return False
        return True

    def _used(self, known: dict[str, Any]) -> float:
        """When a file was stored, by whichever name its system has for it; now, where it has none."""
        names = ("LastModified", "mtime", "last_modified", "created")
        when = next((known[name] for name in names if name in known), self._clock())
        at = when.timestamp() if isinstance(when, datetime) else float(when)
        # Some systems, S3 among them, tell whole seconds: it may have been at the end of that one.
        return at + 1 if at.is_integer() else at

    def _place(self, address: str) -> str:
        if not _ADDRESS.fullmatch(address):
            raise UnknownArtifactError(address)
        return f"{self._folder}/{address[:2]}/{address}"


def _touched(place: Path, address: str, *, durable: bool) -> bool:
    """Whether a file is there and undamaged; it is used now."""
    try:
        if address_of(place.read_bytes()) != address:
            return False
        os.utime(place)
    except FileNotFoundError:
        return False
    # Who put it there may have been killed just before this, or have had no need of it.
    if durable:
        _sync(place)
        _sync(place.parent)
    return True


def _make_folder(folder: Path) -> None:
    """Make a folder, and be sure that it stays."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Be sure that a file's bytes stay, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told() -> Iterator[None]:
    """The system's errors in the store's words."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            detail = "the disk of the artifacts is full; free some space, or keep finished jobs for a shorter time"
            raise DiskFullError(detail) from error
        raise StoreUnavailableError(f"artifacts cannot be written or read: {error.strerror or error}") from error


@contextmanager
def _answered() -> Iterator[None]:
    """The errors of a remote system in the store's words: each client has its own, also such as are no OSError."""
    try:
        with _told():
            yield
    except (UnknownArtifactError, StoreError):
        raise
    except Exception as error:
        raise StoreUnavailableError(f"artifacts cannot be written or read: {type(error).__name__}") from error
