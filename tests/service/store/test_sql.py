"""What only stores in databases have: plans, migrations, other processes, and a database that does not answer."""

import asyncio
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Final
from unittest.mock import AsyncMock

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import service.store
from service.store import database
from service.store.opening import open_store, open_stores
from service.store.port import DiskFullError, StoreError, StoreUnavailableError, Topic
from service.store.records import Filters, JobState, Wants
from service.store.schema import JOBS, METADATA, VERSIONS
from service.store.sql import open_sql_store
from tests.postgres import FAST
from tests.service.store.made import ALL, DONE, added, claimed, held, job

pytestmark = pytest.mark.anyio
FINISHED = 20_000
SERIES = {
    "postgresql": f"generate_series(1, {FINISHED}) AS series(n)",
    "sqlite": "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT n FROM c)",
}


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request, tmp_path):
    """The address of an empty database, without tables."""
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
async def sql(sql_url):
    """A store on an empty database."""
    opened = await open_sql_store(sql_url)
    yield opened
    await opened.close()


_ADDS_ONE: Final = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    connection.execute("UPDATE counts SET n = n + 1")
connection.close()
"""


async def test_a_file_opened_twice_in_a_process_sees_what_others_write(tmp_path):
    """To close a file drops the process's locks on it, and then other processes remove the log that it reads."""
    file = tmp_path / "jobs.db"
    first = await open_sql_store(f"sqlite:///{file}")
    second = await open_sql_store(f"sqlite:///{file}")
    async with first._engine.execution_options(write=True).begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counts (n INTEGER)"))
        await connection.execute(sa.text("INSERT INTO counts VALUES (0)"))
    for written in (1, 2, 3):
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _ADDS_ONE, file], check=True, timeout=30)
        for store in (first, second):
            async with store._engine.begin() as connection:
                assert await connection.scalar(sa.text("SELECT n FROM counts")) == written
    await second.close()
    await first.close()


async def finish_many(store):
    """Let a store hold many jobs that are over."""
    columns = {column.name: "NULL" for column in JOBS.c} | {
        "id": "'old-' || n",
        "kind": "'superposition'",
        "caller": "'ann'",
        "request": "'{}'",
        "seed": "0",
        "created": "n",
        "models": "'[\"shapes\"]'",
        "components": "'[]'",
        "steps": "25",
        '"rows"': "1",
        "priority": "5",
        "state": "'completed'",
        "step": "25",
        "attempts": "1",
        "started": "n",
        "ended": "n + 1",
        "artifacts": "'{}'",
        "cancel_requested": "false",
        "fence": "2",
        "deadline": "n + 100",
        "message_tries": "0",
        "weight": "0",
        "durable": "true",
    }
    del columns["rows"]
    async with store._writing.begin() as connection:
        series = SERIES[connection.dialect.name]
        names, values = ", ".join(columns), ", ".join(columns.values())
        await connection.exec_driver_sql(f"INSERT INTO jobs ({names}) SELECT {values} FROM {series}")  # noqa: S608
    async with store._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.exec_driver_sql("VACUUM ANALYZE jobs" if store._postgres else "ANALYZE")


@contextlib.contextmanager
def statements(store):
    """All that is said to the database meanwhile."""
    said = []

    def note(statement, parameters):
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            said.append((statement, parameters))

    def through_sqlalchemy(_connection, _cursor, statement, parameters, _context, _many):
        note(statement, parameters[0] if _many else parameters)

    def to_the_driver(query):
        note(query.query, query.args)

    def checked_out(connection, _record, _proxy):
        connection.driver_connection.add_query_logger(to_the_driver)

    def checked_in(connection, _record):
        connection.driver_connection.remove_query_logger(to_the_driver)

    heard = [(store._engine.sync_engine, "before_cursor_execute", through_sqlalchemy)]
    if store._postgres:
        pool = store._engine.sync_engine.pool
        heard += [(pool, "checkout", checked_out), (pool, "checkin", checked_in)]
    for each in heard:
        sa.event.listen(*each)
    yield said
    for each in heard:
        sa.event.remove(*each)


def visited(node):
    """Rows that a plan of PostgreSQL took from tables and indexes."""
    own = 0
    if "Scan" in node["Node Type"] and node["Node Type"] != "Subquery Scan":
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        own = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return own + sum(visited(child) for child in node.get("Plans", []))


async def assert_quick(store, statement, parameters):
    """Fail for a statement that walks through what is over."""
    explain = "EXPLAIN (ANALYZE, FORMAT JSON) " if store._postgres else "EXPLAIN QUERY PLAN "
    async with store._writing.connect() as connection:
        lines = (await connection.exec_driver_sql(explain + statement, parameters)).all()
        await connection.rollback()
    if store._postgres:
        plan = lines[0][0]
        assert visited((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]) <= 1000, (statement, plan)
    else:
        # An index of all jobs may be walked where the list ends after a page and needs no sorting.
        told = [line[-1] for line in lines]
        page = "|newest" if "LIMIT" in statement and not any("TEMP B-TREE" in each for each in told) else ""
        partial = re.compile(f"SCAN jobs(?! USING .*INDEX jobs_(waiting|leased|open{page}))")
        walked = [each for each in told if partial.match(each)]
        assert not walked, (statement, lines)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("claim", lambda store, lease: store.claim("w2", Wants(jobs=4), 1e9)),
        ("claim by models", lambda store, lease: store.claim("w2", Wants(jobs=4, models=frozenset(["shapes"])), 1e9)),
        ("heartbeat", lambda store, lease: store.renew([lease], 1e9)),
        ("finish", lambda store, lease: store.finish(lease, DONE, 1e9)),
        ("reap", lambda store, lease: store.reap(1e9)),
        ("backlog", lambda store, lease: store.backlog("ann")),
        ("order", lambda store, lease: store.order(1e9)),
        ("page of a caller", lambda store, lease: store.page(Filters(caller="ann"))),
        ("waiting jobs of a caller", lambda store, lease: store.page(Filters(caller="ann", state=JobState.QUEUED))),
        ("open jobs of a caller", lambda store, lease: store.page(Filters(caller="ann", open=True))),
        ("page", lambda store, lease: store.page()),
        ("messages", lambda store, lease: store.take_messages(1e9, 30.0, 8)),
        ("expired", lambda store, lease: store.expired(50.0)),
        ("delete", lambda store, lease: store.delete([f"old-{i}" for i in range(1, 9)])),
    ],
)
async def test_no_hot_query_walks_through_finished_jobs(many, name, call):
    store, lease = many
    with statements(store) as said:
        await call(store, lease)
    assert said
    for statement, parameters in said:
        await assert_quick(store, statement, parameters)


async def test_a_walk_through_finished_jobs_would_be_noticed(many):
    store, _ = many
    with pytest.raises(AssertionError):
        await assert_quick(store, "SELECT count(*) FROM jobs WHERE state = 'queued'", ())


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def many_url(request, tmp_path_factory):
    """The address of a database with many jobs that are over and some that wait."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").create("many")
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('many')}/jobs.db"

    async def fill():
        store = await open_sql_store(url)
        await finish_many(store)
        waiting = [job(caller=f"c{i % 7}", created=float(FINISHED + i), deadline=2e9) for i in range(60)]
        await added(store, *waiting, *(job(created=float(FINISHED), deadline=2e9) for _ in range(20)))
        await store.close()

    asyncio.run(fill())
    return url


@pytest.fixture
async def many(many_url):
    """A store on it, and the lease of a job."""
    store = await open_sql_store(many_url)
    (claim,) = await store.claim("w1", Wants(), 1e9)
    yield store, claim.lease
    await store.close()


# Migrations


async def test_the_migrations_make_the_tables_of_the_schema(sql):
    async with sql._engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), METADATA)
        )
        indexes = await connection.run_sync(lambda sync: sa.inspect(sync).get_indexes("jobs"))
    assert [each for each in differences if "alembic_version" not in str(each)] == []
    found = {each["name"]: "".join(map(str, each.get("dialect_options", {}).values())).lower() for each in indexes}
    assert found.keys() == {index.name for index in JOBS.indexes}
    for index in JOBS.indexes:  # which rows an index holds, the comparison above does not see
        where = index.dialect_options["postgresql"]["where"]
        words = [] if where is None else re.findall(r"[a-z_]{4,}", str(where).lower())
        assert all(word in found[index.name] for word in words), index.name
        assert (where is None) == ("null" not in found[index.name]), index.name


OPENS = """
import asyncio, sys
from service.store.opening import open_store
async def main():
    sys.stdin.readline()
    await (await open_store(sys.argv[1])).close()
asyncio.run(main())
"""


def test_processes_that_open_a_new_store_at_once_all_succeed(sql_url):
    started = [
        subprocess.Popen([sys.executable, "-c", OPENS, sql_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in started:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told.decode()


def test_the_versions_are_the_steps_of_the_migrations():
    scripts = ScriptDirectory(str(Path(service.store.__file__).parent / "migrations"))
    assert [step.revision for step in scripts.walk_revisions()][::-1] == list(VERSIONS)


async def test_opening_again_changes_nothing_and_takes_no_step(sql, sql_url, monkeypatch):
    (job_id,) = await added(sql, job())
    monkeypatch.setattr("service.store.database.migrate", None)
    again = await open_store(sql_url)
    assert (await again.get(job_id)).id == job_id
    await again.close()


async def test_all_that_is_kept_shares_one_opening(sql_url, monkeypatch):
    opened, engine_of = [], database._engine
    monkeypatch.setattr(database, "_engine", lambda url: opened.append(engine_of(url)) or opened[-1])
    stores = await open_stores(sql_url)
    await added(stores.jobs, job())
    assert await stores.keys.all() == []
    assert (await stores.usage.spent("ann", 0.0)).used == 0
    assert len(opened) == 1
    await stores.close()
    await stores.close()


async def test_a_store_of_a_newer_version_is_refused(sql, sql_url):
    async with sql._writing.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="another version"):
        await open_store(sql_url)


@pytest.mark.parametrize("url", ["mysql://host/jobs", "jobs.db", "sqlite://", "sqlite:///", ""])
async def test_an_address_of_something_else_is_refused_without_telling_passwords(url):
    with pytest.raises(ValueError, match="must be sqlite:///FILE"):
        await open_store(url)


# Other processes


async def test_what_one_process_accepts_another_one_claims_and_ends(sql, sql_url):
    other = await open_sql_store(sql_url)
    (job_id,) = await added(sql, job())
    (claim,) = await other.claim("w2", ALL, 1.0)
    assert await claimed(sql, 2.0) == []
    await other.finish(claim.lease, DONE, 3.0)
    await other.close()
    assert (await sql.get(job_id)).state is JobState.COMPLETED


ADDS = """
import asyncio, sys
from service.store.opening import open_store
from tests.service.store.made import job
async def main():
    store = await open_store(sys.argv[1])
    for i in range(100_000):
        await store.add(job(f"{i:06}", created=float(i)))
        print(f"{i:06}", flush=True)
asyncio.run(main())
"""


async def test_what_was_accepted_survives_a_kill(sql, sql_url):
    process = subprocess.Popen([sys.executable, "-c", ADDS, sql_url], stdout=subprocess.PIPE)
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    last = (process.stdout.read().split() or [b"000019"])[-1].decode()
    process.wait(10)
    process.stdout.close()
    kept = {record.id for record in (await sql.page(limit=100_000)).records}
    assert kept >= {f"{i:06}" for i in range(int(last) + 1)}
    assert len(await claimed(sql, 1e6)) == min(len(kept), 1000)


async def test_many_claims_at_once_take_each_job_once_and_leave_none(sql, sql_url):
    ids = await added(sql, *(job(caller=f"c{i % 5}", created=float(i)) for i in range(100)))
    stores = [await open_sql_store(sql_url) for _ in range(3)]

    async def work(store, name):
        taken = []
        while claims := await store.claim(name, Wants(jobs=3), 200.0):
            taken += [claim.record.id for claim in claims]
        return taken

    workers = [work(store, f"{i}-{j}") for i, store in enumerate(stores) for j in range(2)]
    taken = [each for ids in await asyncio.gather(*workers) for each in ids]
    assert sorted(taken) == sorted(ids)
    for store in stores:
        await store.close()


async def test_calls_that_are_given_up_leave_the_store_in_order(sql):
    """A client that leaves cancels what is done for it, at any moment."""
    rng = random.Random(0)
    given_up, others = [], asyncio.all_tasks()
    async with asyncio.timeout(10):  # SQLite's timeout: a lock that is kept lasts as long
        for i in range(60):
            call = sql.add(job(f"{i}", created=float(i))) if i % 2 else sql.claim("w1", Wants(), float(i))
            given_up.append(asyncio.create_task(call))
            await asyncio.sleep(rng.uniform(0, 0.006))
            given_up[-1].cancel()
            await asyncio.wait(given_up[-1:])
    await asyncio.wait_for(claimed(sql, now=1e6), 5)
    await asyncio.wait_for(held(sql, now=1e6), 5)
    assert any(task.cancelled() for task in given_up)
    # Their connections are closed in tasks of their own, which the end of the test would cut off.
    if closing := asyncio.all_tasks() - others - set(given_up):
        await asyncio.wait(closing, timeout=5)


async def test_a_call_that_is_given_up_while_another_writes_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("service.store.database._BUSY_S", 2.0)  # SQLite's own waiting cannot be interrupted
    url = f"sqlite:///{tmp_path}/jobs.db"
    store, other = await open_sql_store(url), await open_sql_store(url)
    async with other._writing.begin():
        waiting = asyncio.create_task(store.add(job()))
        await asyncio.sleep(0.1)
        waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    for each in (other, store):
        await asyncio.wait_for(added(each, job()), 1)
        await each.close()


# A database that does not answer


async def test_a_full_disk_is_told_as_such(sql):
    async with sql._writing.begin() as connection:
        if sql._postgres:
            await connection.exec_driver_sql(
                "CREATE FUNCTION full() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
            )
            await connection.exec_driver_sql("CREATE TRIGGER f BEFORE INSERT ON jobs EXECUTE FUNCTION full()")
    if not sql._postgres:
        sa.event.listen(
            sql._engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1")
        )
    with pytest.raises(DiskFullError, match="free some space"):
        await added(sql, *(job(request="x" * 10_000) for _ in range(50)))
    assert (await sql.page()).records == ()


async def test_a_busy_sqlite_store_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("service.store.database._BUSY_S", 0.02)
    url = f"sqlite:///{tmp_path}/jobs.db"
    store, other = await open_sql_store(url), await open_sql_store(url)
    async with other._writing.begin():
        with pytest.raises(StoreUnavailableError):
            await store.add(job())
        assert (await store.page()).records == ()  # readers do not wait
    await store.add(job())
    await store.close()
    await other.close()


@pytest.mark.parametrize("wrong", ["postgresql://superdiff@/nothere", "postgresql://stranger@/postgres"])
async def test_a_database_that_lets_nobody_in_is_told_as_such(postgres_server, wrong):
    with pytest.raises(StoreError, match="check the store's address") as refused:
        await open_store(f"{wrong}?host={postgres_server.folder}")
    assert not isinstance(refused.value, StoreUnavailableError)


async def test_the_folder_of_a_sqlite_store_is_made(tmp_path):
    store = await open_store(f"sqlite:///{tmp_path}/deep/down/jobs.db")
    await store.close()


async def test_a_sqlite_file_that_cannot_be_written_is_told_as_such():
    with pytest.raises(StoreUnavailableError, match="cannot be written"):
        await open_store("sqlite:////proc/jobs.db")


async def test_a_store_answers_again_when_postgres_does(postgres_server, postgres_url):
    store = await open_sql_store(postgres_url)
    async with store.listen() as bell:
        await added(store, job("before"))
        postgres_server.stop()
        for call in (store.add(job()), store.get("before"), store.claim("w1", ALL, 1.0)):
            with pytest.raises(StoreUnavailableError):
                await call
        await store.wake()  # nobody hears it, and nothing fails
        postgres_server.start(*FAST)
        assert await bell.wait(5.0)
        assert await claimed(store, 1.0) == ["before"]
    await store.close()


async def test_what_is_logged_of_a_failed_statement_holds_no_request(sql):
    async with sql._writing.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE jobs")
    with pytest.raises((StoreError, sa.exc.DBAPIError)) as failed:
        await sql.add(job(request="a " + "secret"))
    told = "".join(traceback.format_exception(failed.value))
    assert "INSERT INTO jobs" in told
    assert "a secret" not in told


async def test_an_unreachable_postgres_is_told_as_such(tmp_path):
    with pytest.raises(StoreUnavailableError):
        await open_store(f"postgresql://nobody@/none?host={tmp_path}")


async def test_who_waits_for_a_bell_outlives_a_connection_that_is_lost_as_it_begins_to_listen(
    postgres_url, monkeypatch, caplog
):
    """The driver's own error, from a call that SQLAlchemy knows nothing of: nothing may end of it."""
    lost = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    for error in (lost, ValueError("a fault of ours")):
        store = await open_sql_store(postgres_url)
        with monkeypatch.context() as patched:
            patched.setattr(asyncpg.Connection, "add_listener", AsyncMock(side_effect=error))
            async with store.listen(Topic.WORK) as bell:
                assert not await bell.wait(0.01)
                patched.undo()
                await store.wake(Topic.WORK)
                assert await bell.wait(5)
        await store.close()
    told = [record.exc_info is not None for record in caplog.records if "nothing is heard" in record.message]
    # Only what was not foreseen has a traceback.
    assert told == [False, False, True, True]


async def test_connections_that_are_closed_as_soon_as_they_are_made_are_told_as_a_store_out_of_reach(postgres_url):
    store = await open_sql_store(postgres_url)

    def closed(*_):
        raise sa.exc.InvalidatePoolError

    sa.event.listen(store._engine.sync_engine, "checkout", closed)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await store.backlog("a")
    sa.event.remove(store._engine.sync_engine, "checkout", closed)
    assert (await store.backlog("a")).waiting_jobs == 0
    await store.close()


async def test_a_lost_connection_to_postgres_costs_one_ring_and_no_job(postgres_url):
    store, other = await open_sql_store(postgres_url), await open_sql_store(postgres_url)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1"
    async with store.listen() as bell:
        await added(other, job())
        assert await bell.wait(5.0)
        while await bell.wait(0.1):
            pass
        async with other._engine.connect() as connection:
            own = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar()
            await connection.exec_driver_sql(kill, (own,))
        assert await bell.wait(5.0)  # whoever listens looks after what it may have missed
        while await bell.wait(0.2):
            pass
        await added(other, job())
        assert await bell.wait(5.0)
    assert len(await claimed(store, 1.0)) == 2
    await store.close()
    await other.close()


async def test_connections_that_the_server_closed_are_made_anew_without_an_error(postgres_url):
    store, other = await open_sql_store(postgres_url), await open_sql_store(postgres_url)
    (job_id,) = await added(store, job())
    async with other._engine.connect() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1"
        own = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar()
        await connection.exec_driver_sql(kill, (own,))
    await asyncio.sleep(0.05)  # the end of the connection arrives
    assert (await store.get(job_id)).id == job_id
    await store.close()
    await other.close()


async def test_only_what_must_outlive_a_crash_waits_for_the_disk(postgres_url):
    store = await open_sql_store(postgres_url)

    async def flushed():
        async with store._engine.connect() as connection:
            return (await connection.exec_driver_sql("SELECT pg_current_wal_flush_lsn() - '0/0'")).scalar()

    async def grows(call):
        before = await flushed()
        return await call, await flushed() > before

    for durable, all_or_some in ((True, all), (False, lambda waited: not all(waited))):
        waited = []
        for number in range(8):  # the server's own writer may flush between two looks
            name = f"{durable}-{number}"
            _, added_so = await grows(store.add(job(name, durable=durable)))
            (claim,), claimed_so = await grows(store.claim("w1", ALL, 1.0))
            started, started_so = await grows(store.start(claim.lease, 2.0))
            ended, ended_so = await grows(store.finish(claim.lease, DONE, 3.0))
            assert (claim.record.durable, started.id, ended.state) == (durable, name, JobState.COMPLETED)
            waited.append([added_so, claimed_so, started_so, ended_so])
        assert all(map(all_or_some, zip(*waited, strict=True))), waited
    await store.close()


@pytest.mark.parametrize("durable", [True, False])
async def test_other_processes_hear_of_jobs_that_do_not_wait_for_the_disk_too(postgres_url, durable):
    store, other = await open_sql_store(postgres_url), await open_sql_store(postgres_url)
    async with other.listen(Topic.WORK) as work, other.listen(Topic.NEWS) as news:
        while await work.wait(0.1) or await news.wait(0.1):
            pass
        await store.add(job(durable=durable))
        assert await work.wait(5.0)
        (claim,) = await store.claim("w1", ALL, 1.0)
        await store.start(claim.lease, 2.0)
        assert await news.wait(5.0)
        await store.finish(claim.lease, DONE, 3.0)
        assert await news.wait(5.0)
    await store.close()
    await other.close()


async def test_a_shared_file_rings_for_what_other_processes_write(tmp_path):
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    here, there = await open_store(url, shared=True), await open_store(url)
    try:
        async with here.listen(Topic.WORK) as bell:
            while await bell.wait(0.1):
                pass
            await there.add(job())
            assert await bell.wait(5.0)
            while await bell.wait(0.2):
                pass
            # Nothing is written, nothing rings.
            assert not await bell.wait(0.5)
    finally:
        await here.close()
        await there.close()
