"""GET / and the files that the page is made of; GET /docs, Swagger UI over the service's own OpenAPI document.

Both may load nothing from another host and run no script but their own files: the Content-Security-Policy says so to
the browser, and with it no prompt or file name can ever become markup that runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_HERE: Final = Path(__file__).parent
_OWN: Final = "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
_PAGE: Final = f"default-src 'self'; img-src 'self' data: blob:; {_OWN}"
# Swagger UI writes styles into its elements.
_DOCS: Final = f"default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; {_OWN}"


def mount(app: FastAPI) -> None:
    """Serve the page at ``/`` with its files below ``/web``, and ``/docs`` with its files below itself."""
    page, docs = _headers(_PAGE), _headers(_DOCS)

    async def index() -> FileResponse:
        """Compose pictures in a browser."""
        return FileResponse(_HERE / "static" / "index.html", headers=page)

    async def described() -> FileResponse:
        """The HTTP API, described and to be tried."""
        return FileResponse(_HERE / "swagger" / "index.html", headers=docs)

    options: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False}
    app.add_api_route("/", index, **options)
    app.mount("/web", _Files(_HERE / "static", page), name="web")
    app.add_api_route("/docs", described, **options)
    app.mount("/docs", _Files(_HERE / "swagger", docs), name="docs")


def _headers(policy: str) -> dict[str, str]:
    """The headers of a page and its files.

    Args:
        policy: Its Content-Security-Policy.
    """
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # A browser asks whether a file has changed, and gets 304; so a new release never runs with half of the old one.
        "Cache-Control": "no-cache",
    }


class _Files(StaticFiles):
    """The files of a folder.

    Args:
        directory: The folder.
        headers: What every answer carries.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str]) -> None:
        super().__init__(directory=directory)
        self._headers = headers

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with the headers."""
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response
