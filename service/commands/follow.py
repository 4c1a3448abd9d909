"""Following a job: a bar with its step and noise level, and what Ctrl-C does."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.commands.common import CommandError, Exit
from service.commands.session import Session, Told, outcome_of

Preview = Callable[[Mapping[str, Any]], None]


def answer_of(
    session: Session, path: str, body: Mapping[str, Any], preview: Preview | None = None
) -> Mapping[str, Any]:
    """The answer to a request; while it is made, stderr shows how far it is, if it is a terminal.

    Args:
        session: Who answers.
        path: What is asked, as /v1/superpose.
        body: As the wire has it.
        preview: Called with the data of each preview.

    Raises:
        CommandError: It was refused, failed, was cancelled, or Ctrl-C was pressed; then it is cancelled.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[sigma]}")
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None, sigma="")
        job_id = None
        try:
            job_id = session.submit(path, body)
            for told in session.events(job_id):
                progress.update(task, **_shown(told))
                if told.kind == "preview" and preview is not None:
                    preview(told.data)
                answer = outcome_of(told, body.get("expression"))
                if answer is not None:
                    return answer
        except KeyboardInterrupt:
            progress.stop()
            if job_id is None:
                raise
            session.cancel(job_id)
            raise CommandError(f"interrupted; job {job_id} is cancelled", Exit.INTERRUPTED) from None
    raise CommandError("the job's events ended before the job did", Exit.UNREACHABLE)


def _shown(told: Told) -> dict[str, Any]:
    """What an event changes of the bar."""
    match told.kind:
        case "queued":
            position = told.data["position"]
            return {"description": f"queued, {position} ahead" if position else "queued"}
        case "progress":
            sigma = f"σ {told.data['sigma']:.3g}"
            done = {"completed": told.data["step"], "total": told.data["steps"], "sigma": sigma}
            return {"description": "sampling"} | done
        case "completed":
            steps = told.data["timings"]["steps"]
            return {"description": "done", "completed": steps, "total": steps or 1}
    return {}
