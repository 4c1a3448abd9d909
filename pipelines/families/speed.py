"""Making a network faster: its weights' layout, and compilation."""

import torch
from torch import nn

from pipelines.model import LoadOptions


def speed_up(network: nn.Module, options: LoadOptions) -> None:
    """Lay out and compile a network as its options say, in place.

    It is compiled once for all numbers of rows and all sizes (symbolic shapes), so that nothing is compiled anew while
    requests come and go. Each network counts its own compilations: by default torch counts those of one class together,
    and after eight it no longer compiles.
    """
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as torch documents it
    if options.compile:
        network.compile(dynamic=True, isolate_recompiles=True)
