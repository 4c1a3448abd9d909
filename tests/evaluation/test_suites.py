"""All suites, small: what they draw is what they say, and the quick version of the whole runs and reports."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from evaluation.asked import Asked, Split, different_things, pictures
from evaluation.cli import app
from evaluation.formulas import Cardinality, Conjunction, Disjunction, Negation, atoms
from evaluation.judges.emoji import EmojiJudge
from evaluation.reference import Operator
from evaluation.store import Scope
from evaluation.suites import measurable, open_suite
from evaluation.suites.limits import Corrected
from evaluation.suites.logic import KINDS
from evaluation.ways import Composed, Original, joint, over
from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt, leaves
from pipelines.params import SamplingParams, Select
from pipelines.sampler import sample


@pytest.fixture(scope="module")
def catalog():
    return Catalog.builtin("cpu")


PAIR = ("a red circle", "a blue star")


def test_pictures_drawn_together_are_those_of_single_requests(catalog):
    """In one batch the network rounds otherwise than alone: 1e-3 of latents of size 1 after five steps."""
    asked = [Asked(PAIR, 5), Asked(("a green square", "a black triangle"), 9)]
    way = Composed("soft AND", over(And), {"steps": 5, "guidance_scale": 6.0, "guidance_start": 0.4})
    (drawn,) = way.draw(asked, catalog).values()
    assert drawn.rows == 3 * 5
    for picture, z in zip(asked, drawn.z, strict=True):
        params = SamplingParams(steps=5, guidance_scale=6.0, guidance_start=0.4, seed=picture.seed)
        alone = sample(over(And)(picture), params, {"shapes": catalog.get("shapes")}).z[0]
        torch.testing.assert_close(z, alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("select", list(Select))
def test_the_best_of_few_is_what_few_candidates_draw(catalog, select):
    asked = [Asked(PAIR, 3), Asked(PAIR, 4)]
    way = Composed("x", over(And), {"steps": 4, "select": select}, best_of=(1, 2, 4))
    drawn = way.draw(asked, catalog)
    assert list(drawn) == ["x", "x, best of 2", "x, best of 4"]
    for few, line in zip((1, 2, 4), drawn, strict=True):
        (direct,) = replace(way, best_of=(few,)).draw(asked, catalog).values()
        torch.testing.assert_close(drawn[line].z, direct.z, rtol=0, atol=1e-3)


def test_ways_begin_from_the_same_noise(catalog):
    """A single step lands on the estimate from the first noise, by the authors' loop as by ours."""
    asked = [Asked(PAIR, 11)]
    (ours,) = Composed("joint", joint, {"steps": 1, "guidance_scale": 1.0}).draw(asked, catalog).values()
    model = catalog.get("shapes")
    said = [Asked(("a red circle and a blue star",), 11)]
    (theirs,) = Original("x", Operator.AVERAGE, 1, guidance=1.0).draw(said, catalog).values()
    assert model.own_sigmas(1, (4, 8, 8))[0] == pytest.approx(model.card.sigma_max, rel=1e-5)
    torch.testing.assert_close(ours.z, theirs.z, rtol=0, atol=1e-3)


def test_costs_are_counted(catalog):
    (drawn,) = Original("x", Operator.AND, 3, guidance=4.0).draw([Asked(PAIR, 1), Asked(PAIR, 2)], catalog).values()
    assert drawn.rows == 3 * 3
    (alone,) = Composed("x", joint, {"steps": 3, "guidance_scale": 1.0}).draw([Asked(PAIR, 1)], catalog).values()
    assert alone.rows == 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_formulas_are_of_their_kind_and_split(kind):
    mine, theirs = (kind.make(split, 20) for split in (Split.TUNE, Split.REPORT))
    assert not set(mine) & set(theirs)
    assert kind.make(Split.REPORT, 40)[:20] == theirs
    for formula in theirs:
        match kind.name:
            case "NOT":
                assert isinstance(formula, Conjunction)
                assert isinstance(formula.terms[1], Negation)
                said, away = atoms(formula)
                assert said != away
            case "CNF of attributes" | "CNF of named things":
                assert isinstance(formula, Conjunction)
                assert all(isinstance(clause, Disjunction) for clause in formula.terms)
                assert len(set(atoms(formula))) == 6
            case _:
                assert isinstance(formula, Cardinality)
                assert (formula.least, formula.most) == (1, 1)


def test_expressions_of_logic_have_the_formula_s_captions():
    for kind in KINDS:
        way = next(way for way in kind.ways if way.name == "logic")
        for formula in kind.make(Split.REPORT, 10):
            expression = way.compose(Asked(atoms(formula), 0, formula))
            assert tuple(leaf.text for leaf in leaves(expression)) == atoms(formula)


def test_a_negative_prompt_leads_away_from_what_is_said_with_not():
    kind = next(kind for kind in KINDS if kind.name == "NOT")
    way = next(way for way in kind.ways if way.name == "negative prompt")
    formula = kind.make(Split.REPORT, 1)[0]
    said, away = atoms(formula)
    assert way.compose(Asked(atoms(formula), 0, formula)) == Prompt(said, "shapes", negative=away)


def test_lines_that_share_pictures_share_seeds():
    from evaluation.suites.prompts import LINES

    suite, scope = open_suite("prompts"), Scope()
    seeds = [[p.seed for p in suite.asked(line, scope)] for line in LINES.values() if line.things == 2]
    longest = max(seeds, key=len)
    assert all(some == longest[: len(some)] for some in seeds)
    assert len(set(longest)) == len(longest) >= 192
    assert pictures(different_things(96, 2, Split.REPORT), 2, Split.REPORT, 1)[0].seed == longest[0]


def test_the_whole_runs_quickly_and_reports(tmp_path):
    """Every suite with a few pictures: margins are wide, since rates of a few tell only what is certain anyway."""
    result = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path), "--workers", "2"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report-quick.json").read_text())
    assert set(report["suites"]) == set(measurable())
    tables = {table["table"]: table["rows"] for suite in report["suites"].values() for table in suite}
    two = {row["name"]: row for row in tables["Two captions that differ in colour and shape"]}
    # Four pictures: at least one thing is there in 95 % of pictures; in none of 4 it would be with 1e-5.
    assert two["joint prompt"]["at least one"]["value"] > 0
    drawn = {row["name"]: row for row in tables["What was drawn"]}
    assert drawn["A: shapes-round"]["of one kind: round"]["value"] == 1
    assert drawn["B: shapes-sharp"]["of one kind: round"]["value"] == 0
    # 200 samples of the exact mixture: their distance is the floor within a factor of two or so.
    ratios = [row for name, rows in tables.items() if name == "OR in 64 dimensions" for row in rows]
    assert all(row["W2 / floor"]["value"] < 2 for row in ratios)
    gaps = [row for name, rows in tables.items() if name.startswith("Balanced AND in") for row in rows]
    assert gaps
    html = (tmp_path / "report-quick.html").read_text()
    assert html.count("<svg") > 5
    assert "data:image/png" in html


def test_what_does_not_exist_is_refused():
    for words, told in (
        (["nonsense"], "there is no suite"),
        (["gmm", "--split", "half"], "none of tune, report"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert told in " ".join(result.output.replace("│", " ").split())


def test_what_emoji_draws_is_told_by_the_judge_of_all_names(catalog):
    """The judge has not learnt anything here: what counts is that each picture is held against its own names."""
    torch.manual_seed(0)
    judge, suite, scope = EmojiJudge().eval(), open_suite("emoji"), Scope(quick=True)
    cells = ("Named thing recognised: plain prompts", "Two things: soft AND", "One of two things: OR")
    blocks = [block for block in suite.blocks(scope) if block.cell in cells]
    bench = SimpleNamespace(catalog=catalog, emoji_judge=judge)
    results = {block: suite.measure(block, scope, bench) for block in blocks}
    single, two, either = (next(iter(results[block].numbers["lines"].values())) for block in blocks)
    assert np.shape(single["log_p"]) == np.shape(single["rank"]) == (2, 1)
    assert np.shape(two["log_p"]) == np.shape(two["lift"]) == np.shape(either["rank"]) == (2, 2)
    # An untrained judge gives every name about the same probability.
    np.testing.assert_allclose(two["log_p"], -np.log(len(judge.names)), atol=1.0)
    assert all(1 <= rank <= len(judge.names) for rank in np.ravel(two["rank"]))
    assert two["rows"] == 75
    titles = [part.title for part in suite.section(results, scope).parts]
    assert titles[:3] == [cell.partition(":")[0] for cell in cells]


def test_the_oracle_s_choice_is_never_worse_than_ours(catalog):
    suite, scope = open_suite("limits"), Scope(quick=True)
    (block,) = [block for block in suite.blocks(scope) if block.cell == "best of 4"]
    lines = suite.measure(block, scope, SimpleNamespace(catalog=catalog)).numbers["lines"]
    ours, ideal = (np.array(lines[name]["verdicts"]["all there"]) for name in ("best of 4", "best of 4, by the oracle"))
    assert (ideal >= ours).all()
    assert len(ours) == 4


def test_langevin_steps_leave_a_gaussian_as_it_is():
    """The score of N(0, (1 + σ²) I): its steps keep the variance, up to the step's own error."""
    rng, sigma = torch.Generator().manual_seed(0), 2.0
    z = (1 + sigma**2) ** 0.5 * torch.randn(20_000, generator=rng)
    corrected = Corrected("a few", 1, share=0.05)
    for _ in range(200):
        z = corrected._moved(z, z / (1 + sigma**2), sigma, rng)
    # The variance of 20,000 numbers is known to 1 %; steps of η raise it by the share η/(2 (1 + σ²)), here 2 %.
    assert float(z.var()) == pytest.approx(1 + sigma**2, rel=0.05)


def test_a_suite_without_its_pictures_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr("evaluation.suites.DATA_FOLDER", tmp_path)
    assert "emoji" not in measurable()
    result = CliRunner().invoke(app, ["emoji", "--quick", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "scripts.fetch_emoji" in result.output
