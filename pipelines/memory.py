"""Freed memory goes back to the system."""

import ctypes


def give_back_memory() -> None:
    """Return to the system what the C library holds of memory that was freed. Nothing where there is no glibc.

    Batches come in every size, and between them the heap falls to pieces: without this a service's resident memory
    grows by half within hundreds of requests, and weights that were converted when they were loaded stay resident after
    their model is gone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
