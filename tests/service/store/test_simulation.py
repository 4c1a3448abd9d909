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
    states, told, twice = Counter(), Counter(), 0
    for seed in range(first, first + PART):
        try:
            played = Simulation(seed).play()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        records = [entry.record for entry in played.audit.store._entries.values()]
        states.update(record.state for record in records)
        told.update(record.message.outcome for record in records if record.message is not None)
        twice += sum(times > 1 for times in played.audit.took.values())
    # What was to be tried did happen.
    assert {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED} == set(states)
    assert {"delivered", "failed"} <= set(told)
    assert twice


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


def owed_too_soon(entry, now):
    message = entry.record.message
    return message is not None and message.due is not None and message.due <= now


def given_to_all(entry, now, held_s):
    return moves_sending(entry, now, 0.0)


def noted_by_anyone(entry, tries, due, outcome):
    message = entry.record.message
    return entry if message is None else moves_noted(entry, message.tries, due, outcome)


def settled_again(entry, tries, due, outcome):
    message = entry.record.message
    if message is None or message.due is not None:
        return moves_noted(entry, tries, due, outcome)
    return replace(entry, record=replace(entry.record, message=replace(message, due=due, outcome=outcome)))


def forgotten(entry, tries, due, outcome):
    return moves_noted(entry, tries, None, outcome)


def of_another(entry, now, held_s):
    after = moves_sending(entry, now, held_s)
    message = replace(after.record.message, url="https://hooks.example/another")
    return replace(after, record=replace(after.record, message=message))


moves_taken, moves_reaped, moves_cancel_asked = moves.taken, moves.reaped, moves.cancel_asked
moves_sending, moves_noted = moves.sending, moves.noted


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
        (moves, "owed", owed_too_soon, "before its end"),
        (moves, "sending", given_to_all, "while another sender has it"),
        (moves, "sending", of_another, "changed the message"),
        (
            moves,
            "noted",
            noted_by_anyone,
            "noted by one who has it no more",
        ),
        (moves, "noted", settled_again, "after it was settled"),
        (moves, "noted", forgotten, "neither told of nor given up"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_store_that_breaks_a_promise_is_caught(monkeypatch, owner, name, broken, told):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(ViolationError, match=told):
        play(range(60))
