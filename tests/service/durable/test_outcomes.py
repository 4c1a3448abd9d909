"""Outcomes survive being written down, number for number."""

from dataclasses import fields, replace

import numpy as np
import pytest

from service.durable.blobs import UnreadableError
from service.durable.outcomes import read_outcome, write_outcome
from service.durable.requests import write_source
from service.engine.job import Outcome, Point, Source

RNG = np.random.default_rng(0)


def points(particles):
    """A trajectory of three steps; after the last one particle of each of two groups is left."""
    return tuple(
        Point(
            step,
            80.0 / step,
            RNG.normal(size=(2 * (1 if step == 3 else particles), 3)),
            RNG.normal(size=(2 * (1 if step == 3 else particles), 3)),
            RNG.normal(size=2) if particles > 1 else None,
        )
        for step in (1, 2, 3)
    )


OUTCOME = Outcome(
    pictures=RNG.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8),
    log_density=np.array([[1 / 3, np.nan, -np.inf], [0.1, 1e-310, 2.0]]),
    node_log_density={(): np.array([0.5, 1.5]), ("terms", 1, "terms", 0): np.array([np.nan, 0.25])},
    mean_weights=RNG.normal(size=(2, 3)),
    clamp_rate=np.array([0.0, 1.0]),
    lift=RNG.normal(size=(2, 3)),
    lift_maps=RNG.normal(size=(2, 3, 2, 3)).astype(np.float32),
    candidate=np.array([0, 3]),
    survivors=np.array([1, 2]),
    trajectory=points(1),
    queued_s=0.25,
    run_s=1 / 3,
    resumed_from=7,
)


def equal(one, other):
    """Whether two values are the same to the last bit, NaN being NaN."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Point):
        return all(equal(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    return one == other


@pytest.mark.parametrize(
    "outcome",
    [
        OUTCOME,
        replace(OUTCOME, trajectory=points(4)),
        replace(OUTCOME, trajectory=(), lift_maps=None, node_log_density={}),
        replace(OUTCOME, pictures=np.zeros((0, 0, 0, 3), np.uint8)),
    ],
    ids=["plain", "particles", "little", "density"],
)
def test_an_outcome_is_read_as_it_was_written(outcome):
    read = read_outcome(write_outcome(outcome))
    for each in fields(Outcome):
        assert equal(getattr(outcome, each.name), getattr(read, each.name)), each.name


def test_a_blob_of_another_kind_is_refused():
    other = write_source(Source(OUTCOME.pictures[0], None, None, 6, 4))
    for blob in (other, write_outcome(OUTCOME)[:-1]):
        with pytest.raises(UnreadableError):
            read_outcome(blob)
