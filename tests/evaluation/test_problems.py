"""Exact problems: closed forms against numerical integration, rejection against closed forms."""

import pytest
import torch

from evaluation.mixtures import Known, Rejected, log_density, product, random_mixture, union
from evaluation.problems import PROBLEMS, soft_minimum, unconditional


def grid(low=-6.0, high=6.0, points=241):
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float((axis[1] - axis[0]) ** 2)


def test_the_product_of_mixtures_is_the_normalised_product():
    one, two = random_mixture(1, 2), random_mixture(2, 2)
    wide = unconditional(2)
    z, cell = grid()
    raw = log_density(one, z, 0.0) + log_density(two, z, 0.0) - log_density(wide, z, 0.0)
    normalised = raw - (raw.logsumexp(0) + torch.tensor(cell).log())
    # The grid resolves modes of 0.25 with cells of 0.05.
    torch.testing.assert_close(log_density(product(one, two, wide), z, 0.0), normalised, rtol=0, atol=1e-3)


def test_a_product_over_something_narrower_has_no_density():
    one, two = random_mixture(1, 2), random_mixture(2, 2)
    narrow = random_mixture(3, 2, modes=1)
    with pytest.raises(ValueError, match="narrower"):
        product(*(type(one)(m.means, 0.8) for m in (one, two)), narrow)
    with pytest.raises(ValueError, match="one Gaussian"):
        product(one, two, two)


def test_a_union_keeps_the_weights():
    one, two = random_mixture(1, 3, modes=2), random_mixture(2, 3, modes=5)
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([log_density(m, z, 0.0) for m in (one, two)]).logsumexp(0) - torch.tensor(2.0).log()
    torch.testing.assert_close(log_density(union(one, two), z, 0.0), expected)


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if isinstance(p.truth, object) and p.truth])
def test_exact_samples_have_the_mean_that_integration_gives(name):
    """The first moments of every problem in two dimensions, on a grid and of 4,000 samples."""
    problem = PROBLEMS[name]
    parts, wide = problem.densities(2), unconditional(2)
    z, _ = grid(-8, 8, 321)
    weights = problem.level(parts, wide, z, 0.0).softmax(0)
    mean = (weights[:, None] * z).sum(0)
    spread = (weights[:, None] * (z - mean) ** 2).sum(0).sqrt()
    samples = problem.truth(parts, wide).sample(4000, torch.Generator().manual_seed(0))
    # Four standard errors.
    assert ((samples.mean(0) - mean).abs() < 4 * spread / 4000**0.5).all()


def test_rejection_notices_an_envelope_that_is_too_low():
    one = random_mixture(1, 2)
    too_high = Rejected(one, lambda z: log_density(one, z, 0.0) + 1)
    with pytest.raises(ValueError, match="exceeds its envelope"):
        too_high.sample(10, torch.Generator().manual_seed(0))


def test_the_soft_minimum_lies_between_minimum_and_mean():
    levels = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sharp, soft = soft_minimum(levels, 200.0), soft_minimum(levels, 1e-6)
    torch.testing.assert_close(sharp, levels.amin(1), rtol=0, atol=0.01)
    torch.testing.assert_close(soft, levels.mean(1), rtol=0, atol=1e-5)


def test_a_known_truth_tells_its_own_level():
    one = random_mixture(1, 2)
    z = one.sample(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(Known(one).level(z), log_density(one, z, 0.0))
