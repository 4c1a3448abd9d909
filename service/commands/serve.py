"""``superdiff serve``: the service."""

import asyncio
import logging
import socket
from typing import Annotated, Final

import typer

from service.commands.common import CatalogOption, DeviceOption, catalog_path, read_settings, told
from service.commands.keys import check_keys

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
    fast: Annotated[
        bool | None, typer.Option("--fast", help="bfloat16 and channels last; pictures differ a little.")
    ] = None,
) -> None:
    """Start the service. What is not given here is read from SUPERDIFF_* in the environment."""
    import uvicorn

    from service.app import create_app
    from service.services import Services

    given = {
        "host": host,
        "port": port,
        "catalog": catalog,
        "device": device,
        "fast": fast,
        "allow_anyone": allow_anyone,
    }
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with told():
        settings = read_settings(**{key: value for key, value in given.items() if value is not None})
        settings = settings.model_copy(update={"catalog": catalog_path(None, settings)})
        check_keys(settings)
        application = create_app(settings)
    services: Services = application.state.services

    class Server(uvicorn.Server):
        """Stops the engine before it stops listening.

        Until running jobs are done, new requests are answered that the service is shutting down, and answers and events
        go out as ever; what is left to write then takes a moment.
        """

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(services.engine.stop, settings.grace_s)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        # Unless a proxy is trusted, X-Forwarded-For is any client's word for its address.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )
    Server(config).run()
