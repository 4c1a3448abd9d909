import math

import numpy as np
import pytest
from scipy import stats

from evaluation.statistics import Rate, bootstrap_mean, paired_difference, root


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_rates_have_published_intervals(hits, trials, low, high):
    assert Rate(hits, trials).interval == pytest.approx((low, high), abs=5e-5)


def test_a_rate_counts_true_verdicts():
    rate = Rate.of([True, False, True, True])
    assert (rate.value, rate.trials) == (0.75, 4)
    assert str(Rate(1, 2)).startswith("50.0 % (")


def test_the_bootstrap_of_a_mean_is_the_normal_one_for_many():
    """Of 2,000 numbers the percentile interval is the mean ± 1.96 standard errors; resampling leaves a few per cent."""
    values = np.random.default_rng(0).exponential(size=2000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert bootstrap_mean(values) == found


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).normal(size=60)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=9999)
    ours = bootstrap_mean(values)
    # Both quantiles are themselves uncertain by some hundredths of a standard error.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_pairing_makes_differences_of_alike_ways_sharp():
    """Two ways that fail on nearly the same seeds differ by less than their rates' intervals say."""
    rng = np.random.default_rng(3)
    hard = rng.random(400) < 0.3
    one, two = ~hard, ~hard & (rng.random(400) > 0.05)
    found = paired_difference(one, two)
    assert found.value == pytest.approx(one.mean() - two.mean())
    assert 0 < found.low < found.value < found.high
    unpaired = math.hypot(*(1.96 * math.sqrt(v.mean() * (1 - v.mean()) / 400) for v in (one, two)))
    assert found.high - found.low < unpaired


def test_a_paired_difference_covers_the_truth_as_often_as_it_says():
    """200 experiments of 80 pictures: 95 % within four standard errors of 1.5 points."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        one, two = rng.random(80) < 0.8, rng.random(80) < 0.6
        found = paired_difference(one, two)
        covered += found.low <= 0.2 <= found.high
    assert covered / 200 >= 0.95 - 4 * 0.0154


def test_ways_that_never_differ_are_not_told_to_be_equal():
    found = paired_difference([True] * 50, [True] * 50)
    assert (found.value, found.low, found.high) == (0.0, -1 / 50, 1 / 50)


def test_pairs_need_partners():
    with pytest.raises(ValueError, match="same pictures"):
        paired_difference([True], [True, False])


def test_a_root_mean_square():
    found = root(bootstrap_mean([9.0, 16.0]))
    assert found.value == pytest.approx(math.sqrt(12.5))
    assert (found.low, found.high) == (3.0, 4.0)
