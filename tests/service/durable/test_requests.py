"""What makes a job survives being written down: the same plan, asks, rendering and picture are read back."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.card import Card, DataSpace, Guidance
from pipelines.composition import And, Average, Prompt
from pipelines.kernel import DenoisingError, Kernel
from pipelines.noise import Grid
from pipelines.params import SEED_LIMIT, SamplingParams, Select
from pipelines.plan import make_plan
from service.durable.blobs import UnreadableError
from service.durable.requests import read_request, read_source, write_request, write_source
from service.durable.trees import read_tree, write_tree
from service.engine.job import Ask, Source
from service.metadata import Origin
from service.pictures import ImageFormat
from service.rendering import Rendering
from tests.pipelines.trees import MODELS, ROOTS

CARD = Card(
    DataSpace("latent", 4, 2, "autoencoder"),
    0.01,
    80.0,
    DenoisingError((0.01, 80.0), (0.1, 1 / 3)),
    width=16,
    height=16,
    takes_prompts=True,
    parameters=1,
    calibrated=True,
    adapters=("ink",),
    max_side=512,
)
CARDS = dict.fromkeys(MODELS, CARD)
LEAF = Prompt("a", "m")
SHARES = st.floats(0, 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
PARAMS = st.builds(
    SamplingParams,
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(-10, 30),
    guidance_start=SHARES,
    seed=st.integers(0, SEED_LIMIT - 1),
    num_images=st.integers(1, 9),
    width=st.none() | st.sampled_from([16, 32]),
    height=st.none() | st.sampled_from([16, 32]),
    kernel=st.sampled_from([Kernel.CALIBRATED, Kernel.POSTERIOR, Kernel.EXACT, Kernel.EULER_MARUYAMA]),
    grid=st.none() | st.sampled_from(Grid),
    negative_prompt=TEXTS,
    strength=SHARES,
    candidates=st.integers(1, 4),
    select=st.sampled_from(Select),
    particles=st.just(1),
)
ASKS = st.builds(
    Ask,
    caller=TEXTS,
    priority=st.integers(0, 9),
    timeout_s=st.floats(0.1, 1e9) | st.just(math.inf),
    keep_trajectory=st.booleans(),
    keep_lift_maps=st.booleans(),
    preview_every=st.integers(0, 9),
    previews=st.integers(0, 3),
)
ORIGINS = st.builds(
    Origin,
    image_sha256=st.none() | st.just("ab" * 32),
    mask_sha256=st.none() | st.just("cd" * 32),
    painted=st.sampled_from(["white", "black", "clear"]),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
    feather=st.floats(0, 64),
)
RENDERINGS = st.builds(
    Rendering,
    image_format=st.sampled_from(ImageFormat),
    by_url=st.booleans(),
    quality=st.none() | st.integers(0, 100),
    task=st.none() | TEXTS,
    origin=st.none() | ORIGINS,
)


def same(plan, other):
    """Whether two plans are the same; programs have no equality of their own, so their printed forms are compared."""
    return repr(plan) == repr(other)


@settings(max_examples=60, deadline=None)
@given(ROOTS, PARAMS, ASKS, RENDERINGS)
def test_a_request_is_read_as_it_was_written(tree, params, ask, rendering):
    plan = make_plan(tree, params, CARDS, on_canvas=True)
    read, read_ask, read_rendering = read_request(write_request(plan, ask, rendering, on_canvas=True))
    assert (read_ask, read_rendering) == (ask, rendering)
    assert (read.expression, read.params, read.cards) == (tree, params, plan.cards)
    assert same(read, plan)


@settings(max_examples=60, deadline=None)
@given(ROOTS)
def test_a_tree_is_json(tree):
    assert read_tree(json.loads(json.dumps(write_tree(tree), allow_nan=False))) == tree


def test_loras_and_own_negative_prompts_are_kept():
    tree = Average((Prompt("a", "m", (("ink", 0.1), ("wash", -1.0)), "blur"), Prompt("", "n", (), "")))
    assert read_tree(json.loads(json.dumps(write_tree(tree)))) == tree


def test_a_density_and_one_model_of_another_guidance():
    card = Card(**{name: getattr(CARD, name) for name in Card.__slots__} | {"guidance": Guidance.NONE, "multiple": 0})
    plan = make_plan(LEAF, SamplingParams(guidance_scale=1.0), {"m": card}, on_canvas=True, retrace=True)
    read, _, _ = read_request(write_request(plan, Ask(), Rendering(), on_canvas=True))
    assert read.retrace
    assert same(read, plan)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told | {"version": 2},
        lambda told: told | {"later": 1},
        lambda told: told | {"cards": {}},
        lambda told: told | {"expression": {"operator": "nand", "terms": []}},
        lambda told: told | {"expression": {"prompt": "a"}},
        lambda told: told | {"params": told["params"] | {"steps": 0}},
        lambda told: told["params"],
    ],
)
def test_what_this_version_cannot_read_is_refused(change):
    plan = make_plan(And((LEAF, Prompt("b", "m"))), SamplingParams(), CARDS)
    told = json.loads(write_request(plan, Ask(), Rendering(), on_canvas=False))
    with pytest.raises(UnreadableError):
        read_request(json.dumps(change(told)))


def arrays(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mask", [None, arrays(6, 8)])
def test_a_known_picture_is_read_as_it_was_written(mask):
    source = Source(arrays(6, 8, 3), mask, None if mask is None else mask // 2, 7, 5, retrace=mask is None)
    read = read_source(write_source(source))
    assert (read.width, read.height, read.retrace) == (7, 5, mask is None)
    assert np.array_equal(read.pixels, source.pixels)
    assert read.mask is None if mask is None else np.array_equal(read.mask, mask)
    assert read.blend is None if mask is None else np.array_equal(read.blend, source.blend)


@pytest.mark.parametrize("blob", [b"", b"not a file", b"\x00" * 64])
def test_a_broken_blob_is_refused(blob):
    with pytest.raises(UnreadableError):
        read_source(blob)
