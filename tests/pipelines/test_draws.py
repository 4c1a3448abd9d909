"""What a picture draws depends on its own seed alone."""

import pytest
import torch

from pipelines.draws import Draw, NoiseSource
from pipelines.params import SEED_LIMIT, SamplingParams

SHAPE = (2, 3)


def draws(count=3, **options):
    """(normals (count, images, candidates, particles, …), uniforms (count, images, candidates))."""
    params = SamplingParams(**{"seed": 11} | options)
    source = NoiseSource(params, SHAPE)
    drawn = [source.draw() for _ in range(count)]
    groups = (params.num_images, params.candidates)
    normals = torch.stack([draw.normals for draw in drawn]).reshape(count, *groups, params.particles, *SHAPE)
    return normals, torch.stack([draw.uniforms for draw in drawn]).reshape(count, *groups)


def test_images_candidates_and_particles_never_change_each_other():
    normals, uniforms = draws(num_images=3, candidates=4, particles=5)
    fewer, fewer_uniforms = draws(num_images=2, candidates=2, particles=3)
    assert torch.equal(normals[:, :2, :2, :3], fewer)
    assert torch.equal(uniforms[:, :2, :2], fewer_uniforms)
    single, _ = draws()
    assert torch.equal(normals[:, :1, :1, :1], single)


def test_an_image_of_several_draws_as_one_with_its_own_seed():
    normals, uniforms = draws(num_images=3, candidates=2, particles=2)
    for image in range(3):
        alone, own = draws(seed=11 + image, candidates=2, particles=2)
        assert torch.equal(normals[:, image], alone[:, 0])
        assert torch.equal(uniforms[:, image], own[:, 0])
    last, _ = draws(seed=SEED_LIMIT - 1, num_images=2)
    assert torch.equal(last[:, 1], draws(seed=0)[0][:, 0])


def test_no_two_streams_are_one():
    normals, uniforms = draws(num_images=3, candidates=4, particles=5)
    assert len({tuple(row.flatten().tolist()) for row in normals.flatten(0, 3)}) == 3 * 3 * 4 * 5
    assert uniforms.unique().numel() == uniforms.numel()
    # The normal numbers of a seed are torch's own; its uniform ones come from another stream.
    own = torch.rand(3, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    assert not set(own.tolist()) & set(uniforms.flatten().tolist())


def test_numbers_have_their_laws():
    """Six standard errors: a normal's mean, variance and a uniform's mean over many seeds."""
    normals, uniforms = draws(count=40, num_images=50, candidates=4)
    n, u = normals.numel(), uniforms.numel()
    assert abs(float(normals.mean())) < 6 / n**0.5
    assert float(normals.var()) == pytest.approx(1, abs=6 * (2 / n) ** 0.5)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    assert float(uniforms.mean()) == pytest.approx(0.5, abs=6 * (1 / 12 / u) ** 0.5)
    # Candidates of one seed are not each other's shadows.
    flat = normals.transpose(0, 2).reshape(4, -1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 6 / flat.shape[1] ** 0.5


def test_a_seed_is_drawn_as_torch_draws_it():
    """The single picture of a seed is that of torch's own generator: what users of other tools expect."""
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))
    assert torch.equal(draws()[0][0, 0, 0, 0], expected)


def test_nothing_is_zeros():
    nothing = Draw.nothing(torch.ones(4, 2, dtype=torch.float64), 2)
    assert torch.equal(nothing.normals, torch.zeros(4, 2, dtype=torch.float64))
    assert nothing.uniforms.shape == (2,)
