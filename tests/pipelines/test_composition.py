import pytest

from pipelines.composition import MAX_COMPONENTS, And, Average, Or, Product, Prompt, leaves
from pipelines.errors import InvalidInputError

A, B = Prompt("a", "m"), Prompt("b", "m")


def test_leaves_come_in_writing_order():
    assert leaves(And((B, A))) == (B, A)
    assert leaves(A) == (A,)


@pytest.mark.parametrize("operator", [Or, And, Average, Product])
@pytest.mark.parametrize("count", [0, MAX_COMPONENTS + 1])
def test_the_number_of_components_is_bounded(operator, count):
    with pytest.raises(InvalidInputError, match=f"1 to {MAX_COMPONENTS} components, got {count}") as refused:
        operator((A,) * count)
    assert refused.value.field == ("components",)


@pytest.mark.parametrize("operator", [lambda n: Or((A, B), biases=n), lambda n: And((A, B), lifts=n)])
def test_numbers_must_be_finite_and_one_a_component(operator):
    with pytest.raises(InvalidInputError) as refused:
        operator((0.0, float("nan")))
    assert refused.value.field == ("components", 1, "weight")
    with pytest.raises(InvalidInputError, match="2 components need as many weights, got 1"):
        operator((1.0,))


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_a_temperature_without_meaning_is_refused(temperature):
    with pytest.raises(InvalidInputError) as refused:
        Or((A, B), temperature=temperature)
    assert refused.value.field == ("temperature",)


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0)])
def test_an_average_needs_weights_that_can_be_normalised(weights):
    with pytest.raises(InvalidInputError, match="≥ 0 and not all 0"):
        Average((A, B), weights)


def test_one_density_cannot_be_lifted_above_itself():
    assert And((A, B, A), lifts=(1.0, 0.0, 1.0)).lifts == (1.0, 0.0, 1.0)
    with pytest.raises(InvalidInputError, match="same as an earlier one") as refused:
        And((A, B, A), lifts=(1.0, 0.0, 0.0))
    assert refused.value.field == ("components", 2, "weight")
