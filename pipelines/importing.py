"""Importing large libraries quickly; imports nothing large itself."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def collector_paused(bringing: str = "") -> Iterator[None]:
    """Keep Python's cyclic garbage collector off while libraries are imported.

    Importing makes hundreds of thousands of objects that all stay, and the collector looks through them again and
    again: a fifth of the time that torch, diffusers and transformers take to import. Where it is off already it stays
    off.

    Args:
        bringing: A module that brings large libraries with it. Where it is not there yet, all objects that there are at
            the end stay until the process ends, and the collector never looks at them again. What becomes garbage among
            them stays too, if it is in a cycle: so name one that comes before there are models and requests.
    """
    was_on, new = gc.isenabled(), bool(bringing) and bringing not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if new:
                gc.freeze()
            gc.enable()


def link_ahead(package: str, library: str) -> threading.Thread | None:
    """Let the system link a package's shared library in a thread, while this one imports other packages.

    Importing the package then finds it linked: a quarter of a second for torch's largest. Python holds its lock while
    it links what it imports, so that would hold up every import; a call through ctypes does not. Where the library
    cannot be linked like this, the import of the package does it as ever, or says what is wrong.

    Args:
        package: Its name; it is not imported.
        library: The file in its folder, by POSIX path.

    Returns:
        The thread; None on a system without such a file.
    """
    found = importlib.util.find_spec(package)
    file = Path(found.origin).parent / library if found is not None and found.origin else None
    if file is None or not sys.platform.startswith("linux") or not file.exists():
        return None
    link = ctypes.CDLL(None).dlopen
    link.restype, link.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    thread = threading.Thread(target=link, args=(os.fsencode(file), os.RTLD_NOW), name="linker")
    thread.start()
    return thread
