"""How a request is sampled, whatever it composes."""

import math
from dataclasses import dataclass
from typing import Final

from pipelines.errors import InvalidInputError
from pipelines.kernel import Kernel
from pipelines.noise import Grid

SEED_LIMIT: Final = 2**53
MAX_STEPS: Final = 1000
# 0.29 × 100 is 28.999999999999996 in binary; nobody who asks for it means 28.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        steps: N, the number of network calls; 1 to 1000.
        guidance_scale: w of classifier-free guidance; 1 is none.
        seed: In [0, 2**53). Image i is drawn from seed + i, so n images at once equal n single ones.
        num_images: n ≥ 1.
        width: Of the pictures, in pixels; None for the first model's native size.
        height: Likewise.
        kernel: Which transition kernel.
        grid: How the noise levels are spaced; None for what the first component's model likes best.
        negative_prompt: What guidance leads away from; empty for the unconditional branch.
        strength: How much of a known picture's own noise levels are sampled anew, in [0, 1]: of N steps the last
            ⌊N · strength⌋ are taken, from the picture noised as they begin. 1, from pure noise.
    """

    steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 0
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    kernel: Kernel = Kernel.CALIBRATED
    grid: Grid | None = None
    negative_prompt: str = ""
    strength: float = 1.0

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
        if not 0 <= self.strength <= 1:
            raise InvalidInputError(f"strength must be 0 to 1, got {self.strength}", field=("strength",))

    @property
    def calls(self) -> int:
        """The steps taken: ⌊N · strength⌋."""
        return int(self.steps * self.strength + _ROUNDING)


def image_seed(seed: int, index: int) -> int:
    """The seed of image ``index`` of a request: the one with which a request of one image draws the same."""
    return (seed + index) % SEED_LIMIT
