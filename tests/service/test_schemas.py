import pytest

from pipelines.composition import And, Or, Prompt
from service.schemas import AndRequest, OrRequest, component_names


def test_a_bare_string_is_a_prompt_to_the_default_model():
    request = OrRequest(components=["a cat", {"prompt": "a dog", "model": "sd", "weight": 0.5}], temperature=2)
    assert request.expression("shapes") == Or((Prompt("a cat", "shapes"), Prompt("a dog", "sd")), 2.0, (0.0, 0.5))


def test_lift_adds_to_the_first_component_s_weight():
    request = AndRequest(components=[{"prompt": "a", "weight": 1}, "b"], lift=2)
    assert request.expression("m") == And((Prompt("a", "m"), Prompt("b", "m")), (3.0, 0.0))


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {OrRequest(components=["a"]).params().seed for _ in range(8)}
    assert len(seeds) == 8
    assert OrRequest(components=["a"], seed=0).params().seed == 0


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        ([("a", "m"), ("b", "m")], ["a", "b"]),
        ([("a", "m"), ("a", "m"), ("a", "m")], ["a", "a #2", "a #3"]),
        ([("a", "m"), ("a", "n")], ["a @m", "a @n"]),
        ([("", "m"), ("a", "m")], ["@m", "a"]),
    ],
)
def test_components_have_names_of_their_own(prompts, names):
    assert component_names([Prompt(*prompt) for prompt in prompts]) == names
