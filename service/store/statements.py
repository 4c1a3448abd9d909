"""The statements that every job needs, as text: one each for reading the queue, taking, starting, renewing and ending.

Each is a transaction of its own, so none waits for a second answer with a row locked. Where SQLite and PostgreSQL say
the same differently there are two, by the name of the dialect.
"""

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from service.store.schema import JOBS

CHANNEL: Final = "superdiff"
"""Of PostgreSQL's notifications."""

# What must not outlive a crash does not wait for the disk; and then a notification may go in the same transaction. One
# that waits for the disk would keep all others that notify waiting with it.
_HURRIED: Final = f"""CASE WHEN durable THEN NULL ELSE
    set_config('synchronous_commit', 'off', true) || CAST(pg_notify('{CHANNEL}', :topic) AS text) END AS hurried"""
_WAITS: Final = "worker IS NULL AND ended IS NULL"

_QUEUE: Final = """
WITH first AS (
    SELECT id, caller, priority, created, "rows",
        row_number() OVER (PARTITION BY caller, priority ORDER BY created, id) AS place
    FROM jobs
    WHERE {waits} AND (:able IS NULL OR {able}) AND (:warm IS NULL OR created <= :since OR {warm})
)
SELECT first.id, first.caller, first.priority, first.created, first."rows", turns.served,
    (SELECT coalesce(max(served), 0) FROM turns) AS admissions,
    coalesce((SELECT min(expires) FROM jobs WHERE worker IS NOT NULL) <= :now, false)
        OR coalesce((SELECT min(deadline) FROM jobs WHERE {waits} AND deadline IS NOT NULL) <= :now, false) AS overdue
FROM (SELECT 1) AS always
LEFT JOIN first ON first.place <= :limit
LEFT JOIN turns ON turns.caller = first.caller
"""
_AMONG: Final = "NOT EXISTS (SELECT 1 FROM json_each(models) WHERE value NOT IN (SELECT value FROM json_each(:{name})))"


def _queue(dialect: str) -> sa.TextClause:
    postgres = dialect == "postgresql"
    among = "CAST(models AS jsonb) <@ :{name}" if postgres else _AMONG
    text = _QUEUE.format(waits=_WAITS, able=among.format(name="able"), warm=among.format(name="warm"))
    if postgres:
        for name in ("able", "warm"):
            text = text.replace(f":{name}", f"CAST(:{name} AS jsonb)")
        text = text.replace(":limit", "CAST(:limit AS bigint)").replace(":since", "CAST(:since AS double precision)")
    return sa.text(text)


QUEUE: Final[Mapping[str, sa.TextClause]] = {dialect: _queue(dialect) for dialect in ("sqlite", "postgresql")}
"""Of each caller and priority the first waiting jobs that suit a worker; when the caller was last served, and when
anyone was; whether there is something to reap. One row without a job where none waits.

Parameters: able (the models that may be needed, as a JSON list; None for any), warm (those of them that are loaded),
since (jobs that came until then need not be warm), now, limit (at most so many of each caller and priority)."""

TAKE: Final = sa.text(
    """
WITH free AS (
    SELECT id, caller, "rows", array_position(CAST(:ids AS text[]), id) AS place FROM jobs
    -- Put so, each of them is looked up; else all that waits might be read.
    WHERE id = ANY (CAST(:ids AS text[])) AND num_nulls(worker, ended) = 2
    ORDER BY place LIMIT CAST(:jobs AS bigint) FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT id, caller, row_number() OVER line AS number, sum("rows") OVER line AS needed
    FROM free WINDOW line AS (ORDER BY place)
), chosen AS (
    SELECT id, caller, number FROM summed
    WHERE CAST(:room AS bigint) IS NULL OR needed <= CAST(:room AS bigint) OR (number = 1 AND CAST(:idle AS boolean))
), taken AS (
    UPDATE jobs SET attempts = attempts + 1, fence = fence + 1, worker = :worker, expires = :expires
    FROM chosen WHERE jobs.id = chosen.id
    RETURNING jobs.*, chosen.number
), counts AS (
    SELECT caller, CAST(:admissions AS bigint) + max(number) AS served FROM chosen GROUP BY caller
), known AS (
    SELECT caller FROM turns WHERE caller IN (SELECT caller FROM counts) FOR UPDATE SKIP LOCKED
), again AS (
    UPDATE turns SET served = counts.served FROM counts JOIN known USING (caller) WHERE turns.caller = counts.caller
), anew AS (
    INSERT INTO turns (caller, served)
    SELECT caller, served FROM counts WHERE NOT EXISTS (SELECT 1 FROM turns WHERE turns.caller = counts.caller)
    ORDER BY caller ON CONFLICT DO NOTHING
)
SELECT taken.*, EXISTS (SELECT 1 FROM progress WHERE job_id = taken.id AND watched_until > :now) AS watched,
    (SELECT set_config('synchronous_commit', 'off', true) FROM taken HAVING NOT bool_or(durable)) AS hurried
FROM taken ORDER BY number
"""
)
"""PostgreSQL: take the first of these jobs that wait and that nobody else is taking, as
:func:`service.store.moves.fitting` has it, and note whose turn it was. A caller whom another claim is just serving is
passed over there: two claims never wait for each other.

Parameters: ids (in their order), jobs (at most so many), room (their network rows; None for any number),
idle, worker, expires, now, admissions (the highest count of claims so far)."""

_START: Final = """
UPDATE jobs SET state = 'running', started = :now
WHERE id = :id AND fence = :fence AND worker = :worker
RETURNING *{hurried}
"""
START: Final[Mapping[str, sa.TextClause]] = {
    "sqlite": sa.text(_START.format(hurried="")),
    "postgresql": sa.text(_START.format(hurried=f", {_HURRIED}")),
}
""":func:`service.store.moves.started`. Parameters: id, fence, worker, now; on PostgreSQL also topic."""

_FINISH: Final = """
UPDATE jobs SET state = :state, ended = :now, reason = :reason, status = :status, step = coalesce(:step, step),
    artifacts = {merged}, checkpoint = NULL, checkpoint_step = NULL, fence = fence + 1, worker = NULL, expires = NULL
WHERE id = :id AND fence = :fence AND worker = :worker
RETURNING *{hurried}
"""
FINISH: Final[Mapping[str, sa.TextClause]] = {
    "sqlite": sa.text(_FINISH.format(merged="json_patch(artifacts, :artifacts)", hurried="")),
    "postgresql": sa.text(
        _FINISH.format(
            merged="CAST(CAST(artifacts AS jsonb) || CAST(:artifacts AS jsonb) AS text)", hurried=f", {_HURRIED}"
        )
    ),
}
""":func:`service.store.moves.finished`. Parameters: id, fence, worker, now, state, reason, status, step, artifacts (as
JSON, added to what there is); on PostgreSQL also topic."""

_RENEW: Final = """
UPDATE jobs SET expires = :expires, step = coalesce(told.step, jobs.step)
FROM {told}
WHERE jobs.id = told.id AND jobs.fence = told.fence AND jobs.worker = told.worker
RETURNING jobs.id, jobs.fence, jobs.worker, jobs.expires, jobs.cancel_requested,
    EXISTS (SELECT 1 FROM progress WHERE progress.job_id = jobs.id AND progress.watched_until > :now) AS watched
"""
_TOLD: Final = {
    "sqlite": """(
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.fence') AS fence,
        json_extract(value, '$.worker') AS worker, json_extract(value, '$.step') AS step
    FROM json_each(:told)
) AS told""",
    "postgresql": "jsonb_to_recordset(CAST(:told AS jsonb)) AS told(id text, fence bigint, worker text, step integer)",
}
RENEW: Final[Mapping[str, sa.TextClause]] = {
    dialect: sa.text(_RENEW.format(told=told)) for dialect, told in _TOLD.items()
}
"""A heartbeat. Parameters: told (a JSON list of id, fence, worker, step), expires, now."""

_COLUMNS: Final = [column.name for column in JOBS.c]
ADD: Final = sa.text(
    f"""
WITH added AS (
    INSERT INTO jobs ({", ".join(f'"{name}"' for name in _COLUMNS)})
    VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
    ON CONFLICT DO NOTHING RETURNING id, {_HURRIED}
), watched AS (
    INSERT INTO progress (job_id, watched_until)
    SELECT id, CAST(:until AS double precision) FROM added WHERE CAST(:until AS double precision) IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT id, hurried FROM added
"""  # noqa: S608
)
"""PostgreSQL: a new job; no row where something is in its way.

Parameters: its columns, until (when it is watched; None for not at all), topic."""

GET: Final = sa.text("SELECT * FROM jobs WHERE id = :id")
"""A job."""

_GLANCE: Final = """
SELECT jobs.id, jobs.state, jobs.step, jobs.attempts, progress.fence, progress.number, progress.told
FROM jobs LEFT JOIN progress ON progress.job_id = jobs.id
WHERE jobs.id {these}
"""
GLANCE: Final[Mapping[str, sa.TextClause]] = {
    "sqlite": sa.text(_GLANCE.format(these="IN (SELECT value FROM json_each(:these))")),
    "postgresql": sa.text(
        _GLANCE.format(these="= ANY (ARRAY(SELECT jsonb_array_elements_text(CAST(:these AS jsonb))))")
    ),
}
"""How jobs stand, and what was told of them last. Parameters: these (a JSON list of ids)."""

BACKLOG: Final = sa.text(
    f"""
SELECT count(*) AS jobs, coalesce(sum("rows"), 0) AS "rows",
    CAST(coalesce(sum(CAST("rows" AS bigint) * steps), 0) AS bigint) AS work,
    (SELECT count(*) FROM jobs WHERE ended IS NULL AND caller = :caller) AS own, min(deadline) AS deadline,
    CAST(coalesce(sum(weight), 0) AS bigint) AS weight
FROM jobs WHERE {_WAITS}
"""  # noqa: S608
)
"""Waiting jobs, their rows, their work, the caller's open jobs, the first deadline, the bytes of their known pictures.
Parameters: caller."""

NOTIFY: Final = sa.text(f"SELECT pg_notify('{CHANNEL}', :topics)")
"""PostgreSQL: ring the bells of other processes."""
