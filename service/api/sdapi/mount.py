"""The dialect as the application takes it in."""

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI

from service.api.sdapi import generation, lists, options, png_info, progress
from service.api.sdapi.faults import SdapiError, render
from service.api.sdapi.sessions import Sessions
from service.faults import Dialect

DIALECTS: Final[Mapping[str, Dialect]] = dict.fromkeys(("/sdapi", "/internal"), Dialect(render, SdapiError))
"""Whose faults are told in the dialect's way, by the first part of their path."""


def mount(app: FastAPI) -> None:
    """Give an application the dialect's routes and what they remember."""
    app.state.sdapi = Sessions()
    for router in (generation.router, progress.router, options.router, lists.router, png_info.router):
        app.include_router(router)
