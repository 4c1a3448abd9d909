"""How pictures are read, laid on grounds and placed anew."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.builtin.emoji.names import LEFT_AS_DRAWN, NAMES
from pipelines.builtin.emoji.pictures import (
    FREELY,
    GENTLY,
    SIZE,
    may_be_mirrored,
    on_ground,
    picture_file,
    place,
    read_pictures,
)
from tests.pipelines.builtin.emoji.drawn import draw_data

NAMES_DRAWN = ("cat", "taxi")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_data(tmp_path_factory.mktemp("data"), NAMES_DRAWN)


def test_a_picture_on_a_ground_is_what_pillow_composites(data):
    with Image.open(picture_file(data, "noto", "cat")) as image:
        ground = Image.new("RGBA", image.size, (250, 240, 230, 255))
        expected = np.asarray(Image.alpha_composite(ground, image).convert("RGB"), dtype=np.float32)
    picture = read_pictures(data, ["cat"], ["noto"])
    pixels = on_ground(picture, torch.tensor([250.0, 240.0, 230.0]) / 255)[0].permute(1, 2, 0)
    # Pillow rounds to whole numbers of 255.
    assert ((pixels.numpy() + 1) * 127.5 - expected).__abs__().max() < 1


def test_a_name_s_styles_lie_together(data):
    stack = read_pictures(data, NAMES_DRAWN)
    assert stack.shape == (4, 4, SIZE, SIZE)
    torch.testing.assert_close(stack[3:], read_pictures(data, ["taxi"], ["noto"]))


def dot(row, column):
    """A picture with one opaque black pixel block of 2×2."""
    picture = torch.zeros(1, 4, SIZE, SIZE)
    picture[:, 3, row : row + 2, column : column + 2] = 1
    return picture


def middle_of_mass(pixels):
    """Row and column of what is dark."""
    dark = (pixels.amin((0, 1)) < 0).double()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return float((dark * torch.from_numpy(rows)).sum() / dark.sum()), float(
        (dark * torch.from_numpy(columns)).sum() / dark.sum()
    )


@pytest.mark.parametrize("placing", [FREELY, GENTLY])
def test_things_move_no_further_than_said(placing):
    rng, reach = np.random.default_rng(0), placing.reach
    # In the middle a scale moves nothing.
    places = [middle_of_mass(place(dot(31, 31), torch.tensor([False]), rng, placing)) for _ in range(200)]
    moves = np.array(places) - 31.5
    assert np.abs(moves).max() <= reach + 0.01
    assert {round(m) for m in moves[:, 0]} == set(range(-reach, reach + 1))


def test_only_what_may_be_is_mirrored():
    rng = np.random.default_rng(0)
    for allowed in (True, False):
        columns = [middle_of_mass(place(dot(31, 50), torch.tensor([allowed]), rng))[1] for _ in range(100)]
        assert any(column < 20 for column in columns) == allowed
        assert any(column > 40 for column in columns)


def test_what_has_writing_on_it_is_left_as_drawn():
    flags = may_be_mirrored(["cat", "taxi"], ["fluent", "noto"])
    assert flags.tolist() == [True, True, False, False]
    assert set(NAMES) > LEFT_AS_DRAWN


def test_grounds_are_white_or_pale():
    rng = np.random.default_rng(0)
    grounds = place(torch.zeros(400, 4, SIZE, SIZE), torch.zeros(400, dtype=torch.bool), rng)
    assert torch.equal(grounds.amax((2, 3)), grounds.amin((2, 3)))
    corner = grounds[:, :, 0, 0]
    white = (corner == 1).all(1)
    # 400 tosses: half within four standard deviations of 0.025.
    assert 0.4 < white.float().mean() < 0.6
    assert corner.min() >= 0.8 - 1e-6
    assert corner[~white].std() > 0.02
