"""The engine with real small models: what a caller may rely on, whoever else is served."""

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.catalog import Catalog
from pipelines.composition import And, AtLeast, Average, Method, Not, Or, Product, Prompt, Xor, leaves
from pipelines.draws import NoiseSource
from pipelines.errors import NonFiniteError, UnknownModelError
from pipelines.networks import evaluate
from pipelines.params import SamplingParams, Select
from pipelines.plan import make_plan
from pipelines.sampler import prepare, sample, step
from service.engine.bounds import LeastRecentlyUsed, RowBudget, RunAhead, out_of_memory
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.job import Ask, CancelledJobError, DeadlineError, EngineStoppedError, Phase
from service.engine.metrics import Metrics
from service.engine.scheduler import Limits, QueueFullError
from tests.service.held import Held

WAIT = 60


def one(text):
    return Prompt(text, "one")


def planned(catalog, expression, params):
    """The plan of a request over the catalogue's models."""
    cards = {leaf.model: catalog.get(leaf.model).card for leaf in leaves(expression)}
    return make_plan(expression, params, cards)


def submit(engine, expression, params, ask=None):
    """Plan a request over the engine's own models and queue it."""
    return engine.submit(planned(engine._executor._catalog, expression, params), ask)


def a_term(rng, depth):
    """A random prompt, or an operator over some."""
    if depth == 0 or rng.random() < 0.5:
        return Prompt(rng.choice(["a red circle", "a blue star", "", "a shape"]), rng.choice(["one", "two"]))
    terms = tuple(a_term(rng, depth - 1) for _ in range(rng.randint(2, 3)))
    return rng.choice([Or, And, Xor, Average, Product, lambda terms: Not(terms[0]), lambda terms: AtLeast(2, terms)])(
        terms
    )


def a_request(rng):
    """A random request: any operator, nested, one or two models, own steps, guidance and images."""
    terms = tuple(a_term(rng, rng.randint(0, 2)) for _ in range(rng.randint(1, 4)))
    operator = rng.choice([Or, And, Average, Product, lambda terms: And(terms, method=Method.BALANCED)])
    return operator(terms), SamplingParams(
        steps=rng.randint(1, 9),
        guidance_scale=rng.choice([1.0, 3.0]),
        seed=rng.randrange(1000),
        num_images=rng.randint(1, 3),
    )


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), count=st.integers(2, 10), running_rows=st.sampled_from([8, 24, 64]))
def test_a_job_in_a_crowd_equals_the_same_job_alone(catalog, models, seed, count, running_rows):
    rng = random.Random(seed)
    requests = [a_request(rng) for _ in range(count)]
    with Engine(Executor(catalog), Limits(running_rows=running_rows)) as engine:
        jobs = [submit(engine, *request) for request in requests]
        outcomes = [job.result.result(WAIT) for job in jobs]
    for (expression, params), outcome in zip(requests, outcomes, strict=True):
        alone = sample(expression, params, models)
        pictures = models["one"].decode(alone.z).permute(0, 2, 3, 1).mul(255).round().numpy()
        assert np.abs(outcome.pictures - pictures).max() <= 1
        np.testing.assert_allclose(outcome.log_density, alone.log_density, rtol=1e-4, atol=0.05)


def test_candidates_and_particles_in_a_crowd_are_those_of_the_job_alone(catalog, models):
    """Choices and resampling too: what one job draws is decided by its own numbers alone."""
    terms = one("a"), one("b"), Prompt("a shape", "two")
    requests = [
        (And(terms), SamplingParams(steps=5, seed=1, num_images=2, candidates=3)),
        (Or(terms[:2]), SamplingParams(steps=4, seed=2, candidates=2, select=Select.DENSITY)),
        (And(terms[:2]), SamplingParams(steps=6, seed=3, particles=5, num_images=2)),
        (Product(terms), SamplingParams(steps=5, seed=4, particles=4, candidates=2, select=Select.DENSITY)),
        (Not(terms[0]), SamplingParams(steps=3, seed=5)),
    ]
    with Engine(Executor(catalog), Limits(running_rows=200)) as engine:
        jobs = [submit(engine, *request, Ask(keep_lift_maps=True)) for request in requests]
        outcomes = [job.result.result(WAIT) for job in jobs]
    for (expression, params), outcome in zip(requests, outcomes, strict=True):
        alone = sample(expression, params, models)
        assert outcome.candidate.tolist() == alone.candidate.tolist()
        assert outcome.survivors.tolist() == alone.survivors.tolist()
        pictures = models["one"].decode(alone.z).permute(0, 2, 3, 1).mul(255).round().numpy()
        assert np.abs(outcome.pictures - pictures).max() <= 1
        np.testing.assert_allclose(outcome.lift, alone.lift, rtol=1e-3, atol=0.05)
        np.testing.assert_allclose(outcome.lift_maps.sum((2, 3)), outcome.lift, rtol=1e-3, atol=0.05)
        assert set(outcome.node_log_density) == set(alone.node_log_density)


def test_a_trajectory_tells_of_steps_and_of_particles_and_not_of_choosing(catalog):
    params = SamplingParams(steps=4, num_images=2, candidates=2, select=Select.DENSITY, particles=3)
    with Engine(Executor(catalog)) as engine:
        outcome = submit(engine, And((one("a"), one("b"))), params, Ask(keep_trajectory=True)).result.result(WAIT)
    assert [point.step for point in outcome.trajectory] == [1, 2, 3, 4]
    assert [point.weights.shape for point in outcome.trajectory] == [(12, 2)] * 3 + [(4, 2)]
    assert {point.effective.shape for point in outcome.trajectory} == {(4,)}
    assert outcome.lift_maps is None


def test_a_trajectory_has_a_point_a_step(catalog):
    with Engine(Executor(catalog)) as engine:
        params = SamplingParams(steps=5, num_images=2)
        kept = submit(engine, And((one("a"), one("b"))), params, Ask(keep_trajectory=True)).result.result(WAIT)
        plain = submit(engine, And((one("a"), one("b"))), params).result.result(WAIT)
    assert len(kept.trajectory) == 5
    assert kept.trajectory[-1].sigma == 0
    assert kept.trajectory[0].weights.shape == (2, 2)
    np.testing.assert_array_equal(kept.trajectory[-1].log_density, kept.log_density)
    assert plain.trajectory == ()


def test_a_poisoned_job_fails_alone(catalog):
    with Engine(Executor(catalog)) as engine:
        healthy = [submit(engine, one("a"), SamplingParams(steps=8, seed=s)) for s in range(3)]
        poisoned = submit(
            engine, Product((one("a"), one("b")), weights=(1e30, -1e30)), SamplingParams(steps=8, guidance_scale=50)
        )
        with pytest.raises(UnknownModelError, match="no model named 'nothing'"):
            engine.submit(make_plan(Prompt("a", "nothing"), SamplingParams(), {"nothing": catalog.get("one").card}))
        for job in healthy:
            assert job.result.result(WAIT).pictures.shape == (1, 16, 16, 3)
        with pytest.raises(NonFiniteError):
            poisoned.result.result(WAIT)
        assert engine.alive


def test_cancel_drops_a_job_wherever_it_is_and_nobody_else(catalog):
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1)) as engine:
        params = SamplingParams(steps=50, guidance_scale=1.0)
        running = submit(engine, one("a"), params)
        assert held.stepping.wait(WAIT)
        other, waiting = submit(engine, one("b"), params), submit(engine, one("c"), params)
        assert engine.load == (2, 1)
        for job in (running, waiting, waiting):
            job.cancel()
        held.go.set()
        for job in (running, waiting):
            with pytest.raises(CancelledJobError):
                job.result.result(WAIT)
        assert other.result.result(WAIT).pictures.shape == (1, 16, 16, 3)
        other.cancel()
        assert engine.load == (0, 0)


def test_a_waiting_job_is_cancelled_at_once_not_at_the_next_tick(catalog):
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1)) as engine:
        params = SamplingParams(steps=2, guidance_scale=1.0)
        running = submit(engine, one("a"), params)
        assert held.stepping.wait(WAIT)
        waiting, other = submit(engine, one("b"), params), submit(engine, one("c"), params)
        engine.cancel(waiting)
        # The engine stands in the middle of a step.
        assert waiting.phase is Phase.CANCELLED
        assert engine.positions() == {other.id: 0}
        engine.cancel(waiting)
        held.go.set()
        for job in (running, other):
            job.result.result(WAIT)
    assert engine.metrics.jobs.labels("cancelled")._value.get() == 1


def test_a_full_queue_refuses(catalog):
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1, waiting_jobs=1)) as engine:
        params = SamplingParams(steps=1, guidance_scale=1.0)
        first = submit(engine, one("a"), params)
        assert held.stepping.wait(WAIT)
        second = submit(engine, one("a"), params)
        with pytest.raises(QueueFullError):
            submit(engine, one("a"), params)
        held.go.set()
        for job in (first, second):
            assert job.result.result(WAIT)


def test_who_watches_jobs_hears_of_the_end_of_each_and_of_none_that_is_refused(catalog):
    held, watched, over = Held(catalog), [], []

    def watching(job):
        watched.append(job)
        return lambda: over.append(job)

    engine = Engine(held, Limits(running_rows=1, waiting_jobs=1), watching=watching)
    with engine:
        params = SamplingParams(steps=1, guidance_scale=1.0)
        first = submit(engine, one("a"), params)
        assert held.stepping.wait(WAIT)
        second = submit(engine, one("a"), params)
        with pytest.raises(QueueFullError):
            submit(engine, one("a"), params)
        with pytest.raises(UnknownModelError):
            engine.submit(planned(catalog, one("a"), params), catalog=Catalog.of({}))
        held.go.set()
        for job in (first, second):
            job.result.result(WAIT)
    with pytest.raises(EngineStoppedError):
        submit(engine, one("a"), params)
    assert watched == over == [first, second]


def test_stop_lets_running_jobs_finish_and_turns_the_waiting_away(catalog):
    held = Held(catalog)
    engine = Engine(held, Limits(running_rows=1))
    engine.start()
    params = SamplingParams(steps=3, guidance_scale=1.0)
    running, waiting = submit(engine, one("a"), params), submit(engine, one("a"), params)
    assert held.stepping.wait(WAIT)
    engine.drain()
    stopping = threading.Thread(target=engine.stop, args=(WAIT,))
    stopping.start()
    held.go.set()
    stopping.join(WAIT)
    assert running.result.result(0).pictures.shape == (1, 16, 16, 3)
    with pytest.raises(EngineStoppedError):
        waiting.result.result(0)
    with pytest.raises(EngineStoppedError):
        submit(engine, one("a"), params)
    assert not engine.alive


def test_stop_without_grace_ends_running_jobs(catalog):
    held = Held(catalog)
    engine = Engine(held)
    engine.start()
    job = submit(engine, one("a"), SamplingParams(steps=1000))
    assert held.stepping.wait(WAIT)
    held.go.set()
    engine.stop()
    with pytest.raises(EngineStoppedError):
        job.result.result(0)


class Flaky(Executor):
    """An executor whose joint steps fail after part of the work is done."""

    def advance(self, jobs):
        if len(jobs) > 1:
            super().advance(jobs[:1])
            raise RuntimeError("out of luck")
        super().advance(jobs)


def test_a_failed_joint_step_is_taken_again_without_changing_any_result(catalog, models):
    requests = [(Or((one("a"), one("b"))), SamplingParams(steps=6, seed=s)) for s in range(3)]
    with Engine(Flaky(catalog)) as engine:
        outcomes = [job.result.result(WAIT) for job in [submit(engine, *r) for r in requests]]
    for (expression, params), outcome in zip(requests, outcomes, strict=True):
        alone = sample(expression, params, models)
        np.testing.assert_allclose(outcome.log_density, alone.log_density, rtol=1e-4, atol=0.05)


def test_prompts_are_encoded_once():
    made = []
    cache = LeastRecentlyUsed(2)

    def make(key):
        return cache.get(key, lambda: made.append(key) or key)

    assert [make(k) for k in "aabacab"] == list("aabacab")
    assert "".join(made) == "abcb"


def test_the_engine_leaves_the_default_generator_alone(catalog):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with Engine(Executor(catalog)) as engine:
        submit(engine, one("a"), SamplingParams(steps=2)).result.result(WAIT)
    assert torch.equal(torch.rand(1), expected)


def test_a_job_that_is_late_fails_and_frees_its_rows(catalog):
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1)) as engine:
        late = submit(engine, one("a"), SamplingParams(steps=500), Ask(timeout_s=0.05))
        behind = submit(engine, one("b"), SamplingParams(steps=500), Ask(timeout_s=0.05))
        patient = submit(engine, one("c"), SamplingParams(steps=2))
        assert held.stepping.wait(WAIT)
        threading.Event().wait(0.1)
        held.go.set()
        for job in (late, behind):
            with pytest.raises(DeadlineError, match=r"not done within 0\.05 s"):
                job.result.result(WAIT)
            assert job.phase is Phase.FAILED
        assert patient.result.result(WAIT)


def test_a_late_job_is_told_while_the_device_is_in_a_long_forward(catalog):
    """Its rows and its models are the engine's to free, when that forward is over."""
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1)) as engine:
        running = submit(engine, one("a"), SamplingParams(steps=5), Ask(timeout_s=0.2))
        waiting = submit(engine, one("b"), SamplingParams(steps=5), Ask(timeout_s=0.1))
        assert held.stepping.wait(WAIT)
        for job in (waiting, running):
            with pytest.raises(DeadlineError):
                job.result.result(5)
            assert (job.phase, job.settled) == (Phase.FAILED, False)
        assert running.state is not None
        held.go.set()
        assert submit(engine, one("c"), SamplingParams(steps=1)).result.result(WAIT)
        assert (running.settled, running.state, waiting.settled) == (True, None, True)
    assert catalog._residency._slots["one"].holders == 0


class Decoding(Executor):
    """An executor whose decoding waits until it is let go."""

    def __init__(self, catalog):
        super().__init__(catalog)
        self.decoding, self.go = threading.Event(), threading.Event()

    def decode(self, jobs):
        self.decoding.set()
        assert self.go.wait(WAIT)
        return super().decode(jobs)


def test_cancel_while_decoding_and_after_the_end(catalog):
    held = Decoding(catalog)
    with Engine(held) as engine:
        job = submit(engine, one("a"), SamplingParams(steps=1))
        assert held.decoding.wait(WAIT)
        assert job.phase is Phase.DECODING
        engine.cancel(job)
        held.go.set()
        with pytest.raises(CancelledJobError):
            job.result.result(WAIT)
        done = submit(engine, one("a"), SamplingParams(steps=1))
        assert done.result.result(WAIT)
        for _ in range(3):
            engine.cancel(done)
        assert submit(engine, one("a"), SamplingParams(steps=1)).result.result(WAIT)
        assert done.phase is Phase.COMPLETED


def test_cancel_at_any_moment_leaves_everybody_else_alone(catalog, models):
    """Eight jobs, every other one cancelled after a random wait: the others draw what they draw alone."""
    rng = random.Random(7)
    requests = [(Or((one("a"), one("b"))), SamplingParams(steps=6, seed=s)) for s in range(8)]
    with Engine(Executor(catalog), Limits(running_rows=12)) as engine:
        jobs = [submit(engine, *request) for request in requests]
        for job in jobs[::2]:
            threading.Event().wait(rng.uniform(0, 0.02))
            engine.cancel(job)
        for (expression, params), job in zip(requests[1::2], jobs[1::2], strict=True):
            alone = sample(expression, params, models)
            np.testing.assert_allclose(job.result.result(WAIT).log_density, alone.log_density, rtol=1e-4, atol=0.05)
        for job in jobs[::2]:
            assert isinstance(job.result.exception(WAIT), CancelledJobError | None)


class Scarce:
    """A model that runs out of memory at more rows than it is given room for, or whenever it is told to."""

    def __init__(self, model, rng, room):
        self._model, self._rng, self._room = model, rng, room
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict_noise(self, z, sigma, condition):
        self.asked.append(len(z))
        if len(z) > self._room or (len(z) > 1 and self._rng.random() < 0.15):
            raise torch.OutOfMemoryError("no room")
        return self._model.predict_noise(z, sigma, condition)


@pytest.mark.parametrize("seed", range(3))
def test_running_out_of_memory_at_random_changes_no_result(models, seed):
    scarce = {name: Scarce(models[name], random.Random(seed), room=10) for name in ("one", "two")}
    requests = [a_request(random.Random(100 * seed + i)) for i in range(6)]
    engine = Engine(Executor(Catalog.of(scarce)), Limits(running_rows=64))
    with engine:
        outcomes = [job.result.result(WAIT) for job in [submit(engine, *request) for request in requests]]
    for (expression, params), outcome in zip(requests, outcomes, strict=True):
        alone = sample(expression, params, models)
        np.testing.assert_allclose(outcome.log_density, alone.log_density, rtol=1e-4, atol=0.05)


def test_a_job_for_which_one_row_is_too_much_fails_alone(models):
    none = Scarce(models["two"], random.Random(0), room=0)
    with Engine(Executor(Catalog.of({"one": models["one"], "two": none}))) as engine:
        healthy = submit(engine, one("a"), SamplingParams(steps=4))
        doomed = submit(engine, Prompt("a", "two"), SamplingParams(steps=4))
        with pytest.raises(torch.OutOfMemoryError):
            doomed.result.result(WAIT)
        assert healthy.result.result(WAIT)


def test_the_row_budget_halves_and_recovers():
    budget = RowBudget(64)
    assert budget.shrink(64)
    assert budget.shrink(20)
    assert budget.rows == 10
    for _ in range(64):
        budget.went_well()
    assert budget.rows == 20
    for _ in range(64 * 3):
        budget.went_well()
    assert budget.rows == 64
    assert not budget.shrink(1)


def test_what_counts_as_out_of_memory():
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert out_of_memory(real.value)


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_splitting_a_forward_changes_nothing(models, rows):
    rng = random.Random(3)
    states = []
    for _ in range(4):
        expression, params = a_request(rng)
        plan = planned(Catalog.of(models), expression, params)
        states.append(prepare(plan, models, NoiseSource(params, plan.shape).draw()))
    bounds = dict.fromkeys(models, rows)
    for whole, split in zip(evaluate(states, models), evaluate(states, models, bounds), strict=True):
        # float32 rounds relative to the largest numbers; this is 80 times the unit in their last place.
        margin = 1e-5 * float(whole.predicted.abs().max())
        torch.testing.assert_close(split.predicted, whole.predicted, rtol=0, atol=margin)


def test_a_model_s_own_bound_on_a_forward_s_rows_holds_for_it_alone(models):
    watched = {name: Scarce(models[name], random.Random(0), room=100) for name in ("one", "two")}
    for scarce in watched.values():
        scarce._rng.random = lambda: 1.0
    catalog = Catalog.of(watched)
    catalog._entries["two"] = replace(catalog.entry("two"), forward_rows=2)
    expression = Or((one("a"), one("b"), Prompt("a", "two"), Prompt("b", "two")))
    with Engine(Executor(catalog)) as engine:
        submit(engine, expression, SamplingParams(steps=2, guidance_scale=1.0, num_images=3)).result.result(WAIT)
    assert set(watched["one"].asked) == {6}
    assert set(watched["two"].asked) == {2}


class Mark:
    """A mark that notes when it is set and waited for."""

    def __init__(self, log, device):
        self.log, self.name = log, f"{device} {sum(e.startswith('record') for e in log)}"

    def record(self):
        self.log.append(f"record {self.name}")

    def synchronize(self):
        self.log.append(f"wait {self.name}")


def test_the_host_is_one_step_ahead_of_an_accelerator_and_no_more():
    log = []
    ahead = RunAhead(lambda device: Mark(log, device))
    for device in ("cuda:0", "cuda:0", "cpu", "cuda:0"):
        ahead.queued(torch.device(device), "one")
    assert log == ["record cuda:0 0", "wait cuda:0 0", "record cuda:0 1", "record cuda:0 2", "wait cuda:0 1"]
    log.clear()
    ahead.queued(torch.device("cuda:0"), "two")
    assert log == ["record cuda:0 0", "wait cuda:0 2", "wait cuda:0 0"]


class NothingReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for an accelerator: reading a value, or a size that depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in func.__name__.split(".") for name in self.WAITS), func
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value_back_to_the_host(models):
    """Completion is known from counters: nothing between two steps may depend on what they computed."""
    rng = random.Random(5)
    requests = [a_request(rng) for _ in range(8)]
    requests = [(expression, replace(params, steps=4)) for expression, params in requests]
    plans = [planned(Catalog.of(models), *request) for request in requests]
    sources = [NoiseSource(plan.params, plan.shape) for plan in plans]
    states = [prepare(plan, models, source.draw()) for plan, source in zip(plans, sources, strict=True)]
    noise = [source.draw() for source in sources]
    answers = evaluate(states, models)
    with NothingReadBack():
        step(states, answers, noise)
        with pytest.raises(AssertionError):
            torch.ones(2).sum().item()


class Broken(Executor):
    """An executor that raises where nobody expects it, once."""

    def decode_key(self, job):
        if not getattr(self, "raised", False):
            self.raised = True
            raise KeyError("surprise")
        return super().decode_key(job)


def test_an_unforeseen_error_costs_the_round_s_jobs_and_not_the_loop(catalog):
    with Engine(Broken(catalog)) as engine:
        with pytest.raises(KeyError):
            submit(engine, one("a"), SamplingParams(steps=1)).result.result(WAIT)
        assert engine.alive
        assert submit(engine, one("a"), SamplingParams(steps=1)).result.result(WAIT)


class Counting(Executor):
    """An executor that notes whose step it was, with a stopwatch by which a step takes what its model is said to."""

    def __init__(self, catalog, cost):
        super().__init__(catalog)
        self.cost, self.turns, self.now = cost, [], 0.0
        self.begin = threading.Event()

    def advance(self, jobs):
        assert self.begin.wait(WAIT)
        super().advance(jobs)
        model = jobs[0].expression.model
        self.turns.append(model)
        self.now += self.cost[model]

    def stopwatch(self):
        return self.now


def test_models_with_nothing_in_common_take_turns_by_time(catalog):
    """A model whose steps take five times as long gets about a fifth of the turns while both have work."""
    counting = Counting(catalog, {"one": 1.0, "two": 5.0})
    with Engine(counting, stopwatch=counting.stopwatch) as engine:
        jobs = [submit(engine, Prompt("a", model), SamplingParams(steps=80)) for model in ("two", "one")]
        counting.begin.set()
        for job in jobs:
            assert job.result.result(WAIT)
    ones = [i for i, turn in enumerate(counting.turns) if turn == "one"]
    between = counting.turns[ones[0] : ones[-1] + 1]
    # 80 steps of one second, 16 of five; one more or less at either end, and "two" may not have that many left.
    assert 10 <= between.count("two") <= 18


def test_a_model_that_comes_back_from_idling_claims_nothing_for_that_time(catalog):
    counting = Counting(catalog, {"one": 1.0, "two": 1.0})
    counting.begin.set()
    with Engine(counting, stopwatch=counting.stopwatch) as engine:
        submit(engine, Prompt("a", "two"), SamplingParams(steps=1)).result.result(WAIT)
        submit(engine, one("a"), SamplingParams(steps=60)).result.result(WAIT)
        counting.turns.clear()
        jobs = [submit(engine, Prompt("a", model), SamplingParams(steps=30)) for model in ("one", "two")]
        for job in jobs:
            assert job.result.result(WAIT)
    assert counting.turns[:20].count("one") >= 6


def test_decoding_that_falls_behind_holds_up_new_jobs(catalog):
    held = Decoding(catalog)
    with Engine(held, Limits(running_rows=8), decode_images=1) as engine:
        params = SamplingParams(steps=1, guidance_scale=1.0)
        first = submit(engine, one("a"), params)
        assert held.decoding.wait(WAIT)
        rest = [submit(engine, one("a"), params) for _ in range(20)]
        held.go.set()
        for job in (first, *rest):
            assert job.result.result(WAIT)


class Torn(Executor):
    """An executor that cannot decode several jobs at once, nor those of seed 13."""

    def decode(self, jobs):
        if len(jobs) > 1 or jobs[0].params.seed == 13:
            raise RuntimeError("torn")
        return super().decode(jobs)


def test_a_job_that_cannot_be_decoded_fails_alone(catalog):
    with Engine(Torn(catalog)) as engine:
        jobs = [submit(engine, one("a"), SamplingParams(steps=3, seed=seed)) for seed in (12, 13, 14)]
        with pytest.raises(RuntimeError, match="torn"):
            jobs[1].result.result(WAIT)
        for job in (jobs[0], jobs[2]):
            assert job.result.result(WAIT).pictures.shape == (1, 16, 16, 3)


def test_metrics_count_what_happened(catalog):
    engine = Engine(Executor(catalog, metrics=(metrics := Metrics())), metrics=metrics)
    with engine:
        submit(engine, one("a"), SamplingParams(steps=3, guidance_scale=1.0, num_images=2)).result.result(WAIT)
        job = submit(engine, one("a"), SamplingParams(steps=1000))
        engine.cancel(job)
        assert isinstance(job.result.exception(WAIT), CancelledJobError)

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"superdiff_{name}", labels)

    assert value("jobs_total", outcome="completed") == 1
    assert value("jobs_total", outcome="cancelled") == 1
    assert value("rows_total") >= 6
    assert value("prompts_total", cache="miss") >= 1


def test_position_and_retry_time(catalog):
    held = Held(catalog)
    with Engine(held, Limits(running_rows=1, waiting_jobs=2)) as engine:
        params = SamplingParams(steps=2, guidance_scale=1.0)
        held.go.set()
        submit(engine, one("a"), params).result.result(WAIT)
        held.go.clear()
        held.stepping.clear()
        running = submit(engine, one("a"), params)
        assert held.stepping.wait(WAIT)
        waiting = [submit(engine, one("a"), params, Ask(priority=p)) for p in (5, 7)]
        assert engine.positions() == {waiting[0].id: 1, waiting[1].id: 0}
        assert running.phase is Phase.RUNNING
        with pytest.raises(QueueFullError) as refused:
            submit(engine, one("a"), params)
        assert refused.value.waiting == 2
        assert refused.value.retry_after_s > 0
        held.go.set()
