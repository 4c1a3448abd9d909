"""All the randomness of a request: what a picture draws depends on its own seed alone, never on its company."""

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.card import Shape
from pipelines.params import SamplingParams, image_seed

# A stream of its own, so that particles do not change the normal numbers that a picture draws.
_UNIFORM: Final = 1
_PROBE: Final = 2


class Draw(NamedTuple):
    """The randomness of one step.

    Attributes:
        normals: (B, …) standard normal numbers, float32, on the CPU.
        uniforms: (G,) numbers in [0, 1), float64, on the CPU: one for each group of particles.
    """

    normals: Tensor
    uniforms: Tensor

    @classmethod
    def nothing(cls, like: Tensor, groups: int) -> "Draw":
        """What a step takes that needs no randomness: zeros for samples (B, …) in ``groups`` groups."""
        return cls(torch.zeros_like(like), torch.zeros(groups, dtype=torch.float64))


class NoiseSource:
    """The draws of a request's samples, image by image, candidate by candidate, particle by particle.

    Every sample has a CPU generator, so that the same seed draws the same on every device and in every batch. The first
    particle of the first candidate draws from the image's own seed: more candidates or particles never change it.

    Args:
        params: How many samples, and the seed.
        shape: Of one sample.
    """

    def __init__(self, params: SamplingParams, shape: Shape) -> None:
        self._shape = shape
        seeds = [image_seed(params.seed, image) for image in range(params.num_images)]
        groups = [(seed, candidate) for seed in seeds for candidate in range(params.candidates)]
        self._normal = [
            _generator(seed, candidate, particle) for seed, candidate in groups for particle in range(params.particles)
        ]
        self._uniform = [_generator(seed, candidate, 0, _UNIFORM) for seed, candidate in groups]

    def draw(self) -> Draw:
        """The next draw."""
        normals = torch.empty(len(self._normal), *self._shape, dtype=torch.float32)
        for row, generator in zip(normals, self._normal, strict=True):
            # In place: nothing here that torch would share among threads (service.services.Services.load says why).
            torch.randn(self._shape, generator=generator, out=row)
        uniforms = torch.empty(len(self._uniform), dtype=torch.float64)
        for number, generator in zip(uniforms, self._uniform, strict=True):
            torch.rand((), generator=generator, dtype=torch.float64, out=number)
        return Draw(normals, uniforms)

    @property
    def states(self) -> Tensor:
        """(B + G, …) uint8: how far every generator is, to go on from by :meth:`go_on`."""
        return torch.stack([generator.get_state() for generator in (*self._normal, *self._uniform)])

    def go_on(self, states: Tensor) -> None:
        """Go on from where a source of the same parameters and shape was.

        Args:
            states: Of that source.
        """
        for generator, state in zip((*self._normal, *self._uniform), states, strict=True):
            # A copy: torch reads from the beginning of the storage, whatever part of it the tensor is.
            generator.set_state(state.clone())


def probes(params: SamplingParams, shape: Shape, index: int) -> Tensor:
    """Rademacher vectors e for Hutchinson's estimator at a network call, independent of the samples.

    Args:
        params: How many samples, and the seed.
        shape: Of one sample.
        index: Which call.

    Returns:
        (B, …) of ±1, float32, on the CPU.
    """
    signs = torch.empty(params.samples, *shape)
    for row in range(params.samples):
        seed = image_seed(params.seed, row // (params.candidates * params.particles))
        generator = _generator(seed, row % (params.candidates * params.particles), index, _PROBE)
        signs[row] = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return signs


def _generator(seed: int, *stream: int) -> torch.Generator:
    """A generator for a stream of a seed; the stream of zeros is the seed itself."""
    if any(stream):
        mixed = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
        seed = int(mixed >> np.uint64(1))
    return torch.Generator().manual_seed(seed)
