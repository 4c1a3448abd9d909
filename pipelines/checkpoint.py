"""A request in the middle of its course, as tensors by name: what must be kept to go on to the same picture.

Plan, schedule, conditions and canvas are made again by :func:`pipelines.sampler.prepare`; what has come of the steps
taken is here. With the draws of :meth:`pipelines.draws.NoiseSource.states` a request goes on bit for bit, where the
same network gives the same answers.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from torch import Tensor

from pipelines.choice import ChoiceSums
from pipelines.lift import LiftSums
from pipelines.probability_flow import FlowStep
from pipelines.sampler import SamplerState

_PLAIN: Final = (
    "z",
    "log_q",
    "weights",
    "weight_sum",
    "clamped",
    "log_weights",
    "lineage",
    "effective",
    "followed",
)
"""The tensors that every state has."""


def tensors_of(state: SamplerState) -> dict[str, Tensor]:
    """What has come of the steps taken, by name; the tensors are the state's own, which nobody changes."""
    held = {name: getattr(state, name) for name in _PLAIN}
    if state.clean is not None:
        held["clean"] = state.clean
    if state.lifts is not None:
        held |= _lifts_of(state.lifts, "lifts")
    if state.choice is not None:
        held |= _lifts_of(state.choice.evidence, "choice")
        held["choice.disagreement"] = state.choice.disagreement
    if state.flow is not None:
        held |= {"flow.d": state.flow.d, "flow.increments": state.flow.increments}
    return held


def resumed(fresh: SamplerState, index: int, tensors: Mapping[str, Tensor]) -> SamplerState:
    """The state of a request after ``index`` network calls.

    Args:
        fresh: The same request's state before its first step, on the device that it goes on at.
        index: Network calls made.
        tensors: Of :func:`tensors_of` after them.
    """
    held = {name: tensor.to(fresh.z.device) for name, tensor in tensors.items()}
    flow = None
    if "flow.d" in held:
        flow = FlowStep(held["flow.d"], float(fresh.schedule.sigmas[index - 1]), held["flow.increments"])
    choice = None
    if "choice.disagreement" in held:
        choice = ChoiceSums(_lifts_from(held, "choice"), held["choice.disagreement"])
    plain: dict[str, Any] = {name: held[name] for name in _PLAIN}
    return replace(
        fresh,
        **plain,
        clean=held.get("clean"),
        lifts=_lifts_from(held, "lifts") if "lifts.slope" in held else None,
        choice=choice,
        flow=flow,
        index=index,
    )


def _lifts_of(sums: LiftSums, name: str) -> dict[str, Tensor]:
    return {f"{name}.{field.name}": getattr(sums, field.name) for field in fields(sums)}


def _lifts_from(held: Mapping[str, Tensor], name: str) -> LiftSums:
    return LiftSums(**{field.name: held[f"{name}.{field.name}"] for field in fields(LiftSums)})
