"""What a request comes to before any network runs, from cards alone; and what is refused, and where."""

from dataclasses import replace

import pytest

from pipelines.card import Card, DataSpace, Guidance
from pipelines.composition import MAX_DEPTH, MAX_LEAVES, And, AtLeast, Average, Not, Or, Product, Prompt, Xor
from pipelines.errors import IncompatibleModelsError, InvalidInputError
from pipelines.kernel import DenoisingError, Kernel
from pipelines.params import SamplingParams, Select
from pipelines.plan import JUDGED_LEVELS, Row, make_plan
from tests.pipelines.mixtures import balanced

CARD = Card(
    space=DataSpace("latent", channels=4, factor=8, codec="abc"),
    sigma_min=0.03,
    sigma_max=14.6,
    error=DenoisingError.gaussian(1.0, 0.03, 14.6),
    width=64,
    height=32,
    takes_prompts=True,
    parameters=1,
    calibrated=False,
    adapters=("ink",),
    multiple=16,
)
CARDS = {
    "m": CARD,
    "n": replace(CARD, width=16, height=16),
    "distilled": replace(CARD, guidance=Guidance.DISTILLED),
    "plain": replace(CARD, guidance=Guidance.NONE),
    "silent": replace(CARD, takes_prompts=False),
    "wide": replace(CARD, space=replace(CARD.space, channels=16)),
    "vector": replace(CARD, space=DataSpace("vector", 5)),
    "high": replace(CARD, sigma_min=20.0, sigma_max=80.0),
}
CAT, DOG, FOX = Prompt("cat", "m"), Prompt("dog", "m"), Prompt("fox", "n")
UNGUIDED = SamplingParams(guidance_scale=1.0)


def plan(expression, params=None, **options):
    return make_plan(expression, params or SamplingParams(), CARDS, **options)


# --- Rows, slots, references -------------------------------------------------------------------------------------


def test_rows_are_distinct_and_references_are_shared():
    rows = Row("cat", "m"), Row("dog", "m"), Row("fox", "n"), Row("", "m"), Row("", "n")
    planned = plan(Or((CAT, And((DOG, CAT)), FOX)))
    assert planned.rows == rows
    assert planned.slots == (0, 1, 0, 2, 3, 4)
    assert planned.program.branch == (0, 0, 0, 1)
    assert planned.models == ("m", "n")
    assert planned.lead == "m"


def test_an_empty_prompt_is_its_own_reference():
    planned = plan(Or((CAT, Prompt("", "m"))))
    assert planned.rows == (Row("cat", "m"), Row("", "m"))
    assert planned.slots == (0, 1, 1)
    assert planned.program.branch == (0, 0)


def test_references_are_left_out_where_nothing_needs_them():
    expression = Or((CAT, And((DOG, CAT))))
    planned = plan(expression, UNGUIDED)
    assert planned.rows == (Row("cat", "m"), Row("dog", "m"))
    assert planned.slots == (0, 1, 0)
    assert planned.program.branch == ()
    assert planned.lifted == (False, False, False)


@pytest.mark.parametrize(
    ("expression", "params"),
    [
        (Or((CAT, Not(DOG))), UNGUIDED),
        (And((CAT, Xor((CAT, DOG)))), UNGUIDED),
        (Average((CAT, Product((DOG,)))), UNGUIDED),
        (Or((CAT, DOG)), replace(UNGUIDED, candidates=2)),
        (Or((CAT, DOG)), replace(UNGUIDED, guidance_scale=2.0)),
    ],
)
def test_references_are_asked_where_operators_guidance_or_a_choice_need_them(expression, params):
    planned = plan(expression, params)
    assert planned.rows[-1] == Row("", "m")
    assert set(planned.program.branch) == {0}
    assert all(planned.lifted)


def test_a_leaf_s_own_negative_prompt_comes_before_the_request_s():
    own = Prompt("cat", "m", negative="dark")
    planned = plan(Or((own, DOG)), SamplingParams(negative_prompt="blurry"))
    assert planned.rows == (Row("cat", "m"), Row("dog", "m"), Row("dark", "m"), Row("blurry", "m"))
    assert planned.program.branch == (0, 1)
    assert plan(Prompt("cat", "m", negative=""), SamplingParams(negative_prompt="blurry")).rows[1] == Row("", "m")


def test_a_reference_wears_its_leaf_s_loras():
    inked = Prompt("cat", "m", (("ink", 0.5),))
    planned = plan(Or((CAT, inked)))
    assert planned.rows == (
        Row("cat", "m"),
        Row("cat", "m", inked.adapters),
        Row("", "m"),
        Row("", "m", inked.adapters),
    )
    assert planned.program.branch == (0, 1)


def test_a_model_without_free_guidance_is_its_own_reference_and_has_no_lift():
    planned = plan(Or((CAT, Prompt("dog", "distilled"))))
    assert planned.rows == (Row("cat", "m"), Row("dog", "distilled"), Row("", "m"))
    assert planned.slots == (0, 1, 2, 1)
    assert planned.lifted == (True, False)


# --- Work --------------------------------------------------------------------------------------------------------


def test_work_counts_network_rows():
    expression = Or((CAT, And((DOG, CAT)), FOX))  # five rows: three prompts, two references
    params = SamplingParams(steps=10, num_images=2, candidates=3, particles=4)
    planned = plan(expression, params)
    assert planned.params.samples == 24
    assert planned.parts == {("m", (4, 4, 8)): 3 * 24, ("n", (4, 4, 8)): 2 * 24}
    assert planned.calls == planned.steps == 10
    assert planned.work == 5 * 24 * 10
    # On fresh noise the particles that are left are judged: one of each group.
    judged = plan(expression, replace(params, select=Select.DENSITY))
    assert judged.calls == 10 + JUDGED_LEVELS
    assert judged.work == 5 * (24 * 10 + 2 * 3 * JUDGED_LEVELS)
    assert plan(expression, replace(params, select=Select.DENSITY, candidates=1)).judged == 0
    assert plan(expression, replace(params, strength=0.29), on_canvas=True).work == 5 * 24 * 2


def test_sizes_are_the_first_model_s_unless_asked_for():
    assert (plan(Or((FOX, CAT))).width, plan(Or((FOX, CAT))).height) == (16, 16)
    assert plan(Or((FOX, CAT))).shape == (4, 2, 2)
    asked = plan(CAT, SamplingParams(width=32, height=48))
    assert (asked.width, asked.height, asked.shape) == (32, 48, (4, 6, 4))
    with pytest.raises(InvalidInputError) as refused:
        plan(CAT, SamplingParams(width=24))
    assert refused.value.field == ("width",)


def test_a_known_picture_is_retraced_along_the_mean_of_its_leaves_and_reported_as_asked():
    expression = Or((CAT, Not(DOG)))
    planned = plan(expression, UNGUIDED, on_canvas=True, retrace=True)
    average = plan(Average((CAT, DOG)), replace(UNGUIDED, candidates=2))
    assert planned.retrace
    assert planned.program.nodes == average.program.nodes
    assert planned.reported.places.keys() == plan(expression).program.places.keys()


# --- Refusals ----------------------------------------------------------------------------------------------------


def deep(levels):
    expression = CAT
    for _ in range(levels):
        expression = Not(expression)
    return expression


PLAIN, SILENT = Prompt("fox", "plain"), Prompt("fox", "silent")
REFUSED = {
    "too deep": (Or((CAT, deep(MAX_DEPTH))), {}, ("terms", 1) + ("terms", 0) * MAX_DEPTH),
    "too many leaves": (Or((Or((CAT,) * MAX_LEAVES), DOG)), {}, ("terms",)),
    "balanced below the root": (Or((CAT, balanced((CAT, DOG)))), {}, ("terms", 1, "method")),
    "balanced beneath not": (Not(balanced((CAT, DOG))), {}, ("terms", 0, "method")),
    "not without a reference": (Or((CAT, Not(And((DOG, PLAIN))))), {}, ("terms", 1, "terms", 0, "terms", 1, "model")),
    "xor without a reference": (Xor((CAT, Prompt("fox", "distilled"))), {}, ("terms", 1, "model")),
    "product without a reference": (And((DOG, Product((PLAIN, CAT)))), {}, ("terms", 1, "terms", 0, "model")),
    "candidates without a reference": (Or((CAT, PLAIN)), {"candidates": 2}, ("terms", 1, "model")),
    "particles of a balanced and": (balanced((CAT, DOG)), {"particles": 2}, ("particles",)),
    "or without noise": (Or((CAT, DOG)), {"kernel": Kernel.DETERMINISTIC}, ("kernel",)),
    "soft and without noise": (Average((CAT, And((CAT, DOG)))), {"kernel": Kernel.DETERMINISTIC}, ("kernel",)),
    "at least without noise": (AtLeast(1, (CAT, DOG)), {"kernel": Kernel.DETERMINISTIC}, ("kernel",)),
    "balanced without noise": (balanced((CAT, DOG)), {"kernel": Kernel.DETERMINISTIC}, ("kernel",)),
    "particles without noise": (Average((CAT, DOG)), {"kernel": Kernel.DETERMINISTIC, "particles": 2}, ("kernel",)),
    "a prompt to a model that takes none": (Or((CAT, SILENT)), {}, ("terms", 1, "prompt")),
    "a negative prompt to a model that takes none": (
        Or((CAT, Prompt("", "silent"))),
        {"negative_prompt": "x"},
        ("negative_prompt",),
    ),
    "an own negative prompt to a model that takes none": (
        Or((CAT, Prompt("", "silent", negative="x"))),
        {},
        ("terms", 1, "negative_prompt"),
    ),
    "a negative prompt without guidance": (
        Prompt("fox", "plain", negative="x"),
        {},
        ("negative_prompt",),
    ),
    "guidance where there is none": (Or((CAT, PLAIN)), {"guidance_scale": 4.0}, ("guidance_scale",)),
    "a lora that the model lacks": (Not(Prompt("cat", "m", (("clay", 1.0),))), {}, ("terms", 0, "lora")),
    "strength without a picture": (CAT, {"strength": 0.5}, ("strength",)),
}


@pytest.mark.parametrize(("expression", "options", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_meaning_is_refused_where_it_stands(expression, options, path):
    with pytest.raises(InvalidInputError) as refused:
        plan(expression, SamplingParams(**{"guidance_scale": 1.0} | options))
    assert refused.value.field == path


def test_the_density_of_a_picture_needs_noise():
    params = replace(UNGUIDED, kernel=Kernel.DETERMINISTIC)
    assert plan(CAT, params).steps
    with pytest.raises(InvalidInputError) as refused:
        plan(CAT, params, on_canvas=True, retrace=True)
    assert refused.value.field == ("kernel",)


@pytest.mark.parametrize(
    "expression",
    [Average((CAT, DOG)), Product((CAT, DOG)), Not(CAT), Or((CAT,)), And((CAT,)), Product((Not(CAT), DOG))],
)
def test_what_weighs_nothing_by_densities_needs_no_noise(expression):
    assert plan(expression, SamplingParams(kernel=Kernel.DETERMINISTIC)).work


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("m", "wide"), r"m: latent, 4 channels.*wide: latent, 16 channels"),
        (("m", "vector"), r"m: latent, 4 channels.*vector: vector, 5 channels"),
        (("m", "high"), r"m: σ 0\.03–14\.6; high: σ 20–80"),
    ],
)
def test_models_that_share_no_space_or_level_are_refused(names, told):
    with pytest.raises(IncompatibleModelsError, match=told):
        plan(Or(tuple(Prompt("cat", name) for name in names)))


@pytest.mark.parametrize(
    ("name", "value"), [("candidates", 0), ("candidates", 17), ("particles", 0), ("particles", 65)]
)
def test_candidates_and_particles_are_bounded(name, value):
    with pytest.raises(InvalidInputError) as refused:
        SamplingParams(**{name: value})
    assert refused.value.field == (name,)
