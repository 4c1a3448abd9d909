r"""Gaussian mixtures as models: every quantity is exact, so they are the truth that samplers are tested against."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError
from pipelines.model import Card, Condition, DataSpace, Shape
from pipelines.noise import karras_sigmas
from pipelines.prediction import Prediction, from_denoised, to_denoised


class GaussianMixture:
    r"""p(x) = Σ_k π_k N(x; μ_k, s_k² I), noised to q_σ(z) = Σ_k π_k N(z; μ_k, (s_k² + σ²) I).

    Args:
        means: (K, D).
        stds: (K,) s_k, or one number for all.
        weights: (K,) π_k, normalised here; None for equal ones.
    """

    def __init__(self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        self.means = means.double()
        count = len(means)
        self.variances = torch.as_tensor(stds, dtype=torch.float64).expand(count) ** 2
        weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
        self.log_weights = (weights / weights.sum()).log()

    @property
    def dimension(self) -> int:
        """D."""
        return self.means.shape[1]

    def _joint(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log π_k N(z; μ_k, (s_k² + σ²) I), (B, K), and the variances s_k² + σ², (B, K)."""
        variance = self.variances + sigma.double().unsqueeze(1) ** 2
        squares = torch.cdist(z.double(), self.means, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        normal = -squares / (2 * variance) - self.dimension / 2 * (2 * math.pi * variance).log()
        return self.log_weights + normal, variance

    def log_density(self, z: Tensor, sigma: Tensor) -> Tensor:
        """log q_σ(z) in nats.

        Args:
            z: (B, D).
            sigma: (B,), 0 for the data's own density.

        Returns:
            (B,) float64.
        """
        return self._joint(z, sigma)[0].logsumexp(1)

    def score(self, z: Tensor, sigma: Tensor) -> Tensor:
        """∇ log q_σ(z), (B, D) float64."""
        joint, variance = self._joint(z, sigma)
        pull = joint.softmax(1) / variance
        return pull @ self.means - pull.sum(1, keepdim=True) * z.double()

    def denoised(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[x | z] = z + σ² ∇ log q_σ(z), by Tweedie's formula; (B, D) float64."""
        return z.double() + sigma.double().unsqueeze(1) ** 2 * self.score(z, sigma)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) exact samples of p."""
        picked = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.means[picked] + self.variances[picked].sqrt().unsqueeze(1) * noise


class AnalyticModel:
    """A mixture behind the protocol of a trained model.

    With a prediction type it goes the way of a network of that kind: its output is formed and turned back into x̂0.

    Args:
        mixture: The unconditional density.
        prompts: The densities of the prompts that it knows.
        prediction: As what kind of network it answers; None for x̂0 itself.
        error: m(σ); None for the Gaussian fallback at ``std``.
        sigma_min: The smallest level.
        sigma_max: The largest.
        std: σ_d of the fallback.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        prompts: dict[str, GaussianMixture] | None = None,
        *,
        prediction: Prediction | None = None,
        error: DenoisingError | None = None,
        sigma_min: float = 0.03,
        sigma_max: float = 14.6,
        std: float = 1.0,
    ) -> None:
        self._densities = {"": mixture} | (prompts or {})
        self._order = list(self._densities)
        self._prediction = prediction
        self._card = Card(
            space=DataSpace("vector", mixture.dimension),
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            error=error or DenoisingError.gaussian(std, sigma_min, sigma_max),
            width=1,
            height=1,
            takes_prompts=bool(prompts),
            parameters=0,
            calibrated=error is not None,
        )

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """None: it is a formula."""
        return ()

    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """The index of each prompt's density; :class:`InvalidInputError` for a prompt that it does not know."""
        for text in texts:
            if text not in self._densities:
                detail = f"this model knows only the prompts {', '.join(map(repr, self._order))}; got {text!r}"
                raise InvalidInputError(detail, field=("prompt",))
        return {"density": torch.tensor([self._order.index(text) for text in texts])}

    def denoised(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """E[x | z] under each row's density."""
        estimate = torch.empty(z.shape, dtype=torch.float64)
        for index in condition["density"].unique().tolist():
            rows = condition["density"] == index
            estimate[rows] = self._densities[self._order[index]].denoised(z[rows], sigma[rows])
        if self._prediction is not None:
            output = from_denoised(self._prediction, estimate, z.double(), sigma)
            estimate = to_denoised(self._prediction, output, z.double(), sigma)
        return estimate.to(z)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Karras' grid."""
        return karras_sigmas(steps, self._card.sigma_min, self._card.sigma_max)

    def sample_shape(self, width: int, height: int) -> Shape:
        """(D,) whatever the size."""
        return (self._card.space.channels,)

    def decode(self, z: Tensor) -> Tensor:
        """Vectors are no pictures: :class:`InvalidInputError`."""
        raise InvalidInputError("an analytic mixture has vectors, not pictures", field=("model",))

    def preview(self, z: Tensor) -> Tensor:
        """As :meth:`decode`."""
        return self.decode(z)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures are no vectors: :class:`InvalidInputError`."""
        raise InvalidInputError("an analytic mixture has vectors, not pictures", field=("model",))

    def painted(self, shape: Shape, image: Tensor | None = None, mask: Tensor | None = None) -> Condition:
        """Nothing."""
        return {}
