from math import hypot

import numpy as np
import pytest

from pipelines.builtin.oracle import holds, names, read_picture, well_formed
from pipelines.builtin.scenes import COLOURS, ROUND, SHAPES, SIZE, draw_scene, render


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [draw_scene(rng) for _ in range(400)]


def test_things_stay_inside_and_apart(scenes):
    for scene in scenes:
        assert 1 <= len(scene.things) <= 3
        for i, thing in enumerate(scene.things):
            assert thing.radius < thing.x < SIZE - thing.radius
            assert thing.radius < thing.y < SIZE - thing.radius
            for other in scene.things[:i]:
                assert hypot(thing.x - other.x, thing.y - other.y) > thing.radius + other.radius


def test_every_shape_and_colour_comes_about_equally_often(scenes):
    things = [thing for scene in scenes for thing in scene.things]
    for attribute, values in (("shape", SHAPES), ("colour", COLOURS)):
        for value in values:
            share = np.mean([getattr(thing, attribute) == value for thing in things])
            # Four standard errors of a share among some 800 things.
            assert share == pytest.approx(1 / len(values), abs=4 * np.sqrt(0.25 * 0.75 / len(things)))


def test_a_half_never_draws_the_other():
    rng = np.random.default_rng(2)
    assert {t.shape for _ in range(100) for t in draw_scene(rng, ROUND).things} == set(ROUND)


def test_the_oracle_reads_the_ground_truth(scenes):
    """Of 400 scenes it may miss one in a hundred: it is a judge only if it is far better than what it judges."""
    exact = 0
    for scene in scenes:
        found = read_picture(np.asarray(render(scene)))
        exact += sorted(f"{f.colour} {f.shape}" for f in found) == sorted(t.name for t in scene.things)
    assert exact >= 396


def test_the_oracle_counts_and_knows_malformed_things():
    rng = np.random.default_rng(3)
    scene = next(s for s in (draw_scene(rng) for _ in range(99)) if len(s.things) == 2)
    picture = np.asarray(render(scene)).copy()
    first, second = (f"a {t.name}" for t in scene.things)
    found = read_picture(picture)
    assert holds(found, f"{first} and {second}")
    assert not holds(found, f"{first} and {first}") or first == second
    assert names(found) == {t.name for t in scene.things}
    assert well_formed(found)
    picture[2:5, 2:40] = COLOURS["red"]
    assert not well_formed(read_picture(picture))
    assert not well_formed(read_picture(np.full((64, 64, 3), 240, dtype=np.uint8)))


def painted(*boxes):
    """A pale picture with boxes of a colour each."""
    picture = np.full((64, 64, 3), 240, dtype=np.uint8)
    for colour, box in boxes:
        picture[box] = COLOURS[colour]
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        painted(("green", np.s_[20:40, 20:30]), ("blue", np.s_[20:40, 30:40])),
        painted(("red", np.s_[10:24, 10:24]), ("red", np.s_[23:37, 23:37])),
        painted(("red", np.s_[10:20, 10:40])),
    ],
    ids=["a square of two colours", "two squares that touch", "a bar"],
)
def test_what_is_no_shape_is_read_as_none(picture):
    found = read_picture(picture)
    assert [patch.shape for patch in found] == [None] * len(found)
    assert not well_formed(found)
