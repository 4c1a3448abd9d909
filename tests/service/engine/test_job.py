from types import SimpleNamespace

import pytest

from service.engine.job import Ask, Job


def shown(steps, **ask):
    """After which steps a preview is shown: never after the last."""
    every = Job(SimpleNamespace(steps=steps), Ask(**ask)).preview_every
    return [step for step in range(1, steps) if every and step % every == 0]


@pytest.mark.parametrize("previews", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 25, 50, 999])
def test_previews_are_as_many_as_asked_at_most_and_evenly_spread(steps, previews):
    after = shown(steps, previews=previews)
    assert min(1, steps - 1) <= len(after) <= previews
    assert len({later - earlier for earlier, later in zip([0, *after], after, strict=False)}) <= 1
    # No gap is larger than it must be: with as many previews, none could be smaller by a whole step.
    assert steps == 1 or after[0] == -(-steps // (previews + 1))


def test_exactly_as_many_where_the_steps_allow_it():
    assert [len(shown(steps, previews=3)) for steps in (4, 8, 20, 40)] == [3, 3, 3, 3]
    assert shown(20, previews=3) == [5, 10, 15]


def test_none_unless_asked_and_a_fixed_distance_comes_first():
    assert shown(20) == []
    assert shown(20, preview_every=8, previews=3) == [8, 16]
