"""What ComfyUI offers a node while it runs: its progress bar, and its Cancel button."""

from __future__ import annotations

from typing import Callable

from .client import Progress

try:
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar
except ModuleNotFoundError:  # outside of ComfyUI, in tests and scripts
    ProgressBar = None


def watcher() -> Callable[[Progress], None]:
    """What to call each time that a job was looked at.

    It moves ComfyUI's progress bar, and raises ComfyUI's own exception where the run was cancelled there; the client
    then cancels the job on the server.
    """
    if ProgressBar is None:
        return lambda _: None
    bar = ProgressBar(1)

    def tell(progress: Progress) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(progress.step, progress.steps)

    return tell
