"""POST /v1/density: which component, or which part of an expression, explains a picture."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from pipelines.composition import Expression, Or, Prompt, leaves
from service.api.answers import named_nodes
from service.api.caller import CallerDep
from service.api.problem import Problem
from service.api.waiting import abandoned, await_outcome
from service.expressions import leaf_names
from service.orders import take
from service.schemas.answers import DensityResponse, Explanation, NodeDensity
from service.schemas.requests import DensityRequest
from service.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["density"])

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem} for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}


@router.post("/density", responses=_PROBLEMS, response_model=DensityResponse)
async def density(body: DensityRequest, request: Request, services: ServicesDep, caller: CallerDep) -> Any:
    """The log-density of a picture under each component and operator, and the components' posterior.

    The Itô density estimator along the picture's own noising path, averaged over several draws of the noise, the same
    ones for every component.
    """
    order = await asyncio.to_thread(body.order, services.catalog.names, caller, services.settings.max_timeout_s)
    job = await take(order, services)
    outcome = await await_outcome(job, request, services.engine)
    if outcome is None:
        return abandoned()
    names = leaf_names(leaves(job.expression))
    return DensityResponse(
        components=names,
        seed=job.params.seed,
        draws=job.params.num_images,
        steps=job.params.steps,
        numbers=int(np.prod(job.plan.shape)),
        explanations=explain(names, outcome.log_density, prior_odds(job.expression)),
        nodes={name: NodeDensity(**_mean(values)) for name, values in named_nodes(job, outcome).items()},
    )


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
        name: Explanation(**_mean(values), posterior=float(share))
        for name, values, share in zip(names, log_density.T, posterior, strict=True)
    }


def _mean(values: NDArray[np.float64]) -> dict[str, Any]:
    """The mean of (K,) draws and its standard error."""
    count = len(values)
    error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return {"log_density": float(values.mean()), "standard_error": error}
