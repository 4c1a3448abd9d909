"""Where a command is answered: by a service elsewhere, or here."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipelines.importing import collector_paused
from service.commands.common import open_catalog, read_settings
from service.commands.session import Session


@contextlib.contextmanager
def opened(url: str | None, key: str | None, catalog: Path | None, device: str | None) -> Iterator[Session]:
    """A session with the service at ``url``, or with a catalogue here."""
    if url is not None:
        from service.commands.remote import RemoteSession

        with RemoteSession(url, key) as remote:
            yield remote
        return
    with collector_paused("service.app"):
        from service.commands.local import LocalSession

    with LocalSession(open_catalog(catalog, device), read_settings()) as local:
        yield local
