"""A job that goes on from a snapshot draws the same picture as one that was never interrupted, to the last bit."""

from dataclasses import fields, replace

import numpy as np
import pytest

from pipelines.composition import And, AtLeast, Average, Method, Not, Or, Product, Prompt, Xor, leaves
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams, Select
from pipelines.plan import make_plan
from service.durable.snapshots import read_snapshot, write_snapshot
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.job import Ask, EngineStoppedError, Job, Outcome, Source
from tests.service.durable.test_outcomes import equal

WAIT = 60
A, B, C = Prompt("a red circle", "one"), Prompt("a blue star", "two"), Prompt("", "one")
PARAMS = SamplingParams(steps=6, guidance_scale=3.0, seed=5)
KEEP = Ask(keep_trajectory=True, keep_lift_maps=True)
ALWAYS = 1e-9  # seconds: after every step
RNG = np.random.default_rng(0)
SIDE = 32


def picture(*, mask=False, retrace=False):
    """A known picture at the size of the tiny models, painted anew in one half if it has a mask."""
    pixels = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    painted = np.zeros((SIDE, SIDE), np.uint8)
    painted[:, SIDE // 2 :] = 255
    return Source(pixels, painted if mask else None, painted if mask else None, SIDE, SIDE, retrace=retrace)


CASES = {
    "prompt": (A, PARAMS, None),
    "or": (Or((A, B), biases=(0.5, 0.0)), PARAMS, None),
    "and": (And((A, B)), replace(PARAMS, num_images=2), None),
    "balanced": (And((A, B), (1.0, 0.0), Method.BALANCED), PARAMS, None),
    "not": (And((A, Not(B))), PARAMS, None),
    "xor": (Xor((A, B)), PARAMS, None),
    "at least": (AtLeast(2, (A, B, C)), PARAMS, None),
    "average": (Average((A, B), (1.0, 2.0)), PARAMS, None),
    "product": (Product((A, B)), PARAMS, None),
    "no guidance": (Or((A, B)), replace(PARAMS, guidance_scale=1.0), None),
    "deterministic": (Average((A, B)), replace(PARAMS, kernel=Kernel.DETERMINISTIC), None),
    "probability flow": (Or((A, B)), replace(PARAMS, kernel=Kernel.PROBABILITY_FLOW), None),
    "particles": (Product((A, B)), replace(PARAMS, particles=4, num_images=2), None),
    "candidates": (And((A, B)), replace(PARAMS, candidates=3), None),
    "candidates by density": (And((A, B)), replace(PARAMS, candidates=2, select=Select.DENSITY, particles=2), None),
    "image": (Or((A, B)), replace(PARAMS, strength=0.7), picture()),
    "inpainting": (And((A, B)), PARAMS, picture(mask=True)),
    "density": (Or((A, B)), replace(PARAMS, num_images=3), picture(retrace=True)),
}


@pytest.fixture
def engine(catalog):
    with Engine(Executor(catalog), checkpoint_s=ALWAYS) as engine:
        yield engine


def planned(catalog, expression, params, source):
    cards = {leaf.model: catalog.get(leaf.model).card for leaf in leaves(expression)}
    given = {"width": SIDE, "height": SIDE} if source is not None else {}
    retrace = source is not None and source.retrace
    return make_plan(expression, replace(params, **given), cards, on_canvas=source is not None, retrace=retrace)


def assert_same(one, other):
    for each in fields(Outcome):
        if each.name not in {"queued_s", "run_s", "resumed_from"}:
            assert equal(getattr(one, each.name), getattr(other, each.name)), each.name


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_job_draws_the_same_to_the_last_bit(engine, catalog, case):
    expression, params, source = CASES[case]
    plan, taken = planned(catalog, expression, params, source), []
    job = engine.enqueue(Job(plan, KEEP, source, saver=lambda snapshot: taken.append(write_snapshot(snapshot))))
    whole = job.result.result(WAIT)
    snapshots = {snapshot.index: snapshot for snapshot in map(read_snapshot, taken)}
    first, *_, last = sorted(snapshots)
    assert first <= 2
    assert last >= plan.calls - 1
    for index in {first, (first + last) // 2, last}:
        again = engine.enqueue(Job(plan, KEEP, source, resume=snapshots[index]))
        outcome = again.result.result(WAIT)
        assert_same(outcome, whole)
        assert outcome.resumed_from == index
        assert (again.resumed_from, again.steps_taken) == (index, plan.calls)


def test_a_resumed_job_asks_the_networks_for_the_steps_that_are_left_only(engine, catalog):
    plan, taken = planned(catalog, And((A, B)), PARAMS, None), []
    engine.enqueue(Job(plan, saver=taken.append)).result.result(WAIT)
    rows = engine._executor._metrics.rows._value
    before = rows.get()
    snapshot = next(snapshot for snapshot in taken if snapshot.index == 4)
    engine.enqueue(Job(plan, resume=snapshot)).result.result(WAIT)
    assert rows.get() - before == len(plan.rows) * 2


def test_nobody_is_asked_to_save_a_job_without_a_saver_or_a_short_one(catalog):
    plan, taken = planned(catalog, A, PARAMS, None), []
    with Engine(Executor(catalog), checkpoint_s=30) as engine:
        engine.enqueue(Job(plan, saver=taken.append)).result.result(WAIT)
        assert taken == []
        engine._checkpoint_s = ALWAYS
        engine.submit(plan).result.result(WAIT)
        assert engine.metrics.snapshots._value.get() == 0


def test_a_saver_that_fails_costs_the_snapshot_only(engine, catalog, caplog):
    def broken(snapshot):
        raise OSError("no space left")

    engine.enqueue(Job(planned(catalog, A, PARAMS, None), saver=broken)).result.result(WAIT)
    assert "no snapshot of job" in caplog.text


def test_a_job_that_the_stopping_engine_cuts_off_is_saved_once_more(catalog):
    plan, taken = planned(catalog, And((A, B)), replace(PARAMS, steps=1000), None), []
    with Engine(Executor(catalog), checkpoint_s=0) as engine:
        job = engine.enqueue(Job(plan, saver=taken.append))
        while job.index < 3:
            pass
    with pytest.raises(EngineStoppedError):
        job.result.result(WAIT)
    assert [snapshot.index for snapshot in taken] == [job.steps_taken]


def test_what_is_kept_of_a_snapshot_does_not_change_with_the_job(engine, catalog):
    """The job goes on while its snapshot is written elsewhere."""
    plan, taken, written = planned(catalog, Product((A, B)), replace(PARAMS, particles=3), None), [], []

    def save(snapshot):
        taken.append(snapshot)
        written.append(write_snapshot(snapshot))

    engine.enqueue(Job(plan, KEEP, saver=save)).result.result(WAIT)
    assert [write_snapshot(snapshot) for snapshot in taken] == written
