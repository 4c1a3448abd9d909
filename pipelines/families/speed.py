"""Faster networks: the layout of weights, and compilation."""

import torch
from torch import nn

from pipelines.model import LoadOptions


def speed_up(network: nn.Module, options: LoadOptions) -> None:
    """Lay out and compile a network in place, as its options demand.

    It is compiled once for all numbers of rows and all sizes (symbolic shapes), so that no later request waits for the
    compiler. Compilations are counted for each network separately: by default torch counts those of one class together,
    and stops to compile after eight.
    """
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as torch documents it
    if options.compile:
        network.compile(dynamic=True, isolate_recompiles=True)
