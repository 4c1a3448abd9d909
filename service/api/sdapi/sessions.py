"""What the dialect remembers between requests: a caller's model, and whose previews are looked at."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request

from service.callers import Session
from service.engine.job import Job

_MOST_SESSIONS: Final = 4096


class ChosenModels:
    """Session → the model that it chose as its default. For the event loop's thread alone.

    Args:
        most: How many sessions are remembered; the one not seen for longest is forgotten first.
    """

    def __init__(self, most: int = _MOST_SESSIONS) -> None:
        self._most = most
        self._models: OrderedDict[Session, str] = OrderedDict()

    def choose(self, session: Session, model: str) -> None:
        """Remember a session's model."""
        self._models[session] = model
        self._models.move_to_end(session)
        if len(self._models) > self._most:
            self._models.popitem(last=False)

    def of(self, session: Session) -> str | None:
        """The session's model; None where it chose none."""
        if session in self._models:
            self._models.move_to_end(session)
        return self._models.get(session)


class Watchers:
    """Listens to the jobs whose progress is asked for: the engine draws previews for listeners only.

    For the event loop's thread alone.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, job: Job) -> None:
        """Listen to a job until it is over."""
        if not job.over and job.id not in self._tasks:
            task = self._tasks[job.id] = asyncio.create_task(_listen(job))
            task.add_done_callback(lambda _: self._tasks.pop(job.id, None))


async def _listen(job: Job) -> None:
    async for _ in job.channel.listen():
        pass


@dataclass(frozen=True, slots=True)
class Sessions:
    """All of it.

    Attributes:
        models: Whose default is which.
        watchers: Of jobs.
    """

    models: ChosenModels = field(default_factory=ChosenModels)
    watchers: Watchers = field(default_factory=Watchers)


def _of(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sdapi
    return sessions


SessionsDep = Annotated[Sessions, Depends(_of)]
