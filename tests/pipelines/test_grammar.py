import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st

from pipelines import grammar
from pipelines.composition import (
    MAX_DEPTH,
    MAX_LEAVES,
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
    leaves,
    walk,
)
from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.grammar import MAX_TEXT, GrammarError, UnknownModelInTextError, is_expression, parse, read

MODELS = ("m", "sd15", "my model", 'od"d', "AND")
KNOWN = {"default_model": "m", "models": MODELS}


def p(text, model="m", adapters=(), negative=None):
    return Prompt(text, model, adapters, negative)


A, B, C, D = (p(letter) for letter in "abcd")

FORMS = [
    # prompts
    ('"a cat"', p("a cat")),
    ("'a \"cat\"'", p('a "cat"')),
    ("a  red\n circle", p("a red circle")),
    ("it's a dog, oil painting", p("it's a dog, oil painting")),
    ("rock 'n' roll", p("rock 'n' roll")),
    ("AND-gate ORs ANDROID and or", p("AND-gate ORs ANDROID and or")),
    ("日本語の猫 🐈‍⬛", p("日本語の猫 🐈‍⬛")),
    ('""', p("")),
    (r'"\"\\ \' \u0007 \(as it is\) \x"', p("\"\\ ' \x07 \\(as it is\\) \\x")),
    (r'"\ud83d \U0041 \u12"', p(r"\ud83d \U0041 \u12")),
    ('"two\nlines"', p("two\nlines")),
    ('"NOT (this: @m)"', p("NOT (this: @m)")),
    (r'"me\@home"', p("me@home")),
    (r'"a \\\@sd15"', p(r"a \@sd15")),
    ('"by @someone"', p("by @someone")),
    (r'"a@sd15\""', p('a@sd15"')),
    (r'"a\u000a@sd15"', p("a\n@sd15")),
    ('"a@sd15, a dog"', p("a@sd15, a dog")),
    # what stands after a prompt
    ('"a dog"@sd15', p("a dog", "sd15")),
    ("a dog@sd15", p("a dog", "sd15")),
    ('a @"my model"', p("a", "my model")),
    ("a<lora:ink:0.8><lora:clay>", p("a", adapters=(("clay", 1.0), ("ink", 0.8)))),
    ("a<lora:my style (v2):-1e-3>", p("a", adapters=(("my style (v2)", -0.001),))),
    ("a{negative: blurry, low}@sd15", p("a", "sd15", negative="blurry, low")),
    ('"a"{negative: ""}', p("a", negative="")),
    # operators and precedence
    (
        '"a cat" AND ("a dog"@sd15 OR fox) NOT blur',
        And((p("a cat"), Or((p("a dog", "sd15"), p("fox"))), Not(p("blur")))),
    ),
    ("a AND b AND c", And((A, B, C))),
    ("(a AND b) AND c", And((And((A, B)), C))),
    ("a AND (b AND c)", And((A, And((B, C))))),
    ("((a)) OR (b)", Or((A, B))),
    ("a OR b XOR c AND NOT d", Or((A, Xor((B, And((C, Not(D)))))))),
    ("NOT a AND b XOR c OR d", Or((Xor((And((Not(A), B)), C)), D))),
    ("a NOT b NOT c", And((A, Not(B), Not(C)))),
    ("NOT NOT a", Not(Not(A))),
    ("NOT (a OR b)", Not(Or((A, B)))),
    ('a AND"b"OR(c)', Or((And((A, B)), C))),
    # calls
    ("AVERAGE(a, b:2)", Average((A, B), (1.0, 2.0))),
    ('PRODUCT("a", "b":1.5)', Product((A, B), (1.0, 1.5))),
    ("AT LEAST 2 OF (a, b, c)", AtLeast(2, (A, B, C))),
    ("AND(a) OR OR(b)", Or((And((A,)), Or((B,))))),
    ("AVERAGE((a OR b):2, AVERAGE(c), 'd, d')", Average((Or((A, B)), Average((C,)), p("d, d")), (2.0, 1.0, 1.0))),
    ("NOT AVERAGE(a{negative: x, y}, b)", Not(Average((p("a", negative="x, y"), B)))),
    # numbers and options
    ("a :1 OR b", Or((A, B), biases=(1.0, 0.0))),
    ("a:0 XOR b", Xor((A, B), biases=(0.0, 0.0))),
    ("a AND (b OR c):-.5 AND AVERAGE(d):+2e1", And((A, Or((B, C)), Average((D,))), lifts=(0.0, -0.5, 20.0))),
    ("(NOT b):2 AND c", And((Not(B), C), lifts=(2.0, 0.0))),
    ("a AND[balanced] b", And((A, B), method=Method.BALANCED)),
    ("a AND b AND[sharpness=0.2, soft] c", And((A, B, C), sharpness=0.2)),
    ("a AND[balanced] NOT[1.5] b", And((A, Not(B, 1.5)), method=Method.BALANCED)),
    ("a OR[temperature=100] b", Or((A, B), temperature=100.0)),
    ("XOR[sharpness=1](a, b)", Xor((A, B), sharpness=1.0)),
    ("AT LEAST 1 OF[sharpness=0.2] (a)", AtLeast(1, (A,), 0.2)),
]


@pytest.mark.parametrize(("text", "tree"), FORMS, ids=[text for text, _ in FORMS])
def test_a_text_is_its_tree(text, tree):
    assert parse(text, **KNOWN) == tree


def test_the_written_form_is_the_one_that_people_write():
    text = (
        '("a cat" OR "a dog"@sd15):1 AND[balanced] NOT[1.5] "fog" AND AVERAGE("a"<lora:ink:0.5>, "b"{negative: "c"}:2)'
    )
    assert grammar.format(parse(text, **KNOWN), default_model="m") == text


# What is wrong, at which column, and words that the message must have.
FAULTS = [
    ('"a red circle@nope"', 14, "after the closing quotation mark, @nope"),
    ("b AND 'a dog@sd15 '", 13, r"@sd15; write \@ for a plain @"),
    ("", 1, 'expected a prompt, got the end of the text; the empty prompt is written ""'),
    ("a AND ", 6, "expected a prompt, got the end"),
    ("a AND OR b", 7, "expected a prompt, got OR"),
    ("OR b", 1, "expected a prompt, got OR"),
    ("AND", 1, "expected a prompt, got AND"),
    ('"a', 1, "quotation mark is never closed"),
    ('a "big" cat', 3, 'a prompt with " in it needs quotes'),
    ('"a cat" and b', 9, "operators are upper case: AND"),
    ('"a" "b"', 5, "expected an operator"),
    ("a red hat (worn:1.2)", 11, "a prompt with ( in it needs quotes"),
    ("(a cat:1.2) AND b", 8, "after the parenthesis"),
    ("a)", 2, "never opened"),
    ("(a", 3, 'expected ")", got the end'),
    ("cat: the movie", 6, "a prompt with : in it needs quotes"),
    ("a:1", 3, "there is none"),
    ("NOT b:2 AND c", 7, "(NOT a):1.5"),
    ("AT LEAST 1 OF (a, b:2)", 21, "AT LEAST takes no numbers for its terms"),
    ("AVERAGE a", 9, "AVERAGE takes its terms in parentheses"),
    ("a AT LEAST b", 3, "needs quotes"),
    ("AT LEAST OF (a)", 10, "expected a whole number"),
    ("AT LEAST " + "9" * 5000 + " OF (a)", 10, "too large"),
    ("AVERAGE(a, (b, c) OR d)", 14, "a prompt with , in it needs quotes"),
    ('"a", b', 4, "only in a call"),
    ("AVERAGE(a,,b)", 11, "begins with a comma"),
    ("AVERAGE(a, b", 13, '"," or ")"'),
    ("a AND[foo] b", 7, "AND takes soft, balanced, sharpness=NUMBER"),
    ("a OR[balanced] b", 6, "OR takes temperature=NUMBER"),
    ("AVERAGE[x](a)", 9, "AVERAGE has no options"),
    ("NOT[x] a", 5, "its scale: NOT[1.5]"),
    ("a AND[soft] b AND[soft] c", 18, "written once"),
    ("a AND[soft, soft] b", 13, "twice"),
    ("a <3 b", 3, "< in it needs quotes"),
    ("<lora:ink> a", 1, "write a LoRA after its prompt"),
    ("a<lora:ink:>", 12, "expected a number"),
    ("a<lora:ink:1><lora:ink:1>", 14, "twice"),
    ("a@m@m", 4, "at most one model"),
    ("a{negative: b}{negative: c}", 15, "at most one negative prompt"),
    ("a{b}", 3, 'expected "negative"'),
    ("a @", 4, "the name of a model"),
    ("a\x07b", 2, r"\u0007"),
    ("a\ud800", 2, "U+D800"),
    # said by the nodes themselves
    ("x OR (a OR[temperature=-1] b)", 12, "temperature must be"),
    ("a AND b:1e999", 9, "too large"),
    ("AT LEAST 3 OF (a, b)", 10, "1 to 2"),
    ("x AND NOT[-1] a", 11, "scale of NOT"),
    ("a OR (b AND[balanced] c)", 13, "only be the outermost"),
    ("x OR AND[balanced](a:1, a:2)", 27, "must have the same lift"),
    ("x AND XOR(a)", 7, "2 to 16 terms"),
    # bounds
    ("(" * 17 + "a" + ")" * 17, 17, "at most 16 deep"),
    ("NOT " * 9 + "a", 33, "at most 8 deep"),
    ("AND(" * 9 + "a" + ")" * 9, 33, "at most 8 deep"),
    (" OR ".join("a" * 17), 81, "at most 16 prompts"),
]


@pytest.mark.parametrize(("text", "column", "words"), FAULTS, ids=[text[:40] for text, _, _ in FAULTS])
def test_a_fault_is_named_at_its_column(text, column, words):
    with pytest.raises(GrammarError) as refused:
        parse(text, **KNOWN)
    assert refused.value.column == column
    assert words in str(refused.value)
    assert str(refused.value) == refused.value.detail
    assert f"column {column}:" in str(refused.value)
    assert refused.value.field == ("expression",)
    for terminal in ("LPAR", "RSQB", "BARE", "ITEM", "QUOTED", "$END", "LORA_NAME", "AT_LEAST", "Token("):
        assert terminal not in str(refused.value)


@pytest.mark.parametrize(("text", "column"), [('"a dog"@nope', 8), ("a red circle@nope", 13), ("b OR a @'nope'", 8)])
def test_an_unknown_model_is_never_prompt_text(text, column):
    with pytest.raises(UnknownModelInTextError, match=r"at column .* 'nope'; the catalogue holds m, sd15") as refused:
        parse(text, **KNOWN)
    assert isinstance(refused.value, UnknownModelError)
    assert refused.value.column == column
    assert refused.value.field == ("expression",)
    assert refused.value.pointer_text == f"{text}\n{' ' * (column - 1)}^"


def test_a_number_without_an_operator_has_no_meaning_even_in_parentheses():
    for text in ("(a):1", "(a OR b):1", "((a):1)", "((a OR b):1):2 AND c"):
        with pytest.raises(GrammarError):
            parse(text, **KNOWN)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a cat )", "a cat )\n      ^"),
        ("猫 )", "猫 )\n   ^"),
        ("e\u0301 )", "e\u0301 )\n  ^"),
        ("a\n\tAND )", "a  AND )\n       ^"),
        ("x" * 100 + " ) " + "y" * 100, "…" + "x" * 49 + " ) " + "y" * 20 + "…\n" + " " * 51 + "^"),
        ("a \u202e\x1b[31m", "a \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m\n   ^"),
    ],
)
def test_the_caret_stands_below_the_fault(text, lines):
    with pytest.raises(GrammarError) as refused:
        parse(text, **KNOWN)
    assert refused.value.pointer_text == lines


def test_every_node_and_every_written_part_has_its_place():
    text = '("a cat"@sd15<lora:ink:2>{negative: b}:3 OR[temperature=2] NOT[0.5] fox) AND AT LEAST 1 OF ((c), d)'
    reading = read(text, **KNOWN)

    def said(*path):
        start, end = reading.at(path)
        return text[start - 1 : end - 1]

    assert {path for path, _ in walk(reading.expression)} <= set(reading.spans)
    assert said() == text
    assert said("terms", 0) == '"a cat"@sd15<lora:ink:2>{negative: b}:3 OR[temperature=2] NOT[0.5] fox'
    assert said("terms", 0, "temperature") == "temperature=2"
    assert said("terms", 0, "terms", 0) == '"a cat"@sd15<lora:ink:2>{negative: b}'
    assert said("terms", 0, "terms", 0, "prompt") == '"a cat"'
    assert said("terms", 0, "terms", 0, "model") == "@sd15"
    assert said("terms", 0, "terms", 0, "lora") == "<lora:ink:2>"
    assert said("terms", 0, "terms", 0, "negative_prompt") == "{negative: b}"
    assert said("terms", 0, "terms", 0, "bias") == "3"
    assert said("terms", 0, "terms", 1, "scale") == "0.5"
    assert said("terms", 0, "terms", 1, "terms", 0) == "fox"
    assert said("terms", 1, "count") == "1"
    assert said("terms", 1, "terms", 0) == "c"
    # What was not written stands where the part around it does.
    assert said("terms", 1, "terms", 1, "model") == "d"
    assert said("terms", 1, "sharpness") == "AT LEAST 1 OF ((c), d)"


def test_later_errors_are_told_at_the_column_too():
    reading = read("a OR b@sd15", **KNOWN)
    error = reading.pointed(InvalidInputError("takes no prompts", field=("terms", 1, "model")))
    assert isinstance(error, GrammarError)
    assert (error.column, str(error)) == (7, "at column 7: takes no prompts")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a cat on a mat", False),
        ("a cat (sitting), 8k: {oil} <3 @home", False),
        ('a sign that says "STOP AND GO"', False),
        ('"Hello" and "World" in neon', False),
        ("ANDROID, an AND-gate, and ORs", False),
        ('"never closed', False),
        ("", False),
        ("a cat AND a dog", True),
        ("the dog's bone AND the cats' bowl", True),
        ("NOT blurry", True),
        ("AT  LEAST 2 OF (a, b, c)", True),
        ("(a)OR(b)", True),
        ('"STOP AND GO"', True),
        ('"a cat"@sd15', True),
        ("'a cat'<lora:ink>", True),
        ('"a cat"{negative: blurry}', True),
        # What is meant as an expression and is none is to be told.
        ("a cat (sitting) AND a dog", True),
        ("a AND", True),
        ('"never closed AND b', True),
    ],
)
def test_which_prompts_are_meant_as_expressions(text, meant):
    assert is_expression(text) is meant


def test_a_text_is_bounded():
    with pytest.raises(GrammarError, match="200000 characters, got 200001"):
        parse("a" * (MAX_TEXT + 1), **KNOWN)
    with pytest.raises(GrammarError, match="at most 4096 prompts, operators and signs"):
        parse("a" + "<lora:x:1>" * (MAX_TEXT // 11), **KNOWN)
    # As large as 16 leaves with a prompt and a negative prompt of 4,000 characters each.
    large = Or(tuple(p(f"{i} {'x' * 3990}", negative='"' * 4000) for i in range(MAX_LEAVES)))
    assert parse(grammar.format(large), **KNOWN) == large


def test_lark_is_loaded_with_the_first_text():
    program = "import sys, pipelines.grammar as g; assert 'lark' not in sys.modules; "
    program += "g.parse('a', default_model='m', models=()); assert 'lark' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


numbers = st.floats(allow_nan=False, allow_infinity=False)
small = st.floats(-1e3, 1e3)
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
words = st.sampled_from(
    ["", "a", "AND", " ", "\\", '"', "'", "\\u0041", "\n", "(", ":2", "@sd15", "<lora:x>", "\x00", "猫", ","]
)
texts = st.text(max_size=8) | st.lists(words, max_size=6).map("".join)
adapters = st.dictionaries(texts, numbers, max_size=3).map(lambda found: tuple(sorted(found.items())))
prompts = st.builds(Prompt, texts, st.sampled_from(MODELS), adapters, st.none() | texts)


@st.composite
def operators(draw, children):
    terms = tuple(draw(st.lists(children, min_size=1, max_size=4)))

    def each(values):
        return draw(st.just(()) | st.tuples(*(values for _ in terms)))

    kind = draw(st.sampled_from([Or, And, Xor, AtLeast, Not, Average, Product]))
    if kind is Or:
        return Or(terms, draw(st.floats(0, 1e9)), each(numbers))
    if kind is And:
        return And(terms, each(numbers), Method.SOFT, draw(positive))
    if kind is Xor:
        return Xor(terms + terms[:1] if len(terms) == 1 else terms, (), draw(positive))
    if kind is AtLeast:
        return AtLeast(draw(st.integers(1, len(terms))), terms, draw(positive))
    if kind is Not:
        return Not(terms[0], draw(st.floats(0, 1e9)))
    if kind is Average:
        return Average(terms, each(st.floats(1e-6, 1e6)))
    return Product(terms, each(numbers))


def fits(tree):
    try:
        check_tree(tree)
    except InvalidInputError:
        return False
    return True


def balanced(tree):
    """The same tree with a balanced AND at its root, where it can have one."""
    if not isinstance(tree, And):
        return tree
    try:
        return replace(tree, method=Method.BALANCED)
    except InvalidInputError:  # equal terms cannot have different lifts
        return replace(tree, method=Method.BALANCED, lifts=())


trees = st.recursive(prompts, operators, max_leaves=MAX_LEAVES).filter(fits)
trees |= trees.map(balanced)


@settings(max_examples=300, deadline=None)
@given(trees)
@example(Or((A, B), biases=(0.0, -0.0)))
@example(Not(Not(Or((And((A,)), Xor((A, B), (1.0, 0.0)))))))
def test_every_tree_has_a_text_that_is_read_back_as_it(tree):
    for default in ("m", "sd15", None):
        text = grammar.format(tree, default_model=default)
        back = read(text, default_model=default or "m", models=MODELS)
        assert is_expression(text)
        assert back.expression == tree
        # repr tells −0 from 0 and every float from its neighbours.
        assert repr(back.expression) == repr(tree)
        assert grammar.format(back.expression, default_model=default) == text
        assert {path for path, _ in walk(tree)} <= set(back.spans)


def test_the_trees_above_are_of_all_kinds_and_sizes():
    """Deep and wide trees, balanced roots, and each operator inside another are among them."""
    # To find one is enough; the smallest one is not looked for.
    quick = settings(phases=[Phase.generate], max_examples=2000, derandomize=True, database=None, deadline=None)
    for kind in (Or, And, Xor, AtLeast, Not, Average, Product):
        find(trees, lambda t, kind=kind: any(path and isinstance(node, kind) for path, node in walk(t)), settings=quick)
    find(trees, lambda t: isinstance(t, And) and t.method is Method.BALANCED and any(t.lifts), settings=quick)
    find(trees, lambda t: max(len(path) for path, _ in walk(t)) >= 6, settings=quick)
    find(trees, lambda t: len(leaves(t)) >= 8, settings=quick)


def nest(tree, depth):
    for i in range(depth):
        tree = [Not(tree), And((tree,), (1.0,)), Or((tree, B)), Average((tree,))][i % 4]
    return tree


def test_the_deepest_tree_has_a_text():
    deepest = nest(A, MAX_DEPTH)
    assert parse(grammar.format(deepest), **KNOWN) == deepest
    with pytest.raises(GrammarError, match="8 deep"):
        parse(grammar.format(Not(deepest)), **KNOWN)


PIECES = "AND OR XOR NOT AVERAGE PRODUCT ( ) [ ] {negative: } <lora: > , : :2 @ @m @x \" ' \\ a soft balanced"
pieces = st.sampled_from(
    [*PIECES.split(" "), "sharpness=", "1", "-1", "1e999", "AT LEAST 2 OF", "b c", " ", "\n", "\x7f"]
)


def outcome(text):
    """The tree, or None where the text is refused as it must be; any other exception goes through."""
    try:
        return parse(text, **KNOWN)
    except (GrammarError, UnknownModelInTextError) as refused:
        line, caret = refused.pointer_text.split("\n")
        sane = 1 <= refused.column <= len(text) + 1 and line.isprintable() and caret.strip() == "^"
    assert sane, (text, line, caret)
    return None


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30) | st.lists(pieces, max_size=14).map(" ".join) | st.lists(pieces, max_size=14).map("".join))
def test_any_text_is_an_expression_or_a_named_fault(text):
    if (tree := outcome(text)) is not None:
        check_tree(tree)
        assert parse(grammar.format(tree), **KNOWN) == tree


@settings(max_examples=200, deadline=None)
@given(trees, st.data())
def test_a_broken_text_is_a_named_fault_or_another_expression(tree, data):
    text = grammar.format(tree, default_model="m")
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 5)))
    outcome(text[:at] + data.draw(st.just("") | pieces) + text[until:])


PAGE = (Path(__file__).parents[2] / "docs" / "expressions.md").read_text()


def tree_of(node):
    """The JSON form of docs/expressions.md as nodes, with the number that the operator around it gives."""
    if isinstance(node, str):
        return p(node), None
    node = dict(node)
    weight = node.pop("weight", None)
    if "prompt" in node:
        lora = tuple(sorted((name, float(scale)) for name, scale in node.get("lora", {}).items()))
        return p(node["prompt"], node.get("model", "m"), lora, node.get("negative_prompt")), weight
    kinds = {"and": And, "or": Or, "xor": Xor, "at_least": AtLeast, "not": Not, "average": Average, "product": Product}
    ((word, kind),) = ((word, kind) for word, kind in kinds.items() if word in node)
    below = node.pop(word)
    if kind is Not:
        return Not(tree_of(below)[0], **node), weight
    terms, weights = zip(*map(tree_of, below), strict=True)
    if any(weight is not None for weight in weights):
        name, absent = {And: ("lifts", 0), Or: ("biases", 0), Xor: ("biases", 0)}.get(kind, ("weights", 1))
        node[name] = tuple(absent if weight is None else weight for weight in weights)
    return kind(terms=terms, **node), weight


def test_the_page_for_users_shows_text_and_json_of_the_same_trees():
    pairs = re.findall(r"^`([^\n`]+)`\n\n```json\n([^`]*)```$", PAGE, re.MULTILINE)
    assert len(pairs) == 3
    for text, tree in pairs:
        assert parse(text, **KNOWN) == tree_of(json.loads(tree))[0]


def test_the_page_for_users_shows_texts_that_are_read():
    tables = PAGE[: PAGE.index("## Errors")]
    rows = [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in tables.splitlines() if row.startswith("| `")]
    texts = [text for row in rows for text in row] + re.findall(
        r"`((?:NOT|AT LEAST \d OF)\[[^`]+)` \|$", tables, re.MULTILINE
    )
    assert len(texts) == 17
    for text in texts:
        read_as = f"{text} AND x" if text.endswith(":2") else text
        parse(read_as, **KNOWN)


def test_the_page_for_users_shows_the_error_as_it_is():
    message, text, caret = re.search(r"```\n(at column .*)\n(.*)\n( *\^)\n```", PAGE).groups()
    with pytest.raises(GrammarError) as refused:
        parse(text, **KNOWN)
    assert str(refused.value) == message
    assert refused.value.pointer_text == f"{text}\n{caret}"


@pytest.mark.parametrize(
    "text",
    [
        "a AND b",
        "NOT a",
        "(a OR b):2",
        "PRODUCT (a, b)",
        "AVERAGE[x](a)",
        "AT  LEAST 2 OF (a, b)",
        "a cat's AND b",
        '"a cat"',
        "'a cat' @one",
        '"a"{negative: b}',
        "it's 5\" AND more",
        'a "b" AND c',
    ],
)
def test_a_text_that_uses_an_operator_is_an_expression(text):
    assert grammar.is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat, (masterpiece:1.2), [blurry]",
        "a and b",
        "ANDROID, ORs, AND-gate, a,AND",
        'a sign "STOP AND GO"',
        "a sign 'STOP AND GO'",
        r'a sign "say \" AND"',
        "a <lora:NOT AND:1>",
        "PRODUCT PHOTO",
        "AT LEAST nice",
        '"a cat" on a mat',
        "someone@one.com",
    ],
)
def test_a_text_that_uses_none_is_a_prompt(text):
    assert not grammar.is_expression(text)


@given(trees)
def test_what_is_written_with_an_operator_is_an_expression(tree):
    assert grammar.is_expression(grammar.format(tree, default_model="m"))


@pytest.mark.parametrize("piece", ['\\"', "' a", '"a', "<lora:", "AT  LEAST ", "PRODUCT "])
def test_a_long_text_that_begins_much_and_ends_nothing_is_a_prompt(piece):
    """Nothing is matched twice: the work grows with the text, not with its square."""
    assert not grammar.is_expression(piece * (MAX_TEXT // len(piece)))
