"""``superdiff worker``: compute what waits in a store."""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Annotated

import typer

from pipelines.importing import collector_paused
from service.commands.common import CatalogOption, CommandError, DeviceOption, catalog_path, quiet, read_settings, told
from service.commands.serve import bound_spinning
from service.logs import LogFormat, set_up


def worker(
    database: Annotated[
        str | None, typer.Option(help="The store: postgresql://… or sqlite:///FILE.  [SUPERDIFF_DATABASE]")
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Jobs' files: a folder or a URL such as s3://….  [SUPERDIFF_ARTIFACTS]")
    ] = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Log lines for people, or JSON.  [SUPERDIFF_LOG_FORMAT]")
    ] = None,
    tied: Annotated[bool | None, typer.Option("--tied", help="End when standard input does.")] = None,
) -> None:
    """Compute the jobs of a service's store; any number of workers may, on any machine.

    `superdiff serve --workers 0` is the API before them. SIGHUP reloads the catalogue; SIGTERM finishes the running
    jobs, gives those that are not done in time back, and stops.
    """
    given = {
        "database": database,
        "artifacts": artifacts,
        "catalog": catalog,
        "device": device,
        "log_format": log_format,
    }
    with told():
        settings = read_settings(**{key: value for key, value in given.items() if value is not None})
        settings = settings.model_copy(update={"catalog": catalog_path(None, settings)})
    set_up(settings.log_format, settings.log_level)
    bound_spinning(os.environ)
    quiet()
    with collector_paused("service.workers.process"):
        from service.store.port import StoreError
        from service.tracing import Tracing, TracingError, provider_from_environment, wanted
        from service.workers.process import WorkerProcess
    with told():
        try:
            tracing = Tracing(provider_from_environment()) if wanted() else None
        except TracingError as error:
            raise CommandError(str(error)) from error
        process = WorkerProcess(settings, tracing=tracing)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def hung_up() -> None:
            task = asyncio.create_task(process.reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stop)
        with contextlib.suppress(AttributeError):  # systems without that signal
            loop.add_signal_handler(signal.SIGHUP, hung_up)
        if tied:
            loop.add_reader(sys.stdin.fileno(), process.stop)
        await process.run()

    try:
        asyncio.run(run())
    except (StoreError, ValueError) as error:
        raise CommandError(str(error)) from error
    finally:
        if tracing is not None:
            tracing.close()
