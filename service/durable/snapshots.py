"""A job in the middle of its course, as one blob."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipelines.draws import Draw
from service.durable.blobs import Array, UnreadableError, pack, unpack
from service.durable.trajectories import read_points, write_points
from service.engine.job import Snapshot

VERSION: Final = 1
_KIND: Final = "snapshot"
_TENSOR: Final = "tensor:"
_STREAMS: Final = "streams"
_AHEAD: Final = ("ahead.normals", "ahead.uniforms")


def write_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot as a blob. Takes as long as copying it: not for the engine's thread."""
    tensors = {_TENSOR + name: tensor for name, tensor in snapshot.tensors.items()}
    ahead = {} if snapshot.ahead is None else dict(zip(_AHEAD, snapshot.ahead, strict=True))
    given = {**tensors, **ahead, _STREAMS: snapshot.streams}
    arrays: dict[str, Array] = {name: tensor.numpy() for name, tensor in given.items()}
    # Sums over what is laid out otherwise in memory round otherwise.
    strides = {name: tensor.stride() for name, tensor in given.items() if _laid_out(tensor)}
    told = {"index": snapshot.index, "ran_s": snapshot.ran_s, "strides": strides}
    return pack(_KIND, VERSION, told, arrays | write_points(snapshot.points))


def read_snapshot(blob: bytes) -> Snapshot:
    """The snapshot; :class:`UnreadableError` for what is none."""
    told, arrays = unpack(blob, _KIND, VERSION)
    try:
        strides = told["strides"]
        tensors = {
            name.removeprefix(_TENSOR): _tensor(array, strides.get(name))
            for name, array in arrays.items()
            if name.startswith(_TENSOR)
        }
        drawn = [_tensor(arrays[name], strides.get(name)) for name in _AHEAD if name in arrays]
        return Snapshot(
            index=told["index"],
            tensors=tensors,
            streams=_tensor(arrays[_STREAMS]),
            ahead=Draw(*drawn) if drawn else None,
            points=read_points(arrays),
            ran_s=told["ran_s"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnreadableError(f"this is no {_KIND}: {error}") from error


def _laid_out(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory, but not in the order of its axes."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return not tensor.is_contiguous() and tensor.permute(order).is_contiguous()


def _tensor(array: Array, strides: list[int] | None = None) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor if strides is None else torch.empty_strided(array.shape, strides, dtype=tensor.dtype).copy_(tensor)
