"""Importing large libraries quickly; imports nothing large itself."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cyclic garbage collector off while libraries are imported.

    Importing makes hundreds of thousands of objects that all stay, and the collector looks through them again and
    again: a fifth of the time that torch, diffusers and transformers take to import. Where it is off already it stays
    off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
