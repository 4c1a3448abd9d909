"""Compiling a model when it is loaded, so that no request waits for the compiler."""

from typing import Final

from pipelines.composition import Prompt
from pipelines.model import Model
from pipelines.params import SamplingParams
from pipelines.sampler import sample

_NAME: Final = "model"


def compile_now(model: Model) -> None:
    """Draw two pictures in one step, which makes torch compile the network for all sizes and numbers of rows.

    The pictures are wider than high and more than one: a dimension that is equal to another, or is 1, would be compiled
    as a constant.
    """
    card = model.card
    params = SamplingParams(
        steps=1, guidance_scale=1.0, num_images=2, width=card.width + card.multiple, height=card.height
    )
    sample(Prompt("", _NAME), params, {_NAME: model})
