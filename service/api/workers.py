"""Who computes, and what waits for them: for people, and for whatever starts and stops workers."""

import time

from fastapi import APIRouter

from service.api.bodies import Route
from service.backend import WorkerState
from service.engine.job import Queued
from service.schemas.answers import Backlog, WorkerInfo, WorkerList
from service.services import ServicesDep
from service.workers.presence import rates_of
from service.workers.scaling import backlog_seconds

router = APIRouter(prefix="/v1", tags=["health"], route_class=Route)


@router.get("/workers")
async def list_workers(services: ServicesDep) -> WorkerList:
    """Every worker as it last told of itself, and the work that waits."""
    workers = services.backend.workers()
    return WorkerList(
        workers=[_info(each) for each in workers],
        backlog=_backlog(await services.backend.queued(), [each for each in workers if each.accepting]),
    )


def _info(worker: WorkerState) -> WorkerInfo:
    return WorkerInfo(
        id=worker.id,
        device=worker.device,
        seen=worker.seen,
        state="stopping" if not worker.accepting else "ready" if worker.ready else "loading",
        models=[name for name, model in worker.models.items() if model.loaded],
        running_jobs=worker.running_jobs,
        running_rows=worker.running_rows,
    )


def _backlog(queued: Queued, workers: list[WorkerState]) -> Backlog:
    """What waits, in seconds of one worker at the workers' mean pace."""
    seconds = backlog_seconds(queued.work, rates_of(workers))
    slack = None if queued.deadline is None else queued.deadline - time.time()
    return Backlog(jobs=queued.jobs, rows=queued.rows, seconds=seconds, slack_s=slack)
