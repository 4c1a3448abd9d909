"""How a request is sampled, whatever it composes."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipelines.card import DEFAULT_GUIDANCE_SCALES, DEFAULT_KERNEL, DEFAULT_STEPS, Guidance
from pipelines.errors import InvalidInputError
from pipelines.kernel import Kernel
from pipelines.noise import Grid

SEED_LIMIT: Final = 2**53
MAX_STEPS: Final = 1000
MAX_CANDIDATES: Final = 16
MAX_PARTICLES: Final = 64
# 0.29 × 100 is 28.999999999999996 in binary; nobody who asks for it means 28.
_ROUNDING: Final = 1e-9


class Select(StrEnum):
    """Where the signs come from by which the best of several candidates is chosen; see :mod:`pipelines.choice`."""

    LIFT = "lift"
    """The steps taken: no further network call."""
    DENSITY = "density"
    """Fresh noise over the finished pictures: a few further calls."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        steps: N, the number of network calls; 1 to 1000.
        guidance_scale: w of classifier-free guidance; 1 is none.
        guidance_start: The share of the N steps, from the first on, that are taken without guidance (w = 1), in [0, 1].
            Guidance at the highest noise levels narrows what is drawn before it is decided (Kynkäänniemi et al., 2024).
        seed: In [0, 2**53). Image i is drawn from seed + i, so n images at once equal n single ones.
        num_images: n ≥ 1.
        width: Of the pictures, in pixels; None for the first model's native size.
        height: Likewise.
        kernel: Which transition kernel.
        grid: How the noise levels are spaced; None for what the first component's model likes best.
        negative_prompt: What guidance leads away from; empty for the unconditional branch.
        strength: How much of a known picture's own noise levels are sampled anew, in [0, 1]: of N steps the last
            ⌊N · strength⌋ are taken, from the picture noised as they begin. 1, from pure noise.
        candidates: How many pictures are drawn for each one that is returned.
        select: What the best of them is chosen by.
        particles: K, Feynman–Kac particles for each candidate (:mod:`pipelines.particles`); 1 for none.
    """

    steps: int = DEFAULT_STEPS
    guidance_scale: float = DEFAULT_GUIDANCE_SCALES[Guidance.CLASSIFIER_FREE]
    guidance_start: float = 0.0
    seed: int = 0
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    kernel: Kernel = DEFAULT_KERNEL
    grid: Grid | None = None
    negative_prompt: str = ""
    strength: float = 1.0
    candidates: int = 1
    select: Select = Select.LIFT
    particles: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidInputError(f"steps must be 1 to {MAX_STEPS}, got {self.steps}", field=("steps",))
        if not 0 <= self.seed < SEED_LIMIT:
            raise InvalidInputError(f"seed must be 0 to {SEED_LIMIT - 1}, got {self.seed}", field=("seed",))
        if self.num_images < 1:
            raise InvalidInputError(f"num_images must be at least 1, got {self.num_images}", field=("num_images",))
        if not math.isfinite(self.guidance_scale):
            detail = f"guidance_scale must be finite, got {self.guidance_scale}"
            raise InvalidInputError(detail, field=("guidance_scale",))
        for name, share in (("strength", self.strength), ("guidance_start", self.guidance_start)):
            if not 0 <= share <= 1:
                raise InvalidInputError(f"{name} must be 0 to 1, got {share}", field=(name,))
        for name, value, most in (
            ("candidates", self.candidates, MAX_CANDIDATES),
            ("particles", self.particles, MAX_PARTICLES),
        ):
            if not 1 <= value <= most:
                raise InvalidInputError(f"{name} must be 1 to {most}, got {value}", field=(name,))

    @property
    def calls(self) -> int:
        """The steps taken: ⌊N · strength⌋."""
        return int(self.steps * self.strength + _ROUNDING)

    def guidance(self, index: int) -> float:
        """w of a step, counted from the first that is taken."""
        unguided = int(self.steps * self.guidance_start + _ROUNDING)
        return 1.0 if self.steps - self.calls + index < unguided else self.guidance_scale

    @property
    def samples(self) -> int:
        """How many samples are drawn together: images × candidates × particles."""
        return self.num_images * self.candidates * self.particles


def image_seed(seed: int, index: int) -> int:
    """The seed of image ``index`` of a request: the one with which a request of one image draws the same."""
    return (seed + index) % SEED_LIMIT
