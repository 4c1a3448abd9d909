"""Trees and texts of the wire: what they mean, and what clients are told of their parts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import grammar
from pipelines.composition import (
    MAX_DEPTH,
    MAX_LEAVES,
    TRAITS,
    And,
    AtLeast,
    Method,
    Not,
    Or,
    Prompt,
    Xor,
    check_tree,
    walk,
)
from pipelines.errors import InvalidInputError, UnknownModelError
from service.expressions import from_components, from_text, from_tree, leaf_names, node_names, tree_of
from service.schemas.trees import OPERATIONS, Component, Term, check_size

MODELS = ("m", "sd15")


def p(text, model="m", adapters=(), negative=None):
    return Prompt(text, model, adapters, negative)


A, B, C = p("a"), p("b"), p("c")


def read(tree):
    """The expression of a tree that comes as JSON."""
    check_size(tree)
    return from_tree(Term.model_validate(json.loads(json.dumps(tree))), MODELS)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", "a"),
        (
            '"a red circle" AND ("a blue star" OR "a green square") NOT "a black shape"',
            {"and": ["a red circle", {"or": ["a blue star", "a green square"]}, {"not": "a black shape"}]},
        ),
        (
            '"a street"@sd15<lora:ink:0.8>:1 AND[balanced] "a street"@sd15<lora:clay>{negative: "blurry"}',
            {
                "and": [
                    {"prompt": "a street", "model": "sd15", "lora": {"ink": 0.8}, "weight": 1},
                    {"prompt": "a street", "model": "sd15", "lora": {"clay": 1}, "negative_prompt": "blurry"},
                ],
                "method": "balanced",
            },
        ),
        (
            'AT LEAST 2 OF ("a circle", "a star", "a square") OR[temperature=100] NOT[1.5] AVERAGE("a cat", "a dog":2)',
            {
                "or": [
                    {"at_least": ["a circle", "a star", "a square"], "count": 2},
                    {"not": {"average": ["a cat", {"prompt": "a dog", "weight": 2}]}, "scale": 1.5},
                ],
                "temperature": 100,
            },
        ),
        ("PRODUCT(a, b:1.5)", {"product": ["a", {"prompt": "b", "weight": 1.5}]}),
        ("a XOR[sharpness=2] (b OR c):-1", {"xor": ["a", {"or": ["b", "c"], "weight": -1}], "sharpness": 2}),
        ("XOR[scale=1](a, b)", {"xor": ["a", "b"], "scale": 1}),
    ],
)
def test_the_documented_pairs_mean_the_same(text, tree):
    """The pairs that stand side by side in docs/expressions.md, and one of every other operator."""
    assert read(tree).expression == from_text(text, MODELS).expression


names = st.text("abc@#:&\"'\\ü猫", max_size=6)
leaves = st.builds(
    Prompt,
    names,
    st.sampled_from(MODELS),
    st.dictionaries(names.filter(bool), st.floats(-10, 10), max_size=2).map(lambda d: tuple(sorted(d.items()))),
    st.none() | names,
)
sharp = st.floats(1e-3, 1e3)


@st.composite
def operators(draw, children):
    terms = tuple(draw(st.lists(children, min_size=2, max_size=3)))

    def numbers(low):
        return draw(st.just(()) | st.tuples(*(st.floats(low, 1e4) for _ in terms)))

    kind = draw(st.sampled_from(list(TRAITS)))
    if kind is Or:
        return Or(terms, draw(st.floats(0, 1e3)), numbers(-1e4))
    if kind is And:
        return And(terms, numbers(-1e4), sharpness=draw(sharp))
    if kind is Xor:
        return Xor(terms, numbers(-1e4), draw(sharp), draw(st.floats(0, 100)))
    if kind is AtLeast:
        return AtLeast(draw(st.integers(1, len(terms))), terms, draw(sharp))
    if kind is Not:
        return Not(terms[0], draw(st.floats(0, 100)))
    return kind(terms, numbers(1e-3))


def fits(tree):
    try:
        check_tree(tree)
    except InvalidInputError:
        return False
    return True


trees = st.recursive(leaves, operators, max_leaves=8).filter(fits)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees)
def test_every_expression_has_a_tree_and_a_text_that_mean_it(expression):
    tree = tree_of(expression)
    assert read(tree).expression == expression
    assert from_text(grammar.format(expression, default_model="m"), MODELS).expression == expression


def follow(tree, pointer):
    """What a pointer names in a tree."""
    for key in pointer:
        tree = tree[key]
    return tree


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees, st.data())
def test_the_client_is_told_of_a_node_by_where_it_stands(expression, data):
    """A path of the science, told in the words of a tree, leads to that very node in the client's JSON."""
    tree = json.loads(json.dumps(tree_of(expression)))
    path, node = data.draw(st.sampled_from(list(walk(expression))))
    part = "prompt" if isinstance(node, Prompt) else "sharpness"
    with pytest.raises(InvalidInputError) as refused, read(tree).located():
        raise InvalidInputError("no", field=(*path, part))
    head, *pointer, last = refused.value.field
    assert (head, last) == ("expression", part)
    found = {key: value for key, value in follow(tree, pointer).items() if key != "weight"}
    assert found == json.loads(json.dumps(tree_of(node)))


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (("terms", 1, "lift"), ("and", 1, "weight")),
        (("terms", 1, "terms", 0, "bias"), ("and", 1, "or", 0, "weight")),
        (("terms", 2, "terms", 0, "prompt"), ("and", 2, "not", "prompt")),
        (("terms", 2, "scale"), ("and", 2, "scale")),
        (("terms", 1, "terms"), ("and", 1, "or")),
        (("terms", 0, "model"), ("and", 0, "model")),
        (("method",), ("method",)),
    ],
)
def test_places_are_told_in_the_wire_s_words(path, pointer):
    written = read({"and": ["a", {"or": ["b", "c"]}, {"not": "d"}]})
    with pytest.raises(InvalidInputError) as refused, written.located():
        raise InvalidInputError("no", field=path)
    assert refused.value.field == ("expression", *pointer)


def test_what_is_no_place_in_the_expression_stays_as_it_is():
    leaf = read({"prompt": "a", "negative_prompt": "b"})
    for written, field, told in (
        (read("a"), ("steps",), ("steps",)),
        (read("a"), ("negative_prompt",), ("negative_prompt",)),
        (leaf, ("negative_prompt",), ("expression", "negative_prompt")),
        (read("a"), ("model",), ("expression", "model")),
    ):
        with pytest.raises(InvalidInputError) as refused, written.located():
            raise InvalidInputError("no", field=field)
        assert refused.value.field == told


def test_flat_lists_are_told_of_as_components():
    written = from_components([Component(prompt="a"), Component(prompt="b")], MODELS, Or)
    for field, told in (
        (("terms", 1, "bias"), ("components", 1, "weight")),
        (("terms", 0, "model"), ("components", 0, "model")),
        (("terms",), ("components",)),
        (("temperature",), ("temperature",)),
    ):
        with pytest.raises(InvalidInputError) as refused, written.located():
            raise InvalidInputError("no", field=field)
        assert refused.value.field == told


@pytest.mark.parametrize(
    ("tree", "pointer", "told"),
    [
        ({"nand": ["a"]}, (), "exactly one of prompt, or, and, xor"),
        ({"and": ["a", {"or": ["b"], "and": ["c"]}]}, ("and", 1), "this one has or and and"),
        ({"and": ["a", 7]}, ("and", 1), "a term is a string"),
        ({"and": {"a": 1}}, ("and",), "valid list"),
        ({"not": ["a"]}, ("not",), "a term is a string"),
        ({"and": []}, ("and",), "at least 1"),
        ({"or": [{"xor": ["a"]}]}, ("or", 0, "xor"), "at least 2"),
        ({"at_least": ["a", "b"]}, ("count",), "required"),
        ({"at_least": ["a", "b"], "count": "1"}, ("count",), "valid integer"),
        ({"and": ["a", {"or": ["b"], "temperatur": 1}]}, ("and", 1, "temperatur"), "did you mean `temperature`"),
        ({"and": ["a", {"prompt": "b", "weight": 2e4}]}, ("and", 1, "weight"), "less than or equal to 10000"),
        ({"not": {"prompt": "x" * 4001}}, ("not", "prompt"), "at most 4000"),
        ({"and": ["a"], "method": "hard"}, ("method",), "'soft' or 'balanced'"),
        ({"and": ["a"], "sharpness": 0}, ("sharpness",), "greater than 0"),
        ({"not": "a", "scale": -1}, ("scale",), "greater than or equal to 0"),
        ({"or": ["a"] * 17}, ("or", 16), "at most 16 prompts"),
        ({"and": [{"or": ["a"] * 9}, {"or": ["a"] * 9}]}, ("and", 1, "or", 7), "at most 16 prompts"),
        ({"and": [{"or": []}] * 1000}, ("and", 16), "at most 16 prompts"),
    ],
)
def test_a_tree_without_form_is_refused_where_it_has_none(tree, pointer, told):
    with pytest.raises(ValidationError) as refused:
        read(tree)
    (error,) = refused.value.errors()
    assert error["loc"] == pointer
    assert told in error["msg"]


def nested(depth, term="a"):
    for _ in range(depth):
        term = {"not": term}
    return term


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100, 900])
def test_a_tree_that_nests_too_deep_is_refused_before_it_is_walked_into(depth):
    assert read(nested(MAX_DEPTH)).expression is not None
    with pytest.raises(ValidationError) as refused:
        check_size(nested(depth))
    (error,) = refused.value.errors()
    assert error["loc"] == ("not",) * MAX_DEPTH
    assert "at most 8 deep" in error["msg"]


def test_the_largest_tree_is_taken():
    leaf = "a"
    for _ in range(MAX_DEPTH - 1):
        leaf = {"or": [leaf]}
    assert read({"and": [leaf] * MAX_LEAVES}).expression is not None


@pytest.mark.parametrize(
    ("tree", "pointer", "told"),
    [
        ({"at_least": ["a"], "count": 2}, ("count",), "must be 1 to 1"),
        ({"or": ["a", {"at_least": ["b"], "count": 3}]}, ("or", 1, "count"), "must be 1 to 1"),
        ({"and": [{"average": [{"prompt": "a", "weight": -1}, "b"]}]}, ("and", 0, "average", 0, "weight"), "≥ 0"),
        ({"and": ["a", {"prompt": "a", "weight": 1}], "method": "balanced"}, ("and", 1, "weight"), "equals an earlier"),
        ({"or": ["a"], "weight": 1}, ("weight",), "there is none"),
        ({"not": {"prompt": "a", "weight": 1}}, ("not", "weight"), "takes no weights for its terms"),
        ({"at_least": ["b", {"or": ["a"], "weight": 1}], "count": 1}, ("at_least", 1, "weight"), "no weights"),
    ],
)
def test_a_tree_without_meaning_is_refused_where_it_has_none(tree, pointer, told):
    with pytest.raises(InvalidInputError) as refused:
        read(tree)
    assert refused.value.field == ("expression", *pointer)
    assert told in refused.value.detail


def test_a_model_that_there_is_not_is_named_where_it_stands():
    with pytest.raises(UnknownModelError) as refused:
        read({"and": ["a", {"not": {"prompt": "b", "model": "sd99"}}]})
    assert refused.value.field == ("expression", "and", 1, "not", "model")


@pytest.mark.parametrize(
    ("text", "column", "told"),
    [
        ("a AND b:20000", 9, "less than or equal to 10000"),
        ("a AND NOT[101] b", 11, "less than or equal to 100"),
        ("a OR[temperature=1e7] b", 6, "less than or equal to 1000000"),
        ('a OR NOT "' + "x" * 4001 + '"', 10, "at most 4000 characters"),
        ("a OR b<lora:and:11>", 7, "less than or equal to 10"),
        ("a XOR (b OR c:2e4)", 15, "less than or equal to 10000"),
        ("AVERAGE(a, b:2e4)", 14, "less than or equal to 10000"),
    ],
)
def test_a_text_keeps_the_bounds_of_a_tree_and_tells_the_column(text, column, told):
    with pytest.raises(grammar.GrammarError, match=told) as refused:
        from_text(text, MODELS)
    assert refused.value.column == column


def test_every_operator_can_be_written_as_a_tree():
    assert set(OPERATIONS) == {traits.word for traits in TRAITS.values()}


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([("a", "m"), ("b", "m")], ["a", "b"]),
        ([("a", "m"), ("a", "m"), ("a", "m")], ["a", "a #2", "a #3"]),
        ([("a #2", "m"), ("a", "m"), ("a", "m")], ["a #2", "a", "a #3"]),
        ([("a", "m"), ("a", "n")], ["a @m", "a @n"]),
        ([("", "m"), ("a", "m")], ["@m", "a"]),
    ],
)
def test_leaves_have_names_of_their_own(prompts, named):
    assert leaf_names([Prompt(*prompt) for prompt in prompts]) == named


def test_operators_are_named_by_their_text():
    tree = And((A, Or((B, C)), Not(A)))
    assert node_names(tree) == {
        (): '"a" AND ("b" OR "c") AND NOT "a"',
        ("terms", 1): '"b" OR "c"',
        ("terms", 2): 'NOT "a"',
    }
    assert node_names(Or((A, p("a", "sd15")))) == {(): '"a"@m OR "a"@sd15'}
    assert node_names(And((A, B), method=Method.BALANCED)) == {(): '"a" AND[balanced] "b"'}
    assert node_names(A) == {}
