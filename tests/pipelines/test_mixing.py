"""What the nodes of an expression are worth, where logic and probability say so exactly."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.composition import DECISIVE, And, AtLeast, Average, Not, Or, Product, Prompt, Xor, leaves, walk
from pipelines.mixing import Mixing, compile_program, evaluate_nodes, node_log_densities, unfold
from tests.pipelines.mixtures import balanced
from tests.pipelines.reference import a_sample
from tests.pipelines.trees import TREES

A, B, C, D = (Prompt(text, "m") for text in "abcd")
N = Prompt("a", "n")
# log q of the prompts, and of the models' references: as far apart as they are on a path.
NATS = {A: -3.0, B: -5.5, C: 2.0, D: 0.25, N: -4.0}
FREE = {"m": -1.0, "n": -2.5}
# Rounding of a few exponentials and logarithms of single-digit numbers.
EXACT = {"rel": 1e-12, "abs": 1e-12}


def solve(expression, nats=NATS, free=FREE):
    """(log-density, score) of an expression's root; scores as numbers, those of leaves and references random."""
    program, log_q, scores = columns(expression, nats, free)
    mixing = Mixing.join([(program, 1)])
    values, weights = evaluate_nodes(mixing, log_q)
    row = unfold(mixing, weights)[0, 0].numpy()
    assert row.sum() == pytest.approx(1, **EXACT)
    return float(values[0, program.tops[0]]), float(row @ scores)


def columns(expression, nats=NATS, free=FREE):
    """The program, and the log-densities and scores of its columns."""
    written = leaves(expression)
    models = list(dict.fromkeys(prompt.model for prompt in written))
    program = compile_program(expression, [models.index(prompt.model) for prompt in written])
    log_q = torch.tensor([[*(nats[p] for p in written), *(free[m] for m in models)]], dtype=torch.float64)
    return program, log_q, np.array([*(score(p) for p in written), *(score(m) for m in models)])


def score(key):
    """Any number: the same for the same prompt or model."""
    return float(np.random.default_rng(sum(map(ord, str(key)))).normal())


def same(one, other):
    """Two expressions are one density with one score."""
    assert solve(one) == pytest.approx(solve(other), **EXACT)


def logsumexp(*values):
    return float(np.logaddexp.reduce(values))


def test_a_mixture_of_mixtures_is_the_flat_mixture():
    inner, outer = (0.7, -0.2), (-0.4, 1.1)
    prior = logsumexp(*inner)
    nested = Or((Or((A, B), biases=inner), C), biases=outer)
    same(nested, Or((A, B, C), biases=(outer[0] + inner[0] - prior, outer[0] + inner[1] - prior, outer[1])))
    assert solve(Or((A, B), biases=inner))[0] == pytest.approx(
        logsumexp(NATS[A] + inner[0], NATS[B] + inner[1]) - prior, **EXACT
    )


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_a_temperature_is_a_power_of_the_densities(temperature):
    """(1/T) log Σ π_i q_i^T: of one density the density itself, whatever T is."""
    prior = np.log(np.exp([0.5, -1.0]) / np.exp([0.5, -1.0]).sum())
    expected = logsumexp(*(prior + temperature * np.array([NATS[A], NATS[C]]))) / temperature
    assert solve(Or((A, C), temperature, (0.5, -1.0)))[0] == pytest.approx(expected, **EXACT)
    same(Or((A, A), temperature, (0.5, -1.0)), A)


def test_a_temperature_of_zero_is_the_average_by_prior():
    odds = (0.5, -1.0)
    same(Or((A, C), 0.0, odds), Average((A, C), tuple(np.exp(odds))))


def test_soft_and_becomes_the_minimum_as_it_sharpens_and_the_average_as_it_blurs():
    terms = (A, B, C)
    for sharpness in (1e2, 1e4):
        log_q, pull = solve(And(terms, sharpness=sharpness))
        # B is behind by 2.5 nats: all that is left is log(3)/λ, the price of three terms.
        assert log_q - NATS[B] == pytest.approx(np.log(3) / sharpness, rel=1e-9)
        assert pull == pytest.approx(score(B), **EXACT)
    for sharpness in (1e-3, 1e-6):
        # To first order in λ: half the variance of the log-densities, and the weights' own change.
        blurred, mean = np.array(solve(And(terms, sharpness=sharpness))), np.array(solve(Average(terms)))
        assert np.abs(blurred - mean).max() < 20 * sharpness


def test_soft_and_of_equal_densities_is_that_density():
    same(And((A, A, A), sharpness=0.7), A)


def test_a_lift_makes_soft_and_take_a_term_for_less_likely():
    lifted = And((A, C), lifts=(2.0, -1.0), sharpness=0.8)
    expected = -(logsumexp(-0.8 * (NATS[A] - 2), -0.8 * (NATS[C] + 1)) - np.log(2)) / 0.8
    log_q, pull = solve(lifted)
    assert log_q == pytest.approx(expected, **EXACT)
    odds = np.exp(-0.8 * ((NATS[A] - 2) - (NATS[C] + 1)))
    assert pull == pytest.approx((odds * score(A) + score(C)) / (1 + odds), **EXACT)


def test_not_is_the_reference_pushed_away_from_its_term():
    assert solve(Not(A, 0.0)) == pytest.approx((FREE["m"], score("m")), **EXACT)
    assert solve(Not(A, 0.6)) == pytest.approx(
        (1.6 * FREE["m"] - 0.6 * NATS[A], 1.6 * score("m") - 0.6 * score(A)), **EXACT
    )
    same(Not(Not(A, 1.0), 1.0), A)


def test_the_reference_of_several_models_is_the_mean_over_leaves():
    """Two leaves of one model count twice."""
    log_q, pull = solve(Not(Average((A, B, N)), 0.0))
    assert log_q == pytest.approx((2 * FREE["m"] + FREE["n"]) / 3, **EXACT)
    assert pull == pytest.approx((2 * score("m") + score("n")) / 3, **EXACT)


def test_exclusive_or_is_its_written_out_form():
    terms, biases = (A, Or((B, C)), And((N, D), sharpness=2.0)), (0.3, 0.0, -0.8)
    cases = [And((t, *(Not(o, 0.35) for o in terms if o is not t)), sharpness=0.4) for t in terms]
    head_starts = tuple(DECISIVE * bias for bias in biases)
    same(Xor(terms, biases, 0.4, 0.7), Or(tuple(cases), DECISIVE, head_starts))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_at_least_is_its_written_out_form(count):
    terms = (A, Not(B), C, Product((D, N), (0.5, 0.25)))
    cases = tuple(And(some, sharpness=0.9) for some in combinations(terms, count))
    same(AtLeast(count, terms, 0.9), Or(cases, DECISIVE))


def test_at_least_one_is_a_decisive_or_and_at_least_all_is_and():
    same(AtLeast(1, (A, B, C)), Or((A, B, C), DECISIVE))
    same(AtLeast(3, (A, B, C), 0.4), And((A, B, C), sharpness=0.4))


def test_a_product_whose_weights_sum_to_one_is_the_average():
    same(Product((A, B, C), (0.2, 0.5, 0.3)), Average((A, B, C), (2.0, 5.0, 3.0)))


def test_a_product_is_relative_to_the_reference():
    """q_r Π (q_i/q_r)^β_i."""
    log_q, pull = solve(Product((A, C), (1.0, 0.5)))
    assert log_q == pytest.approx(NATS[A] + 0.5 * NATS[C] - 0.5 * FREE["m"], **EXACT)
    assert pull == pytest.approx(score(A) + 0.5 * score(C) - 0.5 * score("m"), **EXACT)
    same(Product((A,)), A)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TREES, st.integers(0, 2**31))
def test_every_written_node_reports_its_own_log_density(expression, seed):
    """As the restatement has it for the node alone. Its leaves' references are all that a node knows of the rest."""
    s = a_sample(np.random.default_rng(seed), expression, 1)
    nats = {prompt: answer.log_q for prompt, answer in s.prompts.items()}
    program, log_q, _ = columns(expression, nats, {model: answer.log_q for model, answer in s.free.items()})
    reported = node_log_densities(program, log_q)
    nodes = dict(walk(expression))
    assert set(reported) == set(nodes)
    for path, node in nodes.items():
        s.expression = node
        assert float(reported[path]) == pytest.approx(s.log_density(), rel=1e-9, abs=1e-9)


def test_a_balanced_and_reports_its_terms_and_no_density_of_its_own():
    program, log_q, _ = columns(balanced((A, Or((B, C)))))
    reported = node_log_densities(program, log_q)
    assert set(reported) == {("terms", 0), ("terms", 1), ("terms", 1, "terms", 0), ("terms", 1, "terms", 1)}
    assert float(reported["terms", 1]) == pytest.approx(solve(Or((B, C)))[0], **EXACT)


def test_programs_of_a_batch_do_not_see_each_other():
    """Wide and deep programs beside one leaf: every column that is its own reads as alone; the rest stays 0."""
    expressions = [A, Or((A, Not(And((B, N))))), Xor((A, B, C, D), scale=0.6), balanced((A, N))]
    solved = [columns(expression) for expression in expressions]
    mixing = Mixing.join([(program, 2) for program, _, _ in solved])
    m = max(program.leaves for program, _, _ in solved)
    log_q = torch.zeros(2 * len(solved), mixing.width, dtype=torch.float64)
    for i, (program, own, _) in enumerate(solved):
        log_q[2 * i : 2 * i + 2, : program.leaves] = own[:, : program.leaves]
        log_q[2 * i : 2 * i + 2, m : m + program.references] = own[:, program.leaves :]
    values, weights = evaluate_nodes(mixing, log_q)
    rows = unfold(mixing, weights)
    for i, (program, own, _) in enumerate(solved):
        alone = Mixing.join([(program, 1)])
        expected, own_weights = evaluate_nodes(alone, own)
        kept = [*range(program.leaves), *range(m, m + program.references)]
        nodes = [*range(mixing.width, mixing.width + len(program.nodes))]
        for copy in (2 * i, 2 * i + 1):
            torch.testing.assert_close(values[copy, kept + nodes], expected[0], rtol=1e-14, atol=1e-14)
            unused = sorted(set(range(values.shape[1])) - {*kept, *nodes})
            assert (values[copy, unused] == 0).all()
            tops = unfold(alone, own_weights)[0]
            torch.testing.assert_close(rows[copy, : len(tops), kept], tops, rtol=1e-14, atol=1e-14)
            assert (rows[copy, len(tops) :] == 0).all()
            assert (rows[copy, :, sorted(set(range(mixing.width)) - {*kept})] == 0).all()
