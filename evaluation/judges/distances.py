r"""Distances of two sets of vectors: of samples to exact ones, of pictures' features to those of real scenes.

Precision, recall, density and coverage are written here over scipy: the package of their authors (prdc) has not been
kept since 2020, and the kept ones that know precision and recall (torch-fidelity) bring torchvision along.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Vectors = NDArray[np.float64]


def sliced_w2(x: Vectors, y: Vectors, projections: int = 200, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance of two samples of one size, (n, D) each, over seeded random directions."""
    if len(x) != len(y):
        raise ValueError(f"sliced W2 compares samples of one size, got {len(x)} and {len(y)}")
    directions = np.random.default_rng(seed).standard_normal((projections, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    a, b = (np.sort(s.astype(np.float64) @ directions.T, axis=0) for s in (x, y))
    return float(np.sqrt(np.square(a - b).mean()))


def frechet(x: Vectors, y: Vectors) -> float:
    r"""|μ_x − μ_y|² + tr(C_x + C_y − 2 (C_x C_y)^{1/2}), between Gaussians fitted to (n, D) and (m, D) vectors.

    The trace of the root is the sum of the singular values of C_x^{1/2} C_y^{1/2}, which are real and stable where the
    covariances are singular.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., NeurIPS 2017),
        eq. 6, with features of a network of ours in place of Inception's.
    """
    roots, traces, means = [], 0.0, []
    for sample in (x, y):
        covariance = np.atleast_2d(np.cov(sample.astype(np.float64), rowvar=False))
        values, vectors = np.linalg.eigh(covariance)
        roots.append((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)
        traces += float(np.trace(covariance))
        means.append(sample.mean(0, dtype=np.float64))
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * shared)


@dataclass(frozen=True, slots=True)
class Manifold:
    """How two sets overlap, by balls about each vector that reach to its k-th neighbour in its own set.

    Attributes:
        precision: The share of drawn vectors that lie in a ball of a real one.
        recall: The share of real vectors that lie in a ball of a drawn one.
        density: In how many balls of real vectors a drawn one lies, on average, over k; it may exceed 1.
        coverage: The share of real balls that hold a drawn vector.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., NeurIPS 2019);
        Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., ICML 2020), eqs. 4 and 5.
    """

    precision: float
    recall: float
    density: float
    coverage: float

    @classmethod
    def of(cls, real: Vectors, drawn: Vectors, neighbours: int = 5) -> "Manifold":
        """Of (n, D) real and (m, D) drawn vectors; k = ``neighbours``, 5 as in Naeem et al."""
        between = cdist(real, drawn)
        real_reach, drawn_reach = (_reach(side, neighbours) for side in (real, drawn))
        inside = between < real_reach[:, None]
        return cls(
            precision=float(inside.any(0).mean()),
            recall=float((between < drawn_reach[None, :]).any(1).mean()),
            density=float(inside.sum(0).mean() / neighbours),
            coverage=float(inside.any(1).mean()),
        )


def _reach(vectors: Vectors, neighbours: int) -> Vectors:
    """(n,) the distance of each vector to its k-th nearest other one."""
    if len(vectors) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} vectors, got {len(vectors)}")
    distances = cdist(vectors, vectors)
    reach: Vectors = np.partition(distances, neighbours, axis=1)[:, neighbours]
    return reach
