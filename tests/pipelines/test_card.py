"""What a card answers by itself: plain values, no network."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.card import DEFAULT_GUIDANCE_SCALES, ONE_SIZE, Card, DataSpace, Defaults, Guidance
from pipelines.entry import Entry
from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError
from pipelines.params import SamplingParams

LATENT = Card(
    space=DataSpace("latent", channels=4, factor=8, codec="abc"),
    sigma_min=0.03,
    sigma_max=14.6,
    error=DenoisingError.gaussian(1.0, 0.03, 14.6),
    width=512,
    height=512,
    takes_prompts=True,
    parameters=1,
    calibrated=False,
    multiple=16,
)
BOUNDED = replace(LATENT, max_side=64)
PIXEL = replace(LATENT, space=DataSpace("pixel", 3), width=32, height=24, multiple=ONE_SIZE)
VECTOR = replace(LATENT, space=DataSpace("vector", 5), multiple=1)


def test_the_shape_counts_latent_cells_rows_first():
    assert LATENT.sample_shape(width=64, height=32) == (4, 4, 8)
    assert PIXEL.sample_shape(width=32, height=24) == (3, 24, 32)


@given(st.integers(-100, 10_000), st.integers(-100, 10_000))
def test_a_vector_has_no_size(width, height):
    assert VECTOR.sample_shape(width, height) == (5,)


@given(st.integers(-40, 200), st.integers(-40, 200))
def test_exactly_the_positive_multiples_up_to_the_longest_side_are_drawn(width, height):
    drawn = all(side in (16, 32, 48, 64) for side in (width, height))
    if drawn:
        assert BOUNDED.sample_shape(width, height) == (4, height / 8, width / 8)
    else:
        with pytest.raises(InvalidInputError):
            BOUNDED.sample_shape(width, height)


@pytest.mark.parametrize(
    ("card", "size", "message", "side"),
    [
        (LATENT, (24, 16), "width must be a positive multiple of 16, got 24", "width"),
        (LATENT, (16, 0), "height must be a positive multiple of 16, got 0", "height"),
        (LATENT, (-16, 16), "width must be a positive multiple of 16, got -16", "width"),
        (BOUNDED, (64, 80), "height must be at most 64 for this model, got 80", "height"),
        (BOUNDED, (80, 80), "width must be at most 64 for this model, got 80", "width"),
        (PIXEL, (32, 32), "this model draws 32×24 only, got 32×32", "height"),
        (PIXEL, (24, 32), "this model draws 32×24 only, got 24×32", "width"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused_at_the_side_at_fault(card, size, message, side):
    with pytest.raises(InvalidInputError) as refused:
        card.sample_shape(*size)
    assert str(refused.value) == message
    assert refused.value.field == (side,)


def test_a_card_is_plain_values():
    plain = asdict(LATENT)
    read = json.loads(json.dumps(plain))
    # JSON has lists where a card has tuples.
    assert DenoisingError(**{key: tuple(value) for key, value in read.pop("error").items()}) == LATENT.error
    assert DataSpace(**read.pop("space")) == LATENT.space
    assert read == {key: plain[key] for key in read if key != "adapters"} | {"adapters": []}


def test_every_kind_of_guidance_has_a_default_scale_and_the_default_is_one_everywhere():
    assert set(DEFAULT_GUIDANCE_SCALES) == set(Guidance)
    assert DEFAULT_GUIDANCE_SCALES[Guidance.NONE] == 1  # the sampler refuses any other
    params, entry = SamplingParams(), Entry("m", source=None)
    assert Defaults() == Defaults(params.steps, params.guidance_scale, params.guidance_start, params.kernel)
    assert (entry.steps, entry.kernel) == (params.steps, params.kernel)
