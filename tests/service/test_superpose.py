"""Expressions over HTTP: trees, texts, candidates, particles, lift; over small real models."""

import base64
import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.card import DEFAULT_GUIDANCE_SCALES, DEFAULT_GUIDANCE_START, Guidance
from pipelines.catalog import Catalog
from pipelines.composition import And, Method, Or, Prompt
from pipelines.grammar import MAX_TEXT
from pipelines.params import SamplingParams, Select
from pipelines.sampler import sample
from service.app import create_app
from service.pictures import diverging_picture
from service.settings import Settings
from tests.service.test_api import AND, OR, pictures, pixels, refused
from tests.service.test_images import encoded, noise

SUPERPOSE, DENSITY = "/v1/superpose", "/v1/density"
TREE = {"and": ["a red circle", {"or": ["a blue star", "a green square"]}, {"not": "a black shape"}]}
TEXT = '"a red circle" AND ("a blue star" OR "a green square") NOT "a black shape"'
HOW = {"steps": 4, "seed": 5, "guidance_scale": 3, "guidance_start": 0}


@pytest.fixture(scope="module")
def client(models):
    settings = Settings(max_job_rows=300, max_job_work=5000, max_pixels=16 * 16 * 64)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


def ask(client, expression, **given):
    answer = client.post(SUPERPOSE, json={"expression": expression} | HOW | given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wrong(client, expression, status=422, **given):
    """The one field at fault of a refused request."""
    problem = refused(client.post(SUPERPOSE, json={"expression": expression} | HOW | given), status)
    (error,) = problem["errors"]
    return error


def test_a_text_and_its_tree_draw_the_same_and_tell_of_every_part(client):
    tree, text = (ask(client, expression, num_images=2) for expression in (TREE, TEXT))
    for one, other in zip(tree["images"], text["images"], strict=True):
        assert one | {"b64_json": None} == other | {"b64_json": None}
        assert one["b64_json"] == other["b64_json"]
    assert tree["components"] == ["a red circle", "a blue star", "a green square", "a black shape"]
    for image in tree["images"]:
        assert list(image["log_density"]) == list(image["weight"]) == list(image["lift"]) == tree["components"]
        assert list(image["nodes"]) == [
            '"a red circle" AND ("a blue star" OR "a green square") AND NOT "a black shape"',
            '"a blue star" OR "a green square"',
            'NOT "a black shape"',
        ]
        assert all(
            isinstance(value, float) for kind in ("log_density", "nodes", "lift") for value in image[kind].values()
        )
        # The OR is the mixture of its terms with even odds.
        star, square = image["log_density"]["a blue star"], image["log_density"]["a green square"]
        mixture = np.logaddexp(star, square) - math.log(2)
        assert image["nodes"]['"a blue star" OR "a green square"'] == pytest.approx(mixture, abs=1e-6)
        assert image["candidate"] == 0
        assert image["survivors"] is None


def test_a_flat_expression_is_the_flat_route(client):
    for path, word in ((AND, "and"), (OR, "or")):
        terms = [{"prompt": "a red circle", "weight": 1.0}, {"prompt": "a blue star", "model": "two"}]
        flat = client.post(path, json={"components": terms} | HOW).json()
        nested = ask(client, {word: terms})
        assert nested["images"] == flat["images"]
        assert nested["models"] == flat["models"] == ["one", "two"]


def test_nested_leaves_have_names_of_their_own(client):
    twins = {"or": ["a", {"and": ["a", {"prompt": "a", "model": "two"}]}]}
    told = ask(client, twins)
    assert told["components"] == ["a @one", "a @one #2", "a @two"]
    (image,) = told["images"]
    assert list(image["nodes"]) == ['"a"@one OR "a"@one AND "a"@two', '"a"@one AND "a"@two']


@pytest.mark.parametrize("method", ["soft", "balanced"])
def test_and_draws_what_the_sampler_draws(client, models, method):
    """The route against the plain loop over the same expression: pictures to one grey level, densities to rounding."""
    body = {"components": ["a red circle", "a blue star"], "method": method, "num_images": 2} | HOW
    answer = client.post(AND, json=body)
    a, b = Prompt("a red circle", "one"), Prompt("a blue star", "one")
    params = SamplingParams(steps=4, seed=5, guidance_scale=3, num_images=2)
    plain = sample(And((a, b), method=Method(method)), params, models)
    drawn = models["one"].decode(plain.z).permute(0, 2, 3, 1).mul(255).round().numpy()
    for picture, expected in zip(pictures(answer), drawn, strict=True):
        assert np.abs(picture - expected).max() <= 1
    for image, densities in zip(answer.json()["images"], plain.log_density.numpy(), strict=True):
        first, second = image["log_density"].values()
        np.testing.assert_allclose([first, second], densities, rtol=1e-4, atol=0.05)
        if method == "balanced":
            assert first == pytest.approx(second, abs=1e-2)
            assert image["nodes"] == {}


def test_and_is_soft_unless_told(client):
    body = {"components": ["a red circle", {"prompt": "a blue star", "model": "two"}]} | HOW
    plain, soft, flat, balanced = (
        client.post(AND, json=body | given).json()["images"]
        for given in ({}, {"method": "soft"}, {"sharpness": 1e-5}, {"method": "balanced"})
    )
    assert plain == soft
    assert flat[0]["log_density"] != soft[0]["log_density"] != balanced[0]["log_density"]


@pytest.mark.parametrize(
    ("expression", "together"), [("a", 1), ("a OR b", 1), ("a AND b", 2), ("a AND b AND (c OR d)", 3)]
)
def test_guidance_that_is_not_said_is_as_strong_for_each_prompt(client, expression, together):
    """The lead model's, as many times as prompts must hold together, and later where several must."""
    body = {"expression": expression, "steps": 4, "seed": 5}
    said = {
        "guidance_scale": together * DEFAULT_GUIDANCE_SCALES[Guidance.CLASSIFIER_FREE],
        "guidance_start": 0 if together == 1 else DEFAULT_GUIDANCE_START,
    }
    silent, told, other, late = (
        client.post(SUPERPOSE, json=body | given).json()["images"]
        for given in ({}, said, said | {"guidance_scale": 5}, said | {"guidance_start": 0.5})
    )
    assert silent == told
    assert other != told != late


def test_guidance_may_start_later(client):
    """All steps without guidance are those of guidance 1; half of them are neither."""
    pictured = {start: ask(client, "a AND b", guidance_start=start)["images"][0]["b64_json"] for start in (0, 0.5, 1)}
    unguided = ask(client, "a AND b", guidance_scale=1)["images"][0]
    assert np.abs(pixels(base64.b64decode(pictured[1])) - picture_of(unguided)).max() <= 1
    assert len(set(pictured.values())) == 3
    assert wrong(client, "a", guidance_start=1.5)["pointer"] == "#/guidance_start"


def test_balanced_lifts_are_differences_of_log_densities(client):
    body = {"components": ["a red circle", "a blue star"], "method": "balanced", "lift": 2} | HOW | {"steps": 12}
    first, second = client.post(AND, json=body).json()["images"][0]["log_density"].values()
    assert first - second == pytest.approx(2, abs=0.05)


TREES = [
    ({"and": ["a", {"or": []}]}, "#/expression/and/1/or", "at least 1"),
    ({"and": ["a", {"prompt": "b", "wieght": 1}]}, "#/expression/and/1/wieght", "did you mean `weight`?"),
    ({"and": ["a", {"not": {"prompt": "b", "weight": 2}}]}, "#/expression/and/1/not/weight", "no weights"),
    ({"or": ["a", {"and": ["b", "c"], "method": "balanced"}]}, "#/expression/or/1/method", "outermost"),
    ({"and": ["a", {"prompt": "a", "weight": 1}], "method": "balanced"}, "#/expression/and/1/weight", "equals"),
    (
        {"or": ["a", {"and": ["b", {"prompt": "c", "lora": {"ink": 1}}]}]},
        "#/expression/or/1/and/1/lora",
        "no LoRA 'ink'",
    ),
    ({"or": [{"prompt": "a", "model": "pixels"}]}, "#/expression/or/0/prompt", "takes no prompts"),
    ({"prompt": "a", "model": "pixels"}, "#/expression/prompt", "takes no prompts"),
    ({"and": ["a", {"at_least": ["b", "c"], "count": 3}]}, "#/expression/and/1/count", "1 to 2"),
    ({"or": ["a"], "weight": 1}, "#/expression/weight", "there is none"),
    (7, "#/expression", "a term is a string"),
    (None, "#/expression", "a term is a string"),
    ([], "#/expression", "a term is a string"),
]


@pytest.mark.parametrize(("tree", "pointer", "told"), TREES, ids=[pointer for _, pointer, _ in TREES])
def test_a_tree_s_fault_is_pointed_at(client, tree, pointer, told):
    error = wrong(client, tree)
    assert error["pointer"] == pointer
    assert told in error["detail"]
    assert "column" not in error


TEXTS = [
    ("a AND", 1 + len("a AND"), "expected a prompt"),
    ("a AND (b OR", 1 + len("a AND (b OR"), "expected a prompt"),
    ("a AND b:20000", 9, "less than or equal to 10000"),
    ("a OR (b AND[balanced] c)", 13, "outermost"),
    ("a OR (b AND c<lora:ink>)", 14, "no LoRA 'ink'"),
    ("AT LEAST 3 OF (a, b)", 10, "1 to 2"),
    (" OR ".join(["a"] * 17), 16 * 5 + 1, "at most 16 prompts"),
    ("", 1, "expected a prompt"),
]


@pytest.mark.parametrize(("text", "column", "told"), TEXTS, ids=[text for text, _, _ in TEXTS])
def test_a_text_s_fault_is_told_by_its_column(client, text, column, told):
    error = wrong(client, text)
    assert error["pointer"] == "#/expression"
    assert told in error["detail"]
    assert error["column"] == column
    assert error["detail"].startswith(f"at column {column}: ")


def test_a_text_beyond_any_length_is_refused(client):
    big = TestClient(client.app)
    error = wrong(big, "a" * (MAX_TEXT + 1))
    assert (error["pointer"], "column" in error) == ("#/expression", False)
    assert f"at most {MAX_TEXT} characters" in error["detail"]


def test_a_model_that_there_is_not_is_404_where_it_stands(client):
    error = wrong(client, {"and": ["a", {"not": {"prompt": "b", "model": "three"}}]}, 404)
    assert error["pointer"] == "#/expression/and/1/not/model"
    error = wrong(client, "a AND NOT b@three", 404)
    assert (error["pointer"], error["column"]) == ("#/expression", 12)
    assert "one, two, pixels" in error["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"components": ["a", {"prompt": "a", "weight": 1}], "method": "balanced"}, "#/components/1/weight"),
        ({"components": ["a", {"prompt": "b", "lora": {"ink": 1}}]}, "#/components/1/lora"),
        ({"components": ["a", "b"], "sharpness": 0}, "#/sharpness"),
        ({"components": ["a", "b"], "method": "hard"}, "#/method"),
        ({"components": ["a", "b"], "candidates": 17}, "#/candidates"),
        ({"components": ["a", "b"], "candidates": 0}, "#/candidates"),
        ({"components": ["a", "b"], "particles": 65}, "#/particles"),
        ({"components": ["a", "b"], "select": "taste"}, "#/select"),
        ({"components": ["a", "b"], "include_lift_maps": 1}, "#/include_lift_maps"),
        ({"components": ["a", "b"], "method": "balanced", "particles": 2}, "#/particles"),
        ({"components": [""] * 2 + [{"prompt": "", "model": "two"}], "expression": "a"}, "#/expression"),
    ],
)
def test_the_flat_route_names_its_own_fields(client, body, pointer):
    (error,) = refused(client.post(AND, json=body | {"steps": 2}), 422)["errors"]
    assert error["pointer"] == pointer


class Unguided:
    """A model without guidance, so without an unconditional density."""

    def __init__(self, model):
        self._model, self.card = model, replace(model.card, guidance=Guidance.NONE)

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_what_needs_a_reference_names_the_model_that_has_none(models):
    catalog = Catalog.of({"one": models["one"], "bare": Unguided(models["one"])})
    bare, body = {"prompt": "a", "model": "bare"}, {"steps": 2, "guidance_scale": 1}
    with TestClient(create_app(Settings(), catalog=catalog)) as client:
        assert wrong(client, {"and": ["b", {"not": bare}]}, **body)["pointer"] == "#/expression/and/1/not/model"
        assert wrong(client, {"or": ["b", bare]}, candidates=2, **body)["pointer"] == "#/expression/or/1/model"
        assert wrong(client, bare, candidates=2, **body)["pointer"] == "#/expression/model"
        error = wrong(client, "b AND NOT a@bare", **body)
        assert (error["pointer"], error["column"]) == ("#/expression", 12)
        flat = {"components": ["b", bare], "candidates": 2} | body
        (error,) = refused(client.post(OR, json=flat), 422)["errors"]
        assert error["pointer"] == "#/components/1/model"
        assert wrong(client, {"or": ["b", bare]}, guidance_scale=3)["pointer"] == "#/guidance_scale"


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        ({"particles": 31, "candidates": 2}, "particles", "5 network rows × 1 images × 2 candidates × 31 particles"),
        ({"num_images": 4, "candidates": 16}, "candidates", "is 320; this service allows 300 in one step"),
        (
            {"num_images": 50, "candidates": 2},
            "num_images",
            "num_images × candidates is 25600; this service allows 16384",
        ),
        ({"particles": 64, "num_images": 2}, "particles", "width × height × num_images × particles is 32768"),
        ({"candidates": 16, "steps": 80}, "steps", "5 network rows × 1 images × 16 candidates × 80 steps is 6400"),
        ({"candidates": 16, "steps": 62, "select": "density"}, "steps", "62 steps and 8 calls to choose by is 5600"),
    ],
)
def test_more_than_the_service_does_for_one_request_is_refused_by_its_field(client, given, field, told):
    error = wrong(client, TREE, **given)
    assert error["pointer"] == f"#/{field}"
    assert told in error["detail"]


def test_an_expression_of_too_many_rows_is_named_itself(models):
    with TestClient(create_app(Settings(max_job_rows=3), catalog=Catalog.of(models))) as client:
        assert wrong(client, {"or": ["a", "b", "c"]})["pointer"] == "#/expression/or"
        assert wrong(client, "a OR b OR c")["column"] == 1
        (error,) = refused(client.post(OR, json={"components": ["a", "b", "c"]}), 422)["errors"]
        assert error["pointer"] == "#/components"


def raw(client, text):
    return client.post(SUPERPOSE, content=text, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("depth", [9, 200, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [('{"not":', "}"), ('{"and":[', "]}"), ('{"or":["a",', "]}")])
def test_hostile_nesting_is_a_refusal_like_any_other(models, depth, opening, closing):
    """Deeper than allowed, than Python's own stack, than the JSON reader's: always 422, and the service serves on."""
    with TestClient(create_app(Settings(), catalog=Catalog.of(models))) as client:
        text = '{"expression":' + opening * depth + '"a"' + closing * depth + "}"
        problem = refused(raw(client, text), 422)
        if depth < 10:
            (error,) = problem["errors"]
            assert error["pointer"].count("/") >= 9 or "at most" in error["detail"]
        assert ask(client, "a", steps=1)


@pytest.mark.parametrize(
    "expression",
    [
        {"and": [7] * 100_000},
        {"and": [{"or": [{"xor": []}] * 100}] * 100},
        {"prompt": {"and": [{"and": [{}]}]}},
        {"lora": {"and": 1}},
        {"and": ["a"], "not": "b", "or": []},
        {"and": [[["a"]]]},
        {"prompt": "a", "lora": {"b": {"c": {}}}},
    ],
)
def test_no_tree_gives_anything_but_a_short_refusal(client, expression):
    answer = raw(client, json.dumps({"expression": expression}))
    refused(answer, answer.status_code)
    assert answer.status_code in {413, 422}
    assert len(answer.content) < 4000


def test_the_best_of_several_candidates_satisfies_at_least_as_well_as_the_first(client):
    """Candidate 0 is what a request without candidates draws; the chosen one is no worse in lift, and often another."""
    chosen = []
    for seed in range(6):
        alone, best = (ask(client, "a AND b", seed=seed, candidates=c)["images"][0] for c in (1, 4))
        chosen.append(best["candidate"])
        if best["candidate"] == 0:
            assert np.abs(picture_of(best) - picture_of(alone)).max() <= 1
        else:
            assert np.abs(picture_of(best) - picture_of(alone)).max() > 1
    # By chance alone, all six would be the first once in 4096 times.
    assert set(chosen) > {0} or 0 not in chosen


def picture_of(image):
    return pixels(base64.b64decode(image["b64_json"]))


@pytest.mark.parametrize("select", ["lift", "density"])
def test_candidates_are_chosen_as_the_sampler_chooses_and_come_again_with_their_seed(client, models, select):
    told = ask(client, "a OR b", candidates=3, select=select, num_images=2, include_trajectory=True)
    terms = Or((Prompt("a", "one"), Prompt("b", "one")))
    params = SamplingParams(steps=4, seed=5, guidance_scale=3, num_images=2, candidates=3, select=Select(select))
    plain = sample(terms, params, models)
    assert [image["candidate"] for image in told["images"]] == plain.candidate.tolist()
    for image, lift in zip(told["images"], plain.lift.numpy(), strict=True):
        np.testing.assert_allclose(list(image["lift"].values()), lift, rtol=1e-3, atol=0.05)
        again = ask(client, "a OR b", candidates=3, select=select, seed=image["seed"])["images"][0]
        assert again["candidate"] == image["candidate"]
        assert np.abs(picture_of(again) - picture_of(image)).max() <= 1
    # Choosing on fresh noise takes further calls, which no trajectory tells of.
    assert told["timings"]["steps"] == (12 if select == "density" else 4)
    assert [point["step"] for point in told["trajectory"]] == [1, 2, 3, 4]
    assert {len(point["weight"]) for point in told["trajectory"]} == {6}
    info = client.get(f"/v1/jobs/{told['id']}").json()
    assert info["step"] == info["steps"] == told["timings"]["steps"]


def test_particles_tell_how_many_are_left_and_how_evenly_they_weigh(client):
    told = ask(client, "a AND b", particles=8, num_images=2, candidates=2, include_trajectory=True)
    for image in told["images"]:
        assert 1 <= image["survivors"] <= 8
    for point in told["trajectory"]:
        assert len(point["effective_sample_size"]) == 4
        assert all(1 - 1e-9 <= size <= 8 + 1e-9 for size in point["effective_sample_size"])
    assert [len(point["weight"]) for point in told["trajectory"]] == [32, 32, 32, 4]
    again = ask(client, "a AND b", particles=8, num_images=2, candidates=2)
    assert [i["b64_json"] for i in again["images"]] == [i["b64_json"] for i in told["images"]]
    table = client.get(f"/v1/jobs/{told['id']}/trajectory", headers={"Accept": "text/csv"}).text
    lines = list(csv.DictReader(io.StringIO(table)))
    assert len(lines) == (3 * 32 + 4) * 2
    places = {(line["image"], line["candidate"], line["particle"]) for line in lines if line["step"] == "1"}
    assert places == {(str(i), str(c), str(k)) for i in range(2) for c in range(2) for k in range(8)}
    for line in lines:
        point, group = told["trajectory"][int(line["step"]) - 1], 2 * int(line["image"]) + int(line["candidate"])
        assert float(line["effective_sample_size"]) == pytest.approx(point["effective_sample_size"][group])


def test_without_particles_there_is_no_sample_size(client):
    told = ask(client, "a AND b", include_trajectory=True)
    assert {point["effective_sample_size"] for point in told["trajectory"]} == {None}
    table = client.get(f"/v1/jobs/{told['id']}/trajectory", headers={"Accept": "text/csv"}).text
    assert {line["effective_sample_size"] for line in csv.DictReader(io.StringIO(table))} == {""}


def test_lift_maps_come_inside_the_answer_and_by_their_address(client):
    told = ask(client, TREE, include_lift_maps=True, num_images=2)
    for i, image in enumerate(told["images"]):
        assert list(image["lift_maps"]) == told["components"]
        full = 0
        for leaf, lift_map in enumerate(image["lift_maps"].values()):
            data = base64.b64decode(lift_map["b64_json"])
            colours = pixels(data)
            # Samples of 16×16 pictures have 8×8 cells, and a cell is a square of 8×8 pixels.
            assert colours.shape == (64, 64, 3)
            assert np.array_equal(colours, colours[::8, ::8].repeat(8, 0).repeat(8, 1))
            full += ((colours == (178, 24, 43)).all(-1) | (colours == (33, 102, 172)).all(-1)).any()
            fetched = client.get(f"/v1/jobs/{told['id']}/lift-maps/{i}/{leaf}")
            assert fetched.content == data
            assert fetched.headers["content-type"] == "image/png"
            assert float(fetched.headers["x-superdiff-scale"]) == pytest.approx(lift_map["scale"], rel=1e-4)
        # One scale for all maps of a picture: the largest cell of all has the full colour.
        assert len({lift_map["scale"] for lift_map in image["lift_maps"].values()}) == 1
        assert full >= 1
    path = f"/v1/jobs/{told['id']}/lift-maps"
    result = client.get(f"/v1/jobs/{told['id']}").json()["result"]["images"][1]["lift_maps"]
    assert result["a black shape"]["url"] == f"{path}/1/3"
    assert result["a black shape"]["b64_json"] is None
    for place in ("2/0", "0/4"):
        refused(client.get(f"{path}/{place}"), 404)


def test_lift_maps_are_kept_only_when_asked_for_and_null_where_nothing_is_known(client):
    plain = ask(client, TREE)
    assert plain["images"][0]["lift_maps"] is None
    assert "include_lift_maps" in refused(client.get(f"/v1/jobs/{plain['id']}/lift-maps/0/0"), 409)["detail"]
    unknown = ask(client, "a OR b", include_lift_maps=True, guidance_scale=1)
    assert unknown["images"][0]["lift"] == unknown["images"][0]["lift_maps"] == {"a": None, "b": None}
    assert "not known" in refused(client.get(f"/v1/jobs/{unknown['id']}/lift-maps/0/0"), 404)["detail"]
    kept = ask(client, "a OR b", include_lift_maps=True, image=encoded(noise(16, 16)), strength=0)
    assert kept["images"][0]["lift"] == kept["images"][0]["lift_maps"] == {"a": None, "b": None}


def test_a_diverging_picture_is_white_at_nought_and_full_at_its_scale():
    cells = np.array([[0.0, 2.0, -2.0], [1.0, 4.0, -9.0]])
    drawn = diverging_picture(cells, 2.0)
    assert drawn.shape == (64, 96, 3)
    assert drawn.dtype == np.uint8
    middle = drawn[16::32, 16::32]
    assert middle[0].tolist() == [[255, 255, 255], [178, 24, 43], [33, 102, 172]]
    assert np.abs(middle[1, 0].astype(float) - (255 + np.array([178, 24, 43])) / 2).max() <= 0.5
    assert np.array_equal(middle[1, 1:], middle[0, 1:])
    assert (diverging_picture(np.zeros((100, 70)), 0.0) == 255).all()
    assert diverging_picture(np.zeros((100, 70)), 0.0).shape == (100, 70, 3)


def test_the_bare_picture_carries_its_lift(client):
    headers = {"Accept": "image/png"}
    bare = client.post(SUPERPOSE, json={"expression": TEXT, "candidates": 2} | HOW, headers=headers)
    inside = ask(client, TEXT, candidates=2)["images"][0]
    assert json.loads(bare.headers["x-superdiff-lift"]) == list(inside["lift"].values())
    assert bare.content == base64.b64decode(inside["b64_json"])


def test_the_key_of_a_request_holds_for_trees(client):
    key = {"Idempotency-Key": "a tree"}
    body = {"expression": TREE} | HOW
    first = client.post(SUPERPOSE, json=body, headers=key)
    assert first.json()["id"] == client.post(SUPERPOSE, json=body, headers=key).json()["id"]
    other = {"and": [*TREE["and"][:2], {"not": "a white shape"}]}
    refused(client.post(SUPERPOSE, json=body | {"expression": other}, headers=key), 409)


def explained(client, **given):
    answer = client.post(DENSITY, json={"image": encoded(noise(16, 16)), "steps": 6, "seed": 1, "draws": 1} | given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_density_is_told_of_every_node(client):
    """The nodes' formulas over the leaves' own log-densities, of one draw of the noise."""
    told = explained(
        client, expression='("a red circle" OR "a blue star") AND[sharpness=0.5] NOT[2] "" OR[temperature=2] "a"'
    )
    leaf = {name: each["log_density"] for name, each in told["explanations"].items()}
    node = {name: each["log_density"] for name, each in told["nodes"].items()}
    empty = leaf["@one"]

    def both(x, y, sharpness):
        return -(np.logaddexp(-sharpness * x, -sharpness * y) - math.log(2)) / sharpness

    either = np.logaddexp(leaf["a red circle"], leaf["a blue star"]) - math.log(2)
    # The empty prompt is the reference itself: (1 + γ) reference − γ reference.
    left = both(either, empty, 0.5)
    root = (np.logaddexp(2 * left, 2 * leaf["a"]) - math.log(2)) / 2
    expected = {
        '("a red circle" OR "a blue star") AND[sharpness=0.5] NOT[2] "" OR[temperature=2] "a"': root,
        '("a red circle" OR "a blue star") AND[sharpness=0.5] NOT[2] ""': left,
        '"a red circle" OR "a blue star"': either,
        'NOT[2] ""': empty,
    }
    assert node == pytest.approx(expected, abs=1e-6)
    assert list(node) == list(expected)
    assert sum(each["posterior"] for each in told["explanations"].values()) == pytest.approx(1)


def test_components_are_short_for_the_or_of_them(client):
    def explained_by(**given):
        return {k: v for k, v in explained(client, **given).items() if k not in {"id", "created", "timings"}}

    flat = explained_by(components=["a red circle", {"prompt": "a blue star", "weight": 3}], draws=3)
    text = explained_by(expression='"a red circle" OR "a blue star":3', draws=3)
    tree = explained_by(expression={"or": ["a red circle", {"prompt": "a blue star", "weight": 3}]}, draws=3)
    assert flat == text == tree
    (node,) = flat["nodes"].values()
    assert node["standard_error"] > 0
    even = explained(client, components=["a red circle", "a blue star"], draws=3)["explanations"]
    odds = {name: math.log(each["posterior"]) for name, each in flat["explanations"].items()}
    fair = {name: math.log(each["posterior"]) for name, each in even.items()}
    gained = (odds["a blue star"] - odds["a red circle"]) - (fair["a blue star"] - fair["a red circle"])
    assert gained == pytest.approx(3, abs=1e-6)


def test_a_balanced_and_has_parts_with_densities_and_none_itself(client):
    told = explained(client, expression="(a OR b) AND[balanced] c")
    assert list(told["nodes"]) == ['"a" OR "b"']
    assert list(told["explanations"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({}, "#/expression"),
        ({"components": ["a"], "expression": "a"}, "#/expression"),
        ({"expression": {"or": ["a", {"prompt": "b", "lora": {"x": 1}}]}}, "#/expression/or/1/lora"),
        ({"expression": "a OR"}, "#/expression"),
        ({"expression": "a", "components": []}, "#/components"),
        ({"components": ["a", {"prompt": "b", "lora": {"x": 1}}]}, "#/components/1/lora"),
        ({"expression": "a", "particles": 2}, "#/particles"),
    ],
)
def test_a_density_needs_one_of_components_and_expression(client, given, pointer):
    problem = refused(client.post(DENSITY, json={"image": encoded(noise(16, 16)), "steps": 2} | given), 422)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_the_published_schema_describes_the_whole_tree(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    named = {"$ref": "#/components/schemas/Term"}
    variants = {each["$ref"].rpartition("/")[2] for each in schemas["Term"]["anyOf"]}
    assert variants == {f"{word}Term" for word in ("Or", "And", "Xor", "AtLeast", "Not", "Average", "Product")} | {
        "Component"
    }
    for word in ("or", "and", "xor", "at_least", "average", "product"):
        operator = schemas["".join(part.capitalize() for part in word.split("_")) + "Term"]
        assert operator["properties"][word]["items"] == named
        assert operator["properties"][word]["maxItems"] == 16
        assert word in operator["required"]
        assert operator["additionalProperties"] is False
    assert schemas["NotTerm"]["properties"]["not"] == named
    assert {"type": "string", "maxLength": 4000} in schemas["Component"]["anyOf"]
    expression = schemas["SuperposeRequest"]["properties"]["expression"]
    assert expression["anyOf"] == [{"type": "string", "maxLength": MAX_TEXT}, named]
    assert "expression" in schemas["SuperposeRequest"]["required"]
    assert schemas["AndRequest"]["properties"]["method"]["default"] == And(("a",)).method
    assert schemas["AndRequest"]["properties"]["sharpness"]["default"] == And(("a",)).sharpness


def test_a_picture_s_format_holds_for_expressions_too(client):
    data = base64.b64decode(ask(client, "a", output_format="webp")["images"][0]["b64_json"])
    assert Image.open(io.BytesIO(data)).format == "WEBP"
