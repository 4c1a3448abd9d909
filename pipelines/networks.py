"""Asking the networks: one forward per model for all rows of all requests."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipelines.model import Condition, Model
from pipelines.plan import Plan
from pipelines.prediction import per_sample


class Answer(NamedTuple):
    """The networks' answers to one request.

    Attributes:
        predicted: (B, M + P, …) ε̂ of the leaves, then of the references.
        divergence: (B, M + P) div ε̂ by Hutchinson's estimator, of one probe; None where the request needs none.
    """

    predicted: Tensor
    divergence: Tensor | None = None


class Asking(Protocol):
    """What asks: a request on its way."""

    @property
    def z(self) -> Tensor:
        """(B, …) noisy samples."""
        ...

    @property
    def sigma(self) -> float:
        """Their noise level."""
        ...

    @property
    def plan(self) -> Plan:
        """Which rows it asks."""
        ...

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """One condition of one row for each of the plan's rows."""
        ...

    @property
    def probe(self) -> Tensor | None:
        """(B, …) the directions e of Hutchinson's estimator, tr J ≈ <e, J e>; None where no divergence is needed."""
        ...


@torch.inference_mode()
def evaluate(
    states: Sequence[Asking], models: Mapping[str, Model], forward_rows: Mapping[str, int] | None = None
) -> list[Answer]:
    """ε̂ of every row of every state: one forward per model (and per length of text, where texts are long).

    States with a probe are asked in forwards of their own, which cost several times a plain one.

    Args:
        states: Not done, of one sample shape, on one device.
        models: The loaded models by name.
        forward_rows: How many rows one forward of a model may take, by its name; more are split over several. Models
            that it does not name have no bound.

    Returns:
        For each state its answer.

    Raises:
        InvalidInputError: A network that is asked for a divergence has no forward-mode derivative.
    """
    answers: list[list[Tensor]] = [[state.z] * len(state.plan.rows) for state in states]
    spreads: list[list[Tensor]] = [[state.z] * len(state.plan.rows) for state in states]
    # Asked for once: a probe is drawn anew at every look.
    probes = [state.probe for state in states]
    asked: dict[tuple[str, Hashable, bool], list[tuple[int, int]]] = {}
    for i, state in enumerate(states):
        for j, row in enumerate(state.plan.rows):
            key = (row.model, _shapes(state.conditions[j]), probes[i] is not None)
            asked.setdefault(key, []).append((i, j))
    for (name, _, diverges), places in asked.items():
        sizes = [len(states[i].z) for i, _ in places]
        z = torch.cat([states[i].z for i, _ in places])
        levels = torch.tensor([states[i].sigma for i, _ in places], dtype=torch.float64)
        sigma = levels.repeat_interleave(torch.tensor(sizes))
        condition = collate([(states[i].conditions[j], size) for (i, j), size in zip(places, sizes, strict=True)])
        # A model computes where it lies; the samples lie with the lead model of their expression.
        device = models[name].device
        rows = (forward_rows or {}).get(name, len(z))
        known = [own for i, _ in places if (own := probes[i]) is not None]
        probe = torch.cat(known).to(device, z.dtype) if diverges else None
        computed, along = _forward(models[name], z.to(device), sigma.to(device), condition, rows, probe)
        for (i, j), output in zip(places, computed.to(z.device).split(sizes), strict=True):
            answers[i][j] = output
        if probe is not None and along is not None:
            divergence = (probe.double() * along.double()).flatten(1).sum(1).to(z.device)
            for (i, j), spread in zip(places, divergence.split(sizes), strict=True):
                spreads[i][j] = spread
    return [
        Answer(_slotted(state, predicted), None if probe is None else _slotted(state, spread))
        for state, probe, predicted, spread in zip(states, probes, answers, spreads, strict=True)
    ]


def _slotted(state: Asking, rows: Sequence[Tensor]) -> Tensor:
    """What was computed for each row, for each leaf and reference: (B, M + P, …)."""
    return torch.stack([rows[slot] for slot in state.plan.slots], dim=1)


def _forward(
    model: Model, z: Tensor, sigma: Tensor, condition: Condition, rows: int, probe: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """ε̂, and (∂ε̂/∂z) e where there is a probe, in forwards of at most ``rows`` rows, as equal in size as can be."""
    parts = max(1, -(-len(z) // rows))
    split = {key: value.chunk(parts) for key, value in condition.items()}
    predicted, along = [], []
    for k, (x, level) in enumerate(zip(z.chunk(parts), sigma.chunk(parts), strict=True)):
        own = {key: chunks[k] for key, chunks in split.items()}
        if probe is None:
            predicted.append(model.predict_noise(x, level, own))
        else:
            output, derivative = model.differentiate_noise(x, level, own, probe.chunk(parts)[k])
            predicted.append(output)
            along.append(derivative)
    return torch.cat(predicted), torch.cat(along) if along else None


def denoise(model: Model, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """x̂0 = z − σ ε̂ of noisy rows; shapes as in :meth:`pipelines.model.Denoiser.predict_noise`."""
    return z - per_sample(sigma, z) * model.predict_noise(z, sigma, condition)


def _shapes(condition: Condition) -> Hashable:
    """What rows must share to stand in one batch."""
    return tuple((key, value.shape[1:]) for key, value in condition.items())


def collate(conditions: Sequence[tuple[Condition, int]]) -> Condition:
    """One condition out of single rows, each repeated as often as its number says."""
    keys = conditions[0][0].keys()
    return {key: torch.cat([c[key].expand(n, *c[key].shape[1:]) for c, n in conditions]) for key in keys}
