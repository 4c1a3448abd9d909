"""Workers behind the store: what they tell, what bounds the jobs that wait for them, and what the API makes of both."""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest

from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt
from pipelines.errors import ModelLoadError, ModelUnavailableError, UnknownModelError
from pipelines.params import SamplingParams
from pipelines.plan import make_plan
from service.app import create_app
from service.backend import WorkerState
from service.durable.blobs import UnreadableError
from service.durable.progress import read_progress, write_progress
from service.engine.events import Event
from service.engine.job import Ask, Job, Point, Preview, Source
from service.engine.metrics import Metrics
from service.engine.scheduler import Limits, QueueFullError
from service.keeper.errors import MovedError
from service.keeper.keeper import Keeper
from service.keeper.places import Places
from service.keeper.storage import Storage
from service.keeper.stored import stored_of
from service.loading import Models, ModelState
from service.registry import Record, Registry
from service.settings import Settings
from service.store.artifacts import open_artifacts
from service.store.memory import MemoryStore
from service.store.port import DiskFullError
from service.store.records import Ending, Failure, JobState, Presence, Wants
from service.workers.pool import Pool
from service.workers.presence import read_presence, write_presence
from service.workers.process import WorkerProcess
from tests import behind
from tests.waits import until

AND = "/v1/superpose/and"
BODY = {"components": ["a red circle", "a blue star"], "steps": 4, "seed": 5}


def job(models, caller="ann", steps=4, weight=0, **ask):
    expression = And((Prompt("a red circle", "one"), Prompt("a blue star", "one")))
    plan = make_plan(expression, SamplingParams(steps=steps, seed=1), {"one": models["one"].card})
    source = Source(np.zeros((weight // 3, 1, 3), np.uint8), None, None, 1, 1) if weight else None
    return Job(plan, Ask(caller=caller, **ask), source)


def state(models, worker="w", **changes):
    told = {"one": ModelState(models["one"].card, loaded=True), "two": ModelState(failure="two: cannot be loaded")}
    return replace(WorkerState(worker, "cpu", 1.5, True, True, 2, 6, 80.0, told), **changes)


def pool_of(models, *, names=("one", "two", "pixels")):
    catalog = Catalog.of({name: models[name] for name in names})
    return Pool(Models(catalog, preload=False), CollectorRegistry(), None)


async def looked(pool, *told):
    """The pool, after it has looked at what these workers told."""
    store = MemoryStore()
    for each in told:
        await store.report(Presence(each.id, time.time(), write_presence(each, Metrics().registry)))
    keeper = Keeper(Registry(), None)
    await keeper.start(store, open_artifacts("memory://"), pool._models)
    await pool.start(keeper)
    for _ in range(500):
        if len(pool.workers()) == len(told):
            break
        await asyncio.sleep(0.01)
    await pool.stop(0)
    await keeper.stop()
    return pool


# What workers tell


def test_what_a_worker_tells_of_itself_returns_as_it_was(models):
    metrics = Metrics()
    metrics.jobs.labels("completed").inc(3)
    told, families = read_presence(write_presence(state(models), metrics.registry))
    assert told == state(models)
    (jobs,) = [family for family in families if family.name == "superdiff_jobs"]
    assert ({"outcome": "completed"}, 3.0) in [(sample.labels, sample.value) for sample in jobs.samples]


@pytest.mark.parametrize("told", ["", "{}", '{"version": 2}', "[1"])
def test_what_another_version_tells_is_not_believed(told):
    with pytest.raises(UnreadableError, match="another version"):
        read_presence(told)


def test_the_metrics_of_all_workers_stand_side_by_side(models):
    pool = asyncio.run(looked(pool_of(models), state(models, "w1"), state(models, "w2", accepting=False)))
    text = generate_latest(pool.registry).decode()
    assert 'superdiff_rows_total{worker="w1"} 0.0' in text
    assert 'superdiff_rows_total{worker="w2"} 0.0' in text
    assert text.count("# TYPE superdiff_rows_total counter") == 1
    assert "superdiff_workers 1.0" in text


def test_progress_returns_as_it_was_told():
    point = Point(7, 0.25, np.array([[0.5, 0.5]]), np.array([[-1.5, math.inf]]), np.array([3.0]))
    preview = Preview(6, np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3))
    blob = write_progress([Event(3, "queued", 0, last=False), Event(8, "preview", preview, last=False)])
    ((number, kind, read),) = read_progress(blob)
    assert (number, kind, read.step) == (8, "preview", 6)
    assert np.array_equal(read.pictures, preview.pictures)
    both = [Event(9, "progress", point, last=False), Event(8, "preview", preview, last=False)]
    (_, _, first), (number, kind, read) = read_progress(write_progress(both))
    assert isinstance(first, Preview)
    assert (number, kind, read.step, read.sigma) == (9, "progress", 7, 0.25)
    for name in ("weights", "log_density", "effective"):
        assert np.array_equal(getattr(read, name), getattr(point, name))
    with pytest.raises(UnreadableError):
        read_progress(b"nothing")


# What bounds the jobs that wait


async def filled(models, count, **fields):
    store = MemoryStore()
    for _ in range(count):
        await store.add(stored_of(Record(job(models, **fields), kept=True), None, {}, None))
    return store


@pytest.mark.parametrize(
    ("limits", "fields", "says"),
    [
        (Limits(waiting_jobs=3), {}, "3 jobs are waiting already"),
        (Limits(waiting_rows=11), {}, "9 network rows wait already, this job needs 3 more, and 11 may wait"),
        (Limits(caller_jobs=3), {}, "3 jobs waiting or running, and 3 are allowed at once"),
        (Limits(), {"caller_jobs": 2}, "3 jobs waiting or running, and 2 are allowed at once"),
        (Limits(waiting_bytes=35), {"weight": 9}, "27 bytes of pictures wait already, this job brings 9; 35 may wait"),
    ],
)
def test_what_waits_in_the_store_is_bounded(models, limits, fields, says):
    weight = {"weight": fields["weight"]} if "weight" in fields else {}
    store = asyncio.run(filled(models, 3, **weight))
    with pytest.raises(QueueFullError, match=says) as refused:
        asyncio.run(Places(limits).check(job(models, **fields), store))
    assert refused.value.waiting == 3
    assert refused.value.retry_after_s >= 1


def test_who_is_refused_comes_again_when_about_a_job_has_begun(models):
    store = asyncio.run(filled(models, 4, steps=100))
    places = Places(Limits(waiting_jobs=4), rate=lambda: 30.0)
    seconds = []
    for _ in range(50):
        with pytest.raises(QueueFullError) as refused:
            asyncio.run(places.check(job(models), store))
        seconds.append(refused.value.retry_after_s)
    # A job of three rows and a hundred steps takes ten seconds at thirty rows a second; up to twice that, by chance.
    assert 10 <= min(seconds) < max(seconds) <= 20


def test_an_empty_queue_takes_a_job_of_any_size(models):
    asyncio.run(Places(Limits(waiting_rows=1, waiting_bytes=1)).check(job(models, weight=9), MemoryStore()))


# What the API makes of it


def test_a_model_is_known_as_long_as_a_worker_has_told_of_it(models):
    pool = asyncio.run(looked(pool_of(models), state(models)))
    assert pool.state("one") == ModelState(models["one"].card, loaded=True)
    assert pool.state("two").failure == "two: cannot be loaded"
    catalog = pool._models.catalog

    async def cards(*names):
        async with pool.cards(names, catalog) as found:
            return found

    assert asyncio.run(cards("one", "one")) == {"one": models["one"].card}
    with pytest.raises(ModelLoadError, match="two: cannot be loaded"):
        asyncio.run(cards("one", "two"))
    with pytest.raises(ModelUnavailableError, match="no worker has loaded the model 'pixels' yet"):
        asyncio.run(cards("pixels"))
    with pytest.raises(UnknownModelError):
        asyncio.run(cards("three"))
    pool._workers = {}
    assert asyncio.run(cards("one")) == {"one": models["one"].card}, "a card outlives the worker that told it"
    assert not pool.state("one").loaded


def test_the_service_is_ready_when_a_worker_is(models):
    pool = pool_of(models)
    assert pool.unready == "no worker is there"
    for told, expected in (
        (state(models, ready=False), "models are still being loaded"),
        (state(models, accepting=False), "no worker is there"),
        (state(models, trouble="the disk is full"), "jobs cannot be written down: the disk is full"),
        (state(models), None),
    ):
        pool._workers = {told.id: (told, [])}
        assert pool.unready == expected
    troubled = state(models, worker="other", trouble="the disk is full")
    pool._workers[troubled.id] = (troubled, [])
    assert pool.unready is None, "another worker can write"
    pool._workers.pop(troubled.id)
    assert pool.rate() == 80.0


def test_workers_and_the_backlog_are_told(models):
    with TestClient(create_app(Settings(preload=False, running_rows=1), catalog=Catalog.of(models))) as client:
        workers = client.get("/v1/workers").json()["workers"]
        assert {worker["state"] for worker in workers} == {"ready"}
        assert [worker["models"] for worker in workers] == [["one", "two", "pixels"]] * len(workers)
        paths = [
            client.post(AND, json=BODY | {"steps": 1000, "timeout_s": 900}, headers={"Prefer": "respond-async"})
            for _ in range(len(workers) + 2)
        ]
        end = time.monotonic() + 20
        while (backlog := client.get("/v1/workers").json()["backlog"])["seconds"] is None or backlog["jobs"] != 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (backlog["jobs"], backlog["rows"]) == (2, 6)
        assert 0 < backlog["slack_s"] <= 900
        for answer in paths:
            client.delete(answer.headers["location"])


@pytest.mark.parametrize("waiting", [True, False], ids=["others compute", "nobody else does"])
def test_an_api_that_ends_answers_whoever_waits(models, waiting):
    """With the end of a job where it is in time; else that it goes on, or is not done, and then it is cancelled."""

    async def answered():
        store, keeper = MemoryStore(), Keeper(Registry(), None)
        await keeper.start(store, open_artifacts("memory://"), Models(Catalog.of(models), preload=False))
        names = {"done": False, "late": False, "queued": False, "kept": True}
        jobs = {name: job(models, priority=9 - i) for i, name in enumerate(names)}
        for name, durable in names.items():
            await keeper.accept(Record(jobs[name], kept=True, durable=durable))
        wants = Wants(jobs=2, rows=100, models=frozenset({"one"}), idle=True)
        claims = await store.claim("w", wants, time.time())
        assert [claim.record.id for claim in claims] == [jobs["done"].id, jobs["late"].id]
        for claim in claims:
            await store.start(claim.lease, time.time())

        async def end_one():
            await asyncio.sleep(0.2)
            ending = Ending(JobState.FAILED, Failure("it went wrong", 500))
            await store.finish(claims[0].lease, ending, time.time())

        keeper.drain()
        ends, began = asyncio.create_task(end_one()), time.monotonic()
        await keeper.part(1.0, waiting=waiting)
        took = time.monotonic() - began
        await ends
        after = {name: await store.get(each.id) for name, each in jobs.items()}
        await keeper.stop()
        return took, {name: jobs[name].result.exception(timeout=0) for name in names}, after

    took, heard, after = asyncio.run(answered())
    assert took >= 1
    assert str(heard["done"]) == "it went wrong"
    assert isinstance(heard["kept"], MovedError)
    assert after["kept"].state is JobState.QUEUED
    for name in ("late", "queued"):
        assert str(heard[name]) == "the service is shutting down"
    # Its worker hears of it at its next look.
    assert (after["late"].state, after["late"].cancel_requested) == (JobState.RUNNING, True)
    assert after["queued"].state is JobState.CANCELLED


def test_an_api_that_ends_waits_for_jobs_that_others_may_take_up(models):
    async def heard():
        store, keeper = MemoryStore(), Keeper(Registry(), None)
        await keeper.start(store, open_artifacts("memory://"), Models(Catalog.of(models), preload=False))
        asked = job(models)
        await keeper.accept(Record(asked, kept=True, durable=False))

        async def taken_up():
            await asyncio.sleep(0.3)
            (claim,) = await store.claim(
                "w", Wants(jobs=1, rows=100, models=frozenset({"one"}), idle=True), time.time()
            )
            await store.finish(claim.lease, Ending(JobState.FAILED, Failure("it went wrong", 500)), time.time())

        working = asyncio.create_task(taken_up())
        await keeper.part(30.0, waiting=True)
        await working
        await keeper.stop()
        return asked.result.exception(timeout=0)

    assert str(asyncio.run(heard())) == "it went wrong"


def test_an_api_that_ends_keeps_nobody_for_what_nobody_computes(models):
    async def took():
        store, keeper = MemoryStore(), Keeper(Registry(), None)
        await keeper.start(store, open_artifacts("memory://"), Models(Catalog.of(models), preload=False))
        for durable in (False, True):
            await keeper.accept(Record(job(models), kept=True, durable=durable))
        began = time.monotonic()
        await keeper.part(30.0, waiting=False)
        took = time.monotonic() - began
        await keeper.stop()
        return took

    assert asyncio.run(took()) < 10


def test_an_editor_sees_and_stops_what_a_worker_computes_for_it(models):
    """A1111's progress and interrupt name no job: who sent it finds it."""
    chosen = {"sd_model_checkpoint": "one"}
    body = {"prompt": "a red circle AND a blue star", "steps": 1000, "override_settings": chosen}
    with TestClient(behind.create_app(Settings(), catalog=Catalog.of(models))) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/sdapi/v1/txt2img", json=body)
        end = time.monotonic() + 20
        while not (seen := client.get("/sdapi/v1/progress").json())["progress"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert seen["state"]["job_count"] == 1
        assert seen["state"]["sampling_steps"] == 1000
        client.post("/sdapi/v1/interrupt")
        assert asked.result(30).json()["images"] == []
        assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_an_editor_is_told_by_every_api_node_and_stops_at_any(models, tmp_path):
    """A load balancer may send each of its requests to another node than the one that draws for it."""
    store = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files")}
    catalog = Catalog.of(models)
    chosen = {"sd_model_checkpoint": "one"}
    body = {"prompt": "a red circle AND a blue star", "steps": 1000, "override_settings": chosen}
    me, other = {"X-Client-Id": "me"}, {"X-Client-Id": "other"}
    task = {"id_task": "task(a)"}
    with (
        TestClient(behind.create_app(Settings(**store), catalog=catalog)) as taker,
        TestClient(create_app(Settings(workers=0, **store), catalog=catalog)) as node,
        ThreadPoolExecutor(3) as pool,
    ):

        def draw(headers, **more):
            return pool.submit(taker.post, "/sdapi/v1/txt2img", json=body | more, headers=headers)

        def told(headers=me):
            return node.get("/sdapi/v1/progress", headers=headers).json()

        def followed():
            return node.post("/internal/progress", json=task, headers=me).json()

        # FastAPI prepares its routes at the first request, and not for two threads at once.
        for each in (taker, node):
            each.get("/sdapi/v1/progress")
        # A job of another dialect is none of the editor's.
        native = taker.post(AND, json=BODY | {"steps": 1000}, headers=me | {"Prefer": "respond-async"})
        first, second, others = draw(me, force_task_id="task(a)"), draw(me), draw(other)
        until(lambda: told()["state"]["job_count"] == 2 and told(other)["state"]["job_count"] == 1)
        shown = until(lambda: (seen := told())["current_image"] and seen)
        assert shown["state"]["sampling_steps"] == 1000
        assert 0 < shown["progress"] < 1
        assert shown["eta_relative"] > 0
        assert told({})["state"]["job_count"] == 0
        assert followed()["active"]
        node.post("/sdapi/v1/interrupt", json={"force_task_id": "task(a)"}, headers=me)
        assert first.result(30).json()["images"] == []
        until(lambda: followed()["completed"])
        assert not second.done()
        node.post("/sdapi/v1/interrupt", headers=me)
        assert second.result(30).json()["images"] == []
        until(lambda: told()["state"]["job_count"] == 0)
        assert told(other)["state"]["job_count"] == 1
        assert not others.done()
        node.post("/sdapi/v1/skip", headers=other)
        others.result(30)
        assert node.get(native.headers["location"], headers=me).json()["status"] in {"queued", "running"}
        node.delete(native.headers["location"], headers=me)


def test_a_worker_that_cannot_write_takes_no_jobs_until_it_can(models, tmp_path, monkeypatch):
    store = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files")}
    settings, catalog = Settings(workers=0, **store), Catalog.of(models)
    worker, full = behind.Thread(settings, catalog), DiskFullError("the disk is full")

    async def fails(_):
        raise full

    # Its worker is the only one, wherever other tests' services compute.
    with TestClient(behind.create_plain_app(settings, catalog=catalog)) as client:

        def ready():
            return client.get("/readyz").json()

        worker.begin()
        until(lambda: ready().get("status") == "ready")
        monkeypatch.setattr(Storage, "probe", fails)
        worker.process._storage.note(full)
        until(lambda: ready().get("detail") == "jobs cannot be written down: the disk is full")
        path = client.post(AND, json=BODY, headers={"Prefer": "respond-async"}).headers["location"]
        # It hears at once of a job that it may take.
        time.sleep(0.5)
        assert client.get(path).json()["status"] == "queued"
        monkeypatch.undo()
        until(lambda: client.get(path).json()["status"] == "completed")
        until(lambda: ready().get("status") == "ready")  # told at its next beat
    worker.end()


def test_workers_share_no_memory():
    with pytest.raises(ValueError, match="workers need a database that processes share"):
        Settings(workers=2, database="memory:")
    with pytest.raises(ValueError, match="a worker needs a database that it shares"):
        asyncio.run(WorkerProcess(Settings(database="memory:")).run())


def test_the_number_of_workers_is_a_number_or_auto():
    assert [Settings(workers=each, database="sqlite:///x").workers for each in ("auto", "3", 0)] == ["auto", 3, 0]
    for wrong in ("many", -1):
        with pytest.raises(ValueError, match="workers"):
            Settings(workers=wrong, database="sqlite:///x")
