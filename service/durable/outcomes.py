"""What a job gave, as one blob."""

import json
from typing import Any, Final

from service.durable.blobs import Array, UnreadableError, pack, unpack
from service.durable.trajectories import read_points, write_points
from service.engine.job import Outcome

VERSION: Final = 1
_KIND: Final = "outcome"
_NODE: Final = "node:"
_MAPS: Final = "lift_maps"
_ARRAYS: Final = ("pictures", "log_density", "mean_weights", "clamp_rate", "lift", "candidate", "survivors")


def write_outcome(outcome: Outcome) -> bytes:
    """An outcome as a blob."""
    arrays: dict[str, Array] = {name: getattr(outcome, name) for name in _ARRAYS}
    if outcome.lift_maps is not None:
        arrays[_MAPS] = outcome.lift_maps
    arrays |= {_NODE + json.dumps(path): values for path, values in outcome.node_log_density.items()}
    told = {"queued_s": outcome.queued_s, "run_s": outcome.run_s, "resumed_from": outcome.resumed_from}
    return pack(_KIND, VERSION, told, arrays | write_points(outcome.trajectory))


def read_outcome(blob: bytes) -> Outcome:
    """The outcome; :class:`UnreadableError` for what is none."""
    told, arrays = unpack(blob, _KIND, VERSION)
    nodes = {tuple(json.loads(name.removeprefix(_NODE))): arrays[name] for name in arrays if name.startswith(_NODE)}
    try:
        given: dict[str, Any] = {name: arrays[name] for name in _ARRAYS} | told
        return Outcome(**given, lift_maps=arrays.get(_MAPS), node_log_density=nodes, trajectory=read_points(arrays))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"this is no {_KIND}: {error}") from error
