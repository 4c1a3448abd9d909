"""The sheet's two parts that are more than drawing: which picture is nearest, and where each is laid."""

import numpy as np
import torch

from pipelines.builtin.emoji.contact_sheet import nearest, tile


def test_the_nearest_picture_is_found_also_in_the_mirror():
    known = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = torch.stack([known[3], known[1].flip(-1)]) + 0.01
    torch.testing.assert_close(nearest(asked, known), torch.stack([known[3], known[1].flip(-1)]))


def test_pictures_are_laid_in_lines_each_over_its_own():
    above = torch.stack([torch.full((3, 64, 64), k / 10) for k in range(3)])
    sheet = np.asarray(tile([above, 1 - above], columns=2))
    assert sheet.shape == (2 * 128, 2 * 64, 3)
    greys = [[int(sheet[row, column, 0]) for column in (32, 96)] for row in (32, 96, 160, 224)]
    # round(255·k/10), each over its opposite; where there is no fourth picture the sheet is white.
    assert greys == [[0, 26], [255, 230], [51, 255], [204, 255]]
