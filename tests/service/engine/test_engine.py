"""The engine with real small models: what a caller may rely on, whoever else is served."""

import random
import threading

import numpy as np
import pytest
import torch

from pipelines.composition import And, Average, Or, Product, Prompt
from pipelines.errors import NonFiniteError
from pipelines.sampler import SamplingParams, sample
from service.engine.engine import CancelledJobError, Engine, EngineStoppedError
from service.engine.executor import Executor, LeastRecentlyUsed
from service.engine.scheduler import QueueFullError

WAIT = 60


def one(text):
    return Prompt(text, "one")


def a_request(rng):
    """A random request: any operator, one to four components, one or two models, own steps, guidance and images."""
    terms = tuple(
        Prompt(rng.choice(["a red circle", "a blue star", "", "a shape"]), rng.choice(["one", "two"]))
        for _ in range(rng.randint(1, 4))
    )
    expression = rng.choice([Or, And, Average, Product])(terms)
    return expression, SamplingParams(
        steps=rng.randint(1, 9),
        guidance_scale=rng.choice([1.0, 3.0]),
        seed=rng.randrange(1000),
        num_images=rng.randint(1, 3),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_job_in_a_crowd_equals_the_same_job_alone(catalog, models, seed):
    rng = random.Random(seed)
    requests = [a_request(rng) for _ in range(12)]
    with Engine(Executor(catalog), max_rows=64) as engine:
        jobs = [engine.submit(*request) for request in requests]
        outcomes = [job.result.result(WAIT) for job in jobs]
    for (expression, params), outcome in zip(requests, outcomes, strict=True):
        alone = sample(expression, params, models)
        pictures = models["one"].decode(alone.z).permute(0, 2, 3, 1).mul(255).round().numpy()
        assert np.abs(outcome.pictures - pictures).max() <= 1
        np.testing.assert_allclose(outcome.log_density, alone.log_density, rtol=1e-4, atol=0.05)


def test_a_trajectory_has_a_point_a_step(catalog):
    with Engine(Executor(catalog)) as engine:
        params = SamplingParams(steps=5, num_images=2)
        kept = engine.submit(And((one("a"), one("b"))), params, keep_trajectory=True).result.result(WAIT)
        plain = engine.submit(And((one("a"), one("b"))), params).result.result(WAIT)
    assert len(kept.trajectory) == 5
    assert kept.trajectory[-1].sigma == 0
    assert kept.trajectory[0].weights.shape == (2, 2)
    np.testing.assert_array_equal(kept.trajectory[-1].log_density, kept.log_density)
    assert plain.trajectory == ()


def test_a_poisoned_job_fails_alone(catalog):
    with Engine(Executor(catalog)) as engine:
        healthy = [engine.submit(one("a"), SamplingParams(steps=8, seed=s)) for s in range(3)]
        poisoned = engine.submit(
            Product((one("a"), one("b")), weights=(1e30, -1e30)), SamplingParams(steps=8, guidance_scale=50)
        )
        unknown = engine.submit(Prompt("a", "nothing"), SamplingParams(steps=8))
        for job in healthy:
            assert job.result.result(WAIT).pictures.shape == (1, 16, 16, 3)
        with pytest.raises(NonFiniteError):
            poisoned.result.result(WAIT)
        with pytest.raises(Exception, match="no model named 'nothing'"):
            unknown.result.result(WAIT)
        assert engine.alive


class Held(Executor):
    """An executor whose steps wait until they are let go."""

    def __init__(self, catalog):
        super().__init__(catalog)
        self.stepping, self.go = threading.Event(), threading.Event()

    def advance(self, jobs):
        self.stepping.set()
        assert self.go.wait(WAIT)
        super().advance(jobs)


def test_cancel_drops_a_job_wherever_it_is_and_nobody_else(catalog):
    held = Held(catalog)
    with Engine(held, max_rows=1) as engine:
        params = SamplingParams(steps=50, guidance_scale=1.0)
        running = engine.submit(one("a"), params)
        assert held.stepping.wait(WAIT)
        other, waiting = engine.submit(one("b"), params), engine.submit(one("c"), params)
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


def test_a_full_queue_refuses(catalog):
    held = Held(catalog)
    with Engine(held, max_rows=1, max_waiting=1) as engine:
        params = SamplingParams(steps=1, guidance_scale=1.0)
        first = engine.submit(one("a"), params)
        assert held.stepping.wait(WAIT)
        second = engine.submit(one("a"), params)
        with pytest.raises(QueueFullError):
            engine.submit(one("a"), params)
        held.go.set()
        for job in (first, second):
            assert job.result.result(WAIT)


def test_stop_lets_running_jobs_finish_and_turns_the_waiting_away(catalog):
    held = Held(catalog)
    engine = Engine(held, max_rows=1)
    engine.start()
    params = SamplingParams(steps=3, guidance_scale=1.0)
    running, waiting = engine.submit(one("a"), params), engine.submit(one("a"), params)
    assert held.stepping.wait(WAIT)
    stopping = threading.Thread(target=engine.stop, args=(WAIT,))
    stopping.start()
    held.go.set()
    stopping.join(WAIT)
    assert running.result.result(0).pictures.shape == (1, 16, 16, 3)
    with pytest.raises(EngineStoppedError):
        waiting.result.result(0)
    with pytest.raises(EngineStoppedError):
        engine.submit(one("a"), params)
    assert not engine.alive


def test_stop_without_grace_ends_running_jobs(catalog):
    held = Held(catalog)
    engine = Engine(held)
    engine.start()
    job = engine.submit(one("a"), SamplingParams(steps=1000))
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
        outcomes = [job.result.result(WAIT) for job in [engine.submit(*r) for r in requests]]
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
        engine.submit(one("a"), SamplingParams(steps=2)).result.result(WAIT)
    assert torch.equal(torch.rand(1), expected)
