"""What answers requests, a service elsewhere or this process, in the words of the wire either way."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from service.commands.common import CommandError, Exit, refused


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a job, as the wire has it.

    Attributes:
        kind: "queued", "progress", "preview", "completed", "failed" or "cancelled".
        data: What goes with it.
        last: The event's id, to go on after it.
    """

    kind: str
    data: Mapping[str, Any]
    last: str = ""


class Session(Protocol):
    """Takes native requests. Its errors are :class:`CommandError` and the science's own."""

    def submit(self, path: str, body: Mapping[str, Any]) -> str:
        """Queue a request; returns the job's id."""
        ...

    def events(self, job_id: str) -> Iterator[Told]:
        """The job's events up to the last."""
        ...

    def cancel(self, job_id: str) -> None:
        """Cancel the job; harmless where it is over."""
        ...


def outcome_of(told: Told, expression: object) -> Mapping[str, Any] | None:
    """The answer of a job that is completed; None while it goes on.

    Args:
        told: The newest event.
        expression: The text that was sent, if it was a text.

    Raises:
        CommandError: It failed or was cancelled.
    """
    match told.kind:
        case "completed":
            return told.data
        case "failed":
            raise refused(told.data, expression)
        case "cancelled":
            raise CommandError("the job was cancelled", Exit.REFUSED)
    return None
