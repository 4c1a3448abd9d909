"""Arrays and a few words about them in one blob: a safetensors file, so that reading one runs nothing."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

_HEADER: Final = "superdiff"
# A safetensors file begins with the length of its JSON header, a 64-bit number.
_LENGTH: Final = 8

Array = NDArray[Any]


class UnreadableError(Exception):
    """Data that this version of the service cannot read: of another version, or broken."""


def pack(kind: str, version: int, told: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """One blob.

    Args:
        kind: What it holds.
        version: Of the form in which it holds that.
        told: What goes with the arrays; for JSON.
        arrays: By name.
    """
    header = json.dumps({"kind": kind, "version": version, "told": told}, allow_nan=False)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {_HEADER: header})


def unpack(blob: bytes, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """What :func:`pack` was given: what was told, and the arrays, which may be written to.

    Raises:
        UnreadableError: It is no such blob, or of another version.
    """
    try:
        arrays = {name: np.array(array) for name, array in load(blob).items()}
        length = int.from_bytes(blob[:_LENGTH], "little")
        header = json.loads(json.loads(blob[_LENGTH : _LENGTH + length])["__metadata__"][_HEADER])
        found = header["kind"], header["version"]
        told: dict[str, Any] = header["told"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"this is no {kind}: {error}") from error
    if found != (kind, version):
        raise UnreadableError(f"this is version {found[1]} of a {found[0]}; version {version} of a {kind} is wanted")
    return told, arrays
