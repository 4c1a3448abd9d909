"""GET / and the files that the page is made of.

The page may load nothing from another host and run no script but its own files: its Content-Security-Policy says so to
the browser, and with it no prompt or file name can ever become markup that runs.
"""

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FILES: Final = Path(__file__).parent / "static"
_PREFIX: Final = "/web"
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A browser asks whether a file has changed, and gets 304; so a new release never runs with half of the old one.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    """Static files with the page's own headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def mount(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/web``."""

    async def page() -> FileResponse:
        """Compose pictures in a browser."""
        return FileResponse(_FILES / "index.html", headers=_HEADERS)

    options: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False}
    app.add_api_route("/", page, **options)
    app.mount(_PREFIX, _Files(directory=_FILES), name="web")
