import pytest

from pipelines.catalog import Defaults
from pipelines.composition import And, Or, Prompt
from pipelines.kernel import Kernel
from service.schemas import AndRequest, DensityRequest, OrRequest, component_names

DEFAULTS = Defaults(steps=25, guidance_scale=4.0, kernel=Kernel.CALIBRATED)


def test_a_bare_string_is_a_prompt_to_the_default_model():
    request = OrRequest(components=["a cat", {"prompt": "a dog", "model": "sd", "weight": 0.5}], temperature=2)
    assert request.expression("shapes") == Or((Prompt("a cat", "shapes"), Prompt("a dog", "sd")), 2.0, (0.0, 0.5))


def test_lift_adds_to_the_first_component_s_weight():
    request = AndRequest(components=[{"prompt": "a", "weight": 1}, "b"], lift=2)
    assert request.expression("m") == And((Prompt("a", "m"), Prompt("b", "m")), (3.0, 0.0))


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {OrRequest(components=["a"]).params(DEFAULTS).seed for _ in range(8)}
    assert len(seeds) == 8
    assert OrRequest(components=["a"], seed=0).params(DEFAULTS).seed == 0


def test_what_is_not_said_is_as_the_model_has_it():
    told = OrRequest(components=["a"], steps=7, kernel="posterior").params(DEFAULTS)
    assert (told.steps, told.guidance_scale, told.kernel) == (7, DEFAULTS.guidance_scale, Kernel.POSTERIOR)
    silent = DensityRequest(components=["a"], image="").params(Defaults(25, 4.0, Kernel.DETERMINISTIC))
    assert (silent.steps, silent.guidance_scale, silent.kernel) == (25, 1.0, Kernel.CALIBRATED)


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        ([("a", "m"), ("b", "m")], ["a", "b"]),
        ([("a", "m"), ("a", "m"), ("a", "m")], ["a", "a #2", "a #3"]),
        ([("a #2", "m"), ("a", "m"), ("a", "m")], ["a #2", "a", "a #3"]),
        ([("a", "m"), ("a", "n")], ["a @m", "a @n"]),
        ([("", "m"), ("a", "m")], ["@m", "a"]),
    ],
)
def test_components_have_names_of_their_own(prompts, names):
    assert component_names([Prompt(*prompt) for prompt in prompts]) == names
