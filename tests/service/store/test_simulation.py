"""Thousands of small disasters: see :mod:`tests.service.store.simulation`."""

from collections import Counter
from dataclasses import replace

import pytest

from service.store import moves
from service.store.memory import MemoryStore
from service.store.records import JobState
from tests.service.store.simulation import Simulation, ViolationError

SEEDS = 600
PART = 50


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_no_disaster_breaks_a_promise(first):
    states = Counter()
    for seed in range(first, first + PART):
        try:
            played = Simulation(seed).play()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        states.update(entry.record.state for entry in played.audit.store._entries.values())
    # What was to be tried did happen.
    assert {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED} == set(states)


def play(seeds):
    """What is left of each seed's jobs."""
    return [list(Simulation(seed).play().audit.store._entries.values()) for seed in seeds]


def test_a_seed_plays_the_same_again():
    assert play([7]) == play([7])


def no_fence(entry, lease):
    if entry is None or entry.worker is None:
        raise moves.LostLeaseError(lease)
    return entry


def no_holder(entry, lease):
    if entry is None:
        raise moves.LostLeaseError(lease)
    return entry


def same_fence(entry, worker, now, rules):
    return replace(moves_taken(entry, worker, now, rules), fence=1)


def endless(entry, now, rules):
    return moves_reaped(entry, now, replace(rules, attempts=99))


def cancel_forgotten(entry, now):
    return entry if not entry.waiting else moves_cancel_asked(entry, now)


def lost_when_freed(entry, now, rules):
    after = moves_reaped(entry, now, rules)
    return replace(after, worker="nobody", expires=1e18) if after is not entry and after.waiting else after


async def references_of_the_finished(self):
    return {each for entry in self._entries.values() for each in entry.record.artifacts.values()}


moves_taken, moves_reaped, moves_cancel_asked = moves.taken, moves.reaped, moves.cancel_asked


@pytest.mark.parametrize(
    ("owner", "name", "broken", "told"),
    [
        (moves, "held", no_fence, "stale fence"),
        (moves, "held", no_holder, "stale fence"),
        (moves, "taken", same_fence, "while another worker has it|stale fence|renewed that was lost"),
        (moves, "reaped", endless, "was tried 4 times"),
        (moves, "cancel_asked", cancel_forgotten, "was to be cancelled"),
        (moves, "reaped", lost_when_freed, "never ended|was to be cancelled|refused to its holder"),
        (MemoryStore, "_admissions", 0, "was served twice"),
        (MemoryStore, "references", references_of_the_finished, "has lost"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_store_that_breaks_a_promise_is_caught(monkeypatch, owner, name, broken, told):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(ViolationError, match=told):
        play(range(60))
