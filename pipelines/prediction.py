r"""Prediction types: what a network puts out, and the noise prediction ε̂ = (z − x̂0) / σ that the sampler wants.

With x the network's own noisy input and z = x / α the sampler's coordinate, σ the noise level in z:

| type     | input x       | ε̂                            | x̂0                               |
|----------|---------------|-------------------------------|-----------------------------------|
| epsilon  | z / √(1 + σ²) | the output                    | z − σ ε̂                           |
| v        | z / √(1 + σ²) | σ z / (1 + σ²) + v̂ / √(1 + σ²)| z / (1 + σ²) − σ / √(1 + σ²) · v̂  |
| sample   | z / √(1 + σ²) | (z − output) / σ              | the output                        |
| flow     | z / (1 + σ)   | (z + û) / (1 + σ)             | x − t û, with t = σ / (1 + σ)     |

ε̂ is computed from the output directly: at high noise x̂0 would lose the digits in which components differ.
"""

from enum import StrEnum

from torch import Tensor

from pipelines.noise import flow_time


class Prediction(StrEnum):
    """What the network was trained to put out; the values are those of diffusers' scheduler configs."""

    EPSILON = "epsilon"
    V = "v_prediction"
    SAMPLE = "sample"
    FLOW = "flow_prediction"


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1) in the type and on the device of ``like``, so that it scales its samples."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def network_input(kind: Prediction, z: Tensor, sigma: Tensor) -> Tensor:
    """The input x that a network of this kind expects.

    Args:
        kind: The prediction type.
        z: (B, …) noisy samples in variance-exploding coordinates.
        sigma: (B,) their noise levels.

    Returns:
        (B, …), z scaled to the network's own marginal.
    """
    sigma = per_sample(sigma, z)
    return z / (1 + sigma) if kind is Prediction.FLOW else z / (1 + sigma**2).sqrt()


def to_noise(kind: Prediction, output: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ from the network's output; shapes as in :func:`network_input`."""
    level = per_sample(sigma, z)
    match kind:
        case Prediction.EPSILON:
            return output
        case Prediction.V:
            return level / (1 + level**2) * z + output / (1 + level**2).sqrt()
        case Prediction.SAMPLE:
            return (z - output) / level
        case Prediction.FLOW:
            return (z + output) / (1 + level)


def to_denoised(kind: Prediction, output: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """x̂0 from the network's output; shapes as in :func:`network_input`."""
    level = per_sample(sigma, z)
    match kind:
        case Prediction.EPSILON:
            return z - level * output
        case Prediction.V:
            return z / (1 + level**2) - level / (1 + level**2).sqrt() * output
        case Prediction.SAMPLE:
            return output
        case Prediction.FLOW:
            return network_input(kind, z, sigma) - flow_time(level) * output


def from_denoised(kind: Prediction, denoised: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """The output that a network of this kind gives for x̂0: the inverse of :func:`to_denoised` for σ > 0."""
    level = per_sample(sigma, z)
    match kind:
        case Prediction.EPSILON:
            return (z - denoised) / level
        case Prediction.V:
            return (z / (1 + level**2) - denoised) * (1 + level**2).sqrt() / level
        case Prediction.SAMPLE:
            return denoised
        case Prediction.FLOW:
            return (network_input(kind, z, sigma) - denoised) / flow_time(level)
