"""From the log-densities of a picture to what explains it: means over the draws, standard errors, posteriors."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.composition import Expression, Or, Prompt, leaves
from service.schemas.answers import Explanation, NodeDensity


def prior_odds(expression: Expression) -> NDArray[np.float64]:
    """The log prior odds of the leaves: the biases of an OR of prompts, even ones for any other expression."""
    flat = isinstance(expression, Or) and all(isinstance(term, Prompt) for term in expression.terms)
    biases = expression.biases if isinstance(expression, Or) and flat else ()
    return np.array(biases or (0.0,) * len(leaves(expression)))


def explain(
    names: Sequence[str], log_density: NDArray[np.float64], priors: NDArray[np.float64]
) -> dict[str, Explanation]:
    """Mean, standard error and posterior of each component.

    Args:
        names: Of the M components.
        log_density: (K, M), a line a draw, in nats.
        priors: (M,) log prior odds in nats.
    """
    odds = log_density.mean(0) + priors
    posterior = np.exp(odds - odds.max())
    posterior /= posterior.sum()
    return {
        name: Explanation(log_density=_mean(values), standard_error=_error(values), posterior=float(share))
        for name, values, share in zip(names, log_density.T, posterior, strict=True)
    }


def node_densities(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NodeDensity]:
    """Mean and standard error of each operator, of (K,) values, one a draw.

    An operator's value is computed from its terms draw by draw, then averaged: the mean of a mixture's log-densities,
    not the log-density of the terms' means.
    """
    return {name: NodeDensity(log_density=_mean(each), standard_error=_error(each)) for name, each in values.items()}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _error(values: NDArray[np.float64]) -> float | None:
    """The standard error of the mean of (K,) draws; None for a single one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
