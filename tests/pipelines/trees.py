"""Random expressions for hypothesis."""

from hypothesis import strategies as st

from pipelines.composition import (
    And,
    AtLeast,
    Average,
    Method,
    Not,
    Or,
    Product,
    Prompt,
    Xor,
    leaves,
)

MODELS = ("m", "n", "o")
PROMPTS = st.builds(Prompt, st.sampled_from("abcdefgh"), st.sampled_from(MODELS))
MAX_LEAVES, MAX_DEPTH = 8, 4


def depth(expression):
    """Operators on the longest way to a leaf."""
    return 0 if isinstance(expression, Prompt) else 1 + max(map(depth, expression.terms))


def numbers(count, low, high):
    """() or one number a term."""
    one = st.floats(low, high, allow_subnormal=False)
    return st.one_of(st.just(()), st.lists(one, min_size=count, max_size=count).map(tuple))


def terms_of(children, least=1):
    return st.lists(children, min_size=least, max_size=4).map(tuple)


SHARPNESS = st.sampled_from([0.01, 0.1, 1.0, 10.0])
SCALES = st.sampled_from([0.0, 0.2, 1.0])


def operators(children):
    """Every operator that may stand anywhere."""
    with_numbers = {
        Or: lambda t: st.builds(Or, st.just(t), st.sampled_from([0.0, 0.5, 1.0, 100.0]), numbers(len(t), -3, 3)),
        And: lambda t: st.builds(And, st.just(t), numbers(len(t), -5, 5), st.just(Method.SOFT), SHARPNESS),
        Average: lambda t: st.builds(Average, st.just(t), numbers(len(t), 0.1, 1)),
        Product: lambda t: st.builds(Product, st.just(t), numbers(len(t), -1, 1.5)),
        AtLeast: lambda t: st.builds(AtLeast, st.integers(1, len(t)), st.just(t), SHARPNESS),
    }
    several = [terms_of(children).flatmap(build) for build in with_numbers.values()]
    xor = terms_of(children, 2).flatmap(lambda t: st.builds(Xor, st.just(t), numbers(len(t), -3, 3), SHARPNESS, SCALES))
    return st.one_of(*several, xor, st.builds(Not, children, SCALES))


def bounded(expression):
    return depth(expression) <= MAX_DEPTH and len(leaves(expression)) <= MAX_LEAVES


TREES = st.recursive(PROMPTS, operators, max_leaves=MAX_LEAVES).filter(bounded)
"""Expressions that have a log-density."""


def _balanced(terms):
    distinct = len(set(terms)) == len(terms)
    return st.builds(
        And, st.just(terms), numbers(len(terms), -0.1, 0.1) if distinct else st.just(()), st.just(Method.BALANCED)
    )


BALANCED = terms_of(TREES).flatmap(_balanced).filter(bounded)
"""Balanced ANDs of expressions; the lifts are those of one step, small enough for the reach that a lift has."""

ROOTS = st.one_of(TREES, TREES, BALANCED)
