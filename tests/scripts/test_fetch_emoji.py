"""What the fetch script makes of the packages' files; fetching itself needs a network and is not tested."""

import numpy as np
import pytest
from PIL import Image

from pipelines.builtin.emoji.names import NAMES
from scripts.fetch_emoji import find, smaller


@pytest.mark.parametrize("file", ["2708-fe0f.png", "2708.png"])
def test_files_are_found_with_and_without_the_selector_in_their_names(tmp_path, file):
    (tmp_path / file).touch()
    assert find(tmp_path, NAMES["airplane"], ".png") == tmp_path / file


def test_a_missing_picture_is_said(tmp_path):
    with pytest.raises(SystemExit, match="no picture of 🐱"):
        find(tmp_path, NAMES["cat"], ".png")


def test_colours_of_what_is_not_seen_do_not_bleed_into_a_smaller_picture():
    large = np.zeros((256, 256, 4), dtype=np.uint8)
    large[:, :128] = (0, 255, 0, 0)  # green, wholly transparent
    large[:, 128:] = (200, 0, 0, 255)
    small = np.asarray(smaller(Image.fromarray(large, "RGBA")))
    assert small.shape == (64, 64, 4)
    # The kernel rings by a few per cent on either side of an edge; the ringing is red too.
    assert (small[..., 1] == 0).all()
    opaque = small[small[..., 3] == 255]
    assert len(opaque) >= 64 * 30
    assert np.abs(opaque[:, 0].astype(int) - 200).max() <= 10
