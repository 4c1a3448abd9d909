"""Where a job is, for the answers of every dialect."""

from fastapi import Request

from service.engine.job import Job


def job_path(job_id: str) -> str:
    """Where a job is."""
    return f"/v1/jobs/{job_id}"


def job_headers(request: Request, job: Job) -> dict[str, str]:
    """What every answer about a job carries; noted with the request, so that refusals carry it too."""
    headers = {"X-Superdiff-Id": job.id, "Location": job_path(job.id)}
    request.state.job_headers = headers
    return headers
