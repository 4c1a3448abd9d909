"""Importing large libraries quickly; imports nothing large itself."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused(*, for_good: bool = False) -> Iterator[None]:
    """Keep Python's cyclic garbage collector off while libraries are imported.

    Importing makes hundreds of thousands of objects that all stay, and the collector looks through them again and
    again: a fifth of the time that torch, diffusers and transformers take to import. Where it is off already it stays
    off.

    Args:
        for_good: Whether all objects that there are at the end stay until the process ends. The collector then never
            looks at them again, neither at the end of the imports nor at any later collection. What becomes garbage
            among them stays too, if it is in a cycle: so not while there are models or requests.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if for_good:
                gc.freeze()
            gc.enable()
