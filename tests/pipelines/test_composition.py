"""What an expression is: how it reads, and what is refused before any model is asked."""

import math

import pytest

from pipelines.composition import (
    MAX_DEPTH,
    MAX_LEAVES,
    MAX_SUBSETS,
    TRAITS,
    And,
    AtLeast,
    Average,
    Method,
    Not,
    Or,
    Product,
    Prompt,
    Xor,
    check_tree,
    conjuncts,
    has_density,
    lead,
    leaf_paths,
    leaves,
    walk,
)
from pipelines.errors import InvalidInputError
from tests.pipelines.mixtures import balanced

A, B, C = (Prompt(text, model) for text, model in (("a", "m"), ("b", "n"), ("c", "m")))
SEVERAL = [Or, And, balanced, Average, Product, lambda terms: AtLeast(1, terms)]


def refusal(make, *given, **options):
    """The error that something raises."""
    with pytest.raises(InvalidInputError) as refused:
        make(*given, **options)
    return refused.value


def test_leaves_come_in_writing_order_and_repeat_as_written():
    nested = And((B, Or((A, Not(C))), A))
    assert leaves(nested) == (B, A, C, A)
    assert leaves(A) == (A,)
    assert [path for path, _ in walk(nested)] == [
        (),
        ("terms", 0),
        ("terms", 1),
        ("terms", 1, "terms", 0),
        ("terms", 1, "terms", 1),
        ("terms", 1, "terms", 1, "terms", 0),
        ("terms", 2),
    ]
    found = dict(walk(nested))
    assert [found[path] for path in leaf_paths(nested)] == [*leaves(nested)]


def test_the_lead_is_the_model_of_the_first_leaf():
    assert lead(And((Not(Or((B, A))), C))) == "n"
    assert lead(A) == "m"


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        (A, 1),
        (And((A, B)), 2),
        (balanced((A, B, C)), 3),
        (Average((A, Or((B, And((C, A)))))), 3),
        (Or((A, B, And((A, Not(C))))), 2),
        (Product((A, And((B, C)))), 2),
        (AtLeast(2, (A, And((B, C)), C)), 3),
        (Xor((A, B, C)), 3),
    ],
)
def test_conjuncts_count_what_must_hold_together_at_most(expression, count):
    assert conjuncts(expression) == count


def test_every_operator_has_its_traits_and_only_a_balanced_and_has_no_density():
    for node in (Or((A,)), And((A,)), Xor((A, B)), AtLeast(1, (A,)), Not(A), Average((A,)), Product((A,))):
        assert type(node) in TRAITS
        assert has_density(node)
    assert has_density(A)
    assert not has_density(balanced((A, B)))


@pytest.mark.parametrize("operator", [*SEVERAL, Xor])
@pytest.mark.parametrize("count", [0, MAX_LEAVES + 1])
def test_the_number_of_terms_is_bounded(operator, count):
    refused = refusal(operator, (A,) * count)
    assert refused.field == ("terms",)
    assert f"to {MAX_LEAVES} terms, got {count}" in str(refused)


def test_exclusive_or_needs_a_second_term():
    assert refusal(Xor, (A,)).field == ("terms",)


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        (lambda n: Or((A, B), biases=n), "bias"),
        (lambda n: Xor((A, B), biases=n), "bias"),
        (lambda n: And((A, B), lifts=n), "lift"),
        (lambda n: balanced((A, B), n), "lift"),
        (lambda n: Average((A, B), n), "weight"),
        (lambda n: Product((A, B), n), "weight"),
    ],
)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite_and_one_a_term(operator, name, wrong):
    assert refusal(operator, (0.0, wrong)).field == ("terms", 1, name)
    refused = refusal(operator, (1.0,))
    assert refused.field == ("terms",)
    assert f"2 terms need 2 numbers ({name}), got 1" in str(refused)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_a_temperature_without_meaning_is_refused(temperature):
    assert refusal(Or, (A, B), temperature=temperature).field == ("temperature",)


@pytest.mark.parametrize("sharpness", [0.0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    "operator", [lambda s: And((A, B), sharpness=s), lambda s: Xor((A, B), (), s), lambda s: AtLeast(1, (A, B), s)]
)
def test_a_sharpness_that_is_not_positive_is_refused(operator, sharpness):
    assert refusal(operator, sharpness).field == ("sharpness",)


@pytest.mark.parametrize("scale", [-0.5, math.inf, math.nan])
def test_a_negation_of_less_than_nothing_is_refused(scale):
    assert refusal(Not, A, scale).field == ("scale",)
    assert refusal(Xor, (A, B), scale=scale).field == ("scale",)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_at_least_needs_a_number_of_its_terms(count):
    assert refusal(AtLeast, count, (A, B)).field == ("count",)


def test_at_least_goes_through_a_bounded_number_of_subsets():
    assert AtLeast(2, (A, B, C)).subsets == ((0, 1), (0, 2), (1, 2))
    terms = tuple(Prompt(str(i), "m") for i in range(MAX_LEAVES))
    assert math.comb(MAX_LEAVES, 8) > MAX_SUBSETS
    assert refusal(AtLeast, 8, terms).field == ("count",)


@pytest.mark.parametrize(("weights", "at"), [((1.0, -2.0), 1), ((0.0, 0.0), 0), ((-1.0, 2.0), 0)])
def test_an_average_needs_weights_that_can_be_normalised(weights, at):
    refused = refusal(Average, (A, B), weights)
    assert refused.field == ("terms", at, "weight")
    assert "≥ 0 and not all 0" in str(refused)


def test_one_density_cannot_be_lifted_above_itself_where_densities_are_balanced():
    assert balanced((A, B, A), (1.0, 0.0, 1.0)).lifts == (1.0, 0.0, 1.0)
    assert refusal(balanced, (A, B, A), (1.0, 0.0, 0.0)).field == ("terms", 2, "lift")
    assert And((A, B, A), (1.0, 0.0, 0.0)).method is Method.SOFT


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_lora_s_scale_is_finite(scale):
    assert refusal(Prompt, "a", "m", (("ink", scale),)).field == ("lora",)


# --- Whole trees -------------------------------------------------------------------------------------------------


def test_depth_is_bounded_at_the_leaf_that_is_too_deep():
    deep = A
    for _ in range(MAX_DEPTH):
        deep = Not(deep)
    check_tree(deep)
    refused = refusal(check_tree, Or((B, deep)))
    assert refused.field == ("terms", 1) + ("terms", 0) * MAX_DEPTH
    assert f"at most {MAX_DEPTH} deep, got {MAX_DEPTH + 1}" in str(refused)


def test_leaves_are_counted_over_the_whole_tree():
    half = Or((A,) * (MAX_LEAVES // 2))
    check_tree(And((half, half)))
    refused = refusal(check_tree, And((half, half, A)))
    assert refused.field == ("terms",)
    assert f"at most {MAX_LEAVES} prompts, got {MAX_LEAVES + 1}" in str(refused)


@pytest.mark.parametrize("around", [lambda b: Or((A, b)), lambda b: And((A, Not(b))), lambda b: balanced((A, b))])
def test_a_balanced_and_is_only_the_outermost_operator(around):
    check_tree(balanced((A, Or((B, And((A, C)))))))
    tree = around(balanced((B, C)))
    refused = refusal(check_tree, tree)
    (path,) = (path for path, node in walk(tree) if path and not has_density(node))
    assert refused.field == (*path, "method")
    assert "outermost" in str(refused)
