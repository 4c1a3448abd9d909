"""What all who compute until they are stopped do first, and at SIGHUP: serve, worker, and replicas on Ray."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from pipelines.errors import CatalogError
from service.commands.common import catalog_path, quiet, read_settings, told
from service.logs import set_up
from service.settings import Settings
from service.tasks import Tasks

_LOG: Final = logging.getLogger(__name__)
_WAITING: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# What OpenMP itself takes where it knows of more threads than processors; benchmarks/crowded.py tells what it brings.
_SPINS: Final = "1000"


def settings_given(**given: Any) -> Settings:
    """The settings, with those of the command line that are not None, and with the catalogue that they mean."""
    with told():
        settings = read_settings(**{key: value for key, value in given.items() if value is not None})
        return settings.model_copy(update={"catalog": catalog_path(None, settings)})


def prepare(settings: Settings) -> None:
    """Set up the log, and what the libraries read when they are imported; so not later than that."""
    set_up(settings.log_format, settings.log_level)
    bound_spinning(os.environ)
    quiet()


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep soon at a barrier, unless the operator said how they shall wait.

    GNU's OpenMP, which torch's wheels for Linux carry, spins for milliseconds, on processors that others may want. It
    reads this when torch is imported, so not later than that.
    """
    if not any(environment.get(name) for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = _SPINS


def reload_at_hangup(reload: Callable[[], Awaitable[object]]) -> None:
    """Read the catalogue anew at SIGHUP, in the loop that runs; one that makes no sense leaves all as it was.

    Args:
        reload: Reads it; :class:`CatalogError` where it makes no sense.
    """
    tasks = Tasks()

    async def read_anew() -> None:
        try:
            await reload()
        except CatalogError as error:
            _LOG.error("the catalogue stays as it was: %s", error)

    with contextlib.suppress(NotImplementedError, AttributeError):  # systems without that signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(read_anew()))
