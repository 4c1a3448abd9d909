"""Networks trained on a variance-preserving schedule: from one forward to the noise prediction."""

from collections.abc import Callable

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from pipelines.families.folder import prediction_of
from pipelines.noise import noise_table, timestep_sigmas
from pipelines.prediction import network_input, to_noise

Forward = Callable[[Tensor, Tensor], Tensor]
"""(x, timesteps) → the network's output, in the network's own scaling."""


class VariancePreserving:
    """The scaling and the timesteps of a schedule.

    Args:
        scheduler: A diffusers scheduler; only the betas and the prediction type of its config are read.
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        self._prediction = prediction_of(scheduler.config)
        self._table = noise_table(scheduler.config)
        self.sigma_min, self.sigma_max = self._table.sigma_min, self._table.sigma_max

    def predict_noise(self, forward: Forward, z: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """ε̂ by one forward, each row at its own timestep; shapes as in ``Denoiser.predict_noise``."""
        x = network_input(self._prediction, z, sigma).to(dtype)
        output = forward(x, self._table.timestep(sigma).to(torch.float32))
        return to_noise(self._prediction, output.to(z.dtype), z, sigma)

    def own_sigmas(self, steps: int) -> Tensor:
        """The levels of equally spaced timesteps, last to first."""
        return timestep_sigmas(steps, self._table)
