"""The memory that weights take, and its return to the system."""

import ctypes

from torch import nn


def count_bytes(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers together."""
    return sum(weight.nbytes for module in modules for weight in (*module.parameters(), *module.buffers()))


def give_back_memory() -> None:
    """Return to the system what the C library holds of memory that was freed. Does nothing where there is no glibc.

    Batches come in every size and fragment the heap: without this a service's resident memory grows by half within
    hundreds of requests, and weights that were converted when they were loaded stay resident after their model is gone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
