"""``superdiff jobs``: the jobs of a service."""

import base64
import time
from typing import Annotated, Any, Final

import typer

from service.commands.common import (
    DEFAULT_URL,
    CommandError,
    Exit,
    JsonOption,
    KeyOption,
    print_json,
    told,
)
from service.commands.density import tell
from service.commands.output import target_of
from service.commands.pictures import write_answer
from service.commands.remote import RemoteSession

jobs_app = typer.Typer(no_args_is_help=True, help="The jobs of a service: list, show, cancel, fetch.")

# The service deletes what is over.
_OVER: Final = frozenset({"completed", "failed", "cancelled"})
_ServiceOption = Annotated[str, typer.Option("--url", envvar="SUPERDIFF_URL", help="The service at http://HOST:PORT.")]
_IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


@jobs_app.command("list")
def list_jobs(
    url: _ServiceOption = DEFAULT_URL,
    key: KeyOption = None,
    limit: Annotated[int, typer.Option(help="Number of jobs.", min=1, max=1000)] = 100,
    *,
    as_json: JsonOption = False,
) -> None:
    """List your newest jobs, newest first."""
    with told(), RemoteSession(url, key) as session:
        jobs = session.get("/v1/jobs", limit=limit)
        if as_json:
            print_json(jobs)
            return
        for job in jobs["data"]:
            typer.echo(_line(job))


@jobs_app.command("show")
def show_job(
    job_id: _IdArgument, url: _ServiceOption = DEFAULT_URL, key: KeyOption = None, *, as_json: JsonOption = False
) -> None:
    """Show the state of a job, and its result."""
    with told(), RemoteSession(url, key) as session:
        job = session.get(f"/v1/jobs/{job_id}")
        if as_json:
            print_json(job)
            return
        typer.echo(_line(job))
        if job["error"]:
            typer.echo(f"  {job['error']}")
        if job["result"] and job["kind"] == "density":
            tell(job["result"])
        elif job["result"]:
            for image in job["result"]["images"]:
                typer.echo(f"  {url.rstrip('/')}{image['url']}  seed {image['seed']}")


@jobs_app.command("cancel")
def cancel_job(
    job_id: _IdArgument, url: _ServiceOption = DEFAULT_URL, key: KeyOption = None, *, as_json: JsonOption = False
) -> None:
    """Cancel a job and show its state; a finished job stays as it is."""
    with told(), RemoteSession(url, key) as session:
        job = session.get(f"/v1/jobs/{job_id}")
        if job["status"] not in _OVER:
            job = session.delete(f"/v1/jobs/{job_id}")
        if as_json:
            print_json(job)
            return
        typer.echo(_line(job))


@jobs_app.command("fetch")
def fetch_job(
    job_id: _IdArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Picture file or folder, as for compose.")] = "composed.png",
    output_format: Annotated[
        str | None, typer.Option(help="png, jpeg or webp. Default: by the file extension; png in a folder.")
    ] = None,
    url: _ServiceOption = DEFAULT_URL,
    key: KeyOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the pictures of a completed job."""
    with told(), RemoteSession(url, key) as session:
        job = session.get(f"/v1/jobs/{job_id}")
        answer: dict[str, Any] | None = job["result"]
        if answer is None:
            raise CommandError(f"job {job_id} is {job['status']}: it has no pictures", Exit.REFUSED)
        if job["kind"] == "density":
            raise CommandError(
                f"job {job_id} is a density job: it has no pictures; use superdiff jobs show", Exit.REFUSED
            )
        target = target_of(out, len(answer["images"]), output_format)
        for image in answer["images"]:
            data = session.file(image["url"], format=target.format)
            image["b64_json"] = base64.b64encode(data).decode()
            for lift_map in (image["lift_maps"] or {}).values():
                if lift_map is not None:
                    lift_map["b64_json"] = base64.b64encode(session.file(lift_map["url"])).decode()
        write_answer(answer, target, as_json=as_json, asked={})


def _line(job: dict[str, Any]) -> str:
    """A job in a line: id, when it came, how it stands, what it composes."""
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["created"]))
    place = "" if job["queue_position"] is None else f", {job['queue_position']} jobs ahead"
    done = f"{job['kind']} {job['status']} {job['step']}/{job['steps']}{place}"
    return f"{job['id']}  {created}  {done}  {', '.join(job['components'])}"
