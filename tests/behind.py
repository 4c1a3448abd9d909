"""Runs test modules unmodified against another backend: ``python -m pytest -p tests.behind …``.

Every service that a test makes becomes an API without an engine, and two workers compute for it over one store:
PostgreSQL where SUPERDIFF_BEHIND=postgres, else an SQLite file.

* An application made in the test's own process gets workers that are threads, each with an event loop and an engine of
  its own. One that is given an engine by a test stays as it is.
* A server process (:mod:`tests.servers`) gets two worker processes. Where SUPERDIFF_BEHIND=ray, it is a Ray cluster of
  its own with two replicas that compute, over an SQLite file.
"""

import asyncio
import atexit
import contextlib
import itertools
import os
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

import service.app
from service.settings import MEMORY, Settings
from service.workers.process import WorkerProcess
from tests import clusters, postgres, servers, waits

WORKERS = 2
WHERE = os.environ.get("SUPERDIFF_BEHIND", "sqlite")
assert WHERE in {"sqlite", "postgres", "ray"}, f"SUPERDIFF_BEHIND is sqlite, postgres or ray, not {WHERE}"
LEFT_OUT = {"embedded": "only holds where API and engine are one process"}
if WHERE == "ray":
    LEFT_OUT["process"] = "is about the process of superdiff serve"
create_plain_app = service.app.create_app
_numbers = itertools.count()
_resources = contextlib.ExitStack()
atexit.register(_resources.close)


class Thread(threading.Thread):
    """A worker, as far as the store can tell a process of its own."""

    def __init__(self, settings, catalog):
        super().__init__(daemon=True)
        self._settings, self._catalog = settings, catalog
        self._began = threading.Event()

    def run(self):
        async def work():
            self.process = WorkerProcess(self._settings, self._catalog)
            self._loop = asyncio.get_running_loop()
            self._began.set()
            await self.process.run()

        asyncio.run(work())

    def begin(self):
        self.start()
        assert self._began.wait(30)

    def end(self):
        self._loop.call_soon_threadsafe(self.process.stop)
        self.join(60)
        assert not self.is_alive()


class _Server:
    made = None


def database(folder):
    """The address of a new store."""
    if WHERE != "postgres":
        return f"sqlite:///{folder / 'jobs.sqlite'}"
    if _Server.made is None:
        _Server.made = _resources.enter_context(postgres.server(*postgres.FAST))
    return _Server.made.create(f"behind{next(_numbers)}")


def shared(given):
    """The settings of a store that processes share, where the given one is none."""
    if given not in {"", MEMORY}:
        return {}
    folder = Path(_resources.enter_context(tempfile.TemporaryDirectory(prefix="behind-")))
    return {"database": database(folder), "artifacts": str(folder / "files")}


def create_app(settings=None, *, catalog=None, engine=None, tracing=None):
    """As :func:`service.app.create_app`, over workers."""
    settings = settings or Settings()
    if engine is not None:
        return create_plain_app(settings, catalog=catalog, engine=engine, tracing=tracing)
    settings = settings.model_copy(update={"workers": 0} | shared(settings.database))
    app = create_plain_app(settings, catalog=catalog, tracing=tracing)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app):
        models = app.state.services.models
        threads = [Thread(settings, models.catalog) for _ in range(WORKERS)]
        async with inner(app) as state:
            for thread in threads:
                thread.begin()
            backend = app.state.services.backend
            async with asyncio.timeout(60):
                while len(backend.workers()) < WORKERS or backend.unready:
                    await asyncio.sleep(0.02)
            yield state
        for thread in threads:
            await asyncio.to_thread(thread.end)

    app.router.lifespan_context = lifespan
    return app


def launch(log_path, environment):
    """As :func:`tests.servers.serve`, with two workers."""
    told = {f"SUPERDIFF_{name.upper()}": value for name, value in shared(environment["SUPERDIFF_DATABASE"]).items()}
    if WHERE != "ray":
        server = servers.serve(log_path, environment | told | {"SUPERDIFF_WORKERS": str(WORKERS)})
    else:
        # Ray's proxies are no loopback; whoever brings keys along asks for them.
        anyone = {"SUPERDIFF_ALLOW_ANYONE": "1"} if told else {}
        sizes = (f"min_workers={WORKERS}", f"max_workers={WORKERS}")
        server = clusters.start(log_path, environment | told | anyone, *sizes)
    if told:
        waits.until(lambda: len(httpx.get(f"{server.url}/v1/workers").json()["workers"]) == WORKERS)
    return server


def pytest_configure():
    """Before any test module asks for it."""
    service.app.create_app = create_app
    servers.launch = launch


def pytest_collection_modifyitems(items):
    """Leave out what is not about a service wherever it computes; pyproject.toml says what the markers mean."""
    if WHERE == "postgres" and postgres.programs() is None and os.environ.get("SUPERDIFF_REQUIRE_POSTGRES") != "1":
        missing = pytest.mark.skip(reason="PostgreSQL is not installed; scripts/install_test_tools.sh does it")
        for item in items:
            item.add_marker(missing)
    for item in items:
        for mark, why in LEFT_OUT.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))
