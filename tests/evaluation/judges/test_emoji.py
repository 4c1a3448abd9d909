"""The judge's bookkeeping, and that it learns to tell drawn pictures apart."""

import numpy as np
import pytest
import torch

from evaluation.judges.emoji import EmojiJudge, recognised, spoil, training_batch
from pipelines.builtin.emoji.names import NAMES
from pipelines.builtin.emoji.pictures import on_ground, read_pictures
from pipelines.builtin.fitting import Plan, fit
from tests.pipelines.builtin.emoji.drawn import draw_data

DRAWN = tuple(NAMES)[:6]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return read_pictures(draw_data(tmp_path_factory.mktemp("data"), DRAWN), DRAWN)


def test_the_labels_are_the_names_of_the_pictures():
    """Three names, wholly red, green and blue in both styles: the strongest channel says which it was."""
    pictures = torch.zeros(6, 4, 64, 64)
    pictures[:, 3] = 1
    for name in range(3):
        pictures[2 * name : 2 * name + 2, name] = 1
    as_pixels = on_ground(pictures, torch.ones(3))
    rng = np.random.default_rng(0)
    images, labels = training_batch(pictures, torch.ones(6, dtype=torch.bool), as_pixels[None], 64, rng)
    assert images.shape == (64, 3, 64, 64)
    assert set(labels.tolist()) == {0, 1, 2}
    assert torch.equal(images.mean((2, 3)).argmax(1), labels)


def test_spoilt_pictures_stay_pictures_and_differ():
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    once, twice = (spoil(images, np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(once, twice)
    assert (once - images).abs().mean((1, 2, 3)).min() > 0.05
    assert once.abs().max() <= 1


def test_a_judge_learns_to_name_pictures(pictures, tmp_path):
    torch.manual_seed(0)
    judge = EmojiJudge(DRAWN)
    white = on_ground(pictures, torch.ones(3))
    labels = torch.arange(len(DRAWN)).repeat_interleave(2)

    def loss(rng):
        return torch.nn.functional.cross_entropy(judge(white), labels)

    fit(
        judge,
        loss,
        Plan(steps=25, batch=12, learning_rate=2e-3, warmup=5, ema_decay=0.5),
        checkpoint=tmp_path / "judge.pt",
        label="judge",
        seed=0,
    )
    asked = [name for name in DRAWN for _ in range(2)]
    images = white / 2 + 0.5
    assert recognised(judge, images, asked).all()
    assert not recognised(judge, images, asked[2:] + asked[:2]).any()
    log_p = judge.log_probabilities(images)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(images)))
    # A larger picture of the same is read at the judge's own size.
    larger = torch.nn.functional.interpolate(images, scale_factor=4, mode="nearest")
    torch.testing.assert_close(judge.log_probabilities(larger), log_p, rtol=1e-3, atol=1e-3)
