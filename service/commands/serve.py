"""``superdiff serve``: the service."""

import socket
from typing import Annotated, Final

import typer

from pipelines.importing import collector_paused, link_ahead
from service.commands.common import CatalogOption, CommandError, DeviceOption, told
from service.commands.computing import prepare, reload_at_hangup, settings_given
from service.commands.keys import check_keys
from service.logs import LogFormat

_LAST_ANSWERS_S: Final = 5


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [SUPERDIFF_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [SUPERDIFF_PORT]", min=0, max=65535)] = None,
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    allow_anyone: Annotated[
        bool | None,
        typer.Option("--allow-anyone", help="Answer everyone without an API key.  [SUPERDIFF_ALLOW_ANYONE]"),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes that compute: auto for one a device, or a number; 0 for those that superdiff worker "
            "starts; this process by default.  [SUPERDIFF_WORKERS]"
        ),
    ] = None,
    fast: Annotated[
        bool | None, typer.Option("--fast", help="Use bfloat16 and channels last; pictures differ slightly.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Log lines for people, or JSON.  [SUPERDIFF_LOG_FORMAT]")
    ] = None,
) -> None:
    """Start the service. Options override the environment variables SUPERDIFF_*.

    SIGHUP reloads the catalogue; SIGTERM finishes the running jobs and stops.
    """
    settings = settings_given(
        host=host,
        port=port,
        catalog=catalog,
        device=device,
        workers=workers,
        fast=fast,
        log_format=log_format,
        allow_anyone=allow_anyone,
    )
    prepare(settings)
    link_ahead("torch", "lib/libtorch_cpu.so")
    with told():
        check_keys(settings)
    with collector_paused("service.app"):
        import uvicorn

        from service.app import create_app
        from service.connections import server_options
        from service.services import Services
        from service.tracing import TracingError
    with told():
        try:
            application = create_app(settings)
        except TracingError as error:
            raise CommandError(str(error)) from error
    services: Services = application.state.services

    class Server(uvicorn.Server):
        """Stops the engine before it stops listening, and reads the catalogue anew at SIGHUP.

        Until running jobs are done, new requests are answered that the service is shutting down, and answers and events
        go out as ever; what is left to write then takes a moment.
        """

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            reload_at_hangup(services.backend.reload)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await services.backend.stop(settings.grace_s)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        log_config=None,
        access_log=False,
        # Unless a proxy is trusted, X-Forwarded-For is any client's word for its address.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        **server_options(settings, application.state.render),
    )
    Server(config).run()
