"""POST /v1/density: which component explains a picture."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from pipelines.composition import Average, leaves
from pipelines.sampler import check
from service.api.caller import CallerDep
from service.api.superpose import await_outcome, check_bounds, check_models, known_picture
from service.errors import Problem
from service.schemas import DensityRequest, DensityResponse, Explanation, component_names
from service.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["density"])

_CLIENT_CLOSED_REQUEST: Final = 499
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem} for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}


@router.post("/density", responses=_PROBLEMS, response_model=DensityResponse)
async def density(body: DensityRequest, request: Request, services: ServicesDep, caller: CallerDep) -> Any:
    """The log-density of a picture under each component, and the components' posterior.

    The Itô density estimator along the picture's own noising path, averaged over several draws of the noise, the same
    ones for every component.
    """
    check_models(body, services.catalog)
    expression = Average(body.prompts(services.catalog.names[0]))
    async with services.models(leaf.model for leaf in leaves(expression)) as models:
        params = body.params(services.catalog.defaults(expression.terms[0].model))
        given = body.image, None, (body.fit, 0.0), expression, params, models, services.settings
        params, source = await asyncio.to_thread(known_picture, *given)
        source = replace(source, retrace=True)
        check(expression, params, models, on_canvas=True)
        check_bounds(body, expression, params, models, services.settings)
        shape = models[expression.terms[0].model].sample_shape(params.width or 0, params.height or 0)
        job = services.engine.submit(expression, params, body.ask(caller, services.settings.max_timeout_s), source)
    outcome = await await_outcome(job, request, services.engine)
    if outcome is None:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    names = component_names(leaves(expression))
    priors = np.array([component.weight for component in body.components])
    return DensityResponse(
        components=names,
        seed=params.seed,
        draws=params.num_images,
        steps=params.steps,
        numbers=int(np.prod(shape)),
        explanations=explain(names, outcome.log_density, priors),
    )


def explain(
    names: Sequence[str], log_density: NDArray[np.float64], priors: NDArray[np.float64]
) -> dict[str, Explanation]:
    """Mean, standard error and posterior of each component.

    Args:
        names: Of the M components.
        log_density: (K, M), a line a draw, in nats.
        priors: (M,) log prior odds in nats.
    """
    mean = log_density.mean(0)
    error = log_density.std(0, ddof=1) / np.sqrt(len(log_density)) if len(log_density) > 1 else [None] * len(names)
    odds = mean + priors
    posterior = np.exp(odds - odds.max())
    posterior /= posterior.sum()
    return {
        name: Explanation(log_density=float(m), standard_error=None if e is None else float(e), posterior=float(p))
        for name, m, e, p in zip(names, mean, error, posterior, strict=True)
    }
