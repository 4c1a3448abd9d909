"""The workers that a service starts on its own machine: one process each, started anew when it dies."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import SecretStr

from service.settings import Settings

_LOG: Final = logging.getLogger(__name__)
_COMMAND: Final = (sys.executable, "-m", "service.cli", "worker", "--tied")
_THREADS: Final = "OMP_NUM_THREADS"
# A worker that dies at once is started again after a pause that grows; one that lived for a while, at once.
_PAUSES_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_LIVED_S: Final = 60.0
_LAST_WRITES_S: Final = 15.0


class Crew:
    """Some workers; for one event loop.

    Args:
        settings: What the operator set; they get all of it.
        count: How many.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings, self._count = settings, count
        self._keeping: list[asyncio.Task[None]] = []
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Start them."""
        self._keeping = [asyncio.create_task(self._keep(place)) for place in range(self._count)]

    def hang_up(self) -> None:
        """Have them read their catalogue anew."""
        self._signal(signal.SIGHUP)

    async def stop(self, grace_s: float) -> None:
        """Have them end: they give what is not done in time back to the store."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if not self._keeping:
            return
        _, late = await asyncio.wait(self._keeping, timeout=grace_s + _LAST_WRITES_S)
        if late:
            _LOG.error("%d workers do not end, they are killed", len(self._running))
            self._signal(signal.SIGKILL)
        await asyncio.gather(*self._keeping, return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, place: int) -> None:
        """Have a worker in one place, whatever happens to it."""
        failures = 0
        while not self._stopping.is_set():
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            if self._stopping.is_set():
                return
            began = time.monotonic()
            # It ends when its standard input does, so none is left behind where this process is killed.
            process = await asyncio.create_subprocess_exec(
                *_COMMAND, stdin=asyncio.subprocess.PIPE, env=environment(self._settings, place, self._count)
            )
            self._running[place] = process
            if self._stopping.is_set():
                process.terminate()
            code = await process.wait()
            del self._running[place]
            if not self._stopping.is_set():
                failures = 0 if time.monotonic() - began > _LIVED_S else failures + 1
                _LOG.error("worker %d ended with code %d; it is started again", place + 1, code)


def count_of(workers: int | str) -> int:
    """How many processes ``workers`` means: one a device for "auto"."""
    return max(1, torch.cuda.device_count()) if workers == "auto" else int(workers)


def environment(settings: Settings, place: int, count: int) -> dict[str, str]:
    """What a worker finds in its environment: all settings, its device, and its share of the processors.

    Args:
        settings: The service's.
        place: Which worker it is; the first is 0.
        count: How many there are.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    # Only the catalogue that this process reads is meant, wherever the worker runs.
    given |= {"state": settings.state, "catalog": settings.catalog, "workers": None}
    devices = torch.cuda.device_count()
    if devices and settings.device in {None, "cuda"}:
        given["device"] = f"cuda:{place % devices}"
    told = {f"SUPERDIFF_{name.upper()}": _text(value) for name, value in given.items() if value is not None}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SUPERDIFF_")}
    threads = {} if _THREADS in os.environ or devices else {_THREADS: str(max(1, processors() // count))}
    return inherited | threads | told


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(value: Any) -> str:
    """A setting as the environment has it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value.expanduser().absolute() if isinstance(value, Path) else value)
