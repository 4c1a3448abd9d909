"""``superdiff worker``: compute what waits in a store."""

import asyncio
import signal
import sys
from typing import Annotated

import typer

from pipelines.importing import collector_paused
from service.commands.common import CatalogOption, CommandError, DeviceOption, told
from service.commands.computing import prepare, reload_at_hangup, settings_given
from service.logs import LogFormat


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
    settings = settings_given(
        database=database, artifacts=artifacts, catalog=catalog, device=device, log_format=log_format
    )
    prepare(settings)
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
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stop)
        reload_at_hangup(process.reload)
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
