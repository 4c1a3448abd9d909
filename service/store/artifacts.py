"""Files by their content: a stand-in until the store's own."""

import asyncio
import hashlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol


class ArtifactError(Exception):
    """A file cannot be read or written."""


class Artifacts(Protocol):
    """Files by the digest of their content."""

    async def put(self, data: bytes) -> str: ...
    async def get(self, address: str) -> bytes: ...
    async def delete(self, address: str) -> None: ...
    async def sweep(self, keep: Collection[str], grace_s: float = 3600.0) -> int: ...


class FolderArtifacts:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, data: bytes) -> str:
        address = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self._write, address, data)
        return address

    def _write(self, address: str, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{address}.{time.monotonic_ns()}.part"
        part.write_bytes(data)
        part.rename(self._folder / address)

    async def get(self, address: str) -> bytes:
        try:
            return await asyncio.to_thread((self._folder / address).read_bytes)
        except OSError as error:
            raise ArtifactError("the file is gone") from error

    async def delete(self, address: str) -> None:
        (self._folder / address).unlink(missing_ok=True)

    async def sweep(self, keep: Collection[str], grace_s: float = 3600.0) -> int:
        return 0


class MemoryArtifacts:
    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        address = hashlib.sha256(data).hexdigest()
        self._held[address] = data
        return address

    async def get(self, address: str) -> bytes:
        try:
            return self._held[address]
        except KeyError:
            raise ArtifactError("the file is gone") from None

    async def delete(self, address: str) -> None:
        self._held.pop(address, None)

    async def sweep(self, keep: Collection[str], grace_s: float = 3600.0) -> int:
        return 0


def open_artifacts(url: str) -> Artifacts:
    """The files at an address."""
    return MemoryArtifacts() if url == "memory:" else FolderArtifacts(Path(url))
