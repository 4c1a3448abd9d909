r"""Gaussian mixtures as models: every quantity is exact, so samplers are tested against them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.card import Card, DataSpace, Shape
from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError
from pipelines.model import Condition
from pipelines.noise import karras_sigmas
from pipelines.prediction import Prediction, from_denoised, per_sample, to_noise


class GaussianMixture:
    r"""p(x) = Σ_k π_k N(x; μ_k, s_k² I), noised to q_σ(z) = Σ_k π_k N(z; μ_k, (s_k² + σ²) I).

    Args:
        means: (K, D).
        stds: (K,) s_k, or one number for all.
        weights: (K,) π_k, normalised here; None for equal weights.
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

    def differentiate_score(self, z: Tensor, sigma: Tensor, direction: Tensor) -> Tensor:
        """(∇² log q_σ(z)) e, (B, D) float64.

        Args:
            z: (B, D).
            sigma: (B,).
            direction: (B, D) e.
        """
        joint, variance = self._joint(z, sigma)
        share, e = joint.softmax(1), direction.double()
        # The scores of the modes are a_k = (μ_k − z)/variance_k: ∇² log q = Σ share_k (a_k a_kᵀ − I/variance_k) − s sᵀ.
        modes = (self.means.unsqueeze(0) - z.double().unsqueeze(1)) / variance.unsqueeze(2)
        score = (share.unsqueeze(2) * modes).sum(1)
        along = share * (modes * e.unsqueeze(1)).sum(2)
        curved = (along.unsqueeze(2) * modes).sum(1) - score * (score * e).sum(1, keepdim=True)
        return curved - (share / variance).sum(1, keepdim=True) * e

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) exact samples of p."""
        picked = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.means[picked] + self.variances[picked].sqrt().unsqueeze(1) * noise


class AnalyticModel:
    """A mixture with the interface of a trained model.

    With a prediction type it acts as a network of that type: x̂0 is converted to the network's output and back.

    Args:
        mixture: The unconditional density.
        prompts: The densities under the prompts that it knows.
        prediction: The prediction type that it acts as; None for x̂0 itself.
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
        """What is known about it."""
        return self._card

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """None: a mixture is a formula."""
        return ()

    def encode_prompts(self, texts: Sequence[str], adapters: Mapping[str, float] | None = None) -> Condition:
        """The index of each prompt's density; raises :class:`InvalidInputError` for an unknown prompt."""
        for text in texts:
            if text not in self._densities:
                detail = f"this model knows only the prompts {', '.join(map(repr, self._order))}; got {text!r}"
                raise InvalidInputError(detail, field=("prompt",))
        return {"density": torch.tensor([self._order.index(text) for text in texts])}

    def predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """(z − E[x | z]) / σ under each row's density."""
        estimate = torch.empty(z.shape, dtype=torch.float64)
        for index in condition["density"].unique().tolist():
            rows = condition["density"] == index
            estimate[rows] = self._densities[self._order[index]].denoised(z[rows], sigma[rows])
        if self._prediction is not None:
            output = from_denoised(self._prediction, estimate, z.double(), sigma)
            return to_noise(self._prediction, output, z.double(), sigma).to(z)
        return ((z.double() - estimate) / per_sample(sigma, estimate)).to(z)

    def differentiate_noise(
        self, z: Tensor, sigma: Tensor, condition: Condition, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ε̂ = −σ s and (∂ε̂/∂z) e = −σ (∇² log q) e, in closed form."""
        derivative = torch.empty(z.shape, dtype=torch.float64)
        for index in condition["density"].unique().tolist():
            rows = condition["density"] == index
            density = self._densities[self._order[index]]
            derivative[rows] = density.differentiate_score(z[rows], sigma[rows], direction[rows])
        return self.predict_noise(z, sigma, condition), (-per_sample(sigma, derivative) * derivative).to(z)

    def own_sigmas(self, steps: int, shape: Shape) -> Tensor:
        """Karras' grid."""
        return karras_sigmas(steps, self._card.sigma_min, self._card.sigma_max)

    def decode(self, z: Tensor) -> Tensor:
        """Raises :class:`InvalidInputError`: vectors are not pictures."""
        raise InvalidInputError("an analytic mixture has vectors, not pictures", field=("model",))

    def preview(self, z: Tensor) -> Tensor:
        """See :meth:`decode`."""
        return self.decode(z)

    def encode(self, images: Tensor) -> Tensor:
        """Raises :class:`InvalidInputError`: pictures are not vectors."""
        raise InvalidInputError("an analytic mixture has vectors, not pictures", field=("model",))

    def painted(self, shape: Shape, image: Tensor | None = None, mask: Tensor | None = None) -> Condition:
        """{}: it does not inpaint."""
        return {}
